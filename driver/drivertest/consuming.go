package drivertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tidings-go/tidings/driver"
)

const rawChannel = "conformance.raw.sent"

// catcher is an engine that only remembers what it was given.
type catcher struct {
	mu         sync.Mutex
	joined     chan struct{}
	once       sync.Once
	deliveries []driver.Delivery
}

var _ driver.Sink = (*catcher)(nil)

func (c *catcher) Joined() { c.once.Do(func() { close(c.joined) }) }

func (c *catcher) Deliver(_ context.Context, deliveries []driver.Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deliveries = append(c.deliveries, deliveries...)
}

func (c *catcher) Revoke(context.Context, []driver.Source) {}
func (c *catcher) Lose([]driver.Source)                    {}
func (c *catcher) Report(driver.Report)                    {}

func (c *catcher) got() []driver.Delivery {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.deliveries)
}

func (c *catcher) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.deliveries)
}

// consuming is a consumer that the suite runs itself.
type consuming struct {
	driver.Consumer
	scene  *scene
	driver driver.Driver
	sink   *catcher
	cancel context.CancelFunc
	ended  chan error

	released int // deliveries that were finished as they came
}

// prepare subscribes to the raw channel without running the consumer.
func (s *scene) prepare(d driver.Driver) *consuming {
	s.Helper()
	c := &consuming{scene: s, driver: d, sink: &catcher{joined: make(chan struct{})}, ended: make(chan error, 1)}
	ctx, cancel := s.limited()
	defer cancel()
	var err error
	c.Consumer, err = d.Subscribe(ctx, driver.Subscription{Name: module + ".raw", Channels: []string{rawChannel}, Types: []string{rawChannel},
		StartAt: driver.StartAt{Mode: driver.StartBeginning}}, c.sink)
	if err != nil {
		s.Fatalf("Subscribe: %v", err)
	}
	return c
}

// run runs the consumer and waits until it takes part.
func (c *consuming) run() *consuming {
	c.scene.Helper()
	if direct, ok := c.driver.(driver.Direct); ok {
		if err := direct.Start(context.Background()); err != nil {
			c.scene.Fatalf("Start: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	go func() { c.ended <- c.Run(ctx) }()
	c.scene.Cleanup(c.stop)
	select {
	case <-c.sink.joined:
	case <-time.After(c.scene.patience()):
		c.scene.Fatal("the consumer has not joined")
	}
	return c
}

func (c *consuming) stop() {
	if c.cancel == nil {
		return
	}
	c.cancel()
	c.cancel = nil
	if err := <-c.ended; err != nil {
		c.scene.Errorf("Consumer.Run: %v", err)
	}
	ctx, cancel := c.scene.limited()
	defer cancel()
	if err := c.Close(ctx); err != nil {
		c.scene.Errorf("Consumer.Close: %v", err)
	}
}

func (c *consuming) settle(outcome driver.Outcome, deliveries ...driver.Delivery) {
	c.scene.Helper()
	var all []driver.Settlement
	for _, d := range deliveries {
		all = append(all, driver.Settlement{Ref: d.Ref, Source: d.Source, Outcome: outcome})
	}
	ctx, cancel := c.scene.limited()
	defer cancel()
	if err := c.Settle(ctx, all); err != nil {
		c.scene.Errorf("Settle: %v", err)
	}
}

// release finishes what is delivered by now where a queue gives out no more of a
// key before that.
func (c *consuming) release() {
	if got := c.sink.got(); c.scene.features.MaxDelay > 0 && len(got) > c.released {
		c.settle(driver.Finished, got[c.released:]...)
		c.released = len(got)
	}
}

func (s *scene) limited() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), s.patience())
}

