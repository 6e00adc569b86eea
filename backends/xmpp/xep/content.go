package xep

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Content is what a message says, with the extensions that bridging needs.
type Content struct {
	Body      string
	XHTML     *Element // the body of XEP-0071, only read
	Subject   *string
	Thread    string
	OriginID  string   // XEP-0359
	Replace   string   // XEP-0308: id of the message that this one replaces
	Reply     *Reply   // XEP-0461
	Retract   string   // XEP-0424
	Moderated bool     // with Retract: by a moderator (XEP-0425)
	Reason    string   // with Retract
	ReactTo   string   // XEP-0444
	Reactions []string // the sender's whole set
	Files     []string // URLs of XEP-0066
	State     string   // chat state (XEP-0085): "composing", "paused", "active", …
	Unstyled  bool     // XEP-0393: the body has no styling
}

// Reply refers to the message replied to.
type Reply struct{ ID, To string }

// chatStates are those of XEP-0085.
var chatStates = []string{"active", "composing", "paused", "inactive", "gone"}

// maxSpans is how many fallback spans of a message we cut out.
const maxSpans = 8

// maxReactions is how many reactions of one sender we read.
const maxReactions = 32

// ContentOf reads a message. The fallback for replies (XEP-0428) is taken out of
// the body, and the body of a reaction, retraction or bare file is dropped.
func ContentOf(m *Element) Content {
	c := Content{
		Body:     m.Child(NSComponent, "body").Text(),
		XHTML:    m.Child(NSXHTMLIM, "html").Child(NSXHTML, "body"),
		Thread:   m.Child(NSComponent, "thread").Text(),
		OriginID: m.Child(NSSID, "origin-id").Attr("id"),
		Replace:  m.Child(NSReplace, "replace").Attr("id"),
		Unstyled: m.Child(NSStyling, "unstyled") != nil,
	}
	if s := m.Child(NSComponent, "subject"); s != nil {
		c.Subject = new(s.Text())
	}
	if r := m.Child(NSReply, "reply"); r.Attr("id") != "" {
		c.Reply = &Reply{ID: r.Attr("id"), To: r.Attr("to")}
	}
	c.readRetract(m)
	c.readReactions(m)
	for _, x := range m.Children() {
		if x.Is(NSOOB, "x") {
			if url := x.Child(NSOOB, "url").Text(); url != "" {
				c.Files = append(c.Files, url)
			}
		}
	}
	for _, state := range chatStates {
		if m.Child(NSChatStates, state) != nil {
			c.State = state
		}
	}
	c.stripFallbacks(m)
	return c
}

func (c *Content) readRetract(m *Element) {
	r := m.Child(NSRetract, "retract")
	if r == nil {
		return
	}
	c.Retract, c.Reason = r.Attr("id"), r.Child(NSRetract, "reason").Text()
	c.Moderated = r.Child(NSModerate, "moderated") != nil
}

func (c *Content) readReactions(m *Element) {
	r := m.Child(NSReactions, "reactions")
	if r == nil {
		return
	}
	c.ReactTo = r.Attr("id")
	for _, e := range r.Children() {
		if key := strings.TrimSpace(e.Text()); e.Is(NSReactions, "reaction") && key != "" && len(c.Reactions) < maxReactions {
			c.Reactions = append(c.Reactions, key)
		}
	}
}

// stripFallbacks removes what is in the body only for clients that do not know
// the extension. Positions count Unicode code points (XEP-0428).
func (c *Content) stripFallbacks(m *Element) {
	var spans []span
	for _, f := range m.Children() {
		if f.Is(NSFallback, "fallback") && understood[f.Attr("for")] && len(spans) < maxSpans {
			spans = append(spans, spanOf(f.Child(NSFallback, "body")))
		}
	}
	if len(spans) > 0 {
		c.Body, c.XHTML = cut(c.Body, spans), nil
	}
	if c.ReactTo != "" || c.Retract != "" {
		c.Body, c.XHTML = "", nil
	}
	if len(c.Files) == 1 && strings.TrimSpace(c.Body) == c.Files[0] {
		c.Body, c.XHTML = "", nil
	}
}

// understood are the extensions whose fallback we need not see.
var understood = map[string]bool{NSReply: true, NSReactions: true, NSRetract: true, NSOOB: true}

// span is part of a body, in code points.
type span struct{ from, to int }

// spanOf reads a span; the whole body if it is not given.
func spanOf(e *Element) span {
	from, err1 := strconv.Atoi(e.Attr("start"))
	to, err2 := strconv.Atoi(e.Attr("end"))
	if err1 != nil || err2 != nil {
		return span{0, math.MaxInt}
	}
	return span{from, to}
}

func cut(s string, spans []span) string {
	var b strings.Builder
	i := 0
	for _, r := range s {
		if !slices.ContainsFunc(spans, func(p span) bool { return p.from <= i && i < p.to }) {
			b.WriteRune(r)
		}
		i++
	}
	return b.String()
}

// AddTo writes c into a message. Quoted is the fallback for replies that the
// body begins with, "" if none.
func (c *Content) AddTo(m *Element, quoted string) {
	if c.Body != "" {
		m.Add(New(NSComponent, "body").AddText(c.Body))
	}
	if c.Subject != nil {
		m.Add(New(NSComponent, "subject").AddText(*c.Subject))
	}
	if c.Thread != "" {
		m.Add(New(NSComponent, "thread").AddText(c.Thread))
	}
	if c.OriginID != "" {
		m.Add(New(NSSID, "origin-id", "id", c.OriginID))
	}
	if c.Replace != "" {
		m.Add(New(NSReplace, "replace", "id", c.Replace))
	}
	if c.Reply != nil {
		m.Add(New(NSReply, "reply", "id", c.Reply.ID, "to", c.Reply.To))
	}
	if quoted != "" {
		m.Add(New(NSFallback, "fallback", "for", NSReply).Add(
			New(NSFallback, "body", "start", "0", "end", strconv.Itoa(utf8.RuneCountInString(quoted)))))
	}
	c.addRetract(m)
	if c.ReactTo != "" {
		r := New(NSReactions, "reactions", "id", c.ReactTo)
		for _, key := range c.Reactions {
			r.Add(New(NSReactions, "reaction").AddText(key))
		}
		m.Add(r, New(NSHints, "store"))
	}
	for _, url := range c.Files {
		m.Add(New(NSOOB, "x").Add(New(NSOOB, "url").AddText(url)))
	}
	if c.State != "" {
		m.Add(New(NSChatStates, c.State))
	}
	if c.Unstyled {
		m.Add(New(NSStyling, "unstyled"))
	}
}

func (c *Content) addRetract(m *Element) {
	if c.Retract == "" {
		return
	}
	r := New(NSRetract, "retract", "id", c.Retract)
	if c.Reason != "" {
		r.Add(New(NSRetract, "reason").AddText(c.Reason))
	}
	if c.Moderated {
		r.Add(New(NSModerate, "moderated"))
	}
	m.Add(r, New(NSFallback, "fallback", "for", NSRetract), New(NSHints, "store"))
}

// StanzaID returns the ID that by gave the message (XEP-0359); IDs claimed in
// other names are not believed.
func StanzaID(m *Element, by string) string {
	for _, c := range m.Children() {
		if c.Is(NSSID, "stanza-id") && c.Attr("by") == by {
			return c.Attr("id")
		}
	}
	return ""
}

// OccupantID returns the pseudonymous ID that a MUC gave the sender (XEP-0421).
func OccupantID(m *Element) string { return m.Child(NSOccupant, "occupant-id").Attr("id") }
