package irc

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/backendtest/ngircd"
	"github.com/gjallar-im/gjallar/plugins"
	"github.com/gjallar-im/gjallar/plugins/host"
)

// The test binary, started again with this variable, is the plugin.
const bePlugin = "GJALLAR_TEST_BE_IRC"

func TestMain(m *testing.M) {
	if os.Getenv(bePlugin) != "" {
		plugins.Main(New())
	}
	os.Exit(m.Run())
}

// overTheWire returns the backend as the runtime has it.
func overTheWire(tb testing.TB) backends.Backend {
	p, err := host.New(host.Options{
		Name: "irc", Command: []string{os.Args[0]}, Env: []string{bePlugin + "=1", "GORACE=atexit_sleep_ms=0"},
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
	for name, b := range map[string]backends.Backend{"in process": New(), "over the wire": overTheWire(t)} {
		t.Run(name, func(t *testing.T) {
			s := ngircd.Start(t)
			var bob *stranger
			bobs := 0
			backendtest.Run(t, backendtest.Case{
				Backend: b,
				Config: func(tb testing.TB) json.RawMessage {
					return json.RawMessage(fmt.Sprintf(`{"server":%q,"tls":false,"nick":"bridge","flood":{"burst":1000,"lines_per_second":1000,"connects_per_second":1000}}`, s.Addr))
				},
				Bad: []json.RawMessage{
					json.RawMessage(`{}`), json.RawMessage(`{"server":"x"}`), json.RawMessage(`{"server":"x:1","nick":"a b"}`),
					json.RawMessage(`{"server":"x:1","ca_file":"/nowhere"}`), json.RawMessage(`{"server":"x:1","serve":1}`),
				},
				Chat:   backends.ChatKey{Chat: "#tea"},
				NoChat: backends.ChatKey{Chat: "tea"},
				Sender: alice,
				Opened: func(_ testing.TB, _ backends.Network) {
					bobs++
					bob = newStranger(t, s.Addr, fmt.Sprintf("bob%d", bobs), "#tea")
				},
				Say: func(_ testing.TB, _ backends.Network, text string) { bob.send("PRIVMSG #tea :" + text) },
				Heard: func(tb testing.TB, _ *backendtest.Host, texts []string) {
					for _, text := range texts {
						if line := bob.wait("PRIVMSG #tea"); !strings.HasSuffix(line, ":"+text) {
							tb.Errorf("heard %q, want %q", line, text)
						}
					}
				},
			})
		})
	}
}
