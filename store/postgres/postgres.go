package postgres

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"hash/fnv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tidings-go/tidings/inbox"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/store/internal/sqlstore"
)

// Options configures a store. The zero value has the defaults.
type Options struct {
	// Schema is the PostgreSQL schema of the tables: lower-case letters, digits
	// and underscores. Migrate makes it when it is missing. Defaults to the first
	// one of the connection's search_path.
	Schema string

	// Prefix begins the names of all tables. Defaults to "tidings_". Two
	// applications in one schema need different ones.
	Prefix string

	// KeepSent moves events that were sent into the table outbox_sent, until
	// Clean deletes them, instead of deleting them at once.
	KeepSent bool

	// MaxParked bounds the parked events of one subscription. Defaults to
	// 100 000. Events are counted once in a while, so that several instances may
	// pass it by a hundredth each.
	MaxParked int

	// NoNotify leaves NOTIFY out: relays that wait for it poll. PostgreSQL
	// serialises the commits of transactions that notify.
	NoNotify bool
}

// Store is an [outbox.Store] and an [inbox.Store], and gives the engine its
// stores: Claims, Lanes and DeadLetters. All methods may be called at once. It
// does not close its pool. Make it with [New] or [NewSQL].
type Store[TX any] struct {
	*sqlstore.Store[TX]
	migrations *sqlstore.Schema
	database   sqlstore.Database
	schema     string
}

var (
	_ outbox.Store[pgx.Tx]  = (*Store[pgx.Tx])(nil)
	_ inbox.Store[pgx.Tx]   = (*Store[pgx.Tx])(nil)
	_ outbox.Store[*sql.Tx] = (*Store[*sql.Tx])(nil)
	_ inbox.Store[*sql.Tx]  = (*Store[*sql.Tx])(nil)
)

// ErrSchema is wrapped by the errors of a store whose tables are missing, older
// than this library, or too new for it. Their text says what to run.
var ErrSchema = sqlstore.ErrSchema

//go:embed migrations/*.sql
var migrations embed.FS

// New makes a store over a pgx pool, or returns every complaint about the
// options. It does not ask the database yet.
func New(pool *pgxpool.Pool, options *Options) (*Store[pgx.Tx], error) {
	if pool == nil {
		return nil, errors.New("postgres: the pool is nil")
	}
	settings := sqlstore.Settings[pgx.Tx]{
		Database:    poolDatabase{pool},
		Transaction: func(tx pgx.Tx) sqlstore.Executor { return transactionExecutor{tx} },
		Begin: func(ctx context.Context) (pgx.Tx, func(context.Context) error, func(context.Context) error, error) {
			t, err := beginOn(ctx, pool, pgx.TxOptions{})
			if err != nil {
				return nil, nil, nil, err
			}
			return t.tx, t.Commit, t.Rollback, nil
		},
		Sweep: sweep(pool),
	}
	return assemble(settings, options, func(ctx context.Context) (listener, error) { return connectBeside(ctx, pool) })
}

// NewSQL makes a store over a database/sql pool, or returns every complaint
// about the options. It does not ask the database yet. With pgx's driver
// ("pgx/stdlib") relays listen on a connection of the pool; with another one they
// poll.
func NewSQL(db *sql.DB, options *Options) (*Store[*sql.Tx], error) {
	if db == nil {
		return nil, errors.New("postgres: the database is nil")
	}
	settings := sqlstore.Settings[*sql.Tx]{
		Database:    sqlstore.SQLDatabaseBeginning(db, beginShort),
		Transaction: func(tx *sql.Tx) sqlstore.Executor { return sqlstore.SQLTransaction(tx) },
		Begin:       sqlstore.BeginSQL(db),
		Sweep:       sqlstore.SweepSQL(db),
	}
	var connect func(context.Context) (listener, error)
	if isPGX(db) {
		connect = func(ctx context.Context) (listener, error) { return connectWithin(ctx, db) }
	}
	return assemble(settings, options, connect)
}

func assemble[TX any](settings sqlstore.Settings[TX], options *Options, connect func(context.Context) (listener, error)) (*Store[TX], error) {
	var o Options
	if options != nil {
		o = *options
	}
	if o.Prefix == "" {
		o.Prefix = "tidings_"
	}
	if o.MaxParked == 0 {
		o.MaxParked = 100_000
	}
	var errs []error
	errs = append(errs, sqlstore.CheckName("Options.Prefix", o.Prefix))
	if o.Schema != "" {
		errs = append(errs, sqlstore.CheckName("Options.Schema", o.Schema))
	}
	if o.MaxParked < 0 {
		errs = append(errs, fmt.Errorf("Options.MaxParked is %d", o.MaxParked))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	settings.Dialect = dialect(o)
	settings.Schema = sqlstore.ReadSchema(migrations, o.Prefix)
	settings.KeepSent, settings.MaxParked = o.KeepSent, o.MaxParked
	if connect != nil && !o.NoNotify {
		settings.Wake = func(ctx context.Context) <-chan struct{} { return listen(ctx, connect, channel(o)) }
	}
	return &Store[TX]{Store: sqlstore.New(settings), migrations: settings.Schema, database: settings.Database, schema: o.Schema}, nil
}

// Migrate makes the tables or brings them to what this library needs. Many
// instances may call it at once: one does the work under an advisory lock, the
// others wait. It changes nothing, and needs no permission to, when the tables
// are right. All migrations are applied in one transaction.
func (s *Store[TX]) Migrate(ctx context.Context) error {
	if s.Check(ctx) == nil {
		return nil
	}
	tx, err := s.database.Begin(ctx)
	if err != nil {
		return fmt.Errorf("postgres: migrate: %w", err)
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeListener)
		defer cancel()
		_ = tx.Rollback(ending) // after the commit it does nothing
	}()
	before := []string{fmt.Sprintf("SELECT pg_advisory_xact_lock(%d)", hash("migrate "+s.schema+" "+s.migrations.Prefix))}
	if s.schema != "" {
		before = append(before, "CREATE SCHEMA IF NOT EXISTS "+quote(s.schema), "SET LOCAL search_path TO "+quote(s.schema))
	}
	for _, statement := range before {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return fmt.Errorf("postgres: migrate: %w", err)
		}
	}
	if err := s.migrations.Apply(ctx, tx); err != nil {
		return fmt.Errorf("postgres: migrate: %w", err)
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("postgres: migrate: commit: %w", err)
	}
	return s.Check(ctx)
}

// Schema returns the statements that make all tables, for teams that run them
// with a tool of their own.
func (s *Store[TX]) Schema() string { return s.SchemaSince(0) }

// SchemaSince returns the statements that bring the tables from a version of the
// schema (table tidings_schema has it) to what this library needs.
func (s *Store[TX]) SchemaSince(version int) string {
	text := s.migrations.Text(version)
	if s.schema != "" && text != "" {
		text = fmt.Sprintf("CREATE SCHEMA IF NOT EXISTS %s;\nSET search_path TO %s;\n\n%s", quote(s.schema), quote(s.schema), text)
	}
	return text
}

func hash(text string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text)) // it never fails
	return int64(h.Sum64())
}

func quote(name string) string { return `"` + name + `"` }

// channel is where listeners hear of new rows.
func channel(o Options) string { return o.Prefix + "outbox_" + o.Schema }
