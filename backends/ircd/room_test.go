package ircd

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
	"github.com/gjallar-im/gjallar/backends/richtext"
)

var (
	noon = time.Date(2020, 2, 3, 12, 0, 0, 0, time.UTC)
	robo = backends.User{Account: "@robo:localhost", Username: "robo", Domain: "localhost", Name: "Robo", Bot: true}
)

func TestJoinShowsWhatIsThere(t *testing.T) {
	l := start(t, `"history": 2`)
	rooms := l.host.FakeRooms()
	rooms.AddRoom(backends.RoomSummary{Room: tea}, joined(alice, backends.Admin), joined(carol, backends.HalfOp), joined(robo, backends.Voice))
	for i := range 3 {
		rooms.AddHistory(tea, backends.Command{
			ID: fmt.Sprintf("$old%d", i), Sender: carol, Time: noon.Add(time.Duration(i) * time.Minute), Body: said(fmt.Sprintf("old %d", i)),
		})
	}
	plain := l.guest("bob", "")
	stamp := func(i int) string {
		return noon.Add(time.Duration(i) * time.Minute).Local().Format("[2006-01-02 15:04]")
	}
	plain.do("JOIN #tea",
		":bob!guest@localhost JOIN #tea",
		":localhost 353 bob = #tea :%carol +robo @alice bob",
		":localhost 366 bob #tea *",
		":carol!carol@far.example PRIVMSG #tea :"+stamp(1)+" old 1",
		":carol!carol@far.example PRIVMSG #tea :"+stamp(2)+" old 2")
	modern := l.guest("dan", "server-time batch message-tags account-tag extended-join userhost-in-names")
	modern.do("JOIN #tea",
		"@time=* :dan!guest@localhost JOIN #tea * dan",
		":localhost 353 dan = #tea :%carol!carol@far.example +robo!robo@localhost @alice!alice@localhost bob!guest@localhost dan!guest@localhost",
		":localhost 366 dan #tea *",
		":localhost BATCH +b1 chathistory #tea",
		"@account=@carol:far.example;batch=b1;msgid=$old1;time=2020-02-03T12:01:00.000Z :carol!carol@far.example PRIVMSG #tea :old 1",
		"@account=@carol:far.example;batch=b1;msgid=$old2;time=2020-02-03T12:02:00.000Z :carol!carol@far.example PRIVMSG #tea :old 2",
		":localhost BATCH -b1")
	asking := l.guest("eve", "server-time batch draft/chathistory draft/no-implicit-names")
	asking.do("JOIN #tea", "@time=* :eve!guest@localhost JOIN #tea")
	modern.got("* :eve!guest@localhost JOIN #tea * eve")
	modern.do("CHATHISTORY BEFORE #tea timestamp=2020-02-03T12:01:00.000Z 10",
		":localhost BATCH +b2 chathistory #tea", "*msgid=$old0*:old 0", ":localhost BATCH -b2")
	modern.do("CHATHISTORY LATEST #tea timestamp=2020-02-03T12:01:00.000Z 10",
		":localhost BATCH +b3 chathistory #tea", "*msgid=$old2*:old 2", ":localhost BATCH -b3")
	modern.do("CHATHISTORY LATEST #tea * 1",
		":localhost BATCH +b4 chathistory #tea", "*msgid=$old2*:old 2", ":localhost BATCH -b4")
	modern.do("CHATHISTORY BEFORE #tea msgid=x 10", ":localhost FAIL CHATHISTORY INVALID_PARAMS BEFORE :*")
	modern.do("CHATHISTORY LATEST #nowhere * 10", ":localhost FAIL CHATHISTORY INVALID_TARGET LATEST #nowhere :*")
	modern.do("CHATHISTORY LATEST #tea * many", ":localhost FAIL CHATHISTORY INVALID_PARAMS LATEST :*")
}

