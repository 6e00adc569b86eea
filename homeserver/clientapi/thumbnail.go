package clientapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	_ "image/gif" // decoders; the first picture of an animation
	"image/jpeg"
	"image/png"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"golang.org/x/image/draw"
	_ "golang.org/x/image/webp" // decoder

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// maxPixels of a picture that is decoded: what it takes is bounded by this, not by
// the size of the file.
const maxPixels = 32 << 20

// steps are the widths and heights that thumbnails are made in. What is asked for
// is rounded up, so that a picture has few of them.
var steps = []int{32, 64, 96, 128, 240, 320, 480, 600, 640, 800, 1024}

func step(n int) int {
	for _, s := range steps {
		if n <= s {
			return s
		}
	}
	return steps[len(steps)-1]
}

// getThumbnail: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediathumbnailservernamemediaid
func (m *media) getThumbnail(a *api, r *request) (any, error) {
	var size image.Point
	for name, to := range map[string]*int{"width": &size.X, "height": &size.Y} {
		n, err := r.intQuery(name, 0, -1, 1<<20)
		if err != nil {
			return nil, err
		}
		if n < 1 {
			return nil, matrix.InvalidParam("%s must be there and above 0", name)
		}
		*to = step(n)
	}
	method := r.URL.Query().Get("method")
	switch method {
	case "":
		method = "scale"
	case "scale", "crop":
	default:
		return nil, matrix.InvalidParam("Unknown method %.40q", method)
	}
	f, err := m.file(a, r)
	if err != nil {
		return nil, err
	}
	return m.thumbnail(a, r, f.File, f.ContentType, size, method == "crop")
}

// thumbnail serves a thumbnail of a file, which it makes if there is none yet. A
// picture that is no larger is its own thumbnail.
func (m *media) thumbnail(a *api, r *request, file, contentType string, box image.Point, crop bool) (any, error) {
	path := a.mediaPath(file)
	head, held, err := pictureSize(path)
	if err != nil {
		return nil, err
	}
	if held.sideways() { // the box is for the picture as it is seen
		box = image.Pt(box.Y, box.X)
	}
	from, to := thumbnailSize(head, box, crop)
	if from.Size() == to && to == head {
		return serveFile(r, path, contentType, "", file)
	}
	tag := fmt.Sprintf("%s-%dx%d", file, to.X, to.Y)
	if crop {
		tag += "-crop"
	}
	made := filepath.Join(a.MediaDir, "thumbnails", file[:2], file[2:4], tag[4:])
	if _, err := os.Stat(made); errors.Is(err, fs.ErrNotExist) {
		if err := m.make(r.Context(), path, made, from, to, held); err != nil {
			return nil, err
		}
	}
	return serveFile(r, made, sniffed(made), "thumbnail", tag)
}

// sniffed is the type of a thumbnail, which is one of the two that we make.
func sniffed(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "application/octet-stream"
	}
	defer f.Close()
	var head [512]byte
	n, _ := f.Read(head[:])
	return http.DetectContentType(head[:n])
}

// maxHead is how much of a file is searched for how the camera was held: a segment
// before it, such as the camera's own preview, may have 64 KiB.
const maxHead = 256 << 10

// pictureSize reads a picture's size, and how it is to be turned, without decoding
// it. The error is M_UNKNOWN for what is no picture, M_TOO_LARGE for too many pixels.
func pictureSize(path string) (size image.Point, held orientation, err error) {
	f, err := os.Open(path)
	if err != nil {
		return size, upright, fmt.Errorf("open media: %w", err)
	}
	defer f.Close()
	c, format, err := image.DecodeConfig(f)
	if err != nil || c.Width < 1 || c.Height < 1 {
		return size, upright, noThumbnail
	}
	if int64(c.Width)*int64(c.Height) > maxPixels {
		return size, upright, matrix.Errorf(http.StatusRequestEntityTooLarge, matrix.CodeTooLarge, "The picture has more than %d pixels", maxPixels)
	}
	if held = upright; format == "jpeg" {
		head := make([]byte, maxHead)
		n, err := f.ReadAt(head, 0)
		if err != nil && err != io.EOF {
			return size, upright, fmt.Errorf("read media: %w", err)
		}
		held = readOrientation(head[:n])
	}
	return image.Pt(c.Width, c.Height), held, nil
}

var noThumbnail = matrix.Errorf(http.StatusBadRequest, matrix.CodeUnknown, "There can be no thumbnail of this file")

// thumbnailSize returns which part of a picture becomes the thumbnail, and how large
// that is. Pictures are not enlarged.
func thumbnailSize(size, box image.Point, crop bool) (from image.Rectangle, to image.Point) {
	if !crop {
		to = size
		if to.X > box.X {
			to = image.Pt(box.X, max(1, size.Y*box.X/size.X))
		}
		if to.Y > box.Y {
			to = image.Pt(max(1, size.X*box.Y/size.Y), box.Y)
		}
		return image.Rectangle{Max: size}, to
	}
	part := image.Pt(size.X, size.X*box.Y/box.X) // as wide as it gets
	if part.Y > size.Y {
		part = image.Pt(size.Y*box.X/box.Y, size.Y)
	}
	part = image.Pt(max(1, part.X), max(1, part.Y))
	corner := size.Sub(part).Div(2)
	to = box
	if part.X < box.X {
		to = part
	}
	return image.Rectangle{Min: corner, Max: corner.Add(part)}, to
}

// make decodes a picture and writes the thumbnail of a part of it. part and size are
// of the picture as it is stored, before it is turned.
func (m *media) make(ctx context.Context, path, to string, part image.Rectangle, size image.Point, held orientation) error {
	select {
	case m.decoding <- struct{}{}:
		defer func() { <-m.decoding }()
	case <-ctx.Done():
		return ctx.Err()
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open media: %w", err)
	}
	defer f.Close()
	picture, format, err := image.Decode(f)
	if err != nil {
		return noThumbnail
	}
	thumbnail := held.turned(scaled(picture, part, size))
	var b bytes.Buffer
	if format == "jpeg" {
		err = jpeg.Encode(&b, thumbnail, &jpeg.Options{Quality: 85})
	} else {
		err = png.Encode(&b, thumbnail)
	}
	if err != nil {
		return fmt.Errorf("encode thumbnail: %w", err)
	}
	_, err = writeFile(to, &b)
	return err
}

// scaled is a part of a picture in another size. From far larger ones it goes by
// way of one of four times the size, since the good method needs memory for each
// line of what it starts from.
func scaled(picture image.Image, part image.Rectangle, size image.Point) *image.RGBA {
	part = part.Add(picture.Bounds().Min)
	if between := size.Mul(4); part.Dx() > between.X && part.Dy() > between.Y {
		small := image.NewRGBA(image.Rectangle{Max: between})
		draw.ApproxBiLinear.Scale(small, small.Bounds(), picture, part, draw.Src, nil)
		picture, part = small, small.Bounds()
	}
	out := image.NewRGBA(image.Rectangle{Max: size})
	draw.BiLinear.Scale(out, out.Bounds(), picture, part, draw.Src, nil)
	return out
}
