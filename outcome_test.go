package tidings_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
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

func TestOutcomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memory.New(nil)
		b := tidings.New(d, &tidings.Options{Logger: discard()})
		var calls []string
		began := time.Now()
		subscribe(t, b, "outcomes", &tidings.SubscribeOptions{MaxAttempts: 3, Backoff: tidings.Backoff{Initial: time.Second, Jitter: -1}}, numberChosen,
			func(_ context.Context, e tidings.Event[numberPayload]) error {
				calls = append(calls, fmt.Sprintf("%s@%v", e.AggregateID(), time.Since(began)))
				switch e.AggregateID() {
				case "permanent":
					return fmt.Errorf("wrapped: %w", tidings.Permanent(errors.New("never")))
				case "after":
					return tidings.RetryAfter(errors.New("later"), time.Minute)
				}
				return nil
			})
		start(t, b)
		for _, id := range []string{"fine", "permanent", "after"} {
			if err := b.Publish(t.Context(), numberChosen.New(id, numberPayload{})); err != nil {
				t.Fatal(err)
			}
		}
		pass(time.Hour)
		synctest.Wait()
		if want := "[fine@0s permanent@0s after@0s after@1m0s after@2m0s]"; fmt.Sprint(calls) != want {
			t.Errorf("calls %v, want %s", calls, want)
		}
		var reasons []string
		for _, letter := range d.DeadLetters() {
			reasons = append(reasons, letter.AggregateID+" "+letter.Reason+" "+letter.Err)
		}
		if want := "permanent permanent wrapped: never,after exhausted later"; strings.Join(reasons, ",") != want {
			t.Errorf("dead letters %v", reasons)
		}
	})
	if tidings.Permanent(nil) != nil || tidings.RetryAfter(nil, time.Second) != nil {
		t.Error("nil became an error")
	}
}

func TestBlockHoldsItsLaneOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memory.New(nil)
		counts := &count{}
		b := tidings.New(d, &tidings.Options{Logger: discard(), Observers: []tidings.Observer{counts}})
		var mended atomic.Bool
		var got []string
		subscribe(t, b, "blocking", &tidings.SubscribeOptions{MaxAttempts: 2, OnExhausted: tidings.Block, Backoff: tidings.Backoff{Initial: time.Second, Max: time.Minute, Jitter: -1}}, numberChosen,
			func(_ context.Context, e tidings.Event[numberPayload]) error {
				if e.Payload().Number == 1 && !mended.Load() {
					return errors.New("broken")
				}
				got = append(got, fmt.Sprint(e.AggregateID(), e.Payload().Number))
				return nil
			})
		start(t, b)
		if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{1}), numberChosen.New("a", numberPayload{2}), numberChosen.New("b", numberPayload{3})); err != nil {
			t.Fatal(err)
		}
		pass(time.Hour)
		synctest.Wait()
		if fmt.Sprint(got) != "[b3]" || counts.of(tidings.Blocked) < 50 || counts.of(tidings.Blocked) > 61 {
			t.Errorf("handled %v, blocked %d times in an hour", got, counts.of(tidings.Blocked))
		}
		mended.Store(true)
		pass(time.Minute)
		synctest.Wait()
		if fmt.Sprint(got) != "[b3 a1 a2]" || len(d.DeadLetters()) != 0 {
			t.Errorf("handled %v, dead %v", got, d.DeadLetters())
		}
	})
}

func TestTimeoutEndsTheContextAndReportsWhoIgnoresIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counts := &count{}
		b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard(), Observers: []tidings.Observer{counts}})
		var ended []string
		subscribe(t, b, "slow", &tidings.SubscribeOptions{MaxAttempts: 1, Timeout: 10 * time.Second}, numberChosen,
			func(ctx context.Context, e tidings.Event[numberPayload]) error {
				began := time.Now()
				if e.AggregateID() == "stubborn" {
					pass(time.Minute)
					ended = append(ended, fmt.Sprint("stubborn ", time.Since(began), " ", ctx.Err()))
					return nil
				}
				child, cancel := context.WithCancel(ctx)
				defer cancel()
				<-child.Done()
				ended = append(ended, fmt.Sprint(e.AggregateID(), " ", time.Since(began), " ", child.Err()))
				return child.Err()
			})
		stop := start(t, b)
		go func() {
			_ = b.Publish(context.Background(), numberChosen.New("polite", numberPayload{}), numberChosen.New("stubborn", numberPayload{}))
		}()
		pass(2 * time.Minute)
		synctest.Wait()
		if want := "[polite 10s context deadline exceeded stubborn 1m0s context deadline exceeded]"; fmt.Sprint(ended) != want {
			t.Errorf("ended %v, want %s", ended, want)
		}
		if counts.of(tidings.Overdue) != 1 {
			t.Errorf("%d handlers were reported as overdue, want the stubborn one", counts.of(tidings.Overdue))
		}
		stop()
	})
}

