package tidings

import (
	"time"

	"github.com/tidings-go/tidings/driver"
)

// On a broker that delays (Features.MaxDelay), what waits for long is given
// back with everything behind it in its lane: it is delivered again after the
// wait, to this process or to another, and costs no memory meanwhile. What is
// not to be started any more is given back too, at once. On other brokers both
// stay where they are: their position knows what is unfinished.

const (
	// releaseFrom is the wait from which giving an event back is worth the
	// broker's calls.
	releaseFrom = 5 * time.Second
	// releasedAttempts bounds how many released events this process remembers
	// the attempts of.
	releasedAttempts = 100_000
)

// heldRelease is how long the broker keeps an event that this release cannot
// read: another instance, with a newer one, may be there at any time. It grows,
// because brokers give up on what they have delivered too often.
var heldRelease = Backoff{Initial: releaseFrom, Max: time.Hour, Multiplier: 2, Jitter: -1}

// delays reports whether the broker takes events back for a while.
func (s *subscription) delays() bool { return s.bus.features.MaxDelay > 0 }

// returns reports whether a head with this verdict is to be given back.
func (s *subscription) returns(i *item, v verdict) bool {
	if v.done || i.stored || !s.delays() {
		return false
	}
	switch i.stage {
	case stageHandle:
		return v.wait >= releaseFrom
	case stageHeld:
		return true
	}
	return false // it was handled, or given up: only a store has to be told
}

// giveBack takes the head out of its lane, and on an ordered driver everything
// behind it, and returns it to the broker. The caller holds the lock.
func (s *subscription) giveBack(l *lane, i *item, wait time.Duration) {
	if i.stage == stageHeld {
		wait = heldRelease.wait(max(1, i.redeliveries()))
	}
	wait = min(wait, s.bus.features.MaxDelay)
	s.rememberAttempts(i)
	for first := true; l.head != nil && (first || s.bus.features.Ordered); first = false {
		head := l.head
		l.pop()
		head.finished = true
		if head.letter != nil {
			s.endLetter(head)
		}
		s.settleAs(head, driver.Released, wait)
	}
}

// returnDropped gives items back that were taken out of their lanes. The caller
// holds the lock.
func (s *subscription) returnDropped(items []*item) {
	if !s.delays() {
		return
	}
	for _, i := range items {
		if i.stage == stageFinish { // it was handled
			s.settleAs(i, driver.Finished, 0)
			continue
		}
		s.settleAs(i, driver.Released, 0)
	}
}

func (i *item) redeliveries() int {
	if i.wire == nil {
		return 0
	}
	return i.wire.redeliveries
}

func (i *item) attemptsKey() string { return i.eventType() + "\n" + i.id }

// rememberAttempts keeps the count of an event that will come again. Over the
// bound some other event's count begins anew.
func (s *subscription) rememberAttempts(i *item) {
	if i.attempts == 0 {
		return
	}
	if s.attempts == nil {
		s.attempts = make(map[string]int)
	}
	if len(s.attempts) >= releasedAttempts {
		for key := range s.attempts {
			delete(s.attempts, key)
			break
		}
	}
	s.attempts[i.attemptsKey()] = i.attempts
}

// recallAttempts continues the count of an event that was given back. The
// caller holds the lock.
func (s *subscription) recallAttempts(i *item) {
	if len(s.attempts) == 0 || i.stage != stageHandle {
		return
	}
	key := i.attemptsKey()
	i.attempts = s.attempts[key]
	delete(s.attempts, key)
}
