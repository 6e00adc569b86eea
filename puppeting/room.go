package puppeting

import (
	"context"
	"encoding/json"
	"slices"
	"sync"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// room is a Matrix room with portals: what all of them need to know of it.
type room struct {
	b  *Bridge
	id matrix.RoomID

	mu      sync.Mutex
	portals []*portal                            // guarded by mu
	members map[matrix.UserID]appservice.Profile // who is joined; nil: not read yet; guarded by mu
	recent  cache[matrix.EventID, *appservice.Event]
	joining chan struct{} // held by who reads the members
}

// recentEvents is how many events of a room are kept for quoting.
const recentEvents = 256

func newRoom(b *Bridge, id matrix.RoomID) *room {
	return &room{b: b, id: id, recent: newCache[matrix.EventID, *appservice.Event](recentEvents), joining: make(chan struct{}, 1)}
}

func (r *room) add(p *portal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.portals = append(r.portals, p)
}

// remove takes a portal out and says how many are left.
func (r *room) remove(p *portal) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.portals = slices.DeleteFunc(r.portals, func(q *portal) bool { return p == q })
	return len(r.portals)
}

func (r *room) list() []*portal {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.portals)
}

// agent is who reads the room for us: the bot, if a portal says that it is in.
func (r *room) agent() *appservice.Intent {
	bot := r.b.client.Bot()
	other := bot
	for _, p := range r.list() {
		switch agent := p.agentID(); agent {
		case bot.UserID():
			return bot
		case "":
		default:
			other = r.b.client.As(agent)
		}
	}
	return other
}

// observe notes what an event that came says of the room.
func (r *room) observe(ev *appservice.Event) {
	if ev.ID != "" {
		r.recent.put(ev.ID, ev)
	}
	if ev.Type != matrix.TypeMember || ev.StateKey == nil {
		return
	}
	var m memberContent
	if json.Unmarshal(ev.Content, &m) != nil {
		return
	}
	r.setMember(matrix.UserID(*ev.StateKey), m.Membership == matrix.Join, appservice.Profile{DisplayName: m.DisplayName, AvatarURL: m.AvatarURL})
}

func (r *room) setMember(u matrix.UserID, joined bool, p appservice.Profile) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.members == nil:
	case joined:
		r.members[u] = p
	default:
		delete(r.members, u)
	}
}

// loadMembers reads who is in the room unless that is known.
func (r *room) loadMembers(ctx context.Context) error {
	if r.loaded() {
		return nil
	}
	select {
	case r.joining <- struct{}{}:
		defer func() { <-r.joining }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if r.loaded() {
		return nil
	}
	members, err := r.agent().JoinedMembers(ctx, r.id)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members = members
	return nil
}

func (r *room) loaded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.members != nil
}

// member returns a member's profile.
func (r *room) member(ctx context.Context, u matrix.UserID) (p appservice.Profile, joined bool) {
	if err := r.loadMembers(ctx); err != nil {
		return p, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p, joined = r.members[u]
	return p, joined
}

// memberIDs returns who is joined, in no order.
func (r *room) memberIDs(ctx context.Context) ([]matrix.UserID, error) {
	if err := r.loadMembers(ctx); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]matrix.UserID, 0, len(r.members))
	for u := range r.members {
		out = append(out, u)
	}
	return out, nil
}

// event returns an event of this room, and of no other.
func (r *room) event(ctx context.Context, id matrix.EventID) (*appservice.Event, error) {
	if ev, ok := r.recent.get(id); ok {
		return ev, nil
	}
	ev, err := r.agent().Event(ctx, r.id, id)
	if err != nil {
		return nil, err
	}
	r.recent.put(id, ev)
	return ev, nil
}

// cache keeps the last so many pairs that were put. Its methods may be called from
// any goroutine.
type cache[K comparable, V any] struct {
	mu    *sync.Mutex
	pairs map[K]V // guarded by mu
	order []K     // a ring; guarded by mu
	next  int     // guarded by mu
}

func newCache[K comparable, V any](size int) cache[K, V] {
	return cache[K, V]{mu: new(sync.Mutex), pairs: map[K]V{}, order: make([]K, 0, size)}
}

func (c *cache[K, V]) get(k K) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.pairs[k]
	return v, ok
}

func (c *cache[K, V]) put(k K, v V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.pairs[k]; ok {
		c.pairs[k] = v
		return
	}
	c.pairs[k] = v
	if len(c.order) < cap(c.order) {
		c.order = append(c.order, k)
		return
	}
	delete(c.pairs, c.order[c.next])
	c.order[c.next] = k
	c.next = (c.next + 1) % len(c.order)
}
