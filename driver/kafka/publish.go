package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings/driver"
)

// Publish implements [driver.Driver]. A nil error means that every in-sync
// replica has every message. Messages with the same channel and key go one
// after the other, each sent when the one before it is confirmed; all others go
// together. A message over the limit is refused before anything is sent.
//
// Key, headers and body are copied: they may be changed when Publish returns,
// also when it returns early because ctx ended.
func (d *Driver) Publish(ctx context.Context, messages []driver.Message) error {
	if len(messages) == 0 {
		return nil
	}
	if !d.enter() {
		return errClosed
	}
	defer d.publishing.Done()
	if ctx.Err() != nil {
		return fmt.Errorf("kafka: nothing was sent: %w", context.Cause(ctx))
	}
	c := &call{driver: d, ctx: ctx, wake: make(chan struct{}, 1), results: make([]driver.PublishResult, len(messages))}
	if err := c.prepare(messages); err != nil {
		return err
	}
	return c.run()
}

// call is one Publish under way.
type call struct {
	driver  *Driver
	ctx     context.Context
	records []kgo.Record
	steps   []step
	wake    chan struct{}

	mu      sync.Mutex
	results []driver.PublishResult
	decided int
	failed  bool
	over    bool    // Publish has returned: results are no longer ours
	ready   []int32 // to be sent next
}

// step is one message of a call.
type step struct {
	next  int32 // the following message of the same channel and key, or -1
	first bool  // it begins its run
	sent  bool  // it was handed to the client; guarded by call.mu
}

type runKey struct{ channel, key string }

// prepare turns messages into records, finds the runs and refuses what is too
// large. The error of a message whose topic is missing is its own; the others
// are sent.
func (c *call) prepare(messages []driver.Message) error {
	size := 0
	for n := range messages {
		m := &messages[n]
		size += len(m.Key) + len(m.Body)
		for h := range m.Headers {
			size += len(m.Headers[h].Value)
		}
	}
	arena := make([]byte, 0, size)
	put := func(text string) []byte {
		from := len(arena)
		arena = append(arena, text...)
		return arena[from:len(arena):len(arena)]
	}
	c.records = make([]kgo.Record, len(messages))
	c.steps = make([]step, len(messages))
	destinations := make([]destination, 0, 1)
	var last map[runKey]int32
	if len(messages) > 1 {
		last = make(map[runKey]int32, len(messages))
	}
	var tooLarge error
	for n := range messages {
		m, r := &messages[n], &c.records[n]
		at := slices.IndexFunc(destinations, func(d destination) bool { return d.channel == m.Channel })
		if at < 0 {
			at = len(destinations)
			topic := c.driver.BrokerName(m.Channel)
			limit, err := c.driver.prepare(c.ctx, topic, eventTopic)
			destinations = append(destinations, destination{m.Channel, topic, limit, err})
		}
		where := &destinations[at]
		r.Topic = where.topic
		r.Key = put(m.Key)
		if len(m.Headers) > 0 {
			r.Headers = make([]kgo.RecordHeader, len(m.Headers))
			for h, header := range m.Headers {
				r.Headers[h] = kgo.RecordHeader{Key: header.Name, Value: put(header.Value)}
			}
		}
		from := len(arena)
		arena = append(arena, m.Body...)
		r.Value = arena[from:len(arena):len(arena)]

		if err := c.driver.fits(r, where.limit); err != nil {
			c.results[n].Err = fmt.Errorf("kafka: message %s of topic %s: %w", m.ID, r.Topic, err)
			tooLarge = c.results[n].Err
		}
		c.steps[n] = step{next: -1, first: true}
		if last != nil {
			key := runKey{m.Channel, m.Key}
			if before, ok := last[key]; ok {
				c.steps[before].next = int32(n)
				c.steps[n].first = false
			}
			last[key] = int32(n)
		}
	}
	if tooLarge != nil {
		for n := range c.results {
			if c.results[n].Err == nil {
				c.results[n].Err = fmt.Errorf("kafka: not sent because of another message of the same call: %w", errOther)
			}
		}
		return &driver.PublishError{Results: c.results}
	}
	for n := range messages {
		at := slices.IndexFunc(destinations, func(d destination) bool { return d.channel == messages[n].Channel })
		if err := destinations[at].err; err != nil {
			c.results[n].Err = err
			c.decided++
			c.failed = true
			c.steps[n].first = false
		}
	}
	return nil
}

// destination is the topic of a channel, its limit, or why it cannot be used.
type destination struct {
	channel, topic string
	limit          int
	err            error
}

var errOther = errors.New("the call was refused as a whole")

// fits compares a record with the driver's limit and with its topic's.
func (d *Driver) fits(r *kgo.Record, topicLimit int) error {
	size := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		size += len(h.Key) + len(h.Value)
	}
	if size > d.options.MaxMessageBytes {
		return fmt.Errorf("%w: %d bytes of key, headers and body, Options.MaxMessageBytes is %d", driver.ErrTooLarge, size, d.options.MaxMessageBytes)
	}
	stored := storedSize(r)
	if topicLimit > 0 && stored > topicLimit {
		return fmt.Errorf("%w: %d bytes as stored, the topic's max.message.bytes is %d", driver.ErrTooLarge, stored, topicLimit)
	}
	if limit := d.options.MaxMessageBytes + batchRoom; stored > limit {
		return fmt.Errorf("%w: %d bytes as stored with %d headers, the client's batch is %d", driver.ErrTooLarge, stored, len(r.Headers), limit)
	}
	return nil
}

