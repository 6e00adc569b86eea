package ircd

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"

	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
)

// caps is a set of capabilities.
type caps uint32

const (
	capMessageTags caps = 1 << iota
	capServerTime
	capBatch
	capEchoMessage
	capLabeledResponse
	capAccountTag
	capExtendedJoin
	capMultiPrefix
	capUserhostInNames
	capAwayNotify
	capInviteNotify
	capNoImplicitNames
	capSASL
	capChatHistory
	capRedaction
	capCapNotify
)

// capabilities in the order of CAP LS. Value is for clients that know 302.
var capabilities = []struct {
	name  string
	bit   caps
	value string
}{
	{"account-tag", capAccountTag, ""},
	{"away-notify", capAwayNotify, ""},
	{"batch", capBatch, ""},
	{"cap-notify", capCapNotify, ""},
	{"draft/chathistory", capChatHistory, ""},
	{"draft/message-redaction", capRedaction, ""},
	{"draft/no-implicit-names", capNoImplicitNames, ""},
	{"echo-message", capEchoMessage, ""},
	{"extended-join", capExtendedJoin, ""},
	{"invite-notify", capInviteNotify, ""},
	{"labeled-response", capLabeledResponse, ""},
	{"message-tags", capMessageTags, ""},
	{"multi-prefix", capMultiPrefix, ""},
	{"sasl", capSASL, "PLAIN"},
	{"server-time", capServerTime, ""},
	{"userhost-in-names", capUserhostInNames, ""},
}

func (c caps) has(all caps) bool { return c&all == all }

// registration is what a client has told so far.
type registration struct {
	negotiating bool // between CAP LS or REQ and CAP END
	version302  bool
	nick        string
	user        string
	pass        string
	sasl        *strings.Builder // the response so far, nil outside of AUTHENTICATE
	failures    int
	account     *backends.User // logged in
}

// maxFailures is how many wrong passwords end a connection.
const maxFailures = 3

// handleCap negotiates capabilities.
//
// Spec: https://ircv3.net/specs/extensions/capability-negotiation
func (s *session) handleCap(_ context.Context, m *irc.Message) error {
	sub := strings.ToUpper(m.Params[0])
	switch sub {
	case "LS":
		s.reg.version302 = s.reg.version302 || len(m.Params) > 1 && len(m.Params[1]) == 3 && m.Params[1] >= "302"
		s.reg.negotiating = !s.ready.Load()
		s.send(s.fromServer("CAP", s.nick, "LS", s.capList(^caps(0), s.reg.version302)))
	case "LIST":
		s.send(s.fromServer("CAP", s.nick, "LIST", s.capList(s.caps, false)))
	case "REQ":
		s.reg.negotiating = !s.ready.Load()
		s.capRequest(m.Trailing())
	case "END":
		if s.reg.negotiating {
			s.reg.negotiating = false
			return s.tryWelcome()
		}
	default:
		return refuse("410", sub, "Invalid CAP command")
	}
	return nil
}

func (s *session) capList(of caps, values bool) string {
	var list []string
	for _, c := range capabilities {
		if !of.has(c.bit) {
			continue
		}
		name := c.name
		if values && c.value != "" {
			name += "=" + c.value
		}
		list = append(list, name)
	}
	return strings.Join(list, " ")
}

// capRequest takes all that is asked for, or nothing.
func (s *session) capRequest(list string) {
	now := s.caps
	for name := range strings.FieldsSeq(list) {
		name, off := strings.CutPrefix(name, "-")
		i := slices.IndexFunc(capabilities, func(c struct {
			name  string
			bit   caps
			value string
		}) bool {
			return c.name == name
		})
		switch {
		case i < 0:
			s.send(s.fromServer("CAP", s.nick, "NAK", list))
			return
		case off:
			now &^= capabilities[i].bit
		default:
			now |= capabilities[i].bit
		}
	}
	s.n.mu.Lock()
	s.caps = now
	s.n.mu.Unlock()
	s.send(s.fromServer("CAP", s.nick, "ACK", list))
}

