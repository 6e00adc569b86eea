// Package xep reads and writes XMPP stanzas and the extensions that bridging
// needs. A stanza is a tree of [Element]s; each extension is a struct or a field
// of [Content]. XML is only ever made by encoding a tree.
package xep

import (
	"bytes"
	"encoding/xml"
	"strings"
)

// Namespaces of the streams and of the extensions.
const (
	NSComponent = "jabber:component:accept"
	NSClient    = "jabber:client"
	NSStream    = "http://etherx.jabber.org/streams"
	NSStanzas   = "urn:ietf:params:xml:ns:xmpp-stanzas"
	NSXML       = "http://www.w3.org/XML/1998/namespace"

	NSDiscoInfo  = "http://jabber.org/protocol/disco#info"
	NSDiscoItems = "http://jabber.org/protocol/disco#items"
	NSMUC        = "http://jabber.org/protocol/muc"
	NSMUCUser    = "http://jabber.org/protocol/muc#user"
	NSMUCAdmin   = "http://jabber.org/protocol/muc#admin"
	NSMUCOwner   = "http://jabber.org/protocol/muc#owner"
	NSMUCStable  = "http://jabber.org/protocol/muc#stable_id"
	NSMUCInfo    = "http://jabber.org/protocol/muc#roominfo"
	NSSelfPing   = "http://jabber.org/protocol/muc#self-ping-optimization"
	NSData       = "jabber:x:data"
	NSVCard      = "vcard-temp"
	NSRSM        = "http://jabber.org/protocol/rsm"
	NSOOB        = "jabber:x:oob"
	NSXHTMLIM    = "http://jabber.org/protocol/xhtml-im"
	NSXHTML      = "http://www.w3.org/1999/xhtml"
	NSChatStates = "http://jabber.org/protocol/chatstates"
	NSVersion    = "jabber:iq:version"
	NSPing       = "urn:xmpp:ping"
	NSDelay      = "urn:xmpp:delay"
	NSReplace    = "urn:xmpp:message-correct:0"
	NSSID        = "urn:xmpp:sid:0"
	NSOccupant   = "urn:xmpp:occupant-id:0"
	NSRetract    = "urn:xmpp:message-retract:1"
	NSModerate   = "urn:xmpp:message-moderate:1"
	NSFallback   = "urn:xmpp:fallback:0"
	NSReactions  = "urn:xmpp:reactions:0"
	NSReply      = "urn:xmpp:reply:0"
	NSMAM        = "urn:xmpp:mam:2"
	NSForward    = "urn:xmpp:forward:0"
	NSHints      = "urn:xmpp:hints"
	NSStyling    = "urn:xmpp:styling:0"
	NSCarbons    = "urn:xmpp:carbons:2"
	NSReceipts   = "urn:xmpp:receipts"
	NSNick       = "http://jabber.org/protocol/nick"
	NSConference = "jabber:x:conference"
)

// Element is an XML element. Its zero Name.Space means that of its parent.
type Element struct {
	Name  xml.Name
	Attrs []xml.Attr
	Nodes []Node
}

// Node is an element, or text if Element is nil.
type Node struct {
	Element *Element
	Text    string
}

// New makes an element with attributes given as name, value, …; attributes with
// an empty value are left out.
func New(space, local string, attrs ...string) *Element {
	e := &Element{Name: xml.Name{Space: space, Local: local}}
	for i := 0; i+1 < len(attrs); i += 2 {
		if attrs[i+1] != "" {
			e.Set(attrs[i], attrs[i+1])
		}
	}
	return e
}

// Add appends children, leaving out nil ones, and returns e.
func (e *Element) Add(children ...*Element) *Element {
	for _, c := range children {
		if c != nil {
			e.Nodes = append(e.Nodes, Node{Element: c})
		}
	}
	return e
}

// AddText appends text and returns e.
func (e *Element) AddText(s string) *Element {
	e.Nodes = append(e.Nodes, Node{Text: s})
	return e
}

