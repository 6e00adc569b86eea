package html

import (
	"reflect"
	"strings"
	"testing"

	"github.com/gjallar-im/gjallar/backends/richtext"
)

var (
	parseOptions = ParseOptions{
		User: func(id string) string {
			if id == "@irc_bob:test" {
				return "bob"
			}
			return id
		},
		Media: func(mxc string) string { return "https://media.test/" + strings.TrimPrefix(mxc, "mxc://") },
	}
	renderOptions = RenderOptions{
		User: func(user string) string {
			if user == "bob" {
				return "@irc_bob:test"
			}
			if strings.HasPrefix(user, "@") {
				return user
			}
			return ""
		},
		Media: func(url string) string { return "mxc://" + strings.TrimPrefix(url, "https://media.test/") },
	}
)

// TestParse gives each tree as the HTML that it renders to.
func TestParse(t *testing.T) {
	tests := []struct{ name, in, out string }{
		{"plain text", "a &lt; b", "a &lt; b"},
		{"synonyms", "<b>a</b><i>b</i><ins>c</ins><s>d</s><strike>e</strike>", "<strong>a</strong><em>b</em><u>c</u><del>d</del><del>e</del>"},
		{"white space", " a \n\n b<br> c ", "a b<br>c"},
		{"a lone paragraph is inline", "<p>hello</p>", "hello"},
		{"paragraphs", "<p>a</p>\n<p>b</p>", "<p>a</p><p>b</p>"},
		{"unclosed elements", "<b>a<i>b", "<strong>a<em>b</em></strong>"},
		{"closed in the wrong order", "<b>a<i>b</b>c</i>", "<strong>a<em>b</em></strong>c"},
		{"formatting around blocks goes inside", "<b><p>a</p></b>", "<strong>a</strong>"},
		{"a block ends a paragraph", "<p>a<blockquote>b</blockquote>c", "<p>a</p><blockquote>b</blockquote>c"},
		{"lists", "<ul><li>a<li>b<ol start=3><li>c</ol></ul>", `<ul><li>a</li><li>b<ol start="3"><li>c</li></ol></li></ul>`},
		{"an item without a list", "<li>a</li>", "a"},
		{"text without an item", "<ul>a<li>b</li></ul>", "<ul><li>a</li><li>b</li></ul>"},
		{"headings", "<h1>a</h1><h6>b</h6>", "<h1>a</h1><h6>b</h6>"},
		{"code", "<code>a <b>b</b>\n c</code>", "<code>a b  c</code>"},
		{"a code block", "<pre><code class=\"language-go x\">a\n\tb\n</code></pre>", "<pre><code class=\"language-go\">a\n\tb\n</code></pre>"},
		{"a code block in a paragraph", "<p><b>a<pre>b</pre>c", "<p><strong>a</strong></p><pre><code>b\n</code></pre><strong>c</strong>"},
		{"a link", `<a href="https://a.test/?x=1&amp;y">x</a>`, `<a href="https://a.test/?x=1&amp;y">x</a>`},
		{"a script link", `<a href="javascript:alert(1)">x</a>`, `x`},
		{"a link with a line feed", "<a href=\"https://a.test/\nPRIVMSG\">x</a>", `x`},
		{"a pill", `<a href="https://matrix.to/#/@irc_bob:test">Bob</a>`, `<a href="https://matrix.to/#/@irc_bob:test">Bob</a>`},
		{"a pill as URI", `<a href="matrix:u/alice:test">Alice</a>`, `<a href="https://matrix.to/#/@alice:test">Alice</a>`},
		{"colours", `<font color="#FF0000">a</font><span data-mx-bg-color="#00ff00">b</span><span data-mx-color="red">c</span>`,
			`<span data-mx-color="#ff0000">a</span><span data-mx-bg-color="#00ff00">b</span>c`},
		{"a spoiler", `<span data-mx-spoiler="why">a</span>`, `<span data-mx-spoiler="why">a</span>`},
		{"a custom emoji", `<img data-mx-emoticon src="mxc://a/b" alt=":x:">`, `<img data-mx-emoticon height="32" src="mxc://a/b" alt=":x:" title=":x:">`},
		{"a foreign image", `<img src="https://evil.test/track.png" alt="x">`, `<img data-mx-emoticon height="32" src="mxc://" alt="x" title="x">`},
		{"a reply fallback", `<mx-reply><blockquote>old</blockquote></mx-reply>new`, "new"},
		{"scripts", "a<script>alert('<b>')</script><style>b{}</style>c", "ac"},
		{"event handlers", `<b onclick="x()">a</b>`, "<strong>a</strong>"},
		{"comments", "a<!-- <b> -->b", "ab"},
		{"unknown elements", "<marquee>a</marquee><svg><b>c</b></svg>", "a<strong>c</strong>"},
		{"a table", "<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "<p>a b</p><p>c</p>"},
		{"control characters", "a\x00\x07b\r\nc", "ab c"},
		{"a rule", "a<hr>b", "a<hr>b"},
		{"nothing", "<p> <b></b> </p>", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Render(Parse(tt.in, parseOptions), renderOptions); got != tt.out {
				t.Errorf("Parse(%q)\n got %s\nwant %s", tt.in, got, tt.out)
			}
		})
	}
}

