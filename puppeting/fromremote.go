package puppeting

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/backends/richtext"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	mhtml "github.com/gjallar-im/gjallar/puppeting/html"
)

// inbox is the queue of events from a chat, and the changes of membership that are
// collected to be applied when nothing else is to be done.
type inbox struct {
	mu      sync.Mutex
	queue   []inItem                            // guarded by mu
	quiet   map[backends.UserID]backends.Member // the newest for each; guarded by mu
	running bool                                // guarded by mu
	wake    chan struct{}
}

func (i *inbox) init() {
	i.wake, i.quiet = make(chan struct{}, 1), map[backends.UserID]backends.Member{}
}

// inItem is an event and who waits for what becomes of it; done may be nil.
type inItem struct {
	ev   *backends.Event
	done func(backends.Receipt)
}

func (i *inbox) put(p *portal, it inItem) {
	i.mu.Lock()
	i.queue = append(i.queue, it)
	start := !i.running
	i.running = true
	i.mu.Unlock()
	if start {
		p.b.crew.Go(p.workIn)
		return
	}
	signal(i.wake)
}

func (i *inbox) next() (it inItem, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.queue) == 0 {
		return it, false
	}
	it = i.queue[0]
	i.queue = i.queue[1:]
	return it, true
}

func (i *inbox) hush(m backends.Member) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.quiet[m.User.ID] = m
}

// nextQuiet takes any of the quiet changes.
func (i *inbox) nextQuiet() (m backends.Member, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for id, m := range i.quiet {
		delete(i.quiet, id)
		return m, true
	}
	return m, false
}

// unhush forgets a quiet change that something newer has made void.
func (i *inbox) unhush(id backends.UserID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.quiet, id)
}

// end stops the goroutine if there is nothing left.
func (i *inbox) end() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.queue) > 0 || len(i.quiet) > 0 {
		return false
	}
	i.running = false
	return true
}

// stop ends the goroutine whatever is left.
func (i *inbox) stop() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.running = false
}

// workIn handles the events of a chat in order. It ends when there are none.
func (p *portal) workIn(ctx context.Context) {
	var commits sync.WaitGroup
	defer commits.Wait()
	pl := newPipeline(p, &commits)
	defer pl.sends.Wait()
	for ctx.Err() == nil {
		it, ok := p.in.next()
		if ok && pl.take(ctx, it) {
			continue
		}
		pl.drain(ctx)
		if ok {
			p.fromRemote(ctx, it, &commits)
			continue
		}
		if p.in.end() {
			p.b.release(p)
			return
		}
		p.workQuiet(ctx)
	}
	p.in.stop()
}

// workQuiet applies quiet changes after a pause, until something louder comes.
func (p *portal) workQuiet(ctx context.Context) {
	timer := time.NewTimer(p.b.o.Quiet)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.in.wake:
		return
	case <-ctx.Done():
		return
	}
	for len(p.in.wake) == 0 && ctx.Err() == nil {
		m, ok := p.in.nextQuiet()
		if !ok {
			return
		}
		if err := p.member(ctx, &backends.Event{Sender: m.User}, &m); err != nil {
			p.log.Debug("a quiet change of membership was not applied", "err", err)
		}
	}
}

// release forgets a portal that was only known by events of a chat without a room.
func (b *Bridge) release(p *portal) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	if p.bound() == nil && !p.in.running && len(p.in.queue) == 0 && b.portals[p.key] == p {
		delete(b.portals, p.key)
	}
}

// outcome of handling an event. With mappings its receipt waits for their commit.
type outcome struct {
	receipt  backends.Receipt
	mappings []*mapping
	mark     backends.Mark
}