// handlePass keeps the password until NICK and USER are known.
//
// Spec: https://modern.ircdocs.horse/#pass-message
func (s *session) handlePass(_ context.Context, m *irc.Message) error {
	if s.ready.Load() {
		return refuse(irc.ERR_ALREADYREGISTERED, "You may not reregister")
	}
	s.reg.pass = m.Trailing()
	return nil
}

// handleUser takes the username; the real name is not used, since the host knows
// those of accounts and guests are their nicks.
//
// Spec: https://modern.ircdocs.horse/#user-message
func (s *session) handleUser(_ context.Context, m *irc.Message) error {
	if s.ready.Load() {
		return refuse(irc.ERR_ALREADYREGISTERED, "You may not reregister")
	}
	if m.Params[0] == "" {
		return refuse(irc.ERR_NEEDMOREPARAMS, "USER", "Not enough parameters")
	}
	s.reg.user = m.Params[0]
	return s.tryWelcome()
}

// handleNick takes or changes a nick.
//
// Spec: https://modern.ircdocs.horse/#nick-message
func (s *session) handleNick(ctx context.Context, m *irc.Message) error {
	if len(m.Params) == 0 || m.Params[0] == "" {
		return refuse(irc.ERR_NONICKNAMEGIVEN, "No nickname given")
	}
	nick := m.Params[0]
	if !validNick(nick) {
		return refuse(irc.ERR_ERRONEUSNICKNAME, nick, "Erroneous nickname")
	}
	if s.ready.Load() {
		return s.changeNick(ctx, nick)
	}
	s.reg.nick = nick
	return s.tryWelcome()
}

var errWrongPassword = errors.New("wrong name or password")

// authenticate logs in. It returns errWrongPassword if the host says so.
func (s *session) authenticate(name, password string) error {
	ctx, cancel := context.WithTimeout(s.n.ctx, hostTimeout)
	defer cancel()
	user, err := s.n.rooms.Authenticate(ctx, name, password)
	if r, ok := errors.AsType[*backends.Refusal](err); ok && r.Code == backends.RefusedUnauthorized {
		return errWrongPassword
	}
	if err != nil {
		return err
	}
	s.reg.account = user
	return nil
}

// handleAuthenticate does SASL PLAIN, before registration ends.
//
// Spec: https://ircv3.net/specs/extensions/sasl-3.2
func (s *session) handleAuthenticate(_ context.Context, m *irc.Message) error {
	arg := m.Params[0]
	switch {
	case !s.caps.has(capSASL):
		return refuse(numericSASLFail, "SASL authentication failed: request the capability first")
	case s.ready.Load() || s.reg.account != nil:
		return refuse(numericSASLAlready, "You have already authenticated, or are registered")
	case arg == "*":
		s.reg.sasl = nil
		return refuse(numericSASLAborted, "SASL authentication aborted")
	case s.reg.sasl != nil:
		return s.saslChunk(arg)
	case strings.ToUpper(arg) != "PLAIN":
		s.reply(numericSASLMechs, "PLAIN", "are available SASL mechanisms")
		return refuse(numericSASLFail, "SASL authentication failed")
	}
	s.reg.sasl = new(strings.Builder)
	s.send(s.fromServer("AUTHENTICATE", "+"))
	return nil
}

// maxSASL bounds a SASL response, in base64 characters.
const maxSASL = 4000

// saslChunk collects a response: a chunk of less than 400 bytes is the last.
func (s *session) saslChunk(chunk string) error {
	if len(chunk) > 400 || s.reg.sasl.Len()+len(chunk) > maxSASL {
		s.reg.sasl = nil
		return refuse(numericSASLTooLong, "SASL message too long")
	}
	if chunk != "+" {
		s.reg.sasl.WriteString(chunk)
	}
	if len(chunk) == 400 {
		return nil
	}
	response := s.reg.sasl.String()
	s.reg.sasl = nil
	return s.saslPlain(response)
}

