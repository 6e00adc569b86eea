package plugins

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/plugins/wire"
)

// server serves a backend, and its network once it is open.
type server struct {
	wire.UnimplementedBackendServer
	backend backends.Backend
	log     *slog.Logger
	dial    func(broker uint32) (*grpc.ClientConn, error)

	ctx       context.Context // ends when the network is closed
	cancel    context.CancelFunc
	events    *wire.Outbox[*wire.Event, backends.Receipt]
	results   *wire.Queue[*wire.Result]
	hand      inHand
	taken     chan struct{} // closed when Commands has ended and all of them were taken
	takenOnce sync.Once

	mu      sync.Mutex
	opening bool             // guarded by mu
	network backends.Network // guarded by mu
	closing chan struct{}    // closed when closeErr is known; nil before the first close; guarded by mu
	// closeErr is what the network said. Readable after closing is closed.
	closeErr error
}

func newServer(b backends.Backend, log *slog.Logger) *server {
	ctx, cancel := context.WithCancel(context.Background())
	return &server{
		backend: b,
		log:     log,
		ctx:     ctx,
		cancel:  cancel,
		events:  wire.NewOutbox[*wire.Event, backends.Receipt](),
		results: wire.NewQueue[*wire.Result](),
		hand:    inHand{zero: make(chan struct{})},
		taken:   make(chan struct{}),
	}
}

// Describe implements wire.BackendServer.
func (s *server) Describe(context.Context, *wire.DescribeRequest) (*wire.Info, error) {
	return wire.PackInfo(s.backend.Describe()), nil
}

// Ping implements wire.BackendServer.
func (s *server) Ping(context.Context, *wire.PingRequest) (*wire.PingReply, error) {
	return &wire.PingReply{}, nil
}

// Open implements wire.BackendServer.
func (s *server) Open(ctx context.Context, req *wire.OpenRequest) (*wire.OpenReply, error) {
	s.mu.Lock()
	again := s.opening
	s.opening = true
	s.mu.Unlock()
	if again {
		return nil, status.Error(codes.AlreadyExists, "this process has a network already")
	}
	conn, err := s.dial(req.GetHost())
	if err != nil {
		return nil, wire.Status(fmt.Errorf("connect to the host: %w", err))
	}
	h := &host{
		server: s, rpc: wire.NewHostClient(conn), log: s.log,
		gateway: s.backend.Describe().Capabilities.Gateway,
	}
	network, err := s.backend.Open(ctx, req.GetConfig(), h)
	if err != nil {
		return nil, wire.Status(err)
	}
	s.mu.Lock()
	s.network = network
	s.mu.Unlock()
	_, resolver := network.(backends.Resolver)
	_, directory := network.(backends.Directory)
	return &wire.OpenReply{Resolver: resolver, Directory: directory}, nil
}

func (s *server) current() (backends.Network, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.network == nil || s.closing != nil {
		return nil, status.Error(codes.FailedPrecondition, "the network is not open")
	}
	return s.network, nil
}

// Commands implements wire.BackendServer.
func (s *server) Commands(stream grpc.BidiStreamingServer[wire.CommandBatch, wire.ResultBatch]) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	go func() { // ends at the latest when the stream does, just after this method
		if err := s.receiveCommands(stream); err != nil {
			cancel(err)
		}
	}()
	for {
		batch, err := s.results.Take(ctx)
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = stream.Send(&wire.ResultBatch{Results: batch})
		}
		if err != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
	}
}

// receiveCommands hands commands to the network until the host has no more, and
// waits until they are taken.
func (s *server) receiveCommands(stream grpc.BidiStreamingServer[wire.CommandBatch, wire.ResultBatch]) error {
	var lanes wire.Lanes
	defer s.takenOnce.Do(func() { close(s.taken) })
	defer lanes.Wait()
	for {
		batch, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		network, err := s.current()
		if err != nil {
			return err
		}
		for _, cmd := range batch.GetCommands() {
			s.hand.add(1)
			if err := lanes.Do(cmd.GetChat().Unpack(), func() { s.carryOut(network, cmd) }); err != nil {
				return err
			}
		}
	}
}

// carryOut gives one command to the network.
func (s *server) carryOut(network backends.Network, w *wire.Command) {
	cmd, err := w.Unpack()
	if errors.Is(err, wire.ErrUnknownBody) {
		s.answer(w.Seq, backends.Result{Outcome: backends.Unsupported, Reason: "the backend does not know this"})
		return
	}
	if err != nil {
		s.answer(w.Seq, backends.Result{Outcome: backends.Rejected, Reason: err.Error()})
		return
	}
	err = network.Send(s.ctx, cmd, func(r backends.Result) { s.answer(w.Seq, r) })
	if err != nil {
		s.answer(w.Seq, backends.Result{Outcome: backends.Retry, After: time.Second, Reason: err.Error()})
	}
}

func (s *server) answer(seq uint64, r backends.Result) {
	s.results.Put(wire.PackResult(seq, r))
	s.hand.add(-1)
}

// Events implements wire.BackendServer.
func (s *server) Events(stream grpc.BidiStreamingServer[wire.ReceiptBatch, wire.EventBatch]) error {
	go s.receiveReceipts(stream) // ends at the latest when the stream does, just after this method
	for {
		batch, err := s.events.Take(stream.Context())
		if err == io.EOF { // the receipts of the last events are still to come
			<-s.ctx.Done()
			return nil
		}
		if err == nil {
			err = stream.Send(&wire.EventBatch{Events: batch})
		}
		if err != nil {
			return err
		}
	}
}

