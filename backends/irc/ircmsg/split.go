package ircmsg

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// minSplit is the least length that Split works with: one rune.
const minSplit = utf8.UTFMax

// Split cuts text into pieces of at most limit bytes (at least 4), at the ends of
// words where it can, else between characters as people see them, else between
// runes. The space at a cut is dropped; everything else is kept. An empty
// text has no pieces.
func Split(text string, limit int) []string {
	var pieces []string
	for text != "" {
		var head string
		head, text = Cut(text, limit)
		pieces = append(pieces, head)
	}
	return pieces
}

// Cut returns the first piece of Split and what comes after it.
func Cut(text string, limit int) (head, tail string) {
	limit = max(limit, minSplit)
	if len(text) <= limit {
		return text, ""
	}
	space, end := scan(text, limit)
	// A word is cut if the piece would be less than half full without it.
	if space > limit/2 {
		return text[:space], text[space+1:]
	}
	return text[:end], text[end:]
}

// scan returns the place of the last space at or before limit, and the end of
// the last cluster that ends there: at least one rune.
func scan(text string, limit int) (space, end int) {
	for i := 0; i < len(text) && i <= limit; {
		if text[i] == ' ' {
			space = i
		}
		n := clusterLen(text[i:])
		if i+n > limit {
			break
		}
		i += n
		end = i
	}
	if end == 0 {
		end = runesWithin(text, limit)
	}
	return space, end
}

// runesWithin returns the length of the longest prefix of whole runes.
func runesWithin(text string, limit int) int {
	end := 0
	for end < len(text) {
		_, n := utf8.DecodeRuneInString(text[end:])
		if end+n > limit {
			break
		}
		end += n
	}
	return end
}

// clusterLen returns the length in bytes of the first character of s as people
// see it: a rune with the marks, joiners and modifiers that belong to it, a flag, or a
// formatting code with its digits. It follows the rules of
// https://www.unicode.org/reports/tr29/ as far as the categories of package
// unicode reach.
func clusterLen(s string) int {
	if n := codeLen(s); n > 0 {
		return n
	}
	r, n := utf8.DecodeRuneInString(s)
	if r < utf8.RuneSelf && (n == len(s) || s[n] < utf8.RuneSelf) {
		return n
	}
	if regional(r) {
		if next, m := utf8.DecodeRuneInString(s[n:]); regional(next) {
			n += m
		}
	}
	for n < len(s) {
		next, m := utf8.DecodeRuneInString(s[n:])
		if !extends(r, next) {
			break
		}
		r, n = next, n+m
	}
	return n
}

const zwj = '\u200d'

// extends reports whether next belongs to the character that prev ends.
func extends(prev, next rune) bool {
	switch {
	case next < 0x300:
		return false
	case next == zwj, unicode.In(next, unicode.M, unicode.Variation_Selector):
		return true
	case prev == zwj: // emoji sequences
		return unicode.Is(unicode.So, next) || next >= 0x1F000
	case 0x1F3FB <= next && next <= 0x1F3FF: // skin tones
		return true
	case 0xE0020 <= next && next <= 0xE007F: // tag sequences: flags of regions
		return true
	case 0x1160 <= next && next <= 0x11FF: // Hangul vowels and final consonants
		return 0x1100 <= prev && prev <= 0x11FF || 0xAC00 <= prev && prev <= 0xD7A3
	}
	return false
}

func regional(r rune) bool { return 0x1F1E6 <= r && r <= 0x1F1FF }

// codeLen returns the length of the colour code that s starts with, 0 if none:
// \x03 with up to two digits, a comma and two more, or \x04 with six hex digits.
func codeLen(s string) int {
	switch {
	case strings.HasPrefix(s, "\x03"):
		return colour(s, 1, 2, isDigit)
	case strings.HasPrefix(s, "\x04"):
		return colour(s, 6, 6, isHex)
	}
	return 0
}

func colour(s string, least, most int, is func(byte) bool) int {
	end := 1 + run(s[1:], least, most, is)
	if end > 1 && end < len(s) && s[end] == ',' {
		if n := run(s[end+1:], least, most, is); n > 0 {
			end += 1 + n
		}
	}
	return end
}

// run returns how many bytes s starts with that satisfy is, at most so many, 0
// if less than least.
func run(s string, least, most int, is func(byte) bool) int {
	n := 0
	for n < len(s) && n < most && is(s[n]) {
		n++
	}
	if n < least {
		return 0
	}
	return n
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isHex(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}
