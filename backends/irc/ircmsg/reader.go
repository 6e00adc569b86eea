package ircmsg

import (
	"bufio"
	"errors"
	"io"

	"gopkg.in/irc.v4"
)

// maxLongLine bounds what Parse takes, for networks whose LINELEN is above MaxLine.
const maxLongLine = 8192

// Limits of the lines of a Reader, in bytes.
type Limits struct {
	Tags int // with "@" and the space after them
	Line int // the rest, with CR LF
}

var (
	// FromClients is what a server takes.
	FromClients = Limits{Tags: MaxClientTags, Line: MaxLine}
	// FromServers is what a client takes. It is generous about the rest of the
	// line: some servers send more than MaxLine.
	FromServers = Limits{Tags: MaxTags, Line: 2 * MaxLine}
)

// Reader reads lines. It is for one goroutine.
type Reader struct {
	r      *bufio.Reader
	limits Limits
}

// NewReader returns a Reader with limits.
func NewReader(r io.Reader, limits Limits) *Reader {
	return &Reader{bufio.NewReaderSize(r, limits.Tags+limits.Line), limits}
}

// ReadLine returns the next line without its end, CR LF or LF alone. Empty lines
// are skipped.
//
// After [ErrTooLong] the line is consumed and reading may go on; any other error
// is that of the connection. A line cut short by the end of the input is lost.
func (r *Reader) ReadLine() (string, error) {
	for {
		b, err := r.r.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			return "", r.skip()
		}
		if err != nil {
			return "", err
		}
		if r.tooLong(b) {
			return "", ErrTooLong
		}
		for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r') {
			b = b[:len(b)-1]
		}
		if len(b) > 0 {
			return string(b), nil
		}
	}
}

// skip consumes the rest of a line. It returns ErrTooLong or the connection's error.
func (r *Reader) skip() error {
	for {
		switch _, err := r.r.ReadSlice('\n'); err {
		case nil:
			return ErrTooLong
		case bufio.ErrBufferFull:
		default:
			return err
		}
	}
}

func (r *Reader) tooLong(b []byte) bool {
	tags := 0
	if b[0] == '@' {
		for tags < len(b) && b[tags] != ' ' {
			tags++
		}
		tags = min(tags+1, len(b))
	}
	return tags > r.limits.Tags || len(b)-tags > r.limits.Line
}

// ReadMessage returns the next line as a message. Besides the errors of ReadLine
// it returns those of [Parse], after which reading may go on too: see [Fatal].
func (r *Reader) ReadMessage() (*irc.Message, error) {
	line, err := r.ReadLine()
	if err != nil {
		return nil, err
	}
	return Parse(line)
}

// Fatal reports whether err, of ReadLine or ReadMessage, ends the connection: it is
// not about one line.
func Fatal(err error) bool {
	return err != nil && !errors.Is(err, ErrTooLong) && !errors.Is(err, ErrEmpty) && !errors.Is(err, ErrMalformed)
}
