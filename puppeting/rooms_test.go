package puppeting

import (
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/homeserver/hstest"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// members are the IDs of who is in a room, sorted.
func (w *world) members(u *hstest.User, room matrix.RoomID) []string {
	w.tb.Helper()
	joined, _ := u.OK("GET", hstest.Path(room)+"/joined_members", nil)["joined"].(map[string]any)
	var out []string
	for id := range joined {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

func (w *world) hasMembers(u *hstest.User, room matrix.RoomID, want ...string) {
	w.tb.Helper()
	slices.Sort(want)
	w.until("members "+strings.Join(want, " "), func() bool { return slices.Equal(w.members(u, room), want) }, func() string { return strings.Join(w.members(u, room), " ") })
}

// answers sends a command and waits for an answer that begins so.
func (w *world) answers(u *hstest.User, room matrix.RoomID, command, answer string) {
	w.tb.Helper()
	before := len(w.timeline(u, room))
	w.send(u, room, "m.room.message", map[string]any{"msgtype": "m.text", "body": command})
	w.until("answer to "+command, func() bool {
		for _, e := range w.timeline(u, room)[before:] {
			if e.Sender == "@gjallar:test" && strings.HasPrefix(e.body(), answer) {
				return true
			}
		}
		return false
	}, func() string { return show(w.timeline(u, room)[before:]) })
}

func TestCommands(t *testing.T) { both(t, testCommands) }

func testCommands(t *testing.T, newWorld func(...*fakeNet) *world) {
	irc := newFake("irc", everything)
	irc.refuse["#secret"] = &backends.Refusal{Code: backends.RefusedInviteOnly, Message: "it is by invitation only"}
	w := newWorld(irc, newGatewayFake("ircd"))
	alice, eve := w.hs.Register("alice"), w.hs.Register("eve")
	room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	other := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	eve.Join(string(room))
	for _, r := range []matrix.RoomID{room, other} {
		alice.OK("POST", hstest.Path(r)+"/invite", map[string]any{"user_id": "@gjallar:test"})
		w.see(alice, r, "greeting", func(e *event) bool { return strings.HasPrefix(e.body(), "Hello. Commands:") })
	}
	w.answers(eve, room, "!gjallar link irc #go", "You need power level 50 in this room for that; you have 0.")
	w.answers(alice, room, "!gjallar link nonet #go", "There is no network nonet. There are: irc")
	w.answers(alice, room, "!gjallar link ircd #go", "There is no network ircd.")
	w.answers(alice, room, "!gjallar link irc #secret", "That did not work: it is by invitation only")
	w.answers(alice, room, "!gjallar link irc", "Commands:")
	w.answers(alice, room, "!gjallar status", "irc: ready")
	if n := w.count("bridge_portal"); n != 0 {
		t.Fatalf("%d portals", n)
	}
	w.answers(alice, room, "!gjallar link irc #go", "This room is now connected with #go on irc.")
	w.answers(alice, room, "!gjallar link irc #go", "This room is connected with #go already.")
	w.answers(alice, other, "!gjallar link irc #go", "Another room stands for #go on irc already.")
	irc.says(t, "#go", "bob", "hello")
	w.hasMembers(alice, room, "@alice:test", "@eve:test", "@gjallar:test", "@irc_bob:test")
	w.answers(eve, room, "!gjallar unlink", "You need power level 50")
	w.answers(alice, room, "!gjallar unlink irc #go", "Done: 1 connection removed.")
	w.hasMembers(alice, room, "@alice:test", "@eve:test", "@gjallar:test")
	if r := irc.tell(t, message("#go", "bob", "anyone?", "x")); r.Err == nil || r.Err.Code != backends.RefusedNotFound {
		t.Errorf("a message to no room: %+v", r)
	}
	for _, c := range irc.commands() {
		if strings.HasPrefix(plainOf(c), "!gjallar") || strings.HasPrefix(plainOf(c), "This room") {
			t.Errorf("%q crossed the bridge", plainOf(c))
		}
	}
	irc.mu.Lock()
	defer irc.mu.Unlock()
	if len(irc.joined) != 0 {
		t.Errorf("joined %v", irc.joined)
	}
}

func TestAliasesOfChats(t *testing.T) {
	irc := newFake("irc", everything)
	irc.refuse["#secret"] = &backends.Refusal{Code: backends.RefusedBanned, Message: "no"}
	w := newWorld(t, irc, newGatewayFake("ircd"))
	alice := w.hs.Register("alice")
	for _, alias := range []string{"#irc_#secret:test", "#irc_:test", "#nonet_x:test", "#ircd_x:test"} {
		if status, _ := alice.Do("POST", "/_matrix/client/v3/join/"+url.PathEscape(alias), nil); status != http.StatusNotFound {
			t.Errorf("%s: %d", alias, status)
		}
	}
	room := w.portal(alice, "irc", "#Go_lang=1: x")
	if again := w.portal(alice, "irc", "#Go_lang=1: x"); again != room {
		t.Error("a second room was made")
	}
	alice.Say(room, "hi")
	if c := irc.hears(t, "hi"); c.Chat.Chat != "#Go_lang=1: x" {
		t.Errorf("chat %q", c.Chat.Chat)
	}
}

func TestJoinsAgainWhereItWas(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	w.portal(alice, "irc", "#go")
	irc.says(t, "#go", "bob", "one")
	irc.says(t, "#go", "bob", "two")
	w.restart()
	w.until("join", func() bool {
		irc.mu.Lock()
		defer irc.mu.Unlock()
		return irc.joined[backends.ChatKey{Chat: "#go"}] == 3 // to look, for the members, and now
	}, func() string { return "" })
	p := w.bridge.findPortal(portalKey{network: "irc", chat: "#go"})
	if m := p.resume(); m == nil || m.ID != "irc-2" {
		t.Errorf("resume at %+v", m)
	}
	// What was said before is not said again.
	r := irc.saysAs(t, "#go", "bob", "two", "irc-2")
	if e := w.seeBody(alice, p.bound().id, "two"); e.ID != string(r.ID) {
		t.Errorf("receipt %+v for %s", r, e.ID)
	}
	n := 0
	for _, e := range w.timeline(alice, p.bound().id) {
		if e.body() == "two" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("said %d times", n)
	}
}

func TestPrivateChats(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")

	// Begun here, by inviting a ghost.
	room := alice.CreateRoom(map[string]any{"is_direct": true, "invite": []string{"@irc_bob:test"}})
	w.hasMembers(alice, room, "@alice:test", "@irc_bob:test")
	w.until("portal", func() bool { return w.count("bridge_portal") == 1 }, func() string { return "" })
	alice.Say(room, "psst")
	key := backends.ChatKey{Chat: "bob", Account: "@alice:test"}
	if c := irc.hears(t, "psst"); c.Chat != key {
		t.Errorf("chat %+v", c.Chat)
	}
	private := func(key backends.ChatKey, from, text string, id backends.MessageID) {
		ev := message("", from, text, id)
		ev.Chat = key
		if r := irc.tell(t, ev); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	private(key, "bob", "what?", "p1")
	w.seeBody(alice, room, "what?")

	// Begun there.
	private(backends.ChatKey{Chat: "carol", Account: "@alice:test"}, "carol", "hello", "p2")
	private(backends.ChatKey{Chat: "carol", Account: "@alice:test"}, "carol", "are you there?", "p3")
	invites, _ := alice.Sync("").At("rooms", "invite").(map[string]any)
	if len(invites) != 1 {
		t.Fatalf("invitations %v", invites)
	}
	for id := range invites {
		alice.Join(id)
		w.seeBody(alice, matrix.RoomID(id), "are you there?")
		alice.Say(matrix.RoomID(id), "yes")
		irc.hears(t, "yes")
		// Who has left is called back.
		alice.OK("POST", hstest.Path(matrix.RoomID(id))+"/leave", nil)
		irc.await(t, "leaving", func(c *backends.Command) bool {
			m, ok := c.Body.(*backends.Member)
			return ok && m.Action == backends.Left
		})
		private(backends.ChatKey{Chat: "carol", Account: "@alice:test"}, "carol", "come back", "p4")
		if again, _ := alice.Sync("").At("rooms", "invite").(map[string]any); again[id] == nil {
			t.Errorf("invitations %v", again)
		}
	}
}

func TestMembers(t *testing.T) { both(t, testMembers) }

func testMembers(t *testing.T, newWorld func(...*fakeNet) *world) {
	irc := newFake("irc", everything)
	w := newWorld(irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	base := []string{"@alice:test", "@gjallar:test"}
	tell := func(body backends.Body, from backends.User) {
		t.Helper()
		if r := irc.tell(t, &backends.Event{Chat: backends.ChatKey{Chat: "#go"}, Sender: from, Body: body}); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	tell(&backends.Members{Members: []backends.Member{{User: guest("bob")}, {User: guest("carol")}, {User: backends.User{Account: "@alice:test"}}}}, backends.User{})
	w.hasMembers(alice, room, append(base, "@irc_bob:test", "@irc_carol:test")...)
	tell(&backends.Members{Members: []backends.Member{{User: guest("carol")}}}, backends.User{})
	w.hasMembers(alice, room, append(base, "@irc_carol:test")...)
	tell(&backends.Member{Action: backends.Joined, User: guest("dan")}, guest("dan"))
	w.hasMembers(alice, room, append(base, "@irc_carol:test", "@irc_dan:test")...)
	tell(&backends.Profile{User: guest("dave"), Was: "dan"}, guest("dave"))
	w.hasMembers(alice, room, append(base, "@irc_carol:test", "@irc_dave:test")...)
	tell(&backends.Member{Action: backends.Kicked, User: guest("dave"), Reason: "spam"}, guest("carol"))
	w.hasMembers(alice, room, append(base, "@irc_carol:test")...)
	w.see(alice, room, "kick", func(e *event) bool {
		return e.StateKey != nil && *e.StateKey == "@irc_dave:test" && e.Content["reason"] == "spam (by carol)" && e.Sender == "@gjallar:test"
	})
	topic := "all about Go"
	tell(&backends.ChatInfo{Topic: &topic}, guest("carol"))
	tell(&backends.ChatInfo{Topic: &topic}, guest("carol"))
	n := 0
	for _, e := range w.timeline(alice, room) {
		if e.Type == "m.room.topic" && e.Content["topic"] == topic {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d changes of topic", n)
	}
	// Back to the network: our kicks are told, the bridge's own are not.
	irc.set(func() { irc.taken = len(irc.sent) })
	w.bridge.o.LinkPower = 1
	tell(&backends.Member{Action: backends.Left, User: guest("carol")}, guest("carol"))
	w.hasMembers(alice, room, base...)
	alice.Say(room, "end")
	irc.hears(t, "end")
	for _, c := range irc.commands() {
		if m, ok := c.Body.(*backends.Member); ok && m.User.Account != "@alice:test" {
			t.Errorf("the network was told of its own: %+v", m)
		}
	}
}

// TestModerationCrosses is that a ban on either side reaches the other.
func TestModerationCrosses(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice, eve := w.hs.Register("alice"), w.hs.Register("eve")
	room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	link(t, w, alice, room, "irc", "#go")
	alice.OK("PUT", hstest.Path(room)+"/state/m.room.power_levels/", map[string]any{"users": map[string]any{"@gjallar:test": 60}})
	eve.Join(string(room))
	irc.says(t, "#go", "bob", "spam")
	alice.OK("POST", hstest.Path(room)+"/ban", map[string]any{"user_id": "@irc_bob:test", "reason": "spam"})
	irc.await(t, "ban", func(c *backends.Command) bool {
		m, ok := c.Body.(*backends.Member)
		return ok && m.Action == backends.Banned && m.User.ID == "bob" && m.Reason == "spam" && c.Sender.Account == "@alice:test"
	})
	if r := irc.tell(t, message("#go", "bob", "more spam", "s2")); r.Err == nil || r.Err.Code != backends.RefusedForbidden {
		t.Errorf("one who is banned could speak: %+v", r)
	}
	r := irc.tell(t, &backends.Event{Chat: backends.ChatKey{Chat: "#go"}, Sender: guest("op"), Body: &backends.Member{Action: backends.Banned, User: backends.User{Account: "@eve:test"}}})
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	if status, _ := eve.Do("POST", "/_matrix/client/v3/join/"+url.PathEscape(string(room)), nil); status != http.StatusForbidden {
		t.Errorf("eve could join: %d", status)
	}
}

func TestTyping(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	r := irc.says(t, "#go", "bob", "hi")
	for _, on := range []bool{true, false} {
		alice.OK("PUT", hstest.Path(room)+"/typing/@alice:test", map[string]any{"typing": on, "timeout": 30000})
		irc.await(t, "typing", func(c *backends.Command) bool {
			b, ok := c.Body.(*backends.Typing)
			return ok && b.On == on && c.Sender.Account == "@alice:test"
		})
	}
	alice.OK("POST", hstest.Path(room)+"/receipt/m.read/"+string(r.ID), map[string]any{})
	irc.await(t, "receipt", func(c *backends.Command) bool { b, ok := c.Body.(*backends.Read); return ok && b.UpTo == "irc-1" })
}

func TestLinksToFiles(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	get := func(link string) (int, http.Header, string) {
		t.Helper()
		resp, err := http.Get(link)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header, string(b)
	}
	upload := func(content string) string {
		return alice.OK("POST", "/_matrix/media/v3/upload?filename=x.html", []byte(content)).Str("content_uri")
	}
	id := w.send(alice, room, "m.room.message", map[string]any{"msgtype": "m.file", "body": "x.html", "url": upload("<script>"), "info": map[string]any{"mimetype": "text/html"}})
	cmd := irc.await(t, "file", func(c *backends.Command) bool { m, ok := c.Body.(*backends.Message); return ok && len(m.Files) == 1 })
	link := cmd.Body.(*backends.Message).Files[0].URL
	status, h, body := get(link)
	if status != 200 || body != "<script>" || h.Get("Content-Type") != "application/octet-stream" || h.Get("X-Content-Type-Options") != "nosniff" ||
		!strings.HasPrefix(h.Get("Content-Disposition"), "attachment") || !strings.Contains(h.Get("Content-Security-Policy"), "sandbox") {
		t.Errorf("%d %v %q", status, h, body)
	}
	for _, forged := range []string{strings.Replace(link, mediaPath, mediaPath+"A", 1), w.web.URL + mediaPath + "x.y/z", w.web.URL + mediaPath + "/"} {
		if status, _, _ := get(forged); status != http.StatusNotFound {
			t.Errorf("%s: %d", forged, status)
		}
	}
	m := w.bridge.media
	if status, _, _ := get(m.link("mxc://test/x", "$e", "x", time.Now().Add(-w.bridge.o.LinkTTL-time.Minute).UnixMilli())); status != http.StatusGone {
		t.Errorf("an old link: %d", status)
	}
	alice.OK("PUT", hstest.Path(room)+"/redact/"+id+"/r", map[string]any{})
	irc.await(t, "removal", func(c *backends.Command) bool { _, ok := c.Body.(*backends.Removal); return ok })
	if status, _, _ := get(link); status != http.StatusGone {
		t.Errorf("the link of a redacted file: %d", status)
	}
	// A link of ours that comes back is the same file.
	f := backends.File{URL: m.link("mxc://test/abc", "$e", "x.png", time.Now().UnixMilli()), Name: "x.png", MediaType: "image/png"}
	irc.tell(t, &backends.Event{Chat: backends.ChatKey{Chat: "#go"}, Sender: guest("bob"), ID: "f", Body: &backends.Message{Text: richtext.Plain("look"), Files: []backends.File{f}}})
	w.seeBody(alice, room, "look")
	if e := w.seeBody(alice, room, "x.png"); e.Content["url"] != "mxc://test/abc" {
		t.Errorf("file %v", e.Content)
	}
}

func TestAReplyTellsNothingOfAnotherRoom(t *testing.T) {
	irc := newFake("irc", backends.Capabilities{})
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	other := w.portal(alice, "irc", "#private")
	secret := alice.Say(other, "secret")
	irc.hears(t, "secret")
	w.send(alice, room, "m.room.message", map[string]any{"msgtype": "m.text", "body": "what?", "m.relates_to": map[string]any{"m.in_reply_to": map[string]any{"event_id": secret}}})
	irc.hears(t, "what?")
}

func TestARoomsSuccessorHasItsPortals(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	link(t, w, alice, room, "irc", "#go")
	next := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	alice.OK("PUT", hstest.Path(room)+"/state/m.room.tombstone/", map[string]any{"body": "gone", "replacement_room": next})
	w.hasMembers(alice, next, "@alice:test", "@gjallar:test")
	w.until("move", func() bool { return w.bridge.room(next) != nil }, func() string { return "" })
	alice.Say(next, "here now")
	irc.hears(t, "here now")
	irc.says(t, "#go", "bob", "me too")
	w.seeBody(alice, next, "me too")
}

func TestOurOwnEchoesAreNotBridged(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	alice.Say(room, "mine")
	irc.hears(t, "mine")
	echo := message("#go", "", "mine", "e1")
	echo.Sender = backends.User{ID: "alice[m]", Account: "@alice:test"}
	relayed := message("#go", "relay", "mine", "e2")
	relayed.Origin = "xmpp/1"
	for _, ev := range []*backends.Event{echo, relayed} {
		if r := irc.tell(t, ev); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	irc.says(t, "#go", "bob", "end")
	w.seeBody(alice, room, "end")
	n := 0
	for _, e := range w.timeline(alice, room) {
		if e.body() == "mine" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("said %d times", n)
	}
}

func TestAChatThatCannotBeJoinedIsTriedAgain(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	w.drained()
	w.stop()
	irc.set(func() { irc.failing = 2 })
	w.start()
	alice.Say(room, "at last")
	irc.hears(t, "at last")
	irc.mu.Lock()
	defer irc.mu.Unlock()
	if irc.failing != 0 {
		t.Errorf("%d failures were not met", irc.failing)
	}
}

func TestThirdPartyLookups(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc, newGatewayFake("ircd"))
	alice := w.hs.Register("alice")
	for path, want := range map[string]string{
		"/protocols":                        `"network_id":"irc"`,
		"/location/irc?chat=%23go":          `"alias":"#irc_#go:test"`,
		"/location?alias=%23irc_%23go:test": `"chat":"#go"`,
		"/user/irc?user=Bob":                `"userid":"@irc__bob:test"`,
		"/user?userid=%40irc__bob:test":     `"user":"Bob"`,
	} {
		status, out := alice.Do("GET", "/_matrix/client/v3/thirdparty"+path, nil)
		if got := show(out); status != http.StatusOK || !strings.Contains(got, want) || strings.Contains(got, "ircd") {
			t.Errorf("%s: %d %s", path, status, got)
		}
	}
}
