// Package ircfmt converts between the formatting codes of IRC and richtext.
//
// The codes are those of https://modern.ircdocs.horse/formatting.html. A text of
// several lines is joined by line feeds; formatting ends with its line.
package ircfmt

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Formatting codes.
const (
	codeBold      = '\x02'
	codeColour    = '\x03'
	codeHexColour = '\x04'
	codeReset     = '\x0f'
	codeMono      = '\x11'
	codeReverse   = '\x16'
	codeItalic    = '\x1d'
	codeStrike    = '\x1e'
	codeUnderline = '\x1f'
)

// style is what the codes so far have switched on.
type style struct {
	bold, italic, underline, strike, mono, reverse bool
	fg, bg                                         string // "#rrggbb", "" for the default
}

// toggles are the codes that switch one thing on and off.
var toggles = []struct {
	code byte
	of   func(*style) *bool
}{
	{codeBold, func(s *style) *bool { return &s.bold }},
	{codeItalic, func(s *style) *bool { return &s.italic }},
	{codeUnderline, func(s *style) *bool { return &s.underline }},
	{codeStrike, func(s *style) *bool { return &s.strike }},
	{codeMono, func(s *style) *bool { return &s.mono }},
	{codeReverse, func(s *style) *bool { return &s.reverse }},
}

// span is text of one style, without control characters.
type span struct {
	style style
	text  string
}

// scan cuts a line into spans of non-empty text, starting from a style, and
// returns the style at its end.
func scan(line string, s style) ([]span, style) {
	var spans []span
	var text strings.Builder
	flush := func() {
		if text.Len() > 0 {
			spans = append(spans, span{s, text.String()})
			text.Reset()
		}
	}
	for line != "" {
		r, n := utf8.DecodeRuneInString(line)
		if !isControl(r) {
			text.WriteString(line[:n])
			line = line[n:]
			continue
		}
		next, rest := s.apply(line)
		if next != s {
			flush()
			s = next
		}
		line = rest
	}
	flush()
	return spans, s
}

// isControl reports whether r is no text: C0 and C1 controls but the tab.
func isControl(r rune) bool { return unicode.IsControl(r) && r != '\t' }

// apply returns the style after the code that line starts with, and the rest.
// Other control characters mean nothing.
func (s style) apply(line string) (style, string) {
	for _, t := range toggles {
		if line[0] == t.code {
			on := t.of(&s)
			*on = !*on
			return s, line[1:]
		}
	}
	switch line[0] {
	case codeReset:
		return style{}, line[1:]
	case codeColour:
		return s.colour(line[1:], paletteColour)
	case codeHexColour:
		return s.colour(line[1:], hexColour)
	}
	_, n := utf8.DecodeRuneInString(line)
	return s, line[n:]
}

// colour reads FG or FG,BG by means of one. Without any, colours end.
func (s style) colour(line string, one func(string) (string, int)) (style, string) {
	fg, n := one(line)
	if n == 0 {
		s.fg, s.bg = "", ""
		return s, line
	}
	s.fg, line = fg, line[n:]
	if strings.HasPrefix(line, ",") {
		if bg, n := one(line[1:]); n > 0 {
			s.bg, line = bg, line[1+n:]
		}
	}
	return s, line
}

// paletteColour reads one or two digits. Numbers without a colour are the default.
func paletteColour(line string) (colour string, n int) {
	number := 0
	for n < 2 && n < len(line) && '0' <= line[n] && line[n] <= '9' {
		number = 10*number + int(line[n]-'0')
		n++
	}
	if n > 0 && number < len(palette) {
		colour = palette[number]
	}
	return colour, n
}

func hexColour(line string) (colour string, n int) {
	if len(line) < 6 || !isHex(line[:6]) {
		return "", 0
	}
	return "#" + strings.ToLower(line[:6]), 6
}

func isHex(s string) bool {
	return strings.Trim(s, "0123456789abcdefABCDEF") == ""
}

// transition returns codes that change the style from one to another before text.
func transition(from, to style, text string) string {
	if from == to {
		return ""
	}
	if to == (style{}) {
		return string(codeReset)
	}
	var b strings.Builder
	for _, t := range toggles {
		if *t.of(&from) != *t.of(&to) {
			b.WriteByte(t.code)
		}
	}
	writeColour(&b, from, to, text)
	return b.String()
}

// writeColour writes the change of colour, if any. Numbers have two digits, so
// only a comma, or a digit after the end of a colour, could be misread as part of
// the code: bold on and off stands between.
func writeColour(b *strings.Builder, from, to style, text string) {
	if from.fg == to.fg && from.bg == to.bg {
		return
	}
	b.WriteByte(codeColour)
	guard := "0123456789"
	if to.fg != "" || to.bg != "" {
		b.WriteString(number(to.fg))
		guard = ","
		if to.bg != from.bg {
			b.WriteString("," + number(to.bg))
			guard = ""
		}
	}
	if guard != "" && strings.ContainsRune(guard, rune(text[0])) {
		b.WriteString("\x02\x02")
	}
}

// write returns the spans as a line.
func write(spans []span) string {
	var b strings.Builder
	var s style
	for _, sp := range spans {
		if sp.text == "" {
			continue
		}
		b.WriteString(transition(s, sp.style, sp.text))
		b.WriteString(sp.text)
		s = sp.style
	}
	return b.String()
}

// Strip returns s without formatting codes and control characters but line feeds.
func Strip(s string) string {
	if strings.IndexFunc(s, isControl) < 0 {
		return s
	}
	var b strings.Builder
	for i, line := range strings.Split(s, "\n") {
		if i > 0 {
			b.WriteByte('\n')
		}
		spans, _ := scan(line, style{})
		for _, sp := range spans {
			b.WriteString(sp.text)
		}
	}
	return b.String()
}
