package sqs

import (
	"cmp"
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

// Provision implements [driver.Provisioner]: queues with a redrive to a dead
// letter queue, topics, and the subscriptions between them. Queues of the
// caller's own are not made.
func (d *Driver) Provision(ctx context.Context, topology driver.Topology, dry bool) (resources []driver.Resource, err error) {
	if !d.calls.Enter() {
		return nil, errClosed
	}
	defer d.calls.Leave()
	maker := *d.provisioning()
	needs, err := d.needs(ctx, topology)
	if err != nil {
		return nil, fmt.Errorf("sqs: %w", err)
	}
	if d.options.Topics != nil {
		for _, channel := range topology.Channels {
			if resources, err = maker.provisionTopic(ctx, channel.Name, dry, resources); err != nil {
				return resources, err
			}
		}
	}
	for _, n := range needs {
		url, err := d.urlOf(ctx, n)
		if err != nil {
			return resources, err
		}
		r := driver.Resource{Kind: "queue", Name: n.queue, State: driver.ResourceThere}
		if n.url == "" && url == "" {
			r.State = driver.ResourceMissing
			r.Detail = fmt.Sprintf("with a redrive to %s after %d receives, kept for %d days", deadName(n.queue), maxReceives, int(retention/(24*time.Hour)))
		}
		if n.topic && r.State == driver.ResourceThere {
			arn, err := d.arn(ctx, url)
			if err != nil {
				return resources, fmt.Errorf("sqs: %w", err)
			}
			about, err := d.options.Client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &url, AttributeNames: []types.QueueAttributeName{"Policy"}})
			if err != nil {
				return resources, fmt.Errorf("sqs: queue %s: %w", n.queue, err)
			}
			broken, err := d.inspectTopic(ctx, n, arn, about.Attributes["Policy"])
			if err != nil {
				return resources, err
			}
			if len(broken) > 0 {
				r = driver.Resource{Kind: "subscription", Name: n.queue, State: driver.ResourceMissing, Detail: "to topic " + d.BrokerName(n.channel)}
			}
		}
		if r.State == driver.ResourceMissing && !dry {
			if err := maker.provisionQueue(ctx, n); err != nil {
				return resources, fmt.Errorf("sqs: %w", err)
			}
			r.State = driver.ResourceMade
		}
		resources = append(resources, r)
	}
	for _, s := range topology.Subscriptions {
		r := driver.Resource{Kind: "queue", Name: d.DeclarationsName(s.Name), State: driver.ResourceThere}
		url, err := d.urlOf(ctx, need{queue: r.Name})
		if err != nil {
			return resources, err
		}
		if url == "" {
			r.State, r.Detail = driver.ResourceMissing, "without messages: its tags say what the releases of "+s.Name+" handle"
			if !dry {
				if _, err := d.createQueue(ctx, r.Name, nil); err != nil {
					return resources, fmt.Errorf("sqs: %w", err)
				}
				r.State = driver.ResourceMade
			}
		}
		resources = append(resources, r)
	}
	return resources, nil
}

// provisioning is a driver on the same client that makes what is missing, whatever
// the options say, and remembers nothing of this one.
func (d *Driver) provisioning() *Driver {
	o := d.options
	o.Provision = ProvisionMissing
	maker, err := New(o)
	if err != nil { // the options were checked
		return d
	}
	return maker
}

func (d *Driver) provisionTopic(ctx context.Context, channel string, dry bool, resources []driver.Resource) ([]driver.Resource, error) {
	r := driver.Resource{Kind: "topic", Name: d.BrokerName(channel), State: driver.ResourceThere}
	arn, err := d.topicARN(ctx, r.Name)
	if err != nil {
		return resources, err
	}
	if arn == "" {
		r.State = driver.ResourceMissing
		if !dry {
			if _, err := d.topic(ctx, channel); err != nil {
				return resources, fmt.Errorf("sqs: %w", err)
			}
			r.State = driver.ResourceMade
		}
	}
	return append(resources, r), nil
}

func (d *Driver) provisionQueue(ctx context.Context, n need) error {
	queue, err := d.queue(ctx, n.queue)
	if err != nil || !n.topic {
		return err
	}
	topic, err := d.topic(ctx, n.channel)
	if err != nil {
		return err
	}
	return d.follow(ctx, topic, queue)
}

// statement is one part of an IAM policy
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements.html).
type statement struct {
	Sid      string   `json:"Sid"`
	Effect   string   `json:"Effect"`
	Action   []string `json:"Action"`
	Resource []string `json:"Resource"`
}

