package clientapi_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/homeserver"
	"github.com/gjallar-im/gjallar/homeserver/clientapi"
	"github.com/gjallar-im/gjallar/homeserver/hstest"
)

var placeholder = regexp.MustCompile(`\{[^}]*\}`)

// fuzzRoutes are all endpoints but those that end the session of the one who asks.
func fuzzRoutes() (out []clientapi.Route) {
	for _, r := range clientapi.Routes() {
		if !strings.Contains(r.Path, "logout") && !strings.Contains(r.Path, "deactivate") {
			out = append(out, r)
		}
	}
	return out
}

// lastLine of a log.
type lastLine struct {
	mu   sync.Mutex
	text string // guarded by mu
}

func (l *lastLine) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = string(b)
	return len(b), nil
}

func (l *lastLine) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text
}

// FuzzRequests: whatever comes in a request, no endpoint panics or fails by a fault
// of ours.
func FuzzRequests(f *testing.F) {
	var faults lastLine
	s := hstest.Start(f, func(o *homeserver.Options) {
		o.SharedSecret = "secret"
		o.Log = slog.New(slog.NewTextHandler(&faults, &slog.HandlerOptions{Level: slog.LevelError}))
	})
	alice := s.Register("alice")
	room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	known := map[string]string{
		"{roomID}": string(room), "{room}": string(room), "{userID}": string(alice.ID), "{deviceID}": string(alice.Device),
		"{eventID}": string(alice.Say(room, "hello")), "{server}": "test", "{kind}": "override", "{stateKey...}": "k", "{$}": "",
	}
	alice.OK("POST", v3+"/room_keys/version", backup("x"))
	routes := fuzzRoutes()
	if len(routes) < 120 {
		f.Fatalf("only %d endpoints", len(routes))
	}
	for i, r := range routes {
		f.Add(uint16(i), []byte(`{}`), "", "")
		f.Add(uint16(i), []byte(`null`), "from=s1_0&dir=b&limit=-1", "x")
		f.Add(uint16(i), []byte(`[]`), "version=1&width=1&height=1", "%00")
		for _, body := range bodies[r.Method+" "+strings.TrimPrefix(r.Path, "/_matrix/client")] {
			f.Add(uint16(i), []byte(body), "version=1", "")
		}
	}
	handler := s.Handler()
	f.Fuzz(func(t *testing.T, n uint16, body []byte, query, value string) {
		r := routes[int(n)%len(routes)]
		path := placeholder.ReplaceAllStringFunc(r.Path, func(p string) string {
			if v, ok := known[p]; ok && (value == "" || p == "{$}") {
				return url.PathEscape(v)
			}
			if value == "" {
				return "m.test"
			}
			return strings.ReplaceAll(url.PathEscape(value), ".", "%2E") // no path of its own
		})
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Skip()
		}
		for _, name := range []string{"timeout", "timeout_ms"} { // nobody waits here
			if q.Has(name) {
				q.Set(name, "0")
			}
		}
		if strings.Contains(r.Path, "/media/") {
			q.Set("timeout_ms", "0")
		}
		req := httptest.NewRequestWithContext(t.Context(), r.Method, path, bytes.NewReader(body))
		req.URL.RawQuery = q.Encode()
		if !q.Has("access_token") {
			req.Header.Set("Authorization", "Bearer "+alice.Token)
		}
		w := httptest.NewRecorder()
		start := time.Now()
		handler.ServeHTTP(w, req)
		if w.Code >= http.StatusInternalServerError && w.Code != http.StatusGatewayTimeout {
			t.Errorf("%s %s?%s with %.500q: %d %s\n%s", r.Method, path, req.URL.RawQuery, body, w.Code, w.Body, &faults)
		}
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("%s %s?%s with %.500q took %s", r.Method, path, req.URL.RawQuery, body, d)
		}
	})
}

// PostgreSQL stores no NUL and no broken UTF-8, which must not look as a fault of ours.
func TestTextThatNoDatabaseHoldsIsRefused(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice := s.Register("alice")
		room := alice.CreateRoom(nil)
		known := map[string]string{"{roomID}": string(room), "{userID}": string(alice.ID), "{eventID}": string(alice.Say(room, "hello")), "{server}": "test", "{kind}": "content", "{$}": ""}
		alice.OK("POST", v3+"/room_keys/version", backup("x"))
		const query = "?timeout_ms=0&dir=b&version=1&ts=1&from=%00&search_term=%00&user_id=%00&filter=%00"
		for _, r := range fuzzRoutes() {
			if strings.HasSuffix(r.Path, "/leave") { // alice is to stay
				continue
			}
			for _, body := range append([]string{"{}"}, bodies[r.Method+" "+strings.TrimPrefix(r.Path, "/_matrix/client")]...) {
				for _, value := range []string{"%00", "%FF", "@a:b%00", "x"} {
					path := placeholder.ReplaceAllStringFunc(r.Path, func(p string) string {
						if v, ok := known[p]; ok {
							return url.PathEscape(v)
						}
						return value
					})
					text := strings.ReplaceAll(body, `:"`, `:"\u0000`)
					if got := fetch(t, s, alice, r.Method, path+query, "application/json", strings.NewReader(text)); got.StatusCode >= 500 && got.StatusCode != http.StatusGatewayTimeout {
						t.Errorf("%s %s with %s: %d %s", r.Method, path, text, got.StatusCode, got.body)
					}
				}
			}
		}
		alice.Say(room, "still here")
	})
}

