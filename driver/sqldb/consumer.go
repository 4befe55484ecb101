package sqldb

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/calls"
	"github.com/tidings-go/tidings/internal/outage"
	"github.com/tidings-go/tidings/internal/share"
	"github.com/tidings-go/tidings/internal/window"
	"github.com/tidings-go/tidings/outbox"
)

// consumer fetches for one subscription. A goroutine renews its leases until
// Close, one divides the parts among the instances, and Run itself reads.
type consumer struct {
	driver       *Driver
	subscription driver.Subscription
	sink         driver.Sink
	outage       *outage.Outage
	group        string // of the leases
	maxEvents    int
	maxBytes     int

	wake     chan struct{} // the reader has something to do
	stop     context.CancelFunc
	renewals sync.WaitGroup

	committing chan struct{} // full while positions are stored

	share *share.Share

	mu    sync.Mutex
	slots map[outbox.Part]*slot // that are owned
}

// slot is one ownership of one slot of a channel.
type slot struct {
	part   outbox.Part
	lease  driver.Lease
	source driver.Source
	since  time.Time // rows stored before are not for the subscription

	mu        sync.Mutex
	window    *window.Window
	cursor    int64 // the next position to read
	revoking  bool
	gone      bool
	full      bool
	returned  []returned
	version   int64 // changes of the window
	committed int64 // of them, how many are stored
	moved     time.Time
}

// place is the handle of one delivery.
type place struct {
	slot  *slot
	entry outbox.Entry
	size  int
}

// Position implements [driver.Ref].
func (p *place) Position() string {
	return strconv.Itoa(p.entry.Slot) + "/" + strconv.FormatInt(p.entry.Position, 10)
}

// returned is a released delivery until it is due.
type returned struct {
	*place
	due time.Time
}

// What is asked of the database, each by itself.
const (
	reading   = "read"
	positions = "positions"
	leases    = "leases"
)

// stuck reports that nothing could be read for longer than the leases last.
func (c *consumer) stuck() bool {
	lease := c.driver.options.LeaseTime
	return c.outage.Since(reading) > lease || c.subscription.IsUnable(lease)
}

// outageAfter is how long the database may not answer before that is reported.
const outageAfter = time.Second

// Subscribe implements [driver.Driver]. A channel that the database does not know
// of the subscription yet begins where StartAt says, be the subscription new or not.
func (d *Driver) Subscribe(ctx context.Context, subscription driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	if d.isClosed() {
		return nil, driver.ErrClosed
	}
	if subscription.StartAt.Mode == driver.StartUnset {
		return nil, fmt.Errorf("sqldb: subscription %s: driver %s has history: say where a new subscription begins (StartAt)", subscription.Name, d.options.Name)
	}
	if err := insist(ctx, func(ctx context.Context) error {
		_, err := d.options.Log.Begin(ctx, subscription.Name, subscription.Channels, subscription.StartAt)
		return err
	}); err != nil {
		return nil, fmt.Errorf("sqldb: subscription %s: %w", subscription.Name, err)
	}
	c := &consumer{
		driver: d, subscription: subscription, sink: sink, outage: outage.New(sink, outageAfter, "the database does not answer"),
		group: "subscription:" + subscription.Name, maxEvents: d.options.MaxEvents, maxBytes: d.options.MaxBytes,
		wake: make(chan struct{}, 1), committing: make(chan struct{}, 1), slots: make(map[outbox.Part]*slot),
	}
	if subscription.MaxEvents > 0 {
		c.maxEvents = min(subscription.MaxEvents, window.Most)
	}
	if subscription.MaxBytes > 0 {
		c.maxBytes = subscription.MaxBytes
	}
	c.outage.Patience(max(outageAfter, d.options.LeaseTime/2))
	c.share = c.newShare()
	return c, nil
}

