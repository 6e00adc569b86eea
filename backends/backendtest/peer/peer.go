// Package peer runs foreign servers and clients for tests and benchmarks: as
// processes on loopback that end with this one.
package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// ErrMissing is wrapped by errors that say which package to install.
var ErrMissing = errors.New("a peer is not installed")

// Find returns the path of a program, looking where daemons are kept too. The
// error names the Debian package that has it.
func Find(program, debianPackage string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: %s: apt-get install %s", ErrMissing, program, debianPackage)
}

// Need ends the test if err is not nil: by a skip if a peer is missing, unless
// GJALLAR_REQUIRE_PEERS is 1.
func Need(tb testing.TB, err error) {
	tb.Helper()
	if errors.Is(err, ErrMissing) && os.Getenv("GJALLAR_REQUIRE_PEERS") != "1" {
		tb.Skip(err)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// Dir makes a folder for a peer that may run as another user, and removes it
// with the test.
func Dir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "gjallar-peer-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Command of a peer.
type Command struct {
	Path string
	Args []string
	Env  []string // added to ours
	Dir  string   // where it runs and its log goes
	User string   // to run as if we are root; "" is no change
}

// Process is a running peer.
type Process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	stop sync.Once
}

// Start runs the command. Its output goes to Dir/log.
func Start(c Command) (*Process, error) {
	p := &Process{log: filepath.Join(c.Dir, "log"), done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd = exec.Command(c.Path, c.Args...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = c.Dir, out, out
	p.cmd.Env = append(os.Environ(), c.Env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if c.User != "" && os.Getuid() == 0 {
		if p.cmd.SysProcAttr.Credential, err = GiveTo(c.User, c.Dir); err != nil {
			return nil, err
		}
	}
	started := make(chan error)
	go func() {
		// The kernel kills the child when the thread that started it ends, so
		// that thread stays.
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	return p, nil
}

// GiveTo makes a user the owner of all below dir, and returns how to run as them.
func GiveTo(name, dir string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	err = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, uid, gid))
	})
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, err
}

// Pid of the process.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Log returns what the process has printed.
func (p *Process) Log() string {
	b, _ := os.ReadFile(p.log)
	return string(b)
}

// Stop asks the process to end, and its whole group five seconds later.
func (p *Process) Stop() {
	p.stop.Do(func() {
		p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(5 * time.Second):
		}
		p.Kill()
	})
}

// Kill ends the process and its group at once.
func (p *Process) Kill() {
	syscall.Kill(-p.Pid(), syscall.SIGKILL)
	<-p.done
}

// WaitTCP waits until something listens on addr, or the process ends.
func (p *Process) WaitTCP(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended: %s", p.cmd.Path, p.Log())
		case <-ctx.Done():
			return fmt.Errorf("%s does not listen on %s: %w: %s", p.cmd.Path, addr, err, p.Log())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// FreePorts returns n different free ports of 127.0.0.1.
func FreePorts(n int) ([]int, error) {
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}
