package irc

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/backendtest/inspircd"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

func TestALongMessageArrivesWhole(t *testing.T) {
	onPeers(t, func(t *testing.T, s peerServer) {
		bob := newStranger(t, s.addr, "bob", "#tea")
		_, n := openNetwork(t, s.addr, nil)
		join(t, n, "#tea")
		var words []string
		for i := range 300 {
			words = append(words, fmt.Sprintf("wörd%d", i))
		}
		text := strings.Join(words, " ")
		r := result(t, say(t, n, "#tea", alice, text), backends.Delivered)
		var got []string
		for range r.IDs {
			line := bob.wait("PRIVMSG #tea")
			if len(line)+2 > ircmsg.MaxLine {
				t.Errorf("a line of %d bytes", len(line)+2)
			}
			m, err := ircmsg.Parse(line)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, m.Params[1])
		}
		if len(r.IDs) < 5 || strings.Join(got, " ") != text {
			t.Errorf("%d lines: %q", len(r.IDs), got)
		}
	})
}

func TestAMessageCannotInjectLines(t *testing.T) {
	onPeers(t, func(t *testing.T, s peerServer) {
		bob := newStranger(t, s.addr, "bob", "#tea")
		_, n := openNetwork(t, s.addr, nil)
		join(t, n, "#tea")
		mallory := backends.User{Account: "@m:here.test", Name: "mal\r\nQUIT :x\x00lory", Username: "m\nQUIT"}
		for i, text := range []string{"a\r\nPRIVMSG #tea :injected", "b\rQUIT", "c\x00d", "\x01DCC SEND x\x01", "e"} {
			c := &backends.Command{
				ID: fmt.Sprint(i), Chat: backends.ChatKey{Chat: "#tea"}, Sender: mallory,
				Body: &backends.Message{Text: richtext.Doc{{Kind: richtext.Text, Text: text}}},
			}
			result(t, send(t, n, c), backends.Delivered)
		}
		for _, want := range []string{":a", ":PRIVMSG #tea :injected", ":bQUIT", ":cd", ":DCC SEND x", ":e"} {
			m, err := ircmsg.Parse(bob.wait("PRIVMSG #tea"))
			if err != nil || m.Params[1] != want[1:] || m.Prefix.Name != "malQUIT" && m.Prefix.Name != "mal__QUIT_xlory" {
				t.Errorf("got %v (%v), want %q", m, err, want)
			}
		}
		for _, chat := range []backends.ChatID{"#tea\r\nQUIT", "#tea,#more", "#tea x", ""} {
			c := &backends.Command{Chat: backends.ChatKey{Chat: chat}, Sender: alice, Body: &backends.Message{Text: richtext.Plain("x")}}
			result(t, send(t, n, c), backends.Rejected)
			if _, err := n.Join(t.Context(), backends.JoinRequest{Chat: c.Chat}); err == nil {
				t.Errorf("joined %q", chat)
			}
		}
		topic := "x\r\nQUIT :y"
		send(t, n, &backends.Command{Chat: backends.ChatKey{Chat: "#tea"}, Sender: mallory, Body: &backends.ChatInfo{Topic: &topic}})
		result(t, say(t, n, "#tea", mallory, "still here"), backends.Delivered)
	})
}

