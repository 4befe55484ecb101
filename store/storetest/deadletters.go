package storetest

import (
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
)

func letter(subscription string, n int) driver.DeadLetter {
	return driver.DeadLetter{
		Subscription: subscription, Channel: "a.b.c", Type: "a.b.c", ID: fmt.Sprintf("id-%03d", n), AggregateID: fmt.Sprint("k", n%3),
		Reason: "exhausted", Err: fmt.Sprintf("call %d: timed out", n), Stack: "stack", Attempts: n,
		FailedAt: time.Date(2026, 1, 2, 3, 4, n, 5_000_000, time.UTC), Position: fmt.Sprint("topic/0/", n),
		Headers: driver.Headers{{Name: "eventType", Value: "a.b.c"}, {Name: "custom", Value: "\u00e9"}}, Body: []byte{'{', 0, 0xff, '}'},
	}
}

// DeadLetters holds a store to [driver.DeadLetterStore]. Two calls of open within
// one test give two values over the same state.
func DeadLetters(t *testing.T, open func(t *testing.T) driver.DeadLetterStore) {
	t.Helper()
	for name, test := range map[string]func(t *testing.T, one, two driver.DeadLetterStore){
		"kept whole":    keptWhole,
		"listed":        listed,
		"marked":        marked,
		"taken by one":  takenByOne,
		"dead again":    deadAgain,
		"a lease ends":  aLeaseEnds,
		"what is wrong": whatIsWrong,
		"collected":     collected,
		"grouped":       grouped,
		"owned":         owned,
		"leased":        leased,
		"history":       history,
		"pruned":        pruned,
		"changed since": changedSince,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t), open(t)) })
	}
}

func put(t *testing.T, s driver.DeadLetterStore, letters ...driver.DeadLetter) {
	t.Helper()
	for _, l := range letters {
		if err := s.PutDeadLetter(t.Context(), l); err != nil {
			t.Fatalf("PutDeadLetter: %v", err)
		}
	}
}

func get(t *testing.T, s driver.DeadLetterStore, subscription, key string) driver.StoredDeadLetter {
	t.Helper()
	l, err := s.GetDeadLetter(t.Context(), subscription, key)
	if err != nil {
		t.Fatalf("GetDeadLetter: %v", err)
	}
	return l
}

func mark(t *testing.T, s driver.DeadLetterStore, state driver.DeadLetterState, note string, keys ...string) int {
	t.Helper()
	marks := make([]driver.DeadLetterMark, len(keys))
	for n, key := range keys {
		marks[n].Key = key
	}
	marked, err := s.MarkDeadLetters(t.Context(), "x.y", marks, state, note)
	if err != nil {
		t.Fatalf("MarkDeadLetters: %v", err)
	}
	return len(marked)
}

func take(t *testing.T, s driver.DeadLetterStore, limit int, lease time.Duration) (ids []string) {
	t.Helper()
	taken, err := s.TakeDeadLetters(t.Context(), "x.y", nil, limit, lease)
	if err != nil {
		t.Fatalf("TakeDeadLetters: %v", err)
	}
	for _, l := range taken {
		if len(l.Body) == 0 {
			t.Errorf("%s was given without its body", l.ID)
		}
		ids = append(ids, l.ID)
	}
	return ids
}

func keptWhole(t *testing.T, one, two driver.DeadLetterStore) {
	want := letter("x.y", 7)
	put(t, one, want)
	got := get(t, two, "x.y", want.Key())
	if !reflect.DeepEqual(got.DeadLetter, want) {
		t.Errorf("got  %+v\nwant %+v", got.DeadLetter, want)
	}
	if got.State != driver.DeadLetterOpen || got.Times != 1 || got.Key != want.Key() || time.Since(got.ChangedAt).Abs() > time.Minute {
		t.Errorf("state %q, times %d, key %q, changed at %v", got.State, got.Times, got.Key, got.ChangedAt)
	}
	bare := driver.DeadLetter{Subscription: "x.y", Channel: "a.b.c", ID: "topic/0/1", Reason: "undecodable", FailedAt: want.FailedAt, Body: []byte("{")}
	put(t, one, bare)
	if got := get(t, one, "x.y", bare.Key()).DeadLetter; !reflect.DeepEqual(got, bare) {
		t.Errorf("got  %+v\nwant %+v", got, bare)
	}
}

