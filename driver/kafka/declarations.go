package kafka

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tidings-go/tidings/driver"
)

// What the releases of subscriptions handle is kept in one topic of one partition
// that is compacted: a record for each subscription, channel and type, whose key is
// these three as a JSON list. So adding is a plain publish, and of two that add at the
// same time nothing is lost. A record without a value takes one out.

var _ driver.Declarations = (*Driver)(nil)

const (
	// recordTime bounds every call that reads or writes the topic.
	recordTime = 30 * time.Second
	// recordAge is when a reader begins anew: brokers keep what takes a record out
	// for a day, and a reader that was away for longer would not see it.
	recordAge = time.Hour
	// recordFetch bounds one answer, in bytes.
	recordFetch = 1 << 20
)

// DeclarationsName is the topic that has what the releases of subscriptions handle:
// "tidings.declarations", after the namespace and a dot if there is one.
func (d *Driver) DeclarationsName() string { return d.prefix() + "tidings.declarations" }

// declarationReader follows the topic.
type declarationReader struct {
	turn chan struct{} // a lock that can be waited for with a context; guards the rest

	began time.Time // when it was read from its beginning
	id    [16]byte  // of the topic
	next  int64     // the first offset that was not read
	known map[string]map[driver.Declaration]bool
}

// Declare implements [driver.Declarations].
func (d *Driver) Declare(ctx context.Context, subscription string, handled []driver.Declaration) ([]driver.Declaration, error) {
	if !d.enter() {
		return nil, errClosed
	}
	defer d.publishing.Done()
	ctx, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	if _, err := d.prepare(ctx, d.DeclarationsName(), declarationTopic); err != nil {
		return nil, fmt.Errorf("kafka: the record of what releases of %s handle: %w", subscription, err)
	}
	known, err := d.declared(ctx, subscription)
	if err != nil {
		return nil, err
	}
	missing := slices.DeleteFunc(slices.Clone(handled), func(one driver.Declaration) bool { return slices.Contains(known, one) })
	if len(missing) == 0 {
		return known, nil
	}
	if err := d.writeDeclarations(ctx, subscription, missing, true); err != nil {
		return nil, err
	}
	return d.declared(ctx, subscription)
}

// Declared implements [driver.Declarations]. It costs one small request unless
// something was declared since the last call.
func (d *Driver) Declared(ctx context.Context, subscription string) ([]driver.Declaration, error) {
	if !d.enter() {
		return nil, errClosed
	}
	defer d.publishing.Done()
	ctx, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	if there, err := d.recordExists(ctx); err != nil || !there {
		return nil, err
	}
	return d.declared(ctx, subscription)
}

// ForgetType implements [driver.Declarations]. The position in a channel whose last
// type it was stays while instances read the channel.
func (d *Driver) ForgetType(ctx context.Context, subscription, eventType string) (known bool, err error) {
	if !d.enter() {
		return false, errClosed
	}
	defer d.publishing.Done()
	ctx, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	if there, err := d.recordExists(ctx); err != nil || !there {
		return false, err
	}
	all, err := d.declared(ctx, subscription)
	if err != nil {
		return false, err
	}
	var gone []driver.Declaration
	left := make(map[string]bool) // channels of other types
	for _, one := range all {
		if one.Type == eventType {
			gone = append(gone, one)
		} else {
			left[one.Channel] = true
		}
	}
	if len(gone) == 0 {
		return false, nil
	}
	if err := d.writeDeclarations(ctx, subscription, gone, false); err != nil {
		return false, err
	}
	for _, one := range gone {
		if left[one.Channel] {
			continue
		}
		if err := d.forgetPosition(ctx, d.GroupName(subscription), d.BrokerName(one.Channel)); err != nil {
			return true, err
		}
	}
	return true, nil
}

