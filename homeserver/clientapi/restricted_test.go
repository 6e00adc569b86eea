package clientapi_test

import (
	"net/url"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/hstest"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// TestRestrictedRooms lets in the members of another room, and nobody who only says
// that somebody vouches for them.
func TestRestrictedRooms(t *testing.T) {
	s := hstest.Start(t)
	alice, bob, eve := s.Register("alice"), s.Register("bob"), s.Register("eve")
	club := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	bob.Join(string(club))
	for _, tt := range []struct{ version, rule string }{
		{"8", "restricted"}, {"9", "restricted"}, {"10", "knock_restricted"}, {"11", "restricted"}, {"12", "restricted"}, {"12", "knock_restricted"},
	} {
		t.Run(tt.rule+" in "+tt.version, func(t *testing.T) {
			room := alice.CreateRoom(map[string]any{"room_version": tt.version, "initial_state": []map[string]any{
				{"type": matrix.TypeJoinRules, "content": map[string]any{"join_rule": tt.rule, "allow": []map[string]any{{"type": "m.room_membership", "room_id": club}}}}}})
			state := func(u *hstest.User) string {
				return hstest.Path(room) + "/state/m.room.member/" + url.PathEscape(string(u.ID))
			}
			forged := map[string]any{"membership": "join", "join_authorised_via_users_server": alice.ID, "x": 1}
			eve.Fails(403, "M_FORBIDDEN", "POST", hstest.Path(room)+"/join", forged)
			eve.Fails(403, "M_FORBIDDEN", "PUT", state(eve), forged)
			bob.OK("PUT", state(bob), map[string]any{"membership": "join", "x": 1})
			if got := bob.OK("GET", state(bob), nil); got.Str("join_authorised_via_users_server") != string(alice.ID) || got.At("x") == nil {
				t.Errorf("bob's membership is %v", got)
			}
			bob.OK("PUT", state(bob), map[string]any{"membership": "join", "displayname": "Bob"})
			bob.OK("POST", hstest.Path(room)+"/leave", nil)
			bob.Join(string(room))
			alice.OK("POST", hstest.Path(room)+"/ban", map[string]any{"user_id": bob.ID})
			bob.Fails(403, "M_FORBIDDEN", "POST", hstest.Path(room)+"/join", nil)
			alice.OK("POST", hstest.Path(room)+"/invite", map[string]any{"user_id": eve.ID})
			eve.OK("PUT", state(eve), forged)
			if got := eve.OK("GET", state(eve), nil); got.Str("join_authorised_via_users_server") != "" {
				t.Errorf("eve, who was invited, is authorised by %v", got)
			}
		})
	}
}
