package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
)

// results returns the states of a failed publish.
func results(t testing.TB, err error) []driver.PublishResult {
	t.Helper()
	failed, ok := errors.AsType[*driver.PublishError](err)
	if !ok {
		t.Fatalf("not a PublishError: %v", err)
	}
	return failed.Results
}

func states(t testing.TB, err error) string {
	t.Helper()
	var all []string
	for _, r := range results(t, err) {
		all = append(all, r.State.String())
	}
	return strings.Join(all, ", ")
}

// refuse answers produce requests with an error code, from the n-th on, as many
// times as said.
func refuse(cluster *kfake.Cluster, after, times int, code *kerr.Error) {
	var seen int
	cluster.ControlKey(int16(kmsg.Produce), func(request kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		seen++
		if seen <= after || seen > after+times {
			return nil, nil, false
		}
		asked := request.(*kmsg.ProduceRequest)
		answer := asked.ResponseKind().(*kmsg.ProduceResponse)
		for _, topic := range asked.Topics {
			to := kmsg.NewProduceResponseTopic()
			to.Topic, to.TopicID = topic.Topic, topic.TopicID
			for _, p := range topic.Partitions {
				part := kmsg.NewProduceResponseTopicPartition()
				part.Partition, part.ErrorCode = p.Partition, code.Code
				to.Partitions = append(to.Partitions, part)
			}
			answer.Topics = append(answer.Topics, to)
		}
		return answer, nil, true
	})
}

func TestPublishRunFailsAsATail(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	publish(t, d, message("a.b.c", "warm", "0"))
	refuse(cluster, 2, 1, kerr.MessageTooLarge)
	err := d.Publish(t.Context(), numbered("a.b.c", "k", 1, 6))
	if got, want := states(t, err), "stored, stored, not stored, not stored, not stored"; got != want {
		t.Fatalf("got %s, want %s: %v", got, want, err)
	}
	if !errors.Is(results(t, err)[2].Err, driver.ErrTooLarge) {
		t.Fatalf("the third: %v", results(t, err)[2].Err)
	}
	publish(t, d, numbered("a.b.c", "k", 3, 6)...)
	s := drivertest.NewSink()
	drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
	drivertest.Eventually(t, "6 deliveries", func() bool { return s.Count() >= 6 })
	if got := s.Bodies(); got != "0 1 2 3 4 5" {
		t.Fatalf("stored %s", got)
	}
}

func TestPublishPipelinesDifferentKeys(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	publish(t, d, message("a.b.c", "warm", "0"))
	var requests atomic.Int32
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		requests.Add(1)
		return nil, nil, false
	})
	var messages []driver.Message
	for n := range 100 {
		messages = append(messages, message("a.b.c", fmt.Sprint("key-", n), "x"))
	}
	publish(t, d, messages...)
	if got := requests.Load(); got > 10 {
		t.Fatalf("%d requests for 100 messages of 100 keys", got)
	}
	requests.Store(0)
	publish(t, d, numbered("a.b.c", "same", 0, 10)...)
	if got := requests.Load(); got != 10 {
		t.Fatalf("%d requests for a run of 10: one at a time is the promise", got)
	}
}

func TestPublishTooLargeSendsNothing(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), func(o *Options) { o.MaxMessageBytes = 10_000 })
	huge := message("a.b.c", "k", "huge")
	huge.Body = make([]byte, 10_001)
	err := d.Publish(t.Context(), []driver.Message{message("a.b.c", "k", "1"), huge, message("a.b.c", "other", "2")})
	if got, want := states(t, err), "not stored, not stored, not stored"; got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	r := results(t, err)
	if !errors.Is(r[1].Err, driver.ErrTooLarge) || !strings.Contains(r[1].Err.Error(), "MaxMessageBytes is 10000") {
		t.Errorf("the large one: %v", r[1].Err)
	}
	if errors.Is(r[0].Err, driver.ErrTooLarge) || errors.Is(r[2].Err, driver.ErrTooLarge) {
		t.Errorf("the small ones: %v, %v", r[0].Err, r[2].Err)
	}
	if info := cluster.PartitionInfo("events.a-b-c", 0); info != nil && info.HighWatermark > 0 {
		t.Error("something was sent")
	}

	limit := "2000"
	if err := cluster.CreateTopic("events.small-topic-x", 1, map[string]string{"max.message.bytes": limit}); err != nil {
		t.Fatal(err)
	}
	huge = message("small.topic.x", "k", "huge")
	huge.Body = make([]byte, 3000)
	err = d.Publish(t.Context(), []driver.Message{huge})
	if r := results(t, err); !errors.Is(r[0].Err, driver.ErrTooLarge) || !strings.Contains(r[0].Err.Error(), "max.message.bytes is 2000") {
		t.Errorf("over the topic's limit: %v", r[0].Err)
	}
}

