package clientapi_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/gjallar-im/gjallar/homeserver/hstest"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// toDevice are the contents that a sync brings, as text.
func toDevice(out hstest.JSON) (list []string) {
	for _, e := range out.List("to_device", "events") {
		list = append(list, e.Str("sender")+" "+e.Str("type")+" "+e.Str("content", "n"))
	}
	return list
}

func TestToDeviceMessagesArriveOnceAndOnce(t *testing.T) {
	hstest.Both(t, func(t *testing.T, s *hstest.Server) {
		alice, bob := s.Register("alice"), s.Register("bob")
		since := bob.Sync("").Str("next_batch")
		send := func(txn, device, n string) {
			t.Helper()
			alice.OK("PUT", v3+"/sendToDevice/m.test/"+txn, map[string]any{"messages": map[matrix.UserID]any{
				bob.ID: map[string]any{device: map[string]string{"n": n}}, "@x:elsewhere": map[string]any{"*": map[string]string{}}}})
		}
		got := make(chan hstest.JSON)
		go func() { got <- bob.Sync("timeout=60000&since=" + since) }()
		send("1", string(bob.Device), "one")
		if list := toDevice(<-got); fmt.Sprint(list) != "[@alice:test m.test one]" {
			t.Errorf("the waiting sync has %q", list)
		}
		send("1", string(bob.Device), "one")
		send("2", "*", "two")
		send("3", "NONE", "three")
		out := bob.Sync("since=" + since)
		if list := toDevice(out); fmt.Sprint(list) != "[@alice:test m.test one @alice:test m.test two]" {
			t.Errorf("the sync has %q", list)
		}
		if list := toDevice(bob.Sync("since=" + out.Str("next_batch"))); len(list) != 0 {
			t.Errorf("the next one has %q", list)
		}
		if list := toDevice(bob.Sync("since=" + since)); len(list) != 0 {
			t.Errorf("what was acknowledged comes again: %q", list)
		}
	})
}

func TestToDeviceMessagesThatAreRefused(t *testing.T) {
	s := hstest.Start(t)
	alice := s.Register("alice")
	alice.Fails(400, "M_MISSING_PARAM", "PUT", v3+"/sendToDevice/m.test/1", map[string]any{})
	alice.Fails(400, "M_BAD_JSON", "PUT", v3+"/sendToDevice/m.test/1", map[string]any{"messages": map[matrix.UserID]any{alice.ID: map[string]any{"*": "text"}}})
	alice.Fails(400, "M_BAD_JSON", "PUT", v3+"/sendToDevice/m.test/1", map[string]any{"messages": map[matrix.UserID]any{alice.ID: map[string]any{"*": nil}}})
	alice.Fails(400, "M_BAD_JSON", "PUT", v3+"/sendToDevice/m.test/1", map[string]any{"messages": []string{}})
}

func TestMoreToDeviceMessagesThanFitAreNotLost(t *testing.T) {
	s := hstest.Start(t)
	alice, bob := s.Register("alice"), s.Register("bob")
	since := bob.Sync("").Str("next_batch")
	const many = 2*500 + 7
	room := alice.CreateRoom(map[string]any{"invite": []string{string(bob.ID)}})
	bob.Join(string(room))
	for i := range many {
		alice.OK("PUT", fmt.Sprintf("/_matrix/client/v3/sendToDevice/x/%d", i), map[string]any{"messages": map[string]any{string(bob.ID): map[string]any{"*": map[string]any{"n": i}}}})
	}
	alice.Say(room, "hello")
	next := 0
	var said []string
	for next < many || len(said) == 0 {
		out := bob.Sync("since=" + since)
		since = out.Str("next_batch")
		list := out.List("to_device", "events")
		for _, e := range list {
			if n, _ := e.At("content", "n").(float64); int(n) != next {
				t.Fatalf("message %v comes when %d is due", n, next)
			}
			next++
		}
		said = append(said, out.Bodies(room)...)
		if len(list) == 0 && len(out.Bodies(room)) == 0 {
			t.Fatalf("%d of %d messages came, and %q", next, many, said)
		}
	}
	if again := bob.Sync("since=" + since); len(again.List("to_device", "events")) > 0 || len(said) != 1 {
		t.Errorf("after all came %v; in the room %q", again, said)
	}
}

// TestWhoseDevicesAreFollowed is about device_lists of /sync.
func TestWhoseDevicesAreFollowed(t *testing.T) { hstest.Both(t, testWhoseDevices) }

func testWhoseDevices(t *testing.T, s *hstest.Server) {
	alice, bob, carol := s.Register("alice"), s.Register("bob"), s.Register("carol")
	room := alice.CreateRoom(map[string]any{"invite": []matrix.UserID{bob.ID, carol.ID}})
	since := map[*hstest.User]string{}
	for _, u := range []*hstest.User{alice, bob, carol} {
		since[u] = u.Sync("").Str("next_batch")
	}
	do := func(u *hstest.User, what string) func() {
		return func() { u.OK("POST", hstest.Path(room)+"/"+what, nil) }
	}
	none := []matrix.UserID{}
	steps := []struct {
		name          string
		do            func()
		u             *hstest.User
		query         string
		changed, left []matrix.UserID
	}{
		{"one joins", do(bob, "join"), bob, "", []matrix.UserID{alice.ID}, none},
		{"and is met", func() {}, alice, "full_state=true", []matrix.UserID{bob.ID}, none},
		{"one who declines learns nobody's name", do(carol, "leave"), carol, "", none, none},
		{"one leaves", do(bob, "leave"), alice, "full_state=true", none, []matrix.UserID{bob.ID}},
		{"and forgets whom they left", do(alice, "leave"), bob, "", none, []matrix.UserID{alice.ID}},
	}
	for _, st := range steps {
		t.Run(st.name, func(t *testing.T) {
			st.do()
			for _, key := range []string{"changed", "left"} {
				list, _ := st.u.OK("GET", "/_matrix/client/v3/keys/changes?from="+since[st.u], nil).At(key).([]any)
				want := map[string][]matrix.UserID{"changed": st.changed, "left": st.left}[key]
				list = slices.DeleteFunc(list, func(u any) bool { return u == string(carol.ID) }) // who is in the room for nobody
				for _, u := range list {
					if !slices.Contains(want, matrix.UserID(u.(string))) {
						t.Errorf("/keys/changes has %v in %s, want %v", u, key, want)
					}
				}
				if len(list) < len(want) {
					t.Errorf("/keys/changes has %v in %s, want %v", list, key, want)
				}
			}
			out := st.u.Sync(st.query + "&since=" + since[st.u])
			since[st.u] = out.Str("next_batch")
			for key, want := range map[string][]matrix.UserID{"changed": st.changed, "left": st.left} {
				got := none
				list, _ := out.At("device_lists", key).([]any)
				for _, u := range list {
					got = append(got, matrix.UserID(u.(string)))
				}
				if !slices.Equal(got, want) {
					t.Errorf("%s is %v, want %v", key, got, want)
				}
			}
		})
	}
}
