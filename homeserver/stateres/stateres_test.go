package stateres

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// prelude is what every scenario starts with.
const prelude = `
	create:  alice create
	alice:   alice join
	pl0:     alice levels alice=100
	jr0:     alice rule public
	bob:     bob join
	carol:   carol join
	start:   alice message`

// Versions that stand for their kinds.
var (
	withV2  = []string{"2", "3", "5", "6", "10", "11"}
	withV21 = []string{"12"}
	all2    = slices.Concat(withV2, withV21)
)

// A scenario is a history whose last events are the forward extremities, and what
// their states resolve to, where that differs from the prelude's.
type scenario struct {
	name     string
	versions []string
	history  string
	ends     string
	want     string // names of events that are state at their keys
	gone     string // the key ("type state_key") that has no state
}

var scenarios = []scenario{
	{name: "one branch is resolved already", versions: all2,
		history: `t1 < start: alice topic`,
		ends:    "t1", want: "t1"},
	{name: "what only one branch has is kept if it is allowed", versions: all2,
		history: `t1 < start: alice topic
			m1 < start: bob message`,
		ends: "t1 m1", want: "t1"},
	{name: "of two topics by the same levels the later counts", versions: all2,
		history: `t1 < start: alice topic @50
			t2 < start: alice topic @40`,
		ends: "t1 t2", want: "t1"},
	{name: "of two topics at the same time the greater ID counts", versions: all2,
		history: `tb < start: alice topic @50
			ta < start: alice topic @50`,
		ends: "ta tb", want: "tb"},
	{name: "times may be negative", versions: all2,
		history: `tb < start: alice topic @-7
			ta < start: alice topic @-3`,
		ends: "ta tb", want: "ta"},
	{name: "who is banned on another branch has no say, however early", versions: all2,
		history: `pl1 < start: alice levels alice=100 bob=50
			ban < pl1: alice ban bob @900
			t1 < pl1: bob topic @1`,
		ends: "ban t1", want: "pl1 ban"},
	{name: "a ban wins over a profile change", versions: all2,
		history: `ban < start: alice ban bob
			new < start: bob rejoin x`,
		ends: "ban new", want: "ban"},
	{name: "a kick wins over a profile change", versions: all2,
		history: `kick < start: alice kick bob
			new < start: bob rejoin x`,
		ends: "kick new", want: "new"}, // the rule is public: bob may be back at once
	{name: "a ban and losing the power to ban: the greater power goes first", versions: all2,
		history: `pl1 < start: alice levels alice=100 bob=50
			ban < pl1: bob ban carol @5
			pl2 < pl1: alice levels alice=100 @9`,
		ends: "ban pl2", want: "pl2 carol"},
	{name: "a ban is undone if its sender has less power since, and any branch lacks it", versions: all2, // a weakness of the algorithm
		history: `pl1 < start: alice levels alice=100 bob=50
			ban < pl1: bob ban carol
			pl2 < ban: alice levels alice=100
			t1 < pl1: alice topic`,
		ends: "pl2 t1", want: "pl2 carol t1"},
	{name: "offspring of a power event comes after it", versions: all2,
		// alice makes bob moderator, bob bans carol; elsewhere carol is kicked and back.
		history: `pl1 < start: alice levels alice=100 bob=50
			ban: bob ban carol
			kick < start: alice kick carol
			back: carol join`,
		ends: "ban back", want: "pl1 ban"},
	{name: "two admins demote each other at once: the earlier one wins", versions: all2,
		history: `pl1 < start: alice levels alice=100 bob=60 carol=60
			pl2 < pl1: bob levels alice=100 bob=10 carol=60 @20
			pl3 < pl1: carol levels alice=100 bob=60 carol=10 @30`,
		ends: "pl2 pl3", want: "pl3"}, // both only demote themselves: the later is last
	{name: "levels that an equal changed cannot be changed back", versions: all2,
		history: `pl1 < start: alice levels alice=100 bob=60 carol=50
			pl2 < pl1: bob levels alice=100 bob=60 carol=0 @20
			pl3 < pl1: carol levels alice=100 bob=60 carol=50 dave=40 @10`,
		ends: "pl2 pl3", want: "pl2"},
	{name: "levels: the greater power goes first, the lesser must still be allowed", versions: all2,
		history: `pl1 < start: alice levels alice=100 bob=50
			pl2 < pl1: alice levels alice=100 bob=0 @99
			pl3 < pl1: bob levels alice=100 bob=50 carol=50 @1`,
		ends: "pl2 pl3", want: "pl2"},
	{name: "a join that evades an invite-only rule", versions: all2,
		history: `jr1 < start: alice rule invite
			dave < start: dave join`,
		ends: "jr1 dave", want: "jr1", gone: "m.room.member @dave:test"},
	{name: "a join is undone if the rule is stricter since, and any branch lacks it", versions: all2, // a weakness of the algorithm
		history: `dave < start: dave join
			jr1: alice rule invite
			t1 < start: alice topic`,
		ends: "jr1 t1", want: "jr1 t1", gone: "m.room.member @dave:test"},
	{name: "who is in already stays in under an invite-only rule", versions: all2,
		history: `jr1 < start: alice rule invite
			new < start: carol rejoin x`,
		ends: "jr1 new", want: "jr1 new"},
	{name: "topics in the order of the mainline, not of time", versions: all2,
		history: `pl1 < start: alice levels alice=100 bob=50
			t1: alice topic @1
			t2 < start: alice topic @99999`,
		ends: "t1 t2", want: "pl1 t1"},
	{name: "of three levels on the mainline the closest counts", versions: all2,
		history: `pl1 < start: alice levels alice=100 bob=50
			pl2: alice levels alice=100 bob=50 carol=50
			t0 < start: alice topic @300
			t1 < pl1: bob topic @200
			t2 < pl2: carol topic @100`,
		ends: "t0 t1 t2", want: "pl2 t2"},
	{name: "levels that are not on the mainline count as the last of it they come from", versions: all2,
		// plx loses against pl1, so what cites it is placed at pl0, before t1.
		history: `pl1 < start: alice levels alice=100 bob=50 @500
			plx < start: alice levels alice=100 carol=50 @400
			tx: alice topic @9000
			t1 < pl1: alice topic @1`,
		ends: "tx t1", want: "pl1 t1"},
	{name: "the topic of someone who got power and lost it again", versions: all2,
		history: `pl1 < start: alice levels alice=100 bob=50
			t1: bob topic
			pl2: alice levels alice=100
			t2 < start: alice topic @1`,
		ends: "pl2 t2", want: "pl2 t2"}, // by pl2, bob's t1 is not allowed any more
	{name: "three branches", versions: all2,
		history: `ban < start: alice ban bob
			n1 < start: carol rejoin x
			t1 < start: alice topic`,
		ends: "ban n1 t1", want: "ban n1 t1"},
	{name: "an event that was rejected does not come back", versions: all2,
		history: `pl1 < start: bob levels alice=0 bob=100 !
			t1 < pl1: alice topic
			t2 < start: alice topic`,
		ends: "t1 t2", want: "t2"},
	{name: "branches that meet and part again", versions: all2,
		history: `pl1 < start: alice levels alice=100 bob=50
			t1 < start: alice topic
			m < pl1 t1: alice message
			ban < m: bob ban carol
			new < m: carol rejoin x`,
		ends: "ban new", want: "pl1 t1 ban"},
}

