// Package stream is an external component's connection to an XMPP server
// (XEP-0114), kept up over failures.
//
// It negotiates itself rather than through mellium.im/xmpp/component, which puts
// the address into the stream's head unescaped, runs handlers in the read loop
// and does not reconnect.
package stream

import (
	"bytes"
	"context"
	"crypto/sha1" // XEP-0114 §3 prescribes it
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// Times of the connection.
const (
	dialTimeout  = 15 * time.Second
	writeTimeout = 20 * time.Second
	pingEvery    = 60 * time.Second
	pingTimeout  = 30 * time.Second
	firstRetry   = 500 * time.Millisecond
	lastRetry    = time.Minute
	writeQueue   = 1024
	maxResults   = 1000 // of one query
)

// Errors of the stream.
var (
	ErrAway = errors.New("not connected to the XMPP server")
	// ErrRefused means that the server refuses the component: wrong secret or domain.
	ErrRefused = errors.New("the XMPP server refuses the component")
)

// Options of a Component.
type Options struct {
	Addr   string // host:port
	Domain jid.JID
	Secret string
	Log    *slog.Logger
	// Dial opens the connection; nil is TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Handle gets each stanza but answers to [Component.Request], in order, in the
	// read loop: it must only pass them on.
	Handle func(ctx context.Context, e *xep.Element)
	// Up is called after each successful handshake, Down when a connection or the
	// attempt at one failed, both before the next stanza.
	Up   func(ctx context.Context)
	Down func(err error)
}

// Component is the connection. Run keeps it up.
type Component struct {
	opts Options

	mu      sync.Mutex
	conn    *connection                      // nil while away; guarded by mu
	pending map[requestKey]chan *xep.Element // guarded by mu
	queries map[requestKey]*[]*xep.Element   // guarded by mu
}

type requestKey struct{ from, id string }

type connection struct {
	net.Conn
	out  chan []byte
	done chan struct{} // closed when the connection has ended
}

// New returns a component that is not connected.
func New(opts Options) *Component {
	if opts.Dial == nil {
		opts.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
	return &Component{opts: opts, pending: map[requestKey]chan *xep.Element{}, queries: map[requestKey]*[]*xep.Element{}}
}

// Run connects, and again after each failure, until ctx ends.
func (c *Component) Run(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; failures++ {
		began := time.Now()
		err := c.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > lastRetry {
			failures = 0
		}
		c.opts.Down(err)
		wait := min(lastRetry, firstRetry<<min(failures, 10))
		wait = wait/2 + rand.N(wait/2)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// session runs one connection to its end.
func (c *Component) session(ctx context.Context) error {
	dialCtx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	nc, err := c.opts.Dial(dialCtx, c.opts.Addr)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", c.opts.Addr, err)
	}
	stop := context.AfterFunc(ctx, func() { nc.SetReadDeadline(time.Now()) })
	defer stop()
	defer nc.Close()
	r := xep.NewReader(nc)
	nc.SetDeadline(time.Now().Add(dialTimeout))
	if err := c.handshake(nc, r); err != nil {
		return err
	}
	nc.SetDeadline(time.Time{})
	if ctx.Err() != nil { // it ended before the line above took its deadline away
		return ctx.Err()
	}
	return c.serve(ctx, nc, r)
}

// handshake follows XEP-0114 §3.
func (c *Component) handshake(nc net.Conn, r *xep.Reader) error {
	var b bytes.Buffer
	b.WriteString(`<?xml version="1.0"?><stream:stream xmlns="` + xep.NSComponent + `" xmlns:stream="` + xep.NSStream + `"`)
	xep.AppendAttr(&b, "to", c.opts.Domain.String())
	b.WriteByte('>')
	if _, err := nc.Write(b.Bytes()); err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	head, err := r.Head()
	if err != nil {
		return err
	}
	sum := sha1.Sum([]byte(head.Attr("id") + c.opts.Secret))
	b.Reset()
	xep.New(xep.NSComponent, "handshake").AddText(hex.EncodeToString(sum[:])).Append(&b, xep.NSComponent)
	if _, err := nc.Write(b.Bytes()); err != nil {
		return fmt.Errorf("write handshake: %w", err)
	}
	answer, err := r.Next()
	if err != nil {
		return fmt.Errorf("read handshake: %w", err)
	}
	if !answer.Is(xep.NSComponent, "handshake") {
		return fmt.Errorf("%w: %s", ErrRefused, streamError(answer))
	}
	return nil
}

// streamError names the condition of a stream error.
func streamError(e *xep.Element) string {
	for _, c := range e.Children() {
		return c.Name.Local
	}
	return e.Name.Local
}

func (c *Component) serve(ctx context.Context, nc net.Conn, r *xep.Reader) error {
	conn := &connection{Conn: nc, out: make(chan []byte, writeQueue), done: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() { conn.write() })
	wg.Go(func() { c.keepalive(ctx, conn) })
	c.mu.Lock()
	c.conn = conn
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.conn = nil
		c.mu.Unlock()
		close(conn.done)
		wg.Wait()
	}()
	c.opts.Up(ctx)
	return c.read(ctx, r)
}

func (c *Component) read(ctx context.Context, r *xep.Reader) error {
	for {
		e, err := r.Next()
		switch {
		case xep.Skipped(err):
			c.opts.Log.Warn("stanza dropped", "err", err)
		case errors.Is(err, io.EOF):
			return errors.New("the XMPP server closed the stream")
		case err != nil:
			return fmt.Errorf("read stream: %w", err)
		case e.Is(xep.NSStream, "error"):
			return fmt.Errorf("stream error: %s", streamError(e))
		case !xep.IsStanza(e):
		case c.answer(e), c.collect(e):
		default:
			c.opts.Handle(ctx, e)
		}
	}
}

// answer hands an iq answer to the request that waits for it. The sender must be
// the one who was asked; other answers are dropped.
func (c *Component) answer(e *xep.Element) bool {
	if e.Name.Local != "iq" || (e.Attr("type") != "result" && e.Attr("type") != "error") {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := requestKey{e.Attr("from"), e.Attr("id")}
	if ch := c.pending[key]; ch != nil {
		ch <- e
		delete(c.pending, key)
	}
	return true
}

// write sends what is queued, as much at once as there is.
func (conn *connection) write() {
	var batch bytes.Buffer
	for {
		select {
		case b := <-conn.out:
			batch.Write(b)
		case <-conn.done:
			conn.drain(&batch)
			return
		}
		for more := true; more && batch.Len() < 64<<10; {
			select {
			case b := <-conn.out:
				batch.Write(b)
			default:
				more = false
			}
		}
		conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := conn.Write(batch.Bytes()); err != nil {
			conn.Close() // the read loop ends with it
			<-conn.done
			return
		}
		batch.Reset()
	}
}

// drain says goodbye after the last stanzas; errors no longer matter.
func (conn *connection) drain(batch *bytes.Buffer) {
	for len(conn.out) > 0 {
		batch.Write(<-conn.out)
	}
	batch.WriteString("</stream:stream>")
	conn.SetWriteDeadline(time.Now().Add(time.Second))
	conn.Write(batch.Bytes())
}

// keepalive pings the server (XEP-0199) and ends the connection if no answer
// comes. Any answer will do, an error included.
func (c *Component) keepalive(ctx context.Context, conn *connection) {
	server := c.opts.Domain
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-conn.done:
			return
		case <-tick.C:
		}
		pingCtx, cancel := context.WithTimeout(ctx, pingTimeout)
		// Sent to our own domain, the server routes it back to us: that proves both
		// directions. The answer is ours too (package xmpp answers pings).
		_, err := c.Request(pingCtx, xep.IQ(server, server, "get").Add(xep.New(xep.NSPing, "ping")))
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			c.opts.Log.Warn("XMPP server does not answer pings", "server", c.opts.Addr)
			conn.Close()
		}
	}
}

