package xep

import (
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"mellium.im/xmpp/stanza"
)

const head = `<?xml version='1.0'?><stream:stream xmlns='jabber:component:accept' xmlns:stream='http://etherx.jabber.org/streams' id='i&amp;1'>`

// parse reads one stanza of a component's stream.
func parse(tb testing.TB, s string) *Element {
	tb.Helper()
	e, err := read(s)
	if err != nil {
		tb.Fatalf("%v in %s", err, s)
	}
	return e
}

func read(s string) (*Element, error) {
	r := NewReader(strings.NewReader(head + s))
	if _, err := r.Head(); err != nil {
		return nil, err
	}
	return r.Next()
}

func TestReaderReadsStanzas(t *testing.T) {
	r := NewReader(strings.NewReader(head + " <message to='a@b'><body>x &lt; y</body></message>\n<iq/></stream:stream>"))
	h, err := r.Head()
	if err != nil || h.Attr("id") != "i&1" {
		t.Fatalf("head %v, %v", h, err)
	}
	m, err := r.Next()
	if err != nil || m.Attr("to") != "a@b" || m.Child(NSComponent, "body").Text() != "x < y" {
		t.Fatalf("message %v, %v", m, err)
	}
	if iq, err := r.Next(); err != nil || !iq.Is(NSComponent, "iq") {
		t.Fatalf("iq %v, %v", iq, err)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Fatalf("end: %v", err)
	}
}

func TestReaderRefuses(t *testing.T) {
	large := "<body>" + strings.Repeat("x", MaxStanza) + "</body>"
	tests := []struct {
		name string
		in   string
		want error
	}{
		{"a stanza over 256 KiB", "<message>" + large + "</message>", ErrTooLarge},
		{"one in the middle of which the limit is passed", "<message>" + large + "<a><b>c</b></a><d/></message>", ErrTooLarge},
		{"a large attribute", "<message a='" + strings.Repeat("x", MaxStanza) + "'><a/></message>", ErrTooLarge},
		{"a deep tree", strings.Repeat("<a>", 200) + strings.Repeat("</a>", 200), ErrTooDeep},
		{"an attribute twice", "<message a='1' a='2'><a><b/></a></message>", ErrElement},
		{"an attribute twice, further in", "<message><a><b a='1' a='2'/></a></message>", ErrElement},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := NewReader(strings.NewReader(head + tt.in + "<iq id='next'/>"))
			if _, err := r.Head(); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Next(); err != tt.want || !Skipped(err) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if e, err := r.Next(); err != nil || e.Attr("id") != "next" {
				t.Errorf("then %v, %v", e, err)
			}
		})
	}
}

