// Package streams is the driver over Redis or Valkey Streams.
//
// # Delivery, order, duplicates
//
// Delivery is at least once: an event for which Publish returned nil is in a
// stream, as durably as Redis writes it, and is handled or dead-lettered. Order is
// per aggregate. After a crash or a change of owner what was not settled is
// delivered again, in order, and nothing else.
//
// "As durably as Redis writes it" is the weak place: with appendonly no, or
// appendfsync everysec, a restart of Redis loses what it had confirmed; a
// failover loses what the replica had not got. The promise holds with
// appendonly yes and appendfsync always, on one server. Start-up warns when the
// live settings are weaker, and where an eviction policy may delete streams.
//
// # How it works
//
// A channel is a number of streams, events:CHANNEL:N, its shards; the shard of an
// event is the CRC-32 of its aggregate id. The number is recorded in Redis when it
// is first used and compared at every start.
//
// One instance at a time owns a shard of a subscription (a consumer group), by a
// lease with an epoch: the hash {STREAM}:GROUP:owner. Reading and settling are
// scripts that refuse an old epoch, so an instance that was paused cannot take
// entries from the one that followed it, nor settle for it. The owner reads what
// its predecessor left unfinished first, then what is new. The instances that are
// alive are in the sorted set subscriptions:GROUP:members, each with the channels
// that it knows; the shards of a channel are divided evenly among those, and one
// without a shard stands by.
//
// What the releases of a subscription handle is in the set
// subscriptions:GROUP:types. A channel that a release leaves keeps its group and its
// position until the last of its types is forgotten.
//
// An entry has the metadata as fields, the event in the field body, and the
// aggregate id in the field aggregateId. What every known group has finished is
// trimmed after Options.Retention. A group is known when a subscription declared
// it in the set events:CHANNEL:groups.
//
// It works on Redis Cluster: the keys of one command share a slot.
package streams
