package tidingstest

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/tidings-go/tidings"
)

// story is an observer that remembers what happened.
type story struct {
	mu           sync.Mutex
	events       []tidings.DomainEvent
	observations []tidings.Observation
}

// Observe implements [tidings.Observer].
func (s *story) Observe(_ context.Context, o tidings.Observation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.observations = append(s.observations, o)
}

// ObservePublish implements [tidings.PublishObserver]: events that are not
// stored in the end are not remembered.
func (s *story) ObservePublish(ctx context.Context, p *tidings.Publication) (context.Context, func(error)) {
	return ctx, func(err error) {
		if err != nil {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.events = append(s.events, p.Events...)
	}
}

func (s *story) published() []tidings.DomainEvent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]tidings.DomainEvent(nil), s.events...)
}

func (s *story) handled(subscription string) (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.observations {
		if o.Kind == tidings.Handled && o.Subscription == subscription {
			ids = append(ids, o.ID)
		}
	}
	return ids
}

// String tells what caused what.
func (s *story) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.events) == 0 {
		return "  nothing was published\n"
	}
	known := map[string]bool{}
	for _, e := range s.events {
		known[e.ID()] = true
	}
	var b strings.Builder
	told := map[string]bool{}
	for _, e := range s.events {
		if !known[e.CausationID()] && !told[e.ID()] {
			s.tell(&b, e, "  ", told)
		}
	}
	return b.String()
}

func (s *story) tell(b *strings.Builder, e tidings.DomainEvent, indent string, told map[string]bool) {
	told[e.ID()] = true
	times := 0
	for _, other := range s.events {
		if other.ID() == e.ID() {
			times++
		}
	}
	again := ""
	if times > 1 {
		again = fmt.Sprintf(" (published %d times)", times)
	}
	fmt.Fprintf(b, "%s%s v%d of %s, id %s%s\n", indent, e.Type(), e.Version(), e.AggregateID(), e.ID(), again)
	reactions := 0
	for _, o := range s.observations {
		if o.ID != e.ID() || o.Subscription == "" {
			continue
		}
		if line := outcome(o); line != "" {
			fmt.Fprintf(b, "%s  → %s: %s\n", indent, o.Subscription, line)
			reactions++
		}
	}
	if reactions == 0 {
		fmt.Fprintf(b, "%s  nobody reacted\n", indent)
	}
	for _, child := range s.events {
		if child.CausationID() == e.ID() && !told[child.ID()] {
			s.tell(b, child, indent+"    ", told)
		}
	}
}

// outcome is a line of the story, or "" for what is no outcome.
func outcome(o tidings.Observation) string {
	switch o.Kind {
	case tidings.Handled:
		if o.Attempt > 1 {
			return fmt.Sprintf("handled at attempt %d", o.Attempt)
		}
		return "handled"
	case tidings.Retried:
		return fmt.Sprintf("attempt %d failed, again in %v: %v", o.Attempt, o.Wait.Round(1e6), o.Err)
	case tidings.DeadLettered:
		return fmt.Sprintf("dead letter (%s): %v", o.Reason, o.Err)
	case tidings.Parked:
		return fmt.Sprintf("parked (%s)", o.Reason)
	case tidings.Deduplicated, tidings.DuplicateDiffers, tidings.Busy, tidings.Ignored, tidings.Unkeyed:
		return o.Kind.String()
	case tidings.Held, tidings.Blocked, tidings.StoreFailed, tidings.Overdue, tidings.Discarded:
		return fmt.Sprintf("%s: %v", o.Kind, o.Err)
	}
	return ""
}
