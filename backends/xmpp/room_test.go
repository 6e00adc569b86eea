package xmpp

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

const (
	joinBob  = "<presence from='bob@b.test/x' to='lobby@gw.test/bob' id='j1'><x xmlns='http://jabber.org/protocol/muc'/></presence>"
	joinedAs = `<presence from="lobby@gw.test/bob" to="bob@b.test/x"><x xmlns="http://jabber.org/protocol/muc#user"><item affiliation="none" role="participant" jid="bob@b.test/x"/><status code="110"/></x></presence>`
)

var lobbyChat = backends.ChatKey{Chat: "lobby@gw.test"}

// enterLobby takes a client into the room and reads what it is sent.
func (f *fake) enterLobby(from, nick string) {
	f.Helper()
	f.recv("<presence from='" + from + "' to='lobby@gw.test/" + nick + "'><x xmlns='http://jabber.org/protocol/muc'/></presence>")
	for {
		if e := f.conn.Read(); isSubject(e) {
			return
		}
	}
}

func (f *fake) addLobby(members ...backends.Member) {
	f.host.FakeRooms().AddRoom(backends.RoomSummary{Room: lobby, Name: "The lobby", Topic: "Welcome"}, members...)
}

// XEP-0045 §7.2: occupants, self-presence, history, subject.
func TestRoomJoinOrder(t *testing.T) {
	withFake(t, nil, func(f *fake) {
		f.addLobby(backends.Member{Action: backends.Joined, User: alice, Role: backends.Admin})
		f.host.FakeRooms().AddHistory(lobby, backends.Command{ID: "$1", Sender: alice, Time: time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC), Body: text("past")})
		everything := []string{
			`<presence from="lobby@gw.test/Alice A" to="bob@b.test/x"><x xmlns="http://jabber.org/protocol/muc#user"><item affiliation="admin" role="moderator"/></x></presence>`,
			joinedAs,
			`<message from="lobby@gw.test/Alice A" to="bob@b.test/x" type="groupchat" id="ANY"><body>past</body><stanza-id xmlns="urn:xmpp:sid:0" by="lobby@gw.test" id="ANY"/><delay xmlns="urn:xmpp:delay" from="lobby@gw.test" stamp="2001-02-03T04:05:06.000Z"/></message>`,
			`<message from="lobby@gw.test" to="bob@b.test/x" type="groupchat"><subject>Welcome</subject></message>`,
		}
		f.recv(joinBob)
		f.want(everything...)
		f.recv(joinBob) // who asks again is told everything again
		f.want(everything...)
		f.recv("<presence from='bob@b.test/x' to='lobby@gw.test/bob'><x xmlns='http://jabber.org/protocol/muc'><history maxstanzas='0'/></x></presence>")
		f.want(everything[0], everything[1], everything[3])
	})
}

func TestRoomJoinRefused(t *testing.T) {
	tests := []struct{ code, typ, condition string }{
		{string(backends.RefusedBanned), "auth", "forbidden"}, {string(backends.RefusedInviteOnly), "auth", "registration-required"},
		{string(backends.RefusedNotFound), "cancel", "item-not-found"}, {string(backends.RefusedFull), "wait", "service-unavailable"},
		{string(backends.RefusedPassword), "auth", "not-authorized"},
	}
	for _, tt := range tests {
		t.Run(tt.code, func(t *testing.T) {
			withFake(t, nil, func(f *fake) {
				f.host.FakeRooms().Refuse(lobby, backends.Refusal{Code: backends.RefusalCode(tt.code), Message: "No."})
				f.recv(joinBob)
				f.want(`<presence from="lobby@gw.test/bob" to="bob@b.test/x" type="error" id="j1"><error type="` + tt.typ + `"><` + tt.condition + ` xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/><text xmlns="urn:ietf:params:xml:ns:xmpp-stanzas">No.</text></error></presence>`)
				synctest.Wait()
				if f.n.room(mustJID("lobby@gw.test")) != nil {
					t.Error("the room stays open")
				}
			})
		})
	}
}

func TestRoomErrors(t *testing.T) {
	failure := func(what, from, id, typ, condition, text string) string {
		return `<` + what + ` from="` + from + `" to="eve@b.test/x" type="error" id="` + id + `"><error type="` + typ + `"><` + condition + ` xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/><text xmlns="urn:ietf:params:xml:ns:xmpp-stanzas">` + text + `</text></error></` + what + `>`
	}
	tests := []struct{ name, in, want string }{
		{"join without nick", "<presence from='eve@b.test/x' to='lobby@gw.test' id='1'><x xmlns='http://jabber.org/protocol/muc'/></presence>",
			failure("presence", "lobby@gw.test", "1", "modify", "jid-malformed", noNick.Text)},
		{"join under another's nick", "<presence from='eve@b.test/x' to='lobby@gw.test/bob' id='1'><x xmlns='http://jabber.org/protocol/muc'/></presence>",
			failure("presence", "lobby@gw.test/bob", "1", "cancel", "conflict", nickTaken.Text)},
		{"message without join", "<message from='eve@b.test/x' to='lobby@gw.test' type='groupchat' id='1'><body>x</body></message>",
			failure("message", "lobby@gw.test", "1", "cancel", "not-acceptable", notJoined.Text)},
		{"message to a room that is not open", "<message from='eve@b.test/x' to='none@gw.test' type='groupchat' id='1'><body>x</body></message>",
			failure("message", "none@gw.test", "1", "cancel", "not-acceptable", notJoined.Text)},
		{"private message without join", "<message from='eve@b.test/x' to='lobby@gw.test/bob' type='chat' id='1'><body>x</body></message>",
			failure("message", "lobby@gw.test/bob", "1", "cancel", "not-acceptable", notJoined.Text)},
		{"self-ping without join", "<iq from='eve@b.test/x' to='lobby@gw.test/bob' type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>",
			failure("iq", "lobby@gw.test/bob", "1", "cancel", "not-acceptable", notJoined.Text)},
		{"presence without join", "<presence from='eve@b.test/x' to='lobby@gw.test/eve' id='1'/>",
			failure("presence", "lobby@gw.test/eve", "1", "cancel", "not-acceptable", notJoined.Text)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			withFake(t, nil, func(f *fake) {
				f.addLobby()
				f.enterLobby("bob@b.test/x", "bob")
				f.recv(tt.in)
				f.want(tt.want)
			})
		})
	}
}

func TestRoomReflectsWhatTheClientSent(t *testing.T) {
	withFake(t, nil, func(f *fake) {
		f.addLobby()
		f.enterLobby("bob@b.test/x", "bob")
		f.recv("<message from='bob@b.test/x' to='lobby@gw.test' type='groupchat' id='m1'><body>hi</body><private xmlns='urn:x'><y/></private>" +
			"<stanza-id xmlns='urn:xmpp:sid:0' by='lobby@gw.test' id='forged'/><delay xmlns='urn:xmpp:delay' stamp='1999-01-01T00:00:00Z'/></message>")
		ev, _ := backendtest.NextBody(f.host, messageEvent("hi"))
		results := f.start(&backends.Command{ID: "$1", Chat: lobbyChat, Sender: ev.Sender, Echo: ev.ID, Body: ev.Body})
		f.want(`<message from="lobby@gw.test/bob" to="bob@b.test/x" type="groupchat" id="m1"><body>hi</body><private xmlns="urn:x"><y/></private><stanza-id xmlns="urn:xmpp:sid:0" by="lobby@gw.test" id="` + string(ev.ID) + `"/></message>`)
		if r := <-results; r.Outcome != backends.Delivered || r.IDs[0] != ev.ID {
			t.Errorf("got %+v", r)
		}
	})
}

func TestRoomDropsWhoCannotBeReached(t *testing.T) {
	withFake(t, nil, func(f *fake) {
		f.addLobby()
		f.enterLobby("bob@b.test/x", "bob")
		f.enterLobby("carol@c.test/x", "carol")
		f.conn.Read() // Bob is told of her; she was told of him above or is now
		f.recv("<message from='carol@c.test/x' to='lobby@gw.test' type='error' id='1'><error type='cancel'><remote-server-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></message>")
		for {
			if e := f.conn.Read(); e.Attr("type") == "unavailable" {
				if e.Attr("to") != "bob@b.test/x" || e.Attr("from") != "lobby@gw.test/carol" {
					t.Errorf("got %s", e)
				}
				break
			}
		}
		synctest.Wait()
		if m := f.host.FakeRooms().Members(lobby); len(m) != 1 {
			t.Errorf("members %+v", m)
		}
	})
}

