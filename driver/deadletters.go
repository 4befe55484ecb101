package driver

import (
	"cmp"
	"context"
	"errors"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"time"
)

// DeadLetterStore keeps dead letters where they can be listed, looked at, retried
// and discarded. Nothing expires by itself. All methods may be called at once.
type DeadLetterStore interface {
	// PutDeadLetter stores a letter as open. The same subscription and key again
	// is one letter: its failure is replaced, Times grows, and it is open again
	// whatever it was.
	DeadLetters

	// DeadLetterChanges tells the history of a letter.
	DeadLetterHistory

	// CollectDeadLetter stores a letter that was put into the place of a driver,
	// unless the store knows of that failure: of the same subscription and key,
	// with the same FailedAt or a later one. It reports whether it was stored.
	CollectDeadLetter(ctx context.Context, letter DeadLetter) (fresh bool, err error)

	// ListDeadLetters returns letters that match, those that failed last first,
	// at most limit of them, without body and stack. With after, the Cursor of
	// the last one of a page, it goes on behind that.
	ListDeadLetters(ctx context.Context, filter DeadLetterFilter, after string, limit int) ([]StoredDeadLetter, error)

	// GroupDeadLetters counts letters that match by subscription, type and
	// fingerprint, the largest groups first, at most limit of them.
	GroupDeadLetters(ctx context.Context, filter DeadLetterFilter, limit int) ([]DeadLetterGroup, error)

	// GetDeadLetter returns one letter, whole, or ErrNoDeadLetter.
	GetDeadLetter(ctx context.Context, subscription, key string) (StoredDeadLetter, error)

	// MarkDeadLetters moves letters to a state, DeadLetterRetry or
	// DeadLetterDiscarded, with a note for whoever looks later. Only open ones
	// are moved, and those marked for retry that nobody has taken; it returns the
	// keys of those that were.
	MarkDeadLetters(ctx context.Context, subscription string, marks []DeadLetterMark, state DeadLetterState, note string) (marked []string, err error)

	// MarkedDeadLetters returns the subscriptions that have letters marked for
	// retry, taken or not.
	MarkedDeadLetters(ctx context.Context) (subscriptions []string, err error)

	// TakeDeadLetters gives letters that are marked for retry to the caller until
	// the lease ends, at most limit of them, those marked first first, whole. A
	// letter is given to one caller at a time, and only to one whose owns says
	// true; nil owns all. owns is called with letters that have neither body nor
	// stack, and must not call the store.
	TakeDeadLetters(ctx context.Context, subscription string, owns func(*StoredDeadLetter) bool, limit int, lease time.Duration) ([]StoredDeadLetter, error)

	// LeaseDeadLetters prolongs the leases of letters that were taken, from now
	// on; 0 gives them back, still marked. Others are left alone.
	LeaseDeadLetters(ctx context.Context, subscription string, keys []string, lease time.Duration) error

	// ResolveDeadLetter says that a letter that was taken has been handled. One
	// that is open again by now stays so. ErrNoDeadLetter when there is none.
	ResolveDeadLetter(ctx context.Context, subscription, key string) error

	// PruneDeadLetters deletes letters, and their history, that have been in a
	// state, DeadLetterResolved or DeadLetterDiscarded, since before a time: at
	// most limit of them. It returns how many it deleted.
	PruneDeadLetters(ctx context.Context, state DeadLetterState, before time.Time, limit int) (int, error)

	// Durable reports whether letters outlive the process.
	Durable() bool
}

// DeadLetterMark names a letter that is to be marked.
type DeadLetterMark struct {
	Key string
	// Times is how often it had become a dead letter when it was looked at: one
	// that did so again since is not marked. 0 marks it whatever it is.
	Times int
}

// DeadLetterGroup is how many letters of one subscription and type failed in the
// same way.
type DeadLetterGroup struct {
	Subscription string
	Type         string
	Fingerprint  string
	Count        int
	First, Last  time.Time // FailedAt of the oldest and the newest
	Err          string    // of one of them
}

// DeadLetterGroups gathers groups for a store that cannot count by itself. The
// zero value is empty.
type DeadLetterGroups struct {
	groups map[DeadLetterGroup]*DeadLetterGroup
}

// Add counts a letter.
func (g *DeadLetterGroups) Add(l *StoredDeadLetter) {
	if g.groups == nil {
		g.groups = make(map[DeadLetterGroup]*DeadLetterGroup)
	}
	name := DeadLetterGroup{Subscription: l.Subscription, Type: l.Type, Fingerprint: Fingerprint(l.Err)}
	group := g.groups[name]
	if group == nil {
		group = new(name)
		group.First, group.Err = l.FailedAt, l.Err
		g.groups[name] = group
	}
	group.Count++
	if l.FailedAt.Before(group.First) {
		group.First = l.FailedAt
	}
	if l.FailedAt.After(group.Last) {
		group.Last = l.FailedAt
	}
	group.Err = min(group.Err, l.Err)
}

