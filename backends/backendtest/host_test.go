package backendtest

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/gjallar-im/gjallar/backends"
)

func message(id backends.MessageID) *backends.Event {
	return &backends.Event{ID: id, Body: &backends.Message{}}
}

func TestDeliverBlocksWhileTheWindowIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHost(t)
		h.Hold(1)
		var got []backends.MessageID
		done := func(r backends.Receipt) { got = append(got, r.ID) }
		if err := h.Deliver(t.Context(), message("1"), done); err != nil {
			t.Fatal(err)
		}
		second := make(chan error, 1)
		go func() { second <- h.Deliver(t.Context(), message("2"), done) }()
		synctest.Wait()
		if n := len(h.Events()); n != 1 {
			t.Fatalf("%d events passed a window of 1", n)
		}
		if h.Ack(5) != 1 {
			t.Fatal("the window held more than one event")
		}
		if err := <-second; err != nil {
			t.Fatal(err)
		}
		h.Release()
		if len(got) != 2 || got[0] != "host:1" || got[1] != "host:2" {
			t.Errorf("receipts %v", got)
		}
	})
}

func TestDeliverEndsWithItsContext(t *testing.T) {
	h := NewHost(t)
	h.Hold(0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := h.Deliver(ctx, message("1"), func(backends.Receipt) { t.Error("done was called after an error") })
	if err != context.Canceled {
		t.Errorf("err = %v", err)
	}
	h.Release()
}

func TestNextSkipsToWhatMatches(t *testing.T) {
	h := NewHost(t)
	for _, ev := range []*backends.Event{message("1"), {Body: &backends.NetworkState{Phase: backends.Ready}}, message("2")} {
		if err := h.Deliver(t.Context(), ev, nil); err != nil {
			t.Fatal(err)
		}
	}
	h.WaitPhase(backends.Ready)
	if ev, _ := NextBody[*backends.Message](h, nil); ev.ID != "2" {
		t.Errorf("next message is %q", ev.ID)
	}
}

func TestEnterAndExitKeepTheMemberList(t *testing.T) {
	rooms := NewHost(t).FakeRooms()
	name := backends.RoomName{Alias: "tea"}
	req := backends.EnterRequest{Chat: "#tea", Room: name, User: backends.User{ID: "bob"}, Create: true}
	for range 2 {
		view, err := rooms.Enter(t.Context(), req)
		if err != nil || len(view.Members) != 1 {
			t.Fatalf("view %+v, err %v", view, err)
		}
	}
	if err := rooms.Exit(t.Context(), "#tea", req.User, ""); err != nil {
		t.Fatal(err)
	}
	if m := rooms.Members(name); len(m) != 0 {
		t.Errorf("members after exit: %v", m)
	}
}
