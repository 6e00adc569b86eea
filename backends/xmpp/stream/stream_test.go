package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/gjallar-im/gjallar/backends/xmpp/stream/streamtest"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// component is a running Component of a test and what it was told.
type component struct {
	*Component
	server  *streamtest.Server
	up      chan struct{}
	down    chan error
	stanzas chan *xep.Element
}

func start(t *testing.T, secret string) *component {
	c := &component{
		server:  streamtest.New(t),
		up:      make(chan struct{}, 10),
		down:    make(chan error, 10),
		stanzas: make(chan *xep.Element, 10),
	}
	c.Component = New(Options{
		Addr: "xmpp.test:5347", Domain: jid.MustParse("bridge.test"), Secret: secret, Log: slog.New(slog.DiscardHandler),
		Dial:   c.server.Dial,
		Handle: func(_ context.Context, e *xep.Element) { c.stanzas <- e },
		Up:     func(context.Context) { c.up <- struct{}{} },
		Down:   func(err error) { c.down <- err },
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { c.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return c
}

func message(to string) *xep.Element {
	return xep.Message(jid.MustParse("a@bridge.test"), jid.MustParse(to), "chat", "1")
}

func TestComponentConnectsAndConnectsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, streamtest.Secret)
		if err := c.Send(t.Context(), message("x@y")); !errors.Is(err, ErrAway) {
			t.Errorf("sent before it was connected: %v", err)
		}
		conn := c.server.Accept()
		<-c.up
		if conn.To != "bridge.test" {
			t.Errorf("stream to %q", conn.To)
		}
		if err := c.Send(t.Context(), message("x@y")); err != nil {
			t.Fatal(err)
		}
		if got := conn.Read(); got.Attr("to") != "x@y" {
			t.Errorf("got %s", got)
		}
		conn.Write("<message from='x@y' to='a@bridge.test'/>")
		if e := <-c.stanzas; e.Attr("from") != "x@y" {
			t.Errorf("got %s", e)
		}
		conn.Close()
		if err := <-c.down; err == nil || errors.Is(err, ErrRefused) {
			t.Errorf("down because of %v", err)
		}
		before := time.Now()
		c.server.Accept()
		<-c.up
		if d := time.Since(before); d < firstRetry/2 || d > firstRetry {
			t.Errorf("came back after %v", d)
		}
	})
}

func TestComponentSaysThatItIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, "wrong")
		c.server.Accept()
		if err := <-c.down; !errors.Is(err, ErrRefused) || err.Error() != ErrRefused.Error()+": not-authorized" {
			t.Errorf("down because of %v", err)
		}
	})
}

func TestRequestTakesTheAnswerOfWhomItAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, streamtest.Secret)
		conn := c.server.Accept()
		<-c.up
		iq := xep.IQ(jid.MustParse("bridge.test"), jid.MustParse("room@m"), "get")
		type answer struct {
			e   *xep.Element
			err error
		}
		answers := make(chan answer)
		ask := func() { e, err := c.Request(t.Context(), iq); answers <- answer{e, err} }

		go ask()
		conn.Read()
		conn.Write("<iq type='result' from='evil@m' id='%s'/>", iq.Attr("id"))
		conn.Write("<iq type='result' from='room@m' id='%s'><x xmlns='y'/></iq>", iq.Attr("id"))
		if a := <-answers; a.err != nil || a.e.Child("y", "x") == nil {
			t.Errorf("got %v, %v", a.e, a.err)
		}

		go ask()
		conn.Read()
		conn.Write("<iq type='error' from='room@m' id='%s'><error type='auth'><forbidden xmlns='%s'/></error></iq>", iq.Attr("id"), xep.NSStanzas)
		a := <-answers
		if e, ok := errors.AsType[*xep.Error](a.err); !ok || e.Condition != stanza.Forbidden {
			t.Errorf("got %v", a.err)
		}

		go ask()
		conn.Read()
		conn.Close()
		if a := <-answers; !errors.Is(a.err, ErrAway) {
			t.Errorf("the connection ended and the request says %v", a.err)
		}
	})
}

func TestCollectTakesResultsOfItsArchive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, streamtest.Secret)
		conn := c.server.Accept()
		<-c.up
		iq := xep.IQ(jid.MustParse("bridge.test"), jid.MustParse("room@m"), "set")
		var results []*xep.Element
		done := make(chan error)
		go func() {
			var err error
			results, _, err = c.Collect(t.Context(), iq, "q1")
			done <- err
		}()
		conn.Read()
		for _, from := range []string{"room@m", "evil@m"} {
			conn.Write("<message from='%s'><result xmlns='urn:xmpp:mam:2' queryid='q1' id='%s'/></message>", from, from)
		}
		conn.Write("<message from='room@m'><result xmlns='urn:xmpp:mam:2' queryid='other' id='x'/></message>")
		conn.Write("<iq type='result' from='room@m' id='%s'/>", iq.Attr("id"))
		if err := <-done; err != nil || len(results) != 1 || results[0].Attr("id") != "room@m" {
			t.Errorf("got %v, %v", results, err)
		}
		if len(c.stanzas) != 0 {
			t.Errorf("%s was passed on", <-c.stanzas)
		}
	})
}

func TestSilentServerIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, streamtest.Secret)
		conn := c.server.Accept()
		<-c.up
		before := time.Now()
		if iq := conn.Read(); iq.Child(xep.NSPing, "ping") == nil {
			t.Errorf("got %s", iq)
		}
		<-c.down
		if d := time.Since(before); d != pingEvery+pingTimeout {
			t.Errorf("left after %v", d)
		}
	})
}

// A room's history would replay a stanza that ends the connection, again and again.
func TestStanzaThatIsTooLargeIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, streamtest.Secret)
		conn := c.server.Accept()
		<-c.up
		conn.Write("<message from='x@y' id='1'><body>%s</body></message><message from='x@y' id='2'/>", strings.Repeat("x", xep.MaxStanza))
		if e := <-c.stanzas; e.Attr("id") != "2" {
			t.Errorf("got %s", e.Attr("id"))
		}
	})
}

func TestMalformedXMLEndsTheConnectionOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, streamtest.Secret)
		conn := c.server.Accept()
		<-c.up
		conn.Write("<!DOCTYPE x>")
		if err := <-c.down; !errors.Is(err, xep.ErrRestricted) {
			t.Errorf("down because of %v", err)
		}
		c.server.Accept()
		<-c.up
	})
}

func TestLanesKeepOrderAndRunSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLanes(100)
		var mu sync.Mutex
		done := map[string][]int{}
		stuck := make(chan struct{})
		l.Do(t.Context(), "stuck", func() { <-stuck })
		for i := range 20 {
			for _, key := range []string{"a", "b"} {
				l.Do(t.Context(), key, func() {
					mu.Lock()
					defer mu.Unlock()
					done[key] = append(done[key], i)
				})
			}
		}
		synctest.Wait()
		mu.Lock()
		for _, key := range []string{"a", "b"} {
			if len(done[key]) != 20 || !slices.IsSorted(done[key]) {
				t.Errorf("%s: %v", key, done[key])
			}
		}
		mu.Unlock()
		close(stuck)
		l.Close()
	})
}

func TestFullLanesBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLanes(2)
		hold := make(chan struct{})
		for i := range 2 {
			l.Do(t.Context(), fmt.Sprint(i), func() { <-hold })
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.Do(ctx, "x", func() { t.Error("it ran") }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		close(hold)
		l.Close()
		if err := l.Do(t.Context(), "x", func() { t.Error("it ran") }); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
}
