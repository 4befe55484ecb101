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
)

func TestRevokeWaitsAndSettles(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), func(o *Options) { o.Partitions = 2 })
	var messages []driver.Message
	for n := range 40 {
		messages = append(messages, message("a.b.c", fmt.Sprint("k", n), fmt.Sprint(n)))
	}
	publish(t, d, messages...)
	s := newSink()
	r := start(t, d, subscription("x.y", "a.b.c"), s)
	eventually(t, "forty", func() bool { return s.count() == 40 })
	settled := make(chan error, 10)
	s.mu.Lock()
	s.revoke = func(ctx context.Context, sources []driver.Source) {
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > 9*time.Second {
			settled <- fmt.Errorf("bound %v", deadline)
		}
		var running []driver.Delivery
		for _, d := range s.got() {
			if d.Source == sources[0] {
				running = append(running, d)
			}
		}
		done := make(chan struct{})
		go func() { // as the engine's settler does
			settled <- r.Settle(ctx, finished(running[:len(running)-1]...))
			close(done)
		}()
		<-done
	}
	s.mu.Unlock()

	other := newDriver(t, cluster.ListenAddrs())
	s2 := newSink()
	start(t, other, subscription("x.y", "a.b.c"), s2)
	eventually(t, "the one that was not finished", func() bool { return s2.count() >= 1 })
	if err := <-settled; err != nil {
		t.Fatalf("Settle during Revoke: %v", err)
	}
	if len(s.revoked) != 1 {
		t.Fatalf("revoked %v", s.revoked)
	}
	publish(t, d, messages...)
	eventually(t, "forty more", func() bool { return s.count()+s2.count() >= 81 })
	var again []driver.Delivery
	for _, d := range s2.got() {
		if d.Source.Name != s.revoked[0].Name {
			t.Fatalf("the second has %v", d.Source)
		}
		if len(again) == 0 || again[0].Ref.Position() != d.Ref.Position() {
			again = append(again, d)
		}
	}
	var last string
	for _, d := range s.got()[:40] {
		if d.Source == s.revoked[0] {
			last = d.Ref.Position()
		}
	}
	if again[0].Ref.Position() != last {
		t.Errorf("came again %s, unfinished was %s", again[0].Ref.Position(), last)
	}
	if s.reported(driver.ReportRevoked) != 1 || s2.reported(driver.ReportAssigned) != 1 {
		t.Error("the change was not reported")
	}
	// Late settlements of what was given up are dropped.
	r.finish(t, s.got()[:40]...)
	if got := committedOffset(t, d, "x.y", "events.a-b-c", again[0].Ref.(*place).partition.number); got >= 20 {
		t.Errorf("a late settlement moved the position to %d", got)
	}
}

func TestRevokeIsBounded(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), func(o *Options) {
		o.Partitions, o.RebalanceTimeout, o.RevokeMargin = 2, 2*time.Second, 1500*time.Millisecond
	})
	s := newSink()
	ended := make(chan struct{})
	s.revoke = func(ctx context.Context, _ []driver.Source) {
		<-ctx.Done()
		close(ended)
	}
	start(t, d, subscription("x.y", "a.b.c"), s)
	other := newDriver(t, cluster.ListenAddrs())
	s2 := newSink()
	start(t, other, subscription("x.y", "a.b.c"), s2)
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the bound did not come")
	}
	eventually(t, "the second owns one", func() bool { return s2.reported(driver.ReportAssigned) == 1 })
}

func TestLost(t *testing.T) {
	cluster := newCluster(t)
	d := newDriver(t, cluster.ListenAddrs(), single, func(o *Options) { o.SessionTimeout = 600 * time.Millisecond })
	s := newSink()
	sub := subscription("x.y", "a.b.c")
	r := start(t, d, sub, s)
	publish(t, d, numbered("a.b.c", "k", 0, 3)...)
	eventually(t, "three", func() bool { return s.count() == 3 })
	r.finish(t, s.got()[1])
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
	eventually(t, "lost", func() bool { return s.reported(driver.ReportLost) == 1 })
	eventually(t, "what was unfinished again", func() bool { return s.count() == 5 })
	if got := s.bodies(); got != "0 1 2 0 2" {
		t.Fatalf("got %s", got)
	}
	if first, second := s.got()[0].Source, s.got()[4].Source; second.Epoch <= first.Epoch || s.lost[0] != first {
		t.Fatalf("epochs %v, %v, lost %v", first, second, s.lost)
	}
	r.finish(t, s.got()[0], s.got()[2]) // of the earlier ownership
	if got := committedOffset(t, d, "x.y", "events.a-b-c", 0); got != 0 {
		t.Fatalf("an earlier ownership moved the position to %d", got)
	}
	r.finish(t, s.got()[3:]...)
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
	s := newSink()
	r := start(t, d, subscription("x.y", "a.b.c"), s)
	publish(t, d, message("a.b.c", "k", "0"))
	eventually(t, "one", func() bool { return s.count() == 1 })
	r.finish(t, s.got()...)
	down.Store(true)
	mu.Lock()
	for _, c := range open {
		c.Close()
	}
	mu.Unlock()
	eventually(t, "an outage", func() bool { return s.reported(driver.ReportOutage) == 1 })
	down.Store(false)
	eventually(t, "its end", func() bool { return s.reported(driver.ReportRecovered) == 1 })
	publish(t, d, message("a.b.c", "k", "1"))
	eventually(t, "another", func() bool { return s.count() == 2 })
	if got := s.bodies(); got != "0 1" {
		t.Fatalf("got %s", got)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, report := range s.reports {
		if report.Kind == driver.ReportRecovered && report.Duration < 500*time.Millisecond {
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
	member := func() *running {
		d := newDriver(t, cluster.ListenAddrs())
		s := newSink()
		work := make(chan []driver.Delivery, 10_000)
		var c atomic.Pointer[running]
		ready := make(chan struct{})
		s.deliver = func(deliveries []driver.Delivery) { work <- append([]driver.Delivery(nil), deliveries...) }
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
						s.mu.Lock()
						for _, r := range append(s.revoked, s.lost...) {
							gone[r] = true
						}
						s.mu.Unlock()
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
					if err := c.Load().Settle(context.Background(), finished(done...)); err != nil {
						t.Logf("Settle: %v", err) // it will come again
					}
				case answer := <-idle:
					close(answer)
				case <-stop:
					return
				}
			}
		})
		s.revoke = func(context.Context, []driver.Source) {
			answer := make(chan struct{})
			select {
			case idle <- answer:
				<-answer
			case <-stop:
			}
		}
		r := start(t, d, subscription("x.y", "a.b.c"), s)
		c.Store(r)
		close(ready)
		t.Cleanup(func() {
			r.cancel()
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
	first.close(t)
	member()
	publishing.Wait()
	eventually(t, "all events", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(total) == keys*each
	})
}
