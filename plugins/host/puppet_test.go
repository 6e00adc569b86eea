package host

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/plugins"
)

// The test binary, started again with this variable, is what its value says.
const role = "GJALLAR_TEST_ROLE"

var roles = map[string]func(){
	"puppet": func() { plugins.Main(puppet{}) },
	"rogue":  rogueMain,
	"host":   hostMain,
	"spawn":  spawnMain,
}

func TestMain(m *testing.M) {
	if be := roles[os.Getenv(role)]; be != nil {
		be()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// puppet is a backend whose network does as it is told in the text of commands.
type puppet struct{}

// strings of the puppet's configuration.
type puppetConfig struct {
	Open string `json:"open"` // "hang", "refuse", "exit", "crash": after a successful Open
	Dial string `json:"dial"` // an address to hold a connection to
}

func (puppet) Describe() backends.Info {
	return backends.Info{
		Protocol: "puppet", Title: "Puppet", Version: "1",
		Schema: json.RawMessage(`{"type": "object", "additionalProperties": false, "properties": {
			"open": {"type": "string"}, "dial": {"type": "string"}, "password": {"type": "string", "pattern": "^x", "x-secret": true}}}`),
		Capabilities: backends.Capabilities{Gateway: true},
	}
}

func (puppet) Open(ctx context.Context, config json.RawMessage, h backends.Host) (backends.Network, error) {
	var c puppetConfig
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, err
	}
	if c.Dial != "" {
		if _, err := net.Dial("tcp", c.Dial); err != nil {
			return nil, err
		}
	}
	switch c.Open {
	case "hang":
		select {}
	case "refuse":
		return nil, &backends.Refusal{Code: backends.RefusedInvalid, Message: "I will not"}
	case "exit":
		os.Exit(3)
	}
	n := &strung{host: h}
	if err := h.Deliver(ctx, &backends.Event{Body: &backends.NetworkState{Phase: backends.Ready}}, nil); err != nil {
		return nil, err
	}
	if c.Open == "crash" {
		time.AfterFunc(10*time.Millisecond, func() { os.Exit(4) })
	}
	return n, nil
}

// strung is a puppet's network.
type strung struct {
	host backends.Host
	mu   sync.Mutex
	held []func(backends.Result) // guarded by mu
}

func (n *strung) Send(ctx context.Context, cmd *backends.Command, reply func(backends.Result)) error {
	m, ok := cmd.Body.(*backends.Message)
	if !ok {
		reply(backends.Result{Outcome: backends.Unsupported})
		return nil
	}
	verb, rest, _ := strings.Cut(m.Text.Plain(), " ")
	do, ok := verbs[verb]
	if !ok {
		do = func(context.Context, *strung, string) (string, error) { return "", nil }
	}
	if verb == "hold" {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.held = append(n.held, reply)
		return nil
	}
	said, err := do(ctx, n, rest)
	if err != nil {
		reply(backends.Result{Outcome: backends.Rejected, Reason: err.Error()})
		return nil
	}
	reply(backends.Result{Outcome: backends.Delivered, IDs: []backends.MessageID{backends.MessageID(cmd.ID)}, Reason: said})
	return nil
}

// verbs are what a puppet can be told; what they return becomes the result.
var verbs = map[string]func(ctx context.Context, n *strung, rest string) (string, error){
	"environ": func(context.Context, *strung, string) (string, error) { return strings.Join(os.Environ(), "\n"), nil },
	"exit":    func(context.Context, *strung, string) (string, error) { os.Exit(5); return "", nil },
	"panic":   func(_ context.Context, _ *strung, rest string) (string, error) { panic(rest) },
	"log": func(_ context.Context, n *strung, rest string) (string, error) {
		n.host.Log().Info("puppet says", "what", rest, "number", 7)
		fmt.Fprintln(os.Stderr, "plain "+rest)
		return "", nil
	},
	"announce": func(ctx context.Context, n *strung, rest string) (string, error) {
		ev := said("stage", rest)
		ev.ID = backends.MessageID(rand.Text())
		return "", n.host.Deliver(ctx, ev, nil)
	},
	"eat": func(context.Context, *strung, string) (string, error) {
		var eaten [][]byte
		for range 64 {
			eaten = append(eaten, make([]byte, 64<<20)) // not even used
		}
		return fmt.Sprint(len(eaten)), nil
	},
	"spawn": func(_ context.Context, _ *strung, addr string) (string, error) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = []string{role + "=spawn", "GJALLAR_TEST_DIAL=" + addr}
		return "", cmd.Start()
	},
	"store":   exerciseStore,
	"upload":  exerciseMedia,
	"rooms":   exerciseRooms,
	"deliver": exerciseDeliver,
}

