// Package inspircd starts InspIRCd, an IRC server with message tags, server time,
// message IDs, echo-message, labels and channel history (mode +H).
package inspircd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/gjallar-im/gjallar/backends/backendtest/peer"
)

// Server is a running InspIRCd.
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
	config := fmt.Sprintf(`<server name="insp.test" description="test" network="Test" id="00A">
<admin name="test" nick="test" email="test@insp.test">
<bind address="127.0.0.1" port="%d" type="clients">
<connect name="main" allow="*" timeout="60" pingfreq="120" hardsendq="8388608" recvq="65536" threshold="100000" commandrate="1000000" fakelag="no" localmax="5000" globalmax="5000" resolvehostnames="no" useident="no">
<path configdir="%[2]s" datadir="%[2]s" logdir="%[2]s" runtimedir="%[2]s" moduledir="/usr/lib/inspircd/modules">
<module name="cap"><module name="ircv3"><module name="ircv3_servertime"><module name="ircv3_msgid"><module name="ircv3_ctctags"><module name="ircv3_batch">
<module name="ircv3_echomessage"><module name="ircv3_labeledresponse"><module name="ircv3_capnotify"><module name="ircv3_accounttag"><module name="ircv3_chghost"><module name="ircv3_invitenotify">
<module name="services_account"><module name="chanhistory"><module name="namesx"><module name="uhnames"><module name="setname">
<chanhistory maxlines="1000" prefixmsg="no" bots="no" enableumode="no">
`, ports[0], dir)
	if err := os.WriteFile(filepath.Join(dir, "inspircd.conf"), []byte(config), 0o644); err != nil {
		return nil, err
	}
	return s, s.Restart(ctx)
}

// Restart starts the server again, on the same port, after it was stopped.
func (s *Server) Restart(ctx context.Context) error {
	path, err := peer.Find("inspircd", "inspircd")
	if err != nil {
		return err
	}
	args := []string{"--nofork", "--config=" + filepath.Join(s.dir, "inspircd.conf")}
	if os.Getuid() == 0 {
		args = append(args, "--runasroot")
	}
	s.Process, err = peer.Start(peer.Command{Path: path, Dir: s.dir, Args: args})
	if err != nil {
		return err
	}
	return s.WaitTCP(ctx, s.Addr)
}
