package faults

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Ledger is a database that knows what every process of every trial did. It is
// SQLite, opened by whoever uses the suite, and a file of its own: no process
// under test writes to it.
type Ledger struct {
	db *sql.DB
	mu sync.Mutex // one writer at a time
}

// OpenLedger makes the tables in an empty database. The handle stays the caller's.
func OpenLedger(ctx context.Context, db *sql.DB) (*Ledger, error) {
	for _, statement := range strings.Split(schema, ";\n") {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return nil, fmt.Errorf("faults: the ledger: %w", err)
		}
	}
	return &Ledger{db: db}, nil
}

const schema = `
CREATE TABLE IF NOT EXISTS entries (
	run text NOT NULL, process text NOT NULL, word text NOT NULL, id text NOT NULL,
	aggregate text NOT NULL, count integer NOT NULL, reason text NOT NULL, at integer NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_by_id ON entries (run, id, word, at);
CREATE INDEX IF NOT EXISTS entries_by_word ON entries (run, word, id);
CREATE INDEX IF NOT EXISTS entries_by_process ON entries (run, process, aggregate, at);
CREATE TABLE IF NOT EXISTS published (run text NOT NULL, id text NOT NULL, aggregate text NOT NULL, number integer NOT NULL, PRIMARY KEY (run, id));
CREATE TABLE IF NOT EXISTS effects (run text NOT NULL, id text NOT NULL, times integer NOT NULL, PRIMARY KEY (run, id));
CREATE TABLE IF NOT EXISTS moments (run text NOT NULL, id text NOT NULL, started integer, finished integer, PRIMARY KEY (run, id));
CREATE TABLE IF NOT EXISTS attempts (run text NOT NULL, process text NOT NULL, id text NOT NULL, aggregate text NOT NULL, began integer NOT NULL, ended integer NOT NULL);
CREATE INDEX IF NOT EXISTS attempts_by_aggregate ON attempts (run, aggregate, began)`

// Verdict is what the ledger counts of one trial; the package comment says what
// each word means.
type Verdict struct {
	Driver, Fault string
	Hits          int
	Published     int
	Lost          int
	Disordered    int
	Overlaps      int
	Duplicates    int
	Bound         int
	DoubleEffects int
	Phantoms      int
	Dead          int
	// WithEffects says that effects were counted.
	WithEffects bool
	// NotProven says why there are no counts; all others are zero then.
	NotProven string
	// Note is a remark of the trial.
	Note string
	Took time.Duration
}

// String returns all counts in a line.
func (v Verdict) String() string {
	effects := fmt.Sprint(v.DoubleEffects)
	if !v.WithEffects {
		effects = "no inbox"
	}
	return fmt.Sprintf("%d hits, %d published, %d lost, %d order broken, %d overlaps, %d duplicates (bound %d), double effects %s, %d phantoms, %d dead, in %v",
		v.Hits, v.Published, v.Lost, v.Disordered, v.Overlaps, v.Duplicates, v.Bound, effects, v.Phantoms, v.Dead, v.Took.Round(100*time.Millisecond))
}

// questions are what is counted, each one query of one number.
const (
	askLost = `SELECT count(*) FROM published p LEFT JOIN moments m ON m.run = p.run AND m.id = p.id WHERE p.run = ? AND m.finished IS NULL`

	askUnapplied = `SELECT count(*) FROM published p JOIN moments m ON m.run = p.run AND m.id = p.id
		LEFT JOIN effects f ON f.run = p.run AND f.id = p.id
		WHERE p.run = ? AND m.finished IS NOT NULL AND f.id IS NULL
		AND NOT EXISTS (SELECT 1 FROM entries e WHERE e.run = p.run AND e.id = p.id AND e.word = 'dead')`

	// One that is not finished at all is counted as lost.
	askDisordered = `SELECT count(*) FROM (
			SELECT m.started, lag(m.finished) OVER (PARTITION BY p.aggregate ORDER BY p.number) AS finished
			FROM published p LEFT JOIN moments m ON m.run = p.run AND m.id = p.id WHERE p.run = ?
		) steps WHERE steps.finished > steps.started`

	askOverlaps = `SELECT count(*) FROM attempts b WHERE b.run = ? AND EXISTS (
		SELECT 1 FROM attempts a WHERE a.run = b.run AND a.aggregate = b.aggregate AND a.began < b.began AND a.ended > b.began)`

	askDuplicates = `SELECT count(*) FILTER (WHERE word = 'deduplicated') +
		count(*) FILTER (WHERE word = 'handled') - count(DISTINCT id) FILTER (WHERE word = 'handled') FROM entries WHERE run = ?`

	// Deliveries, and sends, that a process had in hand when a fault hit it, and,
	// where a session may end unnoticed, for longer than that: each may come once
	// more. The count of a fault is how long before it settling was worth nothing.
	askInHand = `SELECT count(*) FROM entries r WHERE r.run = ? AND r.word IN ('received', 'sent') AND (EXISTS (
		SELECT 1 FROM entries f WHERE f.run = r.run AND f.word = 'fault' AND f.id = r.process AND f.at >= r.at AND f.reason IN ('', r.reason)
		AND NOT EXISTS (SELECT 1 FROM entries s WHERE s.run = r.run AND s.id = r.id AND s.process = r.process
			AND s.word IN ('settled', 'marked') AND s.at BETWEEN r.at AND f.at - f.count))
		OR r.word = 'received' AND %[1]d > 0 AND NOT EXISTS (SELECT 1 FROM entries s WHERE s.run = r.run AND s.id = r.id AND s.process = r.process
			AND s.word = 'settled' AND s.at BETWEEN r.at AND r.at + %[1]d))`

	askRepeated = `SELECT coalesce(sum(tries - 1), 0) FROM (SELECT count(*) AS tries FROM entries
		WHERE run = ? AND word IN ('try', 'sent') GROUP BY word, id, CASE word WHEN 'sent' THEN process END)`

	askDoubles = `SELECT coalesce(sum(times - 1), 0) FROM effects WHERE run = ?`

	askPhantoms = `SELECT count(DISTINCT id) FROM entries e WHERE e.run = ? AND e.word IN ('handled', 'dead')
		AND NOT EXISTS (SELECT 1 FROM published p WHERE p.run = e.run AND p.id = e.id)`

	// Without transactions, what was tried and had no answer may be handled.
	askUntried = askPhantoms + ` AND NOT EXISTS (SELECT 1 FROM entries t WHERE t.run = e.run AND t.id = e.id AND t.word = 'try')`

	askDead = `SELECT count(DISTINCT id) FROM entries WHERE run = ? AND word = 'dead'`
)

