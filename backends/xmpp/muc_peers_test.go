package xmpp

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/backendtest/peer"
	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/backends/xmpp/xep"
)

// mucTest is a MUC with Bob in it, which the bridge has joined.
type mucTest struct {
	*testing.T
	s    *server
	bob  *client
	host *backendtest.Host
	n    backends.Network
	addr string
	chat backends.ChatKey
}

func withMUC(t *testing.T, test func(t *mucTest)) {
	withServers(t, inMUC(test))
}

func inMUC(test func(t *mucTest)) func(*testing.T, *server) {
	return func(t *testing.T, s *server) {
		m := &mucTest{T: t, s: s, host: backendtest.NewHost(t), addr: roomName(t) + "@" + s.muc}
		m.chat.Chat = backends.ChatID(m.addr)
		m.bob = s.login(t, "bob")
		m.bob.join(m.addr, "bob")
		m.n = s.open(t, m.host)
		m.join(nil)
		test(m)
	}
}

func (t *mucTest) join(resume *backends.Mark) {
	t.Helper()
	if _, err := t.n.Join(t.Context(), backends.JoinRequest{Chat: t.chat, Resume: resume}); err != nil {
		t.Fatal(err)
	}
}

// alice sends a command of Alice's.
func (t *mucTest) alice(body backends.Body) backends.MessageID {
	t.Helper()
	return deliver(t.T, t.n, &backends.Command{Chat: t.chat, Sender: alice, Time: time.Now(), Body: body})
}

func TestMUCBothWays(t *testing.T) {
	withMUC(t, func(t *mucTest) {
		_, members := backendtest.NextBody[*backends.Members](t.host, nil)
		if len(members.Members) != 1 || members.Members[0].User.Name != "bob" {
			t.Errorf("members %+v", members)
		}
		t.bob.say(t.addr, "groupchat", "hi *there*", "bob-message-1")
		ev, msg := backendtest.NextBody(t.host, messageEvent("hi there"))
		if ev.Sender.Name != "bob" || ev.Chat != t.chat || ev.ID == "" || msg.Text[1].Kind != richtext.Bold {
			t.Errorf("event %+v %+v", ev, msg)
		}
		id := t.alice(text("hello"))
		got := t.bob.message("hello")
		if got.Attr("from") != t.addr+"/Alice A" {
			t.Errorf("bob sees %s", got)
		}
		if sid := xep.StanzaID(got, t.addr); sid != "" && sid != string(id) {
			t.Errorf("the result says %q, bob sees %s", id, got)
		}
	})
}

