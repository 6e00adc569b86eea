package clientapi_test

import (
	"fmt"
	"net/url"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/hstest"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// A device that logs out ends; a new one of the same name may count anew.
func TestTransactionIDsEndWithTheDevice(t *testing.T) {
	s := hstest.Start(t)
	alice := s.Register("alice")
	room := alice.CreateRoom(nil)
	logIn := map[string]any{"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": "alice"}, "password": "alice", "device_id": alice.Device}
	first := alice.Say(room, "1")
	alice.Token = s.Nobody().OK("POST", "/_matrix/client/v3/login", logIn).Str("access_token")
	if again := alice.Say(room, "1"); again != first {
		t.Errorf("with a new token of the device, the same transaction makes %s after %s", again, first)
	}
	alice.OK("POST", "/_matrix/client/v3/logout", nil)
	alice.Token = s.Nobody().OK("POST", "/_matrix/client/v3/login", logIn).Str("access_token")
	if again := alice.Say(room, "1"); again == first {
		t.Error("a new device's transaction is taken for one of the device that logged out")
	}
}

func TestWhoIsGoneDoesNotType(t *testing.T) {
	s := hstest.Start(t)
	alice, bob := s.Register("alice"), s.Register("bob")
	room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	bob.Join(string(room))
	typists := func() (out int) {
		for _, e := range alice.Sync("").List("rooms", "join", string(room), "ephemeral", "events") {
			list, _ := e.At("content", "user_ids").([]any)
			out += len(list)
		}
		return out
	}
	bob.OK("PUT", hstest.Path(room)+"/typing/"+url.PathEscape(string(bob.ID)), map[string]any{"typing": true, "timeout": 60000})
	if n := typists(); n != 1 {
		t.Errorf("%d type, want 1", n)
	}
	alice.OK("POST", hstest.Path(room)+"/kick", map[string]any{"user_id": bob.ID})
	if n := typists(); n != 0 {
		t.Errorf("%d type after the kick", n)
	}
}

func TestKnocking(t *testing.T) {
	s := hstest.Start(t)
	alice, bob := s.Register("alice"), s.Register("bob")
	for _, version := range []string{"7", "8", "9", "10", "11", "12"} {
		t.Run(version, func(t *testing.T) {
			room := alice.CreateRoom(map[string]any{"room_version": version, "initial_state": []map[string]any{{"type": matrix.TypeJoinRules, "content": map[string]any{"join_rule": "knock"}}}})
			knock, path := "/_matrix/client/v3/knock/"+url.PathEscape(string(room)), hstest.Path(room)
			about := map[string]any{"user_id": bob.ID}
			bob.Fails(403, "M_FORBIDDEN", "POST", path+"/join", nil)
			bob.OK("POST", knock, map[string]any{"reason": "hello"})
			bob.Fails(403, "M_FORBIDDEN", "POST", path+"/join", nil)
			bob.Fails(403, "M_FORBIDDEN", "GET", path+"/state", nil)
			if out := bob.Sync(""); len(out.List("rooms", "knock", string(room), "knock_state", "events")) == 0 {
				t.Errorf("the knock is not in /sync: %v", out.At("rooms"))
			}
			alice.OK("POST", path+"/kick", about) // rejected
			bob.OK("POST", knock, nil)
			bob.OK("POST", path+"/leave", nil) // taken back
			bob.OK("POST", knock, nil)
			alice.OK("POST", path+"/invite", about)
			bob.Join(string(room))
			bob.Fails(403, "M_FORBIDDEN", "POST", knock, nil)
			alice.OK("POST", path+"/ban", about)
			bob.Fails(403, "M_FORBIDDEN", "POST", knock, nil)
			bob.Fails(403, "M_FORBIDDEN", "POST", path+"/leave", nil)
			alice.OK("POST", path+"/unban", about)
			bob.OK("POST", knock, nil)
		})
	}
}

