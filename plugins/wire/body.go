package wire

import (
	"errors"
	"fmt"

	"github.com/gjallar-im/gjallar/backends"
)

// ErrUnknownBody means the other side speaks of something newer than this side.
var ErrUnknownBody = errors.New("unknown body")

// packBody packs any of the contract's bodies; nil, or one that this version does
// not know, is an empty Body.
func packBody(b backends.Body) *Body {
	switch b := b.(type) {
	case *backends.Message:
		return &Body{Is: &Body_Message{packMessage(b)}}
	case *backends.Edit:
		return &Body{Is: &Body_Edit{&Edit{Target: text(b.Target), New: packMessage(&b.New), Old: text(b.Old)}}}
	case *backends.Reaction:
		return &Body{Is: &Body_Reaction{&Reaction{
			Target: text(b.Target), Key: text(b.Key), Removed: b.Removed, Quote: packQuote(b.Quote),
		}}}
	case *backends.Removal:
		return &Body{Is: &Body_Removal{&Removal{Target: text(b.Target), Reason: text(b.Reason), Moderated: b.Moderated}}}
	case *backends.Typing:
		return &Body{Is: &Body_Typing{&Typing{On: b.On}}}
	case *backends.Read:
		return &Body{Is: &Body_Read{&Read{UpTo: text(b.UpTo)}}}
	case *backends.Presence:
		return &Body{Is: &Body_Presence{&Presence{State: text(b.State), Status: text(b.Status)}}}
	case *backends.Member:
		return &Body{Is: &Body_Member{packMember(b)}}
	case *backends.Members:
		return &Body{Is: &Body_Members{&Members{Members: packMembers(b.Members)}}}
	case *backends.RoleChange:
		return &Body{Is: &Body_RoleChange{&RoleChange{User: PackUser(b.User), Role: Role(b.Role)}}}
	case *backends.Profile:
		return &Body{Is: &Body_Profile{&Profile{User: PackUser(b.User), Was: text(b.Was)}}}
	case *backends.ChatInfo:
		return &Body{Is: &Body_ChatInfo{PackChatInfo(b)}}
	case *backends.NetworkState:
		return &Body{Is: &Body_NetworkState{&NetworkState{
			Phase: text(b.Phase), Reason: text(b.Reason), Capabilities: packCapabilities(b.Capabilities),
		}}}
	case *backends.AccountState:
		return &Body{Is: &Body_AccountState{&AccountState{
			Account: text(b.Account), Phase: text(b.Phase), Address: text(b.Address), Reason: text(b.Reason),
		}}}
	case *backends.Gap:
		return &Body{Is: &Body_Gap{&Gap{From: packTime(b.From), To: packTime(b.To)}}}
	}
	return &Body{}
}

func (b *Body) unpack() (backends.Body, error) {
	switch b := b.GetIs().(type) {
	case *Body_Message:
		return asBody(b.Message.unpack())
	case *Body_Edit:
		return asBody(b.Edit.unpack())
	case *Body_Reaction:
		r := b.Reaction
		return &backends.Reaction{
			Target: backends.MessageID(r.GetTarget()), Key: r.GetKey(), Removed: r.GetRemoved(), Quote: r.GetQuote().unpack(),
		}, nil
	case *Body_Removal:
		r := b.Removal
		return &backends.Removal{
			Target: backends.MessageID(r.GetTarget()), Reason: r.GetReason(), Moderated: r.GetModerated(),
		}, nil
	case *Body_Typing:
		return &backends.Typing{On: b.Typing.GetOn()}, nil
	case *Body_Read:
		return &backends.Read{UpTo: backends.MessageID(b.Read.GetUpTo())}, nil
	case *Body_Presence:
		return asBody(b.Presence.unpack())
	case *Body_Member:
		return asBody(b.Member.unpack())
	case *Body_Members:
		members, err := unpackMembers(b.Members.GetMembers())
		return asBody(&backends.Members{Members: members}, err)
	case *Body_RoleChange:
		role, err := unpackRole(b.RoleChange.GetRole())
		return asBody(&backends.RoleChange{User: b.RoleChange.GetUser().Unpack(), Role: role}, err)
	case *Body_Profile:
		return &backends.Profile{User: b.Profile.GetUser().Unpack(), Was: backends.UserID(b.Profile.GetWas())}, nil
	case *Body_ChatInfo:
		return asBody(b.ChatInfo.Unpack())
	case *Body_NetworkState:
		return asBody(b.NetworkState.unpack())
	case *Body_AccountState:
		return asBody(b.AccountState.unpack())
	case *Body_Gap:
		return &backends.Gap{From: unpackTime(b.Gap.GetFrom()), To: unpackTime(b.Gap.GetTo())}, nil
	}
	return nil, ErrUnknownBody
}

