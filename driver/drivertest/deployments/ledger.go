package deployments

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// lane is what keeps its order: a channel and an aggregate.
type lane struct{ channel, aggregate string }

// event is one entry of the ledger.
type event struct {
	id                    string
	eventType             string
	lane                  lane
	number                int // in its lane
	version, readableFrom int
	published             bool // Publish has returned nil

	started, handled int64 // when for the first time; 0: never
	ignored          bool  // finished unseen, by whoever
	passed           bool  // finished unseen, by a release that says so
	again            bool  // delivered once more since it was handled
	dead             bool
	last             string // what was last observed, for messages
}

// ledger keeps account of all instances of one trial.
type ledger struct {
	mu      sync.Mutex
	now     int64 // counts observations: their order is all that matters
	events  map[string]*event
	lanes   map[lane][]*event
	ignores map[string]bool // types that may be finished unseen
	letters []string
	reports map[string]string // warnings, by instance
}

func newLedger() *ledger {
	return &ledger{events: make(map[string]*event), lanes: make(map[lane][]*event), ignores: make(map[string]bool), reports: make(map[string]string)}
}

// next makes the next event of an aggregate.
func (l *ledger) next(f fact, aggregate string) tidings.Event[Payload] {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := lane{f.Channel(), aggregate}
	made := f.New(aggregate, Payload{Number: len(l.lanes[at])})
	e := &event{id: made.ID(), eventType: f.Type(), lane: at, number: len(l.lanes[at]), version: f.Version(), readableFrom: f.Version()}
	if f == pricedReadable {
		e.readableFrom = 1
	}
	l.events[e.id] = e
	l.lanes[at] = append(l.lanes[at], e)
	return made
}

func (l *ledger) stored(events []tidings.DomainEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range events {
		l.events[e.ID()].published = true
	}
}

// observe takes what an instance says of an event.
func (l *ledger) observe(instance string, r *release, o tidings.Observation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o.Kind == tidings.Reported && o.Report.Kind == driver.ReportWarning {
		l.reports[instance] += o.Report.Text + "\n"
	}
	e := l.events[o.ID]
	if e == nil {
		return
	}
	l.now++
	e.last = instance + ": " + o.Kind.String()
	switch o.Kind {
	case tidings.Received, tidings.Held, tidings.Parked:
		e.again = e.handled > 0
	case tidings.Started:
		if e.started == 0 {
			e.started = l.now
		}
	case tidings.Handled, tidings.Deduplicated:
		if e.handled == 0 {
			e.handled = l.now
		}
		e.again = false
	case tidings.Ignored:
		e.ignored, e.again = true, false
		e.passed = e.passed || r.passes(e.eventType)
	case tidings.DeadLettered:
		e.dead = true
		l.letters = append(l.letters, fmt.Sprintf("%s %s: %s: %v", o.Type, o.ID, o.Reason, o.Err))
	}
}

// ignore says that a type may be finished unseen from now on.
func (l *ledger) ignore(eventType string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ignores[eventType] = true
}

// finished reports whether nothing more is to happen to an event.
func (l *ledger) finished(e *event) bool {
	return e.handled > 0 || e.dead || e.passed || l.ignores[e.eventType] && e.ignored
}

// expected returns what these releases, as long as they run, are sure to handle: of
// each lane everything before the first event that one of those which have its
// channel cannot read: it waits, and the lane with it. That may also be one that a
// newer release has handled, and not settled before its source went to an older one.
// Only events numbered below the bound of their lane count,
// where there is a bound.
func (l *ledger) expected(running []*release, bound map[lane]int) (all []*event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for at, events := range l.lanes {
		var having []*release
		for _, r := range running {
			if r.knows(at.channel) {
				having = append(having, r)
			}
		}
		if len(having) == 0 {
			continue
		}
		for _, e := range events {
			if n, ok := bound[at]; bound != nil && (!ok || e.number >= n) {
				break
			}
			if l.finished(e) && !e.again || !e.published {
				continue
			}
			if !l.ignores[e.eventType] && slices.ContainsFunc(having, func(r *release) bool { return !r.reads(e) && !r.passes(e.eventType) }) {
				break
			}
			if !l.finished(e) {
				all = append(all, e)
			}
		}
	}
	return all
}

// bounds are the lengths of all lanes now.
func (l *ledger) bounds() map[lane]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	bounds := make(map[lane]int, len(l.lanes))
	for at, events := range l.lanes {
		bounds[at] = len(events)
	}
	return bounds
}

// open returns what is neither handled, dead nor rightly ignored.
func (l *ledger) open() (all []*event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, events := range l.lanes {
		for _, e := range events {
			if e.published && !l.finished(e) && !l.ignores[e.eventType] {
				all = append(all, e)
			}
		}
	}
	return all
}

// told reports whether an instance has warned of something.
func (l *ledger) told(instance, of string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.reports[instance], of)
}

// count is the verdict over everything.
func (l *ledger) count(effects map[string]int) (v Verdict) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, events := range l.lanes {
		latest := int64(0)
		for _, e := range events {
			if !e.published {
				continue
			}
			v.Published++
			switch {
			case e.dead:
				v.Dead++
			case e.handled > 0:
				if effects[e.id] == 0 {
					v.Lost++
					v.example("%v: handled without an effect", e)
				}
			case l.finished(e) || l.ignores[e.eventType]:
				v.Ignored++
			default:
				v.Lost++
				v.example("%v: never handled", e)
			}
			if n := effects[e.id]; n > 1 {
				v.DoubleEffects += n - 1
				v.example("%v: %d effects", e, n)
			}
			if e.started > 0 && e.started < latest {
				v.Disordered++
				v.example("%v: started before an earlier one of its lane was handled", e)
			}
			latest = max(latest, e.handled)
		}
	}
	for _, letter := range l.letters {
		v.example("dead letter %s", letter)
	}
	return v
}

// String says which event it is and what was last heard of it.
func (e *event) String() string {
	seen := e.last
	if seen == "" {
		seen = "never delivered"
	}
	if e.ignored {
		seen += ", was finished unseen"
	}
	return fmt.Sprintf("%s v%d %s/%d (%s)", e.eventType, e.version, e.lane.aggregate, e.number, seen)
}

// describe names the first few events.
func (l *ledger) describe(events []*event) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.SortFunc(events, func(a, b *event) int {
		if c := strings.Compare(a.lane.channel+a.lane.aggregate, b.lane.channel+b.lane.aggregate); c != 0 {
			return c
		}
		return a.number - b.number
	})
	var lines []string
	for _, e := range events[:min(len(events), 8)] {
		lines = append(lines, e.String())
	}
	return fmt.Sprintf("%d events: %s", len(events), strings.Join(lines, "; "))
}

// witness is the ledger as the observer of one instance.
type witness struct {
	ledger   *ledger
	instance string
	release  *release
}

// Observe implements [tidings.Observer].
func (w *witness) Observe(_ context.Context, o tidings.Observation) {
	w.ledger.observe(w.instance, w.release, o)
}
