package eventauth

import (
	"crypto/ed25519"
	"encoding/base64"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/gjallar-im/gjallar/homeserver/canonicaljson"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
)

// Join rules.
const (
	Public          = "public"
	Restricted      = "restricted"
	KnockRestricted = "knock_restricted"
)

// member is rule 5. That a join is signed by the authorising user's server, 5.2, is
// checked with the signatures, if there is such a user.
func (c *check) member() error {
	if c.ev.StateKey == nil || c.ev.Get("membership").Type != gjson.String { // 5.1
		return reject("m.room.member lacks state_key or membership")
	}
	if _, err := matrix.ParseUserID(*c.ev.StateKey); err != nil {
		return reject("the state key is not a user ID")
	}
	if !c.federates(matrix.UserID(*c.ev.StateKey)) { // Not in the specification, but what the network does.
		return reject("this room does not federate")
	}
	membership := c.ev.Membership()
	if via := c.ev.Get("join_authorised_via_users_server"); c.rules.Restricted && membership == matrix.Join && via.Exists() { // 5.2
		if _, err := matrix.ParseUserID(via.Str); via.Type != gjson.String || err != nil {
			return reject("join_authorised_via_users_server is not a user ID")
		}
	}
	switch {
	case membership == matrix.Join: // 5.3
		return c.join()
	case membership == matrix.Invite: // 5.4
		return c.invite()
	case membership == matrix.Leave: // 5.5
		return c.leave()
	case membership == matrix.Ban: // 5.6
		return c.ban()
	case membership == matrix.Knock && c.rules.Knock: // 5.7
		return c.knock()
	}
	return reject("unknown membership") // 5.8
}

func (c *check) join() error {
	ev := c.ev
	if len(ev.PrevEvents) == 1 && ev.PrevEvents[0] == c.create.ID && *ev.StateKey == string(creatorOf(c.create)) { // 5.3.1
		return nil
	}
	if string(ev.Sender) != *ev.StateKey { // 5.3.2
		return reject("nobody can make another join")
	}
	now := c.membership(*ev.StateKey)
	if now == matrix.Ban { // 5.3.3
		return reject("%s is banned", ev.Sender)
	}
	in := now == matrix.Join || now == matrix.Invite
	switch rule := JoinRuleOf(c.state); {
	case rule == matrix.Invite, rule == matrix.Knock && c.rules.Knock: // 5.3.4
		if in {
			return nil
		}
		return reject("%s is not invited", ev.Sender)
	case rule == Restricted && c.rules.Restricted, rule == KnockRestricted && c.rules.KnockRestricted: // 5.3.5
		if in {
			return nil
		}
		return c.authorised()
	case rule == Public: // 5.3.6
		return nil
	}
	return reject("the join rule lets nobody in") // 5.3.7
}

// authorised is 5.3.5.2: someone in the room who may invite vouches for the join.
func (c *check) authorised() error {
	via := c.ev.String("join_authorised_via_users_server")
	switch {
	case via == "":
		return reject("%s is not invited, and nobody authorised the join", c.ev.Sender)
	case c.membership(via) != matrix.Join:
		return reject("%s, who authorised the join, is not in the room", via)
	case c.levels.User(matrix.UserID(via)) < c.levels.Invite:
		return reject("%s, who authorised the join, may not invite", via)
	}
	return nil
}

func (c *check) invite() error {
	ev := c.ev
	target := c.membership(*ev.StateKey)
	if tpi := ev.Get("third_party_invite"); tpi.Exists() { // 5.4.1
		return c.thirdPartyInvite(tpi, target)
	}
	if c.membership(string(ev.Sender)) != matrix.Join { // 5.4.2
		return reject("%s is not in the room", ev.Sender)
	}
	if target == matrix.Join || target == matrix.Ban { // 5.4.3
		return reject("%s is %s", *ev.StateKey, map[string]string{matrix.Join: "in the room already", matrix.Ban: "banned"}[target])
	}
	if power := c.levels.User(ev.Sender); power < c.levels.Invite { // 5.4.4
		return reject("inviting needs power level %d, %s has %s", c.levels.Invite, ev.Sender, power)
	}
	return nil
}

func (c *check) thirdPartyInvite(tpi gjson.Result, target string) error {
	if target == matrix.Ban { // 5.4.1.1
		return reject("%s is banned", *c.ev.StateKey)
	}
	signed := tpi.Get("signed")
	if !signed.IsObject() { // 5.4.1.2
		return reject("the third-party invite is not signed")
	}
	mxid, token := signed.Get("mxid"), signed.Get("token")
	if mxid.Type != gjson.String || token.Type != gjson.String { // 5.4.1.3
		return reject("the third-party invite lacks mxid or token")
	}
	if mxid.Str != *c.ev.StateKey { // 5.4.1.4
		return reject("the third-party invite is for another user")
	}
	original := c.state.Get(matrix.TypeThirdPartyInvite, token.Str)
	if original == nil { // 5.4.1.5
		return reject("there is no such third-party invite")
	}
	if original.Sender != c.ev.Sender { // 5.4.1.6
		return reject("the third-party invite is by another user")
	}
	if !signedByOneOf(signed, inviteKeys(original)) { // 5.4.1.7
		return reject("no signature of the third-party invite is right") // 5.4.1.8
	}
	return nil
}

