package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
	letters "github.com/tidings-go/tidings/store/memory"
)

// retryAll marks every open letter.
func retryAll(t *testing.T, store driver.DeadLetterStore) (keys []string) {
	t.Helper()
	open, err := store.ListDeadLetters(t.Context(), driver.DeadLetterFilter{State: driver.DeadLetterOpen}, "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range open {
		if marked, err := store.MarkDeadLetters(t.Context(), l.Subscription, []driver.DeadLetterMark{{Key: l.Key}}, driver.DeadLetterRetry, ""); err != nil || len(marked) != 1 {
			t.Fatalf("marked %v: %v", marked, err)
		}
		keys = append(keys, l.Key)
	}
	return keys
}

// told is every letter as "key state times".
func told(t *testing.T, store driver.DeadLetterStore) string {
	t.Helper()
	all, err := store.ListDeadLetters(t.Context(), driver.DeadLetterFilter{}, "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, l := range all {
		lines = append(lines, fmt.Sprint(strings.TrimPrefix(l.Key, "numbers.number.chosen/"), " ", l.State, " ", l.Times))
	}
	slices.Sort(lines)
	return strings.Join(lines, ", ")
}

var once = &tidings.SubscribeOptions{MaxAttempts: 1}

func TestAMarkedLetterIsHandled(t *testing.T) {
	for _, medium := range []string{"memory", "queue"} {
		t.Run(medium, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d driver.Driver = memory.New(nil)
				if medium == "queue" {
					d = newQueue(true)
				}
				store, counts := &letters.DeadLetters{}, &count{}
				b := tidings.New(d, &tidings.Options{Logger: discard(), DeadLetters: store, Observers: []tidings.Observer{counts}})
				var mended atomic.Bool
				got := &diary{}
				subscribe(t, b, "failing", once, numberChosen, func(ctx context.Context, e tidings.Event[numberPayload]) error {
					if !mended.Load() {
						return errors.New("no")
					}
					delivery, _ := tidings.DeliveryFrom(ctx)
					got.add("%s %d %v %v", e.ID(), delivery.Attempt, delivery.Retried, delivery.Redelivered)
					return nil
				})
				start(t, b)
				if err := b.Publish(t.Context(), numbered("a", 1), numbered("b", 1)); err != nil {
					t.Fatal(err)
				}
				pass(time.Minute)
				mended.Store(true)
				if got := told(t, store); got != "a1 open 1, b1 open 1" {
					t.Fatalf("letters %s", got)
				}
				if l, _ := store.GetDeadLetter(t.Context(), "numbers.failing", "numbers.number.chosen/a1"); len(l.Body) == 0 {
					t.Error("the letter has no bytes to look at")
				}
				retryAll(t, store)
				pass(time.Minute)
				synctest.Wait()
				entries := strings.Split(got.String(), " ")
				if len(entries) != 8 || !strings.Contains(got.String(), "a1 1 true false") || !strings.Contains(got.String(), "b1 1 true false") {
					t.Errorf("handled %q", got)
				}
				if got := told(t, store); got != "a1 resolved 1, b1 resolved 1" {
					t.Errorf("letters %s", got)
				}
				if counts.of(tidings.Redriven) != 2 || counts.of(tidings.Resolved) != 2 {
					t.Errorf("%d redriven, %d resolved", counts.of(tidings.Redriven), counts.of(tidings.Resolved))
				}
			})
		})
	}
}

