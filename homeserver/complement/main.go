// Command complement is the homeserver as Complement, the conformance tests of the
// Matrix project, wants it in a container: see the Dockerfile beside it.
//
// Spec: https://github.com/matrix-org/complement/blob/main/README.md
package main

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"

	"github.com/gjallar-im/gjallar/homeserver"
	"github.com/gjallar-im/gjallar/homeserver/accounts"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// data holds the database and media; the container may be stopped, committed and
// started again.
const data = "/data"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "complement:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	name, err := matrix.ParseServerName(os.Getenv("SERVER_NAME"))
	if err != nil {
		return fmt.Errorf("SERVER_NAME: %w", err)
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	db, err := sqldb.Open(ctx, "sqlite:"+filepath.Join(data, "gjallar.db"))
	if err != nil {
		return err
	}
	defer db.Close()
	seed := sha256.Sum256([]byte(name)) // a throwaway server: the same key at each start will do
	hs, err := homeserver.New(ctx, homeserver.Options{
		ServerName: name, DB: db, Key: ed25519.NewKeyFromSeed(seed[:]), KeyID: "ed25519:complement", MediaDir: filepath.Join(data, "media"), MaxUpload: 50 << 20,
		Registration: "open", SharedSecret: "complement", PasswordCost: accounts.CheapCost, PublicURL: "http://" + string(name) + ":8008",
		// Some tests put the creator into the power levels, which version 12 forbids.
		DefaultRoomVersion: "11",
		Log:                slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		return err
	}
	defer hs.Close()
	if err := addServices(ctx, hs); err != nil {
		return err
	}
	web := &http.Server{Addr: ":8008", Handler: hs.Handler(), ReadHeaderTimeout: 10 * time.Second}
	parts, running := errgroup.WithContext(ctx)
	parts.Go(func() error { return hs.Run(running) })
	parts.Go(func() error {
		if err := web.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	parts.Go(func() error { <-running.Done(); return web.Close() })
	if err := parts.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// addServices loads the application services that Complement has put there.
func addServices(ctx context.Context, hs *homeserver.Server) error {
	files, err := filepath.Glob("/complement/appservice/*.yaml")
	if err != nil {
		return err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		var reg matrix.Registration
		if err := yaml.Unmarshal(b, &reg); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		if err := hs.AddService(ctx, reg); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
	}
	return nil
}
