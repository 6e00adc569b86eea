// Package appservice is the application service's side of the Application Service
// API: a client that acts as the service's users, and a handler for what the
// homeserver sends.
//
// It retries what may be repeated without harm and keeps no state but which users
// are known to be registered.
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/
package appservice

import (
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// Event is an event as the homeserver sends it.
type Event = matrix.Event

// Profile of a user.
type Profile struct {
	DisplayName string `json:"displayname"`
	AvatarURL   string `json:"avatar_url"` // mxc:
}

// Error is a refusal by the homeserver.
type Error struct {
	Status        int
	Code, Message string        // errcode and error of the body, "" if it had none
	RetryAfter    time.Duration // with M_LIMIT_EXCEEDED; 0 if the homeserver named none
}

func (e *Error) Error() string {
	if e.Code == "" {
		return fmt.Sprintf("homeserver answered %d", e.Status)
	}
	return fmt.Sprintf("homeserver answered %d %s: %s", e.Status, e.Code, e.Message)
}

// Options of New.
type Options struct {
	HomeserverURL string            // http(s)://host[:port][/prefix]
	Transport     http.RoundTripper // nil: one of its own that keeps connections open
	Registration  *Registration
	ServerName    string
	Log           *slog.Logger // nil: nothing is logged
}

// Client makes requests as the users of one application service. Its methods may
// be called from any goroutine.
type Client struct {
	base     string
	http     *http.Client
	token    string // the Authorization header
	service  string // the registration's ID
	log      *slog.Logger
	bot      *Intent
	oldMedia atomic.Bool // the homeserver knows only the old path of downloads

	mu      sync.Mutex
	intents map[matrix.UserID]*Intent // guarded by mu
}

// New makes a client. It asks nothing of the homeserver yet.
func New(o Options) *Client {
	if o.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost = 100 // all requests go to one host
		o.Transport = t
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		base: strings.TrimSuffix(o.HomeserverURL, "/"), token: "Bearer " + o.Registration.ASToken, service: o.Registration.ID,
		log: o.Log, intents: map[matrix.UserID]*Intent{},
		http: &http.Client{Transport: o.Transport, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // a token must not follow a redirect
		}},
	}
	c.bot = c.As(matrix.NewUserID(o.Registration.SenderLocalpart, matrix.ServerName(o.ServerName)))
	c.bot.query = ""
	return c
}

// Bot acts as the service's own user, the registration's sender_localpart.
func (c *Client) Bot() *Intent { return c.bot }

// As acts as a user of the service's namespaces. The user is registered before its
// first request; the same user again returns the same Intent.
func (c *Client) As(user matrix.UserID) *Intent {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.intents[user]
	if i == nil {
		i = newIntent(c, user)
		c.intents[user] = i
	}
	return i
}
