package appservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// network is a third-party network for tests.
type network struct{}

func (network) Protocol(_ context.Context, name string) (*Protocol, error) {
	if name != "irc" {
		return nil, nil
	}
	return &Protocol{UserFields: []string{"nick"}, LocationFields: []string{"channel"}}, nil
}
func (network) Locations(_ context.Context, p string, f url.Values) ([]Location, error) {
	return []Location{{"#a:hs", p, map[string]string{"channel": f.Get("channel")}}}, nil
}
func (network) Users(context.Context, string, url.Values) ([]ThirdPartyUser, error) { return nil, nil }
func (network) LocationsOf(context.Context, matrix.RoomAlias) ([]Location, error)   { return nil, nil }
func (network) UsersOf(_ context.Context, u matrix.UserID) ([]ThirdPartyUser, error) {
	return []ThirdPartyUser{{u, "irc", nil}}, nil
}

func ask(h http.Handler, method, target, body string, header ...string) (int, string) {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for _, v := range header {
		r.Header.Set("Authorization", v)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func TestHandler(t *testing.T) {
	const token = "Bearer hs-token"
	const app = "/_matrix/app/v1"
	h := NewHandler(HandlerOptions{
		HSToken:     "hs-token",
		Transaction: func(context.Context, *Transaction) error { return nil },
		User: func(_ context.Context, u matrix.UserID) (bool, error) {
			if u == "@broken:hs" {
				return false, errors.New("secret detail")
			}
			return u == "@g/x:hs", nil
		},
		Alias:      func(_ context.Context, a matrix.RoomAlias) (bool, error) { return a == "#a:hs", nil },
		ThirdParty: network{},
	})
	tests := []struct {
		name, method, path, body, auth string
		status                         int
		want                           string
	}{
		{"transaction", "PUT", app + "/transactions/1", `{"events":[]}`, token, 200, `{}`},
		{"transaction on the old path", "PUT", "/transactions/1", `{"events":[]}`, token, 200, `{}`},
		{"token in the query", "PUT", "/transactions/1?access_token=hs-token", `{"events":[]}`, "", 200, `{}`},
		{"no token", "PUT", app + "/transactions/1", `{}`, "", 401, `{"errcode":"M_MISSING_TOKEN","error":"Missing access token"}`},
		{"wrong token", "PUT", app + "/transactions/1", `{}`, "Bearer x", 403, `{"errcode":"M_FORBIDDEN","error":"Bad access token"}`},
		{"a header that is wrong is not mended by the query", "PUT", app + "/transactions/1?access_token=hs-token", `{}`, "Bearer x", 403, `{"errcode":"M_FORBIDDEN","error":"Bad access token"}`},
		{"wrong method", "POST", app + "/transactions/1", `{}`, token, 405, `{"errcode":"M_UNRECOGNIZED","error":"Method not allowed"}`},
		{"unknown path", "GET", app + "/nonsense", ``, token, 404, `{"errcode":"M_UNRECOGNIZED","error":"Unrecognized request"}`},
		{"not JSON", "PUT", app + "/transactions/1", `{`, token, 400, `{"errcode":"M_NOT_JSON","error":"The transaction is not JSON of its form"}`},
		{"user", "GET", app + "/users/%40g%2Fx%3Ahs", ``, token, 200, `{}`},
		{"no such user", "GET", "/users/%40h%3Ahs", ``, token, 404, `{"errcode":"M_NOT_FOUND","error":"Not found"}`},
		{"not a user ID", "GET", "/users/h", ``, token, 404, `{"errcode":"M_NOT_FOUND","error":"Not found"}`},
		{"a fault of ours says nothing", "GET", app + "/users/@broken:hs", ``, token, 500, `{"errcode":"M_UNKNOWN","error":"Internal error"}`},
		{"alias", "GET", app + "/rooms/%23a:hs", ``, token, 200, `{}`},
		{"no such alias", "GET", app + "/rooms/%23b:hs", ``, token, 404, `{"errcode":"M_NOT_FOUND","error":"Not found"}`},
		{"ping", "POST", app + "/ping", `{"transaction_id":"x"}`, token, 200, `{}`},
		{"protocol", "GET", app + "/thirdparty/protocol/irc", ``, token, 200,
			`{"user_fields":["nick"],"location_fields":["channel"],"icon":"","field_types":null,"instances":null}`},
		{"no such protocol", "GET", app + "/thirdparty/protocol/x", ``, token, 404, `{"errcode":"M_NOT_FOUND","error":"Not found"}`},
		{"location", "GET", app + "/thirdparty/location/irc?channel=%23c", ``, token, 200, `[{"alias":"#a:hs","protocol":"irc","fields":{"channel":"#c"}}]`},
		{"location of an alias", "GET", "/_matrix/app/unstable/thirdparty/location?alias=%23a:hs", ``, token, 200, `[]`},
		{"user of a network", "GET", app + "/thirdparty/user/irc?nick=n", ``, token, 200, `[]`},
		{"user of a user ID", "GET", app + "/thirdparty/user?userid=@u:hs", ``, token, 200, `[{"userid":"@u:hs","protocol":"irc","fields":null}]`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var auth []string
			if tt.auth != "" {
				auth = []string{tt.auth}
			}
			status, body := ask(h, tt.method, tt.path, tt.body, auth...)
			if status != tt.status || body != tt.want {
				t.Errorf("%d %s, want %d %s", status, body, tt.status, tt.want)
			}
		})
	}
}

func TestATransactionArrivesWholeAndIsAnsweredWhenTaken(t *testing.T) {
	var got *Transaction
	result := errors.New("not stored")
	h := NewHandler(HandlerOptions{HSToken: "t", Transaction: func(_ context.Context, tx *Transaction) error { got = tx; return result }})
	body := `{"events":[
		{"type":"m.room.member","state_key":"@a:hs","sender":"@b:hs","Sender":"@evil:hs","room_id":"!r","event_id":"$1","origin_server_ts":5,"content":{"membership":"join"},"unsigned":{"age":1}},
		{"type":7}, null, "x",
		{"type":"m.room.message","sender":"@b:hs","content":{"body":"\ud800","body":"twice"}}],
		"de.sorunome.msc2409.ephemeral":[{"type":"m.typing","room_id":"!r","content":{"user_ids":[]}}],
		"to_device":[{"type":"m.x","sender":"@b:hs","to_user_id":"@a:hs","to_device_id":"D","content":{}}]}`
	if status, _ := ask(h, "PUT", "/_matrix/app/v1/transactions/a%2Fb", body, "Bearer t"); status != 500 {
		t.Errorf("status %d for a transaction that was not stored", status)
	}
	result = nil
	if status, _ := ask(h, "PUT", "/_matrix/app/v1/transactions/a%2Fb", body, "Bearer t"); status != 200 {
		t.Errorf("status %d", status)
	}
	if got.ID != "a/b" || len(got.Events) != 2 || len(got.Ephemeral) != 1 || len(got.ToDevice) != 1 {
		t.Fatalf("%+v", got)
	}
	e := got.Events[0]
	if e.Sender != "@b:hs" || e.ID != "$1" || e.RoomID != "!r" || *e.StateKey != "@a:hs" || e.OriginServerTS != 5 || string(e.Unsigned) != `{"age":1}` {
		t.Errorf("%+v", e)
	}
	if d := got.ToDevice[0]; d.ToUserID != "@a:hs" || d.ToDeviceID != "D" {
		t.Errorf("%+v", d)
	}
}

func TestTransactionsAreHandedOverOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var inside, most, done atomic.Int32
		h := NewHandler(HandlerOptions{HSToken: "t", Transaction: func(context.Context, *Transaction) error {
			most.Store(max(most.Load(), inside.Add(1)))
			time.Sleep(time.Second) // of the bubble: all others have arrived by its end
			inside.Add(-1)
			return nil
		}})
		for i := range 3 {
			go func() {
				if status, _ := ask(h, "PUT", fmt.Sprintf("/transactions/%d", i), `{}`, "Bearer t"); status == 200 {
					done.Add(1)
				}
			}()
		}
		time.Sleep(time.Minute)
		if most.Load() != 1 || done.Load() != 3 {
			t.Errorf("%d at once, %d done", most.Load(), done.Load())
		}
	})
}

