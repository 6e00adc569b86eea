package clientapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/gjallar-im/gjallar/homeserver/canonicaljson"
	"github.com/gjallar-im/gjallar/homeserver/eventauth"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/rooms"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

func (a *api) roomRoutes() []route {
	return []route{
		{"POST", "/v3/createRoom", user, (*api).postCreateRoom},
		{"POST", "/v3/join/{room}", user, (*api).postJoin},
		{"POST", "/v3/rooms/{room}/join", user, (*api).postJoin},
		{"POST", "/v3/knock/{room}", user, (*api).postKnock},
		{"POST", "/v3/rooms/{roomID}/invite", user, (*api).postInvite},
		{"POST", "/v3/rooms/{roomID}/leave", user, (*api).postLeave},
		{"POST", "/v3/rooms/{roomID}/forget", user, (*api).postForget},
		{"POST", "/v3/rooms/{roomID}/kick", user, (*api).postKick},
		{"POST", "/v3/rooms/{roomID}/ban", user, (*api).postBan},
		{"POST", "/v3/rooms/{roomID}/unban", user, (*api).postUnban},
		{"PUT", "/v3/rooms/{roomID}/send/{eventType}/{txnID}", user, (*api).putRoomSend},
		{"PUT", "/v3/rooms/{roomID}/redact/{eventID}/{txnID}", user, (*api).putRoomRedact},
		{"GET", "/v3/rooms/{roomID}/state", user, (*api).getRoomState},
		{"GET", "/v3/rooms/{roomID}/state/{eventType}", user, (*api).getRoomStateKey},
		{"GET", "/v3/rooms/{roomID}/state/{eventType}/{stateKey...}", user, (*api).getRoomStateKey},
		{"PUT", "/v3/rooms/{roomID}/state/{eventType}", user, (*api).putRoomState},
		{"PUT", "/v3/rooms/{roomID}/state/{eventType}/{stateKey...}", user, (*api).putRoomState},
		{"GET", "/v3/rooms/{roomID}/members", user, (*api).getMembers},
		{"GET", "/v3/rooms/{roomID}/joined_members", user, (*api).getJoinedMembers},
		{"GET", "/v3/joined_rooms", user, (*api).getJoinedRooms},
		{"GET", "/v3/rooms/{roomID}/messages", user, (*api).getMessages},
		{"GET", "/v3/rooms/{roomID}/event/{eventID}", user, (*api).getRoomEvent},
		{"GET", "/v3/rooms/{roomID}/context/{eventID}", user, (*api).getContext},
		{"GET", "/v3/rooms/{roomID}/aliases", user, (*api).getRoomAliases},
		{"GET", "/v3/directory/room/{alias}", anyone, (*api).getAlias},
		{"PUT", "/v3/directory/room/{alias}", user, (*api).putAlias},
		{"DELETE", "/v3/directory/room/{alias}", user, (*api).deleteAlias},
		{"GET", "/v3/directory/list/room/{roomID}", anyone, (*api).getPublished},
		{"PUT", "/v3/directory/list/room/{roomID}", user, (*api).putPublished},
		{"PUT", "/v3/directory/list/appservice/{network}/{roomID}", service, (*api).putServicePublished},
		{"GET", "/v3/publicRooms", anyone, (*api).getPublicRooms},
		{"POST", "/v3/publicRooms", user, (*api).postPublicRooms},
	}
}

// send sends an event as the one who asks.
func (r *request) send(room matrix.RoomID, typ string, stateKey *string, content json.RawMessage, o rooms.SendOptions) (matrix.EventID, error) {
	if err := r.limitSends(); err != nil {
		return "", err
	}
	o.Device, o.TS = r.device, r.ts
	return r.api.Rooms.Send(r.Context(), matrix.NewEvent{RoomID: room, Type: typ, Sender: r.user, StateKey: stateKey, Content: content}, o)
}

func (a *api) putRoomSend(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	content, err := r.object()
	if err != nil {
		return nil, err
	}
	if err := r.limitSends(); err != nil {
		return nil, err
	}
	ev := matrix.NewEvent{RoomID: room, Type: r.PathValue("eventType"), Sender: r.user, Content: content}
	if ev.Type == matrix.TypeRedaction {
		ev.Redacts = matrix.EventID(gjson.GetBytes(content, "redacts").Str)
	}
	id, err := a.Rooms.Send(r.Context(), ev, rooms.SendOptions{Placed: r.placed(), Device: r.device, Scope: "send " + string(room) + " " + ev.Type, TxnID: r.PathValue("txnID"), TS: r.ts})
	return map[string]matrix.EventID{"event_id": id}, err
}

