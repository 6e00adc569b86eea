package eventauth

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/canonicaljson"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

func TestReadingLevels(t *testing.T) {
	tests := []struct {
		json     string
		want     Level
		versions string // that can read it
	}{
		{`0`, 0, "all"}, {`-7`, -7, "all"}, {`9007199254740991`, 1<<53 - 1, "all"},
		{`"0"`, 0, "1-9"}, {`"50"`, 50, "1-9"}, {`"+50"`, 50, "1-9"}, {`"-50"`, -50, "1-9"}, {`"0050"`, 50, "1-9"},
		{`" 50 "`, 50, "1-9"}, {`"\t50\n"`, 50, "1-9"},
		{`""`, 0, "none"}, {`" "`, 0, "none"}, {`"+"`, 0, "none"}, {`"-"`, 0, "none"}, {`"--5"`, 0, "none"}, {`"+-5"`, 0, "none"},
		{`"5_0"`, 0, "none"}, {`"5 0"`, 0, "none"}, {`"5.0"`, 0, "none"}, {`"0x10"`, 0, "none"}, {`"1e2"`, 0, "none"}, {`"５０"`, 0, "none"},
		{`"99999999999999999999"`, Infinite - 1, "1-9"}, {`"-99999999999999999999"`, math.MinInt64, "1-9"},
		{`50.0`, 50, "1-5"}, {`49.9`, 49, "1-5"}, {`-0.5`, 0, "1-5"}, {`1e2`, 100, "1-5"}, {`1e300`, Infinite - 1, "1-5"},
		{`-1e300`, math.MinInt64, "1-5"}, {`9223372036854775807`, Infinite - 1, "all"}, {`99999999999999999999`, Infinite - 1, "1-5"}, {`1e400`, 0, "none"},
		{`true`, 0, "none"}, {`null`, 0, "none"}, {`[]`, 0, "none"}, {`{}`, 0, "none"}, {``, 0, "none"},
	}
	for _, tt := range tests {
		for _, v := range roomversion.All() {
			got, ok := level(v, []byte(tt.json))
			if want := in(t, tt.versions, v.Version); ok != want || ok && got != tt.want {
				t.Errorf("version %s: %s is %d, %v; want %d, %v", v.Version, tt.json, got, ok, tt.want, want)
			}
		}
	}
}

