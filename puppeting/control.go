package puppeting

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// controls reports whether an event asks something of the bridge itself: a command,
// an invitation of one of ours, or that a room has a successor.
func (b *Bridge) controls(ev *appservice.Event) bool {
	switch ev.Type {
	case matrix.TypeMember:
		if ev.StateKey == nil {
			return false
		}
		invited := decodeInto[memberContent](ev.Content).Membership == matrix.Invite
		return invited && b.isOurs(matrix.UserID(*ev.StateKey)) && !b.isOurs(ev.Sender)
	case matrix.TypeTombstone:
		return b.room(ev.RoomID) != nil
	}
	return isCommand(ev) && b.networkOf(ev.Sender) == nil
}

// isOurs reports whether a user is the bot or a ghost.
func (b *Bridge) isOurs(u matrix.UserID) bool {
	return u == b.client.Bot().UserID() || b.networkOf(u) != nil
}

// controlTimeout bounds what an event asks of the bridge.
const controlTimeout = 2 * time.Minute

// kickControl starts on what was asked of the bridge and is not in hand yet.
func (b *Bridge) kickControl(ctx context.Context) {
	rows, err := queryOutbox(ctx, b.db, `WHERE network = '' ORDER BY seq LIMIT 1000`)
	if err != nil {
		b.log.Error("commands cannot be read", "err", err)
		return
	}
	for _, row := range rows {
		b.mu.Lock()
		busy := b.busy[row.seq]
		b.busy[row.seq] = true
		b.mu.Unlock()
		if !busy {
			b.crew.Go(func(ctx context.Context) { b.control(ctx, row) })
		}
	}
}

// control does what a row asks, and then removes it. What the homeserver could not
// be reached for is done when the bridge starts again, or with the next command.
func (b *Bridge) control(ctx context.Context, row *outRow) {
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.busy, row.seq)
	}()
	// It may be done already, if it was read before.
	if rows, err := queryOutbox(ctx, b.db, `WHERE seq = $1`, row.seq); err != nil || len(rows) == 0 {
		return
	}
	bounded, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	err := b.carryOut(bounded, &row.event)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		b.log.Warn("what was asked of the bridge failed", "type", row.event.Type, "room_id", row.event.RoomID, "err", err)
		if refusalOf(err) == nil && row.queued.After(time.Now().Add(-time.Hour)) {
			return
		}
	}
	err = b.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`DELETE FROM bridge_outbox WHERE seq = $1`, row.seq)
		return err
	})
	if err != nil {
		b.log.Error("a command cannot be removed", "err", err)
	}
}

func (b *Bridge) carryOut(ctx context.Context, ev *appservice.Event) error {
	switch ev.Type {
	case matrix.TypeMember:
		return b.invited(ctx, ev)
	case matrix.TypeTombstone:
		return b.tombstone(ctx, ev)
	}
	return b.runCommand(ctx, ev)
}

// invited accepts invitations: the bot everywhere, a ghost for a private chat or
// into a room of its network.
func (b *Bridge) invited(ctx context.Context, ev *appservice.Event) error {
	u := matrix.UserID(*ev.StateKey)
	if u == b.client.Bot().UserID() {
		if _, err := b.client.Bot().Join(ctx, string(ev.RoomID), string(ev.Sender.Server())); err != nil {
			return err
		}
		if b.room(ev.RoomID) == nil {
			b.say(ctx, ev.RoomID, hashID("hello", string(ev.ID)), "Hello. "+usage())
		}
		return nil
	}
	n := b.networkOf(u)
	id, ok := b.remoteOf(ctx, n, u)
	if !ok {
		return nil
	}
	if rm := b.room(ev.RoomID); rm != nil && slices.ContainsFunc(rm.list(), func(p *portal) bool { return p.net == n }) {
		return nil // the network is told of the invitation; the ghost comes when its user does
	}
	return b.openDirect(ctx, n, id, ev)
}

// openDirect makes a private chat of a room that a ghost is invited to.
func (b *Bridge) openDirect(ctx context.Context, n *network, id backends.UserID, ev *appservice.Event) error {
	gh, err := b.ghosts.ensure(ctx, n.name, backends.User{ID: id})
	if err != nil {
		return err
	}
	intent := b.client.As(gh.user)
	if !n.capabilities().Direct {
		return intent.Leave(ctx, ev.RoomID, n.title+" has no private chats")
	}
	if _, err := intent.Join(ctx, string(ev.RoomID), string(ev.Sender.Server())); err != nil {
		return err
	}
	members, err := intent.JoinedMembers(ctx, ev.RoomID)
	if err != nil {
		return err
	}
	if len(members) > 2 {
		return intent.Leave(ctx, ev.RoomID, "I can only hold private chats here. Use "+commandPrefix+" link to connect a room.")
	}
	k := portalKey{network: n.name, chat: backends.ChatID(id), account: accountID(ev.Sender)}
	p, err := b.establish(ctx, portalRow{portalKey: k, room: ev.RoomID, kind: directPortal, agent: gh.user})
	if err != nil {
		return err
	}
	err = p.join(ctx)
	if r, ok := errors.AsType[*backends.Refusal](err); ok {
		p.notice(ctx, hashID("refused", string(ev.ID)), r.Message)
		return nil
	}
	if errors.Is(err, errNotOpen) {
		return nil
	}
	return err
}

