package store

import (
	"context"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// Alias returns the room of an alias and who made it; [ErrNotFound] if none.
func (s *Store) Alias(ctx context.Context, alias matrix.RoomAlias) (room matrix.RoomID, creator matrix.UserID, err error) {
	err = one(s.QueryRow(ctx, `SELECT room_id, creator FROM room_alias WHERE alias = $1`, alias).Scan(&room, &creator))
	return room, creator, err
}

// Aliases of a room.
func (s *Store) Aliases(ctx context.Context, room matrix.RoomID) (out []matrix.RoomAlias, err error) {
	err = s.Each(ctx, func(scan func(...any) error) error {
		var a matrix.RoomAlias
		err := scan(&a)
		out = append(out, a)
		return err
	}, `SELECT alias FROM room_alias WHERE room_id = $1 ORDER BY alias`, room)
	return out, err
}

// CreateAlias makes an alias and reports whether it was free.
func (s *Store) CreateAlias(tx *sqldb.Tx, alias matrix.RoomAlias, room matrix.RoomID, creator matrix.UserID) (bool, error) {
	result, err := tx.Exec(`INSERT INTO room_alias (alias, room_id, creator) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, alias, room, creator)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n == 1, err
}

// DeleteAlias removes an alias.
func (s *Store) DeleteAlias(tx *sqldb.Tx, alias matrix.RoomAlias) error {
	_, err := tx.Exec(`DELETE FROM room_alias WHERE alias = $1`, alias)
	return err
}

// Publish lists a room in the directory, or takes it out.
func (s *Store) Publish(tx *sqldb.Tx, room matrix.RoomID, network string, on bool) error {
	query := `DELETE FROM published_room WHERE room_id = $1 AND network = $2`
	if on {
		query = `INSERT INTO published_room (room_id, network) VALUES ($1, $2) ON CONFLICT DO NOTHING`
	}
	_, err := tx.Exec(query, room, network)
	return err
}

// Published reports whether a room is in the directory.
func (s *Store) Published(ctx context.Context, room matrix.RoomID) (bool, error) {
	var n int
	err := s.QueryRow(ctx, `SELECT count(*) FROM published_room WHERE room_id = $1 AND network = ''`, room).Scan(&n)
	return n > 0, err
}

// PublishedRooms returns the rooms of the directory, those with most members first.
func (s *Store) PublishedRooms(ctx context.Context, network string, all bool) (out []matrix.RoomID, err error) {
	query := `SELECT p.room_id FROM published_room p LEFT JOIN current_state c ON c.room_id = p.room_id AND c.type = 'm.room.member' AND c.membership = 'join'`
	var args []any
	if !all {
		query += ` WHERE p.network = $1`
		args = append(args, network)
	}
	err = s.Each(ctx, func(scan func(...any) error) error {
		var r matrix.RoomID
		err := scan(&r)
		out = append(out, r)
		return err
	}, query+` GROUP BY p.room_id ORDER BY count(DISTINCT c.state_key) DESC, p.room_id`, args...)
	return out, err
}

// Forget hides a room from a user who has left it, or undoes that.
func (s *Store) Forget(tx *sqldb.Tx, user matrix.UserID, room matrix.RoomID, on bool) error {
	query := `DELETE FROM forgotten_room WHERE user_id = $1 AND room_id = $2`
	if on {
		query = `INSERT INTO forgotten_room (user_id, room_id) VALUES ($1, $2) ON CONFLICT DO NOTHING`
	}
	_, err := tx.Exec(query, user, room)
	return err
}

// Forgotten returns the rooms a user has forgotten.
func (s *Store) Forgotten(ctx context.Context, user matrix.UserID) (map[matrix.RoomID]bool, error) {
	out := map[matrix.RoomID]bool{}
	err := s.Each(ctx, func(scan func(...any) error) error {
		var r matrix.RoomID
		err := scan(&r)
		out[r] = true
		return err
	}, `SELECT room_id FROM forgotten_room WHERE user_id = $1`, user)
	return out, err
}

// Receipt says how far a user has read.
type Receipt struct {
	User   matrix.UserID
	Type   string // m.read, m.read.private
	Thread string // "" is none
	Event  matrix.EventID
	TS     int64 // ms
}

// PutReceipt stores a receipt under a new position.
func (s *Store) PutReceipt(tx *sqldb.Tx, room matrix.RoomID, r Receipt) (Pos, error) {
	pos, err := tx.NextPos(1)
	if err != nil {
		return 0, err
	}
	_, err = tx.Exec(`INSERT INTO receipt (room_id, user_id, type, thread_id, event_id, ts, pos) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (room_id, user_id, type, thread_id) DO UPDATE SET event_id = excluded.event_id, ts = excluded.ts, pos = excluded.pos`,
		room, r.User, r.Type, r.Thread, r.Event, r.TS, pos)
	return pos, err
}

// ReceiptsSince returns the receipts of a room that are newer than a position.
func (s *Store) ReceiptsSince(ctx context.Context, room matrix.RoomID, from, to Pos) (out []Receipt, err error) {
	err = s.Each(ctx, func(scan func(...any) error) error {
		var r Receipt
		err := scan(&r.User, &r.Type, &r.Thread, &r.Event, &r.TS)
		out = append(out, r)
		return err
	}, `SELECT user_id, type, thread_id, event_id, ts FROM receipt WHERE room_id = $1 AND pos > $2 AND pos <= $3 ORDER BY pos`, room, from, to)
	return out, err
}

// UnreadCount counts up to limit messages of others in a room after the user's last
// receipt, or after they joined.
func (s *Store) UnreadCount(ctx context.Context, room matrix.RoomID, user matrix.UserID, limit int) (n int, err error) {
	err = s.QueryRow(ctx, `SELECT count(*) FROM (SELECT 1 FROM event WHERE room_id = $1 AND type IN ('m.room.message', 'm.room.encrypted') AND sender <> $2
		AND redacted_by IS NULL AND pos > (SELECT COALESCE(MAX(p), 0) FROM (
			SELECT MAX(e.pos) AS p FROM receipt r JOIN event e ON e.event_id = r.event_id WHERE r.room_id = $1 AND r.user_id = $2
			UNION ALL SELECT MAX(c.pos) AS p FROM state_change c LEFT JOIN event was ON was.pos = c.previous
				WHERE c.room_id = $1 AND c.type = 'm.room.member' AND c.state_key = $2 AND (was.pos IS NULL OR was.json NOT LIKE '%"membership":"join"%')) AS read)
		ORDER BY pos DESC LIMIT $3) AS unread`, room, user, limit).Scan(&n)
	return n, err
}
