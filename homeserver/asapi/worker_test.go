package asapi

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/hstest/postgres"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/rooms"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

// world is a homeserver without its client API.
type world struct {
	tb       testing.TB
	store    *store.Store
	hub      *streams.Hub
	rooms    *rooms.Rooms
	registry *Registry
	typing   typists
}

// typists is a source of typing.
type typists struct {
	mu    sync.Mutex
	rooms map[matrix.RoomID]typist // guarded by mu
}

type typist struct {
	serial int64
	users  []matrix.UserID
}

func (t *typists) Changed(serial int64) (out []matrix.RoomID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for r, w := range t.rooms {
		if w.serial > serial {
			out = append(out, r)
		}
	}
	return out
}

func (t *typists) Since(room matrix.RoomID, serial int64) ([]matrix.UserID, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rooms[room].users, t.rooms[room].serial > serial
}

func newWorld(tb testing.TB, dsn string) *world {
	tb.Helper()
	db, err := sqldb.Open(tb.Context(), dsn)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { db.Close() })
	st, err := store.Open(tb.Context(), db)
	if err != nil {
		tb.Fatal(err)
	}
	pos, err := st.Position(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	w := &world{tb: tb, store: st, hub: streams.NewHub(pos, 0), registry: NewRegistry("hs"), typing: typists{rooms: map[matrix.RoomID]typist{}}}
	signer := pdu.Signer{Server: "hs", KeyID: "ed25519:a", Key: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))}
	w.rooms = rooms.New(rooms.Options{Store: st, Hub: w.hub, Signer: signer, Log: slog.New(slog.DiscardHandler)})
	tb.Cleanup(w.rooms.Close)
	return w
}

// both runs a test on SQLite and on PostgreSQL.
func both(t *testing.T, f func(t *testing.T, w *world)) {
	t.Run("SQLite", func(t *testing.T) { f(t, newWorld(t, "sqlite:"+filepath.Join(t.TempDir(), "t.db"))) })
	t.Run("PostgreSQL", func(t *testing.T) { f(t, newWorld(t, postgres.Start(t))) })
}

// start runs a worker until the returned function is called.
func (w *world) start() (*Worker, func()) {
	var typing Typing = &w.typing
	worker := New(Options{Store: w.store, Registry: w.registry, Hub: w.hub, Typing: typing})
	worker.firstDelay, worker.lastDelay = time.Millisecond, 5*time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := worker.Run(ctx); err != nil {
			w.tb.Error(err)
		}
	})
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	w.tb.Cleanup(stop)
	return worker, stop
}

const alice, bob = matrix.UserID("@alice:hs"), matrix.UserID("@bob:hs")

