package sqlstore

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

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
	if l.base.dialect.OneWriter {
		channels := make(map[string]bool)
		for _, r := range rows {
			channels[r.Channel] = true
		}
		if err := l.list(ctx, channels); err != nil {
			return l.base.fail(err, "append %d events", len(rows))
		}
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

// list makes the rows of channels, once for each process.
func (l *Log) list(ctx context.Context, channels map[string]bool) error {
	for _, channel := range slices.Sorted(maps.Keys(channels)) {
		if _, ok := l.base.channels.Load(channel); ok {
			continue
		}
		_, err := l.base.write(ctx, "INSERT INTO {log_slots} (channel, slot, next_position) SELECT p.channel, p.slot, p.position FROM "+l.base.dialect.Places+
			" p WHERE 1 = 1 ON CONFLICT (channel, slot) DO NOTHING", beginnings(outbox.Parts(channel)))
		if err != nil {
			return err
		}
		l.base.channels.Store(channel, true)
	}
	return nil
}

// append numbers rows and puts them into the log.
func (l *Log) append(ctx context.Context, run Statements, rows []outbox.Row) error {
	if err := l.base.storable(rows); err != nil {
		return err
	}
	next := make(map[outbox.Part]int64)
	var parts []outbox.Part
	for _, r := range rows {
		part := outbox.Part{Channel: r.Channel, Slot: r.Slot}
		if _, ok := next[part]; !ok {
			parts, next[part] = append(parts, part), 0
		}
	}
	if _, err := l.ends(ctx, run, parts, next, ""); err != nil {
		return err
	}
	for rest := rows; len(rest) > 0; {
		n := statementRows(len(rest))
		arguments := make([]any, 0, n*8)
		for _, r := range rest[:n] {
			headers, err := encodeHeaders(r.Headers)
			if err != nil {
				return fmt.Errorf("%s %s: headers: %w", r.Type, r.ID, err)
			}
			part := outbox.Part{Channel: r.Channel, Slot: r.Slot}
			arguments = append(arguments, r.Channel, r.Slot, next[part], r.ID, r.AggregateID, r.Type, string(r.Payload), headers)
			next[part]++
		}
		if _, err := run.Exec(ctx, appends[n], arguments...); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return l.move(ctx, run, parts, next)
}

// appends are the statements that put rows into the log, by their number.
var appends = func() map[int]string {
	statements := make(map[int]string)
	for n := 1; n <= mostAdded; n *= 2 {
		var statement strings.Builder
		statement.WriteString("INSERT INTO {log} (channel, slot, position, id, aggregateid, type, payload, headers, created_at) VALUES ")
		for i := range n {
			if i > 0 {
				statement.WriteString(", ")
			}
			at := i * 8
			fmt.Fprintf(&statement, "($%d, $%d, $%d, $%d, $%d, $%d, $%d, $%d, {now})", at+1, at+2, at+3, at+4, at+5, at+6, at+7, at+8)
		}
		statements[n] = statement.String()
	}
	return statements
}()

// Number implements [outbox.Log]. Whoever locks the row of a part moves its rows:
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

// waiting are the parts of the first rows without a position.
func (l *Log) waiting(ctx context.Context, limit int) (parts []outbox.Part, err error) {
	var bare []int64
	of := make(map[int64]string) // the channels of those
	seen := make(map[outbox.Part]bool)
	channels := make(map[string]bool)
	see := func(part outbox.Part) {
		if !seen[part] {
			parts, seen[part], channels[part.Channel] = append(parts, part), true, true
		}
	}
	err = l.base.pool().Each(ctx, "SELECT sequence, aggregatetype, coalesce(slot, -1) FROM {outbox} ORDER BY sequence LIMIT $1", []any{limit}, func(rows Rows) error {
		var sequence int64
		var part outbox.Part
		err := rows.Scan(&sequence, &part.Channel, &part.Slot)
		if part.Slot < 0 {
			bare, of[sequence] = append(bare, sequence), part.Channel
		} else {
			see(part)
		}
		return err
	})
	if err == nil && len(bare) > 0 {
		var assigned map[int64]int
		assigned, err = l.base.assign(ctx, bare)
		for sequence, slot := range assigned {
			see(outbox.Part{Channel: of[sequence], Slot: slot})
		}
	}
	if err == nil {
		err = l.list(ctx, channels)
	}
	return parts, err
}

// number moves rows of some parts in the transaction. lock is what a SELECT of
// parts ends with.
func (l *Log) number(ctx context.Context, run Statements, waiting []outbox.Part, limit int, lock string) (int, error) {
	next := make(map[outbox.Part]int64)
	parts, err := l.ends(ctx, run, waiting, next, lock)
	if err != nil || len(parts) == 0 {
		return 0, err
	}
	slots, channels := make(map[int]bool), make(map[string]bool)
	for _, part := range parts {
		slots[part.Slot], channels[part.Channel] = true, true
	}
	// Read again: until the lock was had, another may have moved them.
	var sequences []int64
	arguments := []any{limit}
	query := "SELECT sequence, aggregatetype, slot FROM {outbox} WHERE slot IN " + in(&arguments, slices.Collect(maps.Keys(slots))) +
		" AND aggregatetype IN " + in(&arguments, slices.Collect(maps.Keys(channels))) + " ORDER BY sequence LIMIT $1"
	err = run.Each(ctx, query, arguments, func(rows Rows) error {
		var sequence int64
		var part outbox.Part
		err := rows.Scan(&sequence, &part.Channel, &part.Slot)
		if _, locked := next[part]; locked {
			sequences = append(sequences, sequence)
			next[part]++
		}
		return err
	})
	if err != nil || len(sequences) == 0 {
		return 0, err
	}
	arguments = nil
	those := in(&arguments, sequences)
	_, err = run.Exec(ctx, `INSERT INTO {log} (channel, slot, position, id, aggregateid, type, payload, headers, created_at)
		SELECT o.aggregatetype, o.slot, s.next_position + row_number() OVER (PARTITION BY o.aggregatetype, o.slot ORDER BY o.sequence) - 1, o.id, o.aggregateid, o.type, o.payload, o.headers, o.created_at
		FROM {outbox} o JOIN {log_slots} s ON s.channel = o.aggregatetype AND s.slot = o.slot WHERE o.sequence IN `+those, arguments...)
	if err != nil {
		return 0, err
	}
	if _, err := run.Exec(ctx, "DELETE FROM {outbox} WHERE sequence IN "+those, arguments...); err != nil {
		return 0, err
	}
	return len(sequences), l.move(ctx, run, parts, next)
}

// ends reads the positions that come next in some parts, in the order in which
// everybody locks them, and returns those parts that were not left out.
func (l *Log) ends(ctx context.Context, run Statements, parts []outbox.Part, next map[outbox.Part]int64, lock string) (had []outbox.Part, err error) {
	query := "SELECT s.channel, s.slot, s.next_position FROM " + l.base.dialect.Places + " p JOIN {log_slots} s ON s.channel = p.channel AND s.slot = p.slot"
	if lock != "" {
		query += " ORDER BY s.channel, s.slot" + lock
	}
	err = run.Each(ctx, query, []any{beginnings(parts)}, func(rows Rows) error {
		var part outbox.Part
		var position int64
		err := rows.Scan(&part.Channel, &part.Slot, &position)
		had, next[part] = append(had, part), position
		return err
	})
	return had, err
}

// move stores the positions that come next in some parts.
func (l *Log) move(ctx context.Context, run Statements, parts []outbox.Part, next map[outbox.Part]int64) error {
	places := make([]outbox.Place, len(parts))
	for n, part := range parts {
		places[n] = outbox.Place{Part: part, Position: next[part]}
	}
	_, err := run.Exec(ctx, "UPDATE {log_slots} AS s SET next_position = p.position FROM "+l.base.dialect.Places+" p WHERE s.channel = p.channel AND s.slot = p.slot", placesText(places))
	return err
}

// placesText is what the dialect's Places reads.
func placesText(places []outbox.Place) string {
	text := make([]byte, 0, 64*len(places)+2)
	text = append(text, '[')
	for n, p := range places {
		if n > 0 {
			text = append(text, ',')
		}
		text = append(appendPlace(text, p), ']')
	}
	return string(append(text, ']'))
}

// appendPlace leaves the bracket open for what a statement wants beside a place.
func appendPlace(text []byte, p outbox.Place) []byte {
	channel, _ := json.Marshal(p.Channel) // a string has no error
	text = append(append(append(text, '['), channel...), ',')
	text = append(strconv.AppendInt(text, int64(p.Slot), 10), ',')
	return strconv.AppendInt(text, p.Position, 10)
}

// beginnings are the places of parts at which each begins.
func beginnings(parts []outbox.Part) string {
	places := make([]outbox.Place, len(parts))
	for n, part := range parts {
		places[n].Part = part
	}
	return placesText(places)
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