// Grants implements [driver.Provisioner]: an IAM policy for the role of the
// application, in which region and account stand for any. The principal is whom it
// is attached to, and not in it.
func (d *Driver) Grants(topology driver.Topology, _ string) []driver.Grant {
	needs, err := d.needs(context.Background(), topology)
	if err != nil || len(needs)+len(topology.Channels) == 0 {
		return nil
	}
	queue := func(name string) string { return "arn:aws:sqs:*:*:" + name }
	var read, dead, write, topics []string
	add := func(list *[]string, arn string) {
		if !slices.Contains(*list, arn) {
			*list = append(*list, arn)
		}
	}
	for _, n := range needs {
		add(&read, queue(n.queue))
		add(&dead, queue(deadName(n.queue)))
	}
	for _, channel := range topology.Channels {
		switch {
		case !channel.Published:
		case d.options.Topics != nil:
			add(&topics, "arn:aws:sns:*:*:"+d.BrokerName(channel.Name))
		default:
			for _, n := range needs {
				if n.channel == channel.Name {
					add(&write, queue(n.queue))
				}
			}
		}
	}
	policy := struct {
		Version   string      `json:"Version"`
		Statement []statement `json:"Statement"`
	}{Version: "2012-10-17"}
	allow := func(sid string, resources []string, actions ...string) {
		if len(resources) > 0 {
			policy.Statement = append(policy.Statement, statement{sid, "Allow", actions, resources})
		}
	}
	allow("TidingsRead", read, "sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueUrl", "sqs:GetQueueAttributes")
	var records []string
	for _, s := range topology.Subscriptions {
		add(&records, queue(d.DeclarationsName(s.Name)))
	}
	allow("TidingsDeclarations", records, "sqs:GetQueueUrl", "sqs:ListQueueTags", "sqs:TagQueue")
	allow("TidingsPublish", write, "sqs:SendMessage", "sqs:GetQueueUrl", "sqs:GetQueueAttributes")
	allow("TidingsPublishTopics", topics, "sns:Publish")
	allow("TidingsDeadLetters", dead, "sqs:SendMessage", "sqs:GetQueueUrl", "sqs:GetQueueAttributes")
	allow("TidingsCheck", []string{"*"}, append([]string{"sqs:ListQueues"}, listTopics(d.options.Topics)...)...)
	text, err := json.MarshalIndent(policy, "", "  ")
	if err != nil {
		return nil
	}
	return []driver.Grant{{What: "IAM policy", Text: string(text) + "\n"}}
}

func listTopics(topics *sns.Client) []string {
	if topics == nil {
		return nil
	}
	return []string{"sns:ListTopics"}
}

// StoredSubscriptions implements [driver.Keeper]. Only queues behind topics belong
// to one subscription; SQS does not say who reads them. Without topics there is
// nothing. Names that a dash makes ambiguous are listed as their queues have
// them: module and name are told apart by what follows the channel of a topic.
func (d *Driver) StoredSubscriptions(ctx context.Context, options driver.StoredOptions) (all []driver.StoredSubscription, err error) {
	if !d.calls.Enter() {
		return nil, errClosed
	}
	defer d.calls.Leave()
	queues, err := d.subscriptionQueues(ctx)
	if err != nil {
		return nil, err
	}
	for _, q := range queues {
		if !strings.HasPrefix(q.subscription, options.Prefix) {
			continue
		}
		about, err := d.options.Client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &q.url, AttributeNames: []types.QueueAttributeName{"All"}})
		if missing(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("sqs: queue %s: %w", nameOf(q.url), err)
		}
		number := func(name string) int64 {
			n, _ := strconv.ParseInt(about.Attributes[name], 10, 64)
			return n
		}
		s := driver.StoredSubscription{
			Name: q.subscription, Instances: -1, Parked: -1, DeadLetters: -1, Keys: -1, Position: "queue " + nameOf(q.url),
			Lag: number("ApproximateNumberOfMessages") + number("ApproximateNumberOfMessagesNotVisible"),
		}
		if number("ApproximateNumberOfMessagesNotVisible") > 0 {
			s.Instances = 1 // at least: somebody has messages in hand
		}
		all = driver.MergeStored(all, []driver.StoredSubscription{s})
	}
	return all, nil
}

// subscriptionQueue is the queue of one subscription behind a topic.
type subscriptionQueue struct{ url, arn, topic, subscription, link string }

