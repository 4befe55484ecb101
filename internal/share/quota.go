package share

import (
	"cmp"
	"maps"
	"slices"

	"github.com/tidings-go/tidings/driver"
)

// quota is how many parts of each kind a holder takes. Each kind is divided evenly
// among those alive that know it; what does not come out even goes to those that
// have least of all. Whoever is alive computes the same from the same list, and the
// quotas of a kind add up to its parts: when each has its quota, every part that
// somebody knows has an owner, and one that knows it.
func quota(alive []driver.Member, holder string) map[string]int {
	parts, knowing := make(map[string]int), make(map[string][]string)
	for _, m := range alive {
		for kind, n := range m.Parts {
			parts[kind] = max(parts[kind], n)
			knowing[kind] = append(knowing[kind], m.Holder)
		}
	}
	// Those with a choice fill up what those without one leave uneven.
	kinds := slices.SortedFunc(maps.Keys(parts), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(knowing[a]), len(knowing[b])), cmp.Compare(a, b))
	})
	mine, total := make(map[string]int), make(map[string]int)
	for _, kind := range kinds {
		holders := knowing[kind]
		slices.SortFunc(holders, func(a, b string) int { return cmp.Or(cmp.Compare(total[a], total[b]), cmp.Compare(a, b)) })
		for n, h := range holders {
			share := parts[kind] / len(holders)
			if n < parts[kind]%len(holders) {
				share++
			}
			total[h] += share
			if h == holder {
				mine[kind] = share
			}
		}
	}
	return mine
}