func content(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func (w *world) must(id matrix.EventID, err error) matrix.EventID {
	w.tb.Helper()
	if err != nil {
		w.tb.Fatal(err)
	}
	return id
}

// room makes one with a join rule of public and its creator in it.
func (w *world) room(creator matrix.UserID) matrix.RoomID {
	w.tb.Helper()
	key, none := string(creator), ""
	id, err := w.rooms.Create(w.tb.Context(), rooms.CreateRequest{Creator: creator, Version: "11", Events: func(matrix.RoomID) ([]matrix.NewEvent, error) {
		return []matrix.NewEvent{
			{Type: matrix.TypeMember, Sender: creator, StateKey: &key, Content: content(map[string]string{"membership": "join"})},
			{Type: matrix.TypePowerLevels, Sender: creator, StateKey: &none, Content: content(map[string]any{"users": map[matrix.UserID]int{creator: 100}})},
			{Type: matrix.TypeJoinRules, Sender: creator, StateKey: &none, Content: content(map[string]string{"join_rule": "public"})},
		}, nil
	}})
	if err != nil {
		w.tb.Fatal(err)
	}
	return id
}

func (w *world) say(room matrix.RoomID, sender matrix.UserID, text string) matrix.EventID {
	w.tb.Helper()
	return w.must(w.rooms.Send(w.tb.Context(), matrix.NewEvent{RoomID: room, Type: matrix.TypeMessage, Sender: sender, Content: content(map[string]string{"body": text})}, rooms.SendOptions{}))
}

func (w *world) state(room matrix.RoomID, sender matrix.UserID, typ, key string, c any) matrix.EventID {
	w.tb.Helper()
	return w.must(w.rooms.Send(w.tb.Context(), matrix.NewEvent{RoomID: room, Type: typ, Sender: sender, StateKey: &key, Content: content(c)}, rooms.SendOptions{}))
}

func (w *world) member(room matrix.RoomID, sender, user matrix.UserID, membership string) matrix.EventID {
	w.tb.Helper()
	return w.state(room, sender, matrix.TypeMember, string(user), map[string]string{"membership": membership})
}

// received is a transaction as a service got it.
type received struct {
	id     string
	raw    string
	Events []struct {
		matrix.Event
		Unsigned map[string]any `json:"unsigned"`
	}
	Ephemeral    []map[string]any
	ToDevice     []map[string]any `json:"to_device"`
	OldEphemeral []map[string]any `json:"de.sorunome.msc2409.ephemeral"`
}

// bodies are the texts of the messages of a transaction.
func (r received) bodies() (out []string) {
	for _, e := range r.Events {
		var c struct{ Body string }
		json.Unmarshal(e.Content, &c)
		if c.Body != "" {
			out = append(out, c.Body)
		}
	}
	return out
}

// service is an application service that records what it gets and answers by refuse.
type service struct {
	*httptest.Server
	tb  testing.TB
	got chan received

	mu     sync.Mutex
	refuse func(n int) bool // guarded by mu: whether the nth attempt, from 1, fails
	n      int              // guarded by mu
}

func newService(tb testing.TB) *service {
	s := &service{tb: tb, got: make(chan received, 10000), refuse: func(int) bool { return false }}
	s.Server = httptest.NewServer(s)
	tb.Cleanup(s.Close)
	return s
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, ok := strings.CutPrefix(r.URL.Path, "/_matrix/app/v1/transactions/")
	body, err := io.ReadAll(r.Body)
	if !ok || err != nil || r.Method != http.MethodPut || r.Header.Get("Authorization") != "Bearer hs-token" {
		s.tb.Errorf("%s %s %v", r.Method, r.URL, err)
		http.NotFound(w, r)
		return
	}
	t := received{id: id, raw: string(body)}
	if err := json.Unmarshal(body, &t); err != nil {
		s.tb.Error(err)
	}
	s.mu.Lock()
	s.n++
	refused := s.refuse(s.n)
	s.mu.Unlock()
	if refused {
		w.WriteHeader(http.StatusInternalServerError)
	}
	io.WriteString(w, `{}`)
	s.got <- t
}

func (s *service) refuseIf(f func(n int) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = f
}

// next is the next transaction that came, be it accepted or not.
func (s *service) next() received {
	s.tb.Helper()
	select {
	case t := <-s.got:
		return t
	case <-time.After(20 * time.Second):
		s.tb.Fatal("no transaction came")
		panic("unreachable")
	}
}

// until gathers transactions until the message last has come, and returns the texts
// of all messages in order.
func (s *service) until(last string) (out []string) {
	s.tb.Helper()
	for !slices.Contains(out, last) {
		out = append(out, s.next().bodies()...)
	}
	return out
}

// registration of a service whose users start with "irc_".
func (s *service) registration() matrix.Registration {
	return matrix.Registration{
		ID: "irc", URL: s.URL, ASToken: "as-token", HSToken: "hs-token", SenderLocalpart: "ircbot", ReceiveEphemeral: true,
		Namespaces: matrix.Namespaces{
			Users:   []matrix.Namespace{{Exclusive: true, Regex: "@irc_.*:hs"}},
			Aliases: []matrix.Namespace{{Exclusive: true, Regex: "#irc_.*:hs"}},
		},
	}
}

func (w *world) add(r matrix.Registration) {
	w.tb.Helper()
	if _, err := w.registry.Add(r); err != nil {
		w.tb.Fatal(err)
	}
}

const ghost, bot = matrix.UserID("@irc_g:hs"), matrix.UserID("@ircbot:hs")

func TestAServiceGetsWhatConcernsIt(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s := newService(t)
		portal, other, aliased := w.room(alice), w.room(alice), w.room(alice)
		w.say(portal, alice, "before the registration")
		w.start()
		w.add(s.registration())
		w.say(other, alice, "in a room without ghosts")
		w.say(portal, alice, "before the ghost came")
		w.member(portal, ghost, ghost, matrix.Join)
		w.say(portal, alice, "with the ghost")
		w.member(other, bot, bot, matrix.Join)
		w.say(other, alice, "with the bot")
		w.member(other, bot, bot, matrix.Leave)
		w.say(other, alice, "after the bot")
		w.member(portal, alice, ghost, matrix.Leave) // a kick
		w.say(portal, alice, "after the ghost")
		err := w.store.Write(t.Context(), func(tx *sqldb.Tx) error {
			_, err := w.store.CreateAlias(tx, "#irc_c:hs", aliased, alice)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		w.member(portal, ghost, ghost, matrix.Join)
		w.say(portal, alice, "last")
		var got []string
		for !slices.Contains(got, "last") {
			for _, e := range s.next().Events {
				var c struct{ Body, Membership string }
				json.Unmarshal(e.Content, &c)
				if e.Type == matrix.TypeMember {
					c.Body = *e.StateKey + " " + c.Membership
				}
				got = append(got, c.Body)
			}
		}
		want := []string{"@irc_g:hs join", "with the ghost", "@ircbot:hs join", "with the bot", "@ircbot:hs leave", "@irc_g:hs leave", "@irc_g:hs join", "last"}
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
}

func TestRoomsAreOfInterestByIDAndAlias(t *testing.T) {
	w := newWorld(t, "sqlite:"+filepath.Join(t.TempDir(), "t.db"))
	s := newService(t)
	byID, byAlias, neither := w.room(alice), w.room(alice), w.room(alice)
	r := s.registration()
	r.Namespaces.Rooms = []matrix.Namespace{{Regex: strings.ReplaceAll(string(byID), ".", `\.`)}}
	err := w.store.Write(t.Context(), func(tx *sqldb.Tx) error {
		_, err := w.store.CreateAlias(tx, "#irc_c:hs", byAlias, alice)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	w.start()
	w.add(r)
	w.say(byID, alice, "1")
	w.say(neither, alice, "2")
	w.say(byAlias, alice, "3")
	if got := s.until("3"); !slices.Equal(got, []string{"1", "3"}) {
		t.Errorf("got %q", got)
	}
}

// TestMembershipIsThatOfTheEventsTime has the service looked up first at an event
// after which its ghost leaves.
func TestMembershipIsThatOfTheEventsTime(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s := newService(t)
		room := w.room(alice)
		w.member(room, ghost, ghost, matrix.Join)
		_, stop := w.start()
		w.add(s.registration())
		w.say(room, alice, "a")
		s.until("a")
		w.settled()
		stop()
		w.say(room, alice, "b")
		w.member(room, ghost, ghost, matrix.Leave)
		w.say(room, alice, "c")
		w.member(room, ghost, ghost, matrix.Join)
		w.say(room, alice, "d")
		w.start()
		if got := s.until("d"); !slices.Equal(got, []string{"b", "d"}) {
			t.Errorf("got %q", got)
		}
	})
}

func TestARetryIsTheSameTransaction(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s := newService(t)
		room := w.room(alice)
		w.member(room, ghost, ghost, matrix.Join)
		_, stop := w.start()
		w.add(s.registration())
		s.refuseIf(func(n int) bool { return n < 10 })
		w.say(room, alice, "1")
		first := s.next()
		w.say(room, alice, "2") // must not slip into the repetitions
		for range 4 {
			if again := s.next(); again.id != first.id || again.raw != first.raw {
				t.Fatalf("sent %s %s, then %s %s", first.id, first.raw, again.id, again.raw)
			}
		}
		stop() // in the middle
		for len(s.got) > 0 {
			<-s.got
		}
		s.refuseIf(func(int) bool { return false })
		w.start()
		again := s.next()
		if again.id != first.id || again.raw != first.raw {
			t.Errorf("sent %s %s, after the restart %s %s", first.id, first.raw, again.id, again.raw)
		}
		if next := s.next(); next.id == first.id || !slices.Equal(next.bodies(), []string{"2"}) {
			t.Errorf("then came %s %q", next.id, next.bodies())
		}
	})
}

func TestWhatWasTakenDoesNotComeAgainAfterARestart(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s := newService(t)
		room := w.room(alice)
		w.member(room, ghost, ghost, matrix.Join)
		w.add(s.registration())
		for _, text := range []string{"1", "2", "3"} {
			_, stop := w.start()
			w.say(room, alice, text)
			if got := s.until(text); !slices.Equal(got, []string{text}) {
				t.Errorf("got %q, want %s", got, text)
			}
			w.settled()
			stop()
		}
	})
}

