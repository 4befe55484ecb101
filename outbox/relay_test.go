package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

// One that is too large in the middle of a batch holds back what is behind it in
// its aggregate, and nothing else; and no two sends of an aggregate are under way.
func TestATooLargeRowInTheMiddle(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprint("plain ", plain), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, s := newBroker(), newTable()
				d.max, d.takes, d.plain = 50, 2*time.Millisecond, plain
				all := &tx{}
				for n := range 30 {
					size := 1
					if n == 13 {
						size = 100
					}
					for k := range 4 {
						all.rows = append(all.rows, row("a.b", fmt.Sprint("k", k), n, max(1, size*(1-min(k, 1)))))
					}
				}
				s.commit(all)
				running(t, d, s, outbox.Options{Batch: 20})
				after(500 * time.Millisecond)
				next := map[string]int{}
				for _, id := range d.ids() {
					aggregate, _, _ := strings.Cut(id, "-")
					if id != fmt.Sprintf("%s-%d", aggregate, next[aggregate]) {
						t.Errorf("%s was sent after %d of its aggregate", id, next[aggregate])
					}
					next[aggregate]++
				}
				if next["k0"] != 13 || next["k1"] != 30 || next["k3"] != 30 || d.overlap != 0 {
					t.Errorf("sent %v, %d overlaps", next, d.overlap)
				}
				d.set(func() { d.max = 0 })
				after(2 * time.Second)
				if got := len(d.ids()); got != 120 {
					t.Errorf("after it was made possible: %d of 120", got)
				}
			})
		})
	}
}

// What lies on a channel that is away waits, and all else flows.
func TestASickChannelStarvesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newBroker(), newTable()
		d.down["sick.one"] = true
		all := &tx{}
		for n := range 100 {
			all.rows = append(all.rows, row("sick.one", fmt.Sprint("s", n), 0, 1))
		}
		for n := range 20 {
			all.rows = append(all.rows, row("well.one", fmt.Sprint("w", n), 0, 1))
		}
		s.commit(all)
		running(t, d, s, outbox.Options{Batch: 10})
		after(3 * time.Second)
		if got := len(d.ids()); got != 20 {
			t.Errorf("%d of 20 were sent", got)
		}
		d.set(func() { d.down["sick.one"] = false })
		after(time.Minute)
		if got := len(d.ids()); got != 120 {
			t.Errorf("%d of 120 were sent after the channel came back", got)
		}
	})
}

func TestOutagesAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newBroker(), newTable()
		d.down[""], s.down = true, true
		running(t, d, s, outbox.Options{})
		after(time.Minute)
		s.mu.Lock()
		s.down = false
		s.mu.Unlock()
		after(10 * time.Second)
		one := &tx{rows: []outbox.Row{row("a.b", "k", 1, 1), row("a.b", "k", 2, 1)}}
		s.commit(one)
		before := d.tries()
		after(time.Minute)
		if tries := d.tries() - before; tries < 10 || tries > 30 {
			t.Errorf("%d tries in a minute without a broker", tries)
		}
		d.set(func() { d.down[""] = false })
		after(5 * time.Second)
		if got := fmt.Sprint(d.ids()); got != "[k-1 k-2]" {
			t.Errorf("sent %s", got)
		}
	})
}

// A relay that has lost its slots while it sent takes nothing out.
func TestAFencedRelayTakesNothingOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newBroker(), newTable()
		d.before = func([]driver.Message) { s.steal() }
		s.commit(&tx{rows: []outbox.Row{row("a.b", "k", 1, 1)}})
		running(t, d, s, outbox.Options{})
		after(time.Second)
		s.mu.Lock()
		left := len(s.rows)
		s.mu.Unlock()
		if left != 1 || len(d.ids()) == 0 {
			t.Errorf("%d rows are left, sent %v", left, d.ids())
		}
	})
}

// What is under way when the bus ends is finished, and not sent again by the next.
func TestTheEndWaitsForTheSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newBroker(), newTable()
		d.takes = time.Second
		_, _, stop := running(t, d, s, outbox.Options{})
		s.commit(&tx{rows: []outbox.Row{row("a.b", "k", 1, 1)}})
		synctest.Wait()
		stop()
		if len(s.rows) != 0 || len(d.ids()) != 1 || len(s.members) != 0 || len(s.holders) != 0 {
			t.Errorf("%d rows are left, sent %v, members %v, leases %v", len(s.rows), d.ids(), s.members, s.holders)
		}
	})
}

func TestSlotsAreDivided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTable()
		one, two := newBroker(), newBroker()
		running(t, one, s, outbox.Options{})
		running(t, two, s, outbox.Options{})
		after(5 * time.Second)
		all := &tx{}
		for n := range 200 {
			all.rows = append(all.rows, row("a.b", fmt.Sprint("k", n), 0, 1))
		}
		s.commit(all)
		after(time.Second)
		a, b := len(one.ids()), len(two.ids())
		if a+b != 200 || a < 50 || b < 50 {
			t.Errorf("one sent %d, the other %d", a, b)
		}
	})
}

