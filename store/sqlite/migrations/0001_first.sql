-- Times are microseconds since 1970 by the clock of the machine. To read one: SELECT datetime(created_at / 1e6, 'unixepoch').
CREATE TABLE IF NOT EXISTS tidings_schema (
	only_row integer PRIMARY KEY CHECK (only_row = 1),
	version  integer NOT NULL,
	minimum  integer NOT NULL
);

-- Events that are not sent. id, aggregatetype, aggregateid, type and payload are what Debezium's outbox event router reads; a row
-- may be inserted with these alone. slot is given by whoever adds the row, or by the relay.
CREATE TABLE tidings_outbox (
	sequence      INTEGER PRIMARY KEY AUTOINCREMENT,
	slot          integer,
	id            text NOT NULL,
	aggregatetype text NOT NULL,
	aggregateid   text NOT NULL,
	type          text NOT NULL,
	payload       text NOT NULL,
	headers       text,
	created_at    integer NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS integer)),
	attempts      integer NOT NULL DEFAULT 0,
	failure       text
);
CREATE INDEX tidings_outbox_slot ON tidings_outbox (slot, sequence);

-- Events that were sent, where the store is told to keep them.
CREATE TABLE tidings_outbox_sent (
	sequence      integer PRIMARY KEY,
	slot          integer,
	id            text NOT NULL,
	aggregatetype text NOT NULL,
	aggregateid   text NOT NULL,
	type          text NOT NULL,
	payload       text NOT NULL,
	headers       text,
	created_at    integer NOT NULL,
	attempts      integer NOT NULL,
	sent_at       integer NOT NULL
);
CREATE INDEX tidings_outbox_sent_at ON tidings_outbox_sent (sent_at);

-- Aggregates whose first event could not be sent.
CREATE TABLE tidings_outbox_held (
	aggregatetype text NOT NULL,
	aggregateid   text NOT NULL,
	until_at      integer NOT NULL,
	PRIMARY KEY (aggregatetype, aggregateid)
) WITHOUT ROWID;

CREATE TABLE tidings_leases (
	group_name text NOT NULL,
	name       text NOT NULL,
	holder     text NOT NULL,
	epoch      integer NOT NULL,
	until_at   integer NOT NULL,
	PRIMARY KEY (group_name, name)
) WITHOUT ROWID;

CREATE TABLE tidings_members (
	group_name text NOT NULL,
	holder     text NOT NULL,
	until_at   integer NOT NULL,
	PRIMARY KEY (group_name, holder)
) WITHOUT ROWID;

-- What a subscription is handling (done = 0, until until_at) and has handled (done = 1, forgotten after keep_until).
-- crashes are starts that never finished, alone those of them while nothing else ran; started is what the claim counts
-- as: 0 no start, 1 one, 2 one alone. epoch is that of the source when the event was claimed.
CREATE TABLE tidings_claims (
	subscription text NOT NULL,
	claim_key    text NOT NULL,
	owner        text NOT NULL,
	done         integer NOT NULL,
	until_at     integer NOT NULL,
	digest       integer NOT NULL,
	crashes      integer NOT NULL,
	alone        integer NOT NULL DEFAULT 0,
	started      integer NOT NULL DEFAULT 0,
	source       text NOT NULL DEFAULT '',
	epoch        integer NOT NULL DEFAULT 0,
	keep_until   integer,
	PRIMARY KEY (subscription, claim_key)
) WITHOUT ROWID;
CREATE INDEX tidings_claims_keep ON tidings_claims (keep_until) WHERE keep_until IS NOT NULL;

CREATE TABLE tidings_starts (
	subscription text NOT NULL,
	claim_key    text NOT NULL,
	starts       integer NOT NULL,
	alone        integer NOT NULL,
	started_at   integer NOT NULL,
	PRIMARY KEY (subscription, claim_key)
) WITHOUT ROWID;

-- How often each source of a subscription was given to a process: where handlers' transactions look, and where claims do.
CREATE TABLE tidings_epochs (
	subscription text NOT NULL,
	source       text NOT NULL,
	epoch        integer NOT NULL,
	claims_epoch integer NOT NULL DEFAULT 0,
	PRIMARY KEY (subscription, source)
) WITHOUT ROWID;

