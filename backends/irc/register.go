package irc

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"gopkg.in/irc.v4"
	"mellium.im/sasl"

	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
)

// handler says when a message may be handled; dispatch checks it.
type handler struct {
	phases    phase
	minParams int
	run       func(*conn, *irc.Message)
}

// handlers of what concerns the connection itself.
var handlers map[string]handler

func init() {
	handlers = map[string]handler{
		"PING":         {registering | ready, 1, (*conn).handlePing},
		"PONG":         {ready, 1, (*conn).handlePong},
		"ERROR":        {registering | ready, 0, (*conn).handleClosing},
		"CAP":          {registering | ready, 3, (*conn).handleCap},
		"AUTHENTICATE": {registering, 1, (*conn).handleAuthenticate},
		"BATCH":        {ready, 1, (*conn).handleBatch},
		"NICK":         {registering | ready, 1, (*conn).handleNick},
		"JOIN":         {ready, 1, (*conn).handleOwnPrefix},
		"CHGHOST":      {ready, 2, (*conn).handleChghost},
		"PRIVMSG":      {ready, 2, (*conn).handleEcho},
		"NOTICE":       {ready, 2, (*conn).handleEcho},

		"001": {registering, 1, (*conn).handleWelcome},
		"005": {registering | ready, 3, (*conn).handleISupport},
		"376": {registering, 0, (*conn).handleReady}, // end of MOTD
		"422": {registering, 0, (*conn).handleReady}, // no MOTD
		"263": {ready, 2, (*conn).handleTryAgain},
		"396": {ready, 2, (*conn).handleHost},
		"903": {registering, 0, (*conn).handleLoggedIn},
		"902": {registering, 0, (*conn).handleLoginFailed},
		"904": {registering, 0, (*conn).handleLoginFailed},
		"905": {registering, 0, (*conn).handleLoginFailed},
		"906": {registering, 0, (*conn).handleLoginFailed},
		"908": {registering, 0, (*conn).handleLoginFailed},
		"432": {registering, 1, (*conn).handleNickRefused}, // erroneous
		"433": {registering, 1, (*conn).handleNickRefused}, // in use
		"436": {registering, 1, (*conn).handleNickRefused}, // collision
		"437": {registering, 1, (*conn).handleNickRefused}, // held back
		"464": {registering, 0, (*conn).handleRefused},     // wrong password
		"465": {registering, 0, (*conn).handleRefused},     // banned
	}
}

// wanted are the capabilities that we ask for if they are offered.
var wanted = []string{
	"account-notify", "account-tag", "away-notify", "batch", "cap-notify", "chghost", "echo-message", "extended-join",
	"invite-notify", "labeled-response", "message-tags", "multi-prefix", "sasl", "server-time", "setname", "userhost-in-names",
}

// fatalError ends a connection and means that trying again soon is useless.
type fatalError struct{ reason string }

func (e *fatalError) Error() string { return e.reason }

// errNoNick means that all nicks we tried are taken.
var errNoNick = errors.New("no free nick")

// register begins the registration: https://modern.ircdocs.horse/#connection-registration
func (c *conn) register() {
	c.write(ircmsg.New("CAP", "LS", "302"))
	if c.ident.password != "" {
		c.write(ircmsg.New("PASS", c.ident.password))
	}
	c.nick = c.ident.nick
	c.write(ircmsg.New("NICK", c.nick))
	c.write(ircmsg.New("USER", c.ident.username, "0", "*", realname(c.ident.realname)))
	c.after(registerTimeout, func() {
		if c.phase == registering {
			c.fail(errors.New("the server did not welcome us"))
		}
	})
}

// realname is never empty and fits any server.
func realname(s string) string {
	if s = ircmsg.Clean(s); s == "" {
		return "?"
	}
	head, _ := ircmsg.Cut(s, 100)
	return head
}

// fail ends the connection with err.
func (c *conn) fail(err error) {
	if c.failure == nil {
		c.failure = err
	}
}

func (c *conn) handlePing(m *irc.Message) {
	c.write(ircmsg.New("PONG", m.Params[len(m.Params)-1]))
}

func (c *conn) handleClosing(m *irc.Message) {
	c.goodbye = m.Trailing()
}

// handleCap negotiates: https://ircv3.net/specs/extensions/capability-negotiation
func (c *conn) handleCap(m *irc.Message) {
	list := strings.Fields(m.Trailing())
	switch strings.ToUpper(m.Params[1]) {
	case "LS":
		c.offer(list)
		if m.Params[2] != "*" && c.phase == registering {
			c.requestCaps()
		}
	case "NEW":
		c.offer(list)
		c.requestCaps()
	case "DEL":
		for _, name := range list {
			delete(c.offered, name)
			delete(c.caps, name)
		}
	case "ACK":
		for _, name := range list {
			if gone, ok := strings.CutPrefix(name, "-"); ok {
				delete(c.caps, gone)
			} else {
				c.caps[name] = true
			}
		}
		c.capsDecided()
	case "NAK":
		c.capsDecided()
	}
}

// maxOffered bounds what a server can make us remember.
const maxOffered = 256

func (c *conn) offer(list []string) {
	for _, item := range list {
		name, value, _ := strings.Cut(item, "=")
		if len(c.offered) < maxOffered {
			c.offered[name] = value
		}
	}
}

