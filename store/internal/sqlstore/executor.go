// Package sqlstore is what the SQL stores share: the statements, written once
// with what differs between databases in a [Dialect], and migrations. It knows no
// database driver; store/postgres, store/mysql and store/sqlite give it one.
package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
)

// Executor runs statements: a pool, a connection or a transaction of any
// client. Arguments are written as $1, $2, …; a dialect with another form
// rewrites the statement before it is run.
type Executor interface {
	Exec(ctx context.Context, statement string, arguments ...any) (affected int64, err error)
	Query(ctx context.Context, statement string, arguments ...any) (Rows, error)
}

// Rows is the result of a query. Close may be called twice.
type Rows interface {
	Next() bool
	Scan(destinations ...any) error
	Err() error
	Close() error
}

// Database is a pool that begins transactions.
type Database interface {
	Executor
	Begin(ctx context.Context) (Transaction, error)
	// Ping asks the server for an answer.
	Ping(ctx context.Context) error
}

// Transaction is one transaction. After Commit or Rollback it is of no use;
// Rollback after Commit does nothing.
type Transaction interface {
	Executor
	Commit(ctx context.Context) error
	Rollback(ctx context.Context) error
}

// SQLTransaction makes an Executor of a database/sql transaction.
func SQLTransaction(tx *sql.Tx) Executor { return sqlExecutor{tx} }

// SQLDatabase makes a Database of a database/sql pool; its transactions begin
// with the options given, or nil.
func SQLDatabase(db *sql.DB, options *sql.TxOptions) Database {
	return sqlDatabase{sqlExecutor{db}, db, options}
}

// SQLConnection makes an Executor of one database/sql connection.
func SQLConnection(connection *sql.Conn) Executor { return sqlExecutor{connection} }

// BeginSQL begins transactions for handlers on a database/sql pool. A
// transaction ends only by commit or rollback: the end of a handler's context while
// it is being committed would leave its outcome unknown for no reason. Commit and
// rollback have contexts of their own.
func BeginSQL(db *sql.DB) func(ctx context.Context) (*sql.Tx, func(context.Context) error, func(context.Context) error, error) {
	return func(ctx context.Context) (*sql.Tx, func(context.Context) error, func(context.Context) error, error) {
		lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
		stop := context.AfterFunc(ctx, cancel)
		tx, err := db.BeginTx(lasting, nil)
		if !stop() && err == nil {
			_ = tx.Rollback() // ctx has ended, and with it the transaction
			err = ctx.Err()
		}
		if err != nil {
			cancel()
			return nil, nil, nil, err
		}
		commit := func(ctx context.Context) error {
			defer cancel()
			return bounded(ctx, cancel, tx.Commit)
		}
		rollback := func(ctx context.Context) error {
			defer cancel()
			return bounded(ctx, cancel, tx.Rollback)
		}
		return tx, commit, rollback, nil
	}
}

// conn is what *sql.DB, *sql.Conn and *sql.Tx have in common.
type conn interface {
	ExecContext(ctx context.Context, statement string, arguments ...any) (sql.Result, error)
	QueryContext(ctx context.Context, statement string, arguments ...any) (*sql.Rows, error)
}

type sqlExecutor struct{ conn conn }

func (e sqlExecutor) Exec(ctx context.Context, statement string, arguments ...any) (int64, error) {
	return affected(e.conn.ExecContext(ctx, statement, arguments...))
}

func (e sqlExecutor) Query(ctx context.Context, statement string, arguments ...any) (Rows, error) {
	return e.conn.QueryContext(ctx, statement, arguments...) //nolint:rowserrcheck // the caller's
}

type sqlDatabase struct {
	sqlExecutor
	db      *sql.DB
	options *sql.TxOptions
}

func (d sqlDatabase) Ping(ctx context.Context) error { return d.db.PingContext(ctx) }

func (d sqlDatabase) Begin(ctx context.Context) (Transaction, error) {
	tx, err := d.db.BeginTx(ctx, d.options)
	if err != nil {
		return nil, err
	}
	return sqlTransaction{sqlExecutor{tx}, tx}, nil
}

type sqlTransaction struct {
	sqlExecutor
	tx *sql.Tx
}

func (t sqlTransaction) Commit(ctx context.Context) error { return bounded(ctx, nil, t.tx.Commit) }

func (t sqlTransaction) Rollback(ctx context.Context) error {
	if err := bounded(ctx, nil, t.tx.Rollback); err != nil && err != sql.ErrTxDone { //nolint:errorlint // database/sql returns it as it is
		return err
	}
	return nil
}

// SQLDatabaseBeginning is [SQLDatabase] with a statement of its own that begins a
// transaction, without arguments. Such a transaction commits with a context, which
// database/sql's does not.
func SQLDatabaseBeginning(db *sql.DB, begin string) Database {
	return beginningDatabase{sqlDatabase{sqlExecutor{db}, db, nil}, begin}
}

type beginningDatabase struct {
	sqlDatabase
	begin string
}

func (d beginningDatabase) Begin(ctx context.Context) (Transaction, error) {
	connection, err := d.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	tx := &connectionTransaction{sqlExecutor: sqlExecutor{connection}, connection: connection}
	if _, err := connection.ExecContext(ctx, d.begin); err != nil {
		tx.discard()
		return nil, err
	}
	return tx, nil
}

// connectionTransaction is a transaction on a connection of a pool, which it gives back
// when it ends.
type connectionTransaction struct {
	sqlExecutor
	connection *sql.Conn
	over       bool
	failed     bool // a statement
}

func (t *connectionTransaction) Exec(ctx context.Context, statement string, arguments ...any) (int64, error) {
	n, err := t.sqlExecutor.Exec(ctx, statement, arguments...)
	t.failed = t.failed || err != nil
	return n, err
}

func (t *connectionTransaction) Query(ctx context.Context, statement string, arguments ...any) (Rows, error) {
	rows, err := t.sqlExecutor.Query(ctx, statement, arguments...)
	t.failed = t.failed || err != nil
	return rows, err
}

// Commit commits. The server answers COMMIT of a transaction in which a statement has
// failed as if all were well, and rolls it back: so one more is asked before.
func (t *connectionTransaction) Commit(ctx context.Context) error {
	if t.failed && !t.over {
		if _, err := t.connection.ExecContext(ctx, "SELECT 1"); err != nil {
			_ = t.Rollback(ctx)
			return err
		}
	}
	return t.end(ctx, "COMMIT")
}

func (t *connectionTransaction) Rollback(ctx context.Context) error {
	if t.over {
		return nil
	}
	return t.end(ctx, "ROLLBACK")
}

// end runs the last statement. A connection on which that failed does not come back:
// the transaction may be open there.
func (t *connectionTransaction) end(ctx context.Context, statement string) error {
	if t.over {
		return sql.ErrTxDone
	}
	t.over = true
	if _, err := t.connection.ExecContext(ctx, statement); err != nil {
		t.discard()
		return err
	}
	return t.connection.Close()
}

func (t *connectionTransaction) discard() {
	_ = t.connection.Raw(func(any) error { return driver.ErrBadConn })
	_ = t.connection.Close()
}
