package irc

import (
	"bufio"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
)

// FuzzServer lets a hostile server say anything to a bot and an account.
func FuzzServer(f *testing.F) {
	f.Add("CAP * LS * :sasl\r\nCAP * LS :batch\nBATCH +1 netsplit\n@batch=1 :bob!u@h QUIT :x")
	f.Add(":bridge!u@h JOIN #tea\n:s 353 bridge = #tea :@bob +carol bridge\n:s 366 bridge #tea :e\n:bob MODE #tea +ov-o carol bob")
	f.Add(":bridge NICK x\n:s 433 x y :no\n:s 470 x #tea #b :f\n:bob KICK #tea bridge\n:s 323 a :b\n:s 302 a :")
	f.Add("@label=1 :bridge PRIVMSG #tea :x\nPONG a :done-1\n:bob!u@h PRIVMSG Alice :\x01ACTION\n:bob TAGMSG\n:s 005 a CASEMAPPING=ascii PREFIX= :b")
	f.Fuzz(func(t *testing.T, script string) {
		host := backendtest.NewHost(t)
		cfg, err := parseConfig([]byte(`{"server":"irc.test:1","tls":false,"flood":{"burst":1000},"sasl":{"username":"a","password":"b"}}`))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Nick = "bridge"
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
		n := open(cfg, &backend{dial: dial, backoff: backoff}, host)
		defer n.Close(context.Background())
		a := &account{n: n, id: "@alice:here.test", log: n.log, changed: make(chan struct{}), joined: map[string]string{},
			joins: map[string][]func(error){}, kicked: map[string]time.Time{}, left: map[string]bool{}, peers: map[string]bool{}}
		b := newBot(n)
		b.channels = map[string]*channel{}
		for _, o := range []owner{b, a} {
			c := newConn(o, identity{nick: "bridge", nickLen: 9, sasl: cfg.SASL}, cfg.Flood, n.log)
			ours, theirs := net.Pipe()
			ours.Close()
			c.net, c.w = theirs, bufio.NewWriter(io.Discard)
			for line := range strings.SplitSeq(script, "\n") {
				if m, err := ircmsg.Parse(line); err == nil {
					c.handle(m)
				}
				c.flush()
				if c.phase == registering && len(script)%2 == 0 { // half of the inputs are of a connected server
					c.handleReady(nil)
					if o == owner(b) {
						b.join(c, "#tea", time.Now().Add(-time.Hour), func(*backends.ChatInfo, error) {})
						b.list(c, "", func([]backends.ChatInfo, error) {})
					}
				}
			}
			close(c.done)
			c.abandon()
		}
	})
}
