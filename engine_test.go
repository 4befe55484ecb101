package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
)

type numberPayload struct {
	Number int `json:"number"`
}

var (
	numberChosen  = tidings.Define[numberPayload]("numbers.number.chosen", 1, tidings.Repeatable)
	numberDoubled = tidings.Define[numberPayload]("numbers.number.doubled", 1, tidings.Repeatable)
)

// discard is a logger for tests that look at outcomes, not at logs.
func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start runs the bus until the test ends and fails the test when Run does.
func start(t testing.TB, b *tidings.Bus) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	if err := b.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func subscribe[P any](t testing.TB, b *tidings.Bus, name string, options *tidings.SubscribeOptions, c tidings.Contract[P], fn func(context.Context, tidings.Event[P]) error) {
	t.Helper()
	b.Module("numbers").Subscribe(name, options, c.On(fn))
}

func TestPublishRunsHandlersBeforeItReturns(t *testing.T) {
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard()})
	var got []int
	subscribe(t, b, "first", nil, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
		got = append(got, e.Payload().Number)
		return nil
	})
	start(t, b)
	for n := range 5 {
		if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{n}), numberChosen.New("b", numberPayload{n * 10})); err != nil {
			t.Fatal(err)
		}
	}
	if want := "[0 0 1 10 2 20 3 30 4 40]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestChainWithoutRecursion(t *testing.T) {
	for _, mode := range []string{"handler's context", "foreign context", "foreign context, one slot"} {
		t.Run(mode, func(t *testing.T) {
			const length = 100_000
			d := memory.New(nil)
			b := tidings.New(d, &tidings.Options{Logger: discard(), WithoutDedup: true})
			options := &tidings.SubscribeOptions{}
			if mode == "foreign context, one slot" {
				options.Concurrency = 1
			}
			done := make(chan struct{})
			hand := func(ctx context.Context, next tidings.Contract[numberPayload], n int) error {
				if n == length {
					close(done)
					return nil
				}
				if mode != "handler's context" {
					ctx = context.Background()
				}
				return b.Publish(ctx, next.New(fmt.Sprint("a", n%3), numberPayload{n + 1}))
			}
			subscribe(t, b, "there", options, numberChosen, func(ctx context.Context, e tidings.Event[numberPayload]) error {
				return hand(ctx, numberDoubled, e.Payload().Number)
			})
			subscribe(t, b, "back", options, numberDoubled, func(ctx context.Context, e tidings.Event[numberPayload]) error {
				return hand(ctx, numberChosen, e.Payload().Number)
			})
			start(t, b)
			if err := b.Publish(t.Context(), numberChosen.New("a0", numberPayload{0})); err != nil {
				t.Fatal(err)
			}
			<-done
		})
	}
}

func TestRetryThenDeadLetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memory.New(nil)
		b := tidings.New(d, &tidings.Options{Logger: discard()})
		var mu sync.Mutex // handlers of two lanes write
		var attempts []time.Time
		var handled []string
		subscribe(t, b, "failing", &tidings.SubscribeOptions{MaxAttempts: 4, Backoff: tidings.Backoff{Initial: time.Second, Jitter: -1}}, numberChosen,
			func(_ context.Context, e tidings.Event[numberPayload]) error {
				mu.Lock()
				defer mu.Unlock()
				if e.AggregateID() == "bad" && e.Payload().Number == 1 {
					attempts = append(attempts, time.Now())
					return errors.New("no")
				}
				handled = append(handled, fmt.Sprint(e.AggregateID(), e.Payload().Number))
				return nil
			})
		start(t, b)
		if err := b.Publish(t.Context(),
			numberChosen.New("bad", numberPayload{1}), numberChosen.New("bad", numberPayload{2}), numberChosen.New("good", numberPayload{3})); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		mu.Lock()
		if fmt.Sprint(handled) != "[good3]" {
			t.Errorf("before the retries %v are handled, want good3 only", handled)
		}
		mu.Unlock()
		pass(time.Minute)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		var waits []time.Duration
		for n := 1; n < len(attempts); n++ {
			waits = append(waits, attempts[n].Sub(attempts[n-1]))
		}
		if fmt.Sprint(waits) != "[1s 2s 4s]" {
			t.Errorf("waits %v, want 1s 2s 4s", waits)
		}
		if fmt.Sprint(handled) != "[good3 bad2]" {
			t.Errorf("handled %v", handled)
		}
		letters := d.DeadLetters()
		if len(letters) != 1 || letters[0].Reason != "exhausted" || letters[0].Attempts != 4 || letters[0].Err != "no" {
			t.Errorf("dead letters %+v", letters)
		}
		if events, bytes := d.Usage(); events != 0 || bytes != 0 {
			t.Errorf("%d events, %d bytes are still counted", events, bytes)
		}
	})
}