func TestRegistrationFile(t *testing.T) {
	r := NewRegistration("gjallar", "http://127.0.0.1:1", "bot")
	r.Namespaces.Users = []Namespace{UserNamespace("irc_", "hs.example")}
	r.Namespaces.Aliases = []Namespace{AliasNamespace("irc_", "hs.example")}
	var b strings.Builder
	if err := WriteYAML(&b, r); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"id: gjallar\n", "sender_localpart: bot\n", "rate_limited: false\n", `regex: '@irc_.*:hs\.example'`, "rooms: []\n", "receive_ephemeral: true\n", "de.sorunome.msc2409.push_ephemeral: true\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	back, err := ReadYAML(strings.NewReader(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	x, _ := json.Marshal(r)
	if y, _ := json.Marshal(back); string(x) != string(y) {
		t.Errorf("read back as %s", y)
	}
	if _, err := ReadYAML(strings.NewReader("id: x\n")); err == nil {
		t.Error("a registration without tokens was taken")
	}
	if len(r.ASToken) < 32 || r.ASToken == r.HSToken {
		t.Error("weak tokens")
	}
}

func FuzzTransaction(f *testing.F) {
	f.Add([]byte(`{"events":[{"type":"m.room.message","sender":"@a:b","content":{}}],"ephemeral":null}`))
	f.Add([]byte(`{"events":[[],{"state_key":null}],"to_device":[{}]}`))
	h := NewHandler(HandlerOptions{HSToken: "t", Transaction: func(_ context.Context, t *Transaction) error { _, err := json.Marshal(t); return err }})
	f.Fuzz(func(t *testing.T, b []byte) {
		if status, body := ask(h, "PUT", "/transactions/1", string(b), "Bearer t"); status != 200 && status != 400 {
			t.Errorf("%d %s", status, body)
		}
	})
}
