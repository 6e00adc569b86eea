package irc

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/backendtest/inspircd"
	"github.com/gjallar-im/gjallar/backends/backendtest/ngircd"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

// peerServer is a real server.
type peerServer struct {
	addr    string
	stop    func()
	restart func(context.Context) error
}

// onPeers runs a test with each real server.
func onPeers(t *testing.T, f func(t *testing.T, s peerServer)) {
	t.Parallel() // InspIRCd takes a second to welcome a client
	t.Run("ngircd", func(t *testing.T) {
		s := ngircd.Start(t)
		f(t, peerServer{s.Addr, func() { s.Stop() }, s.Restart})
	})
	t.Run("inspircd", func(t *testing.T) {
		s := inspircd.Start(t)
		f(t, peerServer{s.Addr, func() { s.Stop() }, s.Restart})
	})
}

// stranger is somebody with an IRC client.
type stranger struct {
	t     *testing.T
	conn  net.Conn
	lines *bufio.Scanner
}

func newStranger(t *testing.T, addr, nick string, channels ...string) *stranger {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s := &stranger{t, conn, newScanner(conn)}
	s.send("NICK "+nick, "USER "+nick+" 0 * :"+nick)
	s.wait("001")
	for _, ch := range channels {
		s.send("JOIN " + ch)
		s.wait("366")
	}
	return s
}

func (s *stranger) send(lines ...string) {
	for _, l := range lines {
		fmt.Fprintf(s.conn, "%s\r\n", l)
	}
}

// wait returns the next line that contains all the words, skipping others.
func (s *stranger) wait(words ...string) string {
	s.t.Helper()
	s.conn.SetReadDeadline(time.Now().Add(backendtest.Patience))
	last := ""
	for s.lines.Scan() {
		line := s.lines.Text()
		last = line
		if token, ok := strings.CutPrefix(line, "PING "); ok {
			s.send("PONG " + token)
		}
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			return line
		}
	}
	s.t.Fatalf("no line with %q; the last was %q", words, last)
	return ""
}

// openNetwork opens the backend on a server, without a flood limit that the test
// would feel.
func openNetwork(t *testing.T, addr string, change func(map[string]any)) (*backendtest.Host, backends.Network) {
	t.Helper()
	cfg := map[string]any{
		"server": addr,
		"tls":    false,
		"nick":   "bridge",
		"flood":  map[string]any{"burst": 1000, "lines_per_second": 1000, "connects_per_second": 1000},
	}
	if change != nil {
		change(cfg)
	}
	raw, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	host := backendtest.NewHost(t)
	n, err := New().Open(t.Context(), raw, host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := n.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	host.WaitPhase(backends.Ready)
	return host, n
}

func join(t *testing.T, n backends.Network, channel string) *backends.ChatInfo {
	t.Helper()
	info, err := n.Join(t.Context(), backends.JoinRequest{Chat: backends.ChatKey{Chat: backends.ChatID(channel)}})
	if err != nil {
		t.Fatal(err)
	}
	return info
}

var alice = backends.User{Account: "@alice:here.test", Name: "Alice", Username: "alice", Domain: "here.test"}

// send sends a command and returns where its result comes.
func send(t *testing.T, n backends.Network, cmd *backends.Command) <-chan backends.Result {
	t.Helper()
	results := make(chan backends.Result, 1)
	if cmd.ID == "" {
		cmd.ID = t.Name()
	}
	if err := n.Send(t.Context(), cmd, func(r backends.Result) { results <- r }); err != nil {
		t.Fatal(err)
	}
	return results
}

func say(t *testing.T, n backends.Network, chat string, who backends.User, text string) <-chan backends.Result {
	t.Helper()
	return send(t, n, &backends.Command{
		Chat: backends.ChatKey{Chat: backends.ChatID(chat)}, Sender: who,
		Body: &backends.Message{Text: richtext.Plain(text)},
	})
}

func result(t *testing.T, results <-chan backends.Result, want backends.Outcome) backends.Result {
	t.Helper()
	select {
	case r := <-results:
		if r.Outcome != want {
			t.Fatalf("result %+v, want outcome %d", r, want)
		}
		return r
	case <-time.After(backendtest.Patience):
		t.Fatal("no result")
	}
	panic("unreachable")
}

func TestMessagesCrossBothWays(t *testing.T) {
	onPeers(t, func(t *testing.T, s peerServer) {
		bob := newStranger(t, s.addr, "Bob", "#Tea")
		host, n := openNetwork(t, s.addr, nil)
		info := join(t, n, "#tea")
		if info.Chat.Chat != "#tea" || info.Members != 2 {
			t.Errorf("joined %+v", info)
		}
		_, members := backendtest.NextBody[*backends.Members](host, nil)
		if len(members.Members) != 1 || members.Members[0].User.ID != "bob" || members.Members[0].Role != backends.Moderator {
			t.Errorf("members %+v", members.Members)
		}

		bob.send("PRIVMSG #tea :hello \x02world\x02", "PRIVMSG #tea :\x01ACTION waves\x01")
		ev, msg := backendtest.NextBody[*backends.Message](host, nil)
		if ev.Chat.Chat != "#tea" || ev.Sender.ID != "bob" || ev.Sender.Name != "Bob" || ev.ID == "" || msg.Text[1].Kind != richtext.Bold {
			t.Errorf("event %+v, text %v", ev, msg.Text)
		}
		ev2, wave := backendtest.NextBody[*backends.Message](host, nil)
		if wave.Kind != backends.Emote || wave.Text.Plain() != "waves" || ev2.ID == ev.ID {
			t.Errorf("event %+v, %+v", ev2, wave)
		}

		r := result(t, say(t, n, "#tea", alice, "hi Bob"), backends.Delivered)
		if len(r.IDs) != 1 || r.IDs[0] == "" {
			t.Errorf("result %+v", r)
		}
		bob.wait(":Alice!", ":hi Bob")

		// What our account said does not come back, what follows does.
		bob.send("PRIVMSG #tea :Alice: last")
		ev, msg = backendtest.NextBody[*backends.Message](host, nil)
		if msg.Text.Plain() != "Alice: last" || ev.Sender.ID != "bob" {
			t.Errorf("after our own message came %q from %v", msg.Text.Plain(), ev.Sender)
		}
		if m := msg.Text[0]; m.Kind != richtext.Mention || m.User != "@alice:here.test" {
			t.Errorf("the mention is %+v", m)
		}
	})
}

func newScanner(r io.Reader) *bufio.Scanner { return bufio.NewScanner(r) }
