package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends/backendtest/peer"
)

// TestATourAsInTheReadme is an IRC user and a Matrix user meeting in the lobby.
func TestATourAsInTheReadme(t *testing.T) {
	p := startProgram(t, "")
	alice := p.matrix("alice")
	room, err := alice.join(soon(t), "#lobby:localhost")
	must(t, err)
	bob := ircUser(t, p.irc, "bob")
	must(t, bob.join(soon(t), "#lobby"))
	must(t, bob.send("PRIVMSG #lobby :hello from IRC"))
	if m := alice.sees(t, room, "hello from IRC"); m.Sender != "@ircd_bob:localhost" {
		t.Errorf("the sender is %s", m.Sender)
	}
	must(t, alice.say(soon(t), room, "hello from Matrix"))
	l, err := bob.wait(soon(t), func(l string) bool { return said(l) == "hello from Matrix" })
	must(t, err)
	if !strings.HasPrefix(l.text, ":alice!") {
		t.Errorf("IRC shows %q", l.text)
	}
	p.stop()
	if !strings.Contains(p.log(), "/join #lobby") {
		t.Errorf("the first thing to type is not told:\n%s", p.log())
	}
}

// TestAMatrixAccountLogsInOverIRC is someone with two clients who is one person.
func TestAMatrixAccountLogsInOverIRC(t *testing.T) {
	p := startProgram(t, "")
	alice, carol := p.matrix("alice"), p.matrix("carol")
	room, err := carol.join(soon(t), "#lobby:localhost")
	must(t, err)
	_, err = alice.join(soon(t), "#lobby:localhost")
	must(t, err)
	ctx := soon(t)
	c := &ircClient{nick: "alice", lines: make(chan ircLine, 1000)}
	conn, err := dialRaw(ctx, p.irc)
	must(t, err)
	c.conn = conn
	t.Cleanup(c.close)
	go c.read()
	must(t, c.send("PASS alice:alice", "NICK alice", "USER alice 0 * :Alice"))
	_, err = c.wait(ctx, func(l string) bool { return strings.Contains(l, " 001 ") })
	must(t, err)
	must(t, c.join(ctx, "#lobby"))
	must(t, c.send("PRIVMSG #lobby :from my IRC client"))
	if m := carol.sees(t, room, "from my IRC client"); m.Sender != "@alice:localhost" {
		t.Errorf("the sender is %s", m.Sender)
	}
}

func TestWhatWasSaidSurvivesARestart(t *testing.T) {
	p := startProgram(t, "")
	alice := p.matrix("alice")
	room, err := alice.join(soon(t), "#lobby:localhost")
	must(t, err)
	must(t, alice.say(soon(t), room, "before the crash"))
	p.kill()
	p.start()
	bob := ircUser(t, p.irc, "bob")
	must(t, bob.send("JOIN #lobby"))
	_, err = bob.wait(soon(t), func(l string) bool { return strings.HasSuffix(said(l), "before the crash") })
	must(t, err)
	must(t, bob.send("PRIVMSG #lobby :after the crash"))
	alice.sees(t, room, "after the crash")
}

// TestTheBridgeAlone is the runtime beside a homeserver in another process: what
// goes through memory elsewhere goes over HTTP here.
func TestTheBridgeAlone(t *testing.T) {
	ports, err := peer.FreePorts(1)
	must(t, err)
	dir := t.TempDir()
	registration := filepath.Join(dir, "registration.yaml")
	hs := newProgram(t, "application_services: ["+registration+"]\n")
	hs.args = append(hs.args, "-irc-listen", "off")
	bridge := newProgram(t, fmt.Sprintf("bridge: {homeserver: %q, listen: \"127.0.0.1:%d\", registration: %s}\n", hs.web, ports[0], registration))
	bridge.name = "bridge"
	var out bytes.Buffer
	if status := run(t.Context(), &terminal{strings.NewReader(""), &out, &out, nil}, []string{"register", "-config", filepath.Join(bridge.dir, "gjallar.yaml")}); status != 0 {
		t.Fatal(out.String())
	}
	hs.start()
	bridge.start()
	alice := hs.matrix("alice")
	bob := ircUser(t, bridge.irc, "bob")
	must(t, bob.join(soon(t), "#over-http"))
	room, err := alice.join(soon(t), "#over-http:localhost")
	must(t, err)
	must(t, bob.send("PRIVMSG #over-http :from IRC"))
	alice.sees(t, room, "from IRC")
	must(t, alice.say(soon(t), room, "from Matrix"))
	_, err = bob.wait(soon(t), func(l string) bool { return said(l) == "from Matrix" })
	must(t, err)
	bridge.stop()
	hs.stop()
}

