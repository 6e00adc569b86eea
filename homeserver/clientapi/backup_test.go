package clientapi_test

import (
	"fmt"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/hstest"
)

const roomKeys = v3 + "/room_keys"

// backedUp is a key of this quality.
func backedUp(verified bool, firstIndex, forwarded int, data string) map[string]any {
	return map[string]any{"is_verified": verified, "first_message_index": firstIndex, "forwarded_count": forwarded, "session_data": map[string]string{"d": data}}
}

func backup(auth string) map[string]any {
	return map[string]any{"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": map[string]string{"k": auth}}
}

func TestVersionsOfABackup(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, bob := s.Register("alice"), s.Register("bob")
		alice.Fails(404, "M_NOT_FOUND", "GET", roomKeys+"/version", nil)
		alice.Fails(400, "M_MISSING_PARAM", "POST", roomKeys+"/version", map[string]any{"algorithm": "x"})
		for _, want := range []string{"1", "2"} {
			if got := alice.OK("POST", roomKeys+"/version", backup(want)).Str("version"); got != want {
				t.Errorf("version %q, want %s", got, want)
			}
		}
		bob.Fails(404, "M_NOT_FOUND", "GET", roomKeys+"/version/1", nil)
		if b := alice.OK("GET", roomKeys+"/version", nil); b.Str("version") != "2" || b.Str("auth_data", "k") != "2" || b["count"] != 0.0 || b.Str("etag") == "" {
			t.Errorf("the current version is %v", b)
		}
		alice.OK("PUT", roomKeys+"/version/1", backup("changed"))
		if b := alice.OK("GET", roomKeys+"/version/1", nil); b.Str("auth_data", "k") != "changed" {
			t.Errorf("after a change it is %v", b)
		}
		alice.Fails(400, "M_INVALID_PARAM", "PUT", roomKeys+"/version/1", with(backup("x"), "algorithm", "other"))
		alice.Fails(400, "M_INVALID_PARAM", "PUT", roomKeys+"/version/1", with(backup("x"), "version", "2"))
		alice.Fails(404, "M_NOT_FOUND", "PUT", roomKeys+"/version/7", backup("x"))
		alice.OK("DELETE", roomKeys+"/version/2", nil)
		alice.Fails(404, "M_NOT_FOUND", "DELETE", roomKeys+"/version/2", nil)
		alice.Fails(404, "M_NOT_FOUND", "GET", roomKeys+"/version/2", nil)
		if b := alice.OK("GET", roomKeys+"/version", nil); b.Str("version") != "1" {
			t.Errorf("after the second is deleted the current one is %v", b)
		}
		if got := alice.OK("POST", roomKeys+"/version", backup("x")).Str("version"); got != "3" {
			t.Errorf("a number was used twice: %s", got)
		}
	})
}

func TestOnlyABetterKeyTakesThePlaceOfOne(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice := s.Register("alice")
		alice.OK("POST", roomKeys+"/version", backup("x"))
		path := roomKeys + "/keys/!r:test/s?version=1"
		tests := []struct {
			name     string
			key      map[string]any
			replaces bool
		}{
			{"the first", backedUp(false, 5, 5, "first"), true},
			{"the same again", backedUp(false, 5, 5, "same"), false},
			{"a higher index", backedUp(false, 6, 0, "higher"), false},
			{"a lower index", backedUp(false, 4, 9, "lower"), true},
			{"forwarded more often", backedUp(false, 4, 10, "more"), false},
			{"forwarded less often", backedUp(false, 4, 8, "less"), true},
			{"verified, though worse else", backedUp(true, 9, 9, "verified"), true},
			{"not verified, though better else", backedUp(false, 0, 0, "unverified"), false},
			{"verified and a lower index", backedUp(true, 8, 9, "both"), true},
		}
		now, etag := "", ""
		for _, tt := range tests {
			out := alice.OK("PUT", path, tt.key)
			if changed := out.Str("etag") != etag; changed != tt.replaces || out["count"] != 1.0 {
				t.Errorf("%s: %v after etag %s", tt.name, out, etag)
			}
			etag = out.Str("etag")
			if tt.replaces {
				now = tt.key["session_data"].(map[string]string)["d"]
			}
			if got := alice.OK("GET", path, nil).Str("session_data", "d"); got != now {
				t.Errorf("%s: the key is %q, want %q", tt.name, got, now)
			}
		}
	})
}

