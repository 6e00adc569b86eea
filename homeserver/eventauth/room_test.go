package eventauth

import (
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/gjallar-im/gjallar/homeserver/canonicaljson"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

// Who is who: alice made the room; carol is of her server, the others of their own.
var users = map[string]string{
	"alice": "@alice:a", "bob": "@bob:b", "carol": "@carol:a", "dave": "@dave:d",
}

var shortTypes = map[string]string{
	"create": matrix.TypeCreate, "member": matrix.TypeMember, "levels": matrix.TypePowerLevels, "rule": matrix.TypeJoinRules,
	"topic": matrix.TypeTopic, "aliases": matrix.TypeAliases, "message": matrix.TypeMessage, "redaction": matrix.TypeRedaction,
	"tpi": matrix.TypeThirdPartyInvite, "other": "org.example.other",
}

// shortMembers are contents that are short to write.
var shortContents = map[string]string{
	"join": `{"membership":"join"}`, "invite": `{"membership":"invite"}`, "leave": `{"membership":"leave"}`, "ban": `{"membership":"ban"}`,
	"knock": `{"membership":"knock"}`, "public": `{"join_rule":"public"}`, "invite-only": `{"join_rule":"invite"}`,
	"knocking": `{"join_rule":"knock"}`, "restricted": `{"join_rule":"restricted"}`, "knock-restricted": `{"join_rule":"knock_restricted"}`,
}

// prelude is the state that an event is checked against, where a row says nothing else.
const prelude = `
	create alice {}
	member/$alice alice join
	member/$bob bob join
	member/$carol carol join
	levels alice {"users":{"$alice":100,"$bob":50}}
	rule alice public`

// room makes events of one version.
type room struct {
	tb    testing.TB
	rules *roomversion.Rules
	id    matrix.RoomID
	n     int
}

func newRoom(tb testing.TB, rules *roomversion.Rules) *room {
	r := &room{tb: tb, rules: rules, id: "!room:a"}
	if rules.RoomIDIsCreateHash {
		r.id = pdu.RoomIDOf(r.eventID("create"))
	}
	return r
}

func (r *room) eventID(name string) matrix.EventID {
	if r.rules.IDFormat == roomversion.IDInEvent {
		return matrix.EventID("$" + name + ":b")
	}
	return matrix.EventID("$" + name)
}

// event reads "type/key sender content | member=value…". A "-" at the end of the type
// is for an event without state key, a "!" for content that is to stay as it is:
// else create events get the keys that their version wants, and power levels lose
// alice where she may not be in them.
func (r *room) event(line string) *pdu.PDU {
	r.tb.Helper()
	pairs := []string{}
	for name, id := range users {
		pairs = append(pairs, "$"+name, id)
	}
	line = strings.NewReplacer(pairs...).Replace(strings.TrimSpace(line))
	head, rest, _ := strings.Cut(line, " ")
	sender, content, _ := strings.Cut(rest, " ")
	content, extra, _ := strings.Cut(content, " | ")
	if full := shortContents[content]; full != "" {
		content = full
	}
	typ, key, _ := strings.Cut(head, "/")
	asIs := strings.HasSuffix(typ, "!")
	typ = strings.TrimSuffix(typ, "!")
	stateKey := &key
	if strings.HasSuffix(typ, "-") || typ == "message" || typ == "redaction" {
		stateKey = nil
	}
	typ = shortTypes[strings.TrimSuffix(typ, "-")]
	if typ == "" || content == "" || users[sender] == "" {
		r.tb.Fatalf("bad line %q", line)
	}
	if !asIs {
		content = r.fit(typ, content)
	}
	r.n++
	name := fmt.Sprintf("e%d", r.n)
	if typ == matrix.TypeCreate {
		name = "create"
	}
	m := map[string]json.RawMessage{
		"auth_events": []byte("[]"), "prev_events": r.refs("prev"), "content": []byte(content), "depth": []byte("5"), "origin_server_ts": []byte("1"),
		"sender": quote(users[sender]), "type": quote(typ),
	}
	if r.rules.IDFormat == roomversion.IDInEvent {
		m["event_id"] = quote(string(r.eventID(name)))
	}
	if stateKey != nil {
		m["state_key"] = quote(*stateKey)
	}
	if typ != matrix.TypeCreate || !r.rules.RoomIDIsCreateHash {
		m["room_id"] = quote(string(r.id))
	}
	if typ == matrix.TypeCreate {
		m["prev_events"] = []byte("[]")
	}
	for pair := range strings.FieldsSeq(extra) {
		k, v, _ := strings.Cut(pair, "=")
		if k == "prev" {
			k, v = "prev_events", string(r.refs(strings.Split(v, ",")...))
		}
		m[k] = []byte(v)
	}
	raw, err := json.Marshal(m)
	if err == nil {
		raw, err = canonicaljson.Canonical(raw)
	}
	if err != nil {
		r.tb.Fatalf("%s: %v", line, err)
	}
	e, err := pdu.ParseTrusted(r.rules, r.eventID(name), raw)
	if err != nil {
		r.tb.Fatalf("%s: %v", line, err)
	}
	return e
}

func quote(s string) []byte { return canonicaljson.AppendString(nil, s) }

func (r *room) refs(names ...string) []byte {
	out := []string{}
	for _, name := range names {
		id := string(quote(string(r.eventID(name))))
		if r.rules.EventRefsWithHashes {
			id = "[" + id + ",{}]"
		}
		out = append(out, id)
	}
	return []byte("[" + strings.Join(out, ",") + "]")
}

func (r *room) fit(typ, content string) string {
	switch typ {
	case matrix.TypeCreate:
		if !r.rules.ImplicitCreator && !gjson.Get(content, "creator").Exists() {
			return strings.Replace(strings.Replace(content, "{", `{"creator":"@alice:a",`, 1), ",}", "}", 1)
		}
	case matrix.TypePowerLevels:
		if r.rules.CreatorsInfinite {
			return strings.NewReplacer(`"@alice:a":100,`, "", `"@alice:a":100`, "").Replace(content)
		}
	}
	return content
}

// state is the prelude changed by lines. A line "none type/key" removes state, and
// "only" everything but the create event.
func (r *room) state(lines string) StateMap {
	r.tb.Helper()
	s := StateMap{}
	for line := range strings.Lines(prelude + "\n" + lines) {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
		case line == "only":
			maps.DeleteFunc(s, func(k matrix.StateKey, _ *pdu.PDU) bool { return k.Type != matrix.TypeCreate })
		case strings.HasPrefix(line, "none "):
			delete(s, r.event(line[5:]+" alice {}").Key())
		default:
			e := r.event(line)
			s[e.Key()] = e
		}
	}
	return s
}

// in reports whether a version is of a range: "all", "none", "3", "1-6", "7-".
func in(tb testing.TB, versions string, v matrix.RoomVersion) bool {
	tb.Helper()
	switch versions {
	case "all", "":
		return true
	case "none":
		return false
	}
	from, to, ranged := strings.Cut(versions, "-")
	if !ranged {
		return string(v) == versions
	}
	if to == "" {
		to = "99"
	}
	n, err := strconv.Atoi(string(v))
	low, err1 := strconv.Atoi(from)
	high, err2 := strconv.Atoi(to)
	if err != nil || err1 != nil || err2 != nil {
		tb.Fatalf("bad range %q", versions)
	}
	return low <= n && n <= high
}