// raw makes messages that the driver has no need to understand.
func (s *scene) raw(key string, numbers ...int) []driver.Message {
	var all []driver.Message
	for _, n := range numbers {
		text := fmt.Sprint(key, "/", n)
		m := driver.Message{Channel: rawChannel, Type: rawChannel, Key: key, ID: text, Size: 100}
		if s.features.Values {
			m.Value = text
		} else {
			m.Body = []byte(text)
		}
		if s.features.Headers {
			m.Headers = driver.Headers{{Name: driver.HeaderEventID, Value: text}, {Name: "quote", Value: "„é\U0001F600“"}}
		}
		all = append(all, m)
	}
	return all
}

func rawText(d driver.Delivery) string {
	if text, ok := d.Value.(string); ok {
		return text
	}
	return string(d.Body)
}

func (s *scene) send(d driver.Driver, messages ...driver.Message) {
	s.Helper()
	ctx, cancel := s.limited()
	defer cancel()
	if err := d.Publish(ctx, messages); err != nil {
		s.Fatalf("Publish: %v", err)
	}
}

func deliverInOrder(s *scene)    { s.deliver(true) }
func deliverInAnyOrder(s *scene) { s.deliver(false) }

func (s *scene) deliver(inOrder bool) {
	const keys, each = 7, 40
	d := s.open()
	c := s.prepare(d).run()
	began := time.Now()
	var messages []driver.Message
	for n := range each {
		for key := range keys {
			messages = append(messages, s.raw(fmt.Sprint("key-", key), n)...)
		}
	}
	half := len(messages) / 2
	s.send(d, messages[:half]...)
	for _, m := range messages[half:] {
		s.send(d, m)
	}
	s.eventually("all messages are delivered", func() bool {
		c.release()
		return c.sink.count() >= len(messages)
	}, func() string { return fmt.Sprint(c.sink.count()) })
	next := make(map[string]int)
	positions := make(map[string]string)
	seen := make(map[string]bool)
	for _, got := range c.sink.got() {
		text := rawText(got)
		if seen[text] {
			s.Errorf("%s was delivered twice", text)
		}
		seen[text] = true
		var key, n int
		if _, err := fmt.Sscanf(text, "key-%d/%d", &key, &n); err != nil {
			s.Fatalf("a delivery has body %q and value %v, which nobody published", got.Body, got.Value)
		}
		lane := fmt.Sprint("key-", key)
		if inOrder && n != next[lane] {
			s.Errorf("%s was delivered where %s/%d was due", text, lane, next[lane])
		}
		next[lane] = n + 1
		s.checkDelivery(got, text, began)
		if p := got.Ref.Position(); p != "" {
			if other, taken := positions[p]; taken {
				s.Errorf("%s and %s have the same position %s", text, other, p)
			}
			positions[p] = text
		}
	}
	c.settle(driver.Finished, c.sink.got()...)
}

// checkDelivery compares what a driver says of a message with what is true.
func (s *scene) checkDelivery(got driver.Delivery, text string, began time.Time) {
	s.Helper()
	if got.Channel != rawChannel {
		s.Errorf("%s has channel %q, want %q", text, got.Channel, rawChannel)
	}
	if got.Ref == nil {
		s.Fatalf("%s has no Ref", text)
	}
	if s.features.Headers {
		if id, quote := got.Headers.Get(driver.HeaderEventID), got.Headers.Get("quote"); id != text || quote != "„é\U0001F600“" {
			s.Errorf("%s has headers %v", text, got.Headers)
		}
	}
	if (got.Attempt > 0) != s.features.RedeliveryCount {
		s.Errorf("%s has Attempt %d, and Features.RedeliveryCount is %t", text, got.Attempt, s.features.RedeliveryCount)
	}
	// The broker's clock may differ a little from this one.
	if age := got.Time.Sub(began); !got.Time.IsZero() && (age < -time.Minute || age > time.Since(began)+time.Minute) {
		s.Errorf("%s was stored at %v, which is %v after it was published", text, got.Time, age)
	}
}