// In version 1 depth decides, and which IDs have which SHA-1.
func init() {
	v1 := []string{"1"}
	add := func(name, history, ends, want string) {
		scenarios = append(scenarios, scenario{name: "v1: " + name, versions: v1, history: history, ends: ends, want: want})
	}
	add("the deeper topic counts, whatever its time", `t1 < start: alice topic @9999
		m < start: alice message
		t2: alice topic @1`, "t1 t2", "t2")
	add("of two topics as deep the lesser SHA-1 of the ID counts", `t1 < start: alice topic
		t2 < start: alice topic`, "t1 t2", "t1") // 55…, 8b…
	add("the deepest topic that is allowed counts", `pl1 < start: alice levels alice=100 bob=50
		t1 < start: alice topic
		t2 < pl1: bob topic
		m < start: alice message
		m2: alice message
		pl2: alice levels alice=100`, "t1 t2 pl2", "pl2 t1")
	add("if no topic is allowed the least deep counts", `pl1 < start: alice levels alice=100 bob=50
		t1 < pl1: bob topic
		m < pl1: bob message
		t2: bob topic
		m1 < start: alice message
		m2: alice message
		pl2: alice levels alice=100`, "t1 t2 pl2", "pl2 t1")
	add("what only some branches have is in no conflict", `jr1 < start: alice rule invite
		dave < start: dave join`, "jr1 dave", "jr1 dave")
	add("a ban after a profile change", `new < start: bob rejoin x
		m < start: alice message
		ban: alice ban bob`, "new ban", "ban")
	add("a profile change deeper than a ban", `ban < start: alice ban bob
		m < start: alice message
		new: bob rejoin x`, "new ban", "ban")
	add("levels: each must be allowed by the one less deep", `pl1 < start: alice levels alice=100 bob=50
		plx: bob levels alice=100 bob=50 carol=50
		m < start: alice message
		m2: alice message
		pl2: alice levels alice=100 carol=100`, "plx pl2", "pl2")
	add("levels by someone who has no power by the less deep ones", `pl1 < start: alice levels alice=100 bob=100
		m < start: alice message
		pl2: alice levels alice=100 carol=100
		m2 < pl1: bob message
		pl3: bob levels alice=100 bob=100 dave=100`, "pl2 pl3", "pl2")
}