func TestMembersComeAndGo(t *testing.T) {
	onPeers(t, func(t *testing.T, s peerServer) {
		bob := newStranger(t, s.addr, "bob", "#tea")
		host, n := openNetwork(t, s.addr, nil)
		join(t, n, "#tea")
		next := func(action backends.Action, user backends.UserID) *backends.Member {
			t.Helper()
			_, m := backendtest.NextBody(host, func(_ *backends.Event, m *backends.Member) bool { return true })
			if m.Action != action || m.User.ID != user {
				t.Errorf("got %s of %+v, want %s of %s", m.Action, m.User, action, user)
			}
			return m
		}
		carol := newStranger(t, s.addr, "Carol", "#tea")
		next(backends.Joined, "carol")
		carol.send("NICK Caroline")
		ev, p := backendtest.NextBody[*backends.Profile](host, nil)
		if p.Was != "carol" || p.User.ID != "caroline" || p.User.Name != "Caroline" || ev.Chat.Chat != "#tea" {
			t.Errorf("profile %+v in %+v", p, ev.Chat)
		}
		bob.send("MODE #tea +o Caroline")
		if _, r := backendtest.NextBody[*backends.RoleChange](host, nil); r.User.ID != "caroline" || r.Role != backends.Moderator {
			t.Errorf("role %+v", r)
		}
		carol.send("TOPIC #tea :all about \x02tea")
		if ev, info := backendtest.NextBody[*backends.ChatInfo](host, nil); *info.Topic != "all about tea" || ev.Sender.ID != "caroline" {
			t.Errorf("topic %+v", info)
		}
		carol.send("PART #tea :bye")
		next(backends.Left, "caroline")
		carol.send("JOIN #tea")
		next(backends.Joined, "caroline")
		bob.send("KICK #tea Caroline :enough")
		if m := next(backends.Kicked, "caroline"); m.Reason != "enough" {
			t.Errorf("reason %q", m.Reason)
		}
		carol.send("JOIN #tea")
		next(backends.Joined, "caroline")
		carol.send("QUIT :gone")
		next(backends.Left, "caroline")

		// One of ours: what it does is not told, what is done to it is.
		result(t, say(t, n, "#tea", alice, "hi"), backends.Delivered)
		bob.send("KICK #tea Alice :and you")
		if m := next(backends.Kicked, ""); m.User.Account != alice.Account || m.Reason != "and you" {
			t.Errorf("kick %+v", m)
		}
		result(t, say(t, n, "#tea", alice, "but"), backends.Rejected)
	})
}

func TestUsersOfTheHostModerate(t *testing.T) {
	onPeers(t, func(t *testing.T, s peerServer) {
		bob := newStranger(t, s.addr, "bob", "#tea")
		carol := newStranger(t, s.addr, "carol", "#tea")
		_, n := openNetwork(t, s.addr, nil)
		join(t, n, "#tea")
		do := func(want backends.Outcome, body backends.Body) backends.Result {
			t.Helper()
			return result(t, send(t, n, &backends.Command{Chat: backends.ChatKey{Chat: "#tea"}, Sender: alice, Body: body}), want)
		}
		member := func(a backends.Action) *backends.Member {
			return &backends.Member{Action: a, User: backends.User{ID: "carol"}, Reason: "rude"}
		}
		if r := do(backends.Rejected, member(backends.Kicked)); !strings.Contains(r.Reason, "operator") {
			t.Errorf("reason %q", r.Reason)
		}
		bob.send("MODE #tea +o bridge")
		bob.wait("MODE #tea +o", "bridge")
		topic := "what we drink"
		do(backends.Delivered, &backends.ChatInfo{Topic: &topic})
		bob.wait("TOPIC #tea :" + topic)
		do(backends.Delivered, &backends.RoleChange{User: backends.User{ID: "carol"}, Role: backends.Voice})
		bob.wait("MODE #tea +v", "carol")
		do(backends.Delivered, member(backends.Banned))
		bob.wait("MODE #tea +b", "127.0.0.1")
		bob.wait("KICK #tea carol", "Alice: rude")
		carol.wait("KICK #tea carol")
		do(backends.Delivered, member(backends.Unbanned))
		bob.wait("MODE #tea -b", "127.0.0.1")
		do(backends.Delivered, member(backends.Invited))
		carol.wait("INVITE carol", "#tea")
		carol.send("JOIN #tea")
		carol.wait("366")
		do(backends.Delivered, member(backends.Kicked))
		carol.wait("KICK #tea carol", "Alice: rude")
		do(backends.Rejected, member(backends.Kicked)) // no longer there
		do(backends.Unsupported, &backends.Edit{})
	})
}

