package clientapi

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/store"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

// Limits of a search. What is not found in time is found with the next batch.
const (
	maxSearchRooms = 500
	maxSearchWords = 16
	maxSearchLimit = 100
	searchTime     = 5 * time.Second
	searchWindow   = 100_000 // positions that one query goes through
)

// searchQuery: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3search
type searchQuery struct {
	Term    string      `json:"search_term"`
	Keys    []string    `json:"keys"`
	OrderBy string      `json:"order_by"` // we give the newest first, whatever it says
	Filter  eventFilter `json:"filter"`
	Context *struct {
		Before   *int `json:"before_limit"`
		After    *int `json:"after_limit"`
		Profiles bool `json:"include_profile"`
	} `json:"event_context"`
	State     bool `json:"include_state"`
	Groupings struct {
		By []struct {
			Key string `json:"key"`
		} `json:"group_by"`
	} `json:"groupings"`
}

// searchKeys are what is searched, with the type of event that has it.
var searchKeys = map[string]string{"content.body": matrix.TypeMessage, "content.name": matrix.TypeName, "content.topic": matrix.TypeTopic}

type searchResult struct {
	Rank    float64         `json:"rank"`
	Result  matrix.Event    `json:"result"`
	Context json.RawMessage `json:"context,omitempty"`
}

// searchGroup of results that share a room or a sender.
type searchGroup struct {
	Results []matrix.EventID `json:"results"`
	Order   int              `json:"order"`
}

