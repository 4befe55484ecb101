package tidingstest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/tidings-go/tidings/driver"
)

// steps is the driver of a test: it keeps what is published per subscription and
// channel, and delivers one message when it is told to.
type steps struct {
	mu      sync.Mutex
	queues  []*queue
	held    []driver.Message // published before the bus ran
	running bool
	closed  bool
	letters []driver.DeadLetter
}

type queue struct {
	subscription, channel string
	sink                  driver.Sink
	messages              []driver.Message
}

type position string

// Position implements [driver.Ref].
func (p position) Position() string { return string(p) }

func (d *steps) Name() string { return "test" }

// Features has no Values: so every event passes the codec.
func (d *steps) Features() driver.Features {
	return driver.Features{Ordered: true, FanOut: true, Headers: true}
}

func (d *steps) Publish(_ context.Context, messages []driver.Message) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("tidingstest: %w", driver.ErrClosed)
	}
	for _, m := range messages {
		m.Headers = slices.Clone(m.Headers)
		if !d.running {
			d.held = append(d.held, m)
			continue
		}
		d.put(m)
	}
	return nil
}

func (d *steps) put(m driver.Message) {
	for _, q := range d.queues {
		if q.channel == m.Channel {
			q.messages = append(q.messages, m)
		}
	}
}

func (d *steps) Subscribe(_ context.Context, s driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, channel := range s.Channels {
		d.queues = append(d.queues, &queue{subscription: s.Name, channel: channel, sink: sink})
	}
	return &consumer{sink: sink}, nil
}

// begin ends the time in which messages are held.
func (d *steps) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running = true
	for _, m := range d.held {
		d.put(m)
	}
	d.held = nil
}

// deliver hands out the head of a queue that chance chooses; false when all are
// empty.
func (d *steps) deliver(random *rand.Rand) bool {
	d.mu.Lock()
	var full []*queue
	for _, q := range d.queues {
		if len(q.messages) > 0 {
			full = append(full, q)
		}
	}
	if len(full) == 0 {
		d.mu.Unlock()
		return false
	}
	q := full[random.IntN(len(full))]
	m := q.messages[0]
	q.messages = q.messages[1:]
	d.mu.Unlock()
	q.sink.Deliver(context.Background(), []driver.Delivery{{Message: m, Ref: position(q.channel + "/" + m.ID)}})
	return true
}

// subscriptions returns the names of all, sorted.
func (d *steps) subscriptions() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for _, q := range d.queues {
		names = append(names, q.subscription)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (d *steps) PutDeadLetter(_ context.Context, letter driver.DeadLetter) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.letters = append(d.letters, letter)
	return nil
}

func (d *steps) deadLetters() []driver.DeadLetter {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.letters)
}

func (d *steps) Close(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return nil
}

type consumer struct{ sink driver.Sink }

func (c *consumer) Run(ctx context.Context) error {
	c.sink.Joined()
	<-ctx.Done()
	return nil
}

func (c *consumer) Settle(context.Context, []driver.Settlement) error { return nil }
func (c *consumer) Close(context.Context) error                       { return nil }
