package tidings

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"time"

	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
)

// Options configures a [Bus]. The zero value is ready to use.
type Options struct {
	// AnnounceFailures publishes [HandlerFailed] for each dead letter. On a
	// broker whose topics are made by hand it needs one for that contract.
	AnnounceFailures bool

	// Claims is where subscriptions keep what they have handled. Nil means
	// process-local: bounded to LocalClaims keys per subscription, forgotten at
	// restart, not shared between instances. A store with a method
	// Close(context.Context) error is closed after the driver.
	Claims driver.Claims

	// Clock is where the time comes from. Nil means the system's.
	Clock Clock

	// Closers are closed, in order, after the driver and the claims store: pools and
	// clients that stores of this bus use and nobody else does.
	Closers []io.Closer

	// Codec writes events for the broker. Nil means codec.DomainEvents. Every
	// known form is read, whatever is written.
	Codec codec.Codec

	// CollectedDeadLetters is a store into which the driver's own dead letters are
	// collected (see package deadletter): what is marked for retry there is tried
	// again, and goes there if it fails again. Nil means DeadLetters where that is a
	// store.
	CollectedDeadLetters driver.DeadLetterStore

	// DeadLetters is where events go that a subscription gives up on. Nil means
	// the driver's own place. Where it is a driver.DeadLetterStore, what is marked
	// for retry in it is tried again.
	DeadLetters driver.DeadLetters

	// DrainTimeout is how long Run waits for running handlers, and for whatever else
	// has to end, after its context has ended, before it cancels their contexts. Run
	// returns 4 seconds after that at the latest, whatever does not answer: broker,
	// store, handler or pool. Defaults to 25 seconds, a little less than the 30 that
	// Kubernetes gives.
	DrainTimeout time.Duration

	// Lanes is where parked events wait. Nil means in memory, which counts on
	// the in-memory driver only.
	Lanes driver.Lanes

	// LocalClaims bounds process-local dedup, in keys per subscription; the
	// oldest is forgotten first. Defaults to 100 000. It has no effect with
	// Claims.
	LocalClaims int

	// Logger gets every step of every event, see [LogObserver]. Nil means
	// slog.Default. slog.DiscardHandler turns it off.
	Logger *slog.Logger

	// Observers are told what happens.
	Observers []Observer

	// RedeliveryHorizon is how long after its publication a repeatable event may
	// still be delivered again: a durable claims store forgets its key after
	// that. 0 means what the driver says; where the driver knows no end, a bus
	// with a durable store asks for it.
	RedeliveryHorizon time.Duration

	// RequireOutbox makes [Module.Publish] refuse: modules publish in their
	// transactions, with [Module.Through]. [Bus.Publish] is left to whoever has no
	// transaction.
	RequireOutbox bool

	// Source names the service on the wire. Empty means absent.
	Source string

	// StartAt is where subscriptions begin that say nothing themselves: where
	// SubscribeOptions.StartAt is set, that wins. It has an effect on a driver with
	// history, where the broker has no position of the subscription yet, or none on a
	// channel that is new to it. There is no default: on a driver with history Run
	// refuses a subscription for which neither says it.
	StartAt StartAt

	// StoreTimeout bounds each call of a store that is not in this process: claims,
	// parked events, dead letters. One that has no answer by then has failed: its
	// lane holds and the store is asked again. Defaults to 10 seconds.
	StoreTimeout time.Duration

	// WithoutDedup turns the engine's dedup off for every subscription: each
	// delivery is handled. For benchmarks, and for teams whose handlers all
	// have claims of their own.
	WithoutDedup bool

	// Wrap is the one middleware hook, outside retry and dedup: it is called
	// once per subscription and reaction and returns what each attempt calls
	// (authentication, tenants, error reporting).
	Wrap func(next HandleFunc) HandleFunc
}

func (o *Options) withDefaults() Options {
	var options Options
	if o != nil {
		options = *o
	}
	if options.Clock == nil {
		options.Clock = systemClock{}
	}
	if options.Codec == nil {
		options.Codec = codec.DomainEvents()
	}
	options.DrainTimeout = cmp.Or(options.DrainTimeout, 25*time.Second)
	options.StoreTimeout = cmp.Or(options.StoreTimeout, 10*time.Second)
	options.LocalClaims = cmp.Or(options.LocalClaims, 100_000)
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	return options
}

