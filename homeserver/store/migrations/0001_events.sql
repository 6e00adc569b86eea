-- The one counter of stream positions.
CREATE TABLE stream_position (pos BIGINT NOT NULL);
INSERT INTO stream_position (pos) VALUES (0);

CREATE TABLE room (
	room_id TEXT PRIMARY KEY,
	version TEXT NOT NULL,
	creator TEXT NOT NULL,
	created BIGINT NOT NULL
);

-- Events, in the order in which we accepted them. pos is also the event's number.
CREATE TABLE event (
	pos BIGINT PRIMARY KEY,
	event_id TEXT NOT NULL UNIQUE,
	room_id TEXT NOT NULL,
	type TEXT NOT NULL,
	state_key TEXT,
	sender TEXT NOT NULL,
	origin_server_ts BIGINT NOT NULL,
	snapshot BIGINT NOT NULL,      -- the state before the event; 0 is none
	json TEXT NOT NULL,            -- canonical, redacted if redacted_by is set
	redacted_by TEXT,              -- event ID
	relates_to TEXT,               -- event ID of m.relates_to
	rel_type TEXT,
	txn_id TEXT,                   -- of the sending device, for its local echo
	txn_device TEXT
);
CREATE INDEX event_room ON event (room_id, pos);
CREATE INDEX event_relation ON event (relates_to, pos) WHERE relates_to IS NOT NULL;

-- The events that no other of their room refers to yet: a JSON list of {id, depth}.
CREATE TABLE room_extremities (
	room_id TEXT PRIMARY KEY,
	events TEXT NOT NULL
);

-- State snapshots. A snapshot has the number of the state event that made it, and is
-- stored as what differs from its base: the snapshot number seq - lowbit(seq) of its
-- chain, so that any is read in at most log2(seq) steps.
CREATE TABLE state_snapshot (
	id BIGINT PRIMARY KEY,
	room_id TEXT NOT NULL,
	seq BIGINT NOT NULL,
	base BIGINT NOT NULL
);
CREATE TABLE state_delta (
	snapshot BIGINT NOT NULL,
	type TEXT NOT NULL,
	state_key TEXT NOT NULL,
	event_pos BIGINT NOT NULL,
	PRIMARY KEY (snapshot, type, state_key)
);

CREATE TABLE current_state (
	room_id TEXT NOT NULL,
	type TEXT NOT NULL,
	state_key TEXT NOT NULL,
	event_pos BIGINT NOT NULL,
	membership TEXT,
	PRIMARY KEY (room_id, type, state_key)
);
CREATE INDEX current_state_member ON current_state (state_key, membership) WHERE type = 'm.room.member';
-- How current_state changed.
CREATE TABLE state_change (
	pos BIGINT NOT NULL,
	room_id TEXT NOT NULL,
	type TEXT NOT NULL,
	state_key TEXT NOT NULL,
	previous BIGINT NOT NULL,      -- event pos, 0 if there was none
	PRIMARY KEY (room_id, pos)
);
CREATE INDEX state_change_key ON state_change (room_id, type, state_key, pos);

-- What a device has sent under which transaction ID.
CREATE TABLE transaction_id (
	user_id TEXT NOT NULL,
	device_id TEXT NOT NULL,
	txn_id TEXT NOT NULL,
	event_id TEXT NOT NULL,
	ts BIGINT NOT NULL,
	PRIMARY KEY (user_id, device_id, txn_id)
);