func (s *server) receiveReceipts(stream grpc.BidiStreamingServer[wire.ReceiptBatch, wire.EventBatch]) {
	for {
		batch, err := stream.Recv()
		if err != nil {
			return
		}
		for _, r := range batch.GetReceipts() {
			if done := s.events.Answered(r.GetSeq()); done != nil {
				done(r.Unpack())
			}
		}
	}
}

// Join implements wire.BackendServer.
func (s *server) Join(ctx context.Context, req *wire.JoinRequest) (*wire.ChatInfo, error) {
	network, err := s.current()
	if err != nil {
		return nil, err
	}
	info, err := network.Join(ctx, req.Unpack())
	return packChat(info, err)
}

// packChat packs what a method of a network returned.
func packChat(info *backends.ChatInfo, err error) (*wire.ChatInfo, error) {
	if err != nil {
		return nil, wire.Status(err)
	}
	if info == nil {
		return nil, status.Error(codes.Internal, "the backend returned no chat")
	}
	return wire.PackChatInfo(info), nil
}

// Leave implements wire.BackendServer.
func (s *server) Leave(ctx context.Context, req *wire.LeaveRequest) (*wire.LeaveReply, error) {
	network, err := s.current()
	if err != nil {
		return nil, err
	}
	return &wire.LeaveReply{}, wire.Status(network.Leave(ctx, req.GetChat().Unpack()))
}

// ability returns the network if it is able to be a T.
func ability[T any](s *server) (T, error) {
	network, err := s.current()
	if err != nil {
		return *new(T), err
	}
	able, ok := network.(T)
	if !ok {
		return *new(T), status.Error(codes.Unimplemented, "the network cannot do this")
	}
	return able, nil
}

// ResolveChat implements wire.BackendServer.
func (s *server) ResolveChat(ctx context.Context, req *wire.ResolveRequest) (*wire.ChatInfo, error) {
	network, err := ability[backends.Resolver](s)
	if err != nil {
		return nil, err
	}
	return packChat(network.ResolveChat(ctx, req.GetQuery()))
}

// ResolveUser implements wire.BackendServer.
func (s *server) ResolveUser(ctx context.Context, req *wire.ResolveRequest) (*wire.User, error) {
	network, err := ability[backends.Resolver](s)
	if err != nil {
		return nil, err
	}
	user, err := network.ResolveUser(ctx, req.GetQuery())
	if err != nil {
		return nil, wire.Status(err)
	}
	if user == nil {
		return nil, status.Error(codes.Internal, "the backend returned no user")
	}
	return wire.PackUser(*user), nil
}

// ListChats implements wire.BackendServer.
func (s *server) ListChats(ctx context.Context, req *wire.ListRequest) (*wire.ChatList, error) {
	network, err := ability[backends.Directory](s)
	if err != nil {
		return nil, err
	}
	chats, err := network.ListChats(ctx, req.GetQuery(), int(req.GetLimit()))
	if err != nil {
		return nil, wire.Status(err)
	}
	list := &wire.ChatList{}
	size := 0
	for i := range chats {
		w := wire.PackChatInfo(&chats[i])
		if size += proto.Size(w) + 8; size > wire.MaxItem {
			break
		}
		list.Chats = append(list.Chats, w)
	}
	return list, nil
}

// Close implements wire.BackendServer.
func (s *server) Close(ctx context.Context, _ *wire.CloseRequest) (*wire.CloseReply, error) {
	select {
	case <-s.taken:
	case <-ctx.Done():
	}
	return &wire.CloseReply{}, wire.Status(s.close(ctx))
}

// close closes the network, once; a second call waits for the first. Within ctx
// it waits for the results of the commands that were taken and for the receipts
// of the events that were told.
func (s *server) close(ctx context.Context) error {
	s.mu.Lock()
	network, first := s.network, s.closing == nil
	if first {
		s.closing = make(chan struct{})
	}
	closing := s.closing
	s.mu.Unlock()
	if !first {
		select {
		case <-closing:
			return s.closeErr
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if network != nil {
		s.closeErr = errors.Join(network.Close(ctx), s.hand.wait(ctx))
	}
	s.results.Close()
	s.events.Finish()
	if err := s.events.Idle(ctx); err != nil {
		s.closeErr = errors.Join(s.closeErr, fmt.Errorf("events have no receipt: %w", err))
	}
	gone := backends.Receipt{Err: &backends.Refusal{Code: backends.RefusedUnavailable, Message: "the network is closed"}}
	s.events.Fail(gone, gone)
	s.cancel()
	close(closing)
	return s.closeErr
}

// inHand counts commands that have no result.
type inHand struct {
	mu   sync.Mutex
	n    int           // guarded by mu
	zero chan struct{} // closed and replaced when n becomes 0; guarded by mu
}

func (h *inHand) add(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.n += n; h.n == 0 {
		close(h.zero)
		h.zero = make(chan struct{})
	}
}

// wait returns when there are none, or an error when ctx ends.
func (h *inHand) wait(ctx context.Context) error {
	h.mu.Lock()
	n, zero := h.n, h.zero
	h.mu.Unlock()
	if n == 0 {
		return nil
	}
	select {
	case <-zero:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d commands have no result: %w", n, ctx.Err())
	}
}
