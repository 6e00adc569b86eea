package clientapi_test

import (
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/hstest"
)

func TestPresence(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, bob, eve := s.Register("alice"), s.Register("bob"), s.Register("eve")
		room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
		bob.Join(string(room))
		since, eveSince := bob.Sync("").Str("next_batch"), eve.Sync("").Str("next_batch")
		path := v3 + "/presence/@alice:test/status"
		if p := bob.OK("GET", path, nil); p.Str("presence") != "offline" {
			t.Errorf("of alice, who has not been there: %v", p)
		}
		got := make(chan hstest.JSON)
		go func() { got <- bob.Sync("timeout=60000&since=" + since) }()
		alice.OK("PUT", path, map[string]string{"presence": "online", "status_msg": "hello"})
		list := (<-got).List("presence", "events")
		if len(list) != 1 || list[0].Str("sender") != "@alice:test" || list[0].Str("content", "presence") != "online" || list[0].Str("content", "status_msg") != "hello" {
			t.Errorf("bob's sync has %v", list)
		}
		if p := bob.OK("GET", path, nil); p.Str("presence") != "online" || p["currently_active"] != true || p["last_active_ago"] == nil {
			t.Errorf("bob reads %v", p)
		}
		eve.Fails(403, "M_FORBIDDEN", "GET", path, nil)
		for _, e := range eve.Sync("since="+eveSince).List("presence", "events") {
			if e.Str("sender") == "@alice:test" {
				t.Errorf("eve's sync has %v", e)
			}
		}
		bob.Fails(403, "M_FORBIDDEN", "PUT", path, map[string]string{"presence": "online"})
		alice.Fails(400, "M_BAD_JSON", "PUT", path, map[string]string{"presence": "asleep"})
		alice.Fails(400, "M_MISSING_PARAM", "PUT", path, map[string]string{})
	})
}
