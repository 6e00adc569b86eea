package puppeting

import (
	"context"
	"database/sql"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/gjallar-im/gjallar/appservice"
	"github.com/gjallar-im/gjallar/backends"
	"github.com/gjallar-im/gjallar/homeserver/matrix"
	"github.com/gjallar-im/gjallar/homeserver/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

func migrate(ctx context.Context, db *sqldb.DB) error {
	fsys, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	return db.Migrate(ctx, "bridge", fsys)
}

// portalKey names a chat of a network.
type portalKey struct {
	network string
	chat    backends.ChatID
	account backends.AccountID
}

func (k portalKey) chatKey() backends.ChatKey {
	return backends.ChatKey{Chat: k.chat, Account: k.account}
}

// portalKind is how a portal came to be.
type portalKind string

const (
	chatPortal    portalKind = "chat"    // by alias: the room is as the chat is
	linkedPortal  portalKind = "linked"  // a room that was there before
	directPortal  portalKind = "direct"  // a private chat
	gatewayPortal portalKind = "gateway" // a gateway's user entered the room
)

// portalRow is a row of bridge_portal.
type portalRow struct {
	portalKey
	room  matrix.RoomID
	kind  portalKind
	agent matrix.UserID
	last  backends.Mark
}

func loadPortals(ctx context.Context, db *sqldb.DB) ([]portalRow, error) {
	var out []portalRow
	err := db.Each(ctx, func(scan func(...any) error) error {
		var r portalRow
		var ts int64
		err := scan(&r.network, &r.chat, &r.account, &r.room, &r.kind, &r.agent, &r.last.ID, &ts)
		if ts > 0 {
			r.last.Time = time.UnixMilli(ts)
		}
		out = append(out, r)
		return err
	}, `SELECT p.network, p.chat, p.account, p.room_id, p.kind, p.agent, COALESCE(m.message_id, ''), COALESCE(m.ts, 0)
		FROM bridge_portal AS p LEFT JOIN bridge_mark AS m ON m.network = p.network AND m.chat = p.chat AND m.account = p.account`)
	if err != nil {
		return nil, fmt.Errorf("load portals: %w", err)
	}
	return out, nil
}

func putPortal(tx *sqldb.Tx, r portalRow) error {
	_, err := tx.Exec(`INSERT INTO bridge_portal (network, chat, account, room_id, kind, agent)
		VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (network, chat, account) DO UPDATE SET room_id = excluded.room_id, kind = excluded.kind, agent = excluded.agent`,
		r.network, r.chat, r.account, r.room, r.kind, r.agent)
	return err
}

func deletePortal(tx *sqldb.Tx, k portalKey) error {
	for _, table := range []string{"bridge_portal", "bridge_outbox"} {
		if _, err := tx.Exec(`DELETE FROM `+table+` WHERE network = $1 AND chat = $2 AND account = $3`, k.network, k.chat, k.account); err != nil {
			return err
		}
	}
	return nil
}

var insertMark = &sqldb.Insert{
	Table: "bridge_mark", Columns: []string{"network", "chat", "account", "message_id", "ts"},
	Conflict: "ON CONFLICT (network, chat, account) DO UPDATE SET message_id = excluded.message_id, ts = excluded.ts WHERE excluded.ts >= bridge_mark.ts",
}

// queueMark notes the newest message of a chat.
func queueMark(tx *sqldb.Tx, k portalKey, m backends.Mark) {
	key := k.network + "\x00" + string(k.chat) + "\x00" + string(k.account)
	tx.QueueLast(insertMark, key, k.network, string(k.chat), string(k.account), string(m.ID), m.Time.UnixMilli())
}

// mapping is a row of bridge_message.
type mapping struct {
	portalKey
	id       backends.MessageID
	part     int
	event    matrix.EventID
	room     matrix.RoomID
	kind     mappingKind
	sender   matrix.UserID
	target   backends.MessageID
	reactKey string
	ts       int64
}

type mappingKind string

const (
	messageMapping  mappingKind = "message"
	editMapping     mappingKind = "edit"
	reactionMapping mappingKind = "reaction"
)

var insertMessage = &sqldb.Insert{
	Table:    "bridge_message",
	Columns:  []string{"network", "chat", "account", "message_id", "part", "event_id", "room_id", "kind", "sender", "target", "react_key", "ts"},
	Conflict: "ON CONFLICT DO NOTHING",
}

func (m *mapping) queue(tx *sqldb.Tx) {
	tx.Queue(insertMessage, m.network, string(m.chat), string(m.account), string(m.id), m.part, string(m.event), string(m.room),
		string(m.kind), string(m.sender), string(m.target), m.reactKey, m.ts)
}

const selectMessage = `SELECT network, chat, account, message_id, part, event_id, room_id, kind, sender, target, react_key, ts FROM bridge_message `

func queryMessages(ctx context.Context, db *sqldb.DB, where string, args ...any) ([]*mapping, error) {
	var out []*mapping
	err := db.Each(ctx, func(scan func(...any) error) error {
		m := new(mapping)
		out = append(out, m)
		return scan(&m.network, &m.chat, &m.account, &m.id, &m.part, &m.event, &m.room, &m.kind, &m.sender, &m.target, &m.reactKey, &m.ts)
	}, selectMessage+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read message map: %w", err)
	}
	return out, nil
}

// outRow is a row of bridge_outbox.
type outRow struct {
	portalKey
	seq       int64
	event     appservice.Event
	attempt   int
	maybeSent bool
	queued    time.Time
}

var insertOutbox = &sqldb.Insert{
	Table:    "bridge_outbox",
	Columns:  []string{"seq", "network", "chat", "account", "event_id", "event", "attempt", "maybe_sent", "queued"},
	Conflict: "ON CONFLICT DO NOTHING",
}

func (r *outRow) queue(tx *sqldb.Tx, eventJSON string) {
	tx.Queue(insertOutbox, r.seq, r.network, string(r.chat), string(r.account), string(r.event.ID), eventJSON, 0, false, r.queued.UnixMilli())
}

// loadOutbox returns at most limit rows of a portal after a place in the queue.
func loadOutbox(ctx context.Context, db *sqldb.DB, k portalKey, after int64, limit int) ([]*outRow, error) {
	return queryOutbox(ctx, db, `WHERE network = $1 AND chat = $2 AND account = $3 AND seq > $4 ORDER BY seq LIMIT $5`,
		k.network, k.chat, k.account, after, limit)
}

func queryOutbox(ctx context.Context, db *sqldb.DB, where string, args ...any) ([]*outRow, error) {
	var out []*outRow
	err := db.Each(ctx, func(scan func(...any) error) error {
		r := new(outRow)
		var event string
		var queued int64
		if err := scan(&r.seq, &r.network, &r.chat, &r.account, &event, &r.attempt, &r.maybeSent, &queued); err != nil {
			return err
		}
		r.queued = time.UnixMilli(queued)
		out = append(out, r)
		return json.Unmarshal([]byte(event), &r.event)
	}, `SELECT seq, network, chat, account, event, attempt, maybe_sent, queued FROM bridge_outbox `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read outbox: %w", err)
	}
	return out, nil
}

// seqs is the text of a list of numbers for IN; they are ours, so need no placeholders.
func seqs(rows []*outRow) string {
	var b strings.Builder
	for i, r := range rows {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%d", r.seq)
	}
	return b.String()
}

// markSent notes, before it is done, that rows are handed to the network.
func markSent(ctx context.Context, db *sqldb.DB, rows []*outRow) error {
	return db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`UPDATE bridge_outbox SET attempt = attempt + 1, maybe_sent = TRUE WHERE seq IN (` + seqs(rows) + `)`)
		return err
	})
}

