package drivertest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/tidings-go/tidings"
)

// ledger keeps account of what one subscription did with the events of many
// aggregates, over all its instances. Each aggregate has one publisher at a
// time, so its events have numbers in the order of publishing.
type ledger struct {
	mu         sync.Mutex
	aggregates map[string]*account
	places     map[string]place // by event id

	published, handled, dead int
	duplicated               int // started although they were finished
	reordered                int // started before an earlier one was finished
	overlapped               int // started while another of the aggregate ran
	calls                    int
	examples                 []string // the first of what is wrong
	disorder                 []string // and, on a driver with order, of this
}

type account struct {
	started  []bool
	finished []bool
	prefix   int // the first that is not finished
	running  int
}

type place struct {
	aggregate string
	number    int
}

func newLedger() *ledger {
	return &ledger{aggregates: make(map[string]*account), places: make(map[string]place)}
}

// step makes the next event of an aggregate.
func (l *ledger) step(aggregate string, options ...tidings.EventOption) tidings.Event[stepPayload] {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.aggregates[aggregate]
	if a == nil {
		a = &account{}
		l.aggregates[aggregate] = a
	}
	e := stepTaken.New(aggregate, stepPayload{Number: len(a.finished)}, options...)
	l.places[e.ID()] = place{aggregate, len(a.finished)}
	a.started, a.finished = append(a.started, false), append(a.finished, false)
	l.published++
	return e
}

// steps makes the next events of an aggregate.
func (l *ledger) steps(aggregate string, count int) []tidings.DomainEvent {
	events := make([]tidings.DomainEvent, count)
	for n := range events {
		events[n] = l.step(aggregate)
	}
	return events
}

// handler enters each call of handle, which may be nil, into the ledger.
func (l *ledger) handler(handle func(context.Context, tidings.Event[stepPayload]) error) func(context.Context, tidings.Event[stepPayload]) error {
	return func(ctx context.Context, e tidings.Event[stepPayload]) (err error) {
		l.begin(e)
		returned := false
		defer func() { l.end(e, returned && err == nil) }()
		if handle != nil {
			err = handle(ctx, e)
		}
		returned = true
		return err
	}
}

func (l *ledger) begin(e tidings.Event[stepPayload]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
	at, known := l.places[e.ID()]
	if !known || at.aggregate != e.AggregateID() || at.number != e.Payload().Number {
		l.wrong("event %s of %s number %d was never published like this", e.ID(), e.AggregateID(), e.Payload().Number)
		return
	}
	a := l.aggregates[at.aggregate]
	a.running++
	if a.running > 1 {
		l.overlapped++
		l.wrong("%s/%d started while another of its aggregate ran", at.aggregate, at.number)
	}
	if a.finished[at.number] {
		l.duplicated++
		l.wrong("%s/%d started although it was finished", at.aggregate, at.number)
	} else if !a.started[at.number] && at.number > a.prefix {
		l.reordered++
		if len(l.disorder) < 10 {
			l.disorder = append(l.disorder, fmt.Sprintf("%s/%d started before %d was finished", at.aggregate, at.number, a.prefix))
		}
	}
	a.started[at.number] = true
}

func (l *ledger) end(e tidings.Event[stepPayload], succeeded bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, known := l.places[e.ID()]
	if !known {
		return
	}
	l.aggregates[at.aggregate].running--
	if succeeded && l.finish(at) {
		l.handled++
	}
}

// finish reports whether the event was not finished before.
func (l *ledger) finish(at place) bool {
	a := l.aggregates[at.aggregate]
	if a.finished[at.number] {
		return false
	}
	a.finished[at.number] = true
	for a.prefix < len(a.finished) && a.finished[a.prefix] {
		a.prefix++
	}
	return true
}

// observe takes dead letters from a witness.
func (l *ledger) observe(o tidings.Observation) {
	if o.Kind != tidings.DeadLettered {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, known := l.places[o.ID]; known && l.finish(at) {
		l.dead++
	}
}

func (l *ledger) wrong(format string, args ...any) {
	if len(l.examples) < 10 {
		l.examples = append(l.examples, fmt.Sprintf(format, args...))
	}
}

// done reports whether every event was handled or is a dead letter.
func (l *ledger) done() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.handled+l.dead == l.published
}

// finishedOf returns how many of an aggregate are finished, from the first on.
func (l *ledger) finishedOf(aggregate string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.aggregates[aggregate]; a != nil {
		return a.prefix
	}
	return 0
}

// String is the account: the figures, and the first examples of what is wrong.
func (l *ledger) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%d published, %d handled, %d dead, %d lost, %d duplicated, %d reordered, %d overlapped, in %d calls",
		l.published, l.handled, l.dead, l.published-l.handled-l.dead, l.duplicated, l.reordered, l.overlapped, l.calls)
	for _, example := range slices.Concat(l.examples, l.disorder) {
		fmt.Fprintf(&b, "\n  %s", example)
	}
	return b.String()
}

// audit waits until everything is finished and fails for what is wrong.
func (l *ledger) audit(s *scene) {
	s.Helper()
	s.eventually("every event is handled or a dead letter", l.done, l.String)
	l.mu.Lock()
	wrong := len(l.examples) > 0 || s.features.Ordered && len(l.disorder) > 0
	l.mu.Unlock()
	if wrong {
		s.Errorf("the ledger: %v", l)
	}
}
