package tidings

import (
	"context"
	"errors"
	"slices"
	"time"
)

// failure is the error of a handler, of which all that the engine needs was taken
// once. An error is the application's code: its methods may panic, and one that is a
// nil pointer does. What is taken here is taken where such a panic is the attempt's,
// as one of the handler is; nothing else of the engine calls them.
type failure struct {
	err   error // what the handler returned
	cause error // why its context had ended before, one of ours, or nil
	text  string
	is    []error // of ours, those that it is
	after time.Duration
	stack string
	// permanent and later: it is one of Permanent or RetryAfter.
	permanent, later bool
}

// taken are the errors that say more than that an attempt failed.
var taken = [...]error{ErrDuplicate, ErrDuplicateDiffers, ErrFenced, ErrLost, ErrStopping, ErrUnavailable, ErrCrashed, context.DeadlineExceeded}

// take asks an error for everything, and panics where that does.
func take(err error) *failure {
	f := &failure{err: err, text: err.Error()}
	for _, one := range taken {
		if errors.Is(err, one) {
			f.is = append(f.is, one)
		}
	}
	_, f.permanent = errors.AsType[*permanentError](err)
	if retry, ok := errors.AsType[*retryError](err); ok {
		f.later, f.after = true, retry.after
	}
	if p, ok := errors.AsType[*PanicError](err); ok {
		f.stack = p.Stack
	}
	return f
}

// because adds why the context of the handler had ended.
func (f *failure) because(cause error) {
	if cause == nil || f.has(cause) {
		return
	}
	f.cause = cause
	f.is = append(f.is, cause)
	f.text += " (" + cause.Error() + ")"
}

// has reports whether it is one of our errors.
func (f *failure) has(one error) bool { return slices.Contains(f.is, one) }

// Error is the text that the handler's error had.
func (f *failure) Error() string { return f.text }

// Unwrap lets observers ask for the handler's own errors.
func (f *failure) Unwrap() []error {
	if f.cause == nil {
		return []error{f.err}
	}
	return []error{f.err, f.cause}
}

// ending is how the attempt ended that has failed so.
func (f *failure) ending(i *item) ending {
	claims := i.reaction != nil && i.reaction.ownClaim
	switch {
	case f.has(ErrDuplicate) && claims:
		return endDuplicate
	case f.has(ErrFenced) && i.fence > 0:
		return endFenced
	case f.has(ErrLost), f.has(ErrStopping):
		return endStopped
	case f.has(ErrUnavailable) && claims:
		return endUnavailable
	case i.reason == reasonUndecodable:
		return endUndecodable
	case f.has(ErrCrashed):
		return endCrashed
	case f.permanent:
		return endPermanent
	case f.later:
		return endLater
	}
	return endFailed
}
