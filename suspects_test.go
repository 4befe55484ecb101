package tidings_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
	"github.com/tidings-go/tidings/internal/claims"
)

// outlivingClaims is a claims store that earlier processes have used.
type outlivingClaims struct {
	*claims.Memory
	mu     sync.Mutex
	epochs map[string]int64
}

type testClock struct{}

func (testClock) Now() time.Time { return time.Now() }

func newOutlivingClaims() *outlivingClaims {
	return &outlivingClaims{Memory: claims.New(testClock{}, 1000), epochs: map[string]int64{}}
}

func (c *outlivingClaims) Durable() bool { return true }

func (c *outlivingClaims) AdvanceClaims(_ context.Context, subscription, source string) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epochs[subscription+source]++
	return c.epochs[subscription+source], nil
}

func (c *outlivingClaims) DetachClaim(context.Context, driver.ClaimRequest) error { return nil }

// request is the claim of a process that is dead by now.
func (c *outlivingClaims) request(subscription string, e tidings.DomainEvent, owner string) driver.ClaimRequest {
	key := fmt.Sprintf("%s\n%d\n%s%s", e.Type(), len(e.ID()), e.ID(), e.AggregateID())
	return driver.ClaimRequest{Subscription: subscription, Key: key, Owner: owner, Lease: time.Nanosecond}
}

// die makes processes die while they handle an event: beside others, then alone.
func (c *outlivingClaims) die(t *testing.T, subscription string, e tidings.DomainEvent, beside, alone int) {
	t.Helper()
	for n := range beside + alone {
		r := c.request(subscription, e, fmt.Sprint("dead ", n))
		r.Counting = driver.CountBeside
		if n >= beside {
			r.Counting = driver.CountAlone
		}
		if answer, err := c.Claim(t.Context(), r); err != nil || answer.State != driver.ClaimFresh {
			t.Fatalf("%+v %v", answer, err)
		}
		pass(time.Microsecond)
	}
}

// runningNow is what handlers are doing.
type runningNow struct {
	mu      sync.Mutex
	running []string
	most    int
	seen    []string
	hold    map[string]chan struct{}
}

func (r *runningNow) handle(_ context.Context, e tidings.Event[numberPayload]) error {
	r.mu.Lock()
	r.running = append(r.running, e.AggregateID())
	r.seen = append(r.seen, e.AggregateID())
	r.most = max(r.most, len(r.running))
	hold := r.hold[e.AggregateID()]
	r.mu.Unlock()
	if hold != nil {
		<-hold
	} else {
		pass(time.Second)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = slices.DeleteFunc(r.running, func(id string) bool { return id == e.AggregateID() })
	return nil
}

func (r *runningNow) now() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.Sort(r.running)
	return fmt.Sprint(r.running)
}

// What was in hand when a process died runs one at a time, in all subscriptions
// together, and everything else beside it.
func TestSuspectsRunOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, now := newOutlivingClaims(), &runningNow{}
		b := tidings.New(memory.New(&memory.Options{Async: true}), &tidings.Options{Logger: discard(), Claims: store})
		subscribe(t, b, "first", nil, numberChosen, now.handle)
		subscribe(t, b, "second", nil, numberDoubled, now.handle)
		start(t, b)
		var events []tidings.DomainEvent
		for n := range 3 {
			one, two := numberChosen.New(fmt.Sprint("one-", n), numberPayload{n}), numberDoubled.New(fmt.Sprint("two-", n), numberPayload{n})
			store.die(t, "numbers.first", one, 1, 0)
			store.die(t, "numbers.second", two, 1, 0)
			events = append(events, one, two)
		}
		if err := b.Publish(t.Context(), events...); err != nil {
			t.Fatal(err)
		}
		pass(500 * time.Millisecond)
		if err := b.Publish(t.Context(), numberChosen.New("innocent", numberPayload{9})); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		suspects := 0
		for _, s := range b.Health().Subscriptions {
			suspects += s.Suspects
		}
		if suspects != 6 || b.Health().Alone {
			t.Errorf("%d suspects, want 6; alone %v", suspects, b.Health().Alone)
		}
		pass(10 * time.Second)
		synctest.Wait()
		if len(now.seen) != 7 || now.most != 2 { // a suspect and the innocent one
			t.Errorf("handled %v, at most %d at a time", now.seen, now.most)
		}
	})
}

// What was in hand at two deaths is started when nothing else runs, and nothing else
// is started until it has returned.
func TestASuspectRunsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, now := newOutlivingClaims(), &runningNow{hold: map[string]chan struct{}{"before": make(chan struct{}), "suspect": make(chan struct{})}}
		b := tidings.New(memory.New(&memory.Options{Async: true}), &tidings.Options{Logger: discard(), Claims: store})
		subscribe(t, b, "first", nil, numberChosen, now.handle)
		subscribe(t, b, "second", nil, numberDoubled, now.handle)
		start(t, b)
		publish := func(e tidings.DomainEvent) {
			t.Helper()
			if err := b.Publish(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			pass(time.Second)
		}
		expect := func(want string) {
			t.Helper()
			if got := now.now(); got != want {
				t.Errorf("%s run, want %s", got, want)
			}
		}
		suspect := numberDoubled.New("suspect", numberPayload{})
		store.die(t, "numbers.second", suspect, 2, 1)
		publish(numberChosen.New("before", numberPayload{}))
		publish(suspect)
		expect("[before]")
		publish(numberChosen.New("behind", numberPayload{}))
		expect("[before]")
		close(now.hold["before"])
		pass(time.Second)
		expect("[suspect]")
		if !b.Health().Alone {
			t.Error("Health does not say that it runs alone")
		}
		publish(numberDoubled.New("later", numberPayload{}))
		expect("[suspect]")
		close(now.hold["suspect"])
		pass(time.Millisecond)
		expect("[behind later]")
		pass(5 * time.Second)
		synctest.Wait()
		if b.Health().Alone || len(now.seen) != 4 {
			t.Errorf("handled %v, alone %v", now.seen, b.Health().Alone)
		}
	})
}

