package clientapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

// backupRoutes: https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups
func (a *api) backupRoutes() []route {
	routes := []route{
		{"POST", "/v3/room_keys/version", user, (*api).postBackup},
		{"GET", "/v3/room_keys/version", user, (*api).getBackup},
		{"GET", "/v3/room_keys/version/{version}", user, (*api).getBackup},
		{"PUT", "/v3/room_keys/version/{version}", user, (*api).putBackup},
		{"DELETE", "/v3/room_keys/version/{version}", user, (*api).deleteBackup},
	}
	for _, path := range []string{"/v3/room_keys/keys", "/v3/room_keys/keys/{roomID}", "/v3/room_keys/keys/{roomID}/{sessionID}"} {
		routes = append(routes, route{"GET", path, user, (*api).getBackedUp}, route{"PUT", path, user, (*api).putBackedUp}, route{"DELETE", path, user, (*api).deleteBackedUp})
	}
	return routes
}

// keyBackup is the information about a version.
type keyBackup struct {
	Algorithm string          `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Count     int             `json:"count"`
	ETag      string          `json:"etag"`
	Version   string          `json:"version"`
}

// decodeBackup reads the description of a backup.
func (r *request) decodeBackup() (in keyBackup, err error) {
	if err = r.decode(&in); err != nil {
		return in, err
	}
	if in.Algorithm == "" || first(in.AuthData) != '{' {
		return in, matrix.MissingParam("algorithm and auth_data are needed")
	}
	return in, nil
}

func (a *api) postBackup(r *request) (any, error) {
	in, err := r.decodeBackup()
	if err != nil {
		return nil, err
	}
	var version int64
	err = a.Store.Write(r.Context(), func(tx *sqldb.Tx) (err error) {
		version, err = a.Store.CreateKeyBackup(tx, store.KeyBackup{User: r.user, Algorithm: in.Algorithm, AuthData: in.AuthData})
		return err
	})
	return map[string]string{"version": strconv.FormatInt(version, 10)}, err
}

var errNoBackup = matrix.NotFound("There is no such backup")

// backupVersion is a version as clients write it.
func backupVersion(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 {
		return 0, errNoBackup
	}
	return n, nil
}

// getBackup tells of the version in the path, or of the current one.
func (a *api) getBackup(r *request) (any, error) {
	version, err := int64(0), error(nil)
	if s := r.PathValue("version"); s != "" {
		if version, err = backupVersion(s); err != nil {
			return nil, err
		}
	}
	b, err := a.Store.KeyBackup(r.Context(), r.user, version)
	if err != nil {
		return nil, err
	}
	return keyBackup{b.Algorithm, b.AuthData, b.Count, strconv.FormatInt(b.ETag, 10), strconv.FormatInt(b.Version, 10)}, nil
}

func (a *api) putBackup(r *request) (any, error) {
	version, err := backupVersion(r.PathValue("version"))
	if err != nil {
		return nil, err
	}
	in, err := r.decodeBackup()
	if err != nil {
		return nil, err
	}
	b, err := a.Store.KeyBackup(r.Context(), r.user, version)
	if err != nil {
		return nil, err
	}
	if in.Algorithm != b.Algorithm || in.Version != "" && in.Version != r.PathValue("version") {
		return nil, matrix.InvalidParam("Neither the algorithm nor the version can be changed")
	}
	return empty, a.Store.Write(r.Context(), func(tx *sqldb.Tx) error { return a.Store.SetKeyBackupAuth(tx, r.user, version, in.AuthData) })
}

func (a *api) deleteBackup(r *request) (any, error) {
	version, err := backupVersion(r.PathValue("version"))
	if err != nil {
		return nil, err
	}
	return empty, a.Store.Write(r.Context(), func(tx *sqldb.Tx) error { return a.Store.DeleteKeyBackup(tx, r.user, version) })
}

// backedUpKey is KeyBackupData.
type backedUpKey struct {
	FirstIndex     *int64          `json:"first_message_index"`
	ForwardedCount *int64          `json:"forwarded_count"`
	Verified       *bool           `json:"is_verified"`
	Data           json.RawMessage `json:"session_data"`
}

type backedUpRoom struct {
	Sessions map[string]backedUpKey `json:"sessions"`
}

type backedUpRooms struct {
	Rooms map[matrix.RoomID]backedUpRoom `json:"rooms"`
}

// backedUp reads keys, which the body has in the form that the path tells.
func (r *request) backedUp() (all backedUpRooms, err error) {
	room, session := matrix.RoomID(r.PathValue("roomID")), r.PathValue("sessionID")
	switch {
	case session != "":
		var k backedUpKey
		err = r.decode(&k)
		all.Rooms = map[matrix.RoomID]backedUpRoom{room: {map[string]backedUpKey{session: k}}}
	case room != "":
		var one backedUpRoom
		if err = r.decode(&one); err == nil && one.Sessions == nil {
			err = matrix.MissingParam("No sessions")
		}
		all.Rooms = map[matrix.RoomID]backedUpRoom{room: one}
	default:
		if err = r.decode(&all); err == nil && all.Rooms == nil {
			err = matrix.MissingParam("No rooms")
		}
	}
	return all, err
}

// list checks keys and returns them for the store.
func (all backedUpRooms) list() (out []store.BackedUpKey, err error) {
	for room, sessions := range all.Rooms {
		for session, k := range sessions.Sessions {
			if k.FirstIndex == nil || k.ForwardedCount == nil || k.Verified == nil || first(k.Data) != '{' {
				return nil, matrix.MissingParam("A key lacks first_message_index, forwarded_count, is_verified or session_data")
			}
			if len(room) > matrix.MaxIDLength || len(session) > matrix.MaxIDLength || *k.FirstIndex < 0 || *k.ForwardedCount < 0 {
				return nil, matrix.InvalidParam("A key is out of bounds")
			}
			out = append(out, store.BackedUpKey{Room: room, Session: session, FirstIndex: *k.FirstIndex, ForwardedCount: *k.ForwardedCount, Verified: *k.Verified, Data: k.Data})
		}
	}
	return out, nil
}

func (a *api) putBackedUp(r *request) (any, error) {
	all, err := r.backedUp()
	if err != nil {
		return nil, err
	}
	keys, err := all.list()
	if err != nil {
		return nil, err
	}
	version, err := r.queryVersion()
	if err != nil {
		return nil, err
	}
	var current int64
	err = a.Store.Write(r.Context(), func(tx *sqldb.Tx) (err error) {
		if current, err = a.Store.CheckCurrentBackup(tx, r.user, version); err != nil {
			return err
		}
		return a.Store.PutBackedUpKeys(tx, r.user, version, keys)
	})
	if errors.Is(err, store.ErrNotCurrent) {
		return nil, matrix.Errorf(http.StatusForbidden, "M_WRONG_ROOM_KEYS_VERSION", "There is a newer backup").With("current_version", strconv.FormatInt(current, 10))
	}
	return a.backupState(r, version, err)
}

// queryVersion is that of the query, which the endpoints for keys need.
func (r *request) queryVersion() (int64, error) {
	s := r.URL.Query().Get("version")
	if s == "" {
		return 0, matrix.MissingParam("No version")
	}
	return backupVersion(s)
}

// backupState is the answer to a change of the keys.
func (a *api) backupState(r *request, version int64, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	b, err := a.Store.KeyBackup(r.Context(), r.user, version)
	if err != nil {
		return nil, err
	}
	return map[string]any{"count": b.Count, "etag": strconv.FormatInt(b.ETag, 10)}, nil
}

func (a *api) getBackedUp(r *request) (any, error) {
	version, err := r.queryVersion()
	if err != nil {
		return nil, err
	}
	if _, err := a.Store.KeyBackup(r.Context(), r.user, version); err != nil {
		return nil, err
	}
	room, session := matrix.RoomID(r.PathValue("roomID")), r.PathValue("sessionID")
	list, err := a.Store.BackedUpKeys(r.Context(), r.user, version, room, session)
	if err != nil {
		return nil, err
	}
	all := backedUpRooms{map[matrix.RoomID]backedUpRoom{}}
	for _, k := range list {
		if all.Rooms[k.Room].Sessions == nil {
			all.Rooms[k.Room] = backedUpRoom{map[string]backedUpKey{}}
		}
		all.Rooms[k.Room].Sessions[k.Session] = backedUpKey{&k.FirstIndex, &k.ForwardedCount, &k.Verified, k.Data}
	}
	switch {
	case session != "":
		k, ok := all.Rooms[room].Sessions[session]
		if !ok {
			return nil, matrix.NotFound("There is no such key in the backup")
		}
		return k, nil
	case room != "":
		if len(list) == 0 {
			return backedUpRoom{map[string]backedUpKey{}}, nil
		}
		return all.Rooms[room], nil
	}
	return all, nil
}

func (a *api) deleteBackedUp(r *request) (any, error) {
	version, err := r.queryVersion()
	if err != nil {
		return nil, err
	}
	err = a.Store.Write(r.Context(), func(tx *sqldb.Tx) error {
		return a.Store.DeleteBackedUpKeys(tx, r.user, version, matrix.RoomID(r.PathValue("roomID")), r.PathValue("sessionID"))
	})
	return a.backupState(r, version, err)
}
