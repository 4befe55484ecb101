package kafka

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
)

// declared is the topology of one subscription to one channel.
func declared(name, channel string, former ...string) driver.Topology {
	return driver.Topology{
		Format:        driver.TopologyFormat,
		Channels:      []driver.TopologyChannel{{Name: channel, Types: []string{channel}, Published: true}},
		Subscriptions: []driver.TopologySubscription{{Name: name, FormerNames: former, Channels: []string{channel}, Types: []string{channel}}},
	}
}

// found returns the findings of one check.
func found(t testing.TB, d *Driver, topology driver.Topology, check string) (subjects []string) {
	t.Helper()
	findings, err := d.Inspect(t.Context(), topology, driver.InspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if f.What == "" || f.Why == "" || f.Fix == "" || f.Subject == "" {
			t.Errorf("a finding without words: %+v", f)
		}
		if f.Check == check {
			subjects = append(subjects, string(f.Severity)+" "+f.Subject)
		}
	}
	return subjects
}

func TestRealInspectTopics(t *testing.T) {
	d, _ := onReal(t)
	topology := declared("x.y", "a.b.c")
	topic := d.BrokerName("a.b.c")
	want := []string{"broken topic " + topic, "broken topic " + topic + ".x.y.dead", "broken topic " + d.DeclarationsName()}
	if got := found(t, d, topology, "kafka-topic-missing"); !slices.Equal(got, want) {
		t.Errorf("missing: %v", got)
	}
	resources, err := d.Provision(t.Context(), topology, true)
	if err != nil || len(resources) != 3 || resources[0].State != driver.ResourceMissing || resources[0].Detail == "" {
		t.Errorf("dry: %+v, %v", resources, err)
	}
	if got := found(t, d, topology, "kafka-topic-missing"); len(got) != 3 {
		t.Errorf("a dry run made something: %v", got)
	}
	if resources, err = d.Provision(t.Context(), topology, false); err != nil || resources[1].State != driver.ResourceMade {
		t.Errorf("%+v, %v", resources, err)
	}
	if resources, err = d.Provision(t.Context(), topology, false); err != nil || resources[1].State != driver.ResourceThere {
		t.Errorf("again: %+v, %v", resources, err)
	}
	if got := found(t, d, topology, "kafka-topic-missing"); got != nil {
		t.Errorf("missing: %v", got)
	}
	// One node: what it makes can be lost with it.
	for _, check := range []string{"kafka-min-isr", "kafka-replication-factor"} {
		if got := found(t, d, topology, check); len(got) != 3 || got[0] != "weak topic "+topic {
			t.Errorf("%s: %v", check, got)
		}
	}
	set := func(key, value string) {
		t.Helper()
		answer, err := d.admin.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Name: key, Value: &value}}, topic)
		if err == nil {
			_, err = answer.On(topic, func(r *kadm.AlterConfigsResponse) error { return r.Err })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, setting := range []struct{ key, value, check string }{
		{"cleanup.policy", "compact", "kafka-compaction"}, {"retention.ms", "60000", "kafka-retention"},
		{"unclean.leader.election.enable", "true", "kafka-unclean-election"}, {"max.message.bytes", "100000", "kafka-max-message-bytes"},
	} {
		if got := found(t, d, topology, setting.check); got != nil {
			t.Errorf("%s before: %v", setting.check, got)
		}
		set(setting.key, setting.value)
		drivertest.Eventually(t, setting.check, func() bool { return len(found(t, d, topology, setting.check)) == 1 })
	}
}