func TestBoundMakesPublishersWait(t *testing.T) {
	d := memory.New(&memory.Options{MaxEvents: 8})
	b := tidings.New(d, &tidings.Options{Logger: discard()})
	var running, most, total atomic.Int64
	last := make([]int, 4)
	subscribe(t, b, "slow", nil, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
		if n := running.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer running.Add(-1)
		publisher, n := e.Payload().Number/10_000, e.Payload().Number%10_000
		if n != last[publisher]+1 {
			t.Errorf("publisher %d: %d after %d", publisher, n, last[publisher])
		}
		last[publisher] = n
		total.Add(1)
		return nil
	})
	start(t, b)
	var wait sync.WaitGroup
	for publisher := range 4 {
		wait.Go(func() {
			for n := 1; n <= 2_000; n += 2 {
				if err := b.Publish(context.Background(), numberChosen.New("one", numberPayload{publisher*10_000 + n}),
					numberChosen.New("one", numberPayload{publisher*10_000 + n + 1})); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	waitFor(t, func() bool { return total.Load() == 8_000 })
	if most.Load() != 1 {
		t.Errorf("%d events of one aggregate ran at once", most.Load())
	}
}

func TestPublishAtTheBoundFromAHandler(t *testing.T) {
	d := memory.New(&memory.Options{MaxEvents: 4})
	b := tidings.New(d, &tidings.Options{Logger: discard()})
	var errs []error
	subscribe(t, b, "spawn", nil, numberChosen, func(ctx context.Context, e tidings.Event[numberPayload]) error {
		if e.Payload().Number > 0 {
			return nil
		}
		for n := 1; n < 6; n++ {
			errs = append(errs, b.Publish(ctx, numberChosen.New("x", numberPayload{n})))
		}
		return nil
	})
	start(t, b)
	if err := b.Publish(t.Context(), numberChosen.New("x", numberPayload{0})); err != nil {
		t.Fatal(err)
	}
	for n, err := range errs {
		if full := errors.Is(err, tidings.ErrFull); full != (n >= 3) {
			t.Errorf("publish %d from the handler: %v", n+1, err)
		}
	}
}

func TestOnePublishLargerThanTheBound(t *testing.T) {
	d := memory.New(&memory.Options{MaxEvents: 10})
	b := tidings.New(d, &tidings.Options{Logger: discard()})
	var sum atomic.Int64
	subscribe(t, b, "sum", nil, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
		sum.Add(int64(e.Payload().Number))
		return nil
	})
	start(t, b)
	var events []tidings.DomainEvent
	for n := range 100 {
		events = append(events, numberChosen.New(fmt.Sprint(n%7), numberPayload{n}))
	}
	if err := b.Publish(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return sum.Load() == 99*100/2 })
}

func TestHandlerContextIsNotThePublishers(t *testing.T) {
	type key struct{}
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard()})
	ran := false
	subscribe(t, b, "look", nil, numberChosen, func(ctx context.Context, _ tidings.Event[numberPayload]) error {
		ran = true
		if ctx.Value(key{}) != nil {
			t.Error("the handler sees a value of the publisher's context")
		}
		if ctx.Err() != nil {
			t.Error("the handler's context ended with the publisher's")
		}
		if !driver.InHandler(ctx) {
			t.Error("a driver does not recognise a handler's context")
		}
		d, ok := tidings.DeliveryFrom(ctx)
		if !ok || d.Attempt != 1 || d.Subscription != "numbers.look" {
			t.Errorf("delivery %+v %v", d, ok)
		}
		return nil
	})
	start(t, b)
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "secret"))
	defer cancel()
	if err := b.Publish(ctx, numberChosen.New("a", numberPayload{})); err != nil {
		t.Fatal(err)
	}
	if !ran {
		t.Error("not handled")
	}
}

func TestPublishBeforeRunAndAfterClose(t *testing.T) {
	d := memory.New(&memory.Options{MaxEvents: 2})
	b := tidings.New(d, &tidings.Options{Logger: discard()})
	var got atomic.Int64
	subscribe(t, b, "count", nil, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
		got.Add(1)
		return nil
	})
	for n := range 2 {
		if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{n})); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	var failed *tidings.PublishError
	if err := b.Publish(short, numberChosen.New("a", numberPayload{3})); !errors.As(err, &failed) || failed.Results[0].State != tidings.NotStored {
		t.Errorf("publish at the bound before Run: %v", err)
	}
	stop := start(t, b)
	waitFor(t, func() bool { return got.Load() == 2 })
	stop()
	if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{4})); !errors.Is(err, tidings.ErrClosed) {
		t.Errorf("publish after close: %v", err)
	}
}

func TestGoexitAndPanicInAHandler(t *testing.T) {
	d := memory.New(nil)
	b := tidings.New(d, &tidings.Options{Logger: discard()})
	var calls atomic.Int64
	subscribe(t, b, "bad", &tidings.SubscribeOptions{MaxAttempts: 2, Backoff: tidings.Backoff{Initial: time.Millisecond}, Concurrency: 1}, numberChosen,
		func(_ context.Context, e tidings.Event[numberPayload]) error {
			calls.Add(1)
			if e.Payload().Number == 1 {
				panic("boom")
			}
			if e.Payload().Number == 2 {
				exit()
			}
			return nil
		})
	start(t, b)
	for n := range 4 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = b.Publish(context.Background(), numberChosen.New(fmt.Sprint(n), numberPayload{n}))
		}()
		<-done
	}
	waitFor(t, func() bool { return len(d.DeadLetters()) == 2 && calls.Load() == 6 })
	for _, letter := range d.DeadLetters() {
		if letter.AggregateID == "1" && letter.Stack == "" {
			t.Error("the dead letter of a panic has no stack")
		}
	}
}

// waitFor polls: what it waits for happens in goroutines of the real clock.
func waitFor(t testing.TB, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen within 20 s")
		}
		pass(time.Millisecond)
	}
}

// pass lets time go by: a virtual one in a bubble of synctest, where it is exact
// and free; outside, only between two looks at what is waited for.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // the one place, see above
}

func exit() { runtime.Goexit() }
