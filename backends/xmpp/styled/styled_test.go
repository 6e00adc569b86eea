package styled

import (
	"reflect"
	"strings"
	"testing"

	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

func tx(s string) richtext.Node { return richtext.Node{Kind: richtext.Text, Text: s} }
func n(k richtext.Kind, children ...richtext.Node) richtext.Node {
	return richtext.Node{Kind: k, Children: children}
}

var br = n(richtext.Break)

func code(s string) richtext.Node  { return richtext.Node{Kind: richtext.Code, Text: s} }
func block(s string) richtext.Node { return richtext.Node{Kind: richtext.CodeBlock, Text: s} }

func TestBothWays(t *testing.T) {
	tests := []struct {
		name string
		body string
		doc  richtext.Doc
	}{
		{"text", "hi", richtext.Doc{tx("hi")}},
		{"lines", "a\nb", richtext.Doc{tx("a"), br, tx("b")}},
		{"spans", "a *b* _c_ ~d~ `e`", richtext.Doc{tx("a "), n(richtext.Bold, tx("b")), tx(" "), n(richtext.Italic, tx("c")), tx(" "), n(richtext.Strike, tx("d")), tx(" "), code("e")}},
		{"spans in spans", "*_a_ b*", richtext.Doc{n(richtext.Bold, n(richtext.Italic, tx("a")), tx(" b"))}},
		{"a quote", "> a\n> *b*\nc", richtext.Doc{n(richtext.Quote, tx("a"), br, n(richtext.Bold, tx("b"))), tx("c")}},
		{"a code block", "x\n```\na *b*\n\nc\n```\ny", richtext.Doc{tx("x"), block("a *b*\n\nc"), tx("y")}},
		{"code in a quote", "> ```\n> a\n> ```", richtext.Doc{n(richtext.Quote, block("a"))}},
		{"its language", "```go\nx\n```", richtext.Doc{{Kind: richtext.CodeBlock, Text: "x", Lang: "go"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Parse(tt.body); !reflect.DeepEqual(got, tt.doc) {
				t.Errorf("Parse: got %+v", got)
			}
			if got, unstyled := Format(tt.doc, nil); got != tt.body || unstyled {
				t.Errorf("Format: got %q, %v", got, unstyled)
			}
		})
	}
}

func TestFormat(t *testing.T) {
	tests := []struct {
		name string
		doc  richtext.Doc
		want string
	}{
		{"directives move inside white space", richtext.Doc{n(richtext.Bold, tx(" a ")), tx("b")}, " *a* b"},
		{"each line has its own", richtext.Doc{n(richtext.Bold, tx("a"), br, tx("b"))}, "*a*\n*b*"},
		{"within a word there are none", richtext.Doc{tx("a"), n(richtext.Bold, tx("b"))}, "ab"},
		{"nor around their own kind", richtext.Doc{n(richtext.Bold, tx("a*b"))}, "a*b"},
		{"code with a backtick is plain", richtext.Doc{code("a`b")}, "a`b"},
		{"bold in bold is bold", richtext.Doc{n(richtext.Bold, n(richtext.Bold, tx("a")))}, "*a*"},
		{"a heading is bold", richtext.Doc{{Kind: richtext.Heading, Level: 1, Children: []richtext.Node{tx("a")}}, tx("b")}, "*a*\nb"},
		{"paragraphs are lines", richtext.Doc{n(richtext.Paragraph, tx("a")), n(richtext.Paragraph, n(richtext.Bold, tx("b")))}, "a\n*b*"},
		{"items keep their styles", richtext.Doc{n(richtext.List, n(richtext.Item, n(richtext.Bold, tx("a"))), n(richtext.Item, tx("b")))}, "• *a*\n• b"},
		{"a link shows its address", richtext.Doc{{Kind: richtext.Link, URL: "https://x.test/", Children: []richtext.Node{tx("x")}}}, "x (https://x.test/)"},
		{"a mention is the nick", richtext.Doc{{Kind: richtext.Mention, User: "bob@a", Children: []richtext.Node{tx("Robert")}}, tx(" hi")}, "bob hi"},
		{"an unknown one is as written", richtext.Doc{{Kind: richtext.Mention, User: "eve@a", Children: []richtext.Node{tx("Eve")}}}, "Eve"},
		{"a spoiler keeps its reason", richtext.Doc{{Kind: richtext.Spoiler, Text: "film", Children: []richtext.Node{n(richtext.Bold, tx("x"))}}}, "(film) *x*"},
		{"underline has no form", richtext.Doc{n(richtext.Underline, tx("a"))}, "a"},
	}
	nick := func(user string) string { return map[string]string{"bob@a": "bob"}[user] }
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, _ := Format(tt.doc, nick); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestPlainTextThatLooksStyledIsSaidNotToBe(t *testing.T) {
	for body, want := range map[string]bool{"*a*": true, "> a": true, "2 * 3 * 4": false, "a_b_c": false, "```\nx": true} {
		if _, unstyled := Format(richtext.Plain(body), nil); unstyled != want {
			t.Errorf("%q: unstyled is %v", body, unstyled)
		}
	}
	if _, unstyled := Format(richtext.Doc{n(richtext.Bold, tx("a"))}, nil); unstyled {
		t.Error("bold text is said to be unstyled")
	}
}

func xhtml(s string) (*xep.Element, error) {
	r := xep.NewReader(strings.NewReader("<stream:stream xmlns:stream='" + xep.NSStream + "'><body xmlns='" + xep.NSXHTML + "'>" + s + "</body>"))
	if _, err := r.Head(); err != nil {
		return nil, err
	}
	return r.Next()
}

func TestXHTML(t *testing.T) {
	tests := []struct {
		name, in string
		want     richtext.Doc
	}{
		{"marks", "a <strong>b</strong> <em>c</em>", richtext.Doc{tx("a "), n(richtext.Bold, tx("b")), tx(" "), n(richtext.Italic, tx("c"))}},
		{"styles", "<span style='font-weight: bold; x: y'>a</span>", richtext.Doc{n(richtext.Bold, tx("a"))}},
		{"a colour", "<span style='color:#ff0000'>a</span>", richtext.Doc{{Kind: richtext.Color, FG: "#ff0000", Children: []richtext.Node{tx("a")}}}},
		{"a link", "<a href='https://x.test/'>a</a>", richtext.Doc{{Kind: richtext.Link, URL: "https://x.test/", Children: []richtext.Node{tx("a")}}}},
		{"a link that is a script is text", "<a href='javascript:alert(1)'>a</a>", richtext.Doc{tx("a")}},
		{"foreign elements are left out", "a<script xmlns='x'>b</script>", richtext.Doc{tx("a")}},
		{"unknown elements leave their content", "<blink>a</blink>", richtext.Doc{tx("a")}},
		{"lists", "<ul> <li>a</li> <li>b</li></ul>", richtext.Doc{n(richtext.List, n(richtext.Item, tx("a")), n(richtext.Item, tx("b")))}},
		{"preformatted text keeps its lines", "<pre>a\n  b</pre>", richtext.Doc{block("a\n  b")}},
		{"white space is one space", "a\n   b<br/>c", richtext.Doc{tx("a b"), br, tx("c")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e, err := xhtml(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if got := XHTML(e); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// FuzzParse checks that no body panics, here and back, and that the tree keeps
// within its depth.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"*a* _b_ ~c~ `d`", "> a\n>> b\nc", "```go\nx\n```", "> ```\n> x", strings.Repeat(">", 200) + "x", "*_a*_", "\xff*a*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		doc := Parse(s)
		for depth := range doc.All() {
			if depth > richtext.MaxDepth {
				t.Fatalf("depth %d", depth)
			}
		}
		Format(doc, nil)
		Format(richtext.Plain(s), nil)
	})
}

func FuzzXHTML(f *testing.F) {
	f.Add("<p style='color:#123456'>a <b>b</b></p><ul><li>x</li></ul><a href='https://x/'>l</a>")
	f.Fuzz(func(t *testing.T, s string) {
		e, err := xhtml(s)
		if err != nil {
			return // no element
		}
		for depth := range XHTML(e).All() {
			if depth > richtext.MaxDepth {
				t.Fatalf("depth %d", depth)
			}
		}
	})
}
