package xmpp

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// delivery is a command on its way. Its fields but the first two are guarded by
// the MUC's mu.
type delivery struct {
	cmd     *backends.Command
	reply   func(backends.Result)
	ids     []backends.MessageID
	missing int
	at      time.Time
	puppet  *puppet
}

// part is one stanza of a delivery.
type part struct {
	*delivery
	index   int
	subject *xep.Element // nil if it sets none
}

// sendMUC carries out a command in a MUC, in the chat's lane.
func (n *network) sendMUC(ctx context.Context, addr jid.JID, cmd *backends.Command, reply func(backends.Result)) {
	m := n.muc(addr.Bare().String())
	if m == nil {
		reply(later("the room is not joined yet"))
		return
	}
	m.mu.Lock()
	live, refused := m.live, m.refused
	m.mu.Unlock()
	switch {
	case cmd.Ephemeral() && !live:
		reply(rejected("not in the room"))
	case refused != nil && !live:
		reply(rejected("%s", refused.Message))
	case !live:
		reply(later("the room is not joined yet"))
	case !cmd.Ephemeral() && n.maybeSent(cmd):
		m.decide(ctx, cmd, reply)
	default:
		m.carryOut(ctx, cmd, nil, reply)
	}
}

// decide finds out whether an earlier attempt arrived.
func (m *muc) decide(ctx context.Context, cmd *backends.Command, reply func(backends.Result)) {
	found, certain, err := m.findSent(ctx, cmd)
	switch {
	case err != nil && cmd.Attempt < maxAttempts: // the archive may answer yet
		m.n.setMaybe(cmd.ID, true)
		reply(later("the room's archive does not answer"))
	case len(found) > 0 || certain:
		m.n.setMaybe(cmd.ID, false)
		m.carryOut(ctx, cmd, found, reply)
	case !m.isLive():
		reply(later("the connection to the room was lost"))
	default:
		m.n.setMaybe(cmd.ID, false)
		reply(backends.Result{Outcome: backends.Uncertain, Reason: "the connection was lost while sending, and the room keeps no history that would tell"})
	}
}

func (m *muc) isLive() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.live
}