// Run implements [driver.Consumer].
func (c *consumer) Run(ctx context.Context) error {
	// What runs still has to be settled after ctx, so the leases are kept until
	// Close.
	renewing, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.mu.Lock()
	c.stop = stop
	c.mu.Unlock()
	c.driver.tend(c)
	defer c.driver.untend(c)
	c.renewals.Go(func() { c.share.Renew(renewing) })
	var sharing sync.WaitGroup
	sharing.Go(func() { c.share.Divide(ctx) })
	c.read(ctx)
	sharing.Wait()
	return nil
}

func (c *consumer) wakeReader() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// readEach and readBatch are how many entries are read at once: of one slot, and
// about how many of all.
const (
	readEach  = 256
	readBatch = readEach * outbox.Slots
)

// lateCommit is how long a position that moved over what nobody settles may wait
// to be stored.
const lateCommit = time.Second

// read delivers until ctx ends.
func (c *consumer) read(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
		}
		wait := c.driver.options.PollInterval
		for ctx.Err() == nil {
			more, next, err := c.fetch(ctx)
			if err != nil && ctx.Err() == nil {
				failures++
				wait = backoff(failures)
				break
			}
			failures = 0
			if !more {
				wait = min(wait, next)
				break
			}
		}
		timer.Reset(wait)
	}
}

// fetch reads and delivers once. It reports whether there is probably more, and
// how long until something is due else.
func (c *consumer) fetch(ctx context.Context) (more bool, next time.Duration, err error) {
	next = time.Hour
	var from []outbox.Place
	asked := make(map[outbox.Part]*slot)
	owned := c.owned()
	for _, s := range owned {
		due := c.again(s)
		next = min(next, due)
		if position, room := c.room(s); room {
			from = append(from, outbox.Place{Part: s.part, Position: position})
			asked[s.part] = s
		}
	}
	next = min(next, c.commitLate(ctx, owned))
	if len(from) == 0 && !c.stuck() {
		return false, next, nil
	}
	if len(from) == 0 { // it lost them all: is it well again?
		from = []outbox.Place{{Part: outbox.Part{Channel: c.subscription.Channels[0]}, Position: math.MaxInt64}}
	}
	end := c.outage.Ask(reading)
	type answer struct {
		entries []outbox.Entry
		more    bool
	}
	read, err := calls.Within(ctx, c.driver.options.LeaseTime, func(ctx context.Context) (answer, error) {
		entries, more, err := c.driver.options.Log.Read(ctx, from, readEach, readBatch)
		return answer{entries, more}, err
	})
	if err != nil {
		err = fmt.Errorf("sqldb: subscription %s: read: %w", c.subscription.Name, err)
		end(c.driver.verdict(ctx, err))
		return false, 0, err
	}
	end(nil)
	for entries := read.entries; len(entries) > 0; {
		n := 1
		for n < len(entries) && entries[n].Part == entries[0].Part {
			n++
		}
		// A slot that was lost and came back meanwhile begins elsewhere: what was read
		// for the ownership before would leave a gap in this one.
		if s := c.slot(entries[0].Part); s != nil && s == asked[s.part] {
			c.deliver(s, entries[:n])
		}
		entries = entries[n:]
	}
	return read.more, next, nil
}

// SourceOf implements [driver.Locator].
func (c *consumer) SourceOf(channel, key, _ string) string {
	return outbox.PartOf(channel, key).Name()
}

func (c *consumer) owned() []*slot {
	c.mu.Lock()
	defer c.mu.Unlock()
	slots := make([]*slot, 0, len(c.slots))
	for _, channel := range c.subscription.Channels { // in an order, so that a test reads the same each time
		for n := range outbox.Slots {
			if s := c.slots[outbox.Part{Channel: channel, Slot: n}]; s != nil {
				slots = append(slots, s)
			}
		}
	}
	return slots
}

func (c *consumer) slot(part outbox.Part) *slot {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.slots[part]
}