func TestChannelNames(t *testing.T) {
	l := start(t, "")
	rooms := l.host.FakeRooms()
	rooms.AddRoom(backends.RoomSummary{Room: backends.RoomName{Alias: "TWIM"}, Name: "week"})
	rooms.AddRoom(backends.RoomSummary{Room: backends.RoomName{Alias: "rust", Server: "far.example:8448"}})
	rooms.Refuse(backends.RoomName{Alias: "secret"}, backends.Refusal{Code: backends.RefusedInviteOnly, Message: "by invitation"})
	rooms.Refuse(backends.RoomName{Alias: "away"}, backends.Refusal{Code: backends.RefusedUnavailable, Message: "its server is away"})
	bob := l.guest("bob", "draft/no-implicit-names")
	bob.do("JOIN #twim", ":bob!guest@localhost JOIN #twim") // makes a room
	bob.do("PART #TWIM", ":bob!guest@localhost PART #twim")
	if got := rooms.Members(backends.RoomName{Alias: "TWIM"}); len(got) != 0 {
		t.Errorf("members of TWIM: %v", got)
	}
	bob.do("JOIN #rust:FAR.example:8448", ":bob!guest@localhost JOIN #rust:far.example:8448")
	bob.do("JOIN #tea:localhost", ":localhost 470 bob #tea:localhost #tea *", ":bob!guest@localhost JOIN #tea")
	bob.do("JOIN #Tea")
	bob.do("JOIN #gone:far.example", ":localhost 403 bob #gone:far.example :Cannot join: no such room")
	bob.do("JOIN #secret,#away", ":localhost 473 bob #secret :Cannot join: by invitation", ":localhost 437 bob #away :Cannot join: its server is away")
	for _, bad := range []string{"tea", "#", "#:far.example", "#tea:", "#a\x07b", "#" + strings.Repeat("x", 200)} {
		bob.do("JOIN "+bad, ":localhost 403 bob * :No such channel")
	}
	l.guest("eve", "draft/no-implicit-names").tooMany()
	bob.do("JOIN 0", ":bob!guest@localhost PART #*", ":bob!guest@localhost PART #*")
	bob.do("PART #tea", ":localhost 442 bob #tea *")
}

// tooMany joins more channels than a client may.
func (c *client) tooMany() {
	c.tb.Helper()
	for i := range maxChannels {
		c.write(fmt.Sprintf("JOIN #c%d", i))
	}
	c.sync()
	c.do("JOIN #more", ":localhost 405 eve #more :You have joined too many channels")
}

func TestCapitalsOfAnAliasAreFound(t *testing.T) {
	l := start(t, `"create": false`)
	l.host.FakeRooms().AddRoom(backends.RoomSummary{Room: backends.RoomName{Alias: "TWIM"}, Topic: "week"})
	bob := l.guest("bob", "draft/no-implicit-names")
	bob.do("JOIN #TWIM", ":bob!guest@localhost JOIN #twim", ":localhost 332 bob #twim :week")
	bob.do("JOIN #tea", ":localhost 403 bob #tea *")
}

