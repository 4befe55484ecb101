package sqs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/outage"
)

// consumer is one subscription, on one queue or several.
type consumer struct {
	driver       *Driver
	subscription driver.Subscription
	sink         driver.Sink
	outage       *outage.Outage
	handles      map[string]bool // event types
	queues       []*queue
	settledAt    time.Time       // guarded by the engine, which settles from one goroutine
	life         context.Context // ends with Close
	end          context.CancelFunc

	delivering sync.Mutex // held while the sink is given deliveries
	mu         sync.Mutex
	ran        bool
	closed     bool
}

// outageAfter is how long SQS may not answer before that is reported.
const outageAfter = 2 * time.Second

// Subscribe implements [driver.Driver]. It finds or makes the queues, the topics
// they follow and the dead letter queues; the error has every complaint at once.
func (d *Driver) Subscribe(ctx context.Context, s driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	if !d.calls.Enter() {
		return nil, errClosed
	}
	defer d.calls.Leave()
	if s.Name == "" || len(s.Channels) == 0 {
		return nil, fmt.Errorf("sqs: subscription %q needs a name and at least one channel", s.Name)
	}
	c := &consumer{driver: d, subscription: s, sink: sink, outage: outage.New(sink, outageAfter, "SQS does not answer"), handles: make(map[string]bool)}
	for _, eventType := range s.Types {
		c.handles[eventType] = true
	}
	sources, err := d.sources(ctx, &s)
	if err != nil {
		return nil, fmt.Errorf("sqs: subscription %s: %w", s.Name, err)
	}
	c.life, c.end = context.WithCancel(context.WithoutCancel(ctx))
	d.mu.Lock()
	if d.subscribed[s.Name] != nil {
		d.mu.Unlock()
		c.end()
		return nil, fmt.Errorf("sqs: subscription %s exists already on this driver", s.Name)
	}
	d.subscribed[s.Name] = c
	var shared []string
	for _, source := range sources {
		q := d.queues[source.url]
		if q == nil {
			q = newQueue(d, source.url, source.channel)
			d.queues[source.url] = q
		}
		q.mu.Lock()
		if len(q.consumers) > 0 {
			shared = append(shared, q.name)
		}
		q.consumers = append(q.consumers, c)
		q.mu.Unlock()
		c.queues = append(c.queues, q)
	}
	d.mu.Unlock()
	for _, name := range shared {
		sink.Report(driver.Report{Kind: driver.ReportWarning,
			Text: "queue " + name + " has several subscriptions, which share redelivery: what one gives back comes again, after a restart to all of them; share a claims store, or use topics"})
	}
	return c, nil
}

// source is a queue to read.
type source struct {
	url     string
	channel string
}

func (d *Driver) sources(ctx context.Context, s *driver.Subscription) ([]source, error) {
	var found []source
	var errs []error
	seen := make(map[string]bool)
	read := func(queue *destination, channel string) {
		if seen[queue.url] {
			return
		}
		seen[queue.url] = true
		if err := d.dead(ctx, queue); err != nil {
			errs = append(errs, err)
		}
		found = append(found, source{queue.url, channel})
	}
	own := make(map[string]bool) // channels whose every type has a queue of the caller's
	for _, channel := range s.Channels {
		own[channel] = d.options.QueueURL != nil
	}
	for _, eventType := range s.Types {
		queue, err := d.resolve(ctx, eventType)
		switch {
		case err != nil:
			errs = append(errs, err)
		case queue != nil:
			read(queue, "")
		default:
			own[s.ChannelOf(eventType)] = false
		}
	}
	for _, channel := range s.Channels {
		if own[channel] && len(s.Types) > 0 {
			continue
		}
		queue, err := d.channelQueue(ctx, channel, s.Name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		read(queue, channel)
	}
	return found, errors.Join(errs...)
}

// channelQueue is the queue that has what is published to a channel: the channel's,
// or the subscription's behind the topic.
func (d *Driver) channelQueue(ctx context.Context, channel, subscription string) (*destination, error) {
	if d.options.Topics == nil {
		return d.queue(ctx, d.BrokerName(channel))
	}
	name := d.QueueName(channel, subscription)
	if len(name) > mostQueueName {
		return nil, fmt.Errorf("%q cannot be a queue: %d characters, and SQS takes %d", name, len(name), mostQueueName)
	}
	topic, err := d.topic(ctx, channel)
	if err != nil {
		return nil, err
	}
	queue, err := d.queue(ctx, name)
	if err != nil {
		return nil, err
	}
	return queue, d.follow(ctx, topic, queue)
}

// Run implements [driver.Consumer]. When it ends, the polls of its queues end too,
// also for other subscriptions on them.
func (c *consumer) Run(ctx context.Context) error {
	c.mu.Lock()
	ran := c.ran || c.closed
	c.ran = true
	c.mu.Unlock()
	if ran {
		return fmt.Errorf("sqs: subscription %s: Run is called once, and not after Close", c.subscription.Name)
	}
	for _, q := range c.queues {
		q.start()
	}
	c.sink.Joined()
	<-ctx.Done()
	for _, q := range c.queues {
		q.stop()
	}
	return nil
}

// Close implements [driver.Consumer]. The last one on a queue waits for its polls
// to end.
func (c *consumer) Close(ctx context.Context) error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if closed {
		return nil
	}
	c.end()
	d := c.driver
	var errs []error
	for _, q := range c.queues {
		q.stop()
		ended := make(chan struct{})
		go func() { // a poll ends by itself, soon
			q.polls.Wait()
			close(ended)
		}()
		select {
		case <-ended:
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("sqs: subscription %s: a poll of %s is still under way: %w", c.subscription.Name, q.name, context.Cause(ctx)))
			q.endPolls()
			<-ended
		}
		d.mu.Lock()
		q.mu.Lock()
		for n, other := range q.consumers {
			if other == c {
				q.consumers = append(q.consumers[:n:n], q.consumers[n+1:]...)
				break
			}
		}
		last := len(q.consumers) == 0
		q.mu.Unlock()
		if last && d.queues[q.url] == q {
			delete(d.queues, q.url)
		}
		d.mu.Unlock()
		if last {
			q.end()
			q.beats.Wait()
		}
	}
	d.mu.Lock()
	if d.subscribed[c.subscription.Name] == c {
		delete(d.subscribed, c.subscription.Name)
	}
	d.mu.Unlock()
	c.outage.Close()
	return errors.Join(errs...)
}
