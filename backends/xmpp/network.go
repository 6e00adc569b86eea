package xmpp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/xmpp/stream"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// Times and sizes of a network.
const (
	requestTimeout = 15 * time.Second
	joinTimeout    = 20 * time.Second
	confirmTimeout = 45 * time.Second // for a MUC to reflect a message
	sweepEvery     = 5 * time.Second
	retryAfter     = 2 * time.Second
	laneLimit      = 4096
)

// network is one component: the bridge's client of MUCs, and its gateway.
type network struct {
	cfg    *Config
	domain jid.JID
	bot    jid.JID // the full JID of the bot
	host   backends.Host
	log    *slog.Logger
	key    []byte // of stanza and occupant IDs; kept in the store
	comp   *stream.Component
	in     *stream.Lanes // stanzas
	out    *stream.Lanes // commands
	enters *stream.Lanes // what the host is asked for gateway users
	limits limiters

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	taken  sync.WaitGroup // commands without an answer

	mu       sync.Mutex
	up       bool                       // guarded by mu
	closing  bool                       // commands are not taken any more; guarded by mu
	stopped  bool                       // goroutines are not started any more; guarded by mu
	failed   string                     // the reason last told of; guarded by mu
	mucs     map[string]*muc            // by bare JID; guarded by mu
	rooms    map[backends.ChatID]*room  // of the gateway; guarded by mu
	ids      map[backends.ChatKey]*ids  // guarded by mu
	accounts map[string]backends.User   // by localpart; guarded by mu
	maybe    map[string]bool            // commands that were sent and not confirmed, by ID; guarded by mu
	direct   map[string]*directDelivery // private messages in hand, by stanza ID; guarded by mu
}

// open starts a network. A nil dial is TCP.
func open(ctx context.Context, c *Config, domain jid.JID, host backends.Host, dial func(context.Context, string) (net.Conn, error)) (*network, error) {
	bot, err := jid.New("", domain.Domainpart(), resource)
	if err != nil {
		return nil, fmt.Errorf("address of the bot: %w", err)
	}
	n := &network{
		cfg: c, domain: domain, bot: bot, host: host, log: host.Log(),
		in: stream.NewLanes(laneLimit), out: stream.NewLanes(laneLimit), enters: stream.NewLanes(laneLimit), limits: newLimiters(c.Limits),
		mucs: map[string]*muc{}, rooms: map[backends.ChatID]*room{}, ids: map[backends.ChatKey]*ids{},
		accounts: map[string]backends.User{}, maybe: map[string]bool{}, direct: map[string]*directDelivery{},
	}
	if n.key, err = storedKey(ctx, host.Store()); err != nil {
		return nil, err
	}
	n.ctx, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	n.comp = stream.New(stream.Options{
		Addr: c.Server, Domain: domain, Secret: c.Secret, Log: n.log, Dial: dial,
		Handle: n.route, Up: n.onUp, Down: n.onDown,
	})
	if err := n.restoreRooms(ctx); err != nil {
		n.cancel()
		return nil, err
	}
	n.state(backends.Connecting, "") // before what may be ready at once
	n.wg.Go(func() { n.comp.Run(n.ctx) })
	n.wg.Go(n.sweep)
	return n, nil
}

// storedKey returns the key of this network, made when it is first opened.
func storedKey(ctx context.Context, store backends.Store) ([]byte, error) {
	key, err := store.Get(ctx, "key")
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if len(key) == 32 {
		return key, nil
	}
	key = make([]byte, 32)
	rand.Read(key)
	if err := store.Put(ctx, "key", key); err != nil {
		return nil, fmt.Errorf("store key: %w", err)
	}
	return key, nil
}

func (n *network) state(phase backends.NetworkPhase, reason string) {
	n.deliver(n.ctx, &backends.Event{Body: &backends.NetworkState{Phase: phase, Reason: reason}}, nil)
}

// deliver hands an event to the host.
func (n *network) deliver(ctx context.Context, ev *backends.Event, done func(backends.Receipt)) {
	if err := n.host.Deliver(ctx, ev, done); err != nil && ctx.Err() == nil {
		n.log.Warn("host did not take an event", "chat", ev.Chat.Chat, "err", err)
	}
}

// onUp runs in the read loop, before the first stanza.
func (n *network) onUp(context.Context) {
	n.mu.Lock()
	n.up, n.failed = true, ""
	n.mu.Unlock()
	n.log.Info("connected to XMPP server", "server", n.cfg.Server)
	n.in.Do(n.ctx, "state", func() { n.state(backends.Ready, "") })
	n.pingOccupants()
}

// onDown runs when the connection has ended or could not be made.
func (n *network) onDown(err error) {
	phase := backends.Disconnected
	if errors.Is(err, stream.ErrRefused) {
		phase = backends.Failed
	}
	n.mu.Lock()
	n.up = false
	news := n.failed != err.Error()
	n.failed = err.Error()
	n.mu.Unlock()
	n.settle()
	if !news {
		return
	}
	n.log.Warn("no connection to XMPP server", "server", n.cfg.Server, "err", err)
	n.in.Do(n.ctx, "state", func() { n.state(phase, err.Error()) })
}

