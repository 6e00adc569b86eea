package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gjallar-im/gjallar/backends/backendtest/ngircd"
	"github.com/gjallar-im/gjallar/backends/backendtest/peer"
	"github.com/gjallar-im/gjallar/backends/backendtest/prosody"
)

// bench is `gjallar bench bridge`: it starts ngIRCd, Prosody and this program on
// loopback, and prints how long messages take through the bridge and without it, how
// many go through in a second, and what that costs.
func bench(ctx context.Context, t *terminal, args []string) error {
	if len(args) == 0 || args[0] != "bridge" {
		return usagef("gjallar bench bridge [flags]")
	}
	fs, _ := newFlags("bench bridge", t.err)
	o := benchOptions{out: t.out}
	fs.IntVar(&o.samples, "samples", 300, "measure the latency of so many messages, one at a time")
	fs.IntVar(&o.messages, "messages", 5000, "send so many messages as fast as they are taken")
	fs.StringVar(&o.database, "database", "", "PostgreSQL `URL`; SQLite without it")
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "gjallar-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // the peers run as users of their own
		return err
	}
	o.dir = dir
	return o.run(ctx)
}

type benchOptions struct {
	out               io.Writer
	dir, database     string
	samples, messages int
}

// someone talks in a chat of a network and hears the others.
type someone interface {
	speak(text string) error
	// hear returns the next message and when it came.
	hear(ctx context.Context) (text string, at time.Time, err error)
	close()
}

// benchNetwork is a network under measurement: two people in one chat, which is
// linked to a room.
type benchNetwork struct {
	name, chat string
	pid        int
	one, two   someone
	room       string
}

func (o *benchOptions) run(ctx context.Context) error {
	irc, err := ngircd.Run(ctx, mkdir(o.dir, "ngircd"))
	if err != nil {
		return err
	}
	defer irc.Stop()
	xmpp, err := prosody.Run(ctx, mkdir(o.dir, "prosody"))
	if err != nil {
		return err
	}
	defer xmpp.Stop()
	p, err := o.startGjallar(ctx, irc, xmpp)
	if err != nil {
		return err
	}
	defer p.stop()
	networks := []*benchNetwork{
		{name: "irc", chat: "#bench", pid: irc.Pid()},
		{name: "xmpp", chat: "bench@" + prosody.MUC, pid: xmpp.Pid()},
	}
	if err := meetOnIRC(ctx, irc.Addr, networks[0]); err != nil {
		return fmt.Errorf("irc: %w", err)
	}
	defer networks[0].close()
	if err := meetOnXMPP(ctx, xmpp, networks[1]); err != nil {
		return fmt.Errorf("xmpp: %w", err)
	}
	defer networks[1].close()
	alice, err := registerMatrix(ctx, p.web, "alice")
	if err != nil {
		return err
	}
	for _, n := range networks {
		if err := o.measure(ctx, p, alice, n); err != nil {
			return fmt.Errorf("%s: %w", n.name, err)
		}
	}
	for _, proc := range processes(p.cmd.Process.Pid) {
		fmt.Fprintf(o.out, "memory  %-40s %7.1f MiB\n", proc.name, float64(proc.rss)/(1<<20))
	}
	return nil
}

func mkdir(dir, name string) string {
	path := filepath.Join(dir, name)
	os.Mkdir(path, 0o777)
	os.Chmod(path, 0o777)
	return path
}

func (n *benchNetwork) close() { n.one.close(); n.two.close() }

// benchProgram is the Gjallar under measurement.
type benchProgram struct {
	cmd *exec.Cmd
	web string
}

func (p *benchProgram) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.cmd.Wait()
}