// fromRemote handles one event, again and again while the homeserver cannot be
// reached, for what follows must not overtake it.
func (p *portal) fromRemote(ctx context.Context, it inItem, commits *sync.WaitGroup) {
	switch it.ev.Body.(type) {
	case *backends.Removal, *backends.Reaction: // they look for rows of what was said before
		commits.Wait()
	}
	for try := 0; ; try++ {
		out, err := p.handle(ctx, it.ev)
		refusal := refusalOf(err)
		switch {
		case err == nil && len(out.mappings) > 0:
			p.commit(it, out, commits)
		case err == nil:
			acknowledge(it.done, out.receipt)
		case refusal != nil:
			p.log.Warn("an event was refused", "err", err)
			acknowledge(it.done, backends.Receipt{Err: refusal})
		case ctx.Err() != nil:
			return
		default:
			p.log.Warn("an event waits for the homeserver", "err", err)
			select {
			case <-time.After(min(100*time.Millisecond<<min(try, 9), 30*time.Second)):
				continue
			case <-ctx.Done():
			}
		}
		return
	}
}

// commit stores the names of what was sent and acknowledges it then. The next event
// is handled meanwhile: the cache has the names already.
func (p *portal) commit(it inItem, out outcome, commits *sync.WaitGroup) {
	wait := p.b.db.Go(func(tx *sqldb.Tx) error {
		for _, m := range out.mappings {
			m.queue(tx)
		}
		if out.mark.ID != "" {
			queueMark(tx, p.key, out.mark)
		}
		return nil
	})
	commits.Go(func() {
		if err := wait(); err != nil {
			p.log.Error("a message cannot be mapped", "err", err)
			acknowledge(it.done, backends.Receipt{Err: &backends.Refusal{Code: backends.RefusedUnavailable, Message: "the bridge cannot store it"}})
			return
		}
		acknowledge(it.done, out.receipt)
	})
}

// refusalOf is what a network is told of an error, nil if it is to be tried again.
func refusalOf(err error) *backends.Refusal {
	if err == nil {
		return nil
	}
	if r, ok := errors.AsType[*backends.Refusal](err); ok {
		return r
	}
	e, ok := errors.AsType[*appservice.Error](err)
	if !ok || e.Status >= 500 || e.Status == 429 || e.Status == 401 || e.Status == 0 || e.Code == "" {
		return nil
	}
	if code, ok := refusalCodes[e.Code]; ok {
		return &backends.Refusal{Code: code, Message: e.Message}
	}
	return &backends.Refusal{Code: backends.RefusedInvalid, Message: e.Message}
}

var refusalCodes = map[string]backends.RefusalCode{
	matrix.CodeForbidden: backends.RefusedForbidden, matrix.CodeNotFound: backends.RefusedNotFound, matrix.CodeTooLarge: backends.RefusedTooLarge,
	matrix.CodeRoomInUse: backends.RefusedConflict, matrix.CodeUserInUse: backends.RefusedConflict, matrix.CodeUnrecognized: backends.RefusedUnsupported,
}

func refuse(code backends.RefusalCode, message string) error {
	return &backends.Refusal{Code: code, Message: message}
}

// handle does what an event says. An error that refusalOf does not know is passing.
func (p *portal) handle(ctx context.Context, ev *backends.Event) (outcome, error) {
	if ev.Origin != "" {
		return outcome{}, nil // one of ours made it; it is where it came from
	}
	switch body := ev.Body.(type) {
	case *backends.Message:
		return p.messageFromRemote(ctx, ev, body)
	case *backends.Edit:
		return p.editFromRemote(ctx, ev, body)
	case *backends.Reaction:
		return p.reactionFromRemote(ctx, ev, body)
	case *backends.Removal:
		return outcome{}, p.removalFromRemote(ctx, ev, body)
	case *backends.Member:
		return outcome{}, p.memberFromRemote(ctx, ev, body)
	case *backends.Members:
		return outcome{}, p.membersFromRemote(ctx, body)
	case *backends.Profile:
		return outcome{}, p.profileFromRemote(ctx, ev, body)
	case *backends.ChatInfo:
		return outcome{}, p.infoFromRemote(ctx, ev, body)
	case *backends.RoleChange:
		return outcome{}, p.roleFromRemote(ctx, ev, body)
	case *backends.Typing:
		return outcome{}, p.typingFromRemote(ctx, ev, body)
	case *backends.Read:
		return outcome{}, p.readFromRemote(ctx, ev, body)
	case *backends.Gap:
		p.notice(ctx, hashID("gap", p.key.network, string(p.key.chat), body.To.String()), "Messages from "+p.net.title+" between "+body.From.UTC().Format(time.RFC3339)+" and "+body.To.UTC().Format(time.RFC3339)+" may be missing here.")
	}
	return outcome{}, nil
}

