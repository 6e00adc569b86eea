package ircd

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/irc.v4"

	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/irc/ircmsg"
)

// support is what RPL_ISUPPORT says.
var support = []string{
	"CASEMAPPING=ascii", "CHANTYPES=#", "CHANMODES=b,,,nt", "PREFIX=(ohv)@%+", "NETWORK=Gjallar",
	"NICKLEN=" + strconv.Itoa(nickLen), "CHANNELLEN=" + strconv.Itoa(channelLen), "TOPICLEN=" + strconv.Itoa(topicLen),
	"KICKLEN=" + strconv.Itoa(kickLen), "AWAYLEN=" + strconv.Itoa(awayLen), "USERLEN=" + strconv.Itoa(userLen), "HOSTLEN=" + strconv.Itoa(hostLen),
	"MODES=8", "CHANLIMIT=#:" + strconv.Itoa(maxChannels),
	"TARGMAX=PRIVMSG:" + strconv.Itoa(maxTargets) + ",NOTICE:" + strconv.Itoa(maxTargets) + ",JOIN:,PART:,KICK:,NAMES:,WHOIS:1",
	"CHATHISTORY=" + strconv.Itoa(maxHistory), "MSGREFTYPES=timestamp", "SAFELIST", "WHOX",
}

// welcome tells a client that registration is over.
//
// Spec: https://modern.ircdocs.horse/#connection-registration
func (s *session) welcome() {
	s.ready.Store(true)
	name := s.n.cfg.ServerName
	s.n.mu.Lock()
	mask := s.n.people.mask(s.person)
	guest := s.person.guest()
	s.n.mu.Unlock()
	s.n.log.Info("irc client connected", "nick", s.nick, "guest", guest)
	s.reply(irc.RPL_WELCOME, "Welcome to Gjallar, "+mask)
	s.reply(irc.RPL_YOURHOST, "Your host is "+name+", running version "+version)
	s.reply(irc.RPL_CREATED, "This server was started "+s.n.created.UTC().Format(time.RFC1123))
	s.reply(irc.RPL_MYINFO, name, version, "i", "bhnotv", "bhov")
	for chunk := range slices.Chunk(support, 13) {
		s.reply(irc.RPL_ISUPPORT, append(slices.Clone(chunk), "are supported by this server")...)
	}
	s.lusers()
	s.motd()
}

func (s *session) handleLusers(context.Context, *irc.Message) error {
	s.lusers()
	return nil
}

func (s *session) lusers() {
	s.n.mu.Lock()
	clients, channels, most := len(s.n.sessions), len(s.n.channels), s.n.most
	s.n.mu.Unlock()
	now := strconv.Itoa(clients)
	s.reply(irc.RPL_LUSERCLIENT, "There are "+now+" users and 0 invisible on 1 server")
	s.reply(irc.RPL_LUSERCHANNELS, strconv.Itoa(channels), "channels formed")
	s.reply(irc.RPL_LUSERME, "I have "+now+" clients and 0 servers")
	s.reply("265", now, strconv.Itoa(most), "Current local users "+now+", max "+strconv.Itoa(most))
}

func (s *session) handleMotd(context.Context, *irc.Message) error {
	s.motd()
	return nil
}

func (s *session) motd() {
	if strings.TrimSpace(s.n.cfg.MOTD) == "" {
		s.reply(irc.ERR_NOMOTD, "No message of the day")
		return
	}
	s.reply(irc.RPL_MOTDSTART, "- "+s.n.cfg.ServerName+" Message of the day -")
	for line := range strings.SplitSeq(strings.TrimRight(s.n.cfg.MOTD, "\r\n"), "\n") {
		for _, piece := range ircmsg.Split("- "+strings.TrimRight(line, "\r"), 400) {
			s.reply(irc.RPL_MOTD, piece)
		}
	}
	s.reply(irc.RPL_ENDOFMOTD, "End of /MOTD command")
}

func (s *session) handlePing(_ context.Context, m *irc.Message) error {
	s.send(s.fromServer("PONG", s.n.cfg.ServerName, m.Params[0]))
	return nil
}

func (s *session) handleQuit(_ context.Context, m *irc.Message) error {
	reason := "Quit"
	if text := m.Trailing(); len(m.Params) > 0 && text != "" {
		reason = "Quit: " + text
	}
	s.end(reason)
	return nil
}

func (s *session) handleVersion(context.Context, *irc.Message) error {
	s.reply("351", version, s.n.cfg.ServerName, "Gjallar, a homeserver and bridge")
	return nil
}

func (s *session) handleTime(context.Context, *irc.Message) error {
	s.reply(irc.RPL_TIME, s.n.cfg.ServerName, time.Now().UTC().Format(time.RFC1123))
	return nil
}

