package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/config"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/plugins/host"
	"github.com/gjallar-im/gjallar/puppeting"
)

// listenerNetwork is the network of those who connect to the IRC listener.
const listenerNetwork = "ircd"

// runtime is the bridge with the processes of its backends.
type runtime struct {
	*puppeting.Bridge
	client  *appservice.Client
	plugins []*host.Plugin
}

// runtimeOptions say how the runtime reaches its homeserver.
type runtimeOptions struct {
	db           *sqldb.DB
	registration *appservice.Registration
	homeserver   string            // base URL
	transport    http.RoundTripper // nil is the network
	publicURL    string            // of links to files
	log          *slog.Logger
	opened       func() // called when the networks have taken their configuration
}

// networkNames of the configuration, the IRC listener's included.
func networkNames(c *config.Config) []string {
	names := slices.Sorted(maps.Keys(c.Networks))
	if c.IRCListen != "off" {
		names = append(names, listenerNetwork)
	}
	return names
}

// newRuntime starts the processes of the backends and makes the bridge.
func newRuntime(ctx context.Context, c *config.Config, o runtimeOptions) (_ *runtime, err error) {
	r := &runtime{}
	defer func() {
		if err != nil {
			r.closePlugins()
		}
	}()
	r.client = appservice.New(appservice.Options{
		HomeserverURL: o.homeserver, Transport: o.transport, Registration: o.registration, ServerName: c.ServerName, Log: o.log.With("part", "appservice"),
	})
	var networks []puppeting.NetworkOptions
	for _, name := range networkNames(c) {
		n := c.Networks[name]
		if name == listenerNetwork {
			n = listenerConfig(c)
		}
		p, err := startPlugin(name, n, o.log)
		if err != nil {
			return nil, fmt.Errorf("network %s: %w", name, err)
		}
		r.plugins = append(r.plugins, p)
		if m := checkOptions(c, name, p, n.Options); n.Plugin != "" && len(m) > 0 {
			return nil, m
		}
		networks = append(networks, puppeting.NetworkOptions{Name: name, Backend: p, Config: n.Options})
	}
	r.Bridge, err = puppeting.New(ctx, puppeting.Options{
		DB: o.db, Client: r.client, HSToken: o.registration.HSToken, ServerName: c.ServerName, PublicURL: o.publicURL, Networks: networks,
		LinkTTL: c.Media.LinkLifetime, MaxMedia: c.Media.MaxUpload, Fetch: fetcher(c), Log: o.log.With("part", "bridge"), Opened: o.opened,
	})
	return r, err
}

// fetcher fetches files of networks; nil is the bridge's own, which keeps to public
// addresses.
func fetcher(c *config.Config) http.RoundTripper {
	if c.Media.AllowPrivate {
		return http.DefaultTransport
	}
	return nil
}

// listenerConfig is the IRC listener as a network.
func listenerConfig(c *config.Config) *config.Network {
	guests := map[string]string{"yes": "always", "no": "never", "loopback": "loopback"}[c.IRCListener.Guests]
	options, err := json.Marshal(map[string]any{
		"listen": c.IRCListen, "server_name": c.ServerName, "guests": guests, "create": c.IRCListener.CreateRooms, "motd": c.IRCListener.MOTD,
	})
	if err != nil {
		panic(err) // strings and a bool
	}
	return &config.Network{Protocol: "ircd", Options: options}
}

func startPlugin(name string, n *config.Network, log *slog.Logger) (*host.Plugin, error) {
	o := host.Options{Name: name, Command: []string{n.Plugin}, Checksum: n.Checksum, Log: log.With("network", name)}
	if n.Plugin == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		o.Command = []string{self, pluginCommand, n.Protocol}
	}
	return host.New(o)
}

// closePlugins ends the processes. They have had their time when the bridge ended.
func (r *runtime) closePlugins() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, p := range r.plugins {
		p.Close(ctx)
	}
}

// newDB opens the configured database, by default one file in the data folder.
func newDB(ctx context.Context, c *config.Config, d *dataDir, file string) (*sqldb.DB, error) {
	if c.Database != "" {
		return sqldb.Open(ctx, c.Database)
	}
	return sqldb.Open(ctx, "sqlite:"+d.file(file))
}

// listen takes an address, naming the key it comes from if it cannot be had.
func listen(ctx context.Context, c *config.Config, key, addr string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, c.Mistake(key, "%v", err)
	}
	return l, nil
}

// canListenForIRC finds out, before anything is made or promised, that another
// program has the address of the IRC listener, whose process takes it later.
func canListenForIRC(ctx context.Context, c *config.Config) error {
	if c.IRCListen == "off" {
		return nil
	}
	l, err := listen(ctx, c, "irc_listen", c.IRCListen)
	if err != nil {
		return err
	}
	return l.Close()
}

// serveHTTP serves until ctx ends; requests under way get a moment to finish.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return base },
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	cancel() // those who wait for news need not
	grace, stop := context.WithTimeout(context.Background(), 5*time.Second)
	defer stop()
	if s.Shutdown(grace) != nil {
		s.Close()
	}
	<-ended
	return nil
}
