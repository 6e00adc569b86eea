package clientapi

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

// Presence of the users of the server: what they say it is and, while they sync,
// that they are there.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#presence
type Presence struct {
	store *store.Store
	hub   *streams.Hub
	log   *slog.Logger

	mu   sync.Mutex
	here map[matrix.UserID]*attendance // guarded by mu
}

// attendance of a user who syncs, or did a moment ago.
type attendance struct {
	state string // as it was last stored
	syncs int    // under way
	last  time.Time
}

const (
	absentAfter = 30 * time.Second // without a sync
	sweepEvery  = 10 * time.Second
)

// NewPresence returns the presence of a store's users. Nobody goes offline by itself
// before Run.
func NewPresence(s *store.Store, hub *streams.Hub, log *slog.Logger) *Presence {
	return &Presence{store: s, hub: hub, log: log, here: map[matrix.UserID]*attendance{}}
}

// Run marks offline who has ceased to sync, until ctx ends. Who was there when the
// server ended last has to show up again.
func (p *Presence) Run(ctx context.Context) error {
	if err := p.recall(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			p.Sweep(ctx, now)
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *Presence) recall(ctx context.Context) error {
	list, err := p.store.PresenceChanges(ctx, -1, 1<<62)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range list {
		if u.State != "offline" && p.here[u.User] == nil {
			p.here[u.User] = &attendance{state: u.State, last: time.Now()}
		}
	}
	return nil
}

// Sweep marks offline who has not synced for a while at a time.
func (p *Presence) Sweep(ctx context.Context, now time.Time) {
	var gone []matrix.UserID
	p.mu.Lock()
	for u, a := range p.here {
		if a.syncs == 0 && now.Sub(a.last) >= absentAfter {
			delete(p.here, u)
			if a.state != "offline" {
				gone = append(gone, u)
			}
		}
	}
	p.mu.Unlock()
	for _, u := range gone {
		if err := p.change(ctx, u, "offline"); err != nil && ctx.Err() == nil {
			p.log.Warn("presence cannot be stored", "user_id", u, "err", err)
		}
	}
}

// Begin notes that a user syncs, in a state ("" is online; offline changes nothing),
// until end is called.
func (p *Presence) Begin(ctx context.Context, user matrix.UserID, state string) (end func(), err error) {
	if state == "" {
		state = "online"
	}
	if state == "offline" {
		return func() {}, nil
	}
	p.mu.Lock()
	a := p.here[user]
	if a == nil {
		a = &attendance{}
		p.here[user] = a
	}
	a.syncs++
	changed := a.state != state
	a.state = state
	p.mu.Unlock()
	if changed {
		err = p.change(ctx, user, state)
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		a.syncs--
		a.last = time.Now()
	}, err
}

// change stores another state, with the status message as it is.
func (p *Presence) change(ctx context.Context, user matrix.UserID, state string) error {
	next := store.Presence{User: user, State: state}
	old, err := p.store.Presence(ctx, user)
	switch {
	case err == nil && old.State == state:
		return nil
	case err == nil:
		next.StatusMsg = old.StatusMsg
	case !errors.Is(err, store.ErrNotFound):
		return err
	}
	return p.set(ctx, next)
}

// set stores a user's presence as of now and tells those who share a room.
func (p *Presence) set(ctx context.Context, next store.Presence) error {
	next.CurrentlyActive = next.State == "online"
	next.LastActive = time.Now().UnixMilli()
	if old, err := p.store.Presence(ctx, next.User); err == nil && next.State != "online" {
		next.LastActive = old.LastActive // to go away is no activity
	} else if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	p.mu.Lock()
	if a := p.here[next.User]; a != nil {
		a.state = next.State
	}
	p.mu.Unlock()
	return p.store.Write(ctx, func(tx *sqldb.Tx) error {
		pos, err := p.store.SetPresence(tx, next)
		if err != nil {
			return err
		}
		rooms, err := p.store.JoinedRooms(tx, next.User)
		tx.OnCommit(func() { p.hub.Notify(pos, rooms, []matrix.UserID{next.User}) })
		return err
	})
}
