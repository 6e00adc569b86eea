package xmpp

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/gjallar-im/gjallar/backends"
)

// maxKnown is how many messages of a chat we know the IDs of.
const maxKnown = 500

// known is a message as others may refer to it.
type known struct {
	ID        backends.MessageID  `json:"id"`
	Ref       string              `json:"ref,omitempty"`  // the stanza's id attribute, which corrections refer to
	From      string              `json:"from,omitempty"` // UserID or AccountID
	Reactions map[string][]string `json:"reactions,omitempty"`
}

// ids knows the newest messages of a chat. XMPP's references need it: to the id
// attribute in corrections, to the whole set in reactions. It is a cache, stored
// now and then; what it has forgotten can only not be corrected any more.
type ids struct {
	mu    sync.Mutex
	list  []*known                      // oldest first; guarded by mu
	byID  map[backends.MessageID]*known // guarded by mu
	byRef map[[2]string]*known          // by From and Ref; guarded by mu
	dirty bool                          // guarded by mu
}

func newIDs() *ids {
	return &ids{byID: map[backends.MessageID]*known{}, byRef: map[[2]string]*known{}}
}

// add remembers a message; one that is known is left as it is.
func (x *ids) add(id backends.MessageID, ref, from string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if k := x.byID[id]; k != nil && k.Ref != "" {
		return
	}
	k := x.entryLocked(id)
	k.Ref, k.From = ref, from
	x.byRef[[2]string{from, ref}] = k
}

func (x *ids) entryLocked(id backends.MessageID) *known {
	x.dirty = true
	if k := x.byID[id]; k != nil {
		return k
	}
	k := &known{ID: id}
	x.list = append(x.list, k)
	x.byID[id] = k
	if len(x.list) > maxKnown {
		old := x.list[0]
		x.list = slices.Delete(x.list, 0, 1)
		delete(x.byID, old.ID)
		if x.byRef[[2]string{old.From, old.Ref}] == old {
			delete(x.byRef, [2]string{old.From, old.Ref})
		}
	}
	return k
}

// get returns what is known of a message.
func (x *ids) get(id backends.MessageID) (known, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if k := x.byID[id]; k != nil {
		return *k, true
	}
	return known{}, false
}

// of finds a message by its sender and id attribute.
func (x *ids) of(from, ref string) (backends.MessageID, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if k := x.byRef[[2]string{from, ref}]; k != nil {
		return k.ID, true
	}
	return "", false
}

// resolve returns the ID of the message that a reference means: itself, or that of
// the newest message with this id attribute.
func (x *ids) resolve(ref string) string {
	x.mu.Lock()
	defer x.mu.Unlock()
	if ref == "" || x.byID[backends.MessageID(ref)] != nil {
		return ref
	}
	for _, k := range slices.Backward(x.list) {
		if k.Ref == ref {
			return string(k.ID)
		}
	}
	return ref
}

// setReactions replaces the reactions of a sender and says what that changed.
func (x *ids) setReactions(id backends.MessageID, from string, keys []string) (added, removed []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	k := x.entryLocked(id)
	was := k.Reactions[from]
	for _, key := range keys {
		if !slices.Contains(was, key) && !slices.Contains(added, key) {
			added = append(added, key)
		}
	}
	for _, key := range was {
		if !slices.Contains(keys, key) {
			removed = append(removed, key)
		}
	}
	x.putLocked(k, from, keys)
	return added, removed
}

// toggleReaction adds or removes one reaction and returns the sender's whole set.
func (x *ids) toggleReaction(id backends.MessageID, from, key string, remove bool) []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	k := x.entryLocked(id)
	set := slices.DeleteFunc(slices.Clone(k.Reactions[from]), func(s string) bool { return s == key })
	if !remove {
		set = append(set, key)
	}
	x.putLocked(k, from, set)
	return set
}

func (x *ids) putLocked(k *known, from string, set []string) {
	if k.Reactions == nil {
		k.Reactions = map[string][]string{}
	}
	if len(set) == 0 {
		delete(k.Reactions, from)
		return
	}
	k.Reactions[from] = set
}

// encode returns all that is known if it has changed since the last call.
func (x *ids) encode() ([]byte, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.dirty {
		return nil, false
	}
	x.dirty = false
	b, err := json.Marshal(x.list)
	return b, err == nil
}

func (x *ids) decode(b []byte) {
	var list []*known
	if json.Unmarshal(b, &list) != nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, k := range list {
		if k != nil && x.byID[k.ID] == nil {
			x.list = append(x.list, k)
			x.byID[k.ID] = k
			x.byRef[[2]string{k.From, k.Ref}] = k
		}
	}
}

// idsOf returns what is known of a chat's messages.
func (n *network) idsOf(ctx context.Context, chat backends.ChatKey) *ids {
	n.mu.Lock()
	x := n.ids[chat]
	n.mu.Unlock()
	if x != nil {
		return x
	}
	b, err := n.host.Store().Get(ctx, idsKey(chat))
	if err != nil {
		n.log.Warn("cannot read known messages", "chat", chat.Chat, "err", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if x := n.ids[chat]; x != nil {
		return x
	}
	x = newIDs()
	x.decode(b)
	n.ids[chat] = x
	return x
}

func idsKey(chat backends.ChatKey) string { return fmt.Sprintf("ids/%s/%s", chat.Account, chat.Chat) }

// storeIDs writes what has changed.
func (n *network) storeIDs(ctx context.Context) {
	n.mu.Lock()
	changed := map[backends.ChatKey][]byte{}
	for chat, x := range n.ids {
		if b, ok := x.encode(); ok {
			changed[chat] = b
		}
	}
	n.mu.Unlock()
	for chat, b := range changed {
		if err := n.host.Store().Put(ctx, idsKey(chat), b); err != nil {
			n.log.Warn("cannot store known messages", "chat", chat.Chat, "err", err)
		}
	}
}
