package clientapi_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver"
	"github.com/gjallar-im/gjallar/homeserver/hstest"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// services answers as the application services of a test do, by path.
type services map[string]string

func (s services) RoundTrip(r *http.Request) (*http.Response, error) {
	key := r.URL.Host + strings.TrimPrefix(r.URL.Path, "/_matrix/app/v1/thirdparty")
	if r.URL.RawQuery != "" {
		key += "?" + r.URL.RawQuery
	}
	status, body := 200, s[key]
	if body == "" {
		status, body = 404, `{"errcode":"M_NOT_FOUND"}`
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

func TestThirdPartyNetworks(t *testing.T) {
	answers := services{
		"one/protocol/irc":              `{"user_fields":["nick"],"instances":[{"desc":"A"}]}`,
		"two/protocol/irc":              `{"user_fields":["other"],"instances":[{"desc":"B"}]}`,
		"one/location/irc?channel=%23a": `[{"alias":"#a:test","protocol":"irc","fields":{}}]`,
		"two/location/irc?channel=%23a": `[{"alias":"#b:test","protocol":"irc","fields":{}}]`,
		"two/user?userid=%40x%3Atest":   `[{"userid":"@x:test","protocol":"irc","fields":{}}]`,
	}
	s := hstest.Start(t, func(o *homeserver.Options) { o.Transport = answers })
	alice := s.Register("alice")
	if out := alice.OK("GET", v3+"/thirdparty/protocols", nil); len(out) != 0 {
		t.Errorf("without services: %v", out)
	}
	for _, id := range []string{"one", "two"} {
		reg := matrix.Registration{ID: id, URL: "http://" + id, ASToken: "as" + id, HSToken: "hs" + id, SenderLocalpart: id, Protocols: []string{"irc"}}
		if err := s.AddService(context.Background(), reg); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct{ path, want string }{
		{"protocols", `map[irc:map[instances:[map[desc:A] map[desc:B]] user_fields:[nick]]]`},
		{"protocol/irc", `map[instances:[map[desc:A] map[desc:B]] user_fields:[nick]]`},
		{"location/irc?channel=%23a", `map[list:[map[alias:#a:test fields:map[] protocol:irc] map[alias:#b:test fields:map[] protocol:irc]]]`},
		{"location?alias=%23none:test", `map[list:[]]`},
		{"user?userid=@x:test", `map[list:[map[fields:map[] protocol:irc userid:@x:test]]]`},
		{"user/irc?nick=none", `map[list:[]]`},
	}
	for _, tt := range tests {
		if got := fmt.Sprint(map[string]any(alice.OK("GET", v3+"/thirdparty/"+tt.path, nil))); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.path, got, tt.want)
		}
	}
	alice.Fails(404, "M_NOT_FOUND", "GET", v3+"/thirdparty/protocol/xmpp", nil)
	alice.Fails(400, "M_MISSING_PARAM", "GET", v3+"/thirdparty/location", nil)
	alice.Fails(400, "M_MISSING_PARAM", "GET", v3+"/thirdparty/user", nil)
}

func mac(secret string, parts ...string) string {
	h := hmac.New(sha1.New, []byte(secret))
	h.Write([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(h.Sum(nil))
}

func TestRegistrationWithTheSharedSecret(t *testing.T) {
	const path = "/_synapse/admin/v1/register"
	hstest.Start(t).Nobody().Fails(404, "M_UNRECOGNIZED", "GET", path, nil) // off

	s := hstest.Start(t, func(o *homeserver.Options) { o.SharedSecret, o.Registration = "secret", "closed" })
	nobody := s.Nobody()
	nonce := func() string { return nobody.OK("GET", path, nil).Str("nonce") }
	body := func(nonce, mac string) map[string]any {
		return map[string]any{"nonce": nonce, "username": "Boss", "password": "pw", "admin": true, "displayname": "The boss", "mac": mac}
	}
	n := nonce()
	nobody.Fails(403, "M_FORBIDDEN", "POST", path, body(n, mac("wrong", n, "Boss", "pw", "admin")))
	nobody.Fails(400, "M_UNKNOWN", "POST", path, body(n, mac("secret", n, "Boss", "pw", "admin"))) // used up
	n = nonce()
	nobody.Fails(403, "M_FORBIDDEN", "POST", path, body(n, mac("secret", n, "Boss", "pw", "notadmin")))
	n = nonce()
	nobody.Fails(400, "M_MISSING_PARAM", "POST", path, map[string]any{"nonce": n})
	out := nobody.OK("POST", path, body(n, mac("secret", n, "Boss", "pw", "admin")))
	if out.Str("user_id") != "@boss:test" || out.Str("access_token") == "" || out.Str("device_id") == "" || out.Str("home_server") != "test" {
		t.Errorf("registered %v", out)
	}
	n = nonce()
	nobody.Fails(400, "M_USER_IN_USE", "POST", path, body(n, mac("secret", n, "Boss", "pw", "admin")))

	boss := s.Nobody()
	boss.Token = out.Str("access_token")
	if p := boss.OK("GET", v3+"/profile/@boss:test", nil); p.Str("displayname") != "The boss" {
		t.Errorf("the profile is %v", p)
	}
	n = nonce()
	user := s.Nobody()
	user.Token = nobody.OK("POST", path, map[string]any{"nonce": n, "username": "user", "password": "pw", "mac": mac("secret", n, "user", "pw", "notadmin")}).Str("access_token")
	if w := boss.OK("GET", v3+"/admin/whois/@user:test", nil); w.Str("user_id") != "@user:test" || len(w.At("devices").(map[string]any)) != 1 {
		t.Errorf("whois: %v", w)
	}
	user.OK("GET", v3+"/admin/whois/@user:test", nil)
	user.Fails(403, "M_FORBIDDEN", "GET", v3+"/admin/whois/@boss:test", nil)
}

func TestOpenIDTokensProveWhoOneIs(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, bob := s.Register("alice"), s.Register("bob")
		out := alice.OK("POST", v3+"/user/@alice:test/openid/request_token", map[string]any{})
		if out.Str("token_type") != "Bearer" || out.Str("matrix_server_name") != "test" || out["expires_in"] == nil {
			t.Errorf("%v", out)
		}
		const info = "/_matrix/federation/v1/openid/userinfo"
		if who := s.Nobody().OK("GET", info+"?access_token="+out.Str("access_token"), nil); who.Str("sub") != "@alice:test" {
			t.Errorf("the token is of %v", who)
		}
		s.Nobody().Fails(401, "M_UNKNOWN_TOKEN", "GET", info+"?access_token="+alice.Token, nil)
		s.Nobody().Fails(401, "M_MISSING_TOKEN", "GET", info, nil)
		bob.Fails(403, "M_FORBIDDEN", "POST", v3+"/user/@alice:test/openid/request_token", map[string]any{})
		if turn := alice.OK("GET", v3+"/voip/turnServer", nil); len(turn) != 0 {
			t.Errorf("turn: %v", turn)
		}
	})
}

func TestUserDirectory(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, friend, public, hidden := s.Register("alice"), s.Register("friend_1"), s.Register("public"), s.Register("hidden")
		for _, u := range []*hstest.User{friend, public, hidden} {
			u.OK("PUT", v3+"/profile/"+string(u.ID)+"/displayname", map[string]string{"displayname": "Name 100% of " + u.ID.Localpart()})
		}
		shared := alice.CreateRoom(map[string]any{"invite": []string{string(friend.ID)}})
		friend.Join(string(shared))
		public.CreateRoom(map[string]any{"preset": "public_chat"})
		hidden.CreateRoom(nil)
		tests := []struct{ term, want string }{
			{"name", "@friend_1:test @public:test"},
			{"FRIEND", "@friend_1:test"},
			{"friend_", "@friend_1:test"},
			{"friend%", ""},
			{"100%", "@friend_1:test @public:test"},
			{"@pub", "@public:test"},
			{"test", ""}, // the server's name is no name of theirs
			{"hidden", ""},
			{"", ""},
			{`\`, ""},
		}
		for _, tt := range tests {
			out := alice.OK("POST", v3+"/user_directory/search", map[string]any{"search_term": tt.term})
			var got []string
			for _, u := range out.List("results") {
				got = append(got, u.Str("user_id"))
			}
			if strings.Join(got, " ") != tt.want || out["limited"] != false {
				t.Errorf("%q finds %v", tt.term, out)
			}
		}
		out := alice.OK("POST", v3+"/user_directory/search", map[string]any{"search_term": "name", "limit": 1})
		if list := out.List("results"); len(list) != 1 || list[0].Str("display_name") != "Name 100% of friend_1" || out["limited"] != true {
			t.Errorf("one of two: %v", out)
		}
		alice.Fails(400, "M_MISSING_PARAM", "POST", v3+"/user_directory/search", map[string]any{})
	})
}

func TestReports(t *testing.T) {
	s := hstest.Start(t)
	alice, eve := s.Register("alice"), s.Register("eve")
	room := alice.CreateRoom(nil)
	id := url.PathEscape(string(alice.Say(room, "x")))
	body := map[string]any{"score": -100, "reason": "rude"}
	alice.OK("POST", hstest.Path(room)+"/report/"+id, body)
	alice.OK("POST", hstest.Path(room)+"/report", body)
	alice.OK("POST", v3+"/users/@eve:test/report", body)
	eve.Fails(404, "M_NOT_FOUND", "POST", hstest.Path(room)+"/report/"+id, body)
	alice.Fails(404, "M_NOT_FOUND", "POST", hstest.Path(room)+"/report/$none", body)
	alice.Fails(404, "M_NOT_FOUND", "POST", hstest.Path("!none:test")+"/report", body)
	alice.Fails(400, "M_INVALID_PARAM", "POST", v3+"/users/eve/report", body)
}

// relate sends an event that relates to another.
func relate(u *hstest.User, room matrix.RoomID, typ, relType, txn string, to matrix.EventID) matrix.EventID {
	return matrix.EventID(u.OK("PUT", hstest.Path(room)+"/send/"+typ+"/"+txn, map[string]any{"body": txn, "msgtype": "m.text",
		"m.relates_to": map[string]any{"rel_type": relType, "event_id": to, "key": txn}}).Str("event_id"))
}

func v1(room matrix.RoomID) string { return strings.Replace(hstest.Path(room), "/v3/", "/v1/", 1) }

func TestRelations(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, eve := s.Register("alice"), s.Register("eve")
		room, other := alice.CreateRoom(nil), alice.CreateRoom(nil)
		root := alice.Say(room, "root")
		first := relate(alice, room, "m.room.message", "m.thread", "t1", root)
		relate(alice, room, "m.reaction", "m.annotation", "r1", root)
		relate(alice, room, "m.room.message", "m.thread", "t2", root)
		relate(alice, room, "m.reaction", "m.annotation", "r2", first) // to a relation
		relate(alice, other, "m.reaction", "m.annotation", "r3", root) // from another room
		path := v1(room) + "/relations/" + url.PathEscape(string(root))
		bodies := func(out hstest.JSON) (list []string) {
			for _, e := range out.List("chunk") {
				list = append(list, e.Str("content", "body"))
			}
			return list
		}
		tests := []struct{ rest, want string }{
			{"", "[t2 r1 t1]"},
			{"?dir=f", "[t1 r1 t2]"},
			{"/m.thread", "[t2 t1]"},
			{"/m.thread/m.room.message", "[t2 t1]"},
			{"/m.thread/m.reaction", "[]"},
			{"/m.annotation?recurse=true", "[r2 r1]"},
			{"?recurse=true&dir=f", "[t1 r1 t2 r2]"},
		}
		for _, tt := range tests {
			if got := fmt.Sprint(bodies(alice.OK("GET", path+tt.rest, nil))); got != tt.want {
				t.Errorf("%s: %s, want %s", tt.rest, got, tt.want)
			}
		}
		for _, dir := range []string{"b", "f"} {
			var got []string
			for from := ""; ; {
				page := alice.OK("GET", path+"?limit=1&dir="+dir+from, nil)
				got = append(got, bodies(page)...)
				next := page.Str("next_batch")
				if next == "" {
					break
				}
				from = "&from=" + next
			}
			want := []string{"t1", "r1", "t2"}
			if dir == "b" {
				slices.Reverse(want)
			}
			if !slices.Equal(got, want) {
				t.Errorf("page by page %s: %v", dir, got)
			}
		}
		eve.Fails(404, "M_NOT_FOUND", "GET", path, nil)
		alice.Fails(404, "M_NOT_FOUND", "GET", v1(other)+"/relations/"+url.PathEscape(string(root)), nil)
		alice.Fails(400, "M_INVALID_PARAM", "GET", path+"?dir=x", nil)
		alice.Fails(400, "M_INVALID_PARAM", "GET", path+"?from=x", nil)
	})
}

func TestThreads(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, bob := s.Register("alice"), s.Register("bob")
		room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
		bob.Join(string(room))
		a, b := alice.Say(room, "a"), alice.Say(room, "b")
		alice.Say(room, "c")
		relate(alice, room, "m.room.message", "m.thread", "b1", b)
		relate(bob, room, "m.room.message", "m.thread", "a1", a)
		relate(alice, room, "m.room.message", "m.thread", "a2", a)
		list := alice.OK("GET", v1(room)+"/threads", nil).List("chunk")
		if len(list) != 2 || list[0].Str("content", "body") != "a" || list[1].Str("content", "body") != "b" {
			t.Fatalf("threads: %v", list)
		}
		thread := hstest.JSON(list[0].At("unsigned", "m.relations", "m.thread").(map[string]any))
		if thread["count"] != 2.0 || thread.Str("latest_event", "content", "body") != "a2" || thread["current_user_participated"] != true {
			t.Errorf("the thread is %v", thread)
		}
		if mine := bob.OK("GET", v1(room)+"/threads?include=participated", nil).List("chunk"); len(mine) != 1 || mine[0].Str("content", "body") != "a" {
			t.Errorf("bob's threads: %v", mine)
		}
		page := alice.OK("GET", v1(room)+"/threads?limit=1", nil)
		next := alice.OK("GET", v1(room)+"/threads?limit=1&from="+page.Str("next_batch"), nil)
		if l := next.List("chunk"); len(l) != 1 || l[0].Str("content", "body") != "b" || next["next_batch"] != nil {
			t.Errorf("the second page is %v", next)
		}
		s.Register("eve").Fails(403, "M_FORBIDDEN", "GET", v1(room)+"/threads", nil)
		alice.Fails(400, "M_INVALID_PARAM", "GET", v1(room)+"/threads?include=x", nil)
	})
}

func TestTimestampToEvent(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, eve := s.Register("alice"), s.Register("eve")
		room := alice.CreateRoom(nil)
		id := alice.Say(room, "x")
		ts := alice.OK("GET", hstest.Path(room)+"/event/"+url.PathEscape(string(id)), nil)["origin_server_ts"].(float64)
		path := v1(room) + "/timestamp_to_event"
		if out := alice.OK("GET", fmt.Sprintf("%s?dir=b&ts=%.0f", path, ts+1000), nil); out.Str("event_id") != string(id) || out["origin_server_ts"] != ts {
			t.Errorf("before: %v", out)
		}
		if out := alice.OK("GET", path+"?dir=f&ts=0", nil); out.Str("event_id") == string(id) || out.Str("event_id") == "" {
			t.Errorf("the first: %v", out)
		}
		alice.Fails(404, "M_NOT_FOUND", "GET", path+"?dir=b&ts=0", nil)
		alice.Fails(404, "M_NOT_FOUND", "GET", fmt.Sprintf("%s?dir=f&ts=%.0f", path, ts+1000), nil)
		alice.Fails(400, "M_INVALID_PARAM", "GET", path+"?dir=f&ts=x", nil)
		alice.Fails(400, "M_INVALID_PARAM", "GET", path+"?ts=0", nil)
		eve.Fails(403, "M_FORBIDDEN", "GET", path+"?dir=f&ts=0", nil)
	})
}

func TestSpaces(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, bob := s.Register("alice"), s.Register("bob")
		create := func(name, preset string, space bool) matrix.RoomID {
			o := map[string]any{"name": name, "preset": preset}
			if space {
				o["creation_content"] = map[string]string{"type": "m.space"}
			}
			return alice.CreateRoom(o)
		}
		child := func(space, room matrix.RoomID, content map[string]any) {
			alice.OK("PUT", hstest.Path(space)+"/state/m.space.child/"+url.PathEscape(string(room)), content)
		}
		root, sub := create("root", "public_chat", true), create("sub", "public_chat", true)
		a, b, secret, gone, leaf := create("a", "public_chat", false), create("b", "public_chat", false), create("secret", "private_chat", false), create("gone", "public_chat", false), create("leaf", "public_chat", false)
		via := []string{"test"}
		child(root, a, map[string]any{"via": via})
		child(root, b, map[string]any{"via": via, "order": "1", "suggested": true})
		child(root, secret, map[string]any{"via": via, "order": "2"})
		child(root, sub, map[string]any{"via": via, "order": "0"})
		child(root, gone, map[string]any{})
		child(root, "!elsewhere:other", map[string]any{"via": via})
		child(sub, leaf, map[string]any{"via": via})
		child(sub, root, map[string]any{"via": via}) // a circle
		names := func(out hstest.JSON) string {
			var list []string
			for _, r := range out.List("rooms") {
				list = append(list, r.Str("name"))
			}
			return strings.Join(list, " ")
		}
		tests := []struct {
			user        *hstest.User
			query, want string
		}{
			{alice, "", "root sub leaf b secret a"},
			{bob, "", "root sub leaf b a"},
			{bob, "?max_depth=1", "root sub b a"},
			{bob, "?max_depth=0", "root"},
			{bob, "?suggested_only=true", "root b"},
			{bob, "?limit=2", "root sub"},
		}
		for _, tt := range tests {
			if got := names(tt.user.OK("GET", v1(root)+"/hierarchy"+tt.query, nil)); got != tt.want {
				t.Errorf("%s%s: %q, want %q", tt.user.ID, tt.query, got, tt.want)
			}
		}
		var all []string
		for from := "?limit=2"; ; {
			page := bob.OK("GET", v1(root)+"/hierarchy"+from, nil)
			all = append(all, names(page))
			if page.Str("next_batch") == "" {
				break
			}
			from = "?limit=2&from=" + page.Str("next_batch")
		}
		if !slices.Equal(all, []string{"root sub", "leaf b", "a"}) {
			t.Errorf("page by page: %q", all)
		}
		first := bob.OK("GET", v1(root)+"/hierarchy", nil).List("rooms")[0]
		if list := first.List("children_state"); len(list) != 5 || list[0].Str("state_key") != string(sub) || list[0]["origin_server_ts"] == nil || first.Str("room_type") != "m.space" {
			t.Errorf("the space is %v", first)
		}
		bob.Fails(403, "M_FORBIDDEN", "GET", v1(secret)+"/hierarchy", nil)
		bob.Fails(403, "M_FORBIDDEN", "GET", v1("!none:test")+"/hierarchy", nil)

		summary := "/_matrix/client/v1/room_summary/"
		if out := s.Nobody().OK("GET", summary+url.PathEscape(string(a)), nil); out.Str("name") != "a" || out.Str("join_rule") != "public" || out["num_joined_members"] != 1.0 {
			t.Errorf("summary: %v", out)
		}
		if out := alice.OK("GET", summary+url.PathEscape(string(secret)), nil); out.Str("membership") != "join" || out.Str("room_version") == "" {
			t.Errorf("summary: %v", out)
		}
		s.Nobody().Fails(404, "M_NOT_FOUND", "GET", summary+url.PathEscape(string(secret)), nil)
	})
}

// An answer of an application service that is no JSON must not reach a client.
func TestAnswersOfServicesAreChecked(t *testing.T) {
	s := hstest.Start(t, func(o *homeserver.Options) {
		o.Transport = services{"one/protocol/irc": `nonsense`, "one/location/irc": `{"x":1}`}
	})
	if err := s.AddService(context.Background(), matrix.Registration{ID: "one", URL: "http://one", ASToken: "a", HSToken: "h", SenderLocalpart: "one", Protocols: []string{"irc"}}); err != nil {
		t.Fatal(err)
	}
	alice := s.Register("alice")
	for _, path := range []string{"protocols", "location/irc"} {
		if r := fetch(t, s, alice, "GET", v3+"/thirdparty/"+path, "", nil); bytes.Contains(r.body, []byte("nonsense")) || r.StatusCode != 200 {
			t.Errorf("%s: %d %s", path, r.StatusCode, r.body)
		}
	}
}

func TestPingsOfServices(t *testing.T) {
	answers := services{"one/_matrix/app/v1/ping": `{}`}
	s := hstest.Start(t, func(o *homeserver.Options) { o.Transport = answers })
	for id, url := range map[string]string{"one": "http://one", "two": "http://two", "mute": ""} {
		if err := s.AddService(context.Background(), matrix.Registration{ID: id, URL: url, ASToken: "as" + id, HSToken: "hs" + id, SenderLocalpart: id}); err != nil {
			t.Fatal(err)
		}
	}
	path := func(id string) string { return "/_matrix/client/v1/appservice/" + id + "/ping" }
	if out := s.Service("asone").OK("POST", path("one"), map[string]string{"transaction_id": "t"}); out["duration_ms"] == nil {
		t.Errorf("%v", out)
	}
	s.Service("asone").Fails(403, "M_FORBIDDEN", "POST", path("two"), nil)
	s.Service("astwo").Fails(502, "M_BAD_STATUS", "POST", path("two"), nil)
	s.Service("asmute").Fails(400, "M_URL_NOT_SET", "POST", path("mute"), nil)
	s.Register("alice").Fails(403, "M_FORBIDDEN", "POST", path("one"), nil)
}

func TestSeveralDevicesAreDeletedAtOnce(t *testing.T) {
	s := hstest.Start(t)
	alice := s.Register("alice")
	login := map[string]any{"type": "m.login.password", "password": "alice", "identifier": map[string]string{"type": "m.id.user", "user": "alice"}}
	for _, d := range []string{"A", "B"} {
		alice.OK("POST", v3+"/login", with(login, "device_id", d))
	}
	count := func() int { return len(alice.OK("GET", v3+"/devices", nil).List("devices")) }
	const path = v3 + "/delete_devices"
	if status, out := alice.Do("POST", path, map[string]any{"devices": []string{"A"}}); status != 401 || out["flows"] == nil || count() != 3 {
		t.Errorf("without a password: %d %v", status, out)
	}
	alice.Fails(400, "M_MISSING_PARAM", "POST", path, map[string]any{"auth": login})
	if alice.OK("POST", path, map[string]any{"devices": []string{}, "auth": login}); count() != 3 {
		t.Error("none named is not all")
	}
	if alice.OK("POST", path, map[string]any{"devices": []string{"A", "B", "NONE"}, "auth": login}); count() != 1 {
		t.Errorf("%d devices are left", count())
	}
}

func TestMutualRooms(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, bob := s.Register("alice"), s.Register("bob")
		shared, left := alice.CreateRoom(map[string]any{"preset": "public_chat"}), alice.CreateRoom(map[string]any{"preset": "public_chat"})
		alice.CreateRoom(nil)
		bob.Join(string(shared))
		bob.Join(string(left))
		bob.OK("POST", hstest.Path(left)+"/leave", nil)
		const path = "/_matrix/client/v1/mutual_rooms?user_id="
		if out := bob.OK("GET", path+"@alice:test", nil); fmt.Sprint(out["joined"]) != fmt.Sprint([]matrix.RoomID{shared}) {
			t.Errorf("%v", out)
		}
		if out := bob.OK("GET", path+"@nobody:test", nil); fmt.Sprint(out["joined"]) != "[]" {
			t.Errorf("%v", out)
		}
		bob.Fails(400, "M_INVALID_PARAM", "GET", path+"@bob:test", nil)
		bob.Fails(400, "M_INVALID_PARAM", "GET", path, nil)
	})
}

func TestValidityOfRegistrationTokens(t *testing.T) {
	const path = "/_matrix/client/v1/register/m.login.registration_token/validity"
	s := hstest.Start(t, func(o *homeserver.Options) { o.Registration, o.RegistrationToken = "token", "secret" })
	for token, want := range map[string]bool{"secret": true, "other": false} {
		if out := s.Nobody().OK("GET", path+"?token="+token, nil); out["valid"] != want {
			t.Errorf("%s: %v", token, out)
		}
	}
	s.Nobody().Fails(400, "M_MISSING_PARAM", "GET", path, nil)
	if out := hstest.Start(t).Nobody().OK("GET", path+"?token=x", nil); out["valid"] != false {
		t.Errorf("where none is needed: %v", out)
	}
}
