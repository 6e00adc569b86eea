package xmpp

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

var mucChat = backends.ChatKey{Chat: "room@muc.test"}

const (
	botJID = "gw.test/gjallar"
	self   = "<x xmlns='http://jabber.org/protocol/muc#user'><item affiliation='none' role='participant'/><status code='110'/></x>"
	other  = "<x xmlns='http://jabber.org/protocol/muc#user'><item affiliation='none' role='participant'/></x>"
)

// answerJoin plays a room that lets the bot in; past is its history.
func (f *fake) answerJoin(past ...string) {
	f.Helper()
	for {
		e := f.conn.Read()
		if e.Name.Local == "iq" { // disco
			f.recv(fmt.Sprintf("<iq from='room@muc.test' to='%s' type='result' id='%s'><query xmlns='%s'><identity category='conference' type='text' name='The room'/></query></iq>", botJID, e.Attr("id"), xep.NSDiscoInfo))
			continue
		}
		f.recv("<presence from='room@muc.test/bob' to='"+botJID+"'>"+other+"</presence>",
			"<presence from='"+e.Attr("to")+"' to='"+botJID+"'>"+self+"</presence>")
		f.recv(past...)
		f.recv("<message from='room@muc.test' to='" + botJID + "' type='groupchat'><subject>News</subject></message>")
		return
	}
}

// joinMUC joins room@muc.test, where Bob is.
func (f *fake) joinMUC(past ...string) {
	f.Helper()
	done := make(chan error)
	go func() {
		info, err := f.n.Join(f.Context(), backends.JoinRequest{Chat: mucChat})
		if err == nil && (*info.Name != "The room" || *info.Topic != "News") {
			err = fmt.Errorf("joined %+v", info)
		}
		done <- err
	}()
	f.answerJoin(past...)
	if err := <-done; err != nil {
		f.Fatal(err)
	}
}

// say sends a message of Alice's, lets her in, and returns the stanza's ID.
func (f *fake) say(body string) (string, chan backends.Result) {
	f.Helper()
	results := f.start(&backends.Command{ID: "$" + body, Chat: mucChat, Sender: alice, Time: time.Now(), Body: text(body)})
	for {
		e := f.conn.Read()
		if e.Name.Local == "message" {
			return e.Attr("id"), results
		}
		for _, to := range []string{e.Attr("from"), botJID} {
			status := other
			if to != botJID {
				status = self
			}
			f.recv("<presence from='" + e.Attr("to") + "' to='" + to + "'>" + status + "</presence>")
		}
	}
}

func TestMUCMessageIsDeliveredWhenReflected(t *testing.T) {
	withFake(t, nil, func(f *fake) {
		f.joinMUC()
		id, results := f.say("hello")
		// Somebody else's message with the same ID is no confirmation.
		f.recv("<message from='room@muc.test/bob' to='" + botJID + "' type='groupchat' id='" + id + "'><body>hello</body></message>")
		backendtest.NextBody(f.host, messageEvent("hello"))
		select {
		case r := <-results:
			t.Fatalf("confirmed by another: %+v", r)
		default:
		}
		f.recv("<message from='room@muc.test/Alice A' to='" + botJID + "' type='groupchat' id='" + id + "'><body>hello</body><stanza-id xmlns='urn:xmpp:sid:0' by='room@muc.test' id='s1'/></message>")
		if r := <-results; r.Outcome != backends.Delivered || r.IDs[0] != "s1" {
			t.Errorf("got %+v", r)
		}
	})
}

func TestMUCMessageWithoutReflectionIsUncertain(t *testing.T) {
	withFake(t, nil, func(f *fake) {
		f.joinMUC()
		_, results := f.say("hello")
		before := time.Now()
		if r := <-results; r.Outcome != backends.Uncertain || time.Since(before) > confirmTimeout+2*sweepEvery {
			t.Errorf("got %+v after %v", r, time.Since(before))
		}
	})
}

// What was sent when the connection broke is found in the room's history, or known
// not to be in it, or uncertain.
func TestMUCMessageOfBrokenConnection(t *testing.T) {
	old := "<message from='room@muc.test/bob' to='" + botJID + "' type='groupchat' id='old'><body>old</body><delay xmlns='urn:xmpp:delay' stamp='1999-12-31T00:00:00Z'/></message>"
	tests := []struct {
		name string
		past func(id string) []string
		want backends.Outcome // 0: it is sent again
	}{
		{"history has it", func(id string) []string {
			return []string{old, "<message from='room@muc.test/Alice A' to='" + botJID + "' type='groupchat' id='" + id + "'><body>hello</body><delay xmlns='urn:xmpp:delay' stamp='2000-01-01T00:00:01Z'/></message>"}
		}, backends.Delivered},
		{"history reaches back further and has it not", func(string) []string { return []string{old} }, 0},
		{"there is no history", func(string) []string { return nil }, backends.Uncertain},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			withFake(t, nil, func(f *fake) {
				f.joinMUC()
				id, results := f.say("hello")
				f.conn.Close()
				if r := <-results; r.Outcome != backends.Retry {
					t.Fatalf("connection lost: %+v", r)
				}
				f.conn = f.server.Accept()
				f.host.WaitPhase(backends.Ready)
				f.joinMUC(tt.past(id)...)
				f.drainPresence()
				results = f.start(&backends.Command{ID: "$hello", Chat: mucChat, Sender: alice, Time: time.Now(), Body: text("hello")})
				if tt.want != 0 {
					if r := <-results; r.Outcome != tt.want {
						t.Errorf("got %+v", r)
					}
					return
				}
				if e := f.conn.Read(); e.Attr("id") != id {
					t.Errorf("sent %s, not %s again", e, id)
				}
			})
		})
	}
}

