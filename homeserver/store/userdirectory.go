package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"strings"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
)

// DirectoryUser is someone found in the user directory.
type DirectoryUser struct {
	User        matrix.UserID   `json:"user_id"`
	DisplayName json.RawMessage `json:"display_name,omitempty"`
	AvatarURL   json.RawMessage `json:"avatar_url,omitempty"`
}

// likeEscape takes its meaning from what LIKE gives one to.
var likeEscape = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

// SearchUsers returns at most limit users whose localpart or display name contains
// a text, of the others that a user shares a room with or who are in public rooms.
func (s *Store) SearchUsers(ctx context.Context, user matrix.UserID, text string, limit int) (out []DirectoryUser, err error) {
	pattern := likeEscape.Replace(strings.ToLower(text))
	id := `%` + pattern + `%:%`
	if strings.HasPrefix(text, "@") {
		id = pattern + `%`
	}
	err = s.Each(ctx, func(scan func(...any) error) error {
		var u DirectoryUser
		var name, avatar sql.NullString
		err := scan(&u.User, &name, &avatar)
		if name.Valid {
			u.DisplayName = json.RawMessage(name.String)
		}
		if avatar.Valid {
			u.AvatarURL = json.RawMessage(avatar.String)
		}
		out = append(out, u)
		return err
	}, `SELECT DISTINCT c.state_key, n.value, a.value FROM current_state c
		LEFT JOIN profile n ON n.user_id = c.state_key AND n.field = 'displayname'
		LEFT JOIN profile a ON a.user_id = c.state_key AND a.field = 'avatar_url'
		WHERE c.type = 'm.room.member' AND c.membership = 'join' AND c.state_key <> $1 AND c.room_id IN (
			SELECT room_id FROM current_state WHERE type = 'm.room.member' AND state_key = $1 AND membership = 'join'
			UNION SELECT room_id FROM published_room
			UNION SELECT j.room_id FROM current_state j JOIN event e ON e.pos = j.event_pos
				WHERE j.type = 'm.room.join_rules' AND j.state_key = '' AND e.json LIKE '%"join_rule":"public"%')
		AND (lower(c.state_key) LIKE $2 ESCAPE '\' OR lower(n.value) LIKE $3 ESCAPE '\')
		ORDER BY c.state_key LIMIT $4`, user, id, `%`+pattern+`%`, limit)
	return out, err
}

// MutualRooms returns the rooms that two users are in.
func (s *Store) MutualRooms(ctx context.Context, one, other matrix.UserID) (out []matrix.RoomID, err error) {
	err = s.Each(ctx, func(scan func(...any) error) error {
		var r matrix.RoomID
		err := scan(&r)
		out = append(out, r)
		return err
	}, `SELECT m.room_id FROM current_state m JOIN current_state o ON o.room_id = m.room_id AND o.type = 'm.room.member'
		AND o.state_key = $2 AND o.membership = 'join' WHERE m.type = 'm.room.member' AND m.state_key = $1 AND m.membership = 'join' ORDER BY m.room_id`, one, other)
	return out, err
}
