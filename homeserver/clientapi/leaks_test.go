package clientapi_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/hstest"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// TestNothingLeaks is a table of users, endpoints and history visibilities. What is
// said and set in a room bears the letter of the phase it happens in: in A nobody
// else is there, in B they have come, in C some have left, in D all is done.
func TestNothingLeaks(t *testing.T) {
	kinds := []struct {
		name string
		// What happens to the user before phases B, C and D: "invite", "join", "leave",
		// "ban", "knock".
		events [3]string
		joined bool
		// Phases whose messages they may see at most, by visibility, and whose state.
		shared, invited, whenJoined, state string
	}{
		{"joined", [3]string{"invite join", "", ""}, true, "ABCD", "BCD", "BCD", "ABCD"},
		{"came back", [3]string{"invite join", "leave", "invite join"}, true, "ABCD", "BD", "BD", "ABCD"},
		{"invited", [3]string{"invite", "", ""}, false, "", "", "", ""},
		{"invited after leaving", [3]string{"invite join", "leave", "invite"}, false, "AB", "B", "B", "AB"},
		{"left", [3]string{"invite join", "leave", ""}, false, "AB", "B", "B", "AB"},
		{"banned", [3]string{"invite join", "ban", ""}, false, "AB", "B", "B", "AB"},
		{"banned after leaving", [3]string{"invite join", "leave", "ban"}, false, "AB", "B", "B", "AB"},
		{"declined", [3]string{"invite", "leave", ""}, false, "", "B", "", ""},
		{"knocking", [3]string{"knock", "", ""}, false, "", "", "", ""},
		{"knocked in vain", [3]string{"", "knock leave", ""}, false, "", "", "", ""},
		{"banned before coming", [3]string{"", "ban", ""}, false, "", "", "", ""},
		{"never there", [3]string{"", "", ""}, false, "", "", "", ""},
	}
	for _, visibility := range []string{"world_readable", "shared", "invited", "joined"} {
		t.Run(visibility, func(t *testing.T) {
			s := hstest.Start(t)
			alice, carol := s.Register("alice"), s.Register("carol") // carol, who tells secrets, invites nobody
			room := alice.CreateRoom(map[string]any{"invite": []matrix.UserID{carol.ID}, "power_level_content_override": map[string]any{"state_default": 0}, "initial_state": []map[string]any{
				{"type": matrix.TypeHistoryVisibility, "content": map[string]string{"history_visibility": visibility}},
				{"type": matrix.TypeJoinRules, "content": map[string]string{"join_rule": "knock"}}}})
			carol.Join(string(room))
			users, before := map[string]*hstest.User{}, map[string]string{}
			for i, k := range kinds {
				users[k.name] = s.Register(fmt.Sprint("user", i))
				before[k.name] = users[k.name].Sync("").Str("next_batch")
			}
			events := map[string][]string{} // IDs, by phase
			for phase, letter := range []string{"A", "B", "C", "D"} {
				for _, k := range kinds {
					if phase == 0 {
						continue
					}
					for _, what := range strings.Fields(k.events[phase-1]) {
						happen(t, alice, users[k.name], room, what)
					}
				}
				root := string(carol.Say(room, "msg-"+letter))
				events[letter] = append(events[letter], root)
				for _, rel := range []string{"m.thread", "m.annotation"} {
					out := carol.OK("PUT", hstest.Path(room)+"/send/m.room.message/"+rel+letter, map[string]any{"msgtype": "m.text", "body": "msg-" + letter,
						"m.relates_to": map[string]string{"event_id": root, "rel_type": rel}})
					events[letter] = append(events[letter], out.Str("event_id"))
				}
				out := carol.OK("PUT", hstest.Path(room)+"/state/x.secret/"+letter, map[string]string{"is": "state-" + letter})
				events[letter] = append(events[letter], out.Str("event_id"))
				carol.OK("PUT", hstest.Path(room)+"/state/m.room.member/"+url.PathEscape(string(carol.ID)), map[string]string{"membership": "join", "displayname": "state-" + letter})
			}
			carol.OK("PUT", hstest.Path(room)+"/typing/"+url.PathEscape(string(carol.ID)), map[string]any{"typing": true, "timeout": 60000})
			carol.OK("POST", hstest.Path(room)+"/receipt/m.read/"+url.PathEscape(events["D"][0]), nil)
			for _, k := range kinds {
				allowed := map[string]string{"world_readable": "ABCD", "shared": k.shared, "invited": k.invited, "joined": k.whenJoined}[visibility]
				state := k.state
				if visibility == "world_readable" {
					state = "ABCD"
				}
				probe(t, users[k.name], room, k.name, before[k.name], events, allowed, state, k.joined)
			}
		})
	}
}

