package stateres

import (
	"bytes"
	"cmp"
	"crypto/sha1"
	"maps"
	"math"
	"slices"

	"github.com/gjallar-im/gjallar/homeserver/eventauth"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

// literal is state resolution as the specification words it, without a thought for
// speed: what the real one must agree with.
type literal struct {
	rules  *roomversion.Rules
	events Map
}

type ids map[matrix.EventID]bool

func (l literal) auth(id matrix.EventID) (out []matrix.EventID) {
	e := l.events[id]
	for _, a := range e.AuthEvents {
		if l.events[a].PDU != nil && l.events[a].IsState() {
			out = append(out, a)
		}
	}
	if l.rules.RoomIDIsCreateHash && !e.Is(matrix.TypeCreate, "") {
		out = append(out, pdu.CreateOf(e.RoomID))
	}
	return out
}

// chain is an event and its auth chain.
func (l literal) chain(id matrix.EventID) ids {
	out := ids{id: true}
	for again := true; again; {
		again = false
		for have := range maps.Clone(out) {
			for _, a := range l.auth(have) {
				if !out[a] {
					out[a], again = true, true
				}
			}
		}
	}
	return out
}

// conflicted returns the unconflicted state map and the conflicted state set.
func (l literal) conflicted(sets []State) (State, map[matrix.StateKey]ids) {
	all := map[matrix.StateKey]ids{}
	count := map[matrix.StateKey]int{}
	for _, set := range sets {
		for k, id := range set {
			if all[k] == nil {
				all[k] = ids{}
			}
			all[k][id] = true
			count[k]++
		}
	}
	common := State{}
	for k, list := range all {
		if len(list) == 1 && (count[k] == len(sets) || l.rules.StateRes == roomversion.StateResV1) {
			for id := range list {
				common[k] = id
			}
			delete(all, k)
		}
	}
	return common, all
}

func (l literal) resolve(sets []State) State {
	common, conflicts := l.conflicted(sets)
	if len(conflicts) == 0 {
		return common
	}
	if l.rules.StateRes == roomversion.StateResV1 {
		return l.v1(common, conflicts)
	}
	full := ids{}
	for _, list := range conflicts {
		maps.Copy(full, list)
	}
	conflicted := maps.Clone(full)
	chains := map[matrix.EventID]int{}
	for _, set := range sets {
		union := ids{}
		for _, id := range set {
			maps.Copy(union, l.chain(id))
		}
		for id := range union {
			chains[id]++
		}
	}
	for id, n := range chains {
		if n < len(sets) {
			full[id] = true
		}
	}
	if l.rules.StateRes == roomversion.StateResV21 {
		for from := range conflicted {
			for middle := range l.chain(from) {
				for to := range l.chain(middle) {
					if conflicted[to] {
						full[middle] = true
					}
				}
			}
		}
	}
	power := ids{}
	for id := range full {
		if l.isPower(l.events[id]) {
			l.withChainIn(id, full, power)
		}
	}
	sorted := l.sortPower(power)
	state := State{}
	if l.rules.StateRes == roomversion.StateResV2 {
		state = maps.Clone(common)
	}
	l.apply(state, sorted)
	var rest []matrix.EventID
	for id := range full {
		if !slices.Contains(sorted, id) {
			rest = append(rest, id)
		}
	}
	l.apply(state, l.sortMainline(rest, state[matrix.StateKey{Type: matrix.TypePowerLevels}]))
	maps.Copy(state, common)
	return state
}

func (l literal) isPower(e Event) bool {
	switch e.Type {
	case matrix.TypePowerLevels, matrix.TypeJoinRules, matrix.TypeCreate:
		return *e.StateKey == ""
	case matrix.TypeMember:
		return slices.Contains([]string{"leave", "ban"}, e.Membership()) && string(e.Sender) != *e.StateKey
	}
	return false
}

// withChainIn adds to out an event and those of its auth chain that members of full
// lead to.
func (l literal) withChainIn(id matrix.EventID, full, out ids) {
	if !full[id] || out[id] {
		return
	}
	out[id] = true
	for _, a := range l.auth(id) {
		l.withChainIn(a, full, out)
	}
}

func (l literal) first(id matrix.EventID, typ string) *pdu.PDU {
	for _, a := range l.auth(id) {
		if l.events[a].Is(typ, "") {
			return l.events[a].PDU
		}
	}
	return nil
}

func (l literal) sortPower(set ids) (out []matrix.EventID) {
	level := func(id matrix.EventID) eventauth.Level {
		return eventauth.PowerOf(l.first(id, matrix.TypeCreate), l.first(id, matrix.TypePowerLevels), l.events[id].Sender)
	}
	for {
		best := matrix.EventID("")
		for id := range set {
			waits := slices.ContainsFunc(l.auth(id), func(a matrix.EventID) bool { return set[a] && !slices.Contains(out, a) })
			if waits || slices.Contains(out, id) {
				continue
			}
			if best == "" || cmp.Or(cmp.Compare(level(best), level(id)), cmp.Compare(l.events[id].OriginServerTS, l.events[best].OriginServerTS), cmp.Compare(id, best)) < 0 {
				best = id
			}
		}
		if best == "" {
			return out
		}
		out = append(out, best)
	}
}

func (l literal) sortMainline(list []matrix.EventID, levels matrix.EventID) []matrix.EventID {
	// line leads from levels to those they cite, and so on; it ends where it would
	// come round again.
	line := func(id matrix.EventID) (out []matrix.EventID) {
		for id != "" && !slices.Contains(out, id) {
			out = append(out, id)
			pl := l.first(id, matrix.TypePowerLevels)
			if pl == nil {
				return out
			}
			id = pl.ID
		}
		return out
	}
	mainline := line(levels)
	position := func(id matrix.EventID) int {
		if pl := l.first(id, matrix.TypePowerLevels); pl != nil {
			for _, p := range line(pl.ID) {
				if i := slices.Index(mainline, p); i >= 0 {
					return i
				}
			}
		}
		return math.MaxInt
	}
	slices.SortFunc(list, func(a, b matrix.EventID) int {
		return cmp.Or(cmp.Compare(position(b), position(a)), cmp.Compare(l.events[a].OriginServerTS, l.events[b].OriginServerTS), cmp.Compare(a, b))
	})
	return list
}

func (l literal) apply(state State, list []matrix.EventID) {
	for _, id := range list {
		e := l.events[id]
		have := eventauth.StateMap{}
		for _, a := range slices.Backward(l.auth(id)) { // the first of a key counts
			if !l.events[a].Rejected {
				have[l.events[a].Key()] = l.events[a].PDU
			}
		}
		for _, k := range append(eventauth.Needed(e.PDU), matrix.StateKey{Type: matrix.TypeCreate}) {
			if s, ok := state[k]; ok && l.events[s].PDU != nil && !l.events[s].Rejected {
				have[k] = l.events[s].PDU
			}
		}
		if !e.Rejected && eventauth.Allowed(e.PDU, have) == nil {
			state[e.Key()] = id
		}
	}
}

func (l literal) v1(common State, conflicts map[matrix.StateKey]ids) State {
	out, auth := maps.Clone(common), eventauth.StateMap{}
	for k, id := range common {
		if e := l.events[id]; e.PDU != nil && !e.Rejected {
			auth[k] = e.PDU
		}
	}
	for _, pass := range []string{matrix.TypePowerLevels, matrix.TypeJoinRules, matrix.TypeMember, ""} {
		now := maps.Clone(auth)
		for k, set := range conflicts {
			if pass != "" && k.Type != pass || pass == matrix.TypePowerLevels && k.Key != "" {
				continue
			}
			delete(conflicts, k)
			var list []*pdu.PDU
			for id := range set {
				if !l.events[id].Rejected {
					list = append(list, l.events[id].PDU)
				}
			}
			if len(list) == 0 {
				continue
			}
			slices.SortFunc(list, func(a, b *pdu.PDU) int {
				x, y := sha1.Sum([]byte(a.ID)), sha1.Sum([]byte(b.ID))
				return cmp.Or(cmp.Compare(a.Depth, b.Depth), bytes.Compare(y[:], x[:]))
			})
			chosen := list[0]
			if pass != "" {
				for _, e := range list[1:] {
					judged := maps.Clone(auth)
					judged[k] = chosen
					if eventauth.Allowed(e, judged) != nil {
						break
					}
					chosen = e
				}
			} else {
				for _, e := range slices.Backward(list) {
					if eventauth.Allowed(e, auth) == nil {
						chosen = e
						break
					}
				}
			}
			now[k], out[k] = chosen, chosen.ID
		}
		auth = now
	}
	return out
}
