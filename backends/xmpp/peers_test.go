package xmpp

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/backendtest/ejabberd"
	"github.com/gjallar-im/gjallar/backends/backendtest/peer"
	"github.com/gjallar-im/gjallar/backends/backendtest/prosody"
	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
	"github.com/gjallar-im/gjallar/plugins"
)

// server is a real XMPP server of a test.
type server struct {
	domain, muc, component, secret string
	c2s, componentAddr             string
	register                       func(ctx context.Context, user, password string) error
	stop                           func()
	restart                        func(ctx context.Context) error
	accounts                       map[string]bool
}

// servers are kept for all tests that do not stop them; by name.
var servers = struct {
	sync.Mutex
	running map[string]*server
	dirs    []string
}{running: map[string]*server{}}

// The test binary, started again with this variable, is the plugin.
const bePlugin = "GJALLAR_TEST_BE_XMPP"

func TestMain(m *testing.M) {
	if os.Getenv(bePlugin) != "" {
		plugins.Main(New())
	}
	code := m.Run()
	for _, s := range servers.running {
		s.stop()
	}
	for _, dir := range servers.dirs {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// startProsody and startEjabberd run a server whose files are in dir.
func startProsody(dir string) (*server, error) {
	p, err := prosody.Run(context.Background(), dir)
	if err != nil {
		return nil, err
	}
	return &server{prosody.Domain, prosody.MUC, prosody.Component, prosody.Secret, p.C2S, p.ComponentAddr, p.Register, func() { p.Stop() }, p.Restart, nil}, nil
}

func startEjabberd(dir string) (*server, error) {
	e, err := ejabberd.Run(context.Background(), dir)
	if err != nil {
		return nil, err
	}
	return &server{ejabberd.Domain, ejabberd.MUC, ejabberd.Component, ejabberd.Secret, e.C2S, e.ComponentAddr, e.Register, func() { e.Stop() }, e.Restart, nil}, nil
}

var kinds = []struct {
	name  string
	start func(dir string) (*server, error)
}{{"prosody", startProsody}, {"ejabberd", startEjabberd}}

// withServers runs a test against each real server.
func withServers(t *testing.T, test func(t *testing.T, s *server)) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			servers.Lock()
			defer servers.Unlock()
			if servers.running[k.name] == nil {
				dir, err := os.MkdirTemp("", "gjallar-peer-")
				if err != nil {
					t.Fatal(err)
				}
				servers.dirs = append(servers.dirs, dir)
				s, err := k.start(dir)
				peer.Need(t, err)
				servers.running[k.name] = s
			}
			test(t, servers.running[k.name])
		})
	}
}

// withOwnServers is for tests that stop them.
func withOwnServers(t *testing.T, test func(t *testing.T, s *server)) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			s, err := k.start(peer.Dir(t))
			peer.Need(t, err)
			t.Cleanup(func() { s.stop() })
			test(t, s)
		})
	}
}

var rooms atomic.Int64

// roomName is a name that no other test uses, nor this one if it is run again.
func roomName(t *testing.T) string {
	name, _, _ := strings.Cut(strings.ToLower(t.Name()), "/")
	return fmt.Sprintf("%s%d", name, rooms.Add(1))
}

// open starts the network at the server.
func (s *server) open(t *testing.T, host *backendtest.Host) backends.Network {
	t.Helper()
	config, _ := json.Marshal(map[string]any{"server": s.componentAddr, "domain": s.component, "secret": s.secret})
	n, err := New().Open(t.Context(), config, host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNetwork(t, n) })
	host.WaitPhase(backends.Ready)
	return n
}

func closeNetwork(t *testing.T, n backends.Network) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Second)
	defer cancel()
	if err := n.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
}

// client is slixmpp, logged in.
type client struct {
	t      *testing.T
	in     io.WriteCloser
	events chan clientEvent
	past   []string // for messages of failures
}

type clientEvent struct {
	Event     string
	XML       string
	Error     string
	Subject   string
	Occupants []string
	History   []string
	stanza    *xep.Element
}

// python is Debian's, which has slixmpp.
const python = "/usr/bin/python3"

// login makes an account and logs a client in.
func (s *server) login(t *testing.T, user string) *client {
	t.Helper()
	if exec.Command(python, "-c", "import slixmpp").Run() != nil {
		peer.Need(t, fmt.Errorf("%w: slixmpp: apt-get install python3-slixmpp", peer.ErrMissing))
	}
	if !s.accounts[user] {
		if err := s.register(t.Context(), user, "pw"); err != nil {
			t.Fatal(err)
		}
		if s.accounts == nil {
			s.accounts = map[string]bool{}
		}
		s.accounts[user] = true
	}
	return s.connect(t, user, "test")
}

// connect logs a client in to an account that exists.
func (s *server) connect(t *testing.T, user, resource string) *client {
	t.Helper()
	host, port, _ := net.SplitHostPort(s.c2s)
	cmd := exec.Command(python, "testdata/client.py", user+"@"+s.domain+"/"+resource, "pw", host, port)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, in: in, events: make(chan clientEvent, 1000)}
	read := make(chan struct{})
	go func() { defer close(read); c.read(out) }()
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		<-read
		cmd.Wait()
	})
	c.wait("to be online", func(e clientEvent) bool { return e.Event == "online" })
	return c
}

