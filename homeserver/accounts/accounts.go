// Package accounts is who may log in: users, passwords, devices and access tokens.
package accounts

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

// Cost of hashing a password with argon2id.
type Cost struct {
	Time   uint32
	Memory uint32 // KiB
}

// DefaultCost is what OWASP recommends at least; CheapCost is for tests and
// benchmarks.
var (
	DefaultCost = Cost{2, 19 << 10}
	CheapCost   = Cost{1, 64}
)

// Accounts of a server. Its methods may be called from any goroutine.
type Accounts struct {
	store  *store.Store
	server matrix.ServerName
	cost   Cost

	mu       sync.RWMutex
	sessions map[string]store.Session // guarded by mu: of tokens in use, by hash
	ends     int                      // guarded by mu: counts forget
	logins   map[string]loginToken    // guarded by mu: by hash
}

// maxSessions is how many tokens are remembered.
const maxSessions = 100_000

// New returns the accounts of a store.
func New(s *store.Store, server matrix.ServerName, cost Cost) *Accounts {
	return &Accounts{store: s, server: server, cost: cost, sessions: map[string]store.Session{}, logins: map[string]loginToken{}}
}

// hashing holds as many as may hash at a time: each takes Cost.Memory.
var hashing = make(chan struct{}, 4)

// ErrWrongPassword is the one answer to a wrong name and a wrong password, so that
// nobody learns which names exist.
var ErrWrongPassword = matrix.Forbidden("Invalid username or password")

// Hash of a password: "argon2id$time$memory$salt$hash".
func (a *Accounts) Hash(password string) string {
	hashing <- struct{}{}
	defer func() { <-hashing }()
	salt := make([]byte, 16)
	rand.Read(salt)
	return encodeHash(a.cost, salt, argon2.IDKey([]byte(password), salt, a.cost.Time, a.cost.Memory, 1, 32))
}

func encodeHash(c Cost, salt, sum []byte) string {
	return fmt.Sprintf("argon2id$%d$%d$%s$%s", c.Time, c.Memory, base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(sum))
}

// fits reports whether a password has a hash.
func fits(password, hash string) bool {
	hashing <- struct{}{}
	defer func() { <-hashing }()
	f := strings.Split(hash, "$")
	if len(f) != 5 || f[0] != "argon2id" {
		return false
	}
	var c Cost
	if _, err := fmt.Sscanf(f[1]+" "+f[2], "%d %d", &c.Time, &c.Memory); err != nil {
		return false
	}
	salt, err := base64.RawStdEncoding.DecodeString(f[3])
	if err != nil {
		return false
	}
	sum := argon2.IDKey([]byte(password), salt, c.Time, c.Memory, 1, 32)
	return subtle.ConstantTimeCompare([]byte(encodeHash(c, salt, sum)), []byte(hash)) == 1
}

// Register makes an account. The error is M_USER_IN_USE if the name is taken.
func (a *Accounts) Register(ctx context.Context, acc store.Account) error {
	free := false
	err := a.store.Write(ctx, func(tx *sqldb.Tx) (err error) {
		free, err = a.store.CreateAccount(tx, acc, time.Now().UnixMilli())
		return err
	})
	if err == nil && !free {
		return matrix.Errorf(http.StatusBadRequest, matrix.CodeUserInUse, "User ID already taken")
	}
	return err
}

// CheckPassword returns the account of a name (a localpart or a user ID) if the
// password is right, and [ErrWrongPassword] otherwise. It takes as long for a name
// that nobody has.
func (a *Accounts) CheckPassword(ctx context.Context, name, password string) (*store.Account, error) {
	user := matrix.UserID(strings.ToLower(name))
	if !strings.HasPrefix(name, "@") {
		user = matrix.NewUserID(strings.ToLower(name), a.server)
	}
	acc, err := a.store.Account(ctx, user)
	if errors.Is(err, store.ErrNotFound) || err == nil && acc.PasswordHash == "" {
		a.Hash(password)
		return nil, ErrWrongPassword
	}
	if err != nil {
		return nil, err
	}
	if !fits(password, acc.PasswordHash) {
		return nil, ErrWrongPassword
	}
	return acc, nil
}

// Login is what a client gets.
type Login struct {
	Token   string
	Device  matrix.DeviceID
	Refresh string // "" if it did not ask for one
	Expires time.Duration
}

// accessLifetime of tokens that come with a refresh token.
const accessLifetime = time.Hour

