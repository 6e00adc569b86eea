package stateres

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/canonicaljson"
	"github.com/gjallar-im/gjallar/homeserver/eventauth"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

// testRoom plays the history of a room as one server sees it: the state before an
// event is what the states after its prev_events resolve to.
type testRoom struct {
	tb     testing.TB
	rules  *roomversion.Rules
	id     matrix.RoomID
	events Map
	after  map[string]State // the state after each event, by its short name
	ts     int64
}

func rulesOf(tb testing.TB, version string) *roomversion.Rules {
	tb.Helper()
	rules, ok := roomversion.Get(matrix.RoomVersion(version))
	if !ok {
		tb.Fatalf("no room version %s", version)
	}
	return rules
}

func newRoom(tb testing.TB, version string) *testRoom {
	r := &testRoom{tb: tb, rules: rulesOf(tb, version), events: Map{}, after: map[string]State{}, ts: 1000}
	r.id = "!room:test"
	if r.rules.RoomIDIsCreateHash {
		r.id = pdu.RoomIDOf(r.eventID("create"))
	}
	return r
}

// eventID is a name as ID. That it is no hash lets tests choose how ties end.
func (r *testRoom) eventID(name string) matrix.EventID {
	if r.rules.IDFormat == roomversion.IDInEvent {
		return matrix.EventID("$" + name + ":test")
	}
	return matrix.EventID("$" + name)
}

func user(name string) string { return "@" + name + ":test" }

// action is what an event does, in a word or two.
type action struct {
	sender, typ string
	key         *string
	content     map[string]any
}

// parseAction reads "alice ban bob", "alice levels bob=50 kick=0", "bob topic x" and
// so on.
func (r *testRoom) parseAction(words []string) action {
	r.tb.Helper()
	sender, verb, args := words[0], words[1], words[2:]
	a := action{sender: user(sender), key: new(string), content: map[string]any{}}
	arg := func() string {
		if len(args) == 0 {
			return sender
		}
		return args[0]
	}
	member := func(membership string) {
		key := user(arg())
		a.typ, a.key, a.content = matrix.TypeMember, &key, map[string]any{"membership": membership}
	}
	switch verb {
	case "create":
		a.typ, a.content["room_version"] = matrix.TypeCreate, string(r.rules.Version)
		if !r.rules.ImplicitCreator {
			a.content["creator"] = a.sender
		}
		if len(args) > 0 {
			a.content["additional_creators"] = []string{user(args[0])}
		}
	case "join", "invite", "ban", "knock", "leave":
		member(verb)
	case "kick", "unban":
		member(matrix.Leave)
	case "rejoin": // a join that says something new
		key := a.sender
		a.typ, a.key, a.content = matrix.TypeMember, &key, map[string]any{"membership": "join", "displayname": arg()}
	case "rule":
		a.typ, a.content["join_rule"] = matrix.TypeJoinRules, arg()
	case "topic":
		a.typ, a.content["topic"] = matrix.TypeTopic, arg()
	case "name":
		a.typ, a.content["name"] = matrix.TypeName, arg()
	case "message":
		a.typ, a.key = matrix.TypeMessage, nil
	case "levels":
		a.typ, a.content = matrix.TypePowerLevels, r.levels(args)
	default:
		r.tb.Fatalf("unknown verb in %q", words)
	}
	return a
}

// levels reads "bob=50 kick=0 m.room.name=50". Creators are left out in versions
// where they may not be named.
func (r *testRoom) levels(args []string) map[string]any {
	users, events, content := map[string]any{}, map[string]any{}, map[string]any{}
	for _, arg := range args {
		name, text, _ := strings.Cut(arg, "=")
		n, err := strconv.Atoi(text)
		if err != nil {
			r.tb.Fatal(err)
		}
		switch {
		case slices.Contains([]string{"ban", "kick", "redact", "invite", "users_default", "events_default", "state_default"}, name):
			content[name] = n
		case strings.HasPrefix(name, "m."):
			events[name] = n
		case r.rules.CreatorsInfinite && name == "alice":
		default:
			users[user(name)] = n
		}
	}
	content["users"], content["events"] = users, events
	return content
}

// play adds the events of a script: lines "name < prev prev : sender verb args @ts".
// Without "< …" the event follows the line before. Each must be allowed, unless it
// ends in "!", when it must be rejected.
func (r *testRoom) play(script string) {
	r.tb.Helper()
	last := ""
	for line := range strings.Lines(script) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		if line == "" {
			continue
		}
		head, body, ok := strings.Cut(line, ":")
		if !ok {
			r.tb.Fatalf("bad line %q", line)
		}
		name, from, branched := strings.Cut(head, "<")
		prev := strings.Fields(from)
		if !branched && last != "" {
			prev = []string{last}
		}
		words := strings.Fields(body)
		want := true
		if words[len(words)-1] == "!" {
			want, words = false, words[:len(words)-1]
		}
		r.ts++
		ts := r.ts
		if w := words[len(words)-1]; w[0] == '@' {
			n, err := strconv.ParseInt(w[1:], 10, 64)
			if err != nil {
				r.tb.Fatal(err)
			}
			ts, words = n, words[:len(words)-1]
		}
		last = strings.TrimSpace(name)
		if err := r.add(last, prev, r.parseAction(words), ts, nil); (err == nil) != want {
			r.tb.Fatalf("%s: %v", line, err)
		}
	}
}

