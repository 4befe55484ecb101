-- Which event of an aggregate was refused: it is listed, retried and discarded by that.
ALTER TABLE tidings_outbox_held ADD COLUMN sequence bigint NOT NULL DEFAULT 0;
CREATE INDEX tidings_outbox_held_sequence ON tidings_outbox_held (sequence);

-- Events that an operator took out instead of sending them.
CREATE TABLE tidings_outbox_discarded (
	sequence      bigint PRIMARY KEY,
	id            text NOT NULL,
	aggregatetype text NOT NULL,
	aggregateid   text NOT NULL,
	type          text NOT NULL,
	payload       text NOT NULL,
	headers       text,
	created_at    bigint NOT NULL,
	attempts      integer NOT NULL,
	failure       text,
	discarded_at  bigint NOT NULL,
	reason        text NOT NULL
);
