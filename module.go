package tidings

import (
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
// What is wrong is returned, and once more by [Bus.Run] together with every
// other complaint; so a program that runs the bus may ignore it here. After Run
// it is [ErrRunning] and has no other effect.
func (m *Module) Subscribe(name string, options *SubscribeOptions, reactions ...Reaction) error {
	place := callerPlace(2)
	b := m.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	full := m.name + "." + name
	if b.phase != phaseDeclaring {
		return fmt.Errorf("tidings: %s: subscribed at %s after Run at %s: %w", full, place, b.runPlace, ErrRunning)
	}
	s := &subscription{
		bus:       b,
		name:      full,
		place:     place,
		options:   options.withDefaults(),
		reactions: make(map[string]*Reaction),
	}
	var errs []error
	complain := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("subscription %s at %s: %w", full, place, fmt.Errorf(format, args...)))
	}
	if !validWord(name) {
		complain("the name must be a lower-case word (a-z, 0-9, and - or _ inside)")
	}
	for _, other := range b.subscriptions {
		if other.name == full {
			complain("the name is taken by the subscription at %s", other.place)
		}
	}
	s.former = m.formerNames(s.options.FormerNames)
	for _, former := range s.former {
		if _, rest, ok := strings.Cut(former, "."); !ok || !validWord(rest) || !validWord(former[:len(former)-len(rest)-1]) {
			complain("the former name %q is none: a name of this module, or module.name of another", former)
		} else if former == full {
			complain("its former name is its name")
		}
	}
	for _, err := range s.options.complaints() {
		complain("%w", err)
	}
	if len(reactions) == 0 {
		complain("it has no reaction: pass Contract.On(handler)")
	}
	for n := range reactions {
		r := reactions[n]
		if r.definition == nil {
			complain("reaction %d has no contract: use tidings.Define", n+1)
			continue
		}
		if r.handle == nil && !r.ignored {
			complain("the handler of %s is nil", r.definition)
			continue
		}
		if first, twice := s.reactions[r.definition.eventType]; twice {
			if first.ignored != r.ignored {
				complain("it both handles %s and says that it is Ignored, at %s and at %s: keep one of them", r.definition.eventType, first.place, r.place)
				continue
			}
			complain("it reacts to %s at %s and at %s: one subscription takes one version of a type, once", r.definition.eventType, first.place, r.place)
			continue
		}
		if err := b.meet(r.definition); err != nil {
			complain("%w", err)
		}
		if wrap := b.options.Wrap; wrap != nil && !r.ignored {
			handle, err := wrapHandle(wrap, r.handle)
			if err != nil {
				complain("%w", err)
				continue
			}
			r.handle = handle
		}
		s.reactions[r.definition.eventType] = &r
		s.types = append(s.types, r.definition.eventType)
		if !slices.Contains(s.channels, r.definition.channel) {
			s.channels = append(s.channels, r.definition.channel)
		}
	}
	if len(s.reactions) > 0 && !s.handlesAny() {
		complain("every reaction says Ignored, so it handles nothing: pass Contract.On(handler) for one type at least, or delete the subscription")
	}
	if len(s.reactions) == 1 {
		s.only = s.reactions[s.types[0]]
	}
	slices.Sort(s.types)
	slices.Sort(s.channels)
	if len(s.channels) > 1 && !s.options.UnorderedAcrossTypes {
		complain("its contracts lie on the channels %s, between which there is no order: give the contracts one tidings.Channel, split the subscription, or say UnorderedAcrossTypes", strings.Join(s.channels, ", "))
	}
	b.subscriptions = append(b.subscriptions, s)
	b.complaints = append(b.complaints, errs...)
	if len(errs) == 0 {
		return nil
	}
	return &ConfigurationError{Complaints: errs}
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
