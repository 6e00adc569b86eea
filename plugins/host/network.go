package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/plugins/wire"
)

// retryAfter is what commands are told when their process has just died.
const retryAfter = time.Second

// network is a backends.Network that outlives its processes.
type network struct {
	plugin *Plugin
	config json.RawMessage
	host   backends.Host
	log    *slog.Logger
	ctx    context.Context // ends when closing has taken too long, or is over
	cancel context.CancelFunc

	closing chan struct{} // closed by the first Close
	done    chan struct{} // closed when no process runs and none will

	mu      sync.Mutex
	session *session       // nil while there is no process; guarded by mu
	retry   time.Time      // of the next start, while there is none; guarded by mu
	closed  bool           // guarded by mu
	replies sync.WaitGroup // to commands that no process has seen; Add guarded by mu
}

func newNetwork(p *Plugin, config json.RawMessage, host backends.Host) *network {
	ctx, cancel := context.WithCancel(context.Background())
	return &network{
		plugin: p, config: config, host: host, log: p.log, ctx: ctx, cancel: cancel,
		closing: make(chan struct{}), done: make(chan struct{}),
	}
}

// begin makes a session in a process.
func (n *network) begin(p *process) *session {
	return newSession(n.ctx, p, n.host, n.plugin.options.Timeouts, n.log)
}

// run watches over the network from now on.
func (n *network) run(s *session) {
	n.session = s
	go n.supervise(s) // until Close, which waits for it
}

// supervise waits for the death of the process and starts another, until Close.
func (n *network) supervise(s *session) {
	defer close(n.done)
	crashes := crashes{policy: n.plugin.options.Restarts}
	for started := time.Now(); s != nil; started = time.Now() {
		<-s.done
		delay := crashes.next(time.Now(), time.Since(started))
		if !n.down(delay) {
			return
		}
		n.log.Warn("plugin process ended", "err", s.err, "restart_in", delay, "breaker_open", crashes.open)
		n.tell(backends.Disconnected, fmt.Sprintf("the backend's process ended: %v", s.err))
		s = n.restart(&crashes, delay, s.err)
	}
}

// restart starts processes until one has the network open, or until Close: then
// it returns nil.
func (n *network) restart(crashes *crashes, delay time.Duration, why error) *session {
	for told := false; ; {
		if crashes.open && !told {
			n.tell(backends.Failed, fmt.Sprintf("the backend's process has ended too often; the last time: %v", why))
			told = true
		}
		if !n.wait(delay) {
			return nil
		}
		s, err := n.reopen()
		if err == nil {
			return s
		}
		delay, why = crashes.next(time.Now(), 0), err
		if !n.down(delay) {
			return nil
		}
		n.log.Warn("plugin process did not restart", "err", err, "restart_in", delay, "breaker_open", crashes.open)
	}
}

// wait returns false if Close comes first.
func (n *network) wait(delay time.Duration) bool {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-n.closing:
		return false
	}
}

// reopen starts a process and opens the network there, unless Close comes first.
func (n *network) reopen() (*session, error) {
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-n.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	defer func() { cancel(); <-watched }()
	p, err := start(ctx, &n.plugin.options, n.log)
	if err != nil {
		return nil, err
	}
	// It is current before it is open: when the backend says Ready, the host may
	// send and join at once.
	s := n.begin(p)
	if err := n.up(s); err != nil {
		return nil, err
	}
	return s, s.open(ctx, n.config)
}

// down notes that there is no process, and returns false if there is to be none.
func (n *network) down(delay time.Duration) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.session, n.retry = nil, time.Now().Add(delay)
	return !n.closed
}

// up makes s the current session. If Close came first it ends s.
func (n *network) up(s *session) error {
	n.mu.Lock()
	closed := n.closed
	if !closed {
		n.session = s
	}
	n.mu.Unlock()
	if !closed {
		return nil
	}
	s.fail(errClosed)
	<-s.done
	return ErrClosed
}

// tell delivers a NetworkState of our own.
func (n *network) tell(phase backends.NetworkPhase, reason string) {
	ev := &backends.Event{Time: time.Now(), Body: &backends.NetworkState{Phase: phase, Reason: reason}}
	if err := n.host.Deliver(n.ctx, ev, nil); err != nil && n.ctx.Err() == nil {
		n.log.Warn("host did not take a network state", "phase", phase, "err", err)
	}
}

// current returns ErrDown or ErrClosed if there is no process.
func (n *network) current() (*session, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.closed:
		return nil, ErrClosed
	case n.session == nil:
		return nil, ErrDown
	}
	return n.session, nil
}

// Send implements backends.Network. While there is no process the result is Retry.
func (n *network) Send(ctx context.Context, cmd *backends.Command, reply func(backends.Result)) error {
	s, err := n.current()
	if err == nil {
		w := wire.PackCommand(cmd)
		err = s.commands.Put(ctx, cmd.Chat, w, proto.Size(w), reply)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, wire.ErrTooLarge):
		return n.reply(reply, backends.Result{Outcome: backends.Rejected, Reason: wire.ErrTooLarge.Message})
	case errors.Is(err, wire.ErrClosed), errors.Is(err, ErrDown):
		return n.reply(reply, backends.Result{Outcome: backends.Retry, After: n.untilRetry(), Reason: ErrDown.Error()})
	}
	return fmt.Errorf("send: %w", err)
}

