package sqlstore

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

// Read implements [outbox.Log].
func (l *Log) Read(ctx context.Context, from []outbox.Place, each, limit int) (entries []outbox.Entry, more bool, err error) {
	if len(from) == 0 || each < 1 || limit < 1 {
		return nil, false, nil
	}
	channels := make(map[string]bool)
	for _, p := range from {
		channels[p.Channel] = true
	}
	run := l.base.pool()
	next := make(map[outbox.Part]int64, len(from))
	var arguments []any
	err = run.Each(ctx, "SELECT channel, slot, next_position FROM {log_slots} WHERE channel IN "+in(&arguments, slices.Collect(maps.Keys(channels))), arguments, func(rows Rows) error {
		var part outbox.Part
		var position int64
		err := rows.Scan(&part.Channel, &part.Slot, &position)
		next[part] = position
		return err
	})
	if err != nil {
		return nil, false, l.base.fail(err, "read the ends of the log")
	}
	var places []outbox.Place
	for _, p := range from {
		if next[p.Part] > p.Position {
			places = append(places, p)
		}
	}
	if len(places) == 0 {
		return nil, false, nil
	}
	each = min(each, max(limit/len(places), 1))
	last := make(map[outbox.Part]int64, len(places)) // that was read
	read := func(places []outbox.Place) error {
		return l.read(ctx, places, each, func(e outbox.Entry) {
			last[e.Part] = e.Position
			entries = append(entries, e)
		})
	}
	if err := read(places); err != nil {
		return nil, false, l.base.fail(err, "read the log")
	}
	for _, p := range places {
		if _, met := last[p.Part]; !met {
			if err := l.beyondGap(ctx, p, read); err != nil {
				return nil, false, l.base.fail(err, "read the log")
			}
		}
	}
	for part, position := range last {
		more = more || position+1 < next[part]
	}
	return entries, more, nil
}

// read reads at most each entries from places on, of which none is beyond the end.
func (l *Log) read(ctx context.Context, places []outbox.Place, each int, entry func(outbox.Entry)) error {
	// Positions are dense, so a range of them is a limit. The statement is the same for any number of parts.
	joined := "JOIN {log} e ON e.channel = p.channel AND e.slot = p.slot AND e.position >= p.position AND e.position < p.position + $2"
	if l.base.dialect.Lateral {
		joined = "CROSS JOIN LATERAL (SELECT * FROM {log} l WHERE l.channel = p.channel AND l.slot = p.slot AND l.position >= p.position ORDER BY l.position LIMIT " + l.base.integer("$2") + ") e"
	}
	return l.base.pool().Each(ctx, `SELECT e.channel, e.slot, e.position, e.created_at, e.id, e.aggregateid, e.type, coalesce(e.headers, ''), e.payload
		FROM `+l.base.dialect.Places+` p
		`+joined+`
		ORDER BY e.channel, e.slot, e.position`, []any{placesText(places), each}, func(rows Rows) error {
		var e outbox.Entry
		var created int64
		var headers string
		r := &e.Row
		err := rows.Scan(&e.Channel, &e.Slot, &e.Position, &created, &r.ID, &r.AggregateID, &r.Type, &headers, &r.Payload)
		if err != nil {
			return err
		}
		r.Channel, r.Slot, r.CreatedAt = e.Channel, e.Slot, at(created)
		if r.Headers, err = decodeHeaders(headers); err != nil {
			r.Headers = nil // somebody else's row
		}
		entry(e)
		return nil
	})
}

// beyondGap reads on where somebody has deleted so many entries that a whole
// range is empty.
func (l *Log) beyondGap(ctx context.Context, from outbox.Place, read func([]outbox.Place) error) error {
	next := int64(-1)
	_, err := l.base.pool().One(ctx, "SELECT coalesce(min(position), -1) FROM {log} WHERE channel = $1 AND slot = $2 AND position >= $3", []any{from.Channel, from.Slot, from.Position}, &next)
	if err != nil || next < 0 {
		return err
	}
	return read([]outbox.Place{{Part: from.Part, Position: next}})
}

