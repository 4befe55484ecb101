package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tidings-go/tidings/outbox"
)

// Held implements [outbox.Operations].
func (b *base) Held(ctx context.Context, after int64, limit int) (all []outbox.Held, err error) {
	if err := b.ready(ctx, b.pool()); err != nil {
		return nil, err
	}
	err = b.pool().Each(ctx, "SELECT "+rowColumns+", h.until_at - {now} FROM {outbox_held} h JOIN {outbox} o ON o.sequence = h.sequence WHERE h.sequence > $1 ORDER BY h.sequence LIMIT $2",
		[]any{after, limit}, func(r Rows) error {
			var wait int64
			row, err := scanRow(r, &wait)
			all = append(all, outbox.Held{Row: row, Wait: max(0, time.Duration(wait)*time.Microsecond)})
			return err
		})
	return all, b.fail(err, "list what is held")
}

// Retry implements [outbox.Operations].
func (b *base) Retry(ctx context.Context, sequence int64) error {
	err := b.atomically(ctx, func(ctx context.Context, run Statements) error {
		changed, err := run.Exec(ctx, "UPDATE {outbox_held} SET until_at = 0 WHERE sequence = $1 AND until_at > 0", sequence)
		if err != nil {
			return err
		}
		if changed == 0 {
			var one int
			found, err := run.One(ctx, "SELECT 1 FROM {outbox_held} WHERE sequence = $1", []any{sequence}, &one)
			if err != nil {
				return err
			}
			if !found {
				return outbox.ErrNotHeld
			}
		}
		if b.dialect.Notify == nil {
			return nil
		}
		return b.dialect.Notify(ctx, run)
	})
	return b.fail(err, "retry event %d of the outbox", sequence)
}

// Discard implements [outbox.Operations].
func (b *base) Discard(ctx context.Context, sequence int64, reason string) error {
	if strings.TrimSpace(reason) == "" {
		return fmt.Errorf("%s: discard event %d of the outbox: %w", b.dialect.Name, sequence, errors.New("a reason is needed"))
	}
	err := b.atomically(ctx, func(ctx context.Context, run Statements) error {
		var one int
		held, err := run.One(ctx, "SELECT 1 FROM {outbox_held} WHERE sequence = $1"+b.dialect.ForUpdate, []any{sequence}, &one)
		if err != nil {
			return err
		}
		if !held {
			return outbox.ErrNotHeld
		}
		moved, err := run.Exec(ctx, `INSERT INTO {outbox_discarded} (sequence, id, aggregatetype, aggregateid, type, headers, payload, created_at, attempts, failure, discarded_at, reason)
			SELECT sequence, id, aggregatetype, aggregateid, type, headers, payload, created_at, attempts, failure, {now}, `+b.text("$2")+` FROM {outbox} WHERE sequence = $1`, sequence, clean(reason))
		if err != nil {
			return err
		}
		if moved == 0 {
			return outbox.ErrNotHeld // a relay has sent it
		}
		var arguments []any
		if _, err := run.Exec(ctx, b.remove(&arguments, []int64{sequence}), arguments...); err != nil {
			return err
		}
		if _, err := run.Exec(ctx, "DELETE FROM {outbox_held} WHERE sequence = $1", sequence); err != nil {
			return err
		}
		if b.dialect.Notify == nil {
			return nil
		}
		return b.dialect.Notify(ctx, run)
	})
	return b.fail(err, "discard event %d of the outbox", sequence)
}

// Discarded implements [outbox.Operations].
func (b *base) Discarded(ctx context.Context, after int64, limit int) (all []outbox.Discarded, err error) {
	if err := b.ready(ctx, b.pool()); err != nil {
		return nil, err
	}
	columns := strings.Replace(rowColumns, "coalesce(o.slot, -1) AS slot", "-1 AS slot", 1) // the table has no slot
	err = b.pool().Each(ctx, "SELECT "+columns+", o.discarded_at, o.reason FROM {outbox_discarded} o WHERE o.sequence > $1 ORDER BY o.sequence LIMIT $2", []any{after, limit}, func(r Rows) error {
		var when int64
		var d outbox.Discarded
		var err error
		d.Row, err = scanRow(r, &when, &d.Reason)
		d.Row.Slot = outbox.SlotOf(d.Row.Channel, d.Row.AggregateID)
		d.At = at(when)
		all = append(all, d)
		return err
	})
	return all, b.fail(err, "list what was discarded")
}
