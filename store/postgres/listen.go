package postgres

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

// listener is one connection that listens.
type listener interface {
	// wait runs LISTEN and calls heard at once and after each notification, until
	// the connection breaks or ctx ends.
	wait(ctx context.Context, channel string, heard func()) error
	close()
}

const (
	listenAgain   = 200 * time.Millisecond // after a broken connection
	listenAtMost  = 10 * time.Second
	closeListener = 3 * time.Second
	// quiet is how long nothing has to be heard until the server is asked whether it
	// is there, and listenAnswer how long that and connecting may take: a connection
	// that died without a word announces nothing, for ever.
	quiet        = 5 * time.Second
	listenAnswer = 5 * time.Second
)

// listen gives a value for each notification, and one whenever it has begun to
// listen: what was committed before is not announced.
func listen(ctx context.Context, connect func(context.Context) (listener, error), channel string) <-chan struct{} {
	woken := make(chan struct{}, 1)
	go func() {
		defer close(woken)
		wait := listenAgain
		for ctx.Err() == nil {
			c, err := connectInTime(ctx, connect)
			if err == nil {
				_ = c.wait(ctx, channel, func() { // it ends with the connection, and polling goes on meanwhile
					wait = listenAgain
					select {
					case woken <- struct{}{}:
					default:
					}
				})
				c.close()
			}
			again := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-again.C:
			}
			again.Stop()
			wait = min(2*wait, listenAtMost)
		}
	}()
	return woken
}

func connectInTime(ctx context.Context, connect func(context.Context) (listener, error)) (listener, error) {
	ctx, cancel := context.WithTimeout(ctx, listenAnswer)
	defer cancel()
	return connect(ctx)
}

// hear listens on a connection of pgx.
func hear(ctx context.Context, c *pgx.Conn, channel string, heard func()) error {
	if err := answers(ctx, func(ctx context.Context) error {
		_, err := c.Exec(ctx, "LISTEN "+quote(channel))
		return err
	}); err != nil {
		return err
	}
	for {
		heard()
		for {
			waiting, cancel := context.WithTimeout(ctx, quiet)
			_, err := c.WaitForNotification(waiting) // the end of its time leaves the connection as it was
			cancel()
			if err == nil {
				break
			}
			if ctx.Err() != nil || c.IsClosed() || !pgconn.Timeout(err) {
				return err
			}
			if err := answers(ctx, c.Ping); err != nil {
				return err
			}
		}
	}
}

// answers asks the server something that takes no time.
func answers(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, listenAnswer)
	defer cancel()
	return ask(ctx)
}

// beside is a connection of its own, outside of the pool.
type beside struct{ connection *pgx.Conn }

func connectBeside(ctx context.Context, pool *pgxpool.Pool) (listener, error) {
	config := pool.Config()
	if config.BeforeConnect != nil { // a password that changes
		if err := config.BeforeConnect(ctx, config.ConnConfig); err != nil {
			return nil, err
		}
	}
	connection, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return nil, err
	}
	return beside{connection}, nil
}

func (b beside) wait(ctx context.Context, channel string, heard func()) error {
	return hear(ctx, b.connection, channel, heard)
}

func (b beside) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeListener)
	defer cancel()
	_ = b.connection.Close(ctx) // it may be broken
}

// within is a connection of a database/sql pool.
type within struct{ connection *sql.Conn }

// isPGX reports whether the pool's driver is pgx's.
func isPGX(db *sql.DB) bool {
	_, ok := db.Driver().(*stdlib.Driver)
	return ok
}

func connectWithin(ctx context.Context, db *sql.DB) (listener, error) {
	connection, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return within{connection}, nil
}

// wait ends with the connection: pgx closes it when ctx ends, so it does not go
// back to the pool as one that listens.
func (w within) wait(ctx context.Context, channel string, heard func()) error {
	return w.connection.Raw(func(raw any) error {
		c, ok := raw.(*stdlib.Conn)
		if !ok {
			return fmt.Errorf("postgres: listen: a %T is no connection of pgx", raw)
		}
		err := hear(ctx, c.Conn(), channel, heard)
		closing, cancel := context.WithTimeout(context.Background(), closeListener)
		defer cancel()
		_ = c.Conn().Close(closing) // the pool finds it closed
		return err
	})
}

func (w within) close() { _ = w.connection.Close() }
