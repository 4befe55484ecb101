package mysql

import (
	"cmp"
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

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
	// 100 000. Events are counted once in a while, so that several instances may
	// pass it by a hundredth each.
	MaxParked int
}

// Store is an [outbox.Store] and an [inbox.Store], and gives the engine its
// stores: Claims, Lanes and DeadLetters. All methods may be called at once. It
// does not close its pool. Make it with [New].
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

// New makes a store over a pool, or returns every complaint about the options. It
// does not ask the database yet.
func New(db *sql.DB, options *Options) (*Store, error) {
	if db == nil {
		return nil, errors.New("mysql: the database is nil")
	}
	var o Options
	if options != nil {
		o = *options
	}
	o.Prefix = cmp.Or(o.Prefix, "tidings_")
	o.MaxParked = cmp.Or(o.MaxParked, 100_000)
	errs := []error{sqlstore.CheckName("Options.Prefix", o.Prefix)}
	if o.MaxParked < 0 {
		errs = append(errs, fmt.Errorf("Options.MaxParked is %d", o.MaxParked))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("mysql: %w", err)
	}
	settings := sqlstore.Settings[*sql.Tx]{
		Dialect: dialect(o), Database: sqlstore.SQLDatabase(db, &sql.TxOptions{Isolation: sql.LevelReadCommitted}), Schema: sqlstore.ReadSchema(migrations, o.Prefix),
		KeepSent: o.KeepSent, MaxParked: o.MaxParked,
		Transaction: func(tx *sql.Tx) sqlstore.Executor { return sqlstore.SQLTransaction(tx) },
		Begin:       sqlstore.BeginSQL(db),
		Sweep:       sqlstore.SweepSQL(db),
	}
	return &Store{Store: sqlstore.New(settings), db: db, migrations: settings.Schema}, nil
}

// DB is the pool.
func (s *Store) DB() *sql.DB { return s.db }

// migrateTime is how long one instance waits for another's migration, in seconds.
const migrateTime = 120

// unlockTime is how long the server has to take the lock back; it ends with the
// connection too.
const unlockTime = 10 * time.Second

// Migrate makes the tables or brings them to what this library needs. Many
// instances may call it at once: one does the work under a lock of the server,
// the others wait up to two minutes. MySQL commits every statement of it by
// itself: one that failed in the middle is repaired by hand.
func (s *Store) Migrate(ctx context.Context) error {
	if s.Check(ctx) == nil {
		return nil
	}
	connection, err := s.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("mysql: migrate: %w", err)
	}
	defer func() { _ = connection.Close() }() // back to the pool
	lock := "tidings migrate " + s.migrations.Prefix
	var had sql.NullInt64
	if err := connection.QueryRowContext(ctx, "SELECT GET_LOCK(?, ?)", lock, migrateTime).Scan(&had); err != nil {
		return fmt.Errorf("mysql: migrate: lock: %w", err)
	}
	if had.Int64 != 1 {
		return fmt.Errorf("mysql: migrate: another instance migrates for more than %d seconds", migrateTime)
	}
	err = s.migrations.Apply(ctx, sqlstore.SQLConnection(connection))
	var released sql.NullInt64
	unlocking, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTime)
	defer cancel()
	unlock := connection.QueryRowContext(unlocking, "SELECT RELEASE_LOCK(?)", lock).Scan(&released)
	if err := errors.Join(err, unlock); err != nil {
		return fmt.Errorf("mysql: migrate: %w", err)
	}
	return s.Check(ctx)
}

// Schema returns the statements that make all tables, for teams that run them
// with a tool of their own.
func (s *Store) Schema() string { return s.SchemaSince(0) }

// SchemaSince returns the statements that bring the tables from a version of the
// schema (table tidings_schema has it) to what this library needs.
func (s *Store) SchemaSince(version int) string { return s.migrations.Text(version) }

const (
	// The counts of what was changed tell who took the key. SET is evaluated from
	// left to right, so crashes comes before what it looks at.
	// Each assignment sees what those before it have assigned.
	takeOver = `UPDATE {claims} SET crashes = CASE WHEN done = 1 THEN 0 WHEN owner = $3 OR started = 0 THEN crashes ELSE crashes + 1 END,
		alone = CASE WHEN done = 1 THEN 0 WHEN owner = $3 OR started < 2 THEN alone ELSE alone + 1 END,
		started = CASE WHEN CAST($6 AS SIGNED) > 0 THEN CAST($6 AS SIGNED) WHEN done = 0 AND owner = $3 THEN started WHEN crashes = 0 THEN 1 ELSE 0 END,
		owner = $3, done = 0, until_at = {now} + CAST($4 AS SIGNED), digest = $5, keep_until = NULL, source = $7, epoch = $8
		WHERE subscription = $1 AND claim_key = $2 AND ((done = 0 AND (owner = $3 OR until_at <= {now} OR (source = $7 AND epoch < $8 AND source <> ''))) OR (done = 1 AND keep_until <= {now}))`

	takeDone = `UPDATE {claims} SET owner = $3, done = 1, until_at = 0, digest = $4, crashes = 0, keep_until = {now} + CAST($5 AS SIGNED)
		WHERE subscription = $1 AND claim_key = $2 AND (done = 0 OR keep_until <= {now})`
)

// Server errors, https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html.
const (
	errorNoTable     = 1146
	errorLockTimeout = 1205
	errorDeadlock    = 1213
)

