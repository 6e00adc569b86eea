package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// ServiceTransaction is a transaction for an application service as it is kept
// until it is acknowledged.
type ServiceTransaction struct {
	ID      string
	UpTo    Pos    // all up to here has been looked at
	Created int64  // ms
	Events  []Pos  // their numbers
	Extra   string // EDUs and to-device messages, in whatever form the caller gave
}

// ServicePosition returns up to where an application service has acknowledged the
// stream, and the transaction that it was being sent, nil if none; [ErrNotFound] if
// nothing is known of the service.
func (s *Store) ServicePosition(ctx context.Context, id string) (Pos, *ServiceTransaction, error) {
	var pos Pos
	if err := one(s.QueryRow(ctx, `SELECT pos FROM as_position WHERE as_id = $1`, id).Scan(&pos)); err != nil {
		return 0, nil, fmt.Errorf("position of application service %q: %w", id, err)
	}
	var t ServiceTransaction
	var events []byte
	err := one(s.QueryRow(ctx, `SELECT txn_id, upto, created, events, extra FROM as_transaction WHERE as_id = $1`, id).
		Scan(&t.ID, &t.UpTo, &t.Created, &events, &t.Extra))
	if errors.Is(err, ErrNotFound) || err == nil && t.UpTo <= pos {
		return pos, nil, nil
	}
	if err == nil {
		err = json.Unmarshal(events, &t.Events)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("transaction of application service %q: %w", id, err)
	}
	return pos, &t, nil
}

// SetServicePosition notes up to where an application service has acknowledged.
func (s *Store) SetServicePosition(tx *sqldb.Tx, id string, pos Pos) error {
	_, err := tx.Exec(`INSERT INTO as_position (as_id, pos) VALUES ($1, $2) ON CONFLICT (as_id) DO UPDATE SET pos = excluded.pos`, id, pos)
	if err != nil {
		return fmt.Errorf("set position of application service %q: %w", id, err)
	}
	return nil
}

// PutServiceTransaction keeps the transaction that is sent next.
func (s *Store) PutServiceTransaction(tx *sqldb.Tx, id string, t *ServiceTransaction) error {
	events, err := json.Marshal(t.Events)
	if err == nil {
		_, err = tx.Exec(`INSERT INTO as_transaction (as_id, txn_id, upto, created, events, extra) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (as_id) DO UPDATE SET txn_id = excluded.txn_id, upto = excluded.upto, created = excluded.created, events = excluded.events, extra = excluded.extra`,
			id, t.ID, t.UpTo, t.Created, string(events), t.Extra)
	}
	if err != nil {
		return fmt.Errorf("store transaction of application service %q: %w", id, err)
	}
	return nil
}

// ForgetService removes all that is known of an application service.
func (s *Store) ForgetService(tx *sqldb.Tx, id string) error {
	for _, query := range []string{`DELETE FROM as_transaction WHERE as_id = $1`, `DELETE FROM as_position WHERE as_id = $1`} {
		if _, err := tx.Exec(query, id); err != nil {
			return fmt.Errorf("forget application service %q: %w", id, err)
		}
	}
	return nil
}

// DeleteServiceToDevice removes the messages with from < pos ≤ to for users that an
// application service has registered. Others it may act as have clients of their own.
func (s *Store) DeleteServiceToDevice(tx *sqldb.Tx, id string, from, to Pos) error {
	_, err := tx.Exec(`DELETE FROM to_device WHERE pos > $1 AND pos <= $2 AND user_id IN (SELECT user_id FROM account WHERE appservice = $3)`, from, to, id)
	return err
}

// Header is what an event is chosen by, before it is parsed.
type Header struct {
	Pos      Pos
	Room     matrix.RoomID
	Type     string
	StateKey *string
	Sender   matrix.UserID

	id                        matrix.EventID
	snapshot                  int64
	json                      []byte
	redactedBy, txnID, device sql.NullString
}

