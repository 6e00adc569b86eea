package puppeting

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	mhtml "github.com/gjallar-im/gjallar/puppeting/html"
)

// cannotSend is why an event has no command; its sender is told. Other errors mean
// that it is to be tried again.
type cannotSend struct{ reason string }

func (e *cannotSend) Error() string { return e.reason }

// converters make the body of a command of an event, nil if there is nothing to
// send, by the event's type.
var converters map[string]func(*portal, context.Context, *appservice.Event) (backends.Body, error)

func init() {
	converters = map[string]func(*portal, context.Context, *appservice.Event) (backends.Body, error){
		matrix.TypeMessage:     (*portal).messageBody,
		typeSticker:            (*portal).messageBody,
		matrix.TypeReaction:    (*portal).reactionBody,
		matrix.TypeRedaction:   (*portal).redactionBody,
		matrix.TypeMember:      (*portal).memberBody,
		matrix.TypeName:        (*portal).nameBody,
		matrix.TypeTopic:       (*portal).topicBody,
		matrix.TypePowerLevels: (*portal).powerBody,
		matrix.TypeEncrypted:   (*portal).encryptedBody,
	}
}

// command makes the command for an event, with the fallbacks for what the network
// cannot express. It is nil if there is nothing to send.
func (p *portal) command(ctx context.Context, ev *appservice.Event) (*backends.Command, error) {
	convert := converters[ev.Type]
	if convert == nil {
		return nil, nil
	}
	if !p.isGateway() && p.b.networkOf(ev.Sender) == p.net {
		// Our network's own, but maybe from another of its chats.
		if id, err := p.echo(ctx, ev); err != nil || id != "" || !speech[ev.Type] {
			return nil, err
		}
	}
	body, err := convert(p, ctx, ev)
	if err != nil || body == nil {
		return nil, err
	}
	if body = p.fallback(body); body == nil {
		return nil, nil
	}
	cmd := &backends.Command{ID: string(ev.ID), Attempt: 1, Chat: p.key.chatKey(), Sender: p.user(ctx, ev.Sender), Time: time.UnixMilli(ev.OriginServerTS), Body: body}
	if p.isGateway() {
		cmd.Echo, err = p.echo(ctx, ev)
	}
	return cmd, err
}

