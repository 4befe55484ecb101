package tidings

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/calls"
)

// Outlet takes encoded events and stores them elsewhere before they are
// published: an outbox inside a transaction is one. It may be used as its own
// comment says.
type Outlet interface {
	// Put stores all messages, in order, or returns an error and stores none.
	Put(ctx context.Context, messages []driver.Message) error
}

// ErrOutboxRequired is wrapped by the error of [Module.Publish] on a bus with
// [Options].RequireOutbox.
var ErrOutboxRequired = errors.New("tidings: events are published through an outbox here")

// Through returns a Publisher of this module that stores events in an outlet
// instead of publishing them. Owner, contract and size are checked first, as
// [Module.Publish] does; when any event is refused nothing is stored. Returning
// nil means that the outlet has the events, and is worth what the outlet says:
// in a transaction, once that is committed.
//
// The Publisher is as good for many goroutines as the outlet.
func (m *Module) Through(outlet Outlet) Publisher { return through{m, outlet} }

type through struct {
	module *Module
	outlet Outlet
}

// Publish implements [Publisher].
func (t through) Publish(ctx context.Context, events ...DomainEvent) error {
	b := t.module.bus
	switch {
	case len(events) == 0:
		return nil
	case t.outlet == nil:
		return b.publishFailed(ctx, events, errors.New("the outlet is nil: pass an outbox in an open transaction"))
	case b.driver == nil:
		return b.publishFailed(ctx, events, errors.New("New was given no driver"))
	}
	messages := make([]driver.Message, len(events))
	ctx, events, end, err := b.encode(ctx, t.module, events, messages, false)
	if err == nil {
		if err = t.outlet.Put(ctx, messages); err != nil {
			failed := &PublishError{Results: make([]PublishResult, len(events))}
			for n, e := range events {
				failed.Results[n] = PublishResult{Event: e, State: NotStored, Err: err}
			}
			err = failed
		}
	}
	if end != nil {
		end(err)
	}
	if err != nil {
		return b.observeFailure(ctx, err)
	}
	if b.features.Outbox { // else whoever relays them says so
		for _, e := range events {
			b.observers.observe(ctx, publication(e, Published, nil))
		}
	}
	return nil
}

// Forward gives the driver messages that were encoded before, as [Bus.Encode]
// does: it is for relays. Contracts and owners are not checked. The error is the
// driver's, a *[driver.PublishError] where it knows more; on a driver of values it
// refuses everything.
func (b *Bus) Forward(ctx context.Context, messages []driver.Message) error {
	if b.driver == nil {
		return errors.New("tidings: forward: New was given no driver")
	}
	if b.features.Values {
		return fmt.Errorf("tidings: forward: driver %s passes values and takes no encoded events", b.driver.Name())
	}
	if b.closed.Load() {
		return fmt.Errorf("tidings: forward: %w", ErrClosed)
	}
	err := b.driver.Publish(ctx, messages)
	details, partly := errors.AsType[*driver.PublishError](err)
	if b.observers.wants(Published) || b.observers.wants(PublishFailed) {
		for n := range messages {
			o := Observation{Kind: Published, ID: messages[n].ID, Type: messages[n].Type, Channel: messages[n].Channel, AggregateID: messages[n].Key}
			stored := err == nil || partly && n < len(details.Results) && details.Results[n].State == driver.Stored
			if !stored {
				o.Kind, o.Err = PublishFailed, err
			}
			b.observers.observe(ctx, o)
		}
	}
	return err
}

// Features is what the bus's driver can do.
func (b *Bus) Features() driver.Features { return b.features }

// Subscriptions returns what was declared so far: names, channels and types.
func (b *Bus) Subscriptions() []driver.Subscription {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]driver.Subscription, 0, len(b.subscriptions))
	for _, s := range b.subscriptions {
		all = append(all, driver.Subscription{Name: s.name, Channels: slices.Clone(s.channels), Types: slices.Clone(s.types), StartAt: s.options.StartAt})
	}
	return all
}

// DriverName is the word for the bus's driver, "" without one.
func (b *Bus) DriverName() string {
	if b.driver == nil {
		return ""
	}
	return b.driver.Name()
}

// Runner works beside the subscriptions of a bus for as long as it runs, such as
// the relay of an outbox.
type Runner interface {
	// Run works until ctx ends and then returns nil, soon: what is in hand is
	// finished, and nothing new begun. It is called once. Any other return is
	// for good, and becomes part of the error of [Bus.Run].
	Run(ctx context.Context) error
}

// Watched is a [Runner] that [Bus.Health] asks.
type Watched interface {
	// Outage is for how long it has not got on because its database or broker does
	// not answer, 0 when it does. It asks nobody.
	Outage() time.Duration
}

// Add makes [Bus.Run] run something beside the subscriptions. It begins when
// every subscription is connected, and is ended after the last handler, so that
// what handlers stored in an outbox is still sent. After Run it is [ErrRunning],
// after [Bus.Close] [ErrClosed].
func (b *Bus) Add(r Runner) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.phase != phaseDeclaring {
		return fmt.Errorf("tidings: add at %s after %s: %w", callerPlace(2), b.begun, b.late)
	}
	b.runners = append(b.runners, r)
	return nil
}

// startRunners starts what was added; the function that it returns ends it, waits,
// but not beyond its context, and returns the errors.
func (b *Bus) startRunners() (stop func(context.Context) error) {
	ctx, cancel := context.WithCancel(b.values)
	var running sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, r := range b.runners {
		running.Go(func() {
			err := r.Run(ctx)
			if err == nil && ctx.Err() == nil {
				err = errors.New("it returned before it was told to")
			}
			if err == nil {
				return
			}
			failure := fmt.Errorf("tidings: %T: %w", r, err)
			mu.Lock()
			errs = append(errs, failure)
			mu.Unlock()
			b.observers.observe(b.values, Observation{Kind: Reported, Err: failure, Report: driver.Report{Kind: driver.ReportOutage, Err: err, Text: "what runs beside the subscriptions has stopped"}})
		})
	}
	return func(ending context.Context) error {
		cancel()
		err := calls.Do(ending, func(context.Context) error { running.Wait(); return nil })
		if err != nil {
			err = fmt.Errorf("tidings: what runs beside the subscriptions has not ended: %w", err)
		}
		mu.Lock()
		defer mu.Unlock()
		return errors.Join(append(errs, err)...)
	}
}
