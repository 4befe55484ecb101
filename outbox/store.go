package outbox

import (
	"context"
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

// Store is what an outbox needs of a database; store/postgres, store/mysql and
// store/sqlite have it. TX is the transaction that applications of that store
// use. All methods may be called at once; those with a transaction as the
// transaction allows.
type Store[TX any] interface {
	Queue

	// Add inserts rows in the caller's transaction, in order, and makes the
	// store tell waiting relays when it commits, where it can. An error of a
	// transaction that is over says so.
	Add(ctx context.Context, tx TX, rows []Row) error

	// Serialize makes writers of one aggregate wait for each other until their
	// transactions end, so that the order of rows is the order of commits.
	Serialize(ctx context.Context, tx TX, channel, aggregateID string) error
}

// Queue is what a relay needs of a store. All methods may be called at once.
type Queue interface {
	driver.Leases

	// Pending returns committed rows of the slots that are not sent, at most
	// limit, by Sequence, without those of aggregates that are held. It never
	// waits for a transaction of somebody else.
	Pending(ctx context.Context, slots []int, limit int) ([]Row, error)

	// Sent takes rows out of the hot set: one statement, with effect only for
	// rows whose slot the holder has at the epoch of the lease (named by
	// [LeaseName]). It returns how many that were.
	Sent(ctx context.Context, group, holder string, leases []driver.Lease, rows []Row) (int, error)

	// Hold records that a row could not be sent, and holds its aggregate back
	// for a while. It has effect only where Sent would.
	Hold(ctx context.Context, group, holder string, lease driver.Lease, row Row, failure string, wait time.Duration) error

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
