package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings/driver"
)

// A topic that the group has no position in gets one before anything is
// delivered, for all its partitions in one commit: so a crash before the first
// settlement loses nothing, and a partition that is added to the topic later is
// told from one of a new subscription: it is read from its beginning. The owner
// of partition 0 makes that commit, because a group has one such owner at a
// time; the others wait for it.

// settlePositions gives every partition among offsets a position, or none for
// one that was added later.
func (c *consumer) settlePositions(ctx context.Context, offsets map[string]map[int32]kgo.Offset) error {
	for {
		missing := make(map[string][]*partition)
		for topic, numbers := range offsets {
			for number := range numbers {
				p := c.lookup(topic, number)
				if p == nil {
					continue
				}
				p.mu.Lock()
				fetched, position := p.fetched, p.position
				p.mu.Unlock()
				if !fetched {
					return fmt.Errorf("kafka: subscription %s: the broker's answer does not mention the position of %s", c.subscription.Name, p.source.Name)
				}
				if position < 0 {
					missing[topic] = append(missing[topic], p)
				}
			}
		}
		if len(missing) == 0 {
			return nil
		}
		stored, err := c.storedPositions(ctx)
		if err != nil {
			return err
		}
		waiting := false
		for topic, partitions := range missing {
			if known := stored[topic]; len(known) > 0 {
				for _, p := range partitions {
					if at, ok := known[p.number]; ok {
						p.stored(at.At, at.LeaderEpoch, at.Metadata)
					}
				}
				continue
			}
			if !slices.ContainsFunc(partitions, func(p *partition) bool { return p.number == 0 }) {
				waiting = true
				continue
			}
			if err := c.pin(ctx, topic, partitions); err != nil {
				return err
			}
		}
		if !waiting {
			return nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// pin commits where the subscription starts in a topic.
func (c *consumer) pin(ctx context.Context, topic string, partitions []*partition) error {
	admin := kadm.NewClient(c.client)
	var listed kadm.ListedOffsets
	var err error
	switch start := c.subscription.StartAt; start.Mode {
	case driver.StartBeginning:
		listed, err = admin.ListStartOffsets(ctx, topic)
	case driver.StartNow:
		listed, err = admin.ListEndOffsets(ctx, topic)
	case driver.StartTime:
		listed, err = admin.ListOffsetsAfterMilli(ctx, start.Time.UnixMilli(), topic)
	default:
		err := c.errNoStart([]string{topic})
		c.fail(err)
		return err
	}
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return fmt.Errorf("kafka: subscription %s: where topic %s starts: %w", c.subscription.Name, topic, err)
	}
	offsets := map[string]map[int32]kgo.EpochOffset{topic: {}}
	for number, at := range listed[topic] {
		offsets[topic][number] = kgo.EpochOffset{Epoch: -1, Offset: at.Offset}
	}
	err = untilCoordinated(ctx, func() error {
		failed, err := c.send(ctx, offsets, nil, nil)
		for _, cause := range failed[topic] {
			err = errors.Join(err, cause)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("kafka: subscription %s: storing where topic %s starts: %w", c.subscription.Name, topic, err)
	}
	for _, p := range partitions {
		if at, ok := offsets[topic][p.number]; ok {
			p.stored(at.Offset, -1, "")
		}
	}
	return nil
}

// storedPositions is what the group has committed, by topic and partition.
func (c *consumer) storedPositions(ctx context.Context) (map[string]map[int32]kadm.Offset, error) {
	return c.driver.storedPositions(ctx, c.group, c.topics)
}

// coordinatorTime is how long a broker may take to have a coordinator for a
// group: a new cluster makes the topic of positions when the first one asks.
const coordinatorTime = 30 * time.Second

// untilCoordinated repeats a request to a group's coordinator while the broker
// says that it will answer soon.
func untilCoordinated(ctx context.Context, request func() error) error {
	for began := time.Now(); ; {
		err := request()
		if err == nil || !kerr.IsRetriable(err) || time.Since(began) > coordinatorTime || pause(ctx, 100*time.Millisecond) != nil {
			return err
		}
	}
}

func (d *Driver) storedPositions(ctx context.Context, group string, topics []string) (stored map[string]map[int32]kadm.Offset, err error) {
	err = untilCoordinated(ctx, func() error {
		stored, err = d.askPositions(ctx, group, topics)
		return err
	})
	return stored, err
}

func (d *Driver) askPositions(ctx context.Context, group string, topics []string) (map[string]map[int32]kadm.Offset, error) {
	answer, err := d.admin.FetchOffsets(ctx, group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, d.explain("positions of group "+group, err)
	}
	stored := make(map[string]map[int32]kadm.Offset)
	var failed error // a position that cannot be read is not one that is missing
	answer.Each(func(o kadm.OffsetResponse) {
		if !slices.Contains(topics, o.Topic) {
			return
		}
		if o.Err != nil {
			failed = d.explain(fmt.Sprintf("position of group %s in %s", group, sourceName(o.Topic, o.Partition)), o.Err)
			return
		}
		if o.At < 0 {
			return
		}
		if stored[o.Topic] == nil {
			stored[o.Topic] = make(map[int32]kadm.Offset)
		}
		stored[o.Topic][o.Partition] = o.Offset
	})
	return stored, failed
}

// knownTopics lists the topics in which the group has a position.
func (c *consumer) knownTopics(ctx context.Context) ([]string, error) {
	stored, err := c.storedPositions(ctx)
	if err != nil {
		return nil, err
	}
	var known []string
	for _, topic := range c.topics {
		if len(stored[topic]) > 0 {
			known = append(known, topic)
		}
	}
	return known, nil
}
