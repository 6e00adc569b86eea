package clientapi

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/gjallar-im/gjallar/homeserver/canonicaljson"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

func (a *api) keyRoutes() []route {
	return []route{
		{"POST", "/v3/keys/upload", user, (*api).postKeysUpload},
		{"POST", "/v3/keys/upload/{deviceID}", user, (*api).postKeysUpload},
		{"POST", "/v3/keys/query", user, (*api).postKeysQuery},
		{"POST", "/v3/keys/claim", user, (*api).postKeysClaim},
		{"GET", "/v3/keys/changes", user, (*api).getKeysChanges},
		{"POST", "/v3/keys/device_signing/upload", user, (*api).postDeviceSigning},
		{"POST", "/v3/keys/signatures/upload", user, (*api).postSignatures},
	}
}

// maxOneTimeKeys of one upload. Clients keep about fifty.
const maxOneTimeKeys = 1000

// signatures of an object: by user, then by key ID.
type signatures map[matrix.UserID]map[string]string

// deviceKeys is what we check of a device's identity keys; there may be more.
type deviceKeys struct {
	User       matrix.UserID     `json:"user_id"`
	Device     matrix.DeviceID   `json:"device_id"`
	Algorithms []string          `json:"algorithms"`
	Keys       map[string]string `json:"keys"`
	Signatures signatures        `json:"signatures"`
}

