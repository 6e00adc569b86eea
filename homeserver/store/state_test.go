package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// log writes events of a room, without asking whether they are allowed.
type log struct {
	t     *testing.T
	s     *Store
	room  matrix.RoomID
	rules *roomversion.Rules
	chain Chain
	n     int
}

func newLog(t *testing.T, s *Store, room matrix.RoomID) *log {
	t.Helper()
	rules, ok := roomversion.Get("10")
	if !ok {
		t.Fatal("no room version 10")
	}
	write(t, s, func(tx *sqldb.Tx) error { return s.InsertRoom(tx, room, "10", alice, 1) })
	return &log{t: t, s: s, room: room, rules: rules}
}

// put stores an event, a state event if key is not nil.
func (l *log) put(typ string, sender matrix.UserID, key *string, content string) NewEvent {
	l.t.Helper()
	l.n++
	raw, err := json.Marshal(map[string]any{
		"type": typ, "room_id": l.room, "sender": sender, "state_key": key, "content": json.RawMessage(content), "origin_server_ts": l.n, "depth": l.n,
		"auth_events": []string{}, "prev_events": []string{}, "hashes": map[string]string{"sha256": ""}, "signatures": map[string]any{},
	})
	if err != nil {
		l.t.Fatal(err)
	}
	if key == nil {
		var m map[string]any
		json.Unmarshal(raw, &m)
		delete(m, "state_key")
		raw, _ = json.Marshal(m)
	}
	p, err := pdu.ParseTrusted(l.rules, matrix.EventID(fmt.Sprintf("$%s_%d", l.room[1:], l.n)), raw)
	if err != nil {
		l.t.Fatal(err)
	}
	var e NewEvent
	next := l.chain
	write(l.t, l.s, func(tx *sqldb.Tx) error {
		pos, err := tx.NextPos(1)
		if err != nil {
			return err
		}
		e = NewEvent{PDU: p, Pos: pos, Snapshot: l.chain.ID()}
		l.s.InsertEvent(tx, e)
		if p.IsState() {
			l.s.SetState(tx, e, l.chain.At(p.Key()))
			next = l.chain.Next(pos, p.Key())
			l.s.InsertSnapshot(tx, l.room, next)
		}
		return nil
	})
	l.chain = next
	return e
}

func (l *log) state(typ, key, content string) NewEvent {
	l.t.Helper()
	return l.put(typ, alice, &key, content)
}

func (l *log) message(body string) NewEvent {
	l.t.Helper()
	return l.put(matrix.TypeMessage, alice, nil, fmt.Sprintf(`{"body":%q}`, body))
}

func (l *log) member(u matrix.UserID, membership string) NewEvent {
	l.t.Helper()
	return l.state(matrix.TypeMember, string(u), fmt.Sprintf(`{"membership":%q}`, membership))
}

