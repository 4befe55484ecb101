package sqlstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

// Log is what driver/sqldb needs, over a store. All methods may be called at
// once.
type Log struct {
	*base
	*DeadLetters
	wake func(ctx context.Context) <-chan struct{}
}

// Log returns the log of this store, for driver/sqldb. Its dead letters are
// those of DeadLetters.
func (s *Store[TX]) Log() outbox.Log { return &Log{s.base, &DeadLetters{s.base}, s.wake} }

var _ outbox.Log = (*Log)(nil)

// Durable settles what both of its parts have.
func (*Log) Durable() bool { return true }

// Append implements [outbox.Log]. Where there is one writer at a time, no row can
// become visible later than one with a higher position, so rows go into the log
// at once, unless others wait in the outbox.
func (l *Log) Append(ctx context.Context, rows []outbox.Row) error {
	if err := l.base.ready(ctx, l.base.pool()); err != nil {
		return err
	}
	return l.base.atomically(ctx, func(ctx context.Context, run Statements) error {
		if l.base.dialect.OneWriter {
			var one int
			waiting, err := run.One(ctx, "SELECT 1 FROM {outbox} LIMIT 1", nil, &one)
			if err != nil {
				return l.base.fail(err, "look for rows without a position")
			}
			if !waiting {
				return l.base.fail(l.append(ctx, run, rows), "append %d events", len(rows))
			}
		}
		return l.base.add(ctx, run, rows)
	})
}

