package host

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

// quick makes restarts fast enough for tests.
var quick = Restarts{Min: time.Millisecond, Max: 10 * time.Millisecond, Crashes: 100}

// logs is what a plugin's log goes to.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func options(tb testing.TB, as string, env ...string) (Options, *logs) {
	l := &logs{}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("log:\n%s", l)
		}
	})
	return Options{
		Name: as, Command: []string{os.Args[0]}, Restarts: quick,
		Env: append([]string{role + "=" + as, "GORACE=atexit_sleep_ms=0"}, env...),
		Log: slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}, l
}

func newPlugin(tb testing.TB, o Options) *Plugin {
	tb.Helper()
	p, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), backendtest.Patience)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			tb.Logf("close: %v", err)
		}
	})
	return p
}

func openNetwork(tb testing.TB, p *Plugin, config string) (*backendtest.Host, backends.Network) {
	tb.Helper()
	h := backendtest.NewHost(tb)
	n, err := p.Open(tb.Context(), json.RawMessage(config), h)
	if err != nil {
		tb.Fatal(err)
	}
	return h, n
}

func openPuppet(tb testing.TB, config string) (*backendtest.Host, backends.Network, *logs) {
	tb.Helper()
	o, l := options(tb, "puppet")
	h, n := openNetwork(tb, newPlugin(tb, o), config)
	h.WaitPhase(backends.Ready)
	return h, n, l
}

// inner returns the network below its abilities.
func inner(n backends.Network) *network {
	switch n := n.(type) {
	case *network:
		return n
	case struct {
		*network
		resolver
	}:
		return n.network
	}
	panic(fmt.Sprintf("%T", n))
}

func pid(n backends.Network) int {
	in := inner(n)
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.session.process.child.cmd.Process.Pid
}

func command(chat, id, text string) *backends.Command {
	return &backends.Command{
		ID: id, Attempt: 1, Chat: backends.ChatKey{Chat: backends.ChatID(chat)},
		Sender: backends.User{Account: "@alice:test"}, Body: &backends.Message{Text: richtext.Plain(text)},
	}
}

// tell sends a command and waits for its result.
func tell(tb testing.TB, n backends.Network, text string) backends.Result {
	tb.Helper()
	result := make(chan backends.Result, 2)
	if err := n.Send(tb.Context(), command("stage", "id", text), func(r backends.Result) { result <- r }); err != nil {
		tb.Fatalf("send %q: %v", text, err)
	}
	select {
	case r := <-result:
		return r
	case <-time.After(backendtest.Patience):
		tb.Fatalf("no result of %q", text)
		return backends.Result{}
	}
}

func mustDo(tb testing.TB, n backends.Network, text string) string {
	tb.Helper()
	r := tell(tb, n, text)
	if r.Outcome != backends.Delivered {
		tb.Fatalf("%s: %+v", text, r)
	}
	return r.Reason
}

func TestContractOverTheWire(t *testing.T) {
	o, _ := options(t, "puppet")
	sender := command("stage", "", "").Sender
	backendtest.Run(t, backendtest.Case{
		Backend: newPlugin(t, o),
		Config:  func(testing.TB) json.RawMessage { return json.RawMessage(`{}`) },
		Bad:     []json.RawMessage{json.RawMessage(`{"open": "refuse"}`), json.RawMessage(`{"open": 1}`)},
		Chat:    backends.ChatKey{Chat: "stage"},
		NoChat:  backends.ChatKey{Chat: "full"},
		Sender:  sender,
		Say: func(tb testing.TB, n backends.Network, text string) {
			_ = n.Send(context.Background(), command("wings", text, "announce "+text), func(backends.Result) {})
		},
		Messages: 100,
	})
}