func TestRealInspectGroups(t *testing.T) {
	d, _ := onReal(t)
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
	publish(t, d, numbered("a.b.c", "k", 0, 3)...)
	drivertest.Eventually(t, "three", func() bool { return s.Count() == 3 })
	topology := declared("x.y", "a.b.c")
	if got := found(t, d, topology, "subscription-lag"); got != nil {
		t.Errorf("while it runs: %v", got)
	}
	stored, err := d.StoredSubscriptions(t.Context(), driver.StoredOptions{Count: true})
	if err != nil || len(stored) != 1 || stored[0].Instances != 1 || stored[0].Name != "x.y" {
		t.Errorf("%+v, %v", stored, err)
	}
	if _, err := d.DeleteSubscription(t.Context(), "x.y"); !errors.Is(err, driver.ErrInUse) {
		t.Errorf("deleting what runs: %v", err)
	}
	r.Finish(t, s.Got()...)
	r.End(t)
	if got := found(t, d, topology, "subscription-lag"); got != nil {
		t.Errorf("nothing is behind: %v", got)
	}
	publish(t, d, numbered("a.b.c", "k", 3, 7)...)
	if got := found(t, d, topology, "subscription-lag"); !slices.Equal(got, []string{"broken subscription x.y"}) {
		t.Errorf("behind: %v", got)
	}
	if got := found(t, d, declared("x.z", "a.b.c"), "subscription-unowned"); !slices.Equal(got, []string{"weak subscription x.y"}) {
		t.Errorf("unowned: %v", got)
	}
	if got := found(t, d, declared("x.z", "a.b.c", "x.y"), "subscription-unowned"); got != nil {
		t.Errorf("a former name: %v", got)
	}
	if got := found(t, d, declared("other.z", "a.b.c"), "subscription-unowned"); got != nil {
		t.Errorf("another module's: %v", got)
	}
	offsets := make(kadm.Offsets)
	offsets.AddOffset(d.BrokerName("a.b.c"), 0, 5, -1)
	if _, err := d.admin.DeleteRecords(t.Context(), offsets); err != nil {
		t.Fatal(err)
	}
	if got := found(t, d, topology, "kafka-offset-lost"); len(got) != 1 {
		t.Errorf("lost: %v", got)
	}
	deleted, err := d.DeleteSubscription(t.Context(), "x.y")
	if err != nil || len(deleted) != 2 {
		t.Errorf("%v, %v", deleted, err)
	}
	drivertest.Eventually(t, "the end of the topic", func() bool {
		stored, err := d.StoredSubscriptions(t.Context(), driver.StoredOptions{})
		return err == nil && len(stored) == 0
	})
	drivertest.Eventually(t, "nothing to delete", func() bool { // the broker lists a deleted topic for a while
		deleted, err := d.DeleteSubscription(t.Context(), "x.y")
		return err == nil && deleted == nil
	})
}

// TestRealRename: what was finished under the former name is finished, what was
// not comes, and nothing is taken while the former one is alive.
func TestRealRename(t *testing.T) {
	d, more := onReal(t)
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("x.old", "a.b.c"), s)
	publish(t, d, numbered("a.b.c", "k", 0, 10)...)
	drivertest.Eventually(t, "ten", func() bool { return s.Count() == 10 })
	all := s.Got()
	r.Finish(t, all[0], all[1], all[2], all[5])
	renamed := subscription("x.new", "a.b.c")
	if _, err := d.Rename(t.Context(), "x.old", renamed); !errors.Is(err, driver.ErrInUse) {
		t.Errorf("while it runs: %v", err)
	}
	r.End(t)
	moved, err := more().Rename(t.Context(), "x.old", renamed)
	if err != nil || moved != 1 {
		t.Errorf("%d, %v", moved, err)
	}
	if moved, err := d.Rename(t.Context(), "x.old", renamed); err != nil || moved != 0 {
		t.Errorf("again: %d, %v", moved, err)
	}
	if moved, err := d.Rename(t.Context(), "x.never", renamed); err != nil || moved != 0 {
		t.Errorf("of nothing: %d, %v", moved, err)
	}
	s = drivertest.NewSink()
	drivertest.Start(t, more(), renamed, s)
	publish(t, d, message("a.b.c", "k", "10"))
	drivertest.Eventually(t, "the last", func() bool { return strings.HasSuffix(s.Bodies(), "10") })
	if got, want := s.Bodies(), "3 4 6 7 8 9 10"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

var aclCommand = regexp.MustCompile(`^kafka-acls\.sh --bootstrap-server \S+ --add --allow-principal 'User:(\w+)'((?: --operation \w+)+) --(topic|group) '([^']+)'$`)

