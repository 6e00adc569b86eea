// Package homeserver is a Matrix homeserver: it puts the packages below it together.
package homeserver

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gjallar-im/gjallar/homeserver/accounts"
	"github.com/gjallar-im/gjallar/homeserver/asapi"
	"github.com/gjallar-im/gjallar/homeserver/clientapi"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/pdu"
	"github.com/gjallar-im/gjallar/homeserver/rooms"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

// Options of New.
type Options struct {
	ServerName matrix.ServerName
	// DB is the database, which the caller closes after the server.
	DB *sqldb.DB
	// Key signs events; its ID is "ed25519:" and a version.
	Key   ed25519.PrivateKey
	KeyID string
	// MediaDir is where files are kept, MaxUpload how large one may be, in bytes.
	MediaDir  string
	MaxUpload int64
	PublicURL string // how the outside reaches the server; "" if it need not
	// Registration is who may make an account: "open", "token" or "closed".
	Registration      string
	RegistrationToken string
	// DefaultRoomVersion of new rooms; "" is roomversion.Default.
	DefaultRoomVersion matrix.RoomVersion
	// SharedSecret lets its owner make accounts; "" is off.
	SharedSecret string
	RateLimits   bool // bound how often one may log in, register and send
	// PasswordCost is accounts.DefaultCost if zero.
	PasswordCost accounts.Cost
	// Transport reaches application services; nil is the network.
	Transport http.RoundTripper
	Log       *slog.Logger
}

// Server is a homeserver.
type Server struct {
	options  Options
	store    *store.Store
	hub      *streams.Hub
	rooms    *rooms.Rooms
	accounts *accounts.Accounts
	registry *asapi.Registry
	services *asapi.Worker
	presence *clientapi.Presence
	handler  http.Handler
}

// New prepares a server: it brings the database up to date. Application services
// get nothing before Run.
func New(ctx context.Context, o Options) (*Server, error) {
	if o.PasswordCost == (accounts.Cost{}) {
		o.PasswordCost = accounts.DefaultCost
	}
	if o.Transport == nil {
		o.Transport = http.DefaultTransport
	}
	if err := os.MkdirAll(o.MediaDir, 0o700); err != nil {
		return nil, fmt.Errorf("make media folder: %w", err)
	}
	st, err := store.Open(ctx, o.DB)
	if err != nil {
		return nil, err
	}
	if err := checkName(ctx, st, o.ServerName); err != nil {
		return nil, err
	}
	pos, err := st.Position(ctx)
	if err != nil {
		return nil, fmt.Errorf("read stream position: %w", err)
	}
	s := &Server{options: o, store: st, registry: asapi.NewRegistry(o.ServerName)}
	// Serials of typing are times, so that those of before a restart are lower.
	s.hub = streams.NewHub(pos, time.Now().UnixMilli())
	s.rooms = rooms.New(rooms.Options{Store: st, Hub: s.hub, Signer: pdu.Signer{Server: o.ServerName, KeyID: o.KeyID, Key: o.Key}, Log: o.Log})
	s.accounts = accounts.New(st, o.ServerName, o.PasswordCost)
	typing := clientapi.NewTyping(s.hub)
	s.presence = clientapi.NewPresence(st, s.hub, o.Log)
	s.services = asapi.New(asapi.Options{Store: st, Registry: s.registry, Hub: s.hub, Transport: o.Transport, Typing: typing, Log: o.Log})
	s.handler = clientapi.New(clientapi.Options{
		Store: st, Rooms: s.rooms, Hub: s.hub, Accounts: s.accounts, Typing: typing, Presence: s.presence, Registry: s.registry, ServerName: o.ServerName, Log: o.Log,
		DefaultRoomVersion: o.DefaultRoomVersion, PublicURL: o.PublicURL, Registration: o.Registration, RegistrationToken: o.RegistrationToken, SharedSecret: o.SharedSecret, RateLimits: o.RateLimits,
		MediaDir: o.MediaDir, MaxUpload: o.MaxUpload,
		QueryAlias: s.services.QueryAlias, QueryUser: s.services.QueryUser, ThirdParty: s.services.ThirdParty, Ping: s.services.Ping,
	})
	return s, nil
}

// checkName refuses a database whose users have another server's name: with this
// one they could not log in, and new ones would be strangers in their rooms.
func checkName(ctx context.Context, st *store.Store, name matrix.ServerName) error {
	u, err := st.AnyUser(ctx)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("read an account: %w", err)
	case u.Server() != name:
		return fmt.Errorf("the database belongs to %s, and server_name is %s; it cannot be changed", u.Server(), name)
	}
	return nil
}

// Handler serves the Client-Server API.
func (s *Server) Handler() http.Handler { return s.handler }

// Run tells application services what happens, and notices who has gone, until ctx
// ends.
func (s *Server) Run(ctx context.Context) error {
	parts, running := errgroup.WithContext(ctx)
	parts.Go(func() error { return s.services.Run(running) })
	parts.Go(func() error { return s.presence.Run(running) })
	return parts.Wait()
}

// Close carries out what was taken.
func (s *Server) Close() { s.rooms.Close() }

// AddService registers an application service and makes its own user. One with the
// same ID is replaced.
func (s *Server) AddService(ctx context.Context, r matrix.Registration) error {
	service, err := s.registry.Replace(r)
	if err != nil {
		return err
	}
	err = s.accounts.Register(ctx, store.Account{User: service.Sender, AppService: r.ID})
	if e, ok := errors.AsType[*matrix.Error](err); ok && e.Code == matrix.CodeUserInUse {
		return nil
	}
	return err
}

// RemoveService ends the registration of an application service; false if there is
// none of that ID.
func (s *Server) RemoveService(id string) bool { return s.registry.Remove(id) }

// CreateUser makes an account. The error is a [*matrix.Error] with M_USER_IN_USE or
// M_INVALID_USERNAME.
func (s *Server) CreateUser(ctx context.Context, localpart, password string, admin bool) (matrix.UserID, error) {
	localpart = strings.ToLower(localpart)
	u := matrix.NewUserID(localpart, s.options.ServerName)
	if !matrix.ValidLocalpart(localpart) || len(u) > matrix.MaxIDLength {
		return "", matrix.Errorf(http.StatusBadRequest, matrix.CodeInvalidUsername, "A user name may have a-z, 0-9 and ._=-/+ only")
	}
	return u, s.accounts.Register(ctx, store.Account{User: u, PasswordHash: s.accounts.Hash(password), Admin: admin})
}
