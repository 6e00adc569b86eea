package ircd

import (
	"maps"
	"time"

	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
)

// channel is a room that clients are in. It lives as long as one of them is. All
// is guarded by network.mu, but chat and name never change.
type channel struct {
	chat      backends.ChatID
	name      string
	members   map[*person]backends.Role
	sessions  map[*session]*attendance
	topic     string
	topicBy   string
	topicAt   time.Time
	encrypted bool
	// known is false until the first Enter has returned. Until then what changes
	// the members waits in early.
	known bool
	early []*backends.Command
}

// attendance is a session's place in a channel.
type attendance struct {
	channel *channel
	user    backends.User // as the host was told; guarded by network.mu while in session.joined
	since   time.Time     // when we asked to enter
	joining bool          // Enter has not returned; guarded by network.mu
	backlog []*outgoing   // messages of that time; guarded by network.mu
	evicted bool          // thrown out in that time; guarded by network.mu
}

// maxBacklog bounds backlog and early.
const maxBacklog = 2000

// open returns the channel of a chat. The caller holds n.mu.
func (n *network) open(chat backends.ChatID, name string) *channel {
	ch := n.channels[chat]
	if ch == nil {
		ch = &channel{
			chat: chat, name: name,
			members:  map[*person]backends.Role{},
			sessions: map[*session]*attendance{},
		}
		n.channels[chat] = ch
	}
	return ch
}

// drop forgets a channel that no client is in. The caller holds n.mu.
func (n *network) drop(ch *channel) {
	if len(ch.sessions) > 0 {
		return
	}
	for p := range ch.members {
		p.channels = remove(p.channels, ch)
		n.people.forget(p)
	}
	clear(ch.members)
	if n.channels[ch.chat] == ch {
		delete(n.channels, ch.chat)
	}
}

// add makes p a member, and reports whether that is new. The caller holds n.mu.
func (ch *channel) add(p *person, role backends.Role) bool {
	old, ok := ch.members[p]
	if !ok {
		p.channels = append(p.channels, ch)
	} else if role == backends.NoRole {
		role = old
	}
	ch.members[p] = role
	return !ok
}

// remove undoes add. The caller holds n.mu.
func (n *network) removeMember(ch *channel, p *person) {
	delete(ch.members, p)
	p.channels = remove(p.channels, ch)
	n.people.forget(p)
}

// present reports whether one of p's connections is in ch.
func (ch *channel) present(p *person) bool {
	for _, s := range p.sessions {
		if ch.sessions[s] != nil {
			return true
		}
	}
	return false
}

// ranks is PREFIX: the mode and symbol of each role that has one, highest first.
var ranks = []struct {
	least  backends.Role
	mode   byte
	symbol byte
}{
	{backends.Moderator, 'o', '@'},
	{backends.HalfOp, 'h', '%'},
	{backends.Voice, 'v', '+'},
}

// rankOf returns the mode and symbol of a role, 0 if it has none.
func rankOf(r backends.Role) (mode, symbol byte) {
	for _, rank := range ranks {
		if r >= rank.least {
			return rank.mode, rank.symbol
		}
	}
	return 0, 0
}

func symbolOf(r backends.Role) string {
	if _, symbol := rankOf(r); symbol != 0 {
		return string(symbol)
	}
	return ""
}

// outgoing is a line for many clients. Its tags depend on what each of them has
// negotiated.
type outgoing struct {
	message *irc.Message // without tags
	needs   caps         // only for clients that have all of these
	lacks   caps         // and none of these
	id      backends.MessageID
	time    time.Time
	account string
	client  irc.Tags // client-only tags
	chat    bool     // a message: it waits for those who are joining
	lines   [8][]byte
}

// index numbers the subsets of the capabilities that tags depend on.
func index(c caps) int {
	i := 0
	for bit, each := range []caps{capMessageTags, capServerTime, capAccountTag} {
		if c.has(each) {
			i |= 1 << bit
		}
	}
	return i
}

const serverTime = "2006-01-02T15:04:05.000Z"

// with returns the message with the tags for c.
func (o *outgoing) with(c caps) *irc.Message {
	m := &irc.Message{Prefix: o.message.Prefix, Command: o.message.Command, Params: o.message.Params, Tags: irc.Tags{}}
	if c.has(capServerTime) {
		m.Tags["time"] = o.time.UTC().Format(serverTime)
	}
	if c.has(capAccountTag) && o.account != "" {
		m.Tags["account"] = o.account
	}
	if c.has(capMessageTags) {
		if o.id != "" {
			m.Tags["msgid"] = string(o.id)
		}
		maps.Copy(m.Tags, o.client)
	}
	return m
}

// line is with as bytes, made once for each kind of client.
func (o *outgoing) line(c caps) []byte {
	i := index(c)
	if o.lines[i] == nil {
		o.lines[i] = compose(o.with(c))
	}
	return o.lines[i]
}

// from makes an outgoing of p's. The caller holds n.mu.
func (n *network) from(p *person, at time.Time, command string, params ...string) *outgoing {
	m := ircmsg.New(command, params...)
	m.Prefix = n.people.prefix(p)
	if at.IsZero() {
		at = time.Now()
	}
	return &outgoing{message: m, time: at, account: accountName(p.user)}
}

// give sends o to one client in a channel. The caller holds n.mu.
func (s *session) give(a *attendance, o *outgoing) {
	switch {
	case !s.caps.has(o.needs) || s.caps&o.lacks != 0:
	case !a.joining:
		s.put(o.line(s.caps))
	case o.chat && len(a.backlog) >= maxBacklog:
		s.kill("Too much happened while you were joining")
	case o.chat:
		a.backlog = append(a.backlog, o)
	}
}

// fan sends o to the clients in ch but except. The caller holds n.mu.
func (ch *channel) fan(o *outgoing, except *session) {
	for s, a := range ch.sessions {
		if s != except {
			s.give(a, o)
		}
	}
}

// neighbours sends o to each client that sees p, p's own included, once. The
// caller holds n.mu.
func (p *person) neighbours(o *outgoing, except *session) {
	seen := map[*session]bool{except: true}
	tell := func(s *session) {
		if !seen[s] && s.caps.has(o.needs) && s.caps&o.lacks == 0 {
			s.put(o.line(s.caps))
		}
		seen[s] = true
	}
	for _, s := range p.sessions {
		tell(s)
	}
	for _, ch := range p.channels {
		for s, a := range ch.sessions {
			if !a.joining {
				tell(s)
			}
		}
	}
}
