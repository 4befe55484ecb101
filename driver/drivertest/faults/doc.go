// Package faults finds out what a driver loses, doubles and reorders when
// processes are killed and brokers fail. It is the second half of package
// drivertest: the conformance suite asks whether a driver keeps its contract while
// everything works, this one asks what is left of it while nothing does.
//
// # How it works
//
// A [World] is one driver with its broker and, where there is one, the database of
// the application. The suite starts publishers, relays and consumers as processes
// of their own: the test binary once more, whose TestMain calls [Main]. Each of
// them keeps a journal: a file with one line for each thing that happens, written
// before the process goes on, so that nothing of it is lost with the process. A
// [Trial] kills them (SIGKILL), stops them (SIGSTOP), cuts their connections and
// breaks their brokers. At its end the journals go into the [Ledger], a database
// of its own that no process under test knows, and the counts are queries there.
//
// # What is counted
//
//   - published: events for which Publish returned nil, or whose transaction was
//     committed.
//   - lost: of these, those that no subscription finished, as handled or as a dead
//     letter, when the patience of the trial was over. With an inbox also those
//     whose effect is not in the application's database.
//   - order broken: event n+1 of an aggregate was started for the first time before
//     event n of it was finished for the first time. Where n was never finished it
//     is lost, and counted there.
//   - overlaps: an attempt began while another process was at an event of the same
//     aggregate. A process that is dead is at nothing.
//   - duplicates: deliveries of events that had been handled before.
//   - bound: how many duplicates are allowed: what the processes that a fault hit
//     had in hand then (received and not settled, sent and not marked), for one that
//     was stopped also what it received and settled before it knew, and what
//     publishers and relays sent again because they had no answer. A queue tells nobody
//     when it takes a message back: there it is also what was in hand for longer
//     than a session.
//   - double effects: rows too many that handlers wrote in the transaction of the
//     inbox.
//   - phantoms: handled events whose transaction was not committed.
//   - dead: dead letters.
//
// # What it needs
//
// The standard library and the faces of the root. The ledger is a database/sql
// handle on SQLite; the test brings its driver, and everything of its broker.
package faults
