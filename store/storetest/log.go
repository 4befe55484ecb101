package storetest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

// Log holds a store to [outbox.Log]. open makes an empty database, whose stores
// have a method Log.
func Log[TX any](t *testing.T, open func(t *testing.T) Database[TX], log func(SQL[TX]) outbox.Log) {
	t.Helper()
	for name, test := range map[string]func(t *testing.T, d Database[TX], log func(SQL[TX]) outbox.Log){
		"positions are dense":    densePositions[TX],
		"an open transaction":    openIsNotPassed[TX],
		"many at once":           numberedByMany[TX],
		"where it begins":        whereItBegins[TX],
		"committed by the owner": progressByOwner[TX],
		"trimmed":                trimmed[TX],
		"a gap":                  gap[TX],
		"behind what waits":      behindWhatWaits[TX],
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t), log) })
	}
}

func number(t *testing.T, l outbox.Log) (all int) {
	t.Helper()
	for {
		n, err := l.Number(t.Context(), 100)
		if err != nil {
			t.Fatalf("Number: %v", err)
		}
		if all += n; n == 0 {
			return all
		}
	}
}

func begin(t *testing.T, l outbox.Log, subscription string, start driver.StartAt) []outbox.Place {
	t.Helper()
	if _, err := l.Begin(t.Context(), subscription, start); err != nil {
		t.Fatalf("Begin: %v", err)
	}
	progress, err := l.Progress(t.Context(), subscription, everySlot())
	if err != nil || len(progress) != outbox.Slots {
		t.Fatalf("%d positions: %v", len(progress), err)
	}
	places := make([]outbox.Place, len(progress))
	for n, p := range progress {
		places[n] = p.Place
	}
	return places
}

func read(t *testing.T, l outbox.Log, from []outbox.Place, limit int, channels ...string) []outbox.Entry {
	t.Helper()
	entries, err := l.Read(t.Context(), from, channels, limit)
	if err != nil {
		t.Fatalf("Read: %v", err)
	}
	return entries
}

func entryIDs(entries []outbox.Entry) (all []string) {
	for _, e := range entries {
		if e.Foreign {
			all = append(all, "-")
			continue
		}
		all = append(all, e.Row.ID)
	}
	return all
}

func densePositions[TX any](t *testing.T, d Database[TX], log func(SQL[TX]) outbox.Log) {
	s := d.Open(t)
	l := log(s)
	add(t, s, row("a.b", "k", 1), row("a.b", "k", 2))
	if err := l.Append(t.Context(), []outbox.Row{row("a.b", "k", 3)}); err != nil {
		t.Fatal(err)
	}
	other := row("c.d", "k", 9)
	other.Slot = outbox.SlotOf("a.b", "k")
	add(t, s, other, row("a.b", "k", 4))
	if n := number(t, l); n != 5 {
		t.Fatalf("%d were numbered", n)
	}
	slot := outbox.SlotOf("a.b", "k")
	entries := read(t, l, []outbox.Place{{Slot: slot}}, 10, "a.b")
	if fmt.Sprint(entryIDs(entries)) != "[k-1 k-2 k-3 - k-4]" {
		t.Errorf("read %v", entryIDs(entries))
	}
	for n, e := range entries {
		if e.Slot != slot || e.Position != int64(n) {
			t.Errorf("entry %d is at %d/%d", n, e.Slot, e.Position)
		}
	}
	want := row("a.b", "k", 1)
	if got := entries[0].Row; string(got.Payload) != string(want.Payload) || fmt.Sprint(got.Headers) != fmt.Sprint(want.Headers) || got.Type != want.Type || got.AggregateID != "k" ||
		time.Since(got.CreatedAt).Abs() > time.Minute {
		t.Errorf("got %+v", got)
	}
	if some := read(t, l, []outbox.Place{{Slot: slot, Position: 1}}, 2, "a.b"); fmt.Sprint(entryIDs(some)) != "[k-2 k-3]" {
		t.Errorf("from 1, two: %v", entryIDs(some))
	}
	if none := read(t, l, []outbox.Place{{Slot: slot, Position: 5}}, 2, "a.b"); len(none) != 0 {
		t.Errorf("behind the end: %v", entryIDs(none))
	}
	if left := pending(t, s, everySlot(), 10); len(left) != 0 {
		t.Errorf("numbered and pending: %v", ids(left))
	}
}

