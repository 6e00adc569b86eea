package irc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
)

// carryOut does what a command says, or sees to it that it is done in its turn.
func (n *network) carryOut(l *lane, j *job) {
	if n.bot.ready() == nil {
		l.wait()
		j.reply(retryIn(2 * time.Second))
		return
	}
	switch body := j.cmd.Body.(type) {
	case *backends.Message:
		n.carryMessage(l, j)
	case *backends.ChatInfo:
		n.carryTopic(l, j, body)
	case *backends.Member:
		n.carryMember(l, j, body)
	case *backends.RoleChange:
		n.carryRole(l, j, body)
	case *backends.Profile:
		n.carryProfile(l, j, body)
	case *backends.Typing:
		n.carryTyping(l, j, body)
	default:
		j.reply(backends.Result{Outcome: backends.Unsupported, Reason: "IRC has no such thing"})
	}
}

// validTarget reports whether s can be the one target of a message.
func validTarget(s string) bool {
	return s != "" && s[0] != ':' && !strings.ContainsAny(s, " ,\r\n\x00\a") && len(s) <= 200
}

// carryMessage says a message: by the sender's account, else by the bot.
func (n *network) carryMessage(l *lane, j *job) {
	cmd, target := j.cmd, string(j.cmd.Chat.Chat)
	switch {
	case !validTarget(target):
		j.reply(rejected("this is no channel or nick"))
		return
	case cmd.Chat.Account != "" && n.isOwn(target):
		j.reply(rejected(target + " is a user of this bridge"))
		return
	}
	if j = n.journalled(l, j); j == nil {
		return
	}
	for range 3 {
		a, c, err := n.speaker(cmd)
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil && cmd.Chat.Account != "" {
			j.reply(rejected("you are not connected to IRC: " + err.Error()))
			return
		}
		if err != nil && n.relay(l, j, target) {
			return
		}
		if err == nil && l.submit(c, j, func(reply func(backends.Result)) { a.speak(c, cmd, target, reply) }) {
			return
		}
	}
	l.wait()
	j.reply(retryIn(2 * time.Second))
}

// journalled answers a message whose outcome is known or cannot be found out any
// more, and returns nil. Otherwise it stores that the message is begun, and returns
// a job that also stores the outcome. MaybeSent alone does not tell:
// it is said once, and a Retry for another reason may have followed.
func (n *network) journalled(l *lane, j *job) *job {
	id := j.cmd.ID
	err := l.journal.load(n.ctx)
	if err == nil && (j.cmd.MaybeSent || j.cmd.Attempt > 1) {
		if b, ok := l.journal.find(id); ok {
			if len(b.IDs) > 0 {
				j.reply(backends.Result{Outcome: backends.Delivered, IDs: b.IDs})
			} else {
				j.reply(backends.Result{Outcome: backends.Uncertain, Reason: "the bridge was interrupted before the network confirmed it"})
			}
			return nil
		}
	}
	if err == nil {
		err = l.journal.begin(n.ctx, id)
	}
	if err != nil {
		n.log.Error("cannot keep the journal of a chat", "err", err)
		j.reply(backends.Result{Outcome: backends.Retry, After: 5 * time.Second, Reason: "the bridge cannot store what it sends"})
		return nil
	}
	return &job{cmd: j.cmd, number: j.number, reply: func(r backends.Result) { l.journal.end(id, r); j.reply(r) }}
}

func (n *network) isOwn(nick string) bool {
	_, ours := n.ownAccount(nick)
	return ours
}

// errRelayed means that the sender is to be relayed by the bot.
var errRelayed = errors.New("the sender has no account")

// speaker returns the account of the sender with its connection.
func (n *network) speaker(cmd *backends.Command) (*account, *conn, error) {
	if cmd.Sender.Account == "" || *n.cfg.Accounts.Max == 0 {
		return nil, nil, errRelayed
	}
	a, err := n.account(cmd.Sender)
	if err != nil {
		return nil, nil, err
	}
	c, err := a.await(n.ctx)
	return a, c, err
}

