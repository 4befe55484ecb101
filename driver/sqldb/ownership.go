package sqldb

import (
	"context"
	"fmt"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/calls"
	"github.com/tidings-go/tidings/internal/outage"
	"github.com/tidings-go/tidings/internal/share"
	"github.com/tidings-go/tidings/internal/window"
	"github.com/tidings-go/tidings/outbox"
)

// revokeTime bounds how long handlers may finish what runs before a slot goes to
// another instance. The lease is renewed meanwhile.
const revokeTime = time.Minute

// newShare divides the slots of each channel among the instances.
func (c *consumer) newShare() *share.Share {
	names := make(map[string][]string) // by channel: each is divided among those that have it
	for _, channel := range c.subscription.Channels {
		for _, part := range outbox.Parts(channel) {
			names[channel] = append(names[channel], part.Name())
		}
	}
	return share.New(share.Options{
		Leases: asked{c.driver.options.Log, c.outage}, Group: c.group, Holder: c.driver.holder, Names: names, TTL: c.driver.options.LeaseTime,
		Adopt: c.adopt, Drain: c.drain, GiveUp: c.giveUp, Lost: c.lost,
		Joined: func() {
			c.outage.AnsweredAt(leases)
			c.sink.Joined() // it has its part, or stands by for one
		},
		Failed: func(err error) {
			c.outage.FailedAt(leases, fmt.Errorf("sqldb: subscription %s: %w", c.subscription.Name, err))
		},
		Stuck: c.stuck,
	})
}

// asked are leases whose answers are watched.
type asked struct {
	driver.Leases
	outage *outage.Outage
}

// Join implements [driver.Leases].
func (a asked) Join(ctx context.Context, group string, self driver.Member, ttl time.Duration) ([]driver.Member, error) {
	end := a.outage.Ask(leases)
	alive, err := a.Leases.Join(ctx, group, self, ttl)
	if err != nil {
		end(context.Canceled) // the share says whether that is a failure
	} else {
		end(nil)
	}
	return alive, err
}

// adopt begins with slots whose leases were given to this process.
func (c *consumer) adopt(ctx context.Context, leases []driver.Lease) error {
	byPart := make(map[outbox.Part]driver.Lease, len(leases))
	parts := make([]outbox.Part, 0, len(leases))
	for _, lease := range leases {
		part, ok := outbox.PartNamed(lease.Name)
		if !ok {
			return fmt.Errorf("the lease %q is no slot of a channel", lease.Name)
		}
		byPart[part] = lease
		parts = append(parts, part)
	}
	progress, err := calls.Until(ctx, func(ctx context.Context) ([]outbox.Progress, error) { return c.progress(ctx, parts) })
	if err != nil {
		return err
	}
	slots := make([]*slot, 0, len(leases))
	for _, p := range progress {
		lease := byPart[p.Part]
		slots = append(slots, &slot{
			part: p.Part, lease: lease, since: p.Since, cursor: p.Position,
			source: driver.Source{Name: p.Name(), Epoch: lease.Epoch},
			window: window.New(p.Position, window.Decode(p.Position, p.Finished), c.maxEvents),
		})
	}
	c.mu.Lock()
	for _, s := range slots {
		c.slots[s.part] = s
	}
	c.mu.Unlock()
	for _, s := range slots {
		c.sink.Report(driver.Report{Kind: driver.ReportAssigned, Source: s.source})
	}
	c.wakeReader()
	return nil
}

// progress reads where the subscription is in some parts. What somebody has deleted
// since it began, with the subscription or with the last type of a channel, begins
// anew.
func (c *consumer) progress(ctx context.Context, parts []outbox.Part) ([]outbox.Progress, error) {
	log := c.driver.options.Log
	progress, err := log.Progress(ctx, c.subscription.Name, parts)
	if err == nil && len(progress) < len(parts) {
		if _, err = log.Begin(ctx, c.subscription.Name, c.subscription.Channels, c.subscription.StartAt); err == nil {
			progress, err = log.Progress(ctx, c.subscription.Name, parts)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read positions: %w", err)
	}
	if len(progress) != len(parts) {
		return nil, fmt.Errorf("the database has positions for %d of %d slots", len(progress), len(parts))
	}
	return progress, nil
}

// drain lets a slot finish what runs.
func (c *consumer) drain(lease driver.Lease) {
	for _, s := range c.find([]driver.Lease{lease}) {
		s.mu.Lock()
		s.revoking = true
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), revokeTime)
		defer cancel()
		c.sink.Revoke(ctx, []driver.Source{s.source})
	}
}

// giveUp stores where the next owners of slots begin.
func (c *consumer) giveUp(leases []driver.Lease) {
	slots := c.find(leases)
	ctx, cancel := context.WithTimeout(context.Background(), c.driver.options.LeaseTime)
	defer cancel()
	_ = c.commit(ctx, slots) // else what is finished comes again to the next owner
	for _, s := range c.forget(leases) {
		c.sink.Report(driver.Report{Kind: driver.ReportRevoked, Source: s.source})
	}
}

// lost ends ownerships that are over already.
func (c *consumer) lost(leases []driver.Lease, why string) {
	slots := c.forget(leases)
	sources := make([]driver.Source, len(slots))
	for n, s := range slots {
		sources[n] = s.source
	}
	c.sink.Lose(sources)
	for _, source := range sources {
		c.sink.Report(driver.Report{Kind: driver.ReportLost, Source: source, Text: why})
	}
}

// find returns the ownerships behind leases.
func (c *consumer) find(leases []driver.Lease) (slots []*slot) {
	for _, lease := range leases {
		if part, ok := outbox.PartNamed(lease.Name); ok {
			if s := c.slot(part); s != nil && s.lease == lease {
				slots = append(slots, s)
			}
		}
	}
	return slots
}

// forget ends ownerships, and returns those that had not ended.
func (c *consumer) forget(leases []driver.Lease) (ended []*slot) {
	slots := c.find(leases)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range slots {
		s.mu.Lock()
		s.gone = true
		s.mu.Unlock()
		if c.slots[s.part] == s {
			delete(c.slots, s.part)
			ended = append(ended, s)
		}
	}
	return ended
}