// A letter that is tried again is one more item of its lane: behind what the lane
// has, and never beside another event of the aggregate.
func TestALetterRunsInItsLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, store := newQueue(false), &letters.DeadLetters{}
		b := tidings.New(d, &tidings.Options{Logger: discard(), DeadLetters: store})
		var mended atomic.Bool
		got := &diary{}
		var running atomic.Int64
		subscribe(t, b, "failing", &tidings.SubscribeOptions{MaxAttempts: 1, Timeout: time.Hour}, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
			if !mended.Load() {
				return errors.New("no")
			}
			if running.Add(1) > 1 {
				t.Errorf("%s runs beside another event of its aggregate", e.ID())
			}
			pass(30 * time.Second)
			running.Add(-1)
			got.add("%s", e.ID())
			return nil
		})
		start(t, b)
		if err := b.Publish(t.Context(), numbered("a", 1)); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		mended.Store(true)
		if err := b.Publish(t.Context(), numbered("a", 2), numbered("a", 3)); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		retryAll(t, store)
		pass(10 * time.Second) // it is in the lane by now
		if err := b.Publish(t.Context(), numbered("a", 4)); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Minute)
		if want := "a2 a3 a1 a4"; got.String() != want {
			t.Errorf("handled %q, want %q", got, want)
		}
		if got := told(t, store); got != "a1 resolved 1" {
			t.Errorf("letters %s", got)
		}
	})
}

// resolving notes what the store is told, and fails at first.
type resolving struct {
	*letters.DeadLetters
	notes    *diary
	failures atomic.Int64
}

func (r *resolving) ResolveDeadLetter(ctx context.Context, subscription, key string) error {
	r.notes.add("resolve")
	if r.failures.Add(-1) >= 0 {
		return errors.New("away")
	}
	return r.DeadLetters.ResolveDeadLetter(ctx, subscription, key)
}

func TestALetterIsResolvedAfterItIsHandled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		notes := &diary{}
		store := &resolving{DeadLetters: &letters.DeadLetters{}, notes: notes}
		store.failures.Store(2)
		b := tidings.New(newQueue(true), &tidings.Options{Logger: discard(), DeadLetters: store})
		var mended atomic.Bool
		subscribe(t, b, "failing", &tidings.SubscribeOptions{MaxAttempts: 2}, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
			if !mended.Load() {
				return errors.New("no")
			}
			notes.add("%s", e.ID())
			return nil
		})
		start(t, b)
		if err := b.Publish(t.Context(), numbered("a", 1)); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		mended.Store(true)
		retryAll(t, store)
		pass(10 * time.Second)
		if err := b.Publish(t.Context(), numbered("a", 2)); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		if want := "a1 resolve resolve resolve a2"; notes.String() != want {
			t.Errorf("%q, want %q", notes, want)
		}
	})
}

