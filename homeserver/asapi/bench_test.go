package asapi

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/hstest/postgres"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// BenchmarkWorker delivers events that are in the database already: what the worker
// can do at the most, storing each transaction before it is sent.
func BenchmarkWorker(b *testing.B) {
	for name, dsn := range map[string]func(testing.TB) string{
		"SQLite":     func(tb testing.TB) string { return "sqlite:" + filepath.Join(tb.TempDir(), "b.db") },
		"PostgreSQL": postgres.Start,
	} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, dsn(b))
			room := w.room(alice)
			w.member(room, ghost, ghost, matrix.Join)
			c := newCounter(b)
			r := matrix.Registration{ID: "irc", URL: c.URL, ASToken: "a", HSToken: "hs-token", SenderLocalpart: "ircbot", ReceiveEphemeral: true,
				Namespaces: matrix.Namespaces{Users: []matrix.Namespace{{Regex: "@irc_.*"}}, Aliases: []matrix.Namespace{{Regex: "#irc_.*"}}}}
			s, err := w.registry.Add(r)
			if err != nil {
				b.Fatal(err)
			}
			s.since = w.hub.Now()
			w.fill(room, b.N)
			b.ResetTimer()
			_, stop := w.start()
			c.wait(b.N)
			b.StopTimer()
			stop()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64(c.transactions)/float64(b.N), "txns/event")
		})
	}
}

// BenchmarkUninterested is how fast a worker passes over what is not its service's.
func BenchmarkUninterested(b *testing.B) {
	w := newWorld(b, "sqlite:"+filepath.Join(b.TempDir(), "b.db"))
	room := w.room(alice)
	s, err := NewService(matrix.Registration{ID: "irc", URL: "http://x", ASToken: "a", HSToken: "h", SenderLocalpart: "ircbot",
		Namespaces: matrix.Namespaces{Users: []matrix.Namespace{{Regex: "@irc_.*"}}, Aliases: []matrix.Namespace{{Regex: "#irc_.*"}}}}, "hs")
	if err != nil {
		b.Fatal(err)
	}
	s.since = w.hub.Now()
	w.fill(room, b.N)
	f := newFollower(New(Options{Store: w.store, Registry: w.registry, Hub: w.hub}), s)
	f.pos = s.since.Pos
	b.ResetTimer()
	for f.pos < w.hub.Now().Pos {
		batch, err := f.collect(b.Context(), w.hub.Now())
		if err != nil || !batch.empty() {
			b.Fatal(err, batch)
		}
		f.pos = batch.upto
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// fill sends n messages at once.
func (w *world) fill(room matrix.RoomID, n int) {
	var wg sync.WaitGroup
	next := make(chan struct{})
	for range 100 {
		wg.Go(func() {
			for range next {
				w.say(room, alice, "a message of a usual length, as people send it")
			}
		})
	}
	for range n {
		next <- struct{}{}
	}
	close(next)
	wg.Wait()
}

// counter is a service that counts events.
type counter struct {
	*httptest.Server
	arrived      chan int
	transactions int // only wait's goroutine
}

func newCounter(tb testing.TB) *counter {
	c := &counter{arrived: make(chan int, 100)}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var t struct{ Events []json.RawMessage }
		if err := json.NewDecoder(r.Body).Decode(&t); err != nil {
			tb.Error(err)
		}
		io.WriteString(w, `{}`)
		c.arrived <- len(t.Events)
	}))
	tb.Cleanup(c.Close)
	return c
}

func (c *counter) wait(n int) {
	for n > 0 {
		n -= <-c.arrived
		c.transactions++
	}
}
