// Package share divides named parts (shards of a stream, slots of a log) among the
// instances of a subscription, by leases with epochs.
package share

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/calls"
)

// Options configures a [Share]. Every field is needed.
type Options struct {
	Leases driver.Leases
	// Group is what the instances have in common, Holder this one's name.
	Group, Holder string
	// Names are the parts, by kind. An instance knows a kind with all its parts, or
	// not at all: others of the group may know fewer kinds, or more.
	Names map[string][]string
	// TTL is how long a part stays with an instance that died.
	TTL time.Duration

	// Adopt begins with parts that were given to this instance. After an error
	// they are given back.
	Adopt func(ctx context.Context, leases []driver.Lease) error
	// Drain returns when nothing of a part runs any more and nothing is begun. It
	// is called for each part in a goroutine of its own and may take its time: the
	// lease is renewed meanwhile, and no other part waits.
	Drain func(lease driver.Lease)
	// GiveUp ends ownerships of parts that are drained: when it returns they are
	// released.
	GiveUp func(leases []driver.Lease)
	// Lost ends ownerships that are over already. It does not wait.
	Lost func(leases []driver.Lease, why string)
	// Joined is called after each look at who is alive.
	Joined func()
	// Failed is told when the leases cannot be asked.
	Failed func(err error)
	// Stuck reports that what serves the parts has not got on for longer than the
	// TTL: then the leases are not renewed, and another instance takes the parts
	// over. A handler that is slow is not stuck. Nil, which may be left, means never.
	Stuck func() bool
}

// ErrStuck is what Failed is told while the instance is stuck.
var ErrStuck = errors.New("what serves the leases has not got on for longer than they last: they are not renewed, so that another instance takes over")

// Share is one instance's part of a group. Make it with [New]; run Divide and
// Renew in goroutines of their own, Renew for longer.
type Share struct {
	o     Options
	kinds []string          // in an order
	kind  map[string]string // by the name of a part
	self  driver.Member

	leaving sync.WaitGroup

	mu    sync.Mutex
	owned []owned
	lost  bool // parts since the last look: their leases may be there still
}

type owned struct {
	lease   driver.Lease
	until   time.Time // when it ends unless it is renewed, by this process's clock
	leaving bool      // it is being given up
}

// New makes a Share that owns nothing yet.
func New(o Options) *Share {
	s := &Share{
		o: o, kinds: slices.Sorted(maps.Keys(o.Names)), kind: make(map[string]string),
		self: driver.Member{Holder: o.Holder, Parts: make(map[string]int)},
	}
	for kind, names := range o.Names {
		s.self.Parts[kind] = len(names)
		for _, name := range names {
			s.kind[name] = kind
		}
	}
	return s
}

// every is the longest time between two looks at who is alive.
const every = time.Second

// gather is how long a part that is drained waits for others, to be given up
// together with them.
const gather = 10 * time.Millisecond

