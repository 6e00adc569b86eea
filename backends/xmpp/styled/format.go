package styled

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/gjallar-im/gjallar/backends/richtext"
)

// marks are the directives of the spans that message styling has.
var marks = map[richtext.Kind]string{richtext.Bold: "*", richtext.Italic: "_", richtext.Strike: "~"}

// Format writes d as a body. What message styling lacks is written as plain text.
// Name gives the nick of a mentioned user, "" to leave the name as written; it
// may be nil. Unstyled says that the body looks styled but is not.
func Format(d richtext.Doc, name func(user string) string) (body string, unstyled bool) {
	f := formatter{name: name}
	body = f.blocks(d, 1)
	return body, !f.styled && looksStyled(body)
}

func looksStyled(body string) bool {
	for _, n := range Parse(body).All() {
		if n.Kind != richtext.Text && n.Kind != richtext.Break {
			return true
		}
	}
	return false
}

type formatter struct {
	name   func(string) string
	styled bool // a directive was written
}

// blocks writes a sequence of blocks and inline text, separated by line feeds.
func (f *formatter) blocks(d []richtext.Node, depth int) string {
	if depth > richtext.MaxDepth {
		return ""
	}
	var parts []string
	for len(d) > 0 {
		if d[0].Kind.Block() {
			parts = append(parts, f.block(&d[0], depth))
			d = d[1:]
			continue
		}
		n := 0
		for n < len(d) && !d[n].Kind.Block() {
			n++
		}
		parts = append(parts, f.inline(d[:n], depth, "", ""))
		d = d[n:]
	}
	return strings.Join(parts, "\n")
}

func (f *formatter) block(n *richtext.Node, depth int) string {
	switch n.Kind {
	case richtext.CodeBlock:
		f.styled = true
		return "```" + strings.ReplaceAll(n.Lang, "\n", "") + "\n" + strings.TrimSuffix(n.Text, "\n") + "\n```"
	case richtext.Quote:
		f.styled = true
		return prefix("> ", f.blocks(n.Children, depth+1))
	case richtext.Heading:
		return f.inline([]richtext.Node{{Kind: richtext.Bold, Children: n.Children}}, depth, "", "")
	case richtext.List, richtext.Rule:
		return f.list(n, depth)
	}
	return f.blocks(n.Children, depth+1)
}

// list writes items as plain text does, but with their styles.
func (f *formatter) list(n *richtext.Node, depth int) string {
	flat := *n
	flat.Children = nil
	for _, item := range n.Children {
		text := f.blocks(item.Children, depth+2)
		flat.Children = append(flat.Children, richtext.Node{Kind: richtext.Item, Children: richtext.Plain(text)})
	}
	return richtext.Doc{flat}.Plain()
}

func prefix(mark, s string) string {
	return mark + strings.ReplaceAll(s, "\n", "\n"+mark)
}

// inline writes nodes that follow before on their line; opened holds the
// directives that are open.
func (f *formatter) inline(d []richtext.Node, depth int, before, opened string) string {
	if depth > richtext.MaxDepth {
		return ""
	}
	var b strings.Builder
	for i := range d {
		if b.Len() > 0 {
			before = b.String()
		}
		b.WriteString(f.node(&d[i], depth, before, opened))
	}
	return b.String()
}

func (f *formatter) node(n *richtext.Node, depth int, before, opened string) string {
	switch n.Kind {
	case richtext.Text, richtext.Image:
		return n.Text
	case richtext.Break:
		return "\n"
	case richtext.Code:
		if mayOpen(before, opened) && !strings.ContainsAny(n.Text, "`\n") && strings.TrimSpace(n.Text) == n.Text && n.Text != "" {
			f.styled = true
			return "`" + n.Text + "`"
		}
		return n.Text
	case richtext.Mention:
		if f.name != nil {
			if nick := f.name(n.User); nick != "" {
				return nick
			}
		}
	case richtext.Link:
		return richtext.Doc{{Kind: richtext.Link, URL: n.URL, Children: richtext.Plain(f.inline(n.Children, depth+1, before, opened))}}.Plain()
	case richtext.Spoiler:
		if n.Text != "" {
			return "(" + n.Text + ") " + f.inline(n.Children, depth+1, ") ", opened)
		}
	}
	if mark := marks[n.Kind]; mark != "" && mayOpen(before, opened) && !strings.Contains(opened, mark) {
		if s, ok := f.span(n, mark, depth, opened); ok {
			return s
		}
	}
	return f.inline(n.Children, depth+1, before, opened)
}

// span puts directives around each line of a node; it fails where they would not
// be understood.
func (f *formatter) span(n *richtext.Node, mark string, depth int, opened string) (string, bool) {
	was := f.styled
	lines := strings.Split(f.inline(n.Children, depth+1, mark, opened+mark), "\n")
	for i, line := range lines {
		text := strings.TrimSpace(line)
		if text == "" {
			continue
		}
		if strings.Contains(text, mark) {
			f.styled = was
			return "", false
		}
		lead := line[:strings.Index(line, text)]
		lines[i] = lead + mark + text + mark + line[len(lead)+len(text):]
		f.styled = true
	}
	return strings.Join(lines, "\n"), true
}

// mayOpen reports whether a directive would be understood after before: at the
// start, after white space, or after another directive that has just been opened
// (XEP-0393 §6.2).
func mayOpen(before, opened string) bool {
	r, size := utf8.DecodeLastRuneInString(before)
	return size == 0 || unicode.IsSpace(r) || opened != "" && before == opened[len(opened)-1:]
}