func TestTheRoomsLifeIsShown(t *testing.T) {
	l := start(t, "")
	l.host.FakeRooms().AddRoom(backends.RoomSummary{Room: tea}, joined(alice, backends.Admin), joined(carol, 0))
	bob, dan := l.guest("bob", "draft/no-implicit-names message-tags extended-join"), l.guest("dan", "draft/no-implicit-names")
	bob.write("JOIN #tea")
	bob.sync()
	topic := "Darjeeling\r\nand more"
	fars := carol
	fars.Account, fars.Domain = "@carol:near.example", "near.example"
	long := strings.Repeat("wörd ", 120)
	tests := []struct {
		name   string
		sender backends.User
		body   backends.Body
		want   []string
	}{
		{"formatting", alice, &backends.Message{Text: richtext.Doc{{Kind: richtext.Bold, Children: richtext.Plain("b")}, {Kind: richtext.Text, Text: " and "}, {Kind: richtext.Mention, User: "bob", Children: richtext.Plain("Bobby")}}},
			[]string{"@msgid=$* :alice!alice@localhost PRIVMSG #tea :\x02b\x0f and bob"}},
		{"two lines", alice, said("one\ntwo"), []string{"@msgid=$2 :alice!alice@localhost PRIVMSG #tea :one", "@msgid=$2~2 :alice!alice@localhost PRIVMSG #tea :two"}},
		{"emote", alice, &backends.Message{Kind: backends.Emote, Text: richtext.Plain("waves")}, []string{"* PRIVMSG #tea :\x01ACTION waves\x01"}},
		{"notice", robo, &backends.Message{Kind: backends.Notice, Text: richtext.Plain("beep")}, []string{"* :robo!robo@localhost NOTICE #tea :beep"}},
		{"long message", alice, said(long), []string{"* PRIVMSG #tea :wörd *", "* PRIVMSG #tea :wörd *"}},
		{"injection", alice, said("a\r\nQUIT :x\x00\x01"), []string{"* PRIVMSG #tea :a", "* PRIVMSG #tea :QUIT :x"}},
		{"typing", alice, &backends.Typing{On: true}, []string{"@+typing=active :alice!alice@localhost TAGMSG #tea"}},
		{"topic", alice, &backends.ChatInfo{Topic: &topic}, []string{":alice!alice@localhost TOPIC #tea :Darjeeling and more"}},
		{"topic again", alice, &backends.ChatInfo{Topic: &topic}, nil},
		{"a new member", robo, &backends.Member{Action: backends.Joined, User: robo, Role: backends.Voice},
			[]string{":robo!robo@localhost JOIN #tea @robo:localhost Robo", ":localhost MODE #tea +v robo"}},
		{"the same again", robo, &backends.Member{Action: backends.Joined, User: robo}, nil},
		{"a namesake of another server", fars, &backends.Member{Action: backends.Joined, User: fars}, []string{":carol|near!carol@near.example JOIN #tea *"}},
		{"promotion", alice, &backends.RoleChange{User: robo, Role: backends.Moderator}, []string{":alice!alice@localhost MODE #tea -v+o robo robo"}},
		{"demotion", alice, &backends.RoleChange{User: robo, Role: backends.Participant}, []string{":alice!alice@localhost MODE #tea -o robo"}},
		{"leave", robo, &backends.Member{Action: backends.Left, User: robo, Reason: "bye\r\nnow"}, []string{":robo!robo@localhost PART #tea :bye now"}},
		{"leave again", robo, &backends.Member{Action: backends.Left, User: robo}, nil},
		{"ban", alice, &backends.Member{Action: backends.Banned, User: carol, Reason: "spam"}, []string{":alice!alice@localhost KICK #tea carol :spam"}},
		{"invitation of someone who is not here", alice, &backends.Member{Action: backends.Invited, User: carol}, nil},
		{"whole list", alice, &backends.Members{Members: []backends.Member{joined(alice, backends.Admin), joined(backends.User{ID: "bob"}, 0), joined(robo, 0)}},
			[]string{":robo!robo@localhost JOIN #tea *", ":carol|near!carol@near.example PART #tea"}},
		{"display name", alice, &backends.Profile{User: backends.User{Account: alice.Account, Username: "alice", Domain: "localhost", Name: "Al"}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bob.tb, l.tb = t, t
			if res := l.show("#tea", tt.sender, tt.body); res.Outcome != backends.Delivered {
				t.Errorf("result %+v", res)
			}
			bob.got(tt.want...)
		})
	}
	bob.tb, l.tb = t, t
	if res := l.show("#tea", alice, &backends.Edit{}); res.Outcome != backends.Unsupported {
		t.Errorf("an edit: %+v", res)
	}
	if res := l.show("#elsewhere", alice, said("hi")); res.Outcome != backends.Delivered || len(res.IDs) != 1 {
		t.Errorf("a chat without clients: %+v", res)
	}
	l.show("#tea", alice, &backends.Member{Action: backends.Invited, User: backends.User{ID: "dan"}})
	dan.got(":alice!alice@localhost INVITE dan :#tea")
	bob.got()
	l.show("#tea", alice, &backends.Member{Action: backends.Kicked, User: backends.User{ID: "bob"}, Reason: "out"})
	bob.got(":alice!alice@localhost KICK #tea bob :out")
	waitFor(t, func() bool { return len(l.host.FakeRooms().Members(tea)) == 2 }) // the host has been told
	bob.do("PRIVMSG #tea :hi", ":localhost 404 bob #tea *")
	bob.do("JOIN #tea", ":bob!guest@localhost JOIN #tea * bob")
	// What tells of the former stay does not end this one.
	l.send(&backends.Command{ID: "$late", Chat: backends.ChatKey{Chat: "#tea"}, Time: noon, Body: &backends.Member{Action: backends.Left, User: backends.User{ID: "bob"}}})
	bob.got()
	if err := l.net.Leave(t.Context(), backends.ChatKey{Chat: "#tea"}); err != nil {
		t.Fatal(err)
	}
	bob.got(":localhost KICK #tea bob :The room can no longer be reached")
}

