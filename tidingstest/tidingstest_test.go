package tidingstest_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/tidingstest"
)

type number struct {
	N int `json:"n"`
}

var (
	asked    = tidings.Define[number]("oracle.question.asked", 1, tidings.Repeatable)
	answered = tidings.Define[number]("oracle.question.answered", 1, tidings.Repeatable)
	doubted  = tidings.Define[number]("oracle.question.doubted", 1, tidings.Repeatable)
)

// fake is a testing.TB that remembers failures instead of failing.
type fake struct {
	testing.TB
	failures []string
	cleanups []func()
}

type stop struct{}

func (f *fake) Helper()          {}
func (f *fake) Failed() bool     { return len(f.failures) > 0 }
func (f *fake) Cleanup(g func()) { f.cleanups = append(f.cleanups, g) }
func (f *fake) Logf(string, ...any) {
}
func (f *fake) Errorf(format string, args ...any) {
	f.failures = append(f.failures, fmt.Sprintf(format, args...))
}
func (f *fake) Fatalf(format string, args ...any) { f.Errorf(format, args...); panic(stop{}) }

// failures runs f with a fake test and returns what failed.
func failures(t *testing.T, f func(testing.TB)) string {
	fake := &fake{TB: t}
	func() {
		defer func() {
			if v := recover(); v != nil {
				if _, ok := v.(stop); !ok {
					panic(v)
				}
			}
		}()
		f(fake)
	}()
	for n := len(fake.cleanups) - 1; n >= 0; n-- {
		fake.cleanups[n]()
	}
	return strings.Join(fake.failures, "\n")
}

func publish(t testing.TB, b *tidingstest.Bus, events ...tidings.DomainEvent) {
	t.Helper()
	if err := b.Publish(context.Background(), events...); err != nil {
		t.Fatalf("%v", err)
	}
}

// answering answers each question after some failures.
func answering(b *tidingstest.Bus, failures int, wait time.Duration) {
	b.Module("oracle").Subscribe("answer", &tidings.SubscribeOptions{Backoff: tidings.Backoff{Initial: wait, Max: wait}}, asked.On(
		func(ctx context.Context, e tidings.Event[number]) error {
			if d, _ := tidings.DeliveryFrom(ctx); d.Attempt <= failures {
				return errors.New("let me think")
			}
			return b.Module("oracle").Publish(ctx, answered.New(e.AggregateID(), number{42}))
		}))
}

func TestSettleCoversRetriesInNoTime(t *testing.T) {
	b := tidingstest.NewBus(t)
	answering(b, 5, time.Hour)
	publish(t, b, asked.New("q", number{1}))
	began, real := b.Now(), time.Now()
	e := tidingstest.Expect(t, b, answered, func(e tidings.Event[number]) bool { return e.Payload().N == 42 })[0]
	if e.CausationID() == "" || e.CausationID() != e.CorrelationID() {
		t.Errorf("causation %q, correlation %q", e.CausationID(), e.CorrelationID())
	}
	tidingstest.ExpectNone(t, b, doubted)
	if b.Now().Sub(began) < 4*time.Hour || time.Since(real) > time.Minute {
		t.Errorf("virtual time %v, real time %v", b.Now().Sub(began), time.Since(real))
	}
	if handled := b.Handled("oracle.answer"); len(handled) != 1 {
		t.Errorf("handled %v", handled)
	}
}

func TestInsideABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tidingstest.NewBus(t)
		answering(b, 3, time.Minute)
		publish(t, b, asked.New("q", number{1}))
		tidingstest.Expect(t, b, answered)
	})
}

