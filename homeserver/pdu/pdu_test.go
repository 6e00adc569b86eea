package pdu

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/canonicaljson"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
)

// The key of the specification's test vectors.
var signer = func() Signer {
	seed, err := base64.RawStdEncoding.DecodeString("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")
	if err != nil {
		panic(err)
	}
	return Signer{"domain", "ed25519:1", ed25519.NewKeyFromSeed(seed)}
}()

type oneKey struct{}

func (oneKey) Key(server matrix.ServerName, id string, _ int64, _ bool) (ed25519.PublicKey, bool) {
	return signer.Key.Public().(ed25519.PublicKey), server == signer.Server && id == signer.KeyID
}

// https://spec.matrix.org/v1.19/appendices/#json-signing-1
func TestSigningVectors(t *testing.T) {
	for in, want := range map[string]string{
		`{}`:                    "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ",
		`{"one":1,"two":"Two"}`: "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
	} {
		out, err := signer.SignJSON([]byte(in))
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %s, %v", in, out, err)
		}
		if err := VerifyJSON(out, "domain", "ed25519:1", signer.Key.Public().(ed25519.PublicKey)); err != nil {
			t.Error(err)
		}
		if err := VerifyJSON(bytes.Replace(out, []byte("{"), []byte(`{"x":1,`), 1), "domain", "ed25519:1", signer.Key.Public().(ed25519.PublicKey)); !errors.Is(err, ErrSignature) {
			t.Errorf("a changed object verifies: %v", err)
		}
	}
}

// https://spec.matrix.org/v1.19/appendices/#event-signing
func TestEventVectors(t *testing.T) {
	rules, _ := roomversion.Get("1")
	for _, tt := range []struct{ name, in, hash, signature string }{
		{"minimal", `{"room_id":"!x:domain","sender":"@a:domain","origin":"domain","origin_server_ts":1000000,"signatures":{},"hashes":{},"type":"X","content":{},"prev_events":[],"auth_events":[],"depth":3,"unsigned":{"age_ts":1000000}}`,
			"5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos", "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg"},
		{"redactable content", `{"content":{"body":"Here is the message content"},"event_id":"$0:domain","hashes":{},"origin":"domain","origin_server_ts":1000000,"type":"m.room.message","room_id":"!r:domain","sender":"@u:domain","signatures":{},"unsigned":{"age_ts":1000000}}`,
			"onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g", "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			raw, err := canonicaljson.Canonical([]byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			sum := contentHash(raw)
			if got := base64.RawStdEncoding.EncodeToString(sum[:]); got != tt.hash {
				t.Errorf("content hash %s, want %s", got, tt.hash)
			}
			raw = setMember(raw, "hashes", fmt.Appendf(nil, `{"sha256":%q}`, tt.hash))
			if got := signer.signatureOf(Redact(rules, raw)); got != tt.signature {
				t.Errorf("signature %s, want %s", got, tt.signature)
			}
		})
	}
}

func proto(rules *roomversion.Rules, typ string, key *string, content string) *Proto {
	e := &Proto{RoomID: "!r:domain", Type: typ, Sender: "@u:domain", StateKey: key, Content: json.RawMessage(content), Depth: 7, OriginServerTS: 1000000,
		PrevEvents: []Ref{{"$p:domain", "hash"}}, AuthEvents: []Ref{{"$a:domain", "hash"}, {"$b:domain", "hash"}}}
	if rules.IDFormat == roomversion.IDInEvent {
		e.ID = "$e:domain"
	}
	return e
}

func TestWhatWeBuildWeParse(t *testing.T) {
	for _, rules := range roomversion.All() {
		t.Run("version "+string(rules.Version), func(t *testing.T) {
			key := "k\"\n"
			for _, e := range []*Proto{
				proto(rules, matrix.TypeMessage, nil, `{"body":"a <b> & \u00e9", "msgtype":"m.text"}`),
				proto(rules, "x", &key, `{"z":[1,{"y":null}],"a":"b"}`),
				func() *Proto {
					e := proto(rules, matrix.TypeRedaction, nil, `{"reason":"r"}`)
					e.Redacts = "$t:domain"
					return e
				}(),
			} {
				p, err := e.Build(rules, signer)
				if err != nil {
					t.Fatal(err)
				}
				if c, err := canonicaljson.Canonical(p.JSON()); err != nil || !bytes.Equal(c, p.JSON()) {
					t.Errorf("not canonical: %s", p.JSON())
				}
				again, intact, err := Parse(rules, append([]byte(`{"unsigned":{"age":1},`), p.JSON()[1:]...))
				if err != nil || !intact || again.ID != p.ID || !bytes.Equal(again.JSON(), p.JSON()) || again.Redacts != e.Redacts {
					t.Errorf("parsed: %+v, intact %v, %v", again, intact, err)
				}
				if err := again.VerifySignatures(oneKey{}); err != nil {
					t.Error(err)
				}
				red, err := p.Redacted()
				if err != nil {
					t.Fatal(err)
				}
				if err := red.VerifySignatures(oneKey{}); err != nil {
					t.Errorf("after redaction: %v", err)
				}
				if rules.IDFormat != roomversion.IDInEvent && eventID(rules, red.JSON()) != p.ID {
					t.Error("redaction changes the event ID")
				}
				if twice := Redact(rules, red.JSON()); !bytes.Equal(twice, red.JSON()) {
					t.Error("redacting twice changes more")
				}
			}
		})
	}
}

