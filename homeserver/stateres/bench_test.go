package stateres

import (
	"fmt"
	"maps"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// bigRoom is a room with members, and two branches that each have changed half of
// some of them, twice if so.
func bigRoom(tb testing.TB, version string, members, conflicts int, twice bool) (*testRoom, []State) {
	tb.Helper()
	r := newRoom(tb, version)
	r.play(prelude)
	state := maps.Clone(r.after["start"])
	auth := []matrix.EventID{r.eventID("pl0"), r.eventID("jr0")}
	if !r.rules.RoomIDIsCreateHash {
		auth = append(auth, r.eventID("create"))
	}
	member := func(i, change int, set State) {
		a := r.parseAction([]string{fmt.Sprintf("user%d", i), "rejoin", fmt.Sprint(change)})
		key := matrix.StateKey{Type: a.typ, Key: *a.key}
		cite := auth
		if old := set[key]; old != "" {
			cite = append(cite[:len(cite):len(cite)], old)
		}
		content := fmt.Appendf(nil, `{"displayname":"%d","membership":"join"}`, change)
		e := r.event(fmt.Sprintf("%043d", i*10+change), a, content, 10, int64(change), []matrix.EventID{r.eventID("start")}, cite)
		r.events[e.ID] = Event{PDU: e}
		set[key] = e.ID
	}
	for i := range members {
		member(i, 0, state)
	}
	sets := []State{maps.Clone(state), maps.Clone(state)}
	for i := range conflicts {
		member(i, 1+i%2, sets[i%2])
		if twice {
			member(i, 3, sets[i%2])
		}
	}
	return r, sets
}

// oldRoom is a room whose levels were changed many times, and last on two branches.
func oldRoom(tb testing.TB, version string, changes int) (*testRoom, []State) {
	tb.Helper()
	r := newRoom(tb, version)
	r.play(prelude)
	state := r.after["start"]
	auth := []matrix.EventID{"", r.eventID("alice")}
	if !r.rules.RoomIDIsCreateHash {
		auth = append(auth, r.eventID("create"))
	}
	add := func(i, ts int, cite matrix.EventID) State {
		a := r.parseAction([]string{"alice", "levels"})
		auth[0] = cite
		content := fmt.Appendf(nil, `{"users":{"@bob:test":%d}}`, i%100)
		if !r.rules.CreatorsInfinite {
			content = fmt.Appendf(nil, `{"users":{"@alice:test":100,"@bob:test":%d}}`, i%100)
		}
		e := r.event(fmt.Sprint("pl", i), a, content, int64(i), int64(ts), nil, auth)
		r.events[e.ID] = Event{PDU: e}
		s := maps.Clone(state)
		s[e.Key()] = e.ID
		return s
	}
	for i := range changes {
		add(i+1, i+1, r.eventID(fmt.Sprint("pl", i)))
	}
	tip := r.eventID(fmt.Sprint("pl", changes))
	return r, []State{add(changes+1, changes+1, tip), add(changes+2, changes+2, tip), add(changes+3, 0, r.eventID("pl0"))}
}

func TestLongChainsNeedNoStack(t *testing.T) {
	for _, version := range []string{"10", "12"} {
		r, sets := oldRoom(t, version, 2000)
		got, err := Resolve(r.rules, sets, r.events)
		key := matrix.StateKey{Type: matrix.TypePowerLevels}
		if want := r.eventID("pl2002"); err != nil || got[key] != want {
			t.Errorf("version %s: %s, %v; want %s", version, got[key], err, want)
		}
	}
}

func BenchmarkOldRoom(b *testing.B) {
	for _, version := range []string{"10", "12"} {
		b.Run("version "+version+", 5000 power levels", func(b *testing.B) {
			r, sets := oldRoom(b, version, 5000)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Resolve(r.rules, sets, r.events); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkResolve(b *testing.B) {
	for _, bb := range []struct {
		name, version      string
		members, conflicts int
		twice              bool
	}{
		{"v2, 10000 members, 100 conflicts", "10", 10000, 100, false},
		{"v2, 10000 members, 100 conflicts, chains differ", "10", 10000, 100, true},
		{"v2.1, 10000 members, 100 conflicts", "12", 10000, 100, false},
		{"v2.1, 10000 members, 100 conflicts, chains differ", "12", 10000, 100, true},
		{"v1, 10000 members, 100 conflicts", "1", 10000, 100, false},
		{"v2, 100 members, 1 conflict", "10", 100, 1, false},
		{"v2.1, 100 members, 1 conflict", "12", 100, 1, false},
	} {
		r, sets := bigRoom(b, bb.version, bb.members, bb.conflicts, bb.twice)
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Resolve(r.rules, sets, r.events); err != nil {
					b.Fatal(err)
				}
			}
		})
		common, parts := separate(r.rules, sets)
		if bb.twice {
			continue
		}
		b.Run(bb.name+", told what differs", func(b *testing.B) {
			c := Conflict{Sets: parts, Common: func(k matrix.StateKey) matrix.EventID { return common[k] }, All: maps.Values(common)}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Resolve(r.rules, r.events); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
