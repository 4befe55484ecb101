package tidings_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
)

func nothing[P any](context.Context, tidings.Event[P]) error { return nil }

// Every complaint is made at once, and each names what is wrong and where.
func TestRunMakesEveryComplaintAtOnce(t *testing.T) {
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard(), DrainTimeout: -1})
	again := tidings.Define[p1]("a.b.c", 1, tidings.Once)
	first := tidings.Define[p1]("a.b.c", 1, tidings.Once)
	m := b.Module("billing")
	_ = m.Subscribe("fine", nil, first.On(nothing))
	_ = m.Subscribe("fine", nil, numberChosen.On(nothing))
	_ = m.Subscribe("Not Fine", nil, numberChosen.On(nothing))
	_ = m.Subscribe("no-reaction", nil)
	_ = m.Subscribe("nil-handler", nil, numberChosen.On(nil))
	_ = m.Subscribe("twice", nil, numberChosen.On(nothing), numberChosen.On(nothing))
	_ = m.Subscribe("two-channels", nil, numberChosen.On(nothing), numberDoubled.On(nothing))
	_ = m.Subscribe("defined-twice", nil, again.On(nothing))
	_ = m.Subscribe("durable", &tidings.SubscribeOptions{RequireDurable: true, RequireDedup: true}, numberChosen.On(nothing))
	_ = m.Subscribe("contradiction", &tidings.SubscribeOptions{RequireOrder: true, OnExhausted: tidings.DeadLetter}, numberChosen.On(nothing))
	_ = m.Subscribe("numbers", &tidings.SubscribeOptions{Concurrency: -1, Backoff: tidings.Backoff{Initial: 5, Max: 1}}, numberChosen.On(nothing))
	b.Module("Bad Module")
	err := b.Run(t.Context())
	var configuration *tidings.ConfigurationError
	if !errors.As(err, &configuration) {
		t.Fatalf("Run: %v", err)
	}
	for _, want := range []string{
		"DrainTimeout is -1ns",
		": the name is taken by the subscription at ",
		"the name must be a lower-case word",
		"billing.no-reaction", "it has no reaction",
		"the handler of numbers.number.chosen v1 is nil",
		"one subscription takes one version of a type, once",
		"its contracts lie on the channels numbers.number.chosen, numbers.number.doubled",
		"contract a.b.c v1 is defined twice, at",
		"it says RequireDurable, and driver in-memory loses events with the process",
		"it says RequireDedup",
		"RequireOrder and OnExhausted: DeadLetter contradict",
		"Concurrency is -1", "Backoff{Initial: 5ns",
		`module "Bad Module"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the complaints do not say %q:\n%v", want, err)
		}
	}
	if err := b.Ready(t.Context()); !errors.As(err, &configuration) {
		t.Errorf("Ready after a refused Run: %v", err)
	}
}

func TestLifeCycleMistakes(t *testing.T) {
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard()})
	stop := start(t, b)
	if err := b.Module("numbers").Subscribe("late", nil, numberChosen.On(nothing)); !errors.Is(err, tidings.ErrRunning) || strings.Count(err.Error(), "_test.go:") != 2 {
		t.Errorf("subscribing after Run: %v", err)
	}
	if err := b.Run(t.Context()); !errors.Is(err, tidings.ErrRunning) || strings.Count(err.Error(), "_test.go:") != 2 {
		t.Errorf("Run twice: %v", err)
	}
	if err := b.Close(t.Context()); !errors.Is(err, tidings.ErrRunning) {
		t.Errorf("Close while running: %v", err)
	}
	stop()
	if err := b.Close(t.Context()); err != nil {
		t.Errorf("Close after Run: %v", err)
	}
	unused := tidings.New(memory.New(nil), nil)
	if err := unused.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := unused.Publish(t.Context(), numberChosen.New("a", numberPayload{})); !errors.Is(err, tidings.ErrClosed) {
		t.Errorf("publish after Close: %v", err)
	}
	if err := unused.Run(t.Context()); err == nil {
		t.Error("Run after Close succeeded")
	}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tidings.New(memory.New(nil), nil).Ready(short); !errors.Is(err, context.Canceled) {
		t.Errorf("Ready without Run: %v", err)
	}
}

// endless is a driver on which an event may come again after any time.
type endless struct{ randomDriver }

func (d *endless) Features() driver.Features {
	f := d.randomDriver.Features()
	f.RedeliveryHorizon, f.History = -1, true
	return f
}

func TestADriverWithHistoryAsksForNumbers(t *testing.T) {
	b := tidings.New(&endless{randomDriver{newRandomBroker()}}, &tidings.Options{Logger: discard(), Claims: &sharedClaims{}})
	_ = b.Module("numbers").Subscribe("reader", nil, numberChosen.On(nothing))
	err := b.Run(t.Context())
	for _, want := range []string{"Options.RedeliveryHorizon", "say with StartAt where the subscription begins", "tidings.StartBeginning", "tidings.StartNow"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Run does not ask for %s: %v", want, err)
		}
	}
}
