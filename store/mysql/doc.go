// Package mysql is the store over MySQL 8.0 or later and MariaDB 10.6 or later:
// outbox, inbox, claims, dead letters, parked events and leases in the
// application's own database. [New] takes a database/sql pool of
// github.com/go-sql-driver/mysql; transactions are *sql.Tx.
//
// # What is promised
//
// Everything is as durable as the database commits (innodb_flush_log_at_trx_commit
// = 1). Rows of the outbox are seen when their transaction has committed; a
// transaction that is open elsewhere holds nothing back but its own rows. Leases
// and claims use the clock of the server only. The store's own transactions run
// at READ COMMITTED, those of handlers at what the server has.
//
// A deadlock rolls a whole transaction back in MySQL, and a later COMMIT then
// succeeds with nothing in it. The inbox finds that out before it commits, also
// where a handler has swallowed the error.
//
// # Waking
//
// Nothing announces a commit: relays poll.
//
// # Tables
//
// [Store.Migrate] makes and changes the tables under a lock; MySQL commits each
// statement of it by itself. [Store.Schema] prints the statements. docs/stores.md
// of the repository describes them.
package mysql
