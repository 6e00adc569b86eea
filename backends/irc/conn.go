package irc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"golang.org/x/time/rate"
	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
)

// Times of a connection.
const (
	writeTimeout    = 30 * time.Second
	registerTimeout = 90 * time.Second
	keepalive       = 60 * time.Second  // of silence, before a PING
	deadAfter       = 120 * time.Second // of silence
)

// maxQueued is how many lines may wait to be written before more are not taken.
const maxQueued = 128

// phase of a connection.
type phase int

const (
	registering phase = 1 << iota
	ready
)

// errClosed is why a connection ended that we closed.
var errClosed = errors.New("closed")

// owner is who a connection is for. Its methods run on the connection's goroutine.
type owner interface {
	// registered is called once, when the server has welcomed us.
	registered(c *conn)
	// renamed is called when our nick has changed.
	renamed(c *conn, was string)
	// message is called for every message of a registered connection that is
	// not about the connection itself.
	message(c *conn, m *irc.Message)
}

// conn is one connection to the server. The goroutine that runs run owns its fields;
// others use do.
type conn struct {
	owner owner
	ident identity
	log   *slog.Logger
	calls chan func()
	done  chan struct{} // closed when run ends

	net     net.Conn
	w       *bufio.Writer
	scratch []byte
	failure error // why the connection must end: of writing, or our own reason
	limiter *rate.Limiter
	timers  []timer // by time
	heard   time.Time
	pinged  bool
	closing string // why we close, "" if we do not
	goodbye string // the server's ERROR

	phase    phase
	session  string // distinguishes made-up message IDs
	counter  int
	nick     string
	user     string // as the server shows it, "" if not known
	host     string
	clashes  int
	offered  map[string]string // capabilities, with values
	caps     map[string]bool   // enabled
	isupport ircmsg.ISupport
	batches  map[string]batch
	rejoin   []string // channels to enter at once, for the owner

	out      []outLine  // waits for the limiter
	pending  []*request // begun, outcome unknown, in order
	barrier  int        // number of the last PING after a request
	labelled int        // number of the last label
}

// identity is as whom a connection registers.
type identity struct {
	bot      bool
	nick     string
	nickLen  int
	username string
	realname string
	password string
	sasl     *saslConfig
}

type timer struct {
	at time.Time
	f  func()
}

type batch struct {
	kind  string
	label string
}

func newConn(o owner, id identity, flood floodConfig, log *slog.Logger) *conn {
	return &conn{
		owner:   o,
		ident:   id,
		log:     log,
		calls:   make(chan func()),
		done:    make(chan struct{}),
		limiter: rate.NewLimiter(rate.Limit(flood.Lines), flood.Burst),
		phase:   registering,
		session: sessionID(),
		offered: map[string]string{},
		caps:    map[string]bool{},
		batches: map[string]batch{},
	}
}

// do runs f on the connection's goroutine. It returns false if the connection or
// ctx has ended; f is not run then. It does not wait for f.
func (c *conn) do(ctx context.Context, f func()) bool {
	select {
	case c.calls <- f:
		return true
	case <-c.done:
	case <-ctx.Done():
	}
	return false
}

// run registers on raw and works until the connection ends, and says why: nil is
// never returned. All requests have their outcome when it returns.
func (c *conn) run(ctx context.Context, raw net.Conn) error {
	c.net, c.w, c.heard = raw, bufio.NewWriter(raw), time.Now()
	lines := make(chan *irc.Message, 256)
	readErr := make(chan error, 1)
	go func() { readErr <- c.read(lines) }()
	c.register()
	err := c.loop(ctx, lines)
	close(c.done)
	raw.Close()
	if rerr := <-readErr; err == nil {
		err = rerr
		if c.goodbye != "" {
			err = fmt.Errorf("the server closed the connection: %s", c.goodbye)
		}
	}
	c.abandon()
	return err
}

// read hands lines to the loop until the connection ends.
func (c *conn) read(lines chan<- *irc.Message) error {
	defer close(lines)
	r := ircmsg.NewReader(c.net, ircmsg.FromServers)
	for {
		m, err := r.ReadMessage()
		if ircmsg.Fatal(err) {
			return fmt.Errorf("read: %w", err)
		}
		if err != nil {
			c.log.Warn("dropped a line of the server", "err", err)
			continue
		}
		select {
		case lines <- m:
		case <-c.done:
			return errClosed
		}
	}
}

// loop does everything that changes the connection. A nil error means that
// reading has ended.
func (c *conn) loop(ctx context.Context, lines <-chan *irc.Message) error {
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		if err := c.flush(); err != nil {
			return err
		}
		wake.Reset(c.untilNext())
		select {
		case m, ok := <-lines:
			if !ok {
				return nil
			}
			c.heard, c.pinged = time.Now(), false
			c.handle(m)
		case f := <-c.takeCalls():
			f()
		case <-wake.C:
			c.runTimers()
			if err := c.keepAlive(); err != nil {
				return err
			}
		case <-ctx.Done():
			c.close("shutting down")
		}
		if c.closing != "" {
			return c.quit()
		}
	}
}

// takeCalls is nil while nothing more is to be taken.
func (c *conn) takeCalls() <-chan func() {
	if c.phase != ready || len(c.out) >= maxQueued {
		return nil
	}
	return c.calls
}

