package outbox

import (
	"context"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Place is a place in one slot of the log.
type Place struct {
	Slot     int
	Position int64
}

// Entry is one numbered row.
type Entry struct {
	Place
	Row Row
	// Foreign says that the row is of a channel that was not asked for; of Row
	// only Channel is filled.
	Foreign bool
}

// Progress is how far a subscription has come in one slot.
type Progress struct {
	// Place is the oldest one that is not finished.
	Place
	// Finished describes finished places beyond it, as text of the driver's.
	Finished string
	// Since is when the subscription was first seen, if rows that were stored
	// before are not for it, else the zero time.
	Since time.Time
}

// Log is an outbox that subscriptions read themselves: what the driver over the
// database (package driver/sqldb) needs of a store. All methods may be called at once.
// Times are the store's own.
type Log interface {
	driver.Leases
	driver.DeadLetters

	// Append stores rows in a transaction of its own, in order, and wakes
	// everybody. An error that wraps inbox.ErrCommitUnknown leaves open whether
	// they are stored; after any other nothing is.
	Append(ctx context.Context, rows []Row) error

	// Number moves committed rows of the outbox into the log, slot by slot in the
	// order of Sequence, at most limit, and wakes everybody when there were any.
	// Slots that another process numbers at this moment are left out.
	Number(ctx context.Context, limit int) (numbered int, err error)

	// Read returns entries from each place on, by slot and position, at most limit
	// of each slot. Entries of other channels are there, as Foreign.
	Read(ctx context.Context, from []Place, channels []string, limit int) ([]Entry, error)

	// Begin makes a subscription known, unless it is: in every slot it begins at
	// the oldest entry there is, at the time given, or (at the zero time, with
	// now) behind everything that is committed, numbered or not. It reports
	// whether it was known.
	Begin(ctx context.Context, subscription string, start driver.StartAt) (known bool, err error)

	// Progress returns where a subscription is in some slots.
	Progress(ctx context.Context, subscription string, slots []int) ([]Progress, error)

	// Commit stores progress of slots that the holder has at the epochs of the
	// leases, one for each, in one step. It returns the leases for which that was
	// refused because the holder does not have them any more.
	Commit(ctx context.Context, group, holder, subscription string, leases []driver.Lease, progress []Progress) (refused []driver.Lease, err error)

	// Trim deletes at most limit entries, the oldest of each slot, that every known
	// subscription has passed and that were stored longer than keep ago.
	Trim(ctx context.Context, keep time.Duration, limit int) (deleted int, err error)

	// Wake returns a channel that gets a value soon after anybody has appended or
	// numbered rows; values may be missed or for nothing. It is closed when ctx
	// ends. Nil means that the store cannot tell: then there is polling only.
	Wake(ctx context.Context) <-chan struct{}

	// Check asks whether the database answers and has the schema.
	Check(ctx context.Context) error
}
