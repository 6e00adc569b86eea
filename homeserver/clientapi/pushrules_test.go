package clientapi_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/hstest"
)

// ruleIDs of a kind, without those of the server.
func ruleIDs(u *hstest.User, kind string) (ids []string) {
	for _, r := range u.OK("GET", v3+"/pushrules/", nil).List("global", kind) {
		if id := r.Str("rule_id"); !strings.HasPrefix(id, ".") {
			ids = append(ids, id)
		}
	}
	return ids
}

func TestPushRulesAreInSyncFromTheStart(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice := s.Register("alice")
		rulesOf := func(out hstest.JSON) (rules hstest.JSON) {
			for _, e := range out.List("account_data", "events") {
				if e.Str("type") == "m.push_rules" {
					rules, _ = e.At("content").(map[string]any)
				}
			}
			return rules
		}
		first := alice.Sync("")
		rules := rulesOf(first)
		if list := rules.List("global", "override"); len(list) == 0 || list[0].Str("rule_id") != ".m.rule.master" || list[0]["enabled"] != false || list[0]["default"] != true {
			t.Fatalf("override rules: %v", list)
		}
		for _, r := range rules.List("global", "override") {
			if r.Str("rule_id") == ".m.rule.is_user_mention" && r.List("conditions")[0].Str("value") != "@alice:test" {
				t.Errorf("mentions are of %v", r)
			}
		}
		for _, kind := range []string{"content", "room", "sender"} {
			if list, ok := rules.At("global", kind).([]any); !ok || len(list) != 0 {
				t.Errorf("%s rules: %v", kind, rules.At("global", kind))
			}
		}
		alice.OK("PUT", v3+"/pushrules/global/override/.m.rule.master/enabled", map[string]bool{"enabled": true})
		if list := rulesOf(alice.Sync("since="+first.Str("next_batch"))).List("global", "override"); len(list) == 0 || list[0]["enabled"] != true {
			t.Errorf("after a change the sync has %v", list)
		}
		alice.Fails(405, "M_BAD_JSON", "PUT", v3+"/user/@alice:test/account_data/m.push_rules", map[string]any{})
	})
}

func TestPushRulesHaveAnOrder(t *testing.T) {
	s := hstest.Start(t)
	alice := s.Register("alice")
	put := func(id, query string) {
		t.Helper()
		alice.OK("PUT", v3+"/pushrules/global/content/"+id+query, map[string]any{"actions": []string{"notify"}, "pattern": "of " + id})
	}
	tests := []struct{ id, query, want string }{
		{"a", "", "[a]"},
		{"b", "", "[b a]"},
		{"c", "?after=b", "[b c a]"},
		{"d", "?before=b", "[d b c a]"},
		{"c", "", "[d b c a]"},
		{"a", "?before=d", "[a d b c]"},
		{"a", "?after=c", "[d b c a]"},
	}
	for _, tt := range tests {
		if put(tt.id, tt.query); fmt.Sprint(ruleIDs(alice, "content")) != tt.want {
			t.Errorf("%s%s: %v, want %s", tt.id, tt.query, ruleIDs(alice, "content"), tt.want)
		}
	}
	rule := v3 + "/pushrules/global/content/b"
	alice.OK("PUT", rule+"/enabled", map[string]bool{"enabled": false})
	alice.OK("PUT", rule+"/actions", map[string]any{"actions": []any{"notify", map[string]string{"set_tweak": "highlight"}}})
	if r := alice.OK("GET", rule, nil); r["enabled"] != false || r.Str("pattern") != "of b" || len(r["actions"].([]any)) != 2 {
		t.Errorf("the rule is %v", r)
	}
	if put("b", ""); alice.OK("GET", rule+"/enabled", nil)["enabled"] != false {
		t.Error("a rule that is replaced is enabled again")
	}
	if a := alice.OK("GET", rule+"/actions", nil); len(a["actions"].([]any)) != 1 {
		t.Errorf("its actions are %v", a)
	}
	alice.OK("DELETE", rule, nil)
	alice.Fails(404, "M_NOT_FOUND", "DELETE", rule, nil)
	alice.Fails(404, "M_NOT_FOUND", "GET", rule, nil)
	if ids := ruleIDs(alice, "content"); !slices.Equal(ids, []string{"d", "c", "a"}) {
		t.Errorf("left are %v", ids)
	}
	// The master rule stays before all.
	alice.OK("PUT", v3+"/pushrules/global/override/mine", map[string]any{"actions": []string{}, "conditions": []any{map[string]string{"kind": "event_match", "key": "type", "pattern": "m.x"}}})
	if list := alice.OK("GET", v3+"/pushrules/global/", nil).List("override"); list[0].Str("rule_id") != ".m.rule.master" || list[1].Str("rule_id") != "mine" {
		t.Errorf("override rules start with %v, %v", list[0], list[1])
	}
}

