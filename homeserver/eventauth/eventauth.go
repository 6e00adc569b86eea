// Package eventauth decides whether the rules of a room version allow an event.
//
// It is pure: callers pass the event and the state to check it against. It does
// no I/O, takes no locks and does not log.
//
// "Rule 5.3.2" in a comment is that number in the list at
// https://spec.matrix.org/v1.19/rooms/v12/#authorisation-rules, with older
// versions' differences read from the rules they are data of.
package eventauth

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/tidwall/gjson"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

// ErrForbidden is wrapped by every error of this package: a rule rejects the event.
// The text after it says which, for people.
var ErrForbidden = errors.New("not allowed")

func reject(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrForbidden, fmt.Sprintf(format, args...))
}

// State is what an event is checked against. Get returns nil for state that is
// not there.
type State interface {
	Get(typ, key string) *pdu.PDU
}

// StateMap is a State of what is in it.
type StateMap map[matrix.StateKey]*pdu.PDU

// Get implements State.
func (m StateMap) Get(typ, key string) *pdu.PDU { return m[matrix.StateKey{Type: typ, Key: key}] }

// AuthEvent is an event that another one names in auth_events.
type AuthEvent struct {
	*pdu.PDU
	Rejected bool
}

// CheckAuthEvents applies the rules about an event's own auth_events, 2 and 3.
func CheckAuthEvents(ev *pdu.PDU, auth []AuthEvent) error {
	if ev.Is(matrix.TypeCreate, "") {
		return nil
	}
	wanted := map[matrix.StateKey]bool{}
	for _, k := range Needed(ev) {
		wanted[k] = true
	}
	seen := map[matrix.StateKey]bool{}
	for _, a := range auth {
		switch {
		case !a.IsState():
			return reject("auth event %s is no state event", a.ID)
		case seen[a.Key()]: // 3.1
			return reject("two auth events for %s %q", a.Type, *a.StateKey)
		case !wanted[a.Key()]: // 3.2
			return reject("auth event %s (%s) is not one this event takes", a.ID, a.Type)
		case a.Rejected: // 3.3
			return reject("auth event %s was itself rejected", a.ID)
		case a.RoomID != ev.RoomID: // 3.5
			return reject("auth event %s is of another room", a.ID)
		}
		seen[a.Key()] = true
	}
	if !ev.Rules.RoomIDIsCreateHash && !seen[matrix.StateKey{Type: matrix.TypeCreate}] { // 3.4
		return reject("m.room.create is not among the auth events")
	}
	return nil
}

// Needed returns the state that an event names in its auth_events, where it exists.
//
// Spec: https://spec.matrix.org/v1.19/server-server-api/#auth-events-selection
func Needed(ev *pdu.PDU) []matrix.StateKey {
	return NeededFor(ev.Rules, ev.Type, ev.Sender, ev.StateKey, ev.Content)
}

// NeededFor is Needed for an event that is being made.
func NeededFor(rules *roomversion.Rules, typ string, sender matrix.UserID, stateKey *string, content []byte) []matrix.StateKey {
	if typ == matrix.TypeCreate && stateKey != nil && *stateKey == "" {
		return nil
	}
	keys := []matrix.StateKey{{Type: matrix.TypePowerLevels}, {Type: matrix.TypeMember, Key: string(sender)}}
	if !rules.RoomIDIsCreateHash {
		keys = append(keys, matrix.StateKey{Type: matrix.TypeCreate})
	}
	if typ != matrix.TypeMember || stateKey == nil {
		return keys
	}
	if *stateKey != string(sender) {
		keys = append(keys, matrix.StateKey{Type: matrix.TypeMember, Key: *stateKey})
	}
	membership := gjson.GetBytes(content, "membership").Str
	switch membership {
	case matrix.Join, matrix.Invite, matrix.Knock:
		keys = append(keys, matrix.StateKey{Type: matrix.TypeJoinRules})
	}
	if token := gjson.GetBytes(content, "third_party_invite.signed.token"); membership == matrix.Invite && token.Type == gjson.String {
		keys = append(keys, matrix.StateKey{Type: matrix.TypeThirdPartyInvite, Key: token.Str})
	}
	if via := gjson.GetBytes(content, "join_authorised_via_users_server"); rules.Restricted && membership == matrix.Join && via.Type == gjson.String &&
		via.Str != string(sender) && via.Str != *stateKey {
		keys = append(keys, matrix.StateKey{Type: matrix.TypeMember, Key: via.Str})
	}
	return keys
}

// check is one event being judged.
type check struct {
	ev     *pdu.PDU
	rules  *roomversion.Rules
	state  State
	create *pdu.PDU
	levels Levels
}

// Allowed applies the rules that depend on state: 1, and 4 onwards. In versions
// whose room ID is the create event's hash, state must have the create event too.
func Allowed(ev *pdu.PDU, state State) error {
	if ev.OverLimit {
		return reject("an identifier is too long")
	}
	if ev.Type == matrix.TypeCreate { // 1
		return checkCreate(ev)
	}
	c := &check{ev: ev, rules: ev.Rules, state: state, create: state.Get(matrix.TypeCreate, "")}
	if c.create == nil { // 2, 3.4
		return reject("the room has no m.room.create")
	}
	if c.create.RoomID != ev.RoomID {
		return reject("m.room.create is of another room")
	}
	if !c.federates(ev.Sender) { // 4
		return reject("this room does not federate")
	}
	c.levels = levelsOf(c.create, state.Get(matrix.TypePowerLevels, ""))
	if c.rules.AliasesAuth && ev.Type == matrix.TypeAliases { // 4 of versions 1 to 5
		return c.aliases()
	}
	if ev.Type == matrix.TypeMember { // 5
		return c.member()
	}
	return c.others()
}

