package clientapi_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/hstest"
)

func TestSearch(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, bob := s.Register("alice"), s.Register("bob")
		room := alice.CreateRoom(map[string]any{"preset": "public_chat", "name": "Garden of herbs"})
		other := bob.CreateRoom(nil)
		alice.Say(room, "one Herring")
		alice.Say(room, "two herrings and 100% \"sure\"")
		alice.Say(room, "Ääl")
		gone := alice.Say(room, "herring, deleted")
		alice.OK("PUT", hstest.Path(room)+"/redact/"+url.PathEscape(string(gone))+"/1", map[string]any{})
		bob.Say(other, "bob's herring")
		search := func(u *hstest.User, query map[string]any, rest string) hstest.JSON {
			t.Helper()
			out := u.OK("POST", v3+"/search"+rest, map[string]any{"search_categories": map[string]any{"room_events": query}})
			return hstest.JSON(out.At("search_categories", "room_events").(map[string]any))
		}
		found := func(out hstest.JSON) string {
			var list []string
			for _, r := range out.List("results") {
				list = append(list, r.Str("result", "content", "body")+r.Str("result", "content", "name"))
			}
			return strings.Join(list, "|")
		}
		tests := []struct{ term, want string }{
			{"herring", `two herrings and 100% "sure"|one Herring`},
			{"HERRING one", "one Herring"},
			{"herring none", ""},
			{"100%", `two herrings and 100% "sure"`},
			{`"sure"`, `two herrings and 100% "sure"`},
			{"%", `two herrings and 100% "sure"`},
			{"ääL", "Ääl"},
			{"garden", "Garden of herbs"},
			{"m.text", ""}, // in the JSON, but not in what was said
			{"deleted", ""},
			{"bob", ""},
			{" ", ""},
		}
		for _, tt := range tests {
			if got := found(search(alice, map[string]any{"search_term": tt.term}, "")); got != tt.want {
				t.Errorf("%q finds %q, want %q", tt.term, got, tt.want)
			}
		}
		if got := found(search(alice, map[string]any{"search_term": "garden", "keys": []string{"content.body"}}, "")); got != "" {
			t.Errorf("in bodies there is %q", got)
		}
		if got := found(search(alice, map[string]any{"search_term": "herring", "filter": map[string]any{"rooms": []string{string(other)}}}, "")); got != "" {
			t.Errorf("in bob's room alice finds %q", got)
		}
		first := search(alice, map[string]any{"search_term": "herring", "filter": map[string]any{"limit": 1}}, "")
		second := search(alice, map[string]any{"search_term": "herring", "filter": map[string]any{"limit": 1}}, "?next_batch="+first.Str("next_batch"))
		if found(first)+"|"+found(second) != tests[0].want || second["next_batch"] != nil {
			t.Errorf("page by page: %v, %v", first, second)
		}
		full := search(alice, map[string]any{"search_term": "one", "event_context": map[string]any{"before_limit": 1, "after_limit": 1, "include_profile": true},
			"include_state": true, "groupings": map[string]any{"group_by": []any{map[string]string{"key": "room_id"}}}}, "")
		context := hstest.JSON(full.List("results")[0]["context"].(map[string]any))
		if after := context.List("events_after"); len(after) != 1 || !strings.HasPrefix(after[0].Str("content", "body"), "two") || len(context.List("events_before")) != 1 {
			t.Errorf("the context is %v", context)
		}
		if context.Str("profile_info", "@alice:test", "displayname") == "" && context.At("profile_info", "@alice:test") == nil {
			t.Errorf("the profiles are %v", context["profile_info"])
		}
		if full.At("state", string(room)) == nil || len(full.At("groups", "room_id", string(room), "results").([]any)) != 1 {
			t.Errorf("state and groups: %v", full)
		}

		// Who came later sees what history visibility lets them.
		alice.OK("PUT", hstest.Path(room)+"/state/m.room.history_visibility", map[string]string{"history_visibility": "joined"})
		alice.Say(room, "three herrings")
		carol := s.Register("carol")
		carol.Join(string(room))
		if got := found(search(carol, map[string]any{"search_term": "herring"}, "")); strings.Contains(got, "three") {
			t.Errorf("carol finds %q", got)
		}
		alice.Fails(400, "M_MISSING_PARAM", "POST", v3+"/search", map[string]any{"search_categories": map[string]any{"room_events": map[string]any{}}})
		if out := alice.OK("POST", v3+"/search", map[string]any{"search_categories": map[string]any{}}); fmt.Sprint(out) != "map[search_categories:map[]]" {
			t.Errorf("without categories: %v", out)
		}
	})
}
