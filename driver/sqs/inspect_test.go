package sqs

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/sqs/sqstest"
)

func declared(name, channel string) driver.Topology {
	return driver.Topology{
		Format:        driver.TopologyFormat,
		Channels:      []driver.TopologyChannel{{Name: channel, Types: []string{channel}, Published: true}},
		Subscriptions: []driver.TopologySubscription{{Name: name, Channels: []string{channel}, Types: []string{channel}}},
	}
}

func found(t testing.TB, d *Driver, topology driver.Topology, options driver.InspectOptions) (checks []string) {
	t.Helper()
	findings, err := d.Inspect(t.Context(), topology, options)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if f.What == "" || f.Why == "" || f.Fix == "" || f.Subject == "" {
			t.Errorf("a finding without words: %+v", f)
		}
		checks = append(checks, f.Check)
	}
	return checks
}

func TestInspect(t *testing.T) {
	servers := map[string]func(t *testing.T) string{
		"sqstest":   func(t *testing.T) string { return sqstest.Start(t).URL() },
		"elasticmq": func(t *testing.T) string { return drivertest.Server(t, "TIDINGS_ELASTICMQ_URL") },
	}
	for name, server := range servers {
		t.Run(name, func(t *testing.T) { inspectQueues(t, server(t)) })
	}
}

