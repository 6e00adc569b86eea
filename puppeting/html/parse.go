// Package html converts between the HTML of Matrix messages and richtext.
//
// [Parse] is the one sanitiser of what Matrix clients send: it reads tokens, not a
// document tree, so its cost is linear, and what it does not know it flattens to
// its text. [Render] writes only what the specification suggests clients to show.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#mroommessage-msgtypes
package html

import (
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/html"

	"github.com/gjallar-im/gjallar/backends/richtext"
)

// Bounds of what Parse takes. An event is at most 65,536 bytes.
const (
	maxInput = 1 << 16
	maxNodes = 4096
)

// ParseOptions name what HTML refers to.
type ParseOptions struct {
	// User turns the user ID of a pill into the User of a Mention.
	User func(userID string) string
	// Media turns an mxc:// URI into a URL that others can fetch, "" if it cannot.
	Media func(mxc string) string
}

// Parse reads a formatted_body. A fallback for replies (mx-reply) is left out.
func Parse(src string, o ParseOptions) richtext.Doc {
	if len(src) > maxInput {
		src = strings.ToValidUTF8(src[:maxInput], "")
	}
	p := &parser{opts: o, tok: html.NewTokenizer(strings.NewReader(src))}
	p.tok.SetMaxBuf(maxInput)
	p.stack = []frame{{}}
	for p.step() {
	}
	for len(p.stack) > 1 {
		p.pop()
	}
	return finish(p.stack[0].children)
}

// finish tidies the outermost level: a lone paragraph is its content.
func finish(children []richtext.Node) richtext.Doc {
	d := richtext.Doc(trim(children)).Normalise()
	if len(d) == 1 && d[0].Kind == richtext.Paragraph {
		return d[0].Children
	}
	return d
}

// frame is an open element. The outermost has no tag.
type frame struct {
	tag      string
	wrap     []richtext.Node // what the element becomes, outermost first; none: its content
	children []richtext.Node
}

// kind of the innermost node of the frame; Quote, which holds anything, for the outermost.
func (f *frame) kind() richtext.Kind {
	if f.tag == "" {
		return richtext.Quote
	}
	if len(f.wrap) == 0 {
		return richtext.Text
	}
	return f.wrap[len(f.wrap)-1].Kind
}

func (f *frame) block() bool { return f.tag == "" || f.kind().Block() }

type parser struct {
	opts  ParseOptions
	tok   *html.Tokenizer
	stack []frame
	nodes int
	skip  []string         // open elements whose content is dropped
	raw   *strings.Builder // text of the open code element
	rawIn string           // its tag
	lang  string
}

// skipped elements disappear with their content.
var skipped = map[string]bool{
	"mx-reply": true, "script": true, "style": true, "title": true, "head": true, "iframe": true,
	"noscript": true, "template": true, "textarea": true, "xmp": true, "noembed": true, "noframes": true, "select": true,
}

func (p *parser) step() bool {
	switch p.tok.Next() {
	case html.ErrorToken:
		p.endRaw()
		return false
	case html.TextToken:
		p.text(string(p.tok.Text()))
	case html.StartTagToken, html.SelfClosingTagToken:
		p.start(p.tok.Token())
	case html.EndTagToken:
		name, _ := p.tok.TagName()
		p.end(string(name))
	}
	return p.nodes < maxNodes
}

func (p *parser) start(t html.Token) {
	switch {
	case skipped[t.Data]:
		if t.Type == html.StartTagToken {
			p.skip = append(p.skip, t.Data)
		}
	case len(p.skip) > 0:
	case p.raw != nil:
		p.startInRaw(t)
	default:
		if f, ok := elements[t.Data]; ok {
			f(p, attributes(t))
		}
	}
}

// startInRaw handles tags within code, which cannot be formatted.
func (p *parser) startInRaw(t html.Token) {
	switch {
	case t.Data == "br":
		p.raw.WriteByte('\n')
	case t.Data == "code" && p.rawIn == "pre":
		p.lang = language(attributes(t)["class"])
	}
}

func (p *parser) end(tag string) {
	if n := len(p.skip); n > 0 {
		if p.skip[n-1] == tag {
			p.skip = p.skip[:n-1]
		}
		return
	}
	if p.raw != nil {
		if tag == p.rawIn {
			p.endRaw()
		}
		return
	}
	tag = canonical(tag)
	for i := len(p.stack) - 1; i > 0; i-- {
		if p.stack[i].tag == tag {
			p.popTo(i)
			return
		}
	}
}

