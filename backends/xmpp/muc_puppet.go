package xmpp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"mellium.im/xmpp/jid"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/xmpp/stream"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// joinFailed is the answer for a command whose sender cannot enter.
func (m *muc) joinFailed(err error) backends.Result {
	if refusal, ok := errors.AsType[*backends.Refusal](refusalOf(err)); ok && refusal.Code != backends.RefusedUnavailable {
		return rejected("the room does not let you in: %s", refusal.Message)
	}
	return later("cannot enter the room: " + err.Error())
}

func (m *muc) senderJIDLocked(p *puppet) jid.JID {
	if p == nil {
		return m.n.bot
	}
	return p.jid
}

// speakerPrefix introduces somebody for whom the bot speaks.
func speakerPrefix(u backends.User) string {
	return "<" + nickFrom(u.Name, u.Username, string(u.ID)) + "> "
}

// puppetOf returns the occupant that speaks for a user of the host, entering the
// room if need be; nil for those without account, for whom the bot speaks.
func (m *muc) puppetOf(ctx context.Context, u backends.User) (*puppet, error) {
	if u.Account == "" {
		return nil, nil
	}
	m.mu.Lock()
	p := m.puppets[u.Account]
	joined := p != nil && p.joined
	m.mu.Unlock()
	if joined {
		return p, nil
	}
	ghost, err := m.n.ghost(ctx, u)
	if err != nil {
		return nil, err
	}
	full, err := ghost.WithResource(resource)
	if err != nil {
		return nil, err
	}
	nicks := candidates(u)
	if p != nil && !slices.Contains(nicks, p.nick) {
		nicks = append([]string{p.nick}, nicks...)
	}
	self, err := m.enter(ctx, full, u.Account, nicks, xep.New(xep.NSMUC, "history", "maxchars", "0", "maxstanzas", "0"))
	if err != nil {
		return nil, err
	}
	from, _, err := xep.Addresses(self)
	if err != nil {
		return nil, err
	}
	p = &puppet{user: u, jid: full, nick: from.Resourcepart(), joined: true}
	m.mu.Lock()
	m.puppets[u.Account] = p
	m.nicks[p.nick] = u.Account
	delete(m.occupants, p.nick)
	m.mu.Unlock()
	m.n.storePuppet(ctx, m.addr, p)
	m.n.deliver(ctx, &backends.Event{Body: &backends.AccountState{Account: u.Account, Phase: backends.Ready, Address: ghost.String()}}, nil)
	return p, nil
}

// puppetKey is where a puppet is stored, so that after a restart those who are
// still in a room are known for ours.
func puppetKey(addr jid.JID, account backends.AccountID) string {
	return "puppet/" + addr.String() + "/" + string(account)
}

type storedPuppet struct {
	User backends.User
	Nick string
}

func (n *network) storePuppet(ctx context.Context, addr jid.JID, p *puppet) {
	b, _ := json.Marshal(storedPuppet{p.user, p.nick}) // strings only: it cannot fail
	if err := n.host.Store().Put(ctx, puppetKey(addr, p.user.Account), b); err != nil {
		n.log.Warn("cannot store occupant", "chat", addr.String(), "account", p.user.Account, "err", err)
	}
}

func (n *network) forgetPuppet(addr jid.JID, account backends.AccountID) {
	if err := n.host.Store().Delete(n.ctx, puppetKey(addr, account)); err != nil {
		n.log.Warn("cannot forget occupant", "chat", addr.String(), "account", account, "err", err)
	}
}

func (n *network) storedPuppets(ctx context.Context, addr jid.JID) (map[backends.AccountID]*puppet, error) {
	pairs, err := n.host.Store().Scan(ctx, puppetKey(addr, ""))
	if err != nil {
		return nil, fmt.Errorf("read occupants of %s: %w", addr, err)
	}
	puppets := map[backends.AccountID]*puppet{}
	for _, b := range pairs {
		var s storedPuppet
		if json.Unmarshal(b, &s) != nil || s.User.Account == "" {
			continue
		}
		bare, err := n.ghost(ctx, s.User)
		if err != nil {
			continue
		}
		if full, err := bare.WithResource(resource); err == nil {
			puppets[s.User.Account] = &puppet{user: s.User, jid: full, nick: s.Nick}
		}
	}
	return puppets, nil
}

// rejoinPuppets brings back those who were in the room before.
func (m *muc) rejoinPuppets(ctx context.Context) {
	m.mu.Lock()
	var users []backends.User
	for _, p := range m.puppets {
		if !p.joined {
			users = append(users, p.user)
		}
	}
	m.mu.Unlock()
	for _, u := range users {
		m.n.out.Do(ctx, string(m.chat.Chat)+" ", func() {
			if _, err := m.puppetOf(m.n.ctx, u); err != nil && !errors.Is(err, stream.ErrAway) {
				m.n.log.Warn("cannot enter MUC again", "chat", m.chat.Chat, "account", u.Account, "err", err)
			}
		})
	}
}

func (m *muc) removePuppet(ctx context.Context, account backends.AccountID, reason string) {
	m.mu.Lock()
	p := m.puppets[account]
	delete(m.puppets, account)
	m.mu.Unlock()
	if p != nil {
		m.sayGone(ctx, p.jid, p.nick, reason)
		m.n.forgetPuppet(m.addr, account)
	}
}

// sendProfile changes the nick of a user who is in the room (XEP-0045 §7.6).
func (m *muc) sendProfile(ctx context.Context, cmd *backends.Command, body *backends.Profile) backends.Result {
	done := backends.Result{Outcome: backends.Delivered}
	m.mu.Lock()
	p := m.puppets[cmd.Sender.Account]
	joined := p != nil && p.joined
	m.mu.Unlock()
	nicks := candidates(body.User)
	if !joined || p.nick == nicks[0] {
		return done
	}
	self, err := m.enter(ctx, p.jid, cmd.Sender.Account, nicks, nil)
	if err != nil {
		return rejected("the room refuses the new nick: %s", refusalOf(err))
	}
	from, _, err := xep.Addresses(self)
	if err != nil {
		return rejected("%s", err)
	}
	changed := &puppet{user: body.User, jid: p.jid, nick: from.Resourcepart(), joined: true}
	m.mu.Lock()
	delete(m.nicks, p.nick)
	m.puppets[cmd.Sender.Account] = changed
	m.nicks[changed.nick] = cmd.Sender.Account
	m.mu.Unlock()
	m.n.storePuppet(ctx, m.addr, changed)
	return done
}
