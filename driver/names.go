package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ErrInUse says that instances are alive under a stored name.
var ErrInUse = errors.New("tidings: instances are alive under this name")

// Renamer is implemented by drivers and stores that keep something under the
// name of a subscription: a position, dedup keys, parked events, dead letters,
// epochs. Renaming a subscription would orphan it.
type Renamer interface {
	// Rename gives a subscription what is kept under a former name of its, as far
	// as it has nothing of the kind itself, and returns how many things that were:
	// 0 when there was nothing (any more). It may be repeated, after a crash in its
	// middle too, and called by several instances at once.
	//
	// While instances are alive under the former name it is ErrInUse, and nothing
	// is done: they would go on from the same position.
	Rename(ctx context.Context, former string, subscription Subscription) (moved int64, err error)
}

// StoredSubscription is what a driver or store keeps under one name.
type StoredSubscription struct {
	Name string `json:"name"`
	// Instances is how many are alive, -1 where that is not known here.
	Instances int `json:"instances"`
	// LastSeen is when an instance was last heard of, or zero.
	LastSeen time.Time `json:"lastSeen,omitzero"`
	// Lag is how many events are not finished, -1 where that is not known here.
	Lag int64 `json:"lag"`
	// Position says where it is, for people; "" where there is none here.
	Position string `json:"position,omitempty"`
	// Parked events, dead letters that are open, and dedup keys; -1 where the
	// store was not asked to count.
	Parked      int64 `json:"parked"`
	DeadLetters int64 `json:"deadLetters"`
	Keys        int64 `json:"dedupKeys"`
}

// StoredOptions says which stored names are wanted.
type StoredOptions struct {
	// Prefix is what their names begin with, "" for all.
	Prefix string
	// Channels are where to look, where a driver has to look for them; nil means
	// everywhere, which may cost a scan of all names that the broker has.
	Channels []string
	// Count asks for the numbers of parked events, dead letters and keys, which
	// may cost a scan of them.
	Count bool
}

// Keeper is implemented by drivers and stores that can say under which names they
// keep something. All methods may be called at once.
type Keeper interface {
	// StoredSubscriptions returns what is kept, by name.
	StoredSubscriptions(ctx context.Context, options StoredOptions) ([]StoredSubscription, error)

	// DeleteSubscription deletes everything that is kept under a name: position,
	// leases, dedup keys, epochs, parked events, dead letters. What it had not
	// handled is not handled any more. While instances are alive under the name it
	// is ErrInUse, and nothing is deleted. Of a name that is not stored it returns
	// nothing. It returns what it deleted, a line each.
	DeleteSubscription(ctx context.Context, name string) (deleted []string, err error)
}

// InspectStored returns findings about stored names, for whoever implements
// [Inspector]: one that lags, one that nobody runs and that lags, one that is not
// declared. A topology without subscriptions declares nothing, so that nothing is
// undeclared; otherwise only names of its modules are judged, since others may
// share the broker.
func InspectStored(stored []StoredSubscription, topology Topology, options InspectOptions) (findings []Finding) {
	most := options.MaxLag
	if most == 0 {
		most = DefaultMaxLag
	}
	for _, s := range stored {
		subject := "subscription " + s.Name
		if !topology.Owned(s.Name) && topology.hasModule(s.Name) {
			if f, orphaned := orphan(s); orphaned {
				findings = append(findings, f)
			}
			continue
		}
		switch {
		case s.Lag > 0 && s.Instances == 0:
			findings = append(findings, Finding{
				Broken, "subscription-lag", subject, fmt.Sprintf("it is %d events behind, and no instance runs it", s.Lag),
				"nobody handles them, and a broker with a retention deletes them unread",
				"start the application; or, if the name is not used any more, `tidings subscription delete " + s.Name + "`",
			})
		case s.Lag > most:
			findings = append(findings, Finding{
				Weak, "subscription-lag", subject, fmt.Sprintf("it is %d events behind, more than %d", s.Lag, most),
				"its handlers are slower than events come, or held up",
				"look at its failures and parked lanes; raise Concurrency, or run more instances",
			})
		}
	}
	return findings
}

// orphan is what is found about a name that no subscription has. One that is
// alive belongs to an instance with other code.
func orphan(s StoredSubscription) (Finding, bool) {
	return Finding{
		Weak, "subscription-unowned", "subscription " + s.Name, "something is stored under this name, and no subscription has it",
		"its position, dedup keys, parked events and dead letters serve nobody, and may keep the broker from deleting events",
		"if it was renamed, say it in FormerNames of the new one; else `tidings subscription delete " + s.Name + "`",
	}, s.Instances <= 0
}

// Orphans returns the findings of [InspectStored] about names that nobody owns.
func Orphans(stored []StoredSubscription, topology Topology) (findings []Finding) {
	for _, s := range stored {
		if f, orphaned := orphan(s); orphaned && !topology.Owned(s.Name) && topology.hasModule(s.Name) {
			findings = append(findings, f)
		}
	}
	return findings
}

// hasModule reports whether the module of a name has any subscription here.
func (t *Topology) hasModule(name string) bool {
	module, _, _ := strings.Cut(name, ".")
	return slices.ContainsFunc(t.Subscriptions, func(s TopologySubscription) bool { return strings.HasPrefix(s.Name, module+".") })
}

// MergeStored joins what several keepers say of the same names, in the order of
// names: a number that one does not know is the other's, and counts are added.
func MergeStored(all ...[]StoredSubscription) (merged []StoredSubscription) {
	for _, stored := range all {
		for _, s := range stored {
			n := slices.IndexFunc(merged, func(m StoredSubscription) bool { return m.Name == s.Name })
			if n < 0 {
				merged = append(merged, s)
				continue
			}
			m := &merged[n]
			m.Instances, m.Lag = max(m.Instances, s.Instances), max(m.Lag, s.Lag)
			m.Parked, m.DeadLetters, m.Keys = sum(m.Parked, s.Parked), sum(m.DeadLetters, s.DeadLetters), sum(m.Keys, s.Keys)
			if s.LastSeen.After(m.LastSeen) {
				m.LastSeen = s.LastSeen
			}
			if m.Position == "" {
				m.Position = s.Position
			}
		}
	}
	slices.SortFunc(merged, func(a, b StoredSubscription) int { return strings.Compare(a.Name, b.Name) })
	return merged
}

// sum adds numbers of which each may be unknown.
func sum(a, b int64) int64 {
	if a < 0 || b < 0 {
		return max(a, b)
	}
	return a + b
}
