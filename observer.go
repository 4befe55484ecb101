package tidings

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Observer is told what happens to events and subscriptions. The engine calls
// it in the goroutine where it happens, from several at once: it must return
// soon and must not call the bus. A panic of it is logged and goes no further. Logs, metrics and traces are observers; an
// observer that also implements [PublishObserver] or [ProcessObserver] is
// called around these too.
type Observer interface {
	Observe(ctx context.Context, observation Observation)
}

// PublishObserver is an [Observer] that is called around every publish, before
// the events are encoded: it may set headers on each message (trace context).
type PublishObserver interface {
	Observer
	// ObservePublish returns the context for the publish and a function that is
	// called with its error; both may be the same and nil.
	ObservePublish(ctx context.Context, publication *Publication) (context.Context, func(error))
}

// ProcessObserver is an [Observer] that is called around every attempt of a
// handler: it may take trace context off the message and put a span into the
// handler's context.
type ProcessObserver interface {
	Observer
	// ObserveProcess returns the context for the handler, which must descend
	// from ctx, and a function that is called with the attempt's error, or nil.
	ObserveProcess(ctx context.Context, event DomainEvent, headers driver.Headers) (context.Context, func(error))
}

// Publication is one call of Publish, as a [PublishObserver] sees it.
type Publication struct {
	// Events are what is published, in order.
	Events  []DomainEvent
	headers []driver.Headers
}

// SetHeader sets a header on the message of Events[i]. Names
// driver.HeaderTraceparent and driver.HeaderTracestate travel on every driver;
// others only where the broker has headers.
func (p *Publication) SetHeader(i int, name, value string) {
	if p.headers == nil {
		p.headers = make([]driver.Headers, len(p.Events))
	}
	p.headers[i].Set(name, value)
}

// Kind is what an [Observation] is about.
type Kind int

const (
	// Published: Publish returned nil for the event.
	Published Kind = iota + 1
	// PublishFailed: the event is not known to be stored; Err says why.
	PublishFailed
	// Received: a driver delivered the event to a subscription.
	Received
	// Started: an attempt of the handler begins.
	Started
	// Handled: the handler returned nil; Duration is the attempt's.
	Handled
	// Retried: the attempt failed, the next comes in Wait.
	Retried
	// Deduplicated: it had been handled before, the handler was not called.
	Deduplicated
	// DuplicateDiffers: a duplicate was suppressed whose payload is not that of
	// the first.
	DuplicateDiffers
	// Busy: another instance is handling the event; it is tried again in Wait.
	Busy
	// Held: the event waits for another release: it cannot be read by this version of
	// the handler (Reason "unreadable"), or only another release of the subscription
	// has a reaction to it ("lacking").
	Held
	// Parked: the event waits in a store, in its place; Reason says why.
	Parked
	// DeadLettered: the subscription gave up on the event; Reason says why.
	DeadLettered
	// Blocked: retries are exhausted and the policy is to block: it is tried
	// again in Wait.
	Blocked
	// Ignored: the event was finished unseen: no release of the subscription has
	// declared that it handles its type, or this one says [Contract.Ignored].
	Ignored
	// Unkeyed: the event has no aggregate id, so neither order nor a Once key.
	Unkeyed
	// Overdue: a handler has not returned although its time is over; its lane
	// waits for it.
	Overdue
	// Abandoned: the event was not finished when the bus stopped and the driver
	// is not durable: it is lost.
	Abandoned
	// Discarded: the outcome of an attempt was not used, since the source went
	// to another instance.
	Discarded
	// Settled: the broker knows of Count finished events.
	Settled
	// SettleFailed: it could not be told; it is tried again in Wait.
	SettleFailed
	// StoreFailed: a store (claims, parked events, dead letters) did not
	// answer; the lane holds and tries again in Wait.
	StoreFailed
	// GuardClosed: most aggregates of the subscription fail, so that it is
	// probably not the events; it goes on with one attempt at a time.
	GuardClosed
	// GuardOpened: an attempt succeeded, the subscription goes on as usual.
	// Duration is how long it did not.
	GuardOpened
	// Reported: the driver says something about the subscription.
	Reported
	// Redriven: a dead letter that was marked is tried again, in its lane; Reason is
	// why it had died.
	Redriven
	// Resolved: a dead letter that was tried again is handled.
	Resolved
	// Suspected: the event was in hand when a process died, Count times. It is
	// handled one at a time with others of that kind, or alone.
	Suspected
)

var kindNames = [...]string{"", "published", "publish failed", "received", "started", "handled", "retried", "deduplicated", "duplicate differs", "busy",
	"held", "parked", "dead-lettered", "blocked", "ignored", "unkeyed", "overdue", "abandoned", "discarded", "settled", "settle failed", "store failed", "guard closed", "guard opened", "reported",
	"redriven", "resolved", "suspected"}

