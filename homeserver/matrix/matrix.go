// Package matrix is the vocabulary of the Matrix protocol: identifiers, events
// as clients see them, errors, and application-service registrations.
//
// It has no behaviour beyond parsing and printing these, and imports nothing
// of ours.
package matrix

import (
	"encoding/json"
)

// Event is an event in the form clients and application services receive.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#room-event-format
type Event struct {
	Type           string          `json:"type"`
	ID             EventID         `json:"event_id,omitempty"`
	RoomID         RoomID          `json:"room_id,omitempty"` // absent in /sync, where the room is the key
	Sender         UserID          `json:"sender"`
	StateKey       *string         `json:"state_key,omitempty"`
	OriginServerTS int64           `json:"origin_server_ts,omitempty"` // milliseconds since the Unix epoch
	Content        json.RawMessage `json:"content"`
	Redacts        EventID         `json:"redacts,omitempty"`
	Unsigned       json.RawMessage `json:"unsigned,omitempty"`
}

// IsState reports whether e has a state key, be it empty.
func (e *Event) IsState() bool { return e.StateKey != nil }

// NewEvent is what a local user wants to send; the room adds the rest.
type NewEvent struct {
	RoomID   RoomID
	Type     string
	Sender   UserID
	StateKey *string // nil for a message event
	Content  json.RawMessage
	Redacts  EventID // for m.room.redaction
}

// StateKey is the address of a piece of room state.
type StateKey struct{ Type, Key string }

// Event types that the server itself gives a meaning to.
const (
	TypeCreate            = "m.room.create"
	TypeMember            = "m.room.member"
	TypePowerLevels       = "m.room.power_levels"
	TypeJoinRules         = "m.room.join_rules"
	TypeHistoryVisibility = "m.room.history_visibility"
	TypeGuestAccess       = "m.room.guest_access"
	TypeCanonicalAlias    = "m.room.canonical_alias"
	TypeAliases           = "m.room.aliases"
	TypeName              = "m.room.name"
	TypeTopic             = "m.room.topic"
	TypeAvatar            = "m.room.avatar"
	TypeEncryption        = "m.room.encryption"
	TypeEncrypted         = "m.room.encrypted"
	TypeMessage           = "m.room.message"
	TypeReaction          = "m.reaction"
	TypeRedaction         = "m.room.redaction"
	TypeThirdPartyInvite  = "m.room.third_party_invite"
	TypeServerACL         = "m.room.server_acl"
	TypeTombstone         = "m.room.tombstone"
	TypePinnedEvents      = "m.room.pinned_events"
)

// Memberships of m.room.member.
const (
	Join   = "join"
	Invite = "invite"
	Leave  = "leave"
	Ban    = "ban"
	Knock  = "knock"
)
