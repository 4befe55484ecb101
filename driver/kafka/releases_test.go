package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
)

// ledger is what instances of a subscription have handled: bodies, by channel.
type ledger struct {
	mu      sync.Mutex
	handled map[string]map[string]int
}

func newLedger() *ledger {
	return &ledger{handled: make(map[string]map[string]int)}
}

// instance runs a subscription that finishes all it gets.
func (l *ledger) instance(t *testing.T, d *Driver, name string, s driver.Subscription) (r *drivertest.Running, end func()) {
	t.Helper()
	var handled []driver.Declaration
	for _, channel := range s.Channels {
		handled = append(handled, driver.Declaration{Channel: channel, Type: channel})
	}
	declare(t, d, s.Name, handled...)
	got := make(chan []driver.Delivery, 10_000)
	sink := drivertest.NewSink()
	sink.OnDeliver(func(deliveries []driver.Delivery) { got <- slices.Clone(deliveries) })
	r = drivertest.Start(t, d, s, sink)
	quit := make(chan struct{})
	var settling sync.WaitGroup
	settling.Go(func() {
		for {
			select {
			case deliveries := <-got:
				l.mu.Lock()
				for _, one := range deliveries {
					if l.handled[one.Message.Channel] == nil {
						l.handled[one.Message.Channel] = make(map[string]int)
					}
					l.handled[one.Message.Channel][string(one.Message.Body)]++
				}
				l.mu.Unlock()
				_ = r.Settle(context.Background(), drivertest.Finished(deliveries...)) // else it comes again
			case <-quit:
				return
			}
		}
	})
	end = sync.OnceFunc(func() { close(quit); settling.Wait(); r.End(t) })
	t.Cleanup(end)
	return r, end
}

func (l *ledger) count(channel string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.handled[channel])
}

func (l *ledger) wait(t *testing.T, what string, a, b int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); l.count("a.b.c") != a || l.count("d.e.f") != b; {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %d and %d are handled, want %d and %d", what, l.count("a.b.c"), l.count("d.e.f"), a, b)
		}
		if err := pause(t.Context(), 10*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}

// both publishes events of many aggregates to two channels.
func both(t *testing.T, d *Driver, from, to int) {
	t.Helper()
	var all []driver.Message
	for n := from; n < to; n++ {
		for _, channel := range []string{"a.b.c", "d.e.f"} {
			all = append(all, message(channel, fmt.Sprint("aggregate-", n%16), fmt.Sprint(n)))
		}
	}
	publish(t, d, all...)
}

// eachBroker runs a test in-process, and on a real broker.
func eachBroker(t *testing.T, test func(t *testing.T, open func() *Driver)) {
	t.Run("kfake", func(t *testing.T) {
		cluster := newCluster(t)
		test(t, func() *Driver { return newDriver(t, cluster.ListenAddrs(), func(o *Options) { o.Partitions = 4 }) })
	})
	t.Run("kafka", func(t *testing.T) {
		d, _ := onReal(t)
		test(t, func() *Driver {
			return newDriver(t, d.options.Brokers, func(o *Options) { o.Namespace, o.Partitions = d.options.Namespace, 4 })
		})
	})
}

// An old release and one with a channel more are members of one group for long: the
// partitions of that channel go to those that read it. Taken back and deployed again
// it goes on where it was.
func TestReleasesReadDifferentChannels(t *testing.T) {
	eachBroker(t, func(t *testing.T, open func() *Driver) {
		l := newLedger()
		old, next := subscription("x.y", "a.b.c"), subscription("x.y", "a.b.c", "d.e.f")
		old.StartAt.Mode, next.StartAt.Mode = driver.StartNow, driver.StartNow
		publisher := open()
		_, endOld := l.instance(t, open(), "old", old)
		_, endNext := l.instance(t, open(), "next", next)
		both(t, publisher, 0, 100)
		l.wait(t, "beside each other", 100, 100)
		_, endThird := l.instance(t, open(), "third", next)
		both(t, publisher, 100, 150)
		l.wait(t, "three", 150, 150)
		endNext()
		endThird()
		both(t, publisher, 150, 200)
		l.wait(t, "taken back", 200, 150)
		endOld()
		_, end := l.instance(t, open(), "again", next)
		both(t, publisher, 200, 210)
		l.wait(t, "deployed again", 210, 210)
		end()
	})
}

// While nobody reads a channel that another release declared, a member keeps the
// positions there: the broker would delete them. While somebody does, none is touched.
func TestPositionsThatNobodyReadsAreKept(t *testing.T) {
	eachBroker(t, func(t *testing.T, open func() *Driver) {
		l := newLedger()
		publisher := open()
		d := open()
		r, _ := l.instance(t, d, "old", subscription("x.y", "a.b.c"))
		keeper := r.Consumer.(*consumer)
		keep := func() (kept int) {
			t.Helper()
			drivertest.Eventually(t, "the members stay", func() bool {
				var err error
				kept, err = keeper.keepPositions(t.Context())
				if err != nil && !errors.Is(err, errRegrouped) {
					t.Log(err) // the group has a new member
				}
				return err == nil
			})
			return kept
		}
		if n := keep(); n != 0 {
			t.Errorf("%d positions are kept of what nobody declared", n)
		}
		_, end := l.instance(t, open(), "next", subscription("x.y", "a.b.c", "d.e.f"))
		both(t, publisher, 0, 50)
		l.wait(t, "both", 50, 50)
		if n := keep(); n != 0 {
			t.Errorf("%d positions are kept while they are read", n)
		}
		end()
		before, err := d.storedPositions(t.Context(), d.GroupName("x.y"), []string{d.BrokerName("d.e.f")})
		if err != nil {
			t.Fatal(err)
		}
		drivertest.Eventually(t, "the positions of four partitions are kept", func() bool { return keep() == 4 })
		after, err := d.storedPositions(t.Context(), d.GroupName("x.y"), []string{d.BrokerName("d.e.f")})
		if err != nil || len(before) != 1 || fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("before %v, after %v: %v", before, after, err)
		}
		if known, err := d.ForgetType(t.Context(), "x.y", "d.e.f"); err != nil || !known {
			t.Fatal(known, err)
		}
		if n := keep(); n != 0 {
			t.Errorf("%d positions are kept of what was forgotten", n)
		}
	})
}

// The loop keeps them by itself.
func TestTheLoopKeepsPositions(t *testing.T) {
	cluster := newCluster(t)
	open := func() *Driver { return newDriver(t, cluster.ListenAddrs(), single) }
	l := newLedger()
	publisher := open()
	_, end := l.instance(t, open(), "next", subscription("x.y", "a.b.c", "d.e.f"))
	both(t, publisher, 0, 10)
	l.wait(t, "both", 10, 10)
	end()
	commits := make(chan struct{}, 1)
	cluster.ControlKey(int16(kmsg.OffsetCommit), func(request kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		for _, topic := range request.(*kmsg.OffsetCommitRequest).Topics {
			if topic.Topic == publisher.BrokerName("d.e.f") {
				select {
				case commits <- struct{}{}:
				default:
				}
			}
		}
		return nil, nil, false
	})
	d := open()
	d.keepEvery = 10 * time.Millisecond
	l.instance(t, d, "old", subscription("x.y", "a.b.c"))
	select {
	case <-commits:
	case <-time.After(time.Minute):
		t.Error("no position is kept")
	}
}
