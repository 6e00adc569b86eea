package clientapi

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

func (r *request) defaultVersion(v *matrix.RoomVersion) matrix.RoomVersion {
	if v == nil {
		return r.api.DefaultRoomVersion
	}
	return *v
}

func versionRules(v matrix.RoomVersion) (*roomversion.Rules, bool) { return roomversion.Get(v) }

func contains[T comparable](list []T, v T) bool { return slices.Contains(list, v) }

// aliasOf makes the alias that a room is to be created with, "" for none.
func (a *api) aliasOf(r *request, localpart string) (matrix.RoomAlias, error) {
	if localpart == "" {
		return "", nil
	}
	alias, err := a.newAlias(r, "#"+localpart+":"+string(a.ServerName))
	if err != nil {
		return "", err
	}
	if _, _, err := a.Store.Alias(r.Context(), alias); err == nil {
		return "", matrix.Errorf(http.StatusBadRequest, matrix.CodeRoomInUse, "%s is taken", alias)
	}
	return alias, nil
}

// newAlias checks that an alias may be made by the one who asks.
func (a *api) newAlias(r *request, s string) (matrix.RoomAlias, error) {
	alias, err := matrix.ParseRoomAlias(s)
	if err != nil {
		return "", matrix.InvalidParam("%q is not a room alias", s)
	}
	if alias.Server() != a.ServerName {
		return "", matrix.InvalidParam("%s is not an alias of this server", alias)
	}
	if owner, owned := a.Registry.ExclusiveAlias(alias); owned && owner != r.service {
		return "", matrix.Errorf(http.StatusBadRequest, matrix.CodeExclusive, "The alias belongs to an application service")
	}
	return alias, nil
}

func (a *api) createAlias(ctx context.Context, alias matrix.RoomAlias, room matrix.RoomID, creator matrix.UserID) error {
	free := false
	err := a.Store.Write(ctx, func(tx *sqldb.Tx) (err error) {
		free, err = a.Store.CreateAlias(tx, alias, room, creator)
		return err
	})
	if err == nil && !free {
		err = matrix.Errorf(http.StatusConflict, matrix.CodeRoomInUse, "%s is taken", alias)
	}
	return err
}

// resolveAlias returns the room of an alias. An application service whose alias it
// is may make the room when it is asked.
func (a *api) resolveAlias(ctx context.Context, s string) (matrix.RoomID, error) {
	alias, err := matrix.ParseRoomAlias(s)
	if err != nil {
		return "", matrix.InvalidParam("%q is not a room alias", s)
	}
	room, _, err := a.Store.Alias(ctx, alias)
	if err == nil {
		return room, nil
	}
	if err != store.ErrNotFound {
		return "", err
	}
	if alias.Server() == a.ServerName && a.QueryAlias != nil {
		if ok, err := a.QueryAlias(ctx, alias); err == nil && ok {
			if room, _, err = a.Store.Alias(ctx, alias); err == nil {
				return room, nil
			}
		}
	}
	return "", matrix.NotFound("There is no room %s", alias)
}

func (a *api) getAlias(r *request) (any, error) {
	room, err := a.resolveAlias(r.Context(), r.PathValue("alias"))
	if err != nil {
		return nil, err
	}
	return map[string]any{"room_id": room, "servers": []matrix.ServerName{a.ServerName}}, nil
}

