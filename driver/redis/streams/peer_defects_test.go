package streams

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
)

// watching runs a subscription to tickCounted until stop or the end of the test.
func watching(t *testing.T, d *Driver, options tidings.Options, handle func(context.Context, tidings.Event[tickPayload]) error) (b *tidings.Bus, stop func()) {
	t.Helper()
	options.Logger = slog.New(slog.DiscardHandler)
	b = tidings.New(d, &options)
	subscribe := &tidings.SubscribeOptions{StartAt: tidings.StartBeginning, Backoff: tidings.Backoff{Initial: 10 * time.Millisecond}}
	b.Module("faults").Subscribe("watch", subscribe, tickCounted.On(handle))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	if err := b.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return b, stop
}

// An entry that some other program wrote is a dead letter; the subscription goes on
// and Run does not end. See docs/peer-defects.md.
func TestPeerDefect12AForeignEntryEndsNothing(t *testing.T) {
	eachServer(t, func(t *testing.T, url, namespace string) {
		admin := plainClient(t, url)
		d := newDriver(t, url, namespace)
		var mu sync.Mutex
		var handled []int
		b, _ := watching(t, d, tidings.Options{}, func(_ context.Context, e tidings.Event[tickPayload]) error {
			mu.Lock()
			defer mu.Unlock()
			handled = append(handled, e.Payload().Number)
			return nil
		})
		for n := range 3 {
			put := admin.B().Xadd().Key(d.stream(tickCounted.Channel(), 0)).Id("*").FieldValue().FieldValue("user", "1")
			if err := admin.Do(t.Context(), put.Build()).Error(); err != nil {
				t.Fatal(err)
			}
			if err := b.Publish(t.Context(), tickCounted.New("a", tickPayload{n})); err != nil {
				t.Fatal(err)
			}
		}
		drivertest.Eventually(t, "all three", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return fmt.Sprint(handled) == "[0 1 2]"
		})
		drivertest.Eventually(t, "three dead letters", func() bool {
			// Built anew each time: the client takes a command back when it is done.
			letters := admin.B().Xlen().Key(d.DeadLetterName(tickCounted.Channel(), "faults.watch")).Build()
			n, err := admin.Do(t.Context(), letters).AsInt64()
			return err == nil && n == 3
		})
	})
}

// tracing puts a trace on each event and takes it off again, as telemetry does.
type tracing struct{}

type traced struct{}

func (tracing) Observe(context.Context, tidings.Observation) {}

func (tracing) ObservePublish(ctx context.Context, p *tidings.Publication) (context.Context, func(error)) {
	for n := range p.Events {
		p.SetHeader(n, driver.HeaderTraceparent, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	}
	return ctx, nil
}

func (tracing) ObserveProcess(ctx context.Context, _ tidings.DomainEvent, headers driver.Headers) (context.Context, func(error)) {
	return context.WithValue(ctx, traced{}, headers.Get(driver.HeaderTraceparent)), nil
}

// The context of a second attempt is like that of the first: it has the trace and
// the deadline, and it ends with the bus.
func TestPeerDefect14ASecondAttemptHasItsContext(t *testing.T) {
	eachServer(t, func(t *testing.T, url, namespace string) {
		d := newDriver(t, url, namespace)
		attempts := make(chan string, 10)
		b, stop := watching(t, d, tidings.Options{Observers: []tidings.Observer{tracing{}}, DrainTimeout: 50 * time.Millisecond}, func(ctx context.Context, _ tidings.Event[tickPayload]) error {
			_, bounded := ctx.Deadline()
			delivery, _ := tidings.DeliveryFrom(ctx)
			trace, _ := ctx.Value(traced{}).(string)
			attempts <- fmt.Sprint(delivery.Attempt, bounded, trace != "")
			if delivery.Attempt == 1 {
				return errors.New("once more")
			}
			<-ctx.Done()
			attempts <- "ended"
			return ctx.Err()
		})
		if err := b.Publish(t.Context(), tickCounted.New("a", tickPayload{1})); err != nil {
			t.Fatal(err)
		}
		expect := func(want string) {
			t.Helper()
			select {
			case got := <-attempts:
				if got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			case <-time.After(15 * time.Second):
				t.Fatalf("no %q", want)
			}
		}
		expect("1 true true")
		expect("2 true true")
		stop()
		expect("ended")
	})
}
