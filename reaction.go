package tidings

import (
	"context"
	"fmt"

	"github.com/tidings-go/tidings/driver"
)

// HandleFunc is a handler without its payload's type, as Options.Wrap sees it.
type HandleFunc func(ctx context.Context, event DomainEvent) error

// Reaction is a handler bound to the contract it was written for, without the
// payload's type: what [Module.Subscribe] takes. Make it with [Contract.On], or [Contract.Ignored].
type Reaction struct {
	definition *definition
	handle     func(ctx context.Context, r record) error
	ownClaim   bool
	ignored    bool
	fence      *fence
	starts     Starts
	place      string
}

// fence is where the epoch of a source is counted that a handler's transaction
// checks.
type fence struct {
	store   any
	advance func(ctx context.Context, subscription, source string) (epoch int64, err error)
}

// ReactionOption changes a reaction that a package makes with [NewReaction].
type ReactionOption func(*Reaction)

// OwnClaim says that the handler claims the event's dedup key itself, in its
// own transaction: the engine then makes no claim. The key is
// Delivery.DedupKey; for an event that was handled before, the handler returns
// [ErrDuplicate].
func OwnClaim(r *Reaction) { r.ownClaim = true }

// Fence says that the handler's effects are fenced by an epoch that is counted
// where they are stored. Before anything of a source (a partition, a shard) is
// handled for the first time, the engine calls advance once per subscription,
// source and store, a comparable value; Delivery.Fence has the result. A handler
// that finds a newer epoch in its transaction returns [ErrFenced].
func Fence(store any, advance func(ctx context.Context, subscription, source string) (epoch int64, err error)) ReactionOption {
	return func(r *Reaction) { r.fence = &fence{store, advance} }
}

// Starts counts how often an event was started and never finished, because its
// process ended, for a reaction with [OwnClaim]: in a store that outlives the
// process, keyed by subscription and dedup key, each time in a statement of its own.
// It is safe for concurrent use.
type Starts interface {
	// Start counts a start and returns how often the event was started before
	// without End, and how many of these starts were counted as
	// [driver.CountAlone]. With [driver.CountFirst] nothing is counted where there
	// were any.
	Start(ctx context.Context, subscription, key string, counting driver.Counting) (crashes, alone int, err error)
	// End forgets what is counted: the handler has returned, or an operator wants
	// the event to be tried again.
	End(ctx context.Context, subscription, key string) error
}

// Counted says where the starts of a reaction with [OwnClaim] are counted. The engine
// counts right before the handler is called, for events that may have been started
// before, and forgets the count when it returns.
func Counted(starts Starts) ReactionOption { return func(r *Reaction) { r.starts = starts } }

// On makes a reaction: fn is called with each event of the contract, in the
// version that the contract has, whatever version was published.
//
// What fn returns decides: nil is handled; an error is retried with backoff;
// [Permanent] is not; [RetryAfter] says when. A panic is an error. fn is called
// at once for different aggregates, one event at a time for each; its context
// ends with the attempt's timeout, when ownership is lost, or at the drain
// deadline.
func (c Contract[P]) On(fn func(ctx context.Context, event Event[P]) error) Reaction {
	r := NewReaction(c, fn)
	r.place = callerPlace(2)
	return r
}

// NewReaction is [Contract.On] for packages that offer another kind of handler,
// such as inbox.
func NewReaction[P any](contract Contract[P], fn func(ctx context.Context, event Event[P]) error, options ...ReactionOption) Reaction {
	r := Reaction{definition: contract.definition, place: callerPlace(2)}
	if fn != nil {
		r.handle = func(ctx context.Context, rec record) error {
			typed, ok := rec.(*typedRecord[P])
			if !ok {
				return Permanent(fmt.Errorf("tidings: handler of %s was given %T: a wrapper must pass the event on", contract, rec))
			}
			return fn(ctx, Event[P]{typed: typed})
		}
	}
	for _, option := range options {
		option(&r)
	}
	return r
}
