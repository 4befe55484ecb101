package sqlstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// together combines the transactions of a database with one writer at a time
// (docs/decisions/0009-one-writer-many-writes.md): what is asked for while one
// transaction waits for its turn goes into that transaction, each part behind a
// savepoint of its own. So the cost of a commit is shared, and no write of ours
// waits behind another by chance.
type together struct {
	base *base
	lead chan struct{} // full while somebody leads

	mu      sync.Mutex
	waiting []*part
}

// part is one write among those of a transaction.
type part struct {
	fn   func(ctx context.Context, run Statements) error
	done chan struct{}
	err  error // set before done is closed
}

// What one transaction takes with it is bounded: it holds the writers of other
// processes back, and their leases end.
const (
	partsAtOnce = 64
	partsTime   = 50 * time.Millisecond
)

type urgentKey struct{}

// urgent marks the context of a write that comes before others: a lease that is
// not renewed in time is lost.
func urgent(ctx context.Context) context.Context { return context.WithValue(ctx, urgentKey{}, true) }

func newTogether(b *base) *together { return &together{base: b, lead: make(chan struct{}, 1)} }

// do runs fn in a transaction and returns when that is committed. Until the
// transaction has begun, the end of ctx withdraws fn; from then on it takes no
// longer than the statements and the commit.
func (t *together) do(ctx context.Context, fn func(ctx context.Context, run Statements) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p := &part{fn: fn, done: make(chan struct{})}
	t.mu.Lock()
	if ctx.Value(urgentKey{}) != nil {
		t.waiting = slices.Insert(t.waiting, 0, p)
	} else {
		t.waiting = append(t.waiting, p)
	}
	t.mu.Unlock()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		if t.withdraw(p) {
			return ctx.Err()
		}
		<-p.done
		return p.err
	case t.lead <- struct{}{}:
		defer func() { <-t.lead }()
	}
	for !p.over() { // whoever led before may have taken it
		if err := t.transaction(ctx); err != nil && t.withdraw(p) {
			return err
		}
	}
	return p.err
}

func (p *part) over() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (t *together) withdraw(p *part) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := slices.Index(t.waiting, p)
	if n < 0 {
		return false
	}
	t.waiting = slices.Delete(t.waiting, n, n+1)
	return true
}

// take returns the part that comes next, or nil, and whether others wait.
func (t *together) take() (next *part, more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 {
		return nil, false
	}
	next = t.waiting[0]
	t.waiting = slices.Delete(t.waiting, 0, 1)
	return next, len(t.waiting) > 0
}

// transaction begins one and takes the parts that wait when it has begun. Its
// error is that of the begin: each part has its own.
func (t *together) transaction(leader context.Context) error {
	// The leader's context ends the wait for the transaction, never the transaction itself: parts of others are in it.
	ctx, end := context.WithCancel(context.WithoutCancel(leader))
	defer end()
	began := context.AfterFunc(leader, end)
	tx, err := t.base.db.Begin(ctx)
	if err != nil {
		return cmp.Or(leader.Err(), err)
	}
	if !began() {
		_ = tx.Rollback(context.WithoutCancel(ctx)) // its context has ended, and with it the transaction
		return leader.Err()
	}
	defer func() { _ = tx.Rollback(ctx) }() // after a commit it does nothing
	run := t.base.on(tx)
	if t.base.dialect.Writes != "" {
		if _, err := run.Exec(ctx, t.base.dialect.Writes); err != nil {
			return err
		}
	}
	var parts []*part
	defer func() {
		for _, p := range parts {
			close(p.done)
		}
	}()
	start := time.Now()
	for len(parts) < partsAtOnce && (len(parts) == 0 || time.Since(start) < partsTime) {
		p, more := t.take()
		if p == nil {
			break
		}
		parts = append(parts, p)
		if len(parts) == 1 && !more { // alone it needs no savepoint
			if p.err = p.fn(ctx, run); p.err == nil {
				p.err = t.base.outcome(tx.Commit(ctx))
			}
			return nil
		}
		if err := p.behindSavepoint(ctx, run); err != nil {
			fail(parts, err)
			return nil
		}
	}
	if err := tx.Commit(ctx); err != nil {
		fail(parts, t.base.outcome(err))
	}
	return nil
}

// fail says of a transaction that is lost that none of its parts is stored.
func fail(parts []*part, err error) {
	for _, p := range parts {
		if p.err == nil {
			p.err = err
		}
	}
}

// behindSavepoint runs one part. What it returns is the end of the transaction.
func (p *part) behindSavepoint(ctx context.Context, run Statements) error {
	if _, err := run.Exec(ctx, "SAVEPOINT tidings_part"); err != nil {
		return fmt.Errorf("savepoint: %w", err)
	}
	p.err = p.fn(ctx, run)
	if p.err != nil {
		if _, err := run.Exec(ctx, "ROLLBACK TO SAVEPOINT tidings_part"); err != nil {
			return fmt.Errorf("a transaction with others was rolled back: %w", p.err)
		}
	}
	if _, err := run.Exec(ctx, "RELEASE SAVEPOINT tidings_part"); err != nil {
		return fmt.Errorf("release savepoint: %w", err)
	}
	return nil
}
