package ircd

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"testing"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/backendtest/peer"
	"github.com/gjallar-im/gjallar/plugins"
	"github.com/gjallar-im/gjallar/plugins/host"
)

// The test binary, started again with this variable, is the plugin.
const bePlugin = "GJALLAR_TEST_BE_IRCD"

func TestMain(m *testing.M) {
	if os.Getenv(bePlugin) != "" {
		plugins.Main(New())
	}
	os.Exit(m.Run())
}

// overTheWire returns the backend as the runtime has it.
func overTheWire(tb testing.TB) *host.Plugin {
	p, err := host.New(host.Options{
		Name: Protocol, Command: []string{os.Args[0]}, Env: []string{bePlugin + "=1", "GORACE=atexit_sleep_ms=0"},
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

// Clients are the remote side of a gateway: one says what is to be said, another
// hears, once the network follows a chat.
func TestContract(t *testing.T) {
	for name, b := range map[string]backends.Backend{"in process": New(), "over the wire": overTheWire(t)} {
		t.Run(name, func(t *testing.T) {
			addr := ""
			speakers := map[backends.Network]*client{}
			backendtest.Run(t, backendtest.Case{
				Backend: b,
				Config: func(tb testing.TB) json.RawMessage {
					ports, err := peer.FreePorts(1)
					if err != nil {
						tb.Fatal(err)
					}
					addr = fmt.Sprintf("127.0.0.1:%d", ports[0])
					return json.RawMessage(`{"listen": "` + addr + `"}`)
				},
				Bad: []json.RawMessage{
					json.RawMessage(`{"guests": "some"}`), json.RawMessage(`{"limits": {"clients": 0}}`), json.RawMessage(`{"lisen": ""}`),
					json.RawMessage(`{"listen": "127.0.0.1:0", "tls_cert": "/nowhere"}`), json.RawMessage(`{"listen": "nowhere"}`),
				},
				Chat:   backends.ChatKey{Chat: "#tea"},
				Sender: alice,
				Say: func(tb testing.TB, n backends.Network, text string) {
					c := speakers[n]
					if c == nil {
						conn, err := net.Dial("tcp", addr)
						if err != nil {
							tb.Fatal(err)
						}
						c = newClient(tb, conn).register("bob", "")
						c.write("JOIN #tea")
						c.sync()
						speakers[n] = c
					}
					c.write("PRIVMSG #tea :" + text)
				},
			})
		})
	}
}

// The whole way through the plugin's process: rooms, events and commands.
func TestOverTheWire(t *testing.T) {
	h := backendtest.NewHost(t)
	h.FakeRooms().AddRoom(backends.RoomSummary{Room: tea, Topic: "Darjeeling"}, joined(carol, backends.Moderator))
	h.FakeRooms().AddAccount(alice, "sesame")
	n, err := overTheWire(t).Open(t.Context(), json.RawMessage(`{"listen": "127.0.0.1:0"}`), h)
	if err != nil {
		t.Fatal(err)
	}
	l := &listener{tb: t, host: h, net: n}
	t.Cleanup(l.close)
	l.addr = h.WaitPhase(backends.Ready).Reason[len("listening on "):]
	a := l.account("alice", "sesame", "message-tags")
	a.do("JOIN #tea",
		":alice!alice@localhost JOIN #tea",
		":localhost 332 alice #tea :Darjeeling",
		":localhost 353 alice = #tea :@carol alice",
		":localhost 366 alice #tea *")
	a.write("PRIVMSG #tea :hi")
	ev, _ := backendtest.NextBody[*backends.Message](h, nil)
	if ev.Sender.Account != alice.Account || ev.Chat.Chat != "#tea" {
		t.Errorf("event %+v", ev)
	}
	replied := make(chan backends.Result, 1)
	cmd := &backends.Command{ID: "$1", Chat: ev.Chat, Sender: carol, Time: noon, Body: said("hello")}
	if err := n.Send(t.Context(), cmd, func(r backends.Result) { replied <- r }); err != nil {
		t.Fatal(err)
	}
	if r := <-replied; r.Outcome != backends.Delivered || len(r.IDs) != 1 || r.IDs[0] != "$1" {
		t.Errorf("result %+v", r)
	}
	a.got("@msgid=$1 :carol!carol@far.example PRIVMSG #tea :hello")
}
