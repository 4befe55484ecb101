package tidingstest

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/tidings-go/tidings"
)

// clock is virtual time. The engine tells it how much work there is.
type clock struct {
	mu      sync.Mutex
	changed *sync.Cond
	now     time.Time
	timers  []*timer // by time
	active  int
	waiting int
}

type timer struct {
	clock *clock
	at    time.Time
	f     func()
}

func newClock() *clock {
	c := &clock{now: time.Now()}
	c.changed = sync.NewCond(&c.mu)
	return c
}

// Now implements [tidings.Clock].
func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// AfterFunc implements [tidings.Clock].
func (c *clock) AfterFunc(d time.Duration, f func()) tidings.Timer {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &timer{clock: c, at: c.now.Add(max(d, 0)), f: f}
	at, _ := slices.BinarySearchFunc(c.timers, t, func(a, b *timer) int {
		if a.at.After(b.at) {
			return 1
		}
		return -1 // equal times keep the order in which they were made
	})
	c.timers = slices.Insert(c.timers, at, t)
	return t
}

// Stop implements [tidings.Timer].
func (t *timer) Stop() bool {
	t.clock.mu.Lock()
	defer t.clock.mu.Unlock()
	at := slices.Index(t.clock.timers, t)
	if at < 0 {
		return false
	}
	t.clock.timers = slices.Delete(t.clock.timers, at, at+1)
	return true
}

// LaneActive is told by the engine how much work runs or could run.
func (c *clock) LaneActive(delta int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.active += delta
	c.changed.Broadcast()
}

// LaneWaiting is told by the engine how many lanes wait for a timer.
func (c *clock) LaneWaiting(delta int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting += delta
}

// awaitQuiet waits until nothing runs, and reports false when that took longer
// than patience.
func (c *clock) awaitQuiet(patience time.Duration) bool {
	late := false
	guard := time.AfterFunc(patience, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		late = true
		c.changed.Broadcast()
	})
	defer guard.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.active > 0 && !late {
		c.changed.Wait()
	}
	return c.active == 0
}

// lanesWait reports whether the engine waits for a timer that ends in work.
func (c *clock) lanesWait() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waiting > 0
}

// step advances to the next timer, not beyond limit, and starts it: one, also
// where several are due, so that handlers do not run in parallel. Chance decides
// between equal times. It reports false when there is none until then; the time
// is limit after that.
func (c *clock) step(limit time.Time, random *rand.Rand) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.timers) == 0 || c.timers[0].at.After(limit) {
		if c.now.Before(limit) {
			c.now = limit
		}
		return false
	}
	first := c.timers[0].at
	equal := 1
	for equal < len(c.timers) && c.timers[equal].at.Equal(first) {
		equal++
	}
	chosen := random.IntN(equal)
	t := c.timers[chosen]
	c.timers = slices.Delete(c.timers, chosen, chosen+1)
	if first.After(c.now) {
		c.now = first
	}
	c.active++ // until the call is over, or the engine has taken over
	go func() {
		defer c.LaneActive(-1)
		t.f()
	}()
	return true
}
