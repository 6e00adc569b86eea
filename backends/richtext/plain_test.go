package richtext

import (
	"reflect"
	"strings"
	"testing"
)

func t(s string) Node                        { return Node{Kind: Text, Text: s} }
func n(k Kind, children ...Node) Node        { return Node{Kind: k, Children: children} }
func link(url string, children ...Node) Node { return Node{Kind: Link, URL: url, Children: children} }

func TestPlain(test *testing.T) {
	tests := []struct {
		name string
		doc  Doc
		want string
	}{
		{"nothing", nil, ""},
		{"marks leave no trace", Doc{t("a "), n(Bold, n(Italic, t("b"))), t(" c")}, "a b c"},
		{"a break is a line feed", Plain("a\n\nb"), "a\n\nb"},
		{"paragraphs are lines", Doc{n(Paragraph, t("a")), n(Paragraph, t("b"))}, "a\nb"},
		{"a link shows its address", Doc{link("https://x.test/", t("here"))}, "here (https://x.test/)"},
		{"a bare link does not repeat it", Doc{link("https://x.test/", t("https://x.test/"))}, "https://x.test/"},
		{"a mail link does not either", Doc{link("mailto:a@x.test", t("a@x.test"))}, "mailto:a@x.test"},
		{"each line of a quote is marked", Doc{n(Quote, t("a"), n(Break), t("b")), t("c")}, "> a\n> b\nc"},
		{"quotes nest", Doc{n(Quote, n(Quote, t("a")), n(Paragraph, t("b")))}, "> > a\n> b"},
		{"items hang", Doc{n(List, n(Item, n(Paragraph, t("a")), n(Paragraph, t("b"))), n(Item, t("c")))}, "• a\n  b\n• c"},
		{"numbers start where said", Doc{{Kind: List, Ordered: true, Start: 9, Children: []Node{n(Item, t("a")), n(Item, t("b"))}}}, "9. a\n10. b"},
		{"code keeps its lines", Doc{t("x"), {Kind: CodeBlock, Text: "a\n  b\n"}, t("y")}, "x\na\n  b\ny"},
		{"a spoiler keeps its reason", Doc{{Kind: Spoiler, Text: "film", Children: []Node{t("he dies")}}}, "(film) he dies"},
		{"a rule is drawn", Doc{t("a"), n(Rule), t("b")}, "a\n---\nb"},
		{"an emoji is its shortcode", Doc{{Kind: Image, Text: ":cat:"}}, ":cat:"},
	}
	for _, tt := range tests {
		test.Run(tt.name, func(test *testing.T) {
			if got := tt.doc.Plain(); got != tt.want {
				test.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestNormaliseMergesText(test *testing.T) {
	doc := Doc{t("a"), t(""), t("b"), n(Bold, t("c"), t("d")), t("e")}
	want := Doc{t("ab"), n(Bold, t("cd")), t("e")}
	if got := doc.Normalise(); !reflect.DeepEqual(got, want) {
		test.Errorf("got %v", got)
	}
	if doc[0].Text != "a" || len(doc[3].Children) != 2 {
		test.Errorf("the argument has changed: %v", doc)
	}
}

func TestNormaliseCapsDepth(test *testing.T) {
	deep := t("x")
	for range MaxDepth + 20 {
		deep = n(Quote, deep)
	}
	got := Doc{deep}.Normalise()
	deepest := 0
	for depth := range got.All() {
		deepest = max(deepest, depth)
	}
	if deepest != MaxDepth {
		test.Errorf("depth %d", deepest)
	}
	if s := got.Plain(); !strings.HasSuffix(s, "x") {
		test.Errorf("the text is lost: %q", s)
	}
}
