// Package richtext is formatted text as a tree: the one form in which text
// crosses the boundary between networks. Each network converts its own notation
// to and from it; nobody passes HTML about.
//
// The tree is plain data. It has no behaviour but walking and flattening.
package richtext

import "strings"

// Doc is a sequence of nodes. A Doc of inline nodes alone is one paragraph.
type Doc []Node

// Kind of a node.
type Kind uint8

// Inline kinds.
const (
	Text  Kind = iota // Text
	Break             // a line break
	Bold              // Children
	Italic
	Underline
	Strike
	Code    // Text, monospaced, within a line
	Spoiler // Children; Text is the reason, "" if none
	Color   // Children; FG and BG
	Link    // Children; URL
	Mention // Children (the name as written); User
	Image   // Text (alternative text or shortcode), URL: a custom emoji
)

// Block kinds. Their Children are inline unless said otherwise.
const (
	Paragraph Kind = iota + 64
	Heading        // Level 1–6
	Quote          // Children: blocks or inline
	CodeBlock      // Text; Lang
	List           // Children: Item; Ordered, Start
	Item           // Children: blocks or inline
	Rule           // a horizontal line
)

// Node of the tree. Only the fields named at its Kind mean something.
type Node struct {
	Kind     Kind
	Text     string
	URL      string
	User     string // the mentioned user: a backends.UserID, or an AccountID if it starts with "@"; RoomMention for everybody
	FG, BG   string // "#rrggbb", "" if not set
	Lang     string
	Level    int
	Ordered  bool
	Start    int
	Children []Node
}

// RoomMention is the User of a mention of everybody.
const RoomMention = "@room"

// MaxDepth is how deep a tree may nest; deeper nodes are flattened by those who
// build trees from outside input.
const MaxDepth = 32

// Block reports whether k is a block kind.
func (k Kind) Block() bool { return k >= Paragraph }

// Plain makes a Doc of unformatted text, line feeds becoming breaks.
func Plain(s string) Doc {
	var d Doc
	for i, line := range strings.Split(s, "\n") {
		if i > 0 {
			d = append(d, Node{Kind: Break})
		}
		if line != "" {
			d = append(d, Node{Kind: Text, Text: line})
		}
	}
	return d
}