func TestEveryByteOfALongMessageArrives(t *testing.T) {
	l := start(t, "")
	bob := l.guest("bob", "")
	bob.write("JOIN #tea")
	bob.sync()
	text := strings.Repeat("0123456789", 300)
	for _, kind := range []backends.MessageKind{backends.Text, backends.Emote, backends.Notice} {
		l.show("#tea", alice, &backends.Message{Kind: kind, Text: richtext.Plain(text)})
		var got strings.Builder
		lines := bob.sync()
		for i, line := range lines {
			if len(line)+2 > 512 || i < len(lines)-1 && len(line)+2 < 512-len("é") {
				t.Errorf("kind %d: line of %d bytes", kind, len(line)+2)
			}
			_, said, _ := strings.Cut(line, " #tea ")
			got.WriteString(strings.TrimPrefix(strings.Trim(said, "\x01:"), "ACTION "))
		}
		if got.String() != text {
			t.Errorf("kind %d: %d bytes of %d arrived", kind, got.Len(), len(text))
		}
	}
}

func TestEchoAndLabels(t *testing.T) {
	l := start(t, "")
	echo := l.guest("echo", "echo-message labeled-response batch message-tags draft/no-implicit-names")
	ack := l.guest("ack", "labeled-response batch draft/no-implicit-names")
	for _, c := range []*client{echo, ack} {
		c.write("JOIN #tea")
		c.sync()
	}
	echo.sync()
	echo.do("@label=one PRIVMSG #tea :hi") // the echo comes when the room has it
	ev, _ := backendtest.NextBody[*backends.Message](l.host, nil)
	l.reflect(ev)
	echo.got("@label=one;msgid=" + string(ev.ID) + " :echo!guest@localhost PRIVMSG #tea :hi")
	ack.got(":echo!guest@localhost PRIVMSG #tea :hi")
	ack.do("@label=two PRIVMSG #tea :hi", "@label=two :localhost ACK")
	ev, _ = backendtest.NextBody[*backends.Message](l.host, nil)
	l.reflect(ev)
	ack.got()
	echo.got("@msgid=* :ack!guest@localhost PRIVMSG #tea :hi")
	ack.do("@label=three JOIN #tea", "@label=three :localhost ACK")
	ack.do("@label=four NICK", "@label=four :localhost 431 ack *")
	ack.do("@label=five TIME", "@label=five :localhost 391 *")
	ack.do("@label=six INFO",
		"@label=six :localhost BATCH +b1 labeled-response", "@batch=b1 :localhost 371 *", "@batch=b1 :localhost 374 *", ":localhost BATCH -b1")
	l.host.Answer(func(*backends.Event) backends.Receipt {
		return backends.Receipt{Err: &backends.Refusal{Message: "no"}}
	})
	echo.do("@label=seven PRIVMSG #tea :hi", "@label=seven :localhost 404 echo #tea *", ":localhost NOTICE echo *")
	echo.do("@label=eight PRIVMSG ack :psst", "@label=eight;msgid=* :echo!guest@localhost PRIVMSG ack :psst")
	ack.got(":echo!guest@localhost PRIVMSG ack :psst")
}

