-- Times are microseconds since 1970 by the clock of the server. To read one: SELECT FROM_UNIXTIME(created_at / 1e6).
-- Names and keys are compared as bytes: VARBINARY knows no case and no padding.
CREATE TABLE IF NOT EXISTS tidings_schema (
	only_row smallint PRIMARY KEY CHECK (only_row = 1),
	version  integer NOT NULL,
	minimum  integer NOT NULL
) ENGINE=InnoDB;

-- Events that are not sent. id, aggregatetype, aggregateid, type and payload are what Debezium's outbox event router reads; a row
-- may be inserted with these alone. slot is given by whoever adds the row, or by the relay.
CREATE TABLE tidings_outbox (
	sequence      bigint AUTO_INCREMENT PRIMARY KEY,
	slot          smallint,
	id            VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
	aggregatetype VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
	aggregateid   VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
	type          VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
	payload       LONGTEXT CHARACTER SET utf8mb4 NOT NULL,
	headers       LONGTEXT CHARACTER SET utf8mb4,
	created_at    bigint NOT NULL DEFAULT (TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))),
	attempts      integer NOT NULL DEFAULT 0,
	failure       LONGTEXT CHARACTER SET utf8mb4
) ENGINE=InnoDB;
CREATE INDEX tidings_outbox_slot ON tidings_outbox (slot, sequence);

-- Events that were sent, where the store is told to keep them.
CREATE TABLE tidings_outbox_sent (
	sequence      bigint PRIMARY KEY,
	slot          smallint,
	id            VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
	aggregatetype VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
	aggregateid   VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
	type          VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
	payload       LONGTEXT CHARACTER SET utf8mb4 NOT NULL,
	headers       LONGTEXT CHARACTER SET utf8mb4,
	created_at    bigint NOT NULL,
	attempts      integer NOT NULL,
	sent_at       bigint NOT NULL
) ENGINE=InnoDB;
CREATE INDEX tidings_outbox_sent_at ON tidings_outbox_sent (sent_at);

-- Aggregates whose first event could not be sent.
CREATE TABLE tidings_outbox_held (
	aggregatetype VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
	aggregateid   VARCHAR(300) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
	until_at      bigint NOT NULL,
	PRIMARY KEY (aggregatetype, aggregateid)
) ENGINE=InnoDB;

CREATE TABLE tidings_leases (
	group_name VARBINARY(255) NOT NULL,
	name       VARBINARY(255) NOT NULL,
	holder     VARBINARY(255) NOT NULL,
	epoch      bigint NOT NULL,
	until_at   bigint NOT NULL,
	PRIMARY KEY (group_name, name)
) ENGINE=InnoDB;

CREATE TABLE tidings_members (
	group_name VARBINARY(255) NOT NULL,
	holder     VARBINARY(255) NOT NULL,
	until_at   bigint NOT NULL,
	PRIMARY KEY (group_name, holder)
) ENGINE=InnoDB;

-- What a subscription is handling (done = 0, until until_at) and has handled (done = 1, forgotten after keep_until).
-- crashes are starts that never finished, alone those of them while nothing else ran; started is what the claim counts
-- as: 0 no start, 1 one, 2 one alone. epoch is that of the source when the event was claimed.
CREATE TABLE tidings_claims (
	subscription VARBINARY(255) NOT NULL,
	claim_key    VARBINARY(530) NOT NULL,
	owner        VARBINARY(255) NOT NULL,
	done         smallint NOT NULL,
	until_at     bigint NOT NULL,
	digest       bigint NOT NULL,
	crashes      integer NOT NULL,
	alone        integer NOT NULL DEFAULT 0,
	started      smallint NOT NULL DEFAULT 0,
	source       VARBINARY(255) NOT NULL DEFAULT '',
	epoch        bigint NOT NULL DEFAULT 0,
	keep_until   bigint,
	PRIMARY KEY (subscription, claim_key)
) ENGINE=InnoDB;
CREATE INDEX tidings_claims_keep ON tidings_claims (keep_until);

CREATE TABLE tidings_starts (
	subscription VARBINARY(255) NOT NULL,
	claim_key    VARBINARY(530) NOT NULL,
	starts       integer NOT NULL,
	alone        integer NOT NULL,
	started_at   bigint NOT NULL,
	PRIMARY KEY (subscription, claim_key)
) ENGINE=InnoDB;

-- How often each source of a subscription was given to a process: where handlers' transactions look, and where claims do.
CREATE TABLE tidings_epochs (
	subscription VARBINARY(255) NOT NULL,
	source       VARBINARY(255) NOT NULL,
	epoch        bigint NOT NULL,
	claims_epoch bigint NOT NULL DEFAULT 0,
	PRIMARY KEY (subscription, source)
) ENGINE=InnoDB;

