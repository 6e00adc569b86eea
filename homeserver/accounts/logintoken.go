package accounts

import (
	"context"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

// loginToken lets a user log in once. It is kept in memory: a restart voids it.
type loginToken struct {
	user    matrix.UserID
	expires time.Time
}

const (
	loginLifetime  = 2 * time.Minute
	maxLoginTokens = 10_000
)

// LoginToken makes a token for m.login.token, and says how long it works.
func (a *Accounts) LoginToken(user matrix.UserID) (string, time.Duration) {
	token := newToken("glt")
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	for hash, t := range a.logins {
		if now.After(t.expires) || len(a.logins) >= maxLoginTokens {
			delete(a.logins, hash)
		}
	}
	a.logins[hashToken(token)] = loginToken{user, now.Add(loginLifetime)}
	return token, loginLifetime
}

// CheckLoginToken returns the account that a token is for, and voids the token. The
// error is M_FORBIDDEN if it is unknown, used or too old.
func (a *Accounts) CheckLoginToken(ctx context.Context, token string) (*store.Account, error) {
	hash := hashToken(token)
	a.mu.Lock()
	t, ok := a.logins[hash]
	delete(a.logins, hash)
	a.mu.Unlock()
	if !ok || time.Now().After(t.expires) {
		return nil, matrix.Forbidden("Invalid login token")
	}
	return a.store.Account(ctx, t.user)
}
