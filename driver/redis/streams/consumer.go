package streams

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/outage"
	"github.com/tidings-go/tidings/internal/share"
)

// consumer fetches for one subscription. One goroutine renews its leases until
// Close, one divides the shards among the instances, Run itself reads, and one or
// more wait for what is new.
type consumer struct {
	driver       *Driver
	subscription driver.Subscription
	sink         driver.Sink
	outage       *outage.Outage
	leases       *leases
	share        *share.Share
	maxEvents    int
	maxBytes     int
	channels     map[string]string // by stream

	wake     chan struct{} // the reader has something to do
	stop     context.CancelFunc
	renewals sync.WaitGroup

	mu      sync.Mutex
	resume  map[string]id // by stream: where a group that is lost begins again
	shards  map[string]*shard
	drained chan struct{} // closed and replaced when everything was read
}

// shard is one ownership of one stream.
type shard struct {
	stream  string
	channel string
	lease   driver.Lease
	source  driver.Source

	// The reader's own.
	average int // bytes of an entry, about
	batch   int // entries of the last read that was asked for

	mu       sync.Mutex
	cursor   id   // the last entry that was delivered
	pending  bool // what a predecessor or a lost answer left is read first
	inHand   []*place
	byID     map[id]*place
	bytes    int
	settled  id // everything up to it is finished
	full     bool
	revoking bool
	gone     bool
	watched  bool // a waiter waits for what is new
	returned []returned
}

// place is the handle of one delivery.
type place struct {
	shard    *shard
	entry    entry
	size     int
	finished bool // guarded by the shard's lock
	waiting  bool // released, and in shard.returned
}

// Position implements [driver.Ref].
func (p *place) Position() string { return p.shard.stream + "/" + p.entry.id.String() }

// returned is a released delivery until it is due.
type returned struct {
	*place
	due time.Time
}

const (
	readBatch    = 256
	pollInterval = time.Second
	// pollUnwatched is how often a shard is looked at that no waiter waits for:
	// one that was just adopted, or that was full.
	pollUnwatched = 50 * time.Millisecond
)

// Run implements [driver.Consumer].
func (c *consumer) Run(ctx context.Context) error {
	// What runs still has to be settled after ctx, so the leases are kept until
	// Close.
	renewing, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.mu.Lock()
	c.stop = stop
	c.mu.Unlock()
	c.renewals.Go(func() { c.share.Renew(renewing) })
	var others sync.WaitGroup
	others.Go(func() { c.share.Divide(ctx) })
	c.wait(ctx, &others)
	c.read(ctx)
	others.Wait()
	return nil
}

func (c *consumer) wakeReader() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

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
		next := pollInterval
		for more := true; more && ctx.Err() == nil; {
			var err error
			if more, next, err = c.fetch(ctx); err != nil && ctx.Err() == nil {
				c.outage.Failed(err)
				next = min(50*time.Millisecond<<min(failures, 10), pollInterval)
				failures++
				break
			}
			failures = 0
		}
		c.mu.Lock()
		close(c.drained)
		c.drained = make(chan struct{})
		c.mu.Unlock()
		timer.Reset(next)
	}
}

// fetch reads every shard that has room once, in one round trip. It reports
// whether there is probably more, and how long until something is due else.
func (c *consumer) fetch(ctx context.Context) (more bool, next time.Duration, err error) {
	next = pollInterval
	var calls []call
	var asked []*shard
	var pending []bool
	for _, s := range c.owned() {
		next = min(next, c.again(s))
		cursor, left, room := c.room(s)
		if !room {
			continue
		}
		from := ">"
		if left {
			from = cursor.String()
		}
		asked, pending = append(asked, s), append(pending, left)
		calls = append(calls, call{
			[]string{s.stream, ownerKey(s.stream, c.subscription.Name)},
			[]string{c.driver.holder, number(s.lease.Epoch), c.subscription.Name, from, number(int64(s.batch))},
		})
	}
	if len(calls) == 0 {
		return false, next, nil
	}
	for n, result := range runAll(ctx, c.driver.client, read, calls) {
		s := asked[n]
		entries, failure := parseEntries(result)
		if failure != nil {
			err = c.readFailed(ctx, s, failure)
			continue
		}
		c.outage.Answered()
		again, failure := c.deliver(ctx, s, entries, pending[n])
		if failure != nil {
			err = failure
		}
		more = more || again
	}
	if err != nil {
		return false, next, fmt.Errorf("streams: subscription %s: %w", c.subscription.Name, err)
	}
	for _, s := range asked {
		s.mu.Lock()
		if !s.watched && !s.full && !s.gone {
			next = min(next, pollUnwatched)
		}
		s.mu.Unlock()
	}
	return more, next, nil
}

// readFailed says what a failed read means. An answer that was lost may have had
// entries, so what is pending is read before what is new.
func (c *consumer) readFailed(ctx context.Context, s *shard, failure error) error {
	s.mu.Lock()
	s.pending = true
	s.mu.Unlock()
	switch {
	case stale(failure):
		c.share.Lose([]driver.Lease{s.lease}, "another instance owns the shard")
		return nil
	case groupMissing(failure):
		return c.recreate(ctx, s)
	}
	return fmt.Errorf("read %s: %w", s.stream, failure)
}

