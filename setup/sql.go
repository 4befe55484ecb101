package setup

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/stdlib"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/inbox"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/store/postgres"
	"github.com/tidings-go/tidings/store/sqlite"
)

// SQL is the application's own database, for its rows and for Tidings' tables in
// one transaction (*sql.Tx). All methods may be called at once.
type SQL struct {
	// DB is the pool, which the application uses for its own rows too.
	*sql.DB
	// Store is what an outbox and an inbox are made of: outbox.New(bus, store, …)
	// and inbox.On(store, …).
	Store SQLStore
}

// SQLStore is a store whose transactions are *sql.Tx: *[sqlite.Store], *[mysql.Store],
// and *[postgres.Store] of [postgres.NewSQL].
type SQLStore interface {
	Database
	outbox.Store[*sql.Tx]
	inbox.Store[*sql.Tx]
}

// HasDatabase reports whether the variables name a database: the driver is
// postgres or sqlite, or DATABASE_URL or SQLITE_PATH is set.
func (c Config) HasDatabase() bool {
	return c.driver() == nameOfPostgres || c.driver() == nameOfSQLite || c.DatabaseURL != "" || c.SQLitePath != ""
}

// SQLFromEnv is [FromEnv] for an application that keeps its own rows in the
// database: it opens the one that the variables name and returns it with the bus.
// The drivers postgres and sqlite say which it is; beside another driver it is
// DATABASE_URL, or else SQLITE_PATH. The application closes it, after the bus has
// ended.
func SQLFromEnv(ctx context.Context, options *Options) (*tidings.Bus, *SQL, error) {
	return NewSQL(ctx, FromProcess(), options)
}

// NewSQL is [SQLFromEnv] with a Config from elsewhere.
func NewSQL(ctx context.Context, config Config, options *Options) (*tidings.Bus, *SQL, error) {
	if options == nil {
		options = &Options{}
	}
	if options.Database != nil {
		return nil, nil, errors.New("setup: Options.Database is set: SQLFromEnv and NewSQL open the database themselves; use FromEnv or New")
	}
	database, complaints := openSQL(config)
	if database == nil {
		_, err := assemble(ctx, config, options, opened{}, complaints) // it has more to say
		return nil, nil, err
	}
	bus, err := assemble(ctx, config, options, opened{database: database.Store}, nil)
	if err != nil {
		return nil, nil, errors.Join(err, database.Close())
	}
	return bus, database, nil
}

// OpenSQL opens the database of [NewSQL] without a bus, for what looks at the rows
// from outside. It makes no tables and does not ask the database yet. Whoever
// called it closes it.
func OpenSQL(config Config) (*SQL, error) {
	database, complaints := openSQL(config)
	if len(complaints) > 0 {
		return nil, complaint(complaints)
	}
	return database, nil
}

// kindOfDatabase is postgres, mysql or sqlite, or "" where no variable names one.
func kindOfDatabase(config Config) string {
	switch kind := config.driver(); {
	case kind == nameOfPostgres || kind == nameOfSQLite:
		return kind
	case config.DatabaseURL != "":
		return kindOfURL(config.DatabaseURL)
	case config.SQLitePath != "":
		return nameOfSQLite
	}
	return ""
}

func openSQL(config Config) (*SQL, []error) {
	switch kindOfDatabase(config) {
	case nameOfSQLite:
		store, errs := openSQLite(config, false)
		if len(errs) > 0 {
			return nil, errs
		}
		return &SQL{store.DB(), store}, nil
	case nameOfMySQL:
		db, store, errs := openMySQL(config, false)
		if len(errs) > 0 {
			return nil, errs
		}
		return &SQL{db, store}, nil
	case nameOfPostgres:
		return openPostgresSQL(config)
	}
	return nil, []error{errors.New("neither DATABASE_URL nor SQLITE_PATH is set: say where the application's database is")}
}

func openSQLite(config Config, keepSent bool) (*sqlite.Store, []error) {
	if config.SQLitePath == "" {
		return nil, []error{fmt.Errorf("EVENT_DRIVER is sqlite and SQLITE_PATH %w: say the path of a file, which is made when it is missing", errMissing)}
	}
	store, err := sqlite.Open(config.SQLitePath, &sqlite.Options{Prefix: prefix(config), KeepSent: keepSent})
	if err != nil {
		return nil, []error{fmt.Errorf("SQLITE_PATH=%s, EVENT_NAMESPACE: %w", config.SQLitePath, err)}
	}
	return store, nil
}

var (
	errNoURL  = fmt.Errorf("EVENT_DRIVER is postgres and DATABASE_URL %w: say postgres://user:password@host:5432/database", errMissing)
	errBadURL = errors.New("DATABASE_URL is no address of PostgreSQL such as postgres://user:password@host:5432/database")
)

// idleConnections stay open between transactions; database/sql keeps two.
const idleConnections = 10

func openPostgresSQL(config Config) (*SQL, []error) {
	if config.DatabaseURL == "" {
		return nil, []error{errNoURL}
	}
	pool, err := postgresConfig(config) // the pool's form knows more than a connection's
	if err != nil {
		return nil, []error{err}
	}
	db := stdlib.OpenDB(*pool.ConnConfig, stdlib.OptionAfterConnect(tuneServer))
	db.SetMaxIdleConns(idleConnections)
	if strings.Contains(config.DatabaseURL, "pool_max_conns") {
		db.SetMaxOpenConns(int(pool.MaxConns))
	}
	store, err := postgres.NewSQL(db, &postgres.Options{Prefix: prefix(config)})
	if err != nil {
		return nil, []error{fmt.Errorf("DATABASE_URL, EVENT_NAMESPACE: %w", errors.Join(err, db.Close()))}
	}
	return &SQL{db, store}, nil
}