// placed tells an application service that asks for it ("Prefer: processing"), by the
// informational response 102, that its event has its place in the room: what it sends
// from then on comes after that. So it can have many events under way, in order.
func (r *request) placed() func() {
	if r.service == nil || r.Header.Get("Prefer") != "processing" {
		return nil
	}
	return func() { r.w.WriteHeader(http.StatusProcessing) }
}

func (a *api) putRoomRedact(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	content, err := r.objectOrNothing()
	if err != nil {
		return nil, err
	}
	ev := matrix.NewEvent{RoomID: room, Type: matrix.TypeRedaction, Sender: r.user, Content: content, Redacts: matrix.EventID(r.PathValue("eventID"))}
	if err := a.mayRedact(r, ev); err != nil {
		return nil, err
	}
	id, err := a.Rooms.Send(r.Context(), ev, rooms.SendOptions{Device: r.device, Scope: "redact " + string(room) + " " + string(ev.Redacts), TxnID: r.PathValue("txnID"), TS: r.ts})
	return map[string]matrix.EventID{"event_id": id}, err
}

// mayRedact refuses redactions that would have no effect.
func (a *api) mayRedact(r *request, ev matrix.NewEvent) error {
	target, err := a.Store.Event(r.Context(), ev.Redacts)
	if errors.Is(err, store.ErrNotFound) || err == nil && target.RoomID != ev.RoomID {
		return matrix.NotFound("There is no such event in this room")
	}
	if err != nil || target.Sender == r.user {
		return err
	}
	levels, err := a.levels(r.Context(), ev.RoomID)
	if err == nil && levels.User(r.user) < levels.Redact {
		err = matrix.Forbidden("Redacting events of others needs power level %s", levels.Redact)
	}
	return err
}

// levels are the power levels of a room.
func (a *api) levels(ctx context.Context, room matrix.RoomID) (*eventauth.Levels, error) {
	list, err := a.Store.CurrentStateOf(ctx, room, matrix.TypeCreate, matrix.TypePowerLevels)
	if err != nil {
		return nil, err
	}
	m := eventauth.StateMap{}
	for _, e := range list {
		m[e.Key()] = e.PDU
	}
	create := m.Get(matrix.TypeCreate, "")
	if create == nil {
		return nil, matrix.NotFound("There is no such room here")
	}
	l, err := eventauth.LevelsOf(create, m.Get(matrix.TypePowerLevels, ""))
	return &l, err
}

func stateKeyOf(r *request) string { return strings.TrimSuffix(r.PathValue("stateKey"), "/") }

func (a *api) putRoomState(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	content, err := r.object()
	if err != nil {
		return nil, err
	}
	typ, key := r.PathValue("eventType"), stateKeyOf(r)
	if typ == matrix.TypeCanonicalAlias {
		if err := a.checkCanonicalAlias(r.Context(), room, content); err != nil {
			return nil, err
		}
	}
	if typ == matrix.TypeMember {
		if content, err = a.ownJoin(r, room, content); err != nil {
			return nil, err
		}
	}
	if current, err := a.Store.CurrentStateKey(r.Context(), room, typ, key); err == nil && current != nil && current.Sender == r.user && r.ts == 0 && sameJSON(current.Content, content) {
		return map[string]matrix.EventID{"event_id": current.ID}, nil
	}
	id, err := r.send(room, typ, &key, content, rooms.SendOptions{})
	return map[string]matrix.EventID{"event_id": id}, err
}

