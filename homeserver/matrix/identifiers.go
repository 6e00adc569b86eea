package matrix

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"
)

// MaxIDLength is the greatest length of an identifier in bytes, sigil and
// server name included (https://spec.matrix.org/v1.19/appendices/#identifier-grammar).
const MaxIDLength = 255

// Identifiers. Each is an opaque string on the wire; a value of one of these
// types that came from outside has passed its Parse function.
type (
	UserID      string // @localpart:server
	RoomID      string // !opaque:server, or !hash in room version 12
	EventID     string // $opaque:server, or $hash from room version 3
	RoomAlias   string // #localpart:server
	DeviceID    string
	ServerName  string // host[:port]
	RoomVersion string
)

// ErrBadIdentifier is wrapped by the error of every Parse function here.
var ErrBadIdentifier = errors.New("malformed identifier")

// ParseUserID accepts any user ID that the network may hold, historical ones
// included: a localpart of any characters but ":" and NUL, even none.
//
// Spec: https://spec.matrix.org/v1.19/appendices/#historical-user-ids
func ParseUserID(s string) (UserID, error) {
	if err := checkSigil(s, '@', true); err != nil {
		return "", err
	}
	return UserID(s), nil
}

// ParseRoomAlias accepts "#localpart:server".
func ParseRoomAlias(s string) (RoomAlias, error) {
	if err := checkSigil(s, '#', true); err != nil {
		return "", err
	}
	return RoomAlias(s), nil
}

// ParseRoomID accepts "!opaque:server" and the form without a server name that
// room version 12 introduced.
func ParseRoomID(s string) (RoomID, error) {
	if err := checkSigil(s, '!', strings.Contains(s, ":")); err != nil {
		return "", err
	}
	return RoomID(s), nil
}

// ParseEventID accepts "$opaque:server" and "$hash".
func ParseEventID(s string) (EventID, error) {
	if err := checkSigil(s, '$', strings.Contains(s, ":")); err != nil {
		return "", err
	}
	return EventID(s), nil
}

func checkSigil(s string, sigil byte, wantServer bool) error {
	switch {
	case len(s) < 2 || s[0] != sigil:
		return fmt.Errorf("%w: %.40q does not start with %q", ErrBadIdentifier, s, sigil)
	case len(s) > MaxIDLength:
		return fmt.Errorf("%w: %.40q… is longer than %d bytes", ErrBadIdentifier, s, MaxIDLength)
	case strings.IndexByte(s, 0) >= 0 || !utf8.ValidString(s):
		return fmt.Errorf("%w: %.40q has a NUL or is not UTF-8", ErrBadIdentifier, s)
	}
	if !wantServer {
		return nil
	}
	_, server, ok := strings.Cut(s[1:], ":")
	if !ok {
		return fmt.Errorf("%w: %.40q has no server name", ErrBadIdentifier, s)
	}
	_, err := ParseServerName(server)
	return err
}

// ParseServerName accepts host[:port] where host is an IPv4 address, an IPv6
// address in brackets, or a DNS name.
//
// Spec: https://spec.matrix.org/v1.19/appendices/#server-name
func ParseServerName(s string) (ServerName, error) {
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		host, port = s[:i], s[i+1:]
		if len(port) < 1 || len(port) > 5 || strings.Trim(port, "0123456789") != "" {
			return "", fmt.Errorf("%w: server name %.60q has a bad port", ErrBadIdentifier, s)
		}
	}
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		if a, err := netip.ParseAddr(host[1 : len(host)-1]); err != nil || !a.Is6() || a.Zone() != "" {
			return "", fmt.Errorf("%w: server name %.60q is not an IPv6 address", ErrBadIdentifier, s)
		}
		return ServerName(s), nil
	}
	if host == "" || len(host) > MaxIDLength {
		return "", fmt.Errorf("%w: server name %.60q", ErrBadIdentifier, s)
	}
	for i := range len(host) {
		if c := host[i]; !isAlnum(c) && c != '-' && c != '.' {
			return "", fmt.Errorf("%w: server name %.60q", ErrBadIdentifier, s)
		}
	}
	return ServerName(s), nil
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// NewUserID joins a localpart and a server name.
func NewUserID(localpart string, server ServerName) UserID {
	return UserID("@" + localpart + ":" + string(server))
}

// ValidLocalpart reports whether a new local user may have this localpart.
//
// Spec: https://spec.matrix.org/v1.19/appendices/#user-identifiers
func ValidLocalpart(s string) bool {
	for i := range len(s) {
		if c := s[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("._=-/+", c) >= 0) {
			return false
		}
	}
	return s != ""
}

func (u UserID) Localpart() string     { return localpart(string(u)) }
func (u UserID) Server() ServerName    { return server(string(u)) }
func (a RoomAlias) Localpart() string  { return localpart(string(a)) }
func (a RoomAlias) Server() ServerName { return server(string(a)) }

// Server is empty for the IDs of room version 12, which name no server.
func (r RoomID) Server() ServerName { return server(string(r)) }

// Server is empty for the IDs of room version 3 and later.
func (e EventID) Server() ServerName { return server(string(e)) }

func localpart(s string) string {
	if s == "" {
		return ""
	}
	l, _, _ := strings.Cut(s[1:], ":")
	return l
}

func server(s string) ServerName {
	_, server, _ := strings.Cut(s, ":")
	return ServerName(server)
}
