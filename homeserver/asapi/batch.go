package asapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/store"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

// Bounds of one look at the stream.
const (
	maxEvents = 100  // in a transaction
	maxHeads  = 256  // events looked at
	maxSpan   = 2000 // positions, which bounds receipts and the like
)

// batch is what happened up to a position, as far as it concerns a service.
type batch struct {
	upto, typing int64
	created      int64 // ms
	events       []*store.Event
	replaced     map[int64]*store.Event   // what a state event of the batch replaced, by its number
	invites      map[int64][]matrix.Event // the stripped state that goes with an invitation, by its number
	extra        extra
}

// extra is what a transaction has beside events.
type extra struct {
	Ephemeral []any `json:"ephemeral,omitempty"`
	ToDevice  []any `json:"to_device,omitempty"`
}

func (b *batch) empty() bool {
	return len(b.events) == 0 && len(b.extra.Ephemeral) == 0 && len(b.extra.ToDevice) == 0
}

// collect looks at the stream from the follower's position on, to now at the most.
func (f *follower) collect(ctx context.Context, now streams.Token) (*batch, error) {
	b := &batch{upto: f.pos, typing: now.Typing, created: time.Now().UnixMilli()}
	if now.Pos > f.pos {
		b.upto = min(now.Pos, f.pos+maxSpan)
		if err := f.collectEvents(ctx, b); err != nil {
			return nil, err
		}
	}
	if f.s.Ephemeral() {
		if err := f.collectEphemeral(ctx, b); err != nil {
			return nil, err
		}
	}
	return b, f.complete(ctx, b)
}

// collectEvents lowers b.upto if there is too much for one transaction.
func (f *follower) collectEvents(ctx context.Context, b *batch) error {
	heads, err := f.w.Store.Headers(ctx, f.pos, b.upto, maxHeads)
	if err != nil {
		return err
	}
	if len(heads) == maxHeads {
		b.upto = heads[maxHeads-1].Pos
	}
	for i := range heads {
		h := &heads[i]
		ok, err := f.interest.event(ctx, h)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		e, err := f.w.Store.Parse(ctx, h)
		if err != nil {
			return err
		}
		if b.events = append(b.events, e); len(b.events) == maxEvents {
			b.upto = h.Pos
			return nil
		}
	}
	return nil
}

// edu is an ephemeral event as it is sent.
type edu struct {
	Type    string        `json:"type"`
	Room    matrix.RoomID `json:"room_id,omitempty"`
	Sender  matrix.UserID `json:"sender,omitempty"`
	Content any           `json:"content"`
}

