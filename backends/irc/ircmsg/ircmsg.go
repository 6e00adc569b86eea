// Package ircmsg reads and writes IRC lines: a safe use of gopkg.in/irc.v4,
// whose parser panics on some lines and whose writer lets line ends through.
//
// Nothing that [Append] or [Format] returns holds more than one line, whatever
// the fields of the message hold. Nothing that a peer sends makes [Parse] or
// [Reader] panic or use more memory than its limits say.
package ircmsg

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"
	"gopkg.in/irc.v4"
)

// Lengths in bytes.
const (
	// MaxLine is the length of a line without its tags, with CR LF
	// (https://modern.ircdocs.horse/#messages).
	MaxLine = 512
	// MaxTags is the length of the tags of a line, from "@" to the space after
	// them (https://ircv3.net/specs/extensions/message-tags#size-limit).
	MaxTags = 8191
	// MaxClientTags is the same for what a client may send.
	MaxClientTags = 4096
)

var (
	// ErrTooLong is returned for a line beyond its limit.
	ErrTooLong = errors.New("irc: line too long")
	// ErrEmpty is returned for a line with no command, which is to be ignored.
	ErrEmpty = errors.New("irc: empty line")
	// ErrMalformed is wrapped by errors about a line that is no message.
	ErrMalformed = errors.New("irc: malformed line")
	// ErrUnsafe is wrapped by errors about a message that cannot be written
	// as one line with the same meaning.
	ErrUnsafe = errors.New("irc: message cannot be written")
)

// New makes a message without prefix or tags.
func New(command string, params ...string) *irc.Message {
	return &irc.Message{Tags: irc.Tags{}, Prefix: &irc.Prefix{}, Command: command, Params: params}
}

