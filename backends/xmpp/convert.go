package xmpp

import (
	"cmp"
	"maps"
	"mime"
	"net/url"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/backends/xmpp/styled"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// messageOf reads what a message says. Nicks are those of people on the host's
// side, to find mentions of them.
func messageOf(c *xep.Content, nicks map[string]string) *backends.Message {
	m := &backends.Message{}
	body, emote := strings.CutPrefix(c.Body, "/me ")
	switch {
	case emote:
		m.Kind, m.Text = backends.Emote, styled.Parse(body)
	case c.XHTML != nil && !c.Unstyled:
		m.Text = styled.XHTML(c.XHTML)
	case c.Unstyled:
		m.Text = richtext.Plain(body)
	default:
		m.Text = styled.Parse(body)
	}
	m.Text = mention(m.Text, nicks)
	if c.Reply != nil {
		m.ReplyTo = &backends.Quote{ID: backends.MessageID(c.Reply.ID)}
	}
	for _, u := range c.Files {
		if f, ok := fileOf(u); ok {
			m.Files = append(m.Files, f)
		}
	}
	return m
}

func fileOf(address string) (backends.File, bool) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return backends.File{}, false
	}
	name := path.Base(u.Path)
	if name == "." || name == "/" {
		name = "file"
	}
	return backends.File{URL: address, Name: name, MediaType: mime.TypeByExtension(path.Ext(name))}, true
}

// maxMentions is how many mentions of a message we mark.
const maxMentions = 20

// mention marks nicks in the text. Very short ones only count where they are
// meant: with "@" before, or first with ":" or "," after.
func mention(doc []richtext.Node, nicks map[string]string) []richtext.Node {
	if len(nicks) == 0 {
		return doc
	}
	order := slices.SortedFunc(maps.Keys(nicks), func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	m := mentioner{order: order[:min(len(order), 200)], users: nicks, left: maxMentions}
	return m.nodes(doc, true)
}

type mentioner struct {
	order []string          // nicks, longest first
	users map[string]string // by nick
	left  int
}

func (m *mentioner) nodes(doc []richtext.Node, first bool) []richtext.Node {
	var out []richtext.Node
	for i, n := range doc {
		switch n.Kind {
		case richtext.Text:
			out = append(out, m.text(n.Text, first && i == 0)...)
			continue
		case richtext.Code, richtext.CodeBlock, richtext.Quote, richtext.Link, richtext.Mention:
		default:
			n.Children = m.nodes(n.Children, first && i == 0)
		}
		out = append(out, n)
	}
	return out
}

func (m *mentioner) text(s string, first bool) []richtext.Node {
	for _, nick := range m.order {
		for at := 0; at < len(s) && m.left > 0; {
			i := strings.Index(s[at:], nick)
			if i < 0 {
				break
			}
			i += at
			at = i + len(nick)
			if !isMention(s, i, at, first) {
				continue
			}
			m.left--
			out := m.text(s[:i], first)
			out = append(out, richtext.Node{Kind: richtext.Mention, User: m.users[nick], Children: richtext.Plain(nick)})
			return append(out, m.text(s[at:], false)...)
		}
	}
	if s == "" {
		return nil
	}
	return []richtext.Node{{Kind: richtext.Text, Text: s}}
}

func isMention(s string, from, to int, first bool) bool {
	before, size := utf8.DecodeLastRuneInString(s[:from])
	after, _ := utf8.DecodeRuneInString(s[to:])
	if wordRune(before) || wordRune(after) {
		return false
	}
	addressed := size == 0 && first && (after == ':' || after == ',')
	return addressed || before == '@' || utf8.RuneCountInString(s[from:to]) >= 3
}

func wordRune(r rune) bool {
	return r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsDigit(r) || r == '_')
}

// outgoing is a message to be sent: content, and the part of the body that is
// there for clients that do not know replies.
type outgoing struct {
	xep.Content
	quoted string
}

// contentsOf writes a message: the text, then each file in a stanza of its own, as
// clients expect the address to be all of the body (XEP-0066).
func contentsOf(m *backends.Message, name func(string) string, author func(*backends.Quote) string) []outgoing {
	var out []outgoing
	if len(m.Text) > 0 || len(m.Files) == 0 {
		o := outgoing{}
		o.Body, o.Unstyled = styled.Format(m.Text, name)
		if m.Kind == backends.Emote {
			o.Body = "/me " + o.Body
		}
		out = append(out, o)
	}
	for _, f := range m.Files {
		out = append(out, outgoing{Content: xep.Content{Body: f.URL, Files: []string{f.URL}}})
	}
	if q := m.ReplyTo; q != nil {
		first := &out[0]
		if q.ID != "" {
			first.Reply = &xep.Reply{ID: string(q.ID), To: author(q)}
		}
		if q.Text != "" && len(first.Files) == 0 && m.Kind != backends.Emote {
			quoted := "> " + strings.ReplaceAll(excerpt(q.Text), "\n", "\n> ") + "\n"
			first.Body = quoted + first.Body
			if q.ID != "" {
				first.quoted = quoted
			}
		}
	}
	return out
}

// excerpt shortens what is quoted.
func excerpt(s string) string {
	if r := []rune(s); len(r) > 300 {
		return string(r[:300]) + "…"
	}
	return s
}
