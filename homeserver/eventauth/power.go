package eventauth

import (
	"math"
	"strconv"
	"strings"

	"github.com/gjallar-im/gjallar/homeserver/canonicaljson"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

// Level of power. Creators of versions that say so have [Infinite].
type Level int64

// Infinite is above every level that a power-levels event can give.
const Infinite Level = math.MaxInt64

// String is the number, or "infinite".
func (l Level) String() string {
	if l == Infinite {
		return "infinite"
	}
	return strconv.FormatInt(int64(l), 10)
}

// Levels are the power levels of a room. A level that cannot be read, which versions
// before 10 let in, counts as missing.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#mroompower_levels
type Levels struct {
	Ban, Kick, Redact, Invite                 Level
	UsersDefault, EventsDefault, StateDefault Level

	create, pl *pdu.PDU
	// Canonical objects of the content, nil if missing.
	users, events, notifications []byte
	index                        map[string]Level // of users, if it was made
}

// LevelsOf reads the levels from the create event and the power-levels event, which
// may be nil. The result is read-only and may be shared by goroutines.
//
// The error, which wraps [ErrForbidden], is for levels that the room version does
// not take.
func LevelsOf(create, pl *pdu.PDU) (Levels, error) {
	l := levelsOf(create, pl)
	if pl == nil {
		return l, nil
	}
	if err := checkLevels(pl); err != nil {
		return l, err
	}
	l.index = entries(pl.Rules, l.users)
	return l, nil
}

// PowerOf returns a user's level, as [Levels.User] does, for one question. Either
// event may be nil.
func PowerOf(create, pl *pdu.PDU, u matrix.UserID) Level {
	l := levelsOf(create, pl)
	return l.User(u)
}

// levelsOf is LevelsOf for few questions: it reads no list before it has to.
func levelsOf(create, pl *pdu.PDU) Levels {
	l := Levels{Ban: 50, Kick: 50, Redact: 50, StateDefault: 50, create: create, pl: pl}
	if pl == nil {
		return l
	}
	canonicaljson.Each(pl.Content, func(key, value []byte) bool {
		switch string(key) {
		case "users":
			l.users = object(value)
		case "events":
			l.events = object(value)
		case "notifications":
			l.notifications = object(value)
		default:
			if to := l.named(string(key)); to != nil {
				if n, ok := level(pl.Rules, value); ok {
					*to = n
				}
			}
		}
		return true
	})
	return l
}

// named returns the level that is a key of the content, nil if none is.
func (l *Levels) named(key string) *Level {
	switch key {
	case "ban":
		return &l.Ban
	case "kick":
		return &l.Kick
	case "redact":
		return &l.Redact
	case "invite":
		return &l.Invite
	case "users_default":
		return &l.UsersDefault
	case "events_default":
		return &l.EventsDefault
	case "state_default":
		return &l.StateDefault
	}
	return nil
}

// names are the keys that Levels.named knows.
var names = []string{"ban", "events_default", "invite", "kick", "redact", "state_default", "users_default"}

// CreatorsOf a room: its creator, and additional ones.
func CreatorsOf(create *pdu.PDU) map[matrix.UserID]bool {
	m := map[matrix.UserID]bool{creatorOf(create): true}
	if create.Rules.CreatorsInfinite {
		for _, u := range create.Get("additional_creators").Array() {
			m[matrix.UserID(u.Str)] = true
		}
	}
	return m
}

func creatorOf(create *pdu.PDU) matrix.UserID {
	if create.Rules.ImplicitCreator {
		return create.Sender
	}
	return matrix.UserID(create.String("creator"))
}

// isCreator reports whether a user is in CreatorsOf.
func isCreator(create *pdu.PDU, u matrix.UserID) bool {
	if creatorOf(create) == u {
		return true
	}
	if !create.Rules.CreatorsInfinite {
		return false
	}
	found, name := false, quoted(string(u))
	canonicaljson.Elements(find(create.Content, "additional_creators"), func(item []byte) {
		found = found || len(item) == len(name)+2 && item[0] == '"' && string(item[1:len(item)-1]) == name
	})
	return found
}

// User returns a user's level.
func (l *Levels) User(u matrix.UserID) Level {
	if l.create != nil && (l.create.Rules.CreatorsInfinite || l.pl == nil) && isCreator(l.create, u) {
		if l.create.Rules.CreatorsInfinite {
			return Infinite
		}
		return 100
	}
	if l.index != nil {
		if n, ok := l.index[string(u)]; ok {
			return n
		}
		return l.UsersDefault
	}
	return l.entry(l.users, string(u), l.UsersDefault)
}

// Event returns the level needed to send an event of a type.
func (l *Levels) Event(typ string, state bool) Level {
	if state {
		return l.entry(l.events, typ, l.StateDefault)
	}
	return l.entry(l.events, typ, l.EventsDefault)
}

// Notification returns the level needed for a notification such as "room".
func (l *Levels) Notification(key string) Level { return l.entry(l.notifications, key, 50) }

func (l *Levels) entry(list []byte, key string, or Level) Level {
	if len(list) == 0 {
		return or
	}
	if n, ok := level(l.pl.Rules, find(list, key)); ok {
		return n
	}
	return or
}

// find returns a member of a canonical object, nil if it is not there.
func find(object []byte, key string) (value []byte) {
	key = quoted(key)
	canonicaljson.Each(object, func(k, v []byte) bool {
		if string(k) == key {
			value = v
		}
		return value == nil
	})
	return value
}

// quoted is s as canonical JSON has it between quotes.
func quoted(s string) string {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] == '"' || s[i] == '\\' {
			b := canonicaljson.AppendString(nil, s)
			return string(b[1 : len(b)-1])
		}
	}
	return s
}

