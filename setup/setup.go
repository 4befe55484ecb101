package setup

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/kafka"
	"github.com/tidings-go/tidings/driver/memory"
	"github.com/tidings-go/tidings/driver/redis"
	"github.com/tidings-go/tidings/driver/redis/streams"
	"github.com/tidings-go/tidings/driver/sqldb"
	"github.com/tidings-go/tidings/driver/sqs"
)

// Options is what the environment does not say. Nil means the defaults.
type Options struct {
	// Bus configures the bus, as [tidings.New] takes it.
	Bus tidings.Options
	// These change what a driver is made with, after the environment. They may be
	// nil.
	Memory       func(*memory.Options)
	Kafka        func(*kafka.Options)
	Redis        func(*redis.Options)
	RedisStreams func(*streams.Options)
	SQS          func(*sqs.Options)
	SQLDB        func(*sqldb.Options) // drivers postgres and sqlite
	// Database is the application's store, for the drivers postgres and sqlite and
	// for EVENT_CLAIMS=database, in place of one that setup opens by DATABASE_URL
	// or SQLITE_PATH. An outbox and an inbox need it: they are made of it. It is
	// migrated at start unless EVENT_MIGRATE is never.
	Database Database
	// CheckTimeout bounds how long the broker may take to answer at start.
	// Defaults to 10 seconds; negative means that it is not asked before Run.
	CheckTimeout time.Duration
}

const inMemory = "in-memory"

// entry is all that setup knows of one driver.
type entry struct {
	// open makes the driver, or returns every complaint about its variables.
	open func(Config, *Options, Database) (driver.Driver, []error)
	// variable names the one that says where the broker is, and address is its
	// value. Without a broker they are not set.
	variable string
	address  func(Config) string
}

// drivers is the table: a further driver is one entry, and its variables in
// Config.
func drivers() map[string]entry {
	return map[string]entry{
		inMemory:        {open: openMemory},
		"kafka":         {open: openKafka, variable: "KAFKA_BROKERS", address: func(c Config) string { return c.KafkaBrokers }},
		"redis":         {open: openRedis, variable: "REDIS_URL", address: redisAddress},
		"redis-streams": {open: openStreams, variable: "REDIS_URL", address: redisAddress},
		nameOfPostgres:  {open: openLog(nameOfPostgres), variable: "DATABASE_URL", address: databaseAddress},
		nameOfSQLite:    {open: openLog(nameOfSQLite), variable: "SQLITE_PATH", address: databaseAddress},
		"sqs":           {open: openSQS, variable: "AWS_ENDPOINT_URL", address: func(c Config) string { return c.AWSEndpointURL }},
	}
}

// names lists the drivers, but for one.
func names(but string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(drivers())), func(name string) bool { return name == but })
}

// FromEnv makes a bus with the driver that EVENT_DRIVER names, configured by the
// variables that [Config] lists, and asks its broker whether it answers. The
// error has every complaint at once, each with its variable; then it wraps
// [ErrConfiguration].
func FromEnv(ctx context.Context, options *Options) (*tidings.Bus, error) {
	return New(ctx, FromProcess(), options)
}

// New is [FromEnv] with a Config from elsewhere.
func New(ctx context.Context, config Config, options *Options) (*tidings.Bus, error) {
	if options == nil {
		options = &Options{}
	}
	database, complaints := openDatabase(config, options)
	return assemble(ctx, config, options, database, complaints)
}

