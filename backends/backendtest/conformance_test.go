package backendtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

// parrot is a backend in memory: a chat, "perch", in which a parrot says what the
// test wants, and hears everything.
type parrot struct{}

func (parrot) Describe() backends.Info {
	return backends.Info{
		Protocol: "parrot", Title: "Parrot", Version: "1",
		Schema: json.RawMessage(`{"type": "object", "required": ["nick"], "properties": {"nick": {"type": "string"}}}`),
	}
}

func (parrot) Open(ctx context.Context, config json.RawMessage, h backends.Host) (backends.Network, error) {
	var c struct{ Nick string }
	if err := json.Unmarshal(config, &c); err != nil || c.Nick == "" {
		return nil, errors.New("no nick")
	}
	n := &cage{host: h}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n, h.Deliver(ctx, &backends.Event{Body: &backends.NetworkState{Phase: backends.Ready}}, nil)
}

type cage struct {
	host   backends.Host
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	heard  []string
	said   int
}

func (n *cage) Send(ctx context.Context, cmd *backends.Command, reply func(backends.Result)) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || ctx.Err() != nil {
		return errors.New("closed")
	}
	n.heard = append(n.heard, cmd.Body.(*backends.Message).Text.Plain())
	reply(backends.Result{Outcome: backends.Delivered, IDs: []backends.MessageID{backends.MessageID(cmd.ID)}})
	return nil
}

func (n *cage) Join(_ context.Context, req backends.JoinRequest) (*backends.ChatInfo, error) {
	if req.Chat.Chat != "perch" {
		return nil, &backends.Refusal{Code: backends.RefusedNotFound, Message: "no such perch"}
	}
	return &backends.ChatInfo{Chat: req.Chat}, nil
}

func (n *cage) Leave(context.Context, backends.ChatKey) error { return nil }

func (n *cage) Close(context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	n.cancel()
	return nil
}

func (n *cage) say(text string) {
	n.mu.Lock()
	n.said++
	id := backends.MessageID(fmt.Sprint(n.said))
	n.mu.Unlock()
	_ = n.host.Deliver(n.ctx, &backends.Event{
		Chat: backends.ChatKey{Chat: "perch"}, Sender: backends.User{ID: "polly"}, ID: id,
		Body: &backends.Message{Text: richtext.Plain(text)},
	}, nil)
}

func TestRunPassesABackendThatKeepsTheContract(t *testing.T) {
	Run(t, Case{
		Backend: parrot{},
		Config:  func(testing.TB) json.RawMessage { return json.RawMessage(`{"nick": "polly"}`) },
		Bad:     []json.RawMessage{json.RawMessage(`{"nick": ""}`), json.RawMessage(`{`)},
		Chat:    backends.ChatKey{Chat: "perch"},
		NoChat:  backends.ChatKey{Chat: "nowhere"},
		Sender:  backends.User{Account: "@alice:test", Name: "alice"},
		Say:     func(_ testing.TB, n backends.Network, text string) { n.(*cage).say(text) },
	})
}