// recreate makes a group that Redis lost, where everything before is finished.
// What was finished beyond that place comes again.
func (c *consumer) recreate(ctx context.Context, s *shard) error {
	c.mu.Lock()
	from := c.resume[s.stream]
	c.mu.Unlock()
	s.mu.Lock()
	if s.settled.compare(from) > 0 {
		from = s.settled
	}
	s.cursor, s.pending = from, false
	s.mu.Unlock()
	err := c.driver.client.Do(ctx, createGroup(c.driver.client, s.stream, c.subscription.Name, from)).Error()
	if err != nil && !groupExists(err) {
		return fmt.Errorf("group on %s: %w", s.stream, err)
	}
	if err := c.driver.declareGroup(ctx, s.channel, c.subscription.Name); err != nil {
		return err
	}
	c.sink.Report(driver.Report{Kind: driver.ReportWarning, Source: s.source,
		Text: fmt.Sprintf("the group on %s was lost (a flush or a failover): it goes on after %s, the last entry up to which everything was settled", s.stream, from)})
	c.wakeReader()
	return nil
}

// SourceOf implements [driver.Locator]: the stream that the event lay in, or that of
// its aggregate.
func (c *consumer) SourceOf(channel, key, position string) string {
	if end := strings.LastIndexByte(position, '/'); end > 0 && c.channels[position[:end]] != "" {
		return position[:end]
	}
	return c.driver.streamOf(channel, key)
}

func (c *consumer) owned() []*shard {
	c.mu.Lock()
	defer c.mu.Unlock()
	shards := make([]*shard, 0, len(c.shards))
	for _, s := range c.shards {
		shards = append(shards, s)
	}
	return shards
}

func (c *consumer) shard(stream string) *shard {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shards[stream]
}

// room returns where to read a shard on, whether that is among what is pending,
// and whether there is room for more.
func (c *consumer) room(s *shard) (cursor id, pending, room bool) {
	s.mu.Lock()
	resumed := s.full && len(s.inHand) <= c.maxEvents/2 && s.bytes <= c.maxBytes/2
	if resumed {
		s.full = false
	}
	events, bytes := c.maxEvents-len(s.inHand), c.maxBytes-s.bytes
	full := !s.full && (events <= 0 || bytes <= 0)
	s.full = s.full || full
	held := len(s.inHand)
	room = !s.full && !s.revoking && !s.gone
	cursor, pending = s.cursor, s.pending
	s.mu.Unlock()
	if resumed {
		c.sink.Report(driver.Report{Kind: driver.ReportResumed, Source: s.source})
	}
	if full {
		c.sink.Report(driver.Report{Kind: driver.ReportPaused, Source: s.source, Count: held,
			Text: "as many events as may be are fetched and not finished: nothing more of this shard is read until some are"})
	}
	// A batch grows with what entries were seen to weigh, so that the first of
	// large ones do not fill the memory.
	s.batch = max(1, min(readBatch, max(16, 4*s.batch), events, bytes/max(s.average, 1024)))
	return cursor, pending, room
}

// deliver hands entries of one shard to the engine, and reports whether there is
// probably more.
func (c *consumer) deliver(ctx context.Context, s *shard, entries []entry, pending bool) (more bool, err error) {
	var deliveries []driver.Delivery
	var trimmed, finished []string
	total := 0
	s.mu.Lock()
	for n := range entries {
		e := entries[n]
		if s.gone || s.revoking {
			break
		}
		if e.id.compare(s.cursor) > 0 {
			s.cursor = e.id
		}
		if known := s.byID[e.id]; known != nil { // the group was lost and made again
			if known.finished {
				finished = append(finished, e.id.String())
			}
			continue
		}
		if e.fields == nil {
			trimmed = append(trimmed, e.id.String())
			continue
		}
		p := &place{shard: s, entry: e}
		delivery := p.delivery()
		p.size = delivery.Size
		s.inHand = append(s.inHand, p)
		s.byID[e.id] = p
		s.bytes += p.size
		total += p.size
		deliveries = append(deliveries, delivery)
	}
	if len(deliveries) > 0 {
		s.average = (s.average + total/len(deliveries)) / 2
	}
	if pending && len(entries) < s.batch {
		s.pending = false
		more = true
	}
	more = more || len(entries) == s.batch
	s.mu.Unlock()
	if len(deliveries) > 0 {
		c.sink.Deliver(context.Background(), deliveries)
	}
	if trimmed != nil {
		c.sink.Report(driver.Report{Kind: driver.ReportIgnored, Source: s.source, Count: len(trimmed),
			Text: fmt.Sprintf("entries were deleted from %s before they were finished, the first %s", s.stream, trimmed[0])})
	}
	if gone := append(finished, trimmed...); len(gone) > 0 {
		return more, c.acknowledge(ctx, s, gone)
	}
	return more, nil
}

func (p *place) delivery() driver.Delivery {
	m, giveUp := p.entry.message(p.shard.channel)
	return driver.Delivery{Message: m, Ref: p, Source: p.shard.source, Time: p.entry.id.at(), GiveUp: giveUp}
}

// again delivers what was released and is due, and returns how long until the
// next is.
func (c *consumer) again(s *shard) (next time.Duration) {
	next = pollInterval
	var due []driver.Delivery
	now := time.Now()
	s.mu.Lock()
	kept := s.returned[:0]
	for _, r := range s.returned {
		if wait := r.due.Sub(now); wait > 0 {
			next = min(next, wait)
			kept = append(kept, r)
		} else if !s.gone && !s.revoking {
			r.waiting = false
			due = append(due, r.delivery())
		}
	}
	s.returned = kept
	s.mu.Unlock()
	if len(due) > 0 {
		c.sink.Deliver(context.Background(), due)
	}
	return next
}
