package faults

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidings-go/tidings"
)

// publish publishes the numbers of its aggregates in order, from where the last
// publisher of its lane was, until it has published its events or is stopped. What
// has no answer is published again, with the same id, until it has one.
func (p *process) publish(ctx context.Context) error {
	b := p.bus(p.parts.Driver)
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = b.Close(ending)
	}()
	return p.publishThrough(ctx, b)
}

func (p *process) publishThrough(ctx context.Context, b *tidings.Bus) error {
	next, again, published, err := p.resume(ctx)
	if ctx.Err() != nil {
		return nil // stopped before it began
	}
	if err != nil {
		return err
	}
	if len(again) > 0 && !p.put(ctx, b, again) {
		return nil
	}
	text := strings.Repeat("x", p.Load.Bytes)
	for at := 0; ctx.Err() == nil && !p.publishingStops.Load() && (p.Load.Events == 0 || published < p.Load.Events); {
		if p.publishingWaits.Load() {
			pause(ctx, retryPause)
			continue
		}
		batch := make([]tidings.DomainEvent, 0, p.Load.Batch)
		for len(batch) < p.Load.Batch && (p.Load.Events == 0 || published < p.Load.Events) {
			aggregate := p.Lane + "-" + strconv.Itoa(at%p.Load.Aggregates)
			batch = append(batch, p.contract().New(aggregate, StepPayload{Number: next[aggregate], Text: text}))
			next[aggregate]++
			at++
			published++
		}
		if !p.put(ctx, b, batch) {
			return nil
		}
		pause(ctx, p.Load.Pause)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// resume finds out where the last publisher of this lane was: the next number of
// each aggregate, what it tried without an answer, and how many were published.
func (p *process) resume(ctx context.Context) (next map[string]int, again []tidings.DomainEvent, published int, err error) {
	next = make(map[string]int)
	mine := func(aggregate string) bool { return strings.HasPrefix(aggregate, p.Lane+"-") }
	if p.parts.Committed != nil {
		var steps []Step
		for { // the database may be what has failed
			if steps, err = p.committed(ctx); err == nil {
				break
			}
			if pause(ctx, retryPause); ctx.Err() != nil {
				return nil, nil, 0, err
			}
		}
		for _, s := range steps {
			if mine(s.Aggregate) {
				next[s.Aggregate] = max(next[s.Aggregate], s.Number+1)
				published++
			}
		}
		return next, nil, published, nil
	}
	entries, err := readAll(p.Folder, Publisher)
	if err != nil {
		return nil, nil, 0, err
	}
	tried := make(map[string]Step)
	for _, e := range entries {
		if !mine(e.place.Aggregate) {
			continue
		}
		switch e.word {
		case wordTry:
			next[e.place.Aggregate] = max(next[e.place.Aggregate], e.place.Number+1)
			tried[e.id] = e.place
		case wordStored:
			published++
		}
	}
	for _, e := range entries {
		if e.word == wordStored {
			delete(tried, e.id)
		}
	}
	open := slices.SortedFunc(maps.Values(tried), func(a, b Step) int { return a.Number - b.Number })
	for _, s := range open {
		again = append(again, p.contract().New(s.Aggregate, StepPayload{Number: s.Number, Text: strings.Repeat("x", p.Load.Bytes)}, tidings.WithID(s.ID)))
	}
	return next, again, published + len(again), nil
}

const retryPause = 50 * time.Millisecond

// put publishes until everything is stored. It reports whether it is.
func (p *process) put(ctx context.Context, b *tidings.Bus, events []tidings.DomainEvent) bool {
	for {
		p.tell(wordTry, events)
		// A publisher is stopped between two calls, not in one.
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), cmp.Or(p.Patience, 10*time.Second))
		var err error
		if p.parts.Commit != nil {
			err = p.parts.Commit(limited, b, events, func() { p.trap.At(BeforeCommit) })
			if err == nil {
				p.trap.At(AfterCommit)
			}
		} else {
			err = b.Module("faults").Publish(limited, events...)
			if err == nil {
				p.trap.At(AfterPublish)
			}
		}
		cancel()
		if err == nil {
			p.tell(wordStored, events)
			return true
		}
		p.journal.write(entry{word: wordFailed, reason: err.Error()})
		if failed, ok := errors.AsType[*tidings.PublishError](err); ok {
			stored := make(map[string]bool)
			for _, r := range failed.Results {
				if r.State == tidings.Stored {
					stored[r.Event.ID()] = true
				}
			}
			var done, open []tidings.DomainEvent
			for _, e := range events {
				if stored[e.ID()] {
					done = append(done, e)
				} else {
					open = append(open, e)
				}
			}
			p.tell(wordStored, done)
			events = open
		} else if p.parts.Commit != nil {
			// Whether the transaction was committed is asked of the database, as an
			// application would.
			steps, asked := p.committed(ctx)
			for asked != nil && ctx.Err() == nil {
				pause(ctx, retryPause)
				steps, asked = p.committed(ctx)
			}
			if asked == nil && slices.ContainsFunc(steps, func(s Step) bool { return s.ID == events[0].ID() }) {
				p.tell(wordStored, events)
				return true
			}
		}
		if pause(ctx, retryPause); ctx.Err() != nil {
			return false
		}
	}
}

// committed asks the database, which may not answer: an application gives up and
// asks again.
func (p *process) committed(ctx context.Context) ([]Step, error) {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), cmp.Or(p.Patience, 10*time.Second))
	defer cancel()
	return p.parts.Committed(limited)
}

func (p *process) tell(word string, events []tidings.DomainEvent) {
	entries := make([]entry, len(events))
	for n, e := range events {
		entries[n] = entry{word: word, id: e.ID(), place: Step{Aggregate: e.AggregateID(), Number: numberOf(e)}}
	}
	if len(entries) > 0 {
		p.journal.write(entries...)
	}
}

func numberOf(e tidings.DomainEvent) int {
	if step, ok := e.(tidings.Event[StepPayload]); ok {
		return step.Payload().Number
	}
	panic(fmt.Sprintf("faults: an event of type %T", e))
}
