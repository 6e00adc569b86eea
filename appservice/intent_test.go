package appservice

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// homeserver is a peer that records requests and answers from a script.
type homeserver struct {
	*httptest.Server

	mu      sync.Mutex
	asked   []string                      // guarded by mu: "METHOD path?query body"
	answers map[string][]http.HandlerFunc // guarded by mu: by "METHOD path"; the last one stays
}

func newHomeserver(t *testing.T) *homeserver {
	h := &homeserver{answers: map[string][]http.HandlerFunc{}}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	return h
}

func (h *homeserver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	line := r.Method + " " + r.URL.RequestURI()
	if len(body) > 0 {
		line += " " + string(body)
	}
	if token := r.Header.Get("Authorization"); token != "Bearer as-token" {
		line += " (" + token + ")"
	}
	h.mu.Lock()
	h.asked = append(h.asked, line)
	list := h.answers[r.Method+" "+r.URL.EscapedPath()]
	if len(list) > 1 {
		h.answers[r.Method+" "+r.URL.EscapedPath()] = list[1:]
	}
	h.mu.Unlock()
	if len(list) == 0 {
		io.WriteString(w, `{}`)
		return
	}
	list[0](w, r)
}

func (h *homeserver) script(what string, answers ...http.HandlerFunc) { h.answers[what] = answers }

// requests made but for registrations.
func (h *homeserver) requests() (out []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, line := range h.asked {
		if !strings.Contains(line, "/register") {
			out = append(out, line)
		}
	}
	return out
}

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

// hangUp closes the connection without an answer.
func hangUp(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }

func testRegistration() *Registration {
	return &Registration{ID: "bridge", ASToken: "as-token", HSToken: "hs-token", SenderLocalpart: "bot"}
}

func client(h *homeserver) *Client {
	return New(Options{HomeserverURL: h.URL + "/", Registration: testRegistration(), ServerName: "hs"})
}

const v3 = "/_matrix/client/v3"