// Code that relies on the order of two channels fails under some seed, and
// events of one channel and aggregate never change places.
func TestChannelsAreInterleaved(t *testing.T) {
	orders := map[string]bool{}
	for seed := range uint64(30) {
		b := tidingstest.NewBus(t, tidingstest.Seed(seed))
		var order []string
		note := func(_ context.Context, e tidings.Event[number]) error {
			order = append(order, fmt.Sprint(e.Type()[len("oracle.question."):][0:2], e.Payload().N))
			return nil
		}
		b.Module("reader").Subscribe("both", &tidings.SubscribeOptions{UnorderedAcrossTypes: true}, asked.On(note), answered.On(note))
		publish(t, b, asked.New("q", number{1}), answered.New("q", number{1}), asked.New("q", number{2}), answered.New("q", number{2}))
		b.Settle()
		text := fmt.Sprint(order)
		orders[text] = true
		if strings.Index(text, "as1") > strings.Index(text, "as2") || strings.Index(text, "an1") > strings.Index(text, "an2") || len(order) != 4 {
			t.Errorf("seed %d: %v", seed, order)
		}
	}
	if len(orders) < 3 {
		t.Errorf("thirty seeds made %d orders: %v", len(orders), orders)
	}
}

func TestASeedRepeatsARun(t *testing.T) {
	run := func() string {
		b := tidingstest.NewBus(t, tidingstest.Seed(7))
		var order []string
		for _, name := range []string{"one", "two", "three"} {
			b.Module("reader").Subscribe(name, nil, asked.On(func(_ context.Context, e tidings.Event[number]) error {
				order = append(order, fmt.Sprint(name, e.Payload().N))
				return nil
			}))
		}
		for n := range 10 {
			publish(t, b, asked.New("q", number{n}))
		}
		b.Settle()
		return fmt.Sprint(order)
	}
	if first, second := run(), run(); first != second {
		t.Errorf("seed 7 made\n%s\nand\n%s", first, second)
	}
}

func TestFailuresTellWhatCausedWhat(t *testing.T) {
	text := failures(t, func(t testing.TB) {
		b := tidingstest.NewBus(t)
		answering(b, 1, time.Second)
		b.Module("critic").Subscribe("doubt", &tidings.SubscribeOptions{MaxAttempts: 1}, answered.On(func(context.Context, tidings.Event[number]) error {
			return errors.New("not convinced")
		}))
		publish(t, b, asked.New("q-1", number{1}))
		tidingstest.Expect(t, b, doubted)
	})
	for _, want := range []string{
		"no oracle.question.doubted v1 was published",
		"\n  oracle.question.asked v1 …",
		" (q-1)\n    → oracle.answer attempt 1 failed, again in ",
		"\n    → oracle.answer handled (attempt 2)\n        oracle.question.answered v1 …",
		"\n          → critic.doubt dead letter (exhausted, attempt 1): not convinced",
		"TIDINGS_TEST_SEED=",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the failure does not say %q:\n%s", want, text)
		}
	}
	text = failures(t, func(t testing.TB) {
		b := tidingstest.NewBus(t)
		answering(b, 0, time.Second)
		publish(t, b, asked.New("q-1", number{1}))
		tidingstest.ExpectNone(t, b, answered)
	})
	if !strings.Contains(text, "1 × oracle.question.answered v1 was published, none was expected") {
		t.Errorf("failure %q", text)
	}
}

func TestSettleSaysWhatNeverEnds(t *testing.T) {
	text := failures(t, func(t testing.TB) {
		b := tidingstest.NewBus(t, tidingstest.Longest(time.Hour))
		b.Module("oracle").Subscribe("answer", &tidings.SubscribeOptions{MaxAttempts: 1_000_000}, asked.On(func(context.Context, tidings.Event[number]) error {
			return errors.New("never")
		}))
		publish(t, b, asked.New("q", number{1}))
		b.Settle()
	})
	for _, want := range []string{
		"after 1h0m0s of virtual time something is still retried (the option Longest changes that bound):\n  oracle.answer, oracle.question.asked …",
		" (q): attempt ",
		" failed, again in ",
		"→ oracle.answer … and more attempts",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the failure does not say %q:\n%s", want, text)
		}
	}
	if lines := strings.Count(text, "\n"); lines > 20 {
		t.Errorf("the failure has %d lines", lines)
	}
}

