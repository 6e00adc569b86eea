package rooms_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
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
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

const alice, bob = matrix.UserID("@alice:hs"), matrix.UserID("@bob:hs")

var signer = pdu.Signer{Server: "hs", KeyID: "ed25519:a", Key: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))}

// fixture is the rooms of a server.
type fixture struct {
	*rooms.Rooms
	tb    testing.TB
	store *store.Store
	hub   *streams.Hub
}

func open(tb testing.TB, dsn string) *fixture {
	tb.Helper()
	db, err := sqldb.Open(tb.Context(), dsn)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { db.Close() })
	s, err := store.Open(tb.Context(), db)
	if err != nil {
		tb.Fatal(err)
	}
	return on(tb, s, 0)
}

// on opens the rooms of a store, as a server does that starts.
func on(tb testing.TB, s *store.Store, idle time.Duration) *fixture {
	tb.Helper()
	pos, err := s.Position(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	hub := streams.NewHub(pos, 0)
	r := rooms.New(rooms.Options{Store: s, Hub: hub, Signer: signer, Log: slog.New(slog.DiscardHandler), IdleAfter: idle})
	tb.Cleanup(r.Close)
	return &fixture{r, tb, s, hub}
}

var databases = map[string]func(testing.TB) string{
	"SQLite":     func(tb testing.TB) string { return "sqlite:" + filepath.Join(tb.TempDir(), "t.db") },
	"PostgreSQL": postgres.Start,
}

func both(t *testing.T, f func(t *testing.T, r *fixture)) {
	for name, dsn := range databases {
		t.Run(name, func(t *testing.T) { f(t, open(t, dsn(t))) })
	}
}

func content(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func state(sender matrix.UserID, typ, key string, c any) matrix.NewEvent {
	return matrix.NewEvent{Type: typ, Sender: sender, StateKey: &key, Content: content(c)}
}

func member(sender, user matrix.UserID, membership string) matrix.NewEvent {
	return state(sender, matrix.TypeMember, string(user), map[string]string{"membership": membership})
}

// create makes a public room with alice and bob in it.
func (r *fixture) create(version matrix.RoomVersion) matrix.RoomID {
	r.tb.Helper()
	id, err := r.Create(r.tb.Context(), rooms.CreateRequest{Creator: alice, Version: version, Events: func(matrix.RoomID) ([]matrix.NewEvent, error) {
		return []matrix.NewEvent{
			member(alice, alice, matrix.Join),
			state(alice, matrix.TypePowerLevels, "", map[string]any{"users": powers(version)}),
			state(alice, matrix.TypeJoinRules, "", map[string]string{"join_rule": "public"}),
		}, nil
	}})
	if err != nil {
		r.tb.Fatal(err)
	}
	r.must(r.send(id, member(bob, bob, matrix.Join), ""))
	return id
}

// powers of users: from version 12 on the creator is not among them.
func powers(version matrix.RoomVersion) map[matrix.UserID]int {
	if rules, ok := roomversion.Get(version); ok && rules.RoomIDIsCreateHash {
		return map[matrix.UserID]int{}
	}
	return map[matrix.UserID]int{alice: 100}
}

func (r *fixture) send(id matrix.RoomID, ev matrix.NewEvent, txn string) (matrix.EventID, error) {
	ev.RoomID = id
	return r.Send(r.tb.Context(), ev, rooms.SendOptions{Device: "D", TxnID: txn})
}

func text(sender matrix.UserID, body string) matrix.NewEvent {
	return matrix.NewEvent{Type: matrix.TypeMessage, Sender: sender, Content: content(map[string]string{"body": body})}
}

func (r *fixture) must(id matrix.EventID, err error) matrix.EventID {
	r.tb.Helper()
	if err != nil {
		r.tb.Fatal(err)
	}
	return id
}

// events of a room, in the order of the stream.
func (r *fixture) events(id matrix.RoomID) []*store.Event {
	r.tb.Helper()
	list, err := r.store.EventsAfter(r.tb.Context(), id, 0, 1<<60, 1<<30)
	if err != nil {
		r.tb.Fatal(err)
	}
	return list
}

// checkChain fails the test unless every event of a room builds on the one before
// it and all state is that which the events make.
func (r *fixture) checkChain(id matrix.RoomID) []*store.Event {
	r.tb.Helper()
	list := r.events(id)
	want := store.StateMap{}
	for i, e := range list {
		if i > 0 && (len(e.PrevEvents) != 1 || e.PrevEvents[0] != list[i-1].ID || e.Depth != list[i-1].Depth+1) {
			r.tb.Fatalf("event %d builds on %v at depth %d, not on %s of depth %d", i, e.PrevEvents, e.Depth, list[i-1].ID, list[i-1].Depth)
		}
		got, err := r.store.StateAt(r.tb.Context(), e.Snapshot)
		if err != nil || !equal(got, want) {
			r.tb.Fatalf("state before event %d is %v (%v), want %v", i, got, err, want)
		}
		if e.IsState() {
			want[e.Key()] = e.Pos
		}
	}
	current, err := r.store.CurrentState(r.tb.Context(), id)
	got := store.StateMap{}
	for _, e := range current {
		got[e.Key()] = e.Pos
	}
	if err != nil || !equal(got, want) {
		r.tb.Fatalf("current state is %v (%v), want %v", got, err, want)
	}
	return list
}

func equal(a, b store.StateMap) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

func TestARoomOfEveryVersion(t *testing.T) {
	r := open(t, databases["SQLite"](t))
	for _, rules := range roomversion.All() {
		t.Run(string(rules.Version), func(t *testing.T) {
			r := &fixture{r.Rooms, t, r.store, r.hub}
			id := r.create(rules.Version)
			first := r.must(r.send(id, text(alice, "to be redacted"), ""))
			r.must(r.send(id, matrix.NewEvent{Type: matrix.TypeRedaction, Sender: alice, Redacts: first, Content: content(struct{}{})}, ""))
			list := r.checkChain(id)
			if len(list) != 7 || !list[0].Is(matrix.TypeCreate, "") || list[0].RoomID != id {
				t.Fatalf("%d events", len(list))
			}
			if e := list[5]; e.RedactedBy != list[6].ID || string(e.Content) != "{}" {
				t.Errorf("redacted: %s by %q", e.Content, e.RedactedBy)
			}
			// What was stored is an event that another server would take.
			for _, e := range list {
				p, intact, err := pdu.Parse(rules, e.JSON())
				if err != nil || p.ID != e.ID || !intact && e.RedactedBy == "" {
					t.Errorf("%s: %v, intact %v", e.Type, err, intact)
				}
			}
		})
	}
}

func TestACreatorMakesManyRoomsAtOnce(t *testing.T) {
	r := open(t, databases["SQLite"](t))
	var mu sync.Mutex
	ids := map[matrix.RoomID]bool{}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			id, err := r.Create(t.Context(), rooms.CreateRequest{Creator: alice, Events: func(matrix.RoomID) ([]matrix.NewEvent, error) {
				return []matrix.NewEvent{member(alice, alice, matrix.Join)}, nil
			}})
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			ids[id] = true
		})
	}
	wg.Wait()
	if len(ids) != 50 {
		t.Errorf("%d rooms, want 50", len(ids))
	}
}

