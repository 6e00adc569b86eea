package irc

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/gjallar-im/gjallar/backends"
)

// journal remembers, beyond the life of the process, which messages of a chat were
// begun and which of them the network confirmed. A message that is sent again with
// MaybeSent was not said if it is not in the journal, and was if it is confirmed
// there; only in between nobody can tell.
type journal struct {
	n   *network
	key string

	mu      sync.Mutex
	loaded  bool          // guarded by mu
	entries []begun       // oldest first; guarded by mu
	version int           // counts changes; guarded by mu
	stored  int           // the version in the store; guarded by mu
	writing chan struct{} // closed when the Put under way has ended; nil if none; guarded by mu
}

// begun is a message that was begun.
type begun struct {
	ID  string               `json:"id"` // of the command
	IDs []backends.MessageID `json:"ids,omitempty"`
}

// maxJournal is how many messages of a chat are remembered: more than can be in
// flight at once.
const maxJournal = 2 * laneInFlight

func newJournal(n *network, chat backends.ChatKey) *journal {
	return &journal{n: n, key: fmt.Sprintf("sent/%s/%s", chat.Account, chat.Chat)}
}

// load reads the journal once.
func (j *journal) load(ctx context.Context) error {
	j.mu.Lock()
	loaded := j.loaded
	j.mu.Unlock()
	if loaded {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	raw, err := j.n.host.Store().Get(ctx, j.key)
	if err != nil {
		return fmt.Errorf("read %s: %w", j.key, err)
	}
	var entries []begun
	if raw != nil {
		if err := json.Unmarshal(raw, &entries); err != nil {
			return fmt.Errorf("read %s: %w", j.key, err)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries, j.loaded = entries, true
	return nil
}

// find returns what is known of a command, and whether it was begun.
func (j *journal) find(id string) (begun, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if i := j.index(id); i >= 0 {
		return j.entries[i], true
	}
	return begun{}, false
}

func (j *journal) index(id string) int {
	return slices.IndexFunc(j.entries, func(b begun) bool { return b.ID == id })
}

// begin stores that a message is about to be said. It must not be said after an error.
func (j *journal) begin(ctx context.Context, id string) error {
	j.mu.Lock()
	if j.index(id) < 0 {
		j.entries = append(j.entries, begun{ID: id})
		if len(j.entries) > maxJournal {
			j.entries = slices.Delete(j.entries, 0, 1)
		}
	}
	j.version++
	want := j.version
	j.mu.Unlock()
	return j.save(ctx, want)
}

// end notes the outcome of a message. That it was delivered is stored with the next
// change: the host, which hears of it now, is as quick. That it is to be tried again
// is stored soon, else the repetition would be taken for one of unknown outcome.
func (j *journal) end(id string, r backends.Result) {
	j.mu.Lock()
	i := j.index(id)
	switch {
	case i < 0 || r.Outcome == backends.Uncertain:
	case r.Outcome == backends.Delivered:
		j.entries[i].IDs = r.IDs
	default:
		j.entries = slices.Delete(j.entries, i, i+1)
	}
	j.version++
	want := j.version
	j.mu.Unlock()
	if r.Outcome != backends.Retry {
		return
	}
	j.n.conns.Go(func() {
		if err := j.save(context.WithoutCancel(j.n.ctx), want); err != nil {
			j.n.log.Warn("cannot store the outcome of a message", "err", err)
		}
	})
}

// save returns when the version want, or a later one, is stored. Changes that are
// made while one is written are written together.
func (j *journal) save(ctx context.Context, want int) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	for {
		j.mu.Lock()
		if j.stored >= want {
			j.mu.Unlock()
			return nil
		}
		if writing := j.writing; writing != nil {
			j.mu.Unlock()
			select {
			case <-writing:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		writing, version := make(chan struct{}), j.version
		j.writing = writing
		raw, err := json.Marshal(j.entries)
		j.mu.Unlock()
		if err == nil {
			err = j.n.host.Store().Put(ctx, j.key, raw)
		}
		j.mu.Lock()
		if err == nil {
			j.stored = version
		}
		j.writing = nil
		j.mu.Unlock()
		close(writing)
		if err != nil {
			return fmt.Errorf("write %s: %w", j.key, err)
		}
	}
}
