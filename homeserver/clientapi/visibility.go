package clientapi

import (
	"context"
	"slices"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

// viewer decides which events of a room a user may see.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#room-history-visibility
type viewer struct {
	store *store.Store
	room  matrix.RoomID
	user  matrix.UserID

	membership string    // now
	member     store.Pos // of the event that made it so
	history    []store.Membership
	until      store.Pos // of the event by which the user left; 0 while joined
	never      bool      // the user was never joined
	open       bool      // all of the history was always for members
	world      bool      // everybody may read what is said now
	seen       map[int64]viewAt
}

type viewAt struct{ visibility, membership string }

// viewer returns what decides for a user of a room. The error is M_FORBIDDEN for
// those who may see nothing of it, M_NOT_FOUND never: who may not see a room may
// not learn whether it exists.
func (a *api) viewer(ctx context.Context, room matrix.RoomID, user matrix.UserID) (*viewer, error) {
	membership, pos, err := a.Store.MembershipOf(ctx, room, user)
	if err != nil {
		return nil, err
	}
	if membership == matrix.Leave || membership == matrix.Ban {
		forgotten, err := a.Store.Forgotten(ctx, user)
		if err != nil {
			return nil, err
		}
		if forgotten[room] {
			return nil, matrix.Forbidden("You have forgotten the room")
		}
	}
	return a.viewerAs(ctx, store.Membership{Room: room, User: user, Membership: membership, Pos: pos})
}

// viewerAs is viewer for a user whose membership is known.
func (a *api) viewerAs(ctx context.Context, m store.Membership) (*viewer, error) {
	room, user, pos := m.Room, m.User, m.Pos
	v := &viewer{store: a.Store, room: room, user: user, membership: m.Membership, member: pos, seen: map[int64]viewAt{}}
	now, err := a.Store.Visibility(ctx, room)
	if err != nil {
		return nil, err
	}
	v.world = now.Value == "world_readable"
	switch m.Membership {
	case matrix.Join:
		v.open = now.Always && (now.Value == "shared" || now.Value == "world_readable")
		return v, nil
	case matrix.Leave, matrix.Ban:
		return v, v.left(ctx, pos)
	}
	if !v.world {
		return nil, matrix.Forbidden("You are not in the room")
	}
	return v, nil
}

// left finds out when the user left, or that they were invited at most.
func (v *viewer) left(ctx context.Context, pos store.Pos) error {
	history, err := v.store.MembershipHistory(ctx, v.room, v.user)
	v.until, v.never = pos, true
	for i, m := range history {
		if m.Membership == matrix.Join && i+1 < len(history) {
			v.never, v.until = false, history[i+1].Pos
		}
	}
	return err
}

// outside reports whether the user may not see the state of the room at any time:
// they were never joined, and not everybody may read it.
func (v *viewer) outside() bool { return v.never && !v.world }

// stateUpTo is the last position, at most pos, whose state the user may see.
func (v *viewer) stateUpTo(pos store.Pos) store.Pos {
	if v.until > 0 {
		return min(pos, v.until)
	}
	return pos
}

// own keeps of a state what is shown to those outside: their own membership.
func (v *viewer) own(state []*store.Event) []*store.Event {
	return slices.DeleteFunc(state, func(e *store.Event) bool { return !e.Is(matrix.TypeMember, string(v.user)) })
}

// sees reports whether the user may see an event.
func (v *viewer) sees(ctx context.Context, e *store.Event) (bool, error) {
	if v.until > 0 && e.Pos > v.until && !e.Is(matrix.TypeMember, string(v.user)) {
		at, err := v.at(ctx, e)
		return at.visibility == "world_readable", err
	}
	if v.open || e.Is(matrix.TypeMember, string(v.user)) {
		return true, nil
	}
	at, err := v.at(ctx, e)
	if err != nil {
		return false, err
	}
	switch at.visibility {
	case "world_readable":
		return true, nil
	case "joined":
		return at.membership == matrix.Join, nil
	case "invited":
		return at.membership == matrix.Join || at.membership == matrix.Invite, nil
	}
	// shared: members of now, and those who were members then.
	return v.membership == matrix.Join || at.membership == matrix.Join || v.until > 0 && !v.never, nil
}

func (v *viewer) at(ctx context.Context, e *store.Event) (viewAt, error) {
	if at, ok := v.seen[e.Snapshot]; ok {
		return at, nil
	}
	at := viewAt{visibility: "shared", membership: matrix.Leave}
	hv, err := v.store.StateAtKey(ctx, e.Snapshot, matrix.TypeHistoryVisibility, "")
	if err != nil {
		return at, err
	}
	if hv != nil {
		at.visibility = hv.String("history_visibility")
	}
	m, err := v.store.StateAtKey(ctx, e.Snapshot, matrix.TypeMember, string(v.user))
	if err != nil {
		return at, err
	}
	if m != nil {
		at.membership = m.Membership()
	}
	v.seen[e.Snapshot] = at
	return at, nil
}

// filter keeps the events that the user may see.
func (v *viewer) filter(ctx context.Context, events []*store.Event) ([]*store.Event, error) {
	if v.open && v.until == 0 {
		return events, nil
	}
	kept := events[:0:0]
	for _, e := range events {
		ok, err := v.sees(ctx, e)
		if err != nil {
			return nil, err
		}
		if ok {
			kept = append(kept, e)
		}
	}
	return kept, nil
}

// memberships returns what the user was in the room at each of some events, the
// event itself counted.
func (v *viewer) memberships(ctx context.Context, events []*store.Event) (out []string, err error) {
	for _, e := range events {
		if e.Pos >= v.member {
			out = append(out, v.membership)
			continue
		}
		if v.history == nil {
			if v.history, err = v.store.MembershipHistory(ctx, v.room, v.user); err != nil {
				return nil, err
			}
		}
		was := matrix.Leave
		for _, m := range v.history {
			if m.Pos <= e.Pos {
				was = m.Membership
			}
		}
		out = append(out, was)
	}
	return out, nil
}

// timelineEvents is clientEvents for events of a room's history, which tell what
// the user was in the room at the time.
func (a *api) timelineEvents(ctx context.Context, r *request, v *viewer, events []*store.Event, inRoom bool) ([]matrix.Event, error) {
	was, err := v.memberships(ctx, events)
	if err != nil {
		return nil, err
	}
	return a.printEvents(ctx, r, v, events, was, inRoom)
}

// clientEvents prints state for a user.
func (a *api) clientEvents(ctx context.Context, r *request, events []*store.Event, inRoom bool) ([]matrix.Event, error) {
	return a.printEvents(ctx, r, nil, events, nil, inRoom)
}

// printEvents prints events for a user: with age, the transaction ID for the
// device that sent them, what state they replaced, and why they were redacted.
//
// v, if not nil, may know less: those outside not what an event replaced, those who have
// left not of redactions since.
func (a *api) printEvents(ctx context.Context, r *request, v *viewer, events []*store.Event, memberships []string, inRoom bool) ([]matrix.Event, error) {
	out := make([]matrix.Event, 0, len(events))
	if len(events) == 0 {
		return out, nil
	}
	var states []store.Pos
	for _, e := range events {
		if e.IsState() && (v == nil || !v.outside()) {
			states = append(states, e.Pos)
		}
	}
	replaced := map[store.Pos]*store.Event{}
	previous := map[store.Pos]store.Pos{}
	if len(states) > 0 {
		var err error
		if previous, err = a.Store.Previous(ctx, events[0].RoomID, states); err != nil {
			return nil, err
		}
		var numbers []store.Pos
		for _, p := range previous {
			if p > 0 {
				numbers = append(numbers, p)
			}
		}
		if len(numbers) > 0 {
			if replaced, err = a.Store.EventsByPos(ctx, numbers); err != nil {
				return nil, err
			}
		}
	}
	for i, e := range events {
		ev := e.ClientEvent()
		if inRoom {
			ev.RoomID = ""
		}
		u := newUnsigned(e, r)
		if memberships != nil {
			u.Membership = memberships[i]
		}
		if before := replaced[previous[e.Pos]]; before != nil {
			u.PrevContent, u.PrevSender, u.ReplacesState = before.Content, before.Sender, before.ID
		}
		if e.RedactedBy != "" {
			if by, err := a.Store.Event(ctx, e.RedactedBy); err == nil && (v == nil || v.stateUpTo(by.Pos) == by.Pos) {
				b := by.ClientEvent()
				u.RedactedBecause = &b
			}
		}
		ev.Unsigned = u.encode()
		out = append(out, ev)
	}
	return out, nil
}
