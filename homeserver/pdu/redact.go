package pdu

import (
	"github.com/gjallar-im/gjallar/homeserver/canonicaljson"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

// topLevel says which keys of an event survive redaction; those that are false
// only in versions that keep legacy keys.
var topLevel = map[string]bool{
	"event_id": true, "type": true, "room_id": true, "sender": true, "state_key": true, "content": true, "hashes": true,
	"signatures": true, "depth": true, "prev_events": true, "auth_events": true, "origin_server_ts": true,
	"prev_state": false, "origin": false, "membership": false,
}

// contentKeys says which keys of the content survive, and if a rule decides, which.
var contentKeys = map[string]map[string]func(*roomversion.Rules) bool{
	matrix.TypeMember: {
		"membership":                       always,
		"join_authorised_via_users_server": func(r *roomversion.Rules) bool { return r.KeepAuthorisedVia },
		"third_party_invite":               func(r *roomversion.Rules) bool { return r.KeepSignedInvite },
	},
	matrix.TypeCreate: {"creator": always},
	matrix.TypeJoinRules: {
		"join_rule": always,
		"allow":     func(r *roomversion.Rules) bool { return r.KeepAllow },
	},
	matrix.TypePowerLevels: {
		"ban": always, "events": always, "events_default": always, "kick": always, "redact": always,
		"state_default": always, "users": always, "users_default": always,
		"invite": func(r *roomversion.Rules) bool { return r.KeepInvitePL },
	},
	matrix.TypeAliases:           {"aliases": func(r *roomversion.Rules) bool { return r.KeepAliases }},
	matrix.TypeHistoryVisibility: {"history_visibility": always},
	matrix.TypeRedaction:         {"redacts": func(r *roomversion.Rules) bool { return r.RedactsInContent }},
}

func always(*roomversion.Rules) bool { return true }

// Redact removes from a canonical event all that its room version does not
// protect. unsigned goes too.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#redactions
func Redact(rules *roomversion.Rules, raw []byte) []byte {
	var typ string
	canonicaljson.Each(raw, func(key, value []byte) bool {
		if string(key) == "type" {
			typ, _ = text(value)
		}
		return true
	})
	out := append(make([]byte, 0, len(raw)), '{')
	canonicaljson.Each(raw, func(key, value []byte) bool {
		current, known := topLevel[string(key)]
		switch {
		case !known || !current && !rules.KeepLegacyTopLevel:
		case string(key) == "content":
			out = appendMember(out, key, redactContent(rules, typ, value))
		default:
			out = appendMember(out, key, value)
		}
		return true
	})
	return append(out, '}')
}

func redactContent(rules *roomversion.Rules, typ string, content []byte) []byte {
	if len(content) == 0 || content[0] != '{' {
		return []byte("{}")
	}
	if typ == matrix.TypeCreate && rules.KeepAllOfCreate {
		return content
	}
	keys := contentKeys[typ]
	out := append(make([]byte, 0, 64), '{')
	canonicaljson.Each(content, func(key, value []byte) bool {
		kept, ok := keys[string(key)]
		if !ok || !kept(rules) {
			return true
		}
		if typ == matrix.TypeMember && string(key) == "third_party_invite" {
			if len(value) == 0 || value[0] != '{' {
				return true
			}
			value = filter(value, func(k []byte) bool { return string(k) == "signed" })
		}
		out = appendMember(out, key, value)
		return true
	})
	return append(out, '}')
}

// Redacted returns the event as it stands after a redaction.
func (p *PDU) Redacted() (*PDU, error) { return ParseTrusted(p.Rules, p.ID, Redact(p.Rules, p.raw)) }
