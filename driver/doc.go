// Package driver is the contract between Tidings and one broker. It needs the
// standard library only. Application code never calls it: an application uses
// package tidings and passes a driver value to [tidings.New]; whoever writes an
// adapter for a broker implements [Driver] and proves it with package
// driver/drivertest.
//
//	application ──► tidings (engine: lanes, retry, dedup, dead letters)
//	                   │  Publish, Subscribe, Settle      ▲ Deliver, Revoke, Lose
//	                   ▼                                  │
//	                 driver.Driver ─────────────────► driver.Sink
//
// # Division of labour
//
// A driver moves messages: it publishes batches, fetches batches and settles
// batches. It never retries a handler, never decodes a body, never drops a
// message and never decides that one is poison: the engine does each of these
// once, for every driver.
//
// # Delivery
//
// A driver with [Features.Durable] delivers a message until it has been settled
// as [Finished] (at least once). Others say in their package comment what is
// lost, and when.
//
// # Order
//
// A driver with [Features.Ordered] hands the messages of one channel and key to
// [Sink.Deliver] in the order in which they were stored. After a change of
// owner a suffix may come again, in order; nothing is skipped.
//
// # Duplicates
//
// The same stored message may be delivered again until it is settled, and after
// a crash once more although it was. The engine removes what it can recognise.
//
// # Growth
//
// An ability that not every broker has is a field of [Features] and, where it
// needs a method, an optional interface of its own: [Direct], [Namer],
// [DeadLetters]. Callers look for them with a type assertion.
//
// [tidings.New]: https://pkg.go.dev/github.com/tidings-go/tidings#New
package driver
