package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// Account of a local user.
type Account struct {
	User         matrix.UserID
	PasswordHash string
	Admin        bool
	Deactivated  bool
	Locked       bool
	Suspended    bool
	AppService   string
}

// Account returns a local user's account; [ErrNotFound] if there is none.
func (s *Store) Account(ctx context.Context, user matrix.UserID) (*Account, error) {
	a := Account{User: user}
	var hash, as sql.NullString
	err := s.QueryRow(ctx, `SELECT password_hash, admin, deactivated, locked, suspended, appservice FROM account WHERE user_id = $1`, user).
		Scan(&hash, &a.Admin, &a.Deactivated, &a.Locked, &a.Suspended, &as)
	if err != nil {
		return nil, fmt.Errorf("account %s: %w", user, one(err))
	}
	a.PasswordHash, a.AppService = hash.String, as.String
	return &a, nil
}

// AnyUser returns one of the local users; [ErrNotFound] if there is none.
func (s *Store) AnyUser(ctx context.Context) (u matrix.UserID, err error) {
	err = s.QueryRow(ctx, `SELECT user_id FROM account LIMIT 1`).Scan(&u)
	return u, one(err)
}

// CreateAccount makes an account and reports whether the name was free.
func (s *Store) CreateAccount(tx *sqldb.Tx, a Account, now int64) (bool, error) {
	result, err := tx.Exec(`INSERT INTO account (user_id, password_hash, created, admin, appservice) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`,
		a.User, optional(a.PasswordHash), now, a.Admin, optional(a.AppService))
	if err != nil {
		return false, fmt.Errorf("create account %s: %w", a.User, err)
	}
	n, err := result.RowsAffected()
	return n == 1, err
}

// SetPassword of an account; "" takes it away.
func (s *Store) SetPassword(tx *sqldb.Tx, user matrix.UserID, hash string) error {
	_, err := tx.Exec(`UPDATE account SET password_hash = $1 WHERE user_id = $2`, optional(hash), user)
	return err
}

// Deactivate closes an account for good.
func (s *Store) Deactivate(tx *sqldb.Tx, user matrix.UserID) error {
	_, err := tx.Exec(`UPDATE account SET deactivated = TRUE, password_hash = NULL WHERE user_id = $1`, user)
	return err
}

// Device of a user.
type Device struct {
	ID          matrix.DeviceID `json:"device_id"`
	DisplayName string          `json:"display_name,omitempty"`
	LastSeenTS  int64           `json:"last_seen_ts,omitempty"` // ms
	LastSeenIP  string          `json:"last_seen_ip,omitempty"`
	User        matrix.UserID   `json:"user_id,omitempty"`
}

// PutDevice makes a device, or names it if it is there and name is not empty.
func (s *Store) PutDevice(tx *sqldb.Tx, user matrix.UserID, id matrix.DeviceID, name string) error {
	_, err := tx.Exec(`INSERT INTO device (user_id, device_id, display_name) VALUES ($1, $2, $3)
		ON CONFLICT (user_id, device_id) DO UPDATE SET display_name = COALESCE(excluded.display_name, device.display_name)`, user, id, optional(name))
	return err
}

// Devices of a user.
func (s *Store) Devices(ctx context.Context, user matrix.UserID) (out []Device, err error) {
	err = s.Each(ctx, func(scan func(...any) error) error {
		d := Device{User: user}
		var name, ip sql.NullString
		var ts sql.NullInt64
		err := scan(&d.ID, &name, &ts, &ip)
		d.DisplayName, d.LastSeenTS, d.LastSeenIP = name.String, ts.Int64, ip.String
		out = append(out, d)
		return err
	}, `SELECT device_id, display_name, last_seen_ts, last_seen_ip FROM device WHERE user_id = $1 ORDER BY device_id`, user)
	return out, err
}

// DeleteDevice removes a device with its tokens, keys and messages.
func (s *Store) DeleteDevice(tx *sqldb.Tx, user matrix.UserID, id matrix.DeviceID) error {
	if _, err := tx.Exec(`DELETE FROM access_token WHERE user_id = $1 AND device_id = $2`, user, id); err != nil {
		return err
	}
	if _, err := tx.Exec(`DELETE FROM device WHERE user_id = $1 AND device_id = $2`, user, id); err != nil {
		return err
	}
	return s.deviceGone(tx, user, id)
}

