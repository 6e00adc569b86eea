package puppeting

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/homeserver/hstest"
	"github.com/gjallar-im/gjallar/homeserver/hstest/postgres"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

const patience = 20 * time.Second

// world is a homeserver, a bridge with networks that the test plays, and people.
type world struct {
	tb        testing.TB
	hs        *hstest.Server
	reg       *appservice.Registration
	web       *httptest.Server
	app       atomic.Pointer[http.Handler] // of the bridge that runs
	dsn       string
	transport http.RoundTripper // to the homeserver
	inside    bool              // as in one process: one database, no sockets towards the homeserver
	nets      []*fakeNet
	opts      Options

	bridge *Bridge
	db     *sqldb.DB
	end    func()
}

// newWorld starts it all. Each network is Ready at once.
func newWorld(tb testing.TB, nets ...*fakeNet) *world {
	tb.Helper()
	return makeWorld(tb, &world{}, nets)
}

// both runs a test with the bridge's database on SQLite and on PostgreSQL.
func both(t *testing.T, f func(t *testing.T, newWorld func(...*fakeNet) *world)) {
	t.Run("SQLite", func(t *testing.T) { f(t, func(nets ...*fakeNet) *world { return newWorld(t, nets...) }) })
	t.Run("PostgreSQL", func(t *testing.T) {
		dsn := postgres.Start(t)
		f(t, func(nets ...*fakeNet) *world { return makeWorld(t, &world{dsn: dsn}, nets) })
	})
}

func makeWorld(tb testing.TB, o *world, nets []*fakeNet) *world {
	tb.Helper()
	w := &world{tb: tb, transport: o.transport, inside: o.inside, hs: hstest.Start(tb), nets: nets, dsn: o.dsn}
	if w.dsn == "" {
		w.dsn = "sqlite:" + filepath.Join(tb.TempDir(), "bridge.db")
	}
	w.web = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if h := w.app.Load(); h != nil {
			(*h).ServeHTTP(rw, r)
			return
		}
		http.Error(rw, "away", http.StatusBadGateway)
	}))
	tb.Cleanup(func() { w.web.CloseClientConnections(); w.web.Close() })
	var names []string
	for _, n := range nets {
		names = append(names, n.name)
	}
	w.reg = NewRegistration(names, "test", w.web.URL, true)
	if err := w.hs.AddService(tb.Context(), *w.reg); err != nil {
		tb.Fatal(err)
	}
	w.opts = Options{ServerName: "test", PublicURL: w.web.URL, HSToken: w.reg.HSToken, Quiet: time.Millisecond, Fetch: http.DefaultTransport, Log: testLog(tb)}
	w.start()
	tb.Cleanup(func() { w.stop() })
	return w
}

