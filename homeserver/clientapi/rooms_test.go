package clientapi_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/hstest"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

const v3 = "/_matrix/client/v3"

func TestTwoPeopleTalk(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, bob := s.Register("alice"), s.Register("bob")
		room := alice.CreateRoom(map[string]any{"preset": "public_chat", "room_alias_name": "lobby", "name": "Lobby", "topic": "All are welcome"})
		bob.Join("#lobby:test")
		first := bob.Sync("")
		if got := first.Str("rooms", "join", string(room), "timeline", "prev_batch"); got == "" {
			t.Error("no prev_batch")
		}
		since := first.Str("next_batch")
		id := alice.Say(room, "hello")
		if again := alice.Say(room, "hello"); again != id {
			t.Errorf("the same transaction made %s, then %s", id, again)
		}
		next := bob.Sync("timeout=10000&since=" + since)
		if got := next.Bodies(room); !slices.Equal(got, []string{"hello"}) {
			t.Errorf("bob sees %q", got)
		}
		if e := next.List("rooms", "join", string(room), "timeline", "events")[0]; e.Str("sender") != "@alice:test" || e.Str("event_id") != string(id) || e["room_id"] != nil {
			t.Errorf("the event is %v", e)
		}
		if own := alice.Sync("").List("rooms", "join", string(room), "timeline", "events"); own[len(own)-1].Str("unsigned", "transaction_id") != "hello" {
			t.Error("the sender's device does not see its transaction ID")
		}
	})
}

func TestLongPollEndsWithTheNews(t *testing.T) {
	s := hstest.Start(t)
	alice, bob := s.Register("alice"), s.Register("bob")
	room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	bob.Join(string(room))
	since := bob.Sync("").Str("next_batch")
	got := make(chan hstest.JSON)
	go func() { got <- bob.Sync("timeout=60000&since=" + since) }()
	alice.Say(room, "wake up")
	if b := (<-got).Bodies(room); !slices.Equal(b, []string{"wake up"}) {
		t.Errorf("bob sees %q", b)
	}
}

func TestNobodyMissesWhatIsSentAtTheSameTime(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		const senders, each = 8, 25
		reader := s.Register("reader")
		room := reader.CreateRoom(map[string]any{"preset": "public_chat"})
		since := reader.Sync("").Str("next_batch")
		var wg sync.WaitGroup
		for i := range senders {
			u := s.Register(fmt.Sprintf("u%d", i))
			u.Join(string(room))
			wg.Go(func() {
				for n := range each {
					u.Say(room, fmt.Sprintf("%d %03d", i, n))
				}
			})
		}
		var got []string
		for len(got) < senders*each {
			out := reader.Sync("timeout=30000&since=" + since + "&filter=" + url.QueryEscape(`{"room":{"timeline":{"limit":200}}}`))
			if out.At("rooms", "join", string(room), "timeline", "limited") == true {
				t.Fatal("the timeline is limited")
			}
			got = append(got, out.Bodies(room)...)
			since = out.Str("next_batch")
		}
		wg.Wait()
		for i := range senders {
			var own []string
			for _, b := range got {
				if strings.HasPrefix(b, fmt.Sprintf("%d ", i)) {
					own = append(own, b)
				}
			}
			if len(own) != each || !slices.IsSorted(own) {
				t.Errorf("of sender %d came %q", i, own)
			}
		}
	})
}