// tombstone takes the portals of a room to its successor.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#room-upgrades
func (b *Bridge) tombstone(ctx context.Context, ev *appservice.Event) error {
	c := decodeInto[struct {
		Replacement string `json:"replacement_room"`
	}](ev.Content)
	to, err := matrix.ParseRoomID(c.Replacement)
	rm := b.room(ev.RoomID)
	if err != nil || rm == nil {
		return nil
	}
	for _, p := range rm.list() {
		agent := p.intent()
		if p.isGateway() {
			continue
		}
		if _, err := agent.Join(ctx, string(to), string(ev.Sender.Server())); err != nil {
			return err
		}
		p.mu.Lock()
		row := portalRow{portalKey: p.key, room: to, kind: p.kind, agent: p.agent}
		p.mu.Unlock()
		q, err := b.establish(ctx, row)
		if err != nil {
			return err
		}
		b.crew.Go(func(ctx context.Context) { q.net.rejoin(ctx, q) })
	}
	return nil
}

// chatCommand is a command to the bot.
type chatCommand struct {
	args  string // for the usage
	help  string
	power bool // needs the power to link
	min   int  // arguments
	run   func(b *Bridge, ctx context.Context, ev *appservice.Event, args []string) (string, error)
}

var chatCommands map[string]chatCommand

func init() {
	chatCommands = map[string]chatCommand{
		"help":   {"", "shows this", false, 0, func(*Bridge, context.Context, *appservice.Event, []string) (string, error) { return usage(), nil }},
		"link":   {"<network> <chat>", "connects this room with a chat", true, 2, (*Bridge).linkCommand},
		"unlink": {"[<network> [<chat>]]", "undoes that", true, 0, (*Bridge).unlinkCommand},
		"status": {"", "shows networks and what this room is connected with", false, 0, (*Bridge).statusCommand},
	}
}

func usage() string {
	var b strings.Builder
	b.WriteString("Commands:")
	for _, name := range []string{"link", "unlink", "status", "help"} {
		c := chatCommands[name]
		fmt.Fprintf(&b, "\n%s – %s", strings.TrimSpace(commandPrefix+" "+name+" "+c.args), c.help)
	}
	return b.String()
}

// runCommand answers a command in the room.
func (b *Bridge) runCommand(ctx context.Context, ev *appservice.Event) error {
	words, _ := commandOf(ev)
	if len(words) == 0 {
		words = []string{"help"}
	}
	answer, err := b.dispatch(ctx, ev, words[0], words[1:])
	if r, ok := errors.AsType[*backends.Refusal](err); ok {
		b.log.Info("a command was refused", "command", words[0], "room_id", ev.RoomID, "user_id", ev.Sender, "err", r)
		answer, err = "That did not work: "+r.Message, nil
	}
	if err != nil {
		return err
	}
	b.say(ctx, ev.RoomID, hashID("answer", string(ev.ID)), answer)
	return nil
}

func (b *Bridge) dispatch(ctx context.Context, ev *appservice.Event, name string, args []string) (string, error) {
	c, ok := chatCommands[name]
	if !ok || len(args) < c.min {
		return usage(), nil
	}
	if c.power && !slices.Contains(b.o.Admins, ev.Sender) {
		has, pl, err := b.power(ctx, b.client.Bot(), ev.RoomID, ev.Sender)
		if err != nil {
			return "", err
		}
		need := level(b.o.LinkPower)
		if need == 0 {
			need = pl.stateDefault()
		}
		if has < need {
			return fmt.Sprintf("You need power level %d in this room for that; you have %d.", need, has), nil
		}
	}
	return c.run(b, ctx, ev, args)
}

