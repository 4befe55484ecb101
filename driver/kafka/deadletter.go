package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings/driver"
)

const (
	maxDeadError = 8 << 10
	maxDeadStack = 16 << 10
	// deadLetterRoom is how much larger than an event its dead letter may be.
	deadLetterRoom = 64 << 10
)

// PutDeadLetter implements [driver.DeadLetters]: it writes the raw body with the
// original headers, and what went wrong in further ones, to
// [Driver.DeadLetterName]. Where the topic takes no such message, stack and
// most of the error are left out.
func (d *Driver) PutDeadLetter(ctx context.Context, letter driver.DeadLetter) error {
	if !d.enter() {
		return errClosed
	}
	defer d.publishing.Done()
	topic := d.DeadLetterName(letter.Channel, letter.Subscription)
	if _, err := d.prepare(ctx, topic, deadTopic); err != nil {
		return fmt.Errorf("kafka: subscription %s, dead letter %s: %w", letter.Subscription, letter.ID, err)
	}
	err := d.client.ProduceSync(ctx, deadRecord(topic, &letter, maxDeadError, maxDeadStack)).FirstErr()
	if errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge) {
		d.oversize.Lock()
		err = d.client.ProduceSync(ctx, deadRecord(topic, &letter, 256, 0)).FirstErr()
		d.oversize.Unlock()
		if errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge) {
			return fmt.Errorf("kafka: subscription %s: dead letter %s of %d bytes does not fit topic %s: raise its max.message.bytes to that of the event's topic and 64 KiB: %w: %w",
				letter.Subscription, letter.ID, len(letter.Body), topic, driver.ErrTooLarge, err)
		}
	}
	if err != nil {
		return d.explain(fmt.Sprintf("subscription %s: dead letter %s to topic %s", letter.Subscription, letter.ID, topic), err)
	}
	return nil
}

func deadRecord(topic string, letter *driver.DeadLetter, errorBytes, stackBytes int) *kgo.Record {
	r := &kgo.Record{Topic: topic, Key: []byte(letter.AggregateID), Value: letter.Body}
	for _, h := range driver.DeadLetterHeaders(letter, errorBytes, stackBytes) {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Name, Value: []byte(h.Value)})
	}
	return r
}
