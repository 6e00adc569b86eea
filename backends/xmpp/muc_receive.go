package xmpp

import (
	"context"
	"regexp"
	"slices"
	"strconv"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// handleMessage takes a groupchat message, live if at is zero. A silent one is
// only for our own knowledge: the host has it or does not want it.
func (m *muc) handleMessage(ctx context.Context, e *xep.Element, from jid.JID, at time.Time, silent bool) {
	c := xep.ContentOf(e)
	if isSubject(e) {
		m.handleSubject(ctx, e, from, at, silent, *c.Subject)
		return
	}
	id := m.messageID(e, &c)
	sender, account := m.senderOf(e, from, !at.IsZero())
	if !silent {
		m.mu.Lock()
		m.last = &backends.Mark{ID: id, Time: orNow(at)}
		m.mu.Unlock()
	}
	if account != "" {
		m.ids.add(id, e.Attr("id"), string(account))
		m.reflected(e, &c, id)
		return
	}
	m.resolve(&c)
	if silent {
		m.ids.add(id, e.Attr("id"), string(sender.ID))
		if c.ReactTo != "" {
			m.ids.setReactions(backends.MessageID(c.ReactTo), string(sender.ID), c.Reactions)
		}
		return
	}
	fromRoom := from.Resourcepart() == ""
	for _, ev := range eventsOf(&c, e, m.ids, id, sender, fromRoom, m.mentionable()) {
		ev.Chat, ev.Sender, ev.Time = m.chat, sender, at
		m.n.deliver(ctx, ev, nil)
	}
}

// resolve replaces references to id attributes, which are all that rooms without
// stanza IDs have, by message IDs.
func (m *muc) resolve(c *xep.Content) {
	for _, ref := range []*string{&c.ReactTo, &c.Retract} {
		*ref = m.ids.resolve(*ref)
	}
	if c.Reply != nil {
		c.Reply.ID = m.ids.resolve(c.Reply.ID)
	}
}

func orNow(t time.Time) time.Time {
	if t.IsZero() {
		return time.Now()
	}
	return t
}

// messageID names a message: by the room's stanza ID, which all references but
// corrections use, or by the sender's where the room gives none.
func (m *muc) messageID(e *xep.Element, c *xep.Content) backends.MessageID {
	if id := xep.StanzaID(e, m.addr.String()); id != "" {
		return backends.MessageID(id)
	}
	for _, id := range []string{e.Attr("id"), c.OriginID} {
		if id != "" { // unique for its sender only
			return backends.MessageID(id + "~" + mac(m.n.key, "message", e.Attr("from"))[:8])
		}
	}
	if at := xep.DelayOf(e); !at.IsZero() { // the same each time it is replayed
		return backends.MessageID(mac(m.n.key, "message", e.Attr("from"), c.Body, xep.Stamp(at)))
	}
	return backends.MessageID(xep.NewID())
}

// senderOf tells who wrote a message: a remote user, or one of ours. Of the past
// the nick alone says little; our stanza IDs prove themselves.
func (m *muc) senderOf(e *xep.Element, from jid.JID, past bool) (backends.User, backends.AccountID) {
	nick := from.Resourcepart()
	m.mu.Lock()
	defer m.mu.Unlock()
	account, ours := m.nicks[nick]
	if nick != "" && nick == m.nick {
		account, ours = botAccount, true
	}
	if ours && !past {
		return backends.User{}, account
	}
	if past && m.n.ourID(e.Attr("id")) {
		return backends.User{}, orBot(account)
	}
	if nick == "" {
		return backends.User{ID: backends.UserID(m.addr.String()), Name: m.name, Username: m.addr.Localpart(), Domain: m.addr.Domainpart()}, ""
	}
	user := m.userLocked(e, nick, xep.MUCUserOf(e))
	if o, ok := m.occupants[nick]; ok && (!past || user.ID == m.nickID(nick)) {
		return o.user, ""
	}
	return user, ""
}

// botAccount stands for the bot where an account is asked for; it is no account
// of the host.
const botAccount backends.AccountID = "\x00bot"

func orBot(a backends.AccountID) backends.AccountID {
	if a == "" {
		return botAccount
	}
	return a
}

// mentionable are the nicks of the host's users in the room.
func (m *muc) mentionable() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	nicks := make(map[string]string, len(m.nicks))
	for nick, account := range m.nicks {
		nicks[nick] = string(account)
	}
	return nicks
}

