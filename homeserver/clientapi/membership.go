package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"strings"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/rooms"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

// setMembership sends a membership event as the one who asks.
func (r *request) setMembership(room matrix.RoomID, target matrix.UserID, membership, reason string, more map[string]any) error {
	content, err := r.api.memberContent(r.Context(), target, membership, reason)
	if err != nil {
		return err
	}
	if len(more) > 0 {
		all := map[string]any{}
		if err := json.Unmarshal(content, &all); err != nil {
			return err
		}
		for k, v := range more {
			all[k] = v
		}
		if content, err = json.Marshal(all); err != nil {
			return err
		}
	}
	key := string(target)
	if _, err = r.send(room, matrix.TypeMember, &key, content, rooms.SendOptions{}); err == nil && membership != matrix.Join {
		r.api.Typing.Set(room, target, 0)
	}
	return err
}

// resolveRoom takes a room ID, or an alias that it looks up.
func (a *api) resolveRoom(ctx context.Context, s string) (matrix.RoomID, error) {
	if strings.HasPrefix(s, "#") {
		return a.resolveAlias(ctx, s)
	}
	id, err := matrix.ParseRoomID(s)
	if err != nil {
		return "", matrix.InvalidParam("%q is neither a room ID nor an alias", s)
	}
	return id, nil
}

type reasonBody struct {
	Reason string `json:"reason"`
}

// postJoin: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3joinroomidoralias
func (a *api) postJoin(r *request) (any, error) {
	var in map[string]any
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	room, err := a.resolveRoom(r.Context(), r.PathValue("room"))
	if err != nil {
		return nil, err
	}
	return map[string]matrix.RoomID{"room_id": room}, a.join(r, room, in)
}

// join makes the one who asks a member; who is one already stays as they are. The
// body may have a reason and whatever else is to be in the event.
func (a *api) join(r *request, room matrix.RoomID, body map[string]any) error {
	membership, _, err := a.Store.MembershipOf(r.Context(), room, r.user)
	if err != nil || membership == matrix.Join {
		return err
	}
	more := map[string]any{}
	for k, v := range body {
		if k != "membership" && k != "third_party_signed" && k != authorisedVia {
			more[k] = v
		}
	}
	if membership != matrix.Invite {
		via, err := a.authorisedVia(r.Context(), room, r.user)
		if err != nil {
			return err
		}
		maps.Copy(more, via)
	}
	if err := r.setMembership(room, r.user, matrix.Join, "", more); err != nil {
		return err
	}
	return a.forget(r.Context(), r.user, room, false)
}

// authorisedVia is the field of a join with the user who vouches for it.
const authorisedVia = "join_authorised_via_users_server"

// authorisedVia names a member who lets a user into a room with a restricted join
// rule, if the user is in one of the rooms that the rule allows.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#restricted-rooms
func (a *api) authorisedVia(ctx context.Context, room matrix.RoomID, user matrix.UserID) (map[string]any, error) {
	rule, err := a.Store.CurrentStateKey(ctx, room, matrix.TypeJoinRules, "")
	if err != nil || rule == nil || !strings.HasSuffix(rule.String("join_rule"), "restricted") {
		return nil, err
	}
	member := false
	for _, allow := range rule.Get("allow").Array() {
		if allow.Get("type").Str != "m.room_membership" {
			continue
		}
		m, _, err := a.Store.MembershipOf(ctx, matrix.RoomID(allow.Get("room_id").Str), user)
		if err != nil {
			return nil, err
		}
		if member = m == matrix.Join; member {
			break
		}
	}
	if !member {
		return nil, nil // the rules decide: an invitation may do
	}
	levels, err := a.levels(ctx, room)
	if err != nil {
		return nil, err
	}
	joined, err := a.Store.Members(ctx, room, matrix.Join)
	if err != nil {
		return nil, err
	}
	for _, m := range joined {
		if m.User.Server() == a.ServerName && levels.User(m.User) >= levels.Invite {
			return map[string]any{authorisedVia: m.User}, nil
		}
	}
	return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeUnableToGrantJoin, "Nobody here may invite to the room")
}