func TestPrivateChats(t *testing.T) {
	onPeers(t, func(t *testing.T, s peerServer) {
		bob := newStranger(t, s.addr, "Bob")
		host, n := openNetwork(t, s.addr, nil)
		chat := backends.ChatKey{Chat: "bob", Account: alice.Account}
		cmd := &backends.Command{Chat: chat, Sender: alice, Body: &backends.Message{Text: richtext.Plain("psst")}}
		result(t, send(t, n, cmd), backends.Delivered)
		bob.wait(":Alice!", "PRIVMSG", "psst")
		bob.send("PRIVMSG Alice :what?")
		ev, msg := backendtest.NextBody[*backends.Message](host, nil)
		if ev.Chat != chat || ev.Sender.ID != "bob" || msg.Text.Plain() != "what?" {
			t.Errorf("event %+v", ev)
		}
		bob.send("JOIN #secret", "INVITE Alice #secret")
		ev, invite := backendtest.NextBody[*backends.Member](host, nil)
		if ev.Chat.Chat != "#secret" || invite.Action != backends.Invited || invite.User.Account != alice.Account || ev.Sender.ID != "bob" {
			t.Errorf("invitation %+v in %+v", invite, ev)
		}
		cmd.Chat.Chat = "nobody"
		if r := result(t, send(t, n, cmd), backends.Rejected); !strings.Contains(r.Reason, "nobody") {
			t.Errorf("reason %q", r.Reason)
		}
		user, err := n.(backends.Resolver).ResolveUser(t.Context(), "bob")
		if err != nil || user.ID != "bob" || user.Name != "Bob" {
			t.Errorf("resolved %+v, %v", user, err)
		}
		if _, err := n.(backends.Resolver).ResolveUser(t.Context(), "nobody"); err == nil {
			t.Error("resolved nobody")
		}
	})
}

func TestWhoHasNoConnectionIsRelayed(t *testing.T) {
	onPeers(t, func(t *testing.T, s peerServer) {
		bob := newStranger(t, s.addr, "bob", "#tea")
		host, n := openNetwork(t, s.addr, func(c map[string]any) { c["accounts"] = map[string]any{"max": 1} })
		join(t, n, "#tea")
		result(t, say(t, n, "#tea", alice, "first"), backends.Delivered)
		bob.wait(":Alice!", "first")
		dora := backends.User{Account: "@dora:here.test", Name: "Dora"}
		result(t, say(t, n, "#tea", dora, "two\nlines"), backends.Delivered)
		bob.wait(":bridge!", ":<Dora> two")
		bob.wait(":bridge!", ":<Dora> lines")
		result(t, send(t, n, &backends.Command{
			Chat: backends.ChatKey{Chat: "#tea"}, Sender: dora, Body: &backends.Message{Kind: backends.Emote, Text: richtext.Plain("waves")},
		}), backends.Delivered)
		bob.wait(":bridge!", ":* Dora waves")
		bob.send("PRIVMSG #tea :end")
		if ev, msg := backendtest.NextBody[*backends.Message](host, nil); msg.Text.Plain() != "end" {
			t.Errorf("came back: %q of %v", msg.Text.Plain(), ev.Sender)
		}
	})
}

func TestOrderIsKeptBetweenConnections(t *testing.T) {
	onPeers(t, func(t *testing.T, s peerServer) {
		bob := newStranger(t, s.addr, "bob", "#tea")
		_, n := openNetwork(t, s.addr, nil)
		join(t, n, "#tea")
		const count = 60
		var results []<-chan backends.Result
		for i := range count {
			who := backends.User{Account: backends.AccountID(fmt.Sprintf("@u%d:here.test", i%3)), Name: fmt.Sprintf("user%d", i%3)}
			cmd := &backends.Command{ID: fmt.Sprint(i), Chat: backends.ChatKey{Chat: "#tea"}, Sender: who, Body: &backends.Message{Text: richtext.Plain(fmt.Sprintf("n%d.", i))}}
			results = append(results, send(t, n, cmd))
		}
		ids := map[backends.MessageID]bool{}
		for i := range count {
			if line := bob.wait("PRIVMSG #tea"); !strings.HasSuffix(line, fmt.Sprintf("n%d.", i)) {
				t.Fatalf("message %d is %q", i, line)
			}
			ids[result(t, results[i], backends.Delivered).IDs[0]] = true
		}
		if len(ids) != count {
			t.Errorf("%d IDs for %d messages", len(ids), count)
		}
	})
}

