package stateres

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// A state reset: levels that are none of the branches', but older, or none at all.
// (Those of one branch may be older than another's, whose sender has been banned.)
//
// Version 2 is known for them, so it shows that the test would find some; version 2.1
// was made to have none. https://spec.matrix.org/v1.19/rooms/v12/#state-resolution
func TestPowerDoesNotReturnToAnOlderValue(t *testing.T) {
	key := matrix.StateKey{Type: matrix.TypePowerLevels}
	isReset := func(r *testRoom, sets []State) bool {
		state, err := Resolve(r.rules, sets, r.events)
		if err != nil {
			t.Fatal(err)
		}
		got := state[key]
		if got == "" || slices.ContainsFunc(sets, func(s State) bool { return s[key] == got }) {
			return got == ""
		}
		l := literal{r.rules, r.events}
		return slices.ContainsFunc(sets, func(s State) bool { return s[key] != "" && l.chain(s[key])[got] })
	}
	for version, known := range map[string]bool{"10": true, "12": false} {
		random := rand.NewChaCha8([32]byte{3})
		conflicts, resets := 0, 0
		for range 200 {
			data := make([]byte, 700)
			random.Read(data)
			c := &choices{data[:100]}
			r, names := randomRoom(t, version, &choices{data[100:]}, 60)
			pick := func() State { return maps.Clone(r.after[names[len(names)-1-c.of(min(len(names), 12))]]) }
			sets := []State{pick(), pick()}
			if sets[0][key] == sets[1][key] {
				continue
			}
			conflicts++
			if isReset(r, sets) {
				resets++
			}
		}
		if conflicts < 40 || resets > 0 != known {
			t.Errorf("version %s: %d resets in %d conflicts", version, resets, conflicts)
		}
		t.Logf("version %s: %d resets in %d conflicts", version, resets, conflicts)
	}
}
