package sqldb

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/window"
	"github.com/tidings-go/tidings/outbox"
)

// revokeTime bounds how long handlers may finish what runs before a slot goes to
// another instance. The lease is renewed meanwhile.
const revokeTime = time.Minute

// shareEvery is the longest time between two looks at who is alive.
const shareEvery = time.Second

// share divides the slots: as many as there are instances that are alive, each
// its part. Above its part an instance gives slots up, below it takes what is
// free.
func (c *consumer) share(ctx context.Context) {
	every := min(c.driver.options.LeaseTime/3, shareEvery)
	failures := 0
	for {
		if err := c.divide(ctx); err != nil && ctx.Err() == nil {
			failures++
			c.outage.Failed(err)
			if !pause(ctx, min(backoff(failures), every)) {
				return
			}
			continue
		}
		failures = 0
		c.sink.Joined() // it has its part, or stands by for one
		if !pause(ctx, every) {
			return
		}
	}
}

func (c *consumer) divide(ctx context.Context) error {
	log, ttl := c.driver.options.Log, c.driver.options.LeaseTime
	alive, err := log.Join(ctx, c.group, c.driver.holder, ttl)
	if err != nil {
		return fmt.Errorf("sqldb: subscription %s: join: %w", c.subscription.Name, err)
	}
	part := (outbox.Slots + alive - 1) / max(alive, 1)
	owned := c.owned()
	if len(owned) > part {
		c.giveUp(owned[part:])
		return nil
	}
	if len(owned) == part {
		return nil
	}
	var names []string
	for n := range outbox.Slots {
		if !slices.ContainsFunc(owned, func(s *slot) bool { return s.number == n }) {
			names = append(names, strconv.Itoa(n))
		}
	}
	// A lease that was not renewed in time may still be this instance's in the
	// database, for nobody to use.
	if c.takeLost() {
		if err := log.Release(ctx, c.group, c.driver.holder, names); err != nil {
			c.setLost()
			return fmt.Errorf("sqldb: subscription %s: release: %w", c.subscription.Name, err)
		}
	}
	began := time.Now()
	leases, err := log.Acquire(ctx, c.group, c.driver.holder, names, part-len(owned), ttl)
	if err != nil {
		return fmt.Errorf("sqldb: subscription %s: acquire: %w", c.subscription.Name, err)
	}
	if len(leases) == 0 {
		return nil
	}
	if err := c.adopt(ctx, leases, began.Add(ttl)); err != nil {
		releasing, cancel := context.WithTimeout(context.WithoutCancel(ctx), ttl)
		defer cancel()
		_ = log.Release(releasing, c.group, c.driver.holder, leaseNames(leases)) // else they end by themselves
		return err
	}
	return nil
}

func leaseNames(leases []driver.Lease) []string {
	names := make([]string, len(leases))
	for n, lease := range leases {
		names[n] = lease.Name
	}
	return names
}

// adopt begins with slots whose leases were given to this process.
func (c *consumer) adopt(ctx context.Context, leases []driver.Lease, until time.Time) error {
	byNumber := make(map[int]driver.Lease, len(leases))
	numbers := make([]int, 0, len(leases))
	for _, lease := range leases {
		n, err := strconv.Atoi(lease.Name)
		if err != nil {
			return fmt.Errorf("sqldb: subscription %s: the lease %q is no slot", c.subscription.Name, lease.Name)
		}
		byNumber[n] = lease
		numbers = append(numbers, n)
	}
	progress, err := c.driver.options.Log.Progress(ctx, c.subscription.Name, numbers)
	if err != nil {
		return fmt.Errorf("sqldb: subscription %s: read positions: %w", c.subscription.Name, err)
	}
	if len(progress) != len(leases) {
		return fmt.Errorf("sqldb: subscription %s: the database has positions for %d of %d slots", c.subscription.Name, len(progress), len(leases))
	}
	slots := make([]*slot, 0, len(leases))
	for _, p := range progress {
		lease := byNumber[p.Slot]
		slots = append(slots, &slot{
			number: p.Slot, lease: lease, since: p.Since, until: until, cursor: p.Position,
			source: driver.Source{Name: sourceName(lease.Name), Epoch: lease.Epoch},
			window: window.New(p.Position, window.Decode(p.Position, p.Finished), c.maxEvents),
		})
	}
	c.mu.Lock()
	for _, s := range slots {
		c.slots[s.number] = s
	}
	c.mu.Unlock()
	for _, s := range slots {
		c.sink.Report(driver.Report{Kind: driver.ReportAssigned, Source: s.source})
	}
	c.wakeReader()
	return nil
}

