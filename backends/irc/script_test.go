package irc

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

// fakeServer is the far end of the backend's connections, played by the test in a
// synctest bubble.
type fakeServer struct {
	t     *testing.T
	conns chan *fakeConn
	down  atomic.Bool // connections are refused
	mute  atomic.Bool // keepalives are not answered
	host  *backendtest.Host
	net   backends.Network
}

// fakeConn is one connection.
type fakeConn struct {
	t     *testing.T
	conn  net.Conn
	lines chan string // what the backend wrote, without keepalives; closed at the end
}

// script runs f in a bubble with a network that is opened on a fake server.
func script(t *testing.T, config string, f func(t *testing.T, s *fakeServer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &fakeServer{t: t, conns: make(chan *fakeConn, 1000), host: backendtest.NewHost(t)}
		b := &backend{dial: s.dial, backoff: backoff}
		raw := `{"server":"irc.test:6667","tls":false,"nick":"bridge","flood":{"burst":1000,"lines_per_second":1000}`
		if config != "" {
			raw += "," + config
		}
		var err error
		if s.net, err = b.Open(t.Context(), json.RawMessage(raw+"}"), s.host); err != nil {
			t.Fatal(err)
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			s.host.Release()
			s.net.Close(ctx)
		}()
		f(t, s)
	})
}

func (s *fakeServer) dial(context.Context, string, string) (net.Conn, error) {
	if s.down.Load() {
		return nil, errors.New("connection refused")
	}
	ours, theirs := net.Pipe()
	c := &fakeConn{s.t, ours, make(chan string, 1000)}
	go func() {
		defer close(c.lines)
		for r := bufio.NewScanner(ours); r.Scan(); {
			if r.Text() != "PING alive" {
				c.lines <- r.Text()
			} else if !s.mute.Load() {
				fmt.Fprint(ours, "PONG :alive\r\n")
			}
		}
		ours.Close()
	}()
	s.conns <- c
	return theirs, nil
}

// pass lets time pass.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (c *fakeConn) send(lines ...string) {
	for _, l := range lines {
		c.conn.SetWriteDeadline(time.Now().Add(time.Minute))
		if _, err := fmt.Fprintf(c.conn, "%s\r\n", l); err != nil {
			c.t.Errorf("send %q: %v", l, err)
		}
	}
	c.conn.SetWriteDeadline(time.Time{})
	synctest.Wait()
}

// expect fails unless the next lines that the backend wrote are these.
func (c *fakeConn) expect(want ...string) {
	c.t.Helper()
	for _, w := range want {
		select {
		case got, ok := <-c.lines:
			if !ok || got != w {
				c.t.Fatalf("the backend wrote %q, want %q", got, w)
			}
		case <-time.After(time.Hour):
			c.t.Fatalf("the backend did not write %q", w)
		}
	}
}

// quiet fails if the backend has written something.
func (c *fakeConn) quiet() {
	c.t.Helper()
	synctest.Wait()
	if len(c.lines) > 0 {
		c.t.Fatalf("the backend wrote %q", <-c.lines)
	}
}

// accept takes the next connection and registers it, with the capabilities.
func (s *fakeServer) accept(nick, user, realname string, caps ...string) *fakeConn {
	s.t.Helper()
	c := <-s.conns
	c.expect("CAP LS 302", "NICK "+nick, "USER "+user+" 0 * "+realname)
	c.send(":irc.test CAP * LS :" + strings.Join(caps, " "))
	if len(caps) > 0 {
		c.expect("CAP REQ " + trailing(strings.Join(caps, " ")))
		c.send(":irc.test CAP * ACK :" + strings.Join(caps, " "))
	}
	c.expect("CAP END")
	c.send(":irc.test 001 "+nick+" :Welcome", ":irc.test 005 "+nick+" CASEMAPPING=rfc1459 NICKLEN=20 PREFIX=(ov)@+ :are supported", ":irc.test 422 "+nick+" :No MOTD")
	return c
}

func trailing(s string) string {
	if strings.Contains(s, " ") {
		return ":" + s
	}
	return s
}

