package ircd

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/time/rate"
	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
)

// Times in the life of a connection.
const (
	handshakeTimeout = 15 * time.Second
	registerTimeout  = time.Minute
	pingAfter        = 90 * time.Second // of silence
	pingTimeout      = 60 * time.Second // for the answer
	keepAliveTick    = 15 * time.Second
	writeTimeout     = 30 * time.Second
	// lingerTimeout is how long we read on after our last line, so that the
	// client gets it, and after a failed write, so that what the client had sent is
	// not lost.
	lingerTimeout = 250 * time.Millisecond
)

// session is one client's connection. Its reader runs the commands, one after the
// other; its writer sends what is in out.
type session struct {
	n        *network
	conn     net.Conn
	out      *outbox
	ctx      context.Context // ends when the connection is to be closed at once
	cancel   context.CancelFunc
	token    string // makes message IDs unique over sessions and restarts
	addr     netip.Addr
	limiter  *rate.Limiter
	started  time.Time
	lastRead atomic.Int64 // Unix nanoseconds
	pinged   atomic.Bool
	busy     atomic.Bool            // a command runs
	ready    atomic.Bool            // registered
	ended    atomic.Bool            // our last line is written or queued
	reason   atomic.Pointer[string] // why it ended

	// Only the reader.
	left    sync.Once // depart
	reg     registration
	nick    string // "*" until registered
	answer  *answer
	counter uint64
	refs    uint64 // batches

	// Guarded by n.mu; caps and person are written by the reader alone.
	caps     caps
	person   *person
	joined   map[backends.ChatID]*attendance
	awaiting map[backends.MessageID]string // labels that wait for an echo or receipt
	spoke    time.Time
}

// maxAwaiting bounds session.awaiting.
const maxAwaiting = 1000

// serve runs a connection. The caller has checked the limits.
func (n *network) serve(conn net.Conn) {
	s := &session{
		n: n, conn: conn, out: newOutbox(n.cfg.Limits.SendQueue),
		token: rand.Text()[:13], addr: ipOf(conn.RemoteAddr()), started: time.Now(), nick: "*",
		limiter:  rate.NewLimiter(rate.Inf, 0),
		joined:   map[backends.ChatID]*attendance{},
		awaiting: map[backends.MessageID]string{},
	}
	if r := n.cfg.Limits.LineRate; r > 0 && !s.addr.IsLoopback() {
		s.limiter = rate.NewLimiter(rate.Limit(r), lineBurst)
	}
	s.ctx, s.cancel = context.WithCancel(n.ctx)
	s.lastRead.Store(s.started.UnixNano())
	if reason := n.admit(s); reason != "" {
		n.wg.Go(func() { s.turnAway(reason) })
		return
	}
	n.wg.Go(func() {
		defer s.finish()
		if s.handshake() {
			n.wg.Go(s.write)
			s.read()
		}
	})
}

// handshake does that of TLS. It must be over before anything is written, since a
// write would wait for it without heeding its own deadline.
func (s *session) handshake() bool {
	conn, ok := s.conn.(*tls.Conn)
	if !ok {
		return true
	}
	ctx, cancel := context.WithTimeout(s.ctx, handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		s.n.log.Debug("irc client without TLS", "err", err)
		s.n.ending(s, "TLS handshake failed")
		return false
	}
	return true
}

// turnAway tells a client why it may not connect.
func (s *session) turnAway(reason string) {
	defer s.cancel()
	defer s.conn.Close()
	s.n.log.Warn("irc client turned away", "reason", reason)
	s.conn.SetDeadline(time.Now().Add(lingerTimeout))
	s.conn.Write(compose(ircmsg.New("ERROR", "Closing link: "+reason)))
}

// read takes the client's lines until the connection ends.
func (s *session) read() {
	stop := context.AfterFunc(s.ctx, func() { s.conn.Close() })
	defer stop()
	r := ircmsg.NewReader(s.conn, ircmsg.FromClients)
	for {
		m, err := r.ReadMessage()
		if ircmsg.Fatal(err) {
			return
		}
		s.lastRead.Store(time.Now().UnixNano())
		s.pinged.Store(false)
		if s.ended.Load() {
			continue
		}
		s.busy.Store(true)
		switch {
		case errors.Is(err, ircmsg.ErrTooLong):
			s.reply(numericInputTooLong, "Input line was too long")
		case err == nil:
			if s.limiter.Wait(s.ctx) != nil {
				return
			}
			s.dispatch(m)
		}
		s.lastRead.Store(time.Now().UnixNano())
		s.busy.Store(false)
		if s.ended.Load() { // QUIT: the rooms need not wait for the client to hang up
			s.left.Do(func() { s.n.depart(s) })
		}
	}
}

// finish tidies up after the reader.
func (s *session) finish() {
	s.left.Do(func() { s.n.depart(s) })
	s.out.close()
	s.cancel()
	s.conn.Close()
}

// write sends what is queued, and pings.
func (s *session) write() {
	tick := time.NewTicker(keepAliveTick)
	defer tick.Stop()
	var buf []byte
	for {
		select {
		case <-s.out.wake:
		case <-tick.C:
			s.keepAlive(time.Now())
			continue
		case <-s.ctx.Done():
			return
		}
		var last bool
		buf, last = s.out.take(buf[:0])
		if !s.flush(buf) || last {
			s.linger()
			return
		}
	}
}

func (s *session) flush(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	s.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := s.conn.Write(b)
	return err == nil
}

