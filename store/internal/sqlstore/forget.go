package sqlstore

import (
	"context"
	"strconv"
	"strings"

	"github.com/tidings-go/tidings/driver"
)

var _ driver.Forgetter = (*base)(nil)

// erasure is what is done to the rows of an aggregate in one table. $1 is the
// aggregate's id.
type erasure struct {
	table, what string
	where       string // of the table as e
	erase       string // "": the entry behind does it
	unfinished  bool
}

const (
	unread  = "EXISTS (SELECT 1 FROM {positions} p WHERE p.channel = e.channel AND p.slot = e.slot AND p.position <= e.position)"
	changed = "EXISTS (SELECT 1 FROM {dead_letters} d WHERE d.subscription = {dead_letter_changes}.subscription AND d.letter_key = {dead_letter_changes}.letter_key AND d.aggregate_id = $1)"
)

var erasures = []erasure{
	{"outbox", "deleted: never sent", "e.aggregateid = $1", "DELETE FROM {outbox} WHERE aggregateid = $1", true},
	{"log", "deleted: not read by every subscription", "e.aggregateid = $1 AND " + unread, "", true},
	{"log", "deleted", "e.aggregateid = $1 AND NOT " + unread, "DELETE FROM {log} WHERE aggregateid = $1", false},
	{"parked", "deleted: never handled", "e.lane_key = $1 OR e.message_key = $1", "DELETE FROM {parked} WHERE lane_key = $1 OR message_key = $1", true},
	{"outbox_sent", "deleted", "e.aggregateid = $1", "DELETE FROM {outbox_sent} WHERE aggregateid = $1", false},
	{"outbox_discarded", "deleted", "e.aggregateid = $1", "DELETE FROM {outbox_discarded} WHERE aggregateid = $1", false},
	{"outbox_held", "deleted", "e.aggregateid = $1", "DELETE FROM {outbox_held} WHERE aggregateid = $1", false},
	{"lane_orders", "deleted", "e.lane_key = $1", "DELETE FROM {lane_orders} WHERE lane_key = $1", false},
	{"dead_letter_changes", "deleted", strings.ReplaceAll(changed, "{dead_letter_changes}", "e"), "DELETE FROM {dead_letter_changes} WHERE " + changed, false},
	{"dead_letters", "deleted", "e.aggregate_id = $1", "DELETE FROM {dead_letters} WHERE aggregate_id = $1", false},
}

// ForgetAggregate implements [driver.Forgetter], in one transaction. It looks at every dedup key, which takes
// its time where there are many.
func (b *base) ForgetAggregate(ctx context.Context, request driver.ForgetRequest) (all []driver.Forgotten, err error) {
	if err := b.ready(ctx, b.pool()); err != nil {
		return nil, err
	}
	id := clean(request.AggregateID)
	if id == "" {
		return nil, b.fail(errNoAggregate, "forget")
	}
	err = b.atomically(ctx, func(ctx context.Context, run Statements) error {
		all = nil
		unfinished := false
		for _, e := range erasures {
			if e.table == "log" && b.dialect.NoLog {
				continue
			}
			var count int64
			if _, err := run.One(ctx, "SELECT count(*) FROM {"+e.table+"} e WHERE "+e.where, []any{id}, &count); err != nil {
				return err
			}
			if count > 0 {
				all = append(all, driver.Forgotten{Place: b.dialect.Quote(e.table), Count: count, What: e.what, Unfinished: e.unfinished})
				unfinished = unfinished || e.unfinished
			}
		}
		keys := make(map[string][][2]string)
		for _, table := range []string{"claims", "starts"} {
			found, err := b.keysOf(ctx, run, table, id)
			if err != nil {
				return err
			}
			keys[table] = found
			if len(found) > 0 {
				f := driver.Forgotten{Place: b.dialect.Quote(table), Count: int64(len(found)), What: "deleted: an event that is delivered again is handled again"}
				if !request.Keys {
					f.Kept, f.What = true, "kept for dedup: event type and aggregate id, no payload"
				}
				all = append(all, f)
			}
		}
		switch {
		case unfinished && !request.Unfinished:
			return driver.ErrUnfinished
		case request.Dry:
			return nil
		}
		for _, e := range erasures {
			if e.erase == "" || e.table == "log" && b.dialect.NoLog {
				continue
			}
			if _, err := run.Exec(ctx, e.erase, id); err != nil {
				return err
			}
		}
		if !request.Keys {
			return nil
		}
		for table, found := range keys {
			for _, key := range found {
				if _, err := run.Exec(ctx, "DELETE FROM {"+table+"} WHERE subscription = $1 AND claim_key = $2", key[0], key[1]); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return all, b.fail(err, "forget an aggregate")
}

// keysOf are subscription and key of the dedup keys of an aggregate.
func (b *base) keysOf(ctx context.Context, run Statements, table, id string) (keys [][2]string, err error) {
	err = run.Each(ctx, "SELECT subscription, claim_key FROM {"+table+"} WHERE substr(claim_key, length(claim_key) - length("+b.text("$1")+") + 1) = $1", []any{id}, func(rows Rows) error {
		var subscription, key string
		err := rows.Scan(&subscription, &key)
		if isKeyOf(key, id) {
			keys = append(keys, [2]string{subscription, key})
		}
		return err
	})
	return keys, err
}

// isKeyOf reports whether a dedup key, as the engine writes it, is of an
// aggregate: type, line end and aggregate id (once), or type, line end, the length
// of the event id, line end, event id and aggregate id (repeatable).
func isKeyOf(key, aggregateID string) bool {
	eventType, rest, _ := strings.Cut(key, "\n")
	if strings.HasPrefix(eventType, "id:") { // of an event without an aggregate
		return false
	}
	if rest == aggregateID {
		return true
	}
	digits, rest, _ := strings.Cut(rest, "\n")
	length, err := strconv.Atoi(digits)
	return err == nil && length >= 0 && length <= len(rest) && rest[length:] == aggregateID
}
