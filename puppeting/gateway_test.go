package puppeting

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/homeserver/hstest"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// enter brings a guest into a room by its alias.
func (n *fakeNet) enter(tb testing.TB, chat, alias string, u backends.User, history int) *backends.RoomView {
	tb.Helper()
	v, err := n.currentHost().Rooms().Enter(tb.Context(), backends.EnterRequest{
		Chat: backends.ChatID(chat), Room: backends.RoomName{Alias: alias}, User: u, Create: true, History: history,
	})
	if err != nil {
		tb.Fatalf("enter %s: %v", alias, err)
	}
	return v
}

func (n *fakeNet) exit(tb testing.TB, chat string, u backends.User) {
	tb.Helper()
	if err := n.currentHost().Rooms().Exit(tb.Context(), backends.ChatID(chat), u, "bye"); err != nil {
		tb.Fatalf("exit %s: %v", chat, err)
	}
}

func guest(id string) backends.User { return backends.User{ID: backends.UserID(id), Name: id} }

func code(err error) backends.RefusalCode {
	r, _ := errors.AsType[*backends.Refusal](err)
	if r == nil {
		return ""
	}
	return r.Code
}

func TestTwoGatewaysAndANetworkInOneRoom(t *testing.T) { both(t, testTwoGateways) }

func testTwoGateways(t *testing.T, newWorld func(...*fakeNet) *world) {
	ircd, muc, irc := newGatewayFake("ircd"), newGatewayFake("muc"), newFake("irc", everything)
	w := newWorld(ircd, muc, irc)
	alice := w.hs.Register("alice")
	room := alice.CreateRoom(map[string]any{"preset": "public_chat", "room_alias_name": "tea", "name": "Tea", "topic": "no milk"})
	link(t, w, alice, room, "irc", "#tea")
	alice.Say(room, "before")
	irc.hears(t, "before")

	v := ircd.enter(t, "#tea", "tea", guest("ivy"), 10)
	var names []string
	for _, m := range v.Members {
		names = append(names, string(m.User.Account))
	}
	slices.Sort(names)
	if want := []string{"@alice:test", "@gjallar:test", "@ircd_ivy:test"}; !slices.Equal(names, want) {
		t.Errorf("members %q, want %q", names, want)
	}
	if *v.Info.Name != "Tea" || *v.Info.Topic != "no milk" || v.Role != backends.Participant || v.TopicBy.Account != "@alice:test" || !*v.Info.Public {
		t.Errorf("view %+v", v)
	}
	i := slices.IndexFunc(v.History, func(c backends.Command) bool { return plainOf(&c) == "before" })
	if i < 0 || v.History[i].Sender.Account != "@alice:test" || v.History[i].Chat.Chat != "#tea" {
		t.Errorf("history %s", show(v.History))
	}
	for _, m := range v.Members {
		if m.User.Account == "@alice:test" && m.Role != backends.Owner || m.User.Account == "@ircd_ivy:test" && (m.User.ID != "ivy" || m.User.Name != "ivy") {
			t.Errorf("member %+v", m)
		}
	}
	muc.enter(t, "tea@muc", "tea", guest("max"), 0)

	// From each to all the others, once, in one order.
	all := []*fakeNet{ircd, muc, irc}
	ircd.saysAs(t, "#tea", "ivy", "from ivy", "ivy-1")
	muc.saysAs(t, "tea@muc", "max", "from max", "max-1")
	irc.says(t, "#tea", "bob", "from bob")
	alice.Say(room, "from alice")
	for _, n := range all {
		n.hears(t, "from alice")
	}
	w.drained()
	for _, tt := range []struct {
		n    *fakeNet
		want []string
		echo map[string]backends.MessageID
	}{
		{ircd, []string{"from ivy", "from max", "from bob", "from alice"}, map[string]backends.MessageID{"from ivy": "ivy-1"}},
		{muc, []string{"from ivy", "from max", "from bob", "from alice"}, map[string]backends.MessageID{"from max": "max-1"}},
		{irc, []string{"from ivy", "from max", "from alice"}, nil},
	} {
		var got []string
		for _, c := range tt.n.commands() {
			if s := plainOf(c); strings.HasPrefix(s, "from ") {
				got = append(got, s)
				if c.Echo != tt.echo[s] {
					t.Errorf("%s: echo of %q is %q", tt.n.name, s, c.Echo)
				}
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s got %q, want %q", tt.n.name, got, tt.want)
		}
	}
	bodies := 0
	for _, e := range w.timeline(alice, room) {
		if strings.HasPrefix(e.body(), "from ") {
			bodies++
		}
	}
	if bodies != 4 {
		t.Errorf("%d messages in the room", bodies)
	}

	// A reply to what was said before one came, and to another gateway's message.
	say := func(body backends.Body) *event {
		r := ircd.tell(t, &backends.Event{Chat: backends.ChatKey{Chat: "#tea"}, Sender: guest("ivy"), ID: backends.MessageID(fmt.Sprintf("%T", body)), Body: body})
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		return w.see(alice, room, "reply", func(e *event) bool { return e.ID == string(r.ID) })
	}
	before := v.History[i].ID
	if e := say(&backends.Message{Text: richtext.Plain("re"), ReplyTo: &backends.Quote{ID: backends.MessageID(before)}}); show(e.Content["m.relates_to"]) != `{"m.in_reply_to":{"event_id":"`+before+`"}}` {
		t.Errorf("reply %v", e.Content)
	}
	fromMax := w.seeBody(alice, room, "from max").ID
	if e := say(&backends.Reaction{Target: backends.MessageID("out:" + fromMax), Key: "+"}); show(e.Content["m.relates_to"]) != `{"event_id":"`+fromMax+`","key":"+","rel_type":"m.annotation"}` {
		t.Errorf("reaction %v", e.Content)
	}
	re := muc.await(t, "reaction", func(c *backends.Command) bool { _, ok := c.Body.(*backends.Reaction); return ok })
	if r := re.Body.(*backends.Reaction); r.Target != "max-1" {
		t.Errorf("the gateway's own message is called %q", r.Target)
	}

	// When the last has left, commands cease.
	ircd.exit(t, "#tea", guest("ivy"))
	muc.await(t, "ivy's leaving", func(c *backends.Command) bool {
		m, ok := c.Body.(*backends.Member)
		return ok && m.Action == backends.Left && m.User.Account == "@ircd_ivy:test"
	})
	alice.Say(room, "after")
	muc.hears(t, "after")
	irc.hears(t, "after")
	w.drained()
	if slices.Contains(ircd.heard(), "after") {
		t.Error("commands did not cease")
	}
}

func TestEnterIsRefused(t *testing.T) {
	ircd := newGatewayFake("ircd")
	w := newWorld(t, ircd)
	alice := w.hs.Register("alice")
	alice.CreateRoom(map[string]any{"preset": "private_chat", "room_alias_name": "secret"})
	rooms := ircd.currentHost().Rooms()
	banned := alice.CreateRoom(map[string]any{"preset": "public_chat", "room_alias_name": "banned"})
	alice.OK("POST", hstest.Path(banned)+"/ban", map[string]any{"user_id": "@ircd_eve:test"})
	for _, tt := range []struct {
		name string
		req  backends.EnterRequest
		want backends.RefusalCode
	}{
		{"no room", backends.EnterRequest{Room: backends.RoomName{Alias: "nothing"}, User: guest("eve")}, backends.RefusedNotFound},
		{"a room with an impossible name", backends.EnterRequest{Room: backends.RoomName{Alias: "a\x00b"}, User: guest("eve"), Create: true}, backends.RefusedNotFound},
		{"by invitation only", backends.EnterRequest{Room: backends.RoomName{Alias: "secret"}, User: guest("eve")}, backends.RefusedForbidden},
		{"banned", backends.EnterRequest{Room: backends.RoomName{Alias: "banned"}, User: guest("eve")}, backends.RefusedForbidden},
		{"as one who did not log in", backends.EnterRequest{Room: backends.RoomName{Alias: "banned"}, User: backends.User{Account: "@alice:test"}}, backends.RefusedForbidden},
		{"as nobody", backends.EnterRequest{Room: backends.RoomName{Alias: "banned"}}, backends.RefusedInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.req.Chat = "#x"
			if _, err := rooms.Enter(t.Context(), tt.req); code(err) != tt.want {
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
	if r := ircd.tell(t, message("#x", "eve", "hi", "1")); r.Err == nil {
		t.Error("one who is not in the room could speak")
	}
	if err := rooms.Exit(t.Context(), "#x", guest("eve"), ""); code(err) != backends.RefusedNotFound {
		t.Error(err)
	}
	if n := w.count("bridge_portal"); n != 0 {
		t.Errorf("%d portals are left", n)
	}
}

func TestAnAccountEntersAndSpeaks(t *testing.T) {
	ircd := newGatewayFake("ircd")
	w := newWorld(t, ircd)
	alice, bob := w.hs.Register("alice"), w.hs.Register("bob")
	room := bob.CreateRoom(map[string]any{"preset": "public_chat", "room_alias_name": "tea"})
	own := alice.CreateRoom(map[string]any{"preset": "public_chat", "room_alias_name": "own"})
	rooms := ircd.currentHost().Rooms()
	if _, err := rooms.Authenticate(t.Context(), "alice", "wrong"); code(err) != backends.RefusedUnauthorized {
		t.Errorf("wrong password: %v", err)
	}
	u, err := rooms.Authenticate(t.Context(), "alice", "alice")
	if err != nil || u.Account != "@alice:test" || u.Username != "alice" || u.Domain != "test" {
		t.Fatalf("%+v, %v", u, err)
	}
	ircd.enter(t, "#tea", "tea", *u, 0)
	ircd.enter(t, "#own", "own", *u, 0)
	r := ircd.tell(t, &backends.Event{Chat: backends.ChatKey{Chat: "#tea"}, Sender: *u, ID: "a1", Body: &backends.Message{Text: richtext.Plain("it is me")}})
	if e := w.seeBody(bob, room, "it is me"); e.Sender != "@alice:test" || e.ID != string(r.ID) {
		t.Errorf("event %+v", e)
	}
	if c := ircd.hears(t, "it is me"); c.Echo != "a1" {
		t.Errorf("echo %q", c.Echo)
	}
	// From another client of the same user there is no echo.
	alice.Say(room, "elsewhere")
	if c := ircd.hears(t, "elsewhere"); c.Echo != "" {
		t.Errorf("echo %q", c.Echo)
	}
	// A gateway may speak as who logged in after it was started again, too.
	w.restart()
	ircd.tell(t, &backends.Event{Chat: backends.ChatKey{Chat: "#tea"}, Sender: *u, ID: "a2", Body: &backends.Message{Text: richtext.Plain("still me")}})
	w.seeBody(bob, room, "still me")
	if r := ircd.tell(t, &backends.Event{Chat: backends.ChatKey{Chat: "#tea"}, Sender: backends.User{Account: "@bob:test"}, ID: "a3", Body: &backends.Message{Text: richtext.Plain("not me")}}); r.Err == nil || r.Err.Code != backends.RefusedForbidden {
		t.Errorf("spoke as another: %+v", r)
	}
	// They leave what they entered by the gateway, and stay where they were before.
	ircd.exit(t, "#tea", *u)
	ircd.exit(t, "#own", *u)
	joined := show(alice.OK("GET", "/_matrix/client/v3/joined_rooms", nil)["joined_rooms"])
	if strings.Contains(joined, string(room)) || !strings.Contains(joined, string(own)) {
		t.Errorf("joined rooms: %s", joined)
	}
}

func TestAGatewayMakesRoomsAndListsThem(t *testing.T) {
	ircd := newGatewayFake("ircd")
	w := newWorld(t, ircd)
	alice := w.hs.Register("alice")
	rooms := ircd.currentHost().Rooms()
	ircd.enter(t, "#new", "new", guest("ivy"), 0)
	room := matrix.RoomID(alice.OK("GET", "/_matrix/client/v3/directory/room/%23new:test", nil).Str("room_id"))
	alice.Join(string(room))
	ircd.await(t, "alice's joining", func(c *backends.Command) bool {
		m, ok := c.Body.(*backends.Member)
		return ok && m.Action == backends.Joined && m.User.Account == "@alice:test"
	})
	list, err := rooms.List(t.Context(), "new", 10)
	if err != nil || len(list) != 1 || list[0].Room.Alias != "new" || list[0].Room.Server != "" || list[0].Members != 3 {
		t.Errorf("%+v, %v", list, err)
	}
	if s, err := rooms.Peek(t.Context(), backends.RoomName{Alias: "new"}); err != nil || s.Members != 3 {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := rooms.Peek(t.Context(), backends.RoomName{Alias: "old"}); code(err) != backends.RefusedNotFound {
		t.Error(err)
	}
	if u, err := rooms.Whois(t.Context(), "alice", ""); err != nil || u.Account != "@alice:test" {
		t.Errorf("%+v, %v", u, err)
	}
	if _, err := rooms.Whois(t.Context(), "nobody", ""); code(err) != backends.RefusedNotFound {
		t.Error(err)
	}

	// A kick by who has no power is refused; who opened the room has it.
	if _, err := rooms.Enter(t.Context(), backends.EnterRequest{Chat: "#new", Room: backends.RoomName{Alias: "new"}, User: guest("jay")}); err != nil {
		t.Fatal(err)
	}
	r := ircd.tell(t, &backends.Event{Chat: backends.ChatKey{Chat: "#new"}, Sender: guest("jay"), Body: &backends.Member{Action: backends.Kicked, User: backends.User{Account: "@alice:test"}}})
	if r.Err == nil || r.Err.Code != backends.RefusedForbidden {
		t.Errorf("kick: %+v", r)
	}
	topic := "opened by ivy"
	if r := ircd.tell(t, &backends.Event{Chat: backends.ChatKey{Chat: "#new"}, Sender: guest("ivy"), Body: &backends.ChatInfo{Topic: &topic}}); r.Err != nil {
		t.Errorf("topic: %+v", r)
	}
	for i := range 5 {
		alice.Say(room, fmt.Sprint("old ", i))
	}
	cmds, err := rooms.History(t.Context(), "#new", guest("ivy"), time.Time{}, 3)
	if err != nil || len(cmds) != 3 || plainOf(&cmds[0]) != "old 2" || plainOf(&cmds[2]) != "old 4" {
		t.Errorf("history %s, %v", show(cmds), err)
	}
	older, err := rooms.History(t.Context(), "#new", guest("ivy"), cmds[0].Time, 10)
	if err != nil || len(older) > 2 {
		t.Errorf("older history %s, %v", show(older), err)
	}
}

// TestANetworkThatIsAGatewayToo has a room both linked with a chat of a network and
// entered through it, as XMPP does with MUCs on both sides.
func TestANetworkThatIsAGatewayToo(t *testing.T) {
	caps := everything
	caps.Gateway = true
	xmpp := newFake("xmpp", caps)
	w := newWorld(t, xmpp)
	alice := w.hs.Register("alice")
	room := alice.CreateRoom(map[string]any{"preset": "public_chat", "room_alias_name": "tea"})
	link(t, w, alice, room, "xmpp", "room@muc")
	xmpp.enter(t, "tea@gateway", "tea", guest("max"), 0)
	xmpp.saysAs(t, "tea@gateway", "max", "from max", "1")
	xmpp.saysAs(t, "room@muc", "bob", "from bob", "2")
	alice.Say(room, "from alice")
	got := map[string][]string{}
	for len(got["tea@gateway"]) < 3 || len(got["room@muc"]) < 2 {
		c := xmpp.await(t, "message", func(c *backends.Command) bool { return strings.HasPrefix(plainOf(c), "from ") })
		got[string(c.Chat.Chat)] = append(got[string(c.Chat.Chat)], plainOf(c)+" "+string(c.Echo))
	}
	w.drained()
	if want := []string{"from max 1", "from bob ", "from alice "}; !slices.Equal(got["tea@gateway"], want) {
		t.Errorf("the gateway got %q, want %q", got["tea@gateway"], want)
	}
	if want := []string{"from max ", "from alice "}; !slices.Equal(got["room@muc"], want) {
		t.Errorf("the MUC got %q, want %q", got["room@muc"], want)
	}
}
