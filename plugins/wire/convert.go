package wire

import (
	"cmp"
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gjallar-im/gjallar/backends"
)

// Pack functions turn the contract's types into messages. They never fail: what
// cannot be said is made sayable (a string is made valid UTF-8, a time is moved
// into the range of int64 nanoseconds, a text tree is flattened below
// richtext.MaxDepth). Unpack functions check what the other side says; they turn
// a message into a value that the contract allows, or an error.

// text makes s a string that protobuf carries.
func text[S ~string](s S) string { return strings.ToValidUTF8(string(s), "\uFFFD") }

var minTime, maxTime = time.Unix(0, math.MinInt64), time.Unix(0, math.MaxInt64)

// packTime gives 0 for the zero time, which costs the epoch itself a nanosecond.
func packTime(t time.Time) int64 {
	switch {
	case t.IsZero():
		return 0
	case t.Before(minTime):
		return math.MinInt64
	case t.After(maxTime):
		return math.MaxInt64
	}
	return cmp.Or(t.UnixNano(), 1)
}

func unpackTime(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

// unpackInt reads a number that is an int in Go and never negative.
func unpackInt(what string, n int64) (int, error) {
	if n < 0 || n > math.MaxInt32 {
		return 0, fmt.Errorf("%s is %d", what, n)
	}
	return int(n), nil
}

// unpackWord checks a string against the words that the contract knows.
func unpackWord[S ~string](what, s string, words ...S) (S, error) {
	for _, w := range words {
		if string(w) == s {
			return w, nil
		}
	}
	return "", fmt.Errorf("unknown %s %.40q", what, s)
}

// unpackEnum checks a number against the names of its enumeration.
func unpackEnum[To, From ~int32 | ~int | ~uint8](what string, n From, names map[int32]string) (To, error) {
	if _, ok := names[int32(n)]; !ok {
		return 0, fmt.Errorf("unknown %s %d", what, n)
	}
	return To(n), nil
}

// PackInfo packs a backend's description.
func PackInfo(i backends.Info) *Info {
	return &Info{
		Protocol: text(i.Protocol), Title: text(i.Title), Version: text(i.Version),
		Schema: i.Schema, Capabilities: packCapabilities(&i.Capabilities),
	}
}

// Unpack checks only the form; package host checks the meaning.
func (i *Info) Unpack() backends.Info {
	info := backends.Info{
		Protocol: i.GetProtocol(), Title: i.GetTitle(), Version: i.GetVersion(), Schema: i.GetSchema(),
	}
	if c := i.GetCapabilities().unpack(); c != nil {
		info.Capabilities = *c
	}
	return info
}

func packCapabilities(c *backends.Capabilities) *Capabilities {
	if c == nil {
		return nil
	}
	return &Capabilities{
		Formatting: c.Formatting, Edits: c.Edits, Replies: c.Replies, Reactions: c.Reactions,
		Removals: c.Removals, Threads: c.Threads, Files: c.Files, Typing: c.Typing, Reads: c.Reads,
		Topic: c.Topic, Name: c.Name, Kicks: c.Kicks, Direct: c.Direct, Accounts: c.Accounts,
		History: c.History, Gateway: c.Gateway, Confirmed: c.Confirmed,
	}
}

func (c *Capabilities) unpack() *backends.Capabilities {
	if c == nil {
		return nil
	}
	return &backends.Capabilities{
		Formatting: c.Formatting, Edits: c.Edits, Replies: c.Replies, Reactions: c.Reactions,
		Removals: c.Removals, Threads: c.Threads, Files: c.Files, Typing: c.Typing, Reads: c.Reads,
		Topic: c.Topic, Name: c.Name, Kicks: c.Kicks, Direct: c.Direct, Accounts: c.Accounts,
		History: c.History, Gateway: c.Gateway, Confirmed: c.Confirmed,
	}
}

// PackChatKey packs a chat's address.
func PackChatKey(k backends.ChatKey) *ChatKey {
	if k == (backends.ChatKey{}) {
		return nil
	}
	return &ChatKey{Chat: text(k.Chat), Account: text(k.Account)}
}

// Unpack takes an absent message for the empty key.
func (k *ChatKey) Unpack() backends.ChatKey {
	return backends.ChatKey{Chat: backends.ChatID(k.GetChat()), Account: backends.AccountID(k.GetAccount())}
}

// PackUser packs a user; the zero User is an absent message.
func PackUser(u backends.User) *User {
	if u == (backends.User{}) {
		return nil
	}
	return &User{
		Id: text(u.ID), Account: text(u.Account), Name: text(u.Name), Username: text(u.Username),
		Domain: text(u.Domain), Avatar: text(u.Avatar), Bot: u.Bot,
	}
}

// Unpack takes an absent message for the zero User.
func (u *User) Unpack() backends.User {
	if u == nil {
		return backends.User{}
	}
	return backends.User{
		ID: backends.UserID(u.Id), Account: backends.AccountID(u.Account), Name: u.Name,
		Username: u.Username, Domain: u.Domain, Avatar: u.Avatar, Bot: u.Bot,
	}
}

// PackJoin packs a request to follow a chat.
func PackJoin(r backends.JoinRequest) *JoinRequest {
	w := &JoinRequest{Chat: PackChatKey(r.Chat)}
	if r.Resume != nil {
		w.Resume = &Mark{Id: text(r.Resume.ID), Time: packTime(r.Resume.Time)}
	}
	return w
}

// Unpack is the inverse of PackJoin.
func (r *JoinRequest) Unpack() backends.JoinRequest {
	req := backends.JoinRequest{Chat: r.GetChat().Unpack()}
	if m := r.GetResume(); m != nil {
		req.Resume = &backends.Mark{ID: backends.MessageID(m.Id), Time: unpackTime(m.Time)}
	}
	return req
}

// PackEvent packs an event; the caller sets Seq.
func PackEvent(ev *backends.Event) *Event {
	return &Event{
		Chat: PackChatKey(ev.Chat), Sender: PackUser(ev.Sender), Id: text(ev.ID),
		Time: packTime(ev.Time), Origin: text(ev.Origin), Body: packBody(ev.Body),
	}
}

// Unpack returns an error if the event's body is unknown or says what it cannot.
func (e *Event) Unpack() (*backends.Event, error) {
	body, err := e.GetBody().unpack()
	if err != nil {
		return nil, fmt.Errorf("unpack event: %w", err)
	}
	return &backends.Event{
		Chat: e.GetChat().Unpack(), Sender: e.GetSender().Unpack(), ID: backends.MessageID(e.GetId()),
		Time: unpackTime(e.GetTime()), Origin: backends.Origin(e.GetOrigin()), Body: body,
	}, nil
}

// PackCommand packs a command; the caller sets Seq.
func PackCommand(c *backends.Command) *Command {
	return &Command{
		Id: text(c.ID), Attempt: int64(c.Attempt), MaybeSent: c.MaybeSent, Chat: PackChatKey(c.Chat),
		Sender: PackUser(c.Sender), Time: packTime(c.Time), Echo: text(c.Echo), Body: packBody(c.Body),
	}
}

// Unpack returns ErrUnknownBody, wrapped, if the command's body is not known here.
func (c *Command) Unpack() (*backends.Command, error) {
	body, err := c.GetBody().unpack()
	if err != nil {
		return nil, fmt.Errorf("unpack command: %w", err)
	}
	attempt, err := unpackInt("attempt", c.GetAttempt())
	if err != nil {
		return nil, fmt.Errorf("unpack command: %w", err)
	}
	return &backends.Command{
		ID: c.GetId(), Attempt: attempt, MaybeSent: c.GetMaybeSent(), Chat: c.GetChat().Unpack(),
		Sender: c.GetSender().Unpack(), Time: unpackTime(c.GetTime()), Echo: backends.MessageID(c.GetEcho()), Body: body,
	}, nil
}

// PackResult packs the result of the command with the number seq.
func PackResult(seq uint64, r backends.Result) *Result {
	w := &Result{Seq: seq, Outcome: Outcome(r.Outcome), After: int64(r.After), Reason: text(r.Reason)}
	for _, id := range r.IDs {
		w.Ids = append(w.Ids, text(id))
	}
	return w
}

// Unpack returns an error if the outcome is none that a backend may give.
func (r *Result) Unpack() (backends.Result, error) {
	if o := r.GetOutcome(); o <= Outcome_OUTCOME_NONE || o >= Outcome_OUTCOME_INTERRUPTED {
		return backends.Result{}, fmt.Errorf("unpack result: unknown outcome %d", o)
	}
	res := backends.Result{
		Outcome: backends.Outcome(r.Outcome), After: max(0, time.Duration(r.After)), Reason: r.Reason,
	}
	for _, id := range r.Ids {
		res.IDs = append(res.IDs, backends.MessageID(id))
	}
	return res, nil
}

// PackReceipt packs the receipt of the event with the number seq.
func PackReceipt(seq uint64, r backends.Receipt) *Receipt {
	return &Receipt{Seq: seq, Id: text(r.ID), Refusal: PackRefusal(r.Err)}
}

// Unpack is the inverse of PackReceipt.
func (r *Receipt) Unpack() backends.Receipt {
	return backends.Receipt{ID: backends.MessageID(r.GetId()), Err: r.GetRefusal().Unpack()}
}

// PackRefusal packs a refusal, nil for nil.
func PackRefusal(r *backends.Refusal) *Refusal {
	if r == nil {
		return nil
	}
	return &Refusal{Code: text(r.Code), Message: text(r.Message)}
}

var refusalCodes = map[backends.RefusalCode]bool{
	backends.RefusedNotFound: true, backends.RefusedForbidden: true, backends.RefusedBanned: true,
	backends.RefusedInviteOnly: true, backends.RefusedFull: true, backends.RefusedPassword: true,
	backends.RefusedConflict: true, backends.RefusedTooLarge: true, backends.RefusedUnsupported: true,
	backends.RefusedUnavailable: true, backends.RefusedInvalid: true, backends.RefusedUnauthorized: true,
}

// Unpack takes a code that it does not know for RefusedUnavailable, so that a
// refusal stays one.
func (r *Refusal) Unpack() *backends.Refusal {
	if r == nil {
		return nil
	}
	code := backends.RefusalCode(r.Code)
	if !refusalCodes[code] {
		code = backends.RefusedUnavailable
	}
	return &backends.Refusal{Code: code, Message: r.Message}
}

// PackFile packs a file's description.
func PackFile(f backends.File) *File {
	return &File{
		Url: text(f.URL), Name: text(f.Name), MediaType: text(f.MediaType), Size: f.Size,
		Width: int64(f.Width), Height: int64(f.Height), Duration: int64(f.Duration), Thumbnail: text(f.Thumbnail),
	}
}

// Unpack returns an error if a number is negative.
func (f *File) Unpack() (backends.File, error) {
	width, err := unpackInt("width", f.GetWidth())
	if err != nil {
		return backends.File{}, err
	}
	height, err := unpackInt("height", f.GetHeight())
	if err != nil {
		return backends.File{}, err
	}
	if f.GetSize() < 0 || f.GetDuration() < 0 {
		return backends.File{}, fmt.Errorf("size %d, duration %d", f.GetSize(), f.GetDuration())
	}
	return backends.File{
		URL: f.GetUrl(), Name: f.GetName(), MediaType: f.GetMediaType(), Size: f.GetSize(),
		Width: width, Height: height, Duration: time.Duration(f.GetDuration()), Thumbnail: f.GetThumbnail(),
	}, nil
}

// PackChatInfo packs a chat's description.
func PackChatInfo(c *backends.ChatInfo) *ChatInfo {
	w := &ChatInfo{
		Chat: PackChatKey(c.Chat), Direct: c.Direct, Name: optional(c.Name), Topic: optional(c.Topic),
		Avatar: optional(c.Avatar), Members: int64(c.Members),
	}
	if c.Public != nil {
		w.Public = proto.Bool(*c.Public)
	}
	if c.Peer != nil {
		w.Peer = cmp.Or(PackUser(*c.Peer), &User{})
	}
	return w
}

func optional(s *string) *string {
	if s == nil {
		return nil
	}
	return proto.String(text(*s))
}

// Unpack returns an error if a number is negative.
func (c *ChatInfo) Unpack() (*backends.ChatInfo, error) {
	members, err := unpackInt("members", c.GetMembers())
	if err != nil {
		return nil, fmt.Errorf("unpack chat: %w", err)
	}
	info := &backends.ChatInfo{Chat: c.GetChat().Unpack(), Direct: c.GetDirect(), Members: members}
	if c == nil {
		return info, nil
	}
	info.Name, info.Topic, info.Avatar, info.Public = c.Name, c.Topic, c.Avatar, c.Public
	if c.Peer != nil {
		info.Peer = new(c.Peer.Unpack())
	}
	return info, nil
}
