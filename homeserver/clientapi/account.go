package clientapi

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/gjallar-im/gjallar/homeserver/accounts"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/roomversion"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
	"github.com/gjallar-im/gjallar/homeserver/store"
)

func (a *api) accountRoutes() []route {
	return []route{
		{"GET", "/versions", anyone, (*api).getVersions},
		{"GET", "/.well-known/matrix/client", anyone, (*api).getWellKnown},
		{"GET", "/v3/capabilities", user, (*api).getCapabilities},
		{"GET", "/v3/login", anyone, (*api).getLogin},
		{"POST", "/v3/login", maybeUser, (*api).postLogin},
		{"POST", "/v1/login/get_token", user, (*api).postGetToken},
		{"POST", "/v3/refresh", anyone, (*api).postRefresh},
		{"POST", "/v3/logout", user, (*api).postLogout},
		{"POST", "/v3/logout/all", user, (*api).postLogoutAll},
		{"GET", "/v3/account/whoami", user, (*api).getWhoami},
		{"GET", "/v3/register/available", anyone, (*api).getRegisterAvailable},
		{"POST", "/v3/register", maybeUser, (*api).postRegister},
		{"POST", "/v3/account/password", user, (*api).postPassword},
		{"POST", "/v3/account/deactivate", user, (*api).postDeactivate},
		{"GET", "/v3/devices", user, (*api).getDevices},
		{"GET", "/v3/devices/{deviceID}", user, (*api).getDevice},
		{"PUT", "/v3/devices/{deviceID}", user, (*api).putDevice},
		{"DELETE", "/v3/devices/{deviceID}", user, (*api).deleteDevice},
		{"GET", "/v3/profile/{userID}", anyone, (*api).getProfile},
		{"GET", "/v3/profile/{userID}/{field}", anyone, (*api).getProfileField},
		{"PUT", "/v3/profile/{userID}/{field}", user, (*api).putProfileField},
		{"DELETE", "/v3/profile/{userID}/{field}", user, (*api).deleteProfileField},
		{"GET", "/v3/user/{userID}/account_data/{type}", user, (*api).getAccountData},
		{"PUT", "/v3/user/{userID}/account_data/{type}", user, (*api).putAccountData},
		{"GET", "/v3/user/{userID}/rooms/{roomID}/account_data/{type}", user, (*api).getAccountData},
		{"PUT", "/v3/user/{userID}/rooms/{roomID}/account_data/{type}", user, (*api).putAccountData},
		{"GET", "/v3/user/{userID}/rooms/{roomID}/tags", user, (*api).getTags},
		{"PUT", "/v3/user/{userID}/rooms/{roomID}/tags/{tag}", user, (*api).putTag},
		{"DELETE", "/v3/user/{userID}/rooms/{roomID}/tags/{tag}", user, (*api).deleteTag},
		{"POST", "/v3/user/{userID}/filter", user, (*api).postFilter},
		{"GET", "/v3/user/{userID}/filter/{filterID}", user, (*api).getFilter},
	}
}

// getVersions tells what is here; clients hide what they do not find.
func (a *api) getVersions(*request) (any, error) {
	return map[string]any{
		"versions":          []string{"r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11"},
		"unstable_features": map[string]bool{"org.matrix.msc4222": true},
	}, nil
}

func (a *api) getWellKnown(*request) (any, error) {
	if a.PublicURL == "" {
		return nil, matrix.NotFound("No client discovery here")
	}
	return map[string]any{"m.homeserver": map[string]string{"base_url": a.PublicURL}}, nil
}

func (a *api) getCapabilities(*request) (any, error) {
	available := map[matrix.RoomVersion]string{}
	for _, r := range roomversion.All() {
		available[r.Version] = "stable"
	}
	on := map[string]bool{"enabled": true}
	return map[string]any{"capabilities": map[string]any{
		"m.room_versions":   map[string]any{"default": a.DefaultRoomVersion, "available": available},
		"m.change_password": on, "m.set_displayname": on, "m.set_avatar_url": on, "m.profile_fields": on,
		"m.3pid_changes": map[string]bool{"enabled": false}, "m.get_login_token": on,
	}}, nil
}

