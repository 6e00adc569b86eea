package clientapi_test

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver"
	"github.com/gjallar-im/gjallar/homeserver/hstest"
)

func passwordLogin(user, password string) map[string]any {
	return map[string]any{"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": user}, "password": password}
}

func TestRegistrationModes(t *testing.T) {
	dummy := map[string]any{"username": "new", "password": "pw", "auth": map[string]string{"type": "m.login.dummy"}}
	withToken := func(token string) map[string]any {
		return map[string]any{"username": "new", "password": "pw", "auth": map[string]string{"type": "m.login.registration_token", "token": token}}
	}
	tests := []struct {
		name, mode string
		body       map[string]any
		status     int
		code       string
	}{
		{"open", "open", dummy, 200, ""},
		{"open, no stage yet", "open", map[string]any{"username": "new", "password": "pw"}, 401, ""},
		{"closed", "closed", dummy, 403, "M_FORBIDDEN"},
		{"token", "token", withToken("sesame"), 200, ""},
		{"wrong token", "token", withToken("wrong"), 401, "M_FORBIDDEN"},
		{"no token", "token", dummy, 401, "M_UNKNOWN"},
		{"bad name", "open", map[string]any{"username": "näw", "password": "pw", "auth": map[string]string{"type": "m.login.dummy"}}, 400, "M_INVALID_USERNAME"},
		{"no password", "open", map[string]any{"username": "new", "auth": map[string]string{"type": "m.login.dummy"}}, 400, "M_MISSING_PARAM"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := hstest.Start(t, func(o *homeserver.Options) { o.Registration, o.RegistrationToken = tt.mode, "sesame" })
			status, out := s.Nobody().Do("POST", v3+"/register", tt.body)
			if code := out.Str("errcode"); status != tt.status || code != tt.code {
				t.Errorf("%d %v, want %d %s", status, out, tt.status, tt.code)
			}
		})
	}
}

func TestANameIsTakenOnce(t *testing.T) {
	s := hstest.Start(t)
	s.Register("alice")
	again := map[string]any{"username": "Alice", "password": "other", "auth": map[string]string{"type": "m.login.dummy"}}
	s.Nobody().Fails(400, "M_USER_IN_USE", "POST", v3+"/register", again)
	s.Nobody().Fails(403, "M_FORBIDDEN", "POST", v3+"/login", passwordLogin("alice", "other"))
	s.Nobody().OK("POST", v3+"/login", passwordLogin("@Alice:test", "alice"))
}

// TestWhoMayLogInNoLonger is the row "account takeover / bypass" of what must be
// resisted.
func TestWhoMayLogInNoLonger(t *testing.T) {
	s := hstest.Start(t)
	alice := s.Register("alice")
	other := s.Service(s.Nobody().OK("POST", v3+"/login", passwordLogin("alice", "alice")).Str("access_token"))

	other.OK("POST", v3+"/logout", nil)
	other.Fails(401, "M_UNKNOWN_TOKEN", "GET", v3+"/account/whoami", nil)
	alice.OK("GET", v3+"/account/whoami", nil)

	other = s.Service(s.Nobody().OK("POST", v3+"/login", passwordLogin("alice", "alice")).Str("access_token"))
	auth := func(password string) map[string]any { return passwordLogin("alice", password) }
	alice.Fails(401, "", "POST", v3+"/account/password", map[string]any{"new_password": "new"})
	alice.Fails(401, "M_FORBIDDEN", "POST", v3+"/account/password", map[string]any{"new_password": "new", "auth": auth("wrong")})
	alice.OK("POST", v3+"/account/password", map[string]any{"new_password": "new", "auth": auth("alice")})
	other.Fails(401, "M_UNKNOWN_TOKEN", "GET", v3+"/account/whoami", nil)
	s.Nobody().Fails(403, "M_FORBIDDEN", "POST", v3+"/login", passwordLogin("alice", "alice"))

	alice.OK("POST", v3+"/account/deactivate", map[string]any{"auth": auth("new")})
	alice.Fails(401, "M_UNKNOWN_TOKEN", "GET", v3+"/account/whoami", nil)
	if status, _ := s.Nobody().Do("POST", v3+"/login", passwordLogin("alice", "new")); status != http.StatusForbidden {
		t.Errorf("login of a deactivated account: status %d", status)
	}
	s.Nobody().Fails(400, "M_USER_IN_USE", "POST", v3+"/register", map[string]any{"username": "alice", "password": "x", "auth": map[string]string{"type": "m.login.dummy"}})
}

