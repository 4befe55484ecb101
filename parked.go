package tidings

import (
	"cmp"
	"context"
	"sync"

	"github.com/tidings-go/tidings/driver"
)

// localLanes is the in-memory store of parked events. It is no more durable
// than the in-memory driver and accepted there only.
type localLanes struct {
	bound int // events per subscription

	mu            sync.Mutex
	subscriptions map[string]*localParking
}

type localParking struct {
	lanes map[driver.Lane][]driver.Parked
	count int
}

var _ driver.Lanes = (*localLanes)(nil)

const localLanesBound = 100_000

func newLocalLanes() *localLanes {
	return &localLanes{bound: localLanesBound, subscriptions: make(map[string]*localParking)}
}

// Own implements [driver.Lanes]. There is no other instance.
func (l *localLanes) Own(_ context.Context, subscription, source string) (driver.Ownership, []driver.Lane, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	owner := driver.Ownership{Subscription: subscription, Source: source, Epoch: 1}
	p := l.subscriptions[subscription]
	if p == nil {
		return owner, nil, nil
	}
	lanes := make([]driver.Lane, 0, len(p.lanes))
	for lane := range p.lanes {
		lanes = append(lanes, lane)
	}
	return owner, lanes, nil
}

// Orders implements [driver.Lanes]: no operator reaches this memory.
func (l *localLanes) Orders(context.Context, driver.Ownership) ([]driver.LaneOrder, error) {
	return nil, nil
}

// Park implements [driver.Lanes].
func (l *localLanes) Park(_ context.Context, owner driver.Ownership, events []driver.Parked) error {
	subscription := owner.Subscription
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.subscriptions[subscription]
	if p == nil {
		p = &localParking{lanes: make(map[driver.Lane][]driver.Parked)}
		l.subscriptions[subscription] = p
	}
	if p.count+len(events) > l.bound {
		return driver.ErrLanesFull
	}
next:
	for _, event := range events {
		for _, held := range p.lanes[event.Lane] {
			if held.ID == event.ID && held.Message.Type == event.Message.Type {
				continue next
			}
		}
		p.lanes[event.Lane] = append(p.lanes[event.Lane], event)
		p.count++
	}
	return nil
}

// Head implements [driver.Lanes].
func (l *localLanes) Head(_ context.Context, owner driver.Ownership, lane driver.Lane) (driver.Parked, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.subscriptions[owner.Subscription]
	if p == nil || len(p.lanes[lane]) == 0 {
		return driver.Parked{}, false, nil
	}
	return p.lanes[lane][0], true, nil
}

// Record implements [driver.Lanes].
func (l *localLanes) Record(_ context.Context, owner driver.Ownership, lane driver.Lane, id string, attempts int, reason, failure string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.subscriptions[owner.Subscription]; p != nil && len(p.lanes[lane]) > 0 && p.lanes[lane][0].ID == id {
		head := &p.lanes[lane][0]
		head.Attempts, head.Reason, head.Err = attempts, cmp.Or(reason, head.Reason), failure
	}
	return nil
}

// Remove implements [driver.Lanes].
func (l *localLanes) Remove(_ context.Context, owner driver.Ownership, lane driver.Lane, id string) (more bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.subscriptions[owner.Subscription]
	if p == nil {
		return false, nil
	}
	events := p.lanes[lane]
	if len(events) > 0 && events[0].ID == id {
		events[0] = driver.Parked{}
		events = events[1:]
		p.count--
	}
	if len(events) == 0 {
		delete(p.lanes, lane)
		return false, nil
	}
	p.lanes[lane] = events
	return true, nil
}

// held is how many events of a subscription wait here.
func (l *localLanes) held(subscription string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.subscriptions[subscription]; p != nil {
		return p.count
	}
	return 0
}

// Durable implements [driver.Lanes].
func (l *localLanes) Durable() bool { return false }