// before is the state that an event after these is checked against.
func (r *testRoom) before(prev []string) State {
	r.tb.Helper()
	sets := make([]State, 0, len(prev))
	for _, p := range prev {
		set, ok := r.after[p]
		if !ok {
			r.tb.Fatalf("there is no event %q", p)
		}
		sets = append(sets, set)
	}
	s, err := Resolve(r.rules, sets, r.events)
	if err != nil {
		r.tb.Fatal(err)
	}
	return s
}

// add stores an event, and returns why it is rejected. citing is the state that it
// takes auth_events from; nil is the one before it.
func (r *testRoom) add(name string, prev []string, a action, ts int64, citing State) error {
	r.tb.Helper()
	before := r.before(prev)
	if citing == nil {
		citing = before
	}
	content, err := canonicaljson.Marshal(a.content)
	if err != nil {
		r.tb.Fatal(err)
	}
	var auth []Event
	for _, k := range eventauth.NeededFor(r.rules, a.typ, matrix.UserID(a.sender), a.key, content) {
		if id := citing[k]; id != "" {
			auth = append(auth, r.events[id])
		}
	}
	depth := int64(0)
	prevIDs := []matrix.EventID{}
	for _, p := range prev {
		prevIDs = append(prevIDs, r.eventID(p))
		depth = max(depth, r.events[r.eventID(p)].Depth)
	}
	e := r.event(name, a, content, depth+1, ts, prevIDs, idsOf(auth))
	err = eventauth.CheckAuthEvents(e, auth)
	if err == nil {
		err = eventauth.Allowed(e, r.stateOf(citedBy(auth, r)))
	}
	if err == nil {
		err = eventauth.Allowed(e, r.stateOf(before))
	}
	r.events[e.ID] = Event{PDU: e, Rejected: err != nil}
	if err == nil && e.IsState() {
		before = maps.Clone(before)
		before[e.Key()] = e.ID
	}
	r.after[name] = before
	return err
}

func idsOf(events []Event) []matrix.EventID {
	ids := []matrix.EventID{}
	for _, e := range events {
		ids = append(ids, e.ID)
	}
	return ids
}

func citedBy(auth []Event, r *testRoom) State {
	s := State{}
	for _, a := range auth {
		s[a.Key()] = a.ID
	}
	if r.rules.RoomIDIsCreateHash {
		s[matrix.StateKey{Type: matrix.TypeCreate}] = r.eventID("create")
	}
	return s
}

func (r *testRoom) stateOf(s State) eventauth.StateMap {
	m := eventauth.StateMap{}
	for k, id := range s {
		m[k] = r.events[id].PDU
	}
	return m
}

// event is a stored event with the ID that we choose, without hashes and signatures.
func (r *testRoom) event(name string, a action, content []byte, depth, ts int64, prev, auth []matrix.EventID) *pdu.PDU {
	r.tb.Helper()
	refs := func(ids []matrix.EventID) any {
		if !r.rules.EventRefsWithHashes {
			return ids
		}
		out := []any{}
		for _, id := range ids {
			out = append(out, []any{id, map[string]string{}})
		}
		return out
	}
	id := r.eventID(name)
	m := map[string]any{
		"auth_events": refs(auth), "content": json.RawMessage(content), "depth": depth, "origin_server_ts": ts,
		"prev_events": refs(prev), "sender": a.sender, "type": a.typ,
	}
	if a.key != nil {
		m["state_key"] = *a.key
	}
	if r.rules.IDFormat == roomversion.IDInEvent {
		m["event_id"] = id
	}
	if !r.rules.RoomIDIsCreateHash || a.typ != matrix.TypeCreate {
		m["room_id"] = r.id
	}
	raw, err := canonicaljson.Marshal(m)
	if err != nil {
		r.tb.Fatal(err)
	}
	e, err := pdu.ParseTrusted(r.rules, id, raw)
	if err != nil {
		r.tb.Fatal(err)
	}
	return e
}

// show writes a state with short names, for people.
func show(s State) string {
	var lines []string
	for k, id := range s {
		lines = append(lines, fmt.Sprintf("%s %q: %s", strings.TrimPrefix(k.Type, "m.room."), k.Key, id))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
