package inbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// On makes a reaction whose handler runs in a transaction of the store: fn's
// effects in tx and the record that the event was handled are committed
// together. What fn returns means what it means for [tidings.Contract.On]; with
// an error everything is rolled back. fn must not commit or roll back tx, and
// must not keep it.
//
// An event that was handled before is deduplicated; fn is not called. The start of an
// event that may have been started before is counted in a statement of its own, so
// that one whose handler ends the process is given up with the reason "crashed", see
// SubscribeOptions.MaxCrashes.
//
// A commit whose outcome is unknown (the connection broke) is looked up on
// another connection: the event is handled, or it is tried again. While that
// cannot be answered either, the next attempt finds out by its claim.
//
// A store that does not answer before fn is called, or that loses a commit, holds
// the lane: it is tried again until it answers, and no attempt is used.
//
// The reaction may be used by one subscription or several.
func On[TX, P any](store Store[TX], contract tidings.Contract[P], fn func(ctx context.Context, tx TX, event tidings.Event[P]) error) tidings.Reaction {
	var handle func(context.Context, tidings.Event[P]) error
	if fn != nil && store != nil {
		handle = func(ctx context.Context, e tidings.Event[P]) error { return attempt(ctx, store, fn, e) }
	}
	options := []tidings.ReactionOption{tidings.OwnClaim}
	if store != nil {
		options = append(options, tidings.Fence(store, store.Advance), tidings.Counted(store))
	}
	return tidings.NewReaction(contract, handle, options...)
}

// lookupTime bounds the question how a commit ended.
const lookupTime = 10 * time.Second

func attempt[TX, P any](ctx context.Context, store Store[TX], fn func(context.Context, TX, tidings.Event[P]) error, e tidings.Event[P]) error {
	d, ok := tidings.DeliveryFrom(ctx)
	if !ok {
		return tidings.Permanent(errors.New("inbox: called outside a subscription"))
	}
	fail := func(what string, err error) error {
		return fmt.Errorf("inbox: %s: %s %s: %s: %w", d.Subscription, e.Type(), e.ID(), what, err)
	}
	// Before the handler is called it is the store that fails, and not the event.
	unavailable := func(what string, err error) error {
		return fmt.Errorf("%w: %w", tidings.ErrUnavailable, fail(what, err))
	}
	begun, handled := false, false
	err := store.Transact(ctx, func(ctx context.Context, tx TX) error {
		begun = true
		if d.Fence > 0 {
			err := store.Fence(ctx, tx, d.Subscription, d.Source, d.Fence)
			if errors.Is(err, ErrFenced) {
				return fail("fence", err)
			} else if err != nil {
				return unavailable("fence", err)
			}
		}
		answer, err := store.Claim(ctx, tx, d.Claim)
		if err != nil {
			return unavailable("claim", err)
		}
		if answer.State == driver.ClaimDone {
			if answer.Digest != d.Claim.Digest {
				return tidings.ErrDuplicateDiffers
			}
			return tidings.ErrDuplicate
		}
		handled = true
		return fn(ctx, tx, e)
	})
	if !begun && err != nil {
		return unavailable("begin", err)
	}
	if !errors.Is(err, ErrCommitUnknown) || !handled {
		return err
	}
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookupTime)
	defer cancel()
	committed, lookup := store.Claimed(asking, d.Claim.Subscription, d.Claim.Key, d.Claim.Owner)
	switch {
	case lookup != nil:
		return unavailable("the commit", errors.Join(err, lookup))
	case committed:
		return nil
	}
	return unavailable("the commit", err)
}
