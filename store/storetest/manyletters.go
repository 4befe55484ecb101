package storetest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/deadletter"
	"github.com/tidings-go/tidings/driver"
)

// Many is a database with room for a large number of dead letters.
type Many struct {
	Store driver.DeadLetterStore
	// Driver is of the bus that handles what is retried: that in memory.
	Driver driver.Driver
	// Table is the name of its table, as statements write it.
	Table string
	// Exec runs a statement.
	Exec func(t *testing.T, statement string)
	// Plan tells how a query is carried out.
	Plan func(t *testing.T, query string) string
	// Whole is what a plan says that reads the whole table.
	Whole string
	// Analyze is the statement that counts what the table has, or "".
	Analyze string
}

// manyLetters is 10 000, of which a tenth is retried: all of it with
// TIDINGS_MANY_LETTERS=100000.
var manyLetters = func() int {
	if n, err := strconv.Atoi(os.Getenv("TIDINGS_MANY_LETTERS")); err == nil && n >= 10_000 {
		return n - n%1000
	}
	return 10_000
}()

var manyRetries = manyLetters / 10

// pageTime is what a page may take here, where a race detector and other tests may
// run beside; the time that was measured is printed.
const pageTime = time.Second

type letterPayload struct {
	Number int `json:"number"`
}

var letterSent = tidings.Define[letterPayload]("storetest.letter.sent", 1, tidings.Repeatable)

var manyErrors = [...]string{"timed out after %d ms", "refused by bank %d", "no such customer", "limit of %d reached", "account is closed"}

// fill inserts the letters. Those of subscription storetest.many are events that can
// be handled.
func (m *Many) fill(t *testing.T) {
	first := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	const atOnce = 1000
	for from := 0; from < manyLetters; from += atOnce {
		var s strings.Builder
		fmt.Fprintf(&s, "INSERT INTO %s (subscription, letter_key, state, note, times, changed_at, taken_until, failed_at, fingerprint, channel, type, id, aggregate_id, "+
			"reason, failure, stack, attempts, position, headers, body) VALUES ", m.Table)
		for n := from; n < from+atOnce; n++ {
			subscription, eventType, state := "storetest.many", letterSent.Type(), "open"
			if n%4 > 0 {
				subscription, eventType = fmt.Sprint("other.number-", n%9), fmt.Sprint("other.thing.done-", n%7)
			}
			if n%50 == 1 {
				state = "discarded"
			}
			failure := manyErrors[n%len(manyErrors)]
			if strings.Contains(failure, "%d") {
				failure = fmt.Sprintf(failure, n)
			}
			if n < 10 { // rare, and the oldest
				failure = "the one failure that is rare"
			}
			id, aggregate, failed := fmt.Sprintf("id-%06d", n), fmt.Sprint("k-", n%5000), first.Add(time.Duration(n)*time.Second).UnixMicro()
			body := fmt.Sprintf(`{"id":"%s","aggregateId":"%s","eventType":"%s","occurredAt":"2026-01-02T03:04:05.000Z","version":1,"payload":{"number":%d}}`, id, aggregate, eventType, n)
			if n > from {
				s.WriteString(", ")
			}
			fmt.Fprintf(&s, "('%s', '%s/%s', '%s', '', 1, %d, NULL, %d, '%s', '%s', '%s', '%s', '%s', 'exhausted', '%s', '', 10, 'topic/0/%d', '', '%s')",
				subscription, eventType, id, state, failed, failed, driver.Fingerprint(failure), eventType, eventType, id, aggregate, failure, n, body)
		}
		m.Exec(t, s.String())
	}
	if m.Analyze != "" {
		m.Exec(t, m.Analyze)
	}
}

// ManyDeadLetters holds a store to its work with many letters (10 000, or as many as
// TIDINGS_MANY_LETTERS says): a page of every filter by an index and soon, and a
// tenth of them retried as they were selected. It prints the times that it
// measured.
func ManyDeadLetters(t *testing.T, m Many) {
	m.fill(t)
	t.Run("pages", func(t *testing.T) { manyPages(t, m) })
	t.Run("retries", func(t *testing.T) { manyRetried(t, m) })
}