func (n *strung) Join(ctx context.Context, req backends.JoinRequest) (*backends.ChatInfo, error) {
	switch req.Chat.Chat {
	case "hang":
		<-ctx.Done()
		select {}
	case "full": // for all, at any time
		return nil, &backends.Refusal{Code: backends.RefusedFull, Message: "no room left"}
	case "nil":
		return nil, nil
	}
	return &backends.ChatInfo{Chat: req.Chat, Members: 3}, nil
}

func (n *strung) Leave(context.Context, backends.ChatKey) error { return nil }

// ResolveChat makes the network a Resolver; it is no Directory.
func (n *strung) ResolveChat(_ context.Context, query string) (*backends.ChatInfo, error) {
	return &backends.ChatInfo{Chat: backends.ChatKey{Chat: backends.ChatID("#" + query)}, Topic: new("found")}, nil
}

func (n *strung) ResolveUser(_ context.Context, query string) (*backends.User, error) {
	return nil, &backends.Refusal{Code: backends.RefusedNotFound, Message: "no " + query}
}

// Close answers what is held, and says goodbye.
func (n *strung) Close(ctx context.Context) error {
	n.mu.Lock()
	held := n.held
	n.held = nil
	n.mu.Unlock()
	for _, reply := range held {
		reply(backends.Result{Outcome: backends.Rejected, Reason: "closing"})
	}
	return n.host.Deliver(ctx, said("goodbye", "goodbye"), nil)
}

func said(chat backends.ChatID, text string) *backends.Event {
	return &backends.Event{
		Chat: backends.ChatKey{Chat: chat}, Sender: backends.User{ID: "puppet"}, ID: backends.MessageID(text),
		Body: &backends.Message{Text: richtext.Plain(text)},
	}
}