func TestRefusalAfterADelayKeepsItsLabel(t *testing.T) {
	l := start(t, "")
	c := l.guest("bob", "labeled-response batch")
	c.write("JOIN #tea")
	c.sync()
	l.host.Hold(10)
	c.do("@label=x PRIVMSG #tea :hi")
	l.host.Answer(func(*backends.Event) backends.Receipt {
		return backends.Receipt{Err: &backends.Refusal{Message: "no"}}
	})
	l.host.Release()
	c.got("@label=x :localhost 404 bob #tea *", ":localhost NOTICE bob *")
}

func TestEventsOfClients(t *testing.T) {
	l := start(t, "")
	l.host.FakeRooms().AddRoom(backends.RoomSummary{Room: tea}, joined(alice, backends.Admin))
	l.host.FakeRooms().AddAccount(robo, "x")
	bob := l.guest("bob", "message-tags draft/message-redaction")
	bob.write("JOIN #tea")
	bob.sync()
	tests := []struct {
		line  string
		check func(backends.Body) bool
		want  []string
	}{
		{"PRIVMSG #tea :\x01ACTION waves\x01", func(b backends.Body) bool {
			m := b.(*backends.Message)
			return m.Kind == backends.Emote && m.Text.Plain() == "waves"
		}, nil},
		{"NOTICE #tea :beep", func(b backends.Body) bool { return b.(*backends.Message).Kind == backends.Notice }, nil},
		{"PRIVMSG #tea :caf\xe9", func(b backends.Body) bool { return b.(*backends.Message).Text.Plain() == "café" }, nil},
		{"@+draft/reply=$1~2 PRIVMSG #tea :Alice: yes", func(b backends.Body) bool {
			m := b.(*backends.Message)
			return m.ReplyTo != nil && m.ReplyTo.ID == "$1" && m.Text[0].Kind == richtext.Mention && m.Text[0].User == "@alice:localhost" && m.Text.Plain() == "Alice: yes"
		}, nil},
		{"PRIVMSG #tea :http://example.org/", func(b backends.Body) bool { return b.(*backends.Message).Text.Plain() == "http://example.org/" }, nil},
		{"@+typing=active TAGMSG #tea", func(b backends.Body) bool { return b.(*backends.Typing).On }, nil},
		{"@+typing=done TAGMSG #tea", func(b backends.Body) bool { return !b.(*backends.Typing).On }, nil},
		{"@+draft/react=👍;+draft/reply=$1 TAGMSG #tea", func(b backends.Body) bool {
			return *b.(*backends.Reaction) == backends.Reaction{Target: "$1", Key: "👍"}
		}, nil},
		{"@+draft/unreact=👍;+reply=$1 TAGMSG #tea", func(b backends.Body) bool { return b.(*backends.Reaction).Removed }, nil},
		{"REDACT #tea $1 :typo", func(b backends.Body) bool {
			return *b.(*backends.Removal) == backends.Removal{Target: "$1", Reason: "typo"}
		}, nil},
		{"TOPIC #tea :new", func(b backends.Body) bool { return *b.(*backends.ChatInfo).Topic == "new" }, nil},
		{"KICK #tea alice :out", func(b backends.Body) bool {
			m := b.(*backends.Member)
			return m.Action == backends.Kicked && m.User.Account == alice.Account && m.Reason == "out"
		}, nil},
		{"MODE #tea +o alice", func(b backends.Body) bool { return b.(*backends.RoleChange).Role == backends.Moderator }, nil},
		{"MODE #tea -v alice", func(b backends.Body) bool { return b.(*backends.RoleChange).Role == backends.Participant }, nil},
		{"MODE #tea +b alice!*@*", func(b backends.Body) bool { return b.(*backends.Member).Action == backends.Banned }, nil},
		{"MODE #tea -b *!robo@localhost", func(b backends.Body) bool {
			m := b.(*backends.Member)
			return m.Action == backends.Unbanned && m.User.Account == robo.Account
		}, nil},
		{"INVITE robo #tea", func(b backends.Body) bool {
			m := b.(*backends.Member)
			return m.Action == backends.Invited && m.User.Account == robo.Account
		}, []string{":localhost 341 bob robo #tea"}},
		{"AWAY :lunch", func(b backends.Body) bool {
			return *b.(*backends.Presence) == backends.Presence{State: backends.Away, Status: "lunch"}
		}, []string{":localhost 306 bob *"}},
		{"AWAY", func(b backends.Body) bool { return b.(*backends.Presence).State == backends.Online }, []string{":localhost 305 bob *"}},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			bob.tb = t
			before := len(l.host.Events())
			bob.do(tt.line, tt.want...)
			events := l.host.Events()[before:]
			if len(events) != 1 || events[0].Chat.Chat != "#tea" || events[0].Sender.ID != "bob" || !tt.check(events[0].Body) {
				for _, ev := range events {
					t.Errorf("event %+v: %+v", ev, ev.Body)
				}
			}
		})
	}
	seen := map[backends.MessageID]bool{}
	for _, ev := range l.host.Events() {
		if ev.ID != "" && seen[ev.ID] {
			t.Errorf("the ID %q was used twice", ev.ID)
		}
		seen[ev.ID] = true
	}
}