func manyPages(t *testing.T, m Many) {
	letters, err := deadletter.New(m.Store, nil)
	if err != nil {
		t.Fatal(err)
	}
	var slowest, total time.Duration
	slow, count := "", 0
	for set := range 32 {
		for _, rare := range []bool{false, true} {
			var f deadletter.Filter
			var where []string
			is := func(bit int, column, value string) bool {
				if set&bit != 0 {
					where = append(where, column+" = '"+value+"'")
				}
				return set&bit != 0
			}
			failure, state := "timed out after 1 ms", driver.DeadLetterOpen
			if rare {
				failure, state = "the one failure that is rare", driver.DeadLetterDiscarded
			}
			if is(1, "subscription", "storetest.many") {
				f.Subscription = "storetest.many"
			}
			if is(2, "type", letterSent.Type()) {
				f.Type = letterSent.Type()
			}
			if is(4, "state", string(state)) {
				f.State = state
			}
			if is(8, "fingerprint", driver.Fingerprint(failure)) {
				f.Fingerprint = driver.Fingerprint(failure)
			}
			if set&16 != 0 {
				f.Since, f.Until = time.Date(2026, 1, 2, 4, 0, 0, 0, time.UTC), time.Date(2026, 1, 2, 20, 0, 0, 0, time.UTC)
				where = append(where, fmt.Sprintf("failed_at >= %d AND failed_at < %d", f.Since.UnixMicro(), f.Until.UnixMicro()))
			}
			after, name := "", fmt.Sprintf("%s (rare: %v)", strings.Join(where, " AND "), rare)
			for page := range 2 {
				best := time.Hour
				var found deadletter.Page
				for range 3 {
					began := time.Now()
					if found, err = letters.List(t.Context(), f, after, 50); err != nil {
						t.Fatal(err)
					}
					best = min(best, time.Since(began))
				}
				total, count = total+best, count+1
				if best > slowest {
					slowest, slow = best, fmt.Sprintf("%s, page %d", name, page+1)
				}
				if after = found.Next; after == "" {
					break
				}
			}
			query := "SELECT letter_key, failure FROM " + m.Table
			if len(where) > 0 {
				query += " WHERE " + strings.Join(where, " AND ")
			}
			if plan := m.Plan(t, query+" ORDER BY failed_at DESC, letter_key DESC, subscription DESC LIMIT 51"); strings.Contains(plan, m.Whole) {
				t.Errorf("no index for %s:\n%s", name, plan)
			}
		}
	}
	t.Logf("a page of 50 of %d letters, with each of 32 combinations of filters: mean %v, slowest %v (%s)", manyLetters, (total / time.Duration(count)).Round(10*time.Microsecond), slowest.Round(10*time.Microsecond), slow)
	if slowest > pageTime {
		t.Errorf("a page took %v", slowest)
	}
	began := time.Now()
	groups, err := letters.Groups(t.Context(), deadletter.Filter{}, 20)
	if err != nil || len(groups) != 20 {
		t.Errorf("%d groups: %v", len(groups), err)
	}
	t.Logf("groups of all: %v", time.Since(began).Round(time.Millisecond))
}

