package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends/backendtest/peer"
)

// TestMain lets the test binary be the program, and the processes that the program
// starts.
func TestMain(m *testing.M) {
	if os.Getenv("GJALLAR_TEST_MAIN") != "" || len(os.Args) == 3 && os.Args[1] == pluginCommand {
		main()
	}
	os.Exit(m.Run())
}

// patience bounds how long a test waits for what must happen.
const patience = 30 * time.Second

// program is Gjallar as a process of its own, with a data folder and addresses that
// stay the same when it is started again.
type program struct {
	tb   testing.TB
	name string // the command
	args []string
	dir  string
	web  string // base URL for Matrix clients
	irc  string // address for IRC clients

	cmd *exec.Cmd
	mu  sync.Mutex
	out bytes.Buffer // guarded by mu
}

// newProgram prepares a program that runs with a configuration, in addition to
// addresses of its own.
func newProgram(tb testing.TB, yaml string) *program {
	tb.Helper()
	ports, err := peer.FreePorts(2)
	if err != nil {
		tb.Fatal(err)
	}
	p := &program{tb: tb, name: "serve", dir: tb.TempDir(), web: fmt.Sprintf("http://127.0.0.1:%d", ports[0]), irc: fmt.Sprintf("127.0.0.1:%d", ports[1])}
	file := filepath.Join(p.dir, "gjallar.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		tb.Fatal(err)
	}
	p.args = []string{"-config", file, "-data", filepath.Join(p.dir, "data"), "-listen", strings.TrimPrefix(p.web, "http://"), "-irc-listen", p.irc}
	return p
}

// startProgram runs `gjallar serve` until the test ends.
func startProgram(tb testing.TB, yaml string) *program {
	tb.Helper()
	p := newProgram(tb, yaml)
	p.start()
	return p
}

// start runs the program and waits until it says that it is ready.
func (p *program) start() {
	p.tb.Helper()
	self, err := os.Executable()
	if err != nil {
		p.tb.Fatal(err)
	}
	p.cmd = exec.Command(self, append([]string{p.name}, p.args...)...)
	p.cmd.Env = append(os.Environ(), "GJALLAR_TEST_MAIN=1", "GJALLAR_RATE_LIMITS=false")
	p.cmd.Stderr = p
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		p.tb.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.tb.Fatal(err)
	}
	cmd := p.cmd
	p.tb.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if p.tb.Failed() {
			p.tb.Logf("gjallar wrote:\n%s", p.log())
		}
	})
	ready := make(chan bool)
	go func() {
		s := bufio.NewScanner(stdout)
		for s.Scan() {
			fmt.Fprintln(p, s.Text())
			if strings.Contains(s.Text(), "ready") {
				close(ready)
				break
			}
		}
		for s.Scan() {
			fmt.Fprintln(p, s.Text())
		}
	}()
	select {
	case <-ready:
	case <-time.After(patience):
		p.tb.Fatalf("gjallar is not ready:\n%s", p.log())
	}
}

// Write gathers what the program says.
func (p *program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *program) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// kill ends the program as a crash would, without its children.
func (p *program) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// stop ends the program as an admin would; its exit status must be 0.
func (p *program) stop() {
	p.tb.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		p.tb.Errorf("after SIGTERM: %v\n%s", err, p.log())
	}
}

// plugin returns the process of a built-in backend, waiting for it if it is being
// started again.
func (p *program) plugin(protocol string) *os.Process {
	p.tb.Helper()
	ctx := soon(p.tb)
	for {
		out, err := exec.Command("pgrep", "-P", fmt.Sprint(p.cmd.Process.Pid), "-f", pluginCommand+" "+protocol+"$").Output()
		var pid int
		if _, scanErr := fmt.Sscan(string(out), &pid); err == nil && scanErr == nil {
			proc, err := os.FindProcess(pid)
			must(p.tb, err)
			return proc
		}
		if ctx.Err() != nil {
			p.tb.Fatalf("no process of %s: %v", protocol, err)
		}
		wait(ctx, 10*time.Millisecond)
	}
}

func (p *program) matrix(name string) *matrixClient {
	p.tb.Helper()
	c, err := registerMatrix(p.tb.Context(), p.web, name)
	if err != nil {
		p.tb.Fatal(err)
	}
	return c
}

// soon is a context within which something must happen.
func soon(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	tb.Cleanup(cancel)
	return ctx
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// ircUser connects to an IRC server, waiting until there is one.
func ircUser(tb testing.TB, addr, nick string) *ircClient {
	tb.Helper()
	ctx := soon(tb)
	for {
		c, err := dialIRC(ctx, addr, nick)
		if err == nil {
			tb.Cleanup(c.close)
			return c
		}
		var op *net.OpError
		if ctx.Err() != nil {
			tb.Fatalf("connect %s: %v (%T)", nick, err, op)
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// sees waits until a room has a message with the text, and returns it.
func (c *matrixClient) sees(tb testing.TB, room, text string) matrixMessage {
	tb.Helper()
	ctx := soon(tb)
	for {
		list, _, err := c.news(ctx, room)
		if err != nil {
			tb.Fatalf("waiting for %q: %v", text, err)
		}
		for _, m := range list {
			if m.Content.Body == text {
				return m
			}
		}
	}
}
