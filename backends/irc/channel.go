package irc

import (
	"slices"
	"strings"
	"time"

	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
)

// channel is what the bot knows of a channel it follows. The goroutine of the
// bot's connection owns it.
type channel struct {
	name    string
	members map[string]*member // by folded nick, ours included
	listing map[string]*member // filled by RPL_NAMREPLY until RPL_ENDOFNAMES; nil otherwise
	split   map[string]*member // lost in a netsplit, not yet told
	joined  bool               // we are in, and know who else is
	topic   string
	request *request // the JOIN under way
	waiters []func(*backends.ChatInfo, error)
	kicks   int       // how often we were kicked
	lost    time.Time // when we were kicked
	since   time.Time // what was said after it is wanted, if the network replays it; zero is nothing
	replay  bool      // the network has replayed what was said before
}

// member of a channel.
type member struct {
	nick, user, host string
	modes            string // letters of PREFIX
	splitAt          time.Time
}

// roles of the letters of PREFIX, highest first.
var roles = []struct {
	mode byte
	role backends.Role
}{
	{'q', backends.Owner},
	{'a', backends.Admin},
	{'o', backends.Moderator},
	{'h', backends.HalfOp},
	{'v', backends.Voice},
}

func (m *member) role() backends.Role {
	for _, r := range roles {
		if strings.IndexByte(m.modes, r.mode) >= 0 {
			return r.role
		}
	}
	return backends.Participant
}

// setMode adds or takes a letter and reports whether the role has changed.
func (m *member) setMode(mode byte, add bool) bool {
	before := m.role()
	m.modes = strings.ReplaceAll(m.modes, string(mode), "")
	if add {
		m.modes += string(mode)
	}
	return m.role() != before
}

// mask returns a ban mask: of the host if it is known, else of the nick.
func (m *member) mask() string {
	if m.host != "" {
		return "*!*@" + m.host
	}
	return m.nick + "!*@*"
}

// parseNames reads the members of one RPL_NAMREPLY, with multi-prefix and
// userhost-in-names or without.
func (c *conn) parseNames(list string) []*member {
	modes, symbols := c.isupport.Prefixes()
	var members []*member
	for name := range strings.FieldsSeq(list) {
		ranks, bare := c.isupport.SplitPrefix(name)
		p := irc.ParsePrefix(bare)
		m := &member{nick: p.Name, user: p.User, host: p.Host}
		for _, symbol := range []byte(ranks) {
			if i := strings.IndexByte(symbols, symbol); i >= 0 {
				m.modes += string(modes[i])
			}
		}
		if m.nick != "" {
			members = append(members, m)
		}
	}
	return members
}

// find returns the member with a nick, or nil.
func (ch *channel) find(c *conn, nick string) *member { return ch.members[c.fold(nick)] }

// sorted returns the members in the order of their nicks.
func (ch *channel) sorted() []*member {
	list := make([]*member, 0, len(ch.members))
	for _, m := range ch.members {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b *member) int { return strings.Compare(a.nick, b.nick) })
	return list
}

// isNetsplit reports whether a quit reason is that of a netsplit: the names of two
// servers. Users cannot forge it, servers put "Quit: " before their reasons.
func isNetsplit(reason string) bool {
	a, b, ok := strings.Cut(reason, " ")
	return ok && isServerName(a) && isServerName(b)
}

func isServerName(s string) bool {
	return len(s) > 2 && strings.Contains(s[1:len(s)-1], ".") &&
		strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789.-*") == ""
}
