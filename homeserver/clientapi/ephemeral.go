package clientapi

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

// Typing knows who types in which room. It is kept in memory only.
type Typing struct {
	hub *streams.Hub

	mu    sync.Mutex
	rooms map[matrix.RoomID]*typists // guarded by mu
}

type typists struct {
	serial int64 // of the last change
	until  map[matrix.UserID]*time.Timer
}

// NewTyping returns one in which nobody types.
func NewTyping(hub *streams.Hub) *Typing {
	return &Typing{hub: hub, rooms: map[matrix.RoomID]*typists{}}
}

// maxTyping is how long someone types without saying so again.
const maxTyping = 2 * time.Minute

// Set notes that a user types for so long, or has stopped with 0.
func (t *Typing) Set(room matrix.RoomID, user matrix.UserID, d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	who := t.rooms[room]
	if who == nil {
		if d <= 0 {
			return
		}
		who = &typists{until: map[matrix.UserID]*time.Timer{}}
		t.rooms[room] = who
	}
	timer, typed := who.until[user]
	if typed {
		timer.Stop()
	}
	if d > 0 {
		var expiry *time.Timer
		expiry = time.AfterFunc(min(d, maxTyping), func() {
			t.mu.Lock() // expiry is set once this is free
			defer t.mu.Unlock()
			t.expire(room, user, expiry)
		})
		who.until[user] = expiry
	} else {
		delete(who.until, user)
	}
	if typed != (d > 0) {
		who.serial = t.hub.NotifyTyping(room)
	}
}

// expire ends what a timer was set for. Its caller holds mu.
func (t *Typing) expire(room matrix.RoomID, user matrix.UserID, timer *time.Timer) {
	if who := t.rooms[room]; who != nil && who.until[user] == timer {
		delete(who.until, user)
		who.serial = t.hub.NotifyTyping(room)
	}
}

// Since returns who types in a room, and whether that has changed after the serial.
func (t *Typing) Since(room matrix.RoomID, serial int64) (users []matrix.UserID, changed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	who := t.rooms[room]
	if who == nil || who.serial <= serial {
		return nil, false
	}
	users = []matrix.UserID{}
	for u := range who.until {
		users = append(users, u)
	}
	slices.Sort(users)
	return users, true
}

// Changed returns the rooms in which who types has changed after the serial.
func (t *Typing) Changed(serial int64) (out []matrix.RoomID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for room, who := range t.rooms {
		if who.serial > serial {
			out = append(out, room)
		}
	}
	return out
}

func (a *api) ephemeralRoutes() []route {
	return []route{
		{"PUT", "/v3/rooms/{roomID}/typing/{userID}", user, (*api).putTyping},
		{"POST", "/v3/rooms/{roomID}/receipt/{type}/{eventID}", user, (*api).postReceipt},
		{"POST", "/v3/rooms/{roomID}/read_markers", user, (*api).postReadMarkers},
	}
}

// joined makes sure that the one who asks is in the room of the path.
func (r *request) joined() (matrix.RoomID, error) {
	room, err := r.roomID()
	if err != nil {
		return "", err
	}
	m, _, err := r.api.Store.MembershipOf(r.Context(), room, r.user)
	if err == nil && m != matrix.Join {
		err = matrix.Forbidden("You are not in the room")
	}
	return room, err
}

func (a *api) putTyping(r *request) (any, error) {
	var in struct {
		Typing  bool  `json:"typing"`
		Timeout int64 `json:"timeout"` // ms
	}
	if err := r.own(); err != nil {
		return nil, err
	}
	room, err := r.joined()
	if err != nil {
		return nil, err
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	d := time.Duration(0)
	if in.Typing {
		d = 30 * time.Second
		if in.Timeout > 0 {
			d = time.Duration(min(in.Timeout, maxTyping.Milliseconds())) * time.Millisecond
		}
	}
	a.Typing.Set(room, r.user, d)
	return empty, nil
}

func (a *api) postReceipt(r *request) (any, error) {
	var in struct {
		Thread *string `json:"thread_id"`
	}
	room, err := r.joined()
	if err != nil {
		return nil, err
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	thread := ""
	if in.Thread != nil {
		if thread = *in.Thread; thread == "" {
			return nil, matrix.InvalidParam("thread_id must not be empty")
		}
	}
	event := matrix.EventID(r.PathValue("eventID"))
	switch typ := r.PathValue("type"); typ {
	case "m.fully_read":
		if thread != "" {
			return nil, matrix.InvalidParam("m.fully_read has no thread")
		}
		return empty, a.setFullyRead(r, room, event)
	case "m.read", "m.read.private":
		return empty, a.putReceipt(r.Context(), room, store.Receipt{User: r.user, Type: typ, Thread: thread, Event: event, TS: time.Now().UnixMilli()})
	default:
		return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeInvalidParam, "Unknown receipt type %q", typ)
	}
}

func (a *api) putReceipt(ctx context.Context, room matrix.RoomID, receipt store.Receipt) error {
	return a.Store.Write(ctx, func(tx *sqldb.Tx) error {
		pos, err := a.Store.PutReceipt(tx, room, receipt)
		tx.OnCommit(func() { a.Hub.Notify(pos, []matrix.RoomID{room}, nil) })
		return err
	})
}

func (a *api) setFullyRead(r *request, room matrix.RoomID, event matrix.EventID) error {
	content, err := json.Marshal(map[string]matrix.EventID{"event_id": event})
	if err != nil {
		return err
	}
	return a.setAccountData(r, store.AccountData{Room: room, Type: "m.fully_read", Content: content})
}

func (a *api) postReadMarkers(r *request) (any, error) {
	var in struct {
		FullyRead matrix.EventID `json:"m.fully_read"`
		Read      matrix.EventID `json:"m.read"`
		Private   matrix.EventID `json:"m.read.private"`
	}
	room, err := r.joined()
	if err != nil {
		return nil, err
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if in.FullyRead != "" {
		if err := a.setFullyRead(r, room, in.FullyRead); err != nil {
			return nil, err
		}
	}
	for typ, event := range map[string]matrix.EventID{"m.read": in.Read, "m.read.private": in.Private} {
		if event == "" {
			continue
		}
		if err := a.putReceipt(r.Context(), room, store.Receipt{User: r.user, Type: typ, Event: event, TS: time.Now().UnixMilli()}); err != nil {
			return nil, err
		}
	}
	return empty, nil
}
