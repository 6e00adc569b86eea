package stateres

import (
	"cmp"
	"container/heap"
	"math"
	"slices"

	"github.com/gjallar-im/gjallar/homeserver/eventauth"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

// v2 is the algorithm of room versions 2 to 11, and with the two changes of version
// 2.1 that of 12. Its steps are numbered as in the specification.
//
// Spec: https://spec.matrix.org/v1.19/rooms/v2/#algorithm
func (r *resolver) v2() (State, error) {
	full, err := r.fullConflictedSet()
	if err != nil {
		return nil, err
	}
	p := &partial{resolver: r, set: map[matrix.StateKey]*node{}, common: r.rules.StateRes == roomversion.StateResV2}
	if err := p.prepare(full); err != nil {
		return nil, err
	}
	power, err := r.sortedPowerEvents(full) // 1
	if err != nil {
		return nil, err
	}
	p.apply(power)                                                                              // 2
	rest, err := r.sortedByMainline(full, p.get(matrix.StateKey{Type: matrix.TypePowerLevels})) // 3
	if err != nil {
		return nil, err
	}
	p.apply(rest) // 4
	out := State{}
	for k, n := range p.set { // 5
		if r.Common(k) == "" {
			out[k] = n.ID
		}
	}
	return out, nil
}

// fullConflictedSet is the conflicted state set, the auth difference and, in version
// 2.1, the conflicted state subgraph.
func (r *resolver) fullConflictedSet() (full []*node, err error) {
	parts := [][]*node{r.conflicted(), nil, nil}
	if parts[1], err = r.authDifference(); err != nil {
		return nil, err
	}
	if r.rules.StateRes == roomversion.StateResV21 {
		if parts[2], err = r.subgraph(); err != nil {
			return nil, err
		}
	}
	for _, part := range parts {
		for _, n := range part {
			if !n.full {
				n.full = true
				full = append(full, n)
			}
		}
	}
	return full, r.expand(full...)
}

// isPowerEvent: https://spec.matrix.org/v1.19/rooms/v2/#definitions. As on the
// network, the create event is one.
func (n *node) isPowerEvent() bool {
	switch n.Type {
	case matrix.TypePowerLevels, matrix.TypeJoinRules, matrix.TypeCreate:
		return *n.StateKey == ""
	case matrix.TypeMember:
		m := n.Membership()
		return (m == matrix.Leave || m == matrix.Ban) && string(n.Sender) != *n.StateKey
	}
	return false
}

// sortedPowerEvents is step 1: the power events, and what is below them, of the full
// conflicted set in reverse topological power ordering. Events that are in their own
// auth chain have no place in that order, and no say.
//
// Spec: https://spec.matrix.org/v1.19/rooms/v2/#reverse-topological-power-ordering
func (r *resolver) sortedPowerEvents(full []*node) ([]*node, error) {
	var roots []*node
	for _, n := range full {
		if n.isPowerEvent() {
			roots = append(roots, n)
		}
	}
	// The way leads through members of the full conflicted set only, as on the network.
	list, err := r.below(roots, func(n *node) bool { return !n.full })
	if err != nil {
		return nil, err
	}
	above := map[*node][]*node{}
	for _, n := range list {
		n.level = r.senderLevel(n)
		for _, a := range n.auth {
			if a.full {
				above[a] = append(above[a], n)
				n.waiting++
			}
		}
	}
	var ready powerHeap
	for _, n := range list {
		if n.waiting == 0 {
			ready = append(ready, n)
		}
	}
	heap.Init(&ready)
	out := make([]*node, 0, len(list))
	for len(ready) > 0 {
		n := heap.Pop(&ready).(*node)
		n.power = true
		out = append(out, n)
		for _, up := range above[n] {
			if up.waiting--; up.waiting == 0 {
				heap.Push(&ready, up)
			}
		}
	}
	return out, nil
}

// powerHeap has on top what comes first of events that do not depend on each other.
type powerHeap []*node

func (h powerHeap) Len() int      { return len(h) }
func (h powerHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *powerHeap) Push(n any)   { *h = append(*h, n.(*node)) }

func (h *powerHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

func (h powerHeap) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(h[j].level, h[i].level), byTime(h[i], h[j])) < 0
}

func byTime(a, b *node) int {
	return cmp.Or(cmp.Compare(a.OriginServerTS, b.OriginServerTS), cmp.Compare(a.ID, b.ID))
}

// senderLevel is the power of an event's sender by the event's own auth_events.
func (r *resolver) senderLevel(n *node) eventauth.Level {
	create, levels := r.create, (*pdu.PDU)(nil)
	if c := n.authEvent(matrix.TypeCreate, ""); c != nil {
		create = c.PDU
	}
	if pl := n.authEvent(matrix.TypePowerLevels, ""); pl != nil {
		levels = pl.PDU
	}
	return eventauth.PowerOf(create, levels, n.Sender)
}