// isEcho reports whether an event is what a user of ours did, seen again on the
// network. In a gateway's chat it is how users of ours speak.
func (p *portal) isEcho(ev *backends.Event) bool {
	return !p.isGateway() && ev.Sender.Account != ""
}

// known is the receipt of an event that was handled before, nil if it was not.
func (p *portal) known(ctx context.Context, id backends.MessageID) (*outcome, error) {
	m, err := p.byID(ctx, id)
	if err != nil || m == nil {
		return nil, err
	}
	return &outcome{receipt: backends.Receipt{ID: backends.MessageID(m.event)}}, nil
}

// speaker is who an event's sender is in the room, joined and ready to speak.
func (p *portal) speaker(ctx context.Context, rm *room, u backends.User) (*appservice.Intent, error) {
	intent, err := p.actor(ctx, u)
	if err != nil {
		return nil, err
	}
	return intent, p.joinRoom(ctx, rm, intent)
}

// actor is who an event's sender is on the homeserver.
func (p *portal) actor(ctx context.Context, u backends.User) (*appservice.Intent, error) {
	if u.Account != "" {
		if !p.mayActAs(ctx, userID(u.Account)) {
			return nil, refuse(backends.RefusedForbidden, "this network may not speak as that user")
		}
		return p.b.client.As(userID(u.Account)), nil
	}
	if u.ID == "" {
		return nil, refuse(backends.RefusedInvalid, "the event has no sender")
	}
	gh, err := p.b.ghosts.ensure(ctx, p.key.network, u)
	if err != nil {
		return nil, err
	}
	return p.b.client.As(gh.user), nil
}

// joinRoom brings a user of ours into a room, by invitation if it must be.
func (p *portal) joinRoom(ctx context.Context, rm *room, intent *appservice.Intent) error {
	if err := rm.loadMembers(ctx); err != nil {
		return err
	}
	if _, joined := rm.member(ctx, intent.UserID()); joined {
		return nil
	}
	if !p.standsForChat() {
		return refuse(backends.RefusedForbidden, "you are not in this room")
	}
	_, err := intent.Join(ctx, string(rm.id))
	if isForbidden(err) {
		if p.intent().Invite(ctx, rm.id, intent.UserID(), "") == nil {
			_, err = intent.Join(ctx, string(rm.id))
		}
	}
	if err != nil {
		return err
	}
	profile := appservice.Profile{DisplayName: p.b.ghostName(ctx, intent.UserID())}
	rm.setMember(intent.UserID(), true, profile)
	return nil
}

func isForbidden(err error) bool {
	e, ok := errors.AsType[*appservice.Error](err)
	return ok && e.Code == matrix.CodeForbidden
}

// target returns the room an event goes to, making one for a private chat.
func (p *portal) target(ctx context.Context, ev *backends.Event) (*room, error) {
	if rm := p.bound(); rm != nil {
		return rm, p.invitePeer(ctx, rm)
	}
	if p.key.account != "" {
		return p.createDirect(ctx, ev)
	}
	return nil, refuse(backends.RefusedNotFound, "no room stands for this chat")
}

// piece is one Matrix event of a message.
type piece struct {
	typ     string
	content map[string]any
}

func (p *portal) messageFromRemote(ctx context.Context, ev *backends.Event, m *backends.Message) (outcome, error) {
	if known, err := p.known(ctx, ev.ID); err != nil || known != nil {
		return deref(known), err
	}
	if p.isEcho(ev) || len(m.Text) == 0 && len(m.Files) == 0 {
		return outcome{}, nil
	}
	rm, err := p.target(ctx, ev)
	if err != nil {
		return outcome{}, err
	}
	intent, err := p.speaker(ctx, rm, ev.Sender)
	if err != nil {
		return outcome{}, err
	}
	pieces, err := p.pieces(ctx, intent, m)
	if err != nil {
		return outcome{}, err
	}
	return p.sendPieces(ctx, rm, intent, ev, mapping{kind: messageMapping}, pieces)
}

