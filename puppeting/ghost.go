package puppeting

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// ghost is the Matrix user that stands for a remote user.
type ghost struct {
	network string
	remote  backends.UserID
	user    matrix.UserID

	turn   chan struct{} // held by who changes the profile
	mu     sync.Mutex
	name   string // as the homeserver has it; guarded by mu
	avatar string // URL on the network of what the homeserver has; guarded by mu
	stored bool   // there is a row; guarded by mu
}

// ghosts are those that were in use since the start. Its methods may be called from
// any goroutine.
type ghosts struct {
	b  *Bridge
	mu sync.Mutex
	by map[matrix.UserID]*ghost // guarded by mu
}

func (g *ghosts) init(b *Bridge) {
	g.b, g.by = b, map[matrix.UserID]*ghost{}
}

// ghostID is the user ID of the ghost of a remote user.
func (b *Bridge) ghostID(network string, id backends.UserID) matrix.UserID {
	return matrix.NewUserID(ghostLocalpart(network, id), matrix.ServerName(b.o.ServerName))
}

// networkOf returns the network whose ghost a user is, nil if it is none.
func (b *Bridge) networkOf(u matrix.UserID) *network {
	if !b.isLocal(u) {
		return nil
	}
	name, _, ok := strings.Cut(u.Localpart(), "_")
	if !ok {
		return nil
	}
	return b.networks[name]
}

// remoteOf returns the remote user that a ghost of the network stands for.
func (b *Bridge) remoteOf(ctx context.Context, n *network, u matrix.UserID) (backends.UserID, bool) {
	if b.networkOf(u) != n {
		return "", false
	}
	b.ghosts.mu.Lock()
	g := b.ghosts.by[u]
	b.ghosts.mu.Unlock()
	if g != nil {
		return g.remote, true
	}
	escaped := strings.TrimPrefix(u.Localpart(), n.name+"_")
	if !strings.HasPrefix(escaped, "=h") {
		id, ok := unescapeUser(escaped)
		return backends.UserID(id), ok
	}
	var id backends.UserID
	err := b.db.QueryRow(ctx, `SELECT remote_id FROM bridge_ghost WHERE user_id = $1`, string(u)).Scan(&id)
	return id, err == nil
}

// get returns the ghost of a remote user, reading its row the first time.
func (g *ghosts) get(ctx context.Context, network string, id backends.UserID) (*ghost, error) {
	user := g.b.ghostID(network, id)
	g.mu.Lock()
	found := g.by[user]
	g.mu.Unlock()
	if found != nil {
		return found, nil
	}
	if _, err := matrix.ParseUserID(string(user)); err != nil {
		return nil, fmt.Errorf("ghost of a user of %s: %w", network, err)
	}
	fresh := &ghost{network: network, remote: id, user: user, turn: make(chan struct{}, 1)}
	err := g.b.db.QueryRow(ctx, `SELECT name, avatar FROM bridge_ghost WHERE network = $1 AND remote_id = $2`, network, string(id)).Scan(&fresh.name, &fresh.avatar)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("read ghost: %w", err)
	}
	fresh.stored = err == nil
	g.mu.Lock()
	defer g.mu.Unlock()
	if found := g.by[user]; found != nil {
		return found, nil
	}
	g.by[user] = fresh
	return fresh, nil
}