func TestRefreshTokens(t *testing.T) {
	s := hstest.Start(t)
	s.Register("alice")
	body := passwordLogin("alice", "alice")
	body["refresh_token"] = true
	first := s.Nobody().OK("POST", v3+"/login", body)
	second := s.Nobody().OK("POST", v3+"/refresh", map[string]string{"refresh_token": first.Str("refresh_token")})
	s.Service(second.Str("access_token")).OK("GET", v3+"/account/whoami", nil)
	// Once the new token was used, the old ones are worth nothing.
	s.Service(first.Str("access_token")).Fails(401, "M_UNKNOWN_TOKEN", "GET", v3+"/account/whoami", nil)
	s.Nobody().Fails(401, "M_UNKNOWN_TOKEN", "POST", v3+"/refresh", map[string]string{"refresh_token": first.Str("refresh_token")})
	s.Nobody().Fails(401, "M_UNKNOWN_TOKEN", "POST", v3+"/refresh", map[string]string{"refresh_token": "nonsense"})
}

// TestPasswordsCannotBeGuessed is the row "brute force": a thousand tries end in
// M_LIMIT_EXCEEDED, and nothing tells which names exist.
func TestPasswordsCannotBeGuessed(t *testing.T) {
	s := hstest.Start(t, func(o *homeserver.Options) { o.RateLimits = true })
	s.Register("alice")
	answers := map[string]hstest.JSON{}
	for _, name := range []string{"alice", "nobody"} {
		_, answers[name] = s.Nobody().Do("POST", v3+"/login", passwordLogin(name, "wrong"))
	}
	if fmt.Sprint(answers["alice"]) != fmt.Sprint(answers["nobody"]) {
		t.Errorf("the answers tell who exists: %v", answers)
	}
	tried := 0
	for range 1000 {
		if status, _ := s.Nobody().Do("POST", v3+"/login", passwordLogin("alice", "wrong")); status != http.StatusTooManyRequests {
			tried++
		}
	}
	if tried > 100 {
		t.Errorf("%d of 1,000 guesses were looked at", tried)
	}
	s.Nobody().Fails(429, "M_LIMIT_EXCEEDED", "POST", v3+"/login", passwordLogin("alice", "alice"))
}

func TestProfilesReachTheRooms(t *testing.T) {
	s := hstest.Start(t)
	alice, bob := s.Register("alice"), s.Register("bob")
	room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	bob.Join(string(room))
	since := alice.Sync("").Str("next_batch")
	bob.OK("PUT", v3+"/profile/@bob:test/displayname", map[string]string{"displayname": "Bob"})
	bob.Fails(403, "M_FORBIDDEN", "PUT", v3+"/profile/@alice:test/displayname", map[string]string{"displayname": "Fool"})
	events := alice.Sync("since="+since).List("rooms", "join", string(room), "timeline", "events")
	if len(events) != 1 || events[0].Str("content", "displayname") != "Bob" {
		t.Errorf("the room has %v", events)
	}
	if got := s.Nobody().OK("GET", v3+"/profile/@bob:test", nil).Str("displayname"); got != "Bob" {
		t.Errorf("the profile has %q", got)
	}
}

func TestAccountDataAndTags(t *testing.T) {
	s := hstest.Start(t)
	alice, bob := s.Register("alice"), s.Register("bob")
	room := alice.CreateRoom(nil)
	since := alice.Sync("").Str("next_batch")
	data := v3 + "/user/@alice:test/account_data/org.example"
	alice.OK("PUT", data, map[string]int{"n": 1})
	tag := v3 + "/user/@alice:test/rooms/" + url.PathEscape(string(room)) + "/tags/m.favourite"
	alice.OK("PUT", tag, map[string]float64{"order": 0.5})
	bob.Fails(403, "M_FORBIDDEN", "GET", data, nil)
	out := alice.Sync("since=" + since)
	if e := out.List("account_data", "events"); len(e) != 1 || e[0].At("content", "n") != 1.0 {
		t.Errorf("account data: %v", e)
	}
	if e := out.List("rooms", "join", string(room), "account_data", "events"); len(e) != 1 || e[0].At("content", "tags", "m.favourite", "order") != 0.5 {
		t.Errorf("tags: %v", e)
	}
}

func TestLoginTokens(t *testing.T) {
	s := hstest.Start(t)
	alice := s.Register("alice")
	alice.Fails(401, "", "POST", "/_matrix/client/v1/login/get_token", nil)
	token := alice.OK("POST", "/_matrix/client/v1/login/get_token", map[string]any{"auth": passwordLogin("alice", "alice")}).Str("login_token")
	body := map[string]string{"type": "m.login.token", "token": token}
	out := s.Nobody().OK("POST", v3+"/login", body)
	if out.Str("user_id") != "@alice:test" || out.Str("device_id") == string(alice.Device) {
		t.Errorf("logged in: %v", out)
	}
	s.Nobody().Fails(403, "M_FORBIDDEN", "POST", v3+"/login", body)
}
