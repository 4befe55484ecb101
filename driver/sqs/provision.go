package sqs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

const (
	// retention of queues that the driver makes: the longest that SQS has.
	retention = 14 * 24 * time.Hour
	// maxReceives is after how many receives SQS itself moves a message to the
	// dead letter queue.
	maxReceives = 1000
)

// destination is where messages go, or come from: a queue, or a topic.
type destination struct {
	name  string
	url   string // of a queue
	topic string // ARN of a topic
	limit int    // bytes of a message and of a batch
}

func (d *destination) key() string { return d.url + d.topic }

// once finds something that is remembered, one search at a time.
func (d *Driver) once(what string, find func() (*destination, error)) (*destination, error) {
	d.mu.Lock()
	if found := d.found[what]; found != nil {
		d.mu.Unlock()
		return found, nil
	}
	if d.finding[what] == nil {
		d.finding[what] = &sync.Mutex{}
	}
	turn := d.finding[what]
	d.mu.Unlock()
	turn.Lock()
	defer turn.Unlock()
	d.mu.Lock()
	found := d.found[what]
	d.mu.Unlock()
	if found != nil {
		return found, nil
	}
	found, err := find()
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.found[what] = found
	d.mu.Unlock()
	return found, nil
}

// resolve asks for the caller's own queue of an event type; nil when there is none.
func (d *Driver) resolve(ctx context.Context, eventType string) (*destination, error) {
	if d.options.QueueURL == nil || eventType == "" {
		return nil, nil
	}
	found, err := d.once("type "+eventType, func() (*destination, error) {
		url, err := d.options.QueueURL(ctx, eventType)
		if err != nil {
			return nil, fmt.Errorf("Options.QueueURL of %s: %w", eventType, err)
		}
		if url == "" {
			return &destination{}, nil
		}
		return &destination{name: nameOf(url), url: url, limit: queueLimit}, nil
	})
	if err != nil || found.url == "" {
		return nil, err
	}
	return found, nil
}

// target is where a message is sent.
func (d *Driver) target(ctx context.Context, channel, eventType string) (*destination, error) {
	own, err := d.resolve(ctx, eventType)
	if own != nil || err != nil {
		return own, err
	}
	if d.options.Topics != nil {
		return d.topic(ctx, channel)
	}
	return d.queue(ctx, d.BrokerName(channel))
}

// queue finds a queue by its name, and makes it.
func (d *Driver) queue(ctx context.Context, name string) (*destination, error) {
	return d.once("queue "+name, func() (*destination, error) {
		found, err := d.options.Client.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &name})
		if err == nil {
			return &destination{name: name, url: *found.QueueUrl, limit: queueLimit}, nil
		}
		if !missing(err) {
			return nil, fmt.Errorf("queue %s: %w", name, err)
		}
		if d.options.Provision == ProvisionNever {
			return nil, fmt.Errorf("queue %s does not exist, and Options.Provision is ProvisionNever: %w", name, err)
		}
		dead, err := d.createQueue(ctx, deadName(name), nil)
		if err != nil {
			return nil, err
		}
		arn, err := d.arn(ctx, dead)
		if err != nil {
			return nil, err
		}
		policy, err := json.Marshal(map[string]string{"deadLetterTargetArn": arn, "maxReceiveCount": strconv.Itoa(maxReceives)})
		if err != nil {
			return nil, fmt.Errorf("queue %s: %w", name, err)
		}
		url, err := d.createQueue(ctx, name, map[string]string{
			"RedrivePolicy": string(policy), "VisibilityTimeout": strconv.Itoa(int(d.options.VisibilityTimeout / time.Second)),
		})
		if err != nil {
			return nil, err
		}
		return &destination{name: name, url: url, limit: queueLimit}, nil
	})
}

func (d *Driver) createQueue(ctx context.Context, name string, attributes map[string]string) (url string, err error) {
	if attributes == nil {
		attributes = make(map[string]string)
	}
	attributes["MessageRetentionPeriod"] = strconv.Itoa(int(retention / time.Second))
	if isFIFO(name) {
		attributes["FifoQueue"] = "true"
	}
	made, err := d.options.Client.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: &name, Attributes: attributes})
	if err == nil {
		return *made.QueueUrl, nil
	}
	// Another instance may have made it at the same time, with another setting.
	if found, failure := d.options.Client.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &name}); failure == nil {
		return *found.QueueUrl, nil
	}
	return "", fmt.Errorf("create queue %s: %w", name, err)
}

func (d *Driver) arn(ctx context.Context, url string) (string, error) {
	about, err := d.options.Client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &url, AttributeNames: []types.QueueAttributeName{"QueueArn"}})
	if err != nil {
		return "", fmt.Errorf("queue %s: %w", nameOf(url), err)
	}
	return about.Attributes["QueueArn"], nil
}