func TestAGapIsToldAndCanBeFilled(t *testing.T) {
	s := hstest.Start(t)
	alice := s.Register("alice")
	room := alice.CreateRoom(nil)
	since := alice.Sync("").Str("next_batch")
	for i := range 30 {
		alice.Say(room, fmt.Sprint(i))
	}
	out := alice.Sync("since=" + since + "&filter=" + url.QueryEscape(`{"room":{"timeline":{"limit":5}}}`))
	if got := out.Bodies(room); !slices.Equal(got, []string{"25", "26", "27", "28", "29"}) || out.At("rooms", "join", string(room), "timeline", "limited") != true {
		t.Fatalf("the timeline has %q", got)
	}
	from := out.Str("rooms", "join", string(room), "timeline", "prev_batch")
	var got []string
	for from != "" && len(got) < 25 {
		page := alice.OK("GET", hstest.Path(room)+"/messages?dir=b&limit=10&from="+from+"&to="+since, nil)
		for _, e := range page.List("chunk") {
			got = append(got, e.Str("content", "body"))
		}
		from = page.Str("end")
	}
	if len(got) != 25 || got[0] != "24" || got[24] != "0" {
		t.Errorf("the gap has %q", got)
	}
}

// TestHistoryVisibility is a table of who sees what of a room's past.
func TestHistoryVisibility(t *testing.T) {
	s := hstest.Start(t)
	tests := []struct {
		visibility            string
		beforeInvite, invited bool // messages that bob, who joins last, sees
		outsider              bool // may one who never was in the room read it
	}{
		{"world_readable", true, true, true},
		{"shared", true, true, false},
		{"invited", false, true, false},
		{"joined", false, false, false},
	}
	for i, tt := range tests {
		t.Run(tt.visibility, func(t *testing.T) {
			alice, bob, eve := s.Register(fmt.Sprint("alice", i)), s.Register(fmt.Sprint("bob", i)), s.Register(fmt.Sprint("eve", i))
			room := alice.CreateRoom(map[string]any{"initial_state": []map[string]any{
				{"type": matrix.TypeHistoryVisibility, "content": map[string]string{"history_visibility": tt.visibility}}}})
			alice.Say(room, "before")
			alice.OK("POST", hstest.Path(room)+"/invite", map[string]any{"user_id": bob.ID})
			alice.Say(room, "invited")
			bob.Join(string(room))
			alice.Say(room, "joined")
			var got []string
			for _, e := range bob.OK("GET", hstest.Path(room)+"/messages?dir=b&limit=100", nil).List("chunk") {
				if b := e.Str("content", "body"); b != "" {
					got = append(got, b)
				}
			}
			want := []string{"joined"}
			if tt.invited {
				want = append(want, "invited")
			}
			if tt.beforeInvite {
				want = append(want, "before")
			}
			if !slices.Equal(got, want) {
				t.Errorf("bob sees %q, want %q", got, want)
			}
			status, _ := eve.Do("GET", hstest.Path(room)+"/messages?dir=b", nil)
			if (status == 200) != tt.outsider {
				t.Errorf("an outsider gets status %d", status)
			}
			// One who left sees nothing that came later.
			bob.OK("POST", hstest.Path(room)+"/leave", nil)
			secret := alice.Say(room, "after")
			status, _ = bob.Do("GET", hstest.Path(room)+"/event/"+url.PathEscape(string(secret)), nil)
			if (status == 200) != (tt.visibility == "world_readable") {
				t.Errorf("one who left gets status %d for a later event", status)
			}
		})
	}
}

func TestInvitedAndDeclinedSeeNothingOfTheRoom(t *testing.T) {
	s := hstest.Start(t)
	alice, bob := s.Register("alice"), s.Register("bob")
	room := alice.CreateRoom(map[string]any{"name": "Secret"})
	alice.Say(room, "psst")
	alice.OK("POST", hstest.Path(room)+"/invite", map[string]any{"user_id": bob.ID})
	first := bob.Sync("")
	events := first.List("rooms", "invite", string(room), "invite_state", "events")
	if !slices.ContainsFunc(events, func(e hstest.JSON) bool {
		return e.Str("type") == "m.room.name" && e.Str("content", "name") == "Secret"
	}) {
		t.Errorf("the invitation shows %v", events)
	}
	bob.OK("POST", hstest.Path(room)+"/leave", nil)
	out := bob.Sync("since=" + first.Str("next_batch"))
	left := out.List("rooms", "leave", string(room), "timeline", "events")
	if len(left) == 0 {
		t.Fatalf("the declined invitation is not told: %v", out)
	}
	for _, e := range left {
		if e.Str("type") == "m.room.message" {
			t.Errorf("someone who was only invited sees %v", e)
		}
	}
}