func (a *api) putAlias(r *request) (any, error) {
	alias, err := a.newAlias(r, r.PathValue("alias"))
	if err != nil {
		return nil, err
	}
	var in struct {
		Room string `json:"room_id"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	room, err := matrix.ParseRoomID(in.Room)
	if err != nil {
		return nil, matrix.InvalidParam("%q is not a room ID", in.Room)
	}
	if r.service == nil {
		if m, _, err := a.Store.MembershipOf(r.Context(), room, r.user); err != nil || m != matrix.Join {
			return nil, matrix.Forbidden("You are not in the room")
		}
	}
	return empty, a.createAlias(r.Context(), alias, room, r.user)
}

// deleteAlias lets go those who made the alias, and those who may name the room.
func (a *api) deleteAlias(r *request) (any, error) {
	alias, err := matrix.ParseRoomAlias(r.PathValue("alias"))
	if err != nil {
		return nil, matrix.InvalidParam("%q is not a room alias", r.PathValue("alias"))
	}
	room, creator, err := a.Store.Alias(r.Context(), alias)
	if err != nil {
		return nil, err
	}
	if owner, owned := a.Registry.ExclusiveAlias(alias); owned && owner != r.service {
		return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeExclusive, "The alias belongs to an application service")
	}
	if creator != r.user && r.service == nil && !a.mayAdminister(r, room, matrix.TypeCanonicalAlias) {
		return nil, matrix.Forbidden("You may not delete this alias")
	}
	if err := a.Store.Write(r.Context(), func(tx *sqldb.Tx) error { return a.Store.DeleteAlias(tx, alias) }); err != nil {
		return nil, err
	}
	return empty, a.dropCanonical(r, room, alias)
}

// mayAdminister reports whether the one who asks may send a state event to a room.
func (a *api) mayAdminister(r *request, room matrix.RoomID, typ string) bool {
	m, _, err := a.Store.MembershipOf(r.Context(), room, r.user)
	if err != nil || m != matrix.Join {
		return false
	}
	l, err := a.levels(r.Context(), room)
	return err == nil && l.User(r.user) >= l.Event(typ, true)
}

// dropCanonical takes an alias that is gone out of the room's own list, if the one
// who deleted it may change that.
func (a *api) dropCanonical(r *request, room matrix.RoomID, alias matrix.RoomAlias) error {
	e, err := a.Store.CurrentStateKey(r.Context(), room, matrix.TypeCanonicalAlias, "")
	if err != nil || e == nil || !a.mayAdminister(r, room, matrix.TypeCanonicalAlias) {
		return err
	}
	var content map[string]any
	if err := decodeJSON(e.Content, &content); err != nil {
		return nil // another server's; not ours to mend
	}
	changed := false
	if content["alias"] == string(alias) {
		delete(content, "alias")
		changed = true
	}
	if alts, ok := content["alt_aliases"].([]any); ok {
		kept := slices.DeleteFunc(slices.Clone(alts), func(v any) bool { return v == string(alias) })
		changed = changed || len(kept) < len(alts)
		content["alt_aliases"] = kept
	}
	if !changed {
		return nil
	}
	return r.sendState(room, matrix.TypeCanonicalAlias, "", content)
}

func (a *api) getRoomAliases(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	v, err := a.viewer(r.Context(), room, r.user)
	if err != nil {
		return nil, err
	}
	if v.until > 0 {
		return nil, matrix.Forbidden("You are not in the room")
	}
	list, err := a.Store.Aliases(r.Context(), room)
	if list == nil {
		list = []matrix.RoomAlias{}
	}
	return map[string]any{"aliases": list}, err
}

func (a *api) publish(ctx context.Context, room matrix.RoomID, network string, on bool) error {
	return a.Store.Write(ctx, func(tx *sqldb.Tx) error { return a.Store.Publish(tx, room, network, on) })
}

func (a *api) getPublished(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	if _, err := a.Store.Rules(r.Context(), room); err != nil {
		return nil, matrix.NotFound("There is no such room here")
	}
	on, err := a.Store.Published(r.Context(), room)
	return map[string]string{"visibility": visibilityText(on)}, err
}

func visibilityText(public bool) string {
	if public {
		return "public"
	}
	return "private"
}

func (r *request) visibility() (bool, error) {
	var in struct {
		Visibility string `json:"visibility"`
	}
	if err := r.decode(&in); err != nil {
		return false, err
	}
	switch in.Visibility {
	case "", "public":
		return true, nil
	case "private":
		return false, nil
	}
	return false, matrix.InvalidParam("visibility must be \"public\" or \"private\"")
}

func (a *api) putPublished(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	on, err := r.visibility()
	if err != nil {
		return nil, err
	}
	if _, err := a.Store.Rules(r.Context(), room); err != nil {
		return nil, matrix.NotFound("There is no such room here")
	}
	if !a.mayAdminister(r, room, matrix.TypeCanonicalAlias) {
		return nil, matrix.Forbidden("You may not change whether the room is listed")
	}
	return empty, a.publish(r.Context(), room, "", on)
}

func (a *api) putServicePublished(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	on, err := r.visibility()
	if err != nil {
		return nil, err
	}
	return empty, a.publish(r.Context(), room, r.service.Registration.ID+"/"+r.PathValue("network"), on)
}

// publicRooms is the query of the room directory.
type publicRooms struct {
	Limit  int    `json:"limit"`
	Since  string `json:"since"`
	Filter struct {
		Term  string    `json:"generic_search_term"`
		Types []*string `json:"room_types"`
	} `json:"filter"`
	AllNetworks bool   `json:"include_all_networks"`
	Network     string `json:"third_party_instance_id"`
}

func (a *api) getPublicRooms(r *request) (any, error) {
	q := publicRooms{Since: r.URL.Query().Get("since")}
	var err error
	if q.Limit, err = r.intQuery("limit", 100, 0, 1000); err != nil {
		return nil, err
	}
	if err := a.onlyHere(r); err != nil {
		return nil, err
	}
	return a.publicRooms(r.Context(), q)
}

func (a *api) postPublicRooms(r *request) (any, error) {
	q := publicRooms{Limit: 100}
	if err := r.decode(&q); err != nil {
		return nil, err
	}
	if err := a.onlyHere(r); err != nil {
		return nil, err
	}
	return a.publicRooms(r.Context(), q)
}

func (a *api) onlyHere(r *request) error {
	if s := r.URL.Query().Get("server"); s != "" && s != string(a.ServerName) {
		return matrix.NotFound("This server does not ask %q", s)
	}
	return nil
}

// roomSummary is a line of the directory.
type roomSummary struct {
	Room       matrix.RoomID `json:"room_id"`
	Name       string        `json:"name,omitempty"`
	Topic      string        `json:"topic,omitempty"`
	Alias      string        `json:"canonical_alias,omitempty"`
	Avatar     string        `json:"avatar_url,omitempty"`
	Members    int           `json:"num_joined_members"`
	World      bool          `json:"world_readable"`
	Guests     bool          `json:"guest_can_join"`
	JoinRule   string        `json:"join_rule,omitempty"`
	RoomType   string        `json:"room_type,omitempty"`
	Encryption string        `json:"encryption,omitempty"`
}

func (a *api) publicRooms(ctx context.Context, q publicRooms) (any, error) {
	ids, err := a.Store.PublishedRooms(ctx, q.Network, q.AllNetworks)
	if err != nil {
		return nil, err
	}
	matching := []roomSummary{}
	term := strings.ToLower(q.Filter.Term)
	for _, id := range ids {
		s, err := a.summary(ctx, id)
		if err != nil {
			return nil, err
		}
		if term != "" && !strings.Contains(strings.ToLower(s.Name+"\x00"+s.Topic+"\x00"+s.Alias), term) {
			continue
		}
		if len(q.Filter.Types) > 0 && !slices.ContainsFunc(q.Filter.Types, func(t *string) bool { return t == nil && s.RoomType == "" || t != nil && *t == s.RoomType }) {
			continue
		}
		matching = append(matching, s)
	}
	total := len(matching)
	start := 0
	if q.Since != "" {
		if start, err = strconv.Atoi(q.Since); err != nil || start < 0 || start > total {
			return nil, matrix.InvalidParam("since is not a token of ours")
		}
	}
	if q.Limit <= 0 {
		q.Limit = 100
	}
	end := min(start+q.Limit, total)
	out := map[string]any{"chunk": matching[start:end], "total_room_count_estimate": total}
	if end < total {
		out["next_batch"] = strconv.Itoa(end)
	}
	if start > 0 {
		out["prev_batch"] = strconv.Itoa(max(0, start-q.Limit))
	}
	return out, nil
}

// summary of a room, from its current state.
func (a *api) summary(ctx context.Context, room matrix.RoomID) (roomSummary, error) {
	s := roomSummary{Room: room}
	list, err := a.Store.CurrentStateOf(ctx, room, matrix.TypeName, matrix.TypeTopic, matrix.TypeCanonicalAlias, matrix.TypeAvatar, matrix.TypeHistoryVisibility,
		matrix.TypeGuestAccess, matrix.TypeJoinRules, matrix.TypeCreate, matrix.TypeEncryption)
	if err != nil {
		return s, err
	}
	for _, e := range list {
		if *e.StateKey != "" {
			continue
		}
		switch e.Type {
		case matrix.TypeName:
			s.Name = e.String("name")
		case matrix.TypeTopic:
			s.Topic = e.String("topic")
		case matrix.TypeCanonicalAlias:
			s.Alias = e.String("alias")
		case matrix.TypeAvatar:
			s.Avatar = e.String("url")
		case matrix.TypeHistoryVisibility:
			s.World = e.String("history_visibility") == "world_readable"
		case matrix.TypeGuestAccess:
			s.Guests = e.String("guest_access") == "can_join"
		case matrix.TypeJoinRules:
			s.JoinRule = e.String("join_rule")
		case matrix.TypeCreate:
			s.RoomType = e.String("type")
		case matrix.TypeEncryption:
			s.Encryption = e.String("algorithm")
		}
	}
	s.Members, _, err = a.Store.MemberCounts(ctx, room)
	return s, err
}
