package ircd

import (
	"context"
	"sync"
)

// outbox queues lines towards one client. Putting never blocks, so that a slow
// client holds nobody up.
type outbox struct {
	mu     sync.Mutex
	lines  [][]byte // guarded by mu
	size   int      // of lines in bytes; guarded by mu
	limit  int
	closed bool          // nothing more comes in; guarded by mu
	wake   chan struct{} // has one element when there is something to take
	room   chan struct{} // has one element when something was taken
}

func newOutbox(limit int) *outbox {
	return &outbox{limit: limit, wake: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// put queues a line, which must not change afterwards. It reports false if the
// queue is full; once closed it drops the line and reports true.
func (o *outbox) put(line []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return true
	}
	if o.size+len(line) > o.limit {
		return false
	}
	o.lines = append(o.lines, line)
	o.size += len(line)
	signal(o.wake)
	return true
}

// wait blocks until half of the queue is free. It is for the one goroutine that
// answers the client's own commands.
func (o *outbox) wait(ctx context.Context) {
	for {
		o.mu.Lock()
		ok := o.closed || o.size <= o.limit/2
		o.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-o.room:
		case <-ctx.Done():
			return
		}
	}
}

// take appends what is queued to buf, at most about 64 KiB. It reports whether
// this was all and nothing more will come.
func (o *outbox) take(buf []byte) (_ []byte, last bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for n < len(o.lines) && len(buf) < 64<<10 {
		buf = append(buf, o.lines[n]...)
		o.size -= len(o.lines[n])
		n++
	}
	clear(o.lines[:n])
	o.lines = o.lines[n:]
	if len(o.lines) == 0 {
		o.lines = nil
	} else {
		signal(o.wake)
	}
	signal(o.room)
	return buf, o.closed && len(o.lines) == 0
}

// close lets what is queued out and takes nothing more.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	signal(o.wake)
	signal(o.room)
}

// drop is close without letting anything out.
func (o *outbox) drop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed, o.lines, o.size = true, nil, 0
	signal(o.wake)
	signal(o.room)
}
