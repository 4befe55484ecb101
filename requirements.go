package tidings

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/tidings-go/tidings/driver"
)

// requirements compares what subscriptions need with what the driver can do.
func (b *Bus) requirements() (errs []error) {
	if b.driver == nil {
		return nil
	}
	name, f := b.driver.Name(), b.features
	for _, s := range b.subscriptions {
		complain := func(format string, args ...any) {
			errs = append(errs, s.complaint(format, args...))
		}
		if s.options.RequireDurable && !f.Durable {
			complain("it says RequireDurable, and driver %s loses events with the process; use a durable driver (kafka, postgres, redis-streams, sqlite or sqs), or drop the requirement", name)
		}
		if s.options.RequireOrder && !f.Ordered {
			complain("it says RequireOrder, and driver %s keeps no order per aggregate; use in-memory, kafka, postgres, redis-streams, sqlite or sqs with FIFO queues, or drop the requirement", name)
		}
		if most := f.MaxDelay; s.options.RequireDelay > most {
			can := "gives nothing back to its broker for a time: what waits is in memory, and is tried again at once after a restart"
			if most > 0 {
				can = fmt.Sprintf("can give an event back for %v at most", most)
			}
			complain("it says RequireDelay %v, and driver %s %s; use sqs (up to 12 hours), wait for less, or drop the requirement", s.options.RequireDelay, name, can)
		}
		dedup := !s.options.WithoutDedup && !b.options.WithoutDedup
		durableClaims := b.options.Claims != nil && b.options.Claims.Durable() && !s.options.EachInstance
		if f.Broadcast && !s.options.EachInstance && (!durableClaims || !dedup) {
			complain("driver %s gives every event to every running instance: say SubscribeOptions.EachInstance if each is to handle it, or pass a claims store that the instances share in Options.Claims, so that one of them does", name)
		}
		if s.options.EachInstance && f.Groups {
			complain("it says EachInstance, and driver %s shares the events of a subscription among its instances: use driver redis, or drop EachInstance", name)
		}
		if s.options.RequireDedup && (!durableClaims || !dedup) {
			complain("it says RequireDedup, and with driver %s and these options dedup %s; pass a durable claims store in Options.Claims (store/postgres, store/mysql, store/sqlite, store/redis; package setup: EVENT_CLAIMS), or drop the requirement", name, s.dedupNow(dedup))
		}
		if durableClaims && dedup && f.RedeliveryHorizon < 0 && b.options.RedeliveryHorizon == 0 && s.repeats() {
			complain("the claims store keeps the keys of repeatable events, and driver %s knows no time after which an event cannot come again: say one in Options.RedeliveryHorizon, for example the retention of its topics", name)
		}
		if f.History && s.options.StartAt.Mode == driver.StartUnset {
			complain("driver %s has history: say with StartAt where the subscription begins when the broker sees it for the first time, in its SubscribeOptions or for all of them in Options: tidings.StartBeginning handles everything that is still stored, tidings.StartNow only what is published from then on", name)
		}
		if s.options.OnExhausted == Park && f.Durable && (b.options.Lanes == nil || !b.options.Lanes.Durable()) {
			complain("it parks events, and the store for them is in memory while driver %s is durable: they would be lost with the process; pass a durable store in Options.Lanes, or use DeadLetter or Block", name)
		} else if s.options.OnExhausted == Park && f.Groups && !f.Sources {
			complain("it parks events, and on driver %s any instance may be given an aggregate, so that none owns what is parked; use DeadLetter or Block", name)
		}
		if b.options.DeadLetters == nil {
			if _, ok := b.driver.(driver.DeadLetters); !ok {
				complain("driver %s keeps no dead letters: pass a store in Options.DeadLetters", name)
			}
		}
	}
	errs = append(errs, b.formerNameComplaints()...)
	namer, ok := b.driver.(driver.Namer)
	if !ok {
		return errs
	}
	channels := map[string]*definition{}
	definitions := slices.SortedFunc(maps.Values(b.contracts), func(a, b *definition) int {
		return cmp.Or(cmp.Compare(a.channel, b.channel), cmp.Compare(a.eventType, b.eventType), cmp.Compare(a.version, b.version))
	})
	for _, d := range slices.CompactFunc(definitions, func(a, b *definition) bool { return a.channel == b.channel }) {
		broker := namer.BrokerName(d.channel)
		if other := channels[broker]; other == nil {
			channels[broker] = d
		} else {
			errs = append(errs, fmt.Errorf("channels %s (%s at %s) and %s (%s at %s) have the same name %s on driver %s: rename one with tidings.Channel",
				other.channel, other, other.place, d.channel, d, d.place, broker, name))
		}
	}
	return errs
}
