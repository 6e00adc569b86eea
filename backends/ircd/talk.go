package ircd

import (
	"context"
	"strings"
	"time"

	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc/ircfmt"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

// maxTargets is how many targets one PRIVMSG may have (TARGMAX).
const maxTargets = 4

// handleMessage is PRIVMSG and NOTICE.
//
// Departs from RFC 1459 §4.4.2: a NOTICE that cannot be delivered is answered
// too, since otherwise it would be lost without a word.
//
// Spec: https://modern.ircdocs.horse/#privmsg-message
func (s *session) handleMessage(ctx context.Context, m *irc.Message) error {
	switch {
	case len(m.Params) == 0 || m.Params[0] == "":
		return refuse(irc.ERR_NORECIPIENT, "No recipient given ("+strings.ToUpper(m.Command)+")")
	case len(m.Params) < 2 || m.Params[1] == "":
		return refuse(irc.ERR_NOTEXTTOSEND, "No text to send")
	}
	targets := strings.Split(m.Params[0], ",")
	if len(targets) > maxTargets {
		return refuse(irc.ERR_TOOMANYTARGETS, m.Params[0], "Too many targets")
	}
	s.n.mu.Lock()
	s.spoke = time.Now()
	s.n.mu.Unlock()
	for _, target := range targets {
		if err := s.say(ctx, target, m); err != nil {
			s.fail(strings.ToUpper(m.Command), err)
		}
	}
	return nil
}

// say sends a message to one target.
func (s *session) say(ctx context.Context, target string, m *irc.Message) error {
	if !strings.HasPrefix(target, "#") {
		return s.whisper(target, m)
	}
	a, err := s.attending(target)
	if err != nil {
		return refuse(irc.ERR_CANNOTSENDTOCHAN, orStar(target), "Cannot send: you are not on that channel")
	}
	msg, err := s.message(a, m)
	if err != nil {
		return err
	}
	return s.deliver(ctx, a, msg, m.Tags["label"], m.Params[1])
}

// message makes a message of a line. A CTCP ACTION is an emote; nothing else of
// CTCP has a meaning in a room.
func (s *session) message(a *attendance, m *irc.Message) (*backends.Message, error) {
	msg, text := &backends.Message{}, m.Params[1]
	if strings.ToUpper(m.Command) == "NOTICE" {
		msg.Kind = backends.Notice
	}
	if request, rest, ok := ircmsg.ParseCTCP(text); ok {
		if request != "ACTION" {
			return nil, refuse(irc.ERR_CANNOTSENDTOCHAN, a.channel.name, "Cannot send: CTCP "+request+" means nothing in a room")
		}
		msg.Kind, text = backends.Emote, rest
	}
	msg.Text = s.addressed(a, ircfmt.Parse(text))
	if id := replyTag(m.Tags); id != "" {
		msg.ReplyTo = &backends.Quote{ID: id}
	}
	return msg, nil
}

// replyTag returns the message that a client says its own replies to
// (https://ircv3.net/specs/client-tags/reply).
func replyTag(tags irc.Tags) backends.MessageID {
	for _, key := range []string{"+reply", "+draft/reply"} {
		if id := tags[key]; id != "" {
			return wholeID(id)
		}
	}
	return ""
}

// wholeID returns the message that a line with a msgid is of: messageID undone.
func wholeID(msgid string) backends.MessageID {
	i := strings.LastIndexByte(msgid, '~')
	if i > 0 && strings.Trim(msgid[i+1:], "0123456789") == "" && i+1 < len(msgid) {
		msgid = msgid[:i]
	}
	return backends.MessageID(msgid)
}

// addressed makes a mention of the nick at the start of "nick: text".
func (s *session) addressed(a *attendance, d richtext.Doc) richtext.Doc {
	if len(d) == 0 || d[0].Kind != richtext.Text {
		return d
	}
	end := strings.IndexAny(d[0].Text, ":, ")
	if end <= 0 || d[0].Text[end] == ' ' {
		return d
	}
	nick, rest := d[0].Text[:end], d[0].Text[end:]
	user, _, err := s.member(a, nick)
	if err != nil {
		return d
	}
	who := string(user.ID)
	if who == "" {
		who = string(user.Account)
	}
	if who == "" {
		return d
	}
	mention := richtext.Node{Kind: richtext.Mention, User: who, Children: richtext.Doc{{Kind: richtext.Text, Text: nick}}}
	return append(richtext.Doc{mention, {Kind: richtext.Text, Text: rest}}, d[1:]...)
}

// deliver hands a message to the host, and tells the client if it is refused: with
// 404 and a notice that quotes it.
func (s *session) deliver(ctx context.Context, a *attendance, body backends.Body, label, text string) error {
	ev := s.event(a, body)
	s.await(ev.ID, label)
	err := s.n.host.Deliver(ctx, ev, func(r backends.Receipt) { s.receipt(a, ev.ID, text, r.Err) })
	if err != nil {
		s.receipt(a, ev.ID, text, &backends.Refusal{Code: backends.RefusedUnavailable, Message: "the server is not available"})
	}
	return nil
}

// await keeps the label of a message until its echo or receipt comes.
func (s *session) await(id backends.MessageID, label string) {
	if s.answer == nil || label == "" {
		return
	}
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	if len(s.awaiting) < maxAwaiting {
		s.awaiting[id] = label
		s.answer.deferred = true
	}
}

// receipt tells the client what became of its message. A label is answered by the
// echo if there will be one, else here.
func (s *session) receipt(a *attendance, id backends.MessageID, text string, refusal *backends.Refusal) {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	label := s.awaiting[id]
	if refusal == nil {
		if label != "" && !s.caps.has(capEchoMessage) {
			delete(s.awaiting, id)
			s.putLabelled(label, s.n.fromServer("ACK"))
		}
		return
	}
	delete(s.awaiting, id)
	nick := s.person.nick
	s.putLabelled(label, s.n.fromServer(irc.ERR_CANNOTSENDTOCHAN, nick, a.channel.name, "Cannot send: "+refusal.Message))
	start, rest := ircmsg.Cut(ircfmt.Strip(text), 80)
	if rest != "" {
		start += "…"
	}
	s.put(compose(s.n.fromServer("NOTICE", nick, "Not delivered to "+a.channel.name+": "+refusal.Message+" (your message was: "+start+")")))
}

func (s *session) putLabelled(label string, m *irc.Message) {
	if label != "" {
		setTag(m, "label", label)
	}
	s.put(compose(m))
}

// whisper passes a private message to a client of this listener. Nobody else can
// be written to: a private message into the rooms would need a room of its own.
func (s *session) whisper(target string, m *irc.Message) error {
	answers, err := s.passOn(target, m)
	for _, m := range answers {
		s.send(m)
	}
	return err
}

func (s *session) passOn(target string, m *irc.Message) (answers []*irc.Message, err error) {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	p := s.n.people.byNick[fold(target)]
	switch {
	case p == nil:
		return nil, refuse(irc.ERR_NOSUCHNICK, orStar(target), "No such nick")
	case len(p.sessions) == 0:
		return nil, refuse(irc.ERR_NOSUCHNICK, p.nick, "Not delivered: "+p.nick+" is not connected by IRC, and private messages go to IRC users only")
	}
	o := s.n.from(s.person, time.Time{}, strings.ToUpper(m.Command), append([]string{p.nick}, m.Params[1:]...)...)
	o.id, o.client = s.nextID(), clientTags(m.Tags)
	if o.message.Command == "TAGMSG" {
		o.needs = capMessageTags
	}
	for _, to := range p.sessions {
		if to.caps.has(o.needs) {
			to.put(o.line(to.caps))
		}
	}
	if s.caps.has(capEchoMessage) && s.caps.has(o.needs) {
		answers = append(answers, o.with(s.caps))
	}
	if p.away != "" && o.message.Command == "PRIVMSG" {
		answers = append(answers, s.fromServer(irc.RPL_AWAY, s.nick, p.nick, p.away))
	}
	return answers, nil
}

// clientTags returns the tags that clients see of each other's.
func clientTags(tags irc.Tags) irc.Tags {
	out := irc.Tags{}
	for k, v := range tags {
		if strings.HasPrefix(k, "+") {
			out[k] = v
		}
	}
	return out
}

// handleTagMsg takes typing and reactions.
//
// Spec: https://ircv3.net/specs/extensions/message-tags#the-tagmsg-tag-only-message,
// https://ircv3.net/specs/client-tags/react
func (s *session) handleTagMsg(ctx context.Context, m *irc.Message) error {
	if !s.caps.has(capMessageTags) {
		return refuse(irc.ERR_UNKNOWNCOMMAND, "TAGMSG", "Unknown command")
	}
	if !strings.HasPrefix(m.Params[0], "#") {
		return s.whisper(m.Params[0], &irc.Message{Tags: m.Tags, Command: "TAGMSG", Params: m.Params[:1]})
	}
	a, err := s.attending(m.Params[0])
	if err != nil {
		return err
	}
	if state, ok := m.Tags["+typing"]; ok {
		ev := s.event(a, &backends.Typing{On: state == "active"})
		ev.ID = ""
		if err := s.n.host.Deliver(ctx, ev, nil); err != nil {
			return err
		}
	}
	target := replyTag(m.Tags)
	for _, tag := range []string{"+draft/react", "+draft/unreact"} {
		if reaction := m.Tags[tag]; reaction != "" && target != "" {
			body := &backends.Reaction{Target: target, Key: reaction, Removed: tag == "+draft/unreact"}
			return s.deliver(ctx, a, body, m.Tags["label"], reaction)
		}
	}
	return nil
}

// handleRedact deletes a message.
//
// Spec: https://ircv3.net/specs/extensions/message-redaction
func (s *session) handleRedact(ctx context.Context, m *irc.Message) error {
	if !s.caps.has(capRedaction) {
		return refuse(irc.ERR_UNKNOWNCOMMAND, "REDACT", "Unknown command")
	}
	a, err := s.attending(m.Params[0])
	if err != nil {
		s.send(s.fromServer("FAIL", "REDACT", "INVALID_TARGET", orStar(m.Params[0]), "You cannot delete messages there"))
		return nil
	}
	reason := ""
	if len(m.Params) > 2 {
		reason = m.Params[2]
	}
	msgid := m.Params[1]
	ev := s.event(a, &backends.Removal{Target: wholeID(msgid), Reason: reason})
	return s.tellOr(ctx, ev, func(why string) *irc.Message {
		// The nick that tellOr puts first is of no use to FAIL.
		return s.n.fromServer("NOTICE", "", "Message "+msgid+" in "+a.channel.name+" was not deleted: "+why)
	})
}
