package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// StateMap is the state of a room: for each key, the number of the event.
type StateMap map[matrix.StateKey]Pos

// Snapshot is one link of the chain by which a state is read: what it changes of
// the link before it.
type Snapshot struct {
	ID, Seq int64
	Delta   StateMap
}

// Chain leads from the empty state to a snapshot, oldest link first. It is
// immutable: Next makes another.
type Chain []Snapshot

// ID of the last snapshot, 0 for the empty state.
func (c Chain) ID() int64 {
	if len(c) == 0 {
		return 0
	}
	return c[len(c)-1].ID
}

// Next is the chain of the state after the event id, which changes one key. Its
// last link is the new snapshot, number n, whose delta takes up those of the links
// after number n - lowbit(n).
func (c Chain) Next(id int64, key matrix.StateKey) Chain {
	n := int64(1)
	if len(c) > 0 {
		n = c[len(c)-1].Seq + 1
	}
	base := n - n&-n
	keep := len(c)
	for keep > 0 && c[keep-1].Seq > base {
		keep--
	}
	delta := StateMap{}
	for _, link := range c[keep:] {
		for k, v := range link.Delta {
			delta[k] = v
		}
	}
	delta[key] = id
	return append(c[:keep:keep], Snapshot{id, n, delta})
}

var (
	insertSnapshot = &sqldb.Insert{Table: "state_snapshot", Columns: []string{"id", "room_id", "seq", "base"}}
	insertDelta    = &sqldb.Insert{Table: "state_delta", Columns: []string{"snapshot", "type", "state_key", "event_pos"}}
	upsertState    = &sqldb.Insert{Table: "current_state", Columns: []string{"room_id", "type", "state_key", "event_pos", "membership"},
		Conflict: `ON CONFLICT (room_id, type, state_key) DO UPDATE SET event_pos = excluded.event_pos, membership = excluded.membership`}
	insertChange = &sqldb.Insert{Table: "state_change", Columns: []string{"pos", "room_id", "type", "state_key", "previous"}}
)

// InsertSnapshot queues the last link of a chain.
func (s *Store) InsertSnapshot(tx *sqldb.Tx, room matrix.RoomID, c Chain) {
	last := c[len(c)-1]
	tx.Queue(insertSnapshot, last.ID, string(room), last.Seq, c[:len(c)-1].ID())
	for k, pos := range last.Delta {
		tx.Queue(insertDelta, last.ID, k.Type, k.Key, pos)
	}
}

// SetState makes an event the current state of its key. previous is the number of
// the one before, 0 if there was none.
func (s *Store) SetState(tx *sqldb.Tx, e NewEvent, previous Pos) {
	var membership any
	switch e.Type {
	case matrix.TypeMember:
		membership = e.Membership()
	case matrix.TypeHistoryVisibility:
		s.visibilityChanges(tx, e.RoomID)
	}
	tx.QueueLast(upsertState, string(e.RoomID)+"\x00"+e.Type+"\x00"+*e.StateKey, string(e.RoomID), e.Type, *e.StateKey, e.Pos, membership)
	tx.Queue(insertChange, e.Pos, string(e.RoomID), e.Type, *e.StateKey, previous)
}

// ChainOf reads the chain of a snapshot.
func (s *Store) ChainOf(ctx context.Context, snapshot int64) (Chain, error) {
	var c Chain
	err := s.Each(ctx, func(scan func(...any) error) error {
		var id, seq, pos int64
		var k matrix.StateKey
		if err := scan(&id, &seq, &k.Type, &k.Key, &pos); err != nil {
			return err
		}
		if c.ID() != id {
			c = append(c, Snapshot{id, seq, StateMap{}})
		}
		c[len(c)-1].Delta[k] = pos
		return nil
	}, chain+`SELECT link.id, link.seq, d.type, d.state_key, d.event_pos FROM link JOIN state_delta d ON d.snapshot = link.id ORDER BY link.seq`, snapshot)
	if err != nil {
		return nil, fmt.Errorf("state snapshot %d: %w", snapshot, err)
	}
	return c, nil
}

const chain = `WITH RECURSIVE link (id, seq, base) AS (
	SELECT id, seq, base FROM state_snapshot WHERE id = $1
	UNION ALL SELECT s.id, s.seq, s.base FROM state_snapshot s JOIN link ON s.id = link.base) `

// State is the state that a chain leads to.
func (c Chain) State() StateMap {
	m := StateMap{}
	for _, link := range c {
		for k, v := range link.Delta {
			m[k] = v
		}
	}
	return m
}

// StateAt returns the state of a snapshot.
func (s *Store) StateAt(ctx context.Context, snapshot int64) (StateMap, error) {
	if snapshot == 0 {
		return StateMap{}, nil
	}
	c, err := s.ChainOf(ctx, snapshot)
	return c.State(), err
}