// letter is a row of bridge_deadletter.
type letter struct {
	outRow
	room    matrix.RoomID
	outcome string
	reason  string
	told    bool
}

var insertLetter = &sqldb.Insert{
	Table:    "bridge_deadletter",
	Columns:  []string{"seq", "network", "chat", "account", "room_id", "event_id", "event", "outcome", "reason", "died", "told"},
	Conflict: "ON CONFLICT DO NOTHING",
}

func (l *letter) queue(tx *sqldb.Tx, now time.Time) error {
	event, err := json.Marshal(&l.event)
	if err != nil {
		return err
	}
	tx.Queue(insertLetter, l.seq, l.network, string(l.chat), string(l.account), string(l.room), string(l.event.ID), string(event), l.outcome, l.reason, now.UnixMilli(), l.told)
	return nil
}

func untoldLetters(ctx context.Context, db *sqldb.DB) ([]*letter, error) {
	var out []*letter
	err := db.Each(ctx, func(scan func(...any) error) error {
		l := new(letter)
		var event string
		if err := scan(&l.seq, &l.network, &l.chat, &l.account, &l.room, &event, &l.outcome, &l.reason); err != nil {
			return err
		}
		out = append(out, l)
		return json.Unmarshal([]byte(event), &l.event)
	}, `SELECT seq, network, chat, account, room_id, event, outcome, reason FROM bridge_deadletter WHERE told = FALSE ORDER BY seq LIMIT 1000`)
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return out, nil
}