// maxInviteChecks is how many signatures a third-party invite may make us check.
// Departs from the specification, which has no limit: an event can hold hundreds of
// signatures, and the one it refers to hundreds of keys.
const maxInviteChecks = 1000

// signedByOneOf reports whether any signature of a canonical object is by any of
// the keys.
func signedByOneOf(signed gjson.Result, keys []ed25519.PublicKey) bool {
	message := []byte{'{'}
	canonicaljson.Each([]byte(signed.Raw), func(key, value []byte) bool {
		if k := string(key); k != "signatures" && k != "unsigned" {
			if len(message) > 1 {
				message = append(message, ',')
			}
			message = append(append(append(message, '"'), key...), '"', ':')
			message = append(message, value...)
		}
		return true
	})
	message = append(message, '}')
	checks := 0
	for _, signature := range signatures(signed) {
		for _, key := range keys {
			if checks++; checks > maxInviteChecks {
				return false
			}
			if ed25519.Verify(key, message, signature) {
				return true
			}
		}
	}
	return false
}

// inviteKeys are the public keys in a third-party invite.
func inviteKeys(ev *pdu.PDU) (keys []ed25519.PublicKey) {
	texts := []string{ev.String("public_key")}
	for _, k := range ev.Get("public_keys").Array() {
		texts = append(texts, k.Get("public_key").Str)
	}
	for _, s := range texts {
		if b := decodeBase64(s); len(b) == ed25519.PublicKeySize {
			keys = append(keys, b)
		}
	}
	return keys
}

// signatures are those by ed25519 keys that an object has.
func signatures(signed gjson.Result) (list [][]byte) {
	signed.Get("signatures").ForEach(func(_, keys gjson.Result) bool {
		keys.ForEach(func(id, signature gjson.Result) bool {
			if b := decodeBase64(signature.Str); strings.HasPrefix(id.Str, "ed25519:") && len(b) == ed25519.SignatureSize {
				list = append(list, b)
			}
			return true
		})
		return true
	})
	return list
}

// decodeBase64 takes both alphabets, padding or none; nil if it is neither.
func decodeBase64(s string) []byte {
	b, err := base64.RawStdEncoding.DecodeString(strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(s, "=")))
	if err != nil {
		return nil
	}
	return b
}

func (c *check) leave() error {
	ev := c.ev
	target := c.membership(*ev.StateKey)
	if string(ev.Sender) == *ev.StateKey { // 5.5.1
		if target == matrix.Join || target == matrix.Invite || target == matrix.Knock && c.rules.Knock {
			return nil
		}
		return reject("%s is not in the room", ev.Sender)
	}
	if c.membership(string(ev.Sender)) != matrix.Join { // 5.5.2
		return reject("%s is not in the room", ev.Sender)
	}
	power := c.levels.User(ev.Sender)
	if target == matrix.Ban && power < c.levels.Ban { // 5.5.3
		return reject("lifting a ban needs power level %d, %s has %s", c.levels.Ban, ev.Sender, power)
	}
	return c.over(power, c.levels.Kick, "removing someone") // 5.5.4
}

func (c *check) ban() error {
	if c.membership(string(c.ev.Sender)) != matrix.Join { // 5.6.1
		return reject("%s is not in the room", c.ev.Sender)
	}
	return c.over(c.levels.User(c.ev.Sender), c.levels.Ban, "banning") // 5.6.2
}

// over checks that the sender has the level needed, and more than the target.
func (c *check) over(power Level, need Level, what string) error {
	if power < need {
		return reject("%s needs power level %d, %s has %s", what, need, c.ev.Sender, power)
	}
	if target := c.levels.User(matrix.UserID(*c.ev.StateKey)); target >= power {
		return reject("%s has power level %s, no less than %s", *c.ev.StateKey, target, c.ev.Sender)
	}
	return nil
}

func (c *check) knock() error {
	rule := JoinRuleOf(c.state)
	if rule != matrix.Knock && !(rule == KnockRestricted && c.rules.KnockRestricted) { // 5.7.1
		return reject("the room takes no knocks")
	}
	if string(c.ev.Sender) != *c.ev.StateKey { // 5.7.2
		return reject("nobody can knock for another")
	}
	switch now := c.membership(*c.ev.StateKey); now { // 5.7.3
	case matrix.Ban, matrix.Invite, matrix.Join:
		return reject("%s cannot knock: the membership is %s", c.ev.Sender, now)
	}
	return nil
}
