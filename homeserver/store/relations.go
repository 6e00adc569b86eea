package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// RelationQuery says which events that relate to one are wanted.
type RelationQuery struct {
	Room     matrix.RoomID
	Event    matrix.EventID
	RelType  string // "" is any
	Type     string // "" is any
	Depth    int    // 1 is those that relate to the event itself
	From, To Pos    // From < pos ≤ To
	Backward bool   // newest first
	Limit    int
}

// RelationsOf returns events that relate to one, and those that relate to these.
func (s *Store) RelationsOf(ctx context.Context, q RelationQuery) ([]*Event, error) {
	order := "ASC"
	if q.Backward {
		order = "DESC"
	}
	list, err := s.events(ctx, `WITH RECURSIVE tree (event_id, depth) AS (
			SELECT CAST($1 AS TEXT), 0
			UNION SELECT e.event_id, tree.depth + 1 FROM tree JOIN event e ON e.relates_to = tree.event_id AND e.room_id = $2 WHERE tree.depth < $3)
		SELECT `+eventColumns+` FROM event WHERE event_id IN (SELECT event_id FROM tree WHERE depth > 0)
		AND (rel_type = $4 OR $4 = '') AND (type = $5 OR $5 = '') AND pos > $6 AND pos <= $7 ORDER BY pos `+order+` LIMIT $8`,
		string(q.Event), string(q.Room), q.Depth, q.RelType, q.Type, q.From, q.To, q.Limit)
	if err != nil {
		return nil, fmt.Errorf("relations of %s: %w", q.Event, err)
	}
	return list, nil
}

// Thread is the summary of a thread.
type Thread struct {
	Root         matrix.EventID
	Latest       Pos // of the last event in it
	Count        int // of events besides the root
	Participated bool
}

// Threads returns at most limit threads of a room with events of pos ≤ to, the one
// with the latest event first; all, or those that a user has written in.
func (s *Store) Threads(ctx context.Context, room matrix.RoomID, user matrix.UserID, participated bool, to Pos, limit int) (out []Thread, err error) {
	err = s.Each(ctx, func(scan func(...any) error) error {
		var t Thread
		var wrote int
		err := scan(&t.Root, &t.Latest, &t.Count, &wrote)
		t.Participated = wrote > 0
		out = append(out, t)
		return err
	}, `SELECT e.relates_to, MAX(e.pos), count(*), MAX(CASE WHEN e.sender = $1 OR root.sender = $1 THEN 1 ELSE 0 END)
		FROM event e JOIN event root ON root.event_id = e.relates_to AND root.room_id = e.room_id
		WHERE e.room_id = $2 AND e.relates_to IS NOT NULL AND e.rel_type = 'm.thread'
		GROUP BY e.relates_to
		HAVING MAX(e.pos) <= $3 AND MAX(CASE WHEN e.sender = $1 OR root.sender = $1 THEN 1 ELSE 0 END) >= $4
		ORDER BY MAX(e.pos) DESC LIMIT $5`, string(user), string(room), to, number(participated), limit)
	return out, err
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// EventsNear returns at most limit events of a room sent at a time (ms) or later,
// the earliest first; or with backward at that time or earlier, the latest first.
func (s *Store) EventsNear(ctx context.Context, room matrix.RoomID, ts int64, backward bool, skip, limit int) ([]*Event, error) {
	compare, order := ">=", "ASC"
	if backward {
		compare, order = "<=", "DESC"
	}
	return s.events(ctx, `SELECT `+eventColumns+` FROM event WHERE room_id = $1 AND origin_server_ts `+compare+` $2
		ORDER BY origin_server_ts `+order+`, pos `+order+` LIMIT $3 OFFSET $4`, room, ts, limit, skip)
}

// SearchEvents returns the messages, names and topics of some rooms with
// from < pos ≤ to, newest first, at most limit, whose JSON has all of these texts;
// capitals do not matter. It may return some more.
func (s *Store) SearchEvents(ctx context.Context, rooms []matrix.RoomID, texts []string, from, to Pos, limit int) ([]*Event, error) {
	args := []any{from, to, limit}
	conditions := []string{`type IN ('m.room.message', 'm.room.name', 'm.room.topic')`, `pos > $1`, `pos <= $2`}
	for _, t := range texts {
		args = append(args, "%"+likeEscape.Replace(t)+"%")
		conditions = append(conditions, fmt.Sprintf(`lower(json) LIKE $%d ESCAPE '\'`, len(args)))
	}
	conditions = append(conditions, `room_id IN `+sqldb.In(len(args)+1, len(rooms)))
	list, err := s.events(ctx, `SELECT `+eventColumns+` FROM event WHERE `+strings.Join(conditions, ` AND `)+` ORDER BY pos DESC LIMIT $3`,
		append(args, sqldb.Args(rooms)...)...)
	if err != nil {
		return nil, fmt.Errorf("search: %w", err)
	}
	return list, nil
}
