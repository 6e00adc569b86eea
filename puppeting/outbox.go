package puppeting

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// outbox is what wakes the goroutine that works a portal's queue, and what that
// goroutine is told. It runs only while there is something to do.
type outbox struct {
	mu      sync.Mutex
	running bool        // guarded by mu
	results []outResult // guarded by mu
	wake    chan struct{}
}

func (o *outbox) init() { o.wake = make(chan struct{}, 1) }

// outResult is the outcome of a command.
type outResult struct {
	item *outItem
	backends.Result
}

// outItem is a row that was handed to the network.
type outItem struct {
	row  *outRow
	body backends.Body
}

// kick has the portal look at its queue.
func (p *portal) kick() {
	p.out.mu.Lock()
	start := !p.out.running
	p.out.running = true
	p.out.mu.Unlock()
	if start {
		p.b.crew.Go(func(ctx context.Context) { (&outWorker{p: p}).run(ctx) })
		return
	}
	signal(p.out.wake)
}

// report takes an outcome; any goroutine may call it.
func (p *portal) report(r outResult) {
	p.out.mu.Lock()
	p.out.results = append(p.out.results, r)
	p.out.mu.Unlock()
	signal(p.out.wake)
}

func (o *outbox) take() []outResult {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.results
	o.results = nil
	return r
}

// outWindow is how many commands of a portal may be under way.
const outWindow = 64

// outWorker works the queue of a portal: it reads rows, notes that they are about
// to be sent, sends them, and writes down what became of them. Only its goroutine
// touches it.
type outWorker struct {
	p        *portal
	last     int64 // the newest row that was handed over or is in rows
	rows     []*outRow
	inflight []*outItem // in order
	unsaved  []outResult
	retry    bool      // what is under way must settle, then the rest is sent again
	until    time.Time // nothing is sent before
	failures int       // in a row
}

func (w *outWorker) run(ctx context.Context) {
	for {
		busy, err := w.step(ctx)
		switch {
		case ctx.Err() != nil:
			w.end(context.WithoutCancel(ctx))
			return
		case err != nil:
			w.p.log.Warn("the queue towards the network waits", "err", err)
			w.pause(w.backoff())
		case !busy && w.idle():
			return
		}
		if !busy || err != nil {
			w.wait(ctx)
		}
	}
}

// end writes down what the network could still tell before it was closed. A later
// kick starts anew, with what is in the table.
func (w *outWorker) end(ctx context.Context) {
	if err := w.settle(ctx); err != nil {
		w.p.log.Warn("what was delivered cannot be noted", "err", err)
	}
	w.p.out.mu.Lock()
	defer w.p.out.mu.Unlock()
	w.p.out.running = false
}

// idle ends the goroutine unless it was woken meanwhile or waits for something.
func (w *outWorker) idle() bool {
	if len(w.inflight) > 0 || len(w.rows) > 0 && w.p.ready() || time.Now().Before(w.until) {
		return false
	}
	w.p.out.mu.Lock()
	defer w.p.out.mu.Unlock()
	if len(w.p.out.wake) > 0 || len(w.p.out.results) > 0 {
		return false
	}
	w.p.out.running = false
	return true
}

// wait sleeps until something happens.
func (w *outWorker) wait(ctx context.Context) {
	var timer <-chan time.Time
	if d := time.Until(w.until); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-w.p.out.wake:
	case <-timer:
	case <-ctx.Done():
	}
}

func (w *outWorker) pause(d time.Duration) { w.until = time.Now().Add(d) }

// backoff is how long to wait after so many failures.
func (w *outWorker) backoff() time.Duration {
	w.failures++
	return min(time.Second<<min(w.failures-1, 10), 5*time.Minute)
}

// step does what can be done now; busy means that there may be more.
func (w *outWorker) step(ctx context.Context) (busy bool, err error) {
	if err := w.settle(ctx); err != nil {
		return false, err
	}
	if w.retry {
		if len(w.inflight) > 0 {
			return false, nil
		}
		w.retry, w.last, w.rows = false, 0, nil
	}
	if time.Now().Before(w.until) {
		return false, nil
	}
	if err := w.load(ctx); err != nil || len(w.rows) == 0 {
		return false, err
	}
	if !w.p.ready() {
		return false, w.expire(ctx)
	}
	return w.send(ctx)
}