func TestAChangedEventCountsAsRedacted(t *testing.T) {
	rules, _ := roomversion.Get("10")
	p, err := proto(rules, matrix.TypeMessage, nil, `{"body":"true"}`).Build(rules, signer)
	if err != nil {
		t.Fatal(err)
	}
	forged, intact, err := Parse(rules, bytes.Replace(p.JSON(), []byte("true"), []byte("false"), 1))
	if err != nil || intact || string(forged.Content) != "{}" || forged.ID != p.ID {
		t.Errorf("%s, intact %v, %v", forged.JSON(), intact, err)
	}
	if err := forged.VerifySignatures(oneKey{}); err != nil {
		t.Errorf("the redacted form is signed: %v", err)
	}
}

// A row is an event's content, and what each version's redaction leaves of it.
func TestRedactionTable(t *testing.T) {
	tests := []struct {
		typ, content string
		left         map[string]string // from this version on
	}{
		{matrix.TypeMember, `{"displayname":"x","join_authorised_via_users_server":"@a:b","membership":"join","third_party_invite":{"display_name":"x","signed":{"token":"t"}}}`, map[string]string{
			"1": `{"membership":"join"}`, "9": `{"join_authorised_via_users_server":"@a:b","membership":"join"}`,
			"11": `{"join_authorised_via_users_server":"@a:b","membership":"join","third_party_invite":{"signed":{"token":"t"}}}`}},
		{matrix.TypeMember, `{"membership":"invite","third_party_invite":{"display_name":"x"}}`, map[string]string{"1": `{"membership":"invite"}`, "11": `{"membership":"invite","third_party_invite":{}}`}},
		{matrix.TypeCreate, `{"creator":"@a:b","room_version":"1","x":1}`, map[string]string{"1": `{"creator":"@a:b"}`, "11": `{"creator":"@a:b","room_version":"1","x":1}`}},
		{matrix.TypeJoinRules, `{"allow":[],"join_rule":"x","y":1}`, map[string]string{"1": `{"join_rule":"x"}`, "8": `{"allow":[],"join_rule":"x"}`}},
		{matrix.TypePowerLevels, `{"ban":1,"events":{},"events_default":1,"invite":2,"kick":1,"notifications":{},"redact":1,"state_default":1,"users":{},"users_default":1}`, map[string]string{
			"1":  `{"ban":1,"events":{},"events_default":1,"kick":1,"redact":1,"state_default":1,"users":{},"users_default":1}`,
			"11": `{"ban":1,"events":{},"events_default":1,"invite":2,"kick":1,"redact":1,"state_default":1,"users":{},"users_default":1}`}},
		{matrix.TypeAliases, `{"aliases":["#a:b"]}`, map[string]string{"1": `{"aliases":["#a:b"]}`, "6": `{}`}},
		{matrix.TypeHistoryVisibility, `{"history_visibility":"shared","x":1}`, map[string]string{"1": `{"history_visibility":"shared"}`}},
		{matrix.TypeRedaction, `{"reason":"x","redacts":"$a"}`, map[string]string{"1": `{}`, "11": `{"redacts":"$a"}`}},
		{matrix.TypeMessage, `{"body":"x"}`, map[string]string{"1": `{}`}},
	}
	for _, tt := range tests {
		want := ""
		for _, rules := range roomversion.All() {
			if w, ok := tt.left[string(rules.Version)]; ok {
				want = w
			}
			in := fmt.Sprintf(`{"auth_events":[],"content":%s,"depth":1,"membership":"m","origin":"o","prev_state":[],"type":%q,"unsigned":{},"x":1}`, tt.content, tt.typ)
			legacy := `,"membership":"m","origin":"o","prev_state":[]`
			if rules.Version == "11" || rules.Version == "12" {
				legacy = ""
			}
			full := fmt.Sprintf(`{"auth_events":[],"content":%s,"depth":1%s,"type":%q}`, want, legacy, tt.typ)
			if got := Redact(rules, []byte(in)); string(got) != full {
				t.Errorf("version %s:\ngot  %s\nwant %s", rules.Version, got, full)
			}
		}
	}
}