// assemble makes the bus over a database that is open, or could not be opened for
// these complaints. It owns the database.
func assemble(ctx context.Context, config Config, options *Options, database opened, complaints []error) (*tidings.Bus, error) {
	errs := append(config.check(), complaints...)
	bus := options.Bus
	var d driver.Driver
	chosen, known := drivers()[config.driver()]
	if known {
		made, complaints := chosen.open(config, options, database.database)
		d = made
		errs = append(errs, complaints...)
	}
	claims, complaints := openClaims(config, &bus)
	errs = append(errs, complaints...)
	if database.database != nil {
		errs = append(errs, database.use(config, &bus)...)
		if _, collects := d.(driver.DeadLetterReader); config.DeadLetters == collected && d != nil && !collects {
			errs = append(errs, fmt.Errorf("EVENT_DEAD_LETTERS is collect, and driver %s has no place to collect from: say database", config.driver()))
		}
	}
	var err error
	if len(errs) > 0 {
		err = complaint(errs)
	} else if database.database != nil {
		err = database.migrate(ctx, config)
	}
	if err == nil {
		err = ask(ctx, d, chosen, config, options)
	}
	if err != nil {
		if d != nil {
			err = errors.Join(err, d.Close(context.WithoutCancel(ctx)))
		}
		if claims != nil {
			err = errors.Join(err, claims.Close(context.WithoutCancel(ctx)))
		}
		if database.close != nil {
			err = errors.Join(err, database.close())
		}
		return nil, err
	}
	if database.close != nil {
		bus.Closers = append(slices.Clone(bus.Closers), database.close)
	}
	made := tidings.New(d, &bus)
	if config.DeadLetters == collected {
		if err := collect(d, made, &bus); err != nil {
			return nil, errors.Join(err, made.Close(context.WithoutCancel(ctx)))
		}
	}
	return made, nil
}

// ErrConfiguration is wrapped by errors about variables, of which nothing was
// tried; an error without it is about a broker or a database that was asked.
var ErrConfiguration = errors.New("setup: configuration")

// complaints is an error that is ErrConfiguration, and does not repeat its words.
type complaints struct{ error }

func (c complaints) Unwrap() []error { return []error{ErrConfiguration, c.error} }

func complaint(errs []error) error {
	if len(errs) == 1 {
		return complaints{fmt.Errorf("setup: %w", errs[0])}
	}
	return complaints{fmt.Errorf("setup: %d complaints:\n%w", len(errs), errors.Join(errs...))}
}

// ask finds out at start, and not at the first event, that a broker is not
// there.
func ask(ctx context.Context, d driver.Driver, chosen entry, config Config, options *Options) error {
	checker, ok := d.(driver.Checker)
	if !ok || options.CheckTimeout < 0 {
		return nil
	}
	timeout := options.CheckTimeout
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := checker.Check(ctx); err != nil {
		where := ""
		if chosen.address != nil {
			where = fmt.Sprintf(", %s=%s", chosen.variable, chosen.address(config))
		}
		return fmt.Errorf("setup: EVENT_DRIVER=%s%s: the broker was asked and did not answer as it should: %w", config.driver(), where, err)
	}
	return nil
}

func openMemory(config Config, options *Options, _ Database) (driver.Driver, []error) {
	switch config.Environment {
	case Production:
		return nil, []error{errors.New("EVENT_ENV is production and EVENT_DRIVER is in-memory, by name or by default: events would be lost with the process and reach no other instance; " +
			"set EVENT_DRIVER to one of " + strings.Join(names(inMemory), ", "))}
	case "":
		logger := options.Bus.Logger
		if logger == nil {
			logger = slog.Default()
		}
		if config.Driver == "" {
			logger.Warn("EVENT_DRIVER and EVENT_ENV are not set: events stay in this process and are lost with it; say EVENT_ENV=development, or choose a driver")
		}
	}
	var o memory.Options
	if options.Memory != nil {
		options.Memory(&o)
	}
	return memory.New(&o), nil
}

