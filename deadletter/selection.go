package deadletter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// ErrNoReason is returned by [Selection.Discard] without a reason.
var ErrNoReason = errors.New("deadletter: discarding needs a reason, which stays in the history")

// Name names one letter.
type Name struct {
	Subscription string
	Key          string
}

// Selection is a fixed set of letters: which they are, and how often each had died,
// was written down when it was made. What comes later is not in it. It is used by
// one goroutine at a time, and may be used again: what was changed meanwhile is
// left alone.
type Selection struct {
	letters *Letters
	items   []chosen
	sample  []Letter
	more    bool
}

type chosen struct {
	Name
	times   int
	missing bool
}

// MostSelected bounds a selection.
const MostSelected = 100_000

// sampleSize is how many letters of a selection are kept to be looked at.
const sampleSize = 20

// Select fixes the letters that match now, those that failed last first, at most
// limit of them, 1 to [MostSelected]. With no State it takes those that are open.
func (l *Letters) Select(ctx context.Context, filter Filter, limit int) (*Selection, error) {
	if limit < 1 || limit > MostSelected {
		return nil, fmt.Errorf("deadletter: a selection of %d letters: 1 to %d may be asked for", limit, MostSelected)
	}
	if filter.State == "" {
		filter.State = driver.DeadLetterOpen
	}
	s := &Selection{letters: l}
	for after := ""; len(s.items) < limit; {
		page, err := l.List(ctx, filter, after, min(MostOnPage, limit-len(s.items)))
		if err != nil {
			return nil, err
		}
		for n := range page.Letters {
			letter := &page.Letters[n]
			s.items = append(s.items, chosen{Name: Name{letter.Subscription, letter.Key}, times: letter.Times})
			if len(s.sample) < sampleSize {
				s.sample = append(s.sample, *letter)
			}
		}
		after = page.Next
		if s.more = after != ""; !s.more {
			break
		}
	}
	return s, nil
}

// Pick fixes letters by name, whatever their state. One that is not there is in the
// selection, and its outcome is [NotFound].
func (l *Letters) Pick(ctx context.Context, names ...Name) (*Selection, error) {
	s := &Selection{letters: l}
	for _, name := range names {
		letter, err := l.store.GetDeadLetter(ctx, name.Subscription, name.Key)
		switch {
		case errors.Is(err, driver.ErrNoDeadLetter):
			s.items = append(s.items, chosen{Name: name, missing: true})
			continue
		case err != nil:
			return nil, fmt.Errorf("deadletter: %w", err)
		}
		s.items = append(s.items, chosen{Name: name, times: letter.Times})
		if len(s.sample) < sampleSize {
			letter.Body, letter.Stack = nil, ""
			s.sample = append(s.sample, Letter{letter, driver.Fingerprint(letter.Err)})
		}
	}
	return s, nil
}

// Count is how many letters are selected.
func (s *Selection) Count() int { return len(s.items) }

// More reports whether more letters matched than the limit allowed.
func (s *Selection) More() bool { return s.more }

// Sample returns up to n of the letters, at most 20.
func (s *Selection) Sample(n int) []Letter { return s.sample[:min(max(n, 0), len(s.sample))] }

// Outcome is what became of one letter of a selection.
type Outcome string

// The outcomes. Handled, DiedAgain and Pending are had only where they are waited
// for.
const (
	Untouched Outcome = "untouched"  // it was stopped before its turn
	Marked    Outcome = "marked"     // for retry: the engine does the rest
	Discarded Outcome = "discarded"  // given up
	NotFound  Outcome = "not found"  // there is no such letter
	Changed   Outcome = "changed"    // it is not what it was when it was selected: left alone
	Handled   Outcome = "handled"    // a retry succeeded
	DiedAgain Outcome = "died again" // a retry failed
	Pending   Outcome = "pending"    // marked, and not handled when the wait ended
)

// Item is one letter of a result.
type Item struct {
	Name
	Outcome Outcome
	// State is what a letter is that has changed, and Err how one failed that died
	// again.
	State driver.DeadLetterState
	Err   string
}

// Result has an item for each letter of a selection, in its order.
type Result struct{ Items []Item }

// Count is how many letters had an outcome.
func (r *Result) Count(outcome Outcome) (count int) {
	for n := range r.Items {
		if r.Items[n].Outcome == outcome {
			count++
		}
	}
	return count
}

// Progress is how far an action is.
type Progress struct {
	// Total is how many letters are selected, Done how many had their turn, and
	// Finished how many retries ended, where they are waited for.
	Total, Done, Finished int
}

// ActOptions configures [Selection.Retry] and [Selection.Discard]. Nil means the
// defaults.
type ActOptions struct {
	// PerSecond is how many letters are marked in a second at most: 0 for no
	// limit. How fast they are handled is the subscription's own matter.
	PerSecond float64
	// Progress is called after each step, in the caller's goroutine.
	Progress func(Progress)
	// Wait waits for the retries to end: until every letter is handled or has died
	// again, or the context ends. It has no effect on Discard.
	Wait bool
}

// Retry marks the letters for retry, with a note for the history. It returns what
// became of each, also with an error: where ctx ends, or the store does not answer,
// what had no turn is [Untouched], and the same selection can go on later.
func (s *Selection) Retry(ctx context.Context, note string, options *ActOptions) (*Result, error) {
	result, err := s.act(ctx, driver.DeadLetterRetry, note, options)
	if err != nil || options == nil || !options.Wait {
		return result, err
	}
	return result, s.wait(ctx, result, options)
}

