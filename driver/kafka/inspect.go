package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/tidings-go/tidings/driver"
)

var _ driver.Inspector = (*Driver)(nil)

// Inspect implements [driver.Inspector]: topics that are missing or keep less than
// is promised, and groups that lag, have lost their place, or belong to nobody.
// It needs Describe and DescribeConfigs on topics and Describe on groups.
func (d *Driver) Inspect(ctx context.Context, topology driver.Topology, options driver.InspectOptions) ([]driver.Finding, error) {
	if !d.enter() {
		return nil, errClosed
	}
	defer d.publishing.Done()
	var findings []driver.Finding
	kinds := d.topicsOf(topology)
	metadata, err := d.admin.Metadata(ctx, names(kinds)...)
	if err != nil {
		return nil, d.explain("reading topics", err)
	}
	configs, err := d.configs(ctx, names(kinds))
	if err != nil {
		findings = append(findings, driver.Finding{
			Severity: driver.Note, Check: "kafka-configs-unread", Subject: "cluster", What: "the settings of topics may not be read (" + err.Error() + ")",
			Why: "what topics keep cannot be compared with what is promised", Fix: "grant DescribeConfigs on the topics",
		})
	}
	for _, t := range kinds {
		detail := metadata.Topics[t.name]
		switch {
		case errors.Is(detail.Err, kerr.UnknownTopicOrPartition):
			findings = append(findings, missingTopic(t))
		case detail.Err != nil:
			findings = append(findings, driver.Finding{
				Severity: driver.Broken, Check: "kafka-topic-refused", Subject: "topic " + t.name, What: d.explain("it cannot be read", detail.Err).Error(),
				Why: "events of it are not seen", Fix: "grant Describe and Read (to subscribe) or Write (to publish) on it",
			})
		default:
			findings = append(findings, d.inspectTopic(t, detail, configs[t.name])...)
		}
	}
	stored, lost, err := d.stored(ctx, driver.StoredOptions{})
	if err != nil {
		return findings, err
	}
	findings = append(findings, lost...)
	return append(findings, driver.InspectStored(stored, topology, options)...), nil
}

// topicNeed is one topic that a topology needs.
type topicNeed struct {
	name      string
	kind      topicKind
	published bool
	read      bool
	of        string // the channel, or the subscription of dead letters
}

// topicsOf are the topics of a topology: those of channels, then those of dead
// letters, then the one of what subscriptions handle.
func (d *Driver) topicsOf(topology driver.Topology) (needs []topicNeed) {
	at := make(map[string]int)
	need := func(channel string) *topicNeed {
		name := d.BrokerName(channel)
		if _, known := at[name]; !known {
			at[name] = len(needs)
			needs = append(needs, topicNeed{name: name, kind: eventTopic, of: channel})
		}
		return &needs[at[name]]
	}
	for _, channel := range topology.Channels {
		t := need(channel.Name)
		t.published = t.published || channel.Published
	}
	for _, s := range topology.Subscriptions {
		for _, channel := range s.Channels {
			need(channel).read = true
		}
	}
	for _, s := range topology.Subscriptions {
		for _, channel := range s.Channels {
			needs = append(needs, topicNeed{name: d.DeadLetterName(channel, s.Name), kind: deadTopic, of: s.Name})
		}
	}
	if len(topology.Subscriptions) > 0 {
		needs = append(needs, topicNeed{name: d.DeclarationsName(), kind: declarationTopic, read: true})
	}
	return needs
}

func names(needs []topicNeed) (all []string) {
	for _, t := range needs {
		all = append(all, t.name)
	}
	return all
}

func missingTopic(t topicNeed) driver.Finding {
	f := driver.Finding{
		Severity: driver.Broken, Check: "kafka-topic-missing", Subject: "topic " + t.name, What: "it does not exist",
		Why: "events of channel " + t.of + " can be neither published nor read", Fix: "run `tidings provision`, or create it",
	}
	if t.kind == deadTopic {
		f.Why = "an event that subscription " + t.of + " gives up on has nowhere to go and holds its aggregate"
	}
	if t.kind == declarationTopic {
		f.Why = "what the releases of subscriptions handle cannot be recorded, and none starts"
	}
	return f
}

// configs are the live settings of topics that exist, by topic and key.
func (d *Driver) configs(ctx context.Context, topics []string) (map[string]map[string]string, error) {
	if len(topics) == 0 {
		return nil, nil
	}
	answer, err := d.admin.DescribeTopicConfigs(ctx, topics...)
	if err != nil {
		return nil, err
	}
	configs := make(map[string]map[string]string)
	var refused error
	for _, resource := range answer {
		if resource.Err != nil {
			if !errors.Is(resource.Err, kerr.UnknownTopicOrPartition) {
				refused = resource.Err
			}
			continue
		}
		configs[resource.Name] = make(map[string]string)
		for _, config := range resource.Configs {
			configs[resource.Name][config.Key] = config.MaybeValue()
		}
	}
	return configs, refused
}

