package storetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
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
		"a new channel":          newChannel[TX],
		"a channel that is gone": goneChannel[TX],
		"about a limit":          aboutALimit[TX],
		"declared":               declared[TX],
		"forgotten types":        forgottenTypes[TX],
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

// begin makes channels known to a subscription and returns where it is in every
// slot of them, by channel and slot.
func begin(t *testing.T, l outbox.Log, subscription string, start driver.StartAt, channels ...string) []outbox.Place {
	t.Helper()
	if _, err := l.Begin(t.Context(), subscription, channels, start); err != nil {
		t.Fatalf("Begin: %v", err)
	}
	return places(t, l, subscription, channels...)
}

func places(t *testing.T, l outbox.Log, subscription string, channels ...string) []outbox.Place {
	t.Helper()
	var parts []outbox.Part
	for _, channel := range channels {
		parts = append(parts, outbox.Parts(channel)...)
	}
	progress, err := l.Progress(t.Context(), subscription, parts)
	if err != nil || len(progress) != len(parts) {
		t.Fatalf("%d positions: %v", len(progress), err)
	}
	places := make([]outbox.Place, len(progress))
	for n, p := range progress {
		places[n] = p.Place
	}
	return places
}

// place is one in the part of an aggregate.
func place(channel, aggregate string, position int64) outbox.Place {
	return outbox.Place{Part: outbox.PartOf(channel, aggregate), Position: position}
}

func read(t *testing.T, l outbox.Log, each int, from ...outbox.Place) []outbox.Entry {
	t.Helper()
	entries, _, err := l.Read(t.Context(), from, each, 1_000_000)
	if err != nil {
		t.Fatalf("Read: %v", err)
	}
	return entries
}

