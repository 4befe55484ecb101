package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/tidings-go/tidings/driver"
)

var (
	_ driver.Keeper  = (*Driver)(nil)
	_ driver.Renamer = (*Driver)(nil)
)

// StoredSubscriptions implements [driver.Keeper]: the consumer groups that read
// topics of this namespace, the topics of dead letters that have any, and what has
// declared what it handles. Dead letters are counted as records of their topics.
func (d *Driver) StoredSubscriptions(ctx context.Context, options driver.StoredOptions) ([]driver.StoredSubscription, error) {
	if !d.enter() {
		return nil, errClosed
	}
	defer d.publishing.Done()
	stored, _, err := d.stored(ctx, options)
	return stored, err
}

// stored also says which groups have lost their place.
func (d *Driver) stored(ctx context.Context, options driver.StoredOptions) (all []driver.StoredSubscription, lost []driver.Finding, err error) {
	listed, err := d.admin.ListGroups(ctx)
	if err != nil {
		return nil, nil, d.explain("listing groups", err)
	}
	var groups []string
	for _, group := range listed.Groups() {
		if name, ours := strings.CutPrefix(group, d.prefix()); ours && strings.Contains(name, ".") && strings.HasPrefix(name, options.Prefix) {
			groups = append(groups, group)
		}
	}
	if len(groups) > 0 { // none would mean all
		lags, err := d.admin.Lag(ctx, groups...)
		if err != nil {
			return nil, nil, d.explain("positions of groups", err)
		}
		for _, l := range lags.Sorted() {
			if l.FetchErr != nil {
				return nil, nil, d.explain("positions of group "+l.Group, l.FetchErr)
			}
			s, finding, ours := d.storedGroup(&l)
			if ours {
				all = append(all, s)
				lost = append(lost, finding...)
			}
		}
	}
	dead, err := d.deadTopics(ctx, options)
	if err != nil {
		return nil, nil, err
	}
	declared, err := d.declaredNames(ctx, options)
	return driver.MergeStored(all, dead, declared), lost, err
}

// declaredNames are the subscriptions whose releases have declared what they handle.
func (d *Driver) declaredNames(ctx context.Context, options driver.StoredOptions) (all []driver.StoredSubscription, err error) {
	if there, err := d.recordExists(ctx); err != nil || !there {
		return nil, err
	}
	err = d.readDeclarations(ctx, func(known map[string]map[driver.Declaration]bool) {
		for _, name := range sortedNames(known) {
			if types := len(known[name]); types > 0 && strings.HasPrefix(name, options.Prefix) {
				all = append(all, driver.StoredSubscription{Name: name, Instances: -1, Lag: -1, Parked: -1, DeadLetters: -1, Keys: -1, Position: fmt.Sprintf("%d types declared", types)})
			}
		}
	})
	return all, err
}

// storedGroup is one group, unless it reads other topics than ours.
func (d *Driver) storedGroup(l *kadm.DescribedGroupLag) (s driver.StoredSubscription, lost []driver.Finding, ours bool) {
	s = driver.StoredSubscription{Name: strings.TrimPrefix(l.Group, d.prefix()), Instances: len(l.Members), Parked: -1, DeadLetters: -1, Keys: -1}
	partitions, topics := 0, make(map[string]bool)
	for _, p := range l.Lag.Sorted() {
		if !strings.HasPrefix(p.Topic, d.prefix()+"events.") || p.Commit.At < 0 {
			continue
		}
		partitions++
		topics[p.Topic] = true
		if p.Lag > 0 {
			s.Lag += p.Lag
		}
		if p.Start.Err == nil && p.Commit.At < p.Start.Offset {
			lost = append(lost, driver.Finding{
				Severity: driver.Broken, Check: "kafka-offset-lost", Subject: "subscription " + s.Name,
				What: fmt.Sprintf("it stands at offset %d of %s/%d, whose oldest is %d", p.Commit.At, p.Topic, p.Partition, p.Start.Offset),
				Why:  "the events between are gone, and it does not go on by itself", Fix: "find out what was lost, then set the group's offset with kafka-consumer-groups.sh --reset-offsets",
			})
		}
	}
	if partitions == 0 {
		// A group that has just joined has no position yet.
		for _, m := range l.Members {
			if joined, ok := m.Join.AsConsumer(); ok {
				for _, topic := range joined.Topics {
					topics[topic] = topics[topic] || strings.HasPrefix(topic, d.prefix()+"events.")
				}
			}
		}
	}
	for _, one := range topics {
		ours = ours || one
	}
	s.Position = fmt.Sprintf("%d partitions of %s", partitions, strings.Join(sortedNames(topics), ", "))
	return s, lost, ours
}

