// Package backends is what a network looks like to the bridge: the contract
// between the runtime and a protocol implementation, in one vocabulary for both
// directions. It is free of Matrix and imports nothing of ours but the text tree.
//
// A [Backend] opens [Network]s. A Network carries out [Command]s and tells its
// [Host] of [Event]s. Both carry the same bodies ([Message], [Edit], [Member], …),
// so a feature is described once. A Backend that runs in a plugin process is
// used through the same interfaces (package plugins/host).
package backends

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"time"
)

// Identifiers of the remote network. They are opaque to the host, stable over
// restarts, and unique within one network.
type (
	ChatID    string // a channel, a MUC, or the peer of a private chat
	UserID    string // a remote user: as stable as the network allows
	MessageID string // a message; made up by the backend, stably, where the network has none
	AccountID string // a user of the host (opaque to the backend), who speaks on the network
)

// Backend is one protocol implementation. Its methods may be called from any
// goroutine.
type Backend interface {
	// Describe says what the backend is and can do. It does no I/O.
	Describe() Info
	// Open starts one network with a configuration that satisfies Info.Schema.
	// It returns once the configuration is known to be good, without waiting for
	// a connection: that comes and goes, and is told by [NetworkState] events.
	// The Network lives until Close; ctx bounds only the call.
	Open(ctx context.Context, config json.RawMessage, host Host) (Network, error)
}

// Info describes a backend.
type Info struct {
	Protocol string // "irc": lower-case letters and digits
	Title    string // "Internet Relay Chat"
	Version  string
	// Schema is the JSON Schema (2020-12) of the configuration. "x-secret": true
	// marks what must never be shown or logged.
	Schema       json.RawMessage
	Capabilities Capabilities
}

// Capabilities say what a network expresses natively. What it cannot express the
// host turns into something it can before a Command is made, so a backend never
// sees a body it did not declare. [NetworkState] may refine them for one network.
type Capabilities struct {
	Formatting bool // rich text; otherwise Text is plain
	Edits      bool
	Replies    bool // otherwise the host quotes the message replied to
	Reactions  bool
	Removals   bool
	Threads    bool
	Files      bool // otherwise the host appends links to the text
	Typing     bool
	Reads      bool
	Topic      bool
	Name       bool
	Kicks      bool // kick, ban and unban by the host's users
	Direct     bool // private chats
	Accounts   bool // users of the host have accounts (connections, addresses) of their own
	History    bool // Join returns what was missed since Resume
	Gateway    bool // remote users enter rooms of the host through this network
	// Confirmed means a Delivered result is the network's word, so that a message
	// interrupted by a crash can be found out about when it is sent again with
	// MaybeSent. Without it such a message ends as Uncertain.
	Confirmed bool
}

// Network is one open connection to a network, or one listener.
type Network interface {
	// Send carries out a command. Commands of one chat are carried out in the
	// order of the calls, so Send returns as soon as the command has its place;
	// it blocks only while too much is queued, or until ctx ends.
	//
	// reply is called exactly once, from any goroutine, when the outcome is known.
	// After an error from Send it is not called.
	Send(ctx context.Context, cmd *Command, reply func(Result)) error
	// Join makes the network follow a chat and tells about it. Joining again is
	// harmless. The host joins every chat it cares for after each [NetworkState]
	// with State Ready. The error is a [*Refusal] if the network says no.
	Join(ctx context.Context, req JoinRequest) (*ChatInfo, error)
	// Leave undoes Join.
	Leave(ctx context.Context, chat ChatKey) error
	// Close finishes what was taken, within ctx, and disconnects.
	Close(ctx context.Context) error
}

// Resolver is a Network that can look up what people type.
type Resolver interface {
	// ResolveChat turns "#go", "room@conference.example.org" … into a chat.
	ResolveChat(ctx context.Context, query string) (*ChatInfo, error)
	// ResolveUser turns a nick or an address into a user.
	ResolveUser(ctx context.Context, query string) (*User, error)
}

// Directory is a Network that can list its public chats.
type Directory interface {
	ListChats(ctx context.Context, query string, limit int) ([]ChatInfo, error)
}

// ChatKey addresses a conversation. Account is empty for a chat that all share,
// and names whose private chat it is otherwise.
type ChatKey struct {
	Chat    ChatID
	Account AccountID
}

// JoinRequest asks a network to follow a chat.
type JoinRequest struct {
	Chat ChatKey
	// Resume is the last message of the chat that the host holds. A network with
	// the History capability delivers what came after it, with its time and ID.
	Resume *Mark
}

// Mark is a place in a chat's history.
type Mark struct {
	ID   MessageID
	Time time.Time
}