// postKeysUpload: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysupload
func (a *api) postKeysUpload(r *request) (any, error) {
	var in struct {
		Device   json.RawMessage            `json:"device_keys"`
		OneTime  map[string]json.RawMessage `json:"one_time_keys"`
		Fallback map[string]json.RawMessage `json:"fallback_keys"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	identity, err := r.deviceKeys(in.Device)
	if err != nil {
		return nil, err
	}
	oneTime, err := oneTimeKeys(in.OneTime)
	if err != nil {
		return nil, err
	}
	fallback, err := oneTimeKeys(in.Fallback)
	if err != nil {
		return nil, err
	}
	err = a.Store.Write(r.Context(), func(tx *sqldb.Tx) error {
		if identity != nil {
			changed, err := a.Store.PutDeviceKeys(tx, r.user, r.device, identity)
			if err != nil {
				return err
			}
			if changed {
				if err := a.Store.DevicesChanged(tx, r.user); err != nil {
					return err
				}
			}
		}
		for _, k := range fallback {
			if err := a.Store.PutFallbackKey(tx, r.user, r.device, k); err != nil {
				return err
			}
		}
		return a.Store.AddOneTimeKeys(tx, r.user, r.device, oneTime)
	})
	if errors.Is(err, store.ErrKeyExists) {
		return nil, matrix.InvalidParam("%s", err)
	}
	if err != nil {
		return nil, err
	}
	counts, _, err := a.Store.KeyCounts(r.Context(), r.user, r.device)
	return map[string]any{"one_time_key_counts": counts}, err
}

// deviceKeys checks that uploaded identity keys are those of the device that
// uploads, and returns them in canonical form; nil if there are none.
func (r *request) deviceKeys(raw json.RawMessage) (json.RawMessage, error) {
	if isNull(raw) {
		return nil, nil
	}
	var k deviceKeys
	if err := decodeJSON(raw, &k); err != nil {
		return nil, err
	}
	if k.User != r.user || k.Device != r.device {
		return nil, matrix.InvalidParam("The keys are not those of this device")
	}
	if len(k.Algorithms) == 0 || len(k.Keys) == 0 || len(k.Signatures) == 0 {
		return nil, matrix.BadJSON("The device keys lack algorithms, keys or signatures")
	}
	return withoutUnsigned(raw)
}

// first byte of a JSON value, 0 if there is none.
func first(raw json.RawMessage) byte {
	if len(raw) == 0 {
		return 0
	}
	return raw[0]
}

func isNull(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

// withoutUnsigned returns a JSON object in canonical form, without unsigned.
func withoutUnsigned(raw json.RawMessage) (json.RawMessage, error) {
	var m map[string]json.RawMessage
	if err := decodeJSON(raw, &m); err != nil {
		return nil, err
	}
	delete(m, "unsigned")
	b, err := canonicaljson.Marshal(m)
	if err != nil {
		return nil, matrix.BadJSON("%s", err)
	}
	return b, nil
}

// oneTimeKeys checks one-time or fallback keys: "algorithm:id" and a key, which is
// a string or a signed object.
func oneTimeKeys(in map[string]json.RawMessage) ([]store.OneTimeKey, error) {
	if len(in) > maxOneTimeKeys {
		return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeTooLarge, "More than %d keys", maxOneTimeKeys)
	}
	var out []store.OneTimeKey
	for _, name := range slices.Sorted(maps.Keys(in)) {
		algorithm, id, ok := strings.Cut(name, ":")
		if !ok || algorithm == "" || id == "" || len(name) > matrix.MaxIDLength {
			return nil, matrix.BadJSON("%.80q does not name a key", name)
		}
		var signed struct {
			Key        *string    `json:"key"`
			Signatures signatures `json:"signatures"`
		}
		var plain string
		if first(in[name]) == '"' {
			if err := decodeJSON(in[name], &plain); err != nil {
				return nil, err
			}
		} else if err := decodeJSON(in[name], &signed); err != nil {
			return nil, err
		} else if signed.Key == nil {
			return nil, matrix.BadJSON("One-time key %.80q has no key", name)
		}
		text, err := canonicaljson.CanonicalStrict(in[name])
		if err != nil {
			return nil, matrix.BadJSON("One-time key %.80q: %s", name, err)
		}
		out = append(out, store.OneTimeKey{Algorithm: algorithm, ID: id, JSON: text})
	}
	return out, nil
}

// keySet is the answer to a query.
type keySet struct {
	Devices     map[matrix.UserID]map[matrix.DeviceID]json.RawMessage `json:"device_keys"`
	Failures    map[matrix.ServerName]struct{}                        `json:"failures"`
	Master      map[matrix.UserID]json.RawMessage                     `json:"master_keys"`
	SelfSigning map[matrix.UserID]json.RawMessage                     `json:"self_signing_keys"`
	UserSigning map[matrix.UserID]json.RawMessage                     `json:"user_signing_keys"`
}

// postKeysQuery: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysquery
func (a *api) postKeysQuery(r *request) (any, error) {
	var in struct {
		Devices map[matrix.UserID][]matrix.DeviceID `json:"device_keys"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	out := keySet{map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{}, map[matrix.ServerName]struct{}{},
		map[matrix.UserID]json.RawMessage{}, map[matrix.UserID]json.RawMessage{}, map[matrix.UserID]json.RawMessage{}}
	var local []matrix.UserID
	for u := range in.Devices {
		if id, err := matrix.ParseUserID(string(u)); err != nil {
			return nil, matrix.InvalidParam("%.80q is not a user ID", u)
		} else if id.Server() != a.ServerName {
			out.Failures[id.Server()] = struct{}{}
			continue
		}
		local = append(local, u)
		out.Devices[u] = map[matrix.DeviceID]json.RawMessage{}
	}
	return out, a.queryLocal(r, local, in.Devices, &out)
}

// queryLocal adds the keys of local users to an answer; of the devices that are
// named, or of all where none is.
func (a *api) queryLocal(r *request, users []matrix.UserID, wanted map[matrix.UserID][]matrix.DeviceID, out *keySet) error {
	devices, err := a.Store.DeviceKeys(r.Context(), users)
	if err != nil {
		return err
	}
	cross, err := a.Store.CrossSigningKeys(r.Context(), users)
	if err != nil {
		return err
	}
	extra, err := a.signaturesOf(r, users)
	if err != nil {
		return err
	}
	for _, d := range devices {
		if want := wanted[d.User]; len(want) > 0 && !slices.Contains(want, d.Device) {
			continue
		}
		var hint any
		if d.Name != "" {
			hint = map[string]string{"device_display_name": d.Name}
		}
		if out.Devices[d.User][d.Device], err = served(d.JSON, extra[signed{d.User, string(d.Device)}], hint); err != nil {
			return err
		}
	}
	for _, k := range cross {
		to := map[string]map[matrix.UserID]json.RawMessage{"master": out.Master, "self_signing": out.SelfSigning}[k.Usage]
		if k.Usage == "user_signing" && k.User == r.user {
			to = out.UserSigning
		}
		if to == nil {
			continue
		}
		_, public := publicKey(k.JSON)
		if to[k.User], err = served(k.JSON, extra[signed{k.User, public}], nil); err != nil {
			return err
		}
	}
	return nil
}

// signed names a key of a user that others sign.
type signed struct {
	user   matrix.UserID
	target string
}

// signaturesOf returns the separately uploaded signatures that the one who asks may see.
func (a *api) signaturesOf(r *request, users []matrix.UserID) (map[signed][]store.KeySignature, error) {
	list, err := a.Store.KeySignatures(r.Context(), r.user, users)
	out := map[signed][]store.KeySignature{}
	for _, s := range list {
		k := signed{s.User, s.Target}
		out[k] = append(out[k], s)
	}
	return out, err
}

// served is a stored key as clients get it: with more signatures and unsigned data.
func served(raw json.RawMessage, extra []store.KeySignature, unsigned any) (json.RawMessage, error) {
	if len(extra) == 0 && unsigned == nil {
		return raw, nil
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("stored key: %w", err)
	}
	var have struct {
		Signatures signatures `json:"signatures"`
	}
	if err := json.Unmarshal(raw, &have); err != nil {
		return nil, fmt.Errorf("stored key: %w", err)
	}
	if have.Signatures == nil {
		have.Signatures = signatures{}
	}
	for _, s := range extra {
		if have.Signatures[s.Signer] == nil {
			have.Signatures[s.Signer] = map[string]string{}
		}
		have.Signatures[s.Signer][s.KeyID] = s.Signature
	}
	if len(have.Signatures) > 0 {
		m["signatures"] = have.Signatures
	}
	if unsigned != nil {
		m["unsigned"] = unsigned
	}
	return json.Marshal(m)
}

// postKeysClaim: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysclaim
func (a *api) postKeysClaim(r *request) (any, error) {
	var in struct {
		Keys map[matrix.UserID]map[matrix.DeviceID]string `json:"one_time_keys"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if in.Keys == nil {
		return nil, matrix.MissingParam("No one_time_keys")
	}
	type claimed map[matrix.UserID]map[matrix.DeviceID]map[string]json.RawMessage
	var out claimed
	failures := map[matrix.ServerName]struct{}{}
	for u := range in.Keys {
		if u.Server() != a.ServerName {
			failures[u.Server()] = struct{}{}
			delete(in.Keys, u)
		}
	}
	err := a.Store.Write(r.Context(), func(tx *sqldb.Tx) error {
		out = claimed{}
		for u, devices := range in.Keys {
			for d, algorithm := range devices {
				k, err := a.Store.ClaimKey(tx, u, d, algorithm)
				if errors.Is(err, store.ErrNotFound) {
					continue
				}
				if err != nil {
					return err
				}
				if out[u] == nil {
					out[u] = map[matrix.DeviceID]map[string]json.RawMessage{}
				}
				out[u][d] = map[string]json.RawMessage{k.Algorithm + ":" + k.ID: k.JSON}
			}
		}
		return nil
	})
	return map[string]any{"one_time_keys": out, "failures": failures}, err
}

// getKeysChanges: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3keyschanges
func (a *api) getKeysChanges(r *request) (any, error) {
	q := r.URL.Query()
	from, err := streams.ParseToken(q.Get("from"))
	if err != nil {
		return nil, matrix.InvalidParam("from: %s", err)
	}
	// We tell of all that changed since from, and take to only if it is there: as one
	// change a user is remembered, that of an earlier span may be a later one.
	if to := q.Get("to"); to != "" {
		if _, err := streams.ParseToken(to); err != nil {
			return nil, matrix.InvalidParam("to: %s", err)
		}
	}
	now, err := a.Store.Position(r.Context())
	if err != nil {
		return nil, err
	}
	changed, err := a.Store.DeviceChanges(r.Context(), from.Pos, now)
	if err != nil {
		return nil, err
	}
	moved, err := a.Store.MembersMoved(r.Context(), r.user, from.Pos, now)
	if err != nil {
		return nil, err
	}
	shared, err := a.Store.ShareRoom(r.Context(), r.user, slices.Concat(changed, moved))
	if err != nil {
		return nil, err
	}
	out := struct {
		Changed []matrix.UserID `json:"changed"`
		Left    []matrix.UserID `json:"left"`
	}{[]matrix.UserID{}, []matrix.UserID{}}
	for _, u := range changed {
		if u == r.user || shared[u] {
			out.Changed = append(out.Changed, u)
		}
	}
	for _, u := range moved {
		switch {
		case !shared[u]:
			out.Left = append(out.Left, u)
		case !slices.Contains(out.Changed, u):
			out.Changed = append(out.Changed, u)
		}
	}
	return out, nil
}

// crossSigningKey is what we check of a cross-signing key; there may be more.
type crossSigningKey struct {
	User       matrix.UserID     `json:"user_id"`
	Usage      []string          `json:"usage"`
	Keys       map[string]string `json:"keys"`
	Signatures signatures        `json:"signatures"`
}

// publicKey of a cross-signing key: its ID and the ID's part after the algorithm,
// which is the key in base64. "" if it has not exactly one ed25519 key.
func publicKey(raw json.RawMessage) (id, public string) {
	var k crossSigningKey
	if err := json.Unmarshal(raw, &k); err != nil || len(k.Keys) != 1 {
		return "", ""
	}
	for id, key := range k.Keys {
		if public, ok := strings.CutPrefix(id, "ed25519:"); ok && public == key {
			return id, public
		}
	}
	return "", ""
}

func errSignature(format string, args ...any) *matrix.Error {
	return matrix.Errorf(http.StatusBadRequest, "M_INVALID_SIGNATURE", format, args...)
}

// verify checks a user's signature over an object, by a key in unpadded base64.
func verify(object json.RawMessage, signer matrix.UserID, keyID, public string) error {
	key, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(public, "="))
	if err != nil {
		return pdu.ErrSignature
	}
	return pdu.VerifyJSON(object, matrix.ServerName(signer), keyID, ed25519.PublicKey(key))
}

// usages of cross-signing keys, in the order in which they are to be checked.
var usages = []string{"master", "self_signing", "user_signing"}

// postDeviceSigning: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysdevice_signingupload
func (a *api) postDeviceSigning(r *request) (any, error) {
	var in struct {
		Master      json.RawMessage `json:"master_key"`
		SelfSigning json.RawMessage `json:"self_signing_key"`
		UserSigning json.RawMessage `json:"user_signing_key"`
		Auth        *uiaAuth        `json:"auth"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	current, err := a.crossSigning(r, r.user)
	if err != nil {
		return nil, err
	}
	fresh, err := r.crossSigningKeys(map[string]json.RawMessage{"master": in.Master, "self_signing": in.SelfSigning, "user_signing": in.UserSigning}, current)
	if err != nil {
		return nil, err
	}
	changes := false
	for usage, key := range fresh {
		changes = changes || string(current[usage]) != string(key)
	}
	if !changes {
		return empty, nil
	}
	if current["master"] != nil { // the first keys need no confirmation
		if err := r.confirm(r.Context(), in.Auth); err != nil {
			return nil, err
		}
	}
	return empty, a.Store.Write(r.Context(), func(tx *sqldb.Tx) error {
		for usage, key := range fresh {
			if old := current[usage]; old != nil && string(old) != string(key) {
				id, public := publicKey(old)
				if err := a.Store.DropKeySignatures(tx, r.user, id, public); err != nil {
					return err
				}
			}
			if err := a.Store.PutCrossSigningKey(tx, store.CrossSigningKey{User: r.user, Usage: usage, JSON: key}); err != nil {
				return err
			}
		}
		return a.Store.DevicesChanged(tx, r.user)
	})
}

// crossSigning returns a user's cross-signing keys by usage.
func (a *api) crossSigning(r *request, u matrix.UserID) (map[string]json.RawMessage, error) {
	list, err := a.Store.CrossSigningKeys(r.Context(), []matrix.UserID{u})
	out := map[string]json.RawMessage{}
	for _, k := range list {
		out[k.Usage] = k.JSON
	}
	return out, err
}

// crossSigningKeys checks uploaded keys and returns them in canonical form. The
// master key signs the others.
func (r *request) crossSigningKeys(in, current map[string]json.RawMessage) (map[string]json.RawMessage, error) {
	out := map[string]json.RawMessage{}
	master := current["master"]
	for _, usage := range usages {
		if isNull(in[usage]) {
			continue
		}
		key, err := r.crossSigningKey(usage, in[usage])
		if err != nil {
			return nil, err
		}
		out[usage] = key
		if usage == "master" {
			master = key
			continue
		}
		if master == nil {
			return nil, matrix.MissingParam("There is no master key")
		}
		id, public := publicKey(master)
		if verify(key, r.user, id, public) != nil {
			return nil, errSignature("The master key has not signed the %s key", usage)
		}
	}
	return out, nil
}

func (r *request) crossSigningKey(usage string, raw json.RawMessage) (json.RawMessage, error) {
	var k crossSigningKey
	if err := decodeJSON(raw, &k); err != nil {
		return nil, err
	}
	if k.User != r.user || !slices.Contains(k.Usage, usage) {
		return nil, matrix.InvalidParam("The %s key is not one of yours for this usage", usage)
	}
	if id, _ := publicKey(raw); id == "" {
		return nil, matrix.InvalidParam("The %s key must have one ed25519 key, named by itself", usage)
	}
	return withoutUnsigned(raw)
}

// postSignatures: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keyssignaturesupload
func (a *api) postSignatures(r *request) (any, error) {
	var in map[matrix.UserID]map[string]json.RawMessage
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	failures := map[matrix.UserID]map[string]*matrix.Error{}
	var good []store.KeySignature
	for u, targets := range in {
		signable, err := a.signable(r, u)
		if err != nil {
			return nil, err
		}
		for target, object := range targets {
			list, refused := signable.check(u, target, object)
			if refused == nil {
				good = append(good, list...)
				continue
			}
			if failures[u] == nil {
				failures[u] = map[string]*matrix.Error{}
			}
			failures[u][target] = refused
		}
	}
	out := map[string]any{"failures": failures}
	if len(good) == 0 {
		return out, nil
	}
	return out, a.Store.Write(r.Context(), func(tx *sqldb.Tx) error {
		for _, s := range good {
			if err := a.Store.PutKeySignature(tx, s); err != nil {
				return err
			}
		}
		return a.Store.DevicesChanged(tx, r.user)
	})
}

// signable is what someone may sign of a user's keys, and by which of their own.
type signable struct {
	signer  matrix.UserID
	objects map[string]json.RawMessage   // by device ID or public master key
	keys    map[string]map[string]string // for each object: the signer's keys, by ID
}

// signable: one signs one's own devices with the self-signing key, one's own master
// key with the devices, and the master keys of others with the user-signing key.
func (a *api) signable(r *request, u matrix.UserID) (*signable, error) {
	s := &signable{signer: r.user, objects: map[string]json.RawMessage{}, keys: map[string]map[string]string{}}
	theirs, err := a.crossSigning(r, u)
	if err != nil {
		return nil, err
	}
	_, master := publicKey(theirs["master"])
	if master != "" {
		s.objects[master] = theirs["master"]
	}
	if u != r.user {
		own, err := a.crossSigning(r, r.user)
		id, public := publicKey(own["user_signing"])
		s.keys[master] = map[string]string{id: public}
		return s, err
	}
	devices, err := a.Store.DeviceKeys(r.Context(), []matrix.UserID{u})
	if err != nil {
		return nil, err
	}
	id, public := publicKey(theirs["self_signing"])
	ofDevices := map[string]string{}
	for _, d := range devices {
		s.objects[string(d.Device)] = d.JSON
		s.keys[string(d.Device)] = map[string]string{id: public}
		var k deviceKeys
		if err := json.Unmarshal(d.JSON, &k); err != nil {
			return nil, fmt.Errorf("stored key: %w", err)
		}
		own := "ed25519:" + string(d.Device)
		ofDevices[own] = k.Keys[own]
	}
	s.keys[master] = ofDevices
	return s, nil
}

// check returns the signatures of an uploaded object if all that it has by keys of
// the signer's are right, over the object as we know it.
func (s *signable) check(u matrix.UserID, target string, object json.RawMessage) ([]store.KeySignature, *matrix.Error) {
	known := s.objects[target]
	if known == nil || target == "" {
		return nil, matrix.NotFound("There is no such key")
	}
	var in struct {
		Signatures signatures `json:"signatures"`
	}
	if json.Unmarshal(object, &in) != nil {
		return nil, matrix.BadJSON("signatures is not by user and key")
	}
	var out []store.KeySignature
	for id, signature := range in.Signatures[s.signer] {
		public, ok := s.keys[target][id]
		if !ok || public == "" {
			if u == s.signer && id == "ed25519:"+target { // the device's own, which is there already
				continue
			}
			return nil, errSignature("%.80q is not a key that may sign this", id)
		}
		candidate, err := withSignature(known, s.signer, id, signature)
		if err != nil || verify(candidate, s.signer, id, public) != nil {
			return nil, errSignature("The signature by %.80q is wrong", id)
		}
		out = append(out, store.KeySignature{User: u, Target: target, Signer: s.signer, KeyID: id, Signature: signature})
	}
	if len(out) == 0 {
		return nil, errSignature("There is no signature of yours")
	}
	return out, nil
}

// withSignature is an object with this one signature.
func withSignature(object json.RawMessage, signer matrix.UserID, id, signature string) (json.RawMessage, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(object, &m); err != nil {
		return nil, err
	}
	var err error
	if m["signatures"], err = json.Marshal(signatures{signer: {id: signature}}); err != nil {
		return nil, err
	}
	return json.Marshal(m)
}