// eventsOf turns a message into what it means: mostly one event, for reactions one
// for each that has come or gone. Chat, sender and time are left to the caller.
func eventsOf(c *xep.Content, e *xep.Element, known *ids, id backends.MessageID, sender backends.User, fromRoom bool, nicks map[string]string) []*backends.Event {
	switch {
	case c.Retract != "":
		if c.Moderated && !fromRoom {
			return nil // only the room may say so (XEP-0425)
		}
		return one(id, &backends.Removal{Target: backends.MessageID(c.Retract), Reason: c.Reason, Moderated: c.Moderated})
	case c.ReactTo != "":
		return reactionEvents(c, known, id, sender)
	case c.Body == "" && c.XHTML == nil && len(c.Files) == 0:
		if c.State == "" {
			return nil
		}
		return one("", &backends.Typing{On: c.State == "composing"})
	}
	msg := messageOf(c, nicks)
	if c.Replace != "" {
		if target, ok := known.of(string(sender.ID), c.Replace); ok {
			return one(id, &backends.Edit{Target: target, New: *msg})
		}
	}
	known.add(id, e.Attr("id"), string(sender.ID))
	return one(id, msg)
}

func one(id backends.MessageID, body backends.Body) []*backends.Event {
	return []*backends.Event{{ID: id, Body: body}}
}

func reactionEvents(c *xep.Content, known *ids, id backends.MessageID, sender backends.User) []*backends.Event {
	var events []*backends.Event
	target := backends.MessageID(c.ReactTo)
	added, removed := known.setReactions(target, string(sender.ID), c.Reactions)
	for i, key := range removed {
		events = append(events, one(id+backends.MessageID("/-"+strconv.Itoa(i)), &backends.Reaction{Target: target, Key: key, Removed: true})...)
	}
	for i, key := range added {
		events = append(events, one(id+backends.MessageID("/+"+strconv.Itoa(i)), &backends.Reaction{Target: target, Key: key})...)
	}
	return events
}

// reactionSuffix is what reactionEvents adds to the message's ID.
var reactionSuffix = regexp.MustCompile(`/[+-][0-9]+$`)

func (m *muc) handleSubject(ctx context.Context, e *xep.Element, from jid.JID, at time.Time, silent bool, subject string) {
	sender, account := m.senderOf(e, from, !at.IsZero())
	m.mu.Lock()
	changed := m.topic == nil || *m.topic != subject
	m.topic = &subject
	m.mu.Unlock()
	if account != "" {
		m.reflected(e, &xep.Content{OriginID: m.subjectID(account, subject)}, backends.MessageID(e.Attr("id")))
		return
	}
	if changed && !silent && at.IsZero() {
		m.n.deliver(ctx, &backends.Event{Chat: m.chat, Sender: sender, Body: &backends.ChatInfo{Chat: m.chat, Topic: &subject}}, nil)
	}
}

// subjectID is the stanza ID of a change of subject of ours: Prosody does not keep
// it in what it sends to the room.
func (m *muc) subjectID(account backends.AccountID, subject string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, p := range m.pending {
		if p.subject != nil && p.subject.Text() == subject && p.cmd.Sender.Account == account {
			return id
		}
	}
	return ""
}

// reflected confirms the command that a message of ours came from.
func (m *muc) reflected(e *xep.Element, c *xep.Content, id backends.MessageID) {
	m.mu.Lock()
	p, ok := m.pending[e.Attr("id")]
	key := e.Attr("id")
	if !ok { // a room that does not keep the id attribute
		p, ok = m.pending[c.OriginID]
		key = c.OriginID
	}
	if !ok {
		m.mu.Unlock()
		return
	}
	delete(m.pending, key)
	if id == "" {
		id = backends.MessageID(key)
	}
	p.delivery.ids[p.index] = id
	p.delivery.missing--
	done := p.delivery.missing == 0
	m.mu.Unlock()
	if done {
		m.n.setMaybe(p.delivery.cmd.ID, false)
		p.delivery.reply(backends.Result{Outcome: backends.Delivered, IDs: p.delivery.ids})
	}
}

// missed fetches what came after resume from the room's archive, if it has one.
func (m *muc) missed(ctx context.Context, resume *backends.Mark) (archive []*xep.Element, complete bool) {
	if resume == nil || resume.ID == "" || !m.has(xep.NSMAM) {
		return nil, false
	}
	after := reactionSuffix.ReplaceAllString(string(resume.ID), "")
	for range maxPages {
		page, last, end, err := m.page(ctx, xep.New(xep.NSRSM, "after").AddText(after))
		if err != nil {
			m.n.log.Info("cannot read the MUC's archive", "chat", m.chat.Chat, "err", err)
			return archive, false
		}
		archive = append(archive, page...)
		if end || last == "" || len(page) == 0 {
			return archive, true
		}
		after = last
	}
	return archive, false
}

