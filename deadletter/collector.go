package deadletter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/tidings-go/tidings/driver"
)

// Collector brings dead letters from the driver's own place, a topic or a queue,
// into a store. It is a [tidings.Runner]. Make it with [NewCollector]; any number may
// run in any number of processes.
//
// A letter is in the store before it counts as read there. One that the topic or
// queue has twice is one letter, and one that was resolved or discarded since does
// not come back.
type Collector struct {
	reader        driver.DeadLetterReader
	store         driver.DeadLetterStore
	subscriptions func() []driver.Subscription
	logger        *slog.Logger
}

// CollectorOptions configures [NewCollector]. Nil means the defaults.
type CollectorOptions struct {
	// Logger is told what is collected. Nil means slog.Default.
	Logger *slog.Logger
}

// NewCollector makes a collector. Subscriptions, such as [tidings.Bus.Subscriptions],
// is called when Run begins: it says whose letters are collected.
func NewCollector(reader driver.DeadLetterReader, store driver.DeadLetterStore, subscriptions func() []driver.Subscription, options *CollectorOptions) (*Collector, error) {
	var errs []error
	if reader == nil {
		errs = append(errs, errors.New("the reader is nil"))
	}
	if store == nil {
		errs = append(errs, errors.New("the store is nil"))
	}
	if subscriptions == nil {
		errs = append(errs, errors.New("nothing says which subscriptions there are"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("deadletter: collector: %w", err)
	}
	c := &Collector{reader: reader, store: store, subscriptions: subscriptions, logger: slog.Default()}
	if options != nil && options.Logger != nil {
		c.logger = options.Logger
	}
	return c, nil
}

// Run collects until ctx ends, and then returns nil. While broker or store do not
// answer it tries again.
func (c *Collector) Run(ctx context.Context) error {
	subscriptions := c.subscriptions()
	if len(subscriptions) == 0 {
		<-ctx.Done()
		return nil
	}
	if err := c.reader.ReadDeadLetters(ctx, subscriptions, c.keep); err != nil {
		return fmt.Errorf("deadletter: collector: %w", err)
	}
	return nil
}

// keep stores letters.
func (c *Collector) keep(ctx context.Context, letters []driver.DeadLetter) error {
	fresh := 0
	for n := range letters {
		l := &letters[n]
		complete(l)
		stored, err := c.store.CollectDeadLetter(ctx, *l)
		if err != nil {
			c.logger.WarnContext(ctx, "dead letters cannot be stored; they stay where they are, and it is tried again", "subscription", l.Subscription, "error", err)
			return err
		}
		if stored {
			fresh++
		}
	}
	c.logger.InfoContext(ctx, "dead letters collected", "count", len(letters), "fresh", fresh)
	return nil
}

// complete fills in what only the body says, as the engine would have found it.
func complete(l *driver.DeadLetter) {
	if l.Type != "" && l.ID != "" && l.AggregateID != "" || l.Reason == "undecodable" {
		return
	}
	envelope, err := decode(l)
	if err != nil {
		return
	}
	l.Type, l.ID, l.AggregateID = cmp.Or(l.Type, envelope.Type), cmp.Or(l.ID, envelope.ID), cmp.Or(l.AggregateID, envelope.AggregateID)
}
