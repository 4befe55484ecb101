-- Which event of an aggregate was refused: it is listed, retried and discarded by that.
ALTER TABLE tidings_outbox_held ADD COLUMN sequence bigint NOT NULL DEFAULT 0;
CREATE INDEX tidings_outbox_held_sequence ON tidings_outbox_held (sequence);

-- Events that an operator took out instead of sending them.
CREATE TABLE tidings_outbox_discarded (
	sequence      bigint PRIMARY KEY,
	id            VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
	aggregatetype VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
	aggregateid   VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
	type          VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
	payload       LONGTEXT CHARACTER SET utf8mb4 NOT NULL,
	headers       LONGTEXT CHARACTER SET utf8mb4,
	created_at    bigint NOT NULL,
	attempts      integer NOT NULL,
	failure       LONGTEXT CHARACTER SET utf8mb4,
	discarded_at  bigint NOT NULL,
	reason        LONGTEXT CHARACTER SET utf8mb4 NOT NULL
) ENGINE=InnoDB;
