package xmpp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// room is a room of the host that is shown as a MUC. All but its identity belongs
// to the room's lane: stanzas, commands and answers of the host run there, one
// after another.
type room struct {
	n    *network
	id   backends.ChatID
	name backends.RoomName
	addr jid.JID
	ids  *ids

	loaded       bool // members are known
	topic        string
	topicBy      string // nick
	topicAt      time.Time
	nonanonymous bool
	members      map[string]*member // by memberKey
	nicks        map[string]*member
	echoes       map[backends.MessageID]*echo
	echoOrder    []backends.MessageID
	joins        map[string]*joining // by full JID
	backlog      []func()            // commands that came before the members were known
	saved        []savedDevice       // of before a restart, not brought back yet
}

// member is somebody in the room, from either side.
type member struct {
	key     string
	user    backends.User
	role    backends.Role
	nick    string
	hidden  bool               // beyond the limit of occupants shown
	devices map[string]*device // by full JID; empty for those not here through the gateway
	show    []*xep.Element     // <show/> and <status/>
}

// device is one client of a gateway user. Via is the address by which it knows
// the room.
type device struct {
	full jid.JID
	via  string
	of   *member
}

// echo is a message of a gateway user that waits for the host to put it in order.
type echo struct {
	stanza *xep.Element
	key    string // of the sender
	shown  bool
}

func memberKey(u backends.User) string {
	if u.ID != "" {
		return string(u.ID)
	}
	return string(u.Account)
}

func (r *room) lane() string { return "room:" + string(r.id) }

// do runs f in the room's lane.
func (r *room) do(ctx context.Context, f func()) error { return r.n.in.Do(ctx, r.lane(), f) }

// roomAt finds the name and canonical address of a room from one of its addresses.
func (n *network) roomAt(addr jid.JID) (backends.RoomName, jid.JID, bool) {
	name, ok := roomOf(addr.Localpart())
	if !ok {
		return name, addr, false
	}
	canonical, err := n.roomJID(name)
	return name, canonical, err == nil
}