// bodies are requests that go further than an empty one.
var bodies = map[string][]string{
	"POST /v3/login":                                           {`{"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"},"password":"wrong"}`},
	"POST /v3/register":                                        {`{"username":"new","password":"x","auth":{"type":"m.login.dummy"}}`},
	"POST /v3/createRoom":                                      {`{"preset":"public_chat","invite":["@a:b"],"initial_state":[{"type":"m.room.name","state_key":"","content":{"name":"x"}}],"power_level_content_override":{"users":{"@alice:test":100}},"creation_content":{"type":"m.space"},"room_version":"10"}`},
	"POST /v3/rooms/{roomID}/invite":                           {`{"user_id":"@bob:test","reason":"x"}`},
	"POST /v3/rooms/{roomID}/kick":                             {`{"user_id":"@bob:test"}`},
	"POST /v3/rooms/{roomID}/read_markers":                     {`{"m.fully_read":"$x","m.read":"$x"}`},
	"PUT /v3/rooms/{roomID}/send/{eventType}/{txnID}":          {`{"body":"x","m.relates_to":{"rel_type":"m.thread","event_id":"$x"}}`},
	"PUT /v3/rooms/{roomID}/state/{eventType}/{stateKey...}":   {`{"membership":"join","users":{"a":1.5}}`},
	"PUT /v3/rooms/{roomID}/typing/{userID}":                   {`{"typing":true,"timeout":1}`},
	"POST /v3/publicRooms":                                     {`{"limit":1,"filter":{"generic_search_term":"x","room_types":[null,"a"]}}`},
	"POST /v3/user/{userID}/filter":                            {`{"room":{"timeline":{"types":["m.*"],"limit":1},"rooms":[]},"event_fields":["a.b"]}`},
	"POST /v3/keys/upload":                                     {`{"device_keys":{"user_id":"@alice:test","device_id":"X","algorithms":["a"],"keys":{"a":"b"},"signatures":{"@alice:test":{"a":"b"}}},"one_time_keys":{"a:b":{"key":"c"},"d:e":"f"},"fallback_keys":{"a:b":{"key":"c"}}}`, `{"one_time_keys":{"a:b":null}}`},
	"POST /v3/keys/query":                                      {`{"device_keys":{"@alice:test":["X"],"@x:y":[]}}`},
	"POST /v3/keys/claim":                                      {`{"one_time_keys":{"@alice:test":{"X":"a"},"":{"":""}}}`},
	"POST /v3/keys/device_signing/upload":                      {`{"master_key":{"user_id":"@alice:test","usage":["master"],"keys":{"ed25519:a":"a"}},"self_signing_key":{"user_id":"@alice:test","usage":["self_signing"],"keys":{"ed25519:b":"b"},"signatures":{}}}`},
	"POST /v3/keys/signatures/upload":                          {`{"@alice:test":{"X":{"signatures":{"@alice:test":{"ed25519:a":"b"}}}}}`},
	"PUT /v3/sendToDevice/{eventType}/{txnID}":                 {`{"messages":{"@alice:test":{"*":{},"X":{}}}}`, `{"messages":{"@alice:test":{"*":null}}}`},
	"PUT /v3/pushrules/global/{kind}/{ruleID}":                 {`{"actions":["notify",{"set_tweak":"sound","value":1}],"conditions":[{"kind":"event_match"}],"pattern":"x"}`},
	"PUT /v3/pushrules/global/{kind}/{ruleID}/actions":         {`{"actions":[null]}`, `{"actions":[{}]}`},
	"POST /v3/pushers/set":                                     {`{"app_id":"a","pushkey":"b","kind":"http","lang":"c","app_display_name":"d","device_display_name":"e","data":{"url":"https://a/_matrix/push/v1/notify"}}`, `{"app_id":"a","pushkey":"b","kind":"http","lang":"c","app_display_name":"d","device_display_name":"e","data":null}`},
	"PUT /v3/presence/{userID}/status":                         {`{"presence":"online","status_msg":"x"}`},
	"POST /v3/room_keys/version":                               {`{"algorithm":"a","auth_data":{}}`},
	"PUT /v3/room_keys/version/{version}":                      {`{"algorithm":"a","auth_data":{},"version":"1"}`},
	"PUT /v3/room_keys/keys":                                   {`{"rooms":{"!a":{"sessions":{"b":{"first_message_index":1,"forwarded_count":1,"is_verified":true,"session_data":{}}}}}}`, `{"rooms":{"":null}}`},
	"PUT /v3/room_keys/keys/{roomID}/{sessionID}":              {`{"first_message_index":9007199254740991,"forwarded_count":0,"is_verified":false,"session_data":{}}`},
	"POST /v3/user_directory/search":                           {`{"search_term":"a","limit":-1}`},
	"POST /v3/users/{userID}/report":                           {`{"reason":"x"}`},
	"PUT /v3/profile/{userID}/{field}":                         {`{"m.test":{"a":[1]}}`, `{"displayname":"x"}`},
	"PUT /v3/directory/room/{alias}":                           {`{"room_id":"!x:test"}`},
	"POST /_synapse/admin/v1/register":                         {`{"nonce":"x","username":"a","password":"b","mac":"zz"}`},
	"PUT /v3/user/{userID}/rooms/{roomID}/account_data/{type}": {`{"a":1}`},
	"PUT /v3/rooms/{roomID}/redact/{eventID}/{txnID}":          {`{"reason":"x"}`},
	"POST /v3/rooms/{roomID}/receipt/{type}/{eventID}":         {`{"thread_id":"main"}`},
	"POST /v3/search":                                          {`{"search_categories":{"room_events":{"search_term":"hello"}}}`},
}
