package driver

import (
	"context"
	"errors"
	"hash/fnv"
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

	// ListDeadLetters returns letters that match, those that failed last first,
	// at most limit of them, without body and stack. With after, the Cursor of
	// the last one of a page, it goes on behind that.
	ListDeadLetters(ctx context.Context, filter DeadLetterFilter, after string, limit int) ([]StoredDeadLetter, error)

	// GetDeadLetter returns one letter, whole, or ErrNoDeadLetter.
	GetDeadLetter(ctx context.Context, subscription, key string) (StoredDeadLetter, error)

	// MarkDeadLetters moves letters to a state, DeadLetterRetry or
	// DeadLetterDiscarded, with a note for whoever looks later. Only open ones
	// are moved, and those marked for retry that nobody has taken; it returns how
	// many were.
	MarkDeadLetters(ctx context.Context, subscription string, keys []string, state DeadLetterState, note string) (int, error)

	// TakeDeadLetters gives letters that are marked for retry to the caller until
	// the lease ends, at most limit of them, those marked first first, whole. A
	// letter is given to one caller at a time.
	TakeDeadLetters(ctx context.Context, subscription string, limit int, lease time.Duration) ([]StoredDeadLetter, error)

	// ResolveDeadLetter says that a letter that was taken has been handled. One
	// that is open again by now stays so. ErrNoDeadLetter when there is none.
	ResolveDeadLetter(ctx context.Context, subscription, key string) error

	// Durable reports whether letters outlive the process.
	Durable() bool
}

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

// DeadLetterHistory is implemented by stores that keep every change of a letter.
// It may be called at once.
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