func TestAServiceIsAddedAndRemovedWhileRunning(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s := newService(t)
		room := w.room(alice)
		w.member(room, ghost, ghost, matrix.Join)
		worker, _ := w.start()
		gone := func() bool {
			worker.mu.Lock()
			defer worker.mu.Unlock()
			_, _, err := w.store.ServicePosition(t.Context(), "irc")
			return len(worker.followers) == 0 && errors.Is(err, store.ErrNotFound)
		}
		w.say(room, alice, "1")
		w.add(s.registration())
		w.say(room, alice, "2")
		if got := s.until("2"); !slices.Equal(got, []string{"2"}) {
			t.Errorf("got %q", got)
		}
		// Removed while it refuses a transaction: that is not kept for the next.
		s.refuseIf(func(int) bool { return true })
		w.say(room, alice, "3")
		s.until("3")
		if !w.registry.Remove("irc") {
			t.Fatal("not removed")
		}
		await(t, gone)
		s.refuseIf(func(int) bool { return false })
		for len(s.got) > 0 {
			<-s.got
		}
		w.say(room, alice, "4")
		w.add(s.registration())
		w.say(room, alice, "5")
		if got := s.until("5"); !slices.Equal(got, []string{"5"}) {
			t.Errorf("got %q", got)
		}
	})
}

