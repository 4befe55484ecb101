package tidingstest

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"github.com/tidings-go/tidings"
)

// Recorder is a [tidings.Publisher] that keeps what it is given: for the unit
// test of code that publishes, without a bus. The zero Recorder is ready; it may
// be used from any goroutine.
type Recorder struct {
	mu     sync.Mutex
	judge  *tidings.Bus // never runs: it knows what every Publisher refuses
	events []tidings.DomainEvent
	err    error
}

var _ tidings.Publisher = (*Recorder)(nil)

// NewRecorder returns a recorder that has been given nothing yet.
func NewRecorder() *Recorder { return &Recorder{} }

// Publish keeps the events and returns nil. It keeps none and returns a
// *[tidings.PublishError] where a bus would too (an empty aggregate id, a
// payload that cannot be written, a context that has ended), and when Fail was
// called. It does not know which module publishes.
func (r *Recorder) Publish(ctx context.Context, events ...tidings.DomainEvent) error {
	if len(events) == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.judge == nil {
		r.judge = tidings.New(&steps{}, &tidings.Options{Logger: slog.New(slog.DiscardHandler)})
	}
	err := r.err
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		failed := &tidings.PublishError{}
		for _, e := range events {
			failed.Results = append(failed.Results, tidings.PublishResult{Event: e, State: tidings.NotStored, Err: err})
		}
		return failed
	}
	if _, err := r.judge.Encode(ctx, events...); err != nil {
		return err
	}
	r.events = append(r.events, events...)
	return nil
}

// Fail makes later publishes fail: each returns a *[tidings.PublishError] that
// wraps err, with every event not stored. Nil ends that.
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

// Recorded returns the events of a contract that a recorder was given, in order.
func Recorded[P any](r *Recorder, contract tidings.Contract[P]) []tidings.Event[P] {
	return published(r.Events(), contract, nil)
}
