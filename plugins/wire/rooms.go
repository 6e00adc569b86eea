package wire

import (
	"fmt"
	"time"

	"github.com/gjallar-im/gjallar/backends"
)

// PackRoomName packs a room's name.
func PackRoomName(n backends.RoomName) *RoomName {
	return &RoomName{Alias: text(n.Alias), Server: text(n.Server), Id: text(n.ID)}
}

// Unpack is the inverse of PackRoomName.
func (n *RoomName) Unpack() backends.RoomName {
	return backends.RoomName{Alias: n.GetAlias(), Server: n.GetServer(), ID: n.GetId()}
}

// PackEnter packs a request to enter a room.
func PackEnter(r backends.EnterRequest) *EnterRequest {
	return &EnterRequest{
		Chat: text(r.Chat), Room: PackRoomName(r.Room), User: PackUser(r.User), Create: r.Create,
		History: int64(r.History), Since: packTime(r.Since),
	}
}

// Unpack returns an error if a number is negative.
func (r *EnterRequest) Unpack() (backends.EnterRequest, error) {
	history, err := unpackInt("history", r.GetHistory())
	if err != nil {
		return backends.EnterRequest{}, fmt.Errorf("unpack enter: %w", err)
	}
	return backends.EnterRequest{
		Chat: backends.ChatID(r.GetChat()), Room: r.GetRoom().Unpack(), User: r.GetUser().Unpack(),
		Create: r.GetCreate(), History: history, Since: unpackTime(r.GetSince()),
	}, nil
}

// PackRoomView packs what someone sees on entering a room.
func PackRoomView(v *backends.RoomView) *RoomView {
	return &RoomView{
		Info: PackChatInfo(&v.Info), TopicBy: PackUser(v.TopicBy), TopicAt: packTime(v.TopicAt),
		Members: packMembers(v.Members), Role: Role(v.Role), History: PackHistory(v.History),
		Nonanonymous: v.Nonanonymous, Encrypted: v.Encrypted,
	}
}

// Unpack returns an error if a part of the view says what it cannot.
func (v *RoomView) Unpack() (*backends.RoomView, error) {
	info, err := v.GetInfo().Unpack()
	if err != nil {
		return nil, fmt.Errorf("unpack view: %w", err)
	}
	members, err := unpackMembers(v.GetMembers())
	if err != nil {
		return nil, fmt.Errorf("unpack view: %w", err)
	}
	role, err := unpackRole(v.GetRole())
	if err != nil {
		return nil, fmt.Errorf("unpack view: %w", err)
	}
	history, err := UnpackHistory(v.GetHistory())
	if err != nil {
		return nil, fmt.Errorf("unpack view: %w", err)
	}
	return &backends.RoomView{
		Info: *info, TopicBy: v.GetTopicBy().Unpack(), TopicAt: unpackTime(v.GetTopicAt()), Members: members,
		Role: role, History: history, Nonanonymous: v.GetNonanonymous(), Encrypted: v.GetEncrypted(),
	}, nil
}

// PackHistory packs commands that are not to be carried out.
func PackHistory(cmds []backends.Command) []*Command {
	var w []*Command
	for i := range cmds {
		w = append(w, PackCommand(&cmds[i]))
	}
	return w
}

// UnpackHistory is the inverse of PackHistory. It leaves out what it does not know.
func UnpackHistory(ws []*Command) ([]backends.Command, error) {
	var cmds []backends.Command
	for _, w := range ws {
		if w.GetBody().GetIs() == nil {
			continue
		}
		cmd, err := w.Unpack()
		if err != nil {
			return nil, err
		}
		cmds = append(cmds, *cmd)
	}
	return cmds, nil
}

// PackRoomSummary packs a line of a room list.
func PackRoomSummary(s backends.RoomSummary) *RoomSummary {
	return &RoomSummary{Room: PackRoomName(s.Room), Name: text(s.Name), Topic: text(s.Topic), Members: int64(s.Members)}
}

// Unpack returns an error if a number is negative.
func (s *RoomSummary) Unpack() (backends.RoomSummary, error) {
	members, err := unpackInt("members", s.GetMembers())
	if err != nil {
		return backends.RoomSummary{}, fmt.Errorf("unpack summary: %w", err)
	}
	return backends.RoomSummary{Room: s.GetRoom().Unpack(), Name: s.GetName(), Topic: s.GetTopic(), Members: members}, nil
}

// PackHistoryRequest packs the arguments of backends.Rooms.History.
func PackHistoryRequest(chat backends.ChatID, user backends.User, before time.Time, limit int) *HistoryRequest {
	return &HistoryRequest{Chat: text(chat), User: PackUser(user), Before: packTime(before), Limit: int64(limit)}
}

// Time returns Before as the contract has it.
func (r *HistoryRequest) Time() time.Time { return unpackTime(r.GetBefore()) }
