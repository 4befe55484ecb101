package tidingstest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/tidingstest"
)

var t testing.TB = &fake{} // in a test of yours: its *testing.T

// A test of a module: publish, expect, and see at once what did not happen.
func ExampleExpect() {
	bus := tidingstest.NewBus(t)
	oracle := bus.Module("oracle")
	oracle.Subscribe("answer", nil, asked.On(func(ctx context.Context, e tidings.Event[number]) error {
		return oracle.Publish(ctx, answered.New(e.AggregateID(), number{2 * e.Payload().N}))
	}))

	if err := bus.Publish(context.Background(), asked.New("q", number{21})); err != nil {
		t.Fatal(err)
	}
	answers := tidingstest.Expect(t, bus, answered, func(e tidings.Event[number]) bool { return e.AggregateID() == "q" })
	tidingstest.ExpectNone(t, bus, doubted)
	fmt.Println("answered with", answers[0].Payload().N)
	// Output: answered with 42
}

// Nothing is waited for: when Settle is through, nobody is left who could.
func ExampleExpectNone() {
	bus := tidingstest.NewBus(t)
	bus.Module("oracle").Subscribe("answer", nil, asked.On(func(context.Context, tidings.Event[number]) error {
		return tidings.Permanent(errors.New("nobody knows"))
	}))
	if err := bus.Publish(context.Background(), asked.New("q", number{1})); err != nil {
		t.Fatal(err)
	}
	tidingstest.ExpectNone(t, bus, answered)
	fmt.Println(len(bus.DeadLetters()), "dead letter")
	// Output: 1 dead letter
}

// Virtual time passes over the retries.
func ExampleBus_Settle() {
	bus := tidingstest.NewBus(t)
	attempts := 0
	hourly := &tidings.SubscribeOptions{Backoff: tidings.Backoff{Initial: time.Hour, Max: time.Hour, Jitter: -1}}
	bus.Module("oracle").Subscribe("answer", hourly, asked.On(func(context.Context, tidings.Event[number]) error {
		if attempts++; attempts < 4 {
			return errors.New("let me think")
		}
		return nil
	}))
	if err := bus.Publish(context.Background(), asked.New("q", number{1}, tidings.WithID("first"))); err != nil {
		t.Fatal(err)
	}
	began := bus.Now()
	bus.Settle()
	fmt.Println(attempts, "attempts in", bus.Now().Sub(began))
	fmt.Println("handled", bus.Handled("oracle.answer"))
	// Output:
	// 4 attempts in 3h0m0s
	// handled [first]
}

// What is parked is tried again much later, and Settle does not wait for it.
func ExampleBus_Advance() {
	bus := tidingstest.NewBus(t)
	mended := false
	inOrder := &tidings.SubscribeOptions{RequireOrder: true, MaxAttempts: 2}
	bus.Module("oracle").Subscribe("answer", inOrder, asked.On(func(_ context.Context, e tidings.Event[number]) error {
		if !mended {
			return errors.New("broken")
		}
		fmt.Println("answered", e.Payload().N)
		return nil
	}))
	if err := bus.Publish(context.Background(), asked.New("q", number{1}), asked.New("q", number{2})); err != nil {
		t.Fatal(err)
	}
	bus.Settle()
	fmt.Println("parked")
	mended = true
	bus.Advance(time.Hour)
	// Output:
	// parked
	// answered 1
	// answered 2
}

// A story is what a failing expectation prints.
func ExampleBus_Story() {
	bus := tidingstest.NewBus(t, tidingstest.Seed(1))
	oracle := bus.Module("oracle")
	once := &tidings.SubscribeOptions{Backoff: tidings.Backoff{Initial: time.Second, Jitter: -1}}
	oracle.Subscribe("answer", once, asked.On(func(ctx context.Context, e tidings.Event[number]) error {
		if d, _ := tidings.DeliveryFrom(ctx); d.Attempt == 1 {
			return errors.New("let me think")
		}
		return oracle.Publish(ctx, answered.New(e.AggregateID(), number{42}, tidings.WithID("a-1")))
	}))
	bus.Module("critic").Subscribe("doubt", nil, answered.On(func(context.Context, tidings.Event[number]) error {
		return tidings.Permanent(errors.New("not convinced"))
	}))
	if err := bus.Publish(context.Background(), asked.New("life", number{1}, tidings.WithID("q-1"))); err != nil {
		t.Fatal(err)
	}
	bus.Settle()
	fmt.Print(bus.Story())
	// Output:
	// oracle.question.asked v1 q-1 (life)
	//     → oracle.answer attempt 1 failed, again in 1s: let me think
	//     → oracle.answer handled (attempt 2)
	//         oracle.question.answered v1 a-1 (life)
	//           → critic.doubt dead letter (permanent, attempt 1): not convinced
	// (TIDINGS_TEST_SEED=1)
}

// A recorder stands in for the bus where a unit only publishes.
func ExampleNewRecorder() {
	ask := func(ctx context.Context, publisher tidings.Publisher, question string) error {
		return publisher.Publish(ctx, asked.New(question, number{1}))
	}
	recorder := tidingstest.NewRecorder()
	fmt.Println(ask(context.Background(), recorder, "q"), len(tidingstest.Recorded(recorder, asked)))
	fmt.Println(ask(context.Background(), recorder, "") != nil, "what a bus refuses, a recorder does")
	// Output:
	// <nil> 1
	// true what a bus refuses, a recorder does
}
