package irc

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc/ircfmt"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

// ircTextOf returns text without formatting, for topics and reasons.
func ircTextOf(s string) string { return ircfmt.Strip(s) }

// messageOf returns what a PRIVMSG or NOTICE says: nil for CTCP requests and
// replies but ACTION, which is an emote.
func (n *network) messageOf(m *irc.Message) *backends.Message {
	body := &backends.Message{}
	text := m.Params[1]
	if command, rest, ok := ircmsg.ParseCTCP(text); ok {
		if command != "ACTION" || m.Command == "NOTICE" {
			return nil
		}
		body.Kind, text = backends.Emote, rest
	}
	if m.Command == "NOTICE" {
		body.Kind = backends.Notice
	}
	body.Text = n.withMentions(ircfmt.Parse(text))
	if id := replyTag(m); id != "" {
		body.ReplyTo = &backends.Quote{ID: id}
	}
	return body
}

// replyTag is the message that a client says it replies to
// (https://ircv3.net/specs/client-tags/reply).
func replyTag(m *irc.Message) backends.MessageID {
	if id := m.Tags["+reply"]; id != "" {
		return backends.MessageID(id)
	}
	return backends.MessageID(m.Tags["+draft/reply"])
}

// tagBody returns what a TAGMSG says, or nil.
func tagBody(m *irc.Message) backends.Body {
	if state, ok := m.Tags["+typing"]; ok {
		return &backends.Typing{On: state == "active"}
	}
	key, ok := m.Tags["+draft/react"]
	removed := false
	if !ok {
		key, removed = m.Tags["+draft/unreact"], true
	}
	if target := replyTag(m); key != "" && target != "" {
		return &backends.Reaction{Target: target, Key: key, Removed: removed}
	}
	return nil
}

// withMentions turns the nicks of accounts, where they are words of the text, into
// mentions.
func (n *network) withMentions(doc richtext.Doc) richtext.Doc {
	var out richtext.Doc
	for _, node := range doc {
		switch {
		case node.Kind == richtext.Text:
			out = append(out, n.mentionsIn(node.Text)...)
			continue
		case len(node.Children) > 0:
			node.Children = n.withMentions(node.Children)
		}
		out = append(out, node)
	}
	return out
}

func (n *network) mentionsIn(text string) []richtext.Node {
	var nodes []richtext.Node
	begin := 0
	for i := 0; i < len(text); {
		end := i + strings.IndexByte(text[i:]+" ", ' ')
		word := strings.Trim(text[i:end], "@:,;.!?()\"'")
		if account, ok := n.mentioned(word); ok {
			at := i + strings.Index(text[i:end], word)
			nodes = append(nodes, richtext.Node{Kind: richtext.Text, Text: text[begin:at]},
				richtext.Node{Kind: richtext.Mention, User: string(account), Children: []richtext.Node{{Kind: richtext.Text, Text: word}}})
			begin = at + len(word)
		}
		i = end + 1
	}
	nodes = append(nodes, richtext.Node{Kind: richtext.Text, Text: text[begin:]})
	return richtext.Doc(nodes).Normalise()
}

// mentioned reports whether word is the nick of an account whose ID can be
// told from a user's (see richtext.Node.User).
func (n *network) mentioned(word string) (backends.AccountID, bool) {
	if len(word) < 2 {
		return "", false
	}
	a, ok := n.ownAccount(word)
	return a, ok && strings.HasPrefix(string(a), "@")
}

// mention names users by their nicks.
func (n *network) mention(user, written string) string {
	if user == richtext.RoomMention {
		return written
	}
	if strings.HasPrefix(user, "@") {
		return n.nickOf(backends.AccountID(user))
	}
	if n.fold(written) == user {
		return written
	}
	return user
}

// confirmTimeout is how long an echo may take.
const confirmTimeout = 30 * time.Second

// say sends a message to a channel or nick. If as is not "" the message is somebody
// else's, and each line begins with their name.
func (n *network) say(c *conn, cmd *backends.Command, target, as string, reply func(backends.Result)) *request {
	msg := cmd.Body.(*backends.Message)
	lines := n.lines(c, msg, target, as)
	switch {
	case len(lines) == 0:
		reply(rejected("there is no text in the message"))
		return nil
	case len(lines) > n.cfg.MaxLines:
		reply(rejected(fmt.Sprintf("the message would be %d lines on IRC; %d are allowed", len(lines), n.cfg.MaxLines)))
		return nil
	}
	r := &request{lines: lines, target: target, echo: c.caps["echo-message"]}
	if r.echo {
		r.timeout = confirmTimeout
	}
	return r
}

// lines returns the messages that say msg. Each fits a line as others see it.
func (n *network) lines(c *conn, msg *backends.Message, target, as string) []*irc.Message {
	command, before, after := "PRIVMSG", "", ""
	if msg.Kind == backends.Notice {
		command = "NOTICE"
	}
	switch {
	case as != "" && msg.Kind == backends.Emote:
		before = "* " + as + " "
	case as != "":
		before = "<" + as + "> "
	case msg.Kind == backends.Emote:
		before, after = "\x01ACTION ", "\x01"
	}
	text := ircfmt.Renderer{Mention: n.mention}.Render(msg.Text)
	var lines []*irc.Message
	for _, piece := range ircfmt.Split(text, c.room(command, target)-len(before)-len(after)) {
		lines = append(lines, ircmsg.New(command, target, before+piece+after))
	}
	return lines
}

// madeUpID is the ID of line i of a command, where the network gives none. It is the
// same at each attempt.
func madeUpID(cmd *backends.Command, i int) backends.MessageID {
	sum := sha256.Sum256([]byte(cmd.ID))
	return backends.MessageID(fmt.Sprintf("sent-%s-%d", hex.EncodeToString(sum[:10]), i))
}

// delivered is the result of a command whose request had o.
func delivered(cmd *backends.Command, lines int, ids []backends.MessageID) backends.Result {
	r := backends.Result{Outcome: backends.Delivered}
	for i := range lines {
		id := madeUpID(cmd, i)
		if i < len(ids) && ids[i] != "" {
			id = ids[i]
		}
		r.IDs = append(r.IDs, id)
	}
	return r
}
