// Package plugins makes a program of a backend:
//
//	func main() { plugins.Main(echo{}) }
//
// The program is started by a host (package plugins/host), which speaks the
// protocol of package plugins/wire with it. One process carries one network. What
// the backend writes to Host.Log, and to standard error, ends in the host's log.
//
// Versions of the protocol:
//
//	1  2026-11-24  the first
package plugins

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/plugins/wire"
)

const (
	// drainTime bounds how long a network may take to close after SIGTERM.
	drainTime = 10 * time.Second
	// orphanTime bounds it after the host has died.
	orphanTime = 2 * time.Second
)

// Main serves b to the host that started this process, and does not return: the
// process ends with status 0 when the host asks for it or after SIGTERM, and with
// 1 when it was not started by a host or when the host has died.
func Main(b backends.Backend) {
	if os.Getenv(wire.Handshake.MagicCookieKey) != wire.Handshake.MagicCookieValue {
		fmt.Fprintf(os.Stderr, "This program is a plugin (%s) of Gjallar and is not run by hand.\n"+
			"Name it in Gjallar's configuration, and Gjallar starts it.\n", b.Describe().Title)
		os.Exit(1)
	}
	// A write to a dead host's pipe is to be an error, not our end: see orphanTime.
	signal.Ignore(syscall.SIGPIPE)
	stderr := os.Stderr // go-plugin puts another in its place
	s := newServer(b, slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: logLevel(), ReplaceAttr: readable})))
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() { // ends with the process
		<-term
		s.exit(drainTime, 0)
	}()
	go func() { // ends with the process
		_, _ = io.Copy(io.Discard, os.Stdin)
		s.exit(orphanTime, 1)
	}()
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  wire.Handshake,
		VersionedPlugins: map[int]goplugin.PluginSet{wire.Version: {wire.PluginName: &served{server: s}}},
		GRPCServer:       newGRPCServer,
		Logger:           hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: stderr, JSONFormat: true}),
	})
	os.Exit(0)
}

// exit closes the network, if there is one, and ends the process.
func (s *server) exit(patience time.Duration, code int) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.close(ctx); err != nil {
		s.log.Warn("network did not close cleanly", "err", err)
	}
	os.Exit(code)
}

func logLevel() slog.Level {
	var level slog.Level
	_ = level.UnmarshalText([]byte(os.Getenv(wire.LogLevelVariable))) // info if it says nothing
	return level
}

// readable writes durations as a person does, which JSON would make nanoseconds.
func readable(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().Round(time.Millisecond).String())
	}
	return a
}

func newGRPCServer(opts []grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(opts,
		grpc.MaxRecvMsgSize(wire.MaxMessage),
		grpc.InitialWindowSize(wire.StreamWindow), grpc.InitialConnWindowSize(wire.ConnWindow),
	)...)
}

// served is go-plugin's view of a server.
type served struct {
	goplugin.NetRPCUnsupportedPlugin
	server *server
}

// GRPCServer implements goplugin.GRPCPlugin.
func (p *served) GRPCServer(broker *goplugin.GRPCBroker, g *grpc.Server) error {
	p.server.dial = func(id uint32) (*grpc.ClientConn, error) { return broker.Dial(id) }
	wire.RegisterBackendServer(g, p.server)
	return nil
}

// GRPCClient implements goplugin.GRPCPlugin; it is the host's side.
func (p *served) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, fmt.Errorf("this is the plugin's side")
}
