package wire

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/gjallar-im/gjallar/backends"
)

// ErrFlood means that the other side does not keep the limits of this package.
var ErrFlood = errors.New("the other side sends more than it may")

// Lanes run functions: those of one chat in order, one after the other, those of
// different chats beside each other, so that a slow chat delays no other. The
// zero value is ready.
type Lanes struct {
	mu    sync.Mutex
	lanes map[backends.ChatKey][]func() // a key is there while its goroutine runs; guarded by mu
	n     int                           // functions not finished; guarded by mu
	wg    sync.WaitGroup
}

// Do runs f after the functions of the chat before it. The error is ErrFlood if
// more are waiting than the protocol allows.
func (l *Lanes) Do(key backends.ChatKey, f func()) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n >= 2*InFlight {
		return ErrFlood
	}
	l.n++
	waiting, running := l.lanes[key]
	if l.lanes == nil {
		l.lanes = map[backends.ChatKey][]func(){}
	}
	l.lanes[key] = append(waiting, f)
	if !running {
		l.wg.Go(func() { l.run(key) })
	}
	return nil
}

func (l *Lanes) run(key backends.ChatKey) {
	finished := 0
	for {
		l.mu.Lock()
		l.n -= finished
		batch := l.lanes[key]
		if len(batch) == 0 {
			delete(l.lanes, key)
			l.mu.Unlock()
			return
		}
		l.lanes[key] = nil
		l.mu.Unlock()
		for _, f := range batch {
			f()
		}
		finished = len(batch)
	}
}

// Wait returns when all functions have. Nobody calls Do meanwhile.
func (l *Lanes) Wait() { l.wg.Wait() }

// A Queue holds answers on their way to the other side. It is bounded by what the
// other side may have unanswered.
type Queue[T any] struct {
	mu     sync.Mutex
	items  []T  // guarded by mu
	closed bool // guarded by mu
	filled chan struct{}
}

// NewQueue returns an empty Queue.
func NewQueue[T any]() *Queue[T] { return &Queue[T]{filled: make(chan struct{}, 1)} }

// Put appends an item. After Close it is dropped.
func (q *Queue[T]) Put(item T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.items = append(q.items, item)
	q.fillLocked()
}

func (q *Queue[T]) fillLocked() {
	select {
	case q.filled <- struct{}{}:
	default:
	}
}

// Take returns the next items, as Outbox.Take does.
func (q *Queue[T]) Take(ctx context.Context) ([]T, error) {
	for {
		if batch, err := q.tryTake(); len(batch) > 0 || err != nil {
			return batch, err
		}
		select {
		case <-q.filled:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (q *Queue[T]) tryTake() ([]T, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) == 0 && q.closed {
		return nil, io.EOF
	}
	n := min(len(q.items), batchItems)
	batch := q.items[:n:n]
	if q.items = q.items[n:]; len(q.items) == 0 {
		q.items = nil
	}
	return batch, nil
}

// Close lets no more items in; those that are there are still taken.
func (q *Queue[T]) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.fillLocked()
}
