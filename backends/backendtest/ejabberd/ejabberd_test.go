package ejabberd

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
)

// head sends a stream head and returns what the server answers first.
func head(t *testing.T, addr, ns, to string) string {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "<?xml version='1.0'?><stream:stream xmlns='%s' xmlns:stream='http://etherx.jabber.org/streams' to='%s'>", ns, to)
	b := make([]byte, 4096)
	n, err := conn.Read(b)
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestTheServerTakesClientsAndComponents(t *testing.T) {
	s := Start(t)
	if err := s.Register(t.Context(), "alice", "pw"); err != nil {
		t.Fatal(err)
	}
	if got := head(t, s.C2S, "jabber:client", Domain); !strings.Contains(got, "e.test") {
		t.Errorf("client stream: %s", got)
	}
	if got := head(t, s.ComponentAddr, "jabber:component:accept", Component); !strings.Contains(got, "bridge.e.test") {
		t.Errorf("component stream: %s", got)
	}
}
