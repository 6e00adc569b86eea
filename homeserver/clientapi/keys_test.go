package clientapi_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/canonicaljson"
	"github.com/gjallar-im/gjallar/homeserver/hstest"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
)

// key is a signing key with its place in an object's keys.
type key struct {
	ed25519.PrivateKey
	id string
}

func newKey(seed byte, name string) key {
	k := key{PrivateKey: ed25519.NewKeyFromSeed(slices.Repeat([]byte{seed}, ed25519.SeedSize))}
	if name == "" {
		name = k.public()
	}
	k.id = "ed25519:" + name
	return k
}

func (k key) public() string {
	return base64.RawStdEncoding.EncodeToString(k.Public().(ed25519.PublicKey))
}

// sign returns an object with a user's signature.
func (k key) sign(t *testing.T, u matrix.UserID, object any) map[string]any {
	t.Helper()
	text, err := canonicaljson.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	text, err = pdu.Signer{Server: matrix.ServerName(u), KeyID: k.id, Key: k.PrivateKey}.SignJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// identity is the device_keys of someone's device.
func identity(t *testing.T, u *hstest.User, k key) map[string]any {
	t.Helper()
	return k.sign(t, u.ID, map[string]any{"user_id": u.ID, "device_id": u.Device, "algorithms": []string{"m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"},
		"keys": map[string]string{k.id: k.public(), "curve25519:" + string(u.Device): "c"}})
}

// crossKey is a cross-signing key, signed by another if that is given.
func crossKey(t *testing.T, u *hstest.User, usage string, k key, by *key) map[string]any {
	t.Helper()
	object := map[string]any{"user_id": u.ID, "usage": []string{usage}, "keys": map[string]string{k.id: k.public()}}
	if by == nil {
		return object
	}
	return by.sign(t, u.ID, object)
}

func with(m map[string]any, k string, v any) map[string]any {
	m = maps.Clone(m)
	m[k] = v
	return m
}

func TestKeysAreUploadedAndFound(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, bob, eve := s.Register("alice"), s.Register("bob"), s.Register("eve")
		room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
		bob.Join(string(room))
		bobSince, eveSince := bob.Sync("").Str("next_batch"), eve.Sync("").Str("next_batch")
		k := newKey(1, string(alice.Device))
		out := alice.OK("POST", v3+"/keys/upload", map[string]any{
			"device_keys":   with(identity(t, alice, k), "unsigned", map[string]any{"device_display_name": "forged"}),
			"one_time_keys": map[string]any{"signed_curve25519:A": map[string]any{"key": "a"}, "curve25519:B": "b"},
			"fallback_keys": map[string]any{"signed_curve25519:F": map[string]any{"key": "f", "fallback": true}},
		})
		if n := out.At("one_time_key_counts", "signed_curve25519"); n != 1.0 {
			t.Errorf("counts: %v", out)
		}
		alice.OK("PUT", v3+"/devices/"+string(alice.Device), map[string]string{"display_name": "phone"})

		found := bob.OK("POST", v3+"/keys/query", map[string]any{"device_keys": map[matrix.UserID]any{alice.ID: []string{}, bob.ID: []string{}, "@x:elsewhere": []string{}}})
		d := found.At("device_keys", string(alice.ID), string(alice.Device))
		got, _ := d.(map[string]any)
		if hstest.JSON(got).Str("unsigned", "device_display_name") != "phone" || hstest.JSON(got).Str("keys", k.id) != k.public() {
			t.Errorf("bob finds %v", d)
		}
		if list, ok := found.At("device_keys", string(bob.ID)).(map[string]any); !ok || len(list) != 0 {
			t.Errorf("one without keys has %v", list)
		}
		if found.At("failures", "elsewhere") == nil {
			t.Errorf("another server is no failure: %v", found)
		}
		if none := bob.OK("POST", v3+"/keys/query", map[string]any{"device_keys": map[matrix.UserID]any{alice.ID: []string{"OTHER"}}}); len(none.At("device_keys", string(alice.ID)).(map[string]any)) != 0 {
			t.Errorf("asked for another device, bob finds %v", none)
		}

		// Who shares a room learns of the change, others do not.
		if changed := bob.Sync("since="+bobSince).At("device_lists", "changed"); fmt.Sprint(changed) != fmt.Sprint([]matrix.UserID{alice.ID}) {
			t.Errorf("bob's sync has %v", changed)
		}
		if lists := eve.Sync("since=" + eveSince).At("device_lists"); lists != nil {
			t.Errorf("eve's sync has %v", lists)
		}
		now := bob.Sync("").Str("next_batch")
		if changes := bob.OK("GET", v3+"/keys/changes?from="+bobSince+"&to="+now, nil); fmt.Sprint(changes.At("changed")) != fmt.Sprint([]matrix.UserID{alice.ID}) {
			t.Errorf("keys/changes: %v", changes)
		}
		alice.OK("POST", hstest.Path(room)+"/leave", nil)
		if changes := bob.OK("GET", v3+"/keys/changes?from="+now+"&to="+now, nil); fmt.Sprint(changes.At("left")) != fmt.Sprint([]matrix.UserID{alice.ID}) {
			t.Errorf("after alice has left: %v", changes)
		}
	})
}

