package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/plugins/wire"
)

// session is a network in the life of one process.
type session struct {
	process  *process
	timeouts Timeouts
	host     backends.Host
	log      *slog.Logger
	ability  *wire.OpenReply

	commands *wire.Outbox[*wire.Command, backends.Result]
	receipts *wire.Queue[*wire.Receipt]
	deliver  context.Context // of the calls of host.Deliver: what was received is delivered, even if the process dies

	streams context.Context
	fail    context.CancelCauseFunc // ends streams, for a reason
	wg      sync.WaitGroup          // what works on the streams
	lanes   wire.Lanes
	opened  chan struct{} // closed when the network is open
	read    chan struct{} // closed when nothing more comes on the streams
	drained chan struct{} // closed when both streams have ended in order and all events are delivered
	done    chan struct{} // closed when the process is dead and everything is answered
	err     error         // why; readable after done is closed
}

// newSession makes a session in a process, which belongs to it from now on. It
// takes commands, and gives them to the process once open has succeeded.
func newSession(deliver context.Context, p *process, host backends.Host, t Timeouts, log *slog.Logger) *session {
	s := &session{
		process: p, timeouts: t, host: host, log: log,
		commands: wire.NewOutbox[*wire.Command, backends.Result](),
		receipts: wire.NewQueue[*wire.Receipt](),
		deliver:  deliver,
		opened:   make(chan struct{}),
		read:     make(chan struct{}),
		drained:  make(chan struct{}),
		done:     make(chan struct{}),
	}
	s.streams, s.fail = context.WithCancelCause(context.Background())
	if err := s.begin(); err != nil {
		s.fail(err)
	}
	go s.supervise() // ends with the process; done says so
	return s
}

// open opens the network. After an error the process is dead.
func (s *session) open(ctx context.Context, config json.RawMessage) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeouts.Open)
	defer cancel()
	id := s.process.serve(func(g *grpc.Server) { wire.RegisterHostServer(g, &services{host: s.host}) })
	reply, err := s.process.rpc.Open(ctx, &wire.OpenRequest{Config: config, Host: id})
	if err != nil {
		err = wrap("open network", s.cause(err))
		s.fail(err)
		<-s.done
		return err
	}
	s.ability = reply
	close(s.opened)
	return nil
}

// waitOpen returns nil when the network is open.
func (s *session) waitOpen(ctx context.Context) error {
	select {
	case <-s.opened:
		return nil
	case <-s.streams.Done():
		return ErrDown
	case <-ctx.Done():
		return ctx.Err()
	}
}

// begin starts the streams and those who work on them.
func (s *session) begin() error {
	commands, err := s.process.rpc.Commands(s.streams)
	if err != nil {
		return fmt.Errorf("open stream of commands: %w", err)
	}
	events, err := s.process.rpc.Events(s.streams)
	if err != nil {
		return fmt.Errorf("open stream of events: %w", err)
	}
	var readers sync.WaitGroup
	readers.Add(2)
	s.wg.Go(func() { s.sendCommands(commands) })
	s.wg.Go(func() { s.sendReceipts(events) })
	s.wg.Go(s.ping)
	s.wg.Go(func() { s.receive(readers.Done, func() error { return s.receiveResults(commands) }) })
	s.wg.Go(func() { s.receive(readers.Done, func() error { return s.receiveEvents(events) }) })
	go func() { // ends when the readers do
		readers.Wait()
		close(s.read)
		s.lanes.Wait()
		close(s.drained)
	}()
	return nil
}

// cause makes of an error of a call the best that is known of it.
func (s *session) cause(err error) error {
	if status.Code(err) == codes.Unavailable {
		return fmt.Errorf("%w: %v", ErrDown, err)
	}
	return wire.Error(err)
}

// supervise ends the session when the process dies or a stream ends.
func (s *session) supervise() {
	select {
	case <-s.process.dead():
		select { // what it said before counts
		case <-s.read:
		case <-time.After(lastWords):
		}
		s.fail(fmt.Errorf("process died: %w", cmpErr(s.process.child.err, errExited)))
	case <-s.streams.Done():
	}
	s.err = context.Cause(s.streams)
	if errors.Is(s.err, errClosed) {
		s.process.shutDown(s.timeouts.Exit)
	} else {
		s.process.kill()
	}
	s.wg.Wait()
	s.lanes.Wait()
	s.receipts.Close()
	s.commands.Fail(
		backends.Result{Outcome: backends.Interrupted, Reason: "the backend's process ended"},
		backends.Result{Outcome: backends.Retry, After: retryAfter, Reason: "the backend's process ended before it had this"},
	)
	close(s.done)
}

var (
	errExited = errors.New("exited")
	errClosed = errors.New("closed")
)

func cmpErr(err, or error) error {
	if err == nil {
		return or
	}
	return err
}

