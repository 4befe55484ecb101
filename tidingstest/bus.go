package tidingstest

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// Bus is a bus for one test. It is a [tidings.Bus] that starts by itself when
// something is to be settled, and ends with the test. Subscribe before that. Its
// own methods are for the goroutine of the test that made it; a subtest has a
// bus of its own, or uses [Expect] and [ExpectNone], which take its t.
// Publishing is for any goroutine.
type Bus struct {
	*tidings.Bus
	t       testing.TB
	clock   *clock
	driver  *steps
	story   *story
	random  *rand.Rand // the order of channels; used by the goroutine that settles
	seed    uint64
	longest time.Duration
	start   sync.Once
}

// Option changes a [Bus]: [Seed], [Configure] or [Longest].
type Option func(*settings)

type settings struct {
	seed      uint64
	seeded    bool
	configure []func(*tidings.Options)
	longest   time.Duration
}

// Seed makes the order of channels the same in each run. Without it the seed is
// TIDINGS_TEST_SEED, or drawn by chance and printed when the test fails.
func Seed(seed uint64) Option {
	return func(s *settings) { s.seed, s.seeded = seed, true }
}

// Configure changes the options of the bus. Clock is the kit's own. With
// DeadLetters of its own, [Bus.DeadLetters] has none.
func Configure(change func(*tidings.Options)) Option {
	return func(s *settings) { s.configure = append(s.configure, change) }
}

// Longest is how much virtual time Settle may take before it fails the test,
// because something is retried without end. The default is a week.
func Longest(d time.Duration) Option {
	return func(s *settings) { s.longest = d }
}

// NewBus makes a bus for a test. Logs are discarded; what happened is printed
// when an expectation fails.
func NewBus(t testing.TB, options ...Option) *Bus {
	t.Helper()
	s := settings{longest: 7 * 24 * time.Hour}
	for _, option := range options {
		option(&s)
	}
	if text := os.Getenv("TIDINGS_TEST_SEED"); text != "" && !s.seeded {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("tidingstest: TIDINGS_TEST_SEED: %v", err)
		}
		s.seed, s.seeded = seed, true
	}
	if !s.seeded {
		s.seed = rand.Uint64()
	}
	b := &Bus{
		t:       t,
		clock:   newClock(),
		driver:  &steps{},
		story:   &story{},
		random:  newRandom(s.seed),
		seed:    s.seed,
		longest: s.longest,
	}
	o := tidings.Options{Logger: slog.New(slog.DiscardHandler)}
	for _, change := range s.configure {
		change(&o)
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = 100 * time.Millisecond // nothing is due any more: virtual time stands still
	}
	o.Clock = b.clock
	o.Observers = append(slices.Clip(o.Observers), b.story)
	b.Bus = tidings.New(b.driver, &o)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("tidingstest: TIDINGS_TEST_SEED=%d repeats this order of channels", b.seed)
		}
	})
	return b
}

// Start runs the bus until the test ends. Settle and the expectations call it;
// call it to hear earlier what is declared wrongly.
func (b *Bus) Start() {
	b.t.Helper()
	b.run(b.t)
}

// run starts the bus once; t is told what is wrong.
func (b *Bus) run(t testing.TB) {
	t.Helper()
	b.start.Do(func() {
		t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx) }()
		err := b.Ready(ctx)
		b.t.Cleanup(func() { // of the bus's test: it outlives a subtest that expects
			cancel()
			if runErr := <-done; runErr != nil && err == nil {
				b.t.Errorf("tidingstest: Run: %v", runErr)
			}
		})
		if err != nil {
			t.Fatalf("tidingstest: %v", err)
		}
		b.driver.begin()
	})
}

// Settle returns when everything that was published so far, and all that it
// caused, has finished: handled, dead, deduplicated, parked, held or blocked. It
// advances virtual time over retries, and fails the test when something is
// retried without end or a handler does not return.
func (b *Bus) Settle() {
	b.t.Helper()
	b.settle(b.t)
}

func (b *Bus) settle(t testing.TB) {
	t.Helper()
	b.run(t)
	limit := b.clock.Now().Add(b.longest)
	for {
		b.deliverAll(t)
		if !b.clock.lanesWait() {
			return
		}
		if !b.clock.step(limit, b.random) {
			t.Fatalf("tidingstest: after %v of virtual time something is still retried (the option Longest changes that bound):\n%s%s", b.longest, b.story.unfinished(), b.account())
		}
	}
}

// deliverAll hands out what is published, one message at a time, until nothing
// is left and nothing runs.
func (b *Bus) deliverAll(t testing.TB) {
	t.Helper()
	b.awaitQuiet(t)
	for b.driver.deliver(b.random) {
		b.awaitQuiet(t)
	}
}

// Advance lets virtual time pass and then settles: for parked, held and blocked
// events, which Settle does not wait for.
func (b *Bus) Advance(d time.Duration) {
	b.t.Helper()
	b.Settle()
	until := b.clock.Now().Add(d)
	for b.clock.step(until, b.random) {
		b.deliverAll(b.t)
	}
	b.Settle()
}

// Now is the virtual time, which the engine works with.
func (b *Bus) Now() time.Time { return b.clock.Now() }

const (
	// patience is how long a handler may run, in real time, before virtual time
	// goes on to what it may be waiting for.
	patience = 10 * time.Second
	// chances is how often that happens before the test fails: for the end of its
	// context, and for the engine's look at handlers that ignore it.
	chances = 3
)

func (b *Bus) awaitQuiet(t testing.TB) {
	t.Helper()
	limit := b.clock.Now().Add(b.longest)
	for range chances {
		if b.clock.awaitQuiet(patience) {
			return
		}
		b.clock.step(limit, b.random)
	}
	t.Fatalf("tidingstest: a handler has not returned for %v, also after its time was over:\n%s%s", chances*patience, b.story.unfinished(), b.account())
}

// DeadLetters settles and returns what subscriptions gave up on, oldest first.
func (b *Bus) DeadLetters() []driver.DeadLetter {
	b.t.Helper()
	b.Settle()
	return b.driver.deadLetters()
}

// Handled settles and returns the ids of the events that a subscription
// ("module.name") has handled, in that order. It fails the test when there is no
// such subscription.
func (b *Bus) Handled(subscription string) []string {
	b.t.Helper()
	b.Settle()
	if names := b.driver.subscriptions(); !slices.Contains(names, subscription) {
		b.t.Fatalf("tidingstest: there is no subscription %q; there are: %s", subscription, strings.Join(names, ", "))
	}
	return b.story.handled(subscription)
}

// Story is what happened so far, as an indented text: which event was published,
// what each subscription made of it, and what that caused.
func (b *Bus) Story() string {
	return b.story.String() + fmt.Sprintf("(TIDINGS_TEST_SEED=%d)\n", b.seed)
}

// accountLines bounds the story in the message of a failure.
const accountLines = 200

// account is the story as a failure prints it.
func (b *Bus) account() string {
	lines := strings.SplitAfter(b.Story(), "\n")
	if len(lines) <= accountLines {
		return strings.Join(lines, "")
	}
	return strings.Join(lines[:accountLines], "") + fmt.Sprintf("  … and %d lines more, see Bus.Story\n(TIDINGS_TEST_SEED=%d)\n", len(lines)-accountLines, b.seed)
}

func newRandom(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }
