package ircd

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/backendtest"
)

// stubRooms are rooms of which some answers are the test's.
type stubRooms struct {
	backends.Rooms
	err      error                        // of Whois, List, Authenticate and History
	entering chan<- backends.EnterRequest // told of each Enter, if not nil
	enter    <-chan struct{}              // Enter returns when it can be received from
}

func (r *stubRooms) Whois(ctx context.Context, name, domain string) (*backends.User, error) {
	if r.err != nil {
		return nil, r.err
	}
	return r.Rooms.Whois(ctx, name, domain)
}

func (r *stubRooms) List(ctx context.Context, query string, limit int) ([]backends.RoomSummary, error) {
	if r.err != nil {
		return nil, r.err
	}
	return r.Rooms.List(ctx, query, limit)
}

func (r *stubRooms) Authenticate(ctx context.Context, name, password string) (*backends.User, error) {
	if r.err != nil {
		return nil, r.err
	}
	return r.Rooms.Authenticate(ctx, name, password)
}

func (r *stubRooms) History(ctx context.Context, chat backends.ChatID, u backends.User, before time.Time, limit int) ([]backends.Command, error) {
	if r.err != nil {
		return nil, r.err
	}
	return r.Rooms.History(ctx, chat, u, before, limit)
}

func (r *stubRooms) Enter(ctx context.Context, req backends.EnterRequest) (*backends.RoomView, error) {
	view, err := r.Rooms.Enter(ctx, req)
	if r.entering != nil {
		r.entering <- req
		<-r.enter
	}
	return view, err
}

type stubHost struct {
	*backendtest.Host
	rooms *stubRooms
}

func (h stubHost) Rooms() backends.Rooms { return h.rooms }

// startStub is start with stubbed rooms.
func startStub(t *testing.T) (*listener, *stubRooms) {
	t.Helper()
	host := backendtest.NewHost(t)
	rooms := &stubRooms{Rooms: host.FakeRooms()}
	n, err := New().Open(t.Context(), json.RawMessage(`{"listen": "127.0.0.1:0"}`), stubHost{host, rooms})
	if err != nil {
		t.Fatal(err)
	}
	l := &listener{tb: t, host: host, net: n}
	t.Cleanup(l.close)
	l.addr = host.WaitPhase(backends.Ready).Reason[len("listening on "):]
	return l, rooms
}

func TestWhenTheHostIsInTrouble(t *testing.T) {
	l, rooms := startStub(t)
	bob := l.guest("bob", "sasl")
	bob.write("JOIN #tea")
	bob.sync()
	fresh, sasl, pass := l.connect(), l.connect(), l.connect()
	sasl.write("CAP REQ sasl")
	sasl.sync()
	rooms.err = errors.New("the database is away")
	fresh.write("NICK dan", "USER dan 0 * :x")
	fresh.got(":localhost 437 * dan :Nickname is temporarily unavailable")
	sasl.write("AUTHENTICATE PLAIN")
	sasl.sync()
	sasl.do("AUTHENTICATE "+plain("alice", "x"), ":localhost 904 * :SASL authentication failed: try again later")
	pass.write("PASS x", "NICK dan", "USER dan 0 * :x")
	if rest := pass.rest(); len(rest) != 1 || rest[0] != "ERROR :Closing link: The password could not be checked, try again later" {
		t.Errorf("PASS: %q", rest)
	}
	bob.do("LIST", ":localhost 400 bob LIST :Internal error")
	bob.do("NICK dan", ":localhost 437 bob dan *")
	bob.do("INVITE dan #tea", ":localhost 400 bob INVITE :Internal error")
	bob.do("CHATHISTORY LATEST #tea * 5", ":localhost FAIL CHATHISTORY MESSAGE_ERROR LATEST #tea *")
	rooms.err = &backends.Refusal{Code: backends.RefusedForbidden, Message: "not for you"}
	bob.do("LIST", ":localhost 400 bob LIST :not for you")
}

