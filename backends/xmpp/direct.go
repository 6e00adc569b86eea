package xmpp

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

func encodeUser(u backends.User) []byte {
	b, err := json.Marshal(u)
	if err != nil {
		panic(err) // a struct of strings
	}
	return b
}

func decodeUser(b []byte) (backends.User, bool) {
	var u backends.User
	err := json.Unmarshal(b, &u)
	return u, err == nil && u.Account != ""
}

// handleDirect takes what is sent to a user of the host.
func (n *network) handleDirect(ctx context.Context, e *xep.Element, from, to jid.JID) {
	typ := e.Attr("type")
	if to.Localpart() == "" || typ == "error" || e.Child(xep.NSCarbons, "received") != nil || e.Child(xep.NSCarbons, "sent") != nil {
		return
	}
	account, ok := n.account(ctx, to.Localpart())
	if !ok {
		if e.Name.Local == "message" && typ != "headline" {
			n.send(ctx, xep.ErrorTo(e, &xep.Error{Type: "cancel", Condition: "item-not-found", Text: "There is no such user."}))
		}
		return
	}
	if e.Name.Local == "presence" {
		n.answerPresence(ctx, typ, from, to)
		return
	}
	if typ != "groupchat" && typ != "headline" {
		n.receiveDirect(ctx, e, from, account)
	}
}

// answerPresence lets everybody have users of the host in their contact list.
func (n *network) answerPresence(ctx context.Context, typ string, from, to jid.JID) {
	full, err := to.WithResource(resource)
	if err != nil {
		return
	}
	switch typ {
	case "subscribe":
		n.send(ctx, xep.Presence(to.Bare(), from.Bare(), "subscribed"))
		n.send(ctx, xep.Presence(full, from.Bare(), ""))
	case "unsubscribe":
		n.send(ctx, xep.Presence(to.Bare(), from.Bare(), "unsubscribed"))
	case "probe":
		n.send(ctx, xep.Presence(full, from, ""))
	}
}

// receiveDirect takes a private message for a user of the host.
func (n *network) receiveDirect(ctx context.Context, e *xep.Element, from jid.JID, account backends.User) {
	if !n.limits.allow(from.Bare().String()) {
		n.send(ctx, xep.ErrorTo(e, tooFast))
		return
	}
	peer := n.peer(e, from)
	key := backends.ChatKey{Chat: backends.ChatID(peer.ID), Account: account.Account}
	known := n.idsOf(ctx, key)
	c := xep.ContentOf(e)
	id := backends.MessageID(e.Attr("id"))
	if len(id) < 8 { // clients that count start over now and then
		id = backends.MessageID(xep.NewID())
	}
	nicks := map[string]string{}
	if account.Name != "" {
		nicks[account.Name] = string(account.Account)
	}
	for _, ref := range []*string{&c.ReactTo, &c.Retract} {
		*ref = known.resolve(*ref)
	}
	for _, ev := range eventsOf(&c, e, known, id, peer, false, nicks) {
		ev.Chat, ev.Sender, ev.Time = key, peer, xep.DelayOf(e)
		n.deliver(ctx, ev, n.receipt(e))
	}
}

// peer says who wrote a private message.
func (n *network) peer(e *xep.Element, from jid.JID) backends.User {
	if m := n.muc(from.Bare().String()); m != nil {
		user, _ := m.senderOf(e, from, false)
		return user
	}
	return peerOf(from, e.Child(xep.NSNick, "nick").Text())
}

// receipt answers a message when the host has it: with a delivery receipt
// (XEP-0184) if one is asked for, with an error if the host refuses.
func (n *network) receipt(e *xep.Element) func(backends.Receipt) {
	return func(r backends.Receipt) {
		switch {
		case r.Err != nil:
			n.send(n.ctx, xep.ErrorTo(e, stanzaError(r.Err)))
		case e.Child(xep.NSReceipts, "request") != nil && e.Attr("id") != "":
			ack := xep.New(xep.NSComponent, "message", "from", e.Attr("to"), "to", e.Attr("from"), "type", e.Attr("type"), "id", xep.NewID())
			n.send(n.ctx, ack.Add(xep.New(xep.NSReceipts, "received", "id", e.Attr("id"))))
		}
	}
}

// directDelivery is a private message of ours. Its fields are guarded by the
// network's mu.
type directDelivery struct {
	chat    backends.ChatKey
	peer    jid.JID
	at      time.Time
	refusal *xep.Error
	settled bool // the host was told that it is delivered
}

// sendDirect carries out a command in a private chat, in its lane.
func (n *network) sendDirect(ctx context.Context, to jid.JID, cmd *backends.Command, reply func(backends.Result)) {
	ghost, err := n.ghost(ctx, cmd.Sender)
	if err != nil {
		reply(rejected("%s", err))
		return
	}
	from, err := ghost.WithResource(resource)
	if err != nil {
		reply(rejected("%s", err))
		return
	}
	if cmd.Ephemeral() {
		if typing, ok := cmd.Body.(*backends.Typing); ok {
			e := xep.Message(from, to, "chat", xep.NewID())
			(&xep.Content{State: chatState(typing.On)}).AddTo(e, "")
			n.send(ctx, e.Add(xep.New(xep.NSHints, "no-store")))
		}
		reply(backends.Result{Outcome: backends.Delivered})
		return
	}
	if n.maybeSent(cmd) {
		n.setMaybe(cmd.ID, false)
		reply(backends.Result{Outcome: backends.Uncertain, Reason: "the connection was lost while sending a private message"})
		return
	}
	list := n.directContents(ctx, cmd)
	if list == nil {
		reply(n.directOther(ctx, cmd, ghost, to))
		return
	}
	reply(n.sendDirectContents(ctx, cmd, from, to, list))
}

