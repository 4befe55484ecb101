package outbox

import (
	"context"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Place is a place in one part of the log.
type Place struct {
	Part
	Position int64
}

// Entry is one numbered row.
type Entry struct {
	Place
	Row Row
}

// Progress is how far a subscription has come in one part.
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
	// Declarations lie beside the positions. ForgetType is driver.ErrInUse while an
	// instance owns a part of the channel and no other type of it is declared.
	driver.Declarations

	// Append stores rows in a transaction of its own, in order, and wakes
	// everybody. An error that wraps inbox.ErrCommitUnknown leaves open whether
	// they are stored; after any other nothing is.
	Append(ctx context.Context, rows []Row) error

	// Number moves committed rows of the outbox into the log, part by part in the
	// order of Sequence, at most limit, and wakes everybody when there were any.
	// Parts that another process numbers at this moment are left out.
	Number(ctx context.Context, limit int) (numbered int, err error)

	// Read returns entries from each place on, by channel, slot and position: at
	// most each of one part, and about limit of all. more says that a part of which
	// there are entries goes on behind them.
	Read(ctx context.Context, from []Place, each, limit int) (entries []Entry, more bool, err error)

	// Begin makes channels known to a subscription, unless they are: in every slot
	// of a channel that is new to it, it begins at the oldest entry there is, at the
	// time given, or (at the zero time, with now) behind everything that is
	// committed, numbered or not. It returns the channels that were new. Channels
	// that it knows and that are not named stay as they are.
	Begin(ctx context.Context, subscription string, channels []string, start driver.StartAt) (begun []string, err error)

	// Progress returns where a subscription is in some parts, as far as it knows
	// their channels.
	Progress(ctx context.Context, subscription string, parts []Part) ([]Progress, error)

	// Commit stores progress of parts that the holder has at the epochs of the
	// leases ([Part.Name]), one for each, in one step. It returns the leases for which that was
	// refused because the holder does not have them any more.
	Commit(ctx context.Context, group, holder, subscription string, leases []driver.Lease, progress []Progress) (refused []driver.Lease, err error)

	// Trim deletes at most limit entries, the oldest of each part, that were stored
	// longer than keep ago and that every subscription which knows the channel has
	// passed, whether an instance of it runs that has the channel or not.
	Trim(ctx context.Context, keep time.Duration, limit int) (deleted int, err error)

	// Wake returns a channel that gets a value soon after anybody has appended or
	// numbered rows; values may be missed or for nothing. It is closed when ctx
	// ends. Nil means that the store cannot tell: then there is polling only.
	Wake(ctx context.Context) <-chan struct{}

	// Check asks whether the database answers and has the schema.
	Check(ctx context.Context) error
}