// The end of Run lets handlers finish with a live context, and in memory
// everything that was published.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counts := &count{}
		b := tidings.New(memory.New(&memory.Options{Async: true}), &tidings.Options{Logger: discard(), Observers: []tidings.Observer{counts}, DrainTimeout: time.Minute})
		subscribe(t, b, "first", &tidings.SubscribeOptions{Concurrency: 1, Backoff: tidings.Backoff{Initial: time.Second}}, numberChosen,
			func(ctx context.Context, e tidings.Event[numberPayload]) error {
				pass(time.Second)
				if d, _ := tidings.DeliveryFrom(ctx); e.Payload().Number == 3 && d.Attempt == 1 {
					return errors.New("once more")
				}
				if ctx.Err() != nil {
					t.Error("a handler's context ended during the drain")
				}
				return b.Publish(ctx, numberDoubled.New(e.AggregateID(), numberPayload{e.Payload().Number * 2}))
			})
		var doubled atomic.Int64
		subscribe(t, b, "second", nil, numberDoubled, func(context.Context, tidings.Event[numberPayload]) error {
			pass(time.Second)
			doubled.Add(1)
			return nil
		})
		stop := start(t, b)
		for n := range 10 {
			if err := b.Publish(t.Context(), numberChosen.New(fmt.Sprint(n), numberPayload{n})); err != nil {
				t.Fatal(err)
			}
		}
		stop()
		if doubled.Load() != 10 || counts.of(tidings.Abandoned) != 0 {
			t.Errorf("%d of 10 were doubled before Run returned, abandoned %d", doubled.Load(), counts.of(tidings.Abandoned))
		}
	})
}

func TestDrainDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counts := &count{}
		b := tidings.New(memory.New(&memory.Options{Async: true}), &tidings.Options{Logger: discard(), Observers: []tidings.Observer{counts}, DrainTimeout: 5 * time.Second})
		var cause error
		subscribe(t, b, "first", &tidings.SubscribeOptions{Concurrency: 1}, numberChosen, func(ctx context.Context, _ tidings.Event[numberPayload]) error {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return ctx.Err()
		})
		stop := start(t, b)
		if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{}), numberChosen.New("b", numberPayload{})); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		began := time.Now()
		stop()
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("Run returned after %v, want the drain timeout", took)
		}
		if cause == nil || counts.of(tidings.Abandoned) != 1 {
			t.Errorf("cause %v, abandoned %d", cause, counts.of(tidings.Abandoned))
		}
	})
}

// tracer puts a header on each message and takes it off again, as tracing does.
type tracer struct{}

func (*tracer) Observe(context.Context, tidings.Observation) {}

type traceKey struct{}

func (*tracer) ObservePublish(ctx context.Context, p *tidings.Publication) (context.Context, func(error)) {
	for n := range p.Events {
		p.SetHeader(n, driver.HeaderTraceparent, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	}
	return ctx, nil
}

func (*tracer) ObserveProcess(ctx context.Context, _ tidings.DomainEvent, headers driver.Headers) (context.Context, func(error)) {
	return context.WithValue(ctx, traceKey{}, headers.Get(driver.HeaderTraceparent)), nil
}

func TestTraceAndCorrelation(t *testing.T) {
	var first, second tidings.DomainEvent
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard(), Observers: []tidings.Observer{&tracer{}}})
	subscribe(t, b, "first", nil, numberChosen, func(ctx context.Context, e tidings.Event[numberPayload]) error {
		first = e
		if trace, _ := ctx.Value(traceKey{}).(string); !strings.HasPrefix(trace, "00-0af7") {
			t.Errorf("the handler sees trace %q", trace)
		}
		derived, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		return b.Publish(derived, numberDoubled.New("a", numberPayload{}))
	})
	subscribe(t, b, "second", nil, numberDoubled, func(_ context.Context, e tidings.Event[numberPayload]) error {
		second = e
		return nil
	})
	start(t, b)
	if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{})); err != nil {
		t.Fatal(err)
	}
	if first == nil || second == nil {
		t.Fatal("not handled")
	}
	if second.CausationID() != first.ID() || second.CorrelationID() != first.ID() || first.CorrelationID() != "" {
		t.Errorf("correlation %q, causation %q", second.CorrelationID(), second.CausationID())
	}
}

