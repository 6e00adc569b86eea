package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The clients that measure the bridge from outside: they know nothing of it.

// ircClient is a connection of someone on IRC.
type ircClient struct {
	conn  net.Conn
	nick  string
	lines chan ircLine // closed when the connection ends
}

// ircLine is a line of the server and when it came.
type ircLine struct {
	text string
	at   time.Time
}

// dialIRC connects and registers a nick.
func dialIRC(ctx context.Context, addr, nick string) (*ircClient, error) {
	conn, err := dialRaw(ctx, addr)
	if err != nil {
		return nil, err
	}
	c := &ircClient{conn: conn, nick: nick, lines: make(chan ircLine, 100_000)}
	go c.read()
	if err := c.send("NICK "+nick, "USER "+nick+" 0 * :"+nick); err != nil {
		return nil, err
	}
	if _, err := c.wait(ctx, func(l string) bool { return strings.Contains(l, " 001 ") }); err != nil {
		conn.Close()
		return nil, fmt.Errorf("register %s: %w", nick, err)
	}
	return c, nil
}

func dialRaw(ctx context.Context, addr string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

func (c *ircClient) read() {
	defer close(c.lines)
	s := bufio.NewScanner(c.conn)
	for s.Scan() {
		line := strings.TrimRight(s.Text(), "\r")
		if rest, ok := strings.CutPrefix(line, "PING "); ok {
			c.send("PONG " + rest)
			continue
		}
		c.lines <- ircLine{line, time.Now()}
	}
}

func (c *ircClient) send(lines ...string) error {
	_, err := io.WriteString(c.conn, strings.Join(lines, "\r\n")+"\r\n")
	return err
}

// wait returns the next line for which match holds; those before it are dropped.
func (c *ircClient) wait(ctx context.Context, match func(string) bool) (ircLine, error) {
	for {
		select {
		case l, ok := <-c.lines:
			if !ok {
				return ircLine{}, errors.New("the connection has ended")
			}
			if match(l.text) {
				return l, nil
			}
		case <-ctx.Done():
			return ircLine{}, ctx.Err()
		}
	}
}

// join enters a channel.
func (c *ircClient) join(ctx context.Context, channel string) error {
	if err := c.send("JOIN " + channel); err != nil {
		return err
	}
	_, err := c.wait(ctx, func(l string) bool { return strings.Contains(l, " 366 ") })
	return err
}

// said is the text of a PRIVMSG, "" for other lines.
func said(line string) string {
	_, rest, ok := strings.Cut(line, " PRIVMSG ")
	if !ok {
		return ""
	}
	_, text, _ := strings.Cut(rest, " :")
	return text
}

func (c *ircClient) close() { c.conn.Close() }

// matrixClient is someone logged in to a homeserver.
type matrixClient struct {
	base, token, user string
	http              *http.Client
	since             string
	heard             []heard // and not asked for yet
}

// registerMatrix makes an account with its name as password.
func registerMatrix(ctx context.Context, base, name string) (*matrixClient, error) {
	c := &matrixClient{base: base, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	var out struct {
		User  string `json:"user_id"`
		Token string `json:"access_token"`
	}
	err := c.do(ctx, "POST", "/register", map[string]any{"username": name, "password": name, "auth": map[string]string{"type": "m.login.dummy"}}, &out)
	c.user, c.token = out.User, out.Token
	return c, err
}

// do makes a request below /_matrix/client/v3.
func (c *matrixClient) do(ctx context.Context, method, path string, body, into any) error {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/_matrix/client/v3"+path, r)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %.300s", method, path, resp.Status, b)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(b, into)
}

// join enters a room by its ID or alias and returns its ID.
func (c *matrixClient) join(ctx context.Context, room string) (string, error) {
	var out struct {
		Room string `json:"room_id"`
	}
	err := c.do(ctx, "POST", "/join/"+url.PathEscape(room), map[string]any{}, &out)
	return out.Room, err
}

// say sends a text; the transaction ID is the text too.
func (c *matrixClient) say(ctx context.Context, room, text string) error {
	return c.do(ctx, "PUT", "/rooms/"+url.PathEscape(room)+"/send/m.room.message/"+url.PathEscape(text), map[string]string{"msgtype": "m.text", "body": text}, nil)
}

// matrixMessage is a message in a room's timeline.
type matrixMessage struct {
	ID      string `json:"event_id"`
	Sender  string `json:"sender"`
	Type    string `json:"type"`
	Content struct {
		Body    string `json:"body"`
		Type    string `json:"msgtype"`
		Relates struct {
			ReplyTo struct {
				ID string `json:"event_id"`
			} `json:"m.in_reply_to"`
		} `json:"m.relates_to"`
	} `json:"content"`
}

// news waits for what is new in a room, and returns when it came.
func (c *matrixClient) news(ctx context.Context, room string) ([]matrixMessage, time.Time, error) {
	var out struct {
		Next  string `json:"next_batch"`
		Rooms struct {
			Join map[string]struct {
				Timeline struct {
					Events  []matrixMessage `json:"events"`
					Limited bool            `json:"limited"`
					Prev    string          `json:"prev_batch"`
				} `json:"timeline"`
			} `json:"join"`
		} `json:"rooms"`
	}
	q := url.Values{"timeout": {"30000"}, "filter": {`{"room":{"timeline":{"limit":200},"state":{"lazy_load_members":true}},"presence":{"types":[]}}`}}
	if c.since != "" {
		q.Set("since", c.since)
	}
	if err := c.do(ctx, "GET", "/sync?"+q.Encode(), nil, &out); err != nil {
		return nil, time.Time{}, err
	}
	at, before := time.Now(), c.since
	c.since = out.Next
	r := out.Rooms.Join[room].Timeline
	if !r.Limited || before == "" {
		return r.Events, at, nil
	}
	gap, err := c.gap(ctx, room, r.Prev, before)
	return append(gap, r.Events...), time.Now(), err
}

// gap reads what a /sync left out, oldest first.
func (c *matrixClient) gap(ctx context.Context, room, from, to string) (out []matrixMessage, err error) {
	for from != "" {
		var page struct {
			Chunk []matrixMessage `json:"chunk"`
			End   string          `json:"end"`
		}
		q := url.Values{"dir": {"b"}, "from": {from}, "to": {to}, "limit": {"1000"}}
		if err := c.do(ctx, "GET", "/rooms/"+url.PathEscape(room)+"/messages?"+q.Encode(), nil, &page); err != nil {
			return nil, err
		}
		out, from = append(out, page.Chunk...), page.End
	}
	slices.Reverse(out)
	return out, nil
}
