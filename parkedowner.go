package tidings

import (
	"errors"
	"fmt"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Parked events belong to whoever owns the source that they came from: a lane
// moves with its partition. Taking a source over in the store ends every
// earlier ownership there, so that an instance that does not know yet that it
// lost a partition cannot park an event which the next owner has handled.

// ownUnowned takes over what is parked on a driver without sources, before
// anything runs.
func (s *subscription) ownUnowned() error {
	if s.store == nil || s.bus.features.Sources {
		return nil
	}
	parking, lanes, err := s.store.Own(s.bus.storing, s.name, "")
	if err != nil {
		return fmt.Errorf("tidings: %s: parked lanes: %w", s.name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.adopt(&s.unowned, parking, lanes)
	return nil
}

// assign begins to take the parked events of a source over. Until that is done
// nothing of the source is started. The caller holds the lock.
func (s *subscription) assign(o *source) {
	if s.store == nil || !s.bus.features.Sources || o.owned || o.owning || o.given {
		return
	}
	o.owning = true
	s.workers.Go(func() { s.own(o) })
}

// own takes the parked events of a source over, however long the store takes to
// answer.
func (s *subscription) own(o *source) {
	useless := func() bool { return o.given || s.stopping || s.halted }
	for failures := 1; ; failures++ {
		s.mu.Lock()
		if useless() {
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		parking, lanes, err := s.store.Own(s.bus.storing, s.name, o.name)
		s.mu.Lock()
		if useless() {
			s.mu.Unlock()
			return
		}
		if err == nil {
			s.adopt(o, parking, lanes)
			s.dispatch()
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		wait := s.options.Backoff.wait(min(failures, 8))
		s.observe(Observation{Kind: StoreFailed, Source: o.name, Wait: wait, Err: fmt.Errorf("parked lanes: %w", err)})
		s.bus.sleep(s.bus.storing, wait)
	}
}

// adopt makes the lanes that hold events parked ones, and starts what waited to
// know them. The caller holds the lock.
func (s *subscription) adopt(o *source, parking driver.Ownership, lanes []driver.Lane) {
	o.parking, o.owning, o.owned = parking, false, true
	for _, key := range lanes {
		l := s.lanes[key]
		if l == nil {
			l = s.newLane(key)
		}
		l.parked, l.owner = true, o
		if l.state == laneIdle {
			s.makeReady(l)
		}
	}
	for _, l := range s.lanes {
		if l.blocked && l.head != nil && l.head.source == o {
			l.blocked = false
			if l.state == laneWaiting {
				s.makeReady(l)
			}
		}
	}
	if len(lanes) > 0 {
		s.watchOrders()
	}
}

// notOwned reports whether the store says that another instance has taken the
// source over. Where the broker says that it is this one's all the same, the
// other was late or does not know yet: it is taken over again.
func (s *subscription) notOwned(o *source, err error) bool {
	if !errors.Is(err, driver.ErrNotOwned) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.owned && !o.given && !s.stopping && !s.halted {
		o.owned, o.owning = false, true
		s.workers.Go(func() {
			s.bus.sleep(s.bus.storing, s.options.Backoff.wait(1))
			s.own(o)
		})
	}
	return true
}

// parkingOf is the ownership under which the store is called.
func (s *subscription) parkingOf(o *source) driver.Ownership {
	s.mu.Lock()
	defer s.mu.Unlock()
	return o.parking
}

// unpark forgets that a lane is parked, because its events are somebody else's
// now. The lane is running; the caller holds the lock, which is released. It
// reports whether the lane is still running.
func (s *subscription) unpark(l *lane) (again bool) {
	defer s.mu.Unlock()
	if i := l.parkedHead; i != nil {
		s.workers.Go(func() { s.letGo(i) })
	}
	l.parked, l.parkedHead, l.order = false, nil, driver.LaneOrder{}
	if l.head == nil {
		s.leave(l)
		return false
	}
	return true
}

// ordersInterval is how often the store is asked for what operators want.
const ordersInterval = 2 * time.Second

// watchOrders keeps one timer while lanes are parked in a store that others can
// reach. The caller holds the lock.
func (s *subscription) watchOrders() {
	if s.ordering != nil || s.stopping || s.halted || !s.store.Durable() {
		return
	}
	s.ordering = s.bus.clock.AfterFunc(ordersInterval, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ordering == nil || s.stopping || s.halted {
			return
		}
		s.workers.Go(s.takeOrders)
	})
}

// takeOrders hands what operators want to the lanes.
func (s *subscription) takeOrders() {
	s.mu.Lock()
	owners := map[*source]driver.Ownership{}
	for _, l := range s.lanes {
		if l.parked && !l.owner.given {
			owners[l.owner] = l.owner.parking
		}
	}
	s.mu.Unlock()
	for o, parking := range owners {
		orders, err := s.store.Orders(s.bus.storing, parking)
		if s.notOwned(o, err) {
			continue
		}
		if err != nil {
			s.observe(Observation{Kind: StoreFailed, Source: o.name, Err: fmt.Errorf("orders: %w", err)})
			continue
		}
		s.mu.Lock()
		for _, order := range orders {
			l := s.lanes[order.Lane]
			if l == nil || !l.parked || l.owner != o {
				continue
			}
			l.order = order
			if l.state == laneWaiting {
				s.makeReady(l)
			}
		}
		s.dispatch()
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ordering = nil
	if len(owners) > 0 {
		s.watchOrders()
	}
}

// obey carries out what an operator wants with a parked lane, which is running.
func (s *subscription) obey(l *lane) {
	s.mu.Lock()
	order, owner := l.order, l.owner
	l.order = driver.LaneOrder{}
	if order.Verb != 0 {
		l.due = time.Time{}
	}
	s.mu.Unlock()
	l.anew = l.anew || order.Verb == driver.RetryHead
	if order.Verb != driver.SkipHead && order.Verb != driver.SkipLane {
		return
	}
	for {
		more, err := s.skipHead(l, owner, order.Reason)
		if err != nil {
			if !s.notOwned(owner, err) {
				s.observe(Observation{Kind: StoreFailed, Source: owner.name, Err: fmt.Errorf("%v: %w", order.Verb, err)})
				s.mu.Lock()
				l.order = order // it is not carried out yet
				l.due = s.bus.clock.Now().Add(s.options.Backoff.wait(3))
				s.mu.Unlock()
			}
			return
		}
		if !more || order.Verb == driver.SkipHead {
			return
		}
	}
}

// skipHead makes a dead letter of a lane's oldest event and reports whether there
// are more.
func (s *subscription) skipHead(l *lane, owner *source, reason string) (more bool, err error) {
	head, found, err := s.store.Head(s.bus.storing, s.parkingOf(owner), l.key)
	if err != nil || !found {
		return false, err
	}
	i := s.parkedItem(l, head)
	if head.Err != "" {
		i.failure = fmt.Errorf("skipped by an operator (%s): %s", reason, head.Err)
	} else {
		i.failure = fmt.Errorf("skipped by an operator (%s)", reason)
	}
	i.reason, i.source = "skipped", owner
	letter := i.deadLetter(s.bus.clock.Now())
	if err := s.dead.PutDeadLetter(s.bus.storing, letter); err != nil {
		return false, fmt.Errorf("dead letter: %w", err)
	}
	i.observe(s.bus.values, DeadLettered, func(o *Observation) { o.Attempt, o.Reason, o.Err = i.attempts, i.reason, i.failure })
	s.releaseClaim(i)
	if !s.announce(i).done {
		return false, errors.New("the failure could not be announced")
	}
	l.parkedHead = nil
	return s.store.Remove(s.bus.storing, s.parkingOf(owner), l.key, head.ID)
}

// parkedItem is the head of a parked lane as an item. It is kept between
// attempts: it owns the claim and knows its stage.
func (s *subscription) parkedItem(l *lane, head driver.Parked) *item {
	i := l.parkedHead
	if i == nil || i.id != head.ID {
		d := driver.Delivery{Message: head.Message, Ref: storedRef(head.Position), Time: head.Time}
		i = s.newItem(&d)
		i.stored, i.attempts, i.lane = true, head.Attempts, l
		i.convicted = head.Reason == "crashed"
		l.parkedHead = i
	}
	i.anew, l.anew = i.anew || l.anew, false
	return i
}
