package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/gjallar-im/gjallar/backends/backendtest/peer"
	"github.com/gjallar-im/gjallar/backends/backendtest/prosody"
)

// TestPeopleOfThreeNetworksMeetWithTheirOwnClients has mautrix-go, irssi and slixmpp
// in one room: nobody's code here is ours.
func TestPeopleOfThreeNetworksMeetWithTheirOwnClients(t *testing.T) {
	server := prosody.Start(t)
	p := startProgram(t, fmt.Sprintf("networks: {xmpp: {protocol: xmpp, server: %q, domain: %s, secret: %s}}\n", server.ComponentAddr, prosody.Component, prosody.Secret))
	people := []*foreigner{matrixForeigner(t, p), ircForeigner(t, p), xmppForeigner(t, server)}
	for _, speaker := range people {
		text := "hello from " + speaker.name
		speaker.say(text)
		for _, hearer := range people {
			if hearer != speaker {
				hearer.waitFor(text)
			}
		}
	}
	for _, f := range people {
		for _, speaker := range people {
			text := "hello from " + speaker.name
			if n := f.count(text); speaker != f && n != 1 {
				t.Errorf("%s heard %q %d times", f.name, text, n)
			}
		}
	}
}

// foreigner is a person with a client that is not our code.
type foreigner struct {
	t    *testing.T
	name string
	say  func(text string)

	mu    sync.Mutex
	heard []string // guarded by mu
}

func (f *foreigner) hear(text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard = append(f.heard, text)
}

func (f *foreigner) count(text string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.heard {
		if strings.Contains(h, text) {
			n++
		}
	}
	return n
}

func (f *foreigner) waitFor(text string) {
	f.t.Helper()
	ctx := soon(f.t)
	for f.count(text) == 0 {
		if ctx.Err() != nil {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.t.Fatalf("%s does not hear %q, but %q", f.name, text, f.heard)
		}
		wait(ctx, 20*time.Millisecond)
	}
}

func matrixForeigner(t *testing.T, p *program) *foreigner {
	alice := p.matrix("alice")
	client, err := mautrix.NewClient(p.web, id.UserID(alice.user), alice.token)
	must(t, err)
	joined, err := client.JoinRoom(t.Context(), "#lobby:localhost", nil)
	must(t, err)
	f := &foreigner{t: t, name: "matrix"}
	f.say = func(text string) {
		_, err := client.SendText(t.Context(), joined.RoomID, text)
		must(t, err)
	}
	client.Syncer.(*mautrix.DefaultSyncer).OnEventType(event.EventMessage, func(_ context.Context, ev *event.Event) {
		f.hear(ev.Content.AsMessage().Body)
	})
	var syncing sync.WaitGroup
	syncing.Go(func() { client.SyncWithContext(t.Context()) })
	t.Cleanup(syncing.Wait)
	return f
}

func ircForeigner(t *testing.T, p *program) *foreigner {
	irssi, err := peer.Find("irssi", "irssi")
	peer.Need(t, err)
	_, err = peer.Find("script", "bsdutils")
	peer.Need(t, err)
	dir := peer.Dir(t)
	_, port, _ := net.SplitHostPort(p.irc)
	must(t, os.WriteFile(filepath.Join(dir, "config"), fmt.Appendf(nil, `
servers = ( { address = "127.0.0.1"; port = "%s"; chatnet = "gj"; autoconnect = "yes"; use_tls = "no"; } );
chatnets = { gj = { type = "IRC"; nick = "bob"; }; };
channels = ( { name = "#lobby"; chatnet = "gj"; autojoin = "yes"; } );
settings = { "fe-common/core" = { autolog = "yes"; autolog_path = "%s/$0.log"; }; };
`, port, dir), 0o600))
	fifo := filepath.Join(dir, "keys")
	must(t, syscall.Mkfifo(fifo, 0o600))
	keys, err := os.OpenFile(fifo, os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() { keys.Close() })
	proc, err := peer.Start(peer.Command{
		Path: "/bin/sh", Args: []string{"-c", "exec script -qfec '" + irssi + " --home=" + dir + "' /dev/null <keys"},
		Env: []string{"TERM=xterm", "LANG=C.UTF-8"}, Dir: dir,
	})
	must(t, err)
	t.Cleanup(proc.Stop)
	f := &foreigner{t: t, name: "irc"}
	f.say = func(text string) { fmt.Fprintf(keys, "/msg #lobby %s\r", text) }
	follow(t, filepath.Join(dir, "#lobby.log"), f)
	f.waitFor("has joined #lobby")
	return f
}

// follow has f hear the lines of a file as they are written.
func follow(t *testing.T, path string, f *foreigner) {
	ctx := t.Context()
	var reading sync.WaitGroup
	reading.Go(func() {
		for seen := 0; ctx.Err() == nil; wait(ctx, 20*time.Millisecond) {
			b, _ := os.ReadFile(path)
			whole := b[:max(0, strings.LastIndexByte(string(b), '\n')+1)]
			if len(whole) > seen {
				for line := range strings.Lines(string(whole[seen:])) {
					f.hear(strings.TrimSpace(line))
				}
				seen = len(whole)
			}
		}
	})
	t.Cleanup(reading.Wait)
}

func xmppForeigner(t *testing.T, s *prosody.Server) *foreigner {
	const python = "/usr/bin/python3" // Debian's, which its packages are for
	if exec.Command(python, "-c", "import slixmpp").Run() != nil {
		peer.Need(t, fmt.Errorf("%w: slixmpp: apt-get install python3-slixmpp", peer.ErrMissing))
	}
	must(t, s.Register(t.Context(), "carol", "pw"))
	host, port, _ := net.SplitHostPort(s.C2S)
	cmd := exec.Command(python, "testdata/muc.py", "carol@"+prosody.Domain, "pw", host, port, "lobby@"+prosody.Component)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	f := &foreigner{t: t, name: "xmpp", say: func(text string) { io.WriteString(in, text+"\n") }}
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var said string
			if json.Unmarshal(lines.Bytes(), &said) == nil {
				f.hear(said)
			}
		}
	})
	t.Cleanup(func() {
		in.Close()
		reading.Wait()
		cmd.Wait()
	})
	f.waitFor("[joined]")
	return f
}
