package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"testing"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/plugins/host"
)

// The test binary, started again with this variable, is the plugin.
const beEcho = "GJALLAR_TEST_BE_ECHO"

func TestMain(m *testing.M) {
	if os.Getenv(beEcho) != "" {
		main()
	}
	os.Exit(m.Run())
}

// overTheWire returns echo as the runtime has it.
func overTheWire(tb testing.TB) *host.Plugin {
	p, err := host.New(host.Options{
		Name: "echo", Command: []string{os.Args[0]}, Env: []string{beEcho + "=1", "GORACE=atexit_sleep_ms=0"},
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
	chat, alice := backends.ChatKey{Chat: "tea"}, backends.User{Account: "@alice:test", Name: "alice"}
	for name, b := range map[string]backends.Backend{"in process": echo{}, "over the wire": overTheWire(t)} {
		t.Run(name, func(t *testing.T) {
			said := 0
			backendtest.Run(t, backendtest.Case{
				Backend: b,
				Config:  func(testing.TB) json.RawMessage { return json.RawMessage(`{}`) },
				Bad:     []json.RawMessage{json.RawMessage(`{"sugar": 2}`), json.RawMessage(`{`)},
				Chat:    chat,
				Sender:  alice,
				Say: func(tb testing.TB, n backends.Network, text string) {
					said++
					cmd := &backends.Command{
						ID: fmt.Sprint("said-", said), Chat: chat, Sender: alice, Body: &backends.Message{Text: richtext.Plain(text)},
					}
					_ = n.Send(context.Background(), cmd, func(backends.Result) {})
				},
				Heard: func(tb testing.TB, h *backendtest.Host, texts []string) {
					for _, text := range texts {
						if _, m := backendtest.NextBody[*backends.Message](h, nil); m.Text.Plain() != text {
							tb.Errorf("heard %q, want %q", m.Text.Plain(), text)
						}
					}
				},
				Messages: 500,
			})
		})
	}
}
