package backendtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

// Case is a backend, and a world in which it is tried.
type Case struct {
	Backend backends.Backend
	// Config returns a configuration that works. It is called for each network, so
	// that each may have a world of its own. Nothing else of the Case is called for
	// another network until the one before is closed.
	Config func(tb testing.TB) json.RawMessage
	// Bad are configurations that the schema or Open must refuse.
	Bad []json.RawMessage
	// Chat can be joined. Empty: the network has no chats to join (a gateway).
	Chat backends.ChatKey
	// NoChat cannot be joined; the network refuses. Empty: it accepts any.
	NoChat backends.ChatKey
	// Sender is whom the commands come from.
	Sender backends.User
	// Opened, if not nil, is called with each network, when it has said Ready.
	Opened func(tb testing.TB, n backends.Network)
	// Say makes somebody remote say text in Chat, once it is joined. nil: the world
	// cannot, and what needs it is left out.
	Say func(tb testing.TB, n backends.Network, text string)
	// Heard waits until the remote side has seen the texts in Chat, in this order
	// and each once; others in between are overlooked. It fails the test if they do
	// not come. nil: the world cannot tell.
	Heard func(tb testing.TB, h *Host, texts []string)
	// Messages is how many are sent to see their order; 0 is 20. Networks that limit
	// their users' rate want fewer.
	Messages int
}

// Run checks that a backend keeps the contract of package backends. It is run for
// every backend, in process and through the plugin protocol.
func Run(t *testing.T, c Case) {
	if c.Messages == 0 {
		c.Messages = 20
	}
	for _, check := range []struct {
		name   string
		run    func(*testing.T, Case)
		needed bool
	}{
		{"Describe", checkDescribe, true},
		{"BadConfig", checkBadConfig, true},
		{"ReadyAndClose", checkReady, true},
		{"Join", checkJoin, c.Chat.Chat != ""},
		{"JoinRefused", checkJoinRefused, c.NoChat.Chat != ""},
		{"Send", checkSend, c.Chat.Chat != ""},
		{"SendFromManyGoroutines", checkSendConcurrently, c.Chat.Chat != ""},
		{"SendWithEndedContext", checkSendEnded, c.Chat.Chat != ""},
		{"Receive", checkReceive, c.Chat.Chat != "" && c.Say != nil},
		{"SlowHost", checkSlowHost, c.Chat.Chat != "" && c.Say != nil},
		{"CloseWithCommandsInHand", checkCloseBusy, c.Chat.Chat != ""},
		{"CloseWithAStuckHost", checkCloseStuck, c.Chat.Chat != "" && c.Say != nil},
	} {
		if check.needed { // otherwise the case does not say how to try it
			t.Run(check.name, func(t *testing.T) { check.run(t, c) })
		}
	}
}

var protocolName = regexp.MustCompile(`^[a-z][a-z0-9]*$`)

func checkDescribe(t *testing.T, c Case) {
	info := c.Backend.Describe()
	if !protocolName.MatchString(info.Protocol) {
		t.Errorf("protocol %q is not of lower-case letters and digits", info.Protocol)
	}
	if info.Title == "" || info.Version == "" {
		t.Errorf("title %q and version %q must say something", info.Title, info.Version)
	}
	schema, err := compile(info.Schema)
	if err != nil {
		t.Fatalf("schema: %v", err)
	}
	config, err := jsonschema.UnmarshalJSON(bytes.NewReader(c.Config(t)))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(config); err != nil {
		t.Errorf("the case's configuration does not satisfy the schema: %v", err)
	}
	again, _ := json.Marshal(c.Backend.Describe())
	if first, _ := json.Marshal(info); !bytes.Equal(first, again) {
		t.Error("Describe changes its mind")
	}
}

func compile(schema json.RawMessage) (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return nil, err
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	if err := compiler.AddResource("test:schema", doc); err != nil {
		return nil, err
	}
	return compiler.Compile("test:schema")
}

