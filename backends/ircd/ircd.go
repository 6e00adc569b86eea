// Package ircd is the IRC listener: an IRC client connects straight to Gjallar
// and joins rooms of the host as channels. It is a gateway (see
// [backends.Rooms]): the rooms are the host's, and so is the order of what
// happens in them.
//
// # Names
//
// "#alias" is the room of that alias on the host, "#alias:server" one of another
// server. Names are compared with CASEMAPPING=ascii; the ID of a chat is the
// folded name. A room whose alias has capitals is found if there is none with
// the small letters.
//
// # People
//
// A guest is a remote user whose ID is the folded nick that they connected with. A
// guest may not have the nick of an account of the host. NICK changes a guest's
// name, told to the host as a [backends.Profile], and not the ID, so that nobody
// leaves and joins for it; nobody else may have the old nick until the guest has gone.
//
// A client that has logged in (SASL PLAIN or PASS) speaks as its account and is
// called by the account's username on all its connections, as everybody sees it;
// NICK is refused with 447. PART leaves the room; QUIT does not, since an account
// is a member of its rooms without IRC too.
//
// Everybody else's nick is made from their username, unique in the listener: a
// second bob becomes "bob|example" after their server. Nobody's network address
// is shown to anyone.
//
// # Nothing lost in silence
//
// What the host refuses comes back as 404 with the reason and a NOTICE that
// quotes the beginning of the message. With labeled-response and without
// echo-message, ACK means that the host has stored the message.
//
// The client protocol is that of https://modern.ircdocs.horse/ with the
// capabilities in the table capabilities.
package ircd

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/gjallar-im/gjallar/backends"
)

// Protocol is what Info.Protocol says.
const Protocol = "ircd"

const version = "gjallar-1"

// New returns the backend. Its networks are [backends.Network] and have no
// further interfaces.
func New() backends.Backend { return backend{} }

type backend struct{}

// Describe implements backends.Backend.
func (backend) Describe() backends.Info {
	return backends.Info{
		Protocol: Protocol,
		Title:    "IRC listener",
		Version:  version,
		Schema:   json.RawMessage(schema),
		Capabilities: backends.Capabilities{
			Formatting: true,
			Typing:     true,
			Topic:      true,
			Kicks:      true,
			Gateway:    true,
		},
	}
}

// Open binds the address, so that one in use is an error here. The [backends.Ready]
// state that follows has the Reason "listening on " and the bound address,
// which tells the port if the configuration says 0.
func (backend) Open(ctx context.Context, raw json.RawMessage, host backends.Host) (backends.Network, error) {
	cfg, err := parseConfig(raw)
	if err != nil {
		return nil, fmt.Errorf("configuration of the IRC listener: %w", err)
	}
	l, err := cfg.bind(ctx)
	if err != nil {
		return nil, fmt.Errorf("listen for IRC clients: %w", err)
	}
	n := newNetwork(cfg, host, l)
	n.start()
	return n, nil
}
