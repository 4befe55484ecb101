package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
)

func nothing[P any](context.Context, tidings.Event[P]) error { return nil }

// Every complaint is made at once, and each names what is wrong and where.
func TestRunMakesEveryComplaintAtOnce(t *testing.T) {
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard(), DrainTimeout: -1, StartAt: tidings.StartAt{Time: time.Date(2026, 1, 15, 0, 0, 0, 0, time.UTC)}})
	again := tidings.Define[p1]("a.b.c", 1, tidings.Once)
	first := tidings.Define[p1]("a.b.c", 1, tidings.Once)
	m := b.Module("billing")
	m.Subscribe("fine", nil, first.On(nothing))
	m.Subscribe("fine", nil, numberChosen.On(nothing))
	m.Subscribe("Not Fine", nil, numberChosen.On(nothing))
	m.Subscribe("no-reaction", nil)
	m.Subscribe("nil-handler", nil, numberChosen.On(nil))
	m.Subscribe("twice", nil, numberChosen.On(nothing), numberChosen.On(nothing))
	m.Subscribe("two-channels", nil, numberChosen.On(nothing), numberDoubled.On(nothing))
	m.Subscribe("defined-twice", nil, again.On(nothing))
	m.Subscribe("durable", &tidings.SubscribeOptions{RequireDurable: true, RequireDedup: true}, numberChosen.On(nothing))
	m.Subscribe("contradiction", &tidings.SubscribeOptions{RequireOrder: true, OnExhausted: tidings.DeadLetter}, numberChosen.On(nothing))
	m.Subscribe("numbers", &tidings.SubscribeOptions{Concurrency: -1, Backoff: tidings.Backoff{Initial: 5, Max: 1}}, numberChosen.On(nothing))
	m.Subscribe("start", &tidings.SubscribeOptions{StartAt: tidings.StartAt{Mode: 9}}, numberChosen.On(nothing))
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
		"Options.StartAt is {Mode:0 Time:2026-01-15", "StartAt is {Mode:9", "use tidings.StartBeginning, tidings.StartNow or tidings.StartAtTime",
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

// nextLine is the place of the line after the call.
func nextLine() string {
	_, file, line, _ := runtime.Caller(1)
	return fmt.Sprintf("%s/%s:%d", filepath.Base(filepath.Dir(file)), filepath.Base(file), line+1)
}

// untouched is a driver that counts what is asked of it. Two of its channels have
// one name on its broker.
type untouched struct {
	*memory.Driver
	checked, subscribed, closed int
}

func (d *untouched) BrokerName(channel string) string { return strings.ReplaceAll(channel, "_", "-") }
func (d *untouched) Check(context.Context) error      { d.checked++; return nil }
func (d *untouched) Subscribe(ctx context.Context, s driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	d.subscribed++
	return d.Driver.Subscribe(ctx, s, sink)
}

func (d *untouched) Close(ctx context.Context) error {
	d.closed++
	return d.Driver.Close(ctx)
}

// neverRun is a runner that must not be started.
type neverRun struct{ t *testing.T }

func (r neverRun) Run(context.Context) error { r.t.Error("a runner was started"); return nil }

