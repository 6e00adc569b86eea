package ircd

import (
	"strings"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

var (
	tea   = backends.RoomName{Alias: "tea"}
	alice = backends.User{Account: "@alice:localhost", Username: "alice", Domain: "localhost", Name: "Alice"}
	carol = backends.User{Account: "@carol:far.example", Username: "carol", Domain: "far.example", Name: "Carol"}
)

func joined(u backends.User, role backends.Role) backends.Member {
	return backends.Member{Action: backends.Joined, User: u, Role: role}
}

func TestAMessageCrossesBothWays(t *testing.T) {
	l := start(t, "")
	l.host.FakeRooms().AddRoom(backends.RoomSummary{Room: tea, Topic: "Darjeeling"}, joined(alice, backends.Owner))
	bob := l.guest("Bob", "")
	bob.do("JOIN #Tea",
		":Bob!guest@localhost JOIN #tea",
		":localhost 332 Bob #tea :Darjeeling",
		":localhost 353 Bob = #tea :@alice Bob",
		":localhost 366 Bob #tea :End of /NAMES list")
	bob.do("PRIVMSG #tea :hello, \x02world")
	ev, msg := backendtest.NextBody[*backends.Message](l.host, nil)
	if ev.Chat.Chat != "#tea" || ev.Sender.ID != "bob" || ev.Sender.Name != "Bob" || ev.ID == "" {
		t.Errorf("event %+v", ev)
	}
	want := richtext.Doc{{Kind: richtext.Text, Text: "hello, "}, {Kind: richtext.Bold, Children: richtext.Doc{{Kind: richtext.Text, Text: "world"}}}}
	if got := msg.Text; len(got) != 2 || got[0].Text != want[0].Text || got[1].Kind != richtext.Bold {
		t.Errorf("text %+v", got)
	}
	l.reflect(ev)
	bob.got() // no echo without echo-message
	res := l.show("#tea", alice, said("welcome"))
	if res.Outcome != backends.Delivered || len(res.IDs) != 1 || res.IDs[0] != "$2" {
		t.Errorf("result %+v", res)
	}
	bob.got(":alice!alice@localhost PRIVMSG #tea :welcome")
}

func TestOtherClientsSeeAGuest(t *testing.T) {
	l := start(t, "")
	bob, dan := l.guest("bob", ""), l.guest("dan", "extended-join")
	dan.write("JOIN #tea")
	dan.sync()
	bob.write("JOIN #tea")
	bob.sync()
	dan.got(":bob!guest@localhost JOIN #tea * bob")
	// The room tells of it too, which is no news.
	l.show("#tea", backends.User{ID: "bob"}, &backends.Member{Action: backends.Joined, User: backends.User{ID: "bob"}})
	dan.got()
	bob.do("PRIVMSG #tea :one")
	ev, _ := backendtest.NextBody[*backends.Message](l.host, nil)
	l.reflect(ev)
	dan.got(":bob!guest@localhost PRIVMSG #tea :one")
	bob.do("NICK Robert", ":bob!guest@localhost NICK :Robert")
	dan.got(":bob!guest@localhost NICK :Robert")
	pev, profile := backendtest.NextBody[*backends.Profile](l.host, nil)
	if pev.Chat.Chat != "#tea" || profile.User.ID != "bob" || profile.User.Name != "Robert" || profile.Was != "" {
		t.Errorf("profile %+v in %+v", profile, pev)
	}
	l.show("#tea", backends.User{ID: "bob", Name: "Robert"}, said("from Bob"))
	dan.got(":Robert!guest@localhost PRIVMSG #tea :from Bob")
	bob.sync()
	if refused := l.connect(); true {
		refused.write("NICK bob", "USER x 0 * :x")
		refused.got(":localhost 433 * bob :Nickname is already in use")
	}
	bob.write("QUIT :tired")
	if rest := bob.rest(); len(rest) != 1 || rest[0] != "ERROR :Closing link: Quit: tired" {
		t.Errorf("after QUIT: %q", rest)
	}
	waitFor(t, func() bool { return len(l.host.FakeRooms().Members(tea)) == 1 })
	dan.got(":Robert!guest@localhost QUIT :Quit: tired")
}

// waitFor polls a condition that has no event to wait for.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(backendtest.Patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("the condition did not come true")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestRefusedMessagesComeBack(t *testing.T) {
	l := start(t, "")
	l.host.Answer(func(*backends.Event) backends.Receipt {
		return backends.Receipt{Err: &backends.Refusal{Code: backends.RefusedForbidden, Message: "you are muted"}}
	})
	bob := l.guest("bob", "")
	bob.write("JOIN #tea")
	bob.sync()
	long := strings.Repeat("tea ", 50)
	tests := []struct {
		name, line string
		want       []string
	}{
		{"message", "PRIVMSG #tea :hi", []string{
			":localhost 404 bob #tea :Cannot send: you are muted",
			":localhost NOTICE bob :Not delivered to #tea: you are muted (your message was: hi)"}},
		{"long message is quoted in part", "NOTICE #tea :" + long, []string{
			":localhost 404 bob #tea :Cannot send: you are muted",
			":localhost NOTICE bob :Not delivered to #tea: you are muted (your message was: tea *tea…)"}},
		{"topic", "TOPIC #tea :new", []string{":localhost 482 bob #tea :The topic was not changed: you are muted"}},
		{"kick", "KICK #tea bob :out", []string{":localhost 482 bob #tea :bob: you are muted"}},
		{"role", "MODE #tea +o bob", []string{":localhost 482 bob #tea :bob: you are muted"}},
		{"elsewhere", "PRIVMSG #nowhere :hi", []string{":localhost 404 bob #nowhere :Cannot send: you are not on that channel"}},
		{"CTCP request", "PRIVMSG #tea :\x01VERSION\x01", []string{":localhost 404 bob #tea :Cannot send: CTCP VERSION means nothing in a room"}},
		{"private message to nobody", "PRIVMSG zoe :hi", []string{":localhost 401 bob zoe :No such nick"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bob.tb = t
			bob.do(tt.line, tt.want...)
		})
	}
}
