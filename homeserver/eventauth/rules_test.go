package eventauth

import (
	"errors"
	"strings"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

// A row is an event and the versions that allow it, after changes to the prelude.
// The others must reject it. Rules have the numbers of room version 12.
var rules = []struct {
	rule, name, state, event string
	allowed                  string // the versions that allow it
	only                     string // the versions that the row is about, if not all
}{
	{"1", "create", "", `create alice {}`, "all", ""},
	{"1", "create with a state key", "", `create/x alice {}`, "none", ""},
	{"1.1", "create with prev_events", "", `create alice {} | prev=prev`, "none", ""},
	{"1.2", "create in a room of another server", "", `create bob {}`, "12", ""},
	{"1.2", "create in a room without server", "", `create alice {} | room_id="!x"`, "none", ""},
	{"1.2", "create with its room ID", "", `create alice {} | room_id="!create"`, "none", "12"},
	{"1.3", "create of a known version", "", `create alice {"room_version":"3"}`, "all", ""},
	{"1.3", "create of an unknown version", "", `create alice {"room_version":"13"}`, "none", ""},
	{"1.3", "create whose version is a number", "", `create alice {"room_version":3}`, "none", ""},
	{"1.4", "create without creator", "", `create! alice {}`, "11-", ""},
	{"1.4", "additional creators that are no list", "", `create alice {"additional_creators":"$bob"}`, "1-11", ""},
	{"1.4", "an additional creator that is no text", "", `create alice {"additional_creators":["$bob",5]}`, "1-11", ""},
	{"1.4", "an additional creator that is no user ID", "", `create alice {"additional_creators":["bob"]}`, "1-11", ""},
	{"1.4", "an additional creator of an invalid server", "", `create alice {"additional_creators":["@bob:b/c"]}`, "1-11", ""},
	{"1.4", "no additional creators", "", `create alice {"additional_creators":[]}`, "all", ""},
	{"1.4", "additional creators", "", `create alice {"additional_creators":["$bob","@:c"]}`, "all", ""},

	{"2", "a room without create event", "none create", `message alice {}`, "none", ""},
	{"2", "a create event of another room", "", `message alice {} | room_id="!other:a"`, "none", ""},

	{"4", "a user of the creator's server in a room that does not federate", `create alice {"m.federate":false}`, `message carol {}`, "all", ""},
	{"4", "a user of another server in a room that does not federate", `create alice {"m.federate":false}`, `message bob {}`, "none", ""},
	{"4", "inviting a user of another server to a room that does not federate", `create alice {"m.federate":false}`, `member/$dave alice invite`, "none", ""},
	{"4", "m.federate that is no boolean", `create alice {"m.federate":"false"}`, `message bob {}`, "all", ""},
	{"4", "m.federate true", `create alice {"m.federate":true}`, `message bob {}`, "all", ""},

	{"4 of v1", "aliases of the own server, by a stranger", "", `aliases/d dave {}`, "1-5", ""},
	{"4 of v1", "aliases of another server, by an admin", "", `aliases/d alice {}`, "6-", ""},
	{"4 of v1", "aliases without state key", "", `aliases- alice {}`, "6-", ""},

	{"5.1", "member without state key", "", `member- alice join`, "none", ""},
	{"5.1", "member without membership", "", `member/$alice alice {}`, "none", ""},
	{"5.1", "member whose membership is a number", "", `member/$alice alice {"membership":1}`, "none", ""},
	{"5.1", "member that is no user", "", `member/nobody alice ban`, "none", ""},
	{"5.8", "unknown membership", "", `member/$alice alice {"membership":"JOIN"}`, "none", ""},

	{"5.2", "joining a public room, authorised by what is no user", "", `member/$dave dave {"join_authorised_via_users_server":"nobody","membership":"join"}`, "1-7", ""},
	{"5.2", "joining a public room, authorised by what is no text", "", `member/$dave dave {"join_authorised_via_users_server":null,"membership":"join"}`, "1-7", ""},
	{"5.2", "leaving, authorised by what is no user", "", `member/$bob bob {"join_authorised_via_users_server":"nobody","membership":"leave"}`, "all", ""},
	{"5.3.1", "the creator joins first", "only", `member/$alice alice join | prev=create`, "all", ""},
	{"5.3.1", "the creator joins first, another says", "only", `member/$alice bob join | prev=create`, "all", ""},
	{"5.3.1", "another joins first", "only", `member/$carol carol join | prev=create`, "none", ""},
	{"5.3.1", "the creator joins second", "only", `member/$alice alice join | prev=prev`, "none", ""},
	{"5.3.1", "the creator joins after two events", "only", `member/$alice alice join | prev=create,prev`, "none", ""},
	{"5.3.1", "who content.creator names joins first", "create alice {\"creator\":\"$bob\"}\nonly", `member/$bob bob join | prev=create`, "1-10", ""},
	{"5.3.1", "who sent create but is not content.creator joins first", "create alice {\"creator\":\"$bob\"}\nonly", `member/$alice alice join | prev=create`, "11-", ""},
	{"5.3.1", "an additional creator joins first", "create alice {\"additional_creators\":[\"$bob\"]}\nonly", `member/$bob bob join | prev=create`, "none", ""},
	{"5.3.2", "making another join", "", `member/$dave alice join`, "none", ""},
	{"5.3.3", "joining when banned", `member/$dave alice ban`, `member/$dave dave join`, "none", ""},
	{"5.3.4", "joining by invite", "rule alice invite-only\nmember/$dave alice invite", `member/$dave dave join`, "all", ""},
	{"5.3.4", "joining uninvited", "rule alice invite-only", `member/$dave dave join`, "none", ""},
	{"5.3.4", "joining again when kicked", "rule alice invite-only\nmember/$dave alice leave", `member/$dave dave join`, "none", ""},
	{"5.3.4", "a new profile", "rule alice invite-only", `member/$bob bob join`, "all", ""},
	{"5.3.4", "no join rule is invite", "none rule\nmember/$dave alice invite", `member/$dave dave join`, "all", ""},
	{"5.3.4", "no join rule is not public", "none rule", `member/$dave dave join`, "none", ""},
	{"5.3.4", "a join rule without join_rule is invite", "rule alice {}\nmember/$dave alice invite", `member/$dave dave join`, "all", ""},
	{"5.3.4", "joining by invite, rule knock", "rule alice knocking\nmember/$dave alice invite", `member/$dave dave join`, "7-", ""},
	{"5.3.4", "joining after a knock", "rule alice knocking\nmember/$dave dave knock", `member/$dave dave join`, "none", ""},
	{"5.3.5", "joining by invite, rule restricted", "rule alice restricted\nmember/$dave alice invite", `member/$dave dave join`, "8-", ""},
	{"5.3.5", "a new profile, rule restricted", "rule alice restricted", `member/$bob bob join`, "8-", ""},
	{"5.3.5", "restricted, authorised by nobody", "rule alice restricted", `member/$dave dave join`, "none", ""},
	{"5.3.5", "restricted, authorised by a member", "rule alice restricted", `member/$dave dave {"join_authorised_via_users_server":"$carol","membership":"join"}`, "8-", ""},
	{"5.3.5", "restricted, authorised by who was kicked", "rule alice restricted\nmember/$carol alice leave", `member/$dave dave {"join_authorised_via_users_server":"$carol","membership":"join"}`, "none", ""},
	{"5.3.5", "restricted, authorised by oneself", "rule alice restricted", `member/$dave dave {"join_authorised_via_users_server":"$dave","membership":"join"}`, "none", ""},
	{"5.3.5", "restricted, authorised by who may not invite", "rule alice restricted\nlevels alice {\"invite\":51,\"users\":{\"$bob\":50}}", `member/$dave dave {"join_authorised_via_users_server":"$bob","membership":"join"}`, "none", ""},
	{"5.3.5", "restricted, authorised by who just may invite", "rule alice restricted\nlevels alice {\"invite\":50,\"users\":{\"$bob\":50}}", `member/$dave dave {"join_authorised_via_users_server":"$bob","membership":"join"}`, "8-", ""},
	{"5.3.5", "restricted, authorised by the creator", "rule alice restricted\nlevels alice {\"invite\":9007199254740991}", `member/$dave dave {"join_authorised_via_users_server":"$alice","membership":"join"}`, "12", ""},
	{"5.3.5", "restricted, banned and authorised", "rule alice restricted\nmember/$dave alice ban", `member/$dave dave {"join_authorised_via_users_server":"$carol","membership":"join"}`, "none", ""},
	{"5.3.5", "knock_restricted, authorised", "rule alice knock-restricted", `member/$dave dave {"join_authorised_via_users_server":"$carol","membership":"join"}`, "10-", ""},
	{"5.3.5", "knock_restricted, invited", "rule alice knock-restricted\nmember/$dave alice invite", `member/$dave dave join`, "10-", ""},
	{"5.3.5", "authorised, rule invite", "rule alice invite-only", `member/$dave dave {"join_authorised_via_users_server":"$carol","membership":"join"}`, "none", ""},
	{"5.3.6", "joining a public room", "", `member/$dave dave join`, "all", ""},
	{"5.3.6", "joining a public room again", "member/$dave dave leave", `member/$dave dave join`, "all", ""},
	{"5.3.7", "joining by invite, rule private", "rule alice {\"join_rule\":\"private\"}\nmember/$dave alice invite", `member/$dave dave join`, "none", ""},
	{"5.3.7", "joining by invite, a rule that is no text", "rule alice {\"join_rule\":1}\nmember/$dave alice invite", `member/$dave dave join`, "none", ""},

	{"5.4.2", "inviting", "", `member/$dave carol invite`, "all", ""},
	{"5.4.2", "inviting as a stranger", "", `member/$dave dave invite`, "none", ""},
	{"5.4.2", "inviting when invited", "member/$dave alice invite", `member/@eve:e dave invite`, "none", ""},
	{"5.4.3", "inviting a member", "", `member/$bob alice invite`, "none", ""},
	{"5.4.3", "inviting who is banned", "member/$dave alice ban", `member/$dave alice invite`, "none", ""},
	{"5.4.3", "inviting who left", "member/$dave dave leave", `member/$dave alice invite`, "all", ""},
	{"5.4.3", "inviting again", "member/$dave alice invite", `member/$dave alice invite`, "all", ""},
	{"5.4.3", "inviting who knocked", "member/$dave dave knock", `member/$dave alice invite`, "all", ""},
	{"5.4.4", "inviting with too little power", `levels alice {"invite":51,"users":{"$bob":50}}`, `member/$dave bob invite`, "none", ""},
	{"5.4.4", "inviting with just enough power", `levels alice {"invite":50,"users":{"$bob":50}}`, `member/$dave bob invite`, "all", ""},
	{"5.4.4", "inviting without power levels", `none levels`, `member/$dave bob invite`, "all", ""},

	{"5.5.1", "leaving", "", `member/$bob bob leave`, "all", ""},
	{"5.5.1", "refusing an invite", "member/$dave alice invite", `member/$dave dave leave`, "all", ""},
	{"5.5.1", "taking back a knock", "member/$dave dave knock", `member/$dave dave leave`, "7-", ""},
	{"5.5.1", "leaving when banned", "member/$dave alice ban", `member/$dave dave leave`, "none", ""},
	{"5.5.1", "leaving twice", "member/$dave dave leave", `member/$dave dave leave`, "none", ""},
	{"5.5.1", "leaving as a stranger", "", `member/$dave dave leave`, "none", ""},
	{"5.5.2", "kicking as a stranger", "none member/$alice", `member/$bob alice leave`, "none", ""},
	{"5.5.3", "lifting a ban", "member/$dave alice ban", `member/$dave bob leave`, "all", ""},
	{"5.5.3", "lifting a ban with the power to kick only", "levels alice {\"ban\":51,\"users\":{\"$bob\":50}}\nmember/$dave alice ban", `member/$dave bob leave`, "none", ""},
	{"5.5.4", "lifting a ban with the power to ban only", "levels alice {\"kick\":51,\"users\":{\"$bob\":50}}\nmember/$dave alice ban", `member/$dave bob leave`, "none", ""},
	{"5.5.4", "kicking", "", `member/$carol bob leave`, "all", ""},
	{"5.5.4", "kicking with too little power", "", `member/$dave carol leave`, "none", ""},
	{"5.5.4", "kicking an equal", `levels alice {"users":{"$bob":50,"$carol":50}}`, `member/$carol bob leave`, "none", ""},
	{"5.5.4", "kicking someone above", "", `member/$alice bob leave`, "none", ""},
	{"5.5.4", "kicking the creator from above", `levels alice {"users":{"$alice":100,"$bob":101}}`, `member/$alice bob leave`, "1-11", ""},
	{"5.5.4", "kicking an additional creator", `create alice {"additional_creators":["$carol"]}`, `member/$carol alice leave`, "1-11", ""},
	{"5.5.4", "the creator without power levels kicks", `none levels`, `member/$bob alice leave`, "all", ""},
	{"5.5.4", "the creator kicks a user of great power", `levels alice {"users":{"$bob":9007199254740991}}`, `member/$bob alice leave`, "12", ""},
	{"5.5.4", "taking back an invite", "member/$dave alice invite", `member/$dave bob leave`, "all", ""},

	{"5.6.1", "banning as a stranger", "none member/$alice", `member/$bob alice ban`, "none", ""},
	{"5.6.2", "banning", "", `member/$carol bob ban`, "all", ""},
	{"5.6.2", "banning a stranger", "", `member/$dave bob ban`, "all", ""},
	{"5.6.2", "banning with too little power", `levels alice {"ban":51,"users":{"$bob":50}}`, `member/$carol bob ban`, "none", ""},
	{"5.6.2", "banning an equal", `levels alice {"users":{"$bob":50,"$carol":50}}`, `member/$carol bob ban`, "none", ""},
	{"5.6.2", "banning the creator from above", `levels alice {"users":{"$alice":100,"$bob":101}}`, `member/$alice bob ban`, "1-11", ""},
	{"5.6.2", "an additional creator bans", `create alice {"additional_creators":["$carol"]}`, `member/$bob carol ban`, "12", ""},
	{"5.6.2", "banning oneself", "", `member/$bob bob ban`, "none", ""},

	{"5.7", "knocking", "rule alice knocking", `member/$dave dave knock`, "7-", ""},
	{"5.7.1", "knocking, rule knock_restricted", "rule alice knock-restricted", `member/$dave dave knock`, "10-", ""},
	{"5.7.1", "knocking, rule restricted", "rule alice restricted", `member/$dave dave knock`, "none", ""},
	{"5.7.1", "knocking on a public room", "", `member/$dave dave knock`, "none", ""},
	{"5.7.1", "knocking without join rule", "none rule", `member/$dave dave knock`, "none", ""},
	{"5.7.2", "knocking for another", "rule alice knocking", `member/$dave alice knock`, "none", ""},
	{"5.7.3", "knocking when banned", "rule alice knocking\nmember/$dave alice ban", `member/$dave dave knock`, "none", ""},
	{"5.7.3", "knocking when invited", "rule alice knocking\nmember/$dave alice invite", `member/$dave dave knock`, "none", ""},
	{"5.7.3", "knocking when in", "rule alice knocking", `member/$bob bob knock`, "none", ""},
	{"5.7.3", "knocking again", "rule alice knocking\nmember/$dave dave knock", `member/$dave dave knock`, "7-", ""},
	{"5.7.3", "knocking when kicked", "rule alice knocking\nmember/$dave alice leave", `member/$dave dave knock`, "7-", ""},

	{"6", "sending", "", `message carol {}`, "all", ""},
	{"6", "sending as a stranger", "", `message dave {}`, "none", ""},
	{"6", "sending when invited", "member/$dave alice invite", `message dave {}`, "none", ""},
	{"6", "sending when kicked", "member/$carol alice leave", `message carol {}`, "none", ""},
	{"6", "sending when banned", "member/$carol alice ban", `message carol {}`, "none", ""},
	{"6", "sending when membership is no text", `member/$carol carol {"membership":["join"]}`, `message carol {}`, "none", ""},
	{"6", "the creator sends after leaving", "member/$alice alice leave", `message alice {}`, "none", ""},

	{"7", "a third-party invite", "", `tpi/token carol {}`, "all", ""},
	{"7", "a third-party invite with too little power", `levels alice {"invite":51,"users":{"$bob":50}}`, `tpi/token bob {}`, "none", ""},
	{"7", "a third-party invite asks for the power to invite alone", `levels alice {"events":{"m.room.third_party_invite":100},"invite":50,"users":{"$bob":50}}`, `tpi/token bob {}`, "all", ""},

	{"8", "a message with too little power", `levels alice {"events_default":51,"users":{"$bob":50}}`, `message bob {}`, "none", ""},
	{"8", "a message with just enough power", `levels alice {"events_default":50,"users":{"$bob":50}}`, `message bob {}`, "all", ""},
	{"8", "a message of a type that needs more", `levels alice {"events":{"m.room.message":51},"users":{"$bob":50}}`, `message bob {}`, "none", ""},
	{"8", "a message of a type that needs less", `levels alice {"events":{"m.room.message":50},"events_default":51,"users":{"$bob":50}}`, `message bob {}`, "all", ""},
	{"8", "state by default", "", `topic bob {}`, "all", ""},
	{"8", "state with too little power", "", `topic carol {}`, "none", ""},
	{"8", "state of a type that needs nothing", `levels alice {"events":{"m.room.topic":0}}`, `topic carol {}`, "all", ""},
	{"8", "state of a type that needs less than nothing", `levels alice {"events":{"m.room.topic":-5},"users":{"$carol":-5}}`, `topic carol {}`, "all", ""},
	{"8", "a message below nothing", `levels alice {"users":{"$carol":-1}}`, `message carol {}`, "none", ""},
	{"8", "state where state_default is less", `levels alice {"state_default":0}`, `topic carol {}`, "all", ""},
	{"8", "state where users_default is more", `levels alice {"users_default":50}`, `topic carol {}`, "all", ""},
	{"8", "events_default is not for state", `levels alice {"events_default":0,"users":{"$carol":49}}`, `topic carol {}`, "none", ""},
	{"8", "state by the creator without power levels", "none levels", `topic alice {}`, "all", ""},
	{"8", "state by another without power levels", "none levels", `topic bob {}`, "none", ""},
	{"8", "state by an additional creator without power levels", "none levels\ncreate alice {\"additional_creators\":[\"$bob\"]}", `topic bob {}`, "12", ""},
	{"8", "state by who is called almost as an additional creator", "none levels\ncreate alice {\"additional_creators\":[\"@bub:b\"]}", `topic bob {}`, "none", ""},
	{"8", "state by the creator, who power levels leave out", `levels alice {"users":{"$bob":50}}`, `topic alice {}`, "12", ""},
	{"8", "state by the creator that needs the greatest level", `levels alice {"events":{"m.room.topic":9007199254740991},"users":{"$alice":100}}`, `topic alice {}`, "12", ""},
	{"8", "who content.creator names has power without power levels", "none levels\ncreate alice {\"creator\":\"$bob\"}", `topic bob {}`, "1-10", ""},

	{"9", "state of oneself", "", `other/$bob bob {}`, "all", ""},
	{"9", "state of another", "", `other/$bob alice {}`, "none", ""},
	{"9", "state of nobody", "", `other/@ alice {}`, "none", ""},
	{"9", "state of a thing", "", `other/a@b alice {}`, "all", ""},

	{"10", "power levels of oneself, as a state key", "", `levels/$bob alice {}`, "none", ""},
	{"10.1", "levels as text", "none levels", `levels alice {"ban":"50","events_default":"0","invite":"0","kick":" +50 ","redact":"-1","state_default":"050","users_default":"0"}`, "1-9", ""},
	{"10.1", "a level that is a fraction", "none levels", `levels alice {"users":{"$bob":50.5}}`, "1-5", ""},
	{"10.1", "a level that is a boolean", "none levels", `levels alice {"users":{"$bob":true}}`, "none", ""},
	{"10.1", "a level that is null", "none levels", `levels alice {"users":{"$bob":null}}`, "none", ""},
	{"10.1", "a level that is words", "none levels", `levels alice {"users":{"$bob":"fifty"}}`, "none", ""},
	{"10.1", "a level out of all range", "none levels", `levels alice {"users":{"$bob":1e400}}`, "none", ""},
	{"10.1", "ban is words", "none levels", `levels alice {"ban":"words"}`, "1-9", ""},
	{"10.1", "ban becomes words", "", `levels alice {"ban":"words","users":{"$alice":100,"$bob":50}}`, "none", ""},
	{"10.1", "ban is null", "", `levels alice {"ban":null,"users":{"$alice":100,"$bob":50}}`, "1-9", ""},
	{"10.2", "events is no object", "none levels", `levels alice {"events":[]}`, "1-9", ""},
	{"10.2", "events with text", "none levels", `levels alice {"events":{"x":"5"}}`, "1-9", ""},
	{"10.2", "notifications is no object", "none levels", `levels alice {"notifications":5}`, "1-9", ""},
	{"10.2", "notifications with text", "none levels", `levels alice {"notifications":{"room":"5"}}`, "1-9", ""},
	{"10.3", "users is no object", "none levels", `levels alice {"users":[]}`, "none", ""},
	{"10.3", "users with what is no user", "none levels", `levels alice {"users":{"bob":50}}`, "none", ""},
	{"10.3", "users with a user of no server", "none levels", `levels alice {"users":{"@bob:":50}}`, "none", ""},
	{"10.3", "users with an old kind of user ID", "none levels", `levels alice {"users":{"@Bob[]\"é:b":50}}`, "all", ""},
	{"10.4", "users with the creator", "", `levels! alice {"users":{"$alice":100,"$bob":50}}`, "1-11", ""},
	{"10.4", "users with an additional creator", `create alice {"additional_creators":["$carol"]}`, `levels alice {"users":{"$alice":100,"$bob":50,"$carol":0}}`, "1-11", ""},
	{"10.4", "users with the creator, though there are no levels", "none levels", `levels! alice {"users":{"$alice":100}}`, "1-11", ""},
	{"10.5", "the first levels may be anything", "none levels", `levels alice {"ban":1000,"events":{"x":1000},"users":{"$bob":1000}}`, "all", ""},

	{"11 of v1", "redacting an event of the own server", "", `redaction carol {} | redacts="$x:b"`, "all", ""},
	{"11 of v1", "redacting an event of another server", "", `redaction carol {} | redacts="$x:a"`, "3-", ""},
	{"11 of v1", "redacting an event of another server with the power", "", `redaction bob {} | redacts="$x:a"`, "all", ""},
	{"11 of v1", "redacting with too little power", `levels alice {"redact":51,"users":{"$bob":50}}`, `redaction bob {} | redacts="$x:a"`, "3-", ""},
	{"size", "a state key over 255 bytes", "", `other/` + strings.Repeat("é", 128) + ` alice {}`, "none", ""},
	{"12", "anything else", "", `other bob {}`, "all", ""},
}

func TestRules(t *testing.T) {
	for _, tt := range rules {
		t.Run(tt.rule+"/"+tt.name, func(t *testing.T) {
			for _, v := range roomversion.All() {
				if !in(t, tt.only, v.Version) {
					continue
				}
				r := newRoom(t, v)
				err := Allowed(r.event(tt.event), r.state(tt.state))
				if want := in(t, tt.allowed, v.Version); (err == nil) != want {
					t.Errorf("version %s: %v, want allowed: %v", v.Version, err, want)
				}
				if err != nil && !errors.Is(err, ErrForbidden) {
					t.Errorf("version %s: %v", v.Version, err)
				}
			}
		})
	}
}

// Every rule of this kind: bob, who has 50 and may send power levels, changes them.
func TestChangesOfPowerLevels(t *testing.T) {
	tests := []struct {
		rule, name, old, new string // without the braces; users has bob at 50 always
		allowed              string
	}{
		{"10.6", "nothing changes", `"ban":60`, `"ban":60`, "all"},
		{"10.6", "the same as text", `"ban":60`, `"ban":"60"`, "1-9"},
		{"10.6", "the same as a fraction", `"ban":60`, `"ban":60.9`, "1-5"},
		{"10.6", "a default made explicit", ``, `"ban":50`, "all"},
		{"10.6", "an explicit default removed", `"ban":50`, ``, "all"},
		{"10.6", "from above to below", `"ban":51`, `"ban":50`, "none"},
		{"10.6", "from below to above", `"ban":50`, `"ban":51`, "none"},
		{"10.6", "from what cannot be read", `"ban":"words"`, `"ban":50`, "all"},
		{"10.7", "an event type added at the own level", ``, `"events":{"x":50}`, "all"},
		{"10.7", "an event type added above", ``, `"events":{"x":51}`, "none"},
		{"10.7", "an event type removed at the own level", `"events":{"x":50}`, ``, "all"},
		{"10.7", "an event type removed above", `"events":{"x":51}`, ``, "none"},
		{"10.7", "an event type from above to below", `"events":{"x":51}`, `"events":{"x":0}`, "none"},
		{"10.7", "an event type from below to above", `"events":{"x":0}`, `"events":{"x":51}`, "none"},
		{"10.7", "an event type above unchanged", `"events":{"x":51}`, `"events":{"x":51}`, "all"},
		{"10.8", "a notification added above", ``, `"notifications":{"room":51}`, "1-5"},
		{"10.8", "a notification added at the own level", ``, `"notifications":{"room":50}`, "all"},
		{"10.8", "a notification removed above", `"notifications":{"room":51}`, ``, "1-5"},
		{"10.8", "a notification above unchanged", `"notifications":{"room":51}`, `"notifications":{"room":51}`, "all"},
		{"10.9", "an equal removed", `"users":{"$carol":50}`, ``, "none"},
		{"10.9", "an equal demoted", `"users":{"$carol":50}`, `"users":{"$carol":49}`, "none"},
		{"10.9", "someone above demoted", `"users":{"$carol":51}`, `"users":{"$carol":50}`, "none"},
		{"10.9", "someone below removed", `"users":{"$carol":49}`, ``, "all"},
		{"10.9", "someone below demoted", `"users":{"$carol":49}`, `"users":{"$carol":-1}`, "all"},
		{"10.9", "an equal unchanged", `"users":{"$carol":50}`, `"users":{"$carol":50}`, "all"},
		{"10.9", "oneself demoted", ``, `"users":{"$bob":49}`, "all"},
		{"10.9", "oneself removed", ``, `"users":{}`, "all"},
		{"10.10", "someone below promoted to the own level", `"users":{"$carol":49}`, `"users":{"$carol":50}`, "all"},
		{"10.10", "someone below promoted above", `"users":{"$carol":49}`, `"users":{"$carol":51}`, "none"},
		{"10.10", "someone added at the own level", ``, `"users":{"$carol":50}`, "all"},
		{"10.10", "someone added above", ``, `"users":{"$carol":51}`, "none"},
		{"10.10", "oneself promoted", ``, `"users":{"$bob":51}`, "none"},
	}
	for _, tt := range tests {
		t.Run(tt.rule+"/"+tt.name, func(t *testing.T) {
			for _, v := range roomversion.All() {
				r := newRoom(t, v)
				state := r.state(`levels alice {` + withBob(tt.old, true) + `}`)
				err := Allowed(r.event(`levels bob {`+withBob(tt.new, false)+`}`), state)
				if want := in(t, tt.allowed, v.Version); (err == nil) != want {
					t.Errorf("version %s: %v, want allowed: %v", v.Version, err, want)
				}
			}
		})
	}
}

// The seven levels of rule 10.6 are all under it.
func TestChangesOfNamedLevels(t *testing.T) {
	for _, name := range names {
		for _, tt := range []struct {
			old, new, allowed string
		}{
			{`50`, `49`, "all"}, {`49`, `50`, "all"}, {`51`, `50`, "none"}, {`50`, `51`, "none"}, {`51`, ``, "none"}, {``, `51`, "none"}, {`51`, `51`, "all"},
		} {
			member := func(value string) string {
				if value == "" {
					return ""
				}
				return `"` + name + `":` + value
			}
			for _, v := range roomversion.All() {
				r := newRoom(t, v)
				err := Allowed(r.event(`levels bob {`+withBob(member(tt.new), false)+`}`), r.state(`levels alice {`+withBob(member(tt.old), true)+`}`))
				if want := in(t, tt.allowed, v.Version); (err == nil) != want {
					t.Errorf("version %s: %s from %q to %q: %v, want allowed: %v", v.Version, name, tt.old, tt.new, err, want)
				}
			}
		}
	}
}

// withBob completes the members of a power-levels content: bob may send it, and has
// 50 unless the new one says otherwise.
func withBob(members string, old bool) string {
	events, users := `"events":{"m.room.power_levels":50`, `"users":{"$bob":50`
	switch {
	case strings.Contains(members, `"events":{`):
		members = strings.Replace(members, `"events":{`, events+",", 1)
	case members == "":
		members = events + "}"
	default:
		members += "," + events + "}"
	}
	switch {
	case !strings.Contains(members, `"users":{`):
		members += "," + users + "}"
	case old || strings.Contains(members, "$carol"):
		members = strings.Replace(members, `"users":{`, users+",", 1)
	}
	return members
}

func TestNeeded(t *testing.T) {
	key := func(typ, key string) matrix.StateKey { return matrix.StateKey{Type: typ, Key: key} }
	levels, create, rule := key(matrix.TypePowerLevels, ""), key(matrix.TypeCreate, ""), key(matrix.TypeJoinRules, "")
	member := func(name string) matrix.StateKey { return key(matrix.TypeMember, users[name]) }
	tests := []struct {
		event string
		want  []matrix.StateKey
		from8 []matrix.StateKey // and these from version 8 on
	}{
		{event: `create alice {}`},
		{event: `message bob {}`, want: []matrix.StateKey{levels, create, member("bob")}},
		{event: `topic bob {}`, want: []matrix.StateKey{levels, create, member("bob")}},
		{event: `create/x alice {}`, want: []matrix.StateKey{levels, create, member("alice")}},
		{event: `member/$bob bob join`, want: []matrix.StateKey{levels, create, rule, member("bob")}},
		{event: `member/$bob bob leave`, want: []matrix.StateKey{levels, create, member("bob")}},
		{event: `member/$bob alice leave`, want: []matrix.StateKey{levels, create, member("alice"), member("bob")}},
		{event: `member/$bob alice ban`, want: []matrix.StateKey{levels, create, member("alice"), member("bob")}},
		{event: `member/$bob alice invite`, want: []matrix.StateKey{levels, create, rule, member("alice"), member("bob")}},
		{event: `member/$dave dave knock`, want: []matrix.StateKey{levels, create, rule, member("dave")}},
		{event: `member/$dave alice {"membership":"invite","third_party_invite":{"signed":{"token":"t"}}}`,
			want: []matrix.StateKey{levels, create, rule, member("alice"), member("dave"), key(matrix.TypeThirdPartyInvite, "t")}},
		{event: `member/$dave dave {"membership":"join","third_party_invite":{"signed":{"token":"t"}}}`, want: []matrix.StateKey{levels, create, rule, member("dave")}},
		{event: `member/$dave dave {"join_authorised_via_users_server":"$alice","membership":"join"}`,
			want: []matrix.StateKey{levels, create, rule, member("dave")}, from8: []matrix.StateKey{member("alice")}},
		{event: `member/$dave dave {"join_authorised_via_users_server":"$dave","membership":"join"}`, want: []matrix.StateKey{levels, create, rule, member("dave")}},
		{event: `member/$dave dave {"join_authorised_via_users_server":"$alice","membership":"leave"}`, want: []matrix.StateKey{levels, create, member("dave")}},
	}
	for _, tt := range tests {
		for _, v := range roomversion.All() {
			want := map[matrix.StateKey]bool{}
			for _, k := range tt.want {
				want[k] = k != create || !v.RoomIDIsCreateHash
			}
			for _, k := range tt.from8 {
				want[k] = v.Restricted
			}
			got := map[matrix.StateKey]bool{}
			for _, k := range Needed(newRoom(t, v).event(tt.event)) {
				if got[k] || !want[k] {
					t.Errorf("version %s: %s takes %v, or twice", v.Version, tt.event, k)
				}
				got[k] = true
			}
			for k, wanted := range want {
				if wanted && !got[k] {
					t.Errorf("version %s: %s does not take %v", v.Version, tt.event, k)
				}
			}
		}
	}
}

func TestCheckAuthEvents(t *testing.T) {
	tests := []struct {
		rule, name, event string
		auth              []string // "rejected …" for one that was
		allowed           string
	}{
		{"3", "create has none", `create alice {}`, nil, "all"},
		{"3", "what a message takes", `message bob {}`, []string{`create alice {}`, `levels alice {}`, `member/$bob bob join`}, "1-11"},
		{"3", "what a message takes, less create", `message bob {}`, []string{`levels alice {}`, `member/$bob bob join`}, "12"},
		{"3", "optional ones may be missing", `message bob {}`, []string{`create alice {}`}, "1-11"},
		{"3.1", "two of a key", `message bob {}`, []string{`create alice {}`, `levels alice {}`, `levels alice {}`}, "none"},
		{"3.2", "one of a type that is not wanted", `message bob {}`, []string{`create alice {}`, `topic alice {}`}, "none"},
		{"3.2", "one of a key that is not wanted", `message bob {}`, []string{`create alice {}`, `member/$alice alice join`}, "none"},
		{"3.2", "one that is no state", `message bob {}`, []string{`create alice {}`, `message alice {}`}, "none"},
		{"3.2", "a join rule for a kick", `member/$carol bob leave`, []string{`create alice {}`, `rule alice public`}, "none"},
		{"3.2", "who authorised a join", `member/$dave dave {"join_authorised_via_users_server":"$alice","membership":"join"}`, []string{`create alice {}`, `member/$alice alice join`}, "8-11"},
		{"3.3", "one that was rejected", `message bob {}`, []string{`create alice {}`, `rejected levels alice {}`}, "none"},
		{"3.3", "one that was rejected, without create", `message bob {}`, []string{`rejected levels alice {}`}, "none"},
		{"3.4", "one of another room", `message bob {}`, []string{`create alice {}`, `levels alice {} | room_id="!other:a"`}, "none"},
		{"3.4", "one of another room, without create", `message bob {}`, []string{`levels alice {} | room_id="!other:a"`}, "none"},
	}
	for _, tt := range tests {
		t.Run(tt.rule+"/"+tt.name, func(t *testing.T) {
			for _, v := range roomversion.All() {
				r := newRoom(t, v)
				var auth []AuthEvent
				for _, line := range tt.auth {
					line, rejected := strings.CutPrefix(line, "rejected ")
					auth = append(auth, AuthEvent{r.event(line), rejected})
				}
				err := CheckAuthEvents(r.event(tt.event), auth)
				if want := in(t, tt.allowed, v.Version); (err == nil) != want {
					t.Errorf("version %s: %v, want allowed: %v", v.Version, err, want)
				}
			}
		})
	}
}
