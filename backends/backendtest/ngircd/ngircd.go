// Package ngircd starts ngIRCd, an IRC server of the old school: its only
// capability is multi-prefix.
package ngircd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/gjallar-im/gjallar/backends/backendtest/peer"
)

// Server is a running ngIRCd.
type Server struct {
	*peer.Process
	Addr string // host:port, no TLS
	dir  string
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
	ports, err := peer.FreePorts(1)
	if err != nil {
		return nil, err
	}
	s := &Server{Addr: fmt.Sprintf("127.0.0.1:%d", ports[0]), dir: dir}
	config := fmt.Sprintf(`[Global]
Name = irc.test
Info = test
Listen = 127.0.0.1
Ports = %d
ServerUID = irc
ServerGID = irc
[Limits]
MaxConnectionsIP = 0
MaxPenaltyTime = 0
MaxNickLength = 30
MaxJoins = 0
[Options]
DNS = no
Ident = no
PAM = no
`, ports[0])
	if err := os.WriteFile(filepath.Join(dir, "ngircd.conf"), []byte(config), 0o644); err != nil {
		return nil, err
	}
	return s, s.Restart(ctx)
}

// Restart starts the server again, on the same port, after it was stopped.
func (s *Server) Restart(ctx context.Context) error {
	path, err := peer.Find("ngircd", "ngircd")
	if err != nil {
		return err
	}
	s.Process, err = peer.Start(peer.Command{Path: path, Args: []string{"-n", "-f", filepath.Join(s.dir, "ngircd.conf")}, Dir: s.dir})
	if err != nil {
		return err
	}
	return s.WaitTCP(ctx, s.Addr)
}