func TestQueries(t *testing.T) {
	l := start(t, "")
	rooms := l.host.FakeRooms()
	rooms.AddRoom(backends.RoomSummary{Room: tea, Name: "Tea", Topic: "Darjeeling", Members: 2}, joined(alice, backends.Admin), joined(robo, 0))
	rooms.AddRoom(backends.RoomSummary{Room: backends.RoomName{Alias: "two words"}, Name: "cannot be named"})
	rooms.AddAccount(backends.User{Account: "@zoe:localhost", Username: "zoe", Domain: "localhost", Name: "Zoe"}, "x")
	bob := l.guest("bob", "")
	bob.write("JOIN #tea")
	bob.sync()
	dan := l.guest("dan", "")
	dan.do("AWAY :lunch", ":localhost 306 *")
	for _, tt := range []struct {
		line string
		want []string
	}{
		{"LIST", []string{"* 321 *", ":localhost 322 bob #tea 3 :Tea: Darjeeling", "* 323 *"}},
		{"LIST coffee", []string{"* 321 *", "* 323 *"}},
		{"NAMES #tea", []string{":localhost 353 bob = #tea :@alice bob robo", ":localhost 366 bob #tea *"}},
		{"NAMES #other", []string{":localhost 366 bob #other *"}},
		{"TOPIC #tea", []string{":localhost 332 bob #tea :Darjeeling"}},
		{"MODE #tea", []string{":localhost 324 bob #tea +nt"}},
		{"MODE #tea b", []string{":localhost 368 bob #tea *"}},
		{"MODE #tea +b *!*@*", []string{":localhost 472 bob b *"}},
		{"MODE #tea +k x", []string{":localhost 472 bob k *"}},
		{"MODE bob", []string{":localhost 221 bob +i"}},
		{"MODE bob +x", nil},
		{"MODE alice", []string{":localhost 502 bob *"}},
		{"WHO #tea", []string{"* 352 bob #tea * localhost *", "* 352 *", "* 352 *", ":localhost 315 bob #tea *"}},
		{"WHO alice", []string{":localhost 352 bob * alice localhost localhost alice H :0 Alice", ":localhost 315 bob alice *"}},
		{"WHO alice %tcuhnfar,42", []string{":localhost 354 bob 42 * alice localhost alice H @alice:localhost Alice", ":localhost 315 bob alice *"}},
		{"WHO #elsewhere", []string{":localhost 315 bob #elsewhere *"}},
		{"WHOIS alice", []string{":localhost 311 bob alice alice localhost * :Alice", ":localhost 319 bob alice :@#tea", ":localhost 312 bob alice localhost :Matrix", ":localhost 330 bob alice @alice:localhost *", ":localhost 318 bob alice *"}},
		{"WHOIS robo", []string{"* 311 *", "* 319 *", "* 312 *", "* 330 *", ":localhost 335 bob robo *", "* 318 *"}},
		{"WHOIS dan", []string{":localhost 311 bob dan guest localhost * :dan", ":localhost 312 bob dan localhost :Gjallar, by IRC", ":localhost 301 bob dan :lunch", ":localhost 317 bob dan 0 * *", ":localhost 318 bob dan *"}},
		{"WHOIS zoe@localhost", []string{":localhost 311 bob zoe zoe localhost * :Zoe", "* 312 *", "* 330 *", "* 318 *"}},
		{"WHOIS nobody", []string{":localhost 401 bob nobody *", ":localhost 318 bob nobody *"}},
		{"WHOWAS nobody", []string{":localhost 406 bob nobody *", ":localhost 369 bob nobody *"}},
		{"ISON alice nobody dan", []string{":localhost 303 bob :alice dan"}},
		{"USERHOST dan alice", []string{":localhost 302 bob :dan=-guest@localhost alice=+alice@localhost"}},
		{"PRIVMSG dan :psst", []string{":localhost 301 bob dan :lunch"}},
		{"PRIVMSG alice :psst", []string{":localhost 401 bob alice :Not delivered: *"}},
		{"PRIVMSG a,b,c,d,e :hi", []string{":localhost 407 bob *"}},
		{"PRIVMSG", []string{":localhost 411 bob *"}},
		{"PRIVMSG #tea", []string{":localhost 412 bob *"}},
		{"TAGMSG #tea", []string{":localhost 421 bob TAGMSG *"}},
		{"REDACT #tea $1", []string{":localhost 421 bob REDACT *"}},
		{"KICK #tea dan", []string{":localhost 441 bob dan #tea *"}},
		{"KICK #tea nobody", []string{":localhost 401 bob nobody *"}},
		{"KICK #tea", []string{":localhost 461 bob KICK *"}},
		{"INVITE nobody #tea", []string{":localhost 401 bob nobody *"}},
		{"VERSION", []string{":localhost 351 bob *"}},
		{"ADMIN", []string{":localhost 423 bob *"}},
		{"PING", []string{":localhost 461 bob PING *"}},
	} {
		t.Run(tt.line, func(t *testing.T) {
			bob.tb = t
			bob.do(tt.line, tt.want...)
		})
	}
	dan.got(":bob!guest@localhost PRIVMSG dan :psst")
}

