package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Sentinels that a driver returns and package tidings passes on.
var (
	// ErrClosed is returned by every method after Close.
	ErrClosed = errors.New("tidings: closed")
	// ErrFull is returned by a publish from inside a handler when the bound in
	// memory is reached: waiting there could wait for itself.
	ErrFull = errors.New("tidings: full: the bound on events in memory is reached")
	// ErrTooLarge is wrapped by the error of a message over the broker's limit.
	ErrTooLarge = errors.New("tidings: message too large")
)

// Features is what a driver can do. It is data, so that what a subscription
// needs is compared before anything starts; driver/drivertest proves each claim
// and shows that what is not claimed is refused.
type Features struct {
	// Durable: a message for which Publish returned nil survives the end of
	// every process of ours and is delivered until it is settled.
	Durable bool
	// Ordered: the messages of one channel and key are delivered in the order
	// in which they were stored.
	Ordered bool
	// Groups: several processes with the same subscription share its messages,
	// and each message goes to one of them.
	Groups bool
	// FanOut: every subscription of a channel gets every message.
	FanOut bool
	// Broadcast: every process that runs a subscription gets every message, and
	// nothing is kept for a process that does not run. Such a driver has no
	// groups; a subscription says EachInstance or shares a claims store.
	Broadcast bool
	// Headers: metadata travels beside the body. Where it is false the codec
	// puts the trace context into the body.
	Headers bool
	// MaxHeaders is how many headers fit, 0 for no limit.
	MaxHeaders int
	// MaxSize is the largest message in bytes (key, headers and body), 0 for no
	// limit.
	MaxSize int
	// MaxDelay is the longest After of a Released settlement that the broker
	// honours, 0 when it cannot delay. Where it can, the engine gives back what
	// waits for long and what it does not start any more, with everything
	// behind it in its lane, and the broker delivers it again.
	MaxDelay time.Duration
	// Sources: every delivery has a Source, which one process owns at a time.
	// Sink.Report says ReportAssigned, with name and epoch, before the first
	// delivery of it.
	Sources bool
	// Text: a body is text of the characters that XML 1.0 has; any other is
	// refused at publish.
	Text bool
	// Outbox: what an outbox of the driver's own database holds is read by the
	// driver itself, and nobody relays it.
	Outbox bool
	// Deduplication is how long the broker itself drops what is published again
	// with an id that it has stored, 0 when it does not.
	Deduplication time.Duration
	// RedeliveryCount: Delivery.Attempt is filled.
	RedeliveryCount bool
	// History: a new subscription can read what was published before it
	// existed, so it must say where to start.
	History bool
	// Values: messages never leave the process; Publish gets Message.Value and
	// deliveries return it.
	Values bool
	// RedeliveryHorizon is how long after its publication a message may still
	// be delivered again; negative when there is no end. Dedup keys of
	// repeatable events are kept that long.
	RedeliveryHorizon time.Duration
}

// Driver is the adapter to one broker. All methods may be called at once from
// several goroutines.
type Driver interface {
	// Name is the word for the driver in EVENT_DRIVER, logs and errors, for
	// example "kafka".
	Name() string

	// Features is what the driver can do. It never changes.
	Features() Features

	// Publish stores the messages and returns nil when every one is stored, as
	// durably as the driver's package comment says. Messages of one channel and
	// key are stored in the order given; when one of them is not stored, none
	// after it with that channel and key is.
	//
	// When any message is not known to be stored the error is, or wraps, a
	// *[PublishError] with one result per message; any other error means that
	// none was stored. ErrClosed after Close. Publish does not retry longer than
	// its context lives.
	Publish(ctx context.Context, messages []Message) error

	// Subscribe prepares a consumer for one subscription and checks what can be
	// checked without joining (the broker answers, channels exist or may be
	// made). Nothing is delivered before Consumer.Run.
	Subscribe(ctx context.Context, subscription Subscription, sink Sink) (Consumer, error)

	// Close flushes what Publish still holds and releases every connection. The
	// engine calls it last, after all consumers are closed. A second call
	// returns nil.
	Close(ctx context.Context) error
}

