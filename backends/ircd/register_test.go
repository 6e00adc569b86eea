package ircd

import (
	"encoding/base64"
	"encoding/json"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
)

func plain(name, password string) string {
	return base64.StdEncoding.EncodeToString([]byte("\x00" + name + "\x00" + password))
}

func TestRegistration(t *testing.T) {
	long := strings.Repeat("A", 400)
	tests := []struct {
		name   string
		config string
		in     []string
		want   []string // beginnings of what comes back, before a PING is answered
		ends   bool     // the connection
	}{
		{name: "nothing else before registration", in: []string{"JOIN #tea", "NONSENSE"},
			want: []string{":localhost 451 * :You have not registered", ":localhost 451 * :You have not registered"}},
		{name: "bad nicks", in: []string{"NICK", "NICK 9lives", "NICK a,b", "NICK " + strings.Repeat("x", 31)},
			want: []string{":localhost 431 *", ":localhost 432 * 9lives", ":localhost 432 * a,b", ":localhost 432 * xxx*"}},
		{name: "too few parameters", in: []string{"USER bob"}, want: []string{":localhost 461 * USER"}},
		{name: "nick of an account", in: []string{"NICK Alice", "USER x 0 * :x"},
			want: []string{":localhost 433 * Alice :Nickname belongs to an account*"}},
		{name: "registration waits for CAP END", in: []string{"CAP LS 302", "NICK bob", "USER b 0 * :b", "CAP END"},
			want: []string{":localhost CAP * LS :account-tag *sasl=PLAIN*", ":localhost 001 bob *"}},
		{name: "values only with 302", in: []string{"CAP LS"}, want: []string{":localhost CAP * LS :*multi-prefix sasl server-time*"}},
		{name: "an unknown capability refuses all", in: []string{"CAP REQ :batch nope", "CAP LIST"},
			want: []string{":localhost CAP * NAK :batch nope", ":localhost CAP * LIST "}},
		{name: "capabilities on and off", in: []string{"CAP REQ :batch echo-message", "CAP REQ -batch", "CAP LIST", "CAP DANCE"},
			want: []string{":localhost CAP * ACK :batch echo-message", ":localhost CAP * ACK :-batch", ":localhost CAP * LIST :echo-message", ":localhost 410 * DANCE *"}},
		{name: "password of the account that NICK names", in: []string{"PASS secret", "NICK alice", "USER x 0 * :x"},
			want: []string{":localhost 900 * alice!alice@localhost @alice:localhost *", ":localhost 001 alice *"}},
		{name: "password of the account that USER names; its nick counts", in: []string{"PASS secret", "NICK ally", "USER alice 0 * :x"},
			want: []string{":localhost 900 *", ":localhost 001 alice *"}},
		{name: "name and password", in: []string{"PASS alice:secret", "NICK zed", "USER x 0 * :x"},
			want: []string{":localhost 900 *", ":localhost 001 alice *"}},
		{name: "full ID and password", in: []string{"PASS @alice:localhost:secret", "NICK zed", "USER x 0 * :x"},
			want: []string{":localhost 900 *", ":localhost 001 alice *"}},
		{name: "password with a colon", in: []string{"PASS se:cret", "NICK carl", "USER x 0 * :x"},
			want: []string{":localhost 900 *", ":localhost 001 carl *"}},
		{name: "wrong password", in: []string{"PASS wrong", "NICK alice", "USER alice 0 * :x"}, ends: true,
			want: []string{":localhost 464 * :Wrong*", "ERROR *"}},
		{name: "SASL", in: []string{"CAP REQ sasl", "AUTHENTICATE PLAIN", "AUTHENTICATE " + plain("alice", "secret"), "NICK a", "USER x 0 * :x", "CAP END"},
			want: []string{":localhost CAP * ACK :sasl", ":localhost AUTHENTICATE +", ":localhost 900 * alice!alice@localhost @alice:localhost *", ":localhost 903 *", ":localhost 001 alice *"}},
		{name: "SASL without the capability", in: []string{"AUTHENTICATE PLAIN"}, want: []string{":localhost 904 *"}},
		{name: "SASL refuses and can be tried again", in: []string{"CAP REQ sasl", "AUTHENTICATE EXTERNAL", "AUTHENTICATE plain", "AUTHENTICATE !!!", "AUTHENTICATE PLAIN", "AUTHENTICATE *",
			"AUTHENTICATE PLAIN", "AUTHENTICATE " + plain("alice", "no"), "AUTHENTICATE PLAIN", "AUTHENTICATE " + plain("alice", "secret"), "AUTHENTICATE PLAIN"},
			want: []string{":localhost CAP * ACK :sasl", ":localhost 908 * PLAIN *", ":localhost 904 *", ":localhost AUTHENTICATE +", ":localhost 904 *", ":localhost AUTHENTICATE +", ":localhost 906 *",
				":localhost AUTHENTICATE +", ":localhost 904 *", ":localhost AUTHENTICATE +", ":localhost 900 *", ":localhost 903 *", ":localhost 907 *"}},
		{name: "SASL response without end", in: append([]string{"CAP REQ sasl", "AUTHENTICATE PLAIN"}, strings.Split(strings.Repeat("AUTHENTICATE "+long+"\n", 11), "\n")[:11]...),
			want: []string{":localhost CAP * ACK :sasl", ":localhost AUTHENTICATE +", ":localhost 905 *"}},
		{name: "three wrong passwords end it", in: []string{"CAP REQ sasl", "AUTHENTICATE PLAIN", "AUTHENTICATE " + plain("alice", "1"),
			"AUTHENTICATE PLAIN", "AUTHENTICATE " + plain("alice", "2"), "AUTHENTICATE PLAIN", "AUTHENTICATE " + plain("alice", "3")}, ends: true,
			want: []string{":localhost CAP * ACK :sasl", ":localhost AUTHENTICATE +", ":localhost 904 *", ":localhost AUTHENTICATE +", ":localhost 904 *", ":localhost AUTHENTICATE +", ":localhost 904 *", "ERROR *"}},
		{name: "no guests", config: `"guests": "never"`, in: []string{"NICK bob", "USER bob 0 * :x"}, ends: true,
			want: []string{":localhost 464 *", "ERROR *"}},
		{name: "no guests, but accounts", config: `"guests": "never"`, in: []string{"PASS secret", "NICK alice", "USER x 0 * :x"},
			want: []string{":localhost 900 *", ":localhost 001 alice *"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := start(t, tt.config)
			l.host.FakeRooms().AddAccount(alice, "secret")
			l.host.FakeRooms().AddAccount(backends.User{Account: "@carl:localhost", Username: "carl", Domain: "localhost"}, "se:cret")
			c := l.connect()
			c.write(tt.in...)
			var got []string
			if tt.ends {
				got = c.rest()
			} else {
				got = c.sync()
			}
			for i, want := range tt.want {
				if i >= len(got) || !matches(want+"*", got[i]) {
					t.Fatalf("line %d is not %q of:\n%s", i+1, want, strings.Join(got, "\n"))
				}
			}
			if last := tt.want[len(tt.want)-1]; !strings.Contains(last, " 001 ") && len(got) != len(tt.want) {
				t.Errorf("more than was wanted:\n%s", strings.Join(got, "\n"))
			}
			if logs := l.host.Logs(); strings.Contains(logs, "secret") || strings.Contains(logs, "se:cret") {
				t.Error("a password is in the log")
			}
		})
	}
}

