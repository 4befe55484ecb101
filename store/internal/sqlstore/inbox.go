package sqlstore

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/inbox"
)

// savepoint is where a database with [Dialect.Savepoint] forgets a transaction
// that it rolled back on its own, and what is kept of one of a sole writer.
const savepoint = "tidings_handler"

// Transact implements [inbox.Store].
func (s *Store[TX]) Transact(ctx context.Context, fn func(ctx context.Context, tx TX) error) error {
	if err := s.ready(ctx, s.pool()); err != nil {
		return err
	}
	opening, opened := s.patience(ctx)
	defer opened()
	asked := time.Now()
	tx, commit, rollback, err := s.begin(opening)
	if err != nil {
		s.book.sweeper.noted(opening, asked, err)
		return s.fail(err, "begin")
	}
	over, began := false, time.Time{}
	run := s.on(s.transaction(tx))
	defer func() {
		if !over { // also when fn panics
			ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
			defer cancel()
			s.undo(ending, run, began, commit, rollback)
		}
	}()
	if s.dialect.Writes != "" {
		if _, err := run.Exec(opening, s.dialect.Writes); err != nil {
			return s.fail(err, "begin")
		}
	}
	if s.together != nil {
		began = s.sole.begin()
	}
	if s.dialect.Savepoint || s.together != nil {
		if _, err := run.Exec(opening, "SAVEPOINT "+savepoint); err != nil {
			return s.fail(err, "begin")
		}
	}
	if err := fn(ctx, tx); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return s.fail(err, "commit")
	}
	// A commit does not end with the handler's context, so that an outcome is not
	// made unknown for no reason.
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
	defer cancel()
	if s.dialect.Savepoint {
		if _, err := run.Exec(ending, "RELEASE SAVEPOINT "+savepoint); err != nil {
			return s.fail(err, "commit: the server has rolled the transaction back before (a deadlock whose error the handler did not return?)")
		}
	}
	over = true
	s.prolong(ending, run, began)
	asked = time.Now()
	err = commit(ending)
	s.book.sweeper.noted(ending, asked, err)
	s.sole.end(began, err == nil)
	if err != nil {
		return s.fail(s.outcome(err), "commit")
	}
	s.forgetSome(ctx)
	return nil
}

// patience bounds what a transaction waits for before its handler is called. A
// database with one writer has a bound of its own, and no network.
func (b *base) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	if b.together != nil {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, answerTime)
}

// undo rolls a handler's transaction back. One that was long leaves the leases
// behind that it kept from being renewed.
func (s *Store[TX]) undo(ctx context.Context, run Statements, began time.Time, commit, rollback func(context.Context) error) {
	if !began.IsZero() && s.sole.due(time.Since(began)) != nil {
		if _, err := run.Exec(ctx, "ROLLBACK TO SAVEPOINT "+savepoint); err == nil && s.prolong(ctx, run, began) && commit(ctx) == nil {
			s.sole.end(began, true)
			return
		}
		_ = rollback(ctx)
		s.sole.end(began, false)
		return
	}
	_ = rollback(ctx)
	s.sole.end(began, true) // nothing that was renewed is undone
}

// Claim implements [inbox.Store]. It shares its table with the engine's claims,
// so that a subscription that begins to use an inbox knows what it has handled.
func (s *Store[TX]) Claim(ctx context.Context, tx TX, r driver.ClaimRequest) (driver.ClaimAnswer, error) {
	run := s.on(s.transaction(tx))
	handling := ctx
	ctx, cancel := s.patience(handling)
	defer cancel()
	keep := any(nil)
	if r.Keep > 0 {
		keep = microseconds(r.Keep)
	}
	arguments := []any{r.Subscription, r.Key, r.Owner, int64(r.Digest), keep}
	idle := ""
	if s.dialect.IdleLimit != "" {
		idle = s.dialect.IdleLimit
		arguments = append(arguments, idleLimit(handling))
	}
	insert := " {claims} (subscription, claim_key, owner, done, until_at, digest, crashes, keep_until) VALUES ($1, $2, $3, 1, 0, $4, 0, {now} + " + s.integer("$5") + ") "
	changed, err := run.Exec(ctx, "INSERT INTO"+insert+cmp.Or(s.dialect.Touch, s.dialect.TakeDone)+idle, arguments...)
	fresh := changed == 1
	if err == nil && !fresh && !s.dialect.Returning {
		changed, err = run.Exec(ctx, s.dialect.TakeDone, arguments...)
		fresh = changed > 0
	}
	if err != nil {
		return driver.ClaimAnswer{}, s.fail(err, "claim %s %s", r.Subscription, r.Key)
	}
	if fresh {
		return driver.ClaimAnswer{State: driver.ClaimFresh}, nil
	}
	var digest int64
	found, err := run.One(ctx, "SELECT digest FROM {claims} WHERE subscription = $1 AND claim_key = $2"+s.dialect.ForUpdate, arguments[:2], &digest)
	switch {
	case err != nil:
		return driver.ClaimAnswer{}, s.fail(err, "claim %s %s", r.Subscription, r.Key)
	case !found:
		return driver.ClaimAnswer{}, fmt.Errorf("%s: claim %s %s: the key was deleted meanwhile", s.dialect.Name, r.Subscription, r.Key)
	}
	return driver.ClaimAnswer{State: driver.ClaimDone, Digest: uint64(digest)}, nil
}

