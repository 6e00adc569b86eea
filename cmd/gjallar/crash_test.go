package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends/backendtest/ngircd"
	"github.com/gjallar-im/gjallar/backends/backendtest/prosody"
	"github.com/gjallar-im/gjallar/homeserver/hstest/postgres"
)

// crashMessages is how many go each way.
const crashMessages = 150

// TestNothingIsLostNorDoubledWithXMPP kills the plugin and the program, again and
// again, while numbered messages go both ways through Prosody. A MUC confirms what
// it takes and keeps its history, so every message must arrive once.
func TestNothingIsLostNorDoubledWithXMPP(t *testing.T) {
	c := newCrash(t, "xmpp", "")
	c.disasters = []disaster{{"kill the plugin", c.killPlugin}, {"kill the program", c.killProgram}}
	c.run()
	c.allOnce(c.inMatrix("x"), "x")
	c.allOnce(c.remote.texts("m"), "m")
}

// TestNothingIsLostNorDoubledWithoutTheDatabase is the same on PostgreSQL, which is
// killed too.
func TestNothingIsLostNorDoubledWithoutTheDatabase(t *testing.T) {
	db := postgres.New(t)
	if err := db.Run(); err != nil {
		t.Fatal(err)
	}
	c := newCrash(t, "xmpp", "database: "+db.DSN("postgres")+"\n")
	c.disasters = []disaster{{"kill the database", func() {
		db.Kill()
		must(t, db.Run())
	}}, {"kill the plugin", c.killPlugin}, {"kill the program", c.killProgram}}
	c.run()
	c.allOnce(c.inMatrix("x"), "x")
	c.allOnce(c.remote.texts("m"), "m")
}

// TestWhatIRCCannotTellIsToldToTheSender is the same with ngIRCd, which confirms
// nothing and remembers nothing. What was said on IRC while nobody of ours was there
// is a gap that the room is told of; a message to IRC of which nobody can say whether
// it arrived is called uncertain.
func TestWhatIRCCannotTellIsToldToTheSender(t *testing.T) {
	c := newCrash(t, "irc", "")
	c.disasters = []disaster{{"kill the plugin", c.killPlugin}, {"kill the program", c.killProgram}}
	c.run()
	in := c.inMatrix("x")
	if !slices.IsSortedFunc(in, byNumber) || len(slices.Compact(slices.Clone(in))) != len(in) {
		t.Errorf("from IRC came, doubled or out of order: %q", in)
	}
	if len(in) < crashMessages && !c.told("missing") {
		t.Errorf("of %d messages of IRC %d came, and nobody was told", crashMessages, len(in))
	}
	out := c.remote.texts("m")
	if !slices.IsSortedFunc(out, byNumber) || len(slices.Compact(slices.Clone(out))) != len(out) {
		t.Errorf("to IRC came, doubled or out of order: %q", out)
	}
	for i := range crashMessages {
		text := fmt.Sprintf("m%d", i)
		if !slices.Contains(out, text) && !c.uncertain(text) {
			t.Errorf("%s did not reach IRC, and its sender was not told", text)
		}
	}
}

func byNumber(a, b string) int {
	var x, y int
	fmt.Sscanf(a[1:], "%d", &x)
	fmt.Sscanf(b[1:], "%d", &y)
	return x - y
}

// disaster is something that happens at random moments.
type disaster struct {
	name   string
	strike func()
}

// crash is a room linked with a chat, and people on both sides.
type crash struct {
	*testing.T
	*program
	protocol  string
	disasters []disaster
	remote    *listener
	alice     *matrixClient
	room      string
}

func newCrash(t *testing.T, protocol, config string) *crash {
	c := &crash{T: t, protocol: protocol}
	chat := ""
	switch protocol {
	case "xmpp":
		chat = "crash@" + prosody.MUC
		s := prosody.Start(t)
		c.remote = listenXMPP(t, s, chat)
		config += fmt.Sprintf("networks: {xmpp: {protocol: xmpp, server: %q, domain: %s, secret: %s, limits: {rate: 1000, burst: 1000}}}\n", s.ComponentAddr, prosody.Component, prosody.Secret)
	case "irc":
		chat = "#crash"
		s := ngircd.Start(t)
		c.remote = listenIRC(t, s.Addr, chat)
		config += fmt.Sprintf("networks: {irc: {protocol: irc, server: %q, tls: false, flood: {burst: 100, lines_per_second: 1000, connects_per_second: 100}}}\n", s.Addr)
	}
	c.program = startProgram(t, config)
	c.alice = c.matrix("alice")
	n := &benchNetwork{name: protocol, chat: chat}
	must(t, link(soon(t), c.alice, n))
	c.room = n.room
	return c
}

func (c *crash) killPlugin() { c.plugin(c.protocol).Kill() }

func (c *crash) killProgram() {
	c.kill()
	c.start()
}

// run sends numbered messages both ways while disasters strike, and returns when a
// last message has come through each way: what was sent before it has, too.
func (c *crash) run() {
	ctx, cancel := context.WithTimeout(c.Context(), 4*time.Minute)
	defer cancel()
	var senders sync.WaitGroup
	senders.Go(func() {
		for i := range crashMessages {
			c.remote.say(fmt.Sprintf("x%d", i))
			pace(ctx)
		}
	})
	senders.Go(func() {
		for i := range crashMessages {
			c.insist(ctx, fmt.Sprintf("m%d", i))
			pace(ctx)
		}
	})
	seed := rand.Uint64()
	c.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range 3 * len(c.disasters) {
		d := c.disasters[i%len(c.disasters)]
		wait(ctx, time.Duration(random.Int64N(int64(800*time.Millisecond))))
		d.strike()
	}
	senders.Wait()
	c.finish(ctx)
}