// storedSize bounds what a record needs as the only one of its batch, before
// compression.
func storedSize(r *kgo.Record) int {
	const batch, record, number = 61, 32, 5
	size := batch + record + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		size += 2*number + len(h.Key) + len(h.Value)
	}
	return size
}

// run sends and waits for the end of the call or of its context.
func (c *call) run() error {
	for n := range c.records {
		if c.steps[n].first {
			c.produce(int32(n))
		}
	}
	var sending []int32
	for {
		c.mu.Lock()
		if c.decided == len(c.records) {
			defer c.mu.Unlock()
			if !c.failed {
				return nil
			}
			return &driver.PublishError{Results: c.results}
		}
		sending, c.ready = append(sending[:0], c.ready...), c.ready[:0]
		c.mu.Unlock()
		if len(sending) > 0 {
			for _, n := range sending {
				c.produce(n)
			}
			continue
		}
		select {
		case <-c.wake:
		case <-c.ctx.Done():
			return c.abandon()
		}
	}
}

func (c *call) produce(n int32) {
	c.mu.Lock()
	c.steps[n].sent = true
	c.mu.Unlock()
	c.driver.client.Produce(c.ctx, &c.records[n], func(_ *kgo.Record, err error) { c.settled(n, err) })
}

// settled takes the outcome of one message. The client calls it in one
// goroutine, so it never sends by itself: that could wait for room.
func (c *call) settled(n int32, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	switch {
	case err == nil:
		c.results[n].State = driver.Stored
		c.decided++
		if next := c.steps[n].next; next >= 0 {
			c.ready = append(c.ready, next)
		}
	case ended(err) && c.ctx.Err() == nil:
		// Another call's context ended while its message was in the same
		// batch. The client fails a batch for that only when it was not sent.
		c.ready = append(c.ready, n)
	default:
		c.failed = true
		c.results[n] = c.driver.judge(c.records[n].Topic, err)
		c.decided++
		for tail := c.steps[n].next; tail >= 0; tail = c.steps[tail].next {
			c.results[tail].Err = fmt.Errorf("kafka: topic %s: not sent because an earlier message of its key was not stored: %w", c.records[tail].Topic, err)
			c.decided++
		}
	}
	if c.decided == len(c.records) || len(c.ready) > 0 {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// abandon returns what is known when the context ended. What was handed to the
// client and not confirmed may be stored, now or later.
func (c *call) abandon() error {
	cause := context.Cause(c.ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.decided == len(c.records) && !c.failed {
		return nil // the last confirmation and the end came together
	}
	waiting := make([]bool, len(c.records))
	for _, n := range c.ready {
		waiting[n] = true
	}
	for n := range c.results {
		r := &c.results[n]
		if r.State == driver.Stored || r.Err != nil {
			continue
		}
		if c.steps[n].sent && !waiting[n] {
			r.State = driver.Unknown
			r.Err = fmt.Errorf("kafka: topic %s: sent and not confirmed: %w", c.records[n].Topic, cause)
		} else {
			r.Err = fmt.Errorf("kafka: topic %s: not sent: %w", c.records[n].Topic, cause)
		}
	}
	return &driver.PublishError{Results: c.results}
}

func ended(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// judge says what an error of the client means for one message.
func (d *Driver) judge(topic string, err error) driver.PublishResult {
	result := driver.PublishResult{State: driver.Unknown}
	broker, answered := errors.AsType[*kerr.Error](err)
	switch {
	case ended(err), errors.Is(err, kgo.ErrMaxBuffered):
		// The client gives a message up for these only when it was not sent.
		result.State = driver.NotStored
	case errors.Is(err, kerr.MessageTooLarge), errors.Is(err, kerr.RecordListTooLarge):
		result.State = driver.NotStored
		result.Err = fmt.Errorf("kafka: topic %s: %w: the broker's max.message.bytes is lower than it said: %w", topic, driver.ErrTooLarge, err)
		return result
	case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID):
		result.State = driver.NotStored
		d.topics.forget(topic)
		result.Err = d.missing(topic)
		return result
	case errors.Is(err, kgo.ErrClientClosed):
		result.Err = fmt.Errorf("kafka: topic %s: not confirmed before the driver was closed: %w", topic, driver.ErrClosed)
		return result
	case answered && !mayBeStored(broker):
		result.State = driver.NotStored
	}
	result.Err = d.explain("publishing to topic "+topic, err)
	return result
}

// mayBeStored reports whether a broker that answers so may have kept the
// message all the same.
func mayBeStored(err *kerr.Error) bool {
	switch err {
	case kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend, kerr.UnknownServerError, kerr.NetworkException,
		kerr.OutOfOrderSequenceNumber, kerr.DuplicateSequenceNumber, kerr.UnknownProducerID, kerr.InvalidProducerEpoch, kerr.KafkaStorageError:
		return true
	}
	return false
}

// forget makes the next publish look the topic up again.
func (t *topics) forget(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.known, name)
}
