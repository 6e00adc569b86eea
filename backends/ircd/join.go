package ircd

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
)

// place is what a channel name means.
type place struct {
	name  string // as clients are told
	chat  backends.ChatID
	rooms []backends.RoomName // the first that exists
}

// parsePlace reads a channel name.
func (n *network) parsePlace(name string) (place, error) {
	alias, server, _ := strings.Cut(strings.TrimPrefix(name, "#"), ":")
	bad := strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == ',' || r == 0x7f })
	if bad || name == "" || name[0] != '#' || alias == "" || len(name) > channelLen || strings.HasSuffix(name, ":") {
		return place{}, refuse(irc.ERR_NOSUCHCHANNEL, orStar(name), "No such channel")
	}
	if server = fold(server); server == fold(n.cfg.ServerName) {
		server = ""
	}
	p := place{name: "#" + fold(alias), rooms: []backends.RoomName{{Alias: fold(alias), Server: server}}}
	if alias != fold(alias) {
		p.rooms = append(p.rooms, backends.RoomName{Alias: alias, Server: server})
	}
	if server != "" {
		p.name += ":" + server
	}
	p.chat = backends.ChatID(p.name)
	return p, nil
}

func orStar(s string) string {
	if s == "" || containsSpace(s) || s[0] == ':' {
		return "*"
	}
	return s
}

// handleJoin enters channels.
//
// Spec: https://modern.ircdocs.horse/#join-message
func (s *session) handleJoin(ctx context.Context, m *irc.Message) error {
	if m.Params[0] == "0" {
		s.partAll(ctx)
		return nil
	}
	for name := range strings.SplitSeq(m.Params[0], ",") {
		if name == "" {
			continue
		}
		if err := s.join(ctx, name); err != nil {
			s.fail("JOIN", err)
		}
	}
	return nil
}

