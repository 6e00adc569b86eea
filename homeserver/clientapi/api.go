// Package clientapi serves the Client-Server API: one file for each of the
// specification's sections, one list of routes for each group, and one place where
// an error becomes a response.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/
package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"

	"github.com/gjallar-im/gjallar/homeserver/accounts"
	"github.com/gjallar-im/gjallar/homeserver/asapi"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/rooms"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

// Options of New.
type Options struct {
	Store      *store.Store
	Rooms      *rooms.Rooms
	Hub        *streams.Hub
	Accounts   *accounts.Accounts
	Typing     *Typing
	Presence   *Presence
	Registry   *asapi.Registry
	ServerName matrix.ServerName
	Log        *slog.Logger

	// DefaultRoomVersion of new rooms; "" is roomversion.Default.
	DefaultRoomVersion matrix.RoomVersion

	PublicURL string // in /.well-known/matrix/client
	// Registration is who may make an account: "open", "token" or "closed".
	Registration string
	// RegistrationToken opens registration in mode "token".
	RegistrationToken string
	// SharedSecret lets its owner make accounts; "" is off.
	SharedSecret string
	// RateLimits bounds how often one may log in, register and send.
	RateLimits bool

	// MediaDir is where files are kept, MaxUpload how large one may be, in bytes.
	MediaDir  string
	MaxUpload int64

	// What application services are asked; nil where there are none.
	QueryAlias func(context.Context, matrix.RoomAlias) (bool, error)
	QueryUser  func(context.Context, matrix.UserID) (bool, error)
	// ThirdParty asks all services that know a protocol ("" for all) and joins
	// their answers; kind is "protocol", "location" or "user".
	ThirdParty func(ctx context.Context, kind, protocol string, query url.Values) ([]json.RawMessage, error)
	// Ping asks a service to answer.
	Ping func(ctx context.Context, s *asapi.Service, txnID string) (int64, error)
}

type api struct {
	Options
	log    *slog.Logger
	mux    *http.ServeMux
	limits limits
}

// New returns the handler of the whole API.
func New(o Options) http.Handler {
	if o.DefaultRoomVersion == "" {
		o.DefaultRoomVersion = roomversion.Default
	}
	a := &api{Options: o, log: o.Log, mux: http.NewServeMux(), limits: newLimits(o.RateLimits)}
	o.Store.OnChange = o.Hub.Notify
	for _, group := range [][]route{a.accountRoutes(), a.roomRoutes(), a.ephemeralRoutes(), a.syncRoutes(), a.otherRoutes()} {
		for _, rt := range group {
			a.register(rt)
		}
	}
	return http.HandlerFunc(a.serve)
}

// route is one endpoint. path is what follows the prefix; see register.
type route struct {
	method, path string
	auth         auth
	run          func(*api, *request) (any, error)
}

// auth says who may call an endpoint.
type auth int

const (
	anyone    auth = iota
	maybeUser      // with or without a token
	user           // an access token, or an application service acting as a user
	service        // an application service's token
)

// register puts a route into the mux. "/v3/…" is served under r0 too, as old
// clients ask for it; "/media/v3/…" and "/media/v1/…" likewise; a path that starts
// with "/." or "/_" is whole already.
func (a *api) register(rt route) {
	handler := func(w http.ResponseWriter, r *http.Request) { a.handle(w, r, rt) }
	var paths []string
	switch p := rt.path; {
	case strings.HasPrefix(p, "/.") || strings.HasPrefix(p, "/_"):
		paths = []string{p}
	case strings.HasPrefix(p, "/media/v3/"):
		paths = []string{"/_matrix" + p, "/_matrix/media/r0/" + strings.TrimPrefix(p, "/media/v3/"), "/_matrix/media/v1/" + strings.TrimPrefix(p, "/media/v3/")}
	case strings.HasPrefix(p, "/media/"):
		paths = []string{"/_matrix" + p}
	case strings.HasPrefix(p, "/v3/"):
		paths = []string{"/_matrix/client" + p, "/_matrix/client/r0/" + strings.TrimPrefix(p, "/v3/")}
	default:
		paths = []string{"/_matrix/client" + p}
	}
	for _, p := range paths {
		a.mux.HandleFunc(rt.method+" "+p, handler)
	}
}

