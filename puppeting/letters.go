package puppeting

import (
	"context"
	"encoding/json"
	"time"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// matters reports whether the loss of an event is told to its sender: what people
// said or did, not who came and went.
func matters(ev *appservice.Event) bool {
	if ev.Type != matrix.TypeMember {
		return true
	}
	return ev.StateKey != nil && *ev.StateKey != string(ev.Sender) && decodeInto[memberContent](ev.Content).Membership != matrix.Join
}

// tell has the sender of a dead letter know, by a status event that clients may show
// at the message, and a notice. Both have IDs of their own, so that to do it again
// after a crash does nothing.
func (b *Bridge) tell(ctx context.Context, l *letter) {
	p := b.portalFor(l.portalKey)
	title := l.network
	if n := b.networks[l.network]; n != nil {
		title = n.title
	}
	intent := b.client.Bot()
	if p.bound() != nil {
		intent = p.intent()
	}
	id := hashID("letter", l.network, string(l.chat), string(l.account), string(l.event.ID))
	if _, err := intent.Send(ctx, l.room, typeStatus, id+"s", l.status(), time.Time{}); err != nil {
		p.log.Debug("the status of a message cannot be told", "event_id", l.event.ID, "err", err)
	}
	if _, err := intent.Send(ctx, l.room, matrix.TypeMessage, id+"n", l.notice(title), time.Time{}); err != nil {
		p.log.Warn("the loss of a message cannot be told", "event_id", l.event.ID, "err", err)
		return
	}
	if err := markTold(ctx, b.db, l.seq); err != nil {
		p.log.Warn("a dead letter cannot be marked", "err", err)
	}
}

// status is the content of a status event.
//
// Spec: MSC2162's successor as Beeper and other bridges send it; ours to extend.
func (l *letter) status() map[string]any {
	reason := map[string]string{"unsupported": "com.beeper.unsupported_event", "uncertain": "m.bridge_unavailable"}[l.outcome]
	return map[string]any{
		"m.relates_to": map[string]any{"rel_type": "m.reference", "event_id": l.event.ID},
		"network":      l.network,
		"status":       "FAIL_PERMANENT",
		"reason":       firstOf(reason, "m.event_not_handled"),
		"message":      firstOf(l.reason, l.outcome),
	}
}

var failures = map[string]string{
	"rejected":    "was not delivered to ",
	"unsupported": "cannot be passed on to ",
	"uncertain":   "may not have reached ",
}

func (l *letter) notice(title string) map[string]any {
	text := "Your message " + failures[l.outcome] + title
	if l.reason != "" {
		text += ": " + excerpt(l.reason)
	}
	c := noticeContent(text)
	c["m.mentions"] = map[string]any{"user_ids": []matrix.UserID{l.event.Sender}}
	c["m.relates_to"] = map[string]any{"m.in_reply_to": map[string]any{"event_id": l.event.ID}}
	return c
}

// noticeContent is the content of a notice in the bridge's own name. It is marked, so
// that it does not cross the bridge.
func noticeContent(text string) map[string]any {
	return map[string]any{"msgtype": "m.notice", "body": text, "m.mentions": map[string]any{}, ownKey: true}
}

// ownKey marks events that the bridge says itself.
const ownKey = "im.gjallar.bridge"

func isOwn(raw json.RawMessage) bool {
	return decodeInto[struct {
		Own bool `json:"im.gjallar.bridge"`
	}](raw).Own
}

// notice says something in the room of the portal. txnID "" is always new.
func (p *portal) notice(ctx context.Context, txnID, text string) {
	rm := p.bound()
	if rm == nil {
		return
	}
	if _, err := p.intent().Send(ctx, rm.id, matrix.TypeMessage, txnID, noticeContent(text), time.Time{}); err != nil {
		p.log.Warn("a notice cannot be sent", "err", err)
	}
}

// say is notice by the bot, in any room.
func (b *Bridge) say(ctx context.Context, room matrix.RoomID, txnID, text string) {
	if _, err := b.client.Bot().Send(ctx, room, matrix.TypeMessage, txnID, noticeContent(text), time.Time{}); err != nil {
		b.log.Warn("a notice cannot be sent", "room_id", room, "err", err)
	}
}