// No mistake hides another: Run has those of every subscription, each with its
// place, and with both places where two are at odds. Then it starts nothing.
func TestRunReportsTheMistakesOfEverySubscriptionWithTheirPlaces(t *testing.T) {
	d := &untouched{Driver: memory.New(nil)}
	b := tidings.New(d, &tidings.Options{Logger: discard()})
	if err := b.Add(neverRun{t}); err != nil {
		t.Fatal(err)
	}
	m := b.Module("billing")
	ledger := nextLine()
	m.Subscribe("ledger", nil, numberChosen.On(nothing))
	again := nextLine()
	m.Subscribe("ledger", nil, numberChosen.On(nothing))
	empty := nextLine()
	m.Subscribe("empty", &tidings.SubscribeOptions{MaxAttempts: -1})
	durable := nextLine()
	m.Subscribe("durable", &tidings.SubscribeOptions{RequireDurable: true, FormerNames: []string{"old"}}, numberChosen.On(nothing))
	heir := nextLine()
	m.Subscribe("heir", &tidings.SubscribeOptions{FormerNames: []string{"old"}}, numberChosen.On(nothing))
	dash := nextLine()
	withDash := tidings.Define[numberPayload]("billing.a-b.c", 1, tidings.Once)
	line := nextLine()
	withLine := tidings.Define[numberPayload]("billing.a_b.c", 1, tidings.Once)
	m.Subscribe("dash", nil, withDash.On(nothing))
	m.Subscribe("line", nil, withLine.On(nothing))

	err := b.Run(t.Context())
	refused, ok := errors.AsType[*tidings.ConfigurationError](err)
	if !ok {
		t.Fatalf("Run: %v", err)
	}
	var said []string
	for _, complaint := range refused.Complaints {
		said = append(said, complaint.Error())
	}
	want := []string{
		fmt.Sprintf("subscription billing.ledger at %s: the name is taken by the subscription at %s", again, ledger),
		fmt.Sprintf("subscription billing.empty at %s: MaxAttempts is -1", empty),
		fmt.Sprintf("subscription billing.empty at %s: it has no reaction", empty),
		fmt.Sprintf("subscription billing.durable at %s: it says RequireDurable", durable),
		fmt.Sprintf("subscription billing.heir at %s: its former name billing.old is a name of subscription billing.durable at %s", heir, durable),
		fmt.Sprintf("channels billing.a-b.c (billing.a-b.c v1 at %s) and billing.a_b.c (billing.a_b.c v1 at %s) have the same name billing.a-b.c", dash, line),
	}
	if len(said) != len(want) {
		t.Errorf("%d complaints, want %d:\n%v", len(said), len(want), err)
	}
	for _, beginning := range want {
		if !slices.ContainsFunc(said, func(text string) bool { return strings.HasPrefix(text, beginning) }) {
			t.Errorf("no complaint begins with %q:\n%v", beginning, err)
		}
		if !strings.Contains(err.Error(), beginning) {
			t.Errorf("the text of Run's error does not have %q:\n%v", beginning, err)
		}
	}
	if d.checked != 0 || d.subscribed != 0 || d.closed != 1 {
		t.Errorf("the driver was checked %d, subscribed %d and closed %d times, want 0, 0 and 1", d.checked, d.subscribed, d.closed)
	}
	if ready := b.Ready(t.Context()); ready != err { //nolint:errorlint // it is the same value
		t.Errorf("Ready: %v, want the error of Run", ready)
	}
}

// A subscription that comes too late would never get an event. That is a
// programmer's mistake: it panics with one sentence and changes nothing.
func TestSubscribingTooLatePanics(t *testing.T) {
	const declare = ": declare every subscription before Run"
	for name, c := range map[string]struct {
		prepare    func(t *testing.T, b *tidings.Bus)
		after, end string
	}{
		"while it runs": {func(t *testing.T, b *tidings.Bus) { start(t, b) }, "after Run at ", declare},
		"after Run":     {func(t *testing.T, b *tidings.Bus) { start(t, b)() }, "after Run at ", declare},
		"after Run has refused": {func(t *testing.T, b *tidings.Bus) {
			b.Module("numbers").Subscribe("empty", nil)
			if b.Run(t.Context()) == nil {
				t.Error("Run has no complaint")
			}
		}, "after Run at ", declare},
		"after Close": {func(t *testing.T, b *tidings.Bus) {
			if err := b.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}, "after Close at ", ": a closed bus does not run again, declare it on a new one"},
	} {
		t.Run(name, func(t *testing.T) {
			b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard()})
			c.prepare(t, b)
			before := len(b.Subscriptions())
			var thrown any
			place := ""
			func() {
				defer func() { thrown = recover() }()
				place = nextLine()
				b.Module("numbers").Subscribe("late", nil, numberChosen.On(nothing))
			}()
			text, _ := thrown.(string)
			if !strings.HasPrefix(text, "tidings: subscription numbers.late is declared at "+place+", "+c.after) || !strings.HasSuffix(text, c.end) ||
				strings.Count(text, "_test.go:") != 2 || strings.Contains(text, "\n") {
				t.Errorf("it panicked with %v", thrown)
			}
			if after := len(b.Subscriptions()); after != before {
				t.Errorf("%d subscriptions, before %d", after, before)
			}
		})
	}
}