func (a *api) postKnock(r *request) (any, error) {
	var in reasonBody
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	room, err := a.resolveRoom(r.Context(), r.PathValue("room"))
	if err != nil {
		return nil, err
	}
	if err := r.setMembership(room, r.user, matrix.Knock, in.Reason, nil); err != nil {
		return nil, err
	}
	return map[string]matrix.RoomID{"room_id": room}, a.forget(r.Context(), r.user, room, false)
}

// target reads the room, and the user and reason of the body.
func (r *request) target() (room matrix.RoomID, user matrix.UserID, reason string, err error) {
	var in struct {
		User   string `json:"user_id"`
		Reason string `json:"reason"`
	}
	if room, err = r.roomID(); err != nil {
		return "", "", "", err
	}
	if err := r.decode(&in); err != nil {
		return "", "", "", err
	}
	if in.User == "" {
		return "", "", "", matrix.MissingParam("No user_id")
	}
	if user, err = matrix.ParseUserID(in.User); err != nil {
		return "", "", "", matrix.InvalidParam("%q is not a user ID", in.User)
	}
	return room, user, in.Reason, nil
}

func (a *api) postInvite(r *request) (any, error) {
	room, user, reason, err := r.target()
	if err != nil {
		return nil, err
	}
	return empty, a.invite(r, room, user, reason, false)
}

func (a *api) invite(r *request, room matrix.RoomID, user matrix.UserID, reason string, direct bool) error {
	if user.Server() != a.ServerName {
		return matrix.NotFound("%s is on another server, and this one does not federate", user)
	}
	if err := a.exists(r.Context(), user); err != nil {
		return err
	}
	membership, _, err := a.Store.MembershipOf(r.Context(), room, user)
	if err != nil {
		return err
	}
	if membership == matrix.Join {
		return matrix.Forbidden("%s is in the room already", user)
	}
	var more map[string]any
	if direct {
		more = map[string]any{"is_direct": true}
	}
	if err := r.setMembership(room, user, matrix.Invite, reason, more); err != nil {
		return err
	}
	return a.forget(r.Context(), user, room, false)
}

// exists makes sure that there is such a user, asking the application service whose
// they would be.
func (a *api) exists(ctx context.Context, user matrix.UserID) error {
	_, err := a.Store.Account(ctx, user)
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if a.QueryUser != nil {
		if ok, err := a.QueryUser(ctx, user); err == nil && ok {
			return nil
		}
	}
	return matrix.NotFound("There is no user %s", user)
}

// postLeave leaves, declines an invitation, or takes back a knock.
func (a *api) postLeave(r *request) (any, error) {
	var in reasonBody
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	membership, _, err := a.Store.MembershipOf(r.Context(), room, r.user)
	switch {
	case err != nil:
		return nil, err
	case membership == matrix.Leave:
		return empty, nil
	case membership == "":
		return nil, matrix.Forbidden("You are not in the room")
	}
	return empty, r.setMembership(room, r.user, matrix.Leave, in.Reason, nil)
}

func (a *api) postForget(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	membership, _, err := a.Store.MembershipOf(r.Context(), room, r.user)
	switch {
	case err != nil:
		return nil, err
	case membership == "":
		return nil, matrix.NotFound("You were never in the room")
	case membership != matrix.Leave && membership != matrix.Ban:
		return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeUnknown, "Leave the room before you forget it")
	}
	return empty, a.forget(r.Context(), r.user, room, true)
}

func (a *api) postKick(r *request) (any, error) {
	room, user, reason, err := r.target()
	if err != nil {
		return nil, err
	}
	membership, _, err := a.Store.MembershipOf(r.Context(), room, user)
	if err != nil {
		return nil, err
	}
	if membership == matrix.Ban || membership == matrix.Leave || membership == "" {
		return nil, matrix.Forbidden("%s is not in the room", user)
	}
	return empty, r.setMembership(room, user, matrix.Leave, reason, nil)
}

func (a *api) postBan(r *request) (any, error) {
	room, user, reason, err := r.target()
	if err != nil {
		return nil, err
	}
	return empty, r.setMembership(room, user, matrix.Ban, reason, nil)
}