// Count enters journals that were kept, each under the name of its process, and
// counts: for a trial that somebody wants to look at again. The lines are those
// that processes write: word, id, aggregate, number, count, reason and time in
// nanoseconds, with tabs between them. Effects may be nil.
func (l *Ledger) Count(run string, journals map[string]string, published []Step, effects map[string]int) (Verdict, error) {
	var entries []entry
	for _, process := range slices.Sorted(maps.Keys(journals)) {
		more, err := parse(process, journals[process])
		if err != nil {
			return Verdict{}, err
		}
		entries = append(entries, more...)
	}
	certain := make(map[string]Step, len(published))
	for _, s := range published {
		certain[s.ID] = s
	}
	return l.enter(run, entries, certain, true, 0, effects)
}

// enter stores what the processes did and counts.
func (l *Ledger) enter(run string, entries []entry, published map[string]Step, transactions bool, session time.Duration, effects map[string]int) (v Verdict, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx := context.Background()
	tx, err := l.db.BeginTx(ctx, nil)
	if err != nil {
		return v, fmt.Errorf("faults: the ledger: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // after the commit it does nothing
	do := func(statement string, arguments ...any) {
		if err == nil {
			_, err = tx.ExecContext(ctx, statement, arguments...)
		}
	}
	insert, err := tx.PrepareContext(ctx, `INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)`)
	if err != nil {
		return v, fmt.Errorf("faults: the ledger: %w", err)
	}
	defer func() { _ = insert.Close() }()
	for _, e := range entries {
		if err == nil {
			_, err = insert.ExecContext(ctx, run, e.process, e.word, e.id, e.place.Aggregate, e.count, e.reason, e.at)
		}
	}
	for id, s := range published {
		do(`INSERT INTO published VALUES (?, ?, ?, ?)`, run, id, s.Aggregate, s.Number)
	}
	for id, times := range effects {
		do(`INSERT INTO effects VALUES (?, ?, ?)`, run, id, times)
	}
	do(`INSERT INTO moments SELECT run, id, min(CASE WHEN word = 'started' THEN at END), min(CASE WHEN word <> 'started' THEN at END) FROM entries
		WHERE run = ? AND word IN ('started', 'handled', 'deduplicated', 'dead') GROUP BY run, id`, run)
	// An attempt ends with the next word about its event in that process, or with
	// the process.
	do(`INSERT INTO attempts SELECT s.run, s.process, s.id, s.aggregate, s.at, coalesce(
			(SELECT min(e.at) FROM entries e WHERE e.run = s.run AND e.process = s.process AND e.aggregate = s.aggregate AND e.id = s.id AND e.at > s.at
				AND e.word IN ('handled', 'failed', 'deduplicated', 'dead', 'discarded', 'store-failed', 'started')),
			(SELECT min(d.at) FROM entries d WHERE d.run = s.run AND d.word = 'died' AND d.id = s.process), 9223372036854775807)
		FROM entries s WHERE s.run = ? AND s.word = 'started'`, run)
	if err != nil {
		return v, fmt.Errorf("faults: the ledger: %w", err)
	}
	v.Published, v.WithEffects = len(published), effects != nil
	ask := func(question string) (n int) {
		if err == nil {
			err = tx.QueryRowContext(ctx, question, run).Scan(&n)
		}
		return n
	}
	v.Lost = ask(askLost)
	if v.WithEffects {
		v.Lost += ask(askUnapplied)
		v.DoubleEffects = ask(askDoubles)
	}
	v.Disordered, v.Overlaps, v.Duplicates = ask(askDisordered), ask(askOverlaps), ask(askDuplicates)
	v.Bound = ask(fmt.Sprintf(askInHand, session.Nanoseconds())) + ask(askRepeated)
	v.Phantoms, v.Dead = ask(askUntried), ask(askDead)
	if transactions {
		v.Phantoms = ask(askPhantoms)
	}
	if err == nil {
		err = tx.Commit()
	}
	if err != nil {
		return v, fmt.Errorf("faults: the ledger: %w", err)
	}
	return v, nil
}
