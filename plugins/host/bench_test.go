package host

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/plugins"
)

// wanted is how many commands, and events, a second a network must carry at
// least; the benchmarks print the ratio to it.
const wanted = 20_000

func init() {
	roles["source"] = func() { plugins.Main(source{}) }
}

// source is a puppet that answers commands at once, and to "events N" delivers N/8
// events to each of eight chats.
type source struct{ puppet }

func (source) Open(ctx context.Context, _ json.RawMessage, h backends.Host) (backends.Network, error) {
	return &spring{strung{host: h}}, h.Deliver(ctx, &backends.Event{Body: &backends.NetworkState{Phase: backends.Ready}}, nil)
}

type spring struct{ strung }

func (n *spring) Send(ctx context.Context, cmd *backends.Command, reply func(backends.Result)) error {
	var count int
	if m, ok := cmd.Body.(*backends.Message); ok {
		if _, err := fmt.Sscanf(m.Text.Plain(), "events %d", &count); err != nil {
			reply(backends.Result{Outcome: backends.Delivered, IDs: []backends.MessageID{backends.MessageID(cmd.ID)}})
			return nil
		}
	}
	var wg sync.WaitGroup
	for c := range chats {
		wg.Go(func() {
			for i := range count / chats {
				ev := said(backends.ChatID(fmt.Sprint("#chat", c)), "hello, world")
				ev.ID = backends.MessageID(fmt.Sprint(i))
				if err := n.host.Deliver(ctx, ev, func(backends.Receipt) {}); err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	reply(backends.Result{Outcome: backends.Delivered, IDs: []backends.MessageID{"all"}})
	return nil
}

const chats = 8

func benchNetwork(b *testing.B, h backends.Host) backends.Network {
	p := newPlugin(b, Options{
		Name: "source", Command: []string{os.Args[0]}, Env: []string{role + "=source"}, Log: slog.New(slog.DiscardHandler),
	})
	n, err := p.Open(b.Context(), []byte(`{}`), h)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

func report(b *testing.B) {
	rate := float64(b.N) / b.Elapsed().Seconds()
	b.ReportMetric(rate, "per-s")
	b.ReportMetric(rate/wanted, "of-wanted")
}

// BenchmarkCommands sends commands to eight chats of a real process and waits for
// all results.
func BenchmarkCommands(b *testing.B) {
	n := benchNetwork(b, discard{})
	b.ReportAllocs()
	b.ResetTimer()
	var results, senders sync.WaitGroup
	results.Add(b.N)
	for c := range chats {
		senders.Go(func() {
			for i := c; i < b.N; i += chats {
				cmd := command(fmt.Sprint("#chat", c), "id", "hello, world")
				if err := n.Send(b.Context(), cmd, func(backends.Result) { results.Done() }); err != nil {
					b.Error(err)
					results.Done()
				}
			}
		})
	}
	senders.Wait()
	results.Wait()
	b.StopTimer()
	report(b)
}

// BenchmarkCommandLatency sends one command at a time.
func BenchmarkCommandLatency(b *testing.B) {
	n := benchNetwork(b, discard{})
	done := make(chan struct{})
	b.ReportAllocs()
	for b.Loop() {
		if err := n.Send(b.Context(), command("#chat", "id", "hello"), func(backends.Result) { done <- struct{}{} }); err != nil {
			b.Fatal(err)
		}
		<-done
	}
}

// BenchmarkEvents lets a real process deliver events of eight chats, each
// acknowledged.
func BenchmarkEvents(b *testing.B) {
	n := benchNetwork(b, discard{})
	done := make(chan struct{})
	b.ReportAllocs()
	b.ResetTimer()
	cmd := command("#control", "id", fmt.Sprintf("events %d", b.N+chats))
	if err := n.Send(b.Context(), cmd, func(backends.Result) { close(done) }); err != nil {
		b.Fatal(err)
	}
	<-done
	b.StopTimer()
	report(b)
}
