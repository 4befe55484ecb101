package driver

import (
	"cmp"
	"fmt"
	"slices"
)

// TopologyFormat is the number of the form in which a [Topology] is written as
// JSON.
const TopologyFormat = 1

// Topology is what an application declares: the channels that its modules publish
// to, and its subscriptions. Provisioning makes what it needs, inspection compares
// it with what there is. Its JSON is stable within a format.
type Topology struct {
	Format int `json:"format"`
	// Source is the name of the service, or "".
	Source string `json:"source,omitempty"`
	// Channels and Subscriptions are sorted by name.
	Channels      []TopologyChannel      `json:"channels"`
	Subscriptions []TopologySubscription `json:"subscriptions"`
}

// TopologyChannel is a channel that the application publishes to or reads.
type TopologyChannel struct {
	Name string `json:"name"`
	// Types are the event types on it that the application knows, sorted.
	Types []string `json:"types"`
	// Published says that the application publishes to it.
	Published bool `json:"published"`
}

// TopologySubscription is a subscription of the application.
type TopologySubscription struct {
	// Name is module and subscription name, "billing.create-default-profile".
	Name string `json:"name"`
	// FormerNames are names that it had before, whole ones too.
	FormerNames []string `json:"formerNames,omitempty"`
	// Channels are what it reads, Types the event types that it handles, Ignored those
	// that it leaves out for good; sorted.
	Channels []string `json:"channels"`
	Types    []string `json:"types"`
	Ignored  []string `json:"ignored,omitempty"`
}

// Subscription returns the subscription of that name; false when there is none.
func (t *Topology) Subscription(name string) (TopologySubscription, bool) {
	for _, s := range t.Subscriptions {
		if s.Name == name {
			return s, true
		}
	}
	return TopologySubscription{}, false
}

// Owned reports whether a stored name is that of a subscription, or a former one.
func (t *Topology) Owned(name string) bool {
	return slices.ContainsFunc(t.Subscriptions, func(s TopologySubscription) bool { return s.Name == name || slices.Contains(s.FormerNames, name) })
}

// Merge adds what another part of the system declares: several services share a
// broker. Both stay sorted.
func (t *Topology) Merge(other Topology) {
	t.Format = TopologyFormat
	for _, channel := range other.Channels {
		n := slices.IndexFunc(t.Channels, func(c TopologyChannel) bool { return c.Name == channel.Name })
		if n < 0 {
			t.Channels = append(t.Channels, channel)
			continue
		}
		known := &t.Channels[n]
		known.Published = known.Published || channel.Published
		known.Types = slices.Compact(slices.Sorted(slices.Values(slices.Concat(known.Types, channel.Types))))
	}
	for _, s := range other.Subscriptions {
		if _, known := t.Subscription(s.Name); !known {
			t.Subscriptions = append(t.Subscriptions, s)
		}
	}
	slices.SortFunc(t.Channels, func(a, b TopologyChannel) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(t.Subscriptions, func(a, b TopologySubscription) int { return cmp.Compare(a.Name, b.Name) })
}

// Check returns an error for a topology of another format or without names.
func (t *Topology) Check() error {
	if t.Format != TopologyFormat {
		return fmt.Errorf("tidings: topology: its format is %d, and this library knows %d", t.Format, TopologyFormat)
	}
	for _, channel := range t.Channels {
		if channel.Name == "" {
			return fmt.Errorf("tidings: topology: a channel has no name")
		}
	}
	for _, s := range t.Subscriptions {
		if s.Name == "" || len(s.Channels) == 0 {
			return fmt.Errorf("tidings: topology: subscription %q has no name or no channel", s.Name)
		}
	}
	return nil
}
