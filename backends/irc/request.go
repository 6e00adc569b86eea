package irc

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
)

func sessionID() string { return strings.ToLower(rand.Text()[:13]) }

// request is something asked of the server whose outcome someone waits for.
type request struct {
	lines  []*irc.Message
	target string // what refusals name: a channel or nick
	also   string // and what they may name instead: the one concerned
	// echo means that the server sends each line back, and confirms it so.
	// Otherwise the PONG to a PING after the last line confirms all.
	echo bool
	// replies means that the outcome is told by replies, which the owner handles:
	// it calls finish. There is no PING.
	replies bool
	done    func(outcome) // called once, on the connection's goroutine
	timeout time.Duration // from the last line written; 0 is no limit

	written   int // lines
	confirmed int // lines, by echo
	ids       []backends.MessageID
	labels    []string
	barrier   int // number of the PING
	refusal   *backends.Refusal
	finished  bool
}

// outcome of a request: err is nil, a *backends.Refusal, or one of the errors below.
type outcome struct {
	err error
	ids []backends.MessageID // of echoed lines, with "" where there is none
}

var (
	errNotSent = errors.New("the connection ended before anything was sent")
	errUnknown = errors.New("the network did not confirm it")
)

// outLine is a line that waits to be written.
type outLine struct {
	req  *request
	line int
}

// submit queues the lines of a request.
func (c *conn) submit(r *request) {
	if len(r.lines) == 0 {
		r.done(outcome{})
		return
	}
	c.pending = append(c.pending, r)
	for i := range r.lines {
		c.out = append(c.out, outLine{r, i})
	}
}

// flush writes what the limiter lets through.
func (c *conn) flush() error {
	for len(c.out) > 0 {
		l := c.out[0]
		if !l.req.finished {
			if _, unlimited := c.isupport.Get("SAFERATE"); !unlimited && !c.limiter.Allow() {
				break
			}
			c.writeRequest(l.req, l.line)
		}
		c.out[0] = outLine{}
		c.out = c.out[1:]
	}
	return c.flushWriter(writeTimeout)
}

// writeRequest writes one line of a request, and what follows the last.
func (c *conn) writeRequest(r *request, i int) {
	m := r.lines[i]
	if r.echo && c.caps["labeled-response"] {
		c.labelled++
		label := strconv.Itoa(c.labelled)
		m.Tags["label"] = label
		r.labels = append(r.labels, label)
	}
	line, err := ircmsg.AppendLimit(c.scratch[:0], m, c.isupport.LineLen())
	if err != nil {
		c.finish(r, &backends.Refusal{Code: backends.RefusedInvalid, Message: "this cannot be said on IRC"})
		return
	}
	c.scratch = line
	c.writeLine(line)
	r.written++
	if r.written < len(r.lines) {
		return
	}
	if !r.echo && !r.replies {
		c.barrier++
		r.barrier = c.barrier
		c.write(ircmsg.New("PING", barrierToken(r.barrier)))
	}
	if r.timeout > 0 {
		c.after(r.timeout, func() { c.finish(r, errUnknown) })
	}
}

const barrierPrefix = "done-"

func barrierToken(n int) string { return barrierPrefix + strconv.Itoa(n) }

// handlePong confirms the requests before the PING.
func (c *conn) handlePong(m *irc.Message) {
	token, ok := strings.CutPrefix(m.Trailing(), barrierPrefix)
	n, err := strconv.Atoi(token)
	if !ok || err != nil {
		return
	}
	for _, r := range slices.Clone(c.pending) {
		if r.barrier > 0 && r.barrier <= n {
			c.finish(r, nil)
		}
	}
}

// finish ends a request, if it has not ended.
func (c *conn) finish(r *request, err error) {
	if r.finished {
		return
	}
	if err == nil && r.refusal != nil {
		err = r.refusal
	}
	r.finished = true
	c.pending = slices.DeleteFunc(c.pending, func(p *request) bool { return p == r })
	r.done(outcome{err, r.ids})
}

