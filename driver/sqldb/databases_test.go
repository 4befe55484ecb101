package sqldb

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/store/postgres"
	"github.com/tidings-go/tidings/store/sqlite"
)

func TestMain(m *testing.M) { drivertest.Main(m, openKilled) }

// TestRealConformance holds the driver over PostgreSQL to the contract,
// TestFileConformance the one over SQLite.
func TestRealConformance(t *testing.T) {
	url := drivertest.Server(t, "TIDINGS_POSTGRES_URL")
	drivertest.Run(t, overDatabase(func(t testing.TB) database {
		schema := newSchema(t, url)
		line := &drivertest.Line{}
		return database{log: func(t testing.TB) outbox.Log { return postgresLog(t, url, schema, line) }, interrupt: line.Interrupt}
	}))
}

func TestFileConformance(t *testing.T) {
	harness := overDatabase(func(t testing.TB) database {
		path := filepath.Join(t.TempDir(), "app.db")
		return database{log: func(t testing.TB) outbox.Log { return fileLog(t, path) }}
	})
	harness.Events = ledgerEvents
	drivertest.Run(t, harness)
}

// database is one empty database.
type database struct {
	log       func(t testing.TB) outbox.Log // as a process opens it
	interrupt func(t testing.TB) (restore func())
}

func overDatabase(open func(t testing.TB) database) drivertest.Harness {
	shorter, _ := time.ParseDuration(os.Getenv("TIDINGS_TEST_PATIENCE")) // make mutants shortens it
	return drivertest.Harness{Patience: shorter, NewBroker: func(t testing.TB) drivertest.Broker {
		db := open(t)
		admin := db.log(t)
		return drivertest.Broker{
			Open: func(t testing.TB) driver.Driver {
				d, err := New(Options{Name: "postgres", Log: db.log(t), LeaseTime: 5 * time.Second, PollInterval: 200 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				return d
			},
			PutRaw: func(t testing.TB, m driver.Message) {
				if err := admin.Append(t.Context(), []outbox.Row{{Slot: outbox.SlotOf(m.Channel, m.Key), ID: m.ID, Channel: m.Channel, AggregateID: m.Key, Type: m.Type, Headers: m.Headers, Payload: m.Body}}); err != nil {
					t.Fatal(err)
				}
			},
			DeadLetters: func(t testing.TB) (letters []driver.DeadLetter) {
				store := admin.(driver.DeadLetterStore)
				stored, err := store.ListDeadLetters(context.WithoutCancel(t.Context()), driver.DeadLetterFilter{}, "", 100_000)
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range stored {
					whole, err := store.GetDeadLetter(context.WithoutCancel(t.Context()), l.Subscription, l.Key)
					if err != nil {
						t.Fatal(err)
					}
					letters = append(letters, whole.DeadLetter)
				}
				return letters
			},
			Interrupt: db.interrupt,
		}
	}}
}

var schemas atomic.Int64

func newSchema(t testing.TB, url string) string {
	t.Helper()
	name := fmt.Sprintf("d_%x_%d", time.Now().UnixNano(), schemas.Add(1))
	admin, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := admin.Exec(context.Background(), "DROP SCHEMA IF EXISTS "+name+" CASCADE"); err != nil {
			t.Log(err)
		}
		admin.Close()
	})
	return name
}

func postgresLog(t testing.TB, url, schema string, line *drivertest.Line) outbox.Log {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 6
	if line != nil {
		config.ConnConfig.DialFunc = line.Dial
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	store, err := postgres.New(pool, &postgres.Options{Schema: schema})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return store.Log()
}

func fileLog(t testing.TB, path string) outbox.Log {
	t.Helper()
	store, err := sqlite.Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.DB().Close() })
	if err := store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return store.Log()
}

// openKilled makes the driver of each process of a test that kills: over a file
// where the namespace is a path, else over a schema of PostgreSQL.
func openKilled(namespace string) (driver.Driver, error) {
	if filepath.IsAbs(namespace) {
		store, err := sqlite.Open(namespace, nil)
		if err != nil {
			return nil, err
		}
		if err := store.Migrate(context.Background()); err != nil {
			return nil, err
		}
		return New(Options{Name: "sqlite", Log: store.Log(), LeaseTime: time.Second, PollInterval: 100 * time.Millisecond})
	}
	pool, err := pgxpool.New(context.Background(), os.Getenv("TIDINGS_POSTGRES_URL"))
	if err != nil {
		return nil, err
	}
	store, err := postgres.New(pool, &postgres.Options{Schema: namespace})
	if err != nil {
		return nil, err
	}
	if err := store.Migrate(context.Background()); err != nil {
		return nil, err
	}
	return New(Options{Name: "postgres", Log: store.Log(), LeaseTime: time.Second, PollInterval: 100 * time.Millisecond})
}

func TestRealKilledInstances(t *testing.T) {
	drivertest.Killing{Open: openKilled, Namespace: newSchema(t, drivertest.Server(t, "TIDINGS_POSTGRES_URL")), Ordered: true}.Run(t)
}

func TestFileKilledInstances(t *testing.T) {
	drivertest.Killing{Open: openKilled, Namespace: filepath.Join(t.TempDir(), "app.db"), Ordered: true}.Run(t)
}