// lockRows is how many rows writers of aggregates lock: two of them wait for each
// other for nothing once in so many.
const lockRows = 4096

func dialect(o Options) *sqlstore.Dialect {
	return &sqlstore.Dialect{
		Name:       "mysql",
		Now:        "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))",
		Int:        "CAST(%s AS SIGNED)",
		Positional: true,
		Quote:      func(table string) string { return "`" + o.Prefix + table + "`" },
		UseIndex: func(table, index string) string {
			return " FORCE INDEX (`" + o.Prefix + table + "_" + index + "`)"
		},
		Upsert:     func(string) string { return "ON DUPLICATE KEY UPDATE" },
		New:        func(column string) string { return "VALUES(" + column + ")" },
		InsertNew:  "INSERT IGNORE INTO",
		Touch:      "ON DUPLICATE KEY UPDATE crashes = crashes + 1",
		Take:       takeOver,
		TakeDone:   takeDone,
		ForUpdate:  " FOR UPDATE",
		ForShare:   " LOCK IN SHARE MODE",
		SkipLocked: " FOR UPDATE SKIP LOCKED",
		Keys:       "JSON_TABLE(%s, '$[*]' COLUMNS (sequence bigint PATH '$')) w STRAIGHT_JOIN {outbox} o FORCE INDEX (PRIMARY) ON o.sequence = w.sequence",
		Savepoint:  true,
		Serialize: func(ctx context.Context, run sqlstore.Statements, key int64) error {
			_, err := run.Exec(ctx, "INSERT INTO {locks} (lock_key) VALUES ($1) ON DUPLICATE KEY UPDATE lock_key = $1", int64(uint64(key)%lockRows)) //nolint:gosec // a hash
			return err
		},
		Retry:    func(err error) bool { return number(err) == errorDeadlock || number(err) == errorLockTimeout },
		Session:  "SELECT CONNECTION_ID()",
		EndIdle:  endIdle,
		Answered: func(err error) bool { return number(err) != 0 },
		NoTable:  func(err error) bool { return number(err) == errorNoTable },
		NoLog:    true,
		Inspect:  inspect,
		Grants: func(tables []string, user string) string {
			var text strings.Builder
			for _, table := range tables {
				fmt.Fprintf(&text, "GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO '%s'@'%%';\n", table, user)
			}
			return text.String()
		},
	}
}

// Connections that keep another waiting, on MariaDB and on MySQL. They show to users
// with the privilege PROCESS; for others a transaction ends at the server's own limit.
// https://mariadb.com/kb/en/information-schema-innodb_lock_waits-table/,
// https://dev.mysql.com/doc/refman/8.0/en/performance-schema-data-lock-waits-table.html
const (
	idleBlockers = ` JOIN information_schema.processlist p ON p.id = b.trx_mysql_thread_id
		WHERE r.trx_mysql_thread_id = $1 AND p.command = 'Sleep' AND p.time >= $2 AND p.user = SUBSTRING_INDEX(CURRENT_USER(), '@', 1)`
	blockersOfMariaDB = `SELECT b.trx_mysql_thread_id FROM information_schema.innodb_lock_waits w
		JOIN information_schema.innodb_trx r ON r.trx_id = w.requesting_trx_id JOIN information_schema.innodb_trx b ON b.trx_id = w.blocking_trx_id` + idleBlockers
	blockersOfMySQL = `SELECT b.trx_mysql_thread_id FROM performance_schema.data_lock_waits w
		JOIN information_schema.innodb_trx r ON r.trx_id = w.requesting_engine_transaction_id
		JOIN information_schema.innodb_trx b ON b.trx_id = w.blocking_engine_transaction_id` + idleBlockers
)

func endIdle(ctx context.Context, run sqlstore.Statements, session int64) error {
	var blockers []int64
	var err error
	for _, query := range []string{blockersOfMariaDB, blockersOfMySQL} {
		err = run.Each(ctx, query, []any{session, int64(sqlstore.IdleGrace / time.Second)}, func(rows sqlstore.Rows) error {
			var id int64
			err := rows.Scan(&id)
			blockers = append(blockers, id)
			return err
		})
		if err == nil {
			break
		}
	}
	for _, id := range blockers {
		if _, err := run.Exec(ctx, fmt.Sprint("KILL ", id)); err != nil {
			return err
		}
	}
	return err
}

// inspect finds settings under which a commit can be lost
// (https://dev.mysql.com/doc/refman/8.0/en/innodb-parameters.html).
func inspect(ctx context.Context, run sqlstore.Statements) (findings []driver.Finding, err error) {
	var flush int
	if _, err := run.One(ctx, "SELECT @@GLOBAL.innodb_flush_log_at_trx_commit", nil, &flush); err != nil {
		return nil, err
	}
	if flush != 1 {
		findings = append(findings, driver.Finding{
			Severity: driver.Weak, Check: "mysql-flush", Subject: "mysql", What: fmt.Sprintf("innodb_flush_log_at_trx_commit is %d", flush),
			Why: "a crash of the machine loses the last second of commits, events and effects alike", Fix: "set it to 1",
		})
	}
	return findings, nil
}

// number is the code of a server's error, or 0 for what is no answer of it.
func number(err error) uint16 {
	if answer, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return answer.Number
	}
	return 0
}
