package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/config"
	"github.com/gjallar-im/gjallar/puppeting"
)

// runBridge runs the bridge alone, as an application service of another homeserver.
func runBridge(ctx context.Context, t *terminal, args []string) error {
	fs, o := newFlags("bridge", t.err)
	if err := parse(fs, args); err != nil {
		return err
	}
	c, err := o.load(t)
	if err != nil {
		return err
	}
	reg, err := readRegistration(c)
	if err != nil {
		return err
	}
	d, err := openDataDir(c.Data)
	if err != nil {
		return err
	}
	defer d.Close()
	web, err := listen(ctx, c, "bridge.listen", c.Bridge.Listen)
	if err != nil {
		return err
	}
	if err := canListenForIRC(ctx, c); err != nil {
		web.Close()
		return err
	}
	db, err := newDB(ctx, c, d, "bridge.db")
	if err != nil {
		web.Close()
		return err
	}
	r, err := newRuntime(ctx, c, runtimeOptions{
		db: db, registration: reg, homeserver: c.Bridge.Homeserver, publicURL: publicURL(c, web), log: newLogger(t.err, c),
		opened: func() {
			fmt.Fprintf(t.out, "The bridge of %s is ready at http://%s, for the homeserver at %s.\n", c.ServerName, web.Addr(), c.Bridge.Homeserver)
		},
	})
	if err != nil {
		web.Close()
		return errors.Join(err, db.Close())
	}
	defer r.closePlugins()
	parts, running := errgroup.WithContext(ctx)
	parts.Go(func() error { return serveHTTP(running, web, r.Handler()) })
	parts.Go(func() error { return r.Run(running) })
	err = parts.Wait()
	if stopped(err) {
		err = nil
	}
	return errors.Join(err, db.Close())
}

func readRegistration(c *config.Config) (*appservice.Registration, error) {
	f, err := os.Open(c.Bridge.Registration)
	if errors.Is(err, os.ErrNotExist) {
		return nil, c.Mistake("bridge.registration", "there is no %s; gjallar register writes it", c.Bridge.Registration)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return appservice.ReadYAML(f)
}

// register writes the file that tells another homeserver of the bridge.
func register(_ context.Context, t *terminal, args []string) error {
	fs, o := newFlags("register", t.err)
	url := fs.String("url", "", "`URL` where that homeserver reaches the bridge (default http:// and bridge.listen)")
	force := fs.Bool("force", false, "replace a file that is there; its tokens will no longer do")
	if err := parse(fs, args); err != nil {
		return err
	}
	c, err := o.load(t)
	if err != nil {
		return err
	}
	if *url == "" {
		*url = "http://" + c.Bridge.Listen
	}
	flags := os.O_CREATE | os.O_WRONLY | os.O_EXCL
	if *force {
		flags = os.O_CREATE | os.O_WRONLY | os.O_TRUNC
	}
	f, err := os.OpenFile(c.Bridge.Registration, flags, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already; -force replaces it", c.Bridge.Registration)
	}
	if err != nil {
		return err
	}
	err = errors.Join(appservice.WriteYAML(f, puppeting.NewRegistration(networkNames(c), c.ServerName, *url, true)), f.Close())
	if err != nil {
		return err
	}
	fmt.Fprintf(t.out, "Wrote %s. Give it to the homeserver (Synapse: app_service_config_files), restart that, and run: gjallar bridge%s\n", c.Bridge.Registration, withConfig(c))
	return nil
}