func (o *Options) complaints() (errs []error) {
	if o.DrainTimeout < 0 {
		errs = append(errs, fmt.Errorf("Options.DrainTimeout is %v: it must not be negative", o.DrainTimeout))
	}
	if o.StoreTimeout < 0 {
		errs = append(errs, fmt.Errorf("Options.StoreTimeout is %v: it must not be negative", o.StoreTimeout))
	}
	if o.RedeliveryHorizon < 0 {
		errs = append(errs, fmt.Errorf("Options.RedeliveryHorizon is %v: it must not be negative", o.RedeliveryHorizon))
	}
	if o.LocalClaims < 0 {
		errs = append(errs, fmt.Errorf("Options.LocalClaims is %d: it must not be negative", o.LocalClaims))
	}
	if o.Source != "" {
		if problem := idProblem(o.Source); problem != "" {
			errs = append(errs, fmt.Errorf("Options.Source %s", problem))
		}
	}
	if problem := startProblem(o.StartAt); problem != "" {
		errs = append(errs, fmt.Errorf("Options.StartAt %s", problem))
	}
	for i, observer := range o.Observers {
		if observer == nil {
			errs = append(errs, fmt.Errorf("Options.Observers[%d] is nil", i))
		}
	}
	return errs
}

// Policy decides what happens to an event whose attempts are used up.
type Policy int

const (
	// DeadLetter puts the event among the dead letters, and its lane goes on
	// without it. The default, except where RequireOrder is said.
	DeadLetter Policy = iota + 1
	// Park puts the event into the Lanes store, and later events of its
	// aggregate wait behind it, in order, while everything else flows. The head
	// is tried again with ParkBackoff. The default where RequireOrder is said.
	Park
	// Block tries the event again at the longest backoff until it succeeds; its
	// lane waits in memory.
	Block
)

// String returns "dead letter", "park" or "block".
func (p Policy) String() string {
	switch p {
	case DeadLetter:
		return "dead letter"
	case Park:
		return "park"
	case Block:
		return "block"
	}
	return fmt.Sprintf("policy(%d)", int(p))
}

// Backoff is how long to wait between attempts: Initial, then Multiplier times
// as long each time, at most Max, each changed by chance by up to Jitter (0.2
// is ±20 %).
type Backoff struct {
	Initial    time.Duration // defaults to 200 ms
	Max        time.Duration // defaults to 1 minute
	Multiplier float64       // defaults to 2; at least 1
	Jitter     float64       // defaults to 0.2; negative means none, at most 1
}

func (b Backoff) withDefaults(initial, longest time.Duration) Backoff {
	b.Initial = cmp.Or(b.Initial, initial)
	b.Max = cmp.Or(b.Max, max(longest, b.Initial))
	b.Multiplier = cmp.Or(b.Multiplier, 2)
	b.Jitter = cmp.Or(b.Jitter, 0.2)
	return b
}

// wait returns how long to wait after that many failed attempts, 1 or more.
func (b Backoff) wait(failed int) time.Duration {
	wait := float64(b.Initial)
	for i := 1; i < failed && wait < float64(b.Max); i++ {
		wait *= b.Multiplier
	}
	wait = min(wait, float64(b.Max))
	if b.Jitter > 0 {
		wait *= 1 + b.Jitter*(2*rand.Float64()-1)
	}
	return time.Duration(wait)
}

func (b Backoff) complaints(name string) (errs []error) {
	if b.Initial < 0 || b.Max < b.Initial || b.Multiplier < 1 || b.Jitter > 1 {
		errs = append(errs, fmt.Errorf("%s{Initial: %v, Max: %v, Multiplier: %v, Jitter: %v}: Initial must be positive, Max at least Initial, Multiplier at least 1 and Jitter at most 1",
			name, b.Initial, b.Max, b.Multiplier, b.Jitter))
	}
	return errs
}