func TestTheServerRestarts(t *testing.T) {
	onPeers(t, func(t *testing.T, s peerServer) {
		host, n := openNetwork(t, s.addr, nil)
		join(t, n, "#tea")
		result(t, say(t, n, "#tea", alice, "before"), backends.Delivered)
		s.stop()
		host.WaitPhase(backends.Disconnected)
		cmd := &backends.Command{ID: "while", Chat: backends.ChatKey{Chat: "#tea"}, Sender: alice, Body: &backends.Message{Text: richtext.Plain("while it is away")}}
		if r := result(t, send(t, n, cmd), backends.Retry); r.After <= 0 {
			t.Errorf("result %+v", r)
		}
		if _, err := n.Join(t.Context(), backends.JoinRequest{Chat: cmd.Chat}); err == nil {
			t.Error("joined without a connection")
		}
		if err := s.restart(context.Background()); err != nil {
			t.Fatal(err)
		}
		host.WaitPhase(backends.Ready)
		bob := newStranger(t, s.addr, "bob", "#tea")
		join(t, n, "#tea")
		result(t, send(t, n, cmd), backends.Delivered)
		bob.wait("while it is away")
		bob.send("PRIVMSG #tea :welcome back")
		if _, msg := backendtest.NextBody[*backends.Message](host, nil); msg.Text.Plain() != "welcome back" {
			t.Errorf("got %q", msg.Text.Plain())
		}
	})
}

func TestAFloodIsSlowedDown(t *testing.T) {
	onPeers(t, func(t *testing.T, s peerServer) {
		bob := newStranger(t, s.addr, "bob", "#tea")
		_, n := openNetwork(t, s.addr, func(c map[string]any) {
			c["flood"] = map[string]any{"burst": 3, "lines_per_second": 20}
		})
		join(t, n, "#tea")
		lines := make([]string, 20)
		for i := range lines {
			lines[i] = fmt.Sprintf("line %d", i)
		}
		results := say(t, n, "#tea", alice, strings.Join(lines, "\n"))
		for _, l := range lines {
			bob.wait(":" + l)
		}
		if r := result(t, results, backends.Delivered); len(r.IDs) != len(lines) {
			t.Errorf("%d IDs", len(r.IDs))
		}
		r := result(t, say(t, n, "#tea", alice, strings.Repeat("x\n", 51)), backends.Rejected)
		if !strings.Contains(r.Reason, "51 lines") {
			t.Errorf("reason %q", r.Reason)
		}
	})
}

func TestRefusals(t *testing.T) {
	onPeers(t, func(t *testing.T, s peerServer) {
		bob := newStranger(t, s.addr, "bob", "#tea", "#locked")
		_, n := openNetwork(t, s.addr, func(c map[string]any) { c["channel_keys"] = map[string]any{"#KEYED": "sesame"} })
		bob.send("MODE #locked +i", "JOIN #keyed", "MODE #keyed +k sesame", "MODE #tea +m", "PING x")
		bob.wait("PONG")
		join(t, n, "#tea")
		join(t, n, "#keyed")
		result(t, say(t, n, "#keyed", alice, "in"), backends.Delivered)
		if r := result(t, say(t, n, "#tea", alice, "hush"), backends.Rejected); r.Reason == "" {
			t.Error("no reason")
		}
		_, err := n.Join(t.Context(), backends.JoinRequest{Chat: backends.ChatKey{Chat: "#locked"}})
		if r, ok := err.(*backends.Refusal); !ok || r.Code != backends.RefusedInviteOnly {
			t.Errorf("err = %v", err)
		}
		bob.send("MODE #tea -m", "PING y")
		bob.wait("PONG")
		result(t, say(t, n, "#tea", alice, "better"), backends.Delivered)
	})
}

