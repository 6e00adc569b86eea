package puppeting

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/gjallar-im/gjallar/backends"
)

// network is one network of the bridge, and its backend's Host.
type network struct {
	b       *Bridge
	name    string
	title   string
	opts    NetworkOptions
	log     *slog.Logger
	info    backends.Info
	gateway *gateway      // nil unless it is one
	slots   chan struct{} // held by events that are not acknowledged

	mu       sync.Mutex
	changed  chan struct{}                                 // closed and replaced when nw or phase changes; guarded by mu
	nw       backends.Network                              // nil while it is not open; guarded by mu
	phase    backends.NetworkPhase                         // guarded by mu
	reason   string                                        // of the phase; guarded by mu
	caps     backends.Capabilities                         // guarded by mu
	accounts map[backends.AccountID]*backends.AccountState // guarded by mu
}

// maxUnacknowledged is how many events a network may have under way.
const maxUnacknowledged = 1024

func newNetwork(b *Bridge, o NetworkOptions) *network {
	n := &network{
		b: b, name: o.Name, title: o.Title, opts: o, log: b.log.With("network", o.Name), info: o.Backend.Describe(),
		slots: make(chan struct{}, maxUnacknowledged), changed: make(chan struct{}), phase: backends.Connecting, accounts: map[backends.AccountID]*backends.AccountState{},
	}
	if n.title == "" {
		n.title = o.Name
	}
	n.caps = n.info.Capabilities
	if n.caps.Gateway {
		n.gateway = newGateway(n)
	}
	return n
}

func (n *network) open(ctx context.Context) error {
	nw, err := n.opts.Backend.Open(ctx, n.opts.Config, n)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.nw = nw
	n.changeLocked()
	ready := n.phase == backends.Ready
	n.mu.Unlock()
	if ready { // it was faster than Open
		n.b.crew.Go(n.joinAll)
	}
	return nil
}

func (n *network) close(ctx context.Context) {
	n.mu.Lock()
	nw := n.nw
	n.nw = nil
	n.phase = backends.Disconnected
	n.mu.Unlock()
	if nw == nil {
		return
	}
	if err := nw.Close(ctx); err != nil {
		n.log.Warn("the network did not close cleanly", "err", err)
	}
}

var errNotOpen = errors.New("the network is not open")

func (n *network) get() (backends.Network, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nw == nil {
		return nil, errNotOpen
	}
	return n.nw, nil
}

// readyTimeout is how long people wait for a network that is about to be ready.
const readyTimeout = 10 * time.Second

// await is get for what people ask for: just after the start, the network may still
// be on its way.
func (n *network) await(ctx context.Context) (backends.Network, error) {
	timeout := time.NewTimer(readyTimeout)
	defer timeout.Stop()
	for {
		n.mu.Lock()
		ready, nw, changed := n.phase == backends.Ready && n.nw != nil, n.nw, n.changed
		n.mu.Unlock()
		if ready {
			return nw, nil
		}
		select {
		case <-changed:
			continue
		case <-timeout.C:
		case <-ctx.Done():
		}
		return n.get()
	}
}

// changeLocked wakes who waits for another state.
func (n *network) changeLocked() {
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *network) isReady() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.phase == backends.Ready && n.nw != nil
}

func (n *network) capabilities() backends.Capabilities {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.caps
}

func (n *network) state() (backends.NetworkPhase, string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.phase, n.reason
}

// Deliver implements backends.Sink.
func (n *network) Deliver(ctx context.Context, ev *backends.Event, done func(backends.Receipt)) error {
	switch body := ev.Body.(type) {
	case nil:
		return errors.New("deliver: an event without a body")
	case *backends.NetworkState:
		n.setState(body)
		acknowledge(done, backends.Receipt{})
		return nil
	case *backends.AccountState:
		n.b.crew.Go(func(ctx context.Context) { n.accountState(ctx, body) })
		acknowledge(done, backends.Receipt{})
		return nil
	}
	select {
	case n.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	if ev.Time.IsZero() { // it tells from when on something is missing if the network goes away
		now := *ev
		now.Time = time.Now()
		ev = &now
	}
	n.b.deliver(portalKey{n.name, ev.Chat.Chat, ev.Chat.Account}, inItem{ev, func(r backends.Receipt) {
		<-n.slots
		acknowledge(done, r)
	}})
	return nil
}

// deliver gives an event to the portal of its chat, which is not released meanwhile.
func (b *Bridge) deliver(k portalKey, it inItem) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.portalLocked(k)
	p.in.put(p, it)
}

