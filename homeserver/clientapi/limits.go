package clientapi

import (
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// limits on how often things may be done.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#rate-limiting
type limits struct {
	login    *limiter // by address and by account
	register *limiter // by address
	send     *limiter // by user
}

func newLimits(on bool) limits {
	if !on {
		return limits{}
	}
	return limits{login: newLimiter(0.5, 10), register: newLimiter(0.2, 20), send: newLimiter(50, 200)}
}

// limiter is a token bucket for each key. A nil limiter lets everything pass.
type limiter struct {
	perSecond rate.Limit
	burst     int

	mu      sync.Mutex
	buckets map[string]*rate.Limiter // guarded by mu
}

// maxBuckets is when those that are full again are forgotten.
const maxBuckets = 10_000

func newLimiter(perSecond rate.Limit, burst int) *limiter {
	return &limiter{perSecond: perSecond, burst: burst, buckets: map[string]*rate.Limiter{}}
}

// allow takes a token of a key. The error is M_LIMIT_EXCEEDED with the time after
// which there is another.
func (l *limiter) allow(key string) error {
	if l == nil {
		return nil
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[key]
	if b == nil {
		l.forgetFull(now)
		b = rate.NewLimiter(l.perSecond, l.burst)
		l.buckets[key] = b
	}
	if b.AllowN(now, 1) {
		return nil
	}
	wait := time.Duration((1 - b.TokensAt(now)) / float64(l.perSecond) * float64(time.Second))
	return matrix.Errorf(http.StatusTooManyRequests, matrix.CodeLimitExceeded, "Too many requests").With("retry_after_ms", wait.Milliseconds()+1)
}

func (l *limiter) forgetFull(now time.Time) {
	if len(l.buckets) < maxBuckets {
		return
	}
	for k, b := range l.buckets {
		if b.TokensAt(now) >= float64(l.burst) {
			delete(l.buckets, k)
		}
	}
}

// limitSends applies the limit on sending to those who have one.
func (r *request) limitSends() error {
	if s := r.service; s != nil && (s.Registration.RateLimited == nil || !*s.Registration.RateLimited) {
		return nil
	}
	return r.api.limits.send.allow(string(r.user))
}

// retryAfter is the header that goes with M_LIMIT_EXCEEDED, in whole seconds.
func retryAfter(e *matrix.Error) string {
	ms, ok := e.Extra["retry_after_ms"].(int64)
	if !ok {
		return ""
	}
	return strconv.Itoa(int(math.Ceil(float64(ms) / 1000)))
}