func TestOversizedPieces(t *testing.T) {
	rules, _ := roomversion.Get("12")
	for name, change := range map[string]func(*Proto){
		"an event over 65,536 bytes": func(e *Proto) { e.Content = json.RawMessage(`{"body":"` + strings.Repeat("x", MaxSize) + `"}`) },
		"a type over 255 bytes":      func(e *Proto) { e.Type = strings.Repeat("é", 128) },
		"a state key over 255 bytes": func(e *Proto) { k := strings.Repeat("k", 256); e.StateKey = &k },
		"21 previous events": func(e *Proto) {
			e.PrevEvents = make([]Ref, 21)
			for i := range e.PrevEvents {
				e.PrevEvents[i].ID = "$p"
			}
		},
		"11 auth events": func(e *Proto) {
			e.AuthEvents = make([]Ref, 11)
			for i := range e.AuthEvents {
				e.AuthEvents[i].ID = "$p"
			}
		},
		"a depth over 53 bits":       func(e *Proto) { e.Depth = 1 << 53 },
		"a fraction in the content":  func(e *Proto) { e.Content = json.RawMessage(`{"x":0.5}`) },
		"content that is no object":  func(e *Proto) { e.Content = json.RawMessage(`[]`) },
		"a sender without a server":  func(e *Proto) { e.Sender = "@u" },
		"a room ID of another sigil": func(e *Proto) { e.RoomID = "#r:domain" },
	} {
		t.Run(name, func(t *testing.T) {
			e := proto(rules, matrix.TypeMessage, nil, `{}`)
			change(e)
			if _, err := e.Build(rules, signer); !errors.Is(err, ErrFormat) {
				t.Error(err)
			}
		})
	}
}

func TestTheCreateEventOfVersion12NamesItsRoom(t *testing.T) {
	rules, _ := roomversion.Get("12")
	key := ""
	e := &Proto{Type: matrix.TypeCreate, Sender: "@u:domain", StateKey: &key, Content: json.RawMessage(`{"room_version":"12"}`), Depth: 1}
	p, err := e.Build(rules, signer)
	if err != nil || p.RoomID != RoomIDOf(p.ID) || bytes.Contains(p.JSON(), []byte("room_id")) {
		t.Errorf("%+v, %v", p, err)
	}
	if p.ClientEvent().RoomID != p.RoomID || CreateOf(p.RoomID) != p.ID {
		t.Error("the room ID is not shown")
	}
}

func FuzzParse(f *testing.F) {
	for _, rules := range roomversion.All() {
		p, err := proto(rules, matrix.TypeMessage, nil, `{"body":"x"}`).Build(rules, signer)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p.JSON())
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, rules := range roomversion.All() {
			p, _, err := Parse(rules, raw)
			if err != nil {
				continue
			}
			again, intact, err := Parse(rules, p.JSON())
			if err != nil || again.ID != p.ID || !bytes.Equal(again.JSON(), p.JSON()) {
				t.Fatalf("version %s: %s → %s (intact %v, %v)", rules.Version, p.JSON(), again.JSON(), intact, err)
			}
			p.VerifySignatures(oneKey{})
			p.ClientEvent()
		}
	})
}

func BenchmarkParseUntrusted(b *testing.B) {
	rules, _ := roomversion.Get("12")
	p, _ := proto(rules, matrix.TypeMessage, nil, `{"body":"`+strings.Repeat("x", 200)+`"}`).Build(rules, signer)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Parse(rules, p.JSON()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseTrusted(b *testing.B) {
	rules, _ := roomversion.Get("12")
	p, _ := proto(rules, matrix.TypeMessage, nil, `{"body":"`+strings.Repeat("x", 200)+`"}`).Build(rules, signer)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseTrusted(rules, p.ID, p.JSON()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	rules, _ := roomversion.Get("12")
	e := proto(rules, matrix.TypeMessage, nil, `{"body":"`+strings.Repeat("x", 200)+`"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Build(rules, signer); err != nil {
			b.Fatal(err)
		}
	}
}
