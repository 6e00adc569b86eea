package asapi

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

// peer is an application service that answers by path.
type peer struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string // guarded by mu
}

func newPeer(t *testing.T, answers map[string]string) *peer {
	p := &peer{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.asked = append(p.asked, r.Method+" "+r.URL.RequestURI())
		p.mu.Unlock()
		if r.Header.Get("Authorization") != "Bearer hs-token" {
			t.Errorf("%s with %q", r.URL, r.Header.Get("Authorization"))
		}
		body, ok := answers[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			body = `{"errcode":"M_NOT_FOUND"}`
		}
		if status, rest, found := strings.Cut(body, "|"); found {
			w.WriteHeader(map[string]int{"404": 404, "500": 500}[status])
			body = rest
		}
		io.WriteString(w, body)
	}))
	t.Cleanup(p.Close)
	return p
}

// asking is a worker with two services: of "@a_", "#a_" and the protocols p and q,
// and of "@b_", "#b_" and p.
func asking(t *testing.T, a, b string) *Worker {
	r := NewRegistry("hs")
	for _, s := range []struct {
		id, url   string
		protocols []string
	}{{"a", a, []string{"p", "q"}}, {"b", b, []string{"p"}}} {
		_, err := r.Add(matrix.Registration{
			ID: s.id, URL: s.url, ASToken: s.id, HSToken: "hs-token", SenderLocalpart: s.id, Protocols: s.protocols,
			Namespaces: matrix.Namespaces{
				Users:   []matrix.Namespace{{Exclusive: true, Regex: "@" + s.id + "_.*"}},
				Aliases: []matrix.Namespace{{Exclusive: true, Regex: "#" + s.id + "_.*"}},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return New(Options{Registry: r, Hub: streams.NewHub(0, 0)})
}

func TestQueries(t *testing.T) {
	a := newPeer(t, map[string]string{
		"/_matrix/app/v1/users/@a_yes:hs": `{}`, "/_matrix/app/v1/rooms/#a_yes:hs": `{}`, "/_matrix/app/v1/rooms/#a_broken:hs": `500|{}`,
	})
	old := newPeer(t, map[string]string{ // knows only the paths of before v1, and no error codes
		"/users/@b_yes:hs": `{}`, "/_matrix/app/v1/users/@b_yes:hs": `404|<html>`, "/_matrix/app/v1/rooms/#b_yes:hs": `404|<html>`, "/rooms/#b_yes:hs": `{}`,
	})
	w := asking(t, a.URL, old.URL)
	tests := []struct {
		name  string
		query func() (bool, error)
		want  bool
		fails bool
	}{
		{"user", func() (bool, error) { return w.QueryUser(t.Context(), "@a_yes:hs") }, true, false},
		{"no such user", func() (bool, error) { return w.QueryUser(t.Context(), "@a_no:hs") }, false, false},
		{"user that is nobody's", func() (bool, error) { return w.QueryUser(t.Context(), "@yes:hs") }, false, false},
		{"the service's own user is not asked for", func() (bool, error) { return w.QueryUser(t.Context(), "@a:hs") }, false, false},
		{"user on the old path", func() (bool, error) { return w.QueryUser(t.Context(), "@b_yes:hs") }, true, false},
		{"alias", func() (bool, error) { return w.QueryAlias(t.Context(), "#a_yes:hs") }, true, false},
		{"alias on the old path", func() (bool, error) { return w.QueryAlias(t.Context(), "#b_yes:hs") }, true, false},
		{"service that fails", func() (bool, error) { return w.QueryAlias(t.Context(), "#a_broken:hs") }, false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := tt.query(); got != tt.want || (err != nil) != tt.fails {
				t.Error(got, err)
			}
		})
	}
	// Once it is known to be old, the new path is not tried first.
	want := []string{"GET /_matrix/app/v1/users/@b_yes:hs", "GET /users/@b_yes:hs", "GET /rooms/%23b_yes:hs"}
	if !slices.Equal(old.asked, want) {
		t.Errorf("asked %q, want %q", old.asked, want)
	}
	for _, line := range a.asked {
		if strings.Contains(line, "@a:hs") || strings.Contains(line, "@yes:hs") {
			t.Errorf("asked %q", line)
		}
	}
}

func TestThirdPartyAnswersAreJoined(t *testing.T) {
	a := newPeer(t, map[string]string{
		"/_matrix/app/v1/thirdparty/protocol/p": `{"instances":[1]}`, "/_matrix/app/v1/thirdparty/protocol/q": `{"instances":[2]}`,
		"/_matrix/app/v1/thirdparty/location/p": `[{"alias":"#a_1:hs"}]`, "/_matrix/app/v1/thirdparty/user": `[{"userid":"@a_1:hs"}]`,
		"/_matrix/app/v1/thirdparty/user/q": `{"not":"a list"}`,
	})
	b := newPeer(t, map[string]string{
		"/_matrix/app/v1/thirdparty/protocol/p": `{"instances":[3]}`, "/_matrix/app/v1/thirdparty/location/p": `[{"alias":"#b_1:hs"},{"alias":"#b_2:hs"}]`,
		"/_matrix/app/v1/thirdparty/user": `[]`,
	})
	w := asking(t, a.URL, b.URL)
	tests := []struct{ kind, protocol, want string }{
		{"protocol", "p", `{"instances":[1]} {"instances":[3]}`},
		{"protocol", "q", `{"instances":[2]}`},
		{"protocol", "nobody's", ``},
		{"location", "p", `{"alias":"#a_1:hs"} {"alias":"#b_1:hs"} {"alias":"#b_2:hs"}`},
		{"user", "", `{"userid":"@a_1:hs"}`},
		{"user", "q", ``}, // an answer of another form
		{"user", "p", ``}, // 404
	}
	for _, tt := range tests {
		t.Run(tt.kind+" "+tt.protocol, func(t *testing.T) {
			list, err := w.ThirdParty(t.Context(), tt.kind, tt.protocol, url.Values{"f": {"x y"}})
			var got []string
			for _, v := range list {
				got = append(got, string(v))
			}
			if strings.Join(got, " ") != tt.want || err != nil {
				t.Errorf("%q %v", got, err)
			}
		})
	}
	if !slices.Contains(a.asked, "GET /_matrix/app/v1/thirdparty/location/p?f=x+y") {
		t.Errorf("asked %q", a.asked)
	}
}

func TestPing(t *testing.T) {
	good := newPeer(t, map[string]string{"/_matrix/app/v1/ping": `{}`})
	broken := newPeer(t, map[string]string{"/_matrix/app/v1/ping": `500|oops`})
	gone := newPeer(t, nil)
	gone.Close()
	tests := []struct {
		name, url, code string
		status          int
	}{
		{"service answers", good.URL, "", 0},
		{"service without url", "", matrix.CodeURLNotSet, 400},
		{"service that fails", broken.URL, matrix.CodeBadStatus, 502},
		{"service that is not there", gone.URL, matrix.CodeConnectionFailed, 502},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := asking(t, tt.url, "")
			s, _ := w.Registry.ByID("a")
			ms, err := w.Ping(t.Context(), s, "t")
			e, ok := errors.AsType[*matrix.Error](err)
			if tt.code == "" && (err != nil || ms < 0) || tt.code != "" && (!ok || e.Code != tt.code || e.Status != tt.status) {
				t.Errorf("%d %v", ms, err)
			}
			if tt.code == matrix.CodeBadStatus && (e.Extra["status"] != 500 || e.Extra["body"] != "oops") {
				t.Errorf("%v", e.Extra)
			}
		})
	}
}

func TestRegistry(t *testing.T) {
	reg := func(id, token, sender, users string, exclusive bool) matrix.Registration {
		return matrix.Registration{ID: id, ASToken: token, HSToken: "h", SenderLocalpart: sender,
			Namespaces: matrix.Namespaces{Users: []matrix.Namespace{{Exclusive: exclusive, Regex: users}}}}
	}
	r := NewRegistry("hs")
	if _, err := r.Add(reg("a", "ta", "sa", "@a_.*", true)); err != nil {
		t.Fatal(err)
	}
	for name, clash := range map[string]matrix.Registration{
		"ID": reg("a", "t", "s", "x", true), "token": reg("b", "ta", "s", "x", true), "sender": reg("b", "t", "sa", "x", true),
	} {
		if _, err := r.Add(clash); !errors.Is(err, ErrDuplicate) {
			t.Errorf("the same %s: %v", name, err)
		}
	}
	if _, err := r.Add(reg("b", "t", "s", "(", true)); err == nil || errors.Is(err, ErrDuplicate) {
		t.Errorf("a bad expression: %v", err)
	}
	if _, err := r.Add(reg("b", "tb", "sb", "@a_.*|@b", false)); err != nil {
		t.Fatal(err)
	}
	for u, want := range map[matrix.UserID]string{"@a_x:hs": "a", "@sa:hs": "a", "@sb:hs": "b", "@b:hs": "", "x@a_x:hs": ""} {
		s, ok := r.ExclusiveUser(u)
		if ok != (want != "") || ok && s.Registration.ID != want {
			t.Errorf("%s belongs to %v", u, s)
		}
	}
	if _, err := r.Replace(reg("a", "ta2", "sa", "@c_.*", true)); err != nil {
		t.Fatal(err)
	}
	if _, old := r.ByToken("ta"); old {
		t.Error("the token of a replaced registration counts")
	}
	if s, ok := r.ByToken("ta2"); !ok || !s.OwnsUser("@c_1:hs") || s.OwnsUser("@a_1:hs") {
		t.Error("the new registration does not count")
	}
	if !r.Remove("a") || r.Remove("a") || len(r.All()) != 1 {
		t.Error("removal")
	}
}
