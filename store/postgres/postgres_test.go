package postgres_test

import (
	"context"
	"database/sql"
	"fmt"
	"hash/fnv"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/memory"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/store/postgres"
	"github.com/tidings-go/tidings/store/storetest"
)

// server is the address of the real server.
func server(t testing.TB) string { return drivertest.Server(t, "TIDINGS_POSTGRES_URL") }

func pool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	p, err := pgxpool.New(t.Context(), server(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// schema is one for each test, and gone after it.
func schema(t testing.TB, p *pgxpool.Pool) string {
	t.Helper()
	h := fnv.New32a()
	fmt.Fprint(h, t.Name(), os.Getpid())
	name := fmt.Sprintf("t_%08x", h.Sum32())
	t.Cleanup(func() {
		if _, err := p.Exec(context.Background(), "DROP SCHEMA IF EXISTS "+name+" CASCADE"); err != nil {
			t.Log(err)
		}
	})
	return name
}

// open makes a store in the schema of the test.
func open(t testing.TB, p *pgxpool.Pool, options postgres.Options) *postgres.Store[pgx.Tx] {
	t.Helper()
	options.Schema = schema(t, p)
	s, err := postgres.New(p, &options)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func database(t *testing.T) storetest.Database[pgx.Tx] {
	p := pool(t)
	name := schema(t, p)
	open(t, p, postgres.Options{})
	if _, err := p.Exec(t.Context(), "CREATE TABLE "+name+".effects (name VARCHAR(100))"); err != nil {
		t.Fatal(err)
	}
	return storetest.Database[pgx.Tx]{
		Open: func(t *testing.T) storetest.SQL[pgx.Tx] { return open(t, pool(t), postgres.Options{}) },
		Exec: func(ctx context.Context, tx pgx.Tx, statement string) error {
			if _, err := tx.Exec(ctx, "SET LOCAL search_path TO "+name); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, statement)
			return err
		},
		Effects: func(t *testing.T) (n int) {
			if err := p.QueryRow(t.Context(), "SELECT count(*) FROM "+name+".effects").Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		},
	}
}

// databaseSQL is the same through database/sql.
func databaseSQL(t *testing.T) storetest.Database[*sql.Tx] {
	p := pool(t)
	name := schema(t, p)
	open := func(t *testing.T) storetest.SQL[*sql.Tx] {
		db, err := sql.Open("pgx", server(t))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		s, err := postgres.NewSQL(db, &postgres.Options{Schema: name, KeepSent: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		return s
	}
	open(t)
	if _, err := p.Exec(t.Context(), "CREATE TABLE "+name+".effects (name VARCHAR(100))"); err != nil {
		t.Fatal(err)
	}
	return storetest.Database[*sql.Tx]{
		Open: open,
		Exec: func(ctx context.Context, tx *sql.Tx, statement string) error {
			if _, err := tx.ExecContext(ctx, "SET LOCAL search_path TO "+name); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, statement)
			return err
		},
		Effects: func(t *testing.T) (n int) {
			if err := p.QueryRow(t.Context(), "SELECT count(*) FROM "+name+".effects").Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		},
	}
}

func TestClaims(t *testing.T) {
	p := pool(t)
	storetest.Claims(t, func(t *testing.T) driver.Claims { return open(t, p, postgres.Options{}).Claims() })
}

func TestDeadLetters(t *testing.T) {
	p := pool(t)
	storetest.DeadLetters(t, func(t *testing.T) driver.DeadLetterStore { return open(t, p, postgres.Options{}).DeadLetters() })
}

func TestLanes(t *testing.T) {
	p := pool(t)
	storetest.Lanes(t, func(t *testing.T) driver.LaneStore { return open(t, p, postgres.Options{MaxParked: 100}).Lanes() })
}

func TestLeases(t *testing.T) {
	p := pool(t)
	storetest.Leases(t, func(t *testing.T) driver.Leases { return open(t, p, postgres.Options{}) })
}

func TestOutbox(t *testing.T) { storetest.Outbox(t, database) }

func TestOutboxSQL(t *testing.T) { storetest.Outbox(t, databaseSQL) }

func TestRelay(t *testing.T) { storetest.Relay(t, database) }

func TestAdministration(t *testing.T) { storetest.Administration(t, database, false) }

func TestAdministrationSQL(t *testing.T) { storetest.Administration(t, databaseSQL, false) }

func TestIdleOwner(t *testing.T) { storetest.IdleOwner(t, database) }

func TestIdleOwnerSQL(t *testing.T) { storetest.IdleOwner(t, databaseSQL) }

func TestInbox(t *testing.T) { storetest.Inbox(t, database) }

func TestRelaySQL(t *testing.T) { storetest.Relay(t, databaseSQL) }

func TestInboxSQL(t *testing.T) { storetest.Inbox(t, databaseSQL) }

func TestLog(t *testing.T) {
	storetest.Log(t, database, func(s storetest.SQL[pgx.Tx]) outbox.Log { return s.(*postgres.Store[pgx.Tx]).Log() })
}

func TestMigrations(t *testing.T) {
	var count atomic.Int64
	storetest.Migrations(t, func(t *testing.T) storetest.Empty[pgx.Tx] {
		name := fmt.Sprintf("m_%x_%d", time.Now().UnixNano(), count.Add(1))
		admin := pool(t)
		run := func(t *testing.T, statements string) {
			if _, err := admin.Exec(t.Context(), statements); err != nil { // without arguments: any number of statements
				t.Fatal(err)
			}
		}
		t.Cleanup(func() {
			if _, err := admin.Exec(context.Background(), "DROP SCHEMA IF EXISTS "+name+" CASCADE"); err != nil {
				t.Log(err)
			}
		})
		return storetest.Empty[pgx.Tx]{
			Open: func(t *testing.T) storetest.Migrating[pgx.Tx] {
				s, err := postgres.New(pool(t), &postgres.Options{Schema: name})
				if err != nil {
					t.Fatal(err)
				}
				return s
			},
			Run: func(t *testing.T, statements string) {
				if strings.HasPrefix(statements, "CREATE SCHEMA") { // it sets the path by itself
					run(t, "BEGIN;"+statements+"SET search_path TO DEFAULT; COMMIT")
					return
				}
				run(t, "BEGIN; SET LOCAL search_path TO "+name+";"+statements+"COMMIT")
			},
			Shape: func(t *testing.T) (all []string) {
				rows, err := admin.Query(t.Context(), `SELECT concat_ws(' ', table_name, ordinal_position, column_name, data_type, is_nullable, is_identity, replace(column_default, $1, '')) FROM information_schema.columns WHERE table_schema = $1
					UNION ALL SELECT replace(indexdef, $1, '') FROM pg_indexes WHERE schemaname = $1
					UNION ALL SELECT concat_ws(' ', relname, reloptions) FROM pg_class WHERE relnamespace = CAST($1 AS regnamespace) AND reloptions IS NOT NULL ORDER BY 1`, name)
				if err != nil {
					t.Fatal(err)
				}
				all, err = pgx.CollectRows(rows, pgx.RowTo[string])
				if err != nil {
					t.Fatal(err)
				}
				return all
			},
			Refused: postgres.ErrSchema,
		}
	})
}

func TestManyDeadLetters(t *testing.T) {
	p := pool(t)
	s := open(t, p, postgres.Options{})
	table := schema(t, p) + ".tidings_dead_letters"
	storetest.ManyDeadLetters(t, storetest.Many{
		Store: s.DeadLetters(), Driver: memory.New(nil), Table: table, Whole: "Seq Scan", Analyze: "VACUUM ANALYZE " + table,
		Exec: func(t *testing.T, statement string) {
			if _, err := p.Exec(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		},
		Plan: func(t *testing.T, query string) string {
			rows, err := p.Query(t.Context(), "EXPLAIN "+query)
			if err != nil {
				t.Fatal(err)
			}
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			return strings.Join(lines, "\n")
		},
	})
}

// Debezium's outbox event router reads these columns by their names, as text.
func TestDebeziumColumns(t *testing.T) {
	p := pool(t)
	open(t, p, postgres.Options{})
	for _, column := range []string{"id", "aggregatetype", "aggregateid", "type", "payload"} {
		var kind, nullable string
		err := p.QueryRow(t.Context(), "SELECT data_type, is_nullable FROM information_schema.columns WHERE table_schema = $1 AND table_name = 'tidings_outbox' AND column_name = $2",
			schema(t, p), column).Scan(&kind, &nullable)
		if err != nil || kind != "text" || nullable != "NO" {
			t.Errorf("column %s is %s, nullable %s: %v", column, kind, nullable, err)
		}
	}
}
