package kafka

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"github.com/tidings-go/tidings/internal/window"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Bounds and defaults that the documentation of [Options] names.
const (
	defaultMaxBytes        = 64 << 20
	defaultMaxMessageBytes = 1_000_000
	defaultPartitions      = 8
	defaultSessionTimeout  = 45 * time.Second
	defaultRebalance       = 60 * time.Second
	defaultCommitInterval  = 20 * time.Millisecond
	// batchRoom is what a record batch and many headers cost beyond a message.
	batchRoom = 32 << 10
	// brokerMessageBytes is the broker's own default of max.message.bytes.
	brokerMessageBytes = 1_048_588
)

// Provision says whether the driver creates topics that do not exist.
type Provision int

const (
	ProvisionLoopback Provision = iota // only when every broker is on this machine's loopback interface
	ProvisionAlways                    // on any broker
	ProvisionNever                     // a missing topic is an error
)

// Mechanism is a SASL mechanism.
type Mechanism string

// The mechanisms that the driver speaks.
const (
	Plain       Mechanism = "PLAIN"
	ScramSHA256 Mechanism = "SCRAM-SHA-256"
	ScramSHA512 Mechanism = "SCRAM-SHA-512"
)

// SASL is how the driver proves who it is. The zero value means not at all.
type SASL struct {
	Mechanism Mechanism
	User      string
	// Password never appears in an error, in a log or in String.
	Password string
}

// String names mechanism and user, and not the password.
func (s SASL) String() string {
	if s == (SASL{}) {
		return "none"
	}
	return fmt.Sprintf("%s user %q", s.Mechanism, s.User)
}

// GoString is String: %#v shows no password either.
func (s SASL) GoString() string { return "kafka.SASL{" + s.String() + "}" }

// LogValue implements [slog.LogValuer] without the password.
func (s SASL) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText writes String, in JSON too.
func (s SASL) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Options configures a [Driver]. Only Brokers is required.
type Options struct {
	// Brokers are addresses to start from, "host:port". The others of the
	// cluster are found through them.
	Brokers []string

	// Namespace prefixes topics and groups: "shop" makes "shop.events.…" and
	// "shop.billing.…". Letters, digits, '.', '_' and '-'. Empty for none.
	Namespace string

	// TLS encrypts connections when it is not nil. An empty ServerName is taken
	// from the address.
	TLS *tls.Config

	// SASL authenticates. PLAIN sends the password as it is and is refused
	// without TLS, except to brokers on the loopback interface.
	SASL SASL

	// Provision says whether missing topics are created. By default that
	// happens on loopback brokers only.
	Provision Provision

	// Partitions is how many a created topic gets, 8 by default. A topic that
	// exists is never changed. Dead letter topics get one.
	Partitions int

	// ReplicationFactor of created topics. The default is 3, with
	// min.insync.replicas 2, and the broker's own default on loopback brokers.
	ReplicationFactor int

	// Retention of created topics; 0 leaves the broker's default. Dead letter
	// topics keep everything. When it is set it is also what
	// Features.RedeliveryHorizon says, so it must be true of topics that others
	// created too.
	Retention time.Duration

	// SessionTimeout is how long the broker waits for a sign of life before it
	// gives the partitions of a consumer away. 45 s by default.
	SessionTimeout time.Duration

	// RebalanceTimeout is how long a consumer may take to give partitions up,
	// 60 s by default.
	RebalanceTimeout time.Duration

	// RevokeMargin is the part of RebalanceTimeout that is kept for the last
	// commit: handlers have the rest to finish in. A tenth by default, at most
	// 5 s.
	RevokeMargin time.Duration

	// MaxEvents bounds, per partition, the offsets from the oldest unfinished
	// event on; it is the default and the upper bound of
	// Subscription.MaxEvents. 20 000 by default, which is also the most: the
	// finished ones among them have to fit the metadata of a commit.
	MaxEvents int

	// MaxBytes bounds, per partition, the size of unfinished events (key,
	// headers, body). 64 MiB by default. One event may exceed it.
	MaxBytes int

	// MaxMessageBytes is the largest message that Publish accepts: key, headers
	// and body. 1 000 000 by default. Topics must accept 48 KiB more
	// (max.message.bytes), of which a part is for what a dead letter adds.
	MaxMessageBytes int

	// CommitInterval is the least time between two commits of a subscription,
	// 20 ms by default. A longer one makes fewer requests and a longer wait of
	// whoever gives up a partition.
	CommitInterval time.Duration

	// InstanceID makes each consumer a static member of its group: a process
	// that comes back within SessionTimeout gets the same partitions without a
	// rebalance. It must differ between the processes that run at once.
	InstanceID string

	// ClientID is what broker logs and quotas see, "tidings" by default.
	ClientID string

	// ClientOptions are given to every franz-go client after the driver's own.
	// One that changes acknowledgements, idempotence, group or offsets breaks
	// what the package comment promises.
	ClientOptions []kgo.Opt

	// Logger receives what the client warns about. Nil for none.
	Logger *slog.Logger
}

// String names brokers, namespace and user, and no secret.
func (o Options) String() string {
	return fmt.Sprintf("kafka %s, namespace %q, TLS %t, SASL %s", strings.Join(o.Brokers, ","), o.Namespace, o.TLS != nil, o.SASL)
}

