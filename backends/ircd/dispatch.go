package ircd

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
)

// phase of a session.
type phase uint8

const (
	registering phase = 1 << iota
	ready
)

// command says when a handler may run; dispatch checks it, so handlers need not.
type command struct {
	phases    phase
	minParams int
	run       func(*session, context.Context, *irc.Message) error
}

var commands = map[string]command{
	"ADMIN":        {ready, 0, (*session).handleAdmin},
	"AUTHENTICATE": {registering | ready, 1, (*session).handleAuthenticate},
	"AWAY":         {ready, 0, (*session).handleAway},
	"CAP":          {registering | ready, 1, (*session).handleCap},
	"CHATHISTORY":  {ready, 4, (*session).handleChatHistory},
	"INFO":         {ready, 0, (*session).handleInfo},
	"INVITE":       {ready, 2, (*session).handleInvite},
	"ISON":         {ready, 1, (*session).handleIson},
	"JOIN":         {ready, 1, (*session).handleJoin},
	"KICK":         {ready, 2, (*session).handleKick},
	"LIST":         {ready, 0, (*session).handleList},
	"LUSERS":       {ready, 0, (*session).handleLusers},
	"MODE":         {ready, 1, (*session).handleMode},
	"MOTD":         {ready, 0, (*session).handleMotd},
	"NAMES":        {ready, 1, (*session).handleNames},
	"NICK":         {registering | ready, 0, (*session).handleNick},
	"NOTICE":       {ready, 0, (*session).handleMessage},
	"PART":         {ready, 1, (*session).handlePart},
	"PASS":         {registering | ready, 1, (*session).handlePass},
	"PING":         {registering | ready, 1, (*session).handlePing},
	"PONG":         {registering | ready, 0, func(*session, context.Context, *irc.Message) error { return nil }},
	"PRIVMSG":      {ready, 0, (*session).handleMessage},
	"QUIT":         {registering | ready, 0, (*session).handleQuit},
	"REDACT":       {ready, 2, (*session).handleRedact},
	"TAGMSG":       {ready, 1, (*session).handleTagMsg},
	"TIME":         {ready, 0, (*session).handleTime},
	"TOPIC":        {ready, 1, (*session).handleTopic},
	"USER":         {registering | ready, 4, (*session).handleUser},
	"USERHOST":     {ready, 1, (*session).handleUserhost},
	"VERSION":      {ready, 0, (*session).handleVersion},
	"WHO":          {ready, 1, (*session).handleWho},
	"WHOIS":        {ready, 1, (*session).handleWhois},
	"WHOWAS":       {ready, 1, (*session).handleWhowas},
}

// Numerics that irc.v4 does not name.
const (
	numericInputTooLong   = "417"
	numericWhoisAccount   = "330"
	numericWhoisSecure    = "671"
	numericWhoisBot       = "335"
	numericTopicWhoTime   = "333"
	numericWhoSpecial     = "354"
	numericCantChangeNick = "447"
	numericLinkChannel    = "470"
	numericLoggedIn       = "900"
	numericSASLSuccess    = "903"
	numericSASLFail       = "904"
	numericSASLTooLong    = "905"
	numericSASLAborted    = "906"
	numericSASLAlready    = "907"
	numericSASLMechs      = "908"
	numericUnknownError   = "400"
)

// numeric is an error that the protocol can express: the reply to send. The
// client's nick is put before its parameters.
type numeric struct {
	code   string
	params []string
}

func (e *numeric) Error() string { return e.code + " " + strings.Join(e.params, " ") }

func refuse(code string, params ...string) error { return &numeric{code, params} }

// dispatch runs a command and answers what went wrong.
func (s *session) dispatch(m *irc.Message) {
	name := strings.ToUpper(m.Command)
	s.begin(m)
	defer s.conclude()
	if err := s.run(name, m); err != nil {
		s.fail(name, err)
	}
}