func TestKeysOfABackup(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, bob := s.Register("alice"), s.Register("bob")
		alice.OK("POST", roomKeys+"/version", backup("x"))
		bob.OK("POST", roomKeys+"/version", backup("y"))
		k := backedUp(false, 0, 0, "d")
		sessions := func(ids ...string) map[string]any {
			m := map[string]any{}
			for _, id := range ids {
				m[id] = k
			}
			return map[string]any{"sessions": m}
		}
		keys := func(rest string) string { return roomKeys + "/keys" + rest + "?version=1" }
		count := func(out hstest.JSON, want float64) {
			t.Helper()
			if out["count"] != want {
				t.Errorf("count %v, want %v", out["count"], want)
			}
		}
		count(alice.OK("PUT", keys(""), map[string]any{"rooms": map[string]any{"!a:test": sessions("1", "2"), "!b:test": sessions("1")}}), 3)
		count(alice.OK("PUT", keys("/!b:test"), sessions("1", "2")), 4)
		count(alice.OK("PUT", keys("/!c:test/1"), k), 5)
		for rest, want := range map[string]string{"": "!b:test", "/!b:test": "2"} {
			got := alice.OK("GET", keys(rest), nil)
			if rest == "" {
				got = hstest.JSON(got["rooms"].(map[string]any))
			} else {
				got = hstest.JSON(got["sessions"].(map[string]any))
			}
			if got[want] == nil {
				t.Errorf("GET %q has no %s: %v", rest, want, got)
			}
		}
		if got := alice.OK("GET", keys("/!c:test/1"), nil); got.Str("session_data", "d") != "d" || got["is_verified"] != false || got["first_message_index"] != 0.0 {
			t.Errorf("one key: %v", got)
		}
		if got := bob.OK("GET", keys(""), nil); fmt.Sprint(got) != "map[rooms:map[]]" {
			t.Errorf("bob has %v", got)
		}
		if got := bob.OK("GET", keys("/!a:test"), nil); fmt.Sprint(got) != "map[sessions:map[]]" {
			t.Errorf("bob has %v", got)
		}
		bob.Fails(404, "M_NOT_FOUND", "GET", keys("/!a:test/1"), nil)
		before := alice.OK("GET", roomKeys+"/version", nil).Str("etag")
		count(alice.OK("DELETE", keys("/!c:test/1"), nil), 4)
		count(alice.OK("DELETE", keys("/!a:test"), nil), 2)
		count(alice.OK("DELETE", keys(""), nil), 0)
		if after := alice.OK("GET", roomKeys+"/version", nil); after.Str("etag") == before || after["count"] != 0.0 {
			t.Errorf("after all are deleted: %v", after)
		}

		alice.OK("POST", roomKeys+"/version", backup("newer"))
		if out := alice.Fails(403, "M_WRONG_ROOM_KEYS_VERSION", "PUT", keys("/!c:test/1"), k); out.Str("current_version") != "2" {
			t.Errorf("an old version: %v", out)
		}
		alice.Fails(404, "M_NOT_FOUND", "PUT", roomKeys+"/keys?version=9", map[string]any{"rooms": map[string]any{}})
		alice.Fails(404, "M_NOT_FOUND", "GET", roomKeys+"/keys?version=9", nil)
		alice.Fails(404, "M_NOT_FOUND", "DELETE", roomKeys+"/keys?version=9", nil)
		alice.Fails(404, "M_NOT_FOUND", "GET", roomKeys+"/keys?version=x", nil)
		alice.Fails(400, "M_MISSING_PARAM", "GET", roomKeys+"/keys", nil)
		alice.Fails(400, "M_MISSING_PARAM", "PUT", roomKeys+"/keys/!c:test/1?version=2", map[string]any{"is_verified": true})
		alice.Fails(400, "M_MISSING_PARAM", "PUT", roomKeys+"/keys?version=2", map[string]any{})
		alice.Fails(400, "M_INVALID_PARAM", "PUT", roomKeys+"/keys/!c:test/1?version=2", backedUp(true, -1, 0, "x"))
	})
}
