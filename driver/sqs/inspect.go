package sqs

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/tidings-go/tidings/driver"
)

var (
	_ driver.Inspector   = (*Driver)(nil)
	_ driver.Provisioner = (*Driver)(nil)
	_ driver.Keeper      = (*Driver)(nil)
	_ driver.Renamer     = (*Driver)(nil)
)

const (
	// leastReceives is after how many receives SQS itself may give a message up:
	// the engine counts attempts by itself, and gives messages back for other
	// reasons too.
	leastReceives = 100
	// leastRetention is how long a queue without a reader keeps messages, at least:
	// a long weekend.
	leastRetention = 72 * time.Hour
)

// need is one queue of a topology, and the topic that it follows.
type need struct {
	queue   string // its name
	url     string // of the caller's own
	channel string
	reader  string // the subscription that it is for; "" for the channel's
	topic   bool
}

// needs are the queues of a topology.
func (d *Driver) needs(ctx context.Context, topology driver.Topology) (all []need, err error) {
	add := func(n need) {
		if !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	own := func(channel, eventType string) (bool, error) {
		found, err := d.resolve(ctx, eventType)
		if found != nil {
			add(need{queue: found.name, url: found.url, channel: channel})
		}
		return found != nil, err
	}
	for _, channel := range topology.Channels {
		other := len(channel.Types) == 0
		for _, eventType := range channel.Types {
			theirs, err := own(channel.Name, eventType)
			if err != nil {
				return nil, err
			}
			other = other || !theirs
		}
		if other && d.options.Topics == nil {
			add(need{queue: d.BrokerName(channel.Name), channel: channel.Name})
		}
	}
	for _, s := range topology.Subscriptions {
		for _, channel := range s.Channels {
			if d.options.Topics != nil {
				add(need{queue: d.QueueName(channel, s.Name), channel: channel, reader: s.Name, topic: true})
			} else if d.options.QueueURL == nil {
				add(need{queue: d.BrokerName(channel), channel: channel})
			}
		}
	}
	return all, nil
}

// Inspect implements [driver.Inspector]: queues that are missing, have no redrive
// or give messages up too early, dead letter queues that hold messages, queues that
// lag, and queues that do not follow their topic.
func (d *Driver) Inspect(ctx context.Context, topology driver.Topology, options driver.InspectOptions) (findings []driver.Finding, err error) {
	if !d.calls.Enter() {
		return nil, errClosed
	}
	defer d.calls.Leave()
	needs, err := d.needs(ctx, topology)
	if err != nil {
		return nil, fmt.Errorf("sqs: %w", err)
	}
	for _, n := range needs {
		found, err := d.inspectQueue(ctx, n, options)
		findings = append(findings, found...)
		if err != nil {
			return findings, err
		}
	}
	for _, s := range topology.Subscriptions {
		n := need{queue: d.DeclarationsName(s.Name)}
		url, err := d.urlOf(ctx, n)
		if err != nil {
			return findings, err
		}
		if url == "" {
			findings = append(findings, driver.Finding{Severity: driver.Broken, Check: "sqs-declarations-missing", Subject: "queue " + n.queue, What: "it does not exist",
				Why: "what the releases of " + s.Name + " handle cannot be recorded, so that an instance without a type would pass its events", Fix: "run `tidings provision`, or make it"})
		}
	}
	return findings, nil
}

// urlOf is where a queue is; "" when it does not exist.
func (d *Driver) urlOf(ctx context.Context, n need) (string, error) {
	if n.url != "" {
		return n.url, nil
	}
	found, err := d.options.Client.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &n.queue})
	if missing(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("sqs: queue %s: %w", n.queue, err)
	}
	return *found.QueueUrl, nil
}

