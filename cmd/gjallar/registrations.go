package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/config"
	"github.com/gjallar-im/gjallar/homeserver"
)

// registrations are the application services in other processes. On SIGHUP they are
// read anew: those that are listed no longer are removed, the others replaced.
type registrations struct {
	hs  *homeserver.Server
	ids map[string]bool
}

// set makes a list the registered one.
func (r *registrations) set(ctx context.Context, services []*appservice.Registration) error {
	listed := map[string]bool{}
	for _, s := range services {
		if err := r.hs.AddService(ctx, *s); err != nil {
			return fmt.Errorf("application service %s: %w", s.ID, err)
		}
		listed[s.ID] = true
	}
	for id := range r.ids {
		if !listed[id] {
			r.hs.RemoveService(id)
		}
	}
	r.ids = listed
	return nil
}

// follow obeys SIGHUP until ctx ends. What cannot be read leaves things as they are.
func (r *registrations) follow(ctx context.Context, reload func() (*config.Config, error), log *slog.Logger) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	for {
		select {
		case <-hangups:
		case <-ctx.Done():
			return
		}
		if err := r.reread(ctx, reload); err != nil {
			log.Error("application services stay as they were", "err", err)
			continue
		}
		log.Info("application services read again", "count", len(r.ids))
	}
}

func (r *registrations) reread(ctx context.Context, reload func() (*config.Config, error)) error {
	c, err := reload()
	if err != nil {
		return err
	}
	services, err := readServices(c)
	if err != nil {
		return err
	}
	return r.set(ctx, services)
}
