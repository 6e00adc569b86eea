package xmpp

import (
	"context"
	"fmt"
	"strings"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// maxEchoes is how many messages of a room may wait to be put in order.
const maxEchoes = 1000

// shown is a message as the room shows it, but for whom it is to.
type shown struct {
	nick    string // "" for the room itself
	key     string // of the sender
	id      string // the id attribute
	sid     string // the stanza ID
	payload []*xep.Element
	at      time.Time // of the past, zero if live
}

// handleMessage takes what an occupant says (XEP-0045 §7.4). It is reflected when
// the host has put it in order, or at once if it is nothing to the host.
func (r *room) handleMessage(ctx context.Context, e *xep.Element, from jid.JID) {
	d := r.device(from)
	var refusal *xep.Error
	switch {
	case d == nil:
		refusal = notJoined
	case !r.n.limits.allow(from.Bare().String()):
		refusal = tooFast
	case d.of.role == backends.Visitor:
		refusal = noVoice
	}
	if refusal != nil {
		r.n.refuse(ctx, e, refusal)
		return
	}
	c := xep.ContentOf(e)
	if isSubject(e) {
		ev := r.event(d.of, backends.MessageID(xep.NewID()), &backends.ChatInfo{Chat: backends.ChatKey{Chat: r.id}, Topic: c.Subject})
		r.n.deliver(ctx, ev, r.n.receipt(e))
		return
	}
	if k, ok := r.ids.get(backends.MessageID(c.Retract)); ok && k.From != d.of.key && d.of.role < backends.Moderator {
		r.n.refuse(ctx, e, &xep.Error{Type: "auth", Condition: "forbidden", Text: "This is not your message."})
		return
	}
	id := backends.MessageID(xep.NewID())
	events := eventsOf(&c, e, r.ids, id, d.of.user, false, r.mentionable())
	if len(events) == 0 || events[0].ID == "" { // a chat state, a marker and the like
		r.reflect(ctx, e, d.of.key, string(id))
	}
	waiting := &echo{stanza: e, key: d.of.key}
	for _, ev := range events {
		ev.Chat, ev.Sender, ev.Time = backends.ChatKey{Chat: r.id}, d.of.user, time.Now()
		if ev.ID == "" {
			r.n.deliver(ctx, ev, nil)
			continue
		}
		r.expect(ev.ID, waiting)
		r.n.deliver(ctx, ev, r.refusedBy(e))
	}
}

// refusedBy tells the sender if the host refuses a message.
func (r *room) refusedBy(e *xep.Element) func(backends.Receipt) {
	return func(receipt backends.Receipt) {
		if receipt.Err != nil {
			r.n.send(r.n.ctx, xep.ErrorTo(e, stanzaError(receipt.Err)))
		}
	}
}

func (r *room) expect(id backends.MessageID, e *echo) {
	r.echoes[id] = e
	r.echoOrder = append(r.echoOrder, id)
	if len(r.echoOrder) > maxEchoes {
		delete(r.echoes, r.echoOrder[0])
		r.echoOrder = r.echoOrder[1:]
	}
}

// mentionable are the nicks of the host's users.
func (r *room) mentionable() map[string]string {
	nicks := map[string]string{}
	for nick, m := range r.nicks {
		if m.user.Account != "" && m.user.ID == "" {
			nicks[nick] = string(m.user.Account)
		}
	}
	return nicks
}

// handlePrivate takes a message from one occupant to another (XEP-0045 §7.5).
func (r *room) handlePrivate(ctx context.Context, e *xep.Element, from, to jid.JID) {
	d, target := r.device(from), r.nicks[to.Resourcepart()]
	switch {
	case d == nil:
		r.n.refuse(ctx, e, notJoined)
	case target == nil:
		r.n.refuse(ctx, e, notFound)
	case len(target.devices) > 0:
		if !r.n.limits.allow(from.Bare().String()) {
			r.n.refuse(ctx, e, tooFast)
			return
		}
		for _, other := range target.devices {
			m := xep.New(xep.NSComponent, "message", "from", other.via+"/"+d.of.nick, "to", other.full.String(), "type", e.Attr("type"), "id", e.Attr("id"))
			r.n.send(ctx, m.Add(r.passed(e)...).Add(xep.New(xep.NSMUCUser, "x")))
		}
	case target.user.Account != "" && target.user.ID == "":
		r.n.receiveDirect(ctx, e, from, target.user)
	default:
		r.n.refuse(ctx, e, unavailable)
	}
}

// passed is what of a stanza is passed on: all but what only the room may say.
func (r *room) passed(e *xep.Element) []*xep.Element {
	var list []*xep.Element
	for _, c := range e.Children() {
		switch {
		case c.Is(xep.NSSID, "stanza-id"), c.Is(xep.NSOccupant, "occupant-id"), c.Is(xep.NSDelay, "delay"), c.Is(xep.NSMUCUser, "x"):
		default:
			list = append(list, c)
		}
	}
	return list
}

// reflect shows an occupant's stanza to everybody.
func (r *room) reflect(ctx context.Context, e *xep.Element, key, sid string) {
	r.show(ctx, shown{nick: r.nickOf(key, backends.User{}), key: key, id: e.Attr("id"), sid: sid, payload: r.passed(e)})
}

// show sends a message to all devices, and keeps it for those on their way.
func (r *room) show(ctx context.Context, s shown) {
	for _, d := range r.devices() {
		r.sendShown(ctx, s, d)
	}
	for _, j := range r.joins {
		if len(j.missed) < maxEchoes {
			j.missed = append(j.missed, s)
		}
	}
}

func (r *room) sendShown(ctx context.Context, s shown, d *device) {
	from := d.via
	if s.nick != "" {
		from += "/" + s.nick
	}
	e := xep.New(xep.NSComponent, "message", "from", from, "to", d.full.String(), "type", "groupchat", "id", s.id)
	e.Add(s.payload...)
	if s.sid != "" {
		e.Add(xep.New(xep.NSSID, "stanza-id", "by", d.via, "id", s.sid))
	}
	if s.key != "" {
		e.Add(r.occupantID(s.key))
	}
	if !s.at.IsZero() {
		e.Add(xep.New(xep.NSDelay, "delay", "from", d.via, "stamp", xep.Stamp(s.at)))
	}
	r.n.send(ctx, e)
}

// nickOf is the nick of a member, or of somebody who was one.
func (r *room) nickOf(key string, u backends.User) string {
	if m := r.members[key]; m != nil {
		return m.nick
	}
	return nickFrom(u.Name, u.Username, string(u.ID), string(u.Account))
}

// replay sends the past (XEP-0045 §7.2.14).
func (r *room) replay(ctx context.Context, d *device, history []backends.Command) {
	for _, c := range history {
		if _, removed := c.Body.(*backends.Removal); removed {
			continue
		}
		for _, s := range r.render(&c) {
			s.at = c.Time
			r.sendShown(ctx, s, d)
		}
	}
}

// sendSubject ends a join; it is sent even if there is none.
func (r *room) sendSubject(ctx context.Context, d *device) {
	r.sendShown(ctx, shown{nick: r.topicBy, payload: []*xep.Element{xep.New(xep.NSComponent, "subject").AddText(r.topic)}, at: r.topicAt}, d)
}

// sendRoom carries out a command in a room of the gateway.
func (n *network) sendRoom(ctx context.Context, addr jid.JID, cmd *backends.Command, reply func(backends.Result)) {
	r := n.room(addr)
	if r == nil { // nobody is here to see it
		reply(backends.Result{Outcome: backends.Delivered, IDs: n.roomIDs(cmd)})
		return
	}
	if !n.isUp() {
		if cmd.Ephemeral() {
			reply(rejected("not connected to the XMPP server"))
		} else {
			reply(later("not connected to the XMPP server"))
		}
		return
	}
	work := func() { reply(r.carryOut(ctx, cmd)) }
	err := r.do(ctx, func() {
		if !r.loaded {
			r.backlog = append(r.backlog, work)
			return
		}
		work()
	})
	if err != nil {
		reply(later("closing"))
	}
}

// roomIDs are the stanza IDs of a command in a room of the gateway: an echo keeps
// that of its event, others have the command's own, by which the host knows even
// what was said before it showed us the room.
func (n *network) roomIDs(cmd *backends.Command) []backends.MessageID {
	first := cmd.Echo
	if first == "" {
		first = backends.MessageID(cmd.ID)
	}
	list := []backends.MessageID{first}
	if m, ok := cmd.Body.(*backends.Message); ok {
		for i := 1; i < partsOf(m); i++ {
			list = append(list, backends.MessageID(fmt.Sprintf("%s/%d", cmd.ID, i)))
		}
	}
	return list
}

// partsOf is how many stanzas contentsOf makes.
func partsOf(m *backends.Message) int {
	parts := len(m.Files)
	if len(m.Text) > 0 || parts == 0 {
		parts++
	}
	return parts
}

// carryOut shows a command, in the room's lane.
func (r *room) carryOut(ctx context.Context, cmd *backends.Command) backends.Result {
	done := backends.Result{Outcome: backends.Delivered}
	key := memberKey(cmd.Sender)
	switch body := cmd.Body.(type) {
	case *backends.Typing:
		if m := r.members[key]; m != nil && len(m.devices) == 0 && !m.hidden {
			state := xep.New(xep.NSChatStates, chatState(body.On))
			r.show(ctx, shown{nick: m.nick, key: key, id: xep.NewID(), payload: []*xep.Element{state, xep.New(xep.NSHints, "no-store")}})
		}
	case *backends.Member:
		r.showMember(ctx, cmd.Sender, body)
	case *backends.Members:
		r.showMembers(ctx, body)
	case *backends.RoleChange:
		if m := r.members[memberKey(body.User)]; m != nil && m.role != body.Role {
			m.role = body.Role
			r.tellPresence(ctx, m, "", nil)
		}
	case *backends.Profile:
		r.showProfile(ctx, body)
	case *backends.ChatInfo:
		r.showInfo(ctx, cmd, body)
	case *backends.Message, *backends.Edit, *backends.Reaction, *backends.Removal:
		r.showMessage(ctx, cmd, key)
		done.IDs = r.n.roomIDs(cmd)
	default:
		return unsupported
	}
	return done
}

// showMessage reflects what a gateway user wrote as they wrote it, and writes what
// the host's users wrote.
func (r *room) showMessage(ctx context.Context, cmd *backends.Command, key string) {
	r.reveal(ctx, r.members[key])
	if e := r.echoes[cmd.Echo]; e != nil && cmd.Echo != "" {
		delete(r.echoes, cmd.Echo)
		if !e.shown {
			e.shown = true
			r.reflect(ctx, e.stanza, e.key, string(cmd.Echo))
		}
		return
	}
	for _, s := range r.render(cmd) {
		r.show(ctx, s)
	}
}

// render writes a command as messages of the room. The same command gives the same
// messages whenever it is rendered.
func (r *room) render(cmd *backends.Command) []shown {
	key := memberKey(cmd.Sender)
	var list []outgoing
	switch body := cmd.Body.(type) {
	case *backends.Message:
		list = contentsOf(body, r.mentionNick, r.authorOf)
		for i := range list {
			list[i].Body = cutBody(list[i].Body)
		}
	case *backends.Edit:
		list = contentsOf(&body.New, r.mentionNick, r.authorOf)[:1]
		list[0].Replace = refIn(r.ids, body.Target)
	case *backends.Reaction:
		set := r.ids.toggleReaction(body.Target, key, body.Key, body.Removed)
		list = []outgoing{{Content: xep.Content{ReactTo: string(body.Target), Reactions: set}}}
	case *backends.Removal:
		if k, ok := r.ids.get(body.Target); body.Moderated || ok && k.From != "" && k.From != key {
			key = ""
		}
		list = []outgoing{{Content: xep.Content{Retract: string(body.Target), Reason: body.Reason, Moderated: key == "", Body: retracted}}}
	default:
		return nil
	}
	ids := r.n.roomIDs(cmd)
	var out []shown
	for i, o := range list {
		s := shown{key: key, sid: string(ids[i]), id: refIn(r.ids, ids[i])}
		if key != "" {
			s.nick = r.nickOf(key, cmd.Sender)
		}
		if _, ok := cmd.Body.(*backends.Message); ok {
			r.ids.add(ids[i], s.id, key)
		}
		e := xep.New(xep.NSComponent, "message")
		o.AddTo(e, o.quoted)
		s.payload = e.Children()
		out = append(out, s)
	}
	return out
}

// cutBody shortens a body that servers would not pass on. The room has the rest.
func cutBody(s string) string {
	if len(s) > maxBody/5 && tooLong([]outgoing{{Content: xep.Content{Body: s}}}) {
		return strings.ToValidUTF8(s[:maxBody/5], "") + " […]"
	}
	return s
}

func (r *room) mentionNick(user string) string {
	if m := r.members[user]; m != nil {
		return m.nick
	}
	return ""
}

// authorOf is the address of whom a reply is to.
func (r *room) authorOf(q *backends.Quote) string {
	return r.addr.String() + "/" + r.nickOf(memberKey(q.Sender), q.Sender)
}

// showMember follows who comes and goes on the host's side.
func (r *room) showMember(ctx context.Context, by backends.User, body *backends.Member) {
	m := r.members[memberKey(body.User)]
	switch body.Action {
	case backends.Joined:
		if m == nil {
			m = r.add(body.User, body.Role)
			r.tellPresence(ctx, m, "", nil)
		}
	case backends.Left, backends.Kicked, backends.Banned:
		// That gateway users leave we know first; they may be back already.
		if m != nil && (body.Action != backends.Left || len(m.devices) == 0) {
			r.showGone(ctx, m, by, body)
		}
	}
}

// showGone takes a member out whom the host has taken out.
func (r *room) showGone(ctx context.Context, m *member, by backends.User, body *backends.Member) {
	change := func(u *xep.MUCUser) {
		u.Reason = body.Reason
		switch body.Action {
		case backends.Banned:
			u.Affiliation, u.Codes = xep.Outcast, append(u.Codes, xep.StatusBanned)
		case backends.Kicked:
			u.Codes = append(u.Codes, xep.StatusKicked)
		default:
			return
		}
		u.Actor = r.nickOf(memberKey(by), by)
	}
	r.tellPresence(ctx, m, "unavailable", change)
	r.remove(m)
	r.save(ctx)
	r.closeIfEmpty()
}

// showMembers takes over the host's whole list.
func (r *room) showMembers(ctx context.Context, body *backends.Members) {
	there := map[string]bool{}
	for _, m := range body.Members {
		there[memberKey(m.User)] = true
		r.showMember(ctx, m.User, &backends.Member{Action: backends.Joined, User: m.User, Role: m.Role})
	}
	for key, m := range r.members {
		if !there[key] && len(m.devices) == 0 {
			r.showGone(ctx, m, m.user, &backends.Member{Action: backends.Left, User: m.user})
		}
	}
}

// showProfile follows a change of display name.
func (r *room) showProfile(ctx context.Context, body *backends.Profile) {
	m := r.members[memberKey(body.User)]
	if m == nil || len(m.devices) > 0 {
		return
	}
	m.user = body.User
	for _, nick := range candidates(body.User) {
		if r.nicks[nick] == m {
			return
		}
		if r.nicks[nick] == nil {
			r.showRename(ctx, m, nick)
			return
		}
	}
}

// showInfo follows the topic, and lets clients ask anew for what else has changed
// (XEP-0045 §10.2.1).
func (r *room) showInfo(ctx context.Context, cmd *backends.Command, body *backends.ChatInfo) {
	if body.Name != nil || body.Avatar != nil {
		changed := xep.New(xep.NSMUCUser, "x").Add(xep.New(xep.NSMUCUser, "status", "code", "104"))
		r.show(ctx, shown{id: xep.NewID(), payload: []*xep.Element{changed}})
	}
	if body.Topic == nil {
		return
	}
	r.topic, r.topicBy, r.topicAt = *body.Topic, r.nickOf(memberKey(cmd.Sender), cmd.Sender), cmd.Time
	if r.topicAt.IsZero() {
		r.topicAt = time.Now()
	}
	r.show(ctx, shown{
		nick: r.topicBy, key: memberKey(cmd.Sender), id: string(r.n.roomIDs(cmd)[0]), sid: string(r.n.roomIDs(cmd)[0]),
		payload: []*xep.Element{xep.New(xep.NSComponent, "subject").AddText(r.topic)},
	})
}
