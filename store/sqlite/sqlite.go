package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"modernc.org/sqlite"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/inbox"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/store/internal/sqlstore"
)

// Options configures a store. The zero value has the defaults.
type Options struct {
	// Prefix begins the names of all tables. Defaults to "tidings_".
	Prefix string

	// KeepSent moves events that were sent into the table outbox_sent, until
	// Clean deletes them, instead of deleting them at once.
	KeepSent bool

	// MaxParked bounds the parked events of one subscription. Defaults to
	// 100 000. Events are counted once in a while, so that several processes may
	// pass it by a hundredth each.
	MaxParked int

	// WatchInterval is how often the file is looked at for commits of others while
	// somebody waits for them. Defaults to 5 milliseconds; negative turns it off,
	// and so does a pool of fewer than four connections.
	WatchInterval time.Duration
}

// Store is an [outbox.Store] and an [inbox.Store], and gives the engine its
// stores (Claims, Lanes and DeadLetters) and driver sqlite its log. All methods
// may be called at once. Make it with [New] or [Open].
type Store struct {
	*sqlstore.Store[*sql.Tx]
	db         *sql.DB
	migrations *sqlstore.Schema
}

var (
	_ outbox.Store[*sql.Tx] = (*Store)(nil)
	_ inbox.Store[*sql.Tx]  = (*Store)(nil)
)

// ErrSchema is wrapped by the errors of a store whose tables are missing, older
// than this library, or too new for it. Their text says what to run.
var ErrSchema = sqlstore.ErrSchema

//go:embed migrations/*.sql
var migrations embed.FS

// Open opens a file, which is made when it is missing, and a store over it. The
// pool is for the application too: [Store.DB]; whoever called Open closes it.
// Transactions of the pool begin as writers (BEGIN IMMEDIATE) and wait up to ten
// seconds for each other.
func Open(path string, options *Options) (*Store, error) {
	if path == "" || strings.Contains(path, ":memory:") {
		return nil, fmt.Errorf("sqlite: the path is %q: pass the path of a file", path)
	}
	opened, err := sqlite.NewConnector(dataSource(path))
	if err != nil {
		return nil, fmt.Errorf("sqlite: %w", err)
	}
	db := sql.OpenDB(connector{opened, &turn{patience: busyTime, between: &between{queue: &fileLock{path: path + "-queue"}, writer: &fileLock{path: path + "-writer"}}}})
	db.SetMaxIdleConns(idleConnections)
	s, err := New(db, options)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// idleConnections stay open: a new one reads the schema and prepares every
// statement again. The default of database/sql is two.
const idleConnections = 8

// busyTime is how long a transaction waits for others to end.
const busyTime = 10 * time.Second

func dataSource(path string) string {
	query := url.Values{"_pragma": {fmt.Sprintf("busy_timeout(%d)", busyTime.Milliseconds()), "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)"}, "_txlock": {"immediate"}}
	return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: query.Encode()}).String()
}

// New makes a store over a pool of modernc.org/sqlite, or returns every complaint
// about the options. It does not ask the file yet. The pool should have a
// busy_timeout; the store begins its own transactions as writers.
func New(db *sql.DB, options *Options) (*Store, error) {
	if db == nil {
		return nil, errors.New("sqlite: the database is nil")
	}
	var o Options
	if options != nil {
		o = *options
	}
	o.Prefix = cmp.Or(o.Prefix, "tidings_")
	o.MaxParked = cmp.Or(o.MaxParked, 100_000)
	o.WatchInterval = cmp.Or(o.WatchInterval, 5*time.Millisecond)
	errs := []error{sqlstore.CheckName("Options.Prefix", o.Prefix)}
	if o.MaxParked < 0 {
		errs = append(errs, fmt.Errorf("Options.MaxParked is %d", o.MaxParked))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("sqlite: %w", err)
	}
	settings := sqlstore.Settings[*sql.Tx]{
		Dialect: dialect(o), Database: sqlstore.PreparedSQLDatabase(db), Schema: sqlstore.ReadSchema(migrations, o.Prefix),
		KeepSent: o.KeepSent, MaxParked: o.MaxParked,
		Transaction: func(tx *sql.Tx) sqlstore.Executor { return sqlstore.SQLTransaction(tx) },
		Begin:       sqlstore.BeginSQL(db),
	}
	if o.WatchInterval > 0 {
		settings.Wake = func(ctx context.Context) <-chan struct{} {
			if sqlstore.Cramped(db) {
				return nil // it would keep a connection for itself
			}
			return watch(ctx, db, o.WatchInterval)
		}
	}
	return &Store{Store: sqlstore.New(settings), db: db, migrations: settings.Schema}, nil
}

