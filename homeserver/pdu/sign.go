package pdu

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/gjallar-im/gjallar/homeserver/canonicaljson"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// ErrSignature is wrapped by errors about a signature that is missing or wrong.
var ErrSignature = errors.New("bad signature")

// Signer signs as a server.
type Signer struct {
	Server matrix.ServerName
	KeyID  string // "ed25519:" and a version
	Key    ed25519.PrivateKey
}

// PolicyKeyID is the key ID of policy servers, whose signatures servers do not check.
const PolicyKeyID = "ed25519:policy_server"

// SignJSON adds a signature to a JSON object.
//
// Spec: https://spec.matrix.org/v1.19/appendices/#signing-json
func (s Signer) SignJSON(object []byte) ([]byte, error) {
	object, err := canonicaljson.Canonical(object)
	if err != nil {
		return nil, err
	}
	if object[0] != '{' {
		return nil, fmt.Errorf("sign: %w: not an object", canonicaljson.ErrBadJSON)
	}
	return s.addSignature(object, s.signatureOf(object)), nil
}

// signatureOf a canonical object, as unpadded base64.
func (s Signer) signatureOf(object []byte) string {
	return base64.RawStdEncoding.EncodeToString(ed25519.Sign(s.Key, without(object, "signatures", "unsigned")))
}

// addSignature puts a signature beside those there are.
func (s Signer) addSignature(object []byte, signature string) []byte {
	signatures := map[string]map[string]string{}
	gjson.GetBytes(object, "signatures").ForEach(func(server, keys gjson.Result) bool {
		signatures[server.Str] = map[string]string{}
		keys.ForEach(func(id, sig gjson.Result) bool {
			signatures[server.Str][id.Str] = sig.Str
			return true
		})
		return true
	})
	if signatures[string(s.Server)] == nil {
		signatures[string(s.Server)] = map[string]string{}
	}
	signatures[string(s.Server)][s.KeyID] = signature
	encoded, _ := canonicaljson.Marshal(signatures) // strings only: cannot fail
	return setMember(object, "signatures", encoded)
}

// setMember puts a member into a canonical object, at its place in the order.
func setMember(object []byte, name string, value []byte) []byte {
	out := append(make([]byte, 0, len(object)+len(name)+len(value)+4), '{')
	done := false
	put := func() {
		if !done {
			out, done = appendMember(out, []byte(name), value), true
		}
	}
	canonicaljson.Each(object, func(k, v []byte) bool {
		if string(k) >= name {
			put()
		}
		if string(k) != name {
			out = appendMember(out, k, v)
		}
		return true
	})
	put()
	return append(out, '}')
}

// Sign returns the event with a further signature, by us: as the server of a
// restricted join's authorising user, or of an invited user.
func (p *PDU) Sign(s Signer) (*PDU, error) {
	signature := s.signatureOf(Redact(p.Rules, p.raw))
	return ParseTrusted(p.Rules, p.ID, s.addSignature(p.raw, signature))
}

// VerifyJSON checks the signature of a server by one of its keys over a JSON object.
func VerifyJSON(object []byte, server matrix.ServerName, keyID string, key ed25519.PublicKey) error {
	object, err := canonicaljson.Canonical(object)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSignature, err)
	}
	return verify(object, without(object, "signatures", "unsigned"), server, keyID, key)
}

func verify(object, message []byte, server matrix.ServerName, keyID string, key ed25519.PublicKey) error {
	signature := ""
	gjson.GetBytes(object, "signatures").ForEach(func(s, keys gjson.Result) bool {
		if s.Str == string(server) {
			keys.ForEach(func(id, sig gjson.Result) bool {
				if id.Str == keyID {
					signature = sig.Str
				}
				return true
			})
		}
		return true
	})
	sig, err := decodeBase64(signature)
	if err != nil || len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, message, sig) {
		return fmt.Errorf("%w: %s of %s", ErrSignature, keyID, server)
	}
	return nil
}

// Keys finds the public keys of servers.
type Keys interface {
	// Key returns a key of a server that is known and was, if the room version asks
	// for it, valid at the time (milliseconds since the Unix epoch).
	Key(server matrix.ServerName, keyID string, at int64, enforceValidity bool) (ed25519.PublicKey, bool)
}

// VerifySignatures checks that every server that has to has signed the event, and
// that all its signatures by known keys are right. Errors wrap [ErrSignature].
//
// Spec: https://spec.matrix.org/v1.19/server-server-api/#validating-hashes-and-signatures-on-received-events
func (p *PDU) VerifySignatures(keys Keys) error {
	message := without(Redact(p.Rules, p.raw), "signatures", "unsigned")
	for _, server := range p.signers() {
		good := 0
		for _, id := range p.keyIDs(server) {
			key, ok := keys.Key(server, id, p.OriginServerTS, p.Rules.EnforceKeyValidity)
			if !ok {
				continue
			}
			if err := verify(p.raw, message, server, id, key); err != nil {
				return fmt.Errorf("event %s: %w", p.ID, err)
			}
			good++
		}
		if good == 0 {
			return fmt.Errorf("event %s: %w: none of %s by a known key", p.ID, ErrSignature, server)
		}
	}
	return nil
}

// signers are the servers that must have signed the event.
func (p *PDU) signers() (servers []matrix.ServerName) {
	add := func(s matrix.ServerName) {
		if slices.Contains(servers, s) {
			return
		}
		servers = append(servers, s)
	}
	if p.Type != matrix.TypeMember || p.Membership() != matrix.Invite || !p.Get("third_party_invite").IsObject() {
		add(p.Sender.Server())
	}
	if p.Rules.EventRefsWithHashes && p.ID.Server() != p.Sender.Server() { // versions 1 and 2, where the ID names a server
		add(p.ID.Server())
	}
	if via := p.String("join_authorised_via_users_server"); p.Rules.Restricted && p.Type == matrix.TypeMember && p.Membership() == matrix.Join && via != "" {
		add(matrix.UserID(via).Server())
	}
	return servers
}

func (p *PDU) keyIDs(server matrix.ServerName) (ids []string) {
	gjson.GetBytes(p.raw, "signatures").ForEach(func(s, keys gjson.Result) bool {
		if s.Str == string(server) {
			keys.ForEach(func(id, _ gjson.Result) bool {
				if strings.HasPrefix(id.Str, "ed25519:") && id.Str != PolicyKeyID {
					ids = append(ids, id.Str)
				}
				return true
			})
		}
		return true
	})
	return ids
}
