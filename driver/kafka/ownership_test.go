package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
)

func TestRevokeWaitsAndSettles(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), func(o *Options) { o.Partitions = 2 })
	var messages []driver.Message
	for n := range 40 {
		messages = append(messages, message("a.b.c", fmt.Sprint("k", n), fmt.Sprint(n)))
	}
	publish(t, d, messages...)
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
	drivertest.Eventually(t, "forty", func() bool { return s.Count() == 40 })
	settled := make(chan error, 10)
	s.OnRevoke(func(ctx context.Context, sources []driver.Source) {
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > 9*time.Second {
			settled <- fmt.Errorf("bound %v", deadline)
		}
		var running []driver.Delivery
		for _, d := range s.Got() {
			if d.Source == sources[0] {
				running = append(running, d)
			}
		}
		done := make(chan struct{})
		go func() { // as the engine's settler does
			settled <- r.Settle(ctx, drivertest.Finished(running[:len(running)-1]...))
			close(done)
		}()
		<-done
	})

	other := newDriver(t, cluster.ListenAddrs())
	s2 := drivertest.NewSink()
	drivertest.Start(t, other, subscription("x.y", "a.b.c"), s2)
	drivertest.Eventually(t, "the one that was not finished", func() bool { return s2.Count() >= 1 })
	if err := <-settled; err != nil {
		t.Fatalf("Settle during Revoke: %v", err)
	}
	if len(s.Revoked()) != 1 {
		t.Fatalf("revoked %v", s.Revoked())
	}
	publish(t, d, messages...)
	drivertest.Eventually(t, "forty more", func() bool { return s.Count()+s2.Count() >= 81 })
	var again []driver.Delivery
	for _, d := range s2.Got() {
		if d.Source.Name != s.Revoked()[0].Name {
			t.Fatalf("the second has %v", d.Source)
		}
		if len(again) == 0 || again[0].Ref.Position() != d.Ref.Position() {
			again = append(again, d)
		}
	}
	var last string
	for _, d := range s.Got()[:40] {
		if d.Source == s.Revoked()[0] {
			last = d.Ref.Position()
		}
	}
	if again[0].Ref.Position() != last {
		t.Errorf("came again %s, unfinished was %s", again[0].Ref.Position(), last)
	}
	if len(s.Reports(driver.ReportRevoked)) != 1 || len(s2.Reports(driver.ReportAssigned)) != 1 {
		t.Error("the change was not reported")
	}
	// Late settlements of what was given up are dropped.
	r.Finish(t, s.Got()[:40]...)
	if got := committedOffset(t, d, "x.y", "events.a-b-c", again[0].Ref.(*place).partition.number); got >= 20 {
		t.Errorf("a late settlement moved the position to %d", got)
	}
}

func TestRevokeIsBounded(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), func(o *Options) {
		o.Partitions, o.RebalanceTimeout, o.RevokeMargin = 2, 2*time.Second, 1500*time.Millisecond
	})
	s := drivertest.NewSink()
	ended := make(chan struct{})
	s.OnRevoke(func(ctx context.Context, _ []driver.Source) {
		<-ctx.Done()
		close(ended)
	})
	drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
	other := newDriver(t, cluster.ListenAddrs())
	s2 := drivertest.NewSink()
	drivertest.Start(t, other, subscription("x.y", "a.b.c"), s2)
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the bound did not come")
	}
	drivertest.Eventually(t, "the second owns one", func() bool { return len(s2.Reports(driver.ReportAssigned)) == 1 })
}

func TestLost(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single, func(o *Options) { o.SessionTimeout = 600 * time.Millisecond })
	s := drivertest.NewSink()
	sub := subscription("x.y", "a.b.c")
	r := drivertest.Start(t, d, sub, s)
	publish(t, d, numbered("a.b.c", "k", 0, 3)...)
	drivertest.Eventually(t, "three", func() bool { return s.Count() == 3 })
	r.Finish(t, s.Got()[1])
	var times atomic.Int32
	cluster.ControlKey(int16(kmsg.Heartbeat), func(request kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if times.Add(1) > 1 {
			return nil, nil, false
		}
		answer := request.ResponseKind().(*kmsg.HeartbeatResponse)
		answer.ErrorCode = kerr.UnknownMemberID.Code
		return answer, nil, true
	})
	drivertest.Eventually(t, "lost", func() bool { return len(s.Reports(driver.ReportLost)) == 1 })
	drivertest.Eventually(t, "what was unfinished again", func() bool { return s.Count() == 5 })
	if got := s.Bodies(); got != "0 1 2 0 2" {
		t.Fatalf("got %s", got)
	}
	if first, second := s.Got()[0].Source, s.Got()[4].Source; second.Epoch <= first.Epoch || s.Lost()[0] != first {
		t.Fatalf("epochs %v, %v, lost %v", first, second, s.Lost())
	}
	r.Finish(t, s.Got()[0], s.Got()[2]) // of the earlier ownership
	if got := committedOffset(t, d, "x.y", "events.a-b-c", 0); got != 0 {
		t.Fatalf("an earlier ownership moved the position to %d", got)
	}
	r.Finish(t, s.Got()[3:]...)
	if got := committedOffset(t, d, "x.y", "events.a-b-c", 0); got != 3 {
		t.Fatalf("committed %d", got)
	}
}

