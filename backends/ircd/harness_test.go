package ircd

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

// listener is a network under test, with a host that the test plays.
type listener struct {
	tb   testing.TB
	host *backendtest.Host
	net  backends.Network
	addr string
	sent int
}

// start opens a listener on a free port. extra is JSON members of the configuration.
func start(tb testing.TB, extra string) *listener {
	tb.Helper()
	return startWith(tb, backendtest.NewHost(tb), extra)
}

func startWith(tb testing.TB, host *backendtest.Host, extra string) *listener {
	tb.Helper()
	cfg := `{"listen": "127.0.0.1:0"`
	if extra != "" {
		cfg += ", " + extra
	}
	n, err := New().Open(tb.Context(), json.RawMessage(cfg+"}"), host)
	if err != nil {
		tb.Fatal(err)
	}
	l := &listener{tb: tb, host: host, net: n}
	tb.Cleanup(l.close)
	l.addr = strings.TrimPrefix(host.WaitPhase(backends.Ready).Reason, "listening on ")
	return l
}

func (l *listener) close() {
	ctx, cancel := context.WithTimeout(context.Background(), backendtest.Patience)
	defer cancel()
	if err := l.net.Close(ctx); err != nil {
		l.tb.Errorf("close: %v", err)
	}
}

// show sends a command and returns its result.
func (l *listener) show(chat backends.ChatID, sender backends.User, body backends.Body) backends.Result {
	l.tb.Helper()
	l.sent++
	return l.send(&backends.Command{ID: fmt.Sprintf("$%d", l.sent), Chat: backends.ChatKey{Chat: chat}, Sender: sender, Time: time.Now(), Body: body})
}

func (l *listener) send(cmd *backends.Command) backends.Result {
	l.tb.Helper()
	var result backends.Result
	calls := 0
	if err := l.net.Send(l.tb.Context(), cmd, func(r backends.Result) { result = r; calls++ }); err != nil {
		l.tb.Fatal(err)
	}
	if calls != 1 {
		l.tb.Fatalf("reply was called %d times", calls)
	}
	return result
}

// reflect sends an event of the listener back, as the room does.
func (l *listener) reflect(ev *backends.Event) {
	l.tb.Helper()
	l.sent++
	l.send(&backends.Command{
		ID: fmt.Sprintf("$%d", l.sent), Chat: ev.Chat, Sender: ev.Sender, Time: ev.Time, Echo: ev.ID, Body: ev.Body,
	})
}

func said(text string) *backends.Message { return &backends.Message{Text: richtext.Plain(text)} }

// client is an IRC client that the test plays.
type client struct {
	tb   testing.TB
	conn net.Conn
	in   *bufio.Reader
	mark int
}

// connect opens a connection without saying anything.
func (l *listener) connect() *client {
	l.tb.Helper()
	conn, err := net.Dial("tcp", l.addr)
	if err != nil {
		l.tb.Fatal(err)
	}
	return newClient(l.tb, conn)
}

func newClient(tb testing.TB, conn net.Conn) *client {
	tb.Cleanup(func() { conn.Close() })
	return &client{tb: tb, conn: conn, in: bufio.NewReader(conn)}
}

// guest connects with capabilities and registers.
func (l *listener) guest(nick, caps string) *client {
	l.tb.Helper()
	return l.connect().register(nick, caps)
}

// account is guest with a password.
func (l *listener) account(name, password, caps string) *client {
	l.tb.Helper()
	c := l.connect()
	c.write("PASS " + password)
	return c.register(name, caps)
}

func (c *client) register(nick, caps string) *client {
	c.tb.Helper()
	if caps != "" {
		c.write("CAP REQ :"+caps, "CAP END")
	}
	c.write("NICK "+nick, "USER "+nick+" 0 * :Real "+nick)
	lines := strings.Join(c.sync(), "\n")
	if !strings.Contains(lines, " 001 ") {
		c.tb.Fatalf("%s was not welcomed:\n%s", nick, lines)
	}
	return c
}

func (c *client) write(lines ...string) {
	c.tb.Helper()
	c.conn.SetWriteDeadline(time.Now().Add(backendtest.Patience))
	if _, err := c.conn.Write([]byte(strings.Join(lines, "\r\n") + "\r\n")); err != nil {
		c.tb.Fatal(err)
	}
}

// readLine returns the next line, or an error when the connection has ended.
func (c *client) readLine() (string, error) {
	c.conn.SetReadDeadline(time.Now().Add(backendtest.Patience))
	line, err := c.in.ReadString('\n')
	if err != nil {
		return "", err
	}
	if !strings.HasSuffix(line, "\r\n") || strings.ContainsAny(line[:len(line)-2], "\r\n\x00") {
		c.tb.Errorf("badly ended line %q", line)
	}
	return line[:len(line)-2], nil
}

// sync returns all lines up to the answer to a PING: what was caused before.
func (c *client) sync() []string {
	c.tb.Helper()
	c.mark++
	c.write(fmt.Sprintf("PING sync%d", c.mark))
	var lines []string
	for {
		line, err := c.readLine()
		if err != nil {
			c.tb.Fatalf("no answer to PING: %v; before it:\n%s", err, strings.Join(lines, "\n"))
		}
		if strings.HasSuffix(line, fmt.Sprintf(" sync%d", c.mark)) {
			return lines
		}
		lines = append(lines, line)
	}
}

// do writes a line and says what must come back, and nothing else. In the
// wanted lines "*" stands for anything.
func (c *client) do(line string, want ...string) {
	c.tb.Helper()
	c.write(line)
	c.got(want...)
}

// got says what must have come since, and nothing else.
func (c *client) got(want ...string) {
	c.tb.Helper()
	lines := c.sync()
	ok := len(lines) == len(want)
	for i := 0; ok && i < len(want); i++ {
		ok = matches(want[i], lines[i])
	}
	if !ok {
		c.tb.Errorf("got:\n\t%s\nwant:\n\t%s", strings.Join(lines, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func matches(pattern, line string) bool {
	quoted := strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, ".*")
	return regexp.MustCompile("^(?s:" + quoted + ")$").MatchString(line)
}

// rest returns what comes until the connection ends.
func (c *client) rest() []string {
	c.tb.Helper()
	var lines []string
	for {
		line, err := c.readLine()
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			c.tb.Fatalf("the connection did not end; got:\n%s", strings.Join(lines, "\n"))
		}
		if err != nil {
			return lines
		}
		lines = append(lines, line)
	}
}
