package wire

import (
	"fmt"

	"github.com/gjallar-im/gjallar/backends/richtext"
)

// The numbers of Node.Kind are those of richtext.Kind; this does not compile if
// one of the two moves.
var _ = [1]struct{}{}[(int(Node_IMAGE)-int(richtext.Image))|(int(Node_RULE)-int(richtext.Rule))|
	(int(Node_LINK)-int(richtext.Link))|(int(Node_PARAGRAPH)-int(richtext.Paragraph))|(int(Node_LIST)-int(richtext.List))]

// packDoc packs a text tree, flattening what is deeper than richtext.MaxDepth.
func packDoc(d richtext.Doc) []*Node { return packNodes(d, 1) }

func packNodes(nodes []richtext.Node, depth int) []*Node {
	if len(nodes) == 0 {
		return nil
	}
	w := make([]*Node, len(nodes))
	for i := range nodes {
		n := &nodes[i]
		w[i] = &Node{
			Kind: Node_Kind(n.Kind), Text: text(n.Text), Url: text(n.URL), User: text(n.User), Fg: text(n.FG),
			Bg: text(n.BG), Lang: text(n.Lang), Level: int64(n.Level), Ordered: n.Ordered, Start: int64(n.Start),
		}
		if children := n.Children; depth < richtext.MaxDepth {
			w[i].Children = packNodes(children, depth+1)
		} else if len(children) > 0 {
			w[i] = &Node{Text: text(richtext.Doc(children).Plain())}
		}
	}
	return w
}

// unpackDoc returns an error for a tree that is too deep or has an unknown kind.
func unpackDoc(w []*Node) (richtext.Doc, error) {
	nodes, err := unpackNodes(w, 1)
	return richtext.Doc(nodes), err
}

func unpackNodes(w []*Node, depth int) ([]richtext.Node, error) {
	if len(w) == 0 {
		return nil, nil
	}
	if depth > richtext.MaxDepth {
		return nil, fmt.Errorf("text is nested deeper than %d", richtext.MaxDepth)
	}
	nodes := make([]richtext.Node, len(w))
	for i, n := range w {
		kind, err := unpackEnum[richtext.Kind]("kind of text", n.GetKind(), Node_Kind_name)
		if err != nil {
			return nil, err
		}
		children, err := unpackNodes(n.GetChildren(), depth+1)
		if err != nil {
			return nil, err
		}
		nodes[i] = richtext.Node{
			Kind: kind, Text: n.GetText(), URL: n.GetUrl(), User: n.GetUser(), FG: n.GetFg(), BG: n.GetBg(),
			Lang: n.GetLang(), Level: int(n.GetLevel()), Ordered: n.GetOrdered(), Start: int(n.GetStart()),
			Children: children,
		}
	}
	return nodes, nil
}