func TestARoomIsMadeWholeOrNotAtAll(t *testing.T) {
	both(t, func(t *testing.T, r *fixture) {
		var made matrix.RoomID
		_, err := r.Create(t.Context(), rooms.CreateRequest{Creator: alice, Events: func(id matrix.RoomID) ([]matrix.NewEvent, error) {
			made = id
			return []matrix.NewEvent{member(alice, alice, matrix.Join), text(bob, "not in the room")}, nil
		}})
		if e, ok := errors.AsType[*matrix.Error](err); !ok || e.Code != matrix.CodeForbidden {
			t.Errorf("error %v", err)
		}
		if _, err := r.send(made, text(alice, "x"), ""); !refused(err, matrix.CodeNotFound) {
			t.Errorf("the room is there: %v", err)
		}
		if n := len(r.events(made)); n != 0 {
			t.Errorf("%d events", n)
		}
	})
}

func refused(err error, code string) bool {
	e, ok := errors.AsType[*matrix.Error](err)
	return ok && e.Code == code
}

func TestRefusals(t *testing.T) {
	r := open(t, databases["SQLite"](t))
	room := r.create("11")
	before := len(r.events(room))
	tests := []struct {
		name string
		room matrix.RoomID
		ev   matrix.NewEvent
		code string
	}{
		{"a stranger speaks", room, text("@carol:hs", "x"), matrix.CodeForbidden},
		{"a member sets state without the power", room, state(bob, matrix.TypeTopic, "", map[string]string{"topic": "x"}), matrix.CodeForbidden},
		{"a member speaks for another", room, member(bob, "@carol:hs", matrix.Join), matrix.CodeForbidden},
		{"an event is too large", room, text(alice, strings.Repeat("x", 65536)), matrix.CodeTooLarge},
		{"a number is not an integer", room, matrix.NewEvent{Type: "m.x", Sender: alice, Content: json.RawMessage(`{"n":1.5}`)}, matrix.CodeBadJSON},
		{"content is not an object", room, matrix.NewEvent{Type: "m.x", Sender: alice, Content: json.RawMessage(`[]`)}, matrix.CodeBadJSON},
		{"there is no such room", "!none:hs", text(alice, "x"), matrix.CodeNotFound},
		{"a redaction of nothing", room, matrix.NewEvent{Type: matrix.TypeRedaction, Sender: alice, Redacts: "$none", Content: json.RawMessage(`{}`)}, matrix.CodeNotFound},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if id, err := r.send(tt.room, tt.ev, ""); !refused(err, tt.code) || id != "" {
				t.Errorf("%q %v, want %s", id, err, tt.code)
			}
		})
	}
	if after := len(r.checkChain(room)); after != before {
		t.Errorf("%d events, %d before", after, before)
	}
	_, err := r.Create(t.Context(), rooms.CreateRequest{Creator: alice, Version: "x"})
	if e, ok := errors.AsType[*matrix.Error](err); !ok || e.Code != matrix.CodeUnsupportedRoomVersion || e.Status != http.StatusBadRequest {
		t.Errorf("unknown version: %v", err)
	}
}

