package xmpp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// muc is a MUC of others that we follow. The bot sees all that happens; users of
// the host are occupants beside it, whose own copies are not looked at.
type muc struct {
	n    *network
	addr jid.JID
	chat backends.ChatKey
	ids  *ids
	busy chan struct{} // held while joining

	mu        sync.Mutex
	live      bool                           // joined, and the past is dealt with; guarded by mu
	refused   *backends.Refusal              // why the room does not have us; guarded by mu
	features  map[string]bool                // of disco#info; guarded by mu
	name      string                         // guarded by mu
	topic     *string                        // guarded by mu
	nick      string                         // the bot's; guarded by mu
	occupants map[string]occupant            // all but ours, by nick; guarded by mu
	puppets   map[backends.AccountID]*puppet // guarded by mu
	nicks     map[string]backends.AccountID  // of puppets, joining ones too; guarded by mu
	shadows   map[string]occupant            // who is seen under the nicks of puppets, be it them or not; guarded by mu
	waiting   map[string]chan *xep.Element   // joining, by full JID; guarded by mu
	held      []*xep.Element                 // messages to the bot while it joins; guarded by mu
	subject   chan struct{}                  // closed by the subject, which ends a join; guarded by mu
	pending   map[string]part                // what the room has not reflected, by stanza ID; guarded by mu
	oldest    time.Time                      // how far back the room's history went at the join; guarded by mu
	last      *backends.Mark                 // the newest message we passed on; guarded by mu
}

// occupant is somebody of the MUC's own.
type occupant struct {
	user backends.User
	role backends.Role
}

// puppet is a user of the host in the MUC.
type puppet struct {
	user   backends.User
	jid    jid.JID // full
	nick   string
	joined bool
}

func (m *muc) lane() string { return "muc:" + m.addr.String() }

// joinMUC makes the bot follow a MUC.
func (n *network) joinMUC(ctx context.Context, addr jid.JID, resume *backends.Mark) (*backends.ChatInfo, error) {
	if !n.isUp() {
		return nil, &backends.Refusal{Code: backends.RefusedUnavailable, Message: "not connected to the XMPP server"}
	}
	chat := backends.ChatKey{Chat: backends.ChatID(addr.String())}
	known := n.idsOf(ctx, chat)
	puppets, err := n.storedPuppets(ctx, addr)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	m := n.mucs[addr.String()]
	if m == nil {
		m = &muc{
			n: n, addr: addr, chat: chat, ids: known, busy: make(chan struct{}, 1),
			puppets: puppets, pending: map[string]part{},
		}
		m.reset()
		n.mucs[addr.String()] = m
	}
	n.mu.Unlock()
	return m.join(ctx, resume)
}

// reset forgets who is in the room.
func (m *muc) reset() {
	m.live = false
	m.occupants, m.shadows = map[string]occupant{}, map[string]occupant{}
	m.nicks = map[string]backends.AccountID{}
	for account, p := range m.puppets { // they may be in the room still
		m.nicks[p.nick] = account
	}
	m.waiting = map[string]chan *xep.Element{}
	m.held, m.topic = nil, nil
	m.subject = make(chan struct{})
}