func (c *client) read(out io.Reader) {
	defer close(c.events)
	for scan := bufio.NewScanner(out); scan.Scan(); {
		var e clientEvent
		if json.Unmarshal(scan.Bytes(), &e) != nil {
			continue
		}
		if e.XML != "" {
			r := xep.NewReader(strings.NewReader("<stream:stream xmlns:stream='" + xep.NSStream + "'>" + e.XML))
			if _, err := r.Head(); err == nil {
				if s, err := r.Next(); err == nil {
					e.stanza = s.InComponent()
				}
			}
		}
		c.events <- e
	}
}

// wait returns the next event that match holds for.
func (c *client) wait(what string, match func(clientEvent) bool) clientEvent {
	c.t.Helper()
	timeout := time.After(15 * time.Second)
	for {
		select {
		case e, ok := <-c.events:
			if !ok {
				c.t.Fatalf("the client ended while waiting for %s; it saw\n%s", what, strings.Join(c.past, "\n"))
			}
			if match(e) {
				return e
			}
			c.past = append(c.past, e.Event+" "+e.Error+e.XML)
		case <-timeout:
			c.t.Fatalf("no %s; the client saw\n%s", what, strings.Join(c.past, "\n"))
		}
	}
}

// stanza waits for a stanza.
func (c *client) stanza(what string, match func(*xep.Element) bool) *xep.Element {
	c.t.Helper()
	return c.wait(what, func(e clientEvent) bool { return e.stanza != nil && match(e.stanza) }).stanza
}

// message waits for a message with that body.
func (c *client) message(body string) *xep.Element {
	c.t.Helper()
	return c.stanza(fmt.Sprintf("message %q", body), func(e *xep.Element) bool {
		return e.Name.Local == "message" && e.Attr("type") != "error" && e.Child(xep.NSComponent, "body").Text() == body
	})
}

func (c *client) do(command map[string]any) {
	c.t.Helper()
	b, _ := json.Marshal(command)
	if _, err := c.in.Write(append(b, '\n')); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) raw(format string, args ...any) {
	c.t.Helper()
	c.do(map[string]any{"do": "raw", "xml": fmt.Sprintf(format, args...)})
}

func (c *client) say(to, typ, body, id string) {
	c.t.Helper()
	c.do(map[string]any{"do": "say", "to": to, "type": typ, "body": body, "id": id})
}

// join enters a MUC.
func (c *client) join(room, nick string) clientEvent {
	c.t.Helper()
	c.do(map[string]any{"do": "join", "room": room, "nick": nick})
	e := c.wait("answer to the join", func(e clientEvent) bool { return e.Event == "joined" || e.Event == "failed" })
	if e.Event == "failed" {
		c.t.Fatalf("cannot join %s: %s; it saw\n%s", room, e.Error, strings.Join(c.past, "\n"))
	}
	return e
}

// tryJoin asks to enter a MUC by hand and returns the error, nil if there is none.
func (c *client) tryJoin(room, nick string) *xep.Error {
	c.t.Helper()
	c.raw("<presence to='%s/%s' id='j1'><x xmlns='%s'/></presence>", room, nick, xep.NSMUC)
	e := c.stanza("answer to the join", func(e *xep.Element) bool {
		return strings.HasPrefix(e.Attr("from"), room+"/") && (e.Attr("type") == "error" || xep.MUCUserOf(e).Has(xep.StatusSelf))
	})
	return xep.ErrorOf(e)
}

// run sends a command and returns its result.
func run(t *testing.T, n backends.Network, cmd *backends.Command) backends.Result {
	t.Helper()
	if cmd.ID == "" {
		cmd.ID = xep.NewID()
	}
	results := make(chan backends.Result, 1)
	if err := n.Send(t.Context(), cmd, func(r backends.Result) { results <- r }); err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-results:
		return r
	case <-time.After(20 * time.Second):
		t.Fatalf("no result of %T", cmd.Body)
		panic("unreachable")
	}
}

// deliver runs a command that must arrive, and returns the ID it has there.
func deliver(t *testing.T, n backends.Network, cmd *backends.Command) backends.MessageID {
	t.Helper()
	for range 20 {
		r := run(t, n, cmd)
		if r.Outcome == backends.Retry {
			cmd.Attempt++
			time.Sleep(200 * time.Millisecond) // as the host would
			continue
		}
		if r.Outcome != backends.Delivered || len(r.IDs) == 0 {
			t.Fatalf("%T: %+v", cmd.Body, r)
		}
		return r.IDs[0]
	}
	t.Fatalf("%T: retried too often", cmd.Body)
	return ""
}

var alice = backends.User{Account: "@alice:hs.test", Name: "Alice A", Username: "alice", Domain: "hs.test"}

func text(s string) *backends.Message { return &backends.Message{Text: richtext.Plain(s)} }

func messageEvent(body string) func(*backends.Event, *backends.Message) bool {
	return func(_ *backends.Event, m *backends.Message) bool { return m.Text.Plain() == body }
}
