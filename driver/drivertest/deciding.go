package drivertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// letters waits for that many dead letters of the process, and returns what the
// driver has kept of them where that can be read.
func (s *scene) letters(p *process, count int) []driver.DeadLetter {
	s.Helper()
	s.eventually(fmt.Sprintf("%d dead letters", count), func() bool { return p.seen.count(tidings.DeadLettered) >= count }, nil)
	if s.broker.DeadLetters == nil {
		return nil
	}
	all := s.broker.DeadLetters(s.T)
	if len(all) != count {
		s.Fatalf("the driver has %d dead letters, %d were put there: %+v", len(all), count, all)
	}
	for _, letter := range all {
		if letter.FailedAt.IsZero() || !strings.HasPrefix(letter.Subscription, module+".") {
			s.Errorf("the dead letter says too little: %+v", letter)
		}
	}
	slices.SortFunc(all, func(a, b driver.DeadLetter) int { return strings.Compare(a.AggregateID, b.AggregateID) })
	return all
}

// calls remembers when a handler was called, by aggregate.
type calls struct {
	mu sync.Mutex
	at map[string][]time.Time
}

func (c *calls) add(aggregate string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at == nil {
		c.at = make(map[string][]time.Time)
	}
	c.at[aggregate] = append(c.at[aggregate], time.Now())
	return len(c.at[aggregate])
}

func (c *calls) count(aggregate string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.at[aggregate])
}

// waits returns the time between the calls.
func (c *calls) waits(aggregate string) (waits []time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := 1; n < len(c.at[aggregate]); n++ {
		waits = append(waits, c.at[aggregate][n].Sub(c.at[aggregate][n-1]))
	}
	return waits
}

// early is what two readings of a clock may differ by from a timer's.
const early = time.Millisecond

// late is how much longer than its backoff a retry may take on a busy machine.
const late = 2 * time.Second

func (s *scene) checkWaits(what string, got, want []time.Duration) {
	s.Helper()
	if len(got) != len(want) {
		s.Errorf("%s: %d waits %v, want %v", what, len(got), got, want)
		return
	}
	for n := range got {
		if got[n] < want[n]-early || got[n] > want[n]+s.scale(late) {
			s.Errorf("%s: wait %d was %v, want %v", what, n+1, got[n], want[n])
		}
	}
}

func retryTiming(s *scene) {
	var seen calls
	first := s.scale(40 * time.Millisecond)
	p := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "failing", tidings.SubscribeOptions{MaxAttempts: 5, Backoff: tidings.Backoff{Initial: first, Max: 3 * first, Multiplier: 2, Jitter: -1}}, stepTaken,
			func(_ context.Context, e tidings.Event[stepPayload]) error {
				seen.add(e.AggregateID() + fmt.Sprint(e.Payload().Number))
				if e.Payload().Number == 0 {
					return errors.New("the reason é")
				}
				return nil
			})
	})
	event := stepTaken.New("a", stepPayload{})
	p.publish(event, stepTaken.New("a", stepPayload{Number: 1}))
	letters := s.letters(p, 1)
	s.eventually("the next event of the aggregate is handled", func() bool { return seen.count("a1") > 0 }, nil)
	s.checkWaits("an event that always fails", seen.waits("a0"), []time.Duration{first, 2 * first, 3 * first, 3 * first})
	s.checkWaits("the event behind it", seen.waits("a1"), nil)
	if o := p.seen.of(tidings.DeadLettered)[0]; o.Reason != "exhausted" || o.Attempt != 5 || o.ID != event.ID() {
		s.Errorf("dead-lettered: %+v", o)
	}
	for _, letter := range letters {
		if letter.Reason != "exhausted" || letter.Attempts != 5 || letter.ID != event.ID() || letter.AggregateID != "a" ||
			letter.Channel != stepTaken.Type() || letter.Subscription != module+".failing" || letter.Err != "the reason é" {
			s.Errorf("dead letter %+v", letter)
		}
		if !s.features.Values && !strings.Contains(string(letter.Body), event.ID()) {
			s.Errorf("the dead letter of %s has body %q", event.ID(), letter.Body)
		}
		if s.features.Headers && !s.features.Values && letter.Headers.Get(driver.HeaderEventID) != event.ID() {
			s.Errorf("the dead letter has headers %v", letter.Headers)
		}
	}
}

