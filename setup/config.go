package setup

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
)

// Environment says where the program runs.
type Environment string

// The environments that EVENT_ENV knows.
const (
	Production  Environment = "production" // refuses the in-memory driver
	Staging     Environment = "staging"
	Development Environment = "development"
	Test        Environment = "test"
)

// Config is every variable that setup reads. Each field's tag names its
// variable; all are optional but where said. It holds passwords, which String,
// %v, logs and JSON do not show.
type Config struct {
	// Driver is in-memory (the default), kafka, postgres, redis, redis-streams,
	// sqlite or sqs.
	Driver string `env:"EVENT_DRIVER"`
	// Environment is production, staging, development or test. Without it the
	// in-memory driver starts with a warning.
	Environment Environment `env:"EVENT_ENV"`
	// Namespace goes before the names of topics and groups, so that several
	// installations share a broker.
	Namespace string `env:"EVENT_NAMESPACE"`
	// Claims is where subscriptions remember what they have handled: redis (at
	// RedisURL) or database (DatabaseURL, SQLitePath, Options.Database) for all
	// instances together. Empty means the database on the drivers postgres and
	// sqlite, and elsewhere each process by itself.
	Claims string `env:"EVENT_CLAIMS"`
	// ClaimsKeep is how long a repeatable event is remembered there, a duration
	// such as 168h, which is the default.
	ClaimsKeep string `env:"EVENT_CLAIMS_KEEP"`

	// DeadLetters is database to keep dead letters there, where they can be
	// listed and retried, instead of in the broker's own place. The drivers
	// postgres and sqlite do that anyway. With collect (kafka and sqs) they go to
	// the broker's place, and are brought from there into the database.
	DeadLetters string `env:"EVENT_DEAD_LETTERS"`

	// DatabaseURL is postgres://user:password@host:port/database. The driver
	// postgres needs it, unless the application passes its store. For claims, dead
	// letters, an outbox and the command line it may be
	// mysql://user:password@host:port/database too.
	DatabaseURL string `env:"DATABASE_URL"`
	// SQLitePath is a file, which is made when it is missing. The driver sqlite
	// needs it, unless the application passes its store.
	SQLitePath string `env:"SQLITE_PATH"`
	// Migrate is auto (the default) to make and change the tables at start, or
	// never where another tool does.
	Migrate string `env:"EVENT_MIGRATE"`

	// KafkaBrokers are addresses "host:port", separated by commas, with no
	// scheme and no user. Kafka needs it.
	KafkaBrokers string `env:"KAFKA_BROKERS"`
	// KafkaTLSCA is a PEM file with the authority that signed the brokers'
	// certificates; it turns TLS on. The word "system" means the system's
	// authorities.
	KafkaTLSCA string `env:"KAFKA_TLS_CA"`
	// KafkaTLSCertificate and KafkaTLSKey are PEM files with this program's
	// certificate and its key, for brokers that ask for one.
	KafkaTLSCertificate string `env:"KAFKA_TLS_CERT"`
	KafkaTLSKey         string `env:"KAFKA_TLS_KEY"`
	// KafkaSASLMechanism is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; it turns
	// SASL on.
	KafkaSASLMechanism string `env:"KAFKA_SASL_MECHANISM"`
	// KafkaSASLUser and KafkaSASLPassword are for SASL.
	KafkaSASLUser     string `env:"KAFKA_SASL_USER"`
	KafkaSASLPassword string `env:"KAFKA_SASL_PASSWORD"`

	// RedisURL is redis://[user:password@]host:port[/number], or rediss:// with
	// TLS. The drivers redis and redis-streams need it, and Claims. On a cluster
	// further addresses are added as ?addr=host:port&addr=host:port.
	RedisURL string `env:"REDIS_URL"`

	// AWSRegion is the region of the queues, for example eu-central-1. Without
	// it the AWS configuration of the machine decides.
	AWSRegion string `env:"AWS_REGION"`
	// AWSEndpointURL is where SQS and SNS are, when not at AWS. On a loopback
	// address region and credentials may be missing.
	AWSEndpointURL string `env:"AWS_ENDPOINT_URL"`
	// SQSFIFO is true (the default) for FIFO queues, which keep the order of each
	// aggregate, or false for standard ones.
	SQSFIFO string `env:"SQS_FIFO"`
	// SQSTopics is true for an SNS topic per channel and a queue per
	// subscription, or false (the default) for a queue per channel.
	SQSTopics string `env:"SQS_TOPICS"`
	// SQSQueueURLs sends event types to queues of your own: pairs
	// "event.type=url", separated by commas; the type * stands for all others.
	SQSQueueURLs string `env:"SQS_QUEUE_URLS"`
	// SQSVisibilityTimeout is how long a message stays with a process that died,
	// a duration in whole seconds such as 30s, which is the default.
	SQSVisibilityTimeout string `env:"SQS_VISIBILITY_TIMEOUT"`
	// SQSProvision is missing (the default) to make queues and topics that are
	// missing, or never.
	SQSProvision string `env:"SQS_PROVISION"`
}