// Subscription is what a consumer is asked to fetch.
type Subscription struct {
	// Name is module and subscription name, "billing.create-default-profile".
	// The consumer group, durable queue or stream group is derived from it.
	Name string
	// Channels are what to fetch, sorted.
	Channels []string
	// Types are the event types that have a reaction, sorted; also one that says that
	// the type is ignored.
	Types []string
	// StartAt is where a subscription that the broker does not know yet begins.
	StartAt StartAt
	// MaxEvents and MaxBytes bound what is delivered and not settled, per
	// source; 0 means the driver's default.
	MaxEvents int
	MaxBytes  int
	// Unable says for how long the subscriber has not been able to handle anything,
	// because a store that it needs does not answer; 0 where it is able. A driver that
	// divides sources or messages among instances leaves them to others while that is
	// longer than what they are leased for: another instance may reach the store. It is
	// safe for concurrent use, and nil where the subscriber needs no store.
	Unable func() time.Duration
}

// IsUnable reports whether the subscriber has not been able to handle anything for
// longer than that.
func (s *Subscription) IsUnable(lease time.Duration) bool {
	return s.Unable != nil && s.Unable() > lease
}

// ChannelOf is the channel of an event type, for a broker that knows types and no
// channels: the one of that name, or the one that has another name than every type
// of the subscription.
func (s *Subscription) ChannelOf(eventType string) string {
	if len(s.Channels) == 1 {
		return s.Channels[0]
	}
	if slices.Contains(s.Channels, eventType) {
		return eventType
	}
	for _, channel := range s.Channels {
		if !slices.Contains(s.Types, channel) {
			return channel
		}
	}
	return eventType
}

// StartMode says how a [StartAt] is meant.
type StartMode int

const (
	StartUnset     StartMode = iota // nothing was said
	StartBeginning                  // the oldest message that the broker still has
	StartNow                        // what is published after the subscription was first seen
	StartTime                       // what was stored at StartAt.Time or later
)

// StartAt is where a new subscription begins on a driver with
// [Features.History]. It has no effect on one that has a position already.
type StartAt struct {
	Mode StartMode
	Time time.Time
}

// Consumer fetches for one subscription. Run is called once; Settle is called
// from one goroutine at a time (that of a [Direct] driver from several), at once
// with Run, and also after Run returned and before Close.
type Consumer interface {
	// Run joins, calls Sink.Joined once, and delivers until ctx ends, then
	// stops fetching and returns nil while ownership is kept. Another error
	// stops this subscription for good; it says what an operator must do. Short
	// outages are no errors: Run reconnects by itself and reports them with
	// Sink.Report.
	Run(ctx context.Context) error

	// Settle tells the broker how deliveries ended. Nil means the broker knows
	// (for a log: the position and the finished messages beyond it are stored).
	// After an error the engine calls again with the same settlements, so a
	// settlement that was carried out already must be accepted. Settlements of
	// a source that is no longer owned, or of an older epoch, are dropped
	// without an error.
	Settle(ctx context.Context, settlements []Settlement) error

	// Close gives up ownership in good order and releases what the consumer
	// holds. The engine has settled everything it will settle.
	Close(ctx context.Context) error
}

// Sink is where a consumer puts what it fetched; the engine implements it. All
// methods may be called at once, except as said.
type Sink interface {
	// Joined says that the subscription takes part: it owns its share or stands
	// by for one. Later calls do nothing.
	Joined()

	// Deliver takes ownership of the deliveries and returns at once: bounding
	// what is unsettled is the consumer's task (Subscription.MaxEvents and
	// MaxBytes). Calls for one source are made one at a time, in order. The
	// slice itself may be reused when Deliver returns; what it points to may
	// not. The context carries values only.
	Deliver(ctx context.Context, deliveries []Delivery)

	// Revoke says that sources are about to be given up. The engine starts
	// nothing more of them, waits for what runs, settles it through
	// Consumer.Settle and returns; when ctx ends first it cancels what still
	// runs and returns. Deliveries of these sources and epochs that come later
	// are ignored.
	Revoke(ctx context.Context, sources []Source)

	// Lose says that sources are gone already: what runs is cancelled, its
	// outcome is discarded and nothing of them is settled any more. It does not
	// wait.
	Lose(sources []Source)

	// Report tells observers what happened to the subscription. It never blocks.
	Report(report Report)
}

// ReportKind is what a [Report] is about.
type ReportKind int