func nothingBeforeRun(s *scene) {
	d := s.open()
	c := s.prepare(d)
	s.send(d, s.raw("key", 0, 1, 2)...)
	if n := c.sink.count(); n > 0 {
		s.Errorf("%d messages were delivered before Run", n)
	}
	c.run()
	s.send(d, s.raw("key", 3)...)
	want := 4
	if s.features.Broadcast {
		want = 1
	}
	s.eventually("what the driver keeps is delivered", func() bool {
		c.release()
		return c.sink.count() == want
	}, func() string { return fmt.Sprint(c.sink.count()) })
	c.settle(driver.Finished, c.sink.got()...)
}

func settleAgain(s *scene) {
	d := s.open()
	c := s.prepare(d).run()
	s.send(d, append(s.raw("key", 0), s.raw("other", 0)...)...)
	s.eventually("both are delivered", func() bool { return c.sink.count() == 2 }, nil)
	all := c.sink.got()
	c.settle(driver.Finished, all[0])
	if s.features.Durable { // elsewhere each settlement makes room, so the engine settles once
		c.settle(driver.Finished, all[0])
		c.settle(driver.Finished, all...)
	}
	if older := all[1]; older.Source.Name != "" {
		older.Source.Epoch--
		c.settle(driver.Finished, older)
		older.Source.Name += "-that-is-not-owned"
		c.settle(driver.Finished, older)
	}
	c.settle(driver.Finished, all[1])
}

func releasedComesAgain(s *scene) {
	d := s.open()
	c := s.prepare(d).run()
	s.send(d, append(s.raw("key", 0), s.raw("other", 0)...)...)
	s.eventually("both are delivered", func() bool { return c.sink.count() == 2 }, nil)
	first := c.sink.got()
	c.settle(driver.Finished, first[0])
	c.settle(driver.Released, first[1])
	s.eventually("what was released comes again", func() bool { return c.sink.count() >= 3 }, nil)
	again := c.sink.got()[2]
	if rawText(again) != rawText(first[1]) || again.Ref.Position() != first[1].Ref.Position() {
		s.Errorf("%s at %s was released, %s at %s came", rawText(first[1]), first[1].Ref.Position(), rawText(again), again.Ref.Position())
	}
	c.stop()

	d = s.open()
	c = s.prepare(d).run()
	s.eventually("it comes to the next process too", func() bool { return c.sink.count() >= 1 }, nil)
	if got := rawText(c.sink.got()[0]); got != rawText(again) {
		s.Errorf("the next process gets %s, want %s only", got, rawText(again))
	}
	c.settle(driver.Finished, c.sink.got()...)
	c.stop()

	d = s.open()
	c = s.prepare(d).run()
	s.send(d, s.raw("key", 2)...)
	s.eventually("the last one is delivered", func() bool { return c.sink.count() >= 1 }, nil)
	if got := rawText(c.sink.got()[0]); got != "key/2" {
		s.Errorf("%s came again after it was finished", got)
	}
	c.settle(driver.Finished, c.sink.got()...)
}

func closeDriver(s *scene) {
	d := s.open()
	s.send(d, s.raw("key", 0)...)
	ctx, cancel := s.limited()
	defer cancel()
	for n := range 2 {
		if err := d.Close(ctx); err != nil {
			s.Errorf("call %d of Close: %v", n+1, err)
		}
	}
	if err := d.Publish(ctx, s.raw("key", 1)); !errors.Is(err, driver.ErrClosed) {
		s.Errorf("Publish after Close: %v, want ErrClosed", err)
	}
	_, err := d.Subscribe(ctx, driver.Subscription{Name: module + ".raw", Channels: []string{rawChannel}, StartAt: driver.StartAt{Mode: driver.StartBeginning}},
		&catcher{joined: make(chan struct{})})
	if !errors.Is(err, driver.ErrClosed) {
		s.Errorf("Subscribe after Close: %v, want ErrClosed", err)
	}
	if checker, ok := d.(driver.Checker); ok {
		if err := checker.Check(ctx); !errors.Is(err, driver.ErrClosed) {
			s.Errorf("Check after Close: %v, want ErrClosed", err)
		}
	}
}
