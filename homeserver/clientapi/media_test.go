package clientapi_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver"
	"github.com/gjallar-im/gjallar/homeserver/hstest"
)

const (
	mediaV3 = "/_matrix/media/v3"
	mediaV1 = "/_matrix/client/v1/media"
)

// response of a request whose answer need not be JSON.
type response struct {
	*http.Response
	body []byte
}

func fetch(t *testing.T, s *hstest.Server, u *hstest.User, method, path, contentType string, body io.Reader, header ...string) response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if u != nil {
		req.Header.Set("Authorization", "Bearer "+u.Token)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response{resp, b}
}

// upload returns the file's path: "/server/id".
func upload(t *testing.T, s *hstest.Server, u *hstest.User, contentType, name string, content []byte) string {
	t.Helper()
	r := fetch(t, s, u, "POST", mediaV3+"/upload?filename="+url.QueryEscape(name), contentType, bytes.NewReader(content))
	uri, ok := strings.CutPrefix(strings.TrimSuffix(string(r.body), `"}`), `{"content_uri":"mxc:/`)
	if r.StatusCode != 200 || !ok {
		t.Fatalf("upload: %d %s", r.StatusCode, r.body)
	}
	return uri
}

func TestFilesComeBackAsTheyWere(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice := s.Register("alice")
		content := []byte("0123456789")
		tests := []struct {
			contentType, name string
			wantType, want    string // Content-Type, Content-Disposition
		}{
			{"text/plain", "a.txt", "text/plain", `inline; filename=a.txt`},
			{"text/plain; charset=utf-8", "", "text/plain; charset=utf-8", `inline`},
			{"image/png", "ä b.png", "image/png", `inline; filename*=utf-8''%C3%A4%20b.png`},
			{"text/html", "x.html", "text/html", `attachment; filename=x.html`},
			{"image/svg+xml", "x.svg", "image/svg+xml", `attachment; filename=x.svg`},
			{"application/pdf", "", "application/pdf", `attachment`},
			{"", "", "application/octet-stream", `attachment`},
			{"nonsense", "../../etc/passwd", "nonsense", `attachment; filename=passwd`},
			{"text/plain", "a\r\nX: y\".txt", "text/plain", `inline; filename="aX: y\".txt"`},
		}
		for _, tt := range tests {
			t.Run(tt.contentType+" "+tt.name, func(t *testing.T) {
				path := upload(t, s, alice, tt.contentType, tt.name, content)
				for _, r := range []response{
					fetch(t, s, alice, "GET", mediaV1+"/download"+path, "", nil),
					fetch(t, s, nil, "GET", mediaV3+"/download"+path, "", nil),
				} {
					h := r.Header
					if r.StatusCode != 200 || !bytes.Equal(r.body, content) {
						t.Errorf("%d %q", r.StatusCode, r.body)
					}
					if h.Get("Content-Type") != tt.wantType || h.Get("Content-Disposition") != tt.want {
						t.Errorf("%q, %q", h.Get("Content-Type"), h.Get("Content-Disposition"))
					}
					if !strings.HasPrefix(h.Get("Content-Security-Policy"), "sandbox; default-src 'none'") || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cross-Origin-Resource-Policy") != "cross-origin" {
						t.Errorf("headers: %v", h)
					}
				}
			})
		}
		path := upload(t, s, alice, "text/plain", "a.txt", content)
		if r := fetch(t, s, alice, "GET", mediaV1+"/download"+path+"/b.txt", "", nil); r.Header.Get("Content-Disposition") != `inline; filename=b.txt` {
			t.Errorf("another name: %v", r.Header)
		}
		whole := fetch(t, s, alice, "GET", mediaV1+"/download"+path, "", nil)
		if r := fetch(t, s, alice, "GET", mediaV1+"/download"+path, "", nil, "Range", "bytes=2-4"); r.StatusCode != 206 || string(r.body) != "234" {
			t.Errorf("a part: %d %q", r.StatusCode, r.body)
		}
		if r := fetch(t, s, alice, "GET", mediaV1+"/download"+path, "", nil, "If-None-Match", whole.Header.Get("ETag")); r.StatusCode != 304 {
			t.Errorf("what is known already: %d", r.StatusCode)
		}
		if r := fetch(t, s, nil, "GET", mediaV1+"/download"+path, "", nil); r.StatusCode != 401 {
			t.Errorf("without a token: %d", r.StatusCode)
		}
	})
}

func TestNoPathLeadsOutOfTheMediaFolder(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := hstest.Start(t, func(o *homeserver.Options) { o.MediaDir = filepath.Join(dir, "media") })
	alice := s.Register("alice")
	upload(t, s, alice, "text/plain", "../../secret", []byte("x"))
	for _, id := range []string{"..%2Fsecret", "..%2F..%2Fsecret", "%00", "..%5Csecret", strings.Repeat("a", 5000), "."} {
		for _, path := range []string{mediaV1 + "/download/test/" + id, mediaV3 + "/download/test/" + id, mediaV3 + "/download/..%2F..%2Fsecret/" + id, mediaV1 + "/thumbnail/test/" + id + "?width=9&height=9"} {
			if r := fetch(t, s, alice, "GET", path, "", nil); r.StatusCode != 404 && r.StatusCode != 400 {
				t.Errorf("%.80s: %d %.80q", path, r.StatusCode, r.body)
			}
		}
	}
}

