package tidings

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/calls"
	"github.com/tidings-go/tidings/internal/claims"
)

// Bus connects the modules of one process with one broker. Make it with [New],
// give each module its face with [Bus.Module], then call [Bus.Run].
//
// All methods may be called from several goroutines.
type Bus struct {
	driver    driver.Driver
	direct    driver.Direct // nil: handlers never run in the publisher's goroutine
	features  driver.Features
	options   Options
	clock     Clock
	tally     tally
	observers observers
	suspects  suspects
	instance  string // unique per bus; the beginning of its owners' names
	owners    atomic.Int64
	messages  sync.Pool
	trees     sync.Pool
	// values has the values of Run's context and never ends: handlers and stores
	// see it, and no publisher's.
	values context.Context
	// settling ends when the bus gives up telling the broker.
	settling     context.Context
	stopSettling context.CancelFunc
	// storing is values for calls of stores; it ends with the drain deadline, so
	// that a store which does not answer does not keep Run from returning.
	storing     context.Context
	stopStoring context.CancelFunc
	// stores watches the answers of what is stored outside of this process.
	stores   *storeWatch
	closed   atomic.Bool
	draining atomic.Bool // without durability: only handlers publish
	// letters is where dead letters are marked for retry, or nil; redriveMore has a
	// value when a subscription has room for more of them.
	letters     driver.DeadLetterStore
	redriveMore chan struct{}
	publishing  atomic.Int64 // calls of Publish under way, without durability
	enqueued    atomic.Int64

	mu            sync.Mutex
	phase         phase
	begun         string // "Run at" or "Close at" and the place: nothing is declared after it
	late          error  // what is too late then: ErrRunning or ErrClosed
	subscriptions []*subscription
	runners       []Runner
	contracts     map[contractName]*definition
	published     map[string]bool // channels that modules have said they publish to
	complaints    []error
	ready         chan struct{} // closed when Run knows whether it runs
	runErr        error         // set before ready is closed, if it does not
	ended         chan struct{} // closed when Run has returned
}

type phase int

const (
	phaseDeclaring phase = iota
	phaseRunning
	phaseEnded
)

type contractName struct {
	eventType string
	version   int
}

// New makes a bus over a driver. Options may be nil. What is wrong with them is
// said by [Bus.Run], with every other complaint.
func New(d driver.Driver, options *Options) *Bus {
	b := &Bus{
		driver:    d,
		options:   options.withDefaults(),
		contracts: make(map[contractName]*definition),
		ready:     make(chan struct{}),
		ended:     make(chan struct{}),

		redriveMore: make(chan struct{}, 1),
		values:      context.Background(),
	}
	if d != nil {
		b.features = d.Features()
		b.direct, _ = d.(driver.Direct)
	}
	b.complaints = b.options.complaints()
	if d == nil {
		b.complaints = append(b.complaints, errors.New("New was given no driver"))
	}
	b.clock = b.options.Clock
	b.tally = noTally{}
	if t, ok := b.clock.(tally); ok {
		b.tally = t
	}
	list := []Observer{LogObserver(b.options.Logger)}
	for _, observer := range b.options.Observers {
		if observer != nil {
			list = append(list, observer)
		}
	}
	b.observers = newObservers(list)
	if id, err := uuid.NewV7(); err == nil {
		b.instance = strings.ReplaceAll(id.String(), "-", "") + "/"
	} else {
		b.complaints = append(b.complaints, fmt.Errorf("no random numbers: %w", err))
	}
	b.stores = newStoreWatch(b)
	b.settling, b.stopSettling = context.WithCancel(context.Background())
	b.storing, b.stopStoring = context.WithCancel(context.Background())
	b.trees.New = func() any { return &tree{closed: true} }
	b.messages.New = func() any { space := make([]driver.Message, 8); return &space }
	return b
}

// Module returns the face of the bus for one module, named as the first segment
// of its event types: a lower-case word. Calling it twice with a name gives two
// equal faces.
func (b *Bus) Module(name string) *Module {
	if !validWord(name) {
		b.mu.Lock()
		b.complaints = append(b.complaints, fmt.Errorf("module %q at %s: the name must be a lower-case word (a-z, 0-9, and - or _ inside)", name, callerPlace(2)))
		b.mu.Unlock()
	}
	return &Module{bus: b, name: name}
}

// check refuses what a module may not publish.
func (b *Bus) check(from *Module, d *definition) error {
	if from != nil && d.module != from.name {
		return fmt.Errorf("%w: module %q publishes %s, which module %q owns", ErrForeignEvent, from.name, d.eventType, d.module)
	}
	return nil
}