func (b *Bridge) linkCommand(ctx context.Context, ev *appservice.Event, args []string) (string, error) {
	n := b.networks[args[0]]
	if n == nil || !n.linkable() {
		return "There is no network " + args[0] + ". There are: " + strings.Join(b.linkable(), ", "), nil
	}
	info, err := n.resolve(ctx, strings.Join(args[1:], " "))
	if err != nil {
		return "", orRefusal(err, n.title+" cannot be reached")
	}
	k := portalKey{network: n.name, chat: info.Chat.Chat}
	if p := b.findPortal(k); p != nil && p.bound() != nil {
		if p.bound().id == ev.RoomID {
			return "This room is connected with " + string(k.chat) + " already.", nil
		}
		return "Another room stands for " + string(k.chat) + " on " + n.title + " already.", nil
	}
	p, err := b.establish(ctx, portalRow{portalKey: k, room: ev.RoomID, kind: linkedPortal, agent: b.client.Bot().UserID()})
	if err != nil {
		return "", err
	}
	p.announce(ctx)
	err = p.join(ctx)
	if r, ok := errors.AsType[*backends.Refusal](err); ok && r.Code != backends.RefusedUnavailable {
		return "", errors.Join(err, b.dissolve(ctx, p))
	}
	if err != nil {
		p.log.Warn("the chat cannot be joined yet", "err", err)
		b.crew.Go(func(ctx context.Context) { n.rejoin(ctx, p) })
		return "This room will be connected with " + string(k.chat) + " when " + n.title + " can be reached.", nil
	}
	return "This room is now connected with " + string(k.chat) + " on " + n.title + ".", nil
}

// orRefusal keeps a refusal, and makes one of another error.
func orRefusal(err error, message string) error {
	if _, ok := errors.AsType[*backends.Refusal](err); ok {
		return err
	}
	return &backends.Refusal{Code: backends.RefusedUnavailable, Message: message}
}

// linkable reports whether the network has chats of its own, besides what it shows of
// our rooms as a gateway.
func (n *network) linkable() bool {
	c := n.capabilities()
	return !c.Gateway || c.Accounts
}

// linkable are the names of the networks that rooms can be linked to.
func (b *Bridge) linkable() []string {
	var names []string
	for name, n := range b.networks {
		if n.linkable() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (b *Bridge) unlinkCommand(ctx context.Context, ev *appservice.Event, args []string) (string, error) {
	rm := b.room(ev.RoomID)
	if rm == nil {
		return "This room is not connected with anything.", nil
	}
	done := 0
	for _, p := range rm.list() {
		if p.isGateway() || len(args) > 0 && p.key.network != args[0] || len(args) > 1 && string(p.key.chat) != args[1] {
			continue
		}
		if err := b.unlink(ctx, p); err != nil {
			return "", err
		}
		done++
	}
	if done == 1 {
		return "Done: 1 connection removed.", nil
	}
	return fmt.Sprintf("Done: %d connections removed.", done), nil
}

// unlink leaves the chat and takes its ghosts out of the room.
func (b *Bridge) unlink(ctx context.Context, p *portal) error {
	rm := p.bound()
	if rm == nil {
		return nil
	}
	members, err := rm.memberIDs(ctx)
	if err != nil {
		return err
	}
	if err := b.dissolve(ctx, p); err != nil {
		return err
	}
	if nw, err := p.net.get(); err == nil {
		if err := nw.Leave(ctx, p.key.chatKey()); err != nil {
			p.log.Info("the chat could not be left", "err", err)
		}
	}
	for _, u := range members {
		if b.networkOf(u) == p.net {
			if err := b.client.As(u).Leave(ctx, rm.id, "unlinked"); err != nil {
				p.log.Info("a ghost could not leave", "user_id", u, "err", err)
			}
		}
	}
	return nil
}

func (b *Bridge) statusCommand(ctx context.Context, ev *appservice.Event, _ []string) (string, error) {
	var out strings.Builder
	names := make([]string, 0, len(b.networks))
	for name := range b.networks {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		phase, reason := b.networks[name].state()
		if reason != "" {
			reason = ", " + reason
		}
		fmt.Fprintf(&out, "%s: %s%s\n", name, phase, reason)
	}
	rm := b.room(ev.RoomID)
	if rm == nil {
		return out.String() + "This room is not connected with anything.", nil
	}
	for _, p := range rm.list() {
		var waiting, dead int
		err := b.db.QueryRow(ctx, `SELECT (SELECT count(*) FROM bridge_outbox WHERE network = $1 AND chat = $2 AND account = $3),
			(SELECT count(*) FROM bridge_deadletter WHERE network = $1 AND chat = $2 AND account = $3)`,
			p.key.network, string(p.key.chat), string(p.key.account)).Scan(&waiting, &dead)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "This room is connected with %s on %s: %d waiting, %d undeliverable.\n", p.key.chat, p.net.title, waiting, dead)
	}
	return strings.TrimSpace(out.String()), nil
}