// append numbers rows and puts them into the log.
func (l *Log) append(ctx context.Context, run Statements, rows []outbox.Row) error {
	if err := l.base.storable(rows); err != nil {
		return err
	}
	next := make(map[int]int64)
	for _, r := range rows {
		next[r.Slot] = 0
	}
	slots := slices.Sorted(maps.Keys(next))
	var arguments []any
	err := run.Each(ctx, "SELECT slot, next_position FROM {log_slots} WHERE slot IN "+in(&arguments, slots), arguments, func(found Rows) error {
		var slot int
		var position int64
		err := found.Scan(&slot, &position)
		next[slot] = position
		return err
	})
	if err != nil {
		return err
	}
	for rest := rows; len(rest) > 0; {
		n := statementRows(len(rest))
		var statement strings.Builder
		statement.WriteString("INSERT INTO {log} (slot, position, id, aggregatetype, aggregateid, type, payload, headers, created_at) VALUES ")
		arguments := make([]any, 0, n*8)
		for i, r := range rest[:n] {
			headers, err := encodeHeaders(r.Headers)
			if err != nil {
				return fmt.Errorf("%s %s: headers: %w", r.Type, r.ID, err)
			}
			if i > 0 {
				statement.WriteString(", ")
			}
			at := len(arguments)
			fmt.Fprintf(&statement, "($%d, $%d, $%d, $%d, $%d, $%d, $%d, $%d, {now})", at+1, at+2, at+3, at+4, at+5, at+6, at+7, at+8)
			arguments = append(arguments, r.Slot, next[r.Slot], r.ID, r.Channel, r.AggregateID, r.Type, string(r.Payload), headers)
			next[r.Slot]++
		}
		if _, err := run.Exec(ctx, statement.String(), arguments...); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return l.move(ctx, run, slots, next)
}

// Number implements [outbox.Log]. Whoever locks the row of a slot moves its rows:
// what is visible then, in the order of sequence. A row that becomes visible
// later gets a later position.
func (l *Log) Number(ctx context.Context, limit int) (numbered int, err error) {
	if err := l.base.ready(ctx, l.base.pool()); err != nil {
		return 0, err
	}
	waiting, err := l.waiting(ctx, limit)
	if err != nil || len(waiting) == 0 {
		return 0, l.base.fail(err, "look for rows without a position")
	}
	err = l.base.atomically(ctx, func(ctx context.Context, run Statements) error {
		numbered, err = l.number(ctx, run, waiting, limit, l.base.dialect.SkipLocked)
		if err != nil || numbered == 0 || l.base.dialect.Notify == nil {
			return err
		}
		return l.base.dialect.Notify(ctx, run)
	})
	return numbered, l.base.fail(err, "give rows their positions")
}

// waiting are the slots of the first rows without a position.
func (l *Log) waiting(ctx context.Context, limit int) (slots []int, err error) {
	var bare []int64
	seen := make(map[int]bool)
	err = l.base.pool().Each(ctx, "SELECT sequence, coalesce(slot, -1) FROM {outbox} ORDER BY sequence LIMIT $1", []any{limit}, func(rows Rows) error {
		var sequence int64
		var slot int
		err := rows.Scan(&sequence, &slot)
		if slot < 0 {
			bare = append(bare, sequence)
		} else {
			seen[slot] = true
		}
		return err
	})
	if err == nil && len(bare) > 0 {
		var assigned map[int64]int
		assigned, err = l.base.assign(ctx, bare)
		for _, slot := range assigned {
			seen[slot] = true
		}
	}
	for slot := range outbox.Slots {
		if seen[slot] {
			slots = append(slots, slot)
		}
	}
	return slots, err
}

// number moves rows of some slots in the transaction. lock is what a SELECT of
// slots ends with.
func (l *Log) number(ctx context.Context, run Statements, waiting []int, limit int, lock string) (int, error) {
	var arguments []any
	var slots []int
	next := make(map[int]int64)
	err := run.Each(ctx, "SELECT slot, next_position FROM {log_slots} WHERE slot IN "+in(&arguments, waiting)+" ORDER BY slot"+lock, arguments, func(rows Rows) error {
		var slot int
		var position int64
		err := rows.Scan(&slot, &position)
		slots, next[slot] = append(slots, slot), position
		return err
	})
	if err != nil || len(slots) == 0 {
		return 0, err
	}
	// Read again: until the lock was had, another may have moved them.
	var sequences []int64
	arguments = []any{limit}
	err = run.Each(ctx, "SELECT sequence, slot FROM {outbox} WHERE slot IN "+in(&arguments, slots)+" ORDER BY sequence LIMIT $1", arguments, func(rows Rows) error {
		var sequence int64
		var slot int
		err := rows.Scan(&sequence, &slot)
		sequences = append(sequences, sequence)
		next[slot]++
		return err
	})
	if err != nil || len(sequences) == 0 {
		return 0, err
	}
	arguments = nil
	those := in(&arguments, sequences)
	_, err = run.Exec(ctx, `INSERT INTO {log} (slot, position, id, aggregatetype, aggregateid, type, payload, headers, created_at)
		SELECT o.slot, s.next_position + row_number() OVER (PARTITION BY o.slot ORDER BY o.sequence) - 1, o.id, o.aggregatetype, o.aggregateid, o.type, o.payload, o.headers, o.created_at
		FROM {outbox} o JOIN {log_slots} s ON s.slot = o.slot WHERE o.sequence IN `+those, arguments...)
	if err != nil {
		return 0, err
	}
	if _, err := run.Exec(ctx, "DELETE FROM {outbox} WHERE sequence IN "+those, arguments...); err != nil {
		return 0, err
	}
	return len(sequences), l.move(ctx, run, slots, next)
}

// move stores the positions that come next in some slots.
func (l *Log) move(ctx context.Context, run Statements, slots []int, next map[int]int64) error {
	var cases strings.Builder
	var arguments []any
	for n := range statementSize(len(slots)) { // as in, so that there are few different statements
		slot := slots[min(n, len(slots)-1)]
		arguments = append(arguments, slot, next[slot])
		fmt.Fprintf(&cases, " WHEN $%d THEN %s", len(arguments)-1, l.base.integer(fmt.Sprintf("$%d", len(arguments))))
	}
	_, err := run.Exec(ctx, "UPDATE {log_slots} SET next_position = CASE slot"+cases.String()+" ELSE next_position END WHERE slot IN "+in(&arguments, slots), arguments...)
	return err
}

// Read implements [outbox.Log].
func (l *Log) Read(ctx context.Context, from []outbox.Place, channels []string, limit int) (entries []outbox.Entry, err error) {
	if len(from) == 0 || limit < 1 {
		return nil, nil
	}
	next := make(map[int]int64, outbox.Slots)
	run := l.base.pool()
	err = run.Each(ctx, "SELECT slot, next_position FROM {log_slots}", nil, func(rows Rows) error {
		var slot int
		var position int64
		err := rows.Scan(&slot, &position)
		next[slot] = position
		return err
	})
	if err != nil {
		return nil, l.base.fail(err, "read the ends of the log")
	}
	var places [][2]int64
	for _, p := range from {
		if next[p.Slot] > p.Position {
			places = append(places, [2]int64{int64(p.Slot), p.Position})
		}
	}
	if len(places) == 0 {
		return nil, nil
	}
	text, err := json.Marshal(places)
	if err != nil {
		return nil, err
	}
	arguments := []any{string(text), limit}
	wanted := in(&arguments, channels)
	met := make(map[int]bool, len(places))
	// Positions are dense, so a range of them is a limit. The statement is the same for any number of slots.
	joined := "JOIN {log} e ON e.slot = p.slot AND e.position >= p.position AND e.position < p.position + $2"
	if l.base.dialect.Lateral {
		joined = "CROSS JOIN LATERAL (SELECT * FROM {log} l WHERE l.slot = p.slot AND l.position >= p.position ORDER BY l.position LIMIT " + l.base.integer("$2") + ") e"
	}
	err = run.Each(ctx, `SELECT e.slot, e.position, e.aggregatetype, e.created_at, CASE WHEN e.aggregatetype IN `+wanted+` THEN 1 ELSE 0 END, e.id, e.aggregateid, e.type, coalesce(e.headers, ''), CASE WHEN e.aggregatetype IN `+wanted+` THEN e.payload ELSE '' END
		FROM `+l.base.dialect.Places+` p
		`+joined+`
		ORDER BY e.slot, e.position`, arguments, func(rows Rows) error {
		var e outbox.Entry
		var created int64
		var ours int
		var headers string
		var payload []byte
		r := outbox.Row{}
		err := rows.Scan(&e.Slot, &e.Position, &r.Channel, &created, &ours, &r.ID, &r.AggregateID, &r.Type, &headers, &payload)
		if err != nil {
			return err
		}
		if e.Foreign = ours == 0; e.Foreign {
			e.Row.Channel = r.Channel
		} else {
			r.Slot, r.Payload, r.CreatedAt = e.Slot, payload, at(created)
			if r.Headers, err = decodeHeaders(headers); err != nil {
				r.Headers = nil // somebody else's row
			}
			e.Row = r
		}
		met[e.Slot] = true
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		return nil, l.base.fail(err, "read the log")
	}
	for _, p := range places {
		if !met[int(p[0])] {
			more, err := l.beyondGap(ctx, int(p[0]), p[1], channels, limit)
			if err != nil {
				return nil, l.base.fail(err, "read the log")
			}
			entries = append(entries, more...)
		}
	}
	return entries, nil
}

// beyondGap reads on where somebody has deleted so many entries that a whole
// range is empty.
func (l *Log) beyondGap(ctx context.Context, slot int, position int64, channels []string, limit int) ([]outbox.Entry, error) {
	next := int64(-1)
	_, err := l.base.pool().One(ctx, "SELECT coalesce(min(position), -1) FROM {log} WHERE slot = $1 AND position >= $2", []any{slot, position}, &next)
	if err != nil || next < 0 {
		return nil, err
	}
	return l.Read(ctx, []outbox.Place{{Slot: slot, Position: next}}, channels, limit)
}

// Begin implements [outbox.Log]. With every slot locked nothing is numbered
// meanwhile, by nobody.
func (l *Log) Begin(ctx context.Context, subscription string, start driver.StartAt) (known bool, err error) {
	if err := l.base.ready(ctx, l.base.pool()); err != nil {
		return false, err
	}
	is := func(run Statements) (bool, error) {
		var one int
		return run.One(ctx, "SELECT 1 FROM {positions} WHERE subscription = $1 LIMIT 1", []any{subscription}, &one)
	}
	if known, err = is(l.base.pool()); known || err != nil {
		return known, l.base.fail(err, "look for subscription %s", subscription)
	}
	all := make([]int, outbox.Slots)
	for slot := range all {
		all[slot] = slot
	}
	err = l.base.atomically(ctx, func(ctx context.Context, run Statements) error {
		if err := run.Each(ctx, "SELECT slot FROM {log_slots} ORDER BY slot"+l.base.dialect.ForUpdate, nil, func(rows Rows) error {
			var slot int
			return rows.Scan(&slot)
		}); err != nil {
			return err
		}
		if known, err = is(run); known || err != nil {
			return err
		}
		if start.Mode == driver.StartNow {
			for {
				n, err := l.number(ctx, run, all, beginBatch, l.base.dialect.ForUpdate)
				if err != nil {
					return err
				}
				if n < beginBatch {
					break
				}
			}
		}
		position, since := "coalesce((SELECT min(e.position) FROM {log} e WHERE e.slot = s.slot), s.next_position)", any(nil)
		switch start.Mode {
		case driver.StartNow:
			position = "s.next_position"
		case driver.StartTime:
			since = start.Time.UnixMicro()
		}
		_, err := run.Exec(ctx, "INSERT INTO {positions} (subscription, slot, position, finished, since) SELECT "+l.base.text("$1")+", s.slot, "+position+", '', "+l.base.integer("$2")+" FROM {log_slots} s", subscription, since)
		return err
	})
	return known, l.base.fail(err, "begin subscription %s", subscription)
}

const beginBatch = 2000

// Progress implements [outbox.Log].
func (l *Log) Progress(ctx context.Context, subscription string, slots []int) (all []outbox.Progress, err error) {
	if len(slots) == 0 {
		return nil, nil
	}
	arguments := []any{subscription}
	err = l.base.pool().Each(ctx, "SELECT slot, position, finished, coalesce(since, 0) FROM {positions} WHERE subscription = $1 AND slot IN "+in(&arguments, slots)+" ORDER BY slot", arguments, func(rows Rows) error {
		var p outbox.Progress
		var since int64
		err := rows.Scan(&p.Slot, &p.Position, &p.Finished, &since)
		if since != 0 {
			p.Since = at(since)
		}
		all = append(all, p)
		return err
	})
	return all, l.base.fail(err, "read positions of %s", subscription)
}

// Commit implements [outbox.Log].
func (l *Log) Commit(ctx context.Context, group, holder, subscription string, leases []driver.Lease, progress []outbox.Progress) (refused []driver.Lease, err error) {
	if len(leases) == 0 {
		return nil, nil
	}
	err = l.base.atomically(ctx, func(ctx context.Context, run Statements) error {
		refused = nil
		valid, err := l.base.holding(ctx, run, group, holder, leases)
		if err != nil {
			return err
		}
		held := make(map[driver.Lease]bool, len(valid))
		for _, lease := range valid {
			held[lease] = true
		}
		var rows []string
		arguments := []any{subscription}
		for n, lease := range leases {
			if !held[lease] {
				refused = append(refused, lease)
				continue
			}
			p := progress[n]
			arguments = append(arguments, p.Slot, p.Position, p.Finished)
			rows = append(rows, fmt.Sprintf("(%s, $%d, $%d, $%d)", "$1", len(arguments)-2, len(arguments)-1, len(arguments)))
		}
		if len(rows) == 0 {
			return nil
		}
		_, err = run.Exec(ctx, "INSERT INTO {positions} (subscription, slot, position, finished) VALUES "+strings.Join(rows, ", ")+" "+
			l.base.dialect.Upsert("subscription, slot")+" position = "+l.base.dialect.New("position")+", finished = "+l.base.dialect.New("finished"), arguments...)
		return err
	})
	return refused, l.base.fail(err, "commit positions of %s", subscription)
}

// Trim implements [outbox.Log]. It takes some of the oldest entries of every slot,
// because what was stored at about the same time lies together, and asks for them
// by their positions, so that its work is bounded by what it deletes, whoever is
// behind.
func (l *Log) Trim(ctx context.Context, keep time.Duration, limit int) (deleted int, err error) {
	if limit < 1 {
		return 0, errors.New(l.base.dialect.Name + ": trim the log: a limit below 1")
	}
	deleted, err = l.trim(ctx, keep, limit)
	return deleted, l.base.fail(err, "trim the log")
}

func (l *Log) trim(ctx context.Context, keep time.Duration, limit int) (int, error) {
	run := l.base.pool()
	passed := make(map[int]int64, outbox.Slots) // what every subscription has passed
	err := run.Each(ctx, "SELECT s.slot, coalesce((SELECT min(p.position) FROM {positions} p WHERE p.slot = s.slot), s.next_position) FROM {log_slots} s", nil, func(rows Rows) error {
		var slot int
		var position int64
		err := rows.Scan(&slot, &position)
		passed[slot] = position
		return err
	})
	if err != nil {
		return 0, err
	}
	var places [][2]int64
	for slot := range outbox.Slots { // what was deleted before may lie there as dead rows: it is not looked at again
		places = append(places, [2]int64{int64(slot), l.base.oldest[slot].Load()})
	}
	from, err := json.Marshal(places)
	if err != nil {
		return 0, err
	}
	places = places[:0]
	err = run.Each(ctx, "SELECT p.slot, coalesce((SELECT min(e.position) FROM {log} e WHERE e.slot = p.slot AND e.position >= p.position), -1) FROM "+l.base.dialect.Places+" p", []any{string(from)}, func(rows Rows) error {
		var slot int
		var oldest int64
		err := rows.Scan(&slot, &oldest)
		if err == nil && oldest >= 0 {
			l.base.oldest[slot].Store(oldest)
			if oldest < passed[slot] {
				places = append(places, [2]int64{int64(slot), oldest})
			}
		}
		return err
	})
	if err != nil || len(places) == 0 {
		return 0, err
	}
	each := max(limit/len(places), 1)
	var doomed [][2]int64
	for _, p := range places[:min(len(places), limit)] {
		for position := p[1]; position < min(p[1]+int64(each), passed[int(p[0])]); position++ {
			doomed = append(doomed, [2]int64{p[0], position})
		}
	}
	those, err := json.Marshal(doomed)
	if err != nil {
		return 0, err
	}
	deleted, err := l.base.write(ctx, "DELETE FROM {log} WHERE (slot, position) IN (SELECT p.slot, p.position FROM "+l.base.dialect.Places+" p) AND created_at < (SELECT {now}) - "+l.base.integer("$2"),
		string(those), microseconds(keep))
	return int(deleted), err
}

// Wake implements [outbox.Log].
func (l *Log) Wake(ctx context.Context) <-chan struct{} {
	if l.wake == nil {
		return nil
	}
	return l.wake(ctx)
}

// Check implements [outbox.Log].
func (l *Log) Check(ctx context.Context) error { return l.base.Check(ctx) }