func (n *network) directContents(ctx context.Context, cmd *backends.Command) []outgoing {
	known := n.idsOf(ctx, cmd.Chat)
	name := func(string) string { return "" }
	author := func(*backends.Quote) string { return string(cmd.Chat.Chat) }
	switch body := cmd.Body.(type) {
	case *backends.Message:
		return contentsOf(body, name, author)
	case *backends.Edit:
		list := contentsOf(&body.New, name, author)[:1]
		list[0].Replace = refIn(known, body.Target)
		return list
	case *backends.Reaction:
		set := known.toggleReaction(body.Target, string(cmd.Sender.Account), body.Key, body.Removed)
		return []outgoing{{Content: xep.Content{ReactTo: refIn(known, body.Target), Reactions: set}}}
	case *backends.Removal:
		return []outgoing{{Content: xep.Content{Retract: refIn(known, body.Target), Reason: body.Reason, Body: retracted}}}
	}
	return nil
}

// refIn is the id attribute of a message, which references in private chats use.
func refIn(known *ids, id backends.MessageID) string {
	if k, ok := known.get(id); ok && k.Ref != "" {
		return k.Ref
	}
	return string(id)
}

// directOther carries out what is no message.
func (n *network) directOther(ctx context.Context, cmd *backends.Command, ghost, to jid.JID) backends.Result {
	member, ok := cmd.Body.(*backends.Member)
	if _, profile := cmd.Body.(*backends.Profile); !ok && !profile {
		return unsupported
	}
	if ok && member.Action == backends.Invited && cmd.Sender.Account != "" { // the chat begins
		n.send(ctx, xep.Presence(ghost, to.Bare(), ""))
	}
	return backends.Result{Outcome: backends.Delivered}
}

// sendDirectContents sends stanzas, and after them a ping to ourselves: when it is
// back, the server has taken them, and refused them already if they cannot be
// delivered on that server.
func (n *network) sendDirectContents(ctx context.Context, cmd *backends.Command, from, to jid.JID, list []outgoing) backends.Result {
	d := &directDelivery{chat: cmd.Chat, peer: to, at: time.Now()}
	if tooLong(list) {
		return rejected("the message is too long for XMPP")
	}
	known := n.idsOf(ctx, cmd.Chat)
	var sent []backends.MessageID
	for i, o := range list {
		id := n.stanzaID(cmd.ID, i)
		o.OriginID = id
		e := xep.Message(from, to, "chat", id)
		o.AddTo(e, o.quoted)
		if nick := cmd.Sender.Name; nick != "" && i == 0 {
			e.Add(xep.New(xep.NSNick, "nick").AddText(nick))
		}
		n.mu.Lock()
		n.direct[id] = d
		n.mu.Unlock()
		if err := n.send(ctx, e); err != nil {
			if i > 0 {
				n.setMaybe(cmd.ID, true)
			}
			return later("not connected to the XMPP server")
		}
		known.add(backends.MessageID(id), id, string(cmd.Sender.Account))
		sent = append(sent, backends.MessageID(id))
	}
	if err := n.roundTrip(ctx); err != nil {
		n.setMaybe(cmd.ID, true)
		return later("the connection to the XMPP server was lost")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	d.settled = true
	if d.refusal != nil {
		return rejected("%s cannot be reached: %s", to.Bare(), errorText(d.refusal))
	}
	return backends.Result{Outcome: backends.Delivered, IDs: sent}
}

// roundTrip returns when the server has dealt with all that was sent before.
func (n *network) roundTrip(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := n.comp.Request(ctx, xep.IQ(n.domain, n.domain, "get").Add(xep.New(xep.NSPing, "ping")))
	if _, answered := errors.AsType[*xep.Error](err); answered {
		return nil
	}
	return err
}

// bounceTime is for how long an error of a remote server is told of.
const bounceTime = 5 * time.Minute

func (n *network) expireDirect(now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, d := range n.direct {
		if now.Sub(d.at) > bounceTime {
			delete(n.direct, id)
		}
	}
}

// bounced notes an error for a private message of ours, and reports whether it was
// one. It runs in the read loop: the answer to the ping that follows the message
// must find it noted. One that comes after the message was said to be delivered
// is told of in the chat.
func (n *network) bounced(ctx context.Context, e *xep.Element, from jid.JID) bool {
	if e.Name.Local != "message" || e.Attr("type") != "error" {
		return false
	}
	n.mu.Lock()
	d := n.direct[e.Attr("id")]
	if d == nil || !d.peer.Bare().Equal(from.Bare()) {
		n.mu.Unlock()
		return false
	}
	delete(n.direct, e.Attr("id"))
	d.refusal = xep.ErrorOf(e)
	late := d.settled
	n.mu.Unlock()
	if late {
		ev := &backends.Event{Chat: d.chat, Sender: peerOf(from, ""), ID: backends.MessageID(xep.NewID()), Body: &backends.Message{
			Kind: backends.Notice, Text: richtext.Plain("A message could not be delivered: " + errorText(d.refusal)),
		}}
		n.in.Do(ctx, "user:"+from.Bare().String(), func() { n.deliver(n.ctx, ev, nil) })
	}
	return true
}
