CREATE TABLE account (
	user_id TEXT PRIMARY KEY,
	password_hash TEXT,            -- NULL: no login by password
	created BIGINT NOT NULL,       -- ms
	admin BOOLEAN NOT NULL DEFAULT FALSE,
	deactivated BOOLEAN NOT NULL DEFAULT FALSE,
	locked BOOLEAN NOT NULL DEFAULT FALSE,
	suspended BOOLEAN NOT NULL DEFAULT FALSE,
	appservice TEXT                -- ID of the registration that made it
);
CREATE TABLE device (
	user_id TEXT NOT NULL,
	device_id TEXT NOT NULL,
	display_name TEXT,
	last_seen_ts BIGINT,
	last_seen_ip TEXT,
	PRIMARY KEY (user_id, device_id)
);
CREATE TABLE access_token (
	hash TEXT PRIMARY KEY,         -- SHA-256, hex
	user_id TEXT NOT NULL,
	device_id TEXT NOT NULL,
	expires BIGINT,                -- ms; NULL is never
	refresh_hash TEXT UNIQUE,      -- of the refresh token that goes with it
	used BOOLEAN NOT NULL DEFAULT FALSE -- its refresh token was used
);
CREATE INDEX access_token_device ON access_token (user_id, device_id);
CREATE TABLE profile (
	user_id TEXT NOT NULL,
	field TEXT NOT NULL,
	value TEXT NOT NULL,           -- JSON
	PRIMARY KEY (user_id, field)
);
CREATE TABLE account_data (
	user_id TEXT NOT NULL,
	room_id TEXT NOT NULL,         -- '' is global
	type TEXT NOT NULL,
	content TEXT NOT NULL,         -- JSON
	pos BIGINT NOT NULL,
	PRIMARY KEY (user_id, room_id, type)
);
CREATE INDEX account_data_pos ON account_data (user_id, pos);
CREATE TABLE filter (
	user_id TEXT NOT NULL,
	filter_id TEXT NOT NULL,       -- derived from the content
	content TEXT NOT NULL,
	PRIMARY KEY (user_id, filter_id)
);
