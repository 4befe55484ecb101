package kafka

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
)

func TestConformance(t *testing.T) {
	drivertest.Run(t, conformance(newCluster(t).ListenAddrs()))
}

func TestRealConformance(t *testing.T) {
	drivertest.Run(t, conformance(brokers(t, "KAFKA_BROKERS")))
}

func BenchmarkDriver(b *testing.B) {
	drivertest.RunBenchmarks(b, conformance(benchBrokers(b)))
}

var namespaces atomic.Int64

// conformance gives each case a namespace of its own on one broker, and leaves
// nothing of it behind.
func conformance(addresses []string) drivertest.Harness {
	// make mutants shortens it: what it breaks never comes.
	shorter, _ := time.ParseDuration(os.Getenv("TIDINGS_TEST_PATIENCE"))
	return drivertest.Harness{Patience: shorter, NewBroker: func(t testing.TB) drivertest.Broker {
		prefix := fmt.Sprintf("conformance-%d-%d", time.Now().UnixNano(), namespaces.Add(1))
		t.Cleanup(func() { removeNamespace(t, addresses, prefix) })
		line := &drivertest.Line{}
		return drivertest.Broker{
			Open: func(t testing.TB) driver.Driver {
				d, err := New(Options{
					Brokers: addresses, Namespace: prefix, Partitions: 4,
					SessionTimeout: 10 * time.Second, RebalanceTimeout: 10 * time.Second,
					ClientOptions: []kgo.Opt{
						// Members hear of a change of the group with a heartbeat.
						kgo.HeartbeatInterval(100 * time.Millisecond),
						kgo.Dialer(line.Dial),
					},
				})
				if err != nil {
					t.Fatal(err)
				}
				return d
			},
			PutRaw:      func(t testing.TB, m driver.Message) { putRaw(t, addresses, prefix, m) },
			DeadLetters: func(t testing.TB) []driver.DeadLetter { return deadLetters(t, addresses, prefix) },
			Interrupt:   line.Interrupt,
		}
	}}
}

// putRaw writes a record with a plain client, to a topic that exists.
func putRaw(t testing.TB, addresses []string, prefix string, m driver.Message) {
	t.Helper()
	r := &kgo.Record{Topic: prefix + ".events." + strings.ReplaceAll(m.Channel, ".", "-"), Key: []byte(m.Key), Value: m.Body}
	for _, h := range m.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Name, Value: []byte(h.Value)})
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := client(t, addresses).ProduceSync(ctx, r).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// deadLetters reads every dead letter topic of a namespace to its end, with a
// plain client, as an operator would.
func deadLetters(t testing.TB, addresses []string, prefix string) []driver.DeadLetter {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	admin := kadm.NewClient(client(t, addresses))
	topics, err := admin.ListTopics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	from := make(map[string]map[int32]kgo.Offset)
	left := int64(0)
	for _, name := range topics.Names() {
		if !strings.HasPrefix(name, prefix+".") || !strings.HasSuffix(name, deadSuffix) {
			continue
		}
		ends, err := admin.ListEndOffsets(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		from[name] = make(map[int32]kgo.Offset)
		ends.Each(func(o kadm.ListedOffset) {
			from[name][o.Partition] = kgo.NewOffset().AtStart()
			left += o.Offset
		})
	}
	if left == 0 {
		return nil
	}
	reader := client(t, addresses, kgo.ConsumePartitions(from))
	var letters []driver.DeadLetter
	for int64(len(letters)) < left {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("%d of %d dead letters were read: %v", len(letters), left, err)
		}
		fetches.EachRecord(func(r *kgo.Record) { letters = append(letters, readDeadLetter(t, r)) })
	}
	return letters
}

func readDeadLetter(t testing.TB, r *kgo.Record) driver.DeadLetter {
	var headers driver.Headers
	for _, h := range r.Headers {
		headers = append(headers, driver.Header{Name: h.Key, Value: string(h.Value)})
	}
	letter, err := driver.ParseDeadLetter(headers, r.Value)
	if err != nil {
		t.Error(err)
	}
	letter.AggregateID = string(r.Key)
	return letter
}

// removeNamespace deletes the topics and groups of one case.
func removeNamespace(t testing.TB, addresses []string, prefix string) {
	c, err := kgo.NewClient(kgo.SeedBrokers(addresses...))
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	admin := kadm.NewClient(c)
	topics, err := admin.ListTopics(ctx)
	if err != nil {
		t.Errorf("list topics: %v", err)
		return
	}
	var ours []string
	for _, name := range topics.Names() {
		if strings.HasPrefix(name, prefix+".") {
			ours = append(ours, name)
		}
	}
	if _, err := admin.DeleteTopics(ctx, ours...); err != nil {
		t.Errorf("delete topics: %v", err)
	}
	groups, err := admin.ListGroups(ctx)
	if err != nil {
		t.Errorf("list groups: %v", err)
		return
	}
	ours = nil
	for _, name := range groups.Groups() {
		if strings.HasPrefix(name, prefix+".") {
			ours = append(ours, name)
		}
	}
	if _, err := admin.DeleteGroups(ctx, ours...); err != nil {
		t.Errorf("delete groups: %v", err)
	}
}