// Begin implements [outbox.Log]. With every slot of the new channels locked nothing
// of them is numbered meanwhile, by nobody.
func (l *Log) Begin(ctx context.Context, subscription string, channels []string, start driver.StartAt) (begun []string, err error) {
	if err := l.base.ready(ctx, l.base.pool()); err != nil {
		return nil, err
	}
	if begun, err = l.unknown(ctx, l.base.pool(), subscription, channels); err == nil && len(begun) > 0 {
		rows := make(map[string]bool)
		for _, channel := range begun {
			rows[channel] = true
		}
		err = l.list(ctx, rows)
	}
	if err != nil || len(begun) == 0 {
		return nil, l.base.fail(err, "look for subscription %s", subscription)
	}
	err = l.base.atomically(ctx, func(ctx context.Context, run Statements) error {
		var arguments []any
		if err := run.Each(ctx, "SELECT slot FROM {log_slots} WHERE channel IN "+in(&arguments, begun)+" ORDER BY channel, slot"+l.base.dialect.ForUpdate, arguments, func(rows Rows) error {
			var slot int
			return rows.Scan(&slot)
		}); err != nil {
			return err
		}
		begun, err = l.unknown(ctx, run, subscription, channels)
		if err != nil || len(begun) == 0 {
			return err
		}
		return l.begin(ctx, run, subscription, begun, start)
	})
	if err != nil {
		return nil, l.base.fail(err, "begin subscription %s", subscription)
	}
	return begun, nil
}

// unknown are the channels on which a subscription has no position.
func (l *Log) unknown(ctx context.Context, run Statements, subscription string, channels []string) ([]string, error) {
	known := make(map[string]bool)
	err := run.Each(ctx, "SELECT DISTINCT channel FROM {positions} WHERE subscription = $1", []any{subscription}, func(rows Rows) error {
		var channel string
		err := rows.Scan(&channel)
		known[channel] = true
		return err
	})
	return slices.DeleteFunc(slices.Clone(channels), func(channel string) bool { return known[channel] }), err
}

const beginBatch = 2000

// begin stores where a subscription begins on channels whose slots are locked.
func (l *Log) begin(ctx context.Context, run Statements, subscription string, channels []string, start driver.StartAt) error {
	position, since := "coalesce((SELECT min(e.position) FROM {log} e WHERE e.channel = s.channel AND e.slot = s.slot), s.next_position)", any(nil)
	switch start.Mode {
	case driver.StartNow:
		position = "s.next_position"
		var parts []outbox.Part
		for _, channel := range channels {
			parts = append(parts, outbox.Parts(channel)...)
		}
		for n := beginBatch; n == beginBatch; {
			var err error
			if n, err = l.number(ctx, run, parts, beginBatch, l.base.dialect.ForUpdate); err != nil {
				return err
			}
		}
	case driver.StartTime:
		since = start.Time.UnixMicro()
	}
	arguments := []any{subscription, since}
	_, err := run.Exec(ctx, "INSERT INTO {positions} (subscription, channel, slot, position, finished, since) SELECT "+l.base.text("$1")+", s.channel, s.slot, "+position+", '', "+l.base.integer("$2")+
		" FROM {log_slots} s WHERE s.channel IN "+in(&arguments, channels), arguments...)
	return err
}

// Progress implements [outbox.Log].
func (l *Log) Progress(ctx context.Context, subscription string, parts []outbox.Part) (all []outbox.Progress, err error) {
	if len(parts) == 0 {
		return nil, nil
	}
	err = l.base.pool().Each(ctx, "SELECT p.channel, p.slot, p.position, p.finished, coalesce(p.since, 0) FROM "+l.base.dialect.Places+
		" w JOIN {positions} p ON p.channel = w.channel AND p.slot = w.slot WHERE p.subscription = $2 ORDER BY p.channel, p.slot", []any{beginnings(parts), subscription}, func(rows Rows) error {
		var p outbox.Progress
		var since int64
		err := rows.Scan(&p.Channel, &p.Slot, &p.Position, &p.Finished, &since)
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
		text := []byte{'['}
		for n, lease := range leases {
			if !held[lease] {
				refused = append(refused, lease)
				continue
			}
			if len(text) > 1 {
				text = append(text, ',')
			}
			finished, err := json.Marshal(progress[n].Finished)
			if err != nil {
				return err
			}
			text = append(append(append(appendPlace(text, progress[n].Place), ','), finished...), ']')
		}
		if len(text) == 1 {
			return nil
		}
		_, err = run.Exec(ctx, "INSERT INTO {positions} (subscription, channel, slot, position, finished) SELECT "+l.base.text("$2")+", p.channel, p.slot, p.position, p.finished FROM "+l.base.dialect.Places+
			" p WHERE 1 = 1 "+l.base.dialect.Upsert("subscription, channel, slot")+" position = "+l.base.dialect.New("position")+", finished = "+l.base.dialect.New("finished"), string(append(text, ']')), subscription)
		return err
	})
	return refused, l.base.fail(err, "commit positions of %s", subscription)
}

