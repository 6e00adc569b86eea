package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/config"
	"github.com/gjallar-im/gjallar/homeserver"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/puppeting"
)

// The two ends of what goes on inside one process. Nobody resolves these names.
const (
	insideHomeserver = "http://homeserver.invalid"
	insideBridge     = "http://bridge.invalid"
)

// firstRoom is made at the first start, so that there is something to join.
const firstRoom = "lobby"

// serve runs everything in one process, but for the backends.
func serve(ctx context.Context, t *terminal, args []string) error {
	fs, o := newFlags("serve", t.err)
	if err := parse(fs, args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return usagef("gjallar serve takes flags only; there is %q", fs.Arg(0))
	}
	c, err := o.load(t)
	if err != nil {
		return err
	}
	d, err := openDataDir(c.Data)
	if err != nil {
		return err
	}
	defer d.Close()
	web, err := listen(ctx, c, "listen", c.Listen)
	if err != nil {
		return err
	}
	if err := canListenForIRC(ctx, c); err != nil {
		web.Close()
		return err
	}
	db, err := newDB(ctx, c, d, "gjallar.db")
	if err != nil {
		web.Close()
		return err
	}
	err = serveAll(ctx, t, c, d, db, web, func() (*config.Config, error) { return o.load(t) })
	return errors.Join(err, db.Close())
}

// serveAll runs the parts until ctx ends or one fails. They end in the order in
// which they need each other: who speaks to the homeserver before the homeserver.
// reload reads the configuration anew.
func serveAll(ctx context.Context, t *terminal, c *config.Config, d *dataDir, db *sqldb.DB, web net.Listener, reload func() (*config.Config, error)) error {
	defer web.Close()
	log := newLogger(t.err, c)
	services, err := readServices(c)
	if err != nil {
		return err
	}
	inside := &handlerTransport{handler: http.NotFoundHandler()}
	hs, err := newHomeserver(ctx, c, d, db, web, routes{bridge: inside}, log)
	if err != nil {
		return err
	}
	defer hs.Close()
	registered := &registrations{hs: hs}
	if err := registered.set(ctx, services); err != nil {
		return err
	}
	bridge := func(ctx context.Context) error { <-ctx.Done(); return nil }
	if !runsElsewhere(services) {
		r, err := newInsideRuntime(ctx, c, db, hs, web, log, func() { greet(t.out, c, web, true) })
		if err != nil {
			return err
		}
		defer r.closePlugins()
		inside.handler = r.Handler()
		bridge = func(ctx context.Context) error {
			if err := makeFirstRoom(ctx, c, r.client); err != nil {
				return err
			}
			return r.Run(ctx)
		}
	} else {
		greet(t.out, c, web, false)
	}
	outer, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	parts, running := errgroup.WithContext(outer)
	parts.Go(func() error { return serveHTTP(running, web, page(c, hs.Handler(), inside.handler)) })
	parts.Go(func() error { return hs.Run(running) })
	parts.Go(func() error { registered.follow(running, reload, log); return nil })
	parts.Go(func() error {
		defer stop() // without the bridge the rest has no purpose
		inner, cancel := context.WithCancel(running)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return bridge(inner)
	})
	if err := parts.Wait(); err != nil && !stopped(err) {
		return err
	}
	return nil
}

// newInsideRuntime is the runtime that speaks with the homeserver through memory.
func newInsideRuntime(ctx context.Context, c *config.Config, db *sqldb.DB, hs *homeserver.Server, web net.Listener, log *slog.Logger, opened func()) (*runtime, error) {
	reg := puppeting.NewRegistration(networkNames(c), c.ServerName, insideBridge, true)
	if err := hs.AddService(ctx, *reg); err != nil {
		return nil, fmt.Errorf("register the bridge: %w", err)
	}
	return newRuntime(ctx, c, runtimeOptions{
		db: db, registration: reg, homeserver: insideHomeserver, transport: &handlerTransport{hs.Handler()}, publicURL: publicURL(c, web), log: log, opened: opened,
	})
}

// readServices reads the registrations of application services in other processes.
func readServices(c *config.Config) (out []*appservice.Registration, err error) {
	for _, file := range c.ApplicationServices {
		s, err := readService(file)
		if err != nil {
			return nil, c.Mistake("application_services", "%s: %v", file, err)
		}
		out = append(out, s)
	}
	if runsElsewhere(out) && (len(c.Networks) > 0 || c.IRCListen != "off") {
		return nil, c.Mistake("application_services", `one of them is a Gjallar bridge, which has networks and irc_listen to itself: remove networks here and set irc_listen to "off"`)
	}
	return out, nil
}

func readService(file string) (*appservice.Registration, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return appservice.ReadYAML(f)
}

// runsElsewhere reports whether one of the services is the bridge itself, as
// `gjallar bridge` runs it.
func runsElsewhere(services []*appservice.Registration) bool {
	return slices.ContainsFunc(services, func(s *appservice.Registration) bool { return s.SenderLocalpart == puppeting.BotLocalpart })
}

// stopped reports whether err stands for a stop that was asked for.
func stopped(err error) bool { return err == nil || errors.Is(err, context.Canceled) }