// canonical names elements that close each other alike.
func canonical(tag string) string {
	switch tag {
	case "div", "table", "tr", "summary", "details", "dt", "dd":
		return "p"
	}
	return tag
}

func (p *parser) popTo(depth int) {
	for len(p.stack) > depth {
		p.pop()
	}
}

// pop closes the innermost element and gives its node to the parent.
func (p *parser) pop() {
	f := p.stack[len(p.stack)-1]
	p.stack = p.stack[:len(p.stack)-1]
	children := f.children
	if f.block() {
		children = trim(children)
	}
	if len(children) == 0 {
		return
	}
	if f.kind() == richtext.List && slices.ContainsFunc(children, notItem) {
		f.wrap = nil // too deep for items
	}
	for i := len(f.wrap) - 1; i >= 0; i-- {
		n := f.wrap[i]
		n.Children = children
		children = []richtext.Node{n}
	}
	p.add(children...)
}

func notItem(n richtext.Node) bool { return n.Kind != richtext.Item }

func (p *parser) add(nodes ...richtext.Node) {
	p.nodes += len(nodes)
	top := &p.stack[len(p.stack)-1]
	top.children = append(top.children, nodes...)
}

// depth is how deep a node added now would stand.
func (p *parser) depth() int {
	d := 1
	for i := range p.stack {
		d += len(p.stack[i].wrap)
	}
	return d
}

// open starts an element; beyond the depth limit its content goes to the parent.
func (p *parser) open(tag string, wrap ...richtext.Node) {
	if p.depth()+len(wrap) >= richtext.MaxDepth {
		wrap = nil
	}
	if len(p.stack) < 4*richtext.MaxDepth {
		p.stack = append(p.stack, frame{tag: tag, wrap: wrap})
	}
}

// openBlock closes what cannot hold a block and opens it there; open inline
// formatting goes on inside it.
func (p *parser) openBlock(tag string, node richtext.Node) {
	inline := p.closeFor(node.Kind)
	p.open(tag, node)
	if node.Kind != richtext.List {
		p.reopen(inline)
	}
}

// addBlock is openBlock for a block without children.
func (p *parser) addBlock(node richtext.Node) {
	inline := p.closeFor(node.Kind)
	p.add(node)
	p.reopen(inline)
}

// closeFor closes elements until a node of the kind may be added, and returns the
// inline ones among them.
func (p *parser) closeFor(kind richtext.Kind) []frame {
	holder := len(p.stack) - 1
	for holder > 0 && !holds(p.stack[holder].kind(), kind) {
		holder--
	}
	inline := inlineFrames(p.stack[holder+1:])
	p.popTo(holder + 1)
	return inline
}

func (p *parser) reopen(frames []frame) {
	for _, f := range frames {
		p.open(f.tag, f.wrap...)
	}
}

func inlineFrames(frames []frame) []frame {
	var out []frame
	for _, f := range frames {
		if !f.block() && f.kind() != richtext.Link && f.kind() != richtext.Mention {
			out = append(out, frame{tag: f.tag, wrap: f.wrap})
		}
	}
	return out
}

// holds reports whether a node of one kind may have a child of another.
func holds(parent, child richtext.Kind) bool {
	switch parent {
	case richtext.Quote, richtext.Item:
		return child != richtext.Item
	case richtext.List:
		return child == richtext.Item
	}
	return false
}

func (p *parser) text(s string) {
	switch {
	case len(p.skip) > 0:
		return
	case p.raw != nil:
		p.raw.WriteString(s)
		return
	}
	s = collapse(s)
	top := &p.stack[len(p.stack)-1]
	if top.kind() == richtext.List {
		if s == " " || s == "" {
			return
		}
		p.open("li", richtext.Node{Kind: richtext.Item})
	}
	if strings.HasPrefix(s, " ") && p.afterSpace() {
		s = s[1:]
	}
	if s != "" {
		p.add(richtext.Node{Kind: richtext.Text, Text: s})
	}
}

// afterSpace reports whether a space added now would follow one, or begin a line.
func (p *parser) afterSpace() bool {
	for i := len(p.stack) - 1; i >= 0; i-- {
		f := &p.stack[i]
		if n := len(f.children); n > 0 {
			return endsInSpace(f.children[n-1])
		}
		if f.block() {
			return true
		}
	}
	return true
}

func endsInSpace(n richtext.Node) bool {
	for len(n.Children) > 0 && !n.Kind.Block() {
		n = n.Children[len(n.Children)-1]
	}
	return n.Kind == richtext.Break || n.Kind.Block() || n.Kind == richtext.Text && strings.HasSuffix(n.Text, " ")
}