func markTold(ctx context.Context, db *sqldb.DB, seq int64) error {
	return db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`UPDATE bridge_deadletter SET told = TRUE WHERE seq = $1`, seq)
		return err
	})
}

// lastSeq is the highest number that was given to a row of the outbox.
func lastSeq(ctx context.Context, db *sqldb.DB) (int64, error) {
	var seq int64
	err := db.QueryRow(ctx, `SELECT COALESCE(MAX(seq), 0) FROM (SELECT MAX(seq) AS seq FROM bridge_outbox UNION ALL SELECT MAX(seq) FROM bridge_deadletter) AS s`).Scan(&seq)
	if err != nil {
		return 0, fmt.Errorf("read outbox: %w", err)
	}
	return seq, nil
}

// kv is the backends.Store of a network; that of network "" is the runtime's own.
type kv struct {
	db      *sqldb.DB
	network string
}

func (s kv) Get(ctx context.Context, key string) ([]byte, error) {
	var v string
	err := s.db.QueryRow(ctx, `SELECT v FROM bridge_kv WHERE network = $1 AND k = $2`, s.network, key).Scan(&v)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", key, err)
	}
	return base64.StdEncoding.DecodeString(v)
}

var upsertKV = &sqldb.Insert{
	Table: "bridge_kv", Columns: []string{"network", "k", "v"}, Conflict: "ON CONFLICT (network, k) DO UPDATE SET v = excluded.v",
}

func (s kv) Put(ctx context.Context, key string, value []byte) error {
	return s.db.Write(ctx, func(tx *sqldb.Tx) error {
		tx.QueueLast(upsertKV, s.network+"\x00"+key, s.network, key, base64.StdEncoding.EncodeToString(value))
		return nil
	})
}

func (s kv) Delete(ctx context.Context, key string) error {
	return s.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(`DELETE FROM bridge_kv WHERE network = $1 AND k = $2`, s.network, key)
		return err
	})
}

func (s kv) Scan(ctx context.Context, prefix string) (map[string][]byte, error) {
	out := map[string][]byte{}
	err := s.db.Each(ctx, func(scan func(...any) error) error {
		var k, v string
		if err := scan(&k, &v); err != nil {
			return err
		}
		if !strings.HasPrefix(k, prefix) {
			return nil
		}
		b, err := base64.StdEncoding.DecodeString(v)
		out[k] = b
		return err
	}, `SELECT k, v FROM bridge_kv WHERE network = $1`, s.network)
	if err != nil {
		return nil, fmt.Errorf("scan %q: %w", prefix, err)
	}
	return out, nil
}
