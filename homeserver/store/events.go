package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// Event is a stored event.
type Event struct {
	*pdu.PDU
	Pos        Pos
	Snapshot   int64 // the state before it
	RedactedBy matrix.EventID
	TxnID      string // with which TxnDevice of the sender sent it
	TxnDevice  matrix.DeviceID
}

// NewEvent is an event to be stored.
type NewEvent struct {
	*pdu.PDU
	Pos       Pos
	Snapshot  int64
	TxnID     string
	TxnDevice matrix.DeviceID
}

var (
	insertEvent = &sqldb.Insert{Table: "event", Columns: []string{"pos", "event_id", "room_id", "type", "state_key", "sender",
		"origin_server_ts", "snapshot", "json", "relates_to", "rel_type", "txn_id", "txn_device"}}
	insertTxn = &sqldb.Insert{Table: "transaction_id", Columns: []string{"user_id", "device_id", "txn_id", "event_id", "ts"}}
)

// InsertEvent queues an event.
func (s *Store) InsertEvent(tx *sqldb.Tx, e NewEvent) {
	var relatesTo, relType any
	if r := e.Get("m\\.relates_to"); r.IsObject() {
		if id := r.Get("event_id").Str; id != "" {
			relatesTo, relType = id, r.Get("rel_type").Str
		}
	}
	tx.Queue(insertEvent, e.Pos, string(e.ID), string(e.RoomID), e.Type, nullable(e.StateKey), string(e.Sender), e.OriginServerTS,
		e.Snapshot, string(e.JSON()), relatesTo, relType, optional(e.TxnID), optional(string(e.TxnDevice)))
}

// InsertTxn queues the note that a device has sent an event under a transaction ID.
// The write fails if it has used the ID before.
func (s *Store) InsertTxn(tx *sqldb.Tx, user matrix.UserID, device matrix.DeviceID, txnID string, id matrix.EventID, ts int64) {
	tx.Queue(insertTxn, string(user), string(device), txnID, string(id), ts)
}

// Txn returns the event that a device has sent under a transaction ID, "" if none.
func (s *Store) Txn(ctx context.Context, user matrix.UserID, device matrix.DeviceID, txnID string) (id matrix.EventID, err error) {
	err = s.QueryRow(ctx, `SELECT event_id FROM transaction_id WHERE user_id = $1 AND device_id = $2 AND txn_id = $3`, user, device, txnID).Scan(&id)
	if err == sql.ErrNoRows {
		return "", nil
	}
	return id, err
}

func nullable(s *string) any {
	if s == nil {
		return nil
	}
	return *s
}

func optional(s string) any {
	if s == "" {
		return nil
	}
	return s
}

const eventColumns = `event.pos, event.event_id, event.room_id, event.snapshot, event.json, event.redacted_by, event.txn_id, event.txn_device`

// events runs a query whose rows are eventColumns.
func (s *Store) events(ctx context.Context, query string, args ...any) (out []*Event, err error) {
	// Rows are read before they are parsed: the first event of a room asks for its
	// version, with a query of its own.
	type row struct {
		pos, snapshot             int64
		id                        matrix.EventID
		room                      matrix.RoomID
		json                      []byte
		redactedBy, txnID, device sql.NullString
	}
	var rows []row
	err = s.Each(ctx, func(scan func(...any) error) error {
		var r row
		err := scan(&r.pos, &r.id, &r.room, &r.snapshot, &r.json, &r.redactedBy, &r.txnID, &r.device)
		rows = append(rows, r)
		return err
	}, query, args...)
	if err != nil {
		return nil, err
	}
	out = make([]*Event, len(rows))
	for i, r := range rows {
		rules, err := s.Rules(ctx, r.room)
		if err != nil {
			return nil, err
		}
		p, err := pdu.ParseTrusted(rules, r.id, r.json)
		if err != nil {
			return nil, fmt.Errorf("stored event %s: %w", r.id, err)
		}
		out[i] = &Event{p, r.pos, r.snapshot, matrix.EventID(r.redactedBy.String), r.txnID.String, matrix.DeviceID(r.device.String)}
	}
	return out, nil
}

