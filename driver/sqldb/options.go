package sqldb

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/tidings-go/tidings/internal/window"
	"github.com/tidings-go/tidings/outbox"
)

// Options configures a driver.
type Options struct {
	// Name is the word for the driver in EVENT_DRIVER, logs and errors: "postgres"
	// or "sqlite". Needed.
	Name string

	// Log is the store. Needed. The driver does not close its pool.
	Log outbox.Log

	// Keep is how long an entry stays that every subscription of its channel has
	// passed: the history for a new subscription. Defaults to 7 days; negative keeps all.
	Keep time.Duration

	// LeaseTime is how long a slot stays with a process that died. Defaults to 10
	// seconds; at least 300 milliseconds.
	LeaseTime time.Duration

	// MaxBytes and MaxEvents bound what is fetched and not finished, per slot of a
	// channel and subscription. They default to 8 MiB and 1 000; MaxEvents is at most 20 000.
	MaxBytes  int
	MaxEvents int

	// MaxMessageBytes is the largest event with key and headers. Defaults to 1 MiB.
	MaxMessageBytes int

	// PollInterval is how often the database is looked at when nothing wakes the
	// driver. Defaults to 1 second; for a store that cannot wake other processes,
	// less is the latency between processes.
	PollInterval time.Duration
}

func (o Options) withDefaults() Options {
	o.Keep = cmp.Or(o.Keep, 7*24*time.Hour)
	o.LeaseTime = cmp.Or(o.LeaseTime, 10*time.Second)
	o.MaxBytes = cmp.Or(o.MaxBytes, 8<<20)
	o.MaxEvents = cmp.Or(o.MaxEvents, 1000)
	o.MaxMessageBytes = cmp.Or(o.MaxMessageBytes, 1<<20)
	o.PollInterval = cmp.Or(o.PollInterval, time.Second)
	return o
}

func (o Options) check() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.Name == "" {
		complain("Options.Name is empty: say postgres or sqlite")
	}
	if o.Log == nil {
		complain("Options.Log is nil: pass a store that has a log")
	}
	if o.LeaseTime < 300*time.Millisecond {
		complain("Options.LeaseTime is %v: at least 300ms, or a short pause of the process loses its slots", o.LeaseTime)
	}
	if o.PollInterval < time.Millisecond {
		complain("Options.PollInterval is %v: at least a millisecond", o.PollInterval)
	}
	if o.MaxEvents < 1 || o.MaxEvents > window.Most {
		complain("Options.MaxEvents is %d: from 1 to %d, which is what a stored position can describe", o.MaxEvents, window.Most)
	}
	if o.MaxBytes < 1 || o.MaxMessageBytes < 1 {
		complain("Options.MaxBytes is %d and MaxMessageBytes %d: both must be positive", o.MaxBytes, o.MaxMessageBytes)
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("sqldb: %w", errors.Join(errs...))
}
