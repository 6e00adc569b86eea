// Package rooms owns the rooms of the server: one goroutine for each room in use
// checks what is sent to it and puts it in order. accept is the only writer of
// the event table.
package rooms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/store"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

// Options of New.
type Options struct {
	Store  *store.Store
	Hub    *streams.Hub
	Signer pdu.Signer
	Log    *slog.Logger
	// IdleAfter is how long a room that nothing happens in stays in memory.
	// Default: five minutes.
	IdleAfter time.Duration
}

// Rooms is all rooms of the server. Its methods may be called from any goroutine.
type Rooms struct {
	store     *store.Store
	hub       *streams.Hub
	signer    pdu.Signer
	log       *slog.Logger
	idleAfter time.Duration

	ctx    context.Context // ends the owners; not of a request
	stop   context.CancelFunc
	owners sync.WaitGroup

	created atomic.Int64 // time of the last room that was made, ms

	mu   sync.Mutex
	open map[matrix.RoomID]*room // guarded by mu
}

// New returns the rooms of a store.
func New(o Options) *Rooms {
	if o.IdleAfter == 0 {
		o.IdleAfter = 5 * time.Minute
	}
	ctx, stop := context.WithCancel(context.Background())
	return &Rooms{store: o.Store, hub: o.Hub, signer: o.Signer, log: o.Log, idleAfter: o.IdleAfter, ctx: ctx, stop: stop, open: map[matrix.RoomID]*room{}}
}

// Close ends the owners of all rooms. What they have taken is carried out.
func (r *Rooms) Close() {
	r.stop()
	r.owners.Wait()
}

// do has the owner of a room run f, opening the room if need be.
func (r *Rooms) do(ctx context.Context, id matrix.RoomID, f func(*room)) error {
	for {
		rm, err := r.owner(id)
		if err != nil {
			return err
		}
		done := make(chan struct{})
		select {
		case rm.requests <- func(rm *room) { f(rm); close(done) }:
		case <-rm.gone:
			if rm.fault != nil {
				return rm.fault
			}
			continue
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-done:
			return nil
		case <-rm.gone: // both may have come about; fault is fixed now
			select {
			case <-done:
				return nil
			default:
			}
			if rm.fault != nil {
				return rm.fault
			}
		}
	}
}

func (r *Rooms) owner(id matrix.RoomID) (*room, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		return nil, r.ctx.Err()
	}
	rm := r.open[id]
	if rm == nil {
		rm = &room{rooms: r, id: id, requests: make(chan func(*room)), gone: make(chan struct{})}
		r.open[id] = rm
		r.owners.Go(rm.run)
	}
	return rm, nil
}

// close takes a room out of memory.
func (r *Rooms) close(rm *room) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open[rm.id] == rm {
		delete(r.open, rm.id)
	}
	close(rm.gone)
}

// SendOptions of Send.
type SendOptions struct {
	// Device and TxnID identify the request of a client: the same again returns the
	// first event's ID and stores nothing. No TxnID: every call is new.
	// Scope is the rest of what names the request: its path.
	Device matrix.DeviceID
	TxnID  string
	Scope  string
	// TS becomes origin_server_ts, in milliseconds since the Unix epoch; 0 is now.
	TS int64
	// Placed, if not nil, is called when the event has its place in the room, before
	// it is durable: what is sent from then on comes after it. It is not called for
	// an event that is refused, or was sent before.
	Placed func()
}

// txnKey is under which the transaction is remembered.
func (o SendOptions) txnKey() string { return o.Scope + " " + o.TxnID }

// Send builds, signs and stores an event from a local user, and returns its ID once
// it is durable.
//
// The same device and TxnID again returns the first ID and stores nothing
// (https://spec.matrix.org/v1.19/client-server-api/#transaction-identifiers).
//
// The error is a [*matrix.Error] with M_FORBIDDEN if a rule rejects the event,
// M_TOO_LARGE if it would exceed 65,536 bytes, M_BAD_JSON if the room version does
// not take its content, M_NOT_FOUND if there is no such room; any other is ours.
func (r *Rooms) Send(ctx context.Context, ev matrix.NewEvent, o SendOptions) (matrix.EventID, error) {
	if o.TxnID != "" {
		if id, err := r.store.Txn(ctx, ev.Sender, o.Device, o.txnKey()); err != nil || id != "" {
			return id, err
		}
	}
	redacts, err := r.redactionTarget(ctx, ev)
	if err != nil {
		return "", err
	}
	var sent *pending
	var refused error
	if err := r.do(ctx, ev.RoomID, func(rm *room) { sent, refused = rm.send(ev, o, redacts) }); err != nil {
		return "", r.notFound(ev.RoomID, err)
	}
	if refused != nil {
		return "", refused
	}
	if o.Placed != nil {
		o.Placed()
	}
	if err := sent.wait(); err != nil {
		if o.TxnID != "" { // another process may have sent it
			if id, again := r.store.Txn(ctx, ev.Sender, o.Device, o.txnKey()); again == nil && id != "" {
				return id, nil
			}
		}
		return "", fmt.Errorf("send to %s: %w", ev.RoomID, err)
	}
	return sent.event.ID, nil
}

func (r *Rooms) notFound(id matrix.RoomID, err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return matrix.NotFound("There is no room %s here", id)
	}
	return err
}

// redactionTarget reads the event that a redaction is about.
func (r *Rooms) redactionTarget(ctx context.Context, ev matrix.NewEvent) (*store.Event, error) {
	if ev.Type != matrix.TypeRedaction || ev.Redacts == "" {
		return nil, nil
	}
	target, err := r.store.Event(ctx, ev.Redacts)
	if errors.Is(err, store.ErrNotFound) || err == nil && target.RoomID != ev.RoomID {
		return nil, matrix.NotFound("There is no event %s in this room", ev.Redacts)
	}
	return target, err
}
