package ircd

import (
	"slices"
	"strconv"
	"time"

	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc/ircfmt"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
)

// This file shows what happens in the rooms: Commands become lines. Everything in
// it is called with network.mu held.

// show carries out a command.
func (n *network) show(cmd *backends.Command) backends.Result {
	delivered := backends.Result{Outcome: backends.Delivered}
	ch := n.channels[cmd.Chat.Chat]
	switch b := cmd.Body.(type) {
	case *backends.Message:
		return n.showMessage(ch, cmd, b)
	case *backends.Typing:
		n.showTyping(ch, cmd, b)
	case *backends.Member:
		n.showMember(ch, cmd, b)
	case *backends.Members:
		n.showMembers(ch, b)
	case *backends.RoleChange:
		n.showRole(ch, cmd, b)
	case *backends.Profile:
		n.showProfile(b)
	case *backends.ChatInfo:
		n.showInfo(ch, cmd, b)
	case *backends.Presence, *backends.Read:
	default:
		return backends.Result{Outcome: backends.Unsupported, Reason: "IRC clients cannot be shown this"}
	}
	return delivered
}

// messageID is the msgid of the i-th line of a message.
func messageID(cmd *backends.Command, i int) backends.MessageID {
	id := cmd.Echo
	if id == "" {
		id = backends.MessageID(cmd.ID)
	}
	if i > 0 && id != "" {
		id += backends.MessageID("~" + strconv.Itoa(i+1))
	}
	return id
}

// showMessage sends a message to all in the channel. The client that it came from
// gets it only with echo-message.
func (n *network) showMessage(ch *channel, cmd *backends.Command, m *backends.Message) backends.Result {
	result := backends.Result{Outcome: backends.Delivered}
	if ch == nil {
		result.IDs = []backends.MessageID{messageID(cmd, 0)}
		return result
	}
	lines := n.lines(ch.name, cmd, m, "")
	origin := n.origin(cmd.Echo)
	for i, o := range lines {
		ch.fan(o, origin)
		result.IDs = append(result.IDs, messageID(cmd, i))
	}
	if origin != nil {
		origin.echo(ch, cmd.Echo, lines)
	}
	return result
}

// origin returns the session that gave a message its ID, nil if it is gone.
func (n *network) origin(id backends.MessageID) *session {
	if i := slices.Index([]byte(id), '-'); i > 0 {
		return n.tokens[string(id[:i])]
	}
	return nil
}

// echo shows a client its own message, with the label of its command.
func (s *session) echo(ch *channel, id backends.MessageID, lines []*outgoing) {
	a := ch.sessions[s]
	if a == nil || !s.caps.has(capEchoMessage) {
		return
	}
	label := s.awaiting[id]
	delete(s.awaiting, id)
	for _, o := range lines {
		if label == "" || a.joining {
			s.give(a, o)
			continue
		}
		m := o.with(s.caps)
		m.Tags["label"] = label
		s.put(compose(m))
		label = ""
	}
}

// lines makes the lines of a message to a target. Each starts with stamp.
func (n *network) lines(target string, cmd *backends.Command, m *backends.Message, stamp string) []*outgoing {
	p := n.people.look(cmd.Sender)
	command := "PRIVMSG"
	if m.Kind == backends.Notice {
		command = "NOTICE"
	}
	room := ircmsg.MaxLine - len(": "+n.people.mask(p)+command+"  :\r\n"+target)
	if m.Kind == backends.Emote {
		room -= len("\x01ACTION \x01")
	}
	text := ircfmt.Renderer{Mention: n.mention}.Render(m.Text)
	var lines []*outgoing
	for i, line := range ircfmt.Split(text, room-len(stamp)) {
		if line = stamp + line; m.Kind == backends.Emote {
			line = ircmsg.CTCP("ACTION", line)
		}
		o := n.from(p, cmd.Time, command, target, line)
		o.id, o.chat = messageID(cmd, i), true
		lines = append(lines, o)
	}
	return lines
}

// mention calls people in texts what they are called here.
func (n *network) mention(user, _ string) string {
	k := guestKey(user)
	if user != "" && user[0] == '@' {
		k = key("a:" + user)
	}
	if p := n.people.byKey[k]; p != nil {
		return p.nick
	}
	return ""
}

