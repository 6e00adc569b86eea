package appservice

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// prefix of the Client-Server API.
const prefix = "/_matrix/client/v3"

// Intent acts as one user. An error of its methods that the homeserver gave is an
// [*Error].
type Intent struct {
	client *Client
	user   matrix.UserID
	query  string // user_id=…, "" for the bot
	token  string // the Authorization header, "" for none

	registered atomic.Bool
	turn       chan struct{} // held by who registers the user
}

func newIntent(c *Client, user matrix.UserID) *Intent {
	return &Intent{client: c, user: user, token: c.token, query: "user_id=" + url.QueryEscape(string(user)), turn: make(chan struct{}, 1)}
}

// UserID of whom it acts as.
func (i *Intent) UserID() matrix.UserID { return i.user }

// EnsureRegistered makes the user's account unless it is known to be there. All
// other methods do so themselves.
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/#server-admin-style-permissions
func (i *Intent) EnsureRegistered(ctx context.Context) error {
	if i.registered.Load() {
		return nil
	}
	select {
	case i.turn <- struct{}{}:
		defer func() { <-i.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if i.registered.Load() {
		return nil
	}
	in := map[string]any{"type": "m.login.application_service", "username": i.user.Localpart(), "inhibit_login": true}
	// The bot registers them all: user_id may only name who is registered.
	err := i.client.bot.do(ctx, call{method: http.MethodPost, path: prefix + "/register", in: in})
	if e, ok := errors.AsType[*Error](err); err != nil && !(ok && e.Code == matrix.CodeUserInUse) {
		return fmt.Errorf("register %s: %w", i.user, err)
	}
	i.registered.Store(true)
	return nil
}

// act is do for a registered user, with the error saying what was tried.
func (i *Intent) act(ctx context.Context, what string, c call) error {
	if err := i.EnsureRegistered(ctx); err != nil {
		return err
	}
	if err := i.do(ctx, c); err != nil {
		return fmt.Errorf("%s as %s: %w", what, i.user, err)
	}
	return nil
}

type eventID struct {
	ID matrix.EventID `json:"event_id"`
}

type roomID struct {
	ID matrix.RoomID `json:"room_id"`
}

func room(id matrix.RoomID, segments ...string) string {
	return path(prefix+"/rooms", append([]string{string(id)}, segments...)...)
}

// txn is the transaction ID, made up if there is none.
func txn(id string) string {
	if id == "" {
		return rand.Text()
	}
	return id
}

// Send sends a message event. The same txnID again returns the first event's ID;
// "" is always new. A zero ts is now.
func (i *Intent) Send(ctx context.Context, id matrix.RoomID, typ, txnID string, content any, ts time.Time) (matrix.EventID, error) {
	var out eventID
	c := call{method: http.MethodPut, path: room(id, "send", typ, txn(txnID)), in: content, out: &out}
	if !ts.IsZero() {
		c.query = url.Values{"ts": {strconv.FormatInt(ts.UnixMilli(), 10)}}
	}
	err := i.act(ctx, "send "+typ, c)
	return out.ID, err
}

// SendState sets a piece of the room's state.
func (i *Intent) SendState(ctx context.Context, id matrix.RoomID, typ, key string, content any) (matrix.EventID, error) {
	var out eventID
	err := i.act(ctx, "set state "+typ, call{method: http.MethodPut, path: room(id, "state", typ, key), in: content, out: &out})
	return out.ID, err
}

// Redact redacts an event. txnID is as in Send.
func (i *Intent) Redact(ctx context.Context, id matrix.RoomID, event matrix.EventID, txnID, reason string) (matrix.EventID, error) {
	var out eventID
	err := i.act(ctx, "redact", call{method: http.MethodPut, path: room(id, "redact", string(event), txn(txnID)), in: withReason(nil, reason), out: &out})
	return out.ID, err
}

// withReason adds a reason to a body, if there is one.
func withReason(body map[string]any, reason string) map[string]any {
	if body == nil {
		body = map[string]any{}
	}
	if reason != "" {
		body["reason"] = reason
	}
	return body
}

// Join enters a room by its ID or alias; via are servers that may know it.
func (i *Intent) Join(ctx context.Context, idOrAlias string, via ...string) (matrix.RoomID, error) {
	var out roomID
	c := call{method: http.MethodPost, path: path(prefix+"/join", idOrAlias), in: struct{}{}, out: &out}
	if len(via) > 0 {
		c.query = url.Values{"via": via, "server_name": via}
	}
	err := i.act(ctx, "join "+idOrAlias, c)
	return out.ID, err
}

// Leave leaves a room or turns an invitation down.
func (i *Intent) Leave(ctx context.Context, id matrix.RoomID, reason string) error {
	return i.membership(ctx, "leave", id, "", reason)
}

// Invite invites a user.
func (i *Intent) Invite(ctx context.Context, id matrix.RoomID, user matrix.UserID, reason string) error {
	return i.membership(ctx, "invite", id, user, reason)
}

// Kick removes a user.
func (i *Intent) Kick(ctx context.Context, id matrix.RoomID, user matrix.UserID, reason string) error {
	return i.membership(ctx, "kick", id, user, reason)
}

// Ban bans a user.
func (i *Intent) Ban(ctx context.Context, id matrix.RoomID, user matrix.UserID, reason string) error {
	return i.membership(ctx, "ban", id, user, reason)
}

// Unban lifts a ban.
func (i *Intent) Unban(ctx context.Context, id matrix.RoomID, user matrix.UserID, reason string) error {
	return i.membership(ctx, "unban", id, user, reason)
}

func (i *Intent) membership(ctx context.Context, action string, id matrix.RoomID, user matrix.UserID, reason string) error {
	in := withReason(nil, reason)
	if user != "" {
		in["user_id"] = user
	}
	return i.act(ctx, action, call{method: http.MethodPost, path: room(id, action), in: in})
}

// CreateRoom makes a room; req is the body of POST /createRoom.
func (i *Intent) CreateRoom(ctx context.Context, req any) (matrix.RoomID, error) {
	var out roomID
	err := i.act(ctx, "create room", call{method: http.MethodPost, path: prefix + "/createRoom", in: req, out: &out})
	return out.ID, err
}

// ResolveAlias returns the room of an alias.
func (i *Intent) ResolveAlias(ctx context.Context, alias matrix.RoomAlias) (matrix.RoomID, error) {
	var out roomID
	err := i.act(ctx, "resolve "+string(alias), call{method: http.MethodGet, path: directory(alias), out: &out})
	return out.ID, err
}

// CreateAlias makes an alias of a room.
func (i *Intent) CreateAlias(ctx context.Context, alias matrix.RoomAlias, id matrix.RoomID) error {
	return i.act(ctx, "create alias "+string(alias), call{method: http.MethodPut, path: directory(alias), in: roomID{id}})
}

// DeleteAlias removes an alias.
func (i *Intent) DeleteAlias(ctx context.Context, alias matrix.RoomAlias) error {
	return i.act(ctx, "delete alias "+string(alias), call{method: http.MethodDelete, path: directory(alias)})
}

func directory(alias matrix.RoomAlias) string { return path(prefix+"/directory/room", string(alias)) }

// State returns the whole current state of a room.
func (i *Intent) State(ctx context.Context, id matrix.RoomID) ([]Event, error) {
	var out []Event
	err := i.act(ctx, "read state", call{method: http.MethodGet, path: room(id, "state"), out: &out})
	return out, err
}

// StateEvent decodes the content of a piece of state into a struct whose json tags
// are taken as they are written, case included. The error is an [*Error] with
// M_NOT_FOUND if there is none.
func (i *Intent) StateEvent(ctx context.Context, id matrix.RoomID, typ, key string, into any) error {
	return i.act(ctx, "read state "+typ, call{method: http.MethodGet, path: room(id, "state", typ, key), out: into})
}

// JoinedMembers returns who is in a room.
func (i *Intent) JoinedMembers(ctx context.Context, id matrix.RoomID) (map[matrix.UserID]Profile, error) {
	var out struct {
		Joined map[matrix.UserID]struct {
			DisplayName *string `json:"display_name"`
			AvatarURL   *string `json:"avatar_url"`
		} `json:"joined"`
	}
	err := i.act(ctx, "read members", call{method: http.MethodGet, path: room(id, "joined_members"), out: &out})
	members := make(map[matrix.UserID]Profile, len(out.Joined))
	for u, p := range out.Joined {
		members[u] = Profile{orEmpty(p.DisplayName), orEmpty(p.AvatarURL)}
	}
	return members, err
}

func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// JoinedRooms returns the rooms the user is in.
func (i *Intent) JoinedRooms(ctx context.Context) ([]matrix.RoomID, error) {
	var out struct {
		Rooms []matrix.RoomID `json:"joined_rooms"`
	}
	err := i.act(ctx, "read joined rooms", call{method: http.MethodGet, path: prefix + "/joined_rooms", out: &out})
	return out.Rooms, err
}

// Page of a room's history.
type Page struct {
	Start string  `json:"start"`
	End   string  `json:"end"` // "" at the end
	Chunk []Event `json:"chunk"`
	State []Event `json:"state"`
}

// Messages reads history from a token ("" is the end that dir comes from) in
// direction "b" or "f".
func (i *Intent) Messages(ctx context.Context, id matrix.RoomID, from, dir string, limit int) (Page, error) {
	var out Page
	q := url.Values{"dir": {dir}, "limit": {strconv.Itoa(limit)}}
	if from != "" {
		q.Set("from", from)
	}
	err := i.act(ctx, "read messages", call{method: http.MethodGet, path: room(id, "messages"), query: q, out: &out})
	return out, err
}

// Event returns one event of a room.
func (i *Intent) Event(ctx context.Context, id matrix.RoomID, event matrix.EventID) (*Event, error) {
	out := new(Event)
	if err := i.act(ctx, "read event", call{method: http.MethodGet, path: room(id, "event", string(event)), out: out}); err != nil {
		return nil, err
	}
	return out, nil
}

// SetDisplayName sets the user's name.
func (i *Intent) SetDisplayName(ctx context.Context, name string) error {
	return i.setProfile(ctx, "displayname", name)
}

// SetAvatarURL sets the user's picture.
func (i *Intent) SetAvatarURL(ctx context.Context, mxc string) error {
	return i.setProfile(ctx, "avatar_url", mxc)
}

func (i *Intent) setProfile(ctx context.Context, field, value string) error {
	c := call{method: http.MethodPut, path: path(prefix+"/profile", string(i.user), field), in: map[string]string{field: value}}
	return i.act(ctx, "set "+field, c)
}

// Profile returns a user's name and picture.
func (i *Intent) Profile(ctx context.Context, user matrix.UserID) (Profile, error) {
	var out Profile
	err := i.act(ctx, "read profile", call{method: http.MethodGet, path: path(prefix+"/profile", string(user)), out: &out})
	return out, err
}

// Typing says that the user types, for so long at the most, or no longer.
func (i *Intent) Typing(ctx context.Context, id matrix.RoomID, on bool, timeout time.Duration) error {
	in := map[string]any{"typing": on}
	if on {
		in["timeout"] = timeout.Milliseconds()
	}
	return i.act(ctx, "type", call{method: http.MethodPut, path: room(id, "typing", string(i.user)), in: in})
}

// Receipt says that the user has read as far as an event.
func (i *Intent) Receipt(ctx context.Context, id matrix.RoomID, event matrix.EventID) error {
	return i.act(ctx, "send receipt", call{method: http.MethodPost, path: room(id, "receipt", "m.read", string(event)), in: struct{}{}})
}

// PublicRoom is an entry of the room directory.
type PublicRoom struct {
	ID        matrix.RoomID    `json:"room_id"`
	Alias     matrix.RoomAlias `json:"canonical_alias"`
	Name      string           `json:"name"`
	Topic     string           `json:"topic"`
	AvatarURL string           `json:"avatar_url"`
	Members   int              `json:"num_joined_members"`
	JoinRule  string           `json:"join_rule"`
}

// PublicRooms returns at most limit rooms of the directory whose name, topic or
// alias contains a text; "" is all.
func (i *Intent) PublicRooms(ctx context.Context, query string, limit int) ([]PublicRoom, error) {
	in := map[string]any{"limit": limit}
	if query != "" {
		in["filter"] = map[string]any{"generic_search_term": query}
	}
	var out struct {
		Chunk []PublicRoom `json:"chunk"`
	}
	err := i.act(ctx, "list public rooms", call{method: http.MethodPost, path: prefix + "/publicRooms", in: in, out: &out})
	return out.Chunk, err
}

// Login checks the password of any user of the homeserver, given by localpart or
// ID, and returns who that is. The token that comes of it is given up at once. The
// error is an [*Error] with M_FORBIDDEN if the password is wrong.
func (i *Intent) Login(ctx context.Context, user, password string) (matrix.UserID, error) {
	in := map[string]any{
		"type": "m.login.password", "password": password,
		"identifier": map[string]string{"type": "m.id.user", "user": user},
	}
	var out struct {
		User  matrix.UserID `json:"user_id"`
		Token string        `json:"access_token"`
	}
	someone := &Intent{client: i.client}
	if err := someone.do(ctx, call{method: http.MethodPost, path: prefix + "/login", in: in, out: &out}); err != nil {
		return "", fmt.Errorf("check password: %w", err)
	}
	someone.token = "Bearer " + out.Token
	if err := someone.do(context.WithoutCancel(ctx), call{method: http.MethodPost, path: prefix + "/logout", in: struct{}{}}); err != nil {
		i.client.log.Warn("a session could not be logged out", "user_id", out.User, "err", err)
	}
	return out.User, nil
}

// Versions of the specification that the homeserver supports.
func (i *Intent) Versions(ctx context.Context) ([]string, error) {
	var out struct {
		Versions []string `json:"versions"`
	}
	if err := i.do(ctx, call{method: http.MethodGet, path: "/_matrix/client/versions", out: &out}); err != nil {
		return nil, fmt.Errorf("read versions: %w", err)
	}
	return out.Versions, nil
}

// Ping has the homeserver ping the service, and returns how long that took.
//
// Spec: https://spec.matrix.org/v1.19/application-service-api/#post_matrixclientv1appserviceappserviceidping
func (i *Intent) Ping(ctx context.Context, txnID string) (time.Duration, error) {
	in := map[string]string{}
	if txnID != "" {
		in["transaction_id"] = txnID
	}
	var out struct {
		Duration int64 `json:"duration_ms"`
	}
	err := i.client.bot.do(ctx, call{method: http.MethodPost, path: path("/_matrix/client/v1/appservice", i.client.service, "ping"), in: in, out: &out})
	if err != nil {
		return 0, fmt.Errorf("ping: %w", err)
	}
	return time.Duration(out.Duration) * time.Millisecond, nil
}
