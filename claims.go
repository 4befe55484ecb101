package tidings

import (
	"context"
	"sync"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// localClaims is the process-local claims store: bounded, forgotten with the
// process. What is finished is forgotten oldest first; what is being handled is
// never forgotten.
type localClaims struct {
	clock Clock
	bound int // finished keys per subscription

	mu            sync.Mutex
	subscriptions map[string]*localKeys
}

type localKeys struct {
	claims   map[string]localClaim
	finished []string // a ring in the order of finishing
	next     int
}

type localClaim struct {
	owner  string // "" when done
	until  time.Time
	digest uint64
	// crashes counts leases that ended without a word.
	crashes int
	expires time.Time // of a done key; zero is never
}

var _ driver.Claims = (*localClaims)(nil)

func newLocalClaims(clock Clock, bound int) *localClaims {
	return &localClaims{clock: clock, bound: bound, subscriptions: make(map[string]*localKeys)}
}

// Claim implements [driver.Claims].
func (l *localClaims) Claim(_ context.Context, r driver.ClaimRequest) (driver.ClaimAnswer, error) {
	now := l.clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	keys := l.subscriptions[r.Subscription]
	if keys == nil {
		keys = &localKeys{claims: make(map[string]localClaim)}
		l.subscriptions[r.Subscription] = keys
	}
	c, known := keys.claims[r.Key]
	switch {
	case !known:
	case c.owner == "":
		if c.expires.IsZero() || now.Before(c.expires) {
			return driver.ClaimAnswer{State: driver.ClaimDone, Digest: c.digest}, nil
		}
		c = localClaim{}
	case c.owner == r.Owner:
	case now.Before(c.until):
		return driver.ClaimAnswer{State: driver.ClaimBusy, Until: c.until}, nil
	default:
		c.crashes++
	}
	c.owner, c.until, c.digest = r.Owner, now.Add(r.Lease), r.Digest
	keys.claims[r.Key] = c
	return driver.ClaimAnswer{State: driver.ClaimFresh, Crashes: c.crashes}, nil
}

// Finish implements [driver.Claims].
func (l *localClaims) Finish(_ context.Context, r driver.ClaimRequest) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	keys := l.subscriptions[r.Subscription]
	if keys == nil {
		return driver.ErrNotClaimed
	}
	c, known := keys.claims[r.Key]
	if !known || c.owner != r.Owner {
		return driver.ErrNotClaimed
	}
	done := localClaim{digest: r.Digest}
	if r.Keep > 0 {
		done.expires = l.clock.Now().Add(r.Keep)
	}
	keys.claims[r.Key] = done
	if len(keys.finished) < l.bound {
		keys.finished = append(keys.finished, r.Key)
		return nil
	}
	if oldest := keys.finished[keys.next]; oldest != r.Key {
		if c, ok := keys.claims[oldest]; ok && c.owner == "" {
			delete(keys.claims, oldest)
		}
	}
	keys.finished[keys.next] = r.Key
	keys.next = (keys.next + 1) % l.bound
	return nil
}

// Release implements [driver.Claims].
func (l *localClaims) Release(_ context.Context, r driver.ClaimRequest) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	keys := l.subscriptions[r.Subscription]
	if keys == nil {
		return nil
	}
	if c, known := keys.claims[r.Key]; known && c.owner == r.Owner {
		delete(keys.claims, r.Key)
	}
	return nil
}

// Durable implements [driver.Claims].
func (l *localClaims) Durable() bool { return false }
