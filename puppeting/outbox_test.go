package puppeting

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// count is how many rows of a table there are.
func (w *world) count(table string) (n int) {
	w.tb.Helper()
	if err := w.db.QueryRow(w.tb.Context(), `SELECT count(*) FROM `+table).Scan(&n); err != nil {
		w.tb.Fatal(err)
	}
	return n
}

// drained waits until the outbox is empty.
func (w *world) drained() {
	w.tb.Helper()
	w.until("empty outbox", func() bool { return w.count("bridge_outbox") == 0 }, func() string { return fmt.Sprint(w.count("bridge_outbox"), " rows") })
}

// heard are the texts of all messages that were delivered, in order.
func (n *fakeNet) heard() (out []string) {
	for _, c := range n.commands() {
		if s := plainOf(c); s != "" {
			out = append(out, s)
		}
	}
	return out
}

func TestTheOrderIsKept(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	var want []string
	for i := range 150 {
		want = append(want, fmt.Sprintf("line %d", i))
		alice.Say(room, want[i])
	}
	irc.hears(t, want[len(want)-1])
	if got := irc.heard(); !slices.Equal(got, want) {
		t.Errorf("out of order: %q", got)
	}
	for i := range 150 {
		irc.says(t, "#go", "bob", fmt.Sprintf("remote %d", i))
	}
	w.seeBody(alice, room, "remote 149")
	i := 0
	for _, e := range w.timeline(alice, room) {
		if e.body() == fmt.Sprintf("remote %d", i) {
			i++
		}
	}
	if i != 150 {
		t.Errorf("only the first %d are in order", i)
	}
	w.drained()
}

func TestWhatIsAskedToBeTriedAgainHoldsUpWhatFollows(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	open := false // a network that cannot take one command does not take those behind it
	irc.set(func() {
		irc.answer = func(c *backends.Command) backends.Result {
			if open = open || plainOf(c) == "first" && c.Attempt == 3; !open {
				return backends.Result{Outcome: backends.Retry, After: time.Millisecond}
			}
			return backends.Result{Outcome: backends.Delivered, IDs: []backends.MessageID{"x" + backends.MessageID(c.ID)}}
		}
	})
	alice.Say(room, "first")
	alice.Say(room, "second")
	w.until("delivery", func() bool { return w.count("bridge_message") == 2 }, func() string { return "" })
	cmds := slices.DeleteFunc(irc.commands(), func(c *backends.Command) bool { return plainOf(c) == "" })
	last := cmds[len(cmds)-2:]
	if plainOf(last[0]) != "first" || plainOf(last[1]) != "second" || last[0].Attempt != 3 || last[0].MaybeSent || last[0].ID != cmds[0].ID {
		t.Errorf("last commands: %+v, %+v", last[0], last[1])
	}
}

func TestAnInterruptedCommandIsMaybeSent(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	irc.set(func() {
		irc.answer = func(c *backends.Command) backends.Result {
			switch {
			case c.Attempt == 1 && plainOf(c) != "":
				return backends.Result{Outcome: backends.Interrupted, After: time.Millisecond}
			case c.Attempt == 2: // says nothing of the first attempt
				return backends.Result{Outcome: backends.Retry, After: time.Millisecond}
			}
			return backends.Result{Outcome: backends.Delivered}
		}
	})
	alice.Say(room, "hm")
	for attempt := 1; attempt <= 3; attempt++ {
		if c := irc.hears(t, "hm"); c.MaybeSent != (attempt > 1) || c.Attempt != attempt {
			t.Errorf("command %+v", c)
		}
	}
	w.drained()
}