func TestParseBoundsDepthAndSize(t *testing.T) {
	for _, in := range []string{
		strings.Repeat("<b>", 20000) + "x",
		strings.Repeat("<blockquote>", 5000) + "x",
		strings.Repeat("<ul><li>", 7000) + "x",
		strings.Repeat("<pre>", 7000),
		strings.Repeat("a<br>", 13000),
		strings.Repeat("<i><p>", 10000),
	} {
		nodes := 0
		for depth := range Parse(in, parseOptions).All() {
			if nodes++; depth > richtext.MaxDepth {
				t.Fatalf("%.20s… nests %d deep", in, depth)
			}
		}
		if nodes > maxNodes+10 {
			t.Errorf("%.20s… makes %d nodes", in, nodes)
		}
	}
}

func TestRenderRefusesWhatItWouldNotParse(t *testing.T) {
	d := richtext.Doc{
		{Kind: richtext.Link, URL: "javascript:x", Children: richtext.Plain("a")},
		{Kind: richtext.Color, FG: `"><script>`, Children: richtext.Plain("b")},
		{Kind: richtext.CodeBlock, Text: "<c>", Lang: `"><script>`},
		{Kind: richtext.Mention, User: "nobody", Children: richtext.Plain("d")},
		{Kind: richtext.Mention, User: richtext.RoomMention, Children: richtext.Plain("@room")},
	}
	want := "a<span>b</span><pre><code>&lt;c&gt;\n</code></pre>d@room"
	if got := Render(d, renderOptions); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// FuzzParse holds that what was printed once is printed the same again, and that
// nothing gets through that is not on the list.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"<p>a<b>b</p>c", "<ul>a<li><pre>b</ul>", "<blockquote><h1>x<hr>y", "<a href='matrix:u/a:b'>x<p>y</a>",
		"<span data-mx-spoiler data-mx-color='#123456'>x", "<code>x<br>y", "a <b> b</b> <br> c", "<i>\n</i><table><td>x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		d := Parse(in, parseOptions)
		for depth, n := range d.All() {
			if depth > richtext.MaxDepth {
				t.Fatalf("depth %d", depth)
			}
			if strings.ContainsAny(n.URL+n.User+n.Lang, "\r\n\x00") || strings.ContainsAny(n.Text, "\r\x00") {
				t.Fatalf("control characters in %+v", n)
			}
		}
		out := Render(d, renderOptions)
		again := Parse(out, parseOptions)
		if out2 := Render(again, renderOptions); len(out) < maxInput && out2 != out {
			t.Fatalf("%q\n1st %s\n2nd %s\n%s", in, out, out2, diff(d, again))
		}
	})
}

func diff(a, b richtext.Doc) string {
	if reflect.DeepEqual(a, b) {
		return "the trees are equal"
	}
	return "the trees differ"
}

func BenchmarkParse(b *testing.B) {
	in := "<p>Hello <strong>world</strong>, see <a href=\"https://a.test/\">this</a> and <a href=\"https://matrix.to/#/@irc_bob:test\">Bob</a></p><ul><li>one</li><li>two</li></ul>"
	b.ReportAllocs()
	for b.Loop() {
		Parse(in, parseOptions)
	}
}

func BenchmarkRender(b *testing.B) {
	d := Parse("<p>Hello <strong>world</strong>, see <a href=\"https://a.test/\">this</a></p><ul><li>one</li><li>two</li></ul>", parseOptions)
	b.ReportAllocs()
	for b.Loop() {
		Render(d, renderOptions)
	}
}
