package tidings

import (
	"context"
	"sync"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Delivery is what a handler may know of the attempt it runs in.
type Delivery struct {
	// Subscription is "module.name".
	Subscription string
	// Attempt counts from 1. Where no claims store or counting broker exists it
	// starts again with the process.
	Attempt int
	// Deadline is when the attempt's context ends; zero without a timeout.
	Deadline time.Time
	// DedupKey is what makes this event the same as another, see [Occurrence].
	DedupKey string
	// PayloadDigest is a hash of the payload, equal for equal payloads. On a
	// driver that passes values it is comparable within the process only.
	PayloadDigest uint64
	// Claim is what a claim on this event asks for: subscription, dedup key,
	// digest, how long to keep it, and an owner that is unique per delivery.
	Claim driver.ClaimRequest
	// Source is the partition or shard the event came from and Epoch counts how
	// often this process was given it; "" and 0 where the driver has no
	// ownership.
	Source string
	Epoch  int64
	// Fence is the epoch that the reaction's [Fence] was given for the source, or
	// 0 without one.
	Fence int64
	// Redelivered says that the event may have been started before, by a process
	// that ended without a word: the broker has delivered it more than once, or
	// it was stored before this process was given its source.
	Redelivered bool
	// Retried says that the event was a dead letter and is tried again because an
	// operator wants it, for the first time since: what was counted against it
	// before is over.
	Retried bool
	// MaxCrashes is the subscription's.
	MaxCrashes int
	// Position says where the event lies on its broker, or "".
	Position string
	// WireVersion is the version that was published, which may be older or
	// newer than the handler's.
	WireVersion int
	// RedeliveryCount is how often the broker delivered it, or 0 when it does
	// not count.
	RedeliveryCount int
}

// DeliveryFrom returns the delivery that a handler's context belongs to, and
// false for any other context.
func DeliveryFrom(ctx context.Context) (Delivery, bool) {
	a := attemptFrom(ctx)
	if a == nil {
		return Delivery{}, false
	}
	i := a.item
	a.mu.Lock() // the key, the digest and the owner are made when they are first asked for
	claim := i.claimRequest()
	a.mu.Unlock()
	redeliveries := 0
	if i.wire != nil {
		redeliveries = i.wire.redeliveries
	}
	return Delivery{
		Subscription:    i.subscription.name,
		Attempt:         a.number,
		Deadline:        a.deadline,
		DedupKey:        claim.Key,
		PayloadDigest:   claim.Digest,
		Claim:           claim,
		Source:          i.source.name,
		Epoch:           i.source.epoch,
		Fence:           i.fence,
		Redelivered:     i.redelivered(),
		Retried:         i.letter != nil && !i.letter.Interrupted && a.number == 1,
		MaxCrashes:      i.subscription.options.MaxCrashes,
		Position:        i.ref.Position(),
		WireVersion:     i.version,
		RedeliveryCount: redeliveries,
	}, true
}

type attemptKey struct{}

func attemptFrom(ctx context.Context) *attempt {
	a, _ := ctx.Value(attemptKey{}).(*attempt)
	return a
}

// attempt is the context of one call of a handler. It is a context of its own
// rather than a stack of the standard ones because most handlers never ask for
// Done: then there is no channel and no timer.
type attempt struct {
	values   context.Context // of Run: values only, never the publisher's
	item     *item
	number   int
	started  time.Time
	deadline time.Time // zero: none

	mu    sync.Mutex
	tree  *tree // the Publish that runs this attempt, or nil
	err   error
	cause error
	done  chan struct{}
	timer Timer
	after map[int]func()
	next  int

	claimed bool // the engine has a claim on the event
	overdue bool // reported; guarded by the subscription's lock
}

var _ context.Context = (*attempt)(nil)

// Deadline implements [context.Context]. It is in the system's time, whatever
// the bus's clock is, because contexts and clients compare it with that.
func (a *attempt) Deadline() (time.Time, bool) {
	if a.deadline.IsZero() {
		return time.Time{}, false
	}
	clock := a.item.subscription.bus.clock
	if _, ok := clock.(systemClock); ok {
		return a.deadline, true
	}
	return time.Now().Add(a.deadline.Sub(clock.Now())), true
}

// Value implements [context.Context].
func (a *attempt) Value(key any) any {
	switch key.(type) {
	case attemptKey:
		return a
	case treeKey:
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.tree == nil {
			return nil
		}
		return a.tree
	}
	if key == driver.HandlerKey() {
		return a
	}
	return a.values.Value(key)
}

// Done implements [context.Context].
func (a *attempt) Done() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done == nil {
		a.done = make(chan struct{})
		if a.err != nil {
			close(a.done)
		} else {
			a.arm()
		}
	}
	return a.done
}

// arm starts the timer for the deadline. The caller holds the lock.
func (a *attempt) arm() {
	if a.timer != nil || a.deadline.IsZero() {
		return
	}
	clock := a.item.subscription.bus.clock
	a.timer = clock.AfterFunc(max(a.deadline.Sub(clock.Now()), 0), func() {
		a.cancel(context.DeadlineExceeded, context.DeadlineExceeded)
	})
}

// Err implements [context.Context].
func (a *attempt) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil && !a.deadline.IsZero() && !a.item.subscription.bus.clock.Now().Before(a.deadline) {
		a.end(context.DeadlineExceeded, context.DeadlineExceeded)
	}
	return a.err
}

// AfterFunc lets package context propagate the end of this context without a
// goroutine, see context.AfterFunc.
func (a *attempt) AfterFunc(f func()) func() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		go f()
		return func() bool { return false }
	}
	a.arm()
	if a.after == nil {
		a.after = make(map[int]func())
	}
	key := a.next
	a.next++
	a.after[key] = f
	return func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		_, pending := a.after[key]
		delete(a.after, key)
		return pending
	}
}

// cancel ends the context; the first call wins.
func (a *attempt) cancel(err, cause error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.end(err, cause)
}

func (a *attempt) end(err, cause error) {
	if a.err != nil {
		return
	}
	a.err, a.cause = err, cause
	if a.done != nil {
		close(a.done)
	}
	for _, f := range a.after {
		go f() // as context.AfterFunc does: each in a goroutine of its own
	}
	a.after = nil
	if a.timer != nil {
		a.timer.Stop()
	}
}

// finish ends the context once the handler has returned and says why it had
// ended before that, or nil.
func (a *attempt) finish() (cause error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	cause = a.cause
	a.tree = nil // nobody comes for what is published with this context later
	a.end(context.Canceled, nil)
	return cause
}
