package setup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/deadletter"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/sqldb"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/store/postgres"
)

// Database is a store over the application's own database: *[postgres.Store] and
// *[sqlite.Store] are one, and *mysql.Store but for the log.
type Database interface {
	// Migrate makes the tables or brings them to what this library needs.
	Migrate(ctx context.Context) error
	// Claims, DeadLetters and Lanes are the stores that the engine asks for.
	Claims() driver.Claims
	DeadLetters() driver.DeadLetterStore
	Lanes() driver.LaneStore
}

// logged is a database that subscriptions can read.
type logged interface{ Log() outbox.Log }

// inDatabase is the word for the database in EVENT_CLAIMS and EVENT_DEAD_LETTERS.
const inDatabase = "database"

// collected is the word in EVENT_DEAD_LETTERS for dead letters that go to the
// broker's place and are collected from there into the database.
const collected = "collect"

const (
	nameOfPostgres = "postgres"
	nameOfSQLite   = "sqlite"
)

// migrateTime bounds the migration at start.
const migrateTime = 2 * time.Minute

// opened is the database of one bus, and what to close after it.
type opened struct {
	database Database
	close    closer // nil for one that the application has passed
}

// openDatabase returns the store that the application has passed, or opens one
// where the driver or a variable asks for it.
func openDatabase(config Config, options *Options) (opened, []error) {
	if options.Database != nil {
		return opened{database: options.Database}, nil
	}
	kind := kindOfDatabase(config)
	if driver := config.driver(); driver != nameOfPostgres && driver != nameOfSQLite {
		if config.Claims != inDatabase && config.DeadLetters == "" {
			return opened{}, nil
		}
		if kind == "" {
			return opened{}, []error{errors.New("EVENT_CLAIMS or EVENT_DEAD_LETTERS needs a database, and neither DATABASE_URL nor SQLITE_PATH is set")}
		}
	}
	return openKind(kind, config, false)
}

// openKind opens the database of one kind. keepSent is as the stores' option.
func openKind(kind string, config Config, keepSent bool) (opened, []error) {
	if kind == nameOfSQLite {
		store, errs := openSQLite(config, keepSent)
		if len(errs) > 0 {
			return opened{}, errs
		}
		return opened{store, store.DB().Close}, nil
	}
	if config.DatabaseURL == "" {
		return opened{}, []error{errNoURL}
	}
	if kind == nameOfMySQL {
		db, store, errs := openMySQL(config, keepSent)
		if len(errs) > 0 {
			return opened{}, errs
		}
		return opened{store, db.Close}, nil
	}
	parsed, err := postgresConfig(config)
	if err != nil {
		return opened{}, []error{err}
	}
	parsed.AfterConnect = tuneServer
	parsed.PingTimeout = cmp.Or(parsed.PingTimeout, pingTime)
	pool, err := pgxpool.NewWithConfig(context.Background(), parsed)
	if err != nil {
		return opened{}, []error{errors.New("DATABASE_URL asks for settings of the pool that cannot be")}
	}
	store, err := postgres.New(pool, &postgres.Options{Prefix: prefix(config), KeepSent: keepSent})
	if err != nil {
		pool.Close()
		return opened{}, []error{fmt.Errorf("DATABASE_URL, EVENT_NAMESPACE: %w", err)}
	}
	return opened{store, func() error { pool.Close(); return nil }}, nil
}

// postgresConfig reads DATABASE_URL. The error repeats nothing of it: pgx hides the
// password only where it could parse it.
func postgresConfig(config Config) (*pgxpool.Config, error) {
	if beyondHost(config.DatabaseURL) {
		return nil, errors.New("DATABASE_URL " + errEncode)
	}
	parsed, err := pgxpool.ParseConfig(config.DatabaseURL)
	if err != nil {
		return nil, errBadURL
	}
	if strings.Contains(parsed.ConnConfig.Host, "@") { // it is cut at the first one
		return nil, errors.New("DATABASE_URL " + errEncode)
	}
	tunePostgres(parsed.ConnConfig)
	return parsed, nil
}