// idleMargin is how much longer than its handler a transaction may be idle.
const idleMargin = 10 * time.Second

// idleLimit is how long the server is to keep a handler's transaction in which
// nothing happens, in milliseconds: 0, for ever, without an end of the handler.
func idleLimit(handling context.Context) string {
	deadline, limited := handling.Deadline()
	if !limited {
		return "0"
	}
	return strconv.FormatInt((max(time.Until(deadline), 0) + idleMargin).Milliseconds(), 10)
}

// Claimed implements [inbox.Store].
func (b *base) Claimed(ctx context.Context, subscription, key, owner string) (bool, error) {
	var one int
	found, err := b.pool().One(ctx, "SELECT 1 FROM {claims} WHERE subscription = $1 AND claim_key = $2 AND owner = $3 AND done = 1", []any{subscription, key, owner}, &one)
	return found, b.fail(err, "look up the claim on %s %s", subscription, key)
}

// Start implements [inbox.Store].
func (b *base) Start(ctx context.Context, subscription, key string, counting driver.Counting) (crashes, alone int, err error) {
	if err := b.ready(ctx, b.pool()); err != nil {
		return 0, 0, err
	}
	err = b.atomically(ctx, func(ctx context.Context, run Statements) error {
		crashes, alone = 0, 0
		found, err := run.One(ctx, "SELECT starts, alone FROM {starts} WHERE subscription = $1 AND claim_key = $2", []any{subscription, key}, &crashes, &alone)
		if err != nil || found && counting == driver.CountFirst {
			return err
		}
		more := 0
		if counting == driver.CountAlone {
			more = 1
		}
		_, err = run.Exec(ctx, "INSERT INTO {starts} (subscription, claim_key, starts, alone, started_at) VALUES ($1, $2, 1, $3, {now}) "+
			b.dialect.Upsert("subscription, claim_key")+" starts = {starts}.starts + 1, alone = {starts}.alone + "+b.dialect.New("alone")+", started_at = "+b.dialect.New("started_at"), subscription, key, more)
		return err
	})
	return crashes, alone, b.fail(err, "count a start of %s %s", subscription, key)
}

// End implements [inbox.Store].
func (b *base) End(ctx context.Context, subscription, key string) error {
	_, err := b.write(ctx, "DELETE FROM {starts} WHERE subscription = $1 AND claim_key = $2", subscription, key)
	return b.fail(err, "end the count of starts of %s %s", subscription, key)
}

// Advance implements [inbox.Store].
func (b *base) Advance(ctx context.Context, subscription, source string) (epoch int64, err error) {
	if err := b.ready(ctx, b.pool()); err != nil {
		return 0, err
	}
	epoch, err = b.advance(ctx, "epochs", "epoch", subscription, source)
	return epoch, b.fail(err, "advance %s %s", subscription, source)
}

// advance increments the epoch of a subscription and source in a column of a
// table.
func (b *base) advance(ctx context.Context, table, column, subscription, source string) (epoch int64, err error) {
	others := ""
	values := "$1, $2, 1"
	if column != "epoch" {
		others, values = ", epoch", "$1, $2, 1, 0"
	}
	err = b.atomically(ctx, func(ctx context.Context, run Statements) error {
		stop, err := b.endIdle(ctx, run)
		if err != nil {
			return err
		}
		defer stop()
		_, err = run.Exec(ctx, "INSERT INTO {"+table+"} (subscription, source, "+column+others+") VALUES ("+values+") "+
			b.dialect.Upsert("subscription, source")+" "+column+" = {"+table+"}."+column+" + 1", subscription, source)
		if err != nil {
			return err
		}
		_, err = run.One(ctx, "SELECT "+column+" FROM {"+table+"} WHERE subscription = $1 AND source = $2", []any{subscription, source}, &epoch)
		return err
	})
	return epoch, err
}

// Fence implements [inbox.Store].
func (s *Store[TX]) Fence(ctx context.Context, tx TX, subscription, source string, epoch int64) error {
	ctx, cancel := s.patience(ctx)
	defer cancel()
	var now int64
	_, err := s.on(s.transaction(tx)).One(ctx, "SELECT epoch FROM {epochs} WHERE subscription = $1 AND source = $2"+s.dialect.ForShare, []any{subscription, source}, &now)
	if err != nil {
		return s.fail(err, "fence %s %s", subscription, source)
	}
	if now > epoch {
		return fmt.Errorf("%s: %s %s is at epoch %d, this is %d: %w", s.dialect.Name, subscription, source, now, epoch, inbox.ErrFenced)
	}
	return nil
}