func list(t *testing.T, s driver.DeadLetterStore, f driver.DeadLetterFilter, page int) (found []string) {
	t.Helper()
	after := ""
	for {
		letters, err := s.ListDeadLetters(t.Context(), f, after, page)
		if err != nil {
			t.Fatalf("ListDeadLetters: %v", err)
		}
		if len(letters) > page {
			t.Fatalf("%d letters on a page of %d", len(letters), page)
		}
		for _, l := range letters {
			found = append(found, l.Subscription+" "+l.ID)
			if len(l.Body) > 0 || l.Stack != "" {
				t.Errorf("%s is listed with body or stack", l.ID)
			}
			after = l.Cursor
		}
		if len(letters) == 0 {
			return found
		}
	}
}

func listed(t *testing.T, one, two driver.DeadLetterStore) {
	for n := range 25 {
		subscription := "x.y"
		if n%5 == 0 {
			subscription = "x.z"
		}
		l := letter(subscription, n)
		if n == 13 {
			l.Err, l.Type = "refused", "a.b.d"
		}
		put(t, one, l)
	}
	same := letter("x.y", 24) // fails at the same moment as another
	same.ID = "id-024-b"
	put(t, two, same)
	mark(t, one, driver.DeadLetterDiscarded, "", "a.b.c/id-001", "a.b.c/id-002")

	everything := list(t, two, driver.DeadLetterFilter{}, 4)
	if len(everything) != 26 || everything[25] != "x.z id-000" || everything[2] != "x.y id-023" {
		t.Errorf("everything: %v", everything)
	}
	seen := make(map[string]bool)
	for _, id := range everything {
		if seen[id] {
			t.Errorf("%s is listed twice", id)
		}
		seen[id] = true
	}
	at := func(n int) time.Time { return letter("", n).FailedAt }
	for name, test := range map[string]struct {
		filter driver.DeadLetterFilter
		want   string
	}{
		"a subscription": {driver.DeadLetterFilter{Subscription: "x.z"}, "[x.z id-020 x.z id-015 x.z id-010 x.z id-005 x.z id-000]"},
		"a type":         {driver.DeadLetterFilter{Type: "a.b.d"}, "[x.y id-013]"},
		"a state":        {driver.DeadLetterFilter{State: driver.DeadLetterDiscarded}, "[x.y id-002 x.y id-001]"},
		"a failure":      {driver.DeadLetterFilter{Fingerprint: driver.Fingerprint("refused")}, "[x.y id-013]"},
		"a time":         {driver.DeadLetterFilter{Subscription: "x.y", Since: at(7), Until: at(9)}, "[x.y id-008 x.y id-007]"},
		"nothing":        {driver.DeadLetterFilter{Subscription: "no.body"}, "[]"},
	} {
		if got := fmt.Sprint(list(t, one, test.filter, 2)); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
	if n := len(list(t, one, driver.DeadLetterFilter{Fingerprint: driver.Fingerprint("call 5: timed out")}, 10)); n != 25 {
		t.Errorf("%d letters failed the same way but for numbers, want 25", n)
	}
}

func marked(t *testing.T, one, two driver.DeadLetterStore) {
	put(t, one, letter("x.y", 1), letter("x.y", 2), letter("x.y", 3))
	if n := mark(t, one, driver.DeadLetterRetry, "fixed in 1.2", "a.b.c/id-001", "a.b.c/id-002", "a.b.c/none"); n != 2 {
		t.Errorf("%d were marked, want 2", n)
	}
	if got := get(t, two, "x.y", "a.b.c/id-001"); got.State != driver.DeadLetterRetry || got.Note != "fixed in 1.2" {
		t.Errorf("state %q, note %q", got.State, got.Note)
	}
	if n := mark(t, two, driver.DeadLetterDiscarded, "not needed", "a.b.c/id-002"); n != 1 {
		t.Errorf("one that nobody has taken was not discarded")
	}
	if got := take(t, two, 10, time.Minute); fmt.Sprint(got) != "[id-001]" {
		t.Errorf("taken %v", got)
	}
	if n := mark(t, one, driver.DeadLetterDiscarded, "", "a.b.c/id-001"); n != 0 {
		t.Error("one that is being retried was discarded")
	}
	for range 2 {
		if err := two.ResolveDeadLetter(t.Context(), "x.y", "a.b.c/id-001"); err != nil {
			t.Fatalf("ResolveDeadLetter: %v", err)
		}
	}
	for id, want := range map[string]driver.DeadLetterState{"001": driver.DeadLetterResolved, "002": driver.DeadLetterDiscarded, "003": driver.DeadLetterOpen} {
		if got := get(t, one, "x.y", "a.b.c/id-"+id).State; got != want {
			t.Errorf("%s is %q, want %q", id, got, want)
		}
	}
	if n := mark(t, one, driver.DeadLetterRetry, "", "a.b.c/id-001", "a.b.c/id-002"); n != 0 {
		t.Errorf("%d that were resolved or discarded were marked", n)
	}
	if got := take(t, one, 10, time.Minute); len(got) > 0 {
		t.Errorf("taken %v", got)
	}
}

func takenByOne(t *testing.T, one, two driver.DeadLetterStore) {
	const letters = 40
	var keys []string
	for n := range letters {
		put(t, one, letter("x.y", n))
		keys = append(keys, fmt.Sprintf("a.b.c/id-%03d", n))
	}
	if n := mark(t, one, driver.DeadLetterRetry, "", keys...); n != letters {
		t.Fatalf("%d were marked", n)
	}
	if got := take(t, one, 0, time.Minute); len(got) > 0 {
		t.Errorf("none was asked for, and %d given", len(got))
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	times := make(map[string]int)
	for n := range 4 {
		s := one
		if n%2 == 1 {
			s = two
		}
		all.Go(func() {
			for {
				taken, err := s.TakeDeadLetters(t.Context(), "x.y", nil, 3, time.Minute)
				if err != nil || len(taken) > 3 {
					t.Errorf("%d taken: %v", len(taken), err)
				}
				if len(taken) == 0 || err != nil {
					return
				}
				mu.Lock()
				for _, l := range taken {
					times[l.ID]++
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	for n := range letters {
		if id := fmt.Sprintf("id-%03d", n); times[id] != 1 {
			t.Errorf("%s was taken %d times", id, times[id])
		}
	}
}

func deadAgain(t *testing.T, one, two driver.DeadLetterStore) {
	l := letter("x.y", 1)
	put(t, one, l, l) // put twice at a crash: one letter
	if got := get(t, one, "x.y", l.Key()); got.State != driver.DeadLetterOpen {
		t.Errorf("state %q", got.State)
	}
	if n := len(list(t, one, driver.DeadLetterFilter{}, 10)); n != 1 {
		t.Errorf("%d letters", n)
	}
	before := get(t, one, "x.y", l.Key()).Times
	mark(t, one, driver.DeadLetterRetry, "", l.Key())
	take(t, two, 1, time.Minute)
	l.Err, l.Attempts, l.FailedAt = "it fails still", 9, l.FailedAt.Add(time.Hour)
	put(t, two, l)
	if err := two.ResolveDeadLetter(t.Context(), "x.y", l.Key()); err != nil {
		t.Errorf("ResolveDeadLetter: %v", err)
	}
	got := get(t, one, "x.y", l.Key())
	if got.State != driver.DeadLetterOpen || got.Err != "it fails still" || got.Attempts != 9 || got.Times != before+1 || !got.FailedAt.Equal(l.FailedAt) {
		t.Errorf("got %+v", got)
	}
	if got := list(t, one, driver.DeadLetterFilter{Since: l.FailedAt}, 10); len(got) != 1 {
		t.Errorf("listed by its last failure: %v", got)
	}
	if got := take(t, one, 1, time.Minute); len(got) > 0 {
		t.Error("it was given to be retried without a new mark")
	}
}

func aLeaseEnds(t *testing.T, one, two driver.DeadLetterStore) {
	put(t, one, letter("x.y", 1))
	mark(t, one, driver.DeadLetterRetry, "", "a.b.c/id-001")
	if got := take(t, one, 1, time.Minute); len(got) != 1 {
		t.Fatalf("taken %v", got)
	}
	if got := take(t, two, 1, time.Minute); len(got) != 0 {
		t.Fatalf("another was given it too: %v", got)
	}
	if err := one.LeaseDeadLetters(t.Context(), "x.y", []string{"a.b.c/id-001"}, leaseTime()); err != nil {
		t.Fatalf("LeaseDeadLetters: %v", err)
	}
	eventually(t, "the lease of a crashed process ends", func() bool {
		taken, err := two.TakeDeadLetters(t.Context(), "x.y", nil, 1, time.Minute)
		if err != nil {
			t.Fatalf("TakeDeadLetters: %v", err)
		}
		if len(taken) == 1 && !taken[0].Interrupted {
			t.Error("nothing says that somebody had it before")
		}
		return len(taken) == 1
	})
}

func collected(t *testing.T, one, two driver.DeadLetterStore) {
	l := letter("x.y", 1)
	collect := func(s driver.DeadLetterStore, l driver.DeadLetter, want bool) {
		t.Helper()
		fresh, err := s.CollectDeadLetter(t.Context(), l)
		if err != nil || fresh != want {
			t.Errorf("CollectDeadLetter: %v, %v, want %v", fresh, err, want)
		}
	}
	collect(one, l, true)
	collect(two, l, false) // the topic or queue had it twice
	mark(t, one, driver.DeadLetterRetry, "", l.Key())
	take(t, one, 1, time.Minute)
	if err := one.ResolveDeadLetter(t.Context(), "x.y", l.Key()); err != nil {
		t.Fatal(err)
	}
	collect(one, l, false) // read again from the beginning
	if got := get(t, one, "x.y", l.Key()); got.State != driver.DeadLetterResolved || got.Times != 1 {
		t.Errorf("what was resolved is %q, times %d, when it is collected again", got.State, got.Times)
	}
	l.FailedAt = l.FailedAt.Add(time.Second)
	collect(two, l, true) // it failed again since
	if got := get(t, one, "x.y", l.Key()); got.State != driver.DeadLetterOpen || got.Times != 2 {
		t.Errorf("what failed again is %q, times %d", got.State, got.Times)
	}
}

func grouped(t *testing.T, one, two driver.DeadLetterStore) {
	for n := range 6 {
		put(t, one, letter("x.y", n))
	}
	odd := letter("x.y", 9)
	odd.Err = "refused"
	put(t, one, odd, letter("x.z", 1))
	groups, err := two.GroupDeadLetters(t.Context(), driver.DeadLetterFilter{}, 10)
	if err != nil || len(groups) != 3 {
		t.Fatalf("groups %+v, %v", groups, err)
	}
	g := groups[0]
	if g.Subscription != "x.y" || g.Type != "a.b.c" || g.Count != 6 || g.Fingerprint != driver.Fingerprint("call 0: timed out") ||
		!g.First.Equal(letter("", 0).FailedAt) || !g.Last.Equal(letter("", 5).FailedAt) || driver.Fingerprint(g.Err) != g.Fingerprint {
		t.Errorf("the largest group: %+v", g)
	}
	groups, err = one.GroupDeadLetters(t.Context(), driver.DeadLetterFilter{Subscription: "x.y"}, 1)
	if err != nil || len(groups) != 1 || groups[0].Count != 6 {
		t.Errorf("the largest of one subscription: %+v, %v", groups, err)
	}
}

func owned(t *testing.T, one, two driver.DeadLetterStore) {
	var keys []string
	for n := range 9 {
		l := letter("x.y", n)
		put(t, one, l)
		keys = append(keys, l.Key())
	}
	mark(t, one, driver.DeadLetterRetry, "", keys...)
	for aggregate, s := range map[string]driver.DeadLetterStore{"k0": one, "k1": two} {
		taken, err := s.TakeDeadLetters(t.Context(), "x.y", func(l *driver.StoredDeadLetter) bool {
			if l.Channel == "" || l.Position == "" || l.Key == "" {
				t.Errorf("owns is asked without channel, position or key: %+v", l)
			}
			return l.AggregateID == aggregate
		}, 2, time.Minute)
		if err != nil || len(taken) != 2 {
			t.Fatalf("taken %d, %v", len(taken), err)
		}
		for _, l := range taken {
			if l.AggregateID != aggregate {
				t.Errorf("%s was given, whose owner is another", l.Key)
			}
		}
	}
	if got := take(t, two, 9, time.Minute); len(got) != 5 {
		t.Errorf("%d are left, want those that nobody owned and the rest", len(got))
	}
}

func leased(t *testing.T, one, two driver.DeadLetterStore) {
	put(t, one, letter("x.y", 1), letter("x.y", 2))
	keys := []string{"a.b.c/id-001", "a.b.c/id-002"}
	marked := func() []string {
		found, err := one.MarkedDeadLetters(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if found := marked(); len(found) > 0 {
		t.Errorf("marked: %v", found)
	}
	mark(t, one, driver.DeadLetterRetry, "", keys...)
	take(t, one, 2, leaseTime())
	lease := func(keys []string, lease time.Duration) {
		t.Helper()
		if err := one.LeaseDeadLetters(t.Context(), "x.y", keys, lease); err != nil {
			t.Fatalf("LeaseDeadLetters: %v", err)
		}
	}
	lease(keys, time.Minute)
	started := time.Now()
	lease(keys[1:], 0)
	eventually(t, "what was given back is taken", func() bool { return fmt.Sprint(take(t, two, 2, time.Minute)) == "[id-002]" })
	eventually(t, "the first lease would have ended", func() bool { return time.Since(started) > leaseTime()*3/2 })
	if got := take(t, two, 2, time.Minute); len(got) > 0 {
		t.Errorf("what was prolonged was given to another: %v", got)
	}
	if found := marked(); fmt.Sprint(found) != "[x.y]" {
		t.Errorf("marked: %v", found)
	}
	lease([]string{"a.b.c/none"}, 0)
	put(t, one, letter("x.y", 3))
	lease([]string{"a.b.c/id-003"}, time.Minute) // open: left alone
	if n := mark(t, one, driver.DeadLetterDiscarded, "", "a.b.c/id-003"); n != 1 {
		t.Error("one that was never taken has a lease")
	}
}

func history(t *testing.T, one, two driver.DeadLetterStore) {
	l := letter("x.y", 1)
	put(t, one, l)
	mark(t, two, driver.DeadLetterRetry, "by ada: fixed in 1.2", l.Key())
	take(t, two, 1, time.Minute)
	if err := one.ResolveDeadLetter(t.Context(), "x.y", l.Key()); err != nil {
		t.Fatal(err)
	}
	changes, err := two.DeadLetterChanges(t.Context(), "x.y", l.Key())
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, c := range changes {
		told = append(told, string(c.State)+" "+c.Note)
		if time.Since(c.At).Abs() > time.Minute {
			t.Errorf("changed at %v", c.At)
		}
	}
	if got, want := fmt.Sprintf("%q", told), `["open exhausted: call 1: timed out" "retry by ada: fixed in 1.2" "resolved "]`; got != want {
		t.Errorf("history %s, want %s", got, want)
	}
	if changes, err := one.DeadLetterChanges(t.Context(), "x.y", "none"); err != nil || len(changes) > 0 {
		t.Errorf("history of nothing: %v, %v", changes, err)
	}
}

func pruned(t *testing.T, one, two driver.DeadLetterStore) {
	for n := range 5 {
		put(t, one, letter("x.y", n))
	}
	mark(t, one, driver.DeadLetterDiscarded, "", "a.b.c/id-001", "a.b.c/id-002", "a.b.c/id-003")
	prune := func(s driver.DeadLetterStore, before time.Time, limit int) int {
		t.Helper()
		n, err := s.PruneDeadLetters(t.Context(), driver.DeadLetterDiscarded, before, limit)
		if err != nil {
			t.Fatalf("PruneDeadLetters: %v", err)
		}
		return n
	}
	later := time.Now().Add(time.Hour)
	if n := prune(one, time.Now().Add(-time.Hour), 10); n != 0 {
		t.Errorf("%d were deleted that changed since", n)
	}
	if n := prune(one, later, 2); n != 2 {
		t.Errorf("%d were deleted, want 2", n)
	}
	if n := prune(two, later, 10); n != 1 {
		t.Errorf("%d were deleted, want the last", n)
	}
	if got := list(t, one, driver.DeadLetterFilter{}, 10); len(got) != 2 {
		t.Errorf("left: %v", got)
	}
	if changes, err := one.DeadLetterChanges(t.Context(), "x.y", "a.b.c/id-001"); err != nil || len(changes) > 0 {
		t.Errorf("its history is left: %v, %v", changes, err)
	}
	for _, state := range []driver.DeadLetterState{driver.DeadLetterOpen, driver.DeadLetterRetry, "", "odd"} {
		if _, err := one.PruneDeadLetters(t.Context(), state, later, 10); !errors.Is(err, driver.ErrPrune) {
			t.Errorf("pruned %q: %v", state, err)
		}
	}
}

func changedSince(t *testing.T, one, two driver.DeadLetterStore) {
	a, b := letter("x.y", 1), letter("x.y", 2)
	put(t, one, a, b)
	b.Err = "another failure"
	put(t, two, b) // after somebody has looked at it
	marked, err := one.MarkDeadLetters(t.Context(), "x.y", []driver.DeadLetterMark{{Key: a.Key(), Times: 1}, {Key: b.Key(), Times: 1}}, driver.DeadLetterDiscarded, "")
	if err != nil || fmt.Sprint(marked) != "["+a.Key()+"]" {
		t.Errorf("marked %v, %v", marked, err)
	}
	if got := get(t, one, "x.y", b.Key()); got.State != driver.DeadLetterOpen {
		t.Errorf("what failed again since is %q", got.State)
	}
}

func whatIsWrong(t *testing.T, one, _ driver.DeadLetterStore) {
	if _, err := one.GetDeadLetter(t.Context(), "x.y", "none"); !errors.Is(err, driver.ErrNoDeadLetter) {
		t.Errorf("GetDeadLetter: %v", err)
	}
	if err := one.ResolveDeadLetter(t.Context(), "x.y", "none"); !errors.Is(err, driver.ErrNoDeadLetter) {
		t.Errorf("ResolveDeadLetter: %v", err)
	}
	for _, state := range []driver.DeadLetterState{driver.DeadLetterOpen, driver.DeadLetterResolved, "odd"} {
		if _, err := one.MarkDeadLetters(t.Context(), "x.y", []driver.DeadLetterMark{{Key: "a"}}, state, ""); err == nil {
			t.Errorf("marked as %q", state)
		}
	}
	if _, err := one.ListDeadLetters(t.Context(), driver.DeadLetterFilter{}, "no cursor", 10); err == nil {
		t.Error("a cursor that no listing gave is accepted")
	}
}
