package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

// badError does in each of its methods what it was made to do there.
type badError struct {
	text, is, as, unwrap func()
}

func call(do func()) {
	if do != nil {
		do()
	}
}

func (e *badError) Error() string { call(e.text); return "bad" }
func (e *badError) Is(error) bool { call(e.is); return false }
func (e *badError) As(any) bool   { call(e.as); return false }
func (e *badError) Unwrap() error { call(e.unwrap); return nil }
func nilError() *badError         { return nil } // the classic mistake: a nil pointer in an error
func panics()                     { panic("thrown") }
func sometimes(chance float64) func() {
	return func() {
		if rand.Float64() < chance {
			panics()
		}
	}
}

// Whatever an application supplies may panic, or end its goroutine: the event it was
// called for ends as a dead letter, the process lives, and the next event is handled.
func TestWhatAnApplicationThrowsIsAFailureOfTheEvent(t *testing.T) {
	for name, fail := range map[string]func() error{
		"the handler panics":                 func() error { panic("thrown") },
		"the handler panics with nil":        func() error { panic(nil) }, //nolint:govet // it is the case
		"the handler ends its goroutine":     func() error { runtime.Goexit(); return nil },
		"a nil pointer as error":             func() error { return nilError() },
		"Error panics":                       func() error { return &badError{text: panics} },
		"Error ends the goroutine":           func() error { return &badError{text: runtime.Goexit} },
		"Is panics":                          func() error { return &badError{is: panics} },
		"As panics":                          func() error { return &badError{as: panics} },
		"Unwrap panics":                      func() error { return &badError{unwrap: panics} },
		"Error panics now and then":          func() error { return &badError{text: sometimes(0.5)} },
		"Is panics now and then":             func() error { return &badError{is: sometimes(0.1), as: sometimes(0.1)} },
		"a nil pointer that is wrapped":      func() error { return fmt.Errorf("wrapped: %w", error(nilError())) },
		"a nil pointer as permanent":         func() error { return tidings.Permanent(nilError()) },
		"a nil pointer beside a sound error": func() error { return errors.Join(errors.New("sound"), nilError()) },
		"a nil pointer to try again":         func() error { return tidings.RetryAfter(nilError(), time.Second) },
	} {
		for _, way := range []string{"in the publisher's goroutine", "in a worker"} {
			t.Run(name+"/"+way, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					d := memory.New(&memory.Options{Async: way == "in a worker"})
					watching := &curious{}
					b := tidings.New(d, &tidings.Options{Logger: discard(), Observers: []tidings.Observer{watching}})
					var handled atomic.Int64
					subscribe(t, b, "doors", &tidings.SubscribeOptions{MaxAttempts: 2}, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
						if e.Payload().Number == 1 {
							return fail()
						}
						handled.Add(1)
						return nil
					})
					start(t, b)
					published := make(chan struct{})
					go func() { // a handler may end this goroutine
						defer close(published)
						_ = b.Publish(t.Context(), numberChosen.New("a", numberPayload{1}), numberChosen.New("a", numberPayload{2}))
					}()
					<-published
					pass(time.Hour)
					synctest.Wait()
					if letters := d.DeadLetters(); len(letters) != 1 || letters[0].Err == "" || letters[0].Attempts < 1 {
						t.Errorf("dead letters %+v, want one with a text", letters)
					}
					if handled.Load() != 1 {
						t.Errorf("the next event was handled %d times", handled.Load())
					}
				})
			})
		}
	}
}

// curious is an observer that looks at every error, and does not expect a bad one.
type curious struct{}

func (c *curious) Observe(_ context.Context, o tidings.Observation) {
	if o.Err != nil {
		_ = o.Err.Error()
		_ = errors.Is(o.Err, context.Canceled)
	}
}

func (c *curious) ObserveProcess(ctx context.Context, _ tidings.DomainEvent, _ driver.Headers) (context.Context, func(error)) {
	return ctx, func(err error) {
		if err != nil {
			_ = err.Error()
			_ = errors.Is(err, context.Canceled)
		}
	}
}

// throwing is an observer that panics wherever it is called, or in one place.
type throwing struct{ where string }

func (o throwing) at(where string) {
	if o.where == where {
		panics()
	}
}

func (o throwing) Observe(context.Context, tidings.Observation) { o.at("Observe") }

func (o throwing) ObserveProcess(ctx context.Context, _ tidings.DomainEvent, _ driver.Headers) (context.Context, func(error)) {
	o.at("ObserveProcess")
	return ctx, func(error) { o.at("the end of ObserveProcess") }
}

func (o throwing) ObservePublish(ctx context.Context, _ *tidings.Publication) (context.Context, func(error)) {
	o.at("ObservePublish")
	return ctx, func(error) { o.at("the end of ObservePublish") }
}