// Divide takes and gives up parts until ctx ends: the parts of a kind are divided
// evenly among those alive that know it. One that has more of a kind gives up, one
// that has less takes what is free.
func (s *Share) Divide(ctx context.Context) {
	defer s.leaving.Wait()
	failures := 0
	for {
		wait := min(s.o.TTL/3, every)
		if err := s.divide(ctx); err == nil {
			failures = 0
			s.o.Joined()
		} else if errors.Is(err, errWriting) {
			failures = 0
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

// errWriting says that a transaction of this process keeps the leases from being
// asked.
var errWriting = errors.New("a transaction of this process is open")

func (s *Share) stuck() bool { return s.o.Stuck != nil && s.o.Stuck() }

// divide looks at who is alive, once. It takes no longer than the leases last.
func (s *Share) divide(ctx context.Context) error {
	if s.stuck() {
		return ErrStuck // nor does it count as alive: others take its part
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.TTL)
	defer cancel()
	alive, err := calls.Until(ctx, func(ctx context.Context) ([]driver.Member, error) {
		return s.o.Leases.Join(ctx, s.o.Group, s.self, s.o.TTL)
	})
	if err != nil {
		if ctx.Err() != nil && !s.o.Leases.KeptSince().IsZero() {
			return errWriting
		}
		return fmt.Errorf("join: %w", err)
	}
	if !slices.ContainsFunc(alive, func(m driver.Member) bool { return m.Holder == s.o.Holder }) {
		alive = append(alive, s.self) // it took longer than it lives
	}
	part := quota(alive, s.o.Holder)
	if leases := s.excess(part); len(leases) > 0 {
		s.leaving.Go(func() { s.giveUp(leases) })
		return nil
	}
	began := time.Now()
	leases, err := s.acquire(ctx, part)
	if len(leases) == 0 {
		return err
	}
	s.mu.Lock()
	for _, lease := range leases {
		s.owned = append(s.owned, owned{lease: lease, until: began.Add(s.o.TTL)})
	}
	s.mu.Unlock()
	if err := s.o.Adopt(ctx, leases); err != nil {
		s.Forget(leases)
		s.release(leases)
		return err
	}
	if gone := s.gone(leases); len(gone) > 0 { // while it began
		s.o.Lost(gone, "the lease ended before it was renewed")
	}
	return err
}

// acquire takes what the instance misses of its part. What it took before an error
// it has.
func (s *Share) acquire(ctx context.Context, part map[string]int) (leases []driver.Lease, err error) {
	// A lease that was not renewed in time may still be this instance's in the store,
	// for nobody to use, whether it is to have it again or not.
	if s.takeLost() {
		var names []string
		for _, kind := range s.kinds {
			unowned, _ := s.missing(kind, 0)
			names = append(names, unowned...)
		}
		if err := calls.Do(ctx, func(ctx context.Context) error { return s.o.Leases.Release(ctx, s.o.Group, s.o.Holder, names) }); err != nil {
			s.setLost()
			return nil, fmt.Errorf("release: %w", err)
		}
	}
	for _, kind := range s.kinds {
		names, missing := s.missing(kind, part[kind])
		if missing <= 0 || len(names) == 0 {
			continue
		}
		taken, err := calls.Until(ctx, func(ctx context.Context) ([]driver.Lease, error) {
			return s.o.Leases.Acquire(ctx, s.o.Group, s.o.Holder, names, missing, s.o.TTL)
		})
		if err != nil {
			s.setLost() // some may have been given, and the answer was lost
			return leases, fmt.Errorf("acquire: %w", err)
		}
		leases = append(leases, taken...)
	}
	return leases, nil
}

// gone returns those of the leases that are not owned any more.
func (s *Share) gone(leases []driver.Lease) (gone []driver.Lease) {
	have := s.Owned()
	for _, lease := range leases {
		if !slices.Contains(have, lease) {
			gone = append(gone, lease)
		}
	}
	return gone
}

// excess marks what is above the instance's part as leaving, and returns it.
func (s *Share) excess(part map[string]int) (leases []driver.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := maps.Clone(part)
	for n := range s.owned {
		o := &s.owned[n]
		kind := s.kind[o.lease.Name]
		switch {
		case o.leaving:
		case left[kind] > 0:
			left[kind]--
		default:
			o.leaving = true
			leases = append(leases, o.lease)
		}
	}
	return leases
}

// missing returns the parts of a kind that the instance does not own, and how many
// of them it should.
func (s *Share) missing(kind string, part int) (names []string, missing int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	have := make(map[string]bool)
	for _, o := range s.owned {
		if s.kind[o.lease.Name] != kind {
			continue
		}
		have[o.lease.Name] = true
		if !o.leaving {
			part--
		}
	}
	for _, name := range s.o.Names[kind] {
		if !have[name] {
			names = append(names, name)
		}
	}
	return names, part
}

func (s *Share) setLost() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = true
}

func (s *Share) takeLost() (lost bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost, s.lost = s.lost, false
	return lost
}

// giveUp hands parts over, each when it is drained.
func (s *Share) giveUp(leases []driver.Lease) {
	drained := make(chan driver.Lease, len(leases))
	for _, lease := range leases {
		s.leaving.Go(func() {
			s.o.Drain(lease)
			drained <- lease
		})
	}
	for left := len(leases); left > 0; {
		batch := []driver.Lease{<-drained}
		for more, timer := true, time.NewTimer(gather); more && len(batch) < left; {
			select {
			case lease := <-drained:
				batch = append(batch, lease)
			case <-timer.C:
				more = false
			}
		}
		left -= len(batch)
		s.o.GiveUp(batch)
		s.release(s.Forget(batch)) // what was lost meanwhile is not given back
	}
}

// release gives leases back; if that fails they end by themselves.
func (s *Share) release(leases []driver.Lease) {
	if len(leases) == 0 {
		return
	}
	names := make([]string, len(leases))
	for n, lease := range leases {
		names[n] = lease.Name
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.o.TTL)
	defer cancel()
	if err := calls.Do(ctx, func(ctx context.Context) error { return s.o.Leases.Release(ctx, s.o.Group, s.o.Holder, names) }); err != nil {
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
		s.setLost()
		s.o.Lost(had, why)
	}
}

// Renew keeps the leases until ctx ends. One that could not be renewed in its
// time is over, whether the store says so or not: another may have it.
func (s *Share) Renew(ctx context.Context) {
	ttl := s.o.TTL
	for wait := ttl / 4; pause(ctx, wait); {
		wait = ttl / 4
		asked := s.Owned() // what is acquired meanwhile is not missing
		if len(asked) == 0 {
			continue
		}
		var kept []driver.Lease
		var at time.Time
		err := ErrStuck
		if !s.stuck() {
			kept, at, err = s.renew(ctx, asked)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.o.Failed(fmt.Errorf("renew: %w", err))
			wait = ttl / 20
		}
		var over []driver.Lease
		s.mu.Lock()
		for n := range s.owned {
			o := &s.owned[n]
			switch {
			case !slices.Contains(asked, o.lease):
			case err == nil && slices.Contains(kept, o.lease):
				o.until = at.Add(ttl)
			case err != nil && !errors.Is(err, ErrStuck) && s.alone(o.until):
				o.until = time.Now().Add(ttl / 2) // it is renewed with what is being written
			case err == nil || !time.Now().Add(ttl/6).Before(o.until): // else it would be noticed too late
				over = append(over, o.lease)
			}
		}
		s.mu.Unlock()
		s.Lose(over, "the lease ended before it was renewed")
	}
}

// renew asks the store for as long as its answer is of use. The leases are
// renewed at the time that it returns, or later.
func (s *Share) renew(ctx context.Context, asked []driver.Lease) (kept []driver.Lease, at time.Time, err error) {
	at = time.Now()
	first := at.Add(s.o.TTL / 2)
	if until := s.Until(asked); !until.IsZero() && until.Before(first) {
		first = until
	}
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	answered, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		timer := time.NewTimer(time.Until(first) - s.o.TTL/8)
		defer timer.Stop()
		for {
			select {
			case <-answered:
				return
			case <-timer.C:
			}
			now := time.Now()
			if !s.alone(first) {
				cancel()
				return
			}
			at = now.Add(-s.o.TTL / 2) // an answer that comes from now on may be older than now
			timer.Reset(s.o.TTL / 8)
		}
	}()
	kept, err = calls.Until(asking, func(ctx context.Context) ([]driver.Lease, error) {
		return s.o.Leases.Renew(ctx, s.o.Group, s.o.Holder, s.o.TTL)
	})
	close(answered)
	<-watched
	return kept, at, err
}

// alone reports that nobody can be given a lease that would have ended at a time,
// because transactions of this process have kept it since before.
func (s *Share) alone(until time.Time) bool {
	since := s.o.Leases.KeptSince()
	return !since.IsZero() && since.Before(until)
}

// Leave gives up everything and the place in the group. It takes no longer than
// the leases last.
func (s *Share) Leave(ctx context.Context) error {
	s.mu.Lock()
	s.owned = nil
	s.mu.Unlock()
	if err := calls.DoWithin(ctx, s.o.TTL, func(ctx context.Context) error { return s.o.Leases.Leave(ctx, s.o.Group, s.o.Holder) }); err != nil {
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