// TestApplicationServicesComeAndGoWhileItRuns: SIGHUP has the registrations read again.
func TestApplicationServicesComeAndGoWhileItRuns(t *testing.T) {
	registration := filepath.Join(t.TempDir(), "other.yaml")
	text := "id: other\nurl: \"\"\nas_token: as-secret\nhs_token: hs-secret\nsender_localpart: otherbot\nnamespaces: {users: [], aliases: [], rooms: []}\n"
	must(t, os.WriteFile(registration, []byte(text), 0o600))
	p := startProgram(t, "application_services: []\nlog: {level: info}\n")
	bot := &matrixClient{base: p.web, token: "as-secret", http: http.DefaultClient}
	whoami := func() error { return bot.do(t.Context(), "GET", "/account/whoami", nil, nil) }
	if whoami() == nil {
		t.Fatal("the service is known before it is registered")
	}
	file := filepath.Join(p.dir, "gjallar.yaml")
	list := func(yaml string) {
		must(t, os.WriteFile(file, []byte(yaml), 0o600))
		must(t, p.cmd.Process.Signal(syscall.SIGHUP))
	}
	eventually := func(what string, done func() bool) {
		for ctx := soon(t); !done(); wait(ctx, 10*time.Millisecond) {
			if ctx.Err() != nil {
				t.Fatalf("%s: %v", what, whoami())
			}
		}
	}
	list("application_services: [" + registration + "]\n")
	eventually("the service is not registered", func() bool { return whoami() == nil })
	list("application_services: [/nowhere.yaml]\n")
	eventually("the mistake is not told", func() bool { return strings.Contains(p.log(), "nowhere.yaml") })
	must(t, whoami())
	list("application_services: []\n")
	eventually("the service is not removed", func() bool { return whoami() != nil })
}

func TestCommandLines(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	must(t, os.WriteFile(bad, []byte("server_name: example.org\nlisten: 127.0.0.1:8008\nnetworks:\n  x:\n    protocol: irc\n    server: irc.example.org:6667\n    nickname: x\nsurprise: 1\n"), 0o600))
	good := filepath.Join(dir, "good.yaml")
	must(t, os.WriteFile(good, []byte("server_name: example.org\ndata: "+dir+"/data\nbridge:\n  registration: "+dir+"/reg.yaml\n"), 0o600))
	tests := []struct {
		name   string
		args   []string
		in     string
		status int
		want   []string // parts of what is printed
	}{
		{"help names every command", []string{"help"}, "", 0, []string{"serve", "bridge", "register", "config", "user", "bench", "-irc-listen"}},
		{"unknown command", []string{"dance"}, "", 2, []string{`no command "dance"`}},
		{"unknown flag", []string{"serve", "-dance"}, "", 2, []string{"-dance"}},
		{"defaults are annotated", []string{"config"}, "", 0, []string{"server_name: localhost", "# "}},
		{"mistakes are named", []string{"config", "check", bad}, "", 1, []string{"bad.yaml:8", "surprise", "bad.yaml:7: networks.x.nickname: unknown key"}},
		{"a right file is said to be right", []string{"config", "check", good}, "", 0, []string{"is right"}},
		{"a protocol's keys", []string{"config", "-protocol", "irc"}, "", 0, []string{`"server"`}},
		{"an account", []string{"user", "add", "alice", "-admin", "-config", good}, "secret\n", 0, []string{"@alice:example.org"}},
		{"an account again", []string{"user", "add", "-config", good, "alice"}, "secret\n", 1, []string{"M_USER_IN_USE"}},
		{"an account of another server", []string{"user", "add", "-config", good, "-server-name", "example.com", "bob"}, "secret\n", 1, []string{"belongs to example.org"}},
		{"an account without password", []string{"user", "add", "-config", good, "bob"}, "", 1, []string{"no password"}},
		{"a registration", []string{"register", "-config", good}, "", 0, []string{"reg.yaml"}},
		{"a registration again", []string{"register", "-config", good}, "", 1, []string{"-force"}},
		{"a bridge without a registration", []string{"bridge", "-data", dir}, "", 1, []string{"gjallar register"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			if got := run(t.Context(), &terminal{strings.NewReader(tt.in), &out, &out, nil}, tt.args); got != tt.status {
				t.Errorf("status %d, want %d", got, tt.status)
			}
			for _, w := range tt.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("printed without %q:\n%s", w, out.String())
				}
			}
		})
	}
}