// ownJoin has the server say who authorises a join, as with POST /join: we sign for all
// users here, so nobody may name another who has not been asked.
func (a *api) ownJoin(r *request, room matrix.RoomID, content []byte) ([]byte, error) {
	if gjson.GetBytes(content, "membership").Str != matrix.Join {
		return content, nil
	}
	membership, _, err := a.Store.MembershipOf(r.Context(), room, r.user)
	if err != nil || membership == matrix.Join {
		return content, err
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(content, &m); err != nil {
		return nil, matrix.BadJSON("%s", err)
	}
	delete(m, authorisedVia)
	if membership != matrix.Invite {
		via, err := a.authorisedVia(r.Context(), room, r.user)
		if err != nil {
			return nil, err
		}
		if u, ok := via[authorisedVia]; ok {
			if m[authorisedVia], err = json.Marshal(u); err != nil {
				return nil, err
			}
		}
	}
	return json.Marshal(m)
}

// sameJSON reports whether b says what canonical does, which is canonical JSON.
func sameJSON(canonical, b []byte) bool {
	c, err := canonicaljson.Canonical(b)
	return err == nil && bytes.Equal(canonical, c)
}

// checkCanonicalAlias makes sure that what a room claims to be called it is called.
func (a *api) checkCanonicalAlias(ctx context.Context, room matrix.RoomID, content []byte) error {
	known := map[string]bool{}
	if old, err := a.Store.CurrentStateKey(ctx, room, matrix.TypeCanonicalAlias, ""); err == nil && old != nil {
		known[old.String("alias")] = true
		for _, v := range old.Get("alt_aliases").Array() {
			known[v.Str] = true
		}
	}
	list := gjson.GetBytes(content, "alt_aliases").Array()
	if main := gjson.GetBytes(content, "alias"); main.Exists() && main.Str != "" {
		list = append(list, main)
	}
	for _, v := range list {
		alias, err := matrix.ParseRoomAlias(v.Str)
		if err != nil {
			return matrix.InvalidParam("%q is not a room alias", v.Str)
		}
		if known[v.Str] {
			continue
		}
		if is, _, err := a.Store.Alias(ctx, alias); err != nil || is != room {
			return matrix.Errorf(http.StatusBadRequest, "M_BAD_ALIAS", "%s is not an alias of this room", alias)
		}
	}
	return nil
}

func (a *api) getRoomState(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	list, err := a.stateFor(r, room)
	if err != nil {
		return nil, err
	}
	return a.clientEvents(r.Context(), r, list, false)
}

// stateFor is the state of a room that one who asks may see: that of now, or for
// those who have left, that of when they did.
func (a *api) stateFor(r *request, room matrix.RoomID) ([]*store.Event, error) {
	v, err := a.stateViewer(r, room)
	if err != nil {
		return nil, err
	}
	if v.until == 0 {
		return a.Store.CurrentState(r.Context(), room)
	}
	return a.stateAfter(r.Context(), v.until)
}

// stateViewer is viewer for someone who asks for state. The error is M_FORBIDDEN for
// those who were never joined, too.
func (a *api) stateViewer(r *request, room matrix.RoomID) (*viewer, error) {
	v, err := a.viewer(r.Context(), room, r.user)
	if err == nil && v.outside() {
		return nil, matrix.Forbidden("You were never in the room")
	}
	return v, err
}

// stateAfter is the state of the room after an event.
func (a *api) stateAfter(ctx context.Context, pos store.Pos) ([]*store.Event, error) {
	m, err := a.Store.EventsByPos(ctx, []store.Pos{pos})
	if err != nil || m[pos] == nil {
		return nil, err
	}
	snapshot := m[pos].Snapshot
	if m[pos].IsState() {
		snapshot = pos
	}
	return a.stateAt(ctx, snapshot)
}

// stateAtToken is the state of a room at a place in the stream, or if that is too new
// for the one who asks, at the last place that is not.
func (a *api) stateAtToken(ctx context.Context, v *viewer, token string) ([]*store.Event, error) {
	t, err := streams.ParseToken(token)
	if err != nil {
		return nil, matrix.InvalidParam("at is not a token of ours")
	}
	last, err := a.Store.EventsBefore(ctx, v.room, 0, v.stateUpTo(t.Pos), 1)
	if err != nil || len(last) == 0 {
		return nil, err
	}
	return a.stateAfter(ctx, last[0].Pos)
}

func (a *api) stateAt(ctx context.Context, snapshot int64) ([]*store.Event, error) {
	state, err := a.Store.StateAt(ctx, snapshot)
	if err != nil {
		return nil, err
	}
	return a.eventsOf(ctx, state)
}

// eventsOf reads the events of a state.
func (a *api) eventsOf(ctx context.Context, state store.StateMap) ([]*store.Event, error) {
	numbers := make([]store.Pos, 0, len(state))
	for _, p := range state {
		numbers = append(numbers, p)
	}
	return a.eventsAt(ctx, numbers)
}

func (a *api) getRoomStateKey(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	v, err := a.stateViewer(r, room)
	if err != nil {
		return nil, err
	}
	var e *store.Event
	if v.until == 0 {
		e, err = a.Store.CurrentStateKey(r.Context(), room, r.PathValue("eventType"), stateKeyOf(r))
	} else {
		e, err = a.Store.StateAtKey(r.Context(), v.until, r.PathValue("eventType"), stateKeyOf(r))
	}
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, matrix.NotFound("The room has no such state")
	}
	if r.URL.Query().Get("format") == "event" {
		list, err := a.clientEvents(r.Context(), r, []*store.Event{e}, false)
		if err != nil {
			return nil, err
		}
		return list[0], nil
	}
	return e.Content, nil
}