// collapse makes every run of white space one space, as HTML does, and drops
// other control characters.
func collapse(s string) string {
	var b strings.Builder
	space := false
	for _, r := range s {
		switch {
		case r == ' ' || r == '\n' || r == '\t' || r == '\r' || r == '\f':
			if !space {
				b.WriteByte(' ')
			}
			space = true
			continue
		case r < ' ' || r == 0x7f || r == '\uFFFD':
			continue
		}
		space = false
		b.WriteRune(r)
	}
	return b.String()
}

// trim removes spaces and breaks at both ends of a block.
func trim(nodes []richtext.Node) []richtext.Node {
	for len(nodes) > 0 && blank(nodes[len(nodes)-1], true) {
		nodes = nodes[:len(nodes)-1]
	}
	for len(nodes) > 0 && blank(nodes[0], true) {
		nodes = nodes[1:]
	}
	if n := len(nodes); n > 0 && nodes[n-1].Kind == richtext.Text {
		nodes[n-1].Text = strings.TrimRight(nodes[n-1].Text, " ")
	}
	return nodes
}

func blank(n richtext.Node, breaks bool) bool {
	return n.Kind == richtext.Text && strings.Trim(n.Text, " ") == "" || breaks && n.Kind == richtext.Break
}

func (p *parser) beginRaw(tag string) {
	p.raw, p.rawIn, p.lang = &strings.Builder{}, tag, ""
}

// endRaw makes a node of the code read since beginRaw.
func (p *parser) endRaw() {
	if p.raw == nil {
		return
	}
	text := clean(p.raw.String())
	p.raw = nil
	if p.rawIn == "pre" {
		if text = strings.TrimSuffix(strings.TrimPrefix(text, "\n"), "\n"); text != "" {
			p.addBlock(richtext.Node{Kind: richtext.CodeBlock, Text: text, Lang: p.lang})
		}
		return
	}
	if text = strings.ReplaceAll(text, "\n", " "); text != "" {
		p.add(richtext.Node{Kind: richtext.Code, Text: text})
	}
}

// clean removes control characters from code, but for line feeds and tabs.
func clean(s string) string {
	s = strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n")
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r == '\uFFFD' {
			return -1
		}
		return r
	}, s)
}

func attributes(t html.Token) map[string]string {
	m := make(map[string]string, len(t.Attr))
	for _, a := range t.Attr {
		if _, dup := m[a.Key]; !dup {
			m[a.Key] = a.Val
		}
	}
	return m
}

type attrs = map[string]string

// elements says what each element we know becomes.
var elements map[string]func(*parser, attrs)

func init() {
	elements = map[string]func(*parser, attrs){
		"br":         func(p *parser, _ attrs) { p.inline(richtext.Node{Kind: richtext.Break}) },
		"hr":         func(p *parser, _ attrs) { p.addBlock(richtext.Node{Kind: richtext.Rule}) },
		"img":        (*parser).image,
		"a":          (*parser).anchor,
		"span":       func(p *parser, a attrs) { p.open("span", spanOf(a)...) },
		"font":       func(p *parser, a attrs) { p.open("font", spanOf(a)...) },
		"code":       func(p *parser, _ attrs) { p.beginRaw("code") },
		"pre":        func(p *parser, _ attrs) { p.beginRaw("pre") },
		"blockquote": func(p *parser, _ attrs) { p.openBlock("blockquote", richtext.Node{Kind: richtext.Quote}) },
		"ul":         func(p *parser, _ attrs) { p.openBlock("ul", richtext.Node{Kind: richtext.List}) },
		"ol":         (*parser).ordered,
		"li":         (*parser).item,
		"td":         func(p *parser, _ attrs) { p.text(" ") },
		"th":         func(p *parser, _ attrs) { p.text(" ") },
	}
	for _, tag := range []string{"p", "div", "table", "tr", "summary", "details", "dt", "dd"} {
		elements[tag] = func(p *parser, _ attrs) { p.openBlock("p", richtext.Node{Kind: richtext.Paragraph}) }
	}
	for level := 1; level <= 6; level++ {
		tag := "h" + strconv.Itoa(level)
		elements[tag] = func(p *parser, _ attrs) {
			p.openBlock(tag, richtext.Node{Kind: richtext.Heading, Level: level})
		}
	}
	for tag, kind := range map[string]richtext.Kind{
		"b": richtext.Bold, "strong": richtext.Bold, "i": richtext.Italic, "em": richtext.Italic, "u": richtext.Underline,
		"ins": richtext.Underline, "del": richtext.Strike, "s": richtext.Strike, "strike": richtext.Strike,
	} {
		elements[tag] = func(p *parser, _ attrs) { p.open(tag, richtext.Node{Kind: kind}) }
	}
}

