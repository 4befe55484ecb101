package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
)

func TestGoexitInTheLastAttemptFreesItsLane(t *testing.T) {
	d := memory.New(&memory.Options{Async: true})
	b := tidings.New(d, &tidings.Options{Logger: discard(), DrainTimeout: 2 * time.Second})
	var got atomic.Int64
	gate := make(chan struct{})
	subscribe(t, b, "bad", &tidings.SubscribeOptions{MaxAttempts: 1}, numberChosen,
		func(_ context.Context, e tidings.Event[numberPayload]) error {
			<-gate
			if e.Payload().Number == 1 {
				runtime.Goexit()
			}
			got.Add(1)
			return nil
		})
	start(t, b)
	_ = b.Publish(t.Context(), numberChosen.New("a", numberPayload{1}), numberChosen.New("a", numberPayload{2}))
	close(gate)
	waitFor(t, func() bool { return got.Load() == 1 }) // event 2, behind the dead letter of event 1
	_ = b.Publish(t.Context(), numberChosen.New("a", numberPayload{3}))
	waitFor(t, func() bool { return got.Load() == 2 })
	if letters := len(d.DeadLetters()); letters != 1 {
		t.Errorf("%d dead letters, want 1", letters)
	}
}

type slowClaims struct {
	sharedClaims
	wait time.Duration
}

func (c *slowClaims) Claim(ctx context.Context, r driver.ClaimRequest) (driver.ClaimAnswer, error) {
	pass(c.wait)
	return c.sharedClaims.Claim(ctx, r)
}

func TestNoHandlerStartsAfterRunHasReturned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		claims := &slowClaims{sharedClaims: sharedClaims{states: map[string]string{}}, wait: 10 * time.Second}
		d := memory.New(&memory.Options{Async: true})
		b := tidings.New(d, &tidings.Options{Logger: discard(), Claims: claims, DrainTimeout: 2 * time.Second})
		var ended atomic.Bool
		var startedAfter, alive atomic.Bool
		subscribe(t, b, "late", nil, numberChosen, func(ctx context.Context, e tidings.Event[numberPayload]) error {
			startedAfter.Store(ended.Load())
			alive.Store(ctx.Err() == nil)
			<-ctx.Done()
			return ctx.Err()
		})
		stop := start(t, b)
		_ = b.Publish(t.Context(), numberChosen.New("a", numberPayload{1}))
		stop()
		ended.Store(true)
		pass(20 * time.Second)
		synctest.Wait()
		if startedAfter.Load() {
			t.Errorf("a handler was started after Run returned, with a live context: %v", alive.Load())
		}
		pass(time.Minute)
	})
}

func TestAWaitingPublisherEndsWithABusThatCannotRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memory.New(&memory.Options{MaxEvents: 1})
		b := tidings.New(d, &tidings.Options{Logger: discard()})
		b.Module("numbers").Subscribe("none", nil)
		_ = b.Publish(t.Context(), numberChosen.New("a", numberPayload{1}))
		done := make(chan error, 1)
		go func() { done <- b.Publish(context.Background(), numberChosen.New("a", numberPayload{2})) }()
		synctest.Wait() // it waits for room
		if err := b.Run(t.Context()); err == nil {
			t.Error("Run has accepted a subscription without handlers")
		}
		if err := b.Close(t.Context()); err != nil {
			t.Errorf("Close: %v", err)
		}
		synctest.Wait()
		select {
		case err := <-done:
			if err == nil {
				t.Error("what nobody will ever handle was accepted")
			}
		default:
			t.Error("the publisher waits for ever for a bus that will never run")
		}
	})
}

func TestAHandlerPublishesWhileTheBoundIsReached(t *testing.T) {
	d := memory.New(&memory.Options{MaxEvents: 10})
	b := tidings.New(d, &tidings.Options{Logger: discard(), DrainTimeout: time.Second})
	var got atomic.Int64
	subscribe(t, b, "spawn", nil, numberChosen, func(ctx context.Context, e tidings.Event[numberPayload]) error {
		got.Add(1)
		if e.Payload().Number == 0 {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			err := b.Publish(ctx, numberChosen.New("x", numberPayload{99}))
			if err != nil {
				t.Errorf("with 15 free slots and 9 idle aggregates: %v", err)
			}
		}
		return nil
	})
	start(t, b)
	var events []tidings.DomainEvent
	for n := range 10 {
		events = append(events, numberChosen.New(fmt.Sprint("a", n), numberPayload{n}))
	}
	_ = b.Publish(t.Context(), events...)
}

