package tidings

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tidings-go/tidings/driver"
)

var (
	// ErrClosed is returned by Publish after the bus was closed or its Run has
	// ended: nothing was stored.
	ErrClosed = driver.ErrClosed

	// ErrFull is returned by a Publish with a handler's context when the
	// in-memory bound is reached: nothing was stored, and waiting could wait
	// for itself.
	ErrFull = driver.ErrFull

	// ErrTooLarge is wrapped by the error of an event over the driver's limit.
	// Nothing of that Publish was stored.
	ErrTooLarge = driver.ErrTooLarge

	// ErrRunning is returned by Run when it is called a second time, by Bus.Add and
	// Module.Publishes after Run, and by Bus.Close while Run runs.
	ErrRunning = errors.New("tidings: the bus is running already")

	// ErrInUse is wrapped by Run's error where instances are alive under a former
	// name of a subscription.
	ErrInUse = driver.ErrInUse

	// ErrForeignEvent is wrapped by the error of a module's Publish for an
	// event that another module owns.
	ErrForeignEvent = errors.New("tidings: event of another module")

	// ErrDuplicate is returned by a handler with a claim of its own (package
	// inbox) for an event that it had handled before. It counts as
	// deduplicated, not as a failure.
	ErrDuplicate = errors.New("tidings: duplicate")

	// ErrDuplicateDiffers is an [ErrDuplicate] whose payload is not the one that
	// was handled: it is counted and warned of.
	ErrDuplicateDiffers = fmt.Errorf("%w: its payload differs from the one that was handled", ErrDuplicate)

	// ErrLost is in the Discarded observation of an attempt whose source went to
	// another instance while it ran: its context was cancelled and its outcome
	// does not count.
	ErrLost = errors.New("tidings: ownership lost")

	// ErrStopping is in the Discarded observation of an attempt that was
	// cancelled because the drain deadline had passed: the event is not finished
	// and comes again where the driver is durable.
	ErrStopping = errors.New("tidings: stopping")

	// ErrFenced is returned by a handler whose transaction found that another
	// instance owns the event's source by now (package inbox). It uses no
	// attempt: the event comes again to whoever owns it.
	ErrFenced = errors.New("tidings: another instance owns the source of this event by now")

	// ErrCrashed is wrapped by the failure of an event that was started again
	// and again and never finished, because its process ended each time, see
	// SubscribeOptions.MaxCrashes. What becomes of it is decided by
	// SubscribeOptions.OnExhausted at once, with the reason "crashed"; so too where
	// a handler that counts for itself returns it.
	ErrCrashed = errors.New("tidings: its process ended each time it was started")

	// ErrUnavailable is wrapped by the error of a reaction with a claim of its own
	// (package inbox) whose store did not answer before the handler was called,
	// or would not say how the commit ended. The lane holds until the store
	// answers; no attempt is used.
	ErrUnavailable = errors.New("tidings: the store of the handler does not answer")

	errUnreadable = errors.New("version out of reach")
)

// PublishState is what is known of one event after a failed Publish.
type PublishState = driver.PublishState

// The states of a [PublishResult].
const (
	NotStored = driver.NotStored // it was not stored and will not be
	Stored    = driver.Stored    // it is stored
	Unknown   = driver.Unknown   // the broker did not say: it may be stored, now or later
)

// PublishResult is what is known of one event after a failed Publish.
type PublishResult struct {
	Event DomainEvent
	State PublishState
	Err   error // nil when stored
}

// PublishError is returned by Publish when any event is not known to be
// stored. Publishing the same event values again is safe: they keep their ids.
// Making new ones is not, for those that were stored.
type PublishError struct {
	// Results has one entry per event, in the order of the call.
	Results []PublishResult
}

// Error names the first event that was not stored, and counts the rest.
func (e *PublishError) Error() string {
	var counts [3]int
	var first *PublishResult
	for i, r := range e.Results {
		counts[r.State]++
		// The event that is to blame, not one that only shared the call.
		if r.Err != nil && (first == nil || first.Err == errOthersInvalid && r.Err != errOthersInvalid) { //nolint:errorlint // compared with itself
			first = &e.Results[i]
		}
	}
	var b strings.Builder
	b.WriteString("tidings: publish")
	if first != nil && recordOf(first.Event) != nil {
		fmt.Fprintf(&b, " %s %s", first.Event.Type(), first.Event.ID())
	}
	if len(e.Results) > 1 {
		fmt.Fprintf(&b, ": of %d events %d stored, %d not stored, %d unknown", len(e.Results), counts[Stored], counts[NotStored], counts[Unknown])
	} else if first != nil {
		fmt.Fprintf(&b, ": %s", first.State)
	}
	if first != nil {
		fmt.Fprintf(&b, ": %v", first.Err)
	}
	return b.String()
}

// Unwrap returns the reasons, so that errors.Is and errors.As find them.
func (e *PublishError) Unwrap() []error {
	var errs []error
	for _, r := range e.Results {
		if r.Err != nil {
			errs = append(errs, r.Err)
		}
	}
	return errs
}

// Unsent returns the events that are not known to be stored, for another try.
func (e *PublishError) Unsent() []DomainEvent {
	var events []DomainEvent
	for _, r := range e.Results {
		if r.State != Stored {
			events = append(events, r.Event)
		}
	}
	return events
}

// ConfigurationError is what Run returns when anything was declared wrongly:
// all complaints at once, one line each.
type ConfigurationError struct {
	Complaints []error
}

// Error lists every complaint.
func (e *ConfigurationError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "tidings: %d complaints:", len(e.Complaints))
	if len(e.Complaints) == 1 {
		b.Reset()
		b.WriteString("tidings:")
	}
	for _, complaint := range e.Complaints {
		if len(e.Complaints) > 1 {
			b.WriteString("\n  -")
		}
		b.WriteString(" ")
		b.WriteString(strings.TrimPrefix(complaint.Error(), "tidings: "))
	}
	return b.String()
}

// Unwrap returns the complaints.
func (e *ConfigurationError) Unwrap() []error { return e.Complaints }

// Permanent wraps a handler's error to say that trying again cannot help: the
// event goes to the dead letters now (or, with another policy, is parked or
// blocks). Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// RetryAfter wraps a handler's error to say when to try again, in place of the
// subscription's backoff. It uses an attempt like any failure. RetryAfter of
// nil is nil.
func RetryAfter(err error, after time.Duration) error {
	if err == nil {
		return nil
	}
	return &retryError{err, max(after, 0)}
}

type retryError struct {
	err   error
	after time.Duration
}

func (e *retryError) Error() string { return e.err.Error() }
func (e *retryError) Unwrap() error { return e.err }

// PanicError is what a handler's panic becomes: an error like any other, with
// the stack.
type PanicError struct {
	Value any
	Stack string
}

// Error says what was panicked with; the stack is in the field.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }
