package deployments

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// module owns every contract and subscription of the suite.
const module = "deploys"

// instance is a bus that runs a release.
type instance struct {
	name    string
	release *release
	parts   *Parts
	bus     *tidings.Bus
	cancel  context.CancelFunc
	done    chan error
}

// trial is one change under one schedule, in one world.
type trial struct {
	testing.TB
	suite  *Suite
	world  *World
	site   Site
	change *change
	ledger *ledger
	load   *load
	log    *diary

	mu      sync.Mutex
	running []*instance
	started int
	kept    int
	note    string
}

// start runs one more instance of a release and waits until it is ready. What it
// brings is published from then on.
func (t *trial) start(r *release) (*instance, error) {
	t.started++
	i := &instance{name: fmt.Sprintf("%d(%s)", t.started, describe(r)), release: r, done: make(chan error, 1)}
	parts, err := t.site.Open(t.Context())
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", i.name, err)
	}
	i.parts = parts
	options := parts.Options
	options.Logger = slog.New(t.log.of(i.name))
	options.Observers = append(options.Observers, &witness{t.ledger, i.name, r})
	options.DrainTimeout = t.suite.patience()
	i.bus = tidings.New(parts.Driver, &options)
	var reactions []tidings.Reaction
	for _, f := range r.handles {
		reactions = append(reactions, parts.React(f))
	}
	for _, f := range r.ignores {
		reactions = append(reactions, f.Ignored())
	}
	i.bus.Module(module).Subscribe(r.name, &tidings.SubscribeOptions{
		StartAt: tidings.StartBeginning, UnorderedAcrossTypes: true, FormerNames: r.former, MaxCrashes: 1000, Concurrency: 4,
		Backoff: tidings.Backoff{Initial: 50 * time.Millisecond, Max: time.Second}, ParkBackoff: tidings.Backoff{Initial: time.Second, Max: 2 * time.Second},
	}, reactions...)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	i.cancel = cancel
	go func() { i.done <- i.bus.Run(ctx) }()
	waiting, stop := context.WithTimeout(ctx, t.suite.patience())
	defer stop()
	if err := i.bus.Ready(waiting); err != nil {
		cancel()
		ended := <-i.done
		parts.Close()
		return nil, errors.Join(err, ended)
	}
	t.mu.Lock()
	t.running = append(t.running, i)
	t.mu.Unlock()
	return i, nil
}

// describe says what a release handles.
func describe(r *release) string {
	text := r.name
	for _, f := range r.handles {
		text += " " + f.Type() + fmt.Sprintf("/%d", f.Version())
	}
	for _, f := range r.ignores {
		text += " not " + f.Type()
	}
	return text
}

// run starts instances that have to start.
func (t *trial) run(r *release, count int) (all []*instance) {
	t.Helper()
	for range count {
		i, err := t.start(r)
		if err != nil {
			t.Fatalf("an instance of the release %s does not start: %v", describe(r), err)
		}
		all = append(all, i)
		// Not earlier: a topic of SNS has no history for a queue that comes later.
		t.load.start(context.WithoutCancel(t.Context()))
	}
	if r == &t.change.after {
		t.load.add(t.change.fresh)
	}
	return all
}

// stop ends instances in good order, one after the other.
func (t *trial) stop(instances ...*instance) {
	t.Helper()
	for _, i := range instances {
		t.mu.Lock()
		for n := range t.running {
			if t.running[n] == i {
				t.running = append(t.running[:n:n], t.running[n+1:]...)
				break
			}
		}
		t.mu.Unlock()
		i.cancel()
		if err := <-i.done; err != nil {
			t.Errorf("instance %s ended: %v", i.name, err)
		}
		i.parts.Close()
	}
}

// stopAll ends what runs, for whatever reason the trial is over.
func (t *trial) stopAll() {
	t.mu.Lock()
	left := append([]*instance(nil), t.running...)
	t.mu.Unlock()
	t.stop(left...)
}

func (t *trial) releases() (all []*release) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, i := range t.running {
		all = append(all, i.release)
	}
	return all
}

// impatience is how long a trial that has failed waits: it goes on for the counts.
const impatience = 10 * time.Second

