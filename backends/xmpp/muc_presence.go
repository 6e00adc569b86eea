package xmpp

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

func (m *muc) handlePresence(ctx context.Context, e *xep.Element, from, to jid.JID) {
	u := xep.MUCUserOf(e)
	typ := e.Attr("type")
	if typ == "error" || u.Has(xep.StatusSelf) && typ == "" {
		m.answerJoin(e, to)
	}
	if typ == "unavailable" && u.Has(xep.StatusSelf) && !u.Has(xep.StatusNickChanged) && to.Equal(m.n.bot) && m.isLive() {
		m.ejected(e, u) // otherwise it is of a leave before this join
	}
	if !to.Equal(m.n.bot) || from.Resourcepart() == "" || u.Has(xep.StatusSelf) {
		return
	}
	var events []*backends.Event
	switch typ {
	case "":
		events = m.present(e, from, u)
	case "unavailable":
		events = m.absent(from, u)
	}
	for _, ev := range events {
		m.n.deliver(ctx, ev, nil)
	}
}

// answerJoin passes an answer to whom waits for it.
func (m *muc) answerJoin(e *xep.Element, to jid.JID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ch := m.waiting[to.String()]; ch != nil {
		ch <- e
		delete(m.waiting, to.String())
	}
}

// present notes an occupant who has come or changed.
func (m *muc) present(e *xep.Element, from jid.JID, u xep.MUCUser) []*backends.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	nick := from.Resourcepart()
	o := occupant{user: m.userLocked(e, nick, u), role: roleOf(u)}
	if _, ours := m.nicks[nick]; ours {
		m.shadows[nick] = o
		return nil
	}
	was, known := m.occupants[nick]
	m.occupants[nick] = o
	switch {
	case !m.live || known && was == o:
		return nil
	case known && was.user.ID == o.user.ID:
		return []*backends.Event{m.event(o.user, &backends.RoleChange{User: o.user, Role: o.role})}
	case m.presentLocked(o.user.ID) > 1: // under another nick, or on the way to it
		return []*backends.Event{m.event(o.user, &backends.Profile{User: o.user})}
	}
	return []*backends.Event{m.event(o.user, &backends.Member{Action: backends.Joined, User: o.user, Role: o.role})}
}

// presentLocked counts the nicks of a user.
func (m *muc) presentLocked(id backends.UserID) (count int) {
	for _, o := range m.occupants {
		if o.user.ID == id {
			count++
		}
	}
	return count
}

// absent notes that a nick has gone: its holder left, was removed, or has another now.
func (m *muc) absent(from jid.JID, u xep.MUCUser) []*backends.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	nick := from.Resourcepart()
	delete(m.shadows, nick)
	if account, ours := m.nicks[nick]; ours {
		return m.puppetGoneLocked(nick, account, u)
	}
	o, known := m.occupants[nick]
	if !known {
		return nil
	}
	delete(m.occupants, nick)
	if u.Has(xep.StatusNickChanged) && u.Nick != "" {
		return m.renamedLocked(o, u)
	}
	if !m.live || m.presentLocked(o.user.ID) > 0 {
		return nil
	}
	return []*backends.Event{m.goneLocked(o.user, u)}
}

// renamedLocked follows a nick change (XEP-0045 §7.6); the presence under the new
// nick comes after it.
func (m *muc) renamedLocked(o occupant, u xep.MUCUser) []*backends.Event {
	if _, ours := m.nicks[u.Nick]; ours {
		return nil
	}
	was := o.user
	if o.user.ID == m.nickID(was.Name) {
		o.user.ID = m.nickID(u.Nick)
	}
	o.user.Name, o.user.Username = u.Nick, u.Nick
	m.occupants[u.Nick] = o
	if !m.live {
		return nil
	}
	p := &backends.Profile{User: o.user}
	if was.ID != o.user.ID {
		p.Was = was.ID
	}
	return []*backends.Event{m.event(o.user, p)}
}

func (m *muc) puppetGoneLocked(nick string, account backends.AccountID, u xep.MUCUser) []*backends.Event {
	p := m.puppets[account]
	if p == nil || p.nick != nick || u.Has(xep.StatusNickChanged) {
		return nil
	}
	delete(m.nicks, nick)
	p.joined = false
	if action := actionOf(u); action == backends.Kicked || action == backends.Banned {
		delete(m.puppets, account)
		m.n.spawn(func() { m.n.forgetPuppet(m.addr, account) })
		return []*backends.Event{m.goneLocked(p.user, u)}
	}
	return nil
}