// relay lets the bot say a message for its sender. It returns false if the bot's
// connection has ended.
func (n *network) relay(l *lane, j *job, target string) bool {
	c := n.bot.ready()
	if c == nil {
		return false
	}
	return l.submit(c, j, func(reply func(backends.Result)) {
		ch := n.bot.channel(c, target)
		if ch == nil || !ch.joined {
			reply(backends.Result{Outcome: backends.Retry, After: 2 * time.Second, Reason: "the bridge is not in " + target})
			return
		}
		if r := n.say(c, j.cmd, target, plainName(j.cmd.Sender), reply); r != nil {
			r.done = func(o outcome) { reply(messageResult(j.cmd, len(r.lines), o)) }
			c.submit(r)
		}
	})
}

// messageResult is the result of a message whose request had o.
func messageResult(cmd *backends.Command, lines int, o outcome) backends.Result {
	switch o.err {
	case nil:
		return delivered(cmd, lines, o.ids)
	case errUnknown:
		return backends.Result{Outcome: backends.Uncertain, Reason: o.err.Error()}
	}
	return resultOf(o.err)
}

// resultOf is the result of a command that does no harm if it is repeated, and whose
// request had an error, or nil.
func resultOf(err error) backends.Result {
	if r, ok := errors.AsType[*backends.Refusal](err); ok {
		return rejected(r.Message)
	}
	if err != nil {
		return retryIn(time.Second)
	}
	return backends.Result{Outcome: backends.Delivered}
}

// moderate runs the lines that f makes, in a channel, by who has at least the rank
// of a half-operator there: the bot or the sender's account. With anyone, the
// sender's account does it if nobody has, or else the bot. concerned is the
// nick whom it is about, "" if nobody.
func (n *network) moderate(l *lane, j *job, concerned string, anyone bool, f func(c *conn, who *member) []*irc.Message) {
	bot := n.bot.ready()
	_, mine := n.connected(j.cmd.Sender.Account)
	target := string(j.cmd.Chat.Chat)
	if bot == nil || !validTarget(target) {
		j.reply(retryIn(2 * time.Second))
		return
	}
	l.wait()
	type decision struct {
		conn *conn
		who  *member
		err  string
	}
	decided := make(chan decision, 1)
	ok := bot.do(n.ctx, func() {
		ch := n.bot.channel(bot, target)
		if ch == nil || !ch.joined {
			decided <- decision{err: "the bridge is not in " + target}
			return
		}
		d := decision{conn: bot}
		if who := ch.find(bot, concerned); who != nil {
			copied := *who
			d.who = &copied
		}
		switch {
		case ch.hasRank(bot, bot.nick):
		case mine != nil && (anyone || ch.hasRank(bot, n.nickOf(j.cmd.Sender.Account))):
			d.conn = mine
		case !anyone:
			d.err = "neither you nor the bridge is an operator of " + target
		}
		decided <- d
	})
	if !ok {
		j.reply(retryIn(2 * time.Second))
		return
	}
	d := <-decided
	if d.err != "" {
		j.reply(rejected(d.err))
		return
	}
	submitted := l.submit(d.conn, j, func(reply func(backends.Result)) {
		lines := f(d.conn, d.who)
		d.conn.submit(&request{lines: lines, target: target, also: concerned, done: func(o outcome) { reply(resultOf(o.err)) }})
	})
	if !submitted {
		j.reply(retryIn(2 * time.Second))
	}
}

// hasRank reports whether a nick is at least a half-operator.
func (ch *channel) hasRank(c *conn, nick string) bool {
	who := ch.find(c, nick)
	return who != nil && who.role() >= backends.HalfOp
}

// carryTopic sets the topic; the other fields do not exist on IRC.
func (n *network) carryTopic(l *lane, j *job, info *backends.ChatInfo) {
	if info.Topic == nil || j.cmd.Chat.Account != "" {
		j.reply(backends.Result{Outcome: backends.Unsupported, Reason: "IRC has only topics"})
		return
	}
	n.moderate(l, j, "", true, func(c *conn, _ *member) []*irc.Message {
		limit := min(c.isupport.Int("TOPICLEN", 390), c.room("TOPIC", string(j.cmd.Chat.Chat)))
		topic, _ := ircmsg.Cut(ircmsg.Clean(*info.Topic), limit)
		return []*irc.Message{ircmsg.New("TOPIC", string(j.cmd.Chat.Chat), topic)}
	})
}

// memberActions are the changes of membership that users of the host can make to
// remote users.
var memberActions = map[backends.Action]func(n *network, l *lane, j *job, m *backends.Member){
	backends.Kicked:   (*network).carryKick,
	backends.Banned:   (*network).carryBan,
	backends.Unbanned: (*network).carryUnban,
	backends.Invited:  (*network).carryInvite,
}

