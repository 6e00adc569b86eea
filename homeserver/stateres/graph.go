package stateres

import (
	"fmt"
	"slices"

	"github.com/gjallar-im/gjallar/homeserver/eventauth"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

// resolver is one resolution under way.
type resolver struct {
	Conflict
	rules  *roomversion.Rules
	events Events

	nodes  map[matrix.EventID]*node    // asked for; nil if not known
	keys   map[matrix.StateKey][]*node // the events in conflict, by key
	create *pdu.PDU                    // where the room ID is its hash
	walks  int                         // marks given out
}

// node is an event in the graph of auth_events.
type node struct {
	Event
	auth     []*node // what it names in auth_events and is known, once expanded
	expanded bool

	mark   int  // of the last walk that came by
	chains int  // in how many sets' auth chains it is
	full   bool // in the full conflicted set
	power  bool // sorted as a power event

	level   eventauth.Level // of the sender
	waiting int             // auth events that are not sorted yet
	place   int             // in the mainline
}

// load fetches events that were not asked for yet.
func (r *resolver) load(ids []matrix.EventID) error {
	var missing []matrix.EventID
	for _, id := range ids {
		if _, ok := r.nodes[id]; !ok {
			r.nodes[id] = nil
			missing = append(missing, id)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	found, err := r.events.Load(missing)
	if err != nil {
		return err
	}
	block := make([]node, len(found))
	for i, e := range found {
		if have, asked := r.nodes[e.ID]; asked && have == nil {
			block[i].Event = e
			r.nodes[e.ID] = &block[i]
		}
	}
	return nil
}

// expand loads what events name in auth_events. Those that are not known are left
// out: nothing can be decided by them.
func (r *resolver) expand(list ...*node) error {
	var ids []matrix.EventID
	for _, n := range list {
		if !n.expanded {
			ids = append(ids, r.authIDs(n)...)
		}
	}
	if err := r.load(ids); err != nil {
		return err
	}
	for _, n := range list {
		if n.expanded {
			continue
		}
		n.expanded = true
		for _, id := range r.authIDs(n) {
			if a := r.nodes[id]; a != nil && a.IsState() {
				n.auth = append(n.auth, a)
			}
		}
	}
	return nil
}

// authIDs are an event's auth_events, with the create event where the room ID
// implies it.
func (r *resolver) authIDs(n *node) []matrix.EventID {
	if !r.rules.RoomIDIsCreateHash || n.RoomID == "" || n.Is(matrix.TypeCreate, "") {
		return n.AuthEvents
	}
	return append(n.AuthEvents[:len(n.AuthEvents):len(n.AuthEvents)], pdu.CreateOf(n.RoomID))
}

// below returns events and what is in their auth chains, except what is only found
// beyond those that stop is true for. Those are not returned.
func (r *resolver) below(roots []*node, stop func(*node) bool) ([]*node, error) {
	r.walks++
	var all []*node
	for layer := roots; len(layer) > 0; {
		start := len(all)
		for _, n := range layer {
			if n.mark != r.walks {
				n.mark = r.walks
				if !stop(n) {
					all = append(all, n)
				}
			}
		}
		if err := r.expand(all[start:]...); err != nil {
			return nil, err
		}
		layer = nil
		for _, n := range all[start:] {
			for _, a := range n.auth {
				if a.mark != r.walks {
					layer = append(layer, a)
				}
			}
		}
	}
	return all, nil
}

// isCommon reports whether an event is in the unconflicted state map.
func (r *resolver) isCommon(n *node) bool { return r.Common(n.Key()) == n.ID }

// conflicted are the events of the conflicted state set.
func (r *resolver) conflicted() (all []*node) {
	for _, list := range r.keys {
		all = append(all, list...)
	}
	return all
}

// authDifference returns events that are in the full auth chain of some set but not
// of all. As on the network, the events of a set count as in its chain.
//
// The chains of unconflicted events are in every set's, so the walk goes no further
// than those. Spec: https://spec.matrix.org/v1.19/rooms/v2/#definitions
func (r *resolver) authDifference() ([]*node, error) {
	reached := map[*node]bool{}
	for _, set := range r.Sets {
		roots := make([]*node, 0, len(set))
		for _, id := range set {
			roots = append(roots, r.nodes[id])
		}
		chain, err := r.below(roots, r.isCommon)
		if err != nil {
			return nil, err
		}
		for _, n := range chain {
			n.chains++
			reached[n] = true
		}
	}
	var candidates []*node
	for n := range reached {
		if n.chains < len(r.Sets) && !r.inConflict(n) {
			candidates = append(candidates, n)
		}
	}
	return r.lessCommonChains(candidates)
}

func (r *resolver) inConflict(n *node) bool {
	return slices.Contains(r.keys[n.Key()], n)
}

// lessCommonChains leaves out those that are in the auth chain of an unconflicted
// event.
func (r *resolver) lessCommonChains(candidates []*node) ([]*node, error) {
	if len(candidates) == 0 {
		return nil, nil
	}
	open := make(map[matrix.EventID]*node, len(candidates))
	ids := make([]matrix.EventID, 0, len(candidates))
	for _, n := range candidates {
		open[n.ID] = n
		ids = append(ids, n.ID)
	}
	if index, ok := r.events.(Index); ok {
		in, err := index.InChains(ids, r.All)
		if err != nil {
			return nil, err
		}
		for _, id := range in {
			delete(open, id)
		}
	} else if err := r.walkCommon(open); err != nil {
		return nil, err
	}
	out := candidates[:0]
	for _, n := range candidates {
		if open[n.ID] != nil {
			out = append(out, n)
		}
	}
	return out, nil
}

// walkCommon deletes from open what it finds in the auth chains of unconflicted
// events. It keeps no nodes, as these chains are those of the whole room.
func (r *resolver) walkCommon(open map[matrix.EventID]*node) error {
	var layer []matrix.EventID
	for id := range r.All {
		layer = append(layer, id)
	}
	seen := make(map[matrix.EventID]struct{}, len(layer))
	for _, id := range layer {
		seen[id] = struct{}{}
	}
	for len(layer) > 0 && len(open) > 0 {
		events, err := r.events.Load(layer)
		if err != nil {
			return err
		}
		layer = nil
		for i := range events {
			for _, id := range events[i].AuthEvents {
				if _, ok := seen[id]; !ok {
					seen[id] = struct{}{}
					layer = append(layer, id)
					delete(open, id)
				}
			}
		}
	}
	return nil
}

// subgraph returns the conflicted state subgraph: the events on a way from one event
// in conflict to another along auth_events, both ends included.
//
// Spec: https://spec.matrix.org/v1.19/rooms/v12/#state-resolution
func (r *resolver) subgraph() ([]*node, error) {
	ends := r.conflicted()
	under, err := r.below(ends, func(*node) bool { return false })
	if err != nil {
		return nil, err
	}
	// Of what is below a conflicted event, that which is above one too.
	above := map[*node][]*node{}
	for _, n := range under {
		for _, a := range n.auth {
			above[a] = append(above[a], n)
		}
	}
	r.walks++
	var out []*node
	for stack := ends; len(stack) > 0; {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if n.mark == r.walks {
			continue
		}
		n.mark = r.walks
		out = append(out, n)
		stack = append(stack, above[n]...)
	}
	return out, nil
}

// loadCreate finds the create event that the room ID names.
func (r *resolver) loadCreate(n *node) error {
	if n.Is(matrix.TypeCreate, "") {
		r.create = n.PDU
		return nil
	}
	if n.RoomID == "" {
		return fmt.Errorf("%w: %s is of no room", ErrUnknown, n.ID)
	}
	id := pdu.CreateOf(n.RoomID)
	if err := r.load([]matrix.EventID{id}); err != nil {
		return err
	}
	create := r.nodes[id]
	if create == nil || create.Rejected {
		return fmt.Errorf("%w: %s, which the room ID names", ErrUnknown, id)
	}
	r.create = create.PDU
	return nil
}
