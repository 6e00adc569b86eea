package irc

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
)

// Times of accounts.
const (
	accountPatience = 10 * time.Second // for connecting; then the bot relays
	kickedSilence   = 30 * time.Second // after a kick, before the account enters again
	idleCheck       = time.Minute
)

// account is the connection of a user of the host.
type account struct {
	n   *network
	id  backends.AccountID
	log *slog.Logger

	mu      sync.Mutex
	user    backends.User        // guarded by mu
	conn    *conn                // ready; nil without one; guarded by mu
	nick    string               // of conn; guarded by mu
	err     error                // why there is none; nil while connecting; guarded by mu
	gone    bool                 // run has ended; guarded by mu
	used    time.Time            // last spoken; guarded by mu
	kicked  map[string]time.Time // from which folded channels; guarded by mu
	recent  []said               // guarded by mu
	began   int                  // sighting at which conn had begun for the bot too, -1 before; guarded by mu
	left    map[string]bool      // channels that the user left while there was no connection; guarded by mu
	changed chan struct{}        // closed and replaced when something above changes; guarded by mu

	// Of the goroutine of run.
	welcome bool                     // the last connection was ready
	joined  map[string]string        // channels: folded, as given
	joins   map[string][]func(error) // under way, who waits
	peers   map[string]bool          // whom the user has private chats with: folded nicks
}

// said is a line that was sent lately.
type said struct {
	chat, text string
	at         time.Time
}

// errNoRoom means that no more accounts may connect.
var errNoRoom = errors.New("too many users are connected")

// errGone means that an account ended between being found and being used.
var errGone = errors.New("the account has ended")

// account returns the account of a user, and starts it if there is room.
func (n *network) account(user backends.User) (*account, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a := n.accounts[user.Account]; a != nil {
		return a, nil
	}
	if len(n.accounts) >= *n.cfg.Accounts.Max || n.ended {
		return nil, errNoRoom
	}
	a := &account{
		n:       n,
		id:      user.Account,
		log:     n.log.With("account", user.Account),
		user:    user,
		used:    time.Now(),
		changed: make(chan struct{}),
		joined:  map[string]string{},
		kicked:  map[string]time.Time{},
		left:    map[string]bool{},
		peers:   map[string]bool{},
	}
	n.accounts[a.id] = a
	n.conns.Go(a.run)
	return a, nil
}

// update changes what is guarded by mu.
func (a *account) update(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *account) currentNick() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn == nil {
		return ""
	}
	return a.nick
}

