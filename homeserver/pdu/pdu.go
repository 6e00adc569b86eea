// Package pdu is the persistent data unit: the event as servers exchange it. It
// parses, hashes, signs and redacts events of every room version.
//
// Spec: https://spec.matrix.org/v1.19/server-server-api/#pdus
package pdu

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/tidwall/gjson"

	"github.com/gjallar-im/gjallar/homeserver/canonicaljson"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

// Limits of an event.
const (
	MaxSize       = 65536 // bytes of canonical JSON, signatures included
	MaxPrevEvents = 20
	MaxAuthEvents = 10
	maxKey        = matrix.MaxIDLength // of sender, room_id, state_key, type and event_id
)

// ErrFormat is wrapped by errors about an event that is to be dropped: it is not
// one of its room version.
var ErrFormat = errors.New("malformed event")

// ErrTooLarge is wrapped, beside ErrFormat, if a limit of size is passed.
var ErrTooLarge = errors.New("event too large")

// Ref names an event. Hash is its reference hash, which only the format of room
// versions 1 and 2 carries.
type Ref struct {
	ID   matrix.EventID
	Hash string
}

// PDU is a parsed event. It is read-only and may be shared by goroutines.
type PDU struct {
	ID             matrix.EventID
	RoomID         matrix.RoomID // in versions whose room ID is a hash, filled in on the create event too
	Type           string
	Sender         matrix.UserID
	StateKey       *string
	Content        json.RawMessage
	Depth          int64
	OriginServerTS int64 // milliseconds since the Unix epoch
	PrevEvents     []matrix.EventID
	AuthEvents     []matrix.EventID
	Redacts        matrix.EventID // of a redaction, wherever the room version keeps it
	Rules          *roomversion.Rules
	// OverLimit: one of the identifiers has over 255 bytes, though not characters.
	// Versions that have no DropOverByteLimit reject the event but keep it.
	OverLimit bool

	raw []byte
}

// JSON returns the event in canonical form with its signatures and without
// unsigned. It is not to be changed.
func (p *PDU) JSON() []byte { return p.raw }

// IsState reports whether the event has a state key.
func (p *PDU) IsState() bool { return p.StateKey != nil }

// Is reports whether the event is the state of that type and key.
func (p *PDU) Is(typ, key string) bool {
	return p.StateKey != nil && p.Type == typ && *p.StateKey == key
}

// Key is the event's place in the room's state. It must be a state event.
func (p *PDU) Key() matrix.StateKey { return matrix.StateKey{Type: p.Type, Key: *p.StateKey} }

// Get returns a part of the content, by gjson path.
func (p *PDU) Get(path string) gjson.Result { return gjson.GetBytes(p.Content, path) }

// String returns a text of the content, "" if it is missing or of another type.
func (p *PDU) String(path string) string {
	if r := p.Get(path); r.Type == gjson.String {
		return r.Str
	}
	return ""
}

// Membership of a member event.
func (p *PDU) Membership() string { return p.String("membership") }

// Parse reads an event that came from outside, and computes its ID. unsigned is
// dropped. If the content hash is wrong the redacted form is what counts, and
// intact is false.
//
// Errors wrap [ErrFormat].
func Parse(rules *roomversion.Rules, raw []byte) (p *PDU, intact bool, err error) {
	canonical := canonicaljson.Canonical
	if rules.StrictJSON {
		canonical = canonicaljson.CanonicalStrict
	}
	if raw, err = canonical(raw); err != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if len(raw) == 0 || raw[0] != '{' {
		return nil, false, fmt.Errorf("%w: not an object", ErrFormat)
	}
	if len(raw) > MaxSize {
		return nil, false, fmt.Errorf("%w: %w: %d bytes", ErrFormat, ErrTooLarge, len(raw))
	}
	if err := complete(raw); err != nil {
		return nil, false, err
	}
	raw = without(raw, "unsigned")
	if intact = contentHashFits(raw); !intact {
		raw = Redact(rules, raw)
	}
	p, err = read(rules, raw)
	if err != nil {
		return nil, false, err
	}
	if p.ID == "" {
		p.ID = eventID(rules, raw)
	}
	return p, intact, p.finish(true)
}

// complete checks the keys that read does not look at, or not before redaction may
// have mended them.
func complete(raw []byte) error {
	const required = 3
	have := 0
	canonicaljson.Each(raw, func(key, value []byte) bool {
		switch string(key) {
		case "content", "signatures":
			if value[0] == '{' {
				have++
			}
		case "hashes":
			if value[0] == '{' && gjson.GetBytes(value, "sha256").Type == gjson.String {
				have++
			}
		}
		return true
	})
	if have != required {
		return fmt.Errorf("%w: content, hashes or signatures is missing or of another type", ErrFormat)
	}
	return nil
}

