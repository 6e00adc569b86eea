package clientapi_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/hstest"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// syncClient applies responses of /sync as a client does.
type syncClient struct {
	u      *hstest.User
	query  string
	lazy   bool
	since  string
	rooms  map[string]map[string]string // joined room → type and state key → event ID
	events map[string]map[string]int    // joined room → how often each event came since the user joined
}

func (c *syncClient) step(t *testing.T) {
	t.Helper()
	q := c.query
	if c.since != "" {
		q += "&since=" + c.since
	}
	out := c.u.Sync(q)
	c.since = out.Str("next_batch")
	rooms, _ := out.At("rooms").(map[string]any)
	join, _ := rooms["join"].(map[string]any)
	for id := range join {
		if c.rooms[id] == nil {
			c.rooms[id], c.events[id] = map[string]string{}, map[string]int{}
		}
		apply := func(list []hstest.JSON) {
			for _, e := range list {
				if key, is := e["state_key"].(string); is {
					c.rooms[id][e.Str("type")+" "+key] = e.Str("event_id")
				}
			}
		}
		room := hstest.JSON(join[id].(map[string]any))
		apply(room.List("state", "events"))
		for _, e := range room.List("timeline", "events") {
			c.events[id][e.Str("event_id")]++
		}
		if strings.Contains(c.query, "use_state_after") {
			apply(room.List("state_after", "events"))
		} else {
			apply(room.List("timeline", "events"))
		}
	}
	for _, section := range []string{"leave", "invite", "knock"} {
		left, _ := rooms[section].(map[string]any)
		for id := range left {
			delete(c.rooms, id)
			delete(c.events, id)
		}
	}
}

// check compares what the client knows with GET /state.
func (c *syncClient) check(t *testing.T, wants func(typ string) bool) {
	t.Helper()
	joined, _ := c.u.OK("GET", "/_matrix/client/v3/joined_rooms", nil).At("joined_rooms").([]any)
	for id := range c.rooms {
		if !slices.Contains(joined, any(id)) {
			t.Errorf("%s %s: still in %s", c.u.ID, c.query, id)
		}
	}
	for _, id := range joined {
		room := id.(string)
		want := map[string]string{}
		for _, e := range c.u.OK("GET", hstest.Path(matrix.RoomID(room))+"/state", nil).List("list") {
			if wants(e.Str("type")) {
				want[e.Str("type")+" "+e.Str("state_key")] = e.Str("event_id")
			}
		}
		got := maps.Clone(c.rooms[room])
		maps.DeleteFunc(got, func(k, _ string) bool { typ, _, _ := strings.Cut(k, " "); return !wants(typ) })
		if c.lazy { // may lack members
			maps.DeleteFunc(want, func(k, _ string) bool { return strings.HasPrefix(k, "m.room.member") })
			maps.DeleteFunc(got, func(k, _ string) bool { return strings.HasPrefix(k, "m.room.member") })
		}
		for k, id := range want {
			if got[k] != id {
				t.Errorf("%s %s: %s of %s is %q, want %q", c.u.ID, c.query, k, room, got[k], id)
			}
		}
		if len(got) > len(want) {
			t.Errorf("%s %s: %d keys, want %d", c.u.ID, c.query, len(got), len(want))
		}
	}
	for _, events := range c.events {
		for id, n := range events {
			if n > 1 {
				t.Errorf("%s %s: event %s came %d times", c.u.ID, c.query, id, n)
			}
		}
	}
}