// close makes the loop end after the present step.
func (c *conn) close(reason string) { c.closing = reason }

func (c *conn) quit() error {
	c.write(ircmsg.New("QUIT", c.closing))
	c.flushWriter(2 * time.Second)
	return fmt.Errorf("%w: %s", errClosed, c.closing)
}

// after runs f on the connection's goroutine later, unless it has ended by then.
func (c *conn) after(d time.Duration, f func()) {
	t := timer{time.Now().Add(d), f}
	i := len(c.timers)
	for i > 0 && c.timers[i-1].at.After(t.at) {
		i--
	}
	c.timers = append(c.timers[:i], append([]timer{t}, c.timers[i:]...)...)
}

func (c *conn) runTimers() {
	now := time.Now()
	for len(c.timers) > 0 && !c.timers[0].at.After(now) {
		f := c.timers[0].f
		c.timers = c.timers[1:]
		f()
	}
}

// untilNext returns how long the loop may wait.
func (c *conn) untilNext() time.Duration {
	next := c.heard.Add(keepalive)
	if c.pinged {
		next = c.heard.Add(deadAfter)
	}
	if len(c.timers) > 0 && c.timers[0].at.Before(next) {
		next = c.timers[0].at
	}
	d := time.Until(next)
	if len(c.out) > 0 {
		d = min(d, c.untilToken())
	}
	return max(d, 0)
}

func (c *conn) untilToken() time.Duration {
	missing := 1 - c.limiter.Tokens()
	return time.Duration(missing/float64(c.limiter.Limit())*float64(time.Second)) + time.Microsecond
}

func (c *conn) keepAlive() error {
	silent := time.Since(c.heard)
	switch {
	case silent >= deadAfter:
		return errors.New("the server does not answer")
	case silent >= keepalive && !c.pinged && c.phase == ready:
		c.pinged = true
		c.write(ircmsg.New("PING", "alive"))
	case silent >= keepalive:
		c.pinged = true
	}
	return nil
}

// write sends a message at once, before those that wait. Errors end the loop at
// the next flush; a message that is no line is dropped.
func (c *conn) write(m *irc.Message) {
	line, err := ircmsg.AppendLimit(c.scratch[:0], m, c.isupport.LineLen())
	if err != nil {
		c.log.Warn("a message cannot be sent", "command", m.Command, "err", err)
		return
	}
	c.scratch = line
	c.writeLine(line)
}

func (c *conn) writeLine(line []byte) {
	if c.failure != nil {
		return
	}
	c.net.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := c.w.Write(line); err != nil {
		c.failure = fmt.Errorf("write: %w", err)
	}
}

func (c *conn) flushWriter(timeout time.Duration) error {
	if c.failure == nil && c.w.Buffered() > 0 {
		c.net.SetWriteDeadline(time.Now().Add(timeout))
		if err := c.w.Flush(); err != nil {
			c.failure = fmt.Errorf("write: %w", err)
		}
	}
	return c.failure
}

// isMe reports whether a message is from ourselves.
func (c *conn) isMe(m *irc.Message) bool { return c.same(m.Prefix.Name, c.nick) }

func (c *conn) fold(s string) string { return c.isupport.Fold(s) }

func (c *conn) same(a, b string) bool { return c.fold(a) == c.fold(b) }

// room returns how many bytes of text a message of ours can have, so that the line
// which others get, with our prefix, is whole
// (https://modern.ircdocs.horse/#privmsg-message).
func (c *conn) room(command, target string) int {
	user, host := len(c.user), len(c.host)
	if host == 0 {
		user, host = c.isupport.Int("USERLEN", 10)+1, c.isupport.Int("HOSTLEN", 63)
	}
	prefix := len(c.nick) + len("!") + user + len("@") + host
	return c.isupport.LineLen() - len(":") - prefix - len(" ") - len(command) - len(" ") - len(target) - len(" :") - len("\r\n")
}

// handle dispatches a message: first to the table of what concerns the connection,
// then to the owner.
func (c *conn) handle(m *irc.Message) {
	if h, ok := handlers[m.Command]; ok && h.phases&c.phase != 0 && len(m.Params) >= h.minParams {
		h.run(c, m)
	} else if isError(m.Command) && len(m.Params) > 1 {
		c.handleError(m)
	}
	if c.phase == ready {
		c.owner.message(c, m)
	}
}

// isError reports whether a reply is one of refusal (4xx, 5xx; 9xx are SASL's).
func isError(command string) bool {
	return len(command) == 3 && (command[0] == '4' || command[0] == '5')
}

// messageID returns the ID that the network gave a message, or makes one up that
// no other has.
func (c *conn) messageID(m *irc.Message) backends.MessageID {
	if id := m.Tags["msgid"]; id != "" {
		return backends.MessageID(id)
	}
	c.counter++
	return backends.MessageID(fmt.Sprintf("%s-%d", c.session, c.counter))
}

// timeOf returns the time of server-time, or zero.
func timeOf(m *irc.Message) time.Time {
	t, err := time.Parse(time.RFC3339Nano, m.Tags["time"])
	if err != nil {
		return time.Time{}
	}
	return t
}

// isServer reports whether a prefix is that of a server: no user, a dot in it.
func isServer(p *irc.Prefix) bool {
	return p.Name == "" || p.User == "" && strings.Contains(p.Name, ".")
}
