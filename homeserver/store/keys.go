package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// chunk is how many values one query asks for.
const chunk = 500

// DeviceKeys is what a device has uploaded of its identity keys.
type DeviceKeys struct {
	User   matrix.UserID
	Device matrix.DeviceID
	Name   string          // the device's display name
	JSON   json.RawMessage // the signed object
}

// NoteDeviceChange queues the note that a user's devices or keys have changed, at a
// position of this transaction.
func (s *Store) NoteDeviceChange(tx *sqldb.Tx, user matrix.UserID, pos Pos) {
	tx.OnCommit(func() { s.devicePos.Store(pos) })
	tx.QueueLast(upsertDeviceChange, string(user), string(user), pos)
}

var upsertDeviceChange = &sqldb.Insert{Table: "device_list_change", Columns: []string{"user_id", "pos"},
	Conflict: `ON CONFLICT (user_id) DO UPDATE SET pos = excluded.pos`}

// DeviceChanges returns the users whose devices or keys last changed with
// from < pos ≤ to. A user whose devices changed again after to is not among them.
func (s *Store) DeviceChanges(ctx context.Context, from, to Pos) (out []matrix.UserID, err error) {
	if from >= s.devicePos.Load() {
		return nil, nil
	}
	err = s.Each(ctx, func(scan func(...any) error) error {
		var u matrix.UserID
		err := scan(&u)
		out = append(out, u)
		return err
	}, `SELECT user_id FROM device_list_change WHERE pos > $1 AND pos <= $2 ORDER BY pos`, from, to)
	return out, err
}

// JoinedRooms returns the rooms that a user is in, as a transaction sees them.
func (s *Store) JoinedRooms(tx *sqldb.Tx, user matrix.UserID) (out []matrix.RoomID, err error) {
	err = tx.Each(func(scan func(...any) error) error {
		var r matrix.RoomID
		err := scan(&r)
		out = append(out, r)
		return err
	}, `SELECT room_id FROM current_state WHERE type = 'm.room.member' AND state_key = $1 AND membership = 'join'`, user)
	return out, err
}

// deviceGone removes all that a device has here besides its tokens, and notes the
// change of the user's devices if others could know of it.
func (s *Store) deviceGone(tx *sqldb.Tx, user matrix.UserID, id matrix.DeviceID) error {
	var known int
	if err := tx.QueryRow(`SELECT count(*) FROM device_key WHERE user_id = $1 AND device_id = $2`, user, id).Scan(&known); err != nil {
		return err
	}
	for _, table := range []string{"device_key", "one_time_key", "fallback_key", "to_device", "pusher", "transaction_id"} {
		if _, err := tx.Exec(`DELETE FROM `+table+` WHERE user_id = $1 AND device_id = $2`, user, id); err != nil {
			return fmt.Errorf("remove device %s of %s: %w", id, user, err)
		}
	}
	if _, err := tx.Exec(`DELETE FROM key_signature WHERE target_user = $1 AND target = $2`, user, id); err != nil {
		return err
	}
	if known == 0 {
		return nil
	}
	return s.DevicesChanged(tx, user)
}

// DevicesChanged notes a change of a user's devices or keys under a new position,
// and tells [Store.OnChange] of it after the commit.
func (s *Store) DevicesChanged(tx *sqldb.Tx, user matrix.UserID) error {
	pos, err := tx.NextPos(1)
	if err != nil {
		return err
	}
	s.NoteDeviceChange(tx, user, pos)
	rooms, err := s.JoinedRooms(tx, user)
	if err != nil {
		return err
	}
	if s.OnChange != nil {
		tx.OnCommit(func() { s.OnChange(pos, rooms, []matrix.UserID{user}) })
	}
	return nil
}