// ensure returns the ghost of a remote user with its profile up to date.
func (g *ghosts) ensure(ctx context.Context, network string, u backends.User) (*ghost, error) {
	gh, err := g.get(ctx, network, u.ID)
	if err != nil || gh.current(u) {
		return gh, err
	}
	select {
	case gh.turn <- struct{}{}:
		defer func() { <-gh.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if gh.current(u) {
		return gh, nil
	}
	return gh, g.update(ctx, gh, u)
}

func (gh *ghost) current(u backends.User) bool {
	gh.mu.Lock()
	defer gh.mu.Unlock()
	return gh.stored && (u.Name == "" || u.Name == gh.name) && (u.Avatar == "" || u.Avatar == gh.avatar)
}

// update tells the homeserver of a ghost's profile. That it cannot be set does not
// keep the ghost from speaking.
func (g *ghosts) update(ctx context.Context, gh *ghost, u backends.User) error {
	intent := g.b.client.As(gh.user)
	if err := intent.EnsureRegistered(ctx); err != nil {
		return err
	}
	name := u.Name
	if name == "" {
		name = firstOf(gh.displayName(), string(u.ID))
	}
	if name != gh.displayName() {
		if err := intent.SetDisplayName(ctx, name); err != nil {
			g.b.log.Warn("a ghost's name cannot be set", "user_id", gh.user, "err", err)
		}
	}
	avatar := gh.avatarURL()
	if u.Avatar != "" && u.Avatar != avatar {
		avatar = u.Avatar
		g.b.crew.Go(func(ctx context.Context) { g.setAvatar(ctx, intent, avatar) }) // messages need not wait for it
	}
	if err := g.store(ctx, gh, name, avatar); err != nil {
		return err
	}
	gh.mu.Lock()
	defer gh.mu.Unlock()
	gh.name, gh.avatar, gh.stored = name, avatar, true
	return nil
}

func (g *ghosts) setAvatar(ctx context.Context, intent *appservice.Intent, url string) {
	f, err := g.b.media.fromRemote(ctx, intent, backends.File{URL: url, Name: "avatar"})
	if err == nil {
		err = intent.SetAvatarURL(ctx, f.uri)
	}
	if err != nil {
		g.b.log.Debug("a ghost's picture cannot be set", "user_id", intent.UserID(), "err", err)
	}
}

func (g *ghosts) store(ctx context.Context, gh *ghost, name, avatar string) error {
	err := g.b.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`INSERT INTO bridge_ghost (network, remote_id, user_id, name, avatar) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (network, remote_id) DO UPDATE SET name = excluded.name, avatar = excluded.avatar`,
			gh.network, string(gh.remote), string(gh.user), name, avatar)
		return err
	})
	if err != nil {
		return fmt.Errorf("store ghost: %w", err)
	}
	return nil
}

func (gh *ghost) displayName() string {
	gh.mu.Lock()
	defer gh.mu.Unlock()
	return gh.name
}

func (gh *ghost) avatarURL() string {
	gh.mu.Lock()
	defer gh.mu.Unlock()
	return gh.avatar
}

func firstOf(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}

// userQuery answers whether a ghost may exist: any may whose name makes sense.
func (b *Bridge) userQuery(ctx context.Context, u matrix.UserID) (bool, error) {
	n := b.networkOf(u)
	if n == nil {
		return u == b.client.Bot().UserID(), nil
	}
	id, ok := b.remoteOf(ctx, n, u)
	if !ok {
		return false, nil
	}
	_, err := b.ghosts.ensure(ctx, n.name, backends.User{ID: id})
	return err == nil, err
}

// accountID and userID are the same string: an account is a Matrix user.
func accountID(u matrix.UserID) backends.AccountID { return backends.AccountID(u) }
func userID(a backends.AccountID) matrix.UserID    { return matrix.UserID(a) }

// user is what the portal's network is told of a Matrix user.
func (p *portal) user(ctx context.Context, u matrix.UserID) backends.User {
	out := backends.User{Account: accountID(u), Username: u.Localpart(), Domain: string(u.Server())}
	if id, ok := p.b.remoteOf(ctx, p.net, u); ok {
		out.ID = id
	}
	if rm := p.bound(); rm != nil {
		profile, _ := rm.member(ctx, u)
		out.Name = profile.DisplayName
		out.Avatar = p.b.media.link(profile.AvatarURL, "", "avatar", 0)
	}
	if out.Name == "" {
		out.Name = p.b.ghostName(ctx, u)
	}
	return out
}

// ghostName is the name of a ghost of any network, "" for others.
func (b *Bridge) ghostName(ctx context.Context, u matrix.UserID) string {
	n := b.networkOf(u)
	if n == nil {
		return ""
	}
	id, ok := b.remoteOf(ctx, n, u)
	if !ok {
		return ""
	}
	gh, err := b.ghosts.get(ctx, n.name, id)
	if err != nil {
		return ""
	}
	return gh.displayName()
}

// mentionOf is the User of a Mention of a Matrix user.
func (p *portal) mentionOf(ctx context.Context, u string) string {
	if id, ok := p.b.remoteOf(ctx, p.net, matrix.UserID(u)); ok {
		return string(id)
	}
	return u
}

// mentioned is the user ID that a Mention from the network means, "" for everybody.
func (p *portal) mentioned(user string) matrix.UserID {
	if u, err := matrix.ParseUserID(user); err == nil {
		return u
	}
	if user == "" || user == "@room" {
		return ""
	}
	return p.b.ghostID(p.key.network, backends.UserID(user))
}
