// Package canonicaljson decodes JSON strictly and encodes it canonically.
//
// Events are hashed and signed in canonical form, so what two servers make of the
// same bytes must agree to the last one. encoding/json does not serve: it takes
// duplicate keys, keys in the wrong case, rounded numbers and broken UTF-8.
//
// Spec: https://spec.matrix.org/v1.19/appendices/#canonical-json
package canonicaljson

import (
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
)

// MaxDepth is how deep objects and arrays may nest.
const MaxDepth = 100

// Bounds of an integer in strict canonical JSON.
const (
	MaxInteger = 1<<53 - 1
	MinInteger = -MaxInteger
)

// Errors. ErrNotJSON and ErrBadJSON correspond to M_NOT_JSON and M_BAD_JSON.
var (
	ErrNotJSON = errors.New("not JSON")
	ErrBadJSON = errors.New("bad JSON")
)

// Canonical returns data in canonical form. Numbers that the strict form forbids
// are kept, as the events of room versions 1 to 5 may have them: fractions are
// written as the shortest text that reads back the same, and of duplicate keys the
// last counts, since that is what the network hashed.
//
// The result is data itself if it is canonical already. The error wraps [ErrNotJSON].
func Canonical(data []byte) ([]byte, error) { return canonical(data, false) }

// CanonicalStrict returns data in canonical form, or an error that wraps
// [ErrNotJSON], or [ErrBadJSON] if it is JSON with duplicate keys, or with numbers
// that are no integers of 53 bits (-0 and exponents included).
//
// The result is data itself if it is canonical already.
func CanonicalStrict(data []byte) ([]byte, error) { return canonical(data, true) }

func canonical(data []byte, strict bool) ([]byte, error) {
	done, err := scan(data, strict, false)
	if err != nil {
		return nil, err
	}
	if done {
		return data, nil
	}
	v, _ := parse(data) // it has just been found to be JSON
	return v.append(make([]byte, 0, len(data))), nil
}

// Unmarshal decodes the body of a request into v, by json struct tags. Keys that
// v has no field for are ignored. The error wraps [ErrNotJSON], or [ErrBadJSON] if
// it is JSON with duplicate keys or of the wrong shape.
func Unmarshal(data []byte, v any) error {
	if err := Valid(data); err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%w: %s", ErrBadJSON, shapeError(err))
	}
	return nil
}

// shapeError says what is wrong in terms of JSON, not of Go types.
func shapeError(err error) string {
	if e, ok := errors.AsType[*json.SemanticError](err); ok {
		if p := string(e.JSONPointer); p != "" {
			return fmt.Sprintf("unexpected value at %s", p)
		}
		return "unexpected type of value"
	}
	return err.Error()
}

// Valid reports whether data is JSON in valid UTF-8 without lone surrogates, with
// unique keys, nesting at most [MaxDepth] deep. The error is that of [Unmarshal].
func Valid(data []byte) error {
	_, err := scan(data, false, true)
	return err
}

// Marshal encodes a Go value canonically. The error wraps [ErrBadJSON] if it has
// numbers that the strict form forbids.
func Marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return CanonicalStrict(b)
}

// Each calls f with every member of an object that is known to be canonical, keys
// as written between their quotes, until f returns false.
func Each(object []byte, f func(key, value []byte) bool) {
	for i := 1; i < len(object) && object[i] == '"'; {
		end := skipString(object, i)
		start := end + 1 // past the colon
		next := skipValue(object, start)
		if !f(object[i+1:end-1], object[start:next]) {
			return
		}
		i = next + 1 // past the comma
	}
}

// Elements calls f with every item of an array that is known to be canonical.
func Elements(array []byte, f func(value []byte)) {
	for i := 1; i < len(array) && array[i] != ']'; {
		next := skipValue(array, i)
		f(array[i:next])
		i = next + 1
	}
}

func skipString(b []byte, i int) int {
	for i++; i < len(b) && b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return min(i+1, len(b))
}

func skipValue(b []byte, i int) int {
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			i = skipString(b, i)
			if depth == 0 {
				return i
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',':
			if depth == 0 {
				return i
			}
		}
		i++
	}
	return i
}