func deref(o *outcome) outcome {
	if o == nil {
		return outcome{}
	}
	return *o
}

// sendPieces sends the events of a message and names them after it.
func (p *portal) sendPieces(ctx context.Context, rm *room, intent *appservice.Intent, ev *backends.Event, m mapping, pieces []piece) (outcome, error) {
	defer p.sending.begin(intent.UserID())()
	var out outcome
	for i, piece := range pieces {
		id, err := p.sendPiece(ctx, rm, intent, p.txnID(ev, i), piece, ev.Time)
		if err != nil {
			return outcome{}, err
		}
		one := m
		one.portalKey, one.id, one.part, one.event, one.room, one.sender = p.key, ev.ID, i, id, rm.id, intent.UserID()
		one.ts = ev.Time.UnixMilli()
		if ev.Time.IsZero() {
			one.ts = time.Now().UnixMilli()
		}
		if ev.ID != "" {
			out.mappings = append(out.mappings, &one)
			p.mapping.put(&one)
		}
		if i == 0 {
			out.receipt.ID = backends.MessageID(id)
		}
	}
	if m.kind == messageMapping && ev.ID != "" && !ev.Time.IsZero() {
		out.mark = p.advance(backends.Mark{ID: ev.ID, Time: ev.Time})
	}
	return out, nil
}

// txnID is the same for the same part of the same message, so that the homeserver
// makes one event of it however often it is sent.
func (p *portal) txnID(ev *backends.Event, part int) string {
	if ev.ID == "" {
		return ""
	}
	return hashID("txn", p.key.network, string(p.key.chat), string(p.key.account), string(ev.ID), strconv.Itoa(part))
}

// sendPiece sends an event. One who was removed from the room meanwhile joins again.
func (p *portal) sendPiece(ctx context.Context, rm *room, intent *appservice.Intent, txnID string, pc piece, ts time.Time) (matrix.EventID, error) {
	id, err := intent.Send(ctx, rm.id, pc.typ, txnID, pc.content, ts)
	if isForbidden(err) && p.standsForChat() {
		rm.setMember(intent.UserID(), false, appservice.Profile{})
		if p.joinRoom(ctx, rm, intent) == nil {
			id, err = intent.Send(ctx, rm.id, pc.typ, txnID, pc.content, ts)
		}
	}
	return id, err
}

// renderOptions for text from the network.
func (p *portal) renderOptions() mhtml.RenderOptions {
	return mhtml.RenderOptions{
		User:  func(user string) string { return string(p.mentioned(user)) },
		Media: p.b.media.mxcOf,
	}
}

// pieces converts a message: its text, then its files.
func (p *portal) pieces(ctx context.Context, intent *appservice.Intent, m *backends.Message) ([]piece, error) {
	text := m.Text
	rel, quote, err := p.relations(ctx, m)
	if err != nil {
		return nil, err
	}
	if quote != nil {
		text = quoted(quote, text)
	}
	var files []piece
	for _, f := range m.Files {
		s, err := p.b.media.fromRemote(ctx, intent, f)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			p.log.Info("a file is passed on as a link", "err", err)
			text = withLinks(text, []backends.File{f})
			continue
		}
		files = append(files, piece{matrix.TypeMessage, fileContent(f, s)})
	}
	var out []piece
	if len(text) > 0 || len(files) == 0 {
		out = append(out, piece{matrix.TypeMessage, p.textPiece(m.Kind, text)})
	}
	out = append(out, files...)
	if rel != nil {
		out[0].content["m.relates_to"] = rel
	}
	return out, nil
}

func (p *portal) textPiece(kind backends.MessageKind, text richtext.Doc) map[string]any {
	c := textContent(text, p.renderOptions())
	c["msgtype"] = firstOf(msgTypes[kind], "m.text")
	c["m.mentions"] = p.mentionsOf(text)
	return c
}

