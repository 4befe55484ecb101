package tidingstest

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// Bus is a bus for one test. It is a [tidings.Bus] that starts by itself when
// something is to be settled, and ends with the test. Subscribe before that. Its
// own methods are for the test's goroutine; publishing is for any.
type Bus struct {
	*tidings.Bus
	t        testing.TB
	clock    *clock
	driver   *steps
	story    *story
	seed     uint64
	patience time.Duration
	longest  time.Duration
	start    sync.Once
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

// Configure changes the options of the bus. Clock is the kit's own.
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
		t:        t,
		clock:    newClock(),
		driver:   &steps{random: rand.New(rand.NewPCG(s.seed, 0))},
		story:    &story{},
		seed:     s.seed,
		patience: 30 * time.Second,
		longest:  s.longest,
	}
	o := tidings.Options{Logger: slog.New(slog.DiscardHandler)}
	for _, change := range s.configure {
		change(&o)
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = 100 * time.Millisecond // nothing is due any more: virtual time stands still
	}
	o.Clock = b.clock
	o.Observers = append(o.Observers, b.story)
	b.Bus = tidings.New(b.driver, &o)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("tidingstest: TIDINGS_TEST_SEED=%d repeats this order of channels", b.seed)
		}
	})
	return b
}

// Start runs the bus until the test ends. Settle and the expectations call it.
func (b *Bus) Start() {
	b.t.Helper()
	b.start.Do(func() {
		b.t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx) }()
		err := b.Ready(ctx)
		b.t.Cleanup(func() {
			cancel()
			if runErr := <-done; runErr != nil && err == nil {
				b.t.Errorf("tidingstest: Run: %v", runErr)
			}
		})
		if err != nil {
			b.t.Fatalf("tidingstest: %v", err)
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
	b.Start()
	limit := b.clock.Now().Add(b.longest)
	for {
		b.awaitQuiet()
		if b.driver.deliver() {
			continue
		}
		if !b.clock.lanesWait() {
			return
		}
		if !b.clock.step(limit) {
			b.t.Fatalf("tidingstest: after %v of virtual time something is still retried:\n%s", b.longest, b.Story())
		}
	}
}

// Advance lets virtual time pass and then settles: for parked, held and blocked
// events, which Settle does not wait for.
func (b *Bus) Advance(d time.Duration) {
	b.t.Helper()
	b.Settle()
	for until := b.clock.Now().Add(d); ; {
		again := b.clock.step(until)
		b.awaitQuiet()
		for b.driver.deliver() {
			b.awaitQuiet()
		}
		if !again {
			break
		}
	}
	b.Settle()
}

// Now is the virtual time, which the engine works with.
func (b *Bus) Now() time.Time { return b.clock.Now() }

func (b *Bus) awaitQuiet() {
	b.t.Helper()
	if !b.clock.awaitQuiet(b.patience) {
		b.t.Fatalf("tidingstest: a handler has not returned for %v. Virtual time stands still while one runs, so its timeout does not come:\n%s", b.patience, b.Story())
	}
}

// DeadLetters settles and returns what subscriptions gave up on, oldest first.
func (b *Bus) DeadLetters() []driver.DeadLetter {
	b.t.Helper()
	b.Settle()
	return b.driver.deadLetters()
}

// Handled settles and returns the ids of the events that a subscription
// ("module.name") has handled, in that order.
func (b *Bus) Handled(subscription string) []string {
	b.t.Helper()
	b.Settle()
	return b.story.handled(subscription)
}

// Story is what happened so far, as an indented text: which event was published,
// what each subscription made of it, and what that caused.
func (b *Bus) Story() string {
	return b.story.String() + fmt.Sprintf("(TIDINGS_TEST_SEED=%d)\n", b.seed)
}