const (
	leastReplicas = 3
	leastInSync   = 2
	// leastRetention is a long weekend: how long a subscription may be stopped
	// before the broker deletes what it has not read.
	leastRetention = 72 * 60 * 60 * 1000
)

// inspectTopic compares one topic with what the driver promises. Settings that may
// not be read are not judged.
func (d *Driver) inspectTopic(t topicNeed, detail kadm.TopicDetail, configs map[string]string) (findings []driver.Finding) {
	find := func(severity driver.Severity, check, what, why, fix string) {
		findings = append(findings, driver.Finding{Severity: severity, Check: "kafka-" + check, Subject: "topic " + t.name, What: what, Why: why, Fix: fix})
	}
	number := func(key string) (int64, bool) {
		n, err := strconv.ParseInt(configs[key], 10, 64)
		return n, err == nil
	}
	replicas := detail.Partitions.NumReplicas()
	for _, p := range detail.Partitions.Sorted() {
		if p.Leader < 0 {
			find(driver.Broken, "partition-offline", fmt.Sprintf("partition %d has no leader", p.Partition), "its aggregates can be neither published nor read", "bring its brokers back")
		} else if len(p.ISR) < len(p.Replicas) {
			find(driver.Weak, "under-replicated", fmt.Sprintf("partition %d has %d of %d replicas in sync", p.Partition, len(p.ISR), len(p.Replicas)), "it survives fewer failures than meant", "look at the brokers that are behind")
		}
	}
	if replicas > 0 && replicas < leastReplicas {
		find(driver.Weak, "replication-factor", fmt.Sprintf("replication factor %d, not %d", replicas, leastReplicas), "a confirmed message can be lost with one broker",
			"move it to three replicas with kafka-reassign-partitions.sh")
	}
	if least, known := number("min.insync.replicas"); known && least < leastInSync {
		find(driver.Weak, "min-isr", fmt.Sprintf("min.insync.replicas %d, not %d", least, leastInSync), "a message is confirmed that one broker alone has, and a confirmed message can be lost with one broker",
			fmt.Sprintf("kafka-configs.sh --alter --topic %s --add-config min.insync.replicas=%d", t.name, leastInSync))
	} else if known && int(least) == replicas && replicas > 1 {
		find(driver.Weak, "min-isr", fmt.Sprintf("min.insync.replicas is %d, as many as there are replicas", least), "nothing can be published while any broker is away", "set it one lower")
	}
	if configs["unclean.leader.election.enable"] == "true" {
		find(driver.Weak, "unclean-election", "unclean.leader.election.enable is true", "a replica that was behind may lead, and confirmed messages are gone", "set it to false")
	}
	if t.kind == declarationTopic {
		if policy, known := configs["cleanup.policy"]; known && policy != "compact" {
			find(driver.Broken, "declarations-expire", "cleanup.policy is "+policy, "what releases handle is deleted, and events of a type that only another release knows are finished unseen",
				fmt.Sprintf("kafka-configs.sh --alter --topic %s --add-config cleanup.policy=compact", t.name))
		}
		if n := len(detail.Partitions); n != 1 {
			find(driver.Broken, "declarations-partitions", fmt.Sprintf("it has %d partitions, not 1", n), "one partition of it is read, and what lies in another is not seen", "delete it while no instance runs, then run `tidings provision`")
		}
		return findings
	}
	if strings.Contains(configs["cleanup.policy"], "compact") {
		find(driver.Broken, "compaction", "cleanup.policy is "+configs["cleanup.policy"], "the key is the aggregate id: compaction deletes every event of an aggregate but the last", "set it to delete")
	}
	retention, known := number("retention.ms")
	switch {
	case t.kind == deadTopic && known && retention >= 0:
		find(driver.Weak, "dead-letters-expire", fmt.Sprintf("retention.ms is %d", retention), "dead letters are deleted unseen", "set it to -1")
	case t.kind == eventTopic && known && retention >= 0 && retention < leastRetention:
		find(driver.Weak, "retention", fmt.Sprintf("retention.ms is %d, less than three days", retention), "a subscription that is stopped for longer loses events", "set it to as long as an outage may last")
	}
	if most, known := number("max.message.bytes"); known && t.kind == eventTopic && most < int64(d.options.MaxMessageBytes) {
		find(driver.Weak, "max-message-bytes", fmt.Sprintf("max.message.bytes is %d, and the driver is told to take %d", most, d.options.MaxMessageBytes), "events between them are refused at publish",
			fmt.Sprintf("set it to %d, or Options.MaxMessageBytes lower", d.options.MaxMessageBytes+batchRoom))
	}
	return findings
}

// sortedNames are the keys of a map, sorted.
func sortedNames[V any](m map[string]V) (all []string) {
	for name := range m {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}