func TestWhatCannotBeDeliveredTellsItsSender(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	for _, tt := range []struct {
		outcome backends.Outcome
		notice  string
	}{
		{backends.Rejected, "Your message was not delivered to irc: no voice"},
		{backends.Unsupported, "Your message cannot be passed on to irc: no voice"},
		{backends.Uncertain, "Your message may not have reached irc: no voice"},
	} {
		irc.set(func() {
			irc.answer = func(*backends.Command) backends.Result {
				return backends.Result{Outcome: tt.outcome, Reason: "no voice"}
			}
		})
		id := string(alice.Say(room, tt.notice[:20]))
		refers := func(e *event) bool {
			rel, _ := e.Content["m.relates_to"].(map[string]any)
			reply, _ := rel["m.in_reply_to"].(map[string]any)
			return rel["event_id"] == id || reply["event_id"] == id
		}
		n := w.see(alice, room, tt.notice, func(e *event) bool { return e.body() == tt.notice && refers(e) })
		if n.Sender != "@gjallar:test" || n.Content["msgtype"] != "m.notice" {
			t.Errorf("notice %+v", n)
		}
		s := w.see(alice, room, "status event", func(e *event) bool { return e.Type == typeStatus && refers(e) })
		if s.Content["status"] != "FAIL_PERMANENT" || s.Content["network"] != "irc" || s.Content["message"] != "no voice" {
			t.Errorf("status %+v", s)
		}
	}
	w.drained()
	if n := w.count("bridge_deadletter"); n != 3 {
		t.Errorf("%d dead letters", n)
	}
	for _, c := range irc.commands() {
		if strings.HasPrefix(plainOf(c), "Your message was") && c.Sender.Account == "@gjallar:test" {
			t.Error("a notice of the bridge crossed it")
		}
	}
}

func TestMessagesWaitForTheirNetworkAndExpire(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	w.drained()
	if err := irc.phase(t.Context(), backends.Disconnected); err != nil {
		t.Fatal(err)
	}
	alice.Say(room, "later")
	w.until("queued message", func() bool { return w.count("bridge_outbox WHERE event LIKE '%later%'") == 1 }, func() string { return "" })
	if slices.Contains(irc.heard(), "later") {
		t.Fatal("a command was sent to a network that is away")
	}
	if err := irc.phase(t.Context(), backends.Ready); err != nil {
		t.Fatal(err)
	}
	irc.hears(t, "later")
	w.drained()

	irc.set(func() { irc.down = true })
	w.opts.Expiry = time.Nanosecond
	w.restart()
	alice.Say(room, "too late")
	w.see(alice, room, "notice", func(e *event) bool {
		return strings.HasPrefix(e.body(), "Your message was not delivered to irc: irc could not be reached")
	})
}