// checkBadConfig holds Open to what the case calls bad. A backend need not check
// what its schema does, as Open is called with what satisfies it.
func checkBadConfig(t *testing.T, c Case) {
	checkLeaks(t)
	schema, err := compile(c.Backend.Describe().Schema)
	if err != nil {
		t.Fatal(err)
	}
	for _, config := range c.Bad {
		if doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(config)); err != nil || schema.Validate(doc) != nil {
			continue
		}
		n, err := c.Backend.Open(t.Context(), config, NewHost(t))
		if err == nil {
			t.Errorf("Open takes %s", config)
			closeWithin(t, n, Patience)
		}
	}
}

// open returns a network that has said Ready and is closed at the end of the test,
// and what to call to close it before.
func open(t *testing.T, c Case) (*Host, backends.Network, func()) {
	t.Helper()
	checkLeaks(t)
	h := NewHost(t)
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	n, err := c.Backend.Open(ctx, c.Config(t), h)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	closeOnce := sync.OnceFunc(func() {
		h.Release()
		closeWithin(t, n, Patience)
	})
	t.Cleanup(closeOnce)
	h.WaitPhase(backends.Ready)
	if c.Opened != nil {
		c.Opened(t, n)
	}
	return h, n, closeOnce
}

func openJoined(t *testing.T, c Case) (*Host, backends.Network, func()) {
	t.Helper()
	h, n, closeOnce := open(t, c)
	if _, err := join(t, n, c.Chat); err != nil {
		t.Fatalf("join: %v", err)
	}
	return h, n, closeOnce
}

func join(t *testing.T, n backends.Network, chat backends.ChatKey) (*backends.ChatInfo, error) {
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	return n.Join(ctx, backends.JoinRequest{Chat: chat})
}

// closeWithin fails the test if Close takes longer than its context and a bit.
func closeWithin(t *testing.T, n backends.Network, patience time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- n.Close(ctx) }()
	select {
	case err := <-closed:
		return err
	case <-time.After(patience + Patience/2):
		t.Fatalf("Close has not returned %v after the end of its context; goroutines:\n%s", Patience/2, ours())
		return nil
	}
}

func checkReady(t *testing.T, c Case) {
	_, _, closeOnce := open(t, c)
	closeOnce()
	open(t, c) // and again
}

func checkJoin(t *testing.T, c Case) {
	_, n, _ := open(t, c)
	for range 2 { // joining again is harmless
		info, err := join(t, n, c.Chat)
		if err != nil {
			t.Fatalf("join: %v", err)
		}
		if info == nil || info.Chat != c.Chat {
			t.Errorf("Join tells of %+v, asked for %+v", info, c.Chat)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	if err := n.Leave(ctx, c.Chat); err != nil {
		t.Errorf("leave: %v", err)
	}
	if _, err := join(t, n, c.Chat); err != nil {
		t.Errorf("join after leave: %v", err)
	}
}

func checkJoinRefused(t *testing.T, c Case) {
	_, n, _ := open(t, c)
	_, err := join(t, n, c.NoChat)
	if r, ok := errors.AsType[*backends.Refusal](err); !ok || r.Code == "" || r.Message == "" {
		t.Errorf("err = %v, want a refusal that says why", err)
	}
}

func (c *Case) command(id, text string) *backends.Command {
	return &backends.Command{
		ID: id, Attempt: 1, Chat: c.Chat, Sender: c.Sender, Time: time.Now(),
		Body: &backends.Message{Text: richtext.Plain(text)},
	}
}

// results collects what commands became. Each may have one result.
type results struct {
	mu      sync.Mutex
	got     map[string][]backends.Result // guarded by mu
	changed chan struct{}                // closed and replaced at each change; guarded by mu
}

func newResults() *results {
	return &results{got: map[string][]backends.Result{}, changed: make(chan struct{})}
}

func (r *results) reply(id string) func(backends.Result) {
	return func(res backends.Result) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.got[id] = append(r.got[id], res)
		close(r.changed)
		r.changed = make(chan struct{})
	}
}

// wait waits until n commands have a result.
func (r *results) wait(t *testing.T, n int) {
	t.Helper()
	timeout := time.After(Patience)
	for {
		r.mu.Lock()
		have, changed := len(r.got), r.changed
		r.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("%d of %d commands have a result", have, n)
		}
	}
}

