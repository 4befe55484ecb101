package tidings_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
)

// oneProcess runs a bus over a broker that outlives it, with one subscription,
// and hands it everything the broker has.
func oneProcess[P any](t *testing.T, broker *randomBroker, options *tidings.Options, c tidings.Contract[P], fn func(context.Context, tidings.Event[P]) error) (*tidings.Bus, func()) {
	t.Helper()
	if options == nil {
		options = &tidings.Options{}
	}
	options.Logger = discard()
	b := tidings.New(&randomDriver{broker}, options)
	subscribe(t, b, "reader", &tidings.SubscribeOptions{MaxAttempts: 2, Backoff: tidings.Backoff{Initial: time.Millisecond}}, c, fn)
	stop := start(t, b)
	for _, p := range broker.partitions {
		broker.move(p, tidings.ConsumerOf(b).(*randomConsumer), false)
	}
	return b, stop
}

func newRandomBroker() *randomBroker {
	return &randomBroker{random: rand.New(rand.NewPCG(1, 1)), partitions: []*randomPartition{{name: "p"}}}
}

// count is an observer that counts what it sees, by kind.
type count struct {
	kinds [64]atomic.Int64
}

func (c *count) Observe(_ context.Context, o tidings.Observation) { c.kinds[o.Kind].Add(1) }

func (c *count) of(k tidings.Kind) int { return int(c.kinds[k].Load()) }

func TestAHandlerGetsTheVersionItWasWrittenFor(t *testing.T) {
	v1 := tidings.Define[p1]("numbers.pair.made", 1, tidings.Repeatable)
	v2 := tidings.Define[p2]("numbers.pair.made", 2, tidings.Repeatable, tidings.ReadableFrom(1),
		tidings.From(v1, func(p p1) (p2, error) { return p2{A: p.A, B: -1}, nil }))
	v3 := tidings.Define[p3]("numbers.pair.made", 3, tidings.Repeatable,
		tidings.From(v2, func(p p2) (p3, error) {
			if p.A == 13 {
				return p3{}, fmt.Errorf("thirteen")
			}
			return p3{A: fmt.Sprint(p.A), B: p.B, C: 3}, nil
		}))
	for _, medium := range []string{"wire", "memory"} {
		t.Run(medium, func(t *testing.T) {
			var got []string
			handle := func(_ context.Context, e tidings.Event[p3]) error {
				got = append(got, fmt.Sprintf("%+v v%d", e.Payload(), e.Version()))
				return nil
			}
			publish := func(b *tidings.Bus) {
				t.Helper()
				err := b.Publish(t.Context(), v1.New("x", p1{1}), v2.New("x", p2{2, 5}), v3.New("x", p3{"3", 6, 7}), v1.New("x", p1{13}))
				if err != nil {
					t.Fatal(err)
				}
			}
			var letters func() []driver.DeadLetter
			var done chan struct{}
			if medium == "wire" {
				broker := newRandomBroker()
				b, _ := oneProcess(t, broker, nil, v3, handle)
				publish(b)
				waitFor(t, func() bool { return broker.unfinished() == 0 })
				letters = func() []driver.DeadLetter { return broker.letters }
			} else {
				d := memory.New(nil)
				b := tidings.New(d, &tidings.Options{Logger: discard()})
				subscribe(t, b, "reader", nil, v3, handle)
				start(t, b)
				publish(b)
				letters = d.DeadLetters
			}
			_ = done
			if want := "[{A:1 B:-1 C:3} v3 {A:2 B:5 C:3} v3 {A:3 B:6 C:7} v3]"; fmt.Sprint(got) != want {
				t.Errorf("got %v, want %s", got, want)
			}
			if l := letters(); len(l) != 1 || l[0].Reason != "undecodable" || !strings.Contains(l[0].Err, "thirteen") {
				t.Errorf("dead letters %+v", l)
			}
		})
	}
}