// What an observer does wrong is no event's fault, and no publisher's.
func TestAnObserverThatPanicsChangesNothing(t *testing.T) {
	for _, where := range []string{"Observe", "ObserveProcess", "the end of ObserveProcess", "ObservePublish", "the end of ObservePublish"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := memory.New(nil)
				b := tidings.New(d, &tidings.Options{Logger: discard(), Observers: []tidings.Observer{throwing{where}}})
				var got []int
				subscribe(t, b, "doors", nil, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
					got = append(got, e.Payload().Number)
					return nil
				})
				start(t, b)
				if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{1}), numberChosen.New("b", numberPayload{2})); err != nil {
					t.Error(err)
				}
				pass(time.Hour)
				synctest.Wait()
				if fmt.Sprint(got) != "[1 2]" || len(d.DeadLetters()) != 0 {
					t.Errorf("handled %v, dead letters %v", got, d.DeadLetters())
				}
			})
		})
	}
}

// flakyClaims are claims that panic at first.
type flakyClaims struct {
	mu   sync.Mutex
	left int
}

func (c *flakyClaims) step() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left--; c.left >= 0 {
		panics()
	}
}

func (c *flakyClaims) Claim(context.Context, driver.ClaimRequest) (driver.ClaimAnswer, error) {
	c.step()
	return driver.ClaimAnswer{State: driver.ClaimFresh}, nil
}
func (c *flakyClaims) Finish(context.Context, driver.ClaimRequest) error  { c.step(); return nil }
func (c *flakyClaims) Release(context.Context, driver.ClaimRequest) error { c.step(); return nil }
func (c *flakyClaims) Durable() bool                                      { return false }

// A store that panics is one that does not answer: the lane holds, no attempt is used,
// and it goes on when the store does.
func TestAStoreThatPanicsIsOneThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memory.New(&memory.Options{Async: true})
		counts := &count{}
		b := tidings.New(d, &tidings.Options{Logger: discard(), Observers: []tidings.Observer{counts}, Claims: &flakyClaims{left: 7}})
		var got []int
		subscribe(t, b, "doors", &tidings.SubscribeOptions{MaxAttempts: 1}, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
			got = append(got, e.Payload().Number)
			return nil
		})
		start(t, b)
		for n := range 3 {
			if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{n})); err != nil {
				t.Fatal(err)
			}
		}
		pass(time.Hour)
		synctest.Wait()
		if fmt.Sprint(got) != "[0 1 2]" || len(d.DeadLetters()) != 0 || counts.of(tidings.StoreFailed) < 7 {
			t.Errorf("handled %v, dead letters %v, %d times the store failed", got, d.DeadLetters(), counts.of(tidings.StoreFailed))
		}
	})
}

// temper is a text that panics when it is read or written.
type temper struct{ text string }

func (x temper) MarshalText() ([]byte, error) {
	if x.text == "cannot be written" {
		panics()
	}
	return []byte(x.text), nil
}

func (x *temper) UnmarshalText(text []byte) error {
	if strings.HasPrefix(string(text), "cannot be read") {
		panics()
	}
	x.text = string(text)
	return nil
}

type temperPayload struct {
	Value temper `json:"value"`
}

// Text types and upcasts are an application's code too.
func TestTextsAndUpcastsThatPanic(t *testing.T) {
	t.Run("a text", func(t *testing.T) {
		contract := tidings.Define[temperPayload]("numbers.temper.changed", 1, tidings.Repeatable)
		texts := func(text string) tidings.DomainEvent { return contract.New("a", temperPayload{temper{text}}) }
		b := behindBadCode(t, contract, texts("cannot be read"), texts("sound"))
		if err := b.Publish(t.Context(), texts("cannot be written")); err == nil {
			t.Error("a payload that panics when it is written was published")
		}
	})
	t.Run("an upcast", func(t *testing.T) {
		older := tidings.Define[p1]("numbers.pair.joined", 1, tidings.Repeatable)
		newer := tidings.Define[p2]("numbers.pair.joined", 2, tidings.Repeatable, tidings.From(older, func(p p1) (p2, error) {
			if p.A == 1 {
				panics()
			}
			return p2{p.A, 0}, nil
		}))
		behindBadCode(t, newer, older.New("b", p1{1}), older.New("b", p1{2}))
	})
}

// behindBadCode publishes an event that cannot be read and one that can, and expects a
// dead letter and a handled event.
func behindBadCode[P any](t *testing.T, contract tidings.Contract[P], events ...tidings.DomainEvent) *tidings.Bus {
	t.Helper()
	broker := newRandomBroker()
	var handled atomic.Int64
	b, _ := oneProcess(t, broker, nil, contract, func(context.Context, tidings.Event[P]) error {
		handled.Add(1)
		return nil
	})
	if err := b.Publish(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return broker.unfinished() == 0 })
	if handled.Load() != 1 || len(broker.letters) != 1 {
		t.Errorf("%d events were handled and %d are dead letters, want one and one", handled.Load(), len(broker.letters))
	}
	return b
}