// happen has something happen to a user of alice's room.
func happen(t *testing.T, alice, u *hstest.User, room matrix.RoomID, what string) {
	t.Helper()
	switch what {
	case "invite", "ban":
		alice.OK("POST", hstest.Path(room)+"/"+what, map[string]any{"user_id": u.ID})
	case "join":
		u.Join(string(room))
	case "leave":
		u.OK("POST", hstest.Path(room)+"/leave", nil)
	case "knock":
		u.OK("POST", "/_matrix/client/v3/knock/"+url.PathEscape(string(room)), nil)
	}
}

// probe asks for everything as a user and looks for what they should not get.
func probe(t *testing.T, u *hstest.User, room matrix.RoomID, name, since string, events map[string][]string, messages, state string, joined bool) {
	t.Helper()
	type call struct {
		method, path string
		body         any
	}
	path, v1 := hstest.Path(room), "/_matrix/client/v1/rooms/"+url.PathEscape(string(room))
	lazy := url.QueryEscape(`{"lazy_load_members":true}`)
	now := u.Sync("").Str("next_batch")
	leave := url.QueryEscape(`{"room":{"include_leave":true}}`)
	few := url.QueryEscape(`{"room":{"include_leave":true,"timeline":{"limit":1}}}`)
	calls := []call{
		{"GET", path + "/messages?dir=f&limit=500", nil}, {"GET", path + "/messages?dir=b&limit=500&filter=" + lazy, nil},
		{"GET", path + "/state", nil}, {"GET", path + "/members", nil}, {"GET", path + "/members?at=s99999999", nil},
		{"GET", path + "/joined_members", nil}, {"GET", path + "/aliases", nil}, {"GET", v1 + "/threads", nil}, {"GET", v1 + "/hierarchy", nil},
		{"GET", v1 + "/timestamp_to_event?dir=f&ts=0", nil}, {"GET", v1 + "/timestamp_to_event?dir=b&ts=99999999999999", nil},
		{"GET", path + "/state/m.room.member/@carol:test?format=event", nil},
		{"GET", "/_matrix/client/v1/room_summary/" + url.PathEscape(string(room)), nil},
		{"POST", "/_matrix/client/v3/search", map[string]any{"search_categories": map[string]any{"room_events": map[string]any{"search_term": "msg-", "include_state": true,
			"filter": map[string]any{"limit": 100}, "event_context": map[string]any{"include_profile": true}}}}},
	}
	for _, q := range []string{"", "since=" + since} {
		for _, f := range []string{leave, few} {
			for _, after := range []string{"", "&use_state_after=true"} {
				calls = append(calls, call{"GET", "/_matrix/client/v3/sync?" + q + "&filter=" + f + after, nil})
			}
		}
	}
	calls = append(calls, call{"GET", "/_matrix/client/v3/sync?full_state=true&since=" + now, nil})
	var ids []string
	for _, list := range events {
		ids = append(ids, list[0])
	}
	_, own := u.Do("GET", path+"/messages?dir=b&limit=500", nil)
	for _, e := range own.List("chunk") {
		if e.Str("state_key") == string(u.ID) {
			ids = append(ids, e.Str("event_id"))
		}
	}
	for _, id := range ids {
		id = url.PathEscape(id)
		calls = append(calls, call{"GET", path + "/event/" + id, nil}, call{"GET", path + "/context/" + id + "?limit=0", nil},
			call{"GET", v1 + "/relations/" + id + "?recurse=true", nil})
	}
	for letter := range events {
		calls = append(calls, call{"GET", path + "/state/x.secret/" + letter, nil})
	}
	seen := ""
	for _, c := range calls {
		_, out := u.Do(c.method, c.path, c.body)
		b, err := json.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		for letter, list := range events {
			mayMessage, mayState := strings.Contains(messages, letter), strings.Contains(messages+state, letter)
			if strings.Contains(text, "msg-"+letter) {
				seen += letter
				if !mayMessage {
					t.Errorf("%s: %s %s has messages of phase %s", name, c.method, c.path, letter)
				}
			}
			if !mayState && strings.Contains(text, "state-"+letter) {
				t.Errorf("%s: %s %s has state of phase %s", name, c.method, c.path, letter)
			}
			for i, id := range list {
				if strings.Contains(text, id) && !(mayMessage || mayState && i == len(list)-1) && !joined {
					t.Errorf("%s: %s %s has the ID of an event of phase %s", name, c.method, c.path, letter)
				}
			}
		}
		if !joined && (strings.Contains(text, `"m.typing"`) || strings.Contains(text, `"m.receipt"`)) {
			t.Errorf("%s: %s %s has typing or receipts", name, c.method, c.path)
		}
	}
	if joined {
		for _, letter := range messages {
			if !strings.ContainsRune(seen, letter) {
				t.Errorf("%s does not see phase %c", name, letter)
			}
		}
		return
	}
	u.Fails(403, "M_FORBIDDEN", "PUT", path+"/typing/"+url.PathEscape(string(u.ID)), map[string]any{"typing": true})
	u.Fails(403, "M_FORBIDDEN", "POST", path+"/receipt/m.read/"+url.PathEscape(events["A"][0]), nil)
	u.Fails(403, "M_FORBIDDEN", "GET", path+"/joined_members", nil)
}
