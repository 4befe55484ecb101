package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// A connection can die without a word: nobody answers, and nothing says that
// nobody will. What waits for an answer without an end waits for ever, and a pool
// hands out the next dead connection as if it were sound. So every call has an
// end, and after one that came to it the idle connections are asked.

const (
	// answerTime bounds a step of a transaction that waits for nobody but the
	// server: its beginning, the claim, the commit, the rollback.
	answerTime = 10 * time.Second
	// sweepTime is how long an idle connection has to answer, and sweepAgain the
	// least time between two sweeps.
	sweepTime  = 2 * time.Second
	sweepAgain = time.Second
	// longCall is how long a call had to take to say something about its connection
	// when its context was cancelled.
	longCall = time.Second
	// lateAnswer is how long after its end a commit or a rollback is waited for that
	// is being interrupted.
	lateAnswer = 100 * time.Millisecond
)

// IdleGrace is how long a transaction of a former owner may be idle while the next one
// waits for it.
const IdleGrace = 2 * time.Second

// endIdle makes the server end the transactions that a transaction of ours waits for,
// until stop is called, once nothing has happened in them for [IdleGrace]. Who raises
// an epoch owns what the former owner's handlers had in hand: what they have not
// committed is void, and their process may have died without a word to the server.
func (b *base) endIdle(ctx context.Context, run Statements) (stop func(), err error) {
	if b.dialect.EndIdle == nil {
		return func() {}, nil
	}
	var session int64
	if _, err := run.One(ctx, b.dialect.Session, nil, &session); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		again := time.NewTicker(IdleGrace)
		defer again.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-again.C:
			}
			_ = b.dialect.EndIdle(ctx, b.pool(), session) // else it waits until the server's own limit
		}
	}()
	return func() {
		cancel()
		<-done
	}, nil
}

// bounded runs what takes no context, COMMIT and ROLLBACK of database/sql, and
// returns when ctx ends at the latest. interrupt, which may be nil, is called
// then. A call that cannot be interrupted goes on with its connection until the
// network gives up; nobody can wait for it.
func bounded(ctx context.Context, interrupt func(), run func() error) error {
	if _, limited := ctx.Deadline(); !limited {
		return run()
	}
	done := make(chan error, 1)
	go func() { done <- run() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	if interrupt != nil {
		interrupt()
	}
	late := time.NewTimer(lateAnswer)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-late.C:
		return fmt.Errorf("the server has not answered: %w", context.Cause(ctx))
	}
}

// sweeper asks the idle connections of a pool whether they are alive, after a call
// that had no answer in its time. The zero value does nothing.
type sweeper struct {
	sweep func(ctx context.Context)
	last  atomic.Int64
}

// noted is told how a call ended.
func (s *sweeper) noted(ctx context.Context, began time.Time, err error) {
	if err == nil || s.sweep == nil || ctx.Err() == nil {
		return
	}
	now := time.Now()
	if context.Cause(ctx) != context.DeadlineExceeded && now.Sub(began) < longCall { //nolint:errorlint // it is not wrapped
		return
	}
	last := s.last.Load()
	if now.UnixNano()-last < int64(sweepAgain) || !s.last.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	// It ends by itself: whoever had no answer has waited long enough.
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), sweepTime)
		defer cancel()
		s.sweep(ctx)
	}()
}

// SweepSQL asks every idle connection of a database/sql pool for an answer, all at
// once, and closes those that give none until ctx ends.
func SweepSQL(db *sql.DB) func(ctx context.Context) {
	return func(ctx context.Context) {
		var asked sync.WaitGroup
		for range db.Stats().Idle {
			asked.Go(func() {
				connection, err := db.Conn(ctx)
				if err != nil {
					return // the pool has closed it
				}
				if err := connection.PingContext(ctx); err != nil {
					_ = connection.Raw(func(any) error { return driver.ErrBadConn }) // it does not come back
				}
				_ = connection.Close()
			})
		}
		asked.Wait()
	}
}