func TestMUCFeaturesFromTheHost(t *testing.T) {
	withMUC(t, func(t *mucTest) {
		t.bob.say(t.addr, "groupchat", "question", "bob-message-1")
		asked, _ := backendtest.NextBody(t.host, messageEvent("question"))
		hello := t.alice(text("helo"))
		original := t.bob.message("helo")

		t.alice(&backends.Edit{Target: hello, New: *text("hello")})
		if got := xep.ContentOf(t.bob.message("hello")); got.Replace != original.Attr("id") {
			t.Errorf("edit %+v", got)
		}
		t.alice(&backends.Message{Text: richtext.Plain("answer"), ReplyTo: &backends.Quote{ID: asked.ID, Sender: asked.Sender, Text: "question"}})
		reply := xep.ContentOf(t.bob.message("> question\nanswer"))
		if reply.Body != "answer" || reply.Reply == nil || !strings.HasPrefix(string(asked.ID), reply.Reply.ID) || reply.Reply.To != t.addr+"/bob" {
			t.Errorf("reply %+v", reply)
		}
		for _, step := range []struct {
			key     string
			removed bool
			want    []string
		}{{"👍", false, []string{"👍"}}, {"❤", false, []string{"👍", "❤"}}, {"👍", true, []string{"❤"}}} {
			t.alice(&backends.Reaction{Target: asked.ID, Key: step.key, Removed: step.removed})
			e := t.bob.stanza("reactions", func(e *xep.Element) bool { return e.Child(xep.NSReactions, "reactions") != nil })
			if c := xep.ContentOf(e); !slices.Equal(c.Reactions, step.want) {
				t.Errorf("reactions %v, want %v", c.Reactions, step.want)
			}
		}
		t.alice(&backends.Message{Kind: backends.Emote, Text: richtext.Doc{{Kind: richtext.Bold, Children: richtext.Plain("waves")}}})
		t.bob.message("/me *waves*")
		t.alice(&backends.Message{Text: richtext.Plain("look"), Files: []backends.File{{URL: "https://media.test/a.png"}}})
		t.bob.message("look")
		if c := xep.ContentOf(t.bob.message("https://media.test/a.png")); !slices.Equal(c.Files, []string{"https://media.test/a.png"}) {
			t.Errorf("file %+v", c)
		}
		run(t.T, t.n, &backends.Command{Chat: t.chat, Sender: alice, Body: &backends.Typing{On: true}})
		t.bob.stanza("typing", func(e *xep.Element) bool { return xep.ContentOf(e).State == "composing" })

		t.alice(&backends.Removal{Target: hello, Reason: "wrong"})
		e := t.bob.stanza("retraction", func(e *xep.Element) bool { return e.Child(xep.NSRetract, "retract") != nil })
		if c := xep.ContentOf(e); !strings.HasPrefix(string(hello), c.Retract) || e.Attr("from") != t.addr+"/Alice A" {
			t.Errorf("retraction %+v from %s", c, e.Attr("from"))
		}
		renamed := alice
		renamed.Name = "Alice B"
		if r := run(t.T, t.n, &backends.Command{Chat: t.chat, Sender: alice, Body: &backends.Profile{User: renamed}}); r.Outcome != backends.Delivered {
			t.Errorf("renaming: %+v", r)
		}
		t.bob.stanza("new nick", func(e *xep.Element) bool {
			return xep.MUCUserOf(e).Nick == "Alice B" && xep.MUCUserOf(e).Has(xep.StatusNickChanged)
		})
		if r := run(t.T, t.n, &backends.Command{Chat: t.chat, Sender: alice, Body: &backends.Member{Action: backends.Left, User: alice}}); r.Outcome != backends.Delivered {
			t.Errorf("leaving: %+v", r)
		}
		t.bob.stanza("leave", func(e *xep.Element) bool {
			return e.Attr("from") == t.addr+"/Alice B" && e.Attr("type") == "unavailable"
		})
	})
}

