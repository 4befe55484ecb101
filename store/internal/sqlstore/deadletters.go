package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tidings-go/tidings/driver"
)

// DeadLetters is a [driver.DeadLetterStore] over a store. All methods may be
// called at once.
type DeadLetters struct{ *base }

// DeadLetters returns the dead letters over this store.
func (b *base) DeadLetters() driver.DeadLetterStore { return &DeadLetters{b} }

var _ driver.DeadLetterStore = (*DeadLetters)(nil)

// errCursor says that a cursor came from no listing.
var errCursor = errors.New("it comes from no listing")

// letterColumns are what a put replaces.
var letterColumns = []string{
	"state", "note", "changed_at", "taken_until", "failed_at", "fingerprint", "channel", "type", "id", "aggregate_id",
	"reason", "failure", "stack", "attempts", "position", "headers", "body",
}

// PutDeadLetter implements [driver.DeadLetters].
func (d *DeadLetters) PutDeadLetter(ctx context.Context, l driver.DeadLetter) error {
	_, err := d.put(ctx, &l, false)
	return err
}

// CollectDeadLetter implements [driver.DeadLetterStore].
func (d *DeadLetters) CollectDeadLetter(ctx context.Context, l driver.DeadLetter) (fresh bool, err error) {
	return d.put(ctx, &l, true)
}

// put stores a letter; with once not where that failure is known.
func (d *DeadLetters) put(ctx context.Context, l *driver.DeadLetter, once bool) (fresh bool, err error) {
	if err := d.ready(ctx, d.pool()); err != nil {
		return false, err
	}
	headers, err := encodeHeaders(l.Headers)
	if err != nil {
		return false, d.fail(err, "put dead letter %s of %s: headers", l.Key(), l.Subscription)
	}
	var set strings.Builder
	for _, column := range letterColumns {
		fmt.Fprintf(&set, "%s = %s, ", column, d.dialect.New(column))
	}
	key := clean(l.Key())
	put := "INSERT INTO {dead_letters} (subscription, letter_key, times, " + strings.Join(letterColumns, ", ") +
		") VALUES ($1, $2, 1, 'open', '', {now}, NULL, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) " +
		d.dialect.Upsert("subscription, letter_key") + " " + set.String() + "times = {dead_letters}.times + 1"
	err = d.atomically(ctx, func(ctx context.Context, run Statements) error {
		fresh = true
		if once {
			var failed int64
			found, err := run.One(ctx, "SELECT failed_at FROM {dead_letters} WHERE subscription = $1 AND letter_key = $2"+d.dialect.ForUpdate, []any{l.Subscription, key}, &failed)
			if fresh = !found || failed < l.FailedAt.UnixMicro(); err != nil || !fresh {
				return err
			}
		}
		_, err := run.Exec(ctx, put, l.Subscription, key, l.FailedAt.UnixMicro(), driver.Fingerprint(l.Err), l.Channel, clean(l.Type), clean(l.ID), clean(l.AggregateID),
			l.Reason, clean(l.Err), clean(l.Stack), l.Attempts, clean(l.Position), headers, l.Body)
		if err != nil {
			return err
		}
		return d.remember(ctx, run, l.Subscription, []string{key}, driver.DeadLetterOpen, clean(l.Reason+": "+l.Err))
	})
	return fresh && err == nil, d.fail(err, "put dead letter %s of %s", l.Key(), l.Subscription)
}

// remember adds to the history of letters.
func (d *DeadLetters) remember(ctx context.Context, run Statements, subscription string, keys []string, state driver.DeadLetterState, note string) error {
	arguments := []any{subscription, string(state), note}
	_, err := run.Exec(ctx, "INSERT INTO {dead_letter_changes} (subscription, letter_key, changed_at, state, note) SELECT subscription, letter_key, {now}, "+
		d.text("$2")+", "+d.text("$3")+" FROM {dead_letters} WHERE subscription = $1 AND letter_key IN "+in(&arguments, keys)+" ORDER BY letter_key", arguments...)
	return err
}

// text is a cast of a placeholder in a place that has no type of its own.
func (b *base) text(placeholder string) string {
	if b.dialect.Text == "" {
		return placeholder
	}
	return fmt.Sprintf(b.dialect.Text, placeholder)
}