func TestPublishUnknownTopic(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), func(o *Options) { o.Provision = ProvisionNever })
	if err := cluster.CreateTopic("events.there-is-one", 1, nil); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	err := d.Publish(t.Context(), []driver.Message{message("no.such.topic", "k", "1"), message("there.is.one", "k", "2"), message("no.such.topic", "j", "3")})
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	if got, want := states(t, err), "not stored, stored, not stored"; got != want {
		t.Fatalf("got %s, want %s: %v", got, want, err)
	}
	for _, part := range []string{"events.no-such-topic", "create it", "Provision"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("no %q in %v", part, err)
		}
	}
	if !errors.Is(err, kerr.UnknownTopicOrPartition) {
		t.Errorf("does not wrap the broker's error: %v", err)
	}
	// Once it exists it is found.
	if err := cluster.CreateTopic("events.no-such-topic", 1, nil); err != nil {
		t.Fatal(err)
	}
	publish(t, d, message("no.such.topic", "k", "1"))
}

func TestPublishTopicDeletedMeanwhile(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), func(o *Options) { o.Provision = ProvisionNever })
	if err := cluster.CreateTopic("events.a-b-c", 1, nil); err != nil {
		t.Fatal(err)
	}
	publish(t, d, message("a.b.c", "k", "1"))
	if err := cluster.DeleteTopic("events.a-b-c"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := d.Publish(ctx, []driver.Message{message("a.b.c", "k", "2")})
	if r := results(t, err); r[0].State != driver.NotStored || !strings.Contains(err.Error(), "does not exist") {
		t.Fatalf("%v", err)
	}
}

func TestProvision(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), func(o *Options) {
		o.Namespace, o.Partitions, o.Retention, o.MaxMessageBytes = "shop", 3, time.Hour, 2_000_000
	})
	drivertest.Start(t, d, subscription("x.y", "a.b.c"), drivertest.NewSink())
	config := func(topic, key string) string {
		t.Helper()
		live, err := kadm.NewClient(client(t, cluster.ListenAddrs())).DescribeTopicConfigs(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range live[0].Configs {
			if c.Key == key {
				return c.MaybeValue()
			}
		}
		return ""
	}
	events, dead := "shop.events.a-b-c", "shop.events.a-b-c.x.y.dead"
	if info := cluster.PartitionInfos(events); len(info) != 3 {
		t.Fatalf("%s: %+v", events, info)
	}
	if info := cluster.PartitionInfos(dead); len(info) != 1 {
		t.Fatalf("%s: %+v", dead, info)
	}
	for _, c := range []struct{ topic, key, want string }{
		{events, "retention.ms", "3600000"},
		{events, "max.message.bytes", fmt.Sprint(2_000_000 + batchRoom)},
		{dead, "retention.ms", "-1"},
		{dead, "max.message.bytes", fmt.Sprint(2_000_000 + batchRoom + deadLetterRoom)},
	} {
		if got := config(c.topic, c.key); got != c.want {
			t.Errorf("%s %s: got %s, want %s", c.topic, c.key, got, c.want)
		}
	}
	// As large as it may be: the event, and its dead letter with everything.
	large := message("a.b.c", "k", "large")
	large.Body = make([]byte, 2_000_000-len("k")-len(driver.HeaderEventID)-len("large"))
	publish(t, d, large)
	letter := driver.DeadLetter{
		Subscription: "x.y", Channel: "a.b.c", ID: "large", AggregateID: "k", Reason: "exhausted", Err: strings.Repeat("error ", 10_000),
		Stack: strings.Repeat("stack ", 10_000), Attempts: 5, Headers: large.Headers, Body: large.Body,
	}
	if err := d.PutDeadLetter(t.Context(), letter); err != nil {
		t.Fatal(err)
	}
}

func TestPublishContextEnds(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	publish(t, d, message("a.b.c", "warm", "0"))
	arrived, release := make(chan struct{}, 10), make(chan struct{})
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		arrived <- struct{}{}
		cluster.SleepControl(func() { <-release })
		return nil, nil, false
	})
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() { failed <- d.Publish(ctx, numbered("a.b.c", "k", 1, 3)) }()
	<-arrived
	began := time.Now()
	cancel()
	err := <-failed
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took)
	}
	if got, want := states(t, err), "unknown, not stored"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	close(release)
	if err := d.Publish(ctx, numbered("a.b.c", "k", 1, 3)); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
	publish(t, d, message("a.b.c", "k", "after"))
}

// TestPublishSurvivesAnotherOnesContext: messages of two calls share a batch that
// cannot be sent, one call gives up, the other must not notice.
func TestPublishSurvivesAnotherOnesContext(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	publish(t, d, message("a.b.c", "warm", "0"))
	refuse(cluster, 0, 3, kerr.NotLeaderForPartition)
	var calls sync.WaitGroup
	calls.Go(func() {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_ = d.Publish(ctx, []driver.Message{message("a.b.c", "first", "gives up")})
	})
	for n := range 5 {
		calls.Go(func() {
			if err := d.Publish(t.Context(), []driver.Message{message("a.b.c", fmt.Sprint("k", n), "stays")}); err != nil {
				t.Errorf("the other: %v", err)
			}
		})
	}
	calls.Wait()
}

