package ircfmt

import (
	"strings"

	"github.com/gjallar-im/gjallar/backends/richtext"
)

// Parse reads text with formatting codes. Text in its own background colour
// becomes a spoiler, reversed text is coloured; control characters are dropped.
// Nothing is read into the words themselves: "> " and addresses stay text.
func Parse(s string) richtext.Doc {
	if strings.IndexFunc(s, isControl) < 0 {
		return richtext.Plain(s)
	}
	var doc richtext.Doc
	for i, line := range strings.Split(s, "\n") {
		if i > 0 {
			doc = append(doc, richtext.Node{Kind: richtext.Break})
		}
		spans, _ := scan(line, style{})
		doc = append(doc, nest(spans, 0)...)
	}
	return doc
}

// mark is something that a style has or has not; equal marks of neighbouring
// spans become one node.
type mark struct {
	node func(style) (richtext.Node, bool)
}

// marks from the outermost to the innermost.
var marks = []mark{
	{colourNode},
	{flag(richtext.Bold, func(s style) bool { return s.bold })},
	{flag(richtext.Italic, func(s style) bool { return s.italic })},
	{flag(richtext.Underline, func(s style) bool { return s.underline })},
	{flag(richtext.Strike, func(s style) bool { return s.strike })},
}

func flag(kind richtext.Kind, on func(style) bool) func(style) (richtext.Node, bool) {
	return func(s style) (richtext.Node, bool) { return richtext.Node{Kind: kind}, on(s) }
}

func colourNode(s style) (richtext.Node, bool) {
	if s.reverse {
		s.fg, s.bg = or(s.bg, "#ffffff"), or(s.fg, "#000000")
	}
	switch {
	case s.fg == "" && s.bg == "":
		return richtext.Node{}, false
	case s.fg == s.bg:
		return richtext.Node{Kind: richtext.Spoiler}, true
	}
	return richtext.Node{Kind: richtext.Color, FG: s.fg, BG: s.bg}, true
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// nest turns spans into nodes, with marks[level] the outermost.
func nest(spans []span, level int) []richtext.Node {
	if level == len(marks) {
		return leaves(spans)
	}
	var nodes []richtext.Node
	for len(spans) > 0 {
		node, on := marks[level].node(spans[0].style)
		n := 1
		for n < len(spans) && sameMark(marks[level], spans[n].style, node, on) {
			n++
		}
		children := nest(spans[:n], level+1)
		if on {
			node.Children = children
			nodes = append(nodes, node)
		} else {
			nodes = append(nodes, children...)
		}
		spans = spans[n:]
	}
	return nodes
}

func sameMark(m mark, s style, node richtext.Node, on bool) bool {
	other, otherOn := m.node(s)
	return on == otherOn && node.Kind == other.Kind && node.FG == other.FG && node.BG == other.BG
}

// leaves turns spans that differ in nothing but being monospaced into nodes.
func leaves(spans []span) []richtext.Node {
	var nodes []richtext.Node
	for _, sp := range spans {
		kind := richtext.Text
		if sp.style.mono {
			kind = richtext.Code
		}
		if last := len(nodes) - 1; last >= 0 && nodes[last].Kind == kind {
			nodes[last].Text += sp.text
			continue
		}
		nodes = append(nodes, richtext.Node{Kind: kind, Text: sp.text})
	}
	return nodes
}