func TestWelcome(t *testing.T) {
	l := start(t, `"server_name": "irc.test", "motd": "be kind\n\nto all"`)
	c := l.connect()
	c.write("NICK bob", "USER bob 0 * :Bob")
	c.got(
		":irc.test 001 bob :Welcome to Gjallar, bob!guest@irc.test",
		":irc.test 002 bob *", ":irc.test 003 bob *", ":irc.test 004 bob irc.test *",
		":irc.test 005 bob CASEMAPPING=ascii CHANTYPES=# *:are supported by this server",
		":irc.test 005 bob *:are supported by this server",
		":irc.test 251 bob *", ":irc.test 254 bob *", ":irc.test 255 bob *", ":irc.test 265 bob *",
		":irc.test 375 bob *", ":irc.test 372 bob :- be kind", ":irc.test 372 bob :- ", ":irc.test 372 bob :- to all", ":irc.test 376 bob *")
	c.do("USER again 0 * :x", ":irc.test 462 bob *")
	c.do("nonsense", ":irc.test 421 bob NONSENSE *")
	c.do(strings.Repeat("x", 600), ":irc.test 417 bob *")
	c.do("NICK :", ":irc.test 431 bob *")
}

func TestAccountsKeepTheirNick(t *testing.T) {
	l := start(t, "")
	l.host.FakeRooms().AddAccount(alice, "secret")
	far := alice
	far.Account, far.Domain = "@alice:far.example", "far.example"
	l.host.FakeRooms().AddRoom(backends.RoomSummary{Room: tea}, joined(far, 0))
	bob := l.guest("bob", "")
	bob.do("JOIN #tea", ":bob!guest@localhost JOIN #tea", "*353 bob = #tea :alice bob", "*366*")
	a1 := l.account("alice", "secret", "")
	bob.got(":alice!alice@far.example NICK :alice|far")
	a1.do("NICK ally", ":localhost 447 alice ally :Your nickname is your account's: alice")
	a1.write("JOIN #tea")
	a1.sync()
	bob.got(":alice!alice@localhost JOIN #tea")
	// A second connection is the same person.
	a2 := l.account("alice", "secret", "")
	a2.do("JOIN #tea", ":alice!alice@localhost JOIN #tea", "*353 alice = #tea :alice alice|far bob", "*366*")
	a1.do("PRIVMSG #tea :hi")
	ev, _ := backendtest.NextBody[*backends.Message](l.host, nil)
	if ev.Sender.Account != alice.Account || ev.Sender.ID != "" {
		t.Errorf("sender %+v", ev.Sender)
	}
	l.reflect(ev)
	a1.got()
	a2.got(":alice!alice@localhost PRIVMSG #tea :hi")
	bob.got(":alice!alice@localhost PRIVMSG #tea :hi") // and no second JOIN before it
}

