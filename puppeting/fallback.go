package puppeting

import (
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

// fallback turns what the network cannot express into what it can, nil if that is
// nothing:
//
//	formatting       plain text
//	reply            a quotation before the text
//	thread           none
//	file             a link after the text
//	edit             "* " and the new text
//	reaction         an emote; its removal is not told
//	removal          an emote, which does not repeat what is removed
//	typing, read, topic, name, kick   not told
func (p *portal) fallback(body backends.Body) backends.Body {
	return degrade(body, p.net.capabilities())
}

func degrade(body backends.Body, c backends.Capabilities) backends.Body {
	switch b := body.(type) {
	case *backends.Message:
		return degradeMessage(b, c)
	case *backends.Edit:
		if !c.Edits || b.Target == "" {
			return degradeMessage(prefixed("* ", &b.New), c)
		}
		return &backends.Edit{Target: b.Target, New: *degradeMessage(&b.New, c), Old: b.Old}
	case *backends.Reaction:
		return degradeReaction(b, c)
	case *backends.ChatInfo:
		return degradeInfo(b, c)
	case *backends.Member:
		if !c.Kicks && (b.Action == backends.Kicked || b.Action == backends.Banned || b.Action == backends.Unbanned) {
			return nil
		}
	case *backends.Removal:
		return degradeRemoval(b, c)
	case *backends.Typing:
		return only(c.Typing, body)
	case *backends.Read:
		return only(c.Reads, body)
	case *backends.RoleChange:
		return only(c.Gateway, body)
	}
	return body
}

func only(can bool, body backends.Body) backends.Body {
	if !can {
		return nil
	}
	return body
}

func degradeMessage(m *backends.Message, c backends.Capabilities) *backends.Message {
	out := *m
	if !c.Threads {
		out.Thread = ""
	}
	if q := out.ReplyTo; q != nil && !c.Replies {
		out.Text, out.ReplyTo = quoted(q, out.Text), nil
	}
	if !c.Files {
		out.Text, out.Files = withLinks(out.Text, out.Files), nil
	}
	if !c.Formatting {
		out.Text = richtext.Plain(out.Text.Plain())
	}
	return &out
}

// quoted puts a quotation before a text.
func quoted(q *backends.Quote, d richtext.Doc) richtext.Doc {
	if q.Text == "" {
		return d
	}
	quote := richtext.Plain("<" + firstOf(q.Sender.Name, q.Sender.Username, string(q.Sender.ID)) + "> " + q.Text)
	return append(richtext.Doc{{Kind: richtext.Quote, Children: quote}}, d...)
}

// withLinks puts links to files after a text.
func withLinks(d richtext.Doc, files []backends.File) richtext.Doc {
	d = append(richtext.Doc{}, d...)
	for _, f := range files {
		if len(d) > 0 {
			d = append(d, richtext.Node{Kind: richtext.Break})
		}
		if f.Name != "" {
			d = append(d, richtext.Node{Kind: richtext.Text, Text: fileName(f.Name) + ": "})
		}
		link := firstOf(f.URL, "(no link)")
		d = append(d, richtext.Node{Kind: richtext.Link, URL: f.URL, Children: richtext.Plain(link)})
	}
	return d
}

func prefixed(s string, m *backends.Message) *backends.Message {
	out := *m
	text := richtext.Node{Kind: richtext.Text, Text: s}
	if len(m.Text) > 0 && m.Text[0].Kind == richtext.Paragraph {
		first := m.Text[0]
		first.Children = append([]richtext.Node{text}, first.Children...)
		out.Text = append(richtext.Doc{first}, m.Text[1:]...)
		return &out
	}
	out.Text = append(richtext.Doc{text}, m.Text...)
	return &out
}

func degradeReaction(r *backends.Reaction, c backends.Capabilities) backends.Body {
	switch {
	case c.Reactions && r.Target != "":
		return r
	case r.Removed:
		return nil
	}
	text := "reacted with " + r.Key
	if r.Quote != nil && r.Quote.Text != "" {
		text += " to “" + r.Quote.Text + "”"
	}
	return &backends.Message{Kind: backends.Emote, Text: richtext.Plain(text)}
}

func degradeRemoval(r *backends.Removal, c backends.Capabilities) backends.Body {
	if c.Removals && r.Target != "" {
		return r
	}
	text := "removed a message"
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	return &backends.Message{Kind: backends.Emote, Text: richtext.Plain(text)}
}

func degradeInfo(i *backends.ChatInfo, c backends.Capabilities) backends.Body {
	out := *i
	if !c.Topic {
		out.Topic = nil
	}
	if !c.Name {
		out.Name = nil
	}
	if out.Topic == nil && out.Name == nil && out.Avatar == nil {
		return nil
	}
	return &out
}
