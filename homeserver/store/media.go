package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// Media is a file that was uploaded, or is going to be.
type Media struct {
	Origin      matrix.ServerName
	ID          string
	User        matrix.UserID
	Created     int64  // ms
	File        string // name on disk; "" until the content has been uploaded
	ContentType string
	Name        string // as the uploader called it, "" if they did not
	Size        int64  // bytes
}

// InsertMedia notes a file, or that one is going to be uploaded.
func (s *Store) InsertMedia(tx *sqldb.Tx, m Media) error {
	_, err := tx.Exec(`INSERT INTO media (origin, media_id, user_id, created, file, content_type, name, size) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		m.Origin, m.ID, m.User, m.Created, optional(m.File), m.ContentType, m.Name, m.Size)
	return err
}

// FillMedia notes the content of a file that was announced. It reports false, and
// does nothing, if it has some already.
func (s *Store) FillMedia(tx *sqldb.Tx, m Media) (bool, error) {
	result, err := tx.Exec(`UPDATE media SET file = $1, content_type = $2, name = $3, size = $4 WHERE origin = $5 AND media_id = $6 AND file IS NULL`,
		m.File, m.ContentType, m.Name, m.Size, m.Origin, m.ID)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n == 1, err
}

// Media returns a file; [ErrNotFound] if there is none.
func (s *Store) Media(ctx context.Context, origin matrix.ServerName, id string) (*Media, error) {
	m := Media{Origin: origin, ID: id}
	var file sql.NullString
	err := s.QueryRow(ctx, `SELECT user_id, created, file, content_type, name, size FROM media WHERE origin = $1 AND media_id = $2`, origin, id).
		Scan(&m.User, &m.Created, &file, &m.ContentType, &m.Name, &m.Size)
	m.File = file.String
	if err != nil {
		return nil, fmt.Errorf("media %s: %w", id, one(err))
	}
	return &m, nil
}

// PendingMedia returns how many files a user has announced since a time (ms) that
// have no content yet.
func (s *Store) PendingMedia(ctx context.Context, user matrix.UserID, since int64) (n int, err error) {
	err = s.QueryRow(ctx, `SELECT count(*) FROM media WHERE user_id = $1 AND created > $2 AND file IS NULL`, user, since).Scan(&n)
	return n, err
}
