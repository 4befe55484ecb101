package sqlstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

var _ driver.Declarations = (*Log)(nil)

// Declare implements [driver.Declarations].
func (l *Log) Declare(ctx context.Context, subscription string, handled []driver.Declaration) ([]driver.Declaration, error) {
	declared, err := l.Declared(ctx, subscription)
	if err != nil {
		return nil, err
	}
	missing := slices.DeleteFunc(slices.Clone(handled), func(d driver.Declaration) bool { return slices.Contains(declared, d) })
	if len(missing) == 0 {
		return declared, nil
	}
	slices.SortFunc(missing, byChannelAndType) // in an order, or two that declare wait for each other
	missing = slices.Compact(missing)
	var rows []string
	arguments := []any{subscription}
	for _, d := range missing {
		arguments = append(arguments, d.Channel, d.Type)
		rows = append(rows, fmt.Sprintf("($1, $%d, $%d)", len(arguments)-1, len(arguments)))
	}
	_, err = l.base.write(ctx, "INSERT INTO {declarations} (subscription, channel, type) VALUES "+strings.Join(rows, ", ")+" ON CONFLICT (subscription, channel, type) DO NOTHING", arguments...)
	if err != nil {
		return nil, l.base.fail(err, "declare what subscription %s handles", subscription)
	}
	return l.Declared(ctx, subscription)
}

// Declared implements [driver.Declarations].
func (l *Log) Declared(ctx context.Context, subscription string) (all []driver.Declaration, err error) {
	if err := l.base.ready(ctx, l.base.pool()); err != nil {
		return nil, err
	}
	err = l.base.pool().Each(ctx, "SELECT channel, type FROM {declarations} WHERE subscription = $1", []any{subscription}, func(rows Rows) error {
		var d driver.Declaration
		err := rows.Scan(&d.Channel, &d.Type)
		all = append(all, d)
		return err
	})
	slices.SortFunc(all, byChannelAndType)
	return all, l.base.fail(err, "read what subscription %s handles", subscription)
}

func byChannelAndType(a, b driver.Declaration) int {
	return cmp.Or(cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Type, b.Type))
}

// ForgetType implements [driver.Declarations].
func (l *Log) ForgetType(ctx context.Context, subscription, eventType string) (known bool, err error) {
	if err := l.base.ready(ctx, l.base.pool()); err != nil {
		return false, err
	}
	err = l.base.atomically(ctx, func(ctx context.Context, run Statements) error {
		known = false
		var channels []string
		err := run.Each(ctx, "SELECT channel FROM {declarations} WHERE subscription = $1 AND type = $2", []any{subscription, eventType}, func(rows Rows) error {
			var channel string
			err := rows.Scan(&channel)
			channels = append(channels, channel)
			return err
		})
		if err != nil || len(channels) == 0 {
			return err
		}
		known = true
		if _, err := run.Exec(ctx, "DELETE FROM {declarations} WHERE subscription = $1 AND type = $2", subscription, eventType); err != nil {
			return err
		}
		for _, channel := range channels {
			if err := l.forgetChannel(ctx, run, subscription, channel); err != nil {
				return err
			}
		}
		return nil
	})
	return known && err == nil, l.base.fail(err, "subscription %s: forget type %s", subscription, eventType)
}

// forgetChannel deletes the position on a channel of which no type is declared any
// more. Whoever owns a part of it would store its position again.
func (l *Log) forgetChannel(ctx context.Context, run Statements, subscription, channel string) error {
	var one int
	declared, err := run.One(ctx, "SELECT 1 FROM {declarations} WHERE subscription = $1 AND channel = $2 LIMIT 1", []any{subscription, channel}, &one)
	if err != nil || declared {
		return err
	}
	var names []string
	for _, part := range outbox.Parts(channel) {
		names = append(names, part.Name())
	}
	arguments := []any{group(subscription)}
	owned, err := run.One(ctx, "SELECT 1 FROM {leases} WHERE group_name = $1 AND name IN "+in(&arguments, names)+" AND holder <> '' AND until_at > {now} LIMIT 1", arguments, &one)
	if err != nil {
		return err
	}
	if owned {
		return fmt.Errorf("an instance that handles channel %s runs: %w", channel, driver.ErrInUse)
	}
	_, err = run.Exec(ctx, "DELETE FROM {positions} WHERE subscription = $1 AND channel = $2", subscription, channel)
	return err
}
