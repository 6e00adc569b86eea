package backends

import (
	"time"

	"github.com/gjallar-im/gjallar/backends/richtext"
)

// Body is what an Event or Command says: one of the types below.
type Body interface{ body() }

// MessageKind tells plain speech from the rest.
type MessageKind int

const (
	Text   MessageKind = iota // said by a person
	Emote                     // "/me"
	Notice                    // said by a program
)

// Message is something said.
type Message struct {
	Kind    MessageKind
	Text    richtext.Doc
	ReplyTo *Quote
	Thread  MessageID // the thread's first message, "" if none
	Files   []File
}

// Quote is the message that a reply refers to.
type Quote struct {
	ID     MessageID // "" if the other side does not have it
	Sender User
	Text   string // an excerpt, plain, for networks without replies
}

// File is an attachment.
type File struct {
	URL       string // http(s): towards a backend signed, expiring, needing no login
	Name      string
	MediaType string // MIME
	Size      int64  // bytes, 0 if unknown
	Width     int    // pixels, 0 if unknown
	Height    int
	Duration  time.Duration
	Thumbnail string // URL
}

// Edit replaces the content of an earlier message.
type Edit struct {
	Target MessageID
	New    Message
	// Old is the text before, plain, for fallbacks that show the difference.
	Old string
}

// Reaction adds Key (an emoji or a short text) to a message, or takes it away.
type Reaction struct {
	Target  MessageID
	Key     string
	Removed bool
	Quote   *Quote // for fallbacks
}

// Removal deletes an earlier message.
type Removal struct {
	Target    MessageID
	Reason    string
	Moderated bool // by someone other than its author
}

// Typing starts or stops.
type Typing struct{ On bool }

// Read says how far the sender has read.
type Read struct{ UpTo MessageID }

// Presence of the sender.
type Presence struct {
	State  PresenceState
	Status string
}

// PresenceState of a user.
type PresenceState string

const (
	Online  PresenceState = "online"
	Away    PresenceState = "away"
	Offline PresenceState = "offline"
)

// Action on a membership.
type Action string

const (
	Joined   Action = "join"
	Left     Action = "leave"
	Kicked   Action = "kick"
	Banned   Action = "ban"
	Unbanned Action = "unban"
	Invited  Action = "invite"
	Knocked  Action = "knock"
)

// Member changes who is in the chat. Who acts is the sender; whom it concerns is
// User (for Joined and Left the same person).
type Member struct {
	Action Action
	User   User
	Reason string
	Role   Role
	// Quiet marks changes that come in masses and mean little (a netsplit, the
	// member list at the start): the host may apply them late or not at all.
	Quiet bool
}

// Members is the whole list of members, told when a chat is joined or when the
// list was lost track of. The host removes those it has beyond it.
type Members struct{ Members []Member }

// Role in a chat, by what its holder may do.
type Role int

const (
	NoRole  Role = iota // not said
	Visitor             // may not speak
	Participant
	Voice // may speak where others may not
	HalfOp
	Moderator
	Admin
	Owner
)

// RoleChange gives User a role.
type RoleChange struct {
	User User
	Role Role
}

// Profile says that the sender is called and looks different now.
type Profile struct {
	User User
	// Was is the ID before, if the network renames (an IRC nick); "" otherwise.
	Was UserID
}

// ChatInfo describes a chat. As a body it says what has changed: nil fields have not.
type ChatInfo struct {
	Chat    ChatKey
	Direct  bool
	Name    *string
	Topic   *string
	Avatar  *string
	Public  *bool // anyone may join
	Members int   // count, for listings
	// Peer of a private chat.
	Peer *User
}

// NetworkPhase is where a network stands.
type NetworkPhase string

const (
	Connecting   NetworkPhase = "connecting"
	Ready        NetworkPhase = "ready"        // the host should Join its chats
	Disconnected NetworkPhase = "disconnected" // will be tried again
	Failed       NetworkPhase = "failed"       // someone must act; Reason says what
)

// NetworkState tells of the network itself (Event.Chat is empty).
type NetworkState struct {
	Phase        NetworkPhase
	Reason       string
	Capabilities *Capabilities // if they differ from Info's
}

// AccountState tells of the account of a user of the host.
type AccountState struct {
	Account AccountID
	Phase   NetworkPhase
	Address string // nick or JID by which the account is known on the network
	Reason  string
}

// Gap says that messages of the chat between the two times may be missing, and
// that the network has no way to fetch them.
type Gap struct {
	From, To time.Time
}

func (*Message) body()      {}
func (*Edit) body()         {}
func (*Reaction) body()     {}
func (*Removal) body()      {}
func (*Typing) body()       {}
func (*Read) body()         {}
func (*Presence) body()     {}
func (*Member) body()       {}
func (*Members) body()      {}
func (*RoleChange) body()   {}
func (*Profile) body()      {}
func (*ChatInfo) body()     {}
func (*NetworkState) body() {}
func (*AccountState) body() {}
func (*Gap) body()          {}