// acceptBot is accept for the bot, which then enters a channel with bob.
func (s *fakeServer) acceptBot(caps ...string) *fakeConn {
	s.t.Helper()
	c := s.accept("bridge", "bridge", ":Gjallar bridge", caps...)
	s.host.WaitPhase(backends.Ready)
	s.join(c)
	return c
}

func (s *fakeServer) join(c *fakeConn) {
	s.t.Helper()
	joined := make(chan error, 1)
	go func() {
		_, err := s.net.Join(context.Background(), backends.JoinRequest{Chat: backends.ChatKey{Chat: "#tea"}})
		joined <- err
	}()
	c.expect("JOIN #tea")
	c.welcome("bridge")
	if err := <-joined; err != nil {
		s.t.Fatal(err)
	}
}

// welcome answers a JOIN of #tea.
func (c *fakeConn) welcome(nick string) {
	c.send(":"+nick+"!u@host JOIN #tea", ":irc.test 353 "+nick+" = #tea :"+nick+" @bob", ":irc.test 366 "+nick+" #tea :End")
}

// acceptAlice plays Alice's connection until her message can be said.
func (s *fakeServer) acceptAlice(bot *fakeConn, caps ...string) *fakeConn {
	s.t.Helper()
	c := s.accept("Alice", "alice", "Alice", caps...)
	bot.expect("PING account")
	bot.send(strings.Replace(<-bot.lines, "PING", "PONG", 1))
	c.expect("JOIN #tea")
	c.welcome("Alice")
	bot.send(":Alice!u@host JOIN #tea")
	return c
}

func (s *fakeServer) say(id, text string) <-chan backends.Result {
	s.t.Helper()
	return send(s.t, s.net, &backends.Command{
		ID: id, Chat: backends.ChatKey{Chat: "#tea"}, Sender: alice, Body: &backends.Message{Text: richtext.Plain(text)},
	})
}

// undecided fails if there is a result.
func undecided(t *testing.T, results <-chan backends.Result) {
	t.Helper()
	synctest.Wait()
	if len(results) > 0 {
		t.Fatalf("already decided: %+v", <-results)
	}
}

func TestRegistration(t *testing.T) {
	script(t, `"password":"open sesame","sasl":{"username":"bot","password":"secret"}`, func(t *testing.T, s *fakeServer) {
		c := <-s.conns
		c.expect("CAP LS 302", "PASS :open sesame", "NICK bridge", "USER bridge 0 * :Gjallar bridge")
		c.send("PING :before", ":irc.test CAP * LS * :message-tags unknown/cap", ":irc.test CAP * LS :sasl=PLAIN,EXTERNAL server-time")
		c.expect("PONG before", "CAP REQ :message-tags sasl server-time")
		c.send(":irc.test 433 * bridge :taken", ":irc.test CAP bridge ACK :message-tags sasl server-time")
		c.expect("NICK bridge_", "AUTHENTICATE PLAIN")
		c.send(":irc.test 433 * bridge_ :taken", "AUTHENTICATE +")
		c.expect("NICK bridge1", "AUTHENTICATE AGJvdABzZWNyZXQ=") // NUL bot NUL secret
		c.send(":irc.test 903 bridge1 :logged in")
		c.expect("CAP END")
		c.send(":irc.test 001 bridge1 :Welcome", ":irc.test 005 bridge1 BOT=B :are supported", ":irc.test 376 bridge1 :End of MOTD")
		c.expect("MODE bridge1 +B")
		if state := s.host.WaitPhase(backends.Ready); !state.Capabilities.Typing || state.Capabilities.Edits {
			t.Errorf("capabilities %+v", state.Capabilities)
		}
		if strings.Contains(s.host.Logs(), "secret") || strings.Contains(s.host.Logs(), "sesame") {
			t.Error("a password is in the log")
		}
	})
}

func TestAWrongPasswordNeedsSomeone(t *testing.T) {
	script(t, `"sasl":{"username":"bot","password":"wrong"}`, func(t *testing.T, s *fakeServer) {
		c := <-s.conns
		c.send(":irc.test CAP * LS :sasl", ":irc.test CAP * ACK :sasl", "AUTHENTICATE +", ":irc.test 904 * :no such login")
		if state := s.host.WaitPhase(backends.Failed); !strings.Contains(state.Reason, "no such login") {
			t.Errorf("reason %q", state.Reason)
		}
	})
}