func outcomes(s *scene) {
	var seen calls
	wait := s.scale(80 * time.Millisecond)
	p := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "outcomes", tidings.SubscribeOptions{MaxAttempts: 2, Backoff: s.steady(time.Millisecond)}, stepTaken,
			func(_ context.Context, e tidings.Event[stepPayload]) error {
				n := seen.add(e.AggregateID())
				switch e.AggregateID() {
				case "permanent":
					return fmt.Errorf("wrapped: %w", tidings.Permanent(errors.New("never")))
				case "panic":
					panic("out of my mind")
				case "after":
					if n == 1 {
						return tidings.RetryAfter(errors.New("later"), wait)
					}
				case "twice":
					if n == 1 {
						return errors.New("once more")
					}
				}
				return nil
			})
	})
	for _, aggregate := range []string{"after", "fine", "panic", "permanent", "twice"} {
		p.publish(stepTaken.New(aggregate, stepPayload{}))
	}
	letters := s.letters(p, 2)
	s.eventually("the others are handled", func() bool { return p.seen.count(tidings.Handled) == 3 }, nil)
	for aggregate, want := range map[string]int{"after": 2, "fine": 1, "panic": 2, "permanent": 1, "twice": 2} {
		if got := seen.count(aggregate); got != want {
			s.Errorf("the handler was called %d times for %s, want %d", got, aggregate, want)
		}
	}
	s.checkWaits("RetryAfter", seen.waits("after"), []time.Duration{wait})
	if len(letters) == 0 {
		return
	}
	if l := letters[0]; l.AggregateID != "panic" || l.Reason != "exhausted" || !strings.Contains(l.Err, "out of my mind") || !strings.Contains(l.Stack, "deciding.go") {
		s.Errorf("the dead letter of a panic: %+v", l)
	}
	if l := letters[1]; l.AggregateID != "permanent" || l.Reason != "permanent" || l.Attempts != 1 || l.Err != "wrapped: never" || l.Stack != "" {
		s.Errorf("the dead letter of a permanent failure: %+v", l)
	}
}

func block(s *scene) {
	l := newLedger()
	var mended atomic.Bool
	p := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "blocking", tidings.SubscribeOptions{MaxAttempts: 2, OnExhausted: tidings.Block, RequireOrder: true, Backoff: s.steady(3 * time.Millisecond)}, stepTaken,
			l.handler(func(_ context.Context, e tidings.Event[stepPayload]) error {
				if e.AggregateID() == "a" && e.Payload().Number == 1 && !mended.Load() {
					return tidings.Permanent(errNotYet)
				}
				return nil
			}))
	})
	p.publish(slices.Concat(l.steps("a", 4), l.steps("b", 4))...)
	s.eventually("the lane blocks, and is tried", func() bool { return p.seen.count(tidings.Blocked) > 3 }, l.String)
	s.eventually("the other lane flows", func() bool { return l.finishedOf("b") == 4 }, l.String)
	if n := l.finishedOf("a"); n != 1 {
		s.Errorf("%d events of the blocked lane are finished, want the one before", n)
	}
	mended.Store(true)
	l.audit(s)
	if n := p.seen.count(tidings.DeadLettered); n > 0 {
		s.Errorf("%d dead letters", n)
	}
}

func parkIsRefused(s *scene) {
	stores := []driver.Lanes{nil, &shelf{}}
	if s.features.Groups && !s.features.Sources { // any instance may be given its events
		stores = append(stores, &shelf{durable: true})
	}
	for _, store := range stores {
		p := s.declare(settings{options: tidings.Options{Lanes: store}}, func(b *tidings.Bus) {
			subscribe(s, b, "parking", tidings.SubscribeOptions{OnExhausted: tidings.Park}, stepTaken, newLedger().handler(nil))
		})
		s.refused(p, module+".parking", "park", "DeadLetter or Block", s.name)
	}
}