const (
	letterHead = "subscription, letter_key, state, note, times, changed_at, failed_at, channel, type, id, aggregate_id, reason, failure, attempts, position, headers"
	letterFull = letterHead + ", stack, body"
)

func scanLetter(rows Rows, whole bool, more ...any) (driver.StoredDeadLetter, error) {
	var l driver.StoredDeadLetter
	var headers, state string
	var changed, failed int64
	into := []any{
		&l.Subscription, &l.Key, &state, &l.Note, &l.Times, &changed, &failed, &l.Channel, &l.Type, &l.ID, &l.AggregateID,
		&l.Reason, &l.Err, &l.Attempts, &l.Position, &headers,
	}
	if whole {
		into = append(into, &l.Stack, &l.Body)
	}
	if err := rows.Scan(append(into, more...)...); err != nil {
		return l, err
	}
	l.State, l.ChangedAt, l.FailedAt = driver.DeadLetterState(state), at(changed), at(failed)
	l.Cursor = strconv.FormatInt(failed, 10) + " " + l.Subscription + " " + l.Key
	var err error
	l.Headers, err = decodeHeaders(headers)
	return l, err
}

// conditions are joined by AND, with the values of their placeholders.
type conditions struct {
	parts     []string
	arguments []any
}

func (c *conditions) and(condition string, values ...any) {
	for _, v := range values {
		c.arguments = append(c.arguments, v)
		condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(c.arguments)), 1)
	}
	c.parts = append(c.parts, condition)
}

func (c *conditions) filter(f driver.DeadLetterFilter) {
	for _, wanted := range []struct{ column, value string }{
		{"subscription", f.Subscription}, {"type", f.Type}, {"state", string(f.State)}, {"fingerprint", f.Fingerprint},
	} {
		if wanted.value != "" {
			c.and(wanted.column+" = ?", wanted.value)
		}
	}
	if !f.Since.IsZero() {
		c.and("failed_at >= ?", f.Since.UnixMicro())
	}
	if !f.Until.IsZero() {
		c.and("failed_at < ?", f.Until.UnixMicro())
	}
}

// String is the clause, or nothing.
func (c *conditions) String() string {
	if len(c.parts) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(c.parts, " AND ")
}

// pageIndex names the index for a page: that of the filter that leaves the least, in
// the order of the page, whose other columns decide on the other filters. MariaDB
// would read and sort everything that one of them leaves.
func pageIndex(f *driver.DeadLetterFilter) string {
	switch {
	case f.Fingerprint != "":
		return "fingerprint"
	case f.Type != "":
		return "type"
	case f.Subscription != "":
		return "subscription"
	case f.State != "":
		return "state"
	}
	return "page"
}

// ListDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) ListDeadLetters(ctx context.Context, filter driver.DeadLetterFilter, after string, limit int) ([]driver.StoredDeadLetter, error) {
	if err := d.ready(ctx, d.pool()); err != nil {
		return nil, err
	}
	where := conditions{arguments: []any{max(limit, 0)}}
	if after != "" {
		parts := strings.SplitN(after, " ", 3)
		failed, err := strconv.ParseInt(parts[0], 10, 64)
		if err != nil || len(parts) < 3 {
			return nil, d.fail(errCursor, "cursor %q", after)
		}
		// The first condition says no more than the second. It gives MariaDB, which
		// compares rows without an index, where to begin.
		where.and("failed_at <= ?", failed)
		where.and("(failed_at < ? OR (failed_at = ? AND (letter_key < ? OR (letter_key = ? AND subscription < ?))))", failed, failed, parts[2], parts[2], parts[1])
	}
	where.filter(filter)
	var letters []driver.StoredDeadLetter
	const order = " ORDER BY failed_at DESC, letter_key DESC, subscription DESC"
	query := "SELECT " + letterHead + " FROM {dead_letters}" + where.String() + order + " LIMIT $1"
	if d.dialect.UseIndex != nil { // the index alone decides which they are, then they are read
		query = "SELECT " + letterHead + " FROM {dead_letters} JOIN (SELECT subscription AS page_subscription, letter_key AS page_key FROM {dead_letters}" +
			d.dialect.UseIndex("dead_letters", pageIndex(&filter)) + where.String() + order + " LIMIT $1) AS page ON page_subscription = subscription AND page_key = letter_key" + order
	}
	err := d.pool().Each(ctx, query, where.arguments, func(rows Rows) error {
		l, err := scanLetter(rows, false)
		letters = append(letters, l)
		return err
	})
	return letters, d.fail(err, "list dead letters")
}

