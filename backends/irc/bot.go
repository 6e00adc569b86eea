package irc

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
)

// Times of the bot.
const (
	joinTimeout    = 30 * time.Second
	splitPatience  = 90 * time.Second // a netsplit is told if it lasts so long
	rejoinAfter    = 30 * time.Second // after a kick; doubles each time
	stableAfter    = time.Minute      // a connection that lasted so long resets the backoff
	fatalRetry     = 5 * time.Minute  // after the server refused us for good
	maxRejoinShift = 6
	regainEvery    = 2 * time.Minute
	heartbeat      = time.Minute // how often is stored that we are here
)

// bot is the connection that follows channels.
type bot struct {
	n *network

	mu      sync.Mutex
	conn    *conn         // ready; nil without one; guarded by mu
	changed chan struct{} // closed and replaced when conn changes; guarded by mu

	// Of the goroutine of the connection.
	channels  map[string]*channel // by folded name
	splitting bool                // a timer for split members is set
	lists     []*listing
	lastUp    time.Time // when the last connection ended, as far as we know
	seen      *sightings
}

func newBot(n *network) *bot {
	return &bot{n: n, changed: make(chan struct{}), seen: newSightings()}
}

// ready returns the connection, or nil.
func (b *bot) ready() *conn {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.conn
}

func (b *bot) setConn(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn = c
	close(b.changed)
	b.changed = make(chan struct{})
}

// awaitReady waits until there is a connection. It returns false if the network
// closes.
func (b *bot) awaitReady() bool {
	for {
		b.mu.Lock()
		c, changed := b.conn, b.changed
		b.mu.Unlock()
		if c != nil {
			return true
		}
		select {
		case <-changed:
		case <-b.n.ctx.Done():
			return false
		}
	}
}

// run connects, and connects again, until the network closes.
func (b *bot) run() {
	for attempt := 0; ; attempt++ {
		b.n.deliverState(backends.Connecting, "", nil)
		began := time.Now()
		err := b.once()
		if b.n.ctx.Err() != nil {
			b.n.deliverState(backends.Disconnected, "closed", nil)
			return
		}
		wait := b.n.backoff(attempt)
		phase := backends.Disconnected
		if _, fatal := errors.AsType[*fatalError](err); fatal {
			phase, wait = backends.Failed, fatalRetry
		} else if time.Since(began) > stableAfter {
			attempt = -1
			wait = b.n.backoff(0)
		}
		b.n.log.Warn("the connection has ended", "err", err, "retry_in", wait)
		b.n.deliverState(phase, err.Error(), nil)
		if !pause(b.n.ctx, wait) {
			return
		}
	}
}

// once makes one connection and returns why it ended.
func (b *bot) once() error {
	raw, err := b.n.cfg.connect(b.n.ctx, b.n.dial, true)
	if err != nil {
		return err
	}
	cfg := b.n.cfg
	c := newConn(b, identity{
		bot: true, nick: cfg.Nick, nickLen: maxNick, username: cfg.Username, realname: cfg.Realname,
		password: cfg.Password, sasl: cfg.SASL,
	}, cfg.Flood, b.n.log)
	b.channels = map[string]*channel{}
	b.splitting = false
	err = c.run(b.n.ctx, raw)
	if c.phase == ready {
		b.lastUp = time.Now()
	}
	b.setConn(nil)
	b.n.ownGivenUp(c.nick, "")
	b.seen.lost()
	return err
}

// registered implements owner.
func (b *bot) registered(c *conn) {
	b.n.learn(&c.isupport)
	b.n.ownAdd(c.nick, "")
	if b.lastUp.IsZero() {
		b.lastUp = b.n.loadAlive()
	}
	b.beat(c)
	b.regain(c)
	b.setConn(c)
	caps := capabilities
	caps.Typing = c.typing()
	b.n.deliverState(backends.Ready, "", &caps)
}

// regain asks for the nick that we want while another has it: perhaps a connection
// of ours that the server does not yet know to be dead.
func (b *bot) regain(c *conn) {
	if c.same(c.nick, c.ident.nick) {
		return
	}
	c.after(regainEvery, func() {
		if !c.same(c.nick, c.ident.nick) {
			c.write(ircmsg.New("NICK", c.ident.nick))
			b.regain(c)
		}
	})
}

// beat stores that we are here, so that the next process knows since when it is not.
func (b *bot) beat(c *conn) {
	b.n.conns.Go(b.n.storeAlive)
	c.after(heartbeat, func() { b.beat(c) })
}

const aliveKey = "alive"

