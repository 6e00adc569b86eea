// Package puppeting is the runtime of the bridge: it has Matrix rooms stand for
// the chats of networks, and ghosts for their users.
//
// It talks to a homeserver only through package appservice, and to networks only
// through package backends. A portal is one room and one chat. Towards a network
// it works its outbox, a table, in order; from a network it acknowledges an event
// when the homeserver has it. Both ends know what they have done by identity: a
// Matrix event's ID and a remote message's (network, chat, ID) are keys of the
// message map, so what is repeated after a crash makes nothing new.
package puppeting

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

// Options of New. Those without a comment are needed.
type Options struct {
	DB         *sqldb.DB
	Client     *appservice.Client
	HSToken    string // what the homeserver shows, from the registration
	ServerName string
	PublicURL  string // where the Handler is reached by everybody, for links to files
	Networks   []NetworkOptions

	Admins    []matrix.UserID   // may give the bot any command in any room
	LinkPower int               // power level to link a room; 0: that for changing the room's state
	Expiry    time.Duration     // how long a message waits for its network; 0: a day
	LinkTTL   time.Duration     // how long links to files work; 0: 30 days
	MaxMedia  int64             // bytes of a file from a network; 0: 50 MiB
	MaxGhosts int               // ghosts that a list of members makes join a room; 0: 1,000
	Quiet     time.Duration     // how long quiet membership changes are collected; 0: 2 s
	Fetch     http.RoundTripper // fetches files of networks; nil: public addresses only
	Log       *slog.Logger      // nil: nothing is logged
	Opened    func()            // called when every network has taken its configuration; nil: nothing is
}

// NetworkOptions describe one network.
type NetworkOptions struct {
	Name    string // lower-case letters and digits; part of the names of its ghosts and aliases
	Title   string // for people; "" is Name
	Backend backends.Backend
	Config  json.RawMessage
}

// Bridge is the runtime.
type Bridge struct {
	o        Options
	db       *sqldb.DB
	client   *appservice.Client
	log      *slog.Logger
	crew     *crew
	networks map[string]*network
	ghosts   ghosts
	media    *media
	seq      atomic.Int64 // of the newest row of the outbox

	mu      sync.Mutex
	portals map[portalKey]*portal   // guarded by mu
	rooms   map[matrix.RoomID]*room // guarded by mu
	busy    map[int64]bool          // rows of the control queue in hand; guarded by mu
	aliases *locks[portalKey]       // held while a room is made for a chat
}

// New loads what the database holds and opens no network yet.
func New(ctx context.Context, o Options) (*Bridge, error) {
	defaults(&o)
	if err := migrate(ctx, o.DB); err != nil {
		return nil, err
	}
	b := &Bridge{
		o: o, db: o.DB, client: o.Client, log: o.Log, crew: newCrew(), networks: map[string]*network{},
		portals: map[portalKey]*portal{}, rooms: map[matrix.RoomID]*room{}, busy: map[int64]bool{}, aliases: newLocks[portalKey](),
	}
	b.ghosts.init(b)
	for _, n := range o.Networks {
		if !networkName.MatchString(n.Name) || b.networks[n.Name] != nil {
			return nil, fmt.Errorf("network %q: the name is used twice or not of lower-case letters and digits", n.Name)
		}
		b.networks[n.Name] = newNetwork(b, n)
	}
	var err error
	if b.media, err = newMedia(ctx, b); err != nil {
		return nil, err
	}
	return b, b.load(ctx)
}

func defaults(o *Options) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	setDefault(&o.Expiry, 24*time.Hour)
	setDefault(&o.LinkTTL, 30*24*time.Hour)
	setDefault(&o.MaxMedia, 50<<20)
	setDefault(&o.MaxGhosts, 1000)
	setDefault(&o.Quiet, 2*time.Second)
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func (b *Bridge) load(ctx context.Context) error {
	seq, err := lastSeq(ctx, b.db)
	if err != nil {
		return err
	}
	b.seq.Store(seq)
	rows, err := loadPortals(ctx, b.db)
	if err != nil {
		return err
	}
	for _, r := range rows {
		if b.networks[r.network] == nil {
			b.log.Warn("a portal's network is not configured", "network", r.network, "room_id", r.room)
			continue
		}
		b.bind(r)
	}
	return nil
}

// Run opens the networks and works until ctx ends; then it closes them. The error
// is nil, or says that a network cannot be opened at all.
func (b *Bridge) Run(ctx context.Context) error {
	if err := b.client.Bot().EnsureRegistered(ctx); err != nil && ctx.Err() == nil {
		b.log.Warn("the bot cannot be registered yet", "err", err)
	}
	var wg sync.WaitGroup
	crewCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	wg.Go(func() { b.crew.run(crewCtx) })
	err := b.open(ctx)
	if err == nil {
		if b.o.Opened != nil && ctx.Err() == nil {
			b.o.Opened()
		}
		b.crew.Go(b.resume)
		b.crew.Go(b.sweep)
		<-ctx.Done()
	}
	b.closeNetworks(context.WithoutCancel(ctx))
	stop()
	wg.Wait()
	return err
}

