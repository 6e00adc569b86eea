package puppeting

import (
	"testing"

	"github.com/gjallar-im/gjallar/backends"
)

func TestAMessageCrossesEachWay(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")

	alice.Say(room, "hello")
	cmd := irc.hears(t, "hello")
	if cmd.Chat != (backends.ChatKey{Chat: "#go"}) || cmd.Sender.Account != "@alice:test" || cmd.Sender.Username != "alice" || cmd.Attempt != 1 || cmd.MaybeSent {
		t.Errorf("command %+v", cmd)
	}

	r := irc.says(t, "#go", "Bob", "hi there")
	e := w.seeBody(alice, room, "hi there")
	if e.Sender != "@irc__bob:test" || string(r.ID) != e.ID || e.Content["msgtype"] != "m.text" {
		t.Errorf("event %+v, receipt %+v", e, r)
	}
	profile := alice.OK("GET", "/_matrix/client/v3/profile/"+e.Sender, nil)
	if profile.Str("displayname") != "BOB" {
		t.Errorf("profile %v", profile)
	}
}