func TestRoomVisitorsMayNotSpeak(t *testing.T) {
	withFake(t, nil, func(f *fake) {
		f.addLobby(backends.Member{Action: backends.Joined, User: peerOf(mustJID("bob@b.test"), "bob"), Role: backends.Visitor})
		f.enterLobby("bob@b.test/x", "bob")
		f.recv("<message from='bob@b.test/x' to='lobby@gw.test' type='groupchat' id='m1'><body>hi</body></message>")
		if e := f.conn.Read(); e.Attr("type") != "error" || xep.ErrorOf(e).Condition != "forbidden" {
			t.Errorf("got %s", e)
		}
	})
}

func TestRoomLimitsSenders(t *testing.T) {
	withFake(t, nil, func(f *fake) {
		f.addLobby()
		f.enterLobby("bob@b.test/x", "bob")
		for range 60 {
			f.recv("<message from='bob@b.test/x' to='lobby@gw.test' type='groupchat' id='m1'><body>spam</body></message>")
		}
		if e := f.conn.Read(); e.Attr("type") != "error" || xep.ErrorOf(e).Condition != "resource-constraint" {
			t.Errorf("got %s", e)
		}
	})
}

func TestRoomIsRetriedWhileAway(t *testing.T) {
	withFake(t, nil, func(f *fake) {
		f.addLobby()
		f.enterLobby("bob@b.test/x", "bob")
		f.conn.Close()
		f.host.WaitPhase(backends.Disconnected)
		cmd := &backends.Command{ID: "$1", Chat: lobbyChat, Sender: alice, Body: text("x")}
		if r := <-f.start(cmd); r.Outcome != backends.Retry {
			t.Errorf("got %+v", r)
		}
		f.conn = f.server.Accept()
		if e := f.conn.Read(); e.Child(xep.NSPing, "ping") == nil || e.Attr("to") != "bob@b.test/x" {
			t.Errorf("got %s, want a ping: is Bob still there?", e)
		}
		results := f.start(cmd)
		f.want(`<message from="lobby@gw.test/Alice A" to="bob@b.test/x" type="groupchat" id="ANY"><body>x</body><stanza-id xmlns="urn:xmpp:sid:0" by="lobby@gw.test" id="ANY"/></message>`)
		if r := <-results; r.Outcome != backends.Delivered {
			t.Errorf("got %+v", r)
		}
	})
}

// slowRooms answers Enter when the test lets it.
type slowRooms struct {
	backends.Rooms
	gate chan struct{}
}

