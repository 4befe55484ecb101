package faults

import (
	"context"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/outbox"
)

// StepPayload is the payload of every event of the suite.
type StepPayload struct {
	Number int    `json:"number"`
	Text   string `json:"text,omitempty"`
}

// StepTaken is the contract of the suite. Its module is "faults", its subscription
// "faults.work".
var StepTaken = tidings.Define[StepPayload]("faults.step.taken", 1, tidings.Repeatable)

// StepRetaken is its next version, which handlers of the first cannot read.
var StepRetaken = tidings.Define[StepPayload]("faults.step.taken", 2, tidings.Repeatable, tidings.ReadsFrom(1))

// Place says where a process finds what it works with.
type Place struct {
	// Namespace is that of the trial: a prefix of topics, a schema, the path of a
	// file.
	Namespace string
	// Broker and Database are addresses.
	Broker   string
	Database string
	// BrokerLine and DatabaseLine are proxies of the trial, host:port, through
	// which its processes reach the two. Empty: they go straight there.
	BrokerLine   string
	DatabaseLine string
	// Lease replaces the leases of a world, where it has some.
	Lease time.Duration
}

// World is one driver with its broker, as the suite reaches it.
type World struct {
	// Name is the word for the driver in the table, and in orders to processes.
	Name string
	// Enter makes what a process of the suite works with. It is called in every
	// process. What it wraps with the trap kills the process at a named point.
	Enter func(ctx context.Context, place Place, trap *Trap) (*Parts, error)
	// Prepare makes a place for one trial, empty, and cleans up with t.Cleanup.
	Prepare func(t testing.TB) Place
	// Program is the file that processes run: a test binary of the same package.
	// Empty: the one that runs. A binary with the race detector makes processes so
	// slow that it is not the fault any more that is looked at.
	Program string
	// Session is how long what a process has stays with it when it is gone: a
	// lease, a session, a visibility timeout.
	Session time.Duration
	// Unnoticed says that the broker tells nobody when a session is over: what was in
	// hand for longer than it may come again.
	Unnoticed bool
	// Largest is the largest payload in bytes that surely fits; 0: there is no
	// limit worth testing.
	Largest int
	// Server starts a broker that belongs to the trials of this world alone, or
	// returns the one that it has started for this test. Nil: NoServer says why
	// there is none.
	Server   func(t testing.TB) *Server
	NoServer string
	// Database says that the broker is the application's database.
	Database bool
	// Serial says that only one handler at a time has its transaction: overload is
	// made with fewer events.
	Serial bool
	// Separate says that handlers have a database that is not the broker.
	Separate bool
	// AtMostOnce says that events are lost with whoever does not listen.
	AtMostOnce bool
	// OneProcess says that publishers and handlers share a process.
	OneProcess bool
	// BrokerOnly leaves out the rows that are not about the broker: another world
	// has them. Weaker says that its settings are weaker than the promise: what is
	// lost then is counted and is no failure.
	BrokerOnly bool
	// ClockOnly leaves out all rows but that of the clock.
	ClockOnly bool
	Weaker    bool
	// Disk makes the place of a trial on a small disk, with what fills it and what
	// makes room again. Nil: there is none.
	Disk func(t testing.TB) (place Place, fill, clear func())
	// Not says why a fault cannot be made, or makes no sense, in this world.
	Not map[string]string
	// Effects returns how often each event's effect is in the application's
	// database. Nil: handlers have no effects there.
	Effects func(ctx context.Context, place Place) (map[string]int, error)
}

// Parts is what one process works with.
type Parts struct {
	Driver driver.Driver
	// Options and Subscribe are those of the bus and the subscription; the suite
	// adds its observer and its logger.
	Options   tidings.Options
	Subscribe tidings.SubscribeOptions
	// React makes the reaction: its handler calls handle, which calls effect once
	// where the effect belongs; mark goes before the event's id there. Nil: a plain handler without effects.
	React func(contract tidings.Contract[StepPayload], mark string, handle func(ctx context.Context, e tidings.Event[StepPayload], effect func(context.Context) error) error) tidings.Reaction
	// Commit publishes the events in a transaction of the application, together
	// with rows that say so; before is called before the commit. Nil: Publish.
	Commit func(ctx context.Context, bus *tidings.Bus, events []tidings.DomainEvent, before func()) error
	// Committed returns what Commit has committed. Needed where there is Commit.
	Committed func(ctx context.Context) ([]Step, error)
	// Queue is the outbox that a relay process sends to Driver. Nil: there is none.
	Queue outbox.Queue
	// Relay are the options of that relay.
	Relay outbox.Options
	// Close releases what the parts share, after the bus.
	Close func()
}

// Load is what publishers do.
type Load struct {
	// Aggregates is of each publisher; Batch is how many events one call or
	// transaction has; Pause is between two of them.
	Aggregates int
	Batch      int
	Pause      time.Duration
	// Events is how many one publisher publishes in all; 0: until it is stopped.
	Events int
	// Bytes is the size of the text in each event.
	Bytes int
}

// Server is a broker that a trial may break.
type Server struct {
	// Address is where it is, as Place.Broker or Place.Database has it, and Host
	// its host:port.
	Address string
	Host    string
	// Kill ends it with SIGKILL; Start starts it again over the same data and
	// waits until it answers.
	Kill  func(t testing.TB)
	Start func(t testing.TB)
	// Jump moves its clock so far from the true time; nil: it cannot be moved.
	Jump func(t testing.TB, by time.Duration)
}

// Work is what handlers do.
type Work struct {
	// Takes is how long a handler works.
	Takes time.Duration
	// PoisonEvery makes every n-th number of an aggregate fail for good.
	PoisonEvery int
	// CrashOn is the number of an aggregate whose handler ends the process, on the
	// aggregate named.
	CrashAggregate string
	CrashNumber    int
	// SlowNumber's handler takes SlowFor, and ignores its context.
	SlowEvery int
	SlowFor   time.Duration
}
