package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"

	"modernc.org/sqlite"
)

// connector opens the connections of a pool whose writing transactions take
// turns.
type connector struct {
	driver.Connector
	turn *turn
}

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	opened, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	inner, ok := opened.(conn)
	if !ok {
		return nil, errors.Join(errors.New("sqlite: the connection of modernc.org/sqlite is not what it was"), opened.Close())
	}
	return &connection{conn: inner, turn: c.turn}, nil
}

// Close ends the locks when the pool is closed.
func (c connector) Close() error {
	return errors.Join(c.turn.between.queue.close(), c.turn.between.writer.close())
}

// conn is what a connection of modernc.org/sqlite can do, for database/sql and
// for those who ask for it by sql.Conn.Raw.
type conn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
	Serialize() ([]byte, error)
	Deserialize(data []byte) error
	NewBackup(to string) (*sqlite.Backup, error)
	NewRestore(from string) (*sqlite.Backup, error)
}

type connection struct {
	conn
	turn    *turn
	release func() // of the transaction that is open, or nil
}

// BeginTx implements [driver.ConnBeginTx].
func (c *connection) BeginTx(ctx context.Context, options driver.TxOptions) (driver.Tx, error) {
	if options.ReadOnly {
		return c.conn.BeginTx(ctx, options)
	}
	release, err := c.turn.take(ctx)
	if err != nil {
		return nil, err
	}
	tx, err := c.conn.BeginTx(ctx, options)
	if err != nil {
		release()
		return nil, err
	}
	c.release = release
	return transaction{tx, release}, nil
}

// Close implements [driver.Conn].
func (c *connection) Close() error {
	err := c.conn.Close()
	if c.release != nil { // of a transaction that nobody ended
		c.release()
	}
	return err
}

type transaction struct {
	driver.Tx
	release func()
}

// Commit implements [driver.Tx].
func (t transaction) Commit() error {
	defer t.release()
	return t.Tx.Commit()
}

// Rollback implements [driver.Tx].
func (t transaction) Rollback() error {
	defer t.release()
	return t.Tx.Rollback()
}
