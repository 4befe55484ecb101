package sqs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/smithy-go"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/calls"
)

// Driver implements [driver.Driver] over SQS and SNS. Make it with [New]. All
// methods may be called at once.
//
// Lock order: Driver.mu, then queue.mu; sender.mu, then call.mu. No lock but
// consumer.delivering is held while a sink is called.
type Driver struct {
	options  Options
	features driver.Features
	poll     func(*sqs.Options) // of a call that waits for messages

	calls calls.Gate // with the requests of senders

	mu         sync.Mutex
	found      map[string]*destination // by what they are for
	finding    map[string]*sync.Mutex  // one search at a time
	senders    map[string]*sender      // by URL or ARN
	queues     map[string]*queue       // that are read, by URL
	deadOf     map[string]string       // URL of the dead letter queue, by name of queue
	subscribed map[string]*consumer    // by subscription
}

var (
	_ driver.Driver      = (*Driver)(nil)
	_ driver.Namer       = (*Driver)(nil)
	_ driver.Checker     = (*Driver)(nil)
	_ driver.DeadLetters = (*Driver)(nil)
)

// New makes a driver. It connects to nothing yet: [Driver.Check] and Subscribe do.
// The error has every complaint about the options at once.
func New(options Options) (*Driver, error) {
	o := options.withDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	poll := withAttempts(&o)
	d := &Driver{
		options: o, poll: poll, found: make(map[string]*destination), finding: make(map[string]*sync.Mutex), senders: make(map[string]*sender),
		queues: make(map[string]*queue), deadOf: make(map[string]string), subscribed: make(map[string]*consumer),
		features: driver.Features{
			Durable: true, Ordered: o.FIFO, Groups: true, FanOut: true, Headers: true, Text: true, RedeliveryCount: true,
			MaxHeaders: maxAttributes, MaxSize: queueLimit - typesRoom, MaxDelay: longest, RedeliveryHorizon: retention,
		},
	}
	if o.FIFO {
		// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/FIFO-queues-exactly-once-processing.html
		d.features.Deduplication = 5 * time.Minute
	}
	if o.Topics != nil {
		d.features.MaxSize = topicLimit - typesRoom
	}
	return d, nil
}

// Name implements [driver.Driver].
func (d *Driver) Name() string { return "sqs" }

// Features implements [driver.Driver].
func (d *Driver) Features() driver.Features { return d.features }

// BrokerName implements [driver.Namer]: the queue or topic of a channel is
// "events-" and the channel with dashes for dots, after the namespace and a dash
// if there is one, and with ".fifo" behind it if it is one. "identity.user.created"
// becomes "shop-events-identity-user-created.fifo".
func (d *Driver) BrokerName(channel string) string { return d.name(channel, "") }

// QueueName returns the queue of one subscription behind the topic of a channel.
func (d *Driver) QueueName(channel, subscription string) string { return d.name(channel, subscription) }

func (d *Driver) name(channel, subscription string) string {
	name := "events-" + strings.ReplaceAll(channel, ".", "-")
	if d.options.Namespace != "" {
		name = d.options.Namespace + "-" + name
	}
	if subscription != "" {
		name += "-" + strings.ReplaceAll(subscription, ".", "-")
	}
	if d.options.FIFO {
		name += ".fifo"
	}
	return name
}

// deadName is the dead letter queue of a queue.
func deadName(queue string) string {
	if base, fifo := strings.CutSuffix(queue, ".fifo"); fifo {
		return base + "-dead.fifo"
	}
	return queue + "-dead"
}

func isFIFO(name string) bool { return strings.HasSuffix(name, ".fifo") }

// nameOf is the name of the queue behind a URL.
func nameOf(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }

var errClosed = fmt.Errorf("sqs: %w", driver.ErrClosed)

// Check implements [driver.Checker]: SQS answers, and knows every queue that is
// read. It takes at most ten seconds.
func (d *Driver) Check(ctx context.Context) error {
	if !d.calls.Enter() {
		return errClosed
	}
	defer d.calls.Leave()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	d.mu.Lock()
	var urls []string
	for url := range d.queues {
		urls = append(urls, url)
	}
	d.mu.Unlock()
	if len(urls) == 0 {
		if _, err := d.options.Client.ListQueues(ctx, &sqs.ListQueuesInput{MaxResults: aws.Int32(1)}); err != nil {
			return fmt.Errorf("sqs: asking for queues: %w", err)
		}
	}
	var errs []error
	for _, url := range urls {
		if _, err := d.options.Client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &url}); err != nil {
			errs = append(errs, fmt.Errorf("sqs: queue %s: %w", nameOf(url), err))
		}
	}
	return errors.Join(errs...)
}

// Close implements [driver.Driver]: what Publish has handed over is sent until ctx
// ends.
func (d *Driver) Close(ctx context.Context) error {
	if !d.calls.Close() {
		return nil
	}
	if err := d.calls.Wait(ctx, nil); err != nil {
		return fmt.Errorf("sqs: %w", err)
	}
	return nil
}

// code is the error code of an answer, in whatever spelling; "" for what is no
// answer.
func code(err error) string {
	var refused smithy.APIError
	if !errors.As(err, &refused) {
		return ""
	}
	return plainCode(refused.ErrorCode())
}

func plainCode(code string) string { return code[strings.LastIndexAny(code, ".#")+1:] }

func missing(err error) bool {
	c := code(err)
	return c == "QueueDoesNotExist" || c == "NonExistentQueue"
}
