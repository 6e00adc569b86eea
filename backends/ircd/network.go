package ircd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/gjallar-im/gjallar/backends"
)

// network is a listener and its clients. It implements [backends.Network].
type network struct {
	cfg     config
	host    backends.Host
	rooms   backends.Rooms
	log     *slog.Logger
	l       net.Listener
	guests  bool
	created time.Time
	ctx     context.Context // ends when Close gives up waiting
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	swept   chan struct{} // closed when leftovers of the last run are gone

	mu        sync.Mutex // never held over I/O or calls of the host
	closing   bool
	sessions  map[*session]bool
	tokens    map[string]*session
	addresses map[netip.Addr]int
	people    people
	channels  map[backends.ChatID]*channel
	exits     map[string]chan struct{} // exits that go on by themselves; closed when done
	most      int                      // sessions at once, ever
}

func newNetwork(cfg config, host backends.Host, l net.Listener) *network {
	n := &network{
		cfg: cfg, host: host, rooms: host.Rooms(), log: host.Log(), l: l, created: time.Now(),
		guests: cfg.guestsOn(l.Addr()), swept: make(chan struct{}),
		sessions:  map[*session]bool{},
		tokens:    map[string]*session{},
		addresses: map[netip.Addr]int{},
		people:    newPeople(cfg.ServerName),
		channels:  map[backends.ChatID]*channel{},
		exits:     map[string]chan struct{}{},
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n
}

// start begins accepting, and tells the host.
func (n *network) start() {
	n.wg.Go(n.sweep)
	n.wg.Go(n.announce)
	n.wg.Go(n.accept)
}

func (n *network) announce() {
	reason := "listening on " + n.l.Addr().String()
	n.log.Info("irc listener started", "address", n.l.Addr().String())
	err := n.host.Deliver(n.ctx, &backends.Event{Body: &backends.NetworkState{Phase: backends.Ready, Reason: reason}}, nil)
	if err != nil && n.ctx.Err() == nil {
		n.log.Error("irc listener could not be announced", "err", err)
	}
}

// accept takes connections until the listener is closed.
func (n *network) accept() {
	delay := time.Duration(0)
	for {
		conn, err := n.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of file descriptors, say
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			n.log.Warn("irc connection not accepted", "err", err)
			select {
			case <-time.After(delay):
			case <-n.ctx.Done():
				return
			}
			continue
		}
		delay = 0
		n.serve(conn)
	}
}

// admit counts a session in, or says why not.
func (n *network) admit(s *session) (reason string) {
	block := addressBlock(s.addr)
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.closing:
		return "The server is shutting down"
	case len(n.sessions) >= n.cfg.Limits.Clients:
		return "Too many connections"
	case n.cfg.Limits.PerIP > 0 && !s.addr.IsLoopback() && n.addresses[block] >= n.cfg.Limits.PerIP:
		return "Too many connections from your address"
	}
	n.sessions[s] = true
	n.tokens[s.token] = s
	n.addresses[block]++
	n.most = max(n.most, len(n.sessions))
	return ""
}

// addressBlock is what is counted as one address: /64 of IPv6.
func addressBlock(a netip.Addr) netip.Addr {
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// ending remembers why a session ends; the first reason counts. It needs no lock
// of n's, since callers may hold it.
func (n *network) ending(s *session, reason string) { s.reason.CompareAndSwap(nil, &reason) }

// depart takes an ended session out of everything. Guests leave their rooms;
// accounts do not (see the package's comment).
func (n *network) depart(s *session) {
	n.ending(s, "Connection closed")
	reason := *s.reason.Load()
	if s.ready.Load() {
		n.log.Info("irc client disconnected", "nick", s.nick, "reason", reason)
	}
	left := n.unseat(s, reason)
	for _, a := range left {
		n.exit(a, reason)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.sessions, s)
	delete(n.tokens, s.token)
	block := addressBlock(s.addr)
	if n.addresses[block]--; n.addresses[block] <= 0 {
		delete(n.addresses, block)
	}
}

// unseat removes a session from its channels and its person, shows a guest's QUIT,
// and returns which rooms the host must take the guest out of.
func (n *network) unseat(s *session, reason string) []*attendance {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := s.person
	var left []*attendance
	for _, a := range s.joined {
		delete(a.channel.sessions, s)
		if p.guest() {
			left = append(left, a)
		}
	}
	if p == nil {
		return nil
	}
	p.sessions = remove(p.sessions, s)
	if p.guest() {
		n.showQuit(p, reason)
	}
	for _, a := range s.joined {
		n.drop(a.channel)
	}
	clear(s.joined)
	n.people.forget(p)
	return left
}

// exit takes a user out of a room of the host.
func (n *network) exit(a *attendance, reason string) {
	ctx, cancel := context.WithTimeout(n.ctx, hostTimeout)
	defer cancel()
	err := n.rooms.Exit(ctx, a.channel.chat, a.user, reason)
	if _, refused := errors.AsType[*backends.Refusal](err); err != nil && !refused {
		n.log.Warn("irc user could not leave a room", "chat", a.channel.chat, "err", err)
		return
	}
	n.unrecord(ctx, a) // if the host refuses, there is nobody to take out
}

// exitLater is exit for callers that hold n.mu and may not wait: the room has thrown
// someone out, and the host is to know that they are not here any more. Until it
// does they cannot come back.
func (n *network) exitLater(a *attendance) {
	key := a.exitKey()
	if n.closing || n.exits[key] != nil {
		return
	}
	done := make(chan struct{})
	n.exits[key] = done
	n.wg.Go(func() {
		n.exit(a, "")
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.exits, key)
		close(done)
	})
}

