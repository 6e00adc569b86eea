package puppeting

import (
	"cmp"
	"context"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// pipeline has several messages of a chat on their way to the homeserver, in order.
//
// The next message is sent once the homeserver has given the one before its place:
// our own says so by the informational response 102, before the event is durable, so
// that events which arrive together share a commit. From others no such word comes
// and one message is sent after the other (RFC 9110, section 15.2: who does not
// expect an informational response must still understand it).
//
// Only the portal's goroutine calls its methods, except finish.
type pipeline struct {
	p       *portal
	commits *sync.WaitGroup // of names, begun by finish
	slots   chan struct{}
	sends   sync.WaitGroup
	next    int

	mu     sync.Mutex
	failed []failedItem // guarded by mu
}

// failedItem is an event that did not get through at the first try.
type failedItem struct {
	seq int
	it  inItem
}

// pipelineDepth is how many messages of a chat may be on their way.
const pipelineDepth = 64

func newPipeline(p *portal, commits *sync.WaitGroup) *pipeline {
	return &pipeline{p: p, commits: commits, slots: make(chan struct{}, pipelineDepth)}
}

// ready is a message about to be sent.
type ready struct {
	room    *room
	intent  *appservice.Intent
	content map[string]any
}

// take sends an event if it is a plain message from one who is in the room; nothing
// else may overtake what is on its way. It reports whether it took the event.
func (pl *pipeline) take(ctx context.Context, it inItem) bool {
	m, ok := it.ev.Body.(*backends.Message)
	if !ok || pl.hasFailed() || m.ReplyTo != nil || m.Thread != "" || len(m.Files) > 0 || len(m.Text) == 0 || it.ev.ID == "" || it.ev.Origin != "" || pl.p.isEcho(it.ev) {
		return false
	}
	r := pl.prepare(ctx, it.ev, m)
	if r == nil {
		return false
	}
	select {
	case pl.slots <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	if pl.hasFailed() { // which is how there came to be room
		<-pl.slots
		return false
	}
	pl.start(ctx, it, r)
	return true
}

// prepare does what precedes the sending, nil if that is not a matter of course.
func (pl *pipeline) prepare(ctx context.Context, ev *backends.Event, m *backends.Message) *ready {
	p := pl.p
	rm := p.bound()
	if rm == nil || p.isKind(directPortal) || !rm.loaded() {
		return nil
	}
	if known, err := p.byID(ctx, ev.ID); err != nil || known != nil {
		return nil
	}
	intent, err := p.actor(ctx, ev.Sender)
	if err != nil {
		return nil
	}
	if _, joined := rm.member(ctx, intent.UserID()); !joined {
		return nil
	}
	return &ready{rm, intent, p.textPiece(m.Kind, m.Text)}
}

// start sends a message and returns when it has its place, or its outcome.
func (pl *pipeline) start(ctx context.Context, it inItem, r *ready) {
	next := make(chan struct{})
	proceed := sync.OnceFunc(func() { close(next) })
	ctx, cancel := context.WithCancel(ctx)
	trace := placing(proceed, cancel)
	seq := pl.next
	pl.next++
	end := pl.p.sending.begin(r.intent.UserID())
	pl.sends.Go(func() {
		defer func() { <-pl.slots }()
		defer proceed()
		defer end()
		defer cancel()
		id, err := r.intent.Send(httptrace.WithClientTrace(ctx, trace), r.room.id, matrix.TypeMessage, pl.p.txnID(it.ev, 0), r.content, it.ev.Time)
		pl.finish(seq, it, r, id, err)
	})
	<-next
}

// placing calls placed when the homeserver has given an event its place. If it is sent
// once more after that, giveUp is called: whether its place is still free only drain
// can tell, which sends all that is uncertain again in order.
func placing(placed, giveUp func()) *httptrace.ClientTrace {
	var has atomic.Bool
	return &httptrace.ClientTrace{
		GetConn: func(string) {
			if has.Load() {
				giveUp()
			}
		},
		Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
			if code == http.StatusProcessing {
				has.Store(true)
				placed()
			}
			return nil
		},
	}
}

// finish names an event that was sent, or keeps it for a second try.
func (pl *pipeline) finish(seq int, it inItem, r *ready, id matrix.EventID, err error) {
	if err != nil {
		pl.mu.Lock()
		defer pl.mu.Unlock()
		pl.failed = append(pl.failed, failedItem{seq, it})
		return
	}
	m := &mapping{portalKey: pl.p.key, id: it.ev.ID, event: id, room: r.room.id, kind: messageMapping, sender: r.intent.UserID(), ts: time.Now().UnixMilli()}
	out := outcome{receipt: backends.Receipt{ID: backends.MessageID(id)}, mappings: []*mapping{m}}
	if !it.ev.Time.IsZero() {
		m.ts = it.ev.Time.UnixMilli()
		out.mark = pl.p.advance(backends.Mark{ID: it.ev.ID, Time: it.ev.Time})
	}
	pl.p.mapping.put(m)
	pl.p.commit(it, out, pl.commits)
}

func (pl *pipeline) hasFailed() bool {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return len(pl.failed) > 0
}

// drain waits for what is on its way, and sends what failed again, one by one.
func (pl *pipeline) drain(ctx context.Context) {
	pl.sends.Wait()
	pl.mu.Lock()
	failed := pl.failed
	pl.failed = nil
	pl.mu.Unlock()
	slices.SortFunc(failed, func(a, b failedItem) int { return cmp.Compare(a.seq, b.seq) })
	for _, f := range failed {
		if ctx.Err() == nil {
			pl.p.fromRemote(ctx, f.it, pl.commits)
		}
	}
}