func (n *network) storeAlive() {
	ctx, cancel := context.WithTimeout(n.ctx, storeTimeout)
	defer cancel()
	now := time.Now().UTC().Format(time.RFC3339)
	if err := n.host.Store().Put(ctx, aliveKey, []byte(now)); err != nil && n.ctx.Err() == nil {
		n.log.Warn("cannot store that the network is connected", "err", err)
	}
}

// loadAlive returns when an earlier process was connected last, as far as is known.
func (n *network) loadAlive() time.Time {
	ctx, cancel := context.WithTimeout(n.ctx, storeTimeout)
	defer cancel()
	raw, err := n.host.Store().Get(ctx, aliveKey)
	if err != nil {
		n.log.Warn("cannot read when the network was connected", "err", err)
	}
	t, _ := time.Parse(time.RFC3339, string(raw)) // zero is not known
	return t
}

// typing reports whether the network passes typing on
// (https://ircv3.net/specs/client-tags/typing).
func (c *conn) typing() bool {
	deny, _ := c.isupport.Get("CLIENTTAGDENY")
	return c.caps["message-tags"] && !strings.Contains(","+deny+",", ",typing,") && !strings.HasPrefix(deny, "*")
}

// renamed implements owner.
func (b *bot) renamed(c *conn, was string) {
	b.n.ownAdd(c.nick, "")
	b.n.ownGivenUp(was, "")
}

// botHandlers of what a connected bot is told.
var botHandlers map[string]botHandler

type botHandler struct {
	minParams int
	run       func(*bot, *conn, *irc.Message)
}

func init() {
	botHandlers = map[string]botHandler{
		"JOIN":    {1, (*bot).handleJoin},
		"PART":    {1, (*bot).handlePart},
		"QUIT":    {0, (*bot).handleQuit},
		"KICK":    {2, (*bot).handleKick},
		"NICK":    {1, (*bot).handleNick},
		"MODE":    {2, (*bot).handleMode},
		"TOPIC":   {2, (*bot).handleTopic},
		"PRIVMSG": {2, (*bot).handleMessage},
		"NOTICE":  {2, (*bot).handleMessage},
		"TAGMSG":  {1, (*bot).handleTagmsg},
		"AWAY":    {0, (*bot).handleAway},
		"CHGHOST": {2, (*bot).handleChghost},
		"302":     {2, (*bot).handleUserhost},
		"322":     {3, (*bot).handleListItem},
		"323":     {0, (*bot).handleListEnd},
		"332":     {3, (*bot).handleTopicReply},
		"353":     {4, (*bot).handleNames},
		"366":     {2, (*bot).handleNamesEnd},
	}
}

// message implements owner.
func (b *bot) message(c *conn, m *irc.Message) {
	if h, ok := botHandlers[m.Command]; ok && len(m.Params) >= h.minParams {
		h.run(b, c, m)
	}
}

// channel returns the channel of a name, or nil if we do not follow it.
func (b *bot) channel(c *conn, name string) *channel { return b.channels[c.fold(name)] }

// tell delivers an event of a channel.
func (b *bot) tell(c *conn, ch *channel, m *irc.Message, sender backends.User, body backends.Body) {
	ev := &backends.Event{
		Chat:   backends.ChatKey{Chat: b.n.chatID(ch.name)},
		Sender: sender,
		Body:   body,
	}
	if m != nil {
		ev.ID, ev.Time = c.messageID(m), timeOf(m)
	}
	b.n.deliver(ev)
}

// user returns the sender of a message.
func (b *bot) user(m *irc.Message) backends.User { return b.n.userNamed(m.Prefix.Name) }

// isOurs reports whether a nick is the bot's or an account's.
func (b *bot) isOurs(nick string) bool {
	_, ours := b.n.ownAccount(nick)
	return ours
}

// join makes the bot enter a channel, if it is not in it, and tells the members.
// What was said after since, if it is not zero, is told too, or that it is missing.
func (b *bot) join(c *conn, name string, since time.Time, done func(*backends.ChatInfo, error)) {
	ch := b.channel(c, name)
	if ch == nil {
		ch = &channel{name: name, members: map[string]*member{}, split: map[string]*member{}}
		b.channels[c.fold(name)] = ch
	}
	if ch.joined {
		b.tellMembers(c, ch)
		done(b.info(ch), nil)
		return
	}
	ch.waiters = append(ch.waiters, done)
	ch.since = since
	if ch.request == nil {
		b.requestJoin(c, ch)
	}
}