// room returns a room that somebody is in, nil if there is none.
func (n *network) room(addr jid.JID) *room {
	_, canonical, ok := n.roomAt(addr)
	if !ok {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rooms[backends.ChatID(canonical.String())]
}

// openRoom returns a room, made if need be.
func (n *network) openRoom(ctx context.Context, addr jid.JID) *room {
	name, canonical, ok := n.roomAt(addr)
	if !ok {
		return nil
	}
	id := backends.ChatID(canonical.String())
	known := n.idsOf(ctx, backends.ChatKey{Chat: id})
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := n.rooms[id]; r != nil {
		return r
	}
	r := &room{
		n: n, id: id, name: name, addr: canonical, ids: known,
		members: map[string]*member{}, nicks: map[string]*member{},
		echoes: map[backends.MessageID]*echo{}, joins: map[string]*joining{},
	}
	n.rooms[id] = r
	return r
}

// closeIfEmpty forgets a room that nobody is in.
func (r *room) closeIfEmpty() {
	if len(r.joins) > 0 || len(r.saved) > 0 || len(r.devices()) > 0 {
		return
	}
	r.n.mu.Lock()
	delete(r.n.rooms, r.id)
	r.n.mu.Unlock()
	r.loaded = true
	r.runBacklog()
}

func (r *room) runBacklog() {
	backlog := r.backlog
	r.backlog = nil
	for _, f := range backlog {
		f()
	}
}

func (r *room) devices() []*device {
	var list []*device
	for _, m := range r.members {
		for _, d := range m.devices {
			list = append(list, d)
		}
	}
	return list
}

func (r *room) device(full jid.JID) *device {
	if m := r.members[full.Bare().String()]; m != nil {
		return m.devices[full.String()]
	}
	return nil
}

// add puts somebody into the room under the best nick that is free.
func (r *room) add(u backends.User, role backends.Role) *member {
	m := &member{key: memberKey(u), user: u, role: role, devices: map[string]*device{}}
	for _, nick := range append(candidates(u), nickFrom(string(u.ID), string(u.Account)), xep.NewID()) {
		if r.nicks[nick] == nil {
			m.nick = nick
			break
		}
	}
	m.hidden = len(r.members) >= r.n.cfg.Limits.Occupants
	r.members[m.key], r.nicks[m.nick] = m, m
	return m
}

func (r *room) remove(m *member) {
	delete(r.members, m.key)
	if r.nicks[m.nick] == m {
		delete(r.nicks, m.nick)
	}
}

func (r *room) rename(m *member, nick string) {
	delete(r.nicks, m.nick)
	m.nick = nick
	r.nicks[nick] = m
}

// mucUser describes a member to a device. Real addresses are for moderators,
// unless the room shows them to all.
func (r *room) mucUser(m *member, d *device) xep.MUCUser {
	u := xep.MUCUser{Affiliation: affiliationOf(m.role), Role: mucRole(m.role)}
	if r.nonanonymous || d.of.role >= backends.Moderator || d.of == m {
		u.JID = r.realJID(m)
	}
	return u
}

func (r *room) realJID(m *member) string {
	for full := range m.devices {
		return full
	}
	if m.user.ID != "" {
		if _, err := jid.Parse(string(m.user.ID)); err != nil {
			return "" // an occupant of another room
		}
		return string(m.user.ID)
	}
	if local := ghostLocal(m.user); local != "" {
		return local + "@" + r.n.domain.Domainpart()
	}
	return ""
}

// affiliationOf and mucRole map the roles of a chat (XEP-0045 §5).
func affiliationOf(role backends.Role) string {
	switch role {
	case backends.Owner:
		return xep.Owner
	case backends.Admin:
		return xep.Admin
	case backends.Moderator, backends.HalfOp, backends.Voice:
		return xep.MemberOf
	}
	return xep.None
}

func mucRole(role backends.Role) string {
	switch {
	case role >= backends.HalfOp:
		return xep.Moderator
	case role == backends.Visitor:
		return xep.Visitor
	}
	return xep.Participant
}

// occupantID is the pseudonym of a member (XEP-0421).
func (r *room) occupantID(key string) *xep.Element {
	return xep.New(xep.NSOccupant, "occupant-id", "id", mac(r.n.key, "occupant", string(r.id), key))
}

// sendPresence tells a device of a member. Change fills in what is special.
func (r *room) sendPresence(ctx context.Context, m *member, d *device, typ string, change func(*xep.MUCUser)) {
	u := r.mucUser(m, d)
	if typ == "unavailable" {
		u.Role = "none"
	}
	if d.of == m {
		u.Codes = append(u.Codes, xep.StatusSelf)
	}
	if change != nil {
		change(&u)
	}
	p := xep.New(xep.NSComponent, "presence", "from", d.via+"/"+m.nick, "to", d.full.String(), "type", typ)
	p.Add(m.show...).Add(r.occupantID(m.key), u.Element())
	r.n.send(ctx, p)
}

// tellPresence tells everybody of a member.
func (r *room) tellPresence(ctx context.Context, m *member, typ string, change func(*xep.MUCUser)) {
	if m.hidden {
		return
	}
	for _, d := range r.devices() {
		r.sendPresence(ctx, m, d, typ, change)
	}
}

// reveal shows a member who was not, because they do something.
func (r *room) reveal(ctx context.Context, m *member) {
	if m != nil && m.hidden {
		m.hidden = false
		r.tellPresence(ctx, m, "", nil)
	}
}

// forRoom reports whether a stanza is about a room of the host, rather than for
// one of its users. It runs in the read loop.
func (n *network) forRoom(e *xep.Element, from, to jid.JID) bool {
	switch {
	case to.Localpart() == "":
		return false
	case e.Name.Local == "message" && e.Attr("type") == "groupchat", e.Child(xep.NSMUC, "x") != nil:
		return true
	case e.Name.Local == "iq" && to.Resourcepart() == "" && !forOccupants(e):
		return false
	}
	r := n.room(to)
	return r != nil && (e.Name.Local != "message" || to.Resourcepart() != "" || e.Attr("type") == "error")
}

// forOccupants reports whether a request is one that only occupants may make.
func forOccupants(iq *xep.Element) bool {
	return iq.Child(xep.NSMUCAdmin, "query") != nil || iq.Child(xep.NSMAM, "query") != nil || iq.Child(xep.NSModerate, "moderate") != nil
}

// handleRoom takes a stanza to a room, in its lane.
func (n *network) handleRoom(ctx context.Context, e *xep.Element, from, to jid.JID) {
	r := n.room(to)
	isJoin := e.Name.Local == "presence" && e.Attr("type") == "" && e.Child(xep.NSMUC, "x") != nil
	if r == nil && isJoin {
		r = n.openRoom(ctx, to)
	}
	switch {
	case r == nil:
		n.refuse(ctx, e, notJoined)
	case e.Name.Local == "presence":
		r.handlePresence(ctx, e, from, to, isJoin)
	case e.Name.Local == "iq":
		r.handleIQ(ctx, e, from, to)
	case e.Attr("type") == "error":
		r.bounced(ctx, e, from)
	case e.Attr("type") == "groupchat":
		r.handleMessage(ctx, e, from)
	default:
		r.handlePrivate(ctx, e, from, to)
	}
}

// refuse answers a stanza with an error, unless it is one or an unavailable presence.
func (n *network) refuse(ctx context.Context, e *xep.Element, err *xep.Error) {
	switch e.Attr("type") {
	case "error", "unavailable", "result":
		return
	}
	n.send(ctx, xep.ErrorTo(e, err))
}

// Errors that rooms answer with.
var (
	notJoined   = &xep.Error{Type: "cancel", Condition: "not-acceptable", Text: "You are not in this room."}
	noNick      = &xep.Error{Type: "modify", Condition: "jid-malformed", Text: "A nick is needed to enter."}
	nickTaken   = &xep.Error{Type: "cancel", Condition: "conflict", Text: "This nick is in use."}
	noVoice     = &xep.Error{Type: "auth", Condition: "forbidden", Text: "You may not speak here."}
	notFound    = &xep.Error{Type: "cancel", Condition: "item-not-found"}
	unavailable = &xep.Error{Type: "cancel", Condition: "service-unavailable"}
	noAnswer    = &xep.Error{Type: "wait", Condition: "remote-server-timeout", Text: "The room did not answer in time. Try again."}
)

// refusalErrors are the errors of XEP-0045 §7.2 for what the host says.
var refusalErrors = map[backends.RefusalCode]xep.Error{
	backends.RefusedNotFound: {Type: "cancel", Condition: "item-not-found"}, backends.RefusedForbidden: {Type: "auth", Condition: "forbidden"},
	backends.RefusedBanned: {Type: "auth", Condition: "forbidden"}, backends.RefusedInviteOnly: {Type: "auth", Condition: "registration-required"},
	backends.RefusedFull: {Type: "wait", Condition: "service-unavailable"}, backends.RefusedPassword: {Type: "auth", Condition: "not-authorized"},
	backends.RefusedConflict: {Type: "cancel", Condition: "conflict"}, backends.RefusedTooLarge: {Type: "modify", Condition: "policy-violation"},
	backends.RefusedUnsupported: {Type: "cancel", Condition: "feature-not-implemented"}, backends.RefusedUnavailable: {Type: "wait", Condition: "internal-server-error"},
	backends.RefusedInvalid: {Type: "modify", Condition: "bad-request"}, backends.RefusedUnauthorized: {Type: "auth", Condition: "not-authorized"},
}

// stanzaError is the host's "no" as XMPP says it.
func stanzaError(r *backends.Refusal) *xep.Error {
	e, ok := refusalErrors[r.Code]
	if !ok {
		e = xep.Error{Type: "cancel", Condition: "not-allowed"}
	}
	e.Text = r.Message
	return &e
}

// hostError is any error of the host as XMPP says it.
func (n *network) hostError(err error) *xep.Error {
	if refusal, ok := errors.AsType[*backends.Refusal](err); ok {
		return stanzaError(refusal)
	}
	n.log.Warn("host cannot answer for a room", "err", err)
	return noAnswer
}

// savedDevice is a device as it is stored, so that a restart goes unnoticed.
type savedDevice struct {
	JID, Via, Nick string
}

func occupantsKey(id backends.ChatID) string { return "occupants/" + string(id) }

// save stores who is in the room.
func (r *room) save(ctx context.Context) {
	list := slices.Clone(r.saved)
	for _, d := range r.devices() {
		list = append(list, savedDevice{d.full.String(), d.via, d.of.nick})
	}
	var err error
	if len(list) == 0 {
		err = r.n.host.Store().Delete(ctx, occupantsKey(r.id))
	} else {
		b, _ := json.Marshal(list)
		err = r.n.host.Store().Put(ctx, occupantsKey(r.id), b)
	}
	if err != nil {
		r.n.log.Warn("cannot store occupants", "chat", r.id, "err", err)
	}
}

// restoreRooms makes the rooms that had occupants when the network was last open.
func (n *network) restoreRooms(ctx context.Context) error {
	pairs, err := n.host.Store().Scan(ctx, "occupants/")
	if err != nil {
		return fmt.Errorf("read occupants: %w", err)
	}
	for key, b := range pairs {
		addr, err := jid.Parse(strings.TrimPrefix(key, "occupants/"))
		if err != nil || addr.Domainpart() != n.domain.Domainpart() {
			continue
		}
		var saved []savedDevice
		if json.Unmarshal(b, &saved) != nil {
			continue
		}
		if r := n.openRoom(ctx, addr); r != nil {
			r.saved = saved
		}
	}
	return nil
}

// pingOccupants brings back those who were here before a restart, and asks the
// others whether they are still there, so that no ghosts stay. It runs in the
// read loop or the sweep.
func (n *network) pingOccupants() {
	n.mu.Lock()
	var rooms []*room
	for _, r := range n.rooms {
		rooms = append(rooms, r)
	}
	n.mu.Unlock()
	for _, r := range rooms {
		n.spawn(func() {
			r.do(n.ctx, func() {
				r.restore(n.ctx)
				for _, d := range r.devices() {
					n.spawn(func() { r.ping(n.ctx, d) })
				}
			})
		})
	}
}

// ping asks a device whether it is there.
func (r *room) ping(ctx context.Context, d *device) {
	via, err := jid.Parse(d.via)
	if err != nil {
		return
	}
	pingCtx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err = r.n.comp.Request(pingCtx, xep.IQ(via, d.full, "get").Add(xep.New(xep.NSPing, "ping")))
	if e, ok := errors.AsType[*xep.Error](err); ok && gone[string(e.Condition)] {
		r.do(ctx, func() { r.drop(ctx, d.full) })
	}
}

// gone are the errors that mean that a device is no more.
var gone = map[string]bool{
	"gone": true, "item-not-found": true, "jid-malformed": true, "recipient-unavailable": true, "redirect": true,
	"remote-server-not-found": true, "remote-server-timeout": true, "service-unavailable": true,
}

// bounced removes a device that could not be reached (XEP-0045 §14.4 and XEP-0410).
func (r *room) bounced(ctx context.Context, e *xep.Element, from jid.JID) {
	if gone[string(xep.ErrorOf(e).Condition)] {
		r.drop(ctx, from)
	}
}

// drop removes a device that went without a word.
func (r *room) drop(ctx context.Context, full jid.JID) {
	if d := r.device(full); d != nil {
		r.n.log.Info("occupant cannot be reached", "chat", r.id, "jid", full.String())
		r.leave(ctx, d, "", false)
	}
}