// abandon ends all requests when the connection has.
func (c *conn) abandon() {
	for _, r := range slices.Clone(c.pending) {
		switch {
		case r.written == 0:
			c.finish(r, errNotSent)
		default:
			c.finish(r, errUnknown)
		}
	}
}

// handleEcho takes our own message back as a confirmation.
func (c *conn) handleEcho(m *irc.Message) {
	if !c.isMe(m) || !c.caps["echo-message"] {
		return
	}
	r := c.answered(m, func(r *request) bool {
		return r.echo && c.same(r.lines[r.confirmed].Params[0], m.Params[0]) && r.lines[r.confirmed].Command == m.Command
	})
	if r == nil {
		return
	}
	r.ids = append(r.ids, backends.MessageID(m.Tags["msgid"]))
	c.lineAnswered(r)
}

// answered finds the request that a message answers: by its label, else the
// oldest that fits, because a server answers in order.
func (c *conn) answered(m *irc.Message, fits func(*request) bool) *request {
	label := m.Tags["label"]
	if label == "" {
		label = c.batches[m.Tags["batch"]].label
	}
	for _, r := range c.pending {
		if r.written == 0 {
			break
		}
		if label != "" && slices.Contains(r.labels, label) {
			return r
		}
		if label == "" && r.confirmed < r.written && fits(r) {
			return r
		}
	}
	return nil
}

// lineAnswered counts a line that was echoed or refused.
func (c *conn) lineAnswered(r *request) {
	if r.confirmed++; r.confirmed == len(r.lines) {
		c.finish(r, nil)
	}
}

// handleError refuses the request that names what the error names.
func (c *conn) handleError(m *irc.Message) {
	named := m.Params[1:max(2, len(m.Params)-1)]
	r := c.answered(m, func(r *request) bool {
		return slices.ContainsFunc(named, func(s string) bool {
			return c.same(s, r.target) || r.also != "" && c.same(s, r.also)
		})
	})
	if r == nil {
		return
	}
	if r.refusal == nil {
		r.refusal = refusal(m)
	}
	switch {
	case r.echo:
		c.lineAnswered(r)
	case r.replies:
		c.finish(r, nil)
	}
}

// handleTryAgain is "263 me LIST :…": the server is too busy for a command.
func (c *conn) handleTryAgain(m *irc.Message) {
	for _, r := range c.pending {
		if r.replies && r.written > 0 && r.lines[0].Command == strings.ToUpper(m.Params[1]) {
			r.refusal = &backends.Refusal{Code: backends.RefusedUnavailable, Message: m.Trailing()}
			c.finish(r, nil)
			return
		}
	}
}

// codes of the refusals that mean something in particular.
var codes = map[string]backends.RefusalCode{
	"401": backends.RefusedNotFound, "403": backends.RefusedNotFound, "402": backends.RefusedNotFound,
	"404": backends.RefusedForbidden, "482": backends.RefusedForbidden, "481": backends.RefusedForbidden,
	"405": backends.RefusedUnavailable, "437": backends.RefusedUnavailable,
	"407": backends.RefusedInvalid, "461": backends.RefusedInvalid, "476": backends.RefusedInvalid, "479": backends.RefusedInvalid,
	"441": backends.RefusedNotFound, "442": backends.RefusedConflict, "443": backends.RefusedConflict,
	"412": backends.RefusedInvalid, "417": backends.RefusedTooLarge, "421": backends.RefusedUnsupported,
	"471": backends.RefusedFull, "473": backends.RefusedInviteOnly, "474": backends.RefusedBanned, "475": backends.RefusedPassword,
	"465": backends.RefusedBanned, "477": backends.RefusedUnauthorized, "489": backends.RefusedForbidden, "520": backends.RefusedForbidden,
}

func refusal(m *irc.Message) *backends.Refusal {
	code, ok := codes[m.Command]
	if !ok {
		code = backends.RefusedForbidden
	}
	return &backends.Refusal{Code: code, Message: fmt.Sprintf("%s: %s", strings.Join(m.Params[1:len(m.Params)-1], " "), m.Trailing())}
}
