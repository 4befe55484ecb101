package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/sqldb"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/store/postgres"
	"github.com/tidings-go/tidings/store/sqlite"
)

// database is one database without a broker beside it.
type database struct {
	name string
	// open gives what a process has of it; close ends that.
	open func(ctx context.Context) (log outbox.Log, claims driver.Claims, closed func() error, err error)
	// insert writes a row of an event's size in a transaction of its own.
	insert func(ctx context.Context) error
}

const (
	singles = 400  // events of a round that are published one by one
	bulk    = 4000 // and those that are published a hundred at a time
)

// onDatabases measures driver sqlite on a file, and driver postgres where
// TIDINGS_POSTGRES_URL says one.
func onDatabases(ctx context.Context, out io.Writer, rounds int) (err error) {
	directory, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(directory)) }()
	for _, claimed := range []bool{false, true} {
		if err := onSQLite(ctx, out, rounds, filepath.Join(directory, fmt.Sprint("claims-", claimed, ".db")), claimed); err != nil {
			return fmt.Errorf("sqlite: %w", err)
		}
	}
	address := os.Getenv("TIDINGS_POSTGRES_URL")
	if address == "" {
		fmt.Fprintln(out, "\nPostgreSQL: not measured, TIDINGS_POSTGRES_URL is not set")
		return nil
	}
	for _, claimed := range []bool{false, true} {
		if err := onPostgres(ctx, out, rounds, address, claimed); err != nil {
			return fmt.Errorf("postgres: %w", err)
		}
	}
	return nil
}

func onSQLite(ctx context.Context, out io.Writer, rounds int, path string, claimed bool) error {
	first, err := sqlite.Open(path, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, first.DB().Close()) }()
	if err := first.Migrate(ctx); err != nil {
		return err
	}
	if _, err := first.DB().ExecContext(ctx, "CREATE TABLE plain (number INTEGER PRIMARY KEY, text text NOT NULL)"); err != nil {
		return err
	}
	return measure(ctx, out, rounds, claimed, database{
		name: "sqlite",
		open: func(context.Context) (outbox.Log, driver.Claims, func() error, error) {
			s, err := sqlite.Open(path, nil)
			if err != nil {
				return nil, nil, nil, err
			}
			return s.Log(), s.Claims(), s.DB().Close, nil
		},
		insert: func(ctx context.Context) error {
			tx, err := first.DB().BeginTx(ctx, &sql.TxOptions{})
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "INSERT INTO plain (text) VALUES ($1)", sampleText); err != nil {
				return errors.Join(err, tx.Rollback())
			}
			return tx.Commit()
		},
	})
}

func onPostgres(ctx context.Context, out io.Writer, rounds int, address string, claimed bool) (err error) {
	schema := fmt.Sprintf("bench_%x", time.Now().UnixNano())
	pool, err := pgxpool.New(ctx, address)
	if err != nil {
		return err
	}
	defer pool.Close()
	defer func() {
		_, dropping := pool.Exec(context.WithoutCancel(ctx), "DROP SCHEMA IF EXISTS "+schema+" CASCADE")
		err = errors.Join(err, dropping)
	}()
	s, err := postgres.New(pool, &postgres.Options{Schema: schema})
	if err != nil {
		return err
	}
	if err := s.Migrate(ctx); err != nil {
		return err
	}
	if _, err := pool.Exec(ctx, "CREATE TABLE "+schema+".plain (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL)"); err != nil {
		return err
	}
	return measure(ctx, out, rounds, claimed, database{
		name: "postgres",
		open: func(ctx context.Context) (outbox.Log, driver.Claims, func() error, error) {
			pool, err := pgxpool.New(ctx, address)
			if err != nil {
				return nil, nil, nil, err
			}
			s, err := postgres.New(pool, &postgres.Options{Schema: schema})
			if err != nil {
				pool.Close()
				return nil, nil, nil, err
			}
			return s.Log(), s.Claims(), func() error { pool.Close(); return nil }, nil
		},
		insert: func(ctx context.Context) error {
			_, err := pool.Exec(ctx, "INSERT INTO "+schema+".plain (text) VALUES ($1)", sampleText)
			return err
		},
	})
}

// sampleText has the size of an event on the wire.
const sampleText = `{"id":"01a20ddf-3c92-7582-b60a-b1a539a48760","aggregateId":"0190f5c2-7c1e-7e39-9c0a-5d0f6a3d0042","eventType":"identity.user.created","occurredAt":"2026-01-01T00:00:00.000Z","version":1,"payload":{"userId":"0190f5c2-7c1e-7e39-9c0a-5d0f6a3d9b11","email":"ada.lovelace@example.com","name":"Ada Lovelace"}}`

