package clientapi

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/gjallar-im/gjallar/homeserver/asapi"
	"github.com/gjallar-im/gjallar/homeserver/canonicaljson"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

// maxBody of a request with JSON, in bytes.
const maxBody = 4 << 20

// request is a call of an endpoint by someone who may make it.
type request struct {
	*http.Request
	w   http.ResponseWriter
	api *api

	user    matrix.UserID
	device  matrix.DeviceID
	service *asapi.Service // the application service that acts, nil otherwise
	ts      int64          // the time it gives an event, 0 if none
}

// authenticate finds out who calls, as far as the endpoint asks.
func (r *request) authenticate(need auth) error {
	if need == anyone {
		return nil
	}
	token := r.token()
	if token == "" {
		if need == maybeUser {
			return nil
		}
		return matrix.Errorf(http.StatusUnauthorized, matrix.CodeMissingToken, "Missing access token")
	}
	if s, ok := r.api.Registry.ByToken(token); ok {
		return r.masquerade(s)
	}
	if need == service {
		return matrix.Errorf(http.StatusForbidden, matrix.CodeForbidden, "Only application services may do this")
	}
	session, err := r.api.Accounts.Session(r.Context(), token)
	if err != nil {
		return err
	}
	r.user, r.device = session.User, session.Device
	return nil
}

// token from the header or, as old clients send it, from the query.
func (r *request) token() string {
	if h := r.Header.Get("Authorization"); h != "" {
		scheme, token, _ := strings.Cut(h, " ")
		if strings.EqualFold(scheme, "Bearer") {
			return strings.TrimSpace(token)
		}
		return ""
	}
	if !strings.Contains(r.URL.RawQuery, "access_token=") {
		return ""
	}
	return r.URL.Query().Get("access_token")
}

// masquerade makes the request one of the user that an application service names,
// by default its own.
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/#identity-assertion
func (r *request) masquerade(s *asapi.Service) error {
	r.service, r.user = s, s.Sender
	q := r.URL.Query()
	if id := q.Get("user_id"); id != "" {
		u, err := matrix.ParseUserID(id)
		if err != nil {
			return matrix.InvalidParam("user_id is not a user ID")
		}
		if !s.OwnsUser(u) || u.Server() != r.api.ServerName {
			return matrix.Errorf(http.StatusForbidden, matrix.CodeForbidden, "The application service may not act as %s", u)
		}
		if u != s.Sender {
			if _, err := r.api.Store.Account(r.Context(), u); errors.Is(err, store.ErrNotFound) {
				return matrix.Errorf(http.StatusForbidden, matrix.CodeForbidden, "The application service has not registered %s", u)
			} else if err != nil {
				return err
			}
		}
		r.user = u
	}
	r.device = matrix.DeviceID(q.Get("device_id"))
	if r.device == "" {
		r.device = matrix.DeviceID("AS:" + s.Registration.ID)
	}
	if ts := q.Get("ts"); ts != "" {
		n, err := strconv.ParseInt(ts, 10, 64)
		if err != nil || n < 0 {
			return matrix.InvalidParam("ts is not a time in milliseconds")
		}
		r.ts = n
	}
	return nil
}

// read returns the body, which may be so many bytes long.
func (r *request) read(limit int64) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(r.w, r.Body, limit))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, matrix.Errorf(http.StatusRequestEntityTooLarge, matrix.CodeTooLarge, "The request is larger than %d bytes", limit)
	}
	if err != nil {
		return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeNotJSON, "The request did not arrive whole")
	}
	return b, nil
}

// decode reads the body, which is a JSON object, into v. No body at all is an
// empty object.
func (r *request) decode(v any) error {
	b, err := r.read(maxBody)
	if err != nil {
		return err
	}
	if len(b) == 0 {
		b = []byte("{}")
	}
	return decodeJSON(b, v)
}

func decodeJSON(b []byte, v any) error {
	switch err := canonicaljson.Unmarshal(b, v); {
	case errors.Is(err, canonicaljson.ErrNotJSON):
		return matrix.Errorf(http.StatusBadRequest, matrix.CodeNotJSON, "%s", err)
	case err != nil:
		return matrix.BadJSON("%s", err)
	}
	return nil
}

// object reads the body, which is a JSON object, as it is.
func (r *request) object() ([]byte, error) {
	b, err := r.read(maxBody)
	if err != nil {
		return nil, err
	}
	return asObject(b)
}

// objectOrNothing is object, where no body at all is an empty object.
func (r *request) objectOrNothing() ([]byte, error) {
	b, err := r.read(maxBody)
	if err != nil {
		return nil, err
	}
	if len(b) == 0 {
		return []byte("{}"), nil
	}
	return asObject(b)
}

func asObject(b []byte) ([]byte, error) {
	var m map[string]rawJSON
	if err := decodeJSON(b, &m); err != nil {
		return nil, err
	}
	if m == nil { // null
		return nil, matrix.BadJSON("The body must be an object")
	}
	return b, nil
}

// rawJSON keeps a value as it is.
type rawJSON []byte

func (j *rawJSON) UnmarshalJSON(b []byte) error { *j = append((*j)[:0], b...); return nil }

// roomID from the path.
func (r *request) roomID() (matrix.RoomID, error) {
	id, err := matrix.ParseRoomID(r.PathValue("roomID"))
	if err != nil {
		return "", matrix.InvalidParam("%q is not a room ID", r.PathValue("roomID"))
	}
	return id, nil
}

// own checks that the user in the path is the one who asks.
func (r *request) own() error {
	if r.PathValue("userID") != string(r.user) {
		return matrix.Forbidden("You cannot do this for another user")
	}
	return nil
}

// intQuery returns a number of the query, within bounds; fallback if it is not there.
func (r *request) intQuery(name string, fallback, low, high int) (int, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return fallback, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, matrix.InvalidParam("%s is not a number", name)
	}
	return min(max(n, low), high), nil
}

// ip of the client: what a proxy on this machine says it is, or the peer's own.
func (r *request) ip() string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	if peer := net.ParseIP(host); peer != nil && peer.IsLoopback() {
		hops := strings.Split(r.Header.Get("X-Forwarded-For"), ",")
		if last := net.ParseIP(strings.TrimSpace(hops[len(hops)-1])); last != nil {
			return last.String()
		}
	}
	return host
}