func TestTheChannelsAreListed(t *testing.T) {
	onPeers(t, func(t *testing.T, s peerServer) {
		newStranger(t, s.addr, "bob", "#tea", "#coffee")
		newStranger(t, s.addr, "carol", "#coffee").send("TOPIC #coffee :beans")
		_, n := openNetwork(t, s.addr, nil)
		chats, err := n.(backends.Directory).ListChats(t.Context(), "", 10)
		if err != nil || len(chats) < 2 || chats[0].Chat.Chat != "#coffee" || chats[0].Members != 2 {
			t.Errorf("chats %+v, %v", chats, err)
		}
		chats, err = n.(backends.Directory).ListChats(t.Context(), "TEA", 10)
		if err != nil || len(chats) != 1 || *chats[0].Name != "#tea" {
			t.Errorf("chats %+v, %v", chats, err)
		}
	})
}

func TestTwoUsersOfOneName(t *testing.T) {
	onPeers(t, func(t *testing.T, s peerServer) {
		bob := newStranger(t, s.addr, "Alice", "#tea")
		_, n := openNetwork(t, s.addr, nil)
		join(t, n, "#tea")
		other := backends.User{Account: "@alice:there.test", Name: "Álice"}
		result(t, say(t, n, "#tea", alice, "one"), backends.Delivered)
		bob.wait(":Alice_!", "one")
		result(t, say(t, n, "#tea", other, "two"), backends.Delivered)
		bob.wait(":Alice1!", "two")
		c := &backends.Command{Chat: backends.ChatKey{Chat: "#tea"}, Sender: alice, Body: &backends.Profile{User: backends.User{Account: alice.Account, Name: "Alicia"}}}
		result(t, send(t, n, c), backends.Delivered)
		bob.wait(":Alice_!", "NICK", "Alicia")
		result(t, say(t, n, "#tea", alice, "three"), backends.Delivered)
		bob.wait(":Alicia!", "three")
	})
}

// InspIRCd replays what was said while the bridge was away.
func TestWhatWasMissedIsReplayed(t *testing.T) {
	t.Parallel()
	s := inspircd.Start(t)
	bob := newStranger(t, s.Addr, "bob", "#tea")
	bob.send("MODE #tea +H 50:1h")
	bob.wait("MODE #tea")
	host, n := openNetwork(t, s.Addr, nil)
	join(t, n, "#tea")
	bob.send("PRIVMSG #tea :seen")
	seen, _ := backendtest.NextBody[*backends.Message](host, nil)
	result(t, say(t, n, "#tea", alice, "ours"), backends.Delivered)
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	bob.wait("QUIT")
	bob.send("PRIVMSG #tea :missed", "PING x")
	bob.wait("PONG")

	n, err := New().Open(t.Context(), json.RawMessage(fmt.Sprintf(`{"server":%q,"tls":false,"nick":"bridge"}`, s.Addr)), host)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close(context.Background())
	host.WaitPhase(backends.Ready)
	req := backends.JoinRequest{Chat: backends.ChatKey{Chat: "#tea"}, Resume: &backends.Mark{ID: seen.ID, Time: seen.Time}}
	if _, err := n.Join(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	bob.wait("JOIN")
	bob.send("PRIVMSG #tea :live")
	for _, want := range []string{"seen", "missed", "live"} {
		ev, m := backendtest.NextBody[*backends.Message](host, nil)
		if m.Text.Plain() != want || want == "seen" && ev.ID != seen.ID {
			t.Errorf("%q with ID %s, want %q", m.Text.Plain(), ev.ID, want)
		}
	}
	for _, ev := range host.Events() {
		if gap, ok := ev.Body.(*backends.Gap); ok {
			t.Errorf("told of a gap: %+v", gap)
		}
	}
}
