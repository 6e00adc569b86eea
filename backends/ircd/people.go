package ircd

import (
	"strconv"
	"strings"

	"golang.org/x/text/unicode/norm"
	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc/ircfmt"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
)

// Lengths that RPL_ISUPPORT tells, in bytes.
const (
	nickLen    = 30
	channelLen = 200
	topicLen   = 390
	kickLen    = 300
	awayLen    = 300
	userLen    = 20
	hostLen    = 63
)

func fold(name string) string { return ircmsg.ASCII.Fold(name) }

// key identifies a person, whatever they are called.
type key string

// keyOf returns the key of a user: a guest's ID, an account of the host, or a name.
func keyOf(u backends.User) key {
	switch {
	case u.ID != "":
		return guestKey(string(u.ID))
	case u.Account != "":
		return key("a:" + u.Account)
	}
	return key("u:" + u.Username + "@" + u.Domain)
}

func guestKey(id string) key { return key("g:" + id) }

// person is someone whom clients can see: in a channel, or connected. It lives as
// long as one of the two. All is guarded by network.mu.
type person struct {
	user     backends.User
	nick     string
	key      key
	channels []*channel
	sessions []*session
	away     string
}

// guest says whether p is known by a nick alone.
func (p *person) guest() bool { return p.user.ID != "" }

// people is the table of nicks. All is guarded by network.mu.
type people struct {
	server string // our name
	byKey  map[key]*person
	byNick map[string]*person // by folded nick
}

func newPeople(server string) people {
	return people{server: server, byKey: map[key]*person{}, byNick: map[string]*person{}}
}

// meet returns the person that u is, with a nick of their own.
func (t *people) meet(u backends.User) *person {
	k := keyOf(u)
	p := t.byKey[k]
	if p == nil {
		p = &person{user: u, nick: t.freeNick(u, nil), key: k}
		t.byKey[k] = p
		t.byNick[fold(p.nick)] = p
	}
	if len(p.sessions) == 0 {
		p.user = u
	}
	return p
}

// look returns what u is called without keeping anything: for senders who are
// not members, as in history.
func (t *people) look(u backends.User) *person {
	if p := t.byKey[keyOf(u)]; p != nil {
		return p
	}
	return &person{user: u, nick: t.freeNick(u, nil)}
}

// forget drops p if nothing holds it.
func (t *people) forget(p *person) {
	if len(p.channels) > 0 || len(p.sessions) > 0 {
		return
	}
	delete(t.byKey, p.key)
	if t.byNick[fold(p.nick)] == p {
		delete(t.byNick, fold(p.nick))
	}
}

// rename gives p another nick, which must be free.
func (t *people) rename(p *person, nick string) {
	delete(t.byNick, fold(p.nick))
	p.nick = nick
	t.byNick[fold(nick)] = p
}

// freeNick makes a nick for u that nobody has but except.
func (t *people) freeNick(u backends.User, except *person) string {
	base := nickOf(u)
	free := func(nick string) bool {
		p := t.byNick[fold(nick)]
		return p == nil || p == except
	}
	if free(base) {
		return base
	}
	if label, _, _ := strings.Cut(u.Domain, "."); label != "" && u.ID == "" {
		base = cutNick(base, 12) + "|" + cutNick(sanitise(label), 12)
		if free(base) {
			return base
		}
	}
	for i := 2; ; i++ {
		suffix := "|" + strconv.Itoa(i)
		if nick := cutNick(base, nickLen-len(suffix)) + suffix; free(nick) {
			return nick
		}
	}
}

// nickOf returns the nick that u would like: a guest's own, otherwise from the
// username, which changes less often than the display name.
func nickOf(u backends.User) string {
	candidates := []string{u.Username, u.Name, string(u.ID)}
	if u.ID != "" {
		candidates = []string{string(u.ID), u.Name, u.Username}
		if fold(u.Name) == string(u.ID) { // the nick as the guest writes it
			candidates = []string{u.Name}
		}
	}
	for _, c := range candidates {
		if nick := cutNick(sanitise(c), nickLen); nick != "" {
			return nick
		}
	}
	return "user"
}

// sanitise makes a nick of a name: accents go, other letters that nicks do not
// have become "_", and none of that at the start.
func sanitise(name string) string {
	var b strings.Builder
	for _, r := range norm.NFKD.String(name) {
		switch {
		case r < 0x80 && nickByte(byte(r)):
			b.WriteByte(byte(r))
		case r >= 0x300 && r < 0x370: // combining accents
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "_"):
			b.WriteByte('_')
		}
		if b.Len() > 2*nickLen {
			break
		}
	}
	nick := strings.TrimRight(b.String(), "_")
	if nick != "" && !validNick(nick[:1]) {
		nick = "_" + nick
	}
	return nick
}

func cutNick(nick string, n int) string { return nick[:min(len(nick), max(n, 0))] }

// validNick follows https://modern.ircdocs.horse/#clients: we take letters,
// digits and []\`_^{|}-, with no digit or hyphen at the start.
func validNick(nick string) bool {
	if nick == "" || len(nick) > nickLen || nick[0] == '-' || '0' <= nick[0] && nick[0] <= '9' {
		return false
	}
	for i := range len(nick) {
		if !nickByte(nick[i]) {
			return false
		}
	}
	return true
}

func nickByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("[]\\`_^{|}-", c) >= 0
}

// prefix is how p's messages start: nick!user@host. A guest's host is ours, so
// that nobody learns their address.
func (t *people) prefix(p *person) *irc.Prefix {
	user, host := p.user.Username, p.user.Domain
	if p.guest() {
		user, host = "guest", t.server
	}
	if user = word(user); user == "" {
		user = fold(p.nick)
	}
	if host = word(host); host == "" {
		host = t.server
	}
	user, _ = ircmsg.Cut(user, userLen)
	host, _ = ircmsg.Cut(host, hostLen)
	return &irc.Prefix{Name: p.nick, User: user, Host: host}
}

// mask is prefix as text.
func (t *people) mask(p *person) string { return t.prefix(p).String() }

// realName is what WHOIS shows.
func realName(u backends.User) string {
	name := u.Name
	if name == "" {
		name = u.Username
	}
	return ircmsg.Clean(ircfmt.Strip(name))
}

// accountName is what account-tag, extended-join and WHOIS call the account of u,
// "" for guests.
func accountName(u backends.User) string {
	if u.ID != "" {
		return ""
	}
	return strings.TrimLeft(strings.Map(func(r rune) rune {
		if r <= ' ' || r == 0x7f {
			return -1
		}
		return r
	}, string(u.Account)), ":")
}