func (a *api) getLogin(*request) (any, error) {
	type flow struct {
		Type  string `json:"type"`
		Token bool   `json:"get_login_token,omitempty"`
	}
	return map[string]any{"flows": []flow{{Type: "m.login.password"}, {Type: "m.login.token", Token: true}, {Type: "m.login.application_service"}}}, nil
}

// postGetToken makes a token with which the user can log in on another device, once
// and soon.
//
// Spec: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv1loginget_token
func (a *api) postGetToken(r *request) (any, error) {
	var in struct {
		Auth *uiaAuth `json:"auth"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if r.service != nil {
		return nil, matrix.Forbidden("Application services log in with their own token")
	}
	if err := r.confirm(r.Context(), in.Auth); err != nil {
		return nil, err
	}
	token, lifetime := a.Accounts.LoginToken(r.user)
	return map[string]any{"login_token": token, "expires_in_ms": lifetime.Milliseconds()}, nil
}

// postLogin: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3login
func (a *api) postLogin(r *request) (any, error) {
	var in struct {
		Type       string `json:"type"`
		Identifier struct {
			Type string `json:"type"`
			User string `json:"user"`
		} `json:"identifier"`
		User     string          `json:"user"` // before identifiers
		Password string          `json:"password"`
		Token    string          `json:"token"`
		Device   matrix.DeviceID `json:"device_id"`
		Name     string          `json:"initial_device_display_name"`
		Refresh  bool            `json:"refresh_token"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	name := in.User
	if in.Identifier.Type != "" {
		if in.Identifier.Type != "m.id.user" {
			return nil, matrix.InvalidParam("Logging in by %q is not supported", in.Identifier.Type)
		}
		name = in.Identifier.User
	}
	var acc *store.Account
	var err error
	switch in.Type {
	case "m.login.password":
		if name == "" {
			return nil, matrix.MissingParam("No user")
		}
		if err := a.limitLogin(r, name); err != nil {
			return nil, err
		}
		acc, err = a.Accounts.CheckPassword(r.Context(), name, in.Password)
	case "m.login.token":
		if err := a.limits.login.allow("address " + r.ip()); err != nil {
			return nil, err
		}
		acc, err = a.Accounts.CheckLoginToken(r.Context(), in.Token)
	case "m.login.application_service":
		acc, err = a.serviceLogin(r, name)
	default:
		return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeUnknown, "Unknown login type %q", in.Type)
	}
	if err != nil {
		return nil, err
	}
	if acc.Deactivated {
		return nil, matrix.Errorf(http.StatusForbidden, matrix.CodeUserDeactivated, "This account has been deactivated")
	}
	l, err := a.Accounts.LogIn(r.Context(), acc.User, in.Device, in.Name, in.Refresh)
	if err != nil {
		return nil, err
	}
	return a.loginResponse(acc.User, l), nil
}

// limitLogin slows down those who guess passwords. An application service, which
// passes on what its users type, answers for itself.
func (a *api) limitLogin(r *request, name string) error {
	name = strings.ToLower(name[:min(len(name), matrix.MaxIDLength)]) // what is longer is nobody's
	if err := a.limits.login.allow("account " + name); err != nil {
		return err
	}
	if r.service != nil {
		return nil
	}
	return a.limits.login.allow("address " + r.ip())
}

func (a *api) serviceLogin(r *request, name string) (*store.Account, error) {
	if r.service == nil {
		return nil, matrix.Errorf(http.StatusUnauthorized, matrix.CodeMissingToken, "Missing the application service's token")
	}
	u := matrix.UserID(name)
	if !strings.HasPrefix(name, "@") {
		u = matrix.NewUserID(name, a.ServerName)
	}
	if !r.service.OwnsUser(u) {
		return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeExclusive, "The application service does not own %s", u)
	}
	return a.Store.Account(r.Context(), u)
}

func (a *api) loginResponse(u matrix.UserID, l *accounts.Login) map[string]any {
	out := map[string]any{"user_id": u, "home_server": a.ServerName}
	if l == nil {
		return out
	}
	out["access_token"], out["device_id"] = l.Token, l.Device
	if l.Refresh != "" {
		out["refresh_token"], out["expires_in_ms"] = l.Refresh, l.Expires.Milliseconds()
	}
	return out
}

