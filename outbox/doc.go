// Package outbox stores events in the publisher's own transaction and relays
// them to the driver, so that nothing is lost between a commit and the broker.
package outbox
