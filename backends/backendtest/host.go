// Package backendtest holds what tests of a backend share: a [Host] that records
// what it is told and answers as the test says.
package backendtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
)

// Patience is how long the waiting methods of a Host wait before they fail the test.
const Patience = 10 * time.Second

// Host is a backends.Host for tests. It keeps everything in memory.
type Host struct {
	tb    testing.TB
	log   *slog.Logger
	logs  lockedBuffer
	store memStore
	media memMedia
	rooms *Rooms

	mu      sync.Mutex
	changed chan struct{}     // closed and replaced at each change; guarded by mu
	events  []*backends.Event // guarded by mu
	taken   int               // events before this index were returned by Next; guarded by mu
	held    bool              // receipts wait for Ack; guarded by mu
	window  int               // how many events may be unacknowledged; guarded by mu
	pending []pendingEvent    // guarded by mu
	receipt func(*backends.Event) backends.Receipt
}

type pendingEvent struct {
	event *backends.Event
	done  func(backends.Receipt)
}

// NewHost returns a Host that acknowledges each event at once, with the receipt
// ID "host:" and the event's own, and has no rooms.
func NewHost(tb testing.TB) *Host {
	h := &Host{
		tb:      tb,
		changed: make(chan struct{}),
		window:  256,
		store:   memStore{pairs: map[string][]byte{}},
		media:   memMedia{files: map[string][]byte{}},
		receipt: func(ev *backends.Event) backends.Receipt {
			if ev.ID == "" {
				return backends.Receipt{}
			}
			return backends.Receipt{ID: "host:" + ev.ID}
		},
	}
	h.log = slog.New(slog.NewTextHandler(&h.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h.rooms = newRooms()
	return h
}

// Deliver records ev. It blocks while the window is full of held events.
func (h *Host) Deliver(ctx context.Context, ev *backends.Event, done func(backends.Receipt)) error {
	for {
		h.mu.Lock()
		if !h.held || len(h.pending) < h.window {
			break
		}
		changed := h.changed
		h.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	h.events = append(h.events, ev)
	held, receipt := h.held, h.receipt
	if held {
		h.pending = append(h.pending, pendingEvent{ev, done})
	}
	h.wakeLocked()
	h.mu.Unlock()
	if !held && done != nil {
		done(receipt(ev))
	}
	return nil
}

func (h *Host) wakeLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// Hold keeps receipts back until Ack or Release, at most window of them: the next
// Deliver blocks then.
func (h *Host) Hold(window int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held, h.window = true, window
}

// Ack gives the receipts of the n oldest held events and says how many there were.
func (h *Host) Ack(n int) int {
	h.mu.Lock()
	n = min(n, len(h.pending))
	batch := slices.Clone(h.pending[:n])
	h.pending = slices.Delete(h.pending, 0, n)
	receipt := h.receipt
	h.wakeLocked()
	h.mu.Unlock()
	for _, p := range batch {
		if p.done != nil {
			p.done(receipt(p.event))
		}
	}
	return n
}

// Release ends Hold and acknowledges all that is held.
func (h *Host) Release() {
	h.mu.Lock()
	h.held = false
	n := len(h.pending)
	h.mu.Unlock()
	h.Ack(n)
}

// Answer makes f decide the receipt of each event from now on.
func (h *Host) Answer(f func(*backends.Event) backends.Receipt) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.receipt = f
}

// Held returns how many events wait for their receipt.
func (h *Host) Held() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.pending)
}

// Events returns all events so far, in the order of the calls.
func (h *Host) Events() []*backends.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.events)
}

