-- What devices have uploaded of their identity keys: the signed object as it came.
CREATE TABLE device_key (
	user_id TEXT NOT NULL,
	device_id TEXT NOT NULL,
	json TEXT NOT NULL,
	PRIMARY KEY (user_id, device_id)
);
CREATE TABLE one_time_key (
	user_id TEXT NOT NULL,
	device_id TEXT NOT NULL,
	algorithm TEXT NOT NULL,
	key_id TEXT NOT NULL,
	json TEXT NOT NULL,
	n BIGINT NOT NULL,             -- which upload brought it; older ones are claimed first
	PRIMARY KEY (user_id, device_id, algorithm, key_id)
);
CREATE INDEX one_time_key_order ON one_time_key (user_id, device_id, algorithm, n, key_id);
CREATE TABLE fallback_key (
	user_id TEXT NOT NULL,
	device_id TEXT NOT NULL,
	algorithm TEXT NOT NULL,
	key_id TEXT NOT NULL,
	json TEXT NOT NULL,
	used BOOLEAN NOT NULL DEFAULT FALSE,
	PRIMARY KEY (user_id, device_id, algorithm)
);
CREATE TABLE cross_signing_key (
	user_id TEXT NOT NULL,
	usage TEXT NOT NULL,           -- master, self_signing, user_signing
	json TEXT NOT NULL,
	PRIMARY KEY (user_id, usage)
);
-- Signatures that were uploaded apart from what they sign, which is the target: a
-- device ID, or the public part of a master key.
CREATE TABLE key_signature (
	target_user TEXT NOT NULL,
	target TEXT NOT NULL,
	signer TEXT NOT NULL,
	key_id TEXT NOT NULL,
	signature TEXT NOT NULL,
	PRIMARY KEY (target_user, target, signer, key_id)
);
-- When a user's devices or keys last changed. One row a user, so that the table
-- cannot grow: who asks for an older span learns of the change in the next.
CREATE TABLE device_list_change (
	user_id TEXT PRIMARY KEY,
	pos BIGINT NOT NULL
);
CREATE INDEX device_list_change_pos ON device_list_change (pos);

CREATE TABLE to_device (
	user_id TEXT NOT NULL,
	device_id TEXT NOT NULL,
	pos BIGINT NOT NULL,
	sender TEXT NOT NULL,
	type TEXT NOT NULL,
	content TEXT NOT NULL,         -- JSON
	PRIMARY KEY (user_id, device_id, pos)
);

-- Server-side backups of room keys.
CREATE TABLE room_key_backup (
	user_id TEXT NOT NULL,
	version BIGINT NOT NULL,
	algorithm TEXT NOT NULL,
	auth_data TEXT NOT NULL,       -- JSON
	etag BIGINT NOT NULL DEFAULT 0,
	deleted BOOLEAN NOT NULL DEFAULT FALSE, -- kept, so that its number is not used again
	PRIMARY KEY (user_id, version)
);
CREATE TABLE room_key (
	user_id TEXT NOT NULL,
	version BIGINT NOT NULL,
	room_id TEXT NOT NULL,
	session_id TEXT NOT NULL,
	first_message_index BIGINT NOT NULL,
	forwarded_count BIGINT NOT NULL,
	is_verified BOOLEAN NOT NULL,
	session_data TEXT NOT NULL,    -- JSON, encrypted by the client
	PRIMARY KEY (user_id, version, room_id, session_id)
);