// showTyping says so to clients that know tags.
//
// Spec: https://ircv3.net/specs/client-tags/typing
func (n *network) showTyping(ch *channel, cmd *backends.Command, t *backends.Typing) {
	if ch == nil {
		return
	}
	state := "done"
	if t.On {
		state = "active"
	}
	p := n.people.look(cmd.Sender)
	o := n.from(p, cmd.Time, "TAGMSG", ch.name)
	o.needs, o.client = capMessageTags, irc.Tags{"+typing": state}
	for s, a := range ch.sessions {
		if s.person != p {
			s.give(a, o)
		}
	}
}

// showMember shows who came, went, was thrown out or invited.
func (n *network) showMember(ch *channel, cmd *backends.Command, m *backends.Member) {
	switch {
	case m.Action == backends.Invited:
		n.showInvite(ch, cmd, m)
	case ch == nil:
	case !ch.known:
		ch.wait(cmd)
	case m.Action == backends.Joined:
		n.showJoin(ch, n.people.meet(m.User), m.Role, cmd.Time)
	case m.Action == backends.Left:
		n.showDeparture(ch, cmd, m, "PART", ch.name)
	case m.Action == backends.Kicked || m.Action == backends.Banned:
		nick := n.people.look(m.User).nick
		n.showDeparture(ch, cmd, m, "KICK", ch.name, nick)
	}
}

// wait keeps a change of the members until they are known.
func (ch *channel) wait(cmd *backends.Command) {
	if len(ch.early) < maxBacklog {
		ch.early = append(ch.early, cmd)
	}
}

// showJoin adds a member and shows it, if it is news.
func (n *network) showJoin(ch *channel, p *person, role backends.Role, at time.Time) {
	for _, s := range p.sessions {
		if a := ch.sessions[s]; a != nil {
			a.evicted = false
		}
	}
	old := ch.members[p]
	if !ch.add(p, role) {
		n.showRank(ch, p, p, old, ch.members[p], at)
		return
	}
	account := accountName(p.user)
	if account == "" {
		account = "*"
	}
	plain := n.from(p, at, "JOIN", ch.name)
	plain.lacks = capExtendedJoin
	extended := n.from(p, at, "JOIN", ch.name, account, realName(p.user))
	extended.needs = capExtendedJoin
	ch.fan(plain, nil)
	ch.fan(extended, nil)
	n.showRank(ch, p, p, backends.NoRole, ch.members[p], at)
}

// showRank shows a change of role as a MODE by someone.
//
// Spec: https://modern.ircdocs.horse/#mode-message
func (n *network) showRank(ch *channel, by, p *person, old, now backends.Role, at time.Time) {
	lost, _ := rankOf(old)
	won, _ := rankOf(now)
	if lost == won {
		return
	}
	params := []string{ch.name, ""}
	if lost != 0 {
		params[1] += "-" + string(lost)
		params = append(params, p.nick)
	}
	if won != 0 {
		params[1] += "+" + string(won)
		params = append(params, p.nick)
	}
	o := n.from(by, at, "MODE", params...)
	if by == p { // nobody is said to have done it
		o.message.Prefix = &irc.Prefix{Name: n.cfg.ServerName}
		o.account = ""
	}
	ch.fan(o, nil)
}

func (n *network) showRole(ch *channel, cmd *backends.Command, c *backends.RoleChange) {
	if ch == nil {
		return
	}
	if !ch.known {
		ch.wait(cmd)
		return
	}
	p := n.people.look(c.User)
	old, member := ch.members[p]
	if !member {
		return
	}
	ch.members[p] = c.Role
	n.showRank(ch, n.people.look(cmd.Sender), p, old, c.Role, cmd.Time)
}

// showDeparture removes a member, and shows it with a line that ends in the reason.
func (n *network) showDeparture(ch *channel, cmd *backends.Command, m *backends.Member, command string, params ...string) {
	p := n.people.look(m.User)
	if _, member := ch.members[p]; !member || ch.stale(p, m.Action, cmd.Time) {
		return
	}
	reason := ircmsg.Clean(m.Reason)
	by := n.people.look(cmd.Sender)
	if command == "PART" {
		by = p
	} else if reason == "" {
		reason = by.nick
	}
	if reason != "" {
		params = append(params, reason)
	}
	ch.fan(n.from(by, cmd.Time, command, params...), nil)
	n.evict(ch, p)
}