// What fails again is the same letter, and is announced once for each time.
func TestALetterDiesAgain(t *testing.T) {
	for _, policy := range []tidings.Policy{tidings.DeadLetter, tidings.Block} {
		synctest.Test(t, func(t *testing.T) {
			store := &letters.DeadLetters{}
			b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard(), DeadLetters: store, AnnounceFailures: true})
			subscribe(t, b, "failing", &tidings.SubscribeOptions{MaxAttempts: 2, OnExhausted: policy}, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
				return errors.New("still no")
			})
			announced := &diary{}
			subscribe(t, b, "listening", once, tidings.HandlerFailed, func(_ context.Context, e tidings.Event[tidings.HandlerFailedPayload]) error {
				announced.add("%s %d", e.Payload().EventID, e.Payload().Attempts)
				return nil
			})
			start(t, b)
			l := driver.DeadLetter{Subscription: "numbers.failing", Channel: numberChosen.Type(), Type: numberChosen.Type(), ID: "a1", AggregateID: "a", Reason: "exhausted", Err: "no",
				FailedAt: time.Now().Add(time.Hour), // by the clock of another instance
				Body:     []byte(`{"id":"a1","eventType":"numbers.number.chosen","version":1,"aggregateId":"a","occurredAt":"2026-01-02T03:04:05.000Z","payload":{"number":1}}`)}
			if err := store.PutDeadLetter(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			for n := range 2 {
				retryAll(t, store)
				pass(time.Minute)
				want := fmt.Sprintf("a1 open %d", n+2)
				if got := told(t, store); !strings.Contains(got, want) {
					t.Errorf("letters %s, want %s", got, want)
				}
			}
			if want := "a1 2 a1 2"; announced.String() != want {
				t.Errorf("announced %q, want %q", announced, want)
			}
			got, err := store.GetDeadLetter(t.Context(), "numbers.failing", l.Key())
			if err != nil || got.Err != "still no" || !got.FailedAt.After(l.FailedAt) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

// What this release cannot read stays marked, and what has no reaction any more
// dies again: neither is lost.
func TestALetterThatCannotBeHandledIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, counts := &letters.DeadLetters{}, &count{}
		b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard(), DeadLetters: store, Observers: []tidings.Observer{counts}})
		subscribe(t, b, "failing", once, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
			t.Error("it was handled")
			return nil
		})
		start(t, b)
		for _, l := range []driver.DeadLetter{
			{ID: "newer", Type: numberChosen.Type(), Body: []byte(`{"id":"newer","eventType":"numbers.number.chosen","version":2,"aggregateId":"a","occurredAt":"2026-01-02T03:04:05.000Z","payload":{"number":1}}`)},
			{ID: "gone", Type: "numbers.number.lost", Body: []byte(`{"id":"gone","eventType":"numbers.number.lost","version":1,"aggregateId":"b","occurredAt":"2026-01-02T03:04:05.000Z","payload":{"number":1}}`)},
			{ID: "topic/0/1", Body: []byte(`{`)},
		} {
			l.Subscription, l.Channel, l.FailedAt = "numbers.failing", numberChosen.Type(), time.Now()
			if err := store.PutDeadLetter(t.Context(), l); err != nil {
				t.Fatal(err)
			}
		}
		keys := retryAll(t, store)
		pass(4 * time.Minute)
		if got, want := told(t, store), "/topic/0/1 open 2, newer retry 1, numbers.number.lost/gone open 2"; got != want {
			t.Errorf("letters %s, want %s", got, want)
		}
		if n := counts.of(tidings.Held); n != 1 {
			t.Errorf("held %d times in four minutes", n)
		}
		pass(10 * time.Minute)
		if n := counts.of(tidings.Held); n < 2 {
			t.Error("nobody looks again")
		}
		for _, key := range keys { // it can still be given up
			if _, err := store.MarkDeadLetters(t.Context(), "numbers.failing", []driver.DeadLetterMark{{Key: key}}, driver.DeadLetterDiscarded, ""); err != nil {
				t.Fatal(err)
			}
		}
		if got := told(t, store); strings.Count(got, "discarded") != 3 {
			t.Errorf("letters %s", got)
		}
	})
}

// What has not begun when the bus stops is given back at once, marked as it was.
func TestLettersAreGivenBack(t *testing.T) {
	for _, durable := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var d driver.Driver = memory.New(nil)
			if durable {
				d = newQueue(true)
			}
			store := &letters.DeadLetters{}
			b := tidings.New(d, &tidings.Options{Logger: discard(), DeadLetters: store})
			var mended atomic.Bool
			subscribe(t, b, "failing", &tidings.SubscribeOptions{MaxAttempts: 2, Concurrency: 1}, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
				if !mended.Load() {
					return errors.New("no")
				}
				pass(10 * time.Second)
				return nil
			})
			stop := start(t, b)
			for n := range 5 {
				if err := b.Publish(t.Context(), numbered(fmt.Sprint("a", n), 1)); err != nil {
					t.Fatal(err)
				}
			}
			pass(time.Minute)
			mended.Store(true)
			retryAll(t, store)
			pass(5 * time.Second)
			stop()
			if got := told(t, store); strings.Count(got, "resolved") != 1 || strings.Count(got, "retry") != 4 {
				t.Errorf("letters %s", got)
			}
			taken, err := store.TakeDeadLetters(t.Context(), "numbers.failing", nil, 10, time.Minute)
			if err != nil || len(taken) != 4 || slices.ContainsFunc(taken, func(l driver.StoredDeadLetter) bool { return l.Interrupted }) {
				t.Errorf("%d can be taken, want 4: %v", len(taken), err)
			}
		})
	}
}