// meet remembers a contract, and refuses a second one with the same name that
// was defined elsewhere. The caller holds the lock.
func (b *Bus) meet(d *definition) error {
	name := contractName{d.eventType, d.version}
	known := b.contracts[name]
	if known == nil {
		b.contracts[name] = d
		return nil
	}
	if known != d {
		return fmt.Errorf("contract %s is defined twice, at %s and at %s", d, known.place, d.place)
	}
	return nil
}

// Run connects every subscription and blocks until ctx ends or nothing is left
// to run. A bus without subscriptions runs too, for publishing only.
//
// It returns at once, with every complaint in a *[ConfigurationError], when
// anything was declared wrongly or the driver cannot do what a subscription
// needs; then nothing was started. A subscription whose consumer stops for good
// (for example because events it has not seen are gone from the broker) stops
// alone; Run reports it to the observers, returns when the last one has
// stopped, and includes the reasons in its error.
//
// When ctx ends, Run stops fetching, waits for running handlers with their
// contexts alive until Options.DrainTimeout, cancels what is left, settles,
// gives up ownership and closes the driver. It returns 4 seconds after that deadline
// at the latest. On a driver that is not durable it
// finishes everything that was published, as long as the time allows, and
// publishes for handlers only: any other Publish is [ErrClosed] from then on. It
// returns nil after a clean end. A second call is [ErrRunning], one after [Bus.Close]
// is [ErrClosed].
func (b *Bus) Run(ctx context.Context) error {
	place := callerPlace(2)
	b.mu.Lock()
	if b.phase != phaseDeclaring {
		defer b.mu.Unlock()
		return fmt.Errorf("tidings: Run at %s after %s: %w", place, b.begun, b.late)
	}
	b.phase, b.begun, b.late = phaseRunning, "Run at "+place, ErrRunning
	b.values = context.WithoutCancel(ctx)
	b.storing, b.stopStoring = context.WithCancel(b.values)
	complaints := slices.Concat(b.complaints, b.requirements())
	b.mu.Unlock()
	defer close(b.ended)

	if len(complaints) > 0 {
		err := error(&ConfigurationError{Complaints: complaints})
		if b.driver != nil {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			err = errors.Join(err, b.shut(closing))
		}
		b.failStart(err)
		return err
	}
	if err := b.connect(ctx); err != nil {
		connected := false
		for _, s := range b.subscriptions {
			connected = connected || s.consumer != nil
			s.halt()
		}
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		b.closeConsumers(closing)
		// A driver of values that refused this bus belongs to another one.
		if b.direct == nil || connected || len(b.subscriptions) == 0 {
			err = errors.Join(err, b.shut(closing))
		}
		b.failStart(err)
		return err
	}
	b.stores.begin(ctx)
	close(b.ready)
	return b.turn(ctx)
}

func (b *Bus) failStart(err error) {
	b.closed.Store(true)
	b.mu.Lock()
	b.phase, b.runErr = phaseEnded, err
	b.mu.Unlock()
	close(b.ready)
}

