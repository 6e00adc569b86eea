package pdu

import (
	"bytes"
	"crypto/ed25519"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/canonicaljson"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

// vectors are events with the hashes and signatures that a program in another
// language, written from the specification alone, has given them: one for each kind
// and each version that changes something. They stand as JSON that is not canonical.
//
//go:embed testdata/vectors.jsonl
var vectors []byte

func TestVectorsOfEveryVersion(t *testing.T) {
	lines := bytes.Split(bytes.TrimSpace(vectors), []byte("\n"))
	if len(lines) < 40 {
		t.Fatalf("%d vectors", len(lines))
	}
	for _, line := range lines {
		var v struct {
			Name, Version string
			ReferenceHash string `json:"reference_hash"`
			Event         json.RawMessage
		}
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatal(err)
		}
		t.Run(v.Name+"/version "+v.Version, func(t *testing.T) {
			rules, ok := roomversion.Get(matrix.RoomVersion(v.Version))
			if !ok {
				t.Fatal("unknown version")
			}
			p, intact, err := Parse(rules, v.Event)
			if err != nil || !intact {
				t.Fatalf("intact %v, %v", intact, err)
			}
			want := matrix.EventID("$" + v.ReferenceHash)
			if rules.IDFormat == roomversion.IDInEvent {
				want = "$event:example.org"
				if got := p.ReferenceHash(); got != v.ReferenceHash {
					t.Errorf("reference hash %s, want %s", got, v.ReferenceHash)
				}
			}
			if p.ID != want {
				t.Errorf("ID %s, want %s", p.ID, want)
			}
			if v.Name == "create" && rules.RoomIDIsCreateHash && string(p.RoomID) != "!"+v.ReferenceHash {
				t.Errorf("room ID %s", p.RoomID)
			}
			message := without(Redact(rules, p.JSON()), "signatures", "unsigned")
			if err := verify(p.JSON(), message, "example.org", signer.KeyID, signer.Key.Public().(ed25519.PublicKey)); err != nil {
				t.Error(err)
			}
		})
	}
}

// Which servers must have signed an event. signer is of "domain".
func TestWhoMustSign(t *testing.T) {
	tests := []struct {
		name, typ, sender, content string
		id                         matrix.EventID    // in versions 1 and 2
		want                       map[string]string // by the first version that it is so from
	}{
		{"a message", "m.room.message", "@u:a", `{}`, "$x:a", map[string]string{"1": "a"}},
		{"a message whose ID is of another server", "m.room.message", "@u:a", `{}`, "$x:b", map[string]string{"1": "a b", "3": "a"}},
		{"an invite", "m.room.member", "@u:a", `{"membership":"invite"}`, "$x:a", map[string]string{"1": "a"}},
		{"a third-party invite", "m.room.member", "@u:a", `{"membership":"invite","third_party_invite":{}}`, "$x:a", map[string]string{"1": ""}},
		{"a third-party invite whose ID is of another server", "m.room.member", "@u:a", `{"membership":"invite","third_party_invite":{}}`, "$x:b", map[string]string{"1": "b", "3": ""}},
		{"an invite that only says it is a third-party one", "m.room.member", "@u:a", `{"membership":"invite","third_party_invite":true}`, "$x:a", map[string]string{"1": "a"}},
		{"a join that says it is a third-party invite", "m.room.member", "@u:a", `{"membership":"join","third_party_invite":{}}`, "$x:a", map[string]string{"1": "a"}},
		{"a message that says it is a third-party invite", "m.room.message", "@u:a", `{"membership":"invite","third_party_invite":{}}`, "$x:a", map[string]string{"1": "a"}},
		{"a restricted join", "m.room.member", "@u:a", `{"join_authorised_via_users_server":"@v:c","membership":"join"}`, "$x:a", map[string]string{"1": "a", "8": "a c"}},
		{"a restricted join, authorised at home", "m.room.member", "@u:a", `{"join_authorised_via_users_server":"@v:a","membership":"join"}`, "$x:a", map[string]string{"1": "a"}},
		{"a leave with what restricted joins have", "m.room.member", "@u:a", `{"join_authorised_via_users_server":"@v:c","membership":"leave"}`, "$x:a", map[string]string{"1": "a"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := ""
			for _, rules := range roomversion.All() {
				if w, ok := tt.want[string(rules.Version)]; ok {
					want = w
				}
				key := "@u:a"
				e := proto(rules, tt.typ, &key, tt.content)
				e.Sender = matrix.UserID(tt.sender)
				if rules.IDFormat == roomversion.IDInEvent {
					e.ID = tt.id
				}
				p, err := e.Build(rules, signer)
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, s := range p.signers() {
					got = append(got, string(s))
				}
				if strings.Join(got, " ") != want {
					t.Errorf("version %s: %q, want %q", rules.Version, got, want)
				}
			}
		})
	}
}