// findSent looks for the stanzas of a command in what we know of the room, then in
// its archive. If nothing is found, certain says that nothing was sent.
func (m *muc) findSent(ctx context.Context, cmd *backends.Command) (found []backends.MessageID, certain bool, err error) {
	if found = m.knownSent(cmd); len(found) > 0 {
		return found, true, nil
	}
	since := cmd.Time
	if since.IsZero() || since.After(time.Now()) {
		since = time.Now()
	}
	since = since.Add(-time.Minute)
	if m.has(xep.NSMAM) {
		return m.searchArchive(ctx, cmd, since)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return nil, !m.oldest.IsZero() && m.oldest.Before(since), nil
}

// knownSent returns the IDs of the command's stanzas that the room has shown us.
func (m *muc) knownSent(cmd *backends.Command) (found []backends.MessageID) {
	for i := 0; ; i++ {
		ref := m.n.stanzaID(cmd.ID, i)
		id, ok := m.ids.of(string(cmd.Sender.Account), ref)
		if !ok {
			if id, ok = m.ids.of(string(botAccount), ref); !ok {
				return found
			}
		}
		found = append(found, id)
	}
}

// searchArchive reads the archive backwards until a time.
func (m *muc) searchArchive(ctx context.Context, cmd *backends.Command, since time.Time) (found []backends.MessageID, certain bool, err error) {
	before := xep.New(xep.NSRSM, "before")
	for range maxPages {
		page, _, end, err := m.page(ctx, before)
		if err != nil {
			return nil, false, err
		}
		for _, e := range page {
			if m.n.ourID(e.Attr("id")) {
				m.ids.add(backends.MessageID(xep.StanzaID(e, m.addr.String())), e.Attr("id"), string(botAccount))
			}
		}
		if found = m.knownSent(cmd); len(found) > 0 {
			return found, true, nil
		}
		if end || len(page) == 0 || xep.DelayOf(page[0]).Before(since) {
			return nil, true, nil
		}
		before = xep.New(xep.NSRSM, "before").AddText(xep.StanzaID(page[0], m.addr.String()))
	}
	return nil, false, nil
}

// carryOut sends what a command says. Of a command that was begun before, found
// are the parts that have arrived.
func (m *muc) carryOut(ctx context.Context, cmd *backends.Command, found []backends.MessageID, reply func(backends.Result)) {
	if cmd.Ephemeral() {
		m.sendEphemeral(ctx, cmd)
		reply(backends.Result{Outcome: backends.Delivered})
		return
	}
	switch body := cmd.Body.(type) {
	case *backends.Member:
		reply(m.sendMember(ctx, cmd, body))
		return
	case *backends.Profile:
		reply(m.sendProfile(ctx, cmd, body))
		return
	}
	list, result := m.contents(cmd)
	if result.Outcome != 0 {
		reply(result)
		return
	}
	if len(found) >= len(list) {
		reply(backends.Result{Outcome: backends.Delivered, IDs: found})
		return
	}
	p, err := m.puppetOf(ctx, cmd.Sender)
	if err != nil {
		reply(m.joinFailed(err))
		return
	}
	if removal, ok := cmd.Body.(*backends.Removal); ok && m.foreign(removal.Target, cmd.Sender.Account) {
		reply(m.moderate(ctx, p, removal))
		return
	}
	m.sendContents(ctx, cmd, p, list, found, reply)
}

// contents says what the stanzas of a command contain; a result with an outcome
// says that there are none.
func (m *muc) contents(cmd *backends.Command) ([]outgoing, backends.Result) {
	switch body := cmd.Body.(type) {
	case *backends.Message:
		return m.replies(contentsOf(body, m.nickOf, m.addressOf)), backends.Result{}
	case *backends.Edit:
		list := m.replies(contentsOf(&body.New, m.nickOf, m.addressOf))[:1] // files are there already
		if k, ok := m.ids.get(body.Target); ok && k.Ref != "" {
			list[0].Replace = k.Ref
		}
		return list, backends.Result{}
	case *backends.Reaction:
		set := m.ids.toggleReaction(body.Target, string(cmd.Sender.Account), body.Key, body.Removed)
		return []outgoing{{Content: xep.Content{ReactTo: m.refOf(body.Target), Reactions: set}}}, backends.Result{}
	case *backends.Removal:
		return []outgoing{{Content: xep.Content{Retract: m.refOf(body.Target), Reason: body.Reason, Body: retracted}}}, backends.Result{}
	case *backends.ChatInfo:
		if body.Topic != nil {
			return []outgoing{{Content: xep.Content{Subject: body.Topic}}}, backends.Result{}
		}
	}
	return nil, unsupported
}

// replies makes references as others understand them.
func (m *muc) replies(list []outgoing) []outgoing {
	for _, o := range list {
		if o.Reply != nil {
			o.Reply.ID = m.refOf(backends.MessageID(o.Reply.ID))
		}
	}
	return list
}

// retracted is for clients that do not know retraction.
const retracted = "This person attempted to retract a previous message, but it's unsupported by your client."

// refOf is how others refer to a message in reactions, replies and retractions.
func (m *muc) refOf(id backends.MessageID) string {
	if k, ok := m.ids.get(id); ok && k.Ref != "" && strings.HasPrefix(string(id), k.Ref+"~") {
		return k.Ref
	}
	return string(id)
}

// nickOf is how a user is called in the room.
func (m *muc) nickOf(user string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.puppets[backends.AccountID(user)]; p != nil {
		return p.nick
	}
	for nick, o := range m.occupants {
		if string(o.user.ID) == user {
			return nick
		}
	}
	return ""
}

// addressOf is the address in the room of whom a reply is to.
func (m *muc) addressOf(q *backends.Quote) string {
	user := string(q.Sender.ID)
	if user == "" {
		user = string(q.Sender.Account)
	}
	to, err := m.addr.WithResource(m.nickOf(user))
	if err != nil {
		return m.addr.String()
	}
	return to.String()
}

// foreign reports whether a message is somebody else's. Of one that the bot counts
// as its own all that is known is that it is ours.
func (m *muc) foreign(id backends.MessageID, account backends.AccountID) bool {
	k, ok := m.ids.get(id)
	return ok && k.From != "" && k.From != string(account) && k.From != string(botAccount)
}

// sendContents sends stanzas but those that have arrived, and waits, without
// holding up the lane, for the room to reflect them.
func (m *muc) sendContents(ctx context.Context, cmd *backends.Command, p *puppet, list []outgoing, found []backends.MessageID, reply func(backends.Result)) {
	d := &delivery{cmd: cmd, reply: reply, ids: make([]backends.MessageID, len(list)), missing: len(list) - len(found), at: time.Now(), puppet: p}
	copy(d.ids, found)
	if tooLong(list) {
		reply(rejected("the message is too long for XMPP"))
		return
	}
	var stanzas []*xep.Element
	m.mu.Lock()
	for i, o := range list {
		if i < len(found) {
			continue
		}
		id := m.n.stanzaID(cmd.ID, i)
		o.OriginID = id
		if p == nil && o.Body != "" && o.Subject == nil {
			o.Body = speakerPrefix(cmd.Sender) + o.Body
		}
		e := xep.Message(m.senderJIDLocked(p), m.addr, "groupchat", id)
		o.AddTo(e, o.quoted)
		m.pending[id] = part{d, i, e.Child(xep.NSComponent, "subject")}
		stanzas = append(stanzas, e)
	}
	m.mu.Unlock()
	for _, e := range stanzas {
		if err := m.n.send(ctx, e); err != nil {
			m.lost(nil) // answers this one too
			return
		}
	}
}

// maxBody is the longest body in bytes, as it is sent; servers end connections over
// stanzas of more than 256 KiB.
const maxBody = 128 << 10

func tooLong(list []outgoing) bool {
	return slices.ContainsFunc(list, func(o outgoing) bool {
		return len(xep.New(xep.NSComponent, "body").AddText(o.Body).String()) > maxBody
	})
}

// maxAttempts is how often we enter again for a message that the room refuses
// because we are not in it.
const maxAttempts = 5

// bounced takes an error for something we sent.
func (m *muc) bounced(ctx context.Context, e *xep.Element, to jid.JID) {
	refusal := xep.ErrorOf(e)
	m.mu.Lock()
	p, ok := m.pending[e.Attr("id")]
	if !ok || !m.senderJIDLocked(p.puppet).Equal(to) {
		m.mu.Unlock()
		return
	}
	notIn := refusal.Condition == "not-acceptable" && p.puppet != nil && p.cmd.Attempt < maxAttempts
	if notIn {
		p.puppet.joined = false
	}
	begun := p.missing < len(p.ids)
	for id, other := range m.pending {
		if other.delivery == p.delivery {
			delete(m.pending, id)
		}
	}
	m.mu.Unlock()
	m.n.setMaybe(p.cmd.ID, notIn && begun)
	if notIn {
		p.reply(later("the room had removed you"))
	} else {
		p.reply(rejected("the room refuses the message: %s", errorText(refusal)))
	}
}

// expire answers what the room has not reflected for too long.
func (m *muc) expire(now time.Time) {
	m.mu.Lock()
	var late []*delivery
	for id, p := range m.pending {
		if now.Sub(p.at) > confirmTimeout {
			delete(m.pending, id)
			if !slices.Contains(late, p.delivery) {
				late = append(late, p.delivery)
			}
		}
	}
	m.mu.Unlock()
	for _, d := range late {
		d.reply(backends.Result{Outcome: backends.Uncertain, Reason: "the room did not confirm the message"})
	}
}

// sendEphemeral tells of typing, of those only who are in the room.
func (m *muc) sendEphemeral(ctx context.Context, cmd *backends.Command) {
	typing, ok := cmd.Body.(*backends.Typing)
	m.mu.Lock()
	p := m.puppets[cmd.Sender.Account]
	joined := p != nil && p.joined
	m.mu.Unlock()
	if !ok || !joined {
		return
	}
	e := xep.Message(p.jid, m.addr, "groupchat", xep.NewID())
	(&xep.Content{State: chatState(typing.On)}).AddTo(e, "")
	m.n.send(ctx, e.Add(xep.New(xep.NSHints, "no-store")))
}

func chatState(on bool) string {
	if on {
		return "composing"
	}
	return "paused"
}

// sendMember carries out what a user of the host does to a membership.
func (m *muc) sendMember(ctx context.Context, cmd *backends.Command, body *backends.Member) backends.Result {
	done := backends.Result{Outcome: backends.Delivered}
	switch body.Action {
	case backends.Joined:
		if _, err := m.puppetOf(ctx, body.User); err != nil {
			return m.joinFailed(err)
		}
		return done
	case backends.Left:
		m.removePuppet(ctx, body.User.Account, body.Reason)
		return done
	case backends.Kicked, backends.Banned, backends.Unbanned:
		if body.User.Account != "" && body.User.ID == "" {
			m.removePuppet(ctx, body.User.Account, body.Reason)
			return done
		}
		return m.sendAdmin(ctx, cmd, body)
	case backends.Invited:
		if body.User.ID == "" {
			return done
		}
		return m.sendInvite(ctx, cmd, body)
	}
	return unsupported
}

// sendAdmin kicks or bans (XEP-0045 §8.2, §9.1) as the user, whose rights in the
// room decide.
func (m *muc) sendAdmin(ctx context.Context, cmd *backends.Command, body *backends.Member) backends.Result {
	p, err := m.puppetOf(ctx, cmd.Sender)
	if err != nil {
		return m.joinFailed(err)
	}
	item := xep.New(xep.NSMUCAdmin, "item")
	switch target, err := jid.Parse(string(body.User.ID)); {
	case body.Action == backends.Kicked:
		nick := m.nickOf(string(body.User.ID))
		if nick == "" {
			return rejected("they are not in the room")
		}
		item.Set("nick", nick)
		item.Set("role", "none")
	case err != nil || target.Resourcepart() != "":
		return rejected("the room does not show the address of %s, so they can only be kicked", body.User.Name)
	default:
		item.Set("jid", target.String())
		item.Set("affiliation", xep.Outcast)
		if body.Action == backends.Unbanned {
			item.Set("affiliation", xep.None)
		}
	}
	if body.Reason != "" {
		item.Add(xep.New(xep.NSMUCAdmin, "reason").AddText(body.Reason))
	}
	return m.request(ctx, p, xep.New(xep.NSMUCAdmin, "query").Add(item))
}

// request asks the room to do something for a puppet.
func (m *muc) request(ctx context.Context, p *puppet, payload *xep.Element) backends.Result {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	m.mu.Lock()
	from := m.senderJIDLocked(p)
	m.mu.Unlock()
	_, err := m.n.comp.Request(ctx, xep.IQ(from, m.addr, "set").Add(payload))
	if e, ok := errors.AsType[*xep.Error](err); ok {
		return rejected("the room refuses: %s", errorText(e))
	}
	if err != nil {
		return later(err.Error())
	}
	return backends.Result{Outcome: backends.Delivered}
}

// moderate removes a message of somebody else (XEP-0425).
func (m *muc) moderate(ctx context.Context, p *puppet, body *backends.Removal) backends.Result {
	if !m.has(xep.NSModerate) {
		return rejected("the room does not let messages of others be removed")
	}
	payload := xep.New(xep.NSModerate, "moderate", "id", string(body.Target)).Add(xep.New(xep.NSRetract, "retract"))
	if body.Reason != "" {
		payload.Add(xep.New(xep.NSModerate, "reason").AddText(body.Reason))
	}
	return m.request(ctx, p, payload)
}

// sendInvite asks a remote user into the room (XEP-0249).
func (m *muc) sendInvite(ctx context.Context, cmd *backends.Command, body *backends.Member) backends.Result {
	to, err := jid.Parse(string(body.User.ID))
	if err != nil {
		return rejected("%q is not an XMPP address", body.User.ID)
	}
	from, err := m.n.ghost(ctx, cmd.Sender)
	if err != nil {
		return rejected("%s", err)
	}
	e := xep.Message(from, to, "normal", m.n.stanzaID(cmd.ID, 0)).
		Add(xep.New(xep.NSConference, "x", "jid", m.addr.String(), "reason", body.Reason))
	if err := m.n.send(ctx, e); err != nil {
		return later(err.Error())
	}
	return backends.Result{Outcome: backends.Delivered}
}