// GoString is String: %#v shows no secret either.
func (o Options) GoString() string { return "kafka.Options{" + o.String() + "}" }

// MarshalText writes String, in JSON too.
func (o Options) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

var legalName = regexp.MustCompile(`^[a-zA-Z0-9._-]*$`)

// validate returns every complaint at once.
func (o *Options) validate() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf("kafka: "+format, args...)) }
	if len(o.Brokers) == 0 {
		complain("Options.Brokers is empty: name at least one, for example \"localhost:9092\"")
	}
	for _, broker := range o.Brokers {
		if host, port, err := net.SplitHostPort(broker); err != nil || host == "" || port == "" {
			complain("Options.Brokers: %q is not host:port", broker)
		}
	}
	if !legalName.MatchString(o.Namespace) || strings.Trim(o.Namespace, ".") != o.Namespace {
		complain("Options.Namespace %q: letters, digits, '.', '_' and '-' only, no '.' at either end", o.Namespace)
	}
	switch o.SASL.Mechanism {
	case "":
		if o.SASL.User != "" || o.SASL.Password != "" {
			complain("Options.SASL has a user or a password and no Mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
		}
	case Plain, ScramSHA256, ScramSHA512:
		if o.SASL.User == "" || o.SASL.Password == "" {
			complain("Options.SASL: %s needs a user and a password", o.SASL.Mechanism)
		}
		if o.SASL.Mechanism == Plain && o.TLS == nil && !o.loopback() {
			complain("Options.SASL: PLAIN would send the password unencrypted: set Options.TLS or use SCRAM-SHA-512")
		}
	default:
		complain("Options.SASL.Mechanism %q: it is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", o.SASL.Mechanism)
	}
	if o.Provision < ProvisionLoopback || o.Provision > ProvisionNever {
		complain("Options.Provision %d is none of its constants", o.Provision)
	}
	for _, number := range []struct {
		name  string
		value int64
	}{
		{"Partitions", int64(o.Partitions)},
		{"ReplicationFactor", int64(o.ReplicationFactor)},
		{"Retention", int64(o.Retention)},
		{"SessionTimeout", int64(o.SessionTimeout)},
		{"RebalanceTimeout", int64(o.RebalanceTimeout)},
		{"RevokeMargin", int64(o.RevokeMargin)},
		{"MaxEvents", int64(o.MaxEvents)},
		{"MaxBytes", int64(o.MaxBytes)},
		{"MaxMessageBytes", int64(o.MaxMessageBytes)},
		{"CommitInterval", int64(o.CommitInterval)},
	} {
		if number.value < 0 {
			complain("Options.%s must not be negative", number.name)
		}
	}
	if o.MaxEvents > window.Most {
		complain("Options.MaxEvents %d: at most %d fit the metadata of a commit", o.MaxEvents, window.Most)
	}
	if o.MaxMessageBytes > 512<<20 {
		complain("Options.MaxMessageBytes %d: at most 512 MiB", o.MaxMessageBytes)
	}
	if rebalance := cmp.Or(o.RebalanceTimeout, defaultRebalance); o.RevokeMargin >= rebalance {
		complain("Options.RevokeMargin %v leaves nothing of RebalanceTimeout %v", o.RevokeMargin, rebalance)
	}
	if o.InstanceID != "" && !legalName.MatchString(o.InstanceID) {
		complain("Options.InstanceID %q: letters, digits, '.', '_' and '-' only", o.InstanceID)
	}
	return errors.Join(errs...)
}

// requestTime is how long a broker may take to answer a request that waits for nothing:
// five seconds, and less where the session is short, so that a broker that falls silent
// is noticed while the session lasts.
func (o Options) requestTime() time.Duration {
	return min(max(o.SessionTimeout/3, 2*time.Second), 5*time.Second)
}

func (o Options) withDefaults() Options {
	o.Brokers = slices.Clone(o.Brokers)
	if o.TLS != nil {
		o.TLS = o.TLS.Clone()
	}
	o.Partitions = cmp.Or(o.Partitions, defaultPartitions)
	o.SessionTimeout = cmp.Or(o.SessionTimeout, defaultSessionTimeout)
	o.RebalanceTimeout = cmp.Or(o.RebalanceTimeout, defaultRebalance)
	o.RevokeMargin = cmp.Or(o.RevokeMargin, min(o.RebalanceTimeout/10, 5*time.Second))
	o.MaxEvents = cmp.Or(o.MaxEvents, window.Most)
	o.MaxBytes = cmp.Or(o.MaxBytes, defaultMaxBytes)
	o.MaxMessageBytes = cmp.Or(o.MaxMessageBytes, defaultMaxMessageBytes)
	o.CommitInterval = cmp.Or(o.CommitInterval, defaultCommitInterval)
	o.ClientID = cmp.Or(o.ClientID, "tidings")
	return o
}

// loopback reports whether every broker is on this machine's loopback interface.
func (o *Options) loopback() bool {
	for _, broker := range o.Brokers {
		host, _, err := net.SplitHostPort(broker)
		if err != nil {
			return false
		}
		if address := net.ParseIP(host); host != "localhost" && (address == nil || !address.IsLoopback()) {
			return false
		}
	}
	return true
}

func (o *Options) provisions() bool {
	return o.Provision == ProvisionAlways || o.Provision == ProvisionLoopback && o.loopback()
}