func (o *benchOptions) startGjallar(ctx context.Context, irc *ngircd.Server, xmpp *prosody.Server) (*benchProgram, error) {
	ports, err := peer.FreePorts(1)
	if err != nil {
		return nil, err
	}
	web := fmt.Sprintf("127.0.0.1:%d", ports[0])
	config := fmt.Sprintf(`data: %s
listen: %s
irc_listen: "off"
database: %q
rate_limits: false
log: {level: warn}
networks:
  irc: {protocol: irc, server: %q, tls: false, flood: {burst: 1000, lines_per_second: 100000, connects_per_second: 1000}}
  xmpp: {protocol: xmpp, server: %q, domain: %s, secret: %s}
`, filepath.Join(o.dir, "data"), web, o.database, irc.Addr, xmpp.ComponentAddr, prosody.Component, prosody.Secret)
	file := filepath.Join(o.dir, "gjallar.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &benchProgram{cmd: exec.CommandContext(ctx, self, "serve", "-config", file), web: "http://" + web}
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewReader(out)
	if _, err := lines.ReadString('\n'); err != nil {
		p.stop()
		return nil, errors.New("gjallar did not start")
	}
	fmt.Fprintf(o.out, "start   until it says that it is ready %24.0f ms\n", float64(time.Since(began).Microseconds())/1000)
	go io.Copy(io.Discard, lines)
	return p, nil
}

// measure links a chat to a room and measures both ways.
func (o *benchOptions) measure(ctx context.Context, p *benchProgram, alice *matrixClient, n *benchNetwork) error {
	if err := link(ctx, alice, n); err != nil {
		return err
	}
	direct, err := o.latency(ctx, n.one.speak, n.two.hear)
	if err != nil {
		return fmt.Errorf("without the bridge: %w", err)
	}
	o.print(n, n.name+" to "+n.name+", no bridge", direct)
	hear := func(ctx context.Context) (string, time.Time, error) { return alice.hearIn(ctx, n.room) }
	in, err := o.latency(ctx, n.one.speak, hear)
	if err != nil {
		return fmt.Errorf("to Matrix: %w", err)
	}
	o.print(n, n.name+" to matrix", in)
	say := func(text string) error { return alice.say(ctx, n.room, text) }
	out, err := o.latency(ctx, say, n.one.hear)
	if err != nil {
		return fmt.Errorf("from Matrix: %w", err)
	}
	o.print(n, "matrix to "+n.name, out)
	if err := o.throughput(ctx, p, n, n.name+" to matrix", 1, n.one.speak, hear); err != nil {
		return fmt.Errorf("many to Matrix: %w", err)
	}
	if err := o.throughput(ctx, p, n, "matrix to "+n.name, 16, say, n.one.hear); err != nil {
		return fmt.Errorf("many from Matrix: %w", err)
	}
	return nil
}

// link makes a room and joins it with the chat, as a person would.
func link(ctx context.Context, alice *matrixClient, n *benchNetwork) error {
	var room struct {
		ID string `json:"room_id"`
	}
	if err := alice.do(ctx, "POST", "/createRoom", map[string]any{"preset": "public_chat", "invite": []string{botID}}, &room); err != nil {
		return err
	}
	n.room, alice.since = room.ID, ""
	if err := alice.waitFor(ctx, n.room, func(m matrixMessage) bool { return m.Type == "m.room.member" && m.Sender == botID }); err != nil {
		return fmt.Errorf("the bot does not come: %w", err)
	}
	if err := alice.say(ctx, n.room, "!gjallar link "+n.name+" "+n.chat); err != nil {
		return err
	}
	err := alice.waitFor(ctx, n.room, func(m matrixMessage) bool {
		return m.Sender == botID && m.Content.Type == "m.notice" && strings.Contains(m.Content.Body, "is now connected with")
	})
	if err != nil {
		return fmt.Errorf("link %s: %w", n.chat, err)
	}
	return nil
}

const botID = "@gjallar:localhost"

// waitFor reads what is new in a room until match holds.
func (c *matrixClient) waitFor(ctx context.Context, room string, match func(matrixMessage) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		list, _, err := c.news(ctx, room)
		if err != nil || slices.ContainsFunc(list, match) {
			return err
		}
	}
}

// hearIn is the next text that is said in a room.
func (c *matrixClient) hearIn(ctx context.Context, room string) (string, time.Time, error) {
	for len(c.heard) == 0 {
		list, at, err := c.news(ctx, room)
		if err != nil {
			return "", at, err
		}
		for _, m := range list {
			if m.Type == "m.room.message" {
				c.heard = append(c.heard, heard{m.Content.Body, at})
			}
		}
	}
	h := c.heard[0]
	c.heard = c.heard[1:]
	return h.text, h.at, nil
}

// heard is a text and when it came.
type heard struct {
	text string
	at   time.Time
}

var serial atomic.Int64

func number() string { return "m" + strconv.FormatInt(serial.Add(1), 10) }

// latency measures messages one at a time, from before the write to when they are
// visible.
func (o *benchOptions) latency(ctx context.Context, say func(string) error, hear func(context.Context) (string, time.Time, error)) ([]time.Duration, error) {
	var out []time.Duration
	for i := range o.samples + 10 {
		text := number()
		began := time.Now()
		if err := say(text); err != nil {
			return nil, err
		}
		at, err := hearText(ctx, text, hear)
		if err != nil {
			return nil, err
		}
		if i >= 10 { // the first find connections, ghosts and caches missing
			out = append(out, at.Sub(began))
		}
	}
	slices.Sort(out)
	return out, nil
}

func hearText(ctx context.Context, text string, hear func(context.Context) (string, time.Time, error)) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		got, at, err := hear(ctx)
		if err != nil {
			return at, fmt.Errorf("waiting for %s: %w", text, err)
		}
		if got == text {
			return at, nil
		}
	}
}

func (o *benchOptions) print(n *benchNetwork, what string, d []time.Duration) {
	ms := func(share float64) float64 {
		return float64(d[int(share*float64(len(d)-1))].Microseconds()) / 1000
	}
	fmt.Fprintf(o.out, "latency %-26s p50 %7.2f  p95 %7.2f  p99 %7.2f ms\n", what, ms(.5), ms(.95), ms(.99))
}

