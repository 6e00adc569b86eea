package irc

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

// cutter passes connections on to a server. It cuts those of accounts while they
// speak: sometimes before a message has got through, sometimes after.
type cutter struct {
	net.Listener
	server string
	wg     sync.WaitGroup
	cuts   atomic.Int64
}

func newCutter(t *testing.T, addr string) *cutter {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{Listener: l, server: addr}
	t.Cleanup(func() { l.Close(); c.wg.Wait() })
	c.wg.Go(func() {
		for bot := true; ; bot = false {
			near, err := l.Accept()
			if err != nil {
				return
			}
			c.wg.Go(func() { c.pass(near, !bot) })
		}
	})
	return c
}

func (c *cutter) pass(near net.Conn, mayCut bool) {
	defer near.Close()
	far, err := net.Dial("tcp", c.server)
	if err != nil {
		return
	}
	c.wg.Go(func() { io.Copy(near, far); near.Close() })
	defer far.Close()
	for lines := bufio.NewScanner(near); lines.Scan(); {
		cut := mayCut && strings.Contains(lines.Text(), "PRIVMSG #tea") && rand.N(12) == 0
		if cut && rand.N(2) == 0 {
			c.cuts.Add(1)
			return
		}
		if cut {
			near.Close() // the answer does not get through
			c.cuts.Add(1)
		}
		if _, err := fmt.Fprintf(far, "%s\r\n", lines.Text()); err != nil || cut {
			return
		}
	}
}

// sender sends commands as the runtime does: several at once, in order, and again
// from the first that is to be tried again.
type sender struct {
	t       *testing.T
	net     backends.Network
	results map[int]backends.Outcome
	retries int
}

func (s *sender) send(total int) {
	next, attempts := 0, map[int]int{}
	for next < total {
		batch := min(8, total-next)
		type answer struct {
			i int
			r backends.Result
		}
		answers := make(chan answer, batch)
		for i := next; i < next+batch; i++ {
			attempts[i]++
			who := backends.User{Account: backends.AccountID(fmt.Sprintf("@u%d:here.test", i/5%2)), Name: fmt.Sprintf("user%d", i/5%2)}
			cmd := &backends.Command{
				ID: fmt.Sprint(i), Attempt: attempts[i], Chat: backends.ChatKey{Chat: "#tea"}, Sender: who,
				Body: &backends.Message{Text: richtext.Plain(fmt.Sprintf("n%d.", i))},
			}
			if err := s.net.Send(s.t.Context(), cmd, func(r backends.Result) { answers <- answer{i, r} }); err != nil {
				s.t.Fatal(err)
			}
		}
		again := next + batch
		for range batch {
			a := <-answers
			s.results[a.i] = a.r.Outcome
			if a.r.Outcome == backends.Retry {
				again = min(again, a.i)
				s.retries++
				time.Sleep(20 * time.Millisecond) // the runtime waits longer
			}
		}
		for again < next+batch && s.results[again] != backends.Retry {
			again++
		}
		next = again
	}
}

// Connections of users are cut while they speak: nothing is said twice,
// nothing that is confirmed is missing, and the order is kept.
func TestCutConnectionsLoseAndRepeatNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	onPeers(t, func(t *testing.T, s peerServer) {
		const total = 150
		bob := newStranger(t, s.addr, "bob", "#tea")
		proxy := newCutter(t, s.addr)
		b := newBackend()
		b.backoff = func(int) time.Duration { return time.Millisecond }
		host := backendtest.NewHost(t)
		raw := fmt.Sprintf(`{"server":%q,"tls":false,"nick":"bridge","flood":{"burst":1000,"lines_per_second":1000,"connects_per_second":1000}}`, proxy.Addr())
		n, err := b.Open(t.Context(), json.RawMessage(raw), host)
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close(context.Background())
		host.WaitPhase(backends.Ready)
		join(t, n, "#tea")
		snd := &sender{t: t, net: n, results: map[int]backends.Outcome{}}
		snd.send(total)
		bob.send("PING end")

		var heard []int
		said := regexp.MustCompile(`PRIVMSG #tea .*n(\d+)\.$`)
		for {
			line := bob.wait("")
			if m := said.FindStringSubmatch(line); m != nil {
				var i int
				fmt.Sscan(m[1], &i)
				heard = append(heard, i)
			}
			if regexp.MustCompile(`PONG .*end$`).MatchString(line) {
				break
			}
		}
		counts := map[backends.Outcome]int{}
		for i := range total {
			counts[snd.results[i]]++
			times := 0
			for _, h := range heard {
				if h == i {
					times++
				}
			}
			if want := snd.results[i] == backends.Delivered; times > 1 || want && times == 0 {
				t.Errorf("message %d, outcome %d, was heard %d times", i, snd.results[i], times)
			}
		}
		if !slices.IsSorted(heard) {
			t.Errorf("out of order: %v", heard)
		}
		if counts[backends.Uncertain] > total/10 {
			t.Errorf("%d of %d are uncertain", counts[backends.Uncertain], total)
		}
		if proxy.cuts.Load() < 3 || snd.retries == 0 {
			t.Errorf("only %d cuts and %d retries", proxy.cuts.Load(), snd.retries)
		}
		t.Logf("outcomes %v, %d cuts, %d retries", counts, proxy.cuts.Load(), snd.retries)
	})
}