func inspectQueues(t *testing.T, url string) {
	namespace := newNamespace(t, url)
	d := newDriver(t, url, func(o *Options) { o.Namespace = namespace; o.Provision = ProvisionNever })
	topology := declared("x.y", "a.b.c")
	if got := found(t, d, topology, driver.InspectOptions{}); !slices.Equal(got, []string{"sqs-queue-missing", "sqs-declarations-missing"}) {
		t.Errorf("nothing is there: %v", got)
	}
	resources, err := d.Provision(t.Context(), topology, true)
	if err != nil || len(resources) != 2 || resources[0].State != driver.ResourceMissing || resources[1].State != driver.ResourceMissing || !strings.Contains(resources[0].Detail, "redrive") {
		t.Errorf("dry: %+v, %v", resources, err)
	}
	if got := found(t, d, topology, driver.InspectOptions{}); len(got) != 2 {
		t.Errorf("a dry run made something: %v", got)
	}
	for _, want := range []driver.ResourceState{driver.ResourceMade, driver.ResourceThere} {
		if resources, err := d.Provision(t.Context(), topology, false); err != nil || len(resources) != 2 || resources[0].State != want || resources[1].State != want {
			t.Errorf("%s: %+v, %v", want, resources, err)
		}
	}
	if got := found(t, d, topology, driver.InspectOptions{}); got != nil {
		t.Errorf("as it makes them: %v", got)
	}
	for n := range 3 {
		publish(t, d, message("a.b.c", fmt.Sprint("k", n), fmt.Sprint(n)))
	}
	if got := found(t, d, topology, driver.InspectOptions{MaxLag: 2}); !slices.Equal(got, []string{"sqs-lag"}) {
		t.Errorf("three wait: %v", got)
	}
	if err := d.PutDeadLetter(t.Context(), driver.DeadLetter{Subscription: "x.y", Channel: "a.b.c", Type: "a.b.c", ID: "1", Body: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	if got := found(t, d, topology, driver.InspectOptions{}); !slices.Equal(got, []string{"sqs-dead-letters"}) {
		t.Errorf("a dead letter: %v", got)
	}

	// A queue that somebody made by hand.
	bare := declared("x.y", "d.e.f")
	name := d.BrokerName("d.e.f")
	made, err := d.options.Client.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: &name, Attributes: map[string]string{"FifoQueue": "true", "MessageRetentionPeriod": "3600"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := found(t, d, bare, driver.InspectOptions{}); !slices.Contains(got, "sqs-redrive-missing") {
		t.Errorf("no redrive: %v", got)
	}
	dead := deadName(d.BrokerName("a.b.c"))
	about, err := d.urlOf(t.Context(), need{queue: dead})
	if err != nil {
		t.Fatal(err)
	}
	arn, err := d.arn(t.Context(), about)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.options.Client.SetQueueAttributes(t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: made.QueueUrl, Attributes: map[string]string{
		"RedrivePolicy": fmt.Sprintf(`{"deadLetterTargetArn":%q,"maxReceiveCount":"3"}`, arn)}})
	if err != nil {
		t.Fatal(err)
	}
	if got := found(t, d, bare, driver.InspectOptions{}); !slices.Contains(got, "sqs-redrive-early") || slices.Contains(got, "sqs-redrive-missing") {
		t.Errorf("three receives: %v", got)
	}
}

// Behind topics each subscription has a queue of its own, with a name that is
// stored.
func TestTopicsAreAdministered(t *testing.T) {
	url := drivertest.Server(t, "TIDINGS_FAUXQS_URL")
	namespace := newNamespace(t, url)
	d := newDriver(t, url, func(o *Options) {
		o.Namespace = namespace
		o.Topics = topicClient(url, nil)
		o.Provision = ProvisionNever
	})
	topology := declared("mail.confirm-order", "a.b.c")
	if got := found(t, d, topology, driver.InspectOptions{}); !slices.Equal(got, []string{"sqs-queue-missing", "sqs-declarations-missing"}) {
		t.Errorf("nothing is there: %v", got)
	}
	resources, err := d.Provision(t.Context(), topology, false)
	if err != nil || len(resources) != 3 || resources[0].Kind != "topic" || resources[1].State != driver.ResourceMade {
		t.Errorf("%+v, %v", resources, err)
	}
	if got := found(t, d, topology, driver.InspectOptions{}); got != nil {
		t.Errorf("as it makes them: %v", got)
	}
	publish(t, d, message("a.b.c", "k", "1"))
	stored, err := d.StoredSubscriptions(t.Context(), driver.StoredOptions{Prefix: "mail."})
	stored = slices.DeleteFunc(stored, func(s driver.StoredSubscription) bool { return !strings.Contains(s.Position, namespace) })
	if err != nil || len(stored) != 1 || stored[0].Name != "mail.confirm-order" || stored[0].Lag != 1 {
		t.Errorf("%+v, %v", stored, err)
	}
	renamed := driver.Subscription{Name: "mail.confirm", Channels: []string{"a.b.c"}}
	if _, err := d.Rename(t.Context(), "mail.confirm-order", renamed); err == nil || !strings.Contains(err.Error(), "renames no queue") {
		t.Errorf("%v", err)
	}
	deleted, err := d.DeleteSubscription(t.Context(), "mail.confirm-order")
	if err != nil || len(deleted) != 3 {
		t.Errorf("%v, %v", deleted, err)
	}
	if moved, err := d.Rename(t.Context(), "mail.confirm-order", renamed); err != nil || moved != 0 {
		t.Errorf("when it is gone: %d, %v", moved, err)
	}
}

func TestGrants(t *testing.T) {
	url := sqstest.Start(t).URL()
	for name, topics := range map[string]bool{"queues": false, "topics": true} {
		d := newDriver(t, url, func(o *Options) {
			o.Namespace = "shop"
			if topics {
				o.Topics = topicClient(url, nil)
			}
		})
		topology := declared("x.y", "a.b.c")
		topology.Channels = append(topology.Channels, driver.TopologyChannel{Name: "d.e.f", Types: []string{"d.e.f"}})
		grants := d.Grants(topology, "")
		if len(grants) != 1 {
			t.Fatalf("%s: %+v", name, grants)
		}
		var policy struct{ Statement []statement }
		if err := json.Unmarshal([]byte(grants[0].Text), &policy); err != nil {
			t.Fatal(err)
		}
		allowed := make(map[string][]string)
		for _, s := range policy.Statement {
			for _, action := range s.Action {
				allowed[action] = append(allowed[action], s.Resource...)
			}
		}
		publish, target := "sqs:SendMessage", "arn:aws:sqs:*:*:shop-events-a-b-c.fifo"
		if topics {
			publish, target = "sns:Publish", "arn:aws:sns:*:*:shop-events-a-b-c.fifo"
		}
		if !slices.Contains(allowed[publish], target) || slices.ContainsFunc(allowed[publish], func(arn string) bool { return strings.Contains(arn, "d-e-f") && !strings.Contains(arn, "dead") }) {
			t.Errorf("%s: it may publish to %v", name, allowed[publish])
		}
		if slices.Contains(allowed["sqs:CreateQueue"], "*") || len(allowed["sqs:ReceiveMessage"]) == 0 {
			t.Errorf("%s: %v", name, allowed)
		}
	}
}
