package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sync"
)

// handlerTransport answers requests by calling a handler in memory, so that the
// bridge and the homeserver of one process speak HTTP without a socket.
type handlerTransport struct{ handler http.Handler }

// streamAbove is how many bytes of a response are gathered before the rest is
// passed on as it is written.
const streamAbove = 64 << 10

// RoundTrip runs the handler in a goroutine that ends, at the latest, when the
// request's context does or the response body is closed.
func (t *handlerTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(req.Context())
	in := req.WithContext(ctx)
	in.RequestURI, in.RemoteAddr, in.Proto, in.ProtoMajor, in.ProtoMinor = req.URL.RequestURI(), "127.0.0.1:0", "HTTP/1.1", 1, 1
	if in.Host == "" {
		in.Host = req.URL.Host
	}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	w := &memoryWriter{header: http.Header{}, ready: make(chan struct{}), trace: httptrace.ContextClientTrace(req.Context())}
	go w.serve(t.handler, in)
	select {
	case <-w.ready:
	case <-ctx.Done():
		cancel()
		return nil, ctx.Err()
	}
	if w.err != nil {
		cancel()
		return nil, w.err
	}
	return &http.Response{
		Status: fmt.Sprintf("%d %s", w.status, http.StatusText(w.status)), StatusCode: w.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, Body: &memoryBody{w.body, cancel}, ContentLength: w.length, Request: req,
	}, nil
}

// memoryWriter is the handler's side. Until ready is closed its fields belong to
// the handler's goroutine; after that sent, status, body, length and err are fixed.
type memoryWriter struct {
	header http.Header
	trace  *httptrace.ClientTrace // hears of informational responses; may be nil
	buf    bytes.Buffer
	pipe   *io.PipeWriter
	once   sync.Once
	ready  chan struct{}

	sent   http.Header
	status int
	body   io.ReadCloser
	length int64
	err    error
}

func (w *memoryWriter) serve(h http.Handler, r *http.Request) {
	defer r.Body.Close()
	defer func() {
		p := recover()
		switch {
		case w.pipe != nil && p != nil:
			w.pipe.CloseWithError(fmt.Errorf("handler panicked: %v", p))
		case w.pipe != nil:
			w.pipe.Close()
		case p != nil:
			w.err = fmt.Errorf("handler panicked: %v", p)
			w.once.Do(func() { close(w.ready) })
		default:
			w.answer(io.NopCloser(&w.buf), int64(w.buf.Len()))
		}
	}()
	h.ServeHTTP(w, r)
}

// answer lets RoundTrip return.
func (w *memoryWriter) answer(body io.ReadCloser, length int64) {
	w.once.Do(func() {
		w.WriteHeader(http.StatusOK)
		w.body, w.length = body, length
		close(w.ready)
	})
}

func (w *memoryWriter) Header() http.Header { return w.header }

func (w *memoryWriter) WriteHeader(status int) {
	if status < 200 && w.status == 0 && w.trace != nil && w.trace.Got1xxResponse != nil {
		w.trace.Got1xxResponse(status, textproto.MIMEHeader(w.header))
	}
	if w.status == 0 && status >= 200 {
		w.status, w.sent = status, w.header.Clone()
	}
}

func (w *memoryWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.pipe != nil {
		return w.pipe.Write(b)
	}
	w.buf.Write(b)
	if w.buf.Len() > streamAbove {
		w.stream()
	}
	return len(b), nil
}

// Flush passes on what was written so far.
func (w *memoryWriter) Flush() {
	if w.pipe == nil {
		w.stream()
	}
}

func (w *memoryWriter) stream() {
	r, pw := io.Pipe()
	w.pipe = pw
	w.answer(r, -1)
	pw.Write(w.buf.Bytes())
}

// memoryBody ends the handler's request when the reader is done with it.
type memoryBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *memoryBody) Close() error {
	b.cancel()
	return b.ReadCloser.Close()
}
