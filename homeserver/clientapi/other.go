package clientapi

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

// otherRoutes are those of all that is not accounts, rooms and sync.
func (a *api) otherRoutes() []route {
	return slices.Concat(a.keyRoutes(), a.toDeviceRoutes(), a.presenceRoutes(), a.pushRoutes(), a.mediaRoutes(), a.backupRoutes(),
		a.thirdPartyRoutes(), a.adminRoutes(), a.relationRoutes(), a.spaceRoutes(), []route{
			{"POST", "/v3/delete_devices", user, (*api).postDeleteDevices},
			{"GET", "/v3/account/3pid", user, (*api).getThreePIDs},
			{"GET", "/v1/mutual_rooms", user, (*api).getMutualRooms},
			{"GET", "/v1/register/m.login.registration_token/validity", anyone, (*api).getTokenValidity},
			{"POST", "/v3/search", user, (*api).postSearch},
			{"GET", "/v3/voip/turnServer", user, (*api).getTurnServer},
			{"POST", "/v3/user/{userID}/openid/request_token", user, (*api).postOpenIDToken},
			{"GET", "/_matrix/federation/v1/openid/userinfo", anyone, (*api).getOpenIDUser},
			{"POST", "/v3/user_directory/search", user, (*api).postUserSearch},
			{"POST", "/v3/rooms/{roomID}/report", user, (*api).postRoomReport},
			{"POST", "/v3/rooms/{roomID}/report/{eventID}", user, (*api).postEventReport},
			{"POST", "/v3/users/{userID}/report", user, (*api).postUserReport},
		})
}

// getTurnServer: there is none, which is an empty object.
func (a *api) getTurnServer(*request) (any, error) { return empty, nil }

// openIDLifetime of a token that proves who someone is.
const openIDLifetime = time.Hour

// postOpenIDToken: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3useruseridopenidrequest_token
func (a *api) postOpenIDToken(r *request) (any, error) {
	if err := r.own(); err != nil {
		return nil, err
	}
	token, now := rand.Text(), time.Now()
	err := a.Store.Write(r.Context(), func(tx *sqldb.Tx) error {
		return a.Store.PutOpenIDToken(tx, hashOf(token), r.user, now.Add(openIDLifetime).UnixMilli(), now.UnixMilli())
	})
	return map[string]any{"access_token": token, "token_type": "Bearer", "matrix_server_name": a.ServerName, "expires_in": int(openIDLifetime.Seconds())}, err
}

func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// getOpenIDUser needs no signature of a server.
//
// Spec: https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1openiduserinfo
func (a *api) getOpenIDUser(r *request) (any, error) {
	token := r.URL.Query().Get("access_token")
	if token == "" {
		return nil, matrix.Errorf(http.StatusUnauthorized, matrix.CodeMissingToken, "Missing access_token")
	}
	u, err := a.Store.OpenIDUser(r.Context(), hashOf(token), time.Now().UnixMilli())
	if errors.Is(err, store.ErrNotFound) {
		return nil, matrix.Errorf(http.StatusUnauthorized, matrix.CodeUnknownToken, "Access token unknown or expired")
	}
	return map[string]matrix.UserID{"sub": u}, err
}

// maxUserSearch is how many users one search returns at most.
const maxUserSearch = 50

// postUserSearch: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3user_directorysearch
func (a *api) postUserSearch(r *request) (any, error) {
	in := struct {
		Term  *string `json:"search_term"`
		Limit int     `json:"limit"`
	}{Limit: 10}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if in.Term == nil {
		return nil, matrix.MissingParam("No search_term")
	}
	limit := min(max(in.Limit, 1), maxUserSearch)
	found := []store.DirectoryUser{}
	if *in.Term != "" && len(*in.Term) <= matrix.MaxIDLength {
		list, err := a.Store.SearchUsers(r.Context(), r.user, *in.Term, limit+1)
		if err != nil {
			return nil, err
		}
		found = append(found, list...)
	}
	return map[string]any{"results": found[:min(limit, len(found))], "limited": len(found) > limit}, nil
}

// maxReason is how much of a report's reason goes to the log.
const maxReason = 500

// report notes what a user complains of in the log, where admins look.
func (a *api) report(r *request, attrs ...any) (any, error) {
	var in struct {
		Reason string `json:"reason"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	a.log.WarnContext(r.Context(), "reported by user", append(attrs, "user_id", r.user, "reason", in.Reason[:min(len(in.Reason), maxReason)])...)
	return empty, nil
}

func (a *api) postRoomReport(r *request) (any, error) {
	room, err := r.roomID()
	if err != nil {
		return nil, err
	}
	if _, err := a.Store.Rules(r.Context(), room); err != nil {
		return nil, matrix.NotFound("There is no such room here")
	}
	return a.report(r, "room_id", room)
}

func (a *api) postEventReport(r *request) (any, error) {
	e, v, err := a.visibleEvent(r)
	if err != nil {
		return nil, err
	}
	if v.membership != matrix.Join {
		return nil, matrix.NotFound("There is no such event, or you may not see it")
	}
	return a.report(r, "room_id", e.RoomID, "event_id", e.ID)
}

// postUserReport says no more of a user who is not here than of one who is.
func (a *api) postUserReport(r *request) (any, error) {
	u, err := matrix.ParseUserID(r.PathValue("userID"))
	if err != nil {
		return nil, matrix.InvalidParam("%.80q is not a user ID", r.PathValue("userID"))
	}
	return a.report(r, "reported_user_id", u)
}

// postDeleteDevices: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3delete_devices
func (a *api) postDeleteDevices(r *request) (any, error) {
	var in struct {
		Devices []matrix.DeviceID `json:"devices"`
		Auth    *uiaAuth          `json:"auth"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if in.Devices == nil {
		return nil, matrix.MissingParam("No devices")
	}
	if err := r.confirm(r.Context(), in.Auth); err != nil {
		return nil, err
	}
	if len(in.Devices) == 0 { // to LogOut this would be all
		return empty, nil
	}
	return empty, a.Accounts.LogOut(r.Context(), r.user, in.Devices...)
}

// getThreePIDs: we keep no addresses of anybody.
func (a *api) getThreePIDs(*request) (any, error) {
	return map[string]any{"threepids": []any{}}, nil
}

// getMutualRooms: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mutual_rooms
func (a *api) getMutualRooms(r *request) (any, error) {
	u, err := matrix.ParseUserID(r.URL.Query().Get("user_id"))
	if err != nil {
		return nil, matrix.InvalidParam("user_id is not a user ID")
	}
	if u == r.user {
		return nil, matrix.InvalidParam("You share all rooms with yourself")
	}
	rooms, err := a.Store.MutualRooms(r.Context(), r.user, u)
	if rooms == nil {
		rooms = []matrix.RoomID{}
	}
	return map[string]any{"joined": rooms, "count": len(rooms)}, err
}

// getTokenValidity: https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1registermloginregistration_tokenvalidity
func (a *api) getTokenValidity(r *request) (any, error) {
	if err := a.limits.login.allow("address " + r.ip()); err != nil {
		return nil, err
	}
	token := r.URL.Query().Get("token")
	if token == "" {
		return nil, matrix.MissingParam("No token")
	}
	valid := a.Registration == "token" && subtle.ConstantTimeCompare([]byte(token), []byte(a.RegistrationToken)) == 1
	return map[string]bool{"valid": valid}, nil
}
