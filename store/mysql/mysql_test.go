package mysql_test

import (
	"context"
	"database/sql"
	"fmt"
	"hash/fnv"
	"os"
	"testing"

	_ "github.com/go-sql-driver/mysql"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
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

func TestInbox(t *testing.T) { storetest.Inbox(t, database) }
