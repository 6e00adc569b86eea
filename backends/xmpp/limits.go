package xmpp

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// maxLimiters is how many remote users are counted at a time.
const maxLimiters = 10000

// limiters count what each remote user sends to the host.
type limiters struct {
	limits Limits
	mu     *sync.Mutex
	users  map[string]*rate.Limiter // guarded by mu
}

func newLimiters(l Limits) limiters {
	return limiters{limits: l, mu: new(sync.Mutex), users: map[string]*rate.Limiter{}}
}

// allow counts one stanza of a bare JID.
func (l *limiters) allow(user string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	lim := l.users[user]
	if lim == nil {
		if len(l.users) >= maxLimiters {
			l.forgetLocked(time.Now())
		}
		lim = rate.NewLimiter(rate.Limit(l.limits.Rate), l.limits.Burst)
		l.users[user] = lim
	}
	return lim.Allow()
}

// forgetLocked drops those who have been silent; if all are busy, everybody.
func (l *limiters) forgetLocked(now time.Time) {
	for user, lim := range l.users {
		if lim.TokensAt(now) >= float64(l.limits.Burst) {
			delete(l.users, user)
		}
	}
	if len(l.users) >= maxLimiters {
		clear(l.users)
	}
}

var tooFast = &xep.Error{Type: "wait", Condition: "resource-constraint", Text: "You are sending too fast."}