// String returns the word that logs use.
func (k Kind) String() string {
	if k < 1 || int(k) >= len(kindNames) {
		return fmt.Sprintf("kind(%d)", int(k))
	}
	return kindNames[k]
}

// Observation is one thing that happened. Fields that do not apply are zero.
type Observation struct {
	Kind Kind
	// Subscription is "module.name".
	Subscription string
	Channel      string
	Type         string
	ID           string
	AggregateID  string
	// CorrelationID and CausationID are the event's.
	CorrelationID string
	CausationID   string
	// Version is the one on the wire.
	Version int
	// Attempt counts from 1.
	Attempt int
	// Duration is how long it took.
	Duration time.Duration
	// Wait is how long until the next try.
	Wait time.Duration
	// Count is how many, where one observation stands for several events.
	Count int
	// Reason is one word, see driver.DeadLetter and driver.Parked.
	Reason string
	Err    error
	// Source is the partition or shard.
	Source string
	// Report is set where Kind is Reported.
	Report driver.Report
}

// observers is the set of a bus, with the few that want more.
type observers struct {
	all     []Observer
	publish []PublishObserver
	process []ProcessObserver
	quiet   []selective // by observer: what it wants of the usual, nil for everything
	eager   bool        // somebody wants everything
}

// selective is implemented by an observer that says which kinds it wants.
type selective interface{ wants(Kind) bool }

func newObservers(list []Observer) observers {
	o := observers{all: list}
	for _, observer := range list {
		if p, ok := observer.(PublishObserver); ok {
			o.publish = append(o.publish, p)
		}
		if p, ok := observer.(ProcessObserver); ok {
			o.process = append(o.process, p)
		}
		s, ok := observer.(selective)
		o.quiet = append(o.quiet, s)
		o.eager = o.eager || !ok
	}
	return o
}

func routine(k Kind) bool {
	switch k {
	case Published, Received, Started, Handled, Settled:
		return true
	}
	return false
}

// wants reports whether anybody wants to hear of the kind, so that nobody makes
// an observation for nothing. A log's level may change at any time.
func (o *observers) wants(k Kind) bool {
	if o.eager || !routine(k) {
		return true
	}
	for _, s := range o.quiet {
		if s.wants(k) {
			return true
		}
	}
	return false
}

func (o *observers) observe(ctx context.Context, observation Observation) {
	usual := routine(observation.Kind)
	for i, observer := range o.all {
		if usual && o.quiet[i] != nil && !o.quiet[i].wants(observation.Kind) {
			continue
		}
		observeOne(ctx, observer, observation)
	}
}

// observeOne keeps an observer's panic from the engine, whose lanes and slots
// must stay in order.
func observeOne(ctx context.Context, observer Observer, observation Observation) {
	defer observerPanicked(observer)
	observer.Observe(ctx, observation)
}

// observerPanicked, deferred, keeps a panic of an observer from the engine and from
// publishers, and says so: what an observer does wrong is no event's fault.
func observerPanicked(observer any) {
	if value := recover(); value != nil {
		slog.Error("tidings: an observer panicked", "observer", fmt.Sprintf("%T", observer), "panic", fmt.Sprint(value))
	}
}

// span is what observers do around a publish or an attempt: their ends, first to last.
type span []func(error)

// end calls the ends, last to first. The error is one whose text was taken, or nil.
func (s span) end(err error) {
	for n := len(s) - 1; n >= 0; n-- {
		endOne(s[n], err)
	}
}

func endOne(end func(error), err error) {
	defer observerPanicked(end)
	end(err)
}

// beginPublish lets the observers of publishes begin.
func (o *observers) beginPublish(ctx context.Context, p *Publication) (context.Context, span) {
	var ends span
	for _, observer := range o.publish {
		ctx = ends.begin(ctx, observer, func(ctx context.Context) (context.Context, func(error)) { return observer.ObservePublish(ctx, p) })
	}
	return ctx, ends
}

// beginProcess lets the observers of attempts begin.
func (o *observers) beginProcess(ctx context.Context, event DomainEvent, headers driver.Headers) (context.Context, span) {
	var ends span
	for _, observer := range o.process {
		ctx = ends.begin(ctx, observer, func(ctx context.Context) (context.Context, func(error)) {
			return observer.ObserveProcess(ctx, event, headers)
		})
	}
	return ctx, ends
}

// begin lets one observer begin. One that panics is left out.
func (s *span) begin(ctx context.Context, observer any, observe func(context.Context) (context.Context, func(error))) (changed context.Context) {
	changed = ctx
	defer observerPanicked(observer)
	next, end := observe(ctx)
	if end != nil {
		*s = append(*s, end)
	}
	if next != nil {
		changed = next
	}
	return changed
}
