package ircd

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

// piped is a network without a listener whose clients come through net.Pipe.
func piped(tb testing.TB) (*network, *backendtest.Host) {
	host := backendtest.NewHost(tb)
	cfg := defaults()
	cfg.Guests, cfg.Limits.LineRate = guestsAlways, 0
	n := newNetwork(cfg, host, fakeListener{})
	close(n.swept)
	return n, host
}

// wellFormed reports what is wrong with a line that clients get, "" if nothing.
func wellFormed(line string) string {
	rest := line
	if strings.HasPrefix(line, "@") {
		tags, after, _ := strings.Cut(line, " ")
		if rest = after; len(tags)+1 > ircmsg.MaxTags {
			return "tags too long"
		}
	}
	switch m, err := ircmsg.Parse(line); {
	case strings.ContainsAny(line, "\r\n\x00"):
		return "CR, LF or NUL inside"
	case len(rest)+2 > ircmsg.MaxLine:
		return "too long"
	case !utf8.ValidString(line):
		return "no UTF-8"
	case err != nil:
		return err.Error()
	case m.Prefix.Name != "" && !validNick(m.Prefix.Name) && m.Prefix.Name != "localhost":
		return "strange prefix"
	}
	return ""
}

// FuzzSession feeds a registered client's bytes to a session, and what comes of
// them back from the room.
func FuzzSession(f *testing.F) {
	for _, line := range []string{
		"JOIN #tea\r\nPRIVMSG #tea :hi\r\n", "JOIN #tea,#b\nPART #tea :x\nJOIN 0", "@label=a;+draft/reply=x/2;+draft/react=y TAGMSG #tea",
		"CAP REQ :message-tags server-time batch labeled-response echo-message", "AUTHENTICATE PLAIN\nAUTHENTICATE AAAA", "MODE #tea +ob-v a b c",
		"NICK x\r\nWHOIS x\r\nWHO x %tcuhnfar,1\r\nUSERHOST x\r\nISON x", "CHATHISTORY LATEST #tea * 5", "TOPIC #tea :\x03\x02", "KICK #tea alice :\x00", "QUIT :\xff",
		"PRIVMSG #tea :alice: \x01", "INVITE @a:b #tea", "@a=b \r\n@ \r\n: \r\n", "LIST *", "AWAY :\x02", "NAMES #tea", "REDACT #tea x y",
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		n, host := piped(t)
		host.FakeRooms().AddRoom(backends.RoomSummary{Room: tea}, joined(alice, backends.Admin))
		ours, theirs := net.Pipe()
		n.serve(ours)
		defer theirs.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			theirs.SetWriteDeadline(time.Now().Add(5 * time.Second))
			theirs.Write([]byte("CAP REQ :message-tags batch labeled-response echo-message\r\nCAP END\r\nNICK bob\r\nUSER bob 0 * :x\r\nJOIN #tea\r\n"))
			theirs.Write(in)
			theirs.Write([]byte("\r\nPING the-end\r\n"))
		}()
		c := newClient(t, theirs)
		for {
			line, err := c.readLine()
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Fatal("the session hangs")
			}
			if err != nil || strings.HasSuffix(line, "PONG localhost the-end") {
				break
			}
			if wrong := wellFormed(line); wrong != "" {
				t.Fatalf("%s: %q", wrong, line)
			}
		}
		theirs.Close()
		<-done
		for _, ev := range host.Events() {
			n.Send(context.Background(), &backends.Command{ID: "$1", Chat: ev.Chat, Sender: ev.Sender, Echo: ev.ID, Body: ev.Body}, func(backends.Result) {})
		}
		if err := n.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(n.channels)+len(n.people.byKey)+len(n.people.byNick)+len(n.sessions)+len(n.tokens)+len(n.addresses) != 0 {
			t.Errorf("left behind: %v %v %v", n.channels, n.people.byKey, n.people.byNick)
		}
	})
}

