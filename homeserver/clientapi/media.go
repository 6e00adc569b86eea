package clientapi

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

// media is the content repository.
//
// A file lies under a random name in MediaDir, never under anything that came from
// outside; the database knows which is which. Names are spread over subfolders by
// their first four characters.
type media struct {
	decoding chan struct{} // holds a token for each picture that is being decoded

	mu     sync.Mutex
	filled chan struct{} // guarded by mu; closed when an announced file got its content
}

// maxDecoding is how many pictures are decoded at once: each takes memory.
const maxDecoding = 2

func (a *api) mediaRoutes() []route {
	m := &media{decoding: make(chan struct{}, maxDecoding), filled: make(chan struct{})}
	return []route{
		{"POST", "/media/v3/upload", user, m.postUpload},
		{"POST", "/media/v1/create", user, m.postCreate},
		{"PUT", "/media/v3/upload/{server}/{mediaID}", user, m.putUpload},
		{"GET", "/v1/media/config", user, m.getConfig},
		{"GET", "/v1/media/download/{server}/{mediaID}", user, m.getDownload},
		{"GET", "/v1/media/download/{server}/{mediaID}/{fileName}", user, m.getDownload},
		{"GET", "/v1/media/thumbnail/{server}/{mediaID}", user, m.getThumbnail},
		{"GET", "/v1/media/preview_url", user, m.getPreview},
		// The endpoints from before media needed a token. We do not freeze them, as
		// the bridge's networks have nothing else that their links could lead to.
		{"GET", "/media/v3/config", user, m.getConfig},
		{"GET", "/media/v3/download/{server}/{mediaID}", anyone, m.getDownload},
		{"GET", "/media/v3/download/{server}/{mediaID}/{fileName}", anyone, m.getDownload},
		{"GET", "/media/v3/thumbnail/{server}/{mediaID}", anyone, m.getThumbnail},
		{"GET", "/media/v3/preview_url", user, m.getPreview},
	}
}

func (m *media) getConfig(a *api, _ *request) (any, error) {
	return map[string]int64{"m.upload.size": a.MaxUpload}, nil
}

// getPreview: we fetch nothing for others, so that nobody can make us.
func (m *media) getPreview(*api, *request) (any, error) {
	return nil, matrix.Errorf(http.StatusNotFound, matrix.CodeUnrecognized, "This server makes no previews")
}

// mediaPath is where a file of a random name of ours lies.
func (a *api) mediaPath(name string) string {
	return filepath.Join(a.MediaDir, name[:2], name[2:4], name[4:])
}

// postUpload: https://spec.matrix.org/v1.19/client-server-api/#post_matrixmediav3upload
func (m *media) postUpload(a *api, r *request) (any, error) {
	f := store.Media{Origin: a.ServerName, ID: rand.Text(), User: r.user, Created: time.Now().UnixMilli()}
	if err := a.receive(r, &f); err != nil {
		return nil, err
	}
	err := a.Store.Write(r.Context(), func(tx *sqldb.Tx) error { return a.Store.InsertMedia(tx, f) })
	if err != nil {
		return nil, errors.Join(err, os.Remove(a.mediaPath(f.File)))
	}
	return map[string]string{"content_uri": contentURI(f)}, nil
}

func contentURI(f store.Media) string { return fmt.Sprintf("mxc://%s/%s", f.Origin, f.ID) }

// receive stores the body of a request on disk and fills in what it is.
func (a *api) receive(r *request, f *store.Media) error {
	tooLarge := matrix.Errorf(http.StatusRequestEntityTooLarge, matrix.CodeTooLarge, "A file may have %d bytes", a.MaxUpload)
	if r.ContentLength > a.MaxUpload {
		return tooLarge
	}
	f.ContentType = r.Header.Get("Content-Type")
	if f.ContentType == "" || len(f.ContentType) > 255 || !utf8.ValidString(f.ContentType) {
		f.ContentType = "application/octet-stream"
	}
	f.Name = fileName(r.URL.Query().Get("filename"))
	f.File = rand.Text()
	size, err := writeFile(a.mediaPath(f.File), http.MaxBytesReader(r.w, r.Body, a.MaxUpload))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge
	}
	if _, ok := errors.AsType[*readError](err); ok {
		return matrix.Errorf(http.StatusBadRequest, matrix.CodeUnknown, "The file did not arrive whole")
	}
	f.Size = size
	return err
}

