package stream

import (
	"context"
	"sync"
)

// Lanes run functions: those of one key one after another in order, those of
// different keys at the same time. No more than a limit wait or run altogether.
type Lanes struct {
	slots chan struct{}
	wg    sync.WaitGroup

	mu     sync.Mutex
	queues map[string][]func() // of the keys that run; guarded by mu
}

// NewLanes returns lanes that hold up to limit functions.
func NewLanes(limit int) *Lanes {
	return &Lanes{slots: make(chan struct{}, limit), queues: map[string][]func(){}}
}

// Do puts f at the end of a lane. It blocks while the lanes are full, or until
// ctx ends; f is not called then.
func (l *Lanes) Do(ctx context.Context, key string, f func()) error {
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
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

// Wait returns when all lanes are empty. Nothing may be added meanwhile.
func (l *Lanes) Wait() { l.wg.Wait() }