-- What subscriptions gave up on. state: open, retry (taken_until: given to a process), resolved, discarded.
CREATE TABLE tidings_dead_letters (
	subscription text NOT NULL,
	letter_key   text NOT NULL,
	state        text NOT NULL,
	note         text NOT NULL,
	times        integer NOT NULL,
	changed_at   integer NOT NULL,
	taken_until  integer,
	failed_at    integer NOT NULL,
	fingerprint  text NOT NULL,
	channel      text NOT NULL,
	type         text NOT NULL,
	id           text NOT NULL,
	aggregate_id text NOT NULL,
	reason       text NOT NULL,
	failure      text NOT NULL,
	stack        text NOT NULL,
	attempts     integer NOT NULL,
	position     text NOT NULL,
	headers      text NOT NULL,
	body         blob,
	PRIMARY KEY (subscription, letter_key)
);
CREATE INDEX tidings_dead_letters_failed ON tidings_dead_letters (failed_at, subscription, letter_key);
CREATE INDEX tidings_dead_letters_retry ON tidings_dead_letters (subscription, changed_at) WHERE state = 'retry';

-- Every change of a dead letter's state, the oldest first.
CREATE TABLE tidings_dead_letter_changes (
	number       INTEGER PRIMARY KEY AUTOINCREMENT,
	subscription text NOT NULL,
	letter_key   text NOT NULL,
	changed_at   integer NOT NULL,
	state        text NOT NULL,
	note         text NOT NULL
);
CREATE INDEX tidings_dead_letter_changes_key ON tidings_dead_letter_changes (subscription, letter_key, number);

-- Parked events, in the order of number within their lane.
CREATE TABLE tidings_parked (
	number          INTEGER PRIMARY KEY AUTOINCREMENT,
	subscription    text NOT NULL,
	source          text NOT NULL,
	channel         text NOT NULL,
	lane_key        text NOT NULL,
	id              text NOT NULL,
	type            text NOT NULL,
	message_channel text NOT NULL,
	message_key     text NOT NULL,
	message_id      text NOT NULL,
	headers         text NOT NULL,
	body            blob,
	size            integer NOT NULL,
	position        text NOT NULL,
	stored_at       integer NOT NULL,
	attempts        integer NOT NULL,
	reason          text NOT NULL,
	failure         text NOT NULL,
	parked_at       integer NOT NULL
);
CREATE INDEX tidings_parked_lane ON tidings_parked (subscription, channel, lane_key, number);

-- How often the parked events of each source were taken over.
CREATE TABLE tidings_lane_owners (
	subscription text NOT NULL,
	source       text NOT NULL,
	epoch        integer NOT NULL,
	PRIMARY KEY (subscription, source)
) WITHOUT ROWID;

-- What operators have asked for a lane.
CREATE TABLE tidings_lane_orders (
	subscription text NOT NULL,
	channel      text NOT NULL,
	lane_key     text NOT NULL,
	verb         integer NOT NULL,
	reason       text NOT NULL,
	PRIMARY KEY (subscription, channel, lane_key)
) WITHOUT ROWID;

-- The driver over this database: events in the order in which subscriptions read them. Each slot of each channel has an order of its own.
CREATE TABLE tidings_log (
	channel     text NOT NULL,
	slot        integer NOT NULL,
	position    integer NOT NULL,
	id          text NOT NULL,
	aggregateid text NOT NULL,
	type        text NOT NULL,
	payload     text NOT NULL,
	headers     text,
	created_at  integer NOT NULL,
	PRIMARY KEY (channel, slot, position)
);

CREATE TABLE tidings_log_slots (
	channel       text NOT NULL,
	slot          integer NOT NULL,
	next_position integer NOT NULL,
	PRIMARY KEY (channel, slot)
) WITHOUT ROWID;

-- How far each subscription has come.
CREATE TABLE tidings_positions (
	subscription text NOT NULL,
	channel      text NOT NULL,
	slot         integer NOT NULL,
	position     integer NOT NULL,
	finished     text NOT NULL,
	since        integer,
	PRIMARY KEY (subscription, channel, slot)
) WITHOUT ROWID;

-- What the releases of each subscription have handled.
CREATE TABLE tidings_declarations (
	subscription text NOT NULL,
	channel      text NOT NULL,
	type         text NOT NULL,
	PRIMARY KEY (subscription, channel, type)
) WITHOUT ROWID;
