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
