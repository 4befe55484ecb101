package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
)

// The broker is told that an event is finished when it is, not when it starts
// and not when an attempt has failed.
func TestNothingIsSettledBeforeItIsFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := newRandomBroker()
		b, stop := oneProcess(t, broker, nil, numberChosen, func(ctx context.Context, _ tidings.Event[numberPayload]) error {
			pass(time.Second)
			if d, _ := tidings.DeliveryFrom(ctx); d.Attempt == 1 {
				return tidings.RetryAfter(errors.New("once more"), time.Second)
			}
			return nil
		})
		if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{})); err != nil {
			t.Fatal(err)
		}
		for _, at := range []time.Duration{500 * time.Millisecond, time.Second, time.Second} { // running, waiting, running again
			pass(at)
			synctest.Wait()
			if broker.unfinished() != 1 {
				t.Fatal("the event is settled and not finished")
			}
		}
		pass(time.Second)
		synctest.Wait()
		if broker.unfinished() != 0 {
			t.Error("the event is finished and not settled")
		}
		stop()
	})
}

// A settlement that fails is made again until the broker knows.
func TestAFailedSettleIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := newRandomBroker()
		broker.failSettle = 100
		counts := &count{}
		b, stop := oneProcess(t, broker, &tidings.Options{Observers: []tidings.Observer{counts}}, numberChosen, nothing)
		if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{1}), numberChosen.New("b", numberPayload{2})); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		synctest.Wait()
		if failures := counts.of(tidings.SettleFailed); failures < 5 || broker.unfinished() != 2 {
			t.Errorf("%d failures were observed, %d unfinished", failures, broker.unfinished())
		}
		broker.mu.Lock()
		broker.failSettle = 0
		broker.mu.Unlock()
		pass(10 * time.Second)
		synctest.Wait()
		if broker.unfinished() != 0 {
			t.Errorf("%d events are finished and the broker was not told", broker.unfinished())
		}
		stop()
	})
}

// Giving a source up waits for what runs of it, and starts nothing more.
func TestRevokeWaitsForWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := newRandomBroker()
		var started, finished atomic.Int64
		b, stop := oneProcess(t, broker, nil, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
			started.Add(1)
			pass(5 * time.Second)
			finished.Add(1)
			return nil
		})
		if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{1}), numberChosen.New("a", numberPayload{2})); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		consumer := tidings.ConsumerOf(b).(*randomConsumer)
		p := broker.partitions[0]
		source := driver.Source{Name: p.name, Epoch: p.epoch}
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		consumer.sink.Revoke(ctx, []driver.Source{source})
		if took := time.Since(began); took.Round(100*time.Millisecond) != 4*time.Second || started.Load() != 1 || finished.Load() != 1 || broker.unfinished() != 1 {
			t.Errorf("Revoke returned after %v, started %d, finished %d, unfinished %d", took, started.Load(), finished.Load(), broker.unfinished())
		}
		pass(time.Minute)
		synctest.Wait()
		if started.Load() != 1 {
			t.Error("an event of a source that was given up was started")
		}
		stop()
	})
}

// A handler that does not end in time is cancelled, and its outcome does not
// count: the next owner has the event.
func TestRevokeEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := newRandomBroker()
		counts := &count{}
		b, stop := oneProcess(t, broker, &tidings.Options{Observers: []tidings.Observer{counts}}, numberChosen, func(ctx context.Context, _ tidings.Event[numberPayload]) error {
			<-ctx.Done()
			return ctx.Err()
		})
		if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{1})); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		p := broker.partitions[0]
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		tidings.ConsumerOf(b).(*randomConsumer).sink.Revoke(ctx, []driver.Source{{Name: p.name, Epoch: p.epoch}})
		synctest.Wait()
		if took := time.Since(began); took != 3*time.Second || broker.unfinished() != 1 || counts.of(tidings.Discarded) != 1 {
			t.Errorf("Revoke returned after %v, unfinished %d, discarded %d", took, broker.unfinished(), counts.of(tidings.Discarded))
		}
		stop()
	})
}

// A record that nobody can read goes to the dead letters as it is, and its
// neighbours are handled.
func TestAnUndecodableRecordStopsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := newRandomBroker()
		var got []int
		b, stop := oneProcess(t, broker, nil, numberChosen, func(_ context.Context, e tidings.Event[numberPayload]) error {
			got = append(got, e.Payload().Number)
			return nil
		})
		publish := func(number int) {
			t.Helper()
			if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{number})); err != nil {
				t.Fatal(err)
			}
		}
		put := func(body string) {
			broker.mu.Lock()
			defer broker.mu.Unlock()
			p := broker.partitions[0]
			p.messages = append(p.messages, driver.Message{Channel: "numbers.number.chosen", Body: []byte(body)})
			p.finished = append(p.finished, false)
		}
		publish(1)
		put("\x00\x01 no JSON")
		put(`{"eventType":"numbers.number.chosen","aggregateId":"a","version":1,"payload":{"number":"not a number"}}`)
		publish(2)
		pass(time.Minute)
		synctest.Wait()
		if fmt.Sprint(got) != "[1 2]" || broker.unfinished() != 0 {
			t.Errorf("handled %v, unfinished %d", got, broker.unfinished())
		}
		slices.SortFunc(broker.letters, func(a, b driver.DeadLetter) int { return strings.Compare(a.Position, b.Position) })
		if len(broker.letters) != 2 || broker.letters[0].Reason != "undecodable" || broker.letters[1].Reason != "undecodable" ||
			string(broker.letters[0].Body) != "\x00\x01 no JSON" || broker.letters[0].Position != "p/1" {
			t.Errorf("dead letters %+v", broker.letters)
		}
		stop()
	})
}