// object returns v if it is an object, else nil.
func object(v []byte) []byte {
	if len(v) == 0 || v[0] != '{' {
		return nil
	}
	return v
}

// entries reads a list of levels. What cannot be read is left out.
func entries(rules *roomversion.Rules, list []byte) map[string]Level {
	m := map[string]Level{}
	canonicaljson.Each(list, func(k, v []byte) bool {
		if n, ok := level(rules, v); ok {
			m[unquoted(k)] = n
		}
		return true
	})
	return m
}

// level reads a number in the forms that a version takes.
func level(rules *roomversion.Rules, v []byte) (Level, bool) {
	switch {
	case len(v) == 0:
		return 0, false
	case v[0] == '"':
		if rules.IntegerPowerLevels {
			return 0, false
		}
		return levelText(unquoted(v[1 : len(v)-1]))
	case v[0] != '-' && (v[0] < '0' || v[0] > '9'):
		return 0, false
	}
	if n, err := strconv.ParseInt(string(v), 10, 64); err == nil {
		return clamp(n), true
	}
	if !rules.FloatPowerLevels {
		return 0, false
	}
	f, err := strconv.ParseFloat(string(v), 64)
	if err != nil { // out of range
		return 0, false
	}
	return clampFloat(math.Trunc(f)), true
}

// levelText reads what rooms before version 10 took for a number: spaces around, a
// sign, digits.
func levelText(s string) (Level, bool) {
	s = strings.TrimSpace(s)
	digits := s
	if s != "" && (s[0] == '+' || s[0] == '-') {
		digits = s[1:]
	}
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	n, _ := strconv.ParseInt(s, 10, 64) // out of range, it is the nearest there is
	return clamp(n), true
}

// clamp keeps Infinite for creators alone.
func clamp(n int64) Level { return min(Level(n), Infinite-1) }

func clampFloat(f float64) Level {
	switch {
	case f >= math.MaxInt64:
		return Infinite - 1
	case f <= math.MinInt64:
		return math.MinInt64
	}
	return clamp(int64(f))
}

