package postgres

import (
	"context"
	"errors"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidings-go/tidings/store/internal/sqlstore"
)

// runner is what a pool and a transaction of pgx have in common.
type runner interface {
	Exec(ctx context.Context, statement string, arguments ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, statement string, arguments ...any) (pgx.Rows, error)
}

type poolExecutor struct{ runner runner }

func (e poolExecutor) Exec(ctx context.Context, statement string, arguments ...any) (int64, error) {
	tag, err := e.runner.Exec(ctx, statement, arguments...)
	return tag.RowsAffected(), err
}

func (e poolExecutor) Query(ctx context.Context, statement string, arguments ...any) (sqlstore.Rows, error) {
	rows, err := e.runner.Query(ctx, statement, arguments...)
	if err != nil {
		return nil, err
	}
	return poolRows{rows}, nil
}

type poolRows struct{ pgx.Rows }

func (r poolRows) Close() error {
	r.Rows.Close()
	return r.Err()
}

type poolDatabase struct {
	poolExecutor
	pool *pgxpool.Pool
}

func (d poolDatabase) Ping(ctx context.Context) error { return d.pool.Ping(ctx) }

func (d poolDatabase) Begin(ctx context.Context) (sqlstore.Transaction, error) {
	tx, err := d.pool.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return poolTransaction{poolExecutor{tx}, tx}, nil
}

type poolTransaction struct {
	poolExecutor
	tx pgx.Tx
}

func (t poolTransaction) Commit(ctx context.Context) error { return t.tx.Commit(ctx) }

func (t poolTransaction) Rollback(ctx context.Context) error {
	if err := t.tx.Rollback(ctx); !errors.Is(err, pgx.ErrTxClosed) {
		return err
	}
	return nil
}

// sweep asks every idle connection for an answer, all at once: pgx closes those
// that give none until ctx ends, and the pool opens new ones.
func sweep(pool *pgxpool.Pool) func(ctx context.Context) {
	return func(ctx context.Context) {
		var asked sync.WaitGroup
		for _, connection := range pool.AcquireAllIdle(ctx) {
			asked.Go(func() {
				defer connection.Release()
				_ = connection.Ping(ctx) // a failure closes it
			})
		}
		asked.Wait()
	}
}