// beginner is a driver with history that notes where its subscriptions begin.
type beginner struct {
	endless
	starts map[string]tidings.StartAt
}

func (d *beginner) Features() driver.Features {
	f := d.randomDriver.Features()
	f.History = true
	return f
}

func (d *beginner) Subscribe(ctx context.Context, s driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	d.starts[s.Name] = s.StartAt
	return d.randomDriver.Subscribe(ctx, s, sink)
}

// Options.StartAt is for subscriptions that say nothing; their own word wins.
func TestStartAtOfTheBusIsTheDefault(t *testing.T) {
	monday := tidings.StartAtTime(time.Date(2026, 1, 12, 0, 0, 0, 0, time.UTC))
	for name, c := range map[string]struct{ bus, own, want tidings.StartAt }{
		"of the bus":       {bus: tidings.StartBeginning, want: tidings.StartBeginning},
		"of the bus, time": {bus: monday, want: monday},
		"both":             {bus: tidings.StartBeginning, own: tidings.StartNow, want: tidings.StartNow},
		"both, time":       {bus: monday, own: tidings.StartBeginning, want: tidings.StartBeginning},
		"its own":          {own: monday, want: monday},
	} {
		t.Run(name, func(t *testing.T) {
			d := &beginner{endless{randomDriver{newRandomBroker()}}, map[string]tidings.StartAt{}}
			b := tidings.New(d, &tidings.Options{Logger: discard(), StartAt: c.bus})
			subscribe(t, b, "reader", &tidings.SubscribeOptions{StartAt: c.own}, numberChosen, nothing)
			declared := b.Subscriptions()
			start(t, b)
			if got := d.starts["numbers.reader"]; got != c.want {
				t.Errorf("the driver was told to begin at %+v, want %+v", got, c.want)
			}
			if declared[0].StartAt != c.want {
				t.Errorf("Bus.Subscriptions says %+v, want %+v", declared[0].StartAt, c.want)
			}
		})
	}
	t.Run("without options", func(t *testing.T) {
		d := &beginner{endless{randomDriver{newRandomBroker()}}, map[string]tidings.StartAt{}}
		b := tidings.New(d, &tidings.Options{Logger: discard(), StartAt: tidings.StartNow})
		subscribe(t, b, "reader", nil, numberChosen, nothing)
		start(t, b)
		if got := d.starts["numbers.reader"]; got != tidings.StartNow {
			t.Errorf("the driver was told to begin at %+v", got)
		}
	})
	t.Run("on a driver without history", func(t *testing.T) {
		b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard(), StartAt: tidings.StartNow})
		handled := 0
		subscribe(t, b, "reader", nil, numberChosen, func(context.Context, tidings.Event[numberPayload]) error { handled++; return nil })
		start(t, b)
		if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{1})); err != nil || handled != 1 {
			t.Errorf("%d handled, %v", handled, err)
		}
	})
}

func TestLifeCycleMistakes(t *testing.T) {
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard()})
	stop := start(t, b)
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
	if err := unused.Run(t.Context()); !errors.Is(err, tidings.ErrClosed) || strings.Count(err.Error(), "_test.go:") != 2 {
		t.Errorf("Run after Close: %v", err)
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
	b.Module("numbers").Subscribe("reader", nil, numberChosen.On(nothing))
	err := b.Run(t.Context())
	for _, want := range []string{"Options.RedeliveryHorizon", "say with StartAt where the subscription begins", "in its SubscribeOptions or for all of them in Options", "tidings.StartBeginning", "tidings.StartNow"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Run does not ask for %s: %v", want, err)
		}
	}
}