// routes send requests of the homeserver to application services: to the bridge in
// this process, or over the network.
type routes struct{ bridge http.RoundTripper }

func (r routes) RoundTrip(req *http.Request) (*http.Response, error) {
	if "http://"+req.URL.Host == insideBridge {
		return r.bridge.RoundTrip(req)
	}
	return http.DefaultTransport.RoundTrip(req)
}

func newHomeserver(ctx context.Context, c *config.Config, d *dataDir, db *sqldb.DB, web net.Listener, services http.RoundTripper, log *slog.Logger) (*homeserver.Server, error) {
	key, keyID, err := d.signingKey()
	if err != nil {
		return nil, err
	}
	return homeserver.New(ctx, homeserver.Options{
		ServerName: matrix.ServerName(c.ServerName), DB: db, Key: key, KeyID: keyID, MediaDir: d.file("media"), MaxUpload: c.Media.MaxUpload,
		PublicURL: publicURL(c, web), Registration: registrationMode(c), RegistrationToken: c.Registration.Token, SharedSecret: c.Registration.SharedSecret, RateLimits: c.RateLimits,
		Transport: services, Log: log.With("part", "homeserver"),
	})
}

// registrationMode is "open", "token" or "closed".
func registrationMode(c *config.Config) string {
	if c.Registration.Mode != "loopback" {
		return c.Registration.Mode
	}
	if isLoopback(c.Listen) {
		return "open"
	}
	return "closed"
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// publicURL is how the outside reaches the server. An address that stands for all
// of the machine's leads nowhere, so that the server's name takes its place.
func publicURL(c *config.Config, web net.Listener) string {
	if c.PublicURL != "" {
		return strings.TrimSuffix(c.PublicURL, "/")
	}
	a, ok := web.Addr().(*net.TCPAddr)
	if ok && a.IP.IsUnspecified() {
		name := (&url.URL{Host: c.ServerName}).Hostname()
		return "http://" + net.JoinHostPort(name, strconv.Itoa(a.Port))
	}
	return "http://" + web.Addr().String()
}

// page puts the homeserver and the bridge's links to files under one address, with
// a word for people who open it in a browser.
func page(c *config.Config, hs, bridge http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", hs)
	mux.Handle("/_gjallar/", bridge)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(w, "This is Gjallar, the Matrix homeserver of %s.\nGive this address to a Matrix client as its homeserver.\n", c.ServerName)
	})
	return mux
}

// makeFirstRoom makes the room that newcomers are told to join, if it is missing.
func makeFirstRoom(ctx context.Context, c *config.Config, client *appservice.Client) error {
	alias := matrix.RoomAlias("#" + firstRoom + ":" + c.ServerName)
	_, err := client.Bot().ResolveAlias(ctx, alias)
	if e, ok := errors.AsType[*appservice.Error](err); !ok || e.Code != matrix.CodeNotFound {
		return err
	}
	_, err = client.Bot().CreateRoom(ctx, map[string]any{
		"preset": "public_chat", "visibility": "public", "room_alias_name": firstRoom, "name": "Lobby", "topic": "Everybody is welcome here.",
	})
	if err != nil {
		return fmt.Errorf("make the first room: %w", err)
	}
	return nil
}

// withConfig are the flags of other commands for the same server.
func withConfig(c *config.Config) string {
	var out strings.Builder
	if c.File() != "" {
		out.WriteString(" -config " + c.File())
	}
	for _, f := range []struct{ name, key, value string }{{"data", "data", c.Data}, {"server-name", "server_name", c.ServerName}} {
		if c.Overridden(f.key) {
			out.WriteString(" -" + f.name + " " + f.value)
		}
	}
	return out.String()
}

// greet tells where clients connect and, if there is a room to join, the first thing
// to type.
func greet(w io.Writer, c *config.Config, web net.Listener, lobby bool) {
	fmt.Fprintf(w, "Gjallar is ready: the homeserver of %s.\n", c.ServerName)
	fmt.Fprintf(w, "  Matrix clients connect to %s", publicURL(c, web))
	addUser := "gjallar user add NAME" + withConfig(c)
	switch registrationMode(c) {
	case "open":
		fmt.Fprintf(w, " (register there, or: %s)\n", addUser)
	case "token":
		fmt.Fprintf(w, " (register there with the token, or: %s)\n", addUser)
	default:
		fmt.Fprintf(w, " (make an account: %s)\n", addUser)
	}
	if lobby {
		fmt.Fprintf(w, "    and join #%s:%s\n", firstRoom, c.ServerName)
	}
	if c.IRCListen != "off" {
		host, port, err := net.SplitHostPort(c.IRCListen)
		if err != nil {
			host, port = c.IRCListen, ""
		}
		fmt.Fprintf(w, "  IRC clients connect to %s port %s, and type: /join #%s\n", host, port, firstRoom)
	}
	for _, name := range networkNames(c) {
		if name != listenerNetwork {
			fmt.Fprintf(w, "  Network %s: in a room with @gjallar:%s type: !gjallar link %s CHAT\n", name, c.ServerName, name)
		}
	}
}
