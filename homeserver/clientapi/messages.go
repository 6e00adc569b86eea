package clientapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"math"
	"slices"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/rooms"
	"github.com/gjallar-im/gjallar/homeserver/store"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

// maxScan is how many events a request may look at for those that the filter and
// the room's history visibility let pass.
const maxScan = 5000

// eventsAt reads the events of these numbers, oldest first.
func (a *api) eventsAt(ctx context.Context, numbers []store.Pos) ([]*store.Event, error) {
	m, err := a.Store.EventsByPos(ctx, numbers)
	if err != nil {
		return nil, err
	}
	list := make([]*store.Event, 0, len(m))
	for _, e := range m {
		list = append(list, e)
	}
	slices.SortFunc(list, func(x, y *store.Event) int { return cmp.Compare(x.Pos, y.Pos) })
	return list, nil
}

func (r *request) sendState(room matrix.RoomID, typ, key string, content any) error {
	b, err := json.Marshal(content)
	if err != nil {
		return err
	}
	_, err = r.send(room, typ, &key, b, rooms.SendOptions{})
	return err
}

// page is a request for a stretch of a room's history.
type page struct {
	viewer   *viewer
	from, to store.Pos // to: where to stop
	backward bool
	limit    int
	filter   eventFilter
}

// read returns the events, in the order of reading, and the position to go on from,
// 0 if there are no more.
func (p *page) read(ctx context.Context) (out []*store.Event, next store.Pos, err error) {
	s, at := p.viewer.store, p.from
	for scanned := 0; scanned < maxScan; {
		n := max(p.limit-len(out), 20)
		var batch []*store.Event
		if p.backward {
			batch, err = s.EventsBefore(ctx, p.viewer.room, p.to, at, n)
		} else {
			batch, err = s.EventsAfter(ctx, p.viewer.room, at, p.to, n)
		}
		if err != nil {
			return nil, 0, err
		}
		for _, e := range batch {
			ok := p.filter.wants(e)
			if ok {
				if ok, err = p.viewer.sees(ctx, e); err != nil {
					return nil, 0, err
				}
			}
			if ok && len(out) == p.limit { // there is one more
				return out, at, nil
			}
			at = e.Pos
			if p.backward {
				at--
			}
			if ok {
				out = append(out, e)
			}
		}
		if len(batch) < n {
			return out, 0, nil
		}
		scanned += len(batch)
	}
	return out, at, nil
}

// getMessages: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages
func (a *api) getMessages(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	v, err := a.viewer(r.Context(), room, r.user)
	if err != nil {
		return nil, err
	}
	p, err := a.pageOf(r, v)
	if err != nil {
		return nil, err
	}
	events, next, err := p.read(r.Context())
	if err != nil {
		return nil, err
	}
	chunk, err := a.timelineEvents(r.Context(), r, v, events, false)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"chunk": chunk, "start": streams.Token{Pos: p.from}.String()}
	if next > 0 {
		out["end"] = streams.Token{Pos: next}.String()
	}
	if p.filter.LazyLoad {
		state, err := a.sendersOf(r, v, events)
		if err != nil {
			return nil, err
		}
		out["state"] = state
	}
	return out, nil
}

func (a *api) pageOf(r *request, v *viewer) (*page, error) {
	q := r.URL.Query()
	p := &page{viewer: v}
	switch q.Get("dir") {
	case "b":
		p.backward, p.from = true, a.Hub.Now().Pos
	case "f":
		p.to = a.Hub.Now().Pos
	default:
		return nil, matrix.InvalidParam("dir must be \"b\" or \"f\"")
	}
	for name, into := range map[string]*store.Pos{"from": &p.from, "to": &p.to} {
		if s := q.Get(name); s != "" {
			t, err := streams.ParseToken(s)
			if err != nil {
				return nil, matrix.InvalidParam("%s is not a token of ours", name)
			}
			*into = t.Pos
		}
	}
	var err error
	if p.limit, err = r.intQuery("limit", 10, 1, 1000); err != nil {
		return nil, err
	}
	if f := q.Get("filter"); f != "" {
		if err := decodeJSON([]byte(f), &p.filter); err != nil {
			return nil, err
		}
		if err := p.filter.check(); err != nil {
			return nil, err
		}
		if q.Get("limit") == "" {
			p.limit = max(1, p.filter.limit(10, 1000))
		}
	}
	return p, nil
}

