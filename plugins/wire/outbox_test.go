package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/gjallar-im/gjallar/backends"
)

func chat(name string) backends.ChatKey { return backends.ChatKey{Chat: backends.ChatID(name)} }

func put(t *testing.T, o *Outbox[*Event, string], key, id string, answer func(string)) {
	t.Helper()
	if err := o.Put(t.Context(), chat(key), &Event{Id: id}, 10, answer); err != nil {
		t.Fatal(err)
	}
}

func TestOutboxKeepsOrderAndAnswersByNumber(t *testing.T) {
	o := NewOutbox[*Event, string]()
	got := map[string]string{}
	for i := range 3 {
		id := fmt.Sprint(i)
		put(t, o, "c", id, func(a string) { got[id] += a })
	}
	batch, err := o.Take(t.Context())
	if err != nil || len(batch) != 3 {
		t.Fatalf("batch %v, err %v", batch, err)
	}
	for _, i := range []int{2, 0, 1} {
		o.Answered(batch[i].Seq)("answer " + batch[i].Id)
		if again := o.Answered(batch[i].Seq); again != nil {
			t.Errorf("%s may be answered twice", batch[i].Id)
		}
	}
	if o.Answered(99) != nil {
		t.Error("there is an answer for a number never given")
	}
	for id, a := range got {
		if a != "answer "+id {
			t.Errorf("%s got %q", id, a)
		}
	}
	if len(got) != 3 {
		t.Errorf("answers %v", got)
	}
}

func TestOutboxBlocksAFullChatAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := NewOutbox[*Event, string]()
		for range PerChat {
			put(t, o, "slow", "", func(string) {})
		}
		batch, _ := o.Take(t.Context())
		var passed atomic.Bool
		go func() {
			put(t, o, "slow", "late", func(string) {})
			passed.Store(true)
		}()
		synctest.Wait()
		if passed.Load() {
			t.Fatal("a chat has more unanswered than it may")
		}
		put(t, o, "other", "", func(string) {})
		o.Answered(batch[0].Seq)("")
		synctest.Wait()
		if !passed.Load() {
			t.Error("an answer made no room")
		}
	})
}

func TestOutboxPutEndsWithItsContext(t *testing.T) {
	o := NewOutbox[*Event, string]()
	for range PerChat {
		put(t, o, "c", "", func(string) {})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	never := func(string) { t.Error("answered after an error") }
	if err := o.Put(ctx, chat("c"), &Event{}, 10, never); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	if err := o.Put(ctx, chat("d"), &Event{}, MaxItem+1, never); err != error(ErrTooLarge) {
		t.Errorf("err = %v", err)
	}
	o.Fail("", "")
}

func TestOutboxFailTellsWhatWasSentFromWhatWasNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := NewOutbox[*Event, string]()
		var got []string
		add := func(id string) { put(t, o, "c", id, func(a string) { got = append(got, id+" "+a) }) }
		add("1")
		add("2")
		batch, _ := o.Take(t.Context())
		o.Answered(batch[0].Seq)("done")
		add("3")
		for range PerChat - 2 {
			put(t, o, "c", "", func(string) {})
		}
		blocked := make(chan error, 1)
		go func() { blocked <- o.Put(t.Context(), chat("c"), &Event{}, 10, func(string) { t.Error("answered") }) }()
		synctest.Wait()
		o.Fail("sent", "unsent")
		if want := []string{"1 done", "2 sent", "3 unsent"}; !slices.Equal(got, want) {
			t.Errorf("answers %q, want %q", got, want)
		}
		if err := <-blocked; err != ErrClosed {
			t.Errorf("blocked Put: %v", err)
		}
		if _, err := o.Take(t.Context()); err != io.EOF {
			t.Errorf("Take after Fail: %v", err)
		}
	})
}

func TestOutboxFinishFlushes(t *testing.T) {
	o := NewOutbox[*Event, string]()
	put(t, o, "c", "1", func(string) {})
	o.Finish()
	if err := o.Put(t.Context(), chat("c"), &Event{}, 1, nil); err != ErrClosed {
		t.Errorf("Put after Finish: %v", err)
	}
	batch, err := o.Take(t.Context())
	if err != nil || len(batch) != 1 {
		t.Fatalf("batch %v, err %v", batch, err)
	}
	if _, err := o.Take(t.Context()); err != io.EOF {
		t.Errorf("Take: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := o.Idle(ctx); err != context.Canceled {
		t.Errorf("Idle with one unanswered: %v", err)
	}
	o.Answered(batch[0].Seq)("")
	if err := o.Idle(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestOutboxBatchesAreBounded(t *testing.T) {
	o := NewOutbox[*Event, string]()
	for range 3 {
		if err := o.Put(t.Context(), chat("c"), &Event{}, batchBytes/2+1, nil); err != nil {
			t.Fatal(err)
		}
	}
	if batch, _ := o.Take(t.Context()); len(batch) != 1 {
		t.Errorf("a batch of %d items of half the size", len(batch))
	}
}

func TestLanesKeepOrderWithinAChatAndDoNotWaitForAnother(t *testing.T) {
	var l Lanes
	block := make(chan struct{})
	if err := l.Do(chat("slow"), func() { <-block }); err != nil {
		t.Fatal(err)
	}
	var got []int
	last := make(chan struct{})
	for i := range 1000 {
		if err := l.Do(chat("fast"), func() {
			if got = append(got, i); i == 999 {
				close(last)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	<-last
	close(block)
	l.Wait()
	if len(got) != 1000 || !slices.IsSorted(got) {
		t.Errorf("%d run, sorted: %v", len(got), slices.IsSorted(got))
	}
}

func TestLanesRefuseAFlood(t *testing.T) {
	var l Lanes
	block := make(chan struct{})
	var err error
	n := 0
	for ; err == nil && n < 10*InFlight; n++ {
		err = l.Do(chat("c"), func() { <-block })
	}
	close(block)
	l.Wait()
	if err != ErrFlood {
		t.Errorf("err = %v after %d", err, n)
	}
}

func TestQueueIsFlushedAfterClose(t *testing.T) {
	q := NewQueue[int]()
	for i := range batchItems + 1 {
		q.Put(i)
	}
	q.Close()
	q.Put(-1)
	var got []int
	for {
		batch, err := q.Take(t.Context())
		if err == io.EOF {
			break
		}
		got = append(got, batch...)
	}
	if len(got) != batchItems+1 || !slices.IsSorted(got) {
		t.Errorf("got %d items", len(got))
	}
}