func TestAPongConfirms(t *testing.T) {
	script(t, "", func(t *testing.T, s *fakeServer) {
		bot := s.acceptBot()
		first := s.say("1", "one")
		c := s.acceptAlice(bot)
		c.expect("PRIVMSG #tea one", "PING done-1")
		second, third := s.say("2", "two"), s.say("3", "three")
		c.expect("PRIVMSG #tea two", "PING done-2", "PRIVMSG #tea three", "PING done-3")
		undecided(t, first)
		c.send(":irc.test PONG irc.test done-1", ":irc.test 404 Alice #tea :Cannot send to channel")
		if r := result(t, first, backends.Delivered); r.IDs[0] != madeUpID(&backends.Command{ID: "1"}, 0) {
			t.Errorf("IDs %v", r.IDs)
		}
		undecided(t, second)
		c.send(":irc.test PONG irc.test done-2")
		if r := result(t, second, backends.Rejected); r.Reason != "#tea: Cannot send to channel" {
			t.Errorf("reason %q", r.Reason)
		}
		undecided(t, third)
		c.send(":irc.test PONG irc.test done-3")
		result(t, third, backends.Delivered)
	})
}

func TestAnEchoConfirms(t *testing.T) {
	for _, labels := range []bool{false, true} {
		t.Run(fmt.Sprintf("labels %v", labels), func(t *testing.T) {
			caps, l1, l2, l3 := []string{"echo-message", "message-tags"}, "", "", ""
			if labels {
				caps, l1, l2, l3 = []string{"echo-message", "labeled-response", "message-tags"}, "label=1", "label=2", "label=3"
			}
			at := func(s string) string {
				return strings.TrimPrefix(map[bool]string{true: "@" + s + " ", false: ""}[s != ""], "@ ")
			}
			script(t, "", func(t *testing.T, s *fakeServer) {
				bot := s.acceptBot()
				first, second := s.say("1", "same\nsame"), s.say("2", "same")
				c := s.acceptAlice(bot, caps...)
				c.expect(at(l1)+"PRIVMSG #tea same", at(l2)+"PRIVMSG #tea same", at(l3)+"PRIVMSG #tea same")
				c.send("@msgid=a;"+l1+" :Alice!u@host PRIVMSG #tea :same", "@msgid=b;"+l2+" :Alice!u@host PRIVMSG #tea :same")
				if r := result(t, first, backends.Delivered); len(r.IDs) != 2 || r.IDs[0] != "a" || r.IDs[1] != "b" {
					t.Errorf("IDs %v", r.IDs)
				}
				undecided(t, second)
				c.send(at(l3) + ":irc.test 404 Alice #tea :Cannot send")
				result(t, second, backends.Rejected)
				c.quiet()
				third := s.say("3", "never confirmed")
				pass(confirmTimeout + sightingPatience)
				result(t, third, backends.Uncertain)
			})
		})
	}
}

func TestTheConnectionDiesBeforeTheConfirmation(t *testing.T) {
	tests := []struct {
		name string
		bot  []string // what the bot then sees
		want backends.Outcome
	}{
		{"the bot saw the message", []string{":Alice!u@host PRIVMSG #tea :lost?"}, backends.Delivered},
		{"the bot saw that it never came", []string{":Alice!u@host QUIT :broken"}, backends.Retry},
		{"the bot saw half of what was said before", []string{":Alice!u@host PRIVMSG #tea :other", ":Alice!u@host QUIT :broken"}, backends.Retry},
		{"the bot saw somebody else go", []string{":bob!u@host QUIT :broken"}, backends.Uncertain},
		{"the bot saw a netsplit", []string{":Alice!u@host QUIT :a.test b.test"}, backends.Uncertain},
		{"the bot saw nothing", nil, backends.Uncertain},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			script(t, "", func(t *testing.T, s *fakeServer) {
				bot := s.acceptBot()
				results := s.say("1", "lost?")
				c := s.acceptAlice(bot)
				c.expect("PRIVMSG #tea lost?")
				c.conn.Close()
				undecided(t, results)
				bot.send(tt.bot...)
				pass(sightingPatience)
				result(t, results, tt.want)
			})
		})
	}
}

