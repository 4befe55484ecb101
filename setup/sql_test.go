package setup_test

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/inbox"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/setup"
)

type signedUp struct {
	Name string `json:"name"`
}

var created = tidings.Define[signedUp]("people.person.created", 1, tidings.Once)

// What an application does with it: a row and its event in one transaction, and
// the effect of the event in another.
func TestSQLHoldsRowsAndEvents(t *testing.T) {
	for name, environment := range map[string]func(t *testing.T) map[string]string{
		"sqlite": func(t *testing.T) map[string]string {
			return map[string]string{"EVENT_DRIVER": "sqlite", "SQLITE_PATH": filepath.Join(t.TempDir(), "app.db")}
		},
		"postgres": func(t *testing.T) map[string]string {
			return map[string]string{"EVENT_DRIVER": "postgres", "DATABASE_URL": postgresSchema(t)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			values := environment(t)
			bus, database, err := setup.NewSQL(t.Context(), setup.Read(func(name string) string { return values[name] }), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = database.Close() }()
			if _, err := database.ExecContext(t.Context(), `CREATE TABLE people (name text); CREATE TABLE greeted (name text)`); err != nil {
				t.Fatal(err)
			}
			box, err := outbox.New(bus, database.Store, nil)
			if err != nil {
				t.Fatal(err)
			}
			people, handled := bus.Module("people"), make(chan struct{}, 1)
			bus.Module("greeters").Subscribe("greet", &tidings.SubscribeOptions{StartAt: tidings.StartBeginning},
				inbox.On(database.Store, created, func(ctx context.Context, tx *sql.Tx, e tidings.Event[signedUp]) error {
					defer func() { handled <- struct{}{} }()
					_, err := tx.ExecContext(ctx, `INSERT INTO greeted (name) VALUES ($1)`, e.Payload().Name)
					return err
				}))
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- bus.Run(ctx) }()
			if err := bus.Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
			tx, err := database.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.ExecContext(t.Context(), `INSERT INTO people (name) VALUES ('Ada')`); err != nil {
				t.Fatal(err)
			}
			if err := people.Through(box.In(tx)).Publish(t.Context(), created.New("p-1", signedUp{"Ada"})); err != nil {
				t.Fatal(err)
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			<-handled
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
			var name string
			if err := database.QueryRowContext(t.Context(), `SELECT name FROM greeted`).Scan(&name); err != nil || name != "Ada" {
				t.Errorf("after the bus has ended: %q, %v", name, err)
			}
		})
	}
}

// postgresSchema is the address of a schema of the test's own.
func postgresSchema(t *testing.T) string {
	t.Helper()
	address := drivertest.Server(t, "TIDINGS_POSTGRES_URL")
	name := fmt.Sprintf("setup_%x", time.Now().UnixNano())
	run := func(statement string) {
		admin, err := setup.OpenSQL(setup.Config{DatabaseURL: address})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = admin.Close() }()
		if _, err := admin.ExecContext(context.WithoutCancel(t.Context()), statement); err != nil {
			t.Fatal(err)
		}
	}
	drop := "DROP SCHEMA IF EXISTS " + name + " CASCADE"
	run(drop)
	run("CREATE SCHEMA " + name)
	t.Cleanup(func() { run(drop) })
	return address + "&search_path=" + name
}

func TestSQLComplainsAtOnce(t *testing.T) {
	for name, test := range map[string]struct {
		config setup.Config
		want   []string
	}{
		"nowhere":        {setup.Config{Driver: "kafka"}, []string{"neither DATABASE_URL nor SQLITE_PATH is set", "KAFKA_BROKERS is not set"}},
		"no path":        {setup.Config{Driver: "sqlite", Environment: "prod"}, []string{"SQLITE_PATH is not set", "EVENT_ENV"}},
		"no address":     {setup.Config{Driver: "postgres", DatabaseURL: "postgres://app:secret@host:nonsense/x"}, []string{"DATABASE_URL is no address of PostgreSQL"}},
		"no postgres":    {setup.Config{Driver: "postgres", DatabaseURL: "postgres://app:secret@127.0.0.1:1/x"}, []string{"EVENT_MIGRATE=auto", "127.0.0.1:1"}},
		"no mysql there": {setup.Config{Driver: "kafka", DatabaseURL: "mysql://app:secret@127.0.0.1:nonsense/x"}, []string{"DATABASE_URL is no address of MySQL"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := setup.NewSQL(t.Context(), test.config, nil)
			for _, want := range test.want {
				if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
					t.Errorf("the error does not say %q, or says too much: %v", want, err)
				}
			}
		})
	}
	path := filepath.Join(t.TempDir(), "app.db")
	own, err := setup.OpenSQL(setup.Config{SQLitePath: path})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Close() }()
	if _, _, err := setup.NewSQL(t.Context(), setup.Config{Driver: "sqlite", SQLitePath: path}, &setup.Options{Database: own.Store}); err == nil || !strings.Contains(err.Error(), "Options.Database") {
		t.Errorf("with a database of the application's own: %v", err)
	}
	if _, err := setup.OpenSQL(setup.Config{}); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("OpenSQL: %v", err)
	}
}

func TestHasDatabase(t *testing.T) {
	for config, want := range map[setup.Config]bool{
		{}: false, {Driver: "kafka"}: false, {Driver: "sqlite"}: true, {Driver: "postgres"}: true,
		{Driver: "kafka", SQLitePath: "a"}: true, {DatabaseURL: "b"}: true,
	} {
		if config.HasDatabase() != want {
			t.Errorf("%v: %t", config, !want)
		}
	}
}