func (d *Driver) inspectQueue(ctx context.Context, n need, options driver.InspectOptions) (findings []driver.Finding, err error) {
	find := func(severity driver.Severity, check, what, why, fix string) {
		findings = append(findings, driver.Finding{Severity: severity, Check: "sqs-" + check, Subject: "queue " + n.queue, What: what, Why: why, Fix: fix})
	}
	url, err := d.urlOf(ctx, n)
	if err != nil {
		return nil, err
	}
	absent := func() ([]driver.Finding, error) {
		find(driver.Broken, "queue-missing", "it does not exist", "events of channel "+n.channel+" can be neither published nor read", "run `tidings provision`, or make it")
		return findings, nil
	}
	if url == "" {
		return absent()
	}
	about, err := d.options.Client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &url, AttributeNames: []types.QueueAttributeName{"All"}})
	if missing(err) {
		return absent()
	}
	if err != nil {
		return nil, fmt.Errorf("sqs: queue %s: %w", n.queue, err)
	}
	attributes := about.Attributes
	number := func(name string) int64 {
		value, _ := strconv.ParseInt(attributes[name], 10, 64)
		return value
	}
	var policy struct {
		Target string          `json:"deadLetterTargetArn"`
		Most   json.RawMessage `json:"maxReceiveCount"` // a number, or text of one
	}
	if json.Unmarshal([]byte(attributes["RedrivePolicy"]), &policy) != nil || policy.Target == "" {
		find(driver.Weak, "redrive-missing", "it has no redrive policy", "a message that kills every process which receives it comes back until its retention ends, and is then gone without a trace",
			fmt.Sprintf("make %s, and give the queue a redrive policy with maxReceiveCount %d", deadName(n.queue), maxReceives))
	} else {
		if most, err := strconv.Atoi(strings.Trim(string(policy.Most), `"`)); err == nil && most < leastReceives {
			find(driver.Weak, "redrive-early", fmt.Sprintf("maxReceiveCount is %d, less than %d", most, leastReceives),
				"SQS takes messages away that are only held back: for order, for a retry, in an outage", fmt.Sprintf("set maxReceiveCount to %d; the engine counts attempts by itself", maxReceives))
		}
		found, err := d.inspectDead(ctx, n, lastPart(policy.Target))
		if err != nil {
			return findings, err
		}
		findings = append(findings, found...)
	}
	if kept := time.Duration(number("MessageRetentionPeriod")) * time.Second; kept > 0 && kept < leastRetention {
		find(driver.Weak, "retention", fmt.Sprintf("messages are kept for %v", kept), "an application that is stopped for longer loses events", fmt.Sprintf("set MessageRetentionPeriod to %d", int(retention/time.Second)))
	}
	if isFIFO(n.queue) != d.options.FIFO && n.url == "" {
		find(driver.Weak, "fifo", "it is of another kind than the driver is told", "a standard queue keeps no order", "say SQS_FIFO as the queue is")
	}
	most := options.MaxLag
	if most == 0 {
		most = driver.DefaultMaxLag
	}
	if waiting := number("ApproximateNumberOfMessages"); waiting > most {
		find(driver.Weak, "lag", fmt.Sprintf("about %d messages wait, more than %d", waiting, most), "nobody reads it, or its handlers are slower than events come", "look at its subscriptions; raise Concurrency, or run more instances")
	}
	if n.topic {
		found, err := d.inspectTopic(ctx, n, attributes["QueueArn"], attributes["Policy"])
		if err != nil {
			return findings, err
		}
		findings = append(findings, found...)
	}
	return findings, nil
}

// inspectDead looks at the target of a redrive.
func (d *Driver) inspectDead(ctx context.Context, n need, name string) ([]driver.Finding, error) {
	subject := "queue " + name
	found, err := d.options.Client.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &name})
	if missing(err) {
		return []driver.Finding{{
			Severity: driver.Broken, Check: "sqs-dead-missing", Subject: subject, What: "it does not exist, and the redrive of " + n.queue + " names it",
			Why: "an event that a subscription gives up on has nowhere to go", Fix: "make it",
		}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sqs: queue %s: %w", name, err)
	}
	about, err := d.options.Client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: found.QueueUrl, AttributeNames: []types.QueueAttributeName{"All"}})
	if err != nil {
		return nil, fmt.Errorf("sqs: queue %s: %w", name, err)
	}
	if held, _ := strconv.Atoi(about.Attributes["ApproximateNumberOfMessages"]); held > 0 {
		return []driver.Finding{{
			Severity: driver.Weak, Check: "sqs-dead-letters", Subject: subject, What: fmt.Sprintf("about %d dead letters are in it", held),
			Why: "they are deleted when its retention ends", Fix: "look at them, and move them back with a redrive or collect them into a store",
		}}, nil
	}
	return nil, nil
}

// inspectTopic looks whether a queue follows the topic of its channel.
func (d *Driver) inspectTopic(ctx context.Context, n need, queueARN, policy string) ([]driver.Finding, error) {
	name := d.BrokerName(n.channel)
	find := func(check, what, fix string) []driver.Finding {
		return []driver.Finding{{Severity: driver.Broken, Check: "sqs-" + check, Subject: "topic " + name, What: what, Why: "subscription " + n.reader + " gets no events", Fix: fix}}
	}
	topic, err := d.topicARN(ctx, name)
	if err != nil {
		return nil, err
	}
	if topic == "" {
		return find("topic-missing", "it does not exist", "run `tidings provision`, or make it"), nil
	}
	if policy == "" || !strings.Contains(policy, topic) {
		return find("policy", "queue "+n.queue+" does not let it send", "run `tidings provision`, or allow sqs:SendMessage to it in the policy of the queue"), nil
	}
	for pages := sns.NewListSubscriptionsByTopicPaginator(d.options.Topics, &sns.ListSubscriptionsByTopicInput{TopicArn: &topic}); pages.HasMorePages(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("sqs: topic %s: %w", name, err)
		}
		for _, s := range page.Subscriptions {
			if aws.ToString(s.Endpoint) == queueARN {
				return nil, nil
			}
		}
	}
	return find("unsubscribed", "queue "+n.queue+" does not follow it", "run `tidings provision`, or subscribe the queue with raw delivery"), nil
}

// topicARN finds a topic by its name; "" when there is none.
func (d *Driver) topicARN(ctx context.Context, name string) (string, error) {
	for pages := sns.NewListTopicsPaginator(d.options.Topics, &sns.ListTopicsInput{}); pages.HasMorePages(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return "", fmt.Errorf("sqs: topics: %w", err)
		}
		for _, t := range page.Topics {
			if arn := aws.ToString(t.TopicArn); lastPart(arn) == name {
				return arn, nil
			}
		}
	}
	return "", nil
}
