// Package streams knows how far the stream of events has come, per room and per
// user, and wakes those who wait for more. It holds nothing that is not in the
// database too: a lost wake-up could only come late, never lose anything.
package streams

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// Token is a place in the stream as clients hold it: "s<pos>_<typing>".
type Token struct {
	Pos    int64 // all that is durable up to here
	Typing int64 // typing notifications, which are not
}

// String is the token on the wire.
func (t Token) String() string { return fmt.Sprintf("s%d_%d", t.Pos, t.Typing) }

// ParseToken reads a token. One without the part for typing is taken too.
func ParseToken(s string) (Token, error) {
	digits, ok := strings.CutPrefix(s, "s")
	if !ok {
		return Token{}, fmt.Errorf("token %.40q does not start with s", s)
	}
	pos, typing, both := strings.Cut(digits, "_")
	var t Token
	var err error
	if t.Pos, err = number(pos); err != nil {
		return Token{}, err
	}
	if both {
		t.Typing, err = number(typing)
	}
	return t, err
}

func number(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || s != strconv.FormatInt(n, 10) {
		return 0, fmt.Errorf("token has %.40q for a position", s)
	}
	return n, nil
}

// Hub wakes waiters. Its methods may be called from any goroutine.
type Hub struct {
	mu      sync.Mutex
	pos     int64 // guarded by mu, as all below: the last position that is visible
	floor   int64 // changes up to here are not remembered
	rooms   map[matrix.RoomID]*subject
	users   map[matrix.UserID]*subject
	any     *subject
	typings int64
}

// subject is a room or a user: when it last changed and who waits for it.
type subject struct {
	pos     int64
	typing  int64
	waiters map[*waiter]struct{}
}

type waiter struct {
	woken chan struct{}
	once  sync.Once
}

func (w *waiter) wake() { w.once.Do(func() { close(w.woken) }) }

// NewHub starts at the last position the database has. Typing starts at the given
// serial, which must be above all that tokens from before may have.
func NewHub(pos, typing int64) *Hub {
	return &Hub{pos: pos, floor: pos, typings: typing, rooms: map[matrix.RoomID]*subject{}, users: map[matrix.UserID]*subject{}, any: &subject{}}
}

func at[K comparable](m map[K]*subject, k K) *subject {
	s := m[k]
	if s == nil {
		s = &subject{}
		m[k] = s
	}
	return s
}

// Now is the token of all that is visible.
func (h *Hub) Now() Token {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Token{h.pos, h.typings}
}

// Notify tells that the stream has come to pos, with a change that concerns these
// rooms (all who are in them) and users. Calls come in the order of positions.
func (h *Hub) Notify(pos int64, rooms []matrix.RoomID, users []matrix.UserID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pos = max(h.pos, pos)
	for _, r := range rooms {
		h.changed(at(h.rooms, r), pos)
	}
	for _, u := range users {
		h.changed(at(h.users, u), pos)
	}
	h.changed(h.any, pos)
}

// NotifyTyping tells that who types in a room has changed, and returns the serial.
func (h *Hub) NotifyTyping(room matrix.RoomID) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.typings++
	s := at(h.rooms, room)
	s.typing = h.typings
	h.changed(s, s.pos)
	h.changed(h.any, h.any.pos)
	return h.typings
}

func (h *Hub) changed(s *subject, pos int64) {
	s.pos = max(s.pos, pos)
	for w := range s.waiters {
		w.wake()
	}
	s.waiters = nil
}

// RoomChanged reports whether something of a room may have changed since a token.
func (h *Hub) RoomChanged(room matrix.RoomID, since Token) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.news(h.rooms[room], since)
}

// UserChanged reports whether something that concerns a user may have happened since
// a token, other than in rooms.
func (h *Hub) UserChanged(user matrix.UserID, since Token) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.news(h.users[user], since)
}

func (h *Hub) news(s *subject, since Token) bool {
	return since.Pos < h.floor || s != nil && (s.pos > since.Pos || s.typing > since.Typing)
}

// Wait returns when something has changed since the token that concerns the user or
// one of the rooms, or when ctx ends; it reports whether something may have.
func (h *Hub) Wait(ctx context.Context, user matrix.UserID, rooms []matrix.RoomID, since Token) bool {
	w := h.register(user, rooms, since)
	if w == nil {
		return true
	}
	defer h.forget(w, user, rooms)
	return w.wait(ctx)
}

// WaitAny is Wait for whatever changes on the server.
func (h *Hub) WaitAny(ctx context.Context, since Token) bool {
	h.mu.Lock()
	if h.pos > since.Pos || h.typings > since.Typing {
		h.mu.Unlock()
		return true
	}
	w := &waiter{woken: make(chan struct{})}
	h.any.add(w)
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.any.waiters, w)
		h.mu.Unlock()
	}()
	return w.wait(ctx)
}

func (w *waiter) wait(ctx context.Context) bool {
	select {
	case <-w.woken:
		return true
	case <-ctx.Done():
		return false
	}
}

func (h *Hub) register(user matrix.UserID, rooms []matrix.RoomID, since Token) *waiter {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.news(h.users[user], since) {
		return nil
	}
	for _, r := range rooms {
		if h.news(h.rooms[r], since) {
			return nil
		}
	}
	w := &waiter{woken: make(chan struct{})}
	at(h.users, user).add(w)
	for _, r := range rooms {
		at(h.rooms, r).add(w)
	}
	return w
}

func (s *subject) add(w *waiter) {
	if s.waiters == nil {
		s.waiters = map[*waiter]struct{}{}
	}
	s.waiters[w] = struct{}{}
}

func (h *Hub) forget(w *waiter, user matrix.UserID, rooms []matrix.RoomID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.users[user].waiters, w)
	for _, r := range rooms {
		delete(h.rooms[r].waiters, w)
	}
}