// Leases are renewed while a handler runs, however long.
func TestALetterInHandStaysLeased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &letters.DeadLetters{}
		b := tidings.New(newQueue(true), &tidings.Options{Logger: discard(), DeadLetters: store})
		subscribe(t, b, "slow", &tidings.SubscribeOptions{MaxAttempts: 1, Timeout: time.Hour}, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
			pass(10 * time.Minute)
			return nil
		})
		start(t, b)
		l := driver.DeadLetter{Subscription: "numbers.slow", Channel: numberChosen.Type(), Type: numberChosen.Type(), ID: "a1", AggregateID: "a", FailedAt: time.Now(),
			Body: []byte(`{"id":"a1","eventType":"numbers.number.chosen","version":1,"aggregateId":"a","occurredAt":"2026-01-02T03:04:05.000Z","payload":{"number":1}}`)}
		if err := store.PutDeadLetter(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		retryAll(t, store)
		pass(10 * time.Second)
		for range 8 {
			pass(time.Minute)
			if taken, err := store.TakeDeadLetters(t.Context(), "numbers.slow", nil, 10, time.Minute); err != nil || len(taken) > 0 {
				t.Fatalf("another could take it: %v", err)
			}
		}
		pass(5 * time.Minute)
		if got := told(t, store); got != "a1 resolved 1" {
			t.Errorf("letters %s", got)
		}
	})
}

// sourcedDriver is a queue whose aggregates lie in sources, of which each instance
// owns some.
type sourcedDriver struct {
	*queueDriver
	owned []string
}

type sourcedConsumer struct {
	queueConsumer
	owned []string
}

func (d *sourcedDriver) Subscribe(ctx context.Context, s driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	_, err := d.queueDriver.Subscribe(ctx, s, sink)
	return &sourcedConsumer{queueConsumer{d.queueDriver}, d.owned}, err
}

func (c *sourcedConsumer) SourceOf(_, key, _ string) string { return "source/" + key }

func (c *sourcedConsumer) Run(ctx context.Context) error {
	for _, name := range c.owned {
		c.sink.Report(driver.Report{Kind: driver.ReportAssigned, Source: driver.Source{Name: "source/" + name, Epoch: 1}})
	}
	c.sink.Joined()
	<-ctx.Done()
	return nil
}

// With sources, an aggregate is one instance's: nobody else tries its letters again,
// and when the source moves, they move.
func TestOnlyTheOwnerRunsALetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &letters.DeadLetters{}
		got := &diary{}
		instance := func(name string, owned ...string) *sourcedDriver {
			d := &sourcedDriver{newQueue(true), owned}
			d.features.Sources, d.features.MaxDelay = true, 0
			b := tidings.New(d, &tidings.Options{Logger: discard(), DeadLetters: store})
			subscribe(t, b, "failing", once, numberChosen, func(ctx context.Context, e tidings.Event[numberPayload]) error {
				delivery, _ := tidings.DeliveryFrom(ctx)
				got.add("%s:%s:%s", name, e.ID(), delivery.Source)
				return nil
			})
			start(t, b)
			return d
		}
		one := instance("one", "a", "b")
		instance("two", "c")
		put := func(aggregates ...string) {
			for _, a := range aggregates {
				l := driver.DeadLetter{Subscription: "numbers.failing", Channel: numberChosen.Type(), Type: numberChosen.Type(), ID: a + "1", AggregateID: a, FailedAt: time.Now(),
					Body: fmt.Appendf(nil, `{"id":"%s1","eventType":"numbers.number.chosen","version":1,"aggregateId":"%s","occurredAt":"2026-01-02T03:04:05.000Z","payload":{"number":1}}`, a, a)}
				if err := store.PutDeadLetter(t.Context(), l); err != nil {
					t.Fatal(err)
				}
			}
		}
		put("a", "b", "c", "d")
		retryAll(t, store)
		pass(time.Minute)
		entries := strings.Fields(got.String())
		slices.Sort(entries)
		if want := "[one:a1:source/a one:b1:source/b two:c1:source/c]"; fmt.Sprint(entries) != want {
			t.Errorf("handled %v, want %s", entries, want)
		}
		if got := told(t, store); !strings.Contains(got, "d1 retry 1") {
			t.Errorf("letters %s: what nobody owns waits", got)
		}
		one.sink.Report(driver.Report{Kind: driver.ReportAssigned, Source: driver.Source{Name: "source/d", Epoch: 1}})
		pass(time.Minute)
		if !strings.Contains(got.String(), "one:d1:source/d") {
			t.Errorf("handled %s", got)
		}
		one.sink.Lose([]driver.Source{{Name: "source/a", Epoch: 1}})
		put("a")
		retryAll(t, store)
		pass(time.Minute)
		if strings.Count(got.String(), "a1") != 1 {
			t.Errorf("handled %s: it is not the owner any more", got)
		}
	})
}

