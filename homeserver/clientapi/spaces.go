package clientapi

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

const typeSpaceChild = "m.space.child"

func (a *api) spaceRoutes() []route {
	return []route{
		{"GET", "/v1/rooms/{roomID}/hierarchy", user, (*api).getHierarchy},
		{"GET", "/v1/room_summary/{room}", maybeUser, (*api).getRoomSummary},
	}
}

// Limits of a walk through a space.
const (
	maxHierarchy      = 1000 // rooms of a whole walk
	maxHierarchyPage  = 100
	maxHierarchyDepth = 10
)

// spaceRoom is a room in a hierarchy.
type spaceRoom struct {
	roomSummary
	Version  matrix.RoomVersion `json:"room_version,omitempty"`
	Allowed  []matrix.RoomID    `json:"allowed_room_ids,omitempty"`
	Children []matrix.Event     `json:"children_state"`
}

// getHierarchy: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidhierarchy
//
// A token is how many rooms of the walk, which is made anew, were told of already.
// Rooms of other servers that nobody here is in are left out.
func (a *api) getHierarchy(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	limit, err := r.intQuery("limit", 50, 1, maxHierarchyPage)
	if err != nil {
		return nil, err
	}
	depth, err := r.intQuery("max_depth", maxHierarchyDepth, 0, maxHierarchyDepth)
	if err != nil {
		return nil, err
	}
	start, err := r.intQuery("from", 0, 0, maxHierarchy)
	if err != nil {
		return nil, err
	}
	w := &walk{api: a, user: r.user, depth: depth, suggested: r.URL.Query().Get("suggested_only") == "true", most: min(start+limit+1, maxHierarchy), seen: map[matrix.RoomID]bool{}}
	if err := w.visit(r.Context(), room, 0); err != nil {
		return nil, err
	}
	if len(w.found) == 0 {
		return nil, matrix.Forbidden("You may not see this room, or there is none")
	}
	end := min(start+limit, len(w.found))
	out := map[string]any{"rooms": slices.Concat([]spaceRoom{}, w.found[min(start, end):end])}
	if end < len(w.found) {
		out["next_batch"] = strconv.Itoa(end)
	}
	return out, nil
}

// walk goes through a space, depth first.
type walk struct {
	api       *api
	user      matrix.UserID
	depth     int
	suggested bool
	most      int // rooms to find

	seen  map[matrix.RoomID]bool
	found []spaceRoom
}