// asBody keeps a nil pointer out of the interface.
func asBody[B backends.Body](b B, err error) (backends.Body, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}

func packMessage(m *backends.Message) *Message {
	w := &Message{
		Kind: MessageKind(m.Kind), Text: packDoc(m.Text), ReplyTo: packQuote(m.ReplyTo), Thread: text(m.Thread),
	}
	for _, f := range m.Files {
		w.Files = append(w.Files, PackFile(f))
	}
	return w
}

func (m *Message) unpack() (*backends.Message, error) {
	kind, err := unpackEnum[backends.MessageKind]("kind of message", m.GetKind(), MessageKind_name)
	if err != nil {
		return nil, err
	}
	doc, err := unpackDoc(m.GetText())
	if err != nil {
		return nil, err
	}
	msg := &backends.Message{
		Kind: kind, Text: doc, ReplyTo: m.GetReplyTo().unpack(), Thread: backends.MessageID(m.GetThread()),
	}
	for _, f := range m.GetFiles() {
		file, err := f.Unpack()
		if err != nil {
			return nil, fmt.Errorf("file: %w", err)
		}
		msg.Files = append(msg.Files, file)
	}
	return msg, nil
}

func packQuote(q *backends.Quote) *Quote {
	if q == nil {
		return nil
	}
	return &Quote{Id: text(q.ID), Sender: PackUser(q.Sender), Text: text(q.Text)}
}

func (q *Quote) unpack() *backends.Quote {
	if q == nil {
		return nil
	}
	return &backends.Quote{ID: backends.MessageID(q.Id), Sender: q.Sender.Unpack(), Text: q.Text}
}

func (e *Edit) unpack() (*backends.Edit, error) {
	msg, err := e.GetNew().unpack()
	if err != nil {
		return nil, err
	}
	return &backends.Edit{Target: backends.MessageID(e.GetTarget()), New: *msg, Old: e.GetOld()}, nil
}

func (p *Presence) unpack() (*backends.Presence, error) {
	state, err := unpackWord("presence", p.GetState(), backends.Online, backends.Away, backends.Offline)
	if err != nil {
		return nil, err
	}
	return &backends.Presence{State: state, Status: p.GetStatus()}, nil
}

func packMember(m *backends.Member) *Member {
	return &Member{
		Action: text(m.Action), User: PackUser(m.User), Reason: text(m.Reason), Role: Role(m.Role), Quiet: m.Quiet,
	}
}

// unpack lets the action be empty, as it may be in a list of members.
func (m *Member) unpack() (*backends.Member, error) {
	action, err := unpackWord("action", m.GetAction(), "", backends.Joined, backends.Left, backends.Kicked,
		backends.Banned, backends.Unbanned, backends.Invited, backends.Knocked)
	if err != nil {
		return nil, err
	}
	role, err := unpackRole(m.GetRole())
	if err != nil {
		return nil, err
	}
	return &backends.Member{
		Action: action, User: m.GetUser().Unpack(), Reason: m.GetReason(), Role: role, Quiet: m.GetQuiet(),
	}, nil
}

func packMembers(ms []backends.Member) []*Member {
	var w []*Member
	for i := range ms {
		w = append(w, packMember(&ms[i]))
	}
	return w
}

func unpackMembers(ws []*Member) ([]backends.Member, error) {
	var ms []backends.Member
	for _, w := range ws {
		m, err := w.unpack()
		if err != nil {
			return nil, err
		}
		ms = append(ms, *m)
	}
	return ms, nil
}

func unpackRole(r Role) (backends.Role, error) {
	return unpackEnum[backends.Role]("role", r, Role_name)
}

func unpackPhase(s string) (backends.NetworkPhase, error) {
	return unpackWord("phase", s, backends.Connecting, backends.Ready, backends.Disconnected, backends.Failed)
}

func (s *NetworkState) unpack() (*backends.NetworkState, error) {
	phase, err := unpackPhase(s.GetPhase())
	if err != nil {
		return nil, err
	}
	return &backends.NetworkState{Phase: phase, Reason: s.GetReason(), Capabilities: s.GetCapabilities().unpack()}, nil
}

func (s *AccountState) unpack() (*backends.AccountState, error) {
	phase, err := unpackPhase(s.GetPhase())
	if err != nil {
		return nil, err
	}
	return &backends.AccountState{
		Account: backends.AccountID(s.GetAccount()), Phase: phase, Address: s.GetAddress(), Reason: s.GetReason(),
	}, nil
}