// StateAtKey returns the event that a snapshot has at a key, nil if none.
func (s *Store) StateAtKey(ctx context.Context, snapshot int64, typ, key string) (*Event, error) {
	list, err := s.events(ctx, chain+`SELECT `+eventColumns+` FROM link JOIN state_delta d ON d.snapshot = link.id JOIN event ON event.pos = d.event_pos
		WHERE d.type = $2 AND d.state_key = $3 ORDER BY link.seq DESC LIMIT 1`, snapshot, typ, key)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return list[0], nil
}

// CurrentState returns all state events of a room.
func (s *Store) CurrentState(ctx context.Context, room matrix.RoomID) ([]*Event, error) {
	list, err := s.events(ctx, `SELECT `+eventColumns+` FROM current_state c JOIN event ON event.pos = c.event_pos WHERE c.room_id = $1 ORDER BY event.pos`, room)
	if err != nil {
		return nil, fmt.Errorf("state of %s: %w", room, err)
	}
	return list, nil
}

// CurrentStateOf returns the state events of a room of some types.
func (s *Store) CurrentStateOf(ctx context.Context, room matrix.RoomID, types ...string) ([]*Event, error) {
	return s.events(ctx, `SELECT `+eventColumns+` FROM current_state c JOIN event ON event.pos = c.event_pos WHERE c.room_id = $1 AND c.type IN `+
		sqldb.In(2, len(types))+` ORDER BY event.pos`, append([]any{room}, sqldb.Args(types)...)...)
}

// CurrentStateKey returns the current state of a key, nil if there is none.
func (s *Store) CurrentStateKey(ctx context.Context, room matrix.RoomID, typ, key string) (*Event, error) {
	list, err := s.events(ctx, `SELECT `+eventColumns+` FROM current_state c JOIN event ON event.pos = c.event_pos
		WHERE c.room_id = $1 AND c.type = $2 AND c.state_key = $3`, room, typ, key)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return list[0], nil
}

// StateChanges returns which state of a room changed with from < pos ≤ to, and the
// number of the event that each key had before.
func (s *Store) StateChanges(ctx context.Context, room matrix.RoomID, from, to Pos) (before StateMap, after StateMap, err error) {
	before, after = StateMap{}, StateMap{}
	err = s.Each(ctx, func(scan func(...any) error) error {
		var k matrix.StateKey
		var pos, previous Pos
		if err := scan(&pos, &k.Type, &k.Key, &previous); err != nil {
			return err
		}
		if _, ok := before[k]; !ok {
			before[k] = previous
		}
		after[k] = pos
		return nil
	}, `SELECT pos, type, state_key, previous FROM state_change WHERE room_id = $1 AND pos > $2 AND pos <= $3 ORDER BY pos`, room, from, to)
	return before, after, err
}

// Previous returns the numbers of the events that state events replaced, by number.
func (s *Store) Previous(ctx context.Context, room matrix.RoomID, numbers []Pos) (map[Pos]Pos, error) {
	out := map[Pos]Pos{}
	if len(numbers) == 0 {
		return out, nil
	}
	err := s.Each(ctx, func(scan func(...any) error) error {
		var pos, previous Pos
		err := scan(&pos, &previous)
		out[pos] = previous
		return err
	}, `SELECT pos, previous FROM state_change WHERE room_id = $1 AND pos IN `+sqldb.In(2, len(numbers)), append([]any{room}, sqldb.Args(numbers)...)...)
	return out, err
}

// Membership is a user's place in a room.
type Membership struct {
	Room       matrix.RoomID
	User       matrix.UserID
	Membership string
	Pos        Pos // of the member event
}

// MembershipsOf returns the rooms that a user has a membership in.
func (s *Store) MembershipsOf(ctx context.Context, user matrix.UserID) ([]Membership, error) {
	return s.memberships(ctx, `SELECT room_id, state_key, membership, event_pos FROM current_state WHERE type = 'm.room.member' AND state_key = $1`, user)
}

// Members returns those whose membership in a room is one of these; all without any.
func (s *Store) Members(ctx context.Context, room matrix.RoomID, memberships ...string) ([]Membership, error) {
	query := `SELECT room_id, state_key, membership, event_pos FROM current_state WHERE room_id = $1 AND type = 'm.room.member'`
	args := []any{room}
	if len(memberships) > 0 {
		query += ` AND membership IN ` + sqldb.In(2, len(memberships))
		args = append(args, sqldb.Args(memberships)...)
	}
	return s.memberships(ctx, query, args...)
}

func (s *Store) memberships(ctx context.Context, query string, args ...any) (out []Membership, err error) {
	err = s.Each(ctx, func(scan func(...any) error) error {
		var m Membership
		err := scan(&m.Room, &m.User, &m.Membership, &m.Pos)
		out = append(out, m)
		return err
	}, query, args...)
	return out, err
}

// MembershipOf returns a user's membership in a room and the number of its event;
// "" and 0 if there is none.
func (s *Store) MembershipOf(ctx context.Context, room matrix.RoomID, user matrix.UserID) (membership string, pos Pos, err error) {
	err = one(s.QueryRow(ctx, `SELECT membership, event_pos FROM current_state WHERE room_id = $1 AND type = 'm.room.member' AND state_key = $2`, room, user).Scan(&membership, &pos))
	if err == ErrNotFound {
		return "", 0, nil
	}
	return membership, pos, err
}