// settle answers what waits for the network.
func (n *network) settle() {
	for _, m := range n.allMUCs() {
		m.lost(nil)
	}
}

// route passes a stanza to its lane. It runs in the read loop.
func (n *network) route(ctx context.Context, e *xep.Element) {
	from, to, err := xep.Addresses(e)
	if err != nil || to.Domainpart() != n.domain.Domainpart() {
		n.log.Debug("stanza is not for us", "to", e.Attr("to"))
		return
	}
	if n.bounced(ctx, e, from) {
		return
	}
	if m := n.muc(from.Bare().String()); m != nil {
		if e.Attr("type") == "groupchat" && !to.Equal(n.bot) {
			return // the bot has the same
		}
		n.in.Do(ctx, m.lane(), func() { m.handle(n.ctx, e, from, to) })
		return
	}
	key, handle := "user:"+from.Bare().String(), n.handleDirect
	switch {
	case n.forRoom(e, from, to):
		_, canonical, ok := n.roomAt(to)
		if !ok {
			n.in.Do(ctx, key, func() { n.refuse(n.ctx, e, notFound) })
			return
		}
		key, handle = "room:"+canonical.String(), n.handleRoom
	case e.Name.Local == "iq":
		key, handle = "iq:"+from.Bare().String(), n.handleIQ
	}
	n.in.Do(ctx, key, func() { handle(n.ctx, e, from, to) })
}

func (n *network) muc(bare string) *muc {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mucs[bare]
}

// send writes a stanza. Without a connection it is dropped: what must arrive is
// confirmed in other ways.
func (n *network) send(ctx context.Context, e *xep.Element) error {
	err := n.comp.Send(ctx, e)
	if err != nil && !errors.Is(err, stream.ErrAway) && ctx.Err() == nil {
		n.log.Warn("cannot send stanza", "to", e.Attr("to"), "err", err)
	}
	return err
}

func (n *network) isUp() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.up
}

// Send implements backends.Network.
func (n *network) Send(ctx context.Context, cmd *backends.Command, reply func(backends.Result)) error {
	if !n.take() {
		return errors.New("the network is closed")
	}
	answer := reply
	reply = func(r backends.Result) { answer(r); n.taken.Done() }
	chat, err := n.peerAddress(cmd.Chat.Chat)
	if err != nil {
		reply(rejected("no message can be sent to %s: %s", cmd.Chat.Chat, err))
		return nil
	}
	run := n.sendMUC
	switch {
	case chat.Domainpart() == n.domain.Domainpart():
		run = n.sendRoom
	case cmd.Chat.Account != "":
		run = n.sendDirect
	}
	err = n.out.Do(ctx, string(cmd.Chat.Chat)+" "+string(cmd.Chat.Account), func() { run(n.ctx, chat, cmd, reply) })
	if err != nil {
		n.taken.Done()
	}
	return err
}

// take counts a command in; it fails once the network is being closed.
func (n *network) take() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closing {
		return false
	}
	n.taken.Add(1)
	return true
}

func rejected(format string, args ...any) backends.Result {
	return backends.Result{Outcome: backends.Rejected, Reason: fmt.Sprintf(format, args...)}
}

func later(reason string) backends.Result {
	return backends.Result{Outcome: backends.Retry, After: retryAfter, Reason: reason}
}

var unsupported = backends.Result{Outcome: backends.Unsupported, Reason: "XMPP has no form for this"}

// Join implements backends.Network.
func (n *network) Join(ctx context.Context, req backends.JoinRequest) (*backends.ChatInfo, error) {
	if _, ok := splitOccupant(string(req.Chat.Chat)); ok && req.Chat.Account != "" {
		return &backends.ChatInfo{Chat: req.Chat, Direct: true}, nil
	}
	chat, err := jid.Parse(string(req.Chat.Chat))
	if err != nil {
		return nil, &backends.Refusal{Code: backends.RefusedInvalid, Message: fmt.Sprintf("%q is not an XMPP address", req.Chat.Chat)}
	}
	switch {
	case chat.Domainpart() == n.domain.Domainpart():
		return &backends.ChatInfo{Chat: req.Chat}, nil // rooms of the gateway are the host's
	case req.Chat.Account != "":
		return &backends.ChatInfo{Chat: req.Chat, Direct: true, Peer: new(peerOf(chat, ""))}, nil
	}
	return n.joinMUC(ctx, chat.Bare(), req.Resume)
}

// Leave implements backends.Network.
func (n *network) Leave(ctx context.Context, chat backends.ChatKey) error {
	n.mu.Lock()
	m := n.mucs[string(chat.Chat)]
	n.mu.Unlock()
	if m == nil || chat.Account != "" {
		return nil
	}
	m.leave(ctx)
	n.mu.Lock()
	delete(n.mucs, string(chat.Chat))
	n.mu.Unlock()
	return nil
}

