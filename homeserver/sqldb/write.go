package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// maxGroup is how many writes share a transaction at the most.
const maxGroup = 256

// ErrClosed is the error of a write after Close.
var ErrClosed = errors.New("database is closed")

// write is a function waiting for its turn.
type write struct {
	ctx  context.Context
	fn   func(*Tx) error
	done chan error
}

// Write runs fn in a transaction and returns once that is durable. Functions that
// arrive while another transaction commits share the next one.
//
// fn may run more than once: when a function of its group fails, the group is
// rolled back and each runs again alone. It must have no effects but on tx, and
// must not keep it. An error of fn undoes what it did, and is returned as it is.
func (db *DB) Write(ctx context.Context, fn func(*Tx) error) error {
	w := &write{ctx, fn, make(chan error, 1)}
	select {
	case db.queue <- w:
	case <-ctx.Done():
		return ctx.Err()
	case <-db.closing:
		return ErrClosed
	}
	// Once taken, a write is carried out whatever becomes of ctx: its outcome is
	// what the caller has to know.
	select {
	case err := <-w.done:
		return err
	case <-db.stopped:
		return db.late(w)
	}
}

// late is the outcome of a write that was handed in while the database closed.
func (db *DB) late(w *write) error {
	select {
	case err := <-w.done:
		return err
	default:
		return ErrClosed
	}
}

// Go is Write that returns at once, so that a caller can have several writes under
// way, which are carried out in order. The returned function waits for the outcome;
// it is to be called once.
func (db *DB) Go(fn func(*Tx) error) func() error {
	w := &write{context.Background(), fn, make(chan error, 1)}
	select {
	case db.queue <- w:
	case <-db.closing:
		w.done <- ErrClosed
	}
	return func() error {
		select {
		case err := <-w.done:
			return err
		case <-db.stopped:
			return db.late(w)
		}
	}
}

// write is the goroutine that makes all transactions.
func (db *DB) write() {
	defer close(db.stopped)
	group := make([]*write, 0, maxGroup)
	for {
		group = group[:0]
		select {
		case w := <-db.queue:
			group = append(group, w)
		case <-db.closing:
			select {
			case w := <-db.queue:
				group = append(group, w)
			default:
				return
			}
		}
	gather:
		for len(group) < maxGroup {
			select {
			case w := <-db.queue:
				group = append(group, w)
			default:
				break gather
			}
		}
		db.commit(group)
	}
}

// commit carries out a group, together if that works and one by one if not.
func (db *DB) commit(group []*write) {
	if err := db.attempt(group); err == nil || len(group) == 1 {
		for _, w := range group {
			w.done <- err
		}
		return
	}
	for _, w := range group {
		w.done <- db.attempt([]*write{w})
	}
}

// attempt runs a group in one transaction. What another process's transaction got
// in the way of is tried again.
func (db *DB) attempt(group []*write) error {
	for try := 0; ; try++ {
		err := db.once(group)
		if err == nil || try == 5 || !passing(err) {
			return err
		}
		time.Sleep(time.Duration(1<<try) * time.Millisecond)
	}
}

// passing reports whether an error means only that transactions got in each
// other's way, and nothing was done.
func passing(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (e.Code == "40001" || e.Code == "40P01") // serialization_failure, deadlock_detected
}

// BadText reports whether a statement failed because of text with a NUL, or that is
// no UTF-8, which PostgreSQL does not hold.
func BadText(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.Code == "22021" // character_not_in_repertoire
}

func (db *DB) once(group []*write) (err error) {
	ctx := context.Background()
	inner, err := db.writes.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	tx := &Tx{tx: inner, db: db}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("write panicked: %v", p)
		}
		if err != nil {
			inner.Rollback()
		}
	}()
	for _, w := range group {
		tx.ctx = w.ctx
		if len(group) > 1 {
			tx.ctx = ctx // one caller's giving up must not fail the others
		}
		if err := w.fn(tx); err != nil {
			return err
		}
	}
	tx.ctx = ctx
	if err := tx.flush(); err != nil {
		return err
	}
	if err := inner.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	for _, f := range tx.after {
		f()
	}
	for _, query := range tx.unprepared {
		db.writers.get(ctx, query)
	}
	return nil
}

// Tx is a transaction of one or more writes.
type Tx struct {
	tx    *sql.Tx
	db    *DB
	ctx   context.Context
	after []func()

	unprepared []string // statements that were run without being kept
	queued     []*queuedRows
	pos        int64 // the last position handed out, 0 if none was
}

// Exec runs a statement now. Rows queued before are not yet there.
func (tx *Tx) Exec(query string, args ...any) (sql.Result, error) {
	if s := tx.prepared(query); s != nil {
		return s.ExecContext(tx.ctx, args...)
	}
	return tx.tx.ExecContext(tx.ctx, query, args...)
}