// JSON is the event in canonical form. It is not to be changed.
func (h *Header) JSON() []byte { return h.json }

// Headers returns at most limit events of all rooms with from < pos ≤ to, oldest
// first.
func (s *Store) Headers(ctx context.Context, from, to Pos, limit int) (out []Header, err error) {
	err = s.Each(ctx, func(scan func(...any) error) error {
		var h Header
		err := scan(&h.Pos, &h.id, &h.Room, &h.Type, &h.StateKey, &h.Sender, &h.snapshot, &h.json, &h.redactedBy, &h.txnID, &h.device)
		out = append(out, h)
		return err
	}, `SELECT pos, event_id, room_id, type, state_key, sender, snapshot, json, redacted_by, txn_id, txn_device
		FROM event WHERE pos > $1 AND pos <= $2 ORDER BY pos LIMIT $3`, from, to, limit)
	if err != nil {
		return nil, fmt.Errorf("headers of events after %d: %w", from, err)
	}
	return out, nil
}

// Parse returns the event of a header.
func (s *Store) Parse(ctx context.Context, h *Header) (*Event, error) {
	rules, err := s.Rules(ctx, h.Room)
	if err != nil {
		return nil, err
	}
	p, err := pdu.ParseTrusted(rules, h.id, h.json)
	if err != nil {
		return nil, fmt.Errorf("stored event %s: %w", h.id, err)
	}
	return &Event{p, h.Pos, h.snapshot, matrix.EventID(h.redactedBy.String), h.txnID.String, matrix.DeviceID(h.device.String)}, nil
}

// JoinedAt returns who was in a room after the event of that position.
func (s *Store) JoinedAt(ctx context.Context, room matrix.RoomID, pos Pos) (out []matrix.UserID, err error) {
	now, err := s.Members(ctx, room)
	if err != nil {
		return nil, fmt.Errorf("members of %s: %w", room, err)
	}
	var since []any // whose membership has changed
	for _, m := range now {
		switch {
		case m.Pos > pos:
			since = append(since, m.User)
		case m.Membership == matrix.Join:
			out = append(out, m.User)
		}
	}
	for len(since) > 0 {
		n := min(len(since), 500)
		list, err := s.events(ctx, `SELECT `+eventColumns+` FROM event WHERE event.pos IN (
			SELECT max(pos) FROM state_change WHERE room_id = $1 AND type = 'm.room.member' AND pos <= $2 AND state_key IN `+sqldb.In(3, n)+` GROUP BY state_key)`,
			append([]any{room, pos}, since[:n]...)...)
		if err != nil {
			return nil, fmt.Errorf("members of %s at %d: %w", room, pos, err)
		}
		for _, e := range list {
			if e.Membership() == matrix.Join {
				out = append(out, matrix.UserID(*e.StateKey))
			}
		}
		since = since[n:]
	}
	return out, nil
}

// Replaced returns the events that state events replaced, by the number of the one
// that replaced them. The numbers may be of any rooms.
func (s *Store) Replaced(ctx context.Context, numbers []Pos) (map[Pos]*Event, error) {
	by := map[Pos]Pos{}
	var previous []Pos
	for len(numbers) > 0 {
		n := min(len(numbers), 500)
		err := s.Each(ctx, func(scan func(...any) error) error {
			var pos, p Pos
			err := scan(&pos, &p)
			by[pos], previous = p, append(previous, p)
			return err
		}, `SELECT c.pos, c.previous FROM event e JOIN state_change c ON c.room_id = e.room_id AND c.pos = e.pos
			WHERE c.previous > 0 AND e.pos IN `+sqldb.In(1, n), sqldb.Args(numbers[:n])...)
		if err != nil {
			return nil, fmt.Errorf("what state events replaced: %w", err)
		}
		numbers = numbers[n:]
	}
	events, err := s.EventsByPos(ctx, previous)
	if err != nil {
		return nil, err
	}
	out := make(map[Pos]*Event, len(by))
	for pos, p := range by {
		if e := events[p]; e != nil {
			out[pos] = e
		}
	}
	return out, nil
}