func TestMUCFeaturesFromTheRoom(t *testing.T) {
	withMUC(t, func(t *mucTest) {
		hello := t.alice(text("hello"))
		t.bob.message("hello")
		send := func(id, payload string) {
			t.bob.raw("<message to='%s' type='groupchat' id='%s'>%s</message>", t.addr, id, payload)
		}
		send("bob-message-1", "<body>Alice A: helo</body>")
		first, msg := backendtest.NextBody(t.host, messageEvent("Alice A: helo"))
		if msg.Text[0].Kind != richtext.Mention || msg.Text[0].User != string(alice.Account) {
			t.Errorf("mention %+v", msg.Text)
		}
		send("bob-message-2", "<body>hello</body><replace xmlns='urn:xmpp:message-correct:0' id='bob-message-1'/>")
		if _, edit := backendtest.NextBody[*backends.Edit](t.host, nil); edit.Target != first.ID || edit.New.Text.Plain() != "hello" {
			t.Errorf("edit %+v", edit)
		}
		send("bob-message-3", "<body>&gt; hello\nyes</body><reply xmlns='urn:xmpp:reply:0' id='"+string(hello)+"'/><fallback xmlns='urn:xmpp:fallback:0' for='urn:xmpp:reply:0'><body start='0' end='8'/></fallback>")
		if _, reply := backendtest.NextBody(t.host, messageEvent("yes")); reply.ReplyTo == nil || reply.ReplyTo.ID != hello {
			t.Errorf("reply %+v", reply)
		}
		send("bob-message-4", "<reactions xmlns='urn:xmpp:reactions:0' id='"+string(hello)+"'><reaction>👍</reaction></reactions><store xmlns='urn:xmpp:hints'/>")
		if _, r := backendtest.NextBody[*backends.Reaction](t.host, nil); r.Target != hello || r.Key != "👍" || r.Removed {
			t.Errorf("reaction %+v", r)
		}
		send("bob-message-5", "<reactions xmlns='urn:xmpp:reactions:0' id='"+string(hello)+"'/><store xmlns='urn:xmpp:hints'/>")
		if _, r := backendtest.NextBody[*backends.Reaction](t.host, nil); r.Target != hello || r.Key != "👍" || !r.Removed {
			t.Errorf("reaction %+v", r)
		}
		send("bob-message-6", "<body>https://x.test/a.png</body><x xmlns='jabber:x:oob'><url>https://x.test/a.png</url></x>")
		if _, m := backendtest.NextBody(t.host, messageEvent("")); len(m.Files) != 1 || m.Files[0].Name != "a.png" || m.Files[0].MediaType != "image/png" {
			t.Errorf("file %+v", m)
		}
		send("bob-message-7", "<composing xmlns='http://jabber.org/protocol/chatstates'/>")
		if _, typing := backendtest.NextBody[*backends.Typing](t.host, nil); !typing.On {
			t.Error("not typing")
		}
		send("bob-message-8", "<retract xmlns='urn:xmpp:message-retract:1' id='"+string(first.ID)+"'/><store xmlns='urn:xmpp:hints'/>")
		if _, r := backendtest.NextBody[*backends.Removal](t.host, nil); r.Target != first.ID || r.Moderated {
			t.Errorf("removal %+v", r)
		}
		send("bob-message-9", "<subject>News</subject>")
		if _, info := backendtest.NextBody(t.host, func(_ *backends.Event, i *backends.ChatInfo) bool { return i.Topic != nil && *i.Topic != "" }); *info.Topic != "News" {
			t.Errorf("topic %q", *info.Topic)
		}
		t.bob.raw("<iq type='set' id='m1' to='%s'><query xmlns='%s'><item nick='Alice A' role='moderator'/></query></iq>", t.addr, xep.NSMUCAdmin)
		t.bob.stanza("answer", func(e *xep.Element) bool { return e.Name.Local == "iq" && e.Attr("id") == "m1" })
		topic := "Other news"
		t.alice(&backends.ChatInfo{Topic: &topic})
		t.bob.stanza("subject", func(e *xep.Element) bool { return e.Child(xep.NSComponent, "subject").Text() == topic })
	})
}

func TestMUCMembership(t *testing.T) {
	withMUC(t, func(t *mucTest) {
		carol := t.s.login(t.T, "carol")
		carol.join(t.addr, "carol")
		came, m := backendtest.NextBody[*backends.Member](t.host, nil)
		if m.Action != backends.Joined || m.User.Name != "carol" || came.Sender != m.User {
			t.Errorf("join %+v", m)
		}
		carol.raw("<presence to='%s/caroline'/>", t.addr)
		_, p := backendtest.NextBody[*backends.Profile](t.host, nil)
		if p.User.Name != "caroline" || p.User.ID == m.User.ID && p.Was != "" || p.User.ID != m.User.ID && p.Was != m.User.ID {
			t.Errorf("profile %+v of %+v", p, m.User)
		}
		t.bob.raw("<iq type='set' id='k1' to='%s'><query xmlns='%s'><item nick='caroline' role='none'><reason>spam</reason></item></query></iq>", t.addr, xep.NSMUCAdmin)
		ev, kick := backendtest.NextBody[*backends.Member](t.host, nil)
		if kick.Action != backends.Kicked || kick.User.ID != p.User.ID || kick.Reason != "spam" {
			t.Errorf("kick %+v by %+v", kick, ev.Sender)
		}

		t.alice(text("hello"))
		t.bob.raw("<iq type='set' id='k2' to='%s'><query xmlns='%s'><item nick='Alice A' role='none'/></query></iq>", t.addr, xep.NSMUCAdmin)
		if _, kick = backendtest.NextBody[*backends.Member](t.host, nil); kick.Action != backends.Kicked || kick.User.Account != alice.Account {
			t.Errorf("kick of ours %+v", kick)
		}
		t.alice(text("back again"))
		t.bob.message("back again")
	})
}

