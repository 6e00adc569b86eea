package xmpp

import (
	"slices"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

var lobby = backends.RoomName{Alias: "lobby"}

// withLobby gives the host a room with Alice in it and a message of the past.
func withLobby(t *testing.T) *backendtest.Host {
	host := backendtest.NewHost(t)
	host.FakeRooms().AddRoom(backends.RoomSummary{Room: lobby, Name: "The lobby", Topic: "Welcome"},
		backends.Member{Action: backends.Joined, User: alice, Role: backends.Owner})
	host.FakeRooms().AddHistory(lobby, backends.Command{
		ID: "$old", Sender: alice, Time: time.Now().Add(-time.Hour), Body: text("in the past"),
	})
	return host
}

// sendBack plays the host's part for a message of a gateway user.
func sendBack(t *testing.T, n backends.Network, ev *backends.Event) {
	t.Helper()
	deliver(t, n, &backends.Command{ID: "$" + string(ev.ID), Chat: ev.Chat, Sender: ev.Sender, Time: ev.Time, Echo: ev.ID, Body: ev.Body})
}

func TestRoomBothWays(t *testing.T) {
	withServers(t, func(t *testing.T, s *server) {
		host := withLobby(t)
		n := s.open(t, host)
		bob := s.login(t, "bob")
		addr := "lobby@" + s.component
		chat := backends.ChatKey{Chat: backends.ChatID(addr)}

		joined := bob.join(addr, "bob")
		if joined.Subject != "Welcome" || !slices.Contains(joined.Occupants, "Alice A") || !slices.Equal(joined.History, []string{"in the past"}) {
			t.Errorf("joined %+v", joined)
		}

		bob.say(addr, "groupchat", "hi *there*", "bob-1")
		ev, _ := backendtest.NextBody(host, messageEvent("hi there"))
		if ev.Sender.ID != backends.UserID("bob@"+s.domain) || ev.Chat != chat {
			t.Errorf("event %+v", ev)
		}
		sendBack(t, n, ev)
		got := bob.message("hi *there*")
		if got.Attr("id") != "bob-1" || got.Attr("from") != addr+"/bob" || xep.StanzaID(got, addr) != string(ev.ID) {
			t.Errorf("reflected %s", got)
		}

		id := deliver(t, n, &backends.Command{ID: "$1", Chat: chat, Sender: alice, Body: text("hello")})
		if got := bob.message("hello"); got.Attr("from") != addr+"/Alice A" || xep.StanzaID(got, addr) != string(id) {
			t.Errorf("bob sees %s", got)
		}

		bob.do(map[string]any{"do": "ping", "room": addr, "nick": "bob"})
		bob.wait("answer to the self-ping", func(e clientEvent) bool { return e.Event == "pong" })

		bob.raw("<presence to='%s/bob' type='unavailable'/>", addr)
		bob.stanza("own leave", func(e *xep.Element) bool {
			return e.Name.Local == "presence" && e.Attr("type") == "unavailable" && xep.MUCUserOf(e).Has(xep.StatusSelf)
		})
		bob.do(map[string]any{"do": "ping", "room": addr, "nick": "bob"})
		if e := bob.wait("answer to the self-ping", func(e clientEvent) bool { return e.Event == "pong" || e.Event == "failed" }); e.Error != "not-acceptable" {
			t.Errorf("after leaving the self-ping says %+v", e)
		}
	})
}

// lobbyTest is a room of the host with Bob in it.
type lobbyTest struct {
	*testing.T
	s    *server
	bob  *client
	host *backendtest.Host
	n    backends.Network
	addr string
	chat backends.ChatKey
}

func withBobInLobby(t *testing.T, test func(t *lobbyTest)) {
	withServers(t, inLobby(test))
}

func inLobby(test func(t *lobbyTest)) func(*testing.T, *server) {
	return func(t *testing.T, s *server) {
		l := &lobbyTest{T: t, s: s, host: withLobby(t), addr: "lobby@" + s.component}
		l.chat.Chat = backends.ChatID(l.addr)
		l.n = s.open(t, l.host)
		l.bob = s.login(t, "bob")
		l.bob.join(l.addr, "bob")
		test(l)
	}
}

func TestRoomFeatures(t *testing.T) {
	withBobInLobby(t, func(t *lobbyTest) {
		say := func(id string, body backends.Body) backends.MessageID {
			return deliver(t.T, t.n, &backends.Command{ID: id, Chat: t.chat, Sender: alice, Time: time.Now(), Body: body})
		}
		send := func(id, payload string) {
			t.bob.raw("<message to='%s' type='groupchat' id='%s'>%s</message>", t.addr, id, payload)
		}
		hello := say("$1", text("helo"))
		t.bob.message("helo")
		say("$2", &backends.Edit{Target: hello, New: *text("hello")})
		if c := xep.ContentOf(t.bob.message("hello")); c.Replace != string(hello) {
			t.Errorf("edit %+v", c)
		}
		send("bob-1", "<body>Alice A: hi</body><reply xmlns='urn:xmpp:reply:0' id='"+string(hello)+"'/>")
		said, msg := backendtest.NextBody(t.host, messageEvent("Alice A: hi"))
		if msg.ReplyTo == nil || msg.ReplyTo.ID != hello || msg.Text[0].User != string(alice.Account) {
			t.Errorf("message %+v", msg)
		}
		sendBack(t.T, t.n, said)
		t.bob.message("Alice A: hi")

		send("bob-2", "<body>hi!</body><replace xmlns='urn:xmpp:message-correct:0' id='bob-1'/>")
		ev, edit := backendtest.NextBody[*backends.Edit](t.host, nil)
		if edit.Target != said.ID {
			t.Errorf("edit %+v of %s", edit, said.ID)
		}
		sendBack(t.T, t.n, ev)
		if e := t.bob.message("hi!"); e.Attr("id") != "bob-2" || xep.ContentOf(e).Replace != "bob-1" {
			t.Errorf("reflected %s", e)
		}

		send("bob-3", "<reactions xmlns='urn:xmpp:reactions:0' id='"+string(hello)+"'><reaction>👍</reaction><reaction>❤</reaction></reactions>")
		for range 2 {
			ev, r := backendtest.NextBody[*backends.Reaction](t.host, nil)
			if r.Target != hello || r.Removed {
				t.Errorf("reaction %+v", r)
			}
			sendBack(t.T, t.n, ev)
		}
		t.bob.stanza("reactions", func(e *xep.Element) bool { return e.Attr("id") == "bob-3" })
		say("$3", &backends.Reaction{Target: said.ID, Key: "🎉"})
		e := t.bob.stanza("reaction", func(e *xep.Element) bool { return xep.ContentOf(e).ReactTo == string(said.ID) })
		if e.Attr("from") != t.addr+"/Alice A" {
			t.Errorf("reaction %s", e)
		}
		send("bob-4", "<retract xmlns='urn:xmpp:message-retract:1' id='"+string(said.ID)+"'/>")
		ev, removal := backendtest.NextBody[*backends.Removal](t.host, nil)
		if removal.Target != said.ID {
			t.Errorf("removal %+v", removal)
		}
		sendBack(t.T, t.n, ev)
		t.bob.stanza("retraction", func(e *xep.Element) bool { return e.Attr("id") == "bob-4" && e.Attr("from") == t.addr+"/bob" })

		t.bob.raw("<iq type='set' id='mod1' to='%s'><moderate xmlns='%s' id='%s'><retract xmlns='%s'/><reason>spam</reason></moderate></iq>", t.addr, xep.NSModerate, hello, xep.NSRetract)
		if _, removal := backendtest.NextBody[*backends.Removal](t.host, nil); removal.Target != hello || !removal.Moderated || removal.Reason != "spam" {
			t.Errorf("moderation %+v", removal)
		}
		t.bob.stanza("answer", func(e *xep.Element) bool { return e.Attr("id") == "mod1" && e.Attr("type") == "result" })
		say("$4", &backends.Removal{Target: said.ID, Moderated: true, Reason: "spam"})
		e = t.bob.stanza("moderation", func(e *xep.Element) bool { return xep.ContentOf(e).Retract == string(said.ID) })
		if c := xep.ContentOf(e); !c.Moderated || c.Reason != "spam" || e.Attr("from") != t.addr {
			t.Errorf("moderation %s", e)
		}
		name := "The hall"
		run(t.T, t.n, &backends.Command{Chat: t.chat, Sender: alice, Body: &backends.ChatInfo{Name: &name}})
		t.bob.stanza("change of the room", func(e *xep.Element) bool { return xep.MUCUserOf(e).Has("104") })
		run(t.T, t.n, &backends.Command{Chat: t.chat, Sender: alice, Body: &backends.Typing{On: true}})
		t.bob.stanza("typing", func(e *xep.Element) bool { return xep.ContentOf(e).State == "composing" })
		t.host.Answer(func(*backends.Event) backends.Receipt {
			return backends.Receipt{Err: &backends.Refusal{Code: backends.RefusedForbidden, Message: "You are muted."}}
		})
		send("bob-5", "<body>psst</body>")
		e = t.bob.stanza("error", func(e *xep.Element) bool { return e.Attr("type") == "error" })
		if err := xep.ErrorOf(e); e.Attr("id") != "bob-5" || err.Condition != "forbidden" || err.Text != "You are muted." {
			t.Errorf("error %s", e)
		}
	})
}

func TestRoomMembership(t *testing.T) {
	withBobInLobby(t, func(t *lobbyTest) {
		member := func(action backends.Action, u backends.User) {
			run(t.T, t.n, &backends.Command{Chat: t.chat, Sender: alice, Body: &backends.Member{Action: action, User: u, Reason: "because"}})
		}
		dave := backends.User{Account: "@dave:hs.test", Name: "bob", Username: "dave", Domain: "hs.test"}
		member(backends.Joined, dave)
		t.bob.stanza("dave, under another nick", func(e *xep.Element) bool { return e.Name.Local == "presence" && e.Attr("from") == t.addr+"/bob_" })

		carol := t.s.login(t.T, "carol")
		if e := carol.tryJoin(t.addr, "bob"); e == nil || e.Condition != "conflict" {
			t.Errorf("with Bob's nick: %+v", e)
		}
		if e := carol.join(t.addr, "carol"); !slices.Contains(e.Occupants, "bob") || !slices.Contains(e.Occupants, "bob_") {
			t.Errorf("carol sees %v", e.Occupants)
		}
		t.bob.stanza("carol", func(e *xep.Element) bool { return e.Attr("from") == t.addr+"/carol" })

		carol.raw("<presence to='%s/caroline'/>", t.addr)
		old := t.bob.stanza("nick change", func(e *xep.Element) bool { return xep.MUCUserOf(e).Has(xep.StatusNickChanged) })
		if xep.MUCUserOf(old).Nick != "caroline" || old.Attr("from") != t.addr+"/carol" {
			t.Errorf("nick change %s", old)
		}
		t.bob.stanza("new nick", func(e *xep.Element) bool { return e.Attr("from") == t.addr+"/caroline" && e.Attr("type") == "" })
		ev, p := backendtest.NextBody[*backends.Profile](t.host, nil)
		if p.User.Name != "caroline" || ev.Sender.ID != backends.UserID("carol@"+t.s.domain) {
			t.Errorf("profile %+v", p)
		}

		carol.say(t.addr+"/bob", "chat", "between us", "carol-1")
		if e := t.bob.message("between us"); e.Attr("from") != t.addr+"/caroline" {
			t.Errorf("private message %s", e)
		}
		t.bob.say(t.addr+"/Alice A", "chat", "a word", "bob-private-1")
		private, _ := backendtest.NextBody(t.host, messageEvent("a word"))
		if private.Chat.Account != alice.Account || private.Chat.Chat != backends.ChatID("bob@"+t.s.domain) {
			t.Errorf("private message %+v", private)
		}

		member(backends.Kicked, ev.Sender)
		e := carol.stanza("kick", func(e *xep.Element) bool {
			return e.Attr("type") == "unavailable" && xep.MUCUserOf(e).Has(xep.StatusKicked)
		})
		if u := xep.MUCUserOf(e); !u.Has(xep.StatusSelf) || u.Actor != "Alice A" || u.Reason != "because" {
			t.Errorf("kick %s", e)
		}
		t.bob.stanza("carol is gone", func(e *xep.Element) bool {
			return e.Attr("from") == t.addr+"/caroline" && e.Attr("type") == "unavailable"
		})
		member(backends.Left, dave)
		t.bob.stanza("dave is gone", func(e *xep.Element) bool { return e.Attr("from") == t.addr+"/bob_" && e.Attr("type") == "unavailable" })
	})
}

func TestRoomsAreFound(t *testing.T) {
	withBobInLobby(t, func(t *lobbyTest) {
		t.host.FakeRooms().AddRoom(backends.RoomSummary{Room: backends.RoomName{Alias: "far", Server: "other.test"}, Name: "Far"})
		t.bob.raw("<iq type='get' id='i1' to='%s'><query xmlns='%s'/></iq>", t.s.component, xep.NSDiscoItems)
		items := t.bob.stanza("list", func(e *xep.Element) bool { return e.Attr("id") == "i1" }).Child(xep.NSDiscoItems, "query").Children()
		var found []string
		for _, i := range items {
			found = append(found, i.Attr("jid"))
		}
		if want := []string{"far%other.test@" + t.s.component, t.addr}; !slices.Equal(found, want) {
			t.Errorf("rooms %v, want %v", found, want)
		}
		t.bob.raw("<iq type='get' id='i2' to='%s'><query xmlns='%s'/></iq>", t.addr, xep.NSDiscoInfo)
		info := t.bob.stanza("info", func(e *xep.Element) bool { return e.Attr("id") == "i2" })
		if q := info.Child(xep.NSDiscoInfo, "query"); q.Child(xep.NSDiscoInfo, "identity").Attr("name") != "The lobby" {
			t.Errorf("info %s", info)
		}
		for _, form := range []string{"far%other.test", "#far#other.test"} {
			t.bob.join(form+"@"+t.s.component, "bob")
		}
		if e := t.bob.tryJoin("none@"+t.s.component, "bob"); e == nil || e.Condition != "item-not-found" {
			t.Errorf("a room that is not there: %+v", e)
		}
	})
}

// A restart of our process goes unnoticed by those in the room.
func TestRoomSurvivesOurRestart(t *testing.T) {
	withBobInLobby(t, func(t *lobbyTest) {
		closeNetwork(t.T, t.n)
		t.n = t.s.open(t.T, t.host)
		deliver(t.T, t.n, &backends.Command{ID: "$1", Chat: t.chat, Sender: alice, Body: text("are you there?")})
		t.bob.message("are you there?")
		t.bob.say(t.addr, "groupchat", "I am", "bob-1")
		ev, _ := backendtest.NextBody(t.host, messageEvent("I am"))
		sendBack(t.T, t.n, ev)
		t.bob.message("I am")
	})
}

// After a restart of the server its users are gone from the room.
func TestRoomHasNoGhostsAfterServerRestart(t *testing.T) {
	withOwnServers(t, inLobby(func(t *lobbyTest) {
		t.s.stop()
		t.host.WaitPhase(backends.Disconnected)
		if err := t.s.restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.host.WaitPhase(backends.Ready)
		for deadline := time.Now().Add(backendtest.Patience); len(t.host.FakeRooms().Members(lobby)) > 1; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("still there: %+v", t.host.FakeRooms().Members(lobby))
			}
		}
	}))
}

func TestRoomTakesTwoDevices(t *testing.T) {
	withBobInLobby(t, func(t *lobbyTest) {
		phone := t.s.connect(t.T, "bob", "phone")
		phone.join(t.addr, "bob")
		deliver(t.T, t.n, &backends.Command{ID: "$1", Chat: t.chat, Sender: alice, Body: text("hello both")})
		t.bob.message("hello both")
		phone.message("hello both")
		phone.raw("<presence to='%s/bob' type='unavailable'/>", t.addr)
		phone.stanza("own leave", func(e *xep.Element) bool {
			return e.Attr("type") == "unavailable" && xep.MUCUserOf(e).Has(xep.StatusSelf)
		})
		deliver(t.T, t.n, &backends.Command{ID: "$2", Chat: t.chat, Sender: alice, Body: text("hello one")})
		t.bob.message("hello one")
		if n := len(t.host.FakeRooms().Members(lobby)); n != 2 {
			t.Errorf("%d members", n)
		}
	})
}
