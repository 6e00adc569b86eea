package irc

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/gjallar-im/gjallar/backends"
)

// Bounds of a lane.
const (
	laneQueue    = 64 // commands that wait
	laneInFlight = 32 // commands that are sent and not confirmed
	laneIdle     = 10 * time.Minute
)

// errNetworkClosed is what Send returns after Close.
var errNetworkClosed = errors.New("the network is closed")

// lane carries out the commands of one chat in order. Commands through one
// connection follow each other without waiting; before another connection is used
// the outcomes of all earlier commands are awaited.
type lane struct {
	n    *network
	chat backends.ChatKey
	jobs chan *job

	journal  *journal
	slots    chan struct{}  // laneInFlight
	inFlight sync.WaitGroup // commands submitted to conn
	taken    sync.WaitGroup // commands without an outcome
	conn     *conn          // used last; only the lane's goroutine

	sent int   // number of the last command; guarded by n.mu
	open int   // commands without an outcome; guarded by n.mu
	held *hold // others wait for the repetition of a command; nil if not; guarded by n.mu
}

// job is a command with its reply.
type job struct {
	cmd    *backends.Command
	number int // in the lane
	reply  func(backends.Result)
}

func newLane(n *network, chat backends.ChatKey) *lane {
	l := &lane{n: n, chat: chat, journal: newJournal(n, chat), jobs: make(chan *job, laneQueue), slots: make(chan struct{}, laneInFlight)}
	n.conns.Go(l.run)
	return l
}

// Send implements backends.Network.
func (n *network) Send(ctx context.Context, cmd *backends.Command, reply func(backends.Result)) error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return errNetworkClosed
	}
	l := n.lanes[cmd.Chat]
	if l == nil {
		l = newLane(n, cmd.Chat)
		n.lanes[cmd.Chat] = l
	}
	l.taken.Add(1)
	l.sent++
	l.open++
	j := &job{cmd: cmd, number: l.sent}
	n.mu.Unlock()
	j.reply = func(r backends.Result) {
		if r.Outcome == backends.Retry && !cmd.Ephemeral() {
			l.hold(j)
		}
		reply(r)
		l.ended()
	}
	select {
	case l.jobs <- j:
		return nil
	case <-ctx.Done():
		l.ended()
		return ctx.Err()
	case <-l.n.ctx.Done():
		l.ended()
		return errNetworkClosed
	}
}

// ended counts a command that has its outcome, or was not taken.
func (l *lane) ended() {
	l.n.mu.Lock()
	l.open--
	l.n.mu.Unlock()
	l.taken.Done()
}

// drain waits until all commands have their outcome, or ctx ends.
func (l *lane) drain(ctx context.Context) {
	select {
	case <-l.idle():
	case <-ctx.Done():
	}
}

// idle returns a channel that is closed when all commands have their outcome. No
// more may be sent by then.
func (l *lane) idle() <-chan struct{} {
	done := make(chan struct{})
	go func() { l.taken.Wait(); close(done) }()
	return done
}

func (l *lane) run() {
	unused := time.NewTimer(laneIdle)
	defer unused.Stop()
	for {
		unused.Reset(laneIdle)
		select {
		case <-unused.C:
			if l.retire() {
				return
			}
		case j := <-l.jobs:
			if l.mustWait(j) {
				j.reply(retryIn(time.Second))
			} else {
				l.n.carryOut(l, j)
			}
		case <-l.n.ctx.Done():
			l.refuseRest()
			return
		}
	}
}

// retire takes the lane away if it has nothing to do.
func (l *lane) retire() bool {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	if l.open > 0 {
		return false
	}
	delete(l.n.lanes, l.chat)
	return true
}

// hold is a command that is to be tried again, before what follows it. The host
// may have sent that already, or be about to, without knowing.
type hold struct {
	id     string
	number int
	until  time.Time // the host has dropped the command if it has not come by then
}

// holdTime is longer than the host waits before it repeats a command.
const holdTime = 30 * time.Second

func (l *lane) hold(j *job) {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	if l.held == nil || j.number < l.held.number {
		l.held = &hold{j.cmd.ID, j.number, time.Now().Add(holdTime)}
	}
}

// mustWait reports whether a command is not to be carried out before another has come
// again. The one that the others wait for ends that when it comes.
func (l *lane) mustWait(j *job) bool {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	h := l.held
	switch {
	case h == nil || j.number < h.number:
		return false
	case j.cmd.ID == h.id && j.number > h.number, time.Now().After(h.until):
		l.held = nil
		return false
	}
	return true
}

// refuseRest answers what is left when the network closes.
func (l *lane) refuseRest() {
	idle := l.idle()
	for {
		select {
		case j := <-l.jobs:
			j.reply(retryIn(time.Second))
		case <-idle:
			return
		}
	}
}

// submit runs f on the connection's goroutine, with the reply of j to be called by
// it, in order with all other commands of the lane. It returns false if the
// connection has ended; nothing has happened then.
func (l *lane) submit(c *conn, j *job, f func(reply func(backends.Result))) bool {
	if c != l.conn {
		l.inFlight.Wait()
		l.conn = c
	}
	select {
	case l.slots <- struct{}{}:
	case <-l.n.ctx.Done():
		return false
	}
	if l.mustWait(j) { // one before it has failed meanwhile
		<-l.slots
		j.reply(retryIn(time.Second))
		return true
	}
	l.inFlight.Add(1)
	release := func() { <-l.slots; l.inFlight.Done() }
	reply := func(r backends.Result) { j.reply(r); release() }
	if !c.do(l.n.ctx, func() { f(reply) }) {
		release()
		return false
	}
	return true
}

// wait lets all earlier commands end.
func (l *lane) wait() { l.inFlight.Wait() }

func retryIn(d time.Duration) backends.Result {
	return backends.Result{Outcome: backends.Retry, After: d, Reason: "the network is not connected"}
}

func rejected(reason string) backends.Result {
	return backends.Result{Outcome: backends.Rejected, Reason: reason}
}
