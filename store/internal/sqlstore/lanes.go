package sqlstore

import (
	"cmp"
	"context"
	"fmt"
	"sync"

	"github.com/tidings-go/tidings/driver"
)

// Lanes is a [driver.LaneStore] over a store. All methods may be called at once.
type Lanes struct{ *base }

// Lanes returns the parked events over this store.
func (b *base) Lanes() driver.LaneStore { return &Lanes{b} }

var _ driver.LaneStore = (*Lanes)(nil)

// first is the condition that a row is the oldest of its lane.
const first = "NOT EXISTS (SELECT 1 FROM {parked} q WHERE q.subscription = p.subscription AND q.channel = p.channel AND q.lane_key = p.lane_key AND q.number < p.number)"

// Own implements [driver.Lanes].
func (l *Lanes) Own(ctx context.Context, subscription, source string) (driver.Ownership, []driver.Lane, error) {
	if err := l.ready(ctx, l.pool()); err != nil {
		return driver.Ownership{}, nil, err
	}
	owner := driver.Ownership{Subscription: subscription, Source: source}
	var err error
	if owner.Epoch, err = l.advance(ctx, "lane_owners", "epoch", subscription, source); err != nil {
		return driver.Ownership{}, nil, l.fail(err, "own the parked events of %s %s", subscription, source)
	}
	var lanes []driver.Lane
	// Nobody adds to them any more but this owner.
	err = l.pool().Each(ctx, "SELECT p.channel, p.lane_key FROM {parked} p WHERE p.subscription = $1 AND p.source = $2 AND "+first, []any{subscription, source}, func(rows Rows) error {
		var lane driver.Lane
		err := rows.Scan(&lane.Channel, &lane.Key)
		lanes = append(lanes, lane)
		return err
	})
	return owner, lanes, l.fail(err, "read the parked lanes of %s %s", subscription, source)
}

// owned runs fn in a transaction in which the ownership lasts.
func (l *Lanes) owned(ctx context.Context, owner driver.Ownership, what string, fn func(ctx context.Context, run Statements) error) error {
	err := l.atomically(ctx, func(ctx context.Context, run Statements) error {
		var epoch int64
		_, err := run.One(ctx, "SELECT epoch FROM {lane_owners} WHERE subscription = $1 AND source = $2"+l.dialect.ForShare, []any{owner.Subscription, owner.Source}, &epoch)
		if err != nil {
			return err
		}
		if epoch != owner.Epoch {
			return driver.ErrNotOwned
		}
		return fn(ctx, run)
	})
	return l.fail(err, "%s: parked events of %s %s", what, owner.Subscription, owner.Source)
}