func (r *slowRooms) Enter(ctx context.Context, req backends.EnterRequest) (*backends.RoomView, error) {
	view, err := r.Rooms.Enter(ctx, req)
	select {
	case <-r.gate:
		return view, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type slowHost struct {
	*backendtest.Host
	rooms *slowRooms
}

func (h *slowHost) Rooms() backends.Rooms { return h.rooms }

// What happens while somebody joins is shown to them after the subject, once.
func TestRoomJoinQueuesWhatHappensMeanwhile(t *testing.T) {
	gate := make(chan struct{}, 10)
	withFake(t, func(h *backendtest.Host) backends.Host {
		return &slowHost{h, &slowRooms{h.FakeRooms(), gate}}
	}, func(f *fake) {
		gate = make(chan struct{}, 10) // one of the bubble
		f.n.host.(*slowHost).rooms.gate = gate
		f.addLobby()
		f.host.FakeRooms().AddHistory(lobby, backends.Command{ID: "$1", Sender: alice, Time: time.Now(), Body: text("one")})
		gate <- struct{}{}
		f.enterLobby("bob@b.test/x", "bob")
		for _, from := range []string{"bob@b.test/y", "carol@c.test/x"} {
			nick := from[:len(from)-len("@b.test/x")]
			f.recv("<presence from='" + from + "' to='lobby@gw.test/" + nick + "'><x xmlns='http://jabber.org/protocol/muc'/></presence>")
			synctest.Wait()
			for id, body := range map[string]string{"$1": "one", "$2": "two"} { // $1 is in the history as well
				<-f.read(func() chan backends.Result {
					return f.start(&backends.Command{ID: id, Chat: lobbyChat, Sender: alice, Body: text(body)})
				})
			}
			gate <- struct{}{}
			var bodies []string
			for subject := false; len(bodies) < 2 || !subject; {
				e := f.conn.Read()
				if e.Attr("to") != from || e.Name.Local != "message" {
					continue
				}
				if isSubject(e) {
					subject = true
				} else {
					bodies = append(bodies, e.Child(xep.NSComponent, "body").Text())
					if (len(bodies) == 2) != subject {
						t.Errorf("%s before or after the subject wrongly", bodies)
					}
				}
			}
			if bodies[0] != "one" || bodies[1] != "two" {
				t.Errorf("%s saw %v", from, bodies)
			}
		}
	})
}

// read starts a command and reads what Bob is shown of it.
func (f *fake) read(start func() chan backends.Result) chan backends.Result {
	f.Helper()
	results := start()
	for {
		if e := f.conn.Read(); e.Name.Local == "message" && e.Attr("to") == "bob@b.test/x" {
			return results
		}
	}
}

// A join that the host does not answer is answered all the same.
func TestRoomJoinDoesNotHang(t *testing.T) {
	withFake(t, func(h *backendtest.Host) backends.Host {
		return &slowHost{h, &slowRooms{h.FakeRooms(), nil}}
	}, func(f *fake) {
		f.addLobby()
		f.recv(joinBob)
		before := time.Now()
		if e := f.conn.Read(); xep.ErrorOf(e) == nil || xep.ErrorOf(e).Condition != "remote-server-timeout" || time.Since(before) > enterTimeout {
			t.Errorf("got %s after %v", e, time.Since(before))
		}
	})
}

func TestRoomArchive(t *testing.T) {
	page := func(set string) string {
		return "<iq from='bob@b.test/x' to='lobby@gw.test' type='set' id='q'><query xmlns='urn:xmpp:mam:2' queryid='f'>" + set + "</query></iq>"
	}
	rsm := func(s string) string {
		return page("<set xmlns='http://jabber.org/protocol/rsm'><max>2</max>" + s + "</set>")
	}
	withFake(t, nil, func(f *fake) {
		f.addLobby()
		start := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
		sid := map[string]string{}
		for i, id := range []string{"a", "b", "c", "d", "e"} {
			c := backends.Command{ID: id, Sender: alice, Time: start.Add(time.Duration(i) * time.Hour), Body: text(id)}
			f.host.FakeRooms().AddHistory(lobby, c)
			sid[id] = string(f.n.roomIDs(&c)[0])
		}
		f.enterLobby("bob@b.test/x", "bob")
		tests := []struct{ name, query, want, complete string }{
			{"all of it", page(""), "abcde", "true"},
			{"the first page", rsm(""), "ab", ""},
			{"the one after", rsm("<after>" + sid["b"] + "</after>"), "cd", ""},
			{"the last one after", rsm("<after>" + sid["d"] + "</after>"), "e", "true"},
			{"the end", rsm("<before/>"), "de", ""},
			{"before it", rsm("<before>" + sid["d"] + "</before>"), "bc", ""},
			{"the start", rsm("<before>" + sid["b"] + "</before>"), "a", "true"},
			{"from a time", page("<x xmlns='jabber:x:data' type='submit'><field var='start'><value>2001-01-01T03:00:00Z</value></field></x>"), "de", "true"},
			{"until a time", page("<x xmlns='jabber:x:data' type='submit'><field var='end'><value>2001-01-01T02:00:00Z</value></field></x>"), "ab", "true"},
		}
		for _, tt := range tests {
			f.recv(tt.query)
			var got string
			for {
				e := f.conn.Read()
				if e.Name.Local == "iq" {
					if fin := e.Child(xep.NSMAM, "fin"); fin.Attr("complete") != tt.complete || got != tt.want {
						t.Errorf("%s: got %s, %s", tt.name, got, e)
					}
					break
				}
				result := e.Child(xep.NSMAM, "result")
				m := result.Child(xep.NSForward, "forwarded").Child(xep.NSClient, "message")
				body := m.Child(xep.NSClient, "body").Text()
				if result.Attr("id") != sid[body] || result.Attr("queryid") != "f" || m.Attr("from") != "lobby@gw.test/Alice A" {
					t.Errorf("%s: got %s", tt.name, e)
				}
				got += body
			}
		}
		f.recv(rsm("<after>unknown</after>"))
		if e := f.conn.Read(); xep.ErrorOf(e) == nil || xep.ErrorOf(e).Condition != "item-not-found" {
			t.Errorf("after a message that is not there: %s", e)
		}
	})
}