// Behind parked events a letter waits in its own store.
func TestALetterWaitsForAParkedLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &letters.DeadLetters{}
		b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard(), DeadLetters: store})
		var mended atomic.Bool
		got := &diary{}
		subscribe(t, b, "parking", &tidings.SubscribeOptions{MaxAttempts: 1, OnExhausted: tidings.Park, ParkBackoff: tidings.Backoff{Initial: time.Minute, Jitter: -1}}, numberChosen,
			func(_ context.Context, e tidings.Event[numberPayload]) error {
				if !mended.Load() {
					return errors.New("no")
				}
				got.add("%s", e.ID())
				return nil
			})
		start(t, b)
		l := driver.DeadLetter{Subscription: "numbers.parking", Channel: numberChosen.Type(), Type: numberChosen.Type(), ID: "a1", AggregateID: "a", FailedAt: time.Now(),
			Body: []byte(`{"id":"a1","eventType":"numbers.number.chosen","version":1,"aggregateId":"a","occurredAt":"2026-01-02T03:04:05.000Z","payload":{"number":1}}`)}
		if err := store.PutDeadLetter(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if err := b.Publish(t.Context(), numbered("a", 2), numbered("a", 3)); err != nil {
			t.Fatal(err)
		}
		retryAll(t, store)
		pass(10 * time.Second)
		if got.String() != "" || told(t, store) != "a1 retry 1" {
			t.Errorf("handled %q, letters %s", got, told(t, store))
		}
		mended.Store(true)
		pass(10 * time.Minute)
		if got.String() != "a2 a3 a1" || told(t, store) != "a1 resolved 1" {
			t.Errorf("handled %q, letters %s", got, told(t, store))
		}
	})
}

// Many letters that fail again are no outage: events go on.
func TestLettersDoNotCloseTheGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, counts := &letters.DeadLetters{}, &count{}
		b := tidings.New(newQueue(true), &tidings.Options{Logger: discard(), DeadLetters: store, Observers: []tidings.Observer{counts}})
		subscribe(t, b, "failing", once, numberChosen, func(context.Context, tidings.Event[numberPayload]) error { return errors.New("no") })
		start(t, b)
		for n := range 400 {
			l := driver.DeadLetter{Subscription: "numbers.failing", Channel: numberChosen.Type(), Type: numberChosen.Type(), ID: fmt.Sprint(n), AggregateID: fmt.Sprint("k", n), FailedAt: time.Now(),
				Body: fmt.Appendf(nil, `{"id":"%d","eventType":"numbers.number.chosen","version":1,"aggregateId":"k%d","occurredAt":"2026-01-02T03:04:05.000Z","payload":{"number":1}}`, n, n)}
			if err := store.PutDeadLetter(t.Context(), l); err != nil {
				t.Fatal(err)
			}
		}
		retryAll(t, store)
		pass(20 * time.Second)
		if n := counts.of(tidings.GuardClosed); n > 0 {
			t.Error("the guard closed")
		}
		if got := told(t, store); strings.Count(got, "open 2") != 400 {
			t.Errorf("%d died again, want 400", strings.Count(got, "open 2"))
		}
	})
}
