// Package sqs is the driver over Amazon SQS, with SNS for fan-out.
//
// # Delivery, order, duplicates
//
// Delivery is at least once: a message for which Publish returned nil is on a
// queue, on several servers of AWS, for 14 days where this driver made the queue,
// and is handled or dead-lettered. Queues are FIFO or standard (Options.FIFO). On
// FIFO queues order is per aggregate: the message group is the aggregate id, and a
// group is blocked while one of its messages is in flight. What is published twice
// with one event id within five minutes is stored once. Standard queues promise no
// order and may deliver twice ([driver.Features.Ordered] is false).
//
// # Queues and topics
//
// A channel is a queue, "events-" and the channel with dashes for dots: whoever
// knows its URL can send to it. All subscriptions of a process on one queue get
// each of its messages, which is deleted when all have finished. They share its
// redelivery: what one of them gives back comes again, after a restart to all of
// them, so they need idempotent handlers or a shared claims store. Processes with
// the same queue share its messages, so all of them need the same subscriptions.
// Options.QueueURL sends event types to queues of your own.
//
// With Options.Topics a channel is an SNS topic, and each subscription has a queue
// of its own behind it, "events-CHANNEL-SUBSCRIPTION", with raw delivery: neither
// of the limits above is there. A channel with a queue of your own stays direct.
//
// # In hand
//
// Every message that was received and is not finished, queued or running, has its
// visibility extended every third of Options.VisibilityTimeout, so it is not
// delivered elsewhere while its process lives. SQS allows 12 hours in all from
// the receive; after that it comes again wherever it is. Long waits between
// attempts are the queue's: the event is given back until then, with everything
// behind it in its group.
//
// At the end a running poll is left to finish, because one that is cancelled takes
// its messages with it until their visibility ends; what it brings is given back.
// That takes at most Options.PollWait.
//
// # Dead letters
//
// The queue QUEUE-dead has the dead letters of a queue, with what went wrong as JSON
// in the attribute deadLetter. It is the target of the queue's own redrive, too:
// after 1 000 receives SQS moves a message there by itself, as a last resort. A
// message of a type that no release of a subscription handles is given back for
// Options.UnhandledGrace, since an instance with a newer version may know it.
//
// # Releases that differ
//
// What the releases of a subscription handle is kept in the tags of a queue without
// messages ([Driver.DeclarationsName]), 50 event types at most. A message of a type
// that only another release handles is given back, with everything behind it in its
// group, until an instance that handles it receives it.
//
// # Limits
//
// A message with attributes has at most 1 MiB (SNS: 256 KiB) and ten attributes;
// the text of a body is what XML 1.0 allows. Aggregate and event ids that SQS does
// not take as group or deduplication id are hashed.
package sqs
