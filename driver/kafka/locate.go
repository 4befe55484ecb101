package kafka

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings/driver"
)

// partitions remembers how many partitions the topics of a consumer have.
type partitions struct {
	mu    sync.Mutex
	count map[string]int
	asked time.Time
}

// partitionsAge is how old that may be.
const partitionsAge = time.Minute

var _ driver.Locator = (*consumer)(nil)

// SourceOf implements [driver.Locator]: the partition that the event came from; for
// one that did not come from a topic of this subscription, the one that its key is
// published to.
func (c *consumer) SourceOf(channel, key, position string) string {
	topic, rest, found := strings.Cut(position, "/")
	if number, _, more := strings.Cut(rest, "/"); found && more && c.channels[topic] != "" {
		if _, err := strconv.ParseInt(number, 10, 32); err == nil {
			return topic + "/" + number
		}
	}
	topic = c.driver.BrokerName(channel)
	count := c.partitionsOf(topic)
	if count == 0 {
		return topic + "/" // not known now: nobody owns that
	}
	number := kgo.StickyKeyPartitioner(nil).ForTopic(topic).Partition(&kgo.Record{Topic: topic, Key: []byte(key)}, count)
	return sourceName(topic, int32(number))
}

// partitionsOf returns how many partitions a topic has, or 0 when the broker does
// not say.
func (c *consumer) partitionsOf(topic string) int {
	c.partitions.mu.Lock()
	defer c.partitions.mu.Unlock()
	if count := c.partitions.count[topic]; count > 0 && time.Since(c.partitions.asked) < partitionsAge {
		return count
	}
	ctx, cancel := context.WithTimeout(c.life, 5*time.Second)
	defer cancel()
	details, err := c.driver.admin.ListTopics(ctx, c.topics...)
	if err != nil {
		return 0
	}
	c.partitions.count, c.partitions.asked = make(map[string]int), time.Now()
	for name, detail := range details {
		c.partitions.count[name] = len(detail.Partitions)
	}
	return c.partitions.count[topic]
}
