package puppeting

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// mediaPath is where links to files begin.
const mediaPath = "/_gjallar/media/"

// fetchTimeout bounds the fetching of a file.
const fetchTimeout = 30 * time.Second

// media makes links to the homeserver's files that work without a login, serves
// them, and fetches the files of networks.
type media struct {
	b    *Bridge
	base string // PublicURL without a slash at the end, and mediaPath
	key  []byte
	http *http.Client
}

func newMedia(ctx context.Context, b *Bridge) (*media, error) {
	store := kv{b.db, ""}
	key, err := store.Get(ctx, "media-key")
	if err == nil && key == nil {
		key = []byte(rand.Text())
		err = store.Put(ctx, "media-key", key)
	}
	if err != nil {
		return nil, fmt.Errorf("key for links: %w", err)
	}
	rt := b.o.Fetch
	if rt == nil {
		dialer := &net.Dialer{Timeout: 10 * time.Second, Control: refusePrivate}
		rt = &http.Transport{DialContext: dialer.DialContext, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 20 * time.Second, MaxIdleConns: 16}
	}
	return &media{b: b, base: strings.TrimSuffix(b.o.PublicURL, "/") + mediaPath, key: key, http: &http.Client{Transport: rt, Timeout: fetchTimeout}}, nil
}

// notPublic are networks that a link from elsewhere must not lead to, beyond those
// that netip knows. The last ones embed IPv4 addresses.
var notPublic = prefixes("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
	"203.0.113.0/24", "240.0.0.0/4", "100::/64", "2001:db8::/32", "2001::/23", "fec0::/10", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "::/96")

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func public(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

var errPrivate = errors.New("the address is not public")

// refusePrivate looks at the address that is about to be connected to, after all
// names and redirections.
func refusePrivate(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if !public(ap.Addr()) {
		return errPrivate
	}
	return nil
}

// link is a URL of a file of the homeserver, "" if mxc is none. It names the event
// that holds the file, so that it ends with it, and the time of its end, which is
// counted from at (ms since the Unix epoch; 0: never), so that it stays the same.
func (m *media) link(mxc string, event matrix.EventID, name string, at int64) string {
	if !strings.HasPrefix(mxc, "mxc://") || m.b.o.PublicURL == "" {
		return ""
	}
	until := int64(0)
	if at > 0 {
		until = at/1000 + int64(m.b.o.LinkTTL/time.Second)
	}
	payload := strconv.FormatInt(until, 36) + " " + string(event) + " " + strings.TrimPrefix(mxc, "mxc://")
	return m.base + base64.RawURLEncoding.EncodeToString([]byte(payload)) + "." + m.sign(payload) + "/" + url.PathEscape(fileName(name))
}

func (m *media) sign(payload string) string {
	h := hmac.New(sha256.New, m.key)
	h.Write([]byte(payload))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:16])
}

// fileName makes a name harmless as part of a path or header.
func fileName(name string) string {
	name = strings.Map(func(r rune) rune {
		if r < ' ' || strings.ContainsRune(`/\"<>|:*?`, r) || r == 0x7f {
			return '_'
		}
		return r
	}, name)
	if name = strings.TrimLeft(name, "."); name == "" {
		return "file"
	}
	if r := []rune(name); len(r) > 80 {
		name = string(r[len(r)-80:])
	}
	return name
}

// signed is what a link says.
type signed struct {
	until int64 // seconds; 0: for ever
	event matrix.EventID
	mxc   string
}

// open reads a link's token, if it is one of ours.
func (m *media) open(token string) (s signed, ok bool) {
	encoded, mac, _ := strings.Cut(token, ".")
	payload, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil || !hmac.Equal([]byte(mac), []byte(m.sign(string(payload)))) {
		return s, false
	}
	fields := strings.SplitN(string(payload), " ", 3)
	if len(fields) != 3 {
		return s, false
	}
	s.until, err = strconv.ParseInt(fields[0], 36, 64)
	s.event, s.mxc = matrix.EventID(fields[1]), "mxc://"+fields[2]
	return s, err == nil
}

// mxcOf returns the file that a link of ours leads to, "" for other URLs.
func (m *media) mxcOf(link string) string {
	rest, ok := strings.CutPrefix(link, m.base)
	if !ok || m.b.o.PublicURL == "" {
		return ""
	}
	token, _, _ := strings.Cut(rest, "/")
	s, ok := m.open(token)
	if !ok {
		return ""
	}
	return s.mxc
}

