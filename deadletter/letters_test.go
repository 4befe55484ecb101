package deadletter_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/deadletter"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
	stores "github.com/tidings-go/tidings/store/memory"
)

type invoicePayload struct {
	Amount int `json:"amount"`
}

var issued = tidings.Define[invoicePayload]("billing.invoice.issued", 1, tidings.Repeatable)

// stored fills a store with letters of billing.ledger.
func stored(t testing.TB, count int) (*stores.DeadLetters, *deadletter.Letters) {
	t.Helper()
	store := &stores.DeadLetters{}
	for n := range count {
		put(t, store, n, "bank: timed out")
	}
	letters, err := deadletter.New(store, &deadletter.Options{By: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	return store, letters
}

func put(t testing.TB, store driver.DeadLetterStore, n int, failure string) {
	t.Helper()
	id := fmt.Sprintf("i-%03d", n)
	err := store.PutDeadLetter(t.Context(), driver.DeadLetter{
		Subscription: "billing.ledger", Channel: issued.Type(), Type: issued.Type(), ID: id, AggregateID: fmt.Sprint("customer-", n%7), Reason: "exhausted", Err: failure, Attempts: 10,
		FailedAt: time.Date(2026, 1, 2, 3, 4, n, 0, time.UTC),
		Body:     fmt.Appendf(nil, `{"id":"%s","aggregateId":"customer-%d","eventType":"billing.invoice.issued","occurredAt":"2026-01-02T03:04:05.000Z","version":1,"payload":{"amount":%d}}`, id, n%7, n),
	})
	if err != nil {
		t.Fatal(err)
	}
}

func ledger(t testing.TB, store driver.DeadLetterStore, fn func(invoicePayload) error) {
	t.Helper()
	bus := tidings.New(memory.New(nil), &tidings.Options{Logger: slog.New(slog.DiscardHandler), DeadLetters: store})
	bus.Module("billing").Subscribe("ledger", &tidings.SubscribeOptions{MaxAttempts: 1}, issued.On(func(_ context.Context, e tidings.Event[invoicePayload]) error { return fn(e.Payload()) }))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- bus.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestASelectionIsFrozen(t *testing.T) {
	store, letters := stored(t, 10)
	chosen, err := letters.Select(t.Context(), deadletter.Filter{Subscription: "billing.ledger"}, 8)
	if err != nil || chosen.Count() != 8 || !chosen.More() || len(chosen.Sample(3)) != 3 || chosen.Sample(1)[0].ID != "i-009" {
		t.Fatalf("%d selected, more %v, sample %v: %v", chosen.Count(), chosen.More(), chosen.Sample(3), err)
	}
	put(t, store, 50, "bank: timed out") // later
	put(t, store, 5, "bank: refused")    // died again since
	if marked, err := store.MarkDeadLetters(t.Context(), "billing.ledger", []driver.DeadLetterMark{{Key: "billing.invoice.issued/i-006"}}, driver.DeadLetterDiscarded, ""); err != nil || len(marked) != 1 {
		t.Fatal(marked, err)
	}
	result, err := chosen.Discard(t.Context(), "test data", nil)
	if err != nil {
		t.Fatal(err)
	}
	if result.Count(deadletter.Discarded) != 6 || result.Count(deadletter.Changed) != 2 {
		t.Errorf("%+v", result.Items)
	}
	for _, item := range result.Items {
		if item.Outcome == deadletter.Changed && item.Key == "billing.invoice.issued/i-006" && item.State != driver.DeadLetterDiscarded {
			t.Errorf("%+v", item)
		}
	}
	open, err := letters.List(t.Context(), deadletter.Filter{State: driver.DeadLetterOpen}, "", 100)
	var ids []string
	for _, l := range open.Letters {
		ids = append(ids, l.ID)
	}
	if want := "[i-050 i-005 i-001 i-000]"; err != nil || fmt.Sprint(ids) != want {
		t.Errorf("open %v, want %s: %v", ids, want, err)
	}
	if _, err := chosen.Discard(t.Context(), "", nil); !errors.Is(err, deadletter.ErrNoReason) {
		t.Errorf("discarded without a reason: %v", err)
	}
}

func TestARetryIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, letters := stored(t, 300)
		ledger(t, store, func(p invoicePayload) error {
			if p.Amount == 42 {
				return errors.New("still not")
			}
			return nil
		})
		chosen, err := letters.Select(t.Context(), deadletter.Filter{}, 1000)
		if err != nil {
			t.Fatal(err)
		}
		var steps []deadletter.Progress
		result, err := chosen.Retry(t.Context(), "fixed in 1.2", &deadletter.ActOptions{Wait: true, PerSecond: 100, Progress: func(p deadletter.Progress) { steps = append(steps, p) }})
		if err != nil || result.Count(deadletter.Handled) != 299 || result.Count(deadletter.DiedAgain) != 1 {
			t.Fatalf("%d handled, %d died again: %v", result.Count(deadletter.Handled), result.Count(deadletter.DiedAgain), err)
		}
		if last := steps[len(steps)-1]; last != (deadletter.Progress{Total: 300, Done: 300, Finished: 300}) || steps[0].Done >= 300 {
			t.Errorf("progress from %+v to %+v", steps[0], last)
		}
		for _, item := range result.Items {
			if item.Outcome == deadletter.DiedAgain && (item.Key != "billing.invoice.issued/i-042" || item.Err != "still not") {
				t.Errorf("%+v", item)
			}
		}
		shown, err := letters.Show(t.Context(), "billing.ledger", "billing.invoice.issued/i-042")
		if err != nil || shown.Times != 2 || shown.Envelope == nil || string(shown.Envelope.Payload) != `{"amount":42}` {
			t.Fatalf("%+v, %v", shown, err)
		}
		var history []string
		for _, c := range shown.History {
			history = append(history, string(c.State)+" "+c.Note)
		}
		if want := `["open exhausted: bank: timed out" "retry by ada: fixed in 1.2" "open exhausted: still not"]`; fmt.Sprintf("%q", history) != want {
			t.Errorf("history %q, want %s", history, want)
		}
	})
}

func TestARetryIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, letters := stored(t, 1000)
		chosen, err := letters.Select(t.Context(), deadletter.Filter{}, 1000)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		began := time.Now()
		result, err := chosen.Retry(ctx, "", &deadletter.ActOptions{PerSecond: 100})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 5*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		marked := result.Count(deadletter.Marked)
		if marked < 490 || marked > 530 || marked+result.Count(deadletter.Untouched) != 1000 {
			t.Errorf("%d of 1000 were marked in 5 s at 100 a second", marked)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Minute) // nobody handles them
		defer cancel()
		result, err = chosen.Retry(ctx, "", &deadletter.ActOptions{Wait: true})
		if !errors.Is(err, context.DeadlineExceeded) || result.Count(deadletter.Pending) != 1000 {
			t.Errorf("%d pending: %v", result.Count(deadletter.Pending), err)
		}
	})
}

func TestPickedLetters(t *testing.T) {
	_, letters := stored(t, 3)
	chosen, err := letters.Pick(t.Context(), deadletter.Name{Subscription: "billing.ledger", Key: "billing.invoice.issued/i-001"}, deadletter.Name{Subscription: "billing.ledger", Key: "none"})
	if err != nil || chosen.Count() != 2 {
		t.Fatal(chosen.Count(), err)
	}
	result, err := chosen.Retry(t.Context(), "", nil)
	if err != nil || result.Items[0].Outcome != deadletter.Marked || result.Items[1].Outcome != deadletter.NotFound {
		t.Errorf("%+v, %v", result, err)
	}
}

func TestOnlyWhatIsOverIsPruned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, letters := stored(t, 5)
		chosen, err := letters.Select(t.Context(), deadletter.Filter{}, 3)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := chosen.Discard(t.Context(), "test data", nil); err != nil {
			t.Fatal(err)
		}
		if n, err := letters.Prune(t.Context(), driver.DeadLetterDiscarded, time.Hour); n != 0 || err != nil {
			t.Errorf("%d pruned: %v", n, err)
		}
		after := time.NewTimer(2 * time.Hour)
		<-after.C
		if n, err := letters.Prune(t.Context(), driver.DeadLetterDiscarded, time.Hour); n != 3 || err != nil {
			t.Errorf("%d pruned: %v", n, err)
		}
		if _, err := letters.Prune(t.Context(), driver.DeadLetterOpen, time.Hour); !errors.Is(err, driver.ErrPrune) {
			t.Errorf("open letters were pruned: %v", err)
		}
	})
}

// topic has each letter twice, and fails now and then.
type topic struct {
	letters []driver.DeadLetter
	rounds  atomic.Int64
}

func (r *topic) ReadDeadLetters(ctx context.Context, _ []driver.Subscription, keep func(context.Context, []driver.DeadLetter) error) error {
	for range 2 {
		for n := range r.letters {
			if err := keep(ctx, r.letters[n:n+1]); err != nil {
				return err
			}
		}
		r.rounds.Add(1)
	}
	<-ctx.Done()
	return nil
}

func TestTheCollectorCompletesAndRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &stores.DeadLetters{}
		from := &topic{letters: []driver.DeadLetter{{
			Subscription: "billing.ledger", Channel: issued.Type(), Reason: "redriven by broker", FailedAt: time.Now(),
			Body: []byte(`{"id":"i-1","aggregateId":"customer-1","eventType":"billing.invoice.issued","occurredAt":"2026-01-02T03:04:05.000Z","version":1,"payload":{"amount":1}}`),
		}, {Subscription: "billing.ledger", Channel: issued.Type(), ID: "topic/0/7", Reason: "undecodable", FailedAt: time.Now(), Body: []byte(`{`)}}}
		collector, err := deadletter.NewCollector(from, store, func() []driver.Subscription { return []driver.Subscription{{Name: "billing.ledger"}} }, &deadletter.CollectorOptions{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- collector.Run(ctx) }()
		synctest.Wait()
		l, err := store.GetDeadLetter(t.Context(), "billing.ledger", "billing.invoice.issued/i-1")
		if err != nil || l.AggregateID != "customer-1" || l.Times != 1 {
			t.Errorf("%+v, %v", l, err)
		}
		if l, err := store.GetDeadLetter(t.Context(), "billing.ledger", "/topic/0/7"); err != nil || l.Times != 1 {
			t.Errorf("%+v, %v", l, err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if _, err := deadletter.NewCollector(nil, nil, nil, nil); err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("complaints: %v", err)
	}
}