func TestReaderGivesUp(t *testing.T) {
	tests := []struct {
		name string
		in   string
		want error
	}{
		{"an endless text", "<message><body>" + strings.Repeat("x", MaxSkip), ErrEndless},
		{"an endless attribute", "<message a='" + strings.Repeat("x", MaxSkip), ErrEndless},
		{"an endless name", "<" + strings.Repeat("x", MaxSkip), ErrEndless},
		{"an endless tree", strings.Repeat("<a>", MaxSkip/3+1), ErrEndless},
		{"an endless space between stanzas", strings.Repeat(" ", MaxSkip+1), ErrEndless},
		{"a document type", `<!DOCTYPE x [<!ENTITY a "b">]><message/>`, ErrRestricted},
		{"an entity inside a stanza", `<message><!ENTITY a "b"></message>`, ErrRestricted},
		{"a comment", "<message><!-- x --></message>", ErrRestricted},
		{"a comment in what is skipped", "<message a='1' a='2'><!-- x --></message>", ErrRestricted},
		{"a processing instruction", "<message><?php x?></message>", ErrRestricted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := read(tt.in); !errors.Is(err, tt.want) || Skipped(err) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	for _, in := range []string{"<message>&custom;</message>", "<message></presence>", "<message", "</x>"} {
		if e, err := read(in); err == nil {
			t.Errorf("%s was read as %s", in, e)
		}
	}
}

func TestElementIsEscaped(t *testing.T) {
	e := New(NSComponent, "message", "to", `a"'<>&`+"\n", "from", "").Add(
		New(NSComponent, "body").AddText("]]> <b>&amp;\x00\x0b\uFFFE é \U0001F600"),
		New(NSOOB, "x").Add(New(NSOOB, "url").AddText("http://x")))
	want := `<message to="a&#34;&#39;&lt;&gt;&amp;&#10;"><body>]]&gt; &lt;b&gt;&amp;amp; é 😀</body><x xmlns="jabber:x:oob"><url>http://x</url></x></message>`
	if got := e.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	back := parse(t, e.String())
	if got := back.Child(NSComponent, "body").Text(); got != "]]> <b>&amp; é 😀" {
		t.Errorf("body %q", got)
	}
	if back.Attr("to") != `a"'<>&`+"\n" {
		t.Errorf("to %q", back.Attr("to"))
	}
}

func TestContentRoundTrip(t *testing.T) {
	tests := []struct {
		name string
		c    Content
	}{
		{"text", Content{Body: "hi\nthere"}},
		{"a correction", Content{Body: "hi", Replace: "m1", OriginID: "o1"}},
		{"a reply", Content{Body: "yes", Reply: &Reply{ID: "s1", To: "r@m/bob"}}},
		{"reactions", Content{ReactTo: "s1", Reactions: []string{"👍", "❤"}}},
		{"no more reactions", Content{ReactTo: "s1"}},
		{"a retraction", Content{Retract: "s1", Reason: "spam"}},
		{"a file", Content{Files: []string{"https://x.test/a.png"}}},
		{"a chat state", Content{State: "composing"}},
		{"a subject", Content{Subject: new("")}},
		{"a thread, unstyled", Content{Body: "*x", Thread: "t", Unstyled: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := New(NSComponent, "message")
			tt.c.AddTo(m, "")
			if got := ContentOf(parse(t, m.String())); !reflect.DeepEqual(got, tt.c) {
				t.Errorf("got %+v, want %+v", got, tt.c)
			}
		})
	}
}

func TestContentStripsFallback(t *testing.T) {
	reply := "<reply xmlns='urn:xmpp:reply:0' id='s1'/>"
	tests := []struct{ name, in, want string }{
		{"code points are counted", "<body>&gt; é😀\nyes</body>" + reply + "<fallback xmlns='urn:xmpp:fallback:0' for='urn:xmpp:reply:0'><body start='0' end='5'/></fallback>", "yes"},
		{"several spans refer to the same text", "<body>abcdef</body><fallback xmlns='urn:xmpp:fallback:0' for='urn:xmpp:reply:0'><body start='0' end='2'/></fallback><fallback xmlns='urn:xmpp:fallback:0' for='jabber:x:oob'><body start='4' end='6'/></fallback>", "cd"},
		{"without span it is all", "<body>abc</body><fallback xmlns='urn:xmpp:fallback:0' for='jabber:x:oob'/>", ""},
		{"spans out of range do nothing", "<body>abc</body><fallback xmlns='urn:xmpp:fallback:0' for='jabber:x:oob'><body start='7' end='-3'/></fallback>", "abc"},
		{"of unknown extensions it stays", "<body>abc</body><fallback xmlns='urn:xmpp:fallback:0' for='urn:x'/>", "abc"},
		{"of a reaction it goes even unmarked", "<body>👍</body><reactions xmlns='urn:xmpp:reactions:0' id='s1'><reaction>👍</reaction></reactions>", ""},
		{"the address of a file is no text", "<body> https://x/ </body><x xmlns='jabber:x:oob'><url>https://x/</url></x>", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := ContentOf(parse(t, "<message>"+tt.in+"</message>")).Body; got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestQuotedIsMarkedAsFallback(t *testing.T) {
	m := New(NSComponent, "message")
	c := Content{Body: "> é\nyes", Reply: &Reply{ID: "s1", To: "r@m/bob"}}
	c.AddTo(m, "> é\n")
	if got := ContentOf(parse(t, m.String())); got.Body != "yes" || got.Reply.ID != "s1" {
		t.Errorf("got %+v", got)
	}
}

func TestStanzaIDIsBelievedFromItsRoomOnly(t *testing.T) {
	m := parse(t, "<message><stanza-id xmlns='urn:xmpp:sid:0' by='evil@m' id='1'/><stanza-id xmlns='urn:xmpp:sid:0' by='r@m' id='2'/></message>")
	if got := StanzaID(m, "r@m"); got != "2" {
		t.Errorf("got %q", got)
	}
	if got := StanzaID(m, "other@m"); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestErrors(t *testing.T) {
	m := New(NSComponent, "message", "from", "a@b/c", "to", "r@m", "type", "groupchat", "id", "7")
	e := parse(t, ErrorTo(m, &Error{stanza.Auth, stanza.Forbidden, "no"}).String())
	if e.Attr("type") != "error" || e.Attr("id") != "7" || e.Attr("to") != "a@b/c" || e.Attr("from") != "r@m" {
		t.Errorf("error stanza %s", e)
	}
	if got := ErrorOf(e); *got != (Error{stanza.Auth, stanza.Forbidden, "no"}) {
		t.Errorf("got %+v", got)
	}
	if got := ErrorOf(parse(t, "<message type='error'/>")); got.Condition != stanza.UndefinedCondition {
		t.Errorf("without condition: %+v", got)
	}
	if ErrorOf(m) != nil {
		t.Error("no error was found one")
	}
}

func TestMUCUserRoundTrip(t *testing.T) {
	u := MUCUser{Affiliation: Admin, Role: Moderator, JID: "a@b/c", Nick: "n", Actor: "op", Reason: "r", Codes: []string{StatusSelf, StatusKicked}}
	p := New(NSComponent, "presence").Add(u.Element())
	if got := MUCUserOf(parse(t, p.String())); !reflect.DeepEqual(got, u) {
		t.Errorf("got %+v", got)
	}
	if got := MUCUserOf(New(NSComponent, "presence")); !reflect.DeepEqual(got, MUCUser{}) {
		t.Errorf("of nothing: %+v", got)
	}
}

func TestDelay(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)
	p := New(NSComponent, "message").Add(New(NSDelay, "delay", "from", "r@m", "stamp", Stamp(at)))
	if got := DelayOf(parse(t, p.String())); !got.Equal(at) {
		t.Errorf("got %v", got)
	}
	if !DelayOf(New(NSComponent, "message")).IsZero() {
		t.Error("no delay has a time")
	}
}

// FuzzReader checks that reading never panics, and that what was read is written
// so that it reads back the same.
func FuzzReader(f *testing.F) {
	for _, s := range []string{
		"<message to='a@b' id='1'><body>x &lt;&amp; y</body><x xmlns='jabber:x:oob'><url>u</url></x></message>",
		"<presence xml:lang='en'><x xmlns='http://jabber.org/protocol/muc'/></presence>",
		"<p:iq xmlns:p='jabber:component:accept' p:a='1'><b xmlns=''/></p:iq>", "<a><![CDATA[x]]></a>", "<!DOCTYPE x>",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := read(s)
		if err != nil {
			return
		}
		once := e.String()
		again, err := read(once)
		if errors.Is(err, ErrTooLarge) {
			return // escaping made it longer
		}
		if err != nil {
			t.Fatalf("%v reading back %q", err, once)
		}
		if twice := again.String(); twice != once {
			t.Fatalf("first  %q\nsecond %q", once, twice)
		}
	})
}

// FuzzContent checks that no message panics, and that what is understood survives
// being written.
func FuzzContent(f *testing.F) {
	f.Add("<body>&gt; a\nb</body><reply xmlns='urn:xmpp:reply:0' id='s1'/><fallback xmlns='urn:xmpp:fallback:0' for='urn:xmpp:reply:0'><body start='0' end='4'/></fallback>")
	f.Add("<reactions xmlns='urn:xmpp:reactions:0' id='s1'><reaction>x</reaction></reactions><retract xmlns='urn:xmpp:message-retract:1' id='s'/>")
	f.Fuzz(func(t *testing.T, s string) {
		e, err := read("<message>" + s + "</message>")
		if err != nil {
			return
		}
		c := ContentOf(e)
		c.XHTML = nil
		m := New(NSComponent, "message")
		c.AddTo(m, "")
		StanzaID(e, "r@m")
		MUCUserOf(e)
		DelayOf(e)
		back, err := read(m.String())
		if err != nil {
			if errors.Is(err, ErrTooLarge) {
				return
			}
			t.Fatal(err)
		}
		if got := ContentOf(back); got.Body != c.Body || got.Replace != c.Replace || got.Retract != c.Retract || got.ReactTo != c.ReactTo {
			t.Fatalf("got %+v, want %+v", got, c)
		}
	})
}

// BenchmarkStanza reads and writes a typical groupchat message.
func BenchmarkStanza(b *testing.B) {
	const m = `<message from="room@conference.a.test/bob" to="alice_hs.test@bridge.a.test/gjallar" type="groupchat" id="b1946ac92492d234"><body>Hello, world &amp; all</body><origin-id xmlns="urn:xmpp:sid:0" id="b1946ac92492d234"/><occupant-id xmlns="urn:xmpp:occupant-id:0" id="5c0d54e6"/><stanza-id xmlns="urn:xmpp:sid:0" by="room@conference.a.test" id="1722"/></message>`
	r := NewReader(io.MultiReader(strings.NewReader(head), &repeat{s: m}))
	if _, err := r.Head(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(m)))
	b.ReportAllocs()
	for b.Loop() {
		e, err := r.Next()
		if err != nil {
			b.Fatal(err)
		}
		if ContentOf(e).Body == "" || len(e.String()) < 100 {
			b.Fatal("empty")
		}
	}
}

// repeat is s for ever.
type repeat struct {
	s  string
	at int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.s[r.at:])
	r.at = (r.at + n) % len(r.s)
	return n, nil
}
