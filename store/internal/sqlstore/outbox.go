package sqlstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
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
	if err := b.storable(rows); err != nil {
		return err
	}
	for rest := rows; len(rest) > 0; {
		n := statementRows(len(rest))
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
			statement = b.announced[n]
		}
		if _, err := run.Exec(ctx, statement, arguments...); err != nil {
			return b.fail(err, "add %d events", len(rows))
		}
	}
	return nil
}

// storable refuses what a column of text cannot hold.
func (b *base) storable(rows []outbox.Row) error {
	for _, r := range rows {
		if !utf8.Valid(r.Payload) || slices.Contains(r.Payload, 0) {
			return fmt.Errorf("%s: add %s %s: the outbox stores text, and the wire value is not UTF-8 without NUL", b.dialect.Name, r.Type, r.ID)
		}
	}
	return nil
}

// statementRows is how many rows to insert at once: runs of powers of two, so
// that there are few statements to prepare.
func statementRows(left int) int {
	n := mostAdded
	for n > left {
		n /= 2
	}
	return n
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
func (b *base) Pending(ctx context.Context, look outbox.Look) ([]outbox.Row, error) {
	if len(look.Slots) == 0 || look.Each < 1 || look.Limit < 1 {
		return nil, nil
	}
	if err := b.ready(ctx, b.pool()); err != nil {
		return nil, err
	}
	for {
		rows, bare, err := b.pending(ctx, look)
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
		rows = withAssigned(rows, assigned, look.Slots)
		if len(rows) > 0 || len(assigned) == 0 {
			return rows, nil
		}
	}
}

// rowColumns are what scanRow reads of a row o.
const rowColumns = `o.sequence, coalesce(o.slot, -1) AS slot, o.id, o.aggregatetype, o.aggregateid, o.type, coalesce(o.headers, '') AS headers, o.payload,
	o.created_at, o.attempts, coalesce(o.failure, '') AS failure`

// scanRow reads rowColumns and what follows them. A row without a slot has -1.
func scanRow(r Rows, more ...any) (row outbox.Row, err error) {
	var headers string
	var created int64
	destinations := []any{&row.Sequence, &row.Slot, &row.ID, &row.Channel, &row.AggregateID, &row.Type, &headers, &row.Payload, &created, &row.Attempts, &row.Failure}
	if err := r.Scan(append(destinations, more...)...); err != nil {
		return row, err
	}
	row.CreatedAt = at(created)
	if row.Headers, err = decodeHeaders(headers); err != nil {
		row.Headers = nil // somebody else's row: the relay wraps it from its columns
	}
	return row, nil
}

// pending reads rows of the slots and those without a slot, in one look at the
// database: a row without one may come before a row that has one. A plain read
// sees what is committed; it neither waits nor skips.
func (b *base) pending(ctx context.Context, look outbox.Look) (rows []outbox.Row, bare []int64, err error) {
	statement, arguments, err := b.pendingStatement(look)
	if err != nil {
		return nil, nil, err
	}
	err = b.planned(ctx, func(ctx context.Context, run Statements) error {
		rows, bare = make([]outbox.Row, 0, min(look.Limit, look.Each*len(look.Slots))), nil
		return run.Each(ctx, statement, arguments, func(r Rows) error {
			row, err := scanRow(r)
			if err != nil {
				return err
			}
			if row.Slot < 0 {
				bare = append(bare, row.Sequence)
			}
			rows = append(rows, row)
			return nil
		})
	})
	return rows, bare, err
}

// planned runs statements under [Dialect.Plan]. fn may be called again.
func (b *base) planned(ctx context.Context, fn func(ctx context.Context, run Statements) error) error {
	if b.dialect.Plan == "" {
		return fn(ctx, b.pool())
	}
	return b.atomically(ctx, func(ctx context.Context, run Statements) error {
		if _, err := run.Exec(ctx, b.dialect.Plan); err != nil {
			return err
		}
		return fn(ctx, run)
	})
}

// pendingStatement takes the first rows of each slot by themselves: each is a few
// steps in an index, whatever lies in the other slots.
func (b *base) pendingStatement(look outbox.Look) (statement string, arguments []any, err error) {
	if b.dialect.Pending != "" {
		slots, err := json.Marshal(look.Slots)
		if err != nil {
			return "", nil, err
		}
		except, err := json.Marshal(append([]string{}, look.Except...)) // [] and not null
		return b.dialect.Pending, []any{string(slots), look.Each, look.Limit, string(except)}, err
	}
	allowed := "NOT EXISTS (SELECT 1 FROM {outbox_held} h WHERE h.aggregatetype = o.aggregatetype AND h.aggregateid = o.aggregateid AND h.until_at > {now})"
	if len(look.Except) > 0 {
		allowed += " AND o.aggregatetype NOT IN " + in(&arguments, look.Except)
	}
	var parts strings.Builder
	part := func(where string, limit int) {
		arguments = append(arguments, limit)
		if parts.Len() > 0 {
			parts.WriteString(" UNION ALL ")
		}
		fmt.Fprintf(&parts, "SELECT * FROM (SELECT "+rowColumns+" FROM {outbox} o WHERE o.slot %s AND %s ORDER BY o.sequence LIMIT $%d) AS part%d", where, allowed, len(arguments), len(arguments))
	}
	for _, slot := range look.Slots {
		arguments = append(arguments, slot)
		part(fmt.Sprintf("= $%d", len(arguments)), look.Each)
	}
	part("IS NULL", look.Limit)
	arguments = append(arguments, look.Limit)
	return fmt.Sprintf("%s ORDER BY 1 LIMIT $%d", parts.String(), len(arguments)), arguments, nil
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
			if _, err := run.Exec(ctx, b.update("slot = $1", &arguments, sequences), arguments...); err != nil {
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
	var sent int
	var err error
	tried := slices.ContainsFunc(rows, func(row outbox.Row) bool { return row.Attempts > 0 })
	if b.dialect.SentAtOnce != "" && !tried {
		sent, err = b.sentAtOnce(ctx, group, holder, leases, rows)
	} else {
		sent, err = b.sentInSteps(ctx, group, holder, leases, rows)
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

func (b *base) sentAtOnce(ctx context.Context, group, holder string, leases []driver.Lease, rows []outbox.Row) (sent int, err error) {
	sequences := make([]int64, len(rows))
	for n, row := range rows {
		sequences[n] = row.Sequence
	}
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
	err = b.planned(ctx, func(ctx context.Context, run Statements) error {
		_, err := run.One(ctx, statement, []any{group, holder, string(held), string(numbers)}, &sent)
		return err
	})
	return sent, err
}

func (b *base) sentInSteps(ctx context.Context, group, holder string, leases []driver.Lease, rows []outbox.Row) (sent int, err error) {
	err = b.atomically(ctx, func(ctx context.Context, run Statements) error {
		sent = 0
		valid, err := b.holding(ctx, run, group, holder, leases)
		if err != nil || len(valid) == 0 {
			return err
		}
		held := make(map[int]bool)
		for _, s := range slotsOf(valid) {
			held[s.Slot] = true
		}
		var sequences, retried []int64
		for _, row := range rows {
			if !held[row.Slot] {
				continue
			}
			sequences = append(sequences, row.Sequence)
			if row.Attempts > 0 {
				retried = append(retried, row.Sequence)
			}
		}
		if len(sequences) == 0 {
			return nil
		}
		if b.keepSent {
			var arguments []any
			_, err := run.Exec(ctx, `INSERT INTO {outbox_sent} (sequence, slot, id, aggregatetype, aggregateid, type, headers, payload, created_at, attempts, sent_at)
				SELECT sequence, slot, id, aggregatetype, aggregateid, type, headers, payload, created_at, attempts, {now} FROM {outbox} WHERE sequence IN `+in(&arguments, sequences), arguments...)
			if err != nil {
				return err
			}
		}
		var arguments []any
		changed, err := run.Exec(ctx, b.remove(&arguments, sequences), arguments...)
		if err != nil {
			return err
		}
		sent = int(changed)
		if len(retried) == 0 {
			return nil
		}
		arguments = nil
		_, err = run.Exec(ctx, "DELETE FROM {outbox_held} WHERE sequence IN "+in(&arguments, retried), arguments...)
		return err
	})
	return sent, err
}

// remove is a DELETE of rows of the outbox.
func (b *base) remove(arguments *[]any, sequences []int64) string {
	if b.dialect.Keys != "" {
		return "DELETE o FROM " + b.keys(arguments, sequences)
	}
	return "DELETE FROM {outbox} WHERE sequence IN " + in(arguments, sequences)
}

// update is an UPDATE of rows of the outbox.
func (b *base) update(set string, arguments *[]any, sequences []int64) string {
	if b.dialect.Keys != "" {
		return "UPDATE " + b.keys(arguments, sequences) + " SET " + set
	}
	return "UPDATE {outbox} SET " + set + " WHERE sequence IN " + in(arguments, sequences)
}

func (b *base) keys(arguments *[]any, sequences []int64) string {
	list := make([]byte, 0, 12*len(sequences))
	for n, sequence := range sequences {
		list = strconv.AppendInt(append(list, "[,"[min(n, 1)]), sequence, 10)
	}
	*arguments = append(*arguments, string(append(list, ']')))
	return fmt.Sprintf(b.dialect.Keys, fmt.Sprintf("$%d", len(*arguments)))
}

// Hold implements [outbox.Store].
func (b *base) Hold(ctx context.Context, group, holder string, leases []driver.Lease, refused []outbox.Refused) error {
	if len(leases) == 0 || len(refused) == 0 {
		return nil
	}
	err := b.atomically(ctx, func(ctx context.Context, run Statements) error {
		valid, err := b.holding(ctx, run, group, holder, leases)
		if err != nil || len(valid) == 0 {
			return err
		}
		held := make(map[int]bool)
		for _, s := range slotsOf(valid) {
			held[s.Slot] = true
		}
		var ours []outbox.Refused
		byFailure := make(map[string][]int64)
		for _, r := range refused {
			if held[r.Row.Slot] {
				ours = append(ours, r)
				byFailure[clean(r.Failure)] = append(byFailure[clean(r.Failure)], r.Row.Sequence)
			}
		}
		for _, failure := range slices.Sorted(maps.Keys(byFailure)) {
			arguments := []any{failure}
			if _, err := run.Exec(ctx, b.update("attempts = attempts + 1, failure = $1", &arguments, byFailure[failure]), arguments...); err != nil {
				return err
			}
		}
		for some := range slices.Chunk(ours, holdAtOnce) {
			var values strings.Builder
			var arguments []any
			for n, r := range some {
				if n > 0 {
					values.WriteString(", ")
				}
				arguments = append(arguments, r.Row.Channel, r.Row.AggregateID, r.Row.Sequence, microseconds(r.Wait))
				at := len(arguments)
				fmt.Fprintf(&values, "($%d, $%d, $%d, {now} + %s)", at-3, at-2, at-1, b.integer(fmt.Sprintf("$%d", at)))
			}
			_, err := run.Exec(ctx, "INSERT INTO {outbox_held} (aggregatetype, aggregateid, sequence, until_at) VALUES "+values.String()+" "+b.dialect.Upsert("aggregatetype, aggregateid")+
				" sequence = "+b.dialect.New("sequence")+", until_at = "+b.dialect.New("until_at"), arguments...)
			if err != nil {
				return err
			}
		}
		return nil
	})
	return b.fail(err, "hold %d aggregates", len(refused))
}

// holdAtOnce is how many aggregates one statement holds back.
const holdAtOnce = 100

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
		(SELECT count(*) FROM {outbox_held} h JOIN {outbox} o ON o.sequence = h.sequence)`,
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
