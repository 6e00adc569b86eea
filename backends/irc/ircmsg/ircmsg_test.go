package ircmsg

import (
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"gopkg.in/irc.v4"
)

func TestParse(t *testing.T) {
	tests := []struct {
		name, line string
		want       *irc.Message
		err        error
	}{
		{"command alone", "PING", &irc.Message{Command: "PING"}, nil},
		{"command in lower case", "ping x\r\n", &irc.Message{Command: "PING", Params: []string{"x"}}, nil},
		{"all parts", "@a=b;+c :n!u@h PRIVMSG #c :hi  there", &irc.Message{
			Tags: irc.Tags{"a": "b", "+c": ""}, Prefix: &irc.Prefix{Name: "n", User: "u", Host: "h"},
			Command: "PRIVMSG", Params: []string{"#c", "hi  there"}}, nil},
		{"an empty last parameter", "TOPIC #c :", &irc.Message{Command: "TOPIC", Params: []string{"#c", ""}}, nil},
		{"several spaces after the tags", "@a=b   PING x", &irc.Message{Tags: irc.Tags{"a": "b"}, Command: "PING", Params: []string{"x"}}, nil},
		{"escaped tag", `@a=\:\s\\\r\n\q\ PING`, &irc.Message{Tags: irc.Tags{"a": "; \\\r\nq"}, Command: "PING"}, nil},
		{"malformed tag keys are left out", "@;=x;a b;c$=1;d=2 PING", nil, ErrMalformed},
		{"Latin-1", "PRIVMSG #c :caf\xe9 \x80", &irc.Message{Command: "PRIVMSG", Params: []string{"#c", "café €"}}, nil},
		{"nothing", "\r\n", nil, ErrEmpty},
		{"only tags", "@a=b", nil, ErrEmpty},
		{"what made the library panic", "@a=b \r\n", nil, ErrEmpty},
		{"tags twice", "@ @ ", nil, ErrMalformed},
		{"only a prefix", ":a", nil, ErrMalformed},
		{"only a prefix and a space", ":a ", nil, ErrMalformed},
		{"line end inside", "PING a\rQUIT", nil, ErrMalformed},
		{"NUL inside", "PING a\x00", nil, ErrMalformed},
		{"no command", ":a :b", nil, ErrMalformed},
		{"long tags", "@a=" + strings.Repeat("x", MaxTags) + " PING", nil, ErrTooLong},
		{"long line", "PING " + strings.Repeat("x", maxLongLine), nil, ErrTooLong},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(tt.line)
			if !errors.Is(err, tt.err) {
				t.Fatalf("err = %v, want %v", err, tt.err)
			}
			if tt.want == nil {
				return
			}
			if tt.want.Tags == nil {
				tt.want.Tags = irc.Tags{}
			}
			if tt.want.Prefix == nil {
				tt.want.Prefix = &irc.Prefix{}
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %#v", got)
			}
		})
	}
}