// DB is the pool.
func (s *Store) DB() *sql.DB { return s.db }

// Migrate makes the tables or brings them to what this library needs, in one
// transaction. Many processes may call it at once.
func (s *Store) Migrate(ctx context.Context) error {
	if s.Check(ctx) == nil {
		return nil
	}
	connection, err := s.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("sqlite: migrate: %w", err)
	}
	defer func() { _ = connection.Close() }() // back to the pool
	if _, err := connection.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("sqlite: migrate: %w", err)
	}
	end := func(statement string) error {
		_, err := connection.ExecContext(context.WithoutCancel(ctx), statement)
		return err
	}
	if err := s.migrations.Apply(ctx, sqlstore.SQLConnection(connection)); err != nil {
		return fmt.Errorf("sqlite: migrate: %w", errors.Join(err, end("ROLLBACK")))
	}
	if err := end("COMMIT"); err != nil {
		return fmt.Errorf("sqlite: migrate: commit: %w", errors.Join(err, end("ROLLBACK")))
	}
	return s.Check(ctx)
}

// Schema returns the statements that make all tables, for teams that run them
// with a tool of their own.
func (s *Store) Schema() string { return s.SchemaSince(0) }

// SchemaSince returns the statements that bring the tables from a version of the
// schema (table tidings_schema has it) to what this library needs.
func (s *Store) SchemaSince(version int) string { return s.migrations.Text(version) }

