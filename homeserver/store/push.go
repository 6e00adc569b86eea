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

// UpdateAccountData replaces an entry of account data by what change makes of it;
// of nil, if there is none. Nothing comes between its reading and its writing.
func (s *Store) UpdateAccountData(tx *sqldb.Tx, user matrix.UserID, room matrix.RoomID, typ string, change func(json.RawMessage) (json.RawMessage, error)) (Pos, error) {
	var before []byte
	err := tx.QueryRow(`SELECT content FROM account_data WHERE user_id = $1 AND room_id = $2 AND type = $3`, user, room, typ).Scan(&before)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("account data %s of %s: %w", typ, user, err)
	}
	after, err := change(before)
	if err != nil {
		return 0, err
	}
	return s.SetAccountData(tx, user, AccountData{Room: room, Type: typ, Content: after})
}

// Pusher is where notifications of a user are to be sent.
type Pusher struct {
	User       matrix.UserID
	AppID, Key string
	Device     matrix.DeviceID // that set it
	JSON       json.RawMessage // as the client gave it
}

// PutPusher stores a pusher in the place of the one with the same app and key.
// Unless others may have that too, theirs are removed.
func (s *Store) PutPusher(tx *sqldb.Tx, p Pusher, others bool) error {
	if !others {
		if _, err := tx.Exec(`DELETE FROM pusher WHERE app_id = $1 AND pushkey = $2 AND user_id <> $3`, p.AppID, p.Key, p.User); err != nil {
			return err
		}
	}
	_, err := tx.Exec(`INSERT INTO pusher (user_id, app_id, pushkey, device_id, json) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (user_id, app_id, pushkey) DO UPDATE SET device_id = excluded.device_id, json = excluded.json`, p.User, p.AppID, p.Key, p.Device, string(p.JSON))
	return err
}

// DeletePusher removes a user's pusher.
func (s *Store) DeletePusher(tx *sqldb.Tx, user matrix.UserID, appID, key string) error {
	_, err := tx.Exec(`DELETE FROM pusher WHERE user_id = $1 AND app_id = $2 AND pushkey = $3`, user, appID, key)
	return err
}

// Pushers of a user.
func (s *Store) Pushers(ctx context.Context, user matrix.UserID) (out []Pusher, err error) {
	err = s.Each(ctx, func(scan func(...any) error) error {
		p := Pusher{User: user}
		var text []byte
		err := scan(&p.AppID, &p.Key, &p.Device, &text)
		p.JSON = text
		out = append(out, p)
		return err
	}, `SELECT app_id, pushkey, device_id, json FROM pusher WHERE user_id = $1 ORDER BY app_id, pushkey`, user)
	return out, err
}

// PutOpenIDToken stores a token by its hash.
func (s *Store) PutOpenIDToken(tx *sqldb.Tx, hash string, user matrix.UserID, expires, now int64) error {
	if _, err := tx.Exec(`DELETE FROM openid_token WHERE expires < $1`, now); err != nil {
		return err
	}
	_, err := tx.Exec(`INSERT INTO openid_token (hash, user_id, expires) VALUES ($1, $2, $3)`, hash, user, expires)
	return err
}

// OpenIDUser returns whom a token, by its hash, proves; [ErrNotFound] if nobody.
func (s *Store) OpenIDUser(ctx context.Context, hash string, now int64) (u matrix.UserID, err error) {
	err = one(s.QueryRow(ctx, `SELECT user_id FROM openid_token WHERE hash = $1 AND expires >= $2`, hash, now).Scan(&u))
	return u, err
}