// settled waits until all that was sent to the service is noted as acknowledged: a
// worker that is stopped between an answer and its arrival sends again.
func (w *world) settled() {
	w.tb.Helper()
	await(w.tb, func() bool {
		pos, pending, err := w.store.ServicePosition(w.tb.Context(), "irc")
		return err == nil && pending == nil && pos >= w.hub.Now().Pos
	})
}

// await waits for a condition that nothing signals.
func await(tb testing.TB, ok func() bool) {
	tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(20 * time.Second); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			tb.Fatal("it did not come about")
		}
	}
}

func TestAReplacedServiceGoesOnWhereItWas(t *testing.T) {
	w := newWorld(t, "sqlite:"+filepath.Join(t.TempDir(), "t.db"))
	s := newService(t)
	room := w.room(alice)
	w.member(room, ghost, ghost, matrix.Join)
	w.start()
	w.add(s.registration())
	s.refuseIf(func(int) bool { return true })
	w.say(room, alice, "1")
	s.until("1")
	r := s.registration()
	r.ASToken = "another"
	if _, err := w.registry.Replace(r); err != nil {
		t.Fatal(err)
	}
	s.refuseIf(func(int) bool { return false })
	w.say(room, alice, "2")
	got := s.until("2")
	if got = slices.Compact(got); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("got %q", got)
	}
}

func TestEventsComeInOrderAndInTransactionsOfAHundred(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s := newService(t)
		room := w.room(alice)
		w.member(room, ghost, ghost, matrix.Join)
		w.start()
		s.refuseIf(func(n int) bool { return n%3 != 0 })
		w.add(s.registration())
		const n = 350
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range n / 8 {
					w.say(room, alice, "x")
				}
			})
		}
		wg.Wait()
		w.say(room, alice, "last")
		var ids []matrix.EventID
		seen := map[string]bool{}
		for last := false; !last; {
			tx := s.next()
			if len(tx.Events) > 100 {
				t.Errorf("%d events in a transaction", len(tx.Events))
			}
			last = slices.Contains(tx.bodies(), "last")
			if seen[tx.id] {
				continue
			}
			seen[tx.id] = true
			for _, e := range tx.Events {
				ids = append(ids, e.ID)
			}
		}
		var want []matrix.EventID
		list, err := w.store.AllEventsAfter(t.Context(), 0, 10000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if e.Type == matrix.TypeMessage {
				want = append(want, e.ID)
			}
		}
		if !slices.Equal(ids, want) {
			t.Errorf("%d events came, not the %d in their order", len(ids), len(want))
		}
	})
}