func (b *Bridge) open(ctx context.Context) error {
	var wg sync.WaitGroup
	failed := make(chan error, len(b.networks))
	for _, n := range b.networks {
		wg.Go(func() {
			if err := n.open(ctx); err != nil {
				failed <- fmt.Errorf("open network %s: %w", n.name, err)
			}
		})
	}
	wg.Wait()
	close(failed)
	if ctx.Err() != nil {
		return nil
	}
	return <-failed
}

// closeTimeout is how long networks have to finish what they took.
const closeTimeout = 5 * time.Second

func (b *Bridge) closeNetworks(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, n := range b.networks {
		wg.Go(func() { n.close(ctx) })
	}
	wg.Wait()
}

// resume takes up what was left when the bridge stopped.
func (b *Bridge) resume(ctx context.Context) {
	letters, err := untoldLetters(ctx, b.db)
	if err != nil {
		b.log.Error("dead letters cannot be read", "err", err)
	}
	for _, l := range letters {
		b.tell(ctx, l)
	}
	b.kickControl(ctx)
}

// sweepEvery is how often old rows are looked for.
const sweepEvery = time.Minute

// sweep looks for messages that waited too long and forgets what is long past.
func (b *Bridge) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		for _, p := range b.allPortals() {
			p.kick()
		}
		b.kickControl(ctx)
		if err := b.prune(ctx); err != nil && ctx.Err() == nil {
			b.log.Warn("old rows cannot be removed", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// keepSeen is how long a homeserver may take to repeat a transaction.
const keepSeen = 7 * 24 * time.Hour

func (b *Bridge) prune(ctx context.Context) error {
	before := time.Now().Add(-keepSeen).UnixMilli()
	return b.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`DELETE FROM bridge_seen WHERE at < $1`, before)
		_, err2 := tx.Exec(`DELETE FROM bridge_txn WHERE at < $1`, before)
		_, err3 := tx.Exec(`DELETE FROM bridge_revoked WHERE at < $1`, time.Now().Add(-b.o.LinkTTL).UnixMilli())
		return errors.Join(err, err2, err3)
	})
}

// Handler serves the homeserver's requests and links to files.
func (b *Bridge) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", appservice.NewHandler(appservice.HandlerOptions{
		HSToken: b.o.HSToken, Transaction: b.transaction, User: b.userQuery, Alias: b.aliasQuery, ThirdParty: thirdParty{b}, Log: b.log,
	}))
	mux.HandleFunc("GET "+mediaPath+"{token}/{name}", b.media.getMedia)
	mux.HandleFunc("GET "+mediaPath+"{token}", b.media.getMedia)
	return mux
}

func (b *Bridge) allPortals() []*portal {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]*portal, 0, len(b.portals))
	for _, p := range b.portals {
		out = append(out, p)
	}
	return out
}

// portalsOf returns the portals of a network that have a room.
func (b *Bridge) portalsOf(n *network) []*portal {
	return slices.DeleteFunc(b.allPortals(), func(p *portal) bool { return p.net != n || p.bound() == nil })
}

// portalFor returns the portal of a chat; one without a room if there is none.
func (b *Bridge) portalFor(k portalKey) *portal {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.portalLocked(k)
}

func (b *Bridge) portalLocked(k portalKey) *portal {
	p := b.portals[k]
	if p == nil {
		p = newPortal(b, k)
		b.portals[k] = p
	}
	return p
}

// findPortal returns the portal of a chat, nil if none is known.
func (b *Bridge) findPortal(k portalKey) *portal {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.portals[k]
}

// bind gives a portal its room, in memory.
func (b *Bridge) bind(r portalRow) *portal {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.portalLocked(r.portalKey)
	b.unbindLocked(p)
	rm := b.rooms[r.room]
	if rm == nil {
		rm = newRoom(b, r.room)
		b.rooms[r.room] = rm
	}
	rm.add(p)
	p.setRoom(rm, r)
	return p
}

// unbind takes a portal's room away, in memory.
func (b *Bridge) unbind(p *portal) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unbindLocked(p)
	delete(b.portals, p.key)
}

func (b *Bridge) unbindLocked(p *portal) {
	rm := p.bound()
	if rm == nil {
		return
	}
	if rm.remove(p) == 0 {
		delete(b.rooms, rm.id)
	}
	p.setRoom(nil, portalRow{})
}

// establish stores a portal and binds it.
func (b *Bridge) establish(ctx context.Context, r portalRow) (*portal, error) {
	if err := b.db.Write(ctx, func(tx *sqldb.Tx) error { return putPortal(tx, r) }); err != nil {
		return nil, fmt.Errorf("store portal: %w", err)
	}
	return b.bind(r), nil
}

// dissolve forgets a portal. The message map stays, so that what was sent is not
// sent again if the portal comes back.
func (b *Bridge) dissolve(ctx context.Context, p *portal) error {
	if err := b.db.Write(ctx, func(tx *sqldb.Tx) error { return deletePortal(tx, p.key) }); err != nil {
		return fmt.Errorf("remove portal: %w", err)
	}
	b.unbind(p)
	return nil
}

// room returns the room if it has portals, nil otherwise.
func (b *Bridge) room(id matrix.RoomID) *room {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rooms[id]
}