func TestEncryptedRoomsSaySo(t *testing.T) {
	n := newNetwork(defaults(), backendtest.NewHost(t), fakeListener{})
	defer n.cancel()
	s := &session{n: n, person: n.people.meet(backends.User{ID: "bob"})}
	a := &attendance{channel: n.open("#tea", "#tea")}
	n.learn(a, s.person, &backends.RoomView{Encrypted: true})
	lines := s.welcomeTo(a.channel)
	if last := lines[len(lines)-1]; last.Command != "NOTICE" || !strings.Contains(last.Trailing(), "encrypted") {
		t.Errorf("last line %v", last)
	}
}

func TestNicks(t *testing.T) {
	user := func(name, domain string) backends.User {
		return backends.User{Account: backends.AccountID("@" + name + ":" + domain), Username: name, Domain: domain}
	}
	people := newPeople("localhost")
	for _, tt := range []struct {
		user backends.User
		want string
	}{
		{user("alice", "localhost"), "alice"},
		{user("alice", "matrix.org"), "alice|matrix"},
		{user("alice", "matrix.net"), "alice|matrix|2"},
		{user("jean-luc.picard", "localhost"), "jean-luc_picard"},
		{user("1984", "localhost"), "_1984"},
		{user("=c3=a9", "localhost"), "c3_a9"},
		{user(strings.Repeat("long", 20), "localhost"), strings.Repeat("long", 20)[:30]},
		{user(strings.Repeat("long", 20), "far.example"), "longlonglong|far"},
		{backends.User{Account: "@x", Name: "Zoë Müller"}, "Zoe_Muller"},
		{backends.User{Account: "@y", Name: "日本"}, "user"},
		{backends.User{ID: "bob", Name: "Bob"}, "Bob"},
		{backends.User{ID: "dan", Name: "Alice"}, "dan"},
	} {
		p := people.meet(tt.user)
		if p.nick != tt.want || !validNick(p.nick) {
			t.Errorf("%+v is called %q, not %q", tt.user, p.nick, tt.want)
		}
	}
}

