package puppeting

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// transaction takes a transaction of the homeserver: it is answered when all of it
// is in the outbox. Ephemeral events are passed on at once, or not at all.
func (b *Bridge) transaction(ctx context.Context, t *appservice.Transaction) error {
	var rows []*outRow
	var gone []matrix.EventID
	for i := range t.Events {
		ev := &t.Events[i]
		rows = append(rows, b.route(ev)...)
		if id, _ := redacted(ev); ev.Type == matrix.TypeRedaction && b.room(ev.RoomID) != nil {
			gone = append(gone, id)
		}
	}
	if len(rows) > 0 || len(gone) > 0 {
		if err := b.enqueue(ctx, t.ID, rows, gone); err != nil {
			return fmt.Errorf("take transaction %s: %w", t.ID, err)
		}
	}
	for i := range t.Ephemeral {
		b.ephemeral(&t.Ephemeral[i])
	}
	return nil
}

// route says which queues an event goes to, and notes what it says of its room.
func (b *Bridge) route(ev *appservice.Event) []*outRow {
	var rows []*outRow
	if b.controls(ev) {
		rows = append(rows, b.row(portalKey{chat: backends.ChatID(ev.RoomID)}, ev))
	}
	rm := b.room(ev.RoomID)
	if rm == nil {
		return rows
	}
	rm.observe(ev)
	if ev.Type == matrix.TypeRedaction {
		id, _ := redacted(ev)
		rm.recent.put(id, &appservice.Event{Type: "", ID: id, RoomID: ev.RoomID, Content: json.RawMessage(`{}`)})
	}
	if converters[ev.Type] == nil {
		return rows
	}
	for _, p := range rm.list() {
		if p.wants(ev) {
			rows = append(rows, b.row(p.key, ev))
		}
	}
	return rows
}

// wants reports whether the portal's network is to be told of an event. A network's
// own users are not told what they did themselves, save in a gateway's chat, where
// the room's order counts.
func (p *portal) wants(ev *appservice.Event) bool {
	if ev.Sender == p.b.client.Bot().UserID() {
		return p.isGateway()
	}
	if p.isGateway() {
		return true
	}
	if p.b.networkOf(ev.Sender) != nil && isOwn(ev.Content) {
		return false
	}
	if isCommand(ev) {
		return false
	}
	return p.b.networkOf(ev.Sender) != p.net || p.hasSibling()
}

// hasSibling reports whether another chat of the same network is in the room.
func (p *portal) hasSibling() bool {
	rm := p.bound()
	return rm != nil && slices.ContainsFunc(rm.list(), func(q *portal) bool { return q != p && q.net == p.net })
}

func (b *Bridge) row(k portalKey, ev *appservice.Event) *outRow {
	return &outRow{portalKey: k, seq: b.seq.Add(1), event: *ev, queued: time.Now()}
}

// insertRevoked ends the links to the files of redacted events.
var insertRevoked = &sqldb.Insert{Table: "bridge_revoked", Columns: []string{"event_id", "at"}, Conflict: "ON CONFLICT DO NOTHING"}

var insertSeen = &sqldb.Insert{Table: "bridge_seen", Columns: []string{"event_id", "at"}, Conflict: "ON CONFLICT DO NOTHING"}

