package matrix

import (
	"errors"
	"strings"
	"testing"
)

// idParsers are the Parse functions by the sigil of what they take, 's' for server names.
var idParsers = map[byte]func(string) (string, error){
	'@': func(s string) (string, error) { id, err := ParseUserID(s); return string(id), err },
	'#': func(s string) (string, error) { id, err := ParseRoomAlias(s); return string(id), err },
	'!': func(s string) (string, error) { id, err := ParseRoomID(s); return string(id), err },
	'$': func(s string) (string, error) { id, err := ParseEventID(s); return string(id), err },
	's': func(s string) (string, error) { id, err := ParseServerName(s); return string(id), err },
}

func TestParseIdentifiers(t *testing.T) {
	tests := []struct {
		name, in string
		kinds    string // which take it
	}{
		{"a user ID", "@user:example.org", "@"},
		{"a user ID with port", "@user:example.org:8448", "@"},
		{"a user ID of an IPv4 address", "@user:127.0.0.1", "@"},
		{"a user ID of an IPv6 address", "@user:[::1]:8448", "@"},
		{"an old user ID with capitals, spaces and more", "@U ser/é[]\n:example.org", "@"},
		{"an old user ID without localpart", "@:example.org", "@"},
		{"a user ID of 255 bytes", "@" + strings.Repeat("u", 250) + ":a.b", "@"},
		{"a user ID of 256 bytes", "@" + strings.Repeat("u", 251) + ":a.b", ""},
		{"a user ID of 255 characters that are more bytes", "@" + strings.Repeat("é", 250) + ":a.b", ""},
		{"a user ID without server", "@user", ""},
		{"a user ID with an empty server", "@user:", ""},
		{"a user ID with an invalid server", "@user:exa_mple.org", ""},
		{"a user ID with a colon too many", "@us:er:example.org", ""},
		{"a user ID with NUL", "@us\x00er:example.org", ""},
		{"a user ID that is not UTF-8", "@us\xffer:example.org", ""},
		{"a user ID cut short", "@", ""},
		{"without sigil", "user:example.org", ""},
		{"nothing", "", ""},
		{"an alias", "#room:example.org", "#"},
		{"an alias in another script", "#комната:example.org", "#"},
		{"an alias without server", "#room", ""},
		{"a room ID", "!opaque:example.org", "!"},
		{"a room ID of version 12", "!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM", "!"},
		{"a room ID with an empty server", "!opaque:", ""},
		{"an event ID", "$opaque:example.org", "$"},
		{"an event ID of version 3", "$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk", "$"},
		{"an event ID of version 4", "$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg", "$"},
		{"a sigil alone", "$", ""},
		{"a server name", "example.org", "s"},
		{"a server name with port", "example.org:8448", "s"},
		{"a port of one digit", "example.org:1", "s"},
		{"a port of five digits", "example.org:99999", "s"},
		{"a port of six digits", "example.org:123456", ""},
		{"an empty port", "example.org:", ""},
		{"a port that is no number", "example.org:https", ""},
		{"a port with a sign", "example.org:+80", ""},
		{"a server name in capitals, with hyphens", "EXAMPLE-1.org", "s"},
		{"a server name with an underscore", "exam_ple.org", ""},
		{"a server name in another script", "exämple.org", ""},
		{"a server name with a path", "example.org/x", ""},
		{"a server name with a user", "x@example.org", ""},
		{"a server name with a space", "example .org", ""},
		{"a host name of 255 bytes", strings.Repeat("a", 255), "s"},
		{"a host name of 256 bytes", strings.Repeat("a", 256), ""},
		{"an IPv4 address", "1.2.3.4:1234", "s"},
		{"an IPv6 address", "[1234:5678::abcd]", "s"},
		{"an IPv6 address with port", "[1234:5678::abcd]:5678", "s"},
		{"an IPv6 address that holds an IPv4 address", "[::ffff:1.2.3.4]", "s"},
		{"an IPv6 address without brackets", "1234:5678::abcd", ""},
		{"an IPv6 address with a zone", "[fe80::1%eth0]", ""},
		{"an IPv4 address in brackets", "[1.2.3.4]", ""},
		{"a broken IPv6 address", "[1234]", ""},
		{"empty brackets", "[]", ""},
		{"a bracket not closed", "[::1", ""},
		{"a port alone", ":80", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for kind, parse := range idParsers {
				got, err := parse(tt.in)
				switch want := strings.IndexByte(tt.kinds, kind) >= 0; {
				case want && (err != nil || got != tt.in):
					t.Errorf("%c: %q, %v", kind, got, err)
				case !want && (!errors.Is(err, ErrBadIdentifier) || got != ""):
					t.Errorf("%c: %q, %v", kind, got, err)
				}
			}
		})
	}
}

func TestPartsOfIdentifiers(t *testing.T) {
	for _, tt := range []struct {
		name      string
		got, want string
	}{
		{"localpart", UserID("@us/er:example.org:8448").Localpart(), "us/er"},
		{"empty localpart", UserID("@:example.org").Localpart(), ""},
		{"server", string(UserID("@user:example.org:8448").Server()), "example.org:8448"},
		{"server that is an IPv6 address", string(UserID("@user:[::1]:8448").Server()), "[::1]:8448"},
		{"no user ID", UserID("").Localpart() + string(UserID("").Server()), ""},
		{"alias", RoomAlias("#room:example.org").Localpart() + " " + string(RoomAlias("#room:example.org").Server()), "room example.org"},
		{"room", string(RoomID("!opaque:example.org").Server()), "example.org"},
		{"room of version 12", string(RoomID("!hash").Server()), ""},
		{"event", string(EventID("$opaque:example.org").Server()), "example.org"},
		{"event of version 3", string(EventID("$hash").Server()), ""},
		{"new user ID", string(NewUserID("user", "example.org:8448")), "@user:example.org:8448"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, tt.got, tt.want)
		}
	}
}

func TestValidLocalpart(t *testing.T) {
	for s, want := range map[string]bool{
		"alice": true, "a.b_c=d-e/f+9": true, "0": true,
		"": false, "Alice": false, "al ice": false, "al:ice": false, "alïce": false, "a\x00": false, "a@b": false, "a%b": false, "a~": false,
	} {
		if got := ValidLocalpart(s); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}

// What is taken is printed as it came, has the parts that make it up, and is of one
// kind only.
func FuzzIdentifiers(f *testing.F) {
	for _, s := range []string{"@user:example.org", "#r:[::1]:80", "!hash", "$x:1.2.3.4:5", "example.org:8448", "[::1]", "@:é", "!:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		taken := 0
		for kind, parse := range idParsers {
			got, err := parse(s)
			if err != nil {
				if !errors.Is(err, ErrBadIdentifier) {
					t.Errorf("%c: %v", kind, err)
				}
				continue
			}
			taken++
			if got != s {
				t.Errorf("%q became %q", s, got)
			}
			if kind != 's' && (len(s) > MaxIDLength || s[0] != kind) {
				t.Errorf("%c took %q", kind, s)
			}
		}
		if taken > 1 {
			t.Errorf("%q is of %d kinds", s, taken)
		}
		if u, err := ParseUserID(s); err == nil {
			if NewUserID(u.Localpart(), u.Server()) != u {
				t.Errorf("%q: parts %q and %q", u, u.Localpart(), u.Server())
			}
			if _, err := ParseServerName(string(u.Server())); err != nil {
				t.Error(err)
			}
		}
	})
}
