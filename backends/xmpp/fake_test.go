package xmpp

import (
	"bytes"
	"context"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"mellium.im/xmpp/jid"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/xmpp/stream/streamtest"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// fake is a network at a server that the test itself plays.
type fake struct {
	*testing.T
	n      *network
	host   *backendtest.Host
	server *streamtest.Server
	conn   *streamtest.Conn
}

const gateway = "gw.test"

// withFake runs a test in a bubble. Wrap may replace the host.
func withFake(t *testing.T, wrap func(*backendtest.Host) backends.Host, test func(*fake)) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{T: t, host: backendtest.NewHost(t), server: streamtest.New(t)}
		f.host.Store().Put(t.Context(), "key", []byte(strings.Repeat("k", 32)))
		var host backends.Host = f.host
		if wrap != nil {
			host = wrap(f.host)
		}
		c, domain, err := parseConfig([]byte(`{"server": "x.test:1", "domain": "gw.test", "secret": "` + streamtest.Secret + `"}`))
		if err != nil {
			t.Fatal(err)
		}
		if f.n, err = open(t.Context(), c, domain, host, f.server.Dial); err != nil {
			t.Fatal(err)
		}
		defer func() {
			f.conn.Close()
			ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
			defer cancel()
			f.n.Close(ctx)
		}()
		f.conn = f.server.Accept()
		f.host.WaitPhase(backends.Ready)
		test(f)
	})
}

// recv lets the network receive stanzas.
func (f *fake) recv(stanzas ...string) {
	f.Helper()
	for _, s := range stanzas {
		f.conn.Write("%s", s)
	}
}

// noise is what differs from run to run or says nothing to the test.
var noise = regexp.MustCompile(`<occupant-id [^>]*/>|<origin-id [^>]*/>|<store xmlns="urn:xmpp:hints"/>`)

// want reads the next stanzas of the network. In them "ANY" stands for anything.
func (f *fake) want(stanzas ...string) {
	f.Helper()
	for _, want := range stanzas {
		got := noise.ReplaceAllString(f.conn.Read().String(), "")
		pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(want), "ANY", `[^"<]*`) + "$"
		if !regexp.MustCompile(pattern).MatchString(got) {
			f.Errorf("got\n\t%s\nwant\n\t%s", got, want)
		}
	}
}

// silent checks that the network writes nothing. It ends the connection.
func (f *fake) silent() {
	f.Helper()
	synctest.Wait()
	f.conn.SetReadDeadline(time.Now().Add(time.Second))
	if e, err := f.conn.Next(); err == nil {
		f.Errorf("it writes %s", e)
	}
}

// start sends a command whose result comes later.
func (f *fake) start(cmd *backends.Command) chan backends.Result {
	f.Helper()
	results := make(chan backends.Result, 1)
	if err := f.n.Send(f.Context(), cmd, func(r backends.Result) { results <- r }); err != nil {
		f.Fatal(err)
	}
	return results
}