func TestPushRulesThatAreRefused(t *testing.T) {
	s := hstest.Start(t)
	alice := s.Register("alice")
	good := map[string]any{"actions": []string{"notify"}, "pattern": "x"}
	tests := []struct {
		method, path, code string
		body               any
	}{
		{"PUT", "content/.mine", "M_INVALID_PARAM", good},
		{"PUT", "content/a%5Cb", "M_INVALID_PARAM", good},
		{"PUT", "nonsense/a", "M_INVALID_PARAM", good},
		{"PUT", "content/a", "M_MISSING_PARAM", map[string]any{"actions": []string{}}},
		{"PUT", "content/a", "M_MISSING_PARAM", map[string]any{"pattern": "x"}},
		{"PUT", "content/a", "M_INVALID_PARAM", map[string]any{"pattern": "x", "actions": []string{"explode"}}},
		{"PUT", "content/a", "M_INVALID_PARAM", map[string]any{"pattern": "x", "actions": []any{nil}}},
		{"PUT", "override/a", "M_INVALID_PARAM", map[string]any{"actions": []string{}, "conditions": []any{map[string]any{}}}},
		{"PUT", "content/a?before=none", "M_UNKNOWN", good},
		{"PUT", "override/a?before=.m.rule.master", "M_UNKNOWN", good},
		{"DELETE", "override/.m.rule.master", "M_INVALID_PARAM", nil},
		{"PUT", "override/.m.rule.master/enabled", "M_MISSING_PARAM", map[string]any{}},
	}
	for _, tt := range tests {
		t.Run(tt.method+" "+tt.path, func(t *testing.T) {
			alice.Fails(400, tt.code, tt.method, v3+"/pushrules/global/"+tt.path, tt.body)
		})
	}
	alice.Fails(404, "M_NOT_FOUND", "GET", v3+"/pushrules/global/nonsense/a", nil)
}

func TestPushers(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, bob := s.Register("alice"), s.Register("bob")
		set, get := v3+"/pushers/set", v3+"/pushers"
		good := map[string]any{"app_id": "app", "pushkey": "key", "kind": "http", "app_display_name": "App", "device_display_name": "phone", "lang": "en",
			"data": map[string]string{"url": "https://push.example/_matrix/push/v1/notify"}}
		alice.OK("POST", set, good)
		alice.OK("POST", set, with(good, "lang", "de"))
		if list := alice.OK("GET", get, nil).List("pushers"); len(list) != 1 || list[0].Str("lang") != "de" || list[0].Str("data", "url") == "" {
			t.Errorf("alice has %v", list)
		}
		bob.OK("POST", set, with(good, "append", true))
		if list := alice.OK("GET", get, nil).List("pushers"); len(list) != 1 {
			t.Errorf("after bob appended one, alice has %v", list)
		}
		bob.OK("POST", set, good)
		if list := alice.OK("GET", get, nil).List("pushers"); len(list) != 0 {
			t.Errorf("after bob took it over, alice has %v", list)
		}
		bob.OK("POST", set, with(good, "kind", nil))
		if list, ok := bob.OK("GET", get, nil)["pushers"].([]any); !ok || len(list) != 0 {
			t.Errorf("after it was deleted, bob has %v", list)
		}
		bob.OK("POST", set, good)
		bob.OK("POST", v3+"/logout", nil)
		again := s.Nobody()
		again.Token = again.OK("POST", v3+"/login", map[string]any{"type": "m.login.password", "password": "bob", "identifier": map[string]string{"type": "m.id.user", "user": "bob"}}).Str("access_token")
		if list := again.OK("GET", get, nil).List("pushers"); len(list) != 0 {
			t.Errorf("after the device was logged out, bob has %v", list)
		}
		for name, bad := range map[string]map[string]any{"no app_id": with(good, "app_id", ""), "no lang": with(good, "lang", "")} {
			if status, out := alice.Do("POST", set, bad); status != 400 || out.Str("errcode") != "M_MISSING_PARAM" {
				t.Errorf("%s: %d %v", name, status, out)
			}
		}
		for _, url := range []string{"http://push.example/_matrix/push/v1/notify", "https://push.example/other", "https:///_matrix/push/v1/notify", "file:///_matrix/push/v1/notify"} {
			alice.Fails(400, "M_INVALID_PARAM", "POST", set, with(good, "data", map[string]string{"url": url}))
		}
		alice.Fails(400, "M_INVALID_PARAM", "POST", set, with(good, "app_id", strings.Repeat("a", 65)))
		alice.Fails(400, "M_INVALID_PARAM", "POST", set, with(good, "kind", "email"))
	})
}