// pace is about as fast as people who are in a hurry.
func pace(ctx context.Context) { wait(ctx, 20*time.Millisecond) }

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// insist sends as a client does: again under the same transaction ID until the
// server has answered.
func (c *crash) insist(ctx context.Context, text string) {
	for ctx.Err() == nil && c.alice.say(ctx, c.room, text) != nil {
		wait(ctx, 20*time.Millisecond)
	}
}

func (c *crash) finish(ctx context.Context) {
	c.insist(ctx, "m-last")
	c.eventually(ctx, "the last message from Matrix", func() bool { return c.remote.heard("m-last") })
	for i := 0; !c.hasInMatrix(ctx, "x-last"); i++ {
		if i%50 == 0 { // IRC may lose it
			c.remote.say(fmt.Sprintf("x-last%d", i))
		}
		if ctx.Err() != nil {
			c.Fatal("the last message to Matrix did not come")
		}
		wait(ctx, 50*time.Millisecond)
	}
}

func (c *crash) eventually(ctx context.Context, what string, done func() bool) {
	for !done() {
		if ctx.Err() != nil {
			c.Fatalf("%s did not come", what)
		}
		wait(ctx, 20*time.Millisecond)
	}
}

// timeline reads the whole room, oldest first.
func (c *crash) timeline(ctx context.Context) (out []matrixMessage) {
	from := ""
	for {
		var page struct {
			Chunk []matrixMessage `json:"chunk"`
			End   string          `json:"end"`
		}
		q := url.Values{"dir": {"f"}, "limit": {"1000"}}
		if from != "" {
			q.Set("from", from)
		}
		if err := c.alice.do(ctx, "GET", "/rooms/"+url.PathEscape(c.room)+"/messages?"+q.Encode(), nil, &page); err != nil {
			return nil
		}
		out = append(out, page.Chunk...)
		if from = page.End; from == "" {
			return out
		}
	}
}

func (c *crash) hasInMatrix(ctx context.Context, prefix string) bool {
	return slices.ContainsFunc(c.timeline(ctx), func(m matrixMessage) bool { return strings.HasPrefix(m.Content.Body, prefix) })
}

// inMatrix returns the numbered texts in the room, in order.
func (c *crash) inMatrix(prefix string) (out []string) {
	for _, m := range c.timeline(c.Context()) {
		if numbered(m.Content.Body, prefix) {
			out = append(out, m.Content.Body)
		}
	}
	return out
}

// told reports whether a notice with such a word is in the room.
func (c *crash) told(word string) bool {
	return slices.ContainsFunc(c.timeline(c.Context()), func(m matrixMessage) bool {
		return m.Content.Type == "m.notice" && strings.Contains(m.Content.Body, word)
	})
}

// uncertain reports whether the sender was told that nobody knows about a message:
// by a notice that answers it.
func (c *crash) uncertain(text string) bool {
	all := c.timeline(c.Context())
	i := slices.IndexFunc(all, func(m matrixMessage) bool { return m.Content.Body == text })
	return i >= 0 && slices.ContainsFunc(all, func(m matrixMessage) bool {
		return m.Content.Type == "m.notice" && strings.Contains(m.Content.Body, "may not have reached") && m.Content.Relates.ReplyTo.ID == all[i].ID
	})
}

func numbered(text, prefix string) bool {
	var n int
	_, err := fmt.Sscanf(text, prefix+"%d", &n)
	return err == nil && text == fmt.Sprintf("%s%d", prefix, n)
}

// allOnce wants every number, once and in order.
func (c *crash) allOnce(got []string, prefix string) {
	c.Helper()
	var want []string
	for i := range crashMessages {
		want = append(want, fmt.Sprintf("%s%d", prefix, i))
	}
	if !slices.Equal(got, want) {
		c.Errorf("there came %d of %d: %q", len(got), len(want), got)
	}
}

// listener is someone on the network who writes down what they hear.
type listener struct {
	say func(text string)

	mu  sync.Mutex
	all []string // guarded by mu
}

func (l *listener) hear(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, text)
}

func (l *listener) heard(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Contains(l.all, text)
}

// texts returns the numbered ones.
func (l *listener) texts(prefix string) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.all {
		if numbered(t, prefix) {
			out = append(out, t)
		}
	}
	return out
}

func listenXMPP(t *testing.T, s *prosody.Server, muc string) *listener {
	ctx := soon(t)
	must(t, s.Register(ctx, "bob", "bob"))
	client, err := dialXMPP(ctx, s.C2S, "bob", prosody.Domain, "bob")
	must(t, err)
	t.Cleanup(client.close)
	must(t, client.join(ctx, muc, "bob"))
	l := &listener{say: func(text string) { client.say(muc, text) }}
	go func() {
		for s := range client.stanzas {
			if s.XMLName.Local == "message" && s.Body != "" && s.Delay == nil {
				l.hear(s.Body)
			}
		}
	}()
	return l
}

func listenIRC(t *testing.T, addr, channel string) *listener {
	client := ircUser(t, addr, "bob")
	must(t, client.join(soon(t), channel))
	l := &listener{say: func(text string) { client.send("PRIVMSG " + channel + " :" + text) }}
	go func() {
		for line := range client.lines {
			if text := said(line.text); text != "" {
				l.hear(text)
			}
		}
	}()
	return l
}
