package appservice

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	stdjson "encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// maxTransaction is how long a transaction's body may be, in bytes: some hundred
// events of the greatest size.
const maxTransaction = 64 << 20

// Transaction is what has happened, in order.
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/#put_matrixappv1transactionstxnid
type Transaction struct {
	ID        string
	Events    []Event
	Ephemeral []Event // typing, receipts, presence
	ToDevice  []ToDeviceEvent
}

// ToDeviceEvent is a message to a device of one of the service's users.
type ToDeviceEvent struct {
	Type       string             `json:"type"`
	Sender     matrix.UserID      `json:"sender"`
	Content    stdjson.RawMessage `json:"content"`
	ToUserID   matrix.UserID      `json:"to_user_id"`
	ToDeviceID matrix.DeviceID    `json:"to_device_id"`
}

// HandlerOptions of NewHandler. Any function may be nil but Transaction.
type HandlerOptions struct {
	HSToken string
	// Transaction takes a transaction; 200 is answered once it returns nil. Until
	// then the homeserver sends the same one again, so it must not do twice what
	// it has done for an ID. One transaction is handed over at a time.
	Transaction func(context.Context, *Transaction) error
	// User and Alias say whether there is such a user or alias, after making it.
	User  func(context.Context, matrix.UserID) (bool, error)
	Alias func(context.Context, matrix.RoomAlias) (bool, error)
	// Ping hears that the homeserver has reached the service.
	Ping       func(ctx context.Context, txnID string)
	ThirdParty ThirdParty
	Log        *slog.Logger
}

// ThirdParty answers what networks there are, and who and what is on them. An empty
// list is "none".
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/#third-party-networks
type ThirdParty interface {
	Protocol(ctx context.Context, name string) (*Protocol, error) // nil: there is none
	Locations(ctx context.Context, protocol string, fields url.Values) ([]Location, error)
	Users(ctx context.Context, protocol string, fields url.Values) ([]ThirdPartyUser, error)
	LocationsOf(ctx context.Context, alias matrix.RoomAlias) ([]Location, error)
	UsersOf(ctx context.Context, user matrix.UserID) ([]ThirdPartyUser, error)
}

// Protocol is a kind of third-party network.
type Protocol struct {
	UserFields     []string             `json:"user_fields"`
	LocationFields []string             `json:"location_fields"`
	Icon           string               `json:"icon"`
	FieldTypes     map[string]FieldType `json:"field_types"`
	Instances      []Instance           `json:"instances"`
}

// FieldType tells how a field is to be entered.
type FieldType struct {
	Regexp      string `json:"regexp"`
	Placeholder string `json:"placeholder"`
}

// Instance is one network of a protocol.
type Instance struct {
	NetworkID string            `json:"network_id"`
	Desc      string            `json:"desc"`
	Icon      string            `json:"icon,omitempty"`
	Fields    map[string]string `json:"fields"`
}

// Location is a chat on a network and the alias that leads there.
type Location struct {
	Alias    matrix.RoomAlias  `json:"alias"`
	Protocol string            `json:"protocol"`
	Fields   map[string]string `json:"fields"`
}

// ThirdPartyUser is a user on a network and the user ID that stands for them.
type ThirdPartyUser struct {
	UserID   matrix.UserID     `json:"userid"`
	Protocol string            `json:"protocol"`
	Fields   map[string]string `json:"fields"`
}

type handler struct {
	HandlerOptions
	token [sha256.Size]byte
	mux   *http.ServeMux
	turn  chan struct{} // held by the transaction that is handed over
}

