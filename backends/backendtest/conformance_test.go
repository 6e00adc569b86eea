package backendtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

// parrot is a backend in memory: a chat, "perch", in which a parrot says what the
// test wants, and hears everything.
//
// Its fault, if any, is a way of breaking the contract.
type parrot struct{ fault string }

func (p parrot) Describe() backends.Info {
	info := backends.Info{
		Protocol: "parrot", Title: "Parrot", Version: "1",
		Schema: json.RawMessage(`{"type": "object", "required": ["nick"], "properties": {"nick": {"type": "string"}}}`),
	}
	if p.fault == "schema that is none" {
		info.Schema = json.RawMessage(`{"type": "parrot"}`)
	}
	return info
}

func (p parrot) Open(ctx context.Context, config json.RawMessage, h backends.Host) (backends.Network, error) {
	var c struct{ Nick string }
	if err := json.Unmarshal(config, &c); err != nil || c.Nick == "" && p.fault != "any configuration" {
		return nil, errors.New("no nick")
	}
	n := &cage{host: h, fault: p.fault}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n, h.Deliver(ctx, &backends.Event{Body: &backends.NetworkState{Phase: backends.Ready}}, nil)
}

type cage struct {
	host   backends.Host
	fault  string
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
	result := backends.Result{Outcome: backends.Delivered, IDs: []backends.MessageID{backends.MessageID(cmd.ID)}}
	switch n.fault {
	case "two results":
		reply(result)
	case "no IDs":
		result.IDs = nil
	case "one ID for all":
		result.IDs[0] = "same"
	case "interrupted":
		result.Outcome = backends.Interrupted
	case "order of commands":
		slices.Reverse(n.heard)
	case "lost command":
		n.heard = n.heard[:min(len(n.heard), 3)]
	}
	reply(result)
	return nil
}

func (n *cage) Join(_ context.Context, req backends.JoinRequest) (*backends.ChatInfo, error) {
	if req.Chat.Chat != "perch" {
		if n.fault == "refusal that is none" {
			return nil, errors.New("no such perch")
		}
		return nil, &backends.Refusal{Code: backends.RefusedNotFound, Message: "no such perch"}
	}
	if n.fault == "another chat" {
		req.Chat.Chat = "branch"
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
	ev := &backends.Event{
		Chat: backends.ChatKey{Chat: "perch"}, Sender: backends.User{ID: "polly"}, ID: backends.MessageID(fmt.Sprint(n.said)),
		Body: &backends.Message{Text: richtext.Plain(text)},
	}
	n.mu.Unlock()
	times := 1
	switch n.fault {
	case "one ID for all events":
		ev.ID = "same"
	case "no sender":
		ev.Sender = backends.User{}
	case "event twice":
		times = 2
	case "lost event":
		if ev.ID == "3" {
			return
		}
	}
	for range times {
		_ = n.host.Deliver(n.ctx, ev, nil)
	}
}

// faults are found by the check of that name.
var faults = map[string]string{
	"schema that is none":   "Describe",
	"any configuration":     "BadConfig",
	"another chat":          "Join",
	"refusal that is none":  "JoinRefused",
	"two results":           "Send",
	"no IDs":                "Send",
	"one ID for all":        "Send",
	"interrupted":           "Send",
	"order of commands":     "Send",
	"lost command":          "Send",
	"one ID for all events": "Receive",
	"no sender":             "Receive",
	"event twice":           "Receive",
	"lost event":            "Receive",
}

const faultVariable = "GJALLAR_TEST_FAULT"

// TestRun passes a backend that keeps the contract. TestRunFindsFaults calls it for
// those that do not.
func TestRun(t *testing.T) {
	var last *cage
	Run(t, Case{
		Backend: parrot{os.Getenv(faultVariable)},
		Config:  func(testing.TB) json.RawMessage { return json.RawMessage(`{"nick": "polly"}`) },
		Bad:     []json.RawMessage{json.RawMessage(`{"nick": ""}`), json.RawMessage(`{`)},
		Chat:    backends.ChatKey{Chat: "perch"},
		NoChat:  backends.ChatKey{Chat: "nowhere"},
		Sender:  backends.User{Account: "@alice:test", Name: "alice"},
		Opened:  func(_ testing.TB, n backends.Network) { last = n.(*cage) },
		Say:     func(_ testing.TB, n backends.Network, text string) { n.(*cage).say(text) },
		Heard: func(tb testing.TB, _ *Host, texts []string) {
			last.mu.Lock()
			defer last.mu.Unlock()
			if !slices.Equal(last.heard, texts) {
				tb.Errorf("heard %q, want %q", last.heard, texts)
			}
		},
	})
}

func TestRunFindsFaults(t *testing.T) {
	for fault, check := range faults {
		t.Run(fault, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestRun$/^"+check+"$", "-test.v")
			cmd.Env = append(os.Environ(), faultVariable+"="+fault)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: TestRun/"+check+" ") {
				t.Errorf("%s did not find it (%v):\n%s", check, err, out)
			}
		})
	}
}
