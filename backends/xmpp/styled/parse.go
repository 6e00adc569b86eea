// Package styled turns the text tree into message styling (XEP-0393) and back,
// and reads XHTML-IM (XEP-0071).
//
// It does not use mellium.im/xmpp/styling, whose decoder takes quadratic time for
// a line of ">".
package styled

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/gjallar-im/gjallar/backends/richtext"
)

// Parse reads a body, in time proportional to its length. Whatever it is, nothing
// of the text is lost but the directives that had an effect.
func Parse(body string) richtext.Doc {
	body = strings.ToValidUTF8(body, "\uFFFD")
	return richtext.Doc(parseBlocks(strings.Split(body, "\n"), 1)).Normalise()
}

// parseBlocks reads lines as blocks (XEP-0393 §6.1): code, quotes, and what lies
// between them.
func parseBlocks(lines []string, depth int) []richtext.Node {
	var out []richtext.Node
	text := false
	for i := 0; i < len(lines); {
		n, wasText := 1, text
		text = false
		switch {
		case strings.HasPrefix(lines[i], "```"):
			n = codeLines(lines[i:])
			out = append(out, codeBlock(lines[i:i+n]))
		case strings.HasPrefix(lines[i], ">") && depth < richtext.MaxDepth:
			inner := quoteLines(lines[i:])
			n = len(inner)
			out = append(out, richtext.Node{Kind: richtext.Quote, Children: parseBlocks(inner, depth+1)})
		default:
			if wasText { // the line before was one too
				out = append(out, richtext.Node{Kind: richtext.Break})
			}
			out = append(out, parseSpans(lines[i], "")...)
			text = true
		}
		i += n
	}
	return out
}

// codeLines says how many lines the code block at the start of lines has, the
// fences included. One that is not closed ends with its parent.
func codeLines(lines []string) int {
	for i, line := range lines[1:] {
		if line == "```" {
			return i + 2
		}
	}
	return len(lines)
}

func codeBlock(lines []string) richtext.Node {
	n := richtext.Node{Kind: richtext.CodeBlock, Lang: strings.TrimSpace(lines[0][3:])}
	lines = lines[1:]
	if last := len(lines) - 1; last >= 0 && lines[last] == "```" {
		lines = lines[:last]
	}
	n.Text = strings.Join(lines, "\n")
	return n
}

// quoteLines returns the lines of the quote at the start of lines, without its marks.
func quoteLines(lines []string) []string {
	var inner []string
	for _, line := range lines {
		rest, ok := strings.CutPrefix(line, ">")
		if !ok {
			break
		}
		inner = append(inner, strings.TrimPrefix(rest, " "))
	}
	return inner
}

// directives are the spans of XEP-0393 §6.2.
var directives = map[byte]richtext.Kind{'*': richtext.Bold, '_': richtext.Italic, '~': richtext.Strike, '`': richtext.Code}

// parseSpans reads a line, or what stands between two directives of one; opened
// holds those around it.
func parseSpans(line, opened string) []richtext.Node {
	var out []richtext.Node
	unclosed := "" // directives that do not occur again as closing ones
	plain := 0     // start of the text not yet in out
	for i := 0; i < len(line); i++ {
		kind, ok := directives[line[i]]
		if !ok || strings.IndexByte(opened+unclosed, line[i]) >= 0 || !opens(line, i, plain) {
			continue
		}
		length := closing(line[i+1:], line[i])
		if length < 0 {
			unclosed += line[i : i+1]
			continue
		}
		inner := line[i+1 : i+1+length]
		n := richtext.Node{Kind: kind}
		if kind == richtext.Code {
			n.Text = inner
		} else {
			n.Children = parseSpans(inner, opened+line[i:i+1])
		}
		out = append(out, richtext.Node{Kind: richtext.Text, Text: line[plain:i]}, n)
		i += length + 1
		plain = i + 1
	}
	return append(out, richtext.Node{Kind: richtext.Text, Text: line[plain:]})
}

// opens reports whether the directive at i stands where one may open a span:
// first, or after white space, and before something else.
func opens(line string, i, plain int) bool {
	before, size := utf8.DecodeLastRuneInString(line[plain:i])
	if size == 0 && i > 0 || size > 0 && !unicode.IsSpace(before) {
		return false
	}
	after, size := utf8.DecodeRuneInString(line[i+1:])
	return size > 0 && !unicode.IsSpace(after)
}

// closing returns how far away the directive is that closes a span, -1 if there
// is none: the first that does not follow white space or the opening one.
func closing(rest string, directive byte) int {
	for i := 1; i < len(rest); i++ {
		if rest[i] == directive {
			if before, _ := utf8.DecodeLastRuneInString(rest[:i]); !unicode.IsSpace(before) {
				return i
			}
		}
	}
	return -1
}