func TestKillAmidAThousandCommands(t *testing.T) {
	h, n, _ := openPuppet(t, `{}`)
	const total = 1000
	var mu sync.Mutex
	results := map[string][]backends.Result{}
	some, all := make(chan struct{}), make(chan struct{})
	count := 0
	for i := range total {
		id := fmt.Sprint(i)
		text := "say it"
		if i%3 == 0 {
			text = "hold it" // the puppet keeps these in hand
		}
		err := n.Send(t.Context(), command(fmt.Sprint("chat ", i%5), id, text), func(r backends.Result) {
			mu.Lock()
			defer mu.Unlock()
			results[id] = append(results[id], r)
			switch count++; count {
			case total / 4:
				close(some)
			case total:
				close(all)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	<-some
	if err := syscall.Kill(pid(n), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.WaitPhase(backends.Disconnected)
	h.WaitPhase(backends.Ready)
	select {
	case <-all:
	case <-time.After(backendtest.Patience):
		t.Fatalf("%d of %d commands have a result", count, total)
	}
	mustDo(t, n, "say on")
	mu.Lock()
	defer mu.Unlock()
	outcomes := map[backends.Outcome]int{}
	for id, rs := range results {
		if len(rs) != 1 {
			t.Errorf("command %s has %d results", id, len(rs))
		}
		outcomes[rs[0].Outcome]++
	}
	if outcomes[backends.Interrupted] == 0 || outcomes[backends.Delivered] < total/4 ||
		outcomes[backends.Interrupted]+outcomes[backends.Delivered]+outcomes[backends.Retry] != total {
		t.Errorf("outcomes %v", outcomes)
	}
}

func TestCrashLoopOpensTheBreaker(t *testing.T) {
	o, _ := options(t, "puppet")
	o.Restarts = Restarts{Min: time.Millisecond, Max: time.Millisecond, Crashes: 3, Window: time.Hour, Pause: time.Hour}
	h, n := openNetwork(t, newPlugin(t, o), `{"open": "crash"}`)
	state := h.WaitPhase(backends.Failed)
	if !strings.Contains(state.Reason, "exit status 4") {
		t.Errorf("reason %q", state.Reason)
	}
	ready := 0
	for _, ev := range h.Events() {
		if s, ok := ev.Body.(*backends.NetworkState); ok && s.Phase == backends.Ready {
			ready++
		}
	}
	if ready != 3 {
		t.Errorf("the process ran %d times, want 3", ready)
	}
	if r := tell(t, n, "say it"); r.Outcome != backends.Retry || r.After < time.Hour/2 {
		t.Errorf("result %+v", r)
	}
	if _, err := n.Join(t.Context(), backends.JoinRequest{}); !errors.Is(err, ErrDown) {
		t.Errorf("join: %v", err)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := n.Send(t.Context(), command("c", "1", "x"), nil); !errors.Is(err, ErrClosed) {
		t.Errorf("send after Close: %v", err)
	}
}

func TestChecksum(t *testing.T) {
	b, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	o, _ := options(t, "puppet")
	o.Checksum = hex.EncodeToString(sum[:])
	newPlugin(t, o)
	sum[5] ^= 1
	o.Checksum = hex.EncodeToString(sum[:])
	if _, err := New(o); !errors.Is(err, ErrChecksum) {
		t.Errorf("with another checksum: %v", err)
	}
	o.Checksum = "abc"
	if _, err := New(o); err == nil {
		t.Error("a checksum that is none is taken")
	}
}

func TestChildHasOnlyTheEnvironmentItNeeds(t *testing.T) {
	t.Setenv("GJALLAR_SECRET", "hunter2")
	_, n, _ := openPuppet(t, `{}`)
	allowed := slices.Concat(inherited, []string{role, "GORACE", "GJALLAR_PLUGIN", "GJALLAR_PLUGIN_LOG_LEVEL"})
	certificate := regexp.MustCompile(`(?s)-----BEGIN .*-----END CERTIFICATE-----\s*`)
	for pair := range strings.SplitSeq(certificate.ReplaceAllString(mustDo(t, n, "environ"), "\n"), "\n") {
		name, _, _ := strings.Cut(pair, "=")
		if name != "" && !strings.HasPrefix(name, "PLUGIN_") && !slices.Contains(allowed, name) {
			t.Errorf("the child has %s", pair)
		}
	}
	if strings.Contains(mustDo(t, n, "environ"), "hunter2") {
		t.Error("the child has our secret")
	}
}

func TestServicesOfTheHost(t *testing.T) {
	h, n, _ := openPuppet(t, `{}`)
	rooms, tea := h.FakeRooms(), backends.RoomName{Alias: "tea"}
	rooms.AddAccount(backends.User{Account: "@alice:test", Username: "alice"}, "secret")
	rooms.AddRoom(backends.RoomSummary{Room: tea, Name: "Tea room"}, backends.Member{Action: backends.Joined, User: backends.User{Account: "@alice:test"}})
	one, two := command("#tea", "1", "one"), command("#tea", "2", "two")
	one.Time, two.Time = time.Unix(1000, 0), time.Unix(2000, 0)
	rooms.AddHistory(tea, *one, *two)
	h.Answer(func(ev *backends.Event) backends.Receipt {
		if ev.ID == "bad" {
			return backends.Receipt{Err: &backends.Refusal{Code: backends.RefusedForbidden, Message: "not that"}}
		}
		return backends.Receipt{ID: "host:" + ev.ID}
	})
	mustDo(t, n, "store")
	mustDo(t, n, "rooms")
	url := mustDo(t, n, "upload")
	if b, ok := h.Uploaded(url); !ok || len(b) != 800_000 {
		t.Errorf("uploaded %d bytes", len(b))
	}
	if got := mustDo(t, n, "deliver"); got != "host:good, forbidden: not that" {
		t.Errorf("receipts %q", got)
	}
}

func TestCallsAndAbilities(t *testing.T) {
	_, n, _ := openPuppet(t, `{}`)
	info, err := n.Join(t.Context(), backends.JoinRequest{Chat: backends.ChatKey{Chat: "c", Account: "a"}})
	if err != nil || info.Chat != (backends.ChatKey{Chat: "c", Account: "a"}) || info.Members != 3 {
		t.Errorf("join: %+v, %v", info, err)
	}
	if _, err := n.Join(t.Context(), backends.JoinRequest{Chat: backends.ChatKey{Chat: "full"}}); !refusedWith(err, backends.RefusedFull) {
		t.Errorf("join of a full chat: %v", err)
	}
	if _, err := n.Join(t.Context(), backends.JoinRequest{Chat: backends.ChatKey{Chat: "nil"}}); err == nil {
		t.Error("a backend that returns nothing is believed")
	}
	if err := n.Leave(t.Context(), backends.ChatKey{Chat: "c"}); err != nil {
		t.Errorf("leave: %v", err)
	}
	r, ok := n.(backends.Resolver)
	if !ok {
		t.Fatal("the network is no Resolver")
	}
	if info, err := r.ResolveChat(t.Context(), "go"); err != nil || info.Chat.Chat != "#go" || *info.Topic != "found" {
		t.Errorf("resolve chat: %+v, %v", info, err)
	}
	if _, err := r.ResolveUser(t.Context(), "bob"); !refusedWith(err, backends.RefusedNotFound) {
		t.Errorf("resolve user: %v", err)
	}
	if _, ok := n.(backends.Directory); ok {
		t.Error("the network is a Directory")
	}
	result := make(chan backends.Result, 1)
	cmd := command("c", "1", "")
	cmd.Body = &backends.Typing{On: true}
	if err := n.Send(t.Context(), cmd, func(r backends.Result) { result <- r }); err != nil {
		t.Fatal(err)
	}
	if r := <-result; r.Outcome != backends.Unsupported {
		t.Errorf("result %+v", r)
	}
	if r := tell(t, n, strings.Repeat("x", 4<<20)); r.Outcome != backends.Rejected {
		t.Errorf("a command of 4 MiB: %+v", r)
	}
}

func TestOpenErrors(t *testing.T) {
	o, _ := options(t, "puppet")
	o.Timeouts.Open = 300 * time.Millisecond
	p := newPlugin(t, o)
	tests := []struct {
		name, config string
		ok           func(error) bool
	}{
		{"not JSON", `{`, func(err error) bool { return refusedWith(err, backends.RefusedInvalid) }},
		{"against the schema", `{"opne": "x"}`, func(err error) bool { return refusedWith(err, backends.RefusedInvalid) }},
		{"a secret against the schema is not shown", `{"password": "hunter2"}`, func(err error) bool {
			return refusedWith(err, backends.RefusedInvalid) && !strings.Contains(err.Error(), "hunter2") && strings.Contains(err.Error(), "/password")
		}},
		{"the backend refuses", `{"open": "refuse"}`, func(err error) bool { return refusedWith(err, backends.RefusedInvalid) && err.Error() == "I will not" }},
		{"the backend hangs", `{"open": "hang"}`, func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }},
		{"the process dies", `{"open": "exit"}`, func(err error) bool { return errors.Is(err, ErrDown) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := p.Open(t.Context(), json.RawMessage(test.config), backendtest.NewHost(t))
			if err == nil || !test.ok(err) {
				t.Errorf("err = %v", err)
			}
		})
	}
	h, _ := openNetwork(t, p, `{}`)
	h.WaitPhase(backends.Ready)
}

func TestAHangingCallIsBounded(t *testing.T) {
	o, _ := options(t, "puppet")
	o.Timeouts.Call = 100 * time.Millisecond
	_, n := openNetwork(t, newPlugin(t, o), `{}`)
	_, err := n.Join(t.Context(), backends.JoinRequest{Chat: backends.ChatKey{Chat: "hang"}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err = %v", err)
	}
	mustDo(t, n, "say on")
}

func TestAStuckProcessIsReplaced(t *testing.T) {
	o, _ := options(t, "puppet")
	o.Timeouts.Ping, o.Timeouts.PingEvery = time.Second, 10*time.Millisecond
	h, n := openNetwork(t, newPlugin(t, o), `{}`)
	h.WaitPhase(backends.Ready)
	if err := syscall.Kill(pid(n), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if s := h.WaitPhase(backends.Disconnected); !strings.Contains(s.Reason, "does not answer") {
		t.Errorf("reason %q", s.Reason)
	}
	h.WaitPhase(backends.Ready)
}

func TestAPanicEndsInTheLogAndInARestart(t *testing.T) {
	h, n, l := openPuppet(t, `{}`)
	if r := tell(t, n, "panic with these words"); r.Outcome != backends.Interrupted {
		t.Errorf("result %+v", r)
	}
	if s := h.WaitPhase(backends.Disconnected); !strings.Contains(s.Reason, "exit status 2") {
		t.Errorf("reason %q", s.Reason)
	}
	h.WaitPhase(backends.Ready)
	if !strings.Contains(l.String(), "with these words") {
		t.Error("the panic is not in the log")
	}
}

func TestLogOfThePlugin(t *testing.T) {
	_, n, l := openPuppet(t, `{}`)
	mustDo(t, n, "log hello there")
	if err := n.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for _, want := range []string{`level=INFO msg="puppet says" plugin=puppet number=7 what="hello there"`, `line="plain hello there"`} {
		if !strings.Contains(l.String(), want) {
			t.Errorf("the log lacks %q", want)
		}
	}
}

func TestCloseDrains(t *testing.T) {
	h, n, _ := openPuppet(t, `{}`)
	results := make(chan backends.Result, 300)
	for i := range 250 {
		if err := n.Send(t.Context(), command("c", fmt.Sprint(i), "hold it"), func(r backends.Result) { results <- r }); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if len(results) != 250 {
		t.Errorf("after Close %d of 250 commands have a result", len(results))
	}
	for range len(results) {
		if r := <-results; r.Outcome != backends.Rejected || r.Reason != "closing" {
			t.Errorf("result %+v", r)
		}
	}
	if ev, _ := backendtest.NextBody[*backends.Message](h, nil); ev.Chat.Chat != "goodbye" {
		t.Errorf("the last event is of %+v", ev.Chat)
	}
	for _, ev := range h.Events() {
		if s, ok := ev.Body.(*backends.NetworkState); ok && s.Phase == backends.Disconnected {
			t.Error("Close looks like a crash")
		}
	}
}

func TestCloseIsBounded(t *testing.T) {
	h, n, _ := openPuppet(t, `{}`)
	results := make(chan backends.Result, 2)
	if err := n.Send(t.Context(), command("c", "1", "hold it"), func(r backends.Result) { results <- r }); err != nil {
		t.Fatal(err)
	}
	mustDo(t, n, "say it") // another chat: the first is held by now or will be
	h.Hold(0)              // goodbye is not taken
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	start := time.Now()
	err := n.Close(ctx)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Close took %v", took)
	}
	if err == nil {
		t.Error("Close says that all is well")
	}
	if len(results) != 1 {
		t.Errorf("%d results", len(results))
	}
}

func TestSIGTERMEndsAProcessInOrder(t *testing.T) {
	h, n, _ := openPuppet(t, `{}`)
	if err := syscall.Kill(pid(n), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	backendtest.NextBody(h, func(ev *backends.Event, _ *backends.Message) bool { return ev.Chat.Chat == "goodbye" })
	h.WaitPhase(backends.Disconnected)
	h.WaitPhase(backends.Ready) // somebody else's SIGTERM does not end the network
}

func TestRunByHand(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{role + "=puppet"}
	out, err := cmd.CombinedOutput()
	if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.ExitCode() != 1 {
		t.Errorf("err = %v", err)
	}
	if !strings.Contains(string(out), "is a plugin (Puppet) of Gjallar") {
		t.Errorf("output %q", out)
	}
}

// hostMain is a host that opens a puppet, says so, and waits to be killed.
func hostMain() {
	p, err := New(Options{Name: "puppet", Command: []string{os.Args[0]}, Env: []string{role + "=puppet"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	if _, err := p.Open(context.Background(), json.RawMessage(os.Getenv("GJALLAR_TEST_CONFIG")), discard{}); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("open")
	select {}
}

// discard is a host that takes everything and has nothing.
type discard struct{ backends.Host }

func (discard) Deliver(_ context.Context, _ *backends.Event, done func(backends.Receipt)) error {
	if done != nil {
		done(backends.Receipt{})
	}
	return nil
}

// accept waits for a connection whose end is the end of a process.
func accept(t *testing.T, ln net.Listener) net.Conn {
	t.Helper()
	if err := ln.(*net.TCPListener).SetDeadline(time.Now().Add(backendtest.Patience)); err != nil {
		t.Fatal(err)
	}
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func waitDead(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(backendtest.Patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the process lives on: %v", err)
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func TestChildDiesWithItsHost(t *testing.T) {
	ln := listen(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{role + "=host", fmt.Sprintf(`GJALLAR_TEST_CONFIG={"dial": %q}`, ln.Addr())}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	child := accept(t, ln)
	line := make([]byte, 5)
	if _, err := io.ReadFull(out, line); err != nil || string(line) != "open\n" {
		t.Fatalf("the host said %q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	waitDead(t, child)
}

func TestWhatAPluginStartsDiesWithIt(t *testing.T) {
	ln := listen(t)
	_, n, _ := openPuppet(t, `{}`)
	mustDo(t, n, "spawn "+ln.Addr().String())
	grandchild := accept(t, ln)
	if err := syscall.Kill(pid(n), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitDead(t, grandchild)
}

func TestAGreedyPluginDiesAlone(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("limits are of Linux")
	}
	o, _ := options(t, "puppet")
	o.Limits = Limits{Memory: 1 << 30, Files: 64}
	h, n := openNetwork(t, newPlugin(t, o), `{}`)
	h.WaitPhase(backends.Ready)
	if r := tell(t, n, "eat"); r.Outcome != backends.Interrupted {
		t.Errorf("result %+v", r)
	}
	h.WaitPhase(backends.Disconnected)
	h.WaitPhase(backends.Ready)
	mustDo(t, n, "say on")
}

func TestPluginCloseClosesEverything(t *testing.T) {
	o, _ := options(t, "puppet")
	p := newPlugin(t, o)
	h1, _ := openNetwork(t, p, `{}`)
	h2, n2 := openNetwork(t, p, `{}`)
	h1.WaitPhase(backends.Ready)
	h2.WaitPhase(backends.Ready)
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for _, h := range []*backendtest.Host{h1, h2} {
		backendtest.NextBody(h, func(ev *backends.Event, _ *backends.Message) bool { return ev.Chat.Chat == "goodbye" })
	}
	if _, err := p.Open(t.Context(), []byte(`{}`), h1); !errors.Is(err, ErrClosed) {
		t.Errorf("Open after Close: %v", err)
	}
	if err := n2.Close(t.Context()); err != nil {
		t.Errorf("closing again: %v", err)
	}
}

func TestRoguesAreRefused(t *testing.T) {
	for mode, want := range map[string]string{
		"no handshake":      "hello, I am no plugin",
		"endless handshake": "",
		"silent":            "deadline exceeded",
		"exits":             "",
		"bad protocol":      "protocol",
		"bad schema":        "schema",
		"no schema":         "schema",
		"file schema":       "schema",
		"huge info":         "larger than max",
	} {
		t.Run(mode, func(t *testing.T) {
			o, _ := options(t, "rogue", rogueMode+"="+mode)
			if mode == "silent" {
				o.Timeouts.Start = 200 * time.Millisecond
			}
			p, err := New(o)
			if err == nil {
				_ = p.Close(t.Context())
			}
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("err = %v, want %q", err, want)
			}
		})
	}
	if _, err := New(Options{Command: []string{"/nonexistent/plugin"}}); err == nil {
		t.Error("a program that does not exist is started")
	}
}

func TestGarbageCostsOnlyItself(t *testing.T) {
	for _, mode := range []string{"empty events", "unknown enums"} {
		t.Run(mode, func(t *testing.T) {
			o, _ := options(t, "rogue", rogueMode+"="+mode)
			o.Timeouts.Close = 200 * time.Millisecond // it never ends a stream
			h, n := openNetwork(t, newPlugin(t, o), `{}`)
			backendtest.NextBody(h, func(ev *backends.Event, _ *backends.Typing) bool { return ev.ID == "last" })
			if len(h.Events()) != 1 {
				t.Errorf("events %v", h.Events())
			}
			if r := tell(t, n, "x"); r.Outcome != backends.Uncertain {
				t.Errorf("result %+v", r)
			}
		})
	}
}

func TestExcessEndsTheProcess(t *testing.T) {
	for mode, want := range map[string]string{"huge event": "larger than max", "flood": "more than it may"} {
		t.Run(mode, func(t *testing.T) {
			o, l := options(t, "rogue", rogueMode+"="+mode)
			o.Restarts = Restarts{Min: time.Hour, Max: time.Hour}
			h := backendtest.NewHost(t)
			if mode == "flood" {
				h.Hold(1)
			}
			n, err := newPlugin(t, o).Open(t.Context(), []byte(`{}`), h)
			if err != nil {
				t.Fatal(err)
			}
			if mode == "flood" {
				s, err := inner(n).current()
				if err != nil {
					t.Fatal(err)
				}
				<-s.streams.Done()
				h.Release()
			}
			state := h.WaitPhase(backends.Disconnected)
			if !strings.Contains(state.Reason, want) {
				t.Errorf("reason %q, want %q; log:\n%s", state.Reason, want, l)
			}
		})
	}
}