// Send queues a stanza. It blocks while the queue is full, or until ctx ends;
// ErrAway means that there is no connection.
func (c *Component) Send(ctx context.Context, e *xep.Element) error {
	_, err := c.send(ctx, e)
	return err
}

// send returns the connection that took the stanza.
func (c *Component) send(ctx context.Context, e *xep.Element) (*connection, error) {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		return nil, ErrAway
	}
	var b bytes.Buffer
	e.Append(&b, xep.NSComponent)
	select {
	case conn.out <- b.Bytes():
		return conn, nil
	case <-conn.done:
		return nil, ErrAway
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Collect sends a query of an archive (XEP-0313) and returns the answer with the
// messages that came for it: those with the query's queryid from whom it was sent to.
func (c *Component) Collect(ctx context.Context, iq *xep.Element, queryID string) (results []*xep.Element, fin *xep.Element, err error) {
	key := requestKey{iq.Attr("to"), queryID}
	c.mu.Lock()
	c.queries[key] = &results
	c.mu.Unlock()
	fin, err = c.Request(ctx, iq)
	c.mu.Lock()
	delete(c.queries, key)
	c.mu.Unlock()
	return results, fin, err
}

// collect takes a message that is a result of a query; those nobody asked for
// are dropped.
func (c *Component) collect(e *xep.Element) bool {
	result := e.Child(xep.NSMAM, "result")
	if result == nil || e.Name.Local != "message" {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if list := c.queries[requestKey{e.Attr("from"), result.Attr("queryid")}]; list != nil && len(*list) < maxResults {
		*list = append(*list, result)
	}
	return true
}

// Request sends an iq and waits for its answer. A refusal is an [*xep.Error].
func (c *Component) Request(ctx context.Context, iq *xep.Element) (*xep.Element, error) {
	key := requestKey{iq.Attr("to"), iq.Attr("id")}
	ch := make(chan *xep.Element, 1)
	c.mu.Lock()
	c.pending[key] = ch
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.pending, key)
		c.mu.Unlock()
	}()
	conn, err := c.send(ctx, iq)
	if err != nil {
		return nil, err
	}
	select {
	case <-conn.done:
		return nil, ErrAway
	case answer := <-ch:
		if e := xep.ErrorOf(answer); e != nil {
			return nil, e
		}
		return answer, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
