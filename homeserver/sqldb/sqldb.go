// Package sqldb runs one set of SQL on SQLite and on PostgreSQL, and makes writes
// that arrive together share a transaction.
//
// Statements are written for both: $1 placeholders, ON CONFLICT, RETURNING, times
// as BIGINT milliseconds, JSON as TEXT. What only one database has is in here.
package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"

	_ "github.com/jackc/pgx/v5/stdlib" // the "pgx" driver: PostgreSQL
	_ "modernc.org/sqlite"             // the "sqlite" driver, in Go, so that the binary is static
)

// DB is a database. Its methods may be called from any goroutine.
type DB struct {
	reads    *sql.DB
	writes   *sql.DB
	postgres bool
	readers  *statements // of reads; nil for PostgreSQL
	writers  *statements // of writes; only the writer's goroutine adds to it

	queue   chan *write
	closing chan struct{} // closed by Close
	stopped chan struct{} // closed when the writer has ended
	writer  sync.WaitGroup
}

// Open connects to "sqlite:PATH" or "postgres://…". The database is durable: a
// write that was answered survives the loss of power.
func Open(ctx context.Context, dsn string) (*DB, error) {
	db := &DB{queue: make(chan *write, maxGroup), closing: make(chan struct{}), stopped: make(chan struct{})}
	var err error
	switch {
	case strings.HasPrefix(dsn, "sqlite:"):
		err = db.openSQLite(strings.TrimPrefix(dsn, "sqlite:"))
	case strings.HasPrefix(dsn, "postgres://"), strings.HasPrefix(dsn, "postgresql://"):
		err = db.openPostgres(dsn)
	default:
		return nil, errors.New(`open database: the address must start with "sqlite:" or "postgres://"`)
	}
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	for _, pool := range []*sql.DB{db.writes, db.reads} {
		if err := pool.PingContext(ctx); err != nil {
			db.closePools()
			return nil, fmt.Errorf("open database: %w", err)
		}
	}
	db.writer.Go(db.write)
	return db, nil
}

func (db *DB) openSQLite(path string) error {
	pragmas := url.Values{"_pragma": {"journal_mode(WAL)", "synchronous(FULL)", "busy_timeout(10000)", "foreign_keys(ON)", "cache_size(-8000)", "temp_store(MEMORY)", "wal_autocheckpoint(4000)"}}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) // secrets are in it; its companions get the same mode
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + pragmas.Encode()
	if db.writes, err = sql.Open("sqlite", dsn+"&_txlock=immediate"); err != nil {
		return err
	}
	db.writes.SetMaxOpenConns(1)
	if db.reads, err = sql.Open("sqlite", dsn+"&_pragma=query_only(ON)"); err != nil {
		return err
	}
	readers := max(4, runtime.NumCPU())
	db.reads.SetMaxOpenConns(readers)
	db.reads.SetMaxIdleConns(readers)
	db.readers, db.writers = newStatements(db.reads), newStatements(db.writes)
	return nil
}

func (db *DB) openPostgres(dsn string) error {
	db.postgres = true
	pool, err := sql.Open("pgx", dsn)
	if err != nil {
		return err
	}
	pool.SetMaxOpenConns(16)
	pool.SetMaxIdleConns(16)
	db.reads = pool
	if db.writes, err = sql.Open("pgx", dsn); err != nil {
		return err
	}
	db.writes.SetMaxOpenConns(1)
	return nil
}

// Close waits for writes that were taken and disconnects.
func (db *DB) Close() error {
	close(db.closing)
	db.writer.Wait()
	return db.closePools()
}

func (db *DB) closePools() error {
	db.readers.close()
	db.writers.close()
	return errors.Join(db.reads.Close(), db.writes.Close())
}

// Query runs a query outside of a transaction.
func (db *DB) Query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if s := db.readers.get(ctx, query); s != nil {
		return s.QueryContext(ctx, args...)
	}
	return db.reads.QueryContext(ctx, query, args...)
}

// QueryRow is Query for one row.
func (db *DB) QueryRow(ctx context.Context, query string, args ...any) *sql.Row {
	if s := db.readers.get(ctx, query); s != nil {
		return s.QueryRowContext(ctx, args...)
	}
	return db.reads.QueryRowContext(ctx, query, args...)
}

// Each runs a query and calls f for every row, with a function that scans it.
func (db *DB) Each(ctx context.Context, f func(scan func(...any) error) error, query string, args ...any) error {
	rows, err := db.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	return each(rows, f)
}

func each(rows *sql.Rows, f func(scan func(...any) error) error) error {
	defer rows.Close()
	for rows.Next() {
		if err := f(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// In is the text "($first,$first+1,…)" of n placeholders.
func In(first, n int) string {
	var b strings.Builder
	b.WriteByte('(')
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "$%d", first+i)
	}
	b.WriteByte(')')
	return b.String()
}

// Args turns a list into arguments of a query.
func Args[T any](list []T) []any {
	out := make([]any, len(list))
	for i, v := range list {
		out[i] = v
	}
	return out
}
