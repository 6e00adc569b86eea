package puppeting

import (
	"context"
	"sync"
)

// crew runs goroutines that live no longer than Bridge.Run, which waits for them.
// What is started before Run begins then.
type crew struct {
	mu      sync.Mutex
	waiting []func(context.Context) // guarded by mu
	wake    chan struct{}
}

func newCrew() *crew { return &crew{wake: make(chan struct{}, 1)} }

// Go has f run in a goroutine, with a context that ends when Run does.
func (c *crew) Go(f func(context.Context)) {
	c.mu.Lock()
	c.waiting = append(c.waiting, f)
	c.mu.Unlock()
	signal(c.wake)
}

// run starts what Go is given, until ctx ends and all of it has.
func (c *crew) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c.mu.Lock()
		batch := c.waiting
		c.waiting = nil
		c.mu.Unlock()
		for _, f := range batch {
			wg.Go(func() { f(ctx) })
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
			return
		}
	}
}

// signal wakes who waits on a channel of capacity 1.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// locks are as many locks as there are keys in use.
type locks[K comparable] struct {
	mu    sync.Mutex
	turns map[K]*turn // guarded by mu
}

// turn is a lock that counts who has or wants it.
type turn struct {
	held  chan struct{}
	users int
}

func newLocks[K comparable]() *locks[K] { return &locks[K]{turns: map[K]*turn{}} }

// lock waits for the lock of a key.
func (l *locks[K]) lock(ctx context.Context, k K) (unlock func(), err error) {
	l.mu.Lock()
	t := l.turns[k]
	if t == nil {
		t = &turn{held: make(chan struct{}, 1)}
		l.turns[k] = t
	}
	t.users++
	l.mu.Unlock()
	select {
	case t.held <- struct{}{}:
		return func() { <-t.held; l.release(k, t) }, nil
	case <-ctx.Done():
		l.release(k, t)
		return nil, ctx.Err()
	}
}

func (l *locks[K]) release(k K, t *turn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.users--; t.users == 0 {
		delete(l.turns, k)
	}
}
