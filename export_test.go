package tidings

import "github.com/tidings-go/tidings/driver"

// ConsumerOf returns the consumer of the first subscription, for tests that
// bring a driver of their own.
func ConsumerOf(b *Bus) driver.Consumer { return b.subscriptions[0].consumer }

// PayloadOf decodes a payload as the engine does for a handler.
func PayloadOf[P any](c Contract[P], raw []byte) (payload P, err error) {
	r, err := c.definition.decode(raw)
	if err != nil {
		return payload, err
	}
	return r.payloadValue().(P), nil
}

// InspectPayload is what Publish asks before it encodes a payload, and EncodePayload
// is how it does.
func InspectPayload(e DomainEvent) (size int, err error) { return e.record().inspect() }

// EncodePayload encodes a payload as Publish does.
func EncodePayload(e DomainEvent) ([]byte, error) { return e.record().marshal() }

// DigestOf tells payloads apart.
func DigestOf(e DomainEvent) uint64 { return e.record().digest() }
