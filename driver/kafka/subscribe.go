package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings/driver"
)

// maxTopicName is the longest name of a topic.
const maxTopicName = 249

// Subscribe implements [driver.Driver]. It makes sure that the topics exist,
// those of the dead letters included, and that a new subscription says where it
// starts; the error has every complaint at once.
func (d *Driver) Subscribe(ctx context.Context, s driver.Subscription, sink driver.Sink) (driver.Consumer, error) {
	if !d.enter() {
		return nil, errClosed
	}
	defer d.publishing.Done()
	c := &consumer{
		driver: d, subscription: s, sink: sink, group: d.GroupName(s.Name),
		channels:   make(map[string]string),
		maxEvents:  min(cmp.Or(s.MaxEvents, d.options.MaxEvents), d.options.MaxEvents),
		maxBytes:   cmp.Or(s.MaxBytes, d.options.MaxBytes),
		owned:      make(map[string]map[int32]*partition),
		epochs:     make(map[string]int64),
		fatal:      make(chan error, 1),
		kick:       make(chan struct{}, 1),
		committing: make(chan struct{}, 1),
		started:    make(chan struct{}),
	}
	c.turned = sync.NewCond(&c.round)
	for _, channel := range s.Channels {
		topic := d.BrokerName(channel)
		if other, taken := c.channels[topic]; taken {
			return nil, fmt.Errorf("kafka: subscription %s: channels %s and %s have the same topic %s", s.Name, other, channel, topic)
		}
		c.channels[topic] = channel
		c.topics = append(c.topics, topic)
	}
	if err := c.inspect(ctx); err != nil {
		return nil, err
	}
	c.life, c.end = context.WithCancel(context.WithoutCancel(ctx))
	c.connections = newConnections(sink, c.heartbeat()+time.Second)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.subscribed[s.Name] != nil {
		c.end()
		return nil, fmt.Errorf("kafka: subscription %s exists already on this driver", s.Name)
	}
	d.subscribed[s.Name] = c
	return c, nil
}

// heartbeat is how often the consumer gives a sign of life.
func (c *consumer) heartbeat() time.Duration {
	return min(3*time.Second, c.driver.options.SessionTimeout/3)
}

// connect makes the client, which joins the group at once.
func (c *consumer) connect() error {
	o := &c.driver.options
	options := []kgo.Opt{
		kgo.ConsumerGroup(c.group),
		kgo.ConsumeTopics(c.topics...),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(),
		kgo.SessionTimeout(o.SessionTimeout),
		kgo.HeartbeatInterval(c.heartbeat()),
		kgo.RebalanceTimeout(o.RebalanceTimeout),
		kgo.FetchMaxWait(time.Second),
		kgo.OnPartitionsAssigned(c.onAssigned),
		kgo.OnPartitionsRevoked(c.onRevoked),
		kgo.OnPartitionsLost(c.onLost),
		kgo.OnOffsetsFetched(c.onFetched),
		kgo.AdjustFetchOffsetsFn(c.adjust),
		kgo.WithHooks(c.connections),
	}
	if o.InstanceID != "" {
		options = append(options, kgo.InstanceID(o.InstanceID+"."+c.subscription.Name))
	}
	c.ownership.Lock()
	defer c.ownership.Unlock()
	if c.closing.Load() || c.client != nil {
		return fmt.Errorf("kafka: subscription %s: %w", c.subscription.Name, errRunOnce)
	}
	client, err := kgo.NewClient(c.driver.clientOptions(options...)...)
	if err != nil {
		return fmt.Errorf("kafka: subscription %s: Options: %w", c.subscription.Name, err)
	}
	c.client = client
	close(c.started)
	return nil
}

var errRunOnce = errors.New("Run is called once, and not after Close")