// echo is what a gateway called the message that became the event, "" if it did
// not come from there.
func (p *portal) echo(ctx context.Context, ev *appservice.Event) (backends.MessageID, error) {
	for {
		wait := p.sending.wait(ev.Sender)
		m, err := p.byEvent(ctx, ev.ID)
		if err != nil {
			return "", err
		}
		if m != nil && m.sender == ev.Sender {
			return m.id, nil
		}
		if wait == nil {
			return "", nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// parseOptions for the HTML of an event.
func (p *portal) parseOptions(ctx context.Context, ev *appservice.Event) mhtml.ParseOptions {
	return mhtml.ParseOptions{
		User:  func(id string) string { return p.mentionOf(ctx, id) },
		Media: func(mxc string) string { return p.b.media.link(mxc, ev.ID, "emoji", ev.OriginServerTS) },
	}
}

func (p *portal) messageBody(ctx context.Context, ev *appservice.Event) (backends.Body, error) {
	c := decodeInto[content](ev.Content)
	if c.Body == "" && c.MsgType == "" && ev.Type != typeSticker { // redacted, or no message at all
		return nil, nil
	}
	if c.RelatesTo.RelType == relReplace && len(c.NewContent) > 0 {
		return p.editBody(ctx, ev, &c)
	}
	m := p.message(ctx, ev, &c)
	var err error
	m.Thread, m.ReplyTo, err = p.references(ctx, &c)
	return m, err
}

// message is the content of a message without what it refers to.
func (p *portal) message(ctx context.Context, ev *appservice.Event, c *content) *backends.Message {
	m := &backends.Message{Kind: kinds[c.MsgType]}
	if c.isFile(ev.Type) {
		m.Files = []backends.File{c.file(func(mxc, name string) string { return p.b.media.link(mxc, ev.ID, name, ev.OriginServerTS) })}
		if !c.caption() {
			return m
		}
	}
	m.Text = c.textOf(p.parseOptions(ctx, ev))
	if c.MsgType == "m.location" && c.GeoURI != "" {
		m.Text = append(m.Text, richtext.Node{Kind: richtext.Break}, richtext.Node{Kind: richtext.Link, URL: c.GeoURI, Children: richtext.Plain(c.GeoURI)})
	}
	return m
}

// references are the thread and the message that a message belongs to.
func (p *portal) references(ctx context.Context, c *content) (thread backends.MessageID, reply *backends.Quote, err error) {
	if c.RelatesTo.RelType == relThread {
		root, err := p.nameOf(ctx, c.RelatesTo.EventID)
		if err != nil {
			return "", nil, err
		}
		if root != nil {
			thread = root.id
		}
	}
	to := c.RelatesTo.InReplyTo.EventID
	if to == "" || c.RelatesTo.IsFallingBack && thread != "" {
		return thread, nil, nil
	}
	reply, err = p.quote(ctx, to)
	return thread, reply, err
}

// quote describes a message of the room. Of an event that is not of this room, or
// not there, nothing is told.
func (p *portal) quote(ctx context.Context, id matrix.EventID) (*backends.Quote, error) {
	q := &backends.Quote{}
	m, err := p.nameOf(ctx, id)
	if err != nil {
		return nil, err
	}
	if m != nil {
		q.ID = m.id
		if m.kind == editMapping {
			q.ID = m.target
		}
	}
	rm := p.bound()
	if rm == nil {
		return q, nil
	}
	ev, err := rm.event(ctx, id)
	if err != nil || ev.RoomID != "" && ev.RoomID != rm.id {
		return q, ctx.Err()
	}
	c := decodeInto[content](ev.Content)
	q.Sender, q.Text = p.user(ctx, ev.Sender), excerpt(c.textOf(p.parseOptions(ctx, ev)).Plain())
	return q, nil
}

// editBody makes an Edit; Target is empty if the network does not have the message.
func (p *portal) editBody(ctx context.Context, ev *appservice.Event, c *content) (backends.Body, error) {
	n := decodeInto[content](c.NewContent)
	e := &backends.Edit{New: *p.message(ctx, ev, &n)}
	q, err := p.quote(ctx, c.RelatesTo.EventID)
	if err != nil {
		return nil, err
	}
	e.Target, e.Old = q.ID, q.Text
	return e, nil
}

func (p *portal) reactionBody(ctx context.Context, ev *appservice.Event) (backends.Body, error) {
	c := decodeInto[content](ev.Content)
	if c.RelatesTo.Key == "" || c.RelatesTo.EventID == "" {
		return nil, nil
	}
	q, err := p.quote(ctx, c.RelatesTo.EventID)
	if err != nil {
		return nil, err
	}
	return &backends.Reaction{Target: q.ID, Key: cleanText(c.RelatesTo.Key), Quote: q}, nil
}

// redacted is the event that a redaction is of.
func redacted(ev *appservice.Event) (id matrix.EventID, reason string) {
	c := decodeInto[struct {
		Redacts matrix.EventID `json:"redacts"` // since room version 11
		Reason  string         `json:"reason"`
	}](ev.Content)
	if c.Redacts != "" {
		return c.Redacts, c.Reason
	}
	return ev.Redacts, c.Reason
}

func (p *portal) redactionBody(ctx context.Context, ev *appservice.Event) (backends.Body, error) {
	id, reason := redacted(ev)
	m, err := p.nameOf(ctx, id)
	if err != nil || m == nil {
		return nil, err
	}
	if m.kind == reactionMapping {
		return &backends.Reaction{Target: m.target, Key: m.reactKey, Removed: true}, nil
	}
	return &backends.Removal{Target: m.id, Reason: cleanText(reason), Moderated: m.sender != ev.Sender}, nil
}

func (p *portal) nameBody(_ context.Context, ev *appservice.Event) (backends.Body, error) {
	c := decodeInto[struct {
		Name string `json:"name"`
	}](ev.Content)
	return &backends.ChatInfo{Chat: p.key.chatKey(), Name: &c.Name}, nil
}

func (p *portal) topicBody(_ context.Context, ev *appservice.Event) (backends.Body, error) {
	c := decodeInto[struct {
		Topic string `json:"topic"`
	}](ev.Content)
	topic := cleanText(c.Topic)
	return &backends.ChatInfo{Chat: p.key.chatKey(), Topic: &topic}, nil
}

// encryptedBody never makes one: nobody but its members can read the room.
func (p *portal) encryptedBody(context.Context, *appservice.Event) (backends.Body, error) {
	return nil, &cannotSend{"This room is encrypted, so messages cannot be read by the bridge and are not passed on."}
}

// memberBody makes a Member, or a Profile if only that has changed.
func (p *portal) memberBody(ctx context.Context, ev *appservice.Event) (backends.Body, error) {
	if ev.StateKey == nil {
		return nil, nil
	}
	now := decodeInto[memberContent](ev.Content)
	before := decodeInto[memberContent](decodeInto[unsigned](ev.Unsigned).PrevContent)
	target := matrix.UserID(*ev.StateKey)
	if target == p.b.client.Bot().UserID() {
		return nil, nil
	}
	u := p.user(ctx, target)
	if now.DisplayName != "" {
		u.Name = now.DisplayName
	}
	if now.Membership == matrix.Join && before.Membership == matrix.Join {
		if now.DisplayName == before.DisplayName && now.AvatarURL == before.AvatarURL {
			return nil, nil
		}
		return &backends.Profile{User: u}, nil
	}
	action := actionOf(now.Membership, before.Membership, ev.Sender == target)
	if action == "" {
		return nil, nil
	}
	return &backends.Member{Action: action, User: u, Reason: cleanText(now.Reason)}, nil
}

// actionOf names a change of membership, "" if it is none that others see.
func actionOf(now, before string, self bool) backends.Action {
	switch {
	case now == matrix.Join:
		return backends.Joined
	case now == matrix.Ban:
		return backends.Banned
	case now == matrix.Invite:
		return backends.Invited
	case now == matrix.Knock:
		return backends.Knocked
	case now != matrix.Leave:
		return ""
	case before == matrix.Ban:
		return backends.Unbanned
	case self:
		return backends.Left
	}
	return backends.Kicked
}

// powerBody makes a RoleChange for the one whose power has changed. Several at once
// are told as the first of them: no network has a command for many.
func (p *portal) powerBody(ctx context.Context, ev *appservice.Event) (backends.Body, error) {
	now := decodeInto[powerLevels](ev.Content)
	before := decodeInto[powerLevels](decodeInto[unsigned](ev.Unsigned).PrevContent)
	for u := range merged(now.Users, before.Users) {
		if a, b := now.roleOf(u), before.roleOf(u); a != b {
			return &backends.RoleChange{User: p.user(ctx, u), Role: a}, nil
		}
	}
	return nil, nil
}

func merged[V any](a, b map[matrix.UserID]V) map[matrix.UserID]V {
	out := map[matrix.UserID]V{}
	maps.Copy(out, b)
	maps.Copy(out, a)
	return out
}

// needs is the event that must have its name on the network before ev can be
// converted, "" if there is none.
func needs(ev *appservice.Event) matrix.EventID {
	if ev.Type == matrix.TypeRedaction {
		id, _ := redacted(ev)
		return id
	}
	r := decodeInto[content](ev.Content).RelatesTo
	return matrix.EventID(firstOf(string(r.EventID), string(r.InReplyTo.EventID)))
}

// powerLevels is the content of m.room.power_levels, as far as we read it.
type powerLevels struct {
	Users         map[matrix.UserID]level `json:"users"`
	UsersDefault  level                   `json:"users_default"`
	Events        map[string]level        `json:"events"`
	EventsDefault level                   `json:"events_default"`
	StateDefault  *level                  `json:"state_default"`
}

// level is a power level; old room versions allow strings.
type level int64

// UnmarshalJSON takes a number, or a string of one.
func (l *level) UnmarshalJSON(b []byte) error {
	var n json.Number
	if err := json.Unmarshal(b, &n); err != nil {
		return fmt.Errorf("power level: %w", err)
	}
	f, err := n.Float64()
	*l = level(f)
	return err
}

func (pl *powerLevels) of(u matrix.UserID) level {
	if l, ok := pl.Users[u]; ok {
		return l
	}
	return pl.UsersDefault
}

func (pl *powerLevels) stateDefault() level {
	if pl.StateDefault != nil {
		return *pl.StateDefault
	}
	return 50
}

func (pl *powerLevels) roleOf(u matrix.UserID) backends.Role {
	return roleAt(pl.of(u), pl.EventsDefault)
}

// roleAt is the role that a power level stands for, where speaking needs another.
func roleAt(l, speak level) backends.Role {
	switch {
	case l >= 100:
		return backends.Owner
	case l >= 50:
		return backends.Moderator
	case l < speak:
		return backends.Visitor
	case speak > 0:
		return backends.Voice
	}
	return backends.Participant
}

// power returns what a user may do in a room, and the levels. The creators of a room
// of version 12 have more than anybody.
func (b *Bridge) power(ctx context.Context, as *appservice.Intent, id matrix.RoomID, u matrix.UserID) (level, *powerLevels, error) {
	var pl powerLevels
	err := as.StateEvent(ctx, id, matrix.TypePowerLevels, "", &pl)
	if e, ok := errors.AsType[*appservice.Error](err); ok && e.Code == matrix.CodeNotFound {
		err = nil
	}
	if err != nil {
		return 0, nil, err
	}
	if _, named := pl.Users[u]; named {
		return pl.of(u), &pl, nil
	}
	state, err := as.State(ctx, id)
	if err != nil {
		return 0, nil, err
	}
	if isCreator(state, u) {
		return 1 << 53, &pl, nil
	}
	return pl.of(u), &pl, nil
}

// versionsWithCreators are the room versions that give their creators endless power;
// in the others a creator that power levels do not name has none.
//
// Spec: https://spec.matrix.org/v1.19/rooms/v12/#authorisation-rules
func isCreator(state []appservice.Event, u matrix.UserID) bool {
	for i := range state {
		ev := &state[i]
		if ev.Type != matrix.TypeCreate {
			continue
		}
		c := decodeInto[struct {
			Version    string          `json:"room_version"`
			Additional []matrix.UserID `json:"additional_creators"`
		}](ev.Content)
		if !creatorsRule(c.Version) {
			return false
		}
		if slices.Contains(c.Additional, u) {
			return true
		}
		return ev.Sender == u
	}
	return false
}

// creatorsRule reports whether a room version is 12 or later.
func creatorsRule(version string) bool {
	var n int
	_, err := fmt.Sscanf(version, "%d", &n)
	return err == nil && n >= 12
}
