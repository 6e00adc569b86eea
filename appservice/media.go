package appservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// Upload stores a file of size bytes (-1: unknown) and returns its mxc: URL. It is
// repeated, as other requests are, only if r is an [io.Seeker].
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#post_matrixmediav3upload
func (i *Intent) Upload(ctx context.Context, mediaType, name string, r io.Reader, size int64) (string, error) {
	if err := i.EnsureRegistered(ctx); err != nil {
		return "", err
	}
	c := call{method: http.MethodPost, path: "/_matrix/media/v3/upload"}
	if name != "" {
		c.query = url.Values{"filename": {name}}
	}
	if mediaType == "" {
		mediaType = "application/octet-stream"
	}
	var out struct {
		URI string `json:"content_uri"`
	}
	once := func(ctx context.Context) error {
		// The transport would close a file that is to be read again.
		resp, err := i.send(ctx, c, io.NopCloser(r), mediaType, size)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := readAll(resp.Body, maxAnswer)
		if err != nil {
			return err
		}
		return decode(b, &out)
	}
	var err error
	if seeker, ok := r.(io.Seeker); ok {
		err = i.client.repeat(ctx, c.method, func(ctx context.Context) error {
			if _, err := seeker.Seek(0, io.SeekStart); err != nil {
				return &badAnswer{err}
			}
			return once(ctx)
		})
	} else {
		err = once(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("upload as %s: %w", i.user, err)
	}
	return out.URI, nil
}

// ErrBadMXC says that something is not an mxc: URL.
var ErrBadMXC = errors.New("not an mxc: URL")

// The paths of downloads: since v1.11 of the specification, and before.
const (
	downloadPath    = "/_matrix/client/v1/media/download"
	oldDownloadPath = "/_matrix/media/v3/download"
)

// Download opens a file. The caller closes body. size is -1 if it is not told.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediadownloadservernamemediaid
func (i *Intent) Download(ctx context.Context, mxc string) (body io.ReadCloser, mediaType string, size int64, err error) {
	server, id, ok := strings.Cut(strings.TrimPrefix(mxc, "mxc://"), "/")
	if !strings.HasPrefix(mxc, "mxc://") || !ok || server == "" || id == "" || strings.Contains(id, "/") {
		return nil, "", 0, fmt.Errorf("download %.60q: %w", mxc, ErrBadMXC)
	}
	if err := i.EnsureRegistered(ctx); err != nil {
		return nil, "", 0, err
	}
	var resp *http.Response
	get := func(prefix string) error {
		return i.client.repeat(ctx, http.MethodGet, func(ctx context.Context) (err error) {
			resp, err = i.send(ctx, call{method: http.MethodGet, path: path(prefix, server, id)}, nil, "", 0)
			return err
		})
	}
	if i.client.oldMedia.Load() {
		err = get(oldDownloadPath)
	} else if err = get(downloadPath); unrecognized(err) {
		if err = get(oldDownloadPath); err == nil {
			i.client.oldMedia.Store(true)
		}
	}
	if err != nil {
		return nil, "", 0, fmt.Errorf("download %s: %w", mxc, err)
	}
	mediaType, _, err = mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		mediaType = "application/octet-stream"
	}
	return resp.Body, mediaType, resp.ContentLength, nil
}

// unrecognized reports whether the homeserver does not know the endpoint.
func unrecognized(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && (e.Code == matrix.CodeUnrecognized || e.Code == "" && e.Status == http.StatusNotFound)
}