func TestMUCPrivateMessages(t *testing.T) {
	withMUC(t, func(t *mucTest) {
		t.alice(text("hello"))
		t.bob.message("hello")
		t.bob.say(t.addr+"/Alice A", "chat", "a word", "bob-message-1")
		ev, _ := backendtest.NextBody(t.host, messageEvent("a word"))
		if ev.Chat.Account != alice.Account || ev.Chat.Chat != backends.ChatID(ev.Sender.ID) || ev.Sender.Name != "bob" {
			t.Errorf("event %+v", ev)
		}
		deliver(t.T, t.n, &backends.Command{Chat: ev.Chat, Sender: alice, Time: time.Now(), Body: text("another word")})
		if got := t.bob.message("another word"); got.Attr("from") != t.addr+"/Alice A" || got.Attr("type") != "chat" {
			t.Errorf("bob sees %s", got)
		}
	})
}

func TestMUCNickClash(t *testing.T) {
	withMUC(t, func(t *mucTest) {
		second := backends.User{Account: "@bob:hs.test", Name: "bob", Username: "bob", Domain: "hs.test"}
		deliver(t.T, t.n, &backends.Command{Chat: t.chat, Sender: second, Body: text("I am another")})
		if got := t.bob.message("I am another"); got.Attr("from") != t.addr+"/bob_" {
			t.Errorf("bob sees %s", got)
		}
	})
}

func TestMUCRefusesMessages(t *testing.T) {
	withMUC(t, func(t *mucTest) {
		t.alice(text("hello"))
		t.bob.raw("<iq type='set' id='v1' to='%s'><query xmlns='%s'><x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>http://jabber.org/protocol/muc#roomconfig</value></field><field var='muc#roomconfig_moderatedroom'><value>1</value></field></x></query></iq>", t.addr, xep.NSMUCOwner)
		t.bob.raw("<iq type='set' id='v2' to='%s'><query xmlns='%s'><item nick='Alice A' role='visitor'/></query></iq>", t.addr, xep.NSMUCAdmin)
		t.bob.stanza("answer", func(e *xep.Element) bool { return e.Name.Local == "iq" && e.Attr("id") == "v2" })
		r := run(t.T, t.n, &backends.Command{Chat: t.chat, Sender: alice, Body: text("may I?")})
		if r.Outcome != backends.Rejected || r.Reason == "" {
			t.Errorf("got %+v", r)
		}
	})
}

// restart stops the server, waits until the bridge knows, and starts it again.
func (t *mucTest) restart() {
	t.Helper()
	t.s.stop()
	t.host.WaitPhase(backends.Disconnected)
	if err := t.s.restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.host.WaitPhase(backends.Ready)
}

func TestMUCAfterRestart(t *testing.T) {
	withOwnServers(t, inMUC(func(t *mucTest) {
		cmd := &backends.Command{ID: "$before", Chat: t.chat, Sender: alice, Time: time.Now(), Body: text("before")}
		before := deliver(t.T, t.n, cmd)
		t.restart()
		if r := run(t.T, t.n, &backends.Command{Chat: t.chat, Sender: alice, Body: text("too early")}); r.Outcome != backends.Retry {
			t.Errorf("before the host has joined again: %+v", r)
		}
		t.bob = t.s.login(t.T, "robert")
		t.bob.join(t.addr, "bob")
		t.join(&backends.Mark{ID: before, Time: time.Now()})

		again := *cmd
		again.Attempt, again.MaybeSent = 2, true
		if r := run(t.T, t.n, &again); r.Outcome != backends.Delivered || !slices.Equal(r.IDs, []backends.MessageID{before}) {
			t.Errorf("sent again: %+v, want %s", r, before)
		}
		t.alice(text("after"))
		t.bob.message("after") // and "before" not once more:
		for _, past := range t.bob.past {
			if strings.Contains(past, "before") && !strings.Contains(past, "delay") {
				t.Errorf("bob sees it twice: %s", past)
			}
		}
		t.bob.say(t.addr, "groupchat", "still here", "bob-message-1")
		backendtest.NextBody(t.host, messageEvent("still here"))
	}))
}