// fileName is a name without what file systems and headers give a meaning to.
func fileName(s string) string {
	s = strings.ToValidUTF8(s, "")
	s = s[strings.LastIndexAny(s, `/\`)+1:]
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return -1
		}
		return c
	}, s)
	for len(s) > 255 {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

// readError is a failure of what was to be written, not of the disk.
type readError struct{ err error }

func (e *readError) Error() string { return "read upload: " + e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

type markReader struct{ r io.Reader }

func (m markReader) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if err != nil && err != io.EOF {
		err = &readError{err}
	}
	return n, err
}

// writeFile stores a file whole or not at all, durably.
func writeFile(path string, content io.Reader) (size int64, err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, fmt.Errorf("write file: %w", err)
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return 0, fmt.Errorf("write file: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if size, err = io.Copy(f, markReader{content}); err != nil {
		return 0, fmt.Errorf("write file: %w", err)
	}
	if err = errors.Join(f.Sync(), f.Close()); err != nil {
		return 0, fmt.Errorf("write file: %w", err)
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return 0, fmt.Errorf("write file: %w", err)
	}
	return size, syncDir(dir)
}

// syncDir makes a rename durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Limits of files that are announced before they are uploaded.
const (
	pendingLifetime = 24 * time.Hour
	maxPending      = 100 // of one user
)

// postCreate: https://spec.matrix.org/v1.19/client-server-api/#post_matrixmediav1create
func (m *media) postCreate(a *api, r *request) (any, error) {
	now := time.Now()
	n, err := a.Store.PendingMedia(r.Context(), r.user, now.Add(-pendingLifetime).UnixMilli())
	if err != nil {
		return nil, err
	}
	if n >= maxPending {
		return nil, matrix.Errorf(http.StatusTooManyRequests, matrix.CodeLimitExceeded, "Upload what you have announced first").With("retry_after_ms", time.Minute.Milliseconds())
	}
	f := store.Media{Origin: a.ServerName, ID: rand.Text(), User: r.user, Created: now.UnixMilli()}
	err = a.Store.Write(r.Context(), func(tx *sqldb.Tx) error { return a.Store.InsertMedia(tx, f) })
	return map[string]any{"content_uri": contentURI(f), "unused_expires_at": now.Add(pendingLifetime).UnixMilli()}, err
}

func expired(f *store.Media) bool {
	return f.File == "" && time.Since(time.UnixMilli(f.Created)) > pendingLifetime
}

// putUpload: https://spec.matrix.org/v1.19/client-server-api/#put_matrixmediav3uploadservernamemediaid
func (m *media) putUpload(a *api, r *request) (any, error) {
	f, err := a.Store.Media(r.Context(), matrix.ServerName(r.PathValue("server")), r.PathValue("mediaID"))
	if err != nil {
		return nil, err
	}
	twice := matrix.Errorf(http.StatusConflict, matrix.CodeCannotOverwriteMedia, "The file has its content already")
	switch {
	case f.User != r.user:
		return nil, matrix.Forbidden("Somebody else has announced this file")
	case expired(f):
		return nil, matrix.NotFound("The time to upload this file is over")
	case f.File != "":
		return nil, twice
	}
	if err := a.receive(r, f); err != nil {
		return nil, err
	}
	first := false
	err = a.Store.Write(r.Context(), func(tx *sqldb.Tx) (err error) {
		first, err = a.Store.FillMedia(tx, *f)
		return err
	})
	if err != nil || !first {
		return nil, errors.Join(err, os.Remove(a.mediaPath(f.File)), twice)
	}
	m.mu.Lock()
	close(m.filled)
	m.filled = make(chan struct{})
	m.mu.Unlock()
	return empty, nil
}

// Of timeout_ms.
const (
	defaultMediaWait = 20_000
	maxMediaWait     = 60_000
)

// file returns a file that the path names. One that has been announced is waited
// for as long as the request says.
func (m *media) file(a *api, r *request) (*store.Media, error) {
	wait, err := r.intQuery("timeout_ms", defaultMediaWait, 0, maxMediaWait)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), time.Duration(wait)*time.Millisecond)
	defer cancel()
	for {
		m.mu.Lock()
		filled := m.filled
		m.mu.Unlock()
		f, err := a.Store.Media(r.Context(), matrix.ServerName(r.PathValue("server")), r.PathValue("mediaID"))
		switch {
		case err != nil:
			return nil, err
		case f.File != "":
			return f, nil
		case expired(f):
			return nil, matrix.NotFound("This file was never uploaded")
		}
		select {
		case <-filled:
		case <-ctx.Done():
			return nil, matrix.Errorf(http.StatusGatewayTimeout, matrix.CodeNotYetUploaded, "This file has not been uploaded yet")
		}
	}
}

// inline are the types that browsers may show; all else is to be saved.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#serving-inline-content
var inline = map[string]bool{
	"text/css": true, "text/plain": true, "text/csv": true, "application/json": true, "application/ld+json": true,
	"image/jpeg": true, "image/gif": true, "image/png": true, "image/apng": true, "image/webp": true, "image/avif": true,
	"video/mp4": true, "video/webm": true, "video/ogg": true, "video/quicktime": true,
	"audio/mp4": true, "audio/webm": true, "audio/aac": true, "audio/mpeg": true, "audio/ogg": true, "audio/wave": true, "audio/wav": true,
	"audio/x-wav": true, "audio/x-pn-wav": true, "audio/flac": true, "audio/x-flac": true,
}

// getDownload: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediadownloadservernamemediaid
func (m *media) getDownload(a *api, r *request) (any, error) {
	f, err := m.file(a, r)
	if err != nil {
		return nil, err
	}
	name := f.Name
	if override := fileName(r.PathValue("fileName")); override != "" {
		name = override
	}
	return serveFile(r, a.mediaPath(f.File), f.ContentType, name, f.File)
}

// serveFile answers with a file, or the part of it that is asked for. tag changes
// when the content does.
func serveFile(r *request, path, contentType, name, tag string) (any, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open media: %w", err)
	}
	defer file.Close()
	h := r.w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Disposition", disposition(contentType, name))
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; media-src 'self'; object-src 'self';")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	h.Set("Cache-Control", "private, max-age=31536000, immutable")
	h.Set("ETag", `"`+tag+`"`)
	http.ServeContent(r.w, r.Request, "", time.Time{}, file)
	return written{}, nil
}

func disposition(contentType, name string) string {
	how := "attachment"
	if t, _, err := mime.ParseMediaType(contentType); err == nil && inline[t] {
		how = "inline"
	}
	if name == "" {
		return how
	}
	if s := mime.FormatMediaType(how, map[string]string{"filename": name}); s != "" {
		return s
	}
	return how
}