// check tells of commands with no result, or more than one.
func (r *results) check(t *testing.T, ids []string, allowed ...backends.Outcome) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		switch got := r.got[id]; {
		case len(got) != 1:
			t.Errorf("command %s has %d results: %+v", id, len(got), got)
		case !slices.Contains(allowed, got[0].Outcome):
			t.Errorf("command %s: outcome %d (%s), want one of %v", id, got[0].Outcome, got[0].Reason, allowed)
		}
	}
}

func checkSend(t *testing.T, c Case) {
	h, n, closeOnce := openJoined(t, c)
	got := newResults()
	var ids, texts []string
	for i := range c.Messages {
		id, text := fmt.Sprintf("send-%d", i), fmt.Sprintf("message %d of %d", i+1, c.Messages)
		ids, texts = append(ids, id), append(texts, text)
		if err := n.Send(t.Context(), c.command(id, text), got.reply(id)); err != nil {
			t.Fatalf("send %s: %v", id, err)
		}
	}
	got.wait(t, len(ids))
	if c.Heard != nil {
		c.Heard(t, h, texts)
	}
	closeOnce()
	got.check(t, ids, backends.Delivered)
	seen := map[backends.MessageID]string{}
	for _, id := range ids {
		for _, mid := range got.got[id][0].IDs {
			if other, ok := seen[mid]; ok || mid == "" {
				t.Errorf("commands %q and %q both became message %q", id, other, mid)
			}
			seen[mid] = id
		}
		if len(got.got[id][0].IDs) == 0 {
			t.Errorf("command %s was delivered without a message ID", id)
		}
	}
}

func checkSendConcurrently(t *testing.T, c Case) {
	_, n, closeOnce := openJoined(t, c)
	got := newResults()
	var ids []string
	var wg sync.WaitGroup
	for i := range min(c.Messages, 8) {
		id := fmt.Sprintf("many-%d", i)
		ids = append(ids, id)
		wg.Go(func() {
			if err := n.Send(t.Context(), c.command(id, "from goroutine "+id), got.reply(id)); err != nil {
				t.Errorf("send %s: %v", id, err)
			}
		})
	}
	wg.Wait()
	got.wait(t, len(ids))
	closeOnce()
	got.check(t, ids, backends.Delivered)
}

// checkSendEnded allows either: an error and no result, or none and one.
func checkSendEnded(t *testing.T, c Case) {
	_, n, closeOnce := openJoined(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got := newResults()
	err := n.Send(ctx, c.command("ended", "ended"), got.reply("ended"))
	closeOnce()
	if results := len(got.got["ended"]); (err == nil) != (results == 1) {
		t.Errorf("Send returned %v and gave %d results", err, results)
	}
}

// said returns the messages of Chat among events.
func (c *Case) said(events []*backends.Event) []*backends.Event {
	var said []*backends.Event
	for _, ev := range events {
		if _, ok := ev.Body.(*backends.Message); ok && ev.Chat == c.Chat {
			said = append(said, ev)
		}
	}
	return said
}

// receive makes the world say some texts and waits until the last has come.
func (c *Case) receive(t *testing.T, h *Host, n backends.Network, texts []string) {
	t.Helper()
	for _, text := range texts {
		c.Say(t, n, text)
	}
	last := texts[len(texts)-1]
	NextBody(h, func(ev *backends.Event, m *backends.Message) bool {
		return ev.Chat == c.Chat && strings.Contains(m.Text.Plain(), last)
	})
}

// checkSaid holds what came against what was said: in order, each once, with an ID
// of its own and a sender.
func (c *Case) checkSaid(t *testing.T, h *Host, texts []string) {
	t.Helper()
	ids := map[backends.MessageID]bool{}
	var came []string
	for _, ev := range c.said(h.Events()) {
		text := ev.Body.(*backends.Message).Text.Plain()
		if !slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(text, s) }) {
			continue
		}
		came = append(came, text)
		if ev.ID == "" || ids[ev.ID] {
			t.Errorf("%q has ID %q, which is not its own", text, ev.ID)
		}
		ids[ev.ID] = true
		if ev.Sender.ID == "" && ev.Sender.Account == "" {
			t.Errorf("%q has no sender", text)
		}
	}
	if !slices.EqualFunc(came, texts, strings.Contains) {
		t.Errorf("said %q\ncame %q", texts, came)
	}
}

