-- Which event of an aggregate was refused: it is listed, retried and discarded by that.
ALTER TABLE tidings_outbox_held ADD COLUMN sequence integer NOT NULL DEFAULT 0;
CREATE INDEX tidings_outbox_held_sequence ON tidings_outbox_held (sequence);

-- Events that an operator took out instead of sending them.
CREATE TABLE tidings_outbox_discarded (
	sequence      integer PRIMARY KEY,
	id            text NOT NULL,
	aggregatetype text NOT NULL,
	aggregateid   text NOT NULL,
	type          text NOT NULL,
	payload       text NOT NULL,
	headers       text,
	created_at    integer NOT NULL,
	attempts      integer NOT NULL,
	failure       text,
	discarded_at  integer NOT NULL,
	reason        text NOT NULL
);
