package ircd

import (
	"context"
	"strconv"
	"strings"
	"time"

	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
)

// maxHistory is how many messages CHATHISTORY returns at most (ISUPPORT CHATHISTORY).
const maxHistory = 100

// history makes lines of what was said, and the set of their IDs. Clients that do
// not know server-time get the time within the text. The caller holds n.mu.
func (s *session) history(ch *channel, cmds []backends.Command) ([]*irc.Message, map[backends.MessageID]bool) {
	var list []*irc.Message
	shown := map[backends.MessageID]bool{}
	for i := range cmds {
		m, ok := cmds[i].Body.(*backends.Message)
		if !ok {
			continue
		}
		for _, o := range s.n.lines(ch.name, &cmds[i], m, s.stamp(cmds[i].Time)) {
			shown[o.id] = true
			list = append(list, o.with(s.caps))
		}
	}
	return list, shown
}

func (s *session) stamp(at time.Time) string {
	switch {
	case s.caps.has(capServerTime) || at.IsZero():
		return ""
	case time.Since(at) < 12*time.Hour:
		return at.Local().Format("[15:04] ")
	}
	return at.Local().Format("[2006-01-02 15:04] ")
}

// playBack sends history, as a batch if the client knows them.
//
// Spec: https://ircv3.net/specs/batches/chathistory
func (s *session) playBack(name string, list []*irc.Message) {
	if !s.caps.has(capBatch) {
		for _, m := range list {
			s.send(m)
		}
		return
	}
	if len(list) == 0 {
		return
	}
	s.batch(name, list)
}

func (s *session) batch(name string, list []*irc.Message) {
	ref := s.batchRef()
	s.send(s.fromServer("BATCH", "+"+ref, "chathistory", name))
	for _, m := range list {
		setTag(m, "batch", ref)
		s.send(m)
	}
	s.send(s.fromServer("BATCH", "-"+ref))
}

// handleChatHistory is CHATHISTORY LATEST and BEFORE, by timestamp.
//
// Spec: https://ircv3.net/specs/extensions/chathistory
func (s *session) handleChatHistory(ctx context.Context, m *irc.Message) error {
	sub, target, from := strings.ToUpper(m.Params[0]), m.Params[1], m.Params[2]
	fail := func(code, text string, context ...string) error {
		params := append([]string{"CHATHISTORY", code}, context...)
		s.send(s.fromServer("FAIL", append(params, text)...))
		return nil
	}
	a, err := s.attending(target)
	if err != nil {
		return fail("INVALID_TARGET", "Messages could not be retrieved", sub, orStar(target))
	}
	limit, err := strconv.Atoi(m.Params[3])
	if err != nil || limit < 0 {
		return fail("INVALID_PARAMS", "The limit is no number", sub)
	}
	at, ok := parseReference(from)
	if sub != "LATEST" && sub != "BEFORE" || !ok && (sub != "LATEST" || from != "*") {
		return fail("INVALID_PARAMS", "Only LATEST and BEFORE by timestamp are known", orStar(sub))
	}
	list, err := s.fetch(ctx, a, sub, at, min(limit, maxHistory))
	if err != nil {
		s.n.log.Warn("irc history could not be read", "chat", a.channel.chat, "err", err)
		return fail("MESSAGE_ERROR", "Messages could not be retrieved", sub, a.channel.name)
	}
	if s.caps.has(capBatch) {
		s.batch(a.channel.name, list)
		return nil
	}
	s.playBack(a.channel.name, list)
	return nil
}

// fetch asks the host: messages before at, or for LATEST those after it.
func (s *session) fetch(ctx context.Context, a *attendance, sub string, at time.Time, limit int) ([]*irc.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, hostTimeout)
	defer cancel()
	before, after := at, time.Time{}
	if sub == "LATEST" {
		before, after = time.Time{}, at
	}
	s.n.mu.Lock()
	user := s.person.user
	s.n.mu.Unlock()
	cmds, err := s.n.rooms.History(ctx, a.channel.chat, user, before, limit)
	if err != nil {
		return nil, err
	}
	for len(cmds) > 0 && !after.IsZero() && !cmds[0].Time.After(after) {
		cmds = cmds[1:]
	}
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	list, _ := s.history(a.channel, cmds)
	return list, nil
}

func parseReference(s string) (time.Time, bool) {
	value, ok := strings.CutPrefix(s, "timestamp=")
	if !ok {
		return time.Time{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, value)
	return at, err == nil
}
