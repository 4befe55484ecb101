package tidingstest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/tidings-go/tidings"
)

// story is an observer that remembers what happened.
type story struct {
	mu           sync.Mutex
	publications []publication
	observations []tidings.Observation
}

// publication is an event with the attempt whose handler published it.
type publication struct {
	event        tidings.DomainEvent
	subscription string // "" outside a handler
	attempt      int
}

// Observe implements [tidings.Observer].
func (s *story) Observe(_ context.Context, o tidings.Observation) {
	if o.Subscription == "" || o.ID == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.observations = append(s.observations, o)
}

// ObservePublish implements [tidings.PublishObserver]: events that are not
// stored in the end are not remembered.
func (s *story) ObservePublish(ctx context.Context, p *tidings.Publication) (context.Context, func(error)) {
	by, _ := tidings.DeliveryFrom(ctx)
	return ctx, func(err error) {
		if err != nil {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, e := range p.Events {
			s.publications = append(s.publications, publication{e, by.Subscription, by.Attempt})
		}
	}
}

func (s *story) published() []tidings.DomainEvent {
	s.mu.Lock()
	defer s.mu.Unlock()
	events := make([]tidings.DomainEvent, len(s.publications))
	for n, p := range s.publications {
		events[n] = p.event
	}
	return events
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
	if len(s.publications) == 0 {
		return "  nothing was published\n"
	}
	t := &teller{
		times:     make(map[string]int),
		reactions: make(map[string][]tidings.Observation),
		caused:    make(map[string][]publication),
		told:      make(map[string]bool),
	}
	for _, p := range s.publications {
		id, cause := p.event.ID(), p.event.CausationID()
		if t.times[id]++; t.times[id] == 1 && cause != "" && cause != id {
			t.caused[cause] = append(t.caused[cause], p)
		}
	}
	for _, o := range s.observations {
		t.reactions[o.ID] = append(t.reactions[o.ID], o)
	}
	for _, p := range s.publications { // the roots
		if t.times[p.event.CausationID()] == 0 || p.event.CausationID() == p.event.ID() {
			t.tell(p.event, "  ")
		}
	}
	for _, p := range s.publications { // causes that go in a circle have no root
		t.tell(p.event, "  ")
	}
	return t.text.String()
}

// teller writes a story, each event once.
type teller struct {
	times     map[string]int                   // how often an event was published, by id
	reactions map[string][]tidings.Observation // by event id
	caused    map[string][]publication         // by the id of the cause
	told      map[string]bool
	text      strings.Builder
}

func (t *teller) tell(e tidings.DomainEvent, indent string) {
	id := e.ID()
	if t.told[id] {
		return
	}
	t.told[id] = true
	again := ""
	if t.times[id] > 1 {
		again = fmt.Sprintf(", published %d times", t.times[id])
	}
	fmt.Fprintf(&t.text, "%s%s v%d %s (%s)%s\n", indent, e.Type(), e.Version(), short(id), e.AggregateID(), again)
	indent += "  "
	lines := 0
	retries := make(map[string]int)
	for _, o := range t.reactions[id] {
		line := outcome(o)
		if line == "" {
			continue
		}
		lines++
		if o.Kind == tidings.Retried {
			if retries[o.Subscription]++; retries[o.Subscription] == keptRetries+1 {
				fmt.Fprintf(&t.text, "%s→ %s … and more attempts\n", indent, o.Subscription)
			}
		}
		if o.Kind != tidings.Retried || retries[o.Subscription] <= keptRetries {
			fmt.Fprintf(&t.text, "%s→ %s %s\n", indent, o.Subscription, line)
		}
		if o.Attempt == 0 {
			continue
		}
		for _, child := range t.caused[id] {
			if child.subscription == o.Subscription && child.attempt == o.Attempt {
				t.tell(child.event, indent+"    ")
			}
		}
	}
	if lines == 0 {
		fmt.Fprintf(&t.text, "%snobody reacted\n", indent)
	}
	for _, child := range t.caused[id] { // of an attempt that still runs, or caused by hand
		t.tell(child.event, indent+"  ")
	}
}

// keptRetries is how many failed attempts of a delivery a story tells.
const keptRetries = 5

// short is the end of a UUID, whose beginning is the time, which the events of one
// test share. Other ids are left as they are.
func short(id string) string {
	if uuid.Validate(id) == nil {
		return "…" + id[len(id)-8:]
	}
	return id
}

// outcome is a line of the story, or "" for what is no outcome.
func outcome(o tidings.Observation) string {
	switch o.Kind {
	case tidings.Handled:
		if o.Attempt > 1 {
			return fmt.Sprintf("handled (attempt %d)", o.Attempt)
		}
		return "handled"
	case tidings.Retried:
		return fmt.Sprintf("attempt %d failed, again in %v: %v", o.Attempt, o.Wait.Round(time.Millisecond), o.Err)
	case tidings.DeadLettered:
		return fmt.Sprintf("dead letter (%s, attempt %d): %v", o.Reason, o.Attempt, o.Err)
	case tidings.Parked:
		return fmt.Sprintf("parked (%s)", o.Reason)
	case tidings.Deduplicated, tidings.DuplicateDiffers, tidings.Busy, tidings.Ignored, tidings.Unkeyed:
		return o.Kind.String()
	case tidings.Held, tidings.Blocked, tidings.StoreFailed, tidings.Overdue, tidings.Discarded:
		return fmt.Sprintf("%s: %v", o.Kind, o.Err)
	}
	return ""
}

// unfinished lists what each subscription has been given and not ended, as
// lines.
func (s *story) unfinished() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	type delivery struct{ subscription, id string }
	var order []delivery
	last := make(map[delivery]tidings.Observation)
	for _, o := range s.observations {
		key := delivery{o.Subscription, o.ID}
		if _, known := last[key]; !known {
			order = append(order, key)
		}
		last[key] = o
	}
	var b strings.Builder
	count := 0
	for _, key := range order {
		o := last[key]
		var state string
		switch o.Kind {
		case tidings.Received:
			state = "waits for its turn"
		case tidings.Started:
			state = fmt.Sprintf("attempt %d runs", o.Attempt)
		case tidings.Overdue:
			state = fmt.Sprintf("attempt %d runs although its time is over", o.Attempt)
		case tidings.Retried, tidings.Busy, tidings.StoreFailed, tidings.Discarded:
			state = outcome(o)
		default:
			continue
		}
		if count++; count <= 20 {
			fmt.Fprintf(&b, "  %s, %s %s (%s): %s\n", o.Subscription, o.Type, short(o.ID), o.AggregateID, state)
		}
	}
	if count > 20 {
		fmt.Fprintf(&b, "  … and %d more\n", count-20)
	}
	if count > 0 {
		b.WriteString("what happened:\n")
	}
	return b.String()
}