func TestConcurrentSendersMakeOneChain(t *testing.T) {
	for _, idle := range []time.Duration{0, 1} { // 1: the owner ends after every request, or nearly
		t.Run(fmt.Sprint("idle after ", idle), func(t *testing.T) {
			both(t, func(t *testing.T, r *fixture) {
				list := []matrix.RoomID{r.create("12"), r.create("11"), r.create("1")}
				r = on(t, r.store, idle)
				const senders, each = 8, 25
				var mu sync.Mutex
				acknowledged := map[matrix.EventID]int64{} // and how far the hub had come
				var wg sync.WaitGroup
				for s := range senders {
					wg.Go(func() {
						for i := range each {
							ev := text(bob, fmt.Sprint(s, " ", i))
							if s == 0 { // some state in between
								ev = state(alice, "x.state", fmt.Sprint(i%3), map[string]int{"i": i})
							}
							id, err := r.send(list[(s+i)%len(list)], ev, "")
							if err != nil {
								t.Error(err)
								return
							}
							mu.Lock()
							acknowledged[id] = r.hub.Now().Pos
							mu.Unlock()
						}
					})
				}
				wg.Wait()
				found := 0
				for _, room := range list {
					last := make([]int, senders) // what each sender has said, in order
					for _, e := range r.checkChain(room) {
						pos, ok := acknowledged[e.ID]
						if !ok {
							continue
						}
						found++
						if pos < e.Pos {
							t.Errorf("event at %d was acknowledged when the hub was at %d", e.Pos, pos)
						}
						var s, i int
						if _, err := fmt.Sscan(e.String("body"), &s, &i); err == nil {
							if i < last[s] {
								t.Errorf("sender %d: %d comes after %d", s, i, last[s])
							}
							last[s] = i
						}
					}
				}
				if found != senders*each || len(acknowledged) != found {
					t.Errorf("%d acknowledged, %d found", len(acknowledged), found)
				}
			})
		})
	}
}

