package irc

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/backendtest/ngircd"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

// BenchmarkSend sends messages through ngIRCd: one at a time, and as many as the
// lane takes.
func BenchmarkSend(b *testing.B) {
	for _, inHand := range []int{1, laneInFlight} {
		b.Run(fmt.Sprintf("%d in hand", inHand), func(b *testing.B) {
			s := ngircd.Start(b)
			host := backendtest.NewHost(b)
			raw := fmt.Sprintf(`{"server":%q,"tls":false,"nick":"bridge","flood":{"burst":1000000,"lines_per_second":1000000}}`, s.Addr)
			n, err := New().Open(b.Context(), json.RawMessage(raw), host)
			if err != nil {
				b.Fatal(err)
			}
			defer n.Close(context.Background())
			host.WaitPhase(backends.Ready)
			chat := backends.ChatKey{Chat: "#tea"}
			if _, err := n.Join(b.Context(), backends.JoinRequest{Chat: chat}); err != nil {
				b.Fatal(err)
			}
			slots := make(chan struct{}, inHand)
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				slots <- struct{}{}
				i++
				cmd := &backends.Command{ID: fmt.Sprint(i), Chat: chat, Sender: alice, Body: &backends.Message{Text: richtext.Plain("hello, this is a message")}}
				err := n.Send(b.Context(), cmd, func(r backends.Result) {
					if r.Outcome != backends.Delivered {
						b.Errorf("result %+v", r)
					}
					<-slots
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			for range inHand {
				slots <- struct{}{}
			}
		})
	}
}
