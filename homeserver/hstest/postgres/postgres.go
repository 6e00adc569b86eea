// Package postgres starts PostgreSQL for tests and benchmarks.
package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the "pgx" driver
)

// ErrMissing means that PostgreSQL is not installed.
var ErrMissing = errors.New("PostgreSQL is not installed: apt-get install postgresql")

// Cluster is a running database server.
type Cluster struct {
	Dir  string
	Port int
	bin  string
	cmd  *exec.Cmd
	done chan struct{}
}

// Env names a cluster to be used instead of one started here, as a DSN of a
// database that may create others.
const Env = "GJALLAR_TEST_POSTGRES"

var (
	shared  = sync.OnceValues(func() (string, error) { return sharedDSN() })
	counter atomic.Int64
)

// Start returns the DSN of a fresh database. All tests of a process share a
// cluster, whose server does not wait for the disk. A missing PostgreSQL skips
// the test, or fails it if GJALLAR_REQUIRE_PEERS is 1.
func Start(tb testing.TB) string {
	tb.Helper()
	admin, err := shared()
	Need(tb, err)
	name := fmt.Sprintf("t%d_%d_%d", os.Getpid(), time.Now().UnixNano(), counter.Add(1))
	if err := execSQL(tb.Context(), admin, "CREATE DATABASE "+name); err != nil {
		tb.Fatalf("create database: %v", err)
	}
	tb.Cleanup(func() {
		if err := execSQL(context.Background(), admin, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			tb.Logf("drop database: %v", err)
		}
	})
	return withDatabase(admin, name)
}

// Need ends the test if err is not nil: by a skip if PostgreSQL is missing and
// may be.
func Need(tb testing.TB, err error) {
	tb.Helper()
	if errors.Is(err, ErrMissing) && os.Getenv("GJALLAR_REQUIRE_PEERS") != "1" {
		tb.Skip(err)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

func sharedDSN() (string, error) {
	if dsn := os.Getenv(Env); dsn != "" {
		return dsn, nil
	}
	sweep()
	dir, err := folder()
	if err != nil {
		return "", err
	}
	c, err := Create(dir)
	if err != nil {
		return "", err
	}
	if err := c.Run("fsync=off", "full_page_writes=off"); err != nil {
		return "", err
	}
	return c.DSN("postgres"), nil
}

// folder of a cluster. Its name has the ID of the process it belongs to.
func folder() (string, error) { return os.MkdirTemp("", fmt.Sprintf("gjallar-pg-%d-", os.Getpid())) }

// sweep removes what clusters of test processes left that are gone: their
// server ended with them, their folder did not.
func sweep() {
	old, _ := filepath.Glob(filepath.Join(os.TempDir(), "gjallar-pg-*-*"))
	for _, dir := range old {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), "gjallar-pg-"), "-")
		if pid, err := strconv.Atoi(owner); err == nil && syscall.Kill(pid, 0) == syscall.ESRCH {
			os.RemoveAll(dir)
		}
	}
}

// New makes a cluster of the test's own, for tests that kill it. It is not running
// yet, and is stopped and removed with the test.
func New(tb testing.TB) *Cluster {
	tb.Helper()
	dir, err := folder()
	Need(tb, err)
	tb.Cleanup(func() { os.RemoveAll(dir) })
	c, err := Create(dir)
	Need(tb, err)
	tb.Cleanup(func() {
		if c.cmd != nil {
			c.Stop()
		}
	})
	return c
}

// Create makes the files of a cluster below dir, which the user postgres must be
// able to enter.
func Create(dir string) (*Cluster, error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	c := &Cluster{Dir: filepath.Join(dir, "data"), bin: bin}
	if c.Port, err = freePort(); err != nil {
		return nil, err
	}
	cred, err := credential()
	if err != nil {
		return nil, err
	}
	if cred != nil {
		if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(c.Dir, 0o700), os.Chown(c.Dir, int(cred.Uid), int(cred.Gid))); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", c.Dir, err)
		}
	}
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", c.Dir, "-U", "gjallar", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	initdb.Dir = "/"
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	return c, nil
}

// Run starts the server with further settings ("name=value") and waits until it
// answers. It ends with this process at the latest.
func (c *Cluster) Run(settings ...string) error {
	cred, err := credential()
	if err != nil {
		return err
	}
	args := []string{"-D", c.Dir, "-p", strconv.Itoa(c.Port), "-h", "127.0.0.1", "-k", "", "-c", "max_connections=200", "-c", "shared_buffers=64MB"}
	for _, s := range settings {
		args = append(args, "-c", s)
	}
	log, err := os.OpenFile(filepath.Join(filepath.Dir(c.Dir), "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	c.cmd = exec.Command(filepath.Join(c.bin, "postgres"), args...)
	c.cmd.Stdout, c.cmd.Stderr, c.cmd.Dir = log, log, "/"
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Pdeathsig: syscall.SIGQUIT}
	if err := startOnOwnThread(c.cmd); err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	cmd, done := c.cmd, make(chan struct{})
	c.done = done
	go func() { cmd.Wait(); close(done) }()
	return c.wait()
}

// startOnOwnThread keeps the thread that starts the process: the kernel signals
// a process's death to its children when that thread ends.
func startOnOwnThread(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			select {}
		}
	}()
	return <-started
}

func (c *Cluster) wait() error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for {
		err := execSQL(ctx, c.DSN("postgres"), "SELECT 1")
		if err == nil {
			return nil
		}
		select {
		case <-c.done:
			b, _ := os.ReadFile(filepath.Join(filepath.Dir(c.Dir), "log"))
			return fmt.Errorf("postgres ended: %s", b)
		case <-ctx.Done():
			return fmt.Errorf("postgres does not answer: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Pid of the server.
func (c *Cluster) Pid() int { return c.cmd.Process.Pid }

// Kill ends the server and all its processes by SIGKILL, and returns when they are
// gone. Run starts it again.
func (c *Cluster) Kill() {
	c.cmd.Process.Signal(syscall.SIGSTOP) // it must not start more while they are counted
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", c.Pid(), c.Pid()))
	c.cmd.Process.Kill()
	<-c.done
	for f := range strings.FieldsSeq(string(children)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			continue
		}
		syscall.Kill(pid, syscall.SIGKILL)
		// While one of them holds the shared memory no other server starts.
		for deadline := time.Now().Add(10 * time.Second); alive(pid) && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
	}
	os.Remove(filepath.Join(c.Dir, "postmaster.pid"))
}

// alive reports whether a process still holds anything: a zombie does not.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(b), ") ")
	return err == nil && !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

// Stop ends the server in order.
func (c *Cluster) Stop() {
	c.cmd.Process.Signal(syscall.SIGINT)
	<-c.done
}

// DSN of a database of the cluster.
func (c *Cluster) DSN(database string) string {
	return fmt.Sprintf("postgres://gjallar@127.0.0.1:%d/%s?sslmode=disable", c.Port, database)
}

func withDatabase(dsn, name string) string {
	head, query, _ := strings.Cut(dsn, "?")
	return head[:strings.LastIndexByte(head, '/')+1] + name + "?" + query
}

func execSQL(ctx context.Context, dsn, query string) error {
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, query)
	return err
}

func binaries() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		return "", ErrMissing
	}
	return filepath.Dir(found[len(found)-1]), nil
}

// credential is that of the user postgres if we are root, as whom PostgreSQL
// refuses to run.
func credential() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
