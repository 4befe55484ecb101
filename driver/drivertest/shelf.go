package drivertest

import (
	"context"
	"slices"
	"sync"

	"github.com/tidings-go/tidings/driver"
)

// shelf keeps parked events for the processes of one case, which all live in
// this one: for them it is as durable as it says.
type shelf struct {
	durable bool

	mu    sync.Mutex
	lanes map[shelfLane][]driver.Parked
}

type shelfLane struct {
	subscription string
	lane         driver.Lane
}

var _ driver.Lanes = (*shelf)(nil)

// Park implements [driver.Lanes].
func (s *shelf) Park(_ context.Context, subscription string, events []driver.Parked) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lanes == nil {
		s.lanes = make(map[shelfLane][]driver.Parked)
	}
	for _, e := range events {
		at := shelfLane{subscription, e.Lane}
		if !slices.ContainsFunc(s.lanes[at], func(other driver.Parked) bool { return other.ID == e.ID }) {
			e.Message.Body = slices.Clone(e.Message.Body)
			s.lanes[at] = append(s.lanes[at], e)
		}
	}
	return nil
}

// Parked implements [driver.Lanes].
func (s *shelf) Parked(_ context.Context, subscription, source string) ([]driver.Lane, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lanes []driver.Lane
	for at, events := range s.lanes {
		if at.subscription == subscription && len(events) > 0 && events[0].Source == source {
			lanes = append(lanes, at.lane)
		}
	}
	return lanes, nil
}

// Head implements [driver.Lanes].
func (s *shelf) Head(_ context.Context, subscription string, lane driver.Lane) (driver.Parked, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	events := s.lanes[shelfLane{subscription, lane}]
	if len(events) == 0 {
		return driver.Parked{}, false, nil
	}
	return events[0], true, nil
}

// Record implements [driver.Lanes].
func (s *shelf) Record(_ context.Context, subscription string, lane driver.Lane, id string, attempts int, failure string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if events := s.lanes[shelfLane{subscription, lane}]; len(events) > 0 && events[0].ID == id {
		events[0].Attempts, events[0].Err = attempts, failure
	}
	return nil
}

// Remove implements [driver.Lanes].
func (s *shelf) Remove(_ context.Context, subscription string, lane driver.Lane, id string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := shelfLane{subscription, lane}
	if events := s.lanes[at]; len(events) > 0 && events[0].ID == id {
		s.lanes[at] = events[1:]
	}
	return len(s.lanes[at]), nil
}

// Durable implements [driver.Lanes].
func (s *shelf) Durable() bool { return s.durable }
