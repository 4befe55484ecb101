package sqldb

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

const channel = "orders.order.placed"

// sink is an engine that remembers.
type sink struct {
	mu         sync.Mutex
	deliveries []driver.Delivery
	lost       []driver.Source
	revoked    []driver.Source
	reports    []driver.Report
	joined     bool
}

func (s *sink) Joined() { s.mu.Lock(); defer s.mu.Unlock(); s.joined = true }
func (s *sink) Deliver(_ context.Context, deliveries []driver.Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deliveries = append(s.deliveries, deliveries...)
}
func (s *sink) Revoke(_ context.Context, sources []driver.Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked = append(s.revoked, sources...)
}
func (s *sink) Lose(sources []driver.Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = append(s.lost, sources...)
}
func (s *sink) Report(r driver.Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reports = append(s.reports, r)
}

func (s *sink) bodies() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, d := range s.deliveries {
		all = append(all, string(d.Body))
	}
	return strings.Join(all, " ")
}

func (s *sink) take() []driver.Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.deliveries
	s.deliveries = nil
	return all
}

func (s *sink) count(kind driver.ReportKind) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.reports {
		if r.Kind == kind {
			n++
		}
	}
	return n
}

// after lets a time pass in which everything that is due happens.
func after(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // inside synctest: no real time
	synctest.Wait()
}

// instance is one process with one subscription.
type instance struct {
	*sink
	t        *testing.T
	driver   *Driver
	consumer driver.Consumer
	stop     func()
}

func open(t *testing.T, log outbox.Log, change func(*Options)) *instance {
	t.Helper()
	o := Options{Name: "postgres", Log: log}
	if change != nil {
		change(&o)
	}
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	i := &instance{sink: &sink{}, t: t, driver: d}
	i.consumer, err = d.Subscribe(t.Context(), driver.Subscription{Name: "billing.invoice", Channels: []string{channel}, StartAt: driver.StartAt{Mode: driver.StartBeginning}}, i.sink)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- i.consumer.Run(ctx) }()
	i.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = i.consumer.Close(context.Background())
		_ = d.Close(context.Background())
	})
	t.Cleanup(i.stop)
	synctest.Wait()
	return i
}

func (i *instance) publish(texts ...string) {
	i.t.Helper()
	var all []driver.Message
	for _, text := range texts {
		key, _, _ := strings.Cut(text, "/")
		all = append(all, driver.Message{Channel: channel, Type: channel, Key: key, ID: text, Body: []byte(text)})
	}
	if err := i.driver.Publish(i.t.Context(), all); err != nil {
		i.t.Fatal(err)
	}
	synctest.Wait()
}

func (i *instance) settle(outcome driver.Outcome, after time.Duration, deliveries ...driver.Delivery) error {
	var all []driver.Settlement
	for _, d := range deliveries {
		all = append(all, driver.Settlement{Ref: d.Ref, Source: d.Source, Outcome: outcome, After: after})
	}
	return i.consumer.Settle(i.t.Context(), all)
}

// What a process could not renew in time it gives up by its own clock, before
// another can have it.
func TestALeaseThatCannotBeRenewedIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemoryLog()
		first := open(t, log, nil)
		first.publish("a/1")
		if first.bodies() != "a/1" {
			t.Fatalf("delivered %q", first.bodies())
		}
		log.setDown(true)
		began := time.Now()
		lost := func() int { first.mu.Lock(); defer first.mu.Unlock(); return len(first.lost) }
		for lost() == 0 && time.Since(began) < time.Minute {
			after(100 * time.Millisecond)
		}
		took := time.Since(began)
		log.mu.Lock()
		ends := log.leases["subscription:billing.invoice/"+channel+"/0"].until
		log.mu.Unlock()
		if lost() != outbox.Slots || time.Now().After(ends) {
			t.Errorf("after %v %d slots are lost; the database has them until %v after now", took, lost(), time.Until(ends))
		}
		if first.count(driver.ReportOutage) != 1 {
			t.Errorf("%d outages were reported", first.count(driver.ReportOutage))
		}
		log.setDown(false)
		after(30 * time.Second)
		if first.bodies() != "a/1 a/1" || first.count(driver.ReportRecovered) != 1 {
			t.Errorf("after the outage %q was delivered, %d recovered", first.bodies(), first.count(driver.ReportRecovered))
		}
	})
}

