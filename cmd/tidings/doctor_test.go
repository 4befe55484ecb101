package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/redis/redistest"
	"github.com/tidings-go/tidings/setup"
)

// shop is the topology of an application with one subscription.
var shop = []string{"--publish", "shop.order.placed", "--subscription", "mail.confirm=shop.order.placed"}

// examine runs the doctor and returns its findings that are no notes.
func examine(t testing.TB, e environment, arguments ...string) (checks []string, o outcome) {
	t.Helper()
	o = tool(t, e, append([]string{"doctor", "--json"}, arguments...)...)
	var value struct{ Findings []driver.Finding }
	if o.code == exitOK || o.code == exitFindings {
		o.decode(t, &value)
	}
	for _, f := range value.Findings {
		if f.Severity != driver.Note {
			checks = append(checks, f.Check)
		}
	}
	return checks, o
}

// onKafka is a namespace of its own, whose topics and groups go after the test.
func onKafka(t testing.TB) environment {
	t.Helper()
	e := environment{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": drivertest.Server(t, "KAFKA_BROKERS"), "EVENT_NAMESPACE": unique(t)}
	t.Cleanup(func() {
		client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(e["KAFKA_BROKERS"], ",")...))
		if err != nil {
			t.Error(err)
			return
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		admin := kadm.NewClient(client)
		topics, err := admin.ListTopics(ctx)
		if err != nil {
			t.Error(err)
			return
		}
		ours := slices.DeleteFunc(topics.Names(), func(name string) bool { return !strings.HasPrefix(name, e["EVENT_NAMESPACE"]+".") })
		if _, err := admin.DeleteTopics(ctx, ours...); err != nil {
			t.Error(err)
		}
	})
	return e
}