func (a *api) postRefresh(r *request) (any, error) {
	var in struct {
		Refresh string `json:"refresh_token"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if in.Refresh == "" {
		return nil, matrix.MissingParam("No refresh_token")
	}
	l, err := a.Accounts.Refresh(r.Context(), in.Refresh)
	if err != nil {
		return nil, err
	}
	return map[string]any{"access_token": l.Token, "refresh_token": l.Refresh, "expires_in_ms": l.Expires.Milliseconds()}, nil
}

func (a *api) postLogout(r *request) (any, error) {
	return empty, a.Accounts.LogOut(r.Context(), r.user, r.device)
}

func (a *api) postLogoutAll(r *request) (any, error) {
	return empty, a.Accounts.LogOut(r.Context(), r.user)
}

func (a *api) getWhoami(r *request) (any, error) {
	out := map[string]any{"user_id": r.user, "is_guest": false}
	if r.service == nil {
		out["device_id"] = r.device
	}
	return out, nil
}

func (a *api) getRegisterAvailable(r *request) (any, error) {
	u, err := a.newUser(r.URL.Query().Get("username"))
	if err != nil {
		return nil, err
	}
	if _, owned := a.Registry.ExclusiveUser(u); owned {
		return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeExclusive, "The name belongs to an application service")
	}
	if _, err := a.Store.Account(r.Context(), u); err == nil {
		return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeUserInUse, "User ID already taken")
	}
	return map[string]bool{"available": true}, nil
}

func (a *api) newUser(localpart string) (matrix.UserID, error) {
	u := matrix.NewUserID(localpart, a.ServerName)
	if !matrix.ValidLocalpart(localpart) || len(u) > matrix.MaxIDLength {
		return "", matrix.Errorf(http.StatusBadRequest, matrix.CodeInvalidUsername, "A user name may have a-z, 0-9 and ._=-/+ only")
	}
	return u, nil
}

// postRegister: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3register
func (a *api) postRegister(r *request) (any, error) {
	var in struct {
		Type     string          `json:"type"`
		Username string          `json:"username"`
		Password string          `json:"password"`
		Device   matrix.DeviceID `json:"device_id"`
		Name     string          `json:"initial_device_display_name"`
		NoLogin  bool            `json:"inhibit_login"`
		Refresh  bool            `json:"refresh_token"`
		Auth     *uiaAuth        `json:"auth"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if r.URL.Query().Get("kind") == "guest" {
		return nil, matrix.Errorf(http.StatusForbidden, matrix.CodeGuestAccessForbidden, "Guests are not allowed here")
	}
	if in.Username == "" && in.Type != "m.login.application_service" {
		in.Username = strings.ToLower(rand.Text()[:12])
	}
	u, err := a.newUser(strings.ToLower(in.Username))
	if err != nil {
		return nil, err
	}
	acc := store.Account{User: u}
	if in.Type == "m.login.application_service" {
		if r.service == nil {
			return nil, matrix.Errorf(http.StatusUnauthorized, matrix.CodeMissingToken, "Missing the application service's token")
		}
		if !r.service.OwnsUser(u) {
			return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeExclusive, "The application service does not own %s", u)
		}
		acc.AppService, in.NoLogin = r.service.Registration.ID, in.NoLogin || in.Device == ""
	} else {
		if _, owned := a.Registry.ExclusiveUser(u); owned {
			return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeExclusive, "The name belongs to an application service")
		}
		if err := a.limits.register.allow(r.ip()); err != nil {
			return nil, err
		}
		if a.Registration == "closed" {
			return nil, matrix.Forbidden("Registration is closed on this server")
		}
		if _, err := a.Store.Account(r.Context(), u); err == nil {
			return nil, matrix.Errorf(http.StatusBadRequest, matrix.CodeUserInUse, "User ID already taken")
		}
		if err := a.registrationAuth(in.Auth); err != nil {
			return nil, err
		}
		if in.Password == "" {
			return nil, matrix.MissingParam("No password")
		}
		acc.PasswordHash = a.Accounts.Hash(in.Password)
	}
	if err := a.Accounts.Register(r.Context(), acc); err != nil {
		return nil, err
	}
	if in.NoLogin {
		return a.loginResponse(u, nil), nil
	}
	l, err := a.Accounts.LogIn(r.Context(), u, in.Device, in.Name, in.Refresh)
	if err != nil {
		return nil, err
	}
	return a.loginResponse(u, l), nil
}

