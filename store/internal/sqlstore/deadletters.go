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

// DeadLetters is a [driver.DeadLetterStore] and a [driver.DeadLetterHistory] over
// a store. All methods may be called at once.
type DeadLetters struct{ *base }

// DeadLetters returns the dead letters over this store. It is a
// [driver.DeadLetterHistory] too.
func (b *base) DeadLetters() driver.DeadLetterStore { return &DeadLetters{b} }

var (
	_ driver.DeadLetterStore   = (*DeadLetters)(nil)
	_ driver.DeadLetterHistory = (*DeadLetters)(nil)
)

// errCursor says that a cursor came from no listing.
var errCursor = errors.New("it comes from no listing")

// letterColumns are what a put replaces.
var letterColumns = []string{
	"state", "note", "changed_at", "taken_until", "failed_at", "fingerprint", "channel", "type", "id", "aggregate_id",
	"reason", "failure", "stack", "attempts", "position", "headers", "body",
}

// PutDeadLetter implements [driver.DeadLetters].
func (d *DeadLetters) PutDeadLetter(ctx context.Context, l driver.DeadLetter) error {
	if err := d.ready(ctx, d.pool()); err != nil {
		return err
	}
	headers, err := encodeHeaders(l.Headers)
	if err != nil {
		return d.fail(err, "put dead letter %s of %s: headers", l.Key(), l.Subscription)
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
		_, err := run.Exec(ctx, put, l.Subscription, key, l.FailedAt.UnixMicro(), driver.Fingerprint(l.Err), l.Channel, clean(l.Type), clean(l.ID), clean(l.AggregateID),
			l.Reason, clean(l.Err), clean(l.Stack), l.Attempts, clean(l.Position), headers, l.Body)
		if err != nil {
			return err
		}
		return d.remember(ctx, run, l.Subscription, []string{key}, driver.DeadLetterOpen, clean(l.Reason+": "+l.Err))
	})
	return d.fail(err, "put dead letter %s of %s", l.Key(), l.Subscription)
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

func scanLetter(rows Rows, whole bool) (driver.StoredDeadLetter, error) {
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
	if err := rows.Scan(into...); err != nil {
		return l, err
	}
	l.State, l.ChangedAt, l.FailedAt = driver.DeadLetterState(state), at(changed), at(failed)
	l.Cursor = strconv.FormatInt(failed, 10) + " " + l.Subscription + " " + l.Key
	var err error
	l.Headers, err = decodeHeaders(headers)
	return l, err
}

// ListDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) ListDeadLetters(ctx context.Context, filter driver.DeadLetterFilter, after string, limit int) ([]driver.StoredDeadLetter, error) {
	if err := d.ready(ctx, d.pool()); err != nil {
		return nil, err
	}
	arguments := []any{max(limit, 0)}
	var where []string
	and := func(condition string, values ...any) {
		for _, v := range values {
			arguments = append(arguments, v)
			condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(arguments)), 1)
		}
		where = append(where, condition)
	}
	if after != "" {
		parts := strings.SplitN(after, " ", 3)
		failed, err := strconv.ParseInt(parts[0], 10, 64)
		if err != nil || len(parts) < 3 {
			return nil, d.fail(errCursor, "cursor %q", after)
		}
		and("(failed_at, subscription, letter_key) < (?, ?, ?)", failed, parts[1], parts[2])
	}
	for column, value := range map[string]string{
		"subscription": filter.Subscription, "type": filter.Type, "state": string(filter.State), "fingerprint": filter.Fingerprint,
	} {
		if value != "" {
			and(column+" = ?", value)
		}
	}
	if !filter.Since.IsZero() {
		and("failed_at >= ?", filter.Since.UnixMicro())
	}
	if !filter.Until.IsZero() {
		and("failed_at < ?", filter.Until.UnixMicro())
	}
	query := "SELECT " + letterHead + " FROM {dead_letters}"
	if len(where) > 0 {
		query += " WHERE " + strings.Join(where, " AND ")
	}
	var letters []driver.StoredDeadLetter
	err := d.pool().Each(ctx, query+" ORDER BY failed_at DESC, subscription DESC, letter_key DESC LIMIT $1", arguments, func(rows Rows) error {
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

// MarkDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) MarkDeadLetters(ctx context.Context, subscription string, keys []string, state driver.DeadLetterState, note string) (marked int, err error) {
	if state != driver.DeadLetterRetry && state != driver.DeadLetterDiscarded {
		return 0, fmt.Errorf("%s: a letter cannot be marked as %q, only for retry or discarded", d.dialect.Name, state)
	}
	const atOnce = 512
	for len(keys) > 0 {
		some := keys[:min(atOnce, len(keys))]
		keys = keys[len(some):]
		n, err := d.mark(ctx, subscription, some, state, clean(note))
		marked += n
		if err != nil {
			return marked, d.fail(err, "mark %d dead letters of %s", len(some), subscription)
		}
	}
	return marked, nil
}

func (d *DeadLetters) mark(ctx context.Context, subscription string, keys []string, state driver.DeadLetterState, note string) (marked int, err error) {
	err = d.atomically(ctx, func(ctx context.Context, run Statements) error {
		arguments := []any{subscription}
		var ours []string
		err := run.Each(ctx, "SELECT letter_key FROM {dead_letters} WHERE subscription = $1 AND letter_key IN "+in(&arguments, keys)+
			" AND (state = 'open' OR (state = 'retry' AND taken_until IS NULL)) ORDER BY letter_key"+d.dialect.ForUpdate, arguments, func(rows Rows) error {
			var key string
			err := rows.Scan(&key)
			ours = append(ours, key)
			return err
		})
		if marked = len(ours); err != nil || marked == 0 {
			return err
		}
		arguments = []any{subscription, string(state), note}
		_, err = run.Exec(ctx, "UPDATE {dead_letters} SET state = $2, note = $3, changed_at = {now}, taken_until = NULL WHERE subscription = $1 AND letter_key IN "+in(&arguments, ours), arguments...)
		if err != nil {
			return err
		}
		return d.remember(ctx, run, subscription, ours, state, note)
	})
	return marked, err
}

// TakeDeadLetters implements [driver.DeadLetterStore].
func (d *DeadLetters) TakeDeadLetters(ctx context.Context, subscription string, limit int, lease time.Duration) (letters []driver.StoredDeadLetter, err error) {
	if limit < 1 {
		return nil, nil
	}
	if err := d.ready(ctx, d.pool()); err != nil {
		return nil, err
	}
	err = d.atomically(ctx, func(ctx context.Context, run Statements) error {
		letters = nil
		var keys []string
		err := run.Each(ctx, "SELECT "+letterFull+" FROM {dead_letters} WHERE subscription = $1 AND state = 'retry' AND (taken_until IS NULL OR taken_until <= (SELECT {now})) ORDER BY changed_at, letter_key LIMIT $2"+d.dialect.SkipLocked,
			[]any{subscription, limit}, func(rows Rows) error {
				l, err := scanLetter(rows, true)
				letters, keys = append(letters, l), append(keys, l.Key)
				return err
			})
		if err != nil || len(keys) == 0 {
			return err
		}
		arguments := []any{subscription, microseconds(lease)}
		_, err = run.Exec(ctx, "UPDATE {dead_letters} SET taken_until = {now} + "+d.integer("$2")+" WHERE subscription = $1 AND letter_key IN "+in(&arguments, keys), arguments...)
		return err
	})
	if err != nil {
		return nil, d.fail(err, "take dead letters of %s", subscription)
	}
	return letters, nil
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