// load reads rows as far as the window goes.
func (w *outWorker) load(ctx context.Context) error {
	room := outWindow - len(w.inflight) - len(w.rows)
	if room <= 0 {
		return nil
	}
	rows, err := loadOutbox(ctx, w.p.b.db, w.p.key, w.last, room)
	if err != nil || len(rows) == 0 {
		return err
	}
	w.last = rows[len(rows)-1].seq
	w.rows = append(w.rows, rows...)
	return nil
}

// expire gives up what has waited too long for its network.
func (w *outWorker) expire(ctx context.Context) error {
	var old []outResult
	limit := time.Now().Add(-w.p.b.o.Expiry)
	for len(w.rows) > 0 && w.rows[0].queued.Before(limit) {
		old = append(old, outResult{&outItem{row: w.rows[0]}, backends.Result{Outcome: backends.Rejected, Reason: w.p.net.title + " could not be reached in time."}})
		w.rows = w.rows[1:]
	}
	w.forget()
	if len(old) == 0 {
		return nil
	}
	return w.save(ctx, old)
}

// forget drops the rows that were read and not sent; they are read again later.
func (w *outWorker) forget() {
	w.rows, w.last = nil, 0
	if n := len(w.inflight); n > 0 {
		w.last = w.inflight[n-1].row.seq
	}
}

// send hands rows to the network, up to one that must wait for the name of a
// message before it.
func (w *outWorker) send(ctx context.Context) (busy bool, err error) {
	batch := w.batch()
	if len(batch) == 0 {
		return false, nil
	}
	if err := markSent(ctx, w.p.b.db, batch); err != nil {
		return false, err
	}
	for i, row := range batch {
		w.rows = w.rows[1:]
		if err := w.sendRow(ctx, row); err != nil {
			w.retry = true
			return false, errors.Join(err, w.unmark(ctx, batch[i:]))
		}
	}
	return true, nil
}

// unmark takes back what markSent noted of rows that were not handed over.
func (w *outWorker) unmark(ctx context.Context, rows []*outRow) error {
	rows = slices.DeleteFunc(slices.Clone(rows), func(r *outRow) bool { return r.maybeSent })
	if len(rows) == 0 {
		return nil
	}
	return w.write(context.WithoutCancel(ctx), nil, rows, nil, nil)
}

// batch is the rows that may go now.
func (w *outWorker) batch() []*outRow {
	for i, row := range w.rows {
		id := needs(&row.event)
		if id == "" {
			continue
		}
		underway := slices.ContainsFunc(w.inflight, func(it *outItem) bool { return it.row.event.ID == id })
		if underway || slices.ContainsFunc(w.rows[:i], func(r *outRow) bool { return r.event.ID == id }) {
			return w.rows[:i]
		}
	}
	return w.rows
}

// sendRow sends one row. An error means that it and what follows is to be tried again.
func (w *outWorker) sendRow(ctx context.Context, row *outRow) error {
	cmd, err := w.p.command(ctx, &row.event)
	item := &outItem{row: row}
	if e, ok := errors.AsType[*cannotSend](err); ok {
		w.finish(item, backends.Result{Outcome: backends.Unsupported, Reason: e.reason})
		return nil
	}
	if err != nil {
		return err
	}
	if cmd == nil {
		w.finish(item, backends.Result{Outcome: backends.Delivered})
		return nil
	}
	nw, err := w.p.net.get()
	if err != nil {
		return err
	}
	item.body = cmd.Body
	cmd.Attempt, cmd.MaybeSent = row.attempt+1, row.maybeSent
	w.inflight = append(w.inflight, item)
	if err := nw.Send(ctx, cmd, func(r backends.Result) { w.p.report(outResult{item, r}) }); err != nil {
		w.remove(item)
		return err
	}
	return nil
}

// finish is the outcome of a row that was not handed to the network.
func (w *outWorker) finish(item *outItem, r backends.Result) {
	w.inflight = append(w.inflight, item)
	w.p.report(outResult{item, r})
}

func (w *outWorker) remove(item *outItem) {
	w.inflight = slices.DeleteFunc(w.inflight, func(it *outItem) bool { return it == item })
}

// settle writes down the outcomes that are known.
func (w *outWorker) settle(ctx context.Context) error {
	w.unsaved = append(w.unsaved, w.p.out.take()...)
	if len(w.unsaved) == 0 {
		return nil
	}
	if err := w.save(ctx, w.unsaved); err != nil {
		return err
	}
	for _, r := range w.unsaved {
		w.remove(r.item)
	}
	w.unsaved = nil
	return nil
}

