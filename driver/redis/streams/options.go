package streams

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings/driver/redis/internal/wire"
)

// Options configures a driver.
type Options struct {
	// Client is how Redis is reached; rueidis.ParseURL makes one of a URL. Needed:
	// InitAddress. The driver turns client-side caching off, and gives Redis five
	// seconds for an answer where ConnWriteTimeout says nothing else.
	Client rueidis.ClientOption

	// LeaseTime is how long a shard stays with an instance that died. Defaults to
	// 10 seconds; at least 300 milliseconds.
	LeaseTime time.Duration

	// MaxBytes and MaxEvents bound what is fetched and not finished, per shard and
	// subscription. They default to 8 MiB and 1 000.
	MaxBytes  int
	MaxEvents int

	// MaxMessageBytes is the largest event with key and fields. Defaults to 1 MiB.
	MaxMessageBytes int

	// Namespace goes before every key, with a colon.
	Namespace string

	// Retention is how long an entry stays that every group has finished: the
	// history for a new subscription. Defaults to 24 hours; negative keeps all.
	Retention time.Duration

	// Shards is how many streams a channel has, and so how many instances of a
	// subscription can work on it at once. It is recorded in Redis for each
	// channel and cannot be changed while there are events in it. Defaults to 8;
	// from 1 to 1024.
	Shards int

	// TrimInterval is how often finished entries are looked for. Defaults to 10
	// seconds.
	TrimInterval time.Duration

	// UnknownGroupGrace is how long a group that no subscription declared keeps
	// entries from being trimmed. Defaults to 7 days.
	UnknownGroupGrace time.Duration
}

// String names servers, user and namespace, and no secret.
func (o Options) String() string {
	return fmt.Sprintf("streams %s, user %q, TLS %t, namespace %q", strings.Join(o.Client.InitAddress, ","), o.Client.Username, o.Client.TLSConfig != nil, o.Namespace)
}

// GoString is String: %#v shows no secret either.
func (o Options) GoString() string { return "streams.Options{" + o.String() + "}" }

// MarshalText writes String, in JSON too.
func (o Options) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

func (o Options) withDefaults() Options {
	o.LeaseTime = cmp.Or(o.LeaseTime, 10*time.Second)
	o.MaxBytes = cmp.Or(o.MaxBytes, 8<<20)
	o.MaxEvents = cmp.Or(o.MaxEvents, 1000)
	o.MaxMessageBytes = cmp.Or(o.MaxMessageBytes, 1<<20)
	o.Retention = cmp.Or(o.Retention, 24*time.Hour)
	o.Shards = cmp.Or(o.Shards, 8)
	o.TrimInterval = cmp.Or(o.TrimInterval, 10*time.Second)
	o.UnknownGroupGrace = cmp.Or(o.UnknownGroupGrace, 7*24*time.Hour)
	o.Client.ConnWriteTimeout = cmp.Or(o.Client.ConnWriteTimeout, wire.AnswerTime)
	o.Client.DisableCache = true
	o.Client.DisableRetry = true // what fails is asked again here, where the outage is counted
	return o
}

func (o Options) check() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(o.Client.InitAddress) == 0 {
		complain("Options.Client.InitAddress is empty: name at least one server, for example localhost:6379")
	}
	if !wire.NamespaceForm.MatchString(o.Namespace) {
		complain("Options.Namespace %q: letters, digits, dot, dash and underscore, at most 100", o.Namespace)
	}
	if o.Shards < 1 || o.Shards > 1024 {
		complain("Options.Shards is %d: from 1 to 1024", o.Shards)
	}
	if o.LeaseTime < 300*time.Millisecond {
		complain("Options.LeaseTime is %v: at least 300ms, or a short pause of the process loses its shards", o.LeaseTime)
	}
	if o.MaxEvents < 1 || o.MaxBytes < 1 || o.MaxMessageBytes < 1 {
		complain("Options.MaxEvents is %d, MaxBytes %d and MaxMessageBytes %d: all must be positive", o.MaxEvents, o.MaxBytes, o.MaxMessageBytes)
	}
	if o.TrimInterval < 0 || o.UnknownGroupGrace < 0 {
		complain("Options.TrimInterval is %v and UnknownGroupGrace %v: neither may be negative", o.TrimInterval, o.UnknownGroupGrace)
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("streams: %w", errors.Join(errs...))
}
