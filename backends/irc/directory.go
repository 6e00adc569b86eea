package irc

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc/ircfmt"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
)

var errNotConnected = &backends.Refusal{Code: backends.RefusedUnavailable, Message: "the bridge is not connected to the IRC network"}

// channelKey returns the configured key of a channel.
func (n *network) channelKey(name string) string {
	for channel, key := range n.cfg.Keys {
		if n.fold(channel) == n.fold(name) {
			return key
		}
	}
	return ""
}

// isChannel reports whether a name is that of a channel, by what the network has
// said, or by default.
func (n *network) isChannel(name string) bool {
	var none ircmsg.ISupport
	if !validTarget(name) {
		return false
	}
	return none.IsChannel(name) || name[0] == '!' || name[0] == '+'
}

// on runs f on the bot's connection and waits for what it calls its argument with.
func on[T any](ctx context.Context, n *network, f func(c *conn, done func(T, error))) (T, error) {
	type answer struct {
		value T
		err   error
	}
	answers := make(chan answer, 1)
	var zero T
	c := n.bot.ready()
	if c == nil || !c.do(ctx, func() { f(c, func(v T, err error) { answers <- answer{v, err} }) }) {
		if ctx.Err() != nil {
			return zero, ctx.Err()
		}
		return zero, errNotConnected
	}
	select {
	case a := <-answers:
		return a.value, unavailable(a.err)
	case <-ctx.Done():
		return zero, ctx.Err()
	}
}

// unavailable makes a refusal of our own errors.
func unavailable(err error) error {
	switch err {
	case errNotSent, errUnknown:
		return &backends.Refusal{Code: backends.RefusedUnavailable, Message: "the IRC network did not answer"}
	}
	return err
}

// Join implements backends.Network.
func (n *network) Join(ctx context.Context, req backends.JoinRequest) (*backends.ChatInfo, error) {
	name := string(req.Chat.Chat)
	if !validTarget(name) {
		return nil, &backends.Refusal{Code: backends.RefusedInvalid, Message: "this is no channel or nick"}
	}
	if req.Chat.Account != "" {
		n.setChatID(req.Chat.Chat)
		return n.joinPrivate(req.Chat), nil
	}
	if !n.isChannel(name) {
		return nil, &backends.Refusal{Code: backends.RefusedInvalid, Message: name + " is not a channel"}
	}
	n.setChatID(req.Chat.Chat)
	var since time.Time
	if req.Resume != nil {
		since = req.Resume.Time
	}
	return on(ctx, n, func(c *conn, done func(*backends.ChatInfo, error)) { n.bot.join(c, name, since, done) })
}

// joinPrivate connects an account that was connected once, so that it can be written
// to again.
func (n *network) joinPrivate(chat backends.ChatKey) *backends.ChatInfo {
	if s := n.loadNick(chat.Account); s.Nick != "" {
		n.account(backends.User{Account: chat.Account, Name: s.Name, Username: s.User}) // no room is no harm
	}
	peer := n.userNamed(string(chat.Chat))
	return &backends.ChatInfo{Chat: chat, Direct: true, Peer: &peer}
}

// Leave implements backends.Network.
func (n *network) Leave(ctx context.Context, chat backends.ChatKey) error {
	name := string(chat.Chat)
	if chat.Account != "" || !validTarget(name) {
		return nil
	}
	n.mu.Lock()
	accounts := make([]*account, 0, len(n.accounts))
	for _, a := range n.accounts {
		accounts = append(accounts, a)
	}
	n.mu.Unlock()
	for _, a := range accounts {
		if _, c := n.connected(a.id); c != nil {
			c.do(ctx, func() { a.part(c, name) })
		}
	}
	if c := n.bot.ready(); c != nil {
		c.do(ctx, func() { n.bot.part(c, name) })
	}
	return ctx.Err()
}

func (a *account) part(c *conn, name string) {
	if _, in := a.joined[c.fold(name)]; in {
		delete(a.joined, c.fold(name))
		c.submit(&request{lines: []*irc.Message{ircmsg.New("PART", name)}, target: name, done: func(outcome) {}})
	}
}