func (b *bot) requestJoin(c *conn, ch *channel) {
	m := ircmsg.New("JOIN", ch.name)
	if key := b.n.channelKey(ch.name); key != "" {
		m.Params = append(m.Params, key)
	}
	ch.request = &request{lines: []*irc.Message{m}, target: ch.name, replies: true, timeout: joinTimeout}
	ch.request.done = func(o outcome) { b.joinEnded(c, ch, o.err) }
	c.submit(ch.request)
}

// joinEnded tells those who wait. A channel that we were kicked from is tried again.
func (b *bot) joinEnded(c *conn, ch *channel, err error) {
	ch.request = nil
	waiters := ch.waiters
	ch.waiters = nil
	if err != nil && !ch.lost.IsZero() {
		b.rejoinLater(c, ch)
	} else if err != nil {
		delete(b.channels, c.fold(ch.name))
	}
	for _, done := range waiters {
		if err != nil {
			done(nil, err)
		} else {
			done(b.info(ch), nil)
		}
	}
}

func (b *bot) info(ch *channel) *backends.ChatInfo {
	name, topic := ch.name, ch.topic
	return &backends.ChatInfo{
		Chat:    backends.ChatKey{Chat: b.n.chatID(ch.name)},
		Name:    &name,
		Topic:   &topic,
		Members: len(ch.members),
	}
}

// part leaves a channel.
func (b *bot) part(c *conn, name string) {
	if b.channel(c, name) == nil {
		return
	}
	delete(b.channels, c.fold(name))
	c.submit(&request{lines: []*irc.Message{ircmsg.New("PART", name)}, target: name, done: func(outcome) {}})
}

func (b *bot) handleJoin(c *conn, m *irc.Message) {
	ch := b.channel(c, m.Params[0])
	if c.isMe(m) {
		if ch == nil { // the server put us there
			c.write(ircmsg.New("PART", m.Params[0]))
		}
		return
	}
	if ch == nil {
		return
	}
	nick := m.Prefix.Name
	folded := c.fold(nick)
	ch.members[folded] = &member{nick: nick, user: m.Prefix.User, host: m.Prefix.Host}
	if _, back := ch.split[folded]; back {
		delete(ch.split, folded)
		return
	}
	if !b.isOurs(nick) {
		user := b.user(m)
		quiet := c.batches[m.Tags["batch"]].kind == "netjoin"
		b.tell(c, ch, m, user, &backends.Member{Action: backends.Joined, User: user, Role: backends.Participant, Quiet: quiet})
	}
}

func (b *bot) handleNames(c *conn, m *irc.Message) {
	ch := b.channel(c, m.Params[2])
	if ch == nil {
		return
	}
	if ch.listing == nil {
		ch.listing = map[string]*member{}
	}
	for _, who := range c.parseNames(m.Params[3]) {
		ch.listing[c.fold(who.nick)] = who
	}
}

// handleNamesEnd completes a JOIN.
func (b *bot) handleNamesEnd(c *conn, m *irc.Message) {
	ch := b.channel(c, m.Params[1])
	if ch == nil || ch.listing == nil && ch.request == nil {
		return
	}
	if ch.listing != nil {
		ch.members, ch.listing = ch.listing, nil
	}
	clear(ch.split)
	b.tellMembers(c, ch)
	if !ch.joined {
		b.catchUp(c, ch)
	}
	ch.joined = true
	b.seen.joined(c.fold(ch.name))
	if ch.request != nil {
		c.finish(ch.request, nil)
	}
}

// catchUp waits whether the network replays what was said while we were away, which
// it does at once, and tells of a gap otherwise.
func (b *bot) catchUp(c *conn, ch *channel) {
	if !ch.lost.IsZero() {
		ch.since = ch.lost
	}
	from, now := ch.since, time.Now()
	ch.lost, ch.replay = time.Time{}, false
	if from.IsZero() {
		return
	}
	if from.Before(b.lastUp) {
		from = b.lastUp
	}
	if !now.After(from) {
		return
	}
	c.submit(&request{lines: []*irc.Message{ircmsg.New("PING", "joined")}, done: func(o outcome) {
		if o.err == nil && !ch.replay {
			b.tell(c, ch, nil, backends.User{}, &backends.Gap{From: from, To: now})
		}
	}})
}

