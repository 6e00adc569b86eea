package asapi

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

// Typing tells who types. It is asked for what has changed after a serial of
// [streams.Token].
type Typing interface {
	// Changed returns the rooms in which who types has changed.
	Changed(serial int64) []matrix.RoomID
	// Since returns who types in a room, and whether that has changed.
	Since(room matrix.RoomID, serial int64) (users []matrix.UserID, changed bool)
}

// Options of New.
type Options struct {
	Store    *store.Store
	Registry *Registry
	Hub      *streams.Hub
	// Transport answers for every URL a registration may name; nil is the network.
	Transport http.RoundTripper
	Typing    Typing // nil: nobody types
	Log       *slog.Logger
}

// Worker tells application services what happens and asks them what they know.
type Worker struct {
	Options
	client *Client

	// The wait before a transaction is sent again, doubled from the first to the last.
	firstDelay, lastDelay time.Duration

	mu        sync.Mutex
	followers map[string]*follower // guarded by mu: those that run, by the service's ID
}

// New makes a worker. Services that are added to the registry from now on start at
// the position that the stream has then, unless they were here before; nothing is
// sent until Run.
func New(o Options) *Worker {
	if o.Transport == nil {
		o.Transport = http.DefaultTransport
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	now := o.Hub.Now
	o.Registry.now.Store(&now)
	for _, s := range o.Registry.All() {
		if s.since == (streams.Token{}) {
			s.since = now()
		}
	}
	return &Worker{
		Options: o, client: NewClient(o.Transport), followers: map[string]*follower{},
		firstDelay: 100 * time.Millisecond, lastDelay: 30 * time.Second,
	}
}

// Run follows the stream for every service of the registry, as it is at each time,
// until ctx ends. What could not be delivered is delivered after the next start.
func (w *Worker) Run(ctx context.Context) error {
	running := map[*Service]*run{}
	for ctx.Err() == nil {
		set := w.Registry.set.Load()
		w.endOthers(ctx, running, set)
		for _, s := range set.ordered {
			if running[s] == nil && s.Registration.URL != "" {
				running[s] = w.start(ctx, s)
			}
		}
		select {
		case <-set.replaced:
		case <-ctx.Done():
		}
	}
	w.endOthers(ctx, running, w.Registry.set.Load())
	for _, r := range running {
		r.end()
	}
	return nil
}

// endOthers stops those who follow for services that are not in the set any more.
func (w *Worker) endOthers(ctx context.Context, running map[*Service]*run, set *set) {
	for s, r := range running {
		if set.byID[s.Registration.ID] == s {
			continue
		}
		r.end()
		delete(running, s)
		if set.byID[s.Registration.ID] == nil {
			w.forget(ctx, s)
		}
	}
}

// run is a follower's goroutine.
type run struct {
	stop context.CancelFunc
	wg   sync.WaitGroup
}

func (r *run) end() {
	r.stop()
	r.wg.Wait()
}

func (w *Worker) start(ctx context.Context, s *Service) *run {
	ctx, stop := context.WithCancel(ctx)
	r := &run{stop: stop}
	f := newFollower(w, s)
	w.mu.Lock()
	w.followers[s.Registration.ID] = f
	w.mu.Unlock()
	r.wg.Go(func() {
		f.run(ctx)
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.followers[s.Registration.ID] == f {
			delete(w.followers, s.Registration.ID)
		}
	})
	return r
}

// forget makes a service that was removed a new one if it is added again.
func (w *Worker) forget(ctx context.Context, s *Service) {
	ctx, cancel := lastWrite(ctx)
	defer cancel()
	err := w.Store.Write(ctx, func(tx *sqldb.Tx) error { return w.Store.ForgetService(tx, s.Registration.ID) })
	if err != nil {
		w.Log.Error("position of a removed application service stays", "service", s.Registration.ID, "err", err)
	}
}

// lastWrite is the context of a write that is to be made even when all stops, if
// that does not take long.
func lastWrite(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
}

// follower brings one service what it is interested in. Its fields belong to its
// goroutine, but poke.
type follower struct {
	w        *Worker
	s        *Service
	log      *slog.Logger
	interest *interest
	poke     chan struct{} // has an element when a wait is to be cut short

	pos    int64 // all up to here is in a transaction that was sent, or of no interest
	stored int64 // what the database has for pos
	typing int64
	acked  *store.ServiceTransaction // the last one, until stored has caught up
}

func newFollower(w *Worker, s *Service) *follower {
	return &follower{
		w: w, s: s, log: w.Log.With("service", s.Registration.ID), interest: newInterest(w.Store, s),
		poke: make(chan struct{}, 1), typing: s.since.Typing,
	}
}

const (
	idleSave = 250 * time.Millisecond // after which an idle follower stores its position
	settle   = 3 * time.Millisecond   // between two looks at what is of no interest
	saveGap  = 5000                   // positions of no interest after which a busy one does
)

// run delivers transactions until ctx ends. A failure of the database is waited out
// as one of the service is.
func (f *follower) run(ctx context.Context) {
	for delay := f.w.firstDelay; ctx.Err() == nil; delay = min(2*delay, f.w.lastDelay) {
		err := f.follow(ctx)
		if ctx.Err() != nil {
			break
		}
		f.log.Error("application service is not served for now", "err", err, "retry_after", delay)
		f.interest.reset()
		f.wait(ctx, jitter(delay))
	}
	if f.pos > f.stored {
		ctx, cancel := lastWrite(ctx)
		defer cancel()
		if err := f.save(ctx, nil); err != nil {
			f.log.Warn("position of application service is not stored", "err", err)
		}
	}
}

// follow returns with what went wrong.
func (f *follower) follow(ctx context.Context) error {
	pending, err := f.load(ctx)
	if err != nil {
		return err
	}
	if pending != nil {
		if err := f.resend(ctx, pending); err != nil {
			return err
		}
	}
	for {
		now := f.w.Hub.Now()
		b, err := f.collect(ctx, now)
		if err != nil {
			return err
		}
		switch {
		case !b.empty():
			err = f.handOver(ctx, b)
		case b.upto > f.pos:
			f.pos, f.typing = b.upto, b.typing
			if f.pos-f.stored > saveGap {
				err = f.save(ctx, nil)
			}
			if f.pos >= now.Pos && !f.pause(ctx, settle) {
				return ctx.Err()
			}
		default:
			f.typing = b.typing
			err = f.idle(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// load finds out where the service is in the stream. A new one starts where it was
// added.
func (f *follower) load(ctx context.Context) (*store.ServiceTransaction, error) {
	pos, pending, err := f.w.Store.ServicePosition(ctx, f.s.Registration.ID)
	if errors.Is(err, store.ErrNotFound) {
		f.pos = f.s.since.Pos
		return nil, f.save(ctx, nil)
	}
	if err != nil {
		return nil, err
	}
	f.stored, f.pos = pos, max(f.pos, pos)
	if pending != nil && pending.UpTo <= f.pos {
		pending = nil // acknowledged, but not yet noted
	}
	return pending, nil
}

// save stores the position, and the transaction that is sent next, if any.
func (f *follower) save(ctx context.Context, next *store.ServiceTransaction) error {
	id, st := f.s.Registration.ID, f.w.Store
	pos, from, acked := f.pos, f.stored, f.acked
	err := st.Write(ctx, func(tx *sqldb.Tx) error {
		if err := st.SetServicePosition(tx, id, pos); err != nil {
			return err
		}
		if acked != nil && acked.Extra != "" {
			if err := st.DeleteServiceToDevice(tx, id, from, pos); err != nil {
				return err
			}
		}
		if next == nil {
			return nil
		}
		return st.PutServiceTransaction(tx, id, next)
	})
	if err == nil {
		f.stored, f.acked = pos, nil
	}
	return err
}

// idle waits for news. Before long it stores the position, so that after a crash
// little is looked at again.
func (f *follower) idle(ctx context.Context) error {
	wait, cancel := ctx, context.CancelFunc(func() {})
	if f.pos > f.stored {
		wait, cancel = context.WithTimeout(ctx, idleSave)
	}
	defer cancel()
	if f.w.Hub.WaitAny(wait, streams.Token{Pos: f.pos, Typing: f.typing}) {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return f.save(ctx, nil)
}

// handOver stores a transaction, then sends it until it has arrived.
func (f *follower) handOver(ctx context.Context, b *batch) error {
	t, body, err := b.transaction(f.s)
	if err != nil {
		return err
	}
	if err := f.save(ctx, t); err != nil {
		return err
	}
	f.typing = b.typing
	return f.deliver(ctx, t, body)
}

// resend is handOver for a transaction that was stored before a restart.
func (f *follower) resend(ctx context.Context, t *store.ServiceTransaction) error {
	b := &batch{upto: t.UpTo, created: t.Created}
	byPos, err := f.w.Store.EventsByPos(ctx, t.Events)
	if err != nil {
		return err
	}
	for _, pos := range t.Events {
		if e := byPos[pos]; e != nil {
			b.events = append(b.events, e)
		}
	}
	if err := f.complete(ctx, b); err != nil {
		return err
	}
	body, err := b.body(f.s, t.Extra)
	if err != nil {
		return err
	}
	return f.deliver(ctx, t, body)
}

// deliver sends a transaction until it has arrived or ctx ends.
func (f *follower) deliver(ctx context.Context, t *store.ServiceTransaction, body []byte) error {
	for delay, try := f.w.firstDelay, 1; ; delay, try = min(2*delay, f.w.lastDelay), try+1 {
		err := f.w.client.Send(ctx, f.s, t.ID, body)
		if err == nil {
			if try > 1 {
				f.log.Info("application service takes transactions again", "txn_id", t.ID, "tries", try)
			}
			f.pos, f.acked = t.UpTo, t
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		level := slog.LevelWarn
		if try > 1 {
			level = slog.LevelDebug
		}
		f.log.Log(ctx, level, "application service did not take a transaction", "txn_id", t.ID, "try", try, "retry_after", delay, "err", err)
		if !f.wait(ctx, jitter(delay)) {
			return ctx.Err()
		}
	}
}

// jitter is d, more or less: services that failed together do not come back together.
func jitter(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2+1) }

// wait returns after d, or as soon as the follower is poked; false if ctx has ended.
func (f *follower) wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-f.poke:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// pause is wait that is not to be cut short.
func (f *follower) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// retryNow has a service that was just heard of sent what it has not taken, without
// waiting any longer.
func (w *Worker) retryNow(s *Service) {
	w.mu.Lock()
	f := w.followers[s.Registration.ID]
	w.mu.Unlock()
	if f == nil {
		return
	}
	select {
	case f.poke <- struct{}{}:
	default:
	}
}
