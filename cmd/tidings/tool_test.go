package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	mysqldriver "github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/internal/testtime"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/setup"
)

// actAsTidings makes the test's own binary the command.
const actAsTidings = "TIDINGS_TEST_ACT_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(actAsTidings) != "" {
		main()
	}
	os.Exit(m.Run())
}

// environment is what a run of the command sees; nothing else.
type environment map[string]string

func (e environment) with(more environment) environment {
	all := maps.Clone(e)
	maps.Copy(all, more)
	return all
}

// outcome is how a run ended.
type outcome struct {
	out, err string
	code     int
}

// tool runs the command in this process.
func tool(t testing.TB, e environment, arguments ...string) outcome {
	t.Helper()
	var out, err safeBuffer
	code := run(t.Context(), streams{strings.NewReader(""), &out, &err}, func(name string) string { return e[name] }, arguments)
	return outcome{out.String(), err.String(), code}
}

// want checks how a run ended and what it said on either stream.
func (o outcome) want(t testing.TB, code int, texts ...string) outcome {
	t.Helper()
	if o.code != code {
		t.Fatalf("exit status %d, want %d\n%s%s", o.code, code, o.out, o.err)
	}
	for _, text := range texts {
		if !strings.Contains(o.out+o.err, text) {
			t.Fatalf("it does not say %q:\n%s%s", text, o.out, o.err)
		}
	}
	return o
}

// decode reads the result of a run with --json.
func (o outcome) decode(t testing.TB, value any) {
	t.Helper()
	if err := json.Unmarshal([]byte(o.out), value); err != nil {
		t.Fatalf("%v in %s", err, o.out)
	}
}

// safeBuffer may be read while a run writes.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testtime.Patience(time.Minute)); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come: %s", what)
		}
		wait(t.Context(), 20*time.Millisecond)
	}
}

// unique is a word of the test's own, for namespaces, schemas and databases.
func unique(t testing.TB) string {
	h := fnv.New32a()
	_, _ = fmt.Fprint(h, t.Name(), os.Getpid(), time.Now().UnixNano())
	return fmt.Sprintf("cli%08x", h.Sum32())
}

// application is the database of an application, with its tables, and the
// environment that names it.
type application struct {
	environment
	database setup.Database
}

// databases runs a test over each kind of database, on its real server.
func databases(t *testing.T, test func(t *testing.T, app application)) {
	for name, open := range map[string]func(t testing.TB) environment{"sqlite": onSQLite, "postgres": onPostgres, "mysql": onMySQL} {
		t.Run(name, func(t *testing.T) { test(t, newApplication(t, open(t))) })
	}
}

func newApplication(t testing.TB, e environment) application {
	t.Helper()
	database, closer, err := setup.OpenDatabase(setup.Read(func(name string) string { return e[name] }), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = closer.Close() })
	if err := database.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return application{e, database}
}

func onSQLite(t testing.TB) environment {
	path := filepath.Join(t.TempDir(), "app.db")
	return environment{"SQLITE_PATH": path}
}

func onPostgres(t testing.TB) environment {
	address := drivertest.Server(t, "TIDINGS_POSTGRES_URL")
	name := unique(t)
	pool, err := pgxpool.New(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), "CREATE SCHEMA "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = pool.Exec(context.Background(), "DROP SCHEMA "+name+" CASCADE")
		pool.Close()
	})
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	query := u.Query()
	query.Set("search_path", name)
	u.RawQuery = query.Encode()
	return environment{"DATABASE_URL": u.String()}
}

func onMySQL(t testing.TB) environment {
	config, err := mysqldriver.ParseDSN(drivertest.Server(t, "TIDINGS_MYSQL_DSN"))
	if err != nil {
		t.Fatal(err)
	}
	connector, err := mysqldriver.NewConnector(config)
	if err != nil {
		t.Fatal(err)
	}
	db, name := sql.OpenDB(connector), unique(t)
	if _, err := db.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = db.ExecContext(context.Background(), "DROP DATABASE "+name)
		_ = db.Close()
	})
	u := url.URL{Scheme: "mysql", User: url.UserPassword(config.User, config.Passwd), Host: config.Addr, Path: "/" + name}
	return environment{"DATABASE_URL": u.String()}
}

// add puts rows into the outbox, in one transaction of the application.
func (a application) add(t testing.TB, rows ...outbox.Row) {
	t.Helper()
	ctx := t.Context()
	switch store := a.database.(type) {
	case outbox.Store[pgx.Tx]:
		pool, err := pgxpool.New(ctx, a.environment["DATABASE_URL"])
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Add(ctx, tx, rows); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	case interface {
		outbox.Store[*sql.Tx]
		DB() *sql.DB
	}:
		tx, err := store.DB().BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Add(ctx, tx, rows); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
	default:
		t.Fatalf("%T", store)
	}
}

// row is one finished event.
func row(aggregate string, n int) outbox.Row {
	m := driver.Message{
		Channel: "shop.order.placed", Type: "shop.order.placed", Key: aggregate, ID: fmt.Sprintf("%s-%d", aggregate, n),
		Headers: driver.Headers{{Name: driver.HeaderEventType, Value: "shop.order.placed"}, {Name: driver.HeaderEventID, Value: fmt.Sprintf("%s-%d", aggregate, n)}},
		Body:    fmt.Appendf(nil, `{"id":"%s-%d","aggregateId":%q,"eventType":"shop.order.placed","occurredAt":"2026-01-02T03:04:05.000Z","version":1,"payload":{"n":%d}}`, aggregate, n, aggregate, n),
	}
	return outbox.RowOf(m)
}

// settingOf is a setting of PostgreSQL.
func settingOf(t testing.TB, address, name string) (value string) {
	t.Helper()
	connection, err := pgx.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = connection.Close(context.Background()) }()
	if err := connection.QueryRow(t.Context(), "SELECT current_setting($1)", name).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}