// getMedia serves a file. What a browser might run is only offered for saving.
func (m *media) getMedia(w http.ResponseWriter, r *http.Request) {
	s, ok := m.open(r.PathValue("token"))
	if !ok {
		http.Error(w, "no such file", http.StatusNotFound)
		return
	}
	if s.until > 0 && time.Now().Unix() > s.until || m.revoked(r.Context(), s.event) {
		http.Error(w, "this link has expired", http.StatusGone)
		return
	}
	body, mediaType, size, err := m.b.client.Bot().Download(r.Context(), s.mxc)
	if err != nil {
		m.b.log.Debug("a file cannot be served", "err", err)
		http.Error(w, "the file is not there", http.StatusNotFound)
		return
	}
	defer body.Close()
	writeHeaders(w.Header(), mediaType, fileName(path.Base(r.URL.Path)), size)
	if _, err := io.Copy(w, body); err != nil {
		m.b.log.Debug("a file was not served whole", "err", err)
	}
}

// inline are types that a browser may show.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#serving-inline-content
var inline = map[string]bool{
	"text/plain": true, "image/jpeg": true, "image/gif": true, "image/png": true, "image/apng": true, "image/webp": true, "image/avif": true,
	"video/mp4": true, "video/webm": true, "video/ogg": true, "video/quicktime": true,
	"audio/mp4": true, "audio/webm": true, "audio/aac": true, "audio/mpeg": true, "audio/ogg": true, "audio/wav": true, "audio/flac": true,
}

func writeHeaders(h http.Header, mediaType, name string, size int64) {
	disposition := "attachment"
	if inline[mediaType] {
		disposition = "inline"
	} else {
		mediaType = "application/octet-stream"
	}
	h.Set("Content-Type", mediaType)
	h.Set("Content-Disposition", mime.FormatMediaType(disposition, map[string]string{"filename": name}))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self'")
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "private, max-age=3600")
	if size >= 0 {
		h.Set("Content-Length", strconv.FormatInt(size, 10))
	}
}

func (m *media) revoked(ctx context.Context, event matrix.EventID) bool {
	if event == "" {
		return false
	}
	var n int
	err := m.b.db.QueryRow(ctx, `SELECT count(*) FROM bridge_revoked WHERE event_id = $1`, string(event)).Scan(&n)
	return err != nil || n > 0
}

// Upload implements backends.Media. The URL it sets leads to the homeserver's file.
func (m *media) Upload(ctx context.Context, f backends.File, content io.Reader) (backends.File, error) {
	uri, size, err := m.store(ctx, m.b.client.Bot(), f, content)
	if err != nil {
		return backends.File{}, err
	}
	f.URL, f.Size = m.link(uri, "", f.Name, 0), size
	return f, nil
}

var errTooLarge = &backends.Refusal{Code: backends.RefusedTooLarge, Message: "the file is too large"}

// store uploads a file of unknown size, by way of a temporary one.
func (m *media) store(ctx context.Context, as *appservice.Intent, f backends.File, content io.Reader) (uri string, size int64, err error) {
	tmp, err := os.CreateTemp("", "gjallar-media-")
	if err != nil {
		return "", 0, fmt.Errorf("store file: %w", err)
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if size, err = io.Copy(tmp, io.LimitReader(content, m.b.o.MaxMedia+1)); err != nil {
		return "", 0, fmt.Errorf("store file: %w", err)
	}
	if size > m.b.o.MaxMedia {
		return "", 0, errTooLarge
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return "", 0, fmt.Errorf("store file: %w", err)
	}
	uri, err = as.Upload(ctx, f.MediaType, f.Name, tmp, size)
	return uri, size, err
}

// stored is a file of a network that the homeserver has.
type stored struct {
	uri       string // mxc:
	name      string
	mediaType string
	size      int64
}

// fromRemote brings a file of a network to the homeserver.
func (m *media) fromRemote(ctx context.Context, as *appservice.Intent, f backends.File) (stored, error) {
	if mxc := m.mxcOf(f.URL); mxc != "" {
		return stored{mxc, f.Name, f.MediaType, f.Size}, nil
	}
	u, err := url.Parse(f.URL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" {
		return stored{}, fmt.Errorf("fetch file: not an http address")
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.URL, nil)
	if err != nil {
		return stored{}, fmt.Errorf("fetch file: %w", err)
	}
	resp, err := m.http.Do(req)
	if err != nil {
		return stored{}, fmt.Errorf("fetch file: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return stored{}, fmt.Errorf("fetch file: the server answered %d", resp.StatusCode)
	}
	if f.MediaType == "" {
		f.MediaType, _, _ = mime.ParseMediaType(resp.Header.Get("Content-Type"))
	}
	if f.Name == "" {
		f.Name = fileName(path.Base(u.Path))
	}
	uri, size, err := m.store(ctx, as, f, resp.Body)
	return stored{uri, f.Name, f.MediaType, size}, err
}
