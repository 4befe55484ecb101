package drivertest

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/tidings-go/tidings/driver"
)

// shelf keeps parked events for the processes of one case, which all live in
// this one: for them it is as durable as it says.
type shelf struct {
	durable bool

	mu     sync.Mutex
	lanes  map[shelfLane][]driver.Parked
	epochs map[shelfSource]int64
	orders map[shelfLane]driver.LaneOrder
}

type shelfLane struct {
	subscription string
	lane         driver.Lane
}

type shelfSource struct{ subscription, source string }

var _ driver.Lanes = (*shelf)(nil)

// Own implements [driver.Lanes].
func (s *shelf) Own(_ context.Context, subscription, source string) (driver.Ownership, []driver.Lane, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epochs == nil {
		s.lanes, s.epochs, s.orders = make(map[shelfLane][]driver.Parked), make(map[shelfSource]int64), make(map[shelfLane]driver.LaneOrder)
	}
	s.epochs[shelfSource{subscription, source}]++
	var lanes []driver.Lane
	for at, events := range s.lanes {
		if at.subscription == subscription && len(events) > 0 && events[0].Source == source {
			lanes = append(lanes, at.lane)
		}
	}
	return driver.Ownership{Subscription: subscription, Source: source, Epoch: s.epochs[shelfSource{subscription, source}]}, lanes, nil
}

// check refuses an ownership that has ended. The caller holds the lock.
func (s *shelf) check(o driver.Ownership) error {
	if o.Epoch != s.epochs[shelfSource{o.Subscription, o.Source}] {
		return driver.ErrNotOwned
	}
	return nil
}

// Park implements [driver.Lanes].
func (s *shelf) Park(_ context.Context, owner driver.Ownership, events []driver.Parked) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(owner); err != nil {
		return err
	}
	for _, e := range events {
		at := shelfLane{owner.Subscription, e.Lane}
		if !slices.ContainsFunc(s.lanes[at], func(other driver.Parked) bool { return other.ID == e.ID }) {
			e.Message.Body = slices.Clone(e.Message.Body)
			s.lanes[at] = append(s.lanes[at], e)
		}
	}
	return nil
}

// Head implements [driver.Lanes].
func (s *shelf) Head(_ context.Context, owner driver.Ownership, lane driver.Lane) (driver.Parked, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	events := s.lanes[shelfLane{owner.Subscription, lane}]
	if err := s.check(owner); err != nil || len(events) == 0 {
		return driver.Parked{}, false, err
	}
	return events[0], true, nil
}

// Record implements [driver.Lanes].
func (s *shelf) Record(_ context.Context, owner driver.Ownership, lane driver.Lane, id string, attempts int, reason, failure string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(owner); err != nil {
		return err
	}
	if events := s.lanes[shelfLane{owner.Subscription, lane}]; len(events) > 0 && events[0].ID == id {
		events[0].Attempts, events[0].Reason, events[0].Err = attempts, cmp.Or(reason, events[0].Reason), failure
	}
	return nil
}

// Remove implements [driver.Lanes].
func (s *shelf) Remove(_ context.Context, owner driver.Ownership, lane driver.Lane, id string) (more bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(owner); err != nil {
		return false, err
	}
	at := shelfLane{owner.Subscription, lane}
	if events := s.lanes[at]; len(events) > 0 && events[0].ID == id {
		s.lanes[at] = events[1:]
	}
	return len(s.lanes[at]) > 0, nil
}

// Orders implements [driver.Lanes].
func (s *shelf) Orders(_ context.Context, owner driver.Ownership) (orders []driver.LaneOrder, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(owner); err != nil {
		return nil, err
	}
	for at, order := range s.orders {
		if at.subscription == owner.Subscription && len(s.lanes[at]) > 0 && s.lanes[at][0].Source == owner.Source {
			orders = append(orders, order)
			delete(s.orders, at)
		}
	}
	return orders, nil
}

// order is what an operator does.
func (s *shelf) order(subscription string, order driver.LaneOrder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orders[shelfLane{subscription, order.Lane}] = order
}

// holds is how many events of a lane are parked.
func (s *shelf) holds(subscription string, lane driver.Lane) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.lanes[shelfLane{subscription, lane}])
}

// Durable implements [driver.Lanes].
func (s *shelf) Durable() bool { return s.durable }
