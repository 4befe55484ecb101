package postgres

import (
	"context"
	"errors"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidings-go/tidings/store/internal/sqlstore"
)

// A connection whose call had no answer in its time is closed by pgx in its own time:
// it tells the server, and waits up to 15 seconds for the other side to close too.
// That long it counts in its pool, and a pool of which all connections have died
// without a word is full of them. So whatever is called here hangs up when it is done
// with a connection that pgx has given up.

// release gives a connection back, and hangs up where pgx has given it up.
func release(c *pgxpool.Conn) {
	if c.Conn().IsClosed() {
		_ = c.Conn().PgConn().Conn().Close() // it is of no use whatever this says
	}
	c.Release()
}

// beginShort begins a transaction of ours. Nothing waits in one, so the server ends it
// soon when nothing happens in it any more: it may hold rows that a sound instance
// needs, and its process may have died without a word. One round trip, as BEGIN is.
const beginShort = "begin; set local idle_in_transaction_session_timeout = '5s'"

type poolDatabase struct{ pool *pgxpool.Pool }

func (d poolDatabase) Ping(ctx context.Context) error {
	c, err := d.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer release(c)
	return c.Ping(ctx)
}

func (d poolDatabase) Exec(ctx context.Context, statement string, arguments ...any) (int64, error) {
	c, err := d.pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer release(c)
	tag, err := c.Exec(ctx, statement, arguments...)
	return tag.RowsAffected(), err
}

func (d poolDatabase) Query(ctx context.Context, statement string, arguments ...any) (sqlstore.Rows, error) {
	c, err := d.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := c.Query(ctx, statement, arguments...)
	if err != nil {
		release(c)
		return nil, err
	}
	return &poolRows{rows, c}, nil
}

func (d poolDatabase) Begin(ctx context.Context) (sqlstore.Transaction, error) {
	return beginOn(ctx, d.pool, pgx.TxOptions{BeginQuery: beginShort})
}

// beginOn begins a transaction on a connection of the pool, which the end of the
// transaction gives back.
func beginOn(ctx context.Context, pool *pgxpool.Pool, options pgx.TxOptions) (*poolTransaction, error) {
	c, err := pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	tx, err := c.BeginTx(ctx, options)
	if err != nil {
		release(c)
		return nil, err
	}
	return &poolTransaction{transactionExecutor{tx}, c}, nil
}

// poolRows give their connection back when they are closed.
type poolRows struct {
	pgx.Rows
	connection *pgxpool.Conn
}

func (r *poolRows) Close() error {
	r.Rows.Close()
	if r.connection != nil {
		release(r.connection)
		r.connection = nil
	}
	return r.Err()
}

type transactionExecutor struct{ tx pgx.Tx }

func (e transactionExecutor) Exec(ctx context.Context, statement string, arguments ...any) (int64, error) {
	tag, err := e.tx.Exec(ctx, statement, arguments...)
	return tag.RowsAffected(), err
}

func (e transactionExecutor) Query(ctx context.Context, statement string, arguments ...any) (sqlstore.Rows, error) {
	rows, err := e.tx.Query(ctx, statement, arguments...)
	if err != nil {
		return nil, err
	}
	return &poolRows{Rows: rows}, nil
}

type poolTransaction struct {
	transactionExecutor
	connection *pgxpool.Conn // nil: given back
}

func (t *poolTransaction) Commit(ctx context.Context) error {
	defer t.giveBack()
	return t.tx.Commit(ctx)
}

func (t *poolTransaction) Rollback(ctx context.Context) error {
	defer t.giveBack()
	if err := t.tx.Rollback(ctx); !errors.Is(err, pgx.ErrTxClosed) {
		return err
	}
	return nil
}

func (t *poolTransaction) giveBack() {
	if t.connection != nil {
		release(t.connection)
		t.connection = nil
	}
}

// sweep asks every idle connection for an answer, all at once: pgx closes those
// that give none until ctx ends, and the pool opens new ones.
func sweep(pool *pgxpool.Pool) func(ctx context.Context) {
	return func(ctx context.Context) {
		var asked sync.WaitGroup
		for _, connection := range pool.AcquireAllIdle(ctx) {
			asked.Go(func() {
				defer release(connection)
				_ = connection.Ping(ctx) // a failure closes it
			})
		}
		asked.Wait()
	}
}