// Identifiers of more than 255 bytes: what came from outside before version 11 is
// rejected by the rules, not dropped, if it has no more than 255 characters. Our own
// events are refused in any case.
func TestLongIdentifiers(t *testing.T) {
	for _, rules := range roomversion.All() {
		for name, member := range map[string]string{
			"type": strings.Repeat("é", 128), "state_key": strings.Repeat("é", 128),
			"sender": "@" + strings.Repeat("é", 125) + ":domain", "room_id": "!" + strings.Repeat("é", 125) + ":domain",
		} {
			for what, value := range map[string]string{"bytes": member, "characters": member + strings.Repeat("x", 256)} {
				key := "k"
				p, err := proto(rules, "x", &key, `{}`).Build(rules, signer)
				if err != nil {
					t.Fatal(err)
				}
				raw := setMember(p.JSON(), name, canonicaljson.AppendString(nil, value))
				got, _, err := Parse(rules, raw)
				kept := what == "bytes" && !rules.DropOverByteLimit
				switch {
				case kept && (err != nil || !got.OverLimit):
					t.Errorf("version %s: %s over 255 %s: %v", rules.Version, name, what, err)
				case !kept && !errors.Is(err, ErrTooLarge):
					t.Errorf("version %s: %s over 255 %s: %v", rules.Version, name, what, err)
				}
				if kept {
					if again, err := ParseTrusted(rules, got.ID, got.JSON()); err != nil || !again.OverLimit {
						t.Errorf("version %s: %s from the store: %v", rules.Version, name, err)
					}
				}
			}
		}
		e := proto(rules, strings.Repeat("é", 128), nil, `{}`)
		if _, err := e.Build(rules, signer); !errors.Is(err, ErrTooLarge) {
			t.Errorf("version %s: our own: %v", rules.Version, err)
		}
	}
}

// A create event of version 12 that names a room is for the rules to reject, but its
// format is checked.
func TestTheFormatOfACreateEventWithARoomID(t *testing.T) {
	rules, _ := roomversion.Get("12")
	key := ""
	e := proto(rules, matrix.TypeCreate, &key, `{}`)
	p, err := e.Build(rules, signer)
	if err != nil || p.RoomID != "!r:domain" {
		t.Fatalf("%v, %v", p, err)
	}
	e.Sender = "nobody"
	if _, err := e.Build(rules, signer); !errors.Is(err, ErrFormat) {
		t.Error(err)
	}
}

// A key called redacts means something in a redaction alone.
func TestRedactsOfOtherEvents(t *testing.T) {
	for _, rules := range roomversion.All() {
		e := proto(rules, matrix.TypeMessage, nil, `{}`)
		e.Redacts = "$x:domain"
		p, err := e.Build(rules, signer)
		if err != nil || p.Redacts != "" {
			t.Errorf("version %s: redacts %q, %v", rules.Version, p.Redacts, err)
		}
	}
}