func TestLevelsAsText(t *testing.T) {
	for l, want := range map[Level]string{0: "0", -5: "-5", Infinite: "infinite", Infinite - 1: "9223372036854775806"} {
		if got := l.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestLevelsOf(t *testing.T) {
	for _, v := range roomversion.All() {
		t.Run("version "+string(v.Version), func(t *testing.T) {
			r := newRoom(t, v)
			create := r.event(`create alice {"additional_creators":["$carol"]}`)
			check := func(what string, got, want Level) {
				t.Helper()
				if got != want {
					t.Errorf("%s: %s, want %s", what, got, want)
				}
			}
			infinite := func(or Level) Level {
				if v.CreatorsInfinite {
					return Infinite
				}
				return or
			}
			none, err := LevelsOf(create, nil)
			if err != nil {
				t.Fatal(err)
			}
			check("the creator without levels", none.User("@alice:a"), infinite(100))
			check("an additional creator without levels", none.User("@carol:a"), infinite(0))
			check("another without levels", none.User("@bob:b"), 0)
			check("ban", none.Ban, 50)
			check("kick", none.Kick, 50)
			check("redact", none.Redact, 50)
			check("invite", none.Invite, 0)
			check("state", none.Event("x", true), 50)
			check("messages", none.Event("x", false), 0)
			check("notifications", none.Notification("room"), 50)

			pl := r.event(`levels alice {"ban":1,"events":{"a\"b":6,"x":7},"events_default":2,"invite":3,"kick":4,"notifications":{"room":8},"redact":5,` +
				`"state_default":10,"users":{"$bob":9,"@\"\\:b":11},"users_default":12}`)
			eager, err := LevelsOf(create, pl)
			if err != nil {
				t.Fatal(err)
			}
			for name, l := range map[string]Levels{"eager": eager, "lazy": levelsOf(create, pl)} {
				check(name+" ban", l.Ban, 1)
				check(name+" kick", l.Kick, 4)
				check(name+" redact", l.Redact, 5)
				check(name+" invite", l.Invite, 3)
				check(name+" state", l.Event("y", true), 10)
				check(name+" messages", l.Event("y", false), 2)
				check(name+" x", l.Event("x", true), 7)
				check(name+` a"b`, l.Event(`a"b`, false), 6)
				check(name+" notifications", l.Notification("room"), 8)
				check(name+" other notifications", l.Notification("all"), 50)
				check(name+" bob", l.User("@bob:b"), 9)
				check(name+" a user with a quote", l.User(`@"\:b`), 11)
				check(name+" dave", l.User("@dave:d"), 12)
				check(name+" the creator", l.User("@alice:a"), infinite(12))
			}
			check("by one question", PowerOf(create, pl, "@bob:b"), 9)
			check("by one question without create", PowerOf(nil, pl, "@bob:b"), 9)
			check("by one question without anything", PowerOf(nil, nil, "@bob:b"), 0)
		})
	}
}

// In versions before 10 such levels came in as the first of a room.
func TestLevelsThatCannotBeReadCountAsMissing(t *testing.T) {
	rules, _ := roomversion.Get("9")
	r := newRoom(t, rules)
	l := levelsOf(r.event(`create alice {}`), r.event(`levels alice {"ban":"x","events":{"x":null},"kick":null,"notifications":[],"users":{"$bob":"x"},"users_default":{}}`))
	for name, got := range map[string][2]Level{
		"ban": {l.Ban, 50}, "kick": {l.Kick, 50}, "event": {l.Event("x", true), 50}, "notification": {l.Notification("room"), 50}, "user": {l.User("@bob:b"), 0},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %s, want %s", name, got[0], got[1])
		}
	}
}

// The least level there is has nothing below it to wrap round to.
func TestTheLeastLevel(t *testing.T) {
	rules, _ := roomversion.Get("1")
	r := newRoom(t, rules)
	state := r.state(`levels alice {"events":{"m.room.power_levels":-1e300},"users":{"$alice":100,"$bob":-1e300}}`)
	if err := Allowed(r.event(`levels bob {"events":{"m.room.power_levels":-1e300},"users":{"$bob":-1e300}}`), state); err == nil {
		t.Error("someone with the least power removed an admin")
	}
}

func TestMayRedact(t *testing.T) {
	for _, v := range roomversion.All() {
		r := newRoom(t, v)
		levels, err := LevelsOf(r.event(`create alice {}`), r.event(`levels alice {"users":{"$bob":50}}`))
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			redaction, target string
			want              bool
		}{
			{`redaction bob {}`, `message dave {}`, true},
			{`redaction dave {}`, `message bob {}`, false},
			{`redaction dave {}`, `message dave {}`, true},
			{`redaction carol {}`, `message alice {}`, true}, // of the same server
			{`redaction bob {}`, `message dave {} | room_id="!other:a"`, false},
		} {
			if got := MayRedact(r.event(tt.redaction), r.event(tt.target), levels); got != tt.want {
				t.Errorf("version %s: %s of %s: %v", v.Version, tt.redaction, tt.target, got)
			}
		}
	}
}