func acknowledge(done func(backends.Receipt), r backends.Receipt) {
	if done != nil {
		done(r)
	}
}

// phase is for the log.
func phase(p backends.NetworkPhase, reason string) []any {
	if reason == "" {
		return []any{"phase", p}
	}
	return []any{"phase", p, "reason", reason}
}

func (n *network) setState(s *backends.NetworkState) {
	n.mu.Lock()
	n.phase, n.reason = s.Phase, s.Reason
	n.changeLocked()
	if s.Capabilities != nil {
		gateway := n.caps.Gateway // what it was opened as
		n.caps = *s.Capabilities
		n.caps.Gateway = gateway
	}
	open := n.nw != nil
	n.mu.Unlock()
	level := slog.LevelInfo
	switch s.Phase {
	case backends.Connecting:
		level = slog.LevelDebug // what comes of it follows
	case backends.Failed:
		level = slog.LevelError
	}
	n.log.Log(context.Background(), level, "network changed", phase(s.Phase, s.Reason)...)
	switch {
	case s.Phase == backends.Ready && open:
		n.b.crew.Go(n.joinAll)
	case s.Phase != backends.Ready:
		for _, p := range n.b.portalsOf(n) {
			p.setJoined(false)
		}
	}
}

// joinAtOnce is how many chats are joined at a time.
const joinAtOnce = 8

// joinAll has the network follow every chat that has a room.
func (n *network) joinAll(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	turns := make(chan struct{}, joinAtOnce)
	for _, p := range n.b.portalsOf(n) {
		select {
		case turns <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			err := p.join(ctx)
			<-turns
			if err != nil {
				n.b.crew.Go(func(ctx context.Context) { n.rejoin(ctx, p) })
			}
		})
	}
}

// rejoin has the network follow a chat, again and again while it neither does nor
// refuses, as long as it is ready: when it is again, all is joined anew.
func (n *network) rejoin(ctx context.Context, p *portal) {
	for delay := firstRejoin; ; delay = min(2*delay, lastRejoin) {
		err := p.join(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		p.log.Warn("the chat cannot be joined", "err", err)
		if r, ok := errors.AsType[*backends.Refusal](err); ok && r.Code != backends.RefusedUnavailable {
			n.tellRefused(ctx, p, r)
			return
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return
		}
		if !n.isReady() || p.bound() == nil {
			return
		}
	}
}

// Bounds of the time between attempts to join a chat.
const (
	firstRejoin = time.Second
	lastRejoin  = 5 * time.Minute
)

func (n *network) tellRefused(ctx context.Context, p *portal, r *backends.Refusal) {
	if p.once("join: " + string(r.Code)) {
		p.notice(ctx, hashID("join", p.key.network, string(p.key.chat), string(r.Code)), "I could not join "+string(p.key.chat)+" on "+n.title+": "+r.Message)
	}
}

// accountState notes how a user of ours stands on the network, and tells them what
// they must act on in the rooms where it matters.
func (n *network) accountState(ctx context.Context, s *backends.AccountState) {
	n.mu.Lock()
	n.accounts[s.Account] = s
	n.mu.Unlock()
	n.log.Info("account changed", append(phase(s.Phase, s.Reason), "user_id", string(s.Account))...)
	if s.Phase != backends.Failed {
		return
	}
	for _, p := range n.b.portalsOf(n) {
		if _, in := p.bound().member(ctx, userID(s.Account)); in && p.once("account: "+string(s.Account)+s.Reason) {
			p.notice(ctx, "", string(s.Account)+" cannot speak on "+n.title+": "+s.Reason)
		}
	}
}

func (n *network) Log() *slog.Logger     { return n.log }
func (n *network) Store() backends.Store { return kv{n.b.db, n.name} }
func (n *network) Media() backends.Media { return n.b.media }

// Rooms implements backends.Host; nil unless the network is a gateway.
func (n *network) Rooms() backends.Rooms {
	if n.gateway == nil {
		return nil
	}
	return n.gateway
}
