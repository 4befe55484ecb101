package tidingstest

import (
	"context"
	"slices"
	"sync"

	"github.com/tidings-go/tidings"
)

// Recorder is a [tidings.Publisher] that keeps what it is given: for the unit
// test of code that publishes, without a bus. The zero Recorder is ready; it may
// be used from any goroutine.
type Recorder struct {
	mu     sync.Mutex
	events []tidings.DomainEvent
	err    error
}

var _ tidings.Publisher = (*Recorder)(nil)

// Publish keeps the events and returns nil, or the error that Fail set; then it
// keeps nothing.
func (r *Recorder) Publish(_ context.Context, events ...tidings.DomainEvent) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	r.events = append(r.events, events...)
	return nil
}

// Fail makes later publishes return err; nil ends that.
func (r *Recorder) Fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

// Events returns what was published, in order.
func (r *Recorder) Events() []tidings.DomainEvent {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// Recorded returns the events of a contract that a recorder was given.
func Recorded[P any](r *Recorder, contract tidings.Contract[P]) []tidings.Event[P] {
	return typed(r.Events(), contract)
}