// drainPresence lets Alice back into the room.
func (f *fake) drainPresence() {
	f.Helper()
	e := f.conn.Read()
	f.recv("<presence from='" + e.Attr("to") + "' to='" + e.Attr("from") + "'>" + self + "</presence>")
	synctest.Wait()
}

func TestMUCJoinRefused(t *testing.T) {
	tests := map[string]backends.RefusalCode{
		"forbidden": backends.RefusedBanned, "registration-required": backends.RefusedInviteOnly, "item-not-found": backends.RefusedNotFound, "not-authorized": backends.RefusedPassword,
	}
	for condition, want := range tests {
		t.Run(condition, func(t *testing.T) {
			withFake(t, nil, func(f *fake) {
				done := make(chan error)
				go func() {
					_, err := f.n.Join(f.Context(), backends.JoinRequest{Chat: mucChat})
					done <- err
				}()
				disco := f.conn.Read()
				f.recv("<iq from='room@muc.test' to='" + botJID + "' type='error' id='" + disco.Attr("id") + "'/>")
				f.want(`<presence from="gw.test/gjallar" to="room@muc.test/gjallar"><x xmlns="http://jabber.org/protocol/muc"><history maxstanzas="100"/></x></presence>`)
				f.recv("<presence from='room@muc.test/gjallar' to='" + botJID + "' type='error'><error type='auth'><" + condition + " xmlns='" + xep.NSStanzas + "'/></error></presence>")
				err := <-done
				if refusal, ok := errors.AsType[*backends.Refusal](err); !ok || refusal.Code != want {
					t.Errorf("got %v", err)
				}
				if r := <-f.start(&backends.Command{ID: "$1", Chat: mucChat, Sender: alice, Body: text("x")}); r.Outcome != backends.Rejected || r.Reason == "" {
					t.Errorf("then %+v", r)
				}
			})
		})
	}
}

func TestMUCBotTakesAnotherNick(t *testing.T) {
	withFake(t, nil, func(f *fake) {
		done := make(chan error)
		go func() {
			_, err := f.n.Join(f.Context(), backends.JoinRequest{Chat: mucChat})
			done <- err
		}()
		disco := f.conn.Read()
		f.recv("<iq from='room@muc.test' to='" + botJID + "' type='error' id='" + disco.Attr("id") + "'/>")
		f.conn.Read()
		f.recv("<presence from='room@muc.test/gjallar' to='" + botJID + "' type='error'><error type='cancel'><conflict xmlns='" + xep.NSStanzas + "'/></error></presence>")
		f.want(`<presence from="gw.test/gjallar" to="room@muc.test/gjallar_"><x xmlns="http://jabber.org/protocol/muc"><history maxstanzas="100"/></x></presence>`)
		f.recv("<presence from='room@muc.test/gjallar_' to='" + botJID + "'>" + self + "</presence>")
		if err := <-done; err != nil { // after a while: the room sends no subject
			t.Error(err)
		}
	})
}

func TestMUCRemovesTheBot(t *testing.T) {
	gone := func(codes string) string {
		return "<presence from='room@muc.test/gjallar' to='" + botJID + "' type='unavailable'><x xmlns='http://jabber.org/protocol/muc#user'><item affiliation='none' role='none'><reason>no bots</reason></item><status code='110'/>" + codes + "</x></presence>"
	}
	t.Run("a kick is obeyed", func(t *testing.T) {
		withFake(t, nil, func(f *fake) {
			f.joinMUC()
			f.recv(gone("<status code='307'/>"))
			synctest.Wait()
			if r := <-f.start(&backends.Command{ID: "$1", Chat: mucChat, Sender: alice, Body: text("x")}); r.Outcome != backends.Rejected || r.Reason != "the bridge was kicked from the room: no bots" {
				t.Errorf("got %+v", r)
			}
			f.silent()
		})
	})
	t.Run("after a shutdown of the service it comes back", func(t *testing.T) {
		withFake(t, nil, func(f *fake) {
			f.joinMUC()
			f.recv(gone("<status code='332'/>"))
			f.answerJoin()
			synctest.Wait()
			f.say("x")
		})
	})
}

