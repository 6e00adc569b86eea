// Package irc is the IRC backend: a client of an IRC network, with a connection
// of its own (the bot) that follows channels, and one for each user of the host
// who speaks there (an account), as long as the network and the configuration
// allow. Who has none is relayed by the bot: "<name> text".
//
// Chats are channels, and nicks in the private chats of accounts; both IDs are
// as the host gave them in Join, else folded by the network's CASEMAPPING. User
// IDs are folded nicks.
//
// A message counts as delivered once the network said so: by its echo where
// there is echo-message, else by the PONG to a PING that followed it on the same
// connection. If the connection ends before, the bot may have seen the message, or
// its sender's QUIT without it (type sightings); if the process does, a journal in
// the host's store tells whether it was begun (type journal). Only what neither can
// tell is Uncertain.
//
// Each chat has a goroutine that carries out its commands in order (type lane), and
// each connection one that owns its state (type conn). Events of all connections go
// to the host through one queue.
//
// Not spoken: STS, SCRAM, draft/multiline, draft/chathistory (a server that replays
// history by itself on JOIN is understood). Ban lists are not mirrored: what a ban
// means for users of the host shows when they are kicked or refused.
package irc

import (
	"context"
	"encoding/json"
	"net"
	"time"

	"github.com/gjallar-im/gjallar/backends"
)

// New returns the backend, for protocol "irc".
func New() backends.Backend { return newBackend() }

func newBackend() *backend { return &backend{dial: (&net.Dialer{}).DialContext, backoff: backoff} }

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

type backend struct {
	dial    dialFunc
	backoff func(attempt int) time.Duration // before the next attempt to connect
}

// capabilities of a network that offers nothing beyond RFC 1459.
var capabilities = backends.Capabilities{
	Formatting: true,
	Topic:      true,
	Kicks:      true,
	Direct:     true,
	Accounts:   true,
	Confirmed:  true,
}

// Describe implements backends.Backend.
func (b *backend) Describe() backends.Info {
	return backends.Info{
		Protocol:     "irc",
		Title:        "Internet Relay Chat",
		Version:      "1",
		Schema:       json.RawMessage(schema),
		Capabilities: capabilities,
	}
}

// Open implements backends.Backend.
func (b *backend) Open(_ context.Context, raw json.RawMessage, host backends.Host) (backends.Network, error) {
	cfg, err := parseConfig(raw)
	if err != nil {
		return nil, err
	}
	return open(cfg, b, host), nil
}