// saslPlain checks a response of PLAIN (RFC 4616). Speaking for someone else is not
// possible, so the authorisation identity must be empty or the same.
func (s *session) saslPlain(response string) error {
	b, err := base64.StdEncoding.DecodeString(response)
	parts := strings.Split(string(b), "\x00")
	if err != nil || len(parts) != 3 || parts[1] == "" || parts[0] != "" && parts[0] != parts[1] {
		return refuse(numericSASLFail, "SASL authentication failed: malformed response")
	}
	err = s.authenticate(parts[1], parts[2])
	if errors.Is(err, errWrongPassword) {
		s.reply(numericSASLFail, "SASL authentication failed: wrong name or password")
		s.failed()
		return nil
	}
	if err != nil {
		s.n.log.Warn("irc login could not be checked", "err", err)
		return refuse(numericSASLFail, "SASL authentication failed: try again later")
	}
	s.loggedIn()
	s.reply(numericSASLSuccess, "SASL authentication successful")
	return nil
}

// failed counts a wrong password.
func (s *session) failed() {
	if s.reg.failures++; s.reg.failures >= maxFailures {
		s.end("Too many wrong passwords")
	}
}

func (s *session) loggedIn() {
	u := s.reg.account
	s.n.mu.Lock()
	mask := s.n.people.mask(s.n.people.look(*u))
	s.n.mu.Unlock()
	s.reply(numericLoggedIn, mask, accountName(*u), "You are now logged in as "+u.Username)
}

// candidates lists the names and passwords that a PASS may mean: "name:password", or
// a password alone, of the account that NICK or USER names.
func (r *registration) candidates() [][2]string {
	var list [][2]string
	at := strings.IndexByte(r.pass, ':')
	if at > 0 && r.pass[0] == '@' { // a full ID has a colon of its own
		if next := strings.IndexByte(r.pass[at+1:], ':'); next >= 0 {
			at += 1 + next
		}
	}
	if at > 0 {
		list = append(list, [2]string{r.pass[:at], r.pass[at+1:]})
	}
	list = append(list, [2]string{r.nick, r.pass})
	if r.user != r.nick {
		list = append(list, [2]string{r.user, r.pass})
	}
	return list
}

// tryWelcome ends registration once all is known.
func (s *session) tryWelcome() error {
	if s.reg.nick == "" || s.reg.user == "" || s.reg.negotiating {
		return nil
	}
	if s.reg.pass != "" && s.reg.account == nil {
		if !s.tryPass() {
			return nil
		}
	}
	if s.reg.account == nil && !s.n.guests {
		s.reply(irc.ERR_PASSWDMISMATCH, "Log in with an account: by SASL, or with its password as the server's")
		s.end("An account is needed")
		return nil
	}
	if err := s.takeNick(); err != nil {
		s.reg.nick = ""
		return err
	}
	s.reg = registration{version302: s.reg.version302, account: s.reg.account}
	s.welcome()
	return nil
}

// tryPass logs in with PASS, or ends the connection.
func (s *session) tryPass() bool {
	for _, c := range s.reg.candidates() {
		err := s.authenticate(c[0], c[1])
		if err == nil {
			s.loggedIn()
			return true
		}
		if !errors.Is(err, errWrongPassword) {
			s.n.log.Warn("irc login could not be checked", "err", err)
			s.end("The password could not be checked, try again later")
			return false
		}
	}
	s.reply(irc.ERR_PASSWDMISMATCH, "Wrong name or password")
	s.end("Wrong name or password")
	return false
}