// StartAt is where a subscription begins that the broker does not know yet, on
// a driver with history: [StartBeginning], [StartNow] or [StartAtTime]. The zero
// value says nothing. Options.StartAt is for every subscription of a bus,
// SubscribeOptions.StartAt for one.
type StartAt = driver.StartAt

var (
	// StartBeginning starts a new subscription at the oldest event there is.
	StartBeginning = StartAt{Mode: driver.StartBeginning}
	// StartNow starts a new subscription with what is published from now on.
	StartNow = StartAt{Mode: driver.StartNow}
)

// StartAtTime starts a new subscription with what was stored at t or later.
func StartAtTime(t time.Time) StartAt { return StartAt{Mode: driver.StartTime, Time: t} }

// startProblem is what is wrong with a value, or "".
func startProblem(at StartAt) string {
	if at.Mode < driver.StartUnset || at.Mode > driver.StartTime || at.Mode == driver.StartUnset && !at.Time.IsZero() {
		return fmt.Sprintf("is %+v: use tidings.StartBeginning, tidings.StartNow or tidings.StartAtTime", at)
	}
	return ""
}

// SubscribeOptions configures one subscription. Nil and the zero value mean the
// defaults.
type SubscribeOptions struct {
	// Backoff is the time between attempts.
	Backoff Backoff

	// Concurrency is how many aggregates are handled at once, per process.
	// Defaults to 16.
	Concurrency int

	// ClaimLease is how long a claim on an event lives when its process
	// crashes. It must be longer than Timeout. Defaults to twice Timeout, at
	// least a minute; an hour without a timeout.
	ClaimLease time.Duration

	// EachInstance says that every running instance handles every event, for
	// example to refresh a cache of its own. Only a driver that broadcasts
	// (redis) and the in-memory driver can do that; dedup is process-local then,
	// whatever Options.Claims is. Without it, a driver that broadcasts needs a
	// claims store that the instances share.
	EachInstance bool

	// FormerNames are names that the subscription had before: of this module, or
	// whole ("billing.old-name"). At start it takes over what is stored under them
	// (position, dedup keys, parked events, dead letters, epochs) as far as it has
	// nothing of the kind itself. A renaming is deployed with the old instances
	// stopped: while any is alive under a former name, Run fails with ErrInUse. A
	// former name may be removed from the list once it was deployed everywhere.
	FormerNames []string

	// MaxAttempts is how often an event is tried before OnExhausted decides.
	// Defaults to 10, about a minute and a half with the default Backoff.
	MaxAttempts int

	// MaxBytes and MaxEvents bound what is fetched and not finished, per source
	// (partition, shard, queue). 0 means the driver's default.
	MaxBytes  int
	MaxEvents int

	// MaxCrashes is how often the process may die while it handles an event and
	// nothing else, before OnExhausted decides, with the reason "crashed". What was
	// in hand when a process died is handled one at a time afterwards, and what was
	// so at two deaths is handled alone: so an event that ends its process does so
	// two times more than this, three times with an inbox, and no event becomes a
	// dead letter because another ended the process beside it. It needs a claims
	// store that outlives the process, or an inbox. Defaults to 2.
	MaxCrashes int

	// MaxRate is how many attempts begin per second at most, in this process, over
	// all aggregates: for what a handler calls and must not overload. 0 means no
	// limit.
	MaxRate float64

	// OnExhausted decides what happens when attempts are used up, or at once
	// after [Permanent]. Defaults to [DeadLetter], or to [Park] where
	// RequireOrder is said.
	OnExhausted Policy

	// ParkBackoff is the time between attempts of the head of a parked lane.
	// Defaults to 30 seconds, growing to 10 minutes.
	ParkBackoff Backoff

	// RequireDedup refuses to start with process-local dedup.
	RequireDedup bool

	// RequireDelay refuses to start on a driver that cannot give an event back to
	// its broker for so long: elsewhere an event that asked for [RetryAfter] waits in
	// memory, and is tried again at once after a restart.
	RequireDelay time.Duration

	// RequireDurable refuses to start on a driver that loses events with the
	// process.
	RequireDurable bool

	// RequireOrder refuses to start on a driver that does not keep order per
	// aggregate, and refuses DeadLetter, which lets later events overtake.
	RequireOrder bool

	// StartAt is where the subscription begins when the broker sees it, or a channel
	// of it, for the first time, on a driver with history; on another it has no
	// effect. Defaults to Options.StartAt. On a driver with history Run refuses a
	// subscription for which neither says it.
	StartAt StartAt

	// Timeout bounds one attempt of a handler: its context ends. Defaults to 30
	// seconds; negative means none.
	Timeout time.Duration

	// UnorderedAcrossTypes lets the subscription react to contracts of several
	// channels, between which there is no order.
	UnorderedAcrossTypes bool

	// WithoutDedup turns the engine's dedup off: every delivery is handled.
	WithoutDedup bool

	// WithoutGuard turns the outage guard off. With it, a subscription most of
	// whose aggregates fail (16 of the last 20 attempts, on 8 aggregates or
	// more) tries one event at a time until one succeeds; failures meanwhile
	// use no attempts. What is [Permanent] is not counted, and Block needs no
	// guard.
	WithoutGuard bool
}