func (a *api) postSearch(r *request) (any, error) {
	var in struct {
		Categories struct {
			Room *searchQuery `json:"room_events"`
		} `json:"search_categories"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	q := in.Categories.Room
	if q == nil {
		return map[string]any{"search_categories": empty}, nil
	}
	if q.Term == "" {
		return nil, matrix.MissingParam("No search_term")
	}
	s, err := a.searcher(r, q)
	if err != nil {
		return nil, err
	}
	hits, next, err := s.run(r.Context())
	if err != nil {
		return nil, err
	}
	out, err := s.print(hits)
	if err != nil {
		return nil, err
	}
	if next > 0 {
		out["next_batch"] = streams.Token{Pos: next}.String()
	}
	return map[string]any{"search_categories": map[string]any{"room_events": out}}, nil
}

// searcher carries out a search.
type searcher struct {
	api     *api
	r       *request
	query   *searchQuery
	words   []string // in lower case
	keys    []string
	rooms   []matrix.RoomID
	from    store.Pos // the newest position to look at
	limit   int
	viewers map[matrix.RoomID]*viewer
}

func (a *api) searcher(r *request, q *searchQuery) (*searcher, error) {
	s := &searcher{api: a, r: r, query: q, words: strings.Fields(strings.ToLower(q.Term)), keys: q.Keys, from: a.Hub.Now().Pos, viewers: map[matrix.RoomID]*viewer{}}
	if err := q.Filter.check(); err != nil {
		return nil, err
	}
	s.limit = max(1, q.Filter.limit(10, maxSearchLimit)) // with none the next batch would be the same
	s.words = s.words[:min(len(s.words), maxSearchWords)]
	if len(s.keys) == 0 {
		s.keys = []string{"content.body", "content.name", "content.topic"}
	}
	for _, k := range s.keys {
		if searchKeys[k] == "" {
			return nil, matrix.InvalidParam("%.40q cannot be searched", k)
		}
	}
	if text := r.URL.Query().Get("next_batch"); text != "" {
		t, err := streams.ParseToken(text)
		if err != nil {
			return nil, matrix.InvalidParam("next_batch is not a token of ours")
		}
		s.from = min(s.from, t.Pos)
	}
	memberships, err := a.Store.MembershipsOf(r.Context(), r.user)
	for _, m := range memberships {
		if m.Membership == matrix.Join && q.Filter.wantsRoom(m.Room) && len(s.rooms) < maxSearchRooms {
			s.rooms = append(s.rooms, m.Room)
		}
	}
	return s, err
}

// run returns the hits and the position to go on from, 0 if there are no more.
func (s *searcher) run(ctx context.Context) (hits []*store.Event, next store.Pos, err error) {
	if len(s.rooms) == 0 || len(s.words) == 0 {
		return nil, 0, nil
	}
	deadline := time.Now().Add(searchTime)
	for at := s.from; at > 0; {
		if time.Now().After(deadline) {
			return hits, at, nil
		}
		low := max(0, at-searchWindow)
		n := s.limit - len(hits) + 20
		batch, err := s.api.Store.SearchEvents(ctx, s.rooms, plain(s.words), low, at, n)
		if err != nil {
			return nil, 0, err
		}
		for _, e := range batch {
			ok, err := s.matches(ctx, e)
			if err != nil {
				return nil, 0, err
			}
			if ok && len(hits) == s.limit { // there is one more
				return hits, e.Pos, nil
			}
			if ok {
				hits = append(hits, e)
			}
		}
		if at = low; len(batch) == n {
			at = batch[n-1].Pos - 1
		}
	}
	return hits, 0, nil
}

// plain are the words that JSON and the database write as they are.
func plain(words []string) (out []string) {
	for _, w := range words {
		if strings.IndexFunc(w, func(c rune) bool { return c > 0x7e || c < ' ' || c == '"' || c == '\\' }) < 0 {
			out = append(out, w)
		}
	}
	return out
}

// matches reports whether an event has all words in one of the keys, and may be seen.
func (s *searcher) matches(ctx context.Context, e *store.Event) (bool, error) {
	if !s.query.Filter.wants(e) || !slices.ContainsFunc(s.keys, func(k string) bool {
		text := strings.ToLower(e.String(strings.TrimPrefix(k, "content.")))
		return e.Type == searchKeys[k] && !slices.ContainsFunc(s.words, func(w string) bool { return !strings.Contains(text, w) })
	}) {
		return false, nil
	}
	v, err := s.viewer(ctx, e.RoomID)
	if err != nil {
		return false, err
	}
	return v.sees(ctx, e)
}

func (s *searcher) viewer(ctx context.Context, room matrix.RoomID) (*viewer, error) {
	if v := s.viewers[room]; v != nil {
		return v, nil
	}
	v, err := s.api.viewer(ctx, room, s.r.user)
	s.viewers[room] = v
	return v, err
}

// print makes the answer.
func (s *searcher) print(hits []*store.Event) (map[string]any, error) {
	results := []searchResult{}
	groups := map[string]map[string]*searchGroup{}
	for _, g := range s.query.Groupings.By {
		groups[g.Key] = map[string]*searchGroup{}
	}
	state := map[matrix.RoomID][]matrix.Event{}
	for _, e := range hits {
		v := s.viewers[e.RoomID]
		printed, err := s.api.timelineEvents(s.r.Context(), s.r, v, []*store.Event{e}, false)
		if err != nil {
			return nil, err
		}
		result := searchResult{Rank: 1, Result: printed[0]}
		if s.query.Context != nil {
			if result.Context, err = s.context(v, e); err != nil {
				return nil, err
			}
		}
		results = append(results, result)
		for key, by := range map[string]string{"room_id": string(e.RoomID), "sender": string(e.Sender)} {
			if groups[key] == nil {
				continue
			}
			if groups[key][by] == nil {
				groups[key][by] = &searchGroup{Order: len(groups[key])}
			}
			groups[key][by].Results = append(groups[key][by].Results, e.ID)
		}
		if s.query.State && state[e.RoomID] == nil {
			current, err := s.api.stateFor(s.r, e.RoomID)
			if err != nil {
				return nil, err
			}
			if state[e.RoomID], err = s.api.clientEvents(s.r.Context(), s.r, current, false); err != nil {
				return nil, err
			}
		}
	}
	out := map[string]any{"count": len(results), "highlights": s.words, "results": results}
	if len(groups) > 0 {
		out["groups"] = groups
	}
	if s.query.State {
		out["state"] = state
	}
	return out, nil
}

// context is what was said before and after.
func (s *searcher) context(v *viewer, e *store.Event) (json.RawMessage, error) {
	bound := func(n *int) int {
		if n == nil {
			return 5
		}
		return min(max(*n, 0), maxSearchLimit)
	}
	before := page{viewer: v, from: e.Pos - 1, backward: true, limit: bound(s.query.Context.Before)}
	after := page{viewer: v, from: e.Pos, to: s.api.Hub.Now().Pos, limit: bound(s.query.Context.After)}
	older, start, err := before.read(s.r.Context())
	if err != nil {
		return nil, err
	}
	newer, end, err := after.read(s.r.Context())
	if err != nil {
		return nil, err
	}
	if end == 0 {
		end = after.to
	}
	out := map[string]any{"start": streams.Token{Pos: start}.String(), "end": streams.Token{Pos: end}.String()}
	for name, list := range map[string][]*store.Event{"events_before": older, "events_after": newer} {
		if out[name], err = s.api.timelineEvents(s.r.Context(), s.r, v, list, false); err != nil {
			return nil, err
		}
	}
	if s.query.Context.Profiles {
		if out["profile_info"], err = s.profiles(slices.Concat([]*store.Event{e}, older, newer)); err != nil {
			return nil, err
		}
	}
	return json.Marshal(out)
}

// profiles of those who have sent some events of a room, as they are there now.
func (s *searcher) profiles(events []*store.Event) (map[matrix.UserID]any, error) {
	members, err := s.api.Store.CurrentMembers(s.r.Context(), events[0].RoomID, senders(events))
	out := map[matrix.UserID]any{}
	for _, m := range members {
		out[matrix.UserID(*m.StateKey)] = map[string]any{"displayname": text(m.Get("displayname")), "avatar_url": text(m.Get("avatar_url"))}
	}
	return out, err
}