func entryIDs(entries []outbox.Entry) (all []string) {
	for _, e := range entries {
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
	other.Slot = outbox.SlotOf("a.b", "k") // another channel is another part, also in the same slot
	add(t, s, other, row("a.b", "k", 4))
	if n := number(t, l); n != 5 {
		t.Fatalf("%d were numbered", n)
	}
	entries := read(t, l, 10, place("a.b", "k", 0))
	if fmt.Sprint(entryIDs(entries)) != "[k-1 k-2 k-3 k-4]" {
		t.Errorf("read %v", entryIDs(entries))
	}
	for n, e := range entries {
		if e.Place != place("a.b", "k", int64(n)) || e.Row.Channel != "a.b" || e.Row.Slot != e.Slot {
			t.Errorf("entry %d is at %+v", n, e.Place)
		}
	}
	if got := read(t, l, 10, outbox.Place{Part: outbox.Part{Channel: "c.d", Slot: other.Slot}}); fmt.Sprint(entryIDs(got)) != "[k-9]" || got[0].Position != 0 {
		t.Errorf("the other channel: %v", entryIDs(got))
	}
	want := row("a.b", "k", 1)
	if got := entries[0].Row; string(got.Payload) != string(want.Payload) || fmt.Sprint(got.Headers) != fmt.Sprint(want.Headers) || got.Type != want.Type || got.AggregateID != "k" ||
		time.Since(got.CreatedAt).Abs() > time.Minute {
		t.Errorf("got %+v", got)
	}
	if some := read(t, l, 2, place("a.b", "k", 1)); fmt.Sprint(entryIDs(some)) != "[k-2 k-3]" {
		t.Errorf("from 1, two: %v", entryIDs(some))
	}
	if none := read(t, l, 2, place("a.b", "k", 4)); len(none) != 0 {
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
	if got := read(t, l, 10, place("a.b", "k", 0)); fmt.Sprint(entryIDs(got)) != "[k-2 k-1]" {
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
	s := d.Open(t)
	l := log(s)
	// A connection that was cancelled holds its locks until the server notices, and what is locked is left out.
	eventually(t, "every row has a position", func() bool { number(t, l); return len(pending(t, s, everySlot(), 1)) == 0 })
	last := make(map[string]int)
	next := make(map[int]int64)
	total := 0
	for _, e := range read(t, l, 10_000, begin(t, l, "all", driver.StartAt{Mode: driver.StartBeginning}, "a.b")...) {
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
	first := begin(t, l, "x.first", driver.StartAt{Mode: driver.StartBeginning}, "a.b")
	now := begin(t, l, "x.now", driver.StartAt{Mode: driver.StartNow}, "a.b")
	begin(t, l, "x.time", driver.StartAt{Mode: driver.StartTime, Time: since}, "a.b")
	add(t, s, row("a.b", "k", 3))
	number(t, l)
	if got := read(t, l, 10, first...); fmt.Sprint(entryIDs(got)) != "[k-1 k-2 k-3]" {
		t.Errorf("from the beginning: %v", entryIDs(got))
	}
	if got := read(t, l, 10, now...); fmt.Sprint(entryIDs(got)) != "[k-3]" {
		t.Errorf("from now: %v", entryIDs(got))
	}
	progress, err := l.Progress(t.Context(), "x.time", []outbox.Part{{Channel: "a.b"}})
	if err != nil || len(progress) != 1 || !progress[0].Since.Equal(since.Truncate(time.Microsecond)) {
		t.Errorf("from a time: %+v %v", progress, err)
	}
	if begun, err := l.Begin(t.Context(), "x.now", []string{"a.b"}, driver.StartAt{Mode: driver.StartBeginning}); len(begun) > 0 || err != nil {
		t.Errorf("begun again: %v %v", begun, err)
	}
	if again := begin(t, l, "x.now", driver.StartAt{Mode: driver.StartBeginning}, "a.b"); fmt.Sprint(again) != fmt.Sprint(now) {
		t.Errorf("it has moved to %v", again)
	}
}

func progressByOwner[TX any](t *testing.T, d Database[TX], log func(SQL[TX]) outbox.Log) {
	one, two := log(d.Open(t)), log(d.Open(t))
	begin(t, one, "x.y", driver.StartAt{Mode: driver.StartBeginning}, "a.b", "c.d")
	take := func(l outbox.Log, holder string, ttl time.Duration, slots ...int) []driver.Lease {
		t.Helper()
		var names []string
		for _, slot := range slots {
			names = append(names, outbox.Part{Channel: "a.b", Slot: slot}.Name())
		}
		got, err := l.Acquire(t.Context(), "g", holder, names, len(names), ttl)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	at := func(slot int, position int64) outbox.Progress {
		return outbox.Progress{Place: outbox.Place{Part: outbox.Part{Channel: "a.b", Slot: slot}, Position: position}, Finished: fmt.Sprint("beyond ", position)}
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
	got, err := two.Progress(t.Context(), "x.y", []outbox.Part{{Channel: "a.b", Slot: 3}, {Channel: "a.b", Slot: 4}, {Channel: "unknown", Slot: 3}})
	if err != nil || len(got) != 2 || got[0] != at(3, 9) || got[1] != at(4, 10) {
		t.Errorf("progress %+v: %v", got, err)
	}
	for _, p := range places(t, two, "x.y", "c.d") { // a position is its channel's alone
		if p.Position != 0 {
			t.Errorf("of the other channel %+v", p)
		}
	}
}

func trimmed[TX any](t *testing.T, d Database[TX], log func(SQL[TX]) outbox.Log) {
	s := d.Open(t)
	l := log(s)
	for n := range 6 {
		add(t, s, row("a.b", "k", n))
	}
	number(t, l)
	begin(t, l, "x.y", driver.StartAt{Mode: driver.StartBeginning}, "a.b")
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
	passes(t, l, "x.y", place("a.b", "k", 4))
	if n := trim(time.Hour, 10); n != 0 {
		t.Errorf("%d entries were deleted that are to be kept", n)
	}
	if a, b := trim(-time.Hour, 3), trim(-time.Hour, 3); a != 3 || b != 1 {
		t.Errorf("%d and %d were deleted, want 3 and 1", a, b)
	}
	if got := begin(t, l, "x.new", driver.StartAt{Mode: driver.StartBeginning}, "a.b"); got[outbox.SlotOf("a.b", "k")].Position != 4 {
		t.Errorf("a new subscription begins at %v", got[outbox.SlotOf("a.b", "k")])
	}
	if got := read(t, l, 10, place("a.b", "k", 4)); fmt.Sprint(entryIDs(got)) != "[k-4 k-5]" {
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
	if err := s.Transact(t.Context(), func(ctx context.Context, tx TX) error {
		return d.Exec(ctx, tx, "DELETE FROM tidings_log WHERE position BETWEEN 1 AND 7")
	}); err != nil {
		t.Fatal(err)
	}
	got, more, err := l.Read(t.Context(), []outbox.Place{place("a.b", "k", 0)}, 3, 10)
	if err != nil || len(got) == 0 || got[0].Row.ID != "k-0" || more != (len(got) == 1) {
		t.Errorf("before the gap: %v, more: %v, %v", entryIDs(got), more, err)
	}
	if got := read(t, l, 3, place("a.b", "k", 1)); fmt.Sprint(entryIDs(got)) != "[k-8]" {
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
	if got := read(t, l, 10, place("a.b", "k", 0)); fmt.Sprint(entryIDs(got)) != "[k-1 k-2 k-3 k-4 k-5 k-6]" {
		t.Errorf("read %v", entryIDs(got))
	}
}

// passes stores that a subscription has come to places, as the owner of their parts.
func passes(t *testing.T, l outbox.Log, subscription string, places ...outbox.Place) {
	t.Helper()
	var names []string
	progress := make([]outbox.Progress, len(places))
	for n, p := range places {
		names, progress[n].Place = append(names, p.Name()), p
	}
	group := "subscription:" + subscription
	leases, err := l.Acquire(t.Context(), group, "one", names, len(names), time.Minute)
	if err != nil || len(leases) != len(places) {
		t.Fatalf("Acquire: %v %v", leases, err)
	}
	slices.SortFunc(progress, func(a, b outbox.Progress) int { return strings.Compare(a.Name(), b.Name()) })
	slices.SortFunc(leases, func(a, b driver.Lease) int { return strings.Compare(a.Name, b.Name) })
	if refused, err := l.Commit(t.Context(), group, "one", subscription, leases, progress); err != nil || len(refused) > 0 {
		t.Fatalf("Commit: %v %v", refused, err)
	}
	if err := l.Release(t.Context(), group, "one", names); err != nil {
		t.Fatal(err)
	}
}

// A channel that is new to a subscription begins where the subscription says, not
// where others are, and those stay where they are.
func newChannel[TX any](t *testing.T, d Database[TX], log func(SQL[TX]) outbox.Log) {
	s := d.Open(t)
	l := log(s)
	for n := range 4 {
		add(t, s, row("a.b", "k", n), row("c.d", "k", n), row("e.f", "k", n), row("g.h", "k", n))
	}
	number(t, l)
	begin(t, l, "x.y", driver.StartAt{Mode: driver.StartBeginning}, "a.b")
	passes(t, l, "x.y", place("a.b", "k", 3))
	add(t, s, row("e.f", "k", 4)) // committed, without a position yet
	since := time.Now().Add(time.Hour).Truncate(time.Microsecond)
	for channel, start := range map[string]driver.StartAt{
		"c.d": {Mode: driver.StartBeginning}, "e.f": {Mode: driver.StartNow}, "g.h": {Mode: driver.StartTime, Time: since},
	} {
		begun, err := l.Begin(t.Context(), "x.y", []string{"a.b", channel}, start)
		if err != nil || fmt.Sprint(begun) != "["+channel+"]" {
			t.Errorf("%s: begun %v: %v", channel, begun, err)
		}
	}
	add(t, s, row("e.f", "k", 5))
	number(t, l)
	for channel, want := range map[string]string{"a.b": "[k-3]", "c.d": "[k-0 k-1 k-2 k-3]", "e.f": "[k-5]", "g.h": "[k-0 k-1 k-2 k-3]"} {
		if got := entryIDs(read(t, l, 10, places(t, l, "x.y", channel)...)); fmt.Sprint(got) != want {
			t.Errorf("%s is read from %v on, want %s", channel, got, want)
		}
		progress, err := l.Progress(t.Context(), "x.y", []outbox.Part{{Channel: channel, Slot: 7}})
		if err != nil || len(progress) != 1 || progress[0].Since.IsZero() != (channel != "g.h") {
			t.Errorf("%s: since %+v: %v", channel, progress, err)
		}
	}
	// Nobody has ever written to it, and what comes is for the subscription.
	begin(t, l, "x.y", driver.StartAt{Mode: driver.StartNow}, "i.j")
	add(t, s, row("i.j", "k", 1))
	number(t, l)
	if got := entryIDs(read(t, l, 10, places(t, l, "x.y", "i.j")...)); fmt.Sprint(got) != "[k-1]" {
		t.Errorf("of a channel without events %v", got)
	}
}

// A channel that no release of a subscription has at the moment keeps its entries:
// the next one may have it again.
func goneChannel[TX any](t *testing.T, d Database[TX], log func(SQL[TX]) outbox.Log) {
	s := d.Open(t)
	l := log(s)
	begin(t, l, "x.y", driver.StartAt{Mode: driver.StartBeginning}, "a.b", "c.d")
	begin(t, l, "x.other", driver.StartAt{Mode: driver.StartBeginning}, "a.b")
	for n := range 5 {
		add(t, s, row("a.b", "k", n), row("c.d", "k", n), row("e.f", "k", n))
	}
	number(t, l)
	for _, subscription := range []string{"x.y", "x.other"} {
		passes(t, l, subscription, place("a.b", "k", 5))
	}
	passes(t, l, "x.y", place("c.d", "k", 2))
	for n := 1; n > 0; {
		var err error
		if n, err = l.Trim(t.Context(), -time.Hour, 10); err != nil {
			t.Fatal(err)
		}
	}
	for channel, want := range map[string]string{"a.b": "[]", "c.d": "[k-2 k-3 k-4]", "e.f": "[]"} { // e.f is nobody's
		if got := entryIDs(read(t, l, 10, place(channel, "k", 0))); fmt.Sprint(got) != want {
			t.Errorf("of %s %v are left, want %s", channel, got, want)
		}
	}
	// A number of parts above the limit is trimmed all the same, a little at a time.
	for n := range 40 {
		add(t, s, row("g.h", fmt.Sprint("k", n), 0))
	}
	number(t, l)
	for left := 40; left > 0; {
		n, err := l.Trim(t.Context(), -time.Hour, 3)
		if err != nil || n == 0 {
			t.Fatalf("%d are left, of which %d were deleted: %v", left, n, err)
		}
		left -= n
	}
}

// A read is bounded however many parts have entries, and says that there are more.
func aboutALimit[TX any](t *testing.T, d Database[TX], log func(SQL[TX]) outbox.Log) {
	s := d.Open(t)
	l := log(s)
	var rows []outbox.Row
	for k := range 40 {
		for n := range 10 {
			rows = append(rows, row("a.b", fmt.Sprint("k", k), n))
		}
	}
	add(t, s, rows...)
	number(t, l)
	from := make(map[outbox.Part]int64)
	for _, p := range begin(t, l, "x.y", driver.StartAt{Mode: driver.StartBeginning}, "a.b", "c.d") {
		from[p.Part] = p.Position
	}
	total := 0
	for more := true; more; {
		var places []outbox.Place
		for part, position := range from {
			places = append(places, outbox.Place{Part: part, Position: position})
		}
		var entries []outbox.Entry
		var err error
		if entries, more, err = l.Read(t.Context(), places, 10, 80); err != nil {
			t.Fatal(err)
		}
		if len(entries) > 80+outbox.Slots {
			t.Errorf("%d were read at once", len(entries))
		}
		for _, e := range entries {
			if e.Position != from[e.Part] {
				t.Fatalf("%s goes from %d to %d", e.Name(), from[e.Part], e.Position)
			}
			from[e.Part]++
		}
		total += len(entries)
	}
	if total != len(rows) {
		t.Errorf("%d of %d were read", total, len(rows))
	}
}
