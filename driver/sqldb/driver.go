package sqldb

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/inbox"
	"github.com/tidings-go/tidings/internal/calls"
	"github.com/tidings-go/tidings/outbox"
)

// Driver implements [driver.Driver] over a store. Make it with [New].
type Driver struct {
	options  Options
	features driver.Features
	holder   string

	mu        sync.Mutex
	closed    bool
	consumers map[*consumer]bool // that run
	tending   context.CancelFunc // of the goroutines that number and trim
	tenders   sync.WaitGroup
	appended  chan struct{}
}

var (
	_ driver.Driver      = (*Driver)(nil)
	_ driver.DeadLetters = (*Driver)(nil)
	_ driver.Checker     = (*Driver)(nil)
)

// New makes a driver, or returns every complaint about its options. It does not
// ask the database yet.
func New(options Options) (*Driver, error) {
	o := options.withDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("sqldb: no random numbers: %w", err)
	}
	return &Driver{
		options: o, holder: id.String(),
		consumers: make(map[*consumer]bool), appended: make(chan struct{}, 1),
		features: driver.Features{
			Durable: true, Ordered: true, Groups: true, FanOut: true, Headers: true, History: true, Sources: true, Text: true, Outbox: true,
			MaxSize: o.MaxMessageBytes, RedeliveryHorizon: -1,
		},
	}, nil
}

// Name implements [driver.Driver].
func (d *Driver) Name() string { return d.options.Name }

// Features implements [driver.Driver].
func (d *Driver) Features() driver.Features { return d.features }

// publishTime bounds a publish whose caller has set no end.
const publishTime = 30 * time.Second

// Publish implements [driver.Driver]: one transaction, so all messages are
// stored or none is, unless the commit's outcome is unknown. It takes half a minute
// at most.
func (d *Driver) Publish(ctx context.Context, messages []driver.Message) error {
	if d.isClosed() {
		return driver.ErrClosed
	}
	if len(messages) == 0 {
		return nil
	}
	rows := make([]outbox.Row, len(messages))
	for n, m := range messages {
		size := len(m.Key) + len(m.Body)
		for _, h := range m.Headers {
			size += len(h.Name) + len(h.Value)
		}
		if size > d.options.MaxMessageBytes {
			return fmt.Errorf("sqldb: %s %s: %w: %d bytes with key and headers, the driver takes %d", m.Type, m.ID, driver.ErrTooLarge, size, d.options.MaxMessageBytes)
		}
		rows[n] = outbox.Row{
			Slot: outbox.SlotOf(m.Channel, m.Key), ID: m.ID, Channel: m.Channel, AggregateID: m.Key, Type: m.Type, Headers: m.Headers, Payload: m.Body,
		}
	}
	ctx, cancel := context.WithTimeout(ctx, publishTime)
	defer cancel()
	err := d.options.Log.Append(ctx, rows)
	if err == nil {
		d.wakeTender()
		return nil
	}
	err = fmt.Errorf("sqldb: append %d events: %w", len(rows), err)
	if !errors.Is(err, inbox.ErrCommitUnknown) {
		return err
	}
	d.wakeTender()
	failed := &driver.PublishError{Results: make([]driver.PublishResult, len(messages))}
	for n := range failed.Results {
		failed.Results[n] = driver.PublishResult{State: driver.Unknown, Err: err}
	}
	return failed
}

// PutDeadLetter implements [driver.DeadLetters].
func (d *Driver) PutDeadLetter(ctx context.Context, letter driver.DeadLetter) error {
	return d.options.Log.PutDeadLetter(ctx, letter)
}

// DeadLetterStore implements [driver.DeadLetterKeeper]: the log's own store, where it
// is one.
func (d *Driver) DeadLetterStore() driver.DeadLetterStore {
	store, _ := d.options.Log.(driver.DeadLetterStore)
	return store
}

// Check implements [driver.Checker].
func (d *Driver) Check(ctx context.Context) error {
	if d.isClosed() {
		return driver.ErrClosed
	}
	if err := insist(ctx, d.options.Log.Check); err != nil {
		return fmt.Errorf("sqldb: %s: %w", d.options.Name, err)
	}
	return nil
}

// What a start needs of the database is asked until there is an answer, for startTime
// in all: an attempt that had none in startAttempt went over a connection that has died
// without a word, and the next one has another.
const (
	startTime    = 15 * time.Second
	startAttempt = 3 * time.Second
)