func testLog(tb testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(&tbWriter{tb: tb}, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

type tbWriter struct{ tb testing.TB }

func (w *tbWriter) Write(b []byte) (int, error) {
	if w.tb.Context().Err() == nil {
		w.tb.Log(strings.TrimRight(string(b), "\n"))
	}
	return len(b), nil
}

// start runs a bridge on the world's database.
func (w *world) start() {
	w.tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	db, err := sqldb.Open(ctx, w.dsn)
	if err != nil {
		w.tb.Fatal(err)
	}
	o := w.opts
	o.DB = db
	ao := appservice.Options{HomeserverURL: w.hs.URL, Transport: w.transport, Registration: w.reg, ServerName: "test"}
	if w.inside {
		o.DB, ao.Transport = w.hs.DB, inMemory{w.hs.Handler()}
	}
	o.Client = appservice.New(ao)
	for _, n := range w.nets {
		o.Networks = append(o.Networks, NetworkOptions{Name: n.name, Backend: n})
	}
	b, err := New(ctx, o)
	if err != nil {
		w.tb.Fatal(err)
	}
	h := b.Handler()
	w.app.Store(&h)
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	w.bridge, w.db = b, db
	w.until("open networks", func() bool {
		for _, n := range b.networks {
			if _, err := n.get(); err != nil {
				return false
			}
		}
		return true
	}, func() string { return "" })
	w.end = sync.OnceFunc(func() {
		w.app.Store(nil)
		cancel()
		if err := <-ended; err != nil {
			w.tb.Errorf("run: %v", err)
		}
		db.Close()
	})
}

func (w *world) stop() { w.end() }

func (w *world) restart() {
	w.stop()
	w.start()
}

// inMemory calls a handler.
type inMemory struct{ http.Handler }

func (t inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := &recorder{httptest.NewRecorder(), httptrace.ContextClientTrace(r.Context())}
	if r.Body == nil {
		r.Body = http.NoBody
	}
	t.ServeHTTP(rec, r)
	return rec.Result(), nil
}

// recorder passes on informational responses, as a socket would.
type recorder struct {
	*httptest.ResponseRecorder
	trace *httptrace.ClientTrace
}

func (r *recorder) WriteHeader(status int) {
	if status >= 200 {
		r.ResponseRecorder.WriteHeader(status)
	} else if r.trace != nil && r.trace.Got1xxResponse != nil {
		r.trace.Got1xxResponse(status, nil)
	}
}

// portal joins the room of a chat's alias as a user, which makes it.
func (w *world) portal(u *hstest.User, network, chat string) matrix.RoomID {
	w.tb.Helper()
	alias := "#" + aliasLocalpart(network, backends.ChatID(chat)) + ":test"
	return matrix.RoomID(u.OK("POST", "/_matrix/client/v3/join/"+url.PathEscape(alias), nil).Str("room_id"))
}

// event is what tests look at.
type event struct {
	Type     string         `json:"type"`
	ID       string         `json:"event_id"`
	Sender   string         `json:"sender"`
	StateKey *string        `json:"state_key"`
	TS       int64          `json:"origin_server_ts"`
	Content  map[string]any `json:"content"`
	Unsigned map[string]any `json:"unsigned"`
}

func (e *event) body() string { s, _ := e.Content["body"].(string); return s }

// timeline is all that a user can see of a room, oldest first.
func (w *world) timeline(u *hstest.User, room matrix.RoomID) []event {
	w.tb.Helper()
	out := u.OK("GET", hstest.Path(room)+"/messages?dir=b&limit=1000", nil)
	b, err := json.Marshal(out["chunk"])
	if err != nil {
		w.tb.Fatal(err)
	}
	var list []event
	if err := json.Unmarshal(b, &list); err != nil {
		w.tb.Fatal(err)
	}
	slices.Reverse(list)
	return list
}

// see waits until an event is in a room for which match holds.
func (w *world) see(u *hstest.User, room matrix.RoomID, what string, match func(*event) bool) *event {
	w.tb.Helper()
	var found *event
	var list []event
	w.until(what, func() bool {
		list = w.timeline(u, room)
		for i := range list {
			if match(&list[i]) {
				found = &list[i]
				return true
			}
		}
		return false
	}, func() string {
		var s []string
		for _, e := range list {
			s = append(s, fmt.Sprintf("%s by %s: %v", e.Type, e.Sender, e.Content))
		}
		return strings.Join(s, "\n")
	})
	return found
}

func (w *world) seeBody(u *hstest.User, room matrix.RoomID, body string) *event {
	w.tb.Helper()
	return w.see(u, room, fmt.Sprintf("message %q", body), func(e *event) bool { return e.body() == body })
}

// until polls for a state of another server.
func (w *world) until(what string, cond func() bool, state func() string) {
	w.tb.Helper()
	deadline := time.Now().Add(patience)
	for wait := time.Millisecond; !cond(); wait = min(2*wait, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			w.tb.Fatalf("no %s within %v; there is:\n%s", what, patience, state())
		}
		<-time.After(wait)
	}
}

// fakeNet is a backend with one network, played by the test.
type fakeNet struct {
	name string
	caps backends.Capabilities

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change; guarded by mu
	host    backends.Host
	sent    []*backends.Command
	taken   int
	joined  map[backends.ChatKey]int
	refuse  map[backends.ChatID]*backends.Refusal
	failing int                                     // so many joins fail, without a reason
	answer  func(*backends.Command) backends.Result // nil: Delivered
	silent  bool                                    // commands are taken and never answered
	down    bool                                    // it is not Ready when opened
	nextID  int
}

// everything a network can do.
var everything = backends.Capabilities{
	Formatting: true, Edits: true, Replies: true, Reactions: true, Removals: true, Threads: true, Files: true, Typing: true, Reads: true,
	Topic: true, Name: true, Kicks: true, Direct: true, Accounts: true,
}

func newFake(name string, caps backends.Capabilities) *fakeNet {
	return &fakeNet{name: name, caps: caps, changed: make(chan struct{}), joined: map[backends.ChatKey]int{}, refuse: map[backends.ChatID]*backends.Refusal{}}
}

func newGatewayFake(name string) *fakeNet {
	caps := everything
	caps.Gateway, caps.Accounts = true, false
	return newFake(name, caps)
}

func (n *fakeNet) Describe() backends.Info {
	return backends.Info{Protocol: n.name, Title: n.name, Capabilities: n.caps}
}

func (n *fakeNet) Open(ctx context.Context, _ json.RawMessage, h backends.Host) (backends.Network, error) {
	n.mu.Lock()
	n.host = h
	down := n.down
	n.mu.Unlock()
	if down {
		return n, nil
	}
	return n, n.phase(ctx, backends.Ready)
}

func (n *fakeNet) phase(ctx context.Context, p backends.NetworkPhase) error {
	return n.currentHost().Deliver(ctx, &backends.Event{Body: &backends.NetworkState{Phase: p}}, nil)
}

func (n *fakeNet) currentHost() backends.Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.host
}

