package sqs

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/tidings-go/tidings/driver"
)

var _ driver.DeadLetterReader = (*Driver)(nil)

// deadQueue is one dead letter queue, with the subscriptions whose queues it serves.
type deadQueue struct {
	url           string
	name          string
	channel       string
	subscriptions []driver.Subscription
}

// ReadDeadLetters implements [driver.DeadLetterReader]: it receives from the dead
// letter queues of the queues that the subscriptions read, and deletes what keep has
// stored. A message that SQS itself has moved there (its reason is "redriven by
// broker") is a letter of each subscription of its queue that has its type.
func (d *Driver) ReadDeadLetters(ctx context.Context, subscriptions []driver.Subscription, keep func(ctx context.Context, letters []driver.DeadLetter) error) error {
	if !d.calls.Enter() {
		return errClosed
	}
	defer d.calls.Leave()
	queues, err := d.deadQueues(ctx, subscriptions)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("sqs: dead letters: %w", err)
	}
	var all sync.WaitGroup
	for _, q := range queues {
		all.Go(func() { d.collect(ctx, q, keep) })
	}
	all.Wait()
	return nil
}

// deadQueues finds the dead letter queues of subscriptions, each once.
func (d *Driver) deadQueues(ctx context.Context, subscriptions []driver.Subscription) ([]*deadQueue, error) {
	found := make(map[string]*deadQueue)
	for _, s := range subscriptions {
		for _, channel := range s.Channels {
			sources := make(map[string]*destination)
			for _, eventType := range s.Types {
				if s.ChannelOf(eventType) != channel {
					continue
				}
				where, err := d.resolve(ctx, eventType)
				if err == nil && where == nil {
					name := d.BrokerName(channel)
					if d.options.Topics != nil {
						name = d.QueueName(channel, s.Name)
					}
					where, err = d.queue(ctx, name)
				}
				if err == nil {
					err = d.dead(ctx, where)
				}
				if err != nil {
					return nil, err
				}
				sources[where.name] = where
			}
			for name := range sources {
				d.mu.Lock()
				url := d.deadOf[name]
				d.mu.Unlock()
				q := found[url]
				if q == nil {
					q = &deadQueue{url: url, name: nameOf(url), channel: channel}
					found[url] = q
				}
				if !slices.ContainsFunc(q.subscriptions, func(known driver.Subscription) bool { return known.Name == s.Name }) {
					q.subscriptions = append(q.subscriptions, s)
				}
			}
		}
	}
	queues := make([]*deadQueue, 0, len(found))
	for _, q := range found {
		queues = append(queues, q)
	}
	return queues, nil
}

// collect receives from one dead letter queue until ctx ends.
func (d *Driver) collect(ctx context.Context, q *deadQueue, keep func(ctx context.Context, letters []driver.DeadLetter) error) {
	failures := 0
	for ctx.Err() == nil {
		err := d.collectOnce(ctx, q, keep)
		if err == nil {
			failures = 0
			continue
		}
		failures++
		select {
		case <-ctx.Done():
		case <-time.After(min(250*time.Millisecond<<min(failures, 10), 30*time.Second)):
		}
	}
}

func (d *Driver) collectOnce(ctx context.Context, q *deadQueue, keep func(ctx context.Context, letters []driver.DeadLetter) error) error {
	got, err := d.options.Client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		QueueUrl: &q.url, MaxNumberOfMessages: batchSize, WaitTimeSeconds: int32(d.options.PollWait / time.Second), MessageAttributeNames: []string{"All"},
		VisibilityTimeout:           int32(d.options.VisibilityTimeout / time.Second),
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameSentTimestamp},
	})
	if err != nil || len(got.Messages) == 0 {
		return err
	}
	var letters []driver.DeadLetter
	var done []types.DeleteMessageBatchRequestEntry
	for n := range got.Messages {
		m := &got.Messages[n]
		letters = append(letters, q.letters(m)...)
		done = append(done, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(n)), ReceiptHandle: m.ReceiptHandle})
	}
	if err := keep(ctx, letters); err != nil {
		return err // they are visible again soon
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, err = d.options.Client.DeleteMessageBatch(ending, &sqs.DeleteMessageBatchInput{QueueUrl: &q.url, Entries: done}) // what is not deleted comes again, and is known
	return err
}

// letters are what a message is: one letter, or where SQS moved it one of each
// subscription that has its type.
func (q *deadQueue) letters(m *types.Message) (letters []driver.DeadLetter) {
	in := parse(m)
	l, _ := ParseDeadLetter(in.headers, in.body) // what is malformed is left out
	l.Type, l.Channel, l.Reason = cmp.Or(l.Type, in.eventType), cmp.Or(l.Channel, q.channel), cmp.Or(l.Reason, "unknown")
	if l.ID == "" && l.Type == "" {
		l.ID = q.name + "/" + aws.ToString(m.MessageId)
	}
	l.Position = cmp.Or(l.Position, q.name+"/"+aws.ToString(m.MessageId))
	if l.FailedAt.IsZero() {
		l.FailedAt = milliseconds(m.Attributes["SentTimestamp"])
	}
	if l.Subscription != "" {
		return []driver.DeadLetter{l}
	}
	for _, s := range q.subscriptions {
		if l.Type == "" || slices.Contains(s.Types, l.Type) {
			l.Subscription = s.Name
			letters = append(letters, l)
		}
	}
	if len(letters) == 0 { // nobody has it: somebody must see it
		l.Subscription = q.subscriptions[0].Name
		letters = append(letters, l)
	}
	return letters
}
