package asapi

import (
	"context"
	"time"

	"github.com/tidwall/gjson"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

// Bounds of what an interest remembers; it forgets all at once beyond them.
const (
	maxRooms = 50_000
	maxUsers = 200_000
)

// aliasesFor is how long a new alias may go unnoticed in a room that a service has
// no other interest in.
const aliasesFor = 2 * time.Second

// interest decides which events concern a service. It is fed the events in order
// and knows of each room it was asked about which of the service's users are in it.
// It belongs to one goroutine.
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/#pushing-events
type interest struct {
	store *store.Store
	s     *Service

	users   map[matrix.UserID]bool // whether the service owns them
	rooms   map[matrix.RoomID]*roomInterest
	aliased map[matrix.RoomID]bool // rooms with an alias in the service's namespaces
	looked  time.Time              // when aliased was read
}

type roomInterest struct {
	always  bool // the room's ID is in the service's namespaces
	members map[matrix.UserID]struct{}
}

func newInterest(st *store.Store, s *Service) *interest {
	i := &interest{store: st, s: s}
	i.reset()
	return i
}

// reset forgets all, to start anew from any position.
func (i *interest) reset() {
	i.users, i.rooms, i.aliased, i.looked = map[matrix.UserID]bool{}, map[matrix.RoomID]*roomInterest{}, nil, time.Time{}
}

func (i *interest) owns(u matrix.UserID) bool {
	own, known := i.users[u]
	if !known {
		if len(i.users) >= maxUsers {
			clear(i.users)
		}
		own = i.s.OwnsUser(u)
		i.users[u] = own
	}
	return own
}

// event reports whether an event is of interest. It must be called for every event
// of the stream.
func (i *interest) event(ctx context.Context, h *store.Header) (bool, error) {
	target := h.StateKey != nil && *h.StateKey != "" && i.owns(matrix.UserID(*h.StateKey))
	if target && h.Type == matrix.TypeMember {
		if r := i.rooms[h.Room]; r != nil {
			r.note(matrix.UserID(*h.StateKey), gjson.GetBytes(h.JSON(), "content.membership").Str)
		}
	}
	if target || i.owns(h.Sender) {
		return true, nil
	}
	return i.room(ctx, h.Room, h.Pos)
}

func (r *roomInterest) note(u matrix.UserID, membership string) {
	if membership == matrix.Join {
		r.members[u] = struct{}{}
	} else {
		delete(r.members, u)
	}
}

// room reports whether all that happens in a room is of interest, as of a position.
func (i *interest) room(ctx context.Context, id matrix.RoomID, pos int64) (bool, error) {
	r := i.rooms[id]
	if r == nil {
		var err error
		if r, err = i.load(ctx, id, pos); err != nil {
			return false, err
		}
	}
	if r.always || len(r.members) > 0 {
		return true, nil
	}
	return i.hasAlias(ctx, id)
}

func (i *interest) load(ctx context.Context, id matrix.RoomID, pos int64) (*roomInterest, error) {
	r := &roomInterest{always: i.s.OwnsRoom(id), members: map[matrix.UserID]struct{}{}}
	if !r.always { // members come and go, the ID stays
		joined, err := i.store.JoinedAt(ctx, id, pos)
		if err != nil {
			return nil, err
		}
		for _, u := range joined {
			if i.owns(u) {
				r.members[u] = struct{}{}
			}
		}
	}
	if len(i.rooms) >= maxRooms {
		clear(i.rooms)
	}
	i.rooms[id] = r
	return r, nil
}

// hasAlias looks for aliases in a list that is read again from time to time: they
// have no place in the stream.
func (i *interest) hasAlias(ctx context.Context, id matrix.RoomID) (bool, error) {
	if len(i.s.aliases) == 0 {
		return false, nil
	}
	if i.aliased == nil || time.Since(i.looked) > aliasesFor {
		found := map[matrix.RoomID]bool{}
		err := i.store.AllAliases(ctx, func(a matrix.RoomAlias, r matrix.RoomID) {
			if i.s.OwnsAlias(a) {
				found[r] = true
			}
		})
		if err != nil {
			return false, err
		}
		i.aliased, i.looked = found, time.Now()
	}
	return i.aliased[id], nil
}

// presence reports whether a user's presence is of interest: it is where their
// messages would be.
func (i *interest) presence(ctx context.Context, u matrix.UserID, pos int64) (bool, error) {
	if i.owns(u) {
		return true, nil
	}
	list, err := i.store.MembershipsOf(ctx, u)
	if err != nil {
		return false, err
	}
	for _, m := range list {
		if m.Membership != matrix.Join {
			continue
		}
		if ok, err := i.room(ctx, m.Room, pos); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}
