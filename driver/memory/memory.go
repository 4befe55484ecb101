// Package memory is the driver without a broker: events go from publisher to
// handlers within one process. It is made for development and tests; package
// setup refuses it where EVENT_ENV is production.
//
// # Delivery
//
// Best effort, in process. An event for which Publish returned nil is queued or
// handled here and nowhere else: what is not finished when the process ends is
// lost. An event of a channel without a subscription goes nowhere.
//
// By default handlers run in the publisher's goroutine before Publish returns,
// as far as that is possible: one level deep, in the order of publishing. What
// a handler publishes with its context is queued, and the outermost Publish
// goes on with it. What cannot run there (a lane that is busy in another
// goroutine, a subscription whose slots are all taken, a retry) is left to
// workers. With Options.Async workers do everything.
//
// # Order
//
// Per subscription, channel and aggregate, in the order of Publish. Between
// channels none is promised, although the synchronous mode looks like it.
//
// # Duplicates
//
// The driver makes none.
//
// # Limits
//
// All lanes of all subscriptions share one bound, in events and in bytes; an
// event counts once per subscription until it is finished. At the bound a
// Publish outside a handler waits for room until its context ends; one inside a
// handler gets driver.ErrFull at once. Before the bus runs, events are held up
// to the same bound.
//
// # What it cannot do
//
// It has no consumer groups and no history, and one driver value serves one
// bus: a second bus that subscribes is refused.
package memory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/tidings-go/tidings/driver"
)

// Options configures a [Driver]. The zero value means the defaults.
type Options struct {
	// Async leaves every handler to workers: Publish returns when its events
	// are queued.
	Async bool

	// MaxEvents bounds unfinished events, counted once per subscription.
	// Defaults to 100 000.
	MaxEvents int

	// MaxBytes bounds their size in memory, an estimate in bytes. Defaults to
	// 64 MiB.
	MaxBytes int

	// MaxDeadLetters bounds the dead letters that are kept for [Driver.DeadLetters].
	// At the bound further ones are refused, and the lane of such an event
	// holds. Defaults to 100 000.
	MaxDeadLetters int
}

// Driver is the in-memory driver. All methods may be called at once.
type Driver struct {
	options Options

	mu        sync.Mutex // order of publishing; held while sinks queue, never while handlers run
	consumers map[string][]*consumer
	names     []string
	held      []heldMessage // published before Start
	started   bool
	closed    bool
	events    int
	bytes     int
	room      chan struct{} // closed and replaced when room is made
	waiters   int
	scratch   []driver.Delivery

	deadMu sync.Mutex
	dead   []driver.DeadLetter
	known  map[deadKey]int
}

type heldMessage struct {
	message driver.Message
	size    int
}

type deadKey struct{ subscription, eventType, aggregateID, id string }

var (
	_ driver.Direct      = (*Driver)(nil)
	_ driver.DeadLetters = (*Driver)(nil)
)

// New makes a driver; options may be nil. It panics when a bound is negative.
func New(options *Options) *Driver {
	var o Options
	if options != nil {
		o = *options
	}
	if o.MaxEvents < 0 || o.MaxBytes < 0 || o.MaxDeadLetters < 0 {
		panic("memory: Options.MaxEvents, MaxBytes and MaxDeadLetters must not be negative")
	}
	o.MaxEvents = cmp.Or(o.MaxEvents, 100_000)
	o.MaxBytes = cmp.Or(o.MaxBytes, 64<<20)
	o.MaxDeadLetters = cmp.Or(o.MaxDeadLetters, 100_000)
	return &Driver{
		options:   o,
		consumers: make(map[string][]*consumer),
		room:      make(chan struct{}),
		known:     make(map[deadKey]int),
	}
}

// Name implements [driver.Driver].
func (d *Driver) Name() string { return "in-memory" }

// Features implements [driver.Driver].
func (d *Driver) Features() driver.Features {
	return driver.Features{Ordered: true, FanOut: true, Headers: true, Values: true}
}

// RunInPublish implements [driver.Direct].
func (d *Driver) RunInPublish() bool { return !d.options.Async }

// Publish implements [driver.Driver]. It waits at the bound, except with a
// handler's context: then the error wraps [driver.ErrFull].
func (d *Driver) Publish(ctx context.Context, messages []driver.Message) error {
	d.mu.Lock()
	for n := range messages { // before the first is stored
		if events, size := d.cost(&messages[n]); events > d.options.MaxEvents || size > d.options.MaxBytes {
			d.mu.Unlock()
			return fmt.Errorf("memory: event %s for %d subscriptions: %w: the bound is %d events and %d bytes",
				messages[n].ID, events, driver.ErrTooLarge, d.options.MaxEvents, d.options.MaxBytes)
		}
	}
	for done := 0; done < len(messages); {
		if d.closed {
			d.mu.Unlock()
			return partial(len(messages), done, fmt.Errorf("memory: %w", driver.ErrClosed))
		}
		m := &messages[done]
		events, size := d.cost(m)
		if d.events+events <= d.options.MaxEvents && d.bytes+size <= d.options.MaxBytes {
			d.events += events
			d.bytes += size
			d.accept(ctx, m)
			done++
			continue
		}
		if driver.InHandler(ctx) {
			d.mu.Unlock()
			return partial(len(messages), done, fmt.Errorf("memory: %d events, %d bytes: %w", d.options.MaxEvents, d.options.MaxBytes, driver.ErrFull))
		}
		room := d.room
		d.waiters++
		d.mu.Unlock()
		driver.Waiting(ctx)
		var ended error
		select {
		case <-room:
		case <-ctx.Done():
			ended = ctx.Err()
			if cause := context.Cause(ctx); !errors.Is(cause, ended) {
				ended = fmt.Errorf("%w: %w", ended, cause)
			}
		}
		d.mu.Lock()
		d.waiters--
		if ended != nil {
			d.mu.Unlock()
			return partial(len(messages), done, fmt.Errorf("memory: waited for room: %w", ended))
		}
	}
	d.mu.Unlock()
	return nil
}

