package clientapi

import (
	"encoding/json"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

// unsigned is what the server adds to an event for a client.
type unsigned struct {
	Age             int64           `json:"age"`
	TxnID           string          `json:"transaction_id,omitempty"`
	Membership      string          `json:"membership,omitempty"` // of the one who asks, at the event
	PrevContent     json.RawMessage `json:"prev_content,omitempty"`
	PrevSender      matrix.UserID   `json:"prev_sender,omitempty"`
	ReplacesState   matrix.EventID  `json:"replaces_state,omitempty"`
	RedactedBecause *matrix.Event   `json:"redacted_because,omitempty"`
}

func newUnsigned(e *store.Event, r *request) unsigned {
	u := unsigned{Age: max(0, time.Now().UnixMilli()-e.OriginServerTS)}
	if e.TxnID != "" && e.Sender == r.user && e.TxnDevice == r.device {
		u.TxnID = e.TxnID
	}
	return u
}

func (u *unsigned) encode() json.RawMessage {
	b, err := json.Marshal(u)
	if err != nil { // content that was stored is JSON
		return json.RawMessage("{}")
	}
	return b
}