// GetDeadLetter implements [driver.DeadLetterStore].
func (d *DeadLetters) GetDeadLetter(ctx context.Context, subscription, key string) (driver.StoredDeadLetter, error) {
	var letter driver.StoredDeadLetter
	found := false
	err := d.pool().Each(ctx, "SELECT "+letterFull+" FROM {dead_letters} WHERE subscription = $1 AND letter_key = $2", []any{subscription, key}, func(rows Rows) (err error) {
		found = true
		letter, err = scanLetter(rows, true)
		return err
	})
	if err == nil && !found {
		err = driver.ErrNoDeadLetter
	}
	return letter, d.fail(err, "%s of %s", key, subscription)
}

// GroupDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) GroupDeadLetters(ctx context.Context, filter driver.DeadLetterFilter, limit int) (groups []driver.DeadLetterGroup, err error) {
	if err := d.ready(ctx, d.pool()); err != nil {
		return nil, err
	}
	where := conditions{arguments: []any{max(limit, 0)}}
	where.filter(filter)
	err = d.pool().Each(ctx, "SELECT subscription, type, fingerprint, COUNT(*), MIN(failed_at), MAX(failed_at), MIN(failure) FROM {dead_letters}"+where.String()+
		" GROUP BY subscription, type, fingerprint ORDER BY COUNT(*) DESC, subscription, type, fingerprint LIMIT $1", where.arguments, func(rows Rows) error {
		var g driver.DeadLetterGroup
		var first, last int64
		err := rows.Scan(&g.Subscription, &g.Type, &g.Fingerprint, &g.Count, &first, &last, &g.Err)
		g.First, g.Last = at(first), at(last)
		groups = append(groups, g)
		return err
	})
	return groups, d.fail(err, "group dead letters")
}

// keysAtOnce bounds the keys of one statement.
const keysAtOnce = 512

// MarkDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) MarkDeadLetters(ctx context.Context, subscription string, marks []driver.DeadLetterMark, state driver.DeadLetterState, note string) (marked []string, err error) {
	if state != driver.DeadLetterRetry && state != driver.DeadLetterDiscarded {
		return nil, fmt.Errorf("%s: a letter cannot be marked as %q, only for retry or discarded", d.dialect.Name, state)
	}
	for len(marks) > 0 {
		some := marks[:min(keysAtOnce, len(marks))]
		marks = marks[len(some):]
		ours, err := d.mark(ctx, subscription, some, state, clean(note))
		marked = append(marked, ours...)
		if err != nil {
			return marked, d.fail(err, "mark %d dead letters of %s", len(some), subscription)
		}
	}
	return marked, nil
}

func (d *DeadLetters) mark(ctx context.Context, subscription string, marks []driver.DeadLetterMark, state driver.DeadLetterState, note string) (ours []string, err error) {
	times := make(map[string]int, len(marks))
	keys := make([]string, len(marks))
	for n, m := range marks {
		keys[n], times[m.Key] = m.Key, m.Times
	}
	err = d.atomically(ctx, func(ctx context.Context, run Statements) error {
		arguments := []any{subscription}
		ours = nil
		err := run.Each(ctx, "SELECT letter_key, times FROM {dead_letters} WHERE subscription = $1 AND letter_key IN "+in(&arguments, keys)+
			" AND (state = 'open' OR (state = 'retry' AND taken_until IS NULL)) ORDER BY letter_key"+d.dialect.ForUpdate, arguments, func(rows Rows) error {
			var key string
			var count int
			err := rows.Scan(&key, &count)
			if want := times[key]; want == 0 || want == count {
				ours = append(ours, key)
			}
			return err
		})
		if err != nil || len(ours) == 0 {
			return err
		}
		arguments = []any{subscription, string(state), note}
		_, err = run.Exec(ctx, "UPDATE {dead_letters} SET state = $2, note = $3, changed_at = {now}, taken_until = NULL WHERE subscription = $1 AND letter_key IN "+in(&arguments, ours), arguments...)
		if err != nil {
			return err
		}
		return d.remember(ctx, run, subscription, ours, state, note)
	})
	if err != nil {
		return nil, err
	}
	return ours, nil
}

// MarkedDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) MarkedDeadLetters(ctx context.Context) (subscriptions []string, err error) {
	if err := d.ready(ctx, d.pool()); err != nil {
		return nil, err
	}
	err = d.pool().Each(ctx, "SELECT DISTINCT subscription FROM {dead_letters} WHERE state = 'retry'", nil, func(rows Rows) error {
		var subscription string
		err := rows.Scan(&subscription)
		subscriptions = append(subscriptions, subscription)
		return err
	})
	return subscriptions, d.fail(err, "marked dead letters")
}

// takePage is how many marked letters are looked at in one statement.
const takePage = 1000

// TakeDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) TakeDeadLetters(ctx context.Context, subscription string, owns func(*driver.StoredDeadLetter) bool, limit int, lease time.Duration) (letters []driver.StoredDeadLetter, err error) {
	if err := d.ready(ctx, d.pool()); err != nil {
		return nil, err
	}
	const due = " AND state = 'retry' AND (taken_until IS NULL OR taken_until <= (SELECT {now}))"
	changed, key := int64(-1), ""
	for len(letters) < limit {
		// Looked at without a lock, then taken: what somebody else takes in between
		// is not due any more.
		var keys []string
		seen := 0
		err := d.pool().Each(ctx, "SELECT "+letterHead+" FROM {dead_letters} WHERE subscription = $1"+due+
			" AND changed_at >= $2 AND (changed_at > $2 OR letter_key > $3) ORDER BY changed_at, letter_key LIMIT $4",
			[]any{subscription, changed, key, takePage}, func(rows Rows) error {
				l, err := scanLetter(rows, false)
				if err != nil {
					return err
				}
				seen++
				changed, key = l.ChangedAt.UnixMicro(), l.Key
				if len(letters)+len(keys) < limit && (owns == nil || owns(&l)) {
					keys = append(keys, l.Key)
				}
				return nil
			})
		if err != nil {
			return letters, d.fail(err, "take dead letters of %s", subscription)
		}
		for len(keys) > 0 {
			some := keys[:min(keysAtOnce, len(keys))]
			keys = keys[len(some):]
			taken, err := d.take(ctx, subscription, some, due, lease)
			if err != nil {
				return letters, d.fail(err, "take dead letters of %s", subscription)
			}
			letters = append(letters, taken...)
		}
		if seen < takePage {
			break
		}
	}
	return letters, nil
}