func TestFilesMayNotBeTooLarge(t *testing.T) {
	dir := t.TempDir()
	s := hstest.Start(t, func(o *homeserver.Options) { o.MaxUpload, o.MediaDir = 100, dir })
	alice := s.Register("alice")
	if out := alice.OK("GET", mediaV1+"/config", nil); out["m.upload.size"] != 100.0 {
		t.Errorf("config: %v", out)
	}
	upload(t, s, alice, "text/plain", "", bytes.Repeat([]byte("x"), 100))
	large := strings.Repeat("x", 101)
	for name, body := range map[string]io.Reader{"of a size that is told": strings.NewReader(large), "of one that is not": io.MultiReader(strings.NewReader(large))} {
		if r := fetch(t, s, alice, "POST", mediaV3+"/upload", "text/plain", body); r.StatusCode != 413 || !strings.Contains(string(r.body), "M_TOO_LARGE") {
			t.Errorf("%s: %d %s", name, r.StatusCode, r.body)
		}
	}
	files := 0
	filepath.WalkDir(dir, func(_ string, d os.DirEntry, _ error) error {
		if !d.IsDir() {
			files++
		}
		return nil
	})
	if files != 1 {
		t.Errorf("%d files are left", files)
	}
}

func TestFilesAnnouncedBeforeTheyAreUploaded(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, bob := s.Register("alice"), s.Register("bob")
		out := alice.OK("POST", "/_matrix/media/v1/create", nil)
		path := strings.TrimPrefix(out.Str("content_uri"), "mxc:/")
		if out["unused_expires_at"] == nil {
			t.Errorf("created %v", out)
		}
		alice.Fails(504, "M_NOT_YET_UPLOADED", "GET", mediaV1+"/download"+path+"?timeout_ms=0", nil)
		bob.Fails(403, "M_FORBIDDEN", "PUT", mediaV3+"/upload"+path, []byte("bob's"))
		alice.Fails(404, "M_NOT_FOUND", "PUT", mediaV3+"/upload/test/other", []byte("x"))

		got := make(chan response)
		go func() { got <- fetch(t, s, bob, "GET", mediaV1+"/download"+path+"?timeout_ms=60000", "", nil) }()
		if r := fetch(t, s, alice, "PUT", mediaV3+"/upload"+path+"?filename=a.txt", "text/plain", strings.NewReader("hello")); r.StatusCode != 200 {
			t.Fatalf("upload: %d %s", r.StatusCode, r.body)
		}
		if r := <-got; r.StatusCode != 200 || string(r.body) != "hello" || r.Header.Get("Content-Type") != "text/plain" {
			t.Errorf("who waited gets %d %q", r.StatusCode, r.body)
		}
		alice.Fails(409, "M_CANNOT_OVERWRITE_MEDIA", "PUT", mediaV3+"/upload"+path, []byte("again"))
		if r := fetch(t, s, alice, "GET", mediaV1+"/download"+path, "", nil); string(r.body) != "hello" {
			t.Errorf("after the second upload: %q", r.body)
		}
		for range 100 {
			bob.OK("POST", "/_matrix/media/v1/create", nil)
		}
		bob.Fails(429, "M_LIMIT_EXCEEDED", "POST", "/_matrix/media/v1/create", nil)
	})
}

// picture has its left half red and its right half blue.
func picture(width, height int) *image.RGBA {
	m := image.NewRGBA(image.Rect(0, 0, width, height))
	for x := range width {
		for y := range height {
			c := color.RGBA{255, 0, 0, 255}
			if x >= width/2 {
				c = color.RGBA{0, 0, 255, 255}
			}
			m.SetRGBA(x, y, c)
		}
	}
	return m
}

