package streams

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

func TestWaitersWakeForWhatConcernsThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(10, 0)
		ctx, cancel := context.WithCancel(t.Context())
		woken := map[string]bool{}
		for name, rooms := range map[string][]matrix.RoomID{"in": {"!a", "!b"}, "out": {"!c"}} {
			go func() { woken[name] = h.Wait(ctx, matrix.UserID("@"+name), rooms, Token{10, 0}) }()
		}
		synctest.Wait()
		h.Notify(11, []matrix.RoomID{"!b"}, nil)
		synctest.Wait()
		if !woken["in"] || len(woken) != 1 {
			t.Errorf("woken: %v", woken)
		}
		cancel()
		synctest.Wait()
		if w, done := woken["out"]; w || !done {
			t.Errorf("the other waiter: %v, %v", w, done)
		}
		if !h.Wait(t.Context(), "@in", []matrix.RoomID{"!b"}, Token{10, 0}) || h.RoomChanged("!b", Token{11, 0}) || !h.RoomChanged("!zzz", Token{9, 0}) {
			t.Error("what changed is remembered wrongly")
		}
		h.NotifyTyping("!a")
		if !h.RoomChanged("!a", Token{11, 0}) || h.RoomChanged("!a", h.Now()) {
			t.Error("typing is remembered wrongly")
		}
		if len(h.users["@in"].waiters)+len(h.rooms["!c"].waiters) > 0 {
			t.Error("a waiter stayed")
		}
	})
}

func FuzzParseToken(f *testing.F) {
	f.Add("s1_2")
	f.Add("s7")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		if again, err := ParseToken(tok.String()); err != nil || again != tok {
			t.Fatalf("%q → %+v → %+v, %v", s, tok, again, err)
		}
	})
}