// Attr returns the value of an attribute without namespace, "" if there is none.
func (e *Element) Attr(name string) string {
	if e == nil {
		return ""
	}
	for _, a := range e.Attrs {
		if a.Name.Space == "" && a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// Set sets an attribute; an empty value removes it.
func (e *Element) Set(name, value string) {
	for i, a := range e.Attrs {
		if a.Name.Space == "" && a.Name.Local == name {
			if value == "" {
				e.Attrs = append(e.Attrs[:i:i], e.Attrs[i+1:]...)
			} else {
				e.Attrs[i].Value = value
			}
			return
		}
	}
	if value != "" {
		e.Attrs = append(e.Attrs, xml.Attr{Name: xml.Name{Local: name}, Value: value})
	}
}

// Child returns the first child of that name, or nil. It may be called on nil.
func (e *Element) Child(space, local string) *Element {
	for _, c := range e.Children() {
		if c.Name.Local == local && c.Name.Space == space {
			return c
		}
	}
	return nil
}

// Children returns the child elements.
func (e *Element) Children() []*Element {
	if e == nil {
		return nil
	}
	var list []*Element
	for _, n := range e.Nodes {
		if n.Element != nil {
			list = append(list, n.Element)
		}
	}
	return list
}

// Text returns the text directly inside e.
func (e *Element) Text() string {
	if e == nil {
		return ""
	}
	var b strings.Builder
	for _, n := range e.Nodes {
		if n.Element == nil {
			b.WriteString(n.Text)
		}
	}
	return b.String()
}

// Is reports whether e has that name.
func (e *Element) Is(space, local string) bool {
	return e != nil && e.Name.Local == local && e.Name.Space == space
}

// Clone returns a copy whose attributes and list of children can be changed.
func (e *Element) Clone() *Element {
	return &Element{
		Name:  e.Name,
		Attrs: append([]xml.Attr(nil), e.Attrs...),
		Nodes: append([]Node(nil), e.Nodes...),
	}
}

// InComponent returns a stanza of a client's stream, as archives and forwards
// contain them, as one of a component's stream.
func (e *Element) InComponent() *Element { return e.moved(NSClient, NSComponent) }

// InClient is the reverse of InComponent.
func (e *Element) InClient() *Element { return e.moved(NSComponent, NSClient) }

func (e *Element) moved(from, to string) *Element {
	c := e.Clone()
	c.Name.Space = to
	for i, n := range c.Nodes {
		if n.Element != nil && n.Element.Name.Space == from {
			c.Nodes[i].Element = n.Element.moved(from, to)
		}
	}
	return c
}

// Append encodes e into b, for a place where space is the default namespace.
// Characters that XML does not allow are left out.
func (e *Element) Append(b *bytes.Buffer, space string) {
	b.WriteByte('<')
	b.WriteString(e.Name.Local)
	own := space
	if e.Name.Space != "" && e.Name.Space != space {
		own = e.Name.Space
		AppendAttr(b, "xmlns", own)
	}
	for _, a := range e.Attrs {
		switch {
		case a.Name.Local == "xmlns" || a.Name.Space == "xmlns":
		case a.Name.Space == "":
			AppendAttr(b, a.Name.Local, a.Value)
		case a.Name.Space == NSXML || a.Name.Space == "xml":
			AppendAttr(b, "xml:"+a.Name.Local, a.Value)
		}
	}
	if len(e.Nodes) == 0 {
		b.WriteString("/>")
		return
	}
	b.WriteByte('>')
	for _, n := range e.Nodes {
		if n.Element != nil {
			n.Element.Append(b, own)
		} else {
			appendEscaped(b, n.Text, false)
		}
	}
	b.WriteString("</")
	b.WriteString(e.Name.Local)
	b.WriteByte('>')
}

// String encodes e as a stanza of a component's stream.
func (e *Element) String() string {
	var b bytes.Buffer
	e.Append(&b, NSComponent)
	return b.String()
}

// AppendAttr writes an attribute, escaped, for stream heads: they are never closed
// and so no Element.
func AppendAttr(b *bytes.Buffer, name, value string) {
	b.WriteByte(' ')
	b.WriteString(name)
	b.WriteString(`="`)
	appendEscaped(b, value, true)
	b.WriteByte('"')
}

// appendEscaped writes s so that it reads back as s: in an attribute, quotes and
// white space must be escaped too. What XML does not allow is left out, and bytes
// that are not UTF-8 become U+FFFD.
func appendEscaped(b *bytes.Buffer, s string, attr bool) {
	for _, r := range s {
		switch {
		case r < 64 && escapes[r] != "" && (attr || strings.IndexByte("<>&\r", byte(r)) >= 0):
			b.WriteString(escapes[r])
		case r < 0x20 && r != '\t' && r != '\n', r == 0xFFFE, r == 0xFFFF:
		default:
			b.WriteRune(r)
		}
	}
}

var escapes = [64]string{
	'<': "&lt;", '>': "&gt;", '&': "&amp;", '\r': "&#13;", '"': "&#34;", '\'': "&#39;", '\t': "&#9;", '\n': "&#10;",
}
