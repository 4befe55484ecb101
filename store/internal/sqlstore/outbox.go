package sqlstore

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

// Add implements [outbox.Store].
func (s *Store[TX]) Add(ctx context.Context, tx TX, rows []outbox.Row) error {
	if len(rows) == 0 {
		return nil
	}
	run := s.on(s.transaction(tx))
	if err := s.ready(ctx, run); err != nil {
		return err
	}
	return s.add(ctx, run, rows)
}

func (b *base) add(ctx context.Context, run Statements, rows []outbox.Row) error {
	for _, r := range rows {
		if !utf8.Valid(r.Payload) || slices.Contains(r.Payload, 0) {
			return fmt.Errorf("%s: add %s %s: the outbox stores text, and the wire value is not UTF-8 without NUL", b.dialect.Name, r.Type, r.ID)
		}
	}
	// In runs of powers of two, so that there are few statements to prepare.
	for rest := rows; len(rest) > 0; {
		n := mostAdded
		for n > len(rest) {
			n /= 2
		}
		arguments := make([]any, 0, n*7)
		for _, r := range rest[:n] {
			headers, err := encodeHeaders(r.Headers)
			if err != nil {
				return b.fail(err, "add %s %s: headers", r.Type, r.ID)
			}
			arguments = append(arguments, r.Slot, r.ID, r.Channel, r.AggregateID, r.Type, headers, string(r.Payload))
		}
		rest = rest[n:]
		statement := insertions[n]
		if len(rest) == 0 && b.dialect.AndNotify != nil {
			statement = b.dialect.AndNotify(statement)
		}
		if _, err := run.Exec(ctx, statement, arguments...); err != nil {
			return b.fail(err, "add %d events", len(rows))
		}
	}
	return nil
}

// mostAdded is how many rows one statement adds.
const mostAdded = 64

// insertions are the statements that add rows, by their number.
var insertions = func() map[int]string {
	statements := make(map[int]string)
	for n := 1; n <= mostAdded; n *= 2 {
		var statement strings.Builder
		statement.WriteString("INSERT INTO {outbox} (slot, id, aggregatetype, aggregateid, type, headers, payload) VALUES ")
		for i := range n {
			if i > 0 {
				statement.WriteString(", ")
			}
			at := i * 7
			fmt.Fprintf(&statement, "($%d, $%d, $%d, $%d, $%d, $%d, $%d)", at+1, at+2, at+3, at+4, at+5, at+6, at+7)
		}
		statements[n] = statement.String()
	}
	return statements
}()

// Serialize implements [outbox.Store].
func (s *Store[TX]) Serialize(ctx context.Context, tx TX, channel, aggregateID string) error {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s.dialect.Quote("outbox") + "\x00" + channel + "\x00" + aggregateID)) // it never fails
	err := s.dialect.Serialize(ctx, s.on(s.transaction(tx)), int64(h.Sum64()))
	return s.fail(err, "serialize %s %s", channel, aggregateID)
}

// Pending implements [outbox.Store].
func (b *base) Pending(ctx context.Context, slots []int, limit int) ([]outbox.Row, error) {
	if len(slots) == 0 || limit < 1 {
		return nil, nil
	}
	if err := b.ready(ctx, b.pool()); err != nil {
		return nil, err
	}
	for {
		rows, bare, err := b.pending(ctx, slots, limit)
		if err != nil {
			return nil, b.fail(err, "read pending events")
		}
		if len(bare) == 0 {
			return rows, nil
		}
		assigned, err := b.assign(ctx, bare)
		if err != nil {
			return nil, b.fail(err, "give slots to events that were inserted without")
		}
		rows = withAssigned(rows, assigned, slots)
		if len(rows) > 0 || len(assigned) == 0 {
			return rows, nil
		}
	}
}