// prefix begins the names of tables: tidings_, after the namespace where there is
// one, with underscores for what a name of a table cannot have.
func prefix(config Config) string {
	if config.Namespace == "" {
		return "" // the store's own
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '_'
	}, config.Namespace) + "_tidings_"
}

// databaseAddress is SQLITE_PATH, or host, port and database of DATABASE_URL: what
// else is in it may be part of a password.
func databaseAddress(config Config) string {
	switch kindOfDatabase(config) {
	case nameOfSQLite:
		return config.SQLitePath
	case nameOfMySQL:
		u, err := url.Parse(config.DatabaseURL)
		if err != nil || beyondHost(config.DatabaseURL) {
			return "…"
		}
		return "mysql://" + u.Host + u.Path
	}
	pool, err := pgxpool.ParseConfig(config.DatabaseURL)
	if err != nil {
		return "…"
	}
	c := pool.ConnConfig
	return "postgres://" + net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))) + "/" + c.Database
}

// migrate makes the tables, unless somebody else does.
func (o opened) migrate(ctx context.Context, config Config) error {
	switch config.Migrate {
	case "", "auto":
	case "never":
		return nil
	default:
		return fmt.Errorf("setup: EVENT_MIGRATE is %q: it is auto or never", config.Migrate)
	}
	ctx, cancel := context.WithTimeout(ctx, migrateTime)
	defer cancel()
	if err := o.database.Migrate(ctx); err != nil {
		return fmt.Errorf("setup: EVENT_MIGRATE=auto, %s: %w", databaseAddress(config), err)
	}
	return nil
}

// use puts the stores of the database into the options of the bus.
func (o opened) use(config Config, bus *tidings.Options) (errs []error) {
	kind := config.driver()
	own := kind == nameOfPostgres || kind == nameOfSQLite
	if (own && config.Claims == "" || config.Claims == inDatabase) && bus.Claims == nil {
		bus.Claims = o.database.Claims()
		keep, err := claimsKeep(config)
		if err != nil {
			errs = append(errs, err)
		}
		if bus.RedeliveryHorizon == 0 {
			bus.RedeliveryHorizon = keep
		}
	}
	if bus.Lanes == nil {
		bus.Lanes = o.database.Lanes()
	}
	switch config.DeadLetters {
	case "":
		if own && bus.DeadLetters == nil {
			bus.DeadLetters = o.database.DeadLetters()
		}
	case inDatabase:
		if bus.DeadLetters == nil {
			bus.DeadLetters = o.database.DeadLetters()
		}
	case collected:
		if bus.CollectedDeadLetters == nil {
			bus.CollectedDeadLetters = o.database.DeadLetters()
		}
	default:
		errs = append(errs, fmt.Errorf("EVENT_DEAD_LETTERS is %q: it is empty, database or collect", config.DeadLetters))
	}
	return errs
}

// openLog makes the driver over a database.
func openLog(name string) func(Config, *Options, Database) (driver.Driver, []error) {
	return func(config Config, options *Options, database Database) (driver.Driver, []error) {
		if database == nil {
			return nil, nil // there is a complaint already
		}
		log, ok := database.(logged)
		if !ok {
			return nil, []error{fmt.Errorf("EVENT_DRIVER is %s, and Options.Database is a %T, which subscriptions cannot read", name, database)}
		}
		o := sqldb.Options{Name: name, Log: log.Log()}
		if options.SQLDB != nil {
			options.SQLDB(&o)
		}
		d, err := sqldb.New(o)
		if err != nil {
			return nil, []error{fmt.Errorf("EVENT_DRIVER=%s: %w", name, err)}
		}
		return d, nil
	}
}

// closer is a function as an [io.Closer].
type closer func() error

// Close implements [io.Closer].
func (c closer) Close() error { return c() }

// collect makes the bus bring the broker's dead letters into the database.
func collect(d driver.Driver, bus *tidings.Bus, options *tidings.Options) error {
	reader, _ := d.(driver.DeadLetterReader) // NewCollector refuses nil
	collector, err := deadletter.NewCollector(reader, options.CollectedDeadLetters, bus.Subscriptions, &deadletter.CollectorOptions{Logger: options.Logger})
	if err != nil {
		return fmt.Errorf("setup: %w", err)
	}
	return bus.Add(collector)
}