// join enters one channel: JOIN, topic, names and history go to the client, then
// what has happened since.
func (s *session) join(ctx context.Context, name string) error {
	to, err := s.n.parsePlace(name)
	if err != nil {
		return err
	}
	select {
	case <-s.n.swept:
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.crowded() {
		return refuse(irc.ERR_TOOMANYCHANNELS, to.name, "You have joined too many channels")
	}
	a, wait := s.arrive(to)
	for wait != nil {
		select {
		case <-wait:
			a, wait = s.arrive(to)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if a == nil {
		return nil
	}
	view, err := s.enter(ctx, to, a)
	if err != nil {
		s.turnBack(a)
		return joinRefusal(to.name, err)
	}
	s.n.note(ctx, a)
	if fold(name) != to.name {
		s.reply(numericLinkChannel, orStar(name), to.name, "That is a room of this server")
	}
	s.n.mu.Lock()
	s.n.learn(a, s.person, view)
	welcome := s.welcomeTo(a.channel)
	history, shown := s.history(a.channel, view.History)
	s.n.mu.Unlock()
	for _, m := range welcome {
		s.send(m)
	}
	s.playBack(to.name, history)
	s.settleIn(a, shown)
	return nil
}

// maxChannels is how many channels a client may be in (CHANLIMIT).
const maxChannels = 250

func (s *session) crowded() bool {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	return len(s.joined) >= maxChannels
}

// arrive reserves the session's place in a channel: nil if it has one. It is to be
// called again after wait, if there is one.
func (s *session) arrive(to place) (a *attendance, wait <-chan struct{}) {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	if s.joined[to.chat] != nil {
		return nil, nil
	}
	a = &attendance{user: s.person.user, since: time.Now().Truncate(time.Millisecond), joining: true}
	a.channel = s.n.open(to.chat, to.name)
	if wait := s.n.exits[a.exitKey()]; wait != nil {
		s.n.drop(a.channel)
		return nil, wait
	}
	a.channel.sessions[s] = a
	s.joined[to.chat] = a
	return a, nil
}

// turnBack undoes arrive.
func (s *session) turnBack(a *attendance) {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	delete(a.channel.sessions, s)
	delete(s.joined, a.channel.chat)
	s.n.drop(a.channel)
}

// enter asks the host. An alias with capitals that no room has is made without.
func (s *session) enter(ctx context.Context, to place, a *attendance) (*backends.RoomView, error) {
	ctx, cancel := context.WithTimeout(ctx, hostTimeout)
	defer cancel()
	req := backends.EnterRequest{
		Chat: to.chat, Room: to.rooms[0], User: a.user,
		Create: s.n.cfg.Create && to.rooms[0].Server == "", History: s.n.cfg.History,
	}
	if s.caps.has(capChatHistory) {
		req.History = 0 // the client will ask for what it lacks
	}
	if len(to.rooms) > 1 {
		for _, room := range to.rooms {
			if _, err := s.n.rooms.Peek(ctx, room); !refusedWith(err, backends.RefusedNotFound) {
				req.Room = room
				break
			}
		}
	}
	return s.n.rooms.Enter(ctx, req)
}

func refusedWith(err error, code backends.RefusalCode) bool {
	r, ok := errors.AsType[*backends.Refusal](err)
	return ok && r.Code == code
}

// joinNumerics tell why a room cannot be entered.
var joinNumerics = map[backends.RefusalCode]string{
	backends.RefusedNotFound:     irc.ERR_NOSUCHCHANNEL,
	backends.RefusedForbidden:    irc.ERR_INVITEONLYCHAN,
	backends.RefusedInviteOnly:   irc.ERR_INVITEONLYCHAN,
	backends.RefusedBanned:       irc.ERR_BANNEDFROMCHAN,
	backends.RefusedFull:         irc.ERR_CHANNELISFULL,
	backends.RefusedPassword:     irc.ERR_BADCHANNELKEY,
	backends.RefusedUnauthorized: "477", // ERR_NEEDREGGEDNICK
	backends.RefusedInvalid:      "479", // ERR_BADCHANNAME
	backends.RefusedUnavailable:  "437", // ERR_UNAVAILRESOURCE
}

func joinRefusal(name string, err error) error {
	r, ok := errors.AsType[*backends.Refusal](err)
	if !ok {
		return err
	}
	code, ok := joinNumerics[r.Code]
	if !ok {
		code = irc.ERR_NOSUCHCHANNEL
	}
	return refuse(code, name, "Cannot join: "+r.Message)
}

// learn takes in what Enter said, and shows the newcomer to the others. The
// caller holds n.mu.
func (n *network) learn(a *attendance, p *person, view *backends.RoomView) {
	ch := a.channel
	ch.encrypted = ch.encrypted || view.Encrypted
	if ch.known {
		// The members that we keep are newer than the view's.
		if a.evicted {
			return
		}
		n.showJoin(ch, p, view.Role, time.Time{})
		return
	}
	ch.known = true
	for _, m := range view.Members {
		ch.add(n.people.meet(m.User), m.Role)
	}
	ch.add(p, view.Role)
	if view.Info.Topic != nil && ch.topicAt.IsZero() {
		ch.topic, ch.topicAt = topicText(*view.Info.Topic), view.TopicAt
		if view.TopicBy != (backends.User{}) {
			ch.topicBy = n.people.mask(n.people.look(view.TopicBy))
		}
	}
	early := ch.early
	ch.early = nil
	for _, cmd := range early {
		n.show(cmd)
	}
}

// welcomeTo makes what a client sees first. The caller holds n.mu.
func (s *session) welcomeTo(ch *channel) []*irc.Message {
	p := s.person
	join := []string{ch.name}
	if s.caps.has(capExtendedJoin) {
		account := accountName(p.user)
		if account == "" {
			account = "*"
		}
		join = append(join, account, realName(p.user))
	}
	list := []*irc.Message{s.n.from(p, time.Time{}, "JOIN", join...).with(s.caps)}
	list = append(list, s.topicLines(ch, false)...)
	if !s.caps.has(capNoImplicitNames) {
		list = append(list, s.nameLines(ch)...)
	}
	if ch.encrypted {
		list = append(list, s.fromServer("NOTICE", ch.name,
			"Messages in this room are encrypted from end to end: they cannot be read from IRC, and what you write is not encrypted."))
	}
	return list
}

// topicLines make 332 and 333, or 331 if asked for. The caller holds n.mu.
func (s *session) topicLines(ch *channel, asked bool) []*irc.Message {
	if ch.topic == "" {
		if asked {
			return []*irc.Message{s.fromServer(irc.RPL_NOTOPIC, s.nick, ch.name, "No topic is set")}
		}
		return nil
	}
	list := []*irc.Message{s.fromServer(irc.RPL_TOPIC, s.nick, ch.name, ch.topic)}
	if ch.topicBy != "" && !ch.topicAt.IsZero() {
		at := strconv.FormatInt(ch.topicAt.Unix(), 10)
		list = append(list, s.fromServer(numericTopicWhoTime, s.nick, ch.name, ch.topicBy, at))
	}
	return list
}

// nameLines make 353 and 366. The caller holds n.mu.
func (s *session) nameLines(ch *channel) []*irc.Message {
	names := make([]string, 0, len(ch.members))
	for p, role := range ch.members {
		name := p.nick
		if s.caps.has(capUserhostInNames) {
			name = s.n.people.mask(p)
		}
		names = append(names, symbolOf(role)+name)
	}
	slices.Sort(names)
	var list []*irc.Message
	room := ircmsg.MaxLine - len(": 353  =  :\r\n"+s.n.cfg.ServerName+s.nick+ch.name)
	for _, line := range packWords(names, room) {
		list = append(list, s.fromServer(irc.RPL_NAMREPLY, s.nick, "=", ch.name, line))
	}
	return append(list, s.fromServer(irc.RPL_ENDOFNAMES, s.nick, ch.name, "End of /NAMES list"))
}

// packWords joins words with spaces to lines of at most limit bytes.
func packWords(words []string, limit int) []string {
	var lines []string
	var line strings.Builder
	for _, w := range words {
		if line.Len() > 0 && line.Len()+1+len(w) > limit {
			lines = append(lines, line.String())
			line.Reset()
		}
		if line.Len() > 0 {
			line.WriteByte(' ')
		}
		line.WriteString(w)
	}
	if line.Len() > 0 {
		lines = append(lines, line.String())
	}
	return lines
}

// settleIn ends joining: what was said meanwhile follows, unless it was in the
// history.
func (s *session) settleIn(a *attendance, shown map[backends.MessageID]bool) {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	a.joining = false
	backlog := a.backlog
	a.backlog = nil
	for _, o := range backlog {
		if !shown[o.id] {
			s.put(o.line(s.caps))
		}
	}
	if a.evicted {
		s.put(s.n.from(s.person, time.Time{}, "PART", a.channel.name).line(s.caps))
		delete(a.channel.sessions, s)
		delete(s.joined, a.channel.chat)
		s.n.exitLater(a)
		s.n.drop(a.channel)
	}
}

// attending returns the session's place in a channel by its name.
func (s *session) attending(name string) (*attendance, error) {
	to, err := s.n.parsePlace(name)
	if err != nil {
		return nil, err
	}
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	if a := s.joined[to.chat]; a != nil {
		return a, nil
	}
	return nil, refuse(irc.ERR_NOTONCHANNEL, to.name, "You're not on that channel")
}

// handlePart leaves channels.
//
// Spec: https://modern.ircdocs.horse/#part-message
func (s *session) handlePart(_ context.Context, m *irc.Message) error {
	reason := ""
	if len(m.Params) > 1 {
		reason = m.Params[1]
	}
	for name := range strings.SplitSeq(m.Params[0], ",") {
		a, err := s.attending(name)
		if err != nil {
			s.fail("PART", err)
			continue
		}
		s.part(a, reason)
	}
	return nil
}

func (s *session) partAll(context.Context) {
	s.n.mu.Lock()
	var all []*attendance
	for _, a := range s.joined {
		all = append(all, a)
	}
	s.n.mu.Unlock()
	for _, a := range all {
		s.part(a, "")
	}
}

// part leaves a channel; with the last connection of a person there, the person
// leaves the room. Of an account the others see it if the room says so: the host
// may let it stay a member.
func (s *session) part(a *attendance, reason string) {
	ch := a.channel
	params := []string{ch.name}
	if reason != "" {
		params = append(params, reason)
	}
	s.n.mu.Lock()
	p := s.person
	o := s.n.from(p, time.Time{}, "PART", params...)
	delete(ch.sessions, s)
	delete(s.joined, ch.chat)
	last := !ch.present(p)
	if last && p.guest() {
		ch.fan(o, nil)
		s.n.removeMember(ch, p)
	}
	own := o.with(s.caps)
	s.n.drop(ch)
	s.n.mu.Unlock()
	s.send(own)
	if last {
		s.n.exit(a, reason)
	}
}

// handleNames lists members.
//
// Spec: https://modern.ircdocs.horse/#names-message
func (s *session) handleNames(_ context.Context, m *irc.Message) error {
	for name := range strings.SplitSeq(m.Params[0], ",") {
		a, err := s.attending(name)
		if err != nil {
			s.reply(irc.RPL_ENDOFNAMES, orStar(name), "End of /NAMES list")
			continue
		}
		s.n.mu.Lock()
		list := s.nameLines(a.channel)
		s.n.mu.Unlock()
		for _, m := range list {
			s.send(m)
		}
	}
	return nil
}

// tell delivers an event that is no message; a refusal comes back as a notice.
func (s *session) tell(ctx context.Context, ev *backends.Event, complaint string) error {
	return s.tellOr(ctx, ev, func(why string) *irc.Message {
		return s.n.fromServer("NOTICE", "*", complaint+": "+why)
	})
}

// tellOr delivers an event; if it is refused the client gets what complain makes,
// the first parameter being replaced by its nick.
func (s *session) tellOr(ctx context.Context, ev *backends.Event, complain func(why string) *irc.Message) error {
	refused := func(why string) {
		m := complain(why)
		s.n.mu.Lock()
		defer s.n.mu.Unlock()
		m.Params[0] = s.person.nick
		s.put(compose(m))
	}
	err := s.n.host.Deliver(ctx, ev, func(r backends.Receipt) {
		if r.Err != nil {
			refused(r.Err.Message)
		}
	})
	if err != nil {
		refused("the server is not available")
	}
	return nil
}

// handleTopic shows or changes a topic. The change is shown when the room has it.
//
// Spec: https://modern.ircdocs.horse/#topic-message
func (s *session) handleTopic(ctx context.Context, m *irc.Message) error {
	a, err := s.attending(m.Params[0])
	if err != nil {
		return err
	}
	if len(m.Params) == 1 {
		s.n.mu.Lock()
		list := s.topicLines(a.channel, true)
		s.n.mu.Unlock()
		for _, m := range list {
			s.send(m)
		}
		return nil
	}
	topic := topicText(m.Params[1])
	return s.tellOr(ctx, s.event(a, &backends.ChatInfo{Chat: backends.ChatKey{Chat: a.channel.chat}, Topic: &topic}), func(why string) *irc.Message {
		return s.n.fromServer(irc.ERR_CHANOPRIVSNEEDED, "", a.channel.name, "The topic was not changed: "+why)
	})
}

// event makes an event of the session's in a channel.
func (s *session) event(a *attendance, body backends.Body) *backends.Event {
	s.n.mu.Lock()
	sender := s.person.user
	s.n.mu.Unlock()
	return &backends.Event{
		Chat: backends.ChatKey{Chat: a.channel.chat}, Sender: sender,
		ID: s.nextID(), Time: time.Now(), Body: body,
	}
}

// member looks up a nick among the members of a channel.
func (s *session) member(a *attendance, nick string) (backends.User, string, error) {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	p := s.n.people.byNick[fold(nick)]
	if p != nil {
		if _, ok := a.channel.members[p]; ok {
			return p.user, p.nick, nil
		}
		return backends.User{}, "", refuse(irc.ERR_USERNOTINCHANNEL, p.nick, a.channel.name, "They aren't on that channel")
	}
	return backends.User{}, "", refuse(irc.ERR_NOSUCHNICK, orStar(nick), "No such nick")
}

// handleKick throws people out. It is shown when the room has done it.
//
// Spec: https://modern.ircdocs.horse/#kick-message
func (s *session) handleKick(ctx context.Context, m *irc.Message) error {
	a, err := s.attending(m.Params[0])
	if err != nil {
		return err
	}
	reason := ""
	if len(m.Params) > 2 {
		reason, _ = ircmsg.Cut(m.Params[2], kickLen)
	}
	for nick := range strings.SplitSeq(m.Params[1], ",") {
		user, _, err := s.member(a, nick)
		if err != nil {
			s.fail("KICK", err)
			continue
		}
		s.moderate(ctx, a, nick, &backends.Member{Action: backends.Kicked, User: user, Reason: reason})
	}
	return nil
}

// moderate delivers what may need the rights of an operator.
func (s *session) moderate(ctx context.Context, a *attendance, nick string, body backends.Body) error {
	return s.tellOr(ctx, s.event(a, body), func(why string) *irc.Message {
		return s.n.fromServer(irc.ERR_CHANOPRIVSNEEDED, "", a.channel.name, nick+": "+why)
	})
}

// handleInvite invites a nick, or user@server of the host's network.
//
// Spec: https://modern.ircdocs.horse/#invite-message
func (s *session) handleInvite(ctx context.Context, m *irc.Message) error {
	a, err := s.attending(m.Params[1])
	if err != nil {
		return err
	}
	user, err := s.lookUp(ctx, m.Params[0])
	if err != nil {
		return err
	}
	nick := m.Params[0]
	err = s.n.host.Deliver(ctx, s.event(a, &backends.Member{Action: backends.Invited, User: *user}), func(r backends.Receipt) {
		s.n.mu.Lock()
		defer s.n.mu.Unlock()
		if r.Err != nil {
			s.put(compose(s.n.fromServer(irc.ERR_CHANOPRIVSNEEDED, s.person.nick, a.channel.name, "Not invited: "+r.Err.Message)))
			return
		}
		s.put(compose(s.n.fromServer(irc.RPL_INVITING, s.person.nick, nick, a.channel.name)))
	})
	return err
}

// lookUp finds someone by nick, or by user@server.
func (s *session) lookUp(ctx context.Context, name string) (*backends.User, error) {
	s.n.mu.Lock()
	p := s.n.people.byNick[fold(name)]
	var found backends.User
	if p != nil {
		found = p.user
	}
	s.n.mu.Unlock()
	if p != nil {
		return &found, nil
	}
	ctx, cancel := context.WithTimeout(ctx, hostTimeout)
	defer cancel()
	local, domain := splitAddress(name)
	user, err := s.n.rooms.Whois(ctx, local, domain)
	if refusedWith(err, backends.RefusedNotFound) {
		return nil, refuse(irc.ERR_NOSUCHNICK, orStar(name), "No such nick")
	}
	return user, err
}

// splitAddress reads "user", "user@server" and "@user:server".
func splitAddress(s string) (local, domain string) {
	if full, ok := strings.CutPrefix(s, "@"); ok {
		local, domain, _ = strings.Cut(full, ":")
		return local, domain
	}
	local, domain, _ = strings.Cut(s, "@")
	return local, domain
}

// memberModes are the modes that give a role.
var memberModes = map[byte]backends.Role{'o': backends.Moderator, 'h': backends.HalfOp, 'v': backends.Voice}

// handleMode answers what a channel's modes are, gives and takes roles, and bans
// members by nick.
//
// Spec: https://modern.ircdocs.horse/#mode-message
func (s *session) handleMode(ctx context.Context, m *irc.Message) error {
	if m.Params[0] == "" || m.Params[0][0] != '#' {
		return s.userMode(m)
	}
	a, err := s.attending(m.Params[0])
	if err != nil {
		return err
	}
	if len(m.Params) == 1 {
		s.reply(irc.RPL_CHANNELMODEIS, a.channel.name, "+nt")
		return nil
	}
	var support ircmsg.ISupport
	support.Apply(ircmsg.New(irc.RPL_ISUPPORT, "*", "PREFIX=(ohv)@%+", "CHANMODES=b,,,nt", "are supported by this server"))
	changes := support.ParseModes(m.Params[1:])
	for _, c := range changes[:min(len(changes), 8)] {
		if err := s.changeMode(ctx, a, c); err != nil {
			s.fail("MODE", err)
		}
	}
	return nil
}

func (s *session) changeMode(ctx context.Context, a *attendance, c ircmsg.ModeChange) error {
	role, isRole := memberModes[c.Mode]
	switch {
	case c.Mode == 'b' && c.Arg == "":
		s.reply(irc.RPL_ENDOFBANLIST, a.channel.name, "End of channel ban list")
		return nil
	case c.Mode == 'b':
		return s.ban(ctx, a, c)
	case !isRole:
		return refuse(irc.ERR_UNKNOWNMODE, string(rune(c.Mode)), "is not a mode that can be set from IRC in "+a.channel.name)
	case c.Arg == "":
		return refuse(irc.ERR_NEEDMOREPARAMS, "MODE", "Not enough parameters")
	}
	user, nick, err := s.member(a, c.Arg)
	if err != nil {
		return err
	}
	if !c.Add {
		role = backends.Participant
	}
	return s.moderate(ctx, a, nick, &backends.RoleChange{User: user, Role: role})
}

// ban bans a person, not a mask: nick, nick!*@* or *!user@host of a member, or
// user@server.
func (s *session) ban(ctx context.Context, a *attendance, c ircmsg.ModeChange) error {
	action := backends.Banned
	if !c.Add {
		action = backends.Unbanned
	}
	nick, address, _ := strings.Cut(c.Arg, "!")
	if nick == "*" {
		nick = address
	}
	if strings.Contains(nick, "*") {
		return refuse(irc.ERR_UNKNOWNMODE, "b", "can only be set for a person: use a nick or user@server")
	}
	user, err := s.lookUp(ctx, nick)
	if err != nil {
		return err
	}
	return s.moderate(ctx, a, nick, &backends.Member{Action: action, User: *user})
}

func (s *session) userMode(m *irc.Message) error {
	if fold(m.Params[0]) != fold(s.nick) {
		return refuse(irc.ERR_USERSDONTMATCH, "Can't change mode for other users")
	}
	if len(m.Params) == 1 {
		s.reply(irc.RPL_UMODEIS, "+i")
	}
	return nil
}