// Handlers run one at a time, also where several retries are due at one moment.
func TestNothingRunsInParallel(t *testing.T) {
	b := tidingstest.NewBus(t)
	running := 0 // the race detector looks, too
	together := &tidings.SubscribeOptions{Backoff: tidings.Backoff{Initial: time.Second, Jitter: -1}}
	for _, name := range []string{"one", "two"} {
		b.Module("reader").Subscribe(name, together, asked.On(func(ctx context.Context, _ tidings.Event[number]) error {
			running++
			defer func() { running-- }()
			runtime.Gosched()
			if running != 1 {
				return tidings.Permanent(fmt.Errorf("%d run", running))
			}
			if d, _ := tidings.DeliveryFrom(ctx); d.Attempt < 3 {
				return errors.New("again")
			}
			return nil
		}))
	}
	for _, id := range []string{"a", "b", "c", "d"} {
		publish(t, b, asked.New(id, number{1}))
	}
	began := b.Now()
	if letters := b.DeadLetters(); len(letters) > 0 {
		t.Errorf("%+v", letters)
	}
	if took := b.Now().Sub(began); took != 3*time.Second {
		t.Errorf("it took %v of virtual time, want 3s", took)
	}
}

// A handler that waits for its context gets the end of it.
func TestAHandlerHasItsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tidingstest.NewBus(t)
		attempts := 0
		b.Module("oracle").Subscribe("answer", &tidings.SubscribeOptions{Timeout: 3 * time.Minute, MaxAttempts: 2}, asked.On(
			func(ctx context.Context, _ tidings.Event[number]) error {
				attempts++
				<-ctx.Done()
				return ctx.Err()
			}))
		publish(t, b, asked.New("q", number{1}))
		letters := b.DeadLetters()
		if len(letters) != 1 || attempts != 2 || !strings.Contains(letters[0].Err, "deadline exceeded") {
			t.Errorf("%d attempts, %+v", attempts, letters)
		}
	})
}

func TestAHandlerThatDoesNotReturnIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		forever := make(chan struct{})
		text := failures(t, func(t testing.TB) {
			b := tidingstest.NewBus(t)
			b.Module("oracle").Subscribe("answer", nil, asked.On(func(context.Context, tidings.Event[number]) error {
				<-forever
				return nil
			}))
			publish(t, b, asked.New("q", number{1}))
			defer close(forever)
			b.Settle()
		})
		if !strings.Contains(text, "a handler has not returned") || !strings.Contains(text, "attempt 1 runs although its time is over") {
			t.Errorf("failure %s", text)
		}
	})
}

// Code that needs the order of two channels passes in memory, and fails here
// under some seed.
func TestCodeThatReliesOnOrderAcrossChannelsFails(t *testing.T) {
	failed := 0
	for seed := range uint64(20) {
		text := failures(t, func(t testing.TB) {
			b := tidingstest.NewBus(t, tidingstest.Seed(seed))
			known := map[string]bool{}
			reader := b.Module("reader")
			reader.Subscribe("questions", nil, asked.On(func(_ context.Context, e tidings.Event[number]) error {
				known[e.AggregateID()] = true
				return nil
			}))
			reader.Subscribe("answers", nil, answered.On(func(_ context.Context, e tidings.Event[number]) error {
				if !known[e.AggregateID()] { // the mistake: the question may come later
					return tidings.Permanent(errors.New("an answer to nothing"))
				}
				return nil
			}))
			publish(t, b, asked.New("q", number{1}), answered.New("q", number{2}))
			if len(b.DeadLetters()) > 0 {
				t.Errorf("dead letters:\n%s", b.Story())
			}
		})
		if text != "" {
			failed++
		}
	}
	if failed == 0 || failed == 20 {
		t.Errorf("it fails under %d of 20 seeds", failed)
	}
}