// forgetPosition deletes where a group stands in a topic that none of its members
// reads.
func (d *Driver) forgetPosition(ctx context.Context, group, topic string) error {
	stored, err := d.storedPositions(ctx, group, []string{topic})
	if err != nil || len(stored[topic]) == 0 {
		return err
	}
	var partitions kadm.TopicsSet
	for number := range stored[topic] {
		partitions.Add(topic, number)
	}
	answer, err := d.admin.DeleteOffsets(ctx, group, partitions)
	if err == nil {
		err = answer.Error()
	}
	if err != nil && !errors.Is(err, kerr.GroupSubscribedToTopic) && !errors.Is(err, kerr.GroupIDNotFound) {
		return d.explain(fmt.Sprintf("the type is forgotten, and the position of group %s in topic %s could not be deleted", group, topic), err)
	}
	return nil
}

// recordExists reports whether the topic is there. Where this driver has seen it,
// that it is gone is an error: an empty record would let events pass.
func (d *Driver) recordExists(ctx context.Context) (bool, error) {
	if _, seen := d.topics.get(d.DeclarationsName()).ready(); seen {
		return true, nil
	}
	return d.exists(ctx, d.DeclarationsName())
}

func declarationKey(subscription string, one driver.Declaration) []byte {
	key, _ := json.Marshal([]string{subscription, one.Channel, one.Type}) // strings always marshal
	return key
}

func parseDeclarationKey(key []byte) (subscription string, one driver.Declaration, ok bool) {
	var parts []string
	if json.Unmarshal(key, &parts) != nil || len(parts) != 3 {
		return "", one, false
	}
	return parts[0], driver.Declaration{Channel: parts[1], Type: parts[2]}, true
}

// writeDeclarations adds to the record, or takes out of it, in one batch.
func (d *Driver) writeDeclarations(ctx context.Context, subscription string, all []driver.Declaration, add bool) error {
	records := make([]*kgo.Record, len(all))
	for n, one := range all {
		records[n] = &kgo.Record{Topic: d.DeclarationsName(), Key: declarationKey(subscription, one)}
		if add {
			records[n].Value = []byte(`{"declared":true}`)
		}
	}
	if err := d.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return d.explain("writing what releases of "+subscription+" handle to topic "+d.DeclarationsName(), err)
	}
	return nil
}

// declared reads the record as it is now.
func (d *Driver) declared(ctx context.Context, subscription string) ([]driver.Declaration, error) {
	var all []driver.Declaration
	err := d.readDeclarations(ctx, func(known map[string]map[driver.Declaration]bool) {
		for one := range known[subscription] {
			all = append(all, one)
		}
	})
	slices.SortFunc(all, func(a, b driver.Declaration) int {
		return cmp.Or(cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Type, b.Type))
	})
	return all, err
}

// readDeclarations reads to the end that the topic has now and lets look see what is
// known then.
func (d *Driver) readDeclarations(ctx context.Context, look func(map[string]map[driver.Declaration]bool)) error {
	r := &d.declarations
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return fmt.Errorf("kafka: topic %s: %w", d.DeclarationsName(), context.Cause(ctx))
	}
	end, err := d.recordEnd(ctx)
	if err != nil {
		return d.explain("reading topic "+d.DeclarationsName(), err)
	}
	if end < r.next || time.Since(r.began) > recordAge {
		r.restart(0)
	}
	for failures := 0; r.next < end; {
		err := d.fetchDeclarations(ctx, r)
		if err == nil {
			failures = 0
			continue
		}
		if !kerr.IsRetriable(err) && ctx.Err() == nil {
			return d.explain("reading topic "+d.DeclarationsName(), err)
		}
		if pausing := pause(ctx, backoff(failures)); pausing != nil {
			return d.explain("reading topic "+d.DeclarationsName(), errors.Join(err, pausing))
		}
		failures++
	}
	look(r.known)
	return nil
}

func (r *declarationReader) restart(from int64) {
	r.began, r.next, r.known = time.Now(), from, make(map[string]map[driver.Declaration]bool)
}