func sayings(what string, n int) []string {
	var texts []string
	for i := range n {
		texts = append(texts, fmt.Sprintf("%s %d.", what, i+1))
	}
	return texts
}

func checkReceive(t *testing.T, c Case) {
	h, n, _ := openJoined(t, c)
	texts := sayings("hear this", c.Messages)
	c.receive(t, h, n, texts)
	c.checkSaid(t, h, texts)
}

// checkSlowHost lets the host acknowledge nothing for a while.
func checkSlowHost(t *testing.T, c Case) {
	h, n, _ := openJoined(t, c)
	h.Hold(2)
	texts := sayings("slowly", c.Messages)
	said := make(chan struct{})
	go func() {
		defer close(said)
		for _, text := range texts {
			c.Say(t, n, text)
		}
	}()
	h.waitHeld(2)
	if held := h.Held(); held > 2 {
		t.Errorf("%d events passed a host that takes 2", held)
	}
	h.Release()
	<-said
	last := texts[len(texts)-1]
	NextBody(h, func(_ *backends.Event, m *backends.Message) bool { return strings.Contains(m.Text.Plain(), last) })
	c.checkSaid(t, h, texts)
}

// waitHeld waits until n events wait for their receipt.
func (h *Host) waitHeld(n int) {
	h.tb.Helper()
	timeout := time.After(Patience)
	for {
		h.mu.Lock()
		held, changed := len(h.pending), h.changed
		h.mu.Unlock()
		if held >= n {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			h.tb.Fatalf("%d of %d events came", held, n)
		}
	}
}

// checkCloseBusy closes a network at once after sending: each command that was
// taken has one result when Close has returned.
func checkCloseBusy(t *testing.T, c Case) {
	_, n, closeOnce := openJoined(t, c)
	got := newResults()
	var ids []string
	for i := range c.Messages {
		id := fmt.Sprintf("last-%d", i)
		if err := n.Send(t.Context(), c.command(id, id), got.reply(id)); err == nil {
			ids = append(ids, id)
		}
	}
	closeOnce()
	got.check(t, ids, backends.Delivered, backends.Retry, backends.Rejected, backends.Uncertain, backends.Interrupted)
}

// checkCloseStuck closes a network whose host takes no events any more. Close
// returns all the same.
func checkCloseStuck(t *testing.T, c Case) {
	h, n, closeOnce := openJoined(t, c)
	h.Hold(1)
	said := make(chan struct{})
	go func() {
		defer close(said)
		for _, text := range sayings("into the void", 4) {
			c.Say(t, n, text)
		}
	}()
	h.waitHeld(1)
	_ = closeWithin(t, n, time.Second)
	closeOnce()
	<-said
}

// checkLeaks fails the test if at its end goroutines of ours run that did not run
// before.
func checkLeaks(t *testing.T) {
	t.Helper()
	before := len(ours())
	t.Cleanup(func() {
		ticker := time.NewTicker(time.Millisecond)
		defer ticker.Stop()
		timeout := time.After(Patience / 2)
		for {
			left := ours()
			if len(left) <= before {
				return
			}
			select {
			case <-ticker.C: // there is nothing to wait for but that they end
			case <-timeout:
				t.Errorf("%d goroutines before the test, %d after:\n%s", before, len(left), strings.Join(left, "\n\n"))
				return
			}
		}
	})
}

// ours returns the stacks of the goroutines that run code of this module, without
// the tests' own.
func ours() []string {
	buf := make([]byte, 1<<20)
	for {
		if n := runtime.Stack(buf, true); n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	var stacks []string
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		if strings.Contains(stack, "gjallar-im/gjallar/") && !strings.Contains(stack, "testing.tRunner") {
			stacks = append(stacks, stack)
		}
	}
	return stacks
}