func TestAHungHandlerHoldsNoOtherAggregate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard(), DrainTimeout: time.Second})
		var b2 atomic.Bool
		release := make(chan struct{})
		subscribe(t, b, "s", &tidings.SubscribeOptions{Timeout: time.Second}, numberChosen, func(ctx context.Context, e tidings.Event[numberPayload]) error {
			if e.AggregateID() == "a" {
				<-release
			}
			if e.Payload().Number == 2 {
				b2.Store(true)
			}
			return nil
		})
		start(t, b)
		go func() {
			_ = b.Publish(context.Background(), numberChosen.New("a", numberPayload{0}), numberChosen.New("b", numberPayload{1}))
		}()
		pass(time.Second)
		_ = b.Publish(t.Context(), numberChosen.New("b", numberPayload{2}))
		pass(time.Hour)
		synctest.Wait()
		if !b2.Load() {
			t.Error("aggregate b has waited an hour for a handler of aggregate a, with 15 slots free")
		}
		close(release)
	})
}

func TestDedupKeysDoNotCollide(t *testing.T) {
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard()})
	var got []int
	subscribe(t, b, "s", nil, numberChosen, func(ctx context.Context, e tidings.Event[numberPayload]) error {
		got = append(got, e.Payload().Number)
		return nil
	})
	start(t, b)
	_ = b.Publish(t.Context(), numberChosen.New("3", numberPayload{1}, tidings.WithID("1\n2")))
	_ = b.Publish(t.Context(), numberChosen.New("2\n3", numberPayload{2}, tidings.WithID("1")))
	if len(got) != 2 {
		t.Errorf("handled %v: the second is lost", got)
	}
}

func TestDeliveryFromIsSafeForConcurrentUse(t *testing.T) {
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard(), WithoutDedup: true})
	subscribe(t, b, "s", nil, numberChosen, func(ctx context.Context, e tidings.Event[numberPayload]) error {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { _, _ = tidings.DeliveryFrom(ctx) })
		}
		wg.Wait()
		return nil
	})
	start(t, b)
	for range 50 {
		_ = b.Publish(t.Context(), numberChosen.New("3", numberPayload{1}))
	}
}

type tagsPayload struct {
	Tags []string `json:"tags"`
}

var taggedTwice = tidings.Define[tagsPayload]("numbers.number.retagged", 1, tidings.Repeatable)

func TestAQueuedPayloadIsACopy(t *testing.T) {
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard()})
	e := taggedTwice.New("a", tagsPayload{[]string{"x"}})
	if err := b.Publish(t.Context(), e); err != nil { // before Run: held
		t.Fatal(err)
	}
	e.Payload().Tags[0] = "spoilt"
	got := make(chan string, 1)
	subscribe(t, b, "s", nil, taggedTwice, func(ctx context.Context, e tidings.Event[tagsPayload]) error {
		got <- e.Payload().Tags[0]
		return nil
	})
	start(t, b)
	if s := <-got; s != "x" {
		t.Errorf("handler sees %q", s)
	}
}

func TestTooLargeStoresNothing(t *testing.T) {
	d := memory.New(&memory.Options{MaxBytes: 2000})
	b := tidings.New(d, &tidings.Options{Logger: discard()})
	n := 0
	subscribe(t, b, "s", nil, taggedTwice, func(ctx context.Context, e tidings.Event[tagsPayload]) error { n++; return nil })
	start(t, b)
	err := b.Publish(t.Context(), taggedTwice.New("a", tagsPayload{[]string{"x"}}), taggedTwice.New("a", tagsPayload{[]string{strings.Repeat("x", 5000)}}))
	var failed *tidings.PublishError
	if errors.As(err, &failed) && (n != 0 || failed.Results[0].State == tidings.Stored) {
		t.Errorf("ErrTooLarge (%v) yet the first event was stored (handled %d): %v", errors.Is(err, tidings.ErrTooLarge), n, err)
	}
}

func TestASecondBusLeavesTheFirstAlone(t *testing.T) {
	d := memory.New(nil)
	one := tidings.New(d, &tidings.Options{Logger: discard()})
	subscribe(t, one, "s", nil, numberChosen, nothing)
	start(t, one)
	two := tidings.New(d, &tidings.Options{Logger: discard()})
	subscribe(t, two, "s2", nil, numberChosen, nothing)
	t.Log(two.Run(t.Context()))
	if err := one.Publish(t.Context(), numberChosen.New("a", numberPayload{})); err != nil {
		t.Errorf("the first bus, which runs: %v", err)
	}
}

