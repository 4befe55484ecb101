// Package inbox handles events in one transaction with the record that they were
// handled, so that their effects happen once.
//
//	billing.Subscribe("create-default-profile", nil,
//		inbox.On(store, identityevents.UserCreated, func(ctx context.Context, tx *sql.Tx, e tidings.Event[identityevents.UserCreatedPayload]) error {
//			_, err := tx.ExecContext(ctx, "INSERT INTO profiles …", e.Payload().UserID)
//			return err
//		}))
//
// One commit holds the claim on the event (subscription and dedup key), the
// handler's effects, the events that it publishes through an outbox of the same
// transaction, and the check that this process still owns the event's source.
//
// # Delivery, order, duplicates
//
// Delivery and order are the driver's. Effects inside the transaction happen
// once for each event, however often it is delivered: after a crash, by two
// instances at once, by one that has lost the source and does not know yet.
// Effects outside of it (mail, calls of other services) do not: they may happen
// again. Keys of contracts that are [tidings.Once] are kept for ever, those of
// [tidings.Repeatable] for the redelivery horizon.
//
// On a driver with sources (partitions, shards) the epoch of the source is
// counted in the inbox's own store, so a paused process that wakes up late
// cannot commit. On one without (SQS, in memory) there is no epoch, and the claim
// alone prevents double effects; order is then the driver's only.
package inbox
