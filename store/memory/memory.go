// Package memory keeps claims and dead letters in the process, for tests and for
// one process that may forget. Nothing survives the process, and no other instance
// sees it: both stores say that they are not durable.
package memory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/claims"
)

// errCursor says that a cursor came from no listing.
var errCursor = errors.New("it comes from no listing")

// Claims is a [driver.Claims] of one process. Make it with [NewClaims].
type Claims = claims.Memory

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

// NewClaims makes a claims store that keeps bound finished keys per subscription,
// the oldest forgotten first; 0 means 100 000.
func NewClaims(bound int) *Claims {
	return claims.New(systemClock{}, cmp.Or(bound, 100_000))
}

// DeadLetters is a [driver.DeadLetterStore] of one process. The zero value is
// empty and ready. All methods may be called at once.
type DeadLetters struct {
	mu      sync.Mutex
	letters map[place]*kept
	marks   int // grows with every mark, for the order of retries
}

type place struct{ subscription, key string }

type kept struct {
	driver.StoredDeadLetter
	marked  int
	until   time.Time // of the lease of the one that has it
	changes []driver.DeadLetterChange
}

// become moves a letter to a state.
func (k *kept) become(state driver.DeadLetterState, note string) {
	k.State, k.ChangedAt = state, time.Now()
	k.changes = append(k.changes, driver.DeadLetterChange{At: k.ChangedAt, State: state, Note: note})
}

var _ driver.DeadLetterStore = (*DeadLetters)(nil)

// PutDeadLetter implements [driver.DeadLetters].
func (d *DeadLetters) PutDeadLetter(_ context.Context, letter driver.DeadLetter) error {
	d.put(letter, false)
	return nil
}

// CollectDeadLetter implements [driver.DeadLetterStore].
func (d *DeadLetters) CollectDeadLetter(_ context.Context, letter driver.DeadLetter) (bool, error) {
	return d.put(letter, true), nil
}

func (d *DeadLetters) put(letter driver.DeadLetter, once bool) (fresh bool) {
	letter.Body, letter.Headers = slices.Clone(letter.Body), slices.Clone(letter.Headers)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.letters == nil {
		d.letters = make(map[place]*kept)
	}
	at := place{letter.Subscription, letter.Key()}
	k := &kept{StoredDeadLetter: driver.StoredDeadLetter{
		DeadLetter: letter, Key: letter.Key(), Times: 1,
		Cursor: letter.FailedAt.UTC().Format(cursorTime) + " " + letter.Subscription + " " + letter.Key(),
	}}
	if before := d.letters[at]; before != nil {
		if once && !before.FailedAt.Before(letter.FailedAt) {
			return false
		}
		k.Times, k.changes = before.Times+1, before.changes
	}
	k.become(driver.DeadLetterOpen, letter.Reason+": "+letter.Err)
	d.letters[at] = k
	return true
}

// DeadLetterChanges implements [driver.DeadLetterHistory].
func (d *DeadLetters) DeadLetterChanges(_ context.Context, subscription, key string) ([]driver.DeadLetterChange, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.letters[place{subscription, key}]; l != nil {
		return slices.Clone(l.changes), nil
	}
	return nil, nil
}

// GroupDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) GroupDeadLetters(_ context.Context, filter driver.DeadLetterFilter, limit int) ([]driver.DeadLetterGroup, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var groups driver.DeadLetterGroups
	for _, l := range d.letters {
		if filter.Match(&l.StoredDeadLetter) {
			groups.Add(&l.StoredDeadLetter)
		}
	}
	return groups.Largest(limit), nil
}

// cursorTime makes cursors sort as times do.
const cursorTime = "2006-01-02T15:04:05.000000000Z"

// ListDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) ListDeadLetters(_ context.Context, filter driver.DeadLetterFilter, after string, limit int) ([]driver.StoredDeadLetter, error) {
	if at, _, _ := strings.Cut(after, " "); after != "" {
		if _, err := time.Parse(cursorTime, at); err != nil {
			return nil, fmt.Errorf("memory: cursor %q: %w", after, errCursor)
		}
	}
	d.mu.Lock()
	var found []driver.StoredDeadLetter
	for _, l := range d.letters {
		if filter.Match(&l.StoredDeadLetter) && (after == "" || l.Cursor < after) {
			found = append(found, l.StoredDeadLetter)
		}
	}
	d.mu.Unlock()
	slices.SortFunc(found, func(a, b driver.StoredDeadLetter) int { return strings.Compare(b.Cursor, a.Cursor) })
	found = found[:min(limit, len(found))]
	for n := range found {
		found[n].Body, found[n].Stack = nil, ""
	}
	return found, nil
}