// QueryRow runs a query for one row.
func (tx *Tx) QueryRow(query string, args ...any) *sql.Row {
	if s := tx.prepared(query); s != nil {
		return s.QueryRowContext(tx.ctx, args...)
	}
	return tx.tx.QueryRowContext(tx.ctx, query, args...)
}

// Each runs a query and calls f for every row, with a function that scans it.
func (tx *Tx) Each(f func(scan func(...any) error) error, query string, args ...any) error {
	run := func() (*sql.Rows, error) { return tx.tx.QueryContext(tx.ctx, query, args...) }
	if s := tx.prepared(query); s != nil {
		run = func() (*sql.Rows, error) { return s.QueryContext(tx.ctx, args...) }
	}
	rows, err := run()
	if err != nil {
		return err
	}
	return each(rows, f)
}

// prepared returns a statement if it is kept. One that is not will be after the
// transaction, which holds the only connection.
func (tx *Tx) prepared(query string) *sql.Stmt {
	if tx.db.writers == nil {
		return nil
	}
	s := tx.db.writers.prepared(query)
	if s == nil {
		tx.unprepared = append(tx.unprepared, query)
		return nil
	}
	return tx.tx.StmtContext(tx.ctx, s)
}

// OnCommit makes f run after the commit, in the order of the calls and of the
// transactions, before any writer is answered. It must not block.
func (tx *Tx) OnCommit(f func()) { tx.after = append(tx.after, f) }

// Insert is a statement that rows are queued for.
type Insert struct {
	Table   string
	Columns []string
	// Conflict is what follows the rows, such as "ON CONFLICT DO NOTHING".
	Conflict string
}

type queuedRows struct {
	insert *Insert
	args   []any
	at     map[string]int // where the row of a key begins, with QueueLast
}

// Queue adds a row to those that are written just before the commit, together with
// the rows that others queue for the same insert, in order. Inserts are written in
// the order in which each was first queued for.
func (tx *Tx) Queue(insert *Insert, row ...any) {
	if len(row) != len(insert.Columns) {
		panic(fmt.Sprintf("sqldb: a row of %d values for %d columns of %s", len(row), len(insert.Columns), insert.Table))
	}
	q := tx.rowsFor(insert)
	q.args = append(q.args, row...)
}

// QueueLast is Queue for an insert that updates on conflict: a row takes the place
// of one that was queued for the same key before, as a statement may not touch a
// row twice.
func (tx *Tx) QueueLast(insert *Insert, key string, row ...any) {
	q := tx.rowsFor(insert)
	if at, ok := q.at[key]; ok {
		copy(q.args[at:], row)
		return
	}
	if q.at == nil {
		q.at = map[string]int{}
	}
	q.at[key] = len(q.args)
	tx.Queue(insert, row...)
}

func (tx *Tx) rowsFor(insert *Insert) *queuedRows {
	for _, q := range tx.queued {
		if q.insert == insert {
			return q
		}
	}
	q := &queuedRows{insert: insert}
	tx.queued = append(tx.queued, q)
	return q
}

// maxArgs bounds the placeholders of a statement.
const maxArgs = 4096

// flush writes what was queued, in chunks whose sizes are powers of two, so that
// few different statements are made and the drivers keep them prepared.
func (tx *Tx) flush() error {
	if tx.pos > 0 {
		if _, err := tx.Exec(`UPDATE stream_position SET pos = $1`, tx.pos); err != nil {
			return fmt.Errorf("advance stream position: %w", err)
		}
	}
	for _, q := range tx.queued {
		width := len(q.insert.Columns)
		for rest := q.args; len(rest) > 0; {
			n := 1
			for 2*n*width <= min(len(rest), maxArgs) {
				n *= 2
			}
			if _, err := tx.Exec(q.insert.Text(n), rest[:n*width]...); err != nil {
				return fmt.Errorf("insert into %s: %w", q.insert.Table, err)
			}
			rest = rest[n*width:]
		}
	}
	return nil
}

// Text is the statement for so many rows.
func (i *Insert) Text(rows int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "INSERT INTO %s (%s) VALUES ", i.Table, strings.Join(i.Columns, ", "))
	for r := range rows {
		if r > 0 {
			b.WriteByte(',')
		}
		b.WriteString(In(1+r*len(i.Columns), len(i.Columns)))
	}
	b.WriteByte(' ')
	b.WriteString(i.Conflict)
	return b.String()
}

// NextPos hands out the next n stream positions and returns the first. The counter
// is a row that stays locked until the commit, so positions become visible in
// their order, whichever process writes.
func (tx *Tx) NextPos(n int64) (int64, error) {
	if tx.pos == 0 {
		query := `SELECT pos FROM stream_position`
		if tx.db.postgres {
			query += ` FOR UPDATE`
		}
		if err := tx.QueryRow(query).Scan(&tx.pos); err != nil {
			return 0, fmt.Errorf("read stream position: %w", err)
		}
	}
	first := tx.pos + 1
	tx.pos += n
	return first, nil
}