// topic finds the topic of a channel, and makes it.
func (d *Driver) topic(ctx context.Context, channel string) (*destination, error) {
	name := d.BrokerName(channel)
	return d.once("topic "+name, func() (*destination, error) {
		if d.options.Provision == ProvisionNever {
			for pages := sns.NewListTopicsPaginator(d.options.Topics, &sns.ListTopicsInput{}); pages.HasMorePages(); {
				page, err := pages.NextPage(ctx)
				if err != nil {
					return nil, fmt.Errorf("topics: %w", err)
				}
				for _, t := range page.Topics {
					if arn := aws.ToString(t.TopicArn); arn[len(arn)-min(len(arn), len(name)+1):] == ":"+name {
						return &destination{name: name, topic: arn, limit: topicLimit}, nil
					}
				}
			}
			return nil, fmt.Errorf("topic %s does not exist, and Options.Provision is ProvisionNever", name)
		}
		attributes := make(map[string]string)
		if isFIFO(name) {
			attributes["FifoTopic"] = "true"
		}
		made, err := d.options.Topics.CreateTopic(ctx, &sns.CreateTopicInput{Name: &name, Attributes: attributes})
		if err != nil {
			return nil, fmt.Errorf("create topic %s: %w", name, err)
		}
		return &destination{name: name, topic: *made.TopicArn, limit: topicLimit}, nil
	})
}

// follow makes the queue of a subscription get what is published to a topic.
func (d *Driver) follow(ctx context.Context, topic, queue *destination) error {
	if d.options.Provision == ProvisionNever {
		return nil
	}
	arn, err := d.arn(ctx, queue.url)
	if err != nil {
		return err
	}
	policy, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": []any{map[string]any{
		"Sid": "events", "Effect": "Allow", "Principal": map[string]string{"Service": "sns.amazonaws.com"}, "Action": "sqs:SendMessage", "Resource": arn,
		"Condition": map[string]any{"ArnEquals": map[string]string{"aws:SourceArn": topic.topic}},
	}}})
	if err != nil {
		return fmt.Errorf("queue %s: %w", queue.name, err)
	}
	_, err = d.options.Client.SetQueueAttributes(ctx, &sqs.SetQueueAttributesInput{QueueUrl: &queue.url, Attributes: map[string]string{"Policy": string(policy)}})
	if err != nil {
		return fmt.Errorf("queue %s: letting topic %s send to it: %w", queue.name, topic.name, err)
	}
	_, err = d.options.Topics.Subscribe(ctx, &sns.SubscribeInput{
		TopicArn: &topic.topic, Protocol: aws.String("sqs"), Endpoint: &arn, Attributes: map[string]string{"RawMessageDelivery": "true"}, ReturnSubscriptionArn: true,
	})
	if err != nil {
		return fmt.Errorf("topic %s: subscribing queue %s: %w", topic.name, queue.name, err)
	}
	return nil
}

// errNoDead says that a queue has nowhere for its dead letters.
var errNoDead = errors.New("no dead letter queue")

// dead finds the dead letter queue of a queue: the target of its redrive, or the
// one of its name.
func (d *Driver) dead(ctx context.Context, queue *destination) error {
	d.mu.Lock()
	known := d.deadOf[queue.name] != ""
	d.mu.Unlock()
	if known {
		return nil
	}
	about, err := d.options.Client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &queue.url, AttributeNames: []types.QueueAttributeName{"RedrivePolicy"}})
	if err != nil {
		return fmt.Errorf("queue %s: %w", queue.name, err)
	}
	name := deadName(queue.name)
	var policy struct {
		Target string `json:"deadLetterTargetArn"`
	}
	if json.Unmarshal([]byte(about.Attributes["RedrivePolicy"]), &policy) == nil && policy.Target != "" {
		name = lastPart(policy.Target)
	}
	var url string
	found, err := d.options.Client.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &name})
	switch {
	case err == nil:
		url = *found.QueueUrl
	case !missing(err):
		return fmt.Errorf("queue %s: %w", name, err)
	case d.options.Provision == ProvisionNever:
		return fmt.Errorf("queue %s: %w: make %s, or let the driver", queue.name, errNoDead, name)
	default:
		if url, err = d.createQueue(ctx, name, nil); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deadOf[queue.name] = url
	return nil
}

// lastPart is what stands behind the last colon.
func lastPart(arn string) string {
	for n := len(arn) - 1; n >= 0; n-- {
		if arn[n] == ':' {
			return arn[n+1:]
		}
	}
	return arn
}