// Next returns the first event for which match holds after the one that Next
// returned last, skipping others; it waits for it, and fails the test if it does
// not come. A nil match takes any event.
func (h *Host) Next(what string, match func(*backends.Event) bool) *backends.Event {
	h.tb.Helper()
	timeout := time.NewTimer(Patience)
	defer timeout.Stop()
	h.mu.Lock()
	seen := h.taken
	for {
		for ; seen < len(h.events); seen++ {
			if ev := h.events[seen]; match == nil || match(ev) {
				h.taken = seen + 1
				h.mu.Unlock()
				return ev
			}
		}
		changed := h.changed
		h.mu.Unlock()
		select {
		case <-changed:
		case <-timeout.C:
			h.tb.Fatalf("no %s within %v; events: %s; log:\n%s", what, Patience, h.summary(), h.Logs())
		}
		h.mu.Lock()
	}
}

// NextBody is Next for an event with a body of type B for which match holds.
func NextBody[B backends.Body](h *Host, match func(*backends.Event, B) bool) (*backends.Event, B) {
	h.tb.Helper()
	var zero B
	ev := h.Next(fmt.Sprintf("%T", zero), func(ev *backends.Event) bool {
		b, ok := ev.Body.(B)
		return ok && (match == nil || match(ev, b))
	})
	return ev, ev.Body.(B)
}

// WaitPhase waits for a NetworkState with the phase.
func (h *Host) WaitPhase(phase backends.NetworkPhase) *backends.NetworkState {
	h.tb.Helper()
	_, state := NextBody(h, func(_ *backends.Event, s *backends.NetworkState) bool { return s.Phase == phase })
	return state
}

func (h *Host) summary() string {
	var s []string
	for _, ev := range h.Events() {
		s = append(s, fmt.Sprintf("%T in %q from %q", ev.Body, ev.Chat.Chat, ev.Sender.ID))
	}
	return strings.Join(s, ", ")
}

// Log writes to what Logs returns.
func (h *Host) Log() *slog.Logger { return h.log }

// Logs returns what was logged.
func (h *Host) Logs() string { return h.logs.String() }

// Store returns a map in memory.
func (h *Host) Store() backends.Store { return &h.store }

// Media returns a store of files in memory.
func (h *Host) Media() backends.Media { return &h.media }

// Rooms returns the rooms made with FakeRooms.
func (h *Host) Rooms() backends.Rooms { return h.rooms }

// FakeRooms returns the rooms, to be set up by the test.
func (h *Host) FakeRooms() *Rooms { return h.rooms }

// Uploaded returns the content of a file by the URL that Upload gave it.
func (h *Host) Uploaded(url string) ([]byte, bool) {
	h.media.mu.Lock()
	defer h.media.mu.Unlock()
	b, ok := h.media.files[url]
	return b, ok
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

type memStore struct {
	mu    sync.Mutex
	pairs map[string][]byte // guarded by mu
}

func (s *memStore) Get(_ context.Context, key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.pairs[key]), nil
}

func (s *memStore) Put(_ context.Context, key string, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pairs[key] = append([]byte{}, value...)
	return nil
}

func (s *memStore) Delete(_ context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pairs, key)
	return nil
}

func (s *memStore) Scan(_ context.Context, prefix string) (map[string][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := map[string][]byte{}
	for k, v := range s.pairs {
		if strings.HasPrefix(k, prefix) {
			found[k] = bytes.Clone(v)
		}
	}
	return found, nil
}

// maxUpload is the size limit of the fake's Upload.
const maxUpload = 1 << 20

type memMedia struct {
	mu    sync.Mutex
	files map[string][]byte // by URL; guarded by mu
}

func (m *memMedia) Upload(_ context.Context, f backends.File, content io.Reader) (backends.File, error) {
	b, err := io.ReadAll(io.LimitReader(content, maxUpload+1))
	if err != nil {
		return backends.File{}, fmt.Errorf("read upload: %w", err)
	}
	if len(b) > maxUpload {
		return backends.File{}, &backends.Refusal{Code: backends.RefusedTooLarge, Message: "the file is too large"}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f.URL = fmt.Sprintf("https://media.test/%d", len(m.files)+1)
	f.Size = int64(len(b))
	m.files[f.URL] = b
	return f, nil
}