// reply answers a command that no process has seen, not within the call of Send.
func (n *network) reply(reply func(backends.Result), r backends.Result) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return fmt.Errorf("send: %w", ErrClosed)
	}
	n.replies.Go(func() { reply(r) })
	return nil
}

func (n *network) untilRetry() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return max(retryAfter, time.Until(n.retry))
}

// call makes one call to the process, bounded in time.
func call[T any](ctx context.Context, n *network, what string, f func(context.Context, wire.BackendClient) (T, error)) (T, error) {
	s, err := n.current()
	if err != nil {
		return *new(T), fmt.Errorf("%s: %w", what, err)
	}
	ctx, cancel := context.WithTimeout(ctx, n.plugin.options.Timeouts.Call)
	defer cancel()
	if err := s.waitOpen(ctx); err != nil {
		return *new(T), fmt.Errorf("%s: %w", what, err)
	}
	reply, err := f(ctx, s.process.rpc)
	if err != nil {
		return *new(T), wrap(what, s.cause(err))
	}
	return reply, nil
}

// wrap says what was tried, but leaves a refusal as it is.
func wrap(what string, err error) error {
	if r, ok := errors.AsType[*backends.Refusal](err); ok {
		return r
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Join implements backends.Network.
func (n *network) Join(ctx context.Context, req backends.JoinRequest) (*backends.ChatInfo, error) {
	w, err := call(ctx, n, "join", func(ctx context.Context, rpc wire.BackendClient) (*wire.ChatInfo, error) {
		return rpc.Join(ctx, wire.PackJoin(req))
	})
	if err != nil {
		return nil, err
	}
	return w.Unpack()
}

// Leave implements backends.Network.
func (n *network) Leave(ctx context.Context, chat backends.ChatKey) error {
	_, err := call(ctx, n, "leave", func(ctx context.Context, rpc wire.BackendClient) (*wire.LeaveReply, error) {
		return rpc.Leave(ctx, &wire.LeaveRequest{Chat: wire.PackChatKey(chat)})
	})
	return err
}

// Close implements backends.Network. It returns when the process is dead; then
// every command has its result.
func (n *network) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, n.plugin.options.Timeouts.Close)
	defer cancel()
	defer context.AfterFunc(ctx, n.cancel)()
	n.mu.Lock()
	first, s := !n.closed, n.session
	n.closed = true
	n.mu.Unlock()
	if !first {
		<-n.done
		return nil
	}
	close(n.closing)
	var err error
	if s != nil {
		err = s.close(ctx)
	}
	<-n.done
	n.replies.Wait()
	n.cancel()
	n.plugin.mu.Lock()
	delete(n.plugin.networks, n)
	n.plugin.mu.Unlock()
	return err
}

// resolver and directory are what a network may be able to do besides.
type (
	resolver  struct{ n *network }
	directory struct{ n *network }
)

// withAbilities returns n with the methods that the backend's network has.
func withAbilities(n *network, a *wire.OpenReply) backends.Network {
	r, d := resolver{n}, directory{n}
	switch {
	case a.GetResolver() && a.GetDirectory():
		return struct {
			*network
			resolver
			directory
		}{n, r, d}
	case a.GetResolver():
		return struct {
			*network
			resolver
		}{n, r}
	case a.GetDirectory():
		return struct {
			*network
			directory
		}{n, d}
	}
	return n
}

// ResolveChat implements backends.Resolver.
func (r resolver) ResolveChat(ctx context.Context, query string) (*backends.ChatInfo, error) {
	w, err := call(ctx, r.n, "resolve chat", func(ctx context.Context, rpc wire.BackendClient) (*wire.ChatInfo, error) {
		return rpc.ResolveChat(ctx, &wire.ResolveRequest{Query: query})
	})
	if err != nil {
		return nil, err
	}
	return w.Unpack()
}

// ResolveUser implements backends.Resolver.
func (r resolver) ResolveUser(ctx context.Context, query string) (*backends.User, error) {
	w, err := call(ctx, r.n, "resolve user", func(ctx context.Context, rpc wire.BackendClient) (*wire.User, error) {
		return rpc.ResolveUser(ctx, &wire.ResolveRequest{Query: query})
	})
	if err != nil {
		return nil, err
	}
	return new(w.Unpack()), nil
}

// ListChats implements backends.Directory.
func (d directory) ListChats(ctx context.Context, query string, limit int) ([]backends.ChatInfo, error) {
	list, err := call(ctx, d.n, "list chats", func(ctx context.Context, rpc wire.BackendClient) (*wire.ChatList, error) {
		return rpc.ListChats(ctx, &wire.ListRequest{Query: query, Limit: int64(limit)})
	})
	if err != nil {
		return nil, err
	}
	var chats []backends.ChatInfo
	for _, w := range list.GetChats() {
		c, err := w.Unpack()
		if err != nil {
			return nil, fmt.Errorf("list chats: %w", err)
		}
		chats = append(chats, *c)
	}
	return chats, nil
}
