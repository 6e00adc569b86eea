package eventauth

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

// identityServer signs third-party invites.
var identityServer = pdu.Signer{Server: "identity.example", KeyID: "ed25519:0", Key: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))}

func publicKey(enc *base64.Encoding) string {
	return enc.EncodeToString(identityServer.Key.Public().(ed25519.PublicKey))
}

func sign(tb testing.TB, object string) string {
	tb.Helper()
	signed, err := identityServer.SignJSON([]byte(object))
	if err != nil {
		tb.Fatal(err)
	}
	return string(signed)
}

func TestThirdPartyInvites(t *testing.T) {
	const mxid = `{"mxid":"@dave:d","sender":"@bob:b","token":"tok\"en"}`
	signed := sign(t, mxid)
	key := publicKey(base64.RawStdEncoding)
	other := base64.RawStdEncoding.EncodeToString(make([]byte, 32))
	original := fmt.Sprintf(`tpi/tok"en bob {"display_name":"d","public_key":%q}`, key)
	tests := []struct {
		rule, name, state string
		sender, content   string
		allowed           bool
	}{
		{"5.4.1.7", "signed by public_key", original, "bob", signed, true},
		{"5.4.1.7", "signed by one of public_keys", fmt.Sprintf(`tpi/tok"en bob {"public_key":%q,"public_keys":[{"public_key":"x"},{"public_key":%q},{"public_key":%q}]}`, other, other, key), "bob", signed, true},
		{"5.4.1.7", "a key that is padded, in the URL-safe alphabet", fmt.Sprintf(`tpi/tok"en bob {"public_key":%q}`, publicKey(base64.URLEncoding)), "bob", signed, true},
		{"5.4.1.7", "a sender who has left since", original + "\nnone member/$bob", "bob", signed, true},
		{"5.4.1.7", "a target who is in", original + "\nmember/$dave dave join", "bob", signed, true},
		{"5.4.1.1", "a target who is banned", original + "\nmember/$dave alice ban", "bob", signed, false},
		{"5.4.1.2", "nothing signed", original, "bob", "", false},
		{"5.4.1.2", "signed is no object", original, "bob", "[]", false},
		{"5.4.1.3", "no mxid", original, "bob", sign(t, `{"token":"tok\"en"}`), false},
		{"5.4.1.3", "no token", original, "bob", sign(t, `{"mxid":"@dave:d"}`), false},
		{"5.4.1.3", "a token that is no text", original, "bob", sign(t, `{"mxid":"@dave:d","token":1}`), false},
		{"5.4.1.4", "for another user", original, "bob", sign(t, `{"mxid":"@eve:e","token":"tok\"en"}`), false},
		{"5.4.1.5", "no such invite", "", "bob", signed, false},
		{"5.4.1.6", "an invite by another", original, "alice", signed, false},
		{"5.4.1.8", "signed by another key", fmt.Sprintf(`tpi/tok"en bob {"public_key":%q}`, other), "bob", signed, false},
		{"5.4.1.8", "no key", `tpi/tok"en bob {}`, "bob", signed, false},
		{"5.4.1.8", "changed after it was signed", original, "bob", strings.Replace(signed, "@bob:b", "@bob:c", 1), false},
		{"5.4.1.8", "no signature", original, "bob", mxid, false},
		{"5.4.1.8", "a signature by another algorithm", original, "bob", strings.Replace(signed, "ed25519:", "rsa:", 1), false},
		{"5.4.1.8", "broken keys and signatures", fmt.Sprintf(`tpi/tok"en bob {"public_key":{},"public_keys":{"public_key":%q}}`, key), "bob",
			`{"mxid":"@dave:d","signatures":{"a":[],"b":{"ed25519:1":5,"ed25519:2":"!"}},"token":"tok\"en"}`, false},
	}
	for _, tt := range tests {
		t.Run(tt.rule+"/"+tt.name, func(t *testing.T) {
			for _, v := range roomversion.All() {
				r := newRoom(t, v)
				tpi := `{"display_name":"d"}`
				if tt.content != "" {
					tpi = `{"display_name":"d","signed":` + tt.content + `}`
				}
				ev := r.event(`member/$dave ` + tt.sender + ` {"membership":"invite","third_party_invite":` + tpi + `}`)
				if err := Allowed(ev, r.state(tt.state)); (err == nil) != tt.allowed {
					t.Errorf("version %s: %v, want allowed: %v", v.Version, err, tt.allowed)
				}
			}
		})
	}
}

// Hundreds of keys and as many signatures must not hold the room up.
func TestAFloodOfInviteKeysIsBounded(t *testing.T) {
	rules, _ := roomversion.Get("12")
	r := newRoom(t, rules)
	keys, signatures := []string{}, []string{}
	for i := range 700 {
		key := make([]byte, 32)
		key[0], key[1], key[2] = byte(i), byte(i>>8), 7
		keys = append(keys, fmt.Sprintf(`{"public_key":%q}`, base64.RawStdEncoding.EncodeToString(key)))
		signatures = append(signatures, fmt.Sprintf(`"ed25519:%03d":%q`, i, base64.RawStdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 64))))
	}
	state := r.state(`tpi/t bob {"public_keys":[` + strings.Join(keys, ",") + `]}`)
	ev := r.event(`member/$dave bob {"membership":"invite","third_party_invite":{"signed":{"mxid":"@dave:d","signatures":{"x":{` + strings.Join(signatures, ",") + `}},"token":"t"}}}`)
	start := time.Now()
	if Allowed(ev, state) == nil {
		t.Error("allowed")
	}
	if took := time.Since(start); took > 5*time.Second { // 490,000 checks take half a minute
		t.Errorf("took %v", took)
	}
}
