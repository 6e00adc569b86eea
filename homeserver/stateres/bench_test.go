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