// uiaAuth is the auth dictionary of user-interactive authentication.
type uiaAuth struct {
	Type       string `json:"type"`
	Session    string `json:"session"`
	Token      string `json:"token"`
	Password   string `json:"password"`
	User       string `json:"user"`
	Identifier struct {
		Type string `json:"type"`
		User string `json:"user"`
	} `json:"identifier"`
}

// registrationAuth checks the one stage that registration has.
func (a *api) registrationAuth(auth *uiaAuth) error {
	stage := "m.login.dummy"
	if a.Registration == "token" {
		stage = "m.login.registration_token"
	}
	if auth == nil || auth.Type == "" {
		return uiaNeeded(stage)
	}
	if auth.Type != stage {
		return uiaNeeded(stage).With("errcode", matrix.CodeUnknown).With("error", "The server asks for another stage")
	}
	if stage == "m.login.registration_token" && subtle.ConstantTimeCompare([]byte(auth.Token), []byte(a.RegistrationToken)) != 1 {
		return uiaNeeded(stage).With("errcode", matrix.CodeForbidden).With("error", "Invalid registration token")
	}
	return nil
}

// uiaNeeded is the 401 that tells which stage is to be passed. It has an errcode only
// after a failed attempt: that is how clients tell the two apart.
func uiaNeeded(stage string) *matrix.Error {
	e := matrix.Errorf(http.StatusUnauthorized, "", "More authentication is needed")
	return e.With("session", rand.Text()).With("flows", []map[string]any{{"stages": []string{stage}}}).With("params", empty)
}

// confirm asks for the password before something that cannot be undone. An
// application service needs none.
func (r *request) confirm(ctx context.Context, auth *uiaAuth) error {
	if r.service != nil {
		return nil
	}
	if auth == nil || auth.Type != "m.login.password" {
		return uiaNeeded("m.login.password")
	}
	name := auth.User
	if auth.Identifier.User != "" {
		name = auth.Identifier.User
	}
	acc, err := r.api.Accounts.CheckPassword(ctx, name, auth.Password)
	if err == nil && acc.User != r.user {
		return matrix.Forbidden("These are the credentials of another user")
	}
	if err != nil {
		return uiaNeeded("m.login.password").With("errcode", matrix.CodeForbidden).With("error", "Invalid password")
	}
	return nil
}

