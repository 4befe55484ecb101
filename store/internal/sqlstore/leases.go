package sqlstore

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// Join implements [driver.Leases].
func (b *base) Join(ctx context.Context, group string, member driver.Member, ttl time.Duration) (alive []driver.Member, err error) {
	run := b.pool()
	if err := b.ready(ctx, run); err != nil {
		return nil, err
	}
	parts, err := json.Marshal(member.Parts)
	if err != nil {
		return nil, b.fail(err, "join %s", group)
	}
	_, err = b.write(ctx, "INSERT INTO {members} (group_name, holder, until_at, parts) VALUES ($1, $2, {now} + "+b.integer("$3")+", $4) "+
		b.dialect.Upsert("group_name, holder")+" until_at = "+b.dialect.New("until_at")+", parts = "+b.dialect.New("parts"), group, member.Holder, microseconds(ttl), string(parts))
	if err == nil {
		err = run.Each(ctx, "SELECT holder, coalesce(parts, '') FROM {members} WHERE group_name = $1 AND until_at > {now}", []any{group}, func(rows Rows) error {
			var m driver.Member
			var parts string
			err := rows.Scan(&m.Holder, &parts)
			if json.Unmarshal([]byte(parts), &m.Parts) != nil {
				m.Parts = nil // written by another library: it is not waited for
			}
			alive = append(alive, m)
			return err
		})
	}
	return alive, b.fail(err, "join %s", group)
}

// Leave implements [driver.Leases].
func (b *base) Leave(ctx context.Context, group, holder string) error {
	err := b.atomically(ctx, func(ctx context.Context, run Statements) error {
		if _, err := run.Exec(ctx, "UPDATE {leases} SET holder = '', until_at = 0 WHERE group_name = $1 AND holder = $2", group, holder); err != nil {
			return err
		}
		// Holders that ended without a word are forgotten on the way.
		_, err := run.Exec(ctx, "DELETE FROM {members} WHERE group_name = $1 AND (holder = $2 OR until_at < {now} - 86400000000)", group, holder)
		return err
	})
	b.sole.forget(group, holder)
	return b.fail(err, "leave %s", group)
}

// Acquire implements [driver.Leases].
func (b *base) Acquire(ctx context.Context, group, holder string, names []string, limit int, ttl time.Duration) ([]driver.Lease, error) {
	if len(names) == 0 || limit < 1 {
		return nil, nil
	}
	if err := b.ready(ctx, b.pool()); err != nil {
		return nil, err
	}
	if err := b.list(ctx, group, names); err != nil {
		return nil, b.fail(err, "acquire leases of %s", group)
	}
	var taken []driver.Lease
	err := b.atomically(ctx, func(ctx context.Context, run Statements) error {
		taken = nil
		arguments := []any{group, limit}
		query := "SELECT name, epoch FROM {leases} WHERE group_name = $1 AND name IN " + in(&arguments, names) +
			" AND (holder = '' OR until_at <= {now}) ORDER BY name LIMIT $2" + b.dialect.SkipLocked
		err := run.Each(ctx, query, arguments, func(rows Rows) error {
			var lease driver.Lease
			err := rows.Scan(&lease.Name, &lease.Epoch)
			lease.Epoch++
			taken = append(taken, lease)
			return err
		})
		if err != nil || len(taken) == 0 {
			return err
		}
		arguments = []any{group, holder, microseconds(ttl)}
		_, err = run.Exec(ctx, "UPDATE {leases} SET holder = $2, epoch = epoch + 1, until_at = {now} + "+b.integer("$3")+
			" WHERE group_name = $1 AND name IN "+in(&arguments, leaseNames(taken)), arguments...)
		return err
	})
	if err != nil {
		return nil, b.fail(err, "acquire leases of %s", group)
	}
	if len(taken) > 0 {
		b.sole.remember(group, holder, ttl)
	}
	return taken, nil
}

// list makes the rows of leases, once for each process.
func (b *base) list(ctx context.Context, group string, names []string) error {
	var missing []string
	for _, name := range names {
		if _, ok := b.lists.Load([2]string{group, name}); !ok {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	var rows []string
	arguments := []any{group}
	for _, name := range slices.Sorted(slices.Values(missing)) { // in an order, or two that list wait for each other
		arguments = append(arguments, name)
		rows = append(rows, fmt.Sprintf("($1, $%d, '', 0, 0)", len(arguments)))
	}
	_, err := b.write(ctx, "INSERT INTO {leases} (group_name, name, holder, epoch, until_at) VALUES "+strings.Join(rows, ", ")+" "+
		b.dialect.Upsert("group_name, name")+" name = "+b.dialect.New("name"), arguments...)
	if err != nil {
		return err
	}
	for _, name := range missing {
		b.lists.Store([2]string{group, name}, true)
	}
	return nil
}

// Renew implements [driver.Leases].
func (b *base) Renew(ctx context.Context, group, holder string, ttl time.Duration) (kept []driver.Lease, err error) {
	_, err = b.write(urgent(ctx), "UPDATE {leases} SET until_at = {now} + "+b.integer("$3")+" WHERE group_name = $1 AND holder = $2 AND until_at > {now}",
		group, holder, microseconds(ttl))
	if err == nil {
		err = b.pool().Each(ctx, "SELECT name, epoch FROM {leases} WHERE group_name = $1 AND holder = $2 AND until_at > {now} ORDER BY name",
			[]any{group, holder}, func(rows Rows) error {
				var lease driver.Lease
				err := rows.Scan(&lease.Name, &lease.Epoch)
				kept = append(kept, lease)
				return err
			})
	}
	if err != nil {
		return nil, b.fail(err, "renew leases of %s", group)
	}
	return kept, nil
}

// Release implements [driver.Leases].
func (b *base) Release(ctx context.Context, group, holder string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	arguments := []any{group, holder}
	_, err := b.write(ctx, "UPDATE {leases} SET holder = '', until_at = 0 WHERE group_name = $1 AND holder = $2 AND name IN "+in(&arguments, names), arguments...)
	return b.fail(err, "release leases of %s", group)
}

// holding locks, until the transaction ends, the rows of those leases that the
// holder has at their epochs, and returns these.
func (b *base) holding(ctx context.Context, run Statements, group, holder string, leases []driver.Lease) (valid []driver.Lease, err error) {
	arguments := []any{group, holder}
	err = run.Each(ctx, "SELECT name, epoch FROM {leases} WHERE group_name = $1 AND holder = $2 AND until_at > {now} AND name IN "+
		in(&arguments, leaseNames(leases))+b.dialect.ForShare, arguments, func(rows Rows) error {
		var lease driver.Lease
		if err := rows.Scan(&lease.Name, &lease.Epoch); err != nil {
			return err
		}
		for _, l := range leases {
			if l == lease {
				valid = append(valid, lease)
			}
		}
		return nil
	})
	return valid, err
}

func leaseNames(leases []driver.Lease) []string {
	names := make([]string, len(leases))
	for n, lease := range leases {
		names[n] = lease.Name
	}
	return names
}

// integer is a cast of an expression that a database cannot see the type of.
func (b *base) integer(expression string) string { return fmt.Sprintf(b.dialect.Int, expression) }
