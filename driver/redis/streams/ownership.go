package streams

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
)

// revokeTime bounds how long handlers may finish what runs before a shard goes to
// another instance. The lease is renewed meanwhile.
const revokeTime = time.Minute

// adopt begins with shards whose leases were given to this driver.
func (c *consumer) adopt(ctx context.Context, leases []driver.Lease) error {
	client := c.driver.client
	commands := make(rueidis.Commands, len(leases))
	for n, lease := range leases {
		commands[n] = client.B().XinfoGroups().Key(lease.Name).Build()
	}
	answers := client.DoMulti(ctx, commands...)
	shards := make([]*shard, len(leases))
	for n, lease := range leases {
		groups, err := groupsOf(answers[n])
		if err != nil {
			return fmt.Errorf("streams: subscription %s: %s: %w", c.subscription.Name, lease.Name, err)
		}
		s := &shard{
			stream: lease.Name, channel: c.channels[lease.Name], lease: lease,
			source:  driver.Source(lease),
			pending: groups[c.subscription.Name].pending > 0, byID: make(map[id]*place),
		}
		if !s.pending {
			s.cursor = groups[c.subscription.Name].delivered
		}
		settled, known := c.leases.recorded(lease.Name)
		c.mu.Lock()
		if known && settled.compare(c.resume[s.stream]) > 0 {
			c.resume[s.stream] = settled
		}
		c.mu.Unlock()
		shards[n] = s
	}
	c.mu.Lock()
	for _, s := range shards {
		c.shards[s.stream] = s
	}
	c.mu.Unlock()
	for _, s := range shards {
		c.sink.Report(driver.Report{Kind: driver.ReportAssigned, Source: s.source})
	}
	c.wakeReader()
	return nil
}

// drain lets a shard finish and settle what runs.
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

// giveUp ends ownerships in good order.
func (c *consumer) giveUp(leases []driver.Lease) {
	shards := c.find(leases)
	c.drop(shards)
	for _, s := range shards {
		c.sink.Report(driver.Report{Kind: driver.ReportRevoked, Source: s.source})
	}
}

// lost ends ownerships that are over already.
func (c *consumer) lost(leases []driver.Lease, why string) {
	shards := c.find(leases)
	c.drop(shards)
	sources := make([]driver.Source, len(shards))
	for n, s := range shards {
		sources[n] = s.source
		c.leases.drop(s.lease)
	}
	c.sink.Lose(sources)
	for _, source := range sources {
		c.sink.Report(driver.Report{Kind: driver.ReportLost, Source: source, Text: why})
	}
}

// find returns the ownerships behind leases.
func (c *consumer) find(leases []driver.Lease) []*shard {
	c.mu.Lock()
	defer c.mu.Unlock()
	var shards []*shard
	for _, lease := range leases {
		if s := c.shards[lease.Name]; s != nil && s.lease == lease {
			shards = append(shards, s)
		}
	}
	return shards
}

// drop ends ownerships, and remembers where a group would have to begin again.
func (c *consumer) drop(shards []*shard) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range shards {
		s.mu.Lock()
		s.gone = true
		if s.settled.compare(c.resume[s.stream]) > 0 {
			c.resume[s.stream] = s.settled
		}
		s.mu.Unlock()
		if c.shards[s.stream] == s {
			delete(c.shards, s.stream)
		}
	}
}
