// Package ejabberd starts ejabberd, an XMPP server, with a MUC service and a place
// for an external component.
package ejabberd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends/backendtest/peer"
)

// Names of the server.
const (
	Domain    = "e.test"
	MUC       = "conference.e.test"
	Component = "bridge.e.test"
	Secret    = "s3cr3t"
)

// Server is a running ejabberd.
type Server struct {
	*peer.Process
	C2S           string // host:port for clients, plain text with PLAIN allowed
	ComponentAddr string // host:port for the component
	dir           string
	ctl           string
	epmdPort      int
	epmd          *peer.Process // Erlang's port mapper, which would otherwise daemonize
}

// Start runs a server for the length of the test.
func Start(tb testing.TB) *Server {
	tb.Helper()
	s, err := Run(tb.Context(), peer.Dir(tb))
	peer.Need(tb, err)
	tb.Cleanup(func() { s.Stop() })
	return s
}

// Run starts a server whose files are in dir.
func Run(ctx context.Context, dir string) (*Server, error) {
	ctl, err := peer.Find("ejabberdctl", "ejabberd")
	if err != nil {
		return nil, err
	}
	ports, err := peer.FreePorts(3)
	if err != nil {
		return nil, err
	}
	s := &Server{C2S: fmt.Sprintf("127.0.0.1:%d", ports[0]), ComponentAddr: fmt.Sprintf("127.0.0.1:%d", ports[1]), dir: dir, ctl: ctl, epmdPort: ports[2]}
	config := fmt.Sprintf(`
hosts: [%q]
loglevel: info
auth_method: internal
auth_password_format: plain
acl: {local: {user_regexp: ""}}
listen:
  - {port: %d, ip: "127.0.0.1", module: ejabberd_c2s, max_stanza_size: 262144, shaper: none, access: all}
  - {port: %d, ip: "127.0.0.1", module: ejabberd_service, shaper: none, hosts: {%q: {password: %q}}}
modules:
  mod_disco: {}
  mod_ping: {}
  mod_roster: {}
  mod_mam: {}
  mod_muc: {host: %q, history_size: 200, default_room_options: {persistent: true, mam: true}}
`, Domain, ports[0], ports[1], Component, Secret, MUC)
	files := map[string]string{
		"ejabberd.yml": config,
		"ctl.cfg":      fmt.Sprintf("ERLANG_NODE=gjallar%d@localhost\nINET_DIST_INTERFACE=127.0.0.1\nERL_OPTIONS=\"\"\n", ports[2]),
		"inetrc":       "{lookup,[\"file\",\"native\"]}.\n{file, hosts, \"/etc/hosts\"}.\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	return s, s.Restart(ctx)
}

// Stop ends the server and what it needs.
func (s *Server) Stop() {
	s.Process.Stop()
	s.epmd.Stop()
}

// Restart starts the server again, on the same ports, after it was stopped.
func (s *Server) Restart(ctx context.Context) error {
	epmd, err := peer.Find("epmd", "erlang-base")
	if err != nil {
		return err
	}
	s.epmd, err = peer.Start(peer.Command{Path: epmd, Args: []string{"-address", "127.0.0.1", "-port", fmt.Sprint(s.epmdPort)}, Dir: s.dir})
	if err != nil {
		return err
	}
	if err := s.epmd.WaitTCP(ctx, fmt.Sprintf("127.0.0.1:%d", s.epmdPort)); err != nil {
		return err
	}
	s.Process, err = peer.Start(peer.Command{Path: s.ctl, Args: s.args("foreground"), Env: s.env(), Dir: s.dir, User: "ejabberd"})
	if err != nil {
		return err
	}
	if err := s.WaitTCP(ctx, s.ComponentAddr); err != nil {
		return err
	}
	return s.WaitTCP(ctx, s.C2S)
}

func (s *Server) args(command ...string) []string {
	return append([]string{"--config-dir", s.dir, "--config", filepath.Join(s.dir, "ejabberd.yml"), "--logs", filepath.Join(s.dir, "logs"),
		"--spool", filepath.Join(s.dir, "spool"), "--ctl-config", filepath.Join(s.dir, "ctl.cfg")}, command...)
}

// env keeps the Erlang port mapper to loopback and to a port of our own, and
// gives the node a home to keep its cookie in.
func (s *Server) env() []string {
	return []string{"ERL_EPMD_ADDRESS=127.0.0.1", fmt.Sprintf("ERL_EPMD_PORT=%d", s.epmdPort), "HOME=" + s.dir}
}

// Register makes the account user@e.test.
func (s *Server) Register(ctx context.Context, user, password string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		cmd := exec.CommandContext(ctx, s.ctl, s.args("register", user, Domain, password)...)
		cmd.Env, cmd.Dir = append(os.Environ(), s.env()...), s.dir
		if os.Getuid() == 0 {
			cred, err := peer.GiveTo("ejabberd", s.dir)
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // the server makes and removes files meanwhile
				return err
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
		}
		out, err := cmd.CombinedOutput()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("ejabberdctl register %s: %w: %s", user, err, out)
		case <-time.After(200 * time.Millisecond): // the node takes commands a little after it takes clients
		}
	}
}
