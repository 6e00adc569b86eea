package canonicaljson

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"unicode/utf8"
)

// scanner walks over JSON once and finds whether it is valid and canonical.
type scanner struct {
	data []byte
	pos  int
	// strict refuses duplicate keys and numbers that are no 53-bit integers.
	strict bool
	// unique refuses duplicate keys.
	unique bool
	// canonical is made false by the first thing that is valid but not canonical.
	canonical bool
	// keys of the objects that are open, innermost last.
	keys [][]byte
}

var scanners = sync.Pool{New: func() any { return new(scanner) }}

// scan checks a document and reports whether it is canonical.
func scan(data []byte, strict, unique bool) (canonical bool, err error) {
	s := scanners.Get().(*scanner)
	*s = scanner{data: data, strict: strict, unique: unique, canonical: true, keys: s.keys[:0]}
	err = s.document()
	canonical = s.canonical
	s.data = nil
	clear(s.keys[:cap(s.keys)])
	if cap(s.keys) <= 1024 {
		scanners.Put(s)
	}
	return canonical, err
}

func (s *scanner) notJSON(what string) error {
	return fmt.Errorf("%w: %s at byte %d", ErrNotJSON, what, s.pos)
}

func (s *scanner) badJSON(what string) error {
	return fmt.Errorf("%w: %s at byte %d", ErrBadJSON, what, s.pos)
}

func (s *scanner) document() error {
	s.space()
	if err := s.value(0); err != nil {
		return err
	}
	s.space()
	if s.pos != len(s.data) {
		return s.notJSON("more after the value")
	}
	return nil
}

func (s *scanner) space() {
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
			s.canonical = false
		default:
			return
		}
	}
}

func (s *scanner) value(depth int) error {
	if s.pos >= len(s.data) {
		return s.notJSON("unexpected end")
	}
	switch c := s.data[s.pos]; {
	case c == '{':
		return s.object(depth + 1)
	case c == '[':
		return s.array(depth + 1)
	case c == '"':
		_, err := s.string()
		return err
	case c == '-' || c >= '0' && c <= '9':
		return s.number()
	case c == 't':
		return s.literal("true")
	case c == 'f':
		return s.literal("false")
	case c == 'n':
		return s.literal("null")
	}
	return s.notJSON("unexpected character")
}

func (s *scanner) literal(word string) error {
	if !bytes.HasPrefix(s.data[s.pos:], []byte(word)) {
		return s.notJSON("unexpected word")
	}
	s.pos += len(word)
	return nil
}

func (s *scanner) object(depth int) error {
	if depth > MaxDepth {
		return s.notJSON("nested too deeply")
	}
	s.pos++
	s.space()
	if s.next('}') {
		return nil
	}
	base := len(s.keys)
	defer func() { s.keys = s.keys[:base] }()
	sorted := true
	for {
		if s.pos >= len(s.data) || s.data[s.pos] != '"' {
			return s.notJSON("expected a key")
		}
		key, err := s.string()
		if err != nil {
			return err
		}
		if len(s.keys) > base && bytes.Compare(s.keys[len(s.keys)-1], key) >= 0 {
			sorted, s.canonical = false, false
		}
		s.keys = append(s.keys, key)
		s.space()
		if !s.next(':') {
			return s.notJSON("expected ':'")
		}
		s.space()
		if err := s.value(depth); err != nil {
			return err
		}
		s.space()
		if s.next('}') {
			break
		}
		if !s.next(',') {
			return s.notJSON("expected ',' or '}'")
		}
		s.space()
	}
	if !sorted && (s.strict || s.unique) && doubled(s.keys[base:]) {
		return s.badJSON("duplicate key")
	}
	return nil
}

// doubled sorts keys and reports whether two are equal.
func doubled(keys [][]byte) bool {
	slices.SortFunc(keys, bytes.Compare)
	for i := 1; i < len(keys); i++ {
		if bytes.Equal(keys[i-1], keys[i]) {
			return true
		}
	}
	return false
}

func (s *scanner) array(depth int) error {
	if depth > MaxDepth {
		return s.notJSON("nested too deeply")
	}
	s.pos++
	s.space()
	if s.next(']') {
		return nil
	}
	for {
		if err := s.value(depth); err != nil {
			return err
		}
		s.space()
		if s.next(']') {
			return nil
		}
		if !s.next(',') {
			return s.notJSON("expected ',' or ']'")
		}
		s.space()
	}
}

func (s *scanner) next(c byte) bool {
	if s.pos < len(s.data) && s.data[s.pos] == c {
		s.pos++
		return true
	}
	return false
}

