package clientapi

import (
	"encoding/json"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

func (a *api) toDeviceRoutes() []route {
	return []route{{"PUT", "/v3/sendToDevice/{eventType}/{txnID}", user, (*api).putSendToDevice}}
}

// putSendToDevice: https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3sendtodeviceeventtypetxnid
//
// The same device and transaction ID again sends nothing.
func (a *api) putSendToDevice(r *request) (any, error) {
	var in struct {
		Messages map[matrix.UserID]map[matrix.DeviceID]json.RawMessage `json:"messages"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if in.Messages == nil {
		return nil, matrix.MissingParam("No messages")
	}
	typ := r.PathValue("eventType")
	var to []store.ToDeviceTarget
	for u, devices := range in.Messages {
		if u.Server() != a.ServerName {
			continue
		}
		for d, content := range devices {
			if first(content) != '{' {
				return nil, matrix.BadJSON("The content of a message is not an object")
			}
			to = append(to, store.ToDeviceTarget{User: u, Device: d, Content: content})
		}
	}
	return empty, a.Store.Write(r.Context(), func(tx *sqldb.Tx) error {
		fresh, err := a.Store.NoteTxn(tx, r.user, r.device, "to_device "+typ+" "+r.PathValue("txnID"), time.Now().UnixMilli())
		if err != nil || !fresh {
			return err
		}
		pos, users, err := a.Store.SendToDevice(tx, r.user, typ, to)
		if err == nil && pos > 0 {
			tx.OnCommit(func() { a.Hub.Notify(pos, nil, users) })
		}
		return err
	})
}