func TestKeyUploadsThatAreRefused(t *testing.T) {
	s := hstest.Start(t)
	alice := s.Register("alice")
	good := identity(t, alice, newKey(1, string(alice.Device)))
	alice.OK("POST", v3+"/keys/upload", map[string]any{"one_time_keys": map[string]any{"x:1": "first"}})
	tests := []struct {
		name, code string
		body       any
	}{
		{"of another user", "M_INVALID_PARAM", map[string]any{"device_keys": with(good, "user_id", "@bob:test")}},
		{"of another device", "M_INVALID_PARAM", map[string]any{"device_keys": with(good, "device_id", "OTHER")}},
		{"without algorithms", "M_BAD_JSON", map[string]any{"device_keys": with(good, "algorithms", nil)}},
		{"without signatures", "M_BAD_JSON", map[string]any{"device_keys": with(good, "signatures", map[string]any{})}},
		{"keys that are no texts", "M_BAD_JSON", map[string]any{"device_keys": with(good, "keys", map[string]any{"a": 1})}},
		{"keys that are a list", "M_BAD_JSON", map[string]any{"device_keys": with(good, "keys", []string{"a"})}},
		{"device keys that are a text", "M_BAD_JSON", map[string]any{"device_keys": "x"}},
		{"a one-time key without algorithm", "M_BAD_JSON", map[string]any{"one_time_keys": map[string]any{"1": "x"}}},
		{"a one-time key that is a number", "M_BAD_JSON", map[string]any{"one_time_keys": map[string]any{"x:2": 1}}},
		{"a one-time key that is null", "M_BAD_JSON", map[string]any{"one_time_keys": map[string]any{"x:2": nil}}},
		{"a one-time key without key", "M_BAD_JSON", map[string]any{"one_time_keys": map[string]any{"x:2": map[string]any{}}}},
		{"another one-time key of the same ID", "M_INVALID_PARAM", map[string]any{"one_time_keys": map[string]any{"x:1": "second"}}},
		{"a fraction in a key", "M_BAD_JSON", []byte(`{"one_time_keys":{"x:2":{"key":"a","n":1.5}}}`)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { alice.Fails(400, tt.code, "POST", v3+"/keys/upload", tt.body) })
	}
	alice.OK("POST", v3+"/keys/upload", map[string]any{"one_time_keys": map[string]any{"x:1": "first"}})
}

func TestClaimsGiveEachKeyOnceAndThenTheFallback(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, bob := s.Register("alice"), s.Register("bob")
		const keys, claims = 10, 30
		oneTime := map[string]any{}
		for i := range keys {
			oneTime[fmt.Sprintf("x:%d", i)] = map[string]any{"key": fmt.Sprint(i)}
		}
		alice.OK("POST", v3+"/keys/upload", map[string]any{"one_time_keys": oneTime, "fallback_keys": map[string]any{"x:F": map[string]any{"key": "f", "fallback": true}}})
		var mu sync.Mutex
		got := map[string]int{}
		var wg sync.WaitGroup
		for range claims {
			wg.Go(func() {
				out := bob.OK("POST", v3+"/keys/claim", map[string]any{"one_time_keys": map[matrix.UserID]any{alice.ID: map[matrix.DeviceID]string{alice.Device: "x", "NONE": "x"}}})
				mu.Lock()
				defer mu.Unlock()
				if devices, ok := out.At("one_time_keys", string(alice.ID)).(map[string]any); !ok || len(devices) != 1 {
					t.Errorf("claimed %v", out)
				}
				for id := range out.At("one_time_keys", string(alice.ID), string(alice.Device)).(map[string]any) {
					got[id]++
				}
			})
		}
		wg.Wait()
		for id, n := range got {
			if id != "x:F" && n != 1 || id == "x:F" && n != claims-keys {
				t.Errorf("%s was given %d times", id, n)
			}
		}
		if len(got) != keys+1 {
			t.Errorf("%d keys were given", len(got))
		}
		sync := alice.Sync("")
		if unused := sync.At("device_unused_fallback_key_types"); fmt.Sprint(unused) != "[]" {
			t.Errorf("unused fallback keys: %v", unused)
		}
		if counts := sync.At("device_one_time_keys_count", "signed_curve25519"); counts != 0.0 {
			t.Errorf("signed_curve25519 left: %v", counts)
		}
	})
}

