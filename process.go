package tidings

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// process does what the item's stage asks for. The lock is not held. A store that
// panics is one that does not answer.
func (s *subscription) process(i *item, t *tree) (v verdict) {
	defer func() {
		if value := recover(); value != nil {
			v = s.storeFailed(i, &PanicError{Value: value, Stack: string(debug.Stack())})
		}
	}()
	if i.letter != nil {
		return s.processLetter(i)
	}
	return s.processEvent(i, t)
}

func (s *subscription) processEvent(i *item, t *tree) verdict {
	switch i.stage {
	case stageFinish:
		return s.finishClaim(i)
	case stageDead:
		return s.buryItem(i)
	case stageAnnounce:
		return s.announce(i)
	case stagePark:
		return s.parkItem(i)
	case stageHeld:
		return s.holdItem(i)
	case stageIgnored:
		i.observe(s.bus.values, Ignored, nil)
		return verdict{done: true, settle: true}
	}
	if i.aggregateID == "" && i.attempts == 0 {
		i.observe(s.bus.values, Unkeyed, nil)
	}
	if v, fenced := s.fence(i); !fenced {
		return v
	}
	if v, claimed := s.claim(i); !claimed {
		return v
	}
	if s.tooLate(i) {
		s.releaseClaim(i)
		return verdict{wait: s.options.Backoff.Initial}
	}
	if v, counted := s.count(i); !counted {
		return v
	}
	return s.outcome(i, s.run(i, t))
}

// tooLate reports whether an item must not be started any more: its source was
// given up, or the bus has stopped, while a store was asked.
func (s *subscription) tooLate(i *item) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return i.source.given || s.halted
}

// claim asks the claims store; false means that the verdict stands.
func (s *subscription) claim(i *item) (verdict, bool) {
	if s.claims == nil || i.reaction.ownClaim {
		return verdict{}, true
	}
	if v, advanced := s.advanceClaims(i); !advanced {
		return v, false
	}
	request := i.claimRequest()
	request.Counting = i.counting()
	answer, err := s.claims.Claim(s.bus.storing, request)
	if err != nil {
		return s.storeFailed(i, fmt.Errorf("claim: %w", err)), false
	}
	switch answer.State {
	case driver.ClaimDone:
		if answer.Digest != i.payloadDigest() {
			i.observe(s.bus.values, DuplicateDiffers, nil)
		}
		i.observe(s.bus.values, Deduplicated, nil)
		return verdict{done: true, settle: true}, false
	case driver.ClaimBusy:
		wait := max(answer.Until.Sub(s.bus.clock.Now()), 10*time.Millisecond)
		wait = min(wait, s.options.Backoff.Max)
		i.observe(s.bus.values, Busy, func(o *Observation) { o.Wait = wait })
		return verdict{wait: wait}, false
	}
	i.claimed = true
	return s.weigh(i, answer.Crashes, answer.Alone)
}

// call runs one attempt of the handler. It returns nil where that handled the event.
func (s *subscription) call(i *item, t *tree) (failed *failure) {
	clock := s.bus.clock
	a := &i.firstAttempt
	if a.item != nil {
		a = new(attempt) // a handler may have kept the earlier one
	}
	a.values, a.item, a.number, a.started, a.tree, a.claimed = s.bus.values, i, i.attempts+1, clock.Now(), t, i.claimed
	if s.options.Timeout > 0 {
		a.deadline = a.started.Add(s.options.Timeout)
	}
	i.attempt.Store(a)
	s.mu.Lock() // whoever cancels what runs has seen this attempt, or is seen here
	switch {
	case s.halted:
		a.cancel(context.Canceled, ErrStopping)
	case i.source.lost:
		a.cancel(context.Canceled, ErrLost)
	}
	s.mu.Unlock()
	if s.bus.observers.wants(Started) {
		i.observe(a, Started, func(o *Observation) { o.Attempt = a.number })
	}

	r, err := i.read()
	if err != nil {
		_ = a.finish()
		i.reason = reasonUndecodable
		return take(fmt.Errorf("payload of version %d: %w", i.version, err))
	}
	var ends span
	returned := false
	defer func() {
		if !returned { // what was panicked with is no error's text, so this takes it safely
			if value := recover(); value != nil {
				failed = take(&PanicError{Value: value, Stack: string(debug.Stack())})
			} else {
				failed = take(errGoexit)
			}
		}
		cause := a.finish()
		if failed == nil {
			ends.end(nil)
			return
		}
		failed.because(cause)
		ends.end(failed)
	}()
	ctx, begun := s.bus.observers.beginProcess(a, r.event(), i.headers)
	ends = begun
	if err := i.reaction.handle(ctx, r); err != nil {
		failed = take(err)
	}
	returned = true
	return failed
}

