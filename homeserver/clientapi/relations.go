package clientapi

import (
	"context"
	"encoding/json"
	"strconv"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/store"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

func (a *api) relationRoutes() []route {
	return []route{
		{"GET", "/v1/rooms/{roomID}/relations/{eventID}", user, (*api).getRelations},
		{"GET", "/v1/rooms/{roomID}/relations/{eventID}/{relType}", user, (*api).getRelations},
		{"GET", "/v1/rooms/{roomID}/relations/{eventID}/{relType}/{eventType}", user, (*api).getRelations},
		{"GET", "/v1/rooms/{roomID}/threads", user, (*api).getThreads},
		{"GET", "/v1/rooms/{roomID}/timestamp_to_event", user, (*api).getTimestampToEvent},
	}
}

const (
	maxRelations  = 100
	maxRecursion  = 3 // of relations
	scanTimestamp = 200
)

// getRelations: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidrelationseventid
func (a *api) getRelations(r *request) (any, error) {
	e, v, err := a.visibleEvent(r)
	if err != nil {
		return nil, err
	}
	q, err := a.relationQuery(r)
	if err != nil {
		return nil, err
	}
	q.Room, q.Event = e.RoomID, e.ID
	limit := q.Limit
	q.Limit++
	list, err := a.Store.RelationsOf(r.Context(), q)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	if from := r.URL.Query().Get("from"); from != "" {
		out["prev_batch"] = from
	}
	if len(list) > limit {
		list = list[:limit]
		next := list[limit-1].Pos
		if q.Backward {
			next--
		}
		out["next_batch"] = streams.Token{Pos: next}.String()
	}
	if list, err = v.filter(r.Context(), list); err != nil {
		return nil, err
	}
	if q.Depth > 1 {
		out["recursion_depth"] = q.Depth
	}
	out["chunk"], err = a.timelineEvents(r.Context(), r, v, list, false)
	return out, err
}

// relationQuery reads what the path and the query ask for.
func (a *api) relationQuery(r *request) (q store.RelationQuery, err error) {
	query := r.URL.Query()
	q = store.RelationQuery{RelType: r.PathValue("relType"), Type: r.PathValue("eventType"), Depth: 1, To: a.Hub.Now().Pos}
	if query.Get("recurse") == "true" {
		q.Depth = maxRecursion
	}
	if q.Limit, err = r.intQuery("limit", 20, 1, maxRelations); err != nil {
		return q, err
	}
	switch query.Get("dir") {
	case "", "b":
		q.Backward = true
	case "f":
	default:
		return q, matrix.InvalidParam("dir must be \"b\" or \"f\"")
	}
	// Backward, one reads from the upper bound to the lower one.
	bounds := map[string]*store.Pos{"from": &q.From, "to": &q.To}
	if q.Backward {
		bounds = map[string]*store.Pos{"from": &q.To, "to": &q.From}
	}
	for name, to := range bounds {
		text := query.Get(name)
		if text == "" {
			continue
		}
		t, err := streams.ParseToken(text)
		if err != nil {
			return q, matrix.InvalidParam("%s is not a token of ours", name)
		}
		*to = t.Pos
	}
	return q, nil
}

// getThreads: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidthreads
func (a *api) getThreads(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	v, err := a.viewer(r.Context(), room, r.user)
	if err != nil {
		return nil, err
	}
	limit, err := r.intQuery("limit", 20, 1, maxRelations)
	if err != nil {
		return nil, err
	}
	include, to := r.URL.Query().Get("include"), a.Hub.Now().Pos
	switch include {
	case "", "all", "participated":
	default:
		return nil, matrix.InvalidParam("include must be \"all\" or \"participated\"")
	}
	if from := r.URL.Query().Get("from"); from != "" {
		t, err := streams.ParseToken(from)
		if err != nil {
			return nil, matrix.InvalidParam("from is not a token of ours")
		}
		to = t.Pos
	}
	threads, err := a.Store.Threads(r.Context(), room, r.user, include == "participated", to, limit+1)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	if len(threads) > limit {
		threads = threads[:limit]
		out["next_batch"] = streams.Token{Pos: threads[limit-1].Latest - 1}.String()
	}
	out["chunk"], err = a.threadRoots(r, v, threads)
	return out, err
}

// threadRoots prints the first events of threads, with what is to be known of each.
func (a *api) threadRoots(r *request, v *viewer, threads []store.Thread) ([]matrix.Event, error) {
	out := []matrix.Event{}
	for _, t := range threads {
		root, err := a.Store.Event(r.Context(), t.Root)
		if err != nil {
			return nil, err
		}
		latest, err := a.Store.EventsByPos(r.Context(), []store.Pos{t.Latest})
		if err != nil {
			return nil, err
		}
		pair, err := v.filter(r.Context(), []*store.Event{root, latest[t.Latest]})
		if err != nil {
			return nil, err
		}
		if len(pair) < 2 {
			continue
		}
		printed, err := a.timelineEvents(r.Context(), r, v, pair, false)
		if err != nil {
			return nil, err
		}
		if printed[0].Unsigned, err = withThread(printed[0].Unsigned, printed[1], t); err != nil {
			return nil, err
		}
		out = append(out, printed[0])
	}
	return out, nil
}

// withThread adds the bundled aggregation of a thread to unsigned data.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#server-side-aggregation-of-mthread-relationships
func withThread(unsigned json.RawMessage, latest matrix.Event, t store.Thread) (json.RawMessage, error) {
	var m map[string]any
	if err := json.Unmarshal(unsigned, &m); err != nil {
		return nil, err
	}
	m["m.relations"] = map[string]any{"m.thread": map[string]any{"latest_event": latest, "count": t.Count, "current_user_participated": t.Participated}}
	return json.Marshal(m)
}

// getTimestampToEvent: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidtimestamp_to_event
func (a *api) getTimestampToEvent(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	ts, err := strconv.ParseInt(r.URL.Query().Get("ts"), 10, 64)
	if err != nil {
		return nil, matrix.InvalidParam("ts is not a time in milliseconds")
	}
	dir := r.URL.Query().Get("dir")
	if dir != "f" && dir != "b" {
		return nil, matrix.InvalidParam("dir must be \"b\" or \"f\"")
	}
	v, err := a.viewer(r.Context(), room, r.user)
	if err != nil {
		return nil, err
	}
	e, err := a.eventNear(r.Context(), v, ts, dir == "b")
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, matrix.NotFound("There is no event that you may see in that direction")
	}
	return map[string]any{"event_id": e.ID, "origin_server_ts": e.OriginServerTS}, nil
}

// eventNear is the first event from a time on that may be seen, nil if there is
// none among those that are looked at.
func (a *api) eventNear(ctx context.Context, v *viewer, ts int64, backward bool) (*store.Event, error) {
	for skip := 0; skip < maxScan; skip += scanTimestamp {
		list, err := a.Store.EventsNear(ctx, v.room, ts, backward, skip, scanTimestamp)
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			if ok, err := v.sees(ctx, e); err != nil || ok {
				return e, err
			}
		}
		if len(list) < scanTimestamp {
			break
		}
	}
	return nil, nil
}
