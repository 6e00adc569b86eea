package clientapi_test

import (
	"fmt"
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
