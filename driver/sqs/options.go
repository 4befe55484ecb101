package sqs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
)

// QueueURLResolver returns the URL of the queue that an event type is sent to and
// read from. "" means the driver's own naming.
type QueueURLResolver func(ctx context.Context, eventType string) (url string, err error)

// Provision says who makes queues and topics.
type Provision int

const (
	// ProvisionMissing makes what is missing: queues with 14 days of retention
	// and a dead letter queue, topics, and the subscriptions between them.
	ProvisionMissing Provision = iota
	// ProvisionNever makes nothing: what is missing is a complaint at start.
	ProvisionNever
)

// Options configures a driver.
type Options struct {
	// Client reaches SQS; sqs.NewFromConfig makes one. Needed. The driver works with
	// a copy of it, and of Topics, whose attempts end after RequestTimeout.
	Client *sqs.Client

	// Topics reaches SNS. With it a channel is a topic, and each subscription
	// has a queue of its own.
	Topics *sns.Client

	// FIFO makes queues and topics keep the order of each aggregate. It cannot
	// change while there are events: the names differ by ".fifo".
	FIFO bool

	// MaxBytes and MaxEvents bound what is received and not finished, per queue.
	// They default to 32 MiB and 1 000.
	MaxBytes  int
	MaxEvents int

	// Namespace goes before every name, with a dash.
	Namespace string

	// PollWait is how long a poll waits for messages, in whole seconds from 1 to
	// 20. Longer is cheaper; Close waits for it. Defaults to 5 seconds.
	PollWait time.Duration

	// Pollers is how many polls of a queue run at once under load. Defaults to 4.
	Pollers int

	// Provision says whether the driver makes queues and topics.
	Provision Provision

	// QueueURL sends event types to queues of your own. A queue whose name ends
	// in .fifo is one whatever Options.FIFO says.
	QueueURL QueueURLResolver

	// RequestTimeout is how long one attempt of a request may take, and a poll's
	// PollWait and this long: SQS answers within a fraction of a second, and what takes
	// longer goes over a connection that has died without a word. The SDK bounds
	// nothing there but dialling. Defaults to 10 seconds.
	RequestTimeout time.Duration

	// UnhandledGrace is how long a message whose type no release of a subscription
	// here handles is given back before it is a dead letter (on a queue of your own)
	// or ignored (on the channel's). Defaults to 10 minutes; negative is none.
	UnhandledGrace time.Duration

	// VisibilityTimeout is how long a message stays with a process that died, in
	// whole seconds from 1 to 12 hours. Defaults to 30 seconds.
	VisibilityTimeout time.Duration
}

func (o Options) withDefaults() Options {
	o.MaxBytes = cmp.Or(o.MaxBytes, 32<<20)
	o.MaxEvents = cmp.Or(o.MaxEvents, 1000)
	o.PollWait = cmp.Or(o.PollWait, 5*time.Second)
	o.Pollers = cmp.Or(o.Pollers, 4)
	o.RequestTimeout = cmp.Or(o.RequestTimeout, 10*time.Second)
	o.UnhandledGrace = cmp.Or(o.UnhandledGrace, 10*time.Minute)
	o.VisibilityTimeout = cmp.Or(o.VisibilityTimeout, 30*time.Second)
	return o
}

// Names of queues have letters, digits, dash and underscore.
var namespaceForm = regexp.MustCompile(`^[A-Za-z0-9_-]{0,40}$`)

// longest is how long SQS lets a message be invisible from its receive,
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html
const longest = 12 * time.Hour

func (o Options) check() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.Client == nil {
		complain("Options.Client is nil: make one with sqs.NewFromConfig")
	}
	if !namespaceForm.MatchString(o.Namespace) {
		complain("Options.Namespace %q: letters, digits, dash and underscore, at most 40", o.Namespace)
	}
	if o.MaxEvents < 1 || o.MaxBytes < 1 || o.Pollers < 1 {
		complain("Options.MaxEvents is %d, MaxBytes %d and Pollers %d: all must be positive", o.MaxEvents, o.MaxBytes, o.Pollers)
	}
	if o.PollWait < time.Second || o.PollWait > 20*time.Second || o.PollWait%time.Second != 0 {
		complain("Options.PollWait is %v: whole seconds from 1 to 20", o.PollWait)
	}
	if o.VisibilityTimeout < time.Second || o.VisibilityTimeout > longest || o.VisibilityTimeout%time.Second != 0 {
		complain("Options.VisibilityTimeout is %v: whole seconds from 1 to 12 hours", o.VisibilityTimeout)
	}
	if o.RequestTimeout < 0 {
		complain("Options.RequestTimeout is %v: it must be positive", o.RequestTimeout)
	}
	if o.Provision != ProvisionMissing && o.Provision != ProvisionNever {
		complain("Options.Provision is %d: ProvisionMissing or ProvisionNever", o.Provision)
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("sqs: %w", errors.Join(errs...))
}