func TestQuitOfAnAccountLeavesNoRoom(t *testing.T) {
	l := start(t, "")
	l.host.FakeRooms().AddAccount(alice, "secret")
	a := l.account("alice", "secret", "")
	a.write("JOIN #tea,#coffee")
	a.sync()
	a.do("PART #coffee :enough", ":alice!alice@localhost PART #coffee :enough")
	a.write("QUIT")
	a.rest()
	l.close()
	if n := len(l.host.FakeRooms().Members(tea)); n != 1 {
		t.Errorf("%d members of #tea after QUIT", n)
	}
	if n := len(l.host.FakeRooms().Members(backends.RoomName{Alias: "coffee"})); n != 0 {
		t.Errorf("%d members of #coffee after PART", n)
	}
}

func TestSilentClientsAreDisconnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := backendtest.NewHost(t)
		cfg := defaults()
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		inner.Close()
		cfg.Guests = guestsAlways
		n := newNetwork(cfg, host, inner)
		close(n.swept)
		connect := func() *client {
			ours, theirs := net.Pipe()
			n.serve(ours)
			return newClient(t, theirs)
		}
		begin := time.Now()
		silent := connect()
		lines := silent.patient()
		if want := "ERROR :Closing link: Registration timed out"; len(lines) != 1 || lines[0] != want {
			t.Errorf("unregistered client got %q", lines)
		}
		if d := time.Since(begin); d < registerTimeout || d > registerTimeout+2*keepAliveTick {
			t.Errorf("registration timed out after %v", d)
		}
		begin = time.Now()
		dead := connect()
		go dead.write("NICK bob", "USER bob 0 * :x")
		lines = dead.patient()
		if len(lines) < 2 || lines[len(lines)-2] != "PING localhost" || !strings.HasPrefix(lines[len(lines)-1], "ERROR :Closing link: Ping timeout: ") {
			t.Errorf("dead client got %q", lines[max(0, len(lines)-2):])
		}
		if d := time.Since(begin); d < pingAfter+pingTimeout || d > pingAfter+pingTimeout+3*keepAliveTick {
			t.Errorf("ping timed out after %v", d)
		}
		if err := n.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// patient returns what comes until the connection ends, however long it takes.