func (w *walk) visit(ctx context.Context, room matrix.RoomID, depth int) error {
	if len(w.found) >= w.most || w.seen[room] {
		return nil
	}
	w.seen[room] = true
	s, err := w.api.spaceRoom(ctx, room, w.user)
	if err != nil || s == nil {
		return err
	}
	if s.RoomType == "m.space" {
		if err := w.api.children(ctx, s, w.suggested); err != nil {
			return err
		}
	}
	w.found = append(w.found, *s)
	if depth == w.depth {
		return nil
	}
	for _, e := range s.Children {
		child, err := matrix.ParseRoomID(*e.StateKey)
		if err != nil {
			continue
		}
		if err := w.visit(ctx, child, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// children fills in the valid m.space.child events, in the order that the
// specification gives.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#ordering-of-children-within-a-space
func (a *api) children(ctx context.Context, s *spaceRoom, suggested bool) error {
	list, err := a.Store.CurrentStateOf(ctx, s.Room, typeSpaceChild)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(e *store.Event) bool {
		return len(e.Get("via").Array()) == 0 || suggested && !e.Get("suggested").Bool()
	})
	slices.SortStableFunc(list, func(x, y *store.Event) int {
		ox, oy := childOrder(x), childOrder(y)
		if (ox == "") != (oy == "") { // those with an order come first
			return -cmp.Compare(ox, oy)
		}
		return cmp.Or(cmp.Compare(ox, oy), cmp.Compare(x.OriginServerTS, y.OriginServerTS), cmp.Compare(*x.StateKey, *y.StateKey))
	})
	for _, e := range list {
		s.Children = append(s.Children, matrix.Event{Type: e.Type, Sender: e.Sender, StateKey: e.StateKey, OriginServerTS: e.OriginServerTS, Content: e.Content})
	}
	return nil
}

// childOrder is "" for an order that is none.
func childOrder(e *store.Event) string {
	order := e.String("order")
	if len(order) > 50 {
		return ""
	}
	for i := range len(order) {
		if order[i] < 0x20 || order[i] > 0x7e {
			return ""
		}
	}
	return order
}

// spaceRoom is the summary of a room, nil if there is none that the user may see.
func (a *api) spaceRoom(ctx context.Context, room matrix.RoomID, u matrix.UserID) (*spaceRoom, error) {
	rules, err := a.Store.Rules(ctx, room)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := &spaceRoom{Version: rules.Version, Children: []matrix.Event{}}
	if s.roomSummary, err = a.summary(ctx, room); err != nil {
		return nil, err
	}
	if s.JoinRule == "" {
		s.JoinRule = "invite"
	}
	if s.Allowed, err = a.allowedRooms(ctx, room); err != nil {
		return nil, err
	}
	ok, err := a.accessible(ctx, s, u)
	if err != nil || !ok {
		return nil, err
	}
	return s, nil
}

// allowedRooms are those whose members may join a restricted room.
func (a *api) allowedRooms(ctx context.Context, room matrix.RoomID) (out []matrix.RoomID, err error) {
	rule, err := a.Store.CurrentStateKey(ctx, room, matrix.TypeJoinRules, "")
	if err != nil || rule == nil {
		return nil, err
	}
	if r := rule.String("join_rule"); r != "restricted" && r != "knock_restricted" {
		return nil, nil
	}
	for _, v := range rule.Get("allow").Array() {
		if v.Get("type").Str == "m.room_membership" {
			out = append(out, matrix.RoomID(v.Get("room_id").Str))
		}
	}
	return out, nil
}

// accessible reports whether a user may learn of a room: they are in it, invited,
// or could enter or read it. "" is somebody who is not known.
func (a *api) accessible(ctx context.Context, s *spaceRoom, u matrix.UserID) (bool, error) {
	switch s.JoinRule {
	case "public", "knock", "knock_restricted":
		return true, nil
	}
	if s.World {
		return true, nil
	}
	if u == "" {
		return false, nil
	}
	m, _, err := a.Store.MembershipOf(ctx, s.Room, u)
	if err != nil || m == matrix.Join || m == matrix.Invite {
		return err == nil, err
	}
	for _, via := range s.Allowed {
		if m, _, err := a.Store.MembershipOf(ctx, via, u); err != nil || m == matrix.Join {
			return err == nil, err
		}
	}
	return false, nil
}

// getRoomSummary: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1room_summaryroomidoralias
func (a *api) getRoomSummary(r *request) (any, error) {
	missing := matrix.NotFound("There is no such room, or you may not see it")
	room, err := matrix.ParseRoomID(r.PathValue("room"))
	if err != nil {
		if room, err = a.resolveAlias(r.Context(), r.PathValue("room")); err != nil {
			return nil, err
		}
	}
	s, err := a.spaceRoom(r.Context(), room, r.user)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, missing
	}
	out := struct {
		roomSummary
		Version    matrix.RoomVersion `json:"room_version,omitempty"`
		Allowed    []matrix.RoomID    `json:"allowed_room_ids,omitempty"`
		Membership string             `json:"membership,omitempty"`
	}{s.roomSummary, s.Version, s.Allowed, ""}
	if r.user != "" {
		if out.Membership, _, err = a.Store.MembershipOf(r.Context(), room, r.user); out.Membership == "" {
			out.Membership = matrix.Leave
		}
	}
	return out, err
}