// scriptedClaims answers what a test says, then fresh.
type scriptedClaims struct {
	sharedClaims
	mu      sync.Mutex
	answers []driver.ClaimAnswer
	errs    []error
}

func (c *scriptedClaims) Claim(ctx context.Context, r driver.ClaimRequest) (driver.ClaimAnswer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.errs) > 0 {
		err := c.errs[0]
		c.errs = c.errs[1:]
		return driver.ClaimAnswer{}, err
	}
	if len(c.answers) > 0 {
		answer := c.answers[0]
		c.answers = c.answers[1:]
		return answer, nil
	}
	return c.sharedClaims.Claim(ctx, r)
}

// Busy means that somebody else is handling the event: it is tried again, uses
// no attempt and is never settled. A claims store that is down holds the lane.
func TestABusyEventIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := newRandomBroker()
		counts := &count{}
		claims := &scriptedClaims{
			sharedClaims: sharedClaims{states: map[string]string{}},
			errs:         []error{errors.New("down"), errors.New("down")},
			answers: []driver.ClaimAnswer{
				{State: driver.ClaimBusy, Until: time.Now().Add(10 * time.Second)},
				{State: driver.ClaimBusy, Until: time.Now().Add(20 * time.Second)},
			},
		}
		var attempt atomic.Int64
		b, stop := oneProcess(t, broker, &tidings.Options{Claims: claims, Observers: []tidings.Observer{counts}}, numberChosen, func(ctx context.Context, _ tidings.Event[numberPayload]) error {
			d, _ := tidings.DeliveryFrom(ctx)
			attempt.Store(int64(d.Attempt))
			return nil
		})
		if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{1})); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		synctest.Wait()
		if attempt.Load() != 0 || broker.unfinished() != 1 {
			t.Errorf("while busy: attempt %d, unfinished %d", attempt.Load(), broker.unfinished())
		}
		pass(time.Minute)
		synctest.Wait()
		if attempt.Load() != 1 || broker.unfinished() != 0 || counts.of(tidings.Busy) != 2 || counts.of(tidings.StoreFailed) != 2 {
			t.Errorf("attempt %d, unfinished %d, busy %d, store failed %d", attempt.Load(), broker.unfinished(), counts.of(tidings.Busy), counts.of(tidings.StoreFailed))
		}
		stop()
	})
}

// What kills its process is counted by the claims store, and given up on.
func TestAnEventThatCrashesIsGivenUp(t *testing.T) {
	broker := newRandomBroker()
	claims := &scriptedClaims{sharedClaims: sharedClaims{states: map[string]string{}}, answers: []driver.ClaimAnswer{{State: driver.ClaimFresh, Crashes: 4, Alone: 2}}}
	called := false
	b, _ := oneProcess(t, broker, &tidings.Options{Claims: claims}, numberChosen, func(context.Context, tidings.Event[numberPayload]) error {
		called = true
		return nil
	})
	if err := b.Publish(t.Context(), numberChosen.New("a", numberPayload{1})); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return broker.unfinished() == 0 })
	if called || len(broker.letters) != 1 || broker.letters[0].Reason != "crashed" {
		t.Errorf("called %v, dead letters %+v", called, broker.letters)
	}
}

// No handler sees what another one, or an earlier attempt, did to the payload.
func TestHandlersDoNotShareMemory(t *testing.T) {
	type tagsPayload struct {
		Tags []string          `json:"tags"`
		Map  map[string]string `json:"map"`
	}
	tagged := tidings.Define[tagsPayload]("numbers.number.tagged", 1, tidings.Repeatable)
	b := tidings.New(memory.New(nil), &tidings.Options{Logger: discard()})
	var seen []string
	var mu sync.Mutex
	spoil := func(ctx context.Context, e tidings.Event[tagsPayload]) error {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, e.Payload().Tags[0]+e.Payload().Map["k"])
		e.Payload().Tags[0], e.Payload().Map["k"] = "spoilt", "spoilt"
		if d, _ := tidings.DeliveryFrom(ctx); d.Attempt == 1 {
			return tidings.RetryAfter(errors.New("again"), time.Millisecond)
		}
		return nil
	}
	subscribe(t, b, "first", nil, tagged, spoil)
	subscribe(t, b, "second", nil, tagged, spoil)
	start(t, b)
	e := tagged.New("a", tagsPayload{[]string{"x"}, map[string]string{"k": "y"}})
	if err := b.Publish(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(seen) == 4 })
	if fmt.Sprint(seen) != "[xy xy xy xy]" || e.Payload().Tags[0] != "x" {
		t.Errorf("handlers saw %v, the publisher has %v", seen, e.Payload())
	}
}
