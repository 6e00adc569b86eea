package puppeting

import (
	"context"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// memberFromRemote applies a change of membership, or keeps it for later if it is quiet.
func (p *portal) memberFromRemote(ctx context.Context, ev *backends.Event, m *backends.Member) error {
	if p.bound() == nil || p.isGateway() && m.User.ID == "" && m.User.Account == "" {
		return nil
	}
	if m.Quiet && m.User.ID != "" && m.User.Account == "" {
		p.in.hush(*m)
		return nil
	}
	p.in.unhush(m.User.ID)
	return p.member(ctx, ev, m)
}

// member applies a change of membership.
func (p *portal) member(ctx context.Context, ev *backends.Event, m *backends.Member) error {
	rm := p.bound()
	if rm == nil {
		return nil
	}
	switch m.Action {
	case backends.Joined:
		if m.User.Account != "" {
			return nil
		}
		_, err := p.speaker(ctx, rm, m.User)
		return err
	case backends.Left:
		return p.leave(ctx, rm, m)
	case backends.Kicked, backends.Banned, backends.Unbanned:
		return p.moderate(ctx, rm, ev, m)
	case backends.Invited:
		return p.invite(ctx, rm, ev, m)
	}
	return nil
}

// leave takes a ghost out. What becomes of a user's own account on the network is
// no reason to take the user out of the room.
func (p *portal) leave(ctx context.Context, rm *room, m *backends.Member) error {
	if m.User.Account != "" {
		return nil
	}
	u := p.b.ghostID(p.key.network, m.User.ID)
	if _, joined := rm.member(ctx, u); !joined {
		return nil
	}
	if err := p.b.client.As(u).Leave(ctx, rm.id, cleanText(m.Reason)); err != nil && !isForbidden(err) {
		return err
	}
	rm.setMember(u, false, profileless)
	return nil
}

// subject is the Matrix user whom a change concerns.
func (p *portal) subject(u backends.User) matrix.UserID {
	if u.Account != "" {
		return userID(u.Account)
	}
	return p.b.ghostID(p.key.network, u.ID)
}

// authority is who changes the room for an event: through a gateway the sender, with
// what power they have; otherwise the bridge. A portal that has just lost its room
// has nobody, lest the bridge act for a gateway's user.
func (p *portal) authority(ctx context.Context, ev *backends.Event) (as *appservice.Intent, gateway bool, err error) {
	p.mu.Lock()
	kind := p.kind
	p.mu.Unlock()
	switch kind {
	case "":
		return nil, false, refuse(backends.RefusedNotFound, "no room stands for this chat")
	case gatewayPortal:
		as, err = p.actor(ctx, ev.Sender)
		return as, true, err
	}
	return p.intent(), false, nil
}

// moderate kicks, bans or unbans. Through a gateway the actor does so with the power
// that they have in the room; what another network's moderators did there is done
// here by the bridge, with its power.
func (p *portal) moderate(ctx context.Context, rm *room, ev *backends.Event, m *backends.Member) error {
	if p.isEcho(ev) {
		return nil
	}
	actor, gateway, err := p.authority(ctx, ev)
	if err != nil {
		return err
	}
	reason := cleanText(m.Reason)
	if by := firstOf(ev.Sender.Name, string(ev.Sender.ID)); by != "" && !gateway {
		reason = firstOf(reason, string(m.Action)) + " (by " + by + ")"
	}
	u := p.subject(m.User)
	do := actor.Kick
	switch m.Action {
	case backends.Banned:
		do = actor.Ban
	case backends.Unbanned:
		do = actor.Unban
	}
	err = do(ctx, rm.id, u, reason)
	if err == nil && m.Action != backends.Unbanned {
		rm.setMember(u, false, profileless)
	}
	if !isForbidden(err) || gateway {
		return err
	}
	if m.User.Account == "" { // without the power for it, the ghost goes by itself
		return p.leave(ctx, rm, m)
	}
	p.notice(ctx, "", string(u)+" was removed from the chat on "+p.net.title+": "+reason)
	return nil
}

func (p *portal) invite(ctx context.Context, rm *room, ev *backends.Event, m *backends.Member) error {
	if p.isEcho(ev) || m.User.Account == "" && !p.isGateway() {
		return nil
	}
	actor, _, err := p.authority(ctx, ev)
	if err != nil {
		return err
	}
	return actor.Invite(ctx, rm.id, p.subject(m.User), cleanText(m.Reason))
}

// membersFromRemote makes the ghosts in the room those of the list. The changes are
// applied as quiet ones.
func (p *portal) membersFromRemote(ctx context.Context, list *backends.Members) error {
	rm := p.bound()
	if rm == nil || p.isGateway() {
		return nil
	}
	here, err := rm.memberIDs(ctx)
	if err != nil {
		return err
	}
	there := map[matrix.UserID]bool{}
	joins := 0
	for _, m := range list.Members {
		if m.User.ID == "" || m.User.Account != "" {
			continue
		}
		there[p.b.ghostID(p.key.network, m.User.ID)] = true
		if joins++; joins <= p.b.o.MaxGhosts {
			m.Action = backends.Joined
			p.in.hush(m)
		}
	}
	for _, u := range here {
		id, ghost := p.b.remoteOf(ctx, p.net, u)
		if ghost && !there[u] {
			p.in.hush(backends.Member{Action: backends.Left, User: backends.User{ID: id}})
		}
	}
	return nil
}

// profileFromRemote changes a ghost's profile. A rename is a new ghost in the place
// of the old one, wherever that is.
func (p *portal) profileFromRemote(ctx context.Context, ev *backends.Event, pr *backends.Profile) error {
	u := pr.User
	if u.ID == "" {
		u = ev.Sender
	}
	if u.Account != "" || u.ID == "" {
		return nil
	}
	if _, err := p.b.ghosts.ensure(ctx, p.key.network, u); err != nil {
		return err
	}
	if pr.Was == "" || pr.Was == u.ID {
		return nil
	}
	old := p.b.ghostID(p.key.network, pr.Was)
	for _, q := range p.b.portalsOf(p.net) {
		if p.key.chat != "" && q != p {
			continue
		}
		rm := q.bound()
		if rm == nil {
			continue
		}
		if _, joined := rm.member(ctx, old); !joined {
			continue
		}
		if _, err := q.speaker(ctx, rm, u); err != nil {
			return err
		}
		if err := q.leave(ctx, rm, &backends.Member{User: backends.User{ID: pr.Was}, Reason: "is now " + firstOf(u.Name, string(u.ID))}); err != nil {
			return err
		}
	}
	return nil
}

// infoFromRemote sets the room's name, topic and picture, if they differ.
func (p *portal) infoFromRemote(ctx context.Context, ev *backends.Event, info *backends.ChatInfo) error {
	rm := p.bound()
	if rm == nil || p.isEcho(ev) || p.isKind(directPortal) {
		return nil
	}
	actor, gateway, err := p.authority(ctx, ev)
	if err != nil {
		return err
	}
	for _, s := range []struct {
		typ, field string
		value      *string
	}{{matrix.TypeName, "name", info.Name}, {matrix.TypeTopic, "topic", info.Topic}} {
		if s.value == nil || s.typ == matrix.TypeName && (*s.value == "" || p.isKind(linkedPortal)) {
			continue
		}
		value := truncate(cleanText(*s.value))
		var now map[string]any
		if err := actor.StateEvent(ctx, rm.id, s.typ, "", &now); err == nil && now[s.field] == value {
			continue
		}
		if _, err := actor.SendState(ctx, rm.id, s.typ, "", map[string]any{s.field: value}); err != nil {
			if isForbidden(err) && !gateway {
				p.log.Info("the room's state cannot be changed", "type", s.typ, "err", err)
				continue
			}
			return err
		}
	}
	return nil
}

// levels that roles of a network give in rooms.
var levels = map[backends.Role]level{
	backends.Owner: 50, backends.Admin: 50, backends.Moderator: 50, backends.HalfOp: 25, backends.Voice: 1, backends.Participant: 0,
}

// roleFromRemote gives a ghost the power that goes with its role, never more than a
// moderator's, and only where the bridge made the room or may do so. It touches no
// user of the homeserver: a voice on a channel must not lower an admin. Through a
// gateway the sender gives what they may.
func (p *portal) roleFromRemote(ctx context.Context, ev *backends.Event, r *backends.RoleChange) error {
	rm := p.bound()
	to, said := levels[r.Role]
	if rm == nil || !said || p.isEcho(ev) || !p.isGateway() && r.User.Account != "" {
		return nil
	}
	actor, gateway, err := p.authority(ctx, ev)
	if err != nil {
		return err
	}
	var pl map[string]any
	if err := actor.StateEvent(ctx, rm.id, matrix.TypePowerLevels, "", &pl); err != nil {
		return err
	}
	users, _ := pl["users"].(map[string]any)
	if users == nil {
		users = map[string]any{}
	}
	u := string(p.subject(r.User))
	if now, ok := users[u].(float64); ok && level(now) == to || !ok && to == 0 {
		return nil
	}
	users[u] = int64(to)
	if to == 0 {
		delete(users, u)
	}
	pl["users"] = users
	_, err = actor.SendState(ctx, rm.id, matrix.TypePowerLevels, "", pl)
	if isForbidden(err) && !gateway {
		p.log.Info("a role cannot be given", "err", err)
		return nil
	}
	return err
}
