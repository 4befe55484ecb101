package mysql_test

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

	_ "github.com/go-sql-driver/mysql"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/memory"
	"github.com/tidings-go/tidings/store/mysql"
	"github.com/tidings-go/tidings/store/storetest"
)

func pool(t testing.TB, database string) *sql.DB {
	t.Helper()
	db, err := sql.Open("mysql", drivertest.Server(t, "TIDINGS_MYSQL_DSN")+database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// made is the database of a test, which is gone after it.
func made(t testing.TB) string {
	t.Helper()
	h := fnv.New32a()
	fmt.Fprint(h, t.Name(), os.Getpid())
	name := fmt.Sprintf("t_%08x", h.Sum32())
	db := pool(t, "")
	if _, err := db.ExecContext(t.Context(), "CREATE DATABASE IF NOT EXISTS "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.ExecContext(context.Background(), "DROP DATABASE IF EXISTS "+name); err != nil {
			t.Log(err)
		}
	})
	return name
}

func open(t testing.TB, options *mysql.Options) *mysql.Store {
	t.Helper()
	s, err := mysql.New(pool(t, made(t)), options)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func database(t *testing.T) storetest.Database[*sql.Tx] {
	name := made(t)
	db := pool(t, name)
	if _, err := db.ExecContext(t.Context(), "CREATE TABLE effects (name VARCHAR(100))"); err != nil {
		t.Fatal(err)
	}
	return storetest.Database[*sql.Tx]{
		Open: func(t *testing.T) storetest.SQL[*sql.Tx] {
			s, err := mysql.New(pool(t, name), nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			return s
		},
		Exec: func(ctx context.Context, tx *sql.Tx, statement string) error {
			_, err := tx.ExecContext(ctx, statement)
			return err
		},
		Effects: func(t *testing.T) (n int) {
			if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM effects").Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		},
	}
}

func TestClaims(t *testing.T) {
	storetest.Claims(t, func(t *testing.T) driver.Claims { return open(t, nil).Claims() })
}

func TestDeadLetters(t *testing.T) {
	storetest.DeadLetters(t, func(t *testing.T) driver.DeadLetterStore { return open(t, nil).DeadLetters() })
}

func TestLanes(t *testing.T) {
	storetest.Lanes(t, func(t *testing.T) driver.LaneStore { return open(t, &mysql.Options{MaxParked: 100}).Lanes() })
}

func TestLeases(t *testing.T) {
	storetest.Leases(t, func(t *testing.T) driver.Leases { return open(t, nil) })
}

func TestOutbox(t *testing.T) { storetest.Outbox(t, database) }

func TestRelay(t *testing.T) { storetest.Relay(t, database) }

func TestAdministration(t *testing.T) { storetest.Administration(t, database, true) }

func TestIdleOwner(t *testing.T) { storetest.IdleOwner(t, database) }

func TestInbox(t *testing.T) { storetest.Inbox(t, database) }

func TestMigrations(t *testing.T) {
	var count atomic.Int64
	storetest.Migrations(t, func(t *testing.T) storetest.Empty[*sql.Tx] {
		name := fmt.Sprintf("m_%x_%d", time.Now().UnixNano(), count.Add(1))
		server := pool(t, "")
		if _, err := server.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := server.ExecContext(context.Background(), "DROP DATABASE IF EXISTS "+name); err != nil {
				t.Log(err)
			}
		})
		admin := pool(t, name)
		return storetest.Empty[*sql.Tx]{
			Open: func(t *testing.T) storetest.Migrating[*sql.Tx] {
				s, err := mysql.New(pool(t, name), nil)
				if err != nil {
					t.Fatal(err)
				}
				return s
			},
			Run: func(t *testing.T, statements string) {
				for statement := range strings.SplitSeq(statements, ";\n") {
					if strings.TrimSpace(statement) == "" {
						continue
					}
					if _, err := admin.ExecContext(t.Context(), statement); err != nil {
						t.Fatalf("%s: %v", statement, err)
					}
				}
			},
			Shape: func(t *testing.T) (all []string) {
				for _, query := range []string{
					"SELECT concat_ws(' ', table_name, ordinal_position, column_name, column_type, is_nullable, column_key, extra, column_default) FROM information_schema.columns WHERE table_schema = ? ORDER BY table_name, ordinal_position",
					"SELECT concat_ws(' ', table_name, index_name, seq_in_index, column_name) FROM information_schema.statistics WHERE table_schema = ? ORDER BY table_name, index_name, seq_in_index",
				} {
					rows, err := admin.QueryContext(t.Context(), query, name)
					if err != nil {
						t.Fatal(err)
					}
					defer func() { _ = rows.Close() }() // read to the end below
					for rows.Next() {
						var line string
						if err := rows.Scan(&line); err != nil {
							t.Fatal(err)
						}
						all = append(all, line)
					}
					if err := rows.Err(); err != nil {
						t.Fatal(err)
					}
				}
				return all
			},
			NoLog:   true,
			Refused: mysql.ErrSchema,
		}
	})
}

func TestManyDeadLetters(t *testing.T) {
	name := made(t)
	db := pool(t, name)
	storetest.ManyDeadLetters(t, storetest.Many{
		Store: open(t, nil).DeadLetters(), Driver: memory.New(nil), Table: "tidings_dead_letters", Whole: "whole table", Analyze: "ANALYZE TABLE tidings_dead_letters",
		Exec: func(t *testing.T, statement string) {
			if _, err := db.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		},
		Plan: func(t *testing.T, query string) (plan string) {
			rows, err := db.QueryContext(t.Context(), "EXPLAIN "+query)
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			columns, err := rows.Columns()
			if err != nil {
				t.Fatal(err)
			}
			for rows.Next() {
				values, into := make([]sql.NullString, len(columns)), make([]any, len(columns))
				for n := range values {
					into[n] = &values[n]
				}
				if err := rows.Scan(into...); err != nil {
					t.Fatal(err)
				}
				for n, column := range columns {
					plan += column + "=" + values[n].String + " "
					if column == "type" && values[n].String == "ALL" {
						plan += "(whole table) "
					}
				}
			}
			if err := rows.Err(); err != nil {
				t.Fatal(err)
			}
			return plan
		},
	})
}
