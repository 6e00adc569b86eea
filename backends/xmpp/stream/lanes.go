package stream

import (
	"context"
	"errors"
	"sync"
)

// Lanes run functions: those of one key one after another in order, those of
// different keys at the same time. No more than a limit wait or run altogether.
type Lanes struct {
	slots chan struct{}
	wg    sync.WaitGroup

	mu     sync.Mutex
	queues map[string][]func() // of the keys that run; guarded by mu
	closed bool                // guarded by mu
}

// ErrClosed is returned by Lanes that take nothing more.
var ErrClosed = errors.New("lanes are closed")

// NewLanes returns lanes that hold up to limit functions.
func NewLanes(limit int) *Lanes {
	return &Lanes{slots: make(chan struct{}, limit), queues: map[string][]func(){}}
}

// Do puts f at the end of a lane. It blocks while the lanes are full, or until
// ctx ends or the lanes are closed; f is not called then.
func (l *Lanes) Do(ctx context.Context, key string, f func()) error {
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		<-l.slots
		return ErrClosed
	}
	queue, running := l.queues[key]
	l.queues[key] = append(queue, f)
	if !running {
		l.wg.Go(func() { l.run(key) })
	}
	return nil
}

func (l *Lanes) run(key string) {
	for {
		l.mu.Lock()
		queue := l.queues[key]
		if len(queue) == 0 {
			delete(l.queues, key)
			l.mu.Unlock()
			return
		}
		f := queue[0]
		l.queues[key] = queue[1:]
		l.mu.Unlock()
		f()
		<-l.slots
	}
}

// Close takes nothing more and returns when all lanes are empty.
func (l *Lanes) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.wg.Wait()
}