// A process that died knows nothing of what it sent; the room's archive does.
func TestMUCFindsWhatAnotherProcessSent(t *testing.T) {
	withMUC(t, func(t *mucTest) {
		cmd := &backends.Command{ID: "$once", Chat: t.chat, Sender: alice, Time: time.Now(), Body: text("once")}
		id := deliver(t.T, t.n, cmd)
		mark := t.alice(text("resume here"))
		t.bob.say(t.addr, "groupchat", "missed", "bob-message-1")
		backendtest.NextBody(t.host, messageEvent("missed"))
		closeNetwork(t.T, t.n)

		// The store is shared, but for the IDs known.
		key, err := t.host.Store().Get(t.Context(), "key")
		if err != nil {
			t.Fatal(err)
		}
		t.host = backendtest.NewHost(t.T)
		t.host.Store().Put(t.Context(), "key", key)
		t.n = t.s.open(t.T, t.host)
		t.join(&backends.Mark{ID: mark, Time: time.Now()})
		ev, _ := backendtest.NextBody(t.host, messageEvent("missed"))
		if ev.Time.IsZero() || ev.ID == "" {
			t.Errorf("missed message %+v", ev)
		}
		cmd.MaybeSent = true
		if r := run(t.T, t.n, cmd); r.Outcome != backends.Delivered || !slices.Equal(r.IDs, []backends.MessageID{id}) {
			t.Errorf("sent again: %+v, want %s", r, id)
		}
		other := &backends.Command{ID: "$never", MaybeSent: true, Chat: t.chat, Sender: alice, Time: time.Now(), Body: text("never sent")}
		deliver(t.T, t.n, other)
		t.bob.message("never sent")
	})
}

// BenchmarkMUC sends messages through Prosody, many at a time, until the room has
// confirmed them.
func BenchmarkMUC(b *testing.B) {
	s, err := startProsody(peer.Dir(b))
	peer.Need(b, err)
	defer s.stop()
	host := backendtest.NewHost(b)
	config := fmt.Appendf(nil, `{"server": %q, "domain": %q, "secret": %q}`, s.componentAddr, s.component, s.secret)
	n, err := New().Open(b.Context(), config, host)
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close(context.WithoutCancel(b.Context()))
	host.WaitPhase(backends.Ready)
	chat := backends.ChatKey{Chat: backends.ChatID("bench@" + s.muc)}
	if _, err := n.Join(b.Context(), backends.JoinRequest{Chat: chat}); err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	window := make(chan struct{}, 100)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		window <- struct{}{}
		wg.Add(1)
		err := n.Send(b.Context(), &backends.Command{ID: fmt.Sprint(i), Chat: chat, Sender: alice, Body: text("hello")}, func(r backends.Result) {
			if r.Outcome != backends.Delivered {
				b.Errorf("%+v", r)
			}
			<-window
			wg.Done()
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	wg.Wait()
}

// After a restart of our process, those of ours who are still in the room are not
// taken for others.
func TestMUCKnowsItsOwnAfterRestart(t *testing.T) {
	withMUC(t, func(t *mucTest) {
		t.alice(text("hello"))
		t.bob.message("hello")
		closeNetwork(t.T, t.n)
		t.n = t.s.open(t.T, t.host)
		t.join(nil)
		_, list := backendtest.NextBody[*backends.Members](t.host, nil)
		if len(list.Members) != 1 || list.Members[0].User.Name != "bob" {
			t.Errorf("members %+v", list.Members)
		}
		t.alice(text("again"))
		if got := t.bob.message("again"); got.Attr("from") != t.addr+"/Alice A" {
			t.Errorf("bob sees %s", got)
		}
	})
}