// StateAtKeys returns the events that a snapshot has at some keys, in the keys' order.
func (s *Store) StateAtKeys(ctx context.Context, snapshot int64, keys []matrix.StateKey) ([]*Event, error) {
	args := []any{snapshot}
	var where []string
	for _, k := range keys {
		where = append(where, fmt.Sprintf("d.type = $%d AND d.state_key = $%d", len(args)+1, len(args)+2))
		args = append(args, k.Type, k.Key)
	}
	list, err := s.events(ctx, chain+`SELECT `+eventColumns+` FROM link JOIN state_delta d ON d.snapshot = link.id JOIN event ON event.pos = d.event_pos
		WHERE `+strings.Join(where, " OR ")+` ORDER BY link.seq`, args...)
	if err != nil {
		return nil, fmt.Errorf("state snapshot %d: %w", snapshot, err)
	}
	last := map[matrix.StateKey]*Event{}
	for _, e := range list {
		last[e.Key()] = e
	}
	var out []*Event
	for _, k := range keys {
		if e := last[k]; e != nil {
			out = append(out, e)
		}
	}
	return out, nil
}

// StreamReceipt is a receipt with the room it is in.
type StreamReceipt struct {
	Room   matrix.RoomID
	User   matrix.UserID
	Type   string
	Thread string // "" is none
	Event  matrix.EventID
	TS     int64 // ms
}

// StreamReceipts returns the receipts of all rooms with from < pos ≤ to.
func (s *Store) StreamReceipts(ctx context.Context, from, to Pos) (out []StreamReceipt, err error) {
	err = s.Each(ctx, func(scan func(...any) error) error {
		var r StreamReceipt
		err := scan(&r.Room, &r.User, &r.Type, &r.Thread, &r.Event, &r.TS)
		out = append(out, r)
		return err
	}, `SELECT room_id, user_id, type, thread_id, event_id, ts FROM receipt WHERE pos > $1 AND pos <= $2 ORDER BY pos`, from, to)
	return out, err
}

// StreamToDevice is a message with the device it is for.
type StreamToDevice struct {
	ToDeviceMessage
	User   matrix.UserID
	Device matrix.DeviceID
}

// StreamToDevice returns the messages to all devices with from < pos ≤ to.
func (s *Store) StreamToDevice(ctx context.Context, from, to Pos) (out []StreamToDevice, err error) {
	err = s.Each(ctx, func(scan func(...any) error) error {
		var m StreamToDevice
		var content []byte
		err := scan(&m.Pos, &m.User, &m.Device, &m.Sender, &m.Type, &content)
		m.Content = content
		out = append(out, m)
		return err
	}, `SELECT pos, user_id, device_id, sender, type, content FROM to_device WHERE pos > $1 AND pos <= $2 ORDER BY pos, user_id, device_id`, from, to)
	return out, err
}

// EphemeralHeads returns the last positions of receipts, presence and to-device
// messages.
func (s *Store) EphemeralHeads(ctx context.Context) (receipt, presence, toDevice Pos, err error) {
	err = s.QueryRow(ctx, `SELECT COALESCE((SELECT max(pos) FROM receipt), 0), COALESCE((SELECT max(pos) FROM presence), 0), COALESCE((SELECT max(pos) FROM to_device), 0)`).
		Scan(&receipt, &presence, &toDevice)
	return receipt, presence, toDevice, err
}

// AllAliases calls f for every alias.
func (s *Store) AllAliases(ctx context.Context, f func(matrix.RoomAlias, matrix.RoomID)) error {
	return s.Each(ctx, func(scan func(...any) error) error {
		var a matrix.RoomAlias
		var r matrix.RoomID
		if err := scan(&a, &r); err != nil {
			return err
		}
		f(a, r)
		return nil
	}, `SELECT alias, room_id FROM room_alias`)
}
