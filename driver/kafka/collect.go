package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings/driver"
)

// collectors is the name of the consumer group that reads dead letters, as that of
// a subscription.
const collectors = "tidings.dead-letters"

var _ driver.DeadLetterReader = (*Driver)(nil)

// ReadDeadLetters implements [driver.DeadLetterReader]: it reads the topics of
// [Driver.DeadLetterName], which exist where the subscriptions do, from their
// beginning, in a consumer group of its own. What keep has stored is committed.
func (d *Driver) ReadDeadLetters(ctx context.Context, subscriptions []driver.Subscription, keep func(ctx context.Context, letters []driver.DeadLetter) error) error {
	if !d.enter() {
		return errClosed
	}
	defer d.publishing.Done()
	type origin struct{ subscription, channel string }
	origins := make(map[string]origin)
	var topics []string
	for _, s := range subscriptions {
		for _, channel := range s.Channels {
			topic := d.DeadLetterName(channel, s.Name)
			origins[topic] = origin{s.Name, channel}
			topics = append(topics, topic)
		}
	}
	slices.Sort(topics)
	client, err := kgo.NewClient(d.clientOptions(
		kgo.ConsumerGroup(d.GroupName(collectors)), kgo.ConsumeTopics(topics...), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.BlockRebalanceOnPoll(),
	)...)
	if err != nil {
		return fmt.Errorf("kafka: dead letters: Options: %w", err)
	}
	defer client.CloseAllowingRebalance()
	for failures := 0; ctx.Err() == nil; client.AllowRebalance() {
		fetches := client.PollRecords(ctx, 500)
		if err := fetches.Err0(); errors.Is(err, kgo.ErrClientClosed) {
			return nil
		}
		records := fetches.Records() // the client retries what it could not fetch
		if len(records) == 0 {
			continue
		}
		letters := make([]driver.DeadLetter, 0, len(records))
		for _, r := range records {
			from := origins[r.Topic]
			letters = append(letters, collected(r, from.subscription, from.channel))
		}
		// It is the same again until it is kept: a letter must not be passed over.
		for err := keep(ctx, letters); err != nil; err = keep(ctx, letters) {
			failures++
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(min(250*time.Millisecond<<min(failures, 10), 30*time.Second)):
			}
		}
		failures = 0
		committing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		err := client.CommitRecords(committing, records...)
		cancel()
		if err != nil && !errors.Is(err, kerr.IllegalGeneration) && ctx.Err() == nil && d.options.Logger != nil {
			d.options.Logger.WarnContext(ctx, "kafka: collected dead letters could not be committed and are read again", "error", d.explain("group "+d.GroupName(collectors), err))
		}
	}
	return nil
}

// collected reads a record of a topic of dead letters.
func collected(r *kgo.Record, subscription, channel string) driver.DeadLetter {
	headers := make(driver.Headers, 0, len(r.Headers))
	for _, h := range r.Headers {
		headers = append(headers, driver.Header{Name: h.Key, Value: string(h.Value)})
	}
	l, _ := driver.ParseDeadLetter(headers, r.Value) // what is malformed is left out
	l.Subscription, l.Channel = cmp.Or(l.Subscription, subscription), cmp.Or(l.Channel, channel)
	l.AggregateID = cmp.Or(l.AggregateID, strings.ToValidUTF8(string(r.Key), "\uFFFD"))
	l.Reason = cmp.Or(l.Reason, "unknown")
	if l.ID == "" && l.Type == "" {
		l.ID = fmt.Sprint(r.Topic, "/", r.Partition, "/", r.Offset)
	}
	if l.FailedAt.IsZero() {
		l.FailedAt = r.Timestamp.UTC()
	}
	return l
}
