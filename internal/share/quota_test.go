package share

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/tidings-go/tidings/driver"
)

// drawn are members that know kinds at random.
func drawn(t *rapid.T, all bool) (parts map[string]int, alive []driver.Member) {
	parts = make(map[string]int)
	for n := range rapid.IntRange(1, 6).Draw(t, "kinds") {
		parts[fmt.Sprint("kind ", n)] = rapid.IntRange(1, 40).Draw(t, "parts")
	}
	for n := range rapid.IntRange(1, 7).Draw(t, "members") {
		m := driver.Member{Holder: fmt.Sprint("holder ", n), Parts: make(map[string]int)}
		for _, kind := range slices.Sorted(maps.Keys(parts)) {
			if all || rapid.Bool().Draw(t, "knows") {
				m.Parts[kind] = parts[kind]
			}
		}
		alive = append(alive, m)
	}
	return parts, alive
}

// Whoever knows what: the parts of a kind that anybody knows are shared out to the
// last one, evenly among those that know it, and to nobody else.
func TestEveryPartHasAnOwnerThatKnowsIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts, alive := drawn(t, false)
		for kind, want := range parts {
			sum, least, most, known := 0, want, 0, false
			for _, m := range alive {
				n := quota(shuffled(t, alive), m.Holder)[kind]
				sum += n
				if m.Parts[kind] == 0 {
					if n != 0 {
						t.Fatalf("%s does not know %s and has %d of it", m.Holder, kind, n)
					}
					continue
				}
				known, least, most = true, min(least, n), max(most, n)
			}
			if known && (sum != want || most-least > 1) {
				t.Fatalf("%d of %d parts of %s are shared out, from %d to %d each", sum, want, kind, least, most)
			}
		}
	})
}

// Where all know all, no instance has two parts more than another, of all kinds
// together: two kinds of one part each do not both stay with the first instance.
func TestEvenWhereAllKnowAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, alive := drawn(t, true)
		var totals []int
		for _, m := range alive {
			total := 0
			for _, n := range quota(shuffled(t, alive), m.Holder) {
				total += n
			}
			totals = append(totals, total)
		}
		if slices.Max(totals)-slices.Min(totals) > 1 {
			t.Fatalf("they have %v", totals)
		}
	})
}

func shuffled(t *rapid.T, alive []driver.Member) []driver.Member {
	return rapid.Permutation(alive).Draw(t, "order")
}

// Instances of releases that know different kinds come and go as they like. When
// they let each other be, every part that one of them knows has one owner, and one
// that knows it.
func TestInstancesThatKnowDifferentKinds(t *testing.T) {
	kinds := map[string][]string{"a": nil, "b": nil, "c": nil, "one": {"one/0"}, "single": {"single/0"}}
	for _, kind := range []string{"a", "b", "c"} {
		for n := range 8 {
			kinds[kind] = append(kinds[kind], fmt.Sprint(kind, "/", n))
		}
	}
	order := slices.Sorted(maps.Keys(kinds))
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // the test has to repeat
			leases := newTable()
			type running struct {
				*instance
				kinds []string
				stop  func()
			}
			var all []running
			for step := range 12 {
				if len(all) > 0 && random.IntN(3) == 0 { // with a word, or without one
					at := random.IntN(len(all))
					all[at].stop()
					if random.IntN(2) == 0 {
						_ = all[at].Leave(context.Background())
					}
					all = slices.Delete(all, at, at+1)
				} else {
					knows := make(map[string][]string)
					for _, kind := range order {
						if random.IntN(3) > 0 {
							knows[kind] = kinds[kind]
						}
					}
					i, stop := start(leases, fmt.Sprint("seed ", seed, " step ", step), knows)
					all = append(all, running{i, slices.Sorted(maps.Keys(knows)), stop})
				}
				after(time.Duration(random.IntN(int(ttl)))) // while others still divide
			}
			after(5 * ttl)
			for _, kind := range order {
				owners, knowing := make(map[string]int), 0
				for _, i := range all {
					if slices.Contains(i.kinds, kind) {
						knowing++
					}
					for _, lease := range i.Owned() {
						if slices.Contains(kinds[kind], lease.Name) {
							owners[lease.Name]++
						}
					}
				}
				for _, name := range kinds[kind] {
					if owners[name] != min(knowing, 1) {
						t.Errorf("seed %d: %s has %d owners, and %d instances know it", seed, name, owners[name], knowing)
					}
				}
			}
			for _, i := range all {
				i.stop()
			}
		})
	}
}

// An instance of the same name that knows less than before is not counted for what
// it does not know any more.
func TestWhoKnowsLessLeavesTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leases := newTable()
		both := map[string][]string{"a": {"a/0", "a/1"}, "b": {"b/0", "b/1"}}
		first, stopFirst := start(leases, "first", both)
		defer stopFirst()
		_, stop := start(leases, "second", both)
		after(3 * ttl)
		stop()
		_ = leases.Leave(t.Context(), "group", "second")
		second, stopSecond := start(leases, "second", map[string][]string{"a": both["a"]})
		defer stopSecond()
		after(3 * ttl)
		of := func(i *instance) string { have := names(i.Owned()); slices.Sort(have); return fmt.Sprint(have) }
		if a, b := of(first), of(second); a != "[a/0 b/0 b/1]" && a != "[a/1 b/0 b/1]" || b != "[a/0]" && b != "[a/1]" {
			t.Errorf("the first has %s, the second %s", a, b)
		}
	})
}

// What was lost is released also when the instance is not to have it again: its
// lease may have been renewed with the others, and nobody else could take it.
func TestWhatWasLostAndNotMissedIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leases := newTable()
		first := run(t, leases, "first")
		after(2 * ttl)
		first.Lose(first.Owned()[:4], "the test says so")
		second := run(t, leases, "second")
		after(3 * ttl)
		if a, b := len(first.Owned()), len(second.Owned()); a != 4 || b != 4 {
			t.Errorf("the first has %d parts, the second %d, of 8", a, b)
		}
	})
}
