package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/memory"
)

// Later events of a failed aggregate wait behind it, in order, while all other
// lanes flow; the head is tried again until it succeeds.
func TestParkKeepsTheLaneInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memory.New(nil)
		counts := &count{}
		b := tidings.New(d, &tidings.Options{Logger: discard(), Observers: []tidings.Observer{counts}})
		var mended atomic.Bool
		var got []string
		attempts := 0
		subscribe(t, b, "parking", &tidings.SubscribeOptions{
			RequireOrder: true, MaxAttempts: 2,
			Backoff:     tidings.Backoff{Initial: time.Second, Jitter: -1},
			ParkBackoff: tidings.Backoff{Initial: time.Minute, Max: time.Minute, Jitter: -1},
		}, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
			if e.AggregateID() == "a" && e.Payload().Number == 1 && !mended.Load() {
				attempts++
				return errors.New("broken")
			}
			got = append(got, fmt.Sprint(e.AggregateID(), e.Payload().Number))
			return nil
		})
		start(t, b)
		publish := func(aggregate string, number int) {
			t.Helper()
			if err := b.Publish(t.Context(), numberChosen.New(aggregate, numberPayload{number})); err != nil {
				t.Fatal(err)
			}
		}
		publish("a", 1)
		publish("a", 2)
		publish("b", 10)
		pass(5 * time.Second)
		synctest.Wait()
		publish("a", 3)
		publish("b", 11)
		synctest.Wait()
		if fmt.Sprint(got) != "[b10 b11]" || counts.of(tidings.Parked) != 3 {
			t.Errorf("handled %v, parked %d", got, counts.of(tidings.Parked))
		}
		if events, _ := d.Usage(); events != 0 {
			t.Errorf("%d events still count for the driver: parked ones must not hold its position", events)
		}
		pass(10 * time.Minute)
		synctest.Wait()
		if attempts < 11 || attempts > 13 {
			t.Errorf("%d attempts in ten minutes, want two and one a minute", attempts)
		}
		mended.Store(true)
		pass(time.Minute)
		synctest.Wait()
		publish("a", 4)
		synctest.Wait()
		if want := "[b10 b11 a1 a2 a3 a4]"; fmt.Sprint(got) != want {
			t.Errorf("handled %v, want %s", got, want)
		}
		if len(d.DeadLetters()) != 0 {
			t.Errorf("dead letters %v", d.DeadLetters())
		}
	})
}

// While the head fails, wave after wave of later events is parked and none of
// them is started.
func TestNothingOvertakesAParkedHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard()})
		var got []int
		failures := 5
		subscribe(t, b, "parking", &tidings.SubscribeOptions{
			OnExhausted: tidings.Park, MaxAttempts: 1,
			ParkBackoff: tidings.Backoff{Initial: 10 * time.Second, Max: 10 * time.Second},
		}, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
			if e.Payload().Number == 0 {
				if failures--; failures >= 0 {
					return errors.New("not yet")
				}
			}
			pass(100 * time.Millisecond)
			got = append(got, e.Payload().Number)
			return nil
		})
		start(t, b)
		for n := range 100 {
			go func() {
				pass(time.Duration(n) * time.Second)
				if err := b.Publish(context.Background(), numberChosen.New("a", numberPayload{n})); err != nil {
					t.Error(err)
				}
			}()
		}
		pass(10 * time.Minute)
		synctest.Wait()
		for n, number := range got {
			if number != n {
				t.Fatalf("handled %v: %d is in place %d", got, number, n)
			}
		}
		if len(got) != 100 {
			t.Errorf("%d of 100 were handled", len(got))
		}
	})
}

// On a durable driver the store in memory does not count: it would lose what the
// broker was told is finished.
func TestParkNeedsAStoreAsDurableAsTheDriver(t *testing.T) {
	b := tidings.New(&randomDriver{newRandomBroker()}, &tidings.Options{Logger: discard()})
	b.Module("numbers").Subscribe("parking", &tidings.SubscribeOptions{OnExhausted: tidings.Park}, numberChosen.On(nothing))
	if err := b.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "the store for them is in memory while driver random is durable") {
		t.Errorf("Run: %v", err)
	}
}
