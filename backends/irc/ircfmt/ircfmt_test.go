package ircfmt

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gjallar-im/gjallar/backends/richtext"
)

type node = richtext.Node

func txt(s string) node  { return node{Text: s} }
func code(s string) node { return node{Kind: richtext.Code, Text: s} }
func in(k richtext.Kind, children ...node) node {
	return node{Kind: k, Children: children}
}
func colour(fg, bg string, children ...node) node {
	return node{Kind: richtext.Color, FG: fg, BG: bg, Children: children}
}

// Both directions.
func TestCodes(t *testing.T) {
	tests := []struct {
		name string
		irc  string
		doc  richtext.Doc
	}{
		{"nothing", "", nil},
		{"plain", "a b", richtext.Doc{txt("a b")}},
		{"bold", "a \x02b\x0f c", richtext.Doc{txt("a "), in(richtext.Bold, txt("b")), txt(" c")}},
		{"all marks", "\x02\x1d\x1f\x1ea", richtext.Doc{in(richtext.Bold, in(richtext.Italic, in(richtext.Underline, in(richtext.Strike, txt("a")))))}},
		{"marks nest", "\x02a\x1db\x1dc", richtext.Doc{in(richtext.Bold, txt("a"), in(richtext.Italic, txt("b")), txt("c"))}},
		{"monospace", "run \x11ls -l\x0f now", richtext.Doc{txt("run "), code("ls -l"), txt(" now")}},
		{"colour", "\x0304red", richtext.Doc{colour("#ff0000", "", txt("red"))}},
		{"colour with background", "\x0304,12red", richtext.Doc{colour("#ff0000", "#0000fc", txt("red"))}},
		{"background alone", "\x0399,12x", richtext.Doc{colour("", "#0000fc", txt("x"))}},
		{"a late colour", "\x0378x", richtext.Doc{colour("#ffff9c", "", txt("x"))}},
		{"a comma after the colour", "\x0304\x02\x02,5", richtext.Doc{colour("#ff0000", "", txt(",5"))}},
		{"a digit after the colour", "\x030412", richtext.Doc{colour("#ff0000", "", txt("12"))}},
		{"a digit after the end of a colour", "\x02\x0304a\x03\x02\x025", richtext.Doc{colour("#ff0000", "", in(richtext.Bold, txt("a"))), in(richtext.Bold, txt("5"))}},
		{"spoiler", "he \x0301,01dies", richtext.Doc{txt("he "), in(richtext.Spoiler, txt("dies"))}},
		{"lines begin without formatting", "\x02a\n\x02b\nc", richtext.Doc{
			in(richtext.Bold, txt("a")), {Kind: richtext.Break}, in(richtext.Bold, txt("b")), {Kind: richtext.Break}, txt("c")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Parse(tt.irc); !reflect.DeepEqual(got, tt.doc) {
				t.Errorf("parsed %v", got)
			}
			if got := Render(tt.doc); got != tt.irc {
				t.Errorf("rendered %q, want %q", got, tt.irc)
			}
		})
	}
}