// NewHandler serves what the homeserver asks, on the paths of the specification
// and on the older ones without their prefix.
func NewHandler(o HandlerOptions) http.Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	h := &handler{HandlerOptions: o, token: sha256.Sum256([]byte(o.HSToken)), mux: http.NewServeMux(), turn: make(chan struct{}, 1)}
	for _, rt := range []struct {
		method, path string
		run          func(*handler, *http.Request) (any, error)
	}{
		{http.MethodPut, "/transactions/{txnID}", (*handler).putTransaction},
		{http.MethodGet, "/users/{userID}", (*handler).getUser},
		{http.MethodGet, "/rooms/{alias}", (*handler).getRoom},
		{http.MethodPost, "/ping", (*handler).postPing},
		{http.MethodGet, "/thirdparty/protocol/{protocol}", (*handler).getProtocol},
		{http.MethodGet, "/thirdparty/location/{protocol}", (*handler).getLocations},
		{http.MethodGet, "/thirdparty/location", (*handler).getLocationsOf},
		{http.MethodGet, "/thirdparty/user/{protocol}", (*handler).getUsers},
		{http.MethodGet, "/thirdparty/user", (*handler).getUsersOf},
	} {
		serve := func(w http.ResponseWriter, r *http.Request) { h.serve(w, r, rt.method, rt.run) }
		for _, prefix := range []string{"/_matrix/app/v1", "/_matrix/app/unstable", ""} {
			h.mux.HandleFunc(prefix+rt.path, serve)
		}
	}
	h.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { h.write(w, nil, unknown) })
	return h.mux
}

var (
	unknown   = matrix.Errorf(http.StatusNotFound, matrix.CodeUnrecognized, "Unrecognized request")
	wrongWay  = matrix.Errorf(http.StatusMethodNotAllowed, matrix.CodeUnrecognized, "Method not allowed")
	noToken   = matrix.Errorf(http.StatusUnauthorized, matrix.CodeMissingToken, "Missing access token")
	badToken  = matrix.Errorf(http.StatusForbidden, matrix.CodeForbidden, "Bad access token")
	nothing   = matrix.NotFound("Not found")
	tooLarge  = matrix.Errorf(http.StatusRequestEntityTooLarge, matrix.CodeTooLarge, "The transaction is too large")
	truncated = matrix.Errorf(http.StatusBadRequest, matrix.CodeNotJSON, "The request did not arrive whole")
	ours      = matrix.Errorf(http.StatusInternalServerError, matrix.CodeUnknown, "Internal error")
)

func (h *handler) serve(w http.ResponseWriter, r *http.Request, method string, run func(*handler, *http.Request) (any, error)) {
	if r.Method != method {
		w.Header().Set("Allow", method)
		h.write(w, nil, wrongWay)
		return
	}
	if err := h.authenticate(r); err != nil {
		h.write(w, nil, err)
		return
	}
	result, err := run(h, r)
	if _, refused := errors.AsType[*matrix.Error](err); err != nil && !refused && r.Context().Err() == nil {
		h.Log.Error("request of the homeserver failed", "route", r.Pattern, "err", err)
	}
	h.write(w, result, err)
}

// authenticate checks the token, which old homeservers send in the query.
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/#authorization
func (h *handler) authenticate(r *http.Request) error {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		token = r.URL.Query().Get("access_token")
	}
	if token == "" {
		return noToken
	}
	sum := sha256.Sum256([]byte(strings.TrimSpace(token)))
	if subtle.ConstantTimeCompare(sum[:], h.token[:]) != 1 {
		return badToken
	}
	return nil
}

