package html

import (
	"net/url"
	"strconv"
	"strings"

	"github.com/gjallar-im/gjallar/backends/richtext"
)

// RenderOptions name what a tree refers to.
type RenderOptions struct {
	// User turns the User of a Mention into a user ID, "" if there is none.
	User func(user string) string
	// Media turns the URL of a custom emoji into an mxc:// URI, "" if it has none.
	Media func(url string) string
}

// Render writes d as a formatted_body.
func Render(d richtext.Doc, o RenderOptions) string {
	r := &renderer{opts: o}
	r.nodes(d, 1)
	return r.b.String()
}

// Formatted reports whether d says more than its plain text does.
func Formatted(d richtext.Doc) bool {
	for _, n := range d.All() {
		switch n.Kind {
		case richtext.Text, richtext.Break, richtext.Paragraph:
		default:
			return true
		}
	}
	return false
}

type renderer struct {
	opts RenderOptions
	b    strings.Builder
}

// simple elements have no attributes.
var simple = map[richtext.Kind]string{
	richtext.Bold: "strong", richtext.Italic: "em", richtext.Underline: "u", richtext.Strike: "del",
	richtext.Paragraph: "p", richtext.Quote: "blockquote", richtext.Item: "li",
}

func (r *renderer) nodes(nodes []richtext.Node, depth int) {
	if depth > richtext.MaxDepth {
		return
	}
	for i := range nodes {
		r.node(&nodes[i], depth)
	}
}

func (r *renderer) node(n *richtext.Node, depth int) {
	if tag, ok := simple[n.Kind]; ok {
		r.element(tag, "", n, depth)
		return
	}
	switch n.Kind {
	case richtext.Text:
		r.text(n.Text)
	case richtext.Break:
		r.b.WriteString("<br>")
	case richtext.Rule:
		r.b.WriteString("<hr>")
	case richtext.Code:
		r.b.WriteString("<code>" + escape(n.Text) + "</code>")
	case richtext.CodeBlock:
		r.codeBlock(n)
	case richtext.Heading:
		r.element("h"+strconv.Itoa(min(max(n.Level, 1), 6)), "", n, depth)
	case richtext.List:
		r.list(n, depth)
	case richtext.Spoiler:
		r.element("span", ` data-mx-spoiler="`+escape(n.Text)+`"`, n, depth)
	case richtext.Color:
		r.color(n, depth)
	case richtext.Link:
		r.link(n, depth)
	case richtext.Mention:
		r.mention(n, depth)
	case richtext.Image:
		r.image(n)
	default:
		r.nodes(n.Children, depth+1)
	}
}

// text writes text, its line feeds as breaks.
func (r *renderer) text(s string) {
	r.b.WriteString(strings.ReplaceAll(escape(s), "\n", "<br>"))
}

func (r *renderer) element(tag, attributes string, n *richtext.Node, depth int) {
	r.b.WriteString("<" + tag + attributes + ">")
	r.nodes(n.Children, depth+1)
	r.b.WriteString("</" + tag + ">")
}

func (r *renderer) codeBlock(n *richtext.Node) {
	r.b.WriteString("<pre><code")
	if languageName.MatchString(n.Lang) {
		r.b.WriteString(` class="language-` + escape(n.Lang) + `"`)
	}
	r.b.WriteString(">" + escape(n.Text) + "\n</code></pre>")
}

func (r *renderer) list(n *richtext.Node, depth int) {
	switch {
	case !n.Ordered:
		r.element("ul", "", n, depth)
	case n.Start > 1:
		r.element("ol", ` start="`+strconv.Itoa(n.Start)+`"`, n, depth)
	default:
		r.element("ol", "", n, depth)
	}
}

func (r *renderer) color(n *richtext.Node, depth int) {
	attributes := ""
	if fg := color(n.FG); fg != "" {
		attributes += ` data-mx-color="` + fg + `"`
	}
	if bg := color(n.BG); bg != "" {
		attributes += ` data-mx-bg-color="` + bg + `"`
	}
	r.element("span", attributes, n, depth)
}

func (r *renderer) link(n *richtext.Node, depth int) {
	link, ok := safeURL(n.URL)
	if !ok {
		r.nodes(n.Children, depth+1)
		return
	}
	r.b.WriteString(`<a href="` + escape(link) + `">`)
	if len(n.Children) == 0 {
		r.text(link)
	}
	r.nodes(n.Children, depth+1)
	r.b.WriteString("</a>")
}

func (r *renderer) mention(n *richtext.Node, depth int) {
	id := ""
	if n.User != richtext.RoomMention && r.opts.User != nil {
		id = r.opts.User(n.User)
	}
	if id == "" {
		r.nodes(n.Children, depth+1)
		return
	}
	r.b.WriteString(`<a href="` + escape(UserLink(id)) + `">`)
	r.nodes(n.Children, depth+1)
	r.b.WriteString("</a>")
}

// UserLink is the matrix.to link of a user ID.
func UserLink(id string) string { return "https://matrix.to/#/" + url.PathEscape(id) }

func (r *renderer) image(n *richtext.Node) {
	mxc := ""
	if r.opts.Media != nil {
		mxc = r.opts.Media(n.URL)
	}
	if mxc == "" {
		r.text(n.Text)
		return
	}
	r.b.WriteString(`<img data-mx-emoticon height="32" src="` + escape(mxc) + `" alt="` + escape(n.Text) + `" title="` + escape(n.Text) + `">`)
}

var escaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#39;", "\x00", "", "\r", "")

func escape(s string) string { return escaper.Replace(s) }