func (a *api) getMembers(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	q := r.URL.Query()
	v, err := a.stateViewer(r, room)
	if err != nil {
		return nil, err
	}
	var list []*store.Event
	if at := q.Get("at"); at != "" {
		list, err = a.stateAtToken(r.Context(), v, at)
	} else {
		list, err = a.stateFor(r, room)
	}
	if err != nil {
		return nil, err
	}
	kept := list[:0:0]
	for _, e := range list {
		if e.Type != matrix.TypeMember {
			continue
		}
		m := e.Membership()
		if want := q.Get("membership"); want != "" && m != want {
			continue
		}
		if not := q.Get("not_membership"); not != "" && m == not {
			continue
		}
		kept = append(kept, e)
	}
	chunk, err := a.clientEvents(r.Context(), r, kept, false)
	return map[string]any{"chunk": chunk}, err
}

func (a *api) getJoinedMembers(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	if m, _, err := a.Store.MembershipOf(r.Context(), room, r.user); err != nil || m != matrix.Join {
		if err == nil {
			err = matrix.Forbidden("You are not in the room")
		}
		return nil, err
	}
	list, err := a.Store.CurrentStateOf(r.Context(), room, matrix.TypeMember)
	if err != nil {
		return nil, err
	}
	joined := map[string]any{}
	for _, e := range list {
		if e.Membership() == matrix.Join {
			joined[*e.StateKey] = map[string]any{"display_name": text(e.Get("displayname")), "avatar_url": text(e.Get("avatar_url"))}
		}
	}
	return map[string]any{"joined": joined}, nil
}

// text is a JSON string, or null for anything else.
func text(v gjson.Result) any {
	if v.Type != gjson.String {
		return nil
	}
	return v.Str
}

func (a *api) getJoinedRooms(r *request) (any, error) {
	list, err := a.Store.MembershipsOf(r.Context(), r.user)
	joined := []matrix.RoomID{}
	for _, m := range list {
		if m.Membership == matrix.Join {
			joined = append(joined, m.Room)
		}
	}
	return map[string]any{"joined_rooms": joined}, err
}

// propagateProfile puts a changed profile into the rooms of the user.
func (a *api) propagateProfile(r *request) error {
	list, err := a.Store.MembershipsOf(r.Context(), r.user)
	if err != nil {
		return err
	}
	for _, m := range list {
		if m.Membership != matrix.Join {
			continue
		}
		content, err := a.memberContent(r.Context(), r.user, matrix.Join, "")
		if err != nil {
			return err
		}
		key := string(r.user)
		if _, err := r.send(m.Room, matrix.TypeMember, &key, content, rooms.SendOptions{}); err != nil {
			if _, refused := errors.AsType[*matrix.Error](err); !refused {
				return err
			}
		}
	}
	return nil
}

// memberContent of a local user, with the profile.
func (a *api) memberContent(ctx context.Context, u matrix.UserID, membership, reason string) (json.RawMessage, error) {
	content := map[string]any{"membership": membership}
	if reason != "" {
		content["reason"] = reason
	}
	if u.Server() == a.ServerName && membership != matrix.Leave && membership != matrix.Ban {
		p, err := a.Store.Profile(ctx, u)
		if err != nil {
			return nil, err
		}
		for _, k := range []string{"displayname", "avatar_url"} {
			if v, ok := p[k]; ok {
				content[k] = v
			}
		}
	}
	return json.Marshal(content)
}

func (a *api) forget(ctx context.Context, u matrix.UserID, room matrix.RoomID, on bool) error {
	return a.Store.Write(ctx, func(tx *sqldb.Tx) error { return a.Store.Forget(tx, u, room, on) })
}