func TestOutage(t *testing.T) {
	cluster := newCluster(t)
	var down atomic.Bool
	var mu sync.Mutex
	var open []net.Conn
	dial := kgo.Dialer(func(ctx context.Context, network, host string) (net.Conn, error) {
		if down.Load() {
			return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("connection refused")}
		}
		c, err := (&net.Dialer{}).DialContext(ctx, network, host)
		if err == nil {
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
		}
		return c, err
	})
	d := newDriver(t, cluster.ListenAddrs(), single, func(o *Options) {
		o.ClientOptions = append(o.ClientOptions, dial)
		o.SessionTimeout = 900 * time.Millisecond
	})
	s := drivertest.NewSink()
	r := drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
	publish(t, d, message("a.b.c", "k", "0"))
	drivertest.Eventually(t, "one", func() bool { return s.Count() == 1 })
	r.Finish(t, s.Got()...)
	down.Store(true)
	mu.Lock()
	for _, c := range open {
		c.Close()
	}
	mu.Unlock()
	drivertest.Eventually(t, "an outage", func() bool { return len(s.Reports(driver.ReportOutage)) == 1 })
	down.Store(false)
	drivertest.Eventually(t, "its end", func() bool { return len(s.Reports(driver.ReportRecovered)) == 1 })
	publish(t, d, message("a.b.c", "k", "1"))
	drivertest.Eventually(t, "another", func() bool { return s.Count() == 2 })
	if got := s.Bodies(); got != "0 1" {
		t.Fatalf("got %s", got)
	}
	for _, report := range s.Reports(driver.ReportRecovered) {
		if report.Duration < 500*time.Millisecond {
			t.Errorf("recovered after %v", report.Duration)
		}
	}
}

// TestRebalancingLosesNothing: members come and go while events are published;
// per key each is finished in order, and none is skipped.
func TestRebalancingLosesNothing(t *testing.T) {
	cluster := newCluster(t)
	publisher := newDriver(t, cluster.ListenAddrs(), func(o *Options) { o.Partitions = 6 })
	publish(t, publisher, message("a.b.c", "warm", "0"))
	const keys, each = 20, 60
	var mu sync.Mutex
	seen := make(map[string]int) // by key: the highest number that was settled in order
	total := make(map[string]bool)
	member := func() *drivertest.Running {
		d := newDriver(t, cluster.ListenAddrs())
		s := drivertest.NewSink()
		work := make(chan []driver.Delivery, 10_000)
		var c atomic.Pointer[drivertest.Running]
		ready := make(chan struct{})
		s.OnDeliver(func(deliveries []driver.Delivery) { work <- append([]driver.Delivery(nil), deliveries...) })
		var handler sync.WaitGroup
		idle := make(chan chan struct{})
		stop := make(chan struct{})
		handler.Go(func() {
			<-ready
			gone := make(map[driver.Source]bool)
			for {
				select {
				case batch := <-work:
					var done []driver.Delivery
					for _, d := range batch {
						for _, r := range append(s.Revoked(), s.Lost()...) {
							gone[r] = true
						}
						if gone[d.Source] {
							continue
						}
						mu.Lock()
						var n int
						if _, err := fmt.Sscan(string(d.Body), &n); err == nil && d.Key != "warm" {
							if n > seen[d.Key]+1 {
								t.Errorf("key %s: %d after %d", d.Key, n, seen[d.Key])
							}
							seen[d.Key] = max(seen[d.Key], n)
							total[d.Key+"/"+string(d.Body)] = true
						}
						mu.Unlock()
						done = append(done, d)
					}
					if err := c.Load().Settle(context.Background(), drivertest.Finished(done...)); err != nil {
						t.Logf("Settle: %v", err) // it will come again
					}
				case answer := <-idle:
					close(answer)
				case <-stop:
					return
				}
			}
		})
		s.OnRevoke(func(context.Context, []driver.Source) {
			answer := make(chan struct{})
			select {
			case idle <- answer:
				<-answer
			case <-stop:
			}
		})
		r := drivertest.Start(t, d, subscription("x.y", "a.b.c"), s)
		c.Store(r)
		close(ready)
		t.Cleanup(func() {
			r.End(t)
			close(stop)
			handler.Wait()
		})
		return r
	}
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for n := 1; n <= each; n++ {
			var messages []driver.Message
			for key := range keys {
				messages = append(messages, message("a.b.c", fmt.Sprint("k", key), fmt.Sprint(n)))
			}
			publish(t, publisher, messages...)
		}
	})
	first := member()
	member()
	first.End(t)
	member()
	publishing.Wait()
	drivertest.Eventually(t, "all events", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(total) == keys*each
	})
}