func (o *SubscribeOptions) withDefaults() SubscribeOptions {
	var options SubscribeOptions
	if o != nil {
		options = *o
	}
	options.Backoff = options.Backoff.withDefaults(200*time.Millisecond, time.Minute)
	options.ParkBackoff = options.ParkBackoff.withDefaults(30*time.Second, 10*time.Minute)
	options.Concurrency = cmp.Or(options.Concurrency, 16)
	options.MaxAttempts = cmp.Or(options.MaxAttempts, 10)
	options.MaxCrashes = cmp.Or(options.MaxCrashes, 2)
	options.Timeout = cmp.Or(options.Timeout, 30*time.Second)
	if options.Timeout < 0 {
		options.ClaimLease = cmp.Or(options.ClaimLease, time.Hour)
	}
	options.ClaimLease = cmp.Or(options.ClaimLease, max(2*options.Timeout, time.Minute))
	if options.OnExhausted == 0 {
		options.OnExhausted = DeadLetter
		if options.RequireOrder {
			options.OnExhausted = Park
		}
	}
	return options
}

func (o *SubscribeOptions) complaints() (errs []error) {
	errs = append(errs, o.Backoff.complaints("Backoff")...)
	errs = append(errs, o.ParkBackoff.complaints("ParkBackoff")...)
	for _, number := range []struct {
		name  string
		value int
	}{{"Concurrency", o.Concurrency}, {"MaxAttempts", o.MaxAttempts}, {"MaxCrashes", o.MaxCrashes}, {"MaxEvents", o.MaxEvents}, {"MaxBytes", o.MaxBytes}} {
		if number.value < 0 {
			errs = append(errs, fmt.Errorf("%s is %d: it must not be negative", number.name, number.value))
		}
	}
	if o.MaxRate < 0 || math.IsNaN(o.MaxRate) || math.IsInf(o.MaxRate, 0) {
		errs = append(errs, fmt.Errorf("MaxRate is %v: it must be a positive number of attempts per second, or 0 for no limit", o.MaxRate))
	}
	if o.RequireDelay < 0 {
		errs = append(errs, fmt.Errorf("RequireDelay is %v: it must not be negative", o.RequireDelay))
	}
	if o.ClaimLease < 0 || o.Timeout > 0 && o.ClaimLease <= o.Timeout {
		errs = append(errs, fmt.Errorf("ClaimLease is %v and Timeout %v: a claim must outlive an attempt, or another instance takes the event over while it is handled", o.ClaimLease, o.Timeout))
	}
	if o.OnExhausted < DeadLetter || o.OnExhausted > Block {
		errs = append(errs, fmt.Errorf("OnExhausted is %v: use DeadLetter, Park or Block", o.OnExhausted))
	}
	if problem := startProblem(o.StartAt); problem != "" {
		errs = append(errs, fmt.Errorf("StartAt %s", problem))
	}
	if o.RequireOrder && o.OnExhausted == DeadLetter {
		errs = append(errs, errors.New("RequireOrder and OnExhausted: DeadLetter contradict each other: behind a dead letter later events of the aggregate go on without it; use Park or Block"))
	}
	return errs
}
