// Package store has every table and query of the homeserver. Each subject has a
// file of its own.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Pos is a position in the stream of all that happens on the server. Event
// numbers are positions too.
type Pos = int64

// Store is the homeserver's database.
type Store struct {
	*sqldb.DB

	// OnChange, set before the store is used or nil, hears of what the store itself
	// notes a position for: devices that are gone. It is called as
	// [sqldb.Tx.OnCommit] says.
	OnChange func(pos Pos, rooms []matrix.RoomID, users []matrix.UserID)

	visibilities visibilities
	// The newest positions of what seldom changes, or later ones.
	presencePos, devicePos atomic.Int64

	rules sync.Map // matrix.RoomID → *roomversion.Rules; a room's version never changes
}

// ErrNotFound means that there is no such thing.
var ErrNotFound = errors.New("not found")

// Open brings the tables of db up to date.
func Open(ctx context.Context, db *sqldb.DB) (*Store, error) {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	if err := db.Migrate(ctx, "homeserver", sub); err != nil {
		return nil, err
	}
	s := &Store{DB: db}
	pos, err := s.Position(ctx)
	if err != nil {
		return nil, fmt.Errorf("read stream position: %w", err)
	}
	s.presencePos.Store(pos)
	s.devicePos.Store(pos)
	return s, nil
}

// Rules returns the room version's rules; [ErrNotFound] if there is no such room.
func (s *Store) Rules(ctx context.Context, room matrix.RoomID) (*roomversion.Rules, error) {
	if r, ok := s.rules.Load(room); ok {
		return r.(*roomversion.Rules), nil
	}
	var v string
	if err := one(s.QueryRow(ctx, `SELECT version FROM room WHERE room_id = $1`, room).Scan(&v)); err != nil {
		return nil, fmt.Errorf("version of %s: %w", room, err)
	}
	r, ok := roomversion.Get(matrix.RoomVersion(v))
	if !ok {
		return nil, fmt.Errorf("room %s has version %q, which this program does not know", room, v)
	}
	s.rules.Store(room, r)
	return r, nil
}

// Position returns the last position that was handed out.
func (s *Store) Position(ctx context.Context) (Pos, error) {
	var pos Pos
	err := s.QueryRow(ctx, `SELECT pos FROM stream_position`).Scan(&pos)
	return pos, err
}

// one turns "no rows" into ErrNotFound.
func one(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return err
}