// sendersOf are the membership events of those who sent events, as the user may know
// them.
func (a *api) sendersOf(r *request, v *viewer, events []*store.Event) ([]matrix.Event, error) {
	var members []*store.Event
	var err error
	switch spoke := senders(events); {
	case v.until == 0:
		members, err = a.Store.CurrentMembers(r.Context(), v.room, spoke)
	case !v.outside():
		members, err = a.stateAfter(r.Context(), v.until)
		members = slices.DeleteFunc(members, func(e *store.Event) bool {
			return e.Type != matrix.TypeMember || !contains(spoke, matrix.UserID(*e.StateKey))
		})
	}
	if err != nil {
		return nil, err
	}
	return a.clientEvents(r.Context(), r, members, false)
}

func senders(events []*store.Event) []matrix.UserID {
	seen := map[matrix.UserID]bool{}
	var out []matrix.UserID
	for _, e := range events {
		if !seen[e.Sender] {
			seen[e.Sender] = true
			out = append(out, e.Sender)
		}
	}
	return out
}

// visibleEvent reads the event in the path, if the one who asks may see it.
func (a *api) visibleEvent(r *request) (*store.Event, *viewer, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, nil, err
	}
	missing := matrix.NotFound("There is no such event, or you may not see it")
	v, err := a.viewer(r.Context(), room, r.user)
	if err != nil {
		return nil, nil, missing
	}
	e, err := a.Store.Event(r.Context(), matrix.EventID(r.PathValue("eventID")))
	if errors.Is(err, store.ErrNotFound) || err == nil && e.RoomID != room {
		return nil, nil, missing
	}
	if err != nil {
		return nil, nil, err
	}
	ok, err := v.sees(r.Context(), e)
	if err == nil && !ok {
		err = missing
	}
	return e, v, err
}

func (a *api) getRoomEvent(r *request) (any, error) {
	e, v, err := a.visibleEvent(r)
	if err != nil {
		return nil, err
	}
	list, err := a.timelineEvents(r.Context(), r, v, []*store.Event{e}, false)
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// getContext: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidcontexteventid
func (a *api) getContext(r *request) (any, error) {
	e, v, err := a.visibleEvent(r)
	if err != nil {
		return nil, err
	}
	limit, err := r.intQuery("limit", 10, 0, 100)
	if err != nil {
		return nil, err
	}
	var f eventFilter
	if s := r.URL.Query().Get("filter"); s != "" {
		if err := decodeJSON([]byte(s), &f); err != nil {
			return nil, err
		}
	}
	before := page{viewer: v, from: e.Pos - 1, backward: true, limit: limit / 2, filter: f}
	after := page{viewer: v, from: e.Pos, to: math.MaxInt64, limit: limit - limit/2, filter: f}
	older, start, err := before.read(r.Context())
	if err != nil {
		return nil, err
	}
	newer, end, err := after.read(r.Context())
	if err != nil {
		return nil, err
	}
	last := e
	if len(newer) > 0 {
		last = newer[len(newer)-1]
	}
	if end == 0 {
		end = last.Pos
	}
	return a.contextResponse(r, v, e, older, newer, last, start, end, f)
}

func (a *api) contextResponse(r *request, v *viewer, e *store.Event, older, newer []*store.Event, last *store.Event, start, end store.Pos, f eventFilter) (any, error) {
	state, err := a.stateAfter(r.Context(), v.stateUpTo(last.Pos))
	if err != nil {
		return nil, err
	}
	if v.outside() {
		state = v.own(state)
	}
	if f.LazyLoad {
		spoke := senders(append(append([]*store.Event{e}, older...), newer...))
		state = slices.DeleteFunc(state, func(s *store.Event) bool {
			return s.Type == matrix.TypeMember && !contains(spoke, matrix.UserID(*s.StateKey))
		})
	}
	out := map[string]any{"start": streams.Token{Pos: start}.String(), "end": streams.Token{Pos: end}.String()}
	for name, list := range map[string][]*store.Event{"event": {e}, "events_before": older, "events_after": newer, "state": state} {
		events, err := a.timelineEvents(r.Context(), r, v, list, false)
		if err != nil {
			return nil, err
		}
		if out[name] = any(events); name == "event" {
			out[name] = events[0]
		}
	}
	return out, nil
}