func TestCrossSigning(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, bob := s.Register("alice"), s.Register("bob")
		upload := v3 + "/keys/device_signing/upload"
		master, self, own := newKey(2, ""), newKey(3, ""), newKey(4, "")
		all := map[string]any{"master_key": crossKey(t, alice, "master", master, nil), "self_signing_key": crossKey(t, alice, "self_signing", self, &master), "user_signing_key": crossKey(t, alice, "user_signing", own, &master)}

		alice.Fails(400, "M_MISSING_PARAM", "POST", upload, map[string]any{"self_signing_key": all["self_signing_key"]})
		alice.Fails(400, "M_INVALID_SIGNATURE", "POST", upload, with(all, "self_signing_key", crossKey(t, alice, "self_signing", self, &own)))
		alice.Fails(400, "M_INVALID_SIGNATURE", "POST", upload, with(all, "user_signing_key", crossKey(t, alice, "user_signing", own, nil)))
		alice.Fails(400, "M_INVALID_PARAM", "POST", upload, with(all, "master_key", crossKey(t, bob, "master", master, nil)))
		alice.Fails(400, "M_INVALID_PARAM", "POST", upload, with(all, "master_key", crossKey(t, alice, "self_signing", master, nil)))

		alice.OK("POST", upload, all) // the first keys, and the same again, need no password
		alice.OK("POST", upload, all)
		other := newKey(5, "")
		change := map[string]any{"master_key": crossKey(t, alice, "master", other, nil)}
		if status, out := alice.Do("POST", upload, change); status != 401 || out["flows"] == nil {
			t.Errorf("other keys without a password: %d %v", status, out)
		}

		ask := map[string]any{"device_keys": map[matrix.UserID]any{alice.ID: []string{}}}
		mine, theirs := alice.OK("POST", v3+"/keys/query", ask), bob.OK("POST", v3+"/keys/query", ask)
		if mine.At("user_signing_keys", string(alice.ID)) == nil || theirs.At("user_signing_keys", string(alice.ID)) != nil {
			t.Error("the user-signing key is not for its owner alone")
		}
		if theirs.Str("master_keys", string(alice.ID), "keys", master.id) != master.public() || theirs.At("self_signing_keys", string(alice.ID)) == nil {
			t.Errorf("bob finds %v", theirs)
		}

		auth := map[string]any{"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": "alice"}, "password": "alice"}
		self2 := crossKey(t, alice, "self_signing", self, &other)
		alice.OK("POST", upload, map[string]any{"master_key": change["master_key"], "self_signing_key": self2, "auth": auth})
		if now := bob.OK("POST", v3+"/keys/query", ask); now.Str("master_keys", string(alice.ID), "keys", other.id) == "" {
			t.Errorf("after the change bob finds %v", now)
		}
	})
}