// pending reads rows of the slots and those without a slot, in one look at the
// database: a row without one may come before a row that has one.
func (b *base) pending(ctx context.Context, slots []int, limit int) (rows []outbox.Row, bare []int64, err error) {
	arguments := []any{limit}
	// Not waiting and not skipping: a plain read sees what is committed.
	query := `SELECT o.sequence, coalesce(o.slot, -1), o.id, o.aggregatetype, o.aggregateid, o.type, coalesce(o.headers, ''), o.payload, o.created_at, o.attempts, coalesce(o.failure, '')
		FROM {outbox} o
		WHERE (o.slot IN ` + in(&arguments, slots) + ` OR o.slot IS NULL)
		AND NOT EXISTS (SELECT 1 FROM {outbox_held} h WHERE h.aggregatetype = o.aggregatetype AND h.aggregateid = o.aggregateid AND h.until_at > {now})
		ORDER BY o.sequence LIMIT $1`
	err = b.pool().Each(ctx, query, arguments, func(r Rows) error {
		var row outbox.Row
		var headers string
		var created int64
		if err := r.Scan(&row.Sequence, &row.Slot, &row.ID, &row.Channel, &row.AggregateID, &row.Type, &headers, &row.Payload, &created, &row.Attempts, &row.Failure); err != nil {
			return err
		}
		row.CreatedAt = at(created)
		var err error
		if row.Headers, err = decodeHeaders(headers); err != nil {
			row.Headers = nil // somebody else's row: the relay wraps it from its columns
		}
		if row.Slot < 0 {
			bare = append(bare, row.Sequence)
		}
		rows = append(rows, row)
		return nil
	})
	return rows, bare, err
}

// assign gives slots to rows that were inserted without. What somebody else has
// locked is left for later.
func (b *base) assign(ctx context.Context, bare []int64) (assigned map[int64]int, err error) {
	err = b.atomically(ctx, func(ctx context.Context, run Statements) error {
		assigned = make(map[int64]int, len(bare))
		bySlot := make(map[int][]int64)
		var arguments []any
		err := run.Each(ctx, "SELECT sequence, aggregatetype, aggregateid, coalesce(slot, -1) FROM {outbox} WHERE sequence IN "+in(&arguments, bare)+b.dialect.SkipLocked, arguments,
			func(rows Rows) error {
				var sequence int64
				var slot int
				var channel, aggregate string
				if err := rows.Scan(&sequence, &channel, &aggregate, &slot); err != nil {
					return err
				}
				if slot < 0 { // else another relay was here
					slot = outbox.SlotOf(channel, aggregate)
					bySlot[slot] = append(bySlot[slot], sequence)
				}
				assigned[sequence] = slot
				return nil
			})
		if err != nil {
			return err
		}
		for slot, sequences := range bySlot {
			arguments := []any{slot}
			if _, err := run.Exec(ctx, "UPDATE {outbox} SET slot = $1 WHERE slot IS NULL AND sequence IN "+in(&arguments, sequences), arguments...); err != nil {
				return err
			}
		}
		return nil
	})
	return assigned, err
}

// withAssigned leaves the rows of the slots. What is behind a row of its
// aggregate that could not be given one waits for it.
func withAssigned(rows []outbox.Row, assigned map[int64]int, slots []int) []outbox.Row {
	type aggregate struct{ channel, id string }
	waiting := make(map[aggregate]bool)
	kept := rows[:0]
	for _, row := range rows {
		of := aggregate{row.Channel, row.AggregateID}
		if row.Slot < 0 {
			slot, ok := assigned[row.Sequence]
			if !ok {
				waiting[of] = true
				continue
			}
			row.Slot = slot
		}
		if !waiting[of] && slices.Contains(slots, row.Slot) {
			kept = append(kept, row)
		}
	}
	return kept
}

// Sent implements [outbox.Store].
func (b *base) Sent(ctx context.Context, group, holder string, leases []driver.Lease, rows []outbox.Row) (int, error) {
	if len(leases) == 0 || len(rows) == 0 {
		return 0, nil
	}
	sequences := make([]int64, len(rows))
	tried := rows[:0:0]
	for n, row := range rows {
		sequences[n] = row.Sequence
		if row.Attempts > 0 {
			tried = append(tried, row)
		}
	}
	var sent int
	var err error
	if b.dialect.SentAtOnce != "" && len(tried) == 0 {
		sent, err = b.sentAtOnce(ctx, group, holder, leases, sequences)
	} else {
		sent, err = b.sentInSteps(ctx, group, holder, leases, sequences, tried)
	}
	return sent, b.fail(err, "take %d sent events out", len(rows))
}

