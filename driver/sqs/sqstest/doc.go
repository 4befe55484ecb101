// Package sqstest is a small SQS server inside the process, for tests: of this
// driver and of yours.
//
// It speaks the AWS JSON protocol over HTTP on a loopback port and does what a test
// can depend on: standard and FIFO queues, long polls, visibility, batches with
// partial failures, message attributes, deduplication for five minutes, redrive to
// a dead letter queue, tags, and the limits of size, batch and attributes. A group of a
// FIFO queue is blocked while one of its messages is in flight. A receipt handle
// that is not the newest of its message is refused.
//
// What it does not do: signatures and permissions, SNS, message timers, move
// tasks, throttling and encryption; and it never delivers a standard message
// out of order or twice by itself, as AWS may. The checks of this package run
// against it and against two other servers, so that it stays as they are.
package sqstest
