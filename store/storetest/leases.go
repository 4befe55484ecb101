package storetest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings/driver"
)

func leases(t *testing.T, l driver.Leases, holder string, limit int, ttl time.Duration, names ...string) []driver.Lease {
	t.Helper()
	got, err := l.Acquire(t.Context(), "group", holder, names, limit, ttl)
	if err != nil {
		t.Fatalf("Acquire: %v", err)
	}
	if len(got) > limit {
		t.Fatalf("%d leases, the limit is %d", len(got), limit)
	}
	return got
}

// joined are those alive when a member has joined, of "group" unless it is said.
func joined(t *testing.T, l driver.Leases, ttl time.Duration, m driver.Member, group ...string) []driver.Member {
	t.Helper()
	alive, err := l.Join(t.Context(), append(group, "group")[0], m, ttl)
	if err != nil {
		t.Fatalf("Join: %v", err)
	}
	return alive
}

// Leases holds a store to [driver.Leases]. Two calls of open within one test give
// two values over the same state.
func Leases(t *testing.T, open func(t *testing.T) driver.Leases) {
	t.Helper()
	for name, test := range map[string]func(t *testing.T, one, two driver.Leases){
		"given to one": func(t *testing.T, one, two driver.Leases) {
			first := leases(t, one, "a", 2, time.Minute, "0", "1", "2")
			second := leases(t, two, "b", 5, time.Minute, "0", "1", "2")
			if len(first) != 2 || len(second) != 1 || second[0].Name == first[0].Name || second[0].Name == first[1].Name {
				t.Fatalf("first %v, second %v", first, second)
			}
			if more := leases(t, one, "a", 5, time.Minute, "0", "1", "2"); len(more) != 0 {
				t.Errorf("taken again: %v", more)
			}
			if other, err := two.Acquire(t.Context(), "another group", "b", []string{"0"}, 1, time.Minute); err != nil || len(other) != 1 {
				t.Errorf("in another group: %v %v", other, err)
			}
		},
		"a new epoch each time": func(t *testing.T, one, two driver.Leases) {
			before := leases(t, one, "a", 1, time.Minute, "0")
			if err := two.Release(t.Context(), "group", "b", []string{"0"}); err != nil {
				t.Errorf("Release of what another has: %v", err)
			}
			if got := leases(t, two, "b", 1, time.Minute, "0"); len(got) != 0 {
				t.Fatalf("given although another has it: %v", got)
			}
			if err := one.Release(t.Context(), "group", "a", []string{"0"}); err != nil {
				t.Fatalf("Release: %v", err)
			}
			after := leases(t, two, "b", 1, time.Minute, "0")
			if len(after) != 1 || after[0].Epoch <= before[0].Epoch {
				t.Errorf("before %v, after %v", before, after)
			}
		},
		"renewed": func(t *testing.T, one, two driver.Leases) {
			got := leases(t, one, "a", 2, time.Minute, "0", "1")
			kept, err := one.Renew(t.Context(), "group", "a", time.Minute)
			if err != nil || fmt.Sprint(kept) != fmt.Sprint(got) {
				t.Errorf("renewed %v, had %v: %v", kept, got, err)
			}
			if kept, err := two.Renew(t.Context(), "group", "b", time.Minute); err != nil || len(kept) != 0 {
				t.Errorf("renewed %v of nothing: %v", kept, err)
			}
			if since := one.KeptSince(); !since.IsZero() {
				t.Errorf("without a transaction the leases are kept since %v", since)
			}
		},
		"over": func(t *testing.T, one, two driver.Leases) {
			before := leases(t, one, "a", 1, leaseTime(), "0")
			var after []driver.Lease
			eventually(t, "the lease ends", func() bool {
				after = leases(t, two, "b", 1, time.Minute, "0")
				return len(after) == 1
			})
			if after[0].Epoch <= before[0].Epoch {
				t.Errorf("before %v, after %v", before, after)
			}
			if kept, err := one.Renew(t.Context(), "group", "a", time.Minute); err != nil || len(kept) != 0 {
				t.Errorf("what another has by now was renewed: %v %v", kept, err)
			}
		},
		"members": func(t *testing.T, one, two driver.Leases) {
			join := func(l driver.Leases, holder string, ttl time.Duration, want int) {
				t.Helper()
				if alive := joined(t, l, ttl, driver.Member{Holder: holder, Parts: map[string]int{"slots": 2}}); len(alive) != want {
					t.Errorf("alive after %s joined: %v, want %d", holder, alive, want)
				}
			}
			join(one, "a", time.Minute, 1)
			join(one, "a", time.Minute, 1)
			join(two, "b", time.Minute, 2)
			held := leases(t, two, "b", 1, time.Minute, "0")
			if err := two.Leave(t.Context(), "group", "b"); err != nil {
				t.Fatalf("Leave: %v", err)
			}
			join(one, "a", time.Minute, 1)
			if got := leases(t, one, "a", 1, time.Minute, "0"); len(got) != 1 || got[0].Epoch <= held[0].Epoch {
				t.Errorf("after the other left: %v", got)
			}
			join(two, "c", leaseTime(), 2)
			eventually(t, "one that died is not alive", func() bool {
				return len(joined(t, one, time.Minute, driver.Member{Holder: "a"})) == 1
			})
		},
		"members say what they know": func(t *testing.T, one, two driver.Leases) {
			a := driver.Member{Holder: "a", Parts: map[string]int{"x.y": 8}}
			b := driver.Member{Holder: "b", Parts: map[string]int{"x.y": 8, "it's \"z\" {ü}": 1024}}
			all := func(l driver.Leases, m driver.Member, want ...driver.Member) {
				t.Helper()
				alive := joined(t, l, time.Minute, m)
				slices.SortFunc(alive, func(a, b driver.Member) int { return strings.Compare(a.Holder, b.Holder) })
				if fmt.Sprint(alive) != fmt.Sprint(want) {
					t.Errorf("alive: %v, want %v", alive, want)
				}
			}
			all(one, a, a)
			all(two, b, a, b)
			less := driver.Member{Holder: "b", Parts: map[string]int{"x.y": 8}}
			all(two, less, a, less) // the same holder, and it knows less
			all(one, b, a, b)       // and more
			all(two, driver.Member{Holder: "c"}, a, b, driver.Member{Holder: "c"})
			if other := joined(t, one, time.Minute, a, "another group"); len(other) != 1 {
				t.Errorf("alive in another group: %v", other)
			}
		},
		"many at once": func(t *testing.T, one, two driver.Leases) {
			names := make([]string, 32)
			for n := range names {
				names[n] = fmt.Sprint(n)
			}
			var all sync.WaitGroup
			var mu sync.Mutex
			var taken []string
			for n := range 8 {
				l := one
				if n%2 == 1 {
					l = two
				}
				all.Go(func() {
					for range 4 {
						got, err := l.Acquire(t.Context(), "group", fmt.Sprint("holder ", n), names, 3, time.Minute)
						if err != nil {
							t.Errorf("Acquire: %v", err)
							return
						}
						mu.Lock()
						for _, lease := range got {
							taken = append(taken, lease.Name)
						}
						mu.Unlock()
					}
				})
			}
			all.Wait()
			slices.Sort(taken)
			if count := len(taken); count > len(names) || len(slices.Compact(taken)) != count {
				t.Errorf("%d were taken of %d", count, len(names))
			}
			if rest := leases(t, one, "last", 32, time.Minute, names...); len(rest)+len(taken) < len(names) {
				t.Errorf("%d are left", len(rest))
			}
		},
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t), open(t)) })
	}
}