func TestWrapIsCalledAroundEachAttempt(t *testing.T) {
	var order []string
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard(), Wrap: func(next tidings.HandleFunc) tidings.HandleFunc {
		return func(ctx context.Context, e tidings.DomainEvent) error {
			order = append(order, "before "+e.Type())
			err := next(ctx, e)
			order = append(order, "after")
			return err
		}
	}})
	subscribe(t, b, "look", nil, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
		order = append(order, "handler")
		return nil
	})
	start(t, b)
	if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{})); err != nil {
		t.Fatal(err)
	}
	if want := "[before numbers.number.chosen handler after]"; fmt.Sprint(order) != want {
		t.Errorf("order %v", order)
	}
}

// A healthy service logs nothing at the default level but the note on dedup;
// at Debug every step of an event is there.
func TestLogLevels(t *testing.T) {
	for _, level := range []slog.Level{slog.LevelInfo, slog.LevelDebug} {
		var text bytes.Buffer
		b := tidings.New(memory.New(nil), &tidings.Options{Logger: slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: level}))})
		subscribe(t, b, "look", nil, numberChosen, nothing)
		stop := start(t, b)
		e := numberChosen.New("a-1", numberPayload{})
		for range 2 {
			if err := b.Publish(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		stop()
		for _, step := range []string{"event published", "event received", "event handled"} {
			line := ""
			for l := range strings.Lines(text.String()) {
				if strings.Contains(l, step) {
					line = l
				}
			}
			if (line != "") != (level == slog.LevelDebug) {
				t.Errorf("level %v: %q in:\n%s", level, step, text.String())
			}
			if line != "" && (!strings.Contains(line, "id="+e.ID()) || !strings.Contains(line, "aggregateId=a-1") || !strings.Contains(line, "type=numbers.number.chosen")) {
				t.Errorf("line without its event: %s", line)
			}
		}
		if n := strings.Count(text.String(), "event deduplicated"); n != 1 {
			t.Errorf("level %v: deduplicated %d times", level, n)
		}
	}
}

// A handler that never returns must not make publishers fill the memory: they
// wait, or fail when their context ends.
func TestAStuckHandlerLeavesMemoryBounded(t *testing.T) {
	for name, options := range map[string]*memory.Options{
		"sync":  {MaxEvents: 5_000},
		"async": {MaxEvents: 5_000, Async: true},
		"bytes": {MaxBytes: 2 << 20, Async: true},
	} {
		t.Run(name, func(t *testing.T) {
			d := memory.New(options)
			b := tidings.New(d, &tidings.Options{Logger: discard(), DrainTimeout: time.Millisecond})
			release := make(chan struct{})
			subscribe(t, b, "stuck", nil, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
				<-release
				return nil
			})
			stop := start(t, b)
			goroutines, heap := runtime.NumGoroutine(), heapInUse()
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			var stored, refused atomic.Int64
			var publishers sync.WaitGroup
			for p := range 20 {
				publishers.Go(func() {
					for n := 0; ; n++ {
						err := b.Publish(ctx, numberChosen.New(fmt.Sprint(p, "/", n%100), numberPayload{n}))
						if err != nil {
							refused.Add(1)
							return
						}
						stored.Add(1)
					}
				})
			}
			waited := make(chan struct{})
			go func() { publishers.Wait(); close(waited) }()
			if name == "sync" { // sixteen publishers are in the handler themselves
				waitFor(t, func() bool { return refused.Load() >= 4 })
			} else {
				<-waited
			}
			events, size := d.Usage()
			grown := heapInUse() - heap
			t.Logf("%d events stored, %d publishers refused, %d unfinished of %d bytes counted, heap +%d KiB, goroutines +%d",
				stored.Load(), refused.Load(), events, size, grown>>10, runtime.NumGoroutine()-goroutines)
			if events > 5_000 && options.MaxEvents > 0 || size > 2<<20 && options.MaxBytes > 0 {
				t.Errorf("%d events, %d bytes are over the bound", events, size)
			}
			if grown > 32<<20 || runtime.NumGoroutine()-goroutines > 60 {
				t.Errorf("memory is not bounded")
			}
			close(release)
			<-waited
			stop()
		})
	}
}

func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
