package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tidings-go/tidings/driver"
)

// A broker deletes positions of a group whose members do not read the topic any more,
// offsets.retention.minutes after their last commit, although the group is alive.
// A release that was taken back for longer would lose its place in a channel that
// only it knows, and begin at StartAt again, which may skip events. So a member
// commits such positions again, as they are, while nobody reads the topic.

const (
	// keepEvery is how often, and keepTime bounds one time.
	keepEvery = time.Hour
	keepTime  = time.Minute
)

// keepLoop keeps positions until ctx ends.
func (c *consumer) keepLoop(ctx context.Context) {
	for wait := c.driver.keepEvery / 60; pause(ctx, wait) == nil; wait = c.driver.keepEvery {
		asking, cancel := context.WithTimeout(ctx, keepTime)
		_, err := c.keepPositions(asking)
		cancel()
		if err != nil && ctx.Err() == nil && !errors.Is(err, errRegrouped) {
			c.sink.Report(driver.Report{Kind: driver.ReportWarning, Err: err, Text: "the positions of channels that this release does not read could not be kept: the broker deletes them when they are older than its offsets.retention.minutes"})
		}
	}
}

// errRegrouped says that the members have changed meanwhile: one of them may read
// what nobody read.
var errRegrouped = errors.New("the group has changed")

// keepPositions commits again what the group has stored in topics that another
// release of the subscription declared and no member reads. It returns how many
// partitions these are.
//
// It overwrites nobody's commit: the members are asked for after the generation was
// read, the commit names that generation, and whoever begins to read the topic has
// joined a later one and fetches its positions in there.
func (c *consumer) keepPositions(ctx context.Context) (kept int, err error) {
	_, generation := c.client.GroupMetadata()
	if generation < 0 {
		return 0, errRegrouped
	}
	topics, err := c.unread(ctx)
	if err != nil || len(topics) == 0 {
		return 0, err
	}
	stored, err := c.driver.storedPositions(ctx, c.group, topics)
	if err != nil || len(stored) == 0 {
		return 0, err
	}
	offsets := make(map[string]map[int32]kgo.EpochOffset)
	metadata := make(map[string]map[int32]string)
	for topic, numbers := range stored {
		offsets[topic], metadata[topic] = make(map[int32]kgo.EpochOffset), make(map[int32]string)
		for number, at := range numbers {
			offsets[topic][number] = kgo.EpochOffset{Epoch: at.LeaderEpoch, Offset: at.At}
			metadata[topic][number] = at.Metadata
			kept++
		}
	}
	failed, err := c.send(ctx, offsets, metadata, func(request *kmsg.OffsetCommitRequest) error {
		if request.Generation != generation {
			return errRegrouped
		}
		return nil
	})
	for _, numbers := range failed {
		for _, cause := range numbers {
			if err == nil {
				err = cause
			}
		}
	}
	if err != nil {
		return 0, fmt.Errorf("kafka: subscription %s: keeping the positions in topics that no instance reads: %w", c.subscription.Name, err)
	}
	return kept, nil
}

// unread are the topics of declared channels that no member of the group reads.
func (c *consumer) unread(ctx context.Context) (topics []string, err error) {
	declared, err := c.driver.Declared(ctx, c.subscription.Name)
	if err != nil {
		return nil, err
	}
	for _, one := range declared {
		if topic := c.driver.BrokerName(one.Channel); c.channels[topic] == "" && !slices.Contains(topics, topic) {
			topics = append(topics, topic)
		}
	}
	if len(topics) == 0 {
		return nil, nil
	}
	groups, err := c.driver.admin.DescribeGroups(ctx, c.group)
	if err != nil {
		return nil, c.driver.explain("members of group "+c.group, err)
	}
	for _, m := range groups[c.group].Members {
		joined, known := m.Join.AsConsumer()
		if !known {
			return nil, nil // it may read any of them
		}
		topics = slices.DeleteFunc(topics, func(topic string) bool { return slices.Contains(joined.Topics, topic) })
	}
	return topics, groups[c.group].Err
}
