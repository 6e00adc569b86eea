package canonicaljson

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
)

// value is a node of parsed JSON.
type value struct {
	text    []byte // a literal or a number as written; a string decoded
	kind    byte   // '{', '[', '"', or 0 for a literal or a number
	members []member
	items   []value
}

type member struct {
	key []byte
	val value
}

// parse reads a document that a scanner has found to be valid.
func parse(data []byte) (value, error) {
	p := scanner{data: data}
	p.space()
	return p.parse()
}

func (s *scanner) parse() (v value, err error) {
	switch s.data[s.pos] {
	case '{':
		v.kind = '{'
		err = s.parseObject(&v)
	case '[':
		v.kind = '['
		err = s.parseArray(&v)
	case '"':
		v.kind = '"'
		v.text, err = s.string()
	default:
		start := s.pos
		err = s.value(0)
		v.text = s.data[start:s.pos]
	}
	return v, err
}

func (s *scanner) parseObject(v *value) error {
	s.pos++
	s.space()
	for !s.next('}') {
		key, err := s.string()
		if err != nil {
			return err
		}
		s.space()
		s.next(':')
		s.space()
		val, err := s.parse()
		if err != nil {
			return err
		}
		v.members = append(v.members, member{key, val})
		s.space()
		s.next(',')
		s.space()
	}
	slices.SortStableFunc(v.members, func(a, b member) int { return bytes.Compare(a.key, b.key) })
	// Of equal keys the last one counts.
	kept := v.members[:0]
	for i, m := range v.members {
		if i+1 == len(v.members) || !bytes.Equal(m.key, v.members[i+1].key) {
			kept = append(kept, m)
		}
	}
	v.members = kept
	return nil
}

func (s *scanner) parseArray(v *value) error {
	s.pos++
	s.space()
	for !s.next(']') {
		item, err := s.parse()
		if err != nil {
			return err
		}
		v.items = append(v.items, item)
		s.space()
		s.next(',')
		s.space()
	}
	return nil
}

// append writes v canonically.
func (v *value) append(b []byte) []byte {
	switch v.kind {
	case '{':
		b = append(b, '{')
		for i := range v.members {
			if i > 0 {
				b = append(b, ',')
			}
			b = AppendString(b, v.members[i].key)
			b = append(b, ':')
			b = v.members[i].val.append(b)
		}
		return append(b, '}')
	case '[':
		b = append(b, '[')
		for i := range v.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = v.items[i].append(b)
		}
		return append(b, ']')
	case '"':
		return AppendString(b, v.text)
	}
	if c := v.text[0]; c == '-' || c >= '0' && c <= '9' {
		return appendNumber(b, string(v.text))
	}
	return append(b, v.text...)
}

// AppendString writes s, which is valid UTF-8, as a canonical string.
func AppendString[T string | []byte](b []byte, s T) []byte {
	b = append(b, '"')
	start := 0
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' {
			b = append(b, s[start:i]...)
			b = appendRune(b, rune(c))
			start = i + 1
		}
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

// appendRune writes one character of a canonical string: only the quote, the
// backslash and control characters are escaped, the latter by their short forms
// where they have one.
func appendRune(b []byte, r rune) []byte {
	switch r {
	case '"', '\\':
		return append(b, '\\', byte(r))
	case '\b':
		return append(b, `\b`...)
	case '\t':
		return append(b, `\t`...)
	case '\n':
		return append(b, `\n`...)
	case '\f':
		return append(b, `\f`...)
	case '\r':
		return append(b, `\r`...)
	}
	if r < 0x20 {
		const hex = "0123456789abcdef"
		return append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
	}
	return append(b, string(r)...)
}

// appendNumber writes a number. Integers stay as they are, whatever their size;
// "-0" and integers with an exponent become plain; a fraction is written as the
// network's first server, written in Python, prints it.
func appendNumber(b []byte, text string) []byte {
	if !strings.ContainsAny(text, ".eE") {
		if text == "-0" {
			text = "0"
		}
		return append(b, text...)
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return append(b, text...) // out of range; kept as it came
	}
	if !strings.Contains(text, ".") && f == float64(int64(f)) && f >= MinInteger && f <= MaxInteger {
		return strconv.AppendInt(b, int64(f), 10)
	}
	mantissa, exponent, _ := strings.Cut(strconv.FormatFloat(f, 'e', -1, 64), "e")
	e, _ := strconv.Atoi(exponent)
	if e < -4 || e >= 16 {
		b = append(b, mantissa...)
		b = append(b, 'e', exponent[0])
		return append(b, exponent[1:]...)
	}
	fixed := strconv.FormatFloat(f, 'f', -1, 64)
	b = append(b, fixed...)
	if !strings.Contains(fixed, ".") {
		b = append(b, ".0"...)
	}
	return b
}
