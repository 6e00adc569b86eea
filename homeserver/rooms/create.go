package rooms

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/eventauth"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

// CreateRequest asks for a new room.
type CreateRequest struct {
	Creator matrix.UserID
	Version matrix.RoomVersion // "" is the default
	// Content of m.room.create; room_version and, where the version wants it,
	// creator are filled in.
	Content map[string]json.RawMessage
	TS      int64 // milliseconds since the Unix epoch; 0 is now
	// Events returns what follows m.room.create, in order, once the room's ID is known.
	Events func(matrix.RoomID) ([]matrix.NewEvent, error)
}

// Create makes a room with its first events, all or none of them.
//
// The error is a [*matrix.Error] with M_UNSUPPORTED_ROOM_VERSION, or one of Send's.
func (r *Rooms) Create(ctx context.Context, req CreateRequest) (matrix.RoomID, error) {
	if req.Version == "" {
		req.Version = roomversion.Default
	}
	rules, ok := roomversion.Get(req.Version)
	if !ok {
		return "", matrix.Errorf(http.StatusBadRequest, matrix.CodeUnsupportedRoomVersion, "This server does not know room version %q", req.Version)
	}
	create, err := r.buildCreate(rules, req)
	if err != nil {
		return "", err
	}
	events, err := req.Events(create.RoomID)
	if err != nil {
		return "", err
	}
	// Until it is written nobody knows the room, so it needs no goroutine.
	rm := &room{rooms: r, id: create.RoomID, rules: rules, state: eventauth.StateMap{}, last: settled(nil), txns: map[txnKey]*pending{}}
	var plan []*pending
	plan = append(plan, rm.plan(&pending{room: r, event: create, newRoom: true}))
	for _, ev := range events {
		ev.RoomID = create.RoomID
		e, err := rm.build(ev, req.TS)
		if err != nil {
			return "", err
		}
		plan = append(plan, rm.plan(&pending{room: r, event: e}))
	}
	err = r.store.Go(func(tx *sqldb.Tx) error {
		for _, p := range plan {
			if err := p.write(tx); err != nil {
				return err
			}
		}
		return nil
	})()
	if err != nil {
		return "", fmt.Errorf("create room: %w", err)
	}
	return create.RoomID, nil
}

// plan makes an event the room's newest without writing it yet.
func (rm *room) plan(p *pending) *pending {
	p.prev = rm.last
	if p.event.IsState() {
		rm.state[p.event.Key()] = p.event
	}
	rm.extremities = []store.Extremity{{ID: p.event.ID, Depth: p.event.Depth}}
	p.extremities = rm.extremities
	rm.last = p
	return p
}

func (r *Rooms) buildCreate(rules *roomversion.Rules, req CreateRequest) (*pdu.PDU, error) {
	content := map[string]any{}
	for k, v := range req.Content {
		content[k] = v
	}
	content["room_version"] = req.Version
	delete(content, "creator")
	if !rules.ImplicitCreator {
		content["creator"] = req.Creator
	}
	b, err := json.Marshal(content)
	if err != nil {
		return nil, err
	}
	empty := ""
	proto := &pdu.Proto{Type: matrix.TypeCreate, Sender: req.Creator, StateKey: &empty, Content: b, Depth: 1, OriginServerTS: req.TS}
	if proto.OriginServerTS == 0 {
		proto.OriginServerTS = r.creationTime()
	}
	if !rules.RoomIDIsCreateHash {
		proto.RoomID = matrix.RoomID("!" + rand.Text()[:18] + ":" + string(r.signer.Server))
	}
	if rules.IDFormat == roomversion.IDInEvent {
		proto.ID = matrix.EventID("$" + rand.Text() + ":" + string(r.signer.Server))
	}
	e, err := proto.Build(rules, r.signer)
	if err != nil {
		return nil, refusal(err)
	}
	if err := eventauth.Allowed(e, eventauth.StateMap{}); err != nil {
		if errors.Is(err, eventauth.ErrForbidden) {
			return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeBadJSON, "%s", errText(err, eventauth.ErrForbidden))
		}
		return nil, err
	}
	return e, nil
}

// creationTime is now, or as little later as makes it differ from that of the last
// room: where a room's ID is the hash of its create event, two that a user makes in
// the same millisecond would be one.
func (r *Rooms) creationTime() int64 {
	for {
		last := r.created.Load()
		ts := max(time.Now().UnixMilli(), last+1)
		if r.created.CompareAndSwap(last, ts) {
			return ts
		}
	}
}