func (r *testRoom) resolve(ends ...string) State {
	r.tb.Helper()
	return r.before(ends)
}

func TestScenarios(t *testing.T) {
	for _, tt := range scenarios {
		for _, version := range tt.versions {
			t.Run(tt.name+"/version "+version, func(t *testing.T) {
				r := newRoom(t, version)
				r.play(prelude)
				want := maps.Clone(r.after["start"])
				r.play(tt.history)
				for name := range strings.FieldsSeq(tt.want) {
					e := r.events[r.eventID(name)]
					if e.PDU == nil {
						t.Fatalf("no event %s", name)
					}
					want[e.Key()] = e.ID
				}
				if typ, key, ok := strings.Cut(tt.gone, " "); ok {
					delete(want, matrix.StateKey{Type: typ, Key: key})
				}
				ends := strings.Fields(tt.ends)
				for range ends {
					ends = append(ends[1:], ends[0])
					if got := r.resolve(ends...); !maps.Equal(got, want) {
						t.Errorf("%v resolve to\n%s\nwant\n%s", ends, show(got), show(want))
					}
				}
			})
		}
	}
}

// States that earlier resolutions, or servers with evil in mind, lead to. Each set is
// the prelude's state and some more.
func TestVersion21(t *testing.T) {
	tests := []struct {
		name    string
		history string
		sets    []string
		v2, v21 string // names of events that are state
		gone    string // the key that has no state in version 2
	}{
		{name: "a member is not judged by a join rule that came later", // from what all agree on
			history: `dave1 < start: dave join @1
				out: dave leave
				dave2: dave join
				jr1: alice rule invite`,
			sets: []string{"jr1 dave1", "jr1 dave2"},
			v2:   "jr1 out", v21: "jr1 dave2"},
		{name: "who joined while the room was public is not thrown out", // state reset from unconflicted state
			history: `dave1 < start: dave join
				dave2 < start: dave join
				jr1 < dave1: alice rule invite`,
			sets: []string{"jr1 dave1", "jr1 dave2"},
			v2:   "jr1", v21: "jr1 dave2", gone: "m.room.member @dave:test"},
		{name: "a topic is not judged by levels that came later",
			history: `pl1 < start: alice levels alice=100 bob=50
				t1: bob topic
				t2 < pl1: bob topic
				pl2 < t1: alice levels alice=100 bob=0`,
			sets: []string{"pl2 t1", "pl2 t2"},
			v2:   "pl2", v21: "pl2 t2", gone: "m.room.topic "},
		{name: "old levels do not come back if all chains have those between", // the conflicted state subgraph
			history: `pl1 < start: alice levels alice=100 bob=50 @900
				pl2: alice levels alice=100 bob=50 carol=50 @800
				t1: alice topic
				pl3: alice levels alice=100 carol=50 @700`,
			sets: []string{"pl1 t1", "pl3 t1"},
			v2:   "pl1 t1", v21: "pl3 t1"},
	}
	for _, tt := range tests {
		for version, names := range map[string]string{"11": tt.v2, "12": tt.v21} {
			t.Run(tt.name+"/version "+version, func(t *testing.T) {
				r := newRoom(t, version)
				r.play(prelude)
				r.play(tt.history)
				with := func(names string) State {
					s := maps.Clone(r.after["start"])
					for name := range strings.FieldsSeq(names) {
						e := r.events[r.eventID(name)]
						s[e.Key()] = e.ID
					}
					return s
				}
				want := with(names)
				if typ, key, ok := strings.Cut(tt.gone, " "); ok && version == "11" {
					delete(want, matrix.StateKey{Type: typ, Key: key})
				}
				var sets []State
				for _, set := range tt.sets {
					sets = append(sets, with(set))
				}
				for range sets {
					sets = append(sets[1:], sets[0])
					got, err := Resolve(r.rules, sets, r.events)
					if err != nil || !maps.Equal(got, want) {
						t.Errorf("%v\n%s\nwant\n%s", err, show(got), show(want))
					}
				}
			})
		}
	}
}