// User is a person, on either side. For a remote user ID is set. For a user of
// the host Account is; if that user stands for a remote user of this very
// network (as in a gateway's chat), ID is set as well.
type User struct {
	ID       UserID
	Account  AccountID
	Name     string // display name, "" if unknown
	Username string // for an address or nick: localpart on the user's own network
	Domain   string // and the server it is on, "" if the network has none
	Avatar   string // URL, http(s) towards the backend and from it, "" if none
	Bot      bool
}

// Origin marks an event or command that one of ours made out of another network's,
// so that it is not sent back: "network/message ID".
type Origin string

// Event is something that happened on the remote network.
type Event struct {
	Chat   ChatKey
	Sender User
	// ID is the message ID on the network. The host stores an event with the same
	// (network, chat, ID) once, however often it is delivered.
	ID     MessageID
	Time   time.Time // when it happened there; zero is now
	Origin Origin
	Body   Body
}

// Command is something that a user of the host did and the network should show.
type Command struct {
	ID      string // stable over attempts
	Attempt int    // 1 the first time
	// MaybeSent means an earlier attempt was interrupted: find out whether it
	// arrived before sending it again, or answer Uncertain.
	MaybeSent bool
	Chat      ChatKey
	Sender    User
	Time      time.Time
	// Echo is set in a gateway's chat when the command came from an event of this
	// network: the ID the backend gave it. A gateway reflects it to its sender.
	Echo MessageID
	Body Body
}

// Ephemeral reports whether c is worth nothing later: it is not queued while the
// network is away.
func (c *Command) Ephemeral() bool {
	switch c.Body.(type) {
	case *Typing, *Read, *Presence:
		return true
	}
	return false
}

// Outcome of a command.
type Outcome int

const (
	// Delivered: it is on the network. IDs names what it became there.
	Delivered Outcome = iota + 1
	// Retry: not now; send it again after Result.After, before what follows it.
	Retry
	// Rejected: the network refuses; Reason is for the sender.
	Rejected
	// Unsupported: this network has no such thing.
	Unsupported
	// Uncertain: it may or may not have arrived, and nobody can tell.
	Uncertain
	// Interrupted: the process died with the command in hand. The host sends it
	// again with MaybeSent. Backends do not use it.
	Interrupted
)

// Result is the outcome of a command.
type Result struct {
	Outcome Outcome
	// IDs of what the command became on the network: several if it was split.
	// The first stands for the message in edits, replies and reactions.
	IDs    []MessageID
	After  time.Duration // with Retry
	Reason string        // with all but Delivered, for people
}

// Refusal is the network's own "no", fit for showing to the user.
type Refusal struct {
	Code    RefusalCode
	Message string
}

func (r *Refusal) Error() string { return r.Message }

// RefusalCode is why something was refused.
type RefusalCode string

const (
	RefusedNotFound     RefusalCode = "not-found"
	RefusedForbidden    RefusalCode = "forbidden"
	RefusedBanned       RefusalCode = "banned"
	RefusedInviteOnly   RefusalCode = "invite-only"
	RefusedFull         RefusalCode = "full"
	RefusedPassword     RefusalCode = "password"
	RefusedConflict     RefusalCode = "conflict"
	RefusedTooLarge     RefusalCode = "too-large"
	RefusedUnsupported  RefusalCode = "unsupported"
	RefusedUnavailable  RefusalCode = "unavailable"
	RefusedInvalid      RefusalCode = "invalid"
	RefusedUnauthorized RefusalCode = "unauthorized"
)

// Sink takes events from a network.
type Sink interface {
	// Deliver hands over an event. Events of one chat are handled in the order of
	// the calls. It blocks while too much is unacknowledged, or until ctx ends.
	//
	// If done is not nil it is called exactly once, from any goroutine, when the
	// event is durable on the host's side or was refused. After an error from
	// Deliver it is not called.
	Deliver(ctx context.Context, ev *Event, done func(Receipt)) error
}

// Receipt is what became of an event.
type Receipt struct {
	ID  MessageID // the host's ID of the message; "" if it made none
	Err *Refusal  // nil: it is durable
}

// Host is what a network may ask of the runtime.
type Host interface {
	Sink
	// Log is narrowed to the network. Message bodies and secrets do not go there.
	Log() *slog.Logger
	// Store is private to the network and outlives it.
	Store() Store
	// Media moves files.
	Media() Media
	// Rooms serves gateways; nil unless Capabilities.Gateway is declared.
	Rooms() Rooms
}

// Store is a durable map.
type Store interface {
	// Get returns nil, nil for a key that is not there.
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, value []byte) error
	Delete(ctx context.Context, key string) error
	// Scan returns all pairs whose key starts with prefix.
	Scan(ctx context.Context, prefix string) (map[string][]byte, error)
}

// Media moves files between the networks. Most backends need only [File.URL].
type Media interface {
	// Upload stores a file of the remote network at the host and returns it with
	// its URL set. Size limits of the host apply (a Refusal, too-large).
	Upload(ctx context.Context, f File, content io.Reader) (File, error)
}
