package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin/runner"
)

// inherited are the only variables that a plugin gets of our environment.
var inherited = []string{"PATH", "TMPDIR", "TZ", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR", "SystemRoot"}

// pipeDelay bounds how long output is awaited after the child is dead: a child of
// its own may hold the pipes.
const pipeDelay = time.Second

// child is a plugin's process, as go-plugin's runner. It differs from go-plugin's
// own in that the child
//   - dies with us, because its standard input ends then,
//   - has a process group of its own,
//   - can write what it likes to its outputs: standard output is read for the
//     handshake alone, standard error becomes log lines.
type child struct {
	cmd    *exec.Cmd
	limits Limits
	stdout *io.PipeReader
	exited chan struct{} // closed when the process is dead and reaped
	err    error         // how it ended; readable after exited is closed

	mu     sync.Mutex
	pid    int  // 0 before the start; guarded by mu
	killed bool // even before the start; guarded by mu
}

// newChild prepares a child; env is what go-plugin wants it to have besides.
func newChild(argv, env []string, limits Limits, stderr io.Writer) (*child, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	if cmd.Err != nil {
		return nil, fmt.Errorf("find plugin: %w", cmd.Err)
	}
	for _, name := range inherited {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.Env = append(cmd.Env, env...)
	cmd.WaitDelay = pipeDelay
	ownGroup(cmd)
	if _, err := cmd.StdinPipe(); err != nil { // open until Wait has returned, or we are dead
		return nil, fmt.Errorf("pipe to plugin: %w", err)
	}
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = &firstLine{to: w}, stderr
	return &child{cmd: cmd, limits: limits, stdout: r, exited: make(chan struct{})}, nil
}

// Start implements runner.Runner.
func (c *child) Start(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.killed {
		return errors.New("start plugin: killed before")
	}
	if err := c.cmd.Start(); err != nil {
		return fmt.Errorf("start plugin: %w", err)
	}
	c.pid = c.cmd.Process.Pid
	go func() { // ends with the process; Wait waits for it
		c.err = c.cmd.Wait()
		killGroup(c.cmd) // what it left behind
		c.cmd.Stdout.(*firstLine).to.Close()
		close(c.exited)
	}()
	if err := limit(c.pid, c.limits); err != nil {
		killGroup(c.cmd)
		return err
	}
	return nil
}

// Wait implements runner.Runner.
func (c *child) Wait(ctx context.Context) error {
	select {
	case <-c.exited:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Kill implements runner.Runner. It is harmless when the child is dead, and keeps
// it from being started when it is not yet.
func (c *child) Kill(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.killed = true
	if c.pid == 0 {
		return nil
	}
	select {
	case <-c.exited:
	default:
		killGroup(c.cmd)
	}
	return nil
}

// Stdout implements runner.Runner.
func (c *child) Stdout() io.ReadCloser { return c.stdout }

// Stderr implements runner.Runner. It is empty: we log it ourselves, since
// go-plugin trusts the form of what it reads there.
func (c *child) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name implements runner.Runner.
func (c *child) Name() string { return c.cmd.Path }

// ID implements runner.Runner.
func (c *child) ID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pid == 0 {
		return ""
	}
	return strconv.Itoa(c.pid)
}

// Diagnose implements runner.Runner.
func (c *child) Diagnose(context.Context) string { return "" }

// PluginToHost implements runner.Runner: both see the same file system.
func (c *child) PluginToHost(network, addr string) (string, string, error) { return network, addr, nil }

// HostToPlugin implements runner.Runner.
func (c *child) HostToPlugin(network, addr string) (string, string, error) { return network, addr, nil }

var _ runner.Runner = (*child)(nil)

// maxHandshake bounds the line that a plugin starts with, in bytes.
const maxHandshake = 8 << 10

// firstLine passes on the first line written to it and drops the rest.
type firstLine struct {
	to   *io.PipeWriter
	buf  []byte
	done bool
}

func (f *firstLine) Write(p []byte) (int, error) {
	if f.done {
		return len(p), nil
	}
	f.buf = append(f.buf, p...)
	line, _, ok := bytes.Cut(f.buf, []byte("\n"))
	switch {
	case ok && len(line) < maxHandshake:
		f.done = true
		_, _ = f.to.Write(append(line, '\n')) // the reader is gone if nobody wants it any more
	case len(f.buf) >= maxHandshake:
		f.done = true
		_ = f.to.CloseWithError(errors.New("handshake line is too long"))
	}
	return len(p), nil
}

// quiet is go-plugin's logger: what matters of it we find out and log ourselves.
var quiet = hclog.NewNullLogger()