func TestWhatWasNotWrittenIsRetried(t *testing.T) {
	script(t, `"flood":{"burst":2,"lines_per_second":0.1}`, func(t *testing.T, s *fakeServer) {
		bot := s.acceptBot()
		first, second := s.say("1", "one"), s.say("2", "two")
		c := s.acceptAlice(bot)
		c.expect("PRIVMSG #tea one", "PING done-1")
		c.send(":irc.test PONG irc.test done-1")
		result(t, first, backends.Delivered)
		undecided(t, second)
		c.conn.Close()
		result(t, second, backends.Retry)
	})
}

func TestANetsplitIsDamped(t *testing.T) {
	script(t, "", func(t *testing.T, s *fakeServer) {
		bot := s.acceptBot()
		bot.send(":carol!u@h JOIN #tea", ":dave!u@h JOIN #tea")
		for range 2 {
			backendtest.NextBody[*backends.Member](s.host, nil)
		}
		before := len(s.host.Events())
		bot.send(":bob!u@h QUIT :a.test b.test", ":carol!u@h QUIT :a.test b.test", ":carol!u@h JOIN #tea")
		if n := len(s.host.Events()) - before; n != 0 {
			t.Errorf("%d events at the split", n)
		}
		pass(splitPatience - time.Second)
		if n := len(s.host.Events()) - before; n != 0 {
			t.Errorf("%d events soon after the split", n)
		}
		pass(time.Second)
		_, m := backendtest.NextBody(s.host, func(_ *backends.Event, m *backends.Member) bool { return m.Action == backends.Left })
		if m.User.ID != "bob" || !m.Quiet {
			t.Errorf("told %+v", m)
		}
		bot.send(":dave!u@h QUIT :Quit: a.test b.test")
		if _, m := backendtest.NextBody[*backends.Member](s.host, nil); m.User.ID != "dave" || m.Quiet {
			t.Errorf("a forged netsplit: %+v", m)
		}
	})
}

func TestASilentServerIsLeft(t *testing.T) {
	script(t, "", func(t *testing.T, s *fakeServer) {
		bot := s.acceptBot()
		pass(time.Hour)
		if len(s.conns) != 0 {
			t.Fatal("a quiet server was left")
		}
		s.mute.Store(true)
		s.down.Store(true)
		pass(deadAfter + keepalive)
		if state := s.host.WaitPhase(backends.Disconnected); !strings.Contains(state.Reason, "does not answer") {
			t.Errorf("reason %q", state.Reason)
		}
		if _, ok := <-bot.lines; ok {
			t.Error("the connection is still open")
		}
		pass(time.Hour)
		attempts := 0
		for _, ev := range s.host.Events() {
			if state, ok := ev.Body.(*backends.NetworkState); ok && state.Phase == backends.Connecting {
				attempts++
			}
		}
		if attempts < 18 || attempts > 40 {
			t.Errorf("%d attempts in an hour", attempts)
		}
		s.mute.Store(false)
		s.down.Store(false)
		s.accept("bridge", "bridge", ":Gjallar bridge")
		s.host.WaitPhase(backends.Ready)
	})
}

