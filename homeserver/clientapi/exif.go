package clientapi

import (
	"bytes"
	"encoding/binary"
	"image"
)

// orientation is how a camera was held, as EXIF numbers it: 1 is upright, 2 to 8
// are what is to be done to the picture. Cameras turn the note, not the picture.
//
// Spec: CIPA DC-008 (Exif 2.32), §4.6.4, tag 0x0112
type orientation int

const upright orientation = 1

// sideways reports whether width and height change places.
func (o orientation) sideways() bool { return o >= 5 }

// source returns which point of a picture is at a point of the upright one. size is
// that of the picture as it is stored.
func (o orientation) source(p, size image.Point) image.Point {
	if o.sideways() {
		p = image.Pt(p.Y, p.X)
	}
	switch o {
	case 2, 3, 7, 8:
		p.X = size.X - 1 - p.X
	}
	switch o {
	case 3, 4, 6, 7:
		p.Y = size.Y - 1 - p.Y
	}
	return p
}

// turned is a picture made upright.
func (o orientation) turned(m *image.RGBA) *image.RGBA {
	if o == upright {
		return m
	}
	size := m.Bounds().Size()
	to := size
	if o.sideways() {
		to = image.Pt(size.Y, size.X)
	}
	out := image.NewRGBA(image.Rectangle{Max: to})
	for y := range to.Y {
		for x := range to.X {
			from := o.source(image.Pt(x, y), size)
			out.SetRGBA(x, y, m.RGBAAt(from.X, from.Y))
		}
	}
	return out
}

// readOrientation finds the orientation in the beginning of a JPEG file; upright if
// there is none that makes sense.
func readOrientation(head []byte) orientation {
	for _, data := range exifSegments(head) {
		if o, ok := tiffOrientation(data); ok {
			return o
		}
	}
	return upright
}

// exifSegments are the contents of a JPEG file's segments that hold EXIF data.
func exifSegments(b []byte) (out [][]byte) {
	const soi, app1, sos = 0xd8, 0xe1, 0xda
	if len(b) < 2 || b[0] != 0xff || b[1] != soi {
		return nil
	}
	for b = b[2:]; len(b) >= 4 && b[0] == 0xff && b[1] != sos; {
		n := int(binary.BigEndian.Uint16(b[2:])) // counts itself
		if n < 2 || 2+n > len(b) {
			return out
		}
		if data, ok := bytes.CutPrefix(b[4:2+n], []byte("Exif\x00\x00")); ok && b[1] == app1 {
			out = append(out, data)
		}
		b = b[2+n:]
	}
	return out
}

// tiffOrientation finds the tag in the first directory of TIFF data.
func tiffOrientation(b []byte) (orientation, bool) {
	if len(b) < 8 {
		return 0, false
	}
	var order binary.ByteOrder
	switch string(b[:4]) {
	case "II*\x00":
		order = binary.LittleEndian
	case "MM\x00*":
		order = binary.BigEndian
	default:
		return 0, false
	}
	at := uint64(order.Uint32(b[4:]))
	if at+2 > uint64(len(b)) {
		return 0, false
	}
	entries := b[at+2:]
	for range order.Uint16(b[at:]) {
		if len(entries) < 12 {
			return 0, false
		}
		const tag, short = 0x0112, 3
		if order.Uint16(entries) == tag && order.Uint16(entries[2:]) == short {
			o := orientation(order.Uint16(entries[8:]))
			return o, o >= 1 && o <= 8
		}
		entries = entries[12:]
	}
	return 0, false
}