func TestAnEncryptedRoomIsComplainedOfOnce(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	for range 3 {
		w.send(alice, room, "m.room.encrypted", map[string]any{"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x"})
	}
	alice.Say(room, "end")
	irc.hears(t, "end")
	n := 0
	w.see(alice, room, "notice", func(e *event) bool { return strings.Contains(e.body(), "is encrypted") })
	w.drained()
	for _, e := range w.timeline(alice, room) {
		if strings.Contains(e.body(), "is encrypted") {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d notices", n)
	}
}

func TestATransactionIsTakenOnce(t *testing.T) {
	irc := newFake("irc", everything)
	w := newWorld(t, irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	ev := appservice.Event{Type: "m.room.message", ID: "$one", RoomID: room, Sender: "@alice:test", Content: []byte(`{"msgtype":"m.text","body":"once"}`)}
	for _, txn := range []string{"a", "a", "b"} {
		if err := w.bridge.transaction(t.Context(), &appservice.Transaction{ID: txn, Events: []appservice.Event{ev}}); err != nil {
			t.Fatal(err)
		}
	}
	alice.Say(room, "end")
	irc.hears(t, "end")
	if n := len(slices.DeleteFunc(irc.heard(), func(s string) bool { return s != "once" })); n != 1 {
		t.Errorf("delivered %d times", n)
	}
}

// TestCrashes stops the bridge at random moments while messages go both ways, and
// starts it again on the same database. Toward a network that can tell whether a
// message arrived, and toward Matrix, each arrives once and in order.
func TestCrashes(t *testing.T) { both(t, testCrashes) }

func testCrashes(t *testing.T, newWorld func(...*fakeNet) *world) {
	irc := newFake("irc", everything)
	w := newWorld(irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")

	arrived := map[string]int{} // by command ID; what the network has; guarded by irc.mu
	var order []string          // guarded by irc.mu
	irc.set(func() {
		irc.answer = func(c *backends.Command) backends.Result {
			irc.mu.Lock()
			defer irc.mu.Unlock()
			if arrived[c.ID] == 0 || !c.MaybeSent {
				arrived[c.ID]++
				if s := plainOf(c); s != "" {
					order = append(order, s)
				}
			}
			return backends.Result{Outcome: backends.Delivered, IDs: []backends.MessageID{"r" + backends.MessageID(c.ID)}}
		}
	})
	const n = 120
	var want []string
	finished := make(chan struct{})
	go func() { // the network repeats what is not acknowledged, as after its own restart
		defer close(finished)
		for i := range n {
			ev := message("#go", "bob", fmt.Sprintf("remote %d", i), backends.MessageID(fmt.Sprintf("r%d", i)))
			for try := 0; ; try++ {
				if r, err := tryBriefly(t, irc, ev); err == nil && r.Err == nil {
					break
				} else if try > 200 {
					t.Errorf("remote %d: %v %+v", i, err, r)
					return
				}
			}
		}
	}()
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		want = append(want, fmt.Sprintf("local %d", i))
		alice.Say(room, want[i])
		if rng.IntN(10) == 0 {
			w.restart()
		}
	}
	<-finished
	alice.Say(room, "end")
	want = append(want, "end")
	irc.hears(t, "end")
	w.drained()
	irc.mu.Lock()
	defer irc.mu.Unlock()
	if !slices.Equal(order, want) {
		t.Errorf("the network has %q", order)
	}
	next := 0
	for _, e := range w.timeline(alice, room) {
		if strings.HasPrefix(e.body(), "remote ") {
			if e.body() != fmt.Sprintf("remote %d", next) {
				t.Fatalf("%q where remote %d should be", e.body(), next)
			}
			next++
		}
	}
	if next != n {
		t.Errorf("%d of %d arrived", next, n)
	}
}

// tryBriefly delivers without waiting long for a bridge that was stopped meanwhile.
func tryBriefly(t *testing.T, n *fakeNet, ev *backends.Event) (backends.Receipt, error) {
	receipt := make(chan backends.Receipt, 1)
	if err := n.currentHost().Deliver(t.Context(), ev, func(r backends.Receipt) { receipt <- r }); err != nil {
		return backends.Receipt{}, err
	}
	select {
	case r := <-receipt:
		return r, nil
	case <-time.After(time.Second):
		return backends.Receipt{}, fmt.Errorf("no receipt")
	}
}

// sendBench sends messages of Matrix users through the whole of it.
func BenchmarkFromMatrix(b *testing.B) {
	irc := newFake("irc", everything)
	w := newWorld(b, irc)
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	batch := func(from, n int) *appservice.Transaction {
		t := &appservice.Transaction{ID: fmt.Sprint("bench", from)}
		for i := range n {
			t.Events = append(t.Events, appservice.Event{Type: "m.room.message", ID: matrix.EventID(fmt.Sprintf("$b%d", from+i)), RoomID: room, Sender: alice.ID,
				OriginServerTS: time.Now().UnixMilli(), Content: []byte(`{"msgtype":"m.text","body":"hello world"}`)})
		}
		return t
	}
	before := len(irc.commands())
	b.ResetTimer()
	for i := 0; i < b.N; i += 50 {
		if err := w.bridge.transaction(b.Context(), batch(i, 50)); err != nil {
			b.Fatal(err)
		}
	}
	w.drained()
	b.ReportMetric(float64(len(irc.commands())-before)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkFromRemote is many messages of one chat and of eight, each acknowledged.
func BenchmarkFromRemote(b *testing.B) {
	for _, chats := range []int{1, 8} {
		b.Run(fmt.Sprint(chats, " chats"), func(b *testing.B) { benchmarkFromRemote(b, chats) })
	}
}

func benchmarkFromRemote(b *testing.B, chats int) {
	irc := newFake("irc", everything)
	w := makeWorld(b, &world{inside: true}, []*fakeNet{irc})
	alice := w.hs.Register("alice")
	for c := range chats {
		w.portal(alice, "irc", fmt.Sprint("#", c))
		irc.says(b, fmt.Sprint("#", c), "bob", "first")
	}
	done := make(chan backends.Receipt, b.N)
	b.ResetTimer()
	for i := range b.N {
		if err := irc.currentHost().Deliver(b.Context(), message(fmt.Sprint("#", i%chats), "bob", "hello world", backends.MessageID(fmt.Sprint(i))), func(r backends.Receipt) { done <- r }); err != nil {
			b.Fatal(err)
		}
	}
	for range b.N {
		if r := <-done; r.Err != nil {
			b.Fatal(r.Err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}