// Close implements backends.Network. Commands in hand are finished or answered
// with Retry.
func (n *network) Close(ctx context.Context) error {
	n.mu.Lock()
	n.closing = true
	n.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.taken.Wait()
		n.cancel()
		n.mu.Lock()
		n.stopped = true
		n.mu.Unlock()
		n.wg.Wait()
		n.in.Close()
		n.out.Close()
		n.enters.Close()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		n.cancel()
		n.settle()
		<-done
	}
	n.storeIDs(context.WithoutCancel(ctx))
	return ctx.Err()
}

// spawn runs f in a goroutine that Close waits for, unless it waits already.
func (n *network) spawn(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.stopped {
		n.wg.Go(f)
	}
}

// sweep does what is due now and then.
func (n *network) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for round := 1; ; round++ {
		select {
		case <-n.ctx.Done():
			return
		case now := <-tick.C:
			n.storeIDs(n.ctx)
			n.expireDirect(now)
			for _, m := range n.allMUCs() {
				m.expire(now)
			}
			if round%36 == 0 { // three minutes
				n.selfPing()
				n.pingOccupants()
			}
		}
	}
}

func (n *network) allMUCs() []*muc {
	n.mu.Lock()
	defer n.mu.Unlock()
	var list []*muc
	for _, m := range n.mucs {
		list = append(list, m)
	}
	return list
}

// maybeSent reports whether an earlier attempt at a command may have arrived.
func (n *network) maybeSent(cmd *backends.Command) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return cmd.MaybeSent || n.maybe[cmd.ID]
}

// setMaybe remembers that a command was sent and not confirmed, or that this was
// settled.
func (n *network) setMaybe(id string, maybe bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if maybe {
		n.maybe[id] = true
	} else {
		delete(n.maybe, id)
	}
}

// ghost returns the bare address of a user of the host.
func (n *network) ghost(ctx context.Context, u backends.User) (jid.JID, error) {
	local := ghostLocal(u)
	j, err := jid.New(local, n.domain.Domainpart(), "")
	if err != nil {
		return j, fmt.Errorf("address of %s: %w", u.Account, err)
	}
	n.mu.Lock()
	was, ok := n.accounts[j.Localpart()]
	n.accounts[j.Localpart()] = u
	n.mu.Unlock()
	if !ok || was.Account != u.Account {
		if err := n.host.Store().Put(ctx, "account/"+j.Localpart(), encodeUser(u)); err != nil {
			n.log.Warn("cannot store address", "account", u.Account, "err", err)
		}
	}
	return j, nil
}

// account returns the user of the host who has an address of ours.
func (n *network) account(ctx context.Context, local string) (backends.User, bool) {
	n.mu.Lock()
	u, ok := n.accounts[local]
	n.mu.Unlock()
	if ok {
		return u, true
	}
	if b, err := n.host.Store().Get(ctx, "account/"+local); err == nil && b != nil {
		if u, ok := decodeUser(b); ok {
			return u, true
		}
	}
	name, domain, ok := splitGhost(local)
	if !ok || n.host.Rooms() == nil {
		return backends.User{}, false
	}
	found, err := n.host.Rooms().Whois(ctx, name, domain)
	if err != nil || found.Account == "" {
		return backends.User{}, false
	}
	return *found, true
}

// peerOf is a remote user by their real address.
func peerOf(j jid.JID, nick string) backends.User {
	u := backends.User{ID: backends.UserID(j.Bare().String()), Name: nick, Username: unescapeLocal(j.Localpart()), Domain: j.Domainpart()}
	if u.Username == "" {
		u.Username = j.Domainpart()
	}
	return u
}

// refusalOf turns an answer into the network's "no" if it is one.
func refusalOf(err error) error {
	e, ok := errors.AsType[*xep.Error](err)
	if !ok {
		return err
	}
	code, ok := refusals[string(e.Condition)]
	if !ok {
		code = backends.RefusedUnavailable
	}
	return &backends.Refusal{Code: code, Message: errorText(e)}
}

// errorText is what a stanza error says, for people.
func errorText(e *xep.Error) string {
	condition := strings.ReplaceAll(string(e.Condition), "-", " ")
	if e.Text == "" {
		return condition
	}
	return e.Text + " (" + condition + ")"
}

var refusals = map[string]backends.RefusalCode{
	"forbidden": backends.RefusedBanned, "registration-required": backends.RefusedInviteOnly, "item-not-found": backends.RefusedNotFound,
	"service-unavailable": backends.RefusedFull, "not-authorized": backends.RefusedPassword, "conflict": backends.RefusedConflict,
	"not-allowed": backends.RefusedForbidden, "not-acceptable": backends.RefusedForbidden, "jid-malformed": backends.RefusedInvalid,
	"policy-violation": backends.RefusedForbidden, "remote-server-not-found": backends.RefusedNotFound,
}
