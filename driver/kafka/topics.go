package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// topics is what the driver knows of topics that exist.
type topics struct {
	mu    sync.Mutex
	known map[string]*topic
	names sync.Map // channel to topic name
}

// topic is one topic. Its lock is held while it is looked up or created, so
// that concurrent publishers ask once.
type topic struct {
	name string
	mu   chan struct{} // a lock that can be waited for with a context

	state sync.Mutex
	found bool
	limit int // max.message.bytes, 0 when it may not be read
}

func (t *topics) get(name string) *topic {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.known[name]
	if known == nil {
		known = &topic{name: name, mu: make(chan struct{}, 1)}
		t.known[name] = known
	}
	return known
}

func (t *topic) ready() (limit int, found bool) {
	t.state.Lock()
	defer t.state.Unlock()
	return t.limit, t.found
}

// topicKind says what a topic is for, which decides how it is created.
type topicKind int

const (
	eventTopic topicKind = iota
	deadTopic
	declarationTopic
)

// prepare makes sure that a topic exists, creates it where that is allowed, and
// returns its limit on a message. After the first success it costs nothing.
func (d *Driver) prepare(ctx context.Context, name string, kind topicKind) (limit int, err error) {
	t := d.topics.get(name)
	if limit, found := t.ready(); found {
		return limit, nil
	}
	select {
	case t.mu <- struct{}{}:
		defer func() { <-t.mu }()
	case <-ctx.Done():
		return 0, fmt.Errorf("kafka: topic %s: %w", name, context.Cause(ctx))
	}
	if limit, found := t.ready(); found {
		return limit, nil
	}
	found, err := d.exists(ctx, name)
	if err != nil {
		return 0, err
	}
	if !found {
		if !d.options.provisions() {
			return 0, d.missing(name)
		}
		if err := d.create(ctx, name, kind); err != nil {
			return 0, err
		}
	}
	limit = d.maxBytes(ctx, name)
	t.state.Lock()
	defer t.state.Unlock()
	t.found, t.limit = true, limit
	return t.limit, nil
}

func (d *Driver) missing(name string) error {
	return fmt.Errorf("kafka: topic %s does not exist: create it, or set Options.Provision to ProvisionAlways: %w", name, kerr.UnknownTopicOrPartition)
}

// exists asks the broker for one topic, past every cache of the client.
func (d *Driver) exists(ctx context.Context, name string) (bool, error) {
	request := kmsg.NewPtrMetadataRequest()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = &name
	request.Topics = append(request.Topics, topic)
	answer, err := request.RequestWith(ctx, d.client)
	if err != nil {
		return false, d.explain("topic "+name, err)
	}
	for _, topic := range answer.Topics {
		switch err := kerr.ErrorForCode(topic.ErrorCode); {
		case err == nil, errors.Is(err, kerr.LeaderNotAvailable):
			return true, nil
		case !errors.Is(err, kerr.UnknownTopicOrPartition):
			return false, d.explain("topic "+name, err)
		}
	}
	return false, nil
}

// create makes a topic and waits until the broker shows it. A topic that
// somebody else made meanwhile is fine.
func (d *Driver) create(ctx context.Context, name string, kind topicKind) error {
	o := &d.options
	partitions := int32(o.Partitions)
	configs := make(map[string]*string)
	set := func(key string, value int64) {
		text := strconv.FormatInt(value, 10)
		configs[key] = &text
	}
	replicas := int16(o.ReplicationFactor)
	if replicas == 0 {
		replicas = -1
		if !o.loopback() {
			replicas = 3
		}
	}
	if replicas >= 3 {
		set("min.insync.replicas", 2)
	}
	need := o.MaxMessageBytes + batchRoom
	switch kind {
	case deadTopic:
		partitions = 1
		set("retention.ms", -1)
		set("max.message.bytes", int64(max(need, brokerMessageBytes)+deadLetterRoom))
	case declarationTopic:
		partitions = 1
		compact := "compact"
		configs["cleanup.policy"] = &compact
	default:
		if o.Retention > 0 {
			set("retention.ms", o.Retention.Milliseconds())
		}
		if need > brokerMessageBytes {
			set("max.message.bytes", int64(need))
		}
	}
	answer, err := d.admin.CreateTopic(ctx, partitions, replicas, configs, name)
	if err == nil {
		err = answer.Err
	}
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		if answer.ErrMessage != "" {
			err = fmt.Errorf("%s: %w", answer.ErrMessage, err)
		}
		return d.explain("creating topic "+name, err)
	}
	for {
		found, err := d.exists(ctx, name)
		if err != nil || found {
			return err
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("kafka: topic %s was created and is not visible yet: %w", name, err)
		}
	}
}

// pause waits, or returns why ctx ended.
func pause(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// maxBytes reads the live limit of a topic. A broker that refuses to tell is no
// reason to stop: what is not known is 0.
func (d *Driver) maxBytes(ctx context.Context, name string) int {
	configs, _ := d.configs(ctx, []string{name})
	limit, _ := strconv.Atoi(configs[name]["max.message.bytes"])
	return limit
}

// batchLimit is the largest batch that the client makes for a topic. Prepare
// has run before the first message.
func (d *Driver) batchLimit(name string) int32 {
	limit := d.options.MaxMessageBytes + batchRoom
	if strings.HasSuffix(name, deadSuffix) {
		limit = max(limit, brokerMessageBytes) + deadLetterRoom
	}
	if name != "" {
		if known, _ := d.topics.get(name).ready(); known > 0 {
			limit = min(limit, known)
		}
	}
	return int32(max(limit, 1024))
}
