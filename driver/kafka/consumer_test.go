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
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
)

// committedOffset is what the group has stored for a partition, -1 for nothing.
func committedOffset(t testing.TB, d *Driver, group, topic string, partition int32) int64 {
	t.Helper()
	stored, err := d.storedPositions(t.Context(), group, []string{topic})
	if err != nil {
		t.Fatal(err)
	}
	if at, ok := stored[topic][partition]; ok {
		return at.At
	}
	return -1
}

func TestStartUnsetIsRefused(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs())
	s := subscription("x.y", "a.b.c")
	s.StartAt = driver.StartAt{}
	_, err := d.Subscribe(t.Context(), s, drivertest.NewSink())
	if err == nil {
		t.Fatal("accepted")
	}
	for _, part := range []string{"kafka: ", "x.y", "events.a-b-c", "StartAt Beginning", "StartAt Now"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("no %q in %v", part, err)
		}
	}
	// One that has a position needs nothing.
	drivertest.Start(t, d, subscription("x.y", "a.b.c"), drivertest.NewSink()).End(t)
	drivertest.Start(t, d, s, drivertest.NewSink())
}

func TestStartNowIsPinned(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), func(o *Options) { o.Partitions = 3 })
	publish(t, d, message("a.b.c", "k", "before"))
	now := subscription("x.y", "a.b.c")
	now.StartAt.Mode = driver.StartNow
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, now, s)
	publish(t, d, message("a.b.c", "k", "after"))
	drivertest.Eventually(t, "a delivery", func() bool { return s.Count() > 0 })
	r.End(t) // nothing was settled
	publish(t, d, message("a.b.c", "k", "while away"))

	s = drivertest.NewSink()
	drivertest.Start(t, d, now, s)
	drivertest.Eventually(t, "both", func() bool { return s.Count() == 2 })
	if got := s.Bodies(); got != "after while away" {
		t.Fatalf("got %s", got)
	}
}

// TestStartNowOfSeveral: whoever says that it joined misses nothing published
// from then on, also when another member owns the partition.
func TestStartNowOfSeveral(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), func(o *Options) { o.Partitions = 4 })
	publish(t, d, numbered("a.b.c", "old", 0, 3)...)
	now := subscription("x.y", "a.b.c")
	now.StartAt.Mode = driver.StartNow
	var all sync.WaitGroup
	var mu sync.Mutex
	want := make(map[string]bool)
	var sinks []*drivertest.Sink
	for n := range 6 {
		other := newDriver(t, cluster.ListenAddrs())
		s := drivertest.NewSink()
		sinks = append(sinks, s)
		all.Go(func() {
			drivertest.Start(t, other, now, s)
			body := fmt.Sprint("after ", n)
			mu.Lock()
			want[body] = true
			mu.Unlock()
			publish(t, d, message("a.b.c", fmt.Sprint("key-", n), body))
		})
	}
	all.Wait()
	drivertest.Eventually(t, "all six", func() bool {
		got := make(map[string]bool)
		for _, s := range sinks {
			for _, d := range s.Got() {
				got[string(d.Body)] = true
			}
		}
		for body := range want {
			if !got[body] {
				return false
			}
		}
		return true
	})
	for _, s := range sinks {
		for _, d := range s.Got() {
			if d.Key == "old" {
				t.Fatalf("%s was published before", d.Body)
			}
		}
	}
}

