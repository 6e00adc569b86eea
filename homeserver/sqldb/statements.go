package sqldb

import (
	"context"
	"database/sql"
	"sync"
)

// maxStatements is how many are kept prepared. Queries are constants of the program
// but for the lengths of their lists.
const maxStatements = 512

// statements keeps what SQLite has compiled: compiling a small query takes longer
// than running it. (The driver of PostgreSQL does this by itself.) A nil one keeps
// nothing.
type statements struct {
	pool *sql.DB

	mu     sync.RWMutex
	byText map[string]*sql.Stmt // guarded by mu
}

func newStatements(pool *sql.DB) *statements {
	return &statements{pool: pool, byText: map[string]*sql.Stmt{}}
}

// prepared returns a statement if it is kept.
func (s *statements) prepared(query string) *sql.Stmt {
	if s == nil {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byText[query]
}

// get returns a statement, prepared now if need be; nil if it cannot be kept, in
// which case the query is run as it is and tells what is wrong.
func (s *statements) get(ctx context.Context, query string) *sql.Stmt {
	if st := s.prepared(query); st != nil || s == nil {
		return st
	}
	s.mu.RLock()
	full := len(s.byText) >= maxStatements
	s.mu.RUnlock()
	if full {
		return nil
	}
	st, err := s.pool.PrepareContext(ctx, query)
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.byText[query]; other != nil {
		st.Close()
		return other
	}
	s.byText[query] = st
	return st
}

func (s *statements) close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.byText {
		st.Close()
	}
	clear(s.byText)
}