func TestFormat(t *testing.T) {
	tags := New("TAGMSG", "#c")
	tags.Tags = irc.Tags{"b": "x; y\\\r\n", "a": ""}
	withPrefix := New("PART", "#c")
	withPrefix.Prefix = &irc.Prefix{Name: "n", User: "u", Host: "h"}
	tests := []struct {
		name string
		m    *irc.Message
		want string
		err  error
	}{
		{"plain", New("PRIVMSG", "#c", "hi there"), "PRIVMSG #c :hi there", nil},
		{"last parameter with a colon", New("PRIVMSG", "#c", ":)"), "PRIVMSG #c ::)", nil},
		{"empty last parameter", New("TOPIC", "#c", ""), "TOPIC #c :", nil},
		{"tags are escaped and ordered", tags, `@a;b=x\:\sy\\\r\n TAGMSG #c`, nil},
		{"prefix", withPrefix, ":n!u@h PART #c", nil},
		{"line feed in the text", New("PRIVMSG", "#c", "a\nQUIT"), "", ErrUnsafe},
		{"carriage return in the text", New("PRIVMSG", "#c", "a\rQUIT"), "", ErrUnsafe},
		{"NUL in the text", New("PRIVMSG", "#c", "a\x00"), "", ErrUnsafe},
		{"space in the target", New("PRIVMSG", "#c x", "a"), "", ErrUnsafe},
		{"empty target", New("PRIVMSG", "", "a"), "", ErrUnsafe},
		{"target with a colon", New("PRIVMSG", ":x", "a"), "", ErrUnsafe},
		{"command of two words", New("PRIVMSG #c", "a"), "", ErrUnsafe},
		{"no command", New("", "a"), "", ErrUnsafe},
		{"line feed in the prefix", &irc.Message{Prefix: &irc.Prefix{Name: "a\nQUIT"}, Command: "PING"}, "", ErrUnsafe},
		{"semicolon in a tag's key", &irc.Message{Tags: irc.Tags{"a;b": ""}, Command: "PING"}, "", ErrUnsafe},
		{"too long", New("PRIVMSG", "#c", strings.Repeat("x", 500)), "", ErrTooLong},
		{"too long by its colon", New("PRIVMSG", "#c", " "+strings.Repeat("x", 498)), "", ErrTooLong},
		{"the longest line", New("PRIVMSG", "#c", strings.Repeat("x", 499)), "PRIVMSG #c " + strings.Repeat("x", 499), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Format(tt.m)
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestReaderGoesOnAfterALongLine(t *testing.T) {
	in := "PING 1\r\n\r\n" + strings.Repeat("x", 3*MaxTags) + "\r\n@" + strings.Repeat("t", MaxTags) + " PING\n" +
		strings.Repeat("y", MaxLine) + "\nPING 2\n" + strings.Repeat("z", MaxLine-2) + "\r\n@a=b \r\nPING 3\ncut"
	r := NewReader(strings.NewReader(in), FromClients)
	var got []string
	for {
		m, err := r.ReadMessage()
		if Fatal(err) {
			if err != io.EOF {
				t.Fatal(err)
			}
			break
		}
		switch {
		case errors.Is(err, ErrTooLong):
			got = append(got, "long")
		case err != nil:
			got = append(got, "empty")
		case len(m.Params) == 0:
			got = append(got, m.Command[:1])
		default:
			got = append(got, m.Params[0])
		}
	}
	if want := []string{"1", "long", "long", "long", "2", "Z", "empty", "3"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestSplit(t *testing.T) {
	family := "👩‍👩‍👧‍👦"
	tests := []struct {
		name  string
		text  string
		limit int
		want  []string
	}{
		{"nothing", "", 10, nil},
		{"fits", "0123456789", 10, []string{"0123456789"}},
		{"at a space", "one two three", 8, []string{"one two", "three"}},
		{"at the space just after the limit", "one two three", 7, []string{"one two", "three"}},
		{"a long word is cut", "a bcdefghijklmnop", 8, []string{"a bcdefg", "hijklmno", "p"}},
		{"not within a rune", "ééé", 5, []string{"éé", "é"}},
		{"not between letter and mark", "aaae\u0301", 5, []string{"aaa", "e\u0301"}},
		{"not within an emoji sequence", "ab" + family, len(family), []string{"ab", family}},
		{"a cluster beyond the limit is cut between runes", family, 10, []string{"👩\u200d", "👩\u200d", "👧\u200d", "👦"}},
		{"not within a flag", "abc🇩🇪🇫🇷", 12, []string{"abc🇩🇪", "🇫🇷"}},
		{"not within a colour code", "abc\x0312,04d", 6, []string{"abc", "\x0312,04", "d"}},
		{"the limit is at least a rune", "😀😀", 1, []string{"😀", "😀"}},
		{"spaces are kept but at cuts", "a  b      c", 5, []string{"a  b ", "    c"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Split(tt.text, tt.limit); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestMapping(t *testing.T) {
	tests := []struct {
		token, in, want string
	}{
		{"ascii", `A[]\~Z`, `a[]\~z`},
		{"rfc1459", `A[]\~Z`, `a{}|^z`},
		{"strict-rfc1459", `A[]\~Z`, `a{}|~z`},
		{"something else", `A[`, `a[`},
		{"rfc1459", "É", "É"},
	}
	for _, tt := range tests {
		if got := ParseMapping(tt.token).Fold(tt.in); got != tt.want {
			t.Errorf("%s: %q became %q", tt.token, tt.in, got)
		}
	}
}

func TestISupport(t *testing.T) {
	var s ISupport
	if s.Fold("A[") != "a{" || !s.IsChannel("#a") || s.IsChannel("+a") || s.LineLen() != 512 {
		t.Error("defaults are wrong")
	}
	for _, line := range []string{
		`:s 005 n CASEMAPPING=ascii CHANTYPES=#! PREFIX=(qov)~@+ CHANMODES=beI,k,l,imn NETWORK=A\x20b LINELEN=2048 EXCEPTS :are supported`,
		`:s 005 n -EXCEPTS NICKLEN=x :are supported by this server`,
		`:s 005 n`,
	} {
		m, err := Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		s.Apply(m)
	}
	if s.Mapping() != ASCII || !s.IsChannel("!a") || s.LineLen() != 2048 || s.Int("NICKLEN", 9) != 9 {
		t.Errorf("got %v", s)
	}
	if v, _ := s.Get("NETWORK"); v != "A b" {
		t.Errorf("NETWORK %q", v)
	}
	if _, ok := s.Get("EXCEPTS"); ok {
		t.Error("EXCEPTS was not taken back")
	}
	if symbols, bare := s.SplitPrefix("~@nick"); symbols != "~@" || bare != "nick" {
		t.Errorf("%q %q", symbols, bare)
	}
	got := s.ParseModes([]string{"+ob-lk+i", "alice", "*!*@x", "key"})
	want := []ModeChange{{true, 'o', "alice"}, {true, 'b', "*!*@x"}, {false, 'l', ""}, {false, 'k', "key"}, {true, 'i', ""}}
	if !slices.Equal(got, want) {
		t.Errorf("modes %v", got)
	}
}

func TestCTCP(t *testing.T) {
	command, rest, ok := ParseCTCP(CTCP("ACTION", "waves  a lot"))
	if command != "ACTION" || rest != "waves  a lot" || !ok {
		t.Errorf("%q %q %v", command, rest, ok)
	}
	if _, _, ok := ParseCTCP("ACTION"); ok {
		t.Error("plain text was taken for CTCP")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"@a=b \r\n", "@ @ ", "@a=\\: :n!u@h PRIVMSG #c :x\r\n", ":a@b!c X", "PING :", "@+x/y=1;; A \xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		m, err := Parse(line)
		if err != nil {
			return
		}
		out, err := Format(m)
		if err != nil {
			if !errors.Is(err, ErrTooLong) {
				t.Fatalf("what was read cannot be written: %v: %q", err, line)
			}
			return
		}
		again, err := Parse(out)
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Fatalf("%q was read as %#v, written as %q, read as %#v (%v)", line, m, out, again, err)
		}
	})
}

func FuzzAppendIsOneLine(f *testing.F) {
	f.Add("PRIVMSG", "#c", "a\r\nQUIT", "n\n", "k", "v\r")
	f.Fuzz(func(t *testing.T, command, target, text, nick, key, value string) {
		m := New(command, target, text)
		m.Prefix.Name = nick
		m.Tags[key] = value
		b, err := Append([]byte("before"), m)
		if err != nil {
			if string(b) != "before" {
				t.Fatalf("wrote %q with an error", b)
			}
			return
		}
		line := string(b[len("before"):])
		if !strings.HasSuffix(line, "\r\n") || strings.ContainsAny(line[:len(line)-2], "\r\n\x00") {
			t.Fatalf("not one line: %q", line)
		}
		got, err := Parse(line)
		if err != nil || len(got.Params) != 2 || got.Tags[key] != value {
			t.Fatalf("%q was read as %#v, %v", line, got, err)
		}
	})
}

func FuzzSplit(f *testing.F) {
	f.Add("one two three", 5)
	f.Add("e\u0301👩‍👩‍👧\x0312,3🇩🇪\xff", 6)
	f.Fuzz(func(t *testing.T, text string, limit int) {
		limit = max(limit, minSplit)
		for rest := text; rest != ""; {
			head, tail := Cut(rest, limit)
			if head == "" || len(head) > limit || len(tail) >= len(rest) {
				t.Fatalf("cut %q (limit %d) into %q and %q", rest, limit, head, tail)
			}
			if rest != head+tail && rest != head+" "+tail {
				t.Fatalf("cut %q into %q and %q", rest, head, tail)
			}
			if utf8.ValidString(text) && !utf8.ValidString(head) {
				t.Fatalf("cut within a rune: %q", head)
			}
			rest = tail
		}
	})
}

func BenchmarkParse(b *testing.B) {
	const line = "@time=2024-01-01T00:00:00.000Z;msgid=abcdef;account=alice :alice!alice@host.example.org PRIVMSG #channel :hello, this is a message\r\n"
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(line); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	m := New("PRIVMSG", "#channel", "hello, this is a message")
	m.Tags["label"] = "17"
	buf := make([]byte, 0, MaxLine)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Append(buf, m); err != nil {
			b.Fatal(err)
		}
	}
}