// What was inserted first and committed last comes last, and comes.
func openIsNotPassed[TX any](t *testing.T, d Database[TX], log func(SQL[TX]) outbox.Log) {
	if d.OneWriter {
		t.Skip("one writer at a time: no two transactions are open")
	}
	s := d.Open(t)
	l := log(s)
	slow, fast := row("a.b", "k", 1), row("a.b", "k", 2)
	added, commit, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- s.Transact(context.WithoutCancel(t.Context()), func(ctx context.Context, tx TX) error {
			err := s.Add(ctx, tx, []outbox.Row{slow})
			close(added)
			<-commit
			return err
		})
	}()
	<-added
	add(t, s, fast)
	if n := number(t, l); n != 1 {
		t.Errorf("%d were numbered while a transaction was open", n)
	}
	close(commit)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	number(t, l)
	if got := read(t, l, []outbox.Place{{Slot: slow.Slot}}, 10, "a.b"); fmt.Sprint(entryIDs(got)) != "[k-2 k-1]" {
		t.Errorf("read %v", entryIDs(got))
	}
}

// Many number and many write: every row has one place, and the order of each
// aggregate's rows is that in which they were written.
func numberedByMany[TX any](t *testing.T, d Database[TX], log func(SQL[TX]) outbox.Log) {
	const writers, each = 6, 40
	ctx, cancel := context.WithCancel(t.Context())
	var numbering, writing sync.WaitGroup
	for range 3 {
		l := log(d.Open(t))
		numbering.Go(func() {
			for ctx.Err() == nil {
				if _, err := l.Number(ctx, 50); err != nil && ctx.Err() == nil {
					t.Errorf("Number: %v", err)
					return
				}
			}
		})
	}
	for w := range writers {
		s := d.Open(t)
		writing.Go(func() {
			for n := range each {
				add(t, s, row("a.b", fmt.Sprint("w", w), n), row("a.b", fmt.Sprint("w", w, "-other"), n))
			}
		})
	}
	writing.Wait()
	cancel()
	numbering.Wait()
	l := log(d.Open(t))
	number(t, l)
	last := make(map[string]int)
	next := make(map[int]int64)
	total := 0
	for _, e := range read(t, l, begin(t, l, "all", driver.StartAt{Mode: driver.StartBeginning}), 10_000, "a.b") {
		if e.Position != next[e.Slot] {
			t.Fatalf("slot %d goes from %d to %d", e.Slot, next[e.Slot], e.Position)
		}
		next[e.Slot]++
		var n int
		if _, err := fmt.Sscanf(e.Row.ID, e.Row.AggregateID+"-%d", &n); err != nil || n != last[e.Row.AggregateID] {
			t.Errorf("%s came after %d", e.Row.ID, last[e.Row.AggregateID])
		}
		last[e.Row.AggregateID] = n + 1
		total++
	}
	if total != 2*writers*each {
		t.Errorf("%d rows, want %d", total, 2*writers*each)
	}
}