// handleReplay delivers what was said before we came, if it is wanted. It needs the
// network's own ID and time, by which the host knows what it has already.
func (b *bot) handleReplay(c *conn, ch *channel, m *irc.Message) {
	at := timeOf(m)
	if m.Tags["msgid"] == "" || at.IsZero() || ch.since.IsZero() {
		return
	}
	ch.replay = true
	// Accounts that are not connected yet come from where we come from.
	ours := b.isOurs(m.Prefix.Name) || m.Prefix.Host == c.host && b.n.wasOurs(m.Prefix.Name)
	if ours || at.Before(ch.since.Truncate(time.Second)) {
		return
	}
	if body := b.n.messageOf(m); body != nil {
		b.tell(c, ch, m, b.user(m), body)
	}
}

func (b *bot) tellMembers(c *conn, ch *channel) {
	list := []backends.Member{}
	for _, who := range ch.sorted() {
		if !b.isOurs(who.nick) {
			list = append(list, backends.Member{Action: backends.Joined, User: b.n.userNamed(who.nick), Role: who.role(), Quiet: true})
		}
	}
	b.tell(c, ch, nil, backends.User{}, &backends.Members{Members: list})
}

func (b *bot) handlePart(c *conn, m *irc.Message) {
	ch := b.channel(c, m.Params[0])
	if ch == nil {
		return
	}
	if c.isMe(m) {
		if ch.joined { // the server took us out
			b.lostChannel(c, ch)
		}
		return
	}
	reason := ""
	if len(m.Params) > 1 {
		reason = ircTextOf(m.Params[1])
	}
	b.left(c, ch, m, reason)
}

// left takes the sender of m out of a channel, and tells it of strangers.
func (b *bot) left(c *conn, ch *channel, m *irc.Message, reason string) {
	delete(ch.members, c.fold(m.Prefix.Name))
	if !b.isOurs(m.Prefix.Name) {
		user := b.user(m)
		b.tell(c, ch, m, user, &backends.Member{Action: backends.Left, User: user, Reason: reason})
	}
}

func (b *bot) handleQuit(c *conn, m *irc.Message) {
	reason := ircTextOf(m.Trailing())
	if len(m.Params) == 0 {
		reason = ""
	}
	split := isNetsplit(reason) || c.batches[m.Tags["batch"]].kind == "netsplit"
	nick := c.fold(m.Prefix.Name)
	b.seen.quit(nick, split)
	for _, ch := range b.channels {
		who, in := ch.members[nick]
		switch {
		case !in:
		case split && !b.isOurs(nick):
			delete(ch.members, nick)
			b.splitOff(c, ch, nick, who)
		default:
			b.left(c, ch, m, reason)
		}
	}
	b.n.ownSeenGone(nick)
}

// splitOff remembers who was lost in a netsplit. Who comes back soon has not left.
func (b *bot) splitOff(c *conn, ch *channel, nick string, who *member) {
	who.splitAt = time.Now()
	ch.split[nick] = who
	if !b.splitting {
		b.splitting = true
		c.after(splitPatience, func() { b.tellSplit(c) })
	}
}

func (b *bot) tellSplit(c *conn) {
	b.splitting = false
	next := time.Duration(-1)
	for _, ch := range b.channels {
		for nick, who := range ch.split {
			if left := splitPatience - time.Since(who.splitAt); left > 0 {
				next = max(next, left)
				continue
			}
			delete(ch.split, nick)
			user := b.n.userNamed(who.nick)
			b.tell(c, ch, nil, user, &backends.Member{Action: backends.Left, User: user, Reason: "netsplit", Quiet: true})
		}
	}
	if next >= 0 {
		b.splitting = true
		c.after(next, func() { b.tellSplit(c) })
	}
}

func (b *bot) handleKick(c *conn, m *irc.Message) {
	ch := b.channel(c, m.Params[0])
	if ch == nil {
		return
	}
	nick := m.Params[1]
	if c.same(nick, c.nick) {
		b.n.log.Warn("the bot was kicked", "channel", ch.name, "by", m.Prefix.Name)
		b.lostChannel(c, ch)
		return
	}
	delete(ch.members, c.fold(nick))
	if id, ours := b.n.ownAccount(nick); ours {
		if a, _ := b.n.connected(id); a != nil {
			a.noteKick(c.fold(ch.name))
		}
	}
	if b.isOurs(m.Prefix.Name) { // the host's own doing
		return
	}
	reason := ""
	if len(m.Params) > 2 {
		reason = ircTextOf(m.Params[2])
	}
	b.tell(c, ch, m, b.user(m), &backends.Member{Action: backends.Kicked, User: b.n.userNamed(nick), Reason: reason})
}