// mentionsOf lists who a text mentions.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#user-and-room-mentions
func (p *portal) mentionsOf(d richtext.Doc) map[string]any {
	out := map[string]any{}
	var users []matrix.UserID
	for _, n := range d.All() {
		if n.Kind != richtext.Mention {
			continue
		}
		if n.User == richtext.RoomMention {
			out["room"] = true
		} else if u := p.mentioned(n.User); u != "" {
			users = append(users, u)
		}
	}
	if len(users) > 0 {
		out["user_ids"] = users
	}
	return out
}

// relations says what a message refers to. A message that we do not have is quoted.
func (p *portal) relations(ctx context.Context, m *backends.Message) (rel map[string]any, quote *backends.Quote, err error) {
	var root, to *mapping
	if m.Thread != "" {
		if root, err = p.original(ctx, m.Thread); err != nil {
			return nil, nil, err
		}
	}
	if m.ReplyTo != nil {
		if to, err = p.original(ctx, m.ReplyTo.ID); err != nil {
			return nil, nil, err
		}
		if to == nil {
			quote = m.ReplyTo
		}
	}
	if root == nil && to == nil {
		return nil, quote, nil
	}
	rel = map[string]any{}
	if root != nil {
		rel["rel_type"], rel["event_id"], rel["is_falling_back"] = relThread, root.event, to == nil
		if to == nil {
			to = root
		}
	}
	rel["m.in_reply_to"] = map[string]any{"event_id": to.event}
	return rel, quote, nil
}

func (p *portal) editFromRemote(ctx context.Context, ev *backends.Event, e *backends.Edit) (outcome, error) {
	if known, err := p.known(ctx, ev.ID); err != nil || known != nil {
		return deref(known), err
	}
	if p.isEcho(ev) {
		return outcome{}, nil
	}
	m, err := p.original(ctx, e.Target)
	if err != nil {
		return outcome{}, err
	}
	if m == nil { // we do not have what it was before
		return p.messageFromRemote(ctx, ev, prefixed("* ", &e.New))
	}
	rm, err := p.target(ctx, ev)
	if err != nil {
		return outcome{}, err
	}
	intent, err := p.speaker(ctx, rm, ev.Sender)
	if err != nil {
		return outcome{}, err
	}
	if m.sender != intent.UserID() {
		return outcome{}, refuse(backends.RefusedForbidden, "only its author can edit a message")
	}
	c := p.editContent(m.event, e)
	return p.sendPieces(ctx, rm, intent, ev, mapping{kind: editMapping, target: m.id}, []piece{{matrix.TypeMessage, c}})
}

// editContent is the content of a replacement.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#event-replacements
func (p *portal) editContent(of matrix.EventID, e *backends.Edit) map[string]any {
	text := withLinks(e.New.Text, e.New.Files)
	c := p.textPiece(e.New.Kind, prefixed("* ", &backends.Message{Text: text}).Text)
	c["m.new_content"] = p.textPiece(e.New.Kind, text)
	c["m.relates_to"] = map[string]any{"rel_type": relReplace, "event_id": of}
	c["m.mentions"] = map[string]any{}
	return c
}

func (p *portal) reactionFromRemote(ctx context.Context, ev *backends.Event, r *backends.Reaction) (outcome, error) {
	if p.isEcho(ev) {
		return outcome{}, nil
	}
	m, err := p.original(ctx, r.Target)
	if err != nil {
		return outcome{}, err
	}
	if m == nil {
		return outcome{}, refuse(backends.RefusedNotFound, "the message reacted to is not known")
	}
	rm, err := p.target(ctx, ev)
	if err != nil {
		return outcome{}, err
	}
	intent, err := p.speaker(ctx, rm, ev.Sender)
	if err != nil {
		return outcome{}, err
	}
	if r.Removed {
		return outcome{}, p.unreact(ctx, rm, intent, m.id, r.Key)
	}
	return p.react(ctx, rm, intent, ev, m, r.Key)
}

