package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// ToDeviceMessage waits for a device.
type ToDeviceMessage struct {
	Pos     Pos
	Sender  matrix.UserID
	Type    string
	Content json.RawMessage
}

// ToDeviceTarget is where a message is to go and what it says.
type ToDeviceTarget struct {
	User    matrix.UserID
	Device  matrix.DeviceID // "*" is all that the user has
	Content json.RawMessage
}

var insertToDevice = &sqldb.Insert{Table: "to_device", Columns: []string{"user_id", "device_id", "pos", "sender", "type", "content"}}

// SendToDevice queues messages for devices of local users, each under a position of
// its own, and returns the last position and who is concerned. Devices that are not
// there are passed over; the position is 0 if none is.
func (s *Store) SendToDevice(tx *sqldb.Tx, sender matrix.UserID, typ string, to []ToDeviceTarget) (Pos, []matrix.UserID, error) {
	devices := map[matrix.UserID][]matrix.DeviceID{}
	var last Pos
	var users []matrix.UserID
	for _, t := range to {
		list, asked := devices[t.User]
		if !asked {
			var err error
			if list, err = s.deviceIDs(tx, t.User); err != nil {
				return 0, nil, fmt.Errorf("send to device: %w", err)
			}
			devices[t.User] = list
		}
		for _, d := range list {
			if t.Device != "*" && t.Device != d {
				continue
			}
			pos, err := tx.NextPos(1)
			if err != nil {
				return 0, nil, err
			}
			tx.Queue(insertToDevice, string(t.User), string(d), pos, string(sender), typ, string(t.Content))
			last, users = pos, append(users, t.User)
		}
	}
	return last, users, nil
}

func (s *Store) deviceIDs(tx *sqldb.Tx, user matrix.UserID) (out []matrix.DeviceID, err error) {
	err = tx.Each(func(scan func(...any) error) error {
		var d matrix.DeviceID
		err := scan(&d)
		out = append(out, d)
		return err
	}, `SELECT device_id FROM device WHERE user_id = $1`, user)
	return out, err
}

// NoteTxn notes that a device has done something under a transaction ID that makes
// no event, and reports whether it is the first time.
func (s *Store) NoteTxn(tx *sqldb.Tx, user matrix.UserID, device matrix.DeviceID, txnID string, now int64) (bool, error) {
	result, err := tx.Exec(`INSERT INTO transaction_id (user_id, device_id, txn_id, event_id, ts) VALUES ($1, $2, $3, '', $4) ON CONFLICT DO NOTHING`,
		user, device, txnID, now)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n == 1, err
}

// ToDevice returns at most limit messages that wait for a device, with
// after < pos ≤ upTo, oldest first.
func (s *Store) ToDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID, after, upTo Pos, limit int) (out []ToDeviceMessage, err error) {
	err = s.Each(ctx, func(scan func(...any) error) error {
		var m ToDeviceMessage
		var content []byte
		err := scan(&m.Pos, &m.Sender, &m.Type, &content)
		m.Content = content
		out = append(out, m)
		return err
	}, `SELECT pos, sender, type, content FROM to_device WHERE user_id = $1 AND device_id = $2 AND pos > $3 AND pos <= $4 ORDER BY pos LIMIT $5`,
		user, device, after, upTo, limit)
	return out, err
}

// DeleteToDevice removes the messages that a device has acknowledged: those with
// pos ≤ upTo. Where there are none it writes nothing.
func (s *Store) DeleteToDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID, upTo Pos) error {
	old, err := s.ToDevice(ctx, user, device, 0, upTo, 1)
	if err != nil || len(old) == 0 {
		return err
	}
	return s.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`DELETE FROM to_device WHERE user_id = $1 AND device_id = $2 AND pos <= $3`, user, device, upTo)
		return err
	})
}
