package outbox

import (
	"cmp"
	"fmt"
	"log/slog"
	"time"
)

// Options configures an outbox and its relay. The zero value has the defaults;
// nil is the same.
type Options struct {
	// WithoutRelay leaves relaying to other processes: `tidings relay`, or
	// Debezium.
	WithoutRelay bool

	// Group is what all relays of one outbox have in common: they divide its
	// slots. Defaults to "relay".
	Group string

	// Workers is how many sends are under way at once, each for slots of its own.
	// Defaults to 4, at most [Slots].
	Workers int

	// Batch is the most rows of one send. Defaults to 500.
	Batch int

	// LeaseTime is how long the slots of a relay that died stay with it. Defaults
	// to 10 seconds; at least 300 milliseconds. A send that takes longer than what is
	// left of it, at least half while the database answers, has failed.
	LeaseTime time.Duration

	// PollInterval is how often the outbox is looked at when nothing wakes the
	// relay. Defaults to 1 second, and to 100 milliseconds for a store that cannot
	// wake it.
	PollInterval time.Duration

	// Keep is how long sent rows stay where the store keeps them. Defaults to 7
	// days; negative keeps all.
	Keep time.Duration

	// Logger is told when rows cannot be sent and when they can again. Nil means
	// slog.Default.
	Logger *slog.Logger
}

func (o *Options) withDefaults() Options {
	var options Options
	if o != nil {
		options = *o
	}
	options.Group = cmp.Or(options.Group, "relay")
	options.Workers = cmp.Or(options.Workers, 4)
	options.Batch = cmp.Or(options.Batch, 500)
	options.LeaseTime = cmp.Or(options.LeaseTime, 10*time.Second)
	options.Keep = cmp.Or(options.Keep, 7*24*time.Hour)
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	return options
}

func (o *Options) complaints() (errs []error) {
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.Workers < 1 || o.Workers > Slots {
		complain("Options.Workers is %d: from 1 to %d", o.Workers, Slots)
	}
	if o.Batch < 1 || o.Batch > 10_000 {
		complain("Options.Batch is %d: from 1 to 10000", o.Batch)
	}
	if o.LeaseTime < 300*time.Millisecond {
		complain("Options.LeaseTime is %v: at least 300ms, or a short pause of the process loses its slots", o.LeaseTime)
	}
	if o.PollInterval < 0 {
		complain("Options.PollInterval is %v: it must not be negative", o.PollInterval)
	}
	return errs
}