func TestWhatIsNotForTheRoomIsDropped(t *testing.T) {
	script(t, "", func(t *testing.T, s *fakeServer) {
		bot := s.acceptBot("batch", "message-tags")
		results := s.say("1", "hello")
		c := s.acceptAlice(bot)
		c.expect("PRIVMSG #tea hello", "PING done-1")
		c.send(":irc.test PONG irc.test done-1")
		result(t, results, backends.Delivered)
		before := len(s.host.Events())
		bot.send(
			":bob!u@h PRIVMSG @#tea :for operators",
			":bob!u@h PRIVMSG #tea :\x01VERSION\x01",
			":bob!u@h NOTICE #tea :\x01VERSION x\x01",
			":bob!u@h PRIVMSG bridge :hello bot",
			":bob!u@h PRIVMSG #elsewhere :hello",
			":irc.test NOTICE #tea :from the server",
			":Alice!u@host PRIVMSG #tea :hello",
			"BATCH +1 chathistory #tea",
			"@batch=1 :bob!u@h PRIVMSG #tea :of yesterday",
			"BATCH -1",
		)
		c.send(":NickServ!s@s NOTICE Alice :register!", ":bob!u@h PRIVMSG #tea :seen by the bot", ":irc.test 301 Alice x :y")
		if n := len(s.host.Events()) - before; n != 0 {
			t.Errorf("%d events, the first is %+v", n, s.host.Events()[before])
		}
		bot.send(
			"@time=2020-01-02T03:04:05.678Z;msgid=m1;+draft/reply=m0 :bob!u@h PRIVMSG #tea :caf\xe9",
			"@+typing=active :bob!u@h TAGMSG #tea",
			"@+draft/react=👍;+draft/reply=m1 :bob!u@h TAGMSG #tea",
		)
		ev, msg := backendtest.NextBody[*backends.Message](s.host, nil)
		if ev.ID != "m1" || ev.Time.UnixMilli() != 1577934245678 || msg.ReplyTo == nil || msg.ReplyTo.ID != "m0" || msg.Text.Plain() != "café" {
			t.Errorf("event %+v, %+v", ev, msg)
		}
		if _, typing := backendtest.NextBody[*backends.Typing](s.host, nil); !typing.On {
			t.Error("typing is off")
		}
		if _, r := backendtest.NextBody[*backends.Reaction](s.host, nil); r.Target != "m1" || r.Key != "👍" {
			t.Errorf("reaction %+v", r)
		}
	})
}

func TestAKickedBotComesBack(t *testing.T) {
	script(t, "", func(t *testing.T, s *fakeServer) {
		bot := s.acceptBot()
		began := time.Now()
		bot.send(":bob!u@h KICK #tea bridge :out")
		bot.expect("JOIN #tea")
		if d := time.Since(began); d != rejoinAfter {
			t.Errorf("back after %v", d)
		}
		bot.send(":irc.test 474 bridge #tea :Cannot join (+b)")
		bot.expect("JOIN #tea")
		bot.welcome("bridge")
		bot.expect("PING joined", "PING done-1")
		bot.send("PONG done-1")
		_, gap := backendtest.NextBody[*backends.Gap](s.host, nil)
		if gap.To.Sub(gap.From) < 3*rejoinAfter {
			t.Errorf("gap of %v", gap.To.Sub(gap.From))
		}
	})
}

func TestASlowHostDoesNotStopTheConnection(t *testing.T) {
	script(t, "", func(t *testing.T, s *fakeServer) {
		bot := s.acceptBot()
		s.host.Hold(1)
		for i := range 100 {
			bot.send(fmt.Sprintf(":bob!u@h PRIVMSG #tea :%d", i))
		}
		bot.send("PING :alive?")
		bot.expect("PONG alive?")
		if held := s.host.Held(); held > 1 {
			t.Fatalf("%d events passed the window", held)
		}
		s.host.Release()
		for i := range 100 {
			if _, m := backendtest.NextBody[*backends.Message](s.host, nil); m.Text.Plain() != fmt.Sprint(i) {
				t.Fatalf("message %d is %q", i, m.Text.Plain())
			}
		}
	})
}

func TestAnIdleAccountLeaves(t *testing.T) {
	script(t, `"accounts":{"idle_timeout":"1h"}`, func(t *testing.T, s *fakeServer) {
		bot := s.acceptBot()
		results := s.say("1", "hello")
		c := s.acceptAlice(bot)
		c.expect("PRIVMSG #tea hello", "PING done-1")
		c.send("PONG :done-1")
		result(t, results, backends.Delivered)
		began := time.Now()
		for line := range c.lines {
			if line != "QUIT idle" {
				t.Errorf("wrote %q", line)
			}
		}
		if d := time.Since(began); d < time.Hour || d > time.Hour+2*idleCheck {
			t.Errorf("left after %v", d)
		}
		_, state := backendtest.NextBody(s.host, func(_ *backends.Event, a *backends.AccountState) bool { return a.Phase == backends.Disconnected })
		if state.Account != alice.Account {
			t.Errorf("state %+v", state)
		}
	})
}