-- What subscriptions gave up on. state: open, retry (taken_until: given to a process), resolved, discarded.
CREATE TABLE tidings_dead_letters (
	subscription VARBINARY(255) NOT NULL,
	letter_key   VARBINARY(530) NOT NULL,
	state        VARBINARY(20) NOT NULL,
	note         LONGTEXT CHARACTER SET utf8mb4 NOT NULL,
	times        integer NOT NULL,
	changed_at   bigint NOT NULL,
	taken_until  bigint,
	failed_at    bigint NOT NULL,
	fingerprint  VARBINARY(20) NOT NULL,
	channel      VARBINARY(255) NOT NULL,
	type         VARBINARY(300) NOT NULL,
	id           VARBINARY(530) NOT NULL,
	aggregate_id VARBINARY(300) NOT NULL,
	reason       VARBINARY(100) NOT NULL,
	failure      LONGTEXT CHARACTER SET utf8mb4 NOT NULL,
	stack        LONGTEXT CHARACTER SET utf8mb4 NOT NULL,
	attempts     integer NOT NULL,
	position     VARBINARY(300) NOT NULL,
	headers      LONGTEXT CHARACTER SET utf8mb4 NOT NULL,
	body         longblob,
	PRIMARY KEY (subscription, letter_key)
) ENGINE=InnoDB;
CREATE INDEX tidings_dead_letters_failed ON tidings_dead_letters (failed_at, subscription, letter_key);
CREATE INDEX tidings_dead_letters_retry ON tidings_dead_letters (subscription, changed_at);

-- Every change of a dead letter's state, the oldest first.
CREATE TABLE tidings_dead_letter_changes (
	number       bigint AUTO_INCREMENT PRIMARY KEY,
	subscription VARBINARY(255) NOT NULL,
	letter_key   VARBINARY(530) NOT NULL,
	changed_at   bigint NOT NULL,
	state        VARBINARY(20) NOT NULL,
	note         LONGTEXT CHARACTER SET utf8mb4 NOT NULL
) ENGINE=InnoDB;
CREATE INDEX tidings_dead_letter_changes_key ON tidings_dead_letter_changes (subscription, letter_key, number);

-- Parked events, in the order of number within their lane.
CREATE TABLE tidings_parked (
	number          bigint AUTO_INCREMENT PRIMARY KEY,
	subscription    VARBINARY(255) NOT NULL,
	source          VARBINARY(255) NOT NULL,
	channel         VARBINARY(255) NOT NULL,
	lane_key        VARBINARY(530) NOT NULL,
	id              VARBINARY(530) NOT NULL,
	type            VARBINARY(300) NOT NULL,
	message_channel VARBINARY(255) NOT NULL,
	message_key     VARBINARY(530) NOT NULL,
	message_id      VARBINARY(530) NOT NULL,
	headers         LONGTEXT CHARACTER SET utf8mb4 NOT NULL,
	body            longblob,
	size            bigint NOT NULL,
	position        VARBINARY(300) NOT NULL,
	stored_at       bigint NOT NULL,
	attempts        integer NOT NULL,
	reason          VARBINARY(100) NOT NULL,
	failure         LONGTEXT CHARACTER SET utf8mb4 NOT NULL,
	parked_at       bigint NOT NULL
) ENGINE=InnoDB;
CREATE INDEX tidings_parked_lane ON tidings_parked (subscription, channel, lane_key, number);

-- How often the parked events of each source were taken over.
CREATE TABLE tidings_lane_owners (
	subscription VARBINARY(255) NOT NULL,
	source       VARBINARY(255) NOT NULL,
	epoch        bigint NOT NULL,
	PRIMARY KEY (subscription, source)
) ENGINE=InnoDB;

-- What operators have asked for a lane.
CREATE TABLE tidings_lane_orders (
	subscription VARBINARY(255) NOT NULL,
	channel      VARBINARY(255) NOT NULL,
	lane_key     VARBINARY(530) NOT NULL,
	verb         smallint NOT NULL,
	reason       LONGTEXT CHARACTER SET utf8mb4 NOT NULL,
	PRIMARY KEY (subscription, channel, lane_key)
) ENGINE=InnoDB;

-- Whoever has locked a row of a hash writes events of those aggregates alone.
CREATE TABLE tidings_locks (
	lock_key bigint PRIMARY KEY
) ENGINE=InnoDB;
