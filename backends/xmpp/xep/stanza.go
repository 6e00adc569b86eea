package xep

import (
	"crypto/rand"
	"errors"
	"time"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"
)

// NewID returns a fresh stanza ID.
func NewID() string { return rand.Text() }

// IsStanza reports whether e is a message, presence or iq of a component stream.
func IsStanza(e *Element) bool {
	if e.Name.Space != NSComponent {
		return false
	}
	return e.Name.Local == "message" || e.Name.Local == "presence" || e.Name.Local == "iq"
}

// Message starts a message.
func Message(from, to jid.JID, typ, id string) *Element {
	return New(NSComponent, "message", "from", from.String(), "to", to.String(), "type", typ, "id", id)
}

// Presence starts a presence; typ "" is available.
func Presence(from, to jid.JID, typ string) *Element {
	return New(NSComponent, "presence", "from", from.String(), "to", to.String(), "type", typ)
}

// IQ starts a request of type get or set.
func IQ(from, to jid.JID, typ string) *Element {
	return New(NSComponent, "iq", "from", from.String(), "to", to.String(), "type", typ, "id", NewID())
}

// ResultOf answers an iq with a payload.
func ResultOf(iq *Element, payload ...*Element) *Element {
	return New(NSComponent, "iq", "from", iq.Attr("to"), "to", iq.Attr("from"),
		"type", "result", "id", iq.Attr("id")).Add(payload...)
}

// Error is a stanza error.
type Error struct {
	Type      stanza.ErrorType
	Condition stanza.Condition
	Text      string
}

func (e *Error) Error() string {
	if e.Text != "" {
		return e.Text
	}
	return string(e.Condition)
}

// ErrorTo answers a stanza with an error from the address it was sent to.
func ErrorTo(to *Element, e *Error) *Element {
	reply := New(NSComponent, to.Name.Local, "from", to.Attr("to"), "to", to.Attr("from"),
		"type", "error", "id", to.Attr("id"))
	el := New(NSComponent, "error", "type", string(e.Type)).Add(New(NSStanzas, string(e.Condition)))
	if e.Text != "" {
		el.Add(New(NSStanzas, "text").AddText(e.Text))
	}
	return reply.Add(el)
}

// ErrorOf returns the error that a stanza of type error carries, nil for others.
func ErrorOf(e *Element) *Error {
	if e.Attr("type") != "error" {
		return nil
	}
	el := e.Child(NSComponent, "error")
	found := &Error{Type: stanza.ErrorType(el.Attr("type")), Condition: stanza.UndefinedCondition}
	for _, c := range el.Children() {
		switch {
		case c.Name.Space != NSStanzas:
		case c.Name.Local == "text":
			found.Text = c.Text()
		default:
			found.Condition = stanza.Condition(c.Name.Local)
		}
	}
	return found
}

// ErrAddress is an address that is missing or not a JID.
var ErrAddress = errors.New("stanza without a valid from and to")

// Addresses returns who sent a stanza to whom.
func Addresses(e *Element) (from, to jid.JID, err error) {
	if from, err = jid.Parse(e.Attr("from")); err != nil {
		return from, to, ErrAddress
	}
	if to, err = jid.Parse(e.Attr("to")); err != nil {
		return from, to, ErrAddress
	}
	return from, to, nil
}

// Stamp formats a time as XEP-0082 says.
func Stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// DelayOf returns the time of a delayed-delivery stamp (XEP-0203), zero without one.
func DelayOf(e *Element) time.Time {
	t, err := time.Parse(time.RFC3339Nano, e.Child(NSDelay, "delay").Attr("stamp"))
	if err != nil {
		return time.Time{}
	}
	return t
}