func TestLeftoversOfACrashLeaveTheirRooms(t *testing.T) {
	host := backendtest.NewHost(t)
	rooms := host.FakeRooms()
	old := &attendance{channel: &channel{chat: "#tea"}, user: backends.User{ID: "bob", Name: "bob"}}
	if _, err := rooms.Enter(t.Context(), backends.EnterRequest{Chat: "#tea", Room: tea, User: old.user, Create: true}); err != nil {
		t.Fatal(err)
	}
	if err := host.Store().Put(t.Context(), old.record(), []byte{}); err != nil {
		t.Fatal(err)
	}
	l := startWith(t, host, "")
	dan := l.guest("dan", "")
	dan.do("JOIN #tea", "*", ":localhost 353 dan = #tea :dan", "*")
	records, _ := host.Store().Scan(t.Context(), recordPrefix)
	if len(records) != 1 { // dan's
		t.Errorf("records %v", records)
	}
	l.close()
	if records, _ = host.Store().Scan(t.Context(), recordPrefix); len(records) != 0 {
		t.Errorf("records after a proper end: %v", records)
	}
	if m := rooms.Members(tea); len(m) != 0 {
		t.Errorf("members after a proper end: %v", m)
	}
}

// A client that does not read is disconnected, and nobody waits for it.
func TestASlowClientIsDisconnected(t *testing.T) {
	l := start(t, `"limits": {"send_queue": 65536}`)
	slow, quick := l.guest("slow", ""), l.guest("quick", "")
	for _, c := range []*client{slow, quick} {
		c.write("JOIN #tea")
		c.sync()
	}
	text := strings.Repeat("x", 400)
	gone := false
	for range 200 {
		for range 100 {
			l.show("#tea", alice, said(text))
		}
		if slices.ContainsFunc(quick.sync(), func(line string) bool { return line == ":slow!guest@localhost QUIT :SendQ exceeded" }) {
			gone = true
			break
		}
	}
	if !gone {
		t.Fatal("the slow client was not disconnected")
	}
	slow.rest()
}

func TestCloseSaysGoodbye(t *testing.T) {
	l := start(t, "")
	bob := l.guest("bob", "")
	bob.write("JOIN #tea")
	bob.sync()
	l.show("#tea", alice, said("last words"))
	l.close()
	if rest := bob.rest(); len(rest) != 2 || rest[0] != ":alice!alice@localhost PRIVMSG #tea :last words" || rest[1] != "ERROR :Closing link: The server is shutting down" {
		t.Errorf("at the end: %q", rest)
	}
	if err := l.net.Send(t.Context(), &backends.Command{Body: said("x")}, func(backends.Result) { t.Error("reply after an error") }); err == nil {
		t.Error("Send after Close has no error")
	}
}
