package puppeting

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

var profileless appservice.Profile

// aliasTimeout bounds the making of a room for an alias: homeservers wait for it.
const aliasTimeout = 25 * time.Second

// chatOf is what an alias #<network>_<chat> stands for, nil if it is none of ours.
func (b *Bridge) chatOf(alias matrix.RoomAlias) (n *network, chat string) {
	name, rest, _ := strings.Cut(alias.Localpart(), "_")
	n = b.networks[name]
	if n == nil || rest == "" || string(alias.Server()) != b.o.ServerName || !n.linkable() || strings.HasPrefix(rest, "=h") {
		return nil, ""
	}
	return n, unescapeAlias(rest)
}

// aliasQuery makes the room of an alias #<network>_<chat>, if there is such a chat.
func (b *Bridge) aliasQuery(ctx context.Context, alias matrix.RoomAlias) (bool, error) {
	n, chat := b.chatOf(alias)
	if n == nil {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, aliasTimeout)
	defer cancel()
	info, err := n.resolve(ctx, chat)
	if err != nil {
		if _, refused := errors.AsType[*backends.Refusal](err); refused {
			return false, nil
		}
		return false, err
	}
	k := portalKey{network: n.name, chat: info.Chat.Chat}
	unlock, err := b.aliases.lock(ctx, k)
	if err != nil {
		return false, err
	}
	defer unlock()
	if p := b.findPortal(k); p != nil && p.bound() != nil {
		return true, b.ensureAlias(ctx, alias, p.bound().id)
	}
	return b.createPortal(ctx, n, info, alias)
}

// resolve turns what people typed into a chat, and has the network look at it.
func (n *network) resolve(ctx context.Context, query string) (*backends.ChatInfo, error) {
	nw, err := n.await(ctx)
	if err != nil {
		return nil, err
	}
	if r, ok := nw.(backends.Resolver); ok {
		info, err := r.ResolveChat(ctx, query)
		refusal, refused := errors.AsType[*backends.Refusal](err)
		switch {
		case err == nil && info != nil:
			return info, nil
		case refused && refusal.Code != backends.RefusedUnsupported:
			return nil, err
		case !refused && err != nil:
			return nil, err
		}
	}
	return &backends.ChatInfo{Chat: backends.ChatKey{Chat: backends.ChatID(query)}}, nil
}

// createPortal joins a chat and makes its room. The chat is left again if there is
// no room in the end.
func (b *Bridge) createPortal(ctx context.Context, n *network, info *backends.ChatInfo, alias matrix.RoomAlias) (bool, error) {
	nw, err := n.get()
	if err != nil {
		return false, err
	}
	joined, err := nw.Join(ctx, backends.JoinRequest{Chat: info.Chat})
	if _, refused := errors.AsType[*backends.Refusal](err); refused {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if joined == nil {
		joined = info
	}
	id, err := b.client.Bot().CreateRoom(ctx, roomOf(info, joined, alias, n.title))
	if e, ok := errors.AsType[*appservice.Error](err); ok && e.Code == matrix.CodeRoomInUse {
		// A room of ours whose making was interrupted before it was noted down.
		id, err = b.client.Bot().ResolveAlias(ctx, alias)
	}
	if err != nil {
		return false, errors.Join(err, nw.Leave(ctx, info.Chat))
	}
	p, err := b.establish(ctx, portalRow{portalKey: portalKey{network: n.name, chat: info.Chat.Chat}, room: id, kind: chatPortal, agent: b.client.Bot().UserID()})
	if err != nil {
		return false, err
	}
	p.announce(ctx)
	// Again, for who was told of the members before there was a room for them.
	b.crew.Go(func(ctx context.Context) { n.rejoin(ctx, p) })
	return true, nil
}

// roomOf is the request that makes the room of a chat.
func roomOf(asked, info *backends.ChatInfo, alias matrix.RoomAlias, title string) map[string]any {
	req := map[string]any{
		"preset": "public_chat", "room_alias_name": alias.Localpart(), "name": string(asked.Chat.Chat),
		"topic": "", "creation_content": map[string]any{"m.federate": true},
	}
	if info.Name != nil && *info.Name != "" {
		req["name"] = *info.Name
	}
	delete(req, "topic")
	if info.Topic != nil && *info.Topic != "" {
		req["topic"] = *info.Topic
	}
	return req
}

// typeBridge is the state that tells clients which chat a room stands for (MSC2346).
const typeBridge = "uk.half-shot.bridge"

// announce sets that state. A room where the bot may not is without it.
func (p *portal) announce(ctx context.Context) {
	rm := p.bound()
	if rm == nil {
		return
	}
	c := map[string]any{
		"bridgebot": p.b.client.Bot().UserID(),
		"protocol":  map[string]any{"id": p.net.info.Protocol, "displayname": firstOf(p.net.info.Title, p.net.info.Protocol)},
		"network":   map[string]any{"id": p.net.name, "displayname": p.net.title},
		"channel":   map[string]any{"id": string(p.key.chat), "displayname": string(p.key.chat)},
	}
	key := "gjallar://" + p.net.name + "/" + shorten(escapeUser(string(p.key.chat)), string(p.key.chat))
	if _, err := p.intent().SendState(ctx, rm.id, typeBridge, key, c); err != nil {
		p.log.Debug("the bridge cannot be announced", "err", err)
	}
}

func (b *Bridge) ensureAlias(ctx context.Context, alias matrix.RoomAlias, id matrix.RoomID) error {
	err := b.client.Bot().CreateAlias(ctx, alias, id)
	if e, ok := errors.AsType[*appservice.Error](err); ok && (e.Code == matrix.CodeRoomInUse || e.Status == 409) {
		return nil
	}
	return err
}

// createDirect makes the room of a private chat that someone on the network began.
func (p *portal) createDirect(ctx context.Context, ev *backends.Event) (*room, error) {
	select {
	case p.creating <- struct{}{}:
		defer func() { <-p.creating }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if rm := p.bound(); rm != nil {
		return rm, nil
	}
	account := userID(p.key.account)
	if _, err := matrix.ParseUserID(string(account)); err != nil {
		return nil, refuse(backends.RefusedInvalid, "no such account")
	}
	peer := ev.Sender
	if peer.Account != "" || peer.ID == "" {
		peer = backends.User{ID: backends.UserID(p.key.chat)}
	}
	intent, err := p.actor(ctx, peer)
	if err != nil {
		return nil, err
	}
	id, err := intent.CreateRoom(ctx, map[string]any{"preset": "trusted_private_chat", "is_direct": true, "invite": []matrix.UserID{account}})
	if err != nil {
		return nil, err
	}
	if _, err := p.b.establish(ctx, portalRow{portalKey: p.key, room: id, kind: directPortal, agent: intent.UserID()}); err != nil {
		return nil, err
	}
	p.setJoined(true)
	return p.bound(), nil
}

// invitePeer brings the user of a private chat back who has left its room.
func (p *portal) invitePeer(ctx context.Context, rm *room) error {
	if !p.isKind(directPortal) {
		return nil
	}
	account := userID(p.key.account)
	if _, joined := rm.member(ctx, account); joined {
		return nil
	}
	var m memberContent
	if err := p.intent().StateEvent(ctx, rm.id, matrix.TypeMember, string(account), &m); err != nil && refusalOf(err) == nil {
		return err
	}
	if m.Membership == matrix.Invite || m.Membership == matrix.Ban {
		return nil
	}
	if err := p.intent().Invite(ctx, rm.id, account, ""); err != nil && !isForbidden(err) {
		return err
	}
	return nil
}