// connect prepares every subscription and asks the broker for each.
func (b *Bus) connect(ctx context.Context) error {
	var errs []error
	if checker, ok := b.driver.(driver.Checker); ok {
		if err := calls.Do(ctx, checker.Check); err != nil {
			return fmt.Errorf("tidings: driver %s: %w", b.driver.Name(), err)
		}
	}
	b.letters = b.stores.letters(b.marks())
	b.findProbed()
	local := claims.New(b.clock, b.options.LocalClaims)
	var processLocal []string
	for _, s := range b.subscriptions {
		s.joined, s.failed = make(chan struct{}), make(chan struct{})
		s.lanes = make(map[driver.Lane]*lane)
		s.sources = make(map[string]*source)
		s.dead = b.options.DeadLetters
		if s.dead == nil {
			s.dead, _ = b.driver.(driver.DeadLetters)
		}
		s.dead = b.stores.dead(s.dead)
		switch {
		case s.options.WithoutDedup || b.options.WithoutDedup:
		case b.options.Claims != nil && !s.options.EachInstance:
			s.claims, s.epochs = b.stores.claims(b.options.Claims), b.stores.epochs(b.options.Claims)
		default:
			s.claims = local
			processLocal = append(processLocal, s.name)
		}
		switch {
		case b.features.Groups && !b.features.Sources:
			// Nobody owns an aggregate there: what cannot be read is given back.
		case b.options.Lanes != nil && (b.options.Lanes.Durable() || !b.features.Durable):
			s.store = b.stores.lanes(b.options.Lanes)
		case !b.features.Durable:
			s.store = newLocalLanes()
		}
		if err := s.takeOver(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := s.declare(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		consumer, err := b.driver.Subscribe(ctx, s.description(), s)
		if err != nil {
			errs = append(errs, fmt.Errorf("tidings: subscription %s: %w", s.name, err))
			continue
		}
		s.consumer = consumer
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if len(processLocal) > 0 {
		b.options.Logger.InfoContext(ctx, "dedup is process-local: it forgets at a restart and is not shared between instances",
			"subscriptions", strings.Join(processLocal, " "), "keys", b.options.LocalClaims)
	}
	b.reportOrphans(ctx)
	for _, s := range b.subscriptions {
		if err := s.ownUnowned(); err != nil {
			return err
		}
	}
	if b.direct != nil {
		if err := b.direct.Start(ctx); err != nil {
			return fmt.Errorf("tidings: driver %s: %w", b.driver.Name(), err)
		}
	}
	for _, s := range b.subscriptions { // the lanes that were parked in an earlier life
		s.mu.Lock()
		s.dispatch()
		s.mu.Unlock()
	}
	return nil
}

// turn runs the consumers until ctx ends, then drains and closes.
func (b *Bus) turn(ctx context.Context) error {
	fetching, stopFetching := context.WithCancel(ctx)
	defer stopFetching()
	var fetchers sync.WaitGroup
	allFailed := make(chan struct{})
	var left atomic.Int64
	left.Store(int64(len(b.subscriptions)))
	for _, s := range b.subscriptions {
		fetchers.Go(func() {
			err := s.consumer.Run(fetching)
			if err == nil || fetching.Err() != nil {
				return
			}
			s.failure = fmt.Errorf("tidings: subscription %s stopped: %w", s.name, err)
			close(s.failed)
			s.observe(Observation{Kind: Reported, Err: err, Report: driver.Report{Kind: driver.ReportOutage, Err: err, Text: "the subscription has stopped and does not start again by itself"}})
			if left.Add(-1) == 0 {
				close(allFailed)
			}
		})
	}
	if b.letters != nil && len(b.subscriptions) > 0 {
		fetchers.Go(func() { b.redrive(fetching) })
	}
	if b.keepsRecords() {
		fetchers.Go(func() { b.watchRecords(fetching) })
	}
	if len(b.stores.probed) > 0 {
		fetchers.Go(func() { b.stores.keepProbing(fetching) })
	}
	stopRunners := b.startRunners()
	select {
	case <-ctx.Done():
	case <-allFailed:
	}
	stopFetching()
	err := b.end(context.WithoutCancel(ctx), &fetchers, stopRunners)
	b.mu.Lock()
	b.phase = phaseEnded
	b.mu.Unlock()
	for _, s := range b.subscriptions {
		err = errors.Join(err, s.failure)
	}
	return err
}

// end stops everything, in order, under one deadline: whatever does not answer is
// left behind.
func (b *Bus) end(ctx context.Context, fetchers *sync.WaitGroup, stopRunners func(context.Context) error) error {
	deadline, cancel := context.WithTimeout(ctx, b.options.DrainTimeout)
	defer cancel()
	stopping, cancel := context.WithTimeout(ctx, b.options.DrainTimeout+closeTimeout*3/4)
	defer cancel()
	last, cancel := context.WithTimeout(ctx, b.options.DrainTimeout+closeTimeout)
	defer cancel()
	fetched := make(chan struct{})
	go func() { fetchers.Wait(); close(fetched) }()
	// What fetches ends at once, unless it waits for what does not answer: then the
	// handlers must not be left without time.
	early, cancel := context.WithTimeout(deadline, b.options.DrainTimeout/2)
	defer cancel()
	await(early, fetched)
	abandoned := b.drain(deadline)
	if abandoned > 0 {
		b.observers.observe(b.values, Observation{Kind: Abandoned, Count: abandoned})
	}
	await(deadline, fetched)
	stopped := stopRunners(stopping)
	b.closeConsumers(last)
	return errors.Join(stopped, b.shut(last))
}

func await(ctx context.Context, done <-chan struct{}) {
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// drain finishes what is in hand, at most until the deadline. It returns how
// many events are lost.
func (b *Bus) drain(deadline context.Context) (abandoned int) {
	defer context.AfterFunc(deadline, func() { // neither may last for ever
		b.stopSettling()
		b.stopStoring()
	})()
	b.draining.Store(!b.features.Durable)
	for _, s := range b.subscriptions {
		s.stop()
	}
	for deadline.Err() == nil && !b.isIdle() {
		for _, s := range b.subscriptions {
			s.awaitIdle(deadline)
		}
		if deadline.Err() == nil && !b.isIdle() {
			time.Sleep(time.Millisecond) // a Publish is about to bring more
		}
	}
	var halts sync.WaitGroup
	var lost atomic.Int64
	for _, s := range b.subscriptions {
		halts.Go(func() { lost.Add(int64(s.halt())) })
	}
	halts.Wait()
	for _, s := range b.subscriptions {
		s.mu.Lock()
		still := s.running == nil && !s.settler.turning
		s.mu.Unlock()
		if still { // else a handler does not return, and nobody can wait for it
			halts.Go(s.awaitWorkers)
		}
	}
	halts.Wait()
	return int(lost.Load())
}

// closeTimeout bounds what is left to do at the drain's deadline: handlers that were
// cancelled return, runners end, groups are left, clients and pools closed. Its
// value is part of what Options.DrainTimeout promises.
const closeTimeout = 4 * time.Second

// isIdle reports whether every subscription was idle at one moment: none that
// was idle got an event from another's handler while they were asked.
func (b *Bus) isIdle() bool {
	before := b.enqueued.Load()
	if b.publishing.Load() > 0 {
		return false
	}
	for _, s := range b.subscriptions {
		s.mu.Lock()
		idle := s.isIdle()
		s.mu.Unlock()
		if !idle {
			return false
		}
	}
	return b.enqueued.Load() == before
}

func (b *Bus) closeConsumers(ctx context.Context) {
	var closing sync.WaitGroup
	for _, s := range b.subscriptions {
		if s.consumer == nil {
			continue
		}
		closing.Go(func() {
			if err := calls.Do(ctx, s.consumer.Close); err != nil {
				s.observe(Observation{Kind: SettleFailed, Err: fmt.Errorf("close: %w", err)})
			}
		})
	}
	closing.Wait()
}

// shut closes the driver, after which nothing is published.
func (b *Bus) shut(ctx context.Context) error {
	b.closed.Store(true)
	b.stopSettling()
	b.stopStoring()
	b.suspects.giving.Wait()
	var errs []error
	b.stores.outage.Close()
	if err := calls.Do(ctx, b.driver.Close); err != nil {
		errs = append(errs, fmt.Errorf("tidings: driver %s: close: %w", b.driver.Name(), err))
	}
	if closer, ok := b.options.Claims.(interface{ Close(context.Context) error }); ok {
		if err := calls.Do(ctx, closer.Close); err != nil {
			errs = append(errs, fmt.Errorf("tidings: claims: close: %w", err))
		}
	}
	for _, closer := range b.options.Closers {
		if err := calls.Do(ctx, func(context.Context) error { return closer.Close() }); err != nil {
			errs = append(errs, fmt.Errorf("tidings: %T: close: %w", closer, err))
		}
	}
	return errors.Join(errs...)
}

// Ready blocks until every subscription takes part (it has its share of its
// channels, or stands by for one), and returns nil. It returns Run's error when
// Run failed, a subscription's when that one stopped before it had joined, and
// ctx's when that ended first. It may be called before Run.
func (b *Bus) Ready(ctx context.Context) error {
	select {
	case <-b.ready:
	case <-ctx.Done():
		return fmt.Errorf("tidings: not ready, Run was not called or is connecting: %w", ctx.Err())
	}
	b.mu.Lock()
	err, subscriptions := b.runErr, b.subscriptions
	b.mu.Unlock()
	if err != nil {
		return err
	}
	for _, s := range subscriptions {
		select {
		case <-s.joined:
		case <-s.failed:
			return s.failure
		case <-b.ended:
			return fmt.Errorf("tidings: not ready: %w", ErrClosed)
		case <-ctx.Done():
			return fmt.Errorf("tidings: subscription %s has not joined: %w", s.name, ctx.Err())
		}
	}
	return nil
}

// Close releases a bus whose Run was never called, for example in a program
// that only publishes; later publishes are [ErrClosed]. A bus that runs is
// closed by the end of Run's context: then Close returns [ErrRunning]. After
// Run it returns nil.
func (b *Bus) Close(ctx context.Context) error {
	b.mu.Lock()
	switch b.phase {
	case phaseRunning:
		b.mu.Unlock()
		return fmt.Errorf("tidings: close: end the context of %s: %w", b.begun, ErrRunning)
	case phaseEnded:
		b.mu.Unlock()
		return nil
	}
	b.phase, b.begun, b.late = phaseEnded, "Close at "+callerPlace(2), ErrClosed
	b.runErr = ErrClosed
	b.mu.Unlock()
	close(b.ready)
	if b.driver == nil {
		return nil
	}
	return b.shut(ctx)
}