// await returns the connection. It waits for a first attempt to connect; the error
// is why there is none.
func (a *account) await(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, accountPatience)
	defer cancel()
	for {
		a.mu.Lock()
		a.used = time.Now()
		c, err, gone, changed := a.conn, a.err, a.gone, a.changed
		a.mu.Unlock()
		switch {
		case gone:
			return nil, errGone
		case c != nil:
			return c, nil
		case err != nil:
			return nil, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// connected returns the connection if there is one now.
func (n *network) connected(id backends.AccountID) (*account, *conn) {
	n.mu.Lock()
	a := n.accounts[id]
	n.mu.Unlock()
	if a == nil {
		return nil, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a, a.conn
}

// run connects, and connects again, until the user has been idle for long or the
// network closes.
func (a *account) run() {
	defer a.remove()
	for attempt := 0; ; attempt++ {
		if !a.n.bot.awaitReady() || a.n.dials.Wait(a.n.ctx) != nil {
			return
		}
		began := time.Now()
		err := a.once()
		if errors.Is(err, errClosed) {
			a.tell(backends.Disconnected, "", err.Error())
			return
		}
		wait, phase := a.n.backoff(attempt), backends.Disconnected
		if _, fatal := errors.AsType[*fatalError](err); fatal || errors.Is(err, errNoNick) {
			wait, phase = fatalRetry, backends.Failed
		} else if time.Since(began) > stableAfter {
			attempt = 0
		}
		a.log.Warn("the connection of a user has ended", "err", err, "retry_in", wait)
		if !a.welcome || attempt > 1 { // messages do not wait for the next attempt
			a.update(func() { a.err = err })
		}
		a.tell(phase, "", err.Error())
		if a.idle() || !pause(a.n.ctx, wait) {
			return
		}
	}
}

func (a *account) remove() {
	a.n.mu.Lock()
	delete(a.n.accounts, a.id)
	a.n.mu.Unlock()
	a.update(func() { a.gone = true })
}

func (a *account) tell(phase backends.NetworkPhase, nick, reason string) {
	a.n.deliver(&backends.Event{Body: &backends.AccountState{Account: a.id, Phase: phase, Address: nick, Reason: reason}})
}

func (a *account) once() error {
	raw, err := a.n.cfg.connect(a.n.ctx, a.n.dial, false)
	if err != nil {
		return err
	}
	c := newConn(a, a.identity(), a.n.cfg.Flood, a.log)
	rejoin := slices.Sorted(maps.Values(a.joined))
	a.joined, a.joins = map[string]string{}, map[string][]func(error){}
	c.rejoin = rejoin
	a.welcome = false
	err = c.run(a.n.ctx, raw)
	if len(a.joined) == 0 && c.phase != ready {
		a.joined = namesOf(c, rejoin) // for the next attempt
	}
	a.update(func() { a.conn = nil })
	a.n.ownGivenUp(c.nick, a.id)
	return err
}

func namesOf(c *conn, channels []string) map[string]string {
	m := map[string]string{}
	for _, name := range channels {
		m[c.fold(name)] = name
	}
	return m
}

// identity makes the nick: the one that the account had before, if the name that it
// was made of is still the same.
func (a *account) identity() identity {
	a.mu.Lock()
	user := a.user
	a.mu.Unlock()
	a.n.mu.Lock()
	limit := a.n.nickLen
	a.n.mu.Unlock()
	if user.Username == "" {
		user.Username = string(a.id)
	}
	id := identity{
		nick:     nickFor(a.n.cfg.Accounts.Nick, user, limit),
		nickLen:  limit,
		username: sanitiseUser(user.Username),
		realname: expand(a.n.cfg.Accounts.Realname, user),
		password: a.n.cfg.Password,
	}
	if old := a.n.loadNick(a.id); old.Wanted == id.nick && old.Nick != "" {
		id.nick = old.Nick
	}
	return id
}

// storedNick remembers the nick that an account got.
type storedNick struct {
	Wanted string `json:"wanted"` // made of the name
	Nick   string `json:"nick"`
	User   string `json:"username"`
	Name   string `json:"name"`
}

const nickKey = "nick/"

// storeTimeout bounds the calls of the host's store.
const storeTimeout = 10 * time.Second

func (n *network) loadNick(id backends.AccountID) (s storedNick) {
	ctx, cancel := context.WithTimeout(n.ctx, storeTimeout)
	defer cancel()
	raw, err := n.host.Store().Get(ctx, nickKey+string(id))
	if err == nil && raw != nil {
		err = json.Unmarshal(raw, &s)
	}
	if err != nil {
		n.log.Warn("cannot read a stored nick", "err", err)
	}
	return s
}

// loadNicks reads which nicks accounts have had.
func (n *network) loadNicks() {
	ctx, cancel := context.WithTimeout(n.ctx, storeTimeout)
	defer cancel()
	all, err := n.host.Store().Scan(ctx, nickKey)
	if err != nil {
		n.log.Warn("cannot read the stored nicks", "err", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, raw := range all {
		var s storedNick
		if json.Unmarshal(raw, &s) == nil && s.Nick != "" {
			n.formerly[n.mapping.Fold(s.Nick)] = true
		}
	}
}

func (a *account) storeNick(nick string) {
	a.mu.Lock()
	user := a.user
	a.mu.Unlock()
	wanted := nickFor(a.n.cfg.Accounts.Nick, user, a.n.nickLimit())
	s := storedNick{Wanted: wanted, Nick: nick, User: user.Username, Name: user.Name}
	if a.n.loadNick(a.id) == s {
		return
	}
	raw, err := json.Marshal(s)
	if err == nil {
		ctx, cancel := context.WithTimeout(a.n.ctx, storeTimeout)
		defer cancel()
		err = a.n.host.Store().Put(ctx, nickKey+string(a.id), raw)
	}
	if err != nil {
		a.log.Warn("cannot store a nick", "err", err)
	}
}

// registered implements owner.
func (a *account) registered(c *conn) {
	a.welcome = true
	a.n.ownAdd(c.nick, a.id)
	a.storeNick(c.nick)
	var left map[string]bool
	a.update(func() {
		left, a.left = a.left, map[string]bool{}
		a.conn, a.nick, a.err, a.began = c, c.nick, nil, -1
	})
	a.n.conns.Go(func() { a.synchronise(c) })
	for _, name := range c.rejoin {
		if !left[c.fold(name)] {
			a.enter(c, name, func(error) {})
		}
	}
	a.tell(backends.Ready, c.nick, "")
	a.checkIdle(c)
}

// renamed implements owner.
func (a *account) renamed(c *conn, was string) {
	a.n.ownAdd(c.nick, a.id)
	if !c.same(was, c.nick) {
		a.n.ownGivenUp(was, a.id)
	}
	a.update(func() { a.nick = c.nick })
	a.storeNick(c.nick)
	a.tell(backends.Ready, c.nick, "")
}

func (a *account) idle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	limit := time.Duration(a.n.cfg.Accounts.IdleTimeout)
	return limit > 0 && time.Since(a.used) >= limit
}

func (a *account) checkIdle(c *conn) {
	if a.idle() && len(c.pending) == 0 {
		c.close("idle")
		return
	}
	c.after(idleCheck, func() { a.checkIdle(c) })
}

// message implements owner.
func (a *account) message(c *conn, m *irc.Message) {
	if h, ok := accountHandlers[m.Command]; ok && len(m.Params) >= h.minParams {
		h.run(a, c, m)
	}
}

type accountHandler struct {
	minParams int
	run       func(*account, *conn, *irc.Message)
}

var accountHandlers map[string]accountHandler

func init() {
	accountHandlers = map[string]accountHandler{
		"JOIN":    {1, (*account).handleJoin},
		"PART":    {1, (*account).handlePart},
		"KICK":    {2, (*account).handleKick},
		"PRIVMSG": {2, (*account).handleMessage},
		"NOTICE":  {2, (*account).handleMessage},
		"TAGMSG":  {1, (*account).handleTagmsg},
		"INVITE":  {2, (*account).handleInvite},
		"366":     {2, (*account).handleNamesEnd},
	}
}

// enter makes the account a member of a channel.
func (a *account) enter(c *conn, name string, done func(error)) {
	folded := c.fold(name)
	if a.kickedLately(folded) { // the bot may have seen it first
		done(&backends.Refusal{Code: backends.RefusedForbidden, Message: "you were kicked from " + name})
		return
	}
	if _, in := a.joined[folded]; in && len(a.joins[folded]) == 0 { // else others were first
		done(nil)
		return
	}
	a.joins[folded] = append(a.joins[folded], done)
	if len(a.joins[folded]) > 1 {
		return
	}
	m := ircmsg.New("JOIN", name)
	if key := a.n.channelKey(name); key != "" {
		m.Params = append(m.Params, key)
	}
	c.submit(&request{lines: []*irc.Message{m}, target: name, replies: true, timeout: joinTimeout, done: func(o outcome) {
		waiting := a.joins[folded]
		delete(a.joins, folded)
		for _, f := range waiting {
			f(o.err)
		}
	}})
}

func (a *account) handleJoin(c *conn, m *irc.Message) {
	if c.isMe(m) {
		a.joined[c.fold(m.Params[0])] = m.Params[0]
	}
}

// handleNamesEnd completes a JOIN.
func (a *account) handleNamesEnd(c *conn, m *irc.Message) {
	for _, r := range slices.Clone(c.pending) {
		if r.replies && r.written > 0 && c.same(r.target, m.Params[1]) {
			c.finish(r, nil)
		}
	}
}

func (a *account) handlePart(c *conn, m *irc.Message) {
	if c.isMe(m) {
		delete(a.joined, c.fold(m.Params[0]))
	}
}

func (a *account) handleKick(c *conn, m *irc.Message) {
	if c.same(m.Params[1], c.nick) {
		delete(a.joined, c.fold(m.Params[0]))
		a.noteKick(c.fold(m.Params[0]))
	}
}

// noteKick makes the account silent in a channel for a while, so that what was
// written before its user heard of the kick does not bring it back.
func (a *account) noteKick(channel string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kicked[channel] = time.Now()
}

func (a *account) kickedLately(channel string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, was := a.kicked[channel]
	if was && time.Since(at) >= kickedSilence {
		delete(a.kicked, channel)
		was = false
	}
	return was
}

// maxPeers bounds what strangers can make us remember.
const maxPeers = 10000

// private reports whether m is for us alone, from someone who is not of ours.
func (a *account) private(c *conn, m *irc.Message) bool {
	if !c.same(m.Params[0], c.nick) || c.isMe(m) || isServer(m.Prefix) {
		return false
	}
	_, ours := a.n.ownAccount(m.Prefix.Name)
	return !ours
}

// handleMessage delivers private messages. Notices, which services send to everyone
// who connects, are delivered only from those whom the user has written to.
func (a *account) handleMessage(c *conn, m *irc.Message) {
	nick := c.fold(m.Prefix.Name)
	if !a.private(c, m) || m.Command == "NOTICE" && !a.peers[nick] {
		return
	}
	if body := a.n.messageOf(m); body != nil {
		if len(a.peers) > maxPeers {
			clear(a.peers)
		}
		a.peers[nick] = true
		a.deliver(c, m, body)
	}
}

func (a *account) handleTagmsg(c *conn, m *irc.Message) {
	if !a.private(c, m) {
		return
	}
	if body := tagBody(m); body != nil {
		a.deliver(c, m, body)
	}
}

// handleInvite tells that somebody on the network invites the user to a channel.
func (a *account) handleInvite(c *conn, m *irc.Message) {
	if !a.private(c, m) || !c.isupport.IsChannel(m.Params[1]) {
		return
	}
	a.n.deliver(&backends.Event{
		Chat:   backends.ChatKey{Chat: a.n.chatID(m.Params[1])},
		Sender: a.n.userNamed(m.Prefix.Name),
		ID:     c.messageID(m),
		Time:   timeOf(m),
		Body:   &backends.Member{Action: backends.Invited, User: a.n.userNamed(c.nick)},
	})
}

func (a *account) deliver(c *conn, m *irc.Message, body backends.Body) {
	a.n.deliver(&backends.Event{
		Chat:   backends.ChatKey{Chat: a.n.chatID(m.Prefix.Name), Account: a.id},
		Sender: a.n.userNamed(m.Prefix.Name),
		ID:     c.messageID(m),
		Time:   timeOf(m),
		Body:   body,
	})
}

// speak says a message in a channel, entering it first, or to a nick.
func (a *account) speak(c *conn, cmd *backends.Command, target string, reply func(backends.Result)) {
	if !c.isupport.IsChannel(target) {
		a.peers[c.fold(target)] = true
		a.send(c, cmd, target, reply)
		return
	}
	a.enter(c, target, func(err error) {
		if err != nil { // nothing was said
			reply(resultOf(err))
			return
		}
		a.send(c, cmd, target, reply)
	})
}

// synchronise waits until the bot has heard of everything that was before the
// connection: then a QUIT that it sees is not that of an earlier one.
func (a *account) synchronise(c *conn) {
	bot := a.n.bot.ready()
	if bot == nil {
		return
	}
	bot.do(a.n.ctx, func() {
		bot.submit(&request{lines: []*irc.Message{ircmsg.New("PING", "account")}, target: "*", done: func(o outcome) {
			a.mu.Lock()
			defer a.mu.Unlock()
			if o.err == nil && a.conn == c {
				a.began = a.n.bot.seen.now()
			}
		}})
	})
}

func (a *account) send(c *conn, cmd *backends.Command, target string, reply func(backends.Result)) {
	r := a.n.say(c, cmd, target, "", reply)
	if r == nil {
		return
	}
	tr := trace{nick: c.fold(c.nick), chat: c.fold(target), sent: a.n.bot.seen.now()}
	for _, m := range r.lines {
		tr.lines = append(tr.lines, m.Params[1])
	}
	var clear bool
	tr.began, clear = a.note(tr)
	r.done = func(o outcome) {
		if o.err == errNotSent {
			a.forget(tr)
		}
		if o.err != errUnknown || !clear || !c.isupport.IsChannel(target) {
			reply(messageResult(cmd, len(r.lines), o))
			return
		}
		a.n.conns.Go(func() { reply(a.investigate(cmd, tr)) })
	}
	c.submit(r)
}

// maxRecent is how many lines are remembered for comparison.
const maxRecent = 64

// note remembers lines, and returns the sighting at which the connection began. What
// the bot sees is not clear if that is not known, or if one of the lines was said
// there a moment ago.
func (a *account) note(tr trace) (began int, clear bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	clear = a.began >= 0
	for _, text := range tr.lines {
		clear = clear && !slices.ContainsFunc(a.recent, func(s said) bool {
			return s.chat == tr.chat && s.text == text && now.Sub(s.at) < 2*sightingPatience
		})
	}
	for _, text := range tr.lines {
		a.recent = append(a.recent, said{tr.chat, text, now})
	}
	if extra := len(a.recent) - maxRecent; extra > 0 {
		a.recent = slices.Delete(a.recent, 0, extra)
	}
	return a.began, clear
}

// forget undoes note for lines that did not arrive.
func (a *account) forget(tr trace) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, text := range tr.lines {
		i := slices.IndexFunc(a.recent, func(s said) bool { return s.chat == tr.chat && s.text == text })
		if i >= 0 {
			a.recent = slices.Delete(a.recent, i, i+1)
		}
	}
}

// investigate finds out from what the bot saw whether a message arrived.
func (a *account) investigate(cmd *backends.Command, tr trace) backends.Result {
	switch a.n.bot.seen.find(a.n.ctx, tr) {
	case arrived:
		return delivered(cmd, len(tr.lines), nil)
	case absent:
		a.forget(tr)
		return retryIn(time.Second)
	}
	return messageResult(cmd, len(tr.lines), outcome{err: errUnknown})
}
