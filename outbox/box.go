package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// Box is an outbox: it stores events in transactions and, beside the bus, relays
// them. Make it with [New]. All methods may be called at once.
type Box[TX any] struct {
	store Store[TX]
	relay *Relay // nil: somebody else relays, or nobody has to
}

// New makes an outbox in a store. Its relay is added to the bus and runs while the
// bus does, unless Options.WithoutRelay says that another process relays, or the
// bus's driver reads the outbox of its database itself.
//
// The error has every complaint: about the options, about a bus that runs
// already, about a driver that takes no encoded events (in memory).
func New[TX any](bus *tidings.Bus, store Store[TX], options *Options) (*Box[TX], error) {
	o := options.withDefaults()
	errs := o.complaints()
	switch {
	case bus == nil:
		errs = append(errs, errors.New("the bus is nil"))
	case bus.Features().Values:
		errs = append(errs, fmt.Errorf("driver %s takes no encoded events: use sqlite or postgres, or a broker", bus.DriverName()))
	}
	if store == nil {
		errs = append(errs, errors.New("the store is nil: pass one of store/postgres, store/mysql, store/sqlite"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	box := &Box[TX]{store: store}
	if o.WithoutRelay || bus.Features().Outbox {
		return box, nil
	}
	var err error
	if box.relay, err = NewRelay(store, bus.Forward, &o); err != nil {
		return nil, err
	}
	if err := bus.Add(box.relay); err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	return box, nil
}

// In returns the outlet of one open transaction, for [tidings.Module.Through].
// What is put there is sent when the transaction commits, and forgotten when it
// does not. It may be used where the transaction may.
func (b *Box[TX]) In(tx TX) tidings.Outlet { return inTransaction[TX]{b, tx} }

// Serialize makes writers of one aggregate wait for each other until their
// transactions end, so that the order of their events is the order of their
// commits. It is called before the first event of the aggregate is put, and is
// not needed where the transaction has locked the aggregate's row.
func (b *Box[TX]) Serialize(ctx context.Context, tx TX, channel, aggregateID string) error {
	if isNil(tx) {
		return fmt.Errorf("outbox: serialize %s %s: %w", channel, aggregateID, ErrNoTransaction)
	}
	return b.store.Serialize(ctx, tx, channel, aggregateID)
}

// Status counts what is not sent. It asks the database.
func (b *Box[TX]) Status(ctx context.Context) (Status, error) {
	status, err := b.store.Status(ctx)
	if err == nil && b.relay != nil {
		status.Rate = b.relay.Rate()
	}
	return status, err
}

// Held lists the aggregates whose first event the broker refused, by the sequence
// of that event: those beyond after, at most limit. See [Operations].
func (b *Box[TX]) Held(ctx context.Context, after int64, limit int) ([]Held, error) {
	return b.store.Held(ctx, after, limit)
}

// Retry lets the relay try a held event at once; the error wraps [ErrNotHeld]
// when there is none with that sequence.
func (b *Box[TX]) Retry(ctx context.Context, sequence int64) error {
	err := b.store.Retry(ctx, sequence)
	if err == nil {
		b.Wake()
	}
	return err
}

// Discard takes a held event out, for a reason that is kept with it; what is
// behind it in its aggregate goes on. See [Operations].
func (b *Box[TX]) Discard(ctx context.Context, sequence int64, reason string) error {
	err := b.store.Discard(ctx, sequence, reason)
	if err == nil {
		b.Wake()
	}
	return err
}

// Discarded lists what was discarded, by sequence: what is beyond after, at most
// limit.
func (b *Box[TX]) Discarded(ctx context.Context, after int64, limit int) ([]Discarded, error) {
	return b.store.Discarded(ctx, after, limit)
}

// Wake makes the relay of this process look at once, for stores that cannot
// announce a commit: it is called after one.
func (b *Box[TX]) Wake() {
	if b.relay != nil {
		b.relay.wakeAll()
	}
}

// ErrNoTransaction says that events were to be stored without a transaction.
var ErrNoTransaction = errors.New("outbox: there is no open transaction")

type inTransaction[TX any] struct {
	box *Box[TX]
	tx  TX
}

// Put implements [tidings.Outlet].
func (t inTransaction[TX]) Put(ctx context.Context, messages []driver.Message) error {
	if isNil(t.tx) {
		return ErrNoTransaction
	}
	rows := make([]Row, len(messages))
	for n, m := range messages {
		rows[n] = RowOf(m)
	}
	return t.box.store.Add(ctx, t.tx, rows)
}

func isNil[TX any](tx TX) bool {
	var zero TX
	return any(tx) == any(zero)
}