func (a *api) postUnban(r *request) (any, error) {
	room, user, reason, err := r.target()
	if err != nil {
		return nil, err
	}
	membership, _, err := a.Store.MembershipOf(r.Context(), room, user)
	if err != nil {
		return nil, err
	}
	if membership != matrix.Ban {
		return nil, matrix.Forbidden("%s is not banned from the room", user)
	}
	return empty, r.setMembership(room, user, matrix.Leave, reason, nil)
}

// createRoom is the body of POST /createRoom.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3createroom
type createRoom struct {
	Visibility   string                     `json:"visibility"`
	Alias        string                     `json:"room_alias_name"`
	Name         string                     `json:"name"`
	Topic        string                     `json:"topic"`
	Invite       []matrix.UserID            `json:"invite"`
	Invite3PID   []json.RawMessage          `json:"invite_3pid"`
	Version      *matrix.RoomVersion        `json:"room_version"`
	Creation     map[string]json.RawMessage `json:"creation_content"`
	InitialState []struct {
		Type     string          `json:"type"`
		StateKey string          `json:"state_key"`
		Content  json.RawMessage `json:"content"`
	} `json:"initial_state"`
	Preset        string                     `json:"preset"`
	Direct        bool                       `json:"is_direct"`
	PowerOverride map[string]json.RawMessage `json:"power_level_content_override"`
}

// presets of createRoom: join rule, history visibility, guest access.
var presets = map[string][3]string{
	"private_chat":         {"invite", "shared", "can_join"},
	"trusted_private_chat": {"invite", "shared", "can_join"},
	"public_chat":          {"public", "shared", "forbidden"},
}

func (a *api) postCreateRoom(r *request) (any, error) {
	var in createRoom
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if err := a.checkCreate(r, &in); err != nil {
		return nil, err
	}
	alias, err := a.aliasOf(r, in.Alias)
	if err != nil {
		return nil, err
	}
	version := r.defaultVersion(in.Version)
	if err := in.addCreators(version); err != nil {
		return nil, err
	}
	room, err := a.Rooms.Create(r.Context(), rooms.CreateRequest{
		Creator: r.user, Version: version, Content: in.Creation, TS: r.ts,
		Events: func(matrix.RoomID) ([]matrix.NewEvent, error) { return a.firstEvents(r, &in, version, alias) },
	})
	if err != nil {
		return nil, err
	}
	if err := a.afterCreate(r, &in, room, alias); err != nil {
		return nil, err
	}
	return map[string]matrix.RoomID{"room_id": room}, nil
}

// afterCreate does what stands outside of the room: alias, directory, invitations.
func (a *api) afterCreate(r *request, in *createRoom, room matrix.RoomID, alias matrix.RoomAlias) error {
	if alias != "" {
		if err := a.createAlias(r.Context(), alias, room, r.user); err != nil {
			return err
		}
	}
	if in.Visibility == "public" {
		if err := a.publish(r.Context(), room, "", true); err != nil {
			return err
		}
	}
	for _, u := range in.Invite {
		if err := a.invite(r, room, u, "", in.Direct); err != nil {
			if _, refused := errors.AsType[*matrix.Error](err); !refused {
				return err
			}
			a.log.Debug("invitation to a new room refused", "room_id", room, "err", err)
		}
	}
	return nil
}

func (a *api) checkCreate(r *request, in *createRoom) error {
	switch in.Visibility {
	case "":
		in.Visibility = "private"
	case "private", "public":
	default:
		return matrix.InvalidParam("visibility must be \"public\" or \"private\"")
	}
	if in.Preset == "" {
		in.Preset = map[string]string{"private": "private_chat", "public": "public_chat"}[in.Visibility]
	}
	if _, ok := presets[in.Preset]; !ok {
		return matrix.InvalidParam("Unknown preset %q", in.Preset)
	}
	for _, u := range in.Invite {
		if _, err := matrix.ParseUserID(string(u)); err != nil {
			return matrix.InvalidParam("%q is not a user ID", u)
		}
		if u.Server() == a.ServerName {
			if err := a.exists(r.Context(), u); err != nil {
				return err
			}
		}
	}
	if len(in.Invite3PID) > 0 {
		return matrix.Errorf(http.StatusBadRequest, "M_THREEPID_NOT_SUPPORTED", "Invitations by e-mail or phone are not supported")
	}
	return nil
}

