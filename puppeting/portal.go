package puppeting

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// portal is a chat of a network, and the room that stands for it if there is one.
// It has a goroutine for each direction while there is something to do.
type portal struct {
	b   *Bridge
	net *network
	key portalKey
	log *slog.Logger

	in      inbox
	out     outbox
	mapping mapCache

	mu       sync.Mutex
	room     *room                  // nil: the chat has no room; guarded by mu
	kind     portalKind             // guarded by mu
	agent    matrix.UserID          // who reads the room for us; guarded by mu
	last     backends.Mark          // the newest remote message; guarded by mu
	joined   bool                   // the network was asked to follow the chat since it is ready; guarded by mu
	sending  pending                // events from the network that are on their way to the homeserver
	typing   map[matrix.UserID]bool // who was typing last; guarded by mu
	warned   map[string]bool        // notices given once; guarded by mu
	creating chan struct{}          // held by who makes the room of a private chat
}

func newPortal(b *Bridge, k portalKey) *portal {
	p := &portal{
		b: b, net: b.networks[k.network], key: k, warned: map[string]bool{}, creating: make(chan struct{}, 1),
		log: b.log.With("network", k.network, "chat", string(k.chat)),
	}
	p.in.init()
	p.out.init()
	p.mapping.init()
	return p
}

func (p *portal) setRoom(rm *room, r portalRow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.room, p.kind, p.agent = rm, r.kind, r.agent
	if r.last.ID != "" {
		p.last = r.last
	}
}

// bound returns the room, nil if there is none.
func (p *portal) bound() *room {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.room
}

func (p *portal) agentID() matrix.UserID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.agent
}

func (p *portal) isKind(k portalKind) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kind == k
}

// isGateway reports whether the room is shown to users of the network, and not a
// chat of the network to users of ours.
func (p *portal) isGateway() bool { return p.isKind(gatewayPortal) }

// standsForChat reports whether the bridge acts in the room for a chat of the network.
// It does not for users of a gateway, nor once the portal has lost its room.
func (p *portal) standsForChat() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kind != "" && p.kind != gatewayPortal
}

// intent is who reads the room, and speaks in the bridge's own name; the bot if the
// portal has no room any more.
func (p *portal) intent() *appservice.Intent {
	if agent := p.agentID(); agent != "" {
		return p.b.client.As(agent)
	}
	return p.b.client.Bot()
}

// once reports whether it is called for the first time with this subject.
func (p *portal) once(subject string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !p.warned[subject]
	p.warned[subject] = true
	return first
}

// joinTimeout bounds Network.Join.
const joinTimeout = time.Minute

// join has the network follow the chat. Commands go out after that, even if it was
// refused: they are then refused too, and their senders told.
func (p *portal) join(ctx context.Context) error {
	if p.isGateway() {
		p.setJoined(true)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	nw, err := p.net.get()
	if err != nil {
		return err
	}
	info, err := nw.Join(ctx, backends.JoinRequest{Chat: p.key.chatKey(), Resume: p.resume()})
	if _, refused := errors.AsType[*backends.Refusal](err); err == nil || refused {
		p.setJoined(true)
	}
	if err != nil {
		return err
	}
	if info != nil && p.isKind(chatPortal) {
		p.in.put(p, inItem{ev: &backends.Event{Chat: p.key.chatKey(), Body: info}})
	}
	return nil
}

func (p *portal) setJoined(v bool) {
	p.mu.Lock()
	p.joined = v
	p.mu.Unlock()
	if v {
		p.kick()
	}
}

// ready reports whether commands may be sent.
func (p *portal) ready() bool {
	p.mu.Lock()
	joined := p.joined
	p.mu.Unlock()
	return joined && p.net.isReady()
}

func (p *portal) resume() *backends.Mark {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last.ID == "" {
		return nil
	}
	m := p.last
	return &m
}

// advance notes a message and returns the newest.
func (p *portal) advance(m backends.Mark) backends.Mark {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !m.Time.Before(p.last.Time) {
		p.last = m
	}
	return p.last
}

// mapCache holds the newest rows of the message map of a portal, also those that are
// not committed yet.
type mapCache struct {
	byID    cache[backends.MessageID, *mapping] // the first part
	byEvent cache[matrix.EventID, *mapping]
}

const cachedMappings = 512

func (c *mapCache) init() {
	c.byID = newCache[backends.MessageID, *mapping](cachedMappings)
	c.byEvent = newCache[matrix.EventID, *mapping](cachedMappings)
}

func (c *mapCache) put(m *mapping) {
	if known, ok := c.byID.get(m.id); !ok || known.part > m.part {
		c.byID.put(m.id, m)
	}
	if known, ok := c.byEvent.get(m.event); !ok || known.part > m.part {
		c.byEvent.put(m.event, m)
	}
}

// byID returns what a remote message became, nil if it is not known.
func (p *portal) byID(ctx context.Context, id backends.MessageID) (*mapping, error) {
	if m, ok := p.mapping.byID.get(id); ok || id == "" {
		return m, nil
	}
	list, err := queryMessages(ctx, p.b.db, `WHERE network = $1 AND chat = $2 AND account = $3 AND message_id = $4 ORDER BY part LIMIT 1`,
		p.key.network, string(p.key.chat), string(p.key.account), string(id))
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return p.eventNamed(ctx, id), nil
	}
	p.mapping.put(list[0])
	return list[0], nil
}

