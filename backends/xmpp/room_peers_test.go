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