// FuzzShow puts a hostile text into every field of commands: clients get
// well-formed lines, and none that the text made up.
func FuzzShow(f *testing.F) {
	for _, s := range []string{"x", "a\r\nQUIT :x", "\x00", ":a b", "", "\x01DCC SEND\x01", "a!b@c", strings.Repeat("é", 600), "\xff\xfe", "@a=b :x", "#tea", "alice", " "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, _ := piped(t)
		defer n.cancel()
		se := &session{n: n, out: newOutbox(16 << 20), caps: capMessageTags | capServerTime | capAccountTag | capExtendedJoin | capAwayNotify | capInviteNotify, joined: map[backends.ChatID]*attendance{}}
		se.cancel = func() {}
		p := n.people.meet(backends.User{ID: "bob", Name: "bob"})
		se.settle(p)
		ch := n.open("#tea", "#tea")
		a := &attendance{channel: ch}
		ch.sessions[se], se.joined["#tea"] = a, a
		evil := backends.User{Account: backends.AccountID(s), Username: s, Domain: s, Name: s}
		n.learn(a, p, &backends.RoomView{Info: backends.ChatInfo{Topic: &s}, TopicBy: evil, TopicAt: noon, Members: []backends.Member{joined(evil, backends.Admin)}})
		for _, m := range se.welcomeTo(ch) {
			se.put(compose(m))
		}
		other := evil
		other.Account += "2"
		topic := s + "2"
		for _, body := range []backends.Body{
			&backends.Message{Text: richtext.Plain(s)}, &backends.Message{Kind: backends.Emote, Text: richtext.Plain(s)},
			&backends.Message{Text: richtext.Doc{{Kind: richtext.Mention, User: s, Children: richtext.Plain(s)}, {Kind: richtext.Link, URL: s}, {Kind: richtext.CodeBlock, Text: s}}},
			&backends.Typing{On: true}, &backends.ChatInfo{Topic: &topic}, &backends.RoleChange{User: evil, Role: backends.Voice},
			&backends.Member{Action: backends.Joined, User: other}, &backends.Member{Action: backends.Left, User: other, Reason: s},
			&backends.Member{Action: backends.Invited, User: p.user}, &backends.Profile{User: evil},
			&backends.Member{Action: backends.Kicked, User: evil, Reason: s},
		} {
			n.show(&backends.Command{ID: s, Chat: backends.ChatKey{Chat: "#tea"}, Sender: evil, Body: body})
		}
		for _, m := range se.whois(n.people.look(evil)) {
			se.put(compose(m))
		}
		var buf []byte
		for len(se.out.lines) > 0 {
			piece, _ := se.out.take(nil)
			buf = append(buf, piece...)
		}
		lines := bytes.SplitSeq(bytes.TrimSuffix(buf, []byte("\r\n")), []byte("\r\n"))
		for line := range lines {
			if wrong := wellFormed(string(line)); wrong != "" {
				t.Fatalf("%s: %q", wrong, line)
			}
			if m, _ := ircmsg.Parse(string(line)); m.Command == "QUIT" || m.Command == "ERROR" || m.Command == "PRIVMSG" && strings.HasPrefix(m.Trailing(), "\x01DCC") {
				t.Fatalf("the text made a line: %q", line)
			}
		}
	})
}

// BenchmarkFanOut is one message to a channel with many clients, of which half have
// negotiated tags.
func BenchmarkFanOut(b *testing.B) {
	n, _ := piped(b)
	defer n.cancel()
	ch := n.open("#tea", "#tea")
	ch.known = true
	const clients = 1000
	sessions := make([]*session, clients)
	for i := range sessions {
		s := &session{n: n, out: newOutbox(1 << 30)}
		if i%2 == 0 {
			s.caps = capMessageTags | capServerTime
		}
		ch.sessions[s] = &attendance{channel: ch}
		sessions[i] = s
	}
	msg := &backends.Command{ID: "$1", Chat: backends.ChatKey{Chat: "#tea"}, Sender: alice, Time: noon, Body: said("the quick brown fox jumps over the lazy dog")}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		n.Send(b.Context(), msg, func(backends.Result) {})
		if i%100 == 99 {
			for _, s := range sessions {
				s.out.drop()
				s.out = newOutbox(1 << 30)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/clients, "ns/client")
}

// BenchmarkTalk is a line of a client, over TCP, to the host and its answer to
// another client.
func BenchmarkTalk(b *testing.B) {
	l := start(b, "")
	from, to := l.guest("from", ""), l.guest("to", "")
	for _, c := range []*client{from, to} {
		c.write("JOIN #tea")
		c.sync()
	}
	to.sync()
	l.host.Answer(func(ev *backends.Event) backends.Receipt {
		l.net.Send(context.Background(), &backends.Command{ID: string(ev.ID), Chat: ev.Chat, Sender: ev.Sender, Echo: ev.ID, Time: ev.Time, Body: ev.Body}, func(backends.Result) {})
		return backends.Receipt{}
	})
	b.ReportAllocs()
	for b.Loop() {
		from.write("PRIVMSG #tea :the quick brown fox")
		if _, err := to.readLine(); err != nil {
			b.Fatal(err)
		}
	}
}
