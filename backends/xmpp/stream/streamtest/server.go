// Package streamtest is the server's end of a component's stream (XEP-0114), in
// memory, for tests that say and read each stanza themselves.
package streamtest

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"net"
	"testing"

	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// Secret that the server wants.
const Secret = "s3cr3t"

// Server takes connections through Dial.
type Server struct {
	tb    testing.TB
	conns chan net.Conn
}

// New returns a server without connections.
func New(tb testing.TB) *Server { return &Server{tb: tb, conns: make(chan net.Conn)} }

// Dial is for stream.Options. It waits for Accept.
func (s *Server) Dial(ctx context.Context, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case s.conns <- ours:
		return theirs, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Conn is one connection of a component.
type Conn struct {
	net.Conn
	tb testing.TB
	*xep.Reader
	To string // the address in the stream's head
}

// Accept takes the next connection and answers its handshake.
func (s *Server) Accept() *Conn {
	s.tb.Helper()
	c := &Conn{Conn: <-s.conns, tb: s.tb}
	s.tb.Cleanup(func() { c.Close() })
	c.Reader = xep.NewReader(c.Conn)
	head, err := c.Head()
	if err != nil {
		s.tb.Fatalf("stream head: %v", err)
	}
	c.To = head.Attr("to")
	c.Write("<?xml version='1.0'?><stream:stream xmlns:stream='%s' xmlns='%s' from='%s' id='a&lt;b'>", xep.NSStream, xep.NSComponent, c.To)
	sum := sha1.Sum([]byte("a<b" + Secret))
	if got := c.Read().Text(); got != hex.EncodeToString(sum[:]) {
		c.Write("<stream:error><not-authorized xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>")
		c.Close()
		return c
	}
	c.Write("<handshake/>")
	return c
}

// Write sends XML.
func (c *Conn) Write(format string, args ...any) {
	c.tb.Helper()
	if _, err := fmt.Fprintf(c.Conn, format, args...); err != nil {
		c.tb.Errorf("write to component: %v", err)
	}
}

// Read returns the next stanza of the component.
func (c *Conn) Read() *xep.Element {
	c.tb.Helper()
	e, err := c.Next()
	if err != nil {
		c.tb.Fatalf("read from component: %v", err)
	}
	return e
}