func openKafka(config Config, options *Options, _ Database) (driver.Driver, []error) {
	brokers, errs := addresses("KAFKA_BROKERS", config.KafkaBrokers)
	o := kafka.Options{
		Brokers:   brokers,
		Namespace: config.Namespace,
		SASL: kafka.SASL{
			Mechanism: kafka.Mechanism(config.KafkaSASLMechanism),
			User:      config.KafkaSASLUser,
			Password:  config.KafkaSASLPassword,
		},
		Logger: options.Bus.Logger,
	}
	encryption, complaints := encryption(config)
	o.TLS = encryption
	complaints = append(complaints, saslCredentials(config)...)
	if options.Kafka != nil {
		options.Kafka(&o)
	}
	if len(o.Brokers) == 0 && len(errs) == 0 {
		errs = append(errs, fmt.Errorf("EVENT_DRIVER is kafka and KAFKA_BROKERS %w: name at least one, for example localhost:9092", errMissing))
	}
	if len(errs) > 0 { // the driver is asked for its own complaints all the same
		o.Brokers = []string{"localhost:9092"}
	}
	if len(complaints) > 0 {
		o.SASL, o.TLS = kafka.SASL{}, nil
	}
	errs = append(errs, complaints...)
	d, err := kafka.New(o)
	if err != nil {
		return nil, append(errs, fmt.Errorf("EVENT_DRIVER=kafka (KAFKA_BROKERS, KAFKA_SASL_…, KAFKA_TLS_…, EVENT_NAMESPACE): %w", err))
	}
	return d, errs // New closes it where there are complaints
}

// addresses splits a list. What has a scheme or a user is not repeated in the
// complaint: a password may be in it.
func addresses(variable, list string) (found []string, errs []error) {
	n := 0
	for address := range strings.SplitSeq(list, ",") {
		if address = strings.TrimSpace(address); address == "" {
			continue
		}
		if n++; strings.ContainsAny(address, "@/") {
			errs = append(errs, fmt.Errorf("%s: address %d has a scheme, a user or a path: write host:port only; a user belongs in a variable of its own", variable, n))
			continue
		}
		found = append(found, address)
	}
	return found, errs
}

// saslCredentials says which variables of SASL are missing.
func saslCredentials(config Config) (errs []error) {
	given := []struct{ name, value string }{
		{"KAFKA_SASL_MECHANISM", config.KafkaSASLMechanism}, {"KAFKA_SASL_USER", config.KafkaSASLUser}, {"KAFKA_SASL_PASSWORD", config.KafkaSASLPassword},
	}
	var set []string
	for _, variable := range given {
		if variable.value != "" {
			set = append(set, variable.name)
		}
	}
	for _, variable := range given {
		if variable.value == "" && len(set) > 0 {
			errs = append(errs, fmt.Errorf("%s is set and %s %w: SASL needs all three", strings.Join(set, " and "), variable.name, errMissing))
		}
	}
	return errs
}

// encryption is nil without KAFKA_TLS_CA.
func encryption(config Config) (*tls.Config, []error) {
	var errs []error
	if config.KafkaTLSCA == "" {
		if config.KafkaTLSCertificate != "" || config.KafkaTLSKey != "" {
			errs = append(errs, fmt.Errorf("KAFKA_TLS_CERT or KAFKA_TLS_KEY is set and KAFKA_TLS_CA %w: without it there is no TLS (\"system\" means the system's authorities)", errMissing))
		}
		return nil, errs
	}
	o := &tls.Config{MinVersion: tls.VersionTLS12}
	if config.KafkaTLSCA != "system" {
		pem, err := os.ReadFile(config.KafkaTLSCA)
		if err != nil {
			errs = append(errs, fmt.Errorf("KAFKA_TLS_CA: %w", err))
		} else if o.RootCAs = x509.NewCertPool(); !o.RootCAs.AppendCertsFromPEM(pem) {
			errs = append(errs, fmt.Errorf("KAFKA_TLS_CA: %s has no certificate in PEM form", config.KafkaTLSCA))
		}
	}
	if config.KafkaTLSCertificate != "" || config.KafkaTLSKey != "" {
		pair, err := tls.LoadX509KeyPair(config.KafkaTLSCertificate, config.KafkaTLSKey)
		if err != nil {
			errs = append(errs, fmt.Errorf("KAFKA_TLS_CERT and KAFKA_TLS_KEY: %w", err))
		}
		o.Certificates = []tls.Certificate{pair}
	}
	return o, errs
}