// checkLevels is rules 10.1 to 10.3: the form of a power-levels event.
func checkLevels(ev *pdu.PDU) error {
	rules := ev.Rules
	if rules.IntegerPowerLevels {
		for _, name := range names { // 10.1
			if v := find(ev.Content, name); v != nil && !isLevel(rules, v) {
				return reject("power levels: %s is not an integer", name)
			}
		}
		for _, name := range []string{"events", "notifications"} { // 10.2
			if v := find(ev.Content, name); v != nil && !levelList(rules, v, nil) {
				return reject("power levels: %s is malformed", name)
			}
		}
	}
	valid := func(user string) bool { _, err := matrix.ParseUserID(user); return err == nil }
	if v := find(ev.Content, "users"); v != nil && !levelList(rules, v, valid) { // 10.3
		return reject("power levels: users is malformed")
	}
	return nil
}

func isLevel(rules *roomversion.Rules, v []byte) bool { _, ok := level(rules, v); return ok }

// levelList reports whether v is an object of levels with valid keys.
func levelList(rules *roomversion.Rules, v []byte, valid func(key string) bool) bool {
	ok := object(v) != nil
	canonicaljson.Each(object(v), func(key, value []byte) bool {
		ok = isLevel(rules, value) && (valid == nil || valid(unquoted(key)))
		return ok
	})
	return ok
}

// powerLevels is rule 10.
func (c *check) powerLevels(power Level) error {
	if err := checkLevels(c.ev); err != nil {
		return err
	}
	if c.rules.CreatorsInfinite { // 10.4
		if users := find(c.ev.Content, "users"); namesCreator(users, c.create) {
			return reject("power levels: users names a creator, whose power is infinite")
		}
	}
	old := c.state.Get(matrix.TypePowerLevels, "")
	if old == nil { // 10.5
		return nil
	}
	for _, name := range names { // 10.6
		if err := c.changed(name, find(old.Content, name), find(c.ev.Content, name), power, false); err != nil {
			return err
		}
	}
	lists := []string{"events", "notifications", "users"} // 10.7, 10.8, 10.9 and 10.10
	for _, name := range lists {
		if name == "notifications" && !c.rules.NotificationsPL {
			continue
		}
		if err := c.changedList(name, values(find(old.Content, name)), values(find(c.ev.Content, name)), power); err != nil {
			return err
		}
	}
	return nil
}

func namesCreator(users []byte, create *pdu.PDU) bool {
	creators, found := CreatorsOf(create), false
	canonicaljson.Each(object(users), func(key, _ []byte) bool {
		found = creators[matrix.UserID(unquoted(key))]
		return !found
	})
	return found
}

// changedList checks each entry of a list of levels that is added, changed or removed.
func (c *check) changedList(name string, before, after map[string][]byte, power Level) error {
	check := func(key string) error {
		other := name == "users" && key != string(c.ev.Sender)
		return c.changed(name+" "+key, before[key], after[key], power, other)
	}
	for key := range before {
		if err := check(key); err != nil {
			return err
		}
	}
	for key := range after {
		if before[key] == nil {
			if err := check(key); err != nil {
				return err
			}
		}
	}
	return nil
}

// values are the members of an object.
func values(v []byte) map[string][]byte {
	m := map[string][]byte{}
	canonicaljson.Each(object(v), func(key, value []byte) bool {
		m[unquoted(key)] = value
		return true
	})
	return m
}

// changed rejects a level that is not as before if it was, or would be, above the
// sender's; of another user, also if it was the same as the sender's.
func (c *check) changed(name string, before, after []byte, power Level, other bool) error {
	was, hadOld := level(c.rules, before)
	is, hasNew := level(c.rules, after)
	switch {
	case after != nil && !hasNew && string(after) != "null":
		return reject("power levels: %s is not a number", name)
	case hadOld == hasNew && was == is:
		return nil
	case hadOld && (was > power || other && was >= power):
		return reject("power levels: %s was %s, which the sender cannot change", name, was)
	case hasNew && is > power:
		return reject("power levels: %s would be %s, above the sender's", name, is)
	}
	return nil
}