func TestMembershipsAndPower(t *testing.T) {
	s := hstest.Start(t)
	alice, bob, carol := s.Register("alice"), s.Register("bob"), s.Register("carol")
	room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	path := hstest.Path(room)
	bob.Join(string(room))
	carol.Join(string(room))
	bob.Fails(403, "M_FORBIDDEN", "POST", path+"/kick", map[string]any{"user_id": carol.ID})
	alice.OK("POST", path+"/kick", map[string]any{"user_id": carol.ID, "reason": "noise"})
	carol.Fails(403, "M_FORBIDDEN", "PUT", path+"/send/m.room.message/1", map[string]any{"body": "x", "msgtype": "m.text"})
	carol.Join(string(room))
	alice.OK("POST", path+"/ban", map[string]any{"user_id": carol.ID})
	carol.Fails(403, "M_FORBIDDEN", "POST", v3+"/join/"+url.PathEscape(string(room)), nil)
	alice.OK("POST", path+"/unban", map[string]any{"user_id": carol.ID})
	carol.Join(string(room))
	bob.Fails(403, "M_FORBIDDEN", "PUT", path+"/state/m.room.name", map[string]any{"name": "Mine"})
	if got := alice.OK("GET", path+"/joined_members", nil).At("joined"); len(got.(map[string]any)) != 3 {
		t.Errorf("joined members: %v", got)
	}
	since := bob.Sync("").Str("next_batch")
	bob.OK("POST", path+"/leave", nil)
	bob.OK("POST", path+"/forget", nil)
	if got := bob.Sync("filter=" + url.QueryEscape(`{"room":{"include_leave":true}}`)).At("rooms"); got != nil {
		t.Errorf("after forgetting: %v", got)
	}
	if got := bob.Sync("since="+since).At("rooms", "leave", string(room)); got == nil {
		t.Error("that bob has left is not told")
	}
	bob.Fails(403, "M_FORBIDDEN", "GET", path+"/messages?dir=b", nil)
}

func TestRedactionEmptiesTheEvent(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, bob := s.Register("alice"), s.Register("bob")
		for _, version := range []string{"10", "11", "12"} {
			room := alice.CreateRoom(map[string]any{"preset": "public_chat", "room_version": version})
			bob.Join(string(room))
			id := alice.Say(room, "secret")
			bob.Fails(403, "M_FORBIDDEN", "PUT", hstest.Path(room)+"/redact/"+url.PathEscape(string(id))+"/1", nil)
			alice.OK("PUT", hstest.Path(room)+"/redact/"+url.PathEscape(string(id))+"/1", map[string]string{"reason": "oops"})
			e := bob.OK("GET", hstest.Path(room)+"/event/"+url.PathEscape(string(id)), nil)
			if e.Str("content", "body") != "" || e.Str("unsigned", "redacted_because", "content", "reason") != "oops" {
				t.Errorf("room version %s: after redaction: %v", version, e)
			}
		}
	})
}

func TestEveryRoomVersionWorks(t *testing.T) {
	s := hstest.Start(t)
	alice, bob := s.Register("alice"), s.Register("bob")
	for v := 1; v <= 12; v++ {
		room := alice.CreateRoom(map[string]any{"room_version": fmt.Sprint(v), "invite": []matrix.UserID{bob.ID}, "name": "Room"})
		bob.Join(string(room))
		bob.Say(room, fmt.Sprint("hello ", v))
		if got := alice.Sync("").Bodies(room); !slices.Equal(got, []string{fmt.Sprint("hello ", v)}) {
			t.Errorf("version %d: alice sees %q", v, got)
		}
	}
	alice.Fails(400, "M_UNSUPPORTED_ROOM_VERSION", "POST", v3+"/createRoom", map[string]any{"room_version": "org.unknown"})
}

