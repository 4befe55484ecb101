package sqlstore

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/tidings-go/tidings/driver"
)

var (
	_ driver.Keeper  = (*base)(nil)
	_ driver.Renamer = (*base)(nil)
)

// group is whose leases and members a subscription of driver/sqldb has.
func group(subscription string) string { return "subscription:" + subscription }

// named are the tables with a column of subscriptions, with what else is in their
// keys; without it rows of one subscription are not told apart by it.
var named = []namedTable{
	{table: "claims", key: "claim_key", what: "dedup keys"},
	{table: "starts", key: "claim_key", what: "counted starts"},
	{table: "epochs", key: "source", what: "epochs"},
	{table: "dead_letters", key: "letter_key", what: "dead letters"},
	{table: "dead_letter_changes", what: "changes of dead letters"},
	{table: "parked", what: "parked events"},
	{table: "lane_owners", key: "source", what: "owners of parked events"},
	{table: "lane_orders", what: "orders for parked events"},
	{table: "positions", what: "positions", log: true},
	{table: "declarations", what: "declared types", log: true},
}

type namedTable struct {
	table, key, what string
	log              bool // it belongs to the log
}

// named are those that this database has.
func (b *base) named() []namedTable {
	if !b.dialect.NoLog {
		return named
	}
	return slices.DeleteFunc(slices.Clone(named), func(t namedTable) bool { return t.log })
}

// renameBatch is how many keys are moved in one transaction.
const renameBatch = 500

// Rename implements [driver.Renamer], for claims, starts, epochs, dead letters and
// parked events, a number of rows at a time. Positions of driver/sqldb are copied, so
// that a deployment that is taken back goes on where it was; until they are deleted
// they keep the log from being trimmed. The number is that of rows.
func (b *base) Rename(ctx context.Context, former string, s driver.Subscription) (moved int64, err error) {
	run := b.pool()
	if err := b.ready(ctx, run); err != nil {
		return 0, err
	}
	alive, err := b.alive(ctx, run, former)
	if err != nil {
		return 0, b.fail(err, "instances of %s", former)
	}
	if alive > 0 {
		any, err := b.storedUnder(ctx, run, former)
		if err != nil {
			return 0, b.fail(err, "look for %s", former)
		}
		if !any {
			return 0, nil
		}
		return 0, b.fail(driver.ErrInUse, "subscription %s: take over from %s, which has %d instances", s.Name, former, alive)
	}
	for _, t := range b.named() {
		if t.key == "" {
			continue
		}
		n, err := b.renameKeys(ctx, t.table, t.key, former, s.Name)
		if moved += n; err != nil {
			return moved, b.fail(err, "subscription %s: take over the %s of %s", s.Name, t.what, former)
		}
	}
	err = b.atomically(ctx, func(ctx context.Context, run Statements) error {
		for _, t := range b.named() {
			if t.key != "" || t.log || t.table == "lane_orders" {
				continue
			}
			n, err := run.Exec(ctx, "UPDATE {"+t.table+"} SET subscription = $1 WHERE subscription = $2", s.Name, former)
			if moved += n; err != nil {
				return err
			}
		}
		if _, err := run.Exec(ctx, "DELETE FROM {lane_orders} WHERE subscription = $1", former); err != nil || b.dialect.NoLog {
			return err
		}
		n, err := b.renameInLog(ctx, run, former, s.Name)
		moved += n
		return err
	})
	return moved, b.fail(err, "subscription %s: take over from %s", s.Name, former)
}

// renameInLog copies the positions on channels where the new name has none, and
// moves the record of what was declared. A later renaming finds in that record only
// what releases under the former name have declared since, when the deployment was
// taken back; so what was forgotten under the new name does not come back.
func (b *base) renameInLog(ctx context.Context, run Statements, former, name string) (moved int64, err error) {
	copied, err := run.Exec(ctx, `INSERT INTO {positions} (subscription, channel, slot, position, finished, since)
		SELECT `+b.text("$1")+`, p.channel, p.slot, p.position, p.finished, p.since FROM {positions} p
		WHERE p.subscription = $2 AND NOT EXISTS (SELECT 1 FROM {positions} q WHERE q.subscription = $1 AND q.channel = p.channel AND q.slot = p.slot)
			AND (NOT EXISTS (SELECT 1 FROM {positions} q WHERE q.subscription = $1) OR EXISTS (SELECT 1 FROM {declarations} d WHERE d.subscription = $2 AND d.channel = p.channel))
		ON CONFLICT (subscription, channel, slot) DO NOTHING`, name, former)
	if err != nil {
		return 0, err
	}
	declared, err := run.Exec(ctx, `INSERT INTO {declarations} (subscription, channel, type) SELECT `+b.text("$1")+`, d.channel, d.type FROM {declarations} d
		WHERE d.subscription = $2 ON CONFLICT (subscription, channel, type) DO NOTHING`, name, former)
	if err == nil {
		_, err = run.Exec(ctx, "DELETE FROM {declarations} WHERE subscription = $1", former)
	}
	return copied + declared, err
}

