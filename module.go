package tidings

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Module is the face of the bus that one module is given, and the only thing of
// it: it publishes the module's own events and subscribes. It may be used from
// any goroutine.
type Module struct {
	bus  *Bus
	name string
}

// Name returns the module's name.
func (m *Module) Name() string { return m.name }

// Subscribe declares a subscription of the module. Its name is stored by
// brokers (as a group, a queue, a dedup key), so it is chosen once and does not
// follow the names of Go functions: lower-case words with dashes,
// "create-default-profile". Options may be nil.
//
// With several reactions the subscription handles their events in one lane per
// aggregate; their contracts share a channel, unless the options say
// UnorderedAcrossTypes.
//
// Nothing has to be checked here: [Bus.Run] reports every mistake of every
// subscription, each with its place, in one [ConfigurationError], and then
// starts nothing. A subscription that is declared after Run has begun, or after
// [Bus.Close], would never get an event: Subscribe panics.
func (m *Module) Subscribe(name string, options *SubscribeOptions, reactions ...Reaction) {
	place := callerPlace(2)
	b := m.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	full := m.name + "." + name
	if b.phase != phaseDeclaring {
		panic(fmt.Sprintf("tidings: subscription %s is declared at %s, after %s: %s", full, place, b.begun, b.instead()))
	}
	d := draft{&subscription{
		bus:       b,
		name:      full,
		place:     place,
		options:   options.withDefaults(),
		reactions: make(map[string]*Reaction),
	}}
	d.checkNames(m, name)
	for _, err := range d.options.complaints() {
		d.complain("%w", err)
	}
	d.options.StartAt = cmp.Or(d.options.StartAt, b.options.StartAt)
	for n, r := range reactions {
		d.react(n+1, r)
	}
	d.checkReactions(len(reactions))
	b.subscriptions = append(b.subscriptions, d.subscription)
}

// instead is what to do where a subscription is declared too late.
func (b *Bus) instead() string {
	if errors.Is(b.late, ErrClosed) {
		return "a closed bus does not run again, declare it on a new one"
	}
	return "declare every subscription before Run"
}

// draft is a subscription while it is declared. Its methods expect the lock of the
// bus, and leave what is wrong to Run.
type draft struct{ *subscription }

// complain adds something that Run reports.
func (d draft) complain(format string, args ...any) {
	d.bus.complaints = append(d.bus.complaints, d.complaint(format, args...))
}

// complaint is something that is wrong with the subscription, with its place.
func (s *subscription) complaint(format string, args ...any) error {
	return fmt.Errorf("subscription %s at %s: %w", s.name, s.place, fmt.Errorf(format, args...))
}

// checkNames takes the former names, and looks at them and at the name.
func (d draft) checkNames(m *Module, name string) {
	if !validWord(name) {
		d.complain("the name must be a lower-case word (a-z, 0-9, and - or _ inside)")
	}
	for _, other := range d.bus.subscriptions {
		if other.name == d.name {
			d.complain("the name is taken by the subscription at %s", other.place)
			break
		}
	}
	d.former = m.formerNames(d.options.FormerNames)
	for _, former := range d.former {
		if module, rest, ok := strings.Cut(former, "."); !ok || !validWord(rest) || !validWord(module) {
			d.complain("the former name %q is none: a name of this module, or module.name of another", former)
		} else if former == d.name {
			d.complain("its former name is its name")
		}
	}
}

// react adds the reaction with this number, from 1, unless it cannot be used.
func (d draft) react(number int, r Reaction) {
	switch {
	case r.definition == nil:
		d.complain("reaction %d has no contract: use tidings.Define", number)
		return
	case r.handle == nil && !r.ignored:
		d.complain("the handler of %s is nil", r.definition)
		return
	}
	eventType := r.definition.eventType
	if first, twice := d.reactions[eventType]; twice {
		if first.ignored != r.ignored {
			d.complain("it both handles %s and says that it is Ignored, at %s and at %s: keep one of them", eventType, first.place, r.place)
		} else {
			d.complain("it reacts to %s at %s and at %s: one subscription takes one version of a type, once", eventType, first.place, r.place)
		}
		return
	}
	if err := d.bus.meet(r.definition); err != nil {
		d.complain("%w", err)
	}
	if wrap := d.bus.options.Wrap; wrap != nil && !r.ignored {
		handle, err := wrapHandle(wrap, r.handle)
		if err != nil {
			d.complain("%w", err)
			return
		}
		r.handle = handle
	}
	d.reactions[eventType] = &r
	d.types = append(d.types, eventType)
	if !slices.Contains(d.channels, r.definition.channel) {
		d.channels = append(d.channels, r.definition.channel)
	}
}

// checkReactions looks at all reactions together, of which so many were given.
func (d draft) checkReactions(given int) {
	if given == 0 {
		d.complain("it has no reaction: pass Contract.On(handler)")
	}
	if len(d.reactions) > 0 && !d.handlesAny() {
		d.complain("every reaction says Ignored, so it handles nothing: pass Contract.On(handler) for one type at least, or delete the subscription")
	}
	if len(d.reactions) == 1 {
		d.only = d.reactions[d.types[0]]
	}
	slices.Sort(d.types)
	slices.Sort(d.channels)
	if len(d.channels) > 1 && !d.options.UnorderedAcrossTypes {
		d.complain("its contracts lie on the channels %s, between which there is no order: give the contracts one tidings.Channel, split the subscription, or say UnorderedAcrossTypes", strings.Join(d.channels, ", "))
	}
}

// handlesAny reports whether there is a reaction besides those that say Ignored.
func (s *subscription) handlesAny() bool {
	for _, r := range s.reactions {
		if !r.ignored {
			return true
		}
	}
	return false
}

// formerNames are whole names: one without a module is of this one.
func (m *Module) formerNames(names []string) (whole []string) {
	for _, name := range names {
		if !strings.Contains(name, ".") {
			name = m.name + "." + name
		}
		whole = append(whole, name)
	}
	return whole
}

// wrapHandle puts the bus's wrapper around a handler, once.
func wrapHandle(wrap func(HandleFunc) HandleFunc, handle func(ctx context.Context, r record) error) (func(ctx context.Context, r record) error, error) {
	wrapped := wrap(func(ctx context.Context, event DomainEvent) error {
		if event == nil {
			return Permanent(errors.New("tidings: Options.Wrap passed no event on"))
		}
		return handle(ctx, event.record())
	})
	if wrapped == nil {
		return nil, errors.New("Options.Wrap returned nil")
	}
	return func(ctx context.Context, r record) error { return wrapped(ctx, r.event()) }, nil
}