func (c *client) patient() []string {
	var lines []string
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return lines
		}
		lines = append(lines, strings.TrimRight(line, "\r\n"))
	}
}

func TestLimits(t *testing.T) {
	l := start(t, `"limits": {"clients": 1}`)
	l.guest("bob", "")
	if rest := l.connect().rest(); len(rest) != 1 || rest[0] != "ERROR :Closing link: Too many connections" {
		t.Errorf("second client got %q", rest)
	}
}

func TestLimitsPerAddress(t *testing.T) {
	n := newNetwork(defaults(), backendtest.NewHost(t), fakeListener{})
	defer n.cancel()
	n.cfg.Limits.PerIP = 1
	tests := []struct {
		addr string
		want bool
	}{
		{"192.0.2.1", true}, {"192.0.2.1", false}, {"192.0.2.2", true},
		{"2001:db8::1", true}, {"2001:db8::2", false}, {"2001:db8:0:1::1", true},
		{"127.0.0.1", true}, {"127.0.0.1", true},
	}
	for _, tt := range tests {
		s := &session{addr: ipOf(&net.TCPAddr{IP: net.ParseIP(tt.addr), Port: 1}), token: tt.addr}
		if got := n.admit(s) == ""; got != tt.want {
			t.Errorf("%s is admitted: %v", tt.addr, got)
		}
	}
}

type fakeListener struct{}

func (fakeListener) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (fakeListener) Close() error              { return nil }
func (fakeListener) Addr() net.Addr            { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 6667} }

func TestGuestsOfALoopbackListener(t *testing.T) {
	for _, tt := range []struct {
		guests, addr string
		want         bool
	}{
		{guestsLoopback, "127.0.0.1:1", true}, {guestsLoopback, "[::1]:1", true}, {guestsLoopback, "192.0.2.1:1", false},
		{guestsLoopback, "[::]:1", false}, {guestsAlways, "192.0.2.1:1", true}, {guestsNever, "127.0.0.1:1", false},
	} {
		addr, err := net.ResolveTCPAddr("tcp", tt.addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := (&config{Guests: tt.guests}).guestsOn(addr); got != tt.want {
			t.Errorf("guests %s on %s: %v", tt.guests, tt.addr, got)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for name, cfg := range map[string]string{
		"address in use":   `{"listen": "` + busy.Addr().String() + `"}`,
		"unknown key":      `{"listen": "127.0.0.1:0", "lisen": ""}`,
		"bad guests":       `{"listen": "127.0.0.1:0", "guests": "some"}`,
		"bad server name":  `{"listen": "127.0.0.1:0", "server_name": "a b"}`,
		"key without cert": `{"listen": "127.0.0.1:0", "tls_key": "x"}`,
		"missing cert":     `{"listen": "127.0.0.1:0", "tls_key": "/nowhere/x", "tls_cert": "/nowhere/y"}`,
		"no JSON":          `{`,
	} {
		if _, err := New().Open(t.Context(), json.RawMessage(cfg), backendtest.NewHost(t)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestSchemaIsJSONAndHasTheDefaults(t *testing.T) {
	var s struct {
		Properties map[string]struct {
			Default    any
			Properties map[string]struct{ Default any }
		}
	}
	if err := json.Unmarshal(New().Describe().Schema, &s); err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(defaults())
	var want map[string]any
	json.Unmarshal(b, &want)
	for key, value := range want {
		if nested, ok := value.(map[string]any); ok {
			for k, v := range nested {
				if got := s.Properties[key].Properties[k].Default; got != v {
					t.Errorf("%s.%s: schema says %v, code %v", key, k, got, v)
				}
			}
			continue
		}
		if got := s.Properties[key].Default; got != value {
			t.Errorf("%s: schema says %v, code %v", key, got, value)
		}
	}
}