// write is the one place where an error becomes a response.
func (h *handler) write(w http.ResponseWriter, result any, err error) {
	status := http.StatusOK
	if err != nil {
		e, ok := errors.AsType[*matrix.Error](err)
		if !ok {
			e = ours
		}
		status, result = e.Status, e
	}
	b, err := stdjson.Marshal(result)
	if err != nil {
		h.Log.Error("response cannot be encoded", "err", err)
		status, b = http.StatusInternalServerError, []byte(`{"errcode":"M_UNKNOWN","error":"Internal error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b)
}

var empty = struct{}{}

// putTransaction hands a transaction over, after the one before it.
func (h *handler) putTransaction(r *http.Request) (any, error) {
	b, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxTransaction))
	if _, long := errors.AsType[*http.MaxBytesError](err); long {
		return nil, tooLarge
	} else if err != nil {
		return nil, truncated
	}
	t, err := h.parse(r.PathValue("txnID"), b)
	if err != nil {
		return nil, err
	}
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	return empty, h.Transaction(r.Context(), t)
}

// parse reads a transaction. An event that makes no sense is left out: to refuse it
// would have the homeserver send it for ever, and nothing after it.
func (h *handler) parse(id string, body []byte) (*Transaction, error) {
	var in struct {
		Events       []jsontext.Value `json:"events"`
		Ephemeral    []jsontext.Value `json:"ephemeral"`
		ToDevice     []jsontext.Value `json:"to_device"`
		OldEphemeral []jsontext.Value `json:"de.sorunome.msc2409.ephemeral"`
		OldToDevice  []jsontext.Value `json:"de.sorunome.msc2409.to_device"`
	}
	if err := decode(body, &in); err != nil {
		return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeNotJSON, "The transaction is not JSON of its form")
	}
	if in.Ephemeral == nil { // who sends both sends the same
		in.Ephemeral = in.OldEphemeral
	}
	if in.ToDevice == nil {
		in.ToDevice = in.OldToDevice
	}
	return &Transaction{id, each[Event](h, in.Events), each[Event](h, in.Ephemeral), each[ToDeviceEvent](h, in.ToDevice)}, nil
}

func each[E any](h *handler, list []jsontext.Value) []E {
	out := make([]E, 0, len(list))
	for _, v := range list {
		var e E
		err := decode(v, &e)
		if err == nil && v.Kind() != '{' {
			err = errors.New("not an object")
		}
		if err != nil {
			h.Log.Warn("an event of the homeserver is malformed and left out", "err", err)
			continue
		}
		out = append(out, e)
	}
	return out
}

func (h *handler) getUser(r *http.Request) (any, error) {
	u, err := matrix.ParseUserID(r.PathValue("userID"))
	if err != nil || h.User == nil {
		return nil, nothing
	}
	return exists(h.User(r.Context(), u))
}

func (h *handler) getRoom(r *http.Request) (any, error) {
	a, err := matrix.ParseRoomAlias(r.PathValue("alias"))
	if err != nil || h.Alias == nil {
		return nil, nothing
	}
	return exists(h.Alias(r.Context(), a))
}

func exists(there bool, err error) (any, error) {
	if err == nil && !there {
		err = nothing
	}
	return empty, err
}

func (h *handler) postPing(r *http.Request) (any, error) {
	b, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, 64<<10))
	if err != nil {
		return nil, truncated
	}
	var in struct {
		TxnID string `json:"transaction_id"`
	}
	if err := decode(b, &in); err != nil {
		return nil, matrix.BadJSON("The body must be an object")
	}
	if h.Ping != nil {
		h.Ping(r.Context(), in.TxnID)
	}
	return empty, nil
}

func (h *handler) getProtocol(r *http.Request) (any, error) {
	if h.ThirdParty == nil {
		return nil, nothing
	}
	p, err := h.ThirdParty.Protocol(r.Context(), r.PathValue("protocol"))
	if err == nil && p == nil {
		err = nothing
	}
	return p, err
}

func (h *handler) getLocations(r *http.Request) (any, error) {
	if h.ThirdParty == nil {
		return nil, nothing
	}
	return list(h.ThirdParty.Locations(r.Context(), r.PathValue("protocol"), fields(r)))
}

func (h *handler) getLocationsOf(r *http.Request) (any, error) {
	alias, err := matrix.ParseRoomAlias(r.URL.Query().Get("alias"))
	if err != nil || h.ThirdParty == nil {
		return nil, nothing
	}
	return list(h.ThirdParty.LocationsOf(r.Context(), alias))
}

func (h *handler) getUsers(r *http.Request) (any, error) {
	if h.ThirdParty == nil {
		return nil, nothing
	}
	return list(h.ThirdParty.Users(r.Context(), r.PathValue("protocol"), fields(r)))
}

func (h *handler) getUsersOf(r *http.Request) (any, error) {
	user, err := matrix.ParseUserID(r.URL.Query().Get("userid"))
	if err != nil || h.ThirdParty == nil {
		return nil, nothing
	}
	return list(h.ThirdParty.UsersOf(r.Context(), user))
}

// fields of a query, without the token.
func fields(r *http.Request) url.Values {
	q := r.URL.Query()
	q.Del("access_token")
	return q
}

func list[T any](l []T, err error) (any, error) {
	if l == nil {
		l = []T{}
	}
	return l, err
}