// addCreators makes those invited to a trusted private chat creators, where the
// room version has several.
func (in *createRoom) addCreators(version matrix.RoomVersion) error {
	rules, ok := versionRules(version)
	if !ok || !rules.CreatorsInfinite || in.Preset != "trusted_private_chat" || len(in.Invite) == 0 {
		return nil
	}
	var creators []matrix.UserID
	if raw, ok := in.Creation["additional_creators"]; ok {
		if err := decodeJSON(raw, &creators); err != nil {
			return matrix.InvalidParam("additional_creators must be a list of user IDs")
		}
	}
	for _, u := range in.Invite {
		if !contains(creators, u) {
			creators = append(creators, u)
		}
	}
	raw, err := json.Marshal(creators)
	if in.Creation == nil {
		in.Creation = map[string]json.RawMessage{}
	}
	in.Creation["additional_creators"] = raw
	return err
}

// firstEvents is what follows m.room.create, in the order of the specification.
func (a *api) firstEvents(r *request, in *createRoom, version matrix.RoomVersion, alias matrix.RoomAlias) ([]matrix.NewEvent, error) {
	var list []matrix.NewEvent
	var fault error
	add := func(typ, key string, content any) {
		b, err := json.Marshal(content)
		if err != nil {
			fault = err
		}
		list = append(list, matrix.NewEvent{Type: typ, Sender: r.user, StateKey: &key, Content: b})
	}
	member, err := a.memberContent(r.Context(), r.user, matrix.Join, "")
	if err != nil {
		return nil, err
	}
	add(matrix.TypeMember, string(r.user), member)
	add(matrix.TypePowerLevels, "", in.powerLevels(r.user, version))
	if alias != "" {
		add(matrix.TypeCanonicalAlias, "", map[string]any{"alias": alias})
	}
	given := map[matrix.StateKey]bool{}
	for _, s := range in.InitialState {
		given[matrix.StateKey{Type: s.Type, Key: s.StateKey}] = true
	}
	unlessGiven := func(typ, field string, value string) {
		if value != "" && !given[matrix.StateKey{Type: typ}] {
			add(typ, "", map[string]string{field: value})
		}
	}
	p := presets[in.Preset]
	unlessGiven(matrix.TypeJoinRules, "join_rule", p[0])
	unlessGiven(matrix.TypeHistoryVisibility, "history_visibility", p[1])
	unlessGiven(matrix.TypeGuestAccess, "guest_access", p[2])
	for _, s := range in.InitialState {
		if len(s.Content) == 0 {
			return nil, matrix.BadJSON("initial_state has an event without content")
		}
		add(s.Type, s.StateKey, s.Content)
	}
	if in.Name != "" {
		add(matrix.TypeName, "", map[string]string{"name": in.Name})
	}
	if in.Topic != "" {
		add(matrix.TypeTopic, "", map[string]any{"topic": in.Topic, "m.topic": map[string]any{"m.text": []map[string]string{{"body": in.Topic}}}})
	}
	return list, fault
}

func (in *createRoom) powerLevels(creator matrix.UserID, version matrix.RoomVersion) map[string]any {
	rules, _ := versionRules(version)
	infinite := rules != nil && rules.CreatorsInfinite
	users := map[matrix.UserID]int{}
	if !infinite {
		users[creator] = 100
		if in.Preset == "trusted_private_chat" {
			for _, u := range in.Invite {
				users[u] = 100
			}
		}
	}
	tombstone := 100
	if infinite {
		tombstone = 150
	}
	content := map[string]any{
		"users": users, "users_default": 0, "events_default": 0, "state_default": 50,
		"ban": 50, "kick": 50, "redact": 50, "invite": 0, "historical": 100,
		"events": map[string]int{
			matrix.TypeName: 50, matrix.TypePowerLevels: 100, matrix.TypeHistoryVisibility: 100, matrix.TypeCanonicalAlias: 50,
			matrix.TypeAvatar: 50, matrix.TypeTombstone: tombstone, matrix.TypeServerACL: 100, matrix.TypeEncryption: 100,
		},
	}
	for k, v := range in.PowerOverride {
		content[k] = v
	}
	return content
}