// recordEnd is the offset behind the last record that is stored.
func (d *Driver) recordEnd(ctx context.Context) (int64, error) {
	request := kmsg.NewPtrListOffsetsRequest()
	topic := kmsg.NewListOffsetsRequestTopic()
	topic.Topic = d.DeclarationsName()
	partition := kmsg.NewListOffsetsRequestTopicPartition()
	partition.Timestamp = -1
	topic.Partitions = append(topic.Partitions, partition)
	request.Topics = append(request.Topics, topic)
	answer, err := request.RequestWith(ctx, d.client)
	if err != nil {
		return 0, err
	}
	for _, topic := range answer.Topics {
		for _, partition := range topic.Partitions {
			return partition.Offset, kerr.ErrorForCode(partition.ErrorCode)
		}
	}
	return 0, errors.New("the broker's answer does not mention the topic")
}

// fetchDeclarations takes the next records. A client that consumes would not tell of
// offsets at the end that compaction has emptied, so the answers are read here.
func (d *Driver) fetchDeclarations(ctx context.Context, r *declarationReader) error {
	name := d.DeclarationsName()
	metadata, err := d.admin.Metadata(ctx, name)
	if err != nil {
		return err
	}
	detail := metadata.Topics[name]
	if detail.Err != nil {
		return detail.Err
	}
	if id := [16]byte(detail.ID); id != r.id { // made anew, or seen for the first time
		r.restart(0)
		r.id = id
	}
	leader := detail.Partitions[0].Leader
	if leader < 0 {
		return kerr.LeaderNotAvailable
	}
	request := kmsg.NewPtrFetchRequest()
	request.MaxWaitMillis, request.MinBytes, request.MaxBytes = 100, 1, recordFetch
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic, topic.TopicID = name, detail.ID
	partition := kmsg.NewFetchRequestTopicPartition()
	partition.FetchOffset, partition.PartitionMaxBytes = r.next, recordFetch
	topic.Partitions = append(topic.Partitions, partition)
	request.Topics = append(request.Topics, topic)
	answer, err := d.client.Broker(int(leader)).RetriableRequest(ctx, request)
	if err != nil {
		return err
	}
	fetched := answer.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(fetched.ErrorCode); err != nil {
		return err
	}
	for n := range fetched.Topics {
		for m := range fetched.Topics[n].Partitions {
			return r.take(name, &fetched.Topics[n].Partitions[m])
		}
	}
	return kerr.UnknownServerError // an answer without the topic: ask again
}

// take adds what was fetched to what is known.
func (r *declarationReader) take(topic string, p *kmsg.FetchResponseTopicPartition) error {
	err := kerr.ErrorForCode(p.ErrorCode)
	if errors.Is(err, kerr.OffsetOutOfRange) {
		r.restart(max(p.LogStartOffset, 0))
		return kerr.LeaderNotAvailable // to be asked again
	}
	if err != nil {
		return err
	}
	// The beginning may have been deleted.
	records, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Topic: topic, Offset: r.next}, p, kgo.DefaultDecompressor(), nil)
	if records.Err != nil {
		return records.Err
	}
	for _, record := range records.Records {
		subscription, one, ok := parseDeclarationKey(record.Key)
		if !ok {
			continue
		}
		if record.Value == nil {
			delete(r.known[subscription], one)
			continue
		}
		if r.known[subscription] == nil {
			r.known[subscription] = make(map[driver.Declaration]bool)
		}
		r.known[subscription][one] = true
	}
	if next <= r.next { // nothing came yet
		return kerr.LeaderNotAvailable
	}
	r.next = next
	return nil
}

// renameDeclarations gives a subscription what was declared under its former name,
// unless it has declared something itself and takes over no position.
func (d *Driver) renameDeclarations(ctx context.Context, former, name string, positions bool) error {
	if there, err := d.recordExists(ctx); err != nil || !there {
		return err
	}
	before, err := d.declared(ctx, former)
	if err != nil || len(before) == 0 {
		return err
	}
	has, err := d.declared(ctx, name)
	if err != nil || len(has) > 0 && !positions {
		return err // what was forgotten since does not come back
	}
	before = slices.DeleteFunc(before, func(one driver.Declaration) bool { return slices.Contains(has, one) })
	if len(before) == 0 {
		return nil
	}
	return d.writeDeclarations(ctx, name, before, true)
}