// join enters the room with the bot and brings the host up to date.
func (m *muc) join(ctx context.Context, resume *backends.Mark) (*backends.ChatInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*joinTimeout)
	defer cancel()
	select {
	case m.busy <- struct{}{}:
		defer func() { <-m.busy }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	m.mu.Lock()
	live := m.live
	m.mu.Unlock()
	if live {
		return m.info(), nil
	}
	if err := m.enterBot(ctx, resume); err != nil {
		err = refusalOf(err)
		m.mu.Lock()
		m.refused, _ = errors.AsType[*backends.Refusal](err)
		if m.refused != nil && m.refused.Code == backends.RefusedNotFound {
			m.refused.Message = fmt.Sprintf("there is no room %s (%s)", m.addr, m.refused.Message)
		}
		m.reset()
		m.mu.Unlock()
		return nil, fmt.Errorf("join %s: %w", m.addr, err)
	}
	archive, complete := m.missed(ctx, resume)
	done := make(chan struct{})
	if err := m.n.in.Do(ctx, m.lane(), func() { defer close(done); m.catchUp(m.n.ctx, resume, archive, complete) }); err != nil {
		return nil, err
	}
	select {
	case <-done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	m.n.log.Info("joined MUC", "chat", m.chat.Chat)
	m.rejoinPuppets(ctx)
	return m.info(), nil
}

// enterBot joins and waits until the room has sent everything that belongs to it.
func (m *muc) enterBot(ctx context.Context, resume *backends.Mark) error {
	m.discover(ctx)
	m.mu.Lock()
	m.reset()
	m.oldest = time.Time{}
	subject := m.subject
	m.mu.Unlock()
	history := xep.New(xep.NSMUC, "history", "maxstanzas", strconv.Itoa(replayed))
	if resume != nil && !resume.Time.IsZero() {
		history.Set("since", resume.Time.Add(-2*time.Second).UTC().Format("2006-01-02T15:04:05Z"))
	}
	nick := m.n.cfg.MUCNick
	self, err := m.enter(ctx, m.n.bot, "", []string{nick, nick + "_", nick + "__", nick + "_2", nick + "_3"}, history)
	if err != nil {
		return err
	}
	from, _, _ := xep.Addresses(self)
	m.mu.Lock()
	m.nick, m.refused = from.Resourcepart(), nil
	delete(m.occupants, m.nick)
	m.mu.Unlock()
	if xep.MUCUserOf(self).Has(xep.StatusCreated) {
		m.unlock(ctx)
	}
	select {
	case <-subject:
	case <-time.After(subjectTimeout): // some servers send none if there is none
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

const (
	subjectTimeout = 5 * time.Second
	replayed       = 100 // messages of history asked for on joining
)

// discover asks what the room can do. Rooms that do not say are taken as plain.
func (m *muc) discover(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	features := map[string]bool{}
	name := ""
	answer, err := m.n.comp.Request(ctx, xep.IQ(m.n.bot, m.addr, "get").Add(xep.New(xep.NSDiscoInfo, "query")))
	if err == nil {
		query := answer.Child(xep.NSDiscoInfo, "query")
		name = query.Child(xep.NSDiscoInfo, "identity").Attr("name")
		for _, f := range query.Children() {
			if f.Is(xep.NSDiscoInfo, "feature") {
				features[f.Attr("var")] = true
			}
		}
	}
	m.mu.Lock()
	m.features, m.name = features, name
	m.mu.Unlock()
}

// unlock accepts the default configuration of a room that we made (XEP-0045 §10.1.2).
func (m *muc) unlock(ctx context.Context) {
	iq := xep.IQ(m.n.bot, m.addr, "set").Add(xep.New(xep.NSMUCOwner, "query").Add(xep.New(xep.NSData, "x", "type", "submit")))
	if _, err := m.n.comp.Request(ctx, iq); err != nil {
		m.n.log.Warn("cannot unlock new MUC", "chat", m.chat.Chat, "err", err)
	}
}

// enter sends presence under each nick until one is free, and returns the
// self-presence.
func (m *muc) enter(ctx context.Context, from jid.JID, account backends.AccountID, nicks []string, history *xep.Element) (*xep.Element, error) {
	var err error
	for _, nick := range nicks {
		to, jerr := m.addr.WithResource(nick)
		if jerr != nil || !m.claim(to.Resourcepart(), account) {
			err = &xep.Error{Condition: "conflict"}
			continue
		}
		var self *xep.Element
		if self, err = m.knock(ctx, from, to, history); err == nil {
			return self, nil
		}
		m.unclaim(ctx, to.Resourcepart(), account)
		if e, ok := errors.AsType[*xep.Error](err); !ok || e.Condition != "conflict" {
			return nil, err
		}
	}
	return nil, err
}

// claim marks a nick as that of a puppet before it joins, so that its presence is
// known for ours. It fails for nicks in use.
func (m *muc) claim(nick string, account backends.AccountID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, used := m.occupants[nick]; used {
		return false
	}
	if account == "" {
		return true
	}
	if owner, used := m.nicks[nick]; used && owner != account || nick == m.nick {
		return false
	}
	m.nicks[nick] = account
	return true
}

// unclaim gives a nick up. If somebody else has it, they are an occupant like
// others after all.
func (m *muc) unclaim(ctx context.Context, nick string, account backends.AccountID) {
	m.mu.Lock()
	if account == "" || m.nicks[nick] != account {
		m.mu.Unlock()
		return
	}
	delete(m.nicks, nick)
	o, other := m.shadows[nick]
	delete(m.shadows, nick)
	if other {
		m.occupants[nick] = o
	}
	tell := other && m.live
	m.mu.Unlock()
	if tell {
		ev := m.event(o.user, &backends.Member{Action: backends.Joined, User: o.user, Role: o.role})
		m.n.in.Do(ctx, m.lane(), func() { m.n.deliver(m.n.ctx, ev, nil) })
	}
}

// knock tries one nick.
func (m *muc) knock(ctx context.Context, from, to jid.JID, history *xep.Element) (*xep.Element, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	answer := make(chan *xep.Element, 1)
	m.mu.Lock()
	m.waiting[from.String()] = answer
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.waiting, from.String())
		m.mu.Unlock()
	}()
	p := xep.Presence(from, to, "")
	if history != nil { // not a change of nick
		p.Add(xep.New(xep.NSMUC, "x").Add(history))
	}
	if err := m.n.comp.Send(ctx, p); err != nil {
		return nil, err
	}
	select {
	case e, ok := <-answer:
		if !ok {
			return nil, errLost
		}
		if err := xep.ErrorOf(e); err != nil {
			return nil, err
		}
		return e, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("the room does not answer: %w", ctx.Err())
	}
}

var errLost = errors.New("the connection was lost while joining")

// info describes the room as we know it.
func (m *muc) info() *backends.ChatInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	info := &backends.ChatInfo{Chat: m.chat, Topic: m.topic, Members: len(m.occupants) + len(m.puppets)}
	if m.name != "" {
		info.Name = new(m.name)
	}
	if m.features["muc_public"] || m.features["muc_open"] {
		info.Public = new(m.features["muc_open"] && !m.features["muc_passwordprotected"])
	}
	return info
}

