// Package outbox stores events in the publisher's own transaction and relays
// them to the driver, so that nothing is lost between a commit and the broker.
//
//	box, err := outbox.New(bus, store, nil)
//	…
//	tx, err := db.BeginTx(ctx, nil)
//	_, err = tx.ExecContext(ctx, "INSERT INTO users …")
//	err = identity.Through(box.In(tx)).Publish(ctx, identityevents.UserCreated.New(id, payload))
//	err = tx.Commit()
//
// # Delivery, order, duplicates
//
// An event is published if and only if its transaction commits, at least once:
// a relay that dies between the broker's word and its own mark sends the event
// again, with the same id, and dedup or the inbox finds that out.
//
// Rows of one transaction keep their order, and so do those of transactions that
// follow each other. Two transactions of one aggregate that are open at once have
// no order unless their writers wait for each other: by a row lock on the
// aggregate, an optimistic version, or [Box.Serialize].
//
// # How it works
//
// A row belongs to a slot, a hash of channel and aggregate id. The relays of all
// instances divide the slots by leases with epochs; whoever has a slot reads its
// committed rows in the order of their sequence, sends them, waits for the
// driver's word, and takes them out in a statement that checks the epoch. So no
// two sends of one aggregate are under way at once, and a relay that was paused
// takes nothing out that another has sent. No transaction is open while the
// broker is called. Rows of transactions that are still open are not seen and
// delay nobody; they are sent when they are committed, whatever was sent
// meanwhile.
//
// A row that the broker refuses holds its own aggregate back, with a growing
// delay, and nobody else. A broker that does not answer is asked again and again,
// at most every five seconds.
//
// On a driver over the same database (package driver/sqldb) there is nothing to
// relay: subscriptions read the outbox itself.
//
// # Rows of others
//
// The columns are a superset of those that Debezium's outbox event router reads,
// so a connector can take the relay's place; and a row that somebody else
// inserted with these columns, its payload bare, is wrapped by the relay.
package outbox