// A paused process that wakes up late cannot store a position, and learns that it
// lost its slots.
func TestAnOldEpochStoresNoPosition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemoryLog()
		first := open(t, log, nil)
		first.publish("a/1")
		taken := first.take()
		log.mu.Lock()
		held := log.leases["subscription:billing.invoice/"+outbox.PartOf(channel, "a").Name()]
		held.holder, held.epoch = "another", held.epoch+1
		log.mu.Unlock()
		if err := first.settle(driver.Finished, 0, taken...); err != nil {
			t.Fatal(err)
		}
		if p := log.known["billing.invoice"][outbox.PartOf(channel, "a")]; p.Position != 0 || p.Finished != "" {
			t.Errorf("the position is %+v", p)
		}
		if len(first.lost) != 1 || first.lost[0] != taken[0].Source {
			t.Errorf("lost %v", first.lost)
		}
		if err := first.settle(driver.Finished, 0, taken...); err != nil {
			t.Errorf("a settlement of a slot that was lost: %v", err)
		}
	})
}

// Only what is not finished comes again, also from between finished ones.
// rereadingLog does something once, between a read and its answer.
type rereadingLog struct {
	*memoryLog
	meanwhile func()
}

func (l *rereadingLog) Read(ctx context.Context, from []outbox.Place, each, limit int) ([]outbox.Entry, bool, error) {
	entries, more, err := l.memoryLog.Read(ctx, from, each, limit)
	if do := l.meanwhile; do != nil && len(entries) > 0 {
		l.meanwhile = nil
		do()
	}
	return entries, more, err
}

// What was read for an ownership that is over is not delivered to the next one,
// which begins further back: the event between would be left out.
func TestAReadOfAnOldOwnershipLeavesNoGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &rereadingLog{memoryLog: newMemoryLog()}
		first := open(t, log, nil)
		first.publish("a/1")
		c, n := first.consumer.(*consumer), outbox.PartOf(channel, "a")
		log.meanwhile = func() {
			s := c.slot(n)
			c.share.Lose([]driver.Lease{s.lease}, "the test says so")
			for again := c.slot(n); again == nil || again == s; again = c.slot(n) {
				pause(t.Context(), time.Second)
			}
		}
		first.publish("a/2")
		after(3 * time.Second)
		if first.bodies() != "a/1 a/1 a/2" {
			t.Errorf("delivered %q", first.bodies())
		}
	})
}

func TestARestartDeliversTheUnfinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemoryLog()
		first := open(t, log, nil)
		first.publish("a/1", "a/2", "a/3", "a/4")
		all := first.take()
		if err := first.settle(driver.Finished, 0, all[0], all[2]); err != nil {
			t.Fatal(err)
		}
		first.stop()
		second := open(t, log, nil)
		if second.bodies() != "a/2 a/4" {
			t.Errorf("delivered %q", second.bodies())
		}
	})
}

// A second instance is given its part, in good order.
func TestTwoInstancesShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemoryLog()
		first := open(t, log, nil)
		second := open(t, log, nil)
		after(5 * time.Second)
		if n := second.count(driver.ReportAssigned); n != outbox.Slots/2 || len(first.revoked) != outbox.Slots/2 || len(first.lost) != 0 {
			t.Errorf("the second has %d slots, the first gave %d up and lost %d", n, len(first.revoked), len(first.lost))
		}
		second.stop()
		after(5 * time.Second)
		if n := first.count(driver.ReportAssigned) - len(first.revoked); n != outbox.Slots {
			t.Errorf("the first has %d slots again", n)
		}
	})
}

func TestAFullSlotPausesAndGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemoryLog()
		i := open(t, log, func(o *Options) { o.MaxEvents = 4 })
		for n := range 10 {
			i.publish(fmt.Sprint("a/", n))
		}
		after(time.Minute)
		if i.bodies() != "a/0 a/1 a/2 a/3" || i.count(driver.ReportPaused) != 1 {
			t.Errorf("delivered %q, %d paused", i.bodies(), i.count(driver.ReportPaused))
		}
		for got := i.take(); len(got) > 0; got = i.take() {
			if err := i.settle(driver.Finished, 0, got...); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if p := log.known["billing.invoice"][outbox.PartOf(channel, "a")]; p.Position != 10 {
			t.Errorf("the position is %+v", p)
		}
		if paused, resumed := i.count(driver.ReportPaused), i.count(driver.ReportResumed); paused != resumed || paused < 2 {
			t.Errorf("%d paused, %d resumed", paused, resumed)
		}
	})
}

func TestWhatIsReleasedComesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := open(t, newMemoryLog(), nil)
		i.publish("a/1", "a/2")
		all := i.take()
		if err := i.settle(driver.Released, 10*time.Second, all...); err != nil {
			t.Fatal(err)
		}
		after(9 * time.Second)
		if i.bodies() != "" {
			t.Errorf("too early: %q", i.bodies())
		}
		after(2 * time.Second)
		if i.bodies() != "a/1 a/2" {
			t.Errorf("delivered %q", i.bodies())
		}
	})
}

// Rows of a channel that an instance does not have are not its own to pass, in the
// same slot or another.
func TestOtherChannelsAreNotTouched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemoryLog()
		both := []string{channel, "other.thing.happened"}
		if _, err := log.Begin(t.Context(), "billing.invoice", both, driver.StartAt{Mode: driver.StartBeginning}); err != nil {
			t.Fatal(err)
		}
		i := open(t, log, nil)
		i.publish("a/1")
		var rows []outbox.Row
		for n := range 5 {
			rows = append(rows, outbox.Row{Slot: outbox.SlotOf(channel, "a"), Channel: "other.thing.happened", AggregateID: "x", ID: fmt.Sprint(n)})
		}
		if err := log.Append(t.Context(), rows); err != nil {
			t.Fatal(err)
		}
		after(10 * time.Second)
		if i.bodies() != "a/1" {
			t.Errorf("delivered %q", i.bodies())
		}
		if err := i.settle(driver.Finished, 0, i.take()...); err != nil {
			t.Fatal(err)
		}
		for _, c := range both {
			part := outbox.Part{Channel: c, Slot: outbox.SlotOf(channel, "a")}
			if p, want := log.known["billing.invoice"][part], map[bool]int64{true: 1}[c == channel]; p.Position != want {
				t.Errorf("%s: the position is %+v, want %d", c, p, want)
			}
		}
	})
}

// A position that somebody deleted begins anew, instead of standing still.
func TestADeletedPositionBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemoryLog()
		first := open(t, log, nil)
		first.publish("a/1")
		first.stop()
		d, err := New(Options{Name: "postgres", Log: log})
		if err != nil {
			t.Fatal(err)
		}
		again := &sink{}
		c, err := d.Subscribe(t.Context(), driver.Subscription{Name: "billing.invoice", Channels: []string{channel}, StartAt: driver.StartAt{Mode: driver.StartBeginning}}, again)
		if err != nil {
			t.Fatal(err)
		}
		delete(log.known, "billing.invoice")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		after(3 * time.Second)
		if again.bodies() != "a/1" {
			t.Errorf("delivered %q", again.bodies())
		}
		cancel()
		if err := errors.Join(<-done, c.Close(context.Background()), d.Close(context.Background())); err != nil {
			t.Error(err)
		}
	})
}

func TestOptionsComplainAtOnce(t *testing.T) {
	_, err := New(Options{LeaseTime: 1, MaxEvents: 1 << 20, MaxBytes: -1, PollInterval: 1})
	for _, want := range []string{"Name is empty", "Log is nil", "LeaseTime", "MaxEvents", "MaxBytes", "PollInterval"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
}

func TestPublishSaysWhatIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newMemoryLog()
		i := open(t, log, nil)
		large := driver.Message{Channel: channel, Type: channel, Key: "a", ID: "1", Body: make([]byte, 2<<20)}
		if err := i.driver.Publish(t.Context(), []driver.Message{large}); !errors.Is(err, driver.ErrTooLarge) {
			t.Errorf("too large: %v", err)
		}
		log.setDown(true)
		var failed *driver.PublishError
		err := i.driver.Publish(t.Context(), []driver.Message{{Channel: channel, Key: "a", ID: "1", Body: []byte("a/1")}})
		if !errors.Is(err, errDown) || errors.As(err, &failed) {
			t.Errorf("while the database is down: %v", err)
		}
		log.setDown(false)
		i.stop()
		if err := i.driver.Publish(t.Context(), nil); !errors.Is(err, driver.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}
