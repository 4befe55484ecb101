package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/window"
)

// Settle implements [driver.Consumer]: it marks what is finished and returns
// when a commit that shows it was acknowledged. A released event is delivered
// again by this consumer while it owns the partition, and by the next owner
// after it.
func (c *consumer) Settle(ctx context.Context, settlements []driver.Settlement) error {
	var locked *partition
	var touched []*partition
	for n := range settlements {
		s := &settlements[n]
		at, ok := s.Ref.(*place)
		if !ok || at.partition.consumer != c || s.Source != at.partition.source {
			continue
		}
		if p := at.partition; p != locked {
			if locked != nil {
				locked.mu.Unlock()
			}
			locked = p
			p.mu.Lock()
			touched = append(touched, p)
		}
		if locked.gone || locked.window == nil {
			continue
		}
		switch s.Outcome {
		case driver.Finished:
			if locked.window.Finish(at.record.Offset, at.size) {
				locked.version++
			}
		case driver.Released:
			known := slices.ContainsFunc(locked.returned, func(r returned) bool { return r.place == at })
			if !known && at.record.Offset >= locked.window.Base && !locked.window.Has(at.record.Offset) {
				locked.returned = append(locked.returned, returned{at, time.Now().Add(s.After)})
			}
		}
	}
	if locked != nil {
		locked.mu.Unlock()
	}
	dirty := false
	for _, p := range touched {
		p.mu.Lock()
		dirty = dirty || !p.gone && p.version != p.committed
		if len(p.returned) > 0 || (p.paused || len(p.backlog) > 0) && p.window != nil && p.roomy() {
			c.wake()
		}
		p.mu.Unlock()
	}
	if !dirty {
		return nil
	}
	return c.commit(ctx, true)
}

// commit stores the windows that changed. Commits go one at a time and, unless
// there is no time to lose, no more often than the interval says.
func (c *consumer) commit(ctx context.Context, gather bool) error {
	select {
	case c.committing <- struct{}{}:
		defer func() { <-c.committing }()
	case <-ctx.Done():
		return fmt.Errorf("kafka: subscription %s: committing: %w", c.subscription.Name, context.Cause(ctx))
	}
	if wait := c.driver.options.CommitInterval - time.Since(c.lastCommit); gather && wait > 0 {
		if err := pause(ctx, wait); err != nil {
			return fmt.Errorf("kafka: subscription %s: committing: %w", c.subscription.Name, err)
		}
	}
	offsets := make(map[string]map[int32]kgo.EpochOffset)
	metadata := make(map[string]map[int32]string)
	versions := make(map[*partition]int64)
	for _, p := range c.all() {
		p.mu.Lock()
		if !p.gone && p.window != nil && p.version != p.committed {
			if offsets[p.topic] == nil {
				offsets[p.topic], metadata[p.topic] = make(map[int32]kgo.EpochOffset), make(map[int32]string)
			}
			offsets[p.topic][p.number] = kgo.EpochOffset{Epoch: p.leader, Offset: p.window.Base}
			metadata[p.topic][p.number] = window.Encode(p.window.Base, p.window.Finished())
			versions[p] = p.version
		}
		p.mu.Unlock()
	}
	if len(versions) == 0 {
		return nil
	}
	c.lastCommit = time.Now()
	failed, err := c.send(ctx, offsets, metadata, nil)
	var errs []error
	for p, version := range versions {
		cause := err
		if cause == nil {
			cause = failed[p.topic][p.number]
		}
		p.mu.Lock()
		if cause == nil {
			p.committed = max(p.committed, version)
		} else if !p.gone {
			errs = append(errs, c.driver.explain(fmt.Sprintf("subscription %s: committing %s", c.subscription.Name, p.source.Name), cause))
		}
		p.mu.Unlock()
	}
	if len(errs) > 3 {
		errs = append(errs[:3], fmt.Errorf("kafka: and %d more", len(errs)-3))
	}
	return errors.Join(errs...)
}

// send commits offsets with their metadata as a member of the group and returns
// what failed, by partition or as a whole. Nothing is sent where check, if there is
// one, returns an error.
func (c *consumer) send(ctx context.Context, offsets map[string]map[int32]kgo.EpochOffset, metadata map[string]map[int32]string, check func(*kmsg.OffsetCommitRequest) error) (failed map[string]map[int32]error, err error) {
	with := kgo.PreCommitFnContext(ctx, func(request *kmsg.OffsetCommitRequest) error {
		for t := range request.Topics {
			topic := &request.Topics[t]
			for p := range topic.Partitions {
				text := metadata[topic.Topic][topic.Partitions[p].Partition]
				topic.Partitions[p].Metadata = &text
			}
		}
		if check != nil {
			return check(request)
		}
		return nil
	})
	c.client.CommitOffsetsSync(with, offsets, func(_ *kgo.Client, request *kmsg.OffsetCommitRequest, response *kmsg.OffsetCommitResponse, whole error) {
		if whole != nil {
			err = whole
			return
		}
		failed = make(map[string]map[int32]error)
		for _, topic := range request.Topics {
			failed[topic.Topic] = make(map[int32]error)
			for _, p := range topic.Partitions {
				failed[topic.Topic][p.Partition] = errNoAnswer
			}
		}
		for _, topic := range response.Topics {
			name := topic.Topic
			if name == "" { // newer brokers name topics by id
				if at := slices.IndexFunc(request.Topics, func(t kmsg.OffsetCommitRequestTopic) bool { return t.TopicID == topic.TopicID }); at >= 0 {
					name = request.Topics[at].Topic
				}
			}
			for _, p := range topic.Partitions {
				if failed[name] != nil {
					failed[name][p.Partition] = kerr.ErrorForCode(p.ErrorCode)
				}
			}
		}
	})
	return failed, err
}

var errNoAnswer = errors.New("the broker's answer does not mention the partition")