func (s *session) handleAdmin(context.Context, *irc.Message) error {
	return refuse(irc.ERR_NOADMININFO, s.n.cfg.ServerName, "No administrative info available")
}

func (s *session) handleInfo(context.Context, *irc.Message) error {
	s.reply(irc.RPL_INFO, "Gjallar: Matrix rooms as IRC channels")
	s.reply(irc.RPL_ENDOFINFO, "End of /INFO list")
	return nil
}

// handleAway sets or clears the away message.
//
// Spec: https://modern.ircdocs.horse/#away-message
func (s *session) handleAway(ctx context.Context, m *irc.Message) error {
	text := ""
	if len(m.Params) > 0 {
		text, _ = ircmsg.Cut(m.Params[0], awayLen)
	}
	presence := &backends.Presence{State: backends.Online}
	params := []string{}
	if text != "" {
		presence.State, presence.Status, params = backends.Away, text, []string{text}
	}
	s.n.mu.Lock()
	p := s.person
	p.away = text
	o := s.n.from(p, time.Time{}, "AWAY", params...)
	o.needs = capAwayNotify
	p.neighbours(o, s)
	a := s.anywhere()
	s.n.mu.Unlock()
	if text != "" {
		s.reply(irc.RPL_NOWAWAY, "You have been marked as being away")
	} else {
		s.reply(irc.RPL_UNAWAY, "You are no longer marked as being away")
	}
	if a == nil {
		return nil
	}
	ev := s.event(a, presence)
	ev.ID = ""
	return s.n.host.Deliver(ctx, ev, nil)
}

// handleUserhost answers nick=+user@host for each nick that is known.
func (s *session) handleUserhost(_ context.Context, m *irc.Message) error {
	var found []string
	s.n.mu.Lock()
	for _, nick := range m.Params[:min(len(m.Params), 5)] {
		if p := s.n.people.byNick[fold(nick)]; p != nil {
			state := "+"
			if p.away != "" {
				state = "-"
			}
			prefix := s.n.people.prefix(p)
			found = append(found, p.nick+"="+state+prefix.User+"@"+prefix.Host)
		}
	}
	s.n.mu.Unlock()
	s.reply(irc.RPL_USERHOST, strings.Join(found, " "))
	return nil
}

// handleIson answers which of the nicks are known.
func (s *session) handleIson(_ context.Context, m *irc.Message) error {
	var found []string
	s.n.mu.Lock()
	for nick := range strings.FieldsSeq(strings.Join(m.Params, " ")) {
		if p := s.n.people.byNick[fold(nick)]; p != nil {
			found = append(found, p.nick)
		}
	}
	s.n.mu.Unlock()
	s.reply(irc.RPL_ISON, strings.Join(found, " "))
	return nil
}

// maxList is how many rooms LIST shows.
const maxList = 500

// handleList lists published rooms. An argument is looked for in their names.
//
// Spec: https://modern.ircdocs.horse/#list-message
func (s *session) handleList(ctx context.Context, m *irc.Message) error {
	query := ""
	if len(m.Params) > 0 {
		query = strings.Trim(strings.TrimPrefix(m.Params[0], "#"), "*")
	}
	ctx, cancel := context.WithTimeout(ctx, hostTimeout)
	defer cancel()
	rooms, err := s.n.rooms.List(ctx, query, maxList)
	if err != nil {
		return err
	}
	s.reply(irc.RPL_LISTSTART, "Channel", "Users  Name")
	for _, room := range rooms {
		name := "#" + room.Room.Alias
		if room.Room.Server != "" {
			name += ":" + room.Room.Server
		}
		if _, err := s.n.parsePlace(name); room.Room.Alias == "" || err != nil {
			continue // it could not be joined
		}
		text := room.Name
		if room.Topic != "" {
			text += ": " + topicText(room.Topic)
		}
		s.reply(irc.RPL_LIST, name, strconv.Itoa(room.Members), ircmsg.Clean(text))
	}
	s.reply(irc.RPL_LISTEND, "End of /LIST")
	return nil
}

// handleWhois tells about a nick, or about user@server of the host's network.
//
// Spec: https://modern.ircdocs.horse/#whois-message
func (s *session) handleWhois(ctx context.Context, m *irc.Message) error {
	name := m.Trailing()
	user, err := s.lookUp(ctx, name)
	if err != nil {
		s.fail("WHOIS", err)
		s.reply(irc.RPL_ENDOFWHOIS, orStar(name), "End of /WHOIS list")
		return nil
	}
	s.n.mu.Lock()
	list := s.whois(s.n.people.look(*user))
	s.n.mu.Unlock()
	for _, m := range list {
		s.send(m)
	}
	return nil
}

