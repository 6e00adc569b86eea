package stateres

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

// choices is a source of decisions: fuzzers find their way through it.
type choices struct{ data []byte }

// of returns a number below n, 0 once the source is empty.
func (c *choices) of(n int) int {
	if len(c.data) == 0 {
		return 0
	}
	b := c.data[0]
	c.data = c.data[1:]
	return int(b) % n
}

func (c *choices) done() bool { return len(c.data) == 0 }

var people = []string{"alice", "bob", "carol", "dave", "eve"}

// randomAction is something that someone may try.
func (r *testRoom) randomAction(c *choices) action {
	who := append(people, "alice", "alice", "bob") // some do more
	sender, other := who[c.of(len(who))], who[c.of(len(who))]
	levels := []string{"levels", "alice=100", fmt.Sprintf("%s=%d", other, []int{0, 10, 50, 90, 100}[c.of(5)]), fmt.Sprintf("state_default=%d", []int{0, 50}[c.of(2)])}
	verbs := [][]string{
		{"join"}, {"leave"}, {"rejoin", "x"}, {"invite", other}, {"kick", other}, {"ban", other}, {"topic", "t"}, {"name", "n"},
		{"rule", []string{"public", "invite", "knock"}[c.of(3)]},
		levels, levels, levels,
		{"message"},
	}
	return r.parseAction(append([]string{sender}, verbs[c.of(len(verbs))]...))
}

// randomRoom plays what chance dictates: branches that part and meet, attempts that
// are rejected, events that cite state of long ago. It returns the names of events.
func randomRoom(tb testing.TB, version string, c *choices, most int) (*testRoom, []string) {
	tb.Helper()
	r := newRoom(tb, version)
	r.play(prelude)
	names := []string{"start"}
	for i := 0; i < most && !c.done(); i++ {
		prev := []string{names[len(names)-1-c.of(min(len(names), 6))]}
		for range c.of(3) {
			if p := names[len(names)-1-c.of(min(len(names), 6))]; !slices.Contains(prev, p) {
				prev = append(prev, p)
			}
		}
		var citing State
		if c.of(4) == 0 {
			citing = r.after[names[c.of(len(names))]]
		}
		// Names in no order, so that IDs do not follow time.
		name := fmt.Sprintf("%c%d", 'a'+rune(c.of(26)), i)
		if err := r.add(name, prev, r.randomAction(c), int64(2000+c.of(20)), citing); err == nil || c.of(4) == 0 {
			names = append(names, name)
		}
	}
	return r, names
}

// forge adds events that no honest server would let in, with auth_events at will,
// and gives each of two sets some of them.
func (r *testRoom) forge(c *choices, sets []State) {
	known := slices.Sorted(maps.Keys(r.events))
	if c.of(4) == 0 { // as if we had rejected what others have
		id := known[c.of(len(known))]
		e := r.events[id]
		e.Rejected = !e.Is(matrix.TypeCreate, "")
		r.events[id] = e
	}
	total := c.of(6)
	for i := range total {
		if r.rules.IDFormat == roomversion.IDInEvent { // such IDs can be known beforehand
			known = append(known, r.eventID(fmt.Sprintf("forged%d", i)))
		}
	}
	for i := range total {
		a := r.randomAction(c)
		if a.key == nil {
			continue
		}
		auth := []matrix.EventID{}
		for range c.of(5) {
			auth = append(auth, known[c.of(len(known))])
		}
		content := []byte(`{"membership":"join","users":{"@eve:test":100}}`)
		e := r.event(fmt.Sprintf("forged%d", i), a, content, int64(c.of(30)), int64(c.of(30)), nil, auth)
		r.events[e.ID] = Event{PDU: e, Rejected: c.of(8) == 0}
		sets[c.of(len(sets))][e.Key()] = e.ID
	}
}

// indexed is an Events with an Index.
type indexed struct {
	Map
	literal literal
}

func (x indexed) InChains(candidates []matrix.EventID, state iter.Seq[matrix.EventID]) (out []matrix.EventID, err error) {
	for id := range state {
		chain := x.literal.chain(id)
		for _, c := range candidates {
			if chain[c] {
				out = append(out, c)
			}
		}
	}
	return out, nil
}

