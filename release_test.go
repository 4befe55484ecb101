package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
)

// queueDriver is a broker that takes messages back for a while, as SQS does: a
// key with a message in flight or given back gives no other.
type queueDriver struct {
	features driver.Features
	giveUp   string // for every delivery

	mu       sync.Mutex
	messages []*queued
	returned []string // "id after", in the order of the settlements
	letters  []driver.DeadLetter
	sink     driver.Sink
}

type queued struct {
	driver.Message
	inFlight, finished bool
	visible            time.Time
	received           int
}

func (q *queued) Position() string { return q.ID }

func newQueue(ordered bool) *queueDriver {
	return &queueDriver{features: driver.Features{Durable: true, Ordered: ordered, Groups: true, FanOut: true, Headers: true, RedeliveryCount: true, MaxDelay: 12 * time.Hour}}
}

func (d *queueDriver) Name() string              { return "queue" }
func (d *queueDriver) Features() driver.Features { return d.features }
func (d *queueDriver) Close(context.Context) error {
	return nil
}

func (d *queueDriver) Publish(_ context.Context, messages []driver.Message) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range messages {
		m.Headers, m.Body = slices.Clone(m.Headers), slices.Clone(m.Body)
		d.messages = append(d.messages, &queued{Message: m})
	}
	return nil
}

func (d *queueDriver) Subscribe(_ context.Context, _ driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	d.sink = sink
	return &queueConsumer{d}, nil
}

func (d *queueDriver) PutDeadLetter(_ context.Context, letter driver.DeadLetter) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.letters = append(d.letters, letter)
	return nil
}

type queueConsumer struct{ *queueDriver }

func (c *queueConsumer) Close(context.Context) error { return nil }

func (c *queueConsumer) Run(ctx context.Context) error {
	c.sink.Joined()
	for ctx.Err() == nil {
		c.deliver(ctx)
		pass(100 * time.Millisecond)
	}
	return nil
}

func (d *queueDriver) deliver(ctx context.Context) { d.deliverTo(ctx, d.sink) }

func (d *queueDriver) deliverTo(ctx context.Context, sink driver.Sink) {
	d.mu.Lock()
	defer d.mu.Unlock()
	blocked := map[string]bool{}
	for _, m := range d.messages {
		if d.features.Ordered && !m.finished && (m.inFlight || m.visible.After(time.Now())) {
			blocked[m.Key] = true
		}
	}
	var batch []driver.Delivery
	for _, m := range d.messages {
		if m.finished || m.inFlight || blocked[m.Key] || m.visible.After(time.Now()) {
			continue
		}
		m.inFlight = true
		m.received++
		delivered := m.Message
		delivered.Key, delivered.ID, delivered.Type = "", "", ""
		batch = append(batch, driver.Delivery{Message: delivered, Ref: m, Attempt: m.received, GiveUp: d.giveUp})
	}
	if len(batch) > 0 {
		sink.Deliver(ctx, batch)
	}
}

func (c *queueConsumer) Settle(_ context.Context, settlements []driver.Settlement) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range settlements {
		m := s.Ref.(*queued)
		m.inFlight = false
		if s.Outcome == driver.Finished {
			m.finished = true
			continue
		}
		m.visible = time.Now().Add(s.After)
		c.returned = append(c.returned, fmt.Sprint(m.ID, " ", s.After))
	}
	return nil
}

func (d *queueDriver) returns() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.returned, ", ")
}

func (d *queueDriver) left() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.messages {
		if !m.finished {
			n++
		}
	}
	return n
}

// numbered is an event whose id is aggregate and number, for short tables.
func numbered(aggregate string, n int) tidings.DomainEvent {
	return numberChosen.New(aggregate, numberPayload{n}, tidings.WithID(fmt.Sprint(aggregate, n)))
}

// diary is what handlers did, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) add(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

func (d *diary) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.lines, " ")
}