// goneLocked tells who left or was removed, and by whom.
func (m *muc) goneLocked(user backends.User, u xep.MUCUser) *backends.Event {
	member := &backends.Member{Action: actionOf(u), User: user, Reason: u.Reason}
	sender := user
	if o, ok := m.occupants[u.Actor]; ok && u.Actor != "" {
		sender = o.user
	} else if member.Action != backends.Left {
		sender = backends.User{ID: backends.UserID(m.addr.String()), Name: u.Actor, Username: m.addr.Localpart(), Domain: m.addr.Domainpart()}
	}
	return m.event(sender, member)
}

// actionOf says how somebody went. Removals for technical reasons are leaves.
func actionOf(u xep.MUCUser) backends.Action {
	switch {
	case u.Has(xep.StatusBanned):
		return backends.Banned
	case u.Has(xep.StatusKicked) && !u.Has(xep.StatusTechnical), u.Has("321"), u.Has("322"):
		return backends.Kicked
	}
	return backends.Left
}

func (m *muc) event(sender backends.User, body backends.Body) *backends.Event {
	return &backends.Event{Chat: m.chat, Sender: sender, Body: body}
}

// nickID identifies somebody of whom only the nick is known.
func (m *muc) nickID(nick string) backends.UserID {
	return backends.UserID(m.addr.String() + "/" + nick)
}

// userLocked identifies an occupant: by the real address if the room shows it to
// all, by the occupant ID (XEP-0421) if the room gives them, by nick otherwise.
// What it shows only to moderators, as the bot may be one, is not passed on.
func (m *muc) userLocked(e *xep.Element, nick string, u xep.MUCUser) backends.User {
	user := backends.User{ID: m.nickID(nick), Name: nick, Username: nick, Domain: m.addr.Domainpart()}
	if real, err := jid.Parse(u.JID); err == nil && m.features["muc_nonanonymous"] {
		return peerOf(real, nick)
	}
	if id := xep.OccupantID(e); id != "" && m.features[xep.NSOccupant] {
		sum := sha256.Sum256([]byte(id))
		user.ID = backends.UserID(m.addr.String() + "#" + hex.EncodeToString(sum[:8]))
	}
	return user
}

// splitOccupant takes apart the ID of somebody known by occupant ID.
func splitOccupant(id string) (addr string, ok bool) {
	at, hash := strings.IndexByte(id, '@'), strings.LastIndexByte(id, '#')
	if at < 0 || hash < at {
		return "", false
	}
	return id[:hash], true
}

// peerAddress is where a private chat's messages go: its ID is the peer's.
func (n *network) peerAddress(chat backends.ChatID) (jid.JID, error) {
	addr, ok := splitOccupant(string(chat))
	if !ok {
		return jid.Parse(string(chat))
	}
	if m := n.muc(addr); m != nil {
		if nick := m.nickOf(string(chat)); nick != "" {
			return m.addr.WithResource(nick)
		}
	}
	return jid.JID{}, errors.New("they are not in the room " + addr)
}

// roleOf maps affiliation and role of a MUC.
func roleOf(u xep.MUCUser) backends.Role {
	switch {
	case u.Affiliation == xep.Owner:
		return backends.Owner
	case u.Affiliation == xep.Admin:
		return backends.Admin
	case u.Role == xep.Moderator:
		return backends.Moderator
	case u.Role == xep.Visitor:
		return backends.Visitor
	}
	return backends.Participant
}

// ejected notes that the room does not have the bot any more, and comes back if
// nobody meant it.
func (m *muc) ejected(e *xep.Element, u xep.MUCUser) {
	var refused *backends.Refusal
	switch {
	case e.Child(xep.NSMUCUser, "x").Child(xep.NSMUCUser, "destroy") != nil:
		refused = &backends.Refusal{Code: backends.RefusedNotFound, Message: "the room was destroyed"}
	case actionOf(u) == backends.Banned:
		refused = &backends.Refusal{Code: backends.RefusedBanned, Message: "the bridge was banned from the room"}
	case actionOf(u) == backends.Kicked:
		refused = &backends.Refusal{Code: backends.RefusedForbidden, Message: "the bridge was kicked from the room"}
	}
	if refused != nil && u.Reason != "" {
		refused.Message += ": " + u.Reason
	}
	m.n.log.Warn("the MUC removed the bridge", "chat", m.chat.Chat, "codes", u.Codes)
	m.lost(refused)
	if refused == nil {
		m.n.spawn(m.comeBack)
	}
}

// comeBack joins again, and again if that fails, while the connection lasts.
func (m *muc) comeBack() {
	for wait := time.Second; m.n.isUp() && m.n.muc(m.addr.String()) == m; wait = min(2*wait, time.Minute) {
		m.mu.Lock()
		last := m.last
		m.mu.Unlock()
		_, err := m.join(m.n.ctx, last)
		if err == nil {
			return
		}
		m.n.log.Warn("cannot join MUC again", "chat", m.chat.Chat, "err", err)
		select {
		case <-time.After(wait):
		case <-m.n.ctx.Done():
			return
		}
	}
}
