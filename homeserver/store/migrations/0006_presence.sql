CREATE TABLE presence (
	user_id TEXT PRIMARY KEY,
	state TEXT NOT NULL,           -- online, unavailable, offline
	status_msg TEXT NOT NULL,
	last_active BIGINT NOT NULL,   -- ms
	currently_active BOOLEAN NOT NULL,
	pos BIGINT NOT NULL
);
CREATE INDEX presence_pos ON presence (pos);

-- Where notifications of a user are to be sent.
CREATE TABLE pusher (
	user_id TEXT NOT NULL,
	app_id TEXT NOT NULL,
	pushkey TEXT NOT NULL,
	device_id TEXT NOT NULL,
	json TEXT NOT NULL,            -- as the client gave it
	PRIMARY KEY (user_id, app_id, pushkey)
);
CREATE INDEX pusher_key ON pusher (app_id, pushkey);

-- Tokens by which a user proves to others who they are.
CREATE TABLE openid_token (
	hash TEXT PRIMARY KEY,         -- SHA-256, hex
	user_id TEXT NOT NULL,
	expires BIGINT NOT NULL        -- ms
);
