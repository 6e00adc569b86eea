// Package xmpp connects the bridge to XMPP as an external component (XEP-0114)
// of any server.
//
// One network plays two parts. As a client it joins MUCs of others: a bot sees
// all that happens there, and users of the host are occupants of their own, with
// addresses user_server@domain. As a gateway it shows rooms of the host as MUCs:
// alias@domain is one of the host's own aliases, alias%server@domain (or
// #alias#server@domain) one of another server's.
//
// A chat ID is the bare JID of a MUC, or the JID of a private chat's peer; the
// domain tells the gateway's rooms from others.
package xmpp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"mellium.im/xmpp/jid"

	"github.com/gjallar-im/gjallar/backends"
)

// schema is of [Config].
var schema = json.RawMessage(`{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "type": "object",
  "required": ["server", "domain", "secret"],
  "additionalProperties": false,
  "properties": {
    "server": {"type": "string", "pattern": "^.+:[0-9]+$", "title": "Where the XMPP server listens for components, host:port", "examples": ["127.0.0.1:5347"]},
    "domain": {"type": "string", "title": "The component's address at that server", "examples": ["matrix.example.org"]},
    "secret": {"type": "string", "minLength": 1, "x-secret": true, "title": "The component's secret at that server"},
    "muc_nick": {"type": "string", "minLength": 1, "default": "gjallar", "title": "Nick of the bridge's bot in MUCs"},
    "limits": {
      "type": "object",
      "additionalProperties": false,
      "properties": {
        "rate": {"type": "number", "exclusiveMinimum": 0, "default": 10, "title": "Stanzas a second that one remote user may send to rooms of the host"},
        "burst": {"type": "integer", "minimum": 1, "default": 50, "title": "How many of them at once"},
        "history": {"type": "integer", "minimum": 0, "default": 50, "title": "Most messages of the past shown on joining a room"},
        "occupants": {"type": "integer", "minimum": 1, "default": 1000, "title": "Most members of the host's side shown in a room"}
      }
    }
  }
}`)

// Config of a network.
type Config struct {
	Server  string `json:"server"`
	Domain  string `json:"domain"`
	Secret  string `json:"secret"`
	MUCNick string `json:"muc_nick"`
	Limits  Limits `json:"limits"`
}

// Limits of what gateway users may do and see.
type Limits struct {
	Rate      float64 `json:"rate"`
	Burst     int     `json:"burst"`
	History   int     `json:"history"`
	Occupants int     `json:"occupants"`
}

// parseConfig checks what the schema cannot.
func parseConfig(raw json.RawMessage) (*Config, jid.JID, error) {
	c := &Config{MUCNick: "gjallar", Limits: Limits{Rate: 10, Burst: 50, History: 50, Occupants: 1000}}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(c); err != nil {
		return nil, jid.JID{}, fmt.Errorf("read configuration: %w", err)
	}
	if _, _, err := net.SplitHostPort(c.Server); err != nil {
		return nil, jid.JID{}, fmt.Errorf("server %q is not host:port: %w", c.Server, err)
	}
	domain, err := jid.New("", c.Domain, "")
	if err != nil {
		return nil, jid.JID{}, fmt.Errorf("domain %q: %w", c.Domain, err)
	}
	if c.Secret == "" {
		return nil, jid.JID{}, errors.New("secret is missing")
	}
	if c.Limits.Rate <= 0 || c.Limits.Burst < 1 || c.Limits.History < 0 || c.Limits.Occupants < 1 {
		return nil, jid.JID{}, errors.New("limits must be positive")
	}
	return c, domain, nil
}

type backend struct{}

// New returns the XMPP backend.
func New() backends.Backend { return backend{} }

func (backend) Describe() backends.Info {
	return backends.Info{
		Protocol: "xmpp",
		Title:    "XMPP",
		Version:  "1",
		Schema:   schema,
		Capabilities: backends.Capabilities{
			Formatting: true, Edits: true, Replies: true, Reactions: true, Removals: true, Files: true, Typing: true,
			Topic: true, Kicks: true, Direct: true, Accounts: true, History: true, Gateway: true, Confirmed: true,
		},
	}
}

func (backend) Open(ctx context.Context, config json.RawMessage, host backends.Host) (backends.Network, error) {
	c, domain, err := parseConfig(config)
	if err != nil {
		return nil, err
	}
	return open(ctx, c, domain, host, nil)
}
