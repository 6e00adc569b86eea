package store

import (
	"context"
	"fmt"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// Presence of a user.
type Presence struct {
	User            matrix.UserID
	State           string // online, unavailable or offline
	StatusMsg       string
	LastActive      int64 // ms
	CurrentlyActive bool
	Pos             Pos
}

// SetPresence stores a user's presence under a new position.
func (s *Store) SetPresence(tx *sqldb.Tx, p Presence) (Pos, error) {
	pos, err := tx.NextPos(1)
	if err != nil {
		return 0, err
	}
	tx.OnCommit(func() { s.presencePos.Store(pos) })
	_, err = tx.Exec(`INSERT INTO presence (user_id, state, status_msg, last_active, currently_active, pos) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (user_id) DO UPDATE SET state = excluded.state, status_msg = excluded.status_msg, last_active = excluded.last_active,
		currently_active = excluded.currently_active, pos = excluded.pos`, p.User, p.State, p.StatusMsg, p.LastActive, p.CurrentlyActive, pos)
	return pos, err
}

const presenceColumns = `user_id, state, status_msg, last_active, currently_active, pos`

func (p *Presence) scan(scan func(...any) error) error {
	return scan(&p.User, &p.State, &p.StatusMsg, &p.LastActive, &p.CurrentlyActive, &p.Pos)
}

// Presence returns a user's presence; [ErrNotFound] if they never told.
func (s *Store) Presence(ctx context.Context, user matrix.UserID) (*Presence, error) {
	var p Presence
	if err := p.scan(s.QueryRow(ctx, `SELECT `+presenceColumns+` FROM presence WHERE user_id = $1`, user).Scan); err != nil {
		return nil, fmt.Errorf("presence of %s: %w", user, one(err))
	}
	return &p, nil
}

// PresenceOf returns the presence of those of some users for whom it last changed at
// upTo or before.
func (s *Store) PresenceOf(ctx context.Context, users []matrix.UserID, upTo Pos) (out []Presence, err error) {
	for len(users) > 0 && err == nil {
		n := min(len(users), 500)
		err = s.Each(ctx, func(scan func(...any) error) error {
			var p Presence
			err := p.scan(scan)
			out = append(out, p)
			return err
		}, `SELECT `+presenceColumns+` FROM presence WHERE pos <= $1 AND user_id IN `+sqldb.In(2, n), append([]any{upTo}, sqldb.Args(users[:n])...)...)
		users = users[n:]
	}
	return out, err
}

// PresenceChanges returns the presence of those for whom it last changed with
// from < pos ≤ to.
func (s *Store) PresenceChanges(ctx context.Context, from, to Pos) (out []Presence, err error) {
	if from >= s.presencePos.Load() {
		return nil, nil
	}
	err = s.Each(ctx, func(scan func(...any) error) error {
		var p Presence
		err := p.scan(scan)
		out = append(out, p)
		return err
	}, `SELECT `+presenceColumns+` FROM presence WHERE pos > $1 AND pos <= $2 ORDER BY pos`, from, to)
	return out, err
}