// collectEphemeral adds EDUs and to-device messages.
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/#pushing-ephemeral-data
func (f *follower) collectEphemeral(ctx context.Context, b *batch) error {
	if err := f.collectTyping(ctx, b); err != nil || b.upto == f.pos {
		return err
	}
	receipt, presence, toDevice, err := f.w.Store.EphemeralHeads(ctx)
	if err != nil {
		return fmt.Errorf("positions of receipts, presence and messages: %w", err)
	}
	for _, part := range []struct {
		head int64
		run  func(context.Context, *batch) error
	}{{receipt, f.collectReceipts}, {presence, f.collectPresence}, {toDevice, f.collectToDevice}} {
		if part.head <= f.pos {
			continue
		}
		if err := part.run(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

func (f *follower) collectTyping(ctx context.Context, b *batch) error {
	if f.w.Typing == nil || b.typing <= f.typing {
		return nil
	}
	for _, room := range f.w.Typing.Changed(f.typing) {
		ok, err := f.interest.room(ctx, room, b.upto)
		if err != nil {
			return err
		}
		if users, changed := f.w.Typing.Since(room, f.typing); ok && changed {
			b.extra.Ephemeral = append(b.extra.Ephemeral, edu{Type: "m.typing", Room: room, Content: map[string]any{"user_ids": users}})
		}
	}
	return nil
}

// receiptInfo is what a receipt says of one user.
type receiptInfo struct {
	TS     int64  `json:"ts"`
	Thread string `json:"thread_id,omitempty"`
}

// receipts of a room: by event, type and user.
type receipts map[matrix.EventID]map[string]map[matrix.UserID]receiptInfo

func (rs receipts) add(r store.StreamReceipt) {
	if rs[r.Event] == nil {
		rs[r.Event] = map[string]map[matrix.UserID]receiptInfo{}
	}
	if rs[r.Event][r.Type] == nil {
		rs[r.Event][r.Type] = map[matrix.UserID]receiptInfo{}
	}
	rs[r.Event][r.Type][r.User] = receiptInfo{r.TS, r.Thread}
}

func (f *follower) collectReceipts(ctx context.Context, b *batch) error {
	list, err := f.w.Store.StreamReceipts(ctx, f.pos, b.upto)
	if err != nil {
		return fmt.Errorf("receipts after %d: %w", f.pos, err)
	}
	rooms := map[matrix.RoomID]receipts{}
	for _, r := range list {
		if r.Type == "m.read.private" && !f.interest.owns(r.User) {
			continue
		}
		ok, err := f.interest.room(ctx, r.Room, b.upto)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if rooms[r.Room] == nil {
			rooms[r.Room] = receipts{}
			b.extra.Ephemeral = append(b.extra.Ephemeral, edu{Type: "m.receipt", Room: r.Room, Content: rooms[r.Room]})
		}
		rooms[r.Room].add(r)
	}
	return nil
}

// presenceContent is the content of m.presence.
type presenceContent struct {
	Presence        string `json:"presence"`
	LastActiveAgo   int64  `json:"last_active_ago"` // ms
	StatusMsg       string `json:"status_msg,omitempty"`
	CurrentlyActive bool   `json:"currently_active"`
}

func (f *follower) collectPresence(ctx context.Context, b *batch) error {
	list, err := f.w.Store.PresenceChanges(ctx, f.pos, b.upto)
	if err != nil {
		return fmt.Errorf("presence after %d: %w", f.pos, err)
	}
	for _, p := range list {
		ok, err := f.interest.presence(ctx, p.User, b.upto)
		if err != nil {
			return err
		}
		if ok {
			b.extra.Ephemeral = append(b.extra.Ephemeral, edu{Type: "m.presence", Sender: p.User,
				Content: presenceContent{p.State, max(0, b.created-p.LastActive), p.StatusMsg, p.CurrentlyActive}})
		}
	}
	return nil
}

// toDevice is a to-device message as it is sent.
type toDevice struct {
	Type    string          `json:"type"`
	Sender  matrix.UserID   `json:"sender"`
	Content json.RawMessage `json:"content"`
	User    matrix.UserID   `json:"to_user_id"`
	Device  matrix.DeviceID `json:"to_device_id"`
}

func (f *follower) collectToDevice(ctx context.Context, b *batch) error {
	list, err := f.w.Store.StreamToDevice(ctx, f.pos, b.upto)
	if err != nil {
		return fmt.Errorf("to-device messages after %d: %w", f.pos, err)
	}
	for _, m := range list {
		if f.interest.owns(m.User) {
			b.extra.ToDevice = append(b.extra.ToDevice, toDevice{m.Type, m.Sender, m.Content, m.User, m.Device})
		}
	}
	return nil
}

// strippedTypes are shown to those who are invited.
var strippedTypes = []string{
	matrix.TypeCreate, matrix.TypeName, matrix.TypeAvatar, matrix.TypeTopic, matrix.TypeJoinRules, matrix.TypeCanonicalAlias, matrix.TypeEncryption,
}

// complete adds what the events' unsigned parts need. It is the same whenever it
// is done: it goes by the state at each event.
func (f *follower) complete(ctx context.Context, b *batch) error {
	var states []int64
	for _, e := range b.events {
		if !e.IsState() {
			continue
		}
		states = append(states, e.Pos)
		if e.Type != matrix.TypeMember || e.Membership() != matrix.Invite || !f.interest.owns(matrix.UserID(*e.StateKey)) {
			continue
		}
		list, err := f.stripped(ctx, e)
		if err != nil {
			return err
		}
		if b.invites == nil {
			b.invites = map[int64][]matrix.Event{}
		}
		b.invites[e.Pos] = list
	}
	if len(states) == 0 {
		return nil
	}
	var err error
	b.replaced, err = f.w.Store.Replaced(ctx, states)
	return err
}

// stripped is the state of a room for someone invited to it.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#stripped-state
func (f *follower) stripped(ctx context.Context, invite *store.Event) ([]matrix.Event, error) {
	keys := []matrix.StateKey{}
	for _, t := range strippedTypes {
		keys = append(keys, matrix.StateKey{Type: t})
	}
	keys = append(keys, matrix.StateKey{Type: matrix.TypeMember, Key: string(invite.Sender)})
	list, err := f.w.Store.StateAtKeys(ctx, invite.Snapshot, keys)
	if err != nil {
		return nil, err
	}
	out := []matrix.Event{}
	for _, e := range list {
		out = append(out, matrix.Event{Type: e.Type, Sender: e.Sender, StateKey: e.StateKey, Content: e.Content})
	}
	return out, nil
}

// transaction makes a new one of the batch.
func (b *batch) transaction(s *Service) (*store.ServiceTransaction, json.RawMessage, error) {
	t := &store.ServiceTransaction{ID: fmt.Sprintf("%d.%s", b.upto, rand.Text()), UpTo: b.upto, Created: b.created, Events: make([]int64, len(b.events))}
	for i, e := range b.events {
		t.Events[i] = e.Pos
	}
	if len(b.extra.Ephemeral)+len(b.extra.ToDevice) > 0 {
		text, err := json.Marshal(b.extra)
		if err != nil {
			return nil, nil, fmt.Errorf("encode EDUs: %w", err)
		}
		t.Extra = string(text)
	}
	body, err := b.body(s, t.Extra)
	return t, body, err
}

// body is the transaction as it is sent. The same events and extra at the same
// time of creation make the same body.
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/#put_matrixappv1transactionstxnid
func (b *batch) body(s *Service, extra string) (json.RawMessage, error) {
	var out bytes.Buffer
	out.WriteString(`{"events":[`)
	for i, e := range b.events {
		if i > 0 {
			out.WriteByte(',')
		}
		if err := b.print(&out, s, e); err != nil {
			return nil, err
		}
	}
	out.WriteByte(']')
	if extra != "" {
		var x struct {
			Ephemeral json.RawMessage `json:"ephemeral"`
			ToDevice  json.RawMessage `json:"to_device"`
		}
		if err := json.Unmarshal([]byte(extra), &x); err != nil {
			return nil, fmt.Errorf("decode stored EDUs: %w", err)
		}
		prefix := ""
		if !s.Registration.ReceiveEphemeral { // it asked for the name from before it was specified
			prefix = "de.sorunome.msc2409."
		}
		if x.Ephemeral != nil {
			fmt.Fprintf(&out, `,%q:%s`, prefix+"ephemeral", x.Ephemeral)
		}
		if x.ToDevice != nil {
			fmt.Fprintf(&out, `,%q:%s`, prefix+"to_device", x.ToDevice)
		}
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

// unsigned is what the server adds to an event for a service.
type unsigned struct {
	Age           int64           `json:"age"`                      // ms
	TxnID         string          `json:"transaction_id,omitempty"` // with which the service itself sent the event
	PrevContent   json.RawMessage `json:"prev_content,omitempty"`
	PrevSender    matrix.UserID   `json:"prev_sender,omitempty"`
	ReplacesState matrix.EventID  `json:"replaces_state,omitempty"`
	InviteState   []matrix.Event  `json:"invite_room_state,omitempty"`
}

func (b *batch) print(out *bytes.Buffer, s *Service, e *store.Event) error {
	u := unsigned{Age: max(0, b.created-e.OriginServerTS), InviteState: b.invites[e.Pos]}
	if e.TxnID != "" && string(e.TxnDevice) == "AS:"+s.Registration.ID {
		u.TxnID = e.TxnID
	}
	if before := b.replaced[e.Pos]; before != nil {
		u.PrevContent, u.PrevSender, u.ReplacesState = before.Content, before.Sender, before.ID
	}
	ev := e.ClientEvent()
	var err error
	if ev.Unsigned, err = json.Marshal(u); err != nil {
		return fmt.Errorf("encode unsigned of %s: %w", e.ID, err)
	}
	text, err := json.Marshal(&ev)
	if err != nil {
		return fmt.Errorf("encode %s: %w", e.ID, err)
	}
	out.Write(text)
	return nil
}
