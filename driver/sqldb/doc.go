// Package sqldb is the driver over the application's own database: no broker at
// all. Its log is the outbox of a store, so what a module publishes inside a
// transaction and what the bus publishes lie in one place and in one order.
// store/postgres and store/sqlite have what it needs ([outbox.Log]).
//
// # Delivery, order, duplicates
//
// Delivery is at least once: an event for which Publish returned nil is
// committed, as durably as the database commits, and is handled or
// dead-lettered. Order is per aggregate, in the order of commits when the writers
// of an aggregate are serialised (outbox.Box.Serialize, a row lock, an optimistic
// version); events of one Publish keep their order in any case. After a crash or
// a change of owner only what was not finished is delivered again.
//
// # How it works
//
// A row of the outbox has no position until it is committed and visible. Whoever
// locks a slot of a channel (a hash of channel and aggregate id) moves the visible
// rows of that slot into the log and numbers them, in one transaction. So positions
// have no gaps that could be filled later, and an open transaction delays its own
// rows only.
//
// The slots of each channel of a subscription are divided among those of its
// instances that have the channel, by leases with epochs. A position is stored in
// one statement that checks the epoch, with the finished places beyond it.
//
// # Releases that differ
//
// A subscription has positions on each of its channels, and every slot of a channel
// is a source of its own. What a release does not have, it does not pass: while one
// with fewer channels runs, the others stay where they are, and the log keeps their
// rows. A channel that is new to a subscription begins where StartAt says. Which
// types its releases handle is recorded beside the positions
// ([driver.Declarations]); forgetting the last type of a channel deletes the
// position there.
//
// Rows that have been passed by every subscription with a position on their channel
// are kept for Options.Keep, which is the history that a new subscription can begin
// with.
package sqldb