func (a *api) postPassword(r *request) (any, error) {
	var in struct {
		New    string   `json:"new_password"`
		Others *bool    `json:"logout_devices"`
		Auth   *uiaAuth `json:"auth"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if err := r.confirm(r.Context(), in.Auth); err != nil {
		return nil, err
	}
	if in.New == "" {
		return nil, matrix.MissingParam("No new_password")
	}
	if err := a.Accounts.SetPassword(r.Context(), r.user, in.New); err != nil {
		return nil, err
	}
	if in.Others != nil && !*in.Others {
		return empty, nil
	}
	all, err := a.Store.Devices(r.Context(), r.user)
	if err != nil {
		return nil, err
	}
	var others []matrix.DeviceID
	for _, d := range all {
		if d.ID != r.device {
			others = append(others, d.ID)
		}
	}
	if len(others) > 0 {
		err = a.Accounts.LogOut(r.Context(), r.user, others...)
	}
	return empty, err
}

// postDeactivate ends an account: it leaves all rooms and can never log in again.
func (a *api) postDeactivate(r *request) (any, error) {
	var in struct {
		Auth *uiaAuth `json:"auth"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if err := r.confirm(r.Context(), in.Auth); err != nil {
		return nil, err
	}
	if err := a.leaveAll(r); err != nil {
		return nil, err
	}
	err := a.Store.Write(r.Context(), func(tx *sqldb.Tx) error { return a.Store.Deactivate(tx, r.user) })
	if err == nil {
		err = a.Accounts.LogOut(r.Context(), r.user)
	}
	return map[string]string{"id_server_unbind_result": "no-support"}, err
}

func (a *api) leaveAll(r *request) error {
	list, err := a.Store.MembershipsOf(r.Context(), r.user)
	if err != nil {
		return err
	}
	for _, m := range list {
		if m.Membership != matrix.Join && m.Membership != matrix.Invite && m.Membership != matrix.Knock {
			continue
		}
		if err := r.setMembership(m.Room, r.user, matrix.Leave, "", nil); err != nil {
			return err
		}
	}
	return nil
}

func (a *api) getDevices(r *request) (any, error) {
	list, err := a.Store.Devices(r.Context(), r.user)
	if list == nil {
		list = []store.Device{}
	}
	return map[string]any{"devices": list}, err
}

func (a *api) device(r *request) (*store.Device, error) {
	list, err := a.Store.Devices(r.Context(), r.user)
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		if string(d.ID) == r.PathValue("deviceID") {
			return &d, nil
		}
	}
	return nil, matrix.NotFound("No such device")
}

func (a *api) getDevice(r *request) (any, error) { return a.device(r) }

