package drivertest

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidings-go/tidings"
)

// chance is a source of random numbers that handlers share. Its seed is in the
// log of the case.
type chance struct {
	mu sync.Mutex
	r  *rand.Rand
}

func (s *scene) chance() *chance {
	seed := new(maphash.Hash).Sum64()
	s.Logf("seed %d", seed)
	return &chance{r: rand.New(rand.NewPCG(seed, 0))}
}

func (c *chance) below(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.r.IntN(n)
}

func order(s *scene) {
	const lanes, each = 16, 40
	l := newLedger()
	random := s.chance()
	p := s.declare(settings{}, func(b *tidings.Bus) {
		// Most attempts fail here, and that is no outage.
		subscribe(s, b, "ordered", tidings.SubscribeOptions{Concurrency: lanes, MaxAttempts: 3, Backoff: s.steady(time.Millisecond), WithoutGuard: true}, stepTaken,
			l.handler(func(context.Context, tidings.Event[stepPayload]) error {
				switch random.below(8) {
				case 0, 1, 2:
					return errNotYet
				case 3:
					return tidings.Permanent(errNotYet)
				case 4:
					panic(errNotYet)
				}
				return nil
			}))
	})
	p.seen.tell(l.observe)
	p.run()
	p.ready()
	for n := 0; n < each; n += 4 {
		var run []tidings.DomainEvent
		for lane := range lanes {
			run = append(run, l.steps(fmt.Sprint("lane-", lane), 4)...)
		}
		p.publish(run...)
	}
	l.audit(s)
	s.Logf("%v", l)
}

func orderIsRefused(s *scene) {
	p := s.declare(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "strict", tidings.SubscribeOptions{RequireOrder: true, OnExhausted: tidings.Block}, stepTaken, newLedger().handler(nil))
	})
	s.refused(p, module+".strict", "RequireOrder", s.name)
}

// refused runs a bus that must be refused and looks for words in the complaint.
func (s *scene) refused(p *process, words ...string) {
	s.Helper()
	text := s.complaints(p)
	for _, word := range words {
		if !strings.Contains(text, word) {
			s.Errorf("the complaint does not say %s: %s", word, text)
		}
	}
}

func twoTypesOfAChannel(s *scene) {
	const lanes, each = 8, 30
	var mu sync.Mutex
	next := map[string]int{}
	handled := 0
	meet := func(aggregate, eventType string, number int) error {
		mu.Lock()
		defer mu.Unlock()
		if number != next[aggregate] {
			s.Errorf("%s %d of %s was handled where %d was due", eventType, number, aggregate, next[aggregate])
		}
		next[aggregate] = number + 1
		handled++
		return nil
	}
	p := s.start(settings{}, func(b *tidings.Bus) {
		b.Module(module).Subscribe("accounts", s.options(tidings.SubscribeOptions{}),
			accountOpened.On(func(_ context.Context, e tidings.Event[accountPayload]) error {
				return meet(e.AggregateID(), e.Type(), e.Payload().Number)
			}),
			accountChanged.On(func(_ context.Context, e tidings.Event[accountPayload]) error {
				return meet(e.AggregateID(), e.Type(), e.Payload().Number)
			}))
	})
	for n := range each {
		var run []tidings.DomainEvent
		for lane := range lanes {
			contract := accountOpened
			if (n+lane)%3 > 0 {
				contract = accountChanged
			}
			run = append(run, contract.New(fmt.Sprint("lane-", lane), accountPayload{n}))
		}
		p.publish(run...)
	}
	s.eventually("all events are handled", func() bool { mu.Lock(); defer mu.Unlock(); return handled == lanes*each },
		func() string { mu.Lock(); defer mu.Unlock(); return fmt.Sprint(handled) })
}

func retryHoldsItsLane(s *scene) {
	const others = 64 // so many that some share the partition of the first
	l := newLedger()
	var mended atomic.Bool
	var failures atomic.Int64
	p := s.start(settings{}, func(b *tidings.Bus) {
		subscribe(s, b, "patient", tidings.SubscribeOptions{MaxAttempts: 1 << 30, Backoff: s.steady(5 * time.Millisecond)}, stepTaken,
			l.handler(func(_ context.Context, e tidings.Event[stepPayload]) error {
				if e.AggregateID() == "stuck" && e.Payload().Number == 0 && !mended.Load() {
					failures.Add(1)
					return errors.New("still broken")
				}
				return nil
			}))
	})
	p.publish(l.steps("stuck", 5)...)
	s.eventually("the first event fails", func() bool { return failures.Load() > 0 }, nil)
	for n := range others {
		p.publish(l.steps(fmt.Sprint("other-", n), 3)...)
	}
	s.eventually("the other aggregates flow", func() bool {
		for n := range others {
			if l.finishedOf(fmt.Sprint("other-", n)) < 3 {
				return false
			}
		}
		return true
	}, l.String)
	before := failures.Load()
	s.eventually("the first event is still tried", func() bool { return failures.Load() > before+1 }, nil)
	if n := l.finishedOf("stuck"); n > 0 {
		s.Errorf("%d events of the stuck aggregate are finished", n)
	}
	mended.Store(true)
	l.audit(s)
}