// handleOne runs the application until it has handled one event, and publishes
// more that nobody handles.
func handleOne(t testing.TB, e environment, name string) {
	t.Helper()
	config := setup.Read(func(variable string) string { return e[variable] })
	bus, err := setup.New(t.Context(), config, nil)
	if err != nil {
		t.Fatal(err)
	}
	handled := make(chan struct{}, 10)
	module, short, _ := strings.Cut(name, ".")
	bus.Module(module).Subscribe(short, &tidings.SubscribeOptions{StartAt: tidings.StartBeginning}, orderPlaced.On(func(context.Context, tidings.Event[placed]) error {
		handled <- struct{}{}
		return nil
	}))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- bus.Run(ctx) }()
	if err := bus.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := bus.Module("shop").Publish(t.Context(), orderPlaced.New("order-1", placed{1})); err != nil {
		t.Fatal(err)
	}
	select {
	case <-handled:
	case <-time.After(60 * time.Second):
		t.Fatal("it is not handled")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func publishMore(t testing.TB, e environment, count int) {
	t.Helper()
	bus, err := setup.New(t.Context(), setup.Read(func(variable string) string { return e[variable] }), nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := range count {
		if err := bus.Module("shop").Publish(t.Context(), orderPlaced.New(fmt.Sprint("order-", n), placed{n})); err != nil {
			t.Fatal(err)
		}
	}
	if err := bus.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDoctorOnKafka(t *testing.T) {
	e := onKafka(t)
	checks, o := examine(t, e, shop...)
	if !slices.Equal(checks, []string{"kafka-topic-missing", "kafka-topic-missing", "kafka-topic-missing"}) || o.code != exitFindings { // of events, of dead letters, of declarations
		t.Errorf("missing topics: %v, exit status %d", checks, o.code)
	}
	tool(t, e, append([]string{"provision"}, shop...)...).want(t, exitOK, "made", "events.shop-order-placed")
	checks, o = examine(t, e, shop...)
	if !slices.Contains(checks, "kafka-min-isr") || slices.Contains(checks, "kafka-topic-missing") || o.code != exitFindings {
		t.Errorf("min ISR 1: %v, exit status %d", checks, o.code)
	}
	handleOne(t, e, "mail.confirm")
	if checks, _ = examine(t, e, shop...); slices.Contains(checks, "subscription-lag") {
		t.Errorf("nothing is behind: %v", checks)
	}
	publishMore(t, e, 5)
	if checks, o = examine(t, e, shop...); !slices.Contains(checks, "subscription-lag") {
		t.Errorf("a group with lag: %v\n%s", checks, o.out)
	}
	// A group that lags is found without a topology too, and the text says it all.
	tool(t, e, "doctor").want(t, exitFindings, "broken: subscription mail.confirm: it is 5 events behind", "why: ", "fix: ")
}

func TestDoctorOnSQS(t *testing.T) {
	url := drivertest.Server(t, "TIDINGS_ELASTICMQ_URL")
	e := environment{"EVENT_DRIVER": "sqs", "AWS_ENDPOINT_URL": url, "EVENT_NAMESPACE": unique(t)}
	client := sqs.New(sqs.Options{BaseEndpoint: &url, Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider("local", "local", "")})
	t.Cleanup(func() {
		found, err := client.ListQueues(context.Background(), &sqs.ListQueuesInput{QueueNamePrefix: aws.String(e["EVENT_NAMESPACE"])})
		for n := 0; err == nil && n < len(found.QueueUrls); n++ {
			_, err = client.DeleteQueue(context.Background(), &sqs.DeleteQueueInput{QueueUrl: &found.QueueUrls[n]})
		}
		if err != nil {
			t.Error(err)
		}
	})
	if checks, o := examine(t, e, shop...); !slices.Equal(checks, []string{"sqs-declarations-missing", "sqs-queue-missing"}) || o.code != exitFindings {
		t.Errorf("missing queues: %v, exit status %d", checks, o.code)
	}
	name := e["EVENT_NAMESPACE"] + "-events-shop-order-placed.fifo"
	if _, err := client.CreateQueue(t.Context(), &sqs.CreateQueueInput{QueueName: &name, Attributes: map[string]string{"FifoQueue": "true"}}); err != nil {
		t.Fatal(err)
	}
	if checks, o := examine(t, e, shop...); !slices.Contains(checks, "sqs-redrive-missing") || o.code != exitFindings {
		t.Errorf("no redrive: %v, exit status %d", checks, o.code)
	}
}

func TestDoctorOnRedis(t *testing.T) {
	for check, arguments := range map[string][]string{
		"redis-eviction":   {"--appendonly", "yes", "--appendfsync", "always", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"},
		"redis-appendonly": {"--appendonly", "no"},
	} {
		server := redistest.Start(t, arguments...)
		e := environment{"EVENT_DRIVER": "redis-streams", "REDIS_URL": server.URL()}
		if checks, o := examine(t, e, shop...); !slices.Equal(checks, []string{check}) || o.code != exitFindings {
			t.Errorf("%s: %v, exit status %d", check, checks, o.code)
		}
	}
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	e := environment{"EVENT_DRIVER": "redis-streams", "REDIS_URL": server.URL()}
	tool(t, e, append([]string{"doctor"}, shop...)...).want(t, exitOK, "Nothing is broken or weak.")
	handleOne(t, e, "mail.confirm")
	publishMore(t, e, 3)
	if checks, _ := examine(t, e, shop...); !slices.Equal(checks, []string{"subscription-lag"}) {
		t.Errorf("a group with lag: %v", checks)
	}
}

func TestDoctorOnDatabases(t *testing.T) {
	for name, e := range map[string]environment{"sqlite": onSQLite(t).with(environment{"EVENT_DRIVER": "sqlite"}), "postgres": onPostgres(t).with(environment{"EVENT_DRIVER": "postgres"})} {
		t.Run(name, func(t *testing.T) {
			if name == "sqlite" {
				tool(t, e, "doctor").want(t, exitUsage, "name the file that the application uses")
			} else if checks, o := examine(t, e); !slices.Contains(checks, "sql-schema") {
				t.Errorf("no tables: %v %s", checks, o.err)
			}
			tool(t, e, "provision", "--dry-run").want(t, exitFindings, "missing", "tables")
			tool(t, e, "provision").want(t, exitOK, "made", "tables")
			tool(t, e, "provision", "--dry-run").want(t, exitOK, "there", "tables")
			handleOne(t, e, "mail.confirm")
			checks, _ := examine(t, e, shop...)
			if slices.Contains(checks, "subscription-lag") || slices.Contains(checks, "sql-schema") {
				t.Errorf("as it should be: %v", checks)
			}
			var fsync string
			if name == "postgres" {
				fsync = settingOf(t, e["DATABASE_URL"], "fsync")
			}
			if slices.Contains(checks, "postgres-fsync") != (fsync == "off") {
				t.Errorf("fsync is %q: %v", fsync, checks)
			}
			publishMore(t, e, 3)
			eventually(t, "the lag is not found", func() bool {
				checks, _ := examine(t, e, shop...)
				return slices.Contains(checks, "subscription-lag")
			})
		})
	}
}

func TestDoctorRefuses(t *testing.T) {
	tool(t, nil, "doctor").want(t, exitUsage, "neither a broker nor a database")
	tool(t, environment{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": "127.0.0.1:1"}, "doctor").want(t, exitFailure, "did not answer", "127.0.0.1:1")
	tool(t, nil, "doctor", "--topology", "/nowhere.json").want(t, exitUsage, "--topology /nowhere.json")
	tool(t, nil, "doctor", "--subscription", "x").want(t, exitUsage, "NAME=CHANNEL")
	tool(t, nil, "doctor", "--max-lag", "0").want(t, exitUsage, "--max-lag is 0")
	file := filepath.Join(t.TempDir(), "t.json")
	if err := os.WriteFile(file, []byte(`{"format":9}`), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, nil, "doctor", "--topology", file).want(t, exitUsage, "its format is 9")
}

// What a bus describes is what the command reads.
func TestTopologyOfABus(t *testing.T) {
	bus, err := setup.New(t.Context(), setup.Config{Environment: setup.Test}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Module("shop").Publishes(orderPlaced); err != nil {
		t.Fatal(err)
	}
	bus.Module("mail").Subscribe("confirm", nil, orderPlaced.On(func(context.Context, tidings.Event[placed]) error { return nil }))
	text, err := json.Marshal(bus.Describe())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "topology.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	e := environment{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": "broker-1:9092", "EVENT_NAMESPACE": "shop"}
	// Nothing is asked for it, so that it may be written on any machine.
	tool(t, e, "provision", "--print", "--topology", file, "--principal", "app").want(t, exitOK, "# Kafka ACLs",
		"kafka-acls.sh --bootstrap-server broker-1:9092 --add --allow-principal 'User:app' --operation Describe --operation DescribeConfigs --operation Read --operation Write --topic 'shop.events.shop-order-placed'",
		"--group 'shop.mail.confirm'")
	if err := bus.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
