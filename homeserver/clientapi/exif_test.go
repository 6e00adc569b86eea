package clientapi

import (
	"encoding/binary"
	"image"
	"image/color"
	"slices"
	"testing"
)

// withExif is the beginning of a JPEG file whose orientation is o.
func withExif(order binary.AppendByteOrder, mark string, o uint16) []byte {
	tiff := order.AppendUint32([]byte(mark), 8)
	tiff = order.AppendUint16(tiff, 2)
	for _, e := range [][2]uint16{{0x010f, 1}, {0x0112, o}} { // the maker, the orientation
		tiff = order.AppendUint16(order.AppendUint16(tiff, e[0]), 3)
		tiff = order.AppendUint32(tiff, 1)
		tiff = order.AppendUint16(order.AppendUint16(tiff, e[1]), 0)
	}
	out := []byte{0xff, 0xd8, 0xff, 0xe0, 0, 4, 'x', 'x', 0xff, 0xe1}
	out = binary.BigEndian.AppendUint16(out, uint16(2+6+len(tiff)))
	return append(append(out, "Exif\x00\x00"...), tiff...)
}

func TestOrientationIsRead(t *testing.T) {
	for o := range uint16(12) {
		want := orientation(o)
		if o < 1 || o > 8 {
			want = upright
		}
		little, big := withExif(binary.LittleEndian, "II*\x00", o), withExif(binary.BigEndian, "MM\x00*", o)
		if readOrientation(little) != want || readOrientation(big) != want {
			t.Errorf("%d is read as %d and %d", o, readOrientation(little), readOrientation(big))
		}
		for n := range little { // cut anywhere
			if got := readOrientation(little[:n]); got != upright {
				t.Errorf("%d of %d bytes are read as %d", n, len(little), got)
			}
		}
	}
}

// TestOrientations turns a picture whose pixels are 1 2 over 3 4 over 5 6. What is
// wanted is what the table of the specification says of rows and columns.
func TestOrientations(t *testing.T) {
	stored := image.NewRGBA(image.Rect(0, 0, 2, 3))
	for i := range 6 {
		stored.SetRGBA(i%2, i/2, color.RGBA{uint8(i + 1), 0, 0, 255})
	}
	tests := []struct {
		o     orientation
		width int
		want  []uint8
	}{
		{1, 2, []uint8{1, 2, 3, 4, 5, 6}},
		{2, 2, []uint8{2, 1, 4, 3, 6, 5}}, // mirrored
		{3, 2, []uint8{6, 5, 4, 3, 2, 1}}, // upside down
		{4, 2, []uint8{5, 6, 3, 4, 1, 2}},
		{5, 3, []uint8{1, 3, 5, 2, 4, 6}}, // row 0 is the left side, column 0 the top
		{6, 3, []uint8{5, 3, 1, 6, 4, 2}}, // row 0 is the right side, column 0 the top
		{7, 3, []uint8{6, 4, 2, 5, 3, 1}},
		{8, 3, []uint8{2, 4, 6, 1, 3, 5}}, // row 0 is the left side, column 0 the bottom
	}
	for _, tt := range tests {
		m := tt.o.turned(stored)
		var got []uint8
		for y := range m.Bounds().Dy() {
			for x := range m.Bounds().Dx() {
				got = append(got, m.RGBAAt(x, y).R)
			}
		}
		if m.Bounds().Dx() != tt.width || !slices.Equal(got, tt.want) {
			t.Errorf("%d: %v in lines of %d, want %v", tt.o, got, m.Bounds().Dx(), tt.want)
		}
	}
}

func FuzzOrientation(f *testing.F) {
	f.Add(withExif(binary.LittleEndian, "II*\x00", 6))
	f.Add(withExif(binary.BigEndian, "MM\x00*", 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o := readOrientation(b); o < 1 || o > 8 {
			t.Errorf("%x is orientation %d", b, o)
		}
	})
}
