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
)

// Options is what the environment does not say. Nil means the defaults.
type Options struct {
	// Bus configures the bus, as [tidings.New] takes it.
	Bus tidings.Options
	// Memory and Kafka change what a driver is made with, after the
	// environment. They may be nil.
	Memory func(*memory.Options)
	Kafka  func(*kafka.Options)
	// CheckTimeout bounds how long the broker may take to answer at start.
	// Defaults to 10 seconds; negative means that it is not asked before Run.
	CheckTimeout time.Duration
}

const inMemory = "in-memory"

// drivers has one entry per driver. An entry makes the driver, or returns every
// complaint about its variables.
func drivers() map[string]func(Config, *Options) (driver.Driver, []error) {
	return map[string]func(Config, *Options) (driver.Driver, []error){
		inMemory: newMemory,
		"kafka":  newKafka,
	}
}

func names() []string { return slices.Sorted(maps.Keys(drivers())) }

// variable names the variable that says where a driver's broker is.
var variable = map[string]string{"kafka": "KAFKA_BROKERS"}

// FromEnv makes a bus with the driver that EVENT_DRIVER names, configured by the
// variables that [Config] lists, and asks its broker whether it answers. The
// error has every complaint at once, each with its variable.
func FromEnv(ctx context.Context, options *Options) (*tidings.Bus, error) {
	return New(ctx, FromProcess(), options)
}

// New is [FromEnv] with a Config from elsewhere.
func New(ctx context.Context, config Config, options *Options) (*tidings.Bus, error) {
	if options == nil {
		options = &Options{}
	}
	errs := config.check()
	var d driver.Driver
	if build, ok := drivers()[config.driver()]; ok {
		made, complaints := build(config, options)
		d = made
		errs = append(errs, complaints...)
	}
	if len(errs) > 0 {
		return nil, complaint(errs)
	}
	if err := ask(ctx, d, config, options); err != nil {
		return nil, errors.Join(err, d.Close(context.WithoutCancel(ctx)))
	}
	return tidings.New(d, &options.Bus), nil
}

func complaint(errs []error) error {
	if len(errs) == 1 {
		return fmt.Errorf("setup: %w", errs[0])
	}
	return fmt.Errorf("setup: %d complaints:\n%w", len(errs), errors.Join(errs...))
}

// ask finds out at start, and not at the first event, that a broker is not
// there.
func ask(ctx context.Context, d driver.Driver, config Config, options *Options) error {
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
		return fmt.Errorf("setup: EVENT_DRIVER=%s, %s=%s: the broker was asked and did not answer as it should: %w",
			config.driver(), variable[config.driver()], config.KafkaBrokers, err)
	}
	return nil
}

func newMemory(config Config, options *Options) (driver.Driver, []error) {
	switch config.Environment {
	case Production:
		return nil, []error{errors.New("EVENT_ENV is production and EVENT_DRIVER is in-memory, by name or by default: events would be lost with the process and reach no other instance; " +
			"set EVENT_DRIVER to one of " + strings.Join(slices.DeleteFunc(names(), func(name string) bool { return name == inMemory }), ", "))}
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

func newKafka(config Config, options *Options) (driver.Driver, []error) {
	var errs []error
	o := kafka.Options{
		Namespace: config.Namespace,
		SASL: kafka.SASL{
			Mechanism: kafka.Mechanism(config.KafkaSASLMechanism),
			User:      config.KafkaSASLUser,
			Password:  config.KafkaSASLPassword,
		},
		Logger: options.Bus.Logger,
	}
	for broker := range strings.SplitSeq(config.KafkaBrokers, ",") {
		if broker = strings.TrimSpace(broker); broker != "" {
			o.Brokers = append(o.Brokers, broker)
		}
	}
	if len(o.Brokers) == 0 {
		errs = append(errs, fmt.Errorf("EVENT_DRIVER is kafka and KAFKA_BROKERS %w: name at least one, for example localhost:9092", errMissing))
	}
	if config.KafkaSASLMechanism != "" {
		for _, needed := range []struct{ name, value string }{{"KAFKA_SASL_USER", config.KafkaSASLUser}, {"KAFKA_SASL_PASSWORD", config.KafkaSASLPassword}} {
			if needed.value == "" {
				errs = append(errs, fmt.Errorf("KAFKA_SASL_MECHANISM is set and %s %w", needed.name, errMissing))
			}
		}
	}
	encryption, complaints := encryption(config)
	errs = append(errs, complaints...)
	o.TLS = encryption
	if options.Kafka != nil {
		options.Kafka(&o)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	d, err := kafka.New(o)
	if err != nil {
		return nil, []error{fmt.Errorf("EVENT_DRIVER=kafka (KAFKA_BROKERS, KAFKA_SASL_…, KAFKA_TLS_…, EVENT_NAMESPACE): %w", err)}
	}
	return d, nil
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