func TestConfig(t *testing.T) {
	tests := []struct{ name, config, want string }{
		{"good", `{"server": "127.0.0.1:5347", "domain": "gw.test", "secret": "x"}`, ""},
		{"all of it", `{"server": "[::1]:5347", "domain": "gw.test", "secret": "x", "muc_nick": "bridge", "limits": {"rate": 1.5, "burst": 3, "history": 0, "occupants": 5}}`, ""},
		{"no port", `{"server": "127.0.0.1", "domain": "gw.test", "secret": "x"}`, "not host:port"},
		{"no domain", `{"server": "a:1", "domain": "", "secret": "x"}`, "domain"},
		{"an address as domain", `{"server": "a:1", "domain": "a@b/c", "secret": "x"}`, "domain"},
		{"no secret", `{"server": "a:1", "domain": "gw.test"}`, "secret"},
		{"unknown key", `{"server": "a:1", "domain": "gw.test", "secret": "x", "sekret": "y"}`, "sekret"},
		{"bad limits", `{"server": "a:1", "domain": "gw.test", "secret": "x", "limits": {"rate": -1}}`, "limits"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := parseConfig([]byte(tt.config))
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	n := &network{domain: jid.MustParse(gateway)}
	for local, want := range map[string]backends.RoomName{
		"go":               {Alias: "go"},
		"go%other.test":    {Alias: "go", Server: "other.test"},
		"#go#other.test":   {Alias: "go", Server: "other.test"},
		"#go":              {Alias: "go"},
		`\47o%h\3a8448`:    {Alias: "Go", Server: "h:8448"},
		"a#b":              {Alias: "a#b"},
		"50%off%shop.test": {Alias: "50%off", Server: "shop.test"},
	} {
		if got, ok := roomOf(local); !ok || got != want {
			t.Errorf("%s is %+v", local, got)
		}
	}
	for _, r := range []backends.RoomName{{Alias: "go"}, {Alias: "Go Home", Server: "h.test:8448"}, {Alias: "a@b/c'd\\41"}} {
		addr, err := n.roomJID(r)
		if err != nil {
			t.Fatal(err)
		}
		back, err := jid.Parse(addr.String())
		if got, ok := roomOf(back.Localpart()); err != nil || !ok || got != r {
			t.Errorf("%+v became %s and %+v", r, addr, got)
		}
	}
	for _, u := range []backends.User{{Username: "alice", Domain: "hs.test"}, {Username: "a_b=c/d", Domain: "hs.test:8448"}, {Username: "Alice", Domain: "hs.test"}} {
		j, err := jid.New(ghostLocal(u), gateway, "")
		if err != nil {
			t.Fatal(err)
		}
		if name, domain, ok := splitGhost(j.Localpart()); !ok || name != u.Username || domain != u.Domain {
			t.Errorf("%+v became %s and %s, %s", u, j, name, domain)
		}
	}
}

func TestStanzaIDsProveThemselves(t *testing.T) {
	n, other := &network{key: []byte("k")}, &network{key: []byte("l")}
	id := n.stanzaID("$1", 0)
	if id != n.stanzaID("$1", 0) || id == n.stanzaID("$1", 1) || id == n.stanzaID("$2", 0) {
		t.Error("IDs are not those of their commands")
	}
	if !n.ourID(id) || other.ourID(id) || n.ourID("b"+id[1:]) || n.ourID("") {
		t.Error("IDs are taken for ours wrongly")
	}
}

func TestOtherDomainsAreNotAnswered(t *testing.T) {
	withFake(t, nil, func(f *fake) {
		f.recv(
			"<iq from='a@b.test/c' to='other.test' type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>",
			"<iq to='gw.test' type='get' id='2'><ping xmlns='urn:xmpp:ping'/></iq>",
			"<iq from='@@' to='gw.test' type='get' id='3'><ping xmlns='urn:xmpp:ping'/></iq>",
			"<iq from='a@b.test/c' to='gw.test' type='result' id='4'/>",
			"<iq from='a@b.test/c' to='gw.test' type='get' id='5'><ping xmlns='urn:xmpp:ping'/></iq>")
		f.want(`<iq from="gw.test" to="a@b.test/c" type="result" id="5"/>`)
	})
}

// FuzzStanzas throws stanzas at a network with a MUC and a room in use. It must
// live on to answer a ping.
func FuzzStanzas(f *testing.F) {
	for _, s := range []string{
		"<message from='room@muc.test/bob' to='gw.test/gjallar' type='groupchat' id='1'><body>x</body></message>",
		"<presence from='room@muc.test/bob' to='gw.test/gjallar'><x xmlns='http://jabber.org/protocol/muc#user'><item affiliation='owner' role='moderator' jid='b@c/d'/><status code='110'/></x></presence>",
		"<presence from='room@muc.test/gjallar' to='gw.test/gjallar' type='unavailable'><x xmlns='http://jabber.org/protocol/muc#user'><item/><status code='307'/><status code='110'/></x></presence>",
		"<presence from='bob@b.test/x' to='lobby@gw.test/bob'><x xmlns='http://jabber.org/protocol/muc'><history maxstanzas='5'/></x></presence>",
		"<presence from='bob@b.test/x' to='lobby@gw.test/other'/>",
		"<message from='bob@b.test/x' to='lobby@gw.test' type='groupchat' id='2'><subject>s</subject></message>",
		"<message from='bob@b.test/x' to='lobby@gw.test' type='groupchat' id='2'><reactions xmlns='urn:xmpp:reactions:0' id='2'><reaction>x</reaction></reactions></message>",
		"<message from='bob@b.test/x' to='alice_hs.test@gw.test' type='chat'><body>x</body><request xmlns='urn:xmpp:receipts'/></message>",
		"<iq from='bob@b.test/x' to='lobby@gw.test' type='set' id='3'><query xmlns='http://jabber.org/protocol/muc#admin'><item nick='bob' role='none'/></query></iq>",
		"<iq from='bob@b.test/x' to='gw.test' type='get' id='4'><query xmlns='http://jabber.org/protocol/disco#items'><set xmlns='http://jabber.org/protocol/rsm'><max>1</max><after>y</after></set></query></iq>",
		"<message from='bob@b.test/x' to='lobby@gw.test' type='error'><error type='cancel'><gone xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></message>",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := xep.NewReader(strings.NewReader("<stream:stream xmlns='" + xep.NSComponent + "' xmlns:stream='" + xep.NSStream + "'>" + s))
		if _, err := r.Head(); err != nil {
			return
		}
		e, err := r.Next()
		if err != nil || !xep.IsStanza(e) {
			return
		}
		withFake(t, nil, func(f *fake) {
			f.host.FakeRooms().AddAccount(alice, "pw")
			f.host.FakeRooms().AddRoom(backends.RoomSummary{Room: lobby, Name: "x"})
			f.enterLobby("bob@b.test/x", "bob")
			f.joinMUC()
			f.recv(e.String(), "<iq from='other@b.test/c' to='gw.test' type='get' id='the end'><ping xmlns='urn:xmpp:ping'/></iq>")
			for range 100 {
				if got := f.conn.Read(); got.Attr("id") == "the end" {
					return
				}
			}
		})
	})
}

func mustJID(s string) jid.JID { return jid.MustParse(s) }

func TestSchemaAgreesWithConfig(t *testing.T) {
	info := New().Describe()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(info.Schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("config.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("config.json")
	if err != nil {
		t.Fatal(err)
	}
	for config, valid := range map[string]bool{
		`{"server": "a:1", "domain": "gw.test", "secret": "x"}`: true,
		`{"server": "a:1", "domain": "gw.test", "secret": "x", "muc_nick": "n", "limits": {"rate": 0.5, "burst": 1, "history": 0, "occupants": 1}}`: true,
		`{"server": "a:1", "domain": "gw.test", "secret": ""}`:                         false,
		`{"server": "a:1", "domain": "gw.test", "secret": "x", "other": 1}`:            false,
		`{"server": "a:1", "domain": "gw.test", "secret": "x", "limits": {"rate": 0}}`: false,
		`{"domain": "gw.test", "secret": "x", "server": 1}`:                            false,
	} {
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(config))
		if err != nil {
			t.Fatal(err)
		}
		_, _, parseErr := parseConfig([]byte(config))
		if err := schema.Validate(value); (err == nil) != valid || (parseErr == nil) != valid {
			t.Errorf("%s: the schema says %v, Open says %v", config, err, parseErr)
		}
	}
	if !strings.Contains(string(info.Schema), `"x-secret": true`) {
		t.Error("nothing is secret")
	}
}