// serve adds what all responses have, and answers for paths that nobody serves.
func (a *api) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "X-Requested-With, Content-Type, Authorization")
	if r.Method == http.MethodOptions {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	fallback, pattern := a.mux.Handler(r)
	if pattern != "" {
		a.mux.ServeHTTP(w, r)
		return
	}
	probe := &statusProbe{header: http.Header{}}
	fallback.ServeHTTP(probe, r)
	if probe.status == http.StatusMethodNotAllowed {
		h.Set("Allow", probe.header.Get("Allow"))
		a.writeError(w, r, matrix.Errorf(http.StatusMethodNotAllowed, matrix.CodeUnrecognized, "Method not allowed"))
		return
	}
	a.writeError(w, r, matrix.Errorf(http.StatusNotFound, matrix.CodeUnrecognized, "Unrecognized request"))
}

// statusProbe learns with which status the mux would refuse.
type statusProbe struct {
	header http.Header
	status int
}

func (p *statusProbe) Header() http.Header         { return p.header }
func (p *statusProbe) Write(b []byte) (int, error) { return len(b), nil }
func (p *statusProbe) WriteHeader(status int)      { p.status = status }

// written is the result of a handler that has written its own response.
type written struct{}

func (a *api) handle(w http.ResponseWriter, r *http.Request, rt route) {
	defer func() {
		if p := recover(); p != nil && p != http.ErrAbortHandler {
			a.log.Error("request panicked", "route", r.Pattern, "panic", fmt.Sprintf("%.200v", p), "stack", string(debug.Stack()))
			a.writeError(w, r, matrix.Errorf(http.StatusInternalServerError, matrix.CodeUnknown, "Internal server error"))
		}
	}()
	req := &request{Request: r, w: w, api: a}
	if err := req.authenticate(rt.auth); err != nil {
		a.writeError(w, r, err)
		return
	}
	result, err := rt.run(a, req)
	if err != nil {
		a.writeError(w, r, err)
		return
	}
	if _, ok := result.(written); !ok {
		a.writeJSON(w, http.StatusOK, result)
	}
}

// writeError turns an error into a response: the one place where that is done.
func (a *api) writeError(w http.ResponseWriter, r *http.Request, err error) {
	e, ok := errors.AsType[*matrix.Error](err)
	switch {
	case ok:
	case errors.Is(err, store.ErrNotFound):
		e = matrix.NotFound("Not found")
	case sqldb.BadText(err):
		e = matrix.InvalidParam("The request has text that cannot be stored")
	case r.Context().Err() != nil: // the client has gone
		e = matrix.Errorf(http.StatusServiceUnavailable, matrix.CodeUnknown, "Request cancelled")
	default: // ours: the log gets it, the client learns nothing more
		a.log.ErrorContext(r.Context(), "request failed", "route", r.Pattern, "err", err)
		e = matrix.Errorf(http.StatusInternalServerError, matrix.CodeUnknown, "Internal server error")
	}
	if after := retryAfter(e); after != "" {
		w.Header().Set("Retry-After", after)
	}
	a.writeJSON(w, e.Status, e)
}

func (a *api) writeJSON(w http.ResponseWriter, status int, v any) {
	if v == nil {
		v = struct{}{}
	}
	b, err := json.Marshal(v)
	if err != nil {
		a.log.Error("response cannot be encoded", "err", err)
		status, b = http.StatusInternalServerError, []byte(`{"errcode":"M_UNKNOWN","error":"Internal server error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b)
}

// empty is the response "{}".
var empty = struct{}{}