func TestMissingEvents(t *testing.T) {
	for _, version := range []string{"1", "2", "11", "12"} {
		t.Run("version "+version, func(t *testing.T) {
			r := newRoom(t, version)
			r.play(prelude)
			r.play(`t1 < start: alice topic
				t2 < start: alice topic`)
			sets := []State{r.after["t1"], r.after["t2"]}
			t1 := r.events[r.eventID("t1")]
			delete(r.events, t1.ID)
			if _, err := Resolve(r.rules, sets, r.events); !errors.Is(err, ErrUnknown) {
				t.Errorf("a conflicted event is missing: %v", err)
			}
			r.events[t1.ID] = t1
			delete(r.events, r.eventID("pl0"))
			if _, err := Resolve(r.rules, sets, r.events); err != nil {
				t.Errorf("an auth event is missing: %v", err)
			}
			delete(r.events, r.eventID("create"))
			if _, err := Resolve(r.rules, sets, r.events); version == "12" && !errors.Is(err, ErrUnknown) || version != "12" && err != nil {
				t.Errorf("the create event is missing: %v", err)
			}
		})
	}
}

var errStore = errors.New("the store is gone")

// flaky answers so many times, then fails.
type flaky struct {
	Map
	left int
}

func (f *flaky) Load(ids []matrix.EventID) ([]Event, error) {
	if f.left--; f.left < 0 {
		return nil, errStore
	}
	return f.Map.Load(ids)
}

func TestAFailingStoreIsAnErrorAtAnyMoment(t *testing.T) {
	for _, version := range []string{"1", "2", "12"} {
		r := newRoom(t, version)
		r.play(prelude)
		r.play(`pl1 < start: alice levels alice=100 bob=50
			m1: carol rejoin x
			m2: carol rejoin y
			t1: bob topic
			jr1: alice rule invite
			pl2 < start: alice levels alice=100 bob=40
			t2: alice topic`)
		sets := []State{r.after["jr1"], r.after["t2"]}
		failed := 0
		for n := 0; ; n++ {
			_, err := Resolve(r.rules, sets, &flaky{r.events, n})
			if err == nil {
				break
			}
			if !errors.Is(err, errStore) || n > 100 {
				t.Fatalf("version %s: %v", version, err)
			}
			failed++
		}
		if failed < 2 {
			t.Errorf("version %s: failed %d times", version, failed)
		}
	}
}

func TestStateThatIsNotOfItsKey(t *testing.T) {
	r := newRoom(t, "10")
	r.play(prelude)
	a, b := maps.Clone(r.after["start"]), maps.Clone(r.after["start"])
	a[matrix.StateKey{Type: matrix.TypeTopic}] = r.eventID("alice")
	b[matrix.StateKey{Type: matrix.TypeName}] = r.eventID("start") // no state at all
	for _, sets := range [][]State{{r.after["start"], a}, {b, r.after["start"]}} {
		if _, err := Resolve(r.rules, sets, r.events); !errors.Is(err, ErrUnknown) {
			t.Error(err)
		}
	}
}

func TestNoSets(t *testing.T) {
	r := newRoom(t, "12")
	r.play(prelude)
	for _, sets := range [][]State{nil, {}, {nil}, {nil, {}}} {
		if got, err := Resolve(r.rules, sets, r.events); err != nil || got == nil || len(got) != 0 {
			t.Errorf("%v: %v, %v", sets, got, err)
		}
	}
	got, err := Resolve(r.rules, []State{r.after["start"], nil}, r.events)
	if err != nil || !maps.Equal(got, r.after["start"]) {
		t.Errorf("a branch without state: %v\n%s", err, show(got))
	}
}
