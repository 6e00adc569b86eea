package ircmsg

import (
	"maps"
	"strconv"
	"strings"

	"gopkg.in/irc.v4"
)

// Mapping is how a network compares nicks and channel names (CASEMAPPING).
type Mapping uint8

const (
	RFC1459       Mapping = iota // A–Z [ ] \ ~; the default of a server that says nothing
	ASCII                        // A–Z
	StrictRFC1459                // A–Z [ ] \
)

var mappings = map[string]Mapping{"ascii": ASCII, "rfc1459": RFC1459, "strict-rfc1459": StrictRFC1459, "rfc1459-strict": StrictRFC1459}

// ParseMapping reads the value of CASEMAPPING. Unknown ones are taken for ASCII.
func ParseMapping(s string) Mapping {
	if m, ok := mappings[strings.ToLower(s)]; ok {
		return m
	}
	return ASCII
}

// Fold returns the lower case of s: two names are the same if their folds are.
func (m Mapping) Fold(s string) string {
	for i := range len(s) {
		if m.lower(s[i]) != s[i] {
			return m.fold(s)
		}
	}
	return s
}

func (m Mapping) fold(s string) string {
	b := []byte(s)
	for i, c := range b {
		b[i] = m.lower(c)
	}
	return string(b)
}

func (m Mapping) lower(c byte) byte {
	switch {
	case 'A' <= c && c <= 'Z':
		return c + 'a' - 'A'
	case m != ASCII && '[' <= c && c <= ']':
		return c + '{' - '['
	case m == RFC1459 && c == '~':
		return '^'
	}
	return c
}

// Equal reports whether a and b are the same name.
func (m Mapping) Equal(a, b string) bool { return m.Fold(a) == m.Fold(b) }

// ISupport is what a server says of itself in RPL_ISUPPORT (005). The zero value
// answers with the defaults of https://modern.ircdocs.horse/#rplisupport-005.
type ISupport struct {
	values map[string]string
}

// maxTokens bounds what a server can make us remember.
const maxTokens = 256

// Apply takes in a line of RPL_ISUPPORT. "-TOKEN" takes a token back.
func (s *ISupport) Apply(m *irc.Message) {
	if len(m.Params) < 3 {
		return
	}
	if s.values == nil {
		s.values = map[string]string{}
	}
	for _, token := range m.Params[1 : len(m.Params)-1] {
		key, value, _ := strings.Cut(token, "=")
		if gone, ok := strings.CutPrefix(key, "-"); ok {
			delete(s.values, strings.ToUpper(gone))
			continue
		}
		if len(s.values) < maxTokens {
			s.values[strings.ToUpper(key)] = unescapeValue(value)
		}
	}
}

// Clone returns a copy that shares nothing with s.
func (s *ISupport) Clone() ISupport { return ISupport{maps.Clone(s.values)} }

// unescapeValue undoes \xHH.
func unescapeValue(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			if c, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return HistoricalLatin1(b.String())
}

// Get returns the value of a token, and whether the server sent it.
func (s *ISupport) Get(token string) (string, bool) {
	v, ok := s.values[token]
	return v, ok
}

// Int returns the value of a token that is a positive number, else the default.
func (s *ISupport) Int(token string, otherwise int) int {
	if n, err := strconv.Atoi(s.values[token]); err == nil && n > 0 {
		return n
	}
	return otherwise
}

// Mapping returns CASEMAPPING.
func (s *ISupport) Mapping() Mapping {
	v, ok := s.values["CASEMAPPING"]
	if !ok {
		return RFC1459
	}
	return ParseMapping(v)
}

// Fold is that of the Mapping.
func (s *ISupport) Fold(name string) string { return s.Mapping().Fold(name) }

// ChanTypes returns the characters that channel names start with.
func (s *ISupport) ChanTypes() string {
	if v, ok := s.values["CHANTYPES"]; ok {
		return v
	}
	return "#&"
}

// IsChannel reports whether name is that of a channel.
func (s *ISupport) IsChannel(name string) bool {
	return name != "" && strings.IndexByte(s.ChanTypes(), name[0]) >= 0
}

// Prefixes returns the modes that give members a rank, highest first, and the
// symbol of each: "ov", "@+".
func (s *ISupport) Prefixes() (modes, symbols string) {
	v, ok := s.values["PREFIX"]
	if !ok {
		return "ov", "@+"
	}
	modes, symbols, ok = strings.Cut(strings.TrimPrefix(v, "("), ")")
	if !ok || len(modes) != len(symbols) {
		return "", ""
	}
	return modes, symbols
}

// SplitPrefix splits the symbols of rank off a name of RPL_NAMREPLY, or off the
// target of a message to some ranks only (STATUSMSG).
func (s *ISupport) SplitPrefix(name string) (symbols, bare string) {
	_, all := s.Prefixes()
	bare = strings.TrimLeft(name, all)
	return name[:len(name)-len(bare)], bare
}

// ChanModes returns the four kinds of channel modes: lists; always with a
// parameter; with one when set; never with one.
func (s *ISupport) ChanModes() [4]string {
	kinds := [4]string{"b", "k", "l", "imnpst"}
	if v, ok := s.values["CHANMODES"]; ok {
		kinds = [4]string{}
		for i, k := range strings.SplitN(v, ",", 5) {
			if i < 4 {
				kinds[i] = k
			}
		}
	}
	return kinds
}

// LineLen returns the length of a line with CR LF: LINELEN, or MaxLine.
func (s *ISupport) LineLen() int {
	return min(max(s.Int("LINELEN", MaxLine), MaxLine), maxLongLine)
}

// ModeChange is one letter of a MODE message.
type ModeChange struct {
	Add  bool
	Mode byte
	Arg  string
}

// ParseModes reads the mode string and its parameters of a channel's MODE. Letters
// whose parameter is missing are returned without.
func (s *ISupport) ParseModes(params []string) []ModeChange {
	if len(params) == 0 {
		return nil
	}
	var changes []ModeChange
	args, add := params[1:], true
	ranks, _ := s.Prefixes()
	kinds := s.ChanModes()
	for _, c := range []byte(params[0]) {
		if c == '+' || c == '-' {
			add = c == '+'
			continue
		}
		change := ModeChange{Add: add, Mode: c}
		takes := ranks + kinds[0] + kinds[1]
		if add {
			takes += kinds[2]
		}
		if strings.IndexByte(takes, c) >= 0 && len(args) > 0 {
			change.Arg, args = args[0], args[1:]
		}
		changes = append(changes, change)
	}
	return changes
}