func (a *api) putDevice(r *request) (any, error) {
	var in struct {
		Name string `json:"display_name"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if _, err := a.device(r); err != nil && r.service == nil {
		return nil, err
	}
	return empty, a.Store.Write(r.Context(), func(tx *sqldb.Tx) error {
		return a.Store.PutDevice(tx, r.user, matrix.DeviceID(r.PathValue("deviceID")), in.Name)
	})
}

func (a *api) deleteDevice(r *request) (any, error) {
	var in struct {
		Auth *uiaAuth `json:"auth"`
	}
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	if err := r.confirm(r.Context(), in.Auth); err != nil {
		return nil, err
	}
	return empty, a.Accounts.LogOut(r.Context(), r.user, matrix.DeviceID(r.PathValue("deviceID")))
}

// maxProfile of one user, in bytes.
const maxProfile = 64 << 10

func (a *api) profile(r *request) (map[string]json.RawMessage, error) {
	u, err := matrix.ParseUserID(r.PathValue("userID"))
	if err != nil {
		return nil, matrix.InvalidParam("%q is not a user ID", r.PathValue("userID"))
	}
	p, err := a.Store.Profile(r.Context(), u)
	if err != nil || len(p) > 0 {
		return p, err
	}
	if _, err := a.Store.Account(r.Context(), u); err != nil {
		if a.QueryUser != nil {
			if ok, qerr := a.QueryUser(r.Context(), u); qerr == nil && ok {
				return a.Store.Profile(r.Context(), u)
			}
		}
		return nil, matrix.NotFound("No such user")
	}
	return p, nil
}

func (a *api) getProfile(r *request) (any, error) { return a.profile(r) }

func (a *api) getProfileField(r *request) (any, error) {
	p, err := a.profile(r)
	if err != nil {
		return nil, err
	}
	field := r.PathValue("field")
	v, ok := p[field]
	if !ok {
		return nil, matrix.NotFound("The profile has no %s", field)
	}
	return map[string]json.RawMessage{field: v}, nil
}

func (a *api) putProfileField(r *request) (any, error) {
	if err := r.own(); err != nil {
		return nil, err
	}
	var in map[string]json.RawMessage
	if err := r.decode(&in); err != nil {
		return nil, err
	}
	field := r.PathValue("field")
	value, ok := in[field]
	if !ok {
		return nil, matrix.MissingParam("The body has no %s", field)
	}
	if len(field) > 255 || len(value) > maxProfile {
		return nil, matrix.Errorf(http.StatusBadRequest, "M_PROFILE_TOO_LARGE", "The profile is too large")
	}
	if field == "displayname" || field == "avatar_url" {
		var s *string
		if err := decodeJSON(value, &s); err != nil {
			return nil, matrix.InvalidParam("%s is not a text", field)
		}
		if s == nil || *s == "" {
			value = nil
		}
	}
	return empty, a.setProfile(r, field, value)
}

func (a *api) deleteProfileField(r *request) (any, error) {
	if err := r.own(); err != nil {
		return nil, err
	}
	return empty, a.setProfile(r, r.PathValue("field"), nil)
}

func (a *api) setProfile(r *request, field string, value json.RawMessage) error {
	err := a.Store.Write(r.Context(), func(tx *sqldb.Tx) error { return a.Store.SetProfile(tx, r.user, field, value) })
	if err != nil || field != "displayname" && field != "avatar_url" {
		return err
	}
	return a.propagateProfile(r)
}

// putAccountData serves global and per-room data.
func (a *api) putAccountData(r *request) (any, error) {
	if err := r.own(); err != nil {
		return nil, err
	}
	typ := r.PathValue("type")
	switch typ {
	case "m.fully_read", "m.push_rules":
		return nil, matrix.Errorf(http.StatusMethodNotAllowed, matrix.CodeBadJSON, "%s is not set this way", typ)
	}
	content, err := r.object()
	if err != nil {
		return nil, err
	}
	return empty, a.setAccountData(r, store.AccountData{Room: matrix.RoomID(r.PathValue("roomID")), Type: typ, Content: content})
}

func (a *api) setAccountData(r *request, d store.AccountData) error {
	return a.Store.Write(r.Context(), func(tx *sqldb.Tx) error {
		pos, err := a.Store.SetAccountData(tx, r.user, d)
		tx.OnCommit(func() { a.Hub.Notify(pos, nil, []matrix.UserID{r.user}) })
		return err
	})
}

func (a *api) getAccountData(r *request) (any, error) {
	if err := r.own(); err != nil {
		return nil, err
	}
	return a.Store.AccountData(r.Context(), r.user, matrix.RoomID(r.PathValue("roomID")), r.PathValue("type"))
}

type tags struct {
	Tags map[string]json.RawMessage `json:"tags"`
}

func (a *api) tags(r *request) (t tags, err error) {
	if err := r.own(); err != nil {
		return t, err
	}
	content, err := a.Store.AccountData(r.Context(), r.user, matrix.RoomID(r.PathValue("roomID")), "m.tag")
	if err == nil {
		err = json.Unmarshal(content, &t)
	} else if err == store.ErrNotFound {
		err = nil
	}
	if t.Tags == nil {
		t.Tags = map[string]json.RawMessage{}
	}
	return t, err
}

func (a *api) getTags(r *request) (any, error) { return a.tags(r) }

func (a *api) putTag(r *request) (any, error) {
	t, err := a.tags(r)
	if err != nil {
		return nil, err
	}
	content, err := r.object()
	if err != nil {
		return nil, err
	}
	t.Tags[r.PathValue("tag")] = content
	return empty, a.setTags(r, t)
}

func (a *api) deleteTag(r *request) (any, error) {
	t, err := a.tags(r)
	if err != nil {
		return nil, err
	}
	delete(t.Tags, r.PathValue("tag"))
	return empty, a.setTags(r, t)
}

func (a *api) setTags(r *request, t tags) error {
	b, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return a.setAccountData(r, store.AccountData{Room: matrix.RoomID(r.PathValue("roomID")), Type: "m.tag", Content: b})
}

func (a *api) postFilter(r *request) (any, error) {
	if err := r.own(); err != nil {
		return nil, err
	}
	content, err := r.object()
	if err != nil {
		return nil, err
	}
	if _, err := parseFilter(content); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(content)
	id := base64.RawURLEncoding.EncodeToString(sum[:12])
	err = a.Store.Write(r.Context(), func(tx *sqldb.Tx) error { return a.Store.PutFilter(tx, r.user, id, content) })
	return map[string]string{"filter_id": id}, err
}

func (a *api) getFilter(r *request) (any, error) {
	if err := r.own(); err != nil {
		return nil, err
	}
	return a.Store.Filter(r.Context(), r.user, r.PathValue("filterID"))
}
