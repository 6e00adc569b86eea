package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/hstest/postgres"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

const (
	alice = matrix.UserID("@alice:test")
	bob   = matrix.UserID("@bob:test")
)

// onBoth runs a test on SQLite and on PostgreSQL.
func onBoth(t *testing.T, f func(t *testing.T, s *Store)) {
	for name, dsn := range map[string]func(testing.TB) string{
		"SQLite":     func(tb testing.TB) string { return "sqlite:" + filepath.Join(tb.TempDir(), "test.db") },
		"PostgreSQL": postgres.Start,
	} {
		t.Run(name, func(t *testing.T) {
			db, err := sqldb.Open(t.Context(), dsn(t))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			s, err := Open(t.Context(), db)
			if err != nil {
				t.Fatal(err)
			}
			f(t, s)
		})
	}
}

func write(t *testing.T, s *Store, f func(tx *sqldb.Tx) error) {
	t.Helper()
	if err := s.Write(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

// same fails the test unless got, with its error, is want.
func same[T any](t *testing.T, what string, want T) func(got T, err error) {
	return func(got T, err error) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, %v; want %v", what, got, err, want)
		}
	}
}

func device(t *testing.T, s *Store, u matrix.UserID, ids ...matrix.DeviceID) {
	t.Helper()
	write(t, s, func(tx *sqldb.Tx) error {
		for _, id := range ids {
			if err := s.PutDevice(tx, u, id, "name of "+string(id)); err != nil {
				return err
			}
		}
		return nil
	})
}

func TestToDeviceMessagesWaitUntilTheyAreAcknowledged(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		device(t, s, alice, "A", "B")
		var last Pos
		write(t, s, func(tx *sqldb.Tx) (err error) {
			last, _, err = s.SendToDevice(tx, bob, "m.test", []ToDeviceTarget{
				{alice, "A", json.RawMessage(`{"n":1}`)},
				{alice, "*", json.RawMessage(`{"n":2}`)},
				{alice, "gone", json.RawMessage(`{"n":3}`)},
				{bob, "*", json.RawMessage(`{"n":4}`)},
			})
			return err
		})
		got, err := s.ToDevice(t.Context(), alice, "A", 0, last, 10)
		if err != nil || len(got) != 2 || string(got[0].Content) != `{"n":1}` || string(got[1].Content) != `{"n":2}` || got[0].Sender != bob || got[0].Type != "m.test" {
			t.Fatalf("%+v, %v", got, err)
		}
		if first, err := s.ToDevice(t.Context(), alice, "A", 0, last, 1); err != nil || len(first) != 1 || first[0].Pos != got[0].Pos {
			t.Errorf("with a limit: %+v, %v", first, err)
		}
		if err := s.DeleteToDevice(t.Context(), alice, "A", got[0].Pos); err != nil {
			t.Fatal(err)
		}
		if rest, err := s.ToDevice(t.Context(), alice, "A", 0, last, 10); err != nil || len(rest) != 1 || rest[0].Pos != got[1].Pos {
			t.Errorf("after the first is acknowledged: %+v, %v", rest, err)
		}
		if other, err := s.ToDevice(t.Context(), alice, "B", 0, last, 10); err != nil || len(other) != 1 {
			t.Errorf("of the other device: %+v, %v", other, err)
		}
		if none, err := s.ToDevice(t.Context(), bob, "gone", 0, last, 10); err != nil || len(none) != 0 {
			t.Errorf("of a device that is not there: %+v, %v", none, err)
		}
	})
}