func TestALongWaitIsTheBrokers(t *testing.T) {
	for _, ordered := range []bool{true, false} {
		t.Run(fmt.Sprint("ordered ", ordered), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newQueue(ordered)
				b := tidings.New(d, &tidings.Options{Logger: discard()})
				done := &diary{}
				subscribe(t, b, "reader", &tidings.SubscribeOptions{MaxAttempts: 3}, numberChosen, func(ctx context.Context, e tidings.Event[numberPayload]) error {
					at, _ := tidings.DeliveryFrom(ctx)
					done.add("%s/%d", e.ID(), at.Attempt)
					if e.ID() == "a1" {
						return tidings.RetryAfter(errors.New("not now"), time.Minute)
					}
					return nil
				})
				stop := start(t, b)
				if err := b.Publish(t.Context(), numbered("a", 1), numbered("a", 2), numbered("a", 3)); err != nil {
					t.Fatal(err)
				}
				pass(time.Second)
				synctest.Wait()
				wantReturned, wantFirst, wantAll := "a1 1m0s, a2 1m0s, a3 1m0s", "a1/1", "a1/1 a1/2 a1/3 a2/1 a3/1"
				if !ordered {
					wantReturned, wantFirst, wantAll = "a1 1m0s", "a1/1 a2/1 a3/1", "a1/1 a2/1 a3/1 a1/2 a1/3"
				}
				if d.returns() != wantReturned || done.String() != wantFirst {
					t.Errorf("returned %q after %q, want %q after %q", d.returns(), done, wantReturned, wantFirst)
				}
				pass(3 * time.Minute)
				synctest.Wait()
				if done.String() != wantAll {
					t.Errorf("handled %q, want %q", done, wantAll)
				}
				if len(d.letters) != 1 || d.letters[0].Attempts != 3 || d.left() != 0 {
					t.Errorf("dead letters %+v, %d left", d.letters, d.left())
				}
				stop()
			})
		})
	}
}

// A short wait is not worth the broker's calls.
func TestAShortWaitStaysInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newQueue(true)
		b := tidings.New(d, &tidings.Options{Logger: discard()})
		subscribe(t, b, "reader", &tidings.SubscribeOptions{MaxAttempts: 2}, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
			return tidings.RetryAfter(errors.New("not now"), time.Second)
		})
		start(t, b)
		if err := b.Publish(t.Context(), numbered("a", 1), numbered("a", 2)); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		synctest.Wait()
		if d.returns() != "" || len(d.letters) != 2 {
			t.Errorf("returned %q, dead letters %d", d.returns(), len(d.letters))
		}
	})
}

// What a stopping process does not start is another's at once, behind what it
// still runs.
func TestAStopGivesBackWhatIsNotStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newQueue(true)
		b := tidings.New(d, &tidings.Options{Logger: discard()})
		done := &diary{}
		subscribe(t, b, "reader", nil, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
			done.add("%s", e.ID())
			pass(10 * time.Second)
			if e.AggregateID() == "b" {
				return errors.New("failed while stopping")
			}
			return nil
		})
		stop := start(t, b)
		if err := b.Publish(t.Context(), numbered("a", 1), numbered("a", 2), numbered("a", 3), numbered("b", 1)); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		stop()
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.returned) != 3 || d.returned[0] != "a2 0s" || d.returned[1] != "a3 0s" || !strings.HasPrefix(d.returned[2], "b1 ") || !d.messages[0].finished {
			t.Errorf("returned %v, a1 finished: %v, handled %q", d.returned, d.messages[0].finished, done)
		}
	})
}

// An event for a newer release is the broker's too: an instance of that release
// may be there at any time. It uses no attempts.
func TestWhatCannotBeReadIsGivenBack(t *testing.T) {
	newer := tidings.Define[numberPayload]("numbers.number.chosen", 2, tidings.Repeatable, tidings.ReadableFrom(2), tidings.ReadsFrom(1))
	synctest.Test(t, func(t *testing.T) {
		d := newQueue(true)
		publisher := tidings.New(d, &tidings.Options{Logger: discard()})
		if err := publisher.Publish(t.Context(), newer.New("a", numberPayload{1}, tidings.WithID("a1"))); err != nil {
			t.Fatal(err)
		}
		old := tidings.New(d, &tidings.Options{Logger: discard()})
		subscribe(t, old, "reader", nil, numberChosen, nothing)
		stop := start(t, old)
		pass(40 * time.Second)
		synctest.Wait()
		if want := "a1 5s, a1 10s, a1 20s, a1 40s"; d.returns() != want {
			t.Errorf("returned %q, want %q", d.returns(), want)
		}
		stop()
		fresh := tidings.New(d, &tidings.Options{Logger: discard()})
		done := &diary{}
		subscribe(t, fresh, "reader", nil, newer, func(ctx context.Context, e tidings.Event[numberPayload]) error {
			at, _ := tidings.DeliveryFrom(ctx)
			done.add("%s/%d", e.ID(), at.Attempt)
			return nil
		})
		start(t, fresh)
		pass(time.Minute)
		synctest.Wait()
		if done.String() != "a1/1" || d.left() != 0 {
			t.Errorf("handled %q, %d left", done, d.left())
		}
	})
}

func TestWhatADriverGivesUpIsADeadLetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newQueue(false)
		d.giveUp = "unhandled"
		b := tidings.New(d, &tidings.Options{Logger: discard()})
		subscribe(t, b, "reader", nil, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
			t.Error("the handler has seen it")
			return nil
		})
		start(t, b)
		if err := b.Publish(t.Context(), numbered("a", 1), numberDoubled.New("a", numberPayload{2}, tidings.WithID("a2"))); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		synctest.Wait()
		if len(d.letters) != 2 || d.left() != 0 {
			t.Fatalf("%d dead letters, %d left", len(d.letters), d.left())
		}
		for n, letter := range d.letters {
			if letter.Reason != "unhandled" || letter.Err != "tidings: driver queue gave it up as unhandled" || letter.AggregateID != "a" || len(letter.Body) == 0 {
				t.Errorf("dead letter %d: %+v", n, letter)
			}
		}
	})
}

// On a driver that broadcasts somebody has to say who handles an event.
func TestBroadcastNeedsAnAnswer(t *testing.T) {
	run := func(d driver.Driver, options tidings.Options, subscription tidings.SubscribeOptions) string {
		options.Logger = discard()
		b := tidings.New(d, &options)
		subscribe(t, b, "reader", &subscription, numberChosen, nothing)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.Run(ctx); err != nil {
			return err.Error()
		}
		return ""
	}
	broadcast := func() driver.Driver {
		d := newQueue(false)
		d.features = driver.Features{Broadcast: true, FanOut: true}
		return d
	}
	shared := &durableClaims{}
	shared.states = map[string]string{}
	for name, c := range map[string]struct {
		driver       driver.Driver
		options      tidings.Options
		subscription tidings.SubscribeOptions
		want         []string
	}{
		"nothing said":               {broadcast(), tidings.Options{}, tidings.SubscribeOptions{}, []string{"numbers.reader", "EachInstance", "Options.Claims"}},
		"dedup turned off":           {broadcast(), tidings.Options{Claims: shared, WithoutDedup: true}, tidings.SubscribeOptions{}, []string{"EachInstance", "Options.Claims"}},
		"each instance":              {broadcast(), tidings.Options{}, tidings.SubscribeOptions{EachInstance: true}, nil},
		"shared claims":              {broadcast(), tidings.Options{Claims: shared}, tidings.SubscribeOptions{}, nil},
		"each instance of a group":   {newQueue(true), tidings.Options{}, tidings.SubscribeOptions{EachInstance: true}, []string{"EachInstance", "driver queue shares"}},
		"each instance of one":       {memory.New(nil), tidings.Options{}, tidings.SubscribeOptions{EachInstance: true}, nil},
		"each instance, and sharing": {broadcast(), tidings.Options{Claims: shared}, tidings.SubscribeOptions{EachInstance: true, RequireDedup: true}, []string{"RequireDedup"}},
	} {
		text := run(c.driver, c.options, c.subscription)
		if len(c.want) == 0 && text != "" {
			t.Errorf("%s: %s", name, text)
		}
		for _, part := range c.want {
			if !strings.Contains(text, part) {
				t.Errorf("%s: the complaint does not say %s: %s", name, part, text)
			}
		}
	}
}

// durableClaims says that it outlives the process.
type durableClaims struct{ sharedClaims }

func (*durableClaims) Durable() bool { return true }

// failingPublish refuses events of the engine's own a few times.
type failingPublish struct {
	*queueDriver
	failures int
}

func (d *failingPublish) Publish(ctx context.Context, messages []driver.Message) error {
	if messages[0].Type == tidings.HandlerFailed.Type() && d.failures > 0 {
		d.failures--
		return errors.New("the topic does not exist")
	}
	return d.queueDriver.Publish(ctx, messages)
}