// linger ends the sending side and leaves the reader a moment.
func (s *session) linger() {
	s.out.drop()
	if c, ok := s.conn.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
		s.conn.SetReadDeadline(time.Now().Add(lingerTimeout))
		return
	}
	s.cancel()
}

// keepAlive ends a connection that is not used. A client whose command runs is
// not blamed for its silence: nobody reads what it says.
func (s *session) keepAlive(now time.Time) {
	silent := now.Sub(time.Unix(0, s.lastRead.Load()))
	switch {
	case s.busy.Load() || s.ended.Load():
	case !s.ready.Load() && now.Sub(s.started) > registerTimeout:
		s.end("Registration timed out")
	case s.pinged.Load() && silent > pingAfter+pingTimeout:
		s.end("Ping timeout: " + strconv.Itoa(int(silent/time.Second)) + " seconds")
	case silent > pingAfter && s.ready.Load() && !s.pinged.Swap(true):
		s.put(compose(ircmsg.New("PING", s.n.cfg.ServerName)))
	}
}

// end closes the connection after what is queued, with a reason. Callers may
// hold n.mu.
func (s *session) end(reason string) {
	if s.ended.Swap(true) {
		return
	}
	s.out.put(compose(ircmsg.New("ERROR", "Closing link: "+reason)))
	s.out.close()
	s.n.ending(s, reason)
}

// kill closes the connection at once. Callers may hold n.mu.
func (s *session) kill(reason string) {
	s.ended.Store(true)
	s.n.ending(s, reason)
	s.out.drop()
	s.cancel()
}

// put queues a line; a client that has too many waiting is disconnected.
func (s *session) put(line []byte) {
	if !s.out.put(line) {
		s.kill("SendQ exceeded")
	}
}

// secure reports whether the connection is TLS.
func (s *session) secure() bool {
	_, ok := s.conn.(*tls.Conn)
	return ok
}

// nextID makes up the ID of a message.
func (s *session) nextID() backends.MessageID {
	s.counter++
	return backends.MessageID(s.token + "-" + strconv.FormatUint(s.counter, 36))
}

// compose makes one line of a message of ours, with CR LF. What could not be
// written is mended: a parameter that would be taken for something else becomes
// "*", the last one loses line ends and what is beyond 512 bytes, and all is UTF-8.
func compose(m *irc.Message) []byte {
	b, err := ircmsg.Append(nil, m)
	if err == nil && utf8.Valid(b) {
		return withColon(b, m)
	}
	m = mend(m)
	if b, err = ircmsg.Append(nil, m); err == nil {
		return withColon(b, m)
	}
	if b, err = cutToFit(m); err == nil {
		return withColon(b, m)
	}
	return []byte("NOTICE * :A line could not be written\r\n")
}

// texts are the commands whose last parameter is a text, with the number of
// parameters from which on it is. It gets its colon even if it is a single word:
// grammar does not ask for it, but simple clients (ii) do.
var texts = map[string]int{
	"PRIVMSG": 2, "NOTICE": 2, "TOPIC": 2, "PART": 2, "KICK": 3, "QUIT": 1, "NICK": 1, "AWAY": 1, "ERROR": 1, "INVITE": 2, "CAP": 3,
	irc.RPL_USERHOST: 2, irc.RPL_ISON: 2, irc.RPL_AWAY: 3, irc.RPL_WHOISUSER: 6, irc.RPL_WHOISSERVER: 4, irc.RPL_WHOISCHANNELS: 3,
	irc.RPL_LIST: 4, irc.RPL_TOPIC: 3, irc.RPL_NAMREPLY: 4, irc.RPL_MOTD: 2,
}

// withColon puts a colon before the last parameter of b, the line of m, if it is
// a text.
func withColon(b []byte, m *irc.Message) []byte {
	least := texts[m.Command]
	if least == 0 || len(m.Params) < least {
		return b
	}
	last := m.Params[len(m.Params)-1]
	at := len(b) - len("\r\n") - len(last)
	tags := 0
	if len(m.Tags) > 0 {
		tags = bytes.IndexByte(b, ' ') + 1
	}
	if b[at-1] == ':' || len(b)-tags == ircmsg.MaxLine {
		return b
	}
	return slices.Insert(b, at, ':')
}

func mend(m *irc.Message) *irc.Message {
	m = m.Copy()
	for i, p := range m.Params {
		p = ircmsg.Clean(strings.ToValidUTF8(p, "\uFFFD"))
		if i < len(m.Params)-1 && (p == "" || p[0] == ':' || containsSpace(p)) {
			p = "*"
		}
		m.Params[i] = p
	}
	for k, v := range m.Tags {
		m.Tags[k] = strings.ReplaceAll(strings.ToValidUTF8(v, "\uFFFD"), "\x00", "")
	}
	if m.Prefix != nil {
		m.Prefix = &irc.Prefix{Name: word(m.Prefix.Name), User: word(m.Prefix.User), Host: word(m.Prefix.Host)}
	}
	return m
}

func cutToFit(m *irc.Message) ([]byte, error) {
	b, err := ircmsg.AppendLimit(nil, &irc.Message{Prefix: m.Prefix, Command: m.Command, Params: m.Params}, 1<<20)
	if err != nil || len(m.Params) == 0 {
		return nil, errors.Join(err, ircmsg.ErrTooLong)
	}
	last := &m.Params[len(m.Params)-1]
	*last, _ = ircmsg.Cut(*last, max(len(*last)-(len(b)-ircmsg.MaxLine), 0))
	return ircmsg.Append(nil, m)
}