func insist(ctx context.Context, ask func(ctx context.Context) error) error {
	whole, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		began := time.Now()
		err := calls.DoWithin(whole, startAttempt, ask)
		if err == nil || whole.Err() != nil || time.Since(began) < startAttempt {
			return err
		}
	}
}

// Close implements [driver.Driver].
func (d *Driver) Close(ctx context.Context) error {
	d.mu.Lock()
	d.closed = true
	if d.tending != nil {
		d.tending()
	}
	d.mu.Unlock()
	return calls.Do(ctx, func(context.Context) error {
		d.tenders.Wait()
		return nil
	})
}

func (d *Driver) isClosed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed
}

func (d *Driver) wakeTender() {
	select {
	case d.appended <- struct{}{}:
	default:
	}
}

// tend begins to number and to trim while any consumer runs here.
func (d *Driver) tend(c *consumer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.consumers[c] = true
	if d.tending != nil || d.closed {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.tending = cancel
	d.tenders.Go(func() { d.number(ctx) })
	if d.options.Keep >= 0 {
		d.tenders.Go(func() { d.trim(ctx) })
	}
}

func (d *Driver) untend(c *consumer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.consumers, c)
}

const (
	numberBatch = 2000
	trimBatch   = 1000
	trimEvery   = 30 * time.Second
	maxBackoff  = 5 * time.Second
)

// number gives rows their positions as they become visible, and wakes the
// consumers of this process.
func (d *Driver) number(ctx context.Context) {
	wake := d.options.Log.Wake(ctx)
	poll := time.NewTimer(0)
	defer poll.Stop()
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return
		case _, open := <-wake:
			if !open {
				wake = nil
				continue
			}
		case <-d.appended:
		case <-poll.C:
		}
		for ctx.Err() == nil {
			end := d.ask("number")
			n, err := calls.Within(ctx, d.options.LeaseTime, func(ctx context.Context) (int, error) { return d.options.Log.Number(ctx, numberBatch) })
			end(d.verdict(ctx, err))
			if err != nil {
				failures++
				pause(ctx, backoff(failures))
				continue
			}
			failures = 0
			if n < numberBatch {
				break
			}
			d.wakeConsumers()
		}
		d.wakeConsumers() // what woke this may be numbered by another process already
		poll.Reset(d.options.PollInterval)
	}
}

// trimGroup has the lease of the one that trims.
const trimGroup = "trim"

// trim deletes what is not needed any more, by one instance at a time and a
// little at once. An outage is reported by those who read.
func (d *Driver) trim(ctx context.Context) {
	log, name := d.options.Log, []string{"log"}
	for pause(ctx, trimEvery) {
		held, err := calls.Within(ctx, d.options.LeaseTime, func(ctx context.Context) ([]driver.Lease, error) {
			return log.Acquire(ctx, trimGroup, d.holder, name, 1, trimEvery)
		})
		if err != nil || len(held) == 0 {
			continue
		}
		for began := time.Now(); time.Since(began) < trimEvery/2; {
			n, err := calls.Within(ctx, trimEvery/2, func(ctx context.Context) (int, error) { return log.Trim(ctx, d.options.Keep, trimBatch) })
			if err != nil || n == 0 || !pause(ctx, 50*time.Millisecond) {
				break
			}
		}
		_ = calls.DoWithin(context.WithoutCancel(ctx), time.Second, func(ctx context.Context) error {
			return log.Release(ctx, trimGroup, d.holder, name) // else it ends by itself
		})
	}
}

func (d *Driver) wakeConsumers() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.consumers {
		c.wakeReader()
	}
}

// ask tells every subscription that the database is asked, and how that ended.
func (d *Driver) ask(concern string) (end func(error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ends := make([]func(error), 0, len(d.consumers))
	for c := range d.consumers {
		ends = append(ends, c.outage.Ask(concern))
	}
	return func(err error) {
		if err != nil {
			err = fmt.Errorf("%s: %w", concern, err)
		}
		for _, end := range ends {
			end(err)
		}
	}
}

// verdict is what a call's error says about the database: nothing when this
// process stops, or when a transaction of its own keeps the others out.
func (d *Driver) verdict(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil || !d.options.Log.KeptSince().IsZero():
		return context.Canceled
	}
	return err
}

func backoff(failures int) time.Duration {
	return min(50*time.Millisecond<<min(failures, 10), maxBackoff)
}

// pause waits and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
