package eventauth

import (
	"math"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"

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

// Levels are the power levels of a room, read once.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#mroompower_levels
type Levels struct {
	Ban, Kick, Redact, Invite                 Level
	UsersDefault, EventsDefault, StateDefault Level

	users, events, notifications map[string]Level
	creators                     map[matrix.UserID]bool
}

// LevelsOf reads the levels from the create event and the power-levels event,
// which may be nil.
func LevelsOf(create, pl *pdu.PDU) (Levels, error) {
	l := Levels{Ban: 50, Kick: 50, Redact: 50, StateDefault: 50}
	if create.Rules.CreatorsInfinite {
		l.creators = CreatorsOf(create)
	}
	if pl == nil {
		if l.creators == nil {
			l.users = map[string]Level{string(creatorOf(create)): 100}
		}
		return l, nil
	}
	for name, to := range l.named() {
		if v := pl.Get(name); v.Exists() {
			n, ok := level(pl.Rules, v)
			if !ok {
				return l, reject("power level %s is not a number", name)
			}
			*to = n
		}
	}
	for name, to := range map[string]*map[string]Level{"users": &l.users, "events": &l.events, "notifications": &l.notifications} {
		var ok bool
		if *to, ok = levelMap(pl.Rules, pl.Get(name)); !ok {
			return l, reject("power levels: %s is malformed", name)
		}
	}
	return l, nil
}

// named are the levels that are keys of the content.
func (l *Levels) named() map[string]*Level {
	return map[string]*Level{
		"ban": &l.Ban, "kick": &l.Kick, "redact": &l.Redact, "invite": &l.Invite,
		"users_default": &l.UsersDefault, "events_default": &l.EventsDefault, "state_default": &l.StateDefault,
	}
}

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

// User returns a user's level.
func (l *Levels) User(u matrix.UserID) Level {
	if l.creators[u] {
		return Infinite
	}
	if n, ok := l.users[string(u)]; ok {
		return n
	}
	return l.UsersDefault
}

// Event returns the level needed to send an event of a type.
func (l *Levels) Event(typ string, state bool) Level {
	if n, ok := l.events[typ]; ok {
		return n
	}
	if state {
		return l.StateDefault
	}
	return l.EventsDefault
}

// Notification returns the level needed for a notification such as "room".
func (l *Levels) Notification(key string) Level {
	if n, ok := l.notifications[key]; ok {
		return n
	}
	return 50
}

// level reads a number in the forms that a version takes.
func level(rules *roomversion.Rules, v gjson.Result) (Level, bool) {
	switch v.Type {
	case gjson.Number:
		if n, err := strconv.ParseInt(v.Raw, 10, 64); err == nil {
			return clamp(n), true
		}
		if !rules.FloatPowerLevels {
			return 0, false
		}
		f, err := strconv.ParseFloat(v.Raw, 64)
		if err != nil || math.IsInf(f, 0) || math.IsNaN(f) {
			return 0, false
		}
		return clampFloat(math.Trunc(f)), true
	case gjson.String:
		if rules.IntegerPowerLevels {
			return 0, false
		}
		return levelText(v.Str)
	}
	return 0, false
}

// levelText reads what rooms before version 10 took for a number: spaces, a sign,
// digits.
func levelText(s string) (Level, bool) {
	s = strings.TrimSpace(s)
	digits := strings.TrimLeft(strings.TrimPrefix(strings.TrimPrefix(s, "+"), "-"), "0")
	if s == "" || strings.Trim(s, "+-") == "" || strings.Trim(digits, "0123456789") != "" || len(s) > 1 && strings.ContainsAny(s[1:], "+-") {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		n = math.MaxInt64
		if s[0] == '-' {
			n = math.MinInt64
		}
	}
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

func levelMap(rules *roomversion.Rules, v gjson.Result) (map[string]Level, bool) {
	if !v.Exists() {
		return nil, true
	}
	if !v.IsObject() {
		return nil, false
	}
	m, ok := map[string]Level{}, true
	v.ForEach(func(key, value gjson.Result) bool {
		n, good := level(rules, value)
		ok = ok && good
		m[key.Str] = n
		return ok
	})
	return m, ok
}

// powerLevels is rule 10.
func (c *check) powerLevels(power Level) error {
	next, err := LevelsOf(c.create, c.ev) // 10.1, 10.2, 10.3: malformed levels
	if err != nil {
		return err
	}
	for u := range next.users {
		if _, err := matrix.ParseUserID(u); err != nil { // 10.3
			return reject("power levels: users has an invalid user ID")
		}
		if c.levels.creators[matrix.UserID(u)] { // 10.4
			return reject("power levels: users names a creator, whose power is infinite")
		}
	}
	old := c.state.Get(matrix.TypePowerLevels, "")
	if old == nil { // 10.5
		return nil
	}
	for name := range next.named() { // 10.6
		before, after := old.Get(name), c.ev.Get(name)
		if err := changed(c.rules, name, before, after, power, power); err != nil {
			return err
		}
	}
	maps := []string{"events"}
	if c.rules.NotificationsPL {
		maps = append(maps, "notifications")
	}
	for _, name := range maps { // 10.7, 10.8
		if err := c.changedMap(old, name, power, false); err != nil {
			return err
		}
	}
	return c.changedMap(old, "users", power, true) // 10.9, 10.10
}

// changedMap checks each entry of a map of levels that is added, changed or removed.
func (c *check) changedMap(old *pdu.PDU, name string, power Level, users bool) error {
	before, after := entries(old.Get(name)), entries(c.ev.Get(name))
	keys := map[string]bool{}
	for k := range before {
		keys[k] = true
	}
	for k := range after {
		keys[k] = true
	}
	for k := range keys {
		most := power // of the old value
		if users && k != string(c.ev.Sender) && most != Infinite {
			most-- // another user of the same level is out of reach
		}
		if err := changed(c.rules, name+" "+k, before[k], after[k], most, power); err != nil {
			return err
		}
	}
	return nil
}

func entries(v gjson.Result) map[string]gjson.Result {
	m := map[string]gjson.Result{}
	if v.IsObject() {
		v.ForEach(func(k, val gjson.Result) bool { m[k.Str] = val; return true })
	}
	return m
}

// changed rejects a level that was above mostOld, or is above mostNew, if it is
// not as before.
func changed(rules *roomversion.Rules, name string, before, after gjson.Result, mostOld, mostNew Level) error {
	was, hadOld := level(rules, before)
	is, hasNew := level(rules, after)
	if hadOld == hasNew && was == is {
		return nil
	}
	if hadOld && was > mostOld {
		return reject("power levels: %s was %s, which the sender cannot change", name, was)
	}
	if hasNew && is > mostNew {
		return reject("power levels: %s would be %s, above the sender's", name, is)
	}
	return nil
}
