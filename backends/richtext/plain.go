package richtext

import (
	"iter"
	"strconv"
	"strings"
)

// All yields every node of d, parents before their children, with its depth: 1
// for the nodes of d itself.
func (d Doc) All() iter.Seq2[int, *Node] {
	return func(yield func(int, *Node) bool) { walk(d, 1, yield) }
}

func walk(d []Node, depth int, yield func(int, *Node) bool) bool {
	for i := range d {
		if !yield(depth, &d[i]) || !walk(d[i].Children, depth+1, yield) {
			return false
		}
	}
	return true
}

// Plain returns d as text without formatting: quotes marked with "> ", items
// with "• " or their number, links as "text (url)". Lines are separated by one
// line feed; there is none at the end.
func (d Doc) Plain() string {
	var w plainWriter
	w.nodes(d, 1)
	return strings.Join(w.lines, "\n")
}

// plainWriter collects lines. The last one is open for inline text if open.
type plainWriter struct {
	lines []string
	open  bool
}

func (w *plainWriter) text(s string) {
	for i, line := range strings.Split(s, "\n") {
		if i > 0 {
			w.open = false
		}
		if !w.open {
			w.lines = append(w.lines, "")
			w.open = true
		}
		w.lines[len(w.lines)-1] += line
	}
}

// nodes writes a sequence; beyond MaxDepth it drops what would follow, so that
// a hostile tree costs no stack.
func (w *plainWriter) nodes(d []Node, depth int) {
	if depth > MaxDepth {
		return
	}
	for i := range d {
		n := &d[i]
		if n.Kind.Block() {
			w.open = false
			w.block(n, depth)
			w.open = false
			continue
		}
		w.inline(n, depth)
	}
}

func (w *plainWriter) inline(n *Node, depth int) {
	switch n.Kind {
	case Text, Code, Image:
		w.text(n.Text)
	case Break:
		w.text("\n")
	case Spoiler:
		if n.Text != "" {
			w.text("(" + n.Text + ") ")
		}
		w.nodes(n.Children, depth+1)
	case Link:
		w.text(linkText(sub(n.Children, depth), n.URL))
	default:
		w.nodes(n.Children, depth+1)
	}
}

func linkText(text, url string) string {
	switch {
	case text == "" || text == url || "mailto:"+text == url:
		return url
	case url == "":
		return text
	}
	return text + " (" + url + ")"
}

func (w *plainWriter) block(n *Node, depth int) {
	switch n.Kind {
	case CodeBlock:
		w.text(strings.TrimSuffix(n.Text, "\n"))
	case Rule:
		w.text("---")
	case Quote:
		w.prefixed("> ", "> ", sub(n.Children, depth))
	case List:
		w.list(n, depth)
	default:
		w.nodes(n.Children, depth+1)
	}
}

func (w *plainWriter) list(n *Node, depth int) {
	number := n.Start
	if number == 0 {
		number = 1
	}
	for i := range n.Children {
		mark := "• "
		if n.Ordered {
			mark = strconv.Itoa(number+i) + ". "
		}
		rest := strings.Repeat(" ", len([]rune(mark)))
		w.prefixed(mark, rest, sub(n.Children[i].Children, depth+1))
	}
}

// prefixed writes the lines of s with first before the first and rest before the others.
func (w *plainWriter) prefixed(first, rest, s string) {
	for i, line := range strings.Split(s, "\n") {
		prefix := rest
		if i == 0 {
			prefix = first
		}
		w.lines = append(w.lines, strings.TrimRight(prefix+line, " "))
	}
}

// sub is the plain text of the children of a node at depth.
func sub(children []Node, depth int) string {
	var w plainWriter
	w.nodes(children, depth+1)
	return strings.Join(w.lines, "\n")
}

// Normalise returns d with adjacent text merged, empty text left out, and what
// nests deeper than MaxDepth replaced by its plain text. It does not change d.
func (d Doc) Normalise() Doc { return normalise(d, 1) }

func normalise(d []Node, depth int) []Node {
	var out []Node
	for _, n := range d {
		if len(n.Children) > 0 {
			n = normaliseChildren(n, depth)
		}
		if n.Kind == Text {
			if n.Text == "" {
				continue
			}
			if last := len(out) - 1; last >= 0 && out[last].Kind == Text {
				out[last].Text += n.Text
				continue
			}
		}
		out = append(out, n)
	}
	return out
}

func normaliseChildren(n Node, depth int) Node {
	if depth < MaxDepth {
		n.Children = normalise(n.Children, depth+1)
		return n
	}
	// At the last level a node with children becomes text: its content without
	// what its kind would add.
	var w plainWriter
	w.nodes(n.Children, 1)
	return Node{Kind: Text, Text: strings.Join(w.lines, "\n")}
}