// PutDeviceKeys stores a device's identity keys and reports whether they are other
// than before. Signatures of the keys before are dropped with them.
func (s *Store) PutDeviceKeys(tx *sqldb.Tx, user matrix.UserID, device matrix.DeviceID, keys json.RawMessage) (changed bool, err error) {
	var before string
	err = tx.QueryRow(`SELECT json FROM device_key WHERE user_id = $1 AND device_id = $2`, user, device).Scan(&before)
	if err == nil && before == string(keys) {
		return false, nil
	}
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, err
	}
	if _, err := tx.Exec(`DELETE FROM key_signature WHERE target_user = $1 AND target = $2`, user, device); err != nil {
		return false, err
	}
	_, err = tx.Exec(`INSERT INTO device_key (user_id, device_id, json) VALUES ($1, $2, $3)
		ON CONFLICT (user_id, device_id) DO UPDATE SET json = excluded.json`, user, device, string(keys))
	return err == nil, err
}

// DeviceKeys returns the identity keys of all devices of these users.
func (s *Store) DeviceKeys(ctx context.Context, users []matrix.UserID) (out []DeviceKeys, err error) {
	for part := range slices.Chunk(users, chunk) {
		err = s.Each(ctx, func(scan func(...any) error) error {
			var k DeviceKeys
			var name sql.NullString
			var text []byte
			err := scan(&k.User, &k.Device, &text, &name)
			k.JSON, k.Name = text, name.String
			out = append(out, k)
			return err
		}, `SELECT k.user_id, k.device_id, k.json, d.display_name FROM device_key k
			LEFT JOIN device d ON d.user_id = k.user_id AND d.device_id = k.device_id
			WHERE k.user_id IN `+sqldb.In(1, len(part)), sqldb.Args(part)...)
		if err != nil {
			return nil, fmt.Errorf("device keys: %w", err)
		}
	}
	return out, nil
}

// OneTimeKey is a one-time or a fallback key.
type OneTimeKey struct {
	Algorithm, ID string
	JSON          json.RawMessage // canonical
}

// ErrKeyExists means that a one-time key of this ID, but other content, is there.
var ErrKeyExists = errors.New("there is another one-time key of this ID")

// AddOneTimeKeys stores one-time keys of a device. What is there already is left
// alone; the error is [ErrKeyExists] if it has other content.
func (s *Store) AddOneTimeKeys(tx *sqldb.Tx, user matrix.UserID, device matrix.DeviceID, keys []OneTimeKey) error {
	if len(keys) == 0 {
		return nil
	}
	var n int64
	if err := tx.QueryRow(`SELECT COALESCE(MAX(n), 0) + 1 FROM one_time_key WHERE user_id = $1 AND device_id = $2`, user, device).Scan(&n); err != nil {
		return err
	}
	for _, k := range keys {
		result, err := tx.Exec(`INSERT INTO one_time_key (user_id, device_id, algorithm, key_id, json, n) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING`,
			user, device, k.Algorithm, k.ID, string(k.JSON), n)
		if err != nil {
			return err
		}
		if rows, err := result.RowsAffected(); err != nil || rows == 1 {
			if err != nil {
				return err
			}
			continue
		}
		var before string
		if err := tx.QueryRow(`SELECT json FROM one_time_key WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND key_id = $4`,
			user, device, k.Algorithm, k.ID).Scan(&before); err != nil {
			return err
		}
		if before != string(k.JSON) {
			return fmt.Errorf("%s:%s: %w", k.Algorithm, k.ID, ErrKeyExists)
		}
	}
	return nil
}

// PutFallbackKey stores a device's fallback key of an algorithm. It counts as
// unused unless it is the one that is there.
func (s *Store) PutFallbackKey(tx *sqldb.Tx, user matrix.UserID, device matrix.DeviceID, k OneTimeKey) error {
	_, err := tx.Exec(`INSERT INTO fallback_key (user_id, device_id, algorithm, key_id, json, used) VALUES ($1, $2, $3, $4, $5, FALSE)
		ON CONFLICT (user_id, device_id, algorithm) DO UPDATE SET key_id = excluded.key_id, json = excluded.json,
		used = (fallback_key.used AND fallback_key.json = excluded.json AND fallback_key.key_id = excluded.key_id)`,
		user, device, k.Algorithm, k.ID, string(k.JSON))
	return err
}

