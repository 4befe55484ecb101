package kafka

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/window"
)

// onAssigned runs when the group has given this member partitions, perhaps
// none. Their positions are not known yet.
func (c *consumer) onAssigned(_ context.Context, _ *kgo.Client, added map[string][]int32) {
	<-c.started
	if c.closing.Load() {
		return
	}
	if len(added) > 0 {
		c.quiesce()
	}
	var sources []driver.Source
	c.ownership.Lock()
	for topic, numbers := range added {
		for _, number := range numbers {
			name := sourceName(topic, number)
			c.epochs[name]++
			p := &partition{
				consumer: c, topic: topic, channel: c.channels[topic], number: number, position: -1, leader: -1, epoch: -1,
				source: driver.Source{Name: name, Epoch: c.epochs[name]},
			}
			if c.owned[topic] == nil {
				c.owned[topic] = make(map[int32]*partition)
			}
			c.owned[topic][number] = p
			sources = append(sources, p.source)
		}
	}
	first := !c.assigned
	c.assigned = true
	c.ownership.Unlock()
	for _, source := range sources {
		c.sink.Report(driver.Report{Kind: driver.ReportAssigned, Source: source})
	}
	if first {
		c.joins.Go(c.announce)
	}
}

// onFetched keeps what the broker has stored for assigned partitions. It may run
// again for the same ones before anything of them was delivered.
func (c *consumer) onFetched(_ context.Context, _ *kgo.Client, response *kmsg.OffsetFetchResponse) error {
	for _, group := range response.Groups {
		for _, topic := range group.Topics {
			for _, stored := range topic.Partitions {
				p := c.lookup(topic.Topic, stored.Partition)
				if p == nil || stored.ErrorCode != 0 {
					continue
				}
				metadata := ""
				if stored.Metadata != nil {
					metadata = *stored.Metadata
				}
				p.stored(stored.Offset, stored.LeaderEpoch, metadata)
			}
		}
	}
	return nil
}

func (p *partition) stored(offset int64, epoch int32, metadata string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fetched, p.position, p.epoch, p.metadata = true, max(offset, -1), epoch, metadata
}

// begin makes the window. Without a position (-1) it begins at the first record
// that comes.
func (p *partition) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leader = p.epoch
	p.window = window.New(max(p.position, 0), window.Decode(p.position, p.metadata), p.consumer.maxEvents)
	p.backlog, p.returned = nil, nil
}

// adjust tells the client where to begin in each assigned partition.
func (c *consumer) adjust(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	if err := c.settlePositions(ctx, offsets); err != nil {
		return nil, err
	}
	for topic, numbers := range offsets {
		for number := range numbers {
			p := c.lookup(topic, number)
			if p == nil {
				continue
			}
			p.begin()
			if p.position >= 0 {
				numbers[number] = kgo.NewOffset().At(p.position).WithEpoch(p.epoch)
			} else {
				numbers[number] = kgo.NewOffset().AtStart()
			}
		}
	}
	return offsets, nil
}

// onRevoked runs when partitions are to be given up in good order: the engine
// finishes what runs and settles it, then the rest is committed.
func (c *consumer) onRevoked(_ context.Context, _ *kgo.Client, given map[string][]int32) {
	partitions := c.find(given)
	if len(partitions) == 0 {
		return
	}
	if !c.closing.Load() {
		sources := make([]driver.Source, 0, len(partitions))
		for _, p := range partitions {
			p.mu.Lock()
			p.revoking = true
			p.mu.Unlock()
			sources = append(sources, p.source)
		}
		o := &c.driver.options
		bound, cancel := context.WithTimeout(c.life, o.RebalanceTimeout-o.RevokeMargin)
		c.sink.Revoke(bound, sources)
		cancel()
		last, cancel := context.WithTimeout(c.life, o.RevokeMargin)
		if err := c.commit(last, false); err != nil {
			c.sink.Report(driver.Report{Kind: driver.ReportWarning, Err: err, Text: "the last commit of partitions that were given up failed: finished events of them come again"})
		}
		cancel()
	}
	c.drop(partitions, driver.ReportRevoked)
}

// onLost runs when partitions are gone already: nothing of them is committed.
func (c *consumer) onLost(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
	partitions := c.find(lost)
	if len(partitions) == 0 {
		return
	}
	sources := make([]driver.Source, 0, len(partitions))
	for _, p := range partitions {
		p.mu.Lock()
		p.gone = true
		p.mu.Unlock()
		sources = append(sources, p.source)
	}
	if !c.closing.Load() {
		c.sink.Lose(sources)
	}
	c.drop(partitions, driver.ReportLost)
}

func (c *consumer) find(named map[string][]int32) (partitions []*partition) {
	c.ownership.Lock()
	defer c.ownership.Unlock()
	for topic, numbers := range named {
		for _, number := range numbers {
			if p := c.owned[topic][number]; p != nil {
				partitions = append(partitions, p)
			}
		}
	}
	return partitions
}

func (c *consumer) drop(partitions []*partition, kind driver.ReportKind) {
	resume := make(map[string][]int32)
	c.ownership.Lock()
	for _, p := range partitions {
		if c.owned[p.topic][p.number] == p {
			delete(c.owned[p.topic], p.number)
		}
		p.mu.Lock()
		p.gone = true
		p.backlog, p.returned = nil, nil
		if p.paused { // the client remembers a pause beyond the ownership
			resume[p.topic] = append(resume[p.topic], p.number)
		}
		p.mu.Unlock()
	}
	c.ownership.Unlock()
	if len(resume) > 0 {
		c.client.ResumeFetchPartitions(resume)
	}
	if c.closing.Load() {
		return
	}
	for _, p := range partitions {
		c.sink.Report(driver.Report{Kind: kind, Source: p.source})
	}
}

// announce says that the subscription takes part: it was given its share, and
// every topic has a stored position, so that nothing published from now on can
// be missed.
func (c *consumer) announce() {
	for {
		known, err := c.knownTopics(c.life)
		if err == nil && len(known) == len(c.topics) {
			c.sink.Joined()
			c.connections.watch()
			return
		}
		if pause(c.life, 20*time.Millisecond) != nil {
			return
		}
	}
}

// errNoStart explains what a new subscription has to say.
func (c *consumer) errNoStart(topics []string) error {
	return fmt.Errorf("kafka: subscription %s is new: group %s has no position in %v. Say where it starts: StartAt Beginning reads everything that the topic still has, StartAt Now only what is published from now on",
		c.subscription.Name, c.group, topics)
}
