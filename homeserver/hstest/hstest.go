// Package hstest starts homeservers for tests and speaks to them as a client.
package hstest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver"
	"github.com/gjallar-im/gjallar/homeserver/accounts"
	"github.com/gjallar-im/gjallar/homeserver/hstest/postgres"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// Server is a homeserver on a loopback port, named "test".
type Server struct {
	*homeserver.Server
	tb  testing.TB
	URL string
	DB  *sqldb.DB
}

// Start starts a homeserver on a new SQLite database, with open registration. It
// ends with the test. change may change its options.
func Start(tb testing.TB, change ...func(*homeserver.Options)) *Server {
	tb.Helper()
	return StartOn(tb, "sqlite:"+filepath.Join(tb.TempDir(), "test.db"), change...)
}

// Both runs a test on SQLite and on PostgreSQL.
func Both(t *testing.T, f func(*testing.T, *Server)) {
	t.Run("SQLite", func(t *testing.T) { f(t, Start(t)) })
	t.Run("PostgreSQL", func(t *testing.T) { f(t, StartOn(t, postgres.Start(t))) })
}

// StartOn is Start on a given database.
func StartOn(tb testing.TB, dsn string, change ...func(*homeserver.Options)) *Server {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	db, err := sqldb.Open(ctx, dsn)
	if err != nil {
		tb.Fatal(err)
	}
	o := homeserver.Options{
		ServerName: "test", DB: db, Key: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), KeyID: "ed25519:test", MediaDir: tb.TempDir(),
		MaxUpload: 10 << 20, Registration: "open", PasswordCost: accounts.CheapCost, Log: slog.New(slog.NewTextHandler(logWriter{tb}, &slog.HandlerOptions{Level: logLevel()})),
	}
	for _, c := range change {
		c(&o)
	}
	hs, err := homeserver.New(ctx, o)
	if err != nil {
		tb.Fatal(err)
	}
	web := httptest.NewServer(hs.Handler())
	var run sync.WaitGroup
	run.Go(func() {
		if err := hs.Run(ctx); err != nil && ctx.Err() == nil {
			tb.Errorf("homeserver: %v", err)
		}
	})
	tb.Cleanup(func() {
		cancel()
		web.CloseClientConnections()
		web.Close()
		run.Wait()
		hs.Close()
		if err := db.Close(); err != nil {
			tb.Errorf("close database: %v", err)
		}
	})
	return &Server{Server: hs, tb: tb, URL: web.URL, DB: db}
}

// logLevel is Warn, or Debug if GJALLAR_TEST_DEBUG is set.
func logLevel() slog.Level {
	if os.Getenv("GJALLAR_TEST_DEBUG") != "" {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

type logWriter struct{ tb testing.TB }

func (w logWriter) Write(b []byte) (int, error) {
	w.tb.Log(string(bytes.TrimRight(b, "\n")))
	return len(b), nil
}

// User is someone logged in.
type User struct {
	tb     testing.TB
	server *Server
	ID     matrix.UserID
	Device matrix.DeviceID
	Token  string
}

// Register makes an account, with its name as password, and logs it in.
func (s *Server) Register(name string) *User {
	s.tb.Helper()
	u := &User{tb: s.tb, server: s}
	out := u.OK("POST", "/_matrix/client/v3/register", map[string]any{"username": name, "password": name, "auth": map[string]string{"type": "m.login.dummy"}})
	u.ID, u.Device, u.Token = matrix.UserID(out.Str("user_id")), matrix.DeviceID(out.Str("device_id")), out.Str("access_token")
	return u
}

// Nobody makes requests without a token, Service with that of an application service.
func (s *Server) Nobody() *User                { return &User{tb: s.tb, server: s} }
func (s *Server) Service(asToken string) *User { return &User{tb: s.tb, server: s, Token: asToken} }

// JSON is the body of a response.
type JSON map[string]any

// Str returns the text at a path of keys, "" if there is none.
func (j JSON) Str(path ...string) string {
	s, _ := j.At(path...).(string)
	return s
}

// At returns what is at a path of keys, nil if nothing.
func (j JSON) At(path ...string) any {
	var v any = map[string]any(j)
	for _, k := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}

// List returns the objects of the list at a path of keys.
func (j JSON) List(path ...string) (out []JSON) {
	list, _ := j.At(path...).([]any)
	for _, v := range list {
		m, _ := v.(map[string]any)
		out = append(out, m)
	}
	return out
}

// Do makes a request. body is nil, []byte as it is, or a value sent as JSON.
func (u *User) Do(method, path string, body any) (status int, out JSON) {
	u.tb.Helper()
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		reader = bytes.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			u.tb.Fatal(err)
		}
		reader = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(u.tb.Context(), method, u.server.URL+path, reader)
	if err != nil {
		u.tb.Fatal(err)
	}
	if u.Token != "" {
		req.Header.Set("Authorization", "Bearer "+u.Token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		u.tb.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		u.tb.Fatal(err)
	}
	if len(b) > 0 && b[0] == '[' {
		b = append(append([]byte(`{"list":`), b...), '}')
	}
	if err := json.Unmarshal(b, &out); err != nil && resp.StatusCode != http.StatusNoContent {
		u.tb.Fatalf("%s %s: %d %.200q", method, path, resp.StatusCode, b)
	}
	return resp.StatusCode, out
}

// OK is Do for a request that must succeed.
func (u *User) OK(method, path string, body any) JSON {
	u.tb.Helper()
	status, out := u.Do(method, path, body)
	if status != http.StatusOK {
		u.tb.Fatalf("%s %s: %d %v", method, path, status, out)
	}
	return out
}

// Fails is Do for a request that must be refused with a status and an errcode.
func (u *User) Fails(status int, code, method, path string, body any) JSON {
	u.tb.Helper()
	got, out := u.Do(method, path, body)
	if got != status || out.Str("errcode") != code {
		u.tb.Errorf("%s %s: %d %v, want %d %s", method, path, got, out, status, code)
	}
	return out
}

// CreateRoom makes a room; nil is a private one.
func (u *User) CreateRoom(options map[string]any) matrix.RoomID {
	u.tb.Helper()
	if options == nil {
		options = map[string]any{}
	}
	return matrix.RoomID(u.OK("POST", "/_matrix/client/v3/createRoom", options).Str("room_id"))
}

// Path of a room: "/_matrix/client/v3/rooms/" and the ID, escaped.
func Path(room matrix.RoomID) string {
	return "/_matrix/client/v3/rooms/" + url.PathEscape(string(room))
}

// Join joins a room by its ID or alias.
func (u *User) Join(room string) {
	u.tb.Helper()
	u.OK("POST", "/_matrix/client/v3/join/"+url.PathEscape(room), nil)
}

// Say sends a text message under a transaction ID, which is the text.
func (u *User) Say(room matrix.RoomID, text string) matrix.EventID {
	u.tb.Helper()
	out := u.OK("PUT", Path(room)+"/send/m.room.message/"+url.PathEscape(text), map[string]string{"msgtype": "m.text", "body": text})
	return matrix.EventID(out.Str("event_id"))
}

// Sync calls /sync with a query, "" for the first.
func (u *User) Sync(query string) JSON {
	u.tb.Helper()
	return u.OK("GET", "/_matrix/client/v3/sync?"+query, nil)
}

// Bodies are the texts of the messages in a room's timeline of a sync.
func (j JSON) Bodies(room matrix.RoomID) (out []string) {
	for _, e := range j.List("rooms", "join", string(room), "timeline", "events") {
		if b := e.Str("content", "body"); b != "" {
			out = append(out, b)
		}
	}
	return out
}