func TestEventsHaveWhatClientsExpect(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s := newService(t)
		room := w.room(alice)
		w.state(room, alice, matrix.TypeName, "", map[string]string{"name": "Old"})
		w.start()
		w.add(s.registration())
		w.member(room, alice, ghost, matrix.Invite)
		w.state(room, alice, matrix.TypeName, "", map[string]string{"name": "Not told"})
		w.member(room, ghost, ghost, matrix.Join)
		named := w.state(room, alice, matrix.TypeName, "", map[string]string{"name": "New"})
		w.must(w.rooms.Send(t.Context(), matrix.NewEvent{RoomID: room, Type: matrix.TypeMessage, Sender: ghost, Content: content(map[string]string{"body": "own"})},
			rooms.SendOptions{Device: "AS:irc", TxnID: "t1"}))
		w.say(room, alice, "last")
		byType := map[string]map[string]any{}
		memberships := map[string]map[string]any{}
		for last := false; !last; {
			tx := s.next()
			last = slices.Contains(tx.bodies(), "last")
			for _, e := range tx.Events {
				if e.RoomID != room || e.ID == "" || e.OriginServerTS == 0 || e.Unsigned["age"] == nil {
					t.Errorf("incomplete: %+v", e)
				}
				if e.Type == matrix.TypeMember {
					var c struct{ Membership string }
					json.Unmarshal(e.Content, &c)
					memberships[c.Membership] = e.Unsigned
				} else if e.Type != matrix.TypeMessage || e.Sender == ghost {
					byType[e.Type] = e.Unsigned
				}
				if e.Type == matrix.TypeName && e.ID != named {
					t.Errorf("a change from before the ghost came: %+v", e)
				}
			}
		}
		if c, _ := byType[matrix.TypeName]["prev_content"].(map[string]any); c["name"] != "Not told" || byType[matrix.TypeName]["replaces_state"] == nil {
			t.Errorf("name: %v", byType[matrix.TypeName])
		}
		if got := byType[matrix.TypeMessage]["transaction_id"]; got != "t1" {
			t.Errorf("transaction_id %v", got)
		}
		if c, _ := memberships["join"]["prev_content"].(map[string]any); c["membership"] != "invite" {
			t.Errorf("join: %v", memberships["join"])
		}
		stripped := map[string]any{}
		list, _ := memberships["invite"]["invite_room_state"].([]any)
		for _, v := range list {
			e := v.(map[string]any)
			stripped[fmt.Sprint(e["type"], e["state_key"])] = e["content"]
			if len(e) != 4 {
				t.Errorf("not stripped: %v", e)
			}
		}
		if name, _ := stripped["m.room.name"].(map[string]any); name["name"] != "Old" || stripped["m.room.member@alice:hs"] == nil || stripped["m.room.create"] == nil || len(stripped) != 4 {
			t.Errorf("stripped state %v", stripped)
		}
	})
}

