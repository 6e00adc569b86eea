package sqldb

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/gjallar-im/gjallar/homeserver/hstest/postgres"
)

var schema = fstest.MapFS{"0001_test.sql": {Data: []byte(`
CREATE TABLE stream_position (pos BIGINT NOT NULL);
INSERT INTO stream_position VALUES (0);
CREATE TABLE item (k TEXT PRIMARY KEY, pos BIGINT NOT NULL);
`)}}

var item = &Insert{Table: "item", Columns: []string{"k", "pos"}}

// both runs a test on SQLite and on PostgreSQL.
func both(t *testing.T, f func(t *testing.T, db *DB)) {
	for name, dsn := range map[string]func(testing.TB) string{
		"SQLite":     func(tb testing.TB) string { return "sqlite:" + filepath.Join(tb.TempDir(), "a b?.db") },
		"PostgreSQL": postgres.Start,
	} {
		t.Run(name, func(t *testing.T) { f(t, open(t, dsn(t))) })
	}
}

func open(tb testing.TB, dsn string) *DB {
	db, err := Open(tb.Context(), dsn)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { db.Close() })
	for range 2 { // the second time there is nothing to do
		if err := db.Migrate(tb.Context(), "test", schema); err != nil {
			tb.Fatal(err)
		}
	}
	return db
}

func put(key string) func(*Tx) error {
	return func(tx *Tx) error {
		pos, err := tx.NextPos(1)
		tx.Queue(item, key, pos)
		return err
	}
}

func count(t *testing.T, db *DB) (n int) {
	if err := db.QueryRow(t.Context(), `SELECT count(*) FROM item`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestConcurrentWritesAreAllThereAndOrdered(t *testing.T) {
	both(t, func(t *testing.T, db *DB) {
		const n = 300
		var mu sync.Mutex
		var told []int64
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				err := db.Write(t.Context(), func(tx *Tx) error {
					pos, err := tx.NextPos(1)
					tx.Queue(item, fmt.Sprint(i), pos)
					tx.OnCommit(func() { mu.Lock(); told = append(told, pos); mu.Unlock() })
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got := count(t, db); got != n {
			t.Errorf("%d rows, want %d", got, n)
		}
		if !slices.IsSorted(told) || len(told) != n || told[n-1] != n {
			t.Errorf("positions were told as %v", told)
		}
	})
}

func TestOneFailureOfAGroupDoesNotHurtTheOthers(t *testing.T) {
	both(t, func(t *testing.T, db *DB) {
		refused := errors.New("refused")
		answers := []func() error{
			db.Go(put("a")),
			db.Go(func(tx *Tx) error { put("b")(tx); return refused }),
			db.Go(func(tx *Tx) error { panic("oops") }),
			db.Go(put("a")), // violates the key when it is flushed
			db.Go(put("c")),
		}
		var errs []error
		for _, a := range answers {
			errs = append(errs, a())
		}
		if errs[0] != nil || errs[4] != nil || !errors.Is(errs[1], refused) || errs[2] == nil || errs[3] == nil {
			t.Errorf("%v", errs)
		}
		if got := count(t, db); got != 2 {
			t.Errorf("%d rows, want 2", got)
		}
	})
}

func TestARolledBackPositionIsUsedAgain(t *testing.T) {
	both(t, func(t *testing.T, db *DB) {
		db.Write(t.Context(), func(tx *Tx) error { put("a")(tx); return errors.New("no") })
		if err := db.Write(t.Context(), put("b")); err != nil {
			t.Fatal(err)
		}
		var pos int64
		if err := db.QueryRow(t.Context(), `SELECT pos FROM item`).Scan(&pos); err != nil || pos != 1 {
			t.Errorf("position %d, %v", pos, err)
		}
	})
}

func TestAWriteAfterCloseIsRefused(t *testing.T) {
	db, err := Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	if err := db.Write(t.Context(), put("a")); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestWritesGoOnWhenPostgreSQLComesBack(t *testing.T) {
	c := postgres.New(t)
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	db := open(t, c.DSN("postgres"))
	if err := db.Write(t.Context(), put("before")); err != nil {
		t.Fatal(err)
	}
	c.Kill()
	if err := db.Write(t.Context(), put("lost")); err == nil {
		t.Error("a write without a database was acknowledged")
	}
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	if err := db.Write(t.Context(), put("after")); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	if got := count(t, db); got != 2 {
		t.Errorf("%d rows, want 2", got)
	}
}

func BenchmarkWrite(b *testing.B) {
	for name, dsn := range map[string]func(testing.TB) string{
		"SQLite":     func(tb testing.TB) string { return "sqlite:" + filepath.Join(tb.TempDir(), "b.db") },
		"PostgreSQL": postgres.Start,
	} {
		for _, writers := range []int{1, 16, 128} {
			b.Run(fmt.Sprintf("%s/%d", name, writers), func(b *testing.B) {
				db := open(b, dsn(b))
				b.SetParallelism(writers / 2)
				var n sync.Mutex
				i := 0
				b.RunParallel(func(p *testing.PB) {
					for p.Next() {
						n.Lock()
						i++
						key := fmt.Sprint(i)
						n.Unlock()
						if err := db.Write(b.Context(), put(key)); err != nil {
							b.Error(err)
						}
					}
				})
			})
		}
	}
}
