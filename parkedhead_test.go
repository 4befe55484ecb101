package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/memory"
)

// What lies parked behind an event that could not be read is handled as its
// subscription says: where that is DeadLetter, the lane goes on without what fails.
func TestBehindAnUnreadableEventThePolicyIsTheSame(t *testing.T) {
	for name, fail := range map[string]func() error{
		"an error":                   func() error { return errors.New("broken") },
		"a permanent error":          func() error { return tidings.Permanent(errors.New("broken")) },
		"the end of its goroutine":   func() error { runtime.Goexit(); return nil },
		"a nil pointer for an error": func() error { return nilError() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v1 := tidings.Define[p1]("numbers.pair.made", 1, tidings.Repeatable)
				v2 := tidings.Define[p2]("numbers.pair.made", 2, tidings.Repeatable, tidings.ReadsFrom(1))
				broker, lanes, counts := newRandomBroker(), newFencedLanes(func() bool { return false }), &count{}
				b, stop := oneProcess(t, broker, &tidings.Options{Lanes: lanes, Observers: []tidings.Observer{counts}}, v1, func(context.Context, tidings.Event[p1]) error { return nil })
				if err := b.Publish(t.Context(), v2.New("x", p2{1, 0}), v1.New("x", p1{2}), v1.New("x", p1{3})); err != nil {
					t.Fatal(err)
				}
				pass(time.Minute)
				synctest.Wait()
				if counts.of(tidings.Parked) != 3 {
					t.Fatalf("%d events are parked, want three", counts.of(tidings.Parked))
				}
				stop()
				var got []int
				_, stop = oneProcess(t, broker, &tidings.Options{Lanes: lanes}, v2, func(_ context.Context, e tidings.Event[p2]) error {
					if e.Payload().A == 2 {
						return fail()
					}
					got = append(got, e.Payload().A)
					return nil
				})
				pass(time.Hour)
				synctest.Wait()
				if fmt.Sprint(got) != "[1 3]" {
					t.Errorf("the new release handled %v, want 1 and 3", got)
				}
				if len(broker.letters) != 1 || broker.letters[0].Err == "" {
					t.Errorf("dead letters %+v, want one with a text", broker.letters)
				}
				stop()
			})
		})
	}
}

// While the store of a handler's transaction is away, a parked event uses no attempt;
// and it is tried again soon after the store is back, not after ParkBackoff.
func TestAnOutageOfTheStoreCountsAgainstNoParkedEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var away, mended atomic.Bool
		var mu sync.Mutex
		var all []int
		attempts := func() []int {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(all)
		}
		var handled time.Time
		b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard()})
		reaction := tidings.NewReaction(numberChosen, func(ctx context.Context, _ tidings.Event[numberPayload]) error {
			d, _ := tidings.DeliveryFrom(ctx)
			mu.Lock()
			all = append(all, d.Attempt)
			mu.Unlock()
			switch {
			case away.Load():
				return fmt.Errorf("begin: %w", tidings.ErrUnavailable)
			case !mended.Load():
				return errors.New("broken")
			}
			mu.Lock()
			handled = time.Now()
			mu.Unlock()
			return nil
		}, tidings.OwnClaim)
		options := &tidings.SubscribeOptions{
			OnExhausted: tidings.Park, MaxAttempts: 2,
			Backoff:     tidings.Backoff{Initial: 100 * time.Millisecond, Jitter: -1},
			ParkBackoff: tidings.Backoff{Initial: 30 * time.Second, Max: time.Hour, Multiplier: 4, Jitter: -1},
		}
		b.Module("numbers").Subscribe("parking", options, reaction)
		start(t, b)
		if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{1})); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		synctest.Wait()
		if fmt.Sprint(attempts()) != "[1 2]" {
			t.Fatalf("attempts %v, want two until it is parked", attempts())
		}
		away.Store(true)
		pass(time.Hour)
		synctest.Wait()
		if tries := attempts(); tries[len(tries)-1] != 3 || len(tries) < 1000 {
			t.Errorf("after an hour without the store the attempt is number %d, of %d tries; want the third all the time", tries[len(tries)-1], len(tries))
		}
		away.Store(false)
		mended.Store(true)
		back := time.Now()
		pass(time.Minute)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if took := handled.Sub(back); handled.IsZero() || took > time.Second {
			t.Errorf("it was handled %v after the store was back, want a second at most", took)
		}
	})
}
