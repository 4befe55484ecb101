// Package sqlite is the store over SQLite 3.38 or later (the driver is
// modernc.org/sqlite, without cgo): outbox, inbox, claims, dead letters, parked
// events, leases and the log of driver sqlite in the application's own file.
// [Open] opens a file with the settings that are right for it; [New] takes a pool
// that is open already. Transactions are *sql.Tx.
//
// # What is promised
//
// Everything is as durable as the file's settings say: with [Open] a commit is on
// disk when it returns (journal_mode WAL, synchronous FULL). SQLite has one
// writer at a time, so the order of rows is the order of commits for every
// aggregate, and a transaction that writes holds all other writers back until it
// ends: keep them short. Leases and claims use the clock of the machine; the file
// must not lie on a network file system.
//
// # Waking
//
// Nothing announces a commit of another process. The store looks every few
// milliseconds whether the file has changed (PRAGMA data_version, which reads
// shared memory only), on one connection of the pool.
//
// # Tables
//
// [Store.Migrate] makes and changes the tables; [Store.Schema] prints the
// statements. docs/stores.md of the repository describes them.
package sqlite