// busOn runs a bus over a database, with a handler unless it is nil.
func busOn(ctx context.Context, db database, claimed bool, handle func(context.Context, tidings.Event[userCreated]) error) (bus *tidings.Bus, stop func() error, err error) {
	log, claims, closed, err := db.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	d, err := sqldb.New(sqldb.Options{Name: db.name, Log: log})
	if err != nil {
		return nil, nil, errors.Join(err, closed())
	}
	options := &tidings.Options{Logger: quiet(), WithoutDedup: !claimed}
	if claimed {
		options.Claims, options.RedeliveryHorizon = claims, time.Hour
	}
	bus = tidings.New(d, options)
	if handle != nil {
		bus.Module("billing").Subscribe("create-default-profile", &tidings.SubscribeOptions{StartAt: tidings.StartBeginning}, created.On(handle))
	}
	running, end := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- bus.Run(running) }()
	return bus, func() error { end(); return errors.Join(<-done, closed()) }, bus.Ready(ctx)
}

func measure(ctx context.Context, out io.Writer, rounds int, claimed bool, db database) (err error) {
	var handled atomic.Int64
	bus, stop, err := busOn(ctx, db, claimed, func(context.Context, tidings.Event[userCreated]) error { handled.Add(1); return nil })
	if err != nil {
		return err
	}
	with := "without claims"
	if claimed {
		with = "with claims in the database"
	}
	// through publishes from some goroutines, and ends when all is handled.
	through := func(publishers, size, total int) func(context.Context) (int, time.Duration, error) {
		return func(ctx context.Context) (int, time.Duration, error) {
			began, before := time.Now(), handled.Load()
			var all sync.WaitGroup
			failed := make([]error, publishers)
			for p := range publishers {
				all.Go(func() {
					for n := 0; n < total/publishers && failed[p] == nil; n += size {
						events := make([]tidings.DomainEvent, size)
						for i := range events {
							events[i] = created.New(aggregates[(p+n+i)%len(aggregates)], sample)
						}
						failed[p] = bus.Publish(ctx, events...)
					}
				})
			}
			all.Wait()
			for handled.Load() < before+int64(total) && errors.Join(failed...) == nil && ctx.Err() == nil {
				time.Sleep(200 * time.Microsecond)
			}
			return total, time.Since(began), errors.Join(errors.Join(failed...), ctx.Err())
		}
	}
	inserts := func(ctx context.Context) (int, time.Duration, error) {
		for range singles {
			if err := db.insert(ctx); err != nil {
				return 0, 0, err
			}
		}
		return singles, 0, nil
	}
	const plain = "a plain INSERT, committed"
	fmt.Fprintf(out, "\nDriver %s, %s: from Publish to the end of a no-op handler\n\n", db.name, with)
	_, err = compare(ctx, out, rounds, []side{
		{name: plain, run: inserts},
		{name: "1 publisher, 1 at a time", run: through(1, 1, singles), against: plain},
		{name: "8 publishers, 1 at a time", run: through(8, 1, singles), against: plain},
		{name: "1 publisher, 100 at a time", run: through(1, batch, bulk), against: plain},
		{name: "8 publishers, 100 at a time", run: through(8, batch, 8*batch*5), against: plain},
	})
	if err = errors.Join(err, stop()); err != nil || claimed {
		return err
	}
	return idle(ctx, out, db)
}

// idle measures from the return of Publish, which is the commit, to the call of
// the handler, one event at a time: in the process that published, and in
// another.
func idle(ctx context.Context, out io.Writer, db database) (err error) {
	const times = 200
	committed := make(chan time.Time, 1)
	took := make(chan time.Duration, 1)
	here, stop, err := busOn(ctx, db, false, func(context.Context, tidings.Event[userCreated]) error {
		called := time.Now()
		took <- called.Sub(<-committed) // below zero where it is called before Publish returns
		return nil
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	there, stopThere, err := busOn(ctx, db, false, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopThere()) }()
	for _, from := range []struct {
		name string
		bus  *tidings.Bus
	}{{"in the same process", here}, {"in another", there}} {
		var all []float64
		for n := range times {
			if err := from.bus.Publish(ctx, created.New(aggregates[n%len(aggregates)], sample)); err != nil {
				return err
			}
			committed <- time.Now()
			select {
			case d := <-took:
				all = append(all, float64(max(d, 0).Microseconds())/1000)
			case <-time.After(10 * time.Second):
				return errors.New("an event was not handled in 10 s")
			}
			time.Sleep(10 * time.Millisecond)
		}
		fmt.Fprintf(out, "%s, idle, commit to handler %s: p50 %.1f ms, p99 %.1f ms\n", db.name, from.name, quantile(all, 0.5), quantile(all, 0.99))
	}
	return nil
}
