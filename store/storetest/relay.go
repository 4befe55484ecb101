package storetest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

// Relay holds a store to what relays promise: it runs them against a broker in
// the test. open makes an empty database.
func Relay[TX any](t *testing.T, open func(t *testing.T) Database[TX]) {
	t.Helper()
	for name, test := range map[string]func(t *testing.T, d Database[TX]){
		"a row too large in the middle": tooLargeInTheMiddle[TX],
		"many refused rows in front":    manyRefused[TX],
		"a broker that is away":         brokerAway[TX],
		"a relay that was paused":       pausedRelay[TX],
		"transactions that are open":    relayPastOpenTransactions[TX],
		"rows of others":                relayRowsOfOthers[TX],
		"held rows":                     heldRows[TX],
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// fakeBroker takes what relays send, and looks for two calls with one aggregate.
type fakeBroker struct {
	mu      sync.Mutex
	took    []driver.Message
	calls   int
	flying  map[string]int
	overlap int
	refuse  func(driver.Message) error // of one message, as too large
	away    bool
	during  func([]driver.Message) // a call
}

var errAway = errors.New("connection refused")

func (b *fakeBroker) forward(_ context.Context, messages []driver.Message) error {
	keys := make(map[string]bool)
	b.mu.Lock()
	b.calls++
	for _, m := range messages {
		keys[m.Key] = true
	}
	for key := range keys {
		if b.flying == nil {
			b.flying = make(map[string]int)
		}
		if b.flying[key]++; b.flying[key] > 1 {
			b.overlap++
		}
	}
	away, refuse, during := b.away, b.refuse, b.during
	b.mu.Unlock()
	if during != nil {
		during(messages)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for key := range keys {
		b.flying[key]--
	}
	if away {
		return errAway
	}
	results := make([]driver.PublishResult, len(messages))
	failed := false
	for n, m := range messages {
		if refuse != nil && refuse(m) != nil {
			results[n].Err, failed = refuse(m), true
		}
	}
	if failed { // sizes are checked before anything is sent
		for n := range results {
			if results[n].Err == nil {
				results[n].Err = errors.New("another one was refused")
			}
		}
		return &driver.PublishError{Results: results}
	}
	b.took = append(b.took, messages...)
	return nil
}

func (b *fakeBroker) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

// sent are the ids that were taken, of one aggregate or of all ("").
func (b *fakeBroker) sent(aggregate string) (all []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.took {
		if aggregate == "" || m.Key == aggregate {
			all = append(all, m.ID)
		}
	}
	return all
}

func (b *fakeBroker) wantNoOverlap(t *testing.T) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.overlap > 0 {
		t.Errorf("%d times two sends of one aggregate were under way", b.overlap)
	}
}

// relay runs one until the test ends.
func relay(t *testing.T, queue outbox.Queue, b *fakeBroker, options outbox.Options) (stop func()) {
	t.Helper()
	options.Logger = slog.New(slog.DiscardHandler)
	r, err := outbox.NewRelay(queue, b.forward, &options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func tooLargeInTheMiddle[TX any](t *testing.T, d Database[TX]) {
	s, b := d.Open(t), &fakeBroker{}
	bad := errors.Join(errors.New("11 MB"), driver.ErrTooLarge)
	b.refuse = func(m driver.Message) error {
		if m.ID == "k-2" {
			return bad
		}
		return nil
	}
	var rows []outbox.Row
	for n := 1; n <= 3; n++ {
		for _, aggregate := range []string{"k", "m", "n"} {
			rows = append(rows, row("a.b", aggregate, n))
		}
	}
	add(t, s, rows...)
	relay(t, d.Open(t), b, outbox.Options{})
	eventually(t, "all is sent but what is behind the refused one", func() bool { return len(b.sent("")) == 7 })
	var held []outbox.Held
	eventually(t, "the refused row is held", func() (ok bool) {
		var err error
		held, err = s.Held(t.Context(), 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		return len(held) == 1
	})
	if r := held[0].Row; r.ID != "k-2" || r.Attempts < 1 || !strings.Contains(r.Failure, "11 MB") {
		t.Errorf("held: %+v", held[0])
	}
	b.set(func() { b.refuse = nil })
	if err := s.Retry(t.Context(), held[0].Row.Sequence); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the rest follows", func() bool { return len(b.sent("")) == 9 })
	for _, aggregate := range []string{"k", "m", "n"} {
		if got, want := fmt.Sprint(b.sent(aggregate)), fmt.Sprintf("[%s-1 %[1]s-2 %[1]s-3]", aggregate); got != want {
			t.Errorf("sent %s, want %s", got, want)
		}
	}
	b.wantNoOverlap(t)
}

// Rows that the broker refuses cost those behind them a moment and no more.
func manyRefused[TX any](t *testing.T, d Database[TX]) {
	const good = 100
	bad := 10_000
	if d.OneWriter { // and every statement in one process
		bad = 2000
	}
	s, b := d.Open(t), &fakeBroker{}
	b.refuse = func(m driver.Message) error {
		if strings.HasPrefix(m.Key, "bad") {
			return driver.ErrTooLarge
		}
		return nil
	}
	rows := make([]outbox.Row, 0, bad+good)
	for n := range bad {
		rows = append(rows, row("a.b", fmt.Sprint("bad", n), 1))
	}
	for n := range good {
		rows = append(rows, row("a.b", fmt.Sprint("good", n), 1))
	}
	add(t, s, rows...)
	relay(t, d.Open(t), b, outbox.Options{})
	began := time.Now()
	within(t, 3*time.Minute, "good rows flow behind bad ones", func() bool { return len(b.sent("")) == good })
	t.Logf("%d rows behind %d refused ones were sent within %v", good, bad, time.Since(began).Round(time.Millisecond))
}

func brokerAway[TX any](t *testing.T, d Database[TX]) {
	s, b := d.Open(t), &fakeBroker{away: true}
	add(t, s, row("a.b", "k", 1), row("a.b", "k", 2))
	relay(t, d.Open(t), b, outbox.Options{})
	calls := func() (n int) {
		b.set(func() { n = b.calls })
		return n
	}
	began := time.Now()
	eventually(t, "it is tried again", func() bool { return calls() >= 4 })
	if waited := time.Since(began); waited < 500*time.Millisecond { // 100 + 200 + 400 milliseconds
		t.Errorf("four tries within %v", waited)
	}
	if held, err := s.Held(t.Context(), 0, 10); err != nil || len(held) != 0 {
		t.Errorf("an outage holds aggregates back: %+v %v", held, err)
	}
	b.set(func() { b.away = false })
	eventually(t, "what waited is sent", func() bool { return fmt.Sprint(b.sent("")) == "[k-1 k-2]" })
	eventually(t, "it is taken out", func() bool { return len(pending(t, s, everySlot(), 10)) == 0 })
}

// frozen is a queue whose process stands still: it renews nothing.
type frozen struct{ outbox.Queue }

var errFrozen = errors.New("this process stands still")

func (frozen) Renew(context.Context, string, string, time.Duration) ([]driver.Lease, error) {
	return nil, errFrozen
}

// counting counts what Sent has taken out.
type counting struct {
	outbox.Queue
	mu    sync.Mutex
	calls int
	took  int
}

func (c *counting) Sent(ctx context.Context, group, holder string, leases []driver.Lease, rows []outbox.Row) (int, error) {
	n, err := c.Queue.Sent(ctx, group, holder, leases, rows)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	c.took += n
	return n, err
}

func (c *counting) counts() (calls, took int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls, c.took
}

// A relay that stood still beyond its lease takes nothing out, though the broker
// took what it sent; its successor sends it again, and what is behind it after that.
func pausedRelay[TX any](t *testing.T, d Database[TX]) {
	s := d.Open(t)
	add(t, s, row("a.b", "k", 1), row("a.b", "k", 2))
	inside, goOn := make(chan struct{}), make(chan struct{})
	paused := &fakeBroker{during: func([]driver.Message) { close(inside); <-goOn }}
	first := &counting{Queue: frozen{d.Open(t)}}
	stop := relay(t, first, paused, outbox.Options{LeaseTime: 3 * leaseTime()})
	<-inside
	taken, goOn2 := make(chan struct{}), make(chan struct{})
	successor := &fakeBroker{during: func([]driver.Message) { close(taken); <-goOn2 }}
	second := &counting{Queue: d.Open(t)}
	relay(t, second, successor, outbox.Options{LeaseTime: 20 * leaseTime()})
	<-taken // the lease of the first is over: another sends the same rows
	close(goOn)
	eventually(t, "the first one has tried to take its rows out", func() bool { calls, _ := first.counts(); return calls > 0 })
	stop()
	if _, took := first.counts(); took != 0 {
		t.Errorf("a relay that was paused beyond its lease took out %d rows", took)
	}
	if rows := pending(t, s, everySlot(), 10); len(rows) != 2 {
		t.Errorf("%v are left", ids(rows))
	}
	close(goOn2)
	eventually(t, "the successor takes them out", func() bool { _, took := second.counts(); return took == 2 })
	if got := fmt.Sprint(successor.sent("")); got != "[k-1 k-2]" {
		t.Errorf("the successor sent %s", got)
	}
}

// Transactions that are open delay their own rows only, whoever opened them; and
// what is committed late, with sequences that others have passed, is sent.
func relayPastOpenTransactions[TX any](t *testing.T, d Database[TX]) {
	if d.OneWriter {
		t.Skip("one writer at a time: no two transactions are open")
	}
	s, b := d.Open(t), &fakeBroker{}
	const open = 3
	commits := make([]chan struct{}, open+1)
	var opened sync.WaitGroup
	done := make(chan error, open+1)
	for n := range commits {
		commits[n] = make(chan struct{})
		opened.Add(1)
		other := d.Open(t) // one pool would not have connections enough for all
		go func() {
			done <- other.Transact(context.WithoutCancel(t.Context()), func(ctx context.Context, tx TX) (err error) {
				if n == open { // it has nothing to do with events
					err = d.Exec(ctx, tx, "INSERT INTO effects (name) VALUES ('unrelated')")
				} else {
					err = other.Add(ctx, tx, []outbox.Row{row("a.b", fmt.Sprint("late", n), 1)})
				}
				opened.Done()
				<-commits[n]
				return err
			})
		}()
	}
	opened.Wait()
	relay(t, d.Open(t), b, outbox.Options{})
	for n := range 20 {
		add(t, s, row("a.b", fmt.Sprint("k", n), 1))
	}
	eventually(t, "others flow", func() bool { return len(b.sent("")) == 20 })
	eventually(t, "they are taken out", func() bool { return len(pending(t, s, everySlot(), 10)) == 0 })
	for n := open - 1; n >= 0; n-- { // the last sequence first
		close(commits[n])
		eventually(t, "a late row is sent", func() bool { return slices.Contains(b.sent(""), fmt.Sprintf("late%d-1", n)) })
	}
	close(commits[open])
	for range commits {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func relayRowsOfOthers[TX any](t *testing.T, d Database[TX]) {
	s, b := d.Open(t), &fakeBroker{}
	err := s.Transact(t.Context(), func(ctx context.Context, tx TX) error {
		return d.Exec(ctx, tx, `INSERT INTO tidings_outbox (id, aggregatetype, aggregateid, type, payload) VALUES ('i1', 'users.user.created', 'u1', 'users.user.created', '{"n":1}')`)
	})
	if err != nil {
		t.Fatal(err)
	}
	relay(t, d.Open(t), b, outbox.Options{})
	eventually(t, "the row is sent", func() bool { return len(b.sent("")) == 1 })
	e, err := codec.Decode(&driver.Delivery{Message: b.took[0]})
	if err != nil || e.ID != "i1" || e.Type != "users.user.created" || e.AggregateID != "u1" || e.Version != 1 || e.Bare || string(e.Payload) != `{"n":1}` {
		t.Errorf("%+v %v", e, err)
	}
}

// What people do about held rows.
func heldRows[TX any](t *testing.T, d Database[TX]) {
	s := d.Open(t)
	add(t, s, row("a.b", "k", 1), row("a.b", "k", 2), row("a.b", "m", 1))
	held := hold(t, s, "one", time.Minute, everySlot()...)
	rows := pending(t, s, everySlot(), 10)
	refused := []outbox.Refused{{Row: rows[0], Failure: "too large", Wait: time.Hour}, {Row: rows[2], Failure: "no topic", Wait: time.Hour}}
	if err := s.Hold(t.Context(), "relay", "one", held, refused); err != nil {
		t.Fatal(err)
	}
	all, err := s.Held(t.Context(), 0, 10)
	if err != nil || len(all) != 2 || all[0].Row.ID != "k-1" || all[0].Row.Failure != "too large" || all[0].Row.Attempts != 1 || all[1].Row.Failure != "no topic" ||
		all[0].Wait < 50*time.Minute || all[0].Wait > time.Hour || string(all[0].Row.Payload) != string(rows[0].Payload) {
		t.Fatalf("Held: %+v %v", all, err)
	}
	if page, err := s.Held(t.Context(), all[0].Row.Sequence, 1); err != nil || len(page) != 1 || page[0].Row.ID != "m-1" {
		t.Errorf("the next page: %+v %v", page, err)
	}
	if got := pending(t, s, everySlot(), 10); len(got) != 0 {
		t.Errorf("pending: %v", ids(got))
	}
	if err := s.Retry(t.Context(), rows[1].Sequence); !errors.Is(err, outbox.ErrNotHeld) {
		t.Errorf("retry of one that is not held: %v", err)
	}
	for range 2 { // the second changes nothing
		if err := s.Retry(t.Context(), rows[2].Sequence); err != nil {
			t.Errorf("Retry: %v", err)
		}
	}
	if got := pending(t, s, everySlot(), 10); fmt.Sprint(ids(got)) != "[m-1]" {
		t.Errorf("after the retry %v are pending", ids(got))
	}
	if err := s.Discard(t.Context(), rows[0].Sequence, " "); err == nil {
		t.Error("discarded without a reason")
	}
	if err := s.Discard(t.Context(), rows[1].Sequence, "because"); !errors.Is(err, outbox.ErrNotHeld) {
		t.Errorf("discard of one that is not held: %v", err)
	}
	if err := s.Discard(t.Context(), rows[0].Sequence, "a test order"); err != nil {
		t.Fatal(err)
	}
	if err := s.Discard(t.Context(), rows[0].Sequence, "again"); !errors.Is(err, outbox.ErrNotHeld) {
		t.Errorf("discarded twice: %v", err)
	}
	if got := pending(t, s, everySlot(), 10); fmt.Sprint(ids(got)) != "[k-2 m-1]" {
		t.Errorf("after the discard %v are pending", ids(got))
	}
	gone, err := s.Discarded(t.Context(), 0, 10)
	if err != nil || len(gone) != 1 || gone[0].Reason != "a test order" || gone[0].Row.ID != "k-1" || gone[0].Row.Failure != "too large" || gone[0].Row.Slot != rows[0].Slot ||
		!slices.Equal(gone[0].Row.Headers, rows[0].Headers) || string(gone[0].Row.Payload) != string(rows[0].Payload) || time.Since(gone[0].At).Abs() > time.Minute {
		t.Errorf("Discarded: %+v %v", gone, err)
	}
	if status, err := s.Status(t.Context()); err != nil || status.Held != 1 || status.Backlog != 2 {
		t.Errorf("status %+v %v", status, err)
	}
}