// plain are the bytes that stand for themselves in a string.
var plain = func() (t [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// string scans a string and returns what it stands for: a part of the data if it
// has no escapes.
func (s *scanner) string() ([]byte, error) {
	start := s.pos + 1
	i := start
	for i < len(s.data) {
		c := s.data[i]
		switch {
		case plain[c]:
			i++
		case c == '"':
			s.pos = i + 1
			return s.data[start:i], nil
		case c == '\\':
			return s.escaped(start, i)
		case c < utf8.RuneSelf:
			s.pos = i
			return nil, s.notJSON("control character in a string")
		default:
			_, n := utf8.DecodeRune(s.data[i:])
			if n == 1 {
				s.pos = i
				return nil, s.notJSON("invalid UTF-8")
			}
			i += n
		}
	}
	s.pos = len(s.data)
	return nil, s.notJSON("unexpected end of a string")
}

// escaped goes on with a string whose first escape is at i.
func (s *scanner) escaped(start, i int) ([]byte, error) {
	out := append(make([]byte, 0, i-start+16), s.data[start:i]...)
	for i < len(s.data) {
		c := s.data[i]
		switch {
		case plain[c]:
			out = append(out, c)
			i++
		case c == '"':
			s.pos = i + 1
			return out, nil
		case c == '\\':
			r, n := unescape(s.data[i:])
			if n == 0 {
				s.pos = i
				return nil, s.notJSON("bad escape")
			}
			if s.canonical && !bytes.Equal(appendRune(nil, r), s.data[i:i+n]) {
				s.canonical = false
			}
			out = utf8.AppendRune(out, r)
			i += n
		case c < utf8.RuneSelf:
			s.pos = i
			return nil, s.notJSON("control character in a string")
		default:
			_, n := utf8.DecodeRune(s.data[i:])
			if n == 1 {
				s.pos = i
				return nil, s.notJSON("invalid UTF-8")
			}
			out = append(out, s.data[i:i+n]...)
			i += n
		}
	}
	s.pos = len(s.data)
	return nil, s.notJSON("unexpected end of a string")
}

// unescape reads the escape that b starts with, and how long it is: 0 if it is
// none, or half of a surrogate pair.
func unescape(b []byte) (rune, int) {
	if len(b) < 2 {
		return 0, 0
	}
	switch b[1] {
	case '"', '\\', '/':
		return rune(b[1]), 2
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
		r := hex4(b)
		switch {
		case r < 0 || r >= 0xDC00 && r <= 0xDFFF:
			return 0, 0
		case r < 0xD800 || r > 0xDBFF:
			return r, 6
		}
		low := hex4(b[6:])
		if low < 0xDC00 || low > 0xDFFF {
			return 0, 0
		}
		return 0x10000 + (r-0xD800)<<10 + (low - 0xDC00), 12
	}
	return 0, 0
}

// hex4 reads \uXXXX, -1 if b does not start with it.
func hex4(b []byte) rune {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	var r rune
	for _, c := range b[2:6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// number scans a number. Canonical are integers without leading zeros or -0.
func (s *scanner) number() error {
	start := s.pos
	s.next('-')
	first := s.pos
	digits := s.digits()
	switch {
	case digits == 0:
		return s.notJSON("expected a digit")
	case digits > 1 && s.data[first] == '0':
		return s.notJSON("leading zero")
	}
	integer := true
	if s.next('.') {
		integer = false
		if s.digits() == 0 {
			return s.notJSON("expected a digit")
		}
	}
	if s.pos < len(s.data) && (s.data[s.pos] == 'e' || s.data[s.pos] == 'E') {
		integer = false
		s.pos++
		if !s.next('+') {
			s.next('-')
		}
		if s.digits() == 0 {
			return s.notJSON("expected a digit")
		}
	}
	text := s.data[start:s.pos]
	safe := integer && safeInteger(text)
	if s.strict && !safe {
		return s.badJSON("a number that is no integer of 53 bits")
	}
	if !integer || !safe && string(text) == "-0" {
		s.canonical = false
	}
	return nil
}

func (s *scanner) digits() int {
	start := s.pos
	for s.pos < len(s.data) && s.data[s.pos] >= '0' && s.data[s.pos] <= '9' {
		s.pos++
	}
	return s.pos - start
}

// safeInteger reports whether the digits are within 53 bits and not -0.
func safeInteger(text []byte) bool {
	digits := bytes.TrimPrefix(text, []byte("-"))
	if len(digits) > 16 || string(text) == "-0" {
		return false
	}
	var n int64
	for _, c := range digits {
		n = n*10 + int64(c-'0')
	}
	return n <= MaxInteger
}
