package tidings

import (
	"time"

	"github.com/tidings-go/tidings/driver"
)

// When most aggregates of a subscription fail, it is not the events: what the
// handlers need is away. Then the guard closes the subscription to all but one
// probing attempt at a time, failures use no attempts, and nothing becomes a
// dead letter for it; a probe that succeeds opens it again.

const (
	// guardWindow is how many outcomes the guard looks at.
	guardWindow = 20
	// guardFailures of them, on guardLanes different aggregates, close it.
	guardFailures = 16
	guardLanes    = 8
)

// guardBackoff is the time between probes.
var guardBackoff = Backoff{Initial: time.Second, Max: time.Minute, Multiplier: 2, Jitter: 0.2}

// guard is the state of one subscription's outage guard. Guarded by the
// subscription's lock.
type guard struct {
	recent [guardWindow]guardOutcome
	count  int // how many outcomes there were, at most guardWindow
	at     int
	// successes counts those since the last failure.
	successes int
	closed    bool
	since     time.Time
	probing   bool
	probes    int // that failed
	next      time.Time
}

type guardOutcome struct {
	lane   driver.Lane
	failed bool
}

// learn gives the breaker an outcome. It reports whether an attempt counts: a failure
// does not while the breaker has tripped. Only failures of live events can trip it: many
// parked events and letters fail where nothing is away. What the handler calls permanent,
// and what ends its process, is the event's own.
func (s *subscription) learn(i *item, e ending, failed *failure) (counts bool) {
	if s.options.WithoutGuard || s.options.OnExhausted == Block || e != endHandled && e != endFailed && e != endLater {
		return true
	}
	if e == endHandled && !s.failing.Load() {
		return true
	}
	if e != endHandled && i.standing() != liveEvent {
		s.mu.Lock()
		defer s.mu.Unlock()
		return !s.guard.closed
	}
	succeeded := e == endHandled
	s.failing.Store(true)
	s.mu.Lock()
	g := &s.guard
	now := s.bus.clock.Now()
	if succeeded {
		opened, since := g.closed, g.since
		if g.closed {
			*g = guard{}
			s.unguard()
		}
		g.note(i.laneKey(), false)
		if g.successes++; g.successes >= guardWindow { // nothing to remember any more
			*g = guard{}
			s.failing.Store(false)
		}
		s.mu.Unlock()
		if opened {
			s.observe(Observation{Kind: GuardOpened, Duration: now.Sub(since)})
		}
		return true
	}
	g.note(i.laneKey(), true)
	g.successes = 0
	counts = !g.closed
	if g.closed && i.probe {
		g.probing, i.probe = false, false
		g.probes++
		g.next = now.Add(guardBackoff.wait(g.probes))
	}
	closes := !g.closed && g.mostFail()
	if closes {
		g.closed, g.since, g.next = true, now, now.Add(guardBackoff.wait(1))
	}
	s.mu.Unlock()
	if closes {
		s.observe(Observation{Kind: GuardClosed, Count: guardFailures, Err: failed})
	}
	return counts
}

// note remembers an outcome.
func (g *guard) note(lane driver.Lane, failed bool) {
	g.recent[g.at] = guardOutcome{lane, failed}
	g.at = (g.at + 1) % guardWindow
	g.count = min(g.count+1, guardWindow)
}

func (g *guard) mostFail() bool {
	if g.count < guardWindow {
		return false
	}
	failures := 0
	lanes := make(map[driver.Lane]bool)
	for _, o := range g.recent {
		if o.failed {
			failures++
			lanes[o.lane] = true
		}
	}
	return failures >= guardFailures && len(lanes) >= guardLanes
}

// hold lets the head of a lane start, as the probe where the guard is closed, or
// returns how long the lane waits. A letter that is tried again is no probe, and
// teaches the guard no failure: many of them fail where nothing is away. The caller holds the lock.
func (s *subscription) hold(l *lane, i *item) (wait time.Duration) {
	g := &s.guard
	if !g.closed || i.stage != stageHandle {
		return 0
	}
	if left := g.next.Sub(s.bus.clock.Now()); left > 0 || g.probing || i.letter != nil {
		l.guarded = true
		return max(left, guardBackoff.Initial)
	}
	g.probing, i.probe = true, true
	return 0
}

// unprobe gives the probe's place to another: its attempt ended without an
// outcome. The caller holds the lock.
func (s *subscription) unprobe(i *item) {
	if i.probe {
		i.probe, s.guard.probing = false, false
	}
}

// unguard lets the lanes go on that waited for the guard. The caller holds the
// lock.
func (s *subscription) unguard() {
	for _, l := range s.lanes {
		if l.guarded && l.state == laneWaiting {
			s.makeReady(l)
		}
		l.guarded = false
	}
	s.dispatch()
}
