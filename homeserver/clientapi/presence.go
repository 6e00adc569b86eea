package clientapi

import (
	"errors"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

func (a *api) presenceRoutes() []route {
	return []route{
		{"GET", "/v3/presence/{userID}/status", user, (*api).getPresence},
		{"PUT", "/v3/presence/{userID}/status", user, (*api).putPresence},
	}
}

// maxStatus of a presence, in bytes.
const maxStatus = 4096

// putPresence: https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3presenceuseridstatus
func (a *api) putPresence(r *request) (any, error) {
	if err := r.own(); err != nil {
		return nil, err
	}
	var in struct {
		Presence string `json:"presence"`
		Status   string `json:"status_msg"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	switch in.Presence {
	case "online", "unavailable", "offline":
	case "":
		return nil, matrix.MissingParam("No presence")
	default:
		return nil, matrix.BadJSON("Unknown presence %.80q", in.Presence)
	}
	if len(in.Status) > maxStatus {
		return nil, matrix.InvalidParam("status_msg is longer than %d bytes", maxStatus)
	}
	return empty, a.Presence.set(r.Context(), store.Presence{User: r.user, State: in.Presence, StatusMsg: in.Status})
}

// getPresence: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3presenceuseridstatus
func (a *api) getPresence(r *request) (any, error) {
	u, err := matrix.ParseUserID(r.PathValue("userID"))
	if err != nil {
		return nil, matrix.InvalidParam("%.80q is not a user ID", r.PathValue("userID"))
	}
	if u != r.user {
		shared, err := a.Store.ShareRoom(r.Context(), r.user, []matrix.UserID{u})
		if err != nil {
			return nil, err
		}
		if !shared[u] {
			return nil, matrix.Forbidden("You share no room with this user")
		}
	}
	p, err := a.Store.Presence(r.Context(), u)
	if errors.Is(err, store.ErrNotFound) {
		return map[string]string{"presence": "offline"}, nil
	}
	if err != nil {
		return nil, err
	}
	return newPresence(*p), nil
}