// What is counted against a suspect neither grows nor goes while it waits.
func TestASuspectWaitsWithoutBeingCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, now := newOutlivingClaims(), &runningNow{hold: map[string]chan struct{}{"first": make(chan struct{})}}
		b := tidings.New(memory.New(&memory.Options{Async: true}), &tidings.Options{Logger: discard(), Claims: store})
		subscribe(t, b, "first", nil, numberChosen, now.handle)
		start(t, b)
		first, second := numberChosen.New("first", numberPayload{}), numberChosen.New("second", numberPayload{})
		store.die(t, "numbers.first", first, 1, 0)
		store.die(t, "numbers.first", second, 1, 0)
		for _, e := range []tidings.DomainEvent{first, second} {
			if err := b.Publish(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			pass(time.Second)
		}
		if got := now.now(); got != "[first]" {
			t.Errorf("%s run", got)
		}
		other := store.request("numbers.first", second, "another instance")
		if answer, err := store.Claim(t.Context(), other); err != nil || answer.State != driver.ClaimFresh || answer.Crashes != 1 {
			t.Errorf("while it waits: %+v %v, want it free and with one death", answer, err)
		}
		other.Unstarted = true
		if err := store.Release(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		close(now.hold["first"])
		pass(5 * time.Second)
		synctest.Wait()
		if fmt.Sprint(now.seen) != "[first second]" {
			t.Errorf("handled %v", now.seen)
		}
	})
}

// Who is given a source does not wait for the claims of the owner before, which is
// dead.
func TestTheNextOwnerDoesNotWaitForClaimsOfADeadOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker, store := newRandomBroker(), newOutlivingClaims()
		epoch, _ := store.AdvanceClaims(t.Context(), "numbers.reader", "p")
		e := numberChosen.New("a", numberPayload{})
		dead := store.request("numbers.reader", e, "dead")
		dead.Lease, dead.Source, dead.Epoch = time.Hour, "p", epoch
		if _, err := store.Claim(t.Context(), dead); err != nil {
			t.Fatal(err)
		}
		handled := false
		b, stop := oneProcess(t, broker, &tidings.Options{Claims: store}, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
			handled = true
			return nil
		})
		if err := b.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Second)
		synctest.Wait()
		if !handled {
			t.Error("it waits for the claim of a dead process")
		}
		stop()
	})
}

// orderedLanes has one order of an operator.
type orderedLanes struct {
	*fencedLanes
	order driver.LaneOrder
}

func (l *orderedLanes) Orders(context.Context, driver.Ownership) ([]driver.LaneOrder, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	order := l.order
	l.order = driver.LaneOrder{}
	if order.Verb == 0 {
		return nil, nil
	}
	return []driver.LaneOrder{order}, nil
}

// RetryHead brings a parked event to its handler, whatever is counted against it.
func TestRetryHeadBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker, store := newRandomBroker(), newOutlivingClaims()
		lanes := &orderedLanes{fencedLanes: newFencedLanes(func() bool { return false })}
		b := tidings.New(&randomDriver{broker}, &tidings.Options{Logger: discard(), Claims: store, Lanes: lanes})
		handled := 0
		options := &tidings.SubscribeOptions{OnExhausted: tidings.Park, ParkBackoff: tidings.Backoff{Initial: 24 * time.Hour, Max: 24 * time.Hour}}
		subscribe(t, b, "reader", options, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
			handled++
			return nil
		})
		stop := start(t, b)
		for _, p := range broker.partitions {
			broker.move(p, tidings.ConsumerOf(b).(*randomConsumer), false)
		}
		e := numberChosen.New("a", numberPayload{})
		store.die(t, "numbers.reader", e, 2, 2)
		if err := b.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		synctest.Wait()
		if handled != 0 || lanes.held() != 1 {
			t.Fatalf("handled %d times, %d parked", handled, lanes.held())
		}
		store.die(t, "numbers.reader", e, 2, 2) // in the hand of another release
		lanes.mu.Lock()
		lanes.order = driver.LaneOrder{Lane: driver.Lane{Channel: "numbers.number.chosen", Key: "a"}, Verb: driver.RetryHead}
		lanes.mu.Unlock()
		pass(time.Minute)
		synctest.Wait()
		if handled != 1 || lanes.held() != 0 {
			t.Errorf("after RetryHead: handled %d times, %d parked", handled, lanes.held())
		}
		stop()
	})
}