// handle takes a stanza of the room, in its lane.
func (m *muc) handle(ctx context.Context, e *xep.Element, from, to jid.JID) {
	switch {
	case e.Name.Local == "presence":
		m.handlePresence(ctx, e, from, to)
	case e.Name.Local == "iq":
		m.n.handleIQ(ctx, e, from, to)
	case e.Attr("type") == "error":
		m.bounced(ctx, e, to)
	case e.Attr("type") == "groupchat":
		m.hold(ctx, e, from)
	default:
		m.n.handleDirect(ctx, e, from, to) // a private message of an occupant
	}
}

// hold keeps messages back until the join is complete.
func (m *muc) hold(ctx context.Context, e *xep.Element, from jid.JID) {
	m.mu.Lock()
	live := m.live
	if !live && len(m.held) < laneLimit {
		m.held = append(m.held, e)
		if isSubject(e) {
			select {
			case <-m.subject:
			default:
				close(m.subject)
			}
		}
	}
	m.mu.Unlock()
	if live {
		m.handleMessage(ctx, e, from, time.Time{}, false) // a stamp is not the room's now
	}
}

// isSubject reports whether a message sets the subject (XEP-0045 §8.1).
func isSubject(e *xep.Element) bool {
	return e.Child(xep.NSComponent, "subject") != nil && e.Child(xep.NSComponent, "body") == nil
}

// lost forgets that we are in the room and answers what waits for it: commands
// are to be sent again, when the room's history will tell whether they arrived.
func (m *muc) lost(refused *backends.Refusal) {
	m.mu.Lock()
	var open []*delivery
	for _, p := range m.pending {
		if !slices.Contains(open, p.delivery) {
			open = append(open, p.delivery)
		}
	}
	clear(m.pending)
	for _, ch := range m.waiting {
		close(ch)
	}
	m.reset()
	if refused != nil {
		m.refused = refused
	}
	for _, p := range m.puppets {
		p.joined = false
	}
	m.mu.Unlock()
	slices.SortFunc(open, func(a, b *delivery) int { return a.at.Compare(b.at) })
	for _, d := range open {
		m.n.setMaybe(d.cmd.ID, true)
		d.reply(later("the connection to the room was lost"))
	}
}

// leave takes all of us out of the room.
func (m *muc) leave(ctx context.Context) {
	m.mu.Lock()
	puppets := slices.Collect(maps.Values(m.puppets))
	clear(m.puppets)
	nick := m.nick
	m.mu.Unlock()
	for _, p := range puppets {
		m.sayGone(ctx, p.jid, p.nick, "")
		m.n.forgetPuppet(m.addr, p.user.Account)
	}
	m.lost(nil)
	m.sayGone(ctx, m.n.bot, nick, "")
}

func (m *muc) sayGone(ctx context.Context, from jid.JID, nick, status string) {
	to, err := m.addr.WithResource(nick)
	if err != nil {
		return
	}
	p := xep.Presence(from, to, "unavailable")
	if status != "" {
		p.Add(xep.New(xep.NSComponent, "status").AddText(status))
	}
	m.n.send(ctx, p)
}

// selfPing asks each room whether the bot is still in it (XEP-0410).
func (n *network) selfPing() {
	for _, m := range n.allMUCs() {
		m.mu.Lock()
		live, nick := m.live, m.nick
		m.mu.Unlock()
		to, err := m.addr.WithResource(nick)
		if !live || err != nil {
			continue
		}
		n.spawn(func() {
			ctx, cancel := context.WithTimeout(n.ctx, requestTimeout)
			defer cancel()
			_, err := n.comp.Request(ctx, xep.IQ(n.bot, to, "get").Add(xep.New(xep.NSPing, "ping")))
			if e, ok := errors.AsType[*xep.Error](err); ok && e.Condition == "not-acceptable" {
				m.lost(nil)
				m.comeBack()
			}
		})
	}
}
