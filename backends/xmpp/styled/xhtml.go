package styled

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// elements are the kinds of XHTML elements; the content of others is kept
// without them.
var elements = map[string]richtext.Kind{
	"strong": richtext.Bold, "b": richtext.Bold, "em": richtext.Italic, "i": richtext.Italic, "cite": richtext.Italic,
	"u": richtext.Underline, "s": richtext.Strike, "del": richtext.Strike, "code": richtext.Code, "tt": richtext.Code,
	"br": richtext.Break, "a": richtext.Link, "img": richtext.Image, "p": richtext.Paragraph, "div": richtext.Paragraph,
	"h1": richtext.Heading, "h2": richtext.Heading, "h3": richtext.Heading, "h4": richtext.Heading, "h5": richtext.Heading, "h6": richtext.Heading,
	"blockquote": richtext.Quote, "pre": richtext.CodeBlock, "ul": richtext.List, "ol": richtext.List, "li": richtext.Item, "hr": richtext.Rule,
}

// styles are what the style attribute of XEP-0071 may ask for.
var styles = map[string]richtext.Kind{
	"font-weight:bold": richtext.Bold, "font-style:italic": richtext.Italic,
	"text-decoration:underline": richtext.Underline, "text-decoration:line-through": richtext.Strike,
}

var (
	spaces  = regexp.MustCompile(`[ \t\r\n]+`)
	linkURL = regexp.MustCompile(`(?i)^(https?|mailto|xmpp|matrix):[^\s]+$`)
	hexRGB  = regexp.MustCompile(`^#[0-9a-fA-F]{6}$`)
)

// XHTML reads the body of an XHTML-IM message.
func XHTML(body *xep.Element) richtext.Doc {
	return richtext.Doc(xhtmlNodes(body, false)).Normalise()
}

func xhtmlNodes(e *xep.Element, pre bool) []richtext.Node {
	var out []richtext.Node
	for _, n := range e.Nodes {
		switch {
		case n.Element != nil:
			out = append(out, xhtmlElement(n.Element, pre)...)
		case pre:
			out = append(out, richtext.Plain(n.Text)...)
		default:
			out = append(out, richtext.Node{Kind: richtext.Text, Text: spaces.ReplaceAllString(n.Text, " ")})
		}
	}
	return out
}

func xhtmlElement(e *xep.Element, pre bool) []richtext.Node {
	if e.Name.Space != xep.NSXHTML {
		return nil
	}
	kind, ok := elements[e.Name.Local]
	children := xhtmlNodes(e, pre || e.Name.Local == "pre")
	if !ok {
		return styledNodes(e.Attr("style"), children)
	}
	n := richtext.Node{Kind: kind}
	switch kind {
	case richtext.Break, richtext.Rule:
		return []richtext.Node{n}
	case richtext.Code, richtext.CodeBlock:
		n.Text = richtext.Doc(children).Plain()
		return []richtext.Node{n}
	case richtext.Image:
		n.Text = e.Attr("alt")
		return []richtext.Node{n}
	case richtext.Link:
		if n.URL = e.Attr("href"); !linkURL.MatchString(n.URL) {
			return children
		}
	case richtext.Heading:
		n.Level, _ = strconv.Atoi(e.Name.Local[1:])
	case richtext.List:
		n.Ordered = e.Name.Local == "ol"
		n.Children = items(children)
		return []richtext.Node{n}
	}
	n.Children = styledNodes(e.Attr("style"), children)
	return []richtext.Node{n}
}

// items keeps of a list what a list may have.
func items(children []richtext.Node) []richtext.Node {
	var out []richtext.Node
	for _, c := range children {
		if c.Kind == richtext.Item {
			out = append(out, c)
		}
	}
	return out
}

// styledNodes wraps nodes in what a style attribute asks for.
func styledNodes(style string, nodes []richtext.Node) []richtext.Node {
	if len(style) > 256 {
		return nodes
	}
	for rule := range strings.SplitSeq(style, ";") {
		rule = strings.ReplaceAll(strings.ToLower(rule), " ", "")
		if kind, ok := styles[rule]; ok {
			nodes = []richtext.Node{{Kind: kind, Children: nodes}}
		}
		if color, ok := strings.CutPrefix(rule, "color:"); ok && hexRGB.MatchString(color) {
			nodes = []richtext.Node{{Kind: richtext.Color, FG: color, Children: nodes}}
		}
	}
	return nodes
}