// inspect checks what can be checked without joining.
func (c *consumer) inspect(ctx context.Context) error {
	d, s := c.driver, &c.subscription
	var errs []error
	if !legalName.MatchString(c.group) || s.Name == "" {
		errs = append(errs, fmt.Errorf("kafka: subscription %q cannot name a group and a topic: letters, digits, '.', '_' and '-' only", s.Name))
	}
	if len(c.topics) == 0 {
		errs = append(errs, fmt.Errorf("kafka: subscription %s has no channel", s.Name))
	}
	dead := make([]string, len(s.Channels))
	for n, channel := range s.Channels {
		dead[n] = d.DeadLetterName(channel, s.Name)
		if name := dead[n]; len(name) > maxTopicName || !legalName.MatchString(name) {
			errs = append(errs, fmt.Errorf("kafka: subscription %s: %q cannot be a topic: at most %d letters, digits, '.', '_' and '-'", s.Name, name, maxTopicName))
		}
	}
	if errs != nil {
		return errors.Join(errs...)
	}
	for n, topic := range c.topics {
		if _, err := d.prepare(ctx, topic, eventTopic); err != nil {
			errs = append(errs, fmt.Errorf("subscription %s: %w", s.Name, err))
		}
		if _, err := d.prepare(ctx, dead[n], deadTopic); err != nil {
			errs = append(errs, fmt.Errorf("subscription %s, dead letters: %w", s.Name, err))
		}
	}
	if errs != nil {
		for n := range errs {
			errs[n] = fmt.Errorf("kafka: %w", errs[n])
		}
		return errors.Join(errs...)
	}
	stored, err := c.storedPositions(ctx)
	if err != nil {
		return fmt.Errorf("kafka: subscription %s: %w", s.Name, err)
	}
	if s.StartAt.Mode == driver.StartUnset {
		var unknown []string
		for _, topic := range c.topics {
			if len(stored[topic]) == 0 {
				unknown = append(unknown, topic)
			}
		}
		if unknown != nil {
			return c.errNoStart(unknown)
		}
	}
	return c.warn(ctx, slices.Concat(c.topics, dead))
}

// warn reports live settings that are weaker than what the driver promises. On
// loopback brokers nothing is promised.
func (c *consumer) warn(ctx context.Context, topics []string) error {
	d := c.driver
	if d.options.loopback() {
		return nil
	}
	metadata, err := d.admin.Metadata(ctx, topics...)
	if err != nil {
		return d.explain("subscription "+c.subscription.Name, err)
	}
	configs, _ := d.configs(ctx, topics) // a broker that does not tell is not warned of
	for _, topic := range topics {
		need := topicNeed{name: topic, kind: eventTopic}
		if strings.HasSuffix(topic, deadSuffix) {
			need.kind = deadTopic
		}
		for _, finding := range d.inspectTopic(need, metadata.Topics[topic], configs[topic]) {
			c.sink.Report(driver.Report{Kind: driver.ReportWarning, Text: finding.String()})
		}
	}
	return nil
}

// Check implements [driver.Checker]: it connects, proves who it is and asks for
// the topics and groups of what was subscribed. It takes no longer than ctx
// lives, and at most ten seconds.
func (d *Driver) Check(ctx context.Context) error {
	if !d.enter() {
		return errClosed
	}
	defer d.publishing.Done()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	// A client of its own does not hide the first refusal behind retries.
	client, err := kgo.NewClient(d.clientOptions(kgo.RequestRetries(0), kgo.DialTimeout(5*time.Second))...)
	if err != nil {
		return fmt.Errorf("kafka: Options: %w", err)
	}
	defer client.Close()
	if err := client.Ping(ctx); err != nil {
		return d.explain("reaching the broker", err)
	}
	d.mu.Lock()
	var consumers []*consumer
	for _, c := range d.subscribed {
		consumers = append(consumers, c)
	}
	d.mu.Unlock()
	var errs []error
	for _, c := range consumers {
		for _, topic := range c.topics {
			if found, err := d.exists(ctx, topic); err != nil {
				errs = append(errs, err)
			} else if !found {
				errs = append(errs, d.missing(topic))
			}
		}
		if _, err := c.storedPositions(ctx); err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
