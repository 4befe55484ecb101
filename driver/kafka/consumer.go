package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/window"
)

// consumer fetches for one subscription. One client takes part in the group:
// its callbacks give and take partitions, Run polls it, the feeder delivers
// what had to wait, and Settle commits.
type consumer struct {
	driver       *Driver
	subscription driver.Subscription
	sink         driver.Sink
	client       *kgo.Client
	group        string
	topics       []string
	channels     map[string]string // by topic
	maxEvents    int
	maxBytes     int
	connections  connections
	partitions   partitions

	ownership sync.Mutex
	owned     map[string]map[int32]*partition
	epochs    map[string]int64 // by source name
	assigned  bool             // the first assignment has come

	closing atomic.Bool
	started chan struct{} // closed when client is set
	joins   sync.WaitGroup
	life    context.Context // ends with Close
	end     context.CancelFunc
	fatal   chan error // has room for one
	kick    chan struct{}

	committing chan struct{} // a lock that can be waited for with a context
	lastCommit time.Time     // guarded by committing

	// A poll that began before an assignment may return records of an earlier
	// ownership, so an assignment waits for a new round.
	round     sync.Mutex
	turned    *sync.Cond
	polling   bool
	rounds    int
	pollCtx   context.Context
	interrupt context.CancelFunc
}

// partition is one ownership of one partition.
type partition struct {
	consumer *consumer
	source   driver.Source
	topic    string
	channel  string
	number   int32

	// deliver is held while records become deliveries, so that calls of
	// Sink.Deliver for one source come one at a time and in order.
	deliver    sync.Mutex
	deliveries []driver.Delivery // reused

	mu        sync.Mutex
	window    *window.Window
	backlog   []*kgo.Record // polled and not delivered, because the window was full
	since     time.Time     // since when the backlog is not empty
	kept      int           // size of the backlog
	returned  []returned    // released and not delivered again yet
	paused    bool
	revoking  bool // nothing more is delivered; settling goes on
	gone      bool // no longer owned
	leader    int32
	version   int64     // changes of the window that a commit shows
	committed int64     // the version that was committed
	moved     time.Time // when the window was first seen ahead of its commit
	position  int64     // fetched from the broker, -1 for none
	fetched   bool
	epoch     int32 // of the leader, as committed
	metadata  string
}

// place is the driver's handle of one delivery.
type place struct {
	partition *partition
	record    *kgo.Record
	size      int
}

// returned is a released delivery that comes again.
type returned struct {
	*place
	due time.Time
}

// Position implements [driver.Ref].
func (p *place) Position() string {
	return p.partition.source.Name + "/" + strconv.FormatInt(p.record.Offset, 10)
}

// Run implements [driver.Consumer].
func (c *consumer) Run(ctx context.Context) error {
	if err := c.connect(); err != nil {
		return err
	}
	polls, stop := context.WithCancel(ctx)
	defer stop()
	var feeder sync.WaitGroup
	feeder.Go(func() { c.feed(polls) })
	feeder.Go(func() { c.keepLoop(polls) })
	if c.subscription.Unable != nil {
		feeder.Go(func() { c.standBack(polls) })
	}
	defer feeder.Wait()
	defer stop()
	defer c.client.PauseFetchTopics(c.topics...) // what the client would fetch now nobody takes
	for {
		c.beginRound(polls)
		fetches := c.client.PollFetches(c.pollCtx)
		if polls.Err() == nil {
			fetches.EachPartition(func(f kgo.FetchTopicPartition) {
				if len(f.Records) > 0 {
					if p := c.lookup(f.Topic, f.Partition); p != nil {
						p.accept(f.Records)
					}
				}
			})
		}
		c.endRound()
		if ctx.Err() != nil {
			return nil
		}
		select {
		case err := <-c.fatal:
			return err
		default:
		}
		var failure error
		fetches.EachError(func(topic string, number int32, err error) {
			if failure == nil {
				failure = c.verdict(topic, number, err)
			}
		})
		if failure != nil {
			return failure
		}
		if c.closing.Load() {
			return nil
		}
	}
}

// standBackEvery is how often it is looked whether the subscriber is able.
const standBackEvery = time.Second

// standBack leaves the partitions to other members while the subscriber has not been
// able to handle anything for longer than a session, and takes part again when it is.
// It stays in the group meanwhile, with no topic.
func (c *consumer) standBack(ctx context.Context) {
	look := time.NewTicker(standBackEvery)
	defer look.Stop()
	away := false
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
		unable := c.subscription.IsUnable(c.driver.options.SessionTimeout)
		if unable == away {
			continue
		}
		if away = unable; away {
			c.sink.Report(driver.Report{Kind: driver.ReportWarning, Text: "the partitions are left to other instances: a store that the handlers need does not answer here"})
			c.client.PurgeTopicsFromConsuming(slices.Clone(c.topics)...)
		} else {
			c.client.AddConsumeTopics(c.topics...)
		}
	}
}

// fail makes Run return an error.
func (c *consumer) fail(err error) {
	select {
	case c.fatal <- err:
	default:
	}
	c.round.Lock()
	defer c.round.Unlock()
	if c.interrupt != nil {
		c.interrupt()
	}
}

func (c *consumer) beginRound(ctx context.Context) {
	c.round.Lock()
	defer c.round.Unlock()
	c.polling = true
	if c.pollCtx == nil || c.pollCtx.Err() != nil {
		c.pollCtx, c.interrupt = context.WithCancel(ctx)
	}
}

func (c *consumer) endRound() {
	c.round.Lock()
	defer c.round.Unlock()
	c.polling = false
	c.rounds++
	c.turned.Broadcast()
}