func (s *session) run(name string, m *irc.Message) error {
	c, ok := commands[name]
	now := registering
	if s.ready.Load() {
		now = ready
	}
	switch {
	case !ok && now == registering, ok && now == registering && c.phases&now == 0:
		return refuse(irc.ERR_NOTREGISTERED, "You have not registered")
	case !ok:
		return refuse(irc.ERR_UNKNOWNCOMMAND, name, "Unknown command")
	case c.phases&now == 0:
		return refuse(irc.ERR_ALREADYREGISTERED, "You may not reregister")
	case len(m.Params) < c.minParams:
		return refuse(irc.ERR_NEEDMOREPARAMS, name, "Not enough parameters")
	}
	return c.run(s, s.n.ctx, m)
}

// fail tells the client of an error of a handler.
func (s *session) fail(command string, err error) {
	if e, ok := errors.AsType[*numeric](err); ok {
		s.reply(e.code, e.params...)
		return
	}
	if r, ok := errors.AsType[*backends.Refusal](err); ok {
		s.reply(numericUnknownError, command, r.Message)
		return
	}
	s.n.log.Error("irc command failed", "command", command, "err", err)
	s.reply(numericUnknownError, command, "Internal error")
}

// reply sends a numeric.
func (s *session) reply(code string, params ...string) {
	s.send(s.fromServer(code, append([]string{s.nick}, params...)...))
}

func (s *session) fromServer(command string, params ...string) *irc.Message {
	return s.n.fromServer(command, params...)
}

func (n *network) fromServer(command string, params ...string) *irc.Message {
	m := ircmsg.New(command, params...)
	m.Prefix.Name = n.cfg.ServerName
	return m
}

// send sends a message, as part of the answer if a labelled command runs. It waits
// while much is queued, so it is for the reader, without n.mu.
func (s *session) send(m *irc.Message) {
	if s.answer != nil {
		s.answer.messages = append(s.answer.messages, m)
		return
	}
	s.emit(m)
}

func (s *session) emit(m *irc.Message) {
	s.out.wait(s.ctx)
	s.put(compose(m))
}

// answer collects what a labelled command is answered with
// (https://ircv3.net/specs/extensions/labeled-response).
type answer struct {
	label    string
	messages []*irc.Message
	deferred bool // an echo or a receipt will carry the label
}

func (s *session) begin(m *irc.Message) {
	label := m.Tags["label"]
	if label == "" || len(label) > 64 || !s.caps.has(capLabeledResponse|capBatch) {
		return
	}
	s.answer = &answer{label: label}
}

// conclude sends the collected answer: ACK if there is none, a batch if it has
// several messages.
func (s *session) conclude() {
	a := s.answer
	if s.answer = nil; a == nil || a.deferred && len(a.messages) == 0 {
		return
	}
	switch len(a.messages) {
	case 0:
		a.messages = []*irc.Message{s.fromServer("ACK")}
		fallthrough
	case 1:
		if !a.deferred {
			setTag(a.messages[0], "label", a.label)
		}
		s.emit(a.messages[0])
		return
	}
	ref := s.batchRef()
	start := s.fromServer("BATCH", "+"+ref, "labeled-response")
	if !a.deferred {
		setTag(start, "label", a.label)
	}
	s.emit(start)
	for _, m := range a.messages {
		if m.Tags["batch"] == "" {
			setTag(m, "batch", ref)
		}
		s.emit(m)
	}
	s.emit(s.fromServer("BATCH", "-"+ref))
}

func (s *session) batchRef() string {
	s.refs++
	return "b" + strconv.FormatUint(s.refs, 36)
}

func setTag(m *irc.Message, key, value string) {
	if m.Tags == nil {
		m.Tags = irc.Tags{}
	}
	m.Tags[key] = value
}

// hostTimeout bounds what we ask of the host on behalf of a client.
const hostTimeout = 30 * time.Second

func containsSpace(s string) bool { return strings.IndexByte(s, ' ') >= 0 }

// word makes s fit for a place in a prefix.
func word(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r == '!' || r == '@' || r == 0x7f {
			return '_'
		}
		return r
	}, strings.ToValidUTF8(s, "_"))
}