const (
	ReportPaused    ReportKind = iota + 1 // a source is full of unfinished messages: nothing more is fetched from it
	ReportResumed                         // fetching goes on
	ReportAssigned                        // a source was given to this process
	ReportRevoked                         // a source was given up
	ReportLost                            // a source was taken away
	ReportOutage                          // the broker does not answer; Err says how
	ReportRecovered                       // it answers again; Duration is how long it did not
	ReportIgnored                         // messages that no engine sees (metadata, foreign formats) were passed over
	ReportWarning                         // a live setting is weaker than what the driver promises
)

var reportNames = [...]string{"", "paused", "resumed", "assigned", "revoked", "lost", "outage", "recovered", "ignored", "warning"}

// String returns the word that logs use.
func (k ReportKind) String() string {
	if k < 1 || int(k) >= len(reportNames) {
		return fmt.Sprintf("report(%d)", int(k))
	}
	return reportNames[k]
}

// Report is something that happened to a subscription outside any one event.
type Report struct {
	Kind     ReportKind
	Source   Source
	Count    int
	Duration time.Duration
	Err      error
	// Text is one sentence for an operator, without secrets.
	Text string
}

// Direct is implemented by a driver that calls [Sink.Deliver] inside Publish,
// with the context that Publish was given, in the publisher's goroutine. The
// engine then runs handlers in that goroutine too where it can.
type Direct interface {
	Driver
	// RunInPublish reports whether handlers may run before Publish returns.
	RunInPublish() bool
	// Start ends the time before Run, in which messages are held: it delivers
	// what was published so far.
	Start(ctx context.Context) error
}

// Namer is implemented by a driver whose topics, queues or streams have names
// that are derived from channels. Two channels of one bus with the same broker
// name are refused.
type Namer interface {
	BrokerName(channel string) string
}

// Checker is implemented by a driver that can ask its broker whether it is
// reachable and configured as promised. The error names what was tried.
type Checker interface {
	Check(ctx context.Context) error
}

// PublishState is what is known of one message after a failed publish.
type PublishState int

const (
	NotStored PublishState = iota // it was not stored and will not be
	Stored                        // it is stored
	Unknown                       // the broker did not say: it may be stored, now or later
)

// String returns "not stored", "stored" or "unknown".
func (s PublishState) String() string {
	switch s {
	case Stored:
		return "stored"
	case Unknown:
		return "unknown"
	}
	return "not stored"
}

// PublishResult is what is known of one message.
type PublishResult struct {
	State PublishState
	Err   error // nil when stored
}

// PublishError says for each message of a failed publish what is known of it.
type PublishError struct {
	// Results has one entry per message, in the order of the call.
	Results []PublishResult
}

// Error names how many messages were not stored, and the first reason.
func (e *PublishError) Error() string {
	var counts [3]int
	var first error
	for _, r := range e.Results {
		counts[r.State]++
		if first == nil {
			first = r.Err
		}
	}
	return fmt.Sprintf("of %d messages %d stored, %d not stored, %d unknown: %v",
		len(e.Results), counts[Stored], counts[NotStored], counts[Unknown], first)
}

// Unwrap returns the reasons, so that errors.Is finds any of them.
func (e *PublishError) Unwrap() []error {
	var errs []error
	for _, r := range e.Results {
		if r.Err != nil {
			errs = append(errs, r.Err)
		}
	}
	return errs
}

type handlerKey struct{}

// HandlerKey is the key under which the context of a handler has a value that
// is not nil. The engine sets it; a driver asks with [InHandler].
func HandlerKey() any { return handlerKey{} }

// InHandler reports whether ctx is a handler's context or descends from one. A
// publish with such a context must not wait for room that only its own handler
// can make.
func InHandler(ctx context.Context) bool { return ctx.Value(handlerKey{}) != nil }

type waitKey struct{}

// WaitKey is the key under which the context of a [Direct] driver's Publish has
// a func() that the driver must call before it blocks; see [Waiting].
func WaitKey() any { return waitKey{} }

// Waiting says that a [Direct] driver's Publish is about to wait: what was
// delivered with ctx so far, and was meant to run when Publish returns, is left
// to workers. Otherwise the wait could be for itself. The driver holds no lock
// that Sink.Deliver or Consumer.Settle needs.
func Waiting(ctx context.Context) {
	if f, ok := ctx.Value(waitKey{}).(func()); ok {
		f()
	}
}