func TestRequestsAreThoseOfTheSpecification(t *testing.T) {
	ctx := t.Context()
	ghost := "user_id=%40ghost_a%3Ahs"
	tests := []struct {
		name string
		do   func(bot, i *Intent) error
		want string
	}{
		{"send", func(_, i *Intent) error {
			_, err := i.Send(ctx, "!r:hs", "m.room.message", "t/1", map[string]string{"body": "x"}, time.Time{})
			return err
		}, `PUT ` + v3 + `/rooms/%21r:hs/send/m.room.message/t%2F1?` + ghost + ` {"body":"x"}`},
		{"send with a time", func(_, i *Intent) error {
			_, err := i.Send(ctx, "!r:hs", "m.room.message", "t", struct{}{}, time.UnixMilli(1234))
			return err
		}, `PUT ` + v3 + `/rooms/%21r:hs/send/m.room.message/t?` + ghost + `&ts=1234 {}`},
		{"the bot is not named", func(bot, _ *Intent) error { _, err := bot.JoinedRooms(ctx); return err },
			`GET ` + v3 + `/joined_rooms`},
		{"set state", func(_, i *Intent) error {
			_, err := i.SendState(ctx, "!r", "m.room.topic", "", map[string]string{"topic": "<t>"})
			return err
		}, `PUT ` + v3 + `/rooms/%21r/state/m.room.topic/?` + ghost + ` {"topic":"\u003ct\u003e"}`},
		{"redact", func(_, i *Intent) error { _, err := i.Redact(ctx, "!r", "$e/x", "t", "spam"); return err },
			`PUT ` + v3 + `/rooms/%21r/redact/$e%2Fx/t?` + ghost + ` {"reason":"spam"}`},
		{"join", func(_, i *Intent) error { _, err := i.Join(ctx, "#a:b", "s1", "s2"); return err },
			`POST ` + v3 + `/join/%23a:b?` + ghost + `&server_name=s1&server_name=s2&via=s1&via=s2 {}`},
		{"leave", func(_, i *Intent) error { return i.Leave(ctx, "!r", "") }, `POST ` + v3 + `/rooms/%21r/leave?` + ghost + ` {}`},
		{"ban", func(_, i *Intent) error { return i.Ban(ctx, "!r", "@u:b", "no") },
			`POST ` + v3 + `/rooms/%21r/ban?` + ghost + ` {"reason":"no","user_id":"@u:b"}`},
		{"alias", func(bot, _ *Intent) error { return bot.CreateAlias(ctx, "#a:hs", "!r") },
			`PUT ` + v3 + `/directory/room/%23a:hs {"room_id":"!r"}`},
		{"no alias", func(bot, _ *Intent) error { return bot.DeleteAlias(ctx, "#a:hs") }, `DELETE ` + v3 + `/directory/room/%23a:hs`},
		{"name", func(_, i *Intent) error { return i.SetDisplayName(ctx, "A") },
			`PUT ` + v3 + `/profile/@ghost_a:hs/displayname?` + ghost + ` {"displayname":"A"}`},
		{"typing", func(_, i *Intent) error { return i.Typing(ctx, "!r", true, 3*time.Second) },
			`PUT ` + v3 + `/rooms/%21r/typing/@ghost_a:hs?` + ghost + ` {"timeout":3000,"typing":true}`},
		{"no typing", func(_, i *Intent) error { return i.Typing(ctx, "!r", false, 0) },
			`PUT ` + v3 + `/rooms/%21r/typing/@ghost_a:hs?` + ghost + ` {"typing":false}`},
		{"receipt", func(_, i *Intent) error { return i.Receipt(ctx, "!r", "$e") }, `POST ` + v3 + `/rooms/%21r/receipt/m.read/$e?` + ghost + ` {}`},
		{"history", func(_, i *Intent) error { _, err := i.Messages(ctx, "!r", "", "b", 20); return err },
			`GET ` + v3 + `/rooms/%21r/messages?` + ghost + `&dir=b&limit=20`},
		{"upload", func(_, i *Intent) error {
			_, err := i.Upload(ctx, "text/plain", "a b.txt", strings.NewReader("file"), 4)
			return err
		}, `POST /_matrix/media/v3/upload?` + ghost + `&filename=a+b.txt file`},
		{"ping", func(bot, _ *Intent) error { _, err := bot.Ping(ctx, "p"); return err },
			`POST /_matrix/client/v1/appservice/bridge/ping {"transaction_id":"p"}`},
		{"directory", func(bot, _ *Intent) error { _, err := bot.PublicRooms(ctx, "q", 5); return err },
			`POST ` + v3 + `/publicRooms {"filter":{"generic_search_term":"q"},"limit":5}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHomeserver(t)
			c := client(h)
			if err := tt.do(c.Bot(), c.As("@ghost_a:hs")); err != nil {
				t.Fatal(err)
			}
			if got := h.requests(); len(got) != 1 || got[0] != tt.want {
				t.Errorf("asked %q\nwant  %q", got, tt.want)
			}
		})
	}
}

func TestAnswersAreRead(t *testing.T) {
	ctx, h := t.Context(), newHomeserver(t)
	bot := client(h).Bot()
	h.script("PUT "+v3+"/rooms/%21r/send/m/t", answer(200, `{"event_id":"$e"}`))
	if id, err := bot.Send(ctx, "!r", "m", "t", struct{}{}, time.Time{}); id != "$e" || err != nil {
		t.Error(id, err)
	}
	// A second key that differs in case must not replace the sender.
	h.script("GET "+v3+"/rooms/%21r/state", answer(200, `[{"type":"m.room.topic","state_key":"","sender":"@a:hs","Sender":"@evil:hs","content":{"topic":"x"},"unsigned":{"age":3}}]`))
	state, err := bot.State(ctx, "!r")
	if err != nil || len(state) != 1 || state[0].Sender != "@a:hs" || !state[0].IsState() || string(state[0].Content) != `{"topic":"x"}` {
		t.Errorf("%+v %v", state, err)
	}
	h.script("GET "+v3+"/rooms/%21r/joined_members", answer(200, `{"joined":{"@a:hs":{"display_name":"A","avatar_url":null}}}`))
	if m, err := bot.JoinedMembers(ctx, "!r"); err != nil || m["@a:hs"] != (Profile{DisplayName: "A"}) {
		t.Error(m, err)
	}
	h.script("GET "+v3+"/rooms/%21r/messages", answer(200, `{"start":"s","end":"e","chunk":[{"type":"m","event_id":"$1"}]}`))
	if p, err := bot.Messages(ctx, "!r", "", "b", 1); err != nil || p.End != "e" || len(p.Chunk) != 1 || p.Chunk[0].ID != "$1" {
		t.Error(p, err)
	}
	h.script("GET "+v3+"/rooms/%21r/event/$1", answer(404, `{"errcode":"M_NOT_FOUND","error":"no"}`))
	_, err = bot.Event(ctx, "!r", "$1")
	if e, ok := errors.AsType[*Error](err); !ok || e.Status != 404 || e.Code != matrix.CodeNotFound || e.Message != "no" {
		t.Error(err)
	}
}

func TestAUserIsRegisteredOnce(t *testing.T) {
	h := newHomeserver(t)
	c := client(h)
	h.script("POST "+v3+"/register", answer(400, `{"errcode":"M_USER_IN_USE","error":"taken"}`))
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := c.As("@g:hs").SetAvatarURL(t.Context(), "mxc://a/b"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	want := `POST ` + v3 + `/register {"inhibit_login":true,"type":"m.login.application_service","username":"g"}`
	if len(h.asked) != 21 || h.asked[0] != want {
		t.Errorf("%d requests, first %q", len(h.asked), h.asked[0])
	}
}

func TestARefusedRegistrationIsTriedAgainNextTime(t *testing.T) {
	h := newHomeserver(t)
	c := client(h)
	h.script("POST "+v3+"/register", answer(400, `{"errcode":"M_EXCLUSIVE","error":"no"}`), answer(200, `{}`))
	if _, err := c.As("@g:hs").JoinedRooms(t.Context()); err == nil {
		t.Error("no error")
	}
	if _, err := c.As("@g:hs").JoinedRooms(t.Context()); err != nil {
		t.Error(err)
	}
	if got := h.requests(); len(got) != 1 {
		t.Error(got)
	}
}

func TestRepetition(t *testing.T) {
	limited := answer(429, `{"errcode":"M_LIMIT_EXCEEDED","error":"slow down","retry_after_ms":1}`)
	ok := answer(200, `{"event_id":"$e"}`)
	const put, post = "PUT", "POST"
	tests := []struct {
		name    string
		method  string
		answers []http.HandlerFunc
		asked   int
		status  int // of the error; 0 none, -1 not the homeserver's
	}{
		{"a limited PUT is repeated", put, []http.HandlerFunc{limited, limited, ok}, 3, 0},
		{"a limited POST is repeated", post, []http.HandlerFunc{limited, ok}, 2, 0},
		{"a PUT without answer is repeated", put, []http.HandlerFunc{hangUp, hangUp, ok}, 3, 0},
		{"a PUT that a gateway cannot pass on is repeated", put, []http.HandlerFunc{answer(502, "<html>"), ok}, 2, 0},
		{"a POST without answer is not repeated", post, []http.HandlerFunc{hangUp}, 1, -1},
		{"a POST that a gateway cannot pass on is not repeated", post, []http.HandlerFunc{answer(502, "<html>")}, 1, 502},
		{"a refusal is final", put, []http.HandlerFunc{answer(403, `{"errcode":"M_FORBIDDEN","error":"no"}`)}, 1, 403},
		{"an answer that is not JSON is final", put, []http.HandlerFunc{answer(200, `<html>`)}, 1, -1},
		{"a fault of the homeserver is final", put, []http.HandlerFunc{answer(500, `{"errcode":"M_UNKNOWN","error":"oops"}`)}, 1, 500},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHomeserver(t)
			i := client(h).As("@g:hs")
			h.script("PUT "+v3+"/rooms/%21r/send/m/t", tt.answers...)
			h.script("POST "+v3+"/rooms/%21r/leave", tt.answers...)
			var err error
			if tt.method == put {
				_, err = i.Send(t.Context(), "!r", "m", "t", struct{}{}, time.Time{})
			} else {
				err = i.Leave(t.Context(), "!r", "")
			}
			e, refused := errors.AsType[*Error](err)
			switch {
			case tt.status == 0 && err != nil, tt.status == -1 && (err == nil || refused), tt.status > 0 && (!refused || e.Status != tt.status):
				t.Errorf("error %v", err)
			}
			got := h.requests()
			if n := len(got); n != tt.asked || len(slices.Compact(got)) != 1 {
				t.Errorf("asked %q, want %d times the same", got, tt.asked)
			}
		})
	}
}

func TestALimitLongerThanTheCallerHasIsNotWaitedFor(t *testing.T) {
	h := newHomeserver(t)
	h.script("POST "+v3+"/rooms/%21r/leave", answer(429, `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":3600000}`))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := client(h).Bot().Leave(ctx, "!r", "")
	if e, ok := errors.AsType[*Error](err); !ok || e.RetryAfter != time.Hour {
		t.Error(err)
	}
}

func TestATokenMadeToCheckAPasswordIsGivenUp(t *testing.T) {
	h := newHomeserver(t)
	h.script("POST "+v3+"/login", answer(200, `{"user_id":"@u:hs","access_token":"secret"}`), answer(403, `{"errcode":"M_FORBIDDEN","error":"Invalid password"}`))
	bot := client(h).Bot()
	if u, err := bot.Login(t.Context(), "u", "pw"); u != "@u:hs" || err != nil {
		t.Error(u, err)
	}
	want := []string{
		`POST ` + v3 + `/login {"identifier":{"type":"m.id.user","user":"u"},"password":"pw","type":"m.login.password"} ()`,
		`POST ` + v3 + `/logout {} (Bearer secret)`,
	}
	if got := h.requests(); !slices.Equal(got, want) {
		t.Errorf("asked %q", got)
	}
	_, err := bot.Login(t.Context(), "u", "wrong")
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != matrix.CodeForbidden {
		t.Error(err)
	}
}

func TestDownloadTakesTheOldPathWhereThereIsNoNewOne(t *testing.T) {
	h := newHomeserver(t)
	h.script("GET /_matrix/client/v1/media/download/hs/id", answer(404, `{"errcode":"M_UNRECOGNIZED","error":"?"}`))
	h.script("GET /_matrix/media/v3/download/hs/id", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "image/png; x=y")
		io.WriteString(w, "picture")
	})
	bot := client(h).Bot()
	for range 2 {
		body, mediaType, size, err := bot.Download(t.Context(), "mxc://hs/id")
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(body)
		body.Close()
		if string(b) != "picture" || mediaType != "image/png" || size != 7 {
			t.Error(string(b), mediaType, size)
		}
	}
	if got := h.requests(); len(got) != 3 {
		t.Errorf("asked %q", got)
	}
	for _, bad := range []string{"", "mxc://", "mxc://hs", "mxc://hs/", "mxc://hs/a/b", "https://hs/id"} {
		if _, _, _, err := bot.Download(t.Context(), bad); !errors.Is(err, ErrBadMXC) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestAnUploadIsRepeatedFromItsBeginning(t *testing.T) {
	h := newHomeserver(t)
	h.script("POST /_matrix/media/v3/upload", answer(429, `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":1}`), answer(200, `{"content_uri":"mxc://hs/1"}`))
	mxc, err := client(h).Bot().Upload(t.Context(), "", "", strings.NewReader("file"), 4)
	if got := h.requests(); mxc != "mxc://hs/1" || err != nil || len(got) != 2 || got[0] != got[1] {
		t.Errorf("%q %v, asked %q", mxc, err, got)
	}
}
