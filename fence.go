package tidings

import (
	"context"
	"fmt"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// clockSkew is how far a broker's clock may be ahead of this process's without
// a redelivery being taken for a first delivery.
const clockSkew = time.Minute

// redelivered reports whether an earlier process may have started the event.
func (i *item) redelivered() bool {
	if i.letter != nil {
		return i.letter.Interrupted
	}
	if i.wire == nil {
		return false
	}
	if i.wire.redeliveries > 0 || i.source.name == "" {
		return i.wire.redeliveries > 1
	}
	return i.wire.storedAt.Before(i.source.since.Add(clockSkew))
}

// fence makes sure that the source of an item has an epoch of this ownership
// where the handler's effects are stored; false means that the verdict stands.
func (s *subscription) fence(i *item) (verdict, bool) {
	f := i.reaction.fence
	if f == nil || i.source.name == "" {
		return verdict{}, true
	}
	o := i.source
	o.fencing.Lock()
	defer o.fencing.Unlock()
	if epoch, known := o.fences[f.store]; known {
		i.fence = epoch
		return verdict{}, true
	}
	if s.tooLate(i) { // or an old owner would fence the new one
		return verdict{wait: s.options.Backoff.Initial}, false
	}
	var epoch int64
	err := s.bus.stores.ask(s.bus.storing, "epochs", func(ctx context.Context) (err error) {
		epoch, err = f.advance(ctx, s.name, o.name)
		return err
	})
	if err != nil {
		return s.storeFailed(i, fmt.Errorf("advance the epoch of %s: %w", o.name, err)), false
	}
	if o.fences == nil {
		o.fences = make(map[any]int64)
	}
	o.fences[f.store] = epoch
	i.fence = epoch
	return verdict{}, true
}

// advanceClaims makes sure that the source of an item has an epoch of this ownership
// where claims are made: those of an earlier owner are not waited for. False means
// that the verdict stands.
func (s *subscription) advanceClaims(i *item) (verdict, bool) {
	o := i.source
	if s.epochs == nil || o.name == "" {
		return verdict{}, true
	}
	o.fencing.Lock()
	defer o.fencing.Unlock()
	if o.claims == 0 {
		if s.tooLate(i) { // or an old owner would be taken for the new one
			return verdict{wait: s.options.Backoff.Initial}, false
		}
		epoch, err := s.epochs.AdvanceClaims(s.bus.storing, s.name, o.name)
		if err != nil {
			return s.storeFailed(i, fmt.Errorf("advance the claims of %s: %w", o.name, err)), false
		}
		o.claims = epoch
	}
	i.claimEpoch = o.claims
	return verdict{}, true
}

// detach makes others wait for claims of what still runs here although its source
// is somebody else's by now. It takes no longer than a moment.
func (s *subscription) detach(o *source) {
	if s.epochs == nil {
		return
	}
	var requests []driver.ClaimRequest
	s.mu.Lock()
	for i := s.running; i != nil; i = i.runNext {
		if a := i.attempt.Load(); a != nil && a.claimed && i.source == o {
			requests = append(requests, i.claimRequest())
		}
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(s.bus.storing, afterCancel)
	defer cancel()
	for _, r := range requests {
		if err := s.epochs.DetachClaim(ctx, r); err != nil {
			s.observe(Observation{Kind: StoreFailed, Source: o.name, Err: fmt.Errorf("keep the claim on what still runs: %w", err)})
			return // the next owner starts it beside this one
		}
	}
}

// unfence forgets an epoch that was found to be old. If the broker says that the
// source is this process's all the same, it gets a new one: the other instance
// was late.
func (s *subscription) unfence(i *item) {
	o := i.source
	o.fencing.Lock()
	defer o.fencing.Unlock()
	if o.fences[i.reaction.fence.store] == i.fence {
		delete(o.fences, i.reaction.fence.store)
	}
}
