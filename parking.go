package tidings

import (
	"fmt"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// heldAlarm is how often a held event is said again.
const heldAlarm = 5 * time.Minute

// holdItem keeps an event that this release cannot handle (it is too new for its
// handler, or only another release has a reaction to it): in the
// store where there is one, so that the broker's position goes on; else the
// lane waits. It uses no attempt and is no poison: a newer handler reads it.
func (s *subscription) holdItem(i *item) verdict {
	if i.standing() == parkedHead {
		i.observe(s.bus.values, Held, func(o *Observation) { o.Reason, o.Wait = i.reason, s.options.ParkBackoff.Max })
		return verdict{wait: s.options.ParkBackoff.Max}
	}
	i.failure = i.whyHeld()
	i.observe(s.bus.values, Held, func(o *Observation) { o.Reason, o.Err, o.Wait = i.reason, i.failure, heldAlarm })
	if s.store != nil {
		i.stage = stagePark
		return s.parkItem(i)
	}
	return verdict{wait: heldAlarm, endless: true}
}

// whyHeld says why an event waits for another release.
func (i *item) whyHeld() error {
	if i.reason == reasonLacking {
		return i.failure
	}
	want := i.reaction.definition
	return fmt.Errorf("tidings: it has version %d (readable from %d), the handler reads versions %d to %d", i.version, i.readableFrom, want.oldest, want.version)
}

// parkItem puts the head of a lane into the store; the lane is parked from then
// on.
func (s *subscription) parkItem(i *item) verdict {
	now := s.bus.clock.Now()
	err := s.store.Park(s.bus.storing, s.parkingOf(i.source), []driver.Parked{i.parked(i.reason, now)})
	if s.notOwned(i.source, err) {
		return verdict{wait: s.options.Backoff.Initial}
	}
	if err != nil {
		return s.storeFailed(i, fmt.Errorf("park: %w", err))
	}
	i.observe(s.bus.values, Parked, func(o *Observation) { o.Attempt, o.Reason, o.Err = i.attempts, i.reason, i.failure })
	s.mu.Lock()
	i.lane.parked, i.lane.owner = true, i.source
	s.watchOrders()
	i.lane.due = now.Add(s.options.ParkBackoff.wait(1))
	s.mu.Unlock()
	return verdict{done: true, settle: true}
}

// runParked works on a lane that has events in the store: first what arrived is
// parked behind them, in order; then the head is tried when it is due. The
// caller has made the lane running. It reports whether the lane is still
// running, because the store has no more of it.
func (s *subscription) runParked(l *lane) (again bool) {
	s.mu.Lock()
	if l.owner.given {
		return s.unpark(l)
	}
	s.mu.Unlock()
	if !s.parkArrivals(l) {
		return false
	}
	s.obey(l)
	s.mu.Lock()
	wait := l.due.Sub(s.bus.clock.Now())
	if wait > 0 || s.stopping {
		s.makeWait(l, max(wait, 0)+s.stopWait(), false)
		s.checkIdle()
		s.mu.Unlock()
		return false
	}
	turn := s.standBack(l, l.parkedHead)
	if turn == 0 {
		turn = s.throttle(l)
	}
	if turn > 0 {
		s.makeWait(l, turn, true)
		s.mu.Unlock()
		return false
	}
	s.mu.Unlock()
	return s.tryParkedHead(l)
}

// afterParked moves a parked lane on after a try of its head: more says that the store
// has more of it. It reports whether the lane is still running.
func (s *subscription) afterParked(l *lane, more bool, wait time.Duration, err error) (again bool) {
	s.mu.Lock()
	if l.owner.given {
		return s.unpark(l)
	}
	defer s.mu.Unlock()
	switch {
	case err != nil:
		s.makeWait(l, s.options.Backoff.wait(3), false)
		s.checkIdle()
	case wait > 0:
		l.due = s.bus.clock.Now().Add(wait)
		if l.head != nil {
			s.makeReady(l) // park what arrived meanwhile
		} else {
			s.makeWait(l, wait, false)
			s.checkIdle()
		}
	case more:
		l.due = time.Time{}
		s.makeReady(l)
	default:
		l.parked = false
		if l.head == nil {
			s.leave(l)
			return false
		}
		return true
	}
	return false
}

// stopWait keeps a stopping subscription from turning in circles.
func (s *subscription) stopWait() time.Duration {
	if s.stopping {
		return time.Hour
	}
	return 0
}

// parkArrivals puts what the lane has in memory behind what the store has. It
// reports whether the lane is still running.
func (s *subscription) parkArrivals(l *lane) bool {
	s.mu.Lock()
	owner := l.owner
	s.endLetters(l.remove(func(i *item) bool { return i.letter != nil })) // they wait in their own store
	var items []*item
	for i := l.head; i != nil; i = i.next {
		items = append(items, i)
	}
	for _, i := range items {
		s.begin(i)
	}
	s.mu.Unlock()
	if len(items) == 0 {
		return true
	}
	now := s.bus.clock.Now()
	events := make([]driver.Parked, len(items))
	for n, i := range items {
		events[n] = i.parked("behind", now)
		events[n].Source = owner.name // a lane lies in one place
	}
	err := s.store.Park(s.bus.storing, s.parkingOf(owner), events)
	lost := s.notOwned(owner, err)
	for _, i := range items {
		if lost {
			break
		}
		if err != nil {
			s.storeFailed(i, fmt.Errorf("park: %w", err))
			break
		}
		i.observe(s.bus.values, Parked, func(o *Observation) { o.Reason = "behind" })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range items {
		s.end(i)
		if err == nil {
			l.pop()
			s.settleLater(i, nil)
		}
		s.checkSource(i.source)
	}
	if err != nil {
		s.makeWait(l, s.options.Backoff.wait(3), true)
		return false
	}
	return true
}

// tryParkedHead makes one attempt with the oldest event of a parked lane. It reports
// whether the lane is still running.
func (s *subscription) tryParkedHead(l *lane) (again bool) {
	owner := l.owner
	head, found, err := s.store.Head(s.bus.storing, s.parkingOf(owner), l.key)
	switch {
	case s.notOwned(owner, err):
		return s.afterParked(l, true, s.options.Backoff.Initial, nil)
	case err != nil:
		s.observe(Observation{Kind: StoreFailed, Err: fmt.Errorf("parked head: %w", err)})
		return s.afterParked(l, false, 0, err)
	case !found:
		return s.afterParked(l, false, 0, nil)
	}
	i := s.parkedItem(l, head)
	s.mu.Lock()
	i.source = owner
	if owner.given {
		s.mu.Unlock()
		return s.afterParked(l, true, time.Hour, nil)
	}
	s.begin(i)
	s.mu.Unlock()
	v, returned := verdict{wait: recordPoll}, false
	defer func() {
		if !returned { // the handler ended the goroutine: nobody else will go on
			v = s.outcome(i, take(errGoexit))
		}
		more, wait, err := s.keepParked(l, i, &head, v)
		s.mu.Lock()
		s.end(i)
		s.checkSource(owner)
		s.mu.Unlock()
		again = s.afterParked(l, more, wait, err)
		if again && !returned {
			s.mu.Lock()
			s.makeReady(l)
			s.mu.Unlock()
			again = false
		}
	}()
	if s.judgeParked(i) {
		v = s.process(i, nil)
	}
	returned = true
	return
}

// keepParked tells the store of parked events what became of the head of a lane: it is
// taken out, or stays with its attempts. It reports whether the store has more of the
// lane, and how long to wait before the next try.
func (s *subscription) keepParked(l *lane, i *item, head *driver.Parked, v verdict) (more bool, wait time.Duration, err error) {
	if v.done {
		l.parkedHead = nil
		more, err = s.store.Remove(s.bus.storing, s.parkingOf(l.owner), l.key, head.ID)
	} else {
		more, wait = true, max(v.wait, time.Millisecond)
		text := ""
		if i.failure != nil {
			text = i.failure.Error()
		} else if i.attempts == head.Attempts { // it was not tried
			return more, wait, nil
		}
		err = s.store.Record(s.bus.storing, s.parkingOf(l.owner), l.key, head.ID, i.attempts, i.reasonToStay(head.Reason), text)
	}
	if s.notOwned(l.owner, err) {
		return true, max(wait, s.options.Backoff.Initial), nil
	}
	if err != nil {
		s.observe(Observation{Kind: StoreFailed, Err: fmt.Errorf("parked head: %w", err)})
		if !v.done {
			err = nil // it stays where it is all the same
		}
	}
	return more, wait, err
}