func whereItBegins[TX any](t *testing.T, d Database[TX], log func(SQL[TX]) outbox.Log) {
	s := d.Open(t)
	l := log(s)
	add(t, s, row("a.b", "k", 1))
	number(t, l)
	add(t, s, row("a.b", "k", 2)) // committed, without a position yet
	since := time.Now().Add(time.Hour)
	first := begin(t, l, "x.first", driver.StartAt{Mode: driver.StartBeginning})
	now := begin(t, l, "x.now", driver.StartAt{Mode: driver.StartNow})
	begin(t, l, "x.time", driver.StartAt{Mode: driver.StartTime, Time: since})
	add(t, s, row("a.b", "k", 3))
	number(t, l)
	if got := read(t, l, first, 10, "a.b"); fmt.Sprint(entryIDs(got)) != "[k-1 k-2 k-3]" {
		t.Errorf("from the beginning: %v", entryIDs(got))
	}
	if got := read(t, l, now, 10, "a.b"); fmt.Sprint(entryIDs(got)) != "[k-3]" {
		t.Errorf("from now: %v", entryIDs(got))
	}
	progress, err := l.Progress(t.Context(), "x.time", []int{0})
	if err != nil || len(progress) != 1 || !progress[0].Since.Equal(since.Truncate(time.Microsecond)) {
		t.Errorf("from a time: %+v %v", progress, err)
	}
	if known, err := l.Begin(t.Context(), "x.now", driver.StartAt{Mode: driver.StartBeginning}); !known || err != nil {
		t.Errorf("begun again: %v %v", known, err)
	}
	if again := begin(t, l, "x.now", driver.StartAt{Mode: driver.StartBeginning}); fmt.Sprint(again) != fmt.Sprint(now) {
		t.Errorf("it has moved to %v", again)
	}
}