// inline adds a node that may not stand directly in a list.
func (p *parser) inline(n richtext.Node) {
	if p.stack[len(p.stack)-1].kind() == richtext.List {
		return
	}
	p.add(n)
}

func (p *parser) ordered(a attrs) {
	n := richtext.Node{Kind: richtext.List, Ordered: true}
	if start, err := strconv.Atoi(a["start"]); err == nil && start > 1 && start < 1e6 {
		n.Start = start
	}
	p.openBlock("ol", n)
}

// item opens a list item; outside of a list it is a paragraph.
func (p *parser) item(attrs) {
	for i := len(p.stack) - 1; i > 0; i-- {
		if k := p.stack[i].kind(); k == richtext.List {
			p.openBlock("li", richtext.Node{Kind: richtext.Item})
			return
		} else if k == richtext.Quote {
			break
		}
	}
	p.openBlock("li", richtext.Node{Kind: richtext.Paragraph})
}

func (p *parser) image(a attrs) {
	text := collapse(firstOf(a["alt"], a["title"]))
	var link string
	if p.opts.Media != nil && strings.HasPrefix(a["src"], "mxc://") {
		link = p.opts.Media(a["src"])
	}
	if text != "" || link != "" {
		p.inline(richtext.Node{Kind: richtext.Image, Text: text, URL: link})
	}
}

func (p *parser) anchor(a attrs) {
	if user, ok := UserOfLink(a["href"]); ok && p.opts.User != nil {
		p.open("a", richtext.Node{Kind: richtext.Mention, User: p.opts.User(user)})
		return
	}
	if link, ok := safeURL(a["href"]); ok {
		p.open("a", richtext.Node{Kind: richtext.Link, URL: link})
		return
	}
	p.open("a")
}

// spanOf reads the attributes of span and font.
func spanOf(a attrs) []richtext.Node {
	var wrap []richtext.Node
	if reason, ok := a["data-mx-spoiler"]; ok {
		wrap = append(wrap, richtext.Node{Kind: richtext.Spoiler, Text: strings.TrimSpace(collapse(reason))})
	}
	fg, bg := color(firstOf(a["data-mx-color"], a["color"])), color(a["data-mx-bg-color"])
	if fg != "" || bg != "" {
		wrap = append(wrap, richtext.Node{Kind: richtext.Color, FG: fg, BG: bg})
	}
	return wrap
}

var hexColor = regexp.MustCompile(`^#[0-9a-fA-F]{6}$`)

func color(s string) string {
	if hexColor.MatchString(s) {
		return strings.ToLower(s)
	}
	return ""
}

func language(class string) string {
	for c := range strings.FieldsSeq(class) {
		if lang, ok := strings.CutPrefix(c, "language-"); ok && languageName.MatchString(lang) {
			return lang
		}
	}
	return ""
}

var languageName = regexp.MustCompile(`^[A-Za-z0-9_+#.-]{1,32}$`)

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// schemes of links that are let through.
var schemes = map[string]bool{
	"http": true, "https": true, "ftp": true, "mailto": true, "magnet": true,
	"matrix": true, "xmpp": true, "irc": true, "ircs": true, "tel": true, "geo": true,
}

// safeURL checks a link and returns it without characters that could end it early
// elsewhere.
func safeURL(s string) (string, bool) {
	s = strings.TrimSpace(s)
	if len(s) > 4096 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\uFFFD' || strings.ContainsRune("\"<>`", r) }) {
		return "", false
	}
	u, err := url.Parse(s)
	if err != nil || !schemes[strings.ToLower(u.Scheme)] {
		return "", false
	}
	return s, true
}

// UserOfLink returns the user ID that a matrix.to or matrix: link names.
//
// Spec: https://spec.matrix.org/v1.19/appendices/#uris
func UserOfLink(link string) (string, bool) {
	id := ""
	switch {
	case strings.HasPrefix(link, "https://matrix.to/#/"):
		id = strings.TrimPrefix(link, "https://matrix.to/#/")
	case strings.HasPrefix(link, "matrix:u/"):
		id = "@" + strings.TrimPrefix(link, "matrix:u/")
	default:
		return "", false
	}
	id, _, _ = strings.Cut(id, "?")
	id, err := url.PathUnescape(id)
	if err != nil || len(id) > 255 || !strings.HasPrefix(id, "@") || !strings.Contains(id, ":") || collapse(id) != id {
		return "", false
	}
	return id, true
}
