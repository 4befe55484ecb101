package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/outage"
)

// consumer receives for one subscription, on a connection of its own.
type consumer struct {
	driver       *Driver
	subscription driver.Subscription
	sink         driver.Sink
	outage       *outage.Outage
	maxEvents    int
	maxBytes     int
	topics       map[string]place // by Redis channel

	work sync.Mutex // held while deliveries are made

	mu     sync.Mutex
	events int // received and not finished
	bytes  int
	room   chan struct{} // closed when there is some again; nil while there is
	timers sync.WaitGroup
	life   context.Context // ends with Close
	end    context.CancelFunc
}

// place is what a Redis channel stands for.
type place struct{ channel, eventType string }

// reference is the handle of one delivery.
type reference struct {
	message  driver.Message
	at       time.Time
	finished bool // guarded by the consumer's lock
	waiting  bool
}

// Position implements [driver.Ref]: a message does not lie anywhere.
func (*reference) Position() string { return "" }

// Subscribe implements [driver.Driver].
func (d *Driver) Subscribe(ctx context.Context, s driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	if !d.calls.Enter() {
		return nil, errClosed
	}
	defer d.calls.Leave()
	if s.Name == "" || len(s.Channels) == 0 {
		return nil, fmt.Errorf("redis: subscription %q needs a name and at least one channel", s.Name)
	}
	if err := d.client.Do(ctx, d.client.B().Ping().Build()).Error(); err != nil {
		return nil, fmt.Errorf("redis: subscription %s: reaching Redis at %v: %w", s.Name, d.options.Client.InitAddress, err)
	}
	c := &consumer{
		driver: d, subscription: s, sink: sink,
		// A gap is one from its first moment: what is published meanwhile is lost.
		outage:    outage.New(sink, 0, "Redis pub/sub is disconnected: what is published until it is connected again is lost to this process"),
		maxEvents: cmp.Or(s.MaxEvents, d.options.MaxEvents), maxBytes: cmp.Or(s.MaxBytes, d.options.MaxBytes),
		topics: make(map[string]place),
	}
	c.life, c.end = context.WithCancel(context.WithoutCancel(ctx))
	for _, eventType := range s.Types {
		c.topics[d.topic(eventType)] = place{s.ChannelOf(eventType), eventType}
	}
	if len(s.Types) == 0 { // nothing is known but the channels
		for _, channel := range s.Channels {
			c.topics[d.topic(channel)] = place{channel, channel}
		}
	}
	return c, nil
}

