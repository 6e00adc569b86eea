package xmpp

import (
	"context"
	"strconv"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// enterTimeout bounds a join: the host may have to ask another server.
const enterTimeout = 30 * time.Second

// joining is a device on its way into a room.
type joining struct {
	full   jid.JID
	via    string
	nick   string
	stanza *xep.Element // nil when it is brought back after a restart
	missed []shown      // what the room has shown to others meanwhile
}

func (r *room) handlePresence(ctx context.Context, e *xep.Element, from, to jid.JID, isJoin bool) {
	d := r.device(from)
	switch typ := e.Attr("type"); {
	case typ == "error":
		r.bounced(ctx, e, from)
	case typ == "unavailable":
		if d != nil {
			r.leave(ctx, d, e.Child(xep.NSComponent, "status").Text(), true)
		} else {
			delete(r.joins, from.String())
			r.closeIfEmpty()
		}
	case typ != "":
	case isJoin:
		r.join(ctx, e, from, to)
	case d == nil:
		r.n.refuse(ctx, e, notJoined)
	case to.Resourcepart() != d.of.nick:
		r.changeNick(ctx, e, d, to.Resourcepart())
	default:
		d.of.show = nil
		for _, name := range []string{"show", "status"} {
			if c := e.Child(xep.NSComponent, name); c != nil {
				d.of.show = append(d.of.show, c)
			}
		}
		r.tellPresence(ctx, d.of, "", nil)
	}
}

// join begins what finish completes: the host is asked outside of the room's lane,
// so that the others do not wait (XEP-0045 §7.2).
func (r *room) join(ctx context.Context, e *xep.Element, from, to jid.JID) {
	nick := to.Resourcepart()
	var refusal *xep.Error
	switch holder := r.nicks[nick]; {
	case nick == "":
		refusal = noNick
	case !r.n.limits.allow(from.Bare().String()):
		refusal = tooFast
	case holder != nil && holder.key != from.Bare().String():
		refusal = nickTaken
	}
	if refusal != nil {
		r.n.refuse(ctx, e, refusal)
		r.closeIfEmpty()
		return
	}
	if j := r.joins[from.String()]; j != nil { // asked again: one answer will do
		j.nick, j.via = nick, to.Bare().String()
		return
	}
	j := &joining{full: from, via: to.Bare().String(), nick: nick, stanza: e}
	r.begin(ctx, j)
}

// begin asks the host to let a device in.
func (r *room) begin(ctx context.Context, j *joining) {
	r.joins[j.full.String()] = j
	req := backends.EnterRequest{Chat: r.id, Room: r.name, User: peerOf(j.full, j.nick)}
	if j.stanza != nil {
		req.History, req.Since = r.n.historyWanted(j.stanza.Child(xep.NSMUC, "x").Child(xep.NSMUC, "history"), time.Now())
	}
	r.n.enters.Do(ctx, string(r.id)+" "+j.full.Bare().String(), func() {
		view, err := r.n.enter(r.n.ctx, req)
		r.do(r.n.ctx, func() { r.finish(r.n.ctx, j, view, err) })
	})
}

func (n *network) enter(ctx context.Context, req backends.EnterRequest) (*backends.RoomView, error) {
	if n.host.Rooms() == nil {
		return nil, &backends.Refusal{Code: backends.RefusedNotFound, Message: "There are no rooms here."}
	}
	ctx, cancel := context.WithTimeout(ctx, enterTimeout)
	defer cancel()
	return n.host.Rooms().Enter(ctx, req)
}

// historyWanted reads what a client asks for (XEP-0045 §7.2.14).
func (n *network) historyWanted(h *xep.Element, now time.Time) (limit int, since time.Time) {
	limit = min(20, n.cfg.Limits.History)
	if v, err := strconv.Atoi(h.Attr("maxstanzas")); err == nil && v >= 0 {
		limit = min(v, n.cfg.Limits.History)
	}
	if h.Attr("maxchars") == "0" {
		limit = 0
	}
	if v, err := strconv.Atoi(h.Attr("seconds")); err == nil && v >= 0 {
		since = now.Add(-time.Duration(min(v, 1<<30)) * time.Second)
	}
	if t, err := time.Parse(time.RFC3339, h.Attr("since")); err == nil && t.After(since) {
		since = t
	}
	if !since.IsZero() && h.Attr("maxstanzas") == "" && h.Attr("maxchars") != "0" {
		limit = n.cfg.Limits.History
	}
	return limit, since
}

// finish lets a device in, or says why not. The order is that of XEP-0045 §7.2:
// occupants, self-presence, history, subject, and then what came meanwhile.
func (r *room) finish(ctx context.Context, j *joining, view *backends.RoomView, err error) {
	if r.joins[j.full.String()] != j { // it has left again
		if err == nil {
			r.exitIfAbsent(ctx, j.full)
		}
		return
	}
	delete(r.joins, j.full.String())
	if err != nil {
		r.turnAway(ctx, j, r.n.hostError(err))
		return
	}
	if !r.loaded {
		r.load(view, j.full)
	}
	d, codes := r.admit(j, view)
	if d == nil {
		r.turnAway(ctx, j, nickTaken)
		r.exitIfAbsent(ctx, j.full)
		return
	}
	r.welcome(ctx, j, d, codes)
	if j.stanza != nil {
		r.replay(ctx, d, view.History)
		r.sendSubject(ctx, d)
		if view.Encrypted {
			notice := xep.New(xep.NSComponent, "body").AddText("This room is encrypted. What others write cannot be read here.")
			r.sendShown(ctx, shown{id: xep.NewID(), payload: []*xep.Element{notice}}, d)
		}
	}
	seen := map[string]bool{}
	for _, c := range view.History {
		for _, id := range r.n.roomIDs(&c) {
			seen[string(id)] = true
		}
	}
	for _, s := range j.missed {
		if !seen[s.sid] {
			r.sendShown(ctx, s, d)
		}
	}
	r.save(ctx)
	r.n.log.Info("user entered room", "chat", r.id, "jid", j.full.String())
	r.runBacklog()
}

// turnAway tells a device that it is not in the room.
func (r *room) turnAway(ctx context.Context, j *joining, refusal *xep.Error) {
	if j.stanza != nil {
		r.n.refuse(ctx, j.stanza, refusal)
	} else {
		u := xep.MUCUser{Affiliation: xep.None, Role: "none", Codes: []string{xep.StatusSelf, xep.StatusTechnical}, Reason: refusal.Error()}
		r.n.send(ctx, xep.New(xep.NSComponent, "presence", "from", j.via+"/"+j.nick, "to", j.full.String(), "type", "unavailable").Add(u.Element()))
		r.save(ctx)
	}
	r.closeIfEmpty()
}

// load takes over what the host says of the room; the one who enters comes last,
// so that nobody's nick changes by it.
func (r *room) load(view *backends.RoomView, entrant jid.JID) {
	r.loaded, r.nonanonymous = true, view.Nonanonymous
	if view.Info.Topic != nil {
		r.topic = *view.Info.Topic
	}
	for _, important := range []bool{true, false} { // those with rights are shown first
		for _, m := range view.Members {
			if (m.Role >= backends.HalfOp) == important && memberKey(m.User) != entrant.Bare().String() && r.members[memberKey(m.User)] == nil {
				r.add(m.User, m.Role)
			}
		}
	}
	r.topicAt = view.TopicAt
	if m := r.members[memberKey(view.TopicBy)]; m != nil {
		r.topicBy = m.nick
	}
}

// admit makes the device one of the room's and gives the codes for it; nil if the
// nick is taken.
func (r *room) admit(j *joining, view *backends.RoomView) (*device, []string) {
	var codes []string
	user := peerOf(j.full, j.nick)
	m := r.members[memberKey(user)]
	switch holder := r.nicks[j.nick]; {
	case holder != nil && holder != m:
		return nil, nil
	case m == nil:
		m = r.add(user, view.Role)
		r.rename(m, j.nick)
	case len(m.devices) == 0:
		r.rename(m, j.nick)
	case m.nick != j.nick: // departs from XEP-0045 §7.2.9: a user has one nick, on all devices
		codes = append(codes, xep.StatusNickAssigned)
	}
	m.user, m.role, m.hidden = user, view.Role, false
	if r.nonanonymous {
		codes = append(codes, xep.StatusNonAnonymous)
	}
	d := &device{full: j.full, via: j.via, of: m}
	m.devices[j.full.String()] = d
	return d, codes
}

// welcome sends the occupants and the self-presence, and tells the others.
func (r *room) welcome(ctx context.Context, j *joining, d *device, codes []string) {
	for _, m := range r.members {
		if m != d.of && !m.hidden {
			r.sendPresence(ctx, m, d, "", nil)
		}
	}
	for _, other := range r.devices() {
		if other != d && (j.stanza != nil && len(d.of.devices) == 1) {
			r.sendPresence(ctx, d.of, other, "", nil)
		}
	}
	r.sendPresence(ctx, d.of, d, "", func(u *xep.MUCUser) { u.Codes = append(u.Codes, codes...) })
}

// restore brings devices back that were here before a restart.
func (r *room) restore(ctx context.Context) {
	saved := r.saved
	r.saved = nil
	for _, s := range saved {
		full, err := jid.Parse(s.JID)
		if err == nil && r.device(full) == nil && r.joins[s.JID] == nil {
			r.begin(ctx, &joining{full: full, via: s.Via, nick: s.Nick})
		}
	}
	r.closeIfEmpty()
}

// leave takes a device out; with the last one the user leaves.
func (r *room) leave(ctx context.Context, d *device, status string, confirm bool) {
	m := d.of
	m.show = nil
	if status != "" {
		m.show = []*xep.Element{xep.New(xep.NSComponent, "status").AddText(status)}
	}
	delete(m.devices, d.full.String())
	if confirm {
		r.sendPresence(ctx, m, d, "unavailable", nil)
	}
	if len(m.devices) == 0 {
		r.remove(m)
		r.tellPresence(ctx, m, "unavailable", nil)
		r.exit(m.user, status)
	}
	r.save(ctx)
	r.closeIfEmpty()
}

// exit tells the host that a user has left.
func (r *room) exit(user backends.User, reason string) {
	r.n.enters.Do(r.n.ctx, string(r.id)+" "+memberKey(user), func() {
		ctx, cancel := context.WithTimeout(r.n.ctx, enterTimeout)
		defer cancel()
		if err := r.n.host.Rooms().Exit(ctx, r.id, user, reason); err != nil {
			r.n.log.Warn("host cannot take a user out", "chat", r.id, "jid", user.ID, "err", err)
		}
	})
}

// exitIfAbsent undoes Enter for somebody who is not in the room after all.
func (r *room) exitIfAbsent(ctx context.Context, full jid.JID) {
	m := r.members[full.Bare().String()]
	if m != nil && len(m.devices) > 0 {
		return
	}
	if m != nil {
		r.remove(m)
	}
	r.exit(peerOf(full, ""), "")
	r.closeIfEmpty()
}

// changeNick follows XEP-0045 §7.6.
func (r *room) changeNick(ctx context.Context, e *xep.Element, d *device, nick string) {
	switch {
	case nick == "":
		r.n.refuse(ctx, e, noNick)
	case r.nicks[nick] != nil:
		r.n.refuse(ctx, e, nickTaken)
	default:
		r.showRename(ctx, d.of, nick)
		d.of.user.Name = nick
		r.save(ctx)
		r.n.deliver(ctx, r.event(d.of, "", &backends.Profile{User: d.of.user}), nil)
	}
}

// showRename shows a change of nick to everybody.
func (r *room) showRename(ctx context.Context, m *member, nick string) {
	r.tellPresence(ctx, m, "unavailable", func(u *xep.MUCUser) {
		u.Nick, u.Role = nick, mucRole(m.role)
		u.Codes = append(u.Codes, xep.StatusNickChanged)
	})
	r.rename(m, nick)
	r.tellPresence(ctx, m, "", nil)
}

func (r *room) event(m *member, id backends.MessageID, body backends.Body) *backends.Event {
	return &backends.Event{Chat: backends.ChatKey{Chat: r.id}, Sender: m.user, ID: id, Time: time.Now(), Body: body}
}
