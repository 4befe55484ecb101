//go:build unix

package guarantees

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest/faults"
	"github.com/tidings-go/tidings/inbox"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/store/postgres"
	"github.com/tidings-go/tidings/store/sqlite"
)

// executor is what the application needs of a transaction.
type executor func(ctx context.Context, statement string, arguments ...any) error

// application is the database of one application, with a row for each event that
// it decided on and one for each effect of a handler.
type application[TX any] struct {
	store applicationStore[TX]
	begin func(ctx context.Context) (tx TX, commit, rollback func(context.Context) error, err error)
	in    func(tx TX) executor
	query func(ctx context.Context, statement string, scan func(row func(...any) error) error) error
	close func()
}

type applicationStore[TX any] interface {
	outbox.Store[TX]
	inbox.Store[TX]
	Migrate(ctx context.Context) error
	Lanes() driver.LaneStore
}

const (
	insertOrder  = "INSERT INTO app_orders (id, aggregate, number) VALUES ($1, $2, $3)"
	insertEffect = "INSERT INTO app_effects (id) VALUES ($1)"
)

var applicationTables = []string{
	"CREATE TABLE IF NOT EXISTS app_orders (id text NOT NULL, aggregate text NOT NULL, number integer NOT NULL)",
	"CREATE TABLE IF NOT EXISTS app_effects (id text NOT NULL)", // no key: the ledger is to see doubles
}

// migrate makes all tables.
func (a *application[TX]) migrate(ctx context.Context) error {
	if err := a.store.Migrate(ctx); err != nil {
		return err
	}
	tx, commit, rollback, err := a.begin(ctx)
	if err != nil {
		return err
	}
	for _, statement := range applicationTables {
		if err := a.in(tx)(ctx, statement); err != nil {
			return errors.Join(err, rollback(ctx))
		}
	}
	return commit(ctx)
}

// handler is the suite's.
type handler = func(ctx context.Context, e tidings.Event[faults.StepPayload], effect func(context.Context) error) error

// react is an inbox whose effect is a row.
func (a *application[TX]) react(trap *faults.Trap) func(tidings.Contract[faults.StepPayload], string, handler) tidings.Reaction {
	return func(contract tidings.Contract[faults.StepPayload], mark string, handle handler) tidings.Reaction {
		return inbox.On(faults.TrapStore(trap, a.store), contract, func(ctx context.Context, tx TX, e tidings.Event[faults.StepPayload]) error {
			return handle(ctx, e, func(ctx context.Context) error { return a.in(tx)(ctx, insertEffect, mark+e.ID()) })
		})
	}
}

// commit stores what the application decided and its events in one transaction.
func (a *application[TX]) commit(ctx context.Context, bus *tidings.Bus, events []tidings.DomainEvent, before func()) error {
	box, err := outbox.New(bus, a.store, &outbox.Options{WithoutRelay: true})
	if err != nil {
		return err
	}
	tx, commit, rollback, err := a.begin(ctx)
	if err != nil {
		return err
	}
	fail := func(err error) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		return errors.Join(err, rollback(ctx))
	}
	for _, e := range events {
		step, ok := e.(tidings.Event[faults.StepPayload])
		if !ok {
			return fail(fmt.Errorf("an event of type %T", e))
		}
		if err := a.in(tx)(ctx, insertOrder, e.ID(), e.AggregateID(), step.Payload().Number); err != nil {
			return fail(err)
		}
	}
	if err := bus.Module("faults").Through(box.In(tx)).Publish(ctx, events...); err != nil {
		return fail(err)
	}
	before()
	if err := commit(ctx); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// committed returns what was decided.
func (a *application[TX]) committed(ctx context.Context) (steps []faults.Step, err error) {
	err = a.query(ctx, "SELECT id, aggregate, number FROM app_orders ORDER BY number", func(row func(...any) error) error {
		var s faults.Step
		err := row(&s.ID, &s.Aggregate, &s.Number)
		steps = append(steps, s)
		return err
	})
	return steps, err
}

// effects counts what handlers have done.
func (a *application[TX]) effects(ctx context.Context) (map[string]int, error) {
	times := make(map[string]int)
	err := a.query(ctx, "SELECT id, count(*) FROM app_effects GROUP BY id", func(row func(...any) error) error {
		var id string
		var n int
		err := row(&id, &n)
		times[id] = n
		return err
	})
	return times, err
}

