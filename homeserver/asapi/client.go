package asapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/canonicaljson"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// Limits on what is asked of a service.
const (
	queryTimeout       = 20 * time.Second // a user waits for the answer
	transactionTimeout = 60 * time.Second
	maxAnswer          = 1 << 20 // bytes
)

// Client sends requests to application services.
type Client struct {
	http *http.Client

	mu     sync.Mutex
	legacy map[string]bool // guarded by mu: services, by ID, that know only the paths without prefix
}

// NewClient makes a client. The transport answers for every URL a registration
// may name.
func NewClient(transport http.RoundTripper) *Client {
	return &Client{
		http: &http.Client{
			Transport: transport,
			CheckRedirect: func(*http.Request, []*http.Request) error {
				return http.ErrUseLastResponse // a token must not follow a redirect
			},
		},
		legacy: map[string]bool{},
	}
}

// StatusError is an answer other than 200.
type StatusError struct {
	Status int
	Code   string // errcode, "" if the body had none
	Body   string // its beginning
}

func (e *StatusError) Error() string { return fmt.Sprintf("status %d %s", e.Status, e.Code) }

// Send delivers a transaction, given as its body. It has arrived if the error is nil.
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/#put_matrixappv1transactionstxnid
func (c *Client) Send(ctx context.Context, s *Service, txnID string, body json.RawMessage) error {
	ctx, cancel := context.WithTimeout(ctx, transactionTimeout)
	defer cancel()
	return c.do(ctx, s, http.MethodPut, "/transactions/"+url.PathEscape(txnID), nil, body, nil)
}

// UserExists asks whether a user in the service's namespace should be there. The
// service makes it before it says yes.
func (c *Client) UserExists(ctx context.Context, s *Service, u matrix.UserID) (bool, error) {
	return c.exists(ctx, s, "/users/"+url.PathEscape(string(u)))
}

// AliasExists asks whether a room alias in the service's namespace should be there.
func (c *Client) AliasExists(ctx context.Context, s *Service, a matrix.RoomAlias) (bool, error) {
	return c.exists(ctx, s, "/rooms/"+url.PathEscape(string(a)))
}

func (c *Client) exists(ctx context.Context, s *Service, path string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	err := c.do(ctx, s, http.MethodGet, path, nil, nil, nil)
	if e, ok := errors.AsType[*StatusError](err); ok && e.Status == http.StatusNotFound {
		return false, nil
	}
	return err == nil, err
}

// Ping makes the service say that it hears us.
func (c *Client) Ping(ctx context.Context, s *Service, txnID string) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	body := map[string]string{}
	if txnID != "" {
		body["transaction_id"] = txnID
	}
	return c.do(ctx, s, http.MethodPost, "/ping", nil, body, nil)
}

// ThirdParty asks for protocol/{name}, location[/{protocol}] or user[/{protocol}],
// and decodes the answer into out.
func (c *Client) ThirdParty(ctx context.Context, s *Service, what string, query url.Values, out any) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	return c.do(ctx, s, http.MethodGet, "/thirdparty/"+what, query, nil, out)
}

// do makes a request, and makes it again on the path that services written before
// the prefix was added understand.
func (c *Client) do(ctx context.Context, s *Service, method, path string, query url.Values, in, out any) error {
	if s.Registration.URL == "" {
		return fmt.Errorf("application service %q has no url", s.Registration.ID)
	}
	c.mu.Lock()
	legacy := c.legacy[s.Registration.ID]
	c.mu.Unlock()
	err := c.once(ctx, s, method, prefix(path, legacy)+path, query, in, out)
	e, ok := errors.AsType[*StatusError](err)
	if !ok || e.Status != http.StatusNotFound && e.Status != http.StatusMethodNotAllowed || !unknownPath(e) {
		return err
	}
	if second := c.once(ctx, s, method, prefix(path, !legacy)+path, query, in, out); second == nil {
		c.mu.Lock()
		c.legacy[s.Registration.ID] = !legacy
		c.mu.Unlock()
		return nil
	}
	return err
}

// unknownPath tells "there is no such path" from "there is no such user": the
// latter has an error code of its own.
func unknownPath(e *StatusError) bool { return e.Code == "" || e.Code == matrix.CodeUnrecognized }

func prefix(path string, legacy bool) string {
	switch {
	case !legacy:
		return "/_matrix/app/v1"
	case strings.HasPrefix(path, "/thirdparty/"):
		return "/_matrix/app/unstable"
	}
	return ""
}

func (c *Client) once(ctx context.Context, s *Service, method, path string, query url.Values, in, out any) error {
	var body io.Reader
	if in != nil {
		b, whole := in.(json.RawMessage)
		if !whole {
			var err error
			if b, err = json.Marshal(in); err != nil {
				return fmt.Errorf("encode request: %w", err)
			}
		}
		body = bytes.NewReader(b)
	}
	target := strings.TrimSuffix(s.Registration.URL, "/") + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return fmt.Errorf("request to application service %q: %w", s.Registration.ID, err)
	}
	req.Header.Set("Authorization", "Bearer "+s.Registration.HSToken)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("request to application service %q: %w", s.Registration.ID, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("answer of application service %q: %w", s.Registration.ID, err)
	}
	if resp.StatusCode != http.StatusOK {
		e := &StatusError{Status: resp.StatusCode, Body: string(answer[:min(len(answer), 512)])}
		var std struct {
			Code string `json:"errcode"`
		}
		if json.Unmarshal(answer, &std) == nil {
			e.Code = std.Code
		}
		return e
	}
	if out == nil {
		return nil
	}
	if err := canonicaljson.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("answer of application service %q: %w", s.Registration.ID, err)
	}
	return nil
}
