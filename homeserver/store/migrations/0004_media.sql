CREATE TABLE media (
	origin TEXT NOT NULL,          -- server name
	media_id TEXT NOT NULL,
	user_id TEXT NOT NULL,         -- who made it
	created BIGINT NOT NULL,       -- ms
	file TEXT,                     -- name on disk; NULL until the content has been uploaded
	content_type TEXT NOT NULL,
	name TEXT NOT NULL,            -- '' is none
	size BIGINT NOT NULL,          -- bytes
	PRIMARY KEY (origin, media_id)
);
CREATE INDEX media_pending ON media (user_id, created) WHERE file IS NULL;
