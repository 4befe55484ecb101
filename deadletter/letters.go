package deadletter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
)

// Filter says which letters are meant. An empty field allows all.
type Filter = driver.DeadLetterFilter

// Group is how many letters failed in the same way.
type Group = driver.DeadLetterGroup

// Options configures [New]. Nil means the defaults.
type Options struct {
	// By is who acts, for the history: a person or a program.
	By string
}

// Letters is the users' face over a store of dead letters. Make it with [New]. All
// methods may be called at once.
type Letters struct {
	store driver.DeadLetterStore
	by    string
}

// New makes the face of a store.
func New(store driver.DeadLetterStore, options *Options) (*Letters, error) {
	if store == nil {
		return nil, errors.New("deadletter: the store is nil")
	}
	l := &Letters{store: store}
	if options != nil {
		l.by = options.By
	}
	return l, nil
}

// Letter is one letter in a list.
type Letter struct {
	driver.StoredDeadLetter
	// Fingerprint is the same for letters that failed in the same way but for
	// numbers.
	Fingerprint string
}

// Page is a part of a list.
type Page struct {
	Letters []Letter
	// Next continues behind this page; "" when there is no more.
	Next string
}

// MostOnPage bounds a page.
const MostOnPage = 1000

// List returns letters that match, those that failed last first, without bodies and
// stacks: at most limit of them, 1 to [MostOnPage]. After is the Next of the page
// before, or "".
func (l *Letters) List(ctx context.Context, filter Filter, after string, limit int) (Page, error) {
	if limit < 1 || limit > MostOnPage {
		return Page{}, fmt.Errorf("deadletter: a page of %d letters: 1 to %d may be asked for", limit, MostOnPage)
	}
	found, err := l.store.ListDeadLetters(ctx, filter, after, limit+1)
	if err != nil {
		return Page{}, fmt.Errorf("deadletter: %w", err)
	}
	var page Page
	if len(found) > limit {
		found = found[:limit]
		page.Next = found[limit-1].Cursor
	}
	page.Letters = make([]Letter, len(found))
	for n := range found {
		page.Letters[n] = Letter{found[n], driver.Fingerprint(found[n].Err)}
	}
	return page, nil
}

// Groups counts letters that match by subscription, type and fingerprint, the
// largest groups first, at most limit of them.
func (l *Letters) Groups(ctx context.Context, filter Filter, limit int) ([]Group, error) {
	groups, err := l.store.GroupDeadLetters(ctx, filter, limit)
	if err != nil {
		return nil, fmt.Errorf("deadletter: %w", err)
	}
	return groups, nil
}

// Details is everything that is known of one letter: its raw bytes and headers are
// Body and Headers, its chain of errors is Err, the stack of a panic is Stack.
type Details struct {
	Letter
	// Envelope is what the raw bytes say, or nil with EnvelopeErr when they cannot
	// be read.
	Envelope    *codec.Envelope
	EnvelopeErr error
	// History is what happened to the letter, the oldest first.
	History []driver.DeadLetterChange
}

// Show returns one letter, or an error that wraps driver.ErrNoDeadLetter.
func (l *Letters) Show(ctx context.Context, subscription, key string) (*Details, error) {
	letter, err := l.store.GetDeadLetter(ctx, subscription, key)
	if err != nil {
		return nil, fmt.Errorf("deadletter: %w", err)
	}
	d := &Details{Letter: Letter{letter, driver.Fingerprint(letter.Err)}}
	if d.History, err = l.store.DeadLetterChanges(ctx, subscription, key); err != nil {
		return nil, fmt.Errorf("deadletter: %w", err)
	}
	envelope, err := decode(&letter.DeadLetter)
	if err != nil {
		d.EnvelopeErr = err
	} else {
		d.Envelope = &envelope
	}
	return d, nil
}

// Prune deletes letters that have been resolved or discarded for at least age, with
// their history, and returns how many. It is the only way in which a letter goes.
func (l *Letters) Prune(ctx context.Context, state driver.DeadLetterState, age time.Duration) (pruned int, err error) {
	if age < 0 {
		return 0, fmt.Errorf("deadletter: prune: the age is %v: it must not be negative", age)
	}
	const atOnce = 1000
	before := time.Now().Add(-age)
	for {
		n, err := l.store.PruneDeadLetters(ctx, state, before, atOnce)
		pruned += n
		if err != nil {
			return pruned, fmt.Errorf("deadletter: %w", err)
		}
		if n < atOnce {
			return pruned, nil
		}
	}
}

// position is where a letter lay, for what is derived from it.
type position string

// Position implements [driver.Ref].
func (p position) Position() string { return string(p) }

// decode reads the raw bytes as the engine does.
func decode(l *driver.DeadLetter) (codec.Envelope, error) {
	return codec.Decode(&driver.Delivery{
		Message: driver.Message{Channel: l.Channel, Type: l.Type, Key: l.AggregateID, ID: l.ID, Headers: l.Headers, Body: l.Body},
		Ref:     position(cmp.Or(l.Position, l.ID)),
	})
}