// carryMember changes who is in a channel. Users of the host enter when they
// first speak, so Joined does nothing.
func (n *network) carryMember(l *lane, j *job, m *backends.Member) {
	if j.cmd.Chat.Account != "" {
		j.reply(backends.Result{Outcome: backends.Delivered})
		return
	}
	if m.User.ID == "" {
		n.carryOwnMember(l, j, m)
		return
	}
	if do, ok := memberActions[m.Action]; ok && validTarget(string(m.User.ID)) {
		do(n, l, j, m)
		return
	}
	j.reply(backends.Result{Outcome: backends.Unsupported, Reason: "IRC has no such thing"})
}

// carryOwnMember takes the account out of a channel that its user has left, or was
// removed from by another user of the host.
func (n *network) carryOwnMember(l *lane, j *job, m *backends.Member) {
	target := string(j.cmd.Chat.Chat)
	user := m.User
	if user.Account == "" {
		user = j.cmd.Sender
	}
	a, c := n.connected(user.Account)
	leaves := m.Action == backends.Left || m.Action == backends.Kicked || m.Action == backends.Banned
	if !leaves || a == nil || !validTarget(target) {
		j.reply(backends.Result{Outcome: backends.Delivered})
		return
	}
	submitted := c != nil && l.submit(c, j, func(reply func(backends.Result)) {
		if _, in := a.joined[c.fold(target)]; !in {
			reply(backends.Result{Outcome: backends.Delivered})
			return
		}
		delete(a.joined, c.fold(target))
		line := ircmsg.New("PART", target, reasonText(c, m.Reason, "PART", target))
		c.submit(&request{lines: []*irc.Message{line}, target: target, done: func(o outcome) {
			if o.err == errUnknown || o.err == errNotSent {
				a.stayOut(c.fold(target))
			}
			reply(backends.Result{Outcome: backends.Delivered})
		}})
	})
	if !submitted { // who is not connected is not there
		a.stayOut(n.fold(target))
		j.reply(backends.Result{Outcome: backends.Delivered})
	}
}

// stayOut keeps the account from entering a channel again when it is connected again.
func (a *account) stayOut(channel string) {
	a.update(func() { a.left[channel] = true })
}

// reasonText cuts a reason so that the line fits.
func reasonText(c *conn, reason, command, target string) string {
	head, _ := ircmsg.Cut(ircmsg.Clean(reason), min(c.room(command, target), c.isupport.Int("KICKLEN", 300)))
	return head
}

func (n *network) kickLine(c *conn, j *job, m *backends.Member) *irc.Message {
	chat, nick := string(j.cmd.Chat.Chat), string(m.User.ID)
	reason := plainName(j.cmd.Sender)
	if m.Reason != "" {
		reason += ": " + m.Reason
	}
	return ircmsg.New("KICK", chat, nick, reasonText(c, reason, "KICK", chat+" "+nick))
}

func (n *network) carryKick(l *lane, j *job, m *backends.Member) {
	n.moderate(l, j, string(m.User.ID), false, func(c *conn, _ *member) []*irc.Message {
		return []*irc.Message{n.kickLine(c, j, m)}
	})
}

func banKey(chat backends.ChatID, user backends.UserID) string {
	return fmt.Sprintf("ban/%s/%s", chat, user)
}

// carryBan bans the host of a user, if it is known, and kicks them. The mask is
// remembered for the time when the ban is lifted.
func (n *network) carryBan(l *lane, j *job, m *backends.Member) {
	chat := string(j.cmd.Chat.Chat)
	n.moderate(l, j, string(m.User.ID), false, func(c *conn, who *member) []*irc.Message {
		mask := string(m.User.ID) + "!*@*"
		if who != nil {
			mask = who.mask()
		}
		ctx, cancel := context.WithTimeout(n.ctx, storeTimeout)
		defer cancel()
		if err := n.host.Store().Put(ctx, banKey(j.cmd.Chat.Chat, m.User.ID), []byte(mask)); err != nil {
			n.log.Warn("cannot store a ban", "err", err)
		}
		lines := []*irc.Message{ircmsg.New("MODE", chat, "+b", mask)}
		if who != nil {
			lines = append(lines, n.kickLine(c, j, m))
		}
		return lines
	})
}