// spawnMain holds a connection until it is killed.
func spawnMain() {
	if _, err := net.Dial("tcp", os.Getenv("GJALLAR_TEST_DIAL")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	select {}
}

func exerciseStore(ctx context.Context, n *strung, _ string) (string, error) {
	s := n.host.Store()
	if b, err := s.Get(ctx, "none"); b != nil || err != nil {
		return "", fmt.Errorf("get of nothing: %q, %v", b, err)
	}
	if err := errors.Join(s.Put(ctx, "a/1", []byte("one")), s.Put(ctx, "a/2", []byte{}), s.Put(ctx, "b", []byte{0xff, 0})); err != nil {
		return "", err
	}
	if b, err := s.Get(ctx, "b"); !bytes.Equal(b, []byte{0xff, 0}) || err != nil {
		return "", fmt.Errorf("get: %q, %v", b, err)
	}
	if b, err := s.Get(ctx, "a/2"); b == nil || len(b) != 0 || err != nil {
		return "", fmt.Errorf("get of an empty value: %v, %v", b, err)
	}
	pairs, err := s.Scan(ctx, "a/")
	if err != nil || len(pairs) != 2 || string(pairs["a/1"]) != "one" {
		return "", fmt.Errorf("scan: %q, %v", pairs, err)
	}
	if err := s.Delete(ctx, "b"); err != nil {
		return "", err
	}
	if b, err := s.Get(ctx, "b"); b != nil || err != nil {
		return "", fmt.Errorf("get after delete: %q, %v", b, err)
	}
	err = s.Put(ctx, "big", make([]byte, 4<<20))
	if r, ok := errors.AsType[*backends.Refusal](err); !ok || r.Code != backends.RefusedTooLarge {
		if err == nil || !strings.Contains(err.Error(), "larger than max") {
			return "", fmt.Errorf("put of 4 MiB: %v", err)
		}
	}
	return "", nil
}

func exerciseMedia(ctx context.Context, n *strung, _ string) (string, error) {
	content := bytes.Repeat([]byte("0123456789"), 80_000)
	f, err := n.host.Media().Upload(ctx, backends.File{Name: "a.bin", MediaType: "application/x", Width: 3}, bytes.NewReader(content))
	if err != nil {
		return "", err
	}
	if f.Name != "a.bin" || f.Size != int64(len(content)) || f.Width != 3 {
		return "", fmt.Errorf("uploaded %+v", f)
	}
	_, err = n.host.Media().Upload(ctx, backends.File{}, io.LimitReader(zeros{}, 10<<20))
	if r, ok := errors.AsType[*backends.Refusal](err); !ok || r.Code != backends.RefusedTooLarge {
		return "", fmt.Errorf("upload beyond the limit: %v", err)
	}
	broken := io.MultiReader(strings.NewReader("half"), errorReader{})
	if _, err = n.host.Media().Upload(ctx, backends.File{}, broken); err == nil || !strings.Contains(err.Error(), "broken") {
		return "", fmt.Errorf("upload of what cannot be read: %v", err)
	}
	return f.URL, nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type errorReader struct{}

func (errorReader) Read([]byte) (int, error) { return 0, errors.New("broken") }

func exerciseRooms(ctx context.Context, n *strung, _ string) (string, error) {
	r := n.host.Rooms()
	if _, err := r.Authenticate(ctx, "alice", "wrong"); !refusedWith(err, backends.RefusedUnauthorized) {
		return "", fmt.Errorf("authenticate: %v", err)
	}
	u, err := r.Authenticate(ctx, "alice", "secret")
	if err != nil || u.Account != "@alice:test" {
		return "", fmt.Errorf("authenticate: %+v, %v", u, err)
	}
	name := backends.RoomName{Alias: "tea"}
	view, err := r.Enter(ctx, backends.EnterRequest{Chat: "#tea", Room: name, User: backends.User{ID: "bob"}, History: 10})
	if err != nil || len(view.Members) != 2 || *view.Info.Name != "Tea room" || len(view.History) != 2 {
		return "", fmt.Errorf("enter: %+v, %v", view, err)
	}
	if text := view.History[1].Body.(*backends.Message).Text.Plain(); text != "two" {
		return "", fmt.Errorf("history ends with %q", text)
	}
	before, err := r.History(ctx, "#tea", backends.User{ID: "bob"}, view.History[1].Time, 5)
	if err != nil || len(before) != 1 || !reflect.DeepEqual(before[0], view.History[0]) {
		return "", fmt.Errorf("history: %+v, %v", before, err)
	}
	if _, err := r.Enter(ctx, backends.EnterRequest{Chat: "#no", Room: backends.RoomName{Alias: "no"}}); !refusedWith(err, backends.RefusedNotFound) {
		return "", fmt.Errorf("enter nowhere: %v", err)
	}
	list, err := r.List(ctx, "tea", 5)
	if err != nil || len(list) != 1 || list[0].Room != name {
		return "", fmt.Errorf("list: %+v, %v", list, err)
	}
	if s, err := r.Peek(ctx, name); err != nil || s.Name != "Tea room" {
		return "", fmt.Errorf("peek: %+v, %v", s, err)
	}
	if u, err := r.Whois(ctx, "alice", ""); err != nil || u.Account != "@alice:test" {
		return "", fmt.Errorf("whois: %+v, %v", u, err)
	}
	return "", r.Exit(ctx, "#tea", backends.User{ID: "bob"}, "enough")
}

func refusedWith(err error, code backends.RefusalCode) bool {
	r, ok := errors.AsType[*backends.Refusal](err)
	return ok && r.Code == code
}

// exerciseDeliver tells of two events and says what became of them.
func exerciseDeliver(ctx context.Context, n *strung, _ string) (string, error) {
	receipts := make(chan backends.Receipt, 4)
	for _, text := range []string{"good", "bad"} {
		if err := n.host.Deliver(ctx, said("receipts", text), func(r backends.Receipt) { receipts <- r }); err != nil {
			return "", err
		}
	}
	good, bad := <-receipts, <-receipts
	if good.Err != nil || bad.Err == nil {
		good, bad = bad, good
	}
	huge := said("receipts", strings.Repeat("x", 4<<20))
	if err := n.host.Deliver(ctx, huge, func(backends.Receipt) { panic("done after an error") }); !refusedWith(err, backends.RefusedTooLarge) {
		return "", fmt.Errorf("deliver of 4 MiB: %v", err)
	}
	return fmt.Sprintf("%s, %s: %s", good.ID, bad.Err.Code, bad.Err.Message), nil
}