// lastWords is how long the end of a stream and the end of the process, which may
// be seen in either order, wait for each other.
const lastWords = time.Second

// receive runs one of the readers. A stream that ends before it should ends the
// session.
func (s *session) receive(finished func(), read func() error) {
	err := read()
	finished()
	if err == io.EOF && s.commands.Finished() {
		return
	}
	if err == io.EOF {
		err = errors.New("plugin ended a stream")
	}
	select {
	case <-s.process.dead(): // that is why; supervise says so
	case <-time.After(lastWords):
		s.fail(err)
	}
}

func (s *session) sendCommands(stream grpc.BidiStreamingClient[wire.CommandBatch, wire.ResultBatch]) {
	if s.waitOpen(s.streams) != nil {
		return
	}
	for {
		batch, err := s.commands.Take(s.streams)
		if err == io.EOF {
			_ = stream.CloseSend()
			return
		}
		if err == nil {
			err = stream.Send(&wire.CommandBatch{Commands: batch})
		}
		if err != nil { // the reader finds out why, and says so
			return
		}
	}
}

func (s *session) receiveResults(stream grpc.BidiStreamingClient[wire.CommandBatch, wire.ResultBatch]) error {
	type answer struct {
		reply  func(backends.Result)
		result backends.Result
	}
	var answers []answer
	for {
		batch, err := stream.Recv()
		if err != nil {
			return err
		}
		// All make room first: a reply may wait for a Send that waits for room.
		answers = answers[:0]
		for _, w := range batch.GetResults() {
			reply := s.commands.Answered(w.GetSeq())
			if reply == nil {
				s.log.Warn("plugin answered a command that it does not have", "seq", w.GetSeq())
				continue
			}
			r, err := w.Unpack()
			if err != nil {
				s.log.Warn("plugin gave an invalid result", "err", err)
				r = backends.Result{Outcome: backends.Uncertain, Reason: "the backend's answer is invalid"}
			}
			answers = append(answers, answer{reply, r})
		}
		for _, a := range answers {
			a.reply(a.result)
		}
	}
}

func (s *session) sendReceipts(stream grpc.BidiStreamingClient[wire.ReceiptBatch, wire.EventBatch]) {
	for {
		batch, err := s.receipts.Take(s.streams)
		if err == nil {
			err = stream.Send(&wire.ReceiptBatch{Receipts: batch})
		}
		if err != nil {
			return
		}
	}
}

func (s *session) receiveEvents(stream grpc.BidiStreamingClient[wire.ReceiptBatch, wire.EventBatch]) error {
	for {
		batch, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, w := range batch.GetEvents() {
			if err := s.lanes.Do(w.GetChat().Unpack(), func() { s.handOver(w) }); err != nil {
				return err
			}
		}
	}
}

// handOver gives one event to the host.
func (s *session) handOver(w *wire.Event) {
	receipt := func(r backends.Receipt) { s.receipts.Put(wire.PackReceipt(w.GetSeq(), r)) }
	ev, err := w.Unpack()
	if err != nil {
		s.log.Warn("plugin told an invalid event", "err", err)
		code := backends.RefusedInvalid
		if errors.Is(err, wire.ErrUnknownBody) {
			code = backends.RefusedUnsupported
		}
		receipt(refused(code, err.Error()))
		return
	}
	if err := s.host.Deliver(s.deliver, ev, receipt); err != nil {
		receipt(refused(backends.RefusedUnavailable, "the host did not take the event"))
	}
}

func refused(code backends.RefusalCode, message string) backends.Receipt {
	return backends.Receipt{Err: &backends.Refusal{Code: code, Message: message}}
}

// ping ends the session if the process is stuck.
func (s *session) ping() {
	ticker := time.NewTicker(s.timeouts.PingEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-s.streams.Done():
			return
		}
		ctx, cancel := context.WithTimeout(s.streams, s.timeouts.Ping)
		_, err := s.process.rpc.Ping(ctx, &wire.PingRequest{})
		cancel()
		if err != nil {
			s.fail(fmt.Errorf("process does not answer: %w", wire.Error(err)))
		}
	}
}

// close lets the network finish what it has, within ctx, and ends the process.
func (s *session) close(ctx context.Context) error {
	s.commands.Finish()
	select {
	case <-s.opened:
	default: // there is nothing to finish
		s.fail(errClosed)
		<-s.done
		return nil
	}
	calling, cancel := lessTime(ctx)
	defer cancel()
	_, err := s.process.rpc.Close(calling, &wire.CloseRequest{})
	select {
	case <-s.drained:
	case <-ctx.Done():
	case <-s.done:
	}
	if err != nil {
		err = fmt.Errorf("close network: %w", s.cause(err))
		s.fail(err)
	}
	s.fail(errClosed)
	<-s.done
	return err
}

// lessTime leaves a tenth of what is left to ctx for what follows a call.
func lessTime(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline.Add(-time.Until(deadline)/10))
}