// takeNick gives the session its person. A guest's nick must be free; an account
// has its own.
func (s *session) takeNick() error {
	if s.reg.account != nil {
		s.n.mu.Lock()
		defer s.n.mu.Unlock()
		p := s.n.people.meet(*s.reg.account)
		p.user = *s.reg.account
		s.n.reclaim(p)
		s.settle(p)
		return nil
	}
	nick := s.reg.nick
	if err := s.n.reserved(nick); err != nil {
		return err
	}
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	if !s.n.people.freeFor(nick, nil) {
		return refuse(irc.ERR_NICKNAMEINUSE, nick, "Nickname is already in use")
	}
	guest := backends.User{ID: backends.UserID(fold(nick)), Name: nick}
	p := s.n.people.meet(guest)
	p.user = guest        // of a leftover the host may have told us more
	s.n.showNick(p, nick) // a leftover may have been called something else
	s.settle(p)
	return nil
}

// settle makes the session one of p's. The caller holds n.mu.
func (s *session) settle(p *person) {
	s.person = p
	s.nick = p.nick
	p.sessions = append(p.sessions, s)
}

// freeFor reports whether guest p (nil: a new one) may take nick: nobody else has
// it, and no guest who is connected came with it.
func (t *people) freeFor(nick string, p *person) bool {
	for _, holder := range []*person{t.byNick[fold(nick)], t.byKey[guestKey(fold(nick))]} {
		leftover := p == nil && holder != nil && holder.key == guestKey(fold(nick)) && len(holder.sessions) == 0
		if holder != nil && holder != p && !leftover {
			return false
		}
	}
	return true
}

// reclaim gives an account of the host its own nick back if someone of another
// server has it. The caller holds n.mu.
func (n *network) reclaim(p *person) {
	want := nickOf(p.user)
	other := n.people.byNick[fold(want)]
	if other == p || other != nil && (len(other.sessions) > 0 || !other.guest() && other.user.Domain == p.user.Domain) {
		return
	}
	if other != nil {
		// Their own name is taken by p for freeNick's purposes.
		n.showNick(other, n.people.freeNick(backends.User{Username: want, Domain: other.user.Domain}, nil))
	}
	if len(p.channels) > 0 || len(p.sessions) > 0 {
		n.showNick(p, want)
		return
	}
	n.people.rename(p, want)
}

// reserved refuses a nick that is an account's of the host.
func (n *network) reserved(nick string) error {
	ctx, cancel := context.WithTimeout(n.ctx, hostTimeout)
	defer cancel()
	_, err := n.rooms.Whois(ctx, fold(nick), "")
	if err == nil {
		return refuse(irc.ERR_NICKNAMEINUSE, nick, "Nickname belongs to an account: log in with its password")
	}
	if r, ok := errors.AsType[*backends.Refusal](err); ok && r.Code == backends.RefusedNotFound {
		return nil
	}
	n.log.Warn("irc nick could not be checked", "err", err)
	return refuse("437", nick, "Nickname is temporarily unavailable")
}

// changeNick renames a guest.
func (s *session) changeNick(ctx context.Context, nick string) error {
	if s.reg.account != nil {
		if nick == s.nick {
			return nil
		}
		return refuse(numericCantChangeNick, nick, "Your nickname is your account's: "+s.nick)
	}
	if fold(nick) != fold(s.nick) {
		if err := s.n.reserved(nick); err != nil {
			return err
		}
	}
	s.n.mu.Lock()
	p := s.person
	if !s.n.people.freeFor(nick, p) {
		s.n.mu.Unlock()
		return refuse(irc.ERR_NICKNAMEINUSE, nick, "Nickname is already in use")
	}
	s.n.showNick(p, nick)
	p.user.Name, s.nick = nick, nick
	for _, a := range s.joined {
		a.user.Name = nick
	}
	a := s.anywhere()
	s.n.mu.Unlock()
	if a == nil {
		return nil // the host will learn it with the next event
	}
	ev := s.event(a, nil)
	ev.Body = &backends.Profile{User: ev.Sender}
	return s.tell(ctx, ev, "The host did not take the new nickname")
}

// anywhere returns one of the session's channels, for what is not about one of
// them; nil if it is in none. The caller holds n.mu.
func (s *session) anywhere() *attendance {
	for _, a := range s.joined {
		return a
	}
	return nil
}