// TestEverySnapshotIsTheStateOfItsTime holds the chains of deltas against states
// that are kept whole.
func TestEverySnapshotIsTheStateOfItsTime(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 0))
		rooms := []*log{newLog(t, s, "!a:test"), newLog(t, s, "!b:test")}
		type moment struct {
			log      *log
			event    NewEvent
			before   StateMap
			previous Pos
		}
		var all []moment
		now := map[*log]StateMap{rooms[0]: {}, rooms[1]: {}}
		for range 200 {
			l := rooms[r.IntN(2)]
			before := maps.Clone(now[l])
			var e NewEvent
			var previous Pos
			if r.IntN(4) == 0 {
				e = l.message("x")
			} else {
				e = l.state("x.type", fmt.Sprint(r.IntN(12)), `{}`)
				previous = before[e.Key()]
				now[l][e.Key()] = e.Pos
			}
			all = append(all, moment{l, e, before, previous})
		}
		for _, m := range all {
			got, err := s.StateAt(t.Context(), m.event.Snapshot)
			if err != nil || !maps.Equal(got, m.before) {
				t.Fatalf("seed %d: state before %d is %v, want %v (%v)", seed, m.event.Pos, got, m.before, err)
			}
			chain, err := s.ChainOf(t.Context(), m.event.Snapshot)
			if err != nil {
				t.Fatal(err)
			}
			if len(chain) > 0 {
				if n := chain[len(chain)-1].Seq; len(chain) != bits.OnesCount64(uint64(n)) {
					t.Errorf("seed %d: snapshot %d takes %d steps", seed, n, len(chain))
				}
			}
			for k := range 13 {
				key := matrix.StateKey{Type: "x.type", Key: fmt.Sprint(k)}
				e, err := s.StateAtKey(t.Context(), m.event.Snapshot, key.Type, key.Key)
				if err != nil || (e == nil) != (m.before[key] == 0) || e != nil && e.Pos != m.before[key] {
					t.Fatalf("seed %d: %v before %d is %v (%v), want %d", seed, key, m.event.Pos, e, err, m.before[key])
				}
				if chain.At(key) != m.before[key] {
					t.Fatalf("seed %d: the chain has %d for %v", seed, chain.At(key), key)
				}
			}
			if m.event.IsState() {
				previous, err := s.Previous(t.Context(), m.log.room, []Pos{m.event.Pos})
				if err != nil || previous[m.event.Pos] != m.previous {
					t.Errorf("seed %d: %d replaced %v (%v), want %d", seed, m.event.Pos, previous, err, m.previous)
				}
				replaced, err := s.Replaced(t.Context(), []Pos{m.event.Pos})
				if err != nil || (replaced[m.event.Pos] == nil) != (m.previous == 0) || m.previous > 0 && replaced[m.event.Pos].Pos != m.previous {
					t.Errorf("seed %d: %d replaced %v (%v), want %d", seed, m.event.Pos, replaced, err, m.previous)
				}
			}
		}
		for _, l := range rooms {
			current, err := s.CurrentState(t.Context(), l.room)
			got := StateMap{}
			for _, e := range current {
				got[e.Key()] = e.Pos
			}
			if err != nil || !maps.Equal(got, now[l]) {
				t.Errorf("seed %d: current state %v (%v), want %v", seed, got, err, now[l])
			}
			// What changed between two moments leads from the one to the other.
			from, to := all[50].event.Pos, all[150].event.Pos
			before, after, err := s.StateChanges(t.Context(), l.room, from, to)
			if err != nil {
				t.Fatal(err)
			}
			want := StateMap{} // after from
			end := StateMap{}  // after to
			for _, m := range all {
				if m.log == l && m.event.IsState() && m.event.Pos <= to {
					if m.event.Pos <= from {
						want[m.event.Key()] = m.event.Pos
					}
					end[m.event.Key()] = m.event.Pos
				}
			}
			for k, pos := range before {
				if pos != want[k] {
					t.Errorf("seed %d: %v was %d, want %d", seed, k, pos, want[k])
				}
			}
			for k, pos := range end {
				if pos != want[k] && after[k] != pos {
					t.Errorf("seed %d: %v became %d, want %d", seed, k, after[k], pos)
				}
			}
		}
	})
}