// TestSecureGrants: with what Grants prints, and with nothing else, a user can run
// the application on topics that were made for it.
func TestSecureGrants(t *testing.T) {
	o := secure(t)
	admin := newDriver(t, nil, func(into *Options) { *into = o })
	topology := declared("x.y", "a.b.c")
	if _, err := admin.Provision(t.Context(), topology, false); err != nil {
		t.Fatal(err)
	}
	grants := admin.Grants(topology, "stranger")
	if len(grants) != 1 || grants[0].What != "Kafka ACLs" {
		t.Fatalf("%+v", grants)
	}
	request := kmsg.NewPtrCreateACLsRequest()
	for line := range strings.Lines(grants[0].Text) {
		parts := aclCommand.FindStringSubmatch(strings.TrimSpace(line))
		if parts == nil {
			t.Fatalf("not a command: %s", line)
		}
		for word := range strings.FieldsSeq(parts[2]) {
			if word == "--operation" {
				continue
			}
			acl := kmsg.NewCreateACLsRequestCreation()
			acl.ResourceType, acl.ResourceName, acl.ResourcePatternType = kmsg.ACLResourceTypeTopic, parts[4], kmsg.ACLResourcePatternTypeLiteral
			if parts[3] == "group" {
				acl.ResourceType = kmsg.ACLResourceTypeGroup
			}
			operation, err := kmsg.ParseACLOperation(strings.ToUpper(regexp.MustCompile(`([a-z])([A-Z])`).ReplaceAllString(word, "${1}_${2}")))
			if err != nil {
				t.Fatal(err)
			}
			acl.Principal, acl.Host, acl.Operation, acl.PermissionType = "User:"+parts[1], "*", operation, kmsg.ACLPermissionTypeAllow
			request.Creations = append(request.Creations, acl)
		}
	}
	answer, err := request.RequestWith(t.Context(), admin.client)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range answer.Results {
		if r.ErrorCode != 0 {
			t.Fatal(fmt.Errorf("the test may not grant: %v", r))
		}
	}
	o.SASL.User, o.SASL.Password = "stranger", os.Getenv("TIDINGS_KAFKA_SECURE_STRANGER_PASSWORD")
	o.Provision = ProvisionNever
	stranger := newDriver(t, nil, func(into *Options) { *into = o })
	drivertest.Eventually(t, "the grants", func() bool {
		findings, err := stranger.Inspect(t.Context(), topology, driver.InspectOptions{})
		return err == nil && !slices.ContainsFunc(findings, func(f driver.Finding) bool { return f.Severity == driver.Broken })
	})
	handled := []driver.Declaration{{Channel: "a.b.c", Type: "a.b.c"}}
	if all, err := stranger.Declare(t.Context(), "x.y", handled); err != nil || !slices.Equal(all, handled) {
		t.Errorf("declared %v, %v", all, err)
	}
	s := drivertest.NewSink()
	r := drivertest.Start(t, stranger, subscription("x.y", "a.b.c"), s)
	publish(t, stranger, message("a.b.c", "k", "1"))
	drivertest.Eventually(t, "one", func() bool { return s.Count() == 1 })
	if err := stranger.PutDeadLetter(t.Context(), driver.DeadLetter{Subscription: "x.y", Channel: "a.b.c", ID: "1", Body: []byte("x")}); err != nil {
		t.Error(err)
	}
	r.Finish(t, s.Got()...)
	r.End(t)
}

// TestFindingsOfATopic judges settings without a broker: what is as promised has no
// finding, and what may not be read is not judged.
func TestFindingsOfATopic(t *testing.T) {
	d := newDriver(t, []string{"127.0.0.1:1"})
	good := map[string]string{"min.insync.replicas": "2", "unclean.leader.election.enable": "false", "cleanup.policy": "delete", "retention.ms": "604800000", "max.message.bytes": "10485760"}
	replicas := func(n int) kadm.TopicDetail {
		all := make([]int32, n)
		return kadm.TopicDetail{Topic: "events.a", Partitions: kadm.PartitionDetails{0: {Leader: 1, Replicas: all, ISR: all}}}
	}
	for name, c := range map[string]struct {
		replicas   int
		key, value string
		kind       topicKind
		want       string
	}{
		"as promised":      {3, "", "", eventTopic, ""},
		"two replicas":     {2, "min.insync.replicas", "1", eventTopic, "kafka-replication-factor kafka-min-isr"},
		"min ISR 1":        {3, "min.insync.replicas", "1", eventTopic, "kafka-min-isr"},
		"min ISR 3":        {3, "min.insync.replicas", "3", eventTopic, "kafka-min-isr"},
		"unclean":          {3, "unclean.leader.election.enable", "true", eventTopic, "kafka-unclean-election"},
		"compacted":        {3, "cleanup.policy", "compact,delete", eventTopic, "kafka-compaction"},
		"kept for an hour": {3, "retention.ms", "3600000", eventTopic, "kafka-retention"},
		"kept for ever":    {3, "retention.ms", "-1", eventTopic, ""},
		"dead for a week":  {3, "", "", deadTopic, "kafka-dead-letters-expire"},
		"not told":         {3, "min.insync.replicas", "", eventTopic, ""},
	} {
		configs := maps.Clone(good)
		if c.key != "" {
			configs[c.key] = c.value
		}
		var checks []string
		for _, f := range d.inspectTopic(topicNeed{name: "events.a", kind: c.kind}, replicas(c.replicas), configs) {
			checks = append(checks, f.Check)
		}
		if got := strings.Join(checks, " "); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