func progressByOwner[TX any](t *testing.T, d Database[TX], log func(SQL[TX]) outbox.Log) {
	one, two := log(d.Open(t)), log(d.Open(t))
	begin(t, one, "x.y", driver.StartAt{Mode: driver.StartBeginning})
	take := func(l outbox.Log, holder string, ttl time.Duration, slots ...int) []driver.Lease {
		t.Helper()
		var names []string
		for _, slot := range slots {
			names = append(names, outbox.LeaseName(slot))
		}
		got, err := l.Acquire(t.Context(), "g", holder, names, len(names), ttl)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	at := func(slot int, position int64) outbox.Progress {
		return outbox.Progress{Place: outbox.Place{Slot: slot, Position: position}, Finished: fmt.Sprint("beyond ", position)}
	}
	mine := take(one, "one", time.Minute, 3)
	old := take(one, "one", 5*leaseTime(), 4) // it has to last for a commit
	refused, err := one.Commit(t.Context(), "g", "one", "x.y", []driver.Lease{mine[0], old[0]}, []outbox.Progress{at(3, 7), at(4, 8)})
	if err != nil || len(refused) != 0 {
		t.Fatalf("refused %v: %v", refused, err)
	}
	var next []driver.Lease
	eventually(t, "a lease ends", func() bool { next = take(two, "two", time.Minute, 4); return len(next) == 1 })
	refused, err = one.Commit(t.Context(), "g", "one", "x.y", []driver.Lease{mine[0], old[0]}, []outbox.Progress{at(3, 9), at(4, 99)})
	if err != nil || fmt.Sprint(refused) != fmt.Sprint(old) {
		t.Errorf("refused %v, want %v: %v", refused, old, err)
	}
	if refused, err := two.Commit(t.Context(), "g", "two", "x.y", next, []outbox.Progress{at(4, 10)}); err != nil || len(refused) != 0 {
		t.Errorf("the owner was refused: %v %v", refused, err)
	}
	// The holder alone is not enough: it may have lost a slot and taken it again.
	if err := one.Release(t.Context(), "g", "one", []string{mine[0].Name}); err != nil {
		t.Fatal(err)
	}
	again := take(one, "one", time.Minute, 3)
	refused, err = one.Commit(t.Context(), "g", "one", "x.y", mine, []outbox.Progress{at(3, 99)})
	if err != nil || fmt.Sprint(refused) != fmt.Sprint(mine) || len(again) != 1 || again[0].Epoch <= mine[0].Epoch {
		t.Errorf("of an old epoch %v was refused, want %v; taken again: %v: %v", refused, mine, again, err)
	}
	got, err := two.Progress(t.Context(), "x.y", []int{3, 4})
	if err != nil || len(got) != 2 || got[0] != at(3, 9) || got[1] != at(4, 10) {
		t.Errorf("progress %+v: %v", got, err)
	}
}

func trimmed[TX any](t *testing.T, d Database[TX], log func(SQL[TX]) outbox.Log) {
	s := d.Open(t)
	l := log(s)
	slot := outbox.SlotOf("a.b", "k")
	for n := range 6 {
		add(t, s, row("a.b", "k", n))
	}
	number(t, l)
	begin(t, l, "x.y", driver.StartAt{Mode: driver.StartBeginning})
	trim := func(keep time.Duration, limit int) int {
		t.Helper()
		n, err := l.Trim(t.Context(), keep, limit)
		if err != nil {
			t.Fatalf("Trim: %v", err)
		}
		return n
	}
	if n := trim(-time.Hour, 10); n != 0 {
		t.Errorf("%d entries were deleted that a subscription has not passed", n)
	}
	held := hold(t, s, "one", time.Minute, slot)
	if _, err := l.Commit(t.Context(), "relay", "one", "x.y", held, []outbox.Progress{{Place: outbox.Place{Slot: slot, Position: 4}}}); err != nil {
		t.Fatal(err)
	}
	if n := trim(time.Hour, 10); n != 0 {
		t.Errorf("%d entries were deleted that are to be kept", n)
	}
	if a, b := trim(-time.Hour, 3), trim(-time.Hour, 3); a != 3 || b != 1 {
		t.Errorf("%d and %d were deleted, want 3 and 1", a, b)
	}
	if got := begin(t, l, "x.new", driver.StartAt{Mode: driver.StartBeginning}); got[slot].Position != 4 {
		t.Errorf("a new subscription begins at %d", got[slot].Position)
	}
	if got := read(t, l, []outbox.Place{{Slot: slot, Position: 4}}, 10, "a.b"); fmt.Sprint(entryIDs(got)) != "[k-4 k-5]" {
		t.Errorf("left: %v", entryIDs(got))
	}
}

// What somebody erased from the middle of the log stops nobody.
func gap[TX any](t *testing.T, d Database[TX], log func(SQL[TX]) outbox.Log) {
	s := d.Open(t)
	l := log(s)
	for n := range 9 {
		add(t, s, row("a.b", "k", n))
	}
	number(t, l)
	slot := outbox.SlotOf("a.b", "k")
	if err := s.Transact(t.Context(), func(ctx context.Context, tx TX) error {
		return d.Exec(ctx, tx, "DELETE FROM tidings_log WHERE position BETWEEN 1 AND 7")
	}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, l, []outbox.Place{{Slot: slot}}, 3, "a.b"); len(got) == 0 || got[0].Row.ID != "k-0" {
		t.Errorf("before the gap: %v", entryIDs(got))
	}
	if got := read(t, l, []outbox.Place{{Slot: slot, Position: 1}}, 3, "a.b"); fmt.Sprint(entryIDs(got)) != "[k-8]" {
		t.Errorf("from within the gap: %v", entryIDs(got))
	}
}

// Append puts nothing before what was committed through the outbox earlier.
func behindWhatWaits[TX any](t *testing.T, d Database[TX], log func(SQL[TX]) outbox.Log) {
	s := d.Open(t)
	l := log(s)
	add(t, s, row("a.b", "k", 1))
	for n := range 3 {
		if err := l.Append(t.Context(), []outbox.Row{row("a.b", "k", n+2), row("a.b", "other", n)}); err != nil {
			t.Fatal(err)
		}
	}
	number(t, l)
	if err := l.Append(t.Context(), []outbox.Row{row("a.b", "k", 5), row("a.b", "k", 6)}); err != nil {
		t.Fatal(err)
	}
	number(t, l)
	if got := read(t, l, []outbox.Place{{Slot: outbox.SlotOf("a.b", "k")}}, 10, "a.b"); fmt.Sprint(entryIDs(got)) != "[k-1 k-2 k-3 k-4 k-5 k-6]" {
		t.Errorf("read %v", entryIDs(got))
	}
}