// A long backlog of a channel that is away hides nothing behind it.
func TestALongSickBacklogHidesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newBroker(), newTable()
		d.down["sick.one"] = true
		all := &tx{}
		for n := range 2000 {
			all.rows = append(all.rows, row("sick.one", fmt.Sprint("s", n), 0, 1))
		}
		for n := range 20 {
			all.rows = append(all.rows, row("well.one", fmt.Sprint("w", n), 0, 1))
		}
		s.commit(all)
		running(t, d, s, outbox.Options{Batch: 10})
		after(3 * time.Second)
		if got := len(d.ids()); got != 20 {
			t.Errorf("%d of 20 were sent", got)
		}
	})
}

// One aggregate's backlog is not sent in the small portions that are fair to all
// slots.
func TestOneAggregateGetsWholeBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newBroker(), newTable()
		all := &tx{}
		for n := range 2000 {
			all.rows = append(all.rows, row("a.b", "k", n, 1))
		}
		s.commit(all)
		running(t, d, s, outbox.Options{Batch: 100})
		after(time.Second)
		if got, tries := len(d.ids()), d.tries(); got != 2000 || tries > 30 {
			t.Errorf("%d of 2000 were sent in %d calls", got, tries)
		}
	})
}

// A send ends before the lease does: the next holder of the slot sends the same.
func TestASendDoesNotOutliveItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newBroker(), newTable()
		const ttl = 10 * time.Second
		var left time.Duration
		d.within = func(ctx context.Context) {
			deadline, _ := ctx.Deadline()
			left = time.Until(deadline)
		}
		running(t, d, s, outbox.Options{LeaseTime: ttl})
		after(time.Minute)
		s.mu.Lock()
		s.deaf = true // from now on nothing is renewed
		s.mu.Unlock()
		after(ttl / 2)
		s.commit(&tx{rows: []outbox.Row{row("a.b", "k", 1, 1)}})
		synctest.Wait()
		if left <= 0 || left > ttl/2 {
			t.Errorf("a send may take %v, half of the lease of %v is over", left, ttl)
		}
	})
}

func TestAHeldEventIsRetriedOrDiscarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s := newBroker(), newTable()
		d.max = 50
		_, box, _ := running(t, d, s, outbox.Options{})
		s.commit(&tx{rows: []outbox.Row{row("a.b", "k", 1, 100), row("a.b", "k", 2, 1), row("a.b", "m", 1, 100), row("a.b", "m", 2, 1)}})
		after(200 * time.Second) // the next try is minutes away
		held, err := box.Held(t.Context(), 0, 10)
		if err != nil || len(held) != 2 || held[0].Wait < time.Second || len(d.ids()) != 0 {
			t.Fatalf("held %+v %v, sent %v", held, err, d.ids())
		}
		if err := box.Discard(t.Context(), held[0].Row.Sequence, "not needed"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := fmt.Sprint(d.ids()); got != "[k-2]" {
			t.Errorf("after the discard %s were sent", got)
		}
		d.set(func() { d.max = 0 })
		if err := box.Retry(t.Context(), held[1].Row.Sequence); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := fmt.Sprint(d.ids()); got != "[k-2 m-1 m-2]" {
			t.Errorf("after the retry %s were sent", got)
		}
		if err := box.Discard(t.Context(), held[1].Row.Sequence, "not needed"); !errors.Is(err, outbox.ErrNotHeld) {
			t.Errorf("discarding what is sent: %v", err)
		}
	})
}

// Replicas add throughput: each has slots of its own and waits for nobody. See
// docs/peer-defects.md.
func TestPeerDefect16ReplicasAddThroughput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		took := func(replicas int) time.Duration {
			d, s := newBroker(), newTable()
			d.takes = 20 * time.Millisecond
			var stops []func()
			for range replicas {
				_, _, stop := running(t, d, s, outbox.Options{Workers: 1, Batch: 1, LeaseTime: time.Minute, PollInterval: time.Second})
				stops = append(stops, stop)
			}
			after(3 * time.Minute) // until the slots are divided
			all := &tx{}
			for n := range 400 {
				all.rows = append(all.rows, row("a.b", fmt.Sprint("k", n), 0, 1))
			}
			s.commit(all)
			began := time.Now()
			for len(d.ids()) < 400 && time.Since(began) < time.Hour {
				after(20 * time.Millisecond)
			}
			needed := time.Since(began)
			for _, stop := range stops {
				stop()
			}
			return needed
		}
		one, four := took(1), took(4)
		t.Logf("400 rows of 20 ms: one relay %v, four relays %v", one, four)
		if four > one/2 { // a quarter where the slots happen to have as many rows each
			t.Errorf("one relay needs %v, four need %v", one, four)
		}
	})
}
