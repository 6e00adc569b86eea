package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// KeyBackup is a version of a user's backup of room keys.
type KeyBackup struct {
	User      matrix.UserID
	Version   int64
	Algorithm string
	AuthData  json.RawMessage
	ETag      int64 // grows with each change of the keys
	Count     int   // of keys
}

// BackedUpKey is a room key in a backup.
type BackedUpKey struct {
	Room           matrix.RoomID
	Session        string
	FirstIndex     int64
	ForwardedCount int64
	Verified       bool
	Data           json.RawMessage // encrypted by the client
}

// CreateKeyBackup makes a new version, which becomes the current one.
func (s *Store) CreateKeyBackup(tx *sqldb.Tx, b KeyBackup) (version int64, err error) {
	err = tx.QueryRow(`INSERT INTO room_key_backup (user_id, version, algorithm, auth_data)
		VALUES ($1, (SELECT COALESCE(MAX(version), 0) + 1 FROM room_key_backup WHERE user_id = $1), $2, $3) RETURNING version`,
		b.User, b.Algorithm, string(b.AuthData)).Scan(&version)
	return version, err
}

// KeyBackup returns a version of a user's backup, the current one for 0;
// [ErrNotFound] if there is none.
func (s *Store) KeyBackup(ctx context.Context, user matrix.UserID, version int64) (*KeyBackup, error) {
	b := KeyBackup{User: user}
	var auth []byte
	err := s.QueryRow(ctx, `SELECT version, algorithm, auth_data, etag,
		(SELECT count(*) FROM room_key k WHERE k.user_id = b.user_id AND k.version = b.version)
		FROM room_key_backup b WHERE user_id = $1 AND NOT deleted AND (version = $2 OR $2 = 0) ORDER BY version DESC LIMIT 1`, user, version).
		Scan(&b.Version, &b.Algorithm, &auth, &b.ETag, &b.Count)
	b.AuthData = auth
	if err != nil {
		return nil, fmt.Errorf("key backup %d of %s: %w", version, user, one(err))
	}
	return &b, nil
}

// SetKeyBackupAuth replaces the auth data of a version.
func (s *Store) SetKeyBackupAuth(tx *sqldb.Tx, user matrix.UserID, version int64, auth json.RawMessage) error {
	_, err := tx.Exec(`UPDATE room_key_backup SET auth_data = $1 WHERE user_id = $2 AND version = $3`, string(auth), user, version)
	return err
}

// DeleteKeyBackup removes a version with its keys; [ErrNotFound] if there is none.
func (s *Store) DeleteKeyBackup(tx *sqldb.Tx, user matrix.UserID, version int64) error {
	result, err := tx.Exec(`UPDATE room_key_backup SET deleted = TRUE WHERE user_id = $1 AND version = $2 AND NOT deleted`, user, version)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, ErrNotFound)
	}
	_, err = tx.Exec(`DELETE FROM room_key WHERE user_id = $1 AND version = $2`, user, version)
	return err
}

// ErrNotCurrent means that there is a newer version of the backup.
var ErrNotCurrent = errors.New("not the current backup")

// CheckCurrentBackup is [ErrNotCurrent] with the number of the current version if
// that is another, and [ErrNotFound] if there is no such version.
func (s *Store) CheckCurrentBackup(tx *sqldb.Tx, user matrix.UserID, version int64) (current int64, err error) {
	var known int
	err = tx.QueryRow(`SELECT COALESCE(MAX(version), 0), count(CASE WHEN version = $2 THEN 1 END) FROM room_key_backup WHERE user_id = $1 AND NOT deleted`,
		user, version).Scan(&current, &known)
	switch {
	case err != nil:
		return 0, err
	case known == 0:
		return current, ErrNotFound
	case current != version:
		return current, ErrNotCurrent
	}
	return current, nil
}

// PutBackedUpKeys stores keys in a version of a backup. A key that is there stays,
// unless the new one is better: verified if that is not, or else of a lower first
// index, or else forwarded less often.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#storing-a-backed-up-key
func (s *Store) PutBackedUpKeys(tx *sqldb.Tx, user matrix.UserID, version int64, keys []BackedUpKey) error {
	changed := int64(0)
	for _, k := range keys {
		result, err := tx.Exec(`INSERT INTO room_key AS old (user_id, version, room_id, session_id, first_message_index, forwarded_count, is_verified, session_data)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
			ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE SET first_message_index = excluded.first_message_index,
				forwarded_count = excluded.forwarded_count, is_verified = excluded.is_verified, session_data = excluded.session_data
			WHERE excluded.is_verified AND NOT old.is_verified OR excluded.is_verified = old.is_verified AND (
				excluded.first_message_index < old.first_message_index OR
				excluded.first_message_index = old.first_message_index AND excluded.forwarded_count < old.forwarded_count)`,
			user, version, k.Room, k.Session, k.FirstIndex, k.ForwardedCount, k.Verified, string(k.Data))
		if err != nil {
			return fmt.Errorf("back up key: %w", err)
		}
		n, err := result.RowsAffected()
		if err != nil {
			return err
		}
		changed += n
	}
	return s.keysChanged(tx, user, version, changed)
}

func (s *Store) keysChanged(tx *sqldb.Tx, user matrix.UserID, version, changed int64) error {
	if changed == 0 {
		return nil
	}
	_, err := tx.Exec(`UPDATE room_key_backup SET etag = etag + 1 WHERE user_id = $1 AND version = $2`, user, version)
	return err
}

// ofKeys is the condition for the keys of a version: of a room unless that is "",
// of a session unless that is.
const ofKeys = ` user_id = $1 AND version = $2 AND (room_id = $3 OR $3 = '') AND (session_id = $4 OR $4 = '')`

// BackedUpKeys returns keys of a version: all, those of a room, or one.
func (s *Store) BackedUpKeys(ctx context.Context, user matrix.UserID, version int64, room matrix.RoomID, session string) (out []BackedUpKey, err error) {
	err = s.Each(ctx, func(scan func(...any) error) error {
		var k BackedUpKey
		var data []byte
		err := scan(&k.Room, &k.Session, &k.FirstIndex, &k.ForwardedCount, &k.Verified, &data)
		k.Data = data
		out = append(out, k)
		return err
	}, `SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data FROM room_key WHERE`+ofKeys, user, version, string(room), session)
	return out, err
}

// DeleteBackedUpKeys removes what BackedUpKeys would return.
func (s *Store) DeleteBackedUpKeys(tx *sqldb.Tx, user matrix.UserID, version int64, room matrix.RoomID, session string) error {
	var exists sql.NullInt64
	if err := one(tx.QueryRow(`SELECT version FROM room_key_backup WHERE user_id = $1 AND version = $2 AND NOT deleted`, user, version).Scan(&exists)); err != nil {
		return err
	}
	result, err := tx.Exec(`DELETE FROM room_key WHERE`+ofKeys, user, version, string(room), session)
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err != nil {
		return err
	}
	return s.keysChanged(tx, user, version, n)
}