func onceAndRepeatable(s *scene) {
	var seen calls
	count := func(_ context.Context, e tidings.Event[stepPayload]) error {
		seen.add(e.Type() + " " + e.AggregateID())
		return nil
	}
	p := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "users", tidings.SubscribeOptions{}, userRegistered, count)
		subscribe(s, b, "steps", tidings.SubscribeOptions{}, stepTaken, count)
	})
	first, second := userRegistered.New("a", stepPayload{}), userRegistered.New("a", stepPayload{})
	repeated, again := stepTaken.New("a", stepPayload{}), stepTaken.New("a", stepPayload{})
	p.publish(first, second, repeated, again)
	p.publish(first, repeated)
	p.publish(userRegistered.New("b", stepPayload{}), stepTaken.New("b", stepPayload{}))
	suppressed := 3
	if s.features.Deduplication > 0 {
		suppressed = 1 // the broker has dropped the two that were published again
	}
	s.eventually("five events are handled and the others deduplicated", func() bool {
		return p.seen.count(tidings.Handled) >= 5 && p.seen.count(tidings.Deduplicated) >= suppressed
	}, func() string {
		return fmt.Sprintf("%d handled, %d deduplicated", p.seen.count(tidings.Handled), p.seen.count(tidings.Deduplicated))
	})
	for what, want := range map[string]int{
		userRegistered.Type() + " a": 1, userRegistered.Type() + " b": 1, stepTaken.Type() + " a": 2, stepTaken.Type() + " b": 1,
	} {
		if got := seen.count(what); got != want {
			s.Errorf("%s was handled %d times, want %d", what, got, want)
		}
	}
}

func handlerContext(s *scene) {
	type publisherKey struct{}
	timeout := s.scale(60 * time.Millisecond)
	type sight struct {
		err, cause error
		value      any
		delivery   tidings.Delivery
		began      time.Time
		ended      time.Time
	}
	sights := make(chan sight, 4)
	published, endPublisher := context.WithCancel(context.WithValue(context.Background(), publisherKey{}, "the publisher's"))
	defer endPublisher()
	p := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "waiting", tidings.SubscribeOptions{Timeout: timeout, MaxAttempts: 2, Backoff: s.steady(time.Millisecond)}, stepTaken,
			func(ctx context.Context, _ tidings.Event[stepPayload]) error {
				began := time.Now()
				delivery, _ := tidings.DeliveryFrom(ctx)
				if delivery.Attempt == 1 {
					endPublisher()
					<-ctx.Done()
				}
				sights <- sight{ctx.Err(), context.Cause(ctx), ctx.Value(publisherKey{}), delivery, began, time.Now()}
				return ctx.Err()
			})
	})
	// The handler ends it, perhaps before a broker has confirmed the publish: its
	// error, which another case looks at, is of no interest.
	_ = p.Publish(published, stepTaken.New("a", stepPayload{}))
	for attempt := range 2 {
		select {
		case got := <-sights:
			if got.value != nil {
				s.Error("the handler sees a value of the publisher's context")
			}
			if got.delivery.Attempt != attempt+1 || got.delivery.Subscription != module+".waiting" || got.delivery.Deadline.IsZero() {
				s.Errorf("DeliveryFrom: %+v", got.delivery)
			}
			// The deadline was set a little before the handler could look at its clock.
			given := got.delivery.Deadline.Sub(got.began)
			if attempt == 0 && (!errors.Is(got.err, context.DeadlineExceeded) || given > timeout || given < timeout/2 || got.ended.Before(got.delivery.Deadline.Add(-early))) {
				s.Errorf("the context of the first attempt ended after %v with %v, want its deadline after %v (%v when it began)", got.ended.Sub(got.began), got.err, timeout, given)
			}
			if attempt == 1 && got.err != nil {
				s.Errorf("the context of the second attempt has ended: %v", got.err)
			}
		case <-time.After(s.patience()):
			s.Fatal("the handler does not return")
		}
	}
	s.eventually("the event is handled", func() bool { return p.seen.count(tidings.Handled) == 1 }, nil)
}
