package sqlite_test

import (
	"context"
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/store/sqlite"
	"github.com/tidings-go/tidings/store/storetest"
)

// file opens a store over the file of a test.
func file(t *testing.T, path string, options *sqlite.Options) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(path, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.DB().Close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func database(t *testing.T) storetest.Database[*sql.Tx] {
	path := filepath.Join(t.TempDir(), "shop.db")
	first := file(t, path, nil)
	if _, err := first.DB().ExecContext(t.Context(), "CREATE TABLE effects (name VARCHAR(100))"); err != nil {
		t.Fatal(err)
	}
	return storetest.Database[*sql.Tx]{
		Open: func(t *testing.T) storetest.SQL[*sql.Tx] { return file(t, path, nil) },
		Exec: func(ctx context.Context, tx *sql.Tx, statement string) error {
			_, err := tx.ExecContext(ctx, statement)
			return err
		},
		Effects: func(t *testing.T) (n int) {
			if err := first.DB().QueryRowContext(t.Context(), "SELECT count(*) FROM effects").Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		},
		OneWriter: true,
	}
}

// shared gives stores over one file for each test.
func shared(t *testing.T) func(t *testing.T, options *sqlite.Options) *sqlite.Store {
	path := filepath.Join(t.TempDir(), "shop.db")
	names := map[string]string{}
	return func(t *testing.T, options *sqlite.Options) *sqlite.Store {
		if names[t.Name()] == "" {
			names[t.Name()] = strings.TrimSuffix(path, ".db") + "-" + strings.NewReplacer("/", "-", " ", "-", "'", "").Replace(t.Name()) + ".db"
		}
		return file(t, names[t.Name()], options)
	}
}

func TestClaims(t *testing.T) {
	open := shared(t)
	storetest.Claims(t, func(t *testing.T) driver.Claims { return open(t, nil).Claims() })
}

func TestDeadLetters(t *testing.T) {
	open := shared(t)
	storetest.DeadLetters(t, func(t *testing.T) driver.DeadLetterStore { return open(t, nil).DeadLetters() })
}

func TestLanes(t *testing.T) {
	open := shared(t)
	storetest.Lanes(t, func(t *testing.T) driver.LaneStore { return open(t, &sqlite.Options{MaxParked: 100}).Lanes() })
}

func TestLeases(t *testing.T) {
	open := shared(t)
	storetest.Leases(t, func(t *testing.T) driver.Leases { return open(t, nil) })
}

func TestOutbox(t *testing.T) { storetest.Outbox(t, database) }

func TestRelay(t *testing.T) { storetest.Relay(t, database) }

func TestAdministration(t *testing.T) { storetest.Administration(t, database, false) }

func TestInbox(t *testing.T) { storetest.Inbox(t, database) }

func TestLog(t *testing.T) {
	storetest.Log(t, database, func(s storetest.SQL[*sql.Tx]) outbox.Log { return s.(*sqlite.Store).Log() })
}

func TestMigrations(t *testing.T) {
	storetest.Migrations(t, func(t *testing.T) storetest.Empty[*sql.Tx] {
		path := filepath.Join(t.TempDir(), "shop.db")
		open := func(t *testing.T) *sqlite.Store {
			s, err := sqlite.Open(path, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := s.DB().Close(); err != nil {
					t.Error(err)
				}
			})
			return s
		}
		admin := open(t).DB()
		return storetest.Empty[*sql.Tx]{
			Open: func(t *testing.T) storetest.Migrating[*sql.Tx] { return open(t) },
			Run: func(t *testing.T, statements string) {
				if _, err := admin.ExecContext(t.Context(), statements); err != nil {
					t.Fatal(err)
				}
			},
			Shape: func(t *testing.T) (all []string) {
				return lines(t, admin, "SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_schema ORDER BY 1")
			},
			Refused: sqlite.ErrSchema,
		}
	})
}

func lines(t *testing.T, db *sql.DB, query string) (all []string) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query)
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
	return all
}

func TestManyDeadLetters(t *testing.T) {
	s := file(t, filepath.Join(t.TempDir(), "many.db"), nil)
	storetest.ManyDeadLetters(t, storetest.Many{
		Store: s.DeadLetters(), Driver: memory.New(nil), Table: "tidings_dead_letters", Whole: "whole table", Analyze: "ANALYZE",
		Exec: func(t *testing.T, statement string) {
			if _, err := s.DB().ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		},
		Plan: func(t *testing.T, query string) (plan string) {
			rows, err := s.DB().QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query)
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			for rows.Next() {
				var id, parent, unused int
				var detail string
				if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(detail, "SCAN") && !strings.Contains(detail, "INDEX") {
					detail += " (whole table)"
				}
				plan += detail + "\n"
			}
			if err := rows.Err(); err != nil {
				t.Fatal(err)
			}
			return plan
		},
	})
}