func partial(total, stored int, cause error) error {
	if stored == 0 {
		return cause
	}
	e := &driver.PublishError{Results: make([]driver.PublishResult, total)}
	for n := range e.Results {
		if n < stored {
			e.Results[n].State = driver.Stored
		} else {
			e.Results[n].Err = cause
		}
	}
	return e
}

// cost is what a message takes of the bound: once per subscription, and once
// while it is held.
func (d *Driver) cost(m *driver.Message) (events, size int) {
	events = 1
	if d.started {
		events = len(d.consumers[m.Channel])
	}
	return events, events * m.Size
}

func (d *Driver) accept(ctx context.Context, m *driver.Message) {
	if !d.started {
		d.held = append(d.held, heldMessage{*m, m.Size})
		return
	}
	consumers := d.consumers[m.Channel]
	if len(consumers) == 0 {
		return
	}
	places := make([]place, len(consumers))
	for n, c := range consumers {
		places[n].size = m.Size
		d.scratch = append(d.scratch[:0], driver.Delivery{Message: *m, Ref: &places[n]})
		c.sink.Deliver(ctx, d.scratch)
	}
	clear(d.scratch)
}

// place is the handle of one delivery.
type place struct{ size int }

// Position implements [driver.Ref]: nothing lies anywhere in memory.
func (p *place) Position() string { return "" }

// Start implements [driver.Direct]: what was published before is delivered
// first. It may exceed the bound by the number of subscriptions per event.
func (d *Driver) Start(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.started {
		return errors.New("memory: started twice: one driver value serves one bus")
	}
	d.started = true
	held := d.held
	d.held = nil
	d.events, d.bytes = 0, 0
	for n := range held {
		events, size := d.cost(&held[n].message)
		d.events += events
		d.bytes += size
		d.accept(ctx, &held[n].message)
	}
	d.makeRoom()
	return nil
}

// makeRoom wakes those who wait. The caller holds the lock.
func (d *Driver) makeRoom() {
	if d.waiters > 0 {
		close(d.room)
		d.room = make(chan struct{})
	}
}

// Subscribe implements [driver.Driver].
func (d *Driver) Subscribe(_ context.Context, s driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return nil, fmt.Errorf("memory: %w", driver.ErrClosed)
	case d.started:
		return nil, errors.New("memory: it serves a running bus already: one driver value serves one bus")
	case slices.Contains(d.names, s.Name):
		return nil, fmt.Errorf("memory: subscription %s exists: there are no consumer groups in memory", s.Name)
	}
	d.names = append(d.names, s.Name)
	c := &consumer{driver: d, sink: sink}
	for _, channel := range s.Channels {
		d.consumers[channel] = append(d.consumers[channel], c)
	}
	return c, nil
}

// Close implements [driver.Driver]: later publishes are driver.ErrClosed, and
// those that wait for room are too.
func (d *Driver) Close(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.makeRoom()
	return nil
}

// Usage returns how many events are unfinished, counted once per subscription,
// and their size in bytes.
func (d *Driver) Usage() (events, bytes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.events, d.bytes
}

// PutDeadLetter implements [driver.DeadLetters]. The same subscription and
// event replaces the earlier one.
func (d *Driver) PutDeadLetter(_ context.Context, letter driver.DeadLetter) error {
	d.deadMu.Lock()
	defer d.deadMu.Unlock()
	key := deadKey{letter.Subscription, letter.Type, letter.AggregateID, letter.ID}
	if n, known := d.known[key]; known {
		d.dead[n] = letter
		return nil
	}
	if len(d.dead) >= d.options.MaxDeadLetters {
		return fmt.Errorf("memory: %d dead letters are kept, which is the bound", len(d.dead))
	}
	d.known[key] = len(d.dead)
	d.dead = append(d.dead, letter)
	return nil
}

// DeadLetters returns the dead letters, oldest first.
func (d *Driver) DeadLetters() []driver.DeadLetter {
	d.deadMu.Lock()
	defer d.deadMu.Unlock()
	return slices.Clone(d.dead)
}

type consumer struct {
	driver *Driver
	sink   driver.Sink
}

// Run implements [driver.Consumer]: publishers deliver, so it only waits.
func (c *consumer) Run(ctx context.Context) error {
	c.sink.Joined()
	<-ctx.Done()
	return nil
}

// Settle implements [driver.Consumer]: finished events make room.
func (c *consumer) Settle(_ context.Context, settlements []driver.Settlement) error {
	d := c.driver
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := range settlements {
		if p, ok := settlements[n].Ref.(*place); ok && settlements[n].Outcome == driver.Finished {
			d.events--
			d.bytes -= p.size
		}
	}
	d.makeRoom()
	return nil
}

// Close implements [driver.Consumer].
func (c *consumer) Close(context.Context) error { return nil }
