package tidings

import (
	"context"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// settler collects what is finished and tells the driver in batches: while one
// batch is under way the next one gathers. Guarded by the subscription's lock.
type settler struct {
	pending []settlement
	spare   []settlement
	turning bool
}

type settlement struct {
	driver.Settlement
	source *source
}

// settleBatch bounds one call of Settle.
const settleBatch = 10_000

// settleLater hands a finished item to the settler. An item that a Publish
// handled in its own goroutine is settled by that Publish. The caller holds the
// lock.
func (s *subscription) settleLater(i *item, t *tree) {
	if i.stored || i.source.lost {
		return
	}
	if t != nil {
		t.settle(i.settlement(driver.Finished, 0))
		return
	}
	s.settleAs(i, driver.Finished, 0)
}

// settleAs hands an item to the settler with its outcome. The caller holds the
// lock.
func (s *subscription) settleAs(i *item, outcome driver.Outcome, after time.Duration) {
	if i.stored || i.source.lost {
		return
	}
	i.source.unsettle++
	s.settler.pending = append(s.settler.pending, i.settlement(outcome, after))
	s.turnSettler()
}

func (i *item) settlement(outcome driver.Outcome, after time.Duration) settlement {
	return settlement{driver.Settlement{Ref: i.ref, Source: driver.Source{Name: i.source.name, Epoch: i.source.epoch}, Outcome: outcome, After: after}, i.source}
}

func (s *subscription) turnSettler() {
	if s.settler.turning {
		return
	}
	s.settler.turning = true
	s.bus.tally.LaneActive(1)
	s.workers.Go(s.settleAll)
}

// settleAll runs until nothing is pending. A settlement that fails is never
// forgotten: it is tried again until it succeeds, its source is lost or the bus
// gives up at the end of its drain.
func (s *subscription) settleAll() {
	var batch []driver.Settlement
	failures := 0
	for {
		s.mu.Lock()
		taken := s.settler.pending
		if len(taken) == 0 {
			s.settler.turning = false
			s.bus.tally.LaneActive(-1)
			s.checkIdle()
			s.mu.Unlock()
			return
		}
		kept := taken[:0:0]
		if len(taken) > settleBatch {
			taken, kept = taken[:settleBatch:settleBatch], taken[settleBatch:]
		}
		s.settler.pending = kept
		if len(kept) == 0 {
			s.settler.pending, s.settler.spare = s.settler.spare[:0], nil
		}
		batch = batch[:0]
		for _, done := range taken {
			if !done.source.lost {
				batch = append(batch, done.Settlement)
			}
		}
		s.mu.Unlock()

		var err error
		if len(batch) > 0 {
			err = s.consumer.Settle(s.bus.settling, batch)
		}
		if err != nil && s.bus.settling.Err() == nil {
			failures++
			wait := Backoff{Initial: 50 * time.Millisecond, Max: 5 * time.Second, Multiplier: 2, Jitter: 0.2}.wait(failures)
			s.observe(Observation{Kind: SettleFailed, Count: len(batch), Wait: wait, Err: err})
			s.mu.Lock()
			if s.vitals.unsettled.IsZero() {
				s.vitals.unsettled = s.bus.clock.Now()
			}
			s.settler.pending = append(taken, s.settler.pending...)
			s.mu.Unlock()
			s.bus.sleep(s.bus.settling, wait)
			continue
		}
		if err != nil {
			s.observe(Observation{Kind: SettleFailed, Count: len(batch), Err: err})
		} else if failures = 0; len(batch) > 0 && s.bus.observers.wants(Settled) {
			s.observe(Observation{Kind: Settled, Count: len(batch)})
		}
		s.mu.Lock()
		s.vitals.unsettled = time.Time{}
		for _, done := range taken {
			done.source.unsettle--
			s.checkSource(done.source)
		}
		clear(taken)
		s.settler.spare = taken[:0]
		s.mu.Unlock()
	}
}

func (s *subscription) observe(o Observation) {
	o.Subscription = s.name
	s.bus.observers.observe(s.bus.values, o)
}

// sleep waits on the bus's clock, or until ctx ends.
func (b *Bus) sleep(ctx context.Context, d time.Duration) {
	done := make(chan struct{})
	timer := b.clock.AfterFunc(d, func() { close(done) })
	defer timer.Stop()
	select {
	case <-done:
	case <-ctx.Done():
	}
}