func TestADeletedDeviceLeavesNothingButTheNoteOfItsChange(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		device(t, s, alice, "A")
		device(t, s, bob, "B")
		var told []matrix.UserID
		s.OnChange = func(_ Pos, _ []matrix.RoomID, users []matrix.UserID) { told = append(told, users...) }
		write(t, s, func(tx *sqldb.Tx) error {
			if _, err := s.PutDeviceKeys(tx, alice, "A", json.RawMessage(`{"k":1}`)); err != nil {
				return err
			}
			if err := s.PutFallbackKey(tx, alice, "A", OneTimeKey{"x", "f", json.RawMessage(`"f"`)}); err != nil {
				return err
			}
			_, _, err := s.SendToDevice(tx, bob, "m.test", []ToDeviceTarget{{alice, "A", json.RawMessage(`{}`)}})
			return err
		})
		before, _ := s.Position(t.Context())
		write(t, s, func(tx *sqldb.Tx) error {
			return errors.Join(s.DeleteDevice(tx, alice, "A"), s.DeleteDevice(tx, bob, "B"))
		})
		after, _ := s.Position(t.Context())

		// bob had no keys, so nobody could know of his device.
		same(t, "changes", []matrix.UserID{alice})(s.DeviceChanges(t.Context(), before, after))
		if !slices.Equal(told, []matrix.UserID{alice}) {
			t.Errorf("told of %v", told)
		}
		if keys, err := s.DeviceKeys(t.Context(), []matrix.UserID{alice}); err != nil || len(keys) != 0 {
			t.Errorf("keys: %v, %v", keys, err)
		}
		if list, err := s.ToDevice(t.Context(), alice, "A", 0, after, 10); err != nil || len(list) != 0 {
			t.Errorf("messages: %v, %v", list, err)
		}
		if counts, unused, err := s.KeyCounts(t.Context(), alice, "A"); err != nil || len(unused) != 0 || len(counts) != 1 {
			t.Errorf("counts: %v, %v, %v", counts, unused, err)
		}
		if list, err := s.DeviceChanges(t.Context(), after, after+10); err != nil || len(list) != 0 {
			t.Errorf("later changes: %v, %v", list, err)
		}
	})
}

func TestNoOneTimeKeyIsClaimedTwice(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		const keys, claims = 20, 50
		for i := range keys {
			write(t, s, func(tx *sqldb.Tx) error {
				return s.AddOneTimeKeys(tx, alice, "A", []OneTimeKey{{"signed_curve25519", fmt.Sprintf("k%02d", keys-i), json.RawMessage(fmt.Sprint(i))}})
			})
		}
		write(t, s, func(tx *sqldb.Tx) error {
			return s.PutFallbackKey(tx, alice, "A", OneTimeKey{"signed_curve25519", "fallback", json.RawMessage(`"f"`)})
		})
		if counts, unused, err := s.KeyCounts(t.Context(), alice, "A"); err != nil || counts["signed_curve25519"] != keys || !slices.Equal(unused, []string{"signed_curve25519"}) {
			t.Errorf("before: %v, %v, %v", counts, unused, err)
		}
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		for range claims {
			wg.Go(func() {
				err := s.Write(t.Context(), func(tx *sqldb.Tx) error {
					k, err := s.ClaimKey(tx, alice, "A", "signed_curve25519")
					if err != nil {
						return err
					}
					tx.OnCommit(func() { mu.Lock(); order = append(order, k.ID); mu.Unlock() })
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for i, id := range order {
			want := "fallback"
			if i < keys {
				want = fmt.Sprintf("k%02d", keys-i)
			}
			if id != want {
				t.Errorf("claim %d gave %s, want %s", i, id, want)
			}
		}
		if len(order) != claims {
			t.Errorf("%d claims", len(order))
		}
		if counts, unused, err := s.KeyCounts(t.Context(), alice, "A"); err != nil || counts["signed_curve25519"] != 0 || len(unused) != 0 {
			t.Errorf("after: %v, %v, %v", counts, unused, err)
		}
		err := s.Write(t.Context(), func(tx *sqldb.Tx) error { _, err := s.ClaimKey(tx, alice, "A", "other"); return err })
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("claim of an unknown algorithm: %v", err)
		}
	})
}

func TestAOneTimeKeyMayBeUploadedAgainButNotChanged(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		add := func(content string) error {
			return s.Write(t.Context(), func(tx *sqldb.Tx) error {
				return s.AddOneTimeKeys(tx, alice, "A", []OneTimeKey{{"x", "1", json.RawMessage(content)}})
			})
		}
		if err := errors.Join(add(`"a"`), add(`"a"`)); err != nil {
			t.Error(err)
		}
		if err := add(`"b"`); !errors.Is(err, ErrKeyExists) {
			t.Errorf("other content: %v", err)
		}
	})
}