// room returns where to read a slot on, and whether there is room for more.
func (c *consumer) room(s *slot) (position int64, room bool) {
	s.mu.Lock()
	resumed := s.full && s.window.Length() <= c.maxEvents/2 && s.window.Bytes <= c.maxBytes/2
	if resumed {
		s.full = false
	}
	position, room = s.cursor, !s.full && !s.revoking && !s.gone
	s.mu.Unlock()
	if resumed {
		c.sink.Report(driver.Report{Kind: driver.ReportResumed, Source: s.source})
	}
	return position, room
}

// deliver hands entries of one slot to the engine, as far as they fit.
func (c *consumer) deliver(s *slot, entries []outbox.Entry) {
	var deliveries []driver.Delivery
	s.mu.Lock()
	for _, e := range entries {
		if s.gone || s.revoking {
			break
		}
		if e.Position < s.cursor {
			continue
		}
		size := entrySize(&e.Row)
		verdict := window.Full
		if s.window.Bytes < c.maxBytes {
			verdict = s.window.Admit(e.Position, size)
		}
		if verdict == window.Full {
			s.full = true
			break
		}
		s.cursor = e.Position + 1
		if verdict == window.Skip {
			continue
		}
		if e.Row.CreatedAt.Before(s.since) {
			s.window.Finish(e.Position, size)
			s.change()
			continue
		}
		deliveries = append(deliveries, delivery(&place{slot: s, entry: e, size: size}))
	}
	full, unfinished := s.full, s.window.Length()
	s.mu.Unlock()
	if len(deliveries) > 0 {
		c.sink.Deliver(context.Background(), deliveries)
	}
	if full {
		c.sink.Report(driver.Report{Kind: driver.ReportPaused, Source: s.source, Count: unfinished,
			Text: "the window of unfinished events is full: nothing more of this slot is read until the oldest is finished"})
	}
}

// change says that the window moved. The caller holds the slot's lock.
func (s *slot) change() {
	if s.version == s.committed {
		s.moved = time.Now()
	}
	s.version++
}

func entrySize(r *outbox.Row) int {
	size := len(r.AggregateID) + len(r.Payload)
	for _, h := range r.Headers {
		size += len(h.Name) + len(h.Value)
	}
	return size
}

func delivery(p *place) driver.Delivery {
	m, err := p.entry.Row.Message()
	if err != nil { // what cannot be wrapped is delivered as it is, and becomes a dead letter
		m.Body = p.entry.Row.Payload
	}
	m.Type, m.Size = "", p.size
	return driver.Delivery{Message: m, Ref: p, Source: p.slot.source, Time: p.entry.Row.CreatedAt}
}

// again delivers what was released and is due, and returns how long until the
// next is.
func (c *consumer) again(s *slot) (next time.Duration) {
	next = time.Hour
	var due []driver.Delivery
	now := time.Now()
	s.mu.Lock()
	kept := s.returned[:0]
	for _, r := range s.returned {
		if wait := r.due.Sub(now); wait > 0 {
			next = min(next, wait)
			kept = append(kept, r)
		} else if !s.gone && !s.revoking {
			due = append(due, delivery(r.place))
		}
	}
	s.returned = kept
	s.mu.Unlock()
	if len(due) > 0 {
		c.sink.Deliver(context.Background(), due)
	}
	return next
}

// Settle implements [driver.Consumer]: it marks what is finished and returns when
// the positions are stored. A released event is delivered again by this consumer
// while it owns the slot, and by the next owner after it.
func (c *consumer) Settle(ctx context.Context, settlements []driver.Settlement) error {
	touched := make(map[*slot]bool)
	for _, settled := range settlements {
		p, ok := settled.Ref.(*place)
		if !ok || p.slot.source != settled.Source || c.slot(p.slot.part) != p.slot {
			continue
		}
		s := p.slot
		touched[s] = true
		s.mu.Lock()
		switch {
		case s.gone:
		case settled.Outcome == driver.Finished:
			if s.window.Finish(p.entry.Position, p.size) {
				s.change()
			}
		case p.entry.Position >= s.window.Base && !s.window.Has(p.entry.Position):
			s.returned = append(s.returned, returned{p, time.Now().Add(settled.After)})
		}
		s.mu.Unlock()
	}
	slots := make([]*slot, 0, len(touched))
	for s := range touched {
		s.mu.Lock()
		if len(s.returned) > 0 || s.full {
			c.wakeReader()
		}
		s.mu.Unlock()
		slots = append(slots, s)
	}
	return c.commit(ctx, slots)
}

