package tidings

import "github.com/tidings-go/tidings/driver"

// ConsumerOf returns the consumer of the first subscription, for tests that
// bring a driver of their own.
func ConsumerOf(b *Bus) driver.Consumer { return b.subscriptions[0].consumer }