// What makes an event malformed, so that it is dropped; in which versions.
func TestMalformedEvents(t *testing.T) {
	tests := []struct {
		name     string
		change   map[string]string // members as JSON; "" removes one
		versions string            // that drop it, by first and last; "" is all
	}{
		{"no type", map[string]string{"type": ""}, ""},
		{"a type that is no text", map[string]string{"type": "5"}, ""},
		{"no sender", map[string]string{"sender": ""}, ""},
		{"a sender that is no user ID", map[string]string{"sender": `"alice"`}, ""},
		{"no content", map[string]string{"content": ""}, ""},
		{"content that is a list", map[string]string{"content": "[]"}, ""},
		{"content that is null", map[string]string{"content": "null"}, ""},
		{"no origin_server_ts", map[string]string{"origin_server_ts": ""}, ""},
		{"an origin_server_ts that is text", map[string]string{"origin_server_ts": `"5"`}, ""},
		{"no depth", map[string]string{"depth": ""}, ""},
		{"a negative depth", map[string]string{"depth": "-1"}, ""},
		{"a depth of 2^53", map[string]string{"depth": "9007199254740992"}, "6-12"},
		{"a depth of 2^63", map[string]string{"depth": "9223372036854775808"}, ""},
		{"no auth_events", map[string]string{"auth_events": ""}, ""},
		{"no prev_events", map[string]string{"prev_events": ""}, ""},
		{"prev_events that is an object", map[string]string{"prev_events": "{}"}, ""},
		{"prev_events with a number", map[string]string{"prev_events": "[5]"}, ""},
		{"prev_events with empty lists", map[string]string{"prev_events": "[[]]"}, ""},
		{"prev_events of versions 1 and 2", map[string]string{"prev_events": `[["$a:b",{"sha256":"x"}]]`}, "3-12"},
		{"prev_events of version 3 and later", map[string]string{"prev_events": `["$a"]`}, "1-2"},
		{"no room_id", map[string]string{"room_id": ""}, ""},
		{"a room_id of another sigil", map[string]string{"room_id": `"#r:domain"`}, ""},
		{"no event_id", map[string]string{"event_id": ""}, "1-2"},
		{"an event_id that is a number", map[string]string{"event_id": "5"}, "1-2"},
		{"a state_key that is null", map[string]string{"state_key": "null"}, ""},
		{"no hashes", map[string]string{"hashes": ""}, ""},
		{"hashes without sha256", map[string]string{"hashes": "{}"}, ""},
		{"a sha256 that is no text", map[string]string{"hashes": `{"sha256":5}`}, ""},
		{"no signatures", map[string]string{"signatures": ""}, ""},
		{"signatures that are a list", map[string]string{"signatures": "[]"}, ""},
		{"a fraction", map[string]string{"content": `{"a":0.5}`}, "6-12"},
		{"an integer of more than 53 bits", map[string]string{"content": `{"a":9007199254740992}`}, "6-12"},
		{"minus zero", map[string]string{"content": `{"a":-0}`}, "6-12"},
		{"an exponent", map[string]string{"content": `{"a":1e3}`}, "6-12"},
		{"a key twice", map[string]string{"content": `{"a":1,"a":2}`}, "6-12"},
		{"half a surrogate pair", map[string]string{"content": `{"a":"\ud800"}`}, ""},
		{"nothing wrong", nil, "none"},
		{"an unknown key", map[string]string{"xyz": `{"a":1}`}, "none"},
		{"an origin", map[string]string{"origin": `"domain"`}, "none"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for i, rules := range roomversion.All() {
				e := proto(rules, matrix.TypeMessage, nil, `{"body":"x"}`)
				p, err := e.Build(rules, signer)
				if err != nil {
					t.Fatal(err)
				}
				members := map[string]string{}
				canonicaljson.Each(p.JSON(), func(k, v []byte) bool { members[string(k)] = string(v); return true })
				for k, v := range tt.change {
					if members[k] = v; v == "" {
						delete(members, k)
					}
				}
				var raw []string
				for k, v := range members {
					raw = append(raw, fmt.Sprintf("%q:%s", k, v))
				}
				_, _, err = Parse(rules, []byte("{"+strings.Join(raw, ",")+"}"))
				first, last := 1, 12
				if tt.versions == "none" {
					first = 13
				} else if tt.versions != "" {
					fmt.Sscanf(tt.versions, "%d-%d", &first, &last)
				}
				if want := first <= i+1 && i+1 <= last; errors.Is(err, ErrFormat) != want {
					t.Errorf("version %s: %v, want it dropped: %v", rules.Version, err, want)
				}
			}
		})
	}
}
