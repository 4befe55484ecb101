package tidings

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/tidings-go/tidings/driver"
)

// Topology is what an application declares, as [Bus.Describe] tells it: channels
// and subscriptions. Its JSON is what `tidings provision` and `tidings doctor`
// read.
type Topology = driver.Topology

// AnyContract is a [Contract] of any payload.
type AnyContract interface {
	Type() string
	Version() int
	Channel() string
	declared() *definition
}

func (c Contract[P]) declared() *definition { return c.definition }

// Publishes says which contracts the module publishes, for [Bus.Describe]: what a
// bus cannot know before the first event. It allows and forbids nothing. A
// contract of another module is an error, also of [Bus.Run]. After Run it is
// [ErrRunning], after [Bus.Close] [ErrClosed].
func (m *Module) Publishes(contracts ...AnyContract) error {
	place := callerPlace(2)
	b := m.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.phase != phaseDeclaring {
		return fmt.Errorf("tidings: %s: Publishes at %s after %s: %w", m.name, place, b.begun, b.late)
	}
	var errs []error
	for n, c := range contracts {
		if c == nil || c.declared() == nil {
			errs = append(errs, fmt.Errorf("module %s at %s: contract %d is none: use tidings.Define", m.name, place, n+1))
			continue
		}
		d := c.declared()
		err := b.check(m, d)
		if err == nil {
			err = b.meet(d)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("module %s at %s: %w", m.name, place, err))
			continue
		}
		if b.published == nil {
			b.published = make(map[string]bool)
		}
		b.published[d.channel] = true
	}
	b.complaints = append(b.complaints, errs...)
	if len(errs) > 0 {
		return &ConfigurationError{Complaints: errs}
	}
	return nil
}

// typesThat are the event types with a reaction that says Ignored, or the others.
func (s *subscription) typesThat(ignored bool) (types []string) {
	for _, eventType := range s.types {
		if s.reactions[eventType].ignored == ignored {
			types = append(types, eventType)
		}
	}
	return types
}

// Describe returns the topology of what was declared so far. It may be called at
// any time, before Run too, and asks nobody. An application that prints it as
// JSON lets the command line make and check what it needs:
//
//	if *describe {
//		json.NewEncoder(os.Stdout).Encode(bus.Describe())
//		return
//	}
func (b *Bus) Describe() Topology {
	b.mu.Lock()
	defer b.mu.Unlock()
	topology := Topology{Format: driver.TopologyFormat, Source: b.options.Source, Channels: []driver.TopologyChannel{}, Subscriptions: []driver.TopologySubscription{}}
	types := make(map[string][]string)
	for _, d := range b.contracts {
		types[d.channel] = append(types[d.channel], d.eventType)
	}
	published := b.published
	if b.options.AnnounceFailures {
		d := HandlerFailed.declared()
		types[d.channel] = append(types[d.channel], d.eventType)
		published = map[string]bool{d.channel: true}
		for channel := range b.published {
			published[channel] = true
		}
	}
	for channel, all := range types {
		slices.Sort(all)
		topology.Channels = append(topology.Channels, driver.TopologyChannel{Name: channel, Types: slices.Compact(all), Published: published[channel]})
	}
	for _, s := range b.subscriptions {
		topology.Subscriptions = append(topology.Subscriptions, driver.TopologySubscription{
			Name: s.name, FormerNames: slices.Clone(s.former), Channels: slices.Clone(s.channels), Types: s.typesThat(false), Ignored: s.typesThat(true),
		})
	}
	slices.SortFunc(topology.Channels, func(a, b driver.TopologyChannel) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(topology.Subscriptions, func(a, b driver.TopologySubscription) int { return cmp.Compare(a.Name, b.Name) })
	return topology
}
