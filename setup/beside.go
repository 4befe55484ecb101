package setup

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	mysqldriver "github.com/go-sql-driver/mysql"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/store/mysql"
)

// DatabaseOptions is what [OpenDatabase] is not told by the environment. Nil means
// the defaults.
type DatabaseOptions struct {
	// KeepSent is as in the options of the stores: rows of the outbox that were
	// sent are kept in a table of their own.
	KeepSent bool
}

// ErrNoDatabase says that neither DATABASE_URL nor SQLITE_PATH is set.
var ErrNoDatabase = errors.New("setup: neither DATABASE_URL nor SQLITE_PATH is set: say postgres://user:password@host:5432/database, mysql://user:password@host:3306/database, or the path of a SQLite file")

// OpenDatabase opens the store that the environment names, for a program that
// works beside the application, such as the command line: on the drivers postgres
// and sqlite the driver's, else the one of DATABASE_URL, else that of SQLITE_PATH.
// It asks the database nothing and makes no tables. Whoever called it closes the
// closer. The error is [ErrNoDatabase] where there is none, and never repeats a
// password.
func OpenDatabase(config Config, options *DatabaseOptions) (Database, io.Closer, error) {
	if options == nil {
		options = &DatabaseOptions{}
	}
	kind := kindOfDatabase(config)
	if kind == "" {
		return nil, nil, ErrNoDatabase
	}
	o, errs := openKind(kind, config, options.KeepSent)
	if len(errs) > 0 {
		return nil, nil, complaint(errs)
	}
	return o.database, o.close, nil
}

// OpenDriver makes the driver that the environment names, without a bus, for a
// program that works beside the application. It asks the broker nothing. The
// drivers postgres and sqlite read database; the others need none. The error has
// every complaint, each with its variable; whoever called it closes the driver.
func OpenDriver(ctx context.Context, config Config, database Database, options *Options) (driver.Driver, error) {
	if options == nil {
		options = &Options{}
	}
	errs := config.check()
	chosen, known := drivers()[config.driver()]
	if !known {
		return nil, complaint(errs)
	}
	if own := config.driver() == nameOfPostgres || config.driver() == nameOfSQLite; own && database == nil {
		return nil, complaint(append(errs, fmt.Errorf("EVENT_DRIVER is %s, and there is no database", config.driver())))
	}
	d, complaints := chosen.open(config, options, database)
	if errs = append(errs, complaints...); len(errs) > 0 {
		err := complaint(errs)
		if d != nil {
			err = errors.Join(err, d.Close(context.WithoutCancel(ctx)))
		}
		return nil, err
	}
	return d, nil
}

// DriverName is the driver that the environment names, with the default.
func (c Config) DriverName() string { return c.driver() }

// BrokerAddress is where the broker of the driver is, without users and passwords;
// "" for a driver without one.
func (c Config) BrokerAddress() string {
	if chosen, known := drivers()[c.driver()]; known && chosen.address != nil {
		return chosen.address(c)
	}
	return ""
}

// DatabaseAddress is where the database is that [OpenDatabase] opens, without user
// and password.
func (c Config) DatabaseAddress() string {
	if c.DatabaseURL == "" && c.driver() != nameOfPostgres {
		return c.SQLitePath
	}
	return databaseAddress(c)
}

const nameOfMySQL = "mysql"

// kindOfURL is the kind of database that DATABASE_URL is about.
func kindOfURL(address string) string {
	scheme, _, _ := strings.Cut(address, ":")
	if scheme == "mysql" || scheme == "mariadb" {
		return nameOfMySQL
	}
	return nameOfPostgres
}

var errMySQLURL = errors.New("DATABASE_URL is no address of MySQL such as mysql://user:password@host:3306/database")

// openMySQL reads a URL as the other databases have it; the client's own form has
// no scheme.
func openMySQL(config Config, keepSent bool) (*sql.DB, *mysql.Store, []error) {
	u, err := url.Parse(config.DatabaseURL)
	if err != nil || u.Hostname() == "" {
		return nil, nil, []error{errMySQLURL}
	}
	if beyondHost(config.DatabaseURL) {
		return nil, nil, []error{errors.New("DATABASE_URL " + errEncode)}
	}
	o := mysqldriver.NewConfig()
	o.Net, o.Addr = "tcp", u.Hostname()+":"+cmp.Or(u.Port(), "3306")
	o.DBName = strings.TrimPrefix(u.Path, "/")
	o.User = u.User.Username()
	o.Passwd, _ = u.User.Password()
	o.Timeout, o.ReadTimeout, o.WriteTimeout, o.Params = dialTime, mysqlAnswer, mysqlAnswer, mysqlParameters()
	dial := dialer()
	o.DialFunc = dial.DialContext
	for name, values := range u.Query() {
		if name != "tls" {
			return nil, nil, []error{fmt.Errorf("DATABASE_URL: parameter %q is not known: mysql:// takes tls only (true, skip-verify or preferred)", name)}
		}
		o.TLSConfig = values[0]
	}
	connector, err := mysqldriver.NewConnector(o)
	if err != nil { // the client's error may repeat what it was given
		return nil, nil, []error{errMySQLURL}
	}
	db := sql.OpenDB(connector)
	db.SetConnMaxIdleTime(mysqlIdle)
	store, err := mysql.New(db, &mysql.Options{Prefix: prefix(config), KeepSent: keepSent})
	if err != nil {
		return nil, nil, []error{fmt.Errorf("DATABASE_URL, EVENT_NAMESPACE: %w", errors.Join(err, db.Close()))}
	}
	return db, store, nil
}

// OpenClaims opens the claims that EVENT_CLAIMS=redis names, for a program that
// works beside the application; nil where it names none there. Whoever called it
// closes the closer.
func OpenClaims(config Config) (driver.Claims, io.Closer, error) {
	if config.Claims != "redis" {
		return nil, nil, nil
	}
	claims, errs := openClaims(config, &tidings.Options{})
	if len(errs) > 0 {
		return nil, nil, complaint(errs)
	}
	return claims, closer(func() error { return claims.Close(context.Background()) }), nil
}
