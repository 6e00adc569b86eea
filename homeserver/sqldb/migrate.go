package sqldb

import (
	"context"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
)

var migrationName = regexp.MustCompile(`^(\d{4})_[a-z0-9_]+\.sql$`)

// Migrate brings the tables of a component up to date: the files NNNN_name.sql of
// fsys that were not applied yet, in order, each in a transaction of its own.
// Several components may share a database.
func (db *DB) Migrate(ctx context.Context, component string, fsys fs.FS) error {
	err := db.Write(ctx, func(tx *Tx) error {
		_, err := tx.Exec(`CREATE TABLE IF NOT EXISTS schema_version (component TEXT NOT NULL, version BIGINT NOT NULL, PRIMARY KEY (component, version))`)
		return err
	})
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	names, err := fs.Glob(fsys, "*.sql")
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		m := migrationName.FindStringSubmatch(name)
		if m == nil {
			return fmt.Errorf("migrate: %s is not named NNNN_name.sql", name)
		}
		version, _ := strconv.Atoi(m[1])
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		if err := db.migrate(ctx, component, version, string(text)); err != nil {
			return fmt.Errorf("migrate %s to %s: %w", component, name, err)
		}
	}
	return nil
}

func (db *DB) migrate(ctx context.Context, component string, version int, text string) error {
	return db.Write(ctx, func(tx *Tx) error {
		if db.postgres { // another process may be starting too
			if _, err := tx.Exec(`LOCK TABLE schema_version IN EXCLUSIVE MODE`); err != nil {
				return err
			}
		}
		var n int
		if err := tx.QueryRow(`SELECT count(*) FROM schema_version WHERE component = $1 AND version = $2`, component, version).Scan(&n); err != nil || n > 0 {
			return err
		}
		if _, err := tx.Exec(text); err != nil {
			return err
		}
		_, err := tx.Exec(`INSERT INTO schema_version (component, version) VALUES ($1, $2)`, component, version)
		return err
	})
}