// ParseTrusted reads an event from our own store.
func ParseTrusted(rules *roomversion.Rules, id matrix.EventID, raw []byte) (*PDU, error) {
	p, err := read(rules, raw)
	if err != nil {
		return nil, err
	}
	p.ID = id
	return p, p.finish(false)
}

// finish fills in the room ID that a create event leaves out, and checks limits.
func (p *PDU) finish(check bool) error {
	if p.Rules.RoomIDIsCreateHash && p.Is(matrix.TypeCreate, "") && p.RoomID == "" { // else the authorisation rules reject it
		p.RoomID = RoomIDOf(p.ID)
	}
	for _, k := range p.identifiers() {
		p.OverLimit = p.OverLimit || len(k) > maxKey
	}
	if !check {
		return nil
	}
	if len(p.PrevEvents) > MaxPrevEvents || len(p.AuthEvents) > MaxAuthEvents {
		return fmt.Errorf("%w: %d prev_events, %d auth_events", ErrFormat, len(p.PrevEvents), len(p.AuthEvents))
	}
	if p.Depth < 0 || p.Depth > p.Rules.MaxDepth() {
		return fmt.Errorf("%w: depth %d", ErrFormat, p.Depth)
	}
	for _, k := range p.identifiers() {
		if len(k) > maxKey && (p.Rules.DropOverByteLimit || utf8.RuneCountInString(k) > maxKey) {
			return fmt.Errorf("%w: %w: an identifier of %d bytes", ErrFormat, ErrTooLarge, len(k))
		}
	}
	// Those over the limit would not parse; the event is rejected for them.
	if _, err := matrix.ParseUserID(string(p.Sender)); err != nil && len(p.Sender) <= maxKey {
		return fmt.Errorf("%w: sender: %w", ErrFormat, err)
	}
	if _, err := matrix.ParseRoomID(string(p.RoomID)); err != nil && len(p.RoomID) <= maxKey {
		return fmt.Errorf("%w: room_id: %w", ErrFormat, err)
	}
	return nil
}

// identifiers are those that have a limit of length.
func (p *PDU) identifiers() [5]string {
	list := [5]string{string(p.ID), string(p.RoomID), p.Type, string(p.Sender)}
	if p.StateKey != nil {
		list[4] = *p.StateKey
	}
	return list
}

// RoomIDOf is the room ID that a create event's ID makes.
func RoomIDOf(create matrix.EventID) matrix.RoomID { return matrix.RoomID("!" + create[1:]) }

// CreateOf is the ID of the create event that a room ID is made of.
func CreateOf(room matrix.RoomID) matrix.EventID { return matrix.EventID("$" + room[1:]) }

// read takes the keys out of a canonical event.
func read(rules *roomversion.Rules, raw []byte) (*PDU, error) {
	p := &PDU{Rules: rules, raw: raw}
	const required = 7
	var have int
	var fault error
	bad := func(key []byte) bool {
		fault = fmt.Errorf("%w: %s", ErrFormat, key)
		return false
	}
	canonicaljson.Each(raw, func(key, value []byte) bool {
		ok := true
		switch string(key) {
		case "type":
			p.Type, ok = text(value)
			have++
		case "sender":
			var s string
			s, ok = text(value)
			p.Sender = matrix.UserID(s)
			have++
		case "content":
			ok = len(value) > 0 && value[0] == '{'
			p.Content = value
			have++
		case "origin_server_ts":
			p.OriginServerTS, ok = integer(value)
			have++
		case "depth":
			p.Depth, ok = integer(value)
			have++
		case "prev_events":
			p.PrevEvents, ok = references(rules, value)
			have++
		case "auth_events":
			p.AuthEvents, ok = references(rules, value)
			have++
		case "room_id":
			var s string
			s, ok = text(value)
			p.RoomID = matrix.RoomID(s)
		case "state_key":
			var s string
			if s, ok = text(value); ok {
				p.StateKey = &s
			}
		case "event_id":
			if rules.IDFormat == roomversion.IDInEvent {
				var s string
				s, ok = text(value)
				p.ID = matrix.EventID(s)
			}
		case "redacts":
			if !rules.RedactsInContent {
				s, _ := text(value)
				p.Redacts = matrix.EventID(s)
			}
		}
		return ok || bad(key)
	})
	if fault != nil {
		return nil, fault
	}
	if have != required {
		return nil, fmt.Errorf("%w: a required key is missing", ErrFormat)
	}
	if rules.IDFormat == roomversion.IDInEvent && p.ID == "" {
		return nil, fmt.Errorf("%w: no event_id", ErrFormat)
	}
	switch {
	case p.Type != matrix.TypeRedaction:
		p.Redacts = ""
	case rules.RedactsInContent:
		p.Redacts = matrix.EventID(p.String("redacts"))
	}
	return p, nil
}

// text decodes a JSON string.
func text(v []byte) (string, bool) {
	if len(v) < 2 || v[0] != '"' {
		return "", false
	}
	inner := v[1 : len(v)-1]
	if slices.Contains(inner, '\\') {
		return gjson.ParseBytes(v).Str, true
	}
	return string(inner), utf8.Valid(inner)
}

func integer(v []byte) (int64, bool) {
	n, err := strconv.ParseInt(string(v), 10, 64)
	return n, err == nil
}

// references reads prev_events or auth_events.
func references(rules *roomversion.Rules, v []byte) (ids []matrix.EventID, ok bool) {
	if len(v) == 0 || v[0] != '[' {
		return nil, false
	}
	ok = true
	canonicaljson.Elements(v, func(item []byte) {
		if rules.EventRefsWithHashes {
			var first []byte
			if item[0] == '[' {
				canonicaljson.Elements(item, func(e []byte) {
					if first == nil {
						first = e
					}
				})
			}
			item = first
		}
		id, isText := text(item)
		ok = ok && isText && id != ""
		ids = append(ids, matrix.EventID(id))
	})
	return ids, ok
}

// without returns a canonical object less some of its members.
func without(object []byte, keys ...string) []byte {
	found := false
	canonicaljson.Each(object, func(key, _ []byte) bool {
		found = contains(keys, key)
		return !found
	})
	if !found {
		return object
	}
	return filter(object, func(key []byte) bool { return !contains(keys, key) })
}

func contains(keys []string, key []byte) bool {
	return slices.Contains(keys, string(key))
}

// filter returns the members of a canonical object whose key is to be kept.
func filter(object []byte, keep func(key []byte) bool) []byte {
	out := append(make([]byte, 0, len(object)), '{')
	canonicaljson.Each(object, func(key, value []byte) bool {
		if keep(key) {
			out = appendMember(out, key, value)
		}
		return true
	})
	return append(out, '}')
}

func appendMember(out, key, value []byte) []byte {
	if len(out) > 1 {
		out = append(out, ',')
	}
	out = append(append(append(out, '"'), key...), '"', ':')
	return append(out, value...)
}

// contentHash covers all but unsigned, signatures and hashes.
//
// Spec: https://spec.matrix.org/v1.19/server-server-api/#calculating-the-content-hash-for-an-event
func contentHash(raw []byte) [sha256.Size]byte {
	return sha256.Sum256(without(raw, "hashes", "signatures", "unsigned"))
}

func contentHashFits(raw []byte) bool {
	want, err := decodeBase64(gjson.GetBytes(raw, "hashes.sha256").Str)
	got := contentHash(raw)
	return err == nil && string(want) == string(got[:])
}

// referenceHash covers what redaction leaves, less signatures and unsigned.
//
// Spec: https://spec.matrix.org/v1.19/server-server-api/#calculating-the-reference-hash-for-an-event
func referenceHash(rules *roomversion.Rules, raw []byte) [sha256.Size]byte {
	return sha256.Sum256(without(Redact(rules, raw), "signatures", "unsigned"))
}

// ReferenceHash is how another event refers to this one in versions 1 and 2.
func (p *PDU) ReferenceHash() string {
	h := referenceHash(p.Rules, p.raw)
	return base64.RawStdEncoding.EncodeToString(h[:])
}

func eventID(rules *roomversion.Rules, raw []byte) matrix.EventID {
	h := referenceHash(rules, raw)
	enc := base64.RawURLEncoding
	if rules.IDFormat == roomversion.IDBase64 {
		enc = base64.RawStdEncoding
	}
	return matrix.EventID("$" + enc.EncodeToString(h[:]))
}

// decodeBase64 takes padding, or none.
func decodeBase64(s string) ([]byte, error) {
	for len(s) > 0 && s[len(s)-1] == '=' {
		s = s[:len(s)-1]
	}
	return base64.RawStdEncoding.DecodeString(s)
}