const (
	maxPages = 20
	pageSize = 100
)

func (m *muc) has(feature string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.features[feature]
}

// page reads part of the archive (XEP-0313): the messages, oldest first, as they
// were in the room, with their stanza IDs and delay stamps.
func (m *muc) page(ctx context.Context, position *xep.Element) (page []*xep.Element, last string, end bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	queryID := xep.NewID()
	set := xep.New(xep.NSRSM, "set").Add(xep.New(xep.NSRSM, "max").AddText(strconv.Itoa(pageSize)), position)
	iq := xep.IQ(m.n.bot, m.addr, "set").Add(xep.New(xep.NSMAM, "query", "queryid", queryID).Add(set))
	results, answer, err := m.n.comp.Collect(ctx, iq, queryID)
	if err != nil {
		return nil, "", false, err
	}
	for _, r := range results {
		forwarded := r.Child(xep.NSForward, "forwarded")
		for _, e := range forwarded.Children() {
			if e.Name.Local == "message" {
				page = append(page, archived(e, forwarded, r.Attr("id"), m.addr.String()))
			}
		}
	}
	fin := answer.Child(xep.NSMAM, "fin")
	return page, fin.Child(xep.NSRSM, "set").Child(xep.NSRSM, "last").Text(), fin.Attr("complete") == "true", nil
}

// archived makes of a forwarded message one like those that the room sends.
func archived(e, forwarded *xep.Element, id, by string) *xep.Element {
	m := e.Clone()
	m.Nodes = slices.DeleteFunc(m.Nodes, func(n xep.Node) bool {
		return n.Element.Is(xep.NSSID, "stanza-id") || n.Element.Is(xep.NSDelay, "delay")
	})
	return m.Add(forwarded.Child(xep.NSDelay, "delay"), xep.New(xep.NSSID, "stanza-id", "id", id, "by", by)).InComponent()
}

// catchUp ends a join, in the room's lane: the members, then what was missed, then
// what came meanwhile.
func (m *muc) catchUp(ctx context.Context, resume *backends.Mark, archive []*xep.Element, complete bool) {
	m.mu.Lock()
	held := m.held
	m.held, m.live = nil, true
	list := &backends.Members{}
	for _, o := range m.occupants {
		list.Members = append(list.Members, backends.Member{Action: backends.Joined, User: o.user, Role: o.role, Quiet: true})
	}
	for _, e := range held {
		if at := xep.DelayOf(e); !at.IsZero() && !isSubject(e) && (m.oldest.IsZero() || at.Before(m.oldest)) {
			m.oldest = at
		}
	}
	m.mu.Unlock()
	m.n.deliver(ctx, &backends.Event{Chat: m.chat, Body: list}, nil)
	seen := map[backends.MessageID]bool{}
	if resume != nil {
		seen[resume.ID] = true
	}
	m.passOn(ctx, archive, resume, seen)
	if resume != nil && !complete {
		known := resume
		if n := len(archive); n > 0 {
			known = &backends.Mark{ID: m.messageID(archive[n-1], &xep.Content{}), Time: xep.DelayOf(archive[n-1])}
		}
		m.tellGap(ctx, known, held)
	}
	m.passOn(ctx, held, resume, seen)
}

// passOn handles messages of a join, each once. What is older than resume, or
// history nobody asked for, is handled silently.
func (m *muc) passOn(ctx context.Context, messages []*xep.Element, resume *backends.Mark, seen map[backends.MessageID]bool) {
	for _, e := range messages {
		from, err := jid.Parse(e.Attr("from"))
		c := xep.Content{OriginID: e.Child(xep.NSSID, "origin-id").Attr("id")}
		id := m.messageID(e, &c)
		if err != nil || !isSubject(e) && seen[id] {
			continue
		}
		seen[id] = true
		at := xep.DelayOf(e)
		silent := !at.IsZero() && (resume == nil || at.Before(resume.Time.Add(-2*time.Second)))
		m.handleMessage(ctx, e, from, at, silent)
	}
}

// tellGap says so if the room's history does not reach back to what is known.
func (m *muc) tellGap(ctx context.Context, known *backends.Mark, held []*xep.Element) {
	to := time.Now()
	for _, e := range held {
		if at := xep.DelayOf(e); !at.IsZero() && !isSubject(e) {
			if m.messageID(e, &xep.Content{}) == known.ID || at.Before(known.Time) {
				return
			}
			if at.Before(to) {
				to = at
			}
		}
	}
	m.n.deliver(ctx, &backends.Event{Chat: m.chat, Body: &backends.Gap{From: known.Time, To: to}}, nil)
}
