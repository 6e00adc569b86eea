// Package stateres works out the state of a room where branches of its history
// meet: state resolution, versions 1, 2 and 2.1.
//
// It is pure but for the events that it asks an [Events] for: it takes no locks and
// does not log. The result depends on nothing but the events, so all servers that
// have them agree; the order of the sets, of maps and of what Load returns does not
// matter. An event that was rejected never gets into the result by resolution.
//
// "Step 2" in a comment is that number in the list at
// https://spec.matrix.org/v1.19/rooms/v2/#state-resolution.
package stateres

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/gjallar-im/gjallar/homeserver/eventauth"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

// State of a room: the event at each key.
type State map[matrix.StateKey]matrix.EventID

// Event is an event and whether it was rejected. That it was soft-failed does not
// count.
type Event = eventauth.AuthEvent

// Events finds events of the room.
type Events interface {
	// Load returns those of the events that are known, in any order. Resolution asks
	// for as many at a time as it can.
	Load(ids []matrix.EventID) ([]Event, error)
}

// Index is what an Events may be too, if it can tell without a walk what is in auth
// chains.
type Index interface {
	// InChains returns those of the candidates that are in the auth chain of some
	// event of the state.
	InChains(candidates []matrix.EventID, state iter.Seq[matrix.EventID]) ([]matrix.EventID, error)
}

// Map is an Events of what is in it.
type Map map[matrix.EventID]Event

// Load implements Events.
func (m Map) Load(ids []matrix.EventID) ([]Event, error) {
	out := make([]Event, 0, len(ids))
	for _, id := range ids {
		if e, ok := m[id]; ok {
			out = append(out, e)
		}
	}
	return out, nil
}

// ErrUnknown is wrapped if an event cannot be found, or is not the state of the key
// it is said to be, that the sets conflict about; or the create event of a room
// whose ID is that event's hash.
var ErrUnknown = errors.New("unknown state event")

// Resolve returns the state that sets, the states of some branches, make together.
// The sets are not changed, and the result is a new map.
//
// The error wraps [ErrUnknown], or is that of events.
func Resolve(rules *roomversion.Rules, sets []State, events Events) (State, error) {
	out, conflicted := separate(rules, sets)
	if len(conflicted) == 0 {
		return out, nil
	}
	c := Conflict{Sets: conflicted, All: maps.Values(out), Common: func(k matrix.StateKey) matrix.EventID { return out[k] }}
	resolved, err := c.Resolve(rules, events)
	if err != nil {
		return nil, err
	}
	maps.Copy(out, resolved)
	return out, nil
}

// Conflict is what branches disagree about. Whoever stores states as changes of
// others can tell it without reading them whole.
type Conflict struct {
	// Sets has, for each branch, what it has at the keys that are in conflict: those
	// that not all branches have, or not the same at. In state resolution version 1 a
	// key that some branches lack is in no conflict for that.
	Sets []State
	// Common returns the event at a key that is in no conflict, "" if there is none
	// or the key is in conflict.
	Common func(matrix.StateKey) matrix.EventID
	// All are the events at the keys that are in no conflict. It is read only if the
	// sets' auth chains differ in an event that is not itself in the state.
	All iter.Seq[matrix.EventID]
}

// Resolve returns the state at the keys that are in conflict. A key is missing if no
// event there is allowed. The error is that of [Resolve].
func (c Conflict) Resolve(rules *roomversion.Rules, events Events) (State, error) {
	r := &resolver{Conflict: c, rules: rules, events: events, nodes: map[matrix.EventID]*node{}}
	if err := r.start(); err != nil {
		return nil, fmt.Errorf("resolve state: %w", err)
	}
	algorithm := algorithms[rules.StateRes]
	if algorithm == nil {
		return nil, fmt.Errorf("resolve state: no algorithm for room version %q", rules.Version)
	}
	out, err := algorithm(r)
	if err != nil {
		return nil, fmt.Errorf("resolve state: %w", err)
	}
	return out, nil
}

var algorithms = map[roomversion.StateRes]func(*resolver) (State, error){
	roomversion.StateResV1:  (*resolver).v1,
	roomversion.StateResV2:  (*resolver).v2,
	roomversion.StateResV21: (*resolver).v2,
}

// separate returns the unconflicted state map, and what each set has at the keys
// that are in conflict; none if no key is.
func separate(rules *roomversion.Rules, sets []State) (common State, conflicted []State) {
	if len(sets) == 0 {
		return State{}, nil
	}
	keys := map[matrix.StateKey]bool{}
	partly := rules.StateRes != roomversion.StateResV1 // a key that a set lacks is in conflict
	common = maps.Clone(sets[0])
	if common == nil {
		common = State{}
	}
	for _, set := range sets[1:] {
		found := 0
		for k, id := range common {
			other, ok := set[k]
			if ok {
				found++
			}
			if other != id && (ok || partly) {
				keys[k] = true
			}
		}
		if found == len(set) {
			continue
		}
		for k, id := range set {
			if _, ok := common[k]; ok {
				continue
			}
			common[k] = id
			if partly {
				keys[k] = true
			}
		}
	}
	if len(keys) == 0 {
		return common, nil
	}
	for _, set := range sets {
		part := State{}
		for k := range keys {
			if id, ok := set[k]; ok {
				part[k] = id
			}
		}
		conflicted = append(conflicted, part)
	}
	for k := range keys {
		delete(common, k)
	}
	return common, conflicted
}

// start loads the events that are in conflict.
func (r *resolver) start() error {
	r.keys = map[matrix.StateKey][]*node{}
	var ids []matrix.EventID
	for _, set := range r.Sets {
		for _, id := range set {
			ids = append(ids, id)
		}
	}
	if err := r.load(ids); err != nil {
		return err
	}
	for _, set := range r.Sets {
		for k, id := range set {
			n := r.nodes[id]
			if n == nil || !n.Is(k.Type, k.Key) {
				return fmt.Errorf("%w: %s, at %s %q", ErrUnknown, id, k.Type, k.Key)
			}
			if !slices.Contains(r.keys[k], n) {
				r.keys[k] = append(r.keys[k], n)
			}
		}
	}
	return nil
}