func TestStartAtTime(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	publish(t, d, message("a.b.c", "k", "early"))
	c := client(t, cluster.ListenAddrs())
	for n, at := range []string{"2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"} {
		when, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.ProduceSync(t.Context(), &kgo.Record{Topic: "events.d-e-f", Value: []byte(fmt.Sprint(n)), Timestamp: when}).FirstErr(); err != nil {
			if n > 0 || cluster.CreateTopic("events.d-e-f", 1, nil) != nil {
				t.Fatal(err)
			}
			if err := c.ProduceSync(t.Context(), &kgo.Record{Topic: "events.d-e-f", Value: []byte(fmt.Sprint(n)), Timestamp: when}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	s, from := drivertest.NewSink(), subscription("x.y", "d.e.f")
	from.StartAt = driver.StartAt{Mode: driver.StartTime, Time: time.Date(2026, 1, 15, 0, 0, 0, 0, time.UTC)}
	drivertest.Start(t, d, from, s)
	drivertest.Eventually(t, "two", func() bool { return s.Count() == 2 })
	if got := s.Bodies(); got != "1 2" {
		t.Fatalf("got %s", got)
	}
}

func TestAddedPartitionIsReadFromItsBeginning(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	publish(t, d, message("a.b.c", "k", "before"))
	now := subscription("x.y", "a.b.c")
	now.StartAt.Mode = driver.StartNow
	drivertest.Start(t, d, now, drivertest.NewSink()).End(t)
	c := client(t, cluster.ListenAddrs(), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(10*time.Millisecond))
	if _, err := kadm.NewClient(c).CreatePartitions(t.Context(), 1, "events.a-b-c"); err != nil {
		t.Fatal(err)
	}
	drivertest.Eventually(t, "a record in the new partition", func() bool {
		return c.ProduceSync(t.Context(), &kgo.Record{Topic: "events.a-b-c", Partition: 1, Value: []byte("added")}).FirstErr() == nil
	})
	s := drivertest.NewSink()
	drivertest.Start(t, d, now, s)
	drivertest.Eventually(t, "the record", func() bool { return s.Count() > 0 })
	if got := s.Bodies(); got != "added" {
		t.Fatalf("got %s", got)
	}
}

func TestWindowPausesAndResumes(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	publish(t, d, message("a.b.c", "k0", "0"))
	var messages []driver.Message
	for n := 1; n < 200; n++ {
		messages = append(messages, message("a.b.c", fmt.Sprint("k", n), fmt.Sprint(n)))
	}
	publish(t, d, messages...)
	for name, change := range map[string]func(*driver.Subscription){
		"events": func(s *driver.Subscription) { s.MaxEvents = 10 },
		"bytes":  func(s *driver.Subscription) { s.MaxBytes = 150 },
	} {
		t.Run(name, func(t *testing.T) {
			sub := subscription("x."+name, "a.b.c")
			change(&sub)
			s := drivertest.NewSink()
			r := drivertest.Start(t, d, sub, s)
			drivertest.Eventually(t, "a full window", func() bool { return len(s.Reports(driver.ReportPaused)) == 1 })
			full := s.Count()
			if full < 5 || full > 15 {
				t.Fatalf("%d deliveries", full)
			}
			r.Finish(t, s.Got()[1:]...)
			if name == "events" && s.Count() != full {
				t.Fatalf("%d deliveries while the first is unfinished", s.Count())
			}
			done := full
			r.Finish(t, s.Got()[0])
			for done < 200 {
				drivertest.Eventually(t, "more deliveries", func() bool { return s.Count() > done })
				all := s.Got()
				if len(all) > done+15 {
					t.Fatalf("%d unfinished", len(all)-done)
				}
				r.Finish(t, all[done:]...)
				done = len(all)
			}
			for n, got := range s.Got() {
				if string(got.Body) == "" || got.Ref.Position() != fmt.Sprintf("events.a-b-c/0/%d", n) {
					t.Fatalf("delivery %d is %s", n, got.Ref.Position())
				}
			}
			if len(s.Reports(driver.ReportResumed)) == 0 {
				t.Error("resuming was not reported")
			}
			if got := committedOffset(t, d, "x."+name, "events.a-b-c", 0); got != 200 {
				t.Errorf("committed %d", got)
			}
		})
	}
}

func TestGapsDoNotHoldTheCommit(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	publish(t, d, message("a.b.c", "k", "0"))
	transactional := client(t, cluster.ListenAddrs(), kgo.TransactionalID("t"), kgo.DefaultProduceTopic("events.a-b-c"))
	for n, commit := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort, kgo.TryCommit} {
		if err := transactional.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := transactional.ProduceSync(t.Context(), kgo.StringRecord(fmt.Sprint("t", n)), kgo.StringRecord(fmt.Sprint("u", n))).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := transactional.EndTransaction(t.Context(), commit); err != nil {
			t.Fatal(err)
		}
	}
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
	drivertest.Eventually(t, "five", func() bool { return s.Count() == 5 })
	if got := s.Bodies(); got != "0 t0 u0 t2 u2" {
		t.Fatalf("got %s", got)
	}
	r.Finish(t, s.Got()...)
	end := cluster.PartitionInfo("events.a-b-c", 0).HighWatermark
	drivertest.Eventually(t, "a commit up to the end of the log, markers included", func() bool {
		return committedOffset(t, d, "x.y", "events.a-b-c", 0) == end
	})
}

func TestReleasedComesAgain(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
	publish(t, d, numbered("a.b.c", "k", 0, 3)...)
	drivertest.Eventually(t, "three", func() bool { return s.Count() == 3 })
	all := s.Got()
	released := []driver.Settlement{{Ref: all[1].Ref, Source: all[1].Source, Outcome: driver.Released, After: 50 * time.Millisecond}}
	began := time.Now()
	for range 2 { // the same settlement twice counts once
		if err := r.Settle(t.Context(), released); err != nil {
			t.Fatal(err)
		}
	}
	r.Finish(t, all[0], all[2])
	drivertest.Eventually(t, "it again", func() bool { return s.Count() == 4 })
	if took := time.Since(began); took < 50*time.Millisecond {
		t.Errorf("after %v", took)
	}
	if got := s.Bodies(); got != "0 1 2 1" {
		t.Fatalf("got %s", got)
	}
	if got := committedOffset(t, d, "x.y", "events.a-b-c", 0); got != 1 {
		t.Fatalf("committed %d", got)
	}
	r.Finish(t, s.Got()[3])
	if got := committedOffset(t, d, "x.y", "events.a-b-c", 0); got != 3 {
		t.Fatalf("committed %d", got)
	}
}

func TestSettleReturnsTheFailureOfACommit(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
	publish(t, d, numbered("a.b.c", "k", 0, 3)...)
	drivertest.Eventually(t, "three", func() bool { return s.Count() == 3 })
	cluster.ControlKey(int16(kmsg.OffsetCommit), func(request kmsg.Request) (kmsg.Response, error, bool) {
		asked := request.(*kmsg.OffsetCommitRequest)
		answer := asked.ResponseKind().(*kmsg.OffsetCommitResponse)
		for _, topic := range asked.Topics {
			to := kmsg.NewOffsetCommitResponseTopic()
			to.Topic, to.TopicID = topic.Topic, topic.TopicID
			for _, p := range topic.Partitions {
				to.Partitions = append(to.Partitions, kmsg.OffsetCommitResponseTopicPartition{Partition: p.Partition, ErrorCode: kerr.OffsetMetadataTooLarge.Code})
			}
			answer.Topics = append(answer.Topics, to)
		}
		return answer, nil, true
	})
	err := r.Settle(t.Context(), drivertest.Finished(s.Got()...))
	if !errors.Is(err, kerr.OffsetMetadataTooLarge) || !strings.Contains(err.Error(), "events.a-b-c/0") {
		t.Fatalf("Settle: %v", err)
	}
	for range 2 {
		r.Finish(t, s.Got()...)
	}
	if got := committedOffset(t, d, "x.y", "events.a-b-c", 0); got != 3 {
		t.Fatalf("committed %d", got)
	}
}

func TestSettleAfterRunAndCloseCommitsNothing(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
	publish(t, d, numbered("a.b.c", "k", 0, 3)...)
	drivertest.Eventually(t, "three", func() bool { return s.Count() == 3 })
	r.StopRun(t)
	r.Finish(t, s.Got()[0])
	if got := committedOffset(t, d, "x.y", "events.a-b-c", 0); got != 1 {
		t.Fatalf("committed %d", got)
	}
	var commits atomic.Int32
	cluster.ControlKey(int16(kmsg.OffsetCommit), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		commits.Add(1)
		return nil, nil, false
	})
	publish(t, d, message("a.b.c", "k", "late"))
	r.End(t)
	if commits.Load() != 0 || s.Count() != 3 || len(s.Revoked()) != 0 {
		t.Fatalf("after Run: %d commits, %d deliveries, revoked %v", commits.Load(), s.Count(), s.Revoked())
	}
	if info := cluster.GroupInfo("x.y"); info != nil && len(info.Members) != 0 {
		t.Fatalf("members are left: %+v", info.Members)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Fatalf("a second Close: %v", err)
	}
}

func TestOffsetOutOfRangeStops(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
	publish(t, d, numbered("a.b.c", "k", 0, 10)...)
	drivertest.Eventually(t, "ten", func() bool { return s.Count() == 10 })
	r.Finish(t, s.Got()[:3]...)
	r.End(t)
	if err := cluster.DeleteRecords("events.a-b-c", 0, 7); err != nil {
		t.Fatal(err)
	}
	s = drivertest.NewSink()
	c, err := d.Subscribe(t.Context(), subscription("x.y", "a.b.c"), s)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err = c.Run(ctx)
	if !errors.Is(err, kerr.OffsetOutOfRange) {
		t.Fatalf("Run: %v", err)
	}
	for _, part := range []string{"kafka: ", "subscription x.y", "events.a-b-c/0", "position 3", "reset-offsets"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("no %q in %v", part, err)
		}
	}
	if s.Count() != 0 {
		t.Errorf("delivered %s", s.Bodies())
	}
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if got := committedOffset(t, d, "x.y", "events.a-b-c", 0); got != 3 {
		t.Errorf("the position is now %d", got)
	}
}