// Session is what an access token stands for.
type Session struct {
	User    matrix.UserID
	Device  matrix.DeviceID
	Expires int64 // ms; 0 is never
}

// InsertToken stores an access token by its hash, with its refresh token's or "".
func (s *Store) InsertToken(tx *sqldb.Tx, hash string, session Session, refreshHash string) error {
	var expires any
	if session.Expires > 0 {
		expires = session.Expires
	}
	_, err := tx.Exec(`INSERT INTO access_token (hash, user_id, device_id, expires, refresh_hash) VALUES ($1, $2, $3, $4, $5)`,
		hash, session.User, session.Device, expires, optional(refreshHash))
	return err
}

// Session returns what the token with this hash stands for; [ErrNotFound] if none.
func (s *Store) Session(ctx context.Context, hash string) (Session, error) {
	var out Session
	var expires sql.NullInt64
	err := s.QueryRow(ctx, `SELECT user_id, device_id, expires FROM access_token WHERE hash = $1`, hash).Scan(&out.User, &out.Device, &expires)
	out.Expires = expires.Int64
	return out, one(err)
}

// Profile returns a user's profile fields as JSON.
func (s *Store) Profile(ctx context.Context, user matrix.UserID) (map[string]json.RawMessage, error) {
	out := map[string]json.RawMessage{}
	err := s.Each(ctx, func(scan func(...any) error) error {
		var k string
		var v []byte
		err := scan(&k, &v)
		out[k] = v
		return err
	}, `SELECT field, value FROM profile WHERE user_id = $1`, user)
	return out, err
}

// SetProfile sets a field of a profile; nil removes it.
func (s *Store) SetProfile(tx *sqldb.Tx, user matrix.UserID, field string, value json.RawMessage) error {
	if value == nil {
		_, err := tx.Exec(`DELETE FROM profile WHERE user_id = $1 AND field = $2`, user, field)
		return err
	}
	_, err := tx.Exec(`INSERT INTO profile (user_id, field, value) VALUES ($1, $2, $3) ON CONFLICT (user_id, field) DO UPDATE SET value = excluded.value`, user, field, string(value))
	return err
}

// AccountData is an entry of account data.
type AccountData struct {
	Room    matrix.RoomID // "" is global
	Type    string
	Content json.RawMessage
}

// SetAccountData stores an entry under a new position.
func (s *Store) SetAccountData(tx *sqldb.Tx, user matrix.UserID, d AccountData) (Pos, error) {
	pos, err := tx.NextPos(1)
	if err != nil {
		return 0, err
	}
	_, err = tx.Exec(`INSERT INTO account_data (user_id, room_id, type, content, pos) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = excluded.content, pos = excluded.pos`, user, d.Room, d.Type, string(d.Content), pos)
	return pos, err
}

// AccountData returns an entry's content; [ErrNotFound] if there is none.
func (s *Store) AccountData(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string) (json.RawMessage, error) {
	var content []byte
	err := s.QueryRow(ctx, `SELECT content FROM account_data WHERE user_id = $1 AND room_id = $2 AND type = $3`, user, room, typ).Scan(&content)
	return content, one(err)
}

// AccountDataSince returns a user's entries that changed after from and not after to.
func (s *Store) AccountDataSince(ctx context.Context, user matrix.UserID, from, to Pos) (out []AccountData, err error) {
	err = s.Each(ctx, func(scan func(...any) error) error {
		var d AccountData
		var content []byte
		err := scan(&d.Room, &d.Type, &content)
		d.Content = content
		out = append(out, d)
		return err
	}, `SELECT room_id, type, content FROM account_data WHERE user_id = $1 AND pos > $2 AND pos <= $3 ORDER BY pos`, user, from, to)
	return out, err
}

// PutFilter stores a filter under an ID made of its content.
func (s *Store) PutFilter(tx *sqldb.Tx, user matrix.UserID, id string, content json.RawMessage) error {
	_, err := tx.Exec(`INSERT INTO filter (user_id, filter_id, content) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, user, id, string(content))
	return err
}

// Filter returns a stored filter; [ErrNotFound] if there is none.
func (s *Store) Filter(ctx context.Context, user matrix.UserID, id string) (json.RawMessage, error) {
	var content []byte
	err := s.QueryRow(ctx, `SELECT content FROM filter WHERE user_id = $1 AND filter_id = $2`, user, id).Scan(&content)
	return content, one(err)
}