// leaseSlot is a lease as the one statement wants it.
type leaseSlot struct {
	Slot  int    `json:"slot"`
	Name  string `json:"name"`
	Epoch int64  `json:"epoch"`
}

// slotsOf are the slots that leases are for.
func slotsOf(leases []driver.Lease) []leaseSlot {
	slots := make([]leaseSlot, 0, len(leases))
	for n := range outbox.Slots {
		for _, lease := range leases {
			if lease.Name == outbox.LeaseName(n) {
				slots = append(slots, leaseSlot{n, lease.Name, lease.Epoch})
			}
		}
	}
	return slots
}

func (b *base) sentAtOnce(ctx context.Context, group, holder string, leases []driver.Lease, sequences []int64) (sent int, err error) {
	held, err := json.Marshal(slotsOf(leases))
	if err != nil {
		return 0, err
	}
	numbers, err := json.Marshal(sequences)
	if err != nil {
		return 0, err
	}
	statement := b.dialect.SentAtOnce
	if b.keepSent {
		statement = b.dialect.SentAndKept
	}
	_, err = b.pool().One(ctx, statement, []any{group, holder, string(held), string(numbers)}, &sent)
	return sent, err
}

func (b *base) sentInSteps(ctx context.Context, group, holder string, leases []driver.Lease, sequences []int64, tried []outbox.Row) (sent int, err error) {
	err = b.atomically(ctx, func(ctx context.Context, run Statements) error {
		sent = 0
		valid, err := b.holding(ctx, run, group, holder, leases)
		if err != nil || len(valid) == 0 {
			return err
		}
		var arguments []any
		var numbers []int
		for _, s := range slotsOf(valid) {
			numbers = append(numbers, s.Slot)
		}
		if len(numbers) == 0 {
			return nil
		}
		of := " FROM {outbox} WHERE slot IN " + in(&arguments, numbers) + " AND sequence IN " + in(&arguments, sequences)
		if b.keepSent {
			_, err := run.Exec(ctx, `INSERT INTO {outbox_sent} (sequence, slot, id, aggregatetype, aggregateid, type, headers, payload, created_at, attempts, sent_at)
				SELECT sequence, slot, id, aggregatetype, aggregateid, type, headers, payload, created_at, attempts, {now}`+of, arguments...)
			if err != nil {
				return err
			}
		}
		changed, err := run.Exec(ctx, "DELETE"+of, arguments...)
		if err != nil {
			return err
		}
		sent = int(changed)
		for _, row := range tried {
			if slices.Contains(numbers, row.Slot) {
				if _, err := run.Exec(ctx, "DELETE FROM {outbox_held} WHERE aggregatetype = $1 AND aggregateid = $2", row.Channel, row.AggregateID); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return sent, err
}

// Hold implements [outbox.Store].
func (b *base) Hold(ctx context.Context, group, holder string, lease driver.Lease, row outbox.Row, failure string, wait time.Duration) error {
	err := b.atomically(ctx, func(ctx context.Context, run Statements) error {
		valid, err := b.holding(ctx, run, group, holder, []driver.Lease{lease})
		if err != nil || len(valid) == 0 {
			return err
		}
		slots := slotsOf(valid)
		if len(slots) == 0 {
			return nil
		}
		changed, err := run.Exec(ctx, "UPDATE {outbox} SET attempts = attempts + 1, failure = $1 WHERE sequence = $2 AND slot = $3", clean(failure), row.Sequence, slots[0].Slot)
		if err != nil || changed == 0 {
			return err
		}
		_, err = run.Exec(ctx, "INSERT INTO {outbox_held} (aggregatetype, aggregateid, until_at) VALUES ($1, $2, {now} + "+b.integer("$3")+") "+
			b.dialect.Upsert("aggregatetype, aggregateid")+" until_at = "+b.dialect.New("until_at"), row.Channel, row.AggregateID, microseconds(wait))
		return err
	})
	return b.fail(err, "hold %s %s", row.Type, row.ID)
}

// Status implements [outbox.Store].
func (b *base) Status(ctx context.Context) (outbox.Status, error) {
	var status outbox.Status
	run := b.pool()
	if err := b.ready(ctx, run); err != nil {
		return status, err
	}
	var oldest int64
	// The first row is the oldest, save for what lay open in a transaction.
	_, err := run.One(ctx, `SELECT (SELECT count(*) FROM {outbox}),
		coalesce((SELECT {now} - min(first.created_at) FROM (SELECT created_at FROM {outbox} ORDER BY sequence LIMIT 100) first), 0),
		(SELECT count(*) FROM {outbox_held} h WHERE EXISTS (SELECT 1 FROM {outbox} o WHERE o.aggregatetype = h.aggregatetype AND o.aggregateid = h.aggregateid))`,
		nil, &status.Backlog, &oldest, &status.Held)
	status.Oldest = max(0, time.Duration(oldest)*time.Microsecond)
	return status, b.fail(err, "count the outbox")
}

// Wake implements [outbox.Store].
func (s *Store[TX]) Wake(ctx context.Context) <-chan struct{} {
	if s.wake == nil {
		return nil
	}
	return s.wake(ctx)
}

// Clean implements [outbox.Store].
func (b *base) Clean(ctx context.Context, keep time.Duration, limit int) (int, error) {
	if limit < 1 {
		return 0, errors.New(b.dialect.Name + ": clean: a limit below 1")
	}
	var deleted int64
	err := b.atomically(ctx, func(ctx context.Context, run Statements) error {
		deleted = 0
		var sequences []int64
		err := run.Each(ctx, "SELECT sequence FROM {outbox_sent} WHERE sent_at < (SELECT {now}) - "+b.integer("$1")+" ORDER BY sent_at LIMIT $2"+b.dialect.SkipLocked,
			[]any{microseconds(keep), limit}, func(rows Rows) error {
				var sequence int64
				err := rows.Scan(&sequence)
				sequences = append(sequences, sequence)
				return err
			})
		if err != nil || len(sequences) == 0 {
			return err
		}
		var arguments []any
		deleted, err = run.Exec(ctx, "DELETE FROM {outbox_sent} WHERE sequence IN "+in(&arguments, sequences), arguments...)
		return err
	})
	return int(deleted), b.fail(err, "clean sent events")
}

// encodeHeaders writes headers as JSON: [["name","value"], …]; what is no UTF-8
// text has a third element and is hexadecimal.
func encodeHeaders(headers driver.Headers) (string, error) {
	if len(headers) == 0 {
		return "", nil
	}
	pairs := make([][]string, len(headers))
	for n, h := range headers {
		pairs[n] = []string{h.Name, h.Value}
		if !utf8.ValidString(h.Name) || !utf8.ValidString(h.Value) {
			pairs[n] = []string{fmt.Sprintf("%x", h.Name), fmt.Sprintf("%x", h.Value), "hexadecimal"}
		}
	}
	text, err := json.Marshal(pairs)
	return string(text), err
}

func decodeHeaders(text string) (driver.Headers, error) {
	if text == "" {
		return nil, nil
	}
	var pairs [][]string
	if err := json.Unmarshal([]byte(text), &pairs); err != nil {
		return nil, err
	}
	headers := make(driver.Headers, 0, len(pairs))
	for _, p := range pairs {
		if len(p) < 2 {
			return nil, fmt.Errorf("a header of %d parts", len(p))
		}
		h := driver.Header{Name: p[0], Value: p[1]}
		if len(p) > 2 {
			name, err := hex.DecodeString(p[0])
			if err != nil {
				return nil, err
			}
			value, err := hex.DecodeString(p[1])
			if err != nil {
				return nil, err
			}
			h = driver.Header{Name: string(name), Value: string(value)}
		}
		headers = append(headers, h)
	}
	return headers, nil
}
