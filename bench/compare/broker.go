package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// broker stands in for a broker: each call takes a while, calls run at once, and
// what they bring is checked. Events are named by aggregate and number, "a7/12".
type broker struct {
	takes time.Duration

	mu          sync.Mutex
	flying      map[string]int // calls under way with an event of the aggregate
	last        map[string]int
	accepted    int // without those that came again
	want        int
	calls       int
	first, over time.Time
	done        chan struct{}
	trouble     trouble
}

// trouble is what a broker has seen of disorder.
type trouble struct {
	inversions int // an event came before one of its aggregate that precedes it
	overlaps   int // two calls with one aggregate were under way at once
	repeated   int // an event came again
	lost       int
}

func (t *trouble) add(other trouble) {
	t.inversions += other.inversions
	t.overlaps += other.overlaps
	t.repeated += other.repeated
	t.lost += other.lost
}

func (t trouble) String() string {
	return fmt.Sprintf("%d out of order, %d at once, %d lost, %d twice", t.inversions, t.overlaps, t.lost, t.repeated)
}

func newBroker(takes time.Duration, want int) *broker {
	return &broker{takes: takes, want: want, flying: make(map[string]int), last: make(map[string]int), done: make(chan struct{})}
}

func nameOf(n int) (aggregate, id string) {
	aggregate = "a" + strconv.Itoa(n%aggregates)
	return aggregate, aggregate + "/" + strconv.Itoa(n/aggregates+1)
}

// aggregates is how many there are.
const aggregates = 200

// take is one call.
func (b *broker) take(ids ...string) error {
	b.mu.Lock()
	if b.first.IsZero() {
		b.first = time.Now()
	}
	b.calls++
	keys := make(map[string]bool, len(ids))
	for _, id := range ids {
		key, _, _ := strings.Cut(id, "/")
		keys[key] = true
	}
	for key := range keys {
		if b.flying[key]++; b.flying[key] > 1 {
			b.trouble.overlaps++
		}
	}
	b.mu.Unlock()
	if b.takes > 0 {
		time.Sleep(b.takes)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for key := range keys {
		b.flying[key]--
	}
	for _, id := range ids {
		key, number, _ := strings.Cut(id, "/")
		n, err := strconv.Atoi(number)
		if err != nil {
			return fmt.Errorf("an event named %q: %w", id, err)
		}
		switch last := b.last[key]; {
		case n <= last:
			b.trouble.repeated++
			continue
		case n > last+1:
			b.trouble.inversions++
		}
		b.last[key] = n
		b.accepted++
		if b.accepted == b.want {
			b.over = time.Now()
			close(b.done)
		}
	}
	return nil
}

// patience is how long a round may take.
const patience = 3 * time.Minute

// wait returns events per second, from the first call's begin to the last one's
// end.
func (b *broker) wait(ctx context.Context) (rate float64, seen trouble, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case <-b.done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	seen = b.trouble
	seen.lost = b.want - b.accepted
	if err != nil {
		return 0, seen, errors.Join(fmt.Errorf("%d of %d events came (%v)", b.accepted, b.want, seen), err)
	}
	return float64(b.accepted) / b.over.Sub(b.first).Seconds(), seen, nil
}
