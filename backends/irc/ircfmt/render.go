package ircfmt

import (
	"strconv"
	"strings"

	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

// Renderer writes trees as text with formatting codes.
type Renderer struct {
	// Mention returns how a user is to be called in place of the name as written;
	// nil or "" keeps it. user is that of a [richtext.Mention].
	Mention func(user, written string) string
}

// Render writes d with the names of mentions as they are.
func Render(d richtext.Doc) string { return Renderer{}.Render(d) }

// Render returns d as lines joined by line feeds. Links are shown as
// "text (url)", quotes are marked with "> ", items with "• " or their number.
// Control characters in d's text are left out, so that nothing in it is a
// formatting code, a CTCP request or a line of its own.
func (r Renderer) Render(d richtext.Doc) string {
	w := writer{Renderer: r}
	w.nodes(d, style{}, 1)
	lines := make([]string, len(w.lines))
	for i, l := range w.lines {
		lines[i] = write(l)
	}
	return strings.Join(lines, "\n")
}

// writer collects lines of spans. The last one takes inline text if open.
type writer struct {
	Renderer
	lines [][]span
	open  bool
}

func (w *writer) text(s string, st style) {
	for i, line := range strings.Split(s, "\n") {
		if i > 0 {
			w.open = false
		}
		if !w.open {
			w.lines = append(w.lines, nil)
			w.open = true
		}
		last := &w.lines[len(w.lines)-1]
		*last = append(*last, span{st, clean(line)})
	}
}

// clean drops what is no text.
func clean(s string) string {
	if strings.IndexFunc(s, isControl) < 0 {
		return s
	}
	return strings.Map(func(r rune) rune {
		if isControl(r) {
			return -1
		}
		return r
	}, s)
}

// nodes writes a sequence. What nests too deeply is dropped.
func (w *writer) nodes(d []richtext.Node, st style, depth int) {
	if depth > richtext.MaxDepth {
		return
	}
	for i := range d {
		n := &d[i]
		if !n.Kind.Block() {
			w.inline(n, st, depth)
			continue
		}
		w.open = false
		w.block(n, st, depth)
		w.open = false
	}
}

// on returns s with what an inline kind switches on.
func (s style) on(n *richtext.Node) style {
	switch n.Kind {
	case richtext.Bold:
		s.bold = true
	case richtext.Italic:
		s.italic = true
	case richtext.Underline:
		s.underline = true
	case richtext.Strike:
		s.strike = true
	case richtext.Code:
		s.mono = true
	case richtext.Spoiler:
		s.fg, s.bg = palette[1], palette[1]
	case richtext.Color:
		if s.fg == "" || s.fg != s.bg { // nothing shows through a spoiler
			s.fg, s.bg = or(nearest(n.FG), s.fg), or(nearest(n.BG), s.bg)
		}
	}
	return s
}

// nearest returns the colour of the palette that looks most like colour, or "".
func nearest(colour string) string {
	if i, err := strconv.Atoi(number(colour)); err == nil && i < len(palette) {
		return palette[i]
	}
	return ""
}

func (w *writer) inline(n *richtext.Node, st style, depth int) {
	switch n.Kind {
	case richtext.Text, richtext.Code, richtext.Image:
		w.text(n.Text, st.on(n))
	case richtext.Break:
		w.text("\n", st)
	case richtext.Link:
		w.link(n, st, depth)
	case richtext.Mention:
		w.mention(n, st, depth)
	case richtext.Spoiler:
		if n.Text != "" {
			w.text("("+n.Text+") ", st)
		}
		w.nodes(n.Children, st.on(n), depth+1)
	default:
		w.nodes(n.Children, st.on(n), depth+1)
	}
}

// link writes the text of a link and its address, unless they are the same.
func (w *writer) link(n *richtext.Node, st style, depth int) {
	text := richtext.Doc(n.Children).Plain()
	if text == "" || text == n.URL || "mailto:"+text == n.URL {
		w.text(or(n.URL, text), st)
		return
	}
	w.nodes(n.Children, st, depth+1)
	if n.URL != "" {
		w.text(" ("+n.URL+")", st)
	}
}

func (w *writer) mention(n *richtext.Node, st style, depth int) {
	if w.Mention != nil {
		if name := w.Mention(n.User, richtext.Doc(n.Children).Plain()); name != "" {
			w.text(name, st)
			return
		}
	}
	w.nodes(n.Children, st, depth+1)
}

func (w *writer) block(n *richtext.Node, st style, depth int) {
	switch n.Kind {
	case richtext.CodeBlock:
		st.mono = true
		w.text(strings.TrimSuffix(n.Text, "\n"), st)
	case richtext.Rule:
		w.text("---", st)
	case richtext.Heading:
		st.bold = true
		w.nodes(n.Children, st, depth+1)
	case richtext.Quote:
		w.prefixed("> ", "> ", n.Children, st, depth)
	case richtext.List:
		w.list(n, st, depth)
	default:
		w.nodes(n.Children, st, depth+1)
	}
}

func (w *writer) list(n *richtext.Node, st style, depth int) {
	number := max(n.Start, 1)
	for i := range n.Children {
		mark := "• "
		if n.Ordered {
			mark = strconv.Itoa(number+i) + ". "
		}
		rest := strings.Repeat(" ", len([]rune(mark)))
		w.prefixed(mark, rest, n.Children[i].Children, st, depth+1)
	}
}

// prefixed writes children with first before the first line and rest before the others.
func (w *writer) prefixed(first, rest string, children []richtext.Node, st style, depth int) {
	sub := writer{Renderer: w.Renderer}
	sub.nodes(children, st, depth+1)
	if len(sub.lines) == 0 {
		sub.lines = [][]span{nil}
	}
	prefix := first
	for _, line := range sub.lines {
		w.lines = append(w.lines, append([]span{{style{}, prefix}}, line...))
		prefix = rest
	}
	w.open = false
}

// Split cuts a text with formatting codes into lines of at most limit bytes, at
// its line feeds and then as [ircmsg.Split] does, and switches the formatting on
// again where a line goes on. Lines without text are left out.
func Split(s string, limit int) []string {
	var lines []string
	for line := range strings.SplitSeq(s, "\n") {
		lines = appendSplit(lines, line, limit)
	}
	return lines
}

// minText is the least room that Split leaves for text after formatting codes.
const minText = 16

func appendSplit(lines []string, line string, limit int) []string {
	var st style
	for line != "" {
		codes := transition(style{}, st, line)
		if len(codes)+minText > limit {
			codes, st = "", style{}
		}
		head, tail := ircmsg.Cut(line, limit-len(codes))
		var spans []span
		if spans, st = scan(head, st); visible(spans) {
			lines = append(lines, codes+head)
		}
		line = tail
	}
	return lines
}

func visible(spans []span) bool {
	for _, sp := range spans {
		if strings.TrimSpace(sp.text) != "" {
			return true
		}
	}
	return false
}
