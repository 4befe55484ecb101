package kafka

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/tidings-go/tidings/driver"
)

var _ driver.Provisioner = (*Driver)(nil)

// Provision implements [driver.Provisioner]: the topics of channels and of dead
// letters, and that of what subscriptions handle, as Options says (Partitions, ReplicationFactor, Retention). Groups need
// not be made. Existing topics are left as they are: [Driver.Inspect] judges them.
func (d *Driver) Provision(ctx context.Context, topology driver.Topology, dry bool) (resources []driver.Resource, err error) {
	if !d.enter() {
		return nil, errClosed
	}
	defer d.publishing.Done()
	for _, t := range d.topicsOf(topology) {
		if len(t.name) > maxTopicName || !legalName.MatchString(t.name) {
			return resources, fmt.Errorf("kafka: %q cannot be a topic: at most %d letters, digits, '.', '_' and '-'", t.name, maxTopicName)
		}
		found, err := d.exists(ctx, t.name)
		if err != nil {
			return resources, err
		}
		r := driver.Resource{Kind: "topic", Name: t.name, State: driver.ResourceThere}
		if !found {
			r.State, r.Detail = driver.ResourceMissing, d.topicDetail(t.kind)
			if !dry {
				if err := d.create(ctx, t.name, t.kind); err != nil {
					return resources, err
				}
				r.State = driver.ResourceMade
			}
		}
		resources = append(resources, r)
	}
	return resources, nil
}

// topicDetail says how create makes a topic.
func (d *Driver) topicDetail(kind topicKind) string {
	o := &d.options
	partitions, replicas := o.Partitions, o.ReplicationFactor
	if kind != eventTopic {
		partitions = 1
	}
	if replicas == 0 && !o.loopback() {
		replicas = 3
	}
	parts := []string{fmt.Sprintf("%d partitions", partitions)}
	if replicas == 0 {
		parts = append(parts, "the broker's replication factor")
	} else {
		parts = append(parts, fmt.Sprintf("replication factor %d", replicas))
	}
	if replicas >= 3 {
		parts = append(parts, "min.insync.replicas 2")
	}
	switch {
	case kind == deadTopic:
		parts = append(parts, "kept for ever")
	case kind == declarationTopic:
		parts = append(parts, "cleanup.policy compact")
	case o.Retention > 0:
		parts = append(parts, "kept for "+o.Retention.String())
	}
	return strings.Join(parts, ", ")
}

// Grants implements [driver.Provisioner]: commands of kafka-acls.sh. Topics are
// made by `tidings provision`, with a user of its own, so the application may not
// create any.
func (d *Driver) Grants(topology driver.Topology, principal string) []driver.Grant {
	principal = cmp.Or(principal, "<user>")
	brokers := strings.Join(d.options.Brokers, ",")
	var lines []string
	grant := func(what string, operations ...string) {
		line := fmt.Sprintf("kafka-acls.sh --bootstrap-server %s --add --allow-principal 'User:%s'", brokers, principal)
		for _, operation := range operations {
			line += " --operation " + operation
		}
		lines = append(lines, line+" "+what)
	}
	for _, t := range d.topicsOf(topology) {
		operations := []string{"Describe", "DescribeConfigs"}
		if t.read {
			operations = append(operations, "Read")
		}
		if t.published || t.kind != eventTopic {
			operations = append(operations, "Write")
		}
		grant("--topic '"+t.name+"'", operations...)
	}
	for _, s := range topology.Subscriptions {
		grant("--group '"+d.GroupName(s.Name)+"'", "Read", "Describe")
		for _, former := range s.FormerNames {
			grant("--group '"+d.GroupName(former)+"'", "Read", "Describe")
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return []driver.Grant{{What: "Kafka ACLs", Text: strings.Join(lines, "\n") + "\n"}}
}