func TestMembersNowAndThen(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		l, other := newLog(t, s, "!a:test"), newLog(t, s, "!b:test")
		carol := matrix.UserID("@carol:test")
		var told []Pos
		joined := map[Pos][]matrix.UserID{} // after each event
		note := func(e NewEvent, users ...matrix.UserID) {
			told = append(told, e.Pos)
			joined[e.Pos] = users
		}
		note(l.member(alice, "join"), alice)
		note(l.member(bob, "invite"), alice)
		other.member(carol, "join")
		note(l.member(bob, "join"), alice, bob)
		note(l.member(carol, "join"), alice, bob, carol)
		note(l.message("hello"), alice, bob, carol)
		note(l.member(alice, "leave"), bob, carol)
		note(l.member(alice, "join"), alice, bob, carol)
		last := l.member(bob, "ban")
		note(last, alice, carol)
		for _, pos := range told {
			got, err := s.JoinedAt(t.Context(), l.room, pos)
			slices.Sort(got)
			if err != nil || !slices.Equal(got, joined[pos]) {
				t.Errorf("at %d: %v (%v), want %v", pos, got, err, joined[pos])
			}
		}
		same(t, "nobody before the first", []matrix.UserID(nil))(s.JoinedAt(t.Context(), l.room, told[0]-1))
		same(t, "rooms of carol", []Membership{{l.room, carol, "join", told[3]}, {other.room, carol, "join", told[1] + 1}})(sorted(s.MembershipsOf(t.Context(), carol)))
		same(t, "banned", []Membership{{l.room, bob, "ban", last.Pos}})(s.Members(t.Context(), l.room, "ban", "leave"))
		if n, invited, err := s.MemberCounts(t.Context(), l.room); n != 2 || invited != 0 || err != nil {
			t.Errorf("%d joined, %d invited, %v", n, invited, err)
		}
		if m, pos, err := s.MembershipOf(t.Context(), l.room, bob); m != "ban" || pos != last.Pos || err != nil {
			t.Errorf("bob: %q %d %v", m, pos, err)
		}
		if m, pos, err := s.MembershipOf(t.Context(), other.room, bob); m != "" || pos != 0 || err != nil {
			t.Errorf("bob elsewhere: %q %d %v", m, pos, err)
		}
		history, err := s.MembershipHistory(t.Context(), l.room, bob)
		var was []string
		for _, m := range history {
			was = append(was, m.Membership)
		}
		if want := []string{"invite", "join", "ban"}; err != nil || !slices.Equal(was, want) {
			t.Errorf("bob was %q, %v", was, err)
		}
		same(t, "who shares a room with alice", map[matrix.UserID]bool{carol: true})(s.ShareRoom(t.Context(), alice, []matrix.UserID{bob, carol, "@dave:test"}))
	})
}

func sorted(list []Membership, err error) ([]Membership, error) {
	slices.SortFunc(list, func(a, b Membership) int {
		if a.Room < b.Room {
			return -1
		}
		return 1
	})
	return list, err
}

func TestEventsAreReadInOrderAndPages(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		a, b := newLog(t, s, "!a:test"), newLog(t, s, "!b:test")
		var inA, all []Pos
		for i := range 10 {
			l := []*log{a, b}[i%2]
			e := l.message(fmt.Sprint(i))
			if all = append(all, e.Pos); l == a {
				inA = append(inA, e.Pos)
			}
		}
		positions := func(list []*Event, err error) ([]Pos, error) {
			var out []Pos
			for _, e := range list {
				out = append(out, e.Pos)
			}
			return out, err
		}
		ctx := t.Context()
		down := func(p []Pos) []Pos { p = slices.Clone(p); slices.Reverse(p); return p }
		same(t, "all of a room", inA)(positions(s.EventsAfter(ctx, a.room, 0, 1<<60, 100)))
		same(t, "a page", inA[1:3])(positions(s.EventsAfter(ctx, a.room, inA[0], 1<<60, 2)))
		same(t, "bounds are open below and closed above", inA[1:3])(positions(s.EventsAfter(ctx, a.room, inA[0], inA[2], 100)))
		same(t, "backward", down(inA[1:4])[:2])(positions(s.EventsBefore(ctx, a.room, inA[0], inA[3], 2)))
		same(t, "of all rooms", all[4:7])(positions(s.AllEventsAfter(ctx, all[3], 3)))
		same(t, "none", []Pos(nil))(positions(s.EventsAfter(ctx, a.room, inA[4], 1<<60, 100)))
		heads, err := s.Headers(ctx, all[3], all[6], 100)
		if err != nil || len(heads) != 3 || heads[0].Pos != all[4] || heads[0].Room != a.room || heads[0].Sender != alice || heads[0].StateKey != nil {
			t.Errorf("headers %+v, %v", heads, err)
		}
		e, err := s.Parse(ctx, &heads[0])
		if want, err2 := s.EventsByPos(ctx, []Pos{all[4], 1 << 50}); err != nil || err2 != nil || len(want) != 1 || e.ID != want[all[4]].ID || e.String("body") != "4" {
			t.Errorf("%v, %v, %v", e, err, err2)
		}
		if _, err := s.Event(ctx, "$none"); !errors.Is(err, ErrNotFound) {
			t.Errorf("an event that is not there: %v", err)
		}
		if _, err := s.Rules(ctx, "!none:test"); !errors.Is(err, ErrNotFound) {
			t.Errorf("a room that is not there: %v", err)
		}
	})
}

func TestATransactionIDIsUsedOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		note := func(user matrix.UserID, device matrix.DeviceID, txn string, id matrix.EventID) error {
			return s.Write(t.Context(), func(tx *sqldb.Tx) error { s.InsertTxn(tx, user, device, txn, id, 1); return nil })
		}
		if err := note(alice, "D", "1", "$a"); err != nil {
			t.Fatal(err)
		}
		if err := note(alice, "D", "1", "$b"); err == nil {
			t.Error("the same again was taken")
		}
		for _, other := range []error{note(alice, "E", "1", "$c"), note(bob, "D", "1", "$d"), note(alice, "D", "2", "$e")} {
			if other != nil {
				t.Error(other)
			}
		}
		same(t, "the first", matrix.EventID("$a"))(s.Txn(t.Context(), alice, "D", "1"))
		same(t, "none", matrix.EventID(""))(s.Txn(t.Context(), alice, "D", "3"))
	})
}

func TestAServicesPlaceInTheStream(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		if _, _, err := s.ServicePosition(ctx, "irc"); !errors.Is(err, ErrNotFound) {
			t.Errorf("an unknown service: %v", err)
		}
		first := &ServiceTransaction{ID: "a", UpTo: 10, Created: 5, Events: []Pos{7, 9}, Extra: `{"ephemeral":[]}`}
		steps := []struct {
			name    string
			pos     Pos
			put     *ServiceTransaction
			pending *ServiceTransaction
		}{
			{"nothing sent yet", 4, nil, nil},
			{"a transaction on its way", 4, first, first},
			{"acknowledged", 10, nil, nil},
			{"the next one, without events", 10, &ServiceTransaction{ID: "b", UpTo: 12, Created: 6, Events: []Pos{}}, &ServiceTransaction{ID: "b", UpTo: 12, Created: 6, Events: []Pos{}}},
		}
		for _, step := range steps {
			write(t, s, func(tx *sqldb.Tx) error {
				if err := s.SetServicePosition(tx, "irc", step.pos); err != nil || step.put == nil {
					return err
				}
				return s.PutServiceTransaction(tx, "irc", step.put)
			})
			pos, pending, err := s.ServicePosition(ctx, "irc")
			if err != nil || pos != step.pos || fmt.Sprint(pending) != fmt.Sprint(step.pending) {
				t.Errorf("%s: %d %v %v", step.name, pos, pending, err)
			}
		}
		write(t, s, func(tx *sqldb.Tx) error { return s.ForgetService(tx, "irc") })
		if _, _, err := s.ServicePosition(ctx, "irc"); !errors.Is(err, ErrNotFound) {
			t.Errorf("after it was forgotten: %v", err)
		}
	})
}

func TestAStoreIsOpenedAgain(t *testing.T) {
	dsn := "sqlite:" + filepath.Join(t.TempDir(), "t.db")
	const room = matrix.RoomID("!a:test")
	for i := range 3 {
		db, err := sqldb.Open(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Open(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			newLog(t, s, room).message("kept")
		}
		list, err := s.EventsAfter(t.Context(), room, 0, 10, 10)
		if err != nil || len(list) != 1 || list[0].String("body") != "kept" {
			t.Errorf("%v, %v", list, err)
		}
		if pos, err := s.Position(t.Context()); pos != 1 || err != nil {
			t.Errorf("position %d, %v", pos, err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
