package tidingstest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/tidingstest"
)

// Under random failures, panics and waits Settle returns when the last event of
// every chain is handled, never earlier, and lanes keep their order.
func TestSettleIsExact(t *testing.T) {
	const aggregates, events, depth = 5, 4, 3
	for seed := range uint64(60) {
		b := tidingstest.NewBus(t, tidingstest.Seed(seed), tidingstest.Longest(10*365*24*time.Hour))
		random := rand.New(rand.NewPCG(seed, 1)) // handlers run one at a time
		last := make(map[string]int)             // by subscription and aggregate
		// Each question is asked again with a greater depth, then answered.
		oracle := b.Module("oracle")
		patient := &tidings.SubscribeOptions{MaxAttempts: 1_000, Backoff: tidings.Backoff{Initial: time.Minute, Max: time.Hour}}
		inOrder := func(name string, e tidings.Event[number]) error {
			lane := name + " " + e.AggregateID()
			if n := e.Payload().N; n < last[lane] {
				t.Errorf("seed %d: %s has %d after %d", seed, lane, n, last[lane])
			} else {
				last[lane] = n
			}
			switch random.IntN(6) {
			case 0:
				return errors.New("not yet")
			case 1:
				return tidings.RetryAfter(errors.New("later"), time.Duration(random.IntN(100))*time.Hour)
			case 2:
				panic("by chance")
			}
			return nil
		}
		oracle.Subscribe("answer", patient, asked.On(func(ctx context.Context, e tidings.Event[number]) error {
			if err := inOrder("answer", e); err != nil {
				return err
			}
			return oracle.Publish(ctx, answered.New(e.AggregateID(), e.Payload(), tidings.WithID("answer to "+e.ID())))
		}))
		oracle.Subscribe("doubt", patient, answered.On(func(ctx context.Context, e tidings.Event[number]) error {
			if err := inOrder("doubt", e); err != nil {
				return err
			}
			for n := range depth {
				doubt := doubted.New(fmt.Sprint(e.AggregateID(), n), e.Payload(), tidings.WithID(fmt.Sprint("doubt ", n, " of ", e.ID())))
				if err := oracle.Publish(ctx, doubt); err != nil {
					return err
				}
			}
			return nil
		}))
		oracle.Subscribe("shrug", patient, doubted.On(func(_ context.Context, e tidings.Event[number]) error {
			return inOrder("shrug", e)
		}))
		for n := range events {
			for a := range aggregates {
				publish(t, b, asked.New(fmt.Sprint("q", a), number{n}))
			}
			if random.IntN(2) == 0 {
				b.Settle()
			}
		}
		b.Settle()
		for name, want := range map[string]int{"oracle.answer": aggregates * events, "oracle.doubt": aggregates * events, "oracle.shrug": aggregates * events * depth} {
			if got := len(b.Handled(name)); got != want {
				t.Fatalf("seed %d: %s has handled %d events, want %d\n%s", seed, name, got, want, b.Story())
			}
		}
	}
}
