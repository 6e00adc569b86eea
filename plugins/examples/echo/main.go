// Command echo is the smallest useful backend: a network with any chat you like,
// in which somebody called Echo repeats what is said.
package main

import (
	"context"
	"encoding/json"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/plugins"
)

func main() { plugins.Main(echo{}) }

type echo struct{}

func (echo) Describe() backends.Info {
	return backends.Info{
		Protocol: "echo", Title: "Echo", Version: "1",
		Schema:       json.RawMessage(`{"type": "object", "additionalProperties": false}`),
		Capabilities: backends.Capabilities{Formatting: true, Confirmed: true},
	}
}

func (echo) Open(ctx context.Context, _ json.RawMessage, host backends.Host) (backends.Network, error) {
	return network{host}, host.Deliver(ctx, &backends.Event{Body: &backends.NetworkState{Phase: backends.Ready}}, nil)
}

type network struct{ backends.Host }

func (n network) Send(ctx context.Context, cmd *backends.Command, reply func(backends.Result)) error {
	id := backends.MessageID("echo-" + cmd.ID) // the same when it is sent again
	err := n.Deliver(ctx, &backends.Event{Chat: cmd.Chat, Sender: backends.User{ID: "echo", Name: "Echo"}, ID: id, Body: cmd.Body}, nil)
	if err == nil {
		reply(backends.Result{Outcome: backends.Delivered, IDs: []backends.MessageID{backends.MessageID(cmd.ID)}})
	}
	return err
}

func (n network) Join(_ context.Context, req backends.JoinRequest) (*backends.ChatInfo, error) {
	return &backends.ChatInfo{Chat: req.Chat}, nil
}

func (n network) Leave(context.Context, backends.ChatKey) error { return nil }
func (n network) Close(context.Context) error                   { return nil }