// commit stores the windows of slots that changed. It takes no longer than the
// leases last.
func (c *consumer) commit(ctx context.Context, slots []*slot) error {
	whole := ctx
	ctx, cancel := context.WithTimeout(whole, c.driver.options.LeaseTime)
	defer cancel()
	select {
	case c.committing <- struct{}{}:
		defer func() { <-c.committing }()
	case <-ctx.Done():
		return fmt.Errorf("sqldb: subscription %s: store positions: %w", c.subscription.Name, ctx.Err())
	}
	var leases []driver.Lease
	var progress []outbox.Progress
	var versions []int64
	var changed []*slot
	for _, s := range slots {
		s.mu.Lock()
		if !s.gone && s.version != s.committed {
			leases = append(leases, s.lease)
			progress = append(progress, outbox.Progress{Place: outbox.Place{Part: s.part, Position: s.window.Base}, Finished: window.Encode(s.window.Base, s.window.Finished())})
			versions = append(versions, s.version)
			changed = append(changed, s)
		}
		s.mu.Unlock()
	}
	if len(changed) == 0 {
		return nil
	}
	end := c.outage.Ask(positions)
	refused, err := calls.Until(ctx, func(ctx context.Context) ([]driver.Lease, error) {
		return c.driver.options.Log.Commit(ctx, c.group, c.driver.holder, c.subscription.Name, leases, progress)
	})
	if err != nil {
		err = fmt.Errorf("sqldb: subscription %s: store positions: %w", c.subscription.Name, err)
		end(c.driver.verdict(whole, err))
		return err
	}
	end(nil)
	for n, s := range changed {
		s.mu.Lock()
		s.committed = max(s.committed, versions[n])
		s.mu.Unlock()
	}
	c.share.Lose(refused, "the database gave the slot to another instance")
	return nil
}

// commitLate stores positions that moved without a settlement, and returns how
// long until the next is due.
func (c *consumer) commitLate(ctx context.Context, slots []*slot) (next time.Duration) {
	next = time.Hour
	var late []*slot
	for _, s := range slots {
		s.mu.Lock()
		if s.version != s.committed {
			if wait := lateCommit - time.Since(s.moved); wait <= 0 {
				late = append(late, s)
			} else {
				next = min(next, wait)
			}
		}
		s.mu.Unlock()
	}
	if next == time.Hour && len(late) == 0 {
		c.outage.AnsweredAt(positions) // there is nothing left to be stored
	}
	if err := c.commit(ctx, late); err != nil && ctx.Err() == nil {
		return lateCommit
	}
	return next
}

// Close implements [driver.Consumer].
func (c *consumer) Close(ctx context.Context) error {
	c.mu.Lock()
	stop := c.stop
	c.mu.Unlock()
	if stop == nil { // it never ran
		return nil
	}
	err := c.commit(ctx, c.owned())
	stop()
	waiting := calls.Do(ctx, func(context.Context) error { c.renewals.Wait(); return nil })
	c.outage.Close()
	c.mu.Lock()
	for _, s := range c.slots {
		s.mu.Lock()
		s.gone = true
		s.mu.Unlock()
	}
	clear(c.slots)
	c.mu.Unlock()
	if leaving := c.share.Leave(ctx); leaving != nil {
		err = errors.Join(err, fmt.Errorf("sqldb: subscription %s: %w", c.subscription.Name, leaving))
	}
	return errors.Join(err, waiting)
}