func TestSubscribeMissingTopics(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), func(o *Options) { o.Provision = ProvisionNever })
	_, err := d.Subscribe(t.Context(), subscription("x.y", "a.b.c", "d.e.f"), drivertest.NewSink())
	if err == nil {
		t.Fatal("accepted")
	}
	for _, part := range []string{"events.a-b-c ", "events.d-e-f ", "events.a-b-c.x.y.dead", "events.d-e-f.x.y.dead", "subscription x.y"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("no %q in %v", part, err)
		}
	}
	for name, s := range map[string]driver.Subscription{
		"no channel":     subscription("x.y"),
		"illegal":        subscription("x y", "a.b.c"),
		"too long":       subscription(strings.Repeat("x", 240), "a.b.c"),
		"the same topic": subscription("x.y", "a.b-c", "a.b.c"),
	} {
		if _, err := d.Subscribe(t.Context(), s, drivertest.NewSink()); err == nil || !strings.HasPrefix(err.Error(), "kafka: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSubscribeTwice(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single)
	r := drivertest.Start(t, d, subscription("x.y", "a.b.c"), drivertest.NewSink())
	if _, err := d.Subscribe(t.Context(), subscription("x.y", "a.b.c"), drivertest.NewSink()); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("twice: %v", err)
	}
	if err := r.Run(t.Context()); !errors.Is(err, errRunOnce) {
		t.Errorf("Run twice: %v", err)
	}
	never, err := d.Subscribe(t.Context(), subscription("x.z", "a.b.c"), drivertest.NewSink())
	if err != nil {
		t.Fatal(err)
	}
	if err := never.Close(t.Context()); err != nil {
		t.Errorf("Close without Run: %v", err)
	}
}