// Park implements [driver.Lanes].
func (l *Lanes) Park(ctx context.Context, owner driver.Ownership, events []driver.Parked) error {
	return l.owned(ctx, owner, "park", func(ctx context.Context, run Statements) error {
		if err := l.bound(ctx, run, owner.Subscription, len(events)); err != nil {
			return err
		}
		for _, e := range events {
			if e.Message.Value != nil && e.Message.Body == nil {
				return fmt.Errorf("event %s is a value in memory, and not encoded", e.ID)
			}
			headers, err := encodeHeaders(e.Message.Headers)
			if err != nil {
				return err
			}
			var one int
			id, eventType := clean(e.ID), clean(e.Message.Type)
			there, err := run.One(ctx, "SELECT 1 FROM {parked} WHERE subscription = $1 AND channel = $2 AND lane_key = $3 AND type = $4 AND id = $5",
				[]any{owner.Subscription, e.Lane.Channel, clean(e.Lane.Key), eventType, id}, &one)
			if err != nil {
				return err
			}
			if there {
				continue
			}
			_, err = run.Exec(ctx, `INSERT INTO {parked} (subscription, source, channel, lane_key, id, type, message_channel, message_key, message_id,
				headers, body, size, position, stored_at, attempts, reason, failure, parked_at)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)`,
				owner.Subscription, owner.Source, e.Lane.Channel, clean(e.Lane.Key), id, eventType, e.Message.Channel, clean(e.Message.Key), clean(e.Message.ID),
				headers, e.Message.Body, e.Message.Size, clean(e.Position), e.Time.UnixMicro(), e.Attempts, e.Reason, clean(e.Err), e.ParkedAt.UnixMicro())
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// tally is how many events of a subscription this process believes to be parked:
// what it counted last, and what it has parked since.
type tally struct {
	mu             sync.Mutex
	counted, since int
}

// bound refuses what would pass the bound. Counting costs more the more there is,
// so that it is done again only after a hundredth of the bound, and always close
// to it.
func (l *Lanes) bound(ctx context.Context, run Statements, subscription string, more int) error {
	known, _ := l.tallies.LoadOrStore(subscription, &tally{counted: l.maxParked})
	t := known.(*tally) //nolint:forcetypeassert // nothing else is stored
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.since+more > l.maxParked/100 || t.counted+t.since+more > l.maxParked/10*9 {
		if _, err := run.One(ctx, "SELECT count(*) FROM {parked} WHERE subscription = $1", []any{subscription}, &t.counted); err != nil {
			return err
		}
		t.since = 0
	}
	if t.counted+t.since+more > l.maxParked {
		return fmt.Errorf("%d events are parked, the bound is %d: %w", t.counted+t.since, l.maxParked, driver.ErrLanesFull)
	}
	t.since += more
	return nil
}

const parkedColumns = "p.number, p.source, p.channel, p.lane_key, p.id, p.type, p.message_channel, p.message_key, p.message_id, p.headers, p.body, p.size, p.position, p.stored_at, p.attempts, p.reason, p.failure, p.parked_at"

func scanParked(rows Rows, before ...any) (number int64, p driver.Parked, err error) {
	var headers string
	var stored, parked int64
	err = rows.Scan(append(before, &number, &p.Source, &p.Lane.Channel, &p.Lane.Key, &p.ID, &p.Message.Type, &p.Message.Channel, &p.Message.Key, &p.Message.ID,
		&headers, &p.Message.Body, &p.Message.Size, &p.Position, &stored, &p.Attempts, &p.Reason, &p.Err, &parked)...)
	if err != nil {
		return 0, p, err
	}
	p.Time, p.ParkedAt = at(stored), at(parked)
	p.Message.Headers, err = decodeHeaders(headers)
	return number, p, err
}

// laneEvents reads the events of a lane.
func laneEvents(ctx context.Context, run Statements, subscription string, lane driver.Lane, limit int) (numbers []int64, events []driver.Parked, err error) {
	err = run.Each(ctx, "SELECT "+parkedColumns+" FROM {parked} p WHERE p.subscription = $1 AND p.channel = $2 AND p.lane_key = $3 ORDER BY p.number LIMIT $4",
		[]any{subscription, lane.Channel, clean(lane.Key), limit}, func(rows Rows) error {
			number, p, err := scanParked(rows)
			numbers, events = append(numbers, number), append(events, p)
			return err
		})
	return numbers, events, err
}

// Head implements [driver.Lanes].
func (l *Lanes) Head(ctx context.Context, owner driver.Ownership, lane driver.Lane) (head driver.Parked, found bool, err error) {
	err = l.owned(ctx, owner, "head", func(ctx context.Context, run Statements) error {
		_, events, err := laneEvents(ctx, run, owner.Subscription, lane, 1)
		if found = len(events) > 0; found {
			head = events[0]
		}
		return err
	})
	return head, found && err == nil, err
}

// Record implements [driver.Lanes].
func (l *Lanes) Record(ctx context.Context, owner driver.Ownership, lane driver.Lane, id string, attempts int, reason, failure string) error {
	return l.owned(ctx, owner, "record", func(ctx context.Context, run Statements) error {
		numbers, events, err := laneEvents(ctx, run, owner.Subscription, lane, 1)
		if err != nil || len(events) == 0 || events[0].ID != clean(id) {
			return err
		}
		_, err = run.Exec(ctx, "UPDATE {parked} SET attempts = $1, reason = $2, failure = $3 WHERE number = $4", attempts, cmp.Or(reason, events[0].Reason), clean(failure), numbers[0])
		return err
	})
}

// Remove implements [driver.Lanes].
func (l *Lanes) Remove(ctx context.Context, owner driver.Ownership, lane driver.Lane, id string) (more bool, err error) {
	err = l.owned(ctx, owner, "remove", func(ctx context.Context, run Statements) error {
		var numbers []int64
		var ids []string
		err := run.Each(ctx, "SELECT number, id FROM {parked} WHERE subscription = $1 AND channel = $2 AND lane_key = $3 ORDER BY number LIMIT 2",
			[]any{owner.Subscription, lane.Channel, clean(lane.Key)}, func(rows Rows) error {
				var number int64
				var id string
				err := rows.Scan(&number, &id)
				numbers, ids = append(numbers, number), append(ids, id)
				return err
			})
		if more = len(ids) > 0; err != nil || !more || ids[0] != clean(id) {
			return err
		}
		more = len(ids) > 1
		_, err = run.Exec(ctx, "DELETE FROM {parked} WHERE number = $1", numbers[0])
		return err
	})
	return more && err == nil, err
}

// Orders implements [driver.Lanes].
func (l *Lanes) Orders(ctx context.Context, owner driver.Ownership) (orders []driver.LaneOrder, err error) {
	err = l.owned(ctx, owner, "orders", func(ctx context.Context, run Statements) error {
		orders = nil
		var empty []driver.Lane
		err := run.Each(ctx, "SELECT o.channel, o.lane_key, o.verb, o.reason, (SELECT p.source FROM {parked} p WHERE p.subscription = o.subscription AND p.channel = o.channel AND p.lane_key = o.lane_key ORDER BY p.number LIMIT 1) FROM {lane_orders} o WHERE o.subscription = $1"+l.dialect.ForUpdate,
			[]any{owner.Subscription}, func(rows Rows) error {
				var order driver.LaneOrder
				var source *string
				var verb int
				if err := rows.Scan(&order.Lane.Channel, &order.Lane.Key, &verb, &order.Reason, &source); err != nil {
					return err
				}
				order.Verb = driver.LaneVerb(verb)
				switch {
				case source == nil:
					empty = append(empty, order.Lane)
				case *source == owner.Source:
					orders = append(orders, order)
				}
				return nil
			})
		if err != nil {
			return err
		}
		for _, order := range orders {
			empty = append(empty, order.Lane)
		}
		for _, lane := range empty {
			if _, err := run.Exec(ctx, "DELETE FROM {lane_orders} WHERE subscription = $1 AND channel = $2 AND lane_key = $3", owner.Subscription, lane.Channel, lane.Key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return orders, nil
}

// Durable implements [driver.Lanes].
func (*Lanes) Durable() bool { return true }

// List implements [driver.LaneStore].
func (l *Lanes) List(ctx context.Context, subscription string, after driver.ParkedLane, limit int) (lanes []driver.ParkedLane, err error) {
	if err := l.ready(ctx, l.pool()); err != nil {
		return nil, err
	}
	arguments := []any{after.Subscription, after.Lane.Channel, clean(after.Lane.Key), max(limit, 0)}
	query := "SELECT p.subscription, (SELECT count(*) FROM {parked} q WHERE q.subscription = p.subscription AND q.channel = p.channel AND q.lane_key = p.lane_key), " + parkedColumns +
		" FROM {parked} p WHERE (p.subscription, p.channel, p.lane_key) > ($1, $2, $3) AND " + first
	if subscription != "" {
		arguments = append(arguments, subscription)
		query += " AND p.subscription = $5"
	}
	err = l.pool().Each(ctx, query+" ORDER BY p.subscription, p.channel, p.lane_key LIMIT $4", arguments, func(rows Rows) error {
		var lane driver.ParkedLane
		var err error
		_, lane.Head, err = scanParked(rows, &lane.Subscription, &lane.Events)
		lane.Source, lane.Lane = lane.Head.Source, lane.Head.Lane
		lanes = append(lanes, lane)
		return err
	})
	return lanes, l.fail(err, "list parked lanes")
}

// Events implements [driver.LaneStore].
func (l *Lanes) Events(ctx context.Context, subscription string, lane driver.Lane, limit int) ([]driver.Parked, error) {
	if err := l.ready(ctx, l.pool()); err != nil {
		return nil, err
	}
	_, events, err := laneEvents(ctx, l.pool(), subscription, lane, max(limit, 0))
	return events, l.fail(err, "read the lane %s %s of %s", lane.Channel, lane.Key, subscription)
}

// Order implements [driver.LaneStore].
func (l *Lanes) Order(ctx context.Context, subscription string, order driver.LaneOrder) (holds bool, err error) {
	if err := l.ready(ctx, l.pool()); err != nil {
		return false, err
	}
	err = l.atomically(ctx, func(ctx context.Context, run Statements) error {
		_, events, err := laneEvents(ctx, run, subscription, order.Lane, 1)
		if holds = len(events) > 0; err != nil || !holds {
			return err
		}
		_, err = run.Exec(ctx, "INSERT INTO {lane_orders} (subscription, channel, lane_key, verb, reason) VALUES ($1, $2, $3, $4, $5) "+
			l.dialect.Upsert("subscription, channel, lane_key")+" verb = "+l.dialect.New("verb")+", reason = "+l.dialect.New("reason"),
			subscription, order.Lane.Channel, clean(order.Lane.Key), int(order.Verb), clean(order.Reason))
		return err
	})
	return holds && err == nil, l.fail(err, "order %s of %s %s", order.Verb, subscription, order.Lane.Key)
}