type funcObserver func(o tidings.Observation)

func (f funcObserver) Observe(_ context.Context, o tidings.Observation) { f(o) }

func TestAnObserverThatPanicsLocksNoPublisher(t *testing.T) {
	once := true
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard(), Observers: []tidings.Observer{funcObserver(func(o tidings.Observation) {
		if o.Kind == tidings.Received && once {
			once = false
			panic("observer")
		}
	})}})
	subscribe(t, b, "s", nil, numberChosen, nothing)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _ = b.Run(ctx) }()
	_ = b.Ready(ctx)
	func() {
		defer func() { t.Log("recovered, as net/http does:", recover()) }()
		_ = b.Publish(ctx, numberChosen.New("a", numberPayload{1}))
	}()
	done := make(chan error, 1)
	go func() { done <- b.Publish(ctx, numberChosen.New("b", numberPayload{2})) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("every later Publish hangs: memory's lock is held for ever")
	}
}

func TestAnObserverThatPanicsKeepsNoSlot(t *testing.T) {
	for _, kind := range []tidings.Kind{tidings.Handled, tidings.Started, tidings.Deduplicated} {
		t.Run(kind.String(), func(t *testing.T) {
			var once atomic.Bool
			once.Store(true)
			var got atomic.Int64
			b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard(), Observers: []tidings.Observer{funcObserver(func(o tidings.Observation) {
				if o.Kind == kind && once.CompareAndSwap(true, false) {
					panic("observer")
				}
			})}})
			subscribe(t, b, "s", &tidings.SubscribeOptions{Concurrency: 1}, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
				got.Add(1)
				return nil
			})
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			go func() { _ = b.Run(ctx) }()
			_ = b.Ready(ctx)
			pub := func(e tidings.DomainEvent) {
				defer func() {
					if r := recover(); r != nil {
						t.Log("recovered, as net/http does:", r)
					}
				}()
				_ = b.Publish(ctx, e)
			}
			e := numberChosen.New("a", numberPayload{1})
			pub(e)
			pub(e)
			before := got.Load()
			pub(numberChosen.New("b", numberPayload{2}))
			waitFor(t, func() bool { return got.Load() > before }) // the only slot is free again
		})
	}
}

func TestACauseDoesNotHideContextCanceled(t *testing.T) {
	d := memory.New(&memory.Options{MaxEvents: 1})
	b := tidings.New(d, &tidings.Options{Logger: discard()})
	_ = b.Publish(t.Context(), numberChosen.New("a", numberPayload{1}))
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(errors.New("request gone")) })
	err := b.Publish(ctx, numberChosen.New("a", numberPayload{2}))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v is not context.Canceled", err)
	}
}

// A panic in code of the application that runs outside a handler makes one dead
// letter, not the end of the process.
func TestAPanicWhileReadingIsADeadLetter(t *testing.T) {
	v1 := tidings.Define[p1]("numbers.pair.divided", 1, tidings.Repeatable)
	v2 := tidings.Define[p2]("numbers.pair.divided", 2, tidings.Repeatable, tidings.From(v1, func(p p1) (p2, error) { return p2{A: 1 / p.A}, nil }),
		tidings.AggregateFrom(func(p p2) string { return []string{"x"}[p.B] }))
	broker := newRandomBroker()
	var got atomic.Int64
	b, _ := oneProcess(t, broker, nil, v2, func(context.Context, tidings.Event[p2]) error { got.Add(1); return nil })
	broker.mu.Lock()
	p := broker.partitions[0]
	p.messages = append(p.messages, driver.Message{Channel: "numbers.pair.divided", Body: []byte(`{"a":1,"b":7}`), Headers: driver.Headers{{Name: driver.HeaderEventVersion, Value: "2"}}})
	p.finished = append(p.finished, false)
	broker.mu.Unlock()
	if err := b.Publish(t.Context(), v1.New("x", p1{0}), v1.New("x", p1{1})); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return broker.unfinished() == 0 })
	if got.Load() != 1 || len(broker.letters) != 2 || broker.letters[0].Reason != "undecodable" || broker.letters[1].Reason != "undecodable" {
		t.Errorf("handled %d, dead letters %+v", got.Load(), broker.letters)
	}
}