// giveUp hands slots over in good order.
func (c *consumer) giveUp(slots []*slot) {
	sources := make([]driver.Source, len(slots))
	names := make([]string, len(slots))
	for n, s := range slots {
		s.mu.Lock()
		s.revoking = true
		s.mu.Unlock()
		sources[n], names[n] = s.source, s.lease.Name
	}
	ctx, cancel := context.WithTimeout(context.Background(), revokeTime)
	defer cancel()
	c.sink.Revoke(ctx, sources)
	ctx, cancel = context.WithTimeout(context.Background(), c.driver.options.LeaseTime)
	defer cancel()
	if err := c.commit(ctx, slots); err != nil {
		c.outage.Failed(err) // what is finished comes again to the next owner
	}
	c.forget(slots)
	if err := c.driver.options.Log.Release(ctx, c.group, c.driver.holder, names); err != nil {
		c.outage.Failed(err) // they end by themselves
	}
	for _, source := range sources {
		c.sink.Report(driver.Report{Kind: driver.ReportRevoked, Source: source})
	}
}

func (c *consumer) forget(slots []*slot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range slots {
		s.mu.Lock()
		s.gone = true
		s.mu.Unlock()
		if c.slots[s.number] == s {
			delete(c.slots, s.number)
		}
	}
}

func (c *consumer) setLost() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost = true
}

func (c *consumer) takeLost() (lost bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	lost, c.lost = c.lost, false
	return lost
}

// lose ends ownerships that are over already.
func (c *consumer) lose(why string, slots ...*slot) {
	c.mu.Lock()
	var lost []*slot
	for _, s := range slots {
		if c.slots[s.number] == s {
			lost = append(lost, s)
		}
	}
	c.mu.Unlock()
	if len(lost) == 0 {
		return
	}
	c.forget(lost)
	c.setLost()
	sources := make([]driver.Source, len(lost))
	for n, s := range lost {
		sources[n] = s.source
	}
	c.sink.Lose(sources)
	for _, source := range sources {
		c.sink.Report(driver.Report{Kind: driver.ReportLost, Source: source, Text: why})
	}
}

// renew keeps the leases until ctx ends. A lease that could not be renewed in
// its time is over, whether the database says so or not.
func (c *consumer) renew(ctx context.Context) {
	ttl := c.driver.options.LeaseTime
	for wait := ttl / 4; pause(ctx, wait); {
		owned := c.owned() // what is acquired meanwhile is not missing
		began := time.Now()
		// A slow database is asked for as long as its answer is of use.
		asking, cancel := context.WithDeadline(ctx, c.firstEnd(owned, began.Add(ttl/2)).Add(-ttl/8))
		leases, err := c.driver.options.Log.Renew(asking, c.group, c.driver.holder, ttl)
		cancel()
		if ctx.Err() != nil {
			return
		}
		wait = ttl / 4
		if err != nil {
			c.outage.Failed(fmt.Errorf("sqldb: subscription %s: renew: %w", c.subscription.Name, err))
			wait = ttl / 20
		}
		var over []*slot
		c.mu.Lock()
		for _, s := range owned {
			switch {
			case err == nil && slices.Contains(leases, s.lease):
				s.until = began.Add(ttl)
			case err == nil || !time.Now().Add(ttl/6).Before(s.until): // else it would be noticed too late
				over = append(over, s)
			}
		}
		c.mu.Unlock()
		c.lose("the lease ended before it was renewed", over...)
	}
}

// firstEnd is when the first of the leases ends, at the latest the time given.
func (c *consumer) firstEnd(slots []*slot, end time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range slots {
		if s.until.Before(end) {
			end = s.until
		}
	}
	return end
}