// enqueue stores rows in one write, unless the transaction or the event was there before.
func (b *Bridge) enqueue(ctx context.Context, txnID string, rows []*outRow, gone []matrix.EventID) error {
	texts := make([]string, len(rows))
	for i, r := range rows {
		text, err := json.Marshal(&r.event)
		if err != nil {
			return err
		}
		texts[i] = string(text)
	}
	now := time.Now().UnixMilli()
	err := b.db.Write(ctx, func(tx *sqldb.Tx) error {
		res, err := tx.Exec(`INSERT INTO bridge_txn (txn_id, at) VALUES ($1, $2) ON CONFLICT DO NOTHING`, txnID, now)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return err
		}
		for _, id := range gone {
			tx.Queue(insertRevoked, string(id), now)
		}
		seen, err := seenEvents(tx, rows)
		if err != nil {
			return err
		}
		for i, r := range rows {
			if !seen[r.event.ID] {
				r.queue(tx, texts[i])
				tx.Queue(insertSeen, string(r.event.ID), now)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.kickAll(ctx, rows)
	return nil
}

func seenEvents(tx *sqldb.Tx, rows []*outRow) (map[matrix.EventID]bool, error) {
	seen := map[matrix.EventID]bool{}
	for len(rows) > 0 {
		n := min(len(rows), 500)
		args := make([]any, n)
		for i, r := range rows[:n] {
			args[i] = string(r.event.ID)
		}
		err := tx.Each(func(scan func(...any) error) error {
			var id matrix.EventID
			err := scan(&id)
			seen[id] = true
			return err
		}, `SELECT event_id FROM bridge_seen WHERE event_id IN `+sqldb.In(1, n), args...)
		if err != nil {
			return nil, err
		}
		rows = rows[n:]
	}
	return seen, nil
}

func (b *Bridge) kickAll(ctx context.Context, rows []*outRow) {
	control := false
	kicked := map[portalKey]bool{}
	for _, r := range rows {
		if r.network == "" {
			control = true
		} else if !kicked[r.portalKey] {
			kicked[r.portalKey] = true
			b.portalFor(r.portalKey).kick()
		}
	}
	if control {
		b.crew.Go(b.kickControl)
	}
}

// ephemeral passes on typing and receipts.
func (b *Bridge) ephemeral(ev *appservice.Event) {
	rm := b.room(ev.RoomID)
	if rm == nil {
		return
	}
	for _, p := range rm.list() {
		caps := p.net.capabilities()
		switch {
		case ev.Type == typeTyping && caps.Typing:
			b.crew.Go(func(ctx context.Context) { p.typingFromMatrix(ctx, ev) })
		case ev.Type == typeReceipt && caps.Reads:
			b.crew.Go(func(ctx context.Context) { p.receiptFromMatrix(ctx, ev) })
		}
	}
}

// ephemeralTimeout is how long something of no lasting worth may wait.
const ephemeralTimeout = 5 * time.Second

// sendEphemeral sends what is not queued; that it fails is nobody's concern.
func (p *portal) sendEphemeral(ctx context.Context, sender matrix.UserID, body backends.Body) {
	nw, err := p.net.get()
	if err != nil || !p.ready() || p.b.networkOf(sender) == p.net && !p.isGateway() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, ephemeralTimeout)
	defer cancel()
	cmd := &backends.Command{ID: hashID("ephemeral", string(sender), time.Now().String()), Attempt: 1, Chat: p.key.chatKey(), Sender: p.user(ctx, sender), Time: time.Now(), Body: body}
	if err := nw.Send(ctx, cmd, func(backends.Result) {}); err != nil {
		p.log.Debug("an ephemeral command was not sent", "err", err)
	}
}

// typingFromMatrix tells the difference to who was typing before.
func (p *portal) typingFromMatrix(ctx context.Context, ev *appservice.Event) {
	now := map[matrix.UserID]bool{}
	for _, u := range decodeInto[mentions](ev.Content).UserIDs {
		now[u] = true
	}
	p.mu.Lock()
	before := p.typing
	p.typing = now
	p.mu.Unlock()
	for u := range merged(now, before) {
		if now[u] != before[u] {
			p.sendEphemeral(ctx, u, &backends.Typing{On: now[u]})
		}
	}
}

// receiptFromMatrix tells how far our users have read.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#mreceipt
func (p *portal) receiptFromMatrix(ctx context.Context, ev *appservice.Event) {
	type reader struct {
		Read map[matrix.UserID]json.RawMessage `json:"m.read"`
	}
	for id, r := range decodeInto[map[matrix.EventID]reader](ev.Content) {
		m, err := p.byEvent(ctx, id)
		if err != nil || m == nil {
			continue
		}
		for u := range r.Read {
			p.sendEphemeral(ctx, u, &backends.Read{UpTo: m.id})
		}
	}
}

// isCommand reports whether an event is a command to the bot.
func isCommand(ev *appservice.Event) bool {
	_, ok := commandOf(ev)
	return ok
}

// commandPrefix begins a command to the bot.
const commandPrefix = "!gjallar"

// commandOf returns the words after the prefix.
func commandOf(ev *appservice.Event) (words []string, ok bool) {
	if ev.Type != matrix.TypeMessage {
		return nil, false
	}
	c := decodeInto[content](ev.Content)
	words = strings.Fields(c.Body)
	if c.MsgType != "m.text" || c.RelatesTo.RelType == relReplace || len(words) == 0 || words[0] != commandPrefix {
		return nil, false
	}
	return words[1:], true
}
