package backends

import (
	"context"
	"time"
)

// Rooms is what a gateway sees of the host: its rooms, shown as chats of the
// network. After Enter the host sends the room's life to the gateway as Commands
// of the chat, in the room's order, the gateway's own users' messages included
// ([Command.Echo]); Events of the gateway's users go the other way.
type Rooms interface {
	// Authenticate checks the name and password of an account of the host. Name is
	// a localpart or a full ID. Afterwards this network may speak as that account.
	// The error is a Refusal with RefusedUnauthorized if they are wrong.
	Authenticate(ctx context.Context, name, password string) (*User, error)
	// Enter brings a user into a room and returns what they see first. Entering
	// again returns the view again. The error is a Refusal if the room says no.
	//
	// Commands for the chat may arrive before Enter returns; what is in the view's
	// History is not to be shown again (compare IDs).
	Enter(ctx context.Context, req EnterRequest) (*RoomView, error)
	// Exit takes a user out of a room. When the last has left, Commands cease.
	Exit(ctx context.Context, chat ChatID, user User, reason string) error
	// History returns up to limit messages of the chat, oldest first, that were
	// sent before the given time (zero: the newest) and that user may see.
	History(ctx context.Context, chat ChatID, user User, before time.Time, limit int) ([]Command, error)
	// List returns published rooms.
	List(ctx context.Context, query string, limit int) ([]RoomSummary, error)
	// Peek returns the summary of a room without entering it.
	Peek(ctx context.Context, room RoomName) (*RoomSummary, error)
	// Whois looks up a user of the host by its Username and Domain ("": the host's
	// own); a Refusal with RefusedNotFound if there is none.
	Whois(ctx context.Context, username, domain string) (*User, error)
}

// RoomName is how a gateway names a room of the host: by alias, or by ID.
type RoomName struct {
	Alias  string // localpart, without sigil
	Server string // "" is the host's own
	ID     string // opaque, in place of the two above
}

// EnterRequest asks to bring a user into a room.
type EnterRequest struct {
	Chat ChatID // the gateway's own name for the room, used in Commands and Events
	Room RoomName
	// User is either a remote user (ID set), for whom the host keeps a ghost, or an
	// authenticated account of the host (Account set).
	User   User
	Create bool // make a public room of that alias if there is none
	// History asks for up to so many messages (0: none), none older than Since.
	History int
	Since   time.Time
}

// RoomView is what someone sees on entering a room.
type RoomView struct {
	Info    ChatInfo
	TopicBy User
	TopicAt time.Time
	Members []Member // all that are joined, the one who entered included
	Role    Role     // of the one who entered
	// History is oldest first. Each is a Command as it would have come live.
	History []Command
	// Nonanonymous tells that members see each other's real addresses.
	Nonanonymous bool
	Encrypted    bool // messages cannot be read through the gateway
}

// RoomSummary is a line of a room list.
type RoomSummary struct {
	Room    RoomName
	Name    string
	Topic   string
	Members int
}