func (n *fakeNet) changeLocked() {
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *fakeNet) Send(ctx context.Context, cmd *backends.Command, reply func(backends.Result)) error {
	n.mu.Lock()
	n.sent = append(n.sent, cmd)
	n.changeLocked()
	answer, silent := n.answer, n.silent
	n.mu.Unlock()
	if silent {
		return nil
	}
	if answer != nil {
		reply(answer(cmd))
		return nil
	}
	reply(backends.Result{Outcome: backends.Delivered, IDs: []backends.MessageID{backends.MessageID("out:" + cmd.ID)}})
	return nil
}

func (n *fakeNet) Join(_ context.Context, req backends.JoinRequest) (*backends.ChatInfo, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := n.refuse[req.Chat.Chat]; r != nil {
		return nil, r
	}
	if n.failing > 0 {
		n.failing--
		return nil, errors.New("not now")
	}
	n.joined[req.Chat]++
	n.changeLocked()
	return &backends.ChatInfo{Chat: req.Chat}, nil
}

func (n *fakeNet) Leave(_ context.Context, chat backends.ChatKey) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.joined, chat)
	n.changeLocked()
	return nil
}

func (n *fakeNet) Close(context.Context) error { return nil }

func (n *fakeNet) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	n.changeLocked()
}

func (n *fakeNet) commands() []*backends.Command {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.sent)
}

// await waits for a command after the one that it returned last.
func (n *fakeNet) await(tb testing.TB, what string, match func(*backends.Command) bool) *backends.Command {
	tb.Helper()
	timeout := time.After(patience)
	for {
		n.mu.Lock()
		for i := n.taken; i < len(n.sent); i++ {
			if cmd := n.sent[i]; match(cmd) {
				n.taken = i + 1
				n.mu.Unlock()
				return cmd
			}
		}
		changed := n.changed
		n.mu.Unlock()
		select {
		case <-changed:
		case <-timeout:
			var s []string
			for _, c := range n.commands() {
				s = append(s, fmt.Sprintf("%T %q from %s", c.Body, plainOf(c), c.Sender.Account))
			}
			tb.Fatalf("network %s: no %s; commands:\n%s", n.name, what, strings.Join(s, "\n"))
		}
	}
}

// hears waits for a message with the plain text.
func (n *fakeNet) hears(tb testing.TB, text string) *backends.Command {
	tb.Helper()
	return n.await(tb, fmt.Sprintf("message %q", text), func(c *backends.Command) bool { return plainOf(c) == text })
}

func plainOf(c *backends.Command) string {
	if m, ok := c.Body.(*backends.Message); ok {
		return m.Text.Plain()
	}
	return ""
}

// tell delivers an event and waits for its receipt.
func (n *fakeNet) tell(tb testing.TB, ev *backends.Event) backends.Receipt {
	tb.Helper()
	r, err := n.try(tb.Context(), ev)
	if err != nil {
		tb.Fatalf("%T was not acknowledged: %v", ev.Body, err)
	}
	return r
}

func (n *fakeNet) try(ctx context.Context, ev *backends.Event) (backends.Receipt, error) {
	receipt := make(chan backends.Receipt, 1)
	if err := n.currentHost().Deliver(ctx, ev, func(r backends.Receipt) { receipt <- r }); err != nil {
		return backends.Receipt{}, err
	}
	select {
	case r := <-receipt:
		return r, nil
	case <-time.After(patience):
		return backends.Receipt{}, errors.New("no receipt")
	case <-ctx.Done():
		return backends.Receipt{}, ctx.Err()
	}
}

// says makes a remote user say something in a chat, which must be taken.
func (n *fakeNet) says(tb testing.TB, chat, user, text string) backends.Receipt {
	tb.Helper()
	n.mu.Lock()
	n.nextID++
	id := backends.MessageID(fmt.Sprintf("%s-%d", n.name, n.nextID))
	n.mu.Unlock()
	return n.saysAs(tb, chat, user, text, id)
}

func (n *fakeNet) saysAs(tb testing.TB, chat, user, text string, id backends.MessageID) backends.Receipt {
	tb.Helper()
	r := n.tell(tb, message(chat, user, text, id))
	if r.Err != nil || r.ID == "" {
		tb.Fatalf("%q was refused: %+v", text, r)
	}
	return r
}

func message(chat, user, text string, id backends.MessageID) *backends.Event {
	return &backends.Event{
		Chat: backends.ChatKey{Chat: backends.ChatID(chat)}, Sender: backends.User{ID: backends.UserID(user), Name: strings.ToUpper(user)},
		ID: id, Time: time.Now(), Body: &backends.Message{Text: richtext.Plain(text)},
	}
}

// send sends any message event.
func (w *world) send(u *hstest.User, room matrix.RoomID, typ string, content map[string]any) string {
	w.tb.Helper()
	return u.OK("PUT", hstest.Path(room)+"/send/"+typ+"/"+hashID(fmt.Sprint(time.Now().UnixNano())), content).Str("event_id")
}
