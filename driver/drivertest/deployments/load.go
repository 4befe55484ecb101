package deployments

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tidings-go/tidings"
)

// aggregates is how many there are in each channel.
const aggregates = 6

// load publishes, one round after the other, until it is stopped: one event of each
// contract for each aggregate. An aggregate has one publisher, so the events of its
// lanes have an order.
type load struct {
	ledger *ledger
	bus    *tidings.Bus
	pause  time.Duration

	mu     sync.Mutex
	facts  []fact // for every aggregate
	fresh  []fact // for every second one
	rounds int
	want   int // rounds that somebody waits for; with none to make, it goes on slowly
	err    error

	cancel context.CancelFunc
	done   chan struct{}
}

// start begins to publish, unless it has begun.
func (l *load) start(ctx context.Context) {
	if l.done != nil {
		return
	}
	ctx, l.cancel = context.WithCancel(ctx)
	l.done = make(chan struct{})
	go func() {
		defer close(l.done)
		for ctx.Err() == nil {
			if err := l.round(ctx); err != nil {
				l.mu.Lock()
				l.err = err
				l.mu.Unlock()
				return
			}
			l.rest(ctx)
		}
	}()
}

const (
	// slowness is how much longer the pauses are while nobody waits for rounds.
	slowness = 10
	// beyond is how many rounds there are at most that nobody waits for: what is
	// waited for meanwhile must come to an end on a slow machine, too.
	beyond = 10
)

func (l *load) rest(ctx context.Context) {
	for waits := 1; ctx.Err() == nil; waits++ {
		pause(ctx, l.pause)
		l.mu.Lock()
		ahead := l.rounds - l.want
		l.mu.Unlock()
		if ahead < 0 || waits >= slowness && ahead < beyond {
			return
		}
	}
}

// demand asks for more rounds, and returns how many there are then.
func (l *load) demand(more int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.want = l.rounds + more
	return l.want
}

// add publishes more contracts from now on.
func (l *load) add(fresh []fact) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range fresh {
		if !slices.Contains(l.fresh, f) {
			l.fresh = append(l.fresh, f)
		}
	}
}

// publishTries is how often a publish is tried, a second apart or so.
const publishTries = 60

// round publishes one event of everything, and the same ones again until they are
// stored. It is not left in its middle: what was begun is in the ledger.
func (l *load) round(ctx context.Context) error {
	l.mu.Lock()
	facts, fresh := slices.Clone(l.facts), slices.Clone(l.fresh)
	l.mu.Unlock()
	var events []tidings.DomainEvent
	for n := range aggregates {
		aggregate := fmt.Sprintf("aggregate-%d", n)
		for _, f := range facts {
			events = append(events, l.ledger.next(f, aggregate))
		}
		if n%2 == 1 {
			for _, f := range fresh {
				events = append(events, l.ledger.next(f, aggregate))
			}
		}
	}
	for tries := 1; ; tries++ {
		publishing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		err := l.bus.Publish(publishing, events...)
		cancel()
		if err == nil {
			break
		}
		if tries == publishTries {
			return fmt.Errorf("publishing round %d: %w", l.rounds, err)
		}
		pause(context.WithoutCancel(ctx), time.Second)
	}
	l.ledger.stored(events)
	l.mu.Lock()
	l.rounds++
	l.mu.Unlock()
	return nil
}

// published returns how many rounds there were, and why there are no more.
func (l *load) published() (rounds int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rounds, l.err
}

func (l *load) stop() {
	if l.done == nil {
		return
	}
	l.cancel()
	<-l.done
}

// pause waits, at most until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
