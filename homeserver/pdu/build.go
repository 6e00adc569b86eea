package pdu

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/gjallar-im/gjallar/homeserver/canonicaljson"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

// Proto is an event of ours before it is hashed and signed.
type Proto struct {
	ID             matrix.EventID // only where the version keeps it in the event
	RoomID         matrix.RoomID  // empty for the create event of versions where it is a hash
	Type           string
	Sender         matrix.UserID
	StateKey       *string
	Content        json.RawMessage
	Depth          int64
	OriginServerTS int64
	PrevEvents     []Ref
	AuthEvents     []Ref
	Redacts        matrix.EventID // put where the version wants it
}

// Build hashes and signs the event. Errors wrap [ErrFormat] if the content is not
// what the version takes, and [ErrTooLarge] if the event is.
//
// Spec: https://spec.matrix.org/v1.19/server-server-api/#adding-hashes-and-signatures-to-outgoing-events
func (e *Proto) Build(rules *roomversion.Rules, s Signer) (*PDU, error) {
	canonical := canonicaljson.Canonical
	if rules.StrictJSON {
		canonical = canonicaljson.CanonicalStrict
	}
	content, err := canonical(e.Content)
	if err != nil {
		return nil, fmt.Errorf("%w: content: %w", ErrFormat, err)
	}
	if len(content) == 0 || content[0] != '{' {
		return nil, fmt.Errorf("%w: content is not an object", ErrFormat)
	}
	if e.Redacts != "" && rules.RedactsInContent {
		content = setMember(content, "redacts", canonicaljson.AppendString(nil, string(e.Redacts)))
	}
	// The keys before hashes, between hashes and signatures, and after them.
	head, middle, tail := e.head(rules, content), e.middle(rules), e.tail()
	sum := sha256.Sum256(join(head, middle, tail))
	hashes := fmt.Appendf(nil, `"hashes":{"sha256":%q}`, base64.RawStdEncoding.EncodeToString(sum[:]))

	unsigned := join(e.head(rules, redactContent(rules, e.Type, content)), hashes, e.redactedMiddle(rules, middle), tail)
	signatures := append([]byte(`"signatures":{`), canonicaljson.AppendString(nil, string(s.Server))...)
	signatures = fmt.Appendf(signatures, `:{%q:%q}}`, s.KeyID, s.signatureOf(unsigned))

	raw := join(head, hashes, middle, signatures, tail)
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("%w: %w: %d bytes", ErrFormat, ErrTooLarge, len(raw))
	}
	p, err := read(rules, raw)
	if err != nil {
		return nil, err
	}
	if p.ID == "" {
		sum := sha256.Sum256(unsigned)
		enc := base64.RawURLEncoding
		if rules.IDFormat == roomversion.IDBase64 {
			enc = base64.RawStdEncoding
		}
		p.ID = matrix.EventID("$" + enc.EncodeToString(sum[:]))
	}
	if err := p.finish(true); err != nil {
		return nil, err
	}
	if p.OverLimit {
		return nil, fmt.Errorf("%w: %w: an identifier over %d bytes", ErrFormat, ErrTooLarge, maxKey)
	}
	return p, nil
}

func (e *Proto) head(rules *roomversion.Rules, content []byte) []byte {
	b := append([]byte(`"auth_events":`), refs(rules, e.AuthEvents)...)
	b = append(append(b, `,"content":`...), content...)
	b = strconv.AppendInt(append(b, `,"depth":`...), e.Depth, 10)
	if rules.IDFormat == roomversion.IDInEvent {
		b = canonicaljson.AppendString(append(b, `,"event_id":`...), string(e.ID))
	}
	return b
}

func (e *Proto) middle(rules *roomversion.Rules) []byte {
	b := strconv.AppendInt([]byte(`"origin_server_ts":`), e.OriginServerTS, 10)
	b = append(append(b, `,"prev_events":`...), refs(rules, e.PrevEvents)...)
	if e.Redacts != "" && !rules.RedactsInContent {
		b = canonicaljson.AppendString(append(b, `,"redacts":`...), string(e.Redacts))
	}
	if e.RoomID != "" {
		b = canonicaljson.AppendString(append(b, `,"room_id":`...), string(e.RoomID))
	}
	return canonicaljson.AppendString(append(b, `,"sender":`...), string(e.Sender))
}

// redactedMiddle is middle less redacts, which redaction removes.
func (e *Proto) redactedMiddle(rules *roomversion.Rules, middle []byte) []byte {
	if e.Redacts == "" || rules.RedactsInContent {
		return middle
	}
	plain := *e
	plain.Redacts = ""
	return plain.middle(rules)
}

func (e *Proto) tail() []byte {
	var b []byte
	if e.StateKey != nil {
		b = canonicaljson.AppendString([]byte(`"state_key":`), *e.StateKey)
		b = append(b, ',')
	}
	return canonicaljson.AppendString(append(b, `"type":`...), e.Type)
}

// join makes an object of members already written.
func join(parts ...[]byte) []byte {
	n := 2
	for _, p := range parts {
		n += len(p) + 1
	}
	out := append(make([]byte, 0, n), '{')
	for i, p := range parts {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, p...)
	}
	return append(out, '}')
}

func refs(rules *roomversion.Rules, list []Ref) []byte {
	b := []byte{'['}
	for i, r := range list {
		if i > 0 {
			b = append(b, ',')
		}
		if rules.EventRefsWithHashes {
			b = canonicaljson.AppendString(append(b, '['), string(r.ID))
			b = append(b, `,{"sha256":`...)
			b = append(canonicaljson.AppendString(b, r.Hash), "}]"...)
			continue
		}
		b = canonicaljson.AppendString(b, string(r.ID))
	}
	return append(b, ']')
}

// ClientEvent is the event as clients see it, without unsigned.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#room-event-format
func (p *PDU) ClientEvent() matrix.Event {
	e := matrix.Event{
		Type: p.Type, ID: p.ID, RoomID: p.RoomID, Sender: p.Sender, StateKey: p.StateKey,
		OriginServerTS: p.OriginServerTS, Content: p.Content, Redacts: p.Redacts,
	}
	if p.Redacts != "" && !p.Rules.RedactsInContent {
		e.Content = setMember(p.Content, "redacts", canonicaljson.AppendString(nil, string(p.Redacts)))
	}
	return e
}