// Discard gives the letters up. They stay in the store, with the reason. The result
// is as Retry's.
func (s *Selection) Discard(ctx context.Context, reason string, options *ActOptions) (*Result, error) {
	if reason == "" {
		return nil, ErrNoReason
	}
	return s.act(ctx, driver.DeadLetterDiscarded, reason, options)
}

// stepSize is how many letters are marked at once.
const stepSize = 200

func (s *Selection) act(ctx context.Context, state driver.DeadLetterState, note string, options *ActOptions) (*Result, error) {
	if options == nil {
		options = &ActOptions{}
	}
	if options.PerSecond < 0 {
		return nil, fmt.Errorf("deadletter: ActOptions.PerSecond is %v: it must not be negative", options.PerSecond)
	}
	if by := s.letters.by; by != "" {
		note = "by " + by + ": " + note
	}
	result := &Result{Items: make([]Item, len(s.items))}
	for n, item := range s.items {
		result.Items[n] = Item{Name: item.Name, Outcome: Untouched}
	}
	began := time.Now()
	for done := 0; done < len(s.items); {
		if err := ctx.Err(); err != nil {
			return result, fmt.Errorf("deadletter: stopped after %d of %d letters: %w", done, len(s.items), context.Cause(ctx))
		}
		if options.PerSecond > 0 && done > 0 {
			turn := began.Add(time.Duration(float64(done) / options.PerSecond * float64(time.Second)))
			if !sleep(ctx, time.Until(turn)) {
				continue
			}
		}
		size := stepSize
		if options.PerSecond > 0 {
			size = min(max(int(options.PerSecond/4), 1), stepSize)
		}
		// One subscription at a time: that is what a store marks.
		end := done + 1
		for end < min(done+size, len(s.items)) && s.items[end].Subscription == s.items[done].Subscription {
			end++
		}
		if err := s.step(ctx, s.items[done:end], result.Items[done:end], state, note); err != nil {
			return result, fmt.Errorf("deadletter: stopped after %d of %d letters: %w", done, len(s.items), err)
		}
		done = end
		if options.Progress != nil {
			options.Progress(Progress{Total: len(s.items), Done: done})
		}
	}
	return result, nil
}

// step marks some letters of one subscription.
func (s *Selection) step(ctx context.Context, items []chosen, results []Item, state driver.DeadLetterState, note string) error {
	outcome := Marked
	if state == driver.DeadLetterDiscarded {
		outcome = Discarded
	}
	var marks []driver.DeadLetterMark
	for _, item := range items {
		if !item.missing {
			marks = append(marks, driver.DeadLetterMark{Key: item.Key, Times: item.times})
		}
	}
	// What is sent is known even if ctx ends meanwhile.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
	defer cancel()
	marked, err := s.letters.store.MarkDeadLetters(ctx, items[0].Subscription, marks, state, note)
	ours := make(map[string]bool, len(marked))
	for _, key := range marked {
		ours[key] = true
	}
	for n, item := range items {
		switch {
		case ours[item.Key]:
			results[n].Outcome = outcome
		case err != nil: // it may have been marked, and is changed then when it is tried again
		case item.missing:
			results[n].Outcome = NotFound
		default:
			results[n].Outcome = Changed
			letter, failure := s.letters.store.GetDeadLetter(ctx, item.Subscription, item.Key)
			if errors.Is(failure, driver.ErrNoDeadLetter) {
				results[n].Outcome = NotFound
			} else if failure != nil {
				err = failure
			}
			results[n].State = letter.State
		}
	}
	return err
}

// answerTime bounds one step, which is not cut off in the middle.
const answerTime = 30 * time.Second

const (
	waitInterval = 250 * time.Millisecond
	// waitLook is how many letters are looked at in one round.
	waitLook = 500
)

// wait looks at the letters that were marked until each has ended.
func (s *Selection) wait(ctx context.Context, result *Result, options *ActOptions) error {
	var pending []int
	for n := range result.Items {
		if result.Items[n].Outcome == Marked {
			result.Items[n].Outcome = Pending
			pending = append(pending, n)
		}
	}
	finished := 0
	for at := 0; len(pending) > 0; {
		if !sleep(ctx, waitInterval) {
			return fmt.Errorf("deadletter: %d of %d retries have not ended: %w", len(pending), len(pending)+finished, context.Cause(ctx))
		}
		left := pending[:0:0]
		// Round and round, some at a time: what nobody handles hides nothing.
		at %= len(pending)
		for n := range pending {
			index := pending[(at+n)%len(pending)]
			if n < waitLook {
				ended, err := s.look(ctx, &result.Items[index], s.items[index].times)
				if err != nil && ctx.Err() == nil {
					return fmt.Errorf("deadletter: %w", err)
				}
				if ended {
					finished++
					continue
				}
			}
			left = append(left, index)
		}
		pending, at = left, waitLook
		if options.Progress != nil {
			options.Progress(Progress{Total: len(s.items), Done: len(s.items), Finished: finished})
		}
	}
	return nil
}

// look reports whether the retry of a letter has ended.
func (s *Selection) look(ctx context.Context, item *Item, times int) (ended bool, err error) {
	letter, err := s.letters.store.GetDeadLetter(ctx, item.Subscription, item.Key)
	switch {
	case errors.Is(err, driver.ErrNoDeadLetter):
		item.Outcome = NotFound
		return true, nil
	case err != nil:
		return false, err
	case letter.Times > times:
		item.Outcome, item.State, item.Err = DiedAgain, letter.State, letter.Err
		return true, nil
	case letter.State == driver.DeadLetterResolved:
		item.Outcome = Handled
		return true, nil
	case letter.State == driver.DeadLetterDiscarded:
		item.Outcome, item.State = Changed, letter.State
		return true, nil
	}
	return false, nil
}

// sleep waits; false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