func TestATransactionIDMakesOneEvent(t *testing.T) {
	both(t, func(t *testing.T, r *fixture) {
		room := r.create("11")
		ids := make([]matrix.EventID, 20)
		var wg sync.WaitGroup
		for i := range ids {
			wg.Go(func() {
				var err error
				if ids[i], err = r.send(room, text(bob, "once"), "t1"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		first := ids[0]
		if ids = slices.Compact(ids); len(ids) != 1 || first == "" {
			t.Errorf("IDs %q", ids)
		}
		again := on(t, r.store, 0) // after a restart
		if id, err := again.send(room, text(bob, "once"), "t1"); id != first || err != nil {
			t.Errorf("%q %v", id, err)
		}
		other := text(bob, "once")
		other.RoomID = room
		if id, err := again.Send(t.Context(), other, rooms.SendOptions{Device: "E", TxnID: "t1"}); id == first || err != nil {
			t.Errorf("another device: %q %v", id, err)
		}
		if id, err := again.send(room, text(alice, "once"), "t1"); id == first || err != nil {
			t.Errorf("another user: %q %v", id, err)
		}
		n := 0
		for _, e := range r.events(room) {
			if e.TxnID == "t1" {
				n++
			}
		}
		if n != 3 {
			t.Errorf("%d events, want 3", n)
		}
	})
}

func TestARestartGoesOnWithTheSameRoom(t *testing.T) {
	both(t, func(t *testing.T, r *fixture) {
		room := r.create("12")
		for i := range 20 {
			r.must(r.send(room, state(alice, matrix.TypeTopic, "", map[string]int{"topic": i}), ""))
			r.must(r.send(room, text(bob, fmt.Sprint(i)), ""))
			r.Close()
			r = on(t, r.store, 0)
		}
		if n := len(r.checkChain(room)); n != 5+40 {
			t.Errorf("%d events", n)
		}
	})
}

func TestRedactions(t *testing.T) {
	redact := func(sender matrix.UserID, id matrix.EventID) matrix.NewEvent {
		return matrix.NewEvent{Type: matrix.TypeRedaction, Sender: sender, Redacts: id, Content: content(struct{}{})}
	}
	both(t, func(t *testing.T, r *fixture) {
		room, elsewhere := r.create("11"), r.create("11")
		body := func(id matrix.EventID) string {
			e, err := r.store.Event(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return e.String("body")
		}
		of := map[string]matrix.EventID{}
		for _, who := range []matrix.UserID{alice, bob} {
			of[string(who)] = r.must(r.send(room, text(who, "said"), ""))
		}
		if _, err := r.send(room, redact(bob, of[string(alice)]), ""); !refused(err, matrix.CodeForbidden) {
			t.Errorf("without the power: %v", err)
		}
		if got := body(of[string(alice)]); got != "said" {
			t.Errorf("bob has redacted what alice said: %q", got)
		}
		first := r.must(r.send(room, redact(bob, of[string(bob)]), ""))
		r.must(r.send(room, redact(alice, of[string(bob)]), "")) // a second has none either
		if e, _ := r.store.Event(t.Context(), of[string(bob)]); e.RedactedBy != first || e.String("body") != "" {
			t.Errorf("redacted by %q: %s", e.RedactedBy, e.Content)
		}
		if _, err := r.send(elsewhere, redact(alice, of[string(alice)]), ""); !refused(err, matrix.CodeNotFound) {
			t.Errorf("from another room: %v", err)
		}
		// Redacted state counts as what is left of it, before and after a restart.
		topic := r.must(r.send(room, state(alice, matrix.TypeTopic, "", map[string]string{"topic": "x"}), ""))
		r.must(r.send(room, redact(alice, topic), ""))
		levels := r.must(r.send(room, state(alice, matrix.TypePowerLevels, "", map[string]any{"users": map[matrix.UserID]int{alice: 100}, "notifications": map[string]int{"room": 20}}), ""))
		r.must(r.send(room, redact(alice, levels), ""))
		for range 2 {
			r.must(r.send(room, state(alice, "x.y", "", struct{}{}), "")) // alice still has her power
			r = on(t, r.store, 0)
		}
		r.checkChain(room)
		if e, err := r.store.CurrentStateKey(t.Context(), room, matrix.TypeTopic, ""); err != nil || e == nil || e.String("topic") != "" {
			t.Errorf("topic: %v %v", e, err)
		}
	})
}

// poison is a transaction ID that the database refuses after poisonFor.
const poison = "poison"

func (r *fixture) poisonFor(user matrix.UserID) {
	r.tb.Helper()
	err := r.store.Write(r.tb.Context(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`INSERT INTO transaction_id (user_id, device_id, txn_id, event_id, ts) VALUES ($1, 'D', $2, '', 0)`, user, " "+poison)
		return err
	})
	if err != nil {
		r.tb.Fatal(err)
	}
}

func TestAnEventThatIsNotStoredNeverWas(t *testing.T) {
	both(t, func(t *testing.T, r *fixture) {
		room := r.create("11")
		r.poisonFor(alice)
		silence := state(alice, matrix.TypePowerLevels, "", map[string]any{"users": map[matrix.UserID]int{alice: 100}, "events_default": 50})
		before := r.hub.Now()
		if id, err := r.send(room, silence, poison); err == nil {
			t.Fatalf("stored as %s", id)
		}
		if r.hub.Now() != before {
			t.Error("the hub was told of it")
		}
		if _, err := r.send(room, text(bob, "I may still speak"), ""); err != nil {
			t.Error(err)
		}
		if n := len(r.checkChain(room)); n != 6 {
			t.Errorf("%d events", n)
		}
	})
}

func TestAFailureAmongManyLosesNothingThatWasAcknowledged(t *testing.T) {
	both(t, func(t *testing.T, r *fixture) {
		room := r.create("11")
		r.poisonFor(bob)
		var mu sync.Mutex
		acknowledged := map[matrix.EventID]bool{}
		var wg sync.WaitGroup
		for s := range 10 {
			wg.Go(func() {
				for i := range 20 {
					txn := ""
					if s == 0 && i%5 == 0 {
						txn = poison
					}
					id, err := r.send(room, text(bob, "x"), txn)
					if err == nil && txn != "" {
						t.Error("a poisoned event was acknowledged")
					}
					if err != nil {
						if _, client := errors.AsType[*matrix.Error](err); client {
							t.Errorf("the sender is blamed: %v", err)
						}
						continue
					}
					mu.Lock()
					acknowledged[id] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		r.must(r.send(room, text(bob, "still alive"), ""))
		for _, e := range r.checkChain(room)[5:] {
			if !acknowledged[e.ID] && e.String("body") != "still alive" {
				t.Errorf("%s was stored but not acknowledged", e.ID)
			}
			delete(acknowledged, e.ID)
		}
		if len(acknowledged) > 0 {
			t.Errorf("%d events are gone", len(acknowledged))
		}
	})
}

func TestNothingAcknowledgedIsLostWhenPostgreSQLIsKilled(t *testing.T) {
	c := postgres.New(t)
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	r := open(t, c.DSN("postgres"))
	room := r.create("11")
	// The context ends the senders should the database not come back.
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var mu sync.Mutex
	acknowledged := map[string]matrix.EventID{} // by text
	failures, after := 0, make(chan struct{})
	var wg sync.WaitGroup
	for s := range 4 {
		wg.Go(func() {
			for i := 0; i < 60 && ctx.Err() == nil; i++ {
				body := fmt.Sprint(s, ".", i)
				ev := text(bob, body)
				ev.RoomID = room
				// As a client does: the same transaction ID until it is acknowledged.
				for ctx.Err() == nil {
					id, err := r.Send(ctx, ev, rooms.SendOptions{Device: "D", TxnID: body})
					mu.Lock()
					if err == nil {
						acknowledged[body] = id
						mu.Unlock()
						break
					}
					failures++
					mu.Unlock()
					select { // there is nothing to be had until the database is back
					case <-after:
					case <-ctx.Done():
					}
				}
				if s == 0 && i == 20 {
					c.Kill()
					if err := c.Run(); err != nil {
						t.Error(err)
						cancel()
					}
					close(after)
				}
			}
		})
	}
	wg.Wait()
	seen := map[string]matrix.EventID{}
	for _, e := range r.checkChain(room)[5:] {
		if seen[e.String("body")] != "" {
			t.Errorf("%s is there twice", e.String("body"))
		}
		seen[e.String("body")] = e.ID
	}
	if len(seen) != 240 || failures == 0 {
		t.Errorf("%d messages, %d failures", len(seen), failures)
	}
	for body, id := range acknowledged {
		if seen[body] != id {
			t.Errorf("%s was acknowledged as %s and is %q", body, id, seen[body])
		}
	}
}

func TestCloseCarriesOutWhatWasTaken(t *testing.T) {
	r := open(t, databases["SQLite"](t))
	room := r.create("11")
	var mu sync.Mutex
	acknowledged := 0
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				_, err := r.send(room, text(bob, "x"), "")
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				if err == nil {
					mu.Lock()
					acknowledged++
					mu.Unlock()
				}
			}
		})
	}
	r.Close()
	wg.Wait()
	if n := len(r.checkChain(room)) - 5; n != acknowledged {
		t.Errorf("%d stored, %d acknowledged", n, acknowledged)
	}
	if _, err := r.send(room, text(bob, "x"), ""); !errors.Is(err, context.Canceled) {
		t.Errorf("after Close: %v", err)
	}
}

func BenchmarkSend(b *testing.B) {
	for name, dsn := range databases {
		for _, senders := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/%d", name, senders), func(b *testing.B) {
				r := open(b, dsn(b))
				var list []matrix.RoomID
				for range 8 {
					list = append(list, r.create("12"))
				}
				next := make(chan matrix.RoomID)
				var wg sync.WaitGroup
				for range senders {
					wg.Go(func() {
						for room := range next {
							if _, err := r.send(room, text(bob, "a message of a usual length, as people send it"), ""); err != nil {
								b.Error(err)
							}
						}
					})
				}
				b.ResetTimer()
				for i := range b.N {
					next <- list[i%len(list)]
				}
				close(next)
				wg.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			})
		}
	}
}
