package puppeting

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// gateway implements backends.Rooms for a network that declares the capability. A
// room entered through it is a portal of kind gateway as long as someone is in.
type gateway struct {
	n *network
	b *Bridge

	mu    sync.Mutex
	known map[matrix.UserID]bool  // may be spoken for; guarded by mu
	turns *locks[backends.ChatID] // held while someone enters or exits
}

func newGateway(n *network) *gateway {
	return &gateway{n: n, b: n.b, known: map[matrix.UserID]bool{}, turns: newLocks[backends.ChatID]()}
}

// mayActAs reports whether the network may speak as a user who is not its ghost.
func (p *portal) mayActAs(ctx context.Context, u matrix.UserID) bool {
	return p.net.gateway != nil && p.net.gateway.allowed(ctx, u)
}

func (g *gateway) allowed(ctx context.Context, u matrix.UserID) bool {
	g.mu.Lock()
	known := g.known[u]
	g.mu.Unlock()
	if known {
		return true
	}
	var n int
	err := g.b.db.QueryRow(ctx, `SELECT count(*) FROM bridge_account WHERE network = $1 AND user_id = $2`, g.n.name, string(u)).Scan(&n)
	return err == nil && n > 0
}

// Authenticate implements backends.Rooms.
func (g *gateway) Authenticate(ctx context.Context, name, password string) (*backends.User, error) {
	wrong := refuse(backends.RefusedUnauthorized, "wrong name or password")
	if name == "" || password == "" {
		return nil, wrong
	}
	u, err := g.b.client.Bot().Login(ctx, name, password)
	if err != nil {
		if e, ok := errors.AsType[*appservice.Error](err); ok && e.Status < 500 && e.Status != 429 {
			return nil, wrong
		}
		return nil, refuse(backends.RefusedUnavailable, "the password cannot be checked now")
	}
	if !g.b.isLocal(u) || g.b.networkOf(u) != nil {
		return nil, wrong
	}
	err = g.b.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`INSERT INTO bridge_account (network, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING`, g.n.name, string(u))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("store account: %w", err)
	}
	g.mu.Lock()
	g.known[u] = true
	g.mu.Unlock()
	return g.describe(ctx, u), nil
}

// describe is what the gateway is told of a user outside of any room.
func (g *gateway) describe(ctx context.Context, u matrix.UserID) *backends.User {
	out := &backends.User{Account: accountID(u), Username: u.Localpart(), Domain: string(u.Server())}
	if id, ok := g.b.remoteOf(ctx, g.n, u); ok {
		out.ID = id
	}
	if p, err := g.b.client.Bot().Profile(ctx, u); err == nil {
		out.Name, out.Avatar = p.DisplayName, g.b.media.link(p.AvatarURL, "", "avatar", 0)
	}
	return out
}

// Whois implements backends.Rooms.
func (g *gateway) Whois(ctx context.Context, username, domain string) (*backends.User, error) {
	u, err := matrix.ParseUserID("@" + username + ":" + firstOf(domain, g.b.o.ServerName))
	if err != nil {
		return nil, refuse(backends.RefusedNotFound, "no such user")
	}
	if _, err := g.b.client.Bot().Profile(ctx, u); err != nil {
		if refusalOf(err) != nil {
			return nil, refuse(backends.RefusedNotFound, "no such user")
		}
		return nil, unavailable(err)
	}
	return g.describe(ctx, u), nil
}

// unavailable makes a refusal of an error that has none.
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	if r := refusalOf(err); r != nil {
		return r
	}
	return fmt.Errorf("ask the homeserver: %w", err)
}

func (g *gateway) alias(name backends.RoomName) (matrix.RoomAlias, error) {
	a, err := matrix.ParseRoomAlias("#" + name.Alias + ":" + firstOf(name.Server, g.b.o.ServerName))
	if err != nil {
		return "", refuse(backends.RefusedNotFound, "no such room")
	}
	return a, nil
}

// find returns the room of a name. If there is none, it is made for the founder, who
// may be nil.
func (g *gateway) find(ctx context.Context, name backends.RoomName, founder *appservice.Intent) (matrix.RoomID, error) {
	if name.ID != "" {
		id, err := matrix.ParseRoomID(name.ID)
		if err != nil {
			return "", refuse(backends.RefusedNotFound, "no such room")
		}
		return id, nil
	}
	alias, err := g.alias(name)
	if err != nil {
		return "", err
	}
	id, err := g.b.client.Bot().ResolveAlias(ctx, alias)
	if err == nil {
		return id, nil
	}
	refusal := refusalOf(err)
	switch {
	case refusal == nil:
		return "", unavailable(err)
	case refusal.Code != backends.RefusedNotFound || founder == nil || string(alias.Server()) != g.b.o.ServerName:
		return "", refusal
	}
	return g.create(ctx, alias, founder.UserID())
}

