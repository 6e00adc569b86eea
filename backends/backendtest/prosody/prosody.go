// Package prosody starts Prosody, an XMPP server, with a MUC service and a place
// for an external component.
package prosody

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/gjallar-im/gjallar/backends/backendtest/peer"
)

// Names of the server.
const (
	Domain    = "a.test"
	MUC       = "conference.a.test"
	Component = "bridge.a.test"
	Secret    = "s3cr3t"
)

// Server is a running Prosody.
type Server struct {
	*peer.Process
	C2S           string // host:port for clients, plain text with PLAIN allowed
	ComponentAddr string // host:port for the component
	dir           string
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
	ports, err := peer.FreePorts(2)
	if err != nil {
		return nil, err
	}
	s := &Server{C2S: fmt.Sprintf("127.0.0.1:%d", ports[0]), ComponentAddr: fmt.Sprintf("127.0.0.1:%d", ports[1]), dir: dir}
	config := fmt.Sprintf(`
run_as_root = true
pidfile = %q
data_path = %q
certificates = %q
log = { info = "*console" }
interfaces = { "127.0.0.1" }
use_ipv6 = false
c2s_ports = { %d }
component_interfaces = { "127.0.0.1" }
component_ports = { %d }
http_ports = {}
https_ports = {}
modules_enabled = { "roster", "saslauth", "disco", "ping", "carbons", "mam", "pep", "c2s" }
modules_disabled = { "s2s" }
authentication = "internal_plain"
storage = "internal"
c2s_require_encryption = false
allow_unencrypted_plain_auth = true
limits = {}
VirtualHost %q
Component %q "muc"
  modules_enabled = { "muc_mam" }
  restrict_room_creation = false
  muc_room_default_public = true
  muc_room_default_persistent = true
  muc_room_locking = false
  muc_room_default_history_length = 200
  max_history_messages = 1000
Component %q
  component_secret = %q
`, filepath.Join(dir, "prosody.pid"), filepath.Join(dir, "data"), filepath.Join(dir, "certs"), ports[0], ports[1], Domain, MUC, Component, Secret)
	for _, sub := range []string{"data", "certs"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(s.config(), []byte(config), 0o644); err != nil {
		return nil, err
	}
	return s, s.Restart(ctx)
}

func (s *Server) config() string { return filepath.Join(s.dir, "prosody.cfg.lua") }

// Restart starts the server again, on the same ports, after it was stopped.
func (s *Server) Restart(ctx context.Context) error {
	path, err := peer.Find("prosody", "prosody")
	if err != nil {
		return err
	}
	s.Process, err = peer.Start(peer.Command{Path: path, Args: []string{"--config", s.config(), "-F"}, Dir: s.dir})
	if err != nil {
		return err
	}
	if err := s.WaitTCP(ctx, s.ComponentAddr); err != nil {
		return err
	}
	return s.WaitTCP(ctx, s.C2S)
}

// Register makes the account user@a.test.
func (s *Server) Register(ctx context.Context, user, password string) error {
	path, err := peer.Find("prosodyctl", "prosody")
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, path, "--config", s.config(), "register", user, Domain, password).CombinedOutput()
	if err != nil {
		return fmt.Errorf("prosodyctl register %s: %w: %s", user, err, out)
	}
	return nil
}