// Event returns an event by its ID; [ErrNotFound] if there is none.
func (s *Store) Event(ctx context.Context, id matrix.EventID) (*Event, error) {
	list, err := s.events(ctx, `SELECT `+eventColumns+` FROM event WHERE event_id = $1`, id)
	if err != nil {
		return nil, fmt.Errorf("event %s: %w", id, err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("event %s: %w", id, ErrNotFound)
	}
	return list[0], nil
}

// EventsByPos returns the events of these numbers, by number.
func (s *Store) EventsByPos(ctx context.Context, numbers []Pos) (map[Pos]*Event, error) {
	out := make(map[Pos]*Event, len(numbers))
	for len(numbers) > 0 {
		n := min(len(numbers), 500)
		list, err := s.events(ctx, `SELECT `+eventColumns+` FROM event WHERE pos IN `+sqldb.In(1, n), sqldb.Args(numbers[:n])...)
		if err != nil {
			return nil, fmt.Errorf("events by number: %w", err)
		}
		for _, e := range list {
			out[e.Pos] = e
		}
		numbers = numbers[n:]
	}
	return out, nil
}

// EventsAfter returns at most limit events of a room with from < pos ≤ to, oldest first.
func (s *Store) EventsAfter(ctx context.Context, room matrix.RoomID, from, to Pos, limit int) ([]*Event, error) {
	list, err := s.events(ctx, `SELECT `+eventColumns+` FROM event WHERE room_id = $1 AND pos > $2 AND pos <= $3 ORDER BY pos LIMIT $4`, room, from, to, limit)
	if err != nil {
		return nil, fmt.Errorf("events of %s after %d: %w", room, from, err)
	}
	return list, nil
}

// EventsBefore returns at most limit events of a room with from < pos ≤ to, newest first.
func (s *Store) EventsBefore(ctx context.Context, room matrix.RoomID, from, to Pos, limit int) ([]*Event, error) {
	list, err := s.events(ctx, `SELECT `+eventColumns+` FROM event WHERE room_id = $1 AND pos > $2 AND pos <= $3 ORDER BY pos DESC LIMIT $4`, room, from, to, limit)
	if err != nil {
		return nil, fmt.Errorf("events of %s before %d: %w", room, to, err)
	}
	return list, nil
}

// AllEventsAfter returns at most limit events of all rooms with pos > from, oldest first.
func (s *Store) AllEventsAfter(ctx context.Context, from Pos, limit int) ([]*Event, error) {
	list, err := s.events(ctx, `SELECT `+eventColumns+` FROM event WHERE pos > $1 ORDER BY pos LIMIT $2`, from, limit)
	if err != nil {
		return nil, fmt.Errorf("events after %d: %w", from, err)
	}
	return list, nil
}

// Relations returns at most limit events of a room that relate to an event, with
// from < pos ≤ to, newest first.
func (s *Store) Relations(ctx context.Context, room matrix.RoomID, id matrix.EventID, from, to Pos, limit int) ([]*Event, error) {
	return s.events(ctx, `SELECT `+eventColumns+` FROM event WHERE relates_to = $1 AND room_id = $2 AND pos > $3 AND pos <= $4 ORDER BY pos DESC LIMIT $5`, id, room, from, to, limit)
}

// Redact replaces an event by its redacted form.
func (s *Store) Redact(tx *sqldb.Tx, redacted *pdu.PDU, by matrix.EventID) error {
	if redacted.Type == matrix.TypeHistoryVisibility {
		s.visibilityChanges(tx, redacted.RoomID)
	}
	_, err := tx.Exec(`UPDATE event SET json = $1, redacted_by = $2, relates_to = NULL, rel_type = NULL WHERE event_id = $3`, string(redacted.JSON()), by, redacted.ID)
	if err != nil {
		return fmt.Errorf("redact %s: %w", redacted.ID, err)
	}
	return nil
}
