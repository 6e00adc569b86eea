package ircd

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/backendtest/peer"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

// waitForFile waits until a file that another program writes holds a text.
func waitForFile(t *testing.T, path, text string) string {
	t.Helper()
	var b []byte
	defer func() {
		if t.Failed() {
			t.Logf("%s does not hold %q:\n%s", path, text, b)
		}
	}()
	waitFor(t, func() bool {
		b, _ = os.ReadFile(path)
		return strings.Contains(string(b), text)
	})
	return string(b)
}

// writeTo writes a line to a FIFO that another program reads.
func writeTo(t *testing.T, fifo, line string) {
	t.Helper()
	var f *os.File
	waitFor(t, func() bool {
		var err error
		f, err = os.OpenFile(fifo, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		return err == nil
	})
	defer f.Close()
	if _, err := fmt.Fprintln(f, line); err != nil {
		t.Fatal(err)
	}
}

func TestWithII(t *testing.T) {
	path, err := peer.Find("ii", "ii")
	peer.Need(t, err)
	l := start(t, "")
	l.host.FakeRooms().AddRoom(backends.RoomSummary{Room: tea, Topic: "Darjeeling"}, joined(alice, backends.Admin))
	l.host.FakeRooms().AddHistory(tea, backends.Command{ID: "$0", Sender: alice, Time: noon, Body: said("long ago")})
	dir := peer.Dir(t)
	_, port, _ := net.SplitHostPort(l.addr)
	p, err := peer.Start(peer.Command{Path: path, Args: []string{"-s", "127.0.0.1", "-p", port, "-n", "bob", "-i", dir}, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	server, channel := filepath.Join(dir, "127.0.0.1"), filepath.Join(dir, "127.0.0.1", "#tea")
	waitForFile(t, filepath.Join(server, "out"), "Welcome to Gjallar")
	writeTo(t, filepath.Join(server, "in"), "/j #tea")
	out := filepath.Join(channel, "out")
	waitForFile(t, out, "<alice> [2020-02-03 ")
	writeTo(t, filepath.Join(channel, "in"), "hello from ii")
	ev, msg := backendtest.NextBody[*backends.Message](l.host, nil)
	if ev.Sender.ID != "bob" || msg.Text.Plain() != "hello from ii" {
		t.Errorf("event %+v, message %+v", ev, msg)
	}
	l.reflect(ev)
	l.show("#tea", alice, said("hello yourself"))
	if got := waitForFile(t, out, "<alice> hello yourself"); strings.Count(got, "hello from ii") != 1 {
		t.Errorf("its own message is not there once:\n%s", got)
	}
	l.show("#tea", alice, said("one-word"))
	waitForFile(t, out, "<alice> one-word")
	writeTo(t, filepath.Join(channel, "in"), "/n robert")
	waitForFile(t, filepath.Join(server, "out"), `changed nick to "robert"`)
	writeTo(t, filepath.Join(channel, "in"), "/l enough")
	waitFor(t, func() bool { return len(l.host.FakeRooms().Members(tea)) == 1 })
}

// irssi logs in by SASL and uses the capabilities it knows.
func TestWithIrssi(t *testing.T) {
	irssi, err := peer.Find("irssi", "irssi")
	peer.Need(t, err)
	_, err = peer.Find("script", "bsdutils")
	peer.Need(t, err)
	l := start(t, "")
	rooms := l.host.FakeRooms()
	rooms.AddAccount(alice, "sesame")
	rooms.AddRoom(backends.RoomSummary{Room: tea, Topic: "Darjeeling"}, joined(carol, backends.Moderator))
	dir := peer.Dir(t)
	_, port, _ := net.SplitHostPort(l.addr)
	writeFile(t, filepath.Join(dir, "config"), fmt.Sprintf(`
servers = ( { address = "127.0.0.1"; port = "%s"; chatnet = "gj"; autoconnect = "yes"; use_tls = "no"; } );
chatnets = { gj = { type = "IRC"; nick = "irssi"; sasl_mechanism = "PLAIN"; sasl_username = "alice"; sasl_password = "sesame"; }; };
channels = ( { name = "#tea"; chatnet = "gj"; autojoin = "yes"; } );
settings = { core = { real_name = "Alice"; user_name = "someone"; }; "irc/core" = { cmds_max_at_once = "100"; }; "fe-common/core" = { autolog = "yes"; autolog_path = "%s/$0.log"; }; };
`, port, dir))
	fifo := filepath.Join(dir, "keys")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	p, err := peer.Start(peer.Command{
		Path: "/bin/sh", Args: []string{"-c", "exec script -qfec '" + irssi + " --home=" + dir + "' /dev/null <keys"},
		Env: []string{"TERM=xterm", "LANG=C.UTF-8"}, Dir: dir,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	defer func() {
		if t.Failed() {
			t.Log(p.Log())
		}
	}()
	waitFor(t, func() bool { return len(rooms.Members(tea)) == 2 })
	log := filepath.Join(dir, "#tea.log")
	waitForFile(t, log, "alice [")
	l.show("#tea", carol, &backends.Message{Text: richtext.Doc{{Kind: richtext.Text, Text: "hello "}, {Kind: richtext.Mention, User: "@alice:localhost", Children: richtext.Plain("Al")}}})
	waitForFile(t, log, "@carol> hello alice")
	fmt.Fprint(keys, "/msg #tea hello from irssi\r")
	ev, msg := backendtest.NextBody[*backends.Message](l.host, nil)
	if ev.Sender.Account != alice.Account || msg.Text.Plain() != "hello from irssi" {
		t.Errorf("event %+v, message %+v", ev, msg)
	}
	l.reflect(ev)
	fmt.Fprint(keys, "/window 2\r/me waves\r/topic Assam\r/kick carol enough\r")
	if _, msg = backendtest.NextBody[*backends.Message](l.host, nil); msg.Kind != backends.Emote || msg.Text.Plain() != "waves" {
		t.Errorf("message %+v", msg)
	}
	if _, info := backendtest.NextBody[*backends.ChatInfo](l.host, nil); *info.Topic != "Assam" {
		t.Errorf("topic %q", *info.Topic)
	}
	ev, kick := backendtest.NextBody[*backends.Member](l.host, nil)
	if kick.Action != backends.Kicked || kick.User.Account != carol.Account || kick.Reason != "enough" {
		t.Errorf("kick %+v", kick)
	}
	l.reflect(ev)
	got := waitForFile(t, log, "carol was kicked from #tea by alice")
	if strings.Count(got, "hello from irssi") != 1 {
		t.Errorf("its own message is not there once:\n%s", got)
	}
	l.host.Answer(func(*backends.Event) backends.Receipt {
		return backends.Receipt{Err: &backends.Refusal{Message: "the room is closed"}}
	})
	fmt.Fprint(keys, "/msg #tea too late\r")
	waitFor(t, func() bool {
		return strings.Contains(p.Log(), "Not delivered") || strings.Contains(p.Log(), "Cannot send")
	})
	fmt.Fprint(keys, "/quit\r")
	waitFor(t, func() bool { return !l.connected("alice") })
}

// connected reports whether someone of that nick has a connection.
func (l *listener) connected(nick string) bool {
	n := l.net.(*network)
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.people.byNick[nick]
	return p != nil && len(p.sessions) > 0
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