func TestClosingFinishesWhatWasTaken(t *testing.T) {
	script(t, "", func(t *testing.T, s *fakeServer) {
		bot := s.acceptBot()
		results := s.say("1", "hello")
		c := s.acceptAlice(bot)
		closed := make(chan error, 1)
		go func() { closed <- s.net.Close(context.Background()) }()
		c.expect("PRIVMSG #tea hello", "PING done-1")
		synctest.Wait()
		if err := s.net.Send(t.Context(), &backends.Command{}, nil); err == nil {
			t.Error("sent after Close")
		}
		c.send("PONG :done-1")
		result(t, results, backends.Delivered)
		c.expect("QUIT :shutting down")
		bot.expect("QUIT :shutting down")
		if err := <-closed; err != nil {
			t.Error(err)
		}
	})
}

func TestClosingGivesUpInTime(t *testing.T) {
	script(t, "", func(t *testing.T, s *fakeServer) {
		bot := s.acceptBot()
		results := s.say("1", "hello")
		s.acceptAlice(bot)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		if err := s.net.Close(ctx); err == nil {
			t.Error("no error")
		}
		if d := time.Since(began); d > 6*time.Second {
			t.Errorf("closing took %v", d)
		}
		if r := <-results; r.Outcome != backends.Uncertain {
			t.Errorf("result %+v", r)
		}
	})
}

func TestWhatWasInterruptedIsFoundOut(t *testing.T) {
	script(t, "", func(t *testing.T, s *fakeServer) {
		bot := s.acceptBot()
		confirmed := s.say("confirmed", "one")
		c := s.acceptAlice(bot)
		c.expect("PRIVMSG #tea one", "PING done-1")
		c.send("PONG :done-1")
		ids := result(t, confirmed, backends.Delivered).IDs
		begun := s.say("begun", "two")
		c.expect("PRIVMSG #tea two", "PING done-2")
		undecided(t, begun)

		// Another process with the same store: the host has lost the results.
		again := &fakeServer{t: t, conns: make(chan *fakeConn, 1000), host: s.host}
		var err error
		again.net, err = (&backend{dial: again.dial, backoff: backoff}).Open(t.Context(), json.RawMessage(`{"server":"irc.test:6667","tls":false,"nick":"bridge"}`), s.host)
		if err != nil {
			t.Fatal(err)
		}
		defer again.net.Close(context.Background())
		bot = again.acceptBot()
		repeat := func(id string) <-chan backends.Result {
			return send(t, again.net, &backends.Command{
				ID: id, MaybeSent: true, Chat: backends.ChatKey{Chat: "#tea"}, Sender: alice,
				Body: &backends.Message{Text: richtext.Plain(id)},
			})
		}
		if r := result(t, repeat("confirmed"), backends.Delivered); r.IDs[0] != ids[0] {
			t.Errorf("IDs %v, were %v", r.IDs, ids)
		}
		result(t, repeat("begun"), backends.Uncertain)
		untouched := repeat("untouched")
		c = again.acceptAlice(bot)
		c.expect("PRIVMSG #tea untouched", "PING done-1")
		c.send("PONG :done-1")
		result(t, untouched, backends.Delivered)
	})
}

func TestAGapIsTold(t *testing.T) {
	script(t, "", func(t *testing.T, s *fakeServer) {
		bot := s.acceptBot()
		pass(time.Hour)
		s.down.Store(true)
		bot.conn.Close()
		s.host.WaitPhase(backends.Disconnected)
		lost := time.Now()
		pass(time.Minute)
		s.down.Store(false)
		bot = s.accept("bridge", "bridge", ":Gjallar bridge")
		s.host.WaitPhase(backends.Ready)
		go s.net.Join(context.Background(), backends.JoinRequest{
			Chat: backends.ChatKey{Chat: "#tea"}, Resume: &backends.Mark{ID: "x", Time: lost.Add(-30 * time.Minute)},
		})
		bot.expect("JOIN #tea")
		bot.welcome("bridge")
		bot.expect("PING joined", "PING done-1")
		bot.send("PONG joined", "PONG done-1")
		if _, gap := backendtest.NextBody[*backends.Gap](s.host, nil); gap.From != lost || time.Since(gap.To) > time.Second {
			t.Errorf("gap from %v to %v, was lost at %v", gap.From, gap.To, lost)
		}
	})
}

