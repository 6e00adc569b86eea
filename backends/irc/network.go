package irc

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
)

// maxEvents is how many events may wait for the host before reading from the
// network stops.
const maxEvents = 4096

// network implements backends.Network.
type network struct {
	cfg  *config
	dial dialFunc
	host backends.Host
	log  *slog.Logger

	backoff func(attempt int) time.Duration

	ctx    context.Context // of the connections; ends with Close
	cancel context.CancelFunc
	conns  sync.WaitGroup
	events chan *backends.Event
	tellCt context.Context // of Deliver
	tellNo context.CancelFunc
	told   chan struct{} // closed when no more events are delivered
	dials  *rate.Limiter // of accounts

	bot *bot

	mu       sync.Mutex
	mapping  ircmsg.Mapping                  // guarded by mu
	nickLen  int                             // guarded by mu
	chatIDs  map[string]backends.ChatID      // folded name to the host's ID; guarded by mu
	own      map[string]ownNick              // folded; guarded by mu
	formerly map[string]bool                 // folded nicks that accounts have had; guarded by mu
	accounts map[backends.AccountID]*account // guarded by mu
	lanes    map[backends.ChatKey]*lane      // guarded by mu
	ended    bool                            // no more goroutines may be started; guarded by mu
	closed   bool                            // guarded by mu
}

// ownNick is a nick that is, or was a moment ago, one of ours.
type ownNick struct {
	account backends.AccountID // "" is the bot
	until   time.Time          // zero while it is in use
}

func open(cfg *config, b *backend, host backends.Host) *network {
	n := &network{
		cfg:      cfg,
		dial:     b.dial,
		backoff:  b.backoff,
		host:     host,
		log:      host.Log(),
		events:   make(chan *backends.Event, maxEvents),
		told:     make(chan struct{}),
		dials:    rate.NewLimiter(rate.Limit(cfg.Flood.Connects), 5),
		nickLen:  maxNick,
		chatIDs:  map[string]backends.ChatID{},
		own:      map[string]ownNick{},
		formerly: map[string]bool{},
		accounts: map[backends.AccountID]*account{},
		lanes:    map[backends.ChatKey]*lane{},
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.tellCt, n.tellNo = context.WithCancel(context.Background())
	n.bot = newBot(n)
	go n.tell()
	n.conns.Go(func() { n.loadNicks(); n.bot.run() })
	return n
}

// tell hands events to the host, in order, until the channel is closed.
func (n *network) tell() {
	defer close(n.told)
	for ev := range n.events {
		if err := n.host.Deliver(n.tellCt, ev, nil); err != nil && !errors.Is(err, context.Canceled) {
			n.log.Error("the host did not take an event", "err", err)
		}
	}
}

// deliver queues an event. It blocks while the host is too far behind. Only
// goroutines of conns call it.
func (n *network) deliver(ev *backends.Event) {
	select {
	case n.events <- ev:
	case <-n.tellCt.Done():
	}
}

func (n *network) deliverState(phase backends.NetworkPhase, reason string, caps *backends.Capabilities) {
	n.deliver(&backends.Event{Body: &backends.NetworkState{Phase: phase, Reason: reason, Capabilities: caps}})
}

// Close implements backends.Network.
func (n *network) Close(ctx context.Context) error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		<-n.told
		return nil
	}
	n.closed = true
	lanes := make([]*lane, 0, len(n.lanes))
	for _, l := range n.lanes {
		lanes = append(lanes, l)
	}
	n.mu.Unlock()
	for _, l := range lanes {
		l.drain(ctx)
	}
	n.mu.Lock()
	n.ended = true
	n.mu.Unlock()
	n.cancel()
	stop := context.AfterFunc(ctx, n.tellNo)
	defer stop()
	n.conns.Wait()
	close(n.events)
	<-n.told
	n.tellNo()
	return ctx.Err()
}

// fold is that of the network's CASEMAPPING.
func (n *network) fold(s string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mapping.Fold(s)
}

// learn takes over what the server told the bot, for what is outside its connection.
func (n *network) learn(s *ircmsg.ISupport) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nickLen = min(s.Int("NICKLEN", maxNick), 64)
	if s.Mapping() == n.mapping {
		return
	}
	n.mapping = s.Mapping()
	n.own = refold(n.own, n.mapping)
	n.chatIDs = refold(n.chatIDs, n.mapping)
	n.formerly = refold(n.formerly, n.mapping)
}

func refold[T any](old map[string]T, mapping ircmsg.Mapping) map[string]T {
	m := make(map[string]T, len(old))
	for name, v := range old {
		m[mapping.Fold(name)] = v
	}
	return m
}

// chatID returns the host's ID of a channel or nick.
func (n *network) chatID(name string) backends.ChatID {
	n.mu.Lock()
	defer n.mu.Unlock()
	folded := n.mapping.Fold(name)
	if id, ok := n.chatIDs[folded]; ok {
		return id
	}
	return backends.ChatID(folded)
}

func (n *network) setChatID(id backends.ChatID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.chatIDs[n.mapping.Fold(string(id))] = id
}

// A nick that we gave up stays known for so long, so that what it said and did
// before is not taken for somebody else's.
const ownNickLinger = 2 * time.Minute

func (n *network) ownAdd(nick string, a backends.AccountID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.own[n.mapping.Fold(nick)] = ownNick{account: a}
	if a != "" {
		n.formerly[n.mapping.Fold(nick)] = true
	}
}

// ownGivenUp is called when a connection no longer has the nick.
func (n *network) ownGivenUp(nick string, a backends.AccountID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	folded := n.mapping.Fold(nick)
	if o, ok := n.own[folded]; ok && o.account == a {
		o.until = time.Now().Add(ownNickLinger)
		n.own[folded] = o
	}
}

// ownSeenGone is called when the bot saw the nick leave the network.
func (n *network) ownSeenGone(nick string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	folded := n.mapping.Fold(nick)
	if o := n.own[folded]; !o.until.IsZero() {
		delete(n.own, folded)
	}
}

// ownAccount returns whose nick it is, if it is one of ours.
func (n *network) ownAccount(nick string) (backends.AccountID, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	folded := n.mapping.Fold(nick)
	o, ok := n.own[folded]
	if ok && !o.until.IsZero() && time.Now().After(o.until) {
		delete(n.own, folded)
		return "", false
	}
	return o.account, ok
}

// wasOurs reports whether an account has had a nick, perhaps in an earlier process.
func (n *network) wasOurs(nick string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.formerly[n.mapping.Fold(nick)]
}

// nickOf returns the nick of an account that is connected, else "".
func (n *network) nickOf(id backends.AccountID) string {
	n.mu.Lock()
	a := n.accounts[id]
	n.mu.Unlock()
	if a == nil {
		return ""
	}
	return a.currentNick()
}

// userNamed returns the user with a nick: a remote one, or one of the host.
func (n *network) userNamed(nick string) backends.User {
	if a, ok := n.ownAccount(nick); ok {
		return backends.User{Account: a, Name: nick, Username: nick}
	}
	return backends.User{ID: backends.UserID(n.fold(nick)), Name: nick, Username: nick}
}

// backoff returns how long to wait before the next attempt: from half a second
// up to five minutes, half of it random.
func backoff(attempt int) time.Duration {
	d := min(500*time.Millisecond<<min(attempt, 12), 5*time.Minute)
	return d/2 + rand.N(d/2+1)
}

// pause waits, or returns false if ctx ends.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
