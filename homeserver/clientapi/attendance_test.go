package clientapi_test

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/clientapi"
	"github.com/gjallar-im/gjallar/homeserver/hstest"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
	"github.com/gjallar-im/gjallar/homeserver/streams"
)

func TestWhoSyncsIsOnline(t *testing.T) {
	s := hstest.Start(t)
	alice, bob := s.Register("alice"), s.Register("bob")
	room := alice.CreateRoom(map[string]any{"preset": "public_chat"})
	bob.Join(string(room))
	since := alice.Sync("").Str("next_batch")
	bob.Sync("set_presence=offline")
	if out := alice.Sync("since=" + since); out.At("presence") != nil {
		t.Errorf("who syncs as offline is told of: %v", out.At("presence"))
	}
	bob.Sync("")
	out := alice.Sync("timeout=10000&since=" + since)
	if e := out.List("presence", "events"); len(e) != 1 || e[0].Str("sender") != "@bob:test" || e[0].Str("content", "presence") != "online" {
		t.Errorf("presence: %v", e)
	}
	// A newcomer's presence comes with them, though it has not changed.
	carol := s.Register("carol")
	carol.Sync("")
	since = alice.Sync("").Str("next_batch")
	carol.Join(string(room))
	if e := alice.Sync("since="+since).List("presence", "events"); len(e) != 1 || e[0].Str("sender") != "@carol:test" {
		t.Errorf("presence of a newcomer: %v", e)
	}
}

func TestWhoCeasesToSyncGoesOffline(t *testing.T) {
	db, err := sqldb.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	st, err := store.Open(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	p := clientapi.NewPresence(st, streams.NewHub(0, 0), slog.New(slog.DiscardHandler))
	is := func(want string) {
		t.Helper()
		if got, err := st.Presence(t.Context(), "@a:test"); err != nil || got.State != want {
			t.Errorf("presence %+v, %v; want %s", got, err, want)
		}
	}
	end, err := p.Begin(t.Context(), "@a:test", "")
	if err != nil {
		t.Fatal(err)
	}
	is("online")
	p.Sweep(t.Context(), time.Now().Add(time.Hour))
	is("online") // the sync is still under way
	end()
	p.Sweep(t.Context(), time.Now())
	is("online") // it was a moment ago
	p.Sweep(t.Context(), time.Now().Add(time.Minute))
	is("offline")
	end, err = p.Begin(t.Context(), "@a:test", "unavailable")
	if err != nil {
		t.Fatal(err)
	}
	end()
	is("unavailable")
}
