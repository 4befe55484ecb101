package sqlstore

import (
	"context"
	"database/sql"
	"sync"
)

// PreparedSQLDatabase is SQLDatabase for a driver that reads the text of a
// statement each time unless it is prepared. The statements stay prepared until
// the pool is closed.
func PreparedSQLDatabase(db *sql.DB) Database {
	return preparedDatabase{sqlDatabase{sqlExecutor{db}, db, nil}, &preparedStatements{db: db, byText: make(map[string]*sql.Stmt)}}
}

const (
	// longestPrepared bounds a text: long ones are rarely the same twice.
	longestPrepared = 8192
	mostPrepared    = 256
	// fewConnections is a pool in which nothing may wait for a second connection.
	fewConnections = 4
)

type preparedStatements struct {
	db *sql.DB

	mu     sync.Mutex
	byText map[string]*sql.Stmt
}

// get returns nil for a statement that is not to be prepared.
func (p *preparedStatements) get(ctx context.Context, text string) (*sql.Stmt, error) {
	p.mu.Lock()
	statement, full := p.byText[text], len(p.byText) >= mostPrepared
	p.mu.Unlock()
	if statement != nil || full || len(text) > longestPrepared || Cramped(p.db) {
		return statement, nil
	}
	statement, err := p.db.PrepareContext(ctx, text)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	other := p.byText[text]
	if other == nil {
		p.byText[text] = statement
	}
	p.mu.Unlock()
	if other != nil {
		return other, statement.Close()
	}
	return statement, nil
}

// Cramped reports that a pool has so few connections that whoever has one must
// not wait for another.
func Cramped(db *sql.DB) bool {
	most := db.Stats().MaxOpenConnections
	return most > 0 && most < fewConnections
}

type preparedDatabase struct {
	sqlDatabase
	statements *preparedStatements
}

func (d preparedDatabase) Exec(ctx context.Context, statement string, arguments ...any) (int64, error) {
	prepared, err := d.statements.get(ctx, statement)
	if err != nil || prepared == nil {
		return d.sqlDatabase.Exec(ctx, statement, arguments...) // with its error, if that is the statement's
	}
	return affected(prepared.ExecContext(ctx, arguments...))
}

func (d preparedDatabase) Query(ctx context.Context, statement string, arguments ...any) (Rows, error) {
	prepared, err := d.statements.get(ctx, statement)
	if err != nil || prepared == nil {
		return d.sqlDatabase.Query(ctx, statement, arguments...)
	}
	return prepared.QueryContext(ctx, arguments...) //nolint:rowserrcheck // the caller's
}

func (d preparedDatabase) Begin(ctx context.Context) (Transaction, error) {
	tx, err := d.db.BeginTx(ctx, d.options)
	if err != nil {
		return nil, err
	}
	return preparedTransaction{sqlTransaction{sqlExecutor{tx}, tx}, d.statements}, nil
}

type preparedTransaction struct {
	sqlTransaction
	statements *preparedStatements
}

func (t preparedTransaction) Exec(ctx context.Context, statement string, arguments ...any) (int64, error) {
	prepared, err := t.statements.get(ctx, statement)
	if err != nil || prepared == nil {
		return t.sqlTransaction.Exec(ctx, statement, arguments...)
	}
	return affected(t.tx.StmtContext(ctx, prepared).ExecContext(ctx, arguments...))
}

func (t preparedTransaction) Query(ctx context.Context, statement string, arguments ...any) (Rows, error) {
	prepared, err := t.statements.get(ctx, statement)
	if err != nil || prepared == nil {
		return t.sqlTransaction.Query(ctx, statement, arguments...)
	}
	return t.tx.StmtContext(ctx, prepared).QueryContext(ctx, arguments...) //nolint:rowserrcheck // the caller's
}

func affected(result sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}
