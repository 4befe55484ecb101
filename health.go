package tidings

import (
	"fmt"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Health is the state of a bus for whoever decides whether its process is
// restarted and whether it is given traffic, such as Kubernetes.
type Health struct {
	// Live: the process works. When it is false a restart may help: Run has
	// returned, or every slot of a subscription is taken by handlers that ignore
	// the end of their contexts.
	Live bool
	// Ready: Run runs, every subscription has joined and goes on: its broker
	// answers and takes settlements, and it has not stopped for good; the stores
	// answer, and what was added with Bus.Add gets on. What is asked and has no
	// answer counts when that lasts half of what it may take (the lease of the
	// driver, Options.StoreTimeout), what fails when it has failed for a second.
	Ready bool
	// Stores is for how long a store that is not in this process (claims, parked
	// events, dead letters, the inbox) has not answered; 0 when all do.
	Stores time.Duration
	// Runners is for how long each [Runner] that is [Watched] has not got on, by
	// its type; those that do are not in it.
	Runners map[string]time.Duration
	// Subscriptions is the state of each, in the order in which they were
	// declared.
	Subscriptions []SubscriptionHealth
	// Alone: an event that was in hand at several deaths of a process is handled, or
	// about to be, while no other handler is started.
	Alone bool
}

// SubscriptionHealth is the state of one subscription.
type SubscriptionHealth struct {
	Name   string
	Joined bool
	// Stopped is why the subscription has stopped for good, or nil.
	Stopped error
	// Outage is for how long the broker has not answered, and Unsettled for how
	// long it has not taken settlements; 0 when it does.
	Outage    time.Duration
	Unsettled time.Duration
	// Guarded is for how long the outage guard has been closed, or 0.
	Guarded time.Duration
	// Paused is how many sources are full of unfinished events.
	Paused int
	// Running is how many handlers run, Overdue how many of them although their
	// time is over.
	Running, Overdue int
	// Waiting is how many lanes wait to try their head again, Parked how many of
	// this instance's lanes hold events in the store.
	Waiting, Parked int
	// Lacks is what other releases of the subscription handle and this one lacks, by
	// channel and type: such events are left for an instance that handles them. That
	// is usual while a release is deployed or rolled back, and no reason not to be
	// ready.
	Lacks []Lacked
	// Suspects is how many events were in hand when a process died and wait to be
	// handled one at a time, or are.
	Suspects int
}

// vitals is what a subscription remembers for its health. Guarded by its lock.
type vitals struct {
	outage    time.Time
	unsettled time.Time
	paused    map[string]bool
}

// Health returns the state of the bus. It asks no broker and no store, and may
// be called at any time, from any goroutine.
func (b *Bus) Health() Health {
	b.mu.Lock()
	running, subscriptions, runners := b.phase == phaseRunning, b.subscriptions, b.runners
	h := Health{Live: b.phase != phaseEnded}
	b.mu.Unlock()
	h.Ready = running
	select {
	case <-b.ready:
	default: // Run connects, or was not called
		h.Ready = false
		subscriptions = nil
	}
	if h.Stores = b.stores.since(); h.Stores > 0 {
		h.Ready = false
	}
	for _, r := range runners {
		if w, ok := r.(Watched); ok && h.Live {
			if outage := w.Outage(); outage > 0 {
				if h.Runners == nil {
					h.Runners = make(map[string]time.Duration)
				}
				name := fmt.Sprintf("%T", r)
				h.Runners[name] = max(h.Runners[name], outage)
				h.Ready = false
			}
		}
	}
	h.Alone = b.suspects.alone.Load() != nil
	for _, s := range subscriptions {
		one := s.health()
		h.Subscriptions = append(h.Subscriptions, one)
		h.Ready = h.Ready && one.Joined && one.Stopped == nil && one.Outage == 0 && one.Unsettled == 0
		if one.Overdue >= s.options.Concurrency {
			h.Live, h.Ready = false, false
		}
	}
	return h
}

func (s *subscription) health() SubscriptionHealth {
	h := SubscriptionHealth{Name: s.name}
	if s.joined == nil { // Run was refused
		return h
	}
	select {
	case <-s.joined:
		h.Joined = true
	default:
	}
	select {
	case <-s.failed:
		h.Stopped = s.failure
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.bus.clock.Now()
	since := func(t time.Time) time.Duration {
		if t.IsZero() {
			return 0
		}
		return max(now.Sub(t), 1)
	}
	h.Outage, h.Unsettled = since(s.vitals.outage), since(s.vitals.unsettled)
	if s.guard.closed {
		h.Guarded = since(s.guard.since)
	}
	h.Paused, h.Waiting = len(s.vitals.paused), s.waiting
	for i := s.running; i != nil; i = i.runNext {
		h.Running++
		if a := i.attempt.Load(); a != nil && !a.deadline.IsZero() && now.After(a.deadline.Add(overdueGrace)) {
			h.Overdue++
		}
	}
	h.Lacks = s.lacked()
	for _, l := range s.lanes {
		if l.parked {
			h.Parked++
		}
	}
	h.Suspects = s.bus.suspects.of(s)
	return h
}

// remember keeps what a report says for the health of the subscription.
func (s *subscription) remember(r driver.Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.Kind {
	case driver.ReportOutage:
		if s.vitals.outage.IsZero() {
			s.vitals.outage = s.bus.clock.Now()
		}
	case driver.ReportRecovered:
		s.vitals.outage = time.Time{}
	case driver.ReportPaused:
		if s.vitals.paused == nil {
			s.vitals.paused = make(map[string]bool)
		}
		s.vitals.paused[r.Source.Name] = true
	case driver.ReportResumed, driver.ReportRevoked, driver.ReportLost:
		delete(s.vitals.paused, r.Source.Name)
	}
}