func TestParse(t *testing.T) {
	tests := []struct {
		name string
		irc  string
		doc  richtext.Doc
	}{
		{"one digit", "\x034red", richtext.Doc{colour("#ff0000", "", txt("red"))}},
		{"a comma without a colour", "\x034,red", richtext.Doc{colour("#ff0000", "", txt(",red"))}},
		{"hex colours", "\x04FF8800,001122x\x04y", richtext.Doc{colour("#ff8800", "#001122", txt("x")), txt("y")}},
		{"default colours", "\x0304,05\x0399,99x", richtext.Doc{txt("x")}},
		{"reverse", "\x16x\x16y", richtext.Doc{colour("#ffffff", "#000000", txt("x")), txt("y")}},
		{"reversed colours", "\x0304\x16x", richtext.Doc{colour("#ffffff", "#ff0000", txt("x"))}},
		{"codes without effect", "a\x02\x02b\x0fc", richtext.Doc{txt("abc")}},
		{"other controls are dropped", "a\x01\x07\x1b[0m\u0085\tb", richtext.Doc{txt("a[0m\tb")}},
		{"codes at the end", "a\x02\x03\x04", richtext.Doc{txt("a")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Parse(tt.irc); !reflect.DeepEqual(got, tt.doc) {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestRender(t *testing.T) {
	link := node{Kind: richtext.Link, URL: "https://x.test/", Children: []node{in(richtext.Bold, txt("here"))}}
	bare := node{Kind: richtext.Link, URL: "https://x.test/", Children: []node{txt("https://x.test/")}}
	mention := node{Kind: richtext.Mention, User: "@alice", Children: []node{txt("Alice A.")}}
	deep := txt("x")
	for range 3 * richtext.MaxDepth {
		deep = in(richtext.Quote, deep)
	}
	tests := []struct {
		name string
		doc  richtext.Doc
		want string
	}{
		{"a link shows its address", richtext.Doc{link, txt("!")}, "\x02here\x0f (https://x.test/)!"},
		{"a bare link does not repeat it", richtext.Doc{bare}, "https://x.test/"},
		{"a known mention is the nick", richtext.Doc{mention, txt(": hi")}, "alice_: hi"},
		{"another mention is as written", richtext.Doc{{Kind: richtext.Mention, User: "bob", Children: []node{txt("Bob")}}}, "Bob"},
		{"each line of a quote is marked", richtext.Doc{in(richtext.Quote, in(richtext.Bold, txt("a\nb"))), txt("c")}, "> \x02a\n> \x02b\nc"},
		{"items hang", richtext.Doc{in(richtext.List, in(richtext.Item, in(richtext.Paragraph, txt("a")), in(richtext.Paragraph, txt("b"))), in(richtext.Item, txt("c")))}, "• a\n  b\n• c"},
		{"numbers start where said", richtext.Doc{{Kind: richtext.List, Ordered: true, Start: 9, Children: []node{in(richtext.Item, txt("a")), in(richtext.Item, txt("b"))}}}, "9. a\n10. b"},
		{"code is monospaced line by line", richtext.Doc{txt("x"), {Kind: richtext.CodeBlock, Text: "a\n  b\n"}, txt("y")}, "x\n\x11a\n\x11  b\ny"},
		{"a heading is bold", richtext.Doc{{Kind: richtext.Heading, Level: 1, Children: []node{txt("a")}}, in(richtext.Paragraph, txt("b"))}, "\x02a\nb"},
		{"a spoiler keeps its reason and hides colours", richtext.Doc{{Kind: richtext.Spoiler, Text: "film", Children: []node{colour("#ff0000", "", txt("he dies"))}}}, "(film) \x0301,01he dies"},
		{"a colour is the nearest", richtext.Doc{colour("#fe0102", "", txt("x"))}, "\x0304x"},
		{"what is no colour is none", richtext.Doc{colour("red", "#12345", txt("x"))}, "x"},
		{"control characters in the text are dropped", richtext.Doc{txt("\x01ACTION x\x01\r\x00\x02y"), code("\x03" + "4")}, "ACTION xy\x114"},
		{"a rule is drawn", richtext.Doc{txt("a"), {Kind: richtext.Rule}, txt("b")}, "a\n---\nb"},
		{"too deep", richtext.Doc{deep}, strings.TrimSpace(strings.Repeat("> ", richtext.MaxDepth)) + " "},
	}
	r := Renderer{Mention: func(user, _ string) string { return map[string]string{"@alice": "alice_"}[user] }}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := r.Render(tt.doc); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestSplit(t *testing.T) {
	tests := []struct {
		name  string
		in    string
		limit int
		want  []string
	}{
		{"lines without text are left out", "a\n\n \x02\nb", 50, []string{"a", "b"}},
		{"formatting goes on", "\x02\x0304,05aaaa bbbb cccc dddd eeee", 30, []string{"\x02\x0304,05aaaa bbbb cccc dddd", "\x02\x0304,05eeee"}},
		{"formatting that has ended does not", "\x02aaaa bbbb\x02 cccc dddd eeee", 25, []string{"\x02aaaa bbbb\x02 cccc dddd", "eeee"}},
		{"a digit where a coloured line goes on", "\x03041111 2222 3333 4444 5555", 23, []string{"\x03041111 2222 3333 4444", "\x03045555"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Split(tt.in, tt.limit); !slices.Equal(got, tt.want) {
				t.Errorf("got %q", got)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"\x02a\x1d\x0304,05b\x0fc\n\x16d", "\x04ff0000,00ff00x\x03,5", "\x0301,01a\x1e\x11\x1fb\x03" + "7", "\x03\x02\x021"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		doc := Parse(s)
		for depth, n := range doc.All() {
			if depth > len(marks)+1 {
				t.Fatalf("depth %d", depth)
			}
			if strings.IndexFunc(n.Text, isControl) >= 0 {
				t.Fatalf("control character in %q", n.Text)
			}
		}
		out := Render(doc)
		if utf8.ValidString(s) && Strip(out) != Strip(s) {
			t.Fatalf("%q became %q", s, out)
		}
		if again := Render(Parse(out)); again != out {
			t.Fatalf("%q, then %q", out, again)
		}
	})
}

func FuzzSplit(f *testing.F) {
	f.Add("\x02a\x1d\x0304,05b\x0fc\n\x16d e f", 20)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = max(limit, 40)
		squeeze := func(s string) string { return strings.Join(strings.Fields(Strip(s)), "") }
		lines := Split(s, limit)
		for _, l := range lines {
			if len(l) > limit || strings.Contains(l, "\n") || l == "" {
				t.Fatalf("line %q (limit %d)", l, limit)
			}
		}
		if got := strings.Join(lines, "\n"); utf8.ValidString(s) && squeeze(got) != squeeze(s) {
			t.Fatalf("%q became %q", s, got)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		Parse("hello \x02bold \x1dand italic\x0f and \x0304,12colours\x03 and the rest of the line")
	}
}

func BenchmarkRender(b *testing.B) {
	doc := Parse("hello \x02bold \x1dand italic\x0f and \x0304,12colours\x03 and the rest of the line")
	b.ReportAllocs()
	for b.Loop() {
		Render(doc)
	}
}
