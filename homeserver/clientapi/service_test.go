package clientapi_test

import (
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/hstest"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// register adds a service that owns @irc_… and #irc_….
func register(t *testing.T, s *hstest.Server) *hstest.User {
	t.Helper()
	err := s.AddService(t.Context(), matrix.Registration{
		ID: "irc", ASToken: "as-token", HSToken: "hs-token", SenderLocalpart: "ircbot",
		Namespaces: matrix.Namespaces{Users: []matrix.Namespace{{Exclusive: true, Regex: "@irc_.*"}}, Aliases: []matrix.Namespace{{Exclusive: true, Regex: "#irc_.*"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s.Service("as-token")
}

// TestGhostsCannotBeImpersonated is the row "ghost impersonation, AS token" of what a
// bridge's homeserver must resist.
func TestGhostsCannotBeImpersonated(t *testing.T) {
	s := hstest.Start(t)
	service, alice := register(t, s), s.Register("alice")
	dummy := map[string]string{"type": "m.login.dummy"}
	alice.Fails(400, "M_EXCLUSIVE", "POST", v3+"/register", map[string]any{"username": "irc_bob", "password": "x", "auth": dummy})
	alice.Fails(400, "M_EXCLUSIVE", "GET", v3+"/register/available?username=irc_bob", nil)
	service.OK("POST", v3+"/register", map[string]any{"type": "m.login.application_service", "username": "irc_bob"})
	service.Fails(400, "M_EXCLUSIVE", "POST", v3+"/register", map[string]any{"type": "m.login.application_service", "username": "bob"})
	service.Fails(403, "M_FORBIDDEN", "GET", v3+"/account/whoami?user_id=@alice:test", nil)
	service.Fails(403, "M_FORBIDDEN", "GET", v3+"/account/whoami?user_id=@irc_nobody:test", nil)
	if got := service.OK("GET", v3+"/account/whoami?user_id=@irc_bob:test", nil).Str("user_id"); got != "@irc_bob:test" {
		t.Errorf("acting as a ghost: %s", got)
	}
	alice.Fails(400, "M_EXCLUSIVE", "POST", v3+"/createRoom", map[string]any{"room_alias_name": "irc_go"})
	s.Nobody().Fails(403, "M_FORBIDDEN", "POST", v3+"/login", map[string]any{"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": "irc_bob"}, "password": ""})
	s.Service("hs-token").Fails(401, "M_UNKNOWN_TOKEN", "GET", v3+"/account/whoami", nil)
}

func TestAServiceGivesEventsTheirTime(t *testing.T) {
	s := hstest.Start(t)
	service, alice := register(t, s), s.Register("alice")
	service.OK("POST", v3+"/register", map[string]any{"type": "m.login.application_service", "username": "irc_bob"})
	room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	as := "?user_id=@irc_bob:test"
	service.OK("POST", hstest.Path(room)+"/join"+as, nil)
	id := service.OK("PUT", hstest.Path(room)+"/send/m.room.message/1"+as+"&ts=1000", map[string]string{"msgtype": "m.text", "body": "long ago"}).Str("event_id")
	if e := alice.OK("GET", hstest.Path(room)+"/event/"+id, nil); e["origin_server_ts"] != 1000.0 || e.Str("sender") != "@irc_bob:test" {
		t.Errorf("the event is %v", e)
	}
	service.Fails(400, "M_INVALID_PARAM", "PUT", hstest.Path(room)+"/send/m.room.message/2"+as+"&ts=yesterday", map[string]string{})
}

// TestAServiceLearnsWhenItsEventHasItsPlace is how the bridge has many messages under
// way, in order.
func TestAServiceLearnsWhenItsEventHasItsPlace(t *testing.T) {
	s := hstest.Start(t)
	register(t, s)
	alice := s.Register("alice")
	room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	s.Service("as-token").OK("POST", hstest.Path(room)+"/join", nil)
	tests := []struct {
		name, token, prefer, body string
		told                      int
	}{
		{"a service that asks is told", "as-token", "processing", `{"body":"1"}`, 1},
		{"the same again has no new place", "as-token", "processing", `{"body":"1"}`, 0},
		{"a service that does not ask is not told", "as-token", "", `{"body":"2"}`, 0},
		{"a user is not told", alice.Token, "processing", `{"body":"3"}`, 0},
		{"nothing is told of what is refused", "as-token", "processing", `{"body":1.5}`, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			told := 0
			trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error { told++; return nil }}
			url := s.URL + hstest.Path(room) + "/send/m.room.message/" + fmt.Sprintf("%x", tt.body)
			req, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "PUT", url, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+tt.token)
			if tt.prefer != "" {
				req.Header.Set("Prefer", tt.prefer)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if told != tt.told {
				t.Errorf("told %d times, want %d (status %d)", told, tt.told, resp.StatusCode)
			}
		})
	}
}