// until waits for something that is sure to come, and reports whether it came. left
// says how much is missing: as long as that becomes less, it goes on, however slow
// the machine is.
func (t *trial) until(what string, left func() (int, func() string)) bool {
	t.Helper()
	patience := t.suite.patience()
	if t.Failed() {
		patience = min(patience, impatience)
	}
	least, deadline := -1, time.Time{}
	for {
		missing, state := left()
		if missing == 0 {
			return true
		}
		if least < 0 || missing < least {
			least, deadline = missing, time.Now().Add(patience)
		}
		if _, err := t.load.published(); err != nil {
			t.Errorf("%s: %v", what, err)
			return false
		}
		if time.Now().After(deadline) {
			t.Errorf("%s: nothing more of it within %v: %s\n%s", what, patience, state(), t.state())
			return false
		}
		pause(t.Context(), 20*time.Millisecond)
	}
}

// state says how the instances are.
func (t *trial) state() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := ""
	for _, i := range t.running {
		text += fmt.Sprintf("  %s: %+v\n", i.name, i.bus.Health().Subscriptions)
	}
	return text
}

// rounds lets the load go on for so many rounds.
func (t *trial) rounds(count int) {
	t.Helper()
	want := t.load.demand(count)
	t.until(fmt.Sprintf("%d rounds of the load", count), func() (int, func() string) {
		now, _ := t.load.published()
		return max(want-now, 0), func() string { return fmt.Sprintf("%d are missing", want-now) }
	})
}

// flows waits until the instances that run have handled everything published so far
// that they are sure to handle.
func (t *trial) flows(when string) {
	t.Helper()
	bound := t.ledger.bounds()
	t.until(when+" events are handled", func() (int, func() string) {
		left := t.ledger.expected(t.releases(), bound)
		return len(left), func() string { return t.ledger.describe(left) }
	})
}

// settle ends the load, waits for the last release and counts what is kept.
func (t *trial) settle() {
	t.Helper()
	t.load.stop()
	t.flows("after the schedule")
	if len(t.change.forgotten) > 0 {
		t.forget()
		t.flows("after types were forgotten")
	}
	t.kept = len(t.ledger.open())
}

// forget takes types out of the record, as an operator does.
func (t *trial) forget() {
	t.Helper()
	parts, err := t.site.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer parts.Close()
	defer func() {
		if err := parts.Driver.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	keeper, ok := parts.Driver.(driver.Declarations)
	if !ok {
		t.Fatalf("driver %s keeps no record of types", parts.Driver.Name())
	}
	for _, f := range t.change.forgotten {
		t.ledger.ignore(f.Type())
		known, err := keeper.ForgetType(t.Context(), module+"."+t.change.after.name, f.Type())
		if err != nil || !known {
			t.Errorf("forgetting %s: known %v, %v", f.Type(), known, err)
		}
	}
}

// lacks waits until an instance says in its health and its log that it lacks what
// another release handles, on a driver that keeps a record.
func (t *trial) lacks(i *instance, facts []fact) {
	t.Helper()
	if _, ok := i.parts.Driver.(driver.Declarations); !ok {
		return
	}
	for _, f := range facts {
		if i.release.handlesType(f.Type()) {
			continue
		}
		t.until(fmt.Sprintf("instance %s names %s in its health and its log", i.name, f.Type()), func() (int, func() string) {
			lacked := i.bus.Health().Subscriptions[0].Lacks
			named := slices.ContainsFunc(lacked, func(l tidings.Lacked) bool { return l.Type == f.Type() && l.Channel == f.Channel() })
			if named && t.ledger.told(i.name, f.Type()) {
				return 0, nil
			}
			return 1, func() string { return fmt.Sprintf("%+v", lacked) }
		})
	}
}

// lackAll waits until every instance names what the others handle and it lacks.
func (t *trial) lackAll() {
	t.Helper()
	t.mu.Lock()
	running := slices.Clone(t.running)
	t.mu.Unlock()
	for _, i := range running {
		for _, r := range t.releases() {
			t.lacks(i, r.handles)
		}
	}
}

// close runs an instance that has everything until nothing is left.
func (t *trial) close() {
	t.Helper()
	if len(t.ledger.open()) == 0 {
		return
	}
	t.stopAll()
	t.run(&t.change.all, 1)
	t.until("in the closing phase everything is handled", func() (int, func() string) {
		left := t.ledger.open()
		return len(left), func() string { return t.ledger.describe(left) }
	})
}

// judge stops everything and counts.
func (t *trial) judge() Verdict {
	t.Helper()
	t.stopAll()
	effects, err := t.site.Effects(t.Context())
	if err != nil {
		t.Fatalf("counting effects: %v", err)
	}
	v := t.ledger.count(effects)
	v.Kept, v.Note = t.kept, t.note
	return v
}
