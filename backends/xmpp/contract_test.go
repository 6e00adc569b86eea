package xmpp

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"testing"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/plugins/host"
)

// overTheWire returns the backend as the runtime has it.
func overTheWire(tb testing.TB) backends.Backend {
	p, err := host.New(host.Options{
		Name: "xmpp", Command: []string{os.Args[0]}, Env: []string{bePlugin + "=1", "GORACE=atexit_sleep_ms=0"},
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := p.Close(context.Background()); err != nil {
			tb.Error(err)
		}
	})
	return p
}

func TestContract(t *testing.T) {
	withServers(t, func(t *testing.T, s *server) {
		bob := s.login(t, "bob")
		addr := roomName(t) + "@" + s.muc
		bob.join(addr, "bob")
		said := 0
		for _, way := range []string{"in process", "over the wire"} {
			t.Run(way, func(t *testing.T) {
				b := New()
				if way != "in process" {
					b = overTheWire(t)
				}
				backendtest.Run(t, backendtest.Case{
					Backend: b,
					Config: func(testing.TB) json.RawMessage {
						return json.RawMessage(fmt.Sprintf(`{"server":%q,"domain":%q,"secret":%q}`, s.componentAddr, s.component, s.secret))
					},
					Bad: []json.RawMessage{
						json.RawMessage(`{}`), json.RawMessage(`{"server":"x","domain":"a.test","secret":"s"}`),
						json.RawMessage(`{"server":"x:1","domain":"a@b","secret":"s"}`), json.RawMessage(`{"server":"x:1","domain":"a.test","secret":"s","limits":{"rate":0}}`),
					},
					Chat:   backends.ChatKey{Chat: backends.ChatID(addr)},
					NoChat: backends.ChatKey{Chat: backends.ChatID("nowhere@nothing." + s.domain)},
					Sender: alice,
					Say: func(_ testing.TB, _ backends.Network, text string) {
						said++
						bob.say(addr, "groupchat", text, fmt.Sprintf("bob-message-%d", said))
					},
					Heard: func(_ testing.TB, _ *backendtest.Host, texts []string) {
						for _, text := range texts {
							bob.message(text)
						}
					},
				})
			})
		}
	})
}
