package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/inbox"
	"github.com/tidings-go/tidings/outbox"
)

// SQL is what a store over a database has.
type SQL[TX any] interface {
	outbox.Store[TX]
	inbox.Store[TX]
}

// Database is one empty database under test.
type Database[TX any] struct {
	// Open gives a store over it, as another process would have.
	Open func(t *testing.T) SQL[TX]
	// Exec runs a statement in a transaction; arguments are written as the
	// database has them, and tables of the store have their default names.
	Exec func(ctx context.Context, tx TX, statement string) error
	// Effects reads how many rows the table effects has, which the test has made:
	// CREATE TABLE effects (name VARCHAR(100)).
	Effects func(t *testing.T) int
	// OneWriter says that a transaction that writes holds all others back.
	OneWriter bool
}

func row(channel, aggregate string, n int) outbox.Row {
	return outbox.Row{
		Slot: outbox.SlotOf(channel, aggregate), ID: fmt.Sprintf("%s-%d", aggregate, n), Channel: channel, AggregateID: aggregate, Type: channel + ".done",
		Headers: driver.Headers{{Name: "eventType", Value: channel + ".done"}, {Name: "odd", Value: "\xff"}}, Payload: fmt.Appendf(nil, `{"n":%d,"text":"é"}`, n),
	}
}

func add[TX any](t *testing.T, s SQL[TX], rows ...outbox.Row) {
	t.Helper()
	if err := s.Transact(t.Context(), func(ctx context.Context, tx TX) error { return s.Add(ctx, tx, rows) }); err != nil {
		t.Fatalf("Add: %v", err)
	}
}

func everySlot() []int {
	slots := make([]int, outbox.Slots)
	for n := range slots {
		slots[n] = n
	}
	return slots
}

func pending[TX any](t *testing.T, s SQL[TX], slots []int, limit int) []outbox.Row {
	t.Helper()
	rows, err := s.Pending(t.Context(), outbox.Look{Slots: slots, Each: limit, Limit: limit})
	if err != nil {
		t.Fatalf("Pending: %v", err)
	}
	return rows
}

func ids(rows []outbox.Row) (all []string) {
	for _, r := range rows {
		all = append(all, r.ID)
	}
	return all
}

// hold takes the leases of some slots.
func hold[TX any](t *testing.T, s SQL[TX], holder string, ttl time.Duration, slots ...int) []driver.Lease {
	t.Helper()
	var names []string
	for _, slot := range slots {
		names = append(names, outbox.LeaseName(slot))
	}
	got, err := s.Acquire(t.Context(), "relay", holder, names, len(names), ttl)
	if err != nil {
		t.Fatalf("Acquire: %v", err)
	}
	return got
}

// Outbox holds a store to [outbox.Store]. open makes an empty database.
func Outbox[TX any](t *testing.T, open func(t *testing.T) Database[TX]) {
	t.Helper()
	for name, test := range map[string]func(t *testing.T, d Database[TX]){
		"committed rows in order":     committedInOrder[TX],
		"only what is committed":      onlyCommitted[TX],
		"an open transaction":         openTransaction[TX],
		"sent by the holder only":     sentByHolder[TX],
		"held back":                   heldBack[TX],
		"rows of others":              rowsOfOthers[TX],
		"a transaction that is over":  transactionOver[TX],
		"writers of one aggregate":    writersSerialized[TX],
		"told when there is anything": told[TX],
		"counted":                     counted[TX],
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func committedInOrder[TX any](t *testing.T, d Database[TX]) {
	s := d.Open(t)
	var want []string
	for n := range 30 {
		rows := []outbox.Row{row("a.b", fmt.Sprint("k", n%4), 2*n), row("a.b", fmt.Sprint("k", n%4), 2*n+1)}
		add(t, s, rows...)
		want = append(want, ids(rows)...)
	}
	got := pending(t, d.Open(t), everySlot(), 100)
	if fmt.Sprint(ids(got)) != fmt.Sprint(want) {
		t.Fatalf("got  %v\nwant %v", ids(got), want)
	}
	first, wanted := got[0], row("a.b", "k0", 0)
	if first.Channel != wanted.Channel || first.AggregateID != wanted.AggregateID || first.Type != wanted.Type || first.Slot != wanted.Slot ||
		string(first.Payload) != string(wanted.Payload) || !slices.Equal(first.Headers, wanted.Headers) || time.Since(first.CreatedAt).Abs() > time.Minute {
		t.Errorf("got %+v", first)
	}
	if some := pending(t, s, everySlot(), 7); len(some) != 7 {
		t.Errorf("%d rows, the limit is 7", len(some))
	}
	for _, r := range pending(t, s, []int{outbox.SlotOf("a.b", "k1")}, 100) {
		if r.Slot != outbox.SlotOf("a.b", "k1") {
			t.Errorf("a row of slot %d", r.Slot)
		}
	}
	if huge := (outbox.Row{ID: "x", Channel: "a.b", AggregateID: "k", Type: "t", Payload: []byte{0xff}}); s.Transact(t.Context(), func(ctx context.Context, tx TX) error { return s.Add(ctx, tx, []outbox.Row{huge}) }) == nil {
		t.Error("a payload that is no text was accepted")
	}
}

func onlyCommitted[TX any](t *testing.T, d Database[TX]) {
	s, no := d.Open(t), errors.New("no")
	err := s.Transact(t.Context(), func(ctx context.Context, tx TX) error {
		if err := s.Add(ctx, tx, []outbox.Row{row("a.b", "k", 1)}); err != nil {
			t.Error(err)
		}
		if err := d.Exec(ctx, tx, "INSERT INTO effects (name) VALUES ('one')"); err != nil {
			t.Error(err)
		}
		return no
	})
	if !errors.Is(err, no) {
		t.Fatalf("Transact: %v", err)
	}
	if rows := pending(t, s, everySlot(), 10); len(rows) != 0 || d.Effects(t) != 0 {
		t.Errorf("after a rollback: %v, %d effects", ids(rows), d.Effects(t))
	}
}

// A transaction that is open delays its own rows and no others, and they are not
// passed by.
func openTransaction[TX any](t *testing.T, d Database[TX]) {
	if d.OneWriter {
		t.Skip("one writer at a time: no two transactions are open")
	}
	s := d.Open(t)
	added, commit, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- s.Transact(context.WithoutCancel(t.Context()), func(ctx context.Context, tx TX) error {
			err := s.Add(ctx, tx, []outbox.Row{row("a.b", "slow", 1)})
			close(added)
			<-commit
			return err
		})
	}()
	<-added
	add(t, s, row("a.b", "fast", 1))
	rows := pending(t, s, everySlot(), 10)
	if fmt.Sprint(ids(rows)) != "[fast-1]" {
		t.Errorf("while a transaction is open: %v", ids(rows))
	}
	held := hold(t, s, "relay", time.Minute, everySlot()...)
	if n, err := s.Sent(t.Context(), "relay", "relay", held, rows); err != nil || n != 1 {
		t.Errorf("Sent: %d %v", n, err)
	}
	close(commit)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if rows := pending(t, s, everySlot(), 10); fmt.Sprint(ids(rows)) != "[slow-1]" {
		t.Errorf("after it was committed: %v", ids(rows))
	}
}

func sentByHolder[TX any](t *testing.T, d Database[TX]) {
	s, other := d.Open(t), d.Open(t)
	slot := outbox.SlotOf("a.b", "k")
	add(t, s, row("a.b", "k", 1), row("a.b", "k", 2), row("a.b", "other", 1))
	old := hold(t, s, "one", leaseTime(), slot)
	rows := pending(t, s, []int{slot}, 10)
	var next []driver.Lease
	eventually(t, "the lease of the first is over", func() bool {
		next = hold(t, other, "two", time.Minute, slot)
		return len(next) == 1
	})
	if n, err := s.Sent(t.Context(), "relay", "one", old, rows); err != nil || n != 0 {
		t.Errorf("one whose lease is over took out %d rows: %v", n, err)
	}
	if n, err := other.Sent(t.Context(), "relay", "two", old, rows); err != nil || n != 0 {
		t.Errorf("an old epoch took out %d rows: %v", n, err)
	}
	if err := s.Hold(t.Context(), "relay", "one", old, []outbox.Refused{{Row: rows[0], Failure: "no", Wait: time.Hour}}); err != nil {
		t.Errorf("Hold: %v", err)
	}
	if left := pending(t, s, []int{slot}, 10); len(left) != 2 || left[0].Attempts != 0 {
		t.Fatalf("left: %+v", left)
	}
	if n, err := other.Sent(t.Context(), "relay", "two", next, pending(t, s, everySlot(), 10)); err != nil || n != 2 {
		t.Errorf("the holder of one slot took out %d rows, want 2: %v", n, err)
	}
	if left := pending(t, s, everySlot(), 10); fmt.Sprint(ids(left)) != "[other-1]" {
		t.Errorf("left: %v", ids(left))
	}
}

func heldBack[TX any](t *testing.T, d Database[TX]) {
	s := d.Open(t)
	add(t, s, row("a.b", "bad", 1), row("a.b", "bad", 2), row("a.b", "good", 1))
	slot := outbox.SlotOf("a.b", "bad")
	held := hold(t, s, "one", time.Minute, slot)
	rows := pending(t, s, []int{slot}, 1)
	back := func(wait time.Duration) {
		t.Helper()
		if err := s.Hold(t.Context(), "relay", "one", held, []outbox.Refused{{Row: rows[0], Failure: "too \x00 large", Wait: wait}}); err != nil {
			t.Fatalf("Hold: %v", err)
		}
	}
	back(time.Hour)
	if got := pending(t, s, everySlot(), 10); fmt.Sprint(ids(got)) != "[good-1]" {
		t.Errorf("while it is held: %v", ids(got))
	}
	if status, err := s.Status(t.Context()); err != nil || status.Held != 1 || status.Backlog != 3 {
		t.Errorf("status %+v: %v", status, err)
	}
	back(leaseTime())
	eventually(t, "it is tried again", func() bool { return len(pending(t, s, everySlot(), 10)) == 3 })
	rows = pending(t, s, []int{slot}, 10)
	if rows[0].Attempts != 2 || rows[0].Failure == "" {
		t.Errorf("got %+v", rows[0])
	}
	if n, err := s.Sent(t.Context(), "relay", "one", held, rows); err != nil || n != 2 {
		t.Errorf("Sent: %d %v", n, err)
	}
	if status, err := s.Status(t.Context()); err != nil || status.Held != 0 || status.Backlog != 1 {
		t.Errorf("status %+v: %v", status, err)
	}
}

// A row that was inserted with Debezium's columns only gets its slot.
func rowsOfOthers[TX any](t *testing.T, d Database[TX]) {
	s := d.Open(t)
	err := s.Transact(t.Context(), func(ctx context.Context, tx TX) error {
		return d.Exec(ctx, tx, `INSERT INTO tidings_outbox (id, aggregatetype, aggregateid, type, payload) VALUES ('i1', 'a.b', 'k', 'a.b.done', '{"n":1}')`)
	})
	if err != nil {
		t.Fatal(err)
	}
	add(t, s, row("a.b", "k", 2))
	rows := pending(t, s, []int{outbox.SlotOf("a.b", "k")}, 10)
	if fmt.Sprint(ids(rows)) != "[i1 k-2]" || rows[0].Slot != outbox.SlotOf("a.b", "k") || rows[0].Headers != nil || string(rows[0].Payload) != `{"n":1}` ||
		time.Since(rows[0].CreatedAt).Abs() > time.Minute {
		t.Errorf("got %+v", rows)
	}
	if none := pending(t, s, []int{(outbox.SlotOf("a.b", "k") + 1) % outbox.Slots}, 10); len(none) != 0 {
		t.Errorf("another slot has %v", ids(none))
	}
}

func transactionOver[TX any](t *testing.T, d Database[TX]) {
	s := d.Open(t)
	var kept TX
	if err := s.Transact(t.Context(), func(_ context.Context, tx TX) error { kept = tx; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.Add(t.Context(), kept, []outbox.Row{row("a.b", "k", 1)}); err == nil {
		t.Error("events were added to a transaction that is over")
	}
}

// Writers that serialize have their rows in the order of their commits.
func writersSerialized[TX any](t *testing.T, d Database[TX]) {
	s := d.Open(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	var commits []string
	for n := range 8 {
		all.Go(func() {
			id := fmt.Sprintf("k-%d", n)
			err := s.Transact(t.Context(), func(ctx context.Context, tx TX) error {
				if err := s.Serialize(ctx, tx, "a.b", "k"); err != nil {
					return err
				}
				mu.Lock() // whoever is here commits before the next one comes
				commits = append(commits, id)
				mu.Unlock()
				return s.Add(ctx, tx, []outbox.Row{row("a.b", "k", n)})
			})
			if err != nil {
				t.Errorf("Transact: %v", err)
			}
		})
	}
	all.Wait()
	if rows := pending(t, s, everySlot(), 100); fmt.Sprint(ids(rows)) != fmt.Sprint(commits) {
		t.Errorf("rows    %v\ncommits %v", ids(rows), commits)
	}
}

func told[TX any](t *testing.T, d Database[TX]) {
	listening, other := d.Open(t), d.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	wake := listening.Wake(ctx)
	if wake == nil {
		t.Log("the store cannot tell: relays poll")
		cancel()
		return
	}
	wait := func(what string) {
		t.Helper()
		select {
		case <-wake:
		case <-time.After(patience()):
			t.Fatal("not told: ", what)
		}
	}
	wait("that it listens")
	add(t, other, row("a.b", "k", 1))
	wait("of a commit")
	cancel()
	for {
		select {
		case _, open := <-wake:
			if !open {
				return
			}
		case <-time.After(patience()):
			t.Fatal("Wake goes on after its context has ended")
		}
	}
}

func counted[TX any](t *testing.T, d Database[TX]) {
	s := d.Open(t)
	if status, err := s.Status(t.Context()); err != nil || status != (outbox.Status{}) {
		t.Errorf("an empty outbox has %+v: %v", status, err)
	}
	add(t, s, row("a.b", "k", 1), row("a.b", "k", 2))
	eventually(t, "the oldest row has an age", func() bool {
		status, err := s.Status(t.Context())
		if err != nil || status.Backlog != 2 || status.Oldest < 0 || status.Oldest > time.Minute {
			t.Fatalf("status %+v: %v", status, err)
		}
		return status.Oldest > 0
	})
	if n, err := s.Clean(t.Context(), 0, 10); err != nil || n != 0 {
		t.Errorf("Clean took %d rows that are not sent: %v", n, err)
	}
}
