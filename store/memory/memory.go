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
	marked int
	until  time.Time // of the lease of the one that has it
}

var _ driver.DeadLetterStore = (*DeadLetters)(nil)

// PutDeadLetter implements [driver.DeadLetters].
func (d *DeadLetters) PutDeadLetter(_ context.Context, letter driver.DeadLetter) error {
	letter.Body, letter.Headers = slices.Clone(letter.Body), slices.Clone(letter.Headers)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.letters == nil {
		d.letters = make(map[place]*kept)
	}
	at := place{letter.Subscription, letter.Key()}
	times := 0
	if before := d.letters[at]; before != nil {
		times = before.Times
	}
	d.letters[at] = &kept{StoredDeadLetter: driver.StoredDeadLetter{
		DeadLetter: letter, Key: letter.Key(), State: driver.DeadLetterOpen, Times: times + 1, ChangedAt: time.Now(),
		Cursor: letter.FailedAt.UTC().Format(cursorTime) + " " + letter.Subscription + " " + letter.Key(),
	}}
	return nil
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
func (d *DeadLetters) MarkDeadLetters(_ context.Context, subscription string, keys []string, state driver.DeadLetterState, note string) (int, error) {
	if state != driver.DeadLetterRetry && state != driver.DeadLetterDiscarded {
		return 0, fmt.Errorf("memory: a letter cannot be marked as %q, only for retry or discarded", state)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	marked := 0
	for _, key := range keys {
		l := d.letters[place{subscription, key}]
		if l == nil || l.State != driver.DeadLetterOpen && (l.State != driver.DeadLetterRetry || !l.until.IsZero()) {
			continue
		}
		d.marks++
		l.State, l.Note, l.ChangedAt, l.marked = state, note, time.Now(), d.marks
		marked++
	}
	return marked, nil
}

// TakeDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) TakeDeadLetters(_ context.Context, subscription string, limit int, lease time.Duration) ([]driver.StoredDeadLetter, error) {
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
	for _, l := range free[:min(limit, len(free))] {
		l.until = now.Add(lease)
		taken = append(taken, l.StoredDeadLetter)
	}
	return taken, nil
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
		l.State, l.ChangedAt = driver.DeadLetterResolved, time.Now()
	}
	return nil
}

// Durable implements [driver.DeadLetterStore].
func (*DeadLetters) Durable() bool { return false }
