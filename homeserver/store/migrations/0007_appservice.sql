-- How far each application service has acknowledged the stream.
CREATE TABLE as_position (
	as_id TEXT PRIMARY KEY,        -- ID of the registration
	pos BIGINT NOT NULL
);
-- The last transaction of each, stored before it was first sent. It has not been
-- acknowledged if upto is above the position.
CREATE TABLE as_transaction (
	as_id TEXT PRIMARY KEY,
	txn_id TEXT NOT NULL,
	upto BIGINT NOT NULL,
	created BIGINT NOT NULL,       -- ms
	events TEXT NOT NULL,          -- their numbers, a JSON list
	extra TEXT NOT NULL            -- EDUs and to-device messages, as they are sent; '' is none
);
-- An application service reads what concerns many rooms and users at once.
CREATE INDEX receipt_stream ON receipt (pos);
CREATE INDEX to_device_stream ON to_device (pos);