func TestLazyLoading(t *testing.T) {
	s := hstest.Start(t)
	alice := s.Register("alice")
	room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	for i := range 5 {
		s.Register(fmt.Sprint("idle", i)).Join(string(room))
	}
	bob := s.Register("bob")
	bob.Join(string(room))
	for i := range 3 {
		bob.Say(room, fmt.Sprint(i))
	}
	filter := url.QueryEscape(`{"room":{"state":{"lazy_load_members":true},"timeline":{"limit":2}}}`)
	out := alice.Sync("filter=" + filter)
	var members []string
	for _, e := range out.List("rooms", "join", string(room), "state", "events") {
		if e.Str("type") == "m.room.member" {
			members = append(members, e.Str("state_key"))
		}
	}
	slices.Sort(members)
	if !slices.Equal(members, []string{"@alice:test", "@bob:test"}) {
		t.Errorf("members: %q", members)
	}
	if n := out.At("rooms", "join", string(room), "summary", "m.joined_member_count"); n != 7.0 {
		t.Errorf("summary counts %v", n)
	}
}

func TestStateAfter(t *testing.T) {
	s := hstest.Start(t)
	alice := s.Register("alice")
	room := alice.CreateRoom(nil)
	since := alice.Sync("").Str("next_batch")
	alice.OK("PUT", hstest.Path(room)+"/state/m.room.topic", map[string]string{"topic": "new"})
	alice.Say(room, "said after")
	out := alice.Sync("use_state_after=true&since=" + since)
	events := out.List("rooms", "join", string(room), "state_after", "events")
	if len(events) != 1 || events[0].Str("content", "topic") != "new" || out.At("rooms", "join", string(room), "state") != nil {
		t.Errorf("state_after: %v", out.At("rooms"))
	}
}

func TestDirectoryAndAliases(t *testing.T) {
	s := hstest.Start(t)
	alice, bob := s.Register("alice"), s.Register("bob")
	room := alice.CreateRoom(map[string]any{"visibility": "public", "name": "Gardening", "room_alias_name": "plants"})
	alice.CreateRoom(map[string]any{"visibility": "public", "name": "Cooking"})
	alice.Fails(400, "M_ROOM_IN_USE", "POST", v3+"/createRoom", map[string]any{"room_alias_name": "plants"})
	list := bob.OK("POST", v3+"/publicRooms", map[string]any{"filter": map[string]string{"generic_search_term": "garden"}}).List("chunk")
	if len(list) != 1 || list[0].Str("room_id") != string(room) || list[0].Str("canonical_alias") != "#plants:test" {
		t.Errorf("directory: %v", list)
	}
	page := s.Nobody().OK("GET", v3+"/publicRooms?limit=1", nil)
	if len(page.List("chunk")) != 1 || page.Str("next_batch") == "" {
		t.Errorf("first page: %v", page)
	}
	alias := v3 + "/directory/room/" + url.PathEscape("#plants:test")
	bob.Fails(403, "M_FORBIDDEN", "DELETE", alias, nil)
	alice.OK("DELETE", alias, nil)
	bob.Fails(404, "M_NOT_FOUND", "GET", alias, nil)
	if e, _ := alice.Do("GET", hstest.Path(room)+"/state/m.room.canonical_alias", nil); e != 200 {
		t.Error("the state event is gone")
	}
}

