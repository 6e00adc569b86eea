CREATE TABLE room_alias (
	alias TEXT PRIMARY KEY,
	room_id TEXT NOT NULL,
	creator TEXT NOT NULL
);
CREATE INDEX room_alias_room ON room_alias (room_id);
-- Rooms in the directory; network is '' or that of an application service.
CREATE TABLE published_room (
	room_id TEXT NOT NULL,
	network TEXT NOT NULL,
	PRIMARY KEY (room_id, network)
);
CREATE TABLE forgotten_room (
	user_id TEXT NOT NULL,
	room_id TEXT NOT NULL,
	PRIMARY KEY (user_id, room_id)
);
CREATE TABLE receipt (
	room_id TEXT NOT NULL,
	user_id TEXT NOT NULL,
	type TEXT NOT NULL,
	thread_id TEXT NOT NULL,       -- '' is none
	event_id TEXT NOT NULL,
	ts BIGINT NOT NULL,
	pos BIGINT NOT NULL,
	PRIMARY KEY (room_id, user_id, type, thread_id)
);
CREATE INDEX receipt_pos ON receipt (room_id, pos);
