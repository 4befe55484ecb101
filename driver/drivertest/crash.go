package drivertest

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/tidings-go/tidings/driver"
)

// severance is a driver whose process can die: once it is cut, nothing is
// settled, delivered or published any more, whatever the engine still does.
type severance struct {
	driver.Driver
	cut atomic.Bool
}

var errCut = errors.New("drivertest: this process has crashed")

// Publish implements [driver.Driver].
func (c *severance) Publish(ctx context.Context, messages []driver.Message) error {
	if c.cut.Load() {
		return errCut
	}
	return c.Driver.Publish(ctx, messages)
}

// Subscribe implements [driver.Driver].
func (c *severance) Subscribe(ctx context.Context, s driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	inner, err := c.Driver.Subscribe(ctx, s, &severedSink{sink, &c.cut})
	if err != nil {
		return nil, err
	}
	return &severedConsumer{inner, &c.cut}, nil
}

type severedSink struct {
	driver.Sink
	cut *atomic.Bool
}

func (s *severedSink) Deliver(ctx context.Context, deliveries []driver.Delivery) {
	if !s.cut.Load() {
		s.Sink.Deliver(ctx, deliveries)
	}
}

// A dead process is not asked to finish anything.
func (s *severedSink) Revoke(ctx context.Context, sources []driver.Source) {
	if s.cut.Load() {
		s.Lose(sources)
		return
	}
	s.Sink.Revoke(ctx, sources)
}

type severedConsumer struct {
	driver.Consumer
	cut *atomic.Bool
}

func (c *severedConsumer) Settle(ctx context.Context, settlements []driver.Settlement) error {
	if c.cut.Load() {
		return errCut
	}
	return c.Consumer.Settle(ctx, settlements)
}
