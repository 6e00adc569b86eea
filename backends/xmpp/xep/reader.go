package xep

import (
	"bufio"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"unicode"
	"unicode/utf8"
)

// Limits of what a [Reader] takes. encoding/xml has none of its own.
const (
	MaxStanza = 256 << 10 // bytes
	MaxDepth  = 64        // of elements, the stanza itself being 1
	MaxAttrs  = 64        // of one element
	MaxSkip   = 1 << 20   // bytes of a stanza that is read but not kept
)

// Errors of a [Reader]. After one of the first three the stanza has been skipped and
// the next can be read: a server passes on larger stanzas than we take, and replays
// them from a room's history, so they must not cost the stream. After any other
// error the stream is of no more use.
var (
	ErrTooLarge   = errors.New("stanza is larger than 256 KiB")
	ErrTooDeep    = errors.New("stanza is nested deeper than 64")
	ErrElement    = errors.New("element with too many attributes, or one twice, or a name that is none")
	ErrEndless    = errors.New("stanza does not end within 1 MiB")
	ErrRestricted = errors.New("XML that streams must not contain: directive, processing instruction or comment")
)

// Skipped reports whether err says that a stanza was skipped.
func Skipped(err error) bool { return err == ErrTooLarge || err == ErrTooDeep || err == ErrElement }

// Reader reads stanzas from a stream. It is for one goroutine.
type Reader struct {
	budget *budgetReader
	dec    *xml.Decoder
	depth  int // of open elements of the stanza being read
}

// NewReader returns a Reader that has not read the stream's head yet.
func NewReader(r io.Reader) *Reader {
	b := &budgetReader{r: bufio.NewReader(r), left: MaxSkip}
	return &Reader{budget: b, dec: xml.NewDecoder(b)}
}

// budgetReader ends with ErrEndless after left bytes. It is a ByteReader, so
// the decoder puts no buffer before it and the count is exact.
type budgetReader struct {
	r    *bufio.Reader
	left int
}

func (b *budgetReader) ReadByte() (byte, error) {
	if b.left == 0 {
		return 0, ErrEndless
	}
	b.left--
	return b.r.ReadByte()
}

func (b *budgetReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c, err := b.ReadByte()
	if err != nil {
		return 0, err
	}
	p[0] = c
	return 1, nil
}

// Head reads the stream's opening tag, before it possibly an XML declaration.
func (r *Reader) Head() (*Element, error) {
	for first := true; ; first = false {
		tok, err := r.dec.Token()
		if err != nil {
			return nil, fmt.Errorf("read stream head: %w", err)
		}
		switch t := tok.(type) {
		case xml.ProcInst:
			if !first || t.Target != "xml" {
				return nil, ErrRestricted
			}
		case xml.CharData:
		case xml.StartElement:
			if t.Name != (xml.Name{Space: NSStream, Local: "stream"}) {
				return nil, fmt.Errorf("stream begins with <%s>", t.Name.Local)
			}
			return &Element{Name: t.Name, Attrs: t.Copy().Attr}, nil
		default:
			return nil, ErrRestricted
		}
	}
}

// Next reads the next stanza. It returns io.EOF after the stream was closed by
// its closing tag.
func (r *Reader) Next() (*Element, error) {
	for {
		r.budget.left, r.depth = MaxSkip, 0
		tok, err := r.dec.Token()
		if err != nil {
			return nil, err
		}
		switch t := tok.(type) {
		case xml.CharData: // keepalive
		case xml.EndElement:
			return nil, io.EOF
		case xml.StartElement:
			e, err := r.element(t)
			if Skipped(err) {
				if skipErr := r.skip(); skipErr != nil {
					return nil, skipErr
				}
			}
			return e, err
		default:
			return nil, ErrRestricted
		}
	}
}

// element reads the rest of an element.
func (r *Reader) element(start xml.StartElement) (*Element, error) {
	if r.depth++; r.depth > MaxDepth {
		return nil, ErrTooDeep
	}
	if !wellFormed(start) {
		return nil, ErrElement
	}
	e := &Element{Name: start.Name, Attrs: start.Copy().Attr}
	for {
		tok, err := r.dec.Token()
		if err != nil {
			return nil, err
		}
		if _, end := tok.(xml.EndElement); end {
			r.depth--
		}
		if r.budget.left < MaxSkip-MaxStanza {
			if _, begin := tok.(xml.StartElement); begin {
				r.depth++
			}
			return nil, ErrTooLarge
		}
		switch t := tok.(type) {
		case xml.CharData:
			if len(t) > 0 {
				e.AddText(string(t))
			}
		case xml.StartElement:
			child, err := r.element(t)
			if err != nil {
				return nil, err
			}
			e.Add(child)
		case xml.EndElement:
			return e, nil
		default:
			return nil, ErrRestricted
		}
	}
}

// skip reads to the end of a stanza.
func (r *Reader) skip() error {
	for r.depth > 0 {
		tok, err := r.dec.Token()
		if err != nil {
			return err
		}
		switch tok.(type) {
		case xml.StartElement:
			r.depth++
		case xml.EndElement:
			r.depth--
		case xml.CharData:
		default:
			return ErrRestricted
		}
	}
	return nil
}

// wellFormed checks what encoding/xml does not.
func wellFormed(e xml.StartElement) bool {
	attrs := e.Attr
	if len(attrs) > MaxAttrs || notFirst(e.Name.Local) {
		return false
	}
	for i, a := range attrs {
		if notFirst(a.Name.Local) {
			return false
		}
		for _, b := range attrs[:i] {
			if a.Name == b.Name {
				return false
			}
		}
	}
	return true
}

// notFirst reports whether a name, less its prefix, begins with what a name must
// not begin with.
func notFirst(name string) bool {
	r, _ := utf8.DecodeRuneInString(name)
	return !unicode.IsLetter(r) && r != '_'
}
