// Package kafka is the driver for Apache Kafka 3 and later, on franz-go.
//
// A channel is a topic, "events." and the channel with dashes for dots; a
// subscription is a consumer group of its name; the event's aggregate id is the
// record's key. [Options.Namespace] prefixes all of them.
//
// # Delivery
//
// At least once. Publish returns nil when every in-sync replica has every
// message (acks=all, idempotent writing). A message is delivered until it is
// settled as finished and the commit that says so was acknowledged.
//
// That survives the loss of one broker where topics have replication factor 3
// and min.insync.replicas 2, the brokers' unclean.leader.election.enable is
// false (its default), and the same holds for __consumer_offsets. On a broker
// that is not on the loopback interface Subscribe compares the first two of its
// topics and reports what is weaker.
//
// A subscription that the group knows no position of says where it starts. The
// position is stored before the subscription counts as joined, so that a crash
// before the first settlement loses nothing. A partition that is added to a
// topic later is read from its beginning.
//
// # Order
//
// Per partition, and so per key as long as the number of partitions stays: with
// another number, a key may move to another partition and its newer messages
// overtake older ones. Messages of one channel and key within one Publish are
// sent one at a time, each after the confirmation of the one before it; a
// failure fails the rest of them.
//
// # Duplicates
//
// A commit carries the oldest unfinished offset and, in its metadata, the
// finished ones beyond it: a restart or a change of owner in good order delivers
// unfinished messages only. After a crash, those again whose commit was not
// acknowledged. When a group is moved with Kafka's own tools the metadata is
// void and the messages behind the new position come again. A publisher whose
// result was unknown and who publishes again stores the message twice.
//
// # Limits
//
// Per partition, at most 20 000 offsets from the oldest unfinished message on,
// and 64 MiB of unfinished ones, are in hand ([Options.MaxEvents],
// [Options.MaxBytes]): one that stays unfinished pins the window, and when it is
// full the partition pauses with a report, after a moment. What was fetched
// beyond it, at most 4 MiB and one fetch, waits in memory and is not dropped.
//
// A message is at most 1 000 000 bytes ([Options.MaxMessageBytes]); this is
// checked before anything is sent, as is the topic's max.message.bytes where the
// broker lets it be read.
//
// # Headers
//
// Headers are record headers; Publish and deliveries keep their order. A dead
// letter is the raw record value with the original headers and those of the
// constants beginning with driver.HeaderDead, in the topic of
// [Driver.DeadLetterName]. Record keys are written and never relied on.
//
// # What it cannot do
//
// It cannot delay: a released message waits in this process and comes again from
// there while the partition is owned. It does not count deliveries. It never
// resets a position: one that is not in the log any more stops the subscription
// with an error. It skips records of aborted transactions and takes part in
// none itself. Topics are created on loopback brokers only, unless
// [Options.Provision] says otherwise, and existing ones are never changed. A
// topic that is deleted while it is subscribed to is not waited for: restart the
// subscription when it exists again.
//
// # Local testing
//
// Any single broker on localhost will do; topics appear by themselves. Tests of
// this package run against kfake, a broker inside the process, and with
// KAFKA_BROKERS set against a real one too.
package kafka