// eventNamed is the event of the room that a gateway names by its own ID, as it does
// with what was said before it was there; nil if there is none.
func (p *portal) eventNamed(ctx context.Context, id backends.MessageID) *mapping {
	rm := p.bound()
	if !p.isGateway() || rm == nil || len(id) == 0 || id[0] != '$' {
		return nil
	}
	ev, err := rm.event(ctx, matrix.EventID(id))
	if err != nil {
		return nil
	}
	return p.unnamed(ev)
}

// unnamed is the mapping of an event that a gateway has no name of its own for.
func (p *portal) unnamed(ev *appservice.Event) *mapping {
	return &mapping{portalKey: p.key, id: backends.MessageID(ev.ID), event: ev.ID, kind: messageMapping, sender: ev.Sender, ts: ev.OriginServerTS}
}

// original is byID, following edits to the message they are of.
func (p *portal) original(ctx context.Context, id backends.MessageID) (*mapping, error) {
	for range 8 {
		m, err := p.byID(ctx, id)
		if err != nil || m == nil || m.kind != editMapping {
			return m, err
		}
		id = m.target
	}
	return nil, nil
}

// byEvent returns what a Matrix event is called on the network, nil if it has no name.
func (p *portal) byEvent(ctx context.Context, id matrix.EventID) (*mapping, error) {
	if m, ok := p.mapping.byEvent.get(id); ok || id == "" {
		return m, nil
	}
	list, err := queryMessages(ctx, p.b.db, `WHERE event_id = $1 AND network = $2 AND chat = $3 AND account = $4 ORDER BY part LIMIT 1`,
		string(id), p.key.network, string(p.key.chat), string(p.key.account))
	if err != nil || len(list) == 0 {
		return nil, err
	}
	p.mapping.put(list[0])
	return list[0], nil
}

// nameOf is byEvent, but that a gateway knows events without a name by their ID.
func (p *portal) nameOf(ctx context.Context, id matrix.EventID) (*mapping, error) {
	m, err := p.byEvent(ctx, id)
	if m == nil && err == nil && id != "" && p.isGateway() {
		m = p.eventNamed(ctx, backends.MessageID(id))
	}
	return m, err
}

// parts returns all events that a remote message became.
func (p *portal) parts(ctx context.Context, id backends.MessageID) ([]*mapping, error) {
	list, err := queryMessages(ctx, p.b.db, `WHERE network = $1 AND chat = $2 AND account = $3 AND message_id = $4 ORDER BY part`,
		p.key.network, string(p.key.chat), string(p.key.account), string(id))
	if len(list) == 0 && err == nil {
		if m := p.eventNamed(ctx, id); m != nil {
			list = append(list, m)
		}
	}
	return list, err
}

// pending counts, per user, events that are on their way to the homeserver and have
// no row in the message map yet.
type pending struct {
	mu    sync.Mutex
	users map[matrix.UserID]int // guarded by mu
	done  chan struct{}         // closed and replaced at each end; guarded by mu
}

func (s *pending) begin(u matrix.UserID) (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == nil {
		s.users, s.done = map[matrix.UserID]int{}, make(chan struct{})
	}
	s.users[u]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.users[u]--; s.users[u] == 0 {
			delete(s.users, u)
		}
		close(s.done)
		s.done = make(chan struct{})
	}
}

// wait returns a channel that is closed when the next event of anybody has arrived;
// nil if none of the user's is on its way.
func (s *pending) wait(u matrix.UserID) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users[u] == 0 {
		return nil
	}
	return s.done
}
