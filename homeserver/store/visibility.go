package store

import (
	"context"
	"sync"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// Visibility is who may read a room's history, now.
type Visibility struct {
	Value string // history_visibility; "shared" if the room does not say
	// Always means that it never was anything else.
	Always bool
}

// visibilities remembers them, since every reading of a room asks.
type visibilities struct {
	mu      sync.Mutex
	changes int                          // counts forget; guarded by mu
	rooms   map[matrix.RoomID]Visibility // guarded by mu
}

// maxVisibilities is when all are forgotten.
const maxVisibilities = 100_000

// Visibility returns a room's.
func (s *Store) Visibility(ctx context.Context, room matrix.RoomID) (Visibility, error) {
	c := &s.visibilities
	c.mu.Lock()
	v, ok := c.rooms[room]
	changes := c.changes
	c.mu.Unlock()
	if ok {
		return v, nil
	}
	v, err := s.readVisibility(ctx, room)
	if err != nil {
		return v, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changes == changes { // otherwise it may be an old one
		if c.rooms == nil || len(c.rooms) >= maxVisibilities {
			c.rooms = map[matrix.RoomID]Visibility{}
		}
		c.rooms[room] = v
	}
	return v, nil
}

func (s *Store) readVisibility(ctx context.Context, room matrix.RoomID) (Visibility, error) {
	e, err := s.CurrentStateKey(ctx, room, matrix.TypeHistoryVisibility, "")
	if err != nil || e == nil {
		return Visibility{"shared", true}, err
	}
	previous, err := s.Previous(ctx, room, []Pos{e.Pos})
	return Visibility{e.String("history_visibility"), previous[e.Pos] == 0}, err
}

// visibilityChanges has a room's visibility read anew after the commit.
func (s *Store) visibilityChanges(tx *sqldb.Tx, room matrix.RoomID) {
	tx.OnCommit(func() {
		c := &s.visibilities
		c.mu.Lock()
		defer c.mu.Unlock()
		c.changes++
		delete(c.rooms, room)
	})
}
