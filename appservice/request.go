package appservice

import (
	"bytes"
	"context"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// Bounds of a request.
const (
	requestTimeout = 60 * time.Second // of one attempt
	maxAnswer      = 64 << 20         // bytes; the state of a great room
	firstDelay     = 50 * time.Millisecond
	maxDelay       = 10 * time.Second
	limitedDelay   = time.Second // when the homeserver limits without saying for how long
)

// decoding is strict about the case of names, unlike encoding/json: an event that
// has "Sender" beside "sender" is by the sender. A name that comes twice is not
// worth stopping for.
var decoding = json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

func decode(b []byte, into any) error { return json.Unmarshal(b, into, decoding) }

// path joins segments, escaping those of odd place: path("rooms", id, "join")
// escapes id, so a prefix counts as one segment that is kept.
func path(prefix string, segments ...string) string {
	var b strings.Builder
	b.WriteString(prefix)
	for _, s := range segments {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(s))
	}
	return b.String()
}

// call is a request and what becomes of its answer.
type call struct {
	method, path string
	query        url.Values // without user_id
	in           any        // nil: no body
	out          any        // nil: the answer is not looked at
}

// do makes a request as the user and decodes the answer. It is repeated, as long
// as ctx lasts, when the homeserver limits the rate, and if it is a GET or PUT
// also when there is no answer, or one of a gateway that has none.
func (i *Intent) do(ctx context.Context, c call) error {
	var body []byte
	if c.in != nil {
		var err error
		if body, err = stdjson.Marshal(c.in); err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
	}
	return i.client.repeat(ctx, c.method, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		var r io.Reader
		if c.in != nil {
			r = bytes.NewReader(body)
		}
		resp, err := i.send(ctx, c, r, "application/json", int64(len(body)))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if c.out == nil {
			_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)) // so that the connection is used again
			return err
		}
		b, err := readAll(resp.Body, maxAnswer)
		if err != nil {
			return err
		}
		if err := decode(b, c.out); err != nil {
			return &badAnswer{err}
		}
		return nil
	})
}

// badAnswer is one that would be no better the next time.
type badAnswer struct{ err error }

func (e *badAnswer) Error() string { return "decode answer: " + e.err.Error() }
func (e *badAnswer) Unwrap() error { return e.err }

// send makes a request once; the response has status 200.
func (i *Intent) send(ctx context.Context, c call, body io.Reader, mediaType string, size int64) (*http.Response, error) {
	target := i.client.base + c.path
	if q := i.encode(c.query); q != "" {
		target += "?" + q
	}
	req, err := http.NewRequestWithContext(ctx, c.method, target, body)
	if err != nil {
		return nil, &badAnswer{err}
	}
	if i.token != "" {
		req.Header.Set("Authorization", i.token)
	}
	if trace := httptrace.ContextClientTrace(ctx); trace != nil && trace.Got1xxResponse != nil {
		req.Header.Set("Prefer", "processing") // Gjallar tells then when an event has its place
	}
	if body != nil {
		req.Header.Set("Content-Type", mediaType)
		req.ContentLength = size
	}
	resp, err := i.client.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, refusal(resp)
	}
	return resp, nil
}

func (i *Intent) encode(q url.Values) string {
	switch {
	case len(q) == 0:
		return i.query
	case i.query == "":
		return q.Encode()
	}
	return i.query + "&" + q.Encode()
}

func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = &badAnswer{fmt.Errorf("longer than %d bytes", limit)}
	}
	return b, err
}

// refusal reads an error response.
func refusal(resp *http.Response) *Error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var std struct {
		Code    string  `json:"errcode"`
		Message string  `json:"error"`
		After   float64 `json:"retry_after_ms"`
	}
	_ = decode(b, &std) // a gateway's page has none of it
	e := &Error{Status: resp.StatusCode, Code: std.Code, Message: std.Message}
	if std.After > 0 && std.After < 1e12 {
		e.RetryAfter = time.Duration(std.After) * time.Millisecond
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(min(s, 1e9)) * time.Second
	}
	return e
}

// repeat makes attempts until one succeeds, is refused for good, or ctx ends. It
// does not begin to wait for longer than ctx has left.
func (c *Client) repeat(ctx context.Context, method string, attempt func(context.Context) error) error {
	idempotent := method == http.MethodGet || method == http.MethodPut
	for delay := firstDelay; ; delay = min(2*delay, maxDelay) {
		err := attempt(ctx)
		wait, ok := pause(err, idempotent, delay)
		if err == nil || !ok || ctx.Err() != nil {
			return err
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < wait {
			return err
		}
		c.log.Debug("request to the homeserver is repeated", "method", method, "wait", wait, "err", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

// pause tells whether an attempt that ended so is to be repeated, and after how long.
func pause(err error, idempotent bool, delay time.Duration) (time.Duration, bool) {
	if e, ok := errors.AsType[*Error](err); ok {
		switch {
		case e.Code == matrix.CodeLimitExceeded && e.RetryAfter > 0:
			return e.RetryAfter, true
		case e.Code == matrix.CodeLimitExceeded:
			return max(delay, limitedDelay), true
		case e.Status < 502 || e.Status > 504 || e.Code != "":
			return 0, false
		}
	} else if _, bad := errors.AsType[*badAnswer](err); bad {
		return 0, false
	}
	return delay/2 + rand.N(delay), idempotent
}
