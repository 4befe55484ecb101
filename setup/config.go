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
// variable; all are optional but where said. It holds a password, which String,
// %v, logs and JSON do not show.
type Config struct {
	// Driver is in-memory (the default) or kafka.
	Driver string `env:"EVENT_DRIVER"`
	// Environment is production, staging, development or test. Without it the
	// in-memory driver starts with a warning.
	Environment Environment `env:"EVENT_ENV"`
	// Namespace goes before the names of topics and groups, so that several
	// installations share a broker.
	Namespace string `env:"EVENT_NAMESPACE"`

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
	KafkaSASLPassword string `env:"KAFKA_SASL_PASSWORD" json:"-"`
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

// Read fills a Config from a function like [os.Getenv].
func Read(getenv func(string) string) Config {
	get := func(name string) string { return strings.TrimSpace(getenv(name)) }
	return Config{
		Driver:              get("EVENT_DRIVER"),
		Environment:         Environment(get("EVENT_ENV")),
		Namespace:           get("EVENT_NAMESPACE"),
		KafkaBrokers:        get("KAFKA_BROKERS"),
		KafkaTLSCA:          get("KAFKA_TLS_CA"),
		KafkaTLSCertificate: get("KAFKA_TLS_CERT"),
		KafkaTLSKey:         get("KAFKA_TLS_KEY"),
		KafkaSASLMechanism:  get("KAFKA_SASL_MECHANISM"),
		KafkaSASLUser:       get("KAFKA_SASL_USER"),
		KafkaSASLPassword:   getenv("KAFKA_SASL_PASSWORD"),
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