// TestOddRoomsAndState makes rooms of all versions from odd requests and puts odd
// state into them: it may be refused, but never for a fault of ours, and the room
// goes on.
func TestOddRoomsAndState(t *testing.T) {
	s := hstest.Start(t)
	alice := s.Register("alice")
	odd := []string{`null`, `0`, `-1`, `9007199254740991`, `1.5`, `"50"`, `" 50 "`, `"x"`, `true`, `[]`, `{}`, `[null]`, `{"":null}`, `{"@alice:test":"100"}`, `{"@alice:test":null}`, `{"x":100}`, `"\u0000"`}
	for _, v := range []int{1, 12} { // the most lenient and the strictest
		t.Run(fmt.Sprint("version ", v), func(t *testing.T) {
			create := func(member string) {
				body := fmt.Sprintf(`{"room_version":"%d",%s}`, v, member)
				if status, out := alice.Do("POST", "/_matrix/client/v3/createRoom", []byte(body)); status >= 500 {
					t.Errorf("%s: %d %v", body, status, out)
				}
			}
			room := alice.CreateRoom(map[string]any{"room_version": fmt.Sprint(v)})
			n := 0
			put := func(typ, key, content string) {
				path := hstest.Path(room) + "/state/" + typ + "/" + url.PathEscape(key)
				status, out := alice.Do("PUT", path, []byte(content))
				if status >= 500 {
					t.Errorf("PUT %s %s: %d %v", path, content, status, out)
				}
				if n++; status != 200 {
					return
				}
				if status, out := alice.Do("PUT", hstest.Path(room)+fmt.Sprint("/send/m.room.message/", n), []byte(`{"body":"x"}`)); status != 200 {
					t.Errorf("after %s %s nothing can be said: %d %v", typ, content, status, out)
					room = alice.CreateRoom(map[string]any{"room_version": fmt.Sprint(v)})
				}
			}
			for _, value := range odd {
				for _, name := range []string{"users", "events", "users_default", "invite", "notifications", "ban"} {
					create(`"power_level_content_override":{"` + name + `":` + value + `}`)
					put(matrix.TypePowerLevels, "", `{"users":{"@alice:test":100},"`+name+`":`+value+`}`)
				}
				create(`"creation_content":{"additional_creators":` + value + `,"m.federate":` + value + `,"type":` + value + `,"predecessor":` + value + `}`)
				create(`"creation_content":{"room_version":` + value + `,"creator":` + value + `}`)
				create(`"initial_state":[{"type":"m.room.join_rules","content":{"join_rule":` + value + `,"allow":` + value + `}}]`)
				create(`"initial_state":[{"type":"m.room.member","state_key":"@x:test","content":` + value + `}]`)
				create(`"preset":"trusted_private_chat","invite":["@alice:test"],"creation_content":{"additional_creators":` + value + `}`)
				put(matrix.TypeJoinRules, "", `{"join_rule":`+value+`,"allow":`+value+`}`)
				put(matrix.TypeHistoryVisibility, "", `{"history_visibility":`+value+`}`)
				put(matrix.TypeMember, "@x:test", `{"membership":`+value+`}`)
				put(matrix.TypeMember, string(alice.ID), `{"membership":"join","displayname":`+value+`,"join_authorised_via_users_server":`+value+`}`)
				put(matrix.TypeMember, "@x:test", `{"membership":"invite","third_party_invite":`+value+`}`)
				put(matrix.TypeMember, "@x:test", `{"membership":"invite","third_party_invite":{"signed":`+value+`}}`)
				put(matrix.TypeCanonicalAlias, "", `{"alias":`+value+`,"alt_aliases":`+value+`}`)
				put(matrix.TypeCreate, "", `{"creator":`+value+`}`)
				put("m.room.aliases", "test", `{"aliases":`+value+`}`)
				put(matrix.TypeRedaction, "", `{"redacts":`+value+`}`)
				put("m.space.child", "!x:test", `{"via":`+value+`,"order":`+value+`}`)
				put("m.room.third_party_invite", "t", `{"public_key":`+value+`,"public_keys":`+value+`}`)
			}
			for _, path := range []string{"/state", "/members", "/joined_members", "/messages?dir=b&limit=1000"} {
				alice.OK("GET", hstest.Path(room)+path, nil)
			}
			alice.OK("GET", "/_matrix/client/v1/rooms/"+url.PathEscape(string(room))+"/hierarchy", nil)
		})
	}
	alice.Sync("")
}

func TestUnreadMessagesOutliveAnotherName(t *testing.T) { hstest.Both(t, testUnread) }

func testUnread(t *testing.T, s *hstest.Server) {
	alice, bob := s.Register("alice"), s.Register("bob")
	room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	alice.Say(room, "before")
	bob.Join(string(room))
	unread := func(want float64, when string) {
		t.Helper()
		if got := bob.Sync("").At("rooms", "join", string(room), "unread_notifications", "notification_count"); got != want {
			t.Errorf("%s %v are unread, want %v", when, got, want)
		}
	}
	unread(0, "after joining")
	alice.Say(room, "1")
	last := alice.Say(room, "2")
	unread(2, "then")
	bob.OK("PUT", "/_matrix/client/v3/profile/"+url.PathEscape(string(bob.ID))+"/displayname", map[string]string{"displayname": "Bob"})
	unread(2, "under another name")
	bob.OK("POST", hstest.Path(room)+"/receipt/m.read/"+url.PathEscape(string(last)), nil)
	unread(0, "once all are read")
	bob.OK("POST", hstest.Path(room)+"/leave", nil)
	alice.Say(room, "3")
	bob.Join(string(room))
	unread(0, "after coming back")
}