// An expectation in a subtest fails the subtest, and the bus outlives it.
func TestExpectationsOfASubtest(t *testing.T) {
	b := tidingstest.NewBus(t)
	answering(b, 0, time.Second)
	publish(t, b, asked.New("q-1", number{1}))
	t.Run("first", func(t *testing.T) { tidingstest.Expect(t, b, answered) })
	publish(t, b, asked.New("q-2", number{1}))
	t.Run("second", func(t *testing.T) {
		if n := len(tidingstest.Expect(t, b, answered)); n != 2 {
			t.Errorf("%d answers", n)
		}
	})
}

func TestAWrongNameIsNoAbsence(t *testing.T) {
	text := failures(t, func(t testing.TB) {
		b := tidingstest.NewBus(t)
		answering(b, 0, time.Second)
		b.Handled("oracle.anwser")
	})
	if !strings.Contains(text, `there is no subscription "oracle.anwser"; there are: oracle.answer`) {
		t.Errorf("failure %q", text)
	}
}

func TestSettleLooksOnlyWhenALaneHasItsTimer(t *testing.T) {
	for range 200 {
		b := tidingstest.NewBus(t)
		second := &tidings.SubscribeOptions{Timeout: -1, Backoff: tidings.Backoff{Initial: time.Second, Jitter: -1}}
		b.Module("oracle").Subscribe("answer", second, asked.On(func(ctx context.Context, _ tidings.Event[number]) error {
			if d, _ := tidings.DeliveryFrom(ctx); d.Attempt < 3 {
				return errors.New("let me think")
			}
			return nil
		}))
		publish(t, b, asked.New("q", number{1}))
		began := b.Now()
		b.Settle()
		if took := b.Now().Sub(began); took != 3*time.Second {
			t.Fatalf("it took %v of virtual time, want 3s\n%s", took, b.Story())
		}
	}
}

func TestMistakesOfConfigurationFailTheTest(t *testing.T) {
	text := failures(t, func(t testing.TB) {
		b := tidingstest.NewBus(t)
		b.Module("oracle").Subscribe("Bad Name", nil, asked.On(func(context.Context, tidings.Event[number]) error { return nil }))
		b.Settle()
	})
	if !strings.Contains(text, "must be a lower-case word") {
		t.Errorf("failure %q", text)
	}
}

// Settle does not wait for a parked event; Advance makes its time come.
func TestAdvanceIsForWhatIsParked(t *testing.T) {
	b := tidingstest.NewBus(t)
	mended := false
	b.Module("oracle").Subscribe("answer", &tidings.SubscribeOptions{RequireOrder: true, MaxAttempts: 2}, asked.On(func(context.Context, tidings.Event[number]) error {
		if !mended {
			return errors.New("broken")
		}
		return nil
	}))
	publish(t, b, asked.New("q", number{1}), asked.New("q", number{2}))
	if handled := b.Handled("oracle.answer"); len(handled) != 0 {
		t.Errorf("handled %v", handled)
	}
	mended = true
	b.Advance(time.Hour)
	if handled := b.Handled("oracle.answer"); len(handled) != 2 {
		t.Errorf("handled %v\n%s", handled, b.Story())
	}
}

func TestRecorder(t *testing.T) {
	var r tidingstest.Recorder
	var p tidings.Publisher = &r
	if err := p.Publish(t.Context(), asked.New("q", number{1}), answered.New("q", number{2})); err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused")
	r.Fail(refused)
	if err := p.Publish(t.Context(), asked.New("q", number{3})); !errors.Is(err, refused) {
		t.Error(err)
	}
	if failed, ok := errors.AsType[*tidings.PublishError](p.Publish(t.Context(), asked.New("q", number{3}))); !ok || len(failed.Unsent()) != 1 {
		t.Errorf("%v", failed)
	}
	r.Fail(nil)
	if err := p.Publish(t.Context(), asked.New("q", number{4}), asked.New("", number{5})); err == nil || !strings.Contains(err.Error(), "the aggregate id is empty") {
		t.Error(err)
	}
	if got := tidingstest.Recorded(&r, answered); len(got) != 1 || got[0].Payload().N != 2 || len(r.Events()) != 2 {
		t.Errorf("recorded %v", r.Events())
	}
}