func TestMUCMessagesThatAreNone(t *testing.T) {
	for name, message := range map[string]string{
		"a moderation that is not the room's": "<message from='room@muc.test/bob' to='" + botJID + "' type='groupchat' id='m1'><retract xmlns='urn:xmpp:message-retract:1' id='s1'><moderated xmlns='urn:xmpp:message-moderate:1'/></retract></message>",
		"a copy for one of ours":              "<message from='room@muc.test/bob' to='alice_hs.test@gw.test/gjallar' type='groupchat' id='m2'><body>x</body></message>",
		"a displayed marker":                  "<message from='room@muc.test/bob' to='" + botJID + "' type='groupchat' id='m3'><displayed xmlns='urn:xmpp:chat-markers:0' id='1'/></message>",
		"an archive's result not asked for":   "<message from='room@muc.test' to='" + botJID + "'><result xmlns='urn:xmpp:mam:2' id='1'><forwarded xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client' from='room@muc.test/bob'><body>x</body></message></forwarded></result></message>",
	} {
		t.Run(name, func(t *testing.T) {
			withFake(t, nil, func(f *fake) {
				f.joinMUC()
				f.recv(message, "<message from='room@muc.test/bob' to='"+botJID+"' type='groupchat' id='end'><body>the end</body></message>")
				backendtest.NextBody(f.host, messageEvent("the end"))
				for _, ev := range f.host.Events() {
					switch b := ev.Body.(type) {
					case *backends.Removal:
						t.Errorf("removal %+v", b)
					case *backends.Message:
						if b.Text.Plain() != "the end" {
							t.Errorf("message %+v", b)
						}
					}
				}
			})
		})
	}
}

// In a room without stanza IDs, two people's messages with the same ID are two.
func TestMUCWithoutStanzaIDs(t *testing.T) {
	withFake(t, nil, func(f *fake) {
		f.joinMUC()
		f.recv("<presence from='room@muc.test/carol' to='" + botJID + "'>" + other + "</presence>")
		ids := map[backends.MessageID]bool{}
		for _, nick := range []string{"bob", "carol"} {
			f.recv("<message from='room@muc.test/" + nick + "' to='" + botJID + "' type='groupchat' id='1'><body>same</body></message>")
			ev, _ := backendtest.NextBody(f.host, messageEvent("same"))
			ids[ev.ID] = true
		}
		if len(ids) != 2 {
			t.Errorf("IDs %v", ids)
		}
		f.recv("<message from='room@muc.test/bob' to='" + botJID + "' type='groupchat' id='r1'><reactions xmlns='urn:xmpp:reactions:0' id='1'><reaction>x</reaction></reactions></message>")
		if _, r := backendtest.NextBody[*backends.Reaction](f.host, nil); !ids[r.Target] {
			t.Errorf("reaction to %s, not one of %v", r.Target, ids)
		}
		var carols backends.MessageID
		for _, ev := range f.host.Events() {
			if ev.ID != "" && ev.Sender.Name == "carol" {
				carols = ev.ID
			}
		}
		go f.say("first")
		synctest.Wait()
		reply := &backends.Message{Text: richtext.Plain("re"), ReplyTo: &backends.Quote{ID: carols}}
		f.start(&backends.Command{ID: "$re", Chat: mucChat, Sender: alice, Body: reply})
		if c := xep.ContentOf(f.conn.Read()); c.Reply == nil || c.Reply.ID != "1" {
			t.Errorf("reply %+v", c)
		}
	})
}

// An archive that cannot be read to its end leaves a gap, of which the host is told.
func TestMUCTellsOfAGap(t *testing.T) {
	past := func(id, stamp string) string {
		return "<message from='room@muc.test/bob' to='" + botJID + "' type='groupchat' id='" + id + "'><body>" + id + "</body><delay xmlns='urn:xmpp:delay' stamp='" + stamp + "'/></message>"
	}
	known := time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	tests := []struct {
		name    string
		history []string
		gap     bool
	}{
		{"the history begins later", []string{past("b", "1999-01-01T02:00:00Z")}, true},
		{"the history reaches back", []string{past("a", "1998-12-31T23:00:00Z"), past("b", "1999-01-01T02:00:00Z")}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			withFake(t, nil, func(f *fake) {
				done := make(chan error)
				go func() {
					_, err := f.n.Join(f.Context(), backends.JoinRequest{Chat: mucChat, Resume: &backends.Mark{ID: "known", Time: known}})
					done <- err
				}()
				f.answerJoin(tt.history...)
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				backendtest.NextBody(f.host, messageEvent("b"))
				gap := false
				for _, ev := range f.host.Events() {
					if g, ok := ev.Body.(*backends.Gap); ok {
						gap = true
						if !g.From.Equal(known) || !g.To.Equal(known.Add(2*time.Hour)) {
							t.Errorf("gap %+v", g)
						}
					}
				}
				if gap != tt.gap {
					t.Errorf("told of a gap: %v", gap)
				}
			})
		})
	}
}
