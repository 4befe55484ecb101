package outbox

import (
	"context"
	"errors"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Row is one event in the outbox. Its columns are a superset of those that
// Debezium's outbox event router reads by default
// (https://debezium.io/documentation/reference/stable/transformations/outbox-event-router.html):
// id, aggregatetype, aggregateid, type and payload.
type Row struct {
	// Sequence is the order of insertion, given by the store. It is not the
	// order of commits: see [Box.Serialize].
	Sequence int64
	// Slot is the hash of channel and aggregate id, 0 to Slots-1: what relays
	// divide among themselves.
	Slot int
	// ID is the event's, column id.
	ID string
	// Channel is column aggregatetype.
	Channel string
	// AggregateID is column aggregateid.
	AggregateID string
	// Type is the event type, column type.
	Type string
	// Headers travel beside the payload.
	Headers driver.Headers
	// Payload is the complete wire value. A row that somebody else inserted may
	// hold the bare payload: the relay wraps it from its columns.
	Payload []byte
	// CreatedAt is the store's time of insertion.
	CreatedAt time.Time
	// Attempts is how often sending has failed, and Failure how the last time.
	Attempts int
	Failure  string
}

// Slots is how many slots there are. It is part of the stored format.
const Slots = 64

// Status is what an outbox holds.
type Status struct {
	// Backlog counts rows that are not sent.
	Backlog int64
	// Oldest is how long the oldest of them has waited, by the store's clock.
	Oldest time.Duration
	// Held counts aggregates whose first row cannot be sent.
	Held int64
	// Rate is how many rows a second the relay of this process has sent in the
	// last minute. A store does not know it.
	Rate float64
}

// Refused is a row that could not be sent.
type Refused struct {
	Row     Row
	Failure string
	// Wait is how long its aggregate is held back.
	Wait time.Duration
}

// Held is an aggregate whose first row was refused.
type Held struct {
	// Row is that row, with how often and how it failed.
	Row Row
	// Wait is how long it still is until the relay tries it again, 0 when it does
	// so at its next look.
	Wait time.Duration
}

// Discarded is a row that an operator took out instead of sending it.
type Discarded struct {
	Row    Row
	At     time.Time
	Reason string
}

// ErrNotHeld says of a row that it is not one that was refused: it is sent,
// discarded, or has not been tried.
var ErrNotHeld = errors.New("outbox: the event is not held")

// Operations is what people do about rows that the broker refuses. All methods
// may be called at once, and while relays run.
type Operations interface {
	// Held lists the aggregates that are held back, by the sequence of their
	// first row: those beyond after, at most limit.
	Held(ctx context.Context, after int64, limit int) ([]Held, error)

	// Retry lets the relay try a held row at its next look, or returns an error
	// that wraps [ErrNotHeld].
	Retry(ctx context.Context, sequence int64) error

	// Discard moves a held row to those that were discarded, with a reason, which
	// must not be empty; what is behind it in its aggregate goes on. The error
	// wraps [ErrNotHeld] when it is not held, or not any more. A relay that sends
	// the row at this very moment may deliver it all the same.
	Discard(ctx context.Context, sequence int64, reason string) error

	// Discarded lists what was discarded, by sequence: what is beyond after, at
	// most limit. Nothing deletes it.
	Discarded(ctx context.Context, after int64, limit int) ([]Discarded, error)
}

// Store is what an outbox needs of a database; store/postgres, store/mysql and
// store/sqlite have it. TX is the transaction that applications of that store
// use. All methods may be called at once; those with a transaction as the
// transaction allows.
type Store[TX any] interface {
	Queue
	Operations

	// Add inserts rows in the caller's transaction, in order, and makes the
	// store tell waiting relays when it commits, where it can. An error of a
	// transaction that is over says so.
	Add(ctx context.Context, tx TX, rows []Row) error

	// Serialize makes writers of one aggregate wait for each other until their
	// transactions end, so that the order of rows is the order of commits.
	Serialize(ctx context.Context, tx TX, channel, aggregateID string) error
}

// Look is what a relay wants to see of an outbox.
type Look struct {
	// Slots whose rows are wanted: of each the first ones, at most Each, and at
	// most Limit of all.
	Slots       []int
	Each, Limit int
	// Except are channels whose rows are passed over.
	Except []string
}

// Queue is what a relay needs of a store. All methods may be called at once.
type Queue interface {
	driver.Leases

	// Pending returns committed rows that are not sent, by Sequence, without those
	// of aggregates that are held. It never waits for a transaction of somebody
	// else.
	Pending(ctx context.Context, look Look) ([]Row, error)

	// Sent takes rows out of the hot set: one statement, with effect only for
	// rows whose slot the holder has at the epoch of the lease (named by
	// [LeaseName]). It returns how many that were.
	Sent(ctx context.Context, group, holder string, leases []driver.Lease, rows []Row) (int, error)

	// Hold records that rows could not be sent, in one step, and holds their
	// aggregates back. It has effect only where Sent would.
	Hold(ctx context.Context, group, holder string, leases []driver.Lease, refused []Refused) error

	// Status counts. It may cost a scan of the rows that are not sent, not more.
	Status(ctx context.Context) (Status, error)

	// Wake returns a channel that gets a value soon after rows were committed by
	// anybody, and is closed when ctx ends; values may be missed and may be
	// given for nothing. Nil means that the store cannot: then there is polling
	// only.
	Wake(ctx context.Context) <-chan struct{}

	// Clean deletes at most limit rows that were sent longer than keep ago and
	// returns how many it deleted.
	Clean(ctx context.Context, keep time.Duration, limit int) (int, error)
}