func TestANewerEventThatIsReadable(t *testing.T) {
	v1 := tidings.Define[p1]("numbers.pair.made", 1, tidings.Repeatable)
	v2 := tidings.Define[p2]("numbers.pair.made", 2, tidings.Repeatable, tidings.ReadableFrom(1), tidings.ReadsFrom(1))
	broker := newRandomBroker()
	var got []int
	b, _ := oneProcess(t, broker, nil, v1, func(_ context.Context, e tidings.Event[p1]) error {
		got = append(got, e.Payload().A*10+e.Version())
		return nil
	})
	if err := b.Publish(t.Context(), v2.New("x", p2{4, 5})); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return broker.unfinished() == 0 })
	if fmt.Sprint(got) != "[41]" {
		t.Errorf("got %v", got)
	}
}

// A newer event that the handler cannot read is no poison: its lane waits, no
// attempt is used, other lanes flow, and the next release handles it in order.
func TestANewerEventIsHeldUntilTheHandlerIsReplaced(t *testing.T) {
	v1 := tidings.Define[p1]("numbers.pair.made", 1, tidings.Repeatable)
	v2 := tidings.Define[p2]("numbers.pair.made", 2, tidings.Repeatable, tidings.ReadsFrom(1))
	broker := newRandomBroker()
	counts := &count{}
	var old atomic.Int64
	b, stop := oneProcess(t, broker, &tidings.Options{Observers: []tidings.Observer{counts}}, v1, func(context.Context, tidings.Event[p1]) error {
		old.Add(1)
		return nil
	})
	if err := b.Publish(t.Context(), v1.New("x", p1{1}), v2.New("x", p2{2, 2}), v1.New("x", p1{3}), v1.New("y", p1{4})); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return old.Load() == 2 && counts.of(tidings.Held) == 1 && broker.unfinished() == 2 })
	stop()
	if len(broker.letters) > 0 || counts.of(tidings.Retried) > 0 {
		t.Errorf("dead letters %v, retries %d", broker.letters, counts.of(tidings.Retried))
	}
	var got []int
	oneProcess(t, broker, nil, v2, func(_ context.Context, e tidings.Event[p2]) error {
		got = append(got, e.Payload().A)
		return nil
	})
	waitFor(t, func() bool { return broker.unfinished() == 0 })
	if fmt.Sprint(got) != "[2 3]" {
		t.Errorf("the new release handled %v, want 2 and 3", got)
	}
}

func TestOccurrenceDecidesWhatIsADuplicate(t *testing.T) {
	once := tidings.Define[numberPayload]("numbers.number.born", 1, tidings.Once)
	for name, test := range map[string]struct {
		contract tidings.Contract[numberPayload]
		want     string
	}{
		"once":       {once, "[1 3]"},
		"repeatable": {numberChosen, "[1 2 3]"},
	} {
		t.Run(name, func(t *testing.T) {
			counts := &count{}
			b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard(), Observers: []tidings.Observer{counts}})
			var got []int
			subscribe(t, b, "look", nil, test.contract, func(_ context.Context, e tidings.Event[numberPayload]) error {
				got = append(got, e.Payload().Number)
				return nil
			})
			start(t, b)
			first := test.contract.New("a", numberPayload{1})
			second := test.contract.New("a", numberPayload{2})
			third := test.contract.New("b", numberPayload{3})
			for _, e := range []tidings.DomainEvent{first, second, third, first, second} {
				if err := b.Publish(t.Context(), e); err != nil {
					t.Fatal(err)
				}
			}
			if fmt.Sprint(got) != test.want {
				t.Errorf("handled %v, want %v", got, test.want)
			}
			// The second of a Once contract has another payload than the first.
			if differs := counts.of(tidings.DuplicateDiffers); (name == "once") != (differs == 2) {
				t.Errorf("%d duplicates differ", differs)
			}
		})
	}
}
