// Package redis is the driver over Redis or Valkey pub/sub. The driver over Redis
// Streams, which keeps events, is in package streams.
//
// # Delivery, order, duplicates
//
// Delivery is at most once. A channel of Redis is the event type, a message of it
// the body alone: what PUBLISH and SUBSCRIBE of any other client send and get.
// Redis keeps nothing: an event goes to the processes that are connected at that
// moment, and to nobody else. What is published while a process is disconnected,
// restarts or is too slow is lost to it, and Publish does not say so, because Redis
// does not know. No order is promised and no duplicate is made.
//
// Every process that runs a subscription gets every event. So a subscription says
// EachInstance, or all instances share a claims store, where the first one that
// claims an event handles it. Events of Redis pub/sub are signals; for work that
// must be done use another driver.
//
// # Outages
//
// A connection that breaks is made again, sooner at first and then every five
// seconds, for as long as it takes, and subscribes again by itself. The gap is
// reported when it begins ([driver.ReportOutage]), and with its length when it
// ends ([driver.ReportRecovered]).
//
// # Bounds
//
// A subscription holds at most Options.MaxEvents and MaxBytes of what is not
// finished. Above that nothing more is read from the connection; Redis buffers for
// a while and then closes it (client-output-buffer-limit pubsub), which is a gap
// as above.
//
// # Metadata
//
// There are no headers: the event's own fields are in its JSON, the trace context
// too. [driver.Message.Type] of a delivery is the name of the Redis channel, so a
// bare payload has a type.
package redis