func (c *conn) requestCaps() {
	var names []string
	for _, name := range wanted {
		_, offered := c.offered[name]
		if offered && !c.caps[name] && (name != "sasl" || c.ident.sasl != nil) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		c.write(ircmsg.New("CAP", "REQ", strings.Join(names, " ")))
		return
	}
	c.capsDecided()
}

// capsDecided goes on with the login, or ends the negotiation.
func (c *conn) capsDecided() {
	if c.phase != registering {
		return
	}
	if c.ident.sasl != nil {
		if !c.caps["sasl"] {
			c.fail(&fatalError{"the server does not offer SASL"})
			return
		}
		c.write(ircmsg.New("AUTHENTICATE", c.ident.sasl.Mechanism))
		return
	}
	c.write(ircmsg.New("CAP", "END"))
}

// maxAuthChunk is the length of a piece of an AUTHENTICATE response
// (https://ircv3.net/specs/extensions/sasl-3.1#the-authenticate-command).
const maxAuthChunk = 400

// handleAuthenticate answers the server's challenge. PLAIN and EXTERNAL have only
// the empty one.
func (c *conn) handleAuthenticate(m *irc.Message) {
	if c.ident.sasl == nil || m.Params[0] != "+" {
		c.write(ircmsg.New("AUTHENTICATE", "*"))
		return
	}
	response, err := c.ident.sasl.response()
	if err != nil {
		c.fail(fmt.Errorf("SASL: %w", err))
		return
	}
	encoded := base64.StdEncoding.EncodeToString(response)
	for len(encoded) >= maxAuthChunk {
		c.write(ircmsg.New("AUTHENTICATE", encoded[:maxAuthChunk]))
		encoded = encoded[maxAuthChunk:]
	}
	if encoded == "" {
		encoded = "+"
	}
	c.write(ircmsg.New("AUTHENTICATE", encoded))
}

func (s *saslConfig) response() ([]byte, error) {
	if s.Mechanism == "EXTERNAL" { // RFC 4422, appendix A: the identity to act as, or nothing
		return []byte(s.Username), nil
	}
	client := sasl.NewClient(sasl.Plain, sasl.Credentials(func() (user, password, identity []byte) {
		return []byte(s.Username), []byte(s.Password), nil
	}))
	_, response, err := client.Step(nil)
	return response, err
}

func (c *conn) handleLoggedIn(*irc.Message) { c.write(ircmsg.New("CAP", "END")) }

func (c *conn) handleLoginFailed(m *irc.Message) {
	c.fail(&fatalError{"login failed: " + m.Trailing()})
}

func (c *conn) handleRefused(m *irc.Message) { c.fail(&fatalError{m.Trailing()}) }

// handleNickRefused tries the next nick.
func (c *conn) handleNickRefused(*irc.Message) {
	c.clashes++
	if c.clashes > maxNickTries {
		c.fail(errNoNick)
		return
	}
	limit := c.ident.nickLen
	if c.clashes > maxNickTries/2 { // perhaps the server cuts our suffix off
		limit = min(limit, 9)
	}
	c.nick = nickTry(c.ident.nick, c.clashes, limit)
	c.write(ircmsg.New("NICK", c.nick))
}

// handleWelcome learns the nick that we really got: servers cut long ones.
func (c *conn) handleWelcome(m *irc.Message) { c.nick = m.Params[0] }

func (c *conn) handleISupport(m *irc.Message) { c.isupport.Apply(m) }

func (c *conn) handleReady(*irc.Message) {
	c.phase = ready
	if mode, ok := c.isupport.Get("BOT"); ok && c.ident.bot && len(mode) == 1 {
		c.write(ircmsg.New("MODE", c.nick, "+"+mode))
	}
	c.log.Info("registered with the server", "nick", c.nick, "caps", len(c.caps))
	c.owner.registered(c)
}

func (c *conn) handleNick(m *irc.Message) {
	if !c.isMe(m) {
		return
	}
	was := c.nick
	c.nick = m.Params[0]
	if c.phase == ready {
		c.owner.renamed(c, was)
	}
}

// handleOwnPrefix learns how others see us.
func (c *conn) handleOwnPrefix(m *irc.Message) {
	if c.isMe(m) && m.Prefix.Host != "" {
		c.user, c.host = m.Prefix.User, m.Prefix.Host
	}
}

func (c *conn) handleChghost(m *irc.Message) {
	if c.isMe(m) {
		c.user, c.host = m.Params[0], m.Params[1]
	}
}

// handleHost is RPL_VISIBLEHOST: "396 nick [user@]host :is now your visible host".
func (c *conn) handleHost(m *irc.Message) {
	user, host, ok := strings.Cut(m.Params[1], "@")
	if !ok {
		user, host = c.user, user
	}
	if user != "" {
		c.user, c.host = user, host
	}
}

// maxBatches bounds what a server can make us remember.
const maxBatches = 64

func (c *conn) handleBatch(m *irc.Message) {
	ref := m.Params[0]
	switch {
	case strings.HasPrefix(ref, "-"):
		delete(c.batches, ref[1:])
	case strings.HasPrefix(ref, "+") && len(m.Params) > 1 && len(c.batches) < maxBatches:
		c.batches[ref[1:]] = batch{kind: m.Params[1], label: m.Tags["label"]}
	}
}
