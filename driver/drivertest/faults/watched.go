package faults

import (
	"context"
	"sync"

	"github.com/tidings-go/tidings/driver"
)

// watchedDriver writes into the journal what passes between a driver and the
// engine, event by event. It has what an embedded interface would hide.
type watchedDriver struct {
	driver.Driver
	process *process
}

var (
	_ driver.DeadLetters = (*watchedDriver)(nil)
	_ driver.Checker     = (*watchedDriver)(nil)
	_ driver.Namer       = (*watchedDriver)(nil)
)

// PutDeadLetter implements [driver.DeadLetters].
func (d *watchedDriver) PutDeadLetter(ctx context.Context, letter driver.DeadLetter) error {
	if d.process.deadLettersFail.Load() {
		return errSwitched
	}
	return d.Driver.(driver.DeadLetters).PutDeadLetter(ctx, letter)
}

// Check implements [driver.Checker].
func (d *watchedDriver) Check(ctx context.Context) error {
	if checker, ok := d.Driver.(driver.Checker); ok {
		return checker.Check(ctx)
	}
	return nil
}

// BrokerName implements [driver.Namer].
func (d *watchedDriver) BrokerName(channel string) string {
	if namer, ok := d.Driver.(driver.Namer); ok {
		return namer.BrokerName(channel)
	}
	return channel
}

// Subscribe implements [driver.Driver].
func (d *watchedDriver) Subscribe(ctx context.Context, s driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	c := &watchedConsumer{process: d.process, ids: make(map[driver.Ref]string)}
	inner, err := d.Driver.Subscribe(ctx, s, &watchedSink{sink, c})
	c.Consumer = inner
	if err != nil {
		return nil, err
	}
	return c, nil
}

type watchedConsumer struct {
	driver.Consumer
	process *process

	mu  sync.Mutex
	ids map[driver.Ref]string // of what is delivered and not settled
}

// Settle implements [driver.Consumer].
func (c *watchedConsumer) Settle(ctx context.Context, settlements []driver.Settlement) error {
	for _, s := range settlements {
		if s.Outcome == driver.Finished {
			c.process.trap.At(AfterCommitBeforeSettle)
			break
		}
	}
	if c.process.settleFails.Load() {
		return errSwitched
	}
	err := c.Consumer.Settle(ctx, settlements)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var settled []entry
	for _, s := range settlements {
		if id, known := c.ids[s.Ref]; known && s.Outcome == driver.Finished {
			delete(c.ids, s.Ref)
			settled = append(settled, entry{word: wordSettled, id: id})
		}
	}
	if len(settled) > 0 {
		c.process.journal.write(settled...)
	}
	return nil
}

type watchedSink struct {
	driver.Sink
	consumer *watchedConsumer
}

// Deliver implements [driver.Sink].
func (s *watchedSink) Deliver(ctx context.Context, deliveries []driver.Delivery) {
	received := make([]entry, len(deliveries))
	s.consumer.mu.Lock()
	for n, d := range deliveries {
		id := s.consumer.process.mark() + d.Headers.Get(driver.HeaderEventID)
		s.consumer.ids[d.Ref] = id
		received[n] = entry{word: wordReceived, id: id, reason: d.Source.Name}
	}
	s.consumer.mu.Unlock()
	s.consumer.process.journal.write(received...)
	s.Sink.Deliver(ctx, deliveries)
}

// Report implements [driver.Sink]: what was in hand of a source that is lost may
// come again elsewhere.
func (s *watchedSink) Report(r driver.Report) {
	if r.Kind == driver.ReportLost {
		s.consumer.process.journal.write(entry{word: wordFault, id: s.consumer.process.Process, reason: r.Source.Name})
	}
	s.Sink.Report(r)
}
