// Package postgres is the store over PostgreSQL, 12 or later: outbox, inbox,
// claims, dead letters, parked events and leases in the application's own
// database. [New] takes a pgx pool, and transactions are pgx.Tx; [NewSQL] takes a
// database/sql pool, and transactions are *sql.Tx. It is one implementation.
//
// # What is promised
//
// Everything is as durable as the database commits (synchronous_commit = on,
// fsync = on). Rows of the outbox are seen when their transaction has committed,
// never before and never late: a transaction that is open elsewhere holds
// nothing back but its own rows. Leases and claims use the clock of the server
// only. The isolation level that is assumed is READ COMMITTED; a stricter one
// works and makes more transactions fail that are then tried again.
//
// # Waking
//
// A transaction that adds events to the outbox notifies listeners when it
// commits (NOTIFY, one for each transaction). Whoever waits in Wake listens on a
// connection of its own, outside of the pool, and connects again when it breaks.
// PostgreSQL commits notifying transactions one after another; where thousands
// of them commit in a second, Options.NoNotify leaves that out, and relays poll.
// A connection pooler in transaction mode passes no notifications: relays poll
// there too.
//
// # Tables
//
// [Store.Migrate] makes and changes the tables, under a lock, so that all
// instances may call it when they start; [Store.Schema] prints the statements for
// teams with a tool of their own. docs/stores.md of the repository describes the
// tables, the permissions, and how old and new instances work on one schema.
package postgres
