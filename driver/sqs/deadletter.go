package sqs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/tidings-go/tidings/driver"
)

// AttributeDeadLetter is the attribute of a dead letter that says what went wrong:
// a JSON object of the names that begin with driver.HeaderDead…, and of the
// event's own attributes where there is no room for them beside it.
const AttributeDeadLetter = "deadLetter"

// PutDeadLetter implements [driver.DeadLetters]: the raw body goes to the dead
// letter queue of the event's queue. Where it is too large for that with all of
// its stack and error, less of them is written.
func (d *Driver) PutDeadLetter(ctx context.Context, letter driver.DeadLetter) error {
	if !d.calls.Enter() {
		return errClosed
	}
	defer d.calls.Leave()
	fail := func(err error) error {
		return fmt.Errorf("sqs: subscription %s: dead letter %s: %w", letter.Subscription, letter.ID, err)
	}
	url, err := d.deadURL(ctx, &letter)
	if err != nil {
		return fail(err)
	}
	fifo := isFIFO(nameOf(url))
	var in *outgoing
	for _, room := range []struct{ failure, stack, attributes int }{{8 << 10, 16 << 10, maxAttributes - 1}, {1 << 10, 0, maxAttributes - 1}, {128, 0, 0}} {
		if in, err = deadMessage(&letter, room.failure, room.stack, room.attributes, fifo); err != nil {
			return fail(err)
		}
		if in.size <= queueLimit {
			break
		}
	}
	if in.size > queueLimit {
		return fail(fmt.Errorf("%w: %d bytes, SQS takes %d", driver.ErrTooLarge, in.size, queueLimit))
	}
	send := &sqs.SendMessageInput{QueueUrl: &url, MessageBody: &in.body, MessageAttributes: attributeValues(in.attributes)}
	if fifo {
		send.MessageGroupId, send.MessageDeduplicationId = &in.group, &in.duplicate
	}
	if _, err := d.options.Client.SendMessage(ctx, send); err != nil {
		return fail(err)
	}
	return nil
}

// deadMessage makes a dead letter with so many of the event's own attributes; the
// others are in its JSON.
func deadMessage(letter *driver.DeadLetter, failureBytes, stackBytes, attributes int, fifo bool) (*outgoing, error) {
	said := make(map[string]string)
	for _, h := range driver.DeadLetterHeaders(&driver.DeadLetter{
		Reason: letter.Reason, Err: letter.Err, Stack: letter.Stack, Attempts: letter.Attempts, Subscription: letter.Subscription, Position: letter.Position,
		Channel: letter.Channel, ID: letter.ID, FailedAt: letter.FailedAt,
	}, failureBytes, stackBytes) {
		said[h.Name] = h.Value
	}
	var kept driver.Headers
	for _, h := range letter.Headers {
		if len(kept) < attributes && h.Name != AttributeDeadLetter {
			kept = append(kept, h)
		} else if attributes > 0 {
			said[h.Name] = h.Value
		}
	}
	text, err := json.Marshal(said)
	if err != nil {
		return nil, err
	}
	m := driver.Message{
		Key: letter.AggregateID, ID: letter.Subscription + "\n" + letter.ID + "\n" + letter.Position, Body: letter.Body,
		Headers: append(kept, driver.Header{Name: AttributeDeadLetter, Value: string(text)}),
	}
	return prepare(&m, fifo)
}

// deadURL is the dead letter queue of the queue that an event came from.
func (d *Driver) deadURL(ctx context.Context, letter *driver.DeadLetter) (string, error) {
	name, _, _ := strings.Cut(letter.Position, "/")
	d.mu.Lock()
	url := d.deadOf[name]
	d.mu.Unlock()
	if url != "" {
		return url, nil
	}
	where, err := d.resolve(ctx, letter.Type)
	if err == nil && where == nil {
		queue := d.BrokerName(letter.Channel)
		if d.options.Topics != nil {
			queue = d.QueueName(letter.Channel, letter.Subscription)
		}
		where, err = d.queue(ctx, queue)
	}
	if err == nil {
		err = d.dead(ctx, where)
	}
	if err != nil {
		return "", err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.deadOf[where.name], nil
}

// ParseDeadLetter reads a message of a dead letter queue. One that SQS moved there
// by itself has no attribute [AttributeDeadLetter]; its reason is "redriven by broker".
func ParseDeadLetter(attributes driver.Headers, body []byte) (driver.DeadLetter, error) {
	var headers driver.Headers
	said := make(map[string]string)
	found := false
	for _, h := range attributes {
		if h.Name != AttributeDeadLetter {
			headers = append(headers, h)
			continue
		}
		found = true
		if err := json.Unmarshal([]byte(h.Value), &said); err != nil {
			return driver.DeadLetter{}, errors.Join(errors.New("sqs: attribute "+AttributeDeadLetter), err)
		}
	}
	for name, value := range said {
		headers = append(headers, driver.Header{Name: name, Value: value})
	}
	letter, err := driver.ParseDeadLetter(headers, body)
	if !found {
		letter.Reason, letter.ID = "redriven by broker", headers.Get(driver.HeaderEventID)
	}
	return letter, err
}
