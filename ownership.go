package tidings

import (
	"context"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Joined implements [driver.Sink].
func (s *subscription) Joined() { s.joinOnce.Do(func() { close(s.joined) }) }

// Report implements [driver.Sink].
func (s *subscription) Report(r driver.Report) {
	s.remember(r)
	if r.Kind == driver.ReportAssigned && (s.store != nil || s.bus.letters != nil) {
		s.mu.Lock()
		if o := s.sourceFor(&r.Source); o != nil {
			s.assign(o) // parked events of it may be due, and dead letters be tried again
		}
		s.mu.Unlock()
	}
	s.observe(Observation{Kind: Reported, Report: r, Count: r.Count, Source: r.Source.Name, Err: r.Err})
}

// Revoke implements [driver.Sink]: nothing of the sources is started any more,
// what runs is finished and settled, or cancelled when ctx ends.
func (s *subscription) Revoke(ctx context.Context, sources []driver.Source) {
	s.mu.Lock()
	type wait struct {
		ownership *source
		idle      <-chan struct{}
	}
	var waits []wait
	for _, from := range sources {
		if o := s.giveUp(from); o != nil && (o.running > 0 || o.unsettle > 0) {
			if o.idle == nil {
				o.idle = make(chan struct{})
			}
			waits = append(waits, wait{o, o.idle})
		}
	}
	dropped := s.dropGiven()
	s.mu.Unlock()
	s.releaseDropped(dropped)
	for _, w := range waits {
		select {
		case <-w.idle:
			continue
		case <-ctx.Done():
		}
		s.mu.Lock()
		w.ownership.lost = true
		s.cancelRunning(w.ownership, ErrLost)
		s.mu.Unlock()
		s.detach(w.ownership)
	}
}

// Lose implements [driver.Sink]: what runs is cancelled and its outcome is
// discarded. A handler that goes on keeps its lane, so that this process at
// least does not run two events of it at once.
func (s *subscription) Lose(sources []driver.Source) {
	var lost []*source
	s.mu.Lock()
	for _, from := range sources {
		if o := s.giveUp(from); o != nil {
			o.lost = true
			lost = append(lost, o)
			s.cancelRunning(o, ErrLost)
			s.checkSource(o)
		}
	}
	dropped := s.dropGiven()
	s.mu.Unlock()
	s.workers.Go(func() { // Lose does not wait
		for _, o := range lost {
			s.detach(o)
		}
		s.releaseDropped(dropped)
	})
}

// giveUp marks an ownership as given, also one that delivered nothing yet.
func (s *subscription) giveUp(from driver.Source) *source {
	o := s.sources[from.Name]
	if o == nil || o.epoch < from.Epoch {
		o = &source{name: from.Name, epoch: from.Epoch}
		s.sources[from.Name] = o
	}
	if o.epoch > from.Epoch {
		return nil // a later ownership is current: nothing to do
	}
	o.given = true
	return o
}

// dropGiven takes every item out of its lane that has not been started and
// whose source was given up.
func (s *subscription) dropGiven() []*item {
	return s.dropItems(func(i *item) bool { return i.source.given })
}

// releaseDropped gives back the claims of items that were taken out of their
// lanes while a store did not answer. The lock is not held.
func (s *subscription) releaseDropped(items []*item) {
	for _, i := range items {
		s.letGo(i)
	}
}

// letGo ends the claim of an item that this process will not go on with. One
// that was handled is marked done all the same.
func (s *subscription) letGo(i *item) {
	s.endTurn(i)
	if !i.claimed {
		return
	}
	if i.stage == stageFinish {
		if s.claims.Finish(s.bus.storing, i.claimRequest()) == nil {
			i.claimed = false
		}
		return
	}
	s.releaseClaim(i)
}

func (s *subscription) dropItems(drop func(*item) bool) (dropped []*item) {
	for _, l := range s.lanes {
		if l.parked && l.owner.given && l.state != laneRunning {
			if i := l.parkedHead; i != nil {
				dropped = append(dropped, i)
			}
			l.parked, l.parkedHead, l.order = false, nil, driver.LaneOrder{}
			if l.head == nil {
				s.leave(l)
			}
		}
		head := l.head
		removed := l.remove(drop)
		if len(removed) == 0 {
			continue
		}
		s.endLetters(removed)
		dropped = append(dropped, removed...)
		switch {
		case l.state == laneRunning:
		case l.head == nil && !l.parked:
			s.leave(l)
		case l.head != nil && l.head != head && l.state == laneWaiting && !l.parked:
			s.makeReady(l) // what waited is gone, what is behind need not wait
		}
	}
	s.dispatch()
	s.checkIdle()
	return dropped
}

func (s *subscription) cancelRunning(o *source, cause error) {
	for i := s.running; i != nil; i = i.runNext {
		if a := i.attempt.Load(); a != nil && (o == nil || i.source == o) {
			a.cancel(context.Canceled, cause)
		}
	}
}

// checkSource wakes a Revoke that waits for this ownership.
func (s *subscription) checkSource(o *source) {
	if o.idle != nil && o.running == 0 && o.unsettle == 0 {
		close(o.idle)
		o.idle = nil
	}
}

// checkIdle wakes a drain that waits for the subscription.
func (s *subscription) checkIdle() {
	if s.idle != nil && s.isIdle() {
		close(s.idle)
		s.idle = nil
	}
}

func (s *subscription) isIdle() bool {
	if s.running != nil || s.settler.turning {
		return false
	}
	if s.bus.features.Durable || s.halted {
		return true
	}
	for _, l := range s.lanes {
		// Held and blocked events, and parked lanes, wait for a person.
		waitsForever := l.state == laneWaiting && !l.counted
		if empty := l.state == laneIdle && l.head == nil; !empty && !waitsForever {
			return false
		}
	}
	return true
}

// stop begins the end: on a durable driver nothing that waits is started any
// more, because the broker gives it again; on another everything is in hand,
// because it is nowhere else.
func (s *subscription) stop() {
	s.mu.Lock()
	s.stopping = true
	s.endRecord()
	var dropped []*item
	if s.bus.features.Durable {
		dropped = s.dropItems(func(*item) bool { return true })
		s.returnDropped(dropped)
	} else { // the store has them still
		dropped = s.dropItems(func(i *item) bool { return i.letter != nil })
	}
	s.mu.Unlock()
	s.releaseDropped(dropped)
}

// awaitIdle waits until nothing is left to finish, or ctx ends.
func (s *subscription) awaitIdle(ctx context.Context) {
	idle := make(chan struct{})
	s.mu.Lock()
	if s.isIdle() {
		close(idle)
	} else {
		s.idle = idle
	}
	s.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// halt starts nothing more, cancels what still runs and gives it a moment to
// return. It returns how many events were not finished and are lost.
func (s *subscription) halt() (abandoned int) {
	s.mu.Lock()
	s.halted = true
	s.endRecord()
	s.cancelRunning(nil, ErrStopping)
	s.mu.Unlock()
	grace, cancel := context.WithTimeout(context.Background(), afterCancel)
	defer cancel()
	s.awaitIdle(grace)

	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lanes {
		if l.timer != nil {
			l.timer.Stop()
		}
		for i := l.head; i != nil; i = i.next {
			if !s.bus.features.Durable && i.letter == nil {
				abandoned++
			}
			if i.running {
				s.reportOverdue(i)
			}
		}
	}
	if local, ok := s.store.(*localLanes); ok {
		abandoned += local.held(s.name)
	}
	for _, timer := range []*Timer{&s.watch, &s.ordering} {
		if *timer != nil {
			(*timer).Stop()
			*timer = nil
		}
	}
	return abandoned
}

// awaitWorkers waits for goroutines that have nothing left to do.
func (s *subscription) awaitWorkers() {
	gone := make(chan struct{})
	go func() { s.workers.Wait(); close(gone) }()
	timer := time.NewTimer(afterCancel)
	defer timer.Stop()
	select {
	case <-gone:
	case <-timer.C: // a store that ignores its context
	}
}

// afterCancel is how long a cancelled handler has to return.
const afterCancel = time.Second

// overdueGrace is how long after its deadline a handler is reported.
const overdueGrace = time.Second

// watchHandlers keeps one timer per subscription that looks for handlers whose
// time is over. The caller holds the lock.
func (s *subscription) watchHandlers() {
	if s.watch != nil || s.options.Timeout <= 0 {
		return
	}
	s.watch = s.bus.clock.AfterFunc(s.options.Timeout+overdueGrace, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.watch == nil {
			return
		}
		s.watch = nil
		now := s.bus.clock.Now()
		for i := s.running; i != nil; i = i.runNext {
			a := i.attempt.Load()
			if a == nil || a.deadline.IsZero() || now.Before(a.deadline) {
				continue
			}
			a.cancel(context.DeadlineExceeded, context.DeadlineExceeded)
			s.reportOverdue(i)
		}
		if s.running != nil {
			s.watchHandlers()
		}
	})
}

// reportOverdue tells the observers in a goroutine of its own, because the lock
// is held.
func (s *subscription) reportOverdue(i *item) {
	a := i.attempt.Load()
	if a == nil || a.overdue {
		return
	}
	a.overdue = true
	s.workers.Go(func() {
		// If a Publish runs it, nobody comes for the rest of its events.
		s.bus.handOverReserved()
		i.observe(s.bus.values, Overdue, func(o *Observation) {
			o.Attempt, o.Duration = a.number, s.bus.clock.Now().Sub(a.started)
		})
	})
}