// checkCreate is rule 1.
func checkCreate(ev *pdu.PDU) error {
	rules := ev.Rules
	if !ev.Is(matrix.TypeCreate, "") {
		return reject("m.room.create has no empty state_key")
	}
	if len(ev.PrevEvents) > 0 { // 1.1
		return reject("m.room.create has prev_events")
	}
	if rules.RoomIDIsCreateHash { // 1.2
		if gjson.GetBytes(ev.JSON(), "room_id").Exists() {
			return reject("m.room.create has a room_id")
		}
	} else if ev.RoomID.Server() != ev.Sender.Server() {
		return reject("the room ID is of another server than the creator")
	}
	if v := ev.Get("room_version"); v.Exists() { // 1.3
		if _, ok := roomversion.Get(matrix.RoomVersion(v.Str)); v.Type != gjson.String || !ok {
			return reject("unknown room version")
		}
	}
	if !rules.ImplicitCreator && !ev.Get("creator").Exists() { // 1.4 of versions 1 to 10
		return reject("m.room.create has no creator")
	}
	if more := ev.Get("additional_creators"); rules.CreatorsInfinite && more.Exists() { // 1.4
		if !more.IsArray() {
			return reject("additional_creators is not a list")
		}
		for _, u := range more.Array() {
			if _, err := matrix.ParseUserID(u.Str); u.Type != gjson.String || err != nil {
				return reject("additional_creators has an invalid user ID")
			}
		}
	}
	return nil
}

func (c *check) aliases() error {
	if c.ev.StateKey == nil || *c.ev.StateKey != string(c.ev.Sender.Server()) {
		return reject("m.room.aliases of another server")
	}
	return nil
}

// others are rules 6 to 12.
func (c *check) others() error {
	ev := c.ev
	if c.membership(string(ev.Sender)) != matrix.Join { // 6
		return reject("%s is not in the room", ev.Sender)
	}
	power := c.levels.User(ev.Sender)
	if ev.Type == matrix.TypeThirdPartyInvite { // 7
		if power < c.levels.Invite {
			return reject("inviting needs power level %d, %s has %s", c.levels.Invite, ev.Sender, power)
		}
		return nil
	}
	if need := c.levels.Event(ev.Type, ev.IsState()); power < need { // 8
		return reject("sending %s needs power level %d, %s has %s", ev.Type, need, ev.Sender, power)
	}
	if ev.StateKey != nil && len(*ev.StateKey) > 0 && (*ev.StateKey)[0] == '@' && *ev.StateKey != string(ev.Sender) { // 9
		return reject("the state key is another user")
	}
	switch {
	case ev.Type == matrix.TypePowerLevels: // 10
		return c.powerLevels(power)
	case c.rules.RedactionAuth && ev.Type == matrix.TypeRedaction: // 11 of versions 1 and 2
		if power < c.levels.Redact && ev.Redacts.Server() != ev.ID.Server() {
			return reject("redacting needs power level %d, %s has %s", c.levels.Redact, ev.Sender, power)
		}
	}
	return nil // 12
}

// federates reports whether users of that one's server may be in the room.
func (c *check) federates(u matrix.UserID) bool {
	return u.Server() == c.create.Sender.Server() || string(find(c.create.Content, "m.federate")) != "false"
}

// membership of a user, leave if there is none.
func (c *check) membership(user string) string {
	return MembershipOf(c.state, matrix.UserID(user))
}

// MembershipOf a user, leave if there is none.
func MembershipOf(s State, user matrix.UserID) string {
	m := s.Get(matrix.TypeMember, string(user))
	if m == nil {
		return matrix.Leave
	}
	if v := find(m.Content, "membership"); len(v) > 1 && v[0] == '"' {
		return unquoted(v[1 : len(v)-1])
	}
	return ""
}

// unquoted decodes a canonical string that lost its quotes.
func unquoted(v []byte) string {
	switch string(v) {
	case matrix.Join:
		return matrix.Join
	case matrix.Leave:
		return matrix.Leave
	}
	if bytes.IndexByte(v, '\\') < 0 {
		return string(v)
	}
	return gjson.Parse(`"` + string(v) + `"`).Str
}

// JoinRuleOf a room, invite if there is none.
func JoinRuleOf(s State) string {
	r := s.Get(matrix.TypeJoinRules, "")
	if r == nil || !r.Get("join_rule").Exists() {
		return matrix.Invite
	}
	return r.String("join_rule")
}

// MayRedact reports whether a redaction takes effect: its sender has the power, or
// is of the server of the event's sender.
//
// Spec: https://spec.matrix.org/v1.19/rooms/v12/#handling-redactions
func MayRedact(redaction, target *pdu.PDU, levels Levels) bool {
	return target.RoomID == redaction.RoomID &&
		(levels.User(redaction.Sender) >= levels.Redact || redaction.Sender.Server() == target.Sender.Server())
}
