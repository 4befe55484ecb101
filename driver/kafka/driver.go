package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/tidings-go/tidings/driver"
)

// Driver is the Kafka driver. All methods may be called at once.
//
// Lock order: consumer.ownership, then partition.deliver, then partition.mu,
// then the leaves Driver.mu, topic.mu, call.mu and consumer.round. No lock but
// partition.deliver is held while a sink is called.
type Driver struct {
	options  Options
	client   *kgo.Client // publishes and asks; consumers have clients of their own
	admin    *kadm.Client
	topics   topics
	features driver.Features

	declarations declarationReader
	keepEvery    time.Duration

	mu         sync.Mutex
	closed     bool
	publishing sync.WaitGroup
	subscribed map[string]*consumer // by subscription

	// oversize makes dead letters that were too large for their topic go one
	// at a time, so that none of them shares a batch.
	oversize sync.Mutex
}

var (
	_ driver.Driver      = (*Driver)(nil)
	_ driver.Namer       = (*Driver)(nil)
	_ driver.Checker     = (*Driver)(nil)
	_ driver.DeadLetters = (*Driver)(nil)
)

// New makes a driver. It connects to nothing yet: [Driver.Check] and Subscribe
// do. The error has every complaint about the options at once.
func New(options Options) (*Driver, error) {
	if err := options.validate(); err != nil {
		return nil, err
	}
	o := options.withDefaults()
	d := &Driver{options: o, keepEvery: keepEvery, subscribed: make(map[string]*consumer)}
	d.topics.known = make(map[string]*topic)
	d.declarations.turn = make(chan struct{}, 1)
	d.features = driver.Features{
		Durable: true, Ordered: true, Groups: true, FanOut: true, Headers: true, History: true, Sources: true,
		MaxSize:           o.MaxMessageBytes,
		RedeliveryHorizon: -1,
	}
	if o.Retention > 0 {
		d.features.RedeliveryHorizon = o.Retention
	}
	client, err := kgo.NewClient(d.clientOptions(
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(0),
		// The client's own choice, Snappy, is one that kafkajs cannot read.
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerBatchMaxBytesFn(d.batchLimit),
		kgo.UnknownTopicRetries(5),
		kgo.ProduceRequestTimeout(d.options.requestTime()), // how long a broker waits for its replicas
	)...)
	if err != nil {
		return nil, fmt.Errorf("kafka: Options: %w", err)
	}
	d.client, d.admin = client, kadm.NewClient(client)
	return d, nil
}

// clientOptions is what every client of the driver is made with.
func (d *Driver) clientOptions(more ...kgo.Opt) []kgo.Opt {
	o := &d.options
	options := []kgo.Opt{
		kgo.SeedBrokers(o.Brokers...),
		kgo.ClientID(o.ClientID),
		kgo.MetadataMinAge(250 * time.Millisecond),
		kgo.MetadataMaxAge(time.Minute),
		kgo.RetryBackoffFn(backoff),
		// A broker that falls silent is noticed well within the session timeout: the
		// client's own times are twice these, and add up.
		kgo.DialTimeout(o.requestTime()),
		kgo.RequestTimeoutOverhead(o.requestTime()),
	}
	if o.TLS != nil {
		options = append(options, kgo.DialTLSConfig(o.TLS))
	}
	switch o.SASL.Mechanism {
	case Plain:
		options = append(options, kgo.SASL(plain.Auth{User: o.SASL.User, Pass: o.SASL.Password}.AsMechanism()))
	case ScramSHA256:
		options = append(options, kgo.SASL(scram.Auth{User: o.SASL.User, Pass: o.SASL.Password}.AsSha256Mechanism()))
	case ScramSHA512:
		options = append(options, kgo.SASL(scram.Auth{User: o.SASL.User, Pass: o.SASL.Password}.AsSha512Mechanism()))
	}
	if o.Logger != nil {
		options = append(options, kgo.WithLogger(clientLogger{o.Logger}))
	}
	return append(append(options, more...), o.ClientOptions...)
}

// backoff is how long a client waits before it asks again.
func backoff(failures int) time.Duration {
	return min(50*time.Millisecond<<min(failures, 6), 2*time.Second)
}

// clientLogger passes what a franz-go client warns about to a slog.Logger.
type clientLogger struct{ logger *slog.Logger }

func (clientLogger) Level() kgo.LogLevel { return kgo.LogLevelWarn }

func (l clientLogger) Log(level kgo.LogLevel, message string, pairs ...any) {
	as := slog.LevelWarn
	if level == kgo.LogLevelError {
		as = slog.LevelError
	}
	l.logger.Log(context.Background(), as, "kafka: "+message, pairs...)
}

// Name implements [driver.Driver].
func (d *Driver) Name() string { return "kafka" }

// Features implements [driver.Driver].
func (d *Driver) Features() driver.Features { return d.features }

// String names brokers, namespace and user, and no secret.
func (d *Driver) String() string { return d.options.String() }

// GoString is String: %#v shows no secret either.
func (d *Driver) GoString() string { return d.options.GoString() }

// BrokerName implements [driver.Namer]: the topic of a channel is "events." and
// the channel with dashes for dots, after the namespace and a dot if there is
// one. "identity.user.created" becomes "shop.events.identity-user-created".
func (d *Driver) BrokerName(channel string) string {
	if name, ok := d.topics.names.Load(channel); ok {
		return name.(string)
	}
	name := d.prefix() + "events." + strings.ReplaceAll(channel, ".", "-")
	d.topics.names.Store(channel, name)
	return name
}

// GroupName returns the consumer group of a subscription: its name, after the
// namespace and a dot if there is one.
func (d *Driver) GroupName(subscription string) string { return d.prefix() + subscription }

// DeadLetterName returns the topic that has the dead letters of one
// subscription and channel: the channel's topic, a dot, the subscription and
// ".dead".
func (d *Driver) DeadLetterName(channel, subscription string) string {
	return d.BrokerName(channel) + "." + subscription + deadSuffix
}

const deadSuffix = ".dead"

func (d *Driver) prefix() string {
	if d.options.Namespace == "" {
		return ""
	}
	return d.options.Namespace + "."
}

// enter begins a call that uses the client; it reports false after Close.
func (d *Driver) enter() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.publishing.Add(1)
	return true
}

var errClosed = fmt.Errorf("kafka: %w", driver.ErrClosed)

// Close implements [driver.Driver]: what Publish has handed to the client is
// sent until ctx ends; what is left then is unknown to its publisher.
func (d *Driver) Close(ctx context.Context) error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	d.mu.Unlock()
	var errs []error
	if err := d.client.Flush(ctx); err != nil {
		errs = append(errs, fmt.Errorf("kafka: %d messages were not confirmed before the end: %w", d.client.BufferedProduceRecords(), err))
	}
	idle := make(chan struct{})
	go func() {
		d.publishing.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-ctx.Done(): // closing the client ends them
	}
	d.client.Close()
	<-idle
	return errors.Join(errs...)
}
