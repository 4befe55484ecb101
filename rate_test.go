package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/memory"
)

// MaxRate spaces attempts over all aggregates, retries included.
func TestMaxRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tidings.New(memory.New(&memory.Options{Async: true}), &tidings.Options{Logger: discard()})
		var mu sync.Mutex
		var starts []time.Time
		subscribe(t, b, "slow", &tidings.SubscribeOptions{MaxRate: 2, MaxAttempts: 2, Backoff: tidings.Backoff{Initial: time.Millisecond}}, numberChosen,
			func(ctx context.Context, e tidings.Event[numberPayload]) error {
				mu.Lock()
				defer mu.Unlock()
				starts = append(starts, time.Now())
				if at, _ := tidings.DeliveryFrom(ctx); e.Payload().Number == 0 && at.Attempt == 1 {
					return errors.New("once more")
				}
				return nil
			})
		start(t, b)
		began := time.Now()
		for n := range 10 {
			if err := b.Publish(t.Context(), numberChosen.New(fmt.Sprint("a", n%5), numberPayload{n})); err != nil {
				t.Fatal(err)
			}
		}
		pass(time.Minute)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(starts) != 11 {
			t.Fatalf("%d attempts, want 11", len(starts))
		}
		for n := 1; n < len(starts); n++ {
			if gap := starts[n].Sub(starts[n-1]); gap < 500*time.Millisecond {
				t.Errorf("attempt %d begins %v after the one before", n+1, gap)
			}
		}
		if took := starts[10].Sub(began); took > 6*time.Second {
			t.Errorf("11 attempts took %v at 2 a second", took)
		}
	})
}
