package rooms

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/eventauth"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

// room is a room in use. All fields but requests, gone and fault belong to its
// goroutine.
//
// What it holds runs ahead of the database: an event counts as soon as it is
// checked, so that the next can be checked while the first is being written. If a
// write fails, all after it fail too and the room is loaded anew.
type room struct {
	rooms    *Rooms
	id       matrix.RoomID
	requests chan func(*room)
	gone     chan struct{} // closed when the goroutine has ended
	fault    error         // why it could not be loaded; fixed before gone is closed

	rules       *roomversion.Rules
	state       eventauth.StateMap
	levels      *eventauth.Levels // of state, nil when to be worked out
	extremities []store.Extremity
	last        *pending            // the write that the next one builds on
	txns        map[txnKey]*pending // under way
}

type txnKey struct {
	user   matrix.UserID
	device matrix.DeviceID
	id     string
}

// run is the room's goroutine.
func (rm *room) run() {
	defer rm.rooms.close(rm)
	defer rm.settle()
	if rm.last == nil {
		if rm.fault = rm.load(); rm.fault != nil {
			return
		}
	}
	idle := time.NewTimer(rm.rooms.idleAfter)
	defer idle.Stop()
	for {
		select {
		case f := <-rm.requests:
			if rm.last.failed() {
				if rm.fault = rm.load(); rm.fault != nil {
					return
				}
			}
			f(rm)
			idle.Reset(rm.rooms.idleAfter)
		case <-idle.C:
			return
		case <-rm.rooms.ctx.Done():
			return
		}
	}
}

// settle waits for what is under way: the next owner is to find it in the database.
func (rm *room) settle() {
	if rm.last != nil {
		rm.last.settle()
	}
}

// load reads the room from the database.
func (rm *room) load() error {
	ctx, s := rm.rooms.ctx, rm.rooms.store
	rm.settle() // what is under way decides what there is to read
	var err error
	if rm.rules, err = s.Rules(ctx, rm.id); err != nil {
		return err
	}
	if rm.extremities, err = s.Extremities(ctx, rm.id); err != nil {
		return err
	}
	current, err := s.CurrentState(ctx, rm.id)
	if err != nil {
		return err
	}
	rm.state, rm.levels, rm.txns = make(eventauth.StateMap, len(current)), nil, map[txnKey]*pending{}
	numbers := store.StateMap{}
	newest := int64(0)
	for _, e := range current {
		rm.state[e.Key()] = e.PDU
		numbers[e.Key()] = e.Pos
		newest = max(newest, e.Pos)
	}
	chain, err := s.ChainOf(ctx, newest)
	if err != nil {
		return err
	}
	rm.last = settled(chain)
	return nil
}

// send checks an event against the room as it stands and has it written.
func (rm *room) send(ev matrix.NewEvent, o SendOptions, redacts *store.Event) (*pending, error) {
	key := txnKey{ev.Sender, o.Device, o.txnKey()}
	if o.TxnID != "" {
		if p := rm.txns[key]; p != nil && !p.failed() && (!p.committed.Load() || rm.noted(key)) {
			return p, nil
		}
	}
	if err := rm.mayRedact(ev.Sender, redacts); err != nil {
		return nil, err
	}
	e, err := rm.build(ev, o.TS)
	if err != nil {
		return nil, err
	}
	p := &pending{room: rm.rooms, event: e, prev: rm.last, txn: o, redacts: rm.effect(e, redacts)}
	rm.add(p)
	if o.TxnID != "" {
		rm.sweepTxns()
		rm.txns[key] = p
	}
	return p, nil
}

// noted reports whether the database knows of a transaction still: those of a device
// that has logged out are gone.
func (rm *room) noted(k txnKey) bool {
	id, err := rm.rooms.store.Txn(rm.rooms.ctx, k.user, k.device, k.id)
	return err != nil || id != ""
}

// add makes an event that was checked the room's newest and has it written.
func (rm *room) add(p *pending) {
	if p.event.IsState() {
		key := p.event.Key()
		p.replaces = rm.state[key] != nil
		rm.state[key] = p.event
		rm.levels = nil
	}
	rm.extremities = []store.Extremity{{ID: p.event.ID, Depth: p.event.Depth}}
	p.extremities = rm.extremities
	rm.last = p
	p.outcome = rm.rooms.store.Go(p.write)
}

// sweepTxns forgets those that are durable once there are many.
func (rm *room) sweepTxns() {
	if len(rm.txns) < 256 {
		return
	}
	for k, p := range rm.txns {
		if p.done() {
			delete(rm.txns, k)
		}
	}
}

