package canonicaljson

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestCanonical(t *testing.T) {
	tests := []struct{ name, in, out string }{
		// The examples of the specification.
		{"empty object", "{}", "{}"},
		{"keys are sorted", "{\n \"one\": 1,\n \"two\": \"Two\"\n}", `{"one":1,"two":"Two"}`},
		{"sorted by key, not by value", `{"b":"2","a":"1"}`, `{"a":"1","b":"2"}`},
		{"nested", `{"auth":{"success":true,"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"medium":"email","address":"john.doe@example.org"},{"medium":"msisdn","address":"123456789"}]}}}`,
			`{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},"success":true}}`},
		{"characters beyond ASCII stay", `{"a":"日本語"}`, `{"a":"日本語"}`},
		{"sorted by code point", `{"本":2,"日":1}`, `{"日":1,"本":2}`},
		{"escapes are resolved", `{"a":"\u65E5"}`, `{"a":"日"}`},
		{"null stays", `{"a":null}`, `{"a":null}`},
		{"minus zero and exponents", `{"a":-0,"b":1e10}`, `{"a":0,"b":10000000000}`},
		// Beyond them.
		{"astral keys sort after private use, unlike in UTF-16", `{"😀":1,"":2}`, `{"":2,"😀":1}`},
		{"short escapes, and hexadecimal in lower case", `["\u0008\u0009\u000A\u000c\u000d\u001F\u007f\u2028\/\u003c"]`, "[\"\\b\\t\\n\\f\\r\\u001f\u007f\u2028/<\"]"},
		{"a key that needs escapes", `{"a":2,"a\"b":1}`, `{"a":2,"a\"b":1}`},
		{"keys compare as what they stand for", `{"\u0062":1,"a":2}`, `{"a":2,"b":1}`},
		{"a surrogate pair", `["\ud83d\ude00"]`, `["😀"]`},
		{"of duplicate keys the last counts", `{"a":1,"b":2,"a":3}`, `{"a":3,"b":2}`},
		{"fractions as Python prints them", `[1.5,1.0,0.1,1e16,1.5e300,1E-5,0.00001,123456789012345680.0]`, `[1.5,1.0,0.1,1e+16,1.5e+300,1e-05,1e-05,1.2345678901234568e+17]`},
		{"big integers", `[123456789012345678901234567890]`, `[123456789012345678901234567890]`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Canonical([]byte(tt.in))
			if err != nil || string(got) != tt.out {
				t.Errorf("got  %s, %v\nwant %s", got, err, tt.out)
			}
		})
	}
}

func TestStrictRefuses(t *testing.T) {
	tests := []struct {
		name, in string
		want     error
	}{
		{"a fraction", `[0.0]`, ErrBadJSON},
		{"an exponent", `[1E5]`, ErrBadJSON},
		{"minus zero", `[-0]`, ErrBadJSON},
		{"2^53", `[9007199254740992]`, ErrBadJSON},
		{"-2^53", `[-9007199254740992]`, ErrBadJSON},
		{"a number of many digits", `[` + strings.Repeat("1", 400) + `]`, ErrBadJSON},
		{"a duplicate key", `{"a":1,"a":2}`, ErrBadJSON},
		{"a duplicate key further on", `{"b":1,"a":1,"b":2}`, ErrBadJSON},
		{"a duplicate key written differently", `{"a":1,"\u0061":2}`, ErrBadJSON},
		{"a lone high surrogate", `["\ud800"]`, ErrNotJSON},
		{"a lone low surrogate", `["\udc00"]`, ErrNotJSON},
		{"two high surrogates", `["\ud800\ud800"]`, ErrNotJSON},
		{"invalid UTF-8", "[\"\xff\"]", ErrNotJSON},
		{"an encoded surrogate", "[\"\xed\xa0\x80\"]", ErrNotJSON},
		{"a raw control character", "[\"\n\"]", ErrNotJSON},
		{"a leading zero", `[01]`, ErrNotJSON},
		{"a plus sign", `[+1]`, ErrNotJSON},
		{"a trailing comma", `[1,]`, ErrNotJSON},
		{"a trailing comma in an object", `{"a":1,}`, ErrNotJSON},
		{"two values", `{} {}`, ErrNotJSON},
		{"nothing", ``, ErrNotJSON},
		{"an unfinished string", `["a`, ErrNotJSON},
		{"an unfinished escape", `["\u12`, ErrNotJSON},
		{"a bare word", `nul`, ErrNotJSON},
		{"NaN", `[NaN]`, ErrNotJSON},
		{"deep nesting", strings.Repeat("[", MaxDepth+1) + strings.Repeat("]", MaxDepth+1), ErrNotJSON},
		{"bottomless nesting", strings.Repeat(`{"a":`, 1<<20), ErrNotJSON},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := CanonicalStrict([]byte(tt.in)); !errors.Is(err, tt.want) {
				t.Errorf("got %.60s, %v, want %v", got, err, tt.want)
			}
		})
	}
	if _, err := CanonicalStrict([]byte(`[9007199254740991,-9007199254740991]`)); err != nil {
		t.Error(err)
	}
}