// authEvent is what an event names in auth_events for a key, nil if nothing.
func (n *node) authEvent(typ, key string) *node {
	for _, a := range n.auth {
		if a.Is(typ, key) {
			return a
		}
	}
	return nil
}

// partial is the partially resolved state.
type partial struct {
	*resolver
	set    map[matrix.StateKey]*node // what was allowed so far
	common bool                      // it starts as the unconflicted state map, not empty
	judged *node
}

// prepare loads the state that the events may have to be checked against.
func (p *partial) prepare(full []*node) error {
	if p.rules.RoomIDIsCreateHash && len(full) > 0 {
		if err := p.loadCreate(full[0]); err != nil {
			return err
		}
	}
	if !p.common {
		return nil
	}
	ids := []matrix.EventID{}
	add := func(k matrix.StateKey) {
		if id := p.Common(k); id != "" {
			ids = append(ids, id)
		}
	}
	add(matrix.StateKey{Type: matrix.TypePowerLevels})
	for _, n := range full {
		for _, k := range eventauth.Needed(n.PDU) {
			add(k)
		}
	}
	return p.load(ids)
}

// get returns the event at a key.
func (p *partial) get(k matrix.StateKey) *node {
	if n := p.set[k]; n != nil || !p.common {
		return n
	}
	if id := p.Common(k); id != "" {
		return p.nodes[id]
	}
	return nil
}

// Get implements [eventauth.State] for the event that is judged: the partial state,
// and else what the event itself names in auth_events. Rejected events do not count.
func (p *partial) Get(typ, key string) *pdu.PDU {
	if n := p.get(matrix.StateKey{Type: typ, Key: key}); n != nil && !n.Rejected {
		return n.PDU
	}
	for _, n := range p.judged.auth {
		if n.Is(typ, key) && !n.Rejected {
			return n.PDU
		}
	}
	if p.create != nil && typ == matrix.TypeCreate && key == "" {
		return p.create
	}
	return nil
}

// apply is the iterative auth checks: an event that the rules allow becomes state.
//
// Departs from the specification, as the network does: an event that was rejected is
// not let in again, though it might be allowed here.
//
// Spec: https://spec.matrix.org/v1.19/rooms/v2/#iterative-auth-checks
func (p *partial) apply(list []*node) {
	for _, n := range list {
		p.judged = n
		if !n.Rejected && eventauth.Allowed(n.PDU, p) == nil {
			p.set[n.Key()] = n
		}
	}
}

// sortedByMainline is step 3: the events that step 1 left, in mainline ordering by
// the power-levels event of the partial state.
//
// Spec: https://spec.matrix.org/v1.19/rooms/v2/#mainline-ordering
func (r *resolver) sortedByMainline(full []*node, levels *node) ([]*node, error) {
	var rest []*node
	for _, n := range full {
		if !n.power {
			rest = append(rest, n)
		}
	}
	m := &mainline{resolver: r, last: levels, places: map[*node]int{}}
	if levels != nil {
		m.places[levels] = 0
	}
	for _, n := range rest {
		var err error
		if n.place, err = m.place(n); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(rest, func(a, b *node) int { return cmp.Or(cmp.Compare(b.place, a.place), byTime(a, b)) })
	return rest, nil
}

// mainline is a power-levels event, that in its auth_events, and so on.
type mainline struct {
	*resolver
	length int
	last   *node         // the oldest that is known of it, nil once it is whole
	places map[*node]int // of power-levels events, on the mainline or not
}

const nowhere = math.MaxInt

// place of an event: that of the first power-levels event on its own such way that
// is on the mainline.
func (m *mainline) place(n *node) (int, error) {
	var passed []*node
	place := nowhere
	for {
		var err error
		if n, err = m.levelsOf(n); err != nil {
			return 0, err
		}
		if n == nil {
			break
		}
		known, ok := m.places[n]
		if !ok {
			if err := m.complete(); err != nil {
				return 0, err
			}
			known, ok = m.places[n]
		}
		if ok {
			place = known
			break
		}
		m.places[n] = nowhere // should it lead back here
		passed = append(passed, n)
	}
	for _, n := range passed {
		m.places[n] = place
	}
	return place, nil
}

// complete follows the mainline to its end.
func (m *mainline) complete() error {
	for m.last != nil {
		next, err := m.levelsOf(m.last)
		if err != nil {
			return err
		}
		if _, ok := m.places[next]; ok {
			next = nil
		}
		if m.last = next; next != nil {
			m.length++
			m.places[next] = m.length
		}
	}
	return nil
}

// levelsOf is the power-levels event in an event's auth_events.
func (m *mainline) levelsOf(n *node) (*node, error) {
	if err := m.expand(n); err != nil {
		return nil, err
	}
	return n.authEvent(matrix.TypePowerLevels, ""), nil
}
