// Package roomversion holds what differs between room versions, as data. Code
// asks for the rule it is about (rules.KnockRestricted), never for a version.
//
// Spec: https://spec.matrix.org/v1.19/rooms/
package roomversion

import (
	"slices"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// Default is the version of new rooms.
const Default matrix.RoomVersion = "12"

// IDFormat is how an event gets its ID.
type IDFormat int

const (
	IDInEvent   IDFormat = iota // "$local:domain", a key of the event
	IDBase64                    // "$" and the reference hash in standard base64
	IDURLBase64                 // "$" and the reference hash in URL-safe base64
)

// StateRes is the algorithm of state resolution.
type StateRes int

const (
	StateResV1 StateRes = iota + 1
	StateResV2
	StateResV21
)

// Rules of a room version.
type Rules struct {
	Version matrix.RoomVersion

	IDFormat IDFormat
	// EventRefsWithHashes: auth_events and prev_events are lists of [id, hashes].
	EventRefsWithHashes bool
	StateRes            StateRes
	// StrictJSON: events must be canonical JSON with integers of 53 bits only.
	StrictJSON bool
	// EnforceKeyValidity: a key must have been valid when the event was made.
	EnforceKeyValidity bool
	// DropOverByteLimit: an identifier over 255 bytes makes an event malformed; before,
	// 255 characters did, and bytes had it rejected. (No specification says so, but
	// old rooms hold such events.)
	DropOverByteLimit bool

	// Authorisation.
	AliasesAuth        bool // m.room.aliases has a rule of its own
	RedactionAuth      bool // m.room.redaction has a rule of its own
	NotificationsPL    bool // changes of notifications in power levels are checked
	Knock              bool // membership and join rule "knock"
	Restricted         bool // join rule "restricted"
	KnockRestricted    bool // join rule "knock_restricted"
	IntegerPowerLevels bool // power levels must be JSON integers
	FloatPowerLevels   bool // fractions are cut off
	ImplicitCreator    bool // the creator is the sender of m.room.create
	CreatorsInfinite   bool // creators have infinite power; additional_creators
	RoomIDIsCreateHash bool // room ID = "!" and the hash of m.room.create

	// Redaction.
	RedactsInContent   bool // redacts is a key of content
	KeepLegacyTopLevel bool // prev_state, origin and membership survive redaction
	KeepAliases        bool // content.aliases of m.room.aliases survives
	KeepAllow          bool // content.allow of m.room.join_rules survives
	KeepAuthorisedVia  bool // join_authorised_via_users_server of a member survives
	KeepAllOfCreate    bool // all of m.room.create's content survives
	KeepInvitePL       bool // content.invite of power levels survives
	KeepSignedInvite   bool // third_party_invite.signed of a member survives
}

// with returns the next version: the one before and named changes.
func (r Rules) with(v matrix.RoomVersion, change func(*Rules)) Rules {
	r.Version = v
	if change != nil {
		change(&r)
	}
	return r
}

var (
	v1 = Rules{
		Version: "1", IDFormat: IDInEvent, EventRefsWithHashes: true, StateRes: StateResV1,
		AliasesAuth: true, RedactionAuth: true, FloatPowerLevels: true,
		KeepLegacyTopLevel: true, KeepAliases: true,
	}
	v2 = v1.with("2", func(r *Rules) { r.StateRes = StateResV2 })
	v3 = v2.with("3", func(r *Rules) { r.IDFormat, r.EventRefsWithHashes, r.RedactionAuth = IDBase64, false, false })
	v4 = v3.with("4", func(r *Rules) { r.IDFormat = IDURLBase64 })
	v5 = v4.with("5", func(r *Rules) { r.EnforceKeyValidity = true })
	v6 = v5.with("6", func(r *Rules) {
		r.StrictJSON, r.NotificationsPL, r.AliasesAuth, r.KeepAliases, r.FloatPowerLevels = true, true, false, false, false
	})
	v7  = v6.with("7", func(r *Rules) { r.Knock = true })
	v8  = v7.with("8", func(r *Rules) { r.Restricted, r.KeepAllow = true, true })
	v9  = v8.with("9", func(r *Rules) { r.KeepAuthorisedVia = true })
	v10 = v9.with("10", func(r *Rules) { r.KnockRestricted, r.IntegerPowerLevels = true, true })
	v11 = v10.with("11", func(r *Rules) {
		r.ImplicitCreator, r.RedactsInContent, r.KeepLegacyTopLevel = true, true, false
		r.KeepAllOfCreate, r.KeepInvitePL, r.KeepSignedInvite = true, true, true
		r.DropOverByteLimit = true
	})
	v12 = v11.with("12", func(r *Rules) { r.StateRes, r.RoomIDIsCreateHash, r.CreatorsInfinite = StateResV21, true, true })
)

var all = []*Rules{&v1, &v2, &v3, &v4, &v5, &v6, &v7, &v8, &v9, &v10, &v11, &v12}

// Get returns the rules of a version, and whether it is one we know.
func Get(v matrix.RoomVersion) (*Rules, bool) {
	i := slices.IndexFunc(all, func(r *Rules) bool { return r.Version == v })
	if i < 0 {
		return nil, false
	}
	return all[i], true
}

// All returns the rules of every known version, oldest first. All are stable.
func All() []*Rules { return slices.Clone(all) }

// MaxDepth of an event.
func (r *Rules) MaxDepth() int64 {
	if r.StrictJSON {
		return 1<<53 - 1
	}
	return 1<<63 - 1
}