// lostChannel is called when we were taken out of a channel that the host wants.
func (b *bot) lostChannel(c *conn, ch *channel) {
	ch.joined = false
	ch.lost = time.Now()
	b.seen.left(c.fold(ch.name))
	b.rejoinLater(c, ch)
}

func (b *bot) rejoinLater(c *conn, ch *channel) {
	wait := rejoinAfter << min(ch.kicks, maxRejoinShift)
	ch.kicks++
	c.after(wait, func() {
		if b.channel(c, ch.name) == ch && !ch.joined && ch.request == nil {
			b.requestJoin(c, ch)
		}
	})
}

// handleNick renames in each channel that we share.
func (b *bot) handleNick(c *conn, m *irc.Message) {
	was, now := m.Prefix.Name, m.Params[0]
	ours := b.isOurs(was) || b.isOurs(now) || c.same(now, c.nick)
	for _, ch := range b.channels {
		who := ch.find(c, was)
		if who == nil {
			continue
		}
		delete(ch.members, c.fold(was))
		who.nick = now
		ch.members[c.fold(now)] = who
		if !ours {
			user := b.n.userNamed(now)
			profile := &backends.Profile{User: user}
			if !c.same(was, now) {
				profile.Was = backends.UserID(c.fold(was))
			}
			b.tell(c, ch, m, user, profile)
		}
	}
	b.seen.renamed(c.fold(was), c.fold(now))
	b.n.ownSeenGone(was)
}

func (b *bot) handleMode(c *conn, m *irc.Message) {
	ch := b.channel(c, m.Params[0])
	if ch == nil {
		return
	}
	ranks, _ := c.isupport.Prefixes()
	for _, change := range c.isupport.ParseModes(m.Params[1:]) {
		who := ch.find(c, change.Arg)
		if strings.IndexByte(ranks, change.Mode) < 0 || who == nil || !who.setMode(change.Mode, change.Add) {
			continue
		}
		if !b.isOurs(who.nick) {
			b.tell(c, ch, m, b.user(m), &backends.RoleChange{User: b.n.userNamed(who.nick), Role: who.role()})
		}
	}
}

func (b *bot) handleTopicReply(c *conn, m *irc.Message) {
	if ch := b.channel(c, m.Params[1]); ch != nil {
		ch.topic = ircTextOf(m.Params[2])
	}
}

func (b *bot) handleTopic(c *conn, m *irc.Message) {
	ch := b.channel(c, m.Params[0])
	if ch == nil {
		return
	}
	ch.topic = ircTextOf(m.Params[1])
	if b.isOurs(m.Prefix.Name) {
		return
	}
	topic := ch.topic
	b.tell(c, ch, m, b.user(m), &backends.ChatInfo{Chat: backends.ChatKey{Chat: b.n.chatID(ch.name)}, Topic: &topic})
}

// handleMessage delivers what others say in channels. What accounts of ours say is
// only noted.
func (b *bot) handleMessage(c *conn, m *irc.Message) {
	ch := b.channel(c, m.Params[0]) // not to some ranks only (STATUSMSG)
	if ch == nil || isServer(m.Prefix) || c.isMe(m) {
		return
	}
	if c.batches[m.Tags["batch"]].kind == "chathistory" {
		b.handleReplay(c, ch, m)
		return
	}
	if b.isOurs(m.Prefix.Name) {
		b.seen.message(c.fold(m.Prefix.Name), c.fold(ch.name), m.Params[1])
		return
	}
	if body := b.n.messageOf(m); body != nil {
		b.tell(c, ch, m, b.user(m), body)
	}
}

func (b *bot) handleTagmsg(c *conn, m *irc.Message) {
	ch := b.channel(c, m.Params[0])
	if ch == nil || b.isOurs(m.Prefix.Name) || isServer(m.Prefix) {
		return
	}
	if body := tagBody(m); body != nil {
		b.tell(c, ch, m, b.user(m), body)
	}
}

// handleAway is of away-notify.
func (b *bot) handleAway(_ *conn, m *irc.Message) {
	if b.isOurs(m.Prefix.Name) {
		return
	}
	p := &backends.Presence{State: backends.Online}
	if len(m.Params) > 0 && m.Params[0] != "" {
		p.State, p.Status = backends.Away, ircTextOf(m.Params[0])
	}
	b.n.deliver(&backends.Event{Sender: b.user(m), Time: timeOf(m), Body: p})
}

func (b *bot) handleChghost(c *conn, m *irc.Message) {
	for _, ch := range b.channels {
		if who := ch.find(c, m.Prefix.Name); who != nil {
			who.user, who.host = m.Params[0], m.Params[1]
		}
	}
}
