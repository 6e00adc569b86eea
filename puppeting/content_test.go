package puppeting

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	mhtml "github.com/gjallar-im/gjallar/puppeting/html"
)

func TestGhostNames(t *testing.T) {
	for _, tt := range []struct{ remote, localpart string }{
		{"bob", "irc_bob"},
		{"Bob_1", "irc__bob__1"},
		{"a@b.example/C d", "irc_a=40b.example/_c=20d"},
		{"[x]{|}^", "irc_=5bx=5d=7b=7c=7d=5e"},
		{"ü", "irc_=c3=bc"},
		{"=3d", "irc_=3d3d"},
	} {
		got := ghostLocalpart("irc", backends.UserID(tt.remote))
		if got != tt.localpart || !matrix.ValidLocalpart(got) {
			t.Errorf("%q is %q, want %q", tt.remote, got, tt.localpart)
		}
		if back, ok := unescapeUser(strings.TrimPrefix(got, "irc_")); !ok || back != tt.remote {
			t.Errorf("%q comes back as %q", tt.remote, back)
		}
	}
	for _, bad := range []string{"", "B", "=zz", "=4", "_", "=41", "a b"} {
		if s, ok := unescapeUser(bad); ok {
			t.Errorf("%q was taken for %q", bad, s)
		}
	}
	long := ghostLocalpart("irc", backends.UserID(strings.Repeat("@", 300)))
	if len(long) > 60 || long == ghostLocalpart("irc", backends.UserID(strings.Repeat("@", 301))) {
		t.Errorf("a long name is %q", long)
	}
}

func FuzzGhostNames(f *testing.F) {
	f.Add("Bob_[x]@é")
	f.Fuzz(func(t *testing.T, s string) {
		escaped := escapeUser(s)
		if s != "" && !matrix.ValidLocalpart(escaped) {
			t.Fatalf("%q makes %q", s, escaped)
		}
		if back, ok := unescapeUser(escaped); ok != (s != "") || back != s {
			t.Fatalf("%q comes back as %q", s, back)
		}
		if u, ok := unescapeUser(s); ok && escapeUser(u) != s {
			t.Fatalf("%q and %q are one user", s, escapeUser(u))
		}
		if utf8.ValidString(s) && !strings.ContainsRune(s, utf8.RuneError) {
			if a := escapeAlias(s); unescapeAlias(a) != s || strings.ContainsAny(a, ": \x00\n") {
				t.Fatalf("%q makes the alias %q", s, a)
			}
		}
	})
}