// deadTopics are the topics of dead letters that have any, by their subscriptions.
func (d *Driver) deadTopics(ctx context.Context, options driver.StoredOptions) (all []driver.StoredSubscription, err error) {
	bySubscription, err := d.deadNames(ctx)
	if err != nil {
		return nil, err
	}
	var topics []string
	for name, some := range bySubscription {
		if strings.HasPrefix(name, options.Prefix) {
			topics = append(topics, some...)
		}
	}
	records, err := d.records(ctx, topics)
	if err != nil {
		return nil, err
	}
	for _, name := range sortedNames(bySubscription) {
		s := driver.StoredSubscription{Name: name, Instances: -1, Lag: -1, Parked: -1, Keys: -1}
		for _, topic := range bySubscription[name] {
			s.DeadLetters += records[topic]
		}
		if s.DeadLetters > 0 {
			all = append(all, s)
		}
	}
	return all, nil
}

// deadNames are the topics of dead letters of each subscription.
func (d *Driver) deadNames(ctx context.Context) (map[string][]string, error) {
	topics, err := d.admin.ListTopics(ctx)
	if err != nil {
		return nil, d.explain("listing topics", err)
	}
	found := make(map[string][]string)
	for _, topic := range topics.Names() {
		rest, ours := strings.CutPrefix(topic, d.prefix()+"events.")
		rest, dead := strings.CutSuffix(rest, deadSuffix)
		_, subscription, named := strings.Cut(rest, ".") // the channel has dashes only
		// The client lists names too that it was asked for and that do not exist.
		if ours && dead && named && topics[topic].Err == nil {
			found[subscription] = append(found[subscription], topic)
		}
	}
	return found, nil
}

// records is how many records topics have.
func (d *Driver) records(ctx context.Context, topics []string) (map[string]int64, error) {
	if len(topics) == 0 { // none would mean all
		return nil, nil
	}
	first, err := d.admin.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, d.explain("offsets of dead letters", err)
	}
	last, err := d.admin.ListEndOffsets(ctx, topics...)
	if err != nil {
		return nil, d.explain("offsets of dead letters", err)
	}
	count := make(map[string]int64)
	last.Each(func(o kadm.ListedOffset) {
		if from, known := first.Lookup(o.Topic, o.Partition); known && o.Err == nil {
			count[o.Topic] += o.Offset - from.Offset
		}
	})
	return count, nil
}

// alive is how many instances a group has.
func (d *Driver) alive(ctx context.Context, group string) (int, error) {
	described, err := d.admin.DescribeGroups(ctx, group)
	if err == nil {
		err = described[group].Err
	}
	if errors.Is(err, kerr.GroupIDNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, d.explain("members of group "+group, err)
	}
	return len(described[group].Members), nil
}