func TestEphemeralThingsAndMessagesToDevices(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		s := newService(t)
		portal, other := w.room(alice), w.room(bob)
		w.member(portal, ghost, ghost, matrix.Join)
		worker, _ := w.start()
		w.add(s.registration())
		write := func(f func(tx *sqldb.Tx) (int64, error)) {
			t.Helper()
			err := w.store.Write(t.Context(), func(tx *sqldb.Tx) error {
				pos, err := f(tx)
				tx.OnCommit(func() { w.hub.Notify(pos, nil, nil) })
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		receipt := func(room matrix.RoomID, user matrix.UserID, typ string) {
			write(func(tx *sqldb.Tx) (int64, error) {
				return w.store.PutReceipt(tx, room, store.Receipt{User: user, Type: typ, Thread: "main", Event: "$e", TS: 7})
			})
		}
		types := func(room matrix.RoomID, users ...matrix.UserID) {
			w.typing.mu.Lock()
			defer w.typing.mu.Unlock()
			w.typing.rooms[room] = typist{w.hub.NotifyTyping(room), users}
		}
		receipt(other, bob, "m.read")
		receipt(portal, alice, "m.read")
		receipt(portal, alice, "m.read.private")
		types(other, bob)
		types(portal, alice)
		write(func(tx *sqldb.Tx) (int64, error) {
			return w.store.SetPresence(tx, store.Presence{User: bob, State: "online"})
		})
		write(func(tx *sqldb.Tx) (int64, error) {
			return w.store.SetPresence(tx, store.Presence{User: alice, State: "online", StatusMsg: "hi", LastActive: 1, CurrentlyActive: true})
		})
		write(func(tx *sqldb.Tx) (int64, error) {
			if _, err := w.store.CreateAccount(tx, store.Account{User: ghost, AppService: "irc"}, 1); err != nil {
				return 0, err
			}
			for _, u := range []matrix.UserID{ghost, bob} {
				if err := w.store.PutDevice(tx, u, "D", ""); err != nil {
					return 0, err
				}
			}
			pos, _, err := w.store.SendToDevice(tx, alice, "x.y", []store.ToDeviceTarget{{User: ghost, Device: "D", Content: content(1)}, {User: bob, Device: "D", Content: content(2)}})
			return pos, err
		})
		var got []string
		for len(got) < 4 {
			tx := s.next()
			for _, e := range tx.Ephemeral {
				if e["type"] == "m.presence" {
					if c := e["content"].(map[string]any); c["last_active_ago"].(float64) <= 0 {
						t.Errorf("presence %v", c)
					} else {
						delete(c, "last_active_ago")
					}
				}
				got = append(got, string(content(e)))
			}
			for _, e := range tx.ToDevice {
				got = append(got, string(content(e)))
			}
		}
		slices.Sort(got)
		want := []string{
			fmt.Sprintf(`{"content":{"$e":{"m.read":{"@alice:hs":{"thread_id":"main","ts":7}}}},"room_id":%q,"type":"m.receipt"}`, portal),
			fmt.Sprintf(`{"content":{"user_ids":["@alice:hs"]},"room_id":%q,"type":"m.typing"}`, portal),
			`{"content":1,"sender":"@alice:hs","to_device_id":"D","to_user_id":"@irc_g:hs","type":"x.y"}`,
			`{"content":{"currently_active":true,"presence":"online","status_msg":"hi"},"sender":"@alice:hs","type":"m.presence"}`,
		}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
		// What the service's own users were sent is not kept; what others were, is.
		await(t, func() bool {
			list, err := w.store.StreamToDevice(t.Context(), 0, 1<<60)
			return err == nil && len(list) == 1 && list[0].User == bob
		})
		_ = worker
	})
}

func TestAServiceThatDidNotAskGetsNoEphemeralThings(t *testing.T) {
	for name, change := range map[string]func(*matrix.Registration){
		"none":     func(r *matrix.Registration) { r.ReceiveEphemeral = false },
		"unstable": func(r *matrix.Registration) { r.ReceiveEphemeral, r.UnstableReceiveEphemeral = false, true },
	} {
		t.Run(name, func(t *testing.T) {
			w, s := newWorld(t, "sqlite:"+filepath.Join(t.TempDir(), "t.db")), newService(t)
			room := w.room(alice)
			w.member(room, ghost, ghost, matrix.Join)
			w.start()
			r := s.registration()
			change(&r)
			w.add(r)
			w.typing.mu.Lock()
			w.typing.rooms[room] = typist{w.hub.NotifyTyping(room), []matrix.UserID{alice}}
			w.typing.mu.Unlock()
			if name == "unstable" {
				if tx := s.next(); len(tx.OldEphemeral) != 1 || len(tx.Ephemeral) != 0 {
					t.Errorf("got %s", tx.raw)
				}
			}
			w.say(room, alice, "1")
			if tx := s.next(); strings.Contains(tx.raw, "m.typing") || len(tx.Events) != 1 {
				t.Errorf("got %s", tx.raw)
			}
		})
	}
}

func TestAPingEndsTheWaitForTheNextTry(t *testing.T) {
	w := newWorld(t, "sqlite:"+filepath.Join(t.TempDir(), "t.db"))
	s := newService(t)
	room := w.room(alice)
	w.member(room, ghost, ghost, matrix.Join)
	pings := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/_matrix/app/v1/ping" {
			io.WriteString(rw, `{}`)
			return
		}
		s.ServeHTTP(rw, r)
	}))
	t.Cleanup(pings.Close)
	worker := New(Options{Store: w.store, Registry: w.registry, Hub: w.hub})
	worker.firstDelay = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { worker.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	s.refuseIf(func(n int) bool { return n == 1 })
	r := s.registration()
	r.URL = pings.URL
	w.add(r)
	w.say(room, alice, "1")
	first := s.next()
	svc, _ := w.registry.ByID("irc")
	if _, err := worker.Ping(t.Context(), svc, "p"); err != nil {
		t.Fatal(err)
	}
	if again := s.next(); again.id != first.id {
		t.Errorf("%s, then %s", first.id, again.id)
	}
}