// ResolveChat implements backends.Resolver: any channel can be entered, any other
// name is a nick.
func (n *network) ResolveChat(ctx context.Context, query string) (*backends.ChatInfo, error) {
	query = strings.TrimSpace(query)
	if !validTarget(query) {
		return nil, &backends.Refusal{Code: backends.RefusedInvalid, Message: "this is no channel or nick"}
	}
	id := backends.ChatKey{Chat: backends.ChatID(n.fold(query))}
	if n.isChannel(query) {
		return &backends.ChatInfo{Chat: id, Name: &query}, nil
	}
	user, err := n.ResolveUser(ctx, query)
	if err != nil {
		return nil, err
	}
	return &backends.ChatInfo{Chat: id, Direct: true, Peer: user}, nil
}

// ResolveUser implements backends.Resolver.
func (n *network) ResolveUser(ctx context.Context, query string) (*backends.User, error) {
	query = strings.TrimSpace(query)
	if !validTarget(query) || n.isChannel(query) {
		return nil, &backends.Refusal{Code: backends.RefusedInvalid, Message: "this is no nick"}
	}
	nick, err := on(ctx, n, func(c *conn, done func(string, error)) {
		r := &request{lines: []*irc.Message{ircmsg.New("USERHOST", query)}, target: query, replies: true, timeout: joinTimeout}
		r.done = func(o outcome) {
			if len(o.ids) == 0 {
				done("", o.err)
			} else {
				done(string(o.ids[0]), o.err)
			}
		}
		c.submit(r)
	})
	if err != nil {
		return nil, err
	}
	if nick == "" {
		return nil, &backends.Refusal{Code: backends.RefusedNotFound, Message: "nobody is called " + query}
	}
	user := n.userNamed(nick)
	return &user, nil
}

// handleUserhost is "302 me :nick*=+user@host", empty if there is no such nick. It
// answers the oldest USERHOST.
func (b *bot) handleUserhost(c *conn, m *irc.Message) {
	nick, _, _ := strings.Cut(strings.TrimSpace(m.Trailing()), "=")
	for _, r := range c.pending {
		if r.written > 0 && r.lines[0].Command == "USERHOST" {
			if nick = strings.TrimSuffix(nick, "*"); nick != "" {
				r.ids = append(r.ids, backends.MessageID(nick))
			}
			c.finish(r, nil)
			return
		}
	}
}

// listing is a LIST under way.
type listing struct {
	query string
	chats []backends.ChatInfo
	end   func(error)
}

// maxListed bounds a listing.
const maxListed = 20000

// ListChats implements backends.Directory. The largest channels come first.
func (n *network) ListChats(ctx context.Context, query string, limit int) ([]backends.ChatInfo, error) {
	chats, err := on(ctx, n, func(c *conn, done func([]backends.ChatInfo, error)) { n.bot.list(c, query, done) })
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(chats, func(a, b backends.ChatInfo) int { return cmp.Compare(b.Members, a.Members) })
	return chats[:min(len(chats), max(limit, 0))], nil
}

// list asks for all channels; whoever asks while a list is under way waits for the
// next.
func (b *bot) list(c *conn, query string, done func([]backends.ChatInfo, error)) {
	l := &listing{query: strings.ToLower(query)}
	r := &request{lines: []*irc.Message{ircmsg.New("LIST")}, replies: true, timeout: 2 * joinTimeout}
	l.end = func(err error) { c.finish(r, err) }
	r.done = func(o outcome) {
		b.lists = slices.DeleteFunc(b.lists, func(x *listing) bool { return x == l })
		done(l.chats, o.err)
	}
	b.lists = append(b.lists, l)
	c.submit(r)
}

func (b *bot) handleListItem(_ *conn, m *irc.Message) {
	if len(b.lists) == 0 {
		return
	}
	l := b.lists[0]
	name, topic := m.Params[1], ircfmt.Strip(m.Params[len(m.Params)-1])
	if len(m.Params) < 4 {
		topic = ""
	}
	if len(l.chats) >= maxListed || !b.n.isChannel(name) || !strings.Contains(strings.ToLower(name+" "+topic), l.query) {
		return
	}
	count, _ := strconv.Atoi(m.Params[2])
	public := true
	l.chats = append(l.chats, backends.ChatInfo{
		Chat:    backends.ChatKey{Chat: backends.ChatID(b.n.fold(name))},
		Name:    &name,
		Topic:   &topic,
		Public:  &public,
		Members: count,
	})
}

func (b *bot) handleListEnd(*conn, *irc.Message) {
	if len(b.lists) > 0 {
		b.lists[0].end(nil)
	}
}