// A power-levels event that is allowed gives nobody more than its sender has, and
// takes nothing from the sender's equals.
func FuzzPowerLevels(f *testing.F) {
	for _, s := range []string{
		`{"users":{"@bob:b":50}}`, `{"users":{"@bob:b":"50","@carol:a":50,"@dave:d":1e1}}`, `{"ban":50,"events":{"m.room.power_levels":"50"},"users":{"@bob:b":50,"@carol:a":null}}`,
		`{"notifications":{"room":51},"users":[]}`,
	} {
		f.Add(uint8(0), s, s)
		f.Add(uint8(9), s, s)
		f.Add(uint8(11), s, s)
	}
	f.Fuzz(func(t *testing.T, version uint8, old, next string) {
		all := roomversion.All()
		rules := all[int(version)%len(all)]
		r := newRoom(t, rules)
		content := func(s string) string {
			canonical := canonicaljson.Canonical
			if rules.StrictJSON {
				canonical = canonicaljson.CanonicalStrict
			}
			c, err := canonical([]byte(s))
			if err != nil || c[0] != '{' || strings.ContainsAny(s, "|$\n") {
				t.Skip()
			}
			return string(c)
		}
		state := r.state("levels! alice " + content(old))
		ev := r.event("levels! bob " + content(next))
		pl := state.Get(matrix.TypePowerLevels, "")
		if checkLevels(pl) != nil || Allowed(ev, state) != nil {
			t.Skip()
		}
		create := state.Get(matrix.TypeCreate, "")
		before, after := levelsOf(create, pl), levelsOf(create, ev)
		power := before.User("@bob:b")
		users := entries(rules, before.users)
		for u := range entries(rules, after.users) {
			users[u] = 0
		}
		for u := range users {
			_, had := entries(rules, before.users)[u]
			was, is := before.User(matrix.UserID(u)), after.User(matrix.UserID(u))
			if _, has := entries(rules, after.users)[u]; has && is != was && is > power {
				t.Errorf("%s got %s of %s", u, is, power)
			}
			if had && u != "@bob:b" && was >= power && is != was && before.User(matrix.UserID(u)) != Infinite {
				t.Errorf("%s lost %s", u, was)
			}
		}
	})
}

// Whatever an event says, there is a decision, and strangers do nothing but come in.
func FuzzAllowed(f *testing.F) {
	for _, tt := range rules[:60] {
		_, content, _ := strings.Cut(tt.event, "{")
		f.Add(uint8(11), "m.room.member", "@dave:d", "{"+content)
	}
	f.Add(uint8(5), "m.room.topic", "", `{"topic":"x"}`)
	f.Fuzz(func(t *testing.T, version uint8, typ, key, content string) {
		all := roomversion.All()
		v := all[int(version)%len(all)]
		r := newRoom(t, v)
		raw := fmt.Sprintf(`{"auth_events":[],"content":%s,"depth":1,"event_id":"$x:b","origin_server_ts":1,"prev_events":[],"room_id":%s,"sender":"@dave:d","state_key":%s,"type":%s}`,
			content, quote(string(r.id)), quote(key), quote(typ))
		hashed, _, err := pdu.Parse(v, []byte(raw))
		if err != nil {
			t.Skip()
		}
		p, err := pdu.ParseTrusted(v, hashed.ID, hashed.JSON())
		if err != nil {
			t.Skip()
		}
		state := r.state("")
		if Allowed(p, state) != nil {
			return
		}
		switch {
		case p.Type == matrix.TypeCreate, p.Type == matrix.TypeMember && key == "@dave:d" && p.Membership() == matrix.Join:
		case p.Type == matrix.TypeAliases && v.AliasesAuth && key == "d":
		default:
			t.Errorf("a stranger may send %s", p.JSON())
		}
		CheckAuthEvents(p, []AuthEvent{{PDU: state.Get(matrix.TypeCreate, "")}, {PDU: p, Rejected: true}})
	})
}

func BenchmarkAllowed(b *testing.B) {
	for _, version := range []string{"10", "12"} {
		v, _ := roomversion.Get(matrix.RoomVersion(version))
		r := newRoom(b, v)
		state := r.state("")
		for i := range 10000 {
			e := r.event(fmt.Sprintf(`member/@user%d:b bob join`, i))
			state[e.Key()] = e
		}
		var many strings.Builder
		for i := range 1000 {
			fmt.Fprintf(&many, `"@user%d:b":%d,`, i, i%50)
		}
		crowded := r.event(`levels alice {"users":{"$alice":100,` + many.String() + `"$bob":50}}`)
		bench := func(name string, state StateMap, ev *pdu.PDU) {
			b.Run("v"+version+" "+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := Allowed(ev, state); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		bench("message", state, r.event(`message bob {"body":"hello"}`))
		bench("join", state, r.event(`member/$dave dave join`))
		bench("levels", state, r.event(`levels alice {"users":{"$alice":100,"$bob":40}}`))
		full := StateMap{}
		for k, e := range state {
			full[k] = e
		}
		full[crowded.Key()] = crowded
		bench("message, 1000 users with levels", full, r.event(`message bob {"body":"hello"}`))
	}
}