// stale reports whether a departure at a time is of a former stay: p's client has
// entered since. Those who throw people out may be on servers with other clocks,
// so they are doubted only while the client is joining.
func (ch *channel) stale(p *person, action backends.Action, at time.Time) bool {
	for _, s := range p.sessions {
		a := ch.sessions[s]
		if a != nil && (a.joining || action == backends.Left) && !at.IsZero() && at.Before(a.since) {
			return true
		}
	}
	return false
}

// evict takes p and p's connections out of a channel.
func (n *network) evict(ch *channel, p *person) {
	for _, s := range p.sessions {
		switch a := ch.sessions[s]; {
		case a == nil:
		case a.joining:
			a.evicted = true // settleIn will see it
		default:
			delete(ch.sessions, s)
			delete(s.joined, ch.chat)
			n.exitLater(a)
		}
	}
	n.removeMember(ch, p)
	n.drop(ch)
}

// dissolve tells all clients that a channel is no more.
func (n *network) dissolve(ch *channel) {
	for s, a := range ch.sessions {
		if a.joining {
			continue
		}
		s.put(compose(n.fromServer("KICK", ch.name, s.person.nick, "The room can no longer be reached")))
		delete(ch.sessions, s)
		delete(s.joined, ch.chat)
		n.exitLater(a)
	}
	n.drop(ch)
}

// showMembers shows the difference between the members and a list of all.
func (n *network) showMembers(ch *channel, all *backends.Members) {
	if ch == nil || !ch.known {
		return
	}
	listed := map[*person]bool{}
	for _, m := range all.Members {
		p := n.people.meet(m.User)
		n.showJoin(ch, p, m.Role, time.Time{})
		listed[p] = true
	}
	for p := range ch.members {
		if !listed[p] && !ch.present(p) {
			ch.fan(n.from(p, time.Time{}, "PART", ch.name), nil)
			n.removeMember(ch, p)
		}
	}
}

// showInvite tells those invited, wherever they are.
//
// Spec: https://modern.ircdocs.horse/#invite-message
func (n *network) showInvite(ch *channel, cmd *backends.Command, m *backends.Member) {
	name := string(cmd.Chat.Chat)
	if ch != nil {
		name = ch.name
	}
	by, p := n.people.look(cmd.Sender), n.people.look(m.User)
	o := n.from(by, cmd.Time, "INVITE", p.nick, name)
	for _, s := range p.sessions {
		s.put(o.line(s.caps))
	}
	if ch == nil {
		return
	}
	o.needs = capInviteNotify
	for s, a := range ch.sessions {
		if s.person != p {
			s.give(a, o)
		}
	}
}

// showProfile takes note of another display name, and shows the other nick if one
// comes of it. Clients of ours have renamed themselves already.
func (n *network) showProfile(c *backends.Profile) {
	p := n.people.byKey[keyOf(c.User)]
	if p == nil || len(p.sessions) > 0 && p.guest() {
		return
	}
	before := nickOf(p.user)
	p.user = c.User
	if now := nickOf(p.user); now != before && len(p.sessions) == 0 {
		n.showNick(p, n.people.freeNick(p.user, p))
	}
}

// showNick renames p before everybody who sees them.
func (n *network) showNick(p *person, nick string) {
	if nick == p.nick {
		return
	}
	o := n.from(p, time.Time{}, "NICK", nick)
	n.people.rename(p, nick)
	p.neighbours(o, nil)
}

// showQuit takes a guest who has gone out of all channels that no other
// connection of theirs is in.
func (n *network) showQuit(p *person, reason string) {
	p.neighbours(n.from(p, time.Time{}, "QUIT", reason), nil)
	for _, ch := range slices.Clone(p.channels) {
		n.removeMember(ch, p)
	}
}

// showInfo shows a change of the topic.
func (n *network) showInfo(ch *channel, cmd *backends.Command, info *backends.ChatInfo) {
	if ch == nil || info.Topic == nil {
		return
	}
	by := n.people.look(cmd.Sender)
	topic := topicText(*info.Topic)
	if topic == ch.topic && ch.known {
		return
	}
	o := n.from(by, cmd.Time, "TOPIC", ch.name, topic)
	ch.topic, ch.topicBy, ch.topicAt = topic, n.people.mask(by), o.time
	ch.fan(o, nil)
}

// topicText makes a topic one line.
func topicText(s string) string {
	s, _ = ircmsg.Cut(ircmsg.Clean(ircfmt.Strip(s)), topicLen)
	return s
}