// GetDeadLetter implements [driver.DeadLetterStore].
func (d *DeadLetters) GetDeadLetter(_ context.Context, subscription, key string) (driver.StoredDeadLetter, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.letters[place{subscription, key}]
	if l == nil {
		return driver.StoredDeadLetter{}, fmt.Errorf("memory: %s of %s: %w", key, subscription, driver.ErrNoDeadLetter)
	}
	return l.StoredDeadLetter, nil
}

// MarkDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) MarkDeadLetters(_ context.Context, subscription string, marks []driver.DeadLetterMark, state driver.DeadLetterState, note string) (marked []string, err error) {
	if state != driver.DeadLetterRetry && state != driver.DeadLetterDiscarded {
		return nil, fmt.Errorf("memory: a letter cannot be marked as %q, only for retry or discarded", state)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range marks {
		l := d.letters[place{subscription, m.Key}]
		if l == nil || l.State != driver.DeadLetterOpen && (l.State != driver.DeadLetterRetry || !l.until.IsZero()) || m.Times != 0 && m.Times != l.Times {
			continue
		}
		d.marks++
		l.Note, l.marked = note, d.marks
		l.become(state, note)
		marked = append(marked, m.Key)
	}
	return marked, nil
}

// MarkedDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) MarkedDeadLetters(context.Context) (subscriptions []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.letters {
		if l.State == driver.DeadLetterRetry && !slices.Contains(subscriptions, l.Subscription) {
			subscriptions = append(subscriptions, l.Subscription)
		}
	}
	return subscriptions, nil
}

// TakeDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) TakeDeadLetters(_ context.Context, subscription string, owns func(*driver.StoredDeadLetter) bool, limit int, lease time.Duration) ([]driver.StoredDeadLetter, error) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	var free []*kept
	for _, l := range d.letters {
		if l.Subscription == subscription && l.State == driver.DeadLetterRetry && l.until.Before(now) {
			free = append(free, l)
		}
	}
	slices.SortFunc(free, func(a, b *kept) int { return cmp.Compare(a.marked, b.marked) })
	var taken []driver.StoredDeadLetter
	for _, l := range free {
		if len(taken) >= limit {
			break
		}
		head := l.StoredDeadLetter
		head.Body, head.Stack = nil, ""
		if owns != nil && !owns(&head) {
			continue
		}
		letter := l.StoredDeadLetter
		letter.Interrupted = !l.until.IsZero()
		l.until = now.Add(lease)
		taken = append(taken, letter)
	}
	return taken, nil
}

// LeaseDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) LeaseDeadLetters(_ context.Context, subscription string, keys []string, lease time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, key := range keys {
		l := d.letters[place{subscription, key}]
		if l == nil || l.State != driver.DeadLetterRetry || l.until.IsZero() {
			continue
		}
		l.until = time.Time{}
		if lease > 0 {
			l.until = time.Now().Add(lease)
		}
	}
	return nil
}

// ResolveDeadLetter implements [driver.DeadLetterStore].
func (d *DeadLetters) ResolveDeadLetter(_ context.Context, subscription, key string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.letters[place{subscription, key}]
	if l == nil {
		return fmt.Errorf("memory: %s of %s: %w", key, subscription, driver.ErrNoDeadLetter)
	}
	if l.State == driver.DeadLetterRetry {
		l.until = time.Time{}
		l.become(driver.DeadLetterResolved, "")
	}
	return nil
}

// PruneDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) PruneDeadLetters(_ context.Context, state driver.DeadLetterState, before time.Time, limit int) (pruned int, err error) {
	if state != driver.DeadLetterResolved && state != driver.DeadLetterDiscarded {
		return 0, fmt.Errorf("memory: %q: %w", state, driver.ErrPrune)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for at, l := range d.letters {
		if pruned < limit && l.State == state && l.ChangedAt.Before(before) {
			delete(d.letters, at)
			pruned++
		}
	}
	return pruned, nil
}

// Durable implements [driver.DeadLetterStore].
func (*DeadLetters) Durable() bool { return false }