// checkProperties holds one resolution against all that must be true of any.
func (r *testRoom) checkProperties(c *choices, sets []State) {
	r.tb.Helper()
	given := make([]State, len(sets))
	for i, s := range sets {
		given[i] = maps.Clone(s)
	}
	got, err := Resolve(r.rules, sets, r.events)
	if err != nil {
		r.tb.Fatal(err)
	}
	if want := (literal{r.rules, r.events}).resolve(sets); !maps.Equal(got, want) {
		r.tb.Fatalf("resolves to\n%s\nthe literal algorithm to\n%s", show(got), show(want))
	}
	same := func(what string, sets []State, events Events) {
		r.tb.Helper()
		again, err := Resolve(r.rules, sets, events)
		if err != nil || !maps.Equal(again, got) {
			r.tb.Fatalf("%s: %v\n%s\nwant\n%s", what, err, show(again), show(got))
		}
	}
	for range sets {
		sets = append(sets[1:], sets[0])
		same("in another order", sets, r.events)
	}
	same("with a set twice", append(slices.Clone(sets), sets[c.of(len(sets))]), r.events)
	same("with an index", sets, indexed{r.events, literal{r.rules, r.events}})
	for i, s := range sets {
		if !slices.ContainsFunc(given, func(g State) bool { return maps.Equal(g, s) }) {
			r.tb.Fatalf("set %d was changed", i)
		}
		once, err := Resolve(r.rules, []State{s, s}, r.events)
		if err != nil || !maps.Equal(once, s) {
			r.tb.Fatalf("a set with itself is not itself: %v", err)
		}
	}
	for k, id := range got {
		e := r.events[id]
		if !e.Is(k.Type, k.Key) {
			r.tb.Fatalf("%s at %v", id, k)
		}
		if e.Rejected && !r.inAll(sets, k, id) {
			r.tb.Fatalf("%s was rejected and won", id)
		}
	}
	for k, id := range sets[0] {
		if r.inAll(sets, k, id) && got[k] != id {
			r.tb.Fatalf("all sets have %s, and it is lost", id)
		}
	}
}

func (r *testRoom) inAll(sets []State, k matrix.StateKey, id matrix.EventID) bool {
	for _, s := range sets {
		other, ok := s[k]
		if other != id && (ok || r.rules.StateRes != roomversion.StateResV1) {
			return false
		}
	}
	return true
}

// run makes a room of a source and checks resolutions of it.
func run(tb testing.TB, version string, data []byte, most int) (conflicts int) {
	c := &choices{data[:min(len(data), 100)]}
	r, names := randomRoom(tb, version, &choices{data[len(c.data):]}, most)
	pick := func() State { return maps.Clone(r.after[names[len(names)-1-c.of(min(len(names), 12))]]) }
	for range 3 {
		sets := []State{pick(), pick()}
		if c.of(3) == 0 {
			sets = append(sets, pick())
		}
		if _, parts := separate(r.rules, sets); len(parts) > 0 {
			conflicts++
		}
		r.checkProperties(c, sets)
	}
	sets := []State{pick(), pick()}
	r.forge(c, sets)
	r.checkProperties(c, sets)
	return conflicts
}

func TestRandomRooms(t *testing.T) {
	for _, version := range []string{"1", "2", "3", "6", "8", "10", "11", "12"} {
		t.Run("version "+version, func(t *testing.T) {
			t.Parallel()
			random := rand.NewChaCha8([32]byte{42})
			conflicts := 0
			for range 40 {
				data := make([]byte, 700)
				random.Read(data)
				conflicts += run(t, version, data, 60)
			}
			if conflicts < 60 {
				t.Errorf("only %d of 120 had conflicts", conflicts)
			}
		})
	}
}

func FuzzResolve(f *testing.F) {
	random := rand.NewChaCha8([32]byte{7})
	for i := range 12 {
		data := make([]byte, 300)
		random.Read(data)
		f.Add(uint8(i), data)
	}
	f.Fuzz(func(t *testing.T, version uint8, data []byte) {
		all := roomversion.All()
		run(t, string(all[int(version)%len(all)].Version), data[:min(len(data), 500)], 40)
	})
}

// Whatever is missing or broken, there is an answer or an error.
func FuzzBrokenStore(f *testing.F) {
	random := rand.NewChaCha8([32]byte{8})
	for i := range 12 {
		data := make([]byte, 300)
		random.Read(data)
		f.Add(uint8(i), data)
	}
	f.Fuzz(func(t *testing.T, version uint8, data []byte) {
		all := roomversion.All()
		c := &choices{data[:min(len(data), 80)]}
		r, names := randomRoom(t, string(all[int(version)%len(all)].Version), &choices{data[len(c.data):min(len(data), 400)]}, 25)
		sets := []State{maps.Clone(r.after[names[len(names)-1]]), maps.Clone(r.after[names[c.of(len(names))]])}
		r.forge(c, sets)
		order := slices.Sorted(maps.Keys(r.events))
		for range c.of(6) {
			delete(r.events, order[c.of(len(order))])
		}
		got, err := Resolve(r.rules, sets, r.events)
		if err != nil && !errors.Is(err, ErrUnknown) {
			t.Fatal(err)
		}
		slices.Reverse(sets)
		again, errAgain := Resolve(r.rules, sets, r.events)
		if (err == nil) != (errAgain == nil) || !maps.Equal(got, again) {
			t.Fatalf("%v, %v\n%s\n\n%s", err, errAgain, show(got), show(again))
		}
	})
}