// create makes a room of the bot's in which the founder is a moderator, as who opens a
// channel expects to be.
func (g *gateway) create(ctx context.Context, alias matrix.RoomAlias, founder matrix.UserID) (matrix.RoomID, error) {
	bot := g.b.client.Bot()
	id, err := bot.CreateRoom(ctx, map[string]any{"preset": "public_chat", "visibility": "public", "room_alias_name": alias.Localpart(), "name": alias.Localpart()})
	if e, ok := errors.AsType[*appservice.Error](err); ok && e.Code == matrix.CodeRoomInUse { // another was faster
		return bot.ResolveAlias(ctx, alias)
	}
	if err != nil {
		return "", unavailable(err)
	}
	return id, unavailable(g.promote(ctx, id, founder))
}

// promote makes a user a moderator of a room of the bot's.
func (g *gateway) promote(ctx context.Context, id matrix.RoomID, user matrix.UserID) error {
	bot := g.b.client.Bot()
	levels := map[string]any{}
	if err := bot.StateEvent(ctx, id, matrix.TypePowerLevels, "", &levels); err != nil {
		return err
	}
	users, _ := levels["users"].(map[string]any)
	if users == nil {
		users = map[string]any{}
	}
	users[string(user)], levels["users"] = moderatorLevel, users
	_, err := bot.SendState(ctx, id, matrix.TypePowerLevels, "", levels)
	return err
}

// Enter implements backends.Rooms.
func (g *gateway) Enter(ctx context.Context, req backends.EnterRequest) (*backends.RoomView, error) {
	unlock, err := g.turns.lock(ctx, req.Chat)
	if err != nil {
		return nil, err
	}
	defer unlock()
	k := portalKey{network: g.n.name, chat: req.Chat}
	p := g.b.portalFor(k)
	actor, err := p.actor(ctx, req.User)
	if err != nil {
		return nil, unavailable(err)
	}
	var founder *appservice.Intent
	if req.Create {
		founder = actor
	}
	id, err := g.find(ctx, req.Room, founder)
	if err != nil {
		return nil, err
	}
	fresh := p.bound() == nil || p.bound().id != id
	if fresh { // before the join, so that nothing after it is missed
		if p, err = g.b.establish(ctx, portalRow{portalKey: k, room: id, kind: gatewayPortal, agent: actor.UserID()}); err != nil {
			return nil, err
		}
		p.setJoined(true)
	}
	if err := g.enter(ctx, p, actor, id); err != nil {
		if fresh {
			err = errors.Join(err, g.b.dissolve(ctx, p))
		}
		return nil, unavailable(err)
	}
	view, err := g.view(ctx, p, actor, req)
	return view, unavailable(err)
}

// enter joins the room and notes who is in.
func (g *gateway) enter(ctx context.Context, p *portal, actor *appservice.Intent, id matrix.RoomID) error {
	was := g.isIn(ctx, actor, id)
	if !was {
		if _, err := actor.Join(ctx, string(id)); err != nil {
			return err
		}
	}
	rm := p.bound()
	if rm == nil {
		return refuse(backends.RefusedUnavailable, "the room is gone")
	}
	if rm.loaded() {
		rm.setMember(actor.UserID(), true, appservice.Profile{DisplayName: g.b.ghostName(ctx, actor.UserID())})
	}
	err := g.b.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`INSERT INTO bridge_occupant (network, chat, user_id, joined) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`,
			g.n.name, string(p.key.chat), string(actor.UserID()), !was)
		return err
	})
	if err != nil {
		return fmt.Errorf("store occupant: %w", err)
	}
	return nil
}

// isIn asks the homeserver whether someone is in a room.
func (g *gateway) isIn(ctx context.Context, actor *appservice.Intent, id matrix.RoomID) bool {
	var m memberContent
	err := actor.StateEvent(ctx, id, matrix.TypeMember, string(actor.UserID()), &m)
	return err == nil && m.Membership == matrix.Join
}

// Exit implements backends.Rooms. A ghost leaves the room. So does a user of the
// homeserver, unless they were in it before they entered.
func (g *gateway) Exit(ctx context.Context, chat backends.ChatID, user backends.User, reason string) error {
	unlock, err := g.turns.lock(ctx, chat)
	if err != nil {
		return err
	}
	defer unlock()
	p := g.b.findPortal(portalKey{network: g.n.name, chat: chat})
	if p == nil || p.bound() == nil {
		return refuse(backends.RefusedNotFound, "no such room")
	}
	actor, err := p.actor(ctx, user)
	if err != nil {
		return unavailable(err)
	}
	joined, left, err := g.removeOccupant(ctx, chat, actor.UserID())
	if err != nil {
		return err
	}
	rm := p.bound()
	if len(left) > 0 {
		err = g.replaceAgent(ctx, p, actor.UserID(), left[0])
	} else {
		err = g.b.dissolve(ctx, p)
	}
	if joined {
		if lerr := actor.Leave(ctx, rm.id, cleanText(reason)); !isForbidden(lerr) {
			err = errors.Join(err, lerr)
		}
		rm.setMember(actor.UserID(), false, profileless)
	}
	return unavailable(err)
}

