package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// sharedQueue is one queue for the drivers of several processes.
type sharedQueue struct {
	*queueDriver
}

func (q sharedQueue) Subscribe(_ context.Context, _ driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	return &sharedConsumer{queueConsumer(q), sink}, nil
}

type sharedConsumer struct {
	queueConsumer
	own driver.Sink
}

func (c *sharedConsumer) Run(ctx context.Context) error {
	c.own.Joined()
	for ctx.Err() == nil {
		c.deliverTo(ctx, c.own)
		pass(100 * time.Millisecond)
	}
	return nil
}

// TestOrderOnAQueueUnderRandomFailures is the promise where the broker takes
// events back: instances come and go, handlers fail and ask for long and short
// waits, and event n of an aggregate is finished before event n+1 first starts.
func TestOrderOnAQueueUnderRandomFailures(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		aggregates := rapid.IntRange(1, 6).Draw(rt, "aggregates")
		perAggregate := rapid.IntRange(1, 8).Draw(rt, "events of each")
		failing := rapid.IntRange(0, 60).Draw(rt, "failing percent")
		restarts := rapid.IntRange(0, 4).Draw(rt, "restarts")
		policy := rapid.SampledFrom([]tidings.Policy{tidings.DeadLetter, tidings.Block}).Draw(rt, "policy")
		var problems []string
		synctest.Test(t, func(t *testing.T) {
			problems = randomQueueRun(t, seed, aggregates, perAggregate, failing, restarts, policy)
		})
		if len(problems) > 0 {
			rt.Fatalf("%d problems, the first: %v", len(problems), problems[:min(5, len(problems))])
		}
	})
}

func randomQueueRun(t *testing.T, seed uint64, aggregates, perAggregate, failing, restarts int, policy tidings.Policy) (problems []string) {
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, 1))
	upTo := func(n int) int { mu.Lock(); defer mu.Unlock(); return random.IntN(n) }
	queue := newQueue(true)
	ended, running := map[string]int{}, map[string]int{}
	finished := map[string]bool{}
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	finish := func(aggregate, id string) {
		if finished[id] {
			problem("%s was finished twice", id)
		}
		finished[id] = true
		ended[aggregate]++
	}
	witness := observerFunc(func(o tidings.Observation) {
		if o.Kind == tidings.DeadLettered {
			mu.Lock()
			defer mu.Unlock()
			finish(o.AggregateID, o.ID)
		}
	})
	start := func() (*tidings.Bus, func()) {
		b := tidings.New(sharedQueue{queue}, &tidings.Options{Logger: discard(), DrainTimeout: time.Minute, Observers: []tidings.Observer{witness}})
		b.Module("numbers").Subscribe("property", &tidings.SubscribeOptions{
			Concurrency: 3, MaxAttempts: 3, OnExhausted: policy, Backoff: tidings.Backoff{Initial: time.Second, Max: 20 * time.Second},
		}, numberChosen.On(func(_ context.Context, e tidings.Event[numberPayload]) error {
			mu.Lock()
			if n := ended[e.AggregateID()]; n != e.Payload().Number {
				problem("%s starts while %d of its aggregate have ended", e.ID(), n)
			}
			if running[e.AggregateID()]++; running[e.AggregateID()] > 1 {
				problem("%s overlaps", e.ID())
			}
			mu.Unlock()
			pass(time.Duration(upTo(1500)) * time.Millisecond)
			chance := upTo(100)
			mu.Lock()
			defer mu.Unlock()
			running[e.AggregateID()]--
			switch {
			case chance < failing/3:
				return tidings.RetryAfter(errors.New("later"), 30*time.Second)
			case chance < failing:
				return errors.New("not now")
			}
			finish(e.AggregateID(), e.ID())
			return nil
		}))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx) }()
		if err := b.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		return b, func() {
			cancel()
			if err := <-done; err != nil {
				problem("Run: %v", err)
			}
		}
	}
	first, stopFirst := start()
	_, stopSecond := start()
	for n := range aggregates {
		for number := range perAggregate {
			if err := first.Publish(t.Context(), numbered(fmt.Sprint("aggregate-", n, "-"), number)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range restarts {
		pass(time.Duration(upTo(20_000)) * time.Millisecond)
		stopFirst()
		_, stopFirst = start()
	}
	for deadline := time.Now().Add(24 * time.Hour); queue.left() > 0 && time.Now().Before(deadline); {
		pass(time.Second)
	}
	stopFirst()
	stopSecond()
	mu.Lock()
	defer mu.Unlock()
	if want := aggregates * perAggregate; len(finished) != want {
		problem("%d of %d events are finished", len(finished), want)
	}
	return problems
}

// observerFunc is an observer that is one function.
type observerFunc func(tidings.Observation)

func (f observerFunc) Observe(_ context.Context, o tidings.Observation) { f(o) }