func TestUploadedSignaturesAreChecked(t *testing.T) {
	s := hstest.Start(t)
	alice, bob := s.Register("alice"), s.Register("bob")
	device := newKey(1, string(alice.Device))
	keys := identity(t, alice, device)
	alice.OK("POST", v3+"/keys/upload", map[string]any{"device_keys": keys})
	master, self, own, bobMaster := newKey(2, ""), newKey(3, ""), newKey(4, ""), newKey(6, "")
	masterKey := crossKey(t, alice, "master", master, nil)
	alice.OK("POST", v3+"/keys/device_signing/upload", map[string]any{"master_key": masterKey,
		"self_signing_key": crossKey(t, alice, "self_signing", self, &master), "user_signing_key": crossKey(t, alice, "user_signing", own, &master)})
	bobKey := crossKey(t, bob, "master", bobMaster, nil)
	bob.OK("POST", v3+"/keys/device_signing/upload", map[string]any{"master_key": bobKey})

	tests := []struct {
		name   string
		of     matrix.UserID
		target string
		object any
		code   string // "" is accepted
	}{
		{"a device by the self-signing key", alice.ID, string(alice.Device), self.sign(t, alice.ID, keys), ""},
		{"a device by the master key", alice.ID, string(alice.Device), master.sign(t, alice.ID, keys), "M_INVALID_SIGNATURE"},
		{"a device by a stranger", alice.ID, string(alice.Device), newKey(9, "").sign(t, alice.ID, keys), "M_INVALID_SIGNATURE"},
		{"other keys than the device's", alice.ID, string(alice.Device), self.sign(t, alice.ID, with(keys, "keys", map[string]any{device.id: "other"})), "M_INVALID_SIGNATURE"},
		{"a device without a further signature", alice.ID, string(alice.Device), keys, "M_INVALID_SIGNATURE"},
		{"a device that is not there", alice.ID, "NONE", self.sign(t, alice.ID, keys), "M_NOT_FOUND"},
		{"the own master key by a device", alice.ID, master.public(), device.sign(t, alice.ID, masterKey), ""},
		{"another's master key by the user-signing key", bob.ID, bobMaster.public(), own.sign(t, alice.ID, bobKey), ""},
		{"another's master key by a device", bob.ID, bobMaster.public(), device.sign(t, alice.ID, bobKey), "M_INVALID_SIGNATURE"},
		{"another's master key in their name", bob.ID, bobMaster.public(), bobMaster.sign(t, bob.ID, bobKey), "M_INVALID_SIGNATURE"},
		{"something that is no object", alice.ID, string(alice.Device), "x", "M_BAD_JSON"},
		{"nothing", alice.ID, "", keys, "M_NOT_FOUND"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out := alice.OK("POST", v3+"/keys/signatures/upload", map[matrix.UserID]any{tt.of: map[string]any{tt.target: tt.object}})
			if got := out.Str("failures", string(tt.of), tt.target, "errcode"); got != tt.code {
				t.Errorf("%v, want %q", out, tt.code)
			}
		})
	}
	query := map[string]any{"device_keys": map[matrix.UserID]any{alice.ID: []string{}, bob.ID: []string{}}}
	mine, theirs := alice.OK("POST", v3+"/keys/query", query), bob.OK("POST", v3+"/keys/query", query)
	for who, q := range map[string]hstest.JSON{"alice": mine, "bob": theirs} {
		signatures := hstest.JSON(q.At("device_keys", string(alice.ID), string(alice.Device)).(map[string]any)).At("signatures", string(alice.ID)).(map[string]any)
		if len(signatures) != 2 || signatures[self.id] == nil || signatures[device.id] == nil {
			t.Errorf("%s sees the device signed by %v", who, signatures)
		}
	}
	if mine.Str("master_keys", string(bob.ID), "signatures", string(alice.ID), own.id) == "" {
		t.Error("alice does not see her signature of bob")
	}
	if theirs.At("master_keys", string(bob.ID), "signatures", string(alice.ID)) != nil {
		t.Error("bob sees who has signed him")
	}
}

func TestDevicesThatAreGoneAreTold(t *testing.T) {
	s := hstest.Start(t)
	alice, bob := s.Register("alice"), s.Register("bob")
	room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	bob.Join(string(room))
	alice.OK("POST", v3+"/keys/upload", map[string]any{"device_keys": identity(t, alice, newKey(1, string(alice.Device)))})
	since := bob.Sync("").Str("next_batch")
	got := make(chan hstest.JSON)
	go func() { got <- bob.Sync("timeout=60000&since=" + since) }()
	alice.OK("POST", v3+"/logout", nil)
	if changed := (<-got).At("device_lists", "changed"); fmt.Sprint(changed) != fmt.Sprint([]matrix.UserID{alice.ID}) {
		t.Errorf("bob hears of %v", changed)
	}
	if list := bob.OK("POST", v3+"/keys/query", map[string]any{"device_keys": map[matrix.UserID]any{alice.ID: []string{}}}).At("device_keys", string(alice.ID)); len(list.(map[string]any)) != 0 {
		t.Errorf("bob still finds %v", list)
	}
}
