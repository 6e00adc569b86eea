package xmpp

import (
	"context"
	"slices"
	"strconv"

	"mellium.im/xmpp/jid"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// maxListed is how many rooms the gateway's list has.
const maxListed = 1000

// iqHandler answers a request; the error is for the asker.
type iqHandler func(n *network, ctx context.Context, iq, payload *xep.Element, from, to jid.JID) ([]*xep.Element, *xep.Error)

type iqKey struct{ typ, space, local string }

// requests are what the gateway's domain, its rooms and the host's users answer.
var requests = map[iqKey]iqHandler{
	{"get", xep.NSPing, "ping"}:        (*network).answerPing,
	{"get", xep.NSVersion, "query"}:    (*network).answerVersion,
	{"get", xep.NSDiscoInfo, "query"}:  (*network).answerInfo,
	{"get", xep.NSDiscoItems, "query"}: (*network).answerItems,
	{"get", xep.NSVCard, "vCard"}:      (*network).answerVCard,
}

// handleIQ answers a request.
func (n *network) handleIQ(ctx context.Context, e *xep.Element, from, to jid.JID) {
	if e.Attr("type") != "get" && e.Attr("type") != "set" {
		return
	}
	if !from.Equal(n.domain) && !n.limits.allow(from.Bare().String()) {
		n.refuse(ctx, e, tooFast)
		return
	}
	for _, payload := range e.Children() {
		if handle := requests[iqKey{e.Attr("type"), payload.Name.Space, payload.Name.Local}]; handle != nil {
			answer, refusal := handle(n, ctx, e, payload, from, to)
			if refusal != nil {
				n.refuse(ctx, e, refusal)
			} else {
				n.send(ctx, xep.ResultOf(e, answer...))
			}
			return
		}
	}
	n.refuse(ctx, e, unavailable)
}

// answerPing says that somebody is there. Of an occupant, room.handleIQ knows; in
// a room that is not open nobody is (XEP-0410).
func (n *network) answerPing(ctx context.Context, iq, payload *xep.Element, from, to jid.JID) ([]*xep.Element, *xep.Error) {
	if to.Localpart() != "" && to.Resourcepart() != "" {
		if _, ok := n.account(ctx, to.Localpart()); !ok {
			return nil, notJoined
		}
	}
	return nil, nil
}

func (n *network) answerVersion(context.Context, *xep.Element, *xep.Element, jid.JID, jid.JID) ([]*xep.Element, *xep.Error) {
	return []*xep.Element{xep.New(xep.NSVersion, "query").Add(
		xep.New(xep.NSVersion, "name").AddText("Gjallar"), xep.New(xep.NSVersion, "version").AddText("1"))}, nil
}

// Features told by disco#info (XEP-0030).
var (
	gatewayFeatures = []string{xep.NSDiscoInfo, xep.NSDiscoItems, xep.NSMUC, xep.NSPing, xep.NSVersion, xep.NSRSM, xep.NSVCard}
	roomFeatures    = []string{
		xep.NSDiscoInfo, xep.NSDiscoItems, xep.NSMUC, xep.NSMUCStable, xep.NSSelfPing, xep.NSSID, xep.NSOccupant, xep.NSPing,
		xep.NSReactions, xep.NSReply, xep.NSRetract, xep.NSReplace, xep.NSVCard, xep.NSMAM, xep.NSModerate, "muc_persistent", "muc_unmoderated", "muc_unsecured",
	}
	userFeatures = []string{
		xep.NSDiscoInfo, xep.NSPing, xep.NSVersion, xep.NSVCard, xep.NSChatStates, xep.NSReceipts, xep.NSReplace, xep.NSReply, xep.NSReactions,
		xep.NSRetract, xep.NSOOB, xep.NSStyling, xep.NSNick,
	}
)

// answerInfo says what an address is and can do.
func (n *network) answerInfo(ctx context.Context, iq, payload *xep.Element, from, to jid.JID) ([]*xep.Element, *xep.Error) {
	query := xep.New(xep.NSDiscoInfo, "query", "node", payload.Attr("node"))
	if to.Localpart() == "" {
		query.Add(xep.New(xep.NSDiscoInfo, "identity", "category", "conference", "type", "text", "name", "Gjallar"))
		return []*xep.Element{addFeatures(query, gatewayFeatures)}, nil
	}
	if _, ok := n.account(ctx, to.Localpart()); ok && n.room(to) == nil {
		query.Add(xep.New(xep.NSDiscoInfo, "identity", "category", "client", "type", "web", "name", "Gjallar"))
		return []*xep.Element{addFeatures(query, userFeatures)}, nil
	}
	if to.Resourcepart() != "" || payload.Attr("node") != "" {
		return nil, notFound
	}
	summary, refusal := n.peek(ctx, to)
	if refusal != nil {
		return nil, refusal
	}
	query.Add(xep.New(xep.NSDiscoInfo, "identity", "category", "conference", "type", "text", "name", summary.Name))
	addFeatures(query, roomFeatures)
	addFeatures(query, []string{"muc_public", "muc_open", "muc_semianonymous"})
	return []*xep.Element{query.Add(roomForm(summary))}, nil
}

func addFeatures(query *xep.Element, features []string) *xep.Element {
	for _, f := range features {
		query.Add(xep.New(xep.NSDiscoInfo, "feature", "var", f))
	}
	return query
}

// roomForm is the extended information about a room (XEP-0045 §6.5).
func roomForm(s *backends.RoomSummary) *xep.Element {
	field := func(name, typ, value string) *xep.Element {
		return xep.New(xep.NSData, "field", "var", name, "type", typ).Add(xep.New(xep.NSData, "value").AddText(value))
	}
	return xep.New(xep.NSData, "x", "type", "result").Add(
		field("FORM_TYPE", "hidden", xep.NSMUCInfo),
		field("muc#roominfo_description", "", s.Topic),
		field("muc#roominfo_subject", "", s.Topic),
		field("muc#roominfo_occupants", "", strconv.Itoa(s.Members)))
}

// peek asks the host about a room.
func (n *network) peek(ctx context.Context, addr jid.JID) (*backends.RoomSummary, *xep.Error) {
	name, _, ok := n.roomAt(addr)
	if !ok || n.host.Rooms() == nil {
		return nil, notFound
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	summary, err := n.host.Rooms().Peek(ctx, name)
	if err != nil {
		return nil, n.hostError(err)
	}
	return summary, nil
}

// answerItems lists the rooms, in pages if asked for (XEP-0059).
func (n *network) answerItems(ctx context.Context, iq, payload *xep.Element, from, to jid.JID) ([]*xep.Element, *xep.Error) {
	query := xep.New(xep.NSDiscoItems, "query")
	if to.Localpart() != "" || n.host.Rooms() == nil {
		return []*xep.Element{query}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	rooms, err := n.host.Rooms().List(ctx, "", maxListed)
	if err != nil {
		return nil, n.hostError(err)
	}
	var items []*xep.Element
	for _, r := range rooms {
		if addr, err := n.roomJID(r.Room); err == nil && r.Room.Alias != "" {
			items = append(items, xep.New(xep.NSDiscoItems, "item", "jid", addr.String(), "name", r.Name))
		}
	}
	set := payload.Child(xep.NSRSM, "set")
	if set == nil {
		return []*xep.Element{query.Add(items...)}, nil
	}
	page, rsm := pageOf(items, set)
	return []*xep.Element{query.Add(page...).Add(rsm)}, nil
}

// pageOf cuts out the page that is asked for.
func pageOf(items []*xep.Element, set *xep.Element) ([]*xep.Element, *xep.Element) {
	size, err := strconv.Atoi(set.Child(xep.NSRSM, "max").Text())
	if err != nil || size < 0 {
		size = len(items)
	}
	from := 0
	if after := set.Child(xep.NSRSM, "after").Text(); after != "" {
		from = 1 + slices.IndexFunc(items, func(e *xep.Element) bool { return e.Attr("jid") == after })
	}
	page := items[from:min(len(items), from+min(size, len(items)))]
	rsm := xep.New(xep.NSRSM, "set")
	if len(page) > 0 {
		rsm.Add(xep.New(xep.NSRSM, "first", "index", strconv.Itoa(from)).AddText(page[0].Attr("jid")),
			xep.New(xep.NSRSM, "last").AddText(page[len(page)-1].Attr("jid")))
	}
	return page, rsm.Add(xep.New(xep.NSRSM, "count").AddText(strconv.Itoa(len(items))))
}

// answerVCard shows the profile of a user of the host, or the name of a room
// (XEP-0054).
func (n *network) answerVCard(ctx context.Context, iq, payload *xep.Element, from, to jid.JID) ([]*xep.Element, *xep.Error) {
	if to.Localpart() == "" {
		return []*xep.Element{vcard("Gjallar", "", "")}, nil
	}
	if u, ok := n.account(ctx, to.Localpart()); ok {
		return []*xep.Element{vcard(u.Name, string(u.Account), u.Avatar)}, nil
	}
	summary, refusal := n.peek(ctx, to)
	if refusal != nil {
		return nil, refusal
	}
	return []*xep.Element{vcard(summary.Name, summary.Topic, "")}, nil
}

func vcard(name, description, avatar string) *xep.Element {
	card := xep.New(xep.NSVCard, "vCard")
	if name != "" {
		card.Add(xep.New(xep.NSVCard, "FN").AddText(name), xep.New(xep.NSVCard, "NICKNAME").AddText(name))
	}
	if description != "" {
		card.Add(xep.New(xep.NSVCard, "DESC").AddText(description))
	}
	if avatar != "" {
		card.Add(xep.New(xep.NSVCard, "PHOTO").Add(xep.New(xep.NSVCard, "EXTVAL").AddText(avatar)))
	}
	return card
}

// handleIQ answers requests to an occupant, and those of moderators.
func (r *room) handleIQ(ctx context.Context, e *xep.Element, from, to jid.JID) {
	if e.Attr("type") != "get" && e.Attr("type") != "set" {
		return
	}
	d, target := r.device(from), r.nicks[to.Resourcepart()]
	switch {
	case d == nil: // XEP-0410: this is how a client learns that it is out
		r.n.refuse(ctx, e, notJoined)
	case !r.n.limits.allow(from.Bare().String()):
		r.n.refuse(ctx, e, tooFast)
	case e.Child(xep.NSMUCAdmin, "query") != nil && to.Resourcepart() == "":
		r.handleAdmin(ctx, e, e.Child(xep.NSMUCAdmin, "query"), d)
	case e.Child(xep.NSModerate, "moderate") != nil && to.Resourcepart() == "":
		r.handleModerate(ctx, e, e.Child(xep.NSModerate, "moderate"), d)
	case e.Child(xep.NSMAM, "query") != nil && to.Resourcepart() == "":
		r.handleArchive(ctx, e, e.Child(xep.NSMAM, "query"), d)
	case target == nil:
		r.n.refuse(ctx, e, notFound)
	case e.Child(xep.NSPing, "ping") != nil:
		r.n.send(ctx, xep.ResultOf(e))
	case e.Child(xep.NSVCard, "vCard") != nil && e.Attr("type") == "get":
		r.n.send(ctx, xep.ResultOf(e, vcard(target.user.Name, memberKey(target.user), target.user.Avatar)))
	default:
		r.n.refuse(ctx, e, unavailable)
	}
}

// handleAdmin lists members by affiliation or role, kicks and bans (XEP-0045 §8.2,
// §9). Whether one may is for the host to say.
func (r *room) handleAdmin(ctx context.Context, e, query *xep.Element, d *device) {
	item := query.Child(xep.NSMUCAdmin, "item")
	if e.Attr("type") == "get" {
		list := xep.New(xep.NSMUCAdmin, "query")
		for _, m := range r.members {
			u := r.mucUser(m, d)
			if item.Attr("affiliation") == u.Affiliation || item.Attr("role") == u.Role {
				list.Add(xep.New(xep.NSMUCAdmin, "item", "affiliation", u.Affiliation, "role", u.Role, "nick", m.nick, "jid", u.JID))
			}
		}
		r.n.send(ctx, xep.ResultOf(e, list))
		return
	}
	target, action := r.adminTarget(item)
	if target == nil || action == "" {
		r.n.refuse(ctx, e, &xep.Error{Type: "cancel", Condition: "not-allowed"})
		return
	}
	body := &backends.Member{Action: action, User: target.user, Reason: item.Child(xep.NSMUCAdmin, "reason").Text()}
	r.n.deliver(ctx, r.event(d.of, backends.MessageID(xep.NewID()), body), r.done(e))
}

// handleModerate removes a message of somebody (XEP-0425). Whether one may is for
// the host to say.
func (r *room) handleModerate(ctx context.Context, e, query *xep.Element, d *device) {
	if e.Attr("type") != "set" || query.Attr("id") == "" || query.Child(xep.NSRetract, "retract") == nil {
		r.n.refuse(ctx, e, &xep.Error{Type: "modify", Condition: "bad-request"})
		return
	}
	body := &backends.Removal{Target: backends.MessageID(query.Attr("id")), Reason: query.Child(xep.NSModerate, "reason").Text(), Moderated: true}
	r.n.deliver(ctx, r.event(d.of, backends.MessageID(xep.NewID()), body), r.done(e))
}

// done answers a request when the host has carried it out.
func (r *room) done(e *xep.Element) func(backends.Receipt) {
	return func(receipt backends.Receipt) {
		if receipt.Err != nil {
			r.n.send(r.n.ctx, xep.ErrorTo(e, stanzaError(receipt.Err)))
		} else {
			r.n.send(r.n.ctx, xep.ResultOf(e))
		}
	}
}

// adminTarget says whom an item of a moderator's request is about, and what is to
// be done to them.
func (r *room) adminTarget(item *xep.Element) (*member, backends.Action) {
	target := r.nicks[item.Attr("nick")]
	if item.Attr("role") == "none" {
		return target, backends.Kicked
	}
	if item.Attr("affiliation") != xep.Outcast {
		return nil, ""
	}
	address, err := jid.Parse(item.Attr("jid"))
	if err != nil {
		return target, backends.Banned
	}
	if m := r.members[address.Bare().String()]; m != nil {
		return m, backends.Banned
	}
	for _, m := range r.members {
		if r.realJID(m) == address.Bare().String() {
			return m, backends.Banned
		}
	}
	return target, backends.Banned
}