func TestWhoWaitsForTheChannelComesFirst(t *testing.T) {
	script(t, "", func(t *testing.T, s *fakeServer) {
		s.acceptBot()
		s.say("1", "one")
		c := s.accept("Alice", "alice", "Alice")
		c.expect("JOIN #tea")
		c.send(":Alice!u@host JOIN #tea")
		s.say("2", "two")
		c.quiet()
		c.send(":irc.test 366 Alice #tea :End")
		c.expect("PRIVMSG #tea one", "PING done-1", "PRIVMSG #tea two", "PING done-2")
		c.send("PONG done-2")
	})
}

func TestALaneThatIsNotUsedEnds(t *testing.T) {
	script(t, "", func(t *testing.T, s *fakeServer) {
		bot := s.acceptBot()
		first := s.say("1", "one")
		c := s.acceptAlice(bot)
		c.expect("PRIVMSG #tea one", "PING done-1")
		n := s.net.(*network)
		lanes := func() int {
			synctest.Wait()
			n.mu.Lock()
			defer n.mu.Unlock()
			return len(n.lanes)
		}
		pass(2 * laneIdle)
		if lanes() != 1 {
			t.Error("a lane ended with a command in hand")
		}
		c.send("PONG done-1")
		result(t, first, backends.Delivered)
		pass(2 * laneIdle)
		if lanes() != 0 {
			t.Error("the lane is still there")
		}
		second := s.say("2", "two")
		c.expect("PRIVMSG #tea two", "PING done-2")
		c.send("PONG done-2")
		result(t, second, backends.Delivered)
	})
}

func TestTheConnectionOfAUserComesBack(t *testing.T) {
	script(t, "", func(t *testing.T, s *fakeServer) {
		bot := s.acceptBot()
		first := s.say("1", "one")
		c := s.acceptAlice(bot)
		c.expect("PRIVMSG #tea one", "PING done-1")
		c.send("PONG done-1")
		result(t, first, backends.Delivered)
		c.conn.Close()
		bot.send(":Alice!u@host QUIT :broken")
		second := s.say("2", "two")
		c = s.acceptAlice(bot) // which enters #tea
		c.expect("PRIVMSG #tea two", "PING done-1")
		c.send("PONG done-1")
		result(t, second, backends.Delivered)

		c.conn.Close()
		left := send(t, s.net, &backends.Command{
			Chat: backends.ChatKey{Chat: "#tea"}, Sender: alice, Body: &backends.Member{Action: backends.Left, User: alice},
		})
		result(t, left, backends.Delivered)
		c = s.accept("Alice", "alice", "Alice")
		c.quiet()
	})
}

func TestTheBotRegainsItsNick(t *testing.T) {
	script(t, "", func(t *testing.T, s *fakeServer) {
		c := <-s.conns
		c.expect("CAP LS 302", "NICK bridge", "USER bridge 0 * :Gjallar bridge")
		c.send(":irc.test 433 * bridge :taken", ":irc.test CAP * LS :")
		c.expect("NICK bridge_", "CAP END")
		c.send(":irc.test 001 bridge_ :Welcome", ":irc.test 422 bridge_ :No MOTD")
		c.expect("NICK bridge")
		c.send(":irc.test 433 bridge_ bridge :taken")
		c.expect("NICK bridge")
		c.send(":bridge_!u@h NICK bridge")
		pass(time.Hour)
		c.quiet()
	})
}

func TestTypingIsPassedOn(t *testing.T) {
	script(t, "", func(t *testing.T, s *fakeServer) {
		bot := s.acceptBot("message-tags")
		typing := func(on bool) {
			t.Helper()
			cmd := &backends.Command{Chat: backends.ChatKey{Chat: "#tea"}, Sender: alice, Body: &backends.Typing{On: on}}
			result(t, send(t, s.net, cmd), backends.Delivered)
		}
		typing(true) // is not worth a connection
		if len(s.conns) != 0 {
			t.Error("connected")
		}
		results := s.say("1", "hello")
		c := s.acceptAlice(bot, "message-tags")
		c.expect("PRIVMSG #tea hello", "PING done-1")
		c.send("PONG done-1")
		result(t, results, backends.Delivered)
		typing(true)
		typing(false)
		c.expect("@+typing=active TAGMSG #tea", "@+typing=done TAGMSG #tea")
	})
}