// DeleteSubscription implements [driver.Keeper]: it deletes the group, with its
// offsets, what it has declared, and the topics of its dead letters.
func (d *Driver) DeleteSubscription(ctx context.Context, name string) (deleted []string, err error) {
	if !d.enter() {
		return nil, errClosed
	}
	defer d.publishing.Done()
	group := d.GroupName(name)
	members, err := d.alive(ctx, group)
	if err != nil {
		return nil, err
	}
	if members > 0 {
		return nil, fmt.Errorf("kafka: group %s has %d members: %w", group, members, driver.ErrInUse)
	}
	answer, err := d.admin.DeleteGroup(ctx, group)
	if err == nil {
		err = answer.Err
	}
	switch {
	case errors.Is(err, kerr.GroupIDNotFound):
	case errors.Is(err, kerr.NonEmptyGroup):
		return nil, fmt.Errorf("kafka: group %s: %w", group, driver.ErrInUse)
	case err != nil:
		return nil, d.explain("deleting group "+group, err)
	default:
		deleted = append(deleted, "group "+group)
	}
	if there, err := d.recordExists(ctx); err != nil {
		return deleted, err
	} else if there {
		declared, err := d.declared(ctx, name)
		if err == nil && len(declared) > 0 {
			err = d.writeDeclarations(ctx, name, declared, false)
			deleted = append(deleted, fmt.Sprintf("%d types of topic %s", len(declared), d.DeclarationsName()))
		}
		if err != nil {
			return deleted, err
		}
	}
	dead, err := d.deadNames(ctx)
	if err != nil {
		return deleted, err
	}
	for _, topic := range dead[name] {
		answer, err := d.admin.DeleteTopic(ctx, topic)
		if err == nil {
			err = answer.Err
		}
		if err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
			return deleted, d.explain("deleting topic "+topic, err)
		}
		deleted = append(deleted, "topic "+topic)
	}
	return deleted, nil
}

// Rename implements [driver.Renamer]: committed offsets of the former group, with
// what is finished beyond them, are stored for the new one in the partitions
// where it has none. The former group stays, so that a deployment that is taken
// back goes on where it was; its dead letters stay in their topics. What was declared
// under the former name is declared for the new one. The number is that of partitions.
func (d *Driver) Rename(ctx context.Context, former string, s driver.Subscription) (moved int64, err error) {
	if !d.enter() {
		return 0, errClosed
	}
	defer d.publishing.Done()
	defer func() {
		if err == nil {
			err = d.renameDeclarations(ctx, former, s.Name, moved > 0)
		}
	}()
	old, group := d.GroupName(former), d.GroupName(s.Name)
	topics := make([]string, len(s.Channels))
	for n, channel := range s.Channels {
		topics[n] = d.BrokerName(channel)
	}
	missing, err := d.missingPositions(ctx, old, group, topics)
	if err != nil || len(missing) == 0 {
		return 0, err
	}
	members, err := d.alive(ctx, old)
	if err != nil {
		return 0, err
	}
	if members > 0 {
		return 0, fmt.Errorf("kafka: group %s has %d members: %w", old, members, driver.ErrInUse)
	}
	answer, err := d.admin.CommitOffsets(ctx, group, missing)
	if err == nil {
		err = answer.Error()
	}
	if err != nil {
		// Another instance may have done it, and joined: then nobody else commits.
		if again, failure := d.missingPositions(ctx, old, group, topics); failure == nil && len(again) == 0 {
			return 0, nil
		}
		return 0, d.explain("giving the positions of group "+old+" to "+group, err)
	}
	for _, partitions := range missing {
		moved += int64(len(partitions))
	}
	return moved, nil
}

// missingPositions are the positions of one group that another has not.
func (d *Driver) missingPositions(ctx context.Context, old, group string, topics []string) (kadm.Offsets, error) {
	from, err := d.storedPositions(ctx, old, topics)
	if err != nil || len(from) == 0 {
		return nil, err
	}
	has, err := d.storedPositions(ctx, group, topics)
	if err != nil {
		return nil, err
	}
	missing := make(kadm.Offsets)
	for topic, partitions := range from {
		for number, at := range partitions {
			if _, known := has[topic][number]; !known {
				missing.Add(at)
			}
		}
	}
	return missing, nil
}