func (n *network) carryUnban(l *lane, j *job, m *backends.Member) {
	ctx, cancel := context.WithTimeout(n.ctx, storeTimeout)
	defer cancel()
	mask, err := n.host.Store().Get(ctx, banKey(j.cmd.Chat.Chat, m.User.ID))
	if err != nil {
		n.log.Warn("cannot read a ban", "err", err)
	}
	if mask == nil {
		mask = []byte(string(m.User.ID) + "!*@*")
	}
	n.moderate(l, j, string(m.User.ID), false, func(*conn, *member) []*irc.Message {
		return []*irc.Message{ircmsg.New("MODE", string(j.cmd.Chat.Chat), "-b", string(mask))}
	})
}

func (n *network) carryInvite(l *lane, j *job, m *backends.Member) {
	n.moderate(l, j, string(m.User.ID), true, func(*conn, *member) []*irc.Message {
		return []*irc.Message{ircmsg.New("INVITE", string(m.User.ID), string(j.cmd.Chat.Chat))}
	})
}

// carryRole gives a remote user a rank, taking the others away.
func (n *network) carryRole(l *lane, j *job, change *backends.RoleChange) {
	nick := string(change.User.ID)
	if nick == "" || !validTarget(nick) || j.cmd.Chat.Account != "" {
		j.reply(backends.Result{Outcome: backends.Unsupported, Reason: "only people on IRC can have a rank there"})
		return
	}
	n.moderate(l, j, nick, false, func(c *conn, who *member) []*irc.Message {
		if who == nil {
			return nil
		}
		offered, _ := c.isupport.Prefixes()
		letters, args := "", []string{}
		for _, r := range roles {
			has := strings.IndexByte(who.modes, r.mode) >= 0
			if want := r.role == change.Role; want != has && strings.IndexByte(offered, r.mode) >= 0 {
				letters += map[bool]string{true: "+", false: "-"}[want] + string(r.mode)
				args = append(args, nick)
			}
		}
		if letters == "" {
			return nil
		}
		return []*irc.Message{ircmsg.New("MODE", append([]string{string(j.cmd.Chat.Chat), letters}, args...)...)}
	})
}

// carryProfile changes the nick of an account after the name of its user.
func (n *network) carryProfile(l *lane, j *job, p *backends.Profile) {
	user := p.User
	if user.Account == "" {
		user.Account = j.cmd.Sender.Account
	}
	a, c := n.connected(user.Account)
	if a == nil {
		j.reply(backends.Result{Outcome: backends.Delivered})
		return
	}
	a.update(func() { a.user = user })
	nick := nickFor(n.cfg.Accounts.Nick, user, n.nickLimit())
	submitted := c != nil && l.submit(c, j, func(reply func(backends.Result)) {
		if nick == c.nick || strings.TrimRight(c.nick, "_0123456789") == nick {
			reply(backends.Result{Outcome: backends.Delivered})
			return
		}
		line := ircmsg.New("NICK", nick)
		c.submit(&request{lines: []*irc.Message{line}, target: nick, done: func(o outcome) { reply(resultOf(o.err)) }})
	})
	if !submitted {
		j.reply(backends.Result{Outcome: backends.Delivered})
	}
}

func (n *network) nickLimit() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.nickLen
}

// carryTyping tells that the user of a connected account is typing
// (https://ircv3.net/specs/client-tags/typing). It is never worth connecting.
func (n *network) carryTyping(l *lane, j *job, t *backends.Typing) {
	target := string(j.cmd.Chat.Chat)
	a, c := n.connected(j.cmd.Sender.Account)
	if c == nil || !validTarget(target) {
		j.reply(backends.Result{Outcome: backends.Delivered})
		return
	}
	submitted := l.submit(c, j, func(reply func(backends.Result)) {
		_, in := a.joined[c.fold(target)]
		if c.typing() && len(c.out) == 0 && (in || a.peers[c.fold(target)]) {
			m := ircmsg.New("TAGMSG", target)
			m.Tags["+typing"] = map[bool]string{true: "active", false: "done"}[t.On]
			if c.limiter.Allow() {
				c.write(m)
			}
		}
		reply(backends.Result{Outcome: backends.Delivered})
	})
	if !submitted {
		j.reply(backends.Result{Outcome: backends.Delivered})
	}
}