// What happens between our asking to enter and the answer is neither lost nor
// shown twice.
func TestWhatHappensWhileJoining(t *testing.T) {
	l, rooms := startStub(t)
	entering, enter := make(chan backends.EnterRequest), make(chan struct{})
	rooms.entering, rooms.enter = entering, enter
	l.host.FakeRooms().AddRoom(backends.RoomSummary{Room: tea}, joined(alice, backends.Admin), joined(carol, 0))
	old := backends.Command{ID: "$old", Chat: backends.ChatKey{Chat: "#tea"}, Sender: alice, Time: time.Now(), Body: said("old")}
	l.host.FakeRooms().AddHistory(tea, old)
	bob := l.guest("bob", "server-time")
	bob.write("JOIN #tea")
	<-entering
	l.send(&old)
	l.show("#tea", robo, &backends.Member{Action: backends.Joined, User: robo, Role: backends.Voice})
	l.show("#tea", alice, &backends.RoleChange{User: carol, Role: backends.Moderator})
	l.show("#tea", alice, &backends.RoleChange{User: robo, Role: backends.HalfOp})
	l.show("#tea", alice, &backends.Member{Action: backends.Kicked, User: carol})
	l.show("#tea", robo, said("new"))
	enter <- struct{}{}
	bob.got(
		"@time=* :bob!guest@localhost JOIN #tea",
		":localhost 353 bob = #tea :%robo @alice bob",
		":localhost 366 bob #tea *",
		"@time=* :alice!alice@localhost PRIVMSG #tea :old",
		"@time=* :robo!robo@localhost PRIVMSG #tea :new")
	bob.do("NAMES #tea", ":localhost 353 bob = #tea :%robo @alice bob", "*")

	// The second client of the channel.
	dan := l.guest("dan", "server-time")
	dan.write("JOIN #tea")
	<-entering
	l.send(&old)
	l.show("#tea", robo, &backends.Member{Action: backends.Left, User: robo})
	l.show("#tea", alice, said("newer"))
	enter <- struct{}{}
	dan.got("* JOIN #tea", ":localhost 353 dan = #tea :@alice bob dan", "* 366 *", "* PRIVMSG #tea :old", "* PRIVMSG #tea :newer")
	bob.got("* PRIVMSG #tea :old", "* PART #tea", "* PRIVMSG #tea :newer", "* :dan!guest@localhost JOIN #tea")

	// Thrown out before being in.
	eve := l.guest("eve", "draft/no-implicit-names")
	eve.write("JOIN #tea")
	<-entering
	l.show("#tea", alice, &backends.Member{Action: backends.Joined, User: backends.User{ID: "eve"}})
	l.show("#tea", alice, &backends.Member{Action: backends.Banned, User: backends.User{ID: "eve"}, Reason: "no"})
	enter <- struct{}{}
	eve.sync()
	eve.do("PRIVMSG #tea :hi", "*")
}

// Thrown out of a channel that nobody else is in, before being in.
func TestThrownOutWhileJoining(t *testing.T) {
	l, rooms := startStub(t)
	entering, enter := make(chan backends.EnterRequest), make(chan struct{})
	rooms.entering, rooms.enter = entering, enter
	bob := l.guest("bob", "draft/no-implicit-names")
	bob.write("JOIN #tea")
	<-entering
	bobs := backends.User{ID: "bob"}
	l.send(&backends.Command{ID: "$1", Chat: backends.ChatKey{Chat: "#tea"}, Sender: alice, Time: time.Now().Add(time.Minute), Body: &backends.Member{Action: backends.Kicked, User: bobs}})
	enter <- struct{}{}
	bob.got(":bob!guest@localhost JOIN #tea", ":bob!guest@localhost PART #tea")
	bob.do("PRIVMSG #tea :hi", ":localhost 404 bob #tea *")
	bob.write("JOIN #tea")
	<-entering
	enter <- struct{}{}
	bob.got(":bob!guest@localhost JOIN #tea")
}
