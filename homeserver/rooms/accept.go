package rooms

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

// errDependency fails a write whose predecessor was not written.
var errDependency = errors.New("an earlier event of the room could not be stored")

// pending is an event on its way into the database.
type pending struct {
	room        *Rooms
	event       *pdu.PDU
	prev        *pending // of the same room; nil once both are durable
	txn         SendOptions
	redacts     *pdu.PDU // the redacted form of what the event redacts, if it does
	replaces    bool     // the state key had an event before
	extremities []store.Extremity
	newRoom     bool
	outcome     func() error

	// Of the last attempt to write, which the database's writer makes; read by the
	// writer when it writes the next one.
	tx    *sqldb.Tx
	chain store.Chain // of the state after the event

	once      sync.Once
	committed atomic.Bool
	lost      atomic.Bool
	err       error // fixed when once is done
}

// settled stands for what is in the database already.
func settled(c store.Chain) *pending {
	p := &pending{chain: c, outcome: func() error { return nil }}
	p.committed.Store(true)
	return p
}

// settle waits for the outcome, once.
func (p *pending) settle() {
	p.once.Do(func() {
		if p.err = p.outcome(); p.err != nil {
			p.lost.Store(true)
		}
	})
}

// wait returns once the event is durable, or cannot be.
func (p *pending) wait() error {
	p.settle()
	return p.err
}

func (p *pending) done() bool   { return p.committed.Load() || p.lost.Load() }
func (p *pending) failed() bool { return p.lost.Load() }

// write is accept: it stores the event, what it changes, and its stream position in
// one transaction. It may run more than once.
func (p *pending) write(tx *sqldb.Tx) error {
	if !p.prev.committed.Load() && p.prev.tx != tx {
		p.lost.Store(true)
		return errDependency
	}
	p.tx = tx
	s := p.room.store
	pos, err := tx.NextPos(1)
	if err != nil {
		return err
	}
	e := store.NewEvent{PDU: p.event, Pos: pos, Snapshot: p.prev.chain.ID(), TxnID: p.txn.TxnID, TxnDevice: p.txn.Device}
	if p.newRoom {
		if err := s.InsertRoom(tx, p.event.RoomID, p.event.Rules.Version, p.event.Sender, time.Now().UnixMilli()); err != nil {
			return err
		}
	}
	s.InsertEvent(tx, e)
	if p.txn.TxnID != "" {
		s.InsertTxn(tx, p.event.Sender, p.txn.Device, p.txn.txnKey(), p.event.ID, p.event.OriginServerTS)
	}
	p.chain = p.prev.chain
	if p.event.IsState() {
		s.SetState(tx, e, p.prev.chain.At(p.event.Key()))
		p.chain = p.prev.chain.Next(pos, p.event.Key())
		s.InsertSnapshot(tx, p.event.RoomID, p.chain)
	}
	s.SetExtremities(tx, p.event.RoomID, p.extremities)
	if p.redacts != nil {
		if err := s.Redact(tx, p.redacts, p.event.ID); err != nil {
			return err
		}
	}
	tx.OnCommit(func() {
		p.committed.Store(true)
		p.prev = nil
		p.room.hub.Notify(pos, []matrix.RoomID{p.event.RoomID}, p.concerned())
	})
	return nil
}

// concerned are users who are told of the event though they may not be in the room.
func (p *pending) concerned() []matrix.UserID {
	if p.event.IsState() && p.event.Type == matrix.TypeMember {
		return []matrix.UserID{matrix.UserID(*p.event.StateKey)}
	}
	return nil
}