// removeOccupant says whether the one who goes joined by entering, and who is left.
func (g *gateway) removeOccupant(ctx context.Context, chat backends.ChatID, u matrix.UserID) (joined bool, left []matrix.UserID, err error) {
	err = g.b.db.Write(ctx, func(tx *sqldb.Tx) error {
		joined, left = false, nil
		err := tx.Each(func(scan func(...any) error) error {
			var v matrix.UserID
			var j bool
			err := scan(&v, &j)
			if v == u {
				joined = j
			} else {
				left = append(left, v)
			}
			return err
		}, `SELECT user_id, joined FROM bridge_occupant WHERE network = $1 AND chat = $2`, g.n.name, string(chat))
		if err != nil {
			return err
		}
		_, err = tx.Exec(`DELETE FROM bridge_occupant WHERE network = $1 AND chat = $2 AND user_id = $3`, g.n.name, string(chat), string(u))
		return err
	})
	if err != nil {
		return false, nil, fmt.Errorf("remove occupant: %w", err)
	}
	return joined, left, nil
}

// replaceAgent has another read the room if the one who leaves did.
func (g *gateway) replaceAgent(ctx context.Context, p *portal, gone, next matrix.UserID) error {
	rm := p.bound()
	if rm == nil || p.agentID() != gone {
		return nil
	}
	if err := g.b.db.Write(ctx, func(tx *sqldb.Tx) error {
		return putPortal(tx, portalRow{portalKey: p.key, room: rm.id, kind: gatewayPortal, agent: next})
	}); err != nil {
		return fmt.Errorf("store portal: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.agent = next
	return nil
}

// view collects what someone sees on entering.
func (g *gateway) view(ctx context.Context, p *portal, actor *appservice.Intent, req backends.EnterRequest) (*backends.RoomView, error) {
	rm := p.bound()
	if rm == nil {
		return nil, refuse(backends.RefusedUnavailable, "the room is gone")
	}
	state, err := actor.State(ctx, rm.id)
	if err != nil {
		return nil, err
	}
	rm.setMembers(state)
	v := &backends.RoomView{Nonanonymous: true}
	v.Info.Chat = p.key.chatKey()
	describeRoom(v, state, func(u matrix.UserID) backends.User { return p.user(ctx, u) })
	roles := rolesOf(state)
	for i := range state {
		ev := &state[i]
		if u, joined := joinedMember(ev); joined {
			v.Members = append(v.Members, backends.Member{Action: backends.Joined, User: p.user(ctx, u), Role: roles(u)})
		}
	}
	v.Info.Members, v.Role = len(v.Members), roles(actor.UserID())
	if req.History > 0 && !v.Encrypted {
		v.History, err = g.history(ctx, p, actor, time.Time{}, req.Since, req.History)
	}
	return v, err
}

func joinedMember(ev *appservice.Event) (matrix.UserID, bool) {
	if ev.Type != matrix.TypeMember || ev.StateKey == nil || decodeInto[memberContent](ev.Content).Membership != matrix.Join {
		return "", false
	}
	return matrix.UserID(*ev.StateKey), true
}

func (r *room) setMembers(state []appservice.Event) {
	members := map[matrix.UserID]appservice.Profile{}
	for i := range state {
		if u, joined := joinedMember(&state[i]); joined {
			m := decodeInto[memberContent](state[i].Content)
			members[u] = appservice.Profile{DisplayName: m.DisplayName, AvatarURL: m.AvatarURL}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members = members
}

// describeRoom fills in what the room's state says of the room itself.
func describeRoom(v *backends.RoomView, state []appservice.Event, user func(matrix.UserID) backends.User) {
	alias := ""
	for i := range state {
		ev := &state[i]
		c := decodeInto[struct {
			Name     string `json:"name"`
			Topic    string `json:"topic"`
			Alias    string `json:"alias"`
			JoinRule string `json:"join_rule"`
		}](ev.Content)
		switch ev.Type {
		case matrix.TypeName:
			v.Info.Name = &c.Name
		case matrix.TypeTopic:
			topic := cleanText(c.Topic)
			v.Info.Topic, v.TopicBy, v.TopicAt = &topic, user(ev.Sender), time.UnixMilli(ev.OriginServerTS)
		case matrix.TypeCanonicalAlias:
			alias = c.Alias
		case matrix.TypeJoinRules:
			public := c.JoinRule == "public"
			v.Info.Public = &public
		case matrix.TypeEncryption:
			v.Encrypted = true
		}
	}
	if (v.Info.Name == nil || *v.Info.Name == "") && alias != "" {
		v.Info.Name = &alias
	}
}

// rolesOf returns what gives each user their role.
func rolesOf(state []appservice.Event) func(matrix.UserID) backends.Role {
	var pl powerLevels
	for i := range state {
		if state[i].Type == matrix.TypePowerLevels {
			pl = decodeInto[powerLevels](state[i].Content)
		}
	}
	return func(u matrix.UserID) backends.Role {
		if _, named := pl.Users[u]; !named && isCreator(state, u) {
			return backends.Owner
		}
		return pl.roleOf(u)
	}
}

// History implements backends.Rooms.
func (g *gateway) History(ctx context.Context, chat backends.ChatID, user backends.User, before time.Time, limit int) ([]backends.Command, error) {
	p := g.b.findPortal(portalKey{network: g.n.name, chat: chat})
	if p == nil || p.bound() == nil {
		return nil, refuse(backends.RefusedNotFound, "no such room")
	}
	actor, err := p.actor(ctx, user)
	if err != nil {
		return nil, unavailable(err)
	}
	cmds, err := g.history(ctx, p, actor, before, time.Time{}, limit)
	return cmds, unavailable(err)
}

// Bounds of reading history.
const (
	maxHistory   = 500 // messages
	historyPage  = 100 // events
	historyPages = 10
)

// history reads up to limit messages between two times (zero: no bound), oldest first.
func (g *gateway) history(ctx context.Context, p *portal, actor *appservice.Intent, before, since time.Time, limit int) ([]backends.Command, error) {
	rm := p.bound()
	limit = min(limit, maxHistory)
	var found []backends.Command
	from := ""
	for range historyPages {
		page, err := actor.Messages(ctx, rm.id, from, "b", historyPage)
		if err != nil {
			return nil, err
		}
		for i := range page.Chunk {
			ev := &page.Chunk[i]
			at := time.UnixMilli(ev.OriginServerTS)
			if len(found) >= limit || at.Before(since) {
				slices.Reverse(found)
				return found, nil
			}
			if !spoken[ev.Type] || !before.IsZero() && !at.Before(before) {
				continue
			}
			cmd, err := p.command(ctx, ev)
			if err != nil || cmd == nil {
				continue
			}
			found = append(found, *cmd)
		}
		if from = page.End; from == "" || len(page.Chunk) == 0 {
			break
		}
	}
	slices.Reverse(found)
	return found, ctx.Err()
}

// spoken are the events that history consists of.
var spoken = map[string]bool{matrix.TypeMessage: true, typeSticker: true, matrix.TypeReaction: true}

// moderatorLevel is the power level of moderators.
const moderatorLevel = 50

// maxList bounds List.
const maxList = 1000

// List implements backends.Rooms.
func (g *gateway) List(ctx context.Context, query string, limit int) ([]backends.RoomSummary, error) {
	rooms, err := g.b.client.Bot().PublicRooms(ctx, query, min(max(limit, 1), maxList))
	if err != nil {
		return nil, unavailable(err)
	}
	out := make([]backends.RoomSummary, 0, len(rooms))
	for _, r := range rooms {
		out = append(out, g.summary(r))
	}
	return out, nil
}

func (g *gateway) summary(r appservice.PublicRoom) backends.RoomSummary {
	s := backends.RoomSummary{Name: firstOf(r.Name, string(r.Alias)), Topic: cleanText(r.Topic), Members: r.Members}
	s.Room.ID = string(r.ID)
	if r.Alias != "" {
		s.Room = backends.RoomName{Alias: r.Alias.Localpart(), Server: string(r.Alias.Server())}
		if s.Room.Server == g.b.o.ServerName {
			s.Room.Server = ""
		}
	}
	return s
}

// Peek implements backends.Rooms. Of a room that is not published it tells no more
// than that it is there.
func (g *gateway) Peek(ctx context.Context, name backends.RoomName) (*backends.RoomSummary, error) {
	id, err := g.find(ctx, name, nil)
	if err != nil {
		return nil, err
	}
	rooms, err := g.b.client.Bot().PublicRooms(ctx, name.Alias, 100)
	if err != nil {
		return nil, unavailable(err)
	}
	for _, r := range rooms {
		if r.ID == id {
			s := g.summary(r)
			s.Room = name
			return &s, nil
		}
	}
	if name.ID != "" {
		return nil, refuse(backends.RefusedNotFound, "no such room")
	}
	return &backends.RoomSummary{Room: name, Name: name.Alias}, nil
}