// renameKeys gives rows another subscription where that one has none of the same
// key. What is left behind is listed under the former name.
func (b *base) renameKeys(ctx context.Context, table, key, former, name string) (moved int64, err error) {
	last := ""
	for more := true; more && err == nil; {
		err = b.atomically(ctx, func(ctx context.Context, run Statements) error {
			var keys []string
			next := last
			err := run.Each(ctx, "SELECT "+key+" FROM {"+table+"} WHERE subscription = $1 AND "+key+" > $2 ORDER BY "+key+fmt.Sprintf(" LIMIT %d", renameBatch)+b.dialect.ForUpdate,
				[]any{former, next}, func(rows Rows) error {
					var one string
					err := rows.Scan(&one)
					keys = append(keys, one)
					return err
				})
			if err != nil || len(keys) == 0 {
				more = false
				return err
			}
			next = keys[len(keys)-1]
			arguments := []any{name}
			taken := make(map[string]bool)
			err = run.Each(ctx, "SELECT "+key+" FROM {"+table+"} WHERE subscription = $1 AND "+key+" IN "+in(&arguments, keys), arguments, func(rows Rows) error {
				var one string
				err := rows.Scan(&one)
				taken[one] = true
				return err
			})
			if err != nil {
				return err
			}
			free := slices.DeleteFunc(keys, func(k string) bool { return taken[k] })
			last, more = next, len(free)+len(taken) >= renameBatch
			if len(free) == 0 {
				return nil
			}
			arguments = []any{name, former}
			n, err := run.Exec(ctx, "UPDATE {"+table+"} SET subscription = $1 WHERE subscription = $2 AND "+key+" IN "+in(&arguments, free), arguments...)
			moved += n
			return err
		})
	}
	return moved, err
}

// alive is how many instances of driver/sqldb run a subscription.
func (b *base) alive(ctx context.Context, run Statements, name string) (alive int, err error) {
	_, err = run.One(ctx, "SELECT count(*) FROM {members} WHERE group_name = $1 AND until_at > {now}", []any{group(name)}, &alive)
	return alive, err
}

// storedUnder reports whether anything is stored under a name that Rename moves.
func (b *base) storedUnder(ctx context.Context, run Statements, name string) (bool, error) {
	for _, t := range b.named() {
		var one int
		found, err := run.One(ctx, "SELECT 1 FROM {"+t.table+"} WHERE subscription = $1 LIMIT 1", []any{name}, &one)
		if found || err != nil {
			return found, err
		}
	}
	return false, nil
}

