package tidings_test

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/tidings-go/tidings/driver"
)

// fencedLanes is a store of parked events that all instances share, that fails
// now and then, and that refuses ownerships which have ended.
type fencedLanes struct {
	fails func() bool

	mu     sync.Mutex
	lanes  map[driver.Lane][]driver.Parked
	epochs map[string]int64
}

var errLanesDown = errors.New("the parked events are down")

func newFencedLanes(fails func() bool) *fencedLanes {
	return &fencedLanes{fails: fails, lanes: make(map[driver.Lane][]driver.Parked), epochs: make(map[string]int64)}
}

func (l *fencedLanes) Durable() bool { return true }

func (l *fencedLanes) Own(_ context.Context, subscription, source string) (driver.Ownership, []driver.Lane, error) {
	if l.fails() {
		return driver.Ownership{}, nil, errLanesDown
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epochs[source]++
	var held []driver.Lane
	for lane, events := range l.lanes {
		if len(events) > 0 && events[0].Source == source {
			held = append(held, lane)
		}
	}
	return driver.Ownership{Subscription: subscription, Source: source, Epoch: l.epochs[source]}, held, nil
}

// as runs change for an ownership that holds. It may fail before, or after the
// change was made.
func (l *fencedLanes) as(o driver.Ownership, change func()) error {
	if l.fails() {
		return errLanesDown
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.epochs[o.Source] != o.Epoch {
		return driver.ErrNotOwned
	}
	change()
	return nil
}

func (l *fencedLanes) Park(_ context.Context, o driver.Ownership, events []driver.Parked) error {
	err := l.as(o, func() {
		for _, e := range events {
			if !slices.ContainsFunc(l.lanes[e.Lane], func(other driver.Parked) bool { return other.ID == e.ID }) {
				l.lanes[e.Lane] = append(l.lanes[e.Lane], e)
			}
		}
	})
	if err == nil && l.fails() {
		return errLanesDown // it is stored, and nobody knows
	}
	return err
}

func (l *fencedLanes) Head(_ context.Context, o driver.Ownership, lane driver.Lane) (head driver.Parked, found bool, err error) {
	err = l.as(o, func() {
		if events := l.lanes[lane]; len(events) > 0 {
			head, found = events[0], true
		}
	})
	return head, found, err
}

func (l *fencedLanes) Record(_ context.Context, o driver.Ownership, lane driver.Lane, id string, attempts int, reason, failure string) error {
	return l.as(o, func() {
		if events := l.lanes[lane]; len(events) > 0 && events[0].ID == id {
			events[0].Attempts, events[0].Err = attempts, failure
		}
	})
}

func (l *fencedLanes) Remove(_ context.Context, o driver.Ownership, lane driver.Lane, id string) (more bool, err error) {
	err = l.as(o, func() {
		if events := l.lanes[lane]; len(events) > 0 && events[0].ID == id {
			l.lanes[lane] = events[1:]
		}
		more = len(l.lanes[lane]) > 0
	})
	if err == nil && l.fails() {
		return false, errLanesDown // it is gone, and nobody knows
	}
	return more, err
}

func (l *fencedLanes) Orders(context.Context, driver.Ownership) ([]driver.LaneOrder, error) {
	return nil, nil
}

func (l *fencedLanes) held() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, events := range l.lanes {
		n += len(events)
	}
	return n
}