// Parse reads a line, with or without its CR LF. Prefix and Tags of the result
// are never nil, and all text in it is valid UTF-8: what was not is taken for
// [HistoricalLatin1]. Tags with malformed keys are left out.
//
// The error is [ErrEmpty], [ErrTooLong] or wraps [ErrMalformed].
func Parse(line string) (*irc.Message, error) {
	line = strings.TrimRight(line, "\r\n")
	tags, rest := cutTags(line)
	switch {
	case len(tags) > MaxTags || len(rest) > maxLongLine:
		return nil, ErrTooLong
	case strings.ContainsAny(line, "\r\n\x00"):
		return nil, fmt.Errorf("%w: CR, LF or NUL inside", ErrMalformed)
	case rest == "":
		return nil, ErrEmpty
	case rest[0] == '@':
		return nil, fmt.Errorf("%w: tags twice", ErrMalformed)
	}
	// What makes irc.v4 panic, tags with nothing but a space after them, is gone.
	m, err := irc.ParseMessage(rest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if !validCommand(m.Command) {
		return nil, fmt.Errorf("%w: no command", ErrMalformed)
	}
	if tags != "" {
		m.Tags = parseTags(tags[1:])
	}
	decode(m)
	return m, nil
}

// cutTags returns the tags with their "@", and what follows the spaces after them.
func cutTags(line string) (tags, rest string) {
	line = strings.TrimLeft(line, " ")
	if !strings.HasPrefix(line, "@") {
		return "", line
	}
	tags, rest, _ = strings.Cut(line, " ")
	return tags, strings.TrimLeft(rest, " ")
}

func parseTags(s string) irc.Tags {
	tags := irc.Tags{}
	for tag := range strings.SplitSeq(s, ";") {
		key, value, _ := strings.Cut(tag, "=")
		if !validTagKey(key) {
			continue
		}
		tags[key] = UnescapeTag(value)
	}
	return tags
}

// decode makes the text of m valid UTF-8.
func decode(m *irc.Message) {
	for i, p := range m.Params {
		m.Params[i] = HistoricalLatin1(p)
	}
	p := m.Prefix
	if p.Name == "" { // "!user@host" is nobody
		*p = irc.Prefix{}
	}
	p.Name, p.User, p.Host = HistoricalLatin1(p.Name), HistoricalLatin1(p.User), HistoricalLatin1(p.Host)
}

// HistoricalLatin1 returns s if it is valid UTF-8, and otherwise the text that s
// is in Windows-1252, the superset of Latin-1 that old clients write.
func HistoricalLatin1(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	s, err := charmap.Windows1252.NewDecoder().String(s)
	if err != nil {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return s
}

// Format returns m as a line without CR LF. The error is [ErrTooLong] or wraps
// [ErrUnsafe].
func Format(m *irc.Message) (string, error) {
	b, err := Append(nil, m)
	if err != nil {
		return "", err
	}
	return string(b[:len(b)-2]), nil
}

// Append appends m as a line, with CR LF, to dst. Tags are written in the order
// of their keys.
//
// It returns dst and [ErrTooLong] if the line is longer than [MaxLine] or its
// tags are longer than [MaxTags], and an error that wraps [ErrUnsafe] if a field
// holds CR, LF or NUL, or would be read as something else.
func Append(dst []byte, m *irc.Message) ([]byte, error) {
	return AppendLimit(dst, m, MaxLine)
}

// AppendLimit is Append for a network whose lines may be longer (LINELEN).
func AppendLimit(dst []byte, m *irc.Message, maxLine int) ([]byte, error) {
	if err := check(m); err != nil {
		return dst, err
	}
	start := len(dst)
	out := appendTags(dst, m.Tags)
	if len(out)-start > MaxTags {
		return dst, ErrTooLong
	}
	start = len(out)
	if m.Prefix != nil && m.Prefix.Name != "" {
		out = appendPrefix(append(out, ':'), m.Prefix)
		out = append(out, ' ')
	}
	out = append(out, m.Command...)
	out = appendParams(out, m.Params)
	out = append(out, "\r\n"...)
	if len(out)-start > maxLine {
		return dst, ErrTooLong
	}
	return out, nil
}

// check reports what would make the line mean something else.
func check(m *irc.Message) error {
	if !validCommand(m.Command) {
		return fmt.Errorf("%w: command", ErrUnsafe)
	}
	if p := m.Prefix; p != nil {
		for _, s := range []string{p.Name, p.User, p.Host} {
			if strings.ContainsAny(s, " \r\n\x00") {
				return fmt.Errorf("%w: prefix", ErrUnsafe)
			}
		}
	}
	for i, s := range m.Params {
		if !safeParam(s, i == len(m.Params)-1) {
			return fmt.Errorf("%w: parameter %d of %s", ErrUnsafe, i+1, m.Command)
		}
	}
	for k, v := range m.Tags {
		if !validTagKey(k) || strings.IndexByte(v, 0) >= 0 || !utf8.ValidString(v) {
			return fmt.Errorf("%w: tag", ErrUnsafe)
		}
	}
	return nil
}

func safeParam(s string, last bool) bool {
	if strings.ContainsAny(s, "\r\n\x00") {
		return false
	}
	return last || s != "" && s[0] != ':' && strings.IndexByte(s, ' ') < 0
}

func appendTags(dst []byte, tags irc.Tags) []byte {
	if len(tags) == 0 {
		return dst
	}
	keys := make([]string, 0, len(tags))
	for k := range tags {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for i, k := range keys {
		sep := byte(';')
		if i == 0 {
			sep = '@'
		}
		dst = append(append(dst, sep), k...)
		if v := tags[k]; v != "" {
			dst = append(append(dst, '='), EscapeTag(v)...)
		}
	}
	return append(dst, ' ')
}

func appendPrefix(dst []byte, p *irc.Prefix) []byte {
	dst = append(dst, p.Name...)
	if p.User != "" {
		dst = append(append(dst, '!'), p.User...)
	}
	if p.Host != "" {
		dst = append(append(dst, '@'), p.Host...)
	}
	return dst
}

func appendParams(dst []byte, params []string) []byte {
	for i, s := range params {
		dst = append(dst, ' ')
		if i == len(params)-1 && (s == "" || s[0] == ':' || strings.IndexByte(s, ' ') >= 0) {
			dst = append(dst, ':')
		}
		dst = append(dst, s...)
	}
	return dst
}

// Clean returns s fit for a last parameter: with a space for each run of CR, LF
// and NUL. For texts whose lines matter, split them before.
func Clean(s string) string {
	if !strings.ContainsAny(s, "\r\n\x00") {
		return s
	}
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\r' || r == '\n' || r == 0 }), " ")
}

func validCommand(s string) bool {
	for i := range len(s) {
		if !isAlnum(s[i]) {
			return false
		}
	}
	return s != ""
}

// validTagKey follows the grammar of message-tags: an optional "+", an optional
// vendor and "/", letters, digits and hyphens.
func validTagKey(s string) bool {
	s = strings.TrimPrefix(s, "+")
	if vendor, name, ok := strings.Cut(s, "/"); ok {
		for i := range len(vendor) {
			if c := vendor[i]; !isAlnum(c) && c != '-' && c != '.' {
				return false
			}
		}
		s = name
	}
	for i := range len(s) {
		if !isAlnum(s[i]) && s[i] != '-' {
			return false
		}
	}
	return s != ""
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

var tagEscaper = strings.NewReplacer(";", `\:`, " ", `\s`, `\`, `\\`, "\r", `\r`, "\n", `\n`)

// EscapeTag returns the form of a tag value on the wire.
func EscapeTag(s string) string { return tagEscaper.Replace(s) }

var tagUnescapes = map[byte]byte{':': ';', 's': ' ', '\\': '\\', 'r': '\r', 'n': '\n'}

// UnescapeTag undoes EscapeTag. An unknown escape is the character itself, a
// backslash at the end is nothing. The result is valid UTF-8 without NUL.
func UnescapeTag(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b = append(b, s[i])
			continue
		}
		if i++; i == len(s) {
			break
		}
		if c, ok := tagUnescapes[s[i]]; ok {
			b = append(b, c)
		} else {
			b = append(b, s[i])
		}
	}
	return string(b)
}

// ParseCTCP splits a CTCP message, \x01ACTION waves\x01, into its command, in
// upper case, and the rest. The \x01 at the end may be missing.
func ParseCTCP(text string) (command, rest string, ok bool) {
	text, ok = strings.CutPrefix(text, "\x01")
	if !ok {
		return "", "", false
	}
	command, rest, _ = strings.Cut(strings.TrimSuffix(text, "\x01"), " ")
	return strings.ToUpper(command), rest, command != ""
}

// CTCP makes a CTCP message.
func CTCP(command, rest string) string {
	if rest != "" {
		command += " " + rest
	}
	return "\x01" + command + "\x01"
}