// ClaimKey takes the oldest one-time key of a device, which nobody will get again,
// or its fallback key if there is none left; [ErrNotFound] if it has neither.
func (s *Store) ClaimKey(tx *sqldb.Tx, user matrix.UserID, device matrix.DeviceID, algorithm string) (*OneTimeKey, error) {
	k := OneTimeKey{Algorithm: algorithm}
	var text []byte
	err := tx.QueryRow(`DELETE FROM one_time_key WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND key_id = (
		SELECT key_id FROM one_time_key WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 ORDER BY n, key_id LIMIT 1)
		RETURNING key_id, json`, user, device, algorithm).Scan(&k.ID, &text)
	if errors.Is(err, sql.ErrNoRows) {
		err = tx.QueryRow(`UPDATE fallback_key SET used = TRUE WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 RETURNING key_id, json`,
			user, device, algorithm).Scan(&k.ID, &text)
	}
	if err != nil {
		return nil, one(err)
	}
	k.JSON = text
	return &k, nil
}

// KeyCounts returns how many one-time keys a device has left of each algorithm,
// signed_curve25519 always among them, and of which its fallback key is unused.
// unusedFallback is never nil.
func (s *Store) KeyCounts(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (counts map[string]int, unusedFallback []string, err error) {
	counts, unusedFallback = map[string]int{"signed_curve25519": 0}, []string{}
	err = s.Each(ctx, func(scan func(...any) error) error {
		var algorithm string
		var n int
		if err := scan(&algorithm, &n); err != nil {
			return err
		}
		if n < 0 {
			unusedFallback = append(unusedFallback, algorithm)
			return nil
		}
		counts[algorithm] = n
		return nil
	}, `SELECT algorithm, count(*) FROM one_time_key WHERE user_id = $1 AND device_id = $2 GROUP BY algorithm
		UNION ALL SELECT algorithm, -1 FROM fallback_key WHERE user_id = $1 AND device_id = $2 AND NOT used`, user, device)
	return counts, unusedFallback, err
}

// CrossSigningKey of a user.
type CrossSigningKey struct {
	User  matrix.UserID
	Usage string // master, self_signing or user_signing
	JSON  json.RawMessage
}

// PutCrossSigningKey stores a key in the place of that of the same usage.
func (s *Store) PutCrossSigningKey(tx *sqldb.Tx, k CrossSigningKey) error {
	_, err := tx.Exec(`INSERT INTO cross_signing_key (user_id, usage, json) VALUES ($1, $2, $3)
		ON CONFLICT (user_id, usage) DO UPDATE SET json = excluded.json`, k.User, k.Usage, string(k.JSON))
	return err
}

// CrossSigningKeys returns the keys of these users.
func (s *Store) CrossSigningKeys(ctx context.Context, users []matrix.UserID) (out []CrossSigningKey, err error) {
	for part := range slices.Chunk(users, chunk) {
		err = s.Each(ctx, func(scan func(...any) error) error {
			var k CrossSigningKey
			var text []byte
			err := scan(&k.User, &k.Usage, &text)
			k.JSON = text
			out = append(out, k)
			return err
		}, `SELECT user_id, usage, json FROM cross_signing_key WHERE user_id IN `+sqldb.In(1, len(part)), sqldb.Args(part)...)
		if err != nil {
			return nil, fmt.Errorf("cross-signing keys: %w", err)
		}
	}
	return out, nil
}

// KeySignature was uploaded apart from what it signs.
type KeySignature struct {
	User      matrix.UserID // whose key it signs
	Target    string        // a device ID, or the public part of a master key
	Signer    matrix.UserID
	KeyID     string // with algorithm
	Signature string
}

// PutKeySignature stores a signature.
func (s *Store) PutKeySignature(tx *sqldb.Tx, k KeySignature) error {
	_, err := tx.Exec(`INSERT INTO key_signature (target_user, target, signer, key_id, signature) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (target_user, target, signer, key_id) DO UPDATE SET signature = excluded.signature`, k.User, k.Target, k.Signer, k.KeyID, k.Signature)
	return err
}

// KeySignatures returns the signatures of these users' keys that viewer may see:
// those by their owners and by the viewer.
func (s *Store) KeySignatures(ctx context.Context, viewer matrix.UserID, users []matrix.UserID) (out []KeySignature, err error) {
	for part := range slices.Chunk(users, chunk) {
		err = s.Each(ctx, func(scan func(...any) error) error {
			var k KeySignature
			err := scan(&k.User, &k.Target, &k.Signer, &k.KeyID, &k.Signature)
			out = append(out, k)
			return err
		}, `SELECT target_user, target, signer, key_id, signature FROM key_signature
			WHERE (signer = target_user OR signer = $1) AND target_user IN `+sqldb.In(2, len(part)), append([]any{viewer}, sqldb.Args(part)...)...)
		if err != nil {
			return nil, fmt.Errorf("key signatures: %w", err)
		}
	}
	return out, nil
}

// DropKeySignatures removes what a user's former cross-signing key has signed and
// the signatures it has.
func (s *Store) DropKeySignatures(tx *sqldb.Tx, user matrix.UserID, keyID, public string) error {
	_, err := tx.Exec(`DELETE FROM key_signature WHERE signer = $1 AND key_id = $2 OR target_user = $1 AND target = $3`, user, keyID, public)
	return err
}

// MembersMoved returns the other users whose membership, or profile, changed with
// from < pos ≤ to in a room that a user is in; and all that are in a room where
// that of the user did. Of a room that the user has left, it is those who were in it
// by then; of one they were never in, nobody.
func (s *Store) MembersMoved(ctx context.Context, user matrix.UserID, from, to Pos) (out []matrix.UserID, err error) {
	left, err := s.memberships(ctx, `SELECT room_id, state_key, membership, event_pos FROM current_state
		WHERE type = 'm.room.member' AND state_key = $1 AND membership <> 'join' AND event_pos > $2`, user, from)
	if err != nil {
		return nil, err
	}
	users := func(query string, args ...any) error {
		return s.Each(ctx, func(scan func(...any) error) error {
			var u matrix.UserID
			err := scan(&u)
			out = append(out, u)
			return err
		}, query, args...)
	}
	for _, m := range left {
		until, err := s.leftAt(ctx, m)
		if err != nil {
			return nil, err
		}
		if until <= from {
			continue
		}
		err = users(`SELECT DISTINCT state_key FROM state_change WHERE room_id = $1 AND type = 'm.room.member' AND pos <= $2 AND state_key <> $3`, m.Room, until, user)
		if err != nil {
			return nil, err
		}
	}
	err = users(`WITH mine AS (SELECT room_id, event_pos FROM current_state WHERE type = 'm.room.member' AND state_key = $1 AND membership = 'join')
		SELECT c.state_key FROM state_change c JOIN mine ON mine.room_id = c.room_id
			WHERE c.type = 'm.room.member' AND c.pos > $2 AND c.pos <= $3 AND c.state_key <> $1
		UNION SELECT o.state_key FROM current_state o JOIN mine ON mine.room_id = o.room_id AND mine.event_pos > $2
			WHERE o.type = 'm.room.member' AND o.membership = 'join' AND o.state_key <> $1`, user, from, to)
	slices.Sort(out)
	return slices.Compact(out), err
}

// leftAt is the number of the event by which a user left a room that they are not in,
// 0 if they never were.
func (s *Store) leftAt(ctx context.Context, m Membership) (until Pos, err error) {
	history, err := s.MembershipHistory(ctx, m.Room, m.User)
	for i, h := range history {
		if h.Membership == matrix.Join && i+1 < len(history) {
			until = history[i+1].Pos
		}
	}
	return until, err
}
