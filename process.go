package tidings

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// process does what the item's stage asks for. The lock is not held.
func (s *subscription) process(i *item, t *tree) verdict {
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
		return verdict{wait: s.options.Backoff.Initial}
	}
	if v, counted := s.count(i); !counted {
		return v
	}
	err := s.run(i, t)
	return s.outcome(i, err)
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

// call runs one attempt of the handler.
func (s *subscription) call(i *item, t *tree) (err error) {
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
		i.reason = "undecodable"
		return Permanent(fmt.Errorf("payload of version %d: %w", i.version, err))
	}
	var ctx context.Context = a
	var ends []func(error)
	returned := false
	defer func() {
		if !returned {
			if value := recover(); value != nil {
				err = &PanicError{Value: value, Stack: string(debug.Stack())}
			} else {
				err = errGoexit
			}
		}
		if cause := a.finish(); err != nil && cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w (%w)", err, cause)
		}
		for n := len(ends) - 1; n >= 0; n-- {
			ends[n](err)
		}
	}()
	for _, observer := range s.bus.observers.process {
		next, end := observer.ObserveProcess(ctx, r.event(), i.headers)
		if next != nil {
			ctx = next
		}
		if end != nil {
			ends = append(ends, end)
		}
	}
	err = i.reaction.handle(ctx, r)
	returned = true
	return err
}

// outcome turns what the handler returned into a verdict.
func (s *subscription) outcome(i *item, err error) verdict {
	a := i.attempt.Swap(nil)
	if a == nil { // a store ended the goroutine before there was an attempt
		s.releaseClaim(i)
		return verdict{wait: s.options.Backoff.Initial}
	}
	if err == nil {
		if i.reaction.ownClaim {
			s.bus.stores.handler(nil)
		}
		s.learn(i, false)
		if s.bus.observers.wants(Handled) {
			took := s.bus.clock.Now().Sub(a.started)
			i.observe(s.bus.values, Handled, func(o *Observation) { o.Attempt, o.Duration = a.number, took })
		}
		return s.finishClaim(i)
	}
	took := s.bus.clock.Now().Sub(a.started)
	if errors.Is(err, ErrDuplicate) && i.reaction.ownClaim {
		if errors.Is(err, ErrDuplicateDiffers) {
			i.observe(s.bus.values, DuplicateDiffers, nil)
		}
		i.observe(s.bus.values, Deduplicated, nil)
		return verdict{done: true, settle: true}
	}
	if errors.Is(err, ErrFenced) && i.fence > 0 {
		s.unfence(i)
		i.observe(s.bus.values, Discarded, func(o *Observation) { o.Attempt, o.Duration, o.Err = a.number, took, err })
		return verdict{wait: s.options.Backoff.Initial}
	}
	if errors.Is(err, ErrLost) || errors.Is(err, ErrStopping) {
		// The handler was told to stop, which says nothing about the event.
		i.observe(s.bus.values, Discarded, func(o *Observation) { o.Attempt, o.Duration, o.Err = a.number, took, err })
		s.releaseClaim(i)
		return verdict{wait: s.options.Backoff.Initial}
	}
	if errors.Is(err, ErrUnavailable) && i.reaction.ownClaim {
		// The handler was not reached: that says nothing about the event either.
		s.bus.stores.handler(err)
		s.releaseClaim(i)
		return s.storeFailed(i, err)
	}
	i.failure = err
	if i.letter == nil && blames(err) && !s.learn(i, true) {
		wait := guardBackoff.Initial
		i.observe(s.bus.values, Retried, func(o *Observation) {
			o.Attempt, o.Duration, o.Wait, o.Err, o.Reason = a.number, took, wait, err, "guarded"
		})
		s.releaseClaim(i)
		return verdict{wait: wait}
	}
	i.attempts++
	_, permanent := errors.AsType[*permanentError](err)
	permanent = permanent || errors.Is(err, ErrCrashed)
	if permanent || i.attempts >= s.options.MaxAttempts {
		if i.reason == "" {
			switch {
			case errors.Is(err, ErrCrashed):
				i.reason = "crashed"
			case permanent:
				i.reason = "permanent"
			default:
				i.reason = "exhausted"
			}
		}
		return s.exhausted(i, took)
	}
	wait := s.options.Backoff.wait(i.attempts)
	if r, ok := errors.AsType[*retryError](err); ok {
		wait = r.after
	}
	i.observe(s.bus.values, Retried, func(o *Observation) {
		o.Attempt, o.Duration, o.Wait, o.Err = a.number, took, wait, err
	})
	s.releaseClaim(i)
	return verdict{wait: wait}
}

// exhausted carries out the subscription's policy.
func (s *subscription) exhausted(i *item, took time.Duration) verdict {
	policy := s.options.OnExhausted
	if i.reason == "undecodable" || i.letter != nil {
		policy = DeadLetter // no retry and no waiting makes it readable; and a retried letter is one still
	}
	switch policy {
	case Park:
		s.releaseClaim(i)
		i.stage = stagePark
		return s.parkItem(i)
	case Block:
		wait := s.options.Backoff.Max
		i.observe(s.bus.values, Blocked, func(o *Observation) {
			o.Attempt, o.Duration, o.Wait, o.Err, o.Reason = i.attempts, took, wait, i.failure, i.reason
		})
		i.reason = ""
		s.releaseClaim(i)
		return verdict{wait: wait, endless: true}
	}
	i.stage = stageDead
	return s.buryItem(i)
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
	wait := s.options.Backoff.wait(3)
	i.observe(s.bus.values, StoreFailed, func(o *Observation) { o.Wait, o.Err = wait, err })
	return verdict{wait: wait}
}
