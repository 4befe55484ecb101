package tidingstest_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/tidingstest"
)

// A test of a module: publish, expect, and see at once what did not happen.
func ExampleExpect() {
	test := func(t testing.TB) {
		bus := tidingstest.NewBus(t)
		oracle := bus.Module("oracle")
		oracle.Subscribe("answer", nil, asked.On(func(ctx context.Context, e tidings.Event[number]) error {
			return oracle.Publish(ctx, answered.New(e.AggregateID(), number{2 * e.Payload().N}))
		}))

		if err := bus.Publish(context.Background(), asked.New("q", number{21})); err != nil {
			t.Fatal(err)
		}
		e := tidingstest.Expect(bus, answered)
		tidingstest.ExpectNone(bus, doubted)
		fmt.Println("answered with", e.Payload().N)
	}
	test(&fake{})
	// Output: answered with 42
}

// A recorder stands in for the bus where a unit only publishes.
func ExampleRecorder() {
	ask := func(ctx context.Context, publisher tidings.Publisher) error {
		return publisher.Publish(ctx, asked.New("q", number{1}))
	}
	var recorder tidingstest.Recorder
	fmt.Println(ask(context.Background(), &recorder), len(tidingstest.Recorded(&recorder, asked)))
	// Output: <nil> 1
}