func TestPublicAddresses(t *testing.T) {
	for a, want := range map[string]bool{
		"1.1.1.1": true, "2606:4700::1111": true,
		"127.0.0.1": false, "0.0.0.0": false, "10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false, "100.64.0.1": false,
		"224.0.0.1": false, "255.255.255.255": false, "::1": false, "::": false, "fe80::1": false, "fc00::1": false, "ff02::1": false,
		"::ffff:127.0.0.1": false, "64:ff9b::7f00:1": false, "2002:7f00:1::": false, "::127.0.0.1": false,
	} {
		if got := public(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
	if err := refusePrivate("tcp", "127.0.0.1:80", nil); err == nil {
		t.Error("a connection to this machine was let through")
	}
}

func TestFileNames(t *testing.T) {
	for in, want := range map[string]string{"": "file", "../../etc/passwd": "_.._etc_passwd", "a\r\nb": "a__b", ".htaccess": "htaccess", `a"b`: "a_b"} {
		if got := fileName(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
	if got := fileName(strings.Repeat("x", 200) + ".png"); len(got) != 80 || !strings.HasSuffix(got, ".png") {
		t.Errorf("a long name is %q", got)
	}
}

func TestLongTextsAreCut(t *testing.T) {
	d := richtext.Doc{{Kind: richtext.Bold, Children: richtext.Plain(strings.Repeat("ü", 40000))}}
	c := textContent(d, mhtml.RenderOptions{})
	b, err := json.Marshal(c)
	if err != nil || len(b) > 60000 || c["formatted_body"] != nil || !strings.HasSuffix(c["body"].(string), "ü…") {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// FuzzContent feeds contents of events as any member of a room may send them.
func FuzzContent(f *testing.F) {
	for _, s := range []string{
		`{"msgtype":"m.text","body":"> <@a:b> x\n\ny","format":"org.matrix.custom.html","m.relates_to":{"m.in_reply_to":{"event_id":"$x"}}}`,
		`{"body":1,"msgtype":[],"info":{"size":1e400,"w":-1},"url":"mxc://","m.mentions":{"room":true,"user_ids":"x"}}`,
		`{"msgtype":"m.image","body":"@room \u0000\r","url":"mxc://a/b","info":{"duration":1e300},"m.mentions":{"room":true}}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c := decodeInto[content](json.RawMessage(s))
		d := c.textOf(mhtml.ParseOptions{})
		file := c.file(func(mxc, name string) string { return fileName(mxc) + name })
		bodies := []backends.Body{
			&backends.Message{Text: d, Files: []backends.File{file}, ReplyTo: &backends.Quote{Text: excerpt(c.Body)}},
			&backends.Edit{Target: "x", New: backends.Message{Text: d}}, &backends.Reaction{Key: cleanText(c.RelatesTo.Key)},
		}
		for _, b := range bodies {
			m, ok := degrade(b, backends.Capabilities{}).(*backends.Message)
			if !ok {
				t.Fatalf("%T has no fallback", b)
			}
			for _, n := range m.Text.All() {
				if strings.ContainsAny(n.Text, "\x00\r\x1b") || n.Kind != richtext.Text && n.Kind != richtext.Break {
					t.Fatalf("%q became %+v", s, n)
				}
			}
		}
	})
}

func TestPowerLevelsOfAnyForm(t *testing.T) {
	for in, want := range map[string]level{
		`{"users":{"@a:b":50}}`: 50, `{"users":{"@a:b":"50"}}`: 50, `{"users":{"@a:b":50.0}}`: 50, `{"users_default":7}`: 7, `{}`: 0, `[]`: 0,
		`{"users":{"@a:b":null}}`: 0,
	} {
		pl := decodeInto[powerLevels](json.RawMessage(in))
		if got := pl.of("@a:b"); got != want {
			t.Errorf("%s: %d, want %d", in, got, want)
		}
	}
}

func TestTheRegistrationCoversWhatWeUse(t *testing.T) {
	r := NewRegistration([]string{"irc", "xmpp"}, "example.org", "http://localhost:1", true)
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	exclusive := func(list []matrix.Namespace, id string) (covered, exclusive bool) {
		for _, n := range list {
			re, err := n.Compile()
			if err != nil {
				t.Fatal(err)
			}
			if re.MatchString(id) {
				covered, exclusive = true, exclusive || n.Exclusive
			}
		}
		return covered, exclusive
	}
	for _, tt := range []struct {
		id           string
		list         []matrix.Namespace
		covered, own bool
	}{
		{"@irc__bob:example.org", r.Namespaces.Users, true, true},
		{"@alice:example.org", r.Namespaces.Users, true, false},
		{"@irc_bob:elsewhere.org", r.Namespaces.Users, false, false},
		{"#xmpp_room@muc:example.org", r.Namespaces.Aliases, true, true},
		{"#tea:example.org", r.Namespaces.Aliases, false, false},
	} {
		if c, x := exclusive(tt.list, tt.id); c != tt.covered || x != tt.own {
			t.Errorf("%s: covered %v, exclusive %v", tt.id, c, x)
		}
	}
	if !slices.Equal(r.Protocols, []string{"irc", "xmpp"}) || !r.ReceiveEphemeral {
		t.Errorf("%+v", r)
	}
}

func BenchmarkConversion(b *testing.B) {
	raw := json.RawMessage(`{"msgtype":"m.text","body":"Bob: hello","format":"org.matrix.custom.html","formatted_body":"<a href=\"https://matrix.to/#/@irc__bob:test\">Bob</a>: <b>hello</b>","m.mentions":{"user_ids":["@irc__bob:test"]}}`)
	b.ReportAllocs()
	for b.Loop() {
		c := decodeInto[content](raw)
		d := c.textOf(mhtml.ParseOptions{User: func(u string) string { return u }})
		textContent(degrade(&backends.Message{Text: d}, everything).(*backends.Message).Text, mhtml.RenderOptions{User: func(u string) string { return u }})
	}
}