// build makes the event and applies the authorisation rules.
func (rm *room) build(ev matrix.NewEvent, ts int64) (*pdu.PDU, error) {
	proto := &pdu.Proto{
		RoomID: rm.id, Type: ev.Type, Sender: ev.Sender, StateKey: ev.StateKey, Content: ev.Content,
		OriginServerTS: ts, Redacts: ev.Redacts,
	}
	if proto.OriginServerTS == 0 {
		proto.OriginServerTS = time.Now().UnixMilli()
	}
	if rm.rules.IDFormat == roomversion.IDInEvent {
		proto.ID = matrix.EventID("$" + rand.Text() + ":" + string(rm.rooms.signer.Server))
	}
	for _, x := range rm.extremities {
		proto.Depth = max(proto.Depth, x.Depth)
		ref, err := rm.ref(x.ID)
		if err != nil {
			return nil, err
		}
		proto.PrevEvents = append(proto.PrevEvents, ref)
	}
	proto.Depth = min(proto.Depth+1, rm.rules.MaxDepth())
	for _, k := range eventauth.NeededFor(rm.rules, ev.Type, ev.Sender, ev.StateKey, ev.Content) {
		if a := rm.state[k]; a != nil {
			ref := pdu.Ref{ID: a.ID}
			if rm.rules.EventRefsWithHashes {
				ref.Hash = a.ReferenceHash()
			}
			proto.AuthEvents = append(proto.AuthEvents, ref)
		}
	}
	e, err := proto.Build(rm.rules, rm.rooms.signer)
	if err != nil {
		return nil, refusal(err)
	}
	if err := eventauth.Allowed(e, rm.state); err != nil {
		return nil, refusal(err)
	}
	return e, nil
}

// ref names an event; room versions 1 and 2 want its hash too.
func (rm *room) ref(id matrix.EventID) (pdu.Ref, error) {
	if !rm.rules.EventRefsWithHashes {
		return pdu.Ref{ID: id}, nil
	}
	if rm.last != nil && rm.last.event != nil && rm.last.event.ID == id {
		return pdu.Ref{ID: id, Hash: rm.last.event.ReferenceHash()}, nil
	}
	e, err := rm.rooms.store.Event(rm.rooms.ctx, id)
	if err != nil {
		return pdu.Ref{}, err
	}
	return pdu.Ref{ID: id, Hash: e.ReferenceHash()}, nil
}

// refusal turns an error of the pure core into one for the client.
func refusal(err error) error {
	switch {
	case errors.Is(err, eventauth.ErrForbidden):
		return matrix.Forbidden("%s", errText(err, eventauth.ErrForbidden))
	case errors.Is(err, pdu.ErrTooLarge):
		return matrix.Errorf(http.StatusRequestEntityTooLarge, matrix.CodeTooLarge, "The event is too large")
	case errors.Is(err, pdu.ErrFormat):
		return matrix.BadJSON("%s", errText(err, pdu.ErrFormat))
	}
	return err
}

// errText is an error's text without the sentinel it starts with.
func errText(err, sentinel error) string {
	text := err.Error()
	if head := sentinel.Error() + ": "; len(text) > len(head) && text[:len(head)] == head {
		text = text[len(head):]
	}
	return text
}

// mayRedact refuses a user of ours who wants to redact what another has sent without
// the power for it. The authorisation rules leave that to each server.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#redactions
func (rm *room) mayRedact(user matrix.UserID, target *store.Event) error {
	if target == nil || target.Sender == user {
		return nil
	}
	levels, err := rm.powerLevels()
	if err == nil && levels.User(user) < levels.Redact {
		err = matrix.Forbidden("Redacting events of others needs power level %s", levels.Redact)
	}
	return err
}

// effect returns the event as a redaction leaves it, nil if it has no effect.
func (rm *room) effect(e *pdu.PDU, target *store.Event) *pdu.PDU {
	if target == nil || target.RedactedBy != "" {
		return nil
	}
	levels, err := rm.powerLevels()
	if err != nil || !eventauth.MayRedact(e, target.PDU, *levels) {
		return nil
	}
	redacted, err := target.Redacted()
	if err != nil {
		rm.rooms.log.Error("a stored event cannot be redacted", "event_id", target.ID, "err", err)
		return nil
	}
	if redacted.IsState() && rm.state[redacted.Key()] != nil && rm.state[redacted.Key()].ID == redacted.ID {
		rm.state[redacted.Key()], rm.levels = redacted, nil
	}
	return redacted
}

func (rm *room) powerLevels() (*eventauth.Levels, error) {
	if rm.levels == nil {
		create := rm.state.Get(matrix.TypeCreate, "")
		if create == nil {
			return nil, fmt.Errorf("room %s has no create event", rm.id)
		}
		l, err := eventauth.LevelsOf(create, rm.state.Get(matrix.TypePowerLevels, ""))
		if err != nil {
			return nil, err
		}
		rm.levels = &l
	}
	return rm.levels, nil
}