func (a *attendance) exitKey() string {
	return string(a.channel.chat) + " " + string(keyOf(a.user))
}

// Guests in rooms are recorded, so that after a crash the next run can take them
// out. Keys are "guest " + chat + " " + ID; neither part has spaces.
const recordPrefix = "guest "

func (a *attendance) record() string {
	return recordPrefix + string(a.channel.chat) + " " + string(a.user.ID)
}

func (n *network) note(ctx context.Context, a *attendance) {
	if a.user.ID == "" {
		return
	}
	if err := n.host.Store().Put(ctx, a.record(), []byte{}); err != nil {
		n.log.Warn("irc guest could not be recorded", "err", err)
	}
}

func (n *network) unrecord(ctx context.Context, a *attendance) {
	if a.user.ID == "" {
		return
	}
	if err := n.host.Store().Delete(ctx, a.record()); err != nil {
		n.log.Warn("irc guest could not be struck off", "err", err)
	}
}

// sweep takes the guests of the last run out of their rooms, if it did not end
// properly. Nobody joins before.
func (n *network) sweep() {
	defer close(n.swept) // after the waiting below
	ctx, cancel := context.WithTimeout(n.ctx, hostTimeout)
	defer cancel()
	records, err := n.host.Store().Scan(ctx, recordPrefix)
	if err != nil {
		n.log.Warn("irc guests of the last run could not be read", "err", err)
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	turns := make(chan struct{}, sweepAtOnce)
	for record := range records {
		chat, id, _ := strings.Cut(strings.TrimPrefix(record, recordPrefix), " ")
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			a := &attendance{channel: &channel{chat: backends.ChatID(chat)}, user: backends.User{ID: backends.UserID(id)}}
			n.exit(a, "The server was restarted")
		})
	}
}

// sweepAtOnce is how many leave at a time.
const sweepAtOnce = 8

var errClosed = errors.New("the IRC listener is closed")

// Send shows what happened to those clients that are in the chat's channel. It
// never waits for one of them; a chat without clients is Delivered too.
func (n *network) Send(_ context.Context, cmd *backends.Command, reply func(backends.Result)) error {
	n.mu.Lock()
	if n.closing {
		n.mu.Unlock()
		return errClosed
	}
	result := n.show(cmd)
	n.mu.Unlock()
	reply(result)
	return nil
}

// Join implements backends.Network. There is nothing to do: clients join.
func (n *network) Join(_ context.Context, req backends.JoinRequest) (*backends.ChatInfo, error) {
	info := &backends.ChatInfo{Chat: req.Chat}
	n.mu.Lock()
	defer n.mu.Unlock()
	if ch := n.channels[req.Chat.Chat]; ch != nil {
		info.Members = len(ch.members)
	}
	return info, nil
}

// Leave takes the clients out of the channel of a chat that is no more.
func (n *network) Leave(_ context.Context, chat backends.ChatKey) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ch := n.channels[chat.Chat]; ch != nil {
		n.dissolve(ch)
	}
	return nil
}

// Close ends the connections with a word of farewell, takes the guests out of
// their rooms, and waits for all that until ctx ends.
func (n *network) Close(ctx context.Context) error {
	n.mu.Lock()
	n.closing = true
	for s := range n.sessions {
		s.end("The server is shutting down")
		if !s.ready.Load() { // perhaps still in the handshake of TLS
			s.cancel()
		}
	}
	n.mu.Unlock()
	n.l.Close()
	done := make(chan struct{})
	go func() { // ends with wg, which n.cancel below hurries
		n.wg.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	n.cancel()
	<-done
	return err
}

func remove[T comparable](list []T, x T) []T {
	for i, y := range list {
		if x == y {
			list[i] = list[len(list)-1]
			var zero T
			list[len(list)-1] = zero
			return list[:len(list)-1]
		}
	}
	return list
}