// Trim implements [outbox.Log]. It takes some of the oldest entries of every part,
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
	ends, passed, err := l.passed(ctx)
	if err != nil {
		return 0, err
	}
	var from []outbox.Place
	for part, position := range passed { // what was deleted before may lie there as dead rows: it is not looked at again
		if oldest := l.oldest(part); oldest < position {
			from = append(from, outbox.Place{Part: part, Position: oldest})
		}
	}
	places, err := l.deletable(ctx, from, ends, passed, keep)
	if err != nil || len(places) == 0 {
		return 0, err
	}
	each := max(limit/len(places), 1)
	var doomed []outbox.Place
	for _, p := range places[:min(len(places), limit)] {
		for position := p.Position; position < min(p.Position+int64(each), passed[p.Part]); position++ {
			doomed = append(doomed, outbox.Place{Part: p.Part, Position: position})
		}
	}
	deleted, err := l.base.write(ctx, "DELETE FROM {log} WHERE (channel, slot, position) IN (SELECT p.channel, p.slot, p.position FROM "+l.base.dialect.Places+" p) AND created_at < (SELECT {now}) - "+l.base.integer("$2"),
		placesText(doomed), microseconds(keep))
	return int(deleted), err
}

// passed is where each part ends, and what every subscription has passed that has
// a position on its channel: all of it where none has.
func (l *Log) passed(ctx context.Context) (ends, passed map[outbox.Part]int64, err error) {
	ends, passed = make(map[outbox.Part]int64), make(map[outbox.Part]int64)
	scan := func(all map[outbox.Part]int64) func(rows Rows) error {
		return func(rows Rows) error {
			var part outbox.Part
			var position int64
			err := rows.Scan(&part.Channel, &part.Slot, &position)
			all[part] = position
			return err
		}
	}
	run := l.base.pool()
	if err := run.Each(ctx, "SELECT channel, slot, next_position FROM {log_slots}", nil, scan(ends)); err != nil {
		return nil, nil, err
	}
	maps.Copy(passed, ends)
	err = run.Each(ctx, "SELECT channel, slot, min(position) FROM {positions} GROUP BY channel, slot", nil, scan(passed))
	return ends, passed, err
}

// deletable are the oldest entries of parts that lie before what was passed and are
// old enough.
func (l *Log) deletable(ctx context.Context, from []outbox.Place, ends, passed map[outbox.Part]int64, keep time.Duration) (places []outbox.Place, err error) {
	if len(from) == 0 {
		return nil, nil
	}
	err = l.base.pool().Each(ctx, `SELECT o.channel, o.slot, o.oldest,
			coalesce((SELECT CASE WHEN e.created_at < {now} - `+l.base.integer("$2")+` THEN 1 ELSE 0 END FROM {log} e WHERE e.channel = o.channel AND e.slot = o.slot AND e.position = o.oldest), 0)
		FROM (SELECT p.channel, p.slot, (SELECT coalesce(min(e.position), -1) FROM {log} e WHERE e.channel = p.channel AND e.slot = p.slot AND e.position >= p.position) AS oldest FROM `+l.base.dialect.Places+` p) o`,
		[]any{placesText(from), microseconds(keep)}, func(rows Rows) error {
			var p outbox.Place
			var old int
			err := rows.Scan(&p.Channel, &p.Slot, &p.Position, &old)
			switch {
			case err != nil:
			case p.Position < 0: // it was empty up to where it ended
				l.base.oldest.Store(p.Part, ends[p.Part])
			default:
				l.base.oldest.Store(p.Part, p.Position)
				if old == 1 && p.Position < passed[p.Part] {
					places = append(places, p)
				}
			}
			return err
		})
	return places, err
}

// oldest is where a part begins as far as this process knows.
func (l *Log) oldest(part outbox.Part) int64 {
	position, _ := l.base.oldest.Load(part)
	oldest, _ := position.(int64)
	return oldest
}