// throughput sends many messages at once and waits until all have come.
func (o *benchOptions) throughput(ctx context.Context, p *benchProgram, n *benchNetwork, what string, workers int, say func(string) error, hear func(context.Context) (string, time.Time, error)) error {
	before := cpu(p.cmd.Process.Pid)
	began := time.Now()
	texts := make([]string, o.messages)
	for i := range texts {
		texts[i] = number()
	}
	missing := map[string]bool{}
	for _, t := range texts {
		missing[t] = true
	}
	group, gctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range workers {
		group.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(texts) || gctx.Err() != nil {
					return gctx.Err()
				}
				if err := say(texts[i]); err != nil {
					return err
				}
			}
		})
	}
	var last time.Time
	group.Go(func() error {
		for len(missing) > 0 {
			wait, cancel := context.WithTimeout(gctx, 30*time.Second)
			text, at, err := hear(wait)
			cancel()
			if err != nil {
				return fmt.Errorf("%d of %d messages did not come: %w", len(missing), len(texts), err)
			}
			delete(missing, text)
			last = at
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return err
	}
	spent := cpu(p.cmd.Process.Pid) - before
	fmt.Fprintf(o.out, "rate    %-26s %7.0f messages/s, %.2f s CPU per 1,000\n", what, float64(o.messages)/last.Sub(began).Seconds(), spent.Seconds()/float64(o.messages)*1000)
	return nil
}

// ircPerson and xmppPerson are someone.
type ircPerson struct {
	*ircClient
	channel string
}

func (p ircPerson) speak(text string) error { return p.send("PRIVMSG " + p.channel + " :" + text) }

func (p ircPerson) hear(ctx context.Context) (string, time.Time, error) {
	l, err := p.wait(ctx, func(l string) bool { return said(l) != "" })
	return said(l.text), l.at, err
}

func meetOnIRC(ctx context.Context, addr string, n *benchNetwork) error {
	for i, to := range []*someone{&n.one, &n.two} {
		c, err := dialIRC(ctx, addr, fmt.Sprintf("bench%d", i+1))
		if err != nil {
			return err
		}
		if err := c.join(ctx, n.chat); err != nil {
			return err
		}
		*to = ircPerson{c, n.chat}
	}
	return nil
}

type xmppPerson struct {
	*xmppClient
	muc, nick string
}

func (p xmppPerson) speak(text string) error { return p.say(p.muc, text) }

func (p xmppPerson) hear(ctx context.Context) (string, time.Time, error) {
	s, err := p.wait(ctx, func(s xmppStanza) bool {
		return s.XMLName.Local == "message" && s.Body != "" && s.Delay == nil && s.From != p.muc+"/"+p.nick
	})
	return s.Body, s.at, err
}

func meetOnXMPP(ctx context.Context, s *prosody.Server, n *benchNetwork) error {
	for i, to := range []*someone{&n.one, &n.two} {
		name := fmt.Sprintf("bench%d", i+1)
		if err := s.Register(ctx, name, name); err != nil {
			return err
		}
		c, err := dialXMPP(ctx, s.C2S, name, prosody.Domain, name)
		if err != nil {
			return err
		}
		if err := c.join(ctx, n.chat, name); err != nil {
			return err
		}
		*to = xmppPerson{c, n.chat, name}
	}
	return nil
}

// process is one of a family of processes.
type process struct {
	pid  int
	name string
	rss  int64 // bytes
	cpu  time.Duration
}

// processes returns a process and its children.
func processes(pid int) []process {
	var out []process
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		p, parent, err := readProcess(d)
		if err == nil && (p.pid == pid || parent == pid) {
			out = append(out, p)
		}
	}
	return out
}

// readProcess reads /proc/PID (proc(5)); Linux only.
func readProcess(dir string) (p process, parent int, err error) {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return p, 0, err
	}
	if p.pid, err = strconv.Atoi(filepath.Base(dir)); err != nil {
		return p, 0, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest)
	if len(f) < 22 {
		return p, 0, errors.New("unexpected /proc/PID/stat")
	}
	parent, _ = strconv.Atoi(f[1])
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	pages, _ := strconv.ParseInt(f[21], 10, 64)
	p.cpu = time.Duration(user+system) * time.Second / 100 // USER_HZ
	p.rss = pages * int64(os.Getpagesize())
	cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
	words := strings.Split(strings.Trim(string(cmdline), "\x00"), "\x00")
	words[0] = filepath.Base(words[0])
	p.name = strings.Join(words[:min(3, len(words))], " ")
	return p, parent, nil
}

// cpu that a process and its children have used.
func cpu(pid int) (sum time.Duration) {
	for _, p := range processes(pid) {
		sum += p.cpu
	}
	return sum
}