// closed closes a pool as a service does at its end: pgx waits 15 seconds for the
// goodbye of a server that does not answer, database/sql five for each connection,
// and the process ends anyway.
func closed(closePool func()) {
	done := make(chan struct{})
	go func() { closePool(); close(done) }()
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// onPostgres opens the application's database in the schema of a place.
func onPostgres(ctx context.Context, place faults.Place) (*application[pgx.Tx], error) {
	return onPostgresWith(ctx, place, 24, 3*time.Second) // 16 lanes, and what renews, reads and numbers must not wait for them
}

func onPostgresWith(ctx context.Context, place faults.Place, connections int32, connect time.Duration) (*application[pgx.Tx], error) {
	config, err := pgxpool.ParseConfig(through(place.Database, place.DatabaseLine))
	if err != nil {
		return nil, err
	}
	config.MaxConns = connections
	config.ConnConfig.RuntimeParams["search_path"] = place.Namespace
	config.ConnConfig.ConnectTimeout = connect
	// What a process leaves open that died without a word keeps its locks so long.
	config.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = "5s"
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	store, err := postgres.New(pool, &postgres.Options{Schema: place.Namespace})
	if err != nil {
		return nil, err
	}
	return &application[pgx.Tx]{
		store: store,
		begin: func(ctx context.Context) (pgx.Tx, func(context.Context) error, func(context.Context) error, error) {
			tx, err := pool.Begin(ctx)
			if err != nil {
				return nil, nil, nil, err
			}
			return tx, tx.Commit, tx.Rollback, nil
		},
		in: func(tx pgx.Tx) executor {
			return func(ctx context.Context, statement string, arguments ...any) error {
				_, err := tx.Exec(ctx, statement, arguments...)
				return err
			}
		},
		query: func(ctx context.Context, statement string, scan func(func(...any) error) error) error {
			rows, err := pool.Query(ctx, statement)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				if err := scan(rows.Scan); err != nil {
					return err
				}
			}
			return rows.Err()
		},
		close: func() { closed(pool.Close) },
	}, nil
}

// onFile opens the application's database in a file.
func onFile(_ context.Context, place faults.Place) (*application[*sql.Tx], error) {
	store, err := sqlite.Open(place.Database, nil)
	if err != nil {
		return nil, err
	}
	return onSQL(store.DB(), store), nil
}

// onSQL is an application over database/sql.
func onSQL(db *sql.DB, store applicationStore[*sql.Tx]) *application[*sql.Tx] {
	return &application[*sql.Tx]{
		store: store,
		begin: func(ctx context.Context) (*sql.Tx, func(context.Context) error, func(context.Context) error, error) {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return nil, nil, nil, err
			}
			return tx, func(context.Context) error { return tx.Commit() }, func(context.Context) error { return tx.Rollback() }, nil
		},
		in: func(tx *sql.Tx) executor {
			return func(ctx context.Context, statement string, arguments ...any) error {
				_, err := tx.ExecContext(ctx, statement, arguments...)
				return err
			}
		},
		query: func(ctx context.Context, statement string, scan func(func(...any) error) error) error {
			rows, err := db.QueryContext(ctx, statement)
			if err != nil {
				return err
			}
			defer func() { _ = rows.Close() }() // rows.Err tells
			for rows.Next() {
				if err := scan(rows.Scan); err != nil {
					return err
				}
			}
			return rows.Err()
		},
		close: func() { closed(func() { _ = db.Close() }) },
	}
}

var places atomic.Int64

func newNamespace() string {
	return fmt.Sprintf("f_%x_%d", time.Now().UnixNano(), places.Add(1))
}

// newSchema makes the application's database on a server.
func newSchema(t testing.TB, url string) faults.Place {
	t.Helper()
	place := faults.Place{Namespace: newNamespace(), Database: url}
	a, err := onPostgres(t.Context(), place)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		tx, commit, _, err := a.begin(ctx)
		if err == nil {
			if err = a.in(tx)(ctx, "DROP SCHEMA IF EXISTS "+place.Namespace+" CASCADE"); err == nil {
				err = commit(ctx)
			}
		}
		if err != nil {
			t.Log(err)
		}
		a.close()
	})
	if err := a.migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return place
}

// newFile makes the application's database in a file.
func newFile(t testing.TB, folder string) faults.Place {
	t.Helper()
	place := faults.Place{Namespace: newNamespace(), Database: filepath.Join(folder, "app.db")}
	a, err := onFile(t.Context(), place)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	if err := a.migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return place
}