func manyRetried(t *testing.T, m Many) {
	letters, err := deadletter.New(m.Store, &deadletter.Options{By: "the suite"})
	if err != nil {
		t.Fatal(err)
	}
	filter := deadletter.Filter{Subscription: "storetest.many"}
	began := time.Now()
	chosen, err := letters.Select(t.Context(), filter, manyRetries)
	if err != nil || chosen.Count() != manyRetries || !chosen.More() || len(chosen.Sample(5)) != 5 {
		t.Fatalf("%d selected: %v", chosen.Count(), err)
	}
	t.Logf("%d letters selected in %v", manyRetries, time.Since(began).Round(time.Millisecond))
	late := letter("storetest.many", 1)
	late.FailedAt = time.Now()
	put(t, m.Store, late)
	gone := chosen.Sample(1)[0]
	if marked, err := m.Store.MarkDeadLetters(t.Context(), gone.Subscription, []driver.DeadLetterMark{{Key: gone.Key}}, driver.DeadLetterDiscarded, "by somebody else"); err != nil || len(marked) != 1 {
		t.Fatalf("%v, %v", marked, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	result, err := chosen.Retry(ctx, "cancelled", &deadletter.ActOptions{Progress: func(p deadletter.Progress) {
		if p.Total != manyRetries {
			t.Errorf("progress %+v", p)
		}
		if p.Done >= manyRetries/2 {
			cancel()
		}
	}})
	half := result.Count(deadletter.Marked)
	if !errors.Is(err, context.Canceled) || half+result.Count(deadletter.Untouched)+1 != manyRetries || half < manyRetries/2-1 || half > manyRetries/2+200 {
		t.Errorf("cancelled at one half: %d marked, %d untouched: %v", half, result.Count(deadletter.Untouched), err)
	}
	rest, err := letters.Select(t.Context(), filter, deadletter.MostSelected)
	if err != nil {
		t.Fatal(err)
	}
	if want := manyLetters/4 - half; rest.Count() != want { // one more came, one is discarded
		t.Errorf("%d are open, want %d", rest.Count(), want)
	}

	bus := tidings.New(m.Driver, &tidings.Options{Logger: slog.New(slog.DiscardHandler), DeadLetters: m.Store})
	var handled atomic.Int64
	bus.Module("storetest").Subscribe("many", &tidings.SubscribeOptions{MaxAttempts: 1}, letterSent.On(func(_ context.Context, e tidings.Event[letterPayload]) error {
		handled.Add(1)
		if e.Payload().Number == manyLetters-8 {
			return errors.New("still not")
		}
		return nil
	}))
	running, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- bus.Run(running) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	patient, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	began = time.Now()
	last := deadletter.Progress{}
	result, err = chosen.Retry(patient, "fixed", &deadletter.ActOptions{Wait: true, Progress: func(p deadletter.Progress) { last = p }})
	if err != nil {
		t.Fatal(err)
	}
	var outcomes []string
	for _, outcome := range []deadletter.Outcome{deadletter.Handled, deadletter.DiedAgain, deadletter.Changed, deadletter.Pending, deadletter.NotFound, deadletter.Untouched} {
		outcomes = append(outcomes, fmt.Sprint(outcome, " ", result.Count(outcome)))
	}
	t.Logf("%d letters marked and handled in %v: %s", manyRetries, time.Since(began).Round(time.Millisecond), strings.Join(outcomes, ", "))
	// Those that were marked before have changed when they were handled meanwhile;
	// the others are what is handled now.
	if last.Done != manyRetries || result.Count(deadletter.Pending)+result.Count(deadletter.NotFound)+result.Count(deadletter.Untouched) > 0 || result.Count(deadletter.DiedAgain) > 1 {
		t.Errorf("progress %+v, %s", last, strings.Join(outcomes, ", "))
	}
	eventually(t, "those of the first half are handled too", func() bool {
		waiting, err := m.Store.ListDeadLetters(t.Context(), deadletter.Filter{Subscription: "storetest.many", State: driver.DeadLetterRetry}, "", 1)
		if err != nil {
			t.Fatal(err)
		}
		return len(waiting) == 0
	})
	if n := int(handled.Load()); n != manyRetries-1 {
		t.Errorf("%d events were handled, want %d: those that were selected, once each, but for the discarded one", n, manyRetries-1)
	}
	if got := get(t, m.Store, "storetest.many", late.Key()); got.State != driver.DeadLetterOpen {
		t.Errorf("what came after the selection is %s", got.State)
	}
	again := get(t, m.Store, "storetest.many", fmt.Sprintf("%s/id-%06d", letterSent.Type(), manyLetters-8))
	if again.Times != 2 || again.State != driver.DeadLetterOpen || again.Err != "still not" {
		t.Errorf("what failed again: %s, times %d, %q", again.State, again.Times, again.Err)
	}
	if changes, err := m.Store.DeadLetterChanges(t.Context(), "storetest.many", again.Key); err != nil || !slices.ContainsFunc(changes, func(c driver.DeadLetterChange) bool {
		return c.State == driver.DeadLetterRetry && strings.HasPrefix(c.Note, "by the suite: ")
	}) {
		t.Errorf("its history %+v, %v", changes, err)
	}
}