// StoredSubscriptions implements [driver.Keeper]. Instances and lag are known
// where driver/sqldb reads this database; the lag is that of every channel on which
// the subscription has a position, whether an instance has it or not. Keys, dead letters and parked events are counted only where asked.
func (b *base) StoredSubscriptions(ctx context.Context, options driver.StoredOptions) (all []driver.StoredSubscription, err error) {
	run := b.pool()
	if err := b.ready(ctx, run); err != nil {
		return nil, err
	}
	names, err := b.storedNames(ctx, run, options.Prefix)
	if err != nil {
		return nil, b.fail(err, "list subscriptions")
	}
	for _, name := range names {
		s := driver.StoredSubscription{Name: name, Instances: -1, Lag: -1, Parked: -1, DeadLetters: -1, Keys: -1}
		var channels int
		if !b.dialect.NoLog {
			if _, err := run.One(ctx, "SELECT count(DISTINCT channel) FROM {positions} WHERE subscription = $1", []any{name}, &channels); err != nil {
				return nil, b.fail(err, "positions of %s", name)
			}
		}
		if channels > 0 {
			if s.Instances, err = b.alive(ctx, run, name); err != nil {
				return nil, b.fail(err, "instances of %s", name)
			}
			if s.Lag, err = b.lag(ctx, run, name); err != nil {
				return nil, b.fail(err, "lag of %s", name)
			}
			s.Position = fmt.Sprintf("%d channels of the log", channels)
			var until int64
			if _, err := run.One(ctx, "SELECT coalesce(max(until_at), 0) FROM {members} WHERE group_name = $1", []any{group(name)}, &until); err != nil {
				return nil, b.fail(err, "instances of %s", name)
			}
			if until > 0 {
				s.LastSeen = at(until)
			}
		}
		if options.Count {
			for query, into := range map[string]*int64{
				"SELECT count(*) FROM {parked} WHERE subscription = $1":                          &s.Parked,
				"SELECT count(*) FROM {dead_letters} WHERE subscription = $1 AND state = 'open'": &s.DeadLetters,
				"SELECT count(*) FROM {claims} WHERE subscription = $1 AND done = 1":             &s.Keys,
			} {
				if _, err := run.One(ctx, query, []any{name}, into); err != nil {
					return nil, b.fail(err, "count what is stored of %s", name)
				}
			}
		}
		all = append(all, s)
	}
	return all, nil
}

// storedNames are the subscriptions that any table has. Each is found by a step in
// an index, whatever the number of its rows.
func (b *base) storedNames(ctx context.Context, run Statements, prefix string) (names []string, err error) {
	for _, t := range b.named() {
		if t.table == "dead_letter_changes" || t.table == "lane_orders" {
			continue // others have theirs
		}
		for last := ""; ; {
			var next *string
			if _, err := run.One(ctx, "SELECT min(subscription) FROM {"+t.table+"} WHERE subscription > $1", []any{last}, &next); err != nil {
				return nil, err
			}
			if next == nil {
				break
			}
			last = *next
			if strings.HasPrefix(last, prefix) && !slices.Contains(names, last) {
				names = append(names, last)
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// mostCounted bounds what is counted of the log.
const mostCounted = 100_000

// lag counts what a subscription has not passed, at most mostCounted of each: of
// the log, and what waits for its position there. Only channels on which it has a
// position count.
func (b *base) lag(ctx context.Context, run Statements, name string) (lag int64, err error) {
	limit := fmt.Sprintf(" LIMIT %d) AS behind", mostCounted)
	_, err = run.One(ctx, "SELECT count(*) FROM (SELECT 1 AS one FROM {log} e JOIN {positions} p ON p.channel = e.channel AND p.slot = e.slot WHERE p.subscription = $1 AND e.position >= p.position"+limit, []any{name}, &lag)
	if err != nil {
		return 0, err
	}
	var waiting int64
	_, err = run.One(ctx, "SELECT count(*) FROM (SELECT 1 AS one FROM {outbox} e WHERE e.aggregatetype IN (SELECT p.channel FROM {positions} p WHERE p.subscription = $1)"+limit, []any{name}, &waiting)
	return lag + waiting, err
}

// DeleteSubscription implements [driver.Keeper], in one transaction.
func (b *base) DeleteSubscription(ctx context.Context, name string) (deleted []string, err error) {
	if err := b.ready(ctx, b.pool()); err != nil {
		return nil, err
	}
	err = b.atomically(ctx, func(ctx context.Context, run Statements) error {
		deleted = nil
		alive, err := b.alive(ctx, run, name)
		if err != nil {
			return err
		}
		if alive > 0 {
			return fmt.Errorf("%d instances: %w", alive, driver.ErrInUse)
		}
		for _, t := range b.named() {
			n, err := run.Exec(ctx, "DELETE FROM {"+t.table+"} WHERE subscription = $1", name)
			if err != nil {
				return err
			}
			if n > 0 {
				deleted = append(deleted, fmt.Sprintf("%d %s", n, t.what))
			}
		}
		for _, table := range []string{"leases", "members"} {
			if _, err := run.Exec(ctx, "DELETE FROM {"+table+"} WHERE group_name = $1", group(name)); err != nil {
				return err
			}
		}
		return nil
	})
	return deleted, b.fail(err, "delete subscription %s", name)
}
