package clientapi

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

func (a *api) adminRoutes() []route {
	routes := []route{{"GET", "/v3/admin/whois/{userID}", user, (*api).getWhois}}
	if a.SharedSecret != "" {
		n := &nonces{until: map[string]time.Time{}}
		routes = append(routes, route{"GET", "/_synapse/admin/v1/register", anyone, n.getRegister}, route{"POST", "/_synapse/admin/v1/register", anyone, n.postRegister})
	}
	return routes
}

// getWhois: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3adminwhoisuserid
func (a *api) getWhois(r *request) (any, error) {
	if r.own() != nil {
		acc, err := a.Store.Account(r.Context(), r.user)
		if err != nil {
			return nil, err
		}
		if !acc.Admin {
			return nil, matrix.Forbidden("Only server admins may do this")
		}
	}
	u := matrix.UserID(r.PathValue("userID"))
	list, err := a.Store.Devices(r.Context(), u)
	if err != nil {
		return nil, err
	}
	type connection struct {
		IP       string `json:"ip,omitempty"`
		LastSeen int64  `json:"last_seen,omitempty"` // ms
	}
	devices := map[matrix.DeviceID]any{}
	for _, d := range list {
		devices[d.ID] = map[string]any{"sessions": []any{map[string]any{"connections": []connection{{d.LastSeenIP, d.LastSeenTS}}}}}
	}
	return map[string]any{"user_id": u, "devices": devices}, nil
}

// nonces are handed out for registrations with the shared secret. Each is good for
// one, within a minute.
//
// Spec: https://element-hq.github.io/synapse/latest/admin_api/register_api.html
type nonces struct {
	mu    sync.Mutex
	until map[string]time.Time // guarded by mu
}

const (
	nonceLifetime = time.Minute
	maxNonces     = 1000
)

func (n *nonces) getRegister(*api, *request) (any, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	for nonce, until := range n.until {
		if now.After(until) {
			delete(n.until, nonce)
		}
	}
	if len(n.until) >= maxNonces {
		return nil, matrix.Errorf(http.StatusTooManyRequests, matrix.CodeLimitExceeded, "Too many nonces").With("retry_after_ms", nonceLifetime.Milliseconds())
	}
	nonce := rand.Text()
	n.until[nonce] = now.Add(nonceLifetime)
	return map[string]string{"nonce": nonce}, nil
}

// take uses a nonce up and reports whether it was good.
func (n *nonces) take(nonce string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	until, ok := n.until[nonce]
	delete(n.until, nonce)
	return ok && time.Now().Before(until)
}

func (n *nonces) postRegister(a *api, r *request) (any, error) {
	var in struct {
		Nonce    string `json:"nonce"`
		Username string `json:"username"`
		Name     string `json:"displayname"`
		Password string `json:"password"`
		Admin    bool   `json:"admin"`
		UserType string `json:"user_type"`
		MAC      string `json:"mac"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if in.Username == "" || in.Password == "" || strings.Contains(in.Username+in.Password, "\x00") {
		return nil, matrix.MissingParam("username and password are needed, without NUL")
	}
	if !n.take(in.Nonce) {
		return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeUnknown, "Unrecognised nonce")
	}
	parts := []string{in.Nonce, in.Username, in.Password, map[bool]string{true: "admin", false: "notadmin"}[in.Admin]}
	if in.UserType != "" {
		parts = append(parts, in.UserType)
	}
	mac := hmac.New(sha1.New, []byte(a.SharedSecret))
	mac.Write([]byte(strings.Join(parts, "\x00")))
	if given, err := hex.DecodeString(in.MAC); err != nil || !hmac.Equal(given, mac.Sum(nil)) {
		return nil, matrix.Forbidden("HMAC incorrect")
	}
	u, err := a.newUser(strings.ToLower(in.Username))
	if err != nil {
		return nil, err
	}
	if _, owned := a.Registry.ExclusiveUser(u); owned {
		return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeExclusive, "The name belongs to an application service")
	}
	if err := a.Accounts.Register(r.Context(), store.Account{User: u, PasswordHash: a.Accounts.Hash(in.Password), Admin: in.Admin}); err != nil {
		return nil, err
	}
	if in.Name != "" {
		name, _ := json.Marshal(in.Name) // a string: cannot fail
		if err := a.Store.Write(r.Context(), func(tx *sqldb.Tx) error { return a.Store.SetProfile(tx, u, "displayname", name) }); err != nil {
			return nil, err
		}
	}
	l, err := a.Accounts.LogIn(r.Context(), u, "", "", false)
	if err != nil {
		return nil, err
	}
	return a.loginResponse(u, l), nil
}