// whois makes the lines about p. The caller holds n.mu.
func (s *session) whois(p *person) []*irc.Message {
	prefix := s.n.people.prefix(p)
	var list []*irc.Message
	line := func(code string, params ...string) {
		list = append(list, s.fromServer(code, append([]string{s.nick, p.nick}, params...)...))
	}
	line(irc.RPL_WHOISUSER, prefix.User, prefix.Host, "*", realName(p.user))
	if names := s.common(p); len(names) > 0 {
		for _, names := range packWords(names, 350) {
			line(irc.RPL_WHOISCHANNELS, names)
		}
	}
	server, info := prefix.Host, "Matrix"
	if len(p.sessions) > 0 {
		server, info = s.n.cfg.ServerName, "Gjallar, by IRC"
	}
	line(irc.RPL_WHOISSERVER, server, info)
	if account := accountName(p.user); account != "" {
		line(numericWhoisAccount, account, "is logged in as")
	}
	if p.user.Bot {
		line(numericWhoisBot, "is a bot")
	}
	if p.away != "" {
		line(irc.RPL_AWAY, p.away)
	}
	if len(p.sessions) > 0 {
		to := p.sessions[0]
		if to.secure() {
			line(numericWhoisSecure, "is using a secure connection")
		}
		since := to.started
		if to.spoke.After(since) {
			since = to.spoke
		}
		idle := strconv.Itoa(int(time.Since(since) / time.Second))
		line(irc.RPL_WHOISIDLE, idle, strconv.FormatInt(to.started.Unix(), 10), "seconds idle, signon time")
	}
	line(irc.RPL_ENDOFWHOIS, "End of /WHOIS list")
	return list
}

// common returns the channels that s and p are both in, with p's rank.
func (s *session) common(p *person) []string {
	var names []string
	for _, ch := range p.channels {
		if ch.sessions[s] != nil {
			names = append(names, symbolOf(ch.members[p])+ch.name)
		}
	}
	slices.Sort(names)
	return names
}

func (s *session) handleWhowas(_ context.Context, m *irc.Message) error {
	s.reply(irc.ERR_WASNOSUCHNICK, orStar(m.Params[0]), "There was no such nickname")
	s.reply(irc.RPL_ENDOFWHOWAS, orStar(m.Params[0]), "End of WHOWAS")
	return nil
}

// handleWho lists the members of a channel that the client is in, or one nick.
//
// Spec: https://modern.ircdocs.horse/#who-message, https://ircv3.net/specs/extensions/whox
func (s *session) handleWho(_ context.Context, m *irc.Message) error {
	mask, fields := m.Params[0], ""
	if len(m.Params) > 1 {
		if _, f, ok := strings.Cut(m.Params[1], "%"); ok {
			fields = f
		}
	}
	s.n.mu.Lock()
	var list []*irc.Message
	if to, err := s.n.parsePlace(mask); err == nil {
		if a := s.joined[to.chat]; a != nil {
			for p, role := range a.channel.members {
				list = append(list, s.whoLine(a.channel.name, p, role, fields))
			}
		}
	} else if p := s.n.people.byNick[fold(mask)]; p != nil {
		list = append(list, s.whoLine("*", p, backends.NoRole, fields))
	}
	s.n.mu.Unlock()
	for _, m := range list {
		s.send(m)
	}
	s.reply(irc.RPL_ENDOFWHO, orStar(mask), "End of WHO list")
	return nil
}

// whoLine makes 352, or 354 with the fields asked for. The caller holds n.mu.
func (s *session) whoLine(channel string, p *person, role backends.Role, fields string) *irc.Message {
	prefix := s.n.people.prefix(p)
	flags := "H"
	if p.away != "" {
		flags = "G"
	}
	if p.user.Bot {
		flags += "B"
	}
	flags += symbolOf(role)
	server := s.n.cfg.ServerName
	if fields == "" {
		return s.fromServer(irc.RPL_WHOREPLY, s.nick, channel, prefix.User, prefix.Host, server, p.nick, flags, "0 "+realName(p.user))
	}
	account := accountName(p.user)
	if account == "" {
		account = "0"
	}
	letters, token, _ := strings.Cut(fields, ",")
	values := map[rune]string{
		't': orStar(token), 'c': channel, 'u': prefix.User, 'i': "255.255.255.255", 'h': prefix.Host, 's': server,
		'n': p.nick, 'f': flags, 'd': "0", 'l': "0", 'a': account, 'o': "n/a", 'r': realName(p.user),
	}
	params := []string{s.nick}
	for _, letter := range "tcuihsnfdlaor" {
		if strings.ContainsRune(letters, letter) {
			params = append(params, values[letter])
		}
	}
	return s.fromServer(numericWhoSpecial, params...)
}