// quiesce returns when no poll is under way that began before the call.
func (c *consumer) quiesce() {
	c.round.Lock()
	defer c.round.Unlock()
	if !c.polling {
		return
	}
	c.interrupt()
	for rounds := c.rounds; c.polling && c.rounds == rounds; {
		c.turned.Wait()
	}
}

func (c *consumer) lookup(topic string, number int32) *partition {
	c.ownership.Lock()
	defer c.ownership.Unlock()
	return c.owned[topic][number]
}

// verdict decides what an error of a poll means: nil to go on.
func (c *consumer) verdict(topic string, number int32, err error) error {
	where := fmt.Sprintf("subscription %s, partition %s/%d", c.subscription.Name, topic, number)
	loss, lost := errors.AsType[*kgo.ErrDataLoss](err)
	_, group := errors.AsType[*kgo.ErrGroupSession](err)
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, kgo.ErrClientClosed):
		return nil
	case errors.Is(err, kerr.OffsetOutOfRange):
		return fmt.Errorf("kafka: %s: the position %d is not in the log any more (retention passed it, or the topic was truncated or made anew): events were lost. "+
			"Nothing was skipped on its own; an operator decides and moves group %s, for example with kafka-consumer-groups --reset-offsets --to-earliest: %w",
			where, c.where(topic, number), c.group, err)
	case lost:
		return fmt.Errorf("kafka: %s: the log was cut behind offset %d (an unclean change of leader): events were lost. "+
			"An operator decides and moves group %s, for example with kafka-consumer-groups --reset-offsets: %w", where, loss.ConsumedTo, c.group, err)
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		return c.driver.explain(where, err)
	case group && errors.Is(err, kerr.GroupAuthorizationFailed):
		return c.driver.explain(fmt.Sprintf("subscription %s, group %s", c.subscription.Name, c.group), err)
	case group && errors.Is(err, kerr.FencedInstanceID):
		return fmt.Errorf("kafka: subscription %s: another process joined group %s with InstanceID %q: give each its own: %w", c.subscription.Name, c.group, c.driver.options.InstanceID, err)
	case group && errors.Is(err, kerr.InconsistentGroupProtocol):
		return fmt.Errorf("kafka: subscription %s: group %s has members that share partitions in another way: it must be of Tidings only: %w", c.subscription.Name, c.group, err)
	case group && errors.Is(err, kerr.InvalidSessionTimeout):
		return fmt.Errorf("kafka: subscription %s: the broker refuses Options.SessionTimeout %v (its group.min.session.timeout.ms and group.max.session.timeout.ms): %w", c.subscription.Name, c.driver.options.SessionTimeout, err)
	case group:
		return nil // the client joins again; an outage is told by its connections
	}
	c.sink.Report(driver.Report{Kind: driver.ReportWarning, Err: err, Text: "fetching " + where + " failed and is tried again"})
	return nil
}

// where is the position of a partition, for an error.
func (c *consumer) where(topic string, number int32) int64 {
	p := c.lookup(topic, number)
	if p == nil {
		return -1
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.window == nil {
		return -1
	}
	return p.window.Next
}

// feed delivers, outside of polls, what waited for room or was released.
func (c *consumer) feed(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.kick:
		case <-timer.C:
		}
		next := time.Hour
		for _, p := range c.all() {
			next = min(next, p.again())
		}
		if c.late(ctx) {
			next = min(next, lateCommit)
		}
		timer.Reset(next)
	}
}

// late commits windows that have waited for a settlement long enough. It
// reports whether one has to be looked at again.
func (c *consumer) late(ctx context.Context) (again bool) {
	now := time.Now()
	var due bool
	for _, p := range c.all() {
		p.mu.Lock()
		switch {
		case p.gone || p.revoking || p.version == p.committed:
			p.moved = time.Time{}
		case p.moved.IsZero():
			p.moved, again = now, true
		case now.Sub(p.moved) >= lateCommit:
			p.moved, due = time.Time{}, true
		default:
			again = true
		}
		p.mu.Unlock()
	}
	if due && c.commit(ctx, true) != nil {
		again = true // a later settlement tells; this one only saves it work
	}
	return again
}

func (c *consumer) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

func (c *consumer) all() []*partition {
	c.ownership.Lock()
	defer c.ownership.Unlock()
	var all []*partition
	for _, numbers := range c.owned {
		for _, p := range numbers {
			all = append(all, p)
		}
	}
	return all
}

// Close implements [driver.Consumer]: it leaves the group and commits nothing.
func (c *consumer) Close(ctx context.Context) error {
	c.ownership.Lock()
	again, client := c.closing.Swap(true), c.client
	c.ownership.Unlock()
	if again {
		return nil
	}
	c.end()
	var err error
	if client != nil {
		err = client.LeaveGroupContext(ctx)
		client.Close()
	}
	c.joins.Wait()
	c.connections.Close()
	c.driver.mu.Lock()
	if c.driver.subscribed[c.subscription.Name] == c {
		delete(c.driver.subscribed, c.subscription.Name)
	}
	c.driver.mu.Unlock()
	if err != nil && !errors.Is(err, kerr.UnknownMemberID) {
		return fmt.Errorf("kafka: subscription %s: leaving group %s: %w", c.subscription.Name, c.group, err)
	}
	return nil
}

// sourceName is "topic/partition".
func sourceName(topic string, number int32) string {
	var b strings.Builder
	b.WriteString(topic)
	b.WriteByte('/')
	b.WriteString(strconv.Itoa(int(number)))
	return b.String()
}
