package drivertest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
)

// scene is what one case plays on: its broker, and the processes over it.
type scene struct {
	*testing.T
	harness  Harness
	broker   Broker
	features driver.Features
	name     string // of the driver

	declaring, renaming bool // what the driver implements besides

	spareOnce sync.Once
	spare     driver.Driver // to put raw messages with
}

func newScene(t *testing.T, harness Harness) *scene {
	t.Helper()
	s := &scene{T: t, harness: harness, broker: harness.NewBroker(t)}
	d := s.open()
	s.features, s.name = d.Features(), d.Name()
	_, s.declaring = d.(driver.Declarations)
	_, s.renaming = d.(driver.Renamer)
	s.close(d)
	return s
}

// open makes a driver value that is closed with the case at the latest.
func (s *scene) open() driver.Driver {
	s.Helper()
	d := s.broker.Open(s.T)
	if d == nil {
		s.Fatal("drivertest: Broker.Open returned nil")
	}
	s.Cleanup(func() { s.close(d) })
	return d
}

func (s *scene) close(d driver.Driver) {
	ctx, cancel := context.WithTimeout(context.Background(), s.patience())
	defer cancel()
	if err := d.Close(ctx); err != nil {
		s.Errorf("Close: %v", err)
	}
}

func (s *scene) scale(d time.Duration) time.Duration { return s.harness.scale(d) }

func (s *scene) patience() time.Duration { return s.harness.patience() }

// eventually waits until condition holds; state, which may be nil, is printed
// when it never does.
func (s *scene) eventually(what string, condition func() bool, state func() string) {
	s.Helper()
	limit := s.patience()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	for !condition() {
		select {
		case <-look.C:
		case <-deadline.C:
			text := ""
			if state != nil {
				text = ": " + state()
			}
			s.Fatalf("this did not happen within %v: %s%s", limit, what, text)
		}
	}
}

// process is one bus over a driver value of its own.
type process struct {
	*tidings.Bus
	scene  *scene
	driver driver.Driver
	seen   *witness
	cancel context.CancelFunc
	ended  chan struct{}
	result error
	severe *severance // set where the process can crash
}

// settings changes how a process is made.
type settings struct {
	options   tidings.Options
	driver    driver.Driver // nil opens one
	crashable bool
	crowd     bool // do not wait until it is ready
}

// start runs a bus in which declare has declared the subscriptions, and waits
// until it takes part.
func (s *scene) start(with settings, declare func(*tidings.Bus)) *process {
	s.Helper()
	p := s.declare(with, declare)
	p.run()
	if with.crowd {
		return p
	}
	p.ready()
	return p
}

// declare makes a process and does not run it.
func (s *scene) declare(with settings, declare func(*tidings.Bus)) *process {
	s.Helper()
	p := &process{scene: s, driver: with.driver, seen: newWitness(), ended: make(chan struct{})}
	if p.driver == nil {
		p.driver = s.open()
	}
	under := p.driver
	if with.crashable {
		p.severe = &severance{Driver: p.driver}
		under = p.severe
		with.options.DeadLetters, _ = p.driver.(driver.DeadLetters)
		with.options.DrainTimeout = s.scale(100 * time.Millisecond)
	}
	with.options.Logger = slog.New(slog.DiscardHandler)
	with.options.Observers = append([]tidings.Observer{p.seen}, with.options.Observers...)
	if with.options.DrainTimeout == 0 {
		with.options.DrainTimeout = s.patience()
	}
	p.Bus = tidings.New(under, &with.options)
	if declare != nil {
		declare(p.Bus)
	}
	return p
}

func (p *process) run() {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	go func() {
		defer close(p.ended)
		p.result = p.Run(ctx)
	}()
	p.scene.Cleanup(p.stop)
}

func (p *process) ready() {
	p.scene.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), p.scene.patience())
	defer cancel()
	if err := p.Ready(ctx); err != nil {
		p.scene.Fatalf("the bus does not run: %v", err)
	}
}

// stop ends Run in good order.
func (p *process) stop() {
	p.scene.Helper()
	p.cancel()
	limit := time.NewTimer(2 * p.scene.patience())
	defer limit.Stop()
	select {
	case <-p.ended:
		if p.result != nil && p.severe == nil {
			p.scene.Errorf("Run: %v", p.result)
		}
		p.result = nil
	case <-limit.C:
		p.scene.Errorf("Run does not end")
	}
}

// crash ends the process without a word to the broker: from now on nothing is
// settled and nothing is delivered.
func (p *process) crash() {
	p.scene.Helper()
	p.severe.cut.Store(true)
	p.stop()
}

// publish must succeed.
func (p *process) publish(events ...tidings.DomainEvent) {
	p.scene.Helper()
	if err := p.tryPublish(events...); err != nil {
		p.scene.Fatalf("Publish: %v", err)
	}
}

func (p *process) tryPublish(events ...tidings.DomainEvent) error {
	ctx, cancel := context.WithTimeout(context.Background(), p.scene.patience())
	defer cancel()
	return p.Publish(ctx, events...)
}

// options fills in what the driver asks of every subscription.
func (s *scene) options(o tidings.SubscribeOptions) *tidings.SubscribeOptions {
	if s.features.History && o.StartAt.Mode == driver.StartUnset {
		o.StartAt = tidings.StartBeginning
	}
	if s.features.Broadcast {
		o.EachInstance = true
	}
	if o.Backoff.Initial == 0 {
		o.Backoff = s.steady(2 * time.Millisecond)
	}
	return &o
}

// steady is a backoff that is always the same.
func (s *scene) steady(wait time.Duration) tidings.Backoff {
	return tidings.Backoff{Initial: wait, Max: wait, Multiplier: 1, Jitter: -1}
}

// subscribe declares a subscription to one contract.
func subscribe[P any](s *scene, b *tidings.Bus, name string, options tidings.SubscribeOptions, contract tidings.Contract[P], handle func(context.Context, tidings.Event[P]) error) {
	s.Helper()
	b.Module(module).Subscribe(name, s.options(options), contract.On(handle))
}

// putRaw stores messages as a stranger would.
func (s *scene) putRaw(messages ...driver.Message) {
	s.Helper()
	if s.broker.PutRaw != nil {
		for _, m := range messages {
			s.broker.PutRaw(s.T, m)
		}
		return
	}
	s.spareOnce.Do(func() { s.spare = s.open() })
	ctx, cancel := context.WithTimeout(context.Background(), s.patience())
	defer cancel()
	if err := s.spare.Publish(ctx, messages); err != nil {
		s.Fatalf("Publish of raw messages: %v", err)
	}
}

// publishStates returns the states of a failed publish, as "stored, unknown".
func (s *scene) publishStates(err error) string {
	s.Helper()
	failed, ok := errors.AsType[*tidings.PublishError](err)
	if !ok {
		s.Fatalf("Publish returned %v, want a *tidings.PublishError", err)
	}
	text := ""
	for n, r := range failed.Results {
		if n > 0 {
			text += ", "
		}
		text += fmt.Sprint(r.State)
		if (r.State == tidings.Stored) != (r.Err == nil) {
			s.Errorf("event %d of the publish is %v with error %v", n, r.State, r.Err)
		}
	}
	return text
}

// complaints runs a bus that must be refused and returns why.
func (s *scene) complaints(p *process) string {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), s.patience())
	defer cancel()
	err := p.Run(ctx)
	if err == nil {
		s.Fatal("the bus ran, which should have been refused")
	}
	return err.Error()
}
