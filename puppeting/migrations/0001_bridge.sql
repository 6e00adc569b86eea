-- Rooms that stand for chats. account is '' for a chat that all share.
CREATE TABLE bridge_portal (
	network TEXT NOT NULL,
	chat TEXT NOT NULL,
	account TEXT NOT NULL,
	room_id TEXT NOT NULL,
	kind TEXT NOT NULL,            -- 'chat', 'linked', 'direct', 'gateway'
	agent TEXT NOT NULL,           -- the user of ours that reads the room
	PRIMARY KEY (network, chat, account)
);

-- The newest message of each chat that came from its network.
CREATE TABLE bridge_mark (
	network TEXT NOT NULL,
	chat TEXT NOT NULL,
	account TEXT NOT NULL,
	message_id TEXT NOT NULL,
	ts BIGINT NOT NULL,            -- ms
	PRIMARY KEY (network, chat, account)
);

-- Events on their way to a network, in the order of seq.
CREATE TABLE bridge_outbox (
	seq BIGINT PRIMARY KEY,
	network TEXT NOT NULL,
	chat TEXT NOT NULL,
	account TEXT NOT NULL,
	event_id TEXT NOT NULL,
	event TEXT NOT NULL,           -- JSON
	attempt BIGINT NOT NULL,       -- how often it was handed to the network
	maybe_sent BOOLEAN NOT NULL,   -- a result was never heard
	queued BIGINT NOT NULL,        -- ms
	UNIQUE (event_id, network, chat, account)
);
CREATE INDEX bridge_outbox_portal ON bridge_outbox (network, chat, account, seq);

-- What each event is called on each network.
CREATE TABLE bridge_message (
	network TEXT NOT NULL,
	chat TEXT NOT NULL,
	account TEXT NOT NULL,
	message_id TEXT NOT NULL,
	part BIGINT NOT NULL,          -- 0 stands for the message in replies and edits
	event_id TEXT NOT NULL,
	room_id TEXT NOT NULL,
	kind TEXT NOT NULL,            -- 'message', 'edit', 'reaction'
	sender TEXT NOT NULL,          -- user ID
	target TEXT NOT NULL,          -- message_id that an edit or reaction is of
	react_key TEXT NOT NULL,
	ts BIGINT NOT NULL,            -- ms
	PRIMARY KEY (network, chat, account, message_id, part)
);
CREATE INDEX bridge_message_event ON bridge_message (event_id);
CREATE INDEX bridge_message_target ON bridge_message (network, chat, account, target) WHERE target <> '';

-- Remote users and what was last told of them.
CREATE TABLE bridge_ghost (
	network TEXT NOT NULL,
	remote_id TEXT NOT NULL,
	user_id TEXT NOT NULL UNIQUE,
	name TEXT NOT NULL,
	avatar TEXT NOT NULL,          -- URL on the network
	PRIMARY KEY (network, remote_id)
);

-- Users of ours whom a gateway has checked the password of.
CREATE TABLE bridge_account (
	network TEXT NOT NULL,
	user_id TEXT NOT NULL,
	PRIMARY KEY (network, user_id)
);

-- Who is in a room through a gateway.
CREATE TABLE bridge_occupant (
	network TEXT NOT NULL,
	chat TEXT NOT NULL,
	user_id TEXT NOT NULL,
	joined BOOLEAN NOT NULL,       -- by entering; they leave the room with the gateway
	PRIMARY KEY (network, chat, user_id)
);

-- What could not be delivered.
CREATE TABLE bridge_deadletter (
	seq BIGINT PRIMARY KEY,        -- as in the outbox
	network TEXT NOT NULL,
	chat TEXT NOT NULL,
	account TEXT NOT NULL,
	room_id TEXT NOT NULL,
	event_id TEXT NOT NULL,
	event TEXT NOT NULL,
	outcome TEXT NOT NULL,
	reason TEXT NOT NULL,
	died BIGINT NOT NULL,          -- ms
	told BOOLEAN NOT NULL          -- the sender knows
);
CREATE INDEX bridge_deadletter_untold ON bridge_deadletter (seq) WHERE told = FALSE;

-- The networks' own pairs; network '' is the runtime's.
CREATE TABLE bridge_kv (
	network TEXT NOT NULL,
	k TEXT NOT NULL,
	v TEXT NOT NULL,               -- base64
	PRIMARY KEY (network, k)
);

-- Transactions and events of the homeserver that were taken.
CREATE TABLE bridge_txn (
	txn_id TEXT PRIMARY KEY,
	at BIGINT NOT NULL
);
CREATE TABLE bridge_seen (
	event_id TEXT PRIMARY KEY,
	at BIGINT NOT NULL
);
CREATE INDEX bridge_seen_at ON bridge_seen (at);

-- Events whose files are no longer served.
CREATE TABLE bridge_revoked (
	event_id TEXT PRIMARY KEY,
	at BIGINT NOT NULL
);
