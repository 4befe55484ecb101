// Package share divides named parts (shards of a stream, slots of a log) among the
// instances of a subscription, by leases with epochs.
package share

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Options configures a [Share]. Every field is needed.
type Options struct {
	Leases driver.Leases
	// Group is what the instances have in common, Holder this one's name.
	Group, Holder string
	// Names are the parts.
	Names []string
	// TTL is how long a part stays with an instance that died.
	TTL time.Duration

	// Adopt begins with parts that were given to this instance. After an error
	// they are given back.
	Adopt func(ctx context.Context, leases []driver.Lease) error
	// GiveUp hands parts over in good order: when it returns they are released.
	// It may take its time; the leases are renewed meanwhile.
	GiveUp func(leases []driver.Lease)
	// Lost ends ownerships that are over already. It does not wait.
	Lost func(leases []driver.Lease, why string)
	// Joined is called after each look at who is alive.
	Joined func()
	// Failed is told when the leases cannot be asked.
	Failed func(err error)
}

// Share is one instance's part of a group. Make it with [New]; run Divide and
// Renew in goroutines of their own, Renew for longer.
type Share struct {
	o Options

	mu    sync.Mutex
	owned []owned
}

type owned struct {
	lease driver.Lease
	until time.Time // when it ends unless it is renewed, by this process's clock
}

// New makes a Share that owns nothing yet.
func New(o Options) *Share { return &Share{o: o} }

// every is the longest time between two looks at who is alive.
const every = time.Second

// Divide takes and gives up parts until ctx ends: each instance that is alive has
// its part, rounded up; one above it gives up, one below it takes what is free.
func (s *Share) Divide(ctx context.Context) {
	failures := 0
	for {
		wait := min(s.o.TTL/3, every)
		if err := s.divide(ctx); err == nil {
			failures = 0
			s.o.Joined()
		} else if ctx.Err() == nil {
			s.o.Failed(err)
			wait = min(50*time.Millisecond<<min(failures, 10), wait)
			failures++
		}
		if !pause(ctx, wait) {
			return
		}
	}
}

func (s *Share) divide(ctx context.Context) error {
	alive, err := s.o.Leases.Join(ctx, s.o.Group, s.o.Holder, s.o.TTL)
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	part := (len(s.o.Names) + alive - 1) / max(alive, 1)
	have := s.Owned()
	if len(have) > part {
		s.giveUp(have[part:])
		return nil
	}
	if len(have) == part {
		return nil
	}
	var names []string
	for _, name := range s.o.Names {
		if !slices.ContainsFunc(have, func(lease driver.Lease) bool { return lease.Name == name }) {
			names = append(names, name)
		}
	}
	began := time.Now()
	leases, err := s.o.Leases.Acquire(ctx, s.o.Group, s.o.Holder, names, part-len(have), s.o.TTL)
	if err != nil {
		return fmt.Errorf("acquire: %w", err)
	}
	if len(leases) == 0 {
		return nil
	}
	s.mu.Lock()
	for _, lease := range leases {
		s.owned = append(s.owned, owned{lease, began.Add(s.o.TTL)})
	}
	s.mu.Unlock()
	if err := s.o.Adopt(ctx, leases); err != nil {
		s.Forget(leases)
		s.release(leases)
		return err
	}
	return nil
}

func (s *Share) giveUp(leases []driver.Lease) {
	s.o.GiveUp(leases)
	s.Forget(leases)
	s.release(leases)
}

// release gives leases back; if that fails they end by themselves.
func (s *Share) release(leases []driver.Lease) {
	names := make([]string, len(leases))
	for n, lease := range leases {
		names[n] = lease.Name
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.o.TTL)
	defer cancel()
	if err := s.o.Leases.Release(ctx, s.o.Group, s.o.Holder, names); err != nil {
		s.o.Failed(fmt.Errorf("release: %w", err))
	}
}

// Owned returns what the instance has, as far as it knows.
func (s *Share) Owned() []driver.Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	leases := make([]driver.Lease, len(s.owned))
	for n, o := range s.owned {
		leases[n] = o.lease
	}
	return leases
}

// Until is when the first of some leases ends unless it is renewed: what must not
// outlive an ownership ends before. It is the zero time when one of them is not
// owned.
func (s *Share) Until(leases []driver.Lease) (first time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, lease := range leases {
		at := slices.IndexFunc(s.owned, func(o owned) bool { return o.lease == lease })
		if at < 0 {
			return time.Time{}
		}
		if until := s.owned[at].until; first.IsZero() || until.Before(first) {
			first = until
		}
	}
	return first
}

// Forget removes leases from what the instance has. It returns those that it
// had.
func (s *Share) Forget(leases []driver.Lease) (had []driver.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owned = slices.DeleteFunc(s.owned, func(o owned) bool {
		gone := slices.Contains(leases, o.lease)
		if gone {
			had = append(had, o.lease)
		}
		return gone
	})
	return had
}

// Lose ends ownerships that somebody found to be over.
func (s *Share) Lose(leases []driver.Lease, why string) {
	if had := s.Forget(leases); len(had) > 0 {
		s.o.Lost(had, why)
	}
}

// Renew keeps the leases until ctx ends. One that could not be renewed in its
// time is over, whether the store says so or not: another may have it.
func (s *Share) Renew(ctx context.Context) {
	// A quarter to wait and a quarter to ask: what is late is noticed in time.
	quarter := s.o.TTL / 4
	for pause(ctx, quarter) {
		asked := s.Owned() // what is acquired meanwhile is not missing
		if len(asked) == 0 {
			continue
		}
		began := time.Now()
		asking, cancel := context.WithTimeout(ctx, quarter)
		kept, err := s.o.Leases.Renew(asking, s.o.Group, s.o.Holder, s.o.TTL)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.o.Failed(fmt.Errorf("renew: %w", err))
		}
		var over []driver.Lease
		s.mu.Lock()
		for n := range s.owned {
			o := &s.owned[n]
			switch {
			case !slices.Contains(asked, o.lease):
			case err == nil && slices.Contains(kept, o.lease):
				o.until = began.Add(s.o.TTL)
			case err == nil || !time.Now().Add(quarter).Before(o.until):
				over = append(over, o.lease)
			}
		}
		s.mu.Unlock()
		s.Lose(over, "the lease ended before it was renewed")
	}
}

// Leave gives up everything and the place in the group.
func (s *Share) Leave(ctx context.Context) error {
	s.mu.Lock()
	s.owned = nil
	s.mu.Unlock()
	if err := s.o.Leases.Leave(ctx, s.o.Group, s.o.Holder); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
