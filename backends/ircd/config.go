package ircd

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Values of config.Guests.
const (
	guestsLoopback = "loopback" // if the bound address is a loopback address
	guestsAlways   = "always"
	guestsNever    = "never"
)

type config struct {
	Listen     string `json:"listen"`
	TLSCert    string `json:"tls_cert"`
	TLSKey     string `json:"tls_key"`
	ServerName string `json:"server_name"`
	Guests     string `json:"guests"`
	Create     bool   `json:"create"`
	History    int    `json:"history"`
	MOTD       string `json:"motd"`
	Limits     limits `json:"limits"`
}

type limits struct {
	Clients   int     `json:"clients"`
	PerIP     int     `json:"per_ip"`
	LineRate  float64 `json:"line_rate"`
	SendQueue int     `json:"send_queue"`
}

func defaults() config {
	return config{
		Listen:     "127.0.0.1:6667",
		ServerName: "localhost",
		Guests:     guestsLoopback,
		Create:     true,
		History:    20,
		Limits:     limits{Clients: 1000, PerIP: 20, LineRate: 10, SendQueue: 1 << 20},
	}
}

// lineBurst is how many lines a client may send at once before LineRate holds.
const lineBurst = 40

const schema = `{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "IRC listener",
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "listen": {"type": "string", "default": "127.0.0.1:6667", "description": "Address for IRC clients, host:port; port 0 is any free one."},
    "tls_cert": {"type": "string", "default": "", "description": "PEM file of the certificate chain. With it the listener speaks TLS alone."},
    "tls_key": {"type": "string", "default": "", "description": "PEM file of the key of tls_cert."},
    "server_name": {"type": "string", "default": "localhost", "pattern": "^[A-Za-z0-9.:\\[\\]-]*$", "description": "What clients see as the server's name; rooms with it after their alias are local."},
    "guests": {"enum": ["loopback", "always", "never"], "default": "loopback", "description": "Who may talk without an account: everybody if the listener is bound to a loopback address, everybody, nobody."},
    "create": {"type": "boolean", "default": true, "description": "JOIN makes a public room if there is none of that name."},
    "history": {"type": "integer", "minimum": 0, "maximum": 500, "default": 20, "description": "How many messages are shown on JOIN."},
    "motd": {"type": "string", "default": "", "description": "Message of the day, several lines if need be."},
    "limits": {
      "type": "object",
      "additionalProperties": false,
      "properties": {
        "clients": {"type": "integer", "minimum": 1, "default": 1000, "description": "Connections in all."},
        "per_ip": {"type": "integer", "minimum": 0, "default": 20, "description": "Connections from one address (one /64 of IPv6); 0 is no limit. Loopback is exempt."},
        "line_rate": {"type": "number", "minimum": 0, "default": 10, "description": "Lines a second from one client; more wait. 0 is no limit. Loopback is exempt."},
        "send_queue": {"type": "integer", "minimum": 65536, "default": 1048576, "description": "Bytes that may wait for one client before it is disconnected."}
      }
    }
  }
}`

// parseConfig reads a configuration; absent keys have their defaults.
func parseConfig(raw json.RawMessage) (config, error) {
	cfg := defaults()
	if len(bytes.TrimSpace(raw)) > 0 {
		d := json.NewDecoder(bytes.NewReader(raw))
		d.DisallowUnknownFields()
		if err := d.Decode(&cfg); err != nil {
			return cfg, err
		}
	}
	cfg.ServerName = cmp.Or(cfg.ServerName, "localhost")
	cfg.Guests = cmp.Or(cfg.Guests, guestsLoopback)
	return cfg, cfg.check()
}

func (c *config) check() error {
	switch {
	case strings.ContainsFunc(c.ServerName, func(r rune) bool { return r <= ' ' || r == '!' || r == '@' }) || c.ServerName[0] == ':':
		return fmt.Errorf("server_name: %q cannot be a server's name", c.ServerName)
	case c.Guests != guestsLoopback && c.Guests != guestsAlways && c.Guests != guestsNever:
		return fmt.Errorf("guests: %q is none of loopback, always, never", c.Guests)
	case (c.TLSCert == "") != (c.TLSKey == ""):
		return errors.New("tls_cert and tls_key: one is set without the other")
	case c.History < 0 || c.History > 500:
		return fmt.Errorf("history: %d is not within 0 and 500", c.History)
	case c.Limits.Clients < 1 || c.Limits.PerIP < 0 || c.Limits.LineRate < 0 || c.Limits.SendQueue < 65536:
		return errors.New("limits: a limit is below its minimum")
	}
	return nil
}

// bind starts listening.
func (c *config) bind(ctx context.Context) (net.Listener, error) {
	var security *tls.Config
	if c.TLSCert != "" {
		pair, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
		if err != nil {
			return nil, fmt.Errorf("tls_cert and tls_key: %w", err)
		}
		security = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return nil, err
	}
	if security != nil {
		l = tls.NewListener(l, security)
	}
	return l, nil
}

// guestsOn says whether guests are welcome at a listener bound to addr.
func (c *config) guestsOn(addr net.Addr) bool {
	return c.Guests == guestsAlways || c.Guests == guestsLoopback && ipOf(addr).IsLoopback()
}

// ipOf returns the address without its port; the zero Addr if it has no IP.
func ipOf(addr net.Addr) netip.Addr {
	if addr == nil {
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}
