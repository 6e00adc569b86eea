package xmpp

import (
	"testing"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

func TestMUCBothWays(t *testing.T) {
	withServers(t, func(t *testing.T, s *server) {
		bob := s.login(t, "bob")
		host := backendtest.NewHost(t)
		n := s.open(t, host)
		addr := "room@" + s.muc
		chat := backends.ChatKey{Chat: backends.ChatID(addr)}
		bob.join(addr, "bob")

		info, err := n.Join(t.Context(), backends.JoinRequest{Chat: chat})
		if err != nil {
			t.Fatal(err)
		}
		if info.Chat != chat {
			t.Errorf("joined %+v", info)
		}
		_, members := backendtest.NextBody[*backends.Members](host, nil)
		if len(members.Members) != 1 || members.Members[0].User.Name != "bob" {
			t.Errorf("members %+v", members)
		}

		bob.say(addr, "groupchat", "hi *there*", "bob-message-1")
		ev, _ := backendtest.NextBody(host, messageEvent("hi there"))
		if ev.Sender.Name != "bob" || ev.Chat != chat || ev.ID == "" {
			t.Errorf("event %+v", ev)
		}

		cmd := &backends.Command{Chat: chat, Sender: alice, Body: text("hello")}
		id := deliver(t, n, cmd)
		got := bob.message("hello")
		if got.Attr("from") != addr+"/Alice A" {
			t.Errorf("bob sees %s", got)
		}
		if sid := xep.StanzaID(got, addr); sid != "" && sid != string(id) {
			t.Errorf("the result says %q, bob sees %s", id, got)
		}
	})
}
