package tidings

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// description is what the driver is asked to fetch.
func (s *subscription) description() driver.Subscription {
	return driver.Subscription{
		Name: s.name, Channels: s.channels, Types: s.types, StartAt: s.options.StartAt,
		MaxEvents: s.options.MaxEvents, MaxBytes: s.options.MaxBytes, Unable: s.unable(),
	}
}

// dedupNow says how good the dedup of a subscription is that is not durable.
func (s *subscription) dedupNow(on bool) string {
	switch {
	case !on:
		return "is turned off"
	case s.options.EachInstance:
		return "is process-local, as each instance handles every event"
	}
	return "is process-local: it forgets at a restart"
}

// holder is something that keeps what is stored under the name of a subscription.
type holder struct {
	what  string
	value any
}

// holders are what keeps something of a subscription beyond the process, the
// driver first: it knows who is alive.
func (s *subscription) holders() (all []holder) {
	o := &s.bus.options
	add := func(what string, value any, durable bool) {
		if value == nil || !durable || slices.ContainsFunc(all, func(h holder) bool { return same(h.value, value) }) {
			return
		}
		all = append(all, holder{what, value})
	}
	add("driver "+s.bus.driver.Name(), s.bus.driver, s.bus.features.Durable)
	if o.Claims != nil && !o.WithoutDedup && !s.options.WithoutDedup && !s.options.EachInstance {
		add("claims", o.Claims, o.Claims.Durable())
	}
	if o.Lanes != nil {
		add("lanes", o.Lanes, o.Lanes.Durable())
	}
	if store, ok := o.DeadLetters.(driver.DeadLetterStore); ok {
		add("dead letters", store, store.Durable())
	}
	for _, eventType := range s.types {
		if fence := s.reactions[eventType].fence; fence != nil {
			add("inbox", fence.store, true)
		}
	}
	return all
}

// same compares what may not be comparable.
func same(a, b any) bool {
	return reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.TypeOf(a).Comparable() && a == b
}

// formerNameComplaints are about former names that cannot be taken over, or that
// two have.
func (b *Bus) formerNameComplaints() (errs []error) {
	taken := make(map[string]*subscription)
	for _, s := range b.subscriptions {
		taken[s.name] = s
	}
	for _, s := range b.subscriptions {
		for _, former := range s.former {
			if other := taken[former]; other != nil && other.name != s.name {
				errs = append(errs, s.complaint("its former name %s is a name of subscription %s at %s: a position can be taken over by one", former, other.name, other.place))
			}
			taken[former] = s
		}
		if len(s.former) == 0 {
			continue
		}
		for _, h := range s.holders() {
			if _, ok := h.value.(driver.Renamer); !ok {
				errs = append(errs, s.complaint("it says FormerNames, and what the %s (%T) keeps under %s cannot be renamed: move it by hand, or keep the name",
					h.what, h.value, strings.Join(s.former, ", ")))
			}
		}
	}
	return errs
}

// takeOver gives the subscription what is stored under its former names.
func (s *subscription) takeOver(ctx context.Context) error {
	for _, former := range s.former {
		for _, h := range s.holders() {
			renamer, ok := h.value.(driver.Renamer)
			if !ok {
				continue // there was a complaint
			}
			moved, err := renamer.Rename(ctx, former, s.description())
			if err != nil {
				return fmt.Errorf("tidings: subscription %s: taking over what its former name %s has in the %s; stop every instance that runs under the former name, then start again: %w", s.name, former, h.what, err)
			}
			if moved > 0 {
				s.bus.options.Logger.InfoContext(ctx, "tidings: taken over from a former name", "subscription", s.name, "formerName", former, "from", h.what, "count", moved)
			}
		}
	}
	return nil
}

// orphanTime bounds how long a start looks for names that nobody has.
const orphanTime = 5 * time.Second

// reportOrphans tells observers of names under which something is stored, of
// modules of this bus, and that no subscription has. What cannot be asked is no
// reason not to start.
func (b *Bus) reportOrphans(ctx context.Context) {
	topology := b.Describe()
	var modules []string
	var holders []holder
	for _, s := range b.subscriptions {
		if module, _, _ := strings.Cut(s.name, "."); !slices.Contains(modules, module) {
			modules = append(modules, module)
		}
		for _, h := range s.holders() {
			if !slices.ContainsFunc(holders, func(other holder) bool { return same(h.value, other.value) }) {
				holders = append(holders, h)
			}
		}
	}
	channels := make([]string, 0, len(topology.Channels))
	for _, channel := range topology.Channels {
		channels = append(channels, channel.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, orphanTime)
	defer cancel()
	var stored []driver.StoredSubscription
	for _, h := range holders {
		keeper, ok := h.value.(driver.Keeper)
		if !ok {
			continue
		}
		for _, module := range modules {
			found, err := keeper.StoredSubscriptions(ctx, driver.StoredOptions{Prefix: module + ".", Channels: channels})
			if err != nil {
				b.options.Logger.DebugContext(ctx, "tidings: stored names cannot be listed", "from", h.what, "error", err)
				break
			}
			stored = driver.MergeStored(stored, found)
		}
	}
	for _, finding := range driver.Orphans(stored, topology) {
		b.observers.observe(b.values, Observation{Kind: Reported, Report: driver.Report{Kind: driver.ReportWarning, Text: finding.String()}})
	}
}