// subscriptionQueues are the queues that follow the topics of this namespace.
func (d *Driver) subscriptionQueues(ctx context.Context) (all []subscriptionQueue, err error) {
	if d.options.Topics == nil {
		return nil, nil
	}
	suffix := ""
	if d.options.FIFO {
		suffix = ".fifo"
	}
	first := strings.TrimSuffix(d.BrokerName(""), suffix)
	for pages := sns.NewListSubscriptionsPaginator(d.options.Topics, &sns.ListSubscriptionsInput{}); pages.HasMorePages(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("sqs: subscriptions of topics: %w", err)
		}
		for _, s := range page.Subscriptions {
			topic, queue := lastPart(aws.ToString(s.TopicArn)), lastPart(aws.ToString(s.Endpoint))
			rest, ours := strings.CutPrefix(strings.TrimSuffix(queue, suffix), strings.TrimSuffix(topic, suffix)+"-")
			if !ours || !strings.HasPrefix(topic, first) || !strings.HasSuffix(queue, suffix) {
				continue
			}
			found, err := d.options.Client.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &queue})
			if err != nil {
				continue // it follows, and is gone
			}
			// The first dash was the dot between module and name, unless the module has
			// one: then the name is not told apart.
			all = append(all, subscriptionQueue{*found.QueueUrl, aws.ToString(s.Endpoint), aws.ToString(s.TopicArn), strings.Replace(rest, "-", ".", 1), aws.ToString(s.SubscriptionArn)})
		}
	}
	return all, nil
}

// DeleteSubscription implements [driver.Keeper]: the queues of the subscription
// behind topics, and their dead letter queues. While messages are in the hands of
// somebody it is ErrInUse.
func (d *Driver) DeleteSubscription(ctx context.Context, name string) (deleted []string, err error) {
	if !d.calls.Enter() {
		return nil, errClosed
	}
	defer d.calls.Leave()
	queues, err := d.subscriptionQueues(ctx)
	if err != nil {
		return nil, err
	}
	queues = slices.DeleteFunc(queues, func(q subscriptionQueue) bool { return q.subscription != name })
	for _, q := range queues {
		about, err := d.options.Client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &q.url, AttributeNames: []types.QueueAttributeName{"ApproximateNumberOfMessagesNotVisible"}})
		if err != nil && !missing(err) {
			return nil, fmt.Errorf("sqs: queue %s: %w", nameOf(q.url), err)
		}
		if about != nil && cmp.Or(about.Attributes["ApproximateNumberOfMessagesNotVisible"], "0") != "0" {
			return nil, fmt.Errorf("sqs: queue %s has messages in hand: %w", nameOf(q.url), driver.ErrInUse)
		}
	}
	for _, q := range queues {
		if _, err := d.options.Topics.Unsubscribe(ctx, &sns.UnsubscribeInput{SubscriptionArn: &q.link}); err != nil {
			return deleted, fmt.Errorf("sqs: topic %s: unsubscribing %s: %w", lastPart(q.topic), nameOf(q.url), err)
		}
		for _, queue := range []string{nameOf(q.url), deadName(nameOf(q.url))} {
			found, err := d.options.Client.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &queue})
			if missing(err) {
				continue
			}
			if err == nil {
				_, err = d.options.Client.DeleteQueue(ctx, &sqs.DeleteQueueInput{QueueUrl: found.QueueUrl})
			}
			if err != nil && !missing(err) {
				return deleted, fmt.Errorf("sqs: deleting queue %s: %w", queue, err)
			}
			deleted = append(deleted, "queue "+queue)
		}
	}
	gone, err := d.deleteDeclarations(ctx, name)
	if err != nil {
		return deleted, fmt.Errorf("sqs: subscription %s: %w", name, err)
	}
	if gone {
		deleted = append(deleted, "queue "+d.DeclarationsName(name))
	}
	return deleted, nil
}

// Rename implements [driver.Renamer]. What the releases of the former name handled is
// moved. Without topics nothing else is kept under the name of a subscription. Behind
// a topic its queue is, and SQS renames none: it is an error while the former one is
// there.
func (d *Driver) Rename(ctx context.Context, former string, s driver.Subscription) (int64, error) {
	if !d.calls.Enter() {
		return 0, errClosed
	}
	defer d.calls.Leave()
	if d.options.Topics != nil {
		for _, channel := range s.Channels {
			n := need{queue: d.QueueName(channel, former)}
			url, err := d.urlOf(ctx, n)
			if err != nil {
				return 0, err
			}
			if url != "" {
				return 0, fmt.Errorf("sqs: subscription %s: queue %s of its former name %s is there, and SQS renames no queue: let the former name read it until it is empty, then `tidings subscription delete %s`",
					s.Name, n.queue, former, former)
			}
		}
	}
	moved, err := d.renameDeclarations(ctx, former, s.Name)
	if err != nil {
		return 0, fmt.Errorf("sqs: subscription %s: what releases of its former name %s handled: %w", s.Name, former, err)
	}
	return moved, nil
}