// outcome carries out what is decided of an attempt: nil is that it handled the
// event.
func (s *subscription) outcome(i *item, failed *failure) verdict {
	a := i.attempt.Swap(nil)
	if a == nil { // a store ended the goroutine before there was an attempt
		s.releaseClaim(i)
		return verdict{wait: s.options.Backoff.Initial}
	}
	e := endHandled
	if failed != nil {
		e = failed.ending(i)
	}
	if i.reaction.ownClaim {
		s.tellStores(e, failed)
	}
	if e == endFenced {
		s.unfence(i)
	}
	return s.carryOut(i, s.decide(i, e, failed), failed, a.number, s.bus.clock.Now().Sub(a.started))
}

// decide asks [decide] with what is known of an item.
func (s *subscription) decide(i *item, e ending, failed *failure) outcome {
	return decide(question{
		ending: e, standing: i.standing(), policy: s.options.OnExhausted,
		last: i.attempts+1 >= s.options.MaxAttempts, outage: !s.learn(i, e, failed),
	})
}

// standing is what an item is to its subscription.
func (i *item) standing() standing {
	switch {
	case i.letter != nil:
		return redrivenLetter
	case i.stored:
		return parkedHead
	}
	return liveEvent
}

// carryOut does what is decided.
func (s *subscription) carryOut(i *item, o outcome, failed *failure, attempt int, took time.Duration) verdict {
	if o.counts {
		i.attempts++
		i.failure = failed
	}
	if o.act == actPark || o.act == actDeadLetter {
		i.reason = o.reason
	}
	var given time.Duration
	if failed != nil {
		given = failed.after
	}
	wait := s.pauseOf(o, i.attempts, given)
	if o.kind == Deduplicated && failed.has(ErrDuplicateDiffers) {
		i.observe(s.bus.values, DuplicateDiffers, nil)
	}
	if o.kind != Parked && o.kind != DeadLettered { // those are told of when they are stored
		i.observe(s.bus.values, o.kind, func(seen *Observation) {
			seen.Attempt, seen.Duration, seen.Wait, seen.Reason = attempt, took, wait, o.reason
			if failed != nil && o.act == actRetry {
				seen.Err = failed
			}
		})
	}
	switch o.act {
	case actSettle:
		return s.finishClaim(i)
	case actPark:
		s.releaseClaim(i)
		i.stage = stagePark
		return s.parkItem(i)
	case actDeadLetter:
		i.stage = stageDead
		return s.buryItem(i)
	}
	s.releaseClaim(i)
	return verdict{wait: wait, endless: o.pause == pauseLongest}
}

// tellStores says how a handler with a transaction of its own found its store.
func (s *subscription) tellStores(e ending, failed *failure) {
	switch e {
	case endHandled:
		s.bus.stores.handler(nil)
	case endUnavailable:
		s.bus.stores.handler(failed)
	}
}

// buryItem stores the dead letter; while that fails the lane holds.
func (s *subscription) buryItem(i *item) verdict {
	if i.letter != nil {
		return s.buryAgain(i)
	}
	if err := s.dead.PutDeadLetter(s.bus.storing, i.deadLetter(s.bus.clock.Now())); err != nil {
		return s.storeFailed(i, fmt.Errorf("dead letter: %w", err))
	}
	i.observe(s.bus.values, DeadLettered, func(o *Observation) { o.Attempt, o.Reason, o.Err = i.attempts, i.reason, i.failure })
	s.releaseClaim(i)
	return s.announce(i)
}

// finishClaim marks the key as done, which comes only after success.
func (s *subscription) finishClaim(i *item) verdict {
	if i.claimed {
		err := s.claims.Finish(s.bus.storing, i.claimRequest())
		if err != nil && !errors.Is(err, driver.ErrNotClaimed) {
			i.stage = stageFinish
			return s.storeFailed(i, fmt.Errorf("finish: %w", err))
		}
		i.claimed = false
	}
	return verdict{done: true, settle: true}
}

// releaseClaim gives the key back, of a suspect with what is counted against it. A
// failure is not repeated: the next claim by this process renews it, and another's
// waits for the lease to end.
func (s *subscription) releaseClaim(i *item) {
	if !i.claimed {
		return
	}
	i.claimed = false
	request := i.claimRequest()
	request.Unstarted = i.suspicion != nil
	if err := s.claims.Release(s.bus.storing, request); err != nil {
		i.observe(s.bus.values, StoreFailed, func(o *Observation) { o.Err = fmt.Errorf("release: %w", err) })
	}
}

// storeFailed holds the lane until a store answers; it uses no attempt.
func (s *subscription) storeFailed(i *item, err error) verdict {
	wait := s.pauseOf(decide(question{ending: endStore, standing: i.standing(), policy: s.options.OnExhausted}), i.attempts, 0)
	i.observe(s.bus.values, StoreFailed, func(o *Observation) { o.Wait, o.Err = wait, err })
	return verdict{wait: wait}
}