// watch gives a value when the file has changed by another connection, until ctx
// ends.
func watch(ctx context.Context, db *sql.DB, every time.Duration) <-chan struct{} {
	woken := make(chan struct{}, 1)
	go func() {
		defer close(woken)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for ctx.Err() == nil {
			look(ctx, db, tick.C, woken)
			select { // the connection broke: polling goes on meanwhile
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}()
	return woken
}

// look watches on one connection until it breaks.
func look(ctx context.Context, db *sql.DB, tick <-chan time.Time, woken chan<- struct{}) {
	connection, err := db.Conn(ctx)
	if err != nil {
		return
	}
	defer func() { _ = connection.Close() }() // back to the pool
	pragma, err := connection.PrepareContext(ctx, "PRAGMA data_version")
	if err != nil {
		return
	}
	defer func() { _ = pragma.Close() }() // it ends with the connection
	last := int64(-1)
	for {
		var version int64
		if err := pragma.QueryRowContext(ctx).Scan(&version); err != nil {
			return
		}
		if version != last {
			last = version
			select {
			case woken <- struct{}{}:
			default:
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
	}
}

const (
	takeOver = `ON CONFLICT (subscription, claim_key) DO UPDATE SET
		owner = excluded.owner, done = 0, until_at = excluded.until_at, digest = excluded.digest, keep_until = NULL,
		source = excluded.source, epoch = excluded.epoch,
		crashes = CASE WHEN {claims}.done = 1 THEN 0 WHEN {claims}.owner = excluded.owner OR {claims}.started = 0 THEN {claims}.crashes ELSE {claims}.crashes + 1 END,
		alone = CASE WHEN {claims}.done = 1 THEN 0 WHEN {claims}.owner = excluded.owner OR {claims}.started < 2 THEN {claims}.alone ELSE {claims}.alone + 1 END,
		started = CASE WHEN {claims}.done = 1 OR $6 > 0 THEN excluded.started WHEN {claims}.owner = excluded.owner THEN {claims}.started
			WHEN {claims}.crashes = 0 AND {claims}.started = 0 THEN 1 ELSE 0 END
		WHERE ({claims}.done = 0 AND ({claims}.owner = excluded.owner OR {claims}.until_at <= {now}
			OR ({claims}.source = excluded.source AND {claims}.epoch < excluded.epoch AND excluded.source <> '')))
		OR ({claims}.done = 1 AND {claims}.keep_until <= {now})`

	takeDone = `ON CONFLICT (subscription, claim_key) DO UPDATE SET
		owner = excluded.owner, done = 1, until_at = 0, digest = excluded.digest, crashes = 0, keep_until = excluded.keep_until
		WHERE {claims}.done = 0 OR {claims}.keep_until <= {now}`
)

// becomeWriter makes a transaction a writer before it has read anything: one that
// reads first cannot become a writer once another has written.
const becomeWriter = "UPDATE {schema} SET only_row = only_row"

// Result codes, https://www.sqlite.org/rescode.html.
const (
	codeBusy   = 5
	codeLocked = 6
	codeFull   = 13
	// codeCantOpen is also what a connection is told that opens the file at the
	// moment at which the last one of another process takes its log away.
	codeCantOpen = 14
)

func dialect(o Options) *sqlstore.Dialect {
	return &sqlstore.Dialect{
		Name:      "sqlite",
		Now:       "CAST(unixepoch('subsec') * 1000000 AS integer)",
		Int:       "CAST(%s AS integer)",
		Quote:     func(table string) string { return `"` + o.Prefix + table + `"` },
		Upsert:    func(columns string) string { return "ON CONFLICT (" + columns + ") DO UPDATE SET" },
		New:       func(column string) string { return "excluded." + column },
		Returning: true,
		Take:      takeOver,
		TakeDone:  takeDone,
		OneWriter: true,
		Writes:    becomeWriter,
		Places:    "(SELECT json_extract(value, '$[0]') AS channel, json_extract(value, '$[1]') AS slot, json_extract(value, '$[2]') AS position, json_extract(value, '$[3]') AS finished FROM json_each($1))",
		Serialize: func(ctx context.Context, run sqlstore.Statements, _ int64) error {
			_, err := run.Exec(ctx, becomeWriter)
			return err
		},
		Inspect:  inspect,
		Retry:    func(err error) bool { c := code(err); return c == codeBusy || c == codeLocked || c == codeCantOpen },
		Answered: func(err error) bool { c := code(err); return c == codeBusy || c == codeLocked || c == codeFull },
		NoTable:  func(err error) bool { return err != nil && strings.Contains(err.Error(), "no such table") },
	}
}

// code is the primary result code of an error, or 0.
func code(err error) int {
	if answer, ok := errors.AsType[*sqlite.Error](err); ok {
		return answer.Code() & 0xff
	}
	return 0
}

// inspect finds settings under which a commit can be lost, or readers and writers
// wait for each other (https://www.sqlite.org/pragma.html).
func inspect(ctx context.Context, run sqlstore.Statements) (findings []driver.Finding, err error) {
	var mode string
	var synchronous int
	if _, err := run.One(ctx, "PRAGMA journal_mode", nil, &mode); err != nil {
		return nil, err
	}
	if _, err := run.One(ctx, "PRAGMA synchronous", nil, &synchronous); err != nil {
		return nil, err
	}
	if mode != "wal" {
		findings = append(findings, driver.Finding{
			Severity: driver.Weak, Check: "sqlite-journal-mode", Subject: "sqlite", What: "journal_mode is " + mode, Why: "readers and writers wait for each other",
			Fix: "open the file with _pragma=journal_mode(WAL), as sqlite.Open does",
		})
	}
	if synchronous < 2 {
		findings = append(findings, driver.Finding{
			Severity: driver.Weak, Check: "sqlite-synchronous", Subject: "sqlite", What: fmt.Sprintf("synchronous is %d, less than 2 (FULL)", synchronous), Why: "a crash of the machine loses the last commits, events and effects alike",
			Fix: "open the file with _pragma=synchronous(FULL), as sqlite.Open does",
		})
	}
	return findings, nil
}