func (d *DeadLetters) take(ctx context.Context, subscription string, keys []string, due string, lease time.Duration) (letters []driver.StoredDeadLetter, err error) {
	err = d.atomically(ctx, func(ctx context.Context, run Statements) error {
		letters = nil
		arguments := []any{subscription}
		var ours []string
		err := run.Each(ctx, "SELECT "+letterFull+", CASE WHEN taken_until IS NULL THEN 0 ELSE 1 END FROM {dead_letters} WHERE subscription = $1"+due+
			" AND letter_key IN "+in(&arguments, keys)+" ORDER BY changed_at, letter_key"+d.dialect.SkipLocked, arguments, func(rows Rows) error {
			var interrupted int
			l, err := scanLetter(rows, true, &interrupted)
			l.Interrupted = interrupted == 1
			letters, ours = append(letters, l), append(ours, l.Key)
			return err
		})
		if err != nil || len(ours) == 0 {
			return err
		}
		arguments = []any{subscription, microseconds(lease)}
		_, err = run.Exec(ctx, "UPDATE {dead_letters} SET taken_until = {now} + "+d.integer("$2")+" WHERE subscription = $1 AND letter_key IN "+in(&arguments, ours), arguments...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return letters, nil
}

// LeaseDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) LeaseDeadLetters(ctx context.Context, subscription string, keys []string, lease time.Duration) error {
	for len(keys) > 0 {
		some := keys[:min(keysAtOnce, len(keys))]
		keys = keys[len(some):]
		arguments := []any{subscription}
		until := "NULL"
		if lease > 0 {
			arguments = append(arguments, microseconds(lease))
			until = "{now} + " + d.integer("$2")
		}
		_, err := d.pool().Exec(ctx, "UPDATE {dead_letters} SET taken_until = "+until+" WHERE subscription = $1 AND state = 'retry' AND taken_until IS NOT NULL AND letter_key IN "+in(&arguments, some), arguments...)
		if err != nil {
			return d.fail(err, "leases of %d dead letters of %s", len(some), subscription)
		}
	}
	return nil
}

// PruneDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) PruneDeadLetters(ctx context.Context, state driver.DeadLetterState, before time.Time, limit int) (pruned int, err error) {
	if state != driver.DeadLetterResolved && state != driver.DeadLetterDiscarded {
		return 0, fmt.Errorf("%s: %q: %w", d.dialect.Name, state, driver.ErrPrune)
	}
	if err := d.ready(ctx, d.pool()); err != nil {
		return 0, err
	}
	for pruned < limit {
		gone := 0
		atOnce := min(keysAtOnce, limit-pruned)
		err := d.atomically(ctx, func(ctx context.Context, run Statements) error {
			keys := make(map[string][]string)
			gone = 0
			err := run.Each(ctx, "SELECT subscription, letter_key FROM {dead_letters} WHERE state = $1 AND changed_at < $2 ORDER BY subscription, letter_key LIMIT $3"+d.dialect.ForUpdate,
				[]any{string(state), before.UnixMicro(), atOnce}, func(rows Rows) error {
					var subscription, key string
					err := rows.Scan(&subscription, &key)
					keys[subscription] = append(keys[subscription], key)
					gone++
					return err
				})
			if err != nil {
				return err
			}
			for subscription, some := range keys {
				for _, table := range []string{"dead_letters", "dead_letter_changes"} {
					arguments := []any{subscription}
					if _, err := run.Exec(ctx, "DELETE FROM {"+table+"} WHERE subscription = $1 AND letter_key IN "+in(&arguments, some), arguments...); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return pruned, d.fail(err, "prune dead letters that are %s", state)
		}
		if pruned += gone; gone < atOnce {
			break
		}
	}
	return pruned, nil
}

// ResolveDeadLetter implements [driver.DeadLetterStore].
func (d *DeadLetters) ResolveDeadLetter(ctx context.Context, subscription, key string) error {
	err := d.atomically(ctx, func(ctx context.Context, run Statements) error {
		var state string
		found, err := run.One(ctx, "SELECT state FROM {dead_letters} WHERE subscription = $1 AND letter_key = $2"+d.dialect.ForUpdate, []any{subscription, key}, &state)
		switch {
		case err != nil:
			return err
		case !found:
			return driver.ErrNoDeadLetter
		case state != string(driver.DeadLetterRetry):
			return nil
		}
		_, err = run.Exec(ctx, "UPDATE {dead_letters} SET state = 'resolved', changed_at = {now}, taken_until = NULL WHERE subscription = $1 AND letter_key = $2", subscription, key)
		if err != nil {
			return err
		}
		return d.remember(ctx, run, subscription, []string{key}, driver.DeadLetterResolved, "")
	})
	return d.fail(err, "resolve %s of %s", key, subscription)
}

// DeadLetterChanges implements [driver.DeadLetterHistory].
func (d *DeadLetters) DeadLetterChanges(ctx context.Context, subscription, key string) (changes []driver.DeadLetterChange, err error) {
	err = d.pool().Each(ctx, "SELECT changed_at, state, note FROM {dead_letter_changes} WHERE subscription = $1 AND letter_key = $2 ORDER BY number", []any{subscription, key}, func(rows Rows) error {
		var changed int64
		var state, note string
		err := rows.Scan(&changed, &state, &note)
		changes = append(changes, driver.DeadLetterChange{At: at(changed), State: driver.DeadLetterState(state), Note: note})
		return err
	})
	return changes, d.fail(err, "history of %s of %s", key, subscription)
}

// Durable implements [driver.DeadLetterStore].
func (*DeadLetters) Durable() bool { return true }