func TestPublishWithoutBroker(t *testing.T) {
	d := newDriver(t, []string{"127.0.0.1:1"})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	err := d.Publish(ctx, []driver.Message{message("a.b.c", "k", "1")})
	if err == nil || time.Since(began) > 3*time.Second {
		t.Fatalf("%v after %v", err, time.Since(began))
	}
	if got := states(t, err); got != "not stored" {
		t.Fatalf("%s: %v", got, err)
	}
}

func TestDeadLetters(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs())
	letter := driver.DeadLetter{
		Subscription: "x.y", Channel: "a.b.c", ID: "id-1", AggregateID: "user-1", Reason: "permanent", Err: "it is broken \xff" + strings.Repeat("é", 10_000),
		Stack: strings.Repeat("s", 100_000), Attempts: 3, FailedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Position: "events.a-b-c/0/7",
		Headers: driver.Headers{{Name: driver.HeaderEventType, Value: "a.b.c"}}, Body: []byte("not json"),
	}
	if err := d.PutDeadLetter(t.Context(), letter); err != nil {
		t.Fatal(err)
	}
	c := client(t, cluster.ListenAddrs(), kgo.ConsumeTopics(d.DeadLetterName("a.b.c", "x.y")))
	records := c.PollFetches(t.Context()).Records()
	if len(records) != 1 || string(records[0].Value) != "not json" || string(records[0].Key) != "user-1" {
		t.Fatalf("stored %v", records)
	}
	got := make(map[string]string)
	for _, h := range records[0].Headers {
		got[h.Key] = string(h.Value)
	}
	for name, want := range map[string]string{
		driver.HeaderEventType: "a.b.c", driver.HeaderDeadReason: "permanent", driver.HeaderDeadAttempts: "3", driver.HeaderDeadSubscription: "x.y", driver.HeaderDeadChannel: "a.b.c",
		driver.HeaderDeadPosition: "events.a-b-c/0/7", driver.HeaderDeadTime: "2026-01-02T03:04:05.000Z", driver.HeaderDeadEventID: "id-1",
	} {
		if got[name] != want {
			t.Errorf("%s: got %q, want %q", name, got[name], want)
		}
	}
	if text := got[driver.HeaderDeadError]; len(text) > maxDeadError || !strings.HasPrefix(text, "it is broken") || !strings.HasSuffix(text, "é …") {
		t.Errorf("error of %d bytes: %.40q", len(text), text)
	}
	if len(got[driver.HeaderDeadStack]) > maxDeadStack {
		t.Errorf("stack of %d bytes", len(got[driver.HeaderDeadStack]))
	}

	// A topic that somebody else made takes less: the body goes first.
	narrow := d.DeadLetterName("d.e.f", "x.y")
	if err := cluster.CreateTopic(narrow, 1, map[string]string{"max.message.bytes": "3000"}); err != nil {
		t.Fatal(err)
	}
	letter.Channel, letter.Body = "d.e.f", []byte(strings.Repeat("b", 2000))
	if err := d.PutDeadLetter(t.Context(), letter); err != nil {
		t.Fatal(err)
	}
	letter.Body = []byte(strings.Repeat("b", 4000))
	if err := d.PutDeadLetter(t.Context(), letter); !errors.Is(err, driver.ErrTooLarge) || !strings.Contains(err.Error(), narrow) {
		t.Fatalf("one that cannot fit: %v", err)
	}
}

func TestJudge(t *testing.T) {
	d := newDriver(t, []string{"localhost:1"})
	for _, c := range []struct {
		err  error
		want driver.PublishState
	}{
		{kerr.NotEnoughReplicas, driver.NotStored},
		{kerr.NotEnoughReplicasAfterAppend, driver.Unknown},
		{kerr.RequestTimedOut, driver.Unknown},
		{kerr.TopicAuthorizationFailed, driver.NotStored},
		{kerr.InvalidRecord, driver.NotStored},
		{kgo.ErrRecordTimeout, driver.Unknown},
		{kgo.ErrClientClosed, driver.Unknown},
		{kgo.ErrMaxBuffered, driver.NotStored},
		{context.DeadlineExceeded, driver.NotStored},
		{errors.New("connection reset"), driver.Unknown},
	} {
		got := d.judge("events.a", c.err)
		if got.State != c.want || !errors.Is(got.Err, c.err) && !errors.Is(got.Err, driver.ErrClosed) || !strings.HasPrefix(got.Err.Error(), "kafka: ") {
			t.Errorf("%v: %v, %v", c.err, got.State, got.Err)
		}
	}
}

// A call whose last message is confirmed in the moment in which its context ends
// has not failed.
func TestTheLastConfirmationWinsOverTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := &call{ctx: ctx, wake: make(chan struct{}, 1), records: make([]kgo.Record, 1), steps: []step{{next: -1, first: true, sent: true}}, results: make([]driver.PublishResult, 1)}
	c.settled(0, nil)
	if err := c.abandon(); err != nil {
		t.Errorf("everything is stored and the error is %v", err)
	}
}
