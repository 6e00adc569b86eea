package wire

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/gjallar-im/gjallar/backends"
)

// Batch limits: what one gRPC message carries at most, apart from a single item
// that is larger.
const (
	batchItems = 512
	batchBytes = 256 << 10
)

var (
	// ErrClosed means that the connection ended before the item had its place.
	ErrClosed = errors.New("connection closed")
	// ErrTooLarge means that an item exceeds MaxItem.
	ErrTooLarge = &backends.Refusal{Code: backends.RefusedTooLarge, Message: "too large for the plugin protocol"}
)

// numbered is a message that the other side answers by its number.
type numbered interface{ number(seq uint64) }

func (c *Command) number(seq uint64) { c.Seq = seq }
func (e *Event) number(seq uint64)   { e.Seq = seq }

// An Outbox holds what is on its way to the other side: items of type M, each
// answered with an A. It keeps the order of the calls, bounds what is unanswered
// (for each chat, and in all), and calls each answer function exactly once.
type Outbox[M numbered, A any] struct {
	mu      sync.Mutex
	seq     uint64                   // guarded by mu
	queue   []*letter[M, A]          // not taken; guarded by mu
	pending map[uint64]*letter[M, A] // taken or not, unanswered; guarded by mu
	chats   map[backends.ChatKey]int // unanswered of each chat; guarded by mu
	bytes   int                      // unanswered; guarded by mu
	changed chan struct{}            // closed when something is answered, nil if nobody waits; guarded by mu
	filled  chan struct{}            // has a token if queue, finished or closed may have changed
	done    bool                     // no more items; guarded by mu
	closed  bool                     // all answered by Fail; guarded by mu
}

type letter[M, A any] struct {
	key    backends.ChatKey
	item   M
	size   int
	sent   bool
	answer func(A)
}

// NewOutbox returns an empty Outbox.
func NewOutbox[M numbered, A any]() *Outbox[M, A] {
	return &Outbox[M, A]{
		pending: map[uint64]*letter[M, A]{},
		chats:   map[backends.ChatKey]int{},
		filled:  make(chan struct{}, 1),
	}
}

// Put gives item its place and numbers it. It blocks while the chat, or all
// together, has too much unanswered. After an error answer is not called: that is
// ErrTooLarge, ErrClosed, or the end of ctx.
func (o *Outbox[M, A]) Put(ctx context.Context, key backends.ChatKey, item M, size int, answer func(A)) error {
	if size > MaxItem {
		return ErrTooLarge
	}
	for {
		wait, err := o.tryPut(key, item, size, answer)
		if wait == nil {
			return err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tryPut returns a channel to wait for if there is no room.
func (o *Outbox[M, A]) tryPut(key backends.ChatKey, item M, size int, answer func(A)) (<-chan struct{}, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.done {
		return nil, ErrClosed
	}
	if o.chats[key] >= PerChat || len(o.pending) >= InFlight || o.bytes+size > InFlightBytes {
		return o.waitLocked(), nil
	}
	o.seq++
	item.number(o.seq)
	l := &letter[M, A]{key: key, item: item, size: size, answer: answer}
	o.queue = append(o.queue, l)
	o.pending[o.seq] = l
	o.chats[key]++
	o.bytes += size
	o.fillLocked()
	return nil, nil
}

func (o *Outbox[M, A]) waitLocked() <-chan struct{} {
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	return o.changed
}

func (o *Outbox[M, A]) wakeLocked() {
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
}

func (o *Outbox[M, A]) fillLocked() {
	select {
	case o.filled <- struct{}{}:
	default:
	}
}

// Take returns the next items, in order, and counts them as sent. It blocks while
// there are none. The error is io.EOF after Finish or Fail, or the end of ctx.
// Only one goroutine takes.
func (o *Outbox[M, A]) Take(ctx context.Context) ([]M, error) {
	for {
		if batch, err := o.tryTake(); len(batch) > 0 || err != nil {
			return batch, err
		}
		select {
		case <-o.filled:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (o *Outbox[M, A]) tryTake() ([]M, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) == 0 && o.done || o.closed {
		return nil, io.EOF
	}
	var batch []M
	size := 0
	for _, l := range o.queue {
		if size += l.size; len(batch) == batchItems || len(batch) > 0 && size > batchBytes {
			break
		}
		l.sent = true
		batch = append(batch, l.item)
	}
	clear(o.queue[:len(batch)])
	if o.queue = o.queue[len(batch):]; len(o.queue) == 0 {
		o.queue = nil
	}
	return batch, nil
}

// Answered removes the item with a number and returns its answer function, which
// the caller calls; nil if there is no such item, or not any more.
func (o *Outbox[M, A]) Answered(seq uint64) func(A) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := o.pending[seq]
	if l == nil || !l.sent {
		return nil
	}
	delete(o.pending, seq)
	if o.chats[l.key]--; o.chats[l.key] == 0 {
		delete(o.chats, l.key)
	}
	o.bytes -= l.size
	o.wakeLocked()
	return l.answer
}

// Finish lets no more items in. Those that are there are still taken and answered.
func (o *Outbox[M, A]) Finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.done = true
	o.fillLocked()
	o.wakeLocked()
}

// Idle waits until everything is answered.
func (o *Outbox[M, A]) Idle(ctx context.Context) error {
	for {
		o.mu.Lock()
		if len(o.pending) == 0 {
			o.mu.Unlock()
			return nil
		}
		wait := o.waitLocked()
		o.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Fail ends the Outbox and answers all that is unanswered: with sent, in the order
// of their numbers, what was taken, and with unsent what was not. It returns when
// the answer functions have.
func (o *Outbox[M, A]) Fail(sent, unsent A) {
	o.mu.Lock()
	o.done, o.closed = true, true
	pending := o.pending
	o.pending, o.queue, o.chats, o.bytes = map[uint64]*letter[M, A]{}, nil, map[backends.ChatKey]int{}, 0
	o.fillLocked()
	o.wakeLocked()
	o.mu.Unlock()
	for _, seq := range slices.Sorted(maps.Keys(pending)) {
		if l := pending[seq]; l.sent {
			l.answer(sent)
		} else {
			l.answer(unsent)
		}
	}
}

// Finished reports whether Finish or Fail was called.
func (o *Outbox[M, A]) Finished() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.done
}
