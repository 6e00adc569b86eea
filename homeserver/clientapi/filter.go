package clientapi

import (
	"context"
	"slices"
	"strings"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

// filter says what of a /sync someone wants.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#filtering
type filter struct {
	Fields      []string    `json:"event_fields"`
	Format      string      `json:"event_format"`
	Presence    eventFilter `json:"presence"`
	AccountData eventFilter `json:"account_data"`
	Room        struct {
		Rooms        *[]matrix.RoomID `json:"rooms"`
		NotRooms     []matrix.RoomID  `json:"not_rooms"`
		IncludeLeave bool             `json:"include_leave"`
		Ephemeral    eventFilter      `json:"ephemeral"`
		State        eventFilter      `json:"state"`
		Timeline     eventFilter      `json:"timeline"`
		AccountData  eventFilter      `json:"account_data"`
	} `json:"room"`
}

// eventFilter is EventFilter, RoomEventFilter and StateFilter of the specification.
type eventFilter struct {
	Limit      *int             `json:"limit"`
	Types      *[]string        `json:"types"`
	NotTypes   []string         `json:"not_types"`
	Senders    *[]matrix.UserID `json:"senders"`
	NotSenders []matrix.UserID  `json:"not_senders"`
	Rooms      *[]matrix.RoomID `json:"rooms"`
	NotRooms   []matrix.RoomID  `json:"not_rooms"`
	HasURL     *bool            `json:"contains_url"`
	LazyLoad   bool             `json:"lazy_load_members"`
	Redundant  bool             `json:"include_redundant_members"`
}

func parseFilter(b []byte) (*filter, error) {
	f := &filter{}
	if err := decodeJSON(b, f); err != nil {
		return nil, err
	}
	if f.Format != "" && f.Format != "client" && f.Format != "federation" {
		return nil, matrix.BadJSON("event_format must be \"client\" or \"federation\"")
	}
	for _, e := range []*eventFilter{&f.Presence, &f.AccountData, &f.Room.Ephemeral, &f.Room.State, &f.Room.Timeline, &f.Room.AccountData} {
		if err := e.check(); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *eventFilter) check() error {
	if f.Limit != nil && *f.Limit < 0 {
		return matrix.BadJSON("limit must not be negative")
	}
	users := f.NotSenders
	if f.Senders != nil {
		users = append(slices.Clone(users), *f.Senders...)
	}
	for _, u := range users {
		if _, err := matrix.ParseUserID(string(u)); err != nil {
			return matrix.BadJSON("%q is not a user ID", u)
		}
	}
	rooms := f.NotRooms
	if f.Rooms != nil {
		rooms = append(slices.Clone(rooms), *f.Rooms...)
	}
	for _, id := range rooms {
		if _, err := matrix.ParseRoomID(string(id)); err != nil {
			return matrix.BadJSON("%q is not a room ID", id)
		}
	}
	return nil
}

// filterOf reads the filter parameter of a request: an ID, or JSON itself.
func (a *api) filterOf(ctx context.Context, r *request, param string) (*filter, error) {
	switch {
	case param == "":
		return &filter{}, nil
	case strings.HasPrefix(param, "{"):
		return parseFilter([]byte(param))
	}
	b, err := a.Store.Filter(ctx, r.user, param)
	if err != nil {
		return nil, matrix.InvalidParam("There is no filter %q", param)
	}
	return parseFilter(b)
}

func (f *filter) wantsRoom(id matrix.RoomID) bool {
	return (f.Room.Rooms == nil || contains(*f.Room.Rooms, id)) && !contains(f.Room.NotRooms, id)
}

func (f *eventFilter) limit(fallback, most int) int {
	if f.Limit == nil {
		return fallback
	}
	return min(*f.Limit, most)
}

func (f *eventFilter) wantsRoom(id matrix.RoomID) bool {
	return (f.Rooms == nil || contains(*f.Rooms, id)) && !contains(f.NotRooms, id)
}

// all reports whether f lets every event pass.
func (f *eventFilter) all() bool {
	return f.Types == nil && f.NotTypes == nil && f.Senders == nil && f.NotSenders == nil && f.HasURL == nil
}

func (f *eventFilter) wantsType(typ string) bool {
	match := func(pattern string) bool { return globMatch(pattern, typ) }
	return (f.Types == nil || slices.ContainsFunc(*f.Types, match)) && !slices.ContainsFunc(f.NotTypes, match)
}

func (f *eventFilter) wants(e *store.Event) bool {
	if f.all() {
		return true
	}
	if f.Senders != nil && !contains(*f.Senders, e.Sender) || contains(f.NotSenders, e.Sender) || !f.wantsType(e.Type) {
		return false
	}
	return f.HasURL == nil || *f.HasURL == (e.Get("url").Str != "")
}

func (f *eventFilter) keep(events []*store.Event) []*store.Event {
	if f.all() {
		return events
	}
	kept := events[:0:0]
	for _, e := range events {
		if f.wants(e) {
			kept = append(kept, e)
		}
	}
	return kept
}

// globMatch matches a pattern in which "*" stands for any text.
func globMatch(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	if !strings.HasPrefix(s, parts[0]) {
		return false
	}
	s = s[len(parts[0]):]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, parts[len(parts)-1])
}