func (p *portal) react(ctx context.Context, rm *room, intent *appservice.Intent, ev *backends.Event, m *mapping, key string) (outcome, error) {
	named := *ev
	if named.ID == "" { // the network has no name for it
		named.ID = backends.MessageID("reaction " + hashID(string(m.id), string(intent.UserID()), key, strconv.FormatInt(ev.Time.UnixNano(), 36)))
	}
	if known, err := p.known(ctx, named.ID); err != nil || known != nil {
		return deref(known), err
	}
	c := map[string]any{"m.relates_to": map[string]any{"rel_type": relAnnotate, "event_id": m.event, "key": cleanText(key)}}
	return p.sendPieces(ctx, rm, intent, &named, mapping{kind: reactionMapping, target: m.id, reactKey: key}, []piece{{matrix.TypeReaction, c}})
}

// unreact takes back a reaction of the user's.
func (p *portal) unreact(ctx context.Context, rm *room, intent *appservice.Intent, target backends.MessageID, key string) error {
	list, err := queryMessages(ctx, p.b.db, `WHERE network = $1 AND chat = $2 AND account = $3 AND target = $4 AND kind = $5 AND sender = $6 AND react_key = $7 ORDER BY ts DESC LIMIT 1`,
		p.key.network, string(p.key.chat), string(p.key.account), string(target), string(reactionMapping), string(intent.UserID()), key)
	if err != nil || len(list) == 0 {
		return err
	}
	return p.redact(ctx, rm, intent, list[0].event, "")
}

// redact takes back an event; who may not do so themselves has it done for them.
func (p *portal) redact(ctx context.Context, rm *room, intent *appservice.Intent, event matrix.EventID, reason string) error {
	txn := hashID("redact", string(event), string(intent.UserID()))
	_, err := intent.Redact(ctx, rm.id, event, txn, reason)
	if isForbidden(err) && p.standsForChat() {
		_, err = p.intent().Redact(ctx, rm.id, event, txn, reason)
	}
	return err
}

func (p *portal) removalFromRemote(ctx context.Context, ev *backends.Event, r *backends.Removal) error {
	if p.isEcho(ev) {
		return nil
	}
	rm := p.bound()
	if rm == nil {
		return nil
	}
	parts, err := p.parts(ctx, r.Target)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		return refuse(backends.RefusedNotFound, "the message to remove is not known")
	}
	intent, err := p.speaker(ctx, rm, ev.Sender)
	if err != nil {
		return err
	}
	for _, m := range parts {
		if !r.Moderated && !p.isGateway() && m.sender != intent.UserID() {
			return refuse(backends.RefusedForbidden, "only its author can remove a message")
		}
		if err := p.redact(ctx, rm, intent, m.event, cleanText(r.Reason)); err != nil {
			return err
		}
	}
	return nil
}

// typingTimeout is how long someone types who does not say that they stopped.
const typingTimeout = 30 * time.Second

func (p *portal) typingFromRemote(ctx context.Context, ev *backends.Event, t *backends.Typing) error {
	rm := p.bound()
	if rm == nil || p.isEcho(ev) {
		return nil
	}
	intent, err := p.actor(ctx, ev.Sender)
	if err != nil {
		return err
	}
	if _, joined := rm.member(ctx, intent.UserID()); joined {
		if err := intent.Typing(ctx, rm.id, t.On, typingTimeout); err != nil {
			p.log.Debug("typing was not told", "err", err)
		}
	}
	return nil
}

func (p *portal) readFromRemote(ctx context.Context, ev *backends.Event, r *backends.Read) error {
	rm := p.bound()
	if rm == nil || p.isEcho(ev) {
		return nil
	}
	m, err := p.byID(ctx, r.UpTo)
	if err != nil || m == nil {
		return err
	}
	intent, err := p.actor(ctx, ev.Sender)
	if err != nil {
		return err
	}
	if _, joined := rm.member(ctx, intent.UserID()); joined {
		if err := intent.Receipt(ctx, rm.id, m.event); err != nil {
			p.log.Debug("a receipt was not told", "err", err)
		}
	}
	return nil
}
