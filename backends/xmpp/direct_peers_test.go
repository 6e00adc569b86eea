package xmpp

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

func TestDirectBothWays(t *testing.T) {
	withServers(t, func(t *testing.T, s *server) {
		host := backendtest.NewHost(t)
		host.FakeRooms().AddAccount(alice, "pw")
		n := s.open(t, host)
		bob := s.login(t, "bob")
		address := "alice_hs.test@" + s.component
		chat := backends.ChatKey{Chat: backends.ChatID("bob@" + s.domain), Account: alice.Account}

		// Bob writes first, to an address that nobody has used yet.
		bob.raw("<message to='%s' type='chat' id='bob-message-1'><body>hi</body><request xmlns='urn:xmpp:receipts'/></message>", address)
		ev, _ := backendtest.NextBody(host, messageEvent("hi"))
		if ev.Chat != chat || ev.Sender.ID != backends.UserID("bob@"+s.domain) || ev.Sender.Username != "bob" {
			t.Errorf("event %+v", ev)
		}
		bob.stanza("receipt", func(e *xep.Element) bool {
			return e.Child(xep.NSReceipts, "received").Attr("id") == "bob-message-1"
		})

		id := deliver(t, n, &backends.Command{Chat: chat, Sender: alice, Time: time.Now(), Body: text("hello")})
		got := bob.message("hello")
		if got.Attr("from") != address+"/gjallar" || got.Attr("id") != string(id) {
			t.Errorf("bob sees %s", got)
		}
		deliver(t, n, &backends.Command{Chat: chat, Sender: alice, Time: time.Now(), Body: &backends.Edit{Target: id, New: *text("hello!")}})
		if c := xep.ContentOf(bob.message("hello!")); c.Replace != string(id) {
			t.Errorf("edit %+v", c)
		}
		bob.raw("<message to='%s' type='chat' id='bob-message-2'><reactions xmlns='urn:xmpp:reactions:0' id='%s'><reaction>👍</reaction></reactions></message>", address, id)
		if _, r := backendtest.NextBody[*backends.Reaction](host, nil); r.Target != id || r.Key != "👍" {
			t.Errorf("reaction %+v", r)
		}

		bob.raw("<presence to='%s' type='subscribe'/>", address)
		bob.stanza("presence", func(e *xep.Element) bool {
			return e.Name.Local == "presence" && e.Attr("type") == "" && e.Attr("from") == address+"/gjallar"
		})
		bob.raw("<iq type='get' id='v1' to='%s'><vCard xmlns='vcard-temp'/></iq>", address)
		card := bob.stanza("vcard", func(e *xep.Element) bool { return e.Attr("id") == "v1" })
		if card.Child(xep.NSVCard, "vCard").Child(xep.NSVCard, "FN").Text() != "Alice A" {
			t.Errorf("vcard %s", card)
		}
	})
}

func TestDirectBounces(t *testing.T) {
	withServers(t, func(t *testing.T, s *server) {
		host := backendtest.NewHost(t)
		n := s.open(t, host)
		nobody := backends.ChatKey{Chat: backends.ChatID("nobody@" + s.domain), Account: alice.Account}
		if r := run(t, n, &backends.Command{Chat: nobody, Sender: alice, Body: text("hello")}); r.Outcome != backends.Rejected || r.Reason == "" {
			t.Errorf("to nobody: %+v", r)
		}
		if r := run(t, n, &backends.Command{Chat: nobody, Sender: alice, MaybeSent: true, Body: text("hello")}); r.Outcome != backends.Uncertain {
			t.Errorf("what may have been sent: %+v", r)
		}
		bob := s.login(t, "bob")
		bob.say("nobody_hs.test@"+s.component, "chat", "hello?", "bob-message-1")
		e := bob.stanza("error", func(e *xep.Element) bool { return e.Attr("type") == "error" })
		if e.Attr("id") != "bob-message-1" || xep.ErrorOf(e).Condition != "item-not-found" {
			t.Errorf("error %s", e)
		}
	})
}

func TestWrongSecretIsToldOf(t *testing.T) {
	withServers(t, func(t *testing.T, s *server) {
		host := backendtest.NewHost(t)
		n, err := New().Open(t.Context(), fmt.Appendf(nil, `{"server": %q, "domain": %q, "secret": "wrong-one"}`, s.componentAddr, s.component), host)
		if err != nil {
			t.Fatal(err)
		}
		defer closeNetwork(t, n)
		if state := host.WaitPhase(backends.Failed); !strings.Contains(state.Reason, "refuses") {
			t.Errorf("reason %q", state.Reason)
		}
		if strings.Contains(host.Logs(), "wrong-one") {
			t.Error("the secret is logged")
		}
	})
}
