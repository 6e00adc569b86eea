package stateres

import (
	"bytes"
	"cmp"
	"crypto/sha1"
	"slices"

	"github.com/gjallar-im/gjallar/homeserver/eventauth"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
)

// v1 is the algorithm of room version 1.
//
// Spec: https://spec.matrix.org/v1.19/rooms/v1/#state-resolution
func (r *resolver) v1() (State, error) {
	state, err := r.commonAuth()
	if err != nil {
		return nil, err
	}
	// What each pass decides counts for the next, not for other keys of the same one.
	passes := []struct {
		has    func(matrix.StateKey) bool
		decide func([]*node, eventauth.StateMap) *node
	}{
		{func(k matrix.StateKey) bool { return k == matrix.StateKey{Type: matrix.TypePowerLevels} }, longestAllowed},
		{func(k matrix.StateKey) bool { return k.Type == matrix.TypeJoinRules }, longestAllowed},
		{func(k matrix.StateKey) bool { return k.Type == matrix.TypeMember }, longestAllowed},
		{func(matrix.StateKey) bool { return true }, firstAllowed},
	}
	out, decided := State{}, map[matrix.StateKey]bool{}
	for _, pass := range passes {
		chosen := eventauth.StateMap{}
		for k, list := range r.keys {
			if decided[k] || !pass.has(k) {
				continue
			}
			decided[k] = true
			list = slices.DeleteFunc(list, func(n *node) bool { return n.Rejected })
			if len(list) > 0 {
				chosen[k] = pass.decide(list, state).PDU
			}
		}
		for k, e := range chosen {
			state[k], out[k] = e, e.ID
		}
	}
	return out, nil
}

// commonAuth loads the unconflicted state that the events are checked against.
func (r *resolver) commonAuth() (eventauth.StateMap, error) {
	var ids []matrix.EventID
	for _, n := range r.conflicted() {
		for _, k := range eventauth.Needed(n.PDU) {
			if id := r.Common(k); id != "" {
				ids = append(ids, id)
			}
		}
	}
	if err := r.load(ids); err != nil {
		return nil, err
	}
	state := eventauth.StateMap{}
	for _, id := range ids {
		if n := r.nodes[id]; n != nil && !n.Rejected {
			state[n.Key()] = n.PDU
		}
	}
	return state, nil
}

// deepestFirst is the order of version 1: depth descending, then SHA-1 of the ID
// ascending.
func deepestFirst(a, b *node) int {
	if c := cmp.Compare(b.Depth, a.Depth); c != 0 {
		return c
	}
	x, y := sha1.Sum([]byte(a.ID)), sha1.Sum([]byte(b.ID))
	return bytes.Compare(x[:], y[:])
}

// longestAllowed goes from the least deep event up as long as each is allowed after
// the one before, and returns the last.
func longestAllowed(list []*node, state eventauth.StateMap) *node {
	slices.SortFunc(list, func(a, b *node) int { return deepestFirst(b, a) })
	best := list[0]
	for _, n := range list[1:] {
		if eventauth.Allowed(n.PDU, with{state, best.PDU}) != nil {
			break
		}
		best = n
	}
	return best
}

// firstAllowed returns the deepest event that is allowed; the least deep if none is.
func firstAllowed(list []*node, state eventauth.StateMap) *node {
	slices.SortFunc(list, deepestFirst)
	for _, n := range list {
		if eventauth.Allowed(n.PDU, state) == nil {
			return n
		}
	}
	return list[len(list)-1]
}

// with is a state and one event over it.
type with struct {
	eventauth.State
	event *pdu.PDU
}

// Get implements [eventauth.State].
func (w with) Get(typ, key string) *pdu.PDU {
	if w.event.Is(typ, key) {
		return w.event
	}
	return w.State.Get(typ, key)
}