func TestUnmarshal(t *testing.T) {
	type body struct {
		Name string `json:"name"`
		N    int    `json:"n"`
	}
	tests := []struct {
		name, in string
		want     error
	}{
		{"right", `{"name":"x","other":1.5}`, nil},
		{"twice", `{"name":"x","name":"y"}`, ErrBadJSON},
		{"of another type", `{"name":1}`, ErrBadJSON},
		{"a list", `[]`, ErrBadJSON},
		{"not JSON", `{`, ErrNotJSON},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b body
			if err := Unmarshal([]byte(tt.in), &b); !errors.Is(err, tt.want) || tt.want == nil && b.Name != "x" {
				t.Errorf("%+v, %v", b, err)
			}
		})
	}
	var b body
	if err := Unmarshal([]byte(`{"NAME":"x"}`), &b); err != nil || b.Name != "" {
		t.Errorf("a key in the wrong case was taken: %+v, %v", b, err)
	}
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{`{"b":[1,-0,1e3,"\u00e9\ud83d\ude00"],"a":{"":null}}`, event, `{"a":1,"a":2}`, `[0.1,1e400]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		once, err := Canonical(in)
		if err != nil {
			return
		}
		if twice, err := Canonical(once); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%q → %q → %q, %v", in, once, twice, err)
		}
		strict, err := CanonicalStrict(in)
		if err != nil {
			return
		}
		if !bytes.Equal(strict, once) {
			t.Fatalf("strict %q, lenient %q", strict, once)
		}
		if err := Valid(in); err != nil {
			t.Fatalf("strict takes what Valid refuses: %v", err)
		}
	})
}

const event = `{"auth_events":["$urlsafe_base64_encoded_eventid_000000000000001","$a-different-event-id-0000000000000000000000002"],"content":{"body":"Some text that people say to each other","format":"org.matrix.custom.html","formatted_body":"<b>Some text</b> that people say to each other","msgtype":"m.text"},"depth":12345,"hashes":{"sha256":"thishashcoversallfieldsincasethisisredacted0"},"origin_server_ts":1404838188000,"prev_events":["$af232176:example.org"],"room_id":"!UcYsUzyxTGDxLBEvLy:example.org","sender":"@alice:example.com","signatures":{"example.com":{"ed25519:key_version":"these86bytesofbase64signaturecoveressentialfieldsincludinghashessocancheckredactedpdus"}},"type":"m.room.message"}`

func BenchmarkStrictAlreadyCanonical(b *testing.B) {
	data := []byte(event)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := CanonicalStrict(data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStrictReordered(b *testing.B) {
	data := []byte(`{"type":"m.room.message",` + strings.TrimSuffix(event[1:], `,"type":"m.room.message"}`) + "}")
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := CanonicalStrict(data); err != nil {
			b.Fatal(err)
		}
	}
}
