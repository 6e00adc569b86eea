package backendtest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gjallar-im/gjallar/backends"
)

// Rooms is a backends.Rooms in memory. A test adds accounts and rooms; it sends
// commands to the network itself. It keeps no Commands apart from AddHistory.
type Rooms struct {
	mu       sync.Mutex
	accounts map[string]account                     // by Username; guarded by mu
	rooms    map[backends.RoomName]*room            // guarded by mu
	chats    map[backends.ChatID]*room              // entered under this name; guarded by mu
	refusals map[backends.RoomName]backends.Refusal // guarded by mu
}

type account struct {
	password string
	user     backends.User
}

type room struct {
	summary backends.RoomSummary
	members []backends.Member
	history []backends.Command // oldest first
}

func newRooms() *Rooms {
	return &Rooms{
		accounts: map[string]account{},
		rooms:    map[backends.RoomName]*room{},
		chats:    map[backends.ChatID]*room{},
		refusals: map[backends.RoomName]backends.Refusal{},
	}
}

// AddAccount makes an account of the host. Its user needs Account and Username.
func (r *Rooms) AddAccount(user backends.User, password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.accounts[user.Username] = account{password, user}
}

// AddRoom makes a published room with members.
func (r *Rooms) AddRoom(s backends.RoomSummary, members ...backends.Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rooms[s.Room] = &room{summary: s, members: members}
}

// AddHistory appends to the history of a room, oldest first.
func (r *Rooms) AddHistory(name backends.RoomName, cmds ...backends.Command) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rooms[name].history = append(r.rooms[name].history, cmds...)
}

// Refuse makes Enter and Peek of a room fail.
func (r *Rooms) Refuse(name backends.RoomName, refusal backends.Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusals[name] = refusal
}

// Members returns who is in a room.
func (r *Rooms) Members(name backends.RoomName) []backends.Member {
	r.mu.Lock()
	defer r.mu.Unlock()
	if room := r.rooms[name]; room != nil {
		return slices.Clone(room.members)
	}
	return nil
}

func refuse(code backends.RefusalCode, format string, args ...any) error {
	return &backends.Refusal{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Authenticate implements backends.Rooms. A full ID is "@name:domain".
func (r *Rooms) Authenticate(_ context.Context, name, password string) (*backends.User, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name, _, _ = strings.Cut(strings.TrimPrefix(name, "@"), ":")
	a, ok := r.accounts[name]
	if !ok || a.password != password {
		return nil, refuse(backends.RefusedUnauthorized, "wrong name or password")
	}
	return &a.user, nil
}

// Enter implements backends.Rooms.
func (r *Rooms) Enter(_ context.Context, req backends.EnterRequest) (*backends.RoomView, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	room, err := r.findLocked(req.Room, req.Create)
	if err != nil {
		return nil, err
	}
	r.chats[req.Chat] = room
	i := slices.IndexFunc(room.members, func(m backends.Member) bool { return samePerson(m.User, req.User) })
	if i < 0 {
		i = len(room.members)
		room.members = append(room.members, backends.Member{
			Action: backends.Joined, User: req.User, Role: backends.Participant,
		})
	}
	room.summary.Members = len(room.members)
	return &backends.RoomView{
		Info: backends.ChatInfo{
			Chat: backends.ChatKey{Chat: req.Chat}, Name: new(room.summary.Name),
			Topic: new(room.summary.Topic), Members: len(room.members),
		},
		Members: slices.Clone(room.members),
		Role:    room.members[i].Role,
		History: latest(room.history, req.History, func(c backends.Command) bool { return !c.Time.Before(req.Since) }),
	}, nil
}

func (r *Rooms) findLocked(name backends.RoomName, create bool) (*room, error) {
	if refusal, ok := r.refusals[name]; ok {
		return nil, &refusal
	}
	if found := r.rooms[name]; found != nil {
		return found, nil
	}
	if !create || name.Alias == "" {
		return nil, refuse(backends.RefusedNotFound, "no such room")
	}
	r.rooms[name] = &room{summary: backends.RoomSummary{Room: name, Name: name.Alias}}
	return r.rooms[name], nil
}

func samePerson(a, b backends.User) bool { return a.ID == b.ID && a.Account == b.Account }

// latest returns the last limit commands that keep holds for, in their order.
func latest(cmds []backends.Command, limit int, keep func(backends.Command) bool) []backends.Command {
	var kept []backends.Command
	for _, c := range cmds {
		if keep(c) {
			kept = append(kept, c)
		}
	}
	return kept[max(0, len(kept)-max(0, limit)):]
}

// Exit implements backends.Rooms.
func (r *Rooms) Exit(_ context.Context, chat backends.ChatID, user backends.User, _ string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	room := r.chats[chat]
	if room == nil {
		return refuse(backends.RefusedNotFound, "no such room")
	}
	room.members = slices.DeleteFunc(room.members, func(m backends.Member) bool { return samePerson(m.User, user) })
	room.summary.Members = len(room.members)
	return nil
}

// History implements backends.Rooms.
func (r *Rooms) History(_ context.Context, chat backends.ChatID, _ backends.User, before time.Time, limit int) ([]backends.Command, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	room := r.chats[chat]
	if room == nil {
		return nil, refuse(backends.RefusedNotFound, "no such room")
	}
	return latest(room.history, limit, func(c backends.Command) bool {
		return before.IsZero() || c.Time.Before(before)
	}), nil
}

// List implements backends.Rooms, sorted by alias.
func (r *Rooms) List(_ context.Context, query string, limit int) ([]backends.RoomSummary, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []backends.RoomSummary
	for _, room := range r.rooms {
		if strings.Contains(room.summary.Room.Alias, query) || strings.Contains(room.summary.Name, query) {
			found = append(found, room.summary)
		}
	}
	slices.SortFunc(found, func(a, b backends.RoomSummary) int { return cmp.Compare(a.Room.Alias, b.Room.Alias) })
	return found[:min(limit, len(found))], nil
}

// Peek implements backends.Rooms.
func (r *Rooms) Peek(_ context.Context, name backends.RoomName) (*backends.RoomSummary, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	room, err := r.findLocked(name, false)
	if err != nil {
		return nil, err
	}
	return new(room.summary), nil
}

// Whois implements backends.Rooms.
func (r *Rooms) Whois(_ context.Context, username, domain string) (*backends.User, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok := r.accounts[username]
	if !ok || domain != "" && domain != a.user.Domain {
		return nil, refuse(backends.RefusedNotFound, "no such user")
	}
	return &a.user, nil
}
