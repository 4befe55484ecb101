package streams

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tidings-go/tidings/driver"
)

func stale(err error) bool { return strings.Contains(err.Error(), "STALE") }

// Settle implements [driver.Consumer]: what is finished is acknowledged, all
// shards in one round trip. A released event is delivered again by this consumer
// while it owns the shard, and by the next owner after it.
func (c *consumer) Settle(ctx context.Context, settlements []driver.Settlement) error {
	finished := make(map[*shard][]string)
	var order []*shard
	now := time.Now()
	for _, settled := range settlements {
		p, ok := settled.Ref.(*place)
		if !ok || p.shard.source != settled.Source || c.shard(p.shard.stream) != p.shard {
			continue
		}
		s := p.shard
		s.mu.Lock()
		switch {
		case s.gone:
		case settled.Outcome == driver.Finished:
			p.finish()
			if finished[s] == nil {
				order = append(order, s)
			}
			finished[s] = append(finished[s], p.entry.id.String())
		case !p.finished && !p.waiting:
			p.waiting = true
			s.returned = append(s.returned, returned{p, now.Add(settled.After)})
			c.wakeReader()
		}
		s.mu.Unlock()
	}
	if len(order) == 0 {
		return nil
	}
	calls := make([]call, len(order))
	for n, s := range order {
		calls[n] = c.settleCall(s, finished[s])
		s.mu.Lock()
		if s.full {
			c.wakeReader()
		}
		s.mu.Unlock()
	}
	var err error
	for n, result := range runAll(ctx, c.driver.client, settle, calls) {
		err = errors.Join(err, c.settleAnswered(order[n], result.Error()))
	}
	return err
}

func (c *consumer) settleCall(s *shard, ids []string) call {
	s.mu.Lock()
	settled := ""
	if s.settled != (id{}) {
		settled = s.settled.String()
	}
	s.mu.Unlock()
	return call{
		[]string{s.stream, ownerKey(s.stream, c.subscription.Name)},
		append([]string{c.driver.holder, number(s.lease.Epoch), c.subscription.Name, settled}, ids...),
	}
}

func (c *consumer) settleAnswered(s *shard, err error) error {
	switch {
	case err == nil:
		c.outage.Answered()
		return nil
	case stale(err):
		c.share.Lose([]driver.Lease{s.lease}, "another instance owns the shard")
		return nil
	}
	return fmt.Errorf("streams: subscription %s: settle %s: %w", c.subscription.Name, s.stream, err)
}

// acknowledge settles entries that nobody has in hand.
func (c *consumer) acknowledge(ctx context.Context, s *shard, ids []string) error {
	results := runAll(ctx, c.driver.client, settle, []call{c.settleCall(s, ids)})
	return c.settleAnswered(s, results[0].Error())
}

// finish marks an entry and moves what everything before is finished up to. The
// caller holds the shard's lock.
func (p *place) finish() {
	s := p.shard
	if p.finished {
		return
	}
	p.finished = true
	p.entry.fields = nil
	s.bytes -= p.size
	done := 0
	for done < len(s.inHand) && s.inHand[done].finished {
		s.settled = s.inHand[done].entry.id
		delete(s.byID, s.settled)
		s.inHand[done] = nil
		done++
	}
	s.inHand = s.inHand[done:]
}

// Close implements [driver.Consumer].
func (c *consumer) Close(ctx context.Context) error {
	c.driver.mu.Lock()
	if c.driver.subscribed[c.subscription.Name] == c {
		delete(c.driver.subscribed, c.subscription.Name)
	}
	c.driver.mu.Unlock()
	c.mu.Lock()
	stop := c.stop
	c.mu.Unlock()
	if stop == nil { // it never ran
		return nil
	}
	stop()
	c.renewals.Wait()
	c.outage.Close()
	c.drop(c.owned())
	if err := c.share.Leave(ctx); err != nil {
		return fmt.Errorf("streams: subscription %s: %w", c.subscription.Name, err)
	}
	return nil
}
