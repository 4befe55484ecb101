// Command tidings looks after the events of an application: it relays its outbox,
// shows and mends what is parked or dead, and tells what is wrong with the broker.
//
// It reads the environment that the application reads (see package setup), so it
// finds the same broker and the same database, and it needs no Go types of the
// application. docs/cli.md is the page for people.
//
// # Delivery, order, duplicates
//
// Verbs that only look change nothing. `tidings relay` promises what package
// outbox does: at least once, in order within an aggregate. Orders for parked
// lanes and dead letters are stored, and carried out by the instances of the
// application, through the lanes and handlers of the subscription.
//
// # Structure
//
// Each verb is one file with a function that returns its command, and one line in
// the list of root.go. What verbs share is the session: configuration, stores,
// output, and what is closed at the end.
package main
