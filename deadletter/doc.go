// Package deadletter is for whoever looks after events that a subscription gave up
// on: it lists them, shows one with everything that is known of it, tries some of
// them again and gives others up.
//
//	letters, err := deadletter.New(store, &deadletter.Options{By: "ada"})
//	page, err := letters.List(ctx, deadletter.Filter{Subscription: "billing.ledger"}, "", 50)
//	chosen, err := letters.Select(ctx, deadletter.Filter{Fingerprint: page.Letters[0].Fingerprint}, 10_000)
//	fmt.Println(chosen.Count(), "letters, such as", chosen.Sample(3))
//	result, err := chosen.Retry(ctx, "fixed in 1.2", nil)
//
// The store is a [driver.DeadLetterStore]: those of store/postgres, store/mysql,
// store/sqlite, store/redis and store/memory are. Where dead letters go to a topic
// or a queue of the broker instead, a [Collector] brings them into a store.
//
// # Delivery, order, duplicates
//
// A retry is a mark in the store. The subscription's own engine finds it, within
// seconds where an instance runs, and handles the event in its lane: behind what the
// lane has, never beside another event of the aggregate, through the same handler,
// dedup and retries. It is later than the events that went on without it, which is
// what a dead letter means. The letter is resolved after its handler has succeeded;
// when it fails again it is the same letter, open again. An instance that dies in
// between leaves the mark, and the event is handled again as after any crash: dedup
// and the inbox see that.
//
// What was selected is fixed by id and by how often each letter had died: a letter
// that came later, or died again since, is not touched, and is reported as such.
//
// Nothing expires. Letters that are resolved or discarded stay with their history
// until [Letters.Prune] is called.
package deadletter