func TestTypingReceiptsAndMarkers(t *testing.T) {
	s := hstest.Start(t)
	alice, bob := s.Register("alice"), s.Register("bob")
	room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	bob.Join(string(room))
	id := alice.Say(room, "read me")
	first := alice.Sync("")
	since := first.Str("next_batch")
	if n := bob.Sync("").At("rooms", "join", string(room), "unread_notifications", "notification_count"); n != 1.0 {
		t.Errorf("unread: %v", n)
	}
	bob.OK("PUT", hstest.Path(room)+"/typing/@bob:test", map[string]any{"typing": true, "timeout": 20000})
	out := alice.Sync("timeout=10000&since=" + since)
	if e := out.List("rooms", "join", string(room), "ephemeral", "events"); len(e) != 1 || e[0].Str("type") != "m.typing" || fmt.Sprint(e[0].At("content", "user_ids")) != "[@bob:test]" {
		t.Errorf("typing: %v", e)
	}
	bob.OK("POST", hstest.Path(room)+"/receipt/m.read/"+url.PathEscape(string(id)), nil)
	out = alice.Sync("timeout=10000&since=" + out.Str("next_batch"))
	if e := out.List("rooms", "join", string(room), "ephemeral", "events"); len(e) != 1 || e[0].At("content", string(id), "m.read", "@bob:test", "ts") == nil {
		t.Errorf("receipt: %v", e)
	}
	bob.OK("POST", hstest.Path(room)+"/read_markers", map[string]any{"m.fully_read": id, "m.read.private": id})
	out = alice.Sync("since=" + out.Str("next_batch"))
	if out.At("rooms") != nil {
		t.Errorf("a private receipt is told to others: %v", out)
	}
	if n := bob.Sync("").At("rooms", "join", string(room), "unread_notifications", "notification_count"); n != 0.0 {
		t.Errorf("unread after reading: %v", n)
	}
}

func TestErrorsHaveTheProtocolsForm(t *testing.T) {
	s := hstest.Start(t)
	alice := s.Register("alice")
	room := alice.CreateRoom(nil)
	tests := []struct {
		name         string
		who          *hstest.User
		method, path string
		body         any
		status       int
		code         string
	}{
		{"unknown endpoint", alice, "GET", v3 + "/nothing", nil, 404, "M_UNRECOGNIZED"},
		{"wrong method", alice, "DELETE", v3 + "/sync", nil, 405, "M_UNRECOGNIZED"},
		{"no token", s.Nobody(), "GET", v3 + "/sync", nil, 401, "M_MISSING_TOKEN"},
		{"wrong token", s.Service("nonsense"), "GET", v3 + "/sync", nil, 401, "M_UNKNOWN_TOKEN"},
		{"no JSON", alice, "POST", v3 + "/createRoom", []byte("{"), 400, "M_NOT_JSON"},
		{"duplicate key", alice, "POST", v3 + "/createRoom", []byte(`{"name":"a","name":"b"}`), 400, "M_BAD_JSON"},
		{"wrong type", alice, "POST", v3 + "/createRoom", []byte(`{"name":1}`), 400, "M_BAD_JSON"},
		{"unknown room", alice, "PUT", v3 + "/rooms/%21nowhere/send/m.room.message/1", map[string]string{}, 404, "M_NOT_FOUND"},
		{"not a room ID", alice, "PUT", v3 + "/rooms/nowhere/send/m.room.message/1", map[string]string{}, 400, "M_INVALID_PARAM"},
		{"unknown alias", alice, "POST", v3 + "/join/%23nowhere:test", nil, 404, "M_NOT_FOUND"},
		{"invite nobody", alice, "POST", hstest.Path(room) + "/invite", map[string]string{"user_id": "@nobody:test"}, 404, "M_NOT_FOUND"},
		{"too large", alice, "PUT", hstest.Path(room) + "/send/m.room.message/1", map[string]string{"body": strings.Repeat("x", 70_000)}, 413, "M_TOO_LARGE"},
		{"bad since", alice, "GET", v3 + "/sync?since=yesterday", nil, 400, "M_INVALID_PARAM"},
		{"bad filter", alice, "GET", v3 + "/sync?filter=%7B%22room%22:1%7D", nil, 400, "M_BAD_JSON"},
		{"float in an event", alice, "PUT", hstest.Path(room) + "/send/m.room.message/1", []byte(`{"n":1.5}`), 400, "M_BAD_JSON"},
		{"create event again", alice, "PUT", hstest.Path(room) + "/state/m.room.create", map[string]string{}, 403, "M_FORBIDDEN"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.who.Fails(tt.status, tt.code, tt.method, tt.path, tt.body) })
	}
}