// TestSyncingClientsKnowTheState has users do things at random while clients with
// different filters sync: all must end with the state that GET /state gives.
func TestSyncingClientsKnowTheState(t *testing.T) {
	filters := []struct {
		query string
		types []string // all if nil
	}{
		{"", nil},
		{`use_state_after=true`, nil},
		{`filter={"room":{"timeline":{"limit":1}}}`, nil},
		{`filter={"room":{"timeline":{"limit":2}}}&use_state_after=true`, nil},
		{`filter={"room":{"timeline":{"limit":0}}}`, nil},
		{`filter={"room":{"timeline":{"limit":3,"types":["m.room.message"]}}}`, nil},
		{`filter={"room":{"timeline":{"not_types":["m.room.topic"]}}}`, nil},
		{`filter={"room":{"timeline":{"limit":2},"state":{"lazy_load_members":true}}}`, nil},
		{`filter={"room":{"timeline":{"limit":2},"state":{"lazy_load_members":true}}}&use_state_after=true`, nil},
		{`filter={"room":{"timeline":{"types":["m.room.message"]},"state":{"types":["m.room.topic","x.*"]}}}`, []string{"m.room.topic", "x.k"}},
	}
	for seed := range uint64(2) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			s := hstest.Start(t)
			admin := s.Register("admin")
			var users []*hstest.User
			for i := range 3 {
				users = append(users, s.Register(fmt.Sprint("user", i)))
			}
			var rooms []matrix.RoomID
			for _, v := range []string{"shared", "joined", "invited", "world_readable"} {
				rooms = append(rooms, admin.CreateRoom(map[string]any{"preset": "public_chat", "power_level_content_override": map[string]any{"state_default": 0}, "initial_state": []map[string]any{
					{"type": matrix.TypeHistoryVisibility, "content": map[string]string{"history_visibility": v}}}}))
			}
			var clients []*syncClient
			for i, f := range filters {
				q, filter, ok := strings.Cut(f.query, "filter=")
				if ok {
					filter, more, _ := strings.Cut(filter, "&")
					q = "filter=" + url.QueryEscape(filter) + "&" + more
				}
				clients = append(clients, &syncClient{u: users[i%len(users)], query: q, lazy: strings.Contains(f.query, "lazy"), rooms: map[string]map[string]string{}, events: map[string]map[string]int{}})
			}
			// As many clients again for another user.
			for i := range filters {
				c := *clients[i]
				c.u, c.rooms, c.events = users[(i+1)%len(users)], map[string]map[string]string{}, map[string]map[string]int{}
				clients = append(clients, &c)
			}
			for round := range 3 {
				var work sync.WaitGroup
				for i, u := range append([]*hstest.User{admin}, users...) {
					work.Go(func() {
						random := rand.New(rand.NewPCG(seed, uint64(round*10+i)))
						for n := range 25 {
							act(u, users, rooms, random, fmt.Sprint(round, "-", n))
						}
					})
				}
				for i, c := range clients {
					work.Go(func() {
						random := rand.New(rand.NewPCG(seed, uint64(1000+round*100+i)))
						for range random.IntN(6) {
							c.step(t)
						}
					})
				}
				work.Wait()
				for i, c := range clients {
					c.step(t)
					types := filters[i%len(filters)].types
					c.check(t, func(typ string) bool { return types == nil || slices.Contains(types, typ) })
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}

// act has a user do something at random; it may be refused.
func act(u *hstest.User, users []*hstest.User, rooms []matrix.RoomID, random *rand.Rand, txn string) {
	path := hstest.Path(rooms[random.IntN(len(rooms))])
	other := users[random.IntN(len(users))]
	switch random.IntN(9) {
	case 0:
		u.Do("POST", path+"/join", nil)
	case 1:
		if random.IntN(2) == 0 {
			u.Do("POST", path+"/leave", nil)
		}
	case 2:
		u.Do("PUT", path+"/state/m.room.topic", map[string]string{"topic": txn})
	case 3:
		u.Do("PUT", path+"/state/x.k/"+fmt.Sprint(random.IntN(3)), map[string]string{"v": txn + string(u.ID)})
	case 4:
		if random.IntN(3) == 0 {
			u.Do("POST", path+"/"+[]string{"kick", "ban", "unban", "unban"}[random.IntN(4)], map[string]any{"user_id": other.ID})
		}
	case 5:
		u.Do("POST", path+"/invite", map[string]any{"user_id": other.ID})
	case 6:
		u.Do("PUT", path+"/state/m.room.member/"+url.PathEscape(string(u.ID)), map[string]string{"membership": "join", "displayname": txn})
	default:
		u.Do("PUT", path+"/send/m.room.message/"+txn, map[string]string{"msgtype": "m.text", "body": txn})
	}
}
