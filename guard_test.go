package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/memory"
)

// A database that is away for an hour makes no dead letters, and its handlers do
// not beat on it.
func TestAnOutageMakesNoDeadLetters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memory.New(&memory.Options{Async: true})
		counts := &count{}
		b := tidings.New(d, &tidings.Options{Logger: discard(), Observers: []tidings.Observer{counts}})
		var away atomic.Bool
		var calls, together, most atomic.Int64
		subscribe(t, b, "writer", &tidings.SubscribeOptions{MaxAttempts: 3, Backoff: tidings.Backoff{Initial: time.Second}}, numberChosen,
			func(context.Context, tidings.Event[numberPayload]) error {
				calls.Add(1)
				most.Store(max(most.Load(), together.Add(1)))
				defer together.Add(-1)
				pass(100 * time.Millisecond)
				if away.Load() {
					return errors.New("connection refused")
				}
				return nil
			})
		start(t, b)
		publish := func(from, to int) {
			for n := from; n < to; n++ {
				if err := b.Publish(t.Context(), numberChosen.New(fmt.Sprint("a", n%40), numberPayload{n})); err != nil {
					t.Fatal(err)
				}
			}
		}
		publish(0, 100)
		pass(time.Minute)
		away.Store(true)
		publish(100, 300)
		pass(time.Minute)
		if counts.of(tidings.GuardClosed) != 1 || b.Health().Subscriptions[0].Guarded < 30*time.Second {
			t.Fatalf("the guard: closed %d times, %+v", counts.of(tidings.GuardClosed), b.Health())
		}
		calls.Store(0)
		most.Store(0)
		pass(time.Hour)
		if n := calls.Load(); n < 45 || n > 90 || most.Load() != 1 {
			t.Errorf("in an hour of outage the handler was called %d times, %d at once", n, most.Load())
		}
		away.Store(false)
		pass(5 * time.Minute)
		synctest.Wait()
		if counts.of(tidings.Handled) != 300 || len(d.DeadLetters()) != 0 || counts.of(tidings.GuardOpened) != 1 {
			t.Errorf("%d handled, %d dead letters, opened %d times", counts.of(tidings.Handled), len(d.DeadLetters()), counts.of(tidings.GuardOpened))
		}
		if b.Health().Subscriptions[0].Guarded != 0 {
			t.Error("the guard is still closed")
		}
	})
}

// Poison does not close the guard: it is what dead letters are for.
func TestPoisonIsNoOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memory.New(&memory.Options{Async: true})
		counts := &count{}
		b := tidings.New(d, &tidings.Options{Logger: discard(), Observers: []tidings.Observer{counts}})
		subscribe(t, b, "reader", &tidings.SubscribeOptions{MaxAttempts: 2, Backoff: tidings.Backoff{Initial: time.Second}}, numberChosen,
			func(_ context.Context, e tidings.Event[numberPayload]) error {
				switch {
				case e.AggregateID() < "a5":
					return tidings.Permanent(errors.New("never"))
				case e.AggregateID() == "a7":
					return errors.New("not now")
				}
				return nil
			})
		start(t, b)
		for n := range 400 {
			if err := b.Publish(t.Context(), numberChosen.New(fmt.Sprint("a", n%10), numberPayload{n})); err != nil {
				t.Fatal(err)
			}
		}
		pass(time.Hour)
		synctest.Wait()
		if counts.of(tidings.GuardClosed) != 0 || len(d.DeadLetters()) != 240 {
			t.Errorf("closed %d times, %d dead letters", counts.of(tidings.GuardClosed), len(d.DeadLetters()))
		}
	})
}