func TestAFallbackKeyStaysUsedUntilThereIsAnother(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		put := func(id string) {
			write(t, s, func(tx *sqldb.Tx) error {
				return s.PutFallbackKey(tx, alice, "A", OneTimeKey{"x", id, json.RawMessage(`"` + id + `"`)})
			})
		}
		unused := func() int {
			_, list, err := s.KeyCounts(t.Context(), alice, "A")
			if err != nil {
				t.Fatal(err)
			}
			return len(list)
		}
		put("1")
		write(t, s, func(tx *sqldb.Tx) error { _, err := s.ClaimKey(tx, alice, "A", "x"); return err })
		if put("1"); unused() != 0 {
			t.Error("the same key again counts as unused")
		}
		if put("2"); unused() != 1 {
			t.Error("a new key counts as used")
		}
	})
}

func TestPresenceChanges(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		set := func(p Presence) (pos Pos) {
			write(t, s, func(tx *sqldb.Tx) (err error) { pos, err = s.SetPresence(tx, p); return err })
			return pos
		}
		first := set(Presence{User: alice, State: "online", LastActive: 5, CurrentlyActive: true})
		second := set(Presence{User: bob, State: "offline", StatusMsg: "away"})
		third := set(Presence{User: alice, State: "unavailable"})
		same(t, "between", []Presence{{User: bob, State: "offline", StatusMsg: "away", Pos: second}})(s.PresenceChanges(t.Context(), first, second))
		if list, err := s.PresenceChanges(t.Context(), 0, third); err != nil || len(list) != 2 || list[1].User != alice || list[1].Pos != third {
			t.Errorf("%+v, %v", list, err)
		}
		if _, err := s.Presence(t.Context(), "@nobody:test"); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
	})
}

// BenchmarkSyncReads is what each /sync of a device without news asks for.
func BenchmarkSyncReads(b *testing.B) {
	for name, dsn := range map[string]func(testing.TB) string{
		"SQLite":     func(tb testing.TB) string { return "sqlite:" + filepath.Join(tb.TempDir(), "test.db") },
		"PostgreSQL": postgres.Start,
	} {
		b.Run(name, func(b *testing.B) {
			db, err := sqldb.Open(b.Context(), dsn(b))
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { db.Close() })
			s, err := Open(b.Context(), db)
			if err != nil {
				b.Fatal(err)
			}
			err = s.Write(b.Context(), func(tx *sqldb.Tx) error {
				for i := range 1000 {
					u := matrix.UserID(fmt.Sprintf("@u%d:test", i))
					var keys []OneTimeKey
					for n := range 50 {
						keys = append(keys, OneTimeKey{"signed_curve25519", fmt.Sprint(n), json.RawMessage(`{"key":"k"}`)})
					}
					if err := errors.Join(s.PutDevice(tx, u, "A", ""), s.AddOneTimeKeys(tx, u, "A", keys), s.DevicesChanged(tx, u)); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
			now, err := s.Position(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				_, err1 := s.ToDevice(b.Context(), "@u500:test", "A", now, now, 100)
				_, _, err2 := s.KeyCounts(b.Context(), "@u500:test", "A")
				_, err3 := s.DeviceChanges(b.Context(), now, now)
				_, err4 := s.PresenceChanges(b.Context(), now, now)
				if err := errors.Join(err1, err2, err3, err4); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