// LogIn makes an access token for a device, which is made too if there is none of
// that ID. A device that was logged in before loses its old token.
func (a *Accounts) LogIn(ctx context.Context, user matrix.UserID, device matrix.DeviceID, name string, refreshable bool) (*Login, error) {
	l := &Login{Token: newToken("gat"), Device: device}
	if device == "" {
		l.Device = matrix.DeviceID(rand.Text()[:10])
	}
	session := store.Session{User: user, Device: l.Device}
	refreshHash := ""
	if refreshable {
		l.Refresh, l.Expires = newToken("grt"), accessLifetime
		session.Expires = time.Now().Add(accessLifetime).UnixMilli()
		refreshHash = hashToken(l.Refresh)
	}
	err := a.store.Write(ctx, func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(`DELETE FROM access_token WHERE user_id = $1 AND device_id = $2`, user, l.Device); err != nil {
			return err
		}
		if err := a.store.PutDevice(tx, user, l.Device, name); err != nil {
			return err
		}
		return a.store.InsertToken(tx, hashToken(l.Token), session, refreshHash)
	})
	if err != nil {
		return nil, fmt.Errorf("log in %s: %w", user, err)
	}
	a.forget(user, l.Device)
	return l, nil
}

// newToken has 130 bits of randomness.
func newToken(kind string) string { return kind + "_" + rand.Text() }

func hashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// Session returns what an access token stands for. The error is M_UNKNOWN_TOKEN,
// with soft_logout if it has only expired.
func (a *Accounts) Session(ctx context.Context, token string) (store.Session, error) {
	hash := hashToken(token)
	a.mu.RLock()
	s, ok := a.sessions[hash]
	ends := a.ends
	a.mu.RUnlock()
	if !ok {
		var err error
		if s, err = a.store.Session(ctx, hash); errors.Is(err, store.ErrNotFound) {
			return s, matrix.Errorf(http.StatusUnauthorized, matrix.CodeUnknownToken, "Unknown access token")
		} else if err != nil {
			return s, err
		}
		a.mu.Lock()
		if len(a.sessions) >= maxSessions {
			clear(a.sessions)
		}
		if a.ends == ends { // otherwise it may have ended while it was read
			a.sessions[hash] = s
		}
		a.mu.Unlock()
	}
	if s.Expires > 0 && time.Now().UnixMilli() > s.Expires {
		return s, matrix.Errorf(http.StatusUnauthorized, matrix.CodeUnknownToken, "Access token has expired").With("soft_logout", true)
	}
	return s, nil
}

// forget drops remembered sessions of a device, or of all a user's with "".
func (a *Accounts) forget(user matrix.UserID, device matrix.DeviceID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ends++
	for hash, s := range a.sessions {
		if s.User == user && (device == "" || s.Device == device) {
			delete(a.sessions, hash)
		}
	}
}

// LogOut removes devices with their tokens; all of the user's without any named.
func (a *Accounts) LogOut(ctx context.Context, user matrix.UserID, devices ...matrix.DeviceID) error {
	if len(devices) == 0 {
		all, err := a.store.Devices(ctx, user)
		if err != nil {
			return err
		}
		for _, d := range all {
			devices = append(devices, d.ID)
		}
	}
	err := a.store.Write(ctx, func(tx *sqldb.Tx) error {
		for _, d := range devices {
			if err := a.store.DeleteDevice(tx, user, d); err != nil {
				return err
			}
		}
		return nil
	})
	a.forget(user, "")
	return err
}

// Refresh exchanges a refresh token for new tokens. The old ones cease to work.
func (a *Accounts) Refresh(ctx context.Context, refresh string) (*Login, error) {
	l := &Login{Token: newToken("gat"), Refresh: newToken("grt"), Expires: accessLifetime}
	var user matrix.UserID
	err := a.store.Write(ctx, func(tx *sqldb.Tx) error {
		if err := tx.QueryRow(`SELECT user_id, device_id FROM access_token WHERE refresh_hash = $1`, hashToken(refresh)).Scan(&user, &l.Device); err != nil {
			return matrix.Errorf(http.StatusUnauthorized, matrix.CodeUnknownToken, "Unknown refresh token")
		}
		if _, err := tx.Exec(`DELETE FROM access_token WHERE refresh_hash = $1`, hashToken(refresh)); err != nil {
			return err
		}
		return a.store.InsertToken(tx, hashToken(l.Token), store.Session{User: user, Device: l.Device, Expires: time.Now().Add(accessLifetime).UnixMilli()}, hashToken(l.Refresh))
	})
	if err != nil {
		return nil, err
	}
	a.forget(user, l.Device)
	return l, nil
}

// SetPassword changes a password.
func (a *Accounts) SetPassword(ctx context.Context, user matrix.UserID, password string) error {
	hash := a.Hash(password)
	return a.store.Write(ctx, func(tx *sqldb.Tx) error { return a.store.SetPassword(tx, user, hash) })
}