// String names driver, environment and namespace, and no secret.
func (c Config) String() string {
	return fmt.Sprintf("setup.Config{EVENT_DRIVER=%q EVENT_ENV=%q EVENT_NAMESPACE=%q}", c.Driver, c.Environment, c.Namespace)
}

// GoString is String: %#v shows no secret either.
func (c Config) GoString() string { return c.String() }

// LogValue implements [slog.LogValuer]: as String, also for a handler that writes
// JSON.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(slog.String("EVENT_DRIVER", c.Driver), slog.String("EVENT_ENV", string(c.Environment)), slog.String("EVENT_NAMESPACE", c.Namespace))
}

// MarshalText writes String, in JSON too: a Config can be read from JSON, and not be
// written so that it can be read back.
func (c Config) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Read fills a Config from a function like [os.Getenv].
func Read(getenv func(string) string) Config {
	get := func(name string) string { return strings.TrimSpace(getenv(name)) }
	return Config{
		Driver:              get("EVENT_DRIVER"),
		Environment:         Environment(get("EVENT_ENV")),
		Namespace:           get("EVENT_NAMESPACE"),
		Claims:              get("EVENT_CLAIMS"),
		ClaimsKeep:          get("EVENT_CLAIMS_KEEP"),
		DeadLetters:         get("EVENT_DEAD_LETTERS"),
		DatabaseURL:         getenv("DATABASE_URL"),
		SQLitePath:          get("SQLITE_PATH"),
		Migrate:             get("EVENT_MIGRATE"),
		KafkaBrokers:        get("KAFKA_BROKERS"),
		KafkaTLSCA:          get("KAFKA_TLS_CA"),
		KafkaTLSCertificate: get("KAFKA_TLS_CERT"),
		KafkaTLSKey:         get("KAFKA_TLS_KEY"),
		KafkaSASLMechanism:  get("KAFKA_SASL_MECHANISM"),
		KafkaSASLUser:       get("KAFKA_SASL_USER"),
		KafkaSASLPassword:   getenv("KAFKA_SASL_PASSWORD"),

		RedisURL:             get("REDIS_URL"),
		AWSRegion:            get("AWS_REGION"),
		AWSEndpointURL:       get("AWS_ENDPOINT_URL"),
		SQSFIFO:              get("SQS_FIFO"),
		SQSTopics:            get("SQS_TOPICS"),
		SQSQueueURLs:         get("SQS_QUEUE_URLS"),
		SQSVisibilityTimeout: get("SQS_VISIBILITY_TIMEOUT"),
		SQSProvision:         get("SQS_PROVISION"),
	}
}

// FromProcess fills a Config from this process's environment.
func FromProcess() Config { return Read(os.Getenv) }

// check returns every complaint about what all drivers share.
func (c *Config) check() (errs []error) {
	known := []Environment{"", Production, Staging, Development, Test}
	if !slices.Contains(known, c.Environment) {
		errs = append(errs, fmt.Errorf("EVENT_ENV is %q: it is production, staging, development or test", c.Environment))
	}
	if _, ok := drivers()[c.driver()]; !ok {
		errs = append(errs, fmt.Errorf("EVENT_DRIVER is %q: it is one of %s", c.Driver, strings.Join(names(""), ", ")))
	}
	return errs
}

// driver is the name of the driver, with the default.
func (c *Config) driver() string {
	if c.Driver == "" {
		return inMemory
	}
	return c.Driver
}

var errMissing = errors.New("is not set")