func encoded(t *testing.T, format string, m image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	var err error
	switch format {
	case "png":
		err = png.Encode(&b, m)
	case "jpeg":
		err = jpeg.Encode(&b, m, nil)
	case "gif":
		err = gif.Encode(&b, m, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestThumbnails(t *testing.T) {
	s := hstest.Start(t)
	alice := s.Register("alice")
	tests := []struct {
		format        string
		width, height int
		query         string
		want          string // type, width, height
	}{
		{"png", 1000, 500, "width=320&height=240&method=scale", "image/png 320x160"},
		{"png", 500, 1000, "width=320&height=240", "image/png 120x240"},
		{"jpeg", 1000, 500, "width=100&height=100&method=crop", "image/jpeg 128x128"},
		{"jpeg", 5000, 4000, "width=32&height=32&method=crop", "image/jpeg 32x32"},
		{"gif", 200, 200, "width=96&height=96&method=crop", "image/png 96x96"},
		{"png", 20, 10, "width=320&height=240&method=scale", "image/png 20x10"},
		{"png", 60, 10, "width=32&height=32&method=crop", "image/png 10x10"},
		{"png", 3000, 1, "width=32&height=32", "image/png 32x1"},
		{"png", 2000, 2000, "width=99999&height=99999", "image/png 1024x1024"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.format, tt.width, "x", tt.height, "?", tt.query), func(t *testing.T) {
			path := upload(t, s, alice, "image/"+tt.format, "", encoded(t, tt.format, picture(tt.width, tt.height)))
			var first []byte
			for range 2 { // the second comes from the disk
				r := fetch(t, s, alice, "GET", mediaV1+"/thumbnail"+path+"?"+tt.query, "", nil)
				m, _, err := image.Decode(bytes.NewReader(r.body))
				if r.StatusCode != 200 || err != nil {
					t.Fatalf("%d %.100q %v", r.StatusCode, r.body, err)
				}
				if got := fmt.Sprintf("%s %dx%d", r.Header.Get("Content-Type"), m.Bounds().Dx(), m.Bounds().Dy()); got != tt.want {
					t.Errorf("%s, want %s", got, tt.want)
				}
				if first == nil {
					first = r.body
				} else if !bytes.Equal(first, r.body) {
					t.Error("the second is another")
				}
				if w := m.Bounds().Dx(); w > 8 {
					r, _, b, _ := m.At(0, 0).RGBA()
					r2, _, b2, _ := m.At(w-1, 0).RGBA()
					if r < 0xc000 || b > 0x3fff || r2 > 0x3fff || b2 < 0xc000 {
						t.Errorf("left is %x/%x, right %x/%x", r, b, r2, b2)
					}
				}
			}
		})
	}
}

func TestThumbnailsStandUpright(t *testing.T) {
	s := hstest.Start(t)
	alice := s.Register("alice")
	plain := encoded(t, "jpeg", picture(1000, 500)) // red on the left, blue on the right
	// Turned by 90° clockwise to be upright, red is at the top.
	exif := "\xff\xe1\x00\x22Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
	path := upload(t, s, alice, "image/jpeg", "", append(append(plain[:2:2], exif...), plain[2:]...))
	for query, want := range map[string]image.Point{"width=320&height=240&method=scale": {120, 240}, "width=64&height=128&method=crop": {64, 128}} {
		r := fetch(t, s, alice, "GET", mediaV1+"/thumbnail"+path+"?"+query, "", nil)
		m, _, err := image.Decode(bytes.NewReader(r.body))
		if err != nil || m.Bounds().Size() != want {
			t.Fatalf("%s: %d %v, %v", query, r.StatusCode, err, m)
		}
		top, _, _, _ := m.At(0, 0).RGBA()
		bottom, _, _, _ := m.At(0, want.Y-1).RGBA()
		if top < 0xc000 || bottom > 0x3fff {
			t.Errorf("%s: the top has %x red, the bottom %x", query, top, bottom)
		}
	}
}

// bomb is a PNG that says to be that large.
func bomb(width, height uint32) []byte {
	var b bytes.Buffer
	b.WriteString("\x89PNG\r\n\x1a\n")
	head := append([]byte("IHDR"), binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, width), height)...)
	head = append(head, 8, 2, 0, 0, 0)
	binary.Write(&b, binary.BigEndian, uint32(13))
	b.Write(head)
	binary.Write(&b, binary.BigEndian, crc32.ChecksumIEEE(head))
	return b.Bytes()
}

func TestPicturesThatHaveNoThumbnail(t *testing.T) {
	s := hstest.Start(t)
	alice := s.Register("alice")
	good := encoded(t, "png", picture(200, 200))
	tests := []struct {
		name    string
		content []byte
		query   string
		status  int
		code    string
	}{
		{"a bomb", bomb(60000, 60000), "width=9&height=9", 413, "M_TOO_LARGE"},
		{"a bomb beyond 32 bits", bomb(1<<31-1, 1<<31-1), "width=9&height=9", 400, "M_UNKNOWN"},
		{"no picture", []byte("hello"), "width=9&height=9", 400, "M_UNKNOWN"},
		{"nothing", nil, "width=9&height=9", 400, "M_UNKNOWN"},
		{"half a picture", good[:len(good)/2], "width=9&height=9", 400, "M_UNKNOWN"},
		{"SVG", []byte(`<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>`), "width=9&height=9", 400, "M_UNKNOWN"},
		{"no size", good, "", 400, "M_INVALID_PARAM"},
		{"a size of nought", good, "width=0&height=0", 400, "M_INVALID_PARAM"},
		{"a negative size", good, "width=-5&height=5", 400, "M_INVALID_PARAM"},
		{"an unknown method", good, "width=9&height=9&method=fold", 400, "M_INVALID_PARAM"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := upload(t, s, alice, "image/png", "", tt.content)
			alice.Fails(tt.status, tt.code, "GET", mediaV1+"/thumbnail"+path+"?"+tt.query, nil)
		})
	}
	alice.Fails(404, "M_NOT_FOUND", "GET", mediaV1+"/thumbnail/test/none?width=9&height=9", nil)
	alice.Fails(404, "M_UNRECOGNIZED", "GET", mediaV1+"/preview_url?url=http://127.0.0.1/", nil)
}