// Run implements [driver.Consumer].
func (c *consumer) Run(ctx context.Context) error {
	failures := 0
	for ctx.Err() == nil {
		began := time.Now()
		err := c.receive(ctx)
		if ctx.Err() != nil {
			break
		}
		c.outage.Failed(fmt.Errorf("redis: subscription %s: %w", c.subscription.Name, err))
		if time.Since(began) > c.driver.options.ReconnectInterval {
			failures = 0
		}
		wait := min(50*time.Millisecond<<min(failures, 10), c.driver.options.ReconnectInterval)
		failures++
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	return nil
}

var errEnded = errors.New("the connection ended")

// farewell is how long what is on its way may take to arrive at the end.
const farewell = time.Second

// receive connects, subscribes and delivers until the connection breaks or ctx
// ends. Then it unsubscribes: what Redis had sent before is still delivered.
func (c *consumer) receive(ctx context.Context) error {
	own, release := c.driver.client.Dedicate()
	defer release()
	defer own.Close()
	ends, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	stop := context.AfterFunc(ctx, func() {
		defer own.Close()
		last, cancel := context.WithTimeout(ends, farewell)
		defer cancel()
		if own.Do(last, own.B().Unsubscribe().Build()).Error() == nil { // its channels, all of them
			<-last.Done()
		}
	})
	defer stop()
	topics := make([]string, 0, len(c.topics))
	for topic := range c.topics {
		topics = append(topics, topic)
	}
	// Redis confirms each channel by itself.
	var confirmed sync.Mutex
	left := make(map[string]bool)
	for _, topic := range topics {
		left[topic] = true
	}
	broken := own.SetPubSubHooks(rueidis.PubSubHooks{
		OnSubscription: func(s rueidis.PubSubSubscription) {
			confirmed.Lock()
			defer confirmed.Unlock()
			switch delete(left, s.Channel); {
			case s.Kind == "unsubscribe" && s.Count == 0:
				end()
			case s.Kind == "subscribe" && len(left) == 0:
				c.outage.Answered()
				c.sink.Joined()
			}
		},
		OnMessage: func(m rueidis.PubSubMessage) { c.deliver(ends, m) },
	})
	if err := own.Do(ctx, own.B().Subscribe().Channel(topics...).Build()).Error(); err != nil {
		return err
	}
	if err := <-broken; err != nil {
		return err
	}
	return errEnded
}

// deliver hands a message to the engine. It waits while as many as may be are not
// finished: then nothing more is read from the connection.
func (c *consumer) deliver(ctx context.Context, m rueidis.PubSubMessage) {
	c.work.Lock()
	defer c.work.Unlock()
	at, known := c.topics[m.Channel]
	if !known {
		return
	}
	if !c.admit(ctx, len(m.Message)) {
		return
	}
	r := &reference{at: time.Now(), message: driver.Message{
		Channel: at.channel, Type: at.eventType, Body: []byte(strings.Clone(m.Message)), Size: len(m.Message),
	}}
	c.sink.Deliver(context.Background(), []driver.Delivery{{Message: r.message, Ref: r, Time: r.at}})
}

// admit waits for room and takes it. It reports false when ctx ended first.
func (c *consumer) admit(ctx context.Context, size int) bool {
	told := false
	for {
		c.mu.Lock()
		if c.events == 0 || c.events < c.maxEvents && c.bytes+size <= c.maxBytes {
			c.events++
			c.bytes += size
			c.mu.Unlock()
			if told {
				c.sink.Report(driver.Report{Kind: driver.ReportResumed})
			}
			return true
		}
		if c.room == nil {
			c.room = make(chan struct{})
		}
		room, held := c.room, c.events
		c.mu.Unlock()
		if !told {
			told = true
			c.sink.Report(driver.Report{Kind: driver.ReportPaused, Count: held,
				Text: "as many events as may be are received and not finished: nothing more is read until some are; Redis closes the connection when its buffer is full"})
		}
		select {
		case <-room:
		case <-ctx.Done():
			return false
		}
	}
}

// Settle implements [driver.Consumer]. A released event is delivered again by this
// consumer while it lives, and by nobody else.
func (c *consumer) Settle(_ context.Context, settlements []driver.Settlement) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, settled := range settlements {
		r, ok := settled.Ref.(*reference)
		if !ok || r.finished || r.waiting {
			continue
		}
		if settled.Outcome == driver.Released {
			r.waiting = true
			c.timers.Go(func() { c.again(r, settled.After) })
			continue
		}
		r.finished = true
		c.events--
		c.bytes -= r.message.Size
		if c.room != nil && c.events <= c.maxEvents/2 && c.bytes <= c.maxBytes/2 {
			close(c.room)
			c.room = nil
		}
	}
	return nil
}

func (c *consumer) again(r *reference, after time.Duration) {
	timer := time.NewTimer(after)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.life.Done():
		return
	}
	c.mu.Lock()
	r.waiting = false
	c.mu.Unlock()
	c.work.Lock()
	defer c.work.Unlock()
	c.sink.Deliver(context.Background(), []driver.Delivery{{Message: r.message, Ref: r, Time: r.at}})
}

// Close implements [driver.Consumer].
func (c *consumer) Close(context.Context) error {
	c.end()
	c.timers.Wait()
	c.outage.Close()
	return nil
}
