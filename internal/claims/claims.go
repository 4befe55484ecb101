// Package claims is the claims store of one process.
package claims

import (
	"context"
	"sync"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Clock is where the time comes from.
type Clock interface{ Now() time.Time }

// Memory is a claims store of one process: bounded, forgotten with the process. All
// methods may be called at once. What is finished is forgotten oldest first; what is being handled is
// never forgotten.
type Memory struct {
	clock Clock
	bound int // finished keys per subscription

	mu            sync.Mutex
	subscriptions map[string]*keys
}

type keys struct {
	claims   map[string]claim
	finished []string // a ring in the order of finishing
	next     int
}

type claim struct {
	owner  string // "" when done
	until  time.Time
	digest uint64
	// crashes counts starts that never finished, alone those of them while nothing
	// else ran; started is what this claim counts as.
	crashes, alone int
	started        driver.Counting
	source         string
	epoch          int64
	expires        time.Time // of a done key; zero is never
	place          int       // of a done key in the ring
}

var _ driver.Claims = (*Memory)(nil)

// New makes a store that keeps bound finished keys per subscription.
func New(clock Clock, bound int) *Memory {
	return &Memory{clock: clock, bound: bound, subscriptions: make(map[string]*keys)}
}

// Claim implements [driver.Claims].
func (l *Memory) Claim(_ context.Context, r driver.ClaimRequest) (driver.ClaimAnswer, error) {
	now := l.clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.subscriptions[r.Subscription]
	if of == nil {
		of = &keys{claims: make(map[string]claim)}
		l.subscriptions[r.Subscription] = of
	}
	c, known := of.claims[r.Key]
	switch {
	case !known:
	case c.owner == "":
		if c.expires.IsZero() || now.Before(c.expires) {
			return driver.ClaimAnswer{State: driver.ClaimDone, Digest: c.digest}, nil
		}
		c = claim{}
	case c.owner == r.Owner:
	case now.Before(c.until) && (r.Source == "" || c.source != r.Source || c.epoch >= r.Epoch):
		return driver.ClaimAnswer{State: driver.ClaimBusy, Until: c.until}, nil
	}
	c.count(&r)
	c.owner, c.until, c.digest, c.source, c.epoch = r.Owner, now.Add(r.Lease), r.Digest, r.Source, r.Epoch
	of.claims[r.Key] = c
	return driver.ClaimAnswer{State: driver.ClaimFresh, Crashes: c.crashes, Alone: c.alone}, nil
}

// count counts the start of the owner before, if that was another, and what the new
// claim counts as.
func (c *claim) count(r *driver.ClaimRequest) {
	if c.owner != r.Owner {
		if c.started != driver.CountFirst {
			c.crashes++
		}
		if c.started == driver.CountAlone {
			c.alone++
		}
		c.started = driver.CountFirst // not at all
		if c.crashes == 0 {
			c.started = driver.CountBeside
		}
	}
	if r.Counting != driver.CountFirst {
		c.started = r.Counting
	}
}

// Finish implements [driver.Claims].
func (l *Memory) Finish(_ context.Context, r driver.ClaimRequest) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.subscriptions[r.Subscription]
	if of == nil {
		return driver.ErrNotClaimed
	}
	c, known := of.claims[r.Key]
	if !known || c.owner != r.Owner {
		return driver.ErrNotClaimed
	}
	done := claim{digest: r.Digest, place: of.next}
	if r.Keep > 0 {
		done.expires = l.clock.Now().Add(r.Keep)
	}
	if len(of.finished) < l.bound {
		done.place = len(of.finished)
		of.claims[r.Key] = done
		of.finished = append(of.finished, r.Key)
		return nil
	}
	// A key that expired and was handled again is in the ring twice; only its
	// last place forgets it.
	oldest := of.finished[of.next]
	if c, ok := of.claims[oldest]; ok && c.owner == "" && c.place == of.next {
		delete(of.claims, oldest)
	}
	of.claims[r.Key] = done
	of.finished[of.next] = r.Key
	of.next = (of.next + 1) % l.bound
	return nil
}

// Release implements [driver.Claims].
func (l *Memory) Release(_ context.Context, r driver.ClaimRequest) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.subscriptions[r.Subscription]
	if of == nil {
		return nil
	}
	c, known := of.claims[r.Key]
	switch {
	case !known || c.owner != r.Owner:
	case r.Unstarted && c.crashes > 0:
		c.until, c.started = time.Time{}, driver.CountFirst
		of.claims[r.Key] = c
	default:
		delete(of.claims, r.Key)
	}
	return nil
}

// Durable implements [driver.Claims].
func (l *Memory) Durable() bool { return false }