// save writes outcomes in one transaction: names of what was delivered, dead
// letters for what never will be, and what is to be tried again stays.
func (w *outWorker) save(ctx context.Context, results []outResult) error {
	var gone, unsent []*outRow
	var names []*mapping
	var letters []*letter
	for i := range results {
		r := &results[i]
		switch r.Outcome {
		case backends.Retry:
			if !r.item.row.maybeSent { // otherwise an earlier attempt remains in doubt
				unsent = append(unsent, r.item.row)
			}
			w.again(r)
		case backends.Interrupted:
			w.again(r)
		case backends.Delivered:
			w.failures = 0
			gone = append(gone, r.item.row)
			names = append(names, w.p.names(r)...)
		default:
			gone = append(gone, r.item.row)
			if l := w.p.letter(r); l != nil {
				letters = append(letters, l)
			}
		}
	}
	if err := w.write(ctx, gone, unsent, names, letters); err != nil {
		return err
	}
	for _, m := range names {
		w.p.mapping.put(m)
	}
	for _, l := range letters {
		if !l.told {
			w.p.b.crew.Go(func(ctx context.Context) { w.p.b.tell(ctx, l) })
		}
	}
	return nil
}

// again has everything from this row on sent again, after what is under way has settled.
func (w *outWorker) again(r *outResult) {
	w.retry = true
	after := r.After
	if after <= 0 {
		after = w.backoff()
	}
	if until := time.Now().Add(after); until.After(w.until) {
		w.until = until
	}
}

func (w *outWorker) write(ctx context.Context, gone, unsent []*outRow, names []*mapping, letters []*letter) error {
	now := time.Now()
	return w.p.b.db.Write(ctx, func(tx *sqldb.Tx) error {
		for _, m := range names {
			m.queue(tx)
		}
		for _, l := range letters {
			if err := l.queue(tx, now); err != nil {
				return err
			}
		}
		if len(unsent) > 0 {
			if _, err := tx.Exec(`UPDATE bridge_outbox SET maybe_sent = FALSE WHERE seq IN (` + seqs(unsent) + `)`); err != nil {
				return err
			}
		}
		if len(gone) == 0 {
			return nil
		}
		_, err := tx.Exec(`DELETE FROM bridge_outbox WHERE seq IN (` + seqs(gone) + `)`)
		return err
	})
}

// names are the rows of the message map for a delivered command.
func (p *portal) names(r *outResult) []*mapping {
	ev := &r.item.row.event
	m := mapping{portalKey: p.key, event: ev.ID, room: ev.RoomID, kind: messageMapping, sender: ev.Sender, ts: ev.OriginServerTS}
	ids := r.IDs
	switch b := r.item.body.(type) {
	case *backends.Message:
	case *backends.Edit:
		m.kind, m.target = editMapping, b.Target
	case *backends.Reaction:
		if b.Removed {
			return nil
		}
		m.kind, m.target, m.reactKey = reactionMapping, b.Target, b.Key
		if len(ids) == 0 {
			ids = []backends.MessageID{backends.MessageID("reaction " + string(ev.ID))}
		}
	default:
		return nil
	}
	var out []*mapping
	for i, id := range ids {
		if id == "" || slices.Contains(ids[:i], id) {
			continue
		}
		one := m
		one.id, one.part = id, i
		out = append(out, &one)
	}
	return out
}

// letter is the dead letter for an outcome, nil if the loss is of no account.
func (p *portal) letter(r *outResult) *letter {
	row := r.item.row
	if p.isGateway() || !matters(&row.event) {
		return nil
	}
	rm := p.bound()
	if rm == nil {
		return nil
	}
	// What a network has no word for and nobody would look for is not complained of.
	quiet := r.Outcome == backends.Unsupported && !speech[row.event.Type]
	if quiet || row.event.Type == matrix.TypeEncrypted && !p.once("encrypted") {
		return nil
	}
	return &letter{outRow: *row, room: rm.id, outcome: outcomes[r.Outcome], reason: r.Reason}
}

// speech is what people expect to be heard.
var speech = map[string]bool{matrix.TypeMessage: true, typeSticker: true, matrix.TypeEncrypted: true}

var outcomes = map[backends.Outcome]string{
	backends.Rejected: "rejected", backends.Unsupported: "unsupported", backends.Uncertain: "uncertain",
}