// Largest returns the groups, the largest first, at most limit of them.
func (g *DeadLetterGroups) Largest(limit int) []DeadLetterGroup {
	all := make([]DeadLetterGroup, 0, len(g.groups))
	for _, group := range g.groups {
		all = append(all, *group)
	}
	slices.SortFunc(all, func(a, b DeadLetterGroup) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Subscription, b.Subscription), cmp.Compare(a.Type, b.Type), cmp.Compare(a.Fingerprint, b.Fingerprint))
	})
	return all[:min(max(limit, 0), len(all))]
}

// DeadLetterKeeper is implemented by a driver whose own place for dead letters is a
// store. Nil when it is none.
type DeadLetterKeeper interface {
	DeadLetterStore() DeadLetterStore
}

// DeadLetterReader is implemented by a driver whose own place for dead letters is a
// topic or queue that is read from one end.
type DeadLetterReader interface {
	// ReadDeadLetters hands what lies in that place for the subscriptions to keep,
	// batch by batch, until ctx ends; then it returns nil. What keep returned nil for
	// is read; after an error of keep the same comes again, and it may come again
	// after a crash. Letters have at least subscription, channel, FailedAt, and a
	// type or an id. Several instances share the work. Outages are waited out;
	// another error is for good.
	ReadDeadLetters(ctx context.Context, subscriptions []Subscription, keep func(ctx context.Context, letters []DeadLetter) error) error
}

// Locator is implemented by a consumer of a driver with [Features.Sources]. It
// may be called at once.
type Locator interface {
	// SourceOf returns the name of the source whose owner handles an event of that
	// channel and key; position is where it lay when it failed, on this broker or,
	// after a change of drivers, on another. "" when it lies in none: then any
	// instance may handle it.
	SourceOf(channel, key, position string) string
}

// ErrPrune says that letters of a state are never pruned.
var ErrPrune = errors.New("tidings: only resolved and discarded dead letters are pruned")

// ErrNoDeadLetter says that a store has no letter of that subscription and key.
var ErrNoDeadLetter = errors.New("tidings: no such dead letter")

// DeadLetterState is what became of a dead letter.
type DeadLetterState string

// The states of a dead letter.
const (
	DeadLetterOpen      DeadLetterState = "open"
	DeadLetterRetry     DeadLetterState = "retry"     // marked, and perhaps taken
	DeadLetterResolved  DeadLetterState = "resolved"  // a retry handled it
	DeadLetterDiscarded DeadLetterState = "discarded" // an operator gave it up
)

// StoredDeadLetter is a dead letter with what happened to it since.
type StoredDeadLetter struct {
	DeadLetter
	// Key names it within its subscription, see [DeadLetter.Key].
	Key   string
	State DeadLetterState
	// Times is how often it became a dead letter.
	Times int
	// Note is why it was marked, ChangedAt when its state changed last.
	Note      string
	ChangedAt time.Time
	// Cursor continues a listing behind this letter.
	Cursor string
	// Interrupted says of a letter that is taken that somebody had it before and
	// let the lease end: the process may have died of it.
	Interrupted bool
}

// DeadLetterFilter says which letters a listing has. An empty field allows all.
type DeadLetterFilter struct {
	Subscription string
	Type         string
	State        DeadLetterState
	Fingerprint  string // of the failure, see [Fingerprint]
	Since, Until time.Time
}

// Match reports whether a letter is one of those that are asked for.
func (f *DeadLetterFilter) Match(l *StoredDeadLetter) bool {
	return (f.Subscription == "" || f.Subscription == l.Subscription) &&
		(f.Type == "" || f.Type == l.Type) &&
		(f.State == "" || f.State == l.State) &&
		(f.Fingerprint == "" || f.Fingerprint == Fingerprint(l.Err)) &&
		(f.Since.IsZero() || !l.FailedAt.Before(f.Since)) &&
		(f.Until.IsZero() || l.FailedAt.Before(f.Until))
}

// Key names a letter within its subscription: event type and id. An event that
// could not be read has no type; its id is derived from where it lay.
func (l *DeadLetter) Key() string { return l.Type + "/" + l.ID }

// Fingerprint is the same for failures that differ only in numbers: 16
// hexadecimal digits of the text without what looks like a number or an id.
func Fingerprint(failure string) string {
	h := fnv.New64a()
	for _, word := range strings.FieldsFunc(failure, func(r rune) bool { return strings.ContainsRune(" \t\n:,;()[]{}\"'`=/", r) }) {
		if !strings.ContainsAny(word, "0123456789") {
			_, _ = h.Write([]byte(word))
		}
		_, _ = h.Write([]byte{' '})
	}
	text := strconv.FormatUint(h.Sum64(), 16)
	return strings.Repeat("0", 16-len(text)) + text
}

// DeadLetterHistory keeps every change of a letter. It may be called at once.
type DeadLetterHistory interface {
	// DeadLetterChanges returns what happened to a letter, the oldest first;
	// nothing for a letter that is not there.
	DeadLetterChanges(ctx context.Context, subscription, key string) ([]DeadLetterChange, error)
}

// DeadLetterChange is one change of a dead letter. The note of one that was put
// is its reason and failure.
type DeadLetterChange struct {
	At    time.Time
	State DeadLetterState
	Note  string
}