// MemberCounts returns how many are joined to and invited to a room.
func (s *Store) MemberCounts(ctx context.Context, room matrix.RoomID) (joined, invited int, err error) {
	err = s.Each(ctx, func(scan func(...any) error) error {
		var m string
		var n int
		if err := scan(&m, &n); err != nil {
			return err
		}
		switch m {
		case matrix.Join:
			joined = n
		case matrix.Invite:
			invited = n
		}
		return nil
	}, `SELECT membership, count(*) FROM current_state WHERE room_id = $1 AND type = 'm.room.member' GROUP BY membership`, room)
	return joined, invited, err
}

// Extremity is an event that no other one of its room refers to yet.
type Extremity struct {
	ID    matrix.EventID `json:"id"`
	Depth int64          `json:"depth"`
}

// Extremities returns the forward extremities of a room; [ErrNotFound] if there is
// no such room.
func (s *Store) Extremities(ctx context.Context, room matrix.RoomID) (out []Extremity, err error) {
	var text []byte
	if err := one(s.QueryRow(ctx, `SELECT events FROM room_extremities WHERE room_id = $1`, room).Scan(&text)); err != nil {
		return nil, fmt.Errorf("extremities of %s: %w", room, err)
	}
	err = json.Unmarshal(text, &out)
	return out, err
}

var upsertExtremities = &sqldb.Insert{Table: "room_extremities", Columns: []string{"room_id", "events"},
	Conflict: `ON CONFLICT (room_id) DO UPDATE SET events = excluded.events`}

// SetExtremities queues the forward extremities of a room.
func (s *Store) SetExtremities(tx *sqldb.Tx, room matrix.RoomID, list []Extremity) {
	text, _ := json.Marshal(list) // strings and numbers: cannot fail
	tx.QueueLast(upsertExtremities, string(room), string(room), string(text))
}

// InsertRoom notes a new room.
func (s *Store) InsertRoom(tx *sqldb.Tx, room matrix.RoomID, version matrix.RoomVersion, creator matrix.UserID, now int64) error {
	_, err := tx.Exec(`INSERT INTO room (room_id, version, creator, created) VALUES ($1, $2, $3, $4)`, room, version, creator, now)
	return err
}

// At returns the number of the event that the state of the chain has at a key, 0
// if none.
func (c Chain) At(key matrix.StateKey) Pos {
	for i := len(c) - 1; i >= 0; i-- {
		if pos, ok := c[i].Delta[key]; ok {
			return pos
		}
	}
	return 0
}

// MembershipHistory returns the memberships that a user has had in a room, oldest
// first.
func (s *Store) MembershipHistory(ctx context.Context, room matrix.RoomID, user matrix.UserID) (out []Membership, err error) {
	list, err := s.events(ctx, `SELECT `+eventColumns+` FROM state_change c JOIN event ON event.pos = c.pos
		WHERE c.room_id = $1 AND c.type = 'm.room.member' AND c.state_key = $2 ORDER BY c.pos`, room, user)
	for _, e := range list {
		out = append(out, Membership{room, user, e.Membership(), e.Pos})
	}
	return out, err
}

// CurrentMembers returns the membership events of some users of a room.
func (s *Store) CurrentMembers(ctx context.Context, room matrix.RoomID, users []matrix.UserID) (out []*Event, err error) {
	for len(users) > 0 {
		n := min(len(users), 500)
		list, err := s.events(ctx, `SELECT `+eventColumns+` FROM current_state c JOIN event ON event.pos = c.event_pos
			WHERE c.room_id = $1 AND c.type = 'm.room.member' AND c.state_key IN `+sqldb.In(2, n), append([]any{room}, sqldb.Args(users[:n])...)...)
		if err != nil {
			return nil, fmt.Errorf("members of %s: %w", room, err)
		}
		out, users = append(out, list...), users[n:]
	}
	return out, nil
}

// ShareRoom returns those of some users who are in a room with a user.
func (s *Store) ShareRoom(ctx context.Context, user matrix.UserID, others []matrix.UserID) (map[matrix.UserID]bool, error) {
	out := map[matrix.UserID]bool{}
	for len(others) > 0 {
		n := min(len(others), 500)
		err := s.Each(ctx, func(scan func(...any) error) error {
			var u matrix.UserID
			err := scan(&u)
			out[u] = true
			return err
		}, `SELECT DISTINCT o.state_key FROM current_state o JOIN current_state me ON me.room_id = o.room_id AND me.type = 'm.room.member'
			AND me.state_key = $1 AND me.membership = 'join' WHERE o.type = 'm.room.member' AND o.membership = 'join' AND o.state_key IN `+sqldb.In(2, n),
			append([]any{user}, sqldb.Args(others[:n])...)...)
		if err != nil {
			return nil, err
		}
		others = others[n:]
	}
	return out, nil
}
