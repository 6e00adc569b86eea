package puppeting

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"

	"github.com/gjallar-im/gjallar/backends"
)

// orderly is a transport to a homeserver that takes events in the order in which
// they come, says so at once, and stores them later.
type orderly struct {
	tb   testing.TB
	next http.RoundTripper

	mu      sync.Mutex
	turn    chan struct{}   // closed when the event before is stored; guarded by mu
	waiting int             // events that have their place and are not stored; guarded by mu
	most    int             // of them at a time; guarded by mu
	broken  int             // 1: events are lost; 2: that is over, since one is sent again; guarded by mu
	lost    map[string]bool // paths of events that were lost; guarded by mu
	full    chan struct{}   // closed when several wait
	needed  int             // how many
	all     chan struct{}   // closed when everything was handed over, before which nothing gets its place
}

func (o *orderly) RoundTrip(r *http.Request) (*http.Response, error) {
	trace := httptrace.ContextClientTrace(r.Context())
	o.mu.Lock()
	if trace == nil && o.lost[r.URL.Path] {
		o.broken = 2
	}
	o.mu.Unlock()
	if trace == nil || !strings.Contains(r.URL.Path, "/send/m.room.message/") {
		return o.next.RoundTrip(r)
	}
	trace.GetConn("")
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	o.mu.Lock()
	before, mine := o.turn, make(chan struct{})
	o.turn = mine
	o.waiting++
	if o.most = max(o.most, o.waiting); o.most == o.needed && o.full != nil {
		close(o.full)
		o.full = nil
	}
	full, all := o.full, o.all
	if o.broken == 0 && o.waiting > o.needed/2 {
		o.broken = 1
	}
	lost := o.broken == 1 // as when it crashes: these and all behind them
	if lost {
		o.lost[r.URL.Path] = true
	}
	o.mu.Unlock()
	defer close(mine)
	if all != nil {
		<-all
	}
	trace.Got1xxResponse(http.StatusProcessing, nil)
	<-before
	if full != nil {
		<-full
	}
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.waiting--
	}()
	if lost {
		return nil, errors.New("the connection was lost")
	}
	return o.next.RoundTrip(r.Clone(context.WithoutCancel(o.tb.Context())))
}

func TestMessagesOfAChatAreSentInOrderWithoutWaitingForEach(t *testing.T) {
	irc := newFake("irc", everything)
	turn := make(chan struct{})
	close(turn)
	o := &orderly{tb: t, next: http.DefaultTransport, turn: turn, broken: 2, lost: map[string]bool{}}
	w := makeWorld(t, &world{transport: o}, []*fakeNet{irc})
	alice := w.hs.Register("alice")
	room := w.portal(alice, "irc", "#go")
	irc.says(t, "#go", "bob", "first") // the ghost is there now
	o.mu.Lock()
	o.full, o.needed = make(chan struct{}), 20 // nothing is stored before so many are on their way
	o.broken = 0
	o.all = make(chan struct{})
	handedOver := sync.OnceFunc(func() { close(o.all) })
	defer handedOver()
	o.mu.Unlock()

	const n = 100
	receipts := make(chan backends.Receipt, n)
	for i := range n {
		ev := message("#go", "bob", fmt.Sprint("line ", i), backends.MessageID(fmt.Sprint("id", i)))
		if err := irc.currentHost().Deliver(t.Context(), ev, func(r backends.Receipt) { receipts <- r }); err != nil {
			t.Fatal(err)
		}
	}
	handedOver()
	for range n {
		if r := <-receipts; r.Err != nil || r.ID == "" {
			t.Fatalf("receipt %+v", r)
		}
	}
	next := 0
	for _, e := range w.timeline(alice, room) {
		if e.body() == fmt.Sprint("line ", next) {
			next++
		}
	}
	if next != n {
		t.Errorf("line %d is not in its place", next)
	}
	if o.most < o.needed {
		t.Errorf("no more than %d were on their way", o.most)
	}
	if c := w.count("bridge_message"); c != n+1 {
		t.Errorf("%d messages are mapped", c)
	}
}
